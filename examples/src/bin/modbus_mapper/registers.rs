//! Values in registers. Pure.
//!
//! A register is 16 bits; what has more of them stands in several, the first holding the upper half unless the manifest
//! says that they are swapped.

/// What kind of value a property is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not zero is true.
    Boolean,
    /// A whole number.
    Int,
    /// A number with a fraction: IEEE 754 in two or four registers, a whole number times the scale in one.
    Float,
    /// UTF-8, up to the first NUL.
    Text,
}

/// How a value stands in registers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Coding {
    /// What it is.
    pub(crate) kind: Kind,
    /// Registers.
    pub(crate) count: u16,
    /// Whether whole numbers have a sign.
    pub(crate) signed: bool,
    /// What a number is multiplied with when it is read.
    pub(crate) scale: f64,
    /// Whether the bytes of each register are the other way round.
    pub(crate) swap_bytes: bool,
    /// Whether the registers are the other way round.
    pub(crate) swap_registers: bool,
}

impl Coding {
    /// The registers' bytes, most significant first.
    fn bytes(&self, words: &[u16]) -> Vec<u8> {
        let turned = |word: &u16| if self.swap_bytes { word.to_le_bytes() } else { word.to_be_bytes() };
        match self.swap_registers {
            true => words.iter().rev().flat_map(turned).collect(),
            false => words.iter().flat_map(turned).collect(),
        }
    }

    fn words(&self, bytes: &[u8]) -> Vec<u16> {
        let turned = |pair: &[u8]| {
            let pair = [pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)];
            if self.swap_bytes { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }
        };
        let words = bytes.chunks(2).map(turned);
        match self.swap_registers {
            true => words.rev().collect(),
            false => words.collect(),
        }
    }

    /// What registers say.
    pub(crate) fn decode(&self, words: &[u16]) -> Result<String, String> {
        if words.len() != usize::from(self.count) {
            return Err(format!("the device sent {} registers, expected {}", words.len(), self.count));
        }
        let bytes = self.bytes(words);
        match self.kind {
            Kind::Boolean => Ok(words.iter().any(|word| *word != 0).to_string()),
            Kind::Text => {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default());
                text.map(str::to_owned).map_err(|_| "the device sent a text that is not UTF-8".to_owned())
            }
            Kind::Int if self.scale == 1.0 => Ok(self.whole(&bytes).to_string()),
            Kind::Int => Ok((self.whole(&bytes) as f64 * self.scale).round().to_string()),
            Kind::Float => {
                let number = match bytes.as_slice() {
                    [_, _] => self.whole(&bytes) as f64 * self.scale,
                    // A float32 is written as short as it was meant.
                    &[a, b, c, d] if self.scale == 1.0 => return finite(f32::from_be_bytes([a, b, c, d])),
                    &[a, b, c, d] => f64::from(f32::from_be_bytes([a, b, c, d])) * self.scale,
                    bytes => bytes.try_into().map_or(f64::NAN, f64::from_be_bytes) * self.scale,
                };
                finite(shortened(number))
            }
        }
    }

    /// A whole number of up to 64 bits.
    fn whole(&self, bytes: &[u8]) -> i128 {
        let number = bytes.iter().fold(0i128, |number, byte| number << 8 | i128::from(*byte));
        let bits = 8 * bytes.len();
        match self.signed && number >> (bits - 1) == 1 {
            true => number - (1i128 << bits),
            false => number,
        }
    }

    /// Registers that say this.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u16>, String> {
        let width = 2 * usize::from(self.count);
        let number = || text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let scaled = || number().map(|number| number / self.scale).ok_or_else(|| format!("{text:?} is no number"));
        let bytes = match self.kind {
            Kind::Boolean => self.place(i128::from(boolean(text)?), width)?,
            Kind::Text => {
                let mut bytes = text.as_bytes().to_vec();
                if bytes.len() > width {
                    return Err(format!("{text:?} has {} bytes, expected at most {width}", bytes.len()));
                }
                bytes.resize(width, 0);
                bytes
            }
            Kind::Int if self.scale == 1.0 => {
                let number = text.trim().parse().map_err(|_| format!("{text:?} is no whole number"))?;
                self.place(number, width)?
            }
            Kind::Int => self.place(scaled()?.round() as i128, width)?,
            Kind::Float => match width {
                2 => self.place(scaled()?.round() as i128, width)?,
                4 => (scaled()? as f32).to_be_bytes().to_vec(),
                _ => scaled()?.to_be_bytes().to_vec(),
            },
        };
        Ok(self.words(&bytes))
    }

    fn place(&self, number: i128, width: usize) -> Result<Vec<u8>, String> {
        let bits = 8 * width;
        let (least, most) = match self.signed {
            true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
            false => (0, (1i128 << bits) - 1),
        };
        if !(least..=most).contains(&number) {
            return Err(format!("{number} does not fit: registers hold {least} to {most}"));
        }
        Ok(number.to_be_bytes().get(16 - width..).unwrap_or_default().to_vec())
    }
}

