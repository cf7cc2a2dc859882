//! Resources that change while containers run.

use proptest::prelude::*;

use super::*;

/// Two app containers and a sidecar of this size, in thousandths of a processor and MiB.
fn sized(policy: &str, cpu: u32, memory: u32, restarts: bool) -> PodPlan {
    let how = if restarts { "RestartContainer" } else { "NotRequired" };
    let amounts = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
    let sizes = json!({
        "resources": {"requests": amounts}, "resizePolicy": [{"resourceName": "memory", "restartPolicy": how}],
    });
    PodPlan::of(&probed_pod(policy, &[], &["s"], &["a", "b"], &sizes)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_runs_has_what_it_is_to_have_and_is_started_again_only_where_that_is_wanted(
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        steps in prop::collection::vec((1_u32..4, 1_u32..4, any::<bool>(), any::<bool>()), 1..12),
    ) {
        let mut sim = Sim::new(&probed_pod(policy, &[], &["s"], &["a", "b"], &json!({})));
        sim.plan = sized(policy, 1, 1, false);
        sim.settle();
        let mut before = (1, 1);
        for (cpu, memory, restarts, forgets) in steps {
            if forgets {
                // Another edgecore: it knows what containers were made with.
                sim.history = History::default();
            }
            // Long enough for a restart not to wait for the one before.
            sim.now += 1000;
            let known: Vec<Option<String>> = ["s", "a", "b"].map(|name| sim.live_id(name)).into();
            sim.plan = sized(policy, cpu, memory, restarts);
            sim.settle();
            for (container, known) in ["s", "a", "b"].into_iter().zip(known) {
                prop_assert!(sim.running(container), "{} runs", container);
                let id = sim.live_id(container);
                // What is never started again gets it in place, whatever it would rather have.
                let restarts = restarts && (policy != "Never" || container == "s");
                if !restarts {
                    prop_assert_eq!(&id, &known, "in place");
                } else if memory != before.1 && !forgets {
                    prop_assert_ne!(&id, &known, "another amount of memory takes a restart");
                }
                let instance = sim.model.instances.iter().find(|one| Some(&one.id) == id.as_ref()).unwrap();
                let planned = sim.plan.containers.iter().find(|planned| planned.name == container).unwrap();
                prop_assert_eq!(sim.history.sizes(instance), planned.resources.sizes);
            }
            let conditions = sim.status.conditions.clone().unwrap();
            prop_assert!(!conditions.iter().any(|one| one.type_.starts_with("PodResize")), "nothing is under way");
            before = (cpu, memory);
        }
    }
}
