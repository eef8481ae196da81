//! The interrupt fabric: the 8259A pair, the I/O APIC and the local APICs, under one lock of their own.
//!
//! Devices reach it as an [`IrqSink`]: global system interrupts 0 to 15 are the ISA lines and go to the 8259A pair and
//! to the I/O APIC (0 to pin 2, as the MADT's override says), 16 to 23 to the I/O APIC only. Lines that share an
//! interrupt are ORed by counting those that are high. Messages go to the local APICs: Intel SDM volume 3, section
//! 11.11 (message-signalled interrupts).
//!
//! vCPUs of a back end without controllers of its own reach it as [`LocalApics`]. Every change that makes an event possible raises the vCPU's
//! attention. An event that cannot be taken yet (IF clear) stays, and the vCPU asks again when it can take it.
//!
//! The lock is taken last: after the board's, and by back-end threads alone.
//!
//! **Not modelled**: the 8259A's output reaches vCPU 0 only; extended destination IDs (messages reach APIC IDs up to
//! 254).
//!
//! **Hostile guest**: a message storm is bounded by the chips' fixed registers; delivery loops end because each pass
//! empties an outbox that only an EOI refills.
//!
//! **Saved state**: all chips. The count of high lines is not saved: it follows from the devices' lines, which their
//! owners restore.

use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::devices::ioapic::{IoApic, PINS};
use crate::devices::lapic::{APIC_BASE, ApicMessage, DeliveryMode, Lapic, Shorthand};
use crate::devices::pic::Pic;
use crate::hypervisor::backend::{LocalApics, NoSuchMsr, VcpuEvent};
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::clock::Clock;
use crate::hypervisor::irq::{IrqSink, Irqchip, LineCounts};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Attention;

const KIND: &str = "interrupts";
const VERSION: u32 = 1;
const ISA_LINES: usize = 16;
/// Input of the 8259A's cascade, to which no device's line is wired.
const CASCADE: usize = 2;
const PAGE_BYTES: u64 = 0x1000;

struct Chips {
    pic: Pic,
    ioapic: IoApic,
    lapics: Vec<Lapic>,
    /// The high lines of each interrupt.
    high: LineCounts<PINS>,
    /// Where the search for the least busy vCPU begins, so that equally busy ones take turns.
    next_lowest: usize,
}

/// The interrupt controllers of one machine.
pub struct Interrupts {
    chips: Mutex<Chips>,
    attention: Arc<Attention>,
    clock: Arc<dyn Clock>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    pic: Section,
    ioapic: Section,
    lapics: Vec<Section>,
}

impl Chips {
    fn new(vcpus: usize) -> Chips {
        let lapics = (0..vcpus as u32).map(Lapic::new).collect();
        Chips { pic: Pic::new(), ioapic: IoApic::new(), lapics, high: LineCounts::default(), next_lowest: 0 }
    }

    fn set_pins(&mut self, gsi: usize, level: bool, edge: bool) {
        if gsi < ISA_LINES {
            self.pic.set_irq(gsi as u8, level, edge);
        }
        // The timer is on pin 2, where PCs have it: pin 0 takes the 8259A's output. The MADT tells the guest so.
        self.ioapic.set_pin(if gsi == 0 { CASCADE } else { gsi }, level, edge);
    }

    fn accept(&mut self, vcpu: usize, message: &ApicMessage, attention: &Attention) {
        if self.lapics[vcpu].accept(message.mode, message.vector, message.level) {
            attention.raise(vcpu);
        }
    }

    fn deliver(&mut self, message: &ApicMessage, attention: &Attention) {
        let vcpus = self.lapics.len();
        if message.mode == DeliveryMode::LowestPriority {
            let turn = (0..vcpus).map(|i| (self.next_lowest + i) % vcpus).filter(|&v| self.lapics[v].matches(message));
            if let Some(vcpu) = turn.min_by_key(|&v| self.lapics[v].processor_priority()) {
                self.next_lowest = (vcpu + 1) % vcpus;
                self.accept(vcpu, message, attention);
            }
            return;
        }
        for vcpu in 0..vcpus {
            if self.lapics[vcpu].matches(message) {
                self.accept(vcpu, message, attention);
            }
        }
    }

