//! kubectl, an old and a new version, against the server over TLS with a kubeconfig, as a person uses it.
//!
//! `tools/install-kubectl` fetches both. A version that is not there is named and skipped; in CI that is a failure.

mod apps;
mod custom;
mod made;
mod program;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use kubeedge_actors::apiserver::{Config, Handle, Listen, Server, write_kubeconfig};
use kubeedge_actors::identity::{CertificateAuthority, ClientAuth, server_config, system_clock};
use kubeedge_actors::store::Store;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::golden::client::Client;
use crate::skip::missing;
use program::Kubectl;

/// The oldest and the newest that is promised to work.
const VERSIONS: [&str; 2] = ["1.32", "1.36"];

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  nodeName: edge
  terminationGracePeriodSeconds: 1
  containers:
  - {name: one, image: registry.example/one:1, ports: [{containerPort: 80}]}
  - {name: two, image: registry.example/two:1}
";

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: edge, labels: {hall: three}}
";

/// A server over TLS with a kubeconfig in `folder`.
async fn server(folder: &Path) -> (Handle, Client) {
    let now = SystemTime::now();
    let authority = CertificateAuthority::load_or_create(&folder.join("pki"), now).unwrap();
    let names = [ServerName::try_from("127.0.0.1").unwrap()];
    let certificate = authority.issue_server(&names, now).unwrap();
    let tls = server_config(certificate.chain(), certificate.key(), ClientAuth::None, &[b"http/1.1"], system_clock());
    let listen = Listen::Tls { address: ([127, 0, 0, 1], 0).into(), config: Arc::new(tls.unwrap()) };
    let ca = authority.certificate_pem();
    let server = Server::start(Config::new(Store::in_memory(), listen, "secret".into(), ca.into())).await.unwrap();
    let url = format!("https://{}", server.address());
    write_kubeconfig(&folder.join("kubeconfig"), &url, ca, "secret").unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let client = Client::new(server.address(), "secret").over_tls(Arc::new(config));
    (server, client)
}

/// Runs `script` with each version that is here, each with a server of its own.
async fn with_each_version(name: &str, script: impl AsyncFn(&Kubectl)) {
    with_each_server(name, async |kubectl, _| script(kubectl).await).await;
}

/// The same, with a client for what stands beside kubectl.
async fn with_each_server(name: &str, script: impl AsyncFn(&Kubectl, Client)) {
    for version in VERSIONS {
        let folder = tempfile::tempdir().unwrap();
        let Some(kubectl) = Kubectl::find(version, folder.path()) else {
            missing(&format!("kubectl: {name}"), &format!("no kubectl {version}: run tools/install-kubectl"));
            continue;
        };
        let (server, client) = server(folder.path()).await;
        let said = kubectl.run("version").await;
        assert!(said.contains(&format!("Client Version: v{version}.")), "{said}");
        assert!(said.contains("Server Version: v1."), "{said}");
        script(&kubectl, client).await;
        server.stop().await;
        println!("{name}: kubectl {version}");
    }
}

/// Fails unless `text` has every one of `parts`.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// The words of the line that begins with `name`.
#[track_caller]
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    row.into_iter().find(|words| words.first() == Some(&name)).unwrap_or_else(|| panic!("no {name} in:\n{table}"))
}

