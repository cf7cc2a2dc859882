//! Strategic merge patch: a merge patch that knows which lists are merged item by item, and by which key.
//!
//! What is merged how comes from the schema of the kind and `merge_keys`; fields that no schema knows are merged as
//! plain JSON and dropped later by the kind's decode. Directives: `$patch` (`replace`, `delete`, `merge`),
//! `$retainKeys`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`. Nothing of them gets into the result.

use serde_json::{Map, Value};

use crate::apiserver::kind::Kind;
use crate::apiserver::kinds::schema::{self, Schemas, Type};
use crate::apiserver::merge_keys::{self, Merge};
use crate::apiserver::status::Status;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Most items of a patched list. Merging compares items with each other; without a bound a body of a few megabytes
/// could hold a processor for minutes.
const MAX_ITEMS: usize = 5_000;

/// Why a patch cannot be applied: always the patch's fault.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// A `$patch` directive other than the three there are.
    #[error("unknown patch type: {0}")]
    UnknownDirective(String),
    /// A directive whose value has the wrong form.
    #[error("{directive}: {wanted}")]
    BadDirective {
        /// The directive, e.g. `$retainKeys`.
        directive: String,
        /// What it should look like.
        wanted: &'static str,
    },
    /// An item of a list that is merged by a key it does not have.
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey {
        /// The key.
        key: &'static str,
        /// The item, shortened.
        item: String,
    },
    /// An item that is no object in a list of objects.
    #[error("{field}: items must be objects, found {found}")]
    NotAnObject {
        /// The list.
        field: String,
        /// The item, shortened.
        found: String,
    },
    /// The order names fewer items than the patch.
    #[error("the order in patch list doesn't match {ORDER}{0}: an item of the patch is not in it")]
    OrderIncomplete(String),
    /// A list above the bound.
    #[error("{field}: has more than {MAX_ITEMS} items")]
    TooMany {
        /// The list.
        field: String,
    },
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Self {
        let (code, reason) = match error {
            PatchError::TooMany { .. } => (422, "Invalid"),
            _ => (400, "BadRequest"),
        };
        Self { code, reason, message: error.to_string(), details: None }
    }
}

/// What `original` becomes by `patch`.
pub fn strategic_merge(kind: &Kind, original: &Value, patch: &Value) -> Result<Value, Status> {
    Ok(apply(kind, original, patch)?)
}

/// The same with the error as a value.
pub fn apply(kind: &Kind, original: &Value, patch: &Value) -> Result<Value, PatchError> {
    let schemas = Schemas::get();
    let root = schemas.struct_type(&schema::definition(kind));
    let merger = Merger { schemas };
    match (original, patch) {
        (Value::Object(original), Value::Object(patch)) => {
            Ok(Value::Object(merger.map(original.clone(), patch, root.as_ref())?))
        }
        (_, patch) => Ok(patch.clone()),
    }
}

struct Merger {
    schemas: &'static Schemas,
}

