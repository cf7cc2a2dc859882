//! Steps with their seconds, for the person who waits.

use std::{io::Write, time::Instant};

/// The steps so far.
#[derive(Default)]
pub(crate) struct Progress {
    running: Option<Instant>,
}

impl Progress {
    /// A step begins.
    pub(crate) fn begin(&mut self, what: &str) {
        print!("{what:<26}");
        flush();
        self.running = Some(Instant::now());
    }

    /// The step that began has ended, with this to see.
    pub(crate) fn done(&mut self, result: &str) {
        let seconds = self.running.take().map_or(0.0, |began| began.elapsed().as_secs_f32());
        println!("{seconds:>6.1} s   {result}");
    }

    /// The step that began, if any, will not end.
    pub(crate) fn interrupted(&mut self) {
        if self.running.take().is_some() {
            println!();
        }
    }
}

/// Without a line's end nothing is shown by itself; a reader that went away is not worth a word.
fn flush() {
    if let Err(error) = std::io::stdout().flush() {
        eprintln!("standard output: {error}");
    }
}
