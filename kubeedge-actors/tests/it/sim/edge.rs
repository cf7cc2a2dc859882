//! A box: its disk and what runs on it outlive edgecore; MetaManager, EdgeHub and Edged are the real decisions.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kubeedge_actors::{
    edged::{
        book::{Book, Effect},
        lifecycle::{PodPlan, Want},
        runtime::PodSummary,
    },
    edgehub::{
        outbox::{
            Bounds,
            ledger::{Ledger, Written},
            queue::{Changes, Now},
        },
        received::{Received, Remember},
        reports::InFlight,
    },
    metamanager::{
        reports::{ReportKey, Reports},
        state::{Change, State},
    },
};
use kubeedge_proto::{
    resource,
    v1::{
        BoxRecord, KindRecord, KubeObject, ObjectKey, ObjectsChanged, OutboxRecord, ReportStatus, Settled,
        envelope::Body,
    },
};

use super::dice::Dice;

/// What is on the platter.
#[derive(Clone, Default)]
pub struct Disk {
    pub objects: BTreeMap<String, KubeObject>,
    pub kinds: BTreeMap<String, KindRecord>,
    pub this_box: BoxRecord,
    pub reports: BTreeMap<Vec<u8>, ReportStatus>,
    pub outbox: BTreeMap<u64, OutboxRecord>,
    pub received: BTreeMap<u64, Bytes>,
}

/// The rows of one commit.
pub enum Rows {
    Change(Box<Change>),
    Kind(KindRecord),
    Box(BoxRecord),
    Report(ReportKey, Option<Box<ReportStatus>>),
    Outbox(Changes),
    Received(Remember),
}

/// Who waits for a commit.
pub enum Then {
    /// A State message: its connection and sequence.
    Applied(usize, u64),
    /// The pin of a connection's session.
    SessionKept(usize),
    Completed(usize),
    /// The count of a connection that is to be made.
    Counted,
    /// A status of this uid and count: its worker is told.
    Reported(String, u64),
    Forgotten,
    Outbox,
    /// An event of the cloud: its connection, sequence and the taker's word.
    Remembered(usize, u64, Settled),
    /// Who waited is gone.
    Nobody,
}

pub struct Commit {
    /// Of which life of the process that waits for it.
    pub life: u64,
    pub rows: Rows,
    pub then: Then,
}

pub fn object_key(type_: &str, key: &ObjectKey) -> String {
    format!("{type_}/{}", key.name)
}

impl Disk {
    pub fn write(&mut self, rows: &Rows) {
        match rows {
            Rows::Change(change) => {
                let at = object_key(&change.type_.resource, &change.key);
                match &change.object {
                    Some(object) => drop(self.objects.insert(at, object.clone())),
                    None => drop(self.objects.remove(&at)),
                }
                self.kinds.insert(change.type_.resource.clone(), change.record.clone());
            }
            Rows::Kind(record) => {
                let type_ = record.r#type.as_ref().expect("a kind has a type");
                self.kinds.insert(type_.resource.clone(), record.clone());
            }
            Rows::Box(record) => self.this_box = record.clone(),
            Rows::Report(key, report) => match report {
                Some(report) => drop(self.reports.insert(key.bytes().to_vec(), (**report).clone())),
                None => drop(self.reports.remove(key.bytes())),
            },
            Rows::Outbox(changes) => {
                for (place, record) in changes {
                    match record {
                        Some(record) => drop(self.outbox.insert(*place, record.clone())),
                        None => drop(self.outbox.remove(place)),
                    }
                }
            }
            Rows::Received(remember) => {
                self.received.insert(remember.number, remember.id.clone());
                remember.forget.iter().for_each(|number| drop(self.received.remove(number)));
            }
        }
    }
}

/// For Edged.
pub enum News {
    Changed(Box<ObjectsChanged>),
    Reloaded,
    PodsComplete,
}

/// EdgeHub.
pub struct Hub {
    pub ledger: Ledger<Bytes>,
    pub received: Received,
    pub reports: InFlight,
    /// The connection of the session, while there is one.
    pub connection: Option<usize>,
    pub established: bool,
    pub cluster_uid: String,
    /// The next output is taken when a commit is over.
    pub waits: bool,
    pub fetch_at: Option<Duration>,
}

/// MetaManager.
pub struct Meta {
    pub state: State,
    pub reports: Reports,
    /// State that needs what is being written: its connection and sequence.
    pub waiting: Vec<(Box<Body>, usize, u64)>,
}

/// edgecore while it lives.
pub struct Edge {
    pub meta: Meta,
    pub hub: Hub,
    pub book: Book,
    pub news: VecDeque<News>,
    /// The answer to Edged's question for the pods on disk is still to come.
    pub asked: bool,
    pub load_again: bool,
    /// Workers that are to end their pod, with whether the end is reported.
    pub ending: BTreeMap<String, bool>,
}

