//! The targets that drive chips by their registers: a chip alone, and the interrupt fabric with vCPUs that take events.

use std::sync::Arc;

use vmctl::testing::devices::debug_exit::DebugExit;
use vmctl::testing::devices::ioapic::{IoApic, PINS};
use vmctl::testing::devices::lapic::Lapic;
use vmctl::testing::devices::pic::Pic;
use vmctl::testing::devices::pit::Pit;
use vmctl::testing::devices::pm::Pm;
use vmctl::testing::devices::ps2::Ps2;
use vmctl::testing::devices::rtc::Rtc;
use vmctl::testing::devices::serial::Serial;
use vmctl::testing::hypervisor::backend::LocalApics;
use vmctl::testing::hypervisor::bus::{Access, Device};
use vmctl::testing::hypervisor::clock::{Clock, ManualClock};
use vmctl::testing::hypervisor::irq::{IrqLine, IrqProbe, IrqSink, Irqchip};
use vmctl::testing::hypervisor::state::Section;
use vmctl::testing::hypervisor::waking::{Attention, Waker};
use vmctl::testing::machine::interrupts::{InterruptRegisters, Interrupts};

use super::{Bytes, Line};

/// Polls after which a device must have nothing due at one moment.
const POLLS_MAX: u32 = 1_000;

/// What stands around a chip.
struct Wiring {
    clock: Arc<ManualClock>,
    probe: Arc<IrqProbe>,
    attention: Arc<Attention>,
    line: Line,
}

impl Wiring {
    fn new() -> Wiring {
        Wiring {
            clock: ManualClock::new(1_700_000_000_000_000_000),
            probe: IrqProbe::new(),
            attention: Attention::new(2),
            line: Line::default(),
        }
    }
    fn irq(&self, gsi: u32) -> IrqLine {
        IrqLine::new(self.probe.clone(), gsi)
    }
}

fn value(bytes: &mut Bytes, width: u8) -> u64 {
    bytes.quad() & (u64::MAX >> (64 - 8 * u32::from(width)))
}

/// A step of time: mostly short, sometimes years.
fn step_ns(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..=150 => u64::from(bytes.word()),
        151..=240 => u64::from(bytes.long()),
        241..=252 => 1_000 * u64::from(bytes.long()),
        _ => bytes.quad() >> 4,
    }
}

/// A state as people compare it.
fn text(state: &Section) -> String {
    format!("{} {:02x?}", state.kind, state.bytes)
}

fn settle(device: &mut dyn Device, now_ns: u64) {
    for _ in 0..POLLS_MAX {
        if device.deadline_ns().is_none_or(|due| due > now_ns) {
            return;
        }
        device.poll(now_ns);
    }
    panic!("{} always has something due: the board would spin", device.name());
}

/// Drives a chip by its registers, `(region, bytes)` each.
fn registers<D: Device>(build: impl Fn(&Wiring) -> D, regions: &[(u16, u64)], data: &[u8]) {
    let wiring = Wiring::new();
    let mut device = build(&wiring);
    let mut bytes = Bytes::new(data);
    while !bytes.is_empty() {
        let action = bytes.byte();
        let (region, size) = regions[usize::from(bytes.byte()) % regions.len()];
        let wild = bytes.byte() == 0;
        let offset = if wild { bytes.quad() } else { u64::from(bytes.byte()) % size };
        let width = if wild || action & 1 != 0 { bytes.width() } else { 1 };
        let access = Access { region: if wild { region ^ 7 } else { region }, offset, width };
        match action % 16 {
            0..=4 => _ = device.read(access),
            5..=11 => device.write(access, value(&mut bytes, width)),
            12 | 13 => {
                wiring.clock.set_ns(wiring.clock.now_ns().saturating_add(step_ns(&mut bytes)).min(1 << 62));
                settle(&mut device, wiring.clock.now_ns());
            }
            14 => {
                *wiring.line.room.lock().expect("not poisoned") = usize::from(bytes.word());
                *wiring.line.input.lock().expect("not poisoned") = usize::from(bytes.byte());
                device.poll(wiring.clock.now_ns());
            }
            _ => {
                let state = device.save();
                let mut twin = build(&wiring);
                twin.load(&state).expect("a device takes the state of its twin");
                assert_eq!(text(&twin.save()), text(&state), "save, load, save is the identity");
                device = twin;
            }
        }
        let _ = device.deadline_ns();
        wiring.probe.take_messages();
    }
    // What was printed but not taken yet survives a reset of the UART.
    *wiring.line.room.lock().expect("not poisoned") = usize::MAX;
    device.poll(u64::MAX);
    device.reset();
    assert_eq!(text(&device.save()), text(&build(&wiring).save()), "reset equals new");
}

