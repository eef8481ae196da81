//! Debug exceptions between instructions: single step, watchpoints, and instructions that hold them off. One vCPU of
//! the back end runs a program in 64-bit mode; the handler of #DB notes where it came from and what DR6 said.

use super::super::super::cpu::{Cpu, RIP, rflags};
use super::super::super::run::SoftBackend;
use super::super::regs::{debug_ctl, dr};
use super::*;
use crate::hypervisor::backend::Backend;
use crate::hypervisor::state::Section;

/// Address of the program.
const CODE: u64 = 0x7000;
/// Address at which the handler of #DB notes the address to return to and DR6, 16 bytes each.
const NOTES: u64 = 0xb000;
/// Data to be watched, and a selector of the stack segment.
const DATA: u64 = 0xc000;

/// Returns a handler that notes [rsp] and DR6 at [r15], moves r15 on, and returns. With `clear` it first sets DR6 to
/// r14.
fn handler(clear: bool) -> Vec<u8> {
    let mut code = vec![0x50]; // push rax
    code.extend([0x48, 0x8b, 0x44, 0x24, 0x08]); // mov rax, [rsp+8]
    code.extend([0x49, 0x89, 0x07]); // mov [r15], rax
    code.extend([0x0f, 0x21, 0xf0]); // mov rax, dr6
    code.extend([0x49, 0x89, 0x47, 0x08]); // mov [r15+8], rax
    if clear {
        code.extend([0x41, 0x0f, 0x23, 0xf6]); // mov dr6, r14
    }
    code.extend([0x49, 0x83, 0xc7, 0x10]); // add r15, 16
    code.push(0x58); // pop rax
    code.extend([0x48, 0xcf]); // iretq
    code
}

/// Notes of the program's #DB handler: (offset of the return address in the program, DR6 without its fixed bits).
struct Trace(Vec<(u64, u64)>);

/// Runs `code`, with an `out 0xf4, al` after it, in 64-bit mode at privilege 0. `prepare` changes the vCPU first.
fn trace_with(code: &[u8], clear: bool, prepare: impl FnOnce(&mut Bench)) -> Trace {
    let mut b = bench();
    b.identity();
    b.tables();
    b.long_mode();
    let mut program = code.to_vec();
    program.extend([0xe6, 0xf4, 0xf4]); // out 0xf4, al; hlt
    b.mem.write(GuestAddr(CODE), &program).unwrap();
    b.mem.write(GuestAddr(0xe000), &handler(clear)).unwrap();
    // The gate of #DB; all others stop the machine.
    b.put(IDT + 16, 0xe000 | u64::from(KERNEL_CODE) << 16 | 0x8e00 << 32);
    for vector in (0..256).filter(|&v| v != 1) {
        b.mem.write(GuestAddr(HANDLER + 16 * vector), &[0xe6, 0xf4]).unwrap();
    }
    b.mem.write_le(GuestAddr(DATA), u64::from(KERNEL_DATA)).unwrap();
    let c = &mut b.cpu;
    c.regs[RIP] = CODE;
    c.regs[4] = 0x9000;
    c.regs[14] = 0;
    c.regs[15] = NOTES;
    c.regs[0] = u64::from(KERNEL_DATA);
    prepare(&mut b);
    let state = super::super::super::saved::save(&b.cpu);
    run_saved(&b, &[state]);
    let count = (0..64).take_while(|n| b.get(NOTES + 16 * n) != 0).count() as u64;
    Trace((0..count).map(|n| (b.get(NOTES + 16 * n) - CODE, b.get(NOTES + 16 * n + 8) & !dr::DR6_FIXED)).collect())
}

/// Runs a back end on the bench's memory from `states` on, until the program stops it.
fn run_saved(b: &Bench, states: &[Section]) {
    let attention = Attention::new(1);
    *b.probe.attention.lock().unwrap() = Some(attention.clone());
    let setup = VcpuSetup {
        vcpus: 1,
        topology: Topology::ONE,
        memory: b.mem.clone(),
        platform: b.probe.clone(),
        apics: Some(b.probe.clone()),
        attention: attention.clone(),
        boot: BootState::Reset,
        device_windows: Vec::new(),
        manual_clock: None,
    };
    let mut backend = SoftBackend::new(setup, false).unwrap();
    backend.load(states).unwrap();
    let watchdog = std::thread::spawn(move || {
        for _ in 0..1000 {
            std::thread::sleep(std::time::Duration::from_millis(10));
            if attention.stopped().is_some() {
                return;
            }
        }
        attention.stop(MachineExit::Error);
    });
    let exit = backend.run();
    watchdog.join().unwrap();
    assert!(matches!(exit, MachineExit::Debug(_)), "{exit:?}: the program did not reach its end");
}

