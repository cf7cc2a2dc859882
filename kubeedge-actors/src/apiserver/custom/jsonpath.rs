//! The part of JSONPath that printer columns use: fields, `['quoted']`, `[0]`, `[*]`, and `[?(@.a=="b")]`.

use serde_json::Value;

/// Characters of a path at most.
const MAX_LENGTH: usize = 1024;

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items of a list whose field equals (or does not equal) a value.
    Where {
        field: Vec<String>,
        equal: bool,
        value: Value,
    },
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `.spec.level`, `.status.conditions[?(@.type=="Ready")].status` and the like.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("must be at most {MAX_LENGTH} bytes long"));
        }
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let name = &after[..end];
                match name {
                    "" => return Err(format!("a field name is expected at {rest:?}")),
                    "*" => steps.push(Step::All),
                    name => steps.push(Step::Field(name.replace('\\', ""))),
                }
                rest = &after[end..];
                // A backslash takes the dot after it into the name.
                while let Some(Step::Field(name)) = steps.last_mut()
                    && text[..text.len() - rest.len()].ends_with('\\')
                    && let Some(after) = rest.strip_prefix('.')
                {
                    let end = after.find(['.', '[']).unwrap_or(after.len());
                    name.push('.');
                    name.push_str(&after[..end].replace('\\', ""));
                    rest = &after[end..];
                }
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after).ok_or_else(|| format!("no closing bracket for {rest:?}"))?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
            } else {
                return Err(format!("a dot or a bracket is expected at {rest:?}"));
            }
        }
        Ok(Self(steps))
    }

    /// What the path finds, in order.
    pub(crate) fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.take(value)).collect();
        }
        found
    }
}

/// The place of the bracket that closes, outside quotes.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(at),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    ['"', '\''].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

fn bracket(inner: &str) -> Result<Step, String> {
    let inner = inner.trim();
    if inner == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquote(inner) {
        return Ok(Step::Field(name.to_owned()));
    }
    if let Ok(index) = inner.parse() {
        return Ok(Step::Index(index));
    }
    let filter = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')'));
    let Some(filter) = filter else {
        return Err(format!("[{inner}] is not supported: an index, *, a quoted name or ?(@.field==\"value\")"));
    };
    let (left, equal, right) = match (filter.split_once("=="), filter.split_once("!=")) {
        (Some((left, right)), _) => (left, true, right),
        (None, Some((left, right))) => (left, false, right),
        (None, None) => return Err(format!("a comparison with == or != is expected in {filter:?}")),
    };
    let field = left.trim().strip_prefix("@.").ok_or_else(|| format!("@.field is expected in {filter:?}"))?;
    let right = right.trim();
    let value = match unquote(right) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(right).map_err(|_| format!("{right:?} is not a value"))?,
    };
    Ok(Step::Where { field: field.split('.').map(str::to_owned).collect(), equal, value })
}

impl Step {
    fn take<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(index) => {
                let list = value.as_array().map_or(&[][..], Vec::as_slice);
                let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let place = if *index < 0 { length.saturating_add(*index) } else { *index };
                usize::try_from(place).ok().and_then(|place| list.get(place)).into_iter().collect()
            }
            Self::All => match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(fields) => fields.values().collect(),
                _ => Vec::new(),
            },
            Self::Where { field, equal, value: wanted } => {
                let items = value.as_array().into_iter().flatten();
                let of = |item: &'a Value| field.iter().try_fold(item, |value, name| value.get(name));
                items.filter(|item| of(item).is_some_and(|found| (found == wanted) == *equal)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_paths_of_real_columns_are_understood() {
        let object = json!({"spec": {"level": 3, "a.b": "x", "list": [1, 2]}, "status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, expected) in [
            (".spec.level", json!([3])),
            (".spec.a\\.b", json!(["x"])),
            (".spec['a.b']", json!(["x"])),
            (".spec.list[-1]", json!([2])),
            (".spec.list[*]", json!([1, 2])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type!='Ready')].status", json!(["False"])),
            (".spec.missing[0].x", json!([])),
        ] {
            assert_eq!(json!(JsonPath::parse(path).expect(path).find(&object)), expected, "{path}");
        }
        for bad in ["spec", "..a", ".a[", ".a[b]", ".a[?(@.b)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "[.\\[\\]a*0-9'\"?(@=!)\\\\$-]{0,30}") {
            if let Ok(parsed) = JsonPath::parse(&path) {
                parsed.find(&json!({"a": [{"a": 1}, [], null]}));
            }
        }
    }
}
