//! An edge without its cloud: what it starts by itself and how fast, what the cloud hears afterwards, and what becomes of
//! a node that was deleted meanwhile. One lab; the scenarios come one after the other.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, future::try_join_all};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, Node, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, WatchEvent, WatchParams},
};
use kubeedge_examples::{
    containerd::Tools,
    http,
    lab::{Lab, NODE},
};
use kubeedge_proto::cri::{
    ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStateValue, CreateContainerRequest,
    ImageSpec, ListContainersRequest, Mount, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest,
    StartContainerRequest,
};
use tokio::task::JoinSet;

use crate::{
    cluster::{NAMESPACE, apply, container, first, log_says, node_ready, pods, poll, running, uid},
    metaserver,
    report::{Outcome, Report},
};

const UP: &str = "autonomy::a_lab_comes_up";
const DOWN: &str = "autonomy::nothing_is_left_on_the_machine";
const BOOT: &str = "autonomy::ten_pods_boot_without_a_cloud_as_fast_as_the_runtime_can";
const BACK: &str = "autonomy::after_an_outage_the_cloud_is_right_within_ten_seconds";
const REIMAGED: &str = "autonomy::a_new_box_under_the_name_of_a_node_that_is_still_there_is_that_node";
const DELETED: &str = "autonomy::a_deleted_node_and_a_new_box_under_the_old_name_come_back";
const ALL: [&str; 4] = [BOOT, BACK, REIMAGED, DELETED];

