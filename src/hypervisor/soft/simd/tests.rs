//! Tests of every instruction of the family against the host processor. They find all encodings by decoding every
//! opcode, run them natively from a code page and through the lowering, and compare registers, memory, flags, MXCSR and
//! traps.
#![allow(unsafe_code)]

use std::arch::asm;
use std::collections::BTreeSet;
use std::sync::Once;

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind};

use super::lower;
use crate::hypervisor::soft::cpu::*;
use crate::hypervisor::soft::flags::LazyFlags;
use crate::hypervisor::soft::lower::{Builder, Mode, decode_block};
use crate::hypervisor::soft::op::Op;
use crate::hypervisor::soft::rig::{CODE as RIG_CODE, DATA, Rig, Stop};

/// The registers and the memory that an instruction may touch.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Debug)]
struct State {
    xmm: [u128; 16],
    mm: [u64; 8],
    /// RAX, RCX, RDX, R9, R10.
    gpr: [u64; 5],
    flags: u64,
    mxcsr: u64,
    /// Kind of trap: 8 for an exception of arithmetic, 11 for one of memory.
    trap: u64,
    mem: u64,
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Offset of the operand in its page.
const OPERAND: usize = 512;
const GPRS: [usize; 5] = [0, 1, 2, 9, 10];

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a live context; the stack top is the return address that `run_natively` pushed.
    unsafe {
        let (rip, rsp, r12) = registers(&mut *context.cast::<libc::ucontext_t>());
        if *rip as u64 & !0xfff != CODE.load(std::sync::atomic::Ordering::Relaxed) {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        // FreeBSD answers a general protection fault with SIGBUS, Linux with SIGSEGV.
        let protection = cfg!(target_os = "freebsd") && signal == libc::SIGBUS;
        (*(r12 as *mut State)).trap = if protection { libc::SIGSEGV as u64 } else { signal as u64 };
        *rip = *(*rsp as *const i64);
        *rsp += 8;
    }
}

/// Returns RIP, RSP and R12 of the interrupted code.
#[cfg(target_os = "linux")]
fn registers(context: &mut libc::ucontext_t) -> (&mut i64, &mut i64, i64) {
    let regs = &mut context.uc_mcontext.gregs;
    let r12 = regs[libc::REG_R12 as usize];
    let [rip, rsp] = regs.get_disjoint_mut([libc::REG_RIP as usize, libc::REG_RSP as usize]).expect("two registers");
    (rip, rsp, r12)
}

/// Returns RIP, RSP and R12 of the interrupted code.
#[cfg(target_os = "freebsd")]
fn registers(context: &mut libc::ucontext_t) -> (&mut i64, &mut i64, i64) {
    let regs = &mut context.uc_mcontext;
    (&mut regs.mc_rip, &mut regs.mc_rsp, regs.mc_r12)
}

static CODE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn code_page() -> *mut u8 {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a fresh anonymous mapping; handlers with the documented signature.
        unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let page = libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            CODE.store(page as u64, std::sync::atomic::Ordering::Relaxed);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS] {
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
        }
    });
    CODE.load(std::sync::atomic::Ordering::Relaxed) as *mut u8
}

