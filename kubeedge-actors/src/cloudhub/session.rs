//! One node's connection: carries messages between its session and the controllers.

use std::{
    cell::Cell,
    ops::ControlFlow,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::Addr;
use futures_util::{FutureExt as _, future::join};
use kubeedge_proto::{
    NodeName,
    v1::{
        ApiRequestFromNode, ApplyDeviceReport, ApplyFromNode, CallFromNode, CallReply, DesiredState, DeviceReport,
        Envelope, GoodbyeReason, NodeHeartbeat, QueryDesired, QueryDevices, QueryRules, RouteCall, RouteEvent, Settled,
        TrafficClass, envelope::Body,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    CloudHub, CloudHubConfig, Controllers, EnrolmentConfig, SessionChanged, admit::Admit, certificate::Certificate,
    events::EventSettled, streams::StreamsConnected,
};
use crate::{
    audit,
    identity::authority_capability,
    link::{
        Rate, driver,
        queues::{self, InputSender, OutputReceiver, WeakInputSender},
        server::{Accepted, AcceptedStreams, Doors, Identify, Limits, serve_enrolment, serve_link},
        session::{Class, Closed, Input, Output, Session},
        streams::{Connection, Side},
    },
    system::{AskError, Port, trace::Trace},
};

/// How long the API server may take for one message of a node, all attempts together.
const APPLY_WITHIN: Duration = Duration::from_secs(30);
/// How long the controller may take to say what a node should hold.
const DESIRED_WITHIN: Duration = Duration::from_secs(15);
/// While what a node should hold is not completely known, it is asked for again after this, then twice as long each time.
/// Each time the node lists what it holds: that must not go on every few seconds because of one Secret nobody may read.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// No call of an application waits longer for the target of a rule, whatever it says: the link's own bound.
const LONGEST_CALL: Duration = Duration::from_secs(300);

/// Connections that have shaken hands and wait for their turn; beyond it nodes are asked to come back. When a cloud comes
/// back, handshakes that were done elsewhere end by the hundred while one long turn of this arbiter goes on.
const BACKLOG: usize = 1024;

/// Listens and serves every connection in a task of its own, until the handle is dropped.
pub(super) fn listen(
    config: &CloudHubConfig,
    controllers: Controllers,
    hub: Addr<CloudHub>,
) -> std::io::Result<AbortOnDropHandle<()>> {
    let listener = config.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let (accepted, mut connections) = mpsc::channel::<Accepted>(BACKLOG);
    let (streams, mut stream_connections) = mpsc::channel::<AcceptedStreams>(BACKLOG);
    let doors = Doors { sessions: accepted, streams: Some(streams) };
    // A session more than the limit is refused by the registry, with a word; beyond that there is no word.
    let limits = Limits { connections: config.node_limit.saturating_mul(3).max(64), ..Limits::default() };
    let serve_link = serve_link(listener, config.tls.clone(), identify(), doors, limits);
    let mut link = config.link.clone();
    let controllers = Rc::new(controllers);
    let registrar = config.registrar.clone();
    // A node whose certificate is of an older authority renews it soon.
    link.capabilities.extend(registrar.as_ref().map(|registrar| authority_capability(&registrar.ca_hash())));
    let link = Arc::new(link);
    let serve_sessions = async move {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                connection = connections.recv() => match connection {
                    Some(accepted) => {
                        tracing::debug!(node = %accepted.node, peer = %accepted.peer, "connected");
                        let certificate = Certificate::new(registrar.clone(), accepted.expires);
                        let (link, controllers) = (Arc::clone(&link), Rc::clone(&controllers));
                        sessions.spawn_local(serve(accepted, certificate, link, controllers, hub.clone()));
                    }
                    None => return,
                },
                Some(accepted) = stream_connections.recv() => {
                    sessions.spawn_local(serve_streams(accepted, hub.clone()));
                }
                Some(ended) = sessions.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!("a session's task failed: {error}");
                    }
                }
            }
        }
    };
    let both = async move {
        tokio::join!(serve_link, serve_sessions);
    };
    Ok(AbortOnDropHandle::new(tokio::task::spawn_local(both)))
}

