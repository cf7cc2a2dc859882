//! List, then watch from the list's resourceVersion; list again when the watch is lost.
//!
//! `kube::runtime::watcher` does the same but keeps the list's resourceVersion to itself, and without it nobody may
//! conclude that an object is gone.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::{
    Client,
    core::{
        Request, WatchEvent,
        params::{ListParams, WatchParams},
    },
};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Objects asked for in one page of a list.
const PAGE: u32 = 500;
/// The server ends a watch after this long, in seconds; it is then taken up where it was.
const WATCH_SECONDS: u32 = 290;
/// A watch that says nothing for this much longer than it may live is dead.
const WATCH_SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// A watch that ends sooner than this and has told nothing is a failed one.
const WATCH_SHORT: Duration = Duration::from_secs(1);
/// Back-off between failed attempts: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A kind that is not served is looked for again after this.
const ABSENT: Duration = Duration::from_secs(3);

/// What is watched.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Path of the collection, e.g. `/api/v1/pods`.
    pub path: String,
    /// Field selector, e.g. `spec.nodeName!=`; may be empty.
    pub fields: String,
    /// How many objects may be in hand at a time. `None`: a list is told as one, with [`Change::Replaced`]; otherwise in
    /// pages of so many.
    pub page: Option<u32>,
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum Change {
    /// The complete list at a resourceVersion.
    Replaced(Vec<Value>, u64),
    /// A list in pages begins.
    Listing,
    /// A page of it, and the resourceVersion that all of them are of.
    Page(Vec<Value>, u64),
    /// The last page has been told.
    Listed(u64),
    /// The list is refused: its rights are lacking. It is tried again all the same.
    Forbidden,
    /// Added or modified.
    Applied(Value),
    /// Deleted.
    Deleted(Value),
    /// Everything up to this resourceVersion has been told.
    Bookmark(u64),
}