impl Merger {
    /// Type and merge facts of a field.
    fn field<'a>(&'a self, owner: Option<&'a Type>, name: &str) -> (Option<&'a Type>, Option<&'static Merge>) {
        match owner {
            Some(Type::Struct(index)) => {
                let owner = self.schemas.at(*index);
                (owner.fields.get(name).map(|field| &field.type_), merge_keys::of(&owner.name, name))
            }
            Some(Type::Map(item)) => (Some(item), None),
            _ => (None, None),
        }
    }

    /// Merges `patch` into an object of type `type_`.
    fn map(
        &self,
        mut original: Map<String, Value>,
        patch: &Map<String, Value>,
        type_: Option<&Type>,
    ) -> Result<Map<String, Value>, PatchError> {
        match patch.get(PATCH).map(Value::as_str) {
            None | Some(Some("merge")) => {}
            Some(Some("replace")) => return Ok(plain_map(patch)),
            Some(Some("delete")) => return Ok(Map::new()),
            Some(other) => return Err(PatchError::UnknownDirective(other.unwrap_or("not a string").to_owned())),
        }
        if let Some(kept) = patch.get(RETAIN_KEYS) {
            retain(&mut original, patch, kept)?;
        }
        for (name, value) in patch.iter().filter(|(name, _)| !is_directive(name)) {
            let (field_type, merge) = self.field(type_, name);
            if value.is_null() {
                original.remove(name);
                continue;
            }
            let new = match (original.remove(name), value) {
                (Some(Value::Object(old)), Value::Object(value)) => Value::Object(self.map(old, value, field_type)?),
                (old, Value::Object(value)) => {
                    // Against nothing, so that directives do what they say and nothing of them stays.
                    let deleted = value.get(PATCH).is_some_and(|directive| directive == "delete");
                    match (old, deleted) {
                        (None, true) => continue,
                        _ => Value::Object(self.map(Map::new(), value, field_type)?),
                    }
                }
                (old, Value::Array(items)) => {
                    let old = match old {
                        Some(Value::Array(old)) => old,
                        _ => Vec::new(),
                    };
                    Value::Array(self.list(name, old, items, field_type, merge)?)
                }
                (_, value) => value.clone(),
            };
            original.insert(name.clone(), new);
        }
        for (directive, value) in patch {
            if let Some(name) = directive.strip_prefix(DELETE_FROM) {
                delete_from(&mut original, directive, name, value)?;
            }
        }
        for (directive, value) in patch {
            if let Some(name) = directive.strip_prefix(ORDER) {
                let (_, merge) = self.field(type_, name);
                let Some(order) = value.as_array() else {
                    return Err(PatchError::BadDirective { directive: directive.clone(), wanted: "must be a list" });
                };
                let key = merge.map_or("", |merge| merge.key);
                set_order(&mut original, name, order, patch.get(name), key)?;
            }
        }
        Ok(original)
    }

    /// Merges the items of a patched list.
    fn list(
        &self,
        name: &str,
        old: Vec<Value>,
        patch: &[Value],
        type_: Option<&Type>,
        merge: Option<&'static Merge>,
    ) -> Result<Vec<Value>, PatchError> {
        if old.len().max(patch.len()) > MAX_ITEMS {
            return Err(PatchError::TooMany { field: name.to_owned() });
        }
        let Some(merge) = merge.filter(|merge| merge.merges()) else {
            return Ok(patch.iter().map(plain).collect());
        };
        if merge.key.is_empty() {
            let mut all = old.clone();
            for item in patch.iter().filter(|item| !item.is_null()) {
                if !all.contains(item) {
                    all.push(item.clone());
                }
            }
            return Ok(ordered(all, patch, &old, same_scalar));
        }
        let item_type = match type_ {
            Some(Type::List(item)) => Some(item.as_ref()),
            _ => None,
        };
        let mut merged = old.clone();
        let mut added = Vec::new();
        let mut replace = false;
        for item in patch {
            let Value::Object(fields) = item else {
                return Err(PatchError::NotAnObject { field: name.to_owned(), found: shortened(item) });
            };
            match fields.get(PATCH).map(Value::as_str) {
                None => {}
                Some(Some("replace")) => {
                    replace = true;
                    continue;
                }
                Some(Some("delete")) => {
                    let value = merge_value(item, merge.key)?;
                    merged.retain(|old| old.get(merge.key) != Some(value));
                    continue;
                }
                Some(Some("merge")) => {
                    return Err(PatchError::BadDirective {
                        directive: PATCH.to_owned(),
                        wanted: "merging lists cannot yet be specified in the patch",
                    });
                }
                Some(other) => return Err(PatchError::UnknownDirective(other.unwrap_or("not a string").to_owned())),
            }
            added.push((item, fields));
        }
        if replace {
            return Ok(added.into_iter().map(|(item, _)| plain(item)).collect());
        }
        for (item, fields) in &added {
            let value = merge_value(item, merge.key)?;
            let found = merged.iter_mut().find(|old| old.get(merge.key) == Some(value));
            match found {
                Some(place) => {
                    let old = place.as_object().cloned().unwrap_or_default();
                    *place = Value::Object(self.map(old, fields, item_type)?);
                }
                None => merged.push(Value::Object(self.map(Map::new(), fields, item_type)?)),
            }
        }
        let order: Vec<Value> = added.into_iter().map(|(item, _)| item.clone()).collect();
        Ok(ordered(merged, &order, &old, |a, b| a.get(merge.key) == b.get(merge.key)))
    }
}

