//! One port of the adapter: AHCI 1.3.1 section 3.3, the command list, and frames (Serial ATA 3.x section 10.5).
//!
//! | offset | register |
//! |---|---|
//! | 0x00, 0x04 | PxCLB, PxCLBU: the command list, 32 headers of 32 bytes |
//! | 0x08, 0x0c | PxFB, PxFBU: where the drive's frames are written |
//! | 0x10, 0x14 | PxIS (write 1 to clear), PxIE |
//! | 0x18 | PxCMD: ST, SUD, POD, CLO, FRE, CCS, FR, CR, ATAPI |
//! | 0x20, 0x24 | PxTFD: status and error of the drive; PxSIG |
//! | 0x28, 0x2c, 0x30 | PxSSTS, PxSCTL, PxSERR |
//! | 0x34, 0x38 | PxSACT, PxCI: write 1 to set |
//!
//! A command that fails stops the port until the driver clears ST, as the specification requires (6.2.2); its bit in
//! PxCI (or PxSACT) stays set.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DriveKind, ata, atapi};
use crate::devices::disk::in_flight::{InFlight, Part};
use crate::devices::disk::{Disk, DiskOp, DiskStatus};
use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::memory::{GuestAddr, GuestMemory};

/// Maximum number of regions of one command's data.
pub const PRDS_MAX: usize = 1024;
/// Maximum number of bytes that a command moves: 65536 sectors.
const COMMAND_BYTES_MAX: u64 = 32 << 20;

const CMD_ST: u32 = 1 << 0;
const CMD_SUD: u32 = 1 << 1;
const CMD_POD: u32 = 1 << 2;
const CMD_CLO: u32 = 1 << 3;
const CMD_FRE: u32 = 1 << 4;
const CMD_FR: u32 = 1 << 14;
const CMD_CR: u32 = 1 << 15;
const CMD_ATAPI: u32 = 1 << 24;
const CMD_WRITABLE: u32 = CMD_ST | CMD_SUD | CMD_POD | CMD_FRE | CMD_ATAPI;

const IS_DHRS: u32 = 1 << 0;
const IS_PSS: u32 = 1 << 1;
const IS_SDBS: u32 = 1 << 3;
const IS_PCS: u32 = 1 << 6;
const IS_HBFS: u32 = 1 << 29;
const IS_TFES: u32 = 1 << 30;

const SERR_DIAG_X: u32 = 1 << 26;
/// Device present and in phase 3, 3 Gbit/s, link active.
const SSTS_UP: u32 = 0x123;

/// Status register of the drive.
pub const STATUS_ERR: u8 = 0x01;
const STATUS_DRQ: u8 = 0x08;
/// DRDY and the former "seek complete" bit.
pub const STATUS_READY: u8 = 0x50;
/// Error register: the command was aborted.
pub const ERROR_ABRT: u8 = 0x04;

const FIS_H2D: u8 = 0x27;
const FIS_D2H: u8 = 0x34;
const FIS_PIO_SETUP: u8 = 0x5f;
const FIS_SET_BITS: u8 = 0xa1;
const RFIS: u64 = 0x40;
const PSFIS: u64 = 0x20;
const SDBFIS: u64 = 0x58;
const FIS_INTERRUPT: u8 = 1 << 6;
const CONTROL_SRST: u8 = 1 << 2;

/// A command: a register frame from the host.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Command slot.
    pub slot: u8,
    /// ATA command.
    pub code: u8,
    /// Features, both bytes.
    pub features: u16,
    /// 48 bits of address.
    pub lba: u64,
    /// Device register.
    pub device: u8,
    /// Count, both bytes.
    pub count: u16,
    /// The 12 bytes of a packet command.
    pub packet: [u8; 12],
}

/// Outcome of decoding a command.
pub enum CommandOutcome {
    /// The command is done.
    Done,
    /// The command is done, with this value in the count register.
    DoneWithCount(u16),
    /// Data for the guest, as with PIO.
    PioIn(Vec<u8>),
    /// Data for the guest of a packet command.
    PacketIn(Vec<u8>),
    /// Moves sectors between disk and guest.
    Transfer {
        /// Read or write.
        op: DiskOp,
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
        /// Must be flushed before it is done.
        flush: bool,
        /// An NCQ command.
        queued: bool,
    },
    /// Sends requests without data.
    Requests(Vec<(DiskOp, u64)>),
    /// Trims: first reads `bytes` of ranges from the guest.
    Trim {
        /// Bytes of ranges.
        bytes: usize,
    },
    /// The command failed with this error register.
    Failed(u8),
    /// An NCQ command failed.
    QueuedFailed(u8),
}

