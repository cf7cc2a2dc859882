//! One mount of a container, and as CRI has it.

use std::path::PathBuf;

use kubeedge_proto::cri;

/// How mounts made after the container's start are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// Those of the node, in the container.
    HostToContainer,
    /// On both sides.
    Bidirectional,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted: a path on the node; empty for an image.
    pub host_path: PathBuf,
    /// Or an image, or a part of it.
    pub image: Option<MountedImage>,
    /// Where the container sees it.
    pub container_path: String,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Whether that holds for the mounts below it too.
    pub recursive_read_only: bool,
    /// How later mounts are seen.
    pub propagation: Propagation,
    /// Whether the runtime is to label it for SELinux: true for what the node made for this pod.
    pub selinux_relabel: bool,
}

/// An image that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedImage {
    /// The runtime's id of it.
    pub id: String,
    /// The folder or file of it; empty for the whole.
    pub sub_path: String,
}

impl From<Mount> for cri::Mount {
    fn from(mount: Mount) -> Self {
        use cri::MountPropagation;
        let propagation = match mount.propagation {
            Propagation::Private => MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => MountPropagation::PropagationBidirectional,
        };
        let (image, image_sub_path) = mount.image.map(|image| (image.id, image.sub_path)).unzip();
        Self {
            container_path: mount.container_path,
            host_path: mount.host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only,
            selinux_relabel: mount.selinux_relabel,
            propagation: propagation.into(),
            recursive_read_only: mount.recursive_read_only,
            image: image.map(|image| cri::ImageSpec { image, ..Default::default() }),
            image_sub_path: image_sub_path.unwrap_or_default(),
            ..Self::default()
        }
    }
}
