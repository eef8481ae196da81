//! Tests of paging and of the system instructions: functions called on one vCPU, and guest programs run whole.
//!
//! The programs' sources are beside their bytes: `NAME.asm`, assembled with `nasm -f bin -o NAME.bin NAME.asm`.

mod delivery;
mod identity;
mod memory;
mod paging;
mod parallel;
mod programs;
mod stepping;
mod tasks;
mod transfers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::super::block::BlockCache;
use super::super::cpu::{CS, Cpu, SS, Segment};
use super::regs::{cr0, cr4, efer};
use super::{refresh_mode, reset};
use crate::hypervisor::backend::{BootState, LocalApics, MachineExit, NoSuchMsr, Platform, VcpuEvent, VcpuSetup};
use crate::hypervisor::clock::{Clock, ManualClock};
use crate::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use crate::hypervisor::waking::Attention;
use crate::units::Topology;

const MIB: u64 = 1 << 20;
/// Address of the read-only region: the top 64 KiB below 4 GiB.
const ROM: u64 = 0xffff_0000;

type Act = Box<dyn FnMut(u32) + Send>;

/// A platform of ports and registers that record what was written.
struct Probe {
    clock: Arc<ManualClock>,
    attention: Mutex<Option<Arc<Attention>>>,
    /// Port writes and MMIO writes: (address, width, value).
    writes: Mutex<Vec<(u64, u8, u64)>>,
    reads: Mutex<Vec<(u64, u8)>>,
    deadline: AtomicU64,
    cr8: AtomicU64,
    apic_base: AtomicU64,
    events: Mutex<Vec<VcpuEvent>>,
    /// What a write to port 0xf7 does.
    on_write: Mutex<Option<Act>>,
}

impl Probe {
    fn new() -> Arc<Probe> {
        Arc::new(Probe {
            clock: ManualClock::new(1_700_000_000_123_456_789),
            attention: Mutex::new(None),
            writes: Mutex::new(Vec::new()),
            reads: Mutex::new(Vec::new()),
            deadline: AtomicU64::new(0),
            cr8: AtomicU64::new(0),
            apic_base: AtomicU64::new(0xfee0_0900),
            events: Mutex::new(Vec::new()),
            on_write: Mutex::new(None),
        })
    }
    fn writes(&self) -> Vec<(u64, u8, u64)> {
        std::mem::take(&mut *self.writes.lock().unwrap())
    }
    fn stop(&self, exit: MachineExit) {
        if let Some(attention) = &*self.attention.lock().unwrap() {
            attention.stop(exit);
        }
    }
}

