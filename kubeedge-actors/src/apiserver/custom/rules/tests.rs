use proptest::prelude::*;
use serde_json::json;

use super::*;

fn schema(rules: Value) -> (Schema, Vec<String>) {
    let mut errors = Errors::default();
    let schema = json!({"type": "object", "properties": {"spec": {
        "type": "object", FIELD: rules,
        "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "rate": {"type": "number"},
            "a-b": {"type": "string"}, "namespace": {"type": "string"},
            "list": {"type": "array", "items": {"type": "integer"}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object",
                    FIELD: [{"rule": "self.size >= oldSelf.size", "message": "does not shrink"}],
                    "properties": {"name": {"type": "string"}, "size": {"type": "integer"}}}},
        },
    }}});
    let schema = Schema::compile(&schema, &Path::new("s"), &mut errors);
    (schema, errors.done().iter().map(ToString::to_string).collect())
}

fn judge(rule: &str, new: Value, old: Option<Value>) -> Vec<String> {
    let (schema, errors) = schema(json!([{"rule": rule}]));
    assert_eq!(errors, Vec::<String>::new(), "{rule}");
    let old = old.map(|old| json!({"spec": old}));
    evaluate(&schema, &json!({"spec": new}), old.as_ref()).iter().map(ToString::to_string).collect()
}

#[test]
fn rules_take_what_is_right_and_name_what_is_wrong() {
    for (rule, right, wrong) in [
        ("self.min <= self.max", json!({"min": 1, "max": 1}), json!({"min": 2, "max": 1})),
        ("!has(self.rate) || self.rate < 1.5", json!({"rate": 1}), json!({"rate": 2})),
        ("self.a__dash__b.startsWith('x')", json!({"a-b": "xy"}), json!({"a-b": "y"})),
        ("self.__namespace__ != ''", json!({"namespace": "n"}), json!({"namespace": ""})),
        ("self.list.all(one, one > 0) && size(self.list) < 3", json!({"list": [1]}), json!({"list": [1, -1]})),
        ("self.list.exists_one(one, one == 1)", json!({"list": [1, 2]}), json!({"list": [1, 1]})),
        ("self.list.filter(one, one > 1).size() == 1", json!({"list": [1, 2]}), json!({"list": [2, 2]})),
        ("self.map.all(key, key.matches('^[a-z]$'))", json!({"map": {"a": ""}}), json!({"map": {"A": ""}})),
        ("'on' in self.map ? self.max > 0 : true", json!({"map": {}}), json!({"map": {"on": ""}, "max": 0})),
        ("self.a__dash__b.lowerAscii().split(',').size() == 2", json!({"a-b": "A,B"}), json!({"a-b": "A"})),
    ] {
        assert_eq!(judge(rule, right, None), Vec::<String>::new(), "{rule}");
        let said = judge(rule, wrong, None);
        assert_eq!(said, [format!("spec: Invalid value: \"object\": failed rule: {rule}")]);
    }
    // A field that is not there is an error of the rule, not a pass.
    let said = judge("self.min > 0", json!({}), None);
    assert!(said.len() == 1 && said[0].contains("evaluating rule"), "{said:?}");
}

#[test]
fn what_was_there_counts_where_both_are_known_and_what_did_not_change_is_left() {
    let rule = "self.min == oldSelf.min";
    assert_eq!(judge(rule, json!({"min": 1}), None), Vec::<String>::new(), "a creation");
    assert_eq!(judge(rule, json!({"min": 1}), Some(json!({"min": 1}))), Vec::<String>::new());
    assert_eq!(judge(rule, json!({"min": 1}), Some(json!({"min": 2}))).len(), 1);
    let bad = json!({"min": 0});
    assert_eq!(judge("self.min > 0", bad.clone(), Some(bad.clone())), Vec::<String>::new(), "as it was");
    assert_eq!(judge("self.min > 0", bad, Some(json!({"min": 1}))).len(), 1);
    let items = |size: i64| json!({"items": [{"name": "x", "size": 9}, {"name": "a", "size": size}]});
    let moved = json!({"items": [{"name": "a", "size": 3}]});
    let said = judge("true", items(2), Some(moved.clone()));
    assert_eq!(said, ["spec.items[1]: Invalid value: \"object\": does not shrink"], "found by its key");
    assert_eq!(judge("true", items(3), Some(moved)), Vec::<String>::new());
}

#[test]
fn messages_reasons_and_places_are_the_rules_own() {
    let (schema, _) = schema(json!([
        {"rule": "self.min < 5", "messageExpression": "'at most 4, not ' + string(self.min)", "fieldPath": ".min"},
        {"rule": "self.min < 5", "message": "no", "reason": "FieldValueForbidden"},
    ]));
    let said = evaluate(&schema, &json!({"spec": {"min": 7}}), None);
    let said: Vec<String> = said.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["spec.min: Invalid value: \"object\": at most 4, not 7", "spec: Forbidden: no"]);
}

#[test]
fn a_rule_that_is_wrong_is_refused_and_one_that_is_beyond_is_named() {
    for wrong in ["self.", "nobody > 1", "self.list.all(x, y > 0)", ""] {
        let (_, errors) = schema(json!([{"rule": wrong}]));
        assert_eq!(errors.len(), 1, "{wrong}: {errors:?}");
    }
    for (rule, what) in [
        ("isURL(self.a__dash__b)", "isURL()"),
        ("quantity(self.a__dash__b).isGreaterThan(quantity('1'))", "isGreaterThan()"),
        ("self.list.map(x, [x] + [x]).size() > 1", "+ inside a loop"),
    ] {
        assert_eq!(beyond(&json!({"rule": rule})).as_deref(), Some(what));
        let (schema, errors) = schema(json!([{"rule": rule}]));
        assert!(errors.is_empty() && evaluate(&schema, &json!({"spec": {}}), None).is_empty(), "{rule}");
    }
    assert_eq!(beyond(&json!({"rule": "self.list.filter(x, x > 1).map(x, x * 2).size() > 1"})), None);
}

#[test]
fn what_rules_may_cost_is_bounded_before_they_run() {
    let nested = "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))";
    assert_eq!(beyond(&json!({"rule": nested})).as_deref(), Some("+ inside a loop"));
    let nested = "self.list.all(a, self.list.all(b, self.list.all(c, c == c && (a <= b || b <= a))))";
    assert_eq!(judge(nested, json!({"list": [1, 2, 3]}), None), Vec::<String>::new());
    let started = std::time::Instant::now();
    let said = judge(nested, json!({"list": (0..2000).collect::<Vec<_>>()}), None);
    assert!(said.len() == 1 && said[0].contains("fewer items"), "{said:?}");
    assert!(started.elapsed().as_secs() < 5);
    // A text that becomes a list counts with all its characters.
    let split = "self.a__dash__b.split('').all(a, self.a__dash__b.split('').all(b, a <= b || b <= a))";
    assert_eq!(judge(split, json!({"a-b": "abc"}), None), Vec::<String>::new());
    assert!(judge(split, json!({"a-b": "a".repeat(2000)}), None)[0].contains("fewer items"));
}

proptest! {
    #[test]
    fn no_expression_panics(source in "[a-z().\\[\\]'+<>=&|!?: 0-9self]{0,40}") {
        let (schema, _) = schema(json!([{"rule": source}]));
        evaluate(&schema, &json!({"spec": {"min": 1, "list": [1]}}), None);
    }
}
