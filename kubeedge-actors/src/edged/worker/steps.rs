//! Doing what was decided.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kubeedge_proto::cri;
use tokio::sync::watch;

use super::{Order, Told, Worker, show};
use crate::edged::{
    hooks::{self, Hook, HookTarget},
    image_name::ImageName,
    lifecycle::{Action, Fitting, PodPlan, Reason, Step, StopCause, VolumeState, container, ephemeral_target},
    provision::{Configured, ContainerRequest},
    resources::Change,
    runtime::{Instance, InstanceState, LocalImage},
};

/// Why a container did not start.
enum NotStarted {
    Failed {
        reason: Reason,
        message: String,
    },
    /// Something else is wanted meanwhile.
    GivenUp,
}

impl NotStarted {
    fn because<E: ToString>(reason: Reason) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed { reason, message: error.to_string() }
    }
}

/// One start.
struct Start {
    container: String,
    attempt: u32,
    sandbox_id: String,
    ended_at: Option<Timestamp>,
}

impl Worker {
    /// Does the actions, as far as they work and nothing else is wanted meanwhile; the next look tells how far.
    pub(super) async fn act(&mut self, order: &Order, actions: Vec<Action>) {
        let (stops, others): (Vec<Action>, Vec<Action>) =
            actions.into_iter().partition(|action| matches!(action, Action::StopContainer { .. }));
        if !stops.is_empty() && !self.stop_containers(order, stops).await {
            return;
        }
        for action in others {
            if !self.act_one(order, action).await || self.orders.has_changed().unwrap_or(false) {
                return;
            }
        }
    }