impl Platform for Probe {
    fn port_read(&self, _: usize, port: u16, width: u8) -> u32 {
        self.reads.lock().unwrap().push((u64::from(port), width));
        u32::from(port) * 0x0101_0101
    }
    fn port_write(&self, vcpu: usize, port: u16, width: u8, value: u32) {
        self.writes.lock().unwrap().push((u64::from(port), width, u64::from(value)));
        match port {
            0xf4 => self.stop(MachineExit::Debug(value as u8)),
            // Asks for the interrupt `value`; or for INIT.
            0xf5 | 0xf6 => {
                let event = if port == 0xf5 { VcpuEvent::Interrupt(value as u8) } else { VcpuEvent::Init };
                self.events.lock().unwrap().push(event);
                if let Some(attention) = &*self.attention.lock().unwrap() {
                    attention.raise(vcpu);
                }
            }
            0xf7 => self.on_write.lock().unwrap().iter_mut().for_each(|act| act(value)),
            _ => {}
        }
    }
    fn mmio_read(&self, _: usize, addr: u64, width: u8) -> u64 {
        self.reads.lock().unwrap().push((addr, width));
        addr & 0xff | (addr & 0xff) << 32
    }
    fn mmio_write(&self, _: usize, addr: u64, width: u8, value: u64) {
        self.writes.lock().unwrap().push((addr, width, value));
    }
    fn advance(&self, _: u64) -> Option<u64> {
        None
    }
    fn vcpu_failed(&self, _: usize, exit: MachineExit) {
        self.stop(exit);
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}

impl LocalApics for Probe {
    // Its register page is a device's like any other.
    fn read(&self, _: usize, _: u64, _: u8) -> Option<u64> {
        None
    }
    fn write(&self, _: usize, _: u64, _: u8, _: u64) -> bool {
        false
    }
    fn msr_read(&self, _: usize, msr: u32) -> Result<u64, NoSuchMsr> {
        match msr {
            0x1b => Ok(self.apic_base.load(Ordering::Relaxed)),
            0x6e0 => Ok(self.deadline.load(Ordering::Relaxed)),
            _ => Err(NoSuchMsr),
        }
    }
    fn msr_write(&self, _: usize, msr: u32, value: u64) -> Result<(), NoSuchMsr> {
        if msr != 0x6e0 {
            return Err(NoSuchMsr);
        }
        self.deadline.store(value, Ordering::Relaxed);
        Ok(())
    }
    fn cr8(&self, _: usize) -> u8 {
        self.cr8.load(Ordering::Relaxed) as u8
    }
    fn set_cr8(&self, _: usize, value: u8) {
        self.cr8.store(u64::from(value), Ordering::Relaxed);
    }
    fn take_event(&self, vcpu: usize, interrupts: bool, _: bool) -> Option<VcpuEvent> {
        let mut events = self.events.lock().unwrap();
        if vcpu == 0 && matches!(events.first(), Some(VcpuEvent::Sipi(_))) {
            return None;
        }
        let taken = interrupts || matches!(events.first(), Some(VcpuEvent::Init | VcpuEvent::Sipi(_)));
        if taken && !events.is_empty() { Some(events.remove(0)) } else { None }
    }
}

/// One vCPU with 16 MiB of memory and a ROM, and no devices.
struct Bench {
    cpu: Box<Cpu>,
    mem: GuestMemory,
    probe: Arc<Probe>,
}

fn setup(probe: &Arc<Probe>, boot: BootState) -> VcpuSetup {
    let memory = GuestMemory::anonymous(&[(GuestAddr(0), 16 * MIB, Mode::Ram), (GuestAddr(ROM), 0x1_0000, Mode::Rom)]).unwrap();
    let attention = Attention::new(1);
    *probe.attention.lock().unwrap() = Some(attention.clone());
    let device_windows = vec![(0xa_0000, 0x2_0000), (3 << 30, 1 << 30)];
    VcpuSetup {
        vcpus: 1,
        topology: Topology::ONE,
        memory,
        platform: probe.clone(),
        apics: Some(probe.clone()),
        attention,
        boot,
        device_windows,
        manual_clock: None,
    }
}

/// Returns a vCPU after power-on.
fn bench() -> Bench {
    let probe = Probe::new();
    let setup = setup(&probe, BootState::Reset);
    let mut cpu = Cpu::new(&setup, 0, BlockCache::shared(setup.memory.clone(), None));
    reset(&mut cpu, true);
    Bench { cpu, mem: setup.memory, probe }
}

/// Address at which the long-mode benches keep their tables.
const PML4: u64 = 0x10_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x4000;
const HANDLER: u64 = 0x5000;

const KERNEL_CODE: u16 = 0x10;
const KERNEL_DATA: u16 = 0x18;
const USER_DATA: u16 = 0x23;
const USER_CODE: u16 = 0x2b;

impl Bench {
    /// Writes a page-table entry.
    fn put(&self, addr: u64, value: u64) {
        self.mem.write_le(GuestAddr(addr), value).unwrap();
    }
    fn get(&self, addr: u64) -> u64 {
        self.mem.read_le(GuestAddr(addr)).unwrap()
    }
    /// Switches 4-level paging on, with the tables at [`PML4`], all levels open; flat 64-bit segments, CPL 0.
    fn long_mode(&mut self) {
        let c = &mut self.cpu;
        c.sys.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::WP;
        c.sys.cr4 = cr4::PAE | cr4::PGE;
        c.sys.efer = efer::LME | efer::LMA | efer::NXE;
        c.sys.cr3 = PML4;
        self.privilege(0);
    }
    /// Sets CPL with fitting CS and SS.
    fn privilege(&mut self, cpl: u8) {
        let c = &mut self.cpu;
        let (code, data) = if cpl == 3 { (USER_CODE, USER_DATA) } else { (KERNEL_CODE, KERNEL_DATA) };
        c.segs[CS] = Segment::flat(code, 0xa09b | u16::from(cpl) << 5);
        c.segs[SS] = Segment::flat(data, 0xc093 | u16::from(cpl) << 5);
        c.cpl = cpl;
        refresh_mode(c);
    }
    /// Maps 2 MiB at linear address zero onto itself, for user and supervisor, and 4 KiB pages from 2 MiB on through
    /// the table at `PML4 + 0x3000`.
    fn identity(&mut self) {
        self.put(PML4, PML4 + 0x1007);
        self.put(PML4 + 0x1000, PML4 + 0x2007);
        self.put(PML4 + 0x2000, 0x87 | 1 << 5 | 1 << 6);
        self.put(PML4 + 0x2008, PML4 + 0x3007);
    }
    /// Returns the entry for the 4 KiB page at 2 MiB plus `n` pages.
    fn page_entry(&self, n: u64) -> u64 {
        PML4 + 0x3000 + n * 8
    }
    /// Sets up a GDT, an IDT with 32 + 224 gates to `HANDLER + 16 * vector`, and a TSS with RSP0 = 0x9000 and IST1 =
    /// 0xa000.
    fn tables(&mut self) {
        let descriptors: [u64; 8] = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8b00_4000_0067,
            0,
        ];
        for (i, d) in descriptors.into_iter().enumerate() {
            self.put(GDT + 8 * i as u64, d);
        }
        for v in 0..256u64 {
            let target = HANDLER + 16 * v;
            self.put(IDT + 16 * v, target & 0xffff | u64::from(KERNEL_CODE) << 16 | 0x8e00 << 32 | (target >> 16) << 48);
            self.put(IDT + 16 * v + 8, 0);
        }
        self.put(TSS + 4, 0x9000);
        self.put(TSS + 0x24, 0xa000);
        let c = &mut self.cpu;
        (c.sys.gdt_base, c.sys.gdt_limit) = (GDT, 63);
        (c.sys.idt_base, c.sys.idt_limit) = (IDT, 0xfff);
        c.segs[super::super::cpu::TR] = Segment { selector: 0x30, attr: 0x8b, limit: 0x67, base: TSS };
    }
}
