//! Label and field selectors: parsed once, matched against stored objects without parsing them.

use super::names::{label_value, qualified_name};
use super::object::Object;
use super::resource::Resource;
use super::status::Status;

/// What a list or watch selects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selector {
    pub(crate) labels: Vec<Requirement>,
    pub(crate) fields: Vec<FieldRequirement>,
}

/// One comma-separated part of a label selector.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Requirement {
    pub(crate) key: String,
    pub(crate) operator: Operator,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// One part of a field selector.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FieldRequirement {
    pub(crate) field: Field,
    pub(crate) equal: bool,
    pub(crate) value: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Name,
    Namespace,
    /// Position in `Resource::selectable`.
    Of(usize),
    /// A field of a custom kind, by its path: read from the object at each match.
    Custom(String),
}

impl Requirement {
    /// Whether labels with this value (or none) for the key satisfy it.
    pub(crate) fn admits(&self, value: Option<&str>) -> bool {
        match (&self.operator, value) {
            (Operator::In(values), Some(value)) => values.iter().any(|one| one == value),
            (Operator::NotIn(values), Some(value)) => !values.iter().any(|one| one == value),
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
            (Operator::NotIn(_), None) => true,
            (Operator::GreaterThan(bound), Some(value)) => value.parse::<i64>().is_ok_and(|value| value > *bound),
            (Operator::LessThan(bound), Some(value)) => value.parse::<i64>().is_ok_and(|value| value < *bound),
            (_, None) => false,
        }
    }
}

impl Selector {
    /// Parses the two query parameters, empty when they were not sent; `custom` fields can be selected by beside those
    /// of the kind's row.
    pub(crate) fn parse(kind: &Resource, custom: &[String], labels: &str, fields: &str) -> Result<Self, Status> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(kind, custom, fields)? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.labels.iter().all(|one| one.admits(object.label(&one.key)))
            && self.fields.iter().all(|one| {
                let read;
                let actual = match &one.field {
                    Field::Name => object.key.name.as_str(),
                    Field::Namespace => object.key.namespace.as_str(),
                    Field::Of(index) => object.fields.get(*index).map(String::as_str).unwrap_or_default(),
                    Field::Custom(name) => {
                        read = object.field(name);
                        read.as_str()
                    }
                };
                (actual == one.value) == one.equal
            })
    }
}

fn parse_fields(kind: &Resource, custom: &[String], text: &str) -> Result<Vec<FieldRequirement>, Status> {
    let mut requirements = Vec::new();
    for part in split_unescaped(text) {
        if part.is_empty() {
            continue;
        }
        let (name, equal, value) = if let Some((name, value)) = part.split_once("!=") {
            (name, false, value)
        } else if let Some((name, value)) = part.split_once("==") {
            (name, true, value)
        } else if let Some((name, value)) = part.split_once('=') {
            (name, true, value)
        } else {
            return Err(Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")));
        };
        let field = match name {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            _ => match kind.selectable.iter().position(|(known, _)| *known == name) {
                Some(index) => Field::Of(index),
                None if custom.iter().any(|known| known == name) => Field::Custom(name.to_owned()),
                None => return Err(unknown_field(kind, custom, name)),
            },
        };
        requirements.push(FieldRequirement { field, equal, value: unescape(value) });
    }
    Ok(requirements)
}

fn unknown_field(kind: &Resource, custom: &[String], name: &str) -> Status {
    // The generic sentence where a kind has no fields of its own, the short one where it has.
    Status::bad_request(if kind.selectable.is_empty() && custom.is_empty() {
        format!("\"{name}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {name}")
    })
}

/// Splits at commas that no backslash escapes.
fn split_unescaped(text: &str) -> Vec<String> {
    let (mut parts, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(std::mem::take(&mut current));
            continue;
        }
        escaped = c == '\\' && !escaped;
        current.push(c);
    }
    parts.push(current);
    parts
}

fn unescape(text: &str) -> String {
    let (mut out, mut escaped) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(c);
    }
    out
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Equal,
    DoubleEqual,
    NotEqual,
    Not,
    Comma,
    Open,
    Close,
    Greater,
    Less,
    End,
}

impl Token {
    fn literal(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Equal => "=".into(),
            Self::DoubleEqual => "==".into(),
            Self::NotEqual => "!=".into(),
            Self::Not => "!".into(),
            Self::Comma => ",".into(),
            Self::Open => "(".into(),
            Self::Close => ")".into(),
            Self::Greater => ">".into(),
            Self::Less => "<".into(),
            Self::End => String::new(),
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let token = match c {
            c if c.is_whitespace() => continue,
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            '>' => Token::Greater,
            '<' => Token::Less,
            '=' if chars.next_if_eq(&'=').is_some() => Token::DoubleEqual,
            '=' => Token::Equal,
            '!' if chars.next_if_eq(&'=').is_some() => Token::NotEqual,
            '!' => Token::Not,
            first => {
                let mut word = String::from(first);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !",()><=!".contains(*c)) {
                    word.push(c);
                }
                Token::Word(word)
            }
        };
        tokens.push(token);
    }
    tokens.push(Token::End);
    tokens
}

