//! A container runtime in memory, for tests: what it is told happens at once, unless it was told to fail.

mod events;
pub mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use kubeedge_proto::cri;
use tokio_stream::wrappers::ReceiverStream;

use self::{
    events::Events,
    model::{Model, TERMINATED},
};
use super::{
    labels,
    runtime::{
        Answer, ContainerStats, ExecOutput, ImageDisk, InstanceState, LocalImage, ObservedPod, PodSummary, Runtime,
        RuntimeError, RuntimeEvents, RuntimeFeatures, RuntimeHealth, RuntimeVersion, StreamRequest,
    },
};

/// The time, given by the test.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

#[derive(Default)]
struct State {
    model: Model,
    images: BTreeSet<String>,
    registry: BTreeSet<String>,
    failures: BTreeMap<&'static str, Vec<String>>,
    calls: Vec<String>,
    configs: BTreeMap<String, cri::ContainerConfig>,
    sandbox_configs: Vec<cri::PodSandboxConfig>,
    sandbox_handlers: Vec<String>,
    /// Containers of this name do not end before their grace period has passed.
    stubborn: BTreeSet<String>,
    /// How commands in containers of this name end; exit code 0 when nothing is said.
    commands: BTreeMap<String, Command>,
    /// Removals are answered and not done.
    lying: bool,
    /// Every image is to be had.
    every_image: bool,
    /// Lists that were made.
    lists: usize,
    events: Events,
    features: RuntimeFeatures,
}

/// How commands in a container end.
#[derive(Clone, Debug)]
pub enum Command {
    /// With an exit code.
    Ends(i32),
    /// Not before its time is over.
    Hangs,
    /// The runtime cannot say.
    Fails(String),
}

/// A container runtime in memory. Clones share their state.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

impl FakeRuntime {
    /// An empty runtime with a clock.
    pub fn new(clock: Clock) -> Self {
        Self { state: Arc::default(), clock }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an image on the node.
    pub fn add_image(&self, image: &str) {
        self.state().images.insert(image.to_owned());
    }

    /// Makes an image available to pulls.
    pub fn publish_image(&self, image: &str) {
        self.state().registry.insert(image.to_owned());
    }

    /// Makes every image available to pulls.
    pub fn publish_every_image(&self) {
        self.state().every_image = true;
    }

    /// The next call of this name (`run_sandbox`, `start_container` ...) fails with the message. May be repeated.
    pub fn fail_next(&self, call: &'static str, message: &str) {
        self.state().failures.entry(call).or_default().push(message.to_owned());
    }

    /// Containers of this name take their whole grace period to end.
    pub fn make_stubborn(&self, container: &str) {
        self.state().stubborn.insert(container.to_owned());
    }

    /// How commands in containers of this name end from now on.
    pub fn commands_end(&self, container: &str, how: Command) {
        self.state().commands.insert(container.to_owned(), how);
    }

    /// Removals of sandboxes are answered and not done.
    pub fn lie(&self, lying: bool) {
        self.state().lying = lying;
    }

    /// What it can do beyond the usual; nothing when nothing is said.
    pub fn has_features(&self, features: RuntimeFeatures) {
        self.state().features = features;
    }

    /// How often everything was listed.
    pub fn lists(&self) -> usize {
        self.state().lists
    }

    /// The calls so far that change something, with their subject.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Steps that no caller may ask for, in words; empty for a correct caller.
    pub fn violations(&self) -> Vec<String> {
        self.state().model.violations.clone()
    }

    /// Everything of one pod.
    pub fn pod(&self, uid: &str) -> ObservedPod {
        self.state().model.observe(uid)
    }

    /// The configuration a container was made with.
    pub fn config(&self, id: &str) -> Option<cri::ContainerConfig> {
        self.state().configs.get(id).cloned()
    }

    /// The configurations of all sandboxes that were run, oldest first.
    pub fn sandbox_configs(&self) -> Vec<cri::PodSandboxConfig> {
        self.state().sandbox_configs.clone()
    }

    /// The handlers that sandboxes were made for, in the same order.
    pub fn sandbox_handlers(&self) -> Vec<String> {
        self.state().sandbox_handlers.clone()
    }

    /// The running instance of a pod's container ends by itself. False when none runs.
    pub fn exit(&self, uid: &str, container: &str, code: i32) -> bool {
        let now = (self.clock)();
        let mut state = self.state();
        let running = state
            .model
            .observe(uid)
            .instances
            .into_iter()
            .find(|instance| instance.name == container && instance.state == InstanceState::Running);
        if let Some(instance) = &running {
            state.model.exit(&instance.id, code, now);
            state.events.tell(&instance.id);
        }
        running.is_some()
    }

    /// All sandboxes of a pod die, and what runs in them.
    pub fn lose_sandbox(&self, uid: &str) {
        let now = (self.clock)();
        let mut state = self.state();
        for sandbox in state.model.observe(uid).sandboxes {
            state.model.lose_sandbox(&sandbox.id, now);
            state.events.tell(&sandbox.id);
        }
    }

    fn begin(&self, call: &'static str, subject: &str) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let mut state = self.state();
        state.calls.push(format!("{call} {subject}"));
        match state.failures.get_mut(call).filter(|queue| !queue.is_empty()).map(|queue| queue.remove(0)) {
            Some(message) => Err(RuntimeError::Failed { call, message }),
            None => Ok(state),
        }
    }
}

impl Runtime for FakeRuntime {
    fn version(&self) -> Answer<'_, RuntimeVersion> {
        Box::pin(async { Ok(RuntimeVersion { name: "fake".to_owned(), version: "0".to_owned() }) })
    }