const PODS: usize = 10;
/// What a boot may take: so many times the bare calls, and a constant.
const FACTOR: f64 = 1.3;
const CONSTANT: Duration = Duration::from_millis(300);
/// A machine that others use gives neither side steady times. Both are measured so often, one right after the other, and
/// their medians are compared: what slows the machine down for a while slows down both.
const ROUNDS: usize = 3;
/// From a link that is up to a cloud that is right.
const RIGHT_WITHIN: Duration = Duration::from_secs(10);
/// The outbox holds fewer events than the boot of ten pods makes.
const MAX_EVENTS: usize = 20;
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let mut site = None;
    let begin = async |lab: &mut Lab| {
        lab.start_registry()?;
        lab.start_containerd(tools).await?;
        lab.start_cloud().await?;
        let local = join(lab).await?;
        site = Some(lab.guarded(async |lab| Site::made(lab, local).await).await?);
        Ok(())
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    if let Some(mut site) = site {
        report.run(BOOT, boot(&mut lab, &mut site)).await;
        report.run(BACK, back(&mut lab, &site)).await;
        report.run(REIMAGED, reimaged(&mut lab, &site)).await;
        report.run(DELETED, deleted(&mut lab, &mut site)).await;
    }
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Makes the box a node, with a small outbox and a local API, and starts it; says where that API is.
async fn join(lab: &mut Lab) -> Result<SocketAddr> {
    lab.join().await?;
    let path = lab.folder().join("edge/edgecore.yaml");
    let text = fs::read_to_string(&path)?;
    let outbox = format!("  edgeHub:\n    outbox: {{maxEvents: {MAX_EVENTS}}}\n");
    let bounded = text.replacen("  edgeHub:\n", &outbox, 1);
    ensure!(bounded != text, "{} has no edgeHub:\n{text}", path.display());
    fs::write(&path, bounded)?;
    let local = metaserver::enable(lab)?;
    lab.start_edge()?;
    lab.guarded(async |lab| node_ready(&lab.client()?).await).await?;
    Ok(local)
}

/// The ten pods.
struct Site {
    /// By number.
    uids: Vec<String>,
    /// Their tokens while the cloud was there.
    tokens: Vec<String>,
    /// When the cloud went away.
    offline_since: Timestamp,
    /// The node's own API.
    local: SocketAddr,
}

fn name(number: usize) -> String {
    format!("ten-{number}")
}

impl Site {
    async fn made(lab: &Lab, local: SocketAddr) -> Result<Self> {
        let client = lab.client()?;
        apply(lab, "apiVersion: v1\nkind: Secret\nmetadata: {name: ten}\ndata: {password: dDBwLXNlY3JldA==}\n").await?;
        for number in 0..PODS {
            apply(lab, &manifest(number)).await?;
        }
        let mut site = Self { uids: Vec::new(), tokens: Vec::new(), offline_since: Timestamp::now(), local };
        for number in 0..PODS {
            let pod = running(&client, &name(number)).await?;
            let forever = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten()).any(|one| {
                one.key.as_deref() == Some("node.kubernetes.io/unreachable") && one.toleration_seconds.is_none()
            });
            ensure!(forever, "admission gave {} no toleration: {:?}", name(number), pod.spec);
            site.uids.push(uid(&pod)?);
        }
        site.tokens = site.read(lab, TOKEN).await?;
        Ok(site)
    }

    /// A file of every pod's container.
    async fn read(&self, lab: &Lab, path: &str) -> Result<Vec<String>> {
        let each = self.uids.iter().map(async |uid| {
            let container = container(lab, uid, "main").await?;
            lab.exec(&container.id, &["cat", path]).await
        });
        try_join_all(each).await
    }

    /// The container of every pod.
    async fn containers(&self, lab: &Lab) -> Result<Vec<String>> {
        try_join_all(self.uids.iter().map(async |uid| Ok(container(lab, uid, "main").await?.id))).await
    }

    /// Waits until a container of every pod runs.
    async fn runs(&self, lab: &Lab) -> Result<()> {
        let mut cri = lab.containerd()?.cri().await?;
        let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(running), ..ContainerFilter::default() };
        poll("a running container of each pod", async || {
            let request = ListContainersRequest { filter: Some(filter.clone()) };
            let listed = cri.list_containers(request).await?.into_inner().containers;
            let of = |uid: &String| listed.iter().any(|one| one.labels.get("io.kubernetes.pod.uid") == Some(uid));
            let count = self.uids.iter().filter(|uid| of(uid)).count();
            Ok(if count == self.uids.len() { Ok(()) } else { Err(format!("{count} of {}", self.uids.len())) })
        })
        .await
    }

    /// Waits until the node's own API lists every pod, and has the secret.
    async fn answers(&self) -> Result<()> {
        let get = async |path: &str| {
            let answer = http::get(self.local, path).await.map_err(|error| format!("{path}: {error:#}"))?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            if answer.status == 200 { Ok(text) } else { Err(format!("{path}: {} {text}", answer.status)) }
        };
        poll("the pods and their secret at the local API", async || {
            let found = async {
                let list: serde_json::Value = serde_json::from_str(&get("/api/v1/namespaces/default/pods").await?)
                    .map_err(|error| error.to_string())?;
                let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
                let has = |uid: &String| items.iter().any(|pod| pod["metadata"]["uid"] == uid.as_str());
                if !self.uids.iter().all(has) {
                    return Err(format!("{} pods of {}", items.len(), self.uids.len()));
                }
                let secret = get("/api/v1/namespaces/default/secrets/ten").await?;
                if secret.contains("dDBwLXNlY3JldA==") { Ok(()) } else { Err(format!("the secret is {secret}")) }
            };
            Ok(found.await)
        })
        .await
    }

    /// As time does it: every token that is kept has expired long ago. edgecore must not run.
    fn expire_tokens(&self, lab: &Lab) -> Result<()> {
        for uid in &self.uids {
            let path = lab.folder().join("edge/kubelet/pods").join(uid).join("tokens");
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let mut kept: serde_json::Value = serde_json::from_str(&text)?;
            let all = kept["kept"].as_array_mut().context("a list of tokens")?;
            ensure!(!all.is_empty(), "{} keeps no token", path.display());
            all.iter_mut().for_each(|one| one["expires_at"] = 1.into());
            fs::write(&path, kept.to_string())?;
        }
        Ok(())
    }

    /// Waits until the API has what the runtime has: the node Ready and of each pod the container that runs.
    async fn cloud_is_right(&self, lab: &Lab) -> Result<()> {
        let client = lab.client()?;
        let ids: Vec<_> = self.containers(lab).await?.into_iter().map(|id| format!("containerd://{id}")).collect();
        poll("what the runtime has, in the API", async || {
            let list = pods(&client).list(&ListParams::default()).await?.items;
            let wrong = (0..self.uids.len()).find_map(|number| {
                let pod = list.iter().find(|pod| pod.name_any() == name(number))?;
                let status = first(pod);
                let right = pod.uid().as_ref() == Some(&self.uids[number])
                    && status.is_some_and(|it| it.ready && it.container_id.as_ref() == Some(&ids[number]));
                (!right).then(|| format!("{}: {status:?}, it runs {}", name(number), ids[number]))
            });
            if let Some(wrong) = wrong {
                return Ok(Err(wrong));
            }
            let node = Api::<Node>::all(client.clone()).get(NODE).await?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
            Ok(if ready && list.len() == self.uids.len() {
                Ok(())
            } else {
                Err(format!("{} pods, {conditions:?}", list.len()))
            })
        })
        .await
    }
}

