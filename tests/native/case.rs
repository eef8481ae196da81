//! One case: a few instructions with the registers and the memory that they start from.
//!
//! The first instruction may be a filler that leaves flags and registers behind, then comes the form under test, then
//! up to three fillers. Registers that address memory are set so that the access falls where it is meant to: inside
//! two writable pages, across them, into a read-only page, into nothing.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpCodeOperandKind, OpKind, Register,
};

use crate::forms::{Forms, runs_in_64};
use crate::random::Random;
use crate::soft::is_xsave;
use crate::verdict::{is_transcendental, unpredictable};

/// Two pages of code, which a case cannot write: when a processor sees that an instruction changes what is already
/// decoded, itself among it, is its own affair (SDM vol. 3 section 11.6). Unit tests hold code that changes itself.
pub const CODE: u64 = 0x2000_0000;
/// What the code pages hold beside the case that runs: HLT, which faults. Cases jump there, and read it.
pub const FILLER: u8 = 0xf4;
/// Two writable pages and one read-only page; nothing around them.
pub const SCRATCH: u64 = 0x2001_0000;
/// The read-only page.
pub const READ_ONLY: u64 = SCRATCH + 2 * PAGE;
/// One writable page; nothing around it.
pub const STACK: u64 = 0x2003_0000;
pub const PAGE: u64 = 4096;
/// Pages of random contents to start from; the read-only page is always the first.
pub const POOL: usize = 32;
/// Bits of MXCSR that are tried: without MM, which AMD's processors have (APM vol. 1 section 4.2.2) and Intel's refuse.
const MXCSR_BITS: u32 = !0x2_0000;
/// Seed of the pool, the same in every run so that a case follows from its seed and number alone.
const POOL_SEED: u64 = 77;

pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

/// Registers before or after.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct State {
    /// The FXSAVE64 image.
    pub fx: [u8; 512],
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub rip: u64,
}

impl State {
    pub const ZERO: State = State { fx: [0; 512], gpr: [0; 16], rflags: 0x202, rip: 0 };
    pub fn fx16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fx[at], self.fx[at + 1]])
    }
    pub fn fx32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.fx[at..at + 4].try_into().expect("four bytes"))
    }
}

/// What came of a case.
#[derive(Clone)]
pub struct Outcome {
    pub state: State,
    /// Vector of the exception that ended it; 3 at the end of the sequence, 255 when the child died.
    pub vector: u8,
    pub error: u64,
    pub cr2: u64,
    /// The writable scratch pages, then the stack.
    pub memory: Box<[u8; 3 * PAGE as usize]>,
}

/// One instruction of a case.
#[derive(Clone, Copy)]
pub struct Placed {
    pub code: Code,
    pub at: u64,
    /// RFLAGS bits that are undefined before it.
    pub undefined: u64,
    /// Address and bytes of its memory operand, where there is one.
    pub memory: Option<(u64, u64)>,
}

#[derive(Clone)]
pub struct Case {
    pub number: u64,
    /// 64 or 32: the mode of the code.
    pub bits: u32,
    pub placed: Vec<Placed>,
    /// The form under test, and the fillers.
    pub forms: Vec<Code>,
    pub main: usize,
    pub bytes: Vec<u8>,
    pub start: State,
    pub pages: [u8; 3],
    pub patches: Vec<(u64, Vec<u8>)>,
    /// RFLAGS bits that are undefined at the end.
    pub undefined: u64,
}

impl Case {
    pub fn entry(&self) -> u64 {
        self.start.rip
    }
    pub fn end(&self) -> u64 {
        self.start.rip + self.bytes.len() as u64 - 1
    }
    /// The case cut off behind its first `count` instructions.
    pub fn prefix(&self, count: usize) -> Case {
        let Some(next) = self.placed.get(count) else { return self.clone() };
        let mut case = self.clone();
        case.bytes.truncate((next.at - self.entry()) as usize);
        case.bytes.push(0xcc);
        case.placed.truncate(count);
        case.forms.truncate(count);
        case.main = case.main.min(count - 1);
        case.undefined = next.undefined;
        case
    }
    /// The instruction at an address.
    pub fn at(&self, rip: u64) -> Option<&Placed> {
        self.placed.iter().find(|p| p.at == rip)
    }
}

