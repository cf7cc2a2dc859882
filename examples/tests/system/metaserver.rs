//! The local API of a node as programs on it use it: with kubectl and kube-rs, online, over a cut, and after a boot without a
//! cloud. Pods are in memory; everything else is real.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use kubeedge_examples::{
    http,
    lab::{Lab, NODE, free_ports, node_ready},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    cluster::{NAMESPACE, poll},
    kubectls,
    report::{Outcome, Report},
};

const UP: &str = "metaserver::a_lab_comes_up";
const DOWN: &str = "metaserver::nothing_is_left_on_the_machine";
const ONLINE: &str = "metaserver::kubectl_and_kube_rs_read_what_the_node_holds";
const CUT: &str = "metaserver::a_watch_outlives_the_link_and_repeats_nothing";
const BOOT: &str = "metaserver::a_node_that_boots_offline_serves_what_is_on_its_disk";
const PASSED: &str = "metaserver::what_is_not_held_and_every_write_is_the_clouds";
const ALL: [&str; 4] = [ONLINE, PASSED, CUT, BOOT];

/// For one thing to come about.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    let mut address = None;
    let begin = async |lab: &mut Lab| {
        lab.modules = vec![format!(
            "dynamicController: {{enable: true, grants: [{{nodes: [{NODE}], namespaces: [{NAMESPACE}], \
             apiGroups: [''], resources: [configmaps], \
             verbs: [get, create, update, patch, delete]}}]}}"
        )];
        lab.start_cloud().await?;
        address = Some(join(lab).await?);
        lab.start_edge_with(&["--fake-runtime"])?;
        lab.guarded(async |lab| {
            node_ready(lab.client()?).await?;
            make(&lab.client()?).await
        })
        .await
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    if let Some(address) = address {
        let site = Site { address, folder: lab.folder().join("kubectl-home") };
        report.run(ONLINE, lab.guarded(async |lab| online(lab, &site).await)).await;
        report.run(PASSED, lab.guarded(async |lab| passed(lab, &site).await)).await;
        report.run(CUT, cut(&mut lab, &site)).await;
        report.run(BOOT, boot(&mut lab, &site)).await;
    }
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Makes the machine a node with a local API, and says where that is.
async fn join(lab: &Lab) -> Result<SocketAddr> {
    lab.join().await?;
    enable(lab)
}

/// Turns the local API of a machine that has joined on, and says where it is.
pub(crate) fn enable(lab: &Lab) -> Result<SocketAddr> {
    let [port] = free_ports()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let path = lab.folder().join("edge/edgecore.yaml");
    let text = fs::read_to_string(&path)?;
    let settings = format!("modules:\n  metaManager: {{metaServer: {{enable: true, server: {address}}}}}\n");
    let with = text.replacen("modules:\n", &settings, 1);
    ensure!(with != text, "{} has no modules:\n{text}", path.display());
    fs::write(&path, with)?;
    Ok(address)
}

/// A pod, and what it names.
async fn make(client: &Client) -> Result<()> {
    let create = PostParams::default();
    let map = json!({"metadata": {"name": "menu"}, "data": {"soup": "1"}});
    let secret = json!({"metadata": {"name": "key"}, "data": {"password": "c2VjcmV0"}});
    Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE).create(&create, &serde_json::from_value(map)?).await?;
    Api::<Secret>::namespaced(client.clone(), NAMESPACE).create(&create, &serde_json::from_value(secret)?).await?;
    // Of nobody at this node.
    let other = json!({"metadata": {"name": "other"}});
    Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE).create(&create, &serde_json::from_value(other)?).await?;
    pod(client, "web").await
}

async fn pod(client: &Client, name: &str) -> Result<()> {
    let from = json!([{"configMapRef": {"name": "menu"}}, {"secretRef": {"name": "key"}}]);
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "registry.example/web:1", "envFrom": from}]},
    });
    let api = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    api.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    Ok(())
}

