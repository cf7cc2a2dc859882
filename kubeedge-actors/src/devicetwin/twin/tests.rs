use proptest::prelude::*;
use serde_json::json;

use super::*;

fn device() -> Device {
    Device::new(ObjectKey::new("ns", "d"), "u".into())
}

fn twins(value: serde_json::Value) -> Twins {
    serde_json::from_value(value).unwrap()
}

fn update(device: &mut Device, now_ms: i64, value: serde_json::Value) -> Result<Outcome, Wrong> {
    device.update(now_ms, &twins(value), Origin::Local)
}

fn version(side: &Option<TwinSideRecord>) -> (i64, i64) {
    side.as_ref().map_or((0, 0), |side| (side.cloud_version, side.edge_version))
}

#[test]
fn a_local_change_counts_the_edge_up_whatever_versions_it_names() {
    let mut device = device();
    let asked = json!({"t": {"actual": {"value": "1"}, "actual_version": {"cloud": 9, "edge": 9}}});
    for count in 1..=3 {
        let outcome = update(&mut device, count, asked.clone()).unwrap();
        assert_eq!(version(&device.twins["t"].actual), (0, count));
        let (_, now) = &outcome.document["t"];
        assert_eq!(now.as_ref().unwrap().actual.as_ref().unwrap().metadata, Some(ValueMetadata { timestamp: count }));
        assert_eq!(outcome.result["t"].as_ref().unwrap().actual_version, None, "answers carry no versions");
    }
}

#[test]
fn a_cloud_that_is_behind_is_refused_and_told_what_the_edge_has() {
    let mut device = device();
    update(&mut device, 1, json!({"t": {"expected": {"value": "edge"}}})).unwrap();
    let behind = twins(json!({"t": {"expected": {"value": "cloud"}, "metadata": {"type": "string"},
        "expected_version": {"cloud": 5, "edge": 0}}}));
    let outcome = device.update(2, &behind, Origin::Cloud).unwrap();
    assert!(!outcome.is_change());
    let told = outcome.conflicts["t"].as_ref().unwrap();
    assert_eq!(told.expected.as_ref().unwrap().value.as_deref(), Some("edge"));
    assert_eq!(told.expected_version, Some(Version { cloud: 0, edge: 1 }));
    let known = twins(json!({"t": {"expected": {"value": "cloud"}, "metadata": {"type": "string"},
        "expected_version": {"cloud": 5, "edge": 1}}}));
    let outcome = device.update(3, &known, Origin::Cloud).unwrap();
    assert!(outcome.is_change() && outcome.result.is_empty(), "an application asked nothing");
    assert_eq!(version(&device.twins["t"].expected), (5, 1));
    let unversioned = twins(json!({"t": {"expected": {"value": "x"}, "metadata": {"type": "string"}}}));
    assert!(!device.update(4, &unversioned, Origin::Cloud).unwrap().is_change(), "a sync carries versions");
}

