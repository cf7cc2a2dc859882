//! The cloud of hollow nodes: an API server, and the cloudcore that is measured, each a process of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    lab::free_ports,
    process::{Launch, Process},
};

/// From a start to an API that answers, or a link that is served.
const UP: Duration = Duration::from_secs(60);
/// For an orderly end.
const STOP: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(20);

/// Where they run.
#[derive(Clone, Debug)]
pub struct Place {
    /// Keys, stores, logs.
    pub folder: PathBuf,
    /// Where cloudcore is.
    pub programs: PathBuf,
    /// The addresses by which nodes reach the cloud.
    pub addresses: Vec<Ipv4Addr>,
    /// Nodes that may be connected.
    pub node_limit: usize,
}

/// Both of them.
pub struct Clouds {
    place: Place,
    api: Process,
    cloud: Option<Process>,
    client: Client,
    link: u16,
}

impl Clouds {
    /// Starts both with empty stores, and waits until they serve.
    pub async fn start(place: Place) -> Result<Self> {
        let [api_port, link, enrolment] = free_ports()?;
        let api_folder = place.folder.join("api");
        fs::create_dir(&api_folder).with_context(|| format!("create {}", api_folder.display()))?;
        let config = api_folder.join("cloudcore.yaml");
        // The embedded API server and nothing else.
        let text = format!(
            "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\nmodules:\n  cloudHub: {{enable: false, \
             tlsCAFile: '', tlsCAKeyFile: ''}}\n  edgeController: {{enable: false}}\n  \
             deviceController: {{enable: false}}\n  cloudStream: {{enable: false}}\n\
             standalone: {{enable: true, address: 127.0.0.1, port: {api_port}}}\n"
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let api = launch(&place, &config, &api_folder, "api-server").spawn()?;
        let kubeconfig = api_folder.join("kubeconfig");
        let client = answering(&kubeconfig).await.with_context(|| api.log_tail())?;

        let folder = place.folder.join("cloud");
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let addresses: Vec<String> = place.addresses.iter().map(ToString::to_string).collect();
        let (listen, limit) = (IpAddr::from(Ipv4Addr::UNSPECIFIED), place.node_limit);
        let text = format!(
            "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\nkubeAPIConfig:\n  kubeConfig: {}\n\
             modules:\n  cloudHub:\n    nodeLimit: {limit}\n    advertiseAddress: [{}]\n    websocket: {{address: {listen}, \
             port: {link}}}\n    https: {{address: 127.0.0.1, port: {enrolment}}}\n    tlsCAFile: ''\n    \
             tlsCAKeyFile: ''\n  cloudStream: {{address: 127.0.0.1, streamPort: 0}}\n",
            kubeconfig.display(),
            addresses.join(", "),
        );
        fs::write(folder.join("cloudcore.yaml"), text).context("write cloudcore.yaml")?;
        let mut clouds = Self { place, api, cloud: None, client, link };
        clouds.resume().await?;
        Ok(clouds)
    }

    /// Starts the measured cloudcore with what it had, and waits until it serves the link.
    pub async fn resume(&mut self) -> Result<()> {
        ensure!(self.cloud.is_none(), "cloudcore runs already");
        let folder = self.folder();
        let cloud = launch(&self.place, &folder.join("cloudcore.yaml"), &folder, "cloudcore").spawn()?;
        let cloud = self.cloud.insert(cloud);
        let address = (Ipv4Addr::LOCALHOST, self.link);
        let deadline = Instant::now() + UP;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            ensure!(Instant::now() < deadline, "the link is not served within {UP:?}: {}", cloud.log_tail());
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Ends the measured cloudcore with SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        self.cloud.take().context("cloudcore does not run")?.kill().await
    }

    /// A client of the cluster.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The API server's process.
    pub fn api(&self) -> &Process {
        &self.api
    }

    /// The process of the measured cloudcore.
    pub fn cloud(&self) -> Result<&Process> {
        self.cloud.as_ref().context("cloudcore does not run")
    }

    /// The folder of the authority that signs nodes' certificates.
    pub fn authority(&self) -> PathBuf {
        self.folder().join("pki")
    }

    /// Where nodes find the link.
    pub fn links(&self) -> Vec<String> {
        self.place.addresses.iter().map(|address| format!("{address}:{}", self.link)).collect()
    }

    /// Stops both in order.
    pub async fn stop(self) -> Result<()> {
        for process in self.cloud.into_iter().chain([self.api]) {
            let (name, log) = (process.name(), process.log().to_owned());
            let status = process.stop(STOP).await?;
            ensure!(status.success(), "{name} ended with {status}; see {}", log.display());
        }
        Ok(())
    }

    fn folder(&self) -> PathBuf {
        self.place.folder.join("cloud")
    }
}

fn launch(place: &Place, config: &Path, data: &Path, name: &'static str) -> Launch {
    Launch::new(name, place.programs.join("cloudcore"), place.folder.join(format!("{name}.log")))
        .arg("--config")
        .arg(config)
        .arg("--data-dir")
        .arg(data)
        // A line for every node and session is for people.
        .env("RUST_LOG", "warn")
}

async fn answering(kubeconfig: &Path) -> Result<Client> {
    let ask = async || -> Result<Client> {
        let config = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        client.apiserver_version().await?;
        Ok(client)
    };
    let deadline = Instant::now() + UP;
    loop {
        match ask().await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => bail!("the API does not answer within {UP:?}: {error:#}"),
            Err(_) => tokio::time::sleep(TICK).await,
        }
    }
}
