//! The labels and annotations on sandboxes and containers, by which they are found again.
//!
//! The labels are kubelet's own names, so that tools such as `crictl` show the same, and so that pods which a kubelet
//! (or KubeEdge's Go edgecore) left running are adopted and not started twice.

/// Name of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Uid of the pod: what adoption goes by.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Name of the container in the pod's spec.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Annotation: how many times the container was started before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: seconds a container may take to end, for a pod whose object is gone.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation: where in the container its last words are written.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation of ours: the image as the pod's spec had it, to see when the spec changes.
pub const SPEC_IMAGE: &str = "edge.kubeedge.io/spec-image";
/// Annotation of ours: what the container was made with, to see when the spec's resources change.
pub const SIZES: &str = "edge.kubeedge.io/resources";
/// Annotation of ours on the sandbox: when this node took up the pod (RFC 3339).
pub const POD_START: &str = "edge.kubeedge.io/pod-start";
