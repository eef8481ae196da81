//! One instruction on the registers of a vCPU that another back end runs.
//!
//! A kernel's hypervisor stops at an instruction that accesses a device and leaves it to its user to carry out. This is the
//! software CPU for it: [`Registers`] go in, the instruction is fetched and decoded from the guest's memory as it is now,
//! runs against memory and board, and the registers come out. An exception is not delivered: the vCPU's own processor does
//! that. Nothing is kept between two instructions, since other vCPUs change memory and page tables without notice.
//!
//! **Not modelled**: vector, x87 and system registers, which a kernel's hypervisor may not show: an instruction that uses them
//! or loads a segment is refused. Debug registers and single steps: they do not trap here. Locked instructions are not atomic for other vCPUs,
//! which matters to nothing on a device.
//!
//! **Hostile guest**: it chooses the instruction, at any time. What it runs changes its own registers and memory only, and
//! what the board lets any instruction do. A repeated one ends after [`MOST_STEPS`] and starts again with its next exit.
#![allow(unsafe_code)]

use std::sync::Arc;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic};

use super::block::{Block, BlockCache};
use super::cpu::{CS, Cpu, DS, ES, Exception, FS, GS, Leave, RIP, SS, Segment, rflags};
use super::flags::LazyFlags;
use super::lower::Mode;
use super::system::refresh_mode;
use super::{run, tlb};
use crate::hypervisor::backend::{LocalApics, NoSuchMsr, VcpuEvent, VcpuSetup};
use crate::hypervisor::entry::SegmentState;
use crate::hypervisor::memory::GuestAddr;

/// Repetitions that one call runs.
const MOST_STEPS: u32 = 4096;

/// The registers that an instruction may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// ES, CS, SS, DS, FS, GS. In 64-bit mode only CS, SS and the bases of FS and GS matter.
    pub segments: [SegmentState; 6],
    /// Privilege level.
    pub cpl: u8,
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran, or a part of its repetitions did: RIP says where to go on.
    Done,
    /// It raised an exception, which the vCPU must deliver. RIP is the instruction's.
    Raised(Exception),
    /// It cannot run here.
    Refused(&'static str),
}

/// What runs the instructions of one vCPU.
pub struct OneInstruction {
    cpu: Box<Cpu>,
}

// SAFETY: the raw pointers in `Cpu` point to nothing between two calls, or into its own allocations, and the counted reference
// to its block cache is the only one: they move with it, and nothing of them is tied to a thread.
unsafe impl Send for OneInstruction {}

/// The controllers are in the kernel, and so are accesses to them.
struct ApicsElsewhere;

impl LocalApics for ApicsElsewhere {
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

/// CR4.LA57: page tables of five levels.
const LA57: u64 = 1 << 12;

impl OneInstruction {
    /// Creates what runs the instructions of vCPU `index` in the machine of `setup`.
    pub fn new(setup: &VcpuSetup, index: usize) -> OneInstruction {
        let setup = VcpuSetup {
            vcpus: setup.vcpus,
            topology: setup.topology,
            memory: setup.memory.clone(),
            platform: Arc::clone(&setup.platform),
            apics: Some(Arc::new(ApicsElsewhere)),
            attention: Arc::clone(&setup.attention),
            boot: setup.boot,
            device_windows: Vec::new(),
            manual_clock: None,
        };
        OneInstruction { cpu: Cpu::new(&setup, index, BlockCache::shared(setup.memory.clone(), None)) }
    }

    /// Runs the instruction at RIP. `registers` are what it left, up to where it was refused or raised an exception.
    pub fn run(&mut self, registers: &mut Registers) -> Outcome {
        if registers.cr4 & LA57 != 0 {
            return Outcome::Refused("the guest has page tables of five levels");
        }
        self.load(registers);
        let outcome = self.run_loaded();
        self.store(registers);
        outcome
    }

