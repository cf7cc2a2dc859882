//! The schema engine: what it takes, what it says, and that no JSON makes it panic.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::schema::Schema;
use super::*;

fn compiled(schema: &Value) -> Schema {
    let mut errors = Errors::default();
    let schema = Schema::compile(schema, &Path::new("schema"), &mut errors);
    let errors = errors.done();
    assert!(errors.is_empty(), "{errors:?}");
    schema
}

fn refused(schema: &Value) -> Vec<String> {
    let mut errors = Errors::default();
    Schema::compile(schema, &Path::new("schema"), &mut errors);
    errors.done().iter().map(ToString::to_string).collect()
}

/// What is wrong with a value of the one field `v` of this schema.
fn wrong(field: Value, value: Value) -> Vec<String> {
    let schema = compiled(&json!({"type": "object", "properties": {"v": field}}));
    validate::validate(&schema, &json!({"v": value})).iter().map(ToString::to_string).collect()
}

#[test]
fn every_check_takes_what_is_right_and_names_what_is_wrong() {
    for (schema, right, bad, message) in [
        (json!({"type": "integer"}), json!(1.0), json!(1.5), "must be of type integer: \"number\""),
        (json!({"type": "string"}), json!(""), json!(null), "must be of type string: \"null\""),
        (json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}), json!(2), json!(1), "greater than 1"),
        (json!({"type": "integer", "maximum": 3}), json!(3), json!(4), "less than or equal to 3"),
        (json!({"type": "number", "multipleOf": 0.1}), json!(0.3), json!(0.25), "a multiple of 0.1"),
        (json!({"type": "string", "minLength": 2}), json!("äö"), json!("ä"), "at least 2 chars long"),
        (json!({"type": "string", "maxLength": 2}), json!("äö"), json!("abc"), "Too long"),
        (json!({"type": "string", "pattern": "^a+$"}), json!("aa"), json!("b"), "should match '^a+$'"),
        (json!({"type": "string", "enum": ["a", "b"]}), json!("a"), json!("c"), "supported values: \"a\", \"b\""),
        (json!({"type": "string", "format": "ipv4"}), json!("10.0.0.1"), json!("x"), "must be of type ipv4"),
        (json!({"type": "array", "items": {"type": "string"}, "minItems": 1}), json!(["a"]), json!([]), "1 items"),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a"]),
            json!(["a", "b"]),
            "Too many",
        ),
        (json!({"type": "array", "items": {"type": "string"}}), json!(["a"]), json!(["a", 1]), "v[1] in body must be"),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            json!({"a": 1}),
            json!({"a": "b"}),
            "v.a",
        ),
        (
            json!({"type": "object", "additionalProperties": true, "maxProperties": 1}),
            json!({}),
            json!({"a": 1, "b": 1}),
            "Too many",
        ),
        (json!({"x-kubernetes-int-or-string": true}), json!("80%"), json!(true), "integer,string"),
        (json!({"type": "string", "nullable": true}), json!(null), json!(1), "must be of type string"),
        (json!({"type": "integer", "anyOf": [{"minimum": 9}, {"maximum": 1}]}), json!(0), json!(5), "(anyOf)"),
        (json!({"type": "integer", "oneOf": [{"minimum": 1}, {"maximum": 5}]}), json!(0), json!(3), "Found 2 valid"),
        (json!({"type": "integer", "allOf": [{"minimum": 1}, {"maximum": 5}]}), json!(3), json!(9), "equal to 5"),
        (json!({"type": "integer", "not": {"minimum": 5}}), json!(3), json!(9), "(not)"),
        (
            json!({"type": "array", "items": {"type": "integer"}, "x-kubernetes-list-type": "set"}),
            json!([1, 2]),
            json!([1, 1]),
            "Duplicate value: 1",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer"}}}}),
            json!([{"k": "a"}, {"k": "b"}]),
            json!([{"k": "a", "n": 1}, {"k": "a"}]),
            "v[1]: Duplicate value",
        ),
    ] {
        assert_eq!(wrong(schema.clone(), right), Vec::<String>::new(), "{schema}");
        let found = wrong(schema.clone(), bad);
        assert!(found.len() == 1 && found[0].contains(message), "{schema}: {found:?}");
    }
}

