use std::path::Path;

use kubeedge_actors::config::{Loaded, parse};

use super::*;

const KUBEEDGE: &str = include_str!("kubeedge.yaml");

fn read(text: &str) -> Loaded<CloudCore> {
    parse("cloudcore.yaml", text).unwrap()
}

#[test]
fn a_full_file_of_kubeedge_has_no_unknown_field() {
    let Loaded { value, unknown, without_effect } = read(KUBEEDGE);
    assert_eq!(unknown, Vec::<String>::new());
    for field in ["commonConfig", "modules.cloudHub.authorization", "modules.edgeController.load"] {
        assert!(without_effect.iter().any(|path| path == field), "{field}");
    }
    assert_eq!(value.kube_api_config.kube_config, Some("/root/.kube/config".into()));
    let hub = value.modules.cloud_hub;
    assert_eq!(hub.advertise_address, [IpAddr::from([192, 0, 2, 10])]);
    assert_eq!(hub.dns_names, Vec::<String>::new());
    assert_eq!((hub.node_limit, hub.token_validity().as_secs()), (1000, 24 * 3600));
    assert_eq!((hub.edge_cert_signing_duration.duration().as_secs(), &hub.ca_secret), (365 * 86_400, &None));
    assert_eq!(hub.dead_after().as_secs(), 30);
    assert_eq!(hub.websocket.socket().to_string(), "0.0.0.0:10000");
    assert_eq!(hub.https.socket().to_string(), "0.0.0.0:10002");
    let stream = value.modules.cloud_stream;
    assert!(!stream.enable && stream.stream_port == 10003 && stream.tls_stream_ca_file.ends_with("streamCA.crt"));
    let router = value.modules.router;
    assert!(!router.enable && router.port == 9443 && router.rest_timeout.duration().as_secs() == 60);
    assert_eq!(
        (router.tls, router.token_file, router.tls_ca_file),
        (false, None, None),
        "KubeEdge's file has none of it"
    );
    assert_eq!(value.modules.dynamic_controller, DynamicController::default(), "off, and nothing is granted");
    assert!(!value.modules.admission.enable, "KubeEdge has a program of its own for it");
    assert_eq!(value.standalone, Standalone::default(), "KubeEdge's file does not have it");
}

#[test]
fn the_printed_documents_are_the_defaults() {
    for text in [DEFAULT_TEXT, MIN_TEXT] {
        assert_eq!(read(text), Loaded { value: CloudCore::default(), without_effect: vec![], unknown: vec![] });
    }
}

#[test]
fn a_mistyped_field_is_unknown() {
    let text =
        "modules: {cloudHub: {tlsCaFile: /a, https: {prot: 1}}, edgeControler: {enable: true}}\nstandalone: {on: true}";
    let paths = ["modules.cloudHub.tlsCaFile", "modules.cloudHub.https.prot", "modules.edgeControler", "standalone.on"];
    assert_eq!(read(text).unknown, paths);
}

#[test]
fn impossible_values_are_refused_where_they_stand() {
    for (text, said) in [
        ("modules:\n  cloudHub:\n    nodeLimit: 0\n", "3:16: modules.cloudHub.nodeLimit: 0 is not valid"),
        ("modules: {cloudHub: {websocket: {port: 65536}}}", "websocket.port: expected a whole number from 0 to 65535"),
        ("modules: {cloudHub: {websocket: {address: all}}}", "websocket.address: invalid IP address syntax"),
        ("modules: {cloudHub: {dnsNames: [\"a b\"]}}", "modules.cloudHub.dnsNames[0]: \"a b\" is not valid"),
        ("modules: {cloudHub: {tokenRefreshDuration: 9999}}", "expected a number of hours from 1 to 8760"),
        ("modules: {cloudHub: {edgeCertSigningDuration: 0}}", "expected a number of days from 1 to 3650"),
        ("modules: {cloudHub: {edgeCertGracePeriod: 4000}}", "expected a number of days from 0 to 3650"),
        ("modules: {cloudHub: {caSecret: kubeedge-ca}}", "expected namespace/name of a Secret"),
        ("modules: {router: {restTimeout: 0}}", "modules.router.restTimeout: 0 is not valid"),
        (
            "modules: {dynamicController: {grants: [{nodes: [a], namespaces: [b], apiGroups: [''], resources: [c]}]}}",
            "missing field `verbs`",
        ),
        (
            "modules: {dynamicController: {grants: [{nodes: [a], namespaces: [b], apiGroups: [''], resources: [c], \
             verbs: [watch]}]}}",
            "\"watch\" is no verb that can be granted",
        ),
        ("modules: {views: {address: all}}", "modules.views.address: invalid IP address syntax"),
        ("standalone: {enable: perhaps}", "standalone.enable: "),
        ("standalone:\n  advertiseAddress: 0.0.0.0\n", "2:21: standalone.advertiseAddress: \"0.0.0.0\" is not valid"),
        ("standalone: {advertiseAddress: cloud}", "expected an address by which pods and nodes reach this machine"),
        ("modules: {cloudHub: {tlsCAFile: /a/ca.pem}}", "expected a file named rootCA.crt"),
        ("kind: EdgeCore", "1:7: kind: \"EdgeCore\" is another document"),
    ] {
        let refusal = parse::<CloudCore>("cloudcore.yaml", text).unwrap_err().to_string();
        assert!(refusal.starts_with("cloudcore.yaml:") && refusal.contains(said), "{text}: {refusal}");
    }
}

