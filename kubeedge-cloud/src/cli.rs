//! Flags and commands of `cloudcore`.

mod trust;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use kubeedge_actors::config::{Loaded, load};
use kubeedge_proto::NodeName;

use crate::{
    compose,
    config::{AdvertiseAddress, CloudCore, DEFAULT_FILE, DEFAULT_TEXT, MIN_TEXT, ServiceRange},
    control::{Client, NewToken, TokenInfo},
};

/// The cloud side of KubeEdge.
#[derive(Debug, Parser)]
#[command(name = "cloudcore", version)]
pub struct Cli {
    /// The configuration file; without it /etc/kubeedge/config/cloudcore.yaml if it is there, else defaults
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The folder of everything that cloudcore keeps
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Run the embedded Kubernetes-style API server: no cluster is needed
    #[arg(long)]
    standalone: bool,
    /// The addresses that Services get from the embedded API server: an IPv4 network such as 10.96.0.0/16
    #[arg(long, value_name = "CIDR")]
    service_cluster_ip_range: Option<ServiceRange>,
    /// The address by which pods and nodes reach the embedded API server
    #[arg(long, value_name = "IP")]
    advertise_address: Option<AdvertiseAddress>,
    /// Refuse a configuration file with fields that nobody knows
    #[arg(long, global = true)]
    strict: bool,
    /// Print a configuration with every field and its default
    #[arg(long)]
    defaultconfig: bool,
    /// Print a configuration with what usually has to be set
    #[arg(long, conflicts_with = "defaultconfig")]
    minconfig: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read the configuration strictly and say what is wrong with it
    Check,
    /// Print the definitions of devices and rules (devices.kubeedge.io, rules.kubeedge.io), for `kubectl apply -f -`
    Crds,
    /// Join tokens, of the cloudcore that runs with this data folder
    #[command(subcommand)]
    Token(TokenCommand),
    /// Nodes that may not come any more, at the cloudcore that runs with this data folder
    #[command(subcommand)]
    Node(trust::NodeCommand),
    /// The certificate authority in the files of this configuration
    #[command(subcommand)]
    Authority(trust::AuthorityCommand),
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it: it is not shown again
    Create(Create),
    /// List the tokens that are valid, without their secrets
    List,
    /// Make a token invalid
    Revoke {
        /// The middle part of the token, as `list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Only this node may use it
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// How long it is valid, such as 90s, 30m, 24h or 7d; without it as the configuration says (24h)
    #[arg(long, value_parser = parse_span)]
    ttl: Option<Duration>,
    /// It may be used more than once
    #[arg(long)]
    reusable: bool,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloudcore: {}", kubeedge_actors::program::explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if cli.defaultconfig || cli.minconfig {
        return print(if cli.defaultconfig { DEFAULT_TEXT } else { MIN_TEXT });
    }
    let strict = cli.strict || matches!(cli.command, Some(Command::Check));
    let Loaded { value: mut config, without_effect, unknown } = read(cli.config.as_deref(), strict)?;
    if let Some(folder) = cli.data_dir {
        config.standalone.data_dir = folder;
    }
    config.standalone.enable |= cli.standalone;
    if let Some(range) = cli.service_cluster_ip_range {
        config.standalone.service_cluster_ip_range = Some(range);
    }
    if let Some(address) = cli.advertise_address {
        config.standalone.advertise_address = Some(address);
    }
    match cli.command {
        None => {
            kubeedge_actors::program::log();
            if !without_effect.is_empty() {
                tracing::info!(fields = without_effect.join(" "), "configuration: these have no effect here");
            }
            for field in unknown {
                tracing::warn!(field, "configuration: nobody knows this field; check its spelling");
            }
            compose::run(config)
        }
        Some(Command::Check) => {
            let mut text = String::from("the configuration is valid\n");
            if !without_effect.is_empty() {
                text.push_str(&format!("without effect here: {}\n", without_effect.join(" ")));
            }
            print(&text)
        }
        Some(Command::Crds) => {
            let all = [kubeedge_actors::device::crds::manifest(), kubeedge_actors::rule::crds::manifest()];
            print(&all.join("---\n"))
        }
        Some(Command::Token(command)) => token(command, &config),
        Some(Command::Node(command)) => trust::node(command, &config),
        Some(Command::Authority(command)) => trust::authority(&command, &config),
    }
}

