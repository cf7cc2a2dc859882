//! What a pod's volumes are, parsed and checked before anything is touched. Pure.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, Pod, PodSpec, ProjectedVolumeSource, SecretVolumeSource,
    SecurityContext, Volume,
};

use super::{
    empty_dir::EmptyDir,
    error::{SetUpError, VolumeError},
    host_path::HostPath,
    layout::{Label, Plugin, PodDir, PodUid},
    nfs::Nfs,
    persistent::Claim,
    projected::Readers,
};
use crate::edged::facts::PodFacts;

/// A pod's volumes, as far as a container mounts them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) uid: PodUid,
    pub(crate) dir: PodDir,
    pub(crate) readers: Readers,
    pub(crate) volumes: Vec<Planned>,
}

/// One volume.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) name: Label,
    pub(crate) source: Source,
    /// Whether containers may only read it.
    pub(crate) read_only: bool,
}

/// Where a volume's content comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    EmptyDir(EmptyDir),
    HostPath(HostPath),
    ConfigMap(ConfigMapVolumeSource),
    Secret(SecretVolumeSource),
    Projected(ProjectedVolumeSource),
    DownwardApi(DownwardAPIVolumeSource),
    Nfs(Nfs),
    /// Of which only the claim is known yet.
    Claim(Claim),
    /// A directory of the node that a persistent volume is.
    Local(PathBuf),
    /// An image, which the runtime mounts itself.
    Image,
}

impl Source {
    /// The directory kind; `None` for what has none below the pod's.
    pub(crate) fn plugin(&self) -> Option<Plugin> {
        match self {
            Self::EmptyDir(_) => Some(Plugin::EmptyDir),
            Self::HostPath(_) | Self::Claim(_) | Self::Local(_) | Self::Image => None,
            Self::Nfs(_) => Some(Plugin::Nfs),
            Self::ConfigMap(_) => Some(Plugin::ConfigMap),
            Self::Secret(_) => Some(Plugin::Secret),
            Self::Projected(_) => Some(Plugin::Projected),
            Self::DownwardApi(_) => Some(Plugin::DownwardApi),
        }
    }

    /// Whether its files are written by the node from objects, and followed up.
    pub(crate) fn is_written(&self) -> bool {
        matches!(self, Self::ConfigMap(_) | Self::Secret(_) | Self::Projected(_) | Self::DownwardApi(_))
    }

    /// Whether its files are not to reach a disk.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Secret(_) | Self::Projected(_) | Self::DownwardApi(_))
    }
}

impl Plan {
    /// Reads a pod's volumes. Fails for what no waiting will mend.
    pub(crate) fn of(pod: &Pod, facts: &PodFacts, root: &Path) -> Result<Self, VolumeError> {
        let uid: PodUid = pod.metadata.uid.as_deref().unwrap_or_default().parse()?;
        let dir = PodDir::new(root, &uid);
        let mut volumes = Vec::new();
        let mut readers = Readers::default();
        if let Some(spec) = &pod.spec {
            let used = used_volumes(spec);
            for volume in spec.volumes.iter().flatten().filter(|volume| used.contains(volume.name.as_str())) {
                let name = Label::parse("volume name", &volume.name)?;
                let source = source(volume, pod, facts)
                    .map_err(|source| VolumeError::SetUp { volume: volume.name.clone(), source })?;
                let read_only = match &source {
                    Source::Claim(claim) => claim.read_only,
                    Source::Nfs(_) => volume.nfs.as_ref().is_some_and(|nfs| nfs.read_only == Some(true)),
                    _ => false,
                };
                volumes.push(Planned { name, source, read_only });
            }
            let group = spec.security_context.as_ref().and_then(|context| context.fs_group);
            readers = Readers { user: common_user(spec), group: group.map(id).transpose()? };
        }
        Ok(Self { uid, dir, readers, volumes })
    }
}

