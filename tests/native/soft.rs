//! Runs cases in the software CPU: one vCPU in 64-bit user mode over page tables that map what the native child maps.

use std::sync::Arc;

use iced_x86::{Code, Mnemonic};
use vmctl::testing::hypervisor::backend::{BootState, VcpuSetup};
use vmctl::testing::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use vmctl::testing::hypervisor::soft::block::BlockCache;
use vmctl::testing::hypervisor::soft::cpu::{CS, Cpu, DS, ES, Leave, RIP, SS, Segment, rflags};
use vmctl::testing::hypervisor::soft::crew::Crew;
use vmctl::testing::hypervisor::soft::flags::LazyFlags;
use vmctl::testing::hypervisor::soft::rig::NoPlatform;
use vmctl::testing::hypervisor::soft::{run, system, tlb};
use vmctl::testing::hypervisor::waking::Attention;
use vmctl::testing::units::Topology;

use crate::case::{CODE, Case, FILLER, Outcome, PAGE, READ_ONLY, SCRATCH, STACK, State};
use crate::host::{USER_CODE_32, USER_CODE_64, USER_DATA};

/// Where the page tables are.
const TABLES: u64 = 0x1000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED_DIRTY: u64 = 0x60;
const NO_EXECUTE: u64 = 1 << 63;
/// Instructions that a case may take before it is given up.
const MAX_INSTRUCTIONS: i64 = 1 << 20;
/// The vector of an outcome that is no exception.
const STUCK: u8 = 254;

pub struct Soft {
    cpu: Box<Cpu>,
    memory: GuestMemory,
    pool: Vec<[u8; PAGE as usize]>,
}

fn write64(memory: &GuestMemory, addr: u64, value: u64) {
    memory.write_le(GuestAddr(addr), value).expect("the tables are in memory");
}

/// Identity-maps the pages that the child has, each with its rights.
fn map_pages(memory: &GuestMemory) {
    let link = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
    let (pml4, pdpt, directory, table) = (TABLES, TABLES + PAGE, TABLES + 2 * PAGE, TABLES + 3 * PAGE);
    write64(memory, pml4, pdpt | link);
    write64(memory, pdpt, directory | link);
    // All of the case's addresses are in the 2 MiB from CODE on.
    write64(memory, directory + (CODE >> 21) * 8, table | link);
    let (code, data) = (link & !WRITABLE, link | NO_EXECUTE);
    for (first, pages, rights) in [(CODE, 2, code), (SCRATCH, 2, data), (READ_ONLY, 1, data & !WRITABLE), (STACK, 1, data)] {
        for page in 0..pages {
            let addr = first + page * PAGE;
            write64(memory, table + (addr >> 12 & 511) * 8, addr | rights);
        }
    }
}

impl Soft {
    /// Creates a vCPU: the only one, or one of a crew, whose locked instructions are atomic on the host.
    pub fn new(pool: Vec<[u8; PAGE as usize]>, crew: Option<Crew>) -> Soft {
        let crew = crew.map(Arc::new);
        let layout = [
            (GuestAddr(0), 0x1_0000, Mode::Ram),
            (GuestAddr(CODE), 2 * PAGE, Mode::Ram),
            (GuestAddr(SCRATCH), 3 * PAGE, Mode::Ram),
            (GuestAddr(STACK), PAGE, Mode::Ram),
        ];
        let memory = GuestMemory::anonymous(&layout).expect("a few pages of memory");
        map_pages(&memory);
        memory.write(GuestAddr(READ_ONLY), &pool[0]).expect("mapped");
        memory.write(GuestAddr(CODE), &[FILLER; 2 * PAGE as usize]).expect("mapped");
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
        let mut cpu = Cpu::new(&setup, 0, BlockCache::shared(memory.clone(), crew.clone()));
        cpu.crew = crew;
        system::reset(&mut cpu, true);
        enter_user_mode(&mut cpu);
        Soft { cpu, memory, pool }
    }

    fn write_memory(&self, case: &Case) {
        let write = |addr: u64, bytes: &[u8]| self.memory.write(GuestAddr(addr), bytes).expect("mapped");
        for (page, to) in case.pages.iter().zip([SCRATCH, SCRATCH + PAGE, STACK]) {
            write(to, &self.pool[usize::from(*page)]);
        }
        for (addr, bytes) in &case.patches {
            for (k, byte) in bytes.iter().enumerate() {
                let addr = addr.wrapping_add(k as u64);
                if crate::host::writable(addr) {
                    write(addr, &[*byte]);
                }
            }
        }
        write(case.entry(), &case.bytes);
    }

