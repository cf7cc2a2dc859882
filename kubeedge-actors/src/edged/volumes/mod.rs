//! A pod's volumes on the node's disk.
//!
//! Served: `emptyDir`, `hostPath`, `configMap`, `secret`, `projected` (tokens, ConfigMaps, Secrets, downward API),
//! `downwardAPI`, `nfs`, `image` (which the runtime mounts), and a `persistentVolumeClaim` that is bound to a local,
//! `hostPath` or `nfs` volume. Everything else is refused by name. Only volumes that a container mounts are made.
//!
//! The layout is the kubelet's, below `<root>/pods/<uid>`:
//!
//! | path | what |
//! |---|---|
//! | `volumes/kubernetes.io~<type>/<volume>` | the volume; files out of objects are swapped behind `..data` |
//! | `volume-subpaths/<volume>/<container>/<index>` | a `subPath`, bound |
//! | `containers/<container>/<8 hex digits>` | termination logs, the latest five |
//! | `etc-hosts` | the managed hosts file |
//! | `plugins/kubernetes.io~empty-dir/<volume>/ready` | the volume was made completely |
//! | `tokens` | service account tokens that were handed out, 0600 (ours, not the kubelet's) |
//!
//! Secrets, projected volumes and downward API are on a tmpfs of their own each, so that they do not reach the disk.
//! Where this process may not mount, they are in a directory whose parent only root may enter (0700).
//!
//! **Offline**: [`Volumes::set_up`] needs every object that is not optional to be on the node; [`Volumes::refresh`]
//! leaves what is there when its source is out of reach, and a token that is due and cannot be renewed stays.
//!
//! One pod's volumes are worked on by one caller at a time; callers that overlap wait for each other.

mod atomic;
mod config_map;
mod container_mounts;
mod downward_api;
mod empty_dir;
mod error;
mod host_path;
mod layout;
mod mount;
mod mount_table;
mod nfs;
mod payload;
mod persistent;
mod plan;
mod projected;
mod remove;
mod secret;
mod sub_path;
mod tokens;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet, hash_map::DefaultHasher},
    fs,
    hash::{Hash as _, Hasher as _},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use self::{
    error::AtPath as _,
    layout::{PodDir, pods_dir},
    payload::Payload,
    persistent::Claim,
    plan::{Plan, Planned, Source},
    projected::{Readers, TokenBook},
    tokens::Tokens,
};
pub use self::{
    error::{InvalidName, MountReason, PathError, SetUpError, VolumeError},
    layout::PodUid,
    mount::{Mount, MountedImage, Propagation},
};
use super::{env::ContainerEnv, facts::PodFacts, objects::ObjectSource};

/// The bound of a tmpfs that holds files out of objects: two sets of all that fits into a projected volume. What is
/// not used takes no memory.
const TMPFS_BYTES: u64 = 64 << 20;
/// Pods share so many locks.
const LOCKS: usize = 32;

/// Where a pod's volumes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountedVolumes {
    volumes: BTreeMap<String, MountedVolume>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct MountedVolume {
    /// Empty for an image.
    path: PathBuf,
    read_only: bool,
    managed: bool,
    image: VolumeImage,
}

/// The image that a volume is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum VolumeImage {
    /// It is none.
    #[default]
    No,
    /// Not fetched yet: that is done when a container that mounts it is made.
    Wanted,
    /// By the runtime's id.
    Here(String),
}

impl MountedVolumes {
    /// The image of a volume is on the node, by this id.
    pub fn image_is_here(&mut self, volume: &str, id: &str) {
        if let Some(volume) = self.volumes.get_mut(volume).filter(|volume| volume.image != VolumeImage::No) {
            volume.image = VolumeImage::Here(id.to_owned());
        }
    }

    fn get(&self, name: &str) -> Option<&MountedVolume> {
        self.volumes.get(name)
    }
}

/// The clock that names sets of files and judges tokens.
type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Makes, follows up and removes the volumes of this node's pods.
#[derive(Clone)]
pub struct Volumes {
    root: PathBuf,
    objects: Arc<dyn ObjectSource>,
    clock: Clock,
    locks: Arc<[Mutex<()>; LOCKS]>,
}

impl Volumes {
    /// Volumes below `root`, the kubelet's root directory (`/var/lib/kubelet`), which must be absolute.
    pub fn new(root: impl Into<PathBuf>, objects: Arc<dyn ObjectSource>) -> Self {
        Self::with_clock(root, objects, Arc::new(Timestamp::now))
    }