fn manifest(number: usize) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {}
  labels: {{app-offline.kubeedge.io: autonomy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: IfNotPresent
    command: [/bin/httpd, -f, -p, '8080', -h, /secret]
    volumeMounts: [{{name: secret, mountPath: /secret}}]
  volumes: [{{name: secret, secret: {{secretName: ten}}}}]
",
        name(number)
    )
}

/// The runtime's own time for the same ten: three calls a pod, all pods at once, nothing else.
async fn bare(lab: &Lab) -> Result<Duration> {
    let folder = lab.folder().join("bare");
    fs::create_dir_all(&folder)?;
    let (cri, image) = (lab.containerd()?.cri().await?, lab.busybox()?);
    let began = Instant::now();
    try_join_all((0..PODS).map(|number| {
        let (mut cri, image, folder) = (cri.clone(), image.clone(), folder.clone());
        async move {
            let pod = PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: format!("bare-{number}"),
                    uid: format!("00000000-0000-4000-8000-{number:012}"),
                    namespace: NAMESPACE.into(),
                    attempt: 0,
                }),
                hostname: format!("bare-{number}"),
                log_directory: folder.join(number.to_string()).to_string_lossy().into_owned(),
                ..PodSandboxConfig::default()
            };
            let run = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
            let pod_sandbox_id = cri.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
            let secret = Mount {
                container_path: "/secret".into(),
                host_path: folder.to_string_lossy().into_owned(),
                readonly: true,
                ..Mount::default()
            };
            let config = ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
                image: Some(ImageSpec { image, ..ImageSpec::default() }),
                command: ["/bin/httpd", "-f", "-p", "8080", "-h", "/secret"].map(str::to_owned).to_vec(),
                mounts: vec![secret],
                log_path: "main.log".into(),
                ..ContainerConfig::default()
            };
            let create = CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: Some(pod) };
            let container_id = cri.create_container(create).await?.into_inner().container_id;
            cri.start_container(StartContainerRequest { container_id }).await?;
            anyhow::Ok(())
        }
    }))
    .await?;
    let took = began.elapsed();
    lab.containerd()?.remove_all_pods().await?;
    Ok(took)
}

/// Nothing runs and no cloud is to be had, as after a power cut of the whole site.
async fn boot(lab: &mut Lab, site: &mut Site) -> Result<Outcome> {
    lab.stop_edge().await?;
    lab.stop_cloud().await?;
    site.offline_since = Timestamp::now();
    lab.containerd()?.remove_all_pods().await?;
    site.expire_tokens(lab)?;
    // Other work on the machine falls on either side: a series that misses the limit is taken once more.
    let first = series(lab, site).await?;
    if first.is_ok() {
        return Ok(Outcome::Proved);
    }
    lab.stop_edge().await?;
    lab.containerd()?.remove_all_pods().await?;
    let second = series(lab, site).await?;
    second.map_err(|why| anyhow::anyhow!("twice: {why}"))?;
    Ok(Outcome::Proved)
}

/// Boots and bare calls in turn; whether the boots kept to the limit.
async fn series(lab: &mut Lab, site: &mut Site) -> Result<Result<(), String>> {
    let (mut bares, mut boots) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Who is first changes: what grows or warms up favours neither.
        if round % 2 == 0 {
            bares.push(bare(lab).await?);
        }
        let began = Instant::now();
        lab.start_edge()?;
        lab.guarded(async |lab| tokio::try_join!(site.runs(lab), site.answers()).map(drop)).await?;
        boots.push(began.elapsed());
        let secrets = site.read(lab, "/secret/password").await?;
        ensure!(secrets.iter().all(|secret| secret == "t0p-secret"), "they see {secrets:?}");
        ensure!(site.read(lab, TOKEN).await? == site.tokens, "a token that has expired goes on being mounted");
        // The last one goes on.
        if round + 1 < ROUNDS {
            lab.stop_edge().await?;
            lab.containerd()?.remove_all_pods().await?;
        }
        if round % 2 == 1 {
            bares.push(bare(lab).await?);
        }
    }
    println!("     the bare calls for {PODS} pods take {bares:.2?}, boots {boots:.2?}");
    let (bare, took) = (median(bares), median(boots));
    let limit = bare.mul_f64(FACTOR) + CONSTANT;
    println!(
        "     medians: {PODS} pods run, and the local API has them, after {took:.2?}; the bare calls take {bare:.2?}, limit {limit:.2?}"
    );
    Ok(if took <= limit { Ok(()) } else { Err(format!("{took:?} for {PODS} pods, more than {limit:?}")) })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Still without a cloud: a container dies and is started again. Then the cloud is there.
