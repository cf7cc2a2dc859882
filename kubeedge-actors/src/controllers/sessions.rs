//! Which session of a node may write: what an older one still wants is given up. Pure.

use std::collections::HashMap;

use kubeedge_proto::v1::NodeSessionChanged;
use tokio_util::sync::CancellationToken;

/// The newest session of each connected node.
#[derive(Debug, Default)]
pub struct Sessions {
    nodes: HashMap<String, Session>,
}

#[derive(Debug)]
struct Session {
    epoch: u64,
    /// Cancelled when the session has ended or another one has taken its place.
    ended: CancellationToken,
}

impl Sessions {
    /// Ends with the session of this epoch; `None` when a newer one has been seen (`P-SUPERSEDED-WRITES-NOTHING`).
    pub fn of(&mut self, node: &str, epoch: u64) -> Option<CancellationToken> {
        let known = self.nodes.get(node).map(|session| session.epoch);
        if known.is_some_and(|known| known > epoch) {
            return None;
        }
        if known != Some(epoch) {
            self.begin(node, epoch);
        }
        self.nodes.get(node).map(|session| session.ended.clone())
    }

    /// The session that a node has, as far as is known.
    #[cfg(feature = "devicecontroller")]
    pub fn epoch(&self, node: &str) -> Option<u64> {
        self.nodes.get(node).map(|session| session.epoch)
    }

    /// CloudHub says what became of a session. True when the node has none any more.
    pub fn changed(&mut self, change: &NodeSessionChanged) -> bool {
        let known = self.nodes.get(&change.node).map(|session| session.epoch);
        if change.connected {
            // What CloudHub says stands, also when it counts anew.
            if known != Some(change.epoch) {
                self.begin(&change.node, change.epoch);
            }
            return false;
        }
        let over = known.is_none_or(|known| known <= change.epoch);
        if over && let Some(session) = self.nodes.remove(&change.node) {
            session.ended.cancel();
        }
        over
    }

    fn begin(&mut self, node: &str, epoch: u64) {
        let session = Session { epoch, ended: CancellationToken::new() };
        if let Some(old) = self.nodes.insert(node.to_owned(), session) {
            old.ended.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(epoch: u64, connected: bool) -> NodeSessionChanged {
        NodeSessionChanged { node: "e1".into(), epoch, connected, reason: String::new() }
    }

    /// P-SUPERSEDED-WRITES-NOTHING
    #[test]
    fn a_newer_session_ends_what_an_older_one_writes() {
        let mut sessions = Sessions::default();
        sessions.changed(&change(4, true));
        let old = sessions.of("e1", 4).unwrap();
        let new = sessions.of("e1", 5).unwrap();
        assert!(old.is_cancelled() && !new.is_cancelled());
        assert!(sessions.of("e1", 4).is_none());
        assert!(!sessions.changed(&change(4, false)), "the end of a replaced one changes nothing");
        assert!(!new.is_cancelled());
        assert!(sessions.changed(&change(5, false)));
        assert!(new.is_cancelled());
    }

    #[test]
    fn a_hub_that_counts_anew_is_believed() {
        let mut sessions = Sessions::default();
        let old = sessions.of("e1", 9).unwrap();
        sessions.changed(&change(1, true));
        assert!(old.is_cancelled());
        assert!(sessions.of("e1", 1).is_some());
    }
}
