//! 8254 interval timer with the PC's port 61h: Intel 8254 datasheet (order number 231164); port 61h as in the Intel
//! 82371SB (PIIX3) datasheet, section 2.5.5 (NMI status and control).
//!
//! | region | offset | what |
//! |---|---|---|
//! | 0 | 0, 1, 2 | counters of channels 0 (interrupt), 1 (refresh), 2 (speaker) |
//! | 0 | 3 | control word: latch, mode, read-back |
//! | 1 | 0 | port 61h: bit 0 gate of channel 2, 1 speaker, 4 refresh toggle, 5 output of channel 2 |
//!
//! The input clock is 1,193,182 Hz. A channel stores when its count began and computes count and output from the
//! machine's time. Only channel 0 needs a deadline, and only for its next rising edge.
//!
//! **Not modelled**: the speaker; NMI sources; a new count in mode 2 and 3 takes effect at once and not at the end of
//! the running period; hardware triggers of channels 0 and 1, whose gates are tied high.
//!
//! **Hostile guest**: interrupts of a period that was missed are merged into one, and come at most every 20 us.
//!
//! **Saved state**: the channels and port 61h.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::clock::Clock;
use crate::hypervisor::irq::IrqLine;
use crate::hypervisor::state::{Section, StateError};

const KIND: &str = "i8254";
const VERSION: u32 = 1;
const HZ: u128 = 1_193_182;
const NS_PER_S: u128 = 1_000_000_000;
const MIN_PERIOD_NS: u64 = 20_000;
/// Half of the refresh cycle that bit 4 of port 61h shows.
const REFRESH_NS: u64 = 15_085;

/// Access mode of a counter's bytes, control word bits 5:4.
const LOW: u8 = 1;
const HIGH: u8 = 2;
const BOTH: u8 = 3;
const STATUS_OUTPUT: u8 = 0x80;
const STATUS_NULL_COUNT: u8 = 0x40;

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: u8,
    /// The count as loaded: 1 to 0x10000, or to 10000 in BCD; 0 when there is none yet.
    count: u32,
    gate: bool,
    /// When the present count began. In modes 1 and 5 it is set only by a trigger.
    started_ns: Option<u64>,
    /// Ticks counted when the gate stopped the counter.
    held_ticks: u64,
    /// The low byte of a count that is being written.
    low_byte: Option<u8>,
    /// The second read of two is next, which gives the high byte.
    high_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    fn power_on(gate: bool) -> Channel {
        Channel {
            mode: 3,
            bcd: false,
            access: BOTH,
            count: 0,
            gate,
            started_ns: None,
            held_ticks: 0,
            low_byte: None,
            high_next: false,
            latched: None,
            latched_status: None,
        }
    }

    fn ticks(&self, now_ns: u64) -> Option<u64> {
        match self.started_ns {
            Some(started) => Some(self.held_ticks + ns_to_ticks(now_ns.saturating_sub(started))),
            None if self.held_ticks > 0 => Some(self.held_ticks),
            None => None,
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Returns OUT, as in figures 15 to 20 of the datasheet.
    fn output(&self, now_ns: u64) -> bool {
        let count = u64::from(self.count);
        let ticks = self.ticks(now_ns);
        match (self.mode, ticks) {
            (0, Some(ticks)) => ticks >= count,
            (0, None) => false,
            (1, Some(ticks)) => ticks >= count,
            (2, Some(ticks)) if count > 0 => !self.gate || ticks % count != count - 1,
            (3, Some(ticks)) if count > 0 => !self.gate || ticks % count < count.div_ceil(2),
            (4 | 5, Some(ticks)) => ticks != count,
            _ => true,
        }
    }

    /// Returns the value that a read of the counter gives.
    fn counter(&self, now_ns: u64) -> u16 {
        let modulus: u64 = if self.bcd { 10_000 } else { 0x1_0000 };
        let (count, ticks) = (u64::from(self.count), self.ticks(now_ns).unwrap_or(0));
        let value = match self.mode {
            _ if count == 0 => 0,
            2 => count - ticks % count,
            // Mode 3 counts down by two, twice a period.
            3 => (count - ticks * 2 % count) & !1,
            _ => (count + modulus - ticks % modulus) % modulus,
        } % modulus;
        if self.bcd { to_bcd(value as u16) } else { value as u16 }
    }

    fn load(&mut self, raw: u16, now_ns: u64) {
        let value = if self.bcd { from_bcd(raw) } else { u32::from(raw) };
        self.count = if value > 0 {
            value
        } else if self.bcd {
            10_000
        } else {
            0x1_0000
        };
        self.held_ticks = 0;
        self.started_ns = (self.gate && !self.is_triggered()).then_some(now_ns);
    }

    fn set_gate(&mut self, gate: bool, now_ns: u64) {
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        if falling && matches!(self.mode, 0 | 2 | 3 | 4) && self.started_ns.is_some() {
            self.held_ticks = self.ticks(now_ns).unwrap_or(0);
            self.started_ns = None;
        }
        self.gate = gate;
        if rising && self.count > 0 {
            // A rising gate starts modes 1, 2, 3 and 5 again and lets 0 and 4 continue.
            if !matches!(self.mode, 0 | 4) {
                self.held_ticks = 0;
            }
            self.started_ns = Some(now_ns);
        }
    }

    fn set_mode(&mut self, control: u8) {
        let mode = match control >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        };
        *self = Channel { mode, bcd: control & 1 != 0, access: control >> 4 & 3, ..Channel::power_on(self.gate) };
    }

    fn status(&self, now_ns: u64) -> u8 {
        let null = if self.count == 0 || self.low_byte.is_some() { STATUS_NULL_COUNT } else { 0 };
        let output = if self.output(now_ns) { STATUS_OUTPUT } else { 0 };
        output | null | self.access << 4 | self.mode << 1 | u8::from(self.bcd)
    }

    fn latch_count(&mut self, now_ns: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.counter(now_ns));
            self.high_next = false;
        }
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.counter(now_ns));
        let high = match self.access {
            HIGH => true,
            BOTH => {
                self.high_next = !self.high_next;
                !self.high_next
            }
            _ => false,
        };
        if high || self.access != BOTH {
            self.latched = None;
        }
        if high { (value >> 8) as u8 } else { value as u8 }
    }

    fn write(&mut self, value: u8, now_ns: u64) {
        match self.access {
            LOW => self.load(u16::from(value), now_ns),
            HIGH => self.load(u16::from(value) << 8, now_ns),
            _ => match self.low_byte.take() {
                Some(low) => self.load(u16::from(value) << 8 | u16::from(low), now_ns),
                None => {
                    self.low_byte = Some(value);
                    // The first byte stops mode 0.
                    if self.mode == 0 {
                        self.count = 0;
                        self.started_ns = None;
                        self.held_ticks = 0;
                    }
                }
            },
        }
    }

    /// Returns when OUT rises next after `after_ns`.
    fn next_edge_ns(&self, after_ns: u64) -> Option<u64> {
        let started = self.started_ns?;
        let count = u64::from(self.count);
        let counted = self.ticks(after_ns)?;
        let edge = if self.is_periodic() { (counted / count.max(1) + 1) * count } else { count + u64::from(self.mode == 4) };
        (edge > counted).then(|| started.saturating_add(ticks_to_ns(edge - self.held_ticks)))
    }

    fn is_possible(&self) -> bool {
        let largest = if self.bcd { 10_000 } else { 0x1_0000 };
        self.mode < 6 && (LOW..=BOTH).contains(&self.access) && self.count <= largest && self.held_ticks <= 1 << 62
    }
}

