//! Rules of a schema (`x-kubernetes-validations`), in CEL.
//!
//! A rule is compiled with its definition and evaluated for every object that is otherwise right: `self` is the value
//! it stands at, `oldSelf` what was there before. What it costs is bounded before it runs: an object has [`BUDGET`]
//! steps, and a rule takes its length times what its loops can run over. A rule that uses what is not evaluated here
//! (functions of Kubernetes' own libraries, dates, text that grows in a loop, `optionalOldSelf`) is kept; a warning
//! names it.
//!
//! As in Kubernetes, a value that did not change is not refused, and a rule with `oldSelf` counts where both are.

use serde_json::{Map, Value};

use super::schema::{ListType, Schema, Type};
use crate::apiserver::kinds::fields::{Errors, MAX_ERRORS, Path};
use crate::apiserver::status::{FieldCause, FieldError};
use expression::{Expression, Unfit};
use value::{Size, cel_of};

mod expression;
#[cfg(test)]
mod tests;
mod value;

/// The field of a schema that holds them.
pub(super) const FIELD: &str = "x-kubernetes-validations";
/// Steps that the rules of one object may take together: some tenths of a second.
const BUDGET: u64 = 2_000_000;

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
    field_path: String,
}

/// What is used by rules of `schema` and not evaluated; empty when all are.
pub(super) fn beyond(rule: &Value) -> Option<String> {
    match Expression::compile(text(rule, "rule")) {
        Err(Unfit::Beyond(what)) => Some(what),
        Ok(_) if rule["optionalOldSelf"] == true => Some("optionalOldSelf".to_owned()),
        _ => None,
    }
}

fn text<'a>(rule: &'a Value, name: &str) -> &'a str {
    rule.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Compiles the rules of a schema; what is wrong with them goes to `errors`.
pub(super) fn compile(fields: &Map<String, Value>, path: &Path, errors: &mut Errors) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (index, rule) in fields.get(FIELD).and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = path.field(FIELD).index(index);
        let source = text(rule, "rule");
        if source.trim().is_empty() {
            errors.required(&path.field("rule"), "rule is not specified");
            continue;
        }
        let expression = match Expression::compile(source) {
            Err(Unfit::Wrong(why)) => {
                errors.invalid(&path.field("rule"), source, why);
                continue;
            }
            Err(Unfit::Beyond(_)) => continue,
            Ok(_) if rule["optionalOldSelf"] == true => continue,
            Ok(expression) => expression,
        };
        let message_expression = match text(rule, "messageExpression") {
            "" => None,
            source => match Expression::compile(source) {
                Ok(expression) => Some(expression),
                Err(Unfit::Beyond(_)) => None,
                Err(Unfit::Wrong(why)) => {
                    errors.invalid(&path.field("messageExpression"), source, why);
                    None
                }
            },
        };
        let message = match text(rule, "message").trim() {
            "" => format!("failed rule: {}", source.trim()),
            message => message.to_owned(),
        };
        let reason = text(rule, "reason");
        if !reason.is_empty() {
            let known = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
            errors.one_of(&path.field("reason"), reason, &known);
        }
        let field_path = text(rule, "fieldPath").replace("['", "[").replace("']", "]");
        rules.push(Rule { expression, message, message_expression, reason: reason.to_owned(), field_path });
    }
    rules
}

/// What the rules of a schema say of `new`, which the schema's other checks take; `old` is what is there.
pub(super) fn evaluate(schema: &Schema, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut walk = Walk { errors: Vec::new(), budget: BUDGET };
    walk.value(schema, new, old, "", true);
    walk.errors
}

struct Walk {
    errors: Vec<FieldError>,
    budget: u64,
}