    /// [`Volumes::new`] with a clock of the caller's.
    pub fn with_clock(
        root: impl Into<PathBuf>,
        objects: Arc<dyn ObjectSource>,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Self {
        Self { root: root.into(), objects, clock, locks: Arc::new(std::array::from_fn(|_| Mutex::new(()))) }
    }

    /// The `emptyDir` volumes of a pod that are on the node's disk: name and directory, which need not be there yet.
    pub fn empty_dirs_on_disk(&self, pod: &Pod) -> Vec<(String, PathBuf)> {
        let Some(uid) = pod.metadata.uid.as_deref().and_then(|uid| uid.parse::<PodUid>().ok()) else {
            return Vec::new();
        };
        let directory = PodDir::new(&self.root, &uid);
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes
            .filter(|volume| {
                volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref().unwrap_or_default().is_empty())
            })
            .filter_map(|volume| {
                let label = layout::Label::parse("volume", &volume.name).ok()?;
                Some((volume.name.clone(), directory.volume(layout::Plugin::EmptyDir, &label)))
            })
            .collect()
    }

    /// Makes all volumes that the pod's containers mount. A second time it brings them up to date.
    ///
    /// # Errors
    /// [`VolumeError::is_final`] tells whether waiting helps.
    pub async fn set_up(&self, pod: &Pod, facts: &PodFacts) -> Result<MountedVolumes, VolumeError> {
        let plan = Plan::of(pod, facts, &self.root)?;
        let mut book = self.token_book(&plan).await?;
        let mut work = Vec::new();
        for volume in plan.volumes.clone() {
            let volume = match self.found(pod, facts, volume.clone()).await {
                Ok(found) => found,
                Err(source) => {
                    self.keep_tokens(plan, book).await?;
                    return Err(VolumeError::SetUp { volume: volume.name.as_str().to_owned(), source });
                }
            };
            match self.payload(pod, facts, &plan, &volume, &mut book).await {
                Ok(payload) => work.push((volume, payload)),
                Err(source) => {
                    self.keep_tokens(plan, book).await?;
                    return Err(VolumeError::SetUp { volume: volume.name.as_str().to_owned(), source });
                }
            }
        }
        let now = (self.clock)();
        self.blocking(plan.uid.clone(), move || {
            make_pod_dir(&plan.dir)?;
            save_tokens(&plan.dir, &book)?;
            let mut mounted = MountedVolumes::default();
            for (volume, payload) in work {
                let name = volume.name.as_str().to_owned();
                let done = make(&plan.dir, &volume, payload, plan.readers, now);
                let (place, _) = done.map_err(|source| VolumeError::SetUp { volume: name.clone(), source })?;
                mounted.volumes.insert(name, place);
            }
            Ok(mounted)
        })
        .await
    }

    /// Brings the files out of objects up to date. Answers whether a container can see a change.
    ///
    /// Every volume is tried; what is out of reach stays as it is, silently; the first other error is returned.
    pub async fn refresh(&self, pod: &Pod, facts: &PodFacts) -> Result<bool, VolumeError> {
        let plan = Plan::of(pod, facts, &self.root)?;
        let mut book = self.token_book(&plan).await?;
        let mut work = Vec::new();
        let mut first_error = None;
        for volume in plan.volumes.iter().filter(|volume| volume.source.is_written()) {
            let name = volume.name.as_str();
            match self.payload(pod, facts, &plan, volume, &mut book).await {
                Ok(payload) => work.push((volume.clone(), payload)),
                Err(error) if error.is_out_of_reach() => {
                    tracing::debug!(uid = %plan.uid, volume = name, %error, "volume stays as it is");
                }
                Err(source) => {
                    first_error.get_or_insert(VolumeError::SetUp { volume: name.to_owned(), source });
                }
            }
        }
        let now = (self.clock)();
        let changed = self
            .blocking(plan.uid.clone(), move || {
                if !plan.dir.path().exists() {
                    return Ok(false);
                }
                save_tokens(&plan.dir, &book)?;
                let mut changed = false;
                let mut first_error = None;
                for (volume, payload) in work {
                    match make(&plan.dir, &volume, payload, plan.readers, now) {
                        Ok((_, new)) => changed |= new,
                        Err(source) => {
                            let volume = volume.name.as_str().to_owned();
                            first_error.get_or_insert(VolumeError::SetUp { volume, source });
                        }
                    }
                }
                first_error.map_or(Ok(changed), Err)
            })
            .await?;
        first_error.map_or(Ok(changed), Err)
    }

