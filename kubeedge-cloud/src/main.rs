//! The stock cloud binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    kubeedge_cloud::cli::main()
}
