//! `cloudcore node` and `cloudcore authority`: who is trusted.

use std::{path::Path, time::SystemTime};

use anyhow::{Result, bail};
use clap::Subcommand;
use kubeedge_actors::identity::CertificateAuthority;
use kubeedge_proto::NodeName;

use super::print;
use crate::{
    config::CloudCore,
    control::{Client, RevokedNode},
};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Refuse a node from now on: its session ends, its certificates and every token for it are refused
    Revoke {
        /// The node's name
        node: NodeName,
    },
    /// Let a revoked node join again; the certificates it had stay refused
    Readmit {
        /// The node's name
        node: NodeName,
    },
    /// List the nodes that were revoked
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityCommand {
    /// Print the hash that join tokens pin, and that of the authority before this one if it is still trusted
    Show,
    /// Make a new authority beside the old one, which stays trusted: counts from the next start of cloudcore
    Rollover,
    /// End the trust in the old authority: counts from the next start of cloudcore
    EndRollover,
}

pub(super) fn node(command: NodeCommand, config: &CloudCore) -> Result<()> {
    super::with_client(config, async |client: Client| match command {
        NodeCommand::Revoke { node } => Ok(client.revoke_node(&node).await?),
        NodeCommand::Readmit { node } => {
            if !client.readmit_node(&node).await? {
                bail!("node {node} is not revoked; `cloudcore node list` shows which are");
            }
            Ok(())
        }
        NodeCommand::List => print(&table(&client.revoked_nodes().await?)),
    })
}

/// Nodes as lines, the way kubectl shows things.
fn table(nodes: &[RevokedNode]) -> String {
    let width = nodes.iter().map(|node| node.node.len()).max().unwrap_or_default().max(4);
    let mut text = format!("{:width$}   {:20}   MAY JOIN\n", "NODE", "REVOKED");
    for RevokedNode { node, revoked, readmitted } in nodes {
        text.push_str(&format!("{node:width$}   {revoked:20}   {}\n", if *readmitted { "yes" } else { "no" }));
    }
    text
}

pub(super) fn authority(command: &AuthorityCommand, config: &CloudCore) -> Result<()> {
    if let Some(secret) = &config.modules.cloud_hub.ca_secret {
        bail!("the authority is in the Secret {}/{}: these commands know files only", secret.namespace, secret.name);
    }
    let folder = config.modules.cloud_hub.authority_folder(&config.standalone.data_dir);
    let now = SystemTime::now();
    match command {
        AuthorityCommand::Show => print(&show(&folder, now)?),
        AuthorityCommand::Rollover => {
            let hash = CertificateAuthority::roll_over(&folder, now)?;
            print(&format!(
                "the new authority is {hash}\nrestart cloudcore: nodes renew their certificates within minutes of coming \
                 back\nthen, when every node was connected: cloudcore authority end-rollover\n"
            ))
        }
        AuthorityCommand::EndRollover => match CertificateAuthority::end_rollover(&folder, now)? {
            Some(hash) => print(&format!("{hash} is not trusted from the next start of cloudcore on\n")),
            None => bail!("there is no rollover under way in {}", folder.display()),
        },
    }
}

fn show(folder: &Path, now: SystemTime) -> Result<String> {
    if !folder.join("rootCA.crt").exists() {
        bail!("there is no authority in {} yet: the first start of cloudcore makes it", folder.display());
    }
    let authority = CertificateAuthority::load_or_create(folder, now)?;
    let mut text = format!("{}\n", authority.ca_hash());
    if let Some(previous) = authority.previous_hash() {
        text.push_str(&format!("{previous} (still trusted)\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_shown_in_columns() {
        let nodes = [("e1", false), ("edge-22", true)].map(|(node, readmitted)| RevokedNode {
            node: node.into(),
            revoked: "2030-01-01T00:00:00Z".into(),
            readmitted,
        });
        let expected = "NODE      REVOKED                MAY JOIN\n\
                        e1        2030-01-01T00:00:00Z   no\n\
                        edge-22   2030-01-01T00:00:00Z   yes\n";
        assert_eq!(table(&nodes), expected);
    }

    #[test]
    fn an_authority_is_rolled_over_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(show(folder.path(), SystemTime::now()).is_err(), "to look makes none");
        let mut config = CloudCore::default();
        config.standalone.data_dir = folder.path().into();
        let pki = folder.path().join("pki");
        let before = CertificateAuthority::load_or_create(&pki, SystemTime::now()).unwrap().ca_hash().to_string();
        authority(&AuthorityCommand::Rollover, &config).unwrap();
        let shown = show(&pki, SystemTime::now()).unwrap();
        assert!(shown.lines().count() == 2 && shown.contains(&format!("{before} (still trusted)")), "{shown}");
        assert!(authority(&AuthorityCommand::Rollover, &config).unwrap_err().to_string().contains("end it first"));
        authority(&AuthorityCommand::EndRollover, &config).unwrap();
        assert!(!show(&pki, SystemTime::now()).unwrap().contains(&before));
        assert!(authority(&AuthorityCommand::EndRollover, &config).is_err());
    }
}
