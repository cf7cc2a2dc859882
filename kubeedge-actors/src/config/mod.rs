//! Reading KubeEdge's own YAML files (`cloudcore.yaml`, `edgecore.yaml`) into types.
//!
//! A [`Document`] holds the fields that mean something here. Of the others, those that KubeEdge knows are listed as
//! [`Loaded::without_effect`], and those that nobody knows as [`Loaded::unknown`]: a warning, so that a file of another
//! version never bricks a remote box, or an error where the operator asks for a strict reading. A wrong type or an
//! impossible value is always an error with file, line, column and field.
//!
//! No state, no messages; nothing here goes to the network.

mod node;
mod typed;
mod values;

use std::{fs::File, io::Read, path::Path};

use serde::de::DeserializeOwned;
use thiserror::Error;

use node::Node;

pub use values::{
    Bytes, GoDuration, HostPort, InvalidValue, Seconds, Taint, TaintEffect, Threshold, UnixEndpoint, optional,
    or_default, parsed,
};

/// Larger files are refused: real ones have some 10 KiB.
pub const MAX_FILE: u64 = 1024 * 1024;

/// A configuration file's type.
pub trait Document: DeserializeOwned + Default {
    /// The `kind` that the file must have, such as `EdgeCore`.
    const KIND: &'static str;
    /// The group that its `apiVersion` must have; any version of it is read.
    const GROUP: &'static str;
    /// Fields that KubeEdge knows and that change nothing here, as paths: `modules.edgeHub.messageQPS`. A path stands
    /// for everything below it.
    const WITHOUT_EFFECT: &'static [&'static str];
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded<T> {
    /// What it says, with defaults for what it does not say.
    pub value: T,
    /// Fields of the file that KubeEdge knows and that change nothing here.
    pub without_effect: Vec<String>,
    /// Fields of the file that nobody knows.
    pub unknown: Vec<String>,
}

/// Why a file was not read.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file's name.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("{file}: larger than {MAX_FILE} bytes; expected a configuration file")]
    TooLarge {
        /// The file's name.
        file: String,
    },
    /// A wrong type, an impossible value, or not YAML.
    #[error("{file}:{line}:{column}: {field}: {problem}")]
    Invalid {
        /// The file's name.
        file: String,
        /// Line, from 1; 0 when the place is not known.
        line: u64,
        /// Column, from 1; 0 when the place is not known.
        column: u64,
        /// The field as a path, or `document`.
        field: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Strict reading only.
    #[error("{file}: unknown fields: {}; check the spelling or remove them", fields.join(", "))]
    Unknown {
        /// The file's name.
        file: String,
        /// Their paths.
        fields: Vec<String>,
    },
}

impl<T: Document> Loaded<T> {
    /// Refuses unknown fields.
    pub fn strict(self, file: &Path) -> Result<Self, ConfigError> {
        if self.unknown.is_empty() {
            Ok(self)
        } else {
            Err(ConfigError::Unknown { file: file.display().to_string(), fields: self.unknown })
        }
    }
}

/// Reads `file`.
pub fn load<T: Document>(file: &Path) -> Result<Loaded<T>, ConfigError> {
    let name = file.display().to_string();
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(source) => Err(ConfigError::Read { file: name, source }),
        Ok(length) if length as u64 > MAX_FILE => Err(ConfigError::TooLarge { file: name }),
        Ok(_) => parse(&name, &text),
    }
}

/// Reads `text`; `file` is only for messages.
pub fn parse<T: Document>(file: &str, text: &str) -> Result<Loaded<T>, ConfigError> {
    let refused = |place: node::Place, field: Option<String>, problem| ConfigError::Invalid {
        file: file.to_owned(),
        line: place.0,
        column: place.1,
        field: field.unwrap_or_else(|| "document".to_owned()),
        problem,
    };
    let mut document = node::read(text).map_err(|error| {
        // Without a place it is about the document, which begins there.
        let place = error.location().map_or((1, 1), |place| (place.line().max(1), place.column().max(1)));
        refused(place, node::at(text, place), problem(&error))
    })?;
    for (name, value) in document.value.take(&["apiVersion", "kind"]) {
        if let Err(problem) = of_document::<T>(&name, &value.value) {
            return Err(refused(node::place(&value), Some(name), problem));
        }
    }
    match document.value {
        Node::Mapping(_) => {}
        // An empty file says nothing: everything has its default.
        Node::Null => return Ok(Loaded { value: T::default(), without_effect: vec![], unknown: vec![] }),
        _ => return Err(refused(node::place(&document), None, format!("expected a {} document", T::KIND))),
    }
    match typed::read::<T>(text, &document) {
        Ok((value, ignored)) => {
            let (without_effect, unknown) =
                ignored.into_iter().partition(|path| T::WITHOUT_EFFECT.contains(&path.as_str()));
            Ok(Loaded { value, without_effect, unknown })
        }
        Err(wrong) => {
            let (place, field) = wrong.at.unwrap_or(((1, 1), String::new()));
            Err(refused(place, Some(field).filter(|field| !field.is_empty()), wrong.problem))
        }
    }
}

/// Whether `apiVersion` or `kind` is that of a `T`.
fn of_document<T: Document>(name: &str, value: &Node) -> Result<(), String> {
    let Node::Text(value) = value else { return Err("expected a text".to_owned()) };
    let (expected, fits) = match name {
        "kind" => (T::KIND, value == T::KIND),
        _ => (T::GROUP, value.split_once('/').is_some_and(|(group, _)| group == T::GROUP)),
    };
    if fits { Ok(()) } else { Err(format!("{value:?} is another document, expected {expected:?}")) }
}