    async fn act_one(&mut self, order: &Order, action: Action) -> bool {
        let plan = &order.plan;
        let runtime = Arc::clone(&self.shared.runtime);
        let provision = Arc::clone(&self.shared.provision);
        match action {
            Action::SetUpVolumes => {
                let Some(pod) = &order.pod else { return false };
                let result = provision.set_up(pod, &self.history.ips).await;
                if let Err(error) = &result {
                    self.tell(order, None, Told::FailedMount, error.as_str());
                }
                let done = self.step_done(plan, Step::Volumes, result);
                if done {
                    self.volumes = VolumeState::Ready;
                }
                done
            }
            Action::RunSandbox { attempt } => {
                let Some(pod) = &order.pod else { return false };
                if attempt > 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.tell(order, None, Told::SandboxChanged, message);
                }
                let result = self.run_sandbox(order, pod, attempt).await;
                if let Err(error) = &result {
                    let message = format!("Failed to create pod sandbox: {error}");
                    self.tell(order, None, Told::FailedCreatePodSandBox, message);
                }
                self.step_done(plan, Step::Sandbox, result)
            }
            Action::Start { container, attempt, sandbox_id, ended_at } => {
                let Some(pod) = &order.pod else { return false };
                let start = Start { container, attempt, sandbox_id, ended_at };
                match self.start(order, pod, &start).await {
                    Ok(()) => self.history.start_succeeded(&start.container),
                    Err(NotStarted::GivenUp) => return false,
                    Err(NotStarted::Failed { reason, message }) => {
                        tracing::warn!(pod = %show(plan), container = start.container, ?reason, "{message}");
                        let about_image =
                            matches!(reason, Reason::ImagePull | Reason::ImageNeverPull | Reason::InvalidImageName);
                        // What is wrong with the image was told where it was found.
                        let why = if about_image { reason.as_str() } else { message.as_str() };
                        // So was a hook that failed.
                        if reason != Reason::PostStartHook {
                            self.tell(order, Some(&start.container), Told::Failed, format!("Error: {why}"));
                        }
                        let now = self.now();
                        let image = order.image(&start.container).unwrap_or_default();
                        self.history.start_failed(&start.container, image, reason, message, now);
                    }
                }
                // The other containers do not depend on this one.
                true
            }
            Action::Resize { containers } => {
                let Some(pod) = &order.pod else { return false };
                let result = self.resize(order, pod, &containers).await;
                if let Err(error) = &result {
                    self.tell(order, None, Told::ResizeError, error.as_str());
                }
                self.step_done(plan, Step::Resize, result)
            }
            Action::RemoveContainer { id, container, attempt } => {
                let result = runtime.remove_container(&id).await.map_err(|error| error.to_string());
                let done = self.cleaned_up(order, result);
                if done && let Err(error) = provision.container_removed(plan, &container, attempt, &id).await {
                    tracing::warn!(pod = %show(plan), container, "its log stays: {error}");
                }
                done
            }
            Action::StopSandbox { id } => {
                let result = runtime.stop_sandbox(&id).await.map_err(|error| error.to_string());
                let done = self.cleaned_up(order, result);
                if done {
                    self.history.released.insert(id);
                }
                done
            }
            Action::RemoveSandbox { id } => {
                let result = runtime.remove_sandbox(&id).await.map_err(|error| error.to_string());
                self.cleaned_up(order, result)
            }
            Action::TearDownVolumes => {
                let result = provision.tear_down(plan).await;
                let done = self.cleaned_up(order, result);
                if done {
                    self.volumes = VolumeState::Gone;
                }
                done
            }
            // Stops are done side by side, before; the end is the worker's own.
            Action::StopContainer { .. } | Action::Finish => true,
        }
    }

    async fn run_sandbox(&mut self, order: &Order, pod: &Pod, attempt: u32) -> Result<(), String> {
        let started_at = self.history.started_at.unwrap_or_else(|| self.now());
        let handler = self.shared.provision.handler(pod).await?;
        let Configured { config, told } = self.shared.provision.sandbox(pod, &order.plan, attempt, started_at).await?;
        for (reason, message) in told {
            self.tell(order, None, reason, message);
        }
        let id = self.shared.runtime.run_sandbox(&config, &handler).await.map_err(|error| error.to_string())?;
        tracing::info!(pod = %show(&order.plan), sandbox = id, attempt, "sandbox runs");
        Ok(())
    }

    async fn start(&mut self, order: &Order, pod: &Pod, start: &Start) -> Result<(), NotStarted> {
        let name = start.container.as_str();
        let plan = &order.plan;
        let spec = container(pod, name).ok_or_else(|| NotStarted::Failed {
            reason: Reason::Config,
            message: format!("the pod has no container {name:?}"),
        })?;
        let spec = &*spec;
        let given = spec.image.as_deref().unwrap_or_default();
        let image_name = ImageName::parse(given).map_err(|error| {
            self.tell(order, Some(name), Told::InspectFailed, format!("Failed to inspect image \"{given}\": {error}"));
            NotStarted::because(Reason::InvalidImageName)(error)
        })?;
        let provision = Arc::clone(&self.shared.provision);
        let runtime = Arc::clone(&self.shared.runtime);
        let started_at = self.history.started_at.unwrap_or_else(|| self.now());
        // What there is to say of it was said when it was made.
        let sandbox = provision.sandbox(pod, plan, 0, started_at).await;
        let sandbox = sandbox.map_err(NotStarted::because(Reason::Config))?.config;

        let policy = spec.image_pull_policy.as_deref();
        let image = self.ensure_image(order, pod, (name, given), &image_name, policy, &sandbox).await?;
        let volume_images = self.volume_images(order, pod, spec, &sandbox).await?;
        let target = match ephemeral_target(pod, name) {
            Some(target) => Some(self.target(plan, target).await?),
            None => None,
        };
        let request = ContainerRequest {
            pod,
            plan,
            container: spec,
            attempt: start.attempt,
            image: &image,
            target: target.as_deref(),
            pod_ips: &self.history.ips,
            volume_images: &volume_images,
        };
        let Configured { config, told } =
            provision.container(request).await.map_err(NotStarted::because(Reason::Config))?;
        for (reason, message) in told {
            self.tell(order, None, reason, message);
        }
        let id = runtime
            .create_container(&start.sandbox_id, &config, &sandbox)
            .await
            .map_err(NotStarted::because(Reason::Create))?;
        self.tell(order, Some(name), Told::Created, format!("Created container: {name}"));
        let now = self.now();
        self.history.restarted(name, spec.image.as_deref().unwrap_or_default(), start.ended_at, now);
        runtime.start_container(&id).await.map_err(NotStarted::because(Reason::Run))?;
        self.tell(order, Some(name), Told::Started, format!("Started container {name}"));
        tracing::info!(pod = %show(plan), container = name, attempt = start.attempt, id, "container runs");
        if let Err(error) = provision.container_started(plan, name, start.attempt, &id).await {
            tracing::warn!(pod = %show(plan), container = name, "its log is not linked: {error}");
        }
        match hooks::post_start(spec) {
            Some(hook) => self.after_start(order, name, id, &hook).await,
            None => Ok(()),
        }
    }

    /// Gives containers that run other resources. The pod's own control group makes room first, and gives back what is
    /// not needed any more at last.
    async fn resize(&mut self, order: &Order, pod: &Pod, containers: &[Fitting]) -> Result<(), String> {
        let (provision, runtime) = (Arc::clone(&self.shared.provision), Arc::clone(&self.shared.runtime));
        provision.resize(pod, &order.plan, Change::Raise).await?;
        for Fitting { id, container: name, from, to } in containers {
            let spec = container(pod, name).ok_or_else(|| format!("the pod has no container {name:?}"))?;
            let less = |limit: i64| from.memory_limit.is_none_or(|before| limit < before);
            if let Some(limit) = to.memory_limit.filter(|limit| less(*limit)) {
                self.has_room(id, name, limit).await?;
            }
            let resources = provision.resources(pod, &spec)?;
            runtime.update_resources(id, &resources).await.map_err(|error| format!("container {name}: {error}"))?;
            self.history.resized.insert(id.clone(), *to);
            tracing::info!(pod = %show(&order.plan), container = name, "resized from {from} to {to}");
        }
        provision.resize(pod, &order.plan, Change::Set).await?;
        self.tell(order, None, Told::ResizeCompleted, "Pod resize completed");
        Ok(())
    }

    /// The kernel would end processes for a limit below what they use.
    async fn has_room(&self, id: &str, name: &str, limit: i64) -> Result<(), String> {
        let stats = self.shared.runtime.container_stats().await.map_err(|error| error.to_string())?;
        let usage = stats.iter().find(|stats| stats.id == id).map_or(0, |stats| stats.memory_working_set);
        if i64::try_from(usage).unwrap_or(i64::MAX) < limit {
            return Ok(());
        }
        Err(format!(
            "attempting to set memory limit of container {name} below current usage: limit {limit}, usage {usage}"
        ))
    }

    /// The instance that an ephemeral container is to look into.
    async fn target(&self, plan: &PodPlan, container: &str) -> Result<String, NotStarted> {
        let observed = self.shared.runtime.observe(&plan.uid).await.map_err(NotStarted::because(Reason::Config))?;
        let running = |instance: &Instance| instance.name == container && instance.state == InstanceState::Running;
        observed.instances.into_iter().find(running).map(|instance| instance.id).ok_or_else(|| NotStarted::Failed {
            reason: Reason::Config,
            message: format!("unable to find target container {container:?}"),
        })
    }

    /// Runs the hook after a container's start. When it fails, the container ends.
    async fn after_start(&mut self, order: &Order, name: &str, id: String, hook: &Hook) -> Result<(), NotStarted> {
        let (runtime, address) = (Arc::clone(&self.shared.runtime), self.address(order));
        let target = HookTarget { runtime: &*runtime, id: &id, container: name, address: &address };
        let other = other_order(&self.orders, |new| new.want != order.want || new.image(name) != order.image(name));
        let message = tokio::select! {
            done = hooks::run(hook, target) => match done {
                Ok(()) => return Ok(()),
                Err(message) => message,
            },
            () = other => return Err(NotStarted::GivenUp),
        };
        // Without the reason, which may hold what a server said.
        self.tell(order, Some(name), Told::FailedPostStartHook, "PostStartHook failed");
        let (container, grace_seconds) = (name.to_owned(), order.plan.grace_seconds);
        let stop = Action::StopContainer { id, container, grace_seconds, why: StopCause::PostStart, after: Vec::new() };
        self.stop_containers(order, vec![stop]).await;
        Err(NotStarted::Failed { reason: Reason::PostStartHook, message })
    }

    /// The images that a container mounts, each fetched if its policy says so.
    async fn volume_images(
        &self,
        order: &Order,
        pod: &Pod,
        container: &Container,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<BTreeMap<String, LocalImage>, NotStarted> {
        let mut images = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let mounted = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
            let Some(source) = volume.image.as_ref().filter(|_| mounted) else { continue };
            let given = source.reference.as_deref().unwrap_or_default();
            let name = ImageName::parse(given).map_err(NotStarted::because(Reason::InvalidImageName))?;
            let policy = source.pull_policy.as_deref();
            let image = self.ensure_image(order, pod, (&container.name, given), &name, policy, sandbox).await?;
            images.insert(volume.name.clone(), image);
        }
        Ok(images)
    }

    /// The image on the node, fetched if the policy says so.
    async fn ensure_image(
        &self,
        order: &Order,
        pod: &Pod,
        // The name of the container, and of its image as given.
        (container, given): (&str, &str),
        name: &ImageName,
        policy: Option<&str>,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<LocalImage, NotStarted> {
        let shared = Arc::clone(&self.shared);
        let asked = name.asked.as_str();
        let tell = |reason, message: String| self.tell(order, Some(container), reason, message);
        let find = || async {
            shared.runtime.image(asked).await.map_err(|error| {
                tell(Told::InspectFailed, format!("Failed to inspect image \"{given}\": {error}"));
                NotStarted::because(Reason::ImagePull)(error)
            })
        };
        let policy = policy.filter(|policy| !policy.is_empty());
        let always = policy == Some("Always") || (policy.is_none() && name.is_latest());
        if !always && let Some(image) = find().await? {
            tell(Told::Pulled, format!("Container image \"{given}\" already present on machine"));
            return Ok(image);
        }
        if policy == Some("Never") {
            let message = format!("container image {asked:?} is not present with pull policy of Never");
            tell(
                Told::ErrImageNeverPull,
                format!("Container image \"{given}\" is not present with pull policy of Never"),
            );
            return Err(NotStarted::Failed { reason: Reason::ImageNeverPull, message });
        }
        let pull = async {
            let _place = shared.pulls.acquire().await;
            let began = self.now();
            let credentials =
                shared.provision.credentials(pod, asked).await.map_err(NotStarted::because(Reason::ImagePull))?;
            if !credentials.missing.is_empty() {
                let names = credentials.missing.join(", ");
                let message = format!(
                    "Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed."
                );
                self.tell(order, None, Told::FailedToRetrieveImagePullSecret, message);
            }
            let mut tries = credentials.found.into_iter().map(Some).collect::<Vec<_>>();
            // Public images need none.
            tries.push(None);
            let mut first_error = None;
            for auth in tries {
                match shared.runtime.pull_image(asked, auth, sandbox).await {
                    Ok(()) => return Ok(began),
                    Err(error) => {
                        first_error.get_or_insert(error.to_string());
                    }
                }
            }
            Err(NotStarted::Failed { reason: Reason::ImagePull, message: first_error.unwrap_or_default() })
        };
        tracing::info!(pod = %show(&order.plan), image = asked, "pulling");
        tell(Told::Pulling, format!("Pulling image \"{given}\""));
        let asked_at = self.now();
        let other =
            other_order(&self.orders, |new| new.want != order.want || new.image(container) != order.image(container));
        let began = tokio::select! {
            pulled = pull => pulled.inspect_err(|error| {
                if let NotStarted::Failed { message, .. } = error {
                    tell(Told::Failed, format!("Failed to pull image \"{given}\": {message}"));
                }
            })?,
            () = other => return Err(NotStarted::GivenUp),
        };
        let now = self.now();
        let took = |since: Timestamp| duration(Duration::try_from(now.duration_since(since)).unwrap_or_default());
        let Some(image) = find().await? else {
            let message = format!("{asked} was pulled and is not there");
            tell(Told::Failed, format!("Failed to pull image \"{given}\": {message}"));
            return Err(NotStarted::Failed { reason: Reason::ImagePull, message });
        };
        let (pulled, waited, size) = (took(began), took(asked_at), image.size_bytes);
        tell(
            Told::Pulled,
            format!(
                "Successfully pulled image \"{given}\" in {pulled} ({waited} including waiting). Image size: {size} \
                 bytes."
            ),
        );
        Ok(image)
    }
}

/// A duration to the millisecond as Go writes it: `313ms`, `1.5s`, `2m3.004s`, `1h0m0s`.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Resolves when an order has come that matters. What does not matter stays to be seen.
pub(super) async fn other_order(orders: &watch::Receiver<Order>, matters: impl Fn(&Order) -> bool) {
    let mut orders = orders.clone();
    loop {
        if matters(&orders.borrow_and_update()) {
            return;
        }
        if orders.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_as_go_writes_it() {
        for (millis, written) in [
            (0, "0s"),
            (7, "7ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1594, "1.594s"),
            (10_000, "10s"),
            (10_500, "10.5s"),
            (60_000, "1m0s"),
            (123_004, "2m3.004s"),
            (3_600_000, "1h0m0s"),
            (5_025_100, "1h23m45.1s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), written);
        }
    }
}