fn trace(code: &[u8], prepare: impl FnOnce(&mut Bench)) -> Vec<(u64, u64)> {
    trace_with(code, true, prepare).0
}

fn step(b: &mut Bench) {
    b.cpu.rflags |= rflags::TF;
}

/// Watches eight bytes at [`DATA`] for reads and writes.
fn watch(cpu: &mut Cpu) {
    cpu.sys.dr[0] = DATA;
    cpu.sys.dr[7] = dr::DR7_FIXED | 0x000b_0003;
}

const MOV_SS: [u8; 2] = [0x8e, 0xd0]; // mov ss, eax
const MOV_SS_DATA: [u8; 8] = [0x8e, 0x14, 0x25, 0x00, 0xc0, 0x00, 0x00, 0x90]; // mov ss, [DATA]; nop
/// Clears TF: pushfq; and qword [rsp], ~0x100; popfq.
const UNSTEP: [u8; 10] = [0x9c, 0x48, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d];
const STEPS_OF_UNSTEP: [u64; 3] = [1, 9, 10];

/// Checks that `code` and then [`UNSTEP`] give traps at the `offsets` in `code` and then those of [`UNSTEP`], all
/// single steps.
fn stepped(code: &[u8], offsets: &[u64]) {
    let program = [code, &UNSTEP].concat();
    let all = offsets.iter().copied().chain(STEPS_OF_UNSTEP.map(|n| n + code.len() as u64));
    assert_eq!(trace(&program, step), all.map(|at| (at, dr::BS)).collect::<Vec<_>>());
}

#[test]
fn a_single_step_trap_comes_behind_every_instruction() {
    stepped(&[0x90, 0xeb, 0x00, 0xfb, 0x90], &[1, 3, 4, 5]);
}

#[test]
fn hlt_with_the_trap_flag_is_trapped_and_does_not_wait() {
    stepped(&[0xf4, 0x90], &[1, 2]);
    stepped(&[0xfb, 0xf4, 0x90], &[1, 2, 3]);
}

#[test]
fn mov_ss_and_pop_ss_hold_the_single_step_trap_off_and_sti_and_lss_do_not() {
    stepped(&[&MOV_SS[..], &[0x90, 0x90]].concat(), &[3, 4]);
    // mov fs, eax; mov ds, eax
    stepped(&[0x8e, 0xe0, 0x8e, 0xd8], &[2, 4]);
    // lss eax, [DATA + 16]
    let program = [&[0x0f, 0xb2, 0x04, 0x25, 0x10, 0xc0, 0x00, 0x00][..], &UNSTEP].concat();
    let got = trace(&program, |b| {
        b.put(DATA + 16, u64::from(KERNEL_DATA) << 32);
        step(b);
    });
    assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), [8, 9, 17, 18]);
}

#[test]
fn int1_behind_mov_ss_is_trapped_without_a_condition_of_its_own() {
    let got = trace(&[&MOV_SS[..], &[0xf1, 0xf1], &UNSTEP].concat(), step);
    assert_eq!(got, [(3, 0), (4, 0), (5, dr::BS), (13, dr::BS), (14, dr::BS)]);
}

#[test]
fn a_watchpoint_that_mov_ss_meets_is_told_behind_the_next_instruction() {
    let program = |tail: &[u8]| [&MOV_SS_DATA[..7], tail].concat();
    assert_eq!(trace(&program(&[0x90, 0x90]), |b| watch(&mut b.cpu)), [(8, 1)]);
    // INT1 takes it along; INT 1 enters the handler first, and is interrupted there.
    assert_eq!(trace(&program(&[0xf1, 0x90]), |b| watch(&mut b.cpu)), [(8, 1)]);
    let got = trace_with(&program(&[0xcd, 0x01, 0x90]), true, |b| watch(&mut b.cpu));
    assert_eq!(got.0.len(), 2);
    assert_eq!((got.0[0].1, got.0[1]), (1, (9, 0)));
    // With the trap flag set as well, both are reported at once.
    let got = trace(&[&program(&[0x90])[..], &UNSTEP].concat(), |b| {
        watch(&mut b.cpu);
        step(b);
    });
    assert_eq!(got[0], (8, 1 | dr::BS));
}

