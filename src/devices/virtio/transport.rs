//! virtio over PCI: virtio 1.2 section 4.1, modern (non-transitional) devices only.
//!
//! Vendor 0x1af4, device 0x1040 + type. BAR 0 (32-bit memory, 16 KiB) holds the structures that the vendor capabilities
//! (4.1.4) point to; BAR 1 (32-bit memory, 4 KiB) the MSI-X table at 0 and its pending bits at 0x800.
//!
//! | BAR 0 | structure |
//! |---|---|
//! | 0x0000 | common configuration (4.1.4.3), 60 bytes |
//! | 0x1000 | ISR status (4.1.4.5), cleared by reading |
//! | 0x2000 | device-specific configuration (4.1.4.6) |
//! | 0x3000 | notifications (4.1.4.4), 4 bytes per queue |
//!
//! The fifth capability is a window through which configuration space reaches the BARs (4.1.4.9). Without MSI-X the
//! device drives INTx.
//!
//! **Not modelled**: the transitional and legacy interface (no driver of the last ten years needs it), notification
//! data, shared memory, administration queues. None is offered.
//!
//! A reset, of the device or of one queue, is done once nothing of it is with the host any more: until then the status keeps
//! its bits and queue_reset reads 1 (4.1.4.3.1), and the driver must wait for that (4.1.4.3.2). The
//! queues are dead from the write on.
//!
//! **Hostile guest**: registers accept accesses of their own width only; other writes are dropped, and other reads give
//! zeros; feature bits that were not offered keep FEATURES_OK from rising; a queue that breaks sets DEVICE_NEEDS_RESET
//! and nothing is served until the reset; a device takes a bounded number of chains for each entry. Nothing is
//! allocated by register writes. While bus mastering is off, guest memory is not touched. Writes to a device whose reset is
//! not done are dropped.
//!
//! **Saved state**: the registers, the queues, configuration space with MSI-X, and the device's own section. A reset that is
//! not done is saved as done.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::queue::{Part, Queue};
use super::rings::Rings;
use super::{Queues, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::devices::pci::{BarKind, ConfigSpace, ConfigState, Identity, PciDevice};
use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::irq::{IrqLine, IrqSink};
use crate::hypervisor::memory::GuestMemory;
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Waker;

/// PCI vendor of every virtio device.
pub const VIRTIO_VENDOR: u16 = 0x1af4;
/// PCI device of type 0; 4.1.2.
pub const VIRTIO_DEVICE_BASE: u16 = 0x1040;
/// The number that means "no MSI-X vector".
pub const NO_VECTOR: u16 = 0xffff;

const VERSION: u32 = 1;
const STRUCTURES_BAR: u8 = 0;
const MSIX_BAR: u8 = 1;
const PBA_OFFSET: u32 = 0x800;
const COMMON: u64 = 0x0000;
const COMMON_BYTES: usize = 60;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const NOTIFY_END: u64 = 0x4000;
const NOTIFY_MULTIPLIER: u32 = 4;

/// Vendor-specific capability, and its cfg_type values (4.1.4).
pub const CAP_ID_VENDOR: u8 = 0x09;
/// Common configuration.
pub const CAP_COMMON: u8 = 1;
/// Notifications.
pub const CAP_NOTIFY: u8 = 2;
/// ISR status.
pub const CAP_ISR: u8 = 3;
/// Device-specific configuration.
pub const CAP_DEVICE: u8 = 4;
/// The window in configuration space.
pub const CAP_PCI: u8 = 5;

/// Device status bits, 2.1.
pub const ACKNOWLEDGE: u8 = 1;
/// The driver supports the device.
pub const DRIVER: u8 = 2;
/// The driver is ready.
pub const DRIVER_OK: u8 = 4;
/// The driver accepts the negotiated features.
pub const FEATURES_OK: u8 = 8;
/// The device cannot continue.
pub const NEEDS_RESET: u8 = 0x40;
/// The driver has given up.
pub const FAILED: u8 = 0x80;

/// ISR: a queue has completions.
pub const ISR_QUEUE: u8 = 1;
/// ISR: the device's configuration (or its status) changed.
pub const ISR_CONFIG: u8 = 2;

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    mem: GuestMemory,
    waker: Waker,
    config: ConfigSpace,
    /// Offset of the window capability in configuration space.
    window_cap: u16,
    regs: Registers,
    rings: Arc<Rings>,
    /// An entry was cut short, or a state was loaded: poll soon.
    again: bool,
    /// The driver asked for a reset, and the device is not idle yet.
    resetting: bool,
    /// The same for each queue.
    queue_resets: Vec<bool>,
    /// The board wants no new requests to be taken.
    quiet: bool,
    errors: Arc<GuestErrors>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    queue_select: u16,
    status: u8,
    generation: u8,
    isr: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config: ConfigState,
    regs: Registers,
    queues: Vec<Queue>,
    device: Section,
}