/// The pool's pages.
pub fn pool() -> Vec<[u8; PAGE as usize]> {
    (0..POOL)
        .map(|i| {
            let mut page = [0; PAGE as usize];
            Random::new(POOL_SEED, i as u64).fill(&mut page);
            page
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Hold {
    /// Its initial value may still be chosen.
    Free,
    /// Its value is known to be the initial one.
    Fixed,
    /// Written by an instruction.
    Clobbered,
}

struct Maker<'a> {
    r: Random,
    bits: u32,
    forms: &'a Forms,
    state: State,
    hold: [Hold; 16],
    patches: Vec<(u64, Vec<u8>)>,
    info: InstructionInfoFactory,
    /// Where a branch goes, to be put into registers or memory.
    wants_target: Option<Wants>,
    memory: Option<(u64, u64)>,
}

#[derive(Clone, Copy)]
enum Wants {
    Register(usize),
    Memory(u64),
}

/// Case `number` of `seed`.
pub fn make(seed: u64, number: u64, forms: &Forms) -> Case {
    let mut attempt = 0;
    loop {
        // The attempt is part of the stream, so a case that cannot be made is made anew and still follows from its number.
        let stream = number.wrapping_mul(64) + attempt;
        if let Some(case) = try_make(Random::new(seed, stream), number, forms) {
            return case;
        }
        attempt += 1;
        let form = forms.tried[(number % forms.tried.len() as u64) as usize];
        assert!(attempt < 60, "no case of {form:?} can be made");
    }
}

fn try_make(mut r: Random, number: u64, forms: &Forms) -> Option<Case> {
    let main_form = forms.tried[(number % forms.tried.len() as u64) as usize];
    let long = runs_in_64(main_form) && !(main_form.op_code().mode32() && r.once_in(4));
    let mut m = Maker {
        r,
        bits: if long { 64 } else { 32 },
        forms,
        state: State::ZERO,
        hold: [Hold::Free; 16],
        patches: Vec::new(),
        info: InstructionInfoFactory::new(),
        wants_target: None,
        memory: None,
    };
    m.start();
    let start = if m.r.once_in(10) { CODE + PAGE - 1 - m.r.below(12) } else { CODE + 64 + m.r.below(0xe00) };
    let mut bytes = Vec::new();
    let mut placed = Vec::new();
    let mut undefined = 0u64;
    // What prepares the stack's top or an image needs the state as it is at the start.
    let alone = is_transcendental(main_form) || is_xsave(main_form);
    let before = usize::from(!alone && m.r.once_in(3));
    // Nothing follows what may make differences of its own that later instructions would read.
    let last = !unpredictable(main_form).is_empty() || is_transcendental(main_form);
    let after = if m.r.once_in(2) || last { 0 } else { m.r.below(4) as usize };
    let is_x87 = |code: Code| format!("{code:?}").starts_with('F');
    for i in 0..before + 1 + after {
        let code = if i == before {
            main_form
        } else if is_x87(main_form) && m.r.once_in(2) {
            let x87: Vec<Code> = m.forms.fillers.iter().copied().filter(|&c| is_x87(c)).collect();
            m.r.pick(&x87)
        } else {
            let fillers = &m.forms.fillers;
            fillers[m.r.below(fillers.len() as u64) as usize]
        };
        let at = start + bytes.len() as u64;
        let info = code.op_code();
        if if m.bits == 64 { !runs_in_64(code) } else { !info.mode32() } {
            continue;
        }
        let before_undefined = undefined;
        let Some(new) = m.instruction(code, at, &mut undefined) else {
            if i == before {
                return None;
            }
            continue;
        };
        placed.push((i == before, Placed { code, at, undefined: before_undefined, memory: m.memory.take() }));
        bytes.extend_from_slice(&new);
        if bytes.len() > 80 {
            break;
        }
    }
    let main = placed.iter().position(|(is_main, _)| *is_main)?;
    // INT3 ends the sequence.
    bytes.push(0xcc);
    m.state.rip = start;
    let pages = [m.r.below(POOL as u64) as u8, m.r.below(POOL as u64) as u8, m.r.below(POOL as u64) as u8];
    let placed: Vec<Placed> = placed.into_iter().map(|(_, p)| p).collect();
    Some(Case {
        number,
        bits: m.bits,
        forms: placed.iter().map(|p| p.code).collect(),
        placed,
        main,
        bytes,
        start: m.state,
        pages,
        patches: m.patches,
        undefined,
    })
}

/// iced's flag bits as RFLAGS bits.
pub fn to_rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [(B::OF, 11), (B::SF, 7), (B::ZF, 6), (B::AF, 4), (B::CF, 0), (B::PF, 2), (B::DF, 10), (B::AC, 18)]
        .iter()
        .fold(0, |out, &(bit, position)| out | u64::from(bits & bit != 0) << position)
}

/// Whether it leaves flags alone for some operands although iced lists them as written.
pub fn writes_flags_maybe(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Shl
            | M::Shr
            | M::Sar
            | M::Sal
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsd
            | M::Cmpsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Fcomi
            | M::Fcomip
            | M::Fucomi
            | M::Fucomip
    )
}