/// Where the local API is, and a home for kubectl.
struct Site {
    address: SocketAddr,
    folder: PathBuf,
}

impl Site {
    fn client(&self) -> Result<Client> {
        let url = format!("http://{}", self.address);
        Ok(Client::try_from(Config::new(url.parse()?))?)
    }

    /// The kubectls there are. In CI one that is missing is an error; elsewhere kube-rs alone is tried without any.
    fn kubectls() -> Result<Vec<PathBuf>> {
        match kubectls::all() {
            Some(found) => Ok(found.into_iter().map(|(_, program)| program).collect()),
            None => kubectls::missing().map(|_| Vec::new()),
        }
    }

    fn kubectl(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", &self.folder).env("KUBECONFIG", "/dev/null");
        command.arg("--server").arg(format!("http://{}", self.address)).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, program: &Path, line: &str) -> Result<String> {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = tokio::time::timeout(LIMIT, self.kubectl(program, &arguments).output()).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {line}: {}", said.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Until the pod is shown as running in a container that started at another time than `before`; when that was.
    async fn shows_running(&self, name: &str, before: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
        poll(&format!("{name} runs, the node says"), async || {
            let answer = match http::get(self.address, &path).await {
                Ok(answer) => answer,
                Err(error) => return Ok(Err(format!("{error:#}"))),
            };
            let pod: Value = serde_json::from_slice(&answer.body)?;
            let container = &pod["status"]["containerStatuses"][0];
            let started = container["state"]["running"]["startedAt"].as_str().unwrap_or_default();
            let runs = container["ready"] == true && !started.is_empty() && started != before;
            Ok(if runs { Ok(started.to_owned()) } else { Err(pod.to_string()) })
        })
        .await
    }

    /// Until the node's own object is there: it is asked for once the node has registered.
    async fn knows_its_node(&self) -> Result<()> {
        poll("the node is known", async || {
            let answer = http::get(self.address, &format!("/api/v1/nodes/{NODE}")).await?;
            Ok(if answer.status == 200 { Ok(()) } else { Err(String::from_utf8_lossy(&answer.body).into_owned()) })
        })
        .await
    }

    /// What any client sees of what the node holds.
    async fn holds(&self, pods: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = pods.iter().map(|name| (*name).to_owned()).collect();
        let client = self.client()?;
        let found = Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await?;
        let names: BTreeSet<String> = found.iter().map(|pod| pod.name_any()).collect();
        ensure!(names == wanted, "kube-rs lists {names:?}");
        let map = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE).get("menu").await?;
        ensure!(map.data.is_some_and(|data| data.contains_key("soup")), "the ConfigMap's data is not there");
        let secret = Api::<Secret>::namespaced(client, NAMESPACE).get("key").await?;
        ensure!(secret.data.is_some_and(|data| data["password"].0 == b"secret"), "the Secret's data is not there");
        for program in Self::kubectls()? {
            self.tables(&program, pods).await.with_context(|| program.display().to_string())?;
        }
        Ok(())
    }

    async fn tables(&self, program: &Path, pods: &[&str]) -> Result<()> {
        let table = self.run(program, "get pods").await?;
        ensure!(table.starts_with("NAME"), "{table}");
        for name in pods {
            let line = table.lines().find(|line| line.split(' ').next() == Some(name));
            ensure!(line.is_some_and(|line| line.contains("1/1") && line.contains("Running")), "{name} in:\n{table}");
        }
        let wide = self.run(program, "get pods -A -o wide -l app=web").await?;
        ensure!(wide.lines().count() == 2 && wide.contains(NODE), "{wide}");
        let json: Value = serde_json::from_str(&self.run(program, "get pod web -o json").await?)?;
        ensure!(json["spec"]["nodeName"] == NODE, "{json}");
        let yaml = self.run(program, "get configmap menu -o yaml").await?;
        ensure!(yaml.contains("soup:"), "{yaml}");
        let maps = self.run(program, "get cm -o name").await?;
        let nodes = self.run(program, "get nodes").await?;
        ensure!(nodes.lines().any(|line| line.starts_with(NODE) && line.contains(" Ready ")), "{nodes}");
        ensure!(maps.contains("configmap/menu") && !maps.contains("configmap/other"), "{maps}");
        Ok(())
    }
}

