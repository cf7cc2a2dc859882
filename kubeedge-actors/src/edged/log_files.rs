//! Which file holds the log of a container that a person named.

use std::path::Path;

use actix::{Handler, ResponseFuture};
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::v1::{ContainerLog, LocateContainerLog, ObjectKey};

use super::{
    Edged,
    provision::logs::LogDirs,
    runtime::{Instance, InstanceState},
};
use crate::system::Context;

impl Edged {
    /// The pod with its uid. Of two pods of one name the old one is on its way out.
    pub(super) fn pod_of_name(&self, key: &ObjectKey) -> Option<(&str, &Pod)> {
        let of_name = |pod: &Pod| {
            pod.metadata.name.as_deref() == Some(&key.name) && pod.metadata.namespace.as_deref() == Some(&key.namespace)
        };
        let pods = self.book.pods().filter(|(_, pod)| of_name(pod));
        pods.min_by_key(|(_, pod)| pod.metadata.deletion_timestamp.is_some())
    }
}

impl Handler<LocateContainerLog> for Edged {
    type Result = ResponseFuture<ContainerLog>;

    fn handle(&mut self, wanted: LocateContainerLog, _: &mut Context<Self>) -> Self::Result {
        let Some((uid, pod)) = self.pod_of_name(&wanted.pod.clone().unwrap_or_default()) else {
            return Box::pin(std::future::ready(refused(404, "pod does not exist".into())));
        };
        let (uid, pod) = (uid.to_owned(), pod.clone());
        let Some(order) = self.book.order(&uid) else {
            return Box::pin(std::future::ready(refused(404, "pod does not exist".into())));
        };
        let folder = LogDirs::new(self.prepared.setup.log_dir.clone()).pod(&order.plan);
        let runtime = self.shared.runtime.clone();
        Box::pin(async move {
            match runtime.observe(&uid).await {
                Ok(observed) => choose(&pod, &wanted, &observed.instances, &folder),
                Err(error) => refused(500, error.to_string()),
            }
        })
    }
}

fn refused(code: u32, message: String) -> ContainerLog {
    ContainerLog { code, message, ..ContainerLog::default() }
}

/// The instance that is meant, in a kubelet's words if there is none.
fn choose(pod: &Pod, wanted: &LocateContainerLog, instances: &[Instance], folder: &Path) -> ContainerLog {
    let name = wanted.container.as_str();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let mut names = spec.into_iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten().map(|container| container.name.as_str());
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| container.name.as_str());
        spec.containers.iter().map(|container| container.name.as_str()).chain(init).chain(ephemeral)
    });
    if !names.any(|known| known == name) {
        return refused(404, format!("container \"{name}\" not found in pod \"{pod_name}\""));
    }
    let mut of_name: Vec<&Instance> = instances.iter().filter(|instance| instance.name == name).collect();
    of_name.sort_by_key(|instance| (instance.attempt, instance.created_at));
    if !wanted.instance.is_empty() {
        return match of_name.iter().find(|instance| instance.id == wanted.instance) {
            Some(instance) => found(instance, folder),
            None => refused(404, format!("container \"{name}\" in pod \"{pod_name}\" was removed")),
        };
    }
    // Made and never started: it has no log.
    of_name.retain(|instance| instance.state != InstanceState::Created);
    let policy = spec.and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let last = of_name.pop();
    if !wanted.previous {
        return match last {
            Some(instance) => found(instance, folder),
            None => refused(
                400,
                format!("container \"{name}\" in pod \"{pod_name}\" is waiting to start: ContainerCreating"),
            ),
        };
    }
    // One that has ended and will be started again is the previous one of the next.
    let comes_again = |instance: &Instance| {
        !instance.state.may_run() && (policy == "Always" || (policy == "OnFailure" && instance.exit_code != 0))
    };
    let previous = match last {
        Some(last) if comes_again(last) => Some(last),
        _ => of_name.pop(),
    };
    match previous {
        Some(instance) => found(instance, folder),
        None => refused(400, format!("previous terminated container \"{name}\" in pod \"{pod_name}\" not found")),
    }
}

fn found(instance: &Instance, folder: &Path) -> ContainerLog {
    let path = folder.join(LogDirs::relative(&instance.name, instance.attempt));
    ContainerLog {
        code: 200,
        message: String::new(),
        path: path.to_string_lossy().into_owned(),
        instance: instance.id.clone(),
        running: instance.state.may_run(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn instance(attempt: u32, state: InstanceState, exit_code: i32) -> Instance {
        Instance {
            id: format!("id{attempt}"),
            sandbox_id: "s".into(),
            name: "main".into(),
            attempt,
            state,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            sizes: None,
            spec_image: None,
            termination_log: None,
        }
    }

    fn chosen(policy: &str, previous: bool, container: &str, instances: &[Instance]) -> Result<String, (u32, String)> {
        let pod =
            json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": policy, "containers": [{"name": "main"}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let wanted = LocateContainerLog { container: container.into(), previous, ..LocateContainerLog::default() };
        let log = choose(&pod, &wanted, instances, Path::new("/var/log/pods/ns_p_u"));
        if log.code == 200 { Ok(log.path) } else { Err((log.code, log.message)) }
    }

    #[test]
    fn the_log_is_that_of_the_instance_a_kubelet_would_show() {
        use InstanceState::{Created, Exited, Running};
        let file = |attempt: u32| Ok(format!("/var/log/pods/ns_p_u/main/{attempt}.log"));
        let runs = [instance(0, Exited, 1), instance(1, Running, 0)];
        assert_eq!(chosen("Always", false, "main", &runs), file(1));
        assert_eq!(chosen("Always", true, "main", &runs), file(0));
        // Waits for its next start: what ended last is the previous one, too.
        let waits = [instance(0, Exited, 1), instance(1, Exited, 1)];
        assert_eq!(chosen("Always", false, "main", &waits), file(1));
        assert_eq!(chosen("Always", true, "main", &waits), file(1));
        // Has ended for good.
        assert_eq!(chosen("Never", true, "main", &waits), file(0));
        let once = [instance(0, Exited, 0), instance(1, Created, 0)];
        assert_eq!(chosen("Never", false, "main", &once), file(0));
        let not_found = "previous terminated container \"main\" in pod \"p\" not found";
        assert_eq!(chosen("Never", true, "main", &once), Err((400, not_found.into())));
        let waiting = "container \"main\" in pod \"p\" is waiting to start: ContainerCreating";
        assert_eq!(chosen("Always", false, "main", &[]), Err((400, waiting.into())));
        let unknown = "container \"x\" not found in pod \"p\"";
        assert_eq!(chosen("Always", false, "x", &runs), Err((404, unknown.into())));
    }
}
