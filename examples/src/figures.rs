//! What a program measured: a table for a person, and whether every target was met.

#![allow(clippy::print_stdout, reason = "the table is for a person")]

/// One line of the table.
pub struct Figure {
    name: String,
    measured: String,
    target: String,
    met: Option<bool>,
}

impl Figure {
    /// One with a target.
    pub fn new(name: impl Into<String>, measured: impl Into<String>, target: impl Into<String>, met: bool) -> Self {
        Self { name: name.into(), measured: measured.into(), target: target.into(), met: Some(met) }
    }

    /// One that is only told.
    pub fn told(name: impl Into<String>, measured: impl Into<String>) -> Self {
        Self { name: name.into(), measured: measured.into(), target: "report".to_owned(), met: None }
    }
}

/// Prints the table; says whether no target was missed.
pub fn table(figures: &[Figure]) -> bool {
    println!("| figure | measured | target | |\n|---|---|---|---|");
    for Figure { name, measured, target, met } in figures {
        let met = met.map_or("", |met| if met { "met" } else { "missed" });
        println!("| {name} | {measured} | {target} | {met} |");
    }
    figures.iter().all(|figure| figure.met != Some(false))
}