/// What is wrong with a text that is no YAML, without the place, which is said before it.
fn problem(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::Message { msg, .. } => msg.clone(),
        Error::DuplicateMappingKey { key, .. } => {
            format!("{} is given twice, expected each name once", key.as_deref().unwrap_or("a name"))
        }
        other => {
            let mut text = other.render_with_formatter(&serde_saphyr::DefaultMessageFormatter);
            if let Some(place) = other.location() {
                let suffix = format!(" at line {}, column {}", place.line(), place.column());
                text.truncate(text.strip_suffix(&suffix).unwrap_or(&text).len());
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Door {
        #[serde(deserialize_with = "or_default")]
        bolts: Vec<Bolt>,
        #[serde(deserialize_with = "or_default")]
        frame: Frame,
        mode: u32,
        label: String,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    struct Bolt {
        size: u8,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Frame {
        width: Option<Seconds>,
    }

    impl Document for Door {
        const KIND: &'static str = "Door";
        const GROUP: &'static str = "door.example";
        const WITHOUT_EFFECT: &'static [&'static str] = &["paint", "frame.wood"];
    }

    fn refusal(text: &str) -> String {
        parse::<Door>("door.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn known_unknown_and_without_effect_are_told_apart() {
        let text = "kind: Door\napiVersion: door.example/v1\nmode: 0644\npaint: {colour: red}\nframe: {wood: oak, widht: 1}\n\
            bolts: [{size: 1, sise: 2}]\nhinge: 2\n";
        let loaded = parse::<Door>("door.yaml", text).unwrap();
        assert_eq!(loaded.value.mode, 0o644);
        assert_eq!(loaded.without_effect, ["paint", "frame.wood"]);
        assert_eq!(loaded.unknown, ["frame.widht", "bolts.0.sise", "hinge"]);
        let strict = loaded.strict(Path::new("door.yaml")).unwrap_err().to_string();
        assert!(strict.contains("door.yaml") && strict.contains("frame.widht, bolts.0.sise, hinge"), "{strict}");
    }

    #[test]
    fn nothing_means_defaults() {
        for text in ["", "---\n", "# only a comment\n", "kind: Door\nframe:\nbolts:\n"] {
            assert_eq!(parse::<Door>("door.yaml", text).unwrap().value, Door::default(), "{text:?}");
        }
    }

    #[test]
    fn a_scalar_is_read_as_what_it_is_to_be() {
        for (text, label, mode) in [
            ("label: 0123\nmode: 0123\n", "0123", 0o123),
            ("label: 1.10\nmode: '7'\n", "1.10", 7),
            ("label: yes\nmode: \"0o17\"\n", "yes", 15),
            ("label: &a 1_0\nmode: *a\n", "1_0", 10),
            ("label: é~\nmode: 0x1F # 31\n", "é~", 31),
            ("mode: &a 5\nlabel: *a\n", "5", 5),
        ] {
            let door = parse::<Door>("door.yaml", text).unwrap().value;
            assert_eq!((door.label.as_str(), door.mode), (label, mode), "{text}");
        }
        let text = "label: &l 2\nbolts:\n- &b {size: 1}\n- *b\n";
        let door = parse::<Door>("door.yaml", text).unwrap().value;
        assert_eq!((door.label.as_str(), door.bolts.len()), ("2", 2));
    }

    #[test]
    fn a_refusal_names_file_line_column_field_and_what_is_expected() {
        for (text, said) in [
            ("label: x\nmode: high\n", "2:7: mode: expected a whole number from 0 to 4294967295"),
            ("mode: -1\n", "1:7: mode: expected a whole number from 0 to 4294967295"),
            ("frame:\n  width: 0\n", "2:10: frame.width: 0 is not valid, expected a number of seconds of at least 1"),
            ("bolts:\n- size: 1\n- size: 256\n", "3:9: bolts[1].size: expected a whole number from 0 to 255"),
            ("bolts: {a: b}\n", "1:8: bolts: expected a list"),
            ("bolts: [{}]\n", "1:9: bolts[0]: missing field `size`"),
            ("label: a\nlabel: b\n", "2:1: document: label is given twice, expected each name once"),
            ("label: [a]\n", "1:8: label: expected a text"),
            ("label:\n", "1:6: label: expected a text"),
            ("frame: 5\n", "1:8: frame: expected a mapping of names to values"),
            ("kind: Window\n", "1:7: kind: \"Window\" is another document, expected \"Door\""),
            (
                "apiVersion: window/v1\n",
                "1:13: apiVersion: \"window/v1\" is another document, expected \"door.example\"",
            ),
            ("- a\n", "1:1: document: expected a Door document"),
        ] {
            assert_eq!(refusal(text), format!("door.yaml:{said}"), "{text:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_too_large_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("door.yaml");
        assert!(load::<Door>(&file).unwrap_err().to_string().contains("door.yaml: cannot be read"));
        std::fs::write(&file, vec![b'#'; MAX_FILE as usize + 1]).unwrap();
        assert!(matches!(load::<Door>(&file), Err(ConfigError::TooLarge { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s)[ -~\n]{0,120}|\\PC{0,60}") {
            // A panic fails the test.
            let _ = parse::<Door>("door.yaml", &text);
        }
    }
}