/// 16550A.
pub fn serial(data: &[u8]) {
    registers(|a| Serial::new(a.irq(4), Box::new(a.line.clone())), &[(0, 8)], data);
}

/// 8254 and port 61h.
pub fn pit(data: &[u8]) {
    registers(|a| Pit::new(a.clock.clone(), a.irq(0)), &[(0, 4), (1, 1)], data);
}

/// MC146818.
pub fn rtc(data: &[u8]) {
    registers(|a| Rtc::new(a.clock.clone(), a.irq(8)), &[(0, 2)], data);
}

/// 8042.
pub fn ps2(data: &[u8]) {
    registers(|a| Ps2::new(a.irq(1), a.attention.clone()), &[(0, 1), (1, 1), (Ps2::PORT_92, 1)], data);
}

/// ACPI fixed hardware, and the debug-exit port.
pub fn pm(data: &[u8]) {
    let build = |a: &Wiring| Pm::new(a.clock.clone(), a.irq(9), a.attention.clone(), Waker::new(a.attention.clone()));
    registers(build, &[(Pm::EVENT, 4), (Pm::CONTROL, 2), (Pm::TIMER, 4)], data);
    registers(|a| DebugExit::new(a.attention.clone()), &[(0, 4)], data);
}

/// 8259A pair with its inputs and its acknowledge cycle.
pub fn pic(data: &[u8]) {
    registers(|_| Pic::new(), &[(Pic::MASTER, 2), (Pic::SLAVE, 2), (Pic::ELCR, 2)], data);
    let mut pic = Pic::new();
    let mut bytes = Bytes::new(data);
    while !bytes.is_empty() {
        match bytes.byte() % 4 {
            0 => {
                let access = Access { region: u16::from(bytes.byte() % 3), offset: u64::from(bytes.byte() & 1), width: 1 };
                pic.write(access, u64::from(bytes.byte()));
            }
            1 => pic.set_irq(bytes.byte() & 15, bytes.byte() & 1 != 0, bytes.byte() & 7 != 0),
            2 => _ = pic.read(Access { region: u16::from(bytes.byte() % 3), offset: u64::from(bytes.byte() & 1), width: 1 }),
            _ => {
                if pic.output() {
                    pic.acknowledge();
                }
            }
        }
    }
}

/// I/O APIC with its pins and its messages.
pub fn ioapic(data: &[u8]) {
    registers(|_| IoApic::new(), &[(0, 0x100)], data);
    let mut chip = IoApic::new();
    let mut bytes = Bytes::new(data);
    while !bytes.is_empty() {
        match bytes.byte() % 4 {
            0 => {
                chip.write(Access { region: 0, offset: 0, width: 4 }, u64::from(bytes.byte() % 0x48));
                chip.write(Access { region: 0, offset: 0x10, width: 4 }, u64::from(bytes.long()));
            }
            1 => chip.set_pin(usize::from(bytes.byte()) % PINS, bytes.byte() & 1 != 0, bytes.byte() & 7 != 0),
            2 => chip.end_of_interrupt(bytes.byte()),
            _ => {
                let messages = (0..=PINS).take_while(|_| chip.take_message().is_some()).count();
                assert!(messages <= PINS, "a pin sends once until its EOI");
            }
        }
    }
}

