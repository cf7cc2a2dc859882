//! Pods behave as on any Kubernetes node. One lab; the scenarios run at the same time.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{Pod, Secret, Service},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use kubeedge_examples::{
    containerd::Tools,
    http,
    lab::{Lab, free_ports},
    leftovers::cgroups_naming,
};

use crate::{
    cluster::{
        NAMESPACE, apply, condition, container, delete, first, gone, nothing_left, nothing_stays, one_sandbox, page,
        page_becomes, pods, poll, restarts, running, statuses, tells, uid, until_pod, waits_for, write_config,
    },
    kubectl, kubectls, recreated,
    report::{Outcome, Report},
    resize, volumes, wrong_pods,
};

const UP: &str = "pods::a_lab_comes_up";
const DOWN: &str = "pods::nothing_is_left_on_the_machine";
const TUTORIAL: &str = "pods::a_pod_of_any_tutorial_runs_and_serves";
const TOOLBOX: &str = "pods::init_containers_users_host_ports_and_changed_secrets_work";
const ACCOUNT: &str = "pods::a_service_account_is_usable_against_the_api_server";
const POLICIES: &str = "pods::restart_policies_are_kept";
const CRASH: &str = "pods::a_crash_loop_backs_off_and_counts";
const NEVER_PULL: &str = "pods::a_missing_image_that_may_not_be_pulled_is_said";
const LATE_ENV: &str = "pods::a_container_waits_for_its_config_map_and_starts_by_itself";
const LATE_VOLUME: &str = "pods::a_volume_waits_for_its_config_map_and_the_pod_starts_by_itself";
const SERVICES: &str = "pods::the_services_of_its_namespace_are_in_a_pods_environment";
const GATED: &str = "pods::a_pod_is_ready_while_its_readiness_gate_is_open_in_the_api";
const REFUSED: &str = "pods::what_a_pod_may_not_have_or_do_is_said_in_its_status_and_events";
const CHANGED: &str = "pods::a_sandbox_that_dies_is_followed_by_another_with_its_containers";
const ALL: [&str; 21] = [
    TUTORIAL,
    TOOLBOX,
    ACCOUNT,
    POLICIES,
    CRASH,
    NEVER_PULL,
    LATE_ENV,
    LATE_VOLUME,
    SERVICES,
    GATED,
    REFUSED,
    CHANGED,
    kubectl::WATCH,
    kubectl::VERBS,
    kubectl::GRACE,
    resize::RESIZED,
    resize::SIDECAR,
    resize::DEBUGGED,
    volumes::LOCAL,
    recreated::RECREATED,
    wrong_pods::SAID,
];

/// Brings a lab up for all scenarios of this file and of [`kubectl`].
pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let Some((mut lab, folder)) = report.lab(UP, async |lab| up(lab, tools).await).await else { return };
    let ended = lab
        .guarded(async |lab| {
            report
                .together(vec![
                    (TUTORIAL, tutorial(lab).boxed_local()),
                    (TOOLBOX, toolbox(lab).boxed_local()),
                    (ACCOUNT, account(lab).boxed_local()),
                    (POLICIES, policies(lab).boxed_local()),
                    (CRASH, crash(lab).boxed_local()),
                    (NEVER_PULL, never_pull(lab).boxed_local()),
                    (LATE_ENV, late_env(lab).boxed_local()),
                    (LATE_VOLUME, late_volume(lab).boxed_local()),
                    (SERVICES, services(lab).boxed_local()),
                    (GATED, gated(lab).boxed_local()),
                    (REFUSED, refused(lab).boxed_local()),
                    (CHANGED, changed(lab).boxed_local()),
                    (kubectl::WATCH, kubectl::watch(lab).boxed_local()),
                    (kubectl::VERBS, kubectl::verbs(lab).boxed_local()),
                    (kubectl::GRACE, kubectl::grace(lab).boxed_local()),
                    (resize::RESIZED, resize::resized(lab).boxed_local()),
                    (resize::SIDECAR, resize::sidecar(lab).boxed_local()),
                    (resize::DEBUGGED, resize::debugged(lab).boxed_local()),
                    (volumes::LOCAL, volumes::local(lab).boxed_local()),
                ])
                .await;
            // By themselves: they keep the node busy.
            report.run_within(wrong_pods::SAID, wrong_pods::SAID_WITHIN, wrong_pods::said(lab)).await;
            report.run_within(recreated::RECREATED, recreated::limit(), recreated::recreated(lab)).await;
            Ok(())
        })
        .await;
    report.close(DOWN, lab, folder, ended).await;
}