/// Why a list or watch ended. Always followed by a new attempt.
#[allow(missing_docs, reason = "each says itself")]
#[derive(Debug, Error)]
pub enum Interrupted {
    #[error("API server: {0}")]
    Api(#[from] kube::Error),
    #[error("request: {0}")]
    Request(#[from] kube::core::request::Error),
    #[error("watch: {code} {message}")]
    Watch { code: u16, message: String },
    #[error("watch was silent for {0:?}")]
    Silent(Duration),
    #[error("the server ended the watch after {0:?} without a word")]
    Short(Duration),
    // Without the body, which may hold secrets: `Client::request` would write it into the log.
    #[error("the list is not what it should be: {0}")]
    List(#[from] serde_json::Error),
    #[error("resourceVersion {0:?} is not a number")]
    Version(String),
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

/// Runs until `tell` says that nobody listens any more (returns false).
pub async fn run<F>(client: Client, scope: Scope, mut tell: impl FnMut(Change) -> F)
where
    F: Future<Output = bool>,
{
    let mut pause = RETRY.0;
    let mut absent = false;
    loop {
        let mut listening = true;
        let ended = list_and_watch(&client, &scope, &mut tell, &mut listening, &mut pause).await;
        if !listening {
            return;
        }
        if let Err(Interrupted::Api(kube::Error::Api(status))) = &ended
            && status.code == 404
        {
            // The kind is not served, or not yet: asking costs little, and is told once.
            if !std::mem::replace(&mut absent, true) {
                tracing::info!(path = %scope.path, "the API server does not serve this kind; it is looked for again and again");
            }
            tokio::time::sleep(ABSENT.mul_f64(rand::random_range(0.5..1.0))).await;
            continue;
        }
        absent = false;
        if let Err(error) = ended {
            if matches!(&error, Interrupted::Api(kube::Error::Api(status)) if status.code == 403)
                && !tell(Change::Forbidden).await
            {
                return;
            }
            tracing::warn!(path = %scope.path, fields = %scope.fields, retry_in = ?pause, "watch interrupted: {error}");
        }
        let jitter = rand::random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

async fn list_and_watch<F>(
    client: &Client,
    scope: &Scope,
    tell: &mut impl FnMut(Change) -> F,
    listening: &mut bool,
    pause: &mut Duration,
) -> Result<(), Interrupted>
where
    F: Future<Output = bool>,
{
    let mut version = match scope.page {
        None => {
            let (items, version) = list(client, scope).await?;
            *listening = tell(Change::Replaced(items, version)).await;
            version
        }
        Some(size) => {
            let mut pages = Pages::new(scope, size);
            *listening = tell(Change::Listing).await;
            let mut version = 0;
            while *listening && let Some((items, as_of)) = pages.next(client).await? {
                version = as_of;
                *listening = tell(Change::Page(items, as_of)).await;
            }
            *listening = *listening && tell(Change::Listed(version)).await;
            version
        }
    };
    while *listening {
        let fields = Some(scope.fields.clone()).filter(|fields| !fields.is_empty());
        let params = WatchParams { field_selector: fields, ..WatchParams::default() }.timeout(WATCH_SECONDS);
        let request = Request::new(&scope.path).watch(&params, &version.to_string())?;
        let stream = client.request_events::<Value>(request).await?;
        let mut stream = std::pin::pin!(stream);
        let begun = Instant::now();
        let mut told = false;
        loop {
            let next = tokio::time::timeout(WATCH_SILENCE, stream.next()).await;
            let event = match next {
                Err(_) => return Err(Interrupted::Silent(WATCH_SILENCE)),
                Ok(None) if !told && begun.elapsed() < WATCH_SHORT => return Err(Interrupted::Short(begun.elapsed())),
                // The server's own time limit: go on from where it was.
                Ok(None) => break,
                Ok(Some(event)) => event?,
            };
            let change = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version = version.max(version_of(&object)?);
                    Change::Applied(object)
                }
                WatchEvent::Deleted(object) => {
                    version = version.max(version_of(&object)?);
                    Change::Deleted(object)
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = version.max(parse(&bookmark.metadata.resource_version)?);
                    Change::Bookmark(version)
                }
                WatchEvent::Error(status) => {
                    return Err(Interrupted::Watch { code: status.code, message: status.message.clone() });
                }
            };
            // Only a watch that works ends the back-off: a list that succeeds is no cheap thing to do again and again.
            told = true;
            *pause = RETRY.0;
            *listening = tell(change).await;
            if !*listening {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// All objects of a scope, and the resourceVersion of the list.
pub async fn list(client: &Client, scope: &Scope) -> Result<(Vec<Value>, u64), Interrupted> {
    let mut pages = Pages::new(scope, PAGE);
    let (mut all, mut version) = (Vec::new(), 0);
    while let Some((mut items, as_of)) = pages.next(client).await? {
        all.append(&mut items);
        version = as_of;
    }
    Ok((all, version))
}

/// A list on its way.
struct Pages {
    path: String,
    params: ListParams,
    over: bool,
}

impl Pages {
    fn new(scope: &Scope, size: u32) -> Self {
        let params = ListParams::default().limit(size);
        let params = if scope.fields.is_empty() { params } else { params.fields(&scope.fields) };
        Self { path: scope.path.clone(), params, over: false }
    }

    async fn next(&mut self, client: &Client) -> Result<Option<(Vec<Value>, u64)>, Interrupted> {
        if self.over {
            return Ok(None);
        }
        let request = Request::new(&self.path).list(&self.params)?;
        let page: List = serde_json::from_str(&client.request_text(request).await?)?;
        self.over = page.metadata.next.is_empty();
        self.params.continue_token = Some(page.metadata.next);
        Ok(Some((page.items, parse(&page.metadata.resource_version)?)))
    }
}

fn version_of(object: &Value) -> Result<u64, Interrupted> {
    parse(object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default())
}

fn parse(version: &str) -> Result<u64, Interrupted> {
    version.parse().map_err(|_| Interrupted::Version(version.to_owned()))
}