    fn run_loaded(&mut self) -> Outcome {
        let start = self.cpu.regs[RIP];
        let block = match run::decode_here(&mut self.cpu) {
            Ok(block) => block,
            Err(_) => return Outcome::Raised(self.cpu.exception),
        };
        if let Some(why) = self.refusal() {
            return Outcome::Refused(why);
        }
        for _ in 0..MOST_STEPS {
            match self.step(&block) {
                Leave::Exception => return Outcome::Raised(self.cpu.exception),
                Leave::Halt | Leave::Shutdown => return Outcome::Refused("it stops the processor"),
                Leave::Lookup | Leave::Jump | Leave::Link | Leave::Yield => {}
            }
            if self.cpu.regs[RIP] != start || self.cpu.attention.stopped().is_some() {
                break;
            }
        }
        Outcome::Done
    }

    /// Runs the block of one instruction.
    fn step(&mut self, block: &Block) -> Leave {
        let cpu = &mut *self.cpu;
        (cpu.granted, cpu.budget) = (1, 1);
        // SAFETY: the block lives over the call. It is in no cache, so nothing drops it and nothing points to it afterwards.
        unsafe { run::chain(cpu, block.entry()) };
        cpu.leave_after_op = false;
        cpu.leave
    }

    fn load(&mut self, registers: &Registers) {
        let cpu = &mut *self.cpu;
        cpu.regs.fill(0);
        cpu.regs[..16].copy_from_slice(&registers.general);
        cpu.regs[RIP] = registers.rip;
        cpu.flags = LazyFlags::raw(registers.rflags);
        // Ports are open, since the vCPU's processor has let the access through.
        cpu.rflags = registers.rflags & !(rflags::ARITH | rflags::TF) | rflags::FIXED | rflags::IOPL;
        (cpu.sys.cr0, cpu.sys.cr2, cpu.sys.cr3) = (registers.cr0, registers.cr2, registers.cr3);
        (cpu.sys.cr4, cpu.sys.efer) = (registers.cr4, registers.efer);
        for (index, s) in [ES, CS, SS, DS, FS, GS].into_iter().zip(registers.segments) {
            cpu.segs[index] = Segment { selector: s.selector, attr: s.attributes, limit: s.limit, base: s.base };
        }
        cpu.cpl = registers.cpl & 3;
        let map = cpu.memory.map();
        if map.generation() != cpu.map.generation() {
            tlb::follow_map(cpu, &map);
        }
        tlb::flush(cpu, false);
        let mode = refresh_mode(cpu);
        cpu.set_mode(Mode(mode.0 | Mode::STEP));
    }

    fn store(&self, registers: &mut Registers) {
        let cpu = &*self.cpu;
        registers.general.copy_from_slice(&cpu.regs[..16]);
        registers.rip = cpu.regs[RIP];
        const KEPT: u64 = rflags::TF | rflags::IOPL;
        registers.rflags = cpu.rflags_value() & !KEPT | registers.rflags & KEPT;
        for (index, s) in [ES, CS, SS, DS, FS, GS].into_iter().zip(&mut registers.segments) {
            let Segment { selector, attr, limit, base } = cpu.segs[index];
            *s = SegmentState { selector, attributes: attr, limit, base };
        }
        registers.cpl = cpu.cpl;
    }

    /// Returns why the instruction at RIP cannot run on [`Registers`] alone.
    fn refusal(&mut self) -> Option<&'static str> {
        let mut bytes = [0x90; 15];
        self.fetch(&mut bytes);
        let instruction = Decoder::new(self.cpu.mode.bitness(), &bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
        if uses_units(&instruction) {
            Some("it uses vector or x87 registers")
        } else if uses_system(&instruction) {
            Some("it uses system registers or loads a segment")
        } else {
            None
        }
    }

    /// Copies the bytes at RIP, as far as they can be fetched.
    fn fetch(&mut self, bytes: &mut [u8]) {
        for (at, byte) in bytes.iter_mut().enumerate() {
            let linear = run::linear_rip(&self.cpu).wrapping_add(at as u64);
            let Ok(gpa) = run::fetch_address(&mut self.cpu, linear) else { return };
            *byte = self.cpu.memory.read_le(GuestAddr(gpa)).unwrap_or(0xff);
        }
    }
}

/// Returns whether an instruction uses the vector or the x87 unit.
fn uses_units(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    if matches!(instruction.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr) {
        return true;
    }
    let mut units = instruction.cpuid_features().iter();
    if units.any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::FXSR | F::XSAVE | F::XSAVEOPT | F::XSAVEC)) {
        return true;
    }
    let mut factory = InstructionInfoFactory::new();
    let mut used = factory.info(instruction).used_registers().iter();
    used.any(|used| used.register().is_vector_register() || used.register().is_mm() || used.register().is_st())
}