async fn back(lab: &mut Lab, site: &Site) -> Result<Outcome> {
    ensure!(lab.edge_runs() && !lab.cloud_runs(), "the scenario before this one did not get that far");
    let victim = container(lab, &site.uids[0], "main").await?;
    lab.kill_container(&victim.id).await?;
    lab.guarded(async |lab| {
        poll("another container in its place", async || {
            let all = lab.containers(&site.uids[0]).await?;
            let again = all.iter().any(|one| one.running && one.id != victim.id);
            Ok(if again { Ok(()) } else { Err(format!("{all:?}")) })
        })
        .await
    })
    .await?;
    let last = format!("containerd://{}", container(lab, &site.uids[0], "main").await?.id);
    let said = lab.log("edgecore")?.len();
    let back_at = Timestamp::now();
    // Held until somebody watches what it tells.
    lab.freeze_edge()?;
    lab.resume_cloud().await?;
    let changes = Changes::of(lab.client()?, name(0)).await?;
    lab.thaw_edge()?;
    lab.guarded(async |lab| {
        log_says(lab, "edgecore", said, &["the link is up"]).await?;
        let up = Instant::now();
        site.cloud_is_right(lab).await?;
        let right = up.elapsed();
        poll("new tokens in all pods", async || {
            let tokens = site.read(lab, TOKEN).await?;
            let old = tokens.iter().zip(&site.tokens).filter(|(now, before)| now == before).count();
            Ok(if old == 0 { Ok(()) } else { Err(format!("{old} tokens are the old ones")) })
        })
        .await?;
        let renewed = up.elapsed();
        println!("     with the link up the cloud is right after {right:.2?}, all tokens are new after {renewed:.2?}");
        ensure!(right <= RIGHT_WITHIN, "the cloud is right after {right:?}, expected at most {RIGHT_WITHIN:?}");
        ensure!(renewed <= RIGHT_WITHIN, "tokens are new after {renewed:?}, expected at most {RIGHT_WITHIN:?}");

        let seen = poll("a change of the pod whose container died", async || {
            let seen = changes.containers();
            Ok(if seen.contains(&last) { Ok(seen) } else { Err(format!("{seen:?}")) })
        })
        .await?;
        let between: Vec<_> = seen.iter().filter(|id| !changes.before.contains(id) && **id != last).collect();
        ensure!(between.is_empty(), "the cloud heard of what had passed: {between:?}");
        let events = Api::<Event>::namespaced(lab.client()?, NAMESPACE);
        dropped(lab).await?;
        let old = events.list(&ListParams::default()).await?.items;
        let old = old.iter().filter(|event| {
            let pod = event.involved_object.kind.as_deref() == Some("Pod");
            let when = event.last_timestamp.as_ref().map(|Time(when)| *when);
            pod && when.is_some_and(|when| when < back_at && when >= site.offline_since)
        });
        let count = old.count();
        println!("     {count} events of the outage came, at most {MAX_EVENTS} were kept");
        ensure!(count <= MAX_EVENTS, "{count} events of the outage, the outbox holds {MAX_EVENTS}");
        Ok(())
    })
    .await?;
    Ok(Outcome::Proved)
}

/// Waits for the event that tells of dropped ones.
async fn dropped(lab: &Lab) -> Result<()> {
    let events = Api::<Event>::namespaced(lab.client()?, NAMESPACE);
    poll("an Event on the Node about those that were dropped", async || {
        let all = events.list(&ListParams::default()).await?.items;
        let told = all.iter().find(|event| event.reason.as_deref() == Some("EventsDropped"));
        Ok(match told {
            Some(event) => {
                println!("     {}", event.message.as_deref().unwrap_or_default());
                Ok(())
            }
            None => Err(format!("{} other events", all.len())),
        })
    })
    .await
}

/// Which containers a pod's status names from now on.
struct Changes {
    /// Those that it named before.
    before: Vec<String>,
    seen: Arc<Mutex<Vec<String>>>,
    _watching: JoinSet<()>,
}

