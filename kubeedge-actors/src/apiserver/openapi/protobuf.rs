//! OpenAPI v2 as protobuf, the only form that kubectl up to 1.28 takes.
//!
//! The wire format is that of the `openapi.v2` messages; what this server's document uses of them is written from its
//! JSON form, field by field. Extensions (`x-...`) are carried as YAML text, which JSON is.

use serde_json::{Map, Value};

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A field with a length in front.
    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// Text, left out when there is none.
    fn text(&mut self, field: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, value: Option<&Value>) {
        for text in items(value) {
            self.text(field, Some(text));
        }
    }

    /// A boolean, left out when it is false.
    fn flag(&mut self, field: u32, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    /// Entries with a name each: `{name = 1, value = 2}`.
    fn named(&mut self, field: u32, name: &str, value: &Self) {
        let mut entry = Self::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, &entry);
    }

    /// The extensions of an object.
    fn extensions(&mut self, field: u32, of: &Value) {
        for (name, value) in entries(Some(of)).filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Self::default();
            any.bytes(2, value.to_string().as_bytes());
            self.named(field, name, &any);
        }
    }
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// A document in its JSON form as an `openapi.v2.Document`.
pub(super) fn document(json: &Value) -> Vec<u8> {
    let mut document = Message::default();
    document.text(1, json.get("swagger"));
    let mut info = Message::default();
    info.text(1, json.pointer("/info/title"));
    info.text(2, json.pointer("/info/version"));
    document.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in entries(json.get("paths")) {
        paths.named(2, path, &path_item(item));
    }
    document.message(8, &paths);
    let mut definitions = Message::default();
    for (name, definition) in entries(json.get("definitions")) {
        definitions.named(1, name, &schema(definition));
    }
    document.message(9, &definitions);
    document.0
}

/// `PathItem`: its operations by method.
fn path_item(json: &Value) -> Message {
    let mut item = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(json) = json.get(method) {
            item.message(field, &operation(json));
        }
    }
    for json in items(json.get("parameters")) {
        item.message(9, &parameter(json));
    }
    item
}

fn operation(json: &Value) -> Message {
    let mut operation = Message::default();
    operation.texts(6, json.get("produces"));
    operation.texts(7, json.get("consumes"));
    for json in items(json.get("parameters")) {
        operation.message(8, &parameter(json));
    }
    let mut responses = Message::default();
    for (code, json) in entries(json.get("responses")) {
        let mut response = Message::default();
        response.text(1, json.get("description"));
        if let Some(json) = json.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(json));
            response.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &response);
        responses.named(1, code, &value);
    }
    operation.message(9, &responses);
    operation.extensions(13, json);
    operation
}

/// `ParametersItem`: around a `Parameter`, around one of its forms.
fn parameter(json: &Value) -> Message {
    let place = json.get("in").and_then(Value::as_str).unwrap_or_default();
    let mut form = Message::default();
    let mut parameter = Message::default();
    if place == "body" {
        form.text(2, json.get("name"));
        form.text(3, json.get("in"));
        form.flag(4, json.get("required"));
        if let Some(json) = json.get("schema") {
            form.message(5, &schema(json));
        }
        parameter.message(1, &form);
    } else {
        form.flag(1, json.get("required"));
        form.text(2, json.get("in"));
        form.text(3, json.get("description"));
        form.text(4, json.get("name"));
        // A query parameter may be sent empty, which shifts its fields by one; that flag is never set here.
        let (kind, type_field) = if place == "query" { (3, 6) } else { (4, 5) };
        form.text(type_field, json.get("type"));
        let mut sub = Message::default();
        sub.message(kind, &form);
        parameter.message(2, &sub);
    }
    let mut item = Message::default();
    item.message(1, &parameter);
    item
}

