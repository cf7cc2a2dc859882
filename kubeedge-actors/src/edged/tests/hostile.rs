//! Pods with every wrong thing that one can write, and pods that come and go faster than they can run.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::*;

const MANY: usize = 60;

/// A pod that uses much of what a pod can have. No path leads out of the test's folder: what is wrong in it is not to
/// hurt the machine that runs the test.
fn rich(uid: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/x", "port": 1, "scheme": "HTTP", "host": "127.0.0.1",
        "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 5, "initialDelaySeconds": 3,
        "timeoutSeconds": 1, "failureThreshold": 2, "successThreshold": 1});
    let container = |name: &str| {
        json!({
            "name": name, "image": "app:1", "imagePullPolicy": "IfNotPresent", "command": ["/bin/app", "$(A)"],
            "args": ["x"], "workingDir": "/", "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File", "tty": false, "stdin": false,
            "env": [{"name": "A", "value": "b"},
                {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "none", "optional": true}}],
            "ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": "10m", "memory": "1Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}},
            "securityContext": {"runAsUser": 1000, "privileged": false, "procMount": "Default",
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch", "subPath": "a/b", "readOnly": true}],
            "lifecycle": {"preStop": {"sleep": {"seconds": 0}}},
            "livenessProbe": probe, "readinessProbe": {"exec": {"command": ["true"]}},
            "startupProbe": {"tcpSocket": {"port": "web", "host": "127.0.0.1"}, "failureThreshold": 100},
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "ns", "name": uid, "uid": uid, "labels": {"app": "x"}, "annotations": {"a": "b"}},
        "spec": {
            "terminationGracePeriodSeconds": 1, "restartPolicy": "Always", "activeDeadlineSeconds": 1000,
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}]},
            "hostname": "host", "subdomain": "sub", "hostNetwork": false, "hostPID": false,
            "hostAliases": [{"ip": "192.0.2.2", "hostnames": ["alias"]}],
            "imagePullSecrets": [{"name": "none"}], "runtimeClassName": "", "readinessGates": [{"conditionType": "x"}],
            "securityContext": {"fsGroup": 2000, "runAsNonRoot": true, "supplementalGroups": [1],
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]},
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "down", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}],
            "initContainers": [{"name": "side", "image": "app:1", "restartPolicy": "Always"}],
            "containers": [container("a"), {"name": "b", "image": "app:1"}],
        },
    })
}

fn junk() -> impl Strategy<Value = Value> {
    let texts =
        ["", "\0", "..", "../../../x", "a/b", "A_B", "é", "-1", "999999999999999999999", "$(A)$(", "\r\nX: y", " "];
    prop_oneof![
        4 => prop::sample::select(texts.to_vec()).prop_map(Value::from),
        1 => Just(Value::from("x".repeat(20_000))),
        2 => prop::sample::select(vec![0_i64, -1, 1, 65_536, i64::MAX, i64::MIN]).prop_map(Value::from),
        1 => Just(json!(1e300)),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(json!(null)),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => Just(json!([null, "x", {"x": []}])),
        1 => Just(json!({"csi": {"driver": "d"}, "exec": {"command": [""]}, "name": "a"})),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Put(Value),
    Remove,
    /// A list has its first item twice.
    Twice,
}

fn change() -> impl Strategy<Value = (prop::sample::Index, Change)> {
    let change = prop_oneof![8 => junk().prop_map(Change::Put), 2 => Just(Change::Remove), 2 => Just(Change::Twice)];
    (any::<prop::sample::Index>(), change)
}

/// The places of a value, `/spec/containers/0` and so on.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in inner {
        let place = format!("{at}/{key}");
        places(value, &place, found);
        found.push(place);
    }
}

fn spoil(pod: &mut Value, changes: &[(prop::sample::Index, Change)]) -> Vec<String> {
    let mut spoilt = Vec::new();
    for (which, change) in changes {
        let mut found = Vec::new();
        places(&pod["spec"], "/spec", &mut found);
        let place = which.get(&found).clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        match (change, pod.pointer_mut(parent).unwrap()) {
            (Change::Put(value), _) => *pod.pointer_mut(&place).unwrap() = value.clone(),
            (Change::Remove, Value::Object(fields)) => {
                fields.remove(key);
            }
            (Change::Remove, Value::Array(items)) => {
                items.remove(key.parse().unwrap());
            }
            (Change::Twice, Value::Array(items)) => items.push(items[0].clone()),
            _ => {}
        }
        spoilt.push(format!("{place}: {change:?}").chars().take(200).collect());
    }
    spoilt
}

