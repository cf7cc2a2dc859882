//! kube-rs' own clients against the server, as `EdgeController` and anybody's operator use them: `watcher` with both ways
//! to begin, `reflector`, `Controller`, and watches over a restart of the server on the same disk and port.
//!
//! Each ends with the same check: what the client holds is what a list gives.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::{Controller, WatchStreamExt as _, reflector, watcher};
use kube::{Client, Resource as _, ResourceExt as _};
use kubeedge_actors::apiserver::{Config, Handle, Listen, Server};
use kubeedge_actors::store::{Options, Store};
use tokio::sync::watch;

/// Longest time for what a client brings about, backoff over a restart included.
const PATIENCE: Duration = Duration::from_secs(30);
/// The last object of a sequence of changes: who has it has everything before it.
const LAST: &str = "zz-last";

fn client(server: &Handle) -> Client {
    let mut config = kube::Config::new(format!("http://{}", server.address()).parse().unwrap());
    config.auth_info.token = Some("admin".to_owned().into());
    Client::try_from(config).unwrap()
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

fn map(name: &str, value: u64) -> ConfigMap {
    let data = BTreeMap::from([("a".to_owned(), value.to_string())]);
    let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
    map.metadata.name = Some(name.to_owned());
    map
}

/// Names and versions.
type Objects = BTreeMap<String, String>;

async fn listed(api: &Api<ConfigMap>) -> Objects {
    let list = api.list(&ListParams::default()).await.unwrap();
    list.items.iter().map(entry).collect()
}

fn entry(map: &ConfigMap) -> (String, String) {
    (map.name_any(), map.resource_version().unwrap())
}

/// What somebody who follows a watcher holds.
#[derive(Clone, Debug, Default)]
struct Mirror {
    objects: Objects,
    incoming: Objects,
    /// Times that the watcher began anew.
    lists: usize,
}

impl Mirror {
    fn take(&mut self, event: watcher::Event<ConfigMap>) {
        match event {
            watcher::Event::Init => self.incoming.clear(),
            watcher::Event::InitApply(map) => self.incoming.extend([entry(&map)]),
            watcher::Event::InitDone => {
                self.objects = std::mem::take(&mut self.incoming);
                self.lists += 1;
            }
            watcher::Event::Apply(map) => self.objects.extend([entry(&map)]),
            watcher::Event::Delete(map) => {
                self.objects.remove(&map.name_any());
            }
        }
    }
}

type Events = std::pin::Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<ConfigMap>>> + Send>>;

fn events(api: &Api<ConfigMap>, config: watcher::Config) -> Events {
    // It tells of every failure and goes on after a pause; only a failure before the first list is the test's.
    watcher(api.clone(), config).default_backoff().boxed()
}

/// Follows a watcher in a task; ends with the test.
fn follow(mut events: Events, mut mirror: Mirror) -> watch::Receiver<Mirror> {
    let (seen, receiver) = watch::channel(mirror.clone());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            // A restart is told as an error: what counts is what follows it.
            let Ok(event) = event else { continue };
            mirror.take(event);
            if seen.send(mirror.clone()).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn wait(mirror: &mut watch::Receiver<Mirror>, what: &str, wanted: impl FnMut(&Mirror) -> bool) -> Mirror {
    let found = tokio::time::timeout(PATIENCE, mirror.wait_for(wanted)).await;
    found.unwrap_or_else(|_| panic!("not seen: {what}")).unwrap().clone()
}

/// Creates, changes and deletes in a fixed disorder, then writes [`LAST`]; gives how many changes were made.
async fn churn(api: &Api<ConfigMap>, seed: u64, steps: u64) -> u64 {
    let mut state = seed;
    let mut made = 0;
    for step in 0..steps {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = format!("m{}", (state >> 33) % 30);
        let outcome = match (state >> 40) % 4 {
            0 => api.delete(&name, &DeleteParams::default()).await.map(|_| ()),
            1 => api.create(&PostParams::default(), &map(&name, step)).await.map(|_| ()),
            _ => {
                let patch = serde_json::json!({"data": {"a": step.to_string()}});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
            }
        };
        match outcome {
            Ok(()) => made += 1,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
    api.create(&PostParams::default(), &map(LAST, steps)).await.unwrap();
    made
}

fn strategies() -> [(&'static str, watcher::Config); 2] {
    [
        ("pages of 7, then a watch", watcher::Config::default().page_size(7)),
        ("sendInitialEvents", watcher::Config::default().streaming_lists()),
    ]
}

#[tokio::test]
async fn a_watcher_that_lists_or_streams_ends_with_what_a_list_gives() {
    for (how, config) in strategies() {
        let server = Server::start(Config::in_memory()).await.unwrap();
        let api = maps(&client(&server));
        for number in 0..40 {
            api.create(&PostParams::default(), &map(&format!("m{number}"), 0)).await.unwrap();
        }
        let mut mirror = follow(events(&api, config), Mirror::default());
        let made = churn(&api, 7, 300).await;
        let seen = wait(&mut mirror, how, |mirror| mirror.lists > 0 && mirror.objects.contains_key(LAST)).await;
        assert_eq!(seen.objects, listed(&api).await, "{how}");
        assert_eq!(seen.lists, 1, "{how}: one beginning is enough");
        println!("{how}: {made} changes, {} objects, all seen", seen.objects.len());
        server.stop().await;
    }
}

#[tokio::test]
async fn a_reflectors_store_becomes_what_a_list_gives() {
    let server = Server::start(Config::in_memory()).await.unwrap();
    let api = maps(&client(&server));
    let (store, writer) = reflector::store::<ConfigMap>();
    let reflected = reflector(writer, events(&api, watcher::Config::default().streaming_lists()));
    let (touched, mut last) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut reflected = pin!(reflected.applied_objects());
        while let Some(Ok(map)) = reflected.next().await {
            touched.send_replace(map.name_any());
        }
    });
    tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.unwrap().unwrap();
    churn(&api, 11, 200).await;
    tokio::time::timeout(PATIENCE, last.wait_for(|name| name == LAST)).await.unwrap().unwrap();
    let held: Objects = store.state().iter().map(|map| entry(map)).collect();
    assert_eq!(held, listed(&api).await);
    server.stop().await;
}

/// Gives each ConfigMap with the label a Secret of its name, which it owns.
async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let secrets: Api<Secret> = Api::namespaced((*client).clone(), "default");
    if map.metadata.deletion_timestamp.is_none() && secrets.get_opt(&map.name_any()).await?.is_none() {
        let mut secret = Secret::default();
        secret.metadata.name = Some(map.name_any());
        secret.metadata.owner_references = map.controller_owner_ref(&()).map(|owner| vec![owner]);
        match secrets.create(&PostParams::default(), &secret).await {
            // Someone was faster: the controller's own earlier run.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    Ok(Action::await_change())
}

#[tokio::test]
async fn a_controller_keeps_a_secret_for_each_map_and_the_garbage_collector_takes_it_back() {
    const MAPS: usize = 12;
    let server = Server::start(Config::in_memory()).await.unwrap();
    let client = client(&server);
    let (maps, secrets) = (maps(&client), Api::<Secret>::namespaced(client.clone(), "default"));
    let selected = watcher::Config::default().labels("kept=yes");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let controller = Controller::new(maps.clone(), selected)
        .owns(secrets.clone(), watcher::Config::default())
        .graceful_shutdown_on(async move { drop(stopped.await) })
        .run(reconcile, |_, _: &kube::Error, _| Action::requeue(Duration::from_millis(100)), Arc::new(client.clone()));
    let running = tokio::spawn(controller.for_each(|_| std::future::ready(())));

    let mut seen = pin!(watcher(secrets.clone(), watcher::Config::default()).default_backoff());
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    let mut until = async |what: &str, wanted: &dyn Fn(&BTreeMap<String, String>) -> bool| {
        let follow = async {
            while !wanted(&held) {
                match seen.try_next().await.unwrap().unwrap() {
                    watcher::Event::Apply(secret) | watcher::Event::InitApply(secret) => {
                        held.insert(secret.name_any(), secret.uid().unwrap());
                    }
                    watcher::Event::Delete(secret) => drop(held.remove(&secret.name_any())),
                    watcher::Event::Init | watcher::Event::InitDone => {}
                }
            }
            held.clone()
        };
        tokio::time::timeout(PATIENCE, follow).await.unwrap_or_else(|_| panic!("not seen: {what}"))
    };
    for number in 0..MAPS {
        let mut map = map(&format!("m{number}"), 0);
        map.metadata.labels = Some(BTreeMap::from([("kept".to_owned(), "yes".to_owned())]));
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    maps.create(&PostParams::default(), &map("other", 0)).await.unwrap();
    let all = until("a secret for each map", &|held| held.len() == MAPS).await;
    assert!(!all.contains_key("other"), "a map without the label has no secret: {all:?}");

    let before = all["m3"].clone();
    secrets.delete("m3", &DeleteParams::default()).await.unwrap();
    until("a deleted secret again", &|held| held.get("m3").is_some_and(|uid| *uid != before)).await;

    maps.delete("m5", &DeleteParams::default()).await.unwrap();
    let rest = until("the secret of a deleted map gone", &|held| !held.contains_key("m5")).await;
    assert_eq!(rest.len(), MAPS - 1);
    drop(stop);
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    server.stop().await;
}

/// A server on a disk, on this port or a free one.
async fn on_disk(folder: &Path, port: u16) -> (Handle, Store) {
    let store = Store::open(folder, Options::default()).unwrap().store;
    let listen = Listen::InsecureLoopback { port };
    let server = Server::start(Config::new(store.clone(), listen, "admin".into(), String::new())).await.unwrap();
    (server, store)
}

async fn restarted(folder: &Path, server: Handle, store: Store) -> (Handle, Store) {
    let port = server.address().port();
    server.stop().await;
    store.close().await.unwrap();
    drop(store);
    on_disk(folder, port).await
}

#[tokio::test]
async fn an_open_watch_goes_on_over_restarts_and_begins_only_once() {
    for (how, config) in strategies() {
        let folder = tempfile::tempdir().unwrap();
        let (mut server, mut store) = on_disk(folder.path(), 0).await;
        let api = maps(&client(&server));
        api.create(&PostParams::default(), &map("before", 0)).await.unwrap();
        let mut mirror = follow(events(&api, config), Mirror::default());
        wait(&mut mirror, how, |mirror| mirror.objects.contains_key("before")).await;
        for round in 0..3_u64 {
            let name = format!("up-{round}");
            api.create(&PostParams::default(), &map(&name, round)).await.unwrap();
            wait(&mut mirror, &name, |mirror| mirror.objects.contains_key(&name)).await;
            (server, store) = restarted(folder.path(), server, store).await;
            // A connection that was open before the restart fails once; the next is a new one.
            let api = maps(&client(&server));
            api.delete(&name, &DeleteParams::default()).await.unwrap();
            let back = format!("back-{round}");
            api.create(&PostParams::default(), &map(&back, round)).await.unwrap();
            let seen = wait(&mut mirror, &back, |mirror| mirror.objects.contains_key(&back)).await;
            assert_eq!(seen.objects, listed(&api).await, "{how}, restart {round}");
            assert_eq!(seen.lists, 1, "{how}: the same resourceVersion goes on");
        }
        server.stop().await;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_missed_a_restart_is_told_410_and_lists_again_and_misses_nothing() {
    for (how, config) in strategies() {
        let folder = tempfile::tempdir().unwrap();
        let (server, store) = on_disk(folder.path(), 0).await;
        let api = maps(&client(&server));
        for number in 0..10 {
            api.create(&PostParams::default(), &map(&format!("m{number}"), 0)).await.unwrap();
        }
        let mut events = events(&api, config);
        let mut mirror = Mirror::default();
        while mirror.lists == 0 {
            mirror.take(tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap());
        }
        // Nobody reads the watch now. What happens is in the log of a server that then is gone.
        churn(&api, 13, 100).await;
        let (server, store) = restarted(folder.path(), server, store).await;
        let api = maps(&client(&server));
        api.create(&PostParams::default(), &map("zzz-after", 0)).await.unwrap();
        let mut mirror = follow(events, mirror);
        let seen = wait(&mut mirror, how, |mirror| mirror.objects.contains_key("zzz-after")).await;
        assert_eq!(seen.objects, listed(&api).await, "{how}");
        if how.starts_with("pages") {
            // Its watch begins after the restart, at a version that the new server's log does not reach back to.
            assert_eq!(seen.lists, 2, "{how}");
        }
        println!("{how}: {} lists", seen.lists);
        server.stop().await;
        store.close().await.unwrap();
    }
}