#[test]
fn a_schema_that_is_not_structural_is_refused_with_the_place() {
    for (field, message) in [
        (json!({"properties": {}}), "schema.properties[v].type: Required value"),
        (json!({"type": "array"}), "schema.properties[v].items: Required value"),
        (json!({"type": "text"}), "Unsupported value: \"text\""),
        (json!({"type": "string", "pattern": "("}), "must be a valid regular expression"),
        (json!({"type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000})"}), "must be a valid regular expression"),
        (json!({"type": "string", "anyOf": [{"default": "x"}]}), "anyOf[0].default: Forbidden"),
        (json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}), "quadratic"),
        (json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": true}), "exclusive"),
        (json!({"$ref": "#/x", "type": "object"}), "$ref is not supported"),
    ] {
        let found = refused(&json!({"type": "object", "properties": {"v": field}}));
        assert!(found.iter().any(|one| one.contains(message)), "{field}: {found:?}");
    }
    let mut deep = json!({"type": "string"});
    for _ in 0..=schema::MAX_DEPTH {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert!(refused(&deep).iter().any(|one| one.contains("inside each other")));
    let wide: serde_json::Map<String, Value> =
        (0..=schema::MAX_NODES).map(|n| (format!("f{n}"), json!({"type": "string"}))).collect();
    assert!(refused(&json!({"type": "object", "properties": wide})).iter().any(|one| one.contains("must not hold")));
}

#[test]
fn pruning_keeps_what_is_known_or_to_be_kept_and_reports_the_rest() {
    let schema = compiled(&json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {}},
        }},
    }}));
    let mut object = json!({"apiVersion": "x", "kind": "X", "metadata": {"name": "n"}, "extra": 1, "spec": {
        "free": {"any": {"thing": 1}}, "map": {"k": {"a": "b", "c": 1}}, "metadata": {},
        "template": {"kind": "Pod", "metadata": {"labels": {}}, "spec": {}}}});
    let mut removed = prune::prune(&schema, &mut object);
    removed.sort();
    assert_eq!(removed, ["extra", "spec.map.k.c", "spec.metadata", "spec.template.spec"]);
    assert_eq!(object["spec"]["free"]["any"]["thing"], 1);
    assert_eq!(object["spec"]["template"]["metadata"], json!({"labels": {}}));
}

#[test]
fn versions_stand_in_the_order_of_kubernetes() {
    let mut versions = ["foo10", "v1alpha2", "v10", "v1beta1", "foo1", "v2", "v1", "v11beta2", "v10beta3"];
    versions.sort_by_key(|version| Reverse(priority(version)));
    assert_eq!(versions, ["v10", "v2", "v1", "v11beta2", "v10beta3", "v1beta1", "v1alpha2", "foo1", "foo10"]);
}

/// KubeEdge's Device, as far as its properties go.
fn device() -> Value {
    let value = json!({"type": "object", "required": ["value"], "properties": {
        "value": {"type": "string"}, "metadata": {"type": "object", "additionalProperties": {"type": "string"}}}});
    let configuration = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let visitors =
        json!({"type": "object", "properties": {"protocolName": {"type": "string"}, "configData": configuration}});
    let property = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "desired": value, "visitors": visitors,
        "reportCycle": {"type": "integer", "format": "int64", "default": 1000}}});
    let spec = json!({"type": "object", "properties": {
        "deviceModelRef": {"type": "object", "properties": {"name": {"type": "string"}}},
        "nodeName": {"type": "string"},
        "properties": {"type": "array", "items": property}}});
    let status = json!({"type": "object", "properties": {"reportToCloud": {"type": "boolean"}}});
    let schema = json!({"type": "object", "properties": {"spec": spec, "status": status}});
    let columns = json!([{"name": "Node", "type": "string", "jsonPath": ".spec.nodeName"}]);
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "devices.devices.kubeedge.io", "uid": "u", "generation": 1},
        "spec": {"group": "devices.kubeedge.io", "scope": "Namespaced",
            "names": {"plural": "devices", "singular": "device", "kind": "Device", "listKind": "DeviceList"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "additionalPrinterColumns": columns}]}})
}

#[test]
fn a_device_of_kubeedge_is_decoded_defaulted_checked_and_printed() {
    let definition = Definition::compile(&device()).expect("compiles");
    let version = definition.storage();
    let sent = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": "d", "x": 1},
        "spec": {"nodeName": "edge", "properties": [{"name": "t", "desired": {"value": "1"},
            "visitors": {"protocolName": "modbus", "configData": {"register": "Coil", "offset": 2}, "junk": 1}}]}});
    let decoded = version.decode(sent).expect("decodes");
    assert_eq!(decoded.unknown_fields, ["metadata.x", "spec.properties[0].visitors.junk"]);
    let mut object = decoded.object;
    version.default(&mut object);
    assert_eq!(object["spec"]["properties"][0]["reportCycle"], 1000);
    assert_eq!(object["spec"]["properties"][0]["visitors"]["configData"]["offset"], 2);
    assert!(version.validate(&object, None).is_empty());
    assert_eq!(version.cells(&object, 0), [json!("d"), json!("edge")]);
    object["spec"]["properties"][0]["desired"] = json!({});
    let errors = version.validate(&object, None);
    assert_eq!(errors[0].to_string(), "spec.properties[0].desired.value: Required value");
    let mut broken = device();
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["nodeName"] =
        json!({"type": "string", "default": 1});
    let errors = Definition::compile(&broken).expect_err("a default of the wrong type");
    assert!(errors[0].field.ends_with("properties[nodeName].default"), "{errors:?}");
}