/// Local APIC: registers, MSRs, messages in and out, its timer.
pub fn lapic(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut apic = Lapic::new(u32::from(bytes.byte() & 1));
    let mut now_ns = 0u64;
    while !bytes.is_empty() {
        match bytes.byte() % 12 {
            0 | 1 => _ = apic.mmio_read(u32::from(bytes.byte()) << 4, now_ns),
            2..=4 => apic.mmio_write(u32::from(bytes.byte()) << 4, bytes.long(), now_ns),
            5 => {
                let msr = [0x1b, 0x6e0, 0x800 + u32::from(bytes.byte())][usize::from(bytes.byte() % 3)];
                let _ = apic.msr_read(msr, now_ns);
                let _ = apic.msr_write(msr, bytes.quad(), now_ns);
            }
            6 => {
                if let Some(mode) = vmctl::testing::devices::lapic::DeliveryMode::from_bits(bytes.byte()) {
                    apic.accept(mode, bytes.byte(), bytes.byte() & 1 != 0);
                }
            }
            7 => {
                apic.take_event(bytes.byte() & 1 != 0, bytes.byte() & 1 != 0);
            }
            8 => {
                apic.take_ipi();
                apic.take_eoi();
            }
            9 => {
                now_ns = now_ns.saturating_add(step_ns(&mut bytes)).min(1 << 62);
                for round in 0..=POLLS_MAX {
                    assert!(round < POLLS_MAX, "the timer is always due: the vCPU would spin");
                    if apic.deadline_ns().is_none_or(|due| due > now_ns) {
                        break;
                    }
                    apic.advance(now_ns);
                }
            }
            10 => apic.set_cr8(bytes.byte()),
            _ => {
                let state = apic.save();
                let mut twin = Lapic::new(apic.id());
                twin.load(&state).expect("a device takes the state of its twin");
                assert_eq!(text(&twin.save()), text(&state), "save, load, save is the identity");
                apic = twin;
            }
        }
    }
}

/// Address of the local APICs' register page.
const APIC_BASE: u64 = 0xfee0_0000;

/// The 8259A pair, the I/O APIC and two local APICs together.
pub fn interrupts(data: &[u8]) {
    let (attention, clock) = (Attention::new(2), ManualClock::new(0));
    let fabric = Interrupts::new(2, attention.clone(), clock.clone());
    let mut registers = InterruptRegisters::new(fabric.clone());
    let mut bytes = Bytes::new(data);
    while !bytes.is_empty() {
        let vcpu = usize::from(bytes.byte() & 1);
        match bytes.byte() % 12 {
            0 | 1 => {
                let region = u16::from(bytes.byte() & 3);
                let offset = if region == InterruptRegisters::IOAPIC {
                    16 * u64::from(bytes.byte() & 1)
                } else {
                    u64::from(bytes.byte() & 1)
                };
                let access = Access { region, offset, width: if region == InterruptRegisters::IOAPIC { 4 } else { 1 } };
                registers.write(access, value(&mut bytes, access.width));
                registers.read(access);
            }
            2 | 3 => _ = fabric.write(vcpu, APIC_BASE + (u64::from(bytes.byte()) << 4), 4, u64::from(bytes.long())),
            4 => _ = fabric.read(vcpu, APIC_BASE + (u64::from(bytes.byte()) << 4), bytes.width()),
            5 => {
                let msr = [0x1b, 0x6e0, 0x800 + u32::from(bytes.byte())][usize::from(bytes.byte() % 3)];
                let _ = fabric.msr_read(vcpu, msr);
                let _ = fabric.msr_write(vcpu, msr, bytes.quad());
            }
            6 => fabric.message(0xfee0_0000 | u64::from(bytes.long() & 0xf_ffff), bytes.long()),
            7 => {
                // A device's line changes, each way once: the fabric counts lines that are high.
                let gsi = u32::from(bytes.byte()) % 24;
                fabric.set_line(gsi, true, true);
                fabric.set_line(gsi, false, true);
            }
            8 | 9 => _ = fabric.take_event(vcpu, bytes.byte() & 1 != 0, bytes.byte() & 1 != 0),
            10 => {
                clock.set_ns(clock.now_ns().saturating_add(step_ns(&mut bytes)).min(1 << 62));
                for round in 0..=POLLS_MAX {
                    assert!(round < POLLS_MAX, "a timer is always due: the board would spin");
                    if fabric.advance(clock.now_ns()).is_none_or(|due| due > clock.now_ns()) {
                        break;
                    }
                }
            }
            _ => {
                fabric.set_cr8(vcpu, bytes.byte());
                let state = fabric.save().expect("chips in this process");
                let twin = Interrupts::new(2, attention.clone(), clock.clone());
                twin.load(&state).expect("a device takes the state of its twin");
                assert_eq!(text(&twin.save().expect("chips in this process")), text(&state), "save, load, save is the identity");
            }
        }
    }
}