#[test]
fn an_instruction_breakpoint_behind_mov_ss_is_not_met() {
    let arm = |b: &mut Bench, at: u64| {
        b.cpu.sys.dr[1] = CODE + at;
        b.cpu.sys.dr[7] = dr::DR7_FIXED | 1 << 2;
        b.cpu.sys.dr[0] = DATA;
    };
    let program = [&MOV_SS[..], &[0x90, 0x90]].concat();
    assert_eq!(trace(&program, |b| arm(b, 2)), []);
    // The handler does not set RF, so the breakpoint would trigger forever. The second note disables it.
    let got = trace_with(&[0x90, 0x90], true, |b| {
        arm(b, 1);
        let mut code = handler(true);
        code.truncate(code.len() - 3);
        code.extend([0x41, 0x0f, 0x23, 0xfe, 0x58, 0x48, 0xcf]); // mov dr7, r14; pop rax; iretq
        b.mem.write(GuestAddr(0xe000), &code).unwrap();
    });
    assert_eq!(got.0, [(1, 2)]);
}

#[test]
fn the_breakpoint_bits_of_dr6_say_what_this_exception_was_and_the_others_stay() {
    // mov [DATA], eax; int1; mov [DATA], eax
    let store = [0x89, 0x04, 0x25, 0x00, 0xc0, 0x00, 0x00];
    let got = trace_with(&[&store[..], &UNSTEP].concat(), false, |b| {
        watch(&mut b.cpu);
        b.cpu.sys.dr[6] = dr::DR6_FIXED | 0xe | dr::BD;
        step(b);
    });
    assert_eq!(got.0[0], (7, 1 | dr::BS | dr::BD));
    assert_eq!(got.0[1], (8, dr::BS | dr::BD), "the next trap is no watchpoint's");
    // General detect.
    let got = trace_with(&[0x0f, 0x21, 0xf0], false, |b| {
        b.cpu.sys.dr[7] |= dr::DR7_GD;
        b.cpu.sys.dr[6] = dr::DR6_FIXED | 0xf | dr::BS;
    });
    assert_eq!(got.0, [(0, dr::BD | dr::BS)]);
}

/// Puts a handler at `CODE + 0x100`: pushfq; pop r11; or r11, 0x100; sysretq.
fn system_call_handler(b: &mut Bench, mask: u64) {
    let code = [0x41, 0x0f, 0xba, 0xeb, 0x08, 0x48, 0x0f, 0x07]; // bts r11d, 8; sysretq
    b.mem.write(GuestAddr(CODE + 0x100), &code).unwrap();
    b.cpu.sys.efer |= efer::SCE;
    b.cpu.sys.lstar = CODE + 0x100;
    b.cpu.sys.star = u64::from(KERNEL_CODE) << 32 | u64::from(USER_DATA - 8 & !3) << 48;
    b.cpu.sys.sfmask = mask;
    b.privilege(3);
    b.cpu.rflags |= rflags::IOPL;
    // Not where the handler's stack is.
    b.cpu.regs[4] = 0xa800;
}

#[test]
fn a_system_call_is_stepped_by_the_trap_flag_that_it_leaves() {
    // The mask clears TF: no trap in the kernel; SYSRET sets it: one at once, before the first instruction behind.
    let got = trace(&[&[0x0f, 0x05][..], &UNSTEP].concat(), |b| system_call_handler(b, rflags::TF));
    assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 3, 11, 12]);
    // Traced before: the same, and nothing of the kernel is seen.
    let got = trace(&[&[0x0f, 0x05][..], &UNSTEP].concat(), |b| {
        system_call_handler(b, rflags::TF);
        step(b);
    });
    assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 3, 11, 12]);
    // A mask that leaves TF set: the kernel's instructions are stepped.
    let got = trace(&[&[0x0f, 0x05][..], &UNSTEP].concat(), |b| {
        system_call_handler(b, 0);
        step(b);
    });
    assert_eq!(got.iter().map(|t| t.0).take(3).collect::<Vec<_>>(), [0x100, 0x105, 2]);
    assert_eq!(got.len(), 6);
}

#[test]
fn sysenter_does_not_clear_the_trap_flag() {
    let got = trace(&[0x0f, 0x34], |b| {
        b.mem.write(GuestAddr(CODE + 0x100), &[0x90, 0xe6, 0xf4]).unwrap();
        b.cpu.sys.sysenter_cs = KERNEL_CODE.into();
        b.cpu.sys.sysenter_eip = CODE + 0x100;
        b.cpu.sys.sysenter_esp = 0x9000;
        b.privilege(3);
        step(b);
    });
    assert_eq!(got.iter().map(|t| t.0).take(2).collect::<Vec<_>>(), [0x100, 0x101]);
}