fn ns_to_ticks(ns: u64) -> u64 {
    (u128::from(ns) * HZ / NS_PER_S) as u64
}

/// Converts ticks to nanoseconds, rounded up, so that the ticks have been counted at the returned time.
fn ticks_to_ns(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * NS_PER_S).div_ceil(HZ)).unwrap_or(u64::MAX)
}

fn to_bcd(value: u16) -> u16 {
    value / 1000 % 10 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10
}

fn from_bcd(raw: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| value * 10 + u32::from(raw >> (4 * digit) & 0xf).min(9))
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    channels: [Channel; 3],
    speaker: bool,
    /// When channel 0's output rises next.
    edge_ns: Option<u64>,
}

impl Regs {
    fn power_on() -> Regs {
        let channels = [Channel::power_on(true), Channel::power_on(true), Channel::power_on(false)];
        Regs { channels, speaker: false, edge_ns: None }
    }
}

/// The timer and port 61h.
pub struct Pit {
    regs: Regs,
    clock: Arc<dyn Clock>,
    line: IrqLine,
}

impl Pit {
    /// Region of the four timer ports.
    pub const TIMER: u16 = 0;
    /// Region of port 61h.
    pub const PORT_61: u16 = 1;

    /// Creates a timer whose channel 0 pulses `line`.
    pub fn new(clock: Arc<dyn Clock>, line: IrqLine) -> Pit {
        Pit { regs: Regs::power_on(), clock, line }
    }