#[cfg(feature = "standalone")]
#[test]
fn the_addresses_of_services_and_of_the_api_server_are_checked_where_they_stand() {
    let text = "standalone:\n  serviceClusterIPRange: 10.43.0.0/16\n  advertiseAddress: 192.0.2.10\n";
    let standalone = read(text).value.standalone;
    assert_eq!(standalone.service_cluster_ip_range.map(|range| range.to_string()).as_deref(), Some("10.43.0.0/16"));
    assert_eq!(standalone.advertise_address, Some(AdvertiseAddress(IpAddr::from([192, 0, 2, 10]))));
    for range in ["10.43.0.1/16", "10.0.0.0/8", "10.43.0.0", "fd00::/112"] {
        let text = format!("standalone:\n  enable: true\n  serviceClusterIPRange: {range}\n");
        let refusal = parse::<CloudCore>("cloudcore.yaml", &text).unwrap_err().to_string();
        let expected =
            format!("cloudcore.yaml:3:26: standalone.serviceClusterIPRange: {range:?} is no range for Services");
        assert!(refusal.starts_with(&expected), "{refusal}");
    }
}

#[test]
fn an_authority_that_is_there_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("rootCA.crt"), folder.path().join("rootCA.key"));
    let text = format!("modules: {{cloudHub: {{tlsCAFile: {certificate:?}, tlsCAKeyFile: {key:?}}}}}");
    let hub = read(&text).value.modules.cloud_hub;
    let data_dir = Path::new("/data");
    assert_eq!(hub.authority_folder(data_dir), Path::new("/data/pki"));
    std::fs::write(certificate, "").unwrap();
    assert_eq!(hub.authority_folder(data_dir), folder.path());
    let none = read("modules: {cloudHub: {tlsCAFile: '', tlsCAKeyFile: ''}}").value.modules.cloud_hub;
    assert_eq!(none.authority_folder(data_dir), Path::new("/data/pki"));
}

#[test]
fn the_rates_of_status_writes_are_device_controllers_own() {
    let kubeedge_actors::devicecontroller::pace::Rates { per_node, total, .. } = Default::default();
    let writes = CloudCore::default().modules.device_controller.status_writes;
    assert_eq!((writes.per_node, writes.total), (per_node, total));
}

/// What fuzzing found, and what it began with.
#[test]
fn every_document_of_the_corpus_is_read_or_refused_with_its_place() {
    let mut taken = Vec::new();
    for file in std::fs::read_dir("../kubeedge-actors/fuzz/corpus/config").unwrap() {
        let path = file.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        match parse::<CloudCore>("file.yaml", &text) {
            Ok(_) => taken.push(path.file_name().unwrap().to_owned()),
            Err(error) => assert!(error.to_string().starts_with("file.yaml"), "{}: {error}", path.display()),
        }
    }
    for whole in ["cloud-default", "cloud-kubeedge"] {
        assert!(taken.iter().any(|name| name == whole), "{taken:?}");
    }
}