fn is_directive(name: &str) -> bool {
    name == PATCH || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ORDER)
}

fn merge_value<'a>(item: &'a Value, key: &'static str) -> Result<&'a Value, PatchError> {
    item.get(key).ok_or_else(|| PatchError::NoMergeKey { key, item: shortened(item) })
}

/// The start of a value, for messages.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

/// Keeps only the named fields of the original; the patch may not set others.
fn retain(original: &mut Map<String, Value>, patch: &Map<String, Value>, kept: &Value) -> Result<(), PatchError> {
    let bad = |wanted| PatchError::BadDirective { directive: RETAIN_KEYS.to_owned(), wanted };
    let kept = kept.as_array().ok_or_else(|| bad("must be a list"))?;
    let is_kept = |name: &str| kept.iter().any(|k| k == name);
    if patch.iter().any(|(name, value)| !value.is_null() && !is_directive(name) && !is_kept(name)) {
        return Err(bad("must name every field that the patch sets"));
    }
    original.retain(|name, _| is_kept(name));
    Ok(())
}

fn delete_from(original: &mut Map<String, Value>, directive: &str, name: &str, gone: &Value) -> Result<(), PatchError> {
    let Some(gone) = gone.as_array() else {
        return Err(PatchError::BadDirective { directive: directive.to_owned(), wanted: "must be a list" });
    };
    if let Some(items) = original.get_mut(name).and_then(Value::as_array_mut) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// Puts a list in the order that the patch asks for; items the patch does not name keep their places among themselves.
fn set_order(
    original: &mut Map<String, Value>,
    name: &str,
    order: &[Value],
    patch: Option<&Value>,
    key: &str,
) -> Result<(), PatchError> {
    let same = |a: &Value, b: &Value| {
        if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
    };
    if order.len() > MAX_ITEMS {
        return Err(PatchError::TooMany { field: name.to_owned() });
    }
    let set = patch.and_then(Value::as_array).into_iter().flatten().filter(|item| item.get(PATCH).is_none());
    for item in set {
        if !order.iter().any(|o| same(o, item)) {
            return Err(PatchError::OrderIncomplete(name.to_owned()));
        }
    }
    if let Some(Value::Array(items)) = original.get_mut(name) {
        let merged = std::mem::take(items);
        *items = ordered(merged.clone(), order, &merged, same);
    }
    Ok(())
}

fn same_scalar(a: &Value, b: &Value) -> bool {
    a == b
}

/// Sorts items that `order` names by it, and weaves in the others: each before the first ordered item that stood behind
/// it in `before`.
fn ordered(items: Vec<Value>, order: &[Value], before: &[Value], same: impl Fn(&Value, &Value) -> bool) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item));
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in items {
        let was = place(before, &item);
        match place(order, &item) {
            Some(at) => named.push((at, was, item)),
            None => others.push((was, item)),
        }
    }
    named.sort_by_key(|(at, _, _)| *at);
    others.sort_by_key(|(was, _)| *was);
    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, was, item) in named {
        while let Some((Some(_), other)) =
            others.next_if(|(other, _)| matches!((other, was), (Some(other), Some(was)) if *other < was))
        {
            result.push(other);
        }
        result.push(item);
    }
    result.extend(others.map(|(_, item)| item));
    result
}

/// A value of a patch as it is stored where there was nothing: without directives and nulls.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(plain_map(fields)),
        Value::Array(items) => {
            let deleted = |item: &&Value| item.get(PATCH).is_some_and(|directive| directive == "delete");
            Value::Array(items.iter().filter(|item| !deleted(item)).map(plain).collect())
        }
        value => value.clone(),
    }
}

