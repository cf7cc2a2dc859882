//! What manifests say, as edgecore tells it.

use kubeedge_actors::mapper::{Device, DeviceId};
use kubeedge_proto::dmi;
use prost_types::Any;

use crate::{
    manifest::{self, Plan, Point, Table},
    registers::Kind,
};

/// Settings as manifests for Go mappers have them: all text.
fn settings(said: &[(&str, &str)]) -> Option<dmi::CustomizedValue> {
    let any = |text: &str| Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        // Field 1, as bytes.
        value: [&[0x0a, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat(),
    };
    Some(dmi::CustomizedValue { data: said.iter().map(|(name, text)| ((*name).to_owned(), any(text))).collect() })
}

fn device(protocol: &[(&str, &str)], model: dmi::ModelProperty, desired: &str, visitors: &[(&str, &str)]) -> Device {
    let property = dmi::DeviceProperty {
        name: "p".into(),
        desired: Some(dmi::TwinProperty { value: desired.into(), ..Default::default() }),
        visitors: Some(dmi::VisitorConfig { protocol_name: "modbus-tcp".into(), config_data: settings(visitors) }),
        ..Default::default()
    };
    let protocol = dmi::ProtocolConfig { protocol_name: "modbus-tcp".into(), config_data: settings(protocol) };
    Device {
        id: DeviceId { namespace: "default".into(), name: "d".into() },
        spec: dmi::DeviceSpec { protocol: Some(protocol), properties: vec![property], ..Default::default() },
        model: dmi::DeviceModelSpec {
            properties: vec![dmi::ModelProperty { name: "p".into(), ..model }],
            ..Default::default()
        },
        state_report: Default::default(),
    }
}

fn model(kind: &str, access_mode: &str) -> dmi::ModelProperty {
    dmi::ModelProperty { r#type: kind.into(), access_mode: access_mode.into(), ..Default::default() }
}

const AT: &[(&str, &str)] = &[("ip", "192.0.2.7"), ("port", "1502"), ("slaveID", "3")];

fn point(model: dmi::ModelProperty, desired: &str, visitors: &[(&str, &str)]) -> Result<Point, String> {
    let Plan { mut points, mut left_out, .. } = manifest::read(&device(AT, model, desired, visitors)).unwrap();
    points.pop().ok_or_else(|| left_out.pop().unwrap())
}

#[test]
fn a_manifest_says_where_a_device_and_its_properties_are() {
    let visitors = [
        ("register", "HoldingRegister"),
        ("offset", "7"),
        ("limit", "2"),
        ("scale", "0.1"),
        ("isRegisterSwap", "true"),
    ];
    let bounds = dmi::ModelProperty { minimum: "-10".into(), maximum: "30".into(), ..model("FLOAT", "ReadWrite") };
    let plan = manifest::read(&device(AT, bounds, "21.5", &visitors)).unwrap();
    assert_eq!((plan.host.as_str(), plan.port, plan.unit), ("192.0.2.7", 1502, 3));
    assert_eq!(plan.left_out, Vec::<String>::new());
    let point = &plan.points[0];
    assert_eq!((point.table, point.offset, point.desired.as_deref()), (Table::HoldingRegisters, 7, Some("21.5")));
    let coding = point.coding;
    assert_eq!((coding.kind, coding.count, coding.scale, coding.signed), (Kind::Float, 2, 0.1, true));
    assert!(coding.swap_registers && !coding.swap_bytes);
}

#[test]
fn what_may_not_be_written_is_not() {
    let desired = |mode: &str, register: &str| {
        point(model("INT", mode), "1", &[("register", register), ("offset", "0")]).unwrap().desired
    };
    assert_eq!(desired("ReadWrite", "HoldingRegister").as_deref(), Some("1"));
    assert_eq!(desired("ReadOnly", "HoldingRegister"), None);
    assert_eq!(desired("ReadWrite", "InputRegister"), None);
}

#[test]
fn a_property_that_is_wrong_is_left_out_and_said() {
    let bounds = dmi::ModelProperty { maximum: "30".into(), ..model("FLOAT", "ReadWrite") };
    for (model, desired, visitors, said) in [
        (model("INT", "ReadOnly"), "", &[("register", "Registers"), ("offset", "0")][..], "\"Registers\" is not valid"),
        (model("INT", "ReadOnly"), "", &[("register", "InputRegister")], "offset: expected a number"),
        (model("INT", "ReadOnly"), "", &[("register", "InputRegister"), ("offset", "70000")], "70000 is not valid"),
        (model("INT", "ReadOnly"), "", &[("register", "InputRegister"), ("offset", "0"), ("limit", "3")], "are no INT"),
        (model("FLOAT", "ReadOnly"), "", &[("register", "CoilRegister"), ("offset", "0")], "BOOLEAN or INT"),
        (model("STREAM", "ReadOnly"), "", &[("register", "InputRegister"), ("offset", "0")], "type STREAM"),
        (bounds, "31", &[("register", "HoldingRegister"), ("offset", "0")], "beyond the model's minimum or maximum"),
    ] {
        let wrong = point(model, desired, visitors).unwrap_err();
        assert!(wrong.starts_with("p: ") && wrong.contains(said), "{wrong}");
    }
}

#[test]
fn a_device_without_an_address_is_refused() {
    let refused = manifest::read(&device(&[("port", "502")], model("INT", "ReadOnly"), "", &[])).unwrap_err();
    assert!(refused.contains("configData.ip"), "{refused}");
}
