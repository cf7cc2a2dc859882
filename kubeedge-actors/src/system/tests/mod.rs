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

/// The names of the tests in a source: what `#[test]`, or a runtime's, stands above.
fn tests_in(source: &str) -> Vec<&str> {
    let (mut names, mut marked) = (Vec::new(), false);
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[ignore") {
            marked = false;
        } else if line.starts_with("#[") {
            marked |= line == "#[test]" || line == "#[actix_rt::test]";
        } else if !line.starts_with("//") {
            let name = line.split_once("fn ").and_then(|(_, rest)| rest.split('(').next());
            names.extend(name.filter(|_| std::mem::take(&mut marked)));
        }
    }
    names
}

/// The names of tests on the page: what stands in backquotes in the last cell of a row.
fn named_on(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    rows.filter_map(|row| row.rsplit('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

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
    let (documented, tests) = (named_on(page), tests_in(&sources));
    assert!(documented.len() > 40, "the page has changed its form: {documented:?}");
    for name in &documented {
        assert!(tests.contains(name), "the page names {name}, which is no test");
    }
    for name in tests {
        assert!(documented.contains(&name), "{name} is not on the page");
    }
}

#[test]
fn only_what_runs_as_a_test_counts_as_one() {
    let source = "
        fn a_helper_that_is_no_test() {}
        #[test]
        // Why.
        #[expect(clippy::panic)]
        fn a_test_of_its_own() {}
        fn behind_it() {}
        #[actix_rt::test]
        async fn one_with_a_runtime() {}
        #[test]
        #[ignore = \"slow\"]
        fn one_that_does_not_run() {}
        #[cfg(test)]
        fn only_for_tests() {}";
    assert_eq!(tests_in(source), ["a_test_of_its_own", "one_with_a_runtime"]);
    let page = "| a `word_in_a_row` | `first_test`, `second_test` (property) |\n`beside_the_rows`";
    assert_eq!(named_on(page), ["first_test", "second_test"]);
}
