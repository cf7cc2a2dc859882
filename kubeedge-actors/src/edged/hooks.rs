//! Lifecycle hooks: what runs in or beside a container after its start and before its end.
//!
//! As for kubelet: `postStart` holds its pod's other starts up and has no deadline of its own; `preStop` counts towards
//! the grace period and is left alone when that is over. Of a page only whether it could be asked for matters, not its
//! status. A hook may run twice, when edgecore ends in its middle.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::{
    probes::{
        HttpCheck, http,
        spec::{http_check, tcp_check},
    },
    runtime::Runtime,
};

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Runs a command in the container.
    Exec(Vec<String>),
    /// Asks for a page.
    Http(HttpCheck),
    /// Waits.
    Sleep(Duration),
    /// Nothing that can be done; why.
    Invalid(String),
}

/// Where it is done.
#[derive(Clone, Copy)]
pub struct HookTarget<'a> {
    /// The runtime, for commands.
    pub runtime: &'a dyn Runtime,
    /// The instance.
    pub id: &'a str,
    /// The container's name.
    pub container: &'a str,
    /// The pod's address.
    pub address: &'a str,
}

/// The hook after the start of a container.
pub fn post_start(container: &Container) -> Option<Hook> {
    let handler = container.lifecycle.as_ref()?.post_start.as_ref()?;
    Some(hook(container, handler))
}

/// The hook before the end of a container.
pub fn pre_stop(container: &Container) -> Option<Hook> {
    let handler = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
    Some(hook(container, handler))
}

fn hook(container: &Container, handler: &LifecycleHandler) -> Hook {
    if let Some(exec) = &handler.exec {
        return Hook::Exec(exec.command.clone().unwrap_or_default());
    }
    if let Some(page) = &handler.http_get {
        return http_check(container, page).map_or_else(Hook::Invalid, Hook::Http);
    }
    if let Some(sleep) = &handler.sleep {
        return Hook::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)));
    }
    if let Some(tcp) = &handler.tcp_socket {
        let port = tcp_check(container, tcp).err().unwrap_or_default();
        return Hook::Invalid(format!("invalid handler: tcpSocket is no lifecycle handler {port}").trim().to_owned());
    }
    Hook::Invalid("invalid handler: none is given".to_owned())
}

/// Does it. Has no deadline of its own. The error is for the pod's status, not for an event: it may hold what a server
/// or a command said.
pub async fn run(hook: &Hook, target: HookTarget<'_>) -> Result<(), String> {
    let container = target.container;
    match hook {
        Hook::Exec(command) => {
            let failed = |why: String| {
                Err(format!("Exec lifecycle hook ({}) for Container {container:?} failed - {why}", command.join(" ")))
            };
            match target.runtime.exec_sync(target.id, command, Duration::ZERO).await {
                Ok(output) if output.exit_code == 0 => Ok(()),
                Ok(output) => {
                    let said = [output.stdout, output.stderr].concat();
                    let said = String::from_utf8_lossy(&said[..said.len().min(http::MAX_BODY)]).into_owned();
                    failed(format!("error: command exited with {}, message: {said:?}", output.exit_code))
                }
                Err(error) => failed(format!("error: {error}")),
            }
        }
        Hook::Http(check) => match http::get(check, target.address, http::Asker::Hook).await {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(format!("HTTP lifecycle hook ({}) for Container {container:?} failed - error: {error}", check.path))
            }
        },
        Hook::Sleep(duration) => {
            tokio::time::sleep(*duration).await;
            Ok(())
        }
        Hook::Invalid(why) => Err(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::edged::fake::FakeRuntime;

    #[test]
    fn every_handler_is_read() {
        let of = |handler: serde_json::Value| {
            let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}],
                "lifecycle": {"preStop": handler}});
            let container: Container = serde_json::from_value(container).unwrap();
            assert_eq!(post_start(&container), None);
            pre_stop(&container).unwrap()
        };
        assert_eq!(of(json!({"exec": {"command": ["a", "b"]}})), Hook::Exec(vec!["a".into(), "b".into()]));
        assert_eq!(of(json!({"sleep": {"seconds": 3}})), Hook::Sleep(Duration::from_secs(3)));
        assert_eq!(of(json!({"sleep": {"seconds": -3}})), Hook::Sleep(Duration::ZERO));
        assert!(matches!(of(json!({"httpGet": {"port": "web", "path": "/x"}})), Hook::Http(check) if check.port == 80));
        for wrong in [json!({"httpGet": {"port": "none"}}), json!({"tcpSocket": {"port": 80}}), json!({})] {
            assert!(matches!(of(wrong.clone()), Hook::Invalid(_)), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_page_is_asked_for_whatever_it_says_and_one_that_is_not_there_is_told() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let page = json!({"port": listener.local_addr().unwrap().port(), "path": "/begin",
            "httpHeaders": [{"name": "X-Hook", "value": "one"}]});
        let container = json!({"name": "c", "lifecycle": {"postStart": {"httpGet": page}}});
        let container: Container = serde_json::from_value(container).unwrap();
        let hook = post_start(&container).unwrap();
        let runtime = FakeRuntime::new(Arc::new(jiff::Timestamp::now));
        let target = HookTarget { runtime: &runtime, id: "i", container: "c", address: "127.0.0.1" };
        let serve = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(connection.read_u8().await.unwrap());
            }
            connection.write_all(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap().to_lowercase()
        };
        let (ran, head) = tokio::join!(run(&hook, target), serve);
        assert_eq!(ran, Ok(()), "only whether it could be asked for matters");
        assert!(head.starts_with("get /begin http/1.1\r\n") && head.contains("\r\nx-hook: one\r\n"), "{head}");
        drop(listener);
        let error = run(&hook, target).await.unwrap_err();
        assert!(error.starts_with("HTTP lifecycle hook (/begin) for Container \"c\" failed - error: "), "{error}");
    }
}