/// A command in flight.
struct Pending {
    slot: u8,
    queued: bool,
    bytes: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    clb: u64,
    fb: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    tfd: u32,
    sig: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
    /// A command failed, and the driver has not cleared ST since.
    halted: bool,
    /// The driver holds the drive in a software reset.
    srst: bool,
    /// ST was cleared while commands were in flight: CR falls when they have ended.
    stopping: bool,
}

/// State of the drive itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveState {
    /// Sense key, additional sense code and qualifier of the last packet command.
    pub sense: (u8, u8, u8),
    /// A new medium or a reset must still be reported.
    pub attention: bool,
    /// Slot, status and error of the queued command that failed last.
    pub queued_error: Option<(u8, u8, u8)>,
    /// The write cache is off, so each write is flushed.
    pub writethrough: bool,
}

/// The saved state of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    regs: Registers,
    drive: DriveState,
    running: u32,
}

impl PortState {
    /// Checks whether a port can be in this state.
    pub fn check(&self) -> Result<(), String> {
        let regs = &self.regs;
        let aligned = regs.clb & 0x3ff == 0 && regs.fb & 0xff == 0;
        let known = regs.cmd & !(CMD_WRITABLE | 0x1f << 8) == 0;
        // A state that was saved while it stopped has nothing in flight.
        match aligned && known && !regs.stopping && self.running & !(regs.ci | regs.sact) == 0 {
            true => Ok(()),
            false => Err("the registers of the port contradict each other".into()),
        }
    }
}

/// The port and its drive.
pub struct Port {
    pub(super) disk: Box<dyn Disk>,
    pub(super) kind: DriveKind,
    pub(super) serial: String,
    pub(super) drive: DriveState,
    mem: GuestMemory,
    regs: Registers,
    pending: InFlight<Pending>,
    /// Slots whose commands have begun.
    running: u32,
    /// Slots among `running` whose commands a loaded state says have begun.
    redo: u32,
    errors: Arc<GuestErrors>,
}

impl Port {
    /// Creates a port as after power-on.
    pub fn new(kind: DriveKind, disk: Box<dyn Disk>, serial: &str, mem: GuestMemory) -> Port {
        let mut port = Port {
            disk,
            kind,
            serial: serial.chars().filter(char::is_ascii).take(20).collect(),
            drive: DriveState::default(),
            mem,
            regs: Registers::default(),
            pending: InFlight::new(),
            running: 0,
            redo: 0,
            errors: GuestErrors::silent(),
        };
        port.reset();
        port
    }

    /// Reports what the driver does wrong to `errors`.
    pub fn report_to(&mut self, errors: Arc<GuestErrors>) {
        self.errors = errors;
    }

    fn signature(&self) -> u32 {
        match self.kind {
            DriveKind::Disk => 0x0000_0101,
            DriveKind::Cd => 0xeb14_0101,
        }
    }

    /// Returns the state after power-on.
    pub fn save_fresh(&self) -> PortState {
        let drive = DriveState { attention: self.kind == DriveKind::Cd, ..DriveState::default() };
        let regs = Registers {
            cmd: CMD_SUD | CMD_POD | if self.kind == DriveKind::Cd { CMD_ATAPI } else { 0 },
            sig: self.signature(),
            tfd: 0x0100 | u32::from(STATUS_READY),
            ..Registers::default()
        };
        PortState { regs, drive, running: 0 }
    }

    /// Resets the port, which is idle, to its power-on state.
    pub fn reset(&mut self) {
        self.load(self.save_fresh());
    }

    /// Returns whether nothing is with the host: requests there write into guest memory, which the guest may use for
    /// something else after a reset.
    pub fn is_idle(&self) -> bool {
        self.disk.is_idle()
    }