/// The file that a flag names must be there; the usual one may be missing.
fn read(file: Option<&Path>, strict: bool) -> Result<Loaded<CloudCore>> {
    let path = match file {
        Some(path) => path,
        None if Path::new(DEFAULT_FILE).exists() => Path::new(DEFAULT_FILE),
        None => return Ok(Loaded { value: CloudCore::default(), without_effect: vec![], unknown: vec![] }),
    };
    let loaded = load(path)?;
    Ok(if strict { loaded.strict(path)? } else { loaded })
}

/// Runs a command against the cloudcore of this configuration.
fn with_client(config: &CloudCore, run: impl AsyncFnOnce(Client) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run(Client::new(&config.standalone.data_dir)))
}

fn token(command: TokenCommand, config: &CloudCore) -> Result<()> {
    with_client(config, async |client| match command {
        TokenCommand::Create(create) => {
            let ttl = create.ttl.unwrap_or_else(|| config.modules.cloud_hub.token_validity());
            let node = create.node.map(|node| node.to_string());
            let created =
                client.create(&NewToken { node, ttl_seconds: ttl.as_secs(), reusable: create.reusable }).await?;
            print(&format!("{}\n", created.token))
        }
        TokenCommand::List => print(&table(&client.list().await?)),
        TokenCommand::Revoke { id } => {
            if !client.revoke(&id).await? {
                bail!("there is no token with the id {id:?}; `cloudcore token list` shows the ids");
            }
            Ok(())
        }
    })
}

/// Tokens as lines, the way kubectl shows things.
fn table(tokens: &[TokenInfo]) -> String {
    let rows = tokens.iter().map(|token| {
        let node = token.node.as_deref().unwrap_or("<any>");
        [token.id.as_str(), node, token.expires.as_str(), if token.reusable { "many" } else { "one" }]
            .map(str::to_owned)
    });
    let rows: Vec<[String; 4]> =
        std::iter::once(["ID", "NODE", "EXPIRES", "USES"].map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths = [0, 1, 2].map(width);
    rows.iter()
        .map(|[id, node, expires, uses]| {
            let [a, b, c] = widths;
            format!("{id:a$}   {node:b$}   {expires:c$}   {uses}\n")
        })
        .collect()
}

/// Writes to standard output; a reader that went away is not an error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}

/// A number with a unit: s, m, h or d; at most a year.
fn parse_span(text: &str) -> Result<Duration, String> {
    const YEAR: u64 = 365 * 86_400;
    let units = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
    units
        .iter()
        .find_map(|(unit, seconds)| {
            let digits = text.strip_suffix(*unit)?;
            let count: u64 = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
            count.checked_mul(*seconds)
        })
        .filter(|seconds| (1..=YEAR).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a time such as 90s, 30m, 24h or 7d, at most 365d".to_owned())
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
    fn spans_have_a_unit_and_a_limit() {
        assert_eq!(parse_span("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_span("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "h", "24", "0s", "-1h", "+1h", "1.5h", "366d", "99999999999999999999s", "213503982334602d"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_named_by_a_flag_must_be_there() {
        let error = read(Some(Path::new("/no/such/cloudcore.yaml")), false).unwrap_err().to_string();
        assert!(error.contains("/no/such/cloudcore.yaml"), "{error}");
    }

    #[test]
    fn unknown_fields_are_refused_only_when_strict() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cloudcore.yaml");
        std::fs::write(&file, "standallone: {enable: true}\n").unwrap();
        assert_eq!(read(Some(&file), false).unwrap().unknown, ["standallone"]);
        assert!(read(Some(&file), true).unwrap_err().to_string().contains("standallone"));
    }

    #[test]
    fn tokens_are_shown_in_columns() {
        let token = TokenInfo {
            id: "0123abcd".into(),
            node: Some("edge-1".into()),
            expires: "2030-01-01T00:00:00Z".into(),
            reusable: false,
        };
        let shown = table(&[token]);
        assert_eq!(
            shown,
            "ID         NODE     EXPIRES                USES\n0123abcd   edge-1   2030-01-01T00:00:00Z   one\n"
        );
    }
}
