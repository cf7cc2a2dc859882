//! A mapper for thermostats that are simulated: a setpoint that the cloud desires, a reading that drifts towards it, and
//! an on/off switch. It is driven only by Device manifests, pushes what they say is to be pushed, and `docs/devices.md` walks
//! through it.
//!
//! ```sh
//! cargo run -p kubeedge-examples --bin thermostat -- --edgecore /etc/kubeedge/dmi.sock --socket /tmp/thermostat.sock
//! ```

#![allow(clippy::print_stdout, reason = "a program that people look at")]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;
use kubeedge_actors::{
    mapper::{Device, DeviceId, Event, Mapper, MapperConfig, Reading, push::Pusher},
    program::StopSignals,
};

/// A mapper for simulated thermostats.
#[derive(Parser)]
struct Cli {
    /// The socket of edgecore
    #[arg(long, default_value = "/etc/kubeedge/dmi.sock")]
    edgecore: PathBuf,
    /// The socket on which edgecore calls this mapper
    #[arg(long, default_value = "/etc/kubeedge/thermostat.sock")]
    socket: PathBuf,
}

/// How often a room is looked at.
const STEP: Duration = Duration::from_millis(500);

/// One simulated room.
struct Room {
    device: Device,
    temperature: f64,
    told: Option<String>,
}

impl Room {
    /// The setpoint that is desired, or 20 degrees.
    fn setpoint(&self) -> f64 {
        self.device.desired("setpoint").and_then(|value| value.parse().ok()).unwrap_or(20.0)
    }

    fn is_on(&self) -> bool {
        self.device.desired("power") != Some("false")
    }

    /// Half a second goes by: the room warms up to its setpoint, or cools down to 15 degrees.
    fn step(&mut self) {
        let drift = self.device.settings().get("drift").and_then(serde_json::Value::as_f64).unwrap_or(0.5);
        let goal = if self.is_on() { self.setpoint() } else { 15.0 };
        self.temperature += (goal - self.temperature).clamp(-drift, drift);
    }

    fn measured(&self) -> String {
        format!("{:.1}", self.temperature)
    }

    /// What is to be told; nothing when it was told already.
    fn news(&mut self) -> Option<Vec<Reading>> {
        let setpoint = self.device.desired("setpoint").unwrap_or("20").to_owned();
        let all = format!("{} {setpoint} {}", self.measured(), self.is_on());
        if self.told.as_ref() == Some(&all) {
            return None;
        }
        self.told = Some(all);
        Some(vec![
            Reading::new("temperature", self.measured()),
            Reading::new("setpoint", &setpoint).observing(&setpoint),
            Reading::new("power", self.is_on()).observing(self.is_on()),
        ])
    }
}

#[actix_rt::main]
async fn main() -> Result<()> {
    kubeedge_actors::program::log();
    let cli = Cli::parse();
    let mut signals = StopSignals::listen()?;
    let config = MapperConfig { edgecore: cli.edgecore, ..MapperConfig::new("thermostats", "thermostat", cli.socket) };
    let mut mapper = tokio::select! {
        started = Mapper::start(config) => started?,
        _ = signals.next() => return Ok(()),
    };
    let mut rooms: BTreeMap<DeviceId, Room> = BTreeMap::new();
    let mut pusher = Pusher::default();
    let mut clock = tokio::time::interval(STEP);
    loop {
        tokio::select! {
            event = mapper.next() => match event {
                Some(Event::Device(device)) => {
                    let (temperature, told) = rooms.get(&device.id).map_or((15.0, None), |room| (room.temperature, None));
                    let new = !rooms.contains_key(&device.id);
                    println!("{}: setpoint {:?}", device.id, device.desired("setpoint"));
                    let id = device.id.clone();
                    pusher.device(&device);
                    rooms.insert(id.clone(), Room { device: *device, temperature, told });
                    if new && let Err(error) = mapper.report_state(&id, "ok").await {
                        eprintln!("{id}: {error}");
                    }
                }
                Some(Event::Gone(id)) => {
                    println!("{id}: gone");
                    pusher.gone(&id);
                    rooms.remove(&id);
                }
                None => return Ok(()),
            },
            _ = clock.tick() => {
                for (id, room) in &mut rooms {
                    room.step();
                    pusher.reading(id, "temperature", &room.measured());
                    let Some(readings) = room.news() else { continue };
                    if let Err(error) = mapper.report(id, readings).await {
                        // It is told again with the next step.
                        eprintln!("{id}: {error}");
                        room.told = None;
                    }
                }
            }
            _ = signals.next() => return Ok(()),
        }
    }
}
