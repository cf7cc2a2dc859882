//! Custom kinds as a person uses them: KubeEdge's own, and one with every subresource.

use super::{has, row, with_each_version};

const DEFINITIONS: &str = include_str!("kubeedge-crds.yaml");

const MODEL: &str = "
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer}
spec:
  protocol: modbus
  properties:
  - {name: temperature, type: INT, accessMode: ReadOnly, unit: C, minimum: '-20', maximum: '80'}
  - {name: fan, type: BOOLEAN, accessMode: ReadWrite}
";

const DEVICE: &str = "
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: hall-3}
spec:
  deviceModelRef: {name: thermometer}
  nodeName: edge
  protocol: {protocolName: modbus, configData: {serialPort: /dev/ttyS0, baudRate: 9600, nested: {any: [1, two]}}}
  properties:
  - name: temperature
    reportToCloud: true
    reportCycle: 5000
    visitors: {protocolName: modbus, configData: {register: HoldingRegister, offset: 2}}
  - name: fan
    desired: {value: 'true', metadata: {type: boolean}}
";

#[tokio::test]
async fn kubeedges_definitions_are_installed_and_their_objects_checked_applied_edited_and_explained() {
    with_each_version("KubeEdge's kinds", async |kubectl| {
        kubectl.write("crds.yaml", DEFINITIONS);
        assert_eq!(kubectl.run("apply -f crds.yaml").await.lines().count(), 4);
        kubectl.run("wait crd --all --for=condition=Established --timeout=30s").await;
        assert_eq!(kubectl.run("apply -f crds.yaml").await.matches("unchanged").count(), 4);
        has(&kubectl.run("api-resources --api-group=rules.kubeedge.io").await, &["ruleendpoints", " re ", "Rule"]);

        // What is right is taken, free-form parts whole.
        kubectl.write("model.yaml", MODEL);
        kubectl.write("device.yaml", DEVICE);
        let made = kubectl.run("apply -f model.yaml -f device.yaml").await;
        assert_eq!(
            made,
            "devicemodel.devices.kubeedge.io/thermometer created\ndevice.devices.kubeedge.io/hall-3 created\n"
        );
        let free = kubectl.run_with("get device hall-3 -o", &["jsonpath={.spec.protocol.configData.nested}"]).await;
        assert_eq!(free, r#"{"any":[1,"two"]}"#);
        assert_eq!(row(&kubectl.run("get devices -o wide").await, "NAME"), ["NAME", "AGE"]);
        has(&kubectl.run("get device.v1beta1.devices.kubeedge.io hall-3 -o yaml").await, &["offset: 2"]);
        has(&kubectl.run("describe device hall-3").await, &["Device Model Ref:", "HoldingRegister"]);

        // A change is merged with what others wrote: a list is replaced whole, a field that went goes.
        let note = r#"{"spec": {"methods": [{"name": "reset"}]}}"#;
        kubectl.run_with("patch device hall-3 --type=merge -p", &[note]).await;
        kubectl.write(
            "device.yaml",
            &DEVICE.replace("reportCycle: 5000", "reportCycle: 9000").replace("  nodeName: edge\n", ""),
        );
        assert_eq!(kubectl.run("apply -f device.yaml").await, "device.devices.kubeedge.io/hall-3 configured\n");
        assert_eq!(kubectl.run("apply -f device.yaml").await, "device.devices.kubeedge.io/hall-3 unchanged\n");
        let spec = kubectl.run_with("get device hall-3 -o", &["jsonpath={.spec}"]).await;
        has(&spec, &[r#""reportCycle":9000"#, r#""methods":[{"name":"reset"}]"#]);
        assert!(!spec.contains("nodeName"), "{spec}");
        kubectl.editor("s/unit: C/unit: K/");
        assert_eq!(
            kubectl.run("edit devicemodel thermometer").await,
            "devicemodel.devices.kubeedge.io/thermometer edited\n"
        );
        has(&kubectl.run("get devicemodel thermometer -o yaml").await, &["unit: K"]);

        // What is wrong is refused by its field, by the server if not by kubectl.
        for (what, document, wrong, field) in [
            (
                "an enum",
                MODEL,
                MODEL.replace("type: INT", "type: INTEGER"),
                "spec.properties[0].type: Unsupported value",
            ),
            ("an enum", MODEL, MODEL.replace("ReadWrite", "WriteOnly"), "spec.properties[1].accessMode"),
            ("a type", DEVICE, DEVICE.replace("reportCycle: 5000", "reportCycle: often"), "reportCycle"),
            (
                "a required field",
                DEVICE,
                DEVICE.replace("{value: 'true', metadata", "{metadata"),
                "spec.properties[1].desired.value",
            ),
            ("an unknown field", DEVICE, DEVICE.replace("nodeName", "nodename"), "unknown field \"spec.nodename\""),
        ] {
            assert_ne!(document, wrong, "{what}");
            kubectl
                .write("wrong.yaml", &wrong.replace("name: thermometer}", "name: wrong}").replace("hall-3", "wrong"));
            has(&kubectl.fail("apply -f wrong.yaml --validate=strict").await, &[field]);
            let unchecked = kubectl.output(&["create", "--validate=ignore", "-f", "wrong.yaml"]).await;
            if what == "an unknown field" {
                assert!(unchecked.status.success(), "it is pruned");
                kubectl.run("delete device wrong").await;
            } else {
                assert!(!unchecked.status.success(), "{what}");
                has(&String::from_utf8_lossy(&unchecked.stderr), &["is invalid", field]);
            }
        }
        kubectl.write(
            "rule.yaml",
            "
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata: {name: up}
spec: {source: meters, sourceResource: {path: /a}, target: cloud}
",
        );
        has(&kubectl.fail("create -f rule.yaml").await, &["spec.targetResource"]);
        kubectl.write(
            "endpoint.yaml",
            "
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata: {name: meters}
spec: {ruleEndpointType: kafka, properties: {}}
",
        );
        has(
            &kubectl.fail("create -f endpoint.yaml").await,
            &["spec.ruleEndpointType", "\"eventbus\", \"rest\", \"servicebus\""],
        );

        let explained = kubectl.run("explain devicemodel.spec.properties --recursive").await;
        has(&explained, &["KIND:       DeviceModel", "What devices of this model have.", "accessMode", "unit"]);
        has(&kubectl.run("explain re.spec").await, &["ruleEndpointType", "<string>", "eventbus"]);
    })
    .await;
}

const MACHINES: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: machines.hall.example}
spec:
  group: hall.example
  scope: Namespaced
  names: {kind: Machine, plural: machines, shortNames: [mc]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.arms, statusReplicasPath: .status.arms}
    selectableFields: [{jsonPath: .spec.colour}]
    additionalPrinterColumns:
    - {name: Arms, type: integer, jsonPath: .spec.arms}
    - {name: Colour, type: string, jsonPath: .spec.colour, priority: 1}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {arms: {type: integer, minimum: 0, maximum: 8}, colour: {type: string}}
          status: {type: object, properties: {arms: {type: integer}}}
";

#[tokio::test]
async fn a_custom_kind_is_scaled_selected_by_a_field_and_shown_wide() {
    with_each_version("a custom kind", async |kubectl| {
        kubectl.write("crd.yaml", MACHINES);
        kubectl.run("create -f crd.yaml").await;
        for (name, colour) in [("one", "red"), ("two", "blue")] {
            let head = format!("apiVersion: hall.example/v1\nkind: Machine\nmetadata: {{name: {name}}}\n");
            let object = format!("{head}spec: {{arms: 2, colour: {colour}}}\n");
            kubectl.write("machine.yaml", &object);
            kubectl.run("create -f machine.yaml").await;
        }
        assert_eq!(row(&kubectl.run("get mc").await, "NAME"), ["NAME", "ARMS"]);
        assert_eq!(row(&kubectl.run("get mc -o wide").await, "two"), ["two", "2", "blue"]);
        assert_eq!(kubectl.run("get mc --field-selector spec.colour=red -o name").await, "machine.hall.example/one\n");
        assert_eq!(
            kubectl.run("scale machine one --replicas=6 --current-replicas=2").await,
            "machine.hall.example/one scaled\n"
        );
        assert_eq!(row(&kubectl.run("get mc").await, "one"), ["one", "6"]);
        has(&kubectl.fail("scale machine one --replicas=9").await, &["spec.arms", "less than or equal to 8"]);
        has(&kubectl.fail("scale machine one --replicas=1 --current-replicas=2").await, &["Expected replicas"]);
        let patch = r#"{"spec": {"replicas": 3}}"#;
        kubectl.run_with("patch machine one --subresource=scale --type=merge -p", &[patch]).await;
        assert_eq!(row(&kubectl.run("get mc").await, "one"), ["one", "3"]);
    })
    .await;
}