    fn control(&mut self, value: u8, now_ns: u64) {
        let select = value >> 6;
        if select == 3 {
            // Read-back: bit 5 clear latches counts, bit 4 clear latches status, bits 3:1 choose channels.
            for (index, channel) in self.regs.channels.iter_mut().enumerate() {
                if value >> (index + 1) & 1 == 0 {
                    continue;
                }
                if value & 0x20 == 0 {
                    channel.latch_count(now_ns);
                }
                if value & 0x10 == 0 && channel.latched_status.is_none() {
                    channel.latched_status = Some(channel.status(now_ns));
                }
            }
            return;
        }
        let channel = &mut self.regs.channels[usize::from(select)];
        if value & 0x30 == 0 {
            channel.latch_count(now_ns);
        } else {
            channel.set_mode(value);
        }
        self.schedule(select, now_ns);
    }

    fn schedule(&mut self, channel: u8, now_ns: u64) {
        if channel == 0 {
            self.regs.edge_ns = self.regs.channels[0].next_edge_ns(now_ns);
        }
    }

    fn read_port_61(&self, now_ns: u64) -> u8 {
        let speaker = &self.regs.channels[2];
        u8::from(speaker.gate)
            | u8::from(self.regs.speaker) << 1
            | u8::from(now_ns / REFRESH_NS % 2 != 0) << 4
            | u8::from(speaker.output(now_ns)) << 5
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        let now_ns = self.clock.now_ns();
        let value = match (access.region, access.offset) {
            (Pit::TIMER, offset @ 0..=2) => self.regs.channels[offset as usize].read(now_ns),
            (Pit::PORT_61, 0) => self.read_port_61(now_ns),
            _ => 0xff,
        };
        u64::MAX << 8 | u64::from(value)
    }

