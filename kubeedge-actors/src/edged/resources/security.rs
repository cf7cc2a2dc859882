//! Who a container runs as and what it may do.

use std::path::Path;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile};
use kubeedge_proto::cri::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use thiserror::Error;

/// Files of `/proc` and `/sys` that a container does not see unless `procMount` is `Unmasked`.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Files that it may only read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The user that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// A number; 0 when the image names none.
    Uid(i64),
    /// A name, which only the runtime can look up.
    Name(String),
}

/// Why a container may not run: the message of `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecurityError {
    /// `runAsNonRoot` with `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsUserIsRoot {
        /// `name_namespace(uid)`
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot` and the image runs as root.
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageIsRoot {
        /// `name_namespace(uid)`
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot` and nobody knows whom the image runs as.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: {pod:?}, container: {container})"
    )]
    ImageUserUnknown {
        /// The image's user.
        user: String,
        /// `name_namespace(uid)`
        pod: String,
        /// The container.
        container: String,
    },
    /// A profile that cannot be had.
    #[error("container {container}: {field} is not valid: {reason}")]
    Profile {
        /// The container.
        container: String,
        /// `seccompProfile` or `appArmorProfile`.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// The security context of a container: its own over the pod's.
///
/// `kubelet_root` is where localhost seccomp profiles are looked for, in its folder `seccomp`.
pub fn container_security(
    pod: &Pod,
    container: &Container,
    image_user: &ImageUser,
    kubelet_root: &Path,
) -> Result<LinuxContainerSecurityContext, SecurityError> {
    let own = container.security_context.as_ref();
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let run_as_user = own.and_then(|own| own.run_as_user).or(of_pod.and_then(|pod| pod.run_as_user));
    let run_as_group = own.and_then(|own| own.run_as_group).or(of_pod.and_then(|pod| pod.run_as_group));
    let non_root = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|pod| pod.run_as_non_root));
    if non_root == Some(true) {
        check_non_root(pod, container, run_as_user, image_user)?;
    }
    let (uid, username) = match (run_as_user, image_user) {
        (Some(value), _) | (None, &ImageUser::Uid(value)) => (Some(Int64Value { value }), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
    };
    let unmasked = own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(|&p| p.to_owned()).collect() };
    let seccomp = own.and_then(|own| own.seccomp_profile.as_ref());
    let seccomp = seccomp.or(of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    let se_linux = own.and_then(|own| own.se_linux_options.as_ref());
    let se_linux = se_linux.or(of_pod.and_then(|pod| pod.se_linux_options.as_ref()));
    Ok(LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(|capabilities| Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: own.and_then(|own| own.privileged) == Some(true),
        namespace_options: Some(namespace_options(pod)),
        selinux_options: se_linux.map(se_linux_option),
        run_as_user: uid,
        run_as_username: username,
        run_as_group: run_as_group.map(|value| Int64Value { value }),
        readonly_rootfs: own.and_then(|own| own.read_only_root_filesystem) == Some(true),
        supplemental_groups: supplemental_groups(of_pod),
        no_new_privs: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp_profile(container, seccomp, kubelet_root)?),
        apparmor: apparmor_profile(pod, container)?,
        supplemental_groups_policy: groups_policy(of_pod).into(),
    })
}

fn check_non_root(
    pod: &Pod,
    container: &Container,
    run_as_user: Option<i64>,
    image_user: &ImageUser,
) -> Result<(), SecurityError> {
    let metadata = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let pod = format!("{}_{}({})", text(&metadata.name), text(&metadata.namespace), text(&metadata.uid));
    let container = container.name.clone();
    match (run_as_user, image_user) {
        (Some(0), _) => Err(SecurityError::RunAsUserIsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Uid(0)) => Err(SecurityError::ImageIsRoot { pod, container }),
        (None, ImageUser::Uid(_)) => Ok(()),
        (None, ImageUser::Name(user)) => Err(SecurityError::ImageUserUnknown { user: user.clone(), pod, container }),
    }
}