    fn deliver_ipi(&mut self, from: usize, shorthand: Shorthand, message: &ApicMessage, attention: &Attention) {
        match shorthand {
            Shorthand::None => self.deliver(message, attention),
            Shorthand::Itself => self.accept(from, message, attention),
            Shorthand::All | Shorthand::Others => {
                for vcpu in (0..self.lapics.len()).filter(|&vcpu| shorthand == Shorthand::All || vcpu != from) {
                    self.accept(vcpu, message, attention);
                }
            }
        }
    }

    /// Empties the outboxes of the I/O APIC and tells vCPU 0 of the 8259A's output.
    fn settle(&mut self, attention: &Attention) {
        while let Some(message) = self.ioapic.take_message() {
            self.deliver(&message, attention);
        }
        if self.pic_reaches(0) {
            attention.raise(0);
        }
    }

    /// Delivers what a vCPU's write to its local APIC sent, ended and made possible.
    fn settle_vcpu(&mut self, vcpu: usize, attention: &Attention) {
        if let Some((shorthand, message)) = self.lapics[vcpu].take_ipi() {
            self.deliver_ipi(vcpu, shorthand, &message, attention);
        }
        // Only level vectors get here. A pin that is still high sends its interrupt again at once.
        if let Some(vector) = self.lapics[vcpu].take_eoi() {
            self.ioapic.end_of_interrupt(vector);
            self.settle(attention);
        }
        if self.lapics[vcpu].has_event() || self.pic_reaches(vcpu) {
            attention.raise(vcpu);
        }
    }

    #[inline]
    fn pic_reaches(&self, vcpu: usize) -> bool {
        // The 8259A's output is wired to the first vCPU only.
        vcpu == 0 && self.pic.output() && self.lapics[0].takes_extint()
    }
}

impl Interrupts {
    /// Creates the controllers for `vcpus` local APICs, as after power-on.
    pub fn new(vcpus: usize, attention: Arc<Attention>, clock: Arc<dyn Clock>) -> Arc<Interrupts> {
        Arc::new(Interrupts { chips: Mutex::new(Chips::new(vcpus)), attention, clock })
    }

    fn chips(&self) -> MutexGuard<'_, Chips> {
        self.chips.lock().expect("a chip that panics is a bug, and ends the machine")
    }

    fn after_write(&self, chips: &mut Chips, vcpu: usize) {
        chips.settle_vcpu(vcpu, &self.attention);
        if let Some(deadline_ns) = chips.lapics[vcpu].deadline_ns() {
            self.attention.due_by(deadline_ns);
        }
    }
}

/// Returns the offset in the local APIC's register page, if the address is in it.
#[inline]
fn page_offset(addr: u64) -> Option<u64> {
    let offset = addr.wrapping_sub(APIC_BASE);
    (offset < PAGE_BYTES).then_some(offset)
}

impl LocalApics for Interrupts {
    // INIT, start-up and NMI come first, then the 8259A's, then the local APIC's.
    fn take_event(&self, vcpu: usize, interrupts: bool, nmi: bool) -> Option<VcpuEvent> {
        let mut chips = self.chips();
        let mut event = chips.lapics[vcpu].take_event(false, nmi);
        if event.is_none() && interrupts {
            event = match chips.pic_reaches(vcpu) {
                true => Some(VcpuEvent::Interrupt(chips.pic.acknowledge())),
                false => chips.lapics[vcpu].take_event(true, false),
            };
        }
        // The caller has cleared the flag, and takes one event at a time.
        if event.is_some() && (chips.lapics[vcpu].has_event() || chips.pic_reaches(vcpu)) {
            self.attention.raise(vcpu);
        }
        event
    }

