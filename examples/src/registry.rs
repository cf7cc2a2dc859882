//! A pull-only container registry on loopback: the OCI distribution API over images held in memory.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, http::header, web};
use anyhow::{Context, Result};
use serde_json::json;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};

use crate::image::{Blob, Image, check_repository};

/// Images by name, filled before the registry is started.
#[derive(Default)]
pub struct Catalogue {
    blobs: HashMap<String, Blob>,
    /// repository -> tag or digest -> manifest digest
    manifests: HashMap<String, HashMap<String, String>>,
    /// repository -> the `Authorization` that opens it
    private: HashMap<String, String>,
    gate: Option<Arc<Gate>>,
    stock: Arc<Stock>,
}

impl Catalogue {
    /// Adds `image` as `repository:tag`.
    pub fn with(mut self, repository: &str, tag: &str, image: &Image) -> Result<Self> {
        check_repository(repository)?;
        let references = self.manifests.entry(repository.to_owned()).or_default();
        for reference in [tag, &image.manifest.digest] {
            references.insert(reference.to_owned(), image.manifest.digest.clone());
        }
        for blob in image.blobs.iter().chain([&image.manifest]) {
            self.blobs.insert(blob.digest.clone(), blob.clone());
        }
        Ok(self)
    }

    /// Lets nobody pull from `repository` who does not send this `Authorization`, such as `Basic ...`.
    pub fn private(mut self, repository: &str, authorization: &str) -> Self {
        self.private.insert(repository.to_owned(), authorization.to_owned());
        self
    }

    /// Pulls from the gate's repositories wait there.
    pub fn gated(self, gate: &Arc<Gate>) -> Self {
        Self { gate: Some(Arc::clone(gate)), ..self }
    }

    /// What is not in stock yet is not found, and requests are counted there.
    pub fn stocked(self, stock: &Arc<Stock>) -> Self {
        Self { stock: Arc::clone(stock), ..self }
    }

    fn is_open(&self, repository: &str, authorization: Option<&header::HeaderValue>) -> bool {
        self.private.get(repository).is_none_or(|wanted| authorization.is_some_and(|sent| sent == wanted.as_str()))
    }

    fn manifest(&self, repository: &str, reference: &str) -> Option<&Blob> {
        self.blobs.get(self.manifests.get(repository)?.get(reference)?)
    }
}

/// Where the first request of each pull waits until it is let through: pulls that are under way can be counted.
pub struct Gate {
    prefix: String,
    seen: Mutex<HashSet<String>>,
    waiting: watch::Sender<usize>,
    most: AtomicUsize,
    through: Semaphore,
}

impl Gate {
    /// A closed gate before the repositories whose names begin so.
    pub fn before(prefix: &str) -> Arc<Self> {
        Arc::new(Self {
            prefix: prefix.to_owned(),
            seen: Mutex::default(),
            waiting: watch::channel(0).0,
            most: AtomicUsize::new(0),
            through: Semaphore::new(0),
        })
    }

    /// How many pulls wait, now and from now on.
    pub fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// How many waited at one time.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Acquire)
    }

    /// Lets one pull through, the next one to come if none waits.
    pub fn let_one_through(&self) {
        self.through.add_permits(1);
    }

    async fn pass(&self, repository: &str) {
        let first = || self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(repository.to_owned());
        if !repository.starts_with(&self.prefix) || !first() {
            return;
        }
        self.waiting.send_modify(|waiting| {
            *waiting += 1;
            self.most.fetch_max(*waiting, Ordering::AcqRel);
        });
        if let Ok(permit) = self.through.acquire().await {
            permit.forget();
        }
        self.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

/// What a registry that runs has by now, and what it was asked for.
#[derive(Default)]
pub struct Stock {
    missing: Mutex<HashSet<String>>,
    /// repository -> requests for one of its manifests
    asked: Mutex<HashMap<String, usize>>,
}

impl Stock {
    /// Everything but these repositories.
    pub fn without(repositories: &[&str]) -> Arc<Self> {
        let missing = repositories.iter().map(|&name| name.to_owned()).collect();
        Arc::new(Self { missing: Mutex::new(missing), asked: Mutex::default() })
    }

    /// A repository is there from now on.
    pub fn arrives(&self, repository: &str) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(repository);
    }

    /// How often a manifest of a repository was asked for.
    pub fn asked(&self, repository: &str) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(repository).copied().unwrap_or(0)
    }

    /// Takes note of a request; whether the repository is there.
    fn has(&self, repository: &str, what: &str) -> bool {
        if what == "manifests" {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            *asked.entry(repository.to_owned()).or_default() += 1;
        }
        !self.missing.lock().unwrap_or_else(PoisonError::into_inner).contains(repository)
    }
}