/// The security context of a pod's sandbox.
pub fn sandbox_security(pod: &Pod) -> LinuxSandboxSecurityContext {
    let spec = pod.spec.as_ref();
    let context = spec.and_then(|spec| spec.security_context.as_ref());
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let privileged =
        |container: &Container| container.security_context.as_ref().and_then(|own| own.privileged) == Some(true);
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options(pod)),
        selinux_options: context.and_then(|context| context.se_linux_options.as_ref()).map(se_linux_option),
        run_as_user: context.and_then(|context| context.run_as_user).map(|value| Int64Value { value }),
        run_as_group: context.and_then(|context| context.run_as_group).map(|value| Int64Value { value }),
        readonly_rootfs: false,
        supplemental_groups: supplemental_groups(context),
        privileged: containers.into_iter().any(privileged),
        // The sandbox's own process needs no more, whatever the containers ask for.
        seccomp: Some(profile(ProfileType::RuntimeDefault, String::new())),
        apparmor: None,
        supplemental_groups_policy: groups_policy(context).into(),
    }
}

/// Only of a pod whose runtime can keep it.
fn groups_policy(context: Option<&PodSecurityContext>) -> SupplementalGroupsPolicy {
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

/// Which namespaces a pod shares with the node, and its containers with each other.
pub fn namespace_options(pod: &Pod) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let is = |field: Option<bool>, mode, otherwise| if field == Some(true) { mode } else { otherwise };
    let shared = is(spec.and_then(|spec| spec.share_process_namespace), NamespaceMode::Pod, NamespaceMode::Container);
    NamespaceOption {
        network: is(spec.and_then(|spec| spec.host_network), NamespaceMode::Node, NamespaceMode::Pod).into(),
        pid: is(spec.and_then(|spec| spec.host_pid), NamespaceMode::Node, shared).into(),
        ipc: is(spec.and_then(|spec| spec.host_ipc), NamespaceMode::Node, NamespaceMode::Pod).into(),
        target_id: String::new(),
        userns_options: None,
    }
}

fn supplemental_groups(context: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(context) = context else { return Vec::new() };
    context.fs_group.iter().chain(context.supplemental_groups.iter().flatten()).copied().collect()
}

