//! A probe as its container's spec asks for it, checked once where it comes in.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Whether the container has started: until then the other probes wait. Failed: the container is restarted.
    Startup,
    /// Whether the container is ready for requests.
    Readiness,
    /// Whether the container works. Failed: it is restarted.
    Liveness,
}

impl ProbeKind {
    /// Kubelet's word for it in an event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What is done to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Runs a command in the container: exit code 0 is good.
    Exec {
        /// The command.
        command: Vec<String>,
    },
    /// Asks for a page: a status from 200 to 399 is good.
    Http(HttpCheck),
    /// Opens a connection.
    Tcp {
        /// Where; the pod's own address when unset.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// Asks `grpc.health.v1.Health`, without TLS.
    Grpc {
        /// The port.
        port: u16,
        /// The service; empty for the whole server.
        service: String,
    },
}

/// A page to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// With TLS, whose certificate is not verified (kubelet's rule: the server is the container).
    pub tls: bool,
    /// Where; the pod's own address when unset.
    pub host: Option<String>,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Headers; `Host` replaces the one made from the address.
    pub headers: Vec<(String, String)>,
}

/// A probe with its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What is done; an error for a person when that cannot be understood.
    pub check: Result<Check, String>,
    /// Pause after the container's start.
    pub initial_delay: Duration,
    /// From one probe to the next.
    pub period: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Good answers in a row before the container counts as good.
    pub success_threshold: u32,
    /// Bad answers in a row before the container counts as bad.
    pub failure_threshold: u32,
    /// Seconds the container may take to end when this probe ends it; the pod's when unset.
    pub grace_seconds: Option<u32>,
}

/// The probes of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Whether it has started.
    pub startup: Option<ProbeSpec>,
    /// Whether it is ready.
    pub readiness: Option<ProbeSpec>,
    /// Whether it works.
    pub liveness: Option<ProbeSpec>,
}

impl Probes {
    /// The probes of a container.
    pub fn of(container: &Container) -> Self {
        let read = |probe: &Option<Probe>| probe.as_ref().map(|probe| ProbeSpec::of(container, probe));
        Self {
            startup: read(&container.startup_probe),
            readiness: read(&container.readiness_probe),
            liveness: read(&container.liveness_probe),
        }
    }

    /// The probe of one kind.
    pub fn get(&self, kind: ProbeKind) -> Option<&ProbeSpec> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
        }
    }

    /// All that there are.
    pub fn iter(&self) -> impl Iterator<Item = (ProbeKind, &ProbeSpec)> {
        [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness]
            .into_iter()
            .filter_map(|kind| Some((kind, self.get(kind)?)))
    }
}

impl ProbeSpec {
    /// Reads a probe. Numbers that are missing or make no sense are the API's defaults.
    fn of(container: &Container, probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u32| {
            let positive = value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0);
            Duration::from_secs(positive.unwrap_or(default).into())
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let grace = probe.termination_grace_period_seconds.filter(|seconds| *seconds > 0);
        Self {
            check: check(container, probe),
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
            grace_seconds: grace.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
        }
    }
}

