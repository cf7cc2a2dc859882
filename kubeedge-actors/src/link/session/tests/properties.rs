//! Windows and coalescing, whatever is given and settled in whatever order.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A status of this key, of so many bytes.
    Submit(usize, usize),
    /// One of those delivered is settled.
    Settle(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![4 => 2..200_usize, 1 => 20_000..70_000_usize];
    let step = prop_oneof![
        (0..4_usize, bytes).prop_map(|(key, bytes)| Step::Submit(key, bytes)),
        (0..100_usize).prop_map(Step::Settle),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Of a key one message is open at a time, each newer than the one before; never more are open than the window says;
    /// and what was given last arrives last (`P-ORDER-PER-KEY`, `P-MEMORY-BOUNDED`).
    #[test]
    fn the_newest_of_each_key_arrives_in_order_and_within_the_window(steps in steps(), messages in 1..4_u32) {
        let windows = Windows { state: Window { messages, bytes: 100_000 }, ..Windows::DEFAULT };
        let (mut edge, mut cloud) = pair(Config { windows, ..Config::default() });
        let mut given: BTreeMap<String, u64> = BTreeMap::new();
        let mut arrived: HashMap<String, u64> = HashMap::new();
        let mut open: Vec<(u64, String)> = Vec::new();
        let settle_all = std::iter::repeat_n(Step::Settle(0), 200);
        for (number, step) in steps.into_iter().chain(settle_all).enumerate() {
            match step {
                Step::Submit(key, bytes) => {
                    let (name, generation) = (format!("p{key}"), number as u64 + 1);
                    let mut body = status(&name, generation);
                    if let Body::StatusUpdate(update) = &mut body {
                        update.status_json = vec![b' '; bytes].into();
                    }
                    given.insert(name, generation);
                    edge.give(Input::Submit(Box::new(envelope(1, body))));
                }
                Step::Settle(_) if open.is_empty() => {}
                Step::Settle(which) => {
                    let (seq, _) = open.swap_remove(which % open.len());
                    cloud.give(Input::Settle { class: Class::State, seq, settled: Settled::applied() });
                }
            }
            exchange(&mut edge, &mut cloud);
            for (_, seq, it) in delivered(&mut cloud) {
                let Some(Body::StatusUpdate(update)) = it.body else { panic!("a status was sent") };
                let name = update.key.unwrap_or_default().name;
                prop_assert!(!open.iter().any(|(_, key)| *key == name), "two of {} are open", name);
                let before = arrived.insert(name.clone(), update.generation);
                prop_assert!(before.is_none_or(|before| before < update.generation));
                open.push((seq, name));
            }
            prop_assert!(open.len() <= messages as usize, "{} are open, {} may be", open.len(), messages);
        }
        prop_assert!(open.is_empty() && edge.session.queued_state() == 0);
        prop_assert_eq!(given, arrived.into_iter().collect::<BTreeMap<_, _>>());
    }
}
