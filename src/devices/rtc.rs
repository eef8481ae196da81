//! MC146818 real-time clock with 128 bytes of CMOS memory: Motorola MC146818A datasheet (1984).
//!
//! | region | offset | what |
//! |---|---|---|
//! | 0 | 0 | index of the byte (bit 7 is the PC's NMI mask, kept and without effect) |
//! | 0 | 1 | the byte: 0x00 to 0x09 time and alarm, 0x0a to 0x0d registers A to D, then memory; 0x32 is the century |
//!
//! The clock runs in UTC. It is the host's clock plus the offset that the guest set. While SET stops it, the ten time
//! bytes are memory. The flags of register C are updated when it is read or an interrupt is due.
//!
//! **Not modelled**: the square-wave output, daylight saving, other time bases than 32,768 Hz, the divider's reset (a
//! set time begins at the host's fraction of a second).
//!
//! **Hostile guest**: seconds that passed since the last check are searched for the alarm, at most those of a day.
//!
//! **Saved state**: all bytes, the offset and the flags. A reset clears all of it, as for a new machine, the memory
//! included.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::clock::Clock;
use crate::hypervisor::irq::IrqLine;
use crate::hypervisor::state::{Section, StateError};

const KIND: &str = "mc146818";
const VERSION: u32 = 1;
const NS_PER_S: u64 = 1_000_000_000;
/// UIP rises this long before an update.
const UIP_NS: u64 = 244_000;

const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
const DAY_OF_WEEK: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const CENTURY: usize = 0x32;
const A: usize = 0x0a;
const B: usize = 0x0b;
const C: usize = 0x0c;
const D: usize = 0x0d;
const A_UIP: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;
const D_VRT: u8 = 0x80;
const PM: u8 = 0x80;
/// Divider for 32,768 Hz in bits 6:4, rate 1024 Hz in bits 3:0.
const A_POWER_ON: u8 = 0x26;

