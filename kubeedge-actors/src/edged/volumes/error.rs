//! Why volumes cannot be set up, mounted or torn down, and whether waiting helps.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::edged::{downward::DownwardError, objects::ObjectError, quantity::InvalidQuantity};

/// A pod's volumes cannot be served. The messages are the kubelet's where it has one.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// A volume could not be set up.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    SetUp {
        /// The volume's name.
        volume: String,
        /// Why.
        source: SetUpError,
    },
    /// A uid or name that may not become part of a path.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A container mounts a volume that the pod has not got.
    #[error("cannot find volume \"{volume}\" to mount into container \"{container}\"")]
    NoSuchVolume {
        /// The volume's name.
        volume: String,
        /// The container's name.
        container: String,
    },
    /// A mount of a container that cannot be made as written.
    #[error("volumeMount \"{volume}\" of container \"{container}\": {reason}")]
    Mount {
        /// The volume's name.
        volume: String,
        /// The container's name.
        container: String,
        /// What is wrong.
        reason: MountReason,
    },
    /// The pod's host name or hosts file cannot be made.
    #[error(transparent)]
    Hosts(#[from] crate::edged::resources::HostnameError),
    /// Something is still mounted or in use below the pod's directory.
    #[error("{path} is still in use: {source}", path = path.display())]
    Busy {
        /// What could not be unmounted or removed.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The process is stopping and the work was not done.
    #[error("volume work was interrupted: the process is stopping")]
    Interrupted,
}

impl VolumeError {
    /// Whether only a new pod specification can help. Everything else is to be tried again.
    pub fn is_final(&self) -> bool {
        match self {
            Self::SetUp { source, .. } => source.is_final(),
            Self::Mount { reason, .. } => reason.is_final(),
            Self::Name(_) | Self::NoSuchVolume { .. } | Self::Hosts(_) => true,
            Self::Busy { .. } | Self::Io(_) | Self::Interrupted => false,
        }
    }
}

/// Why one volume could not be set up.
#[derive(Debug, Error)]
pub enum SetUpError {
    /// A ConfigMap that is not optional is absent.
    #[error("configmap \"{0}\" not found")]
    ConfigMapNotFound(String),
    /// A Secret that is not optional is absent.
    #[error("secret \"{0}\" not found")]
    SecretNotFound(String),
    /// A key that is not optional is absent.
    #[error("references non-existent {kind} key: {key}")]
    KeyNotFound {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// It is not known yet what an object holds.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A host path is not what its type says.
    #[error("hostPath type check failed: {path} {reason}", path = path.display())]
    HostPath {
        /// The path on the node.
        path: PathBuf,
        /// What it should be.
        reason: &'static str,
    },
    /// A claim that has no volume here, or none yet.
    #[error("persistentvolumeclaim \"{name}\": {why}")]
    Claim {
        /// The claim's name.
        name: String,
        /// What is missing.
        why: String,
    },
    /// A persistent volume that is known to be absent.
    #[error("persistentvolume \"{0}\" not found")]
    VolumeNotFound(String),
    /// A local persistent volume is not on this node's disk.
    #[error("local volume: {path} {reason}", path = path.display())]
    Local {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// An export could not be mounted.
    #[error("mounting {source_name} failed: {source}")]
    Nfs {
        /// `server:/path`
        source_name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// An image, and a runtime that cannot mount one.
    #[error("volume type image is not supported by {0}: expected containerd 2.1, CRI-O 1.31, or a newer one")]
    NoImages(String),
    /// A volume type that this node does not serve.
    #[error(
        "volume type {0} is not supported: expected emptyDir, hostPath, configMap, secret, projected, downwardAPI, image, nfs or a \
         persistentVolumeClaim of a local, hostPath or nfs volume"
    )]
    Unsupported(&'static str),
    /// A value that Kubernetes does not allow.
    #[error("{field} {value:?} is not valid: expected {expected}")]
    Invalid {
        /// The field of the volume.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A field or resource that cannot be told.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A size that is no quantity.
    #[error(transparent)]
    Quantity(#[from] InvalidQuantity),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl SetUpError {
    /// Whether only a new pod specification can help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Unsupported(_) | Self::Invalid { .. } | Self::Downward(_) | Self::Quantity(_))
    }

    /// Whether the source of the content is out of reach for now, so that what is there stays.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Object(error) if error.is_out_of_reach())
    }
}

/// Why a mount of a container cannot be made.
#[derive(Debug, Error)]
pub enum MountReason {
    /// `subPath` is not a plain relative path.
    #[error("subPath {0:?} is not valid: expected a relative path without \"..\"")]
    SubPath(String),
    /// `subPathExpr` names a variable that the container has not got.
    #[error("missing value for \"{0}\" in subPathExpr")]
    Variable(String),
    /// `subPath` leads out of the volume, or changed while it was looked at.
    #[error("subPath {0:?} does not stay inside the volume")]
    Escape(String),
    /// `mountPropagation` is none of the known modes.
    #[error("invalid MountPropagation mode: {0:?}")]
    Propagation(String),
    /// Only a privileged container may propagate its mounts to the node.
    #[error("Bidirectional mount propagation is available only to privileged containers")]
    Bidirectional,
    /// `recursiveReadOnly` is asked for and cannot be given.
    #[error("recursiveReadOnly {0:?} cannot be granted: {1}")]
    RecursiveReadOnly(String, &'static str),
    /// A part of an image, and a runtime that would mount the whole.
    #[error("subPath of an image is not supported by {0}: expected containerd 2.2, CRI-O 1.33, or a newer one")]
    ImageSubPath(String),
    /// An image that was not fetched before: a fault of ours.
    #[error("its image is not known")]
    Image,
    /// A raw block device.
    #[error("block devices (volumeDevices) are not supported")]
    Device,
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl MountReason {
    fn is_final(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Escape(_) | Self::Image | Self::ImageSubPath(_))
    }
}

/// An I/O error and the path it is about.
#[derive(Debug, Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct PathError {
    /// What was tried.
    pub what: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

/// Adds what was tried and the path to an I/O error.
pub(crate) trait AtPath<T> {
    /// `what` reads before the path: "create", "mount tmpfs on".
    fn at(self, what: &'static str, path: &std::path::Path) -> Result<T, PathError>;
}

impl<T, E: Into<io::Error>> AtPath<T> for Result<T, E> {
    fn at(self, what: &'static str, path: &std::path::Path) -> Result<T, PathError> {
        self.map_err(|error| PathError { what, path: path.to_owned(), source: error.into() })
    }
}

/// A uid or name that may not become part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what} {text:?} is not valid: expected {expected}")]
pub struct InvalidName {
    pub(crate) what: &'static str,
    pub(crate) text: String,
    pub(crate) expected: &'static str,
}
