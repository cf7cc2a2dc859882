//! The cloud's side of a resync: ask what is desired, compare digests, ask for inventories, send the difference.

use std::collections::HashMap;

use kubeedge_proto::v1::{
    DesiredState, Envelope, Inventory, InventoryEntry, KindDigest, ObjectTombstone, ObjectUpsert, ResourceType,
    envelope::Body,
};

use super::types::Violation;
use crate::link::{
    ids::{ObjectId, TypeId, version_number},
    resync::{Difference, Held, Kind, Touched, difference, digest_of},
};

#[derive(Debug)]
enum Phase {
    Idle,
    AwaitDesired,
    AwaitInventory { kinds: Vec<(TypeId, Kind)>, missing: HashMap<TypeId, Vec<InventoryEntry>> },
}

#[derive(Debug)]
pub(crate) struct Exchange {
    phase: Phase,
    /// Kept from when the desired set is asked for until the difference is sent.
    touched: HashMap<ObjectId, Touched>,
    /// As of Hello; of no use once State has been sent and a first exchange is over.
    digests: HashMap<TypeId, KindDigest>,
    first: bool,
    seen: HashMap<TypeId, u64>,
    same_cluster: bool,
    again: bool,
    max_entries: usize,
}

/// What follows.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask the edge for these.
    Ask(Vec<ResourceType>),
    /// Send these; and begin again when something came up meanwhile.
    Send(Difference),
    /// More is to come.
    Wait,
}

