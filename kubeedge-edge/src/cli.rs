//! Flags and commands of `edgecore`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use kubeedge_actors::{
    config::{HostPort, Loaded, UnixEndpoint, load},
    edged::hold,
};
use kubeedge_proto::NodeName;

use crate::{
    compose,
    config::{DEFAULT_FILE, DEFAULT_TEXT, ENROLMENT_PORT, EdgeCore, MIN_TEXT},
    join::{self, Join},
};

/// The edge side of KubeEdge.
#[derive(Debug, Parser)]
#[command(name = "edgecore", version)]
pub struct Cli {
    /// The configuration file; without it /etc/kubeedge/config/edgecore.yaml if it is there, else defaults
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Refuse a configuration file with fields that nobody knows
    #[arg(long)]
    strict: bool,
    /// Print a configuration with every field and its default
    #[arg(long)]
    defaultconfig: bool,
    /// Print a configuration with what usually has to be set
    #[arg(long, conflicts_with = "defaultconfig")]
    minconfig: bool,
    /// Keep pods in memory, and run no containers: for tests of everything around them
    #[cfg(feature = "fake-runtime")]
    #[arg(long)]
    fake_runtime: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read the configuration strictly and say what is wrong with it
    Check,
    /// Release pods that are held by their annotation edge.kubeedge.io/hold-upgrade
    UnholdUpgrade {
        /// The pod: NAMESPACE/NAME
        #[arg(required_unless_present = "all")]
        pod: Option<String>,
        /// Every pod of this node that waits now
        #[arg(long, conflicts_with = "pod")]
        all: bool,
    },
    /// Make this box a node: get its certificate and write its configuration file
    Join(JoinArgs),
}

#[derive(Debug, Args)]
struct JoinArgs {
    /// Where the cloud serves enrolment: a host, with :PORT unless it is 10002
    #[arg(value_parser = cloud)]
    cloud: HostPort,
    /// A token that `cloudcore token create` printed
    #[arg(long, short)]
    token: String,
    /// The node's name; without it, the host's
    #[arg(long, value_name = "NAME")]
    node_name: Option<NodeName>,
    /// Keep everything in this folder, edgecore.yaml included, instead of in /etc and /var
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The container runtime's CRI socket; without it, containerd's usual one
    #[arg(long, value_name = "ENDPOINT")]
    remote_runtime_endpoint: Option<UnixEndpoint>,
    /// Replace the certificate and the configuration file of an earlier join
    #[arg(long)]
    force: bool,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgecore: {}", kubeedge_actors::program::explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if cli.defaultconfig || cli.minconfig {
        return print(if cli.defaultconfig { DEFAULT_TEXT } else { MIN_TEXT });
    }
    match cli.command {
        None => {
            let Loaded { value, without_effect, unknown } = read(cli.config.as_deref(), cli.strict)?;
            kubeedge_actors::program::log();
            if !without_effect.is_empty() {
                tracing::info!(fields = without_effect.join(" "), "configuration: these have no effect here");
            }
            for field in unknown {
                tracing::warn!(field, "configuration: nobody knows this field; check its spelling");
            }
            #[cfg(feature = "fake-runtime")]
            if cli.fake_runtime {
                return compose::run(value, compose::Runtime::InMemory);
            }
            compose::run(value, compose::Runtime::Cri)
        }
        Some(Command::Check) => {
            let Loaded { without_effect, .. } = read(cli.config.as_deref(), true)?;
            let mut text = String::from("the configuration is valid\n");
            if !without_effect.is_empty() {
                text.push_str(&format!("without effect here: {}\n", without_effect.join(" ")));
            }
            print(&text)
        }
        Some(Command::UnholdUpgrade { pod, all: _ }) => {
            let Loaded { value, .. } = read(cli.config.as_deref(), false)?;
            let root = &value.modules.edged.root_directory;
            let shown = || hold::folder(root).display().to_string();
            let Some(pod) = pod else {
                hold::release_all(root).with_context(|| format!("release all pods, in {}", shown()))?;
                return print("every pod that waits is released\n");
            };
            let (namespace, name) = pod.split_once('/').context("expected a pod as NAMESPACE/NAME")?;
            hold::release(root, namespace, name).with_context(|| format!("release pod {pod}, in {}", shown()))?;
            print(&format!("pod {pod} is released\n"))
        }
        Some(Command::Join(args)) => {
            let join = Join::new(args.cloud, &args.token, args.node_name, args.data_dir.as_deref(), cli.config)?
                .runtime(args.remote_runtime_endpoint)
                .force(args.force);
            let joined = actix_rt::System::new().block_on(join::run(&join))?;
            print(&format!(
                "{} is a node of {}\nstart it: edgecore --config {}\n",
                joined.node,
                joined.link,
                joined.config.display()
            ))
        }
    }
}

/// The file that a flag names must be there; the usual one may be missing.
fn read(file: Option<&Path>, strict: bool) -> Result<Loaded<EdgeCore>> {
    let path = match file {
        Some(path) => path,
        None if Path::new(DEFAULT_FILE).exists() => Path::new(DEFAULT_FILE),
        None => return Ok(Loaded { value: EdgeCore::default(), without_effect: vec![], unknown: vec![] }),
    };
    let loaded = load(path)?;
    Ok(if strict { loaded.strict(path)? } else { loaded })
}

fn cloud(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text, Some(ENROLMENT_PORT)).map_err(|error| error.to_string())
}

/// Writes to standard output; a reader that went away is not an error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cloud_has_a_host_and_perhaps_a_port() {
        assert_eq!(cloud("cloud.example").unwrap().to_string(), "cloud.example:10002");
        assert_eq!(cloud("127.0.0.1:4321").unwrap().to_string(), "127.0.0.1:4321");
        assert!(cloud("https://cloud").is_err());
    }

    #[test]
    fn a_file_named_by_a_flag_must_be_there() {
        let error = read(Some(Path::new("/no/such/edgecore.yaml")), false).unwrap_err().to_string();
        assert!(error.contains("/no/such/edgecore.yaml"), "{error}");
    }
}
