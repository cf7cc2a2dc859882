//! Volumes of a pod.

use serde_json::Value;

use super::container::{check_descending, check_field_ref};
use crate::apiserver::kinds::fields::{Errors, Path, integer, list, text};
use crate::apiserver::kinds::names;
use crate::apiserver::kinds::quantity::Quantity;

const MODE_RANGE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Shortest and longest life of a projected token, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Fields of the pod that files may carry.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Checks the volumes of a pod.
pub(super) fn check_list(volumes: &[Value], path: &Path, errors: &mut Errors) {
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        check_source(volume, &path, errors);
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else {
            errors.format(&path.field("name"), name, names::dns_label(name));
        }
        if volumes[..index].iter().any(|other| text(other, "/name") == name) {
            errors.duplicate(&path.field("name"), name);
        }
    }
}

fn check_source(volume: &Value, path: &Path, errors: &mut Errors) {
    let mut sources = volume.as_object().into_iter().flatten().filter(|(field, _)| *field != "name");
    let Some((kind, source)) = sources.next() else {
        errors.required(path, "must specify a volume type");
        return;
    };
    for (other, _) in sources {
        errors.forbidden(&path.field(other), "may not specify more than 1 volume type");
    }
    let path = path.field(kind);
    match kind.as_str() {
        "emptyDir" => {
            let limit = text(source, "/sizeLimit");
            if Quantity::parse(limit).is_some_and(Quantity::is_negative) {
                errors.forbidden(&path.field("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
        }
        "hostPath" => {
            let host = text(source, "/path");
            if host.is_empty() {
                errors.required(&path.field("path"), "");
            } else if host.split('/').any(|part| part == "..") {
                errors.invalid(&path.field("path"), host, "must not contain '..'");
            }
            errors.one_of(&path.field("type"), text(source, "/type"), HOST_PATH_TYPES);
        }
        "configMap" | "secret" => {
            let field = if kind == "secret" { "secretName" } else { "name" };
            if text(source, &format!("/{field}")).is_empty() {
                errors.required(&path.field(field), "");
            }
            check_mode(source, "defaultMode", &path, errors);
            check_items(source, &path, errors);
        }
        "downwardAPI" => {
            check_mode(source, "defaultMode", &path, errors);
            check_downward(source, &path, errors);
        }
        "projected" => check_projected(source, &path, errors),
        "nfs" => {
            for field in ["server", "path"] {
                if text(source, &format!("/{field}")).is_empty() {
                    errors.required(&path.field(field), "");
                }
            }
            let shared = text(source, "/path");
            if !shared.is_empty() && !shared.starts_with('/') {
                errors.invalid(&path.field("path"), shared, "must be an absolute path");
            }
        }
        "persistentVolumeClaim" if text(source, "/claimName").is_empty() => {
            errors.required(&path.field("claimName"), "");
        }
        "image" => {
            let policy = text(source, "/pullPolicy");
            if !policy.is_empty() {
                errors.one_of(&path.field("pullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
            }
        }
        // Volumes of clouds and storage systems are passed on as they are: the node refuses what it cannot mount.
        _ => {}
    }
}

fn check_mode(source: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(mode) = source.get(field).and_then(Value::as_i64)
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(&path.field(field), mode, MODE_RANGE);
    }
}

fn check_file(file: &str, path: &Path, errors: &mut Errors) {
    if file.is_empty() {
        errors.required(path, "");
        return;
    }
    check_descending(file, path, errors);
    if file.starts_with("..") && !file.starts_with("../") && file != ".." {
        errors.invalid(path, file, "must not start with '..'");
    }
}

fn check_items(source: &Value, path: &Path, errors: &mut Errors) {
    for (index, item) in list(source, "/items").iter().enumerate() {
        let path = path.field("items").index(index);
        if text(item, "/key").is_empty() {
            errors.required(&path.field("key"), "");
        }
        check_file(text(item, "/path"), &path.field("path"), errors);
        check_mode(item, "mode", &path, errors);
    }
}

fn check_downward(source: &Value, path: &Path, errors: &mut Errors) {
    for (index, item) in list(source, "/items").iter().enumerate() {
        let path = path.field("items").index(index);
        check_file(text(item, "/path"), &path.field("path"), errors);
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(_), Some(_)) => {
                errors.invalid(&path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
            (Some(field), None) => check_field_ref(field, FILE_FIELDS, &path.field("fieldRef"), errors),
            (None, Some(resource)) => {
                let path = path.field("resourceFieldRef");
                for field in ["containerName", "resource"] {
                    if text(resource, &format!("/{field}")).is_empty() {
                        errors.required(&path.field(field), "");
                    }
                }
            }
            (None, None) => errors.required(&path, "one of fieldRef and resourceFieldRef is required"),
        }
        check_mode(item, "mode", &path, errors);
    }
}

fn check_projected(source: &Value, path: &Path, errors: &mut Errors) {
    check_mode(source, "defaultMode", path, errors);
    let mut files: Vec<&str> = Vec::new();
    for (index, part) in list(source, "/sources").iter().enumerate() {
        let path = path.field("sources").index(index);
        let mut kinds = part.as_object().into_iter().flatten();
        let Some((kind, part)) = kinds.next() else { continue };
        for (other, _) in kinds {
            errors.forbidden(&path.field(other), "may not specify more than 1 volume type per source");
        }
        let path = path.field(kind);
        match kind.as_str() {
            "configMap" | "secret" => {
                if text(part, "/name").is_empty() {
                    errors.required(&path.field("name"), "");
                }
                check_items(part, &path, errors);
            }
            "downwardAPI" => check_downward(part, &path, errors),
            "serviceAccountToken" => {
                let seconds = integer(part, "/expirationSeconds").unwrap_or(TOKEN_SECONDS.0);
                let path_of_seconds = path.field("expirationSeconds");
                if seconds < TOKEN_SECONDS.0 {
                    errors.invalid(&path_of_seconds, seconds, "may not specify a duration less than 10 minutes");
                } else if seconds > TOKEN_SECONDS.1 {
                    errors.invalid(&path_of_seconds, seconds, "may not specify a duration larger than 2^32 seconds");
                }
                check_file(text(part, "/path"), &path.field("path"), errors);
            }
            _ => {}
        }
        let own = part.get("path").into_iter().chain(list(part, "/items").iter().filter_map(|i| i.get("path")));
        for file in own.filter_map(Value::as_str) {
            if files.contains(&file) {
                errors.invalid(&path, file, "conflicting duplicate paths");
            }
            files.push(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(volumes: Value) -> Vec<String> {
        let mut errors = Errors::default();
        check_list(volumes.as_array().map_or(&[], Vec::as_slice), &Path::new("v"), &mut errors);
        errors.done().into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn a_volume_has_a_unique_name_and_one_source() {
        assert_eq!(fields(json!([{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}])), ["v[1].name"]);
        assert_eq!(fields(json!([{"name": "A", "emptyDir": {}}])), ["v[0].name"]);
        let two = json!([{"name": "a", "emptyDir": {}, "hostPath": {"path": "/", "type": ""}}]);
        assert_eq!(fields(two), ["v[0].hostPath"]);
        assert_eq!(fields(json!([{"name": "a"}])), ["v[0]"]);
    }

    #[test]
    fn sources_name_what_they_come_from_and_stay_inside() {
        assert_eq!(
            fields(json!([{"name": "a", "configMap": {"defaultMode": 512, "items": [{"key": "", "path": "../x"}]}}])),
            [
                "v[0].configMap.name",
                "v[0].configMap.defaultMode",
                "v[0].configMap.items[0].key",
                "v[0].configMap.items[0].path"
            ]
        );
        let projected = json!({"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 5}},
            {"secret": {"name": "s", "items": [{"key": "k", "path": "t"}]}}]});
        assert_eq!(
            fields(json!([{"name": "a", "projected": projected}])),
            ["v[0].projected.sources[0].serviceAccountToken.expirationSeconds", "v[0].projected.sources[1].secret"]
        );
        assert_eq!(fields(json!([{"name": "a", "hostPath": {"path": "/a/../b", "type": "Door"}}])).len(), 2);
    }
}