    // Registers are 32 bits on 16-byte boundaries; the rest reads as zeros.
    #[inline]
    fn read(&self, vcpu: usize, addr: u64, width: u8) -> Option<u64> {
        let offset = page_offset(addr)?;
        if offset & 0xf >= 4 {
            return Some(0);
        }
        let now_ns = self.clock.now_ns();
        let mut chips = self.chips();
        let value = chips.lapics[vcpu].mmio_read(offset as u32 & !3, now_ns);
        chips.settle_vcpu(vcpu, &self.attention);
        let mask = u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)));
        Some(u64::from(value) >> (8 * (offset & 3)) & mask)
    }

    // A store that is not of a whole aligned register is dropped: hardware leaves it undefined (SDM vol. 3, 11.4.1), and
    // dropping it is the safest.
    #[inline]
    fn write(&self, vcpu: usize, addr: u64, width: u8, value: u64) -> bool {
        let Some(offset) = page_offset(addr) else { return false };
        if offset & 0xf != 0 || width < 4 {
            return true;
        }
        let now_ns = self.clock.now_ns();
        let mut chips = self.chips();
        chips.lapics[vcpu].mmio_write(offset as u32, value as u32, now_ns);
        self.after_write(&mut chips, vcpu);
        true
    }

    fn msr_read(&self, vcpu: usize, msr: u32) -> Result<u64, NoSuchMsr> {
        let mut chips = self.chips();
        let value = chips.lapics[vcpu].msr_read(msr, self.clock.now_ns());
        chips.settle_vcpu(vcpu, &self.attention);
        value
    }

    fn msr_write(&self, vcpu: usize, msr: u32, value: u64) -> Result<(), NoSuchMsr> {
        let now_ns = self.clock.now_ns();
        let mut chips = self.chips();
        chips.lapics[vcpu].msr_write(msr, value, now_ns)?;
        self.after_write(&mut chips, vcpu);
        Ok(())
    }

    fn cr8(&self, vcpu: usize) -> u8 {
        self.chips().lapics[vcpu].cr8()
    }

    fn set_cr8(&self, vcpu: usize, value: u8) {
        let mut chips = self.chips();
        chips.lapics[vcpu].set_cr8(value);
        chips.settle_vcpu(vcpu, &self.attention);
    }
}

impl Irqchip for Interrupts {
    fn advance(&self, now_ns: u64) -> Option<u64> {
        let mut next = None;
        for (vcpu, lapic) in self.chips().lapics.iter_mut().enumerate() {
            if lapic.advance(now_ns) {
                self.attention.raise(vcpu);
            }
            next = [next, lapic.deadline_ns()].into_iter().flatten().min();
        }
        next
    }

    fn nmi(&self) {
        for (vcpu, lapic) in self.chips().lapics.iter_mut().enumerate() {
            if lapic.pulse_lint1() {
                self.attention.raise(vcpu);
            }
        }
    }

    fn reset(&self) {
        let mut chips = self.chips();
        // The devices keep their lines and are reset one by one, so forgetting the counts would lose a level for
        // good.
        let high = chips.high;
        *chips = Chips { high, ..Chips::new(chips.lapics.len()) };
        for (gsi, level) in high.levels().enumerate() {
            // Without an edge: after a reset nothing is pending.
            chips.set_pins(gsi, level, false);
        }
    }

    fn save(&self) -> Result<Section, StateError> {
        let chips = self.chips();
        let lapics = chips.lapics.iter().map(Lapic::save).collect();
        Ok(Section::encode(KIND, VERSION, &State { pic: chips.pic.save(), ioapic: chips.ioapic.save(), lapics }))
    }

    fn load(&self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(KIND, VERSION)?;
        let mut chips = self.chips();
        let vcpus = chips.lapics.len();
        if state.lapics.len() != vcpus {
            let why = format!("it has {} local APICs, the machine has {vcpus}", state.lapics.len());
            return Err(StateError::Damaged { kind: KIND, why });
        }
        let mut new = Chips { high: chips.high, next_lowest: 0, ..Chips::new(vcpus) };
        new.pic.load(&state.pic)?;
        new.ioapic.load(&state.ioapic)?;
        for (lapic, section) in new.lapics.iter_mut().zip(&state.lapics) {
            lapic.load(section)?;
        }
        *chips = new;
        // Pending events are still pending, but the flags were not saved.
        (0..vcpus).for_each(|vcpu| self.attention.raise(vcpu));
        Ok(())
    }
}

