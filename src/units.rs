//! Sizes and durations: parsing and printing them; numbers of processors.
//!
//! A size is written with its unit (`512M`, `4GiB`, `1.5G`): powers of 1024 throughout, as bhyve, ZFS and the kernels
//! count. A bare number is refused, because tools disagree about what it means, and so are `MB` and `GB`, which are
//! powers of 1000 to some readers. A duration is written as `90s`, `10m`, `1h30m`, `250ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

/// Numbers of virtual processors: from the guest file to CPUID, each the same on every engine. All are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores per package.
    pub cores: u32,
    /// Threads per core.
    pub threads: u32,
}

impl Topology {
    /// One processor.
    pub const ONE: Topology = Topology { sockets: 1, cores: 1, threads: 1 };

    /// Returns the number of virtual processors.
    pub const fn count(self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

/// A number of bytes. Prints as the largest unit that is exact; serialises as an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Creates a size of this many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }
    /// Creates a size of this many KiB.
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib << 10)
    }
    /// Creates a size of this many MiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    /// Creates a size of this many GiB.
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib << 30)
    }
    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
    /// Returns the size in whole MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

/// The units of a size and the power of two that each stands for.
const SIZE_UNITS: [(&str, u32); 11] = [
    ("B", 0),
    ("K", 10),
    ("KiB", 10),
    ("M", 20),
    ("MiB", 20),
    ("G", 30),
    ("GiB", 30),
    ("T", 40),
    ("TiB", 40),
    ("P", 50),
    ("PiB", 50),
];

/// Error of a size or a duration that could not be read, with what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnitError {
    /// The problem, with the offending text in backticks.
    pub message: String,
    /// A replacement, if one is known.
    pub hint: Option<String>,
}

impl UnitError {
    fn new(message: String, hint: impl Into<String>) -> Self {
        Self { message, hint: Some(hint.into()) }
    }
}

/// Splits `1.5G` into its digits and its unit.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        let (number, unit) = split_number(trimmed);
        if number.is_empty() {
            return Err(UnitError::new(format!("`{text}` is not a size"), "a number with its unit, like `512M` or `4GiB`"));
        }
        if unit.is_empty() {
            return Err(UnitError::new(
                format!("size `{text}` has no unit"),
                format!("write `{number}M` for MiB, or `{number}G` for GiB"),
            ));
        }
        let Some((_, shift)) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            let hint = match unit.to_ascii_uppercase().as_str() {
                short @ ("KB" | "MB" | "GB" | "TB" | "PB") => {
                    format!("write `{number}{0}` or `{number}{0}iB` (powers of 1024)", &short[..1])
                }
                _ => "units are B, K, M, G, T and P, or KiB, MiB, GiB, TiB and PiB".into(),
            };
            return Err(UnitError::new(format!("`{unit}` is not a unit of size in `{text}`"), hint));
        };
        let digits = number.replace('_', "");
        let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
        let bad = || UnitError::new(format!("`{text}` is not a size"), "a number with its unit, like `512M` or `4GiB`");
        let whole_value: u128 = whole.parse().map_err(|_| bad())?;
        let mut bytes = whole_value.checked_shl(*shift).filter(|v| v >> shift == whole_value).unwrap_or(u128::MAX);
        if digits.contains('.') {
            if fraction.is_empty() || fraction.len() > 12 {
                return Err(bad());
            }
            let scaled = fraction.parse::<u128>().map_err(|_| bad())? << shift;
            let divisor = 10u128.pow(fraction.len() as u32);
            if scaled % divisor != 0 {
                return Err(UnitError::new(format!("size `{text}` is not a whole number of bytes"), "use a smaller unit"));
            }
            bytes = bytes.saturating_add(scaled / divisor);
        }
        match u64::try_from(bytes) {
            Ok(value) => Ok(Self(value)),
            Err(_) => Err(UnitError { message: format!("size `{text}` is larger than 16 EiB"), hint: None }),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
            .into_iter()
            .find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift)
            .unwrap_or(("B", 0));
        f.pad(&format!("{}{unit}", self.0 >> shift))
    }
}