    /// Runs a case to its end or to its fault.
    pub fn run(&mut self, case: &Case) -> Outcome {
        self.write_memory(case);
        load_state(&mut self.cpu, &case.start);
        self.cpu.segs[CS] = match case.bits {
            64 => user_segment(USER_CODE_64, 0xa0fb),
            _ => user_segment(USER_CODE_32, 0xc0fb),
        };
        let (vector, error, cr2) = self.run_chains(case);
        self.memory.write(GuestAddr(case.entry()), &vec![FILLER; case.bytes.len()]).expect("mapped");
        let mut state = State::ZERO;
        store_state(&self.cpu, &mut state);
        if vector == 3 {
            // The processor's INT3 is a trap: it stands behind the instruction.
            state.rip = case.end() + 1;
        }
        let mut memory = Box::new([0; 3 * PAGE as usize]);
        for (k, from) in [SCRATCH, SCRATCH + PAGE, STACK].into_iter().enumerate() {
            let at = k * PAGE as usize;
            self.memory.read(GuestAddr(from), &mut memory[at..at + PAGE as usize]).expect("mapped");
        }
        Outcome { state, vector, error, cr2, memory }
    }

    /// Runs until an exception: its vector, error code and address.
    fn run_chains(&mut self, case: &Case) -> (u8, u64, u64) {
        let leave = run::run_alone(&mut self.cpu, MAX_INSTRUCTIONS);
        if self.cpu.regs[RIP] == case.end() {
            // INT3, which finds no table to be delivered through.
            return (3, 0, 0);
        }
        let e = self.cpu.exception;
        if leave == Leave::Exception { (e.vector, u64::from(e.error.unwrap_or(0)), e.cr2) } else { (STUCK, 0, 0) }
    }
}

fn user_segment(selector: u16, attr: u16) -> Segment {
    Segment { selector, attr, limit: u32::MAX, base: 0 }
}

/// User mode as the native child has it: FS and GS null, the others flat.
fn enter_user_mode(cpu: &mut Cpu) {
    cpu.segs[..6].copy_from_slice(&[Segment::default(); 6]);
    for data in [SS, DS, ES] {
        cpu.segs[data] = user_segment(USER_DATA, 0xc0f3);
    }
    cpu.cpl = 3;
    // PE, MP, ET, NE, WP, AM, PG.
    cpu.sys.cr0 = 0x8005_0033;
    // PAE, PGE, OSFXSR, OSXMMEXCPT, OSXSAVE.
    cpu.sys.cr4 = 0x4_06a0;
    cpu.sys.cr3 = TABLES;
    // SCE, LME, LMA, NXE.
    cpu.sys.efer = 0xd01;
    cpu.sys.xcr0 = 3;
    tlb::flush(cpu, false);
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn load_state(cpu: &mut Cpu, state: &State) {
    cpu.regs[..16].copy_from_slice(&state.gpr);
    cpu.regs[RIP] = state.rip;
    cpu.flags = LazyFlags::raw(state.rflags);
    cpu.rflags = state.rflags & !rflags::ARITH | rflags::FIXED;
    let fpu = &mut cpu.fpu;
    (fpu.fcw, fpu.fsw, fpu.ftw) = (state.fx16(0), state.fx16(2), state.fx[4]);
    for i in 0..8 {
        let r = usize::from(fpu.fsw >> 11) + i & 7;
        fpu.mantissa[r] = word(&state.fx, 32 + 16 * i);
        fpu.sign_exp[r] = state.fx16(40 + 16 * i);
    }
    cpu.mxcsr = state.fx32(24);
    for (i, xmm) in cpu.xmm.iter_mut().enumerate() {
        *xmm = [word(&state.fx, 160 + 16 * i), word(&state.fx, 168 + 16 * i)];
    }
}

fn store_state(cpu: &Cpu, state: &mut State) {
    state.gpr.copy_from_slice(&cpu.regs[..16]);
    state.rip = cpu.regs[RIP];
    state.rflags = cpu.rflags_value();
    let fpu = &cpu.fpu;
    state.fx[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    state.fx[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    state.fx[4] = fpu.ftw;
    for i in 0..8 {
        let (r, at) = (usize::from(fpu.fsw >> 11) + i & 7, 32 + 16 * i);
        state.fx[at..at + 8].copy_from_slice(&fpu.mantissa[r].to_le_bytes());
        state.fx[at + 8..at + 10].copy_from_slice(&fpu.sign_exp[r].to_le_bytes());
    }
    state.fx[24..28].copy_from_slice(&cpu.mxcsr.to_le_bytes());
    for (i, half) in cpu.xmm.iter().flatten().enumerate() {
        let at = 160 + 8 * i;
        state.fx[at..at + 8].copy_from_slice(&half.to_le_bytes());
    }
}

/// XSAVE and its kin.
pub fn is_xsave(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xrstor | M::Xrstor64)
}