/// Serves enrolment until the handle is dropped.
pub(super) fn enrol(config: &EnrolmentConfig) -> std::io::Result<AbortOnDropHandle<()>> {
    let listener = config.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    // A box joins once: many from one address are a fleet that is unpacked, or somebody who guesses tokens.
    let limits = Limits {
        handshakes: 16,
        connections: 64,
        per_address: Rate { burst: 50, per_second: 5.0 },
        ..Limits::default()
    };
    let serve = serve_enrolment(listener, config.tls.clone(), config.service.clone(), limits);
    Ok(AbortOnDropHandle::new(tokio::task::spawn_local(serve)))
}

/// The node's name out of its certificate.
fn identify() -> Identify {
    Arc::new(|chain| crate::identity::peer_node_name(chain).map_err(|error| error.to_string()))
}

/// Serves one connection until it ends. What it returns is two kilobytes less than the same as an `async fn`, which keeps
/// what it was called with: a cloud has one for every node.
fn serve(
    accepted: Accepted,
    certificate: Certificate,
    config: Arc<crate::link::Config>,
    controllers: Rc<Controllers>,
    hub: Addr<CloudHub>,
) -> impl Future<Output = ()> {
    let Accepted { node, sink, stream, .. } = accepted;
    let session = Box::new(Session::cloud(config).stamped());
    let (inputs, commands) = queues::inputs();
    let (events, outputs) = queues::outputs();
    let serving = Box::new(Serving {
        node,
        controllers,
        hub,
        inputs: inputs.downgrade(),
        hello: Some(inputs),
        epoch: None,
        certificate: Rc::new(certificate),
        ask_again: Rc::new(Cell::new(ASK_AGAIN.0)),
        tasks: JoinSet::new(),
    });
    join(driver::run(session, sink, stream, commands, events), serving.run(outputs)).map(drop)
}

/// Runs a node's stream connection until it ends.
async fn serve_streams(accepted: AcceptedStreams, hub: Addr<CloudHub>) {
    let AcceptedStreams { node, outgoing, incoming, open } = accepted;
    let connection = Connection::new(Side::Opener);
    let connected = StreamsConnected { node: node.clone(), connection: connection.clone() };
    // An error: the hub was rebuilt or stops.
    if hub.send(connected).await.unwrap_or(false) {
        let why = connection.run(outgoing, incoming, None).await;
        tracing::info!(%node, "stream connection ended: {why}");
    }
    drop(open);
}

struct Serving {
    node: NodeName,
    controllers: Rc<Controllers>,
    hub: Addr<CloudHub>,
    /// Weak: when the hub lets go of the session, nothing here keeps it.
    inputs: WeakInputSender,
    /// Until the hub has it with the node's hello.
    hello: Option<InputSender>,
    epoch: Option<u64>,
    certificate: Rc<Certificate>,
    /// The next of the pauses of [`ASK_AGAIN`].
    ask_again: Rc<Cell<Duration>>,
    /// Answers under way, ended with the session: a superseded session writes nothing more. The session's windows bound
    /// them.
    tasks: JoinSet<()>,
}

impl Serving {
    async fn run(mut self: Box<Self>, mut outputs: OutputReceiver) {
        let mut reason = String::from("ended");
        loop {
            let output = tokio::select! {
                output = outputs.recv() => output,
                () = self.certificate.ended() => {
                    if Box::pin(self.end_for_its_certificate()).await.is_break() {
                        break;
                    }
                    outputs.recv().await
                }
            };
            let Some(output) = output else { break };
            while self.tasks.try_join_next().is_some() {}
            // What is waited for has memory of its own, as long as that takes.
            let Some(output) = self.handle(output, &mut reason) else { continue };
            if Box::pin(self.handle_waiting(output)).await.is_break() {
                break;
            }
        }
        drop(outputs);
        self.tasks.shutdown().await;
        Box::pin(self.tell_hub(false, reason)).await;
    }

