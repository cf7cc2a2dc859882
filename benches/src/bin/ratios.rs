//! Compares the last run of the benches with the committed ratios: `ratios [--commit]`.
//!
//! Prints a table, and one of the figures; fails when a ratio got worse by more than the tolerance. `--commit` writes what
//! was measured into `benches/ratios.json` and `benches/figures.json` instead.

#![allow(clippy::print_stdout, reason = "its table is what it is for")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kubeedge_benches::{Figure, Ratio, TOLERANCE, Verdict, measure, median, per_second, read};

fn main() -> Result<()> {
    let commit = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--commit" => true,
        other => bail!("unknown arguments {other:?}; usage: ratios [--commit]"),
    };
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = own.join("ratios.json");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| own.join("../target"), PathBuf::from);
    let criterion = target.join("criterion");
    let mut rows: Vec<Ratio> = read(&file)?;
    let mut worse = Vec::new();
    println!("| ratio | ours | theirs | now | committed | goal | |");
    println!("|---|---|---|---|---|---|---|");
    for row in &mut rows {
        let measured = measure(&criterion, row)?;
        // Two digits behind the point, or as many as a small one has.
        let number = |ratio: Option<f64>| match ratio {
            None => String::from("-"),
            Some(ratio) if ratio < 0.1 => ratio.to_string(),
            Some(ratio) => format!("{ratio:.2}"),
        };
        let verdict = match measured.verdict(row) {
            Verdict::Good => "",
            Verdict::Uncommitted => "not committed yet",
            Verdict::GoalMissed => "goal missed",
            Verdict::Worse => "WORSE",
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {verdict} |",
            row.name,
            time(measured.ours),
            time(measured.theirs),
            number(Some(measured.rounded())),
            number(row.committed),
            number(row.goal)
        );
        if measured.verdict(row) == Verdict::Worse {
            worse.push(row.name.clone());
        }
        row.committed = Some(measured.rounded());
    }
    let figures_file = own.join("figures.json");
    let mut figures: Vec<Figure> = read(&figures_file)?;
    println!("\n| a second | now | committed | goal | |");
    println!("|---|---|---|---|---|");
    for row in &mut figures {
        let now = per_second(median(&criterion, &row.bench)?);
        let verdict = if now < row.goal { "goal missed" } else { "" };
        println!("| {} | {now} | {} | {} | {verdict} |", row.name, row.committed, row.goal);
        row.committed = now;
    }
    if commit {
        write(&figures_file, &figures)?;
        return write(&file, &rows);
    }
    if !worse.is_empty() {
        bail!("worse than committed by more than {TOLERANCE}: {}", worse.join(", "));
    }
    Ok(())
}

fn write<T: serde::Serialize>(file: &Path, rows: &[T]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)? + "\n";
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// Nanoseconds for people.
fn time(nanos: f64) -> String {
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => format!("{:.2} us", n / 1e3),
        n => format!("{:.2} ms", n / 1e6),
    }
}
