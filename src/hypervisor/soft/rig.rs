//! One vCPU without a machine, for tests and benchmarks of instructions.
//!
//! It runs in 64-bit mode with flat segments and identity page tables of 2 MiB pages (writable, for user and
//! supervisor) over [`MEMORY`] bytes. It reports exceptions instead of delivering them. Ports and device memory read as
//! all ones.
use std::sync::Arc;

use super::block::BlockCache;
use super::cpu::{CS, Cpu, DS, ES, Exception, FS, GS, Leave, REGS, RIP, SS, Segment, rflags};
use super::{run, system, tlb};
use crate::hypervisor::backend::{BootState, LocalApics, MachineExit, NoSuchMsr, Platform, VcpuEvent, VcpuSetup};
use crate::hypervisor::clock::{Clock, ManualClock};
use crate::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use crate::hypervisor::waking::Attention;
use crate::units::Topology;

/// Bytes of memory, mapped one to one. The page tables are in the last 64 KiB.
pub const MEMORY: u64 = 16 << 20;
/// Address at which [`Rig::run_code`] puts code.
pub const CODE: u64 = 0x10_0000;
/// Address at which tests put data. Nothing else is between it and `STACK`.
#[cfg(test)]
pub const DATA: u64 = 0x20_0000;
/// Initial stack pointer.
pub const STACK: u64 = 0x80_0000;
const TABLES: u64 = MEMORY - 0x1_0000;

/// Reason why the rig stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// All the code ran.
    End,
    /// An instruction raised an exception; RIP is that instruction.
    Exception(Exception),
    /// HLT was executed.
    Halt,
    /// The limit of instructions was reached.
    Limit,
}

/// A platform with nothing on it.
pub struct NoPlatform {
    clock: Arc<ManualClock>,
}

impl NoPlatform {
    /// Creates a platform whose clock reads zero.
    pub fn new() -> NoPlatform {
        NoPlatform { clock: ManualClock::new(0) }
    }
}

impl Default for NoPlatform {
    fn default() -> NoPlatform {
        NoPlatform::new()
    }
}

impl Platform for NoPlatform {
    fn port_read(&self, _: usize, _: u16, width: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(width.clamp(1, 4)))
    }
    fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn advance(&self, _: u64) -> Option<u64> {
        None
    }
    fn vcpu_failed(&self, _: usize, _: MachineExit) {}
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}

impl LocalApics for NoPlatform {
    fn read(&self, _: usize, _: u64, _: u8) -> Option<u64> {
        None
    }
    fn write(&self, _: usize, _: u64, _: u8, _: u64) -> bool {
        false
    }
    fn msr_read(&self, _: usize, _: u32) -> Result<u64, NoSuchMsr> {
        Err(NoSuchMsr)
    }
    fn msr_write(&self, _: usize, _: u32, _: u64) -> Result<(), NoSuchMsr> {
        Err(NoSuchMsr)
    }
    fn cr8(&self, _: usize) -> u8 {
        0
    }
    fn set_cr8(&self, _: usize, _: u8) {}
    fn take_event(&self, _: usize, _: bool, _: bool) -> Option<VcpuEvent> {
        None
    }
}

/// One vCPU, its memory, and the loop that runs it.
pub struct Rig {
    /// The vCPU.
    pub cpu: Box<Cpu>,
    /// Its memory.
    pub memory: GuestMemory,
}

impl Rig {
    /// Creates a vCPU at privilege level 3.
    pub fn user() -> Rig {
        Rig::new(3)
    }
    /// Creates a vCPU with 32-bit code at privilege level 3.
    pub fn user_32bit() -> Rig {
        let mut rig = Rig::new(3);
        rig.cpu.segs[CS].attr = 0xc0fb;
        rig
    }
    /// Creates a vCPU at privilege level 0.
    pub fn supervisor() -> Rig {
        Rig::new(0)
    }

    fn new(cpl: u8) -> Rig {
        let memory = GuestMemory::anonymous(&[(GuestAddr(0), MEMORY, Mode::Ram)]).expect("the host has 16 MiB of address space");
        let write = |addr: u64, value: u64| memory.write_le(GuestAddr(addr), value).expect("inside the memory");
        write(TABLES, (TABLES + 0x1000) | 7);
        write(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        for i in 0..MEMORY >> 21 {
            write(TABLES + 0x2000 + i * 8, i << 21 | 0xe7);
        }
        let setup = VcpuSetup {
            vcpus: 1,
            topology: Topology::ONE,
            memory: memory.clone(),
            platform: Arc::new(NoPlatform::new()),
            apics: Some(Arc::new(NoPlatform::new())),
            attention: Attention::new(1),
            boot: BootState::Reset,
            device_windows: Vec::new(),
            manual_clock: None,
        };
        let mut cpu = Cpu::new(&setup, 0, BlockCache::shared(memory.clone(), None));
        system::reset(&mut cpu, true);
        set_long_mode(&mut cpu, cpl);
        tlb::flush(&mut cpu, false);
        Rig { cpu, memory }
    }

    /// Copies bytes into memory. Code at that place is decoded again.
    pub fn write(&mut self, addr: u64, bytes: &[u8]) {
        self.memory.write(GuestAddr(addr), bytes).expect("inside the rig's memory");
    }

    /// Copies bytes out of memory.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddr(addr), &mut bytes).expect("inside the rig's memory");
        bytes
    }

    /// Puts `code` at [`CODE`], runs it from there to its end, and returns why it stopped.
    pub fn run_code(&mut self, code: &[u8]) -> Stop {
        self.run_code_for(code, 1 << 32)
    }

    /// Runs `code` in the same way for at most about `limit` instructions.
    pub fn run_code_for(&mut self, code: &[u8], limit: i64) -> Stop {
        let mut bytes = code.to_vec();
        bytes.extend([0x0f, 0x0b]);
        self.write(CODE, &bytes);
        self.cpu.regs[RIP] = CODE;
        match self.run(limit) {
            Stop::Exception(e) if e.vector == 6 && self.cpu.regs[RIP] == CODE + code.len() as u64 => Stop::End,
            stop => stop,
        }
    }

    /// Runs from RIP until something stops it, at most about `limit` instructions.
    pub fn run(&mut self, limit: i64) -> Stop {
        match run::run_alone(&mut self.cpu, limit) {
            Leave::Exception => Stop::Exception(self.cpu.exception),
            Leave::Halt | Leave::Shutdown => Stop::Halt,
            _ => Stop::Limit,
        }
    }
}

/// Sets 64-bit mode with paging, SSE and x87.
fn set_long_mode(cpu: &mut Cpu, cpl: u8) {
    cpu.sys.cr0 = 0x8001_0033;
    cpu.sys.cr3 = TABLES;
    cpu.sys.cr4 = 0x6a0;
    cpu.sys.efer = 0xd01;
    cpu.sys.xcr0 = 1;
    let dpl = u16::from(cpl) << 5;
    let flat = |selector: u16, attr: u16| Segment { selector, attr, limit: u32::MAX, base: 0 };
    cpu.segs[CS] = flat(0x10 | u16::from(cpl), 0xa09b | dpl);
    for s in [ES, SS, DS, FS, GS] {
        cpu.segs[s] = flat(0x18 | u16::from(cpl), 0xc093 | dpl);
    }
    cpu.cpl = cpl;
    cpu.rflags = rflags::FIXED | rflags::IF;
    cpu.flags = super::flags::LazyFlags::raw(0);
    cpu.regs = [0; REGS];
    cpu.regs[4] = STACK;
    cpu.wait_for_sipi = false;
    cpu.halted = false;
}