impl Walk {
    fn value(&mut self, schema: &Schema, new: &Value, old: Option<&Value>, path: &str, root: bool) {
        if !schema.ruled || new.is_null() || self.errors.len() >= MAX_ERRORS || self.budget == 0 {
            return;
        }
        if !schema.rules.is_empty() {
            self.here(schema, new, old.filter(|old| !old.is_null()), path, root);
        }
        match new {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    if let Some(schema) = schema.properties.get(name).or(schema.additional.as_deref()) {
                        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                        self.value(schema, inner, old.and_then(|old| old.get(name)), &at, schema.embedded);
                    }
                }
            }
            Value::Array(items) => {
                let Some(inner) = &schema.items else { return };
                for (index, item) in items.iter().enumerate() {
                    // Only items that are known by a key are the same as before.
                    let before = match &schema.list_type {
                        ListType::Map(keys) => old
                            .and_then(Value::as_array)
                            .into_iter()
                            .flatten()
                            .find(|old| keys.iter().all(|key| old.get(key) == item.get(key))),
                        _ => None,
                    };
                    self.value(inner, item, before, &format!("{path}[{index}]"), inner.embedded);
                }
            }
            _ => {}
        }
    }

    /// The rules that stand at this value.
    fn here(&mut self, schema: &Schema, new: &Value, old: Option<&Value>, path: &str, root: bool) {
        let size = Size::of(new) + old.map_or_else(Size::default, Size::of);
        let (mut values, unchanged) = (None, old == Some(new));
        for rule in &schema.rules {
            if if rule.expression.old { old.is_none() } else { unchanged } {
                continue;
            }
            let cost = rule.expression.cost(size);
            let Some(left) = self.budget.checked_sub(cost) else {
                self.budget = 0;
                let why = format!(
                    "the rules of this object would take more than {BUDGET} steps: fewer items are needed, evaluating \
                     rule: {}",
                    rule.expression.source
                );
                return self.refuse(path, "", FieldCause::Forbidden(why));
            };
            self.budget = left;
            let (new, old) = values.get_or_insert_with(|| {
                (cel_of(Some(schema), new, root), old.map(|old| cel_of(Some(schema), old, root)))
            });
            match rule.expression.evaluate(new, old.as_ref()) {
                Ok(cel::Value::Bool(true)) => {}
                Ok(cel::Value::Bool(false)) => {
                    let message = self.message(rule, size, new, old.as_ref());
                    let type_ = schema.type_.map_or("", Type::name);
                    let cause = match rule.reason.as_str() {
                        "FieldValueRequired" => FieldCause::Required(message),
                        "FieldValueForbidden" => FieldCause::Forbidden(message),
                        "FieldValueDuplicate" => FieldCause::Duplicate(type_.into()),
                        _ => FieldCause::Invalid(type_.into(), message),
                    };
                    self.refuse(path, &rule.field_path, cause);
                }
                outcome => {
                    let why =
                        outcome.err().unwrap_or_else(|| "no such overload: a rule gives true or false".to_owned());
                    let type_ = schema.type_.map_or("", Type::name);
                    let why = format!("{why} evaluating rule: {}", rule.message);
                    self.refuse(path, "", FieldCause::Invalid(type_.into(), why));
                }
            }
        }
    }

    fn message(&mut self, rule: &Rule, size: Size, new: &cel::Value, old: Option<&cel::Value>) -> String {
        let Some(expression) = &rule.message_expression else { return rule.message.clone() };
        let Some(left) = self.budget.checked_sub(expression.cost(size)) else { return rule.message.clone() };
        self.budget = left;
        match expression.evaluate(new, old) {
            Ok(cel::Value::String(text)) if !text.trim().is_empty() && !text.contains('\n') => text.to_string(),
            _ => rule.message.clone(),
        }
    }

    fn refuse(&mut self, path: &str, below: &str, cause: FieldCause) {
        let place = match format!("{path}{below}") {
            place if place.is_empty() => "<nil>".to_owned(),
            place => place.trim_start_matches('.').to_owned(),
        };
        self.errors.push(FieldError::new(place, cause));
    }
}