    async fn end_for_its_certificate(&self) -> ControlFlow<()> {
        let goodbye = self.certificate.goodbye();
        audit::refused("session", &self.node, "standing session", &goodbye.message);
        let inputs = self.inputs.upgrade();
        if let Some(inputs) = inputs
            && inputs.send(Input::Close(goodbye)).await.is_err()
        {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// What needs no waiting; gives the rest back.
    fn handle(&mut self, output: Output, reason: &mut String) -> Option<Output> {
        match output {
            Output::NeedDesired => self.send_desired(),
            Output::Deliver { class: Class::Call, seq, envelope } => self.call(seq, *envelope),
            Output::Deliver { class, seq, envelope } => self.apply(class, seq, *envelope),
            Output::Heartbeat { progress_age_ms } => self.pass_on_heartbeat(progress_age_ms),
            Output::Closed(closed) => {
                if let Closed::ByUs(goodbye) = &closed
                    && matches!(goodbye.reason(), GoodbyeReason::ProtocolError | GoodbyeReason::Limit)
                {
                    audit::refused("session", &self.node, "frame", &goodbye.message);
                }
                *reason = closed.to_string();
            }
            Output::HelloReceived(_) | Output::Established(_) | Output::Refused { .. } => return Some(output),
            Output::Settled { class: Class::Event, .. } => return Some(output),
            Output::Settled { envelope, settled, .. } if settled.code != 0 => {
                tracing::warn!(
                    node = %self.node, code = settled.code, message = %describe(&envelope),
                    "the node refused a message: {}", settled.reason
                );
            }
            // The driver's own, the edge's side, and what needs nothing done.
            Output::Settled { .. }
            | Output::Coalesced { .. }
            | Output::Send(..)
            | Output::NeedInventory(_)
            | Output::Completed(_)
            | Output::Bookmark(_)
            | Output::OpenStreams
            | Output::RoundTrip(_)
            | Output::Reply { .. }
            | Output::CallFailed { .. } => {}
        }
        None
    }

    /// What the hub or the session has to take first. The session ends when it cannot.
    async fn handle_waiting(&mut self, output: Output) -> ControlFlow<()> {
        match output {
            Output::HelloReceived(message) => {
                let Some(inputs) = self.hello.take() else { return ControlFlow::Continue(()) };
                let (answer, answered) = oneshot::channel();
                let admit = Admit { node: self.node.clone(), hello: *message, inputs: inputs.clone(), answer };
                if self.hub.send(admit).await.is_err() {
                    return ControlFlow::Break(());
                }
                let Ok((epoch, input)) = answered.await else { return ControlFlow::Break(()) };
                self.epoch = epoch;
                if inputs.send(input).await.is_err() {
                    return ControlFlow::Break(());
                }
            }
            Output::Established(_) => self.tell_hub(true, String::new()).await,
            Output::Settled { class: Class::Event, envelope, settled } => self.event_settled(*envelope, settled).await,
            Output::Refused { envelope, why } if envelope.class() == Some(TrafficClass::Event) => {
                self.event_settled(*envelope, why.settled()).await;
            }
            Output::Refused { why, .. } => {
                // The next hello shows what is missing.
                tracing::warn!(node = %self.node, "a message did not get into the link's queue: {why}");
                return ControlFlow::Break(());
            }
            // Nothing else is given back.
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pass_on_heartbeat(&self, progress_age_ms: u64) {
        let Some(epoch) = self.epoch else { return };
        let beat = NodeHeartbeat { node: self.node.to_string(), epoch, progress_age_ms };
        // A controller that is behind has older beats to go by.
        if let Err(error) = self.controllers.heartbeat.try_tell(beat) {
            tracing::debug!(node = %self.node, "a heartbeat was not passed on: {error}");
        }
    }

    async fn tell_hub(&self, connected: bool, reason: String) {
        let Some(epoch) = self.epoch else { return };
        let change = SessionChanged { node: self.node.clone(), epoch, connected, reason };
        if self.hub.send(change).await.is_err() {
            tracing::debug!(node = %self.node, "CloudHub has stopped or was rebuilt");
        }
    }

    /// Tells who sent an event what became of it.
    async fn event_settled(&self, envelope: Envelope, settled: Settled) {
        let settled = EventSettled { node: self.node.clone(), id: envelope.id, settled };
        if self.hub.send(settled).await.is_err() {
            tracing::debug!(node = %self.node, "CloudHub has stopped or was rebuilt");
        }
    }

    /// Runs `work` beside everything else and gives its outcome to the session.
    fn answer(&mut self, work: impl Future<Output = Input> + 'static) {
        let inputs = self.inputs.clone();
        self.tasks.spawn_local(async move {
            let input = work.await;
            if let Some(inputs) = inputs.upgrade()
                && inputs.send(input).await.is_err()
            {
                tracing::debug!("the session ended before an answer of this cloud");
            }
        });
    }

    fn send_desired(&mut self) {
        let port = self.controllers.desired.clone();
        let devices = self.controllers.devices.clone();
        let rules = self.controllers.rules.clone();
        let node = self.node.to_string();
        let inputs = self.inputs.clone();
        let ask_again = Rc::clone(&self.ask_again);
        self.answer(async move {
            let asked = Instant::now();
            let mut kinds = loop {
                let waited_ms = asked.elapsed().as_millis() as u64;
                match port.ask(QueryDesired { node: node.clone(), waited_ms }, DESIRED_WITHIN).await {
                    Ok(DesiredState { again_in_ms: 0, kinds }) => break kinds,
                    Ok(DesiredState { again_in_ms, .. }) => {
                        tokio::time::sleep(Duration::from_millis(again_in_ms.into())).await;
                    }
                    Err(error) => {
                        tracing::warn!(node, "what the node should hold is not known: {error}");
                        break Vec::new();
                    }
                }
            };
            if let Some(devices) = devices {
                match devices.ask(QueryDevices { node: node.clone() }, DESIRED_WITHIN).await {
                    Ok(known) => kinds.extend(known.kinds),
                    Err(error) => tracing::warn!(node, "which devices the node should hold is not known: {error}"),
                }
            }
            if let Some(rules) = rules {
                match rules.ask(QueryRules { node: node.clone() }, DESIRED_WITHIN).await {
                    Ok(known) => kinds.extend(known.kinds),
                    Err(error) => tracing::warn!(node, "which rules the node should hold is not known: {error}"),
                }
            }
            if kinds.is_empty() || kinds.iter().any(|kind| !kind.complete) {
                let pause = ask_again.replace((ask_again.get() * 2).min(ASK_AGAIN.1));
                tracing::info!(node, again_in = ?pause, "the lists are not complete yet: nothing is deleted");
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(pause).await;
                    if let Some(inputs) = inputs.upgrade() {
                        // Ended meanwhile: then there is nothing to compare.
                        let _ = inputs.send(Input::Recheck).await;
                    }
                });
            } else {
                ask_again.set(ASK_AGAIN.0);
            }
            Input::DesiredKnown(DesiredState { kinds, ..DesiredState::default() })
        });
    }

    fn apply(&mut self, class: Class, seq: u64, envelope: Envelope) {
        let Some(epoch) = self.epoch else { return };
        let trace = Trace::of(&envelope);
        if let Some(Body::DeviceReport(report)) = envelope.body {
            return self.apply_report(class, seq, report, trace);
        }
        // Without a Router EdgeController says that nobody takes it.
        if let (Some(Body::UserMessage(_)), Some(port)) = (&envelope.body, self.controllers.route_event.clone()) {
            let message = RouteEvent { node: self.node.to_string(), envelope: Some(envelope) };
            return self.route_event(class, seq, port, message, trace);
        }
        let port = self.controllers.apply.clone();
        let message = ApplyFromNode { node: self.node.to_string(), epoch, envelope: Some(envelope) };
        self.answer(async move {
            let settled = match Trace::scope(trace, port.ask(message, APPLY_WITHIN)).await {
                Ok(settled) => settled,
                // Not written as far as is known: the node keeps it and sends it again.
                Err(error) => Settled::rejected(503, format!("EdgeController: {error}")),
            };
            Input::Settle { class, seq, settled }
        });
    }

    fn apply_report(&mut self, class: Class, seq: u64, report: DeviceReport, trace: Option<Trace>) {
        let Some(epoch) = self.epoch else { return };
        let port = self.controllers.device_report.clone();
        let message = ApplyDeviceReport { node: self.node.to_string(), epoch, report: Some(report) };
        self.answer(async move {
            let settled = match port {
                // For good: the node forgets it, and reports anew when the device changes or the node restarts.
                None => Settled::rejected(404, "this cloud runs no DeviceController"),
                Some(port) => match Trace::scope(trace, port.ask(message, APPLY_WITHIN)).await {
                    Ok(settled) => settled,
                    Err(error) => Settled::rejected(503, format!("DeviceController: {error}")),
                },
            };
            Input::Settle { class, seq, settled }
        });
    }

    /// A message of an application at the node, for what a rule says.
    fn route_event(
        &mut self,
        class: Class,
        seq: u64,
        port: Port<RouteEvent>,
        message: RouteEvent,
        trace: Option<Trace>,
    ) {
        self.answer(async move {
            let settled = match Trace::scope(trace, port.ask(message, APPLY_WITHIN)).await {
                Ok(settled) => settled,
                Err(error) => Settled::rejected(503, format!("Router: {error}")),
            };
            Input::Settle { class, seq, settled }
        });
    }

    fn call(&mut self, seq: u64, envelope: Envelope) {
        let Some(epoch) = self.epoch else { return };
        if let Some(Body::SignCertificate(asked)) = &envelope.body {
            let reply = self.certificate.renew(&self.node, &asked.csr_der);
            return self.answer(async move { Input::Reply { seq, reply } });
        }
        // Without a Router EdgeController says that nobody takes it.
        if let (Some(Body::ServiceCall(_)), Some(port)) = (&envelope.body, self.controllers.route_call.clone()) {
            return self.route_call(seq, port, envelope);
        }
        if let Some(Body::ApiRequest(_)) = &envelope.body {
            return self.api_request(seq, envelope);
        }
        let port = self.controllers.call.clone();
        let trace = Trace::of(&envelope);
        let message = CallFromNode { node: self.node.to_string(), epoch, envelope: Some(envelope) };
        self.answer(async move {
            let reply = match Trace::scope(trace, port.ask(message, APPLY_WITHIN)).await {
                Ok(reply) => reply,
                Err(error) => CallReply::error(503, "ServiceUnavailable", format!("EdgeController: {error}")),
            };
            Input::Reply { seq, reply }
        });
    }

    /// A request of the node's local API, for the API server.
    fn api_request(&mut self, seq: u64, envelope: Envelope) {
        let trace = Trace::of(&envelope);
        let Some(Body::ApiRequest(request)) = envelope.body else { return };
        let message = ApiRequestFromNode { node: self.node.to_string(), request: Some(request) };
        let port = self.controllers.api_request.clone();
        self.answer(async move {
            let reply = match port {
                // As KubeEdge's by default: nothing that a node could do about it, so no line in the audit log.
                None => CallReply::error(501, "Unsupported", "this cloud runs no DynamicController"),
                Some(port) => match Trace::scope(trace, port.ask(message, APPLY_WITHIN)).await {
                    Ok(reply) => reply,
                    Err(AskError::Timeout) => {
                        let text = format!("DynamicController did not answer within {APPLY_WITHIN:?}");
                        CallReply::error(504, "Timeout", text)
                    }
                    Err(error) => CallReply::error(503, "ServiceUnavailable", format!("DynamicController: {error}")),
                },
            };
            Input::Reply { seq, reply }
        });
    }

    /// An application at the node calls what a rule names; it waits as long as it says.
    fn route_call(&mut self, seq: u64, port: Port<RouteCall>, envelope: Envelope) {
        let trace = Trace::of(&envelope);
        let within = match envelope.timeout_ms {
            0 => APPLY_WITHIN,
            ms => Duration::from_millis(ms.into()).min(LONGEST_CALL),
        };
        let message = RouteCall { node: self.node.to_string(), envelope: Some(envelope) };
        self.answer(async move {
            let reply = match Trace::scope(trace, port.ask(message, within)).await {
                Ok(reply) => reply,
                Err(AskError::Timeout) => {
                    CallReply::error(504, "Timeout", format!("the rule's target did not answer within {within:?}"))
                }
                Err(error) => CallReply::error(503, "ServiceUnavailable", format!("Router: {error}")),
            };
            Input::Reply { seq, reply }
        });
    }
}

/// What a message is about, for the log.
fn describe(envelope: &Envelope) -> String {
    match envelope.body.as_ref().and_then(|body| body.state_key()) {
        Some(key) => format!("{} {}", key.type_, key.key),
        None => envelope.origin.clone(),
    }
}
