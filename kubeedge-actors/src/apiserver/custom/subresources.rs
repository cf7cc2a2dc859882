//! What a version says of its `scale` subresource and of the fields that can be selected by.

use serde_json::Value;

use super::schema::{Schema, Type};
use crate::apiserver::kinds::fields::{Errors, Path, list, text};
use crate::apiserver::verbs::scale::{Paths, SelectorAt};

/// Fields of one version that can be selected by, at most: Kubernetes' number.
const MAX_SELECTABLE: usize = 8;

/// Where an object keeps its numbers, as JSON pointers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    wanted: String,
    present: String,
    selector: Option<String>,
}

impl Scale {
    /// The `scale` subresource of a version; `None` where it has none, or a wrong one.
    pub(super) fn compile(version: &Value, path: &Path, errors: &mut Errors) -> Option<Self> {
        let scale = version.pointer("/subresources/scale").filter(|scale| scale.is_object())?;
        let path = path.field("subresources").field("scale");
        let mut place = |field: &str, below: &[&str]| {
            let json_path = text(scale, &format!("/{field}"));
            let path = path.field(field);
            if json_path.is_empty() {
                errors.required(&path, "");
                return None;
            }
            let steps = simple(json_path).filter(|steps| below.contains(&steps[0]) && steps.len() > 1);
            if steps.is_none() {
                let places: Vec<String> = below.iter().map(|below| format!(".{below}")).collect();
                let why = format!("should be a json path without array notation under {}", places.join(" or "));
                errors.invalid(&path, json_path, why);
            }
            steps.map(|steps| format!("/{}", steps.join("/")))
        };
        let wanted = place("specReplicasPath", &["spec"]);
        let present = place("statusReplicasPath", &["status"]);
        let selector = match text(scale, "/labelSelectorPath") {
            "" => None,
            _ => place("labelSelectorPath", &["status", "spec"]),
        };
        Some(Self { wanted: wanted?, present: present?, selector })
    }

    /// For [`crate::apiserver::verbs::scale`].
    pub(crate) fn paths(&self) -> Paths<'_> {
        let selector = self.selector.as_deref().map_or(SelectorAt::Nowhere, SelectorAt::Text);
        Paths { wanted: &self.wanted, present: &self.present, selector }
    }
}

/// The fields that lists and watches can select by, as selectors name them: `spec.color`.
pub(super) fn selectable(version: &Value, schema: &Schema, path: &Path, errors: &mut Errors) -> Vec<String> {
    let path = path.field("selectableFields");
    let all = list(version, "/selectableFields");
    if all.len() > MAX_SELECTABLE {
        errors.invalid(&path, all.len(), format!("must have at most {MAX_SELECTABLE} items"));
        return Vec::new();
    }
    let mut names: Vec<String> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        let json_path = text(one, "/jsonPath");
        let path = path.index(index).field("jsonPath");
        if json_path.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let Some(steps) = simple(json_path).filter(|steps| steps[0] != "metadata") else {
            errors.invalid(&path, json_path, "must be a simple path to a field, such as .spec.color, not of metadata");
            continue;
        };
        let found = steps.iter().try_fold(schema, |schema, step| schema.properties.get(*step));
        match found.map(|schema| schema.type_) {
            Some(Some(Type::String | Type::Boolean | Type::Integer)) => {}
            None => errors.invalid(&path, json_path, "does not refer to a field of the schema"),
            Some(_) => errors.invalid(&path, json_path, "must point to a field of type string, boolean or integer"),
        }
        let name = steps.join(".");
        if names.contains(&name) {
            errors.duplicate(&path, json_path);
        }
        names.push(name);
    }
    names
}

/// The steps of `.spec.color`; `None` of a path that has more than fields. Never empty.
fn simple(json_path: &str) -> Option<Vec<&str>> {
    let steps: Vec<&str> = json_path.strip_prefix('.')?.split('.').collect();
    let plain = |step: &&str| !step.is_empty() && step.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    steps.iter().all(plain).then_some(steps)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_scale_and_selectors_are_simple_and_stand_where_they_may() {
        let judge = |version: Value| {
            let (mut errors, path) = (Errors::default(), Path::new("v"));
            let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "color": {"type": "string"}, "all": {"type": "array", "items": {"type": "string"}}}}}});
            let schema = Schema::compile(&schema, &path, &mut errors);
            let scale = Scale::compile(&version, &path, &mut errors);
            let names = selectable(&version, &schema, &path, &mut errors);
            let errors: Vec<String> = errors.done().into_iter().map(|error| error.field).collect();
            (scale, names, errors)
        };
        let scale = json!({"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n",
            "labelSelectorPath": ".status.selector"});
        let field = |path: &str| json!({"jsonPath": path});
        let (scale, names, errors) =
            judge(json!({"subresources": {"scale": scale}, "selectableFields": [field(".spec.color")]}));
        let paths = scale.as_ref().map(Scale::paths).unwrap();
        assert_eq!((paths.wanted, paths.present), ("/spec/n", "/status/n"));
        assert!(matches!(paths.selector, SelectorAt::Text("/status/selector")));
        assert_eq!((names, errors), (vec!["spec.color".to_owned()], vec![]));

        let scale = json!({"specReplicasPath": ".status.n", "statusReplicasPath": ".status.n[0]"});
        let fields = [".spec.nope", ".spec.all", ".metadata.name", "spec.color", ".spec.color", ".spec.color"];
        let fields: Vec<Value> = fields.into_iter().map(field).collect();
        let (scale, _, errors) = judge(json!({"subresources": {"scale": scale}, "selectableFields": fields}));
        assert_eq!(scale, None);
        let scale = ["specReplicasPath", "statusReplicasPath"].map(|name| format!("v.subresources.scale.{name}"));
        let fields = [0, 1, 2, 3, 5].map(|index| format!("v.selectableFields[{index}].jsonPath"));
        assert_eq!(errors, [&scale[..], &fields].concat());
    }
}