fn run_natively(code: &[u8], state: &mut State) {
    let _guard = LOCK.lock().unwrap_or_else(|e| e.into_inner());
    let page = code_page();
    // SAFETY: the page is ours under the lock; the code is one instruction of the family and touches only what
    // `State` holds and the operand behind RSI; everything it changes is declared or put back.
    unsafe {
        page.copy_from_nonoverlapping(code.as_ptr(), code.len());
        page.add(code.len()).write(0xc3);
        let plain = 0x1f80u32;
        asm!(
            "push rbx",
            "fninit",
            "movq mm0, [r12 + 256]", "movq mm1, [r12 + 264]", "movq mm2, [r12 + 272]", "movq mm3, [r12 + 280]",
            "movq mm4, [r12 + 288]", "movq mm5, [r12 + 296]", "movq mm6, [r12 + 304]", "movq mm7, [r12 + 312]",
            "movups xmm0, [r12]", "movups xmm1, [r12 + 16]", "movups xmm2, [r12 + 32]", "movups xmm3, [r12 + 48]",
            "movups xmm4, [r12 + 64]", "movups xmm5, [r12 + 80]", "movups xmm6, [r12 + 96]", "movups xmm7, [r12 + 112]",
            "movups xmm8, [r12 + 128]", "movups xmm9, [r12 + 144]", "movups xmm10, [r12 + 160]", "movups xmm11, [r12 + 176]",
            "movups xmm12, [r12 + 192]", "movups xmm13, [r12 + 208]", "movups xmm14, [r12 + 224]", "movups xmm15, [r12 + 240]",
            "mov rax, [r12 + 320]", "mov rcx, [r12 + 328]", "mov rdx, [r12 + 336]", "mov r9, [r12 + 344]", "mov r10, [r12 + 352]",
            "mov rsi, [r12 + 384]", "mov r14, rsi", "mov rdi, rsi",
            "ldmxcsr [r12 + 368]",
            "push qword ptr [r12 + 360]", "popfq",
            "call r13",
            "pushfq", "pop qword ptr [r12 + 360]",
            "stmxcsr [r12 + 368]",
            "mov [r12 + 320], rax", "mov [r12 + 328], rcx", "mov [r12 + 336], rdx", "mov [r12 + 344], r9", "mov [r12 + 352], r10",
            "movups [r12], xmm0", "movups [r12 + 16], xmm1", "movups [r12 + 32], xmm2", "movups [r12 + 48], xmm3",
            "movups [r12 + 64], xmm4", "movups [r12 + 80], xmm5", "movups [r12 + 96], xmm6", "movups [r12 + 112], xmm7",
            "movups [r12 + 128], xmm8", "movups [r12 + 144], xmm9", "movups [r12 + 160], xmm10", "movups [r12 + 176], xmm11",
            "movups [r12 + 192], xmm12", "movups [r12 + 208], xmm13", "movups [r12 + 224], xmm14", "movups [r12 + 240], xmm15",
            "movq [r12 + 256], mm0", "movq [r12 + 264], mm1", "movq [r12 + 272], mm2", "movq [r12 + 280], mm3",
            "movq [r12 + 288], mm4", "movq [r12 + 296], mm5", "movq [r12 + 304], mm6", "movq [r12 + 312], mm7",
            "emms",
            "ldmxcsr [r15]",
            "pop rbx",
            inout("r12") state as *mut State => _, inout("r13") page => _, inout("r15") &plain => _, out("r14") _,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _, out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
}

fn new_cpu() -> Box<Cpu> {
    Rig::user().cpu
}

/// Creates a builder at one instruction.
fn builder(mode: u32) -> Builder {
    let mut b = decode_block(&[0x90], 0, Mode(mode | Mode::STEP), 0, false, false).expect("NOP is one byte");
    b.mode = Mode(mode);
    b.ops.clear();
    b
}

/// Notes that it was reached, and in `next_rip` how much stack lies between.
unsafe extern "C" fn sentinel(cpu: *mut Cpu, _op: *const Op) -> *const Op {
    // SAFETY: handlers get live pointers; the stack pointer is only read.
    unsafe {
        let depth: u64;
        asm!("mov {}, rsp", out(reg) depth, options(nomem, nostack));
        (*cpu).leave = Leave::Halt;
        (*cpu).next_rip = (*cpu).next_rip.wrapping_sub(depth);
    }
    std::ptr::null()
}

/// Returns the ops of one instruction, with a last one that notes that it was reached.
fn ops_of(insn: &Instruction, mode: u32) -> Option<Vec<Op>> {
    let mut b = builder(mode);
    lower(insn, &mut b)?;
    let last = b.op(sentinel);
    b.push(last);
    Some(b.ops)
}

fn run_ops(cpu: &mut Cpu, ops: &[Op]) {
    cpu.leave = Leave::Lookup;
    // SAFETY: the ops end with the sentinel; a handler returns null or the next op.
    unsafe { enter_chain(cpu, ops.as_ptr()) };
}

/// Runs handlers until one returns null.
#[inline(never)]
unsafe fn enter_chain(cpu: *mut Cpu, mut op: *const Op) {
    while !op.is_null() {
        // SAFETY: the caller gives a chain that ends; the stack pointer is only read.
        unsafe {
            asm!("mov {}, rsp", out(reg)(*cpu).next_rip, options(nomem, nostack));
            op = ((*op).handler)(cpu, op);
        }
    }
}

/// Runs ops on `state` and the operand, which is put into the rig's memory.
fn run_softly(rig: &mut Rig, ops: &[Op], state: &mut State, operand: &mut [u8]) {
    let offset = state.mem & 0xfff;
    rig.write(DATA + OPERAND as u64, operand);
    let cpu = &mut *rig.cpu;
    for (i, x) in state.xmm.iter().enumerate() {
        cpu.xmm[i] = [*x as u64, (*x >> 64) as u64];
    }
    cpu.fpu.mantissa = state.mm;
    for (i, r) in GPRS.into_iter().enumerate() {
        cpu.regs[r] = state.gpr[i];
    }
    (cpu.regs[6], cpu.regs[7], cpu.regs[14]) = (DATA + offset, DATA + offset, DATA + offset);
    cpu.flags = LazyFlags::raw(state.flags);
    cpu.mxcsr = state.mxcsr as u32;
    run_ops(cpu, ops);
    for (i, x) in state.xmm.iter_mut().enumerate() {
        *x = u128::from(cpu.xmm[i][0]) | u128::from(cpu.xmm[i][1]) << 64;
    }
    state.mm = cpu.fpu.mantissa;
    for (i, r) in GPRS.into_iter().enumerate() {
        state.gpr[i] = cpu.regs[r];
    }
    state.flags = state.flags & !rflags::ARITH | cpu.flags.value();
    state.mxcsr = u64::from(cpu.mxcsr);
    if cpu.leave == Leave::Exception {
        state.trap = match cpu.exception.vector {
            19 => libc::SIGFPE as u64,
            13 => libc::SIGSEGV as u64,
            other => 100 + u64::from(other),
        };
    }
    operand.copy_from_slice(&rig.read(DATA + OPERAND as u64, operand.len()));
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn f32(&mut self) -> u32 {
        let exponent = match self.next() % 12 {
            0 => 0,
            1 => 0xff,
            2 => 0xfe - self.next() % 3,
            3 => 1 + self.next() % 30,
            4 => self.next() & 0xff,
            5 => 0x7f + 20 + self.next() % 50,
            _ => 0x7f + self.next() % 30 - 15,
        } as u32;
        self.fraction() as u32 >> 9 | exponent << 23 | (self.next() as u32 & 1 << 31)
    }
    fn f64(&mut self) -> u64 {
        let exponent = match self.next() % 12 {
            0 => 0,
            1 => 0x7ff,
            2 => 0x7fe - self.next() % 3,
            3 => 1 + self.next() % 60,
            4 => self.next() & 0x7ff,
            5 => 0x3ff - 160 + self.next() % 320,
            6 => 0x3ff + 25 + self.next() % 50,
            _ => 0x3ff + self.next() % 50 - 25,
        };
        self.fraction() >> 12 | exponent << 52 | self.next() & 1 << 63
    }
    fn fraction(&mut self) -> u64 {
        let v = match self.next() & 7 {
            0 => 0,
            1 => !0,
            2 => 1 << (self.next() & 63),
            3 => !0 << (self.next() & 63),
            4 => !0 >> (self.next() & 63),
            _ => self.next(),
        };
        // The same bits in both halves, so that the fraction of a single sees them too.
        if self.next() & 1 == 0 { v } else { v & 0xffff_ffff | v << 32 }
    }
    fn half(&mut self, kind: u64) -> u64 {
        match kind {
            0 => u64::from(self.f32()) | u64::from(self.f32()) << 32,
            1 => self.f64(),
            // Few different bytes, zeros among them: for comparisons and string searches.
            2 => {
                let letters = [0, 1, 0x7f, 0x80, 0xff, b'a', b'b', b'b'];
                u64::from_le_bytes(std::array::from_fn(|_| letters[(self.next() & 7) as usize]))
            }
            3 => self.next() % 140,
            4 => (self.next() as i64 >> (self.next() & 63)) as u64,
            _ => self.next(),
        }
    }
    fn state(&mut self, page: &mut Page) -> State {
        let kind = self.next() % 8;
        let mut any = || self.half(kind);
        let xmm: [u128; 16] = std::array::from_fn(|_| u128::from(any()) | u128::from(any()) << 64);
        let mm = std::array::from_fn(|_| any());
        let bytes: [u64; 8] = std::array::from_fn(|_| any());
        for (out, value) in page.0[OPERAND..].chunks_exact_mut(8).zip(bytes) {
            out.copy_from_slice(&value.to_le_bytes());
        }
        let gpr = std::array::from_fn(|_| match self.next() & 3 {
            0 => self.next(),
            1 => (self.next() % 40) as i64 as u64,
            2 => ((self.next() % 40) as i64 - 20) as u64,
            _ => (self.next() as i64 >> (self.next() & 63)) as u64,
        });
        // Often the precision flag is set, so that the arithmetic's fast path is taken too.
        let mut mxcsr = 0x1f80 | self.next() & 0xe040;
        if self.next() & 1 == 0 {
            mxcsr |= 0x20;
        }
        if self.next() & 3 == 0 {
            mxcsr = mxcsr & !0xe000 | 0x20;
        }
        if self.next() & 15 == 0 {
            mxcsr = self.next() & 0xffff;
        }
        State { xmm, mm, gpr, flags: 0x202 | self.next() & rflags::ARITH, mxcsr, trap: 0, mem: page.0[OPERAND..].as_ptr() as u64 }
    }
}

/// Returns every encoding with a legacy SSE or MMX opcode: prefix, REX, map, opcode, ModRM (registers 1 and 2 or 9 and
/// 10, equal ones, memory at RSI or R14), immediate byte.
fn encodings() -> Vec<(Vec<u8>, Instruction)> {
    let mut out = Vec::new();
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf2], &[0xf3]];
    let maps: [&[u8]; 3] = [&[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for prefix in prefixes {
        for rex in [0, 0x48, 0x45, 0x4d] {
            for map in maps {
                for opcode in (0..=255u8).filter(|opcode| map.len() == 2 || !matches!(opcode, 0x38 | 0x3a)) {
                    let mut modrms = vec![0xca, 0xc9, 0x0e];
                    modrms.extend((0..8).map(|r| 0xc2 | r << 3));
                    modrms.extend((0..8).map(|r| 0x06 | r << 3));
                    modrms.sort_unstable();
                    modrms.dedup();
                    for modrm in modrms {
                        let mut code = prefix.to_vec();
                        if rex != 0 {
                            code.push(rex);
                        }
                        code.extend_from_slice(map);
                        code.extend_from_slice(&[opcode, modrm, 0]);
                        let insn = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
                        let groups = matches!(insn.code(), Code::Ldmxcsr_m32 | Code::Stmxcsr_m32) || shift_by_immediate(&insn);
                        let usual = matches!(modrm, 0xca | 0xc9 | 0x0e) || groups;
                        if !insn.is_invalid() && usual && ours(&insn) {
                            code.truncate(insn.len());
                            out.push((code, insn));
                        }
                    }
                }
            }
        }
    }
    out
}

fn shift_by_immediate(insn: &Instruction) -> bool {
    insn.op_count() == 2 && insn.op1_kind() == OpKind::Immediate8
}

fn ours(insn: &Instruction) -> bool {
    ops_of(insn, Mode::LONG).is_some()
}

fn has_immediate(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Immediate8)
}

fn compare(only: impl Fn(&Instruction) -> bool, rounds: u32, seed: u64) {
    let mut rig = Rig::user();
    let mut random = Random(seed);
    let mut pages = Box::new([Page([0; 4096]), Page([0; 4096])]);
    for (mut code, mut insn) in encodings() {
        if !only(&insn) {
            continue;
        }
        let mut ops = ops_of(&insn, Mode::LONG).expect("the encodings are the family's");
        let rounds = if has_immediate(&insn) { rounds * 4 } else { rounds };
        for _ in 0..rounds {
            if has_immediate(&insn) {
                let last = code.len() - 1;
                code[last] = if random.next() & 1 == 0 { random.next() as u8 } else { random.next() as u8 & 0x1f };
                insn = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
                ops = ops_of(&insn, Mode::LONG).expect("as before");
            }
            let mut before = random.state(&mut pages[0]);
            // Processors differ in whether SHA instructions need an aligned operand.
            if random.next() & 63 == 0 && !insn.code().cpuid_features().contains(&CpuidFeature::SHA) {
                before.mem += 1;
            }
            if insn.code() == Code::Ldmxcsr_m32 {
                // Bit 17 is writable on some hosts.
                let value = random.next() as u32 & if random.next() & 3 == 0 { 0x9ffff } else { 0xffff };
                pages[0].0[OPERAND..][..4].copy_from_slice(&value.to_le_bytes());
                if value & 1 << 17 != 0 {
                    continue;
                }
            }
            let image = pages[0].0;
            let mut want = before.clone();
            run_natively(&code, &mut want);
            let want_memory = pages[0].0;
            pages[0].0 = image;
            let mut got = before.clone();
            run_softly(&mut rig, &ops, &mut got, &mut pages[0].0[OPERAND..OPERAND + 96]);
            let got_memory = pages[0].0;
            if insn.mnemonic() == Mnemonic::Emms || want.trap != 0 {
                want.mm = got.mm;
            }
            if approximate(insn.mnemonic()) {
                assert!(
                    close(&want, &got),
                    "{code:02x?} {:?}\nbefore {}\nhost {}\nsoft {}",
                    insn.code(),
                    listing(&before),
                    listing(&want),
                    listing(&got)
                );
                continue;
            }
            // The flag that a trap handler's frame shows belongs to the host.
            want.flags = want.flags & rflags::ARITH | 0x202;
            assert!(
                want == got && want_memory[..] == got_memory[..],
                "{code:02x?} {:?}\nbefore {}\n  {:02x?}\nhost {}\n  {:02x?}\nsoft {}\n  {:02x?}",
                insn.code(),
                listing(&before),
                &image[OPERAND..][..16],
                listing(&want),
                &want_memory[OPERAND..][..16],
                listing(&got),
                &got_memory[OPERAND..][..16],
            );
            if want.trap == 0 && insn.mnemonic() != Mnemonic::Emms && uses_mm(&insn) {
                assert_eq!((rig.cpu.fpu.ftw, rig.cpu.fpu.fsw & 0x3800), (0xff, 0));
            }
        }
    }
}

/// Prints the registers that the encodings use.
fn listing(s: &State) -> String {
    let xmm: Vec<String> = [0, 1, 2, 9, 10].iter().map(|&i| format!("{:032x}", s.xmm[i])).collect();
    format!(
        "xmm 0 1 2 9 10 {xmm:?} mm 1 2 {:x?} gpr {:x?} flags {:x} mxcsr {:x} trap {}",
        &s.mm[1..3],
        s.gpr,
        s.flags,
        s.mxcsr,
        s.trap
    )
}

fn uses_mm(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_register(i).is_mm())
}