/// Returns a size for users, with at most one digit after the point.
pub fn size_words(bytes: u64) -> String {
    let exact = ByteSize::from_bytes(bytes).to_string();
    if exact.len() <= 7 && exact.ends_with("iB") {
        return exact;
    }
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        // What would be rounded up to 1024 of a unit is 1 of the next.
        if bytes >= (1 << shift) - (1 << shift) / 20480 {
            return format!("{:.1}{unit}", bytes as f64 / f64::from(2f32.powi(shift)));
        }
    }
    exact
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// Parses a duration: one or more numbers with units `ms`, `s`, `m`, `h`, `d`, as in `90s` or `1h30m`. `0s` is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let example = "a number with its unit, like `90s`, `10m` or `1h30m`";
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(UnitError::new(format!("`{text}` is not a duration"), example));
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let count: u64 = number.parse().map_err(|_| UnitError::new(format!("`{text}` is not a duration"), example))?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit_ms: u64 = match &after[..unit_end] {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => {
                return Err(UnitError::new(
                    format!("duration `{text}` has no unit"),
                    format!("write `{number}s` for seconds, or `{number}m` for minutes"),
                ));
            }
            unit => {
                return Err(UnitError::new(format!("`{unit}` is not a unit of time in `{text}`"), "units are ms, s, m, h and d"));
            }
        };
        total_ms = count
            .checked_mul(unit_ms)
            .and_then(|ms| total_ms.checked_add(ms))
            .filter(|ms| *ms <= 3650 * 86_400_000)
            .ok_or_else(|| UnitError { message: format!("duration `{text}` is longer than ten years"), hint: None })?;
        rest = after[unit_end..].trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

/// Prints a duration in the form that [`parse_duration`] reads: `1h30m`, `90s` as `1m30s`, `250ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if ms >= unit_ms {
            text.push_str(&format!("{}{unit}", ms / unit_ms));
            ms %= unit_ms;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// Serialises a duration as a number of seconds, for `#[serde(serialize_with)]`.
pub fn serialize_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, UnitError> {
        text.parse::<ByteSize>().map(ByteSize::bytes)
    }

    #[test]
    fn sizes_are_short_for_people() {
        for (bytes, words) in [
            (0, "0B"),
            (1000, "1000B"),
            (1 << 30, "1GiB"),
            (1_500_000_000, "1.4GiB"),
            (5 << 20, "5MiB"),
            (123_456, "120.6KiB"),
            ((1 << 30) - 1, "1.0GiB"),
            ((1 << 30) - (1 << 20), "1023MiB"),
            (900 << 20 | 1, "900.0MiB"),
        ] {
            assert_eq!(size_words(bytes), words);
        }
    }

    #[test]
    fn sizes_are_powers_of_1024_with_or_without_the_i() {
        assert_eq!(size("512M").unwrap(), 512 << 20);
        assert_eq!(size("512MiB").unwrap(), 512 << 20);
        assert_eq!(size("4 gib").unwrap(), 4 << 30);
        assert_eq!(size("1.5G").unwrap(), 3 << 29);
        assert_eq!(size("0B").unwrap(), 0);
    }

    #[test]
    fn a_bare_number_is_refused_with_what_to_write() {
        let error = size("512").unwrap_err();
        assert_eq!(error.message, "size `512` has no unit");
        assert_eq!(error.hint.unwrap(), "write `512M` for MiB, or `512G` for GiB");
    }

    #[test]
    fn decimal_units_overflow_and_nonsense_are_refused() {
        assert!(size("1GB").unwrap_err().hint.unwrap().contains("`1G` or `1GiB`"));
        assert!(size("99999999P").unwrap_err().message.contains("larger"));
        assert!(size("340282366920938463463374607431768211455P").is_err());
        for text in ["", "M", "-1M", "1.M", "1..5M", "1.3B", "1x", "1e3M", "_M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_prints_in_its_largest_exact_unit() {
        for text in ["512MiB", "4GiB", "1536MiB", "0B", "513B", "2TiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn durations_read_back_as_printed() {
        for (text, ms) in [("90s", 90_000), ("1h30m", 5_400_000), ("250ms", 250), ("0s", 0), ("2d", 172_800_000)] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.as_millis(), ms);
            assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }
        for text in ["", "90", "s", "1.5h", "-1s", "1y", "99999999999999999999s", "9999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