pub struct Box_ {
    pub node: &'static str,
    pub disk: Disk,
    pub full: bool,
    pub commits: VecDeque<Commit>,
    pub life: u64,
    pub edge: Option<Edge>,
    /// What containerd runs: it outlives edgecore.
    pub runtime: BTreeMap<String, PodSummary>,
    pub wanted_connection: bool,
    /// The highest count of a connection so far. A full disk keeps none: then they do not rise after a restart.
    pub counted: u64,
    /// Of the wall clock against the world's, in milliseconds.
    pub clock: i64,
    /// Counts of what pods said about themselves and MetaManager took; the newest per uid.
    pub statuses: BTreeMap<String, u64>,
    pub said: u64,
    /// The last of them per uid: a worker tells again only that.
    pub last_said: BTreeMap<String, u64>,
    /// Uids whose end was reported.
    pub told_end: BTreeSet<String>,
    /// How often each event of the cloud took effect, and how often it may have.
    pub effects: BTreeMap<Bytes, (u32, u32)>,
    /// Events whose publisher was told that they are taken.
    pub promised: BTreeSet<Bytes>,
    pub slow_until: Duration,
    /// Reports that MetaManager could not keep: their workers try again.
    pub again: Vec<(ReportStatus, String, u64)>,
    pub dice: Dice,
}

pub const BOUNDS: Bounds = Bounds { max_events: 12, max_bytes: 20_000, max_age: Duration::from_secs(24 * 3600) };

impl Box_ {
    pub fn new(node: &'static str, mut dice: Dice) -> Self {
        let instance = dice.bytes16();
        let this_box = BoxRecord { instance_id: instance.to_vec().into(), ..BoxRecord::default() };
        Self {
            node,
            disk: Disk { this_box, ..Disk::default() },
            full: false,
            commits: VecDeque::new(),
            life: 0,
            edge: None,
            runtime: BTreeMap::new(),
            wanted_connection: false,
            counted: 0,
            clock: 0,
            statuses: BTreeMap::new(),
            said: 0,
            last_said: BTreeMap::new(),
            told_end: BTreeSet::new(),
            effects: BTreeMap::new(),
            promised: BTreeSet::new(),
            slow_until: Duration::ZERO,
            again: Vec::new(),
            dice,
        }
    }

    pub fn now(&self, clock: Duration) -> Now {
        let unix_ms = 1_800_000_000_000_i64 + clock.as_millis() as i64 + self.clock;
        Now { clock, unix_ms: unix_ms.max(0) as u64 }
    }

    /// MetaManager out of what is on disk. `last` is the last generation of an earlier one of this process.
    pub fn load_meta(&self, last: u64) -> Meta {
        let state = State::load(
            self.disk.this_box.clone(),
            self.disk.kinds.values().cloned(),
            self.disk.objects.values().cloned(),
        );
        let mut reports = Reports::after(last);
        for report in self.disk.reports.values() {
            reports.load(ReportKey::of(report).expect("a report names its object"), report.clone());
        }
        Meta { state, reports, waiting: Vec::new() }
    }

    pub fn load_hub(&mut self, clock: Duration) -> Hub {
        let now = self.now(clock);
        let records: Vec<_> = self.disk.outbox.iter().map(|(place, record)| (*place, record.clone())).collect();
        let dice = &mut self.dice;
        let id = || Bytes::from(dice.bytes16().to_vec());
        Hub {
            ledger: Ledger::load(BOUNDS, now, records.into_iter(), 1 << 20, id),
            received: Received::load(self.disk.received.iter().map(|(number, id)| (*number, id.clone()))),
            reports: InFlight::default(),
            connection: None,
            established: false,
            cluster_uid: String::new(),
            waits: false,
            fetch_at: None,
        }
    }

    /// edgecore starts. Nobody else is needed for that.
    pub fn boot(&mut self, clock: Duration) {
        self.life += 1;
        let meta = self.load_meta(0);
        let hub = self.load_hub(clock);
        self.edge = Some(Edge {
            meta,
            hub,
            book: Book::new(),
            news: VecDeque::from([News::Reloaded]),
            asked: true,
            load_again: false,
            ending: BTreeMap::new(),
        });
    }

    pub fn commit(&mut self, rows: Rows, then: Then) {
        let life = self.life;
        self.commits.push_back(Commit { life, rows, then });
    }

    /// Begins the next commit of the outbox, if there is something for it.
    pub fn write_outbox(&mut self) {
        if let Some(changes) = self.edge.as_mut().and_then(|edge| edge.hub.ledger.batch()) {
            self.commit(Rows::Outbox(changes), Then::Outbox);
        }
    }

    /// How a publisher is answered.
    pub fn answer_publishers(&mut self, written: &Written, changes: Changes) {
        let Some(edge) = &mut self.edge else { return };
        for (id, settled) in edge.hub.ledger.committed(written, changes) {
            if settled.code == 0 {
                self.promised.insert(id);
            }
        }
        if *written == Written::Yes {
            self.write_outbox();
        }
    }

    /// The pods on disk, as Edged understands them.
    pub fn pods_on_disk(&self) -> Vec<(Arc<Pod>, PodPlan)> {
        let pods = self.disk.objects.values().filter(|object| object.r#type == Some(resource::pods()));
        pods.map(understand).collect()
    }
}

pub fn understand(object: &KubeObject) -> (Arc<Pod>, PodPlan) {
    let pod: Pod = serde_json::from_slice(&object.json).expect("the model's pods are pods");
    let plan = PodPlan::of(&pod).expect("the model's pods are valid");
    (Arc::new(pod), plan)
}

/// What follows for a pod: run it, or begin to end it.
pub struct Ordered {
    pub uid: String,
    pub name: String,
    pub run: bool,
    pub report_end: bool,
}

pub fn ordered(effect: Effect) -> Ordered {
    let (Effect::Start { uid, order } | Effect::Order { uid, order }) = effect;
    let run = matches!(order.want, Want::Run);
    Ordered { uid, name: order.plan.name.clone(), run, report_end: order.report_end }
}