#[tokio::test]
async fn get_shows_tables_documents_paths_selections_and_pages() {
    with_each_version("get", async |kubectl| {
        kubectl.write("node.yaml", NODE);
        kubectl.write("pod.yaml", POD);
        assert_eq!(kubectl.run("create -f node.yaml").await, "node/edge created\n");
        assert_eq!(kubectl.run("create -f pod.yaml").await, "pod/web created\n");
        let table = kubectl.run("get pods").await;
        assert_eq!(row(&table, "NAME"), ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        assert_eq!(row(&table, "web")[..4], ["web", "0/2", "Pending", "0"]);
        let wide = kubectl.run("get pods -o wide -A").await;
        assert!(row(&wide, "default").contains(&"edge"), "{wide}");
        assert_eq!(row(&kubectl.run("get nodes").await, "edge")[..3], ["edge", "Unknown", "<none>"]);
        has(&kubectl.run("get pods --show-labels -L app").await, &["app=web", "APP"]);

        has(&kubectl.run("get pod web -o yaml").await, &["kind: Pod", "image: registry.example/one:1", "uid: "]);
        let json: Value = serde_json::from_str(&kubectl.run("get pods -o json").await).unwrap();
        assert_eq!(json["kind"], "List");
        assert_eq!(json["items"][0]["spec"]["containers"][1]["name"], "two");
        let images = kubectl.run_with("get pod web -o", &["jsonpath={.spec.containers[*].image}"]).await;
        assert_eq!(images, "registry.example/one:1 registry.example/two:1");
        let columns = "custom-columns=NODE:.spec.nodeName,NAME:.metadata.name";
        assert_eq!(row(&kubectl.run_with("get pods -o", &[columns]).await, "edge"), ["edge", "web"]);

        for number in 0..7 {
            let made = kubectl.run(&format!("create configmap c{number} --from-literal=a={number}")).await;
            assert_eq!(made, format!("configmap/c{number} created\n"));
        }
        let maps = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "kube-root-ca.crt"];
        for (chunk, pages) in [(2, 4), (3, 3), (100, 1)] {
            let command = format!("get configmaps --chunk-size={chunk} -o name");
            let (names, urls) = kubectl.run_telling(&command).await;
            let names: Vec<&str> = names.lines().collect();
            assert_eq!(names, maps.map(|name| format!("configmap/{name}")), "--chunk-size={chunk}");
            let lists: Vec<_> = urls.iter().filter(|url| url.contains("/configmaps?")).collect();
            assert_eq!(lists.len(), pages, "--chunk-size={chunk}: {lists:?}");
            for (page, url) in lists.iter().enumerate() {
                assert!(url.contains(&format!("limit={chunk}")), "{url}");
                assert_eq!(url.contains("continue="), page > 0, "{url}");
            }
        }

        kubectl.run("label configmaps c1 c2 side=left").await;
        assert_eq!(kubectl.run("get cm -l side=left -o name").await, "configmap/c1\nconfigmap/c2\n");
        assert_eq!(kubectl.run("get cm -l side --field-selector metadata.name!=c1 -o name").await, "configmap/c2\n");
        assert_eq!(kubectl.run_with("get cm -o name -l", &["side in (left, right)"]).await.lines().count(), 2);
        assert_eq!(kubectl.run("get pods --field-selector spec.nodeName=edge -o name").await, "pod/web\n");
        has(&kubectl.fail("get pods --field-selector spec.nope=1").await, &["BadRequest", "spec.nope"]);
        has(&kubectl.fail("get pod nobody").await, &["(NotFound): pods \"nobody\" not found"]);
        has(&kubectl.run("get all").await, &["web"]);

        let mut watch = kubectl.start("get configmaps -w --no-headers --field-selector metadata.name=seen");
        kubectl.run("create configmap seen --from-literal=a=1").await;
        assert_eq!(watch.line().await[..2], ["seen", "1"]);
        kubectl.run_with("patch configmap seen -p", &[r#"{"data": {"b": "2"}}"#]).await;
        assert_eq!(watch.line().await[..2], ["seen", "2"]);
    })
    .await;
}

#[tokio::test]
async fn describe_shows_pods_nodes_and_maps_with_their_events() {
    with_each_version("describe", async |kubectl| {
        kubectl.write("node.yaml", NODE);
        kubectl.write("pod.yaml", &POD.replace("  nodeName: edge\n", "  nodeSelector: {hall: four}\n"));
        kubectl.run("apply -f node.yaml -f pod.yaml").await;
        kubectl.run("wait pod/web --for=condition=PodScheduled=false --timeout=30s").await;
        let pod = kubectl.run("describe pod web").await;
        has(&pod, &["Name:", "Containers:", "registry.example/two:1", "QoS Class:", "Node-Selectors:", "hall=four"]);
        has(&pod, &["Tolerations:", "node.kubernetes.io/unreachable:NoExecute op=Exists for 300s"]);
        has(&pod, &["Events:", "FailedScheduling"]);
        has(&kubectl.run("describe node edge").await, &["Taints:", "Unschedulable:", "hall=three", "Allocated"]);
        kubectl.run("create configmap words --from-literal=greeting=hello").await;
        has(&kubectl.run("describe configmap words").await, &["greeting:", "hello"]);
        kubectl.run("create secret generic key --from-literal=pin=1234").await;
        has(&kubectl.run("describe secret key").await, &["Opaque", "pin:  4 bytes"]);
        has(&kubectl.run("describe namespace default").await, &["Status:", "Active"]);
        has(&kubectl.run("describe serviceaccount default").await, &["Name:", "default"]);
        has(&kubectl.run("events --for pod/web").await, &["FailedScheduling"]);
    })
    .await;
}

#[tokio::test]
async fn objects_are_created_applied_edited_patched_labelled_and_deleted() {
    with_each_version("writes", async |kubectl| {
        kubectl.write("pod.yaml", POD);
        assert_eq!(kubectl.run("apply -f pod.yaml").await, "pod/web created\n");
        assert_eq!(kubectl.run("apply -f pod.yaml").await, "pod/web unchanged\n");
        kubectl.write("pod.yaml", &POD.replace("{app: web}", "{tier: front}").replace("one:1", "one:2"));
        assert_eq!(kubectl.run("apply -f pod.yaml").await, "pod/web configured\n");
        let labels = kubectl.run_with("get pod web -o", &["jsonpath={.metadata.labels}"]).await;
        assert_eq!(labels, r#"{"tier":"front"}"#);
        assert_eq!(kubectl.run("apply -f pod.yaml --dry-run=server").await, "pod/web unchanged (server dry run)\n");
        let refused = kubectl.fail("apply --server-side -f pod.yaml").await;
        has(&refused, &["server-side apply is not served by this API server", "leave out --server-side"]);
        let refused = kubectl.fail("create -f pod.yaml").await;
        has(&refused, &["(AlreadyExists)", "pods \"web\" already exists"]);
        kubectl.write("wrong.yaml", &POD.replace("name: web", "name: Wrong_").replace("image:", "imag:"));
        has(&kubectl.fail("create -f wrong.yaml").await, &["unknown field", "imag"]);

        kubectl.run("create configmap words --from-literal=a=1").await;
        kubectl.editor("s/a: \"1\"/a: edited/");
        assert_eq!(kubectl.run("edit configmap words").await, "configmap/words edited\n");
        assert_eq!(kubectl.run_with("get cm words -o", &["jsonpath={.data.a}"]).await, "edited");

        let strategic = r#"{"spec": {"containers": [{"name": "two", "image": "registry.example/two:2"}]}}"#;
        assert_eq!(kubectl.run_with("patch pod web -p", &[strategic]).await, "pod/web patched\n");
        let images = kubectl.run_with("get pod web -o", &["jsonpath={.spec.containers[*].image}"]).await;
        assert_eq!(images, "registry.example/one:2 registry.example/two:2");
        let merge = r#"{"data": {"a": null, "b": "merged"}}"#;
        kubectl.run_with("patch cm words --type=merge -p", &[merge]).await;
        let json = r#"[{"op": "test", "path": "/data/b", "value": "merged"}, {"op": "add", "path": "/data/c", "value": "json"}]"#;
        kubectl.run_with("patch cm words --type=json -p", &[json]).await;
        let data = kubectl.run_with("get cm words -o", &["jsonpath={.data}"]).await;
        assert_eq!(data, r#"{"b":"merged","c":"json"}"#);
        assert_eq!(kubectl.run_with("patch cm words --type=merge -p", &["{}"]).await, "configmap/words patched (no change)\n");
        kubectl.run("set image pod/web one=registry.example/one:3").await;
        has(&kubectl.run("get pod web -o yaml").await, &["registry.example/one:3"]);

        assert_eq!(kubectl.run("label cm words side=left").await, "configmap/words labeled\n");
        has(&kubectl.fail("label cm words side=right").await, &["--overwrite"]);
        kubectl.run("label cm words side=right --overwrite").await;
        assert_eq!(kubectl.run("annotate cm words note=n").await, "configmap/words annotated\n");
        let note = kubectl.run_with("get cm words -o", &["jsonpath={.metadata.annotations.note}"]).await;
        assert_eq!(note, "n");
        assert_eq!(kubectl.run("label cm words side-").await, "configmap/words unlabeled\n");
        assert_eq!(kubectl.run("get cm -l side -o name").await, "");
        kubectl.write("map.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}}"#);
        assert_eq!(kubectl.run("replace -f map.json").await, "configmap/words replaced\n");
        assert_eq!(kubectl.run_with("get cm words -o", &["jsonpath={.data}"]).await, "");

        has(&kubectl.run("delete cm words").await, &["configmap \"words\" deleted"]);
        has(&kubectl.fail("delete cm words").await, &["(NotFound)"]);
        kubectl.run("delete cm words --ignore-not-found").await;
        for name in ["x1", "x2", "y"] {
            kubectl.run(&format!("create configmap {name}")).await;
        }
        kubectl.run("label cm x1 x2 gone=soon").await;
        assert_eq!(kubectl.run("delete cm -l gone=soon").await.lines().count(), 2);
        assert_eq!(kubectl.run("get cm -o name").await, "configmap/kube-root-ca.crt\nconfigmap/y\n");
        // Nobody runs it: without force it would wait for its node.
        kubectl.run("delete pod web --now --wait=false").await;
        assert_eq!(row(&kubectl.run("get pods").await, "web")[2], "Terminating");
        let arguments = "delete pod web --grace-period=0 --force --timeout=30s";
        let forced = kubectl.start(arguments).end().await;
        has(&forced, &["pod \"web\" force deleted"]);
    })
    .await;
}

#[tokio::test]
async fn wait_returns_with_the_condition_the_value_and_the_end() {
    with_each_version("wait", async |kubectl| {
        kubectl.write("node.yaml", NODE);
        kubectl.run("create -f node.yaml").await;
        let waiting = kubectl.start("wait node/edge --for=condition=Ready --timeout=50s");
        let ready = r#"{"status": {"conditions": [{"type": "Ready", "status": "True"}]}}"#;
        kubectl.run_with("patch node edge --subresource=status --type=merge -p", &[ready]).await;
        assert_eq!(waiting.end().await, "node/edge condition met\n");
        assert_eq!(row(&kubectl.run("get nodes").await, "edge")[1], "Ready");

        kubectl.run("create configmap words --from-literal=a=1").await;
        let waiting = kubectl.start("wait cm/words --for=jsonpath={.data.a}=2 --timeout=50s");
        kubectl.run_with("patch cm words -p", &[r#"{"data": {"a": "2"}}"#]).await;
        assert_eq!(waiting.end().await, "configmap/words condition met\n");
        let waiting = kubectl.start("wait cm/words --for=delete --timeout=50s");
        kubectl.run("delete cm words").await;
        // Which of the two is first is not known; one that finds nothing prints nothing.
        assert!(["", "configmap/words condition met\n"].contains(&waiting.end().await.as_str()));
        kubectl.run("create configmap words").await;
        has(&kubectl.fail("wait cm/words --for=delete --timeout=1s").await, &["timed out waiting for the condition"]);

        // A namespace's deletion comes back when it is gone with all that was in it.
        kubectl.run("create namespace work").await;
        kubectl.run("create configmap words -n work").await;
        has(&kubectl.run("delete namespace work --timeout=50s").await, &["namespace \"work\" deleted"]);
        has(&kubectl.fail("get namespace work").await, &["(NotFound)"]);
        assert_eq!(kubectl.run("get cm -n work -o name").await, "");
    })
    .await;
}

#[tokio::test]
async fn nodes_are_cordoned_tainted_and_drained() {
    with_each_version("nodes", async |kubectl| {
        kubectl.write("node.yaml", NODE);
        kubectl.run("create -f node.yaml").await;
        let ready = r#"{"status": {"conditions": [{"type": "Ready", "status": "True"}]}}"#;
        kubectl.run_with("patch node edge --subresource=status --type=merge -p", &[ready]).await;
        assert_eq!(kubectl.run("cordon edge").await, "node/edge cordoned\n");
        kubectl.run("wait node/edge --for=jsonpath={.spec.taints[0].key}=node.kubernetes.io/unschedulable").await;
        assert_eq!(row(&kubectl.run("get nodes").await, "edge")[1], "Ready,SchedulingDisabled");
        assert_eq!(kubectl.run("uncordon edge").await, "node/edge uncordoned\n");
        assert_eq!(kubectl.run("taint node edge wet=yes:NoSchedule").await, "node/edge tainted\n");
        assert_eq!(kubectl.run("taint node edge wet-").await, "node/edge untainted\n");

        kubectl.write("pod.yaml", POD);
        kubectl.run("create -f pod.yaml").await;
        // What the node does: it ends the pod and says so by deleting it for good.
        let drain = kubectl.start("drain edge --force --timeout=50s");
        kubectl.run("wait pod/web --for=jsonpath={.metadata.deletionGracePeriodSeconds}=1 --timeout=30s").await;
        let conditions = kubectl.run_with("get pod web -o", &["jsonpath={.status.conditions[*].reason}"]).await;
        has(&conditions, &["EvictionByEvictionAPI"]);
        kubectl.start("delete pod web --grace-period=0 --force").end().await;
        has(&drain.end().await, &["evicting pod default/web", "pod/web evicted", "node/edge drained"]);
    })
    .await;
}

#[tokio::test]
async fn what_the_server_serves_is_discovered_and_explained_and_who_may_what_is_told() {
    with_each_version("discovery", async |kubectl| {
        let resources = kubectl.run("api-resources").await;
        assert_eq!(row(&resources, "configmaps"), ["configmaps", "cm", "v1", "true", "ConfigMap"]);
        assert_eq!(row(&resources, "leases"), ["leases", "coordination.k8s.io/v1", "true", "Lease"]);
        assert_eq!(row(&resources, "nodes"), ["nodes", "no", "v1", "false", "Node"]);
        let of_classes = ["runtimeclasses", "node.k8s.io/v1", "false", "RuntimeClass"];
        assert_eq!(row(&resources, "runtimeclasses"), of_classes);
        has(&kubectl.run("api-resources --namespaced=false -o name").await, &["nodes\n", "namespaces\n"]);
        has(&kubectl.run("api-resources --verbs=watch,patch -o wide").await, &["pods", "deletecollection"]);
        has(&kubectl.run("api-versions").await, &["coordination.k8s.io/v1\n", "v1\n"]);

        let pod = kubectl.run("explain pod").await;
        has(&pod, &["KIND:       Pod", "VERSION:    v1", "metadata", "spec", "<PodSpec>"]);
        let containers = kubectl.run("explain pod.spec.containers").await;
        has(&containers, &["FIELD: containers", "image", "<string>", "livenessProbe", "<Probe>"]);
        has(&kubectl.run("explain lease --recursive").await, &["holderIdentity", "leaseDurationSeconds"]);
        has(&kubectl.fail("explain pod.spec.nope").await, &["nope", "does not exist"]);

        assert_eq!(kubectl.run("auth can-i create pods").await, "yes\n");
        assert_eq!(kubectl.run("auth can-i * *").await, "yes\n");
        assert_eq!(kubectl.run("auth can-i get pods/status").await, "yes\n");
        has(&kubectl.run("auth whoami").await, &["Username", "Groups", "system:masters"]);
        let token = kubectl.run("create token default --duration=10m").await;
        assert_eq!(token.trim().split('.').count(), 3, "a token of three parts: {token}");
        assert_eq!(kubectl.run("get --raw /readyz").await, "ok");
        assert_eq!(
            kubectl.fail("nonsense").await.lines().next(),
            Some("error: unknown command \"nonsense\" for \"kubectl\"")
        );
    })
    .await;
}