    /// What `container` gets mounted. Writes its hosts file, makes its termination log, binds its sub paths: to be
    /// called for each start of a container, after [`Volumes::set_up`] and when the pod has its addresses.
    pub async fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        facts: &PodFacts,
        env: &ContainerEnv,
        mounted: &MountedVolumes,
    ) -> Result<Vec<Mount>, VolumeError> {
        let uid: PodUid = pod.metadata.uid.as_deref().unwrap_or_default().parse()?;
        let dir = PodDir::new(&self.root, &uid);
        let (pod, container, facts) = (pod.clone(), container.clone(), facts.clone());
        let (env, mounted) = (env.clone(), mounted.clone());
        self.blocking(uid, move || {
            make_pod_dir(&dir)?;
            container_mounts::mounts(&dir, &pod, &container, &facts, &env, &mounted)
        })
        .await
    }

    /// Unmounts and removes everything of a pod. Its containers must be gone. Fine if there is nothing.
    ///
    /// Links are not followed, and what is mounted is unmounted, never emptied: a host path is not touched.
    pub async fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        let uid: PodUid = uid.parse()?;
        let dir = PodDir::new(&self.root, &uid);
        self.blocking(uid, move || {
            mount_table::unmount_below(dir.path())?;
            remove::remove_tree(dir.path())
        })
        .await
    }

    /// The uids of pods that have a directory here and are not in `known`, to be torn down.
    pub async fn orphans(&self, known: &HashSet<String>) -> Result<Vec<String>, VolumeError> {
        let (root, known) = (pods_dir(&self.root), known.clone());
        let listed = tokio::task::spawn_blocking(move || pod_dirs(&root)).await.map_err(interrupted)??;
        Ok(listed.into_iter().filter(|uid| !known.contains(uid)).collect())
    }

    async fn token_book(&self, plan: &Plan) -> Result<TokenBook, VolumeError> {
        let mut tokens = Tokens::default();
        if plan.volumes.iter().any(|volume| matches!(volume.source, Source::Projected(_))) {
            let path = plan.dir.tokens();
            tokens = self.blocking(plan.uid.clone(), move || Ok(Tokens::load(&path)?)).await?;
        }
        Ok(TokenBook { tokens, changed: false, now: (self.clock)() })
    }

    /// Saves new tokens of a pod whose volumes are not all there yet, so that the next try asks for no others.
    async fn keep_tokens(&self, plan: Plan, book: TokenBook) -> Result<(), VolumeError> {
        if !book.changed {
            return Ok(());
        }
        let work = move || {
            make_pod_dir(&plan.dir)?;
            Ok(save_tokens(&plan.dir, &book)?)
        };
        self.blocking(plan.uid, work).await
    }

    /// A volume that is claimed, by what it is on this node.
    async fn found(&self, pod: &Pod, facts: &PodFacts, planned: Planned) -> Result<Planned, SetUpError> {
        let Source::Claim(Claim { name, .. }) = &planned.source else { return Ok(planned) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claim = self.objects.claim(namespace, name).await?;
        let claim = claim.ok_or_else(|| SetUpError::Claim { name: name.clone(), why: "not found".to_owned() })?;
        let volume_name = persistent::bound_volume(&claim)?;
        let volume = self.objects.persistent_volume(volume_name).await?;
        let volume = volume.ok_or_else(|| SetUpError::VolumeNotFound(volume_name.to_owned()))?;
        let (source, read_only) = persistent::source(&claim, &volume, &facts.node_name)?;
        Ok(Planned { source, read_only: planned.read_only || read_only, ..planned })
    }

    /// The files of one volume; empty for one that is not made of objects.
    async fn payload(
        &self,
        pod: &Pod,
        facts: &PodFacts,
        plan: &Plan,
        volume: &Planned,
        book: &mut TokenBook,
    ) -> Result<Payload, SetUpError> {
        let objects = self.objects.as_ref();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut payload = match &volume.source {
            Source::EmptyDir(_)
            | Source::HostPath(_)
            | Source::Nfs(_)
            | Source::Claim(_)
            | Source::Local(_)
            | Source::Image => Payload::default(),
            Source::ConfigMap(source) => {
                let (name, items) = (source.name.as_str(), source.items.as_ref());
                let (default_mode, optional) = (source.default_mode, source.optional);
                let reference = config_map::Reference { namespace, name, items, default_mode, optional };
                config_map::payload(reference, objects).await?
            }
            Source::Secret(source) => {
                let (name, items) = (source.secret_name.as_deref().unwrap_or_default(), source.items.as_ref());
                let (default_mode, optional) = (source.default_mode, source.optional);
                let reference = config_map::Reference { namespace, name, items, default_mode, optional };
                secret::payload(reference, objects).await?
            }
            Source::Projected(source) => projected::payload(pod, facts, source, plan.readers, objects, book).await?,
            Source::DownwardApi(source) => {
                downward_api::payload(pod, facts, source.items.as_ref(), source.default_mode)?
            }
        };
        if plan.readers.group.is_some() {
            payload.readable_by_group();
        }
        Ok(payload)
    }

    /// Runs file system work of one pod on the blocking pool, one piece at a time, also when a caller gave up waiting.
    async fn blocking<T: Send + 'static>(
        &self,
        uid: PodUid,
        work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let locks = Arc::clone(&self.locks);
        let task = tokio::task::spawn_blocking(move || {
            let mut hasher = DefaultHasher::new();
            uid.hash(&mut hasher);
            let lock = &locks[(hasher.finish() % LOCKS as u64) as usize];
            // What a panic left half done on disk is mended by the next run, as after a crash.
            let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        });
        task.await.map_err(interrupted)?
    }
}

