//! What a client wants to see. Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::board::Item;

/// Longest query, bytes.
pub const MAX_QUERY: usize = 2048;

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nodes.
    Nodes,
    /// Pods.
    Pods,
    /// Devices, by what they report.
    Twins,
    /// Links between cloud and nodes.
    Link,
    /// The components of this program.
    Actors,
}

/// All of them.
pub const KINDS: [Kind; 5] = [Kind::Nodes, Kind::Pods, Kind::Twins, Kind::Link, Kind::Actors];

impl Kind {
    /// Its name in queries and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Nodes => "nodes",
            Kind::Pods => "pods",
            Kind::Twins => "twins",
            Kind::Link => "link",
            Kind::Actors => "actors",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        KINDS
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("{text:.40?} is not shown, expected some of {}", KINDS.map(Kind::as_str).join(", ")))
    }
}

/// A client's query: `?kinds=pods,twins&namespace=default&name=web&node=edge-1`, each part optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Empty: all.
    kinds: BTreeSet<Kind>,
    namespace: Option<String>,
    name: Option<String>,
    node: Option<String>,
}

impl Filter {
    /// Reads a query. The error says what is expected.
    pub fn parse(query: &str) -> Result<Self, String> {
        if query.len() > MAX_QUERY {
            return Err(format!("the query is longer than {MAX_QUERY} bytes"));
        }
        let mut filter = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "kinds" => {
                    let kinds = value.split(',').filter(|kind| !kind.is_empty());
                    filter.kinds.extend(kinds.map(Kind::from_str).collect::<Result<Vec<_>, _>>()?);
                }
                "namespace" => filter.namespace = Some(value.into_owned()),
                "name" => filter.name = Some(value.into_owned()),
                "node" => filter.node = Some(value.into_owned()),
                other => return Err(format!("{other:.40?} is no filter, expected kinds, namespace, name or node")),
            }
        }
        Ok(filter)
    }

    /// Whether anything of this kind is wanted.
    pub fn wants(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    /// Whether this is shown.
    pub fn shows(&self, item: &Item) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        self.wants(item.kind)
            && is(&self.namespace, &item.namespace)
            && is(&self.name, &item.name)
            && is(&self.node, &item.node)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(kind: Kind, namespace: &str, name: &str, node: &str) -> Item {
        Item { kind, namespace: namespace.into(), name: name.into(), node: node.into() }
    }

    #[test]
    fn a_query_chooses_and_without_one_everything_is_shown() {
        let shows = |query: &str, item: &Item| Filter::parse(query).unwrap().shows(item);
        let pod = item(Kind::Pods, "default", "web", "edge-1");
        for query in ["", "kinds=pods", "kinds=link,pods&namespace=default", "name=web&node=edge-1", "kinds="] {
            assert!(shows(query, &pod), "{query}");
        }
        for query in ["kinds=twins", "namespace=other", "name=we", "node=edge-2", "namespace="] {
            assert!(!shows(query, &pod), "{query}");
        }
        for (bad, said) in [("kinds=pod", "expected some of nodes, pods"), ("pods=1", "no filter"), ("kinds=a%00", "")]
        {
            assert!(Filter::parse(bad).unwrap_err().contains(said), "{bad}");
        }
        assert!(Filter::parse(&"a".repeat(MAX_QUERY + 1)).is_err());
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "\\PC{0,60}") {
            let _ = Filter::parse(&query);
        }
    }
}
