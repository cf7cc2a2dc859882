//! What was measured, as lines and as the table of targets.

use std::time::Duration;

use kubeedge_examples::scale::Latencies;

/// One row of the table.
pub(super) struct Row {
    /// What.
    pub(super) figure: &'static str,
    /// The target, as a person writes it.
    pub(super) target: &'static str,
    /// What was measured.
    pub(super) measured: String,
    /// Whether that reaches the target; `None` where the run was not made for it.
    pub(super) reached: Option<bool>,
}

/// Prints the rows.
pub(super) fn print(rows: &[Row]) {
    println!("\n| figure | target | measured | |\n|---|---|---|---|");
    for Row { figure, target, measured, reached } in rows {
        let verdict = match reached {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "another size",
        };
        println!("| {figure} | {target} | {measured} | {verdict} |");
    }
}

/// `p50 1.2 ms, p99 30 ms of 200`.
pub(super) fn spread(latencies: &Latencies) -> String {
    let at = |part| latencies.quantile(part).map_or("-".to_owned(), millis);
    format!("p50 {}, p99 {}, longest {} of {}", at(0.5), at(0.99), at(1.0), latencies.count())
}

/// In milliseconds or seconds.
pub(super) fn millis(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

/// In MB of a million bytes.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