impl Registers {
    fn new(queues: usize) -> Registers {
        Registers {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
            queue_select: 0,
            status: 0,
            generation: 0,
            isr: 0,
        }
    }
}

fn capability(cfg_type: u8, offset: u64, len: u32, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, cfg_type, STRUCTURES_BAR, 0, 0, 0];
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(extra);
    body
}

impl VirtioPci {
    /// Creates the PCI function of `device`, which raises `line` or sends messages to `sink`. `waker` is the one that
    /// the device's back end was built with: a poll without a wake-up costs next to nothing.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        mem: GuestMemory,
        waker: Waker,
        sink: Arc<dyn IrqSink>,
        line: IrqLine,
    ) -> VirtioPci {
        let kind = device.kind();
        let queues = device.queue_sizes().len();
        let (base, sub, interface) = kind.class;
        let mut config = ConfigSpace::new(&Identity {
            vendor: VIRTIO_VENDOR,
            device: VIRTIO_DEVICE_BASE + kind.device_type,
            class: u32::from(base) << 16 | u32::from(sub) << 8 | u32::from(interface),
            // A revision of 1 or more and a subsystem of 0x40 or more keep legacy drivers away (4.1.2.1).
            revision: 1,
            subsystem_vendor: VIRTIO_VENDOR,
            subsystem: 0x40 + kind.device_type,
        });
        config.add_bar(STRUCTURES_BAR, BarKind::Memory32, 0x4000);
        config.add_bar(MSIX_BAR, BarKind::Memory32, 0x1000);
        let mut add = |cfg_type, offset, len: usize, extra: &[u8]| {
            config.add_capability(CAP_ID_VENDOR, &capability(cfg_type, offset, len as u32, extra), &[])
        };
        add(CAP_COMMON, COMMON, COMMON_BYTES, &[]);
        add(CAP_NOTIFY, NOTIFY, NOTIFY_MULTIPLIER as usize * queues, &NOTIFY_MULTIPLIER.to_le_bytes());
        add(CAP_ISR, ISR, 1, &[]);
        let device_bytes = device.config().len();
        if device_bytes > 0 {
            add(CAP_DEVICE, DEVICE, device_bytes, &[]);
        }
        let writable = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let window_cap = config.add_capability(CAP_ID_VENDOR, &capability(CAP_PCI, 0, 0, &[0; 4]), &writable);
        config.add_msix(MSIX_BAR, 0, PBA_OFFSET, queues as u16 + 1, sink);
        config.set_intx(1, line);
        let messages = config.messages().expect("it was given MSI-X above");
        let rings = Arc::new(Rings::new(device.queue_sizes(), mem.clone(), messages, waker.clone()));
        device.attach(&rings);
        VirtioPci {
            device,
            mem,
            waker,
            config,
            window_cap: u16::from(window_cap),
            regs: Registers::new(queues),
            rings,
            again: false,
            resetting: false,
            queue_resets: vec![false; queues],
            quiet: false,
            errors: GuestErrors::silent(),
        }
    }

    /// Reports what the driver does wrong to `errors`.
    pub fn report_to(mut self, errors: Arc<GuestErrors>) -> VirtioPci {
        self.errors = errors;
        self
    }

    fn offered(&self) -> u64 {
        self.device.features() | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_RING_RESET
    }

    fn has_features(&self, features: u64) -> bool {
        self.regs.driver_features & features == features
    }

    /// Returns whether requests may be completed.
    fn is_open(&self) -> bool {
        // Without the bus-master bit a function may not touch guest memory, and the queues are there.
        self.regs.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK && self.config.bus_master()
    }

    /// Returns whether the device may take requests.
    fn serving(&self) -> bool {
        self.is_open() && !self.resetting && !self.quiet
    }

    /// Tells the threads that complete requests what the registers say. Comes after each change of them.
    fn tell_rings(&self) {
        self.rings.set(self.is_open(), &self.regs.queue_vectors);
    }

    fn queue(&self, index: usize) -> std::sync::MutexGuard<'_, Queue> {
        self.rings.queue(index)
    }

    fn enter(&mut self, body: impl FnOnce(&mut dyn VirtioDevice, &mut Queues)) {
        if !self.serving() {
            return;
        }
        let mut queues = Queues::new(&self.rings, &self.errors);
        body(self.device.as_mut(), &mut queues);
        let (cut_short, config_changed) = queues.outcome();
        self.again |= cut_short;
        for index in 0..self.rings.len() {
            let wanted = self.queue(index).take_interrupt(&self.mem);
            if wanted {
                self.interrupt(self.regs.queue_vectors[index], ISR_QUEUE);
            }
        }
        if config_changed {
            self.config_changed();
        }
        self.look_for_broken_queues();
    }

    fn look_for_broken_queues(&mut self) {
        let broken = (0..self.rings.len()).find_map(|index| Some((index, self.queue(index).broken()?)));
        if let Some((index, why)) = broken
            && self.regs.status & NEEDS_RESET == 0
        {
            self.errors.report(&format_args!("virtqueue {index} is broken until the device is reset: {why}"));
            self.regs.status |= NEEDS_RESET;
            if self.regs.status & DRIVER_OK != 0 {
                self.config_changed();
            }
            self.tell_rings();
        }
    }

    fn config_changed(&mut self) {
        self.regs.generation = self.regs.generation.wrapping_add(1);
        self.interrupt(self.regs.config_vector, ISR_CONFIG);
    }

    fn interrupt(&mut self, vector: u16, cause: u8) {
        if self.config.msix_enabled() {
            self.config.notify(vector);
        } else {
            self.regs.isr |= cause;
            self.config.drive_intx(true);
        }
    }

    fn serve_all(&mut self, now_ns: u64) {
        self.again = false;
        self.enter(|device, queues| device.poll(now_ns, queues));
    }

    /// Begins a reset of the device, on a write of 0 to the status, 4.1.4.3.1. It is done at once if the device is idle.
    fn begin_reset(&mut self) {
        // From here on, what ends does not touch the rings.
        (0..self.rings.len()).for_each(|index| self.queue(index).reset());
        self.resetting = true;
        self.finish_resets();
    }

    /// Finishes the resets of which nothing is with the host any more.
    fn finish_resets(&mut self) {
        if self.resetting && self.device.is_idle() {
            self.reset_device();
        }
        for index in 0..self.queue_resets.len() {
            if self.queue_resets[index] && self.device.is_queue_idle(index) {
                self.device.reset_queue(index);
                self.queue_resets[index] = false;
            }
        }
    }

    /// Returns the registers after a reset. The generation stays, since it must not go back.
    fn fresh_registers(&self) -> Registers {
        Registers { generation: self.regs.generation, ..Registers::new(self.rings.len()) }
    }

    /// Resets the device, which is idle.
    fn reset_device(&mut self) {
        self.device.reset();
        (0..self.rings.len()).for_each(|index| self.queue(index).reset());
        self.regs = self.fresh_registers();
        self.again = false;
        self.resetting = false;
        self.queue_resets.fill(false);
        self.config.drive_intx(false);
        self.tell_rings();
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.begin_reset();
            return;
        }
        let mut rising = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED) & !self.regs.status;
        let acceptable = self.has_features(VIRTIO_F_VERSION_1) && self.regs.driver_features & !self.offered() == 0;
        // The driver reads the bit back to learn whether its choice was accepted (3.1.1).
        if rising & FEATURES_OK != 0 && !acceptable {
            rising &= !FEATURES_OK;
        }
        self.regs.status |= rising & !DRIVER_OK;
        if rising & DRIVER_OK != 0 && self.regs.status & FEATURES_OK != 0 {
            self.regs.status |= DRIVER_OK;
            self.device.activate(self.regs.driver_features);
            self.again = true;
            self.look_for_broken_queues();
        }
    }

    fn selected(&self) -> Option<usize> {
        let index = usize::from(self.regs.queue_select);
        (index < self.rings.len()).then_some(index)
    }

    fn common_image(&self) -> [u8; COMMON_BYTES] {
        let mut image = [0u8; COMMON_BYTES];
        let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let regs = &self.regs;
        put(0x00, &regs.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered(), regs.device_feature_select).to_le_bytes());
        put(0x08, &regs.driver_feature_select.to_le_bytes());
        put(0x0c, &half(regs.driver_features, regs.driver_feature_select).to_le_bytes());
        put(0x10, &regs.config_vector.to_le_bytes());
        put(0x12, &(self.rings.len() as u16).to_le_bytes());
        put(0x14, &[regs.status, regs.generation]);
        put(0x16, &regs.queue_select.to_le_bytes());
        if let Some(index) = self.selected() {
            let queue = self.queue(index);
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &regs.queue_vectors[index].to_le_bytes());
            put(0x1c, &u16::from(queue.enabled()).to_le_bytes());
            put(0x1e, &(index as u16).to_le_bytes());
            put(0x20, &queue.part(Part::Desc).to_le_bytes());
            put(0x28, &queue.part(Part::Driver).to_le_bytes());
            put(0x30, &queue.part(Part::Device).to_le_bytes());
            put(0x38, &(index as u16).to_le_bytes());
            put(0x3a, &u16::from(self.queue_resets[index]).to_le_bytes());
        }
        image
    }

    fn write_common(&mut self, offset: u64, width: u8, value: u64) {
        self.finish_resets();
        if self.resetting {
            // 4.1.4.3.2: the driver reads the status until it is 0 before it goes on. It may ask again.
            if (offset, value) != (0x14, 0) {
                self.errors.report(&"a register was written before the reset was done");
            }
            return;
        }
        match (offset, width) {
            (0x00, 4) => self.regs.device_feature_select = value as u32,
            (0x08, 4) => self.regs.driver_feature_select = value as u32,
            (0x0c, 4) => self.write_driver_features(value as u32),
            (0x10, 2) => self.regs.config_vector = self.vector(value as u16),
            (0x14, 1) => self.write_status(value as u8),
            (0x16, 2) => self.regs.queue_select = value as u16,
            (0x18..0x3c, _) => {
                if let Some(index) = self.selected() {
                    self.write_queue(index, offset, width, value);
                }
            }
            _ => {}
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.regs.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        let features = &mut self.regs.driver_features;
        match self.regs.driver_feature_select {
            0 => *features = *features & !0xffff_ffff | value,
            1 => *features = *features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.config.msix_vectors() { wanted } else { NO_VECTOR }
    }

    fn write_queue(&mut self, index: usize, offset: u64, width: u8, value: u64) {
        if self.queue_resets[index] {
            self.errors.report(&"a queue's register was written before the queue's reset was done");
            return;
        }
        match (offset, width) {
            (0x18, 2) => self.queue(index).set_size(value as u16),
            (0x1a, 2) => self.regs.queue_vectors[index] = self.vector(value as u16),
            (0x1c, 2) if value == 1 && self.regs.status & FEATURES_OK != 0 => {
                let (event_idx, indirect) = (self.has_features(VIRTIO_F_EVENT_IDX), self.has_features(VIRTIO_F_INDIRECT_DESC));
                self.queue(index).negotiate(event_idx, indirect);
                self.queue(index).enable(&self.mem);
                self.look_for_broken_queues();
            }
            (0x20..0x38, 4 | 8) => {
                let part = [Part::Desc, Part::Driver, Part::Device][(offset as usize - 0x20) / 8];
                let old = self.queue(index).part(part);
                let new = match (offset % 8, width) {
                    (0, 8) => value,
                    (0, 4) => old & !0xffff_ffff | value,
                    (4, 4) => old & 0xffff_ffff | value << 32,
                    _ => old,
                };
                self.queue(index).set_part(part, new);
            }
            (0x3a, 2) if value == 1 && self.has_features(VIRTIO_F_RING_RESET) && self.queue(index).enabled() => {
                self.queue(index).reset();
                self.regs.queue_vectors[index] = NO_VECTOR;
                self.queue_resets[index] = true;
                self.finish_resets();
            }
            _ => {}
        }
    }

    fn read_bytes(image: &[u8], offset: u64, width: u8) -> u64 {
        let byte = |i: u64| usize::try_from(offset.saturating_add(i)).ok().and_then(|at| image.get(at)).copied().unwrap_or(0);
        (0..u64::from(width)).map(|i| u64::from(byte(i)) << (8 * i)).sum()
    }

    fn write_device_config(&mut self, offset: u64, width: u8, value: u64) {
        let len = self.device.config().len();
        let offset = offset as usize;
        let width = usize::from(width);
        if offset + width <= len {
            self.device.write_config(offset, &value.to_le_bytes()[..width]);
        }
    }

    /// Returns the window's BAR, offset and width, if they allow an access.
    fn window_target(&self) -> Option<(u8, u64, u8)> {
        let at = self.window_cap;
        let (bar, offset, len) = (self.config.read(at + 4, 1) as u8, self.config.read(at + 8, 4), self.config.read(at + 12, 4));
        let limit = match bar {
            STRUCTURES_BAR => 0x4000,
            MSIX_BAR => 0x1000,
            _ => return None,
        };
        let usable = matches!(len, 1 | 2 | 4) && offset % len == 0 && offset < limit;
        usable.then_some((bar, u64::from(offset), len as u8))
    }

    fn is_window_data(&self, offset: u16) -> bool {
        offset == self.window_cap + 16
    }
}

impl PciDevice for VirtioPci {
    fn name(&self) -> &'static str {
        self.device.name()
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, width: u8) -> u32 {
        if !self.is_window_data(offset) {
            return self.config.read(offset, width);
        }
        let Some((bar, at, len)) = self.window_target() else { return 0 };
        let value = self.config.msix_read(bar, at, len).unwrap_or_else(|| self.bar_read(bar, at, len));
        value as u32
    }

    fn config_write(&mut self, offset: u16, width: u8, value: u32) {
        if !self.is_window_data(offset) {
            let was_master = self.config.bus_master();
            self.config.write(offset, width, value);
            self.tell_rings();
            // Look now for chains that came while guest memory was out of reach.
            self.again |= self.config.bus_master() && !was_master;
            return;
        }
        let Some((bar, at, len)) = self.window_target() else { return };
        let value = u64::from(value) & (u64::MAX >> (64 - 8 * u32::from(len)));
        if !self.config.msix_write(bar, at, len, value) {
            self.bar_write(bar, at, len, value);
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> u64 {
        if bar != STRUCTURES_BAR {
            return 0;
        }
        match offset {
            COMMON..ISR => {
                self.finish_resets();
                Self::read_bytes(&self.common_image(), offset, width)
            }
            ISR => {
                // Reading acknowledges: it clears the causes and lowers the line (4.1.4.5).
                let isr = std::mem::take(&mut self.regs.isr);
                self.config.drive_intx(false);
                u64::from(isr)
            }
            DEVICE..NOTIFY => Self::read_bytes(&self.device.config(), offset - DEVICE, width),
            _ => 0,
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, width: u8, value: u64) {
        if bar != STRUCTURES_BAR {
            return;
        }
        match offset {
            COMMON..ISR => {
                self.write_common(offset, width, value);
                self.tell_rings();
            }
            DEVICE..NOTIFY => self.write_device_config(offset - DEVICE, width, value),
            NOTIFY..NOTIFY_END => {
                let index = ((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)) as usize;
                if index < self.rings.len() && self.queue(index).is_live() {
                    self.enter(|device, queues| device.notify(index, queues));
                }
            }
            _ => {}
        }
    }

    fn quiesce(&mut self) -> bool {
        self.quiet = true;
        self.finish_resets();
        self.device.is_idle()
    }

    fn resume(&mut self) {
        self.quiet = false;
        // For what came meanwhile.
        self.again = true;
    }

    fn reset(&mut self) {
        self.reset_device();
        self.regs.generation = 0;
        self.config.reset();
        self.tell_rings();
    }

    fn save(&self) -> Section {
        let state = State {
            config: self.config.save(),
            regs: if self.resetting { self.fresh_registers() } else { self.regs.clone() },
            queues: (0..self.rings.len()).map(|index| self.queue(index).clone()).collect(),
            device: self.device.save(),
        };
        Section::encode(self.device.name(), VERSION, &state)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let kind = self.device.name();
        let state: State = section.decode(kind, VERSION)?;
        let damaged = |why: &str| Err(StateError::Damaged { kind, why: why.to_string() });
        let fits = |(own, saved): (usize, &Queue)| self.queue(own).accepts(saved);
        if state.queues.len() != self.rings.len() || !state.queues.iter().enumerate().all(fits) {
            return damaged("its queues are not this device's");
        }
        let regs = &state.regs;
        let vector_exists = |&vector: &u16| vector == NO_VECTOR || vector < self.config.msix_vectors();
        if regs.queue_vectors.len() != self.rings.len()
            || !regs.queue_vectors.iter().chain([&regs.config_vector]).all(vector_exists)
        {
            return damaged("an interrupt vector does not exist");
        }
        if regs.status & FEATURES_OK != 0 && regs.driver_features & !self.offered() != 0 {
            return damaged("features are in use that this device does not offer");
        }
        // All or nothing: the device's state and the transport's belong together.
        let undo = self.device.save();
        self.device.load(&state.device)?;
        if let Err(error) = self.config.load(kind, &state.config) {
            self.device.load(&undo).expect("a device takes back the state that it just gave");
            return Err(error);
        }
        self.regs = state.regs;
        for (index, queue) in state.queues.into_iter().enumerate() {
            *self.queue(index) = queue;
        }
        self.resetting = false;
        self.queue_resets.fill(false);
        // A notification before the save may not have been served, so the restored device looks at its
        // queues once.
        self.again = self.regs.status & DRIVER_OK != 0;
        if self.again {
            self.device.activate(self.regs.driver_features);
        }
        self.tell_rings();
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        match self.serving() {
            true if self.again => Some(0),
            true => self.device.deadline_ns(),
            false => None,
        }
    }

    fn poll(&mut self, now_ns: u64) {
        let woken = self.waker.take();
        self.finish_resets();
        let due = self.device.deadline_ns().is_some_and(|deadline| deadline <= now_ns);
        if woken || due || self.again {
            self.serve_all(now_ns);
        }
    }
}
