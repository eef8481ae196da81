//! The board: devices on a bus, under one lock, with their deadlines and wake-ups.
//!
//! Back ends enter through [`Platform`]. Interrupt controllers ([`Irqchip`]) have a lock of their own, taken after the
//! board's and never before it, so that a back-end thread may raise an interrupt without the board.
//!
//! **Hostile guest**: an access of any width at any address is answered. One that no device takes as a whole is split
//! into bytes, and bytes that no device takes read as ones.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::hypervisor::backend::{MachineExit, Platform};
use crate::hypervisor::bus::{Bus, Device, DeviceId, Overlap, Space};
use crate::hypervisor::clock::Clock;
use crate::hypervisor::irq::Irqchip;
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Attention;

/// Time between two looks at devices that still have something with the host.
const QUIESCE_INTERVAL: Duration = Duration::from_millis(1);

/// The window at which one region of a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Ports or memory.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
    /// The device's number for the region.
    pub region: u16,
}

impl Wire {
    /// Creates a window of `len` ports from `base`.
    pub const fn ports(base: u64, len: u64, region: u16) -> Wire {
        Wire { space: Space::Port, base, len, region }
    }
    /// Creates a window of `len` bytes of memory from `base`.
    pub const fn memory(base: u64, len: u64, region: u16) -> Wire {
        Wire { space: Space::Memory, base, len, region }
    }
}

struct Slot {
    device: Box<dyn Device>,
    deadline_ns: Option<u64>,
}

impl Slot {
    /// Reads the device's deadline again. Returns it if it is nearer than before.
    fn nearer_deadline(&mut self) -> Option<u64> {
        let before = std::mem::replace(&mut self.deadline_ns, self.device.deadline_ns());
        self.deadline_ns.filter(|&now| before.is_none_or(|before| now < before))
    }
}

#[derive(Default)]
struct BoardState {
    bus: Bus,
    slots: Vec<Slot>,
    /// Between `quiesce` and `resume`.
    quiet: bool,
}

/// The devices of a machine and their wiring.
pub struct Board {
    state: Mutex<BoardState>,
    interrupts: Arc<dyn Irqchip>,
    attention: Arc<Attention>,
    clock: Arc<dyn Clock>,
}

impl Board {
    /// Creates a board with only the CPU side of its interrupt controllers.
    pub fn new(interrupts: Arc<dyn Irqchip>, attention: Arc<Attention>, clock: Arc<dyn Clock>) -> Board {
        Board { state: Mutex::new(BoardState::default()), interrupts, attention, clock }
    }

    fn state(&self) -> MutexGuard<'_, BoardState> {
        self.state.lock().expect("a device that panics is a bug, and ends the machine")
    }

    /// Adds a device to the board.
    pub fn add(&self, device: Box<dyn Device>, wires: &[Wire]) -> Result<DeviceId, Overlap> {
        let mut state = self.state();
        let id = DeviceId(state.slots.len());
        for wire in wires {
            state.bus.map(wire.space, wire.base, wire.len, id, wire.region)?;
        }
        state.slots.push(Slot { device, deadline_ns: None });
        Ok(id)
    }

    fn read(&self, space: Space, addr: u64, width: u8) -> u64 {
        let mut state = self.state();
        let BoardState { bus, slots, .. } = &mut *state;
        let Some((id, access)) = bus.find(space, addr, width) else {
            drop(state);
            return self.read_bytes(space, addr, width);
        };
        let slot = &mut slots[id.0];
        let value = slot.device.read(access);
        // An access may start a timer: the board must run by then.
        if let Some(deadline_ns) = slot.nearer_deadline() {
            self.attention.due_by(deadline_ns);
        }
        value & mask(width)
    }

    /// Reads byte by byte what no device takes as a whole.
    fn read_bytes(&self, space: Space, addr: u64, width: u8) -> u64 {
        if width == 1 {
            return 0xff;
        }
        (0..width).fold(0, |value, i| value | (self.read(space, addr.wrapping_add(u64::from(i)), 1) & 0xff) << (8 * i))
    }

    fn write(&self, space: Space, addr: u64, width: u8, value: u64) {
        let mut state = self.state();
        let BoardState { bus, slots, .. } = &mut *state;
        let Some((id, access)) = bus.find(space, addr, width) else {
            drop(state);
            if width > 1 {
                for i in 0..width {
                    // The bytes may belong to several devices, so each is looked up on its own. The lock is not held
                    // over that.
                    self.write(space, addr.wrapping_add(u64::from(i)), 1, value >> (8 * i) & 0xff);
                }
            }
            return;
        };
        let slot = &mut slots[id.0];
        slot.device.write(access, value & mask(width));
        if let Some(deadline_ns) = slot.nearer_deadline() {
            self.attention.due_by(deadline_ns);
        }
    }

    /// Lets no device take anything new from the guest, and waits until nothing of the guest's is with the host any more.
    /// The lock is free while it waits, so that vCPUs and timers go on.
    pub fn quiesce(&self) {
        loop {
            let mut state = self.state();
            state.quiet = state.slots.iter_mut().fold(true, |quiet, slot| slot.device.quiesce() & quiet);
            if state.quiet {
                return;
            }
            drop(state);
            std::thread::sleep(QUIESCE_INTERVAL);
        }
    }

    /// Lets the devices go on after `quiesce`.
    pub fn resume(&self) {
        let mut state = self.state();
        state.quiet = false;
        for slot in &mut state.slots {
            slot.device.resume();
            slot.deadline_ns = slot.device.deadline_ns();
        }
        drop(state);
        // Each device looks for what came meanwhile.
        self.attention.wake_board();
    }

    /// Does `work` on the devices while nothing of the guest's is with the host, also if nobody called `quiesce` before.
    fn at_rest<T>(&self, work: impl FnOnce(&mut BoardState) -> T) -> T {
        let held = self.state().quiet;
        if !held {
            self.quiesce();
        }
        let result = work(&mut self.state());
        if !held {
            self.resume();
        }
        result
    }

    /// Resets every device and then the interrupt controllers to the power-on state.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "saved state is a part of every device and vCPU; the tests hold it until a snapshot uses it")
    )]
    pub fn reset(&self) {
        self.at_rest(|state| {
            for slot in &mut state.slots {
                slot.device.reset();
                slot.deadline_ns = slot.device.deadline_ns();
            }
            self.interrupts.reset();
        });
    }

    /// Returns the state of every device in wiring order, then of the interrupt controllers.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "saved state is a part of every device and vCPU; the tests hold it until a snapshot uses it")
    )]
    pub fn save(&self) -> Result<Vec<Section>, StateError> {
        self.at_rest(|state| {
            let devices = state.slots.iter().map(|slot| slot.device.save());
            Ok(devices.chain([self.interrupts.save()?]).collect())
        })
    }

    /// Restores the state that `save` of a board with the same wiring returned.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "saved state is a part of every device and vCPU; the tests hold it until a snapshot uses it")
    )]
    pub fn load(&self, sections: &[Section]) -> Result<(), StateError> {
        self.at_rest(|state| self.load_at_rest(state, sections))
    }

    fn load_at_rest(&self, state: &mut BoardState, sections: &[Section]) -> Result<(), StateError> {
        if sections.len() != state.slots.len() + 1 {
            let why = format!("{} sections for {} devices", sections.len(), state.slots.len() + 1);
            return Err(StateError::Damaged { kind: "board", why });
        }
        let (interrupts, devices) = sections.split_last().expect("counted above");
        for (slot, section) in state.slots.iter_mut().zip(devices) {
            slot.device.load(section)?;
            slot.deadline_ns = slot.device.deadline_ns();
        }
        self.interrupts.load(interrupts)
    }
}