impl Changes {
    async fn of(client: Client, name: String) -> Result<Self> {
        let api = pods(&client);
        let id = |pod: &Pod| first(pod).and_then(|status| status.container_id.clone());
        // From the list's version on: a server that has just started knows of no changes before it.
        let list = api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await?;
        let before = list.items.iter().filter_map(id).collect();
        let version = list.metadata.resource_version.context("the list has no resourceVersion")?;
        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut stream = Box::pin(api.watch(&only, &version).await?);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            while let Some(change) = stream.next().await {
                let seen = match change {
                    Ok(WatchEvent::Modified(pod)) => id(&pod),
                    Ok(WatchEvent::Bookmark(_)) => None,
                    // Shows in what is expected.
                    other => Some(format!("{other:?}")),
                };
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend(seen);
            }
        });
        Ok(Self { before, seen, _watching: watching })
    }

    fn containers(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The box dies and comes back without anything, joined anew under its name. Its Node is there and still says Ready.
async fn reimaged(lab: &mut Lab, site: &Site) -> Result<Outcome> {
    ensure!(lab.edge_runs() && lab.cloud_runs(), "the scenario before this one did not get that far");
    let nodes = Api::<Node>::all(lab.client()?);
    let uid = nodes.get(NODE).await?.uid();
    let before = site.containers(lab).await?;
    lab.kill_edge().await?;
    lab.wipe_edge().await?;
    join(lab).await?;
    lab.guarded(async |lab| {
        site.runs(lab).await?;
        site.cloud_is_right(lab).await
    })
    .await?;
    ensure!(nodes.get(NODE).await?.uid() == uid, "the Node was made anew");
    let anew = site.containers(lab).await?;
    ensure!(anew.iter().all(|id| !before.contains(id)), "a new box has nothing of the old one: {anew:?}");
    let secrets = site.read(lab, "/secret/password").await?;
    ensure!(secrets.iter().all(|secret| secret == "t0p-secret"), "they see {secrets:?}");
    Ok(Outcome::Proved)
}

/// The node was deleted while its box was away: first the box comes back, then another one under its name.
async fn deleted(lab: &mut Lab, site: &mut Site) -> Result<Outcome> {
    ensure!(lab.edge_runs() && lab.cloud_runs(), "the scenario before this one did not get that far");
    let client = lab.client()?;
    let nodes = Api::<Node>::all(client.clone());
    let first_uid = nodes.get(NODE).await?.uid();
    let before = site.containers(lab).await?;

    lab.stop_edge().await?;
    nodes.delete(NODE, &DeleteParams::default()).await?;
    // What a cluster's collector does with pods of a node that is not there.
    pods(&client).delete(&name(PODS - 1), &DeleteParams::default().grace_period(0)).await?;
    let collected = site.uids.pop().context("ten pods")?;
    lab.start_edge()?;
    lab.guarded(async |lab| {
        new_node(&nodes, &first_uid).await?;
        poll("the collected pod is gone from the runtime", async || {
            let (sandboxes, _) = lab.sandboxes(&collected).await?;
            Ok(if sandboxes.is_empty() { Ok(()) } else { Err(format!("{sandboxes:?}")) })
        })
        .await?;
        site.cloud_is_right(lab).await
    })
    .await?;
    let after = site.containers(lab).await?;
    ensure!(after[..] == before[..PODS - 1], "pods that are still wanted go on: were {before:?}, are {after:?}");

    let second_uid = nodes.get(NODE).await?.uid();
    lab.stop_edge().await?;
    nodes.delete(NODE, &DeleteParams::default()).await?;
    lab.wipe_edge().await?;
    join(lab).await?;
    lab.guarded(async |lab| {
        new_node(&nodes, &second_uid).await?;
        site.runs(lab).await?;
        site.cloud_is_right(lab).await
    })
    .await?;
    let anew = site.containers(lab).await?;
    ensure!(anew.iter().all(|id| !after.contains(id)), "a new box has nothing of the old one: {anew:?}");
    let secrets = site.read(lab, "/secret/password").await?;
    ensure!(secrets.iter().all(|secret| secret == "t0p-secret"), "they see {secrets:?}");
    Ok(Outcome::Proved)
}

/// Waits for a Node that is another object than this one, and Ready.
async fn new_node(nodes: &Api<Node>, old: &Option<String>) -> Result<()> {
    poll("a new Node, Ready", async || {
        let Some(node) = nodes.get_opt(NODE).await? else { return Ok(Err("no Node".into())) };
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True");
        Ok(if node.uid() != *old && ready { Ok(()) } else { Err(format!("{:?}, ready: {ready}", node.uid())) })
    })
    .await
}