/// Everything up to a node that is Ready.
pub(crate) async fn up(lab: &mut Lab, tools: Tools) -> Result<()> {
    lab.up(tools).await
}

async fn tutorial(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    apply(lab, include_str!("tutorial.yaml")).await?;
    let pod = running(&client, "shop").await?;
    let uid = uid(&pod)?;
    let status = pod.status.clone().unwrap_or_default();
    let ip = status.pod_ip.clone().unwrap_or_default();
    ensure!(status.host_ip.is_some() && status.start_time.is_some(), "hostIP and startTime are set: {status:?}");
    ensure!(status.qos_class.as_deref() == Some("Burstable"), "its QoS class is {:?}", status.qos_class);

    // It serves its own file system.
    let environment = page(&pod, "/work/env").await?;
    for line in [
        "PORT=8080",
        "GREETING=hello from a ConfigMap",
        "PASSWORD=t0p-Secret",
        "POD_NAME=shop",
        &format!("POD_IP={ip}"),
        "NODE_NAME=edge-1",
        &format!("MEMORY_LIMIT={}", 48 << 20),
        "GREETED=shop says hello from a ConfigMap, not $(GREETING)",
        "SHOP_LOG_LEVEL=debug",
        "username=admin",
        "HOSTNAME=shop",
        "PWD=/work",
    ] {
        ensure!(environment.lines().any(|found| found == line), "{line} is not in its environment:\n{environment}");
    }
    for (path, text) in [
        ("/work/note", "shared\n"),
        ("/etc/shop/conf/shop.properties", "color=blue\nsize=7\n"),
        ("/etc/secret/password", "t0p-Secret"),
        ("/etc/podinfo/cpu", "500"),
        ("/projected/level", "debug"),
        ("/projected/user", "admin"),
        ("/projected/namespace", "default"),
        ("/etc/hostname", "shop\n"),
    ] {
        let found = page(&pod, path).await?;
        ensure!(found == text, "{path} is {found:?}, expected {text:?}");
    }
    let labels = page(&pod, "/etc/podinfo/labels").await?;
    ensure!(labels.trim() == "app=\"shop\"\ntier=\"frontend\"", "labels: {labels:?}");
    let labelled = Patch::Merge(serde_json::json!({"metadata": {"labels": {"tier": "back"}}}));
    Api::<Pod>::namespaced(client.clone(), NAMESPACE).patch("shop", &PatchParams::default(), &labelled).await?;
    page_becomes(&pod, "/etc/podinfo/labels", "app=\"shop\"\ntier=\"back\"").await?;
    ensure!(page(&pod, "/projected/token").await?.split('.').count() == 3, "the projected token is a JWT");
    ensure!(page(&pod, "/etc/hosts").await?.contains(&format!("{ip}\tshop")), "/etc/hosts names the pod");

    let web = container(lab, &uid, "web").await?;
    let modes = lab
        .exec(&web.id, &["busybox", "stat", "-L", "-c", "%a", "/etc/shop/conf/shop.properties", "/etc/secret/password"])
        .await?;
    // fsGroup makes what the group may read readable for it.
    ensure!(modes == "640\n440\n", "modes of the mounted files: {modes:?}");
    let group = lab.exec(&web.id, &["busybox", "stat", "-c", "%g", "/work"]).await?;
    ensure!(group == "2000\n", "the group of an emptyDir is fsGroup: {group:?}");
    let refused = lab.exec(&web.id, &["sh", "-c", "echo x > /etc/shop/x"]).await;
    ensure!(refused.is_err(), "a volume mounted readOnly was written to");
    memory_limit(&web.id, 48 << 20)?;
    ensure!(statuses(&pod).len() == 2, "there is a status of each container");

    logs(lab, &uid).await?;
    one_sandbox(lab, &uid).await?;
    delete(&client, "shop", 2).await?;
    gone(&client, "shop", &uid).await?;
    nothing_left(lab, &uid).await?;
    let volumes = lab.folder().join("edge/kubelet/pods").join(&uid);
    ensure!(!volumes.exists(), "{} is left of a pod that is gone", volumes.display());
    let logs = lab.pod_logs(NAMESPACE, "shop", &uid);
    ensure!(!logs.exists(), "{} is left of a pod that is gone", logs.display());
    Ok(Outcome::Proved)
}

