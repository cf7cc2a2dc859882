//! A mapper for thermostats that are simulated: a setpoint that the cloud desires, a reading that drifts towards it, and
//! an on/off switch. It is driven only by Device manifests: it reads a property in its `collectCycle`, reports what is new,
//! and pushes what has a `pushMethod`. `docs/devices.md` walks through it.
//!
//! ```sh
//! cargo run -p kubeedge-examples --bin thermostat -- --edgecore /etc/kubeedge/dmi.sock --socket /tmp/thermostat.sock
//! ```

#![allow(clippy::print_stdout, reason = "a program that people look at")]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;
use kubeedge_actors::{
    mapper::{Device, DeviceId, Event, Mapper, MapperConfig, Reading, collect_cycle, push::Pusher},
    program::StopSignals,
};
use tokio::time::Instant;

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

/// How often a property is read whose Device says no `collectCycle`; also what `drift` is counted in.
const STEP: Duration = Duration::from_millis(500);
/// How warm a room is at first, and becomes while it is off.
const COLD: f64 = 15.0;

/// One simulated room.
struct Room {
    device: Device,
    temperature: f64,
    /// It has been simulated up to here.
    at: Instant,
    /// When each property is read next.
    due: BTreeMap<String, Instant>,
    /// What was reported of each.
    told: BTreeMap<String, String>,
}

impl Room {
    /// A room that is cold, or as warm as it was.
    fn new(device: Device, before: Option<&Room>, now: Instant) -> Self {
        let names = device.spec.properties.iter().map(|property| property.name.clone());
        let due = names.map(|name| (name, now)).collect();
        let (temperature, at) = before.map_or((COLD, now), |room| (room.temperature, room.at));
        Self { device, temperature, at, due, told: BTreeMap::new() }
    }

    /// The setpoint that is desired, or 20 degrees.
    fn setpoint(&self) -> &str {
        self.device.desired("setpoint").unwrap_or("20")
    }

    fn is_on(&self) -> bool {
        self.device.desired("power") != Some("false")
    }

    /// Time goes by: the room warms up to its setpoint, or cools down.
    fn pass(&mut self, now: Instant) {
        let steps = (now - self.at).as_secs_f64() / STEP.as_secs_f64();
        let drift =
            self.device.settings().get("drift").and_then(serde_json::Value::as_f64).unwrap_or(0.5).abs() * steps;
        let goal = if self.is_on() { self.setpoint().parse().unwrap_or(20.0) } else { COLD };
        self.temperature += (goal - self.temperature).clamp(-drift, drift);
        self.at = now;
    }

    /// What a property is; nothing of one that a thermostat has not.
    fn read(&self, property: &str) -> Option<String> {
        match property {
            "temperature" => Some(format!("{:.1}", self.temperature)),
            "setpoint" => Some(self.setpoint().to_owned()),
            "power" => Some(self.is_on().to_string()),
            _ => None,
        }
    }

    /// Reads what is due, and says when it is due again.
    fn read_due(&mut self, now: Instant) -> Vec<(String, String)> {
        self.pass(now);
        let due: Vec<String> = self.due.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in &due {
            let property = self.device.property(name).filter(|property| property.collect_cycle > 0);
            self.due.insert(name.clone(), now + property.map_or(STEP, collect_cycle));
        }
        due.into_iter().filter_map(|name| self.read(&name).map(|value| (name, value))).collect()
    }

    /// What of these is to be reported: what was not reported already.
    fn news(&mut self, read: &[(String, String)]) -> Vec<Reading> {
        let news =
            read.iter().filter(|(name, value)| self.told.insert(name.clone(), value.clone()).as_ref() != Some(value));
        let reading = |(name, value): &(String, String)| match name.as_str() {
            "temperature" => Reading::new(name, value),
            // What is desired is taken over at once.
            _ => Reading::new(name, value).observing(value),
        };
        news.map(reading).collect()
    }
}

/// Waits until something is to be read.
async fn until_due(rooms: &BTreeMap<DeviceId, Room>) {
    match rooms.values().flat_map(|room| room.due.values()).min() {
        Some(due) => tokio::time::sleep_until(*due).await,
        None => std::future::pending().await,
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
    loop {
        tokio::select! {
            event = mapper.next() => match event {
                Some(Event::Device(device)) => {
                    println!("{}: setpoint {:?}", device.id, device.desired("setpoint"));
                    let id = device.id.clone();
                    pusher.device(&device);
                    let room = Room::new(*device, rooms.get(&id), Instant::now());
                    let new = rooms.insert(id.clone(), room).is_none();
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
            () = until_due(&rooms) => {
                for (id, room) in &mut rooms {
                    let read = room.read_due(Instant::now());
                    for (property, value) in &read {
                        pusher.reading(id, property, value);
                    }
                    let news = room.news(&read);
                    if !news.is_empty() && let Err(error) = mapper.report(id, news).await {
                        // It is told again when it is read again.
                        eprintln!("{id}: {error}");
                        room.told.clear();
                    }
                }
            }
            _ = signals.next() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::dmi;

    use super::*;

    fn device(setpoint: &str, cycles: &[(&str, i64)]) -> Device {
        let property = |(name, cycle): &(&str, i64)| dmi::DeviceProperty {
            name: (*name).to_owned(),
            collect_cycle: *cycle,
            desired: Some(dmi::TwinProperty {
                value: if *name == "setpoint" { setpoint.into() } else { String::new() },
                ..Default::default()
            }),
            ..Default::default()
        };
        Device {
            id: DeviceId { namespace: "default".into(), name: "room".into() },
            spec: dmi::DeviceSpec { properties: cycles.iter().map(property).collect(), ..Default::default() },
            model: Default::default(),
            state_report: Default::default(),
        }
    }

    #[test]
    fn each_property_is_read_in_its_own_cycle() {
        let start = Instant::now();
        let cycles = [("temperature", 100), ("setpoint", 0), ("power", 2000), ("humidity", 100)];
        let mut room = Room::new(device("", &cycles), None, start);
        let mut counts = BTreeMap::new();
        for tick in 0..=40 {
            for (name, _) in room.read_due(start + Duration::from_millis(50 * tick)) {
                *counts.entry(name).or_insert(0) += 1;
            }
        }
        let expected = [("power", 2), ("setpoint", 5), ("temperature", 21)];
        assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)).into());
    }

    #[test]
    fn a_room_drifts_with_the_time_and_what_is_new_is_reported_once() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut room = Room::new(device("18", &[("temperature", 0), ("setpoint", 0)]), None, start);
        let of = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let first = room.read_due(start);
        assert_eq!(first, of(&[("setpoint", "18"), ("temperature", "15.0")]));
        assert_eq!((room.news(&first).len(), room.news(&first).len()), (2, 0));
        let next = room.read_due(after(1));
        assert_eq!(next, of(&[("setpoint", "18"), ("temperature", "16.0")]), "half a degree in half a second");
        assert_eq!(room.news(&next), [Reading::new("temperature", "16.0")]);
        assert_eq!(room.read_due(after(10))[1].1, "18.0");
        let mut room = Room::new(device("30", &[("temperature", 0)]), Some(&room), after(10));
        assert_eq!(room.read_due(after(10)), of(&[("temperature", "18.0")]), "as warm as it was");
    }
}