fn interrupted(error: tokio::task::JoinError) -> VolumeError {
    match error.try_into_panic() {
        // A fault of ours: it belongs to whoever supervises the caller.
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => VolumeError::Interrupted,
    }
}

fn make_pod_dir(dir: &PodDir) -> Result<(), PathError> {
    let path = dir.path();
    fs::create_dir_all(path).at("create", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o750)).at("set the mode of", path)
}

fn save_tokens(dir: &PodDir, book: &TokenBook) -> Result<(), PathError> {
    if book.changed { book.tokens.save(&dir.tokens()) } else { Ok(()) }
}

/// Makes one volume, or brings it up to date. Answers where it is and whether its files changed.
fn make(
    dir: &PodDir,
    volume: &Planned,
    payload: Payload,
    readers: Readers,
    now: Timestamp,
) -> Result<(MountedVolume, bool), SetUpError> {
    let place = |path: &Path, read_only, managed| {
        let image = VolumeImage::No;
        MountedVolume { path: path.to_owned(), read_only, managed, image }
    };
    let plugin = match (&volume.source, volume.source.plugin()) {
        (Source::Image, _) => {
            let image = VolumeImage::Wanted;
            return Ok((MountedVolume { path: PathBuf::new(), read_only: true, managed: false, image }, false));
        }
        (Source::HostPath(host_path), _) => {
            host_path.set_up()?;
            return Ok((place(&host_path.path, volume.read_only, false), false));
        }
        (Source::Local(path), _) => {
            persistent::set_up_local(path, readers.group)?;
            return Ok((place(path, volume.read_only, true), false));
        }
        (Source::Nfs(nfs), Some(plugin)) => {
            let path = dir.volume(plugin, &volume.name);
            nfs.set_up(&path)?;
            return Ok((place(&path, volume.read_only, false), false));
        }
        (Source::EmptyDir(kind), Some(plugin)) => {
            let path = dir.volume(plugin, &volume.name);
            empty_dir::set_up(&path, &dir.meta(plugin, &volume.name), *kind, readers.group)?;
            return Ok((place(&path, false, true), false));
        }
        (_, Some(plugin)) => plugin,
        (_, None) => return Err(SetUpError::Unsupported("without a directory")),
    };
    let path = dir.volume(plugin, &volume.name);
    fs::create_dir_all(&path).at("create", &path)?;
    if volume.source.is_private() && !mount_table::ensure_tmpfs(&path, TMPFS_BYTES)? {
        let parent = dir.plugin(plugin);
        fs::set_permissions(&parent, fs::Permissions::from_mode(0o700)).at("set the mode of", &parent)?;
    }
    empty_dir::open_to_group(&path, readers.group)?;
    let changed = atomic::write(&path, &payload, readers.group, now)?;
    Ok((place(&path, true, true), changed))
}

fn pod_dirs(pods: &Path) -> Result<Vec<String>, VolumeError> {
    let entries = match fs::read_dir(pods) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", pods)?,
    };
    let mut uids = Vec::new();
    for entry in entries {
        let entry = entry.at("list", pods)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        match name.parse::<PodUid>() {
            Ok(_) if entry.file_type().at("look at", &entry.path())?.is_dir() => uids.push(name),
            _ => tracing::warn!(path = %entry.path().display(), "not the directory of a pod, left alone"),
        }
    }
    uids.sort();
    Ok(uids)
}
