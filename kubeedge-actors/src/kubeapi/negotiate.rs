//! In which form the client wants its answer.

use super::status::Status;

/// What is offered to a client that takes none of it.
const AVAILABLE: &str = "application/json";

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object itself.
    Plain,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata, alone or in a list.
    Partial,
}

/// One of the media ranges of an `Accept` header.
#[derive(Debug, PartialEq)]
struct Range<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl Range<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// Whether it takes JSON, and not at quality 0.
    fn json(&self) -> bool {
        matches!(self.media, "application/json" | "application/*" | "*/*") && self.param("q") != Some("0")
    }
}

fn ranges(accept: &str) -> impl Iterator<Item = Range<'_>> {
    accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().filter(|media| !media.is_empty())?;
        Some(Range { media, params: parts.filter_map(|param| param.split_once('=')).collect() })
    })
}

/// Chooses the first form of the header that can be given; no header takes anything.
pub(crate) fn choose(accept: Option<&str>) -> Result<Form, Status> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Ok(Form::Plain);
    };
    for range in ranges(accept).filter(Range::json) {
        let meta = range.param("g") == Some("meta.k8s.io") && range.param("v") == Some("v1");
        match range.param("as") {
            None => return Ok(Form::Plain),
            Some("Table") if meta => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if meta => return Ok(Form::Partial),
            Some(_) => {}
        }
    }
    Err(Status::not_acceptable(AVAILABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_can_be_given_is_given() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
            application/json";
        assert_eq!(choose(Some(table)), Ok(Form::Table));
        assert_eq!(choose(Some("application/vnd.kubernetes.protobuf, application/json")), Ok(Form::Plain));
        assert_eq!(choose(Some("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json")), Ok(Form::Plain));
        let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        assert_eq!(choose(Some(partial)), Ok(Form::Partial));
        assert_eq!(choose(None), Ok(Form::Plain));
        assert_eq!(choose(Some("*/*")), Ok(Form::Plain));
        assert_eq!(choose(Some("text/csv")).unwrap_err().code, 406);
    }
}