#[test]
fn what_is_held_off_outlives_a_suspension() {
    let mut b = bench();
    (b.cpu.debug_pending, b.cpu.debug_shadow) = (dr::BS | 1, true);
    let state = super::super::super::saved::save(&b.cpu);
    let decoded = super::super::super::saved::decode(&state).unwrap();
    let mut other = bench();
    super::super::super::saved::load(&mut other.cpu, decoded);
    assert_eq!((other.cpu.debug_pending, other.cpu.debug_shadow), (dr::BS | 1, true));
}

#[test]
fn a_repeated_string_instruction_is_trapped_at_each_repetition() {
    // rep stosb; rep outsb to port 0x80
    for code in [[0xf3, 0xaa], [0xf3, 0x6e]] {
        let got = trace(&[&code[..], &UNSTEP].concat(), |b| {
            (b.cpu.regs[1], b.cpu.regs[2], b.cpu.regs[6], b.cpu.regs[7]) = (3, 0x80, DATA, DATA + 0x100);
            step(b);
        });
        assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 0, 2, 3, 11, 12], "{code:?}");
    }
}

#[test]
fn a_breakpoint_on_a_port_is_met_behind_the_access_where_cr4_de_is_set() {
    // in al, 0x71; out 0x70, eax; rep outsb to port 0x72
    let program = [0xe4, 0x71, 0xe7, 0x70, 0xf3, 0x6e];
    let run = |de: bool| {
        trace(&program, |b| {
            (b.cpu.regs[1], b.cpu.regs[2], b.cpu.regs[6]) = (2, 0x72, DATA);
            // Two bytes at 0x72.
            (b.cpu.sys.dr[3], b.cpu.sys.dr[7]) = (0x72, dr::DR7_FIXED | 1 << 7 | 0b0110 << 28);
            if de {
                b.cpu.sys.cr4 |= cr4::DE;
            }
        })
    };
    assert_eq!(run(true), [(4, 8), (4, 8), (6, 8)]);
    assert_eq!(run(false), []);
}

#[test]
fn with_btf_only_branches_that_are_taken_are_trapped_and_the_trap_clears_it() {
    // nop; cmp eax, eax; jne +0; je +1; nop; nop
    let program = [&[0x90, 0x39, 0xc0, 0x75, 0x00, 0x74, 0x01, 0x90, 0x90][..], &UNSTEP].concat();
    let got = trace(&program, |b| {
        b.cpu.sys.debug_ctl = debug_ctl::BTF;
        step(b);
    });
    assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), [8, 9, 10, 18, 19]);
}

#[test]
fn the_last_branch_and_the_last_interrupt_are_recorded_until_a_debug_exception() {
    // jmp +1; nop; call +0; nop; rdmsr of 1db and 1dc to r8, r9
    let read = |number: u8, to: u8| [0xb9, number, 0x01, 0, 0, 0x0f, 0x32, 0x41, 0x89, 0xc0 | to];
    let program = [&[0xeb, 0x01, 0x90, 0xe8, 0, 0, 0, 0, 0x90][..], &read(0xdb, 0), &read(0xdc, 1), &[0xcd, 0x40]].concat();
    // INT 0x40: rdmsr of 1dd and 1de, and all four to memory.
    let mut handler = [&read(0xdd, 2)[..], &read(0xde, 3)].concat();
    for (n, modrm) in [0x04, 0x0c, 0x14, 0x1c].into_iter().enumerate() {
        handler.extend([0x44, 0x89, modrm, 0x25, 4 * n as u8, 0xc1, 0, 0]); // mov [DATA + 0x100 + 4n], r8d...
    }
    handler.extend([0xe6, 0xf4]);
    let mut words = Vec::new();
    let mut memory = None;
    trace(&program, |b| {
        b.cpu.sys.debug_ctl = debug_ctl::LBR;
        b.mem.write(GuestAddr(0xf000), &handler).unwrap();
        b.put(IDT + 16 * 0x40, 0xf000 | u64::from(KERNEL_CODE) << 16 | 0x8e00 << 32);
        memory = Some(b.mem.clone());
    });
    for n in 0..4 {
        words.push(u64::from(memory.as_ref().unwrap().read_le::<u32>(GuestAddr(DATA + 0x100 + 4 * n)).unwrap()));
    }
    assert_eq!(words, [CODE + 3, CODE + 8, CODE + 31, 0xf000]);
}
