//! Ratios between benches of one run, and how they compare with the committed ones.
//!
//! A time in nanoseconds says something about one machine on one day; the ratio of two times measured one after the other
//! says something about the code. `ratios.json` lists the ratios that matter; the program `ratios` reads what criterion
//! left in `target/criterion`, prints them beside the committed ones and fails when one got worse. `figures.json` lists what
//! has a goal a second, whatever the machine: it is printed, and a missed goal is said.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A ratio may be this much worse than the committed one: these machines are shared and noisy.
pub const TOLERANCE: f64 = 1.3;

/// One row of `ratios.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// What is compared, for people.
    pub name: String,
    /// The bench whose time is divided: a folder below `target/criterion`.
    pub ours: String,
    /// The bench whose time it is divided by.
    pub theirs: String,
    /// The ratio when it was last committed; a new row has none until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<f64>,
    /// What it should be at most, if there is a goal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
}

/// One row of `figures.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// What is counted, for people.
    pub name: String,
    /// The bench, whose iteration is one: a folder below `target/criterion`.
    pub bench: String,
    /// How many a second when it was last committed.
    pub committed: u64,
    /// How many a second it should be at least.
    pub goal: u64,
}

/// How many a second of something that takes so long, in nanoseconds.
pub fn per_second(nanos: f64) -> u64 {
    // Saturates; less than one a second is none.
    (1e9 / nanos) as u64
}

/// A ratio as measured now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Median time of ours, nanoseconds.
    pub ours: f64,
    /// Median time of theirs, nanoseconds.
    pub theirs: f64,
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As good as committed, within [`TOLERANCE`].
    Good,
    /// There is nothing to compare it with yet.
    Uncommitted,
    /// As committed, and the goal is missed.
    GoalMissed,
    /// Worse than committed by more than [`TOLERANCE`].
    Worse,
}

impl Measured {
    /// Ours divided by theirs.
    pub fn ratio(self) -> f64 {
        self.ours / self.theirs
    }

    /// The ratio as it is committed and shown: to a hundredth, and a small one to two digits.
    pub fn rounded(self) -> f64 {
        let ratio = self.ratio();
        let mut scale = 100.0;
        while ratio > 0.0 && ratio * scale < 10.0 {
            scale *= 10.0;
        }
        (ratio * scale).round() / scale
    }

    /// Compares with the committed ratio.
    pub fn verdict(self, committed: &Ratio) -> Verdict {
        let ratio = self.ratio();
        if committed.committed.is_some_and(|committed| ratio > committed * TOLERANCE) {
            Verdict::Worse
        } else if committed.goal.is_some_and(|goal| ratio > goal) {
            Verdict::GoalMissed
        } else if committed.committed.is_none() {
            Verdict::Uncommitted
        } else {
            Verdict::Good
        }
    }
}

/// The rows of a file.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}: expected a list of rows", file.display()))
}

/// The median of the last run of one bench, nanoseconds. `criterion` is criterion's folder.
pub fn median(criterion: &Path, bench: &str) -> Result<f64> {
    #[derive(Deserialize)]
    struct Estimates {
        median: Estimate,
    }
    #[derive(Deserialize)]
    struct Estimate {
        point_estimate: f64,
    }
    let file = criterion.join(bench).join("new").join("estimates.json");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{}: run `cargo bench -p kubeedge-benches` first", file.display()))?;
    let estimates: Estimates =
        serde_json::from_str(&text).with_context(|| format!("{}: not criterion's estimates", file.display()))?;
    Ok(estimates.median.point_estimate)
}

/// Both sides of one row.
pub fn measure(criterion: &Path, row: &Ratio) -> Result<Measured> {
    Ok(Measured { ours: median(criterion, &row.ours)?, theirs: median(criterion, &row.theirs)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(committed: impl Into<Option<f64>>, goal: Option<f64>) -> Ratio {
        Ratio { name: "n".into(), ours: "a".into(), theirs: "b".into(), committed: committed.into(), goal }
    }

    fn measured(ratio: f64) -> Measured {
        Measured { ours: ratio * 100.0, theirs: 100.0 }
    }

    #[test]
    fn a_ratio_is_worse_only_beyond_the_tolerance() {
        assert_eq!(measured(1.25).verdict(&row(1.0, None)), Verdict::Good);
        assert_eq!(measured(1.31).verdict(&row(1.0, None)), Verdict::Worse);
    }

    #[test]
    fn a_missed_goal_is_said_and_a_worse_ratio_comes_first() {
        assert_eq!(measured(1.6).verdict(&row(1.5, Some(1.5))), Verdict::GoalMissed);
        assert_eq!(measured(1.4).verdict(&row(1.5, Some(1.5))), Verdict::Good);
        assert_eq!(measured(3.0).verdict(&row(1.5, Some(1.5))), Verdict::Worse);
    }

    #[test]
    fn a_row_without_a_committed_ratio_is_compared_with_its_goal_only() {
        assert_eq!(measured(9.0).verdict(&row(None, None)), Verdict::Uncommitted);
        assert_eq!(measured(9.0).verdict(&row(None, Some(1.5))), Verdict::GoalMissed);
    }

    #[test]
    fn a_ratio_is_rounded_to_a_hundredth_and_never_to_nothing() {
        let rounded = [1.234, 0.999, 12.345, 0.1, 0.0449, 0.003_46].map(|ratio| measured(ratio).rounded());
        assert_eq!(rounded, [1.23, 1.0, 12.35, 0.1, 0.045, 0.0035]);
        assert_eq!(measured(0.0).rounded(), 0.0);
    }

    #[test]
    fn every_committed_ratio_names_two_benches_and_is_a_number() {
        let rows: Vec<Ratio> = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("ratios.json")).unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            let ratio = row.committed.unwrap_or(1.0);
            assert!(row.ours != row.theirs && ratio.is_finite() && ratio > 0.0, "{row:?}");
        }
    }

    #[test]
    fn every_committed_figure_meets_its_goal() {
        let rows: Vec<Figure> = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("figures.json")).unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            assert!(row.committed >= row.goal, "{row:?}");
        }
        assert_eq!(per_second(200_000.0), 5000);
    }

    #[test]
    fn a_bench_that_did_not_run_is_named() {
        let folder = std::env::temp_dir().join("kubeedge-no-criterion");
        let error = measure(&folder, &row(1.0, None)).unwrap_err();
        assert!(format!("{error:#}").contains("cargo bench"), "{error:#}");
    }
}