impl IrqSink for Interrupts {
    fn set_line(&self, gsi: u32, level: bool, edge: bool) {
        let mut chips = self.chips();
        if let Some(level) = chips.high.count(gsi, level) {
            chips.set_pins(gsi as usize, level, edge);
            chips.settle(&self.attention);
        }
    }

    fn message(&self, address: u64, data: u32) {
        // Address bits 31:20 are 0xfee; 19:12 the destination, 2 its mode. Data: 7:0 vector, 10:8 mode, 15 trigger.
        if address >> 20 != 0xfee {
            return;
        }
        let Some(mode) = DeliveryMode::from_bits((data >> 8 & 7) as u8) else { return };
        let destination = (address >> 12 & 0xff) as u32;
        let logical = address & 4 != 0;
        let level = data & 0x8000 != 0;
        let message = ApicMessage { destination, broadcast: destination == 0xff, logical, mode, vector: data as u8, level };
        self.chips().deliver(&message, &self.attention);
    }
}

/// The registers of the 8259A pair and of the I/O APIC on the board's bus: regions [`Pic::MASTER`], [`Pic::SLAVE`],
/// [`Pic::ELCR`] and [`InterruptRegisters::IOAPIC`].
///
/// It has no state of its own: the board saves, loads and resets [`Interrupts`].
pub struct InterruptRegisters {
    interrupts: Arc<Interrupts>,
}

impl InterruptRegisters {
    /// Region of the I/O APIC's registers.
    pub const IOAPIC: u16 = 3;

    /// Creates the registers of `interrupts`.
    pub fn new(interrupts: Arc<Interrupts>) -> InterruptRegisters {
        InterruptRegisters { interrupts }
    }
}