/// Returns whether an instruction uses the tables or registers of the system, which a load of a segment does too. Access to
/// ports is none of these: the vCPU's processor has checked it.
fn uses_system(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => return false,
        M::Les
        | M::Lds
        | M::Lss
        | M::Lfs
        | M::Lgs
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str => {
            return true;
        }
        _ => {}
    }
    let writes_segment = instruction.op_count() > 0 && instruction.op0_register().is_segment_register();
    let is_far = instruction.is_call_far_indirect() || instruction.is_jmp_far_indirect() || instruction.is_call_far();
    let leaves = matches!(instruction.flow_control(), FlowControl::Interrupt | FlowControl::Return);
    instruction.is_privileged() || writes_segment || is_far || instruction.is_jmp_far() || leaves
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::hypervisor::backend::{BootState, MachineExit, Platform};
    use crate::hypervisor::clock::{Clock, ManualClock};
    use crate::hypervisor::memory::{GuestMemory, Mode as MemoryMode};
    use crate::hypervisor::waking::Attention;
    use crate::units::Topology;

    const CODE: u64 = 0x1000;
    const TABLES: u64 = 0x8000;
    const DEVICE: u64 = 0xc000_0000;

    /// A board with one device that records what it gets, and reads as its address.
    struct Recorder {
        clock: Arc<ManualClock>,
        seen: Mutex<Vec<(char, u64, u8, u64)>>,
    }

    impl Platform for Recorder {
        fn port_read(&self, _: usize, port: u16, width: u8) -> u32 {
            self.seen.lock().unwrap().push(('i', port.into(), width, 0));
            0x61
        }
        fn port_write(&self, _: usize, port: u16, width: u8, value: u32) {
            self.seen.lock().unwrap().push(('o', port.into(), width, value.into()));
        }
        fn mmio_read(&self, _: usize, addr: u64, width: u8) -> u64 {
            self.seen.lock().unwrap().push(('r', addr, width, 0));
            0x8877_6655_4433_2211
        }
        fn mmio_write(&self, _: usize, addr: u64, width: u8, value: u64) {
            self.seen.lock().unwrap().push(('w', addr, width, value));
        }
        fn advance(&self, _: u64) -> Option<u64> {
            None
        }
        fn vcpu_failed(&self, _: usize, _: MachineExit) {
            panic!("an instruction does not end a machine");
        }
        fn clock(&self) -> &dyn Clock {
            &*self.clock
        }
    }

    struct World {
        one: OneInstruction,
        board: Arc<Recorder>,
        memory: GuestMemory,
        registers: Registers,
    }

    impl World {
        /// A machine in 64-bit mode whose device is mapped at its own address, and `code` at RIP.
        fn with(code: &[u8]) -> World {
            let memory = GuestMemory::anonymous(&[(GuestAddr(0), 0x20_0000, MemoryMode::Ram)]).unwrap();
            for (at, entry) in [
                (0, TABLES + 0x1000),
                (0x1000, TABLES + 0x2000),
                (0x1018, TABLES + 0x3000),
                (0x2000, 0x80),
                (0x3000, DEVICE | 0x80),
            ] {
                memory.write_le(GuestAddr(TABLES + at), entry | 7).unwrap();
            }
            memory.write(GuestAddr(CODE), code).unwrap();
            let board = Arc::new(Recorder { clock: ManualClock::new(0), seen: Mutex::default() });
            let setup = VcpuSetup {
                vcpus: 1,
                topology: Topology::ONE,
                memory: memory.clone(),
                platform: Arc::clone(&board) as _,
                apics: None,
                attention: Attention::new(1),
                boot: BootState::Reset,
                device_windows: Vec::new(),
                manual_clock: None,
            };
            let flat = |selector, attributes| SegmentState { selector, attributes, limit: u32::MAX, base: 0 };
            let data = flat(0x18, 0xc093);
            let registers = Registers {
                general: [0; 16],
                rip: CODE,
                rflags: 2,
                cr0: 0x8001_0033,
                cr2: 0,
                cr3: TABLES,
                cr4: 0x6a0,
                efer: 0x500,
                segments: [data, flat(0x10, 0xa09b), data, data, data, data],
                cpl: 0,
            };
            World { one: OneInstruction::new(&setup, 0), board, memory, registers }
        }

        fn run(&mut self) -> Outcome {
            self.one.run(&mut self.registers)
        }

        fn seen(&self) -> Vec<(char, u64, u8, u64)> {
            std::mem::take(&mut *self.board.seen.lock().unwrap())
        }
    }

    #[test]
    fn a_store_and_a_load_reach_the_device_with_their_width() {
        // mov [rdi], eax; movzx ecx, word [rdi + 2]; mov rax, [rdi]; and dword [rdi], 0xf
        let mut world = World::with(&[0x89, 0x07, 0x0f, 0xb7, 0x4f, 0x02, 0x48, 0x8b, 0x07, 0x83, 0x27, 0x0f]);
        world.registers.general[7] = DEVICE + 0x10;
        world.registers.general[0] = 0x1_2345_6789;
        assert_eq!([world.run(), world.run(), world.run(), world.run()], [Outcome::Done; 4]);
        let all = [
            ('w', DEVICE + 0x10, 4, 0x2345_6789),
            ('r', DEVICE + 0x12, 2, 0),
            ('r', DEVICE + 0x10, 8, 0),
            ('r', DEVICE + 0x10, 4, 0),
            ('w', DEVICE + 0x10, 4, 1),
        ];
        assert_eq!(world.seen(), all);
        assert_eq!((world.registers.general[1], world.registers.general[0]), (0x2211, 0x8877_6655_4433_2211));
        assert_eq!(world.registers.rip, CODE + 12);
    }

    #[test]
    fn code_and_page_tables_that_changed_meanwhile_are_read_again() {
        let mut world = World::with(&[0x89, 0x07]);
        world.registers.general[7] = DEVICE;
        world.run();
        world.memory.write(GuestAddr(CODE), &[0x88]).unwrap();
        world.memory.write_le(GuestAddr(TABLES + 0x3000), DEVICE | 0x20_0087).unwrap();
        world.registers.rip = CODE;
        world.run();
        assert_eq!(world.seen(), [('w', DEVICE, 4, 0), ('w', DEVICE + 0x20_0000, 1, 0)]);
    }

    #[test]
    fn a_repeated_string_goes_on_until_it_is_done_or_bounded() {
        // rep outsb
        let mut world = World::with(&[0xf3, 0x6e]);
        (world.registers.general[1], world.registers.general[2], world.registers.general[6]) = (3, 0x3f8, 0x2000);
        world.memory.write(GuestAddr(0x2000), b"abc").unwrap();
        assert_eq!(world.run(), Outcome::Done);
        assert_eq!(world.seen(), [('o', 0x3f8, 1, 0x61), ('o', 0x3f8, 1, 0x62), ('o', 0x3f8, 1, 0x63)]);
        assert_eq!((world.registers.rip, world.registers.general[1]), (CODE + 2, 0));
        (world.registers.general[1], world.registers.rip) = (u64::MAX, CODE);
        assert_eq!(world.run(), Outcome::Done);
        assert_eq!(world.registers.rip, CODE);
        assert_eq!(world.seen().len(), MOST_STEPS as usize);
    }

    #[test]
    fn an_exception_is_returned_with_its_address_and_not_delivered() {
        // mov eax, [rdi] at an address without a page; ud2
        let mut world = World::with(&[0x8b, 0x07, 0x0f, 0x0b]);
        world.registers.general[7] = 0x4000_1234;
        assert_eq!(world.run(), Outcome::Raised(Exception { vector: 14, error: Some(0), cr2: 0x4000_1234 }));
        assert_eq!((world.registers.rip, world.registers.general[4]), (CODE, 0));
        world.registers.rip = CODE + 2;
        assert!(matches!(world.run(), Outcome::Raised(Exception { vector: 6, .. })));
        world.registers.rip = 0x4000_0000;
        assert!(matches!(world.run(), Outcome::Raised(Exception { vector: 14, .. })));
        world.registers.rip = 1 << 63;
        assert!(matches!(world.run(), Outcome::Raised(Exception { vector: 13, .. })));
    }

    #[test]
    fn registers_that_are_not_known_are_never_made_up() {
        for code in [
            &[0x0f, 0x11, 0x07][..],         // movups [rdi], xmm0
            &[0x0f, 0x7f, 0x07],             // movq [rdi], mm0
            &[0xdd, 0x07],                   // fld qword [rdi]
            &[0x0f, 0xae, 0x07],             // fxsave [rdi]
            &[0x0f, 0xae, 0x1f],             // stmxcsr [rdi]
            &[0x66, 0x48, 0x0f, 0x7e, 0x07], // movq [rdi], xmm0
        ] {
            let mut world = World::with(code);
            world.registers.general[7] = DEVICE;
            assert_eq!(world.run(), Outcome::Refused("it uses vector or x87 registers"), "{code:x?}");
            assert_eq!(world.seen(), []);
        }
        // movnti [rdi], eax needs SSE2 and no register of it.
        let mut world = World::with(&[0x0f, 0xc3, 0x07]);
        world.registers.general[7] = DEVICE;
        assert_eq!((world.run(), world.seen()), (Outcome::Done, vec![('w', DEVICE, 4, 0)]));
    }

    #[test]
    fn system_instructions_are_refused_and_a_users_ports_are_not() {
        for code in [&[0x0f, 0x01, 0x17][..], &[0x8e, 0x1f], &[0x0f, 0x00, 0x1f], &[0xff, 0x1f], &[0xcf], &[0xcd, 0x80], &[0xf4]]
        {
            let mut world = World::with(code);
            world.registers.general[7] = DEVICE;
            let refused = Outcome::Refused("it uses system registers or loads a segment");
            assert_eq!((world.run(), world.seen()), (refused, vec![]), "{code:x?}");
        }
        // insb for a user whose task has the port.
        let mut world = World::with(&[0x6c]);
        (world.registers.general[2], world.registers.general[7], world.registers.cpl) = (0x60, 0x2000, 3);
        assert_eq!((world.run(), world.seen()), (Outcome::Done, vec![('i', 0x60, 1, 0)]));
        assert_eq!((world.registers.rflags, world.registers.general[7]), (2, 0x2001));
    }

    #[test]
    fn any_bytes_end_in_some_outcome_and_keep_the_machine() {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 24
        };
        for _ in 0..300 {
            let code: Vec<u8> = (0..15).map(|_| next() as u8).collect();
            let mut world = World::with(&code);
            world.registers.general.iter_mut().for_each(|register| *register = next() & 0x1f_ffff);
            world.registers.cpl = next() as u8 & 3;
            (0..4).for_each(|_| _ = world.run());
        }
    }

    #[test]
    fn real_mode_has_segments_and_no_page_tables() {
        // mov [bx], al with DS at the display adapter's hole.
        let mut world = World::with(&[0x88, 0x07]);
        let r = &mut world.registers;
        (r.cr0, r.cr4, r.efer, r.general[3], r.general[0]) = (0x10, 0, 0, 0x8000, 0x41);
        for s in &mut r.segments {
            *s = SegmentState { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        }
        (r.segments[3].selector, r.segments[3].base) = (0xffff, 0xf_fff0 + 0x10_0000);
        assert_eq!(world.run(), Outcome::Done);
        let mut byte = [0];
        world.memory.read(GuestAddr(0x1f_fff0 + 0x8000 & 0x1f_ffff), &mut byte).unwrap();
        assert_eq!(world.registers.rip, CODE + 2);
        assert_eq!(world.seen(), [('w', 0x20_7ff0, 1, 0x41)]);
    }
}