#[test]
fn rules_in_cel_that_are_not_evaluated_are_announced() {
    let mut definition = device();
    assert!(warnings(&definition).is_empty());
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
        json!([{"rule": "has(self.spec)"}, {"rule": "isURL(self.metadata.name)"}]);
    assert_eq!(
        warnings(&definition),
        ["a rule is kept and not evaluated, for it uses isURL(): isURL(self.metadata.name)"]
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ab]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[abcd]|metadata", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Schemas, most of them structural.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0..9_i64, proptest::option::of(0..9_i64))
            .prop_map(|(least, default)| json!({"type": "integer", "minimum": least, "default": default})),
        Just(json!({"type": "string", "pattern": "^a*$", "default": "a", "maxLength": 2})),
        Just(json!({"type": "boolean", "nullable": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "number", "multipleOf": 0.5, "oneOf": [{"minimum": 1}, {"maximum": 2}]})),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let fields = proptest::collection::btree_map("[abc]", inner.clone(), 0..4);
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items, "x-kubernetes-list-type": "set"})),
            inner.prop_map(|values| json!({"type": "object", "additionalProperties": values, "maxProperties": 2})),
            (fields, any::<bool>()).prop_map(|(fields, with_default)| {
                let mut schema = json!({"type": "object", "properties": fields, "required": ["a"]});
                if with_default {
                    schema["default"] = json!({});
                }
                schema
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_object_is_pruned_defaulted_and_judged_and_both_settle(schema in any_schema(), object in any_json()) {
        let schema = Schema::compile(&schema, &Path::new("schema"), &mut Errors::default());
        let mut object = object;
        prune::prune(&schema, &mut object);
        let mut again = object.clone();
        prop_assert!(prune::prune(&schema, &mut again).is_empty());
        prop_assert_eq!(&again, &object);
        prune::default(&schema, &mut object);
        let mut again = object.clone();
        prune::default(&schema, &mut again);
        prop_assert_eq!(&again, &object);
        prop_assert!(validate::validate(&schema, &object).len() <= crate::apiserver::kinds::fields::MAX_ERRORS);
    }

    #[test]
    fn any_json_as_a_schema_or_a_definition_is_judged_without_a_panic(schema in any_json(), object in any_json()) {
        let compiled = Schema::compile(&schema, &Path::new("schema"), &mut Errors::default());
        validate::validate(&compiled, &object);
        let mut definition = device();
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
        let _ = Definition::compile(&definition);
        let _ = Definition::compile(&object);
    }
}

#[tokio::test]
async fn a_damaged_definition_does_not_stop_the_server_and_a_good_one_is_served_before_its_objects_are_read() {
    use crate::apiserver::kinds;
    use crate::apiserver::storage::{Change, Disk, Storage};
    let store = crate::store::Store::in_memory();
    let storage = Storage::open(kinds::kinds(), Disk::new(store.clone())).expect("opens");
    let id = storage.find(GROUP, "v1", PLURAL).expect("definitions are served");
    let mut good = device();
    good["status"] = json!({"acceptedNames": good["spec"]["names"],
        "conditions": [{"type": "Established", "status": "True"}]});
    let mut bad = good.clone();
    bad["metadata"]["name"] = json!("broken.devices.kubeedge.io");
    bad["spec"]["versions"] = json!("none");
    let definition = Definition::compile(&good).expect("compiles");
    let writer = storage.write().await;
    writer.install(Arc::new(definition));
    writer.commit(vec![Change::Put(id, good), Change::Put(id, bad)]).await.expect("is stored");
    let devices = storage.find("devices.kubeedge.io", "v1beta1", "devices").expect("is served");
    let object = json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"nodeName": "edge"}});
    storage.write().await.commit(vec![Change::Put(devices, object)]).await.expect("is stored");
    let version = storage.resource_version();
    drop(storage);

    let again = Storage::open(kinds::kinds(), Disk::new(store)).expect("opens");
    assert_eq!((again.resource_version(), again.definitions().len()), (version, 1));
    let devices = again.find("devices.kubeedge.io", "v1beta1", "devices").expect("is served");
    assert!(again.get(devices, &Key::new("n", "d")).is_some());
    // After its end nothing is written to it any more, and no other kind takes its place.
    let writer = again.write().await;
    writer.retire(devices);
    let late = writer.commit(vec![Change::Put(devices, json!({"metadata": {"name": "late", "namespace": "n"}}))]).await;
    assert_eq!(late.expect_err("the kind has ended").code, 404);
    assert!(again.find("devices.kubeedge.io", "v1beta1", "devices").is_none());
}
