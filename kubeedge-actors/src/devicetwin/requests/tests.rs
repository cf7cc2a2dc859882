//! The payloads that applications see, word for word.

use kubeedge_proto::v1::ObjectKey;
use serde_json::json;

use super::*;
use crate::devicetwin::topics::of_node;

const STAMP: Stamp = Stamp { now_ms: 1_700_000_000_000, fresh: || "fresh".to_owned() };
const ID: &str = "ns/d";

fn device() -> Device {
    Device::new(ObjectKey::new("ns", "d"), "u".into())
}

fn update(device: Option<&mut Device>, payload: Value) -> Reaction {
    update_twin(STAMP, ID, device, payload.to_string().as_bytes(), Origin::Local)
}

fn said(reaction: &Reaction) -> Vec<(&str, Value)> {
    let read = |one: &'_ Publication| serde_json::from_slice(&one.payload).unwrap();
    reaction.publish.iter().map(|one| (one.topic.as_str(), read(one))).collect()
}

#[test]
fn an_update_is_answered_documented_and_compared_in_this_order() {
    let mut device = device();
    let reaction = update(
        Some(&mut device),
        json!({"event_id": "e1", "timestamp": 5, "twin": {"t": {"expected": {"value": "1"}}}}),
    );
    assert!(reaction.changed);
    let side = json!({"value": "1", "metadata": {"timestamp": 1_700_000_000_000_i64}});
    let twin = json!({"expected": side, "optional": true, "metadata": {"type": "string"}});
    let base = json!({"event_id": "e1", "timestamp": 1_700_000_000_000_i64});
    let with = |field: &str, value: Value, event_id: &str| {
        let mut body = base.clone();
        body[field] = value;
        body["event_id"] = event_id.into();
        body
    };
    let mut delta = with("twin", json!({"t": twin}), "fresh");
    delta["delta"] = json!({"t": "1"});
    assert_eq!(
        said(&reaction),
        [
            ("$hw/events/device/ns/d/twin/update/result", with("twin", json!({"t": twin}), "e1")),
            (
                "$hw/events/device/ns/d/twin/update/document",
                with("twin", json!({"t": {"last": null, "current": twin}}), "e1")
            ),
            ("$hw/events/device/ns/d/twin/update/delta", delta),
        ]
    );
    let again = update(Some(&mut device), json!({"event_id": "e2", "twin": {"t": {"actual": {"value": "1"}}}}));
    let topics: Vec<&str> = said(&again).iter().map(|(topic, _)| *topic).collect();
    assert_eq!(topics.len(), 2, "nothing differs any more: {topics:?}");
}

#[test]
fn the_end_of_an_optional_twin_is_answered_and_documented() {
    let mut device = device();
    update(Some(&mut device), json!({"twin": {"t": {"expected": {"value": "1"}}, "u": {"actual": {"value": "2"}}}}));
    let reaction = update(Some(&mut device), json!({"event_id": "e", "timestamp": 5, "twin": {"t": null}}));
    assert!(reaction.changed);
    let side = json!({"value": "1", "metadata": {"timestamp": STAMP.now_ms}});
    let last = json!({"expected": side, "optional": true, "metadata": {"type": "string"}});
    assert_eq!(
        said(&reaction),
        [
            (
                "$hw/events/device/ns/d/twin/update/result",
                json!({"event_id": "e", "timestamp": STAMP.now_ms, "twin": {"t": null}})
            ),
            (
                "$hw/events/device/ns/d/twin/update/document",
                json!({"event_id": "e", "timestamp": STAMP.now_ms, "twin": {"t": {"last": last, "current": null}}})
            ),
        ]
    );
    let left = said(&get_twin(STAMP, ID, Some(&device), b"{}"))[0].1["twin"].clone();
    assert_eq!(left.as_object().unwrap().keys().collect::<Vec<_>>(), ["u"]);
}

