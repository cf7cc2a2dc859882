//! What a Linux node gives its pods: kubelet's directories, cgroups, names and logs.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kubeedge_proto::cri;

use super::{
    Configured, ContainerRequest, Credentials, Provide, Provided, Provision, features, logs::LogDirs, pull_secrets,
};
use crate::edged::{
    devices::{DeviceManager, Given},
    env::{KubernetesService, container_env},
    events::Reason,
    facts::{Allocatable, PodFacts},
    labels,
    lifecycle::{PodPlan, Sizes, container},
    objects::ObjectSource,
    resources::{
        self, CgroupDriver, Change, Groups, NodeDns, NodeLimits, ResolvConf, cgroup_parent, container_resources,
        container_security, end_pod_cgroups, limit_pod_pids, pod_dns, pod_hostname, pod_limits, pod_sysctls,
        port_mappings, qos_class, sandbox_overhead, sandbox_resources, sandbox_security,
    },
    runtime::{ImageUser, Instance, Runtime, RuntimeFeatures},
    user_namespaces::{Ids, UserNamespaces, refusal},
    volumes::{MountedVolumes, PodUid, Volumes},
};

/// Longest last words, bytes, and the longest piece of a log that stands in for them (kubelet's).
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: u64 = 2048;
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What the node says to its pods.
#[derive(Clone, Debug, Default)]
pub struct NodeSetup {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, primary first.
    pub host_ips: Vec<IpAddr>,
    /// Kubelet's root directory, `/var/lib/kubelet` by custom. Absolute.
    pub root_dir: PathBuf,
    /// Where logs are, `/var/log` by custom. Absolute.
    pub log_dir: PathBuf,
    /// Who manages cgroups.
    pub cgroup_driver: CgroupDriver,
    /// The cluster's DNS servers; empty when there are none.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain; may be empty.
    pub cluster_domain: String,
    /// The resolver configuration that pods inherit; empty: none, as kubelet's `resolvConf: ""`.
    pub resolv_conf: PathBuf,
    /// Kernel parameters beyond the safe ones that pods may set.
    pub allowed_sysctls: Vec<String>,
    /// Processes that one pod may have, all of its containers together; no limit when unset.
    pub pod_pids: Option<u32>,
    /// Whether the control groups of pods and classes are limited as well, not only those of containers.
    pub cgroups_per_qos: bool,
    /// What the machine says about limits.
    pub limits: NodeLimits,
    /// What pods may use of the node.
    pub allocatable: Allocatable,
    /// The API server's service as pods see it.
    pub service: Option<KubernetesService>,
}

impl NodeSetup {
    /// The node's control groups.
    pub fn groups(&self) -> Groups {
        Groups::new(self.cgroup_driver, Path::new(CGROUP_ROOT))
    }
}

/// [`Provision`] on a Linux node.
pub struct NodeProvision {
    setup: NodeSetup,
    objects: Arc<dyn ObjectSource>,
    volumes: Volumes,
    logs: LogDirs,
    devices: Option<DeviceManager>,
    runtime: Option<Arc<dyn Runtime>>,
    users: UserNamespaces,
    /// Volumes that are set up, by pod uid; gone with the pod.
    mounted: Mutex<HashMap<String, MountedVolumes>>,
}

impl NodeProvision {
    /// Provision of a node.
    pub fn new(setup: NodeSetup, objects: Arc<dyn ObjectSource>) -> Self {
        Self {
            volumes: Volumes::new(setup.root_dir.clone(), Arc::clone(&objects)),
            logs: LogDirs::new(setup.log_dir.clone()),
            users: UserNamespaces::new(&setup.root_dir),
            setup,
            objects,
            devices: None,
            runtime: None,
            mounted: Mutex::default(),
        }
    }

    /// With the devices of plugins.
    #[must_use]
    pub fn with_devices(self, devices: DeviceManager) -> Self {
        Self { devices: Some(devices), ..self }
    }

