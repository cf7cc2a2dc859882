//! Pods with every wrong thing in them that one can write, the same ones in every run. The tests of Edged take them, on a
//! runtime in memory, and those of whole programs, through the API server to a real one.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

/// So many pods, `w0`, `w1` and so on, and what is wrong with each.
pub(crate) fn wrong_pods(many: usize, image: &str) -> Vec<(Value, Vec<String>)> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let changes = prop::collection::vec(change(), 1..4);
    let mut spoilt = |number| {
        let mut pod = rich(&format!("w{number}"), image);
        let changes = changes.new_tree(&mut runner).expect("nothing is filtered out").current();
        let what = spoil(&mut pod, &changes);
        (pod, what)
    };
    (0..many).map(&mut spoilt).collect()
}

/// A pod that uses much of what a pod can have. No path leads out of the test's folder: what is wrong in it is not to
/// hurt the machine that runs the test.
fn rich(uid: &str, image: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/x", "port": 1, "scheme": "HTTP", "host": "127.0.0.1",
        "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 5, "initialDelaySeconds": 3,
        "timeoutSeconds": 1, "failureThreshold": 2, "successThreshold": 1});
    let container = |name: &str| {
        json!({
            "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sleep", "$(A)"],
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
            "initContainers": [{"name": "side", "image": image, "restartPolicy": "Always"}],
            "containers": [container("a"), {"name": "b", "image": image}],
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
        let (parent, key) = place.rsplit_once('/').expect("a place that was found");
        match (change, pod.pointer_mut(parent).expect("a place that was found")) {
            (Change::Put(value), _) => *pod.pointer_mut(&place).expect("a place that was found") = value.clone(),
            (Change::Remove, Value::Object(fields)) => {
                fields.remove(key);
            }
            (Change::Remove, Value::Array(items)) => {
                items.remove(key.parse().expect("a place that was found"));
            }
            (Change::Twice, Value::Array(items)) => items.push(items[0].clone()),
            _ => {}
        }
        spoilt.push(format!("{place}: {change:?}").chars().take(200).collect());
    }
    spoilt
}
