//! Kubernetes quantities (`100m`, `10Mi`, `1e3`): exact fixed-point numbers with a suffix family.

use std::cmp::Ordering;
use std::fmt;

/// What Go says of a string that is no quantity.
pub const SYNTAX: &str = "quantities must match the regular expression \
    '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// The suffix family a quantity was written with and is written with again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

/// A quantity, kept in units of 10^-9; magnitudes above 2^63-1 are capped there, finer digits are rounded up, as
/// Kubernetes does.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const LIMIT: i128 = i64::MAX as i128 * NANO;

impl Quantity {
    /// Parses a quantity; `None` when it does not follow the grammar.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let (base, exponent, format) = suffix_of(suffix)?;
        let magnitude = magnitude(whole, fraction, base, exponent);
        Some(Self { nano: if negative { -magnitude } else { magnitude }, format })
    }

    /// Zero.
    pub const ZERO: Self = Self { nano: 0, format: Format::Decimal };

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is above zero.
    pub fn is_positive(self) -> bool {
        self.nano > 0
    }

    /// Whether it is a whole number.
    pub fn is_integer(self) -> bool {
        self.nano % NANO == 0
    }

    /// The sum, in the family of `self` unless `self` is zero.
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: (self.nano + other.nano).clamp(-LIMIT, LIMIT), format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.nano.partial_cmp(&other.nano)
    }
}

/// The canonical form: no fraction, the largest suffix that loses nothing.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        if self.format == Format::Binary && !small && self.is_integer() {
            let mut number = self.nano / NANO;
            let mut step = 0;
            while number % 1024 == 0 && step + 1 < BINARY.len() {
                number /= 1024;
                step += 1;
            }
            return write!(f, "{number}{}", BINARY[step]);
        }
        let mut number = self.nano;
        let mut exponent: i32 = -9;
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::Exponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let step = usize::try_from((exponent + 9) / 3).unwrap_or_default();
        write!(f, "{number}{}", DECIMAL[step])
    }
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// Base, exponent and family of a suffix.
fn suffix_of(suffix: &str) -> Option<(u32, i32, Format)> {
    if let Some(step) = BINARY.iter().position(|s| *s == suffix)
        && step > 0
    {
        return Some((2, 10 * i32::try_from(step).ok()?, Format::Binary));
    }
    if let Some(step) = DECIMAL.iter().position(|s| *s == suffix) {
        return Some((10, 3 * i32::try_from(step).ok()? - 9, Format::Decimal));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
    let bare = exponent.strip_prefix('-').unwrap_or(exponent);
    if bare.is_empty() || !bare.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((10, exponent.parse().ok()?, Format::Exponent))
}

/// `whole.fraction * base^exponent` in units of 10^-9, capped at [`LIMIT`], rounded up.
fn magnitude(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let whole = whole.trim_start_matches('0');
    if whole.is_empty() && fraction.is_empty() {
        return 0;
    }
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let digit = i128::from(digit - b'0');
        match mantissa.checked_mul(10).and_then(|m| m.checked_add(digit)) {
            Some(next) => mantissa = next,
            // More than 38 digits: too large, or finer than what is kept.
            None => return if whole.len() > 19 { LIMIT } else { short(whole, fraction, base, exponent) },
        }
    }
    let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let mut decimal = 9_i32.saturating_sub(places);
    if base == 10 {
        decimal = decimal.saturating_add(exponent);
    } else {
        // Binary suffixes are never negative.
        match mantissa.checked_mul(1_i128 << exponent.clamp(0, 60)) {
            Some(scaled) => mantissa = scaled,
            None => return LIMIT,
        }
    }
    for _ in 0..decimal.clamp(0, 64) {
        match mantissa.checked_mul(10) {
            Some(next) if next <= LIMIT => mantissa = next,
            _ => return LIMIT,
        }
    }
    for _ in 0..decimal.saturating_neg().clamp(0, 64) {
        // Rounding up digit by digit equals rounding up once.
        mantissa = mantissa / 10 + i128::from(mantissa % 10 != 0);
    }
    mantissa.min(LIMIT)
}

/// The same with a fraction cut to what can matter: 20 digits, the last one raised for what was cut.
fn short(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let kept = &fraction[..fraction.len().min(18)];
    magnitude(whole, &format!("{kept}1"), base, exponent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).map_or_else(|| "invalid".to_owned(), |q| q.to_string())
    }

    #[test]
    fn canonical_form_is_that_of_kubernetes() {
        for (given, expected) in [
            ("100m", "100m"),
            ("10Mi", "10Mi"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1500", "1500"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("1E6", "1e6"),
            ("12e-1", "1200e-3"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("-5", "-5"),
            ("+.5", "500m"),
            ("5.", "5"),
            ("0", "0"),
            ("0Mi", "0"),
            ("1u", "1u"),
            ("0.0000000001", "1n"),
            ("9999999999999999999999", "9223372036854775807"),
            ("10Ei", "9223372036854775807"),
        ] {
            assert_eq!(canonical(given), expected, "of {given}");
        }
        for bad in ["", ".", "1.2.3", "a", "1x", "1mm", "1ki", "--1", "1e", "1e1.5", "0x10", " "] {
            assert_eq!(canonical(bad), "invalid", "of {bad:?}");
        }
    }

    /// Number and suffix of most quantities that parse.
    const WRITTEN: &str = "[+-]?[0-9]{0,20}(\\.[0-9]{0,12})?(n|u|m|k|M|G|T|P|E|[KMGTPE]i|e[+-]?[0-9]{1,2}|)";

    proptest! {
        #[test]
        fn canonical_form_means_the_same_and_is_a_fixed_point(text in WRITTEN) {
            if let Some(quantity) = Quantity::parse(&text) {
                let written = quantity.to_string();
                let again = Quantity::parse(&written).expect("the canonical form parses");
                prop_assert!(again == quantity, "{text} -> {written}");
                prop_assert_eq!(again.to_string(), written);
            }
        }

        #[test]
        fn any_text_is_refused_or_parsed_without_a_panic(text in "\\PC{0,60}") {
            let _ = Quantity::parse(&text);
        }
    }
}