    /// With what the runtime can do beyond the usual; otherwise that is nothing.
    #[must_use]
    pub fn with_runtime(self, runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    /// What the runtime can do for a pod, as far as that makes a difference for it.
    async fn features(&self, pod: &Pod) -> Result<RuntimeFeatures, String> {
        match &self.runtime {
            Some(runtime) if features::matter(pod) => runtime.features().await.provide(),
            _ => Ok(RuntimeFeatures::default()),
        }
    }

    /// The ids of the node that the pod runs as; `None` for the node's own users.
    async fn ids(&self, pod: &Pod, plan: &PodPlan) -> Result<Option<Ids>, String> {
        if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
            return Ok(None);
        }
        let handler = features::handler(&*self.objects, pod).await?;
        if let Some(refusal) = refusal(pod, &handler, &self.features(pod).await?) {
            return Err(refusal);
        }
        let (users, uid): (_, PodUid) = (self.users.clone(), plan.uid.parse().provide()?);
        self.files("the pod's users are not known", move |_| users.of(&uid)).await.map(Some)
    }

    /// The node's volumes.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Removes what a pod left of which no more is known than its uid. Its directory, by which it was found, goes last:
    /// what fails is found again.
    pub(crate) async fn remove_orphan(&self, uid: &str) -> Result<(), String> {
        let (pod, driver): (PodUid, _) = (uid.parse().provide()?, self.setup.cgroup_driver);
        self.files("what a pod left cannot be removed", move |logs| {
            end_pod_cgroups(driver, Path::new(CGROUP_ROOT), &pod)?;
            logs.remove_orphan(&pod)
        })
        .await?;
        self.volumes.tear_down(uid).await.provide()
    }

    fn mounted(&self) -> MutexGuard<'_, HashMap<String, MountedVolumes>> {
        // Insertions and removals are whole, so a poisoned lock guards a whole map.
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn facts(&self, pod: &Pod, pod_ips: &[String]) -> Result<PodFacts, String> {
        let features = self.features(pod).await?;
        // Without a difference between handlers it does not matter which it is: not whether its class is still there.
        let handler = match features.handlers.is_empty() {
            true => String::new(),
            false => features::handler(&*self.objects, pod).await?,
        };
        Ok(PodFacts {
            node_name: self.setup.node_name.clone(),
            host_ips: self.setup.host_ips.clone(),
            pod_ips: pod_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            cluster_domain: self.setup.cluster_domain.clone(),
            allocatable: self.setup.allocatable,
            recursive_read_only: features.handler(&handler).recursive_read_only,
            image_volumes: features.image_volumes,
            image_sub_paths: features.image_sub_paths,
            runtime: features.runtime,
        })
    }

    /// The resolver configuration that pods inherit. One that cannot be read is no reason to keep pods from running.
    async fn host_dns(&self) -> ResolvConf {
        let path = &self.setup.resolv_conf;
        if path.as_os_str().is_empty() {
            return ResolvConf::default();
        }
        match tokio::fs::read_to_string(path).await {
            Ok(text) => ResolvConf::parse(&text),
            Err(error) => {
                tracing::warn!("pods inherit no name servers: {}: {error}", path.display());
                ResolvConf::default()
            }
        }
    }