    fn write(&mut self, access: Access, value: u64) {
        let (now_ns, value) = (self.clock.now_ns(), value as u8);
        match (access.region, access.offset) {
            (Pit::TIMER, offset @ 0..=2) => {
                self.regs.channels[offset as usize].write(value, now_ns);
                self.schedule(offset as u8, now_ns);
            }
            (Pit::TIMER, 3) => self.control(value, now_ns),
            (Pit::PORT_61, 0) => {
                self.regs.speaker = value & 2 != 0;
                self.regs.channels[2].set_gate(value & 1 != 0, now_ns);
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.regs = Regs::power_on();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        if !regs.channels.iter().all(Channel::is_possible) {
            return Err(StateError::Damaged { kind: KIND, why: "a channel has an impossible value".into() });
        }
        self.regs = regs;
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.regs.edge_ns
    }

    fn poll(&mut self, now_ns: u64) {
        if self.regs.edge_ns.is_some_and(|edge| edge <= now_ns) {
            self.line.pulse();
            let next = self.regs.channels[0].next_edge_ns(now_ns);
            self.regs.edge_ns = next.map(|edge| edge.max(now_ns.saturating_add(MIN_PERIOD_NS)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;
    use crate::hypervisor::clock::ManualClock;
    use crate::hypervisor::irq::IrqProbe;

    struct Rig {
        pit: Pit,
        clock: Arc<ManualClock>,
        irq: Arc<IrqProbe>,
    }

    fn rig() -> Rig {
        let (clock, irq) = (ManualClock::new(0), IrqProbe::new());
        Rig { pit: Pit::new(clock.clone(), IrqLine::new(irq.clone(), 0)), clock, irq }
    }

    impl Rig {
        fn out(&mut self, region: u16, offset: u64, value: u8) {
            self.pit.write(Access { region, offset, width: 1 }, u64::from(value));
        }
        fn inp(&mut self, region: u16, offset: u64) -> u8 {
            self.pit.read(Access { region, offset, width: 1 }) as u8
        }
        fn program(&mut self, channel: u8, mode: u8, count: u16) {
            self.out(0, 3, channel << 6 | 0x30 | mode << 1);
            self.out(0, u64::from(channel), count as u8);
            self.out(0, u64::from(channel), (count >> 8) as u8);
        }
        fn run_to(&mut self, ns: u64) {
            while let Some(due) = self.pit.deadline_ns().filter(|&due| due <= ns) {
                self.clock.set_ns(due);
                self.pit.poll(due);
            }
            self.clock.set_ns(ns);
        }
        fn count(&mut self, channel: u64) -> u16 {
            self.out(0, 3, (channel as u8) << 6);
            u16::from(self.inp(0, channel)) | u16::from(self.inp(0, channel)) << 8
        }
    }

    #[test]
    fn mode_2_interrupts_a_hundred_times_a_second() {
        let mut rig = rig();
        rig.program(0, 2, 11932);
        rig.run_to(1_000_000_000);
        assert!((99..=100).contains(&rig.irq.edges(0)), "{}", rig.irq.edges(0));
    }

    #[test]
    fn every_period_is_an_edge_though_nobody_reads_and_however_late_the_board_is() {
        for mode in [2, 3] {
            let mut rig = rig();
            rig.program(0, mode, 11932);
            for turn in 1..=20 {
                // The board comes by after the time, once, and the output has been high and low meanwhile.
                let due = rig.pit.deadline_ns().expect("a next edge");
                rig.clock.set_ns(due + 25_000_000);
                rig.pit.poll(due + 25_000_000);
                assert_eq!(rig.irq.edges(0), turn, "mode {mode}");
                assert!(!rig.irq.level(0), "mode {mode}: held, it could not rise again");
                assert!(rig.pit.deadline_ns().is_some_and(|next| next > due), "mode {mode}");
            }
        }
    }

    #[test]
    fn mode_0_interrupts_once_and_its_count_goes_on_below_zero() {
        let mut rig = rig();
        rig.program(0, 0, 1193);
        assert_eq!(rig.count(0), 1193);
        rig.run_to(10_000_000);
        assert_eq!(rig.irq.edges(0), 1);
        assert_eq!(rig.pit.deadline_ns(), None);
        assert_eq!(rig.count(0), 1193u16.wrapping_sub(11931));
    }

    #[test]
    fn a_latched_count_stands_still_until_it_is_read() {
        let mut rig = rig();
        rig.program(0, 2, 0);
        rig.clock.advance_ns(1_000_000);
        rig.out(0, 3, 0);
        rig.clock.advance_ns(1_000_000);
        let latched = u16::from(rig.inp(0, 0)) | u16::from(rig.inp(0, 0)) << 8;
        assert_eq!(latched, (0x1_0000u32 - 1193) as u16);
        assert_eq!(rig.count(0), (0x1_0000u32 - 2386) as u16);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let mut rig = rig();
        rig.out(0, 3, 0xe2);
        assert_eq!(rig.inp(0, 0) & STATUS_NULL_COUNT, STATUS_NULL_COUNT);
        rig.program(0, 3, 0x1000);
        rig.out(0, 3, 0xc2);
        assert_eq!(rig.inp(0, 0), STATUS_OUTPUT | 0x36);
        assert_eq!(u16::from(rig.inp(0, 0)) | u16::from(rig.inp(0, 0)) << 8, 0x1000);
        rig.clock.advance_ns(2_000_000);
        rig.out(0, 3, 0xe2);
        assert_eq!(rig.inp(0, 0) & STATUS_OUTPUT, 0, "the second half of the square wave");
    }

    #[test]
    fn the_speaker_gate_measures_time_as_calibration_loops_do() {
        let mut rig = rig();
        rig.out(1, 0, 0);
        rig.program(2, 0, 59659);
        assert_eq!(rig.inp(1, 0) & 0x20, 0);
        rig.clock.advance_ns(100_000_000);
        assert_eq!(rig.inp(1, 0) & 0x20, 0, "the gate is closed");
        rig.out(1, 0, 1);
        rig.clock.advance_ns(49_000_000);
        assert_eq!(rig.inp(1, 0) & 0x21, 1);
        rig.clock.advance_ns(1_100_000);
        assert_eq!(rig.inp(1, 0) & 0x21, 0x21);
    }

    #[test]
    fn the_one_shot_of_channel_2_waits_for_its_trigger() {
        let mut rig = rig();
        rig.program(2, 1, 1193);
        assert_eq!(rig.inp(1, 0) & 0x20, 0x20);
        rig.out(1, 0, 1);
        assert_eq!(rig.inp(1, 0) & 0x20, 0);
        rig.clock.advance_ns(1_100_000);
        assert_eq!(rig.inp(1, 0) & 0x20, 0x20);
    }

    #[test]
    fn refresh_toggles() {
        let mut rig = rig();
        let before = rig.inp(1, 0) & 0x10;
        rig.clock.advance_ns(REFRESH_NS);
        assert_ne!(rig.inp(1, 0) & 0x10, before);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut rig = rig();
        rig.out(0, 3, 0x35);
        rig.out(0, 0, 0x00);
        rig.out(0, 0, 0x10);
        rig.clock.advance_ns(1_000_000);
        assert_eq!(rig.count(0), 0x0807, "1000 - 1193 % 1000");
    }

    #[test]
    fn a_count_of_one_does_not_make_the_host_spin() {
        let mut rig = rig();
        rig.program(0, 2, 1);
        rig.run_to(1_000_000);
        assert!(rig.irq.edges(0) <= 51);
    }

    #[test]
    fn the_timer_keeps_the_contract_of_devices() {
        conformance::check(|| rig().pit, &[(0, 4), (1, 1)]);
    }
}