/// A date and time in the civil calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Civil {
    /// Converts days to a date in the proleptic Gregorian calendar. It counts years from March so that leap days come
    /// last.
    fn from_unix(seconds: i64) -> Civil {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = (march_month + 2) % 12 + 1;
        Civil {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * 86_400 + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    index: u8,
    bytes: Vec<u8>,
    /// Seconds by which the guest's clock is ahead of the host's.
    offset_s: i64,
    /// The last second of the guest's clock that was checked.
    second: i64,
    /// The last period of the periodic interrupt that was checked.
    period: u64,
}

/// The clock and its memory.
pub struct Rtc {
    regs: Regs,
    power_on_cmos: Vec<(u8, u8)>,
    clock: Arc<dyn Clock>,
    line: IrqLine,
}

impl Rtc {
    /// Creates a clock that shows the host's time in UTC and drives its interrupts on `line`.
    pub fn new(clock: Arc<dyn Clock>, line: IrqLine) -> Rtc {
        let regs = Regs { index: 0, bytes: vec![0; 128], offset_s: 0, second: 0, period: 0 };
        let mut rtc = Rtc { regs, power_on_cmos: vec![], clock, line };
        rtc.reset();
        rtc
    }

    /// Sets bytes of CMOS memory (0x0e to 0x7f except the century) as the board's set-up program would. They are kept
    /// over a reset.
    pub fn set_cmos(&mut self, bytes: &[(u8, u8)]) {
        let memory = |index: u8| (0x0e..0x80).contains(&index) && usize::from(index) != CENTURY;
        self.power_on_cmos.extend(bytes.iter().copied().filter(|&(index, _)| memory(index)));
        for &(index, value) in &self.power_on_cmos {
            self.regs.bytes[usize::from(index)] = value;
        }
    }

    fn b(&self) -> u8 {
        self.regs.bytes[B]
    }

    fn is_stopped(&self) -> bool {
        self.b() & B_SET != 0
    }

    fn second_now(&self) -> i64 {
        ((self.clock.unix_ns() / NS_PER_S) as i64).saturating_add(self.regs.offset_s)
    }

    /// Returns the period of the periodic interrupt, if one is selected.
    fn period_ns(&self) -> Option<u64> {
        let rate = match self.regs.bytes[A] & 0x0f {
            0 => return None,
            rate @ (1 | 2) => rate + 7,
            rate => rate,
        };
        Some((NS_PER_S << (rate - 1)) / 32_768)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b() & B_BINARY != 0 { value } else { value / 10 % 10 << 4 | value % 10 }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b() & B_BINARY != 0 { value } else { (value >> 4).min(9) * 10 + (value & 0xf).min(9) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b() & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b() & B_24_HOURS != 0 {
            return self.decode(value).min(23);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }

    /// Writes the time to the time bytes, as the chip's update cycle does.
    fn show(&mut self, second: i64) {
        let civil = Civil::from_unix(second);
        let day_of_week = (second.div_euclid(86_400) + 4).rem_euclid(7) as u8 + 1;
        let shown = [
            (SECONDS, self.encode(civil.second)),
            (MINUTES, self.encode(civil.minute)),
            (HOURS, self.encode_hour(civil.hour)),
            (DAY_OF_WEEK, self.encode(day_of_week)),
            (DAY, self.encode(civil.day)),
            (MONTH, self.encode(civil.month)),
            (YEAR, self.encode(civil.year.rem_euclid(100) as u8)),
            (CENTURY, self.encode((civil.year.div_euclid(100)).rem_euclid(100) as u8)),
        ];
        for (index, value) in shown {
            self.regs.bytes[index] = value;
        }
    }

    /// Sets the clock to the time in the time bytes.
    fn adopt(&mut self) {
        let byte = |index: usize| self.decode(self.regs.bytes[index]);
        let civil = Civil {
            year: i64::from(byte(CENTURY)) * 100 + i64::from(byte(YEAR)),
            month: byte(MONTH),
            day: byte(DAY).clamp(1, 31),
            hour: self.decode_hour(self.regs.bytes[HOURS]),
            minute: byte(MINUTES).min(59),
            second: byte(SECONDS).min(59),
        };
        let host = (self.clock.unix_ns() / NS_PER_S) as i64;
        self.regs.offset_s = civil.to_unix() - host;
        self.regs.second = civil.to_unix();
    }

    fn alarm_matches(&self, second: i64) -> bool {
        let civil = Civil::from_unix(second);
        let hour = self.encode_hour(civil.hour);
        let times = [(SECONDS_ALARM, self.encode(civil.second)), (MINUTES_ALARM, self.encode(civil.minute)), (HOURS_ALARM, hour)];
        // A byte from 0xc0 matches anything.
        times.iter().all(|&(index, now)| self.regs.bytes[index] >= 0xc0 || self.regs.bytes[index] == now)
    }

    /// Flags the events since the last check.
    fn catch_up(&mut self) {
        let mut flags = 0;
        if let Some(period_ns) = self.period_ns() {
            let period = self.clock.unix_ns() / period_ns;
            if period != self.regs.period {
                self.regs.period = period;
                flags |= C_PF;
            }
        }
        let second = self.second_now();
        if second != self.regs.second && !self.is_stopped() {
            flags |= C_UF;
            // A host clock that was set back passes through no second.
            let first = (self.regs.second + 1).max(second - 86_399);
            if self.regs.bytes[C] & C_AF == 0 && (first..=second).any(|s| self.alarm_matches(s)) {
                flags |= C_AF;
            }
            self.regs.second = second;
        }
        self.regs.bytes[C] |= flags;
        self.update_irqf();
    }

    fn update_irqf(&mut self) {
        // PF, AF and UF have the positions of PIE, AIE and UIE.
        let asked = self.regs.bytes[C] & self.b() & (C_PF | C_AF | C_UF) != 0;
        self.regs.bytes[C] = self.regs.bytes[C] & !C_IRQF | if asked { C_IRQF } else { 0 };
        self.line.set(asked);
    }

    fn read_byte(&mut self) -> u8 {
        let index = usize::from(self.regs.index & 0x7f);
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY if !self.is_stopped() => self.show(self.second_now()),
            A => {
                let left = NS_PER_S - self.clock.unix_ns() % NS_PER_S;
                let updating = !self.is_stopped() && left <= UIP_NS;
                return self.regs.bytes[A] | if updating { A_UIP } else { 0 };
            }
            C => {
                self.catch_up();
                let flags = std::mem::take(&mut self.regs.bytes[C]);
                self.update_irqf();
                return flags;
            }
            _ => {}
        }
        self.regs.bytes[index]
    }

    fn write_byte(&mut self, value: u8) {
        let index = usize::from(self.regs.index & 0x7f);
        self.catch_up();
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => {
                if self.is_stopped() {
                    self.regs.bytes[index] = value;
                } else {
                    self.show(self.second_now());
                    self.regs.bytes[index] = value;
                    self.adopt();
                }
            }
            A => {
                self.regs.bytes[A] = value & !A_UIP;
                if let Some(period_ns) = self.period_ns() {
                    self.regs.period = self.clock.unix_ns() / period_ns;
                }
            }
            B => self.write_b(value),
            C | D => {}
            _ => self.regs.bytes[index] = value,
        }
    }

    fn write_b(&mut self, value: u8) {
        let was_stopped = self.is_stopped();
        if !was_stopped && value & B_SET != 0 {
            self.show(self.second_now());
        }
        // Setting SET clears UIE (datasheet, register B).
        self.regs.bytes[B] = if value & B_SET != 0 { value & !B_UIE } else { value };
        if was_stopped && !self.is_stopped() {
            self.adopt();
        }
        self.update_irqf();
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        let value = match (access.region, access.offset) {
            (0, 1) => self.read_byte(),
            _ => 0xff,
        };
        u64::MAX << 8 | u64::from(value)
    }

    fn write(&mut self, access: Access, value: u64) {
        match (access.region, access.offset) {
            (0, 0) => self.regs.index = value as u8,
            (0, 1) => self.write_byte(value as u8),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.regs = Regs { index: 0, bytes: vec![0; 128], offset_s: 0, second: 0, period: 0 };
        self.regs.bytes[A] = A_POWER_ON;
        self.regs.bytes[B] = B_24_HOURS;
        self.regs.bytes[D] = D_VRT;
        for &(index, value) in &self.power_on_cmos {
            self.regs.bytes[usize::from(index)] = value;
        }
        self.regs.second = self.second_now();
        if let Some(period_ns) = self.period_ns() {
            self.regs.period = self.clock.unix_ns() / period_ns;
        }
        self.line.lower();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        // In binary mode century and year can be up to 255 each: the clock can be set to the year 25,755.
        let far = 1_000_000_000_000;
        let possible = regs.bytes.len() == 128
            && regs.bytes[D] == D_VRT
            && regs.bytes[A] & A_UIP == 0
            && (-far..far).contains(&regs.offset_s)
            && (-far..far).contains(&regs.second);
        if !possible {
            return Err(StateError::Damaged { kind: KIND, why: "a byte or the time has an impossible value".into() });
        }
        self.regs = regs;
        self.line.restore(self.regs.bytes[C] & C_IRQF != 0);
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        let enabled = self.b() & (B_PIE | B_AIE | B_UIE) & !self.regs.bytes[C];
        let unix_ns = self.clock.unix_ns();
        let mut due_in = None;
        if enabled & B_PIE != 0
            && let Some(period_ns) = self.period_ns()
        {
            due_in = Some(self.regs.period.saturating_add(1).saturating_mul(period_ns).saturating_sub(unix_ns));
        }
        if enabled & (B_AIE | B_UIE) != 0 && !self.is_stopped() {
            let next = u64::try_from(self.regs.second.saturating_add(1).saturating_sub(self.regs.offset_s)).unwrap_or(0);
            let left = next.saturating_mul(NS_PER_S).saturating_sub(unix_ns);
            // At most a second away, also after the host's clock was set back.
            due_in = Some(due_in.unwrap_or(u64::MAX).min(left.min(NS_PER_S)));
        }
        due_in.map(|ns| self.clock.now_ns().saturating_add(ns))
    }

    fn poll(&mut self, _now_ns: u64) {
        if self.b() & (B_PIE | B_AIE | B_UIE) != 0 {
            self.catch_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;
    use crate::hypervisor::clock::ManualClock;
    use crate::hypervisor::irq::IrqProbe;

    /// The time 2024-02-29 13:14:15 UTC.
    const LEAP_DAY: u64 = 1_709_212_455 * NS_PER_S;

    struct Rig {
        rtc: Rtc,
        clock: Arc<ManualClock>,
        irq: Arc<IrqProbe>,
    }

    fn rig() -> Rig {
        let (clock, irq) = (ManualClock::new(LEAP_DAY), IrqProbe::new());
        Rig { rtc: Rtc::new(clock.clone(), IrqLine::new(irq.clone(), 8)), clock, irq }
    }

    impl Rig {
        fn get(&mut self, index: usize) -> u8 {
            self.rtc.write(Access { region: 0, offset: 0, width: 1 }, index as u64);
            self.rtc.read(Access { region: 0, offset: 1, width: 1 }) as u8
        }
        fn set(&mut self, index: usize, value: u8) {
            self.rtc.write(Access { region: 0, offset: 0, width: 1 }, index as u64);
            self.rtc.write(Access { region: 0, offset: 1, width: 1 }, u64::from(value));
        }
        fn run_ns(&mut self, ns: u64) {
            let end = self.clock.now_ns() + ns;
            while let Some(due) = self.rtc.deadline_ns().filter(|&due| due <= end) {
                self.clock.set_ns(due);
                self.rtc.poll(due);
            }
            self.clock.set_ns(end);
        }
        fn date(&mut self) -> [u8; 8] {
            [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, DAY_OF_WEEK].map(|index| self.get(index))
        }
    }

    #[test]
    fn the_time_is_utc_in_bcd_and_24_hours() {
        let mut rig = rig();
        assert_eq!(rig.date(), [0x20, 0x24, 0x02, 0x29, 0x13, 0x14, 0x15, 5]);
        rig.clock.advance_ns(86_400 * NS_PER_S);
        assert_eq!(rig.date(), [0x20, 0x24, 0x03, 0x01, 0x13, 0x14, 0x15, 6]);
        assert_eq!(rig.get(D), 0x80);
    }

    #[test]
    fn binary_and_twelve_hours_are_chosen_by_register_b() {
        let mut rig = rig();
        rig.set(B, B_BINARY);
        assert_eq!(rig.date(), [20, 24, 2, 29, 1 | PM, 14, 15, 5]);
        rig.set(HOURS, 12);
        assert_eq!(rig.get(HOURS), 12, "midnight");
        rig.set(B, B_BINARY | B_24_HOURS);
        assert_eq!(rig.get(HOURS), 0);
    }

    #[test]
    fn a_time_that_was_set_goes_on_from_there() {
        let mut rig = rig();
        rig.set(B, B_SET | B_24_HOURS);
        for (index, value) in [(YEAR, 0x31), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x58)] {
            rig.set(index, value);
        }
        rig.clock.advance_ns(10 * NS_PER_S);
        assert_eq!(rig.get(SECONDS), 0x58, "the clock stands");
        rig.set(B, B_24_HOURS);
        rig.clock.advance_ns(3 * NS_PER_S);
        assert_eq!(rig.date()[..7], [0x20, 0x32, 0x01, 0x01, 0x00, 0x00, 0x01]);
    }

    #[test]
    fn dates_and_seconds_are_each_other_s_inverse() {
        for day in (-200_000..400_000i64).step_by(97) {
            let second = day * 86_400 + (day * 7919).rem_euclid(86_400);
            assert_eq!(Civil::from_unix(second).to_unix(), second);
        }
    }

    #[test]
    fn an_update_is_announced_and_interrupts() {
        let mut rig = rig();
        assert_eq!(rig.get(A), A_POWER_ON);
        rig.clock.advance_ns(NS_PER_S - 100_000);
        assert_eq!(rig.get(A), A_POWER_ON | A_UIP);
        rig.set(B, B_24_HOURS | B_UIE);
        rig.run_ns(NS_PER_S);
        assert!(rig.irq.level(8));
        assert_eq!(rig.get(C) & (C_IRQF | C_UF), C_IRQF | C_UF);
        assert!(!rig.irq.level(8));
        assert_eq!(rig.get(C), 0);
    }

    #[test]
    fn the_alarm_rings_once_at_its_time_and_don_t_care_bytes_match() {
        let mut rig = rig();
        for (index, value) in [(SECONDS_ALARM, 0x20), (MINUTES_ALARM, 0xff), (HOURS_ALARM, 0xc0)] {
            rig.set(index, value);
        }
        rig.set(B, B_24_HOURS | B_AIE);
        rig.run_ns(4 * NS_PER_S);
        assert!(!rig.irq.level(8));
        rig.run_ns(NS_PER_S);
        assert!(rig.irq.level(8));
        assert_eq!(rig.get(C) & C_AF, C_AF);
        rig.run_ns(59 * NS_PER_S);
        assert!(!rig.irq.level(8));
        rig.run_ns(NS_PER_S);
        assert!(rig.irq.level(8));
    }

    #[test]
    fn a_read_of_register_c_drops_the_line_and_the_next_event_raises_it_whichever_it_is() {
        let mut rig = rig();
        rig.set(A, 0x2f);
        rig.set(B, B_PIE | B_UIE | B_24_HOURS);
        rig.get(C);
        let start = rig.irq.edges(8);
        // Two periods a second, and an update with every other one. The driver is late: more has come when it reads.
        for turn in 1..=10 {
            rig.run_ns(NS_PER_S / 2);
            assert!(rig.irq.level(8), "{turn}");
            rig.clock.advance_ns(NS_PER_S / 2);
            let flags = rig.get(C);
            assert_eq!(flags & (C_IRQF | C_PF | C_UF), C_IRQF | C_PF | C_UF, "{turn}");
            assert!(!rig.irq.level(8), "{turn}: what came before the read was told by it");
            assert_eq!(rig.get(C) & C_IRQF, 0, "{turn}");
            assert_eq!(rig.irq.edges(8) - start, turn);
        }
    }

    #[test]
    fn the_periodic_interrupt_comes_at_its_rate() {
        let mut rig = rig();
        rig.set(A, 0x2f);
        rig.set(B, B_24_HOURS | B_PIE);
        let mut seen = 0;
        for _ in 0..10 {
            rig.run_ns(NS_PER_S / 2);
            seen += u32::from(rig.get(C) & C_PF != 0);
        }
        assert_eq!(seen, 10);
        assert!(rig.irq.edges(8) >= 9);
    }

    #[test]
    fn memory_holds_what_is_written_and_the_board_s_bytes_survive_a_reset() {
        let mut rig = rig();
        rig.rtc.set_cmos(&[(0x34, 0x12)]);
        rig.set(0x40, 0x77);
        assert_eq!((rig.get(0x40), rig.get(0x34)), (0x77, 0x12));
        rig.rtc.reset();
        assert_eq!((rig.get(0x40), rig.get(0x34)), (0, 0x12));
    }

    #[test]
    fn the_state_of_the_farthest_year_is_taken_back() {
        let mut rig = rig();
        rig.set(0x0b, 0x86);
        for index in [0x09, 0x32, 0x08, 0x07] {
            rig.set(index, 0xff);
        }
        rig.set(0x0b, 0x06);
        let state = rig.rtc.save();
        rig.rtc.load(&state).unwrap();
        assert_eq!(rig.rtc.save(), state);
    }

    #[test]
    fn the_clock_keeps_the_contract_of_devices() {
        conformance::check(|| rig().rtc, &[(0, 2)]);
    }

    #[test]
    fn every_index_and_value_survives() {
        let mut rig = rig();
        for index in 0..256 {
            for value in [0xff, 0, 0x99, 0x12, 0x80] {
                rig.set(index, value);
                rig.get(index);
                rig.clock.advance_ns(777_777_777);
                rig.rtc.poll(0);
                let _ = rig.rtc.deadline_ns();
            }
        }
    }
}