#[actix_rt::test]
async fn a_pod_with_any_wrong_thing_in_it_says_so_and_disturbs_nobody() {
    let bench = bench(&[], true).await;
    bench.tell(&pod("well", "well")).await;
    bench.phase("well", "Running").await;
    let well = bench.runtime.pod("well");

    // The same pods in every run.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let changes = prop::collection::vec(change(), 1..4);
    let mut pods = Vec::new();
    for number in 0..MANY {
        let mut pod = rich(&format!("w{number}"));
        let spoilt = spoil(&mut pod, &changes.new_tree(&mut runner).unwrap().current());
        pods.push((pod, spoilt));
    }
    for (pod, _) in &pods {
        bench.tell(pod).await;
    }
    let mut refused = 0;
    for (pod, spoilt) in &pods {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let shown = format!("a status of {uid} that says what is wrong ({spoilt:?})");
        // It runs, or it is said why not: in the status, and in an event.
        let status = bench
            .until(&shown, |site| {
                let reports = lock(&site.reports);
                let (_, _, status) = reports.iter().rev().find(|(_, of, _)| of == uid)?;
                let named = |event: &Value| event["involvedObject"]["uid"] == uid && event["type"] == "Warning";
                let told = lock(&site.events).iter().any(named);
                (status["phase"] == "Running" || told).then(|| status.clone())
            })
            .await;
        assert!(status["conditions"].as_array().is_some_and(|all| !all.is_empty()), "{shown}: {status}");
        if status["phase"] == "Failed" {
            assert!(status["reason"].is_string() && status["message"].is_string(), "{shown}: {status}");
            refused += 1;
        }
    }
    assert!(refused > 0 && refused < MANY, "{refused} were refused");
    assert_eq!(bench.runtime.pod("well"), well, "the pod beside them is as it was");

    for (pod, _) in &pods {
        let mut deleted = pod.clone();
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        deleted["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        bench.tell(&deleted).await;
    }
    for (pod, _) in &pods {
        bench.ended(pod["metadata"]["uid"].as_str().unwrap()).await;
    }
    assert_eq!(bench.runtime.list_pods().await.unwrap().len(), 1);
    assert_eq!(bench.runtime.pod("well"), well);
    bench.stop().await;
}

#[actix_rt::test]
async fn a_running_pod_whose_new_version_is_no_pod_runs_on_and_ends_when_it_is_deleted() {
    let bench = bench(&[], true).await;
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    let before = bench.runtime.pod("u1");
    let mut nonsense = pod("p", "u1");
    nonsense["spec"]["containers"] = "none".into();
    bench.tell(&nonsense).await;
    let refused = |site: &Site| lock(&site.events).iter().any(|event| event["reason"] == "InvalidPod").then_some(());
    bench.until("InvalidPod", refused).await;
    assert_eq!(bench.runtime.pod("u1"), before);
    nonsense["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    bench.tell(&nonsense).await;
    bench.ended("u1").await;
    assert!(bench.runtime.pod("u1").sandboxes.is_empty(), "it is said when it is so");
    bench.stop().await;
}

#[actix_rt::test]
async fn of_a_pod_that_comes_again_and_again_under_its_name_the_last_one_runs() {
    let bench = bench(&[], true).await;
    bench.runtime.make_stubborn("a");
    for round in 0..100 {
        let uid = format!("u{round}");
        bench.tell(&pod("p", &uid)).await;
        // Some come to run first, most do not.
        if round % 20 == 0 {
            bench.phase(&uid, "Running").await;
        }
        let mut deleted = pod("p", &uid);
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        deleted["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        if round % 2 == 0 {
            bench.tell(&deleted).await;
        }
        bench.gone("p", &uid).await;
    }
    bench.tell(&pod("p", "last")).await;
    bench.phase("last", "Running").await;
    let pods = bench.runtime.list_pods().await.unwrap();
    let uids: Vec<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
    assert_eq!(uids, ["last"]);
    bench.gone("p", "last").await;
    bench.vanished("last").await;
    bench.stop().await;
}