fn schema(json: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, json.get("$ref"));
    message.text(2, json.get("format"));
    message.text(4, json.get("description"));
    message.texts(19, json.get("required"));
    if let Some(values) = json.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, &schema(values));
        message.message(21, &item);
    }
    if let Some(type_) = json.get("type") {
        let mut item = Message::default();
        item.text(1, Some(type_));
        message.message(22, &item);
    }
    if let Some(of) = json.get("items") {
        let mut item = Message::default();
        item.message(1, &schema(of));
        message.message(23, &item);
    }
    if json.get("properties").is_some() {
        let mut properties = Message::default();
        for (name, property) in entries(json.get("properties")) {
            properties.named(1, name, &schema(property));
        }
        message.message(25, &properties);
    }
    message.extensions(31, json);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The fields of a message: number and content (of a boolean, its one byte).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let (byte, rest) = bytes.split_first().expect("a whole number");
                *bytes = rest;
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            value
        }
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let content = if key & 7 == 2 {
                let length = varint(&mut bytes) as usize;
                let (content, rest) = bytes.split_at(length);
                bytes = rest;
                content.to_vec()
            } else {
                vec![varint(&mut bytes) as u8]
            };
            all.push((key >> 3, content));
        }
        all
    }

    /// Follows field numbers, taking at each the first field for which the rest of the way exists.
    fn find(bytes: &[u8], way: &[u64]) -> Option<Vec<u8>> {
        let Some((number, rest)) = way.split_first() else { return Some(bytes.to_vec()) };
        fields(bytes).into_iter().filter(|(field, _)| field == number).find_map(|(_, content)| find(&content, rest))
    }

    #[test]
    fn a_schema_is_written_with_its_type_reference_and_extensions() {
        let json = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "array", "items": {"$ref": "#/definitions/X"}, "x-kubernetes-patch-merge-key": "name"}}});
        let written = schema(&json).0;
        assert_eq!(find(&written, &[22, 1]).as_deref(), Some(&b"object"[..]));
        assert_eq!(find(&written, &[19]).as_deref(), Some(&b"a"[..]));
        assert_eq!(find(&written, &[25, 1, 1]).as_deref(), Some(&b"a"[..]));
        assert_eq!(find(&written, &[25, 1, 2, 23, 1, 1]).as_deref(), Some(&b"#/definitions/X"[..]));
        assert_eq!(find(&written, &[25, 1, 2, 31, 1]).as_deref(), Some(&b"x-kubernetes-patch-merge-key"[..]));
        assert_eq!(find(&written, &[25, 1, 2, 31, 2, 2]).as_deref(), Some(&b"\"name\""[..]));
    }

    #[test]
    fn a_query_parameter_stands_in_its_three_envelopes() {
        let written = parameter(&json!({"name": "fieldValidation", "in": "query", "type": "string"})).0;
        assert_eq!(find(&written, &[1, 2, 3, 4]).as_deref(), Some(&b"fieldValidation"[..]));
        assert_eq!(find(&written, &[1, 2, 3, 2]).as_deref(), Some(&b"query"[..]));
        let path = parameter(&json!({"name": "name", "in": "path", "required": true, "type": "string"})).0;
        assert_eq!(find(&path, &[1, 2, 4, 4]).as_deref(), Some(&b"name"[..]));
        assert_eq!(find(&path, &[1, 2, 4, 1]), Some(vec![1]));
        let body = parameter(&json!({"name": "body", "in": "body", "schema": {"$ref": "#/definitions/X"}})).0;
        assert_eq!(find(&body, &[1, 1, 5, 1]).as_deref(), Some(&b"#/definitions/X"[..]));
    }

    #[test]
    fn the_whole_document_has_every_definition_and_the_patch_of_pods() {
        let json: Value = serde_json::from_str(&crate::apiserver::openapi::v2(&[])).expect("is JSON");
        let written = document(&json);
        let definitions = find(&written, &[9]).expect("definitions");
        assert_eq!(fields(&definitions).len(), json["definitions"].as_object().expect("definitions").len());
        let paths = find(&written, &[8]).expect("paths");
        let pod = fields(&paths)
            .into_iter()
            .find(|(_, item)| find(item, &[1]).as_deref() == Some(b"/api/v1/namespaces/{namespace}/pods/{name}"));
        let (_, pod) = pod.expect("the path of a pod");
        let patch = find(&pod, &[2, 8]).expect("its patch");
        assert_eq!(find(&patch, &[13, 1]).as_deref(), Some(&b"x-kubernetes-action"[..]));
        let consumes: Vec<_> = fields(&patch).into_iter().filter(|(field, _)| *field == 7).map(|(_, c)| c).collect();
        assert!(consumes.contains(&b"application/strategic-merge-patch+json".to_vec()));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(field in 1u32..2000, text in "\\PC{0,300}") {
            let mut message = Message::default();
            message.bytes(field, text.as_bytes());
            message.flag(field, Some(&json!(true)));
            prop_assert_eq!(fields(&message.0), vec![(u64::from(field), text.into_bytes()), (u64::from(field), vec![1])]);
        }
    }
}