fn se_linux_option(options: &SELinuxOptions) -> SeLinuxOption {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

fn profile(profile_type: ProfileType, localhost_ref: String) -> SecurityProfile {
    SecurityProfile { profile_type: profile_type.into(), localhost_ref }
}

fn seccomp_profile(
    container: &Container,
    given: Option<&SeccompProfile>,
    kubelet_root: &Path,
) -> Result<SecurityProfile, SecurityError> {
    let invalid =
        |reason: String| SecurityError::Profile { container: container.name.clone(), field: "seccompProfile", reason };
    match given.map(|given| given.type_.as_str()) {
        None | Some("Unconfined") => Ok(profile(ProfileType::Unconfined, String::new())),
        Some("RuntimeDefault") => Ok(profile(ProfileType::RuntimeDefault, String::new())),
        Some("Localhost") => {
            let name = given.and_then(|given| given.localhost_profile.as_deref()).unwrap_or_default();
            let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
            if name.is_empty() || !Path::new(name).components().all(plain) {
                return Err(invalid(format!("localhostProfile {name:?}: expected a relative path without \"..\"")));
            }
            Ok(profile(ProfileType::Localhost, kubelet_root.join("seccomp").join(name).display().to_string()))
        }
        Some(other) => Err(invalid(format!("type {other:?}: expected RuntimeDefault, Localhost or Unconfined"))),
    }
}

/// The AppArmor profile: of the container, of the pod, or of the annotation that came before both.
fn apparmor_profile(pod: &Pod, container: &Container) -> Result<Option<SecurityProfile>, SecurityError> {
    let own = container.security_context.as_ref().and_then(|own| own.app_armor_profile.as_ref());
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let given = own.or(of_pod.and_then(|context| context.app_armor_profile.as_ref())).cloned();
    let Some(given) = given.or_else(|| annotated_apparmor(pod, container)) else { return Ok(None) };
    let invalid =
        |reason: String| SecurityError::Profile { container: container.name.clone(), field: "appArmorProfile", reason };
    match given.type_.as_str() {
        "RuntimeDefault" => Ok(Some(profile(ProfileType::RuntimeDefault, String::new()))),
        "Unconfined" => Ok(Some(profile(ProfileType::Unconfined, String::new()))),
        "Localhost" => match given.localhost_profile.filter(|name| !name.trim().is_empty()) {
            Some(name) => Ok(Some(profile(ProfileType::Localhost, name))),
            None => Err(invalid("localhostProfile: expected the name of a loaded profile".to_owned())),
        },
        other => Err(invalid(format!("type {other:?}: expected RuntimeDefault, Localhost or Unconfined"))),
    }
}

fn annotated_apparmor(pod: &Pod, container: &Container) -> Option<AppArmorProfile> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let (type_, localhost_profile) =
        match annotations.get(&format!("{APPARMOR_ANNOTATION}{}", container.name))?.as_str() {
            "" => return None,
            "runtime/default" => ("RuntimeDefault".to_owned(), None),
            "unconfined" => ("Unconfined".to_owned(), None),
            other => match other.strip_prefix("localhost/") {
                Some(name) => ("Localhost".to_owned(), Some(name.to_owned())),
                None => (other.chars().take(100).collect(), None),
            },
        };
    Some(AppArmorProfile { type_, localhost_profile })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(pod_context: Value, container_context: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {
                "securityContext": pod_context,
                "containers": [{"name": "c", "securityContext": container_context}],
            },
        }))
        .unwrap()
    }

    fn of(pod: &Pod, user: &ImageUser) -> Result<LinuxContainerSecurityContext, SecurityError> {
        container_security(pod, &pod.spec.as_ref().unwrap().containers[0], user, Path::new("/var/lib/kubelet"))
    }

    fn get(pod_context: Value, container_context: Value) -> LinuxContainerSecurityContext {
        of(&pod(pod_context, container_context), &ImageUser::Uid(0)).unwrap()
    }

    #[test]
    fn the_container_speaks_before_the_pod_and_the_image() {
        let uid = |context: &LinuxContainerSecurityContext| context.run_as_user.as_ref().map(|user| user.value);
        let merged = get(json!({"runAsUser": 1, "runAsGroup": 2}), json!({"runAsUser": 3}));
        assert_eq!((uid(&merged), merged.run_as_group.unwrap().value), (Some(3), 2));
        assert_eq!(uid(&get(json!({"runAsUser": 1}), json!({}))), Some(1));
        let image = of(&pod(json!({}), json!({})), &ImageUser::Uid(65532)).unwrap();
        assert_eq!((uid(&image), image.run_as_username.as_str()), (Some(65532), ""));
        let named = of(&pod(json!({}), json!({})), &ImageUser::Name("nobody".to_owned())).unwrap();
        assert_eq!((uid(&named), named.run_as_username.as_str()), (None, "nobody"));
    }

    #[test]
    fn who_must_not_be_root_is_not() {
        let non_root = json!({"runAsNonRoot": true});
        let plain = json!({});
        let message = |pod_context: &Value, own: &Value, user: ImageUser| {
            of(&pod(pod_context.clone(), own.clone()), &user).map(|_| ()).map_err(|error| error.to_string())
        };
        let place = "(pod: \"p_ns(u)\", container: c)";
        assert_eq!(
            message(&non_root, &plain, ImageUser::Uid(0)),
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        );
        assert_eq!(
            message(&non_root, &json!({"runAsUser": 0}), ImageUser::Uid(5)),
            Err(format!("container's runAsUser breaks non-root policy {place}"))
        );
        assert_eq!(
            message(&plain, &non_root, ImageUser::Name("app".to_owned())),
            Err(format!(
                "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root \
                 {place}"
            ))
        );
        assert_eq!(message(&non_root, &json!({"runAsUser": 7}), ImageUser::Name("root".to_owned())), Ok(()));
        assert_eq!(message(&non_root, &json!({"runAsNonRoot": false}), ImageUser::Uid(0)), Ok(()));
        assert_eq!(message(&non_root, &plain, ImageUser::Uid(1)), Ok(()));
    }

    #[test]
    fn what_a_container_may_do_is_passed_on() {
        let context = get(
            json!({"fsGroup": 10, "supplementalGroups": [20, 30], "seLinuxOptions": {"level": "s0:c1"}}),
            json!({
                "privileged": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            }),
        );
        assert!(context.privileged && context.readonly_rootfs && context.no_new_privs);
        let capabilities = context.capabilities.unwrap();
        assert_eq!(capabilities.add_capabilities, ["NET_ADMIN"]);
        assert_eq!(capabilities.drop_capabilities, ["ALL"]);
        assert_eq!(context.supplemental_groups, [10, 20, 30]);
        assert_eq!(context.selinux_options.unwrap().level, "s0:c1");
        let plain = get(json!({}), json!({}));
        assert!(!plain.privileged && !plain.readonly_rootfs && !plain.no_new_privs && plain.capabilities.is_none());
    }

    #[test]
    fn proc_is_masked_unless_it_is_asked_for() {
        let masked = get(json!({}), json!({"procMount": "Default"}));
        assert!(masked.masked_paths.contains(&"/proc/kcore".to_owned()));
        assert!(masked.readonly_paths.contains(&"/proc/sys".to_owned()));
        let unmasked = get(json!({}), json!({"procMount": "Unmasked"}));
        assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
    }

    #[test]
    fn seccomp_and_apparmor_profiles_are_found() {
        let localhost = json!({"type": "Localhost", "localhostProfile": "a/b.json"});
        let seccomp = |pod: Value, own: Value| get(pod, own).seccomp.unwrap();
        assert_eq!(seccomp(json!({}), json!({})).profile_type(), ProfileType::Unconfined);
        let default = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(seccomp(default.clone(), json!({})).profile_type(), ProfileType::RuntimeDefault);
        let local = seccomp(default, json!({"seccompProfile": localhost}));
        assert_eq!(local.localhost_ref, "/var/lib/kubelet/seccomp/a/b.json");
        for bad in [
            json!({"type": "Localhost", "localhostProfile": "../../etc/passwd"}),
            json!({"type": "Localhost"}),
            json!({"type": "Localhost", "localhostProfile": "/etc/x"}),
            json!({"type": "Other"}),
        ] {
            assert!(of(&pod(json!({"seccompProfile": bad}), json!({})), &ImageUser::Uid(0)).is_err());
        }
        assert_eq!(get(json!({}), json!({})).apparmor, None);
        let loaded = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}});
        assert_eq!(get(loaded, json!({})).apparmor.unwrap().localhost_ref, "mine");
        let mut annotated = pod(json!({}), json!({}));
        let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
        for (value, expected) in [
            ("runtime/default", Some(ProfileType::RuntimeDefault)),
            ("localhost/x", Some(ProfileType::Localhost)),
            ("?", None),
        ] {
            annotated.metadata.annotations = Some([(key.clone(), value.to_owned())].into());
            let found = of(&annotated, &ImageUser::Uid(0)).ok().map(|context| context.apparmor.unwrap().profile_type());
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn namespaces_are_shared_as_the_pod_says() {
        let modes = |spec: Value| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let options = namespace_options(&serde_json::from_value(json!({"spec": spec})).unwrap());
            (options.network(), options.pid(), options.ipc())
        };
        use NamespaceMode::{Container as Own, Node, Pod as Shared};
        assert_eq!(modes(json!({})), (Shared, Own, Shared));
        assert_eq!(modes(json!({"hostNetwork": true})), (Node, Own, Shared));
        assert_eq!(modes(json!({"hostPID": true, "shareProcessNamespace": true})), (Shared, Node, Shared));
        assert_eq!(modes(json!({"shareProcessNamespace": true, "hostIPC": true})), (Shared, Shared, Node));
    }

    #[test]
    fn a_sandbox_is_privileged_if_a_container_is() {
        assert!(!sandbox_security(&pod(json!({}), json!({}))).privileged);
        let context = sandbox_security(&pod(json!({"runAsUser": 5, "fsGroup": 6}), json!({"privileged": true})));
        assert!(context.privileged);
        assert_eq!((context.run_as_user.as_ref().unwrap().value, context.supplemental_groups), (5, vec![6]));
    }
}
