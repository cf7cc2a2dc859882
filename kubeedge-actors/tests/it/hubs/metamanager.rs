//! MetaManager without a link: what it promises to whoever reports, applies and reads.

use actix::AsyncContext;

use super::*;

/// Stands for an EdgeHub whose queue is full of other things than news of reports.
struct Busy {
    begin: Arc<tokio::sync::Semaphore>,
    told: mpsc::Sender<()>,
}

impl Actor for Busy {
    type Context = Context<Self>;
}

impl Component for Busy {
    const NAME: &'static str = "busy";
    const STAGE: Stage = Stage::Link;
    const CAPACITY: usize = 1;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<LinkStateChanged>();
        contract.answers::<ReportsPending>();
    }
}

impl Handler<LinkStateChanged> for Busy {
    type Result = ();
    fn handle(&mut self, _: LinkStateChanged, ctx: &mut Context<Self>) {
        let begin = self.begin.clone();
        let waits = async move { begin.acquire().await.unwrap().forget() };
        ctx.wait(actix::fut::wrap_future(waits));
    }
}

impl Handler<ReportsPending> for Busy {
    type Result = ();
    fn handle(&mut self, _: ReportsPending, _: &mut Context<Self>) {
        self.told.try_send(()).unwrap();
    }
}

#[actix_rt::test]
async fn news_of_a_report_wait_for_room_in_a_full_queue() {
    let tables = Tables::open(Store::in_memory()).await.unwrap();
    let begin = Arc::new(tokio::sync::Semaphore::new(0));
    let (told, mut heard) = mpsc::channel(10);
    let busy = begin.clone();
    let system = System::builder("edge")
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .component(move |_: &Ports| Busy { begin: busy.clone(), told: told.clone() })
        .asks::<ReportStatus>()
        .asks::<LinkStateChanged>()
        .start()
        .unwrap();
    let other: Port<LinkStateChanged> = system.port();
    let port: Port<ReportStatus> = system.port();
    // One is being handled, one fills the queue.
    for _ in 0..2 {
        other.tell(LinkStateChanged::default()).await.unwrap();
    }
    for name in ["a", "b", "c"] {
        assert_eq!(port.ask(report(name), SOON).await.unwrap(), Settled::applied());
    }
    assert!(heard.try_recv().is_err());
    begin.add_permits(2);
    tokio::time::timeout(SOON, heard.recv()).await.expect("told once there is room").unwrap();
    system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_repeated_object_is_not_acknowledged_before_the_first_is_on_disk() {
    let tables = Tables::open(Store::in_memory()).await.unwrap();
    let system = System::builder("edge")
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .asks::<ApplyState>()
        .asks::<ListInventory>()
        .start()
        .unwrap();
    let port: Port<ApplyState> = system.port();
    let list: Port<ListInventory> = system.port();
    let apply = || ApplyState { envelope: upsert(pod("a", "u1", 5)).envelope };
    let inventory = || ListInventory { r#type: Some(resource::pods()) };
    // All are in the queue before the first commit can be over.
    let (first, again, meanwhile) =
        tokio::join!(port.ask(apply(), SOON), port.ask(apply(), SOON), list.ask(inventory(), SOON));
    assert_eq!(first.unwrap(), Settled::applied());
    assert_eq!(again.unwrap().code, 503);
    assert!(meanwhile.unwrap().entries.is_empty());
    assert_eq!(port.ask(apply(), SOON).await.unwrap(), Settled::applied());
    assert_eq!(list.ask(inventory(), SOON).await.unwrap().entries.len(), 1);
    system.stop(SOON).await;
}

#[actix_rt::test]
async fn absence_means_nothing_while_a_record_cannot_be_read() {
    for damaged in [false, true] {
        let store = Store::in_memory();
        let mut batch = store.batch();
        let type_ = resource::pods().to_string();
        let complete = KindRecord { r#type: Some(resource::pods()), complete: true, ..KindRecord::default() };
        batch.put(&store.table::<KindRecord>("kinds"), type_.as_bytes(), &complete);
        if damaged {
            let key = [type_.as_bytes(), b"ns", b"a"].join(&0);
            batch.put(&store.table::<Vec<u8>>("objects"), &key, &vec![0xff; 3]);
        }
        batch.commit().await.unwrap();
        let tables = Tables::open(store).await.unwrap();
        let system = System::builder("edge")
            .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
            .asks::<ReadObjects>()
            .start()
            .unwrap();
        let port: Port<ReadObjects> = system.port();
        for key in [None, Some(ObjectKey::new("ns", "other"))] {
            let list = port.ask(ReadObjects { r#type: Some(resource::pods()), key }, SOON).await.unwrap();
            assert_eq!(list.complete, !damaged);
        }
        system.stop(SOON).await;
    }
}

#[actix_rt::test]
async fn a_report_that_was_refused_for_good_goes_and_one_refused_for_now_stays() {
    let tables = Tables::open(Store::in_memory()).await.unwrap();
    let system = System::builder("edge")
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .asks::<ReportStatus>()
        .asks::<ReportSettled>()
        .asks::<PendingReports>()
        .start()
        .unwrap();
    let port: Port<ReportStatus> = system.port();
    let settle: Port<ReportSettled> = system.port();
    let pending: Port<PendingReports> = system.port();
    let mut stay = Vec::new();
    for (code, stays) in [(404, false), (408, true), (422, false), (429, true), (500, true), (501, false), (503, true)]
    {
        let name = code.to_string();
        assert_eq!(port.ask(report(&name), SOON).await.unwrap(), Settled::applied());
        let reports = pending.ask(PendingReports { limit: 100 }, SOON).await.unwrap().reports;
        let update = reports.into_iter().find_map(|report| match report.report {
            Some(report_status::Report::Update(update)) if update.uid == name => Some(update),
            _ => None,
        });
        let StatusUpdate { r#type, key, uid, generation, .. } = update.expect("it was taken");
        let settled = Some(Settled::rejected(code, "as scripted"));
        settle.tell(ReportSettled { r#type, key, uid, generation, settled }).await.unwrap();
        stay.extend(stays.then_some(name));
    }
    let left = pending.ask(PendingReports { limit: 100 }, SOON).await.unwrap().reports.into_iter();
    let mut left: Vec<String> = left
        .map(|report| match report.report {
            Some(report_status::Report::Update(update)) => update.uid,
            other => panic!("{other:?}"),
        })
        .collect();
    left.sort();
    assert_eq!(left, stay);
    system.stop(SOON).await;
}

/// P-COMMIT-ORDER
#[actix_rt::test]
async fn a_report_that_comes_while_an_older_one_is_settled_is_not_lost() {
    const PODS: usize = 64;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), Options::default()).unwrap().store;
    let tables = Tables::open(store).await.unwrap();
    let system = System::builder("edge")
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .asks::<ReportStatus>()
        .asks::<ReportSettled>()
        .asks::<PendingReports>()
        .start()
        .unwrap();
    let port: Port<ReportStatus> = system.port();
    let settle: Port<ReportSettled> = system.port();
    let pending: Port<PendingReports> = system.port();
    let updates = async || {
        let reports = pending.ask(PendingReports { limit: 1000 }, SOON).await.unwrap().reports;
        let updates = reports.into_iter().filter_map(|report| match report.report {
            Some(report_status::Report::Update(update)) => Some((update.uid.clone(), update)),
            _ => None,
        });
        updates.collect::<std::collections::BTreeMap<String, StatusUpdate>>()
    };
    // Each pod by itself, so that commits end while others begin.
    let one = async |n: usize| {
        for _ in 0..20 {
            let name = format!("pod-{n}");
            assert_eq!(port.ask(report(&name), SOON).await.unwrap(), Settled::applied());
            let StatusUpdate { r#type, key, uid, generation, .. } =
                updates().await.remove(&name).expect("it was taken");
            let settled = Some(Settled::applied());
            settle.tell(ReportSettled { r#type, key, uid, generation, settled }).await.unwrap();
            assert_eq!(port.ask(report(&name), SOON).await.unwrap(), Settled::applied());
            let newest = updates().await.remove(&name).unwrap_or_else(|| panic!("{name}: its newest report is lost"));
            assert!(newest.generation > generation, "{name}: {} is no newer than {generation}", newest.generation);
        }
    };
    futures_util::future::join_all((0..PODS).map(one)).await;
    assert_eq!(updates().await.len(), PODS);
    system.stop(SOON).await;
}
