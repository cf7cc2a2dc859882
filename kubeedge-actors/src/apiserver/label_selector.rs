//! `metav1.LabelSelector`: as requirements to match by, and as the text that `Scale` and tables show.

use serde_json::Value;

use super::object::text;
use super::selector::{Operator, Requirement};

/// The requirements of a selector object; `None` when it has an operator that does not exist. One without requirements
/// matches everything, and nothing at all is `None` too.
pub(crate) fn requirements(selector: &Value) -> Option<Vec<Requirement>> {
    let fields = selector.as_object()?;
    let labels = fields.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut all: Vec<Requirement> = labels
        .map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In(vec![value.as_str().unwrap_or_default().to_owned()]),
        })
        .collect();
    for expression in fields.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        all.push(requirement(expression)?);
    }
    Some(all)
}

fn requirement(expression: &Value) -> Option<Requirement> {
    let values = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let operator = match text(expression, "operator") {
        "In" => Operator::In(values.collect()),
        "NotIn" => Operator::NotIn(values.collect()),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => return None,
    };
    Some(Requirement { key: text(expression, "key").to_owned(), operator })
}

/// Whether labels satisfy all requirements; `label` gives the value of a key.
pub(crate) fn matches<'a>(requirements: &[Requirement], label: impl Fn(&str) -> Option<&'a str>) -> bool {
    requirements.iter().all(|one| one.admits(label(&one.key)))
}

/// The selector as kubectl takes it with `-l`, in the order of its keys; empty for one that cannot be read.
pub(crate) fn to_text(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = requirements(selector)
        .unwrap_or_default()
        .into_iter()
        .map(|Requirement { key, operator }| {
            let list = |mut values: Vec<String>| {
                values.sort();
                values.join(",")
            };
            let part = match operator {
                // A label's one value is written shortly, a set of one is not told from it.
                Operator::In(values) if values.len() == 1 => format!("{key}={}", values[0]),
                Operator::In(values) => format!("{key} in ({})", list(values)),
                Operator::NotIn(values) => format!("{key} notin ({})", list(values)),
                Operator::Exists | Operator::GreaterThan(_) | Operator::LessThan(_) => key.clone(),
                Operator::DoesNotExist => format!("!{key}"),
            };
            (key, part)
        })
        .collect();
    parts.sort();
    parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::selector::parse_labels;
    use super::*;

    fn example() -> Value {
        json!({"matchLabels": {"b": "1", "app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["y", "x"]},
            {"key": "a", "operator": "DoesNotExist"},
            {"key": "z", "operator": "NotIn", "values": ["q"]},
            {"key": "c", "operator": "Exists"},
        ]})
    }

    #[test]
    fn the_text_of_a_selector_selects_what_it_does() {
        let text = to_text(&example());
        assert_eq!(text, "!a,app=web,b=1,c,tier in (x,y),z notin (q)");
        let (from_text, from_object) = (parse_labels(&text).unwrap(), requirements(&example()).unwrap());
        let good = [("app", "web"), ("b", "1"), ("c", ""), ("tier", "x")];
        for labels in [&good[..], &good[1..], &good[..3], &[good[0], good[1], good[2], good[3], ("a", "")]] {
            let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
            assert_eq!(matches(&from_text, label), matches(&from_object, label), "{labels:?}");
        }
        assert!(matches(&from_object, |key| good.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)));
    }

    #[test]
    fn an_unknown_operator_is_no_selector() {
        assert!(requirements(&json!({"matchExpressions": [{"key": "a", "operator": "Like"}]})).is_none());
        assert!(requirements(&Value::Null).is_none());
        assert_eq!(requirements(&json!({})), Some(Vec::new()));
    }
}
