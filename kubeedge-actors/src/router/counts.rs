//! What became of the messages of each rule: its status. Pure.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::table::Key;

/// Failures that a status names.
pub const MAX_ERRORS: usize = 10;
/// Characters of one.
pub const MAX_ERROR: usize = 256;

/// The counts of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Count {
    uid: String,
    success: i64,
    fail: i64,
    errors: VecDeque<String>,
    /// Not in the API server yet.
    due: bool,
}

/// Those of all rules.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Key, Count>);

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// Of this rule.
    pub key: Key,
    /// It is this one's and no later one's of its name.
    pub uid: String,
    /// What it says.
    pub status: Value,
}

impl Counts {
    /// A rule is there: counting goes on where its status is. What was counted here since counts more.
    pub fn known(&mut self, key: Key, uid: &str, status: &Value) {
        if self.0.get(&key).is_some_and(|count| count.uid == uid) {
            return;
        }
        let number = |field: &str| status[field].as_i64().unwrap_or(0).max(0);
        let errors = status["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let errors: Vec<String> = errors.map(shortened).collect();
        let skipped = errors.len().saturating_sub(MAX_ERRORS);
        let count = Count {
            uid: uid.to_owned(),
            success: number("successMessages"),
            fail: number("failMessages"),
            errors: errors.into_iter().skip(skipped).collect(),
            due: false,
        };
        self.0.insert(key, count);
    }

    /// A rule is gone.
    pub fn gone(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Only these rules are there.
    pub fn retain(&mut self, is: impl Fn(&Key) -> bool) {
        self.0.retain(|key, _| is(key));
    }

    /// The target took a message.
    pub fn success(&mut self, key: &Key) {
        if let Some(count) = self.0.get_mut(key) {
            count.success = count.success.saturating_add(1);
            count.due = true;
        }
    }

    /// It did not, at `time`.
    pub fn failure(&mut self, key: &Key, time: &str, why: &str) {
        let Some(count) = self.0.get_mut(key) else { return };
        count.fail = count.fail.saturating_add(1);
        count.errors.push_back(shortened(&format!("{time} {why}")));
        if count.errors.len() > MAX_ERRORS {
            count.errors.pop_front();
        }
        count.due = true;
    }

    /// Statuses to be written, some at a time. They count as written until [`Self::not_written`].
    pub fn due(&mut self, at_once: usize) -> Vec<Due> {
        let due = self.0.iter_mut().filter(|(_, count)| count.due).take(at_once);
        due.map(|(key, count)| {
            count.due = false;
            let status = json!({"successMessages": count.success, "failMessages": count.fail, "errors": count.errors});
            Due { key: key.clone(), uid: count.uid.clone(), status }
        })
        .collect()
    }

    /// One was not: it is due again.
    pub fn not_written(&mut self, due: &Due) {
        if let Some(count) = self.0.get_mut(&due.key).filter(|count| count.uid == due.uid) {
            count.due = true;
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_ERROR).map(|it| if it.is_control() { ' ' } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("ns".into(), "r".into())
    }

    #[test]
    fn counting_goes_on_where_the_status_is_and_keeps_the_last_failures() {
        let mut counts = Counts::default();
        counts.success(&key());
        assert_eq!(counts.due(9), [], "nothing is counted for a rule that is not there");
        counts.known(key(), "u1", &json!({"successMessages": 7, "failMessages": 2, "errors": ["old"]}));
        assert_eq!(counts.due(9), []);
        counts.success(&key());
        for n in 0..MAX_ERRORS {
            counts.failure(&key(), "12:00", &format!("no {n}\n{}", "x".repeat(MAX_ERROR)));
        }
        // What was written comes back by the watch: it says nothing new.
        counts.known(key(), "u1", &json!({"successMessages": 1}));
        let due = counts.due(9).remove(0);
        assert_eq!((&due.status["successMessages"], &due.status["failMessages"]), (&json!(8), &json!(12)));
        let errors = due.status["errors"].as_array().unwrap();
        assert_eq!(errors.len(), MAX_ERRORS);
        assert!(errors.iter().all(|error| error.as_str().unwrap().starts_with("12:00 no ")));
        assert_eq!(errors[0].as_str().unwrap().chars().count(), MAX_ERROR);
        assert_eq!(counts.due(9), []);
        counts.not_written(&due);
        assert_eq!(counts.due(9).len(), 1);
        counts.known(key(), "u2", &Value::Null);
        counts.not_written(&due);
        assert_eq!(counts.due(9), [], "another rule of the same name begins at nothing");
    }
}
