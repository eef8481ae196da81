//! Times in state and event files: RFC 3339, UTC, milliseconds.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns this moment.
    pub fn now() -> Timestamp {
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
    }
    /// Returns the time since then; zero for a future time.
    pub fn elapsed(self) -> Duration {
        Duration::from_millis(Timestamp::now().0.saturating_sub(self.0))
    }
}

/// Milliseconds since this host booted, including sleep. Setting the clock does not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Returns this moment.
    pub fn now() -> BootTime {
        let now = crate::host::process::time_since_boot();
        BootTime(now.as_millis() as u64)
    }
    /// Returns the time since then, in this boot of the host.
    pub fn elapsed(self) -> Duration {
        Duration::from_millis(BootTime::now().0.saturating_sub(self.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, millis) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil(days as i64);
        let seconds = millis / 1000;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            millis % 1000
        )
    }
}

/// Returns year, month and day of a day number, in the proleptic Gregorian calendar with eras of 400 years that begin
/// in March.
fn civil(days: i64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u64, day as u64)
}

impl FromStr for Timestamp {
    type Err = ();
    fn from_str(text: &str) -> Result<Timestamp, ()> {
        let number = |range: std::ops::Range<usize>| -> Result<u64, ()> { text.get(range).ok_or(())?.parse().map_err(|_| ()) };
        if text.len() != 24 || !text.ends_with('Z') {
            return Err(());
        }
        let (year, month, day) = (number(0..4)? as i64, number(5..7)? as i64, number(8..10)? as i64);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
            return Err(());
        }
        let shifted_year = if month <= 2 { year - 1 } else { year };
        let era = shifted_year.div_euclid(400);
        let year_of_era = shifted_year.rem_euclid(400);
        let month_from_march = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
        let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
        let seconds = number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
        Ok(Timestamp(days as u64 * 86_400_000 + seconds * 1000 + number(20..23)?))
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom(format!("`{text}` is no RFC 3339 time in UTC")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_as_rfc_3339() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(951_782_400_000).to_string(), "2000-02-29T00:00:00.000Z");
        assert_eq!(Timestamp(1_735_689_599_999).to_string(), "2024-12-31T23:59:59.999Z");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for millis in (0..4_000_000_000_000u64).step_by(86_399_999_977) {
            assert_eq!(Timestamp(millis).to_string().parse(), Ok(Timestamp(millis)));
        }
        assert!("2024-13-01T00:00:00.000Z".parse::<Timestamp>().is_err());
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
