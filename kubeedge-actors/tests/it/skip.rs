//! What becomes of a test that cannot be tried on this machine.

use std::io::Write;

/// Says on the terminal that a test could not be tried here; the test program would swallow what a passing test prints.
pub(crate) fn skipped(test: &str, why: &str) {
    // Without a terminal nobody is there to be told.
    let _ = writeln!(std::io::stderr(), "test {test} ... skipped: {why}");
}

/// The same for want of something that a machine of CI surely has: there it is a failure.
#[track_caller]
pub(crate) fn missing(test: &str, what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test}: {what}");
    skipped(test, what);
}
