use serde_json::{Value, json};

use super::{readings::DiskReading, *};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn settings() -> NodeSettings {
    NodeSettings::new("edge-1".parse().unwrap())
}

fn readings() -> MachineReadings {
    let disk = DiskReading { capacity: 100 << 30, available: 50 << 30, inodes: 1000, inodes_free: 900 };
    MachineReadings {
        cpus: 4,
        memory: 4_000_000 << 10,
        memory_available: 3_000_000 << 10,
        huge_pages: BTreeMap::from([(2 << 20, 10), (1 << 30, 0)]),
        disk,
        image_disk: disk,
        pids: 32768,
        pids_used: 100,
        machine_id: "m".to_owned(),
        system_uuid: "s".to_owned(),
        boot_id: "b".to_owned(),
        kernel_version: "6.1".to_owned(),
        os_image: "Some Linux".to_owned(),
        architecture: "arm64",
    }
}

fn runtime() -> RuntimeFacts {
    RuntimeFacts { version: "containerd://1.7.1".to_owned(), ..RuntimeFacts::default() }
}

fn status_with(runtime: &RuntimeFacts, pressure: Pressure, previous: Option<&NodeStatus>, second: i64) -> NodeStatus {
    let addresses = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
    node_status(&settings(), &readings(), &addresses, runtime, pressure, previous, at(second))
}

fn status() -> NodeStatus {
    status_with(&runtime(), Pressure::default(), None, 0)
}

fn condition<'a>(status: &'a NodeStatus, type_: &str) -> &'a NodeCondition {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_).unwrap()
}

#[test]
fn the_status_is_that_of_a_kubelet() {
    let time = "2023-11-14T22:13:20Z";
    let condition = |type_: &str, status: &str, reason: &str, message: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": time, "lastTransitionTime": time})
    };
    let expected = json!({
        "capacity": {"cpu": "4", "memory": "4000000Ki", "ephemeral-storage": "100Gi", "pods": "110",
                     "hugepages-2Mi": "20Mi", "hugepages-1Gi": "0"},
        "allocatable": {"cpu": "4", "memory": "3877120Ki", "ephemeral-storage": "90Gi", "pods": "110",
                        "hugepages-2Mi": "20Mi", "hugepages-1Gi": "0"},
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "addresses": [
            {"type": "InternalIP", "address": "192.0.2.7"},
            {"type": "InternalIP", "address": "2001:db8::7"},
            {"type": "Hostname", "address": "edge-1"},
        ],
        "nodeInfo": {
            "architecture": "arm64", "bootID": "b", "containerRuntimeVersion": "containerd://1.7.1",
            "kernelVersion": "6.1", "kubeProxyVersion": "", "kubeletVersion": KUBELET_VERSION, "machineID": "m",
            "operatingSystem": "linux", "osImage": "Some Linux", "systemUUID": "s",
        },
        "images": [],
    });
    let told: Value = serde_json::to_value(status()).unwrap();
    assert_eq!(told, expected);
    assert!(KUBELET_VERSION.starts_with("v1.32.10-kubeedge-v"));
}

#[test]
fn the_node_registers_with_its_labels_and_taints() {
    let mut settings = settings();
    settings.labels = BTreeMap::from([
        ("site".to_owned(), "north".to_owned()),
        ("kubernetes.io/hostname".to_owned(), "spoofed".to_owned()),
    ]);
    let taint = Taint { key: "edge".to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
    settings.taints = vec![taint.clone()];
    let node = node_object(&settings, status(), &readings());
    let labels = node.metadata.labels.unwrap();
    for (key, value) in [
        ("kubernetes.io/hostname", "edge-1"),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "arm64"),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", "arm64"),
        ("node-role.kubernetes.io/edge", ""),
        ("node-role.kubernetes.io/agent", ""),
        ("site", "north"),
    ] {
        assert_eq!(labels[key], value, "{key}");
    }
    let spec = node.spec.unwrap();
    assert_eq!((spec.taints.unwrap(), spec.unschedulable), (vec![taint], None));

    settings.schedulable = false;
    let spec = node_object(&settings, status(), &readings()).spec.unwrap();
    assert_eq!(spec.unschedulable, Some(true));
    assert_eq!(spec.taints.unwrap()[1].key, "node.kubernetes.io/unschedulable");
}

