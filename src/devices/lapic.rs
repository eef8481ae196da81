//! Local APIC, xAPIC and x2APIC: Intel SDM volume 3, chapter 11 (advanced programmable interrupt controller).
//!
//! Registers are numbered as MMIO offsets (0x020 ID, 0x030 version, 0x080 TPR ... 0x3e0 divide configuration) in both
//! modes; x2APIC MSR `0x800 + n` is offset `n * 16`. Six LVT entries: timer, thermal, performance, LINT0, LINT1, error.
//! The timer counts at 1 GHz before its divider and the TSC is the machine's time in nanoseconds, so both are `now_ns`.
//! It fires when the board's timers run, and before that when a register is read or written after it was due: a count
//! of 0 or a cleared IA32_TSC_DEADLINE is never seen before its interrupt.
//!
//! A local APIC does not know the others. A message that a write sends goes to an outbox of one message
//! ([`Lapic::take_ipi`]), and the EOI of a level interrupt to [`Lapic::take_eoi`]. The interrupt fabric takes both
//! after each call.
//!
//! **Not modelled**: moving the registers from 0xfee00000 (a write of another base is #GP); SMI; focus processors;
//! EOI-broadcast suppression and CMCI (the version register says that both are absent); remote read.
//!
//! **Hostile guest**: all state is fixed registers. A periodic timer fires at most every 20 us, whatever its count.
//!
//! **Saved state**: all registers and pending events; the outbox is empty between calls.

use serde::{Deserialize, Serialize};

use crate::hypervisor::backend::{NoSuchMsr, VcpuEvent};
use crate::hypervisor::state::{Section, StateError};

const KIND: &str = "lapic";
const VERSION: u32 = 2;
/// Version 0x14, highest LVT entry 5.
const LAPIC_VERSION: u32 = 0x0005_0014;
/// Fixed address of the registers.
pub const APIC_BASE: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_MODE: u32 = 3 << 17;
const TIMER_ONE_SHOT: u32 = 0 << 17;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;
/// The bits that can be written in each LVT entry: timer, thermal, performance, LINT0, LINT1, error.
const LVT_WRITABLE: [u32; 6] = [0x0007_00ff, 0x0001_07ff, 0x0001_07ff, 0x0001_a7ff, 0x0001_a7ff, 0x0001_00ff];
const TIMER: usize = 0;
const LINT0: usize = 3;
const LINT1: usize = 4;
const ERROR: usize = 5;
const ESR_SEND_ILLEGAL_VECTOR: u8 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u8 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u8 = 1 << 7;
const ICR_WRITABLE: u64 = 0xffff_ffff_000c_cfff;
const MIN_PERIOD_NS: u64 = 20_000;

/// Delivery mode of a message: bits 10:8 of ICR, redirection entries and message data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To all destinations.
    Fixed,
    /// To the destination that is the least busy.
    LowestPriority,
    /// Non-maskable.
    Nmi,
    /// INIT.
    Init,
    /// Start-up.
    Sipi,
}

impl DeliveryMode {
    /// Returns the mode for the three bits. Returns `None` for modes that are not modelled (SMI, ExtINT) or reserved.
    pub fn from_bits(bits: u8) -> Option<DeliveryMode> {
        Some(match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::Sipi,
            _ => return None,
        })
    }
}

/// A message to local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicMessage {
    /// APIC ID or logical destination.
    pub destination: u32,
    /// The destination is the sender's "all".
    pub broadcast: bool,
    /// `destination` is logical.
    pub logical: bool,
    /// Delivery mode.
    pub mode: DeliveryMode,
    /// Vector, or the page of a start-up.
    pub vector: u8,
    /// The interrupt is level-triggered: its EOI is broadcast.
    pub level: bool,
}

/// Destination of an interprocessor interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shorthand {
    /// The message's destination.
    None,
    /// The sender.
    Itself,
    /// All local APICs.
    All,
    /// All local APICs except the sender.
    Others,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bits([u32; 8]);

impl Bits {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }
    #[inline]
    fn highest(&self) -> Option<u8> {
        (0..8).rev().find(|&word| self.0[word] != 0).map(|word| (word as u32 * 32 + 31 - self.0[word].leading_zeros()) as u8)
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    irr: Bits,
    isr: Bits,
    tmr: Bits,
    esr: u8,
    errors: u8,
    icr: u64,
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    /// When the timer fires, 0 for never: in one-shot and periodic mode, and from IA32_TSC_DEADLINE.
    deadline_ns: u64,
    nmi: bool,
    init: bool,
    sipi: Option<u8>,
}

/// The local APIC of one vCPU.
pub struct Lapic {
    regs: Regs,
    ipi: Option<(Shorthand, ApicMessage)>,
    eoi: Option<u8>,
}

