//! Kubernetes quantities (`500m`, `1.5Gi`, `12e6`) with exact arithmetic.
//!
//! A value is kept as an integer of nano units. That holds everything Kubernetes allows: magnitudes up to `2^63-1`
//! (greater ones are capped there) and nine decimal places (smaller fractions are rounded away from zero).

use std::{fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use thiserror::Error;

const NANO: i128 = 1_000_000_000;
/// The greatest magnitude, in nano units.
const MAX: i128 = i64::MAX as i128 * NANO;
/// No reasonable quantity is longer; the bound keeps hostile input cheap.
const MAX_TEXT: usize = 128;

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// How a quantity was written, and so how it is written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `500m`, `3k`
    #[default]
    DecimalSi,
    /// `5Mi`
    BinarySi,
    /// `5e3`
    DecimalExponent,
}

/// An exact amount of something: cores, bytes, pods.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// A text that is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "quantity {0:?} is not valid: expected a number with an optional suffix, such as \"500m\", \"1.5Gi\" or \"2e3\""
)]
pub struct InvalidQuantity(String);

impl Quantity {
    /// Nothing, written in decimal.
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn units(units: i64) -> Self {
        Self { nano: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// A whole number of thousandths.
    pub fn milli(milli: i64) -> Self {
        Self { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// A number of bytes, written with binary suffixes; capped at `2^63-1`.
    pub fn bytes(bytes: u64) -> Self {
        Self { nano: (i128::from(bytes) * NANO).min(MAX), format: Format::BinarySi }
    }

    /// Reads the API's text form.
    pub fn from_api(quantity: &ApiQuantity) -> Result<Self, InvalidQuantity> {
        quantity.0.parse()
    }

    /// The API's text form, canonical.
    pub fn to_api(self) -> ApiQuantity {
        ApiQuantity(self.to_string())
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        ceil_to_i64(self.nano, NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        ceil_to_i64(self.nano, NANO / 1000)
    }

    /// Whether it is exactly nothing.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// The sum, capped at the greatest quantity; written like `self`.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nano: (self.nano + other.nano).clamp(-MAX, MAX), format: self.format }
    }

    /// The difference, capped at the smallest quantity; written like `self`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nano: (self.nano - other.nano).clamp(-MAX, MAX), format: self.format }
    }
}

/// Equality is of the amount, not of how it is written.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}

fn ceil_to_i64(nano: i128, unit: i128) -> i64 {
    let floor = nano.div_euclid(unit);
    let ceil = if nano.rem_euclid(unit) == 0 { floor } else { floor + 1 };
    i64::try_from(ceil).unwrap_or(if ceil < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidQuantity(text.chars().take(MAX_TEXT).collect()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let (scale, format) = parse_suffix(suffix)?;
    let digits = |text: &str| text.bytes().map(|digit| digit - b'0').collect::<Vec<u8>>();
    let nano = scaled(&digits(whole), &digits(fraction), scale);
    Some(Quantity { nano: if negative { -nano } else { nano }, format })
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn parse_suffix(suffix: &str) -> Option<(Scale, Format)> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((Scale::Two(*power), Format::BinarySi));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Scale::Ten(*power), Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // An exponent out of range can only mean "capped" or "rounded to the smallest", as a great one within it does.
    let power = exponent.parse::<i32>().ok()?;
    Some((Scale::Ten(power.clamp(-1000, 1000)), Format::DecimalExponent))
}

/// The digits before and after the point, times the scale: in nano units, rounded up, capped.
fn scaled(whole: &[u8], fraction: &[u8], scale: Scale) -> i128 {
    match scale {
        // A power of ten moves the point; what is behind it then is less than a nano and only rounds up.
        Scale::Ten(power) => {
            let digits = || whole.iter().chain(fraction);
            let point = whole.len() as i64 + i64::from(power) + 9;
            let mut nano: i128 = 0;
            let mut beyond = false;
            for (place, digit) in digits().enumerate() {
                if (place as i64) < point {
                    nano = nano.saturating_mul(10).saturating_add(i128::from(*digit)).min(MAX);
                } else {
                    beyond |= *digit != 0;
                }
            }
            for _ in (whole.len() + fraction.len()) as i64..point {
                if nano == 0 || nano == MAX {
                    break;
                }
                nano = nano.saturating_mul(10).min(MAX);
            }
            (nano + i128::from(beyond)).min(MAX)
        }
        Scale::Two(power) => {
            let unit = NANO << power;
            let whole = whole.iter().fold(0_i128, |value, digit| (value * 10 + i128::from(*digit)).min(MAX));
            // Long division from the last decimal on; floor((d + floor(x)) / 10) is floor((d + x) / 10): exact.
            let mut rest: i128 = 0;
            let mut beyond = false;
            for digit in fraction.iter().rev() {
                let sum = i128::from(*digit) * unit + rest;
                rest = sum / 10;
                beyond |= sum % 10 != 0;
            }
            whole.saturating_mul(unit).saturating_add(rest + i128::from(beyond)).min(MAX)
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.nano / NANO;
        // Binary suffixes need a whole number, and below 1024 they would only mislead.
        if self.format == Format::BinarySi && self.nano % NANO == 0 && whole.abs() >= 1024 {
            let mut mantissa = whole;
            let mut suffix = "";
            for (name, _) in BINARY {
                if mantissa % 1024 != 0 {
                    break;
                }
                mantissa /= 1024;
                suffix = name;
            }
            return write!(f, "{mantissa}{suffix}");
        }
        let mut mantissa = self.nano;
        let mut index = 0;
        while mantissa != 0 && mantissa % 1000 == 0 && index + 1 < DECIMAL.len() {
            mantissa /= 1000;
            index += 1;
        }
        let (suffix, power) = if mantissa == 0 { ("", 0) } else { DECIMAL[index] };
        match self.format {
            Format::DecimalExponent if power != 0 => write!(f, "{mantissa}e{power}"),
            Format::DecimalExponent => write!(f, "{mantissa}"),
            _ => write!(f, "{mantissa}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn quantities_are_read_and_written_as_kubernetes_does() {
        for (text, canonical, milli) in [
            ("0", "0", 0),
            ("0Mi", "0", 0),
            ("500m", "500m", 500),
            ("0.5", "500m", 500),
            ("1.5", "1500m", 1500),
            ("1.5Gi", "1536Mi", 1_610_612_736_000),
            ("0.5Mi", "512Ki", 524_288_000),
            ("1024Ki", "1Mi", 1_048_576_000),
            ("1000Ki", "1000Ki", 1_024_000_000),
            ("512", "512", 512_000),
            ("0.1Ki", "102400m", 102_400),
            ("1000k", "1M", 1_000_000_000),
            ("12e6", "12e6", 12_000_000_000),
            ("1E3", "1e3", 1_000_000),
            ("1E", "1E", i64::MAX),
            (".5", "500m", 500),
            ("5.", "5", 5000),
            ("+1", "1", 1000),
            ("-1.5", "-1500m", -1500),
            ("1n", "1n", 1),
            ("0.1n", "1n", 1),
            ("100e-2", "1", 1000),
        ] {
            assert_eq!(q(text).to_string(), canonical, "{text}");
            assert_eq!(q(text).milli_value(), milli, "{text}");
        }
    }

    #[test]
    fn what_is_too_great_is_capped_and_what_is_too_small_rounds_up() {
        assert_eq!(q("100E").value(), i64::MAX);
        assert_eq!(q("9Ei").value(), i64::MAX);
        assert_eq!(q("-100E").value(), -i64::MAX);
        assert_eq!(q("1e999").value(), i64::MAX);
        assert_eq!(q("1e-999"), q("1n"));
        assert_eq!(q("0.00000000001Ki"), q("11n"));
        assert_eq!(q("7.99999999999999999999999999999999Ei").value(), i64::MAX);
        assert_eq!(q("1.000000000000000000000000000000000000000001").to_string(), "1000000001n");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "-", ".", "1.1.1", "1K", "1ki", "1 Gi", "1e", "1e+", "Gi", "0x10", "1e1.5", "--1", "1mm", "١"]
        {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
        assert!("1".repeat(129).parse::<Quantity>().is_err());
    }

    fn any_text() -> impl Strategy<Value = String> {
        let suffix = prop::sample::select(vec![
            "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "e-3", "E6",
        ]);
        (any::<bool>(), 0_u64..10_000_000, prop::option::of("[0-9]{1,12}"), suffix).prop_map(
            |(negative, whole, fraction, suffix)| {
                let sign = if negative { "-" } else { "" };
                let fraction = fraction.map(|digits| format!(".{digits}")).unwrap_or_default();
                format!("{sign}{whole}{fraction}{suffix}")
            },
        )
    }

    proptest! {
        #[test]
        fn writing_and_reading_again_keeps_the_amount(text in any_text()) {
            let first = q(&text);
            let again = q(&first.to_string());
            prop_assert_eq!(first, again);
            prop_assert_eq!(first.to_string(), again.to_string());
        }

        #[test]
        fn a_canonical_text_has_no_point_and_the_greatest_suffix(text in any_text()) {
            let written = q(&text).to_string();
            prop_assert!(!written.contains('.'));
            let digits: String = written.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
            let suffix = &written[digits.len()..];
            if digits != "0" && BINARY.iter().any(|(name, _)| *name == suffix) && suffix != "Ei" {
                prop_assert!(digits.parse::<i128>().unwrap() % 1024 != 0);
            }
            if digits != "0" && DECIMAL.iter().any(|(name, _)| *name == suffix) && suffix != "E" && !suffix.is_empty() {
                prop_assert!(digits.parse::<i128>().unwrap() % 1000 != 0);
            }
        }

        #[test]
        fn whole_numbers_are_exact(value in any::<i64>(), milli in any::<i32>()) {
            let value = value.max(-i64::MAX);
            prop_assert_eq!(Quantity::units(value).value(), value);
            prop_assert_eq!(q(&value.to_string()).value(), value);
            prop_assert_eq!(q(&format!("{milli}m")).milli_value(), i64::from(milli));
        }

        #[test]
        fn order_is_that_of_the_amounts(a in any::<i32>(), b in any::<i32>()) {
            prop_assert_eq!(q(&format!("{a}Ki")).cmp(&q(&format!("{b}Ki"))), a.cmp(&b));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,140}") {
            let _ = text.parse::<Quantity>().map(|quantity| (quantity.to_string(), quantity.milli_value()));
        }
    }
}