fn mask(width: u8) -> u64 {
    if width >= 8 { u64::MAX } else { (1 << (8 * u32::from(width))) - 1 }
}

impl Platform for Board {
    fn port_read(&self, _vcpu: usize, port: u16, width: u8) -> u32 {
        self.read(Space::Port, u64::from(port), width) as u32
    }

    fn port_write(&self, _vcpu: usize, port: u16, width: u8, value: u32) {
        self.write(Space::Port, u64::from(port), width, u64::from(value));
    }

    fn mmio_read(&self, _vcpu: usize, addr: u64, width: u8) -> u64 {
        self.read(Space::Memory, addr, width)
    }

    fn mmio_write(&self, _vcpu: usize, addr: u64, width: u8, value: u64) {
        self.write(Space::Memory, addr, width, value);
    }

    fn advance(&self, now_ns: u64) -> Option<u64> {
        // A back end woke a device. Each device asks its own waker, which is cheaper than to keep track of them.
        let woken = self.attention.take_board();
        let mut nearest: Option<u64> = None;
        {
            let mut state = self.state();
            for slot in &mut state.slots {
                if woken || slot.deadline_ns.is_some_and(|due| due <= now_ns) {
                    slot.device.poll(now_ns);
                    slot.deadline_ns = slot.device.deadline_ns();
                }
                nearest = [nearest, slot.deadline_ns].into_iter().flatten().min();
            }
        }
        [nearest, self.interrupts.advance(now_ns)].into_iter().flatten().min()
    }

    fn vcpu_failed(&self, _vcpu: usize, exit: MachineExit) {
        self.attention.stop(exit);
    }

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::super::interrupts::Interrupts;
    use super::*;
    use crate::hypervisor::bus::Access;
    use crate::hypervisor::clock::ManualClock;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    /// A device that is quiet when it was asked three times.
    struct Busy {
        log: Log,
        asked: u32,
    }

    impl Device for Busy {
        fn name(&self) -> &'static str {
            "busy"
        }
        fn read(&mut self, _: Access) -> u64 {
            0x5a
        }
        fn write(&mut self, _: Access, _: u64) {}
        fn quiesce(&mut self) -> bool {
            self.asked += 1;
            self.log.lock().unwrap().push("quiesce");
            self.asked % 3 == 0
        }
        fn resume(&mut self) {
            self.log.lock().unwrap().push("resume");
        }
        fn reset(&mut self) {
            self.log.lock().unwrap().push("reset");
        }
        fn save(&self) -> Section {
            self.log.lock().unwrap().push("save");
            Section::encode("busy", 1, &())
        }
        fn load(&mut self, section: &Section) -> Result<(), StateError> {
            section.decode("busy", 1)
        }
    }

    #[test]
    fn devices_are_quiet_before_they_are_reset_or_saved_and_go_on_afterwards() {
        let (attention, clock, log) = (Attention::new(1), ManualClock::new(0), Log::default());
        let board = Board::new(Interrupts::new(1, attention.clone(), clock.clone()), attention, clock);
        board.add(Box::new(Busy { log: log.clone(), asked: 0 }), &[Wire::ports(0x80, 1, 0)]).unwrap();
        let took = || std::mem::take(&mut *log.lock().unwrap());
        board.reset();
        assert_eq!(took(), ["quiesce", "quiesce", "quiesce", "reset", "resume"]);
        // Whoever needs more than one thing of a machine at rest holds it there.
        board.quiesce();
        let state = board.save().unwrap();
        board.load(&state).unwrap();
        assert_eq!(board.port_read(0, 0x80, 1), 0x5a, "the lock is free");
        assert_eq!(took(), ["quiesce", "quiesce", "quiesce", "save"]);
        board.resume();
        assert_eq!(took(), ["resume"]);
    }
}
