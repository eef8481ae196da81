//! A range of user numbers that nobody else has, for processes that give up being root.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The first and the last user number of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// The last, not below the first.
    pub last: u32,
}

/// Below are users of the system.
const LOWEST: u32 = 1000;
/// Kernels and programs have trouble with numbers beyond (the same document).
const HIGHEST: u32 = i32::MAX as u32;

impl Default for UidRange {
    /// Out of the numbers that systemd's docs/UIDS-GIDS.md lists as unused, 1879048192 to 2147483647.
    fn default() -> UidRange {
        UidRange { first: 1_900_000_000, last: 1_999_999_999 }
    }
}

impl UidRange {
    /// How many there are.
    pub fn count(self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    /// Whether `uid` is one of them.
    pub fn contains(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// Those that are left, from one on that `word` chooses.
    pub fn from(self, word: u64) -> impl Iterator<Item = u32> {
        let (count, start) = (self.count(), word % self.count());
        (0..count).map(move |step| self.first + ((start + step) % count) as u32)
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<UidRange, String> {
        let ends = text.split_once('-').and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
        let Some((first, last)) = ends else { return Err(format!("`{text}` is not a range of user numbers")) };
        match (LOWEST..=HIGHEST).contains(&first) && (first..=HIGHEST).contains(&last) {
            true => Ok(UidRange { first, last }),
            false => Err(format!("`{text}` is not a range between {LOWEST} and {HIGHEST}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_users_is_two_numbers_above_the_systems_own() {
        let range: UidRange = "2000-2003".parse().expect("a range");
        assert_eq!((range.first, range.last, range.count(), range.to_string()), (2000, 2003, 4, "2000-2003".into()));
        assert_eq!("3000 - 3000".parse::<UidRange>().expect("a range").count(), 1);
        for wrong in ["", "2000", "2003-2000", "0-5000", "999-5000", "2000-4294967295", "-1-5", "a-b", "2000-2003-2005"] {
            assert!(wrong.parse::<UidRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_number_of_a_range_comes_once_from_any_start() {
        let range: UidRange = "2000-2003".parse().expect("a range");
        assert_eq!(range.from(6).collect::<Vec<_>>(), [2002, 2003, 2000, 2001]);
        let whole = UidRange { first: LOWEST, last: HIGHEST };
        assert_eq!(whole.from(u64::MAX).take(2).count(), 2);
        assert!(UidRange::default().contains(1_900_000_000) && !UidRange::default().contains(2_000_000_000));
    }
}