fn check(container: &Container, probe: &Probe) -> Result<Check, String> {
    if let Some(exec) = &probe.exec {
        return Ok(Check::Exec { command: exec.command.clone().unwrap_or_default() });
    }
    if let Some(http) = &probe.http_get {
        return http_check(container, http).map(Check::Http);
    }
    if let Some(tcp) = &probe.tcp_socket {
        return tcp_check(container, tcp);
    }
    if let Some(grpc) = &probe.grpc {
        let port = number(i64::from(grpc.port))?;
        return Ok(Check::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
    }
    Err("missing probe handler".to_owned())
}

/// Reads an HTTP action, of a probe or a hook.
pub fn http_check(container: &Container, http: &HTTPGetAction) -> Result<HttpCheck, String> {
    let headers = http.http_headers.iter().flatten();
    Ok(HttpCheck {
        tls: http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host: http.host.clone().filter(|host| !host.is_empty()),
        port: port(container, &http.port)?,
        path: http.path.clone().unwrap_or_default(),
        headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

/// Reads a TCP action, of a probe or a hook.
pub fn tcp_check(container: &Container, tcp: &TCPSocketAction) -> Result<Check, String> {
    let host = tcp.host.clone().filter(|host| !host.is_empty());
    Ok(Check::Tcp { host, port: port(container, &tcp.port)? })
}

/// A port by number, by the name it has in the container, or by a number written as text.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    match port {
        IntOrString::Int(value) => number(i64::from(*value)),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            match (named, name.parse::<i64>()) {
                (Some(port), _) => number(i64::from(port.container_port)),
                (None, Ok(value)) => number(value),
                (None, Err(_)) => Err(format!("couldn't find port: {name:?} in container {:?}", container.name)),
            }
        }
    }
}

fn number(value: i64) -> Result<u16, String> {
    u16::try_from(value).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {value}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn probes(container: serde_json::Value) -> Probes {
        Probes::of(&serde_json::from_value(container).unwrap())
    }

    #[test]
    fn defaults_are_the_apis() {
        let probes = probes(json!({"name": "c", "livenessProbe": {"exec": {"command": ["true"]}}}));
        let expected = ProbeSpec {
            check: Ok(Check::Exec { command: vec!["true".into()] }),
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold: 3,
            grace_seconds: None,
        };
        assert_eq!(probes, Probes { liveness: Some(expected), ..Probes::default() });
        assert_eq!(probes.iter().count(), 1);
    }

    #[test]
    fn ports_are_found_by_number_name_or_text() {
        let of = |port: serde_json::Value| {
            let probes = probes(json!({
                "name": "c", "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": {"tcpSocket": {"port": port}},
            }));
            probes.readiness.unwrap().check.map(|check| match check {
                Check::Tcp { port, .. } => port,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!((of(json!(81)), of(json!("web")), of(json!("82"))), (Ok(81), Ok(8080), Ok(82)));
        for wrong in [json!("none"), json!(0), json!(-1), json!(65536), json!("99999999999")] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_number_and_handler_is_read() {
        let probes = probes(json!({
            "name": "c",
            "startupProbe": {
                "httpGet": {"path": "/up?x=1", "port": 1, "scheme": "HTTPS", "host": "h",
                    "httpHeaders": [{"name": "A", "value": "b"}]},
                "initialDelaySeconds": 2, "periodSeconds": 3, "timeoutSeconds": 4, "failureThreshold": 5,
                "terminationGracePeriodSeconds": 6},
            "readinessProbe": {"grpc": {"port": 9, "service": "s"}, "successThreshold": 2},
            "livenessProbe": {},
        }));
        let startup = probes.startup.unwrap();
        let headers = vec![("A".to_owned(), "b".to_owned())];
        let (tls, host, port, path) = (true, Some("h".to_owned()), 1, "/up?x=1".to_owned());
        assert_eq!(startup.check, Ok(Check::Http(HttpCheck { tls, host, port, path, headers })));
        let seconds = |duration: Duration| duration.as_secs();
        let numbers = (seconds(startup.initial_delay), seconds(startup.period), seconds(startup.timeout));
        assert_eq!(numbers, (2, 3, 4));
        assert_eq!((startup.failure_threshold, startup.grace_seconds), (5, Some(6)));
        let readiness = probes.readiness.unwrap();
        assert_eq!(readiness.check, Ok(Check::Grpc { port: 9, service: "s".into() }));
        assert_eq!(readiness.success_threshold, 2);
        assert!(probes.liveness.unwrap().check.is_err());
    }

    #[test]
    fn numbers_without_sense_are_the_defaults() {
        let probes = probes(json!({"name": "c", "livenessProbe": {
            "exec": {}, "periodSeconds": 0, "timeoutSeconds": -7, "failureThreshold": -1, "initialDelaySeconds": -3}}));
        let probe = probes.liveness.unwrap();
        assert_eq!((probe.period.as_secs(), probe.timeout.as_secs(), probe.failure_threshold), (10, 1, 3));
        assert_eq!(probe.initial_delay, Duration::ZERO);
    }
}