/// What a coil is to be.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// A scale such as 0.1 has no exact binary form: what that adds behind the ninth decimal is cut off.
fn shortened(number: f64) -> f64 {
    if number.abs() < 1e6 { (number * 1e9).round() / 1e9 } else { number }
}

fn finite<N: Into<f64> + Copy + ToString>(number: N) -> Result<String, String> {
    match number.into().is_finite() {
        true => Ok(number.to_string()),
        false => Err("the device sent no finite number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coding(kind: Kind, count: u16) -> Coding {
        Coding { kind, count, signed: false, scale: 1.0, swap_bytes: false, swap_registers: false }
    }

    #[test]
    fn numbers_are_read_as_devices_mean_them() {
        let int = coding(Kind::Int, 1);
        assert_eq!(int.decode(&[0xfffe]).unwrap(), "65534");
        assert_eq!(Coding { signed: true, ..int }.decode(&[0xfffe]).unwrap(), "-2");
        assert_eq!(coding(Kind::Int, 2).decode(&[1, 2]).unwrap(), "65538");
        assert_eq!(coding(Kind::Int, 4).decode(&[0xffff; 4]).unwrap(), u64::MAX.to_string());
        let tenths = Coding { scale: 0.1, ..coding(Kind::Float, 1) };
        assert_eq!(tenths.decode(&[213]).unwrap(), "21.3");
        assert_eq!(coding(Kind::Float, 2).decode(&[0x41ac, 0xcccd]).unwrap(), "21.6");
        assert_eq!(coding(Kind::Boolean, 1).decode(&[2]).unwrap(), "true");
        assert_eq!(coding(Kind::Text, 2).decode(&[0x6f6b, 0]).unwrap(), "ok");
    }

    #[test]
    fn bytes_and_registers_are_swapped_alone_and_together() {
        let int = coding(Kind::Int, 2);
        for (swap_bytes, swap_registers, words) in [
            (false, false, [0x0102, 0x0304]),
            (true, false, [0x0201, 0x0403]),
            (false, true, [0x0304, 0x0102]),
            (true, true, [0x0403, 0x0201]),
        ] {
            let coding = Coding { swap_bytes, swap_registers, ..int };
            assert_eq!(coding.decode(&words).unwrap(), 0x0102_0304.to_string());
            assert_eq!(coding.encode(&0x0102_0304.to_string()).unwrap(), words);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (coding, text) in [
            (Coding { scale: 0.1, ..coding(Kind::Float, 1) }, "21.3"),
            (Coding { scale: 0.1, signed: true, ..coding(Kind::Float, 1) }, "-4.5"),
            (coding(Kind::Float, 2), "-0.25"),
            (coding(Kind::Float, 4), "12345.678901"),
            (Coding { scale: 10.0, ..coding(Kind::Int, 1) }, "250"),
            (Coding { signed: true, ..coding(Kind::Int, 4) }, "-9223372036854775808"),
            (coding(Kind::Boolean, 1), "true"),
            (coding(Kind::Text, 4), "eco"),
        ] {
            assert_eq!(coding.decode(&coding.encode(text).unwrap()).unwrap(), text, "{coding:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (coding, text) in [
            (coding(Kind::Int, 1), "65536"),
            (coding(Kind::Int, 1), "-1"),
            (coding(Kind::Int, 1), "1.5"),
            (coding(Kind::Float, 2), "warm"),
            (coding(Kind::Float, 2), "inf"),
            (coding(Kind::Boolean, 1), "yes"),
            (coding(Kind::Text, 1), "long"),
        ] {
            assert!(coding.encode(text).is_err(), "{coding:?} {text}");
        }
        assert!(coding(Kind::Float, 2).decode(&[0x7fc0, 0]).is_err(), "not a number");
        assert!(coding(Kind::Int, 2).decode(&[1]).is_err(), "too few");
    }
}