/// A running registry.
pub struct Registry {
    address: SocketAddr,
    handle: ServerHandle,
    server: JoinHandle<std::io::Result<()>>,
}

impl Registry {
    /// Serves `catalogue` on 127.0.0.1, on `port` (0: a free one). Needs a tokio runtime.
    pub fn start(catalogue: Catalogue, port: u16) -> Result<Self> {
        let catalogue = web::Data::from(Arc::new(catalogue));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(catalogue.clone())
                // Nothing is uploaded.
                .app_data(web::PayloadConfig::new(0))
                .route("/v2/", web::get().to(version))
                .route("/v2/", web::head().to(version))
                .route("/v2/{path:.*}", web::get().to(pull))
                .route("/v2/{path:.*}", web::head().to(pull))
                .default_service(web::to(unsupported))
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("registry: listen on 127.0.0.1:{port}"))?;
        let address = *server.addrs().first().context("registry: no address bound")?;
        let server = server.run();
        Ok(Self { address, handle: server.handle(), server: tokio::spawn(server) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The full name of an image here, as a pod spells it: `127.0.0.1:5000/quickstart/busybox:1`.
    pub fn image(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Stops listening and waits until the server is gone.
    pub async fn stop(self) -> Result<()> {
        self.handle.stop(true).await;
        self.server.await.context("registry: server task")?.context("registry: serve")
    }
}

async fn version() -> HttpResponse {
    HttpResponse::Ok().insert_header(("docker-distribution-api-version", "registry/2.0")).json(json!({}))
}

async fn pull(path: web::Path<String>, catalogue: web::Data<Catalogue>, request: HttpRequest) -> HttpResponse {
    let mut parts = path.rsplitn(3, '/').skip(1);
    let (what, repository) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if !catalogue.stock.has(repository, what) {
        return HttpResponse::NotFound().json(errors("NAME_UNKNOWN", &path));
    }
    if !catalogue.is_open(repository, request.headers().get(header::AUTHORIZATION)) {
        return HttpResponse::Unauthorized()
            .insert_header((header::WWW_AUTHENTICATE, "Basic realm=\"pulls\""))
            .json(errors("UNAUTHORIZED", "this repository is private"));
    }
    if let Some(gate) = &catalogue.gate {
        gate.pass(repository).await;
    }
    match find(&catalogue, &path) {
        // To HEAD the server sends the same headers, the length among them, and no body.
        Ok(blob) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, blob.media_type))
            .insert_header(("docker-content-digest", blob.digest.as_str()))
            .body(blob.bytes.clone()),
        Err(code) => HttpResponse::NotFound().json(errors(code, &path)),
    }
}

async fn unsupported() -> HttpResponse {
    HttpResponse::MethodNotAllowed().json(errors("UNSUPPORTED", "this registry only serves pulls"))
}

fn errors(code: &str, message: &str) -> serde_json::Value {
    json!({ "errors": [{ "code": code, "message": message }] })
}

/// `<repository>/manifests/<tag or digest>` or `<repository>/blobs/<digest>`; a repository may have slashes.
fn find<'c>(catalogue: &'c Catalogue, path: &str) -> Result<&'c Blob, &'static str> {
    let (rest, reference) = path.rsplit_once('/').ok_or("NAME_UNKNOWN")?;
    let (repository, what) = rest.rsplit_once('/').ok_or("NAME_UNKNOWN")?;
    match what {
        "manifests" => catalogue.manifest(repository, reference).ok_or("MANIFEST_UNKNOWN"),
        "blobs" if catalogue.manifests.contains_key(repository) => catalogue.blobs.get(reference).ok_or("BLOB_UNKNOWN"),
        _ => Err("NAME_UNKNOWN"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http, image::busybox_layer};

    fn catalogue() -> (Catalogue, Image) {
        let image = Image::new(&busybox_layer(b"program").unwrap(), &["/bin/sh"], &[]).unwrap();
        (Catalogue::default().with("a/b", "1", &image).unwrap(), image)
    }

    #[test]
    fn finds_by_tag_by_digest_and_nothing_else() {
        let (catalogue, image) = catalogue();
        let digest = &image.manifest.digest;
        let found = |path: &str| find(&catalogue, path).map(|blob| blob.digest.clone());
        assert_eq!(found("a/b/manifests/1").as_ref(), Ok(digest));
        assert_eq!(found(&format!("a/b/manifests/{digest}")).as_ref(), Ok(digest));
        assert_eq!(found(&format!("a/b/blobs/{}", image.blobs[1].digest)).as_ref(), Ok(&image.blobs[1].digest));
        assert_eq!(found("a/b/manifests/2"), Err("MANIFEST_UNKNOWN"));
        assert_eq!(found(&format!("other/blobs/{}", image.blobs[1].digest)), Err("NAME_UNKNOWN"));
        assert_eq!(found("a"), Err("NAME_UNKNOWN"));
    }

    #[test]
    fn a_private_repository_wants_its_authorization_and_others_none() {
        let catalogue = catalogue().0.private("a/b", "Basic dTpw");
        let value = header::HeaderValue::from_static;
        assert!(catalogue.is_open("a/b", Some(&value("Basic dTpw"))));
        assert!(!catalogue.is_open("a/b", Some(&value("Basic other"))));
        assert!(!catalogue.is_open("a/b", None));
        assert!(catalogue.is_open("a/c", None));
    }

    #[tokio::test]
    async fn a_gate_counts_who_waits_and_lets_one_through_at_a_time() {
        let gate = Gate::before("slow/");
        gate.pass("fast/a").await;
        let pulls = ["slow/a", "slow/b"].map(|repository| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.pass(repository).await })
        });
        let mut waiting = gate.waiting();
        waiting.wait_for(|waiting| *waiting == 2).await.unwrap();
        gate.let_one_through();
        waiting.wait_for(|waiting| *waiting == 1).await.unwrap();
        gate.let_one_through();
        for pull in pulls {
            pull.await.unwrap();
        }
        gate.pass("slow/a").await;
        assert_eq!((gate.most(), *waiting.borrow()), (2, 0));
    }

    #[tokio::test]
    async fn what_arrives_is_found_from_then_on_and_requests_are_counted() {
        let stock = Stock::without(&["a/b"]);
        let (catalogue, image) = catalogue();
        let registry = Registry::start(catalogue.with("a/c", "1", &image).unwrap().stocked(&stock), 0).unwrap();
        let address = registry.address();
        let status = async |path: &str| http::request("GET", address, path).await.unwrap().status;
        assert_eq!((status("/v2/a/b/manifests/1").await, status("/v2/a/c/manifests/1").await), (404, 200));
        stock.arrives("a/b");
        assert_eq!(status("/v2/a/b/manifests/1").await, 200);
        assert_eq!(status(&format!("/v2/a/b/blobs/{}", image.blobs[1].digest)).await, 200);
        assert_eq!((stock.asked("a/b"), stock.asked("a/c"), stock.asked("a/d")), (2, 1, 0));
        registry.stop().await.unwrap();
    }

    #[tokio::test]
    async fn serves_manifests_and_blobs_over_http() {
        let (catalogue, image) = catalogue();
        let registry = Registry::start(catalogue, 0).unwrap();
        let address = registry.address();
        let get = |path: String| async move { http::request("GET", address, &path).await };
        let manifest = get("/v2/a/b/manifests/1".to_owned()).await.unwrap();
        assert_eq!((manifest.status, &manifest.body), (200, &image.manifest.bytes.to_vec()));
        let layer = get(format!("/v2/a/b/blobs/{}", image.blobs[1].digest)).await.unwrap();
        assert_eq!(crate::image::digest(&layer.body), image.blobs[1].digest);
        let head = http::request("HEAD", registry.address(), "/v2/a/b/manifests/1").await.unwrap();
        let length = format!("content-length: {}", image.manifest.bytes.len());
        assert!(head.head.to_ascii_lowercase().contains(&length), "clients take the size from HEAD: {}", head.head);
        assert!(head.body.is_empty());
        let missing = get("/v2/a/b/manifests/9".to_owned()).await.unwrap();
        assert_eq!(missing.status, 404);
        assert!(String::from_utf8(missing.body).unwrap().contains("MANIFEST_UNKNOWN"));
        registry.stop().await.unwrap();
    }
}
