//! Mistakes in mappers' reports: each is told once, and all are counted. Pure.

use std::collections::BTreeSet;

use super::{dmi::checks::Mistake, mappers::Id};

/// Devices and properties whose mistakes are remembered. Of more only the count is told.
const MAX_TOLD: usize = 4096;

/// What was told already.
#[derive(Debug, Default)]
pub struct Mistakes {
    /// The device, the property, and whether it is of `observedDesired`.
    told: BTreeSet<(Id, String, bool)>,
    count: u64,
}

impl Mistakes {
    /// Counts one, and says whether it is to be told: the first of its kind since the device or its model changed.
    pub fn is_news(&mut self, device: &str, property: &str, mistake: &Mistake) -> bool {
        self.count += 1;
        let of_observed = matches!(mistake, Mistake::Observed(_));
        // A name has a bound, which a mapper need not keep to.
        let property = property.chars().take(128).collect();
        self.told.len() < MAX_TOLD && self.told.insert((device.to_owned(), property, of_observed))
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A device or its model has changed, or the device has gone: what is wrong from now on is told again.
    pub fn forget(&mut self, device: &str) {
        self.told.retain(|(told, _, _)| told != device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_of_a_property_is_told_once_until_its_device_changes_and_all_are_counted() {
        let (reading, observed) = (Mistake::Property("a".into()), Mistake::Observed("b".into()));
        let mut mistakes = Mistakes::default();
        for (device, property, mistake, is_news) in [
            ("ns/d", "t", &reading, true),
            ("ns/d", "t", &reading, false),
            ("ns/d", "t", &Mistake::Property("another value".into()), false),
            ("ns/d", "t", &observed, true),
            ("ns/d", "u", &reading, true),
            ("ns/e", "t", &reading, true),
        ] {
            assert_eq!(mistakes.is_news(device, property, mistake), is_news, "{device} {property} {mistake:?}");
        }
        mistakes.forget("ns/d");
        assert!(mistakes.is_news("ns/d", "t", &reading) && !mistakes.is_news("ns/e", "t", &reading));
        assert_eq!(mistakes.count(), 8);
        let many = (0..2 * MAX_TOLD).filter(|index| mistakes.is_news("ns/d", &index.to_string(), &reading)).count();
        assert!(many < MAX_TOLD, "{many} are remembered");
        assert_eq!(mistakes.count(), 8 + 2 * MAX_TOLD as u64);
    }
}
