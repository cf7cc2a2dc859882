//! A container runtime as plain data: what there is, and which rules were broken on the way.

use std::net::Ipv4Addr;

use jiff::Timestamp;

use crate::edged::runtime::{Instance, InstanceState, ObservedPod, Sandbox};

/// Exit code of a container that was asked to end and did not handle the signal.
pub const TERMINATED: i32 = 143;
/// Exit code of a container that was killed.
pub const KILLED: i32 = 137;

/// A sandbox and whose it is.
#[derive(Clone, Debug)]
pub struct ModelSandbox {
    /// Namespace, name and uid of its pod.
    pub pod: (String, String, String),
    /// Seconds that its containers may take to end, as noted on it.
    pub grace_seconds: Option<u32>,
    /// The sandbox.
    pub sandbox: Sandbox,
}

/// The state of the runtime.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Every sandbox.
    pub sandboxes: Vec<ModelSandbox>,
    /// Every instance.
    pub instances: Vec<Instance>,
    /// Steps that no caller may ask for, in words.
    pub violations: Vec<String>,
    counter: u32,
}

impl Model {
    fn id(&mut self, kind: &str) -> String {
        self.counter += 1;
        format!("{kind}-{}", self.counter)
    }

    /// Everything of one pod.
    pub fn observe(&self, uid: &str) -> ObservedPod {
        let sandboxes: Vec<Sandbox> =
            self.sandboxes.iter().filter(|known| known.pod.2 == uid).map(|known| known.sandbox.clone()).collect();
        let mine = |instance: &&Instance| sandboxes.iter().any(|sandbox| sandbox.id == instance.sandbox_id);
        let instances = self.instances.iter().filter(mine).cloned().collect();
        ObservedPod { sandboxes, instances }
    }

    /// Makes a ready sandbox. A second ready one of the same pod breaks a rule.
    pub fn run_sandbox(&mut self, pod: (String, String, String), attempt: u32, now: Timestamp) -> String {
        if self.sandboxes.iter().any(|known| known.pod.2 == pod.2 && known.sandbox.ready) {
            self.violations.push(format!("second ready sandbox of pod {}", pod.2));
        }
        let id = self.id("sandbox");
        // Of a whole network: a node that lives for long has had many.
        let [_, high, mid, low] = self.counter.to_be_bytes();
        let ips = vec![Ipv4Addr::new(10, high, mid, low).to_string()];
        let sandbox = Sandbox { id: id.clone(), attempt, ready: true, created_at: now, ips, pod_start: None };
        self.sandboxes.push(ModelSandbox { pod, grace_seconds: None, sandbox });
        id
    }

    /// Makes a container; `None` when there is no such ready sandbox.
    pub fn create(
        &mut self,
        sandbox_id: &str,
        name: &str,
        attempt: u32,
        image: &str,
        now: Timestamp,
    ) -> Option<String> {
        self.sandboxes.iter().find(|known| known.sandbox.id == sandbox_id && known.sandbox.ready)?;
        let id = self.id("container");
        self.instances.push(Instance {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: name.to_owned(),
            attempt,
            state: InstanceState::Created,
            created_at: now,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: image.to_owned(),
            image_id: format!("sha256:{image}"),
            sizes: None,
            spec_image: Some(image.to_owned()),
            termination_log: None,
        });
        Some(id)
    }

    fn pod_of(&self, sandbox_id: &str) -> Option<&str> {
        self.sandboxes.iter().find(|known| known.sandbox.id == sandbox_id).map(|known| known.pod.2.as_str())
    }

    /// Starts a container that was made; false when it is not there. Another live instance breaks a rule.
    pub fn start(&mut self, id: &str, now: Timestamp) -> bool {
        let Some(at) = self.instances.iter().position(|instance| instance.id == id) else { return false };
        let uid = self.pod_of(&self.instances[at].sandbox_id);
        let twin = self.instances.iter().any(|other| {
            other.name == self.instances[at].name && other.state.may_run() && self.pod_of(&other.sandbox_id) == uid
        });
        if twin {
            self.violations.push(format!("second live instance of container {}", self.instances[at].name));
        }
        let instance = &mut self.instances[at];
        if instance.state != InstanceState::Created {
            return false;
        }
        instance.state = InstanceState::Running;
        instance.started_at = Some(now);
        true
    }

    /// A container's process ends.
    pub fn exit(&mut self, id: &str, code: i32, now: Timestamp) {
        for instance in self.instances.iter_mut().filter(|instance| instance.id == id) {
            if instance.state != InstanceState::Exited {
                instance.state = InstanceState::Exited;
                instance.finished_at = Some(now);
                instance.exit_code = code;
                let reason = if code == 0 { "Completed" } else { "Error" };
                reason.clone_into(&mut instance.reason);
            }
        }
    }

    /// Removes a container. One that may run breaks a rule.
    pub fn remove_container(&mut self, id: &str) {
        if self.instances.iter().any(|instance| instance.id == id && instance.state.may_run()) {
            self.violations.push(format!("container {id} removed while it may run"));
        }
        self.instances.retain(|instance| instance.id != id);
    }

    /// A sandbox stops being ready, and what runs inside ends.
    pub fn lose_sandbox(&mut self, id: &str, now: Timestamp) {
        for known in self.sandboxes.iter_mut().filter(|known| known.sandbox.id == id) {
            known.sandbox.ready = false;
            known.sandbox.ips.clear();
        }
        let inside: Vec<String> = self
            .instances
            .iter()
            .filter(|instance| instance.sandbox_id == id && instance.state.may_run())
            .map(|instance| instance.id.clone())
            .collect();
        for container in inside {
            self.exit(&container, KILLED, now);
        }
    }

    /// Stops a sandbox. A live container inside breaks a rule.
    pub fn stop_sandbox(&mut self, id: &str, now: Timestamp) {
        if self.instances.iter().any(|instance| instance.sandbox_id == id && instance.state.may_run()) {
            self.violations.push(format!("sandbox {id} stopped under a live container"));
        }
        self.lose_sandbox(id, now);
    }

    /// Removes a sandbox. A ready one, or one with containers, breaks a rule.
    pub fn remove_sandbox(&mut self, id: &str) {
        if self.sandboxes.iter().any(|known| known.sandbox.id == id && known.sandbox.ready) {
            self.violations.push(format!("sandbox {id} removed while ready"));
        }
        if self.instances.iter().any(|instance| instance.sandbox_id == id) {
            self.violations.push(format!("sandbox {id} removed with its containers"));
        }
        self.sandboxes.retain(|known| known.sandbox.id != id);
    }
}