    fn labels(plan: &PodPlan) -> HashMap<String, String> {
        [(labels::POD_NAME, &plan.name), (labels::POD_NAMESPACE, &plan.namespace), (labels::POD_UID, &plan.uid)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    }

    /// File work, off the arbiter.
    async fn files<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(LogDirs) -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let logs = self.logs.clone();
        match tokio::task::spawn_blocking(move || work(logs)).await {
            Ok(done) => done.map_err(|error| format!("{what}: {error}")),
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    async fn sandbox_config(
        &self,
        pod: &Pod,
        plan: &PodPlan,
        attempt: u32,
        started_at: Timestamp,
    ) -> Result<Configured<cri::PodSandboxConfig>, String> {
        let host = self.host_dns().await;
        let dns = NodeDns {
            cluster_dns: self.setup.cluster_dns.clone(),
            cluster_domain: self.setup.cluster_domain.clone(),
            host,
        };
        let dns = pod_dns(pod, &dns).provide()?;
        features::groups_can_be_kept(pod, &self.features(pod).await?)?;
        let mut security = sandbox_security(pod);
        if let (Some(ids), Some(namespaces)) = (self.ids(pod, plan).await?, &mut security.namespace_options) {
            namespaces.userns_options = Some(ids.namespace());
        }
        let uid = plan.uid.parse().provide()?;
        let qos = qos_class(pod).provide()?;
        let spec = pod.spec.clone().unwrap_or_default();
        let hostname = if plan.host_network {
            String::new()
        } else {
            let name = pod_hostname(pod, &self.setup.cluster_domain).provide()?;
            name.for_kernel(spec.set_hostname_as_fqdn).provide()?
        };
        let mut annotations: HashMap<String, String> =
            pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
        annotations.insert(labels::POD_START.to_owned(), started_at.to_string());
        let mut labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
        labels.extend(Self::labels(plan));
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: plan.name.clone(),
                uid: plan.uid.clone(),
                namespace: plan.namespace.clone(),
                attempt,
            }),
            hostname,
            log_directory: self.logs.pod(plan).to_string_lossy().into_owned(),
            dns_config: Some(dns.config),
            port_mappings: port_mappings(pod).provide()?,
            labels,
            annotations,
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: cgroup_parent(self.setup.cgroup_driver, qos, &uid),
                security_context: Some(security),
                sysctls: pod_sysctls(pod, &self.setup.allowed_sysctls).provide()?.into_iter().collect(),
                overhead: sandbox_overhead(pod, &self.setup.limits).provide()?,
                resources: Some(sandbox_resources(pod, &self.setup.limits).provide()?),
            }),
        };
        Ok(Configured { config, told: dns.warnings })
    }

    async fn container_config(
        &self,
        request: ContainerRequest<'_>,
    ) -> Result<Configured<cri::ContainerConfig>, String> {
        let ContainerRequest { pod, plan, container, attempt, image, target, pod_ips, volume_images } = request;
        let facts = self.facts(pod, pod_ips).await?;
        let env = container_env(pod, container, &facts, self.setup.service.as_ref(), &*self.objects).await.provide()?;
        let skipped = env.skipped.iter().map(|skipped| (Reason::InvalidEnvironmentVariableNames, skipped.to_string()));
        let told = skipped.collect();
        let mut mounted = self.mounted().get(&plan.uid).cloned().unwrap_or_default();
        for (volume, image) in volume_images {
            mounted.image_is_here(volume, &image.id);
        }
        let mounts = self.volumes.mounts(pod, container, &facts, &env, &mounted).await.provide()?;
        let user = match &image.user {
            ImageUser::Unset => resources::ImageUser::Uid(0),
            ImageUser::Uid(uid) => resources::ImageUser::Uid(*uid),
            ImageUser::Name(name) => resources::ImageUser::Name(name.clone()),
        };
        let mut security = container_security(pod, container, &user, &self.setup.root_dir).provide()?;
        if let (Some(target), Some(namespaces)) = (target, &mut security.namespace_options) {
            namespaces.pid = cri::NamespaceMode::Target.into();
            target.clone_into(&mut namespaces.target_id);
        }
        let ids = self.ids(pod, plan).await?;
        if let (Some(ids), Some(namespaces)) = (ids, &mut security.namespace_options) {
            namespaces.userns_options = Some(ids.namespace());
        }
        let limits = container_resources(pod, container, &self.setup.limits).provide()?;
        self.limit_pids(pod, plan).await?;
        self.limit_pod(pod, plan, Change::Set).await?;
        let name = container.name.clone();
        let directory = (plan.clone(), name.clone());
        self.files("the log directory cannot be made", move |logs| logs.prepare(&directory.0, &directory.1)).await?;

        let given = match &self.devices {
            Some(devices) => devices.allocate(pod, container).await?,
            None => Given::default(),
        };
        let mut labels = Self::labels(plan);
        labels.insert(labels::CONTAINER_NAME.to_owned(), name.clone());
        let mut annotations: HashMap<String, String> = [
            (labels::RESTART_COUNT, attempt.to_string()),
            (labels::GRACE_PERIOD, plan.grace_seconds.to_string()),
            (labels::SPEC_IMAGE, container.image.clone().unwrap_or_default()),
            (labels::SIZES, Sizes::of(container).provide()?.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        let words = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        annotations.insert(labels::TERMINATION_MESSAGE_PATH.to_owned(), words.to_owned());
        annotations.extend(given.annotations);
        let mut mounts: Vec<cri::Mount> = mounts.into_iter().map(Into::into).chain(given.mounts).collect();
        if let Some(ids) = ids {
            // What is the node's on disk is the pod's own inside. Images are mapped by the runtime itself.
            for mount in mounts.iter_mut().filter(|mount| mount.image.is_none()) {
                (mount.uid_mappings, mount.gid_mappings) = (vec![ids.mapping()], vec![ids.mapping()]);
            }
        }
        // The container's own come later, which lets them win.
        let envs = given.envs.into_iter().chain(env.vars.clone());
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.clone(), attempt }),
            // By content: a tag that moves between the pull and here changes nothing.
            image: Some(cri::ImageSpec {
                image: image.id.clone(),
                user_specified_image: container.image.clone().unwrap_or_default(),
                ..Default::default()
            }),
            command: env.expand_all(container.command.as_ref()),
            args: env.expand_all(container.args.as_ref()),
            working_dir: container.working_dir.clone().unwrap_or_default(),
            envs: envs.map(|(key, value)| cri::KeyValue { key, value }).collect(),
            mounts,
            devices: given.devices,
            labels,
            annotations,
            log_path: LogDirs::relative(&name, attempt),
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            tty: container.tty.unwrap_or(false),
            linux: Some(cri::LinuxContainerConfig { resources: Some(limits), security_context: Some(security) }),
        };
        Ok(Configured { config, told })
    }

    /// Before each container: the sandbox may be a new one, and one of an edgecore with another setting.
    async fn limit_pids(&self, pod: &Pod, plan: &PodPlan) -> Result<(), String> {
        let Some(limit) = self.setup.pod_pids else { return Ok(()) };
        let (driver, qos) = (self.setup.cgroup_driver, qos_class(pod).provide()?);
        let uid: PodUid = plan.uid.parse().provide()?;
        self.files("the pod's processes cannot be limited", move |_| {
            limit_pod_pids(driver, Path::new(CGROUP_ROOT), qos, &uid, limit)
        })
        .await
    }

    /// Before each container, as with the processes.
    async fn limit_pod(&self, pod: &Pod, plan: &PodPlan, change: Change) -> Result<(), String> {
        if !self.setup.cgroups_per_qos {
            return Ok(());
        }
        let (groups, qos) = (self.setup.groups(), qos_class(pod).provide()?);
        let limits = pod_limits(pod, self.setup.limits.cpu_quota).provide()?;
        let uid: PodUid = plan.uid.parse().provide()?;
        self.files("the pod's resources cannot be limited", move |_| groups.limit_pod(qos, &uid, limits, change)).await
    }

    async fn read_last_words(&self, pod: &Pod, plan: &PodPlan, instance: &Instance) -> Result<String, String> {
        let spec = container(pod, &instance.name);
        let policy = spec.as_deref().and_then(|spec| spec.termination_message_policy.as_deref()).unwrap_or_default();
        let log_counts = policy == "FallbackToLogsOnError" && instance.exit_code != 0;
        let (file, plan) = (instance.termination_log.clone(), plan.clone());
        let (name, attempt) = (instance.name.clone(), instance.attempt);
        self.files("the termination log cannot be read", move |logs| {
            let words = match file {
                Some(path) => super::logs::tail(&path, MAX_MESSAGE)?,
                None => Vec::new(),
            };
            if words.is_empty() && log_counts {
                return logs.tail(&plan, &name, attempt, MAX_LOG_MESSAGE);
            }
            Ok(String::from_utf8_lossy(&words).into_owned())
        })
        .await
    }
}