#[test]
fn what_is_reserved_is_kept_from_pods() {
    let mut settings = settings();
    settings.reserved = Allocatable {
        cpu: Quantity::milli(1500),
        memory: Quantity::bytes(1 << 30),
        ephemeral_storage: Quantity::bytes(200 << 30),
    };
    let rest = allocatable(&settings, &readings());
    assert_eq!(rest.cpu, Quantity::milli(2500));
    let kept = (1_u64 << 30) + (100 << 20) + (20 << 20);
    assert_eq!(rest.memory, Quantity::bytes((4_000_000 << 10) - kept));
    assert_eq!(rest.ephemeral_storage, Quantity::ZERO, "never less than nothing");
}

#[test]
fn a_condition_tells_since_when() {
    let first = status();
    let mut away = runtime();
    away.not_ready = vec!["container runtime is down".to_owned(), "network plugin is not ready".to_owned()];
    let second = status_with(&away, Pressure { disk: true, ..Pressure::default() }, Some(&first), 60);
    let ready = condition(&second, "Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("KubeletNotReady")));
    assert_eq!(ready.message.as_deref(), Some("container runtime is down, network plugin is not ready"));
    assert_eq!(ready.last_transition_time, Some(Time(at(60))));
    assert_eq!(condition(&second, "DiskPressure").reason.as_deref(), Some("KubeletHasDiskPressure"));
    assert_eq!(condition(&second, "MemoryPressure").last_transition_time, Some(Time(at(0))));
    let third = status_with(&away, Pressure::default(), Some(&second), 120);
    assert_eq!(condition(&third, "Ready").last_transition_time, Some(Time(at(60))));
    assert_eq!(condition(&third, "Ready").last_heartbeat_time, Some(Time(at(120))));
}

#[test]
fn a_heartbeat_alone_is_no_change() {
    let first = status();
    let second = status_with(&runtime(), Pressure::default(), Some(&first), 60);
    assert_ne!(first, second);
    assert!(!differs(&first, &second));
    let mut shuffled = second.clone();
    shuffled.conditions.as_mut().unwrap().reverse();
    assert!(!differs(&first, &shuffled));
    let pressed = status_with(&runtime(), Pressure { memory: true, ..Pressure::default() }, Some(&first), 60);
    assert!(differs(&first, &pressed));
    let mut moved = first.clone();
    moved.addresses = Some(vec![address("InternalIP", "192.0.2.8".to_owned())]);
    assert!(differs(&first, &moved));
}

#[test]
fn only_the_greatest_images_are_told_and_in_a_fixed_order() {
    let image = |n: u64| ImageFacts { names: (0..9).map(|tag| format!("i{n}:{tag}")).collect(), size: n / 2 };
    let mut runtime = runtime();
    runtime.images = (0..80).map(image).collect();
    runtime.images.push(ImageFacts { names: Vec::new(), size: 1000 });
    let first = status_with(&runtime, Pressure::default(), None, 0);
    let told = first.images.clone().unwrap();
    assert_eq!((told.len(), told[0].size_bytes, told[0].names.as_ref().unwrap().len()), (50, Some(39), 5));
    runtime.images.reverse();
    assert!(!differs(&first, &status_with(&runtime, Pressure::default(), Some(&first), 1)));
}

#[test]
fn with_a_gateway_there_is_no_hostname() {
    let mut settings = settings();
    (settings.hostname_address, settings.kubelet_port) = (false, 10350);
    let ip = ["192.0.2.7".parse().unwrap()];
    let status = node_status(&settings, &readings(), &ip, &runtime(), Pressure::default(), None, at(0));
    assert_eq!(status.addresses.unwrap().len(), 1);
    assert_eq!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10350);
}