/// `<log folder>/<namespace>_<name>_<uid>/<container>/0.log`, a line each: time, stream, F, text.
async fn logs(lab: &Lab, uid: &str) -> Result<()> {
    let path = lab.pod_logs(NAMESPACE, "shop", uid).join("sidecar/0.log");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    let said = format!("sidecar of {uid} is up");
    for (stream, message) in [("stdout", said.as_str()), ("stderr", "to stderr")] {
        let found = lines.iter().any(|line| {
            matches!(line.as_slice(), [time, of, "F", text]
                if time.parse::<k8s_openapi::jiff::Timestamp>().is_ok() && *of == stream && *text == message)
        });
        ensure!(found, "{} has no line of {stream} with {message:?}:\n{text}", path.display());
    }
    ensure!(lab.pod_logs(NAMESPACE, "shop", uid).join("web/0.log").is_file(), "the other container has a log, too");
    Ok(())
}

/// The kernel enforces the limit, whichever version of control groups has the memory controller.
fn memory_limit(container_id: &str, bytes: u64) -> Result<()> {
    let groups = cgroups_naming(container_id)?;
    let files = ["memory.limit_in_bytes", "memory.max"];
    let found: Vec<String> =
        groups.iter().flat_map(|group| files.map(|file| group.join(file))).flat_map(fs::read_to_string).collect();
    ensure!(found.iter().any(|limit| limit.trim() == bytes.to_string()), "memory limits {found:?}, expected {bytes}");
    Ok(())
}