    /// Returns whether each command that began has ended.
    pub fn has_nothing_in_flight(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns whether the port requests an interrupt.
    pub fn interrupts(&self) -> bool {
        self.regs.is & self.regs.ie != 0
    }

    /// Reads a register.
    pub fn register(&self, offset: u64) -> u32 {
        let regs = &self.regs;
        match offset {
            0x00 => regs.clb as u32,
            0x04 => (regs.clb >> 32) as u32,
            0x08 => regs.fb as u32,
            0x0c => (regs.fb >> 32) as u32,
            0x10 => regs.is,
            0x14 => regs.ie,
            0x18 => {
                let running = regs.cmd & CMD_ST != 0 || regs.stopping;
                let receiving = regs.cmd & CMD_FRE != 0;
                regs.cmd | if running { CMD_CR } else { 0 } | if receiving { CMD_FR } else { 0 }
            }
            0x20 => regs.tfd,
            0x24 => regs.sig,
            0x28 if regs.sctl & 0xf == 4 => 4,
            0x28 if regs.sctl & 0xf == 1 => 1,
            0x28 => SSTS_UP,
            0x2c => regs.sctl,
            0x30 => regs.serr,
            0x34 => regs.sact,
            0x38 => regs.ci,
            _ => 0,
        }
    }

    /// Writes a register.
    pub fn set_register(&mut self, offset: u64, value: u32) {
        let word = u64::from(value);
        match offset {
            0x00 => self.regs.clb = self.regs.clb & !0xffff_ffff | word & !0x3ff,
            0x04 => self.regs.clb = self.regs.clb & 0xffff_ffff | word << 32,
            0x08 => self.regs.fb = self.regs.fb & !0xffff_ffff | word & !0xff,
            0x0c => self.regs.fb = self.regs.fb & 0xffff_ffff | word << 32,
            0x10 => self.regs.is &= !value,
            0x14 => self.regs.ie = value & 0xfdc0_00ff,
            0x18 => self.set_command(value),
            0x2c => self.set_control(value),
            0x30 => {
                self.regs.serr &= !value;
                if self.regs.serr & SERR_DIAG_X == 0 {
                    self.regs.is &= !IS_PCS;
                }
            }
            // Only ones have an effect here and in PxCI, and only while ST is set (3.3.13, 3.3.14).
            0x34 if self.regs.cmd & CMD_ST != 0 => self.regs.sact |= value,
            0x38 if self.regs.cmd & CMD_ST != 0 => self.regs.ci |= value,
            _ => {}
        }
    }

    fn set_command(&mut self, value: u32) {
        let before = self.regs.cmd;
        self.regs.cmd = before & !CMD_WRITABLE | value & CMD_WRITABLE;
        if value & CMD_CLO != 0 {
            self.regs.tfd &= !u32::from(0x80 | STATUS_DRQ);
        }
        if before & CMD_ST != 0 && value & CMD_ST == 0 {
            self.regs.ci = 0;
            self.regs.sact = 0;
            self.regs.cmd &= !(0x1f << 8);
            self.regs.halted = false;
            // CR stays until the last request ends, since drivers free their buffers when it falls.
            self.regs.stopping = !self.pending.is_empty();
            (self.running, self.redo) = (0, 0);
        }
    }

    /// Writes PxSCTL. DET 1 resets the link, and DET 0 after it brings it up.
    fn set_control(&mut self, value: u32) {
        let before = std::mem::replace(&mut self.regs.sctl, value & 0xfff) & 0xf;
        let now = value & 0xf;
        // What PxTFD shows while there is no link.
        if now == 1 && before != 1 {
            self.regs.tfd = 0x7f;
        }
        if before == 1 && now == 0 {
            self.regs.serr |= SERR_DIAG_X;
            self.regs.is |= IS_PCS;
            self.present();
        }
    }

    /// Sends the drive's signature, as after every reset of the drive.
    fn present(&mut self) {
        self.drive.queued_error = None;
        self.regs.srst = false;
        self.regs.sig = self.signature();
        let [sector, low, mid, high] = [1, 1, (self.regs.sig >> 16) as u8, (self.regs.sig >> 24) as u8];
        self.regs.tfd = 0x0100 | u32::from(STATUS_READY);
        let mut fis = [0u8; 20];
        fis[0] = FIS_D2H;
        (fis[2], fis[3], fis[4]) = (STATUS_READY, 1, low);
        (fis[5], fis[6], fis[12]) = (mid, high, sector);
        self.post(RFIS, &fis);
    }

    fn post(&mut self, offset: u64, fis: &[u8]) {
        if self.regs.cmd & CMD_FRE != 0 && self.mem.write(GuestAddr(self.regs.fb.wrapping_add(offset)), fis).is_err() {
            self.bus_error("PxFB points outside guest memory");
        }
    }

    fn bus_error(&mut self, what: &str) {
        self.errors.report(&format_args!("{what}; the port stops with a host bus error"));
        self.regs.is |= IS_HBFS;
        self.regs.halted = true;
    }

    /// Begins the commands that were issued and have not begun yet.
    pub fn run(&mut self) {
        for slot in 0..32u8 {
            let bit = 1 << slot;
            let issued = self.regs.ci & !self.running & bit != 0 || self.redo & bit != 0;
            if !issued || self.regs.halted || self.regs.stopping || self.regs.cmd & CMD_ST == 0 {
                continue;
            }
            self.running |= bit;
            self.redo &= !bit;
            self.regs.cmd = self.regs.cmd & !(0x1f << 8) | u32::from(slot) << 8;
            if self.begin(slot).is_none() {
                self.bus_error("a command table or a region of a command is outside guest memory");
            }
        }
    }

    fn header(&self, slot: u8) -> Option<[u8; 32]> {
        let mut header = [0; 32];
        let at = self.regs.clb.checked_add(32 * u64::from(slot))?;
        self.mem.read(GuestAddr(at), &mut header).ok()?;
        Some(header)
    }

    /// Returns the address of the command's table and its number of regions.
    fn table(&self, slot: u8) -> Option<(u64, usize)> {
        let header = self.header(slot)?;
        let table = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes")) & !0x7f;
        Some((table, usize::from(u16::from_le_bytes([header[2], header[3]]))))
    }

    /// Returns the regions for `bytes` of data, and checks that each is memory.
    fn regions(&self, slot: u8, bytes: u64) -> Option<Vec<(GuestAddr, u32)>> {
        let (table, count) = self.table(slot)?;
        let mut regions = Vec::new();
        let mut left = bytes;
        for index in 0..count.min(PRDS_MAX) as u64 {
            if left == 0 {
                break;
            }
            let mut raw = [0; 16];
            self.mem.read(GuestAddr(table.checked_add(0x80 + 16 * index)?), &mut raw).ok()?;
            let addr = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes")) & !1;
            // The field is the number of bytes less one, and odd: a region has an even number of bytes (4.2.3.3).
            let len = u64::from(u32::from_le_bytes(raw[12..].try_into().expect("four bytes")) & 0x3f_ffff | 1) + 1;
            let len = len.min(left);
            if !self.mem.contains(GuestAddr(addr), len) {
                return None;
            }
            regions.push((GuestAddr(addr), len as u32));
            left -= len;
        }
        Some(regions)
    }

    fn begin(&mut self, slot: u8) -> Option<()> {
        let (table, _) = self.table(slot)?;
        let mut fis = [0; 20];
        self.mem.read(GuestAddr(table), &mut fis).ok()?;
        let mut packet = [0; 12];
        self.mem.read(GuestAddr(table.checked_add(0x40)?), &mut packet).ok()?;
        if fis[0] != FIS_H2D {
            self.finish(slot, STATUS_READY | STATUS_ERR, ERROR_ABRT, None);
            return Some(());
        }
        // Bit C: without it, the frame carries the control register and no command.
        if fis[1] & 0x80 == 0 {
            self.control(slot, fis[15]);
            return Some(());
        }
        let low = u64::from(fis[4]) | u64::from(fis[5]) << 8 | u64::from(fis[6]) << 16;
        let high = u64::from(fis[8]) | u64::from(fis[9]) << 8 | u64::from(fis[10]) << 16;
        let command = Command {
            slot,
            code: fis[2],
            features: u16::from_le_bytes([fis[3], fis[11]]),
            lba: low | high << 24,
            device: fis[7],
            count: u16::from_le_bytes([fis[12], fis[13]]),
            packet,
        };
        let action = match self.kind {
            DriveKind::Disk => ata::decode(self, &command),
            DriveKind::Cd => atapi::decode(self, &command),
        };
        self.act(slot, action)
    }

    /// Handles a frame that only writes the control register: a software reset, in two steps.
    fn control(&mut self, slot: u8, control: u8) {
        self.regs.ci &= !(1 << slot);
        self.running &= !(1 << slot);
        if control & CONTROL_SRST != 0 {
            self.regs.srst = true;
        } else if self.regs.srst {
            self.present();
        }
    }

    fn act(&mut self, slot: u8, action: CommandOutcome) -> Option<()> {
        match action {
            CommandOutcome::Done => self.finish(slot, STATUS_READY, 0, None),
            CommandOutcome::DoneWithCount(count) => self.finish(slot, STATUS_READY, 0, Some(count)),
            CommandOutcome::Failed(error) => self.finish(slot, STATUS_READY | STATUS_ERR, error, None),
            CommandOutcome::QueuedFailed(error) => self.finish_queued(slot, STATUS_READY | STATUS_ERR, error),
            CommandOutcome::PioIn(data) => {
                let moved = self.to_guest(slot, &data)?;
                self.set_moved(slot, moved as u32);
                let mut fis = [0u8; 20];
                (fis[0], fis[1], fis[2]) = (FIS_PIO_SETUP, FIS_INTERRUPT | 1 << 5, STATUS_READY | STATUS_DRQ);
                (fis[12], fis[15]) = (1, STATUS_READY);
                fis[16..18].copy_from_slice(&(data.len() as u16).to_le_bytes());
                self.post(PSFIS, &fis);
                self.regs.is |= IS_PSS;
                self.finish(slot, STATUS_READY, 0, None);
            }
            CommandOutcome::PacketIn(data) => {
                let moved = self.to_guest(slot, &data)?;
                self.set_moved(slot, moved as u32);
                // Interrupt reason: the command is complete, data went to the host.
                self.finish(slot, STATUS_READY, 0, Some(3));
            }
            CommandOutcome::Requests(requests) => {
                self.submit(slot, requests.into_iter().map(|(op, offset)| (op, offset, Vec::new())).collect(), 0, false, false);
            }
            CommandOutcome::Trim { bytes } => {
                let mut ranges = vec![0; bytes];
                self.from_guest(slot, &mut ranges)?;
                let action = ata::trim(self, &ranges);
                return self.act(slot, action);
            }
            CommandOutcome::Transfer { op, offset, bytes, flush, queued } => {
                let regions = self.regions(slot, bytes.min(COMMAND_BYTES_MAX))?;
                let there: u64 = regions.iter().map(|&(_, len)| u64::from(len)).sum();
                if there != bytes {
                    // The driver's regions are shorter than the transfer that it asked for.
                    let failed =
                        if queued { CommandOutcome::QueuedFailed(ERROR_ABRT) } else { CommandOutcome::Failed(ERROR_ABRT) };
                    return self.act(slot, failed);
                }
                if queued {
                    self.accept_queued(slot);
                }
                self.submit(slot, vec![(op, offset, regions)], bytes as u32, flush, queued);
            }
        }
        Some(())
    }

    fn to_guest(&mut self, slot: u8, data: &[u8]) -> Option<usize> {
        let mut at = 0;
        for (addr, len) in self.regions(slot, data.len() as u64)? {
            self.mem.write(addr, &data[at..at + len as usize]).ok()?;
            at += len as usize;
        }
        Some(at)
    }

    fn from_guest(&mut self, slot: u8, data: &mut [u8]) -> Option<()> {
        let mut at = 0;
        for (addr, len) in self.regions(slot, data.len() as u64)? {
            self.mem.read(addr, &mut data[at..at + len as usize]).ok()?;
            at += len as usize;
        }
        Some(())
    }

    /// Writes PRDBC in the command's header.
    fn set_moved(&mut self, slot: u8, bytes: u32) {
        let at = GuestAddr(self.regs.clb.wrapping_add(32 * u64::from(slot) + 4));
        if self.mem.write(at, &bytes.to_le_bytes()).is_err() {
            self.bus_error("PxCLB points outside guest memory");
        }
    }

    fn submit(&mut self, slot: u8, parts: Vec<Part>, bytes: u32, flush: bool, queued: bool) {
        self.pending.submit(&mut *self.disk, Pending { slot, queued, bytes }, parts, flush);
    }

    /// Handles the completions of the disk.
    pub fn collect(&mut self) {
        while let Some((pending, status)) = self.pending.completed(&mut *self.disk) {
            if self.regs.stopping {
                self.regs.stopping = !self.pending.is_empty();
                continue;
            }
            self.complete(&pending, status);
        }
    }

    fn complete(&mut self, pending: &Pending, status: DiskStatus) {
        let slot = pending.slot;
        self.set_moved(slot, pending.bytes);
        let (status, error) = match (status, self.kind) {
            (DiskStatus::Ok, _) => (STATUS_READY, 0),
            (_, DriveKind::Disk) => (STATUS_READY | STATUS_ERR, ERROR_ABRT),
            (_, DriveKind::Cd) => (STATUS_READY | STATUS_ERR, atapi::medium_error(self)),
        };
        if pending.queued {
            self.finish_queued(slot, status, error);
        } else {
            let reason = (self.kind == DriveKind::Cd).then_some(3);
            self.finish(slot, status, error, reason);
        }
    }

    /// Ends a command that is not queued, with a register frame.
    fn finish(&mut self, slot: u8, status: u8, error: u8, count: Option<u16>) {
        self.regs.tfd = u32::from(error) << 8 | u32::from(status);
        let mut fis = [0u8; 20];
        (fis[0], fis[1], fis[2], fis[3]) = (FIS_D2H, FIS_INTERRUPT, status, error);
        if let Some(count) = count {
            fis[12..14].copy_from_slice(&count.to_le_bytes());
        }
        self.post(RFIS, &fis);
        self.regs.is |= IS_DHRS;
        self.running &= !(1 << slot);
        if status & STATUS_ERR != 0 {
            self.regs.is |= IS_TFES;
            self.regs.halted = true;
        } else {
            self.regs.ci &= !(1 << slot);
        }
    }

    /// Accepts a queued command: its slot is free for the adapter, but not for the driver.
    fn accept_queued(&mut self, slot: u8) {
        self.regs.ci &= !(1 << slot);
        self.regs.sact |= 1 << slot;
    }

    /// Ends a queued command, with a set-device-bits frame.
    fn finish_queued(&mut self, slot: u8, status: u8, error: u8) {
        let failed = status & STATUS_ERR != 0;
        self.regs.tfd = u32::from(error) << 8 | u32::from(status);
        let done: u32 = if failed { 0 } else { 1 << slot };
        let mut fis = [0u8; 8];
        (fis[0], fis[1], fis[2], fis[3]) = (FIS_SET_BITS, FIS_INTERRUPT, status & 0x77, error);
        fis[4..].copy_from_slice(&done.to_le_bytes());
        self.post(SDBFIS, &fis);
        self.regs.is |= IS_SDBS;
        self.running &= !(1 << slot);
        if failed {
            self.regs.ci &= !(1 << slot);
            self.regs.sact |= 1 << slot;
            self.drive.queued_error = Some((slot, status, error));
            self.regs.is |= IS_TFES;
            self.regs.halted = true;
        } else {
            self.regs.sact &= !done;
        }
    }

    /// Returns whether the range is on the disk.
    pub fn in_range(&self, offset: Option<u64>, bytes: u64) -> bool {
        offset.and_then(|offset| offset.checked_add(bytes)).is_some_and(|end| end <= self.disk.size_bytes())
    }

    /// Returns the state.
    pub fn save(&self) -> PortState {
        let regs = Registers { stopping: false, ..self.regs.clone() };
        PortState { regs, drive: self.drive.clone(), running: self.running }
    }

    /// Restores a state that was checked. Commands that were in flight are issued again.
    pub fn load(&mut self, state: PortState) {
        self.pending.clear(&mut *self.disk);
        self.regs = state.regs;
        self.drive = state.drive;
        self.regs.stopping = false;
        (self.running, self.redo) = (state.running, state.running);
    }
}
