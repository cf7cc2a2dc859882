use kubeedge_actors::config::{Loaded, TaintEffect, parse};

use super::*;

const KUBEEDGE: &str = include_str!("kubeedge.yaml");

fn read(text: &str) -> Loaded<EdgeCore> {
    parse("edgecore.yaml", text).unwrap()
}

fn refusal(text: &str) -> String {
    parse::<EdgeCore>("edgecore.yaml", text).unwrap_err().to_string()
}

#[test]
fn a_full_file_of_kubeedge_has_no_unknown_field() {
    let Loaded { value, unknown, without_effect } = read(KUBEEDGE);
    assert_eq!(unknown, Vec::<String>::new());
    for field in ["edgecoreVersion", "modules.edgeHub.messageQPS", "modules.eventBus.mqttPubClientID"] {
        assert!(without_effect.iter().any(|path| path == field), "{field}");
    }
    let EdgeCore { database, modules } = value;
    let Modules { edged, edge_hub, edge_stream, device_twin, event_bus, meta_manager, service_bus, views } = modules;
    assert_eq!((service_bus, views), (ServiceBus::default(), Views::default()), "KubeEdge's defaults, written out");
    assert_eq!(meta_manager, MetaManager::default(), "the same");
    assert_eq!((event_bus.mqtt_mode, event_bus.mqtt_qos), (MqttMode::External, 0));
    assert_eq!(device_twin.socket(), Path::new("/etc/kubeedge/dmi.sock"));
    assert!(!edge_stream.enable, "as the file has it");
    assert_eq!(database.store_folder(), PathBuf::from("/var/lib/kubeedge/edgecore.store"));
    assert_eq!(edge_hub.websocket.server.to_string(), "192.0.2.10:10000");
    assert_eq!(edge_hub.http_server.to_string(), "192.0.2.10:10002");
    assert_eq!(edge_hub.token.get(), None);
    assert_eq!(edge_hub.heartbeat_interval().as_secs(), 10);
    assert_eq!(edge_hub.identity_folder(), Ok(Path::new("/etc/kubeedge")));
    assert_eq!(edged.hostname_override.as_ref().map(NodeName::as_str), Some("edge-1"));
    assert_eq!(edged.node_ip, Some([192, 0, 2, 20].into()));
    assert_eq!(edged.node_labels["site"], "north");
    assert_eq!(edged.runtime_endpoint(), PathBuf::from("/run/containerd/containerd.sock"));
    assert!(!edged.report_event, "KubeEdge's default, written out");
    let kubelet = edged.tailored_kubelet_config;
    assert_eq!(kubelet.cgroup_driver, CgroupDriver::Systemd);
    assert!(kubelet.cgroups_per_qos);
    assert_eq!(kubelet.enforce_node_allocatable, ["pods"]);
    assert_eq!(kubelet.cluster_dns, [IpAddr::from([169, 254, 96, 16])]);
    assert_eq!(kubelet.register_with_taints[0].effect, TaintEffect::NoSchedule);
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let mut printed = read(DEFAULT_TEXT);
    // Written out for the reader; unset means the same.
    printed.value.modules.edged.tailored_kubelet_config.container_runtime_endpoint = None;
    let expected = Loaded { value: EdgeCore::default(), without_effect: vec![], unknown: vec![] };
    assert_eq!(printed, expected);
    assert_eq!(
        EdgeCore::default().modules.edged.runtime_endpoint(),
        read(DEFAULT_TEXT).value.modules.edged.runtime_endpoint()
    );
}

#[test]
fn the_printed_minimum_is_the_defaults() {
    let mut printed = read(MIN_TEXT);
    printed.value.modules.edged.tailored_kubelet_config.container_runtime_endpoint = None;
    assert_eq!(printed, Loaded { value: EdgeCore::default(), without_effect: vec![], unknown: vec![] });
}