#[test]
fn a_topic_that_asks_no_device_for_anything_is_answered_with_its_event_id() {
    let refused = |topic: &str, payload: &[u8]| {
        let Some(Request::Wrong { answer, wrong }) = Request::of("n", topic) else { panic!("{topic} is a request") };
        refuse(STAMP, answer, payload, &wrong)
    };
    let body = |event_id: &str, reason: &str| json!({"event_id": event_id, "timestamp": STAMP.now_ms, "code": 400, "reason": reason});
    let reason =
        "ns/Boiler_1 can be no device: a device is named <namespace>/<name>, in small letters, digits, - and .";
    assert_eq!(
        said(&refused("$hw/events/device/ns/Boiler_1/twin/update", br#"{"event_id": "e", "twin": {}}"#)),
        [("$hw/events/device/ns/Boiler_1/twin/update/result", body("e", reason))]
    );
    let reason = "twin/delete is none of twin/get, twin/update and twin/cloud_updated";
    assert_eq!(
        said(&refused("$hw/events/device/ns/d/twin/delete", b"{")),
        [("$hw/events/device/ns/d/twin/delete/result", body("", reason))]
    );
}

#[test]
fn attributes_have_bounds() {
    let mut device = device();
    let mut update = |attributes: Value| {
        let payload = json!({"event_id": "a", "attributes": attributes}).to_string();
        let reaction = update_state(STAMP, "", ID, Some(&mut device), payload.as_bytes());
        let (topic, body) = said(&reaction)[0].clone();
        assert_eq!(reaction.changed, topic.ends_with("/updated"), "{body}");
        body["reason"].as_str().unwrap_or_default().to_owned()
    };
    let long = |bytes: usize| "x".repeat(bytes);
    assert_eq!(update(json!({"room": {"value": "am Ende des Flurs", "metadata": {"type": "string"}}})), "");
    assert_eq!(update(json!({long(128): {"value": long(1024)}})), "");
    for (attributes, reason) in [
        (json!({"": {"value": "x"}}), "attribute \"\": its name is empty"),
        (json!({long(129): {"value": "x"}}), "its name has 129 bytes, expected at most 128"),
        (json!({"a": {"value": long(1025)}}), "attribute \"a\": its value has 1025 bytes, expected at most 1024"),
        (json!({"a": {"value": "x", "metadata": {"type": long(65)}}}), "its type has 65 bytes"),
        (json!({"a": {"value": "x\u{0}"}}), "attribute \"a\": its value has control characters"),
        (json!({"b\n": null}), "its name has control characters"),
    ] {
        let said = update(attributes);
        assert!(said.contains(reason) && said.len() < 200, "{said}, expected {reason}");
    }
    let many = |from: usize, to: usize| -> Value {
        (from..to).map(|index| (index.to_string(), json!({"value": "x"}))).collect::<serde_json::Map<_, _>>().into()
    };
    // Two are there.
    assert_eq!(update(many(0, 1022)), "");
    assert_eq!(update(many(1022, 1023)), "the device would have 1025 attributes, expected at most 1024");
    let mut changed = many(0, 1022);
    changed["0"]["value"] = "y".into();
    assert_eq!(update(changed), "", "those that are there may change");
}

#[test]
fn bad_requests_and_unknown_devices_are_answered_with_code_and_reason() {
    for (payload, code, reason) in [
        (json!({"event_id": "e", "twin": {"a b": {}}}), 400, Wrong::Key.to_string()),
        (json!({"event_id": "e"}), 400, Wrong::NoTwin.to_string()),
        (json!({"event_id": "e", "twin": 3}), 400, Wrong::Body.to_string()),
        (
            json!({"event_id": "e", "twin": {"a": {"actual": {"value": "x"}, "metadata": {"type": "int"}}}}),
            400,
            "the value is not int or integer".into(),
        ),
        (json!({"event_id": "e", "twin": {"gone": null}}), 400, "The request body is wrong".into()),
    ] {
        let mut device = device();
        let reaction = update(Some(&mut device), payload.clone());
        let expected = json!({"event_id": "e", "timestamp": STAMP.now_ms, "code": code, "reason": reason});
        assert_eq!(said(&reaction), [("$hw/events/device/ns/d/twin/update/result", expected)], "{payload}");
        assert!(!reaction.changed);
    }
    let unknown = update(None, json!({"event_id": "e", "twin": {}}));
    assert_eq!(said(&unknown)[0].1["code"], 404);
    assert_eq!(said(&unknown)[0].1["reason"], "Update rejected due to the device is not existed");
    let broken = update_twin(STAMP, ID, None, b"{\"twin\": ", Origin::Local);
    assert_eq!((said(&broken)[0].1["code"].as_i64(), &said(&broken)[0].1["event_id"]), (Some(400), &json!("")));
    let large = oversize(STAMP, "n", &Request::UpdateTwin(ID.into()), 10_000_000);
    assert_eq!(said(&large)[0].0, "$hw/events/device/ns/d/twin/update/result");
    assert!(said(&large)[0].1["reason"].as_str().unwrap().contains("10000000 bytes"));
}

#[test]
fn a_twin_is_given_to_who_asks() {
    let mut device = device();
    update(Some(&mut device), json!({"twin": {"t": {"actual": {"value": "1"}}}}));
    let got = get_twin(STAMP, ID, Some(&device), br#"{"event_id": "g", "timestamp": 1}"#);
    let twin = json!({"t": {"actual": {"value": "1", "metadata": {"timestamp": STAMP.now_ms}}, "optional": true,
        "metadata": {"type": "string"}}});
    let expected = json!({"event_id": "g", "timestamp": STAMP.now_ms, "twin": twin});
    assert_eq!(said(&got), [("$hw/events/device/ns/d/twin/get/result", expected)]);
    assert_eq!(said(&get_twin(STAMP, ID, None, b"{}"))[0].1["reason"], "Device ns/d not found while getting twin");
    assert_eq!(said(&get_twin(STAMP, ID, Some(&device), b"7"))[0].1["code"], 400);
}

#[test]
fn a_state_is_kept_as_it_is_sent_and_a_wrong_one_is_answered() {
    let mut device = device();
    let now = "2026-01-01T00:00:00Z";
    let payload = br#"{"event_id": "s", "State": "OK", "attributes": {"room": {"value": "7"}}}"#;
    let reaction = update_state(STAMP, now, ID, Some(&mut device), payload);
    assert!(reaction.changed);
    let expected = json!({"event_id": "fresh", "timestamp": STAMP.now_ms,
        "device": {"name": "d", "state": "OK", "lastOnlineTime": now}});
    let described = json!({"event_id": "s", "timestamp": STAMP.now_ms, "attributes": {"room": {"value": "7"}}});
    assert_eq!(
        said(&reaction),
        [("$hw/events/device/ns/d/state/update/result", expected), ("$hw/events/device/ns/d/updated", described)]
    );
    let off = update_state(STAMP, now, ID, Some(&mut device), br#"{"state": "offline"}"#);
    assert_eq!((off.changed, device.last_online_time.as_str()), (true, ""));
    let before = device.clone();
    for bad in [&br#"{"event_id": "b", "state": "sleeping"}"#[..], br#"{"event_id": "b"}"#, b"{", br#"{"state": 1}"#] {
        let refused = update_state(STAMP, now, ID, Some(&mut device), bad);
        assert_eq!(said(&refused)[0].1["code"], 400, "{}", String::from_utf8_lossy(bad));
        assert_eq!(device, before);
    }
    assert_eq!(said(&update_state(STAMP, now, ID, None, br#"{"state": "ok"}"#))[0].1["code"], 404);
}

#[test]
fn membership_names_each_device_that_comes_and_goes() {
    let topic = || of_node("n", "membership/updated");
    let come = membership(STAMP, topic(), listed(ID, "on the wall", None), true);
    let body: Value = serde_json::from_slice(&come.payload).unwrap();
    let device = json!({"id": "ns/d", "name": "d", "description": "on the wall"});
    assert_eq!(come.topic, "$hw/events/node/n/membership/updated");
    let expected = json!({"event_id": "fresh", "timestamp": STAMP.now_ms, "added_devices": [device],
        "removed_devices": null});
    assert_eq!(body, expected);
    let gone: Value = serde_json::from_slice(&membership(STAMP, topic(), listed(ID, "", None), false).payload).unwrap();
    assert_eq!((&gone["added_devices"], gone["removed_devices"][0]["id"].as_str()), (&Value::Null, Some("ns/d")));
    let all = get_membership(STAMP, "t".into(), vec![listed(ID, "", Some(&self::device()))], br#"{"event_id": "m"}"#);
    assert_eq!(said(&all)[0].1["devices"], json!([{"id": "ns/d", "name": "d"}]));
    let mut known = self::device();
    let now = "2026-01-01T00:00:00Z";
    let payload = json!({"state": "online", "attributes":
        {"room": {"value": "7", "optional": false, "metadata": {"type": "int"}}, "floor": {"value": "2"}}});
    update_state(STAMP, now, ID, Some(&mut known), payload.to_string().as_bytes());
    let topic = of_node("n", "membership/get/result");
    let asked = br#"{"event_id": "m", "timestamp": 5}"#;
    let all = get_membership(STAMP, topic, vec![listed(ID, "on the wall", Some(&known))], asked);
    let expected = json!({"event_id": "m", "timestamp": STAMP.now_ms, "devices": [
        {"id": "ns/d", "name": "d", "description": "on the wall", "state": "online", "last_online": now,
            "attributes": {"room": {"value": "7", "optional": false, "metadata": {"type": "int"}},
                "floor": {"value": "2", "optional": true}}}]});
    assert_eq!(said(&all), [("$hw/events/node/n/membership/get/result", expected)]);
    assert_eq!(said(&get_membership(STAMP, "t".into(), vec![], b"x"))[0].1["code"], 400);
}

#[test]
fn a_change_of_the_cloud_is_documented_and_not_answered() {
    let mut device = device();
    let payload = json!({"event_id": "c", "twin": {"t": {"expected": {"value": "5"}, "metadata": {"type": "string"},
        "expected_version": {"cloud": 1, "edge": 0}}}});
    let reaction = update_twin(STAMP, ID, Some(&mut device), payload.to_string().as_bytes(), Origin::Cloud);
    let side = json!({"value": "5", "metadata": {"timestamp": STAMP.now_ms}});
    let twin = json!({"expected": side, "optional": true, "metadata": {"type": "string"}});
    assert_eq!(
        said(&reaction),
        [
            (
                "$hw/events/device/ns/d/twin/update/document",
                json!({"event_id": "c", "timestamp": STAMP.now_ms, "twin": {"t": {"last": null, "current": twin}}})
            ),
            (
                "$hw/events/device/ns/d/twin/update/delta",
                json!({"event_id": "fresh", "timestamp": STAMP.now_ms, "twin": {"t": twin}, "delta": {"t": "5"}})
            ),
        ]
    );
}

#[test]
fn a_change_of_the_cloud_that_is_behind_is_answered_with_what_the_edge_has() {
    let mut device = device();
    update(Some(&mut device), json!({"twin": {"t": {"expected": {"value": "7"}, "metadata": {"type": "int"}}}}));
    let cloud = |device: &mut Device, twins: Value| {
        let payload = json!({"event_id": "c", "twin": twins}).to_string();
        update_twin(STAMP, ID, Some(device), payload.as_bytes(), Origin::Cloud)
    };
    let side = |value: &str, versions: Value| json!({"expected": {"value": value}, "expected_version": versions});
    let before = device.clone();
    let refused =
        cloud(&mut device, json!({"t": side("5", json!({"cloud": 9, "edge": 0})), "new": {"actual": {"value": "1"}}}));
    assert_eq!(device, before);
    assert!(refused.conflict && !refused.changed);
    let (topic, body) = said(&refused)[0].clone();
    assert_eq!((topic, &body["code"]), ("$hw/events/device/ns/d/twin/update/result", &json!(409)));
    let own = &body["twin"]["t"];
    assert_eq!((&own["expected"]["value"], &own["expected_version"]), (&json!("7"), &json!({"cloud": 0, "edge": 1})));
    assert_eq!(body["twin"].get("new"), Some(&Value::Null), "it came without versions, and there is none here");

    let half = cloud(
        &mut device,
        json!({"t": side("5", json!({"cloud": 9, "edge": 0})), "other": side("1", json!({"cloud": 1, "edge": 0}))}),
    );
    assert!(half.conflict && half.changed, "one twin does not hold up the other");
    let known = cloud(&mut device, json!({"t": side("5", json!({"cloud": 9, "edge": 1}))}));
    assert!(known.changed && !known.conflict);
    let wrong = cloud(&mut device, json!({"t": side("x", json!({"cloud": 10, "edge": 1}))}));
    assert_eq!((said(&wrong)[0].1["code"].as_i64(), wrong.changed, wrong.conflict), (Some(400), false, false));
}