    fn health(&self) -> Answer<'_, RuntimeHealth> {
        Box::pin(async {
            let mut state = self.state();
            match state.failures.get_mut("health").filter(|queue| !queue.is_empty()) {
                Some(queue) => Err(RuntimeError::Failed { call: "health", message: queue.remove(0) }),
                None => Ok(RuntimeHealth::default()),
            }
        })
    }

    fn features(&self) -> Answer<'_, RuntimeFeatures> {
        Box::pin(async { Ok(self.state().features.clone()) })
    }

    fn list_pods(&self) -> Answer<'_, Vec<PodSummary>> {
        Box::pin(async {
            let mut state = self.state();
            state.lists += 1;
            if let Some(queue) = state.failures.get("list_pods").filter(|queue| !queue.is_empty()) {
                return Err(RuntimeError::Failed { call: "list_pods", message: queue[0].clone() });
            }
            let mut pods: BTreeMap<String, PodSummary> = BTreeMap::new();
            for known in &state.model.sandboxes {
                let (namespace, name, uid) = known.pod.clone();
                let observed = state.model.observe(&uid);
                pods.entry(uid.clone()).or_insert_with(|| PodSummary {
                    namespace,
                    name,
                    uid,
                    sandboxes: observed.sandboxes.iter().map(|s| (s.id.clone(), s.ready)).collect(),
                    containers: observed.instances.iter().map(|i| (i.id.clone(), i.state)).collect(),
                    grace_seconds: known.grace_seconds,
                });
            }
            Ok(pods.into_values().collect())
        })
    }

    fn events(&self) -> Answer<'_, RuntimeEvents> {
        Box::pin(async {
            let receiver = self.state().events.listen()?;
            // Answered with the first one, as Go's servers do it.
            let mut events = ReceiverStream::new(receiver).map(Ok).boxed().peekable();
            std::pin::Pin::new(&mut events).peek().await;
            Ok(events.boxed())
        })
    }

    fn observe<'a>(&'a self, pod_uid: &'a str) -> Answer<'a, ObservedPod> {
        Box::pin(async move { Ok(self.pod(pod_uid)) })
    }

    fn run_sandbox<'a>(&'a self, config: &'a cri::PodSandboxConfig, handler: &'a str) -> Answer<'a, String> {
        Box::pin(async move {
            let metadata = config.metadata.clone().unwrap_or_default();
            let mut state = self.begin("run_sandbox", &metadata.uid)?;
            let pod = (metadata.namespace, metadata.name, metadata.uid);
            state.sandbox_configs.push(config.clone());
            state.sandbox_handlers.push(handler.to_owned());
            let id = state.model.run_sandbox(pod, metadata.attempt, (self.clock)());
            let pod_start = config.annotations.get(labels::POD_START).and_then(|text| text.parse().ok());
            if let Some(known) = state.model.sandboxes.last_mut() {
                known.sandbox.pod_start = pod_start;
            }
            state.events.tell(&id);
            Ok(id)
        })
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut state = self.begin("stop_sandbox", id)?;
            state.model.stop_sandbox(id, (self.clock)());
            state.events.tell(id);
            Ok(())
        })
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut state = self.begin("remove_sandbox", id)?;
            if !state.lying {
                state.model.remove_sandbox(id);
                state.events.tell(id);
            }
            Ok(())
        })
    }

    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        config: &'a cri::ContainerConfig,
        _sandbox: &'a cri::PodSandboxConfig,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            let metadata = config.metadata.clone().unwrap_or_default();
            let image = config.image.clone().unwrap_or_default().image;
            let mut state = self.begin("create_container", &metadata.name)?;
            // By name or by the id that `image` answers.
            let image = image.strip_prefix("sha256:").unwrap_or(&image).to_owned();
            if !state.images.contains(&image) {
                let message = format!("image {image} is not there");
                return Err(RuntimeError::NotFound { call: "create_container", message });
            }
            let made = state.model.create(sandbox_id, &metadata.name, metadata.attempt, &image, (self.clock)());
            let id = made.ok_or_else(|| RuntimeError::NotFound {
                call: "create_container",
                message: format!("sandbox {sandbox_id} is not ready"),
            })?;
            if let Some(instance) = state.model.instances.last_mut() {
                instance.spec_image = config.annotations.get(labels::SPEC_IMAGE).cloned();
                instance.sizes = config.annotations.get(labels::SIZES).and_then(|text| text.parse().ok());
            }
            let grace = config.annotations.get(labels::GRACE_PERIOD).and_then(|text| text.parse().ok());
            for known in state.model.sandboxes.iter_mut().filter(|known| known.sandbox.id == sandbox_id) {
                known.grace_seconds = known.grace_seconds.max(grace);
            }
            state.configs.insert(id.clone(), config.clone());
            state.events.tell(&id);
            Ok(id)
        })
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let now = (self.clock)();
            match self.begin("start_container", id) {
                Ok(mut state) => {
                    state.model.start(id, now);
                    state.events.tell(id);
                    Ok(())
                }
                // As containerd does: the instance is there, ended.
                Err(error) => {
                    let mut state = self.state();
                    state.model.exit(id, 128, now);
                    state.events.tell(id);
                    for instance in state.model.instances.iter_mut().filter(|instance| instance.id == id) {
                        "StartError".clone_into(&mut instance.reason);
                        instance.message = error.to_string();
                    }
                    Err(error)
                }
            }
        })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()> {
        Box::pin(async move {
            let stubborn = {
                let state = self.begin("stop_container", &format!("{id} {}", grace.as_secs()))?;
                state.model.instances.iter().any(|i| i.id == id && state.stubborn.contains(&i.name))
            };
            if stubborn {
                tokio::time::sleep(grace).await;
            }
            let code = if stubborn { model::KILLED } else { TERMINATED };
            let mut state = self.state();
            state.model.exit(id, code, (self.clock)());
            state.events.tell(id);
            Ok(())
        })
    }

    fn update_resources<'a>(&'a self, id: &'a str, resources: &'a cri::LinuxContainerResources) -> Answer<'a, ()> {
        Box::pin(async move {
            let cri::LinuxContainerResources { cpu_shares, cpu_quota, memory_limit_in_bytes, .. } = resources;
            let subject = format!("{id} {cpu_shares} {cpu_quota} {memory_limit_in_bytes}");
            self.begin("update_resources", &subject).map(drop)
        })
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput> {
        Box::pin(async move {
            let how = {
                let state = self.begin("exec", &format!("{id} {}", command.join(" ")))?;
                let running = state.model.instances.iter().find(|i| i.id == id && i.state == InstanceState::Running);
                let Some(instance) = running else {
                    let message = format!("container {id} does not run");
                    return Err(RuntimeError::NotFound { call: "exec", message });
                };
                state.commands.get(&instance.name).cloned()
            };
            match how.unwrap_or(Command::Ends(0)) {
                Command::Ends(exit_code) => {
                    Ok(ExecOutput { stdout: b"out ".to_vec(), stderr: b"err".to_vec(), exit_code })
                }
                Command::Hangs => {
                    tokio::time::sleep(if timeout.is_zero() { Duration::MAX } else { timeout }).await;
                    Err(RuntimeError::Timeout { call: "exec", after: timeout })
                }
                Command::Fails(message) => Err(RuntimeError::Failed { call: "exec", message }),
            }
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut state = self.begin("remove_container", id)?;
            state.model.remove_container(id);
            state.events.tell(id);
            Ok(())
        })
    }

    /// It has no processes to stream from.
    fn stream_url(&self, _: StreamRequest) -> Answer<'_, String> {
        let message = "a runtime in memory has no streams".to_owned();
        Box::pin(std::future::ready(Err(RuntimeError::Failed { call: "stream_url", message })))
    }

    fn image<'a>(&'a self, image: &'a str) -> Answer<'a, Option<LocalImage>> {
        Box::pin(async move {
            let found = self.state().images.contains(image);
            Ok(found.then(|| LocalImage { id: format!("sha256:{image}"), ..LocalImage::default() }))
        })
    }

    fn images(&self) -> Answer<'_, Vec<LocalImage>> {
        Box::pin(async move {
            let images = self.state().images.clone();
            Ok(images
                .into_iter()
                .map(|name| LocalImage { id: format!("sha256:{name}"), names: vec![name], ..LocalImage::default() })
                .collect())
        })
    }

    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        _auth: Option<cri::AuthConfig>,
        _sandbox: &'a cri::PodSandboxConfig,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut state = self.begin("pull_image", image)?;
            if !state.every_image && !state.registry.contains(image) {
                let message = format!("{image}: not found");
                return Err(RuntimeError::NotFound { call: "pull_image", message });
            }
            state.images.insert(image.to_owned());
            Ok(())
        })
    }

    fn container_stats(&self) -> Answer<'_, Vec<ContainerStats>> {
        Box::pin(async move {
            let now = (self.clock)();
            let state = self.state();
            let uids: BTreeSet<String> = state.model.sandboxes.iter().map(|known| known.pod.2.clone()).collect();
            let running = uids.into_iter().flat_map(|uid| {
                let instances = state.model.observe(&uid).instances;
                instances.into_iter().map(move |instance| (uid.clone(), instance))
            });
            // What each uses: a tenth of a core, ten megabytes.
            let stats =
                running.filter(|(_, instance)| instance.state == InstanceState::Running).map(|(uid, instance)| {
                    let up = instance.started_at.map_or(0, |started| now.duration_since(started).as_millis());
                    ContainerStats {
                        id: instance.id,
                        name: instance.name,
                        pod_uid: uid,
                        cpu_nano_seconds: Some(u64::try_from(up).unwrap_or(0) * 100_000),
                        memory_usage: 12 << 20,
                        memory_working_set: 10 << 20,
                        at: Some(now),
                        ..ContainerStats::default()
                    }
                });
            Ok(stats.collect())
        })
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.begin("reopen_log", id).map(drop) })
    }

    fn remove_image<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let name = id.strip_prefix("sha256:").unwrap_or(id);
            self.begin("remove_image", name)?.images.remove(name);
            Ok(())
        })
    }

    fn used_images(&self) -> Answer<'_, BTreeSet<String>> {
        Box::pin(async {
            let state = self.state();
            let instances = state.model.instances.iter();
            Ok(instances.map(|instance| format!("sha256:{}", instance.image)).collect())
        })
    }

    fn sandbox_image(&self) -> Answer<'_, Option<String>> {
        Box::pin(async { Ok(None) })
    }

    fn image_disk(&self) -> Answer<'_, ImageDisk> {
        Box::pin(async { Ok(ImageDisk { mountpoint: "/".into(), used_bytes: 0 }) })
    }
}