async fn toolbox(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let out = lab.folder().join("toolbox");
    fs::create_dir(&out)?;
    // The container's user is not root.
    fs::set_permissions(&out, PermissionsExt::from_mode(0o777))?;
    let [host_port] = free_ports()?;
    let manifest = include_str!("toolbox.yaml").replace("OUT", &utf8(&out)?);
    apply(lab, &manifest.replace("HOSTPORT", &host_port.to_string())).await?;
    let pod = running(&client, "toolbox").await?;
    let uid = uid(&pod)?;
    let order = page(&pod, "/work/order").await?;
    ensure!(order == "first\nsecond\n1234\n", "the init containers ran so: {order:?}");
    let init = pod.status.clone().and_then(|status| status.init_container_statuses).unwrap_or_default();
    ensure!(init.len() == 2 && init.iter().all(|status| status.ready && status.restart_count == 0), "{init:?}");
    let host = pod.status.as_ref().and_then(|status| status.host_ip.clone()).context("hostIP")?;
    let answer = http::get((host.parse::<IpAddr>()?, host_port).into(), "/key/key").await?;
    ensure!(answer.body == b"one", "through the host's port: {:?}", String::from_utf8_lossy(&answer.body));

    let web = container(lab, &uid, "web").await?;
    let sh = async |script| lab.exec(&web.id, &["sh", "-c", script]).await;
    for (script, expected) in [
        ("id -u; id -g; id -G", "1000\n3000\n3000 2000\n"),
        ("hostname; echo $COLOR; echo ${MAYBE-unset}", "named\ngreen\nunset\n"),
        ("touch /x 2>/dev/null || echo read-only", "read-only\n"),
        ("grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n"),
        ("grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
        ("echo deep > /sub/file; cat /work/deep/er/file", "deep\n"),
        ("grep -c ' /scratch tmpfs ' /proc/mounts", "1\n"),
        ("ls /maybe", ""),
        ("echo outside > /out/story", ""),
        ("grep alias /etc/hosts", "192.0.2.7\talias.example\n"),
        ("grep -c search.example /etc/resolv.conf", "1\n"),
    ] {
        let printed = sh(script).await?;
        ensure!(printed == expected, "{script} printed {printed:?}, expected {expected:?}");
    }

    ensure!(fs::read_to_string(out.join("story"))? == "outside\n", "a hostPath is the host's folder");
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let change = serde_json::json!({ "stringData": { "key": "two" } });
    secrets.patch("toolbox", &PatchParams::default(), &Patch::Merge(change)).await?;
    page_becomes(&pod, "/key/key", "two").await?;

    delete(&client, "toolbox", 1).await?;
    gone(&client, "toolbox", &uid).await?;
    nothing_left(lab, &uid).await?;
    Ok(Outcome::Proved)
}

async fn account(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    apply(lab, &serving("account", "/")).await?;
    let pod = running(&client, "account").await?;
    let read = async |file| page(&pod, &format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}")).await;
    let (token, ca, namespace) = (read("token").await?, read("ca.crt").await?, read("namespace").await?);
    ensure!(namespace == NAMESPACE, "its namespace is {namespace:?}");
    // What a client in the pod would be made of: the API's address, and these files.
    let mut config = Kubeconfig::read_from(lab.kubeconfig())?;
    for user in &mut config.auth_infos {
        user.auth_info = Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
    }
    for cluster in config.clusters.iter_mut().filter_map(|cluster| cluster.cluster.as_mut()) {
        cluster.certificate_authority_data = None;
        let file = lab.folder().join("account-ca.crt");
        fs::write(&file, &ca)?;
        cluster.certificate_authority = Some(utf8(&file)?);
    }
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let inside = Client::try_from(config)?;
    let review = SelfSubjectReview { metadata: ObjectMeta::default(), status: None };
    let review = Api::<SelfSubjectReview>::all(inside.clone()).create(&PostParams::default(), &review).await?;
    let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
    ensure!(user.as_deref() == Some("system:serviceaccount:default:default"), "the API takes it for {user:?}");
    let refused = Api::<Pod>::namespaced(inside, NAMESPACE).list(&Default::default()).await;
    let code = match refused {
        Err(kube::Error::Api(status)) => status.code,
        other => anyhow::bail!("a service account without rights was not refused: {other:?}"),
    };
    ensure!(code == 403, "it was refused with {code}");
    Ok(Outcome::Proved)
}

async fn policies(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let once = "if [ -e /work/been ]; then exit 0; fi; touch /work/been; exit 5";
    apply(lab, &script("on-failure", "OnFailure", once)).await?;
    apply(lab, &script("never", "Never", "exit 3")).await?;
    apply(lab, &script("always", "Always", "exit 0")).await?;
    apply(lab, &script("done", "OnFailure", "exit 0")).await?;

    let pod = until_pod(&client, "on-failure", "Succeeded", |pod| phase(pod) == "Succeeded").await?;
    ensure!(restarts(&pod) == 1, "failed once, started again {} times", restarts(&pod));
    let last = first(&pod).and_then(|status| status.last_state.clone()).and_then(|state| state.terminated);
    ensure!(last.as_ref().is_some_and(|last| last.exit_code == 5), "its last state is {last:?}");

    let pod = until_pod(&client, "never", "Failed", |pod| phase(pod) == "Failed").await?;
    let ended = first(&pod).and_then(|status| status.state.clone()).and_then(|state| state.terminated);
    ensure!(ended.as_ref().is_some_and(|it| it.exit_code == 3 && it.reason.as_deref() == Some("Error")), "{ended:?}");
    ensure!(restarts(&pod) == 0 && lab.containers(&uid(&pod)?).await?.len() == 1, "it was started again");

    let pod = until_pod(&client, "done", "Succeeded", |pod| phase(pod) == "Succeeded").await?;
    let ended = first(&pod).and_then(|status| status.state.clone()).and_then(|state| state.terminated);
    let completed = ended.as_ref().is_some_and(|it| it.exit_code == 0 && it.reason.as_deref() == Some("Completed"));
    ensure!(completed && restarts(&pod) == 0, "{ended:?}");

    let pod = until_pod(&client, "always", "one restart", |pod| restarts(pod) >= 1).await?;
    ensure!(phase(&pod) == "Running", "a pod that is always restarted is {}", phase(&pod));
    Ok(Outcome::Proved)
}

async fn crash(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    apply(lab, &script("crash", "Always", "echo boom; exit 9")).await?;
    let pod = until_pod(&client, "crash", "CrashLoopBackOff after a restart", |pod| {
        restarts(pod) >= 1 && waits_for(pod).is_some_and(|(reason, _)| reason == "CrashLoopBackOff")
    })
    .await?;
    let (_, message) = waits_for(&pod).unwrap_or_default();
    ensure!(message.contains("restarting failed container"), "it says {message:?}");
    let last = first(&pod).and_then(|status| status.last_state.clone()).and_then(|state| state.terminated);
    ensure!(last.as_ref().is_some_and(|last| last.exit_code == 9), "its last state is {last:?}");
    // The back-off ends: it is tried again.
    let count = restarts(&pod);
    until_pod(&client, "crash", "one more restart", |pod| restarts(pod) > count).await?;
    let uid = uid(&pod)?;
    one_sandbox(lab, &uid).await?;
    // Of what has ended the newest two stay, and their logs.
    poll("the newest two of at least three instances", async || {
        let attempts: Vec<u32> = lab.containers(&uid).await?.iter().map(|instance| instance.attempt).collect();
        let newest = matches!(attempts[..], [older, newest] if older > 0 && newest == older + 1);
        Ok(if newest { Ok(()) } else { Err(format!("{attempts:?}")) })
    })
    .await?;
    let log = lab.pod_logs(NAMESPACE, "crash", &uid).join("main/0.log");
    poll("the first log goes with its instance", async || {
        Ok(if log.exists() { Err(log.display().to_string()) } else { Ok(()) })
    })
    .await?;
    let back_off = format!("Back-off restarting failed container main in pod crash_{NAMESPACE}({uid})");
    let pulled = format!("Container image \"{}\" already present on machine", lab.busybox()?);
    let told = [
        ("Normal", "Pulled", pulled.as_str()),
        ("Normal", "Created", "Created container: main"),
        ("Normal", "Started", "Started container main"),
        ("Warning", "BackOff", &back_off),
    ];
    tells(&client, &pod, &told).await?;
    if kubectls::newest().is_some() {
        let described = kubectl::run(lab, &["describe", "pod", "crash"]).await?;
        let line = described.lines().find(|line| line.contains(&back_off));
        let columns: Vec<&str> = line.unwrap_or_default().split_whitespace().take(2).collect();
        ensure!(columns == ["Warning", "BackOff"], "{described}");
    }
    Ok(Outcome::Proved)
}

/// Whoever the gate belongs to opens it by a status patch; the node reads it and leaves it as it is.
async fn gated(lab: &Lab) -> Result<Outcome> {
    let (client, name, gate) = (lab.client()?, "gated", "example.com/open");
    let manifest = serving(name, "/")
        .replace("  containers:", &format!("  readinessGates: [{{conditionType: {gate}}}]\n  containers:"));
    apply(lab, &manifest).await?;
    let until = async |what: &str, ready: (&str, &str, &str)| {
        until_pod(&client, name, what, |pod| condition(pod, "Ready") == Some(ready)).await
    };
    let turn = async |status: &str| {
        let conditions = serde_json::json!({"status": {"conditions": [{"type": gate, "status": status}]}});
        pods(&client).patch_status(name, &PatchParams::default(), &Patch::Strategic(conditions)).await
    };
    let missing = format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.");
    let pod =
        until("not ready for want of the condition", ("False", "ReadinessGatesNotReady", missing.as_str())).await?;
    ensure!(condition(&pod, "ContainersReady") == Some(("True", "", "")), "{:?}", pod.status);
    turn("False").await?;
    let closed = format!("the status of pod readiness gate \"{gate}\" is not \"True\", but False");
    until("not ready for the condition", ("False", "ReadinessGatesNotReady", closed.as_str())).await?;
    turn("True").await?;
    let pod = until("ready", ("True", "", "")).await?;
    ensure!(condition(&pod, gate) == Some(("True", "", "")), "the gate is not the node's: {:?}", pod.status);
    turn("Unknown").await?;
    let closed = closed.replace("but False", "but Unknown");
    let pod = until("not ready again", ("False", "ReadinessGatesNotReady", closed.as_str())).await?;
    ensure!(restarts(&pod) == 0 && condition(&pod, gate) == Some(("Unknown", "", "")), "{:?}", pod.status);
    delete(&client, name, 1).await?;
    gone(&client, name, &uid(&pod)?).await?;
    Ok(Outcome::Proved)
}

async fn refused(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let with = |name: &str, spec: &str| {
        script(name, "Always", "sleep 1000").replace("  containers:", &format!("  {spec}\n  containers:"))
    };
    apply(lab, &with("as-root", "securityContext: {runAsNonRoot: true}")).await?;
    apply(lab, &with("sysctl", "securityContext: {sysctls: [{name: net.core.somaxconn, value: '1024'}]}")).await?;
    apply(lab, &with("too-long", "activeDeadlineSeconds: 1")).await?;
    let work = "{name: work, emptyDir: {}}";
    apply(lab, &script("csi", "Always", "sleep 1").replace(work, "{name: work, csi: {driver: csi.example.com}}"))
        .await?;
    apply(lab, &script("no-command", "Always", "").replace("[/bin/sh, -c, \"\"]", "[/bin/none]")).await?;

    let waiting = async |name: &str, reason: &str| {
        until_pod(&client, name, reason, |pod| waits_for(pod).is_some_and(|(why, _)| why == reason)).await
    };
    let pod = waiting("as-root", "CreateContainerConfigError").await?;
    let root = "container has runAsNonRoot and image will run as root";
    let (_, message) = waits_for(&pod).unwrap_or_default();
    ensure!(message.starts_with(root), "it says {message:?}");
    tells(&client, &pod, &[("Warning", "Failed", &format!("Error: {root}"))]).await?;

    let failed = |pod: &Pod| phase(pod) == "Failed";
    let why = async |name: &str| -> Result<(Pod, String, String)> {
        let pod = until_pod(&client, name, "Failed", failed).await?;
        let status = pod.status.clone().unwrap_or_default();
        Ok((pod, status.reason.unwrap_or_default(), status.message.unwrap_or_default()))
    };
    let (pod, reason, message) = why("sysctl").await?;
    let forbidden = "forbidden sysctl: \"net.core.somaxconn\" not allowlisted";
    ensure!(reason == "SysctlForbidden" && message == format!("Pod was rejected: {forbidden}"), "{reason}: {message}");
    tells(&client, &pod, &[("Warning", "SysctlForbidden", forbidden)]).await?;
    ensure!(lab.sandboxes(&uid(&pod)?).await?.0.is_empty(), "it was begun");

    let (pod, reason, message) = why("too-long").await?;
    let over = "Pod was active on the node longer than the specified deadline";
    ensure!((&*reason, &*message) == ("DeadlineExceeded", over), "{reason}: {message}");
    tells(&client, &pod, &[("Normal", "DeadlineExceeded", over)]).await?;

    let pod = waiting("csi", "ContainerCreating").await?;
    let mount = "MountVolume.SetUp failed for volume \"work\" : volume type csi is not supported: expected emptyDir, ";
    tells(&client, &pod, &[("Warning", "FailedMount", mount)]).await?;

    let pod = waiting("no-command", "RunContainerError").await?;
    let (_, message) = waits_for(&pod).unwrap_or_default();
    ensure!(message.contains("/bin/none"), "it says {message:?}");
    tells(&client, &pod, &[("Warning", "Failed", "/bin/none")]).await?;

    for name in ["as-root", "sysctl", "too-long", "csi", "no-command"] {
        let uid = uid(&pods(&client).get(name).await?)?;
        delete(&client, name, 1).await?;
        gone(&client, name, &uid).await?;
        nothing_stays(lab, &uid).await?;
    }
    Ok(Outcome::Proved)
}

/// The old one stays while it has what `kubectl logs --previous` shows.
async fn changed(lab: &Lab) -> Result<Outcome> {
    let (client, name) = (lab.client()?, "changed");
    apply(lab, &script(name, "Always", "while :; do sleep 1; done")).await?;
    let pod = running(&client, name).await?;
    let pod_uid = uid(&pod)?;
    let old = one_sandbox(lab, &pod_uid).await?;
    lab.kill_sandbox(&old).await?;
    let again = |pod: &Pod| restarts(pod) >= 1 && first(pod).is_some_and(|status| status.ready);
    let pod = until_pod(&client, name, "started again", again).await?;
    tells(&client, &pod, &[("Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")])
        .await?;
    let (sandboxes, ready) = lab.sandboxes(&pod_uid).await?;
    ensure!(sandboxes.len() == 2 && sandboxes.contains(&old) && ready == 1, "{sandboxes:?}, {ready} of them ready");
    delete(&client, name, 1).await?;
    gone(&client, name, &pod_uid).await?;
    nothing_left(lab, &pod_uid).await?;
    Ok(Outcome::Proved)
}

async fn never_pull(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let manifest =
        script("never-pull", "Always", "exit 0").replace("IfNotPresent", "Never").replace("IMAGE", "IMAGE-x");
    apply(lab, &manifest).await?;
    let pod = until_pod(&client, "never-pull", "ErrImageNeverPull", |pod| {
        waits_for(pod).is_some_and(|(reason, _)| reason == "ErrImageNeverPull")
    })
    .await?;
    let (_, message) = waits_for(&pod).unwrap_or_default();
    ensure!(message.contains("-x") && phase(&pod) == "Pending", "{} with {message:?}", phase(&pod));
    // Nothing holds its deletion up.
    delete(&client, "never-pull", 1).await?;
    gone(&client, "never-pull", &uid(&pod)?).await?;
    nothing_left(lab, &uid(&pod)?).await?;
    Ok(Outcome::Proved)
}

async fn late_env(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let manifest = serving("late-env", "/").replace(
        "    ports:",
        "    env:\n    - name: LATE\n      valueFrom: {configMapKeyRef: {name: late-env, key: word}}\n    ports:",
    );
    apply(lab, &manifest).await?;
    let pod = until_pod(&client, "late-env", "CreateContainerConfigError", |pod| {
        waits_for(pod).is_some_and(|(reason, _)| reason == "CreateContainerConfigError")
    })
    .await?;
    let (_, message) = waits_for(&pod).unwrap_or_default();
    ensure!(message.contains("configmap \"late-env\" not found"), "it says {message:?}");
    write_config(&client, "late-env", &[("word", "here")]).await?;
    let pod = running(&client, "late-env").await?;
    ensure!(restarts(&pod) == 0, "waiting is not restarting");
    let id = container(lab, &uid(&pod)?, "web").await?.id;
    let word = lab.exec(&id, &["sh", "-c", "echo $LATE"]).await?;
    ensure!(word == "here\n", "the variable is {word:?}");
    Ok(Outcome::Proved)
}

async fn late_volume(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let manifest = serving("late-volume", "/www")
        .replace("    ports:", "    volumeMounts: [{name: www, mountPath: /www}]\n    ports:")
        + "  volumes: [{name: www, configMap: {name: late-volume}}]\n";
    apply(lab, &manifest).await?;
    let pod = until_pod(&client, "late-volume", "ContainerCreating", |pod| {
        waits_for(pod).is_some_and(|(reason, _)| reason == "ContainerCreating")
    })
    .await?;
    write_config(&client, "late-volume", &[("index.html", "late")]).await?;
    let started = running(&client, "late-volume").await?;
    ensure!(started.metadata.uid == pod.metadata.uid && restarts(&started) == 0);
    let text = page(&started, "/index.html").await?;
    ensure!(text == "late", "the page is {text:?}");
    one_sandbox(lab, &uid(&pod)?).await?;
    Ok(Outcome::Proved)
}

/// A pod sees the Services of its namespace. It was told of them before it by as much as an API server has between two
/// writes; one that came too early ends, and sees them when it starts anew.
async fn services(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let service = "apiVersion: v1
kind: Service
metadata: {name: shop-db, namespace: default}
spec:
  selector: {app: shop-db}
  ports: [{name: sql, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: default}
spec:
  clusterIP: None
  selector: {app: shop-db}
  ports: [{port: 5432}]
";
    apply(lab, service).await?;
    let found = Api::<Service>::namespaced(client.clone(), NAMESPACE).get("shop-db").await?;
    let address = found.spec.and_then(|spec| spec.cluster_ip).context("the service has an address")?;
    let pod = |name: &str| {
        let script =
            "test -n \"$SHOP_DB_SERVICE_HOST$ALONE\" || exit 1; env > /work/env && exec httpd -f -p 8080 -h /work";
        self::script(name, "Always", script)
    };
    apply(lab, &pod("sees-services")).await?;
    let alone = pod("sees-none")
        .replace("  containers:", "  enableServiceLinks: false\n  containers:")
        .replace("    volumeMounts:", "    env: [{name: ALONE, value: 'yes'}]\n    volumeMounts:");
    apply(lab, &alone).await?;
    let environment = page(&running(&client, "sees-services").await?, "/env").await?;
    for line in [
        format!("SHOP_DB_SERVICE_HOST={address}"),
        "SHOP_DB_SERVICE_PORT=5432".into(),
        "SHOP_DB_SERVICE_PORT_SQL=5432".into(),
        format!("SHOP_DB_PORT=tcp://{address}:5432"),
        format!("SHOP_DB_PORT_5432_TCP_ADDR={address}"),
    ] {
        ensure!(environment.lines().any(|found| found == line), "{line} is not in its environment:\n{environment}");
    }
    let alone = page(&running(&client, "sees-none").await?, "/env").await?;
    for (environment, nothing) in [(&environment, "HEADLESS_"), (&environment, "KUBERNETES_"), (&alone, "SHOP_DB_")] {
        ensure!(!environment.contains(nothing), "{nothing} is in its environment:\n{environment}");
    }
    for name in ["sees-services", "sees-none"] {
        delete(&client, name, 1).await?;
    }
    for name in ["shop-db", "headless"] {
        Api::<Service>::namespaced(client.clone(), NAMESPACE).delete(name, &DeleteParams::default()).await?;
    }
    Ok(Outcome::Proved)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn utf8(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
}

/// A pod that serves the files of a folder.
pub(crate) fn serving(name: &str, folder: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: IMAGE
    imagePullPolicy: IfNotPresent
    command: [/bin/httpd, -f, -p, '8080', -h, {folder}]
    ports: [{{containerPort: 8080}}]
"
    )
}

/// A pod that runs a script, with a folder of its own at `/work`.
pub(crate) fn script(name: &str, policy: &str, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, {script:?}]
    volumeMounts: [{{name: work, mountPath: /work}}]
  volumes: [{{name: work, emptyDir: {{}}}}]
"
    )
}