fn number_of(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

fn set_branch(insn: &mut Instruction, target: u64) {
    match insn.op0_kind() {
        OpKind::NearBranch64 => insn.set_near_branch64(target),
        OpKind::NearBranch32 => insn.set_near_branch32(target as u32),
        _ => insn.set_near_branch16(target as u16),
    }
}

impl Maker<'_> {
    fn start(&mut self) {
        for i in 0..16 {
            self.state.gpr[i] = self.r.integer();
        }
        self.state.gpr[RSP] = match self.r.below(20) {
            0 => STACK + self.r.below(16),
            1 => STACK + PAGE - self.r.below(16),
            2 => STACK + 0x200 + self.r.below(0xc00),
            _ => STACK + 0x200 + self.r.below(0x180) * 8,
        };
        self.hold[RSP] = Hold::Fixed;
        if self.bits == 32 {
            self.state.gpr.iter_mut().for_each(|value| *value &= 0xffff_ffff);
        }
        let flags = self.r.next() & 0x8d5;
        let df = if self.r.once_in(4) { 0x400 } else { 0 };
        self.state.rflags = 0x202 | flags | df;
        self.start_fx();
    }

    fn start_fx(&mut self) {
        let fcw = self.random_control();
        let top = self.r.below(8) as u16;
        let mut fsw = (self.r.next() as u16 & 0x4700) | top << 11;
        let ftw = match self.r.below(8) {
            0 => 0,
            1 => self.r.next() as u8,
            2 | 3 => 0x7f,
            4 => 0xff >> self.r.below(8),
            _ => (self.r.next() | self.r.next() | self.r.next()) as u8 & !(1 << ((top + 7) & 7)) | 3 << top,
        };
        if self.r.once_in(3) {
            // Flags of masked exceptions; now and then of unmasked ones, which are pending then.
            let flags = self.r.next() as u16 & 0x7f;
            fsw |= if self.r.once_in(12) { flags } else { flags & (fcw | 0x40) };
            if fsw & !fcw & 0x3f != 0 {
                fsw |= 0x8080;
            }
        }
        let fx = &mut self.state.fx;
        fx[0..2].copy_from_slice(&fcw.to_le_bytes());
        fx[2..4].copy_from_slice(&fsw.to_le_bytes());
        fx[4] = ftw;
        for i in 0..8 {
            let at = 32 + 16 * i;
            if self.r.once_in(6) {
                let mmx = self.r.integer();
                fx[at..at + 8].copy_from_slice(&mmx.to_le_bytes());
                fx[at + 8..at + 10].copy_from_slice(&[0xff, 0xff]);
            } else {
                let (sig, se) = self.r.f80_bits();
                fx[at..at + 8].copy_from_slice(&sig.to_le_bytes());
                fx[at + 8..at + 10].copy_from_slice(&se.to_le_bytes());
            }
        }
        let masks = if self.r.once_in(6) { self.r.next() as u32 & 0x1f80 } else { 0x1f80 };
        let modes = if self.r.once_in(3) { self.r.next() as u32 & 0xe040 } else { 0 };
        let flags = if self.r.once_in(2) { self.r.next() as u32 & 0x3f } else { 0 };
        fx[24..28].copy_from_slice(&(masks | modes | flags).to_le_bytes());
        let (_, xmm) = fx.split_at_mut(160);
        self.r.fill(&mut xmm[..256]);
    }

    fn random_control(&mut self) -> u16 {
        let masks = if self.r.once_in(6) { self.r.next() as u16 & 0x3f } else { 0x3f };
        let precision = if self.r.once_in(3) { self.r.pick(&[0, 0x200]) } else { 0x300 };
        let rounding = if self.r.once_in(2) { self.r.next() as u16 & 0xc00 } else { 0 };
        masks | precision | rounding | 0x40
    }

    /// Where a memory operand of `size` bytes lies.
    fn target(&mut self, size: u64, align: u64) -> u64 {
        let size = size.max(1);
        let within = size.min(PAGE);
        let addr = match self.r.below(24) {
            0..=2 => SCRATCH + PAGE - self.r.below(within + 1),
            3 => READ_ONLY - self.r.below(within + 1),
            4 => READ_ONLY + self.r.below(PAGE),
            5 => READ_ONLY + PAGE - self.r.below(within + 1),
            6 => SCRATCH - 1 - self.r.below(within + 1),
            // Nowhere, and about the ends of what addresses can be. (What happens where a 32-bit operand reaches behind
            // 4 GiB is the processor's choice: SDM vol. 3 section 5.3.)
            7 if self.bits == 32 => return 0x1000_0000,
            7 => {
                let half = (1 << 47) - 1 - self.r.below(within);
                return self.r.pick(&[1 << 63, 1 << 47, 0xffff_7fff_ffff_ffff, 0x1000_0000, half]);
            }
            _ => SCRATCH + self.r.below(2 * PAGE - within),
        };
        if self.r.once_in(6) { addr } else { addr & !(align - 1) }
    }

    /// General and XMM registers that the mode can name.
    fn registers(&self) -> u64 {
        if self.bits == 64 { 16 } else { 8 }
    }

    fn set(&mut self, register: usize, value: u64) -> bool {
        if self.hold[register] == Hold::Free && register < self.registers() as usize {
            self.state.gpr[register] = if self.bits == 32 { value & 0xffff_ffff } else { value };
            self.hold[register] = Hold::Fixed;
            return true;
        }
        false
    }

    /// Gives the instruction a memory operand at `target`, or now and then elsewhere: the address that it really has,
    /// `None` if it cannot be encoded.
    fn address(&mut self, insn: &mut Instruction, target: u64) -> Option<u64> {
        let narrow = self.bits == 32 || target < 1 << 31 && self.r.once_in(8);
        let far = target >= 1 << 31;
        let known = |hold: Hold| hold != Hold::Clobbered;
        if self.bits == 32 && self.r.once_in(24) && known(self.hold[RBX]) && known(self.hold[RSI]) {
            // 16-bit addressing reaches only what is not mapped.
            let displacement = self.r.next() & 0xffff;
            insn.set_memory_base(Register::BX);
            insn.set_memory_index(Register::SI);
            insn.set_memory_displ_size(2);
            insn.set_memory_displacement64(displacement);
            (self.hold[RBX], self.hold[RSI]) = (Hold::Fixed, Hold::Fixed);
            return Some(self.state.gpr[RBX].wrapping_add(self.state.gpr[RSI]).wrapping_add(displacement) & 0xffff);
        }
        if !far && !narrow && self.r.once_in(6) {
            insn.set_memory_base(Register::RIP);
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(target);
            return Some(target);
        }
        let name = |i: usize| if narrow { Register::EAX + i as u32 } else { Register::RAX + i as u32 };
        let base =
            if self.r.once_in(8) { None } else { Some(self.r.below(self.registers()) as usize) }.filter(|&b| known(self.hold[b]));
        let index = if self.r.once_in(2) { None } else { Some(self.r.below(self.registers()) as usize) };
        let index = index.filter(|&i| i != RSP && Some(i) != base && known(self.hold[i]));
        let scale = 1u64 << self.r.below(4);
        let mut displacement = match self.r.below(3) {
            0 => 0,
            1 => self.r.next() as i8 as i64,
            _ => (self.r.next() as i32 >> 8) as i64,
        };
        let mut rest = target;
        if let Some(i) = index {
            if self.hold[i] == Hold::Free {
                let value = if self.r.once_in(4) { (self.r.below(64) as i64).wrapping_neg() as u64 } else { self.r.below(4096) };
                self.set(i, value);
            }
            rest = rest.wrapping_sub(self.state.gpr[i].wrapping_mul(scale));
        }
        match base {
            Some(b) if self.hold[b] == Hold::Free => {
                let value = rest.wrapping_sub(displacement as u64);
                let value = if narrow { value & 0xffff_ffff | self.r.next() << 32 } else { value };
                self.set(b, value);
            }
            Some(b) => displacement = rest.wrapping_sub(self.state.gpr[b]) as i64,
            None => displacement = rest as i64,
        }
        let fits = if narrow {
            displacement = displacement as i32 as i64;
            true
        } else {
            displacement == displacement as i32 as i64
        };
        if !fits {
            return None;
        }
        if let Some(b) = base {
            insn.set_memory_base(name(b));
        }
        if let Some(i) = index {
            insn.set_memory_index(name(i));
            insn.set_memory_index_scale(scale as u32);
        }
        let small = displacement == displacement as i8 as i64 && base.is_some();
        let needs_none = displacement == 0 && base.is_some_and(|b| b & 7 != 5);
        insn.set_memory_displ_size(match (needs_none, small) {
            (true, _) => 0,
            (_, true) => 1,
            _ if narrow => 4,
            _ => 8,
        });
        let wide = if narrow { displacement as u32 as u64 } else { displacement as u64 };
        insn.set_memory_displacement64(wide);
        if base.is_none() && index.is_none() {
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
        }
        Some(target)
    }

    /// Alignment that an access of the instruction asks for.
    fn alignment(code: Code, size: u64) -> u64 {
        match code.mnemonic() {
            Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64 => 64,
            _ if size >= 16 => 16,
            _ => 1,
        }
    }

    /// Makes one instruction at address `at`; `None` where this attempt did not work out.
    fn instruction(&mut self, code: Code, at: u64, undefined: &mut u64) -> Option<Vec<u8>> {
        let mut insn = Instruction::new();
        insn.set_code(code);
        let info = code.op_code();
        let held = self.hold;
        // What an attempt before this one left behind is not this one's.
        (self.memory, self.wants_target) = (None, None);
        let string = (0..info.op_count()).any(|i| {
            matches!(info.op_kind(i), OpCodeOperandKind::seg_rSI | OpCodeOperandKind::es_rDI | OpCodeOperandKind::seg_rDI)
        });
        let narrow_string = string && self.r.once_in(8);
        for i in 0..info.op_count() {
            if !self.operand(&mut insn, i, info.op_kind(i), code, narrow_string) {
                self.hold = held;
                return None;
            }
        }
        if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && self.r.once_in(3) {
            insn.set_has_lock_prefix(true);
        }
        if string && info.can_use_rep_prefix() && !self.r.once_in(3) {
            if self.r.once_in(2) && info.can_use_repne_prefix() {
                insn.set_has_repne_prefix(true);
            } else {
                insn.set_has_rep_prefix(true);
            }
            let count = match self.r.below(10) {
                0 => 0,
                1 => self.r.below(3000),
                2 => self.r.integer(),
                _ => self.r.below(20),
            };
            self.set(RCX, count);
        }
        if !self.prepare(code, &insn) {
            self.hold = held;
            return None;
        }
        let bytes = self.encode(&mut insn, at, code)?;
        // Reads of flags that an earlier instruction left undefined would say nothing.
        let mut decoder = Decoder::with_ip(self.bits, &bytes, at, DecoderOptions::NONE);
        let decoded = decoder.decode();
        if decoded.code() != code {
            return None;
        }
        if to_rflags(decoded.rflags_read()) & *undefined != 0 {
            return None;
        }
        let defined = decoded.rflags_written() | decoded.rflags_cleared() | decoded.rflags_set();
        if !writes_flags_maybe(code) {
            *undefined &= !to_rflags(defined);
        }
        *undefined |= to_rflags(decoded.rflags_undefined());
        self.note_registers(&decoded);
        Some(bytes)
    }

    fn note_registers(&mut self, insn: &Instruction) {
        let mut touched: Vec<(usize, bool)> = Vec::new();
        for used in self.info.info(insn).used_registers() {
            let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
            touched.extend(number_of(used.register()).map(|n| (n, written)));
        }
        for (n, written) in touched {
            if written {
                self.hold[n] = Hold::Clobbered;
            } else if self.hold[n] == Hold::Free {
                self.hold[n] = Hold::Fixed;
            }
        }
    }

    fn encode(&mut self, insn: &mut Instruction, at: u64, code: Code) -> Option<Vec<u8>> {
        let mut encoder = Encoder::new(self.bits);
        let branch = matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16);
        if branch {
            set_branch(insn, at + 16);
        }
        encoder.encode(insn, at).ok()?;
        let mut bytes = encoder.take_buffer();
        // What a branch skips: `mov al, imm8`, so that a branch not taken shows.
        let target = at + bytes.len() as u64 + 2;
        let skips = match (branch, self.wants_target.take()) {
            (true, _) => {
                set_branch(insn, target);
                encoder.encode(insn, at).ok()?;
                bytes = encoder.take_buffer();
                true
            }
            (_, Some(Wants::Register(n))) => {
                self.state.gpr[n] = target;
                true
            }
            (_, Some(Wants::Memory(addr))) => {
                self.patches.push((addr, target.to_le_bytes().to_vec()));
                true
            }
            _ => code.mnemonic() == Mnemonic::Ret,
        };
        if code.mnemonic() == Mnemonic::Ret {
            let rsp = self.state.gpr[RSP];
            self.patches.push((rsp, target.to_le_bytes().to_vec()));
        }
        if skips {
            bytes.extend_from_slice(&[0xb0, self.r.next() as u8]);
        }
        Some(bytes)
    }

    /// Fills in operand `i`.
    fn operand(&mut self, insn: &mut Instruction, i: u32, kind: OpCodeOperandKind, code: Code, narrow_string: bool) -> bool {
        use OpCodeOperandKind as K;
        let memory_or = |this: &mut Self, insn: &mut Instruction, from: Register, count: u64| {
            if this.r.once_in(2) {
                return this.memory_operand(insn, i, code);
            }
            let register = from + this.r.below(this.nameable(count)) as u32;
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, register);
            true
        };
        let register = |this: &mut Self, insn: &mut Instruction, from: Register, count: u64| {
            insn.set_op_kind(i, OpKind::Register);
            let register = from + this.r.below(this.nameable(count)) as u32;
            insn.set_op_register(i, register);
            true
        };
        let exactly = |insn: &mut Instruction, register: Register| {
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, register);
            true
        };
        match kind {
            K::mem | K::sibmem => self.memory_operand(insn, i, code),
            K::mem_offs => {
                let target = self.target(8, 1);
                self.memory = Some((target, 8));
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_displ_size(self.bits / 8);
                insn.set_memory_displacement64(target);
                true
            }
            K::r8_or_mem => memory_or(self, insn, Register::AL, 20),
            K::r16_or_mem => memory_or(self, insn, Register::AX, 16),
            K::r32_or_mem if matches!(code, Code::Call_rm32 | Code::Jmp_rm32) => self.branch_operand(insn, i, Register::EAX),
            K::r32_or_mem => memory_or(self, insn, Register::EAX, 16),
            K::r64_or_mem => {
                if matches!(code, Code::Call_rm64 | Code::Jmp_rm64) {
                    return self.branch_operand(insn, i, Register::RAX);
                }
                memory_or(self, insn, Register::RAX, 16)
            }
            K::mm_or_mem => memory_or(self, insn, Register::MM0, 8),
            K::xmm_or_mem => memory_or(self, insn, Register::XMM0, 16),
            K::r8_reg | K::r8_opcode => register(self, insn, Register::AL, 20),
            K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => register(self, insn, Register::AX, 16),
            K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_reg_mem => register(self, insn, Register::EAX, 16),
            K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_reg_mem => register(self, insn, Register::RAX, 16),
            K::mm_reg | K::mm_rm => register(self, insn, Register::MM0, 8),
            K::xmm_reg | K::xmm_rm => register(self, insn, Register::XMM0, 16),
            K::seg_reg => register(self, insn, Register::ES, 6),
            K::es => exactly(insn, Register::ES),
            K::cs => exactly(insn, Register::CS),
            K::ss => exactly(insn, Register::SS),
            K::ds => exactly(insn, Register::DS),
            K::fs => exactly(insn, Register::FS),
            K::gs => exactly(insn, Register::GS),
            K::al => exactly(insn, Register::AL),
            K::cl => exactly(insn, Register::CL),
            K::ax => exactly(insn, Register::AX),
            K::dx => exactly(insn, Register::DX),
            K::eax => exactly(insn, Register::EAX),
            K::rax => exactly(insn, Register::RAX),
            K::st0 => exactly(insn, Register::ST0),
            K::sti_opcode => {
                let n = if self.r.once_in(2) { self.r.below(3) } else { self.r.below(8) };
                exactly(insn, Register::ST0 + n as u32)
            }
            K::imm8
            | K::imm8_const_1
            | K::imm16
            | K::imm32
            | K::imm64
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm32sex64 => self.immediate(insn, i, kind, code),
            K::seg_rSI => {
                insn.set_op_kind(
                    i,
                    [OpKind::MemorySegRSI, OpKind::MemorySegESI, OpKind::MemorySegSI][self.string_width(narrow_string)],
                );
                self.string_address(RSI)
            }
            K::es_rDI => {
                insn.set_op_kind(
                    i,
                    [OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemoryESDI][self.string_width(narrow_string)],
                );
                self.string_address(RDI)
            }
            K::seg_rDI => {
                insn.set_op_kind(
                    i,
                    [OpKind::MemorySegRDI, OpKind::MemorySegEDI, OpKind::MemorySegDI][self.string_width(narrow_string)],
                );
                self.string_address(RDI)
            }
            K::seg_rBX_al => {
                let target = self.target(256, 1);
                self.set(RBX, target);
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_base(if self.bits == 64 { Register::RBX } else { Register::EBX });
                insn.set_memory_index(Register::AL);
                true
            }
            K::br64_1 | K::br64_4 => {
                insn.set_op_kind(i, OpKind::NearBranch64);
                true
            }
            K::br32_1 | K::br32_4 => {
                insn.set_op_kind(i, OpKind::NearBranch32);
                true
            }
            K::br16_1 | K::br16_2 => {
                insn.set_op_kind(i, OpKind::NearBranch16);
                true
            }
            other => panic!("operand kind {other:?} of {code:?} is not known to the test"),
        }
    }

    /// 0, 1, 2 for 64-, 32- and 16-bit addresses.
    fn string_width(&self, narrow: bool) -> usize {
        usize::from(self.bits == 32) + usize::from(narrow)
    }

    /// Of `count` registers of a kind, how many the mode can name.
    fn nameable(&self, count: u64) -> u64 {
        if self.bits == 64 { count } else { count.min(8) }
    }

    fn string_address(&mut self, register: usize) -> bool {
        let target = self.target(64, 1);
        self.set(register, target);
        true
    }

    fn memory_operand(&mut self, insn: &mut Instruction, i: u32, code: Code) -> bool {
        let size = self.memory_size(code);
        let mut target = self.target(size, Self::alignment(code, size));
        if code.cpuid_features().contains(&CpuidFeature::SHA) {
            // Whether a misaligned operand faults differs by vendor.
            target &= !15;
        }
        insn.set_op_kind(i, OpKind::Memory);
        let Some(address) = self.address(insn, target) else { return false };
        if self.r.once_in(16) {
            insn.set_segment_prefix(self.r.pick(&[Register::GS, Register::DS, Register::ES, Register::CS, Register::SS]));
        }
        self.memory = Some((address, size));
        true
    }

    fn memory_size(&self, code: Code) -> u64 {
        use Mnemonic as M;
        match code.mnemonic() {
            M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => 512,
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xrstor | M::Xrstor64 => 576,
            _ => (code.op_code().memory_size().size() as u64).max(1),
        }
    }

    /// The operand of an indirect near branch.
    fn branch_operand(&mut self, insn: &mut Instruction, i: u32, first: Register) -> bool {
        if self.r.once_in(2) {
            let n = self.r.below(self.registers()) as usize;
            if self.hold[n] != Hold::Free {
                return false;
            }
            self.hold[n] = Hold::Fixed;
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, first + n as u32);
            self.wants_target = Some(Wants::Register(n));
            return true;
        }
        let target = SCRATCH + self.r.below(2 * PAGE - 8);
        insn.set_op_kind(i, OpKind::Memory);
        let Some(address) = self.address(insn, target) else { return false };
        self.wants_target = Some(Wants::Memory(address));
        true
    }

    fn immediate(&mut self, insn: &mut Instruction, i: u32, kind: OpCodeOperandKind, code: Code) -> bool {
        use OpCodeOperandKind as K;
        let value = self.r.integer();
        let second = code.mnemonic() == Mnemonic::Enter && i == 1;
        let (kind, value) = match kind {
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8 if second => (OpKind::Immediate8_2nd, if self.r.once_in(8) { value & 0xff } else { value & 3 }),
            K::imm8 if matches!(code, Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8) => (OpKind::Immediate8, value & 0xef),
            K::imm8 => (OpKind::Immediate8, value & 0xff),
            K::imm16 if matches!(code.mnemonic(), Mnemonic::Enter | Mnemonic::Ret) => {
                (OpKind::Immediate16, if self.r.once_in(8) { value & 0xffff } else { value & 0x7f })
            }
            K::imm16 => (OpKind::Immediate16, value & 0xffff),
            K::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
            K::imm64 => (OpKind::Immediate64, value),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as i64 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as i64 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as i64 as u64),
            _ => (OpKind::Immediate32to64, value as i32 as i64 as u64),
        };
        insn.set_op_kind(i, kind);
        match kind {
            OpKind::Immediate8 => insn.set_immediate8(value as u8),
            OpKind::Immediate8_2nd => insn.set_immediate8_2nd(value as u8),
            OpKind::Immediate16 => insn.set_immediate16(value as u16),
            OpKind::Immediate32 => insn.set_immediate32(value as u32),
            OpKind::Immediate64 => insn.set_immediate64(value),
            OpKind::Immediate8to16 => insn.set_immediate8to16(value as i16),
            OpKind::Immediate8to32 => insn.set_immediate8to32(value as i32),
            OpKind::Immediate8to64 => insn.set_immediate8to64(value as i64),
            _ => insn.set_immediate32to64(value as i64),
        }
        true
    }

    /// Sets registers and memory so that an instruction has something to chew on.
    fn prepare(&mut self, code: Code, insn: &Instruction) -> bool {
        use Mnemonic as M;
        let likely = !self.r.once_in(3);
        match code.mnemonic() {
            M::Div if likely => {
                let high = self.r.below(3);
                self.set(RDX, high);
            }
            M::Idiv if likely => {
                let rax = self.state.gpr[RAX];
                self.set(RDX, ((rax as i64) >> 63) as u64);
            }
            M::Shld | M::Shrd => {
                let count = self.r.next() & 0xef;
                let narrow = matches!(code, Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL);
                if !self.set(RCX, count) && narrow && (self.hold[RCX] == Hold::Clobbered || self.state.gpr[RCX] & 0x1f > 16) {
                    // A count above 16 leaves everything undefined.
                    return false;
                }
            }
            M::Leave => {
                let rbp = STACK + self.r.below(PAGE - 8);
                self.set(RBP, rbp);
            }
            M::Enter => {
                let rbp = STACK + 0x100 + self.r.below(0x800);
                self.set(RBP, rbp);
            }
            M::Maskmovq | M::Maskmovdqu => {
                let target = self.target(16, 1);
                self.set(RDI, target);
            }
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
                let count = self.r.pick(&[0, 1, 2, 1 << 32, (1 << 32) + 1, u64::MAX, 0xffff_ffff]);
                self.set(RCX, count);
            }
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if likely => self.prepare_exchange(insn, code),
            M::Popf | M::Popfd | M::Popfq => {
                // No trap flag and no alignment check: both would stop the test itself.
                if self.hold[RSP] == Hold::Clobbered {
                    return false;
                }
                let flags = self.r.next() & !0x4_0100;
                let rsp = self.state.gpr[RSP];
                self.patches.push((rsp, flags.to_le_bytes().to_vec()));
            }
            M::Fldenv
            | M::Frstor
            | M::Fxrstor
            | M::Fxrstor64
            | M::Xrstor
            | M::Xrstor64
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64 => {
                return self.prepare_image(code);
            }
            M::Fldcw => {
                if let Some((addr, _)) = self.memory {
                    let fcw = self.random_control() | self.r.next() as u16 & 0xe080;
                    self.patches.push((addr, fcw.to_le_bytes().to_vec()));
                }
            }
            M::Ldmxcsr => {
                if let Some((addr, _)) = self.memory {
                    let mxcsr = self.r.next() as u32 & if likely { 0xffff } else { MXCSR_BITS };
                    self.patches.push((addr, mxcsr.to_le_bytes().to_vec()));
                }
            }
            M::Fbld => {
                if let Some((addr, _)) = self.memory {
                    let mut digits: Vec<u8> = (0..10).map(|_| (self.r.below(10) | self.r.below(10) << 4) as u8).collect();
                    digits[9] = self.r.next() as u8 & 0x80;
                    self.patches.push((addr, digits));
                }
            }
            M::F2xm1 | M::Fyl2xp1 => {
                // Outside of this range the result is undefined.
                let exponent = self.state.fx16(40);
                if (0x3ffd..0x7fff).contains(&(exponent & 0x7fff)) {
                    let smaller = exponent & 0x8000 | (0x3ffc - self.r.below(40) as u16);
                    self.state.fx[40..42].copy_from_slice(&smaller.to_le_bytes());
                }
            }
            _ => {}
        }
        true
    }

    fn prepare_exchange(&mut self, insn: &Instruction, code: Code) {
        let Some((addr, size)) = self.memory else { return };
        if insn.op0_kind() != OpKind::Memory {
            return;
        }
        let half = size as usize / 2;
        let bytes = if code.mnemonic() == Mnemonic::Cmpxchg {
            self.state.gpr[RAX].to_le_bytes()[..size as usize].to_vec()
        } else {
            let mut bytes = self.state.gpr[RAX].to_le_bytes()[..half].to_vec();
            bytes.extend_from_slice(&self.state.gpr[RDX].to_le_bytes()[..half]);
            bytes
        };
        self.hold[RAX] = if self.hold[RAX] == Hold::Free { Hold::Fixed } else { self.hold[RAX] };
        self.hold[RDX] = if self.hold[RDX] == Hold::Free { Hold::Fixed } else { self.hold[RDX] };
        self.patches.push((addr, bytes));
    }

    /// A saved x87 or XSAVE image that the instruction can take.
    fn prepare_image(&mut self, code: Code) -> bool {
        use Mnemonic as M;
        let Some((addr, size)) = self.memory else { return true };
        let fcw = self.random_control();
        let mut fsw = self.r.next() as u16;
        if !self.r.once_in(4) {
            fsw &= !0x3f | fcw;
        }
        let mut image = vec![0; size.min(576) as usize];
        self.r.fill(&mut image);
        image[0..2].copy_from_slice(&fcw.to_le_bytes());
        match code.mnemonic() {
            M::Fldenv | M::Frstor => {
                let at = if matches!(code, Code::Fldenv_m14byte | Code::Frstor_m94byte) { 2 } else { 4 };
                image[at..at + 2].copy_from_slice(&fsw.to_le_bytes());
            }
            _ => {
                image[2..4].copy_from_slice(&fsw.to_le_bytes());
                let mxcsr = self.r.next() as u32 & if self.r.once_in(8) { MXCSR_BITS } else { 0xffff };
                image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
            }
        }
        if is_xsave(code) {
            image[512..].fill(0);
            image[512] = self.r.below(4) as u8;
            if self.r.once_in(12) {
                // What must be zero. XSTATE_BV's other bits may be those of components that the host has (SDM vol. 1
                // section 13.4.2), and XCOMP_BV's highest means the compacted format where there is XSAVEC.
                let at = 520 + self.r.below(16) as usize;
                image[at] = self.r.next() as u8 & if at == 527 { 0x7f } else { 0xff };
            }
            let components = self.r.below(4);
            if !self.set(RAX, components) {
                return false;
            }
        }
        self.patches.push((addr, image));
        true
    }
}