impl Device for InterruptRegisters {
    fn name(&self) -> &'static str {
        "interrupt-registers"
    }

    fn read(&mut self, access: Access) -> u64 {
        let mut chips = self.interrupts.chips();
        let value = match access.region {
            InterruptRegisters::IOAPIC => chips.ioapic.read(Access { region: 0, ..access }),
            _ => chips.pic.read(access),
        };
        chips.settle(&self.interrupts.attention);
        value
    }

    fn write(&mut self, access: Access, value: u64) {
        let mut chips = self.interrupts.chips();
        match access.region {
            InterruptRegisters::IOAPIC => chips.ioapic.write(Access { region: 0, ..access }, value),
            _ => chips.pic.write(access, value),
        }
        chips.settle(&self.interrupts.attention);
    }

    fn reset(&mut self) {}

    fn save(&self) -> Section {
        Section::encode(self.name(), VERSION, &())
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        section.decode("interrupt-registers", VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::clock::ManualClock;
    use crate::hypervisor::irq::IrqLine;

    struct Rig {
        interrupts: Arc<Interrupts>,
        registers: InterruptRegisters,
        attention: Arc<Attention>,
        clock: Arc<ManualClock>,
    }

    fn rig(vcpus: usize) -> Rig {
        let (attention, clock) = (Attention::new(vcpus), ManualClock::new(0));
        let interrupts = Interrupts::new(vcpus, attention.clone(), clock.clone());
        for vcpu in 0..vcpus {
            interrupts.write(vcpu, APIC_BASE + 0xf0, 4, 0x1ff);
        }
        Rig { registers: InterruptRegisters::new(interrupts.clone()), interrupts, attention, clock }
    }

    impl Rig {
        fn line(&self, gsi: u32) -> IrqLine {
            IrqLine::new(self.interrupts.clone(), gsi)
        }
        fn redirect(&mut self, pin: u64, low: u64, destination: u64) {
            for (register, value) in [(0x11 + 2 * pin, destination << 24), (0x10 + 2 * pin, low)] {
                self.registers.write(Access { region: 3, offset: 0, width: 4 }, register);
                self.registers.write(Access { region: 3, offset: 0x10, width: 4 }, value);
            }
        }
        fn set_up_pics(&mut self) {
            for (region, base) in [(0, 0x20), (1, 0x28)] {
                for (offset, value) in [(0, 0x11), (1, base), (1, 4), (1, 1), (1, 0)] {
                    self.registers.write(Access { region, offset, width: 1 }, value);
                }
            }
        }
        fn event(&self, vcpu: usize) -> Option<VcpuEvent> {
            self.attention.take(vcpu).then(|| self.interrupts.take_event(vcpu, true, true)).flatten()
        }
        fn eoi(&self, vcpu: usize) {
            self.interrupts.write(vcpu, APIC_BASE + 0xb0, 4, 0);
        }
    }

    #[test]
    fn the_timer_line_reaches_pin_2_and_the_8259() {
        let mut rig = rig(1);
        rig.set_up_pics();
        let timer = rig.line(0);
        timer.pulse();
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x20)));
        rig.interrupts.write(0, APIC_BASE + 0x350, 4, 0x1_0700);
        rig.redirect(2, 0x30, 0);
        timer.pulse();
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x30)));
        assert_eq!(rig.event(0), None);
    }

    #[test]
    fn two_lines_on_one_pin_are_ored_and_the_level_returns_after_eoi() {
        let mut rig = rig(2);
        rig.redirect(17, 0x8000 | 0x45, 1);
        let (one, two) = (rig.line(17), rig.line(17));
        one.raise();
        two.raise();
        assert_eq!(rig.event(1), Some(VcpuEvent::Interrupt(0x45)));
        assert_eq!(rig.event(0), None);
        one.lower();
        rig.eoi(1);
        assert_eq!(rig.event(1), Some(VcpuEvent::Interrupt(0x45)), "the other line is high still");
        two.lower();
        rig.eoi(1);
        assert_eq!(rig.event(1), None);
    }

    #[test]
    fn an_event_that_cannot_be_taken_yet_stays() {
        let rig = rig(1);
        rig.interrupts.message(0xfee0_0000, 0x51);
        rig.interrupts.message(0xfee0_0000, 0x61);
        assert!(rig.attention.take(0));
        assert_eq!(rig.interrupts.take_event(0, false, true), None);
        assert_eq!(rig.interrupts.take_event(0, true, true), Some(VcpuEvent::Interrupt(0x61)));
        assert_eq!(rig.event(0), None, "the lower class waits");
        rig.eoi(0);
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x51)), "the end of the first raised attention");
    }

    #[test]
    fn messages_go_to_whom_the_address_says() {
        let rig = rig(3);
        rig.interrupts.message(0xfee0_1000, 0x41);
        assert_eq!([rig.event(0), rig.event(1), rig.event(2)], [None, Some(VcpuEvent::Interrupt(0x41)), None]);
        rig.interrupts.message(0xfeef_f000, 0x42);
        rig.eoi(1);
        (0..3).for_each(|vcpu| assert_eq!(rig.event(vcpu), Some(VcpuEvent::Interrupt(0x42))));
        rig.interrupts.message(0x1000_0000, 0x43);
        rig.interrupts.message(0xfee0_0000, 0x0743);
        assert_eq!(rig.event(0), None, "no address of an APIC; ExtINT");
    }

    #[test]
    fn lowest_priority_takes_the_least_busy_and_then_turns() {
        let rig = rig(2);
        (0..2).for_each(|vcpu| assert!(rig.interrupts.write(vcpu, APIC_BASE + 0xd0, 4, 1u64 << (24 + vcpu))));
        rig.interrupts.set_cr8(0, 2);
        let send = |vector: u32| rig.interrupts.message(0xfee0_3004, 0x100 | vector);
        send(0x41);
        assert_eq!(rig.event(1), Some(VcpuEvent::Interrupt(0x41)));
        rig.eoi(1);
        rig.interrupts.set_cr8(0, 0);
        send(0x42);
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x42)));
        rig.eoi(0);
        send(0x43);
        assert_eq!(rig.event(1), Some(VcpuEvent::Interrupt(0x43)));
    }

    #[test]
    fn a_processor_is_started_by_init_and_start_up() {
        let rig = rig(2);
        rig.interrupts.write(0, APIC_BASE + 0x310, 4, 1 << 24);
        rig.interrupts.write(0, APIC_BASE + 0x300, 4, 0xc500);
        rig.interrupts.write(0, APIC_BASE + 0x300, 4, 0x8500);
        rig.interrupts.write(0, APIC_BASE + 0x300, 4, 0x0699);
        assert_eq!(rig.event(1), Some(VcpuEvent::Init));
        assert_eq!(rig.event(1), Some(VcpuEvent::Sipi(0x99)));
        assert_eq!(rig.event(0), None);
    }

    #[test]
    fn shorthands_include_and_exclude_the_sender() {
        let rig = rig(3);
        rig.interrupts.write(1, APIC_BASE + 0x300, 4, 0xc_4000 | 0x71);
        assert_eq!(rig.event(1), None);
        assert_eq!([rig.event(0), rig.event(2)], [Some(VcpuEvent::Interrupt(0x71)); 2]);
        rig.interrupts.write(1, APIC_BASE + 0x300, 4, 0x8_4000 | 0x81);
        (0..3).for_each(|vcpu| assert_eq!(rig.event(vcpu), Some(VcpuEvent::Interrupt(0x81))));
        rig.interrupts.write(1, APIC_BASE + 0x300, 4, 0x4_4000 | 0x91);
        assert_eq!([rig.event(0), rig.event(1)], [None, Some(VcpuEvent::Interrupt(0x91))]);
    }

    #[test]
    fn a_deadline_that_was_set_is_told_and_fires() {
        let rig = rig(1);
        let board = crate::machine::board::Board::new(rig.interrupts.clone(), rig.attention.clone(), rig.clock.clone());
        rig.attention.serve_board(&board);
        rig.interrupts.write(0, APIC_BASE + 0x320, 4, 0x4_0060);
        rig.interrupts.msr_write(0, 0x6e0, 5_000).unwrap();
        assert_eq!(rig.attention.deadline_ns(), 5_000);
        rig.clock.set_ns(5_000);
        assert_eq!(rig.interrupts.advance(5_000), None);
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x60)));
    }

    #[test]
    fn a_tsc_deadline_that_is_past_reaches_the_processor_with_the_write_itself() {
        let rig = rig(1);
        rig.clock.set_ns(9_000);
        rig.interrupts.write(0, APIC_BASE + 0x320, 4, 0x4_0060);
        rig.interrupts.msr_write(0, 0x6e0, 9_000).unwrap();
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x60)), "nobody has advanced the board");
        assert_eq!(rig.interrupts.msr_read(0, 0x6e0), Ok(0));
        rig.eoi(0);
        rig.interrupts.msr_write(0, 0x6e0, 9_500).unwrap();
        rig.clock.set_ns(10_000);
        assert_eq!(rig.interrupts.msr_read(0, 0x6e0), Ok(0), "nor looked at it since it was due");
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x60)));
    }

    #[test]
    fn lowering_the_task_priority_lets_a_held_interrupt_through() {
        let rig = rig(1);
        rig.interrupts.set_cr8(0, 15);
        rig.interrupts.message(0xfee0_0000, 0x51);
        assert_eq!(rig.event(0), None);
        rig.interrupts.set_cr8(0, 0);
        assert_eq!(rig.event(0), Some(VcpuEvent::Interrupt(0x51)));
    }

    #[test]
    fn the_state_comes_back_with_what_was_pending() {
        let mut rig = rig(2);
        rig.redirect(17, 0x8000 | 0x45, 1);
        let line = rig.line(17);
        line.raise();
        let saved = rig.interrupts.save().unwrap();
        let twin = self::rig(2);
        let twin_line = twin.line(17);
        twin.interrupts.load(&saved).unwrap();
        twin_line.restore(true);
        assert_eq!(twin.interrupts.save().unwrap(), saved);
        assert_eq!(twin.event(1), Some(VcpuEvent::Interrupt(0x45)));
        twin_line.lower();
        twin.eoi(1);
        assert_eq!(twin.event(1), None);
        assert!(self::rig(1).interrupts.load(&saved).is_err());
        rig.interrupts.reset();
        line.lower();
        assert_eq!(rig.interrupts.save(), Interrupts::new(2, Attention::new(2), ManualClock::new(0)).save());
    }

    #[test]
    fn the_registers_keep_the_contract_of_devices() {
        crate::devices::conformance::check(|| rig(2).registers, &[(0, 2), (1, 2), (2, 2), (3, 0x100)]);
    }
}