fn plain_map(fields: &Map<String, Value>) -> Map<String, Value> {
    fields
        .iter()
        .filter(|(name, value)| !is_directive(name) && !value.is_null())
        .map(|(name, value)| (name.clone(), plain(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::apiserver::kinds;

    fn pods() -> &'static Kind {
        kinds::find("", "v1", "pods").expect("pods are served")
    }

    fn patched(original: Value, patch: Value) -> Value {
        apply(pods(), &original, &patch).expect("the patch applies")
    }

    fn containers(list: Value) -> Value {
        json!({"spec": {"containers": list}})
    }

    fn names(object: &Value) -> Vec<&str> {
        let list = object["spec"]["containers"].as_array().expect("a list");
        list.iter().map(|c| c["name"].as_str().expect("a name")).collect()
    }

    #[test]
    fn lists_with_a_key_are_merged_and_others_replaced() {
        let original =
            containers(json!([{"name": "a", "image": "1", "args": ["x", "y"], "env": [{"name": "E", "value": "1"}]}]));
        let patch = containers(json!([{"name": "a", "args": ["z"], "env": [{"name": "F", "value": "2"}]}]));
        assert_eq!(
            patched(original, patch),
            containers(json!([{"name": "a", "image": "1", "args": ["z"],
                "env": [{"name": "F", "value": "2"}, {"name": "E", "value": "1"}]}]))
        );
        let tolerations = json!({"spec": {"tolerations": [{"key": "b"}]}});
        assert_eq!(patched(json!({"spec": {"tolerations": [{"key": "a"}]}}), tolerations.clone()), tolerations);
    }

    #[test]
    fn null_removes_a_field() {
        let original = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n"}});
        let patch = json!({"metadata": {"labels": {"a": null}}, "spec": {"nodeName": null, "hostname": null}});
        assert_eq!(patched(original, patch), json!({"metadata": {"labels": {"b": "2"}}, "spec": {}}));
    }

    #[test]
    fn an_item_is_deleted_or_the_list_replaced_by_directive() {
        let original = containers(json!([{"name": "a"}, {"name": "b"}]));
        let gone = patched(original.clone(), containers(json!([{"name": "a", "$patch": "delete"}])));
        assert_eq!(gone, containers(json!([{"name": "b"}])));
        let new = patched(original.clone(), containers(json!([{"$patch": "replace"}, {"name": "c", "image": null}])));
        assert_eq!(new, containers(json!([{"name": "c"}])));
        let spec = patched(original, json!({"spec": {"$patch": "replace", "nodeName": "n"}}));
        assert_eq!(spec, json!({"spec": {"nodeName": "n"}}));
    }

    #[test]
    fn primitive_lists_are_joined_and_trimmed() {
        let original = json!({"metadata": {"finalizers": ["a", "b"]}});
        let joined = patched(original.clone(), json!({"metadata": {"finalizers": ["b", "c"]}}));
        assert_eq!(joined, json!({"metadata": {"finalizers": ["a", "b", "c"]}}));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"],
            "$setElementOrder/finalizers": ["c", "b"]}});
        assert_eq!(patched(original, patch), json!({"metadata": {"finalizers": ["c", "b"]}}));
    }

    #[test]
    fn the_order_directive_orders_and_keeps_what_it_does_not_name() {
        let original = containers(json!([{"name": "a"}, {"name": "injected"}, {"name": "b"}]));
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            "containers": [{"name": "a", "image": "2"}]}});
        let result = patched(original, patch);
        assert_eq!(names(&result), ["injected", "b", "a"]);
        assert_eq!(result["spec"]["containers"][2]["image"], "2");
    }

    #[test]
    fn retained_keys_change_one_volume_source_into_another() {
        let original = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let patch = json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"},
            "$retainKeys": ["name", "hostPath"]}]}});
        assert_eq!(patched(original, patch), json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}));
    }

    #[test]
    fn bad_patches_are_refused() {
        let refused = |patch: Value| apply(pods(), &containers(json!([{"name": "a"}])), &patch).expect_err("refused");
        assert_eq!(refused(json!({"$patch": "burn"})), PatchError::UnknownDirective("burn".to_owned()));
        assert!(matches!(refused(containers(json!([{"image": "x"}]))), PatchError::NoMergeKey { key: "name", .. }));
        assert!(matches!(refused(containers(json!(["x"]))), PatchError::NotAnObject { .. }));
        assert!(matches!(refused(json!({"spec": {"$retainKeys": "x"}})), PatchError::BadDirective { .. }));
        let order = json!({"spec": {"$setElementOrder/containers": [], "containers": [{"name": "a"}]}});
        assert!(matches!(refused(order), PatchError::OrderIncomplete(_)));
        let many = vec![json!({"name": "a"}); MAX_ITEMS + 1];
        assert!(matches!(refused(containers(json!(many))), PatchError::TooMany { .. }));
        assert_eq!(Status::from(PatchError::UnknownDirective("x".to_owned())).code, 400);
    }

    /// The patch that turns one list of containers into another, with every directive it takes.
    fn difference(old: &Value, new: &Value) -> Value {
        let list = |object: &Value| object["spec"]["containers"].as_array().cloned().unwrap_or_default();
        let (old, new) = (list(old), list(new));
        let mut items: Vec<Value> = new
            .iter()
            .map(|item| {
                let mut item = item.clone();
                let before = old.iter().find(|o| o["name"] == item["name"]);
                for (field, _) in before.and_then(Value::as_object).into_iter().flatten() {
                    if item.get(field).is_none() {
                        item[field] = Value::Null;
                    }
                }
                item
            })
            .collect();
        for gone in old.iter().filter(|o| !new.iter().any(|n| n["name"] == o["name"])) {
            items.push(json!({"name": gone["name"], "$patch": "delete"}));
        }
        let order: Vec<Value> = new.iter().map(|item| json!({"name": item["name"]})).collect();
        json!({"spec": {"containers": items, "$setElementOrder/containers": order}})
    }

    fn any_containers() -> impl Strategy<Value = Value> {
        let item = ("[ab]?", proptest::option::of("[cd]"), proptest::option::of(Just(json!(["x"]))));
        proptest::collection::btree_map("[a-f]", item, 0..5)
            .prop_map(|map| {
                map.into_iter()
                    .map(|(name, (image, dir, args))| {
                        let mut item = json!({"name": name, "image": image});
                        if let Some(dir) = dir {
                            item["workingDir"] = json!(dir);
                        }
                        if let Some(args) = args {
                            item["args"] = args;
                        }
                        item
                    })
                    .collect::<Vec<Value>>()
            })
            .prop_shuffle()
            .prop_map(|list| containers(json!(list)))
    }

    /// Any JSON with names of real fields and directives in it.
    fn any_patch() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            Just("metadata"),
            Just("labels"),
            Just("finalizers"),
            Just("spec"),
            Just("containers"),
            Just("volumes"),
            Just("name"),
            Just("env"),
            Just("value"),
            Just("$patch"),
            Just("$retainKeys"),
            Just("$setElementOrder/containers"),
            Just("$deleteFromPrimitiveList/finalizers"),
            Just("zz"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            Just(json!("a")),
            Just(json!("replace")),
            Just(json!("delete")),
            Just(json!("merge")),
            any::<i8>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map(name.clone(), inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
            ]
        })
    }

    fn has_directive(value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.iter().any(|(name, value)| is_directive(name) || has_directive(value)),
            Value::Array(items) => items.iter().any(has_directive),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_difference_of_two_lists_turns_one_into_the_other(old in any_containers(), new in any_containers()) {
            prop_assert_eq!(patched(old.clone(), difference(&old, &new)), new);
        }

        #[test]
        fn a_patch_applied_twice_is_a_patch_applied_once(old in any_containers(), new in any_containers()) {
            let patch = difference(&old, &new);
            let once = patched(old, patch.clone());
            prop_assert_eq!(patched(once.clone(), patch), once);
        }

        #[test]
        fn an_object_patched_with_itself_stays(object in any_containers()) {
            prop_assert_eq!(patched(object.clone(), object.clone()), object);
        }

        #[test]
        fn no_directive_and_no_null_of_a_patch_gets_into_an_object(patch in any_patch(), old in any_containers()) {
            if patch.is_object() && let Ok(result) = apply(pods(), &old, &patch) {
                prop_assert!(!has_directive(&result), "{patch} gave {result}");
            }
        }
    }
}
