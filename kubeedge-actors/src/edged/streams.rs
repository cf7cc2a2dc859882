//! Where a stream into a container or to a pod's ports is: at the runtime's streaming server, which is asked for it.

use actix::{Handler, ResponseFuture};
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::{
    cri,
    v1::{OpenContainerStream, StreamChannels, StreamLocation, open_container_stream::Stream},
};

use super::{
    Edged,
    runtime::{Instance, InstanceState, ObservedPod, RuntimeError, StreamRequest},
};
use crate::system::Context;

impl Handler<OpenContainerStream> for Edged {
    type Result = ResponseFuture<StreamLocation>;

    fn handle(&mut self, wanted: OpenContainerStream, _: &mut Context<Self>) -> Self::Result {
        let Some((uid, pod)) = self.pod_of_name(&wanted.pod.clone().unwrap_or_default()) else {
            return Box::pin(std::future::ready(refused(404, "pod does not exist".into())));
        };
        let (uid, pod) = (uid.to_owned(), pod.clone());
        let runtime = self.shared.runtime.clone();
        Box::pin(async move {
            let request = match runtime.observe(&uid).await {
                Ok(observed) => choose(&pod, &uid, wanted.stream, &observed),
                Err(error) => return failed(error),
            };
            match request {
                Ok(request) => match runtime.stream_url(request).await {
                    Ok(url) => StreamLocation { code: 200, url, ..StreamLocation::default() },
                    Err(error) => failed(error),
                },
                Err(location) => location,
            }
        })
    }
}

fn refused(code: u32, message: String) -> StreamLocation {
    StreamLocation { code, message, ..StreamLocation::default() }
}

fn failed(error: RuntimeError) -> StreamLocation {
    refused(500, error.to_string())
}

/// What to ask the runtime for, in a kubelet's words if nothing can be had.
fn choose(
    pod: &Pod,
    uid: &str,
    stream: Option<Stream>,
    observed: &ObservedPod,
) -> Result<StreamRequest, StreamLocation> {
    match stream {
        Some(Stream::Exec(exec)) => {
            let container_id = running(&exec.container, &observed.instances)?;
            let StreamChannels { stdin, stdout, stderr, tty } = exec.channels.unwrap_or_default();
            let request = cri::ExecRequest { container_id, cmd: exec.command, tty, stdin, stdout, stderr };
            Ok(StreamRequest::Exec(request))
        }
        Some(Stream::Attach(attach)) => {
            let container_id = running(&attach.container, &observed.instances)?;
            let StreamChannels { stdin, stdout, stderr, .. } = attach.channels.unwrap_or_default();
            let has = terminal(pod, &attach.container);
            let Some(tty) = has else {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                return Err(refused(500, format!("container {} not found in pod {name}", attach.container)));
            };
            // A terminal has one output.
            let stderr = stderr && !tty;
            Ok(StreamRequest::Attach(cri::AttachRequest { container_id, stdin, tty, stdout, stderr }))
        }
        Some(Stream::PortForward(forward)) => {
            let ready = observed.sandboxes.iter().filter(|sandbox| sandbox.ready);
            let Some(sandbox) = ready.max_by_key(|sandbox| sandbox.attempt) else {
                return Err(refused(500, format!("sandbox for pod {uid:?} not found")));
            };
            let pod_sandbox_id = sandbox.id.clone();
            Ok(StreamRequest::PortForward(cri::PortForwardRequest { pod_sandbox_id, port: forward.ports }))
        }
        None => Err(refused(400, "a stream of a kind that this edge does not know".into())),
    }
}

/// The id of the instance that runs now.
fn running(container: &str, instances: &[Instance]) -> Result<String, StreamLocation> {
    let of_name = instances.iter().filter(|one| one.name == container && one.state == InstanceState::Running);
    match of_name.max_by_key(|one| (one.attempt, one.created_at)) {
        Some(instance) => Ok(instance.id.clone()),
        None => Err(refused(500, format!("container not found ({container:?})"))),
    }
}

