//! edgecore on a broker that others run: mosquitto with TLS both ways and a password, killed and started again.

use std::{fs, net::SocketAddr, path::PathBuf, time::SystemTime};

use anyhow::{Context, Result, ensure};
use kubeedge_actors::identity::CertificateAuthority;
use kubeedge_examples::{
    lab::{Lab, free_ports},
    process::{Launch, Process, find_program},
};
use serde_json::json;
use tokio::process::Command;

use super::{App, api, every_topic, poll, twin, until};
use crate::report::{Outcome, missing};

const METER: &str = "default/meter";

/// Mosquitto with its files.
struct Broker {
    program: PathBuf,
    folder: PathBuf,
    /// For edgecore.
    secure: SocketAddr,
    /// For applications.
    plain: SocketAddr,
}

impl Broker {
    async fn new(lab: &Lab, program: PathBuf) -> Result<Self> {
        let folder = lab.folder().join("broker");
        fs::create_dir_all(&folder)?;
        let [secure, plain] = free_ports()?.map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
        let now = SystemTime::now();
        let ca = CertificateAuthority::load_or_create(&folder.join("ca"), now)?;
        fs::write(folder.join("ca.crt"), ca.certificate_pem())?;
        let own = ca.issue_server(&[secure.ip().into()], now)?;
        let edge = ca.issue_client("edge", "site", now)?;
        for (name, issued) in [("broker", own), ("edge", edge)] {
            fs::write(folder.join(format!("{name}.crt")), issued.chain_pem)?;
            fs::write(folder.join(format!("{name}.key")), issued.key_pem)?;
        }
        let passwords = find_program("mosquitto_passwd").context("mosquitto_passwd")?;
        let file = folder.join("passwords");
        let done = Command::new(passwords).arg("-b").arg("-c").arg(&file).args(["edge", "secret"]).status().await?;
        ensure!(done.success(), "mosquitto_passwd: {done}");
        let at = folder.display();
        let config = format!(
            "per_listener_settings true\nuser root\nlistener {} 127.0.0.1\nallow_anonymous true\n\
             listener {} 127.0.0.1\nallow_anonymous false\nrequire_certificate true\ncafile {at}/ca.crt\n\
             certfile {at}/broker.crt\nkeyfile {at}/broker.key\npassword_file {at}/passwords\n",
            plain.port(),
            secure.port()
        );
        fs::write(folder.join("mosquitto.conf"), config)?;
        Ok(Self { program, folder, secure, plain })
    }

    fn start(&self) -> Result<Process> {
        Launch::new("mosquitto", &self.program, self.folder.join("mosquitto.log"))
            .arg("-c")
            .arg(self.folder.join("mosquitto.conf"))
            .spawn()
    }

    /// What edgecore's file says of it.
    fn settings(&self) -> Vec<String> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        vec![
            "mqttMode: 2".to_owned(),
            format!("mqttServerExternal: ssl://{}", self.secure),
            "mqttUsername: edge".to_owned(),
            "mqttPassword: secret".to_owned(),
            "eventBusTLS:".to_owned(),
            "  enable: true".to_owned(),
            format!("  tlsMqttCAFile: {}", file("ca.crt")),
            format!("  tlsMqttCertFile: {}", file("edge.crt")),
            format!("  tlsMqttPrivateKeyFile: {}", file("edge.key")),
        ]
    }

    /// An application says something, hears the answer, and it is in the API.
    async fn carries(&self, lab: &Lab, value: &str) -> Result<()> {
        let work = async {
            let filter = format!("$hw/events/device/{METER}/twin/+/result");
            let mut app = App::subscribed_at(self.plain, "an-application", METER, [filter]).await?;
            let answer = app.update(METER, value, json!({"kwh": {"actual": {"value": value}}})).await?;
            ensure!(answer["twin"]["kwh"]["actual"]["value"] == value, "{answer}");
            Ok(())
        };
        tokio::task::LocalSet::new().run_until(work).await?;
        let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
        until(&statuses, "meter", "the value in the API", |status| {
            twin(status, "kwh", "/reported/value").as_deref() == Some(value)
        })
        .await?;
        Ok(())
    }
}

pub(super) async fn external(lab: &mut Lab) -> Result<Outcome> {
    let Some(program) = find_program("mosquitto") else { return missing("mosquitto is not installed") };
    let broker = Broker::new(lab, program).await?;
    // Edgecore starts first: a broker that does not answer is retried, and edgecore runs all the same.
    lab.stop_edge().await?;
    lab.use_broker(&broker.settings())?;
    lab.start_edge_with(&["--fake-runtime"])?;
    let log = lab.folder().join("edgecore.log");
    poll("edgecore says that the broker is away", async || {
        let text = fs::read_to_string(&log)?;
        let said = text.lines().any(|line| line.contains("the broker is not connected"));
        Ok(if said { Ok(()) } else { Err(text) })
    })
    .await?;
    let running = broker.start()?;
    lab.guarded(async |lab| broker.carries(lab, "80").await).await?;
    // What holds on the embedded broker holds here.
    let contract = async |lab: &Lab| {
        tokio::task::LocalSet::new().run_until(every_topic(lab, broker.plain, "every-topic-here")).await
    };
    lab.guarded(contract).await.map(drop)?;
    running.kill().await?;
    let running = broker.start()?;
    lab.guarded(async |lab| broker.carries(lab, "81").await).await?;
    running.kill().await?;
    Ok(Outcome::Proved)
}