#[test]
fn the_older_name_of_the_runtime_endpoint_is_read() {
    let edged = read("modules: {edged: {remoteRuntimeEndpoint: /run/crio/crio.sock}}").value.modules.edged;
    assert_eq!(edged.runtime_endpoint(), PathBuf::from("/run/crio/crio.sock"));
}

#[test]
fn a_mistyped_field_is_unknown() {
    let text = "modules: {edged: {hostnameOveride: a, tailoredKubeletConfig: {maxPod: 1}}, edgeHub: {heartBeat: 1}}";
    let paths =
        ["modules.edged.hostnameOveride", "modules.edged.tailoredKubeletConfig.maxPod", "modules.edgeHub.heartBeat"];
    assert_eq!(read(text).unknown, paths);
}

#[test]
fn impossible_values_are_refused_where_they_stand() {
    for (text, said) in [
        ("modules:\n  edgeHub:\n    heartbeat: 0\n", "3:16: modules.edgeHub.heartbeat: 0 is not valid"),
        ("modules: {edged: {nodeIP: 10.0.0}}", "modules.edged.nodeIP: invalid IP address syntax"),
        ("modules: {edged: {hostnameOverride: Edge_1}}", "modules.edged.hostnameOverride: node name \"Edge_1\""),
        (
            "modules: {edgeHub: {httpServer: \"http://cloud:10002\"}}",
            "modules.edgeHub.httpServer: \"http://cloud:10002\"",
        ),
        (
            "modules: {edgeHub: {websocket: {server: cloud}}}",
            "modules.edgeHub.websocket.server: \"cloud\" is not valid",
        ),
        ("modules: {serviceBus: {allow: [plc.local]}}", "modules.serviceBus.allow[0]: \"plc.local\" is not valid"),
        ("modules: {edged: {tailoredKubeletConfig: {maxPods: 0}}}", "tailoredKubeletConfig.maxPods: 0 is not valid"),
        (
            "modules: {edged: {tailoredKubeletConfig: {enforceNodeAllocatable: [pod]}}}",
            "enforceNodeAllocatable: \"pod\" is not valid, expected some of pods, none",
        ),
        ("modules: {edged: {tailoredKubeletConfig: {cgroupDriver: x}}}", "cgroupDriver: unknown variant `x`"),
        (
            "modules:\n  edgeHub:\n    outbox:\n      maxEvents: 0\n",
            "4:18: modules.edgeHub.outbox.maxEvents: 0 is not valid, expected from 1 to 1000000 events",
        ),
        (
            "modules: {edgeHub: {outbox: {maxBytes: 4096}}}",
            "modules.edgeHub.outbox.maxBytes: 4096 is not valid, expected from 131072 to 1073741824 bytes",
        ),
        ("modules: {edgeHub: {outbox: {maxBytes: 16Mi}}}", "outbox.maxBytes: expected a whole number"),
        ("modules: {eventBus: {mqttMode: 3}}", "modules.eventBus.mqttMode: 3 is not valid, expected 0, 1, 2 or auto"),
        ("modules: {eventBus: {mqttQOS: 3}}", "modules.eventBus.mqttQOS: 3 is not valid"),
        ("modules: {eventBus: {mqttServerExternal: \"ws://a:1\"}}", "mqttServerExternal: \"ws://a:1\" is not valid"),
        ("modules: {eventBus: {mqttServerInternal: \"ssl://a:1\"}}", "mqttServerInternal: \"ssl://a:1\" is not valid"),
        ("modules: {deviceTwin: {mapperRate: {burst: 0}}}", "modules.deviceTwin.mapperRate.burst: 0 is not valid"),
        ("modules: {edgeHub: {outbox: {maxAgeSeconds: 0}}}", "outbox.maxAgeSeconds: 0 is not valid"),
        ("kind: CloudCore", "1:7: kind: \"CloudCore\" is another document"),
    ] {
        let refusal = refusal(text);
        assert!(refusal.starts_with("edgecore.yaml:") && refusal.contains(said), "{text}: {refusal}");
    }
}