impl Lapic {
    /// Creates the local APIC of vCPU `id` as after power-on. LINT0 of vCPU 0 takes the 8259A's interrupts from the
    /// start, as the MultiProcessor Specification's virtual wire mode asks of firmware.
    pub fn new(id: u32) -> Lapic {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let regs = Regs {
            id,
            base: APIC_BASE | BASE_ENABLE | bsp,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            irr: Bits::default(),
            isr: Bits::default(),
            tmr: Bits::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            initial_count: 0,
            divide: 0,
            deadline_ns: 0,
            nmi: false,
            init: false,
            sipi: None,
        };
        let mut lapic = Lapic { regs, ipi: None, eoi: None };
        if id == 0 {
            lapic.regs.lvt[LINT0] = 0x700;
        }
        lapic
    }

    /// Returns the APIC ID.
    pub fn id(&self) -> u32 {
        self.regs.id
    }
    /// Returns IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.regs.base
    }
    fn x2apic(&self) -> bool {
        self.regs.base & BASE_X2APIC != 0
    }
    fn hardware_enabled(&self) -> bool {
        self.regs.base & BASE_ENABLE != 0
    }
    fn enabled(&self) -> bool {
        self.hardware_enabled() && self.regs.svr & SVR_ENABLE != 0
    }

    /// Returns whether the message is for this local APIC.
    pub fn matches(&self, message: &ApicMessage) -> bool {
        if !self.hardware_enabled() {
            return false;
        }
        if message.broadcast {
            return true;
        }
        let destination = message.destination;
        if !message.logical {
            return self.regs.id == destination;
        }
        let ldr = self.logical_id();
        if self.x2apic() {
            return ldr >> 16 == destination >> 16 && ldr & destination & 0xffff != 0;
        }
        let (own, wanted) = ((ldr >> 24) as u8, destination as u8);
        match self.regs.dfr >> 28 {
            0xf => own & wanted != 0,
            0x0 => (wanted >> 4 == 0xf || wanted >> 4 == own >> 4) && own & wanted & 0xf != 0,
            _ => false,
        }
    }

    fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.regs.id >> 4) << 16 | 1 << (self.regs.id & 15) } else { self.regs.ldr }
    }

    /// Returns the processor priority (section 11.8.3.1), which selects the least busy destination.
    pub fn processor_priority(&self) -> u8 {
        let serving = self.regs.isr.highest().unwrap_or(0) & 0xf0;
        if self.regs.tpr & 0xf0 >= serving { self.regs.tpr } else { serving }
    }

    /// Accepts a message. Returns whether the vCPU must look for events.
    pub fn accept(&mut self, mode: DeliveryMode, vector: u8, level: bool) -> bool {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.enabled() {
                    return false;
                }
                if vector < 16 {
                    return self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
                }
                self.regs.irr.set(vector);
                if level {
                    self.regs.tmr.set(vector)
                } else {
                    self.regs.tmr.clear(vector)
                }
                self.pending_vector().is_some()
            }
            DeliveryMode::Nmi => {
                self.regs.nmi = true;
                true
            }
            DeliveryMode::Init => {
                self.init_reset();
                self.regs.init = true;
                true
            }
            DeliveryMode::Sipi => {
                self.regs.sipi = Some(vector);
                true
            }
        }
    }

    /// Resets all registers except the ID and IA32_APIC_BASE to their power-on values, on INIT (section 11.4.7.3).
    fn init_reset(&mut self) {
        let fresh = Lapic::new(self.regs.id).regs;
        self.regs = Regs { base: self.regs.base, ..fresh };
    }

    fn error(&mut self, error: u8) -> bool {
        let new = self.regs.errors & error == 0;
        self.regs.errors |= error;
        new && self.fire_lvt(ERROR)
    }

    /// Delivers a local interrupt. Returns whether the vCPU must look for events.
    fn fire_lvt(&mut self, entry: usize) -> bool {
        let lvt = self.regs.lvt[entry];
        if lvt & LVT_MASKED != 0 || !self.hardware_enabled() {
            return false;
        }
        let mode = if matches!(entry, TIMER | ERROR) { 0 } else { (lvt >> 8 & 7) as u8 };
        match DeliveryMode::from_bits(mode) {
            Some(DeliveryMode::Nmi) => self.accept(DeliveryMode::Nmi, 0, false),
            // An illegal vector in the error entry itself must not report itself.
            Some(DeliveryMode::Fixed) if lvt as u8 >= 16 => self.accept(DeliveryMode::Fixed, lvt as u8, false),
            Some(DeliveryMode::Fixed) if entry != ERROR => self.error(ESR_RECEIVE_ILLEGAL_VECTOR),
            _ => false,
        }
    }

    /// Pulses the NMI pin, LINT1. Returns whether the vCPU must look for events.
    pub fn pulse_lint1(&mut self) -> bool {
        self.fire_lvt(LINT1)
    }

    /// Returns whether the 8259A's output, at LINT0, reaches the vCPU.
    pub fn takes_extint(&self) -> bool {
        let lvt = self.regs.lvt[LINT0];
        !self.hardware_enabled() || lvt & (LVT_MASKED | 0x700) == 0x700
    }

    #[inline]
    fn pending_vector(&self) -> Option<u8> {
        let vector = self.regs.irr.highest()?;
        (vector & 0xf0 > self.processor_priority() & 0xf0 && self.enabled()).then_some(vector)
    }

    /// Returns whether `take_event` would return an event with interrupts and NMIs enabled.
    #[inline]
    pub fn has_event(&self) -> bool {
        self.regs.init || self.regs.sipi.is_some() || self.regs.nmi || self.pending_vector().is_some()
    }

    /// Takes the next event for the vCPU. Those of the 8259A are not included.
    #[inline]
    pub fn take_event(&mut self, interrupts: bool, nmi: bool) -> Option<VcpuEvent> {
        if self.regs.init {
            self.regs.init = false;
            return Some(VcpuEvent::Init);
        }
        if let Some(page) = self.regs.sipi.take() {
            return Some(VcpuEvent::Sipi(page));
        }
        if nmi && self.regs.nmi {
            self.regs.nmi = false;
            return Some(VcpuEvent::Nmi);
        }
        if !interrupts {
            return None;
        }
        let vector = self.pending_vector()?;
        self.regs.irr.clear(vector);
        self.regs.isr.set(vector);
        Some(VcpuEvent::Interrupt(vector))
    }

    /// Takes the message that the last write sends.
    pub fn take_ipi(&mut self) -> Option<(Shorthand, ApicMessage)> {
        self.ipi.take()
    }

    /// Takes the vector of the level interrupt that the last write ended.
    pub fn take_eoi(&mut self) -> Option<u8> {
        self.eoi.take()
    }

    /// Returns CR8.
    pub fn cr8(&self) -> u8 {
        self.regs.tpr >> 4
    }

    /// Sets CR8.
    pub fn set_cr8(&mut self, value: u8) {
        self.regs.tpr = value << 4;
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = self.regs.isr.highest() {
            self.regs.isr.clear(vector);
            if self.regs.tmr.has(vector) {
                self.eoi = Some(vector);
            }
        }
    }

    // ---- the timer ----

    fn timer_mode(&self) -> u32 {
        self.regs.lvt[TIMER] & LVT_TIMER_MODE
    }

    /// Returns the divider of the divide configuration, bits 3, 1, 0: 2, 4, 8 ... 128, and 1.
    fn divider(&self) -> u64 {
        let code = self.regs.divide & 3 | self.regs.divide >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.regs.initial_count) * self.divider()
    }

    /// Starts the timer after a write of the initial count: the only way to start it in one-shot and periodic mode
    /// (section 11.5.4).
    fn start_timer(&mut self, now_ns: u64) {
        self.regs.deadline_ns = match self.regs.initial_count {
            0 => 0,
            _ => now_ns.saturating_add(self.floor_ns()),
        };
    }

    fn floor_ns(&self) -> u64 {
        if self.timer_mode() == TIMER_PERIODIC { self.period_ns().max(MIN_PERIOD_NS) } else { self.period_ns() }
    }

    /// Returns the rest of the count. It is 0 when the count has run out and in TSC-deadline mode.
    fn current_count(&self, now_ns: u64) -> u32 {
        if self.timer_mode() == TIMER_TSC_DEADLINE {
            return 0;
        }
        let left = self.regs.deadline_ns.saturating_sub(now_ns).div_ceil(self.divider());
        // A period that is longer than its count shows the count.
        u32::try_from(left).unwrap_or(u32::MAX).min(self.regs.initial_count)
    }

    /// Changes the rate at which the count continues from its present value.
    fn set_divide(&mut self, value: u32, now_ns: u64) {
        let left = self.current_count(now_ns);
        self.regs.divide = value;
        if left != 0 {
            let left_ns = u64::from(left) * self.divider();
            // As for a period, no value that is written may make the timer fire sooner than after one minimum period.
            let floor = if self.timer_mode() == TIMER_PERIODIC { MIN_PERIOD_NS } else { 0 };
            self.regs.deadline_ns = now_ns.saturating_add(left_ns.max(floor));
        }
    }

    /// Returns when the timer fires next.
    #[inline]
    pub fn deadline_ns(&self) -> Option<u64> {
        (self.regs.deadline_ns != 0).then_some(self.regs.deadline_ns)
    }

    /// Fires the timer if it is due. Returns whether the vCPU must look for events.
    pub fn advance(&mut self, now_ns: u64) -> bool {
        if self.regs.deadline_ns == 0 || now_ns < self.regs.deadline_ns {
            return false;
        }
        if self.timer_mode() == TIMER_PERIODIC {
            let period = self.floor_ns();
            let missed = (now_ns - self.regs.deadline_ns) / period;
            self.regs.deadline_ns = (self.regs.deadline_ns + missed * period).saturating_add(period);
        } else {
            self.regs.deadline_ns = 0;
        }
        self.fire_lvt(TIMER)
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[entry];
        if self.regs.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        let before = self.timer_mode();
        self.regs.lvt[entry] = value;
        let after = self.timer_mode();
        // A change to or from TSC-deadline mode disarms the timer (section 11.5.4.1). Between one-shot and periodic the
        // count continues from its present value, and one that has run out stays at 0 until the initial count is
        // written (same section, and kvm-unit-tests, x86/apic.c, test_apic_change_mode).
        if entry == TIMER && before != after && (before == TIMER_TSC_DEADLINE || after == TIMER_TSC_DEADLINE) {
            self.regs.deadline_ns = 0;
            self.regs.initial_count = 0;
        }
    }

    fn write_svr(&mut self, value: u32) {
        self.regs.svr = value & 0x1ff;
        if self.regs.svr & SVR_ENABLE == 0 {
            self.regs.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        }
    }

    fn send(&mut self, icr: u64) {
        let vector = icr as u8;
        let level_deassert = icr >> 8 & 7 == 5 && icr & (1 << 14) == 0;
        let Some(mode) = DeliveryMode::from_bits((icr >> 8 & 7) as u8).filter(|_| !level_deassert) else { return };
        if matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) && vector < 16 {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return;
        }
        let (destination, all) = if self.x2apic() { ((icr >> 32) as u32, u32::MAX) } else { ((icr >> 56) as u32, 0xff) };
        let shorthand = match icr >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Itself,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        };
        let logical = icr & (1 << 11) != 0;
        let message = ApicMessage { destination, broadcast: destination == all, logical, mode, vector, level: false };
        self.ipi = Some((shorthand, message));
    }

    // ---- registers ----

    fn read_register(&self, offset: u32, now_ns: u64) -> Option<u32> {
        let bank = |bits: &Bits| bits.0[(offset >> 4 & 7) as usize];
        Some(match offset {
            0x020 if self.x2apic() => self.regs.id,
            0x020 => self.regs.id << 24,
            0x030 => LAPIC_VERSION,
            0x080 => u32::from(self.regs.tpr),
            0x090 if !self.x2apic() => u32::from(self.processor_priority()),
            0x0a0 => u32::from(self.processor_priority()),
            0x0b0 if !self.x2apic() => 0,
            0x0d0 => self.logical_id(),
            0x0e0 if !self.x2apic() => self.regs.dfr,
            0x0f0 => self.regs.svr,
            0x100..=0x170 => bank(&self.regs.isr),
            0x180..=0x1f0 => bank(&self.regs.tmr),
            0x200..=0x270 => bank(&self.regs.irr),
            0x280 => u32::from(self.regs.esr),
            0x300 => self.regs.icr as u32,
            0x310 if !self.x2apic() => (self.regs.icr >> 32) as u32,
            0x320..=0x370 => self.regs.lvt[((offset - 0x320) >> 4) as usize],
            0x380 => self.regs.initial_count,
            0x390 => self.current_count(now_ns),
            0x3e0 => self.regs.divide,
            _ => return None,
        })
    }

    /// Writes a register that both modes have. Returns `false` if there is none.
    fn write_register(&mut self, offset: u32, value: u32, now_ns: u64) -> bool {
        match offset {
            0x080 => self.regs.tpr = value as u8,
            0x0b0 => self.end_of_interrupt(),
            0x0f0 => self.write_svr(value),
            0x280 => self.regs.esr = std::mem::take(&mut self.regs.errors),
            0x320..=0x370 => self.write_lvt(((offset - 0x320) >> 4) as usize, value),
            0x380 => {
                if self.timer_mode() != TIMER_TSC_DEADLINE {
                    self.regs.initial_count = value;
                    self.start_timer(now_ns);
                }
            }
            0x3e0 => self.set_divide(value & 0b1011, now_ns),
            _ => return false,
        }
        true
    }

    /// Loads from the register page. Returns all ones in x2APIC mode or when switched off, since the page does not
    /// answer then.
    pub fn mmio_read(&mut self, offset: u32, now_ns: u64) -> u32 {
        if self.x2apic() || !self.hardware_enabled() {
            return u32::MAX;
        }
        self.advance(now_ns);
        self.read_register(offset & 0xff0, now_ns).unwrap_or_else(|| {
            self.error(ESR_ILLEGAL_REGISTER);
            0
        })
    }

    /// Stores to the register page.
    pub fn mmio_write(&mut self, offset: u32, value: u32, now_ns: u64) {
        if self.x2apic() || !self.hardware_enabled() {
            return;
        }
        self.advance(now_ns);
        match offset & 0xff0 {
            0x020 | 0x030 => {}
            0x0d0 => self.regs.ldr = value & 0xff00_0000,
            0x0e0 => self.regs.dfr = value | 0x0fff_ffff,
            0x300 => {
                self.regs.icr = (self.regs.icr & !0xffff_ffff | u64::from(value)) & ICR_WRITABLE;
                self.send(self.regs.icr);
            }
            0x310 => self.regs.icr = (u64::from(value) << 32 | self.regs.icr & 0xffff_ffff) & ICR_WRITABLE,
            offset => {
                if !self.write_register(offset, value, now_ns) {
                    self.error(ESR_ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// Executes `rdmsr` of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    pub fn msr_read(&mut self, msr: u32, now_ns: u64) -> Result<u64, NoSuchMsr> {
        self.advance(now_ns);
        match msr {
            0x1b => Ok(self.regs.base),
            0x6e0 if self.timer_mode() == TIMER_TSC_DEADLINE => Ok(self.regs.deadline_ns),
            0x6e0 => Ok(0),
            0x830 if self.x2apic() => Ok(self.regs.icr),
            0x800..=0x8ff if self.x2apic() => self.read_register((msr - 0x800) << 4, now_ns).map(u64::from).ok_or(NoSuchMsr),
            _ => Err(NoSuchMsr),
        }
    }

    fn write_base(&mut self, value: u64) -> Result<(), NoSuchMsr> {
        const MODES: u64 = BASE_ENABLE | BASE_X2APIC;
        let fixed = self.regs.base & BASE_BSP | APIC_BASE;
        if value & !MODES != fixed {
            return Err(NoSuchMsr);
        }
        let illegal = matches!((self.regs.base & MODES, value & MODES), (_, BASE_X2APIC) | (0, MODES) | (MODES, BASE_ENABLE));
        if illegal {
            return Err(NoSuchMsr);
        }
        let switched_off = value & BASE_ENABLE == 0 && self.hardware_enabled();
        let to_x2apic = value & BASE_X2APIC != 0 && !self.x2apic();
        if switched_off {
            self.init_reset();
        }
        if to_x2apic {
            self.regs.icr &= 0xffff_ffff;
        }
        self.regs.base = value;
        Ok(())
    }

    /// Executes `wrmsr` of the same registers.
    pub fn msr_write(&mut self, msr: u32, value: u64, now_ns: u64) -> Result<(), NoSuchMsr> {
        self.advance(now_ns);
        match msr {
            0x1b => self.write_base(value),
            0x6e0 => {
                if self.timer_mode() == TIMER_TSC_DEADLINE {
                    self.regs.deadline_ns = value;
                    // A deadline in the past fires at once (section 11.5.4.1).
                    self.advance(now_ns);
                }
                Ok(())
            }
            0x800..=0x8ff if self.x2apic() => self.x2apic_write((msr - 0x800) << 4, value, now_ns),
            _ => Err(NoSuchMsr),
        }
    }

    /// Writes a register in x2APIC mode, where a reserved bit raises #GP (section 11.12.1.2 and table 11-6).
    fn x2apic_write(&mut self, offset: u32, value: u64, now_ns: u64) -> Result<(), NoSuchMsr> {
        let writable: u64 = match offset {
            0x080 => 0xff,
            0x0b0 | 0x280 => 0,
            0x0f0 => 0x1ff,
            0x300 => ICR_WRITABLE,
            // Delivery status (bit 12) and remote IRR (bit 14) may be written back as they were read.
            0x320..=0x370 => u64::from(LVT_WRITABLE[((offset - 0x320) >> 4) as usize]) | 0x5000,
            0x380 => 0xffff_ffff,
            0x3e0 => 0b1011,
            0x3f0 => 0xff,
            _ => return Err(NoSuchMsr),
        };
        if value & !writable != 0 {
            return Err(NoSuchMsr);
        }
        match offset {
            0x300 => {
                self.regs.icr = value;
                self.send(value);
            }
            // Self-IPI: fixed, edge, to itself.
            0x3f0 => self.send(1 << 18 | 1 << 14 | value),
            _ => {
                self.write_register(offset, value as u32, now_ns);
            }
        }
        Ok(())
    }

    /// Resets the chip to its power-on state.
    pub fn reset(&mut self) {
        *self = Lapic::new(self.regs.id);
    }

    /// Returns the state.
    pub fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    /// Restores a saved state. On an error the chip is unchanged.
    pub fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        let modes = regs.base & (BASE_ENABLE | BASE_X2APIC);
        let possible = regs.id == self.regs.id
            && regs.base & !(BASE_ENABLE | BASE_X2APIC) == self.regs.base & BASE_BSP | APIC_BASE
            && modes != BASE_X2APIC
            && regs.lvt.iter().zip(LVT_WRITABLE).all(|(lvt, writable)| lvt & !(writable | LVT_MASKED) == 0)
            && regs.divide & !0b1011 == 0
            && regs.svr & !0x1ff == 0;
        if !possible {
            return Err(StateError::Damaged { kind: KIND, why: "a register has an impossible value".into() });
        }
        *self = Lapic { regs, ipi: None, eoi: None };
        Ok(())
    }
}

const _: () = assert!(TIMER_ONE_SHOT == 0);

#[cfg(test)]
mod tests {
    use super::*;

    fn on(id: u32) -> Lapic {
        let mut lapic = Lapic::new(id);
        lapic.mmio_write(0xf0, 0x1ff, 0);
        lapic
    }

    fn x2(id: u32) -> Lapic {
        let mut lapic = on(id);
        let base = lapic.base();
        lapic.msr_write(0x1b, base | BASE_X2APIC, 0).unwrap();
        lapic
    }

    fn interrupt(lapic: &mut Lapic) -> Option<VcpuEvent> {
        lapic.take_event(true, true)
    }

    #[test]
    fn a_higher_class_interrupts_and_the_same_class_waits_for_eoi() {
        let mut lapic = on(0);
        assert!(lapic.accept(DeliveryMode::Fixed, 0x41, false));
        assert_eq!(lapic.take_event(false, true), None);
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x41)));
        assert!(!lapic.accept(DeliveryMode::Fixed, 0x4f, false));
        assert_eq!(interrupt(&mut lapic), None);
        assert!(lapic.accept(DeliveryMode::Fixed, 0x51, false));
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x51)));
        assert_eq!(lapic.mmio_read(0xa0, 0), 0x50);
        lapic.mmio_write(0xb0, 0, 0);
        lapic.mmio_write(0xb0, 0, 0);
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x4f)));
    }

    #[test]
    fn the_task_priority_holds_back_what_is_not_above_it() {
        let mut lapic = on(0);
        lapic.set_cr8(4);
        assert_eq!(lapic.mmio_read(0x80, 0), 0x40);
        assert!(!lapic.accept(DeliveryMode::Fixed, 0x41, false));
        lapic.mmio_write(0x80, 0x30, 0);
        assert_eq!(lapic.cr8(), 3);
        assert!(lapic.has_event());
    }

    #[test]
    fn a_level_interrupt_reports_its_eoi_and_an_edge_does_not() {
        let mut lapic = on(0);
        lapic.accept(DeliveryMode::Fixed, 0x61, true);
        assert_eq!(lapic.mmio_read(0x180 + 0x30, 0), 2, "TMR");
        interrupt(&mut lapic);
        lapic.mmio_write(0xb0, 0, 0);
        assert_eq!(lapic.take_eoi(), Some(0x61));
        lapic.accept(DeliveryMode::Fixed, 0x61, false);
        interrupt(&mut lapic);
        lapic.mmio_write(0xb0, 0, 0);
        assert_eq!(lapic.take_eoi(), None);
    }

    #[test]
    fn nothing_is_accepted_while_software_disabled_and_entries_are_masked() {
        let mut lapic = on(1);
        lapic.mmio_write(0x320, 0x40, 0);
        lapic.mmio_write(0xf0, 0xff, 0);
        assert!(!lapic.accept(DeliveryMode::Fixed, 0x41, false));
        assert_eq!(lapic.mmio_read(0x320, 0), 0x1_0040);
        assert!(lapic.accept(DeliveryMode::Nmi, 0, false), "NMIs go through");
    }

    #[test]
    fn destinations_match_by_id_flat_cluster_and_x2apic() {
        let to = |destination, logical| ApicMessage {
            destination,
            broadcast: false,
            logical,
            mode: DeliveryMode::Fixed,
            vector: 0x40,
            level: false,
        };
        let mut lapic = on(2);
        assert!(lapic.matches(&to(2, false)) && !lapic.matches(&to(1, false)));
        assert!(lapic.matches(&ApicMessage { broadcast: true, ..to(0xff, false) }));
        lapic.mmio_write(0xd0, 0x0400_0000, 0);
        assert!(lapic.matches(&to(0x06, true)) && !lapic.matches(&to(0x03, true)));
        lapic.mmio_write(0xe0, 0, 0);
        lapic.mmio_write(0xd0, 0x2400_0000, 0);
        assert!(lapic.matches(&to(0x24, true)) && lapic.matches(&to(0xf4, true)));
        assert!(!lapic.matches(&to(0x14, true)) && !lapic.matches(&to(0x21, true)));
        let lapic = x2(0x23);
        assert!(lapic.matches(&to(0x2_0008, true)) && !lapic.matches(&to(0x1_0008, true)));
    }

    #[test]
    fn the_one_shot_timer_counts_down_and_fires_once() {
        let mut lapic = on(0);
        lapic.mmio_write(0x3e0, 0b0011, 1000);
        lapic.mmio_write(0x320, 0x50, 1000);
        lapic.mmio_write(0x380, 100, 1000);
        assert_eq!(lapic.deadline_ns(), Some(1000 + 1600));
        assert_eq!(lapic.mmio_read(0x390, 1000 + 800), 50);
        assert!(!lapic.advance(2599));
        assert!(lapic.advance(2600));
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x50)));
        assert_eq!(lapic.deadline_ns(), None);
        assert_eq!(lapic.mmio_read(0x390, 5000), 0);
    }

    #[test]
    fn the_periodic_timer_keeps_its_phase_and_skips_what_was_missed() {
        let mut lapic = on(0);
        lapic.mmio_write(0x3e0, 0b1011, 0);
        lapic.mmio_write(0x320, 0x50 | TIMER_PERIODIC, 0);
        lapic.mmio_write(0x380, 100_000, 0);
        assert!(lapic.advance(100_000));
        assert_eq!(lapic.deadline_ns(), Some(200_000));
        lapic.advance(555_000);
        assert_eq!(lapic.deadline_ns(), Some(600_000));
        lapic.mmio_write(0x380, 1, 600_000);
        assert_eq!(lapic.deadline_ns(), Some(620_000), "no guest makes us spin");
    }

    #[test]
    fn the_tsc_deadline_fires_once_and_zero_disarms() {
        let mut lapic = x2(0);
        lapic.msr_write(0x832, u64::from(0x60 | TIMER_TSC_DEADLINE), 0).unwrap();
        lapic.msr_write(0x6e0, 5000, 0).unwrap();
        assert_eq!(lapic.msr_read(0x6e0, 0), Ok(5000));
        assert!(lapic.advance(5000));
        assert_eq!(lapic.msr_read(0x6e0, 0), Ok(0));
        lapic.msr_write(0x6e0, 9000, 0).unwrap();
        lapic.msr_write(0x6e0, 0, 0).unwrap();
        assert_eq!(lapic.deadline_ns(), None);
        lapic.msr_write(0x832, 0x60, 0).unwrap();
        lapic.msr_write(0x6e0, 9000, 0).unwrap();
        assert_eq!(lapic.deadline_ns(), None, "ignored in another mode");
    }

    #[test]
    fn between_one_shot_and_periodic_the_count_goes_on_and_one_that_ran_out_stays_at_zero() {
        // The steps of kvm-unit-tests' test_apic_change_mode.
        let count = 1_000_000;
        let mut lapic = on(0);
        lapic.mmio_write(0x3e0, 0b1011, 0);
        lapic.mmio_write(0x320, 0x50, 0);
        lapic.mmio_write(0x380, count, 0);
        lapic.mmio_write(0x320, 0x50 | TIMER_PERIODIC, 600_000);
        assert_eq!(lapic.mmio_read(0x390, 600_000), 400_000, "not restarted");
        assert_eq!(lapic.mmio_read(0x390, 1_100_000), 900_000, "it wraps around");
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x50)), "and no count is seen before its interrupt");
        lapic.mmio_write(0xb0, 0, 1_100_000);
        lapic.mmio_write(0x320, 0x50, 1_700_000);
        assert_eq!(lapic.mmio_read(0x390, 1_700_000), 300_000, "not restarted");
        assert_eq!(lapic.mmio_read(0x390, 2_000_000), 0);
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x50)));
        lapic.mmio_write(0xb0, 0, 2_000_000);
        lapic.mmio_write(0x320, 0x50 | TIMER_PERIODIC, 2_000_000);
        assert_eq!((lapic.mmio_read(0x390, 5_000_000), lapic.deadline_ns()), (0, None), "it stays at zero");
        assert_eq!(lapic.mmio_read(0x380, 5_000_000), count);
        lapic.mmio_write(0x380, count, 5_000_000);
        assert_eq!(lapic.deadline_ns(), Some(6_000_000), "until the initial count is written");
    }

    #[test]
    fn another_divider_goes_on_with_what_is_left_of_the_count_and_starts_nothing() {
        let mut lapic = on(0);
        lapic.mmio_write(0x3e0, 0b1011, 0);
        lapic.mmio_write(0x320, 0x50, 0);
        lapic.mmio_write(0x380, 1_000_000, 0);
        lapic.mmio_write(0x3e0, 0b0000, 600_000);
        assert_eq!(lapic.mmio_read(0x390, 600_000), 400_000);
        assert_eq!(lapic.deadline_ns(), Some(1_400_000), "at half the rate");
        assert_eq!(lapic.mmio_read(0x390, 1_400_000), 0);
        lapic.mmio_write(0x3e0, 0b1011, 1_500_000);
        assert_eq!(lapic.deadline_ns(), None);
    }

    #[test]
    fn a_tsc_deadline_that_is_past_fires_at_the_write_and_reads_back_zero() {
        let mut lapic = x2(0);
        lapic.msr_write(0x832, u64::from(0x60 | TIMER_TSC_DEADLINE), 0).unwrap();
        for past in [1, 4999, 5000] {
            lapic.msr_write(0x6e0, past, 5000).unwrap();
            assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x60)));
            assert_eq!((lapic.msr_read(0x6e0, 5000), lapic.deadline_ns()), (Ok(0), None));
            lapic.msr_write(0x80b, 0, 5000).unwrap();
        }
        lapic.msr_write(0x6e0, 6000, 5000).unwrap();
        assert_eq!((interrupt(&mut lapic), lapic.msr_read(0x6e0, 5999)), (None, Ok(6000)));
        assert_eq!(lapic.msr_read(0x6e0, 6000), Ok(0), "due, and the board was not looked at yet");
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0x60)));
        // A masked timer is spent nevertheless.
        lapic.msr_write(0x80b, 0, 6000).unwrap();
        lapic.msr_write(0x832, u64::from(0x60 | TIMER_TSC_DEADLINE | LVT_MASKED), 6000).unwrap();
        lapic.msr_write(0x6e0, 1, 6000).unwrap();
        assert_eq!((interrupt(&mut lapic), lapic.msr_read(0x6e0, 6000)), (None, Ok(0)));
    }

    #[test]
    fn the_command_register_sends_to_whom_it_says() {
        let mut lapic = on(0);
        lapic.mmio_write(0x310, 3 << 24, 0);
        lapic.mmio_write(0x300, 0x4500, 0);
        let (shorthand, message) = lapic.take_ipi().unwrap();
        assert_eq!((shorthand, message.destination, message.mode), (Shorthand::None, 3, DeliveryMode::Init));
        lapic.mmio_write(0x300, 0x8500, 0);
        assert_eq!(lapic.take_ipi(), None, "INIT level de-assert does nothing");
        lapic.mmio_write(0x300, 0xc_4680, 0);
        assert_eq!(lapic.take_ipi().unwrap().0, Shorthand::Others);
        let mut lapic = x2(1);
        lapic.msr_write(0x830, 7 << 32 | 0x40fd, 0).unwrap();
        assert_eq!(lapic.take_ipi().unwrap().1.destination, 7);
        lapic.msr_write(0x83f, 0x77, 0).unwrap();
        let (shorthand, message) = lapic.take_ipi().unwrap();
        assert_eq!((shorthand, message.vector), (Shorthand::Itself, 0x77));
    }

    #[test]
    fn errors_are_latched_by_a_write_and_raise_their_entry() {
        let mut lapic = on(0);
        lapic.mmio_write(0x370, 0xfe, 0);
        lapic.mmio_write(0x300, 0x4005, 0);
        assert_eq!(lapic.take_ipi(), None);
        assert_eq!(interrupt(&mut lapic), Some(VcpuEvent::Interrupt(0xfe)));
        assert_eq!(lapic.mmio_read(0x280, 0), 0);
        lapic.mmio_read(0x40, 0);
        lapic.mmio_write(0x280, 0, 0);
        assert_eq!(lapic.mmio_read(0x280, 0), u32::from(ESR_SEND_ILLEGAL_VECTOR | ESR_ILLEGAL_REGISTER));
    }

    #[test]
    fn the_modes_change_only_as_the_manual_allows() {
        let mut lapic = on(0);
        let base = lapic.base();
        assert_eq!(lapic.msr_read(0x802, 0), Err(NoSuchMsr));
        assert_eq!(lapic.msr_write(0x1b, base & !BASE_ENABLE | BASE_X2APIC, 0), Err(NoSuchMsr));
        assert_eq!(lapic.msr_write(0x1b, base + 0x1000, 0), Err(NoSuchMsr));
        lapic.msr_write(0x1b, base | BASE_X2APIC, 0).unwrap();
        assert_eq!(lapic.mmio_read(0x30, 0), u32::MAX);
        assert_eq!(lapic.msr_read(0x803, 0), Ok(u64::from(LAPIC_VERSION)));
        assert_eq!(lapic.msr_write(0x1b, base, 0), Err(NoSuchMsr), "not back to xAPIC");
        assert_eq!(lapic.msr_read(0x80e, 0), Err(NoSuchMsr), "no DFR");
        assert_eq!(lapic.msr_write(0x80f, 0x1_0000, 0), Err(NoSuchMsr));
        lapic.msr_write(0x1b, base & !BASE_ENABLE, 0).unwrap();
        assert_eq!(lapic.msr_write(0x1b, base | BASE_X2APIC, 0), Err(NoSuchMsr), "not straight to x2APIC");
        lapic.msr_write(0x1b, base, 0).unwrap();
    }

    #[test]
    fn init_comes_before_start_up_and_keeps_the_id() {
        let mut lapic = x2(3);
        lapic.accept(DeliveryMode::Init, 0, false);
        lapic.accept(DeliveryMode::Sipi, 0x9a, false);
        assert_eq!(lapic.take_event(false, false), Some(VcpuEvent::Init));
        assert_eq!(lapic.take_event(false, false), Some(VcpuEvent::Sipi(0x9a)));
        assert_eq!(lapic.msr_read(0x802, 0), Ok(3));
        assert_eq!(lapic.msr_read(0x80f, 0), Ok(0xff));
    }

    #[test]
    fn lint0_takes_the_8259_and_lint1_the_nmi() {
        let mut lapic = Lapic::new(0);
        assert!(lapic.takes_extint());
        assert!(!Lapic::new(1).takes_extint());
        lapic.mmio_write(0xf0, 0x1ff, 0);
        lapic.mmio_write(0x350, 0x1_0700, 0);
        assert!(!lapic.takes_extint());
        assert!(!lapic.pulse_lint1());
        lapic.mmio_write(0x360, 0x400, 0);
        assert!(lapic.pulse_lint1());
        assert_eq!(lapic.take_event(true, false), None);
        assert_eq!(lapic.take_event(true, true), Some(VcpuEvent::Nmi));
    }

    #[test]
    fn every_register_and_value_survives_and_the_state_comes_back() {
        for mut lapic in [on(0), x2(0)] {
            for offset in (0..0x1000u32).step_by(4) {
                for value in [u32::MAX, 0, 0xa5a5_5a5a, offset.wrapping_mul(0x9e37_79b9)] {
                    lapic.mmio_write(offset, value, u64::from(value));
                    lapic.mmio_read(offset, u64::MAX);
                    let _ = lapic.msr_write(0x800 + (offset >> 2 & 0xff), u64::from(value), 0);
                    let _ = lapic.msr_read(0x800 + (offset >> 2 & 0xff), u64::MAX);
                    lapic.advance(u64::from(value) * 3);
                    lapic.take_event(true, true);
                }
            }
            let saved = lapic.save();
            let mut twin = Lapic::new(0);
            twin.load(&saved).unwrap();
            assert_eq!(twin.save(), saved);
            assert!(Lapic::new(1).load(&saved).is_err(), "state of another vCPU");
            lapic.reset();
            assert_eq!(lapic.save(), Lapic::new(0).save());
        }
    }
}
