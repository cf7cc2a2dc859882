//! Asking once.

use std::time::Duration;

use kubeedge_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic::{Code, Response, Status, transport::Endpoint};

use super::{
    Check,
    http::{self, connect},
};
use crate::edged::runtime::{Runtime, RuntimeError};

/// Largest output of a command that an answer keeps, bytes (kubelet's).
pub const MAX_OUTPUT: usize = 10 * 1024;

/// Whom and for how long.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The runtime, for commands.
    pub runtime: &'a dyn Runtime,
    /// The instance.
    pub id: &'a str,
    /// The pod's address.
    pub address: &'a str,
    /// How long it may take.
    pub timeout: Duration,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Good.
    Good,
    /// Good, with something that a person should know.
    Warning(String),
    /// Bad, and why.
    Bad(String),
    /// It could not be asked, which says nothing about the container.
    Unknown(String),
}

/// Asks once. Ends within the timeout and a second.
pub async fn ask(check: &Check, asked: Asked<'_>) -> Answer {
    match check {
        Check::Exec { command } => exec(command, asked).await,
        Check::Http(check) => {
            match tokio::time::timeout(asked.timeout, http::get(check, asked.address, http::Asker::Probe)).await {
                Ok(Ok(page)) => judge(&page),
                Ok(Err(error)) => Answer::Bad(error),
                Err(_) => Answer::Bad(format!(
                    "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                    http::Url::of(check, asked.address)
                )),
            }
        }
        Check::Tcp { host, port } => {
            let host = host.as_deref().unwrap_or(asked.address);
            match tokio::time::timeout(asked.timeout, connect(host, *port)).await {
                Ok(Ok(_)) => Answer::Good,
                Ok(Err(error)) => Answer::Bad(error),
                Err(_) => Answer::Bad(format!("dial tcp {host}:{port}: i/o timeout")),
            }
        }
        Check::Grpc { port, service } => grpc(*port, service, asked).await,
    }
}

fn judge(page: &http::Page) -> Answer {
    match page.status {
        200..=299 => Answer::Good,
        300..=399 => Answer::Warning(format!("Probe terminated redirects, Response body: {}", page.body)),
        // Without the body: it is in an event for all who may read events, and may be a page of secrets.
        status => Answer::Bad(format!("HTTP probe failed with statuscode: {status}")),
    }
}

async fn exec(command: &[String], asked: Asked<'_>) -> Answer {
    match asked.runtime.exec_sync(asked.id, command, asked.timeout).await {
        Ok(output) if output.exit_code == 0 => Answer::Good,
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Answer::Bad(String::from_utf8_lossy(&text[..text.len().min(MAX_OUTPUT)]).into_owned())
        }
        Err(RuntimeError::Timeout { after, .. }) => {
            Answer::Bad(format!("command timed out: {:?} timed out after {}s", command.join(" "), after.as_secs()))
        }
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

async fn grpc(port: u16, service: &str, asked: Asked<'_>) -> Answer {
    let host = asked.address;
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let within = asked.timeout;
    let endpoint = match Endpoint::from_shared(format!("http://{authority}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.33"))
    {
        Ok(endpoint) => endpoint,
        Err(error) => return Answer::Unknown(error.to_string()),
    };
    let deadline = tokio::time::Instant::now() + within;
    let channel = match tokio::time::timeout_at(deadline, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            return Answer::Bad(format!("error: failed to connect service {authority:?}: {why}"));
        }
        Err(_) => return Answer::Bad(format!("timeout: failed to connect service {authority:?} within {within:?}")),
    };
    let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_OUTPUT);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() });
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(answer) => judge_health(answer),
        Err(_) => Answer::Bad(format!("timeout: health rpc did not complete within {within:?}")),
    }
}

fn judge_health(answer: Result<Response<HealthCheckResponse>, Status>) -> Answer {
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Answer::Good,
            other => Answer::Bad(format!("service unhealthy (responded with {:?})", other.as_str_name())),
        },
        Err(status) if status.code() == Code::Unimplemented => Answer::Bad(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => Answer::Bad(format!("error: health rpc probe failed: {}", status.message())),
    }
}

#[cfg(test)]
mod tests;