fn approximate(m: Mnemonic) -> bool {
    matches!(m, Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss)
}

/// Returns whether every lane is the same, or within the architecture's error.
fn close(want: &State, got: &State) -> bool {
    let lanes = want.xmm.iter().zip(&got.xmm).all(|(w, g)| {
        (0..4).all(|i| {
            let (w, g) = ((w >> (32 * i)) as u32, (g >> (32 * i)) as u32);
            let (x, y) = (f32::from_bits(w), f32::from_bits(g));
            w == g || ((x - y) / x).abs() <= 3.0 / 4096.0 || (x - y).abs() <= 2.0 * f32::MIN_POSITIVE
        })
    });
    lanes && want.mxcsr == got.mxcsr && want.trap == got.trap
}

fn is_float(insn: &Instruction) -> bool {
    super::float::lower(insn).is_some() || super::convert::lower(insn).is_some()
}

#[test]
fn integer_and_move_instructions_do_what_the_host_does() {
    compare(|insn| !is_float(insn) && super::strings::lower(insn).is_none(), 60, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn floating_point_instructions_do_what_the_host_does() {
    compare(is_float, 800, 0x1234_5678_9abc_def1);
}

#[test]
fn string_comparisons_do_what_the_host_does() {
    compare(|insn| super::strings::lower(insn).is_some(), 2000, 0x0dd0_5eed_0dd0_5eed);
}

/// Returns whether another family lowers this code of these features.
fn others(code: Code) -> bool {
    use Mnemonic::*;
    matches!(code.mnemonic(), Fisttp | Crc32 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Lfence | Mfence | Sfence)
}

#[test]
fn every_code_of_the_advertised_features_is_lowered() {
    use CpuidFeature as F;
    let seen: BTreeSet<Code> = encodings().into_iter().map(|(_, insn)| insn.code()).collect();
    let missing: Vec<Code> = Code::values()
        .filter(|code| code.encoding() == EncodingKind::Legacy && !others(*code))
        .filter(|code| {
            code.cpuid_features().iter().any(|f| {
                matches!(
                    f,
                    F::MMX
                        | F::SSE
                        | F::SSE2
                        | F::SSE3
                        | F::SSSE3
                        | F::SSE4_1
                        | F::SSE4_2
                        | F::AES
                        | F::PCLMULQDQ
                        | F::SHA
                        | F::MOVBE
                )
            })
        })
        .filter(|code| !seen.contains(code))
        .collect();
    assert_eq!(missing, []);
}

fn decode(code: &[u8]) -> Instruction {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode()
}

fn vector_of(code: &[u8], mode: u32, prepare: impl Fn(&mut Cpu)) -> Option<u8> {
    let mut cpu = new_cpu();
    prepare(&mut cpu);
    let ops = ops_of(&decode(code), mode).expect("an instruction of the family");
    run_ops(&mut cpu, &ops);
    (cpu.leave == Leave::Exception).then_some(cpu.exception.vector)
}

const PADDB_MM: &[u8] = &[0x0f, 0xfc, 0xca];
const PADDB_XMM: &[u8] = &[0x66, 0x0f, 0xfc, 0xca];
const DIVSS: &[u8] = &[0xf3, 0x0f, 0x5e, 0xca];

#[test]
fn control_registers_switch_the_units_off() {
    assert_eq!(vector_of(PADDB_XMM, Mode::LONG | Mode::SSE_UD | Mode::SSE_NM, |_| ()), Some(6));
    assert_eq!(vector_of(PADDB_XMM, Mode::LONG | Mode::SSE_NM, |_| ()), Some(7));
    assert_eq!(vector_of(PADDB_MM, Mode::LONG | Mode::FPU_OFF, |_| ()), Some(7));
    assert_eq!(vector_of(PADDB_MM, Mode::LONG | Mode::FPU_OFF, |cpu| cpu.sys.cr0 |= 4), Some(6));
    assert_eq!(vector_of(PADDB_MM, Mode::LONG | Mode::SSE_UD, |_| ()), None);
    assert_eq!(vector_of(PADDB_XMM, Mode::LONG | Mode::FPU_OFF, |_| ()), None);
}

#[test]
fn a_pending_x87_exception_stops_mmx() {
    assert_eq!(vector_of(PADDB_MM, Mode::LONG, |cpu| cpu.fpu.fsw = 0x80), Some(16));
}

#[test]
fn an_unmasked_exception_is_xm_or_without_osxmmexcpt_ud() {
    assert_eq!(vector_of(DIVSS, Mode::LONG, |cpu| cpu.mxcsr = 0), Some(19));
    let without = |cpu: &mut Cpu| {
        cpu.mxcsr = 0;
        cpu.sys.cr4 = 0;
    };
    assert_eq!(vector_of(DIVSS, Mode::LONG, without), Some(6));
    assert_eq!(vector_of(DIVSS, Mode::LONG, |_| ()), None);
}

#[test]
fn emms_empties_the_tags() {
    let mut cpu = new_cpu();
    cpu.fpu.ftw = 0xff;
    run_ops(&mut cpu, &ops_of(&decode(&[0x0f, 0x77]), Mode::LONG).expect("EMMS is ours"));
    assert_eq!(cpu.fpu.ftw, 0);
}

#[test]
fn the_portable_definitions_agree_with_the_host_s_instructions() {
    use super::lanes::{Vector, interleave8, interleave16, narrow16, narrow32};
    let mut random = Random(77);
    for i in 0..4000 {
        let mut any = || u128::from(random.half(i % 6)) | u128::from(random.half(i % 6)) << 64;
        let (a, b) = (any(), any());
        assert_eq!(a.unpack_low(b, interleave8), a.low8(b));
        assert_eq!(a.unpack_high(b, interleave16), a.high16(b));
        assert_eq!(a.halve(b, |v| narrow16(v, |x| x.clamp(0, 255) as u8)), a.pack16us(b));
        assert_eq!(a.halve(b, |v| narrow32(v, |x| x.clamp(-32768, 32767) as u16)), a.pack32s(b));
        if std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq") {
            use super::crypto::*;
            use super::fast::host;
            let (x, y) = (half(a, i as u8), half(b, i as u8 >> 1));
            // SAFETY: the features were just found.
            unsafe {
                assert_eq!(encrypt(a, b), host::aesenc(a, b));
                assert_eq!(encrypt_last(a, b), host::aesenclast(a, b));
                assert_eq!(decrypt(a, b), host::aesdec(a, b));
                assert_eq!(decrypt_last(a, b), host::aesdeclast(a, b));
                assert_eq!(carryless(x, y), host::carryless(u128::from(x), u128::from(y)));
            }
        }
        if std::arch::is_x86_feature_detected!("ssse3") {
            // SAFETY: the feature was just found.
            assert_eq!(a.shuffle_bytes(b), unsafe { super::fast::host::shuffle_bytes(a, b) });
        }
    }
}

#[test]
fn every_handler_tail_calls_the_next() {
    let mut rig = Rig::user();
    let mut page = Box::new(Page([0; 4096]));
    let state = Random(5).state(&mut page);
    let mut calling = BTreeSet::new();
    for (_, insn) in encodings() {
        let ops = ops_of(&insn, Mode::LONG).expect("the encodings are the family's");
        // SAFETY: the last op is the sentinel.
        unsafe { enter_chain(&mut *rig.cpu, ops[ops.len() - 1..].as_ptr()) };
        let depth = rig.cpu.next_rip;
        run_softly(&mut rig, &ops, &mut state.clone(), &mut [0; 96]);
        if rig.cpu.leave == Leave::Halt && rig.cpu.next_rip != depth {
            calling.insert(insn.code());
        }
    }
    // A handler that calls the next one instead of jumping to it uses up the stack.
    assert_eq!(calling, BTreeSet::new());
}

/// Runs in the dispatcher, from bytes: the other families leave these instructions alone, and blocks run them.
#[test]
fn a_block_runs_vector_code() {
    let mut rig = Rig::user();
    rig.cpu.regs[0] = 0x1122_3344_5566_7788;
    // movq xmm1, rax; punpcklbw xmm1, xmm1; movups [rip + 0x100000 - 15], xmm1; pmovmskb ecx, xmm1
    let code = [
        &[0x66, 0x48, 0x0f, 0x6e, 0xc8][..],
        &[0x66, 0x0f, 0x60, 0xc9],
        &[0x0f, 0x11, 0x0d, 0xf0, 0xff, 0x0f, 0x00],
        &[0x66, 0x0f, 0xd7, 0xc9],
    ]
    .concat();
    assert_eq!(rig.run_code(&code), Stop::End);
    assert_eq!(rig.read(RIG_CODE + 0x10_0000, 4), [0x88, 0x88, 0x77, 0x77]);
    assert_eq!(rig.cpu.regs[1], 0b11);
}

#[test]
fn the_codes_left_to_other_families_run_there() {
    let mut codes: Vec<Vec<u8>> = (0xe8..=0xff).map(|modrm| vec![0x0f, 0xae, modrm]).collect();
    codes.extend((0..4).map(|hint| vec![0x0f, 0x18, 0x06 | hint << 3]));
    codes.extend([0xdf, 0xdb, 0xdd].map(|opcode| vec![opcode, 0x0e]));
    for modrm in [0xca, 0x0e] {
        codes.extend([vec![0xf2, 0x0f, 0x38, 0xf0, modrm], vec![0xf2, 0x48, 0x0f, 0x38, 0xf0, modrm]]);
        codes.extend([vec![0xf2, 0x0f, 0x38, 0xf1, modrm], vec![0xf2, 0x48, 0x0f, 0x38, 0xf1, modrm]]);
        codes.push(vec![0x66, 0xf2, 0x0f, 0x38, 0xf1, modrm]);
    }
    let mut seen = BTreeSet::new();
    for code in codes {
        let insn = decode(&code);
        assert!(others(insn.code()), "{code:02x?}");
        seen.insert(insn.code());
        let mut rig = Rig::user();
        rig.cpu.regs[6] = DATA;
        assert_eq!(rig.run_code(&code), Stop::End, "{code:02x?}");
    }
    let expected: BTreeSet<Code> = Code::values().filter(|c| c.encoding() == EncodingKind::Legacy && others(*c)).collect();
    assert_eq!(seen, expected);
}

/// Returns the vector of the exception that the code ends with.
fn raised(rig: &mut Rig, code: &[u8]) -> Option<u8> {
    match rig.run_code(code) {
        Stop::Exception(e) => Some(e.vector),
        _ => None,
    }
}

/// Makes an unmasked x87 exception pending.
fn pending(mut rig: Rig) -> Rig {
    (rig.cpu.fpu.fcw, rig.cpu.fpu.fsw) = (0x37e, 0x8081);
    rig
}

#[test]
fn a_pending_x87_exception_waits_for_an_instruction_that_uses_mmx_registers() {
    let mut rig = pending(Rig::user());
    rig.cpu.regs[3] = DATA;
    // cvtpi2ps xmm0, [rbx]; cvtpi2ps xmm0, mm0
    assert_eq!(raised(&mut rig, &[0x0f, 0x2a, 0x03]), None);
    assert_eq!(raised(&mut rig, &[0x0f, 0x2a, 0xc0]), Some(16));
}

#[test]
fn a_pending_x87_exception_comes_before_the_operands_segment() {
    let mut rig = pending(Rig::user_32bit());
    rig.cpu.segs[GS] = Segment::default();
    // paddb mm0, gs:[ebx]; paddb xmm0, gs:[ebx]
    assert_eq!(raised(&mut rig, &[0x65, 0x0f, 0xfc, 0x03]), Some(16));
    assert_eq!(raised(&mut rig, &[0x66, 0x65, 0x0f, 0xfc, 0x03]), Some(13));
}

#[test]
fn mxcsr_can_be_loaded_through_a_code_segment_but_not_stored() {
    let mut rig = Rig::user_32bit();
    rig.write(DATA, &0x1fa0u32.to_le_bytes());
    rig.cpu.regs[3] = DATA;
    // ldmxcsr cs:[ebx]; stmxcsr cs:[ebx]
    assert_eq!(raised(&mut rig, &[0x2e, 0x0f, 0xae, 0x13]), None);
    assert_eq!(rig.cpu.mxcsr, 0x1fa0);
    assert_eq!(raised(&mut rig, &[0x2e, 0x0f, 0xae, 0x1b]), Some(13));
}

#[test]
fn a_masked_store_wants_a_canonical_address_whatever_its_mask() {
    let mut rig = Rig::user();
    rig.cpu.regs[7] = 1 << 47;
    // maskmovdqu xmm0, xmm1
    assert_eq!(raised(&mut rig, &[0x66, 0x0f, 0xf7, 0xc1]), Some(13));
}