async fn online(lab: &Lab, site: &Site) -> Result<Outcome> {
    site.shows_running("web", "").await?;
    site.knows_its_node().await?;
    site.holds(&["web"]).await?;
    // The same object as in the cloud, but for what the node is not told.
    let local = Api::<Pod>::namespaced(site.client()?, NAMESPACE).get("web").await?;
    let cloud = Api::<Pod>::namespaced(lab.client()?, NAMESPACE).get("web").await?;
    ensure!(local.spec == cloud.spec && local.uid() == cloud.uid(), "{local:?}\n{cloud:?}");
    for program in Site::kubectls()? {
        let kinds = site.run(&program, "api-resources -o name --verbs=watch").await?;
        for kind in ["pods", "secrets", "persistentvolumeclaims", "devices.devices.kubeedge.io"] {
            ensure!(kinds.lines().any(|line| line == kind), "{kind} is not in:\n{kinds}");
        }
        let described = site.run(&program, "get pod web -o jsonpath={.status.phase}").await?;
        ensure!(described == "Running", "{described}");
    }
    Ok(Outcome::Proved)
}

/// What the node does not hold, and every write, is the cloud's; without a token only what is granted.
async fn passed(lab: &Lab, site: &Site) -> Result<Outcome> {
    let cloud = Api::<ConfigMap>::namespaced(lab.client()?, NAMESPACE);
    for (number, program) in Site::kubectls()?.into_iter().enumerate() {
        let run = async |line: &str| site.run(&program, line).await;
        let name = format!("made-{number}");
        run(&format!("create configmap {name} --from-literal=soup=1")).await?;
        let made = cloud.get(&name).await.context("made through the node")?;
        ensure!(made.data.is_some_and(|data| data["soup"] == "1"));
        // A pod of the node does not name it, so that it is shown out of the cloud.
        let shown = run(&format!("get configmap {name} -o jsonpath={{.data.soup}}")).await?;
        ensure!(shown == "1", "{shown}");
        run(&format!(r#"patch configmap {name} --type=merge -p {{"data":{{"soup":"2"}}}}"#)).await?;
        run(&format!("label configmap {name} day=monday")).await?;
        let patched = cloud.get(&name).await?;
        ensure!(patched.labels()["day"] == "monday" && patched.data.is_some_and(|data| data["soup"] == "2"));
        run(&format!("delete configmap {name}")).await?;
        ensure!(cloud.get_opt(&name).await?.is_none(), "{name} was deleted through the node");
        // Any kubelet may read these, and the API server's documents name them.
        let services = run("get services -A -o name").await?;
        ensure!(services.contains("service/kubernetes"), "{services}");
        let explained = run("explain services.spec.ports").await?;
        ensure!(explained.contains("targetPort"), "{explained}");
        for (line, why) in [
            ("create namespace mine", "without a token"),
            ("get secrets other", "not found"),
            ("create role mine --verb=get --resource=pods", "without a token"),
            ("delete pod web", "without a token"),
        ] {
            let Err(refused) = run(line).await else { bail!("kubectl {line} did something") };
            ensure!(format!("{refused:#}").contains(why), "kubectl {line}: {refused:#}");
        }
    }
    written_back(&site.client()?, &cloud).await?;
    let log = fs::read_to_string(lab.folder().join("cloudcore.log"))?;
    ensure!(Site::kubectls()?.is_empty() || log.contains("ApiRequest refused"), "no line of the audit log");
    Ok(Outcome::Proved)
}

/// Who reads an object here and writes it back is not told that somebody else wrote; who comes late is.
async fn written_back(client: &Client, cloud: &Api<ConfigMap>) -> Result<()> {
    let local = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let with = |mut map: ConfigMap, soup: &str| {
        map.data.get_or_insert_default().insert("soup".into(), soup.into());
        map
    };
    // As large as an object of its kind can be, up and down the link.
    let long = "x".repeat(1_000_000);
    let mut large = ConfigMap { data: Some([("long".to_owned(), long)].into()), ..ConfigMap::default() };
    large.metadata.name = Some("large".to_owned());
    local.create(&PostParams::default(), &large).await.context("a megabyte")?;
    ensure!(local.get("large").await?.data == large.data, "a megabyte comes back");
    local.delete("large", &DeleteParams::default()).await?;
    let first = local.get("menu").await?;
    let written = local.replace("menu", &PostParams::default(), &with(first.clone(), "4")).await?;
    let again = local.replace("menu", &PostParams::default(), &with(written, "5")).await?;
    ensure!(cloud.get("menu").await?.data == again.data, "the answer is the cloud's object");
    match local.replace("menu", &PostParams::default(), &with(first, "6")).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => bail!("a write by an old version: {other:?}"),
    }
    poll("what was written is here", async || {
        let here = local.get("menu").await?;
        Ok(if here.data == again.data { Ok(()) } else { Err(format!("{here:?}")) })
    })
    .await?;
    let here = local.get("menu").await?;
    local.replace("menu", &PostParams::default(), &with(here, "1")).await.context("the node's own number of it")?;
    poll("the old soup is here", async || {
        let here = local.get("menu").await?;
        Ok(if here.data.is_some_and(|data| data["soup"] == "1") { Ok(()) } else { Err("not yet".to_owned()) })
    })
    .await
}

/// One line for each event of a kind's objects.
fn said(event: &WatchEvent<ConfigMap>) -> String {
    let of = |what: &str, map: &ConfigMap| {
        format!(
            "{what} {} {}",
            map.name_any(),
            map.data.iter().flat_map(|data| data.get("soup")).map(String::as_str).collect::<String>()
        )
    };
    match event {
        WatchEvent::Added(map) => of("ADDED", map),
        WatchEvent::Modified(map) => of("MODIFIED", map),
        WatchEvent::Deleted(map) => of("DELETED", map),
        WatchEvent::Bookmark(_) => "BOOKMARK".to_owned(),
        WatchEvent::Error(status) => format!("ERROR {} {}", status.code, status.message),
    }
}

async fn change(lab: &Lab, soup: &str) -> Result<()> {
    let api = Api::<ConfigMap>::namespaced(lab.client()?, NAMESPACE);
    api.patch("menu", &PatchParams::default(), &Patch::Merge(json!({"data": {"soup": soup}}))).await?;
    Ok(())
}

/// The cloud is killed and comes back while somebody watches.
async fn cut(lab: &mut Lab, site: &Site) -> Result<Outcome> {
    let api = Api::<ConfigMap>::namespaced(site.client()?, NAMESPACE);
    let list = api.list(&ListParams::default()).await?;
    let from = list.metadata.resource_version.context("a list has a version")?;
    let mut events = pin!(api.watch(&WatchParams::default().timeout(280), &from).await?);
    let mut next = async || -> Result<String> {
        let event = tokio::time::timeout(LIMIT, events.try_next()).await.context("no event comes")??;
        event.as_ref().map(said).context("the watch has ended")
    };
    lab.guarded(async |lab| change(lab, "2").await).await?;
    let before = next().await?;
    ensure!(before == "MODIFIED menu 2", "{before}");
    lab.kill_cloud().await?;
    lab.resume_cloud().await?;
    lab.guarded(async |lab| change(lab, "3").await).await?;
    let after = next().await?;
    ensure!(after == "MODIFIED menu 3", "{after}");
    // Whoever comes back with what it saw last is told what came after it, and nothing else.
    let again = api.list(&ListParams::default()).await?.metadata.resource_version.context("a version")?;
    for (position, expected) in [(&from, &["2", "3"][..]), (&again, &[])] {
        let watched = api.watch(&WatchParams::default().timeout(1), position).await?;
        let told: Vec<String> = watched.map_ok(|event| said(&event)).try_collect().await?;
        let expected: Vec<String> = expected.iter().map(|soup| format!("MODIFIED menu {soup}")).collect();
        ensure!(told == expected, "from {position}: {told:?}");
    }
    Ok(Outcome::Proved)
}

/// Cloud away, edgecore killed: what is on the disk is served, and is all there was.
async fn boot(lab: &mut Lab, site: &Site) -> Result<Outcome> {
    lab.guarded(async |lab| pod(&lab.client()?, "db").await).await?;
    let db = site.shows_running("db", "").await?;
    let web = site.shows_running("web", "").await?;
    lab.kill_cloud().await?;
    site.holds(&["db", "web"]).await?;
    refuses_writes(site).await?;
    let before = Api::<ConfigMap>::namespaced(site.client()?, NAMESPACE).list(&ListParams::default()).await?;
    lab.kill_edge().await?;
    // A pod says when it started to the second: what starts anew has to do so in another one.
    while Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().as_str() <= db.as_str().max(&web) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.start_edge_with(&["--fake-runtime"])?;
    // Pods in memory ended with it, and are started anew.
    site.shows_running("web", &web).await?;
    site.shows_running("db", &db).await?;
    site.holds(&["db", "web"]).await?;
    refuses_writes(site).await?;
    let api = Api::<ConfigMap>::namespaced(site.client()?, NAMESPACE);
    let after = api.list(&ListParams::default()).await?;
    ensure!(
        before.items.iter().map(|map| &map.data).eq(after.items.iter().map(|map| &map.data)),
        "{before:?}\n{after:?}"
    );
    let old = before.metadata.resource_version.context("a list has a version")?;
    let told: Vec<String> =
        api.watch(&WatchParams::default().timeout(1), &old).await?.map_ok(|event| said(&event)).try_collect().await?;
    ensure!(matches!(told.as_slice(), [only] if only.starts_with("ERROR 410 ")), "{told:?}");
    for program in Site::kubectls()? {
        watched(site, &program).await.with_context(|| program.display().to_string())?;
    }
    lab.resume_cloud().await?;
    Ok(Outcome::Proved)
}

async fn refuses_writes(site: &Site) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let refused = http::post(site.address, &path, "Content-Type: application/json\r\n", b"{}").await?;
    let status: Value = serde_json::from_slice(&refused.body)?;
    ensure!(refused.status == 503 && status["reason"] == "ServiceUnavailable", "{status}");
    ensure!(status["message"].as_str().is_some_and(|message| message.contains("offline")), "{status}");
    ensure!(refused.head.to_ascii_lowercase().contains("retry-after: "), "{}", refused.head);
    // Of what is not held nobody can say here that it is not there.
    let unknown = http::get(site.address, "/api/v1/services").await?;
    ensure!(unknown.status == 503 && String::from_utf8_lossy(&unknown.body).contains("offline"), "{}", unknown.head);
    Ok(())
}

/// `kubectl get pods -w` shows what there is, and goes on.
async fn watched(site: &Site, program: &Path) -> Result<()> {
    let mut kubectl = site.kubectl(program, &["get", "pods", "-w"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(kubectl.stdout.take().context("its output is ours")?).lines();
    let mut missing = BTreeSet::from(["db", "web"]);
    let seen = async {
        while !missing.is_empty() {
            let line = lines.next_line().await?.context("kubectl has ended")?;
            missing.retain(|name| !line.starts_with(name));
        }
        Ok::<_, anyhow::Error>(())
    };
    let seen = tokio::time::timeout(LIMIT, seen).await;
    if kubectl.try_wait()?.is_some() {
        bail!("kubectl get -w has ended");
    }
    kubectl.kill().await?;
    seen.context("not all pods are shown")?
}