#[test]
fn a_brokers_address_has_one_of_two_schemes() {
    let external =
        |uri: &str| read(&format!("modules: {{eventBus: {{mqttServerExternal: \"{uri}\"}}}}")).value.modules.event_bus;
    for (said, meant) in
        [("mqtt://b:1883", "tcp://b:1883"), ("mqtts://b:8883", "ssl://b:8883"), ("tls://b:1", "ssl://b:1")]
    {
        assert_eq!(external(said).mqtt_server_external, meant);
    }
}

#[test]
fn the_socket_of_mappers_is_found_by_its_folder_or_by_an_older_files_own_name() {
    let socket = |path: &str| {
        read(&format!("modules: {{deviceTwin: {{dmiSockPath: {path}}}}}")).value.modules.device_twin.socket()
    };
    assert_eq!(socket("/run/x"), Path::new("/run/x/dmi.sock"));
    assert_eq!(socket("/run/x/old.sock"), Path::new("/run/x/dmi.sock"));
}

#[test]
fn a_heartbeat_is_never_slower_than_the_cloud_waits() {
    let heartbeat = |text: &str| read(text).value.modules.edge_hub.heartbeat_interval().as_secs();
    assert_eq!(heartbeat(""), 10);
    assert_eq!(heartbeat("modules: {edgeHub: {heartbeat: 3}}"), 3);
    assert_eq!(heartbeat("modules: {edgeHub: {heartbeat: 600}}"), 10);
}

#[test]
fn the_outbox_holds_what_the_file_says() {
    let bounds = |text: &str| read(text).value.modules.edge_hub.outbox.bounds();
    assert_eq!(bounds(""), Bounds::default());
    let asked = bounds("modules: {edgeHub: {outbox: {maxEvents: 7, maxBytes: 200000, maxAgeSeconds: 60}}}");
    assert_eq!(asked, Bounds { max_events: 7, max_bytes: 200_000, max_age: Duration::from_secs(60) });
}

#[test]
fn the_identity_is_in_one_folder() {
    let hub = |text: &str| read(&format!("modules: {{edgeHub: {{{text}}}}}")).value.modules.edge_hub;
    let moved =
        hub("tlsCaFile: /d/ca/rootCA.crt, tlsCertFile: /d/certs/server.crt, tlsPrivateKeyFile: /d/certs/server.key");
    assert_eq!(moved.identity_folder(), Ok(Path::new("/d")));
    for scattered in ["tlsCaFile: /d/ca/rootCA.crt", "tlsCertFile: /server.crt", "tlsPrivateKeyFile: ''"] {
        assert_eq!(hub(scattered).identity_folder(), Err(ScatteredIdentity), "{scattered}");
    }
}

#[test]
fn a_token_is_not_shown() {
    let config = read("modules: {edgeHub: {token: secret}}").value;
    assert_eq!(config.modules.edge_hub.token.get(), Some("secret"));
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn the_rate_of_mappers_is_device_twins_own() {
    let kubeedge_actors::devicetwin::dmi::bucket::Rate { per_second, burst } = Default::default();
    let rate = EdgeCore::default().modules.device_twin.mapper_rate;
    assert_eq!((rate.per_second, rate.burst), (per_second, burst));
}

/// What fuzzing found, and what it began with.
#[test]
fn every_document_of_the_corpus_is_read_or_refused_with_its_place() {
    let mut taken = Vec::new();
    for file in std::fs::read_dir("../kubeedge-actors/fuzz/corpus/config").unwrap() {
        let path = file.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        match parse::<EdgeCore>("file.yaml", &text) {
            Ok(_) => taken.push(path.file_name().unwrap().to_owned()),
            Err(error) => assert!(error.to_string().starts_with("file.yaml"), "{}: {error}", path.display()),
        }
    }
    for whole in ["edge-default", "edge-kubeedge"] {
        assert!(taken.iter().any(|name| name == whole), "{taken:?}");
    }
}
