//! Each cargo feature is checked alone: `make features` has a list of its own.

use std::collections::BTreeSet;

#[test]
fn make_features_checks_every_feature_alone_and_none_at_all() {
    let (manifest, makefile) = (include_str!("../../Cargo.toml"), include_str!("../../../Makefile"));
    let section = manifest.split("\n[").find_map(|section| section.strip_prefix("features]\n")).expect("features");
    let declared = section.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    let declared: BTreeSet<&str> = declared.map(|(name, _)| name).filter(|name| *name != "default").collect();
    assert!(declared.contains("store") && declared.contains("standalone"), "{declared:?}");
    let listed = makefile.lines().find_map(|line| line.strip_prefix("FEATURES := ")).expect("a list");
    let listed: BTreeSet<&str> = listed.split(' ').collect();
    let missing: Vec<_> = declared.symmetric_difference(&listed).collect();
    assert!(missing.is_empty(), "in one of Cargo.toml and Makefile only: {missing:?}");
    let none = "$(CARGO) check -p kubeedge-actors --no-default-features";
    assert!(makefile.lines().any(|line| line.trim() == none), "the kit alone is checked");
}
