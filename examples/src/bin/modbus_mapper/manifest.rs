//! What a Device and its model say of a Modbus device, checked. Pure.

use std::{collections::BTreeMap, time::Duration};

use kubeedge_actors::mapper::{Device, collect_cycle, visitors};
use serde_json::Value;

use crate::registers::{Coding, Kind, boolean};

/// A device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// A name or an address.
    pub(crate) host: String,
    /// Usually 502.
    pub(crate) port: u16,
    /// The unit behind that address.
    pub(crate) unit: u8,
    /// Its properties.
    pub(crate) points: Vec<Point>,
    /// What is wrong with properties that are left out.
    pub(crate) left_out: Vec<String>,
}

/// One of the four tables of a Modbus device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Single bits, read and written.
    Coils,
    /// Single bits, read.
    DiscreteInputs,
    /// Registers, read.
    InputRegisters,
    /// Registers, read and written.
    HoldingRegisters,
}

/// A property.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    /// Its name.
    pub(crate) name: String,
    /// Where it stands.
    pub(crate) table: Table,
    /// The address of its first coil or register, counted from 0.
    pub(crate) offset: u16,
    /// How it stands there.
    pub(crate) coding: Coding,
    /// How often it is read.
    pub(crate) cycle: Duration,
    /// What is to be written; `None` when nobody said.
    pub(crate) desired: Option<String>,
}

type Settings = BTreeMap<String, Value>;

/// Reads a Device. The error is about the device as a whole; a property that is wrong is left out.
pub(crate) fn read(device: &Device) -> Result<Plan, String> {
    let settings = device.settings();
    let host = text(&settings, "ip")?.ok_or("protocol.configData.ip: expected the address of the device")?;
    let port = whole(&settings, "port", 1, 65_535)?.unwrap_or(502) as u16;
    let unit = whole(&settings, "slaveID", 0, 255)?.unwrap_or(1) as u8;
    let (mut points, mut left_out) = (Vec::new(), Vec::new());
    for property in &device.spec.properties {
        match point(device, &property.name) {
            Ok(point) => points.push(point),
            Err(wrong) => left_out.push(format!("{}: {wrong}", property.name)),
        }
    }
    Ok(Plan { host, port, unit, points, left_out })
}

fn point(device: &Device, name: &str) -> Result<Point, String> {
    let property = device.property(name).ok_or("it is no property of the device")?;
    let model = device.kind_of(name).ok_or("it is no property of the device's model")?;
    let settings = visitors(property);
    let table = match text(&settings, "register")?.unwrap_or_default().as_str() {
        "CoilRegister" => Table::Coils,
        "DiscreteInputRegister" => Table::DiscreteInputs,
        "InputRegister" => Table::InputRegisters,
        "HoldingRegister" => Table::HoldingRegisters,
        other => {
            let names = "CoilRegister, DiscreteInputRegister, InputRegister or HoldingRegister";
            return Err(format!("visitors.configData.register: {other:?} is not valid, expected {names}"));
        }
    };
    let offset = whole(&settings, "offset", 0, 65_535)?.ok_or("visitors.configData.offset: expected a number")?;
    let count = whole(&settings, "limit", 1, 125)?.unwrap_or(1);
    let is_bit = matches!(table, Table::Coils | Table::DiscreteInputs);
    let kind = match model.r#type.to_ascii_uppercase().as_str() {
        "BOOLEAN" => Kind::Boolean,
        "INT" => Kind::Int,
        "FLOAT" | "DOUBLE" => Kind::Float,
        "STRING" => Kind::Text,
        other => return Err(format!("the model's type {other} is not built")),
    };
    match (is_bit, kind, count) {
        (true, Kind::Boolean | Kind::Int, 1) | (false, Kind::Text, _) | (false, Kind::Boolean, 1) => {}
        (false, Kind::Int | Kind::Float, 1 | 2 | 4) => {}
        (true, ..) => return Err("a coil or a discrete input is one, and BOOLEAN or INT".to_owned()),
        _ => return Err(format!("visitors.configData.limit: {count} registers are no {}", model.r#type)),
    }
    let bound = |what: &str, said: &str| match said {
        "" => Ok(None),
        said => said.parse::<f64>().map(Some).map_err(|_| format!("the model's {what}: {said:?} is no number")),
    };
    let (minimum, maximum) = (bound("minimum", &model.minimum)?, bound("maximum", &model.maximum)?);
    let scale = number(&settings, "scale")?.unwrap_or(1.0);
    if !scale.is_finite() || scale == 0.0 {
        return Err(format!("visitors.configData.scale: {scale} is not valid"));
    }
    let writable = model.access_mode == "ReadWrite" && matches!(table, Table::Coils | Table::HoldingRegisters);
    let desired = device.desired(name).filter(|_| writable).map(str::to_owned);
    if let Some(number) = desired.as_deref().and_then(|desired| desired.parse::<f64>().ok())
        && (minimum.is_some_and(|least| number < least) || maximum.is_some_and(|most| number > most))
    {
        return Err(format!("{number} is desired, which is beyond the model's minimum or maximum"));
    }
    let coding = Coding {
        kind,
        count: count as u16,
        // A model that allows numbers below zero means that they have a sign.
        signed: minimum.is_some_and(|minimum| minimum < 0.0),
        scale: shortened(scale),
        swap_bytes: flag(&settings, "isSwap")?,
        swap_registers: flag(&settings, "isRegisterSwap")?,
    };
    Ok(Point { name: name.to_owned(), table, offset: offset as u16, coding, cycle: collect_cycle(property), desired })
}

/// Settings with a fraction travel as float32: 0.1 comes as 0.10000000149.
fn shortened(scale: f64) -> f64 {
    (scale as f32).to_string().parse().unwrap_or(scale)
}

fn text(settings: &Settings, name: &str) -> Result<Option<String>, String> {
    match settings.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("configData.{name}: {other} is no text")),
    }
}

/// Numbers and flags may be written as text, as manifests for Go mappers have them.
fn number(settings: &Settings, name: &str) -> Result<Option<f64>, String> {
    let number = match settings.get(name) {
        None => return Ok(None),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_f64(),
    };
    number.map(Some).ok_or_else(|| format!("configData.{name}: {:?} is no number", settings.get(name)))
}

fn whole(settings: &Settings, name: &str, least: u32, most: u32) -> Result<Option<u32>, String> {
    let Some(number) = number(settings, name)? else { return Ok(None) };
    match number.fract() == 0.0 && (f64::from(least)..=f64::from(most)).contains(&number) {
        true => Ok(Some(number as u32)),
        false => Err(format!("configData.{name}: {number} is not valid, expected from {least} to {most}")),
    }
}

fn flag(settings: &Settings, name: &str) -> Result<bool, String> {
    match settings.get(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) => boolean(text).map_err(|wrong| format!("configData.{name}: {wrong}")),
        Some(other) => Err(format!("configData.{name}: {other} is neither true nor false")),
    }
}
