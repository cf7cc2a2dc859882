//! A mapper for Modbus TCP, driven only by Device manifests; `docs/devices.md` has one, and what it may say.
//!
//! ```sh
//! cargo run -p kubeedge-examples --bin modbus_mapper -- --edgecore /etc/kubeedge/dmi.sock --socket /tmp/modbus.sock
//! ```
//!
//! [`manifest`] is what a Device says, [`registers`] how values stand in registers, [`mod@unit`] one device on its wire.

#![allow(clippy::print_stdout, reason = "a program that people look at")]

mod manifest;
mod registers;
#[cfg(test)]
mod tests;
mod unit;

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc};

use anyhow::Result;
use clap::Parser;
use kubeedge_actors::{
    mapper::{DeviceId, Event, Mapper, MapperConfig, push::Pusher},
    program::StopSignals,
};
use tokio_util::task::AbortOnDropHandle;

use crate::unit::Unit;

/// A mapper for Modbus TCP.
#[derive(Parser)]
struct Cli {
    /// The socket of edgecore
    #[arg(long, default_value = "/etc/kubeedge/dmi.sock")]
    edgecore: PathBuf,
    /// The socket on which edgecore calls this mapper
    #[arg(long, default_value = "/etc/kubeedge/modbus.sock")]
    socket: PathBuf,
    /// The protocolName of its devices
    #[arg(long, default_value = "modbus-tcp")]
    protocol: String,
}

#[actix_rt::main]
async fn main() -> Result<()> {
    kubeedge_actors::program::log();
    let cli = Cli::parse();
    let mut signals = StopSignals::listen()?;
    let config = MapperConfig { edgecore: cli.edgecore, ..MapperConfig::new("modbus", cli.protocol, cli.socket) };
    let mut mapper = tokio::select! {
        started = Mapper::start(config) => started?,
        _ = signals.next() => return Ok(()),
    };
    let pusher = Rc::new(RefCell::new(Pusher::default()));
    let mut units: BTreeMap<DeviceId, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            event = mapper.next() => event,
            _ = signals.next() => None,
        };
        match event {
            Some(Event::Device(device)) => {
                let id = device.id.clone();
                // The one before lets go of the connection: many devices take one at a time.
                if let Some(before) = units.remove(&id) {
                    before.abort();
                    let _ = before.await;
                }
                pusher.borrow_mut().device(&device);
                match manifest::read(&device) {
                    Ok(plan) => {
                        println!("{id}: {}:{}, {} properties", plan.host, plan.port, plan.points.len());
                        plan.left_out.iter().for_each(|wrong| tracing::error!(device = %id, "left out: {wrong}"));
                        let unit =
                            Unit { id: id.clone(), plan, reporter: mapper.reporter(), pusher: Rc::clone(&pusher) };
                        units.insert(id, AbortOnDropHandle::new(tokio::task::spawn_local(unit.run())));
                    }
                    Err(wrong) => {
                        tracing::error!(device = %id, "it cannot be reached: {wrong}");
                        if let Err(error) = mapper.report_state(&id, "unhealthy").await {
                            tracing::warn!(device = %id, "its state is not told: {error}");
                        }
                    }
                }
            }
            Some(Event::Gone(id)) => {
                println!("{id}: gone");
                units.remove(&id);
                pusher.borrow_mut().gone(&id);
            }
            None => {
                println!("pushed: {:?}", pusher.borrow().counts());
                return Ok(());
            }
        }
    }
}
