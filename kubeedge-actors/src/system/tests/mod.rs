//! The guarantees of the kit, one test each, named by the guarantee; `docs/runtime-semantics.md` lists them.

mod parked;
mod ports;
pub(crate) mod probe;
mod shards;
mod stop;
mod supervision;
mod topics;
mod trace;
mod watchdog;
mod wiring;

/// Names of tests in the page's tables: what stands in backquotes and has three underscores or more.
#[test]
fn every_documented_guarantee_has_a_test_of_that_name_and_the_reverse() {
    let page = include_str!("../../../../docs/runtime-semantics.md");
    let sources = [
        include_str!("ports.rs"),
        include_str!("wiring.rs"),
        include_str!("supervision.rs"),
        include_str!("stop.rs"),
        include_str!("topics.rs"),
        include_str!("../buffer.rs"),
        include_str!("trace.rs"),
        include_str!("../restart.rs"),
        include_str!("watchdog.rs"),
        include_str!("shards.rs"),
        include_str!("parked.rs"),
        include_str!("../parked.rs"),
        include_str!("../progress.rs"),
    ]
    .concat();
    let documented: Vec<&str> =
        page.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() >= 3).collect();
    assert!(documented.len() > 40, "the page has changed its form: {documented:?}");
    for name in &documented {
        assert!(sources.contains(&format!("fn {name}(")), "the page names {name}, no test does");
    }
    for name in sources.split("fn ").filter_map(|code| code.split('(').next()) {
        let is_test = name.matches('_').count() >= 3 && name.chars().all(|c| c == '_' || c.is_ascii_lowercase());
        assert!(!is_test || documented.contains(&name), "{name} is not on the page");
    }
}
