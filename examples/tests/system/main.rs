//! The one test program of the examples: programs as processes of their own, with real pods.
//!
//! Most stages take the whole system as an operator runs it, `cloudcore`, `edgecore` and a private containerd; each
//! brings a lab up once and its scenarios share it, since a bring-up costs seconds. Stages wait most of their time: those
//! without containers run beside the first of those with containers. The rest, which take the machine's whole power or
//! measure it, run one after the other.
//!
//! `cargo test --test system -- NAME` runs the scenarios with NAME in their name. The programs are not built by that: run
//! `make test`, or `cargo build --workspace --bins --all-features` first. Without root or containerd the scenarios are
//! skipped by name; in CI, which installs everything, that is a failure.

#![allow(clippy::print_stdout, reason = "a test program")]

mod apps;
mod autonomy;
mod cluster;
mod containerd;
mod crash;
mod devices;
mod disks;
mod edged;
mod embedding;
mod enrolment;
mod faults;
mod kubectl;
mod kubectls;
mod logs;
mod metaserver;
mod node;
mod pods;
mod quickstart;
mod recreated;
mod report;
mod resize;
mod restarts;
mod rules;
mod scale;
mod shims;
mod stream_figures;
mod streams;
mod volumes;
mod wrong_pods;

use std::process::ExitCode;

use kubeedge_examples::containerd::Tools;
use report::Report;

// One thread: children are told when the thread that started them ends, and this one ends last.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments(std::env::args().skip(1));
    let tools = Tools::find();
    let mut beside = report.another();
    tokio::join!(
        async {
            quickstart::stage(&mut report).await;
            containerd::stage(&mut report, &tools).await;
            edged::stage(&mut report, &tools).await;
            pods::stage(&mut report, &tools).await;
            apps::stage(&mut report, &tools).await;
            logs::stage(&mut report, &tools).await;
            node::stage(&mut report, &tools).await;
        },
        async {
            embedding::stage(&mut beside).await;
            enrolment::stage(&mut beside).await;
            devices::stage(&mut beside).await;
            rules::stage(&mut beside).await;
            metaserver::stage(&mut beside).await;
        }
    );
    report.add(beside);
    restarts::stage(&mut report, &tools).await;
    autonomy::stage(&mut report, &tools).await;
    disks::stage(&mut report, &tools).await;
    crash::stage(&mut report, &tools).await;
    faults::stage(&mut report, &tools).await;
    scale::stage(&mut report).await;
    report.finish()
}