impl Provision for NodeProvision {
    fn set_up<'a>(&'a self, pod: &'a Pod, pod_ips: &'a [String]) -> Provided<'a, ()> {
        Box::pin(async move {
            let facts = self.facts(pod, pod_ips).await?;
            let mounted = self.volumes.set_up(pod, &facts).await.provide()?;
            self.mounted().insert(pod.metadata.uid.clone().unwrap_or_default(), mounted);
            Ok(())
        })
    }

    fn refresh<'a>(&'a self, pod: &'a Pod, pod_ips: &'a [String]) -> Provided<'a, ()> {
        Box::pin(async move {
            let facts = self.facts(pod, pod_ips).await?;
            self.volumes.refresh(pod, &facts).await.map(drop).provide()
        })
    }

    fn tear_down<'a>(&'a self, plan: &'a PodPlan) -> Provided<'a, ()> {
        Box::pin(async move {
            let (of, driver) = (plan.clone(), self.setup.cgroup_driver);
            let uid: PodUid = plan.uid.parse().provide()?;
            self.files("the pod's logs cannot be removed", move |logs| logs.remove_pod(&of)).await?;
            self.files("the pod's cgroups cannot be removed", move |_| {
                end_pod_cgroups(driver, Path::new(CGROUP_ROOT), &uid)
            })
            .await?;
            // Last: by its directory a later edgecore finds what this one was killed over.
            self.volumes.tear_down(&plan.uid).await.provide()?;
            self.mounted().remove(&plan.uid);
            Ok(())
        })
    }

    fn sandbox<'a>(
        &'a self,
        pod: &'a Pod,
        plan: &'a PodPlan,
        attempt: u32,
        started_at: Timestamp,
    ) -> Provided<'a, Configured<cri::PodSandboxConfig>> {
        Box::pin(self.sandbox_config(pod, plan, attempt, started_at))
    }

    fn handler<'a>(&'a self, pod: &'a Pod) -> Provided<'a, String> {
        Box::pin(features::handler(&*self.objects, pod))
    }

    fn container<'a>(&'a self, request: ContainerRequest<'a>) -> Provided<'a, Configured<cri::ContainerConfig>> {
        Box::pin(self.container_config(request))
    }

    fn resources(&self, pod: &Pod, container: &Container) -> Result<cri::LinuxContainerResources, String> {
        let all = container_resources(pod, container, &self.setup.limits).provide()?;
        Ok(cri::LinuxContainerResources {
            cpu_shares: all.cpu_shares,
            cpu_period: all.cpu_period,
            cpu_quota: all.cpu_quota,
            memory_limit_in_bytes: all.memory_limit_in_bytes,
            ..cri::LinuxContainerResources::default()
        })
    }

    fn resize<'a>(&'a self, pod: &'a Pod, plan: &'a PodPlan, change: Change) -> Provided<'a, ()> {
        Box::pin(self.limit_pod(pod, plan, change))
    }

    fn credentials<'a>(&'a self, pod: &'a Pod, image: &'a str) -> Provided<'a, Credentials> {
        Box::pin(pull_secrets::credentials(&*self.objects, pod, image))
    }

    fn container_started<'a>(
        &'a self,
        plan: &'a PodPlan,
        container: &'a str,
        attempt: u32,
        id: &'a str,
    ) -> Provided<'a, ()> {
        let (plan, container, id) = (plan.clone(), container.to_owned(), id.to_owned());
        Box::pin(self.files("the log cannot be linked", move |logs| logs.publish(&plan, &container, attempt, &id)))
    }

    fn container_removed<'a>(
        &'a self,
        plan: &'a PodPlan,
        container: &'a str,
        attempt: u32,
        id: &'a str,
    ) -> Provided<'a, ()> {
        let (plan, container, id) = (plan.clone(), container.to_owned(), id.to_owned());
        Box::pin(self.files("the log cannot be removed", move |logs| logs.remove(&plan, &container, attempt, &id)))
    }

    fn last_words<'a>(&'a self, pod: &'a Pod, plan: &'a PodPlan, instance: &'a Instance) -> Provided<'a, String> {
        Box::pin(self.read_last_words(pod, plan, instance))
    }
}