/// Parses a label selector: equality, set and existence requirements.
pub(crate) fn parse_labels(text: &str) -> Result<Vec<Requirement>, Status> {
    let mut tokens = tokens(text).into_iter().peekable();
    let mut requirements = Vec::new();
    let expected =
        |found: &Token, what: &str| Status::bad_request(format!("found '{}', expected: {what}", found.literal()));
    if tokens.peek() == Some(&Token::End) {
        return Ok(requirements);
    }
    loop {
        let first = tokens.next().unwrap_or(Token::End);
        let requirement = match first {
            Token::Not => match tokens.next().unwrap_or(Token::End) {
                Token::Word(key) => Requirement { key, operator: Operator::DoesNotExist },
                other => return Err(expected(&other, "identifier")),
            },
            Token::Word(key) => {
                let operator = parse_operator(&mut tokens, &expected)?;
                Requirement { key, operator }
            }
            other => return Err(expected(&other, "!, identifier, or 'end of string'")),
        };
        check_requirement(&requirement)?;
        requirements.push(requirement);
        match tokens.next().unwrap_or(Token::End) {
            Token::End => return Ok(requirements),
            Token::Comma => {}
            other => return Err(expected(&other, "',' or 'end of string'")),
        }
    }
}

fn parse_operator(
    tokens: &mut std::iter::Peekable<impl Iterator<Item = Token>>,
    expected: &dyn Fn(&Token, &str) -> Status,
) -> Result<Operator, Status> {
    let operator = match tokens.peek() {
        None | Some(Token::End | Token::Comma) => return Ok(Operator::Exists),
        Some(token) => token.clone(),
    };
    tokens.next();
    match operator {
        Token::Equal | Token::DoubleEqual => Ok(Operator::In(vec![exact_value(tokens, expected)?])),
        Token::NotEqual => Ok(Operator::NotIn(vec![exact_value(tokens, expected)?])),
        Token::Greater => Ok(Operator::GreaterThan(number(&exact_value(tokens, expected)?)?)),
        Token::Less => Ok(Operator::LessThan(number(&exact_value(tokens, expected)?)?)),
        Token::Word(word) if word == "in" => Ok(Operator::In(value_set(tokens, expected)?)),
        Token::Word(word) if word == "notin" => Ok(Operator::NotIn(value_set(tokens, expected)?)),
        other => Err(expected(&other, "in, notin, =, ==, !=, gt, lt")),
    }
}

fn number(text: &str) -> Result<i64, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!(
            "values[0]: Invalid value: \"{text}\": for 'Gt', 'Lt' operators, the value must be an integer"
        ))
    })
}

/// A value after `=`; nothing there means the empty string.
fn exact_value(
    tokens: &mut std::iter::Peekable<impl Iterator<Item = Token>>,
    expected: &dyn Fn(&Token, &str) -> Status,
) -> Result<String, Status> {
    match tokens.peek() {
        None | Some(Token::End | Token::Comma) => Ok(String::new()),
        Some(Token::Word(_)) => match tokens.next() {
            Some(Token::Word(word)) => Ok(word),
            _ => Ok(String::new()),
        },
        Some(other) => Err(expected(other, "identifier")),
    }
}

fn value_set(
    tokens: &mut std::iter::Peekable<impl Iterator<Item = Token>>,
    expected: &dyn Fn(&Token, &str) -> Status,
) -> Result<Vec<String>, Status> {
    match tokens.next().unwrap_or(Token::End) {
        Token::Open => {}
        other => return Err(expected(&other, "'('")),
    }
    let mut values = Vec::new();
    loop {
        match tokens.next().unwrap_or(Token::End) {
            Token::Word(word) => {
                values.push(word);
                match tokens.next().unwrap_or(Token::End) {
                    Token::Close => return Ok(values),
                    Token::Comma => {}
                    other => return Err(expected(&other, "',' or ')'")),
                }
            }
            Token::Comma => values.push(String::new()),
            Token::Close => {
                values.push(String::new());
                return Ok(values);
            }
            other => return Err(expected(&other, "',', ')' or identifier")),
        }
    }
}

fn check_requirement(requirement: &Requirement) -> Result<(), Status> {
    let refuse = |place: String, value: &str, why: &str| {
        let value = serde_json::Value::from(value);
        Err(Status::bad_request(format!("unable to parse requirement: {place}: Invalid value: {value}: {why}")))
    };
    if let Some(why) = qualified_name(&requirement.key).first() {
        return refuse("key".into(), &requirement.key, why);
    }
    let values: &[String] = match &requirement.operator {
        Operator::In(values) | Operator::NotIn(values) => values,
        _ => &[],
    };
    for (index, value) in values.iter().enumerate() {
        if let Some(why) = label_value(value).first() {
            return refuse(format!("values[{index}][{}]", requirement.key), value, why);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admits(selector: &str, labels: &[(&str, &str)]) -> bool {
        let requirements = parse_labels(selector).unwrap();
        requirements
            .iter()
            .all(|one| one.admits(labels.iter().find(|(key, _)| *key == one.key).map(|(_, value)| *value)))
    }

    #[test]
    fn every_form_of_label_requirement_selects_as_kubernetes_says() {
        let labels = [("app", "web"), ("n", "3"), ("empty", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,n!=4", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web, db)", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("n>2,n<4", true),
            ("n>3", false),
            ("empty=", true),
            ("app=", false),
            ("app in (,web)", true),
        ] {
            assert_eq!(admits(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn a_broken_selector_says_what_was_found_and_expected() {
        let message = |text| parse_labels(text).unwrap_err().message;
        assert_eq!(message("==="), "found '==', expected: !, identifier, or 'end of string'");
        assert!(message("a in b").contains("expected: '('"));
        assert!(message("a in (b").contains("expected: ',' or ')'"));
        assert!(message("a b").contains("expected: in, notin"));
        assert!(message("-a=b").contains("Invalid value"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z!=,()<> .\\\\/-]{0,40}") {
            let _ = parse_labels(&text);
            prop_assert_eq!(split_unescaped(&text).join(","), text);
        }
    }
}
