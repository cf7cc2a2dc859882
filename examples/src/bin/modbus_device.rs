//! A simulated boiler that speaks Modbus TCP, as unit 1. Its registers:
//!
//! | | | |
//! |---|---|---|
//! | holding register | 0 | setpoint, tenths of a degree |
//! | input register | 0 | temperature, tenths of a degree, below zero too |
//! | input registers | 1, 2 | energy taken so far, kWh, a float |
//! | coil | 0 | on or off |
//!
//! What it was told is forgotten when it ends, as with a device whose power was cut.
//!
//! ```sh
//! cargo run -p kubeedge-examples --bin modbus_device -- --listen 127.0.0.1:1502
//! ```

#![allow(clippy::print_stdout, reason = "a program that people look at")]

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use kubeedge_actors::program::StopSignals;
use tokio::net::TcpListener;
use tokio_modbus::{
    ExceptionCode, Request, Response, SlaveRequest,
    server::{
        Service,
        tcp::{Server, accept_tcp_connection},
    },
};

/// A simulated boiler.
#[derive(Parser)]
struct Cli {
    /// Where it is served
    #[arg(long, default_value = "127.0.0.1:1502")]
    listen: SocketAddr,
}

/// The unit that answers.
const UNIT: u8 = 1;
/// How often the boiler goes on.
const STEP: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Boiler {
    setpoint: u16,
    /// Tenths of a degree.
    temperature: i16,
    energy: f32,
    on: bool,
}

impl Boiler {
    /// Half a degree towards the setpoint, or, when it is off, towards 15 degrees.
    fn step(&mut self) {
        let goal = if self.on { i16::try_from(self.setpoint).unwrap_or(i16::MAX) } else { 150 };
        self.temperature += (goal - self.temperature).clamp(-5, 5);
        self.energy += if self.on { 0.25 } else { 0.0 };
    }

    fn inputs(&self) -> [u16; 3] {
        let bits = self.energy.to_bits();
        [self.temperature as u16, (bits >> 16) as u16, bits as u16]
    }

    fn answer(&mut self, request: Request<'_>) -> Result<Response, ExceptionCode> {
        match request {
            Request::ReadCoils(0, 1) => Ok(Response::ReadCoils(vec![self.on])),
            Request::WriteSingleCoil(0, on) => {
                self.on = on;
                Ok(Response::WriteSingleCoil(0, on))
            }
            Request::ReadHoldingRegisters(0, 1) => Ok(Response::ReadHoldingRegisters(vec![self.setpoint])),
            Request::WriteSingleRegister(0, word) => {
                self.setpoint = word;
                Ok(Response::WriteSingleRegister(0, word))
            }
            Request::ReadInputRegisters(first, count) => {
                let first = usize::from(first);
                let words = self.inputs().get(first..first + usize::from(count)).map(<[u16]>::to_vec);
                words.map(Response::ReadInputRegisters).ok_or(ExceptionCode::IllegalDataAddress)
            }
            Request::ReadCoils(..)
            | Request::WriteSingleCoil(..)
            | Request::ReadHoldingRegisters(..)
            | Request::WriteSingleRegister(..) => Err(ExceptionCode::IllegalDataAddress),
            _ => Err(ExceptionCode::IllegalFunction),
        }
    }
}

#[derive(Clone)]
struct Served(Arc<Mutex<Boiler>>);

impl Service for Served {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, request: SlaveRequest<'static>) -> Self::Future {
        if request.slave != UNIT {
            // Another unit's.
            return ready(Ok(None));
        }
        let mut boiler = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ready(boiler.answer(request.request).map(Some))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut signals = StopSignals::listen()?;
    let boiler = Served(Arc::new(Mutex::new(Boiler { setpoint: 200, temperature: 150, energy: 0.0, on: true })));
    let listener = TcpListener::bind(cli.listen).await.with_context(|| format!("listen on {}", cli.listen))?;
    println!("a boiler is served on {}", listener.local_addr()?);
    let server = Server::new(listener);
    let connected = |stream, address| {
        let boiler = boiler.clone();
        async move { accept_tcp_connection(stream, address, |_| Ok(Some(boiler.clone()))) }
    };
    let mut clock = tokio::time::interval(STEP);
    let step = async {
        loop {
            clock.tick().await;
            boiler.0.lock().unwrap_or_else(PoisonError::into_inner).step();
        }
    };
    tokio::select! {
        served = server.serve(&connected, |error| eprintln!("a connection ended: {error}")) => Ok(served?),
        () = step => Ok(()),
        _ = signals.next() => Ok(()),
    }
}