#[test]
fn only_what_is_optional_can_be_deleted_and_its_tombstone_counts_on() {
    let mut device = device();
    update(
        &mut device,
        1,
        json!({"t": {"actual": {"value": "1"}}, "r": {"actual": {"value": "1"}, "optional": false}}),
    )
    .unwrap();
    let outcome = update(&mut device, 2, json!({"t": null, "r": null})).unwrap();
    assert_eq!(outcome.result, twins(json!({"t": null})));
    assert!(outcome.document["t"].1.is_none() && !outcome.document.contains_key("r"));
    assert_eq!((device.twins["t"].r#type.as_str(), version(&device.twins["t"].actual)), ("deleted", (0, 2)));
    assert_eq!(device.twins().keys().collect::<Vec<_>>(), ["r"]);
    assert!(!update(&mut device, 3, json!({"t": null})).unwrap().is_change(), "it is deleted already");
    update(&mut device, 4, json!({"t": {"actual": {"value": "2"}, "metadata": {"type": "int"}}})).unwrap();
    assert_eq!((device.twins["t"].r#type.as_str(), version(&device.twins["t"].actual)), ("int", (0, 3)));
    assert_eq!(update(&mut device, 5, json!({"none": null})), Err(Wrong::Nothing));
}

#[test]
fn once_required_a_twin_stays_so() {
    let mut device = device();
    for (asked, optional) in [(None, true), (Some(false), false), (Some(true), false)] {
        let mut twin = json!({"actual": {"value": "1"}});
        if let Some(asked) = asked {
            twin["optional"] = asked.into();
        }
        update(&mut device, 1, json!({"t": twin})).unwrap();
        assert_eq!(device.twins["t"].optional, optional, "{asked:?}");
    }
}

#[test]
fn a_request_is_applied_as_a_whole_or_not_at_all() {
    let mut device = device();
    update(&mut device, 1, json!({"n": {"actual": {"value": "1"}, "metadata": {"type": "int"}}})).unwrap();
    let before = device.clone();
    for bad in [
        json!({"a": {"actual": {"value": "x"}}, "n": {"actual": {"value": "x"}}}),
        json!({"a": {"actual": {"value": "x"}}, "z": {"actual": {"value": "1"}, "metadata": {"type": "double"}}}),
        json!({"a": {"actual": {"value": "x"}}, "z": {"actual": {}}}),
        json!({"a": {"actual": {"value": "x"}}, "z": null}),
    ] {
        assert!(update(&mut device, 2, bad.clone()).is_err(), "{bad}");
        assert_eq!(device, before, "{bad}");
    }
}

#[test]
fn what_the_cloud_desires_is_expected_and_counted_once() {
    let mut device = device();
    let desired = |value: &str| PropertyValue { value: value.into(), ..PropertyValue::default() };
    assert!(device.desire(1, "t", "float", Some(&desired("21"))));
    assert!(!device.desire(2, "t", "float", Some(&desired("21"))), "the same again is no news");
    assert_eq!(device.delta(), [("t".to_owned(), "21".to_owned())].into());
    assert_eq!(version(&device.twins["t"].expected), (1, 0));
    assert!(!device.twins["t"].optional, "an application cannot delete what the Device names");
    update(&mut device, 3, json!({"t": {"actual": {"value": "21"}}})).unwrap();
    assert!(device.delta().is_empty());
    assert!(device.desire(4, "t", "float", None));
    assert_eq!(device.twins()["t"].as_ref().unwrap().expected, None);
    assert!(device.desire(5, "new", "int", None), "a property without a desired value is there all the same");
    assert!(!device.desire(6, "new", "int", None));
}

#[test]
fn a_record_is_the_device() {
    let mut device = device();
    update(&mut device, 1, json!({"a": {"expected": {"value": "1"}, "actual": {"value": ""}}, "b": {}})).unwrap();
    device.state = Some("OK".into());
    let attributes = serde_json::from_value(json!({"room": {"value": "7"}})).unwrap();
    device.describe(&attributes).unwrap();
    assert_eq!(Device::of(device.record()), Some(device));
}

/// A change of the cloud of one twin.
fn from_cloud(value: u8, cloud: i64, edge: i64) -> Twins {
    twins(json!({"t": {"expected": {"value": value.to_string()}, "metadata": {"type": "string"},
        "expected_version": {"cloud": cloud, "edge": edge}}}))
}

proptest! {
    /// The cloud counts up; its messages come late, twice, in any order. The newest stands.
    #[test]
    fn any_order_of_the_clouds_changes_with_repeats_ends_with_the_newest(
        changes in 1..12i64,
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
    ) {
        let mut device = device();
        let mut seen = 0;
        for index in order {
            let cloud = index.index(changes as usize) as i64 + 1;
            let before = device.clone();
            let outcome = device.update(1, &from_cloud(cloud as u8, cloud, 0), Origin::Cloud).unwrap();
            if cloud < seen {
                prop_assert!(!outcome.is_change());
                prop_assert_eq!(&device, &before, "something older changes nothing");
            }
            seen = seen.max(cloud);
            let twin = &device.twins["t"];
            let newest = seen.to_string();
            prop_assert_eq!(value_of(&twin.expected), Some(newest.as_str()));
            prop_assert_eq!(version(&twin.expected), (seen, 0));
        }
    }

    /// Whatever the cloud sends, what an application said later than the cloud knew is not lost.
    #[test]
    fn a_newer_value_of_the_edge_is_never_lost(
        steps in prop::collection::vec((any::<bool>(), 0..4u8, 0..6i64, 0..6i64), 1..60),
    ) {
        let mut device = device();
        let mut last_local: Option<i64> = None;
        for (now, (local, value, cloud, edge)) in steps.into_iter().enumerate() {
            let before = device.twins.get("t").map_or((0, 0), |twin| version(&twin.expected));
            if local {
                update(&mut device, now as i64, json!({"t": {"expected": {"value": value.to_string()}}})).unwrap();
                let after = version(&device.twins["t"].expected);
                prop_assert_eq!(after, (before.0, before.1 + 1));
                last_local = Some(after.1);
            } else {
                let whole = device.clone();
                device.update(now as i64, &from_cloud(value, cloud, edge), Origin::Cloud).unwrap();
                if let (Some(at), Some(twin)) = (&last_local, device.twins.get("t")) {
                    let (_, edge_now) = version(&twin.expected);
                    prop_assert!(edge_now >= *at, "the edge's count never falls");
                    if edge < *at {
                        prop_assert_eq!(&device, &whole, "the cloud did not know");
                    }
                }
            }
        }
    }

    /// Twins of one request do not depend on each other.
    #[test]
    fn requests_about_different_twins_commute(
        first in prop::collection::btree_map("[a-c]", 0..3u8, 1..3),
        second in prop::collection::btree_map("[x-z]", 0..3u8, 1..3),
    ) {
        let request = |values: &BTreeMap<String, u8>| -> Twins {
            values.iter().map(|(name, value)| {
                let twin: MsgTwin = serde_json::from_value(json!({"actual": {"value": value.to_string()}})).unwrap();
                (name.clone(), Some(twin))
            }).collect()
        };
        let (first, second) = (request(&first), request(&second));
        let run = |order: [&Twins; 2]| {
            let mut device = device();
            for twins in order {
                device.update(7, twins, Origin::Local).unwrap();
            }
            device
        };
        prop_assert_eq!(run([&first, &second]), run([&second, &first]));
    }

    /// What is sent at least once may come twice: that changes nothing but counts and times.
    #[test]
    fn a_local_request_that_comes_again_at_once_changes_nothing_that_is_shown(
        requests in prop::collection::vec((0..3u8, 0..4u8, any::<bool>(), 1..4usize), 1..40),
    ) {
        let (mut once, mut often) = (device(), device());
        for (name, value, of_expected, times) in requests {
            let side = if of_expected { "expected" } else { "actual" };
            let name = format!("t{name}");
            // The last value stands for the twin's end.
            let asked = match value {
                3 => json!({name: null}),
                value => json!({name: {side: {"value": value.to_string()}, "metadata": {"type": "int"}}}),
            };
            let said = update(&mut once, 1, asked.clone()).is_ok();
            for _ in 0..times {
                prop_assert_eq!(update(&mut often, 1, asked.clone()).is_ok(), said);
            }
            prop_assert_eq!(once.twins(), often.twins());
            prop_assert_eq!(once.delta(), often.delta());
        }
    }

    /// What is expected of a twin and what it is do not depend on each other.
    #[test]
    fn the_two_sides_of_a_twin_commute(
        requests in prop::collection::vec((any::<bool>(), 0..4u8), 1..20),
    ) {
        let asked = |(of_expected, value): &(bool, u8)| {
            let side = if *of_expected { "expected" } else { "actual" };
            json!({"t": {side: {"value": value.to_string()}}})
        };
        let (mut mixed, mut sorted) = (device(), device());
        for request in &requests {
            update(&mut mixed, 7, asked(request)).unwrap();
        }
        let (expected, actual): (Vec<_>, Vec<_>) = requests.iter().partition(|(of_expected, _)| *of_expected);
        for request in actual.iter().chain(&expected) {
            update(&mut sorted, 7, asked(request)).unwrap();
        }
        prop_assert_eq!(mixed, sorted);
    }

    /// P-TWIN-CONVERGES: both ends write; each message comes late, repeated, out of turn, and once at least. Both end with the same value,
    /// and nobody overwrites what he had not seen.
    #[test]
    fn cloud_and_edge_converge_whatever_is_late_repeated_or_out_of_turn(
        steps in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<bool>()), 1..80),
    ) {
        let mut world = World::default();
        for (what, index, keep) in steps {
            match what {
                0 => world.edge_writes(),
                1 => world.cloud_writes(),
                2 if !world.down.is_empty() => {
                    let place = index.index(world.down.len());
                    let message = world.down[place];
                    if !keep { world.down.remove(place); }
                    world.at_edge(message)?;
                }
                3 if !world.up.is_empty() => {
                    let place = index.index(world.up.len());
                    let message = world.up[place];
                    if !keep { world.up.remove(place); }
                    world.at_cloud(message);
                }
                _ => {}
            }
        }
        // In the worst order: the newest first.
        while let Some(message) = world.down.pop() {
            world.at_edge(message)?;
        }
        while let Some(message) = world.up.pop() {
            world.at_cloud(message);
        }
        while let Some(message) = world.down.pop() {
            world.at_edge(message)?;
        }
        prop_assert_eq!(world.edge(), world.cloud.map(|(value, ..)| value));
    }
}

/// A value with both counts, as it is sent.
type Sent = (i64, i64, i64);

/// The edge's device, a cloud as 3.6 of the protocol has it, and what is on the way between them.
struct World {
    device: Device,
    cloud: Option<Sent>,
    down: Vec<Sent>,
    up: Vec<Sent>,
    values: i64,
}

impl Default for World {
    fn default() -> Self {
        Self { device: device(), cloud: None, down: Vec::new(), up: Vec::new(), values: 0 }
    }
}

impl World {
    fn edge(&self) -> Option<i64> {
        value_of(&self.device.twins.get("t")?.expected).map(|value| value.parse().unwrap())
    }

    /// What the edge tells the cloud: its value and its counts.
    fn told(&self) -> Option<Sent> {
        let twin = self.device.twins.get("t")?;
        let (cloud, edge) = version(&twin.expected);
        Some((self.edge()?, cloud, edge))
    }

    fn edge_writes(&mut self) {
        self.values += 1;
        update(&mut self.device, 1, json!({"t": {"expected": {"value": self.values.to_string()}}})).unwrap();
        self.up.extend(self.told());
    }

    fn cloud_writes(&mut self) {
        self.values += 1;
        let (_, cloud, edge) = self.cloud.unwrap_or_default();
        let sent = (self.values, cloud + 1, edge);
        self.cloud = Some(sent);
        self.down.push(sent);
    }

    fn at_edge(&mut self, (value, cloud, edge): Sent) -> Result<(), TestCaseError> {
        let seen = self.told().map_or(0, |(_, _, edge)| edge);
        let sent = twins(json!({"t": {"expected": {"value": value.to_string()},
            "expected_version": {"cloud": cloud, "edge": edge}}}));
        let outcome = self.device.update(1, &sent, Origin::Cloud).unwrap();
        if outcome.is_change() {
            prop_assert!(edge >= seen, "it overwrote what it had not seen");
        }
        if !outcome.conflicts.is_empty() {
            self.up.extend(self.told());
        }
        Ok(())
    }

    /// The edge wins: what it wrote after what the cloud knows of it stands.
    fn at_cloud(&mut self, (value, cloud, edge): Sent) {
        let known = self.cloud.unwrap_or_default();
        if edge > known.2 {
            self.cloud = Some((value, cloud.max(known.1), edge));
        }
    }
}
