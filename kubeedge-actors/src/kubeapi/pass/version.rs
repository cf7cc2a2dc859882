//! The resourceVersion by which a request writes: where it stands in the body.

use bytes::Bytes;
use serde_json::Value;

use super::{super::status::Status, JSON_PATCH, Passed};

const OF_OBJECT: &str = "/metadata/resourceVersion";
const OF_PRECONDITIONS: &str = "/preconditions/resourceVersion";

/// The resourceVersion that a write demands, if any.
#[cfg(feature = "metaserver")]
pub(crate) fn read(passed: &Passed, body: &[u8]) -> Result<Option<String>, Status> {
    if body.is_empty() {
        return Ok(None);
    }
    let mut value = parse(body)?;
    let mut found: Option<String> = None;
    for place in places(passed, &mut value) {
        // What is no text the API server says.
        let Some(version) = place.as_str().filter(|version| !version.is_empty()) else { continue };
        if found.as_ref().is_some_and(|found| found != version) {
            return Err(Status::bad_request("the body names two resourceVersions"));
        }
        found = Some(version.to_owned());
    }
    Ok(found)
}

/// The same body with this one.
pub(crate) fn write(passed: &Passed, body: &[u8], version: &str) -> Result<Bytes, Status> {
    let mut value = parse(body)?;
    for place in places(passed, &mut value) {
        *place = version.into();
    }
    Ok(value.to_string().into())
}

fn parse(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body).map_err(|error| Status::bad_request(format!("the body is no JSON: {error}")))
}

fn places<'a>(passed: &Passed, body: &'a mut Value) -> Vec<&'a mut Value> {
    if passed.content_type() != Some(JSON_PATCH) {
        let pointer = if passed.method() == "DELETE" { OF_PRECONDITIONS } else { OF_OBJECT };
        return body.pointer_mut(pointer).into_iter().collect();
    }
    let operations = body.as_array_mut().into_iter().flatten();
    let on_it = operations.filter(|operation| operation.get("path").and_then(Value::as_str) == Some(OF_OBJECT));
    on_it.filter_map(|operation| operation.get_mut("value")).collect()
}
