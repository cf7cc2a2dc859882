//! The stock edge binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    kubeedge_edge::cli::main()
}
