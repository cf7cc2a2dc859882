//! Topics and filters. Pure.

use std::collections::BTreeMap;

/// Longest topic and filter, bytes.
pub const MAX_TOPIC: usize = 1024;
/// Filters that are subscribed to at a time.
pub const MAX_FILTERS: usize = 1024;

/// What EventBus subscribes to for DeviceTwin.
pub const OF_DEVICES: [&str; 3] =
    ["$hw/events/device/+/+/state/update", "$hw/events/device/+/+/twin/+", "$hw/events/node/+/membership/get"];

/// Whether a message can be published on it.
pub fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= MAX_TOPIC && !topic.contains(['+', '#', '\0'])
}

/// Whether it can be subscribed to.
pub fn is_filter(filter: &str) -> bool {
    let levels: Vec<&str> = filter.split('/').collect();
    let last = levels.len() - 1;
    !filter.is_empty()
        && filter.len() <= MAX_TOPIC
        && !filter.contains('\0')
        && levels.iter().enumerate().all(|(place, level)| match *level {
            "#" => place == last,
            "+" => true,
            level => !level.contains(['+', '#']),
        })
}

/// Whether a topic is one of a filter's. A wildcard in the first place is none of `$...`.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && !filter.starts_with('$') {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(other)) if level == other => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

/// Whether a topic is a request of an application to DeviceTwin.
pub fn is_of_devices(topic: &str) -> bool {
    OF_DEVICES.iter().any(|filter| matches(filter, topic))
}

/// Who wants what: a filter ends with the last who wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted(BTreeMap<String, u32>);

impl Wanted {
    /// Wants a filter; the error says why not.
    pub fn add(&mut self, filter: &str) -> Result<(), String> {
        if !is_filter(filter) {
            return Err(format!("{filter:?} is no topic filter"));
        }
        if !self.0.contains_key(filter) && self.0.len() >= MAX_FILTERS {
            return Err(format!("{MAX_FILTERS} filters are subscribed to already"));
        }
        *self.0.entry(filter.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Wants it no longer.
    pub fn remove(&mut self, filter: &str) {
        if let Some(count) = self.0.get_mut(filter) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(filter);
            }
        }
    }

    /// The filters.
    pub fn filters(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Whether anybody wants it.
    pub fn contains(&self, filter: &str) -> bool {
        self.0.contains_key(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_a_broker_matches_them() {
        for (filter, topic, is) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("#", "a/b", true),
            ("#", "$hw/a", false),
            ("+/user/#", "$hw/user/x", false),
            ("+/user/#", "x/user/y/z", true),
            ("$hw/#", "$hw/a", true),
            ("a/+/c", "a//c", true),
        ] {
            assert_eq!(matches(filter, topic), is, "{filter} {topic}");
        }
        assert!(is_of_devices("$hw/events/device/ns/d/twin/update"));
        assert!(!is_of_devices("$hw/events/device/ns/d/twin/update/result"));
    }

    #[test]
    fn what_is_no_filter_and_no_topic_is_refused() {
        for bad in ["", "a/#/b", "a#", "a+/b", "\0", &"a".repeat(2000)] {
            assert!(!is_filter(bad), "{bad:?}");
        }
        for bad in ["", "a/+", "#", "a\0"] {
            assert!(!is_topic(bad), "{bad:?}");
        }
        assert!(is_filter("+/a/#") && is_topic("$hw/events"));
    }

    #[test]
    fn a_filter_ends_with_the_last_who_wants_it() {
        let mut wanted = Wanted::default();
        wanted.add("a/#").unwrap();
        wanted.add("a/#").unwrap();
        wanted.remove("a/#");
        assert!(wanted.contains("a/#"));
        wanted.remove("a/#");
        wanted.remove("a/#");
        assert_eq!(wanted, Wanted::default());
        assert!(wanted.add("a/#/b").is_err());
    }
}