fn id(id: i64) -> Result<u32, VolumeError> {
    u32::try_from(id).ok().filter(|id| *id <= i32::MAX as u32).ok_or_else(|| {
        let expected = "0 to 2147483647";
        VolumeError::Name(super::error::InvalidName { what: "fsGroup", text: id.to_string(), expected })
    })
}

/// The volumes that a container mounts; the others are not made.
fn used_volumes(spec: &PodSpec) -> BTreeSet<&str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mounts = containers.flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral_mounts = ephemeral.flat_map(|container| container.volume_mounts.iter().flatten());
    mounts.chain(ephemeral_mounts).map(|mount| mount.name.as_str()).collect()
}

/// The user that all containers run as, if it is one and the same.
fn common_user(spec: &PodSpec) -> Option<u32> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let of = |context: Option<&SecurityContext>| context.and_then(|context| context.run_as_user).or(of_pod);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = containers.map(|container| of(container.security_context.as_ref()));
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

fn source(volume: &Volume, pod: &Pod, facts: &PodFacts) -> Result<Source, SetUpError> {
    if let Some(source) = &volume.empty_dir {
        return Ok(Source::EmptyDir(EmptyDir::plan(source, pod, facts)?));
    }
    if let Some(source) = &volume.host_path {
        return Ok(Source::HostPath(HostPath::plan(source)?));
    }
    if let Some(source) = &volume.config_map {
        return Ok(Source::ConfigMap(source.clone()));
    }
    if let Some(source) = &volume.secret {
        return Ok(Source::Secret(source.clone()));
    }
    if let Some(source) = &volume.projected {
        if source.sources.iter().flatten().any(|source| source.cluster_trust_bundle.is_some()) {
            return Err(SetUpError::Unsupported("projected clusterTrustBundle"));
        }
        return Ok(Source::Projected(source.clone()));
    }
    if let Some(source) = &volume.downward_api {
        return Ok(Source::DownwardApi(source.clone()));
    }
    if let Some(source) = &volume.nfs {
        let read_only = source.read_only == Some(true);
        return Ok(Source::Nfs(Nfs::plan(&source.server, &source.path, read_only, &[])?));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        // It becomes part of no path; as a key it is what the API allows.
        let claim = Claim { name: source.claim_name.clone(), read_only: source.read_only == Some(true) };
        if !kubeedge_proto::is_dns_subdomain(&claim.name) {
            return Err(SetUpError::Invalid {
                field: "persistentVolumeClaim.claimName",
                value: claim.name.chars().take(300).collect(),
                expected: "the name of a claim",
            });
        }
        return Ok(Source::Claim(claim));
    }
    if volume.image.is_some() {
        return if facts.image_volumes { Ok(Source::Image) } else { Err(SetUpError::NoImages(facts.runtime.clone())) };
    }
    Err(SetUpError::Unsupported(foreign_type(volume)))
}

/// The name of a volume type that this node does not serve.
fn foreign_type(volume: &Volume) -> &'static str {
    let types = [
        ("csi", volume.csi.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("iscsi", volume.iscsi.is_some()),
        ("fc", volume.fc.is_some()),
        ("flexVolume", volume.flex_volume.is_some()),
        ("gitRepo", volume.git_repo.is_some()),
        ("cephfs", volume.cephfs.is_some()),
        ("rbd", volume.rbd.is_some()),
        ("glusterfs", volume.glusterfs.is_some()),
        ("awsElasticBlockStore", volume.aws_elastic_block_store.is_some()),
        ("azureDisk", volume.azure_disk.is_some()),
        ("azureFile", volume.azure_file.is_some()),
        ("cinder", volume.cinder.is_some()),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some()),
        ("vsphereVolume", volume.vsphere_volume.is_some()),
        ("portworxVolume", volume.portworx_volume.is_some()),
        ("flocker", volume.flocker.is_some()),
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some()),
        ("quobyte", volume.quobyte.is_some()),
        ("scaleIO", volume.scale_io.is_some()),
        ("storageos", volume.storageos.is_some()),
    ];
    types.into_iter().find(|(_, set)| *set).map_or("of an unknown kind", |(name, _)| name)
}