/// Whether this container was made with a terminal; `None` when there is none of this name.
fn terminal(pod: &Pod, container: &str) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all = all.map(|one| (one.name.as_str(), one.tty));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|one| (one.name.as_str(), one.tty));
    all.chain(ephemeral).find(|(name, _)| *name == container).map(|(_, tty)| tty.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kubeedge_proto::v1::{AttachStream, ExecStream, PortForwardStream};
    use serde_json::json;

    use super::*;
    use crate::edged::runtime::Sandbox;

    fn instance(attempt: u32, state: InstanceState) -> Instance {
        Instance {
            id: format!("id{attempt}"),
            sandbox_id: "s".into(),
            name: "main".into(),
            attempt,
            state,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            sizes: None,
            spec_image: None,
            termination_log: None,
        }
    }

    fn sandbox(attempt: u32, ready: bool) -> Sandbox {
        let (id, created_at) = (format!("s{attempt}"), Timestamp::UNIX_EPOCH);
        Sandbox { id, attempt, ready, created_at, ips: Vec::new(), pod_start: None }
    }

    fn chosen(tty: bool, stream: Stream, observed: &ObservedPod) -> Result<StreamRequest, (u32, String)> {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "tty": tty}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        choose(&pod, "u", Some(stream), observed).map_err(|refused| (refused.code, refused.message))
    }

    #[test]
    fn a_stream_goes_into_the_instance_that_runs() {
        use InstanceState::{Created, Exited, Running};
        let channels = StreamChannels { stdin: true, stdout: true, stderr: true, tty: false };
        let exec = |container: &str| {
            let command = vec!["ls".to_owned(), "-l".to_owned()];
            Stream::Exec(ExecStream { container: container.into(), command, channels: Some(channels) })
        };
        let of = |instances: &[Instance]| ObservedPod { instances: instances.to_vec(), ..ObservedPod::default() };
        let runs = of(&[instance(0, Exited), instance(1, Running), instance(2, Created)]);
        let request = cri::ExecRequest {
            container_id: "id1".into(),
            cmd: vec!["ls".into(), "-l".into()],
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        assert_eq!(chosen(false, exec("main"), &runs), Ok(StreamRequest::Exec(request)));
        let none = Err((500, "container not found (\"x\")".to_owned()));
        assert_eq!(chosen(false, exec("x"), &runs), none);
        let ended = Err((500, "container not found (\"main\")".to_owned()));
        assert_eq!(chosen(false, exec("main"), &of(&[instance(0, Exited)])), ended);

        // Whether there is a terminal is the container's to say, and then there is one output.
        let attach = || Stream::Attach(AttachStream { container: "main".into(), channels: Some(channels) });
        let asked = |tty| match chosen(tty, attach(), &runs) {
            Ok(StreamRequest::Attach(request)) => (request.container_id, request.tty, request.stderr),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(false), ("id1".to_owned(), false, true));
        assert_eq!(asked(true), ("id1".to_owned(), true, false));
    }

    #[test]
    fn ports_are_those_of_the_sandbox_that_is_ready() {
        let forward = || Stream::PortForward(PortForwardStream { ports: vec![80] });
        let of = |sandboxes: &[Sandbox]| ObservedPod { sandboxes: sandboxes.to_vec(), ..ObservedPod::default() };
        let request = cri::PortForwardRequest { pod_sandbox_id: "s1".into(), port: vec![80] };
        let two = of(&[sandbox(0, false), sandbox(1, true)]);
        assert_eq!(chosen(false, forward(), &two), Ok(StreamRequest::PortForward(request)));
        let none = Err((500, "sandbox for pod \"u\" not found".to_owned()));
        assert_eq!(chosen(false, forward(), &of(&[sandbox(0, false)])), none);
    }
}