/// Notes what a State message does to its name, if it goes down.
fn touch(touched: &mut HashMap<ObjectId, Touched>, envelope: &Envelope) {
    match envelope.body.as_ref() {
        Some(Body::ObjectUpsert(ObjectUpsert { object: Some(object), as_of, .. })) => {
            if let (Some(type_), Some(key)) = (&object.r#type, &object.key) {
                let version = object.version().max(*as_of);
                touched.entry(ObjectId::of(type_, key)).or_default().upsert(&object.uid, version);
            }
        }
        Some(Body::ObjectTombstone(ObjectTombstone { r#type: Some(type_), key: Some(key), uid, resource_version })) => {
            let version = version_number(resource_version);
            touched.entry(ObjectId::of(type_, key)).or_default().tombstone(uid, version);
        }
        _ => {}
    }
}

impl Exchange {
    pub(crate) fn new(kinds: &[KindDigest], same_cluster: bool, max_entries: usize) -> Self {
        let digests: HashMap<TypeId, KindDigest> =
            kinds.iter().filter_map(|kind| Some((TypeId::of(kind.r#type.as_ref()?), kind.clone()))).collect();
        let seen = digests.iter().map(|(id, kind)| (id.clone(), kind.max_resource_version)).collect();
        Self {
            phase: Phase::Idle,
            touched: HashMap::new(),
            digests,
            first: true,
            seen,
            same_cluster,
            again: false,
            max_entries,
        }
    }

    /// Begins, unless it is under way: then it begins again afterwards. True: ask for what is desired. What is unsettled
    /// comes in the order of its sending, per key.
    pub(crate) fn begin<'a>(&mut self, unsettled: impl Iterator<Item = &'a Envelope>) -> bool {
        if !matches!(self.phase, Phase::Idle) {
            self.again = true;
            return false;
        }
        self.again = false;
        self.touched.clear();
        for envelope in unsettled {
            touch(&mut self.touched, envelope);
        }
        self.touched.values_mut().for_each(Touched::asked);
        self.phase = Phase::AwaitDesired;
        true
    }

    /// Whether it has to begin again.
    pub(crate) fn wants_again(&self) -> bool {
        self.again && matches!(self.phase, Phase::Idle)
    }

    /// State was submitted.
    pub(crate) fn submitted(&mut self, envelope: &Envelope) {
        if !matches!(self.phase, Phase::Idle) {
            touch(&mut self.touched, envelope);
        }
    }

    /// The edge could not store a State message: what was sent for its object does not stand.
    pub(crate) fn failed(&mut self, envelope: &Envelope) {
        let (id, gone, uid, version) = match envelope.body.as_ref() {
            Some(Body::ObjectUpsert(ObjectUpsert { object: Some(object), as_of, .. })) => {
                let (Some(type_), Some(key)) = (&object.r#type, &object.key) else { return };
                (ObjectId::of(type_, key), false, &object.uid, object.version().max(*as_of))
            }
            Some(Body::ObjectTombstone(ObjectTombstone { r#type: Some(type_), key: Some(key), uid, .. })) => {
                (ObjectId::of(type_, key), true, uid, 0)
            }
            _ => return,
        };
        match self.touched.get_mut(&id) {
            Some(touched) if gone => touched.tombstone_failed(uid),
            Some(touched) => touched.upsert_failed(uid, version),
            None => {}
        }
    }

    /// `None` when nobody asked.
    pub(crate) fn desired(&mut self, desired: DesiredState) -> Option<Next> {
        if !matches!(self.phase, Phase::AwaitDesired) {
            return None;
        }
        let mut kinds = Vec::new();
        let mut missing = HashMap::new();
        let mut ask = Vec::new();
        for desired in desired.kinds {
            let Some(type_) = desired.r#type.clone() else { continue };
            let id = TypeId::of(&type_);
            if missing.contains_key(&id) || kinds.iter().any(|(known, _)| *known == id) {
                continue;
            }
            let held = match self.digests.get(&id) {
                Some(digest) if self.first && digest.digest == digest_of(&desired)[..] => Held::Same,
                // An edge that says it has none of a kind need not list them.
                Some(digest) if self.first && digest.count == 0 => Held::Entries(Vec::new()),
                None if self.first => Held::Entries(Vec::new()),
                _ => {
                    missing.insert(id.clone(), Vec::new());
                    ask.push(type_);
                    Held::Entries(Vec::new())
                }
            };
            let seen = self.seen.get(&id).copied().unwrap_or(0);
            kinds.push((id, Kind { desired, held, seen }));
        }
        if ask.is_empty() {
            return Some(Next::Send(self.finish(kinds)));
        }
        self.phase = Phase::AwaitInventory { kinds, missing };
        Some(Next::Ask(ask))
    }

    /// A piece of an inventory.
    pub(crate) fn inventory(&mut self, piece: Inventory) -> Result<Next, Violation> {
        let unexpected = || Violation::Unexpected { frame: "Inventory", phase: "without a request for its type" };
        let Phase::AwaitInventory { kinds, missing } = &mut self.phase else { return Err(unexpected()) };
        let id = piece.r#type.as_ref().map(TypeId::of).ok_or_else(unexpected)?;
        let entries = missing.get_mut(&id).ok_or_else(unexpected)?;
        entries.extend(piece.entries);
        if entries.len() > self.max_entries {
            let (got, limit) = (entries.len() as u64, self.max_entries as u64);
            return Err(Violation::Limit { what: "entries of an inventory", got, limit });
        }
        if !piece.last {
            return Ok(Next::Wait);
        }
        let entries = missing.remove(&id).unwrap_or_default();
        let highest = entries.iter().map(|entry| version_number(&entry.resource_version)).max().unwrap_or(0);
        let seen = self.seen.entry(id.clone()).or_default();
        *seen = highest.max(*seen);
        if let Some((_, kind)) = kinds.iter_mut().find(|(known, _)| *known == id) {
            kind.seen = *seen;
            kind.held = Held::Entries(entries);
        }
        if !missing.is_empty() {
            return Ok(Next::Wait);
        }
        let kinds = std::mem::take(kinds);
        Ok(Next::Send(self.finish(kinds)))
    }

    fn finish(&mut self, kinds: Vec<(TypeId, Kind)>) -> Difference {
        self.phase = Phase::Idle;
        self.first = false;
        self.digests = HashMap::new();
        let touched = std::mem::take(&mut self.touched);
        difference(kinds.into_iter().map(|(_, kind)| kind).collect(), &touched, self.same_cluster)
    }
}
