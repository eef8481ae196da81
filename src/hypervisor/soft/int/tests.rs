//! Integer instructions and the dispatcher, through the rig.
#![allow(unsafe_code)]

use crate::hypervisor::soft::cpu::{Exception, RIP, rflags};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::rig::{CODE, DATA, MEMORY, Rig, STACK, Stop};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

fn flags(rig: &Rig) -> u64 {
    rig.cpu.rflags_value() & rflags::ARITH
}

fn run(code: &[u8]) -> Rig {
    let mut rig = Rig::user();
    assert_eq!(rig.run_code(code), Stop::End);
    rig
}

#[test]
fn a_counted_loop_runs_to_its_end() {
    // mov ecx, 1000000; xor eax, eax; L: add rax, rcx; dec ecx; jnz L
    let rig = run(&[0xb9, 0x40, 0x42, 0x0f, 0x00, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9]);
    assert_eq!(rig.cpu.regs[RAX], 1_000_000 * 1_000_001 / 2);
    assert_eq!(rig.cpu.regs[RCX], 0);
}

/// A rig that is sent to another thread.
struct Sent(Rig);
// SAFETY: the rig's raw pointers point into its own boxes.
unsafe impl Send for Sent {}

#[test]
fn a_long_chain_of_handlers_needs_no_stack() {
    let sent = Sent(Rig::user());
    let code = [0xb9u8, 0x40, 0x42, 0x0f, 0x00, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9];
    let run = move || {
        let mut sent = sent;
        let whole = &mut sent;
        assert_eq!(whole.0.run_code(&code), Stop::End);
        sent
    };
    let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(run).expect("a thread");
    let rig = thread.join().expect("the stack was not used up").0;
    assert_eq!(rig.cpu.regs[RAX], 1_000_000 * 1_000_001 / 2);
}

#[test]
fn calls_return_and_loop_counts() {
    let code = [
        0xb9, 0xe8, 0x03, 0x00, 0x00, 0x31, 0xc0, 0xe8, 0x04, 0x00, 0x00, 0x00, 0xe2, 0xf9, 0xeb, 0x05, 0x48, 0x83, 0xc0, 0x03,
        0xc3, 0x90,
    ];
    let rig = run(&code);
    assert_eq!((rig.cpu.regs[RAX], rig.cpu.regs[RCX], rig.cpu.regs[RSP]), (3000, 0, STACK));
}

#[test]
fn an_access_across_pages_is_whole() {
    let rig = run(&[0xbf, 0xfe, 0x0f, 0x20, 0x00, 0xb8, 0x44, 0x33, 0x22, 0x11, 0x48, 0x89, 0x07, 0x48, 0x8b, 0x1f]);
    assert_eq!(rig.cpu.regs[RBX], 0x1122_3344);
    assert_eq!(rig.read(DATA + 0xffe, 4), [0x44, 0x33, 0x22, 0x11]);
}

#[test]
fn an_overlapping_rep_movsb_repeats_its_first_byte() {
    let code = [
        0xfc, 0xbf, 0x01, 0x00, 0x20, 0x00, 0xbe, 0x00, 0x00, 0x20, 0x00, 0xc6, 0x06, 0x5a, 0xb9, 0x10, 0x27, 0x00, 0x00, 0xf3,
        0xa4,
    ];
    let rig = run(&code);
    assert_eq!((rig.cpu.regs[RCX], rig.cpu.regs[RSI], rig.cpu.regs[RDI]), (0, DATA + 10000, DATA + 10001));
    assert!(rig.read(DATA, 10001).iter().all(|&b| b == 0x5a));
    assert_eq!(rig.read(DATA + 10001, 1), [0]);
}

#[test]
fn rep_stosd_fills_across_pages_unaligned() {
    let code = [0xbf, 0x01, 0x00, 0x20, 0x00, 0xb8, 0x04, 0x03, 0x02, 0x01, 0xb9, 0x88, 0x13, 0x00, 0x00, 0xf3, 0xab];
    let rig = run(&code);
    assert_eq!(rig.cpu.regs[RDI], DATA + 1 + 20000);
    assert!(rig.read(DATA + 1, 20000).chunks(4).all(|c| c == [4, 3, 2, 1]));
    assert_eq!((rig.read(DATA, 1), rig.read(DATA + 20001, 1)), (vec![0], vec![0]));
}

#[test]
fn repne_scasb_finds_the_end_of_a_string() {
    let code = [0xbf, 0x00, 0x00, 0x20, 0x00, 0x31, 0xc0, 0x48, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff, 0xf2, 0xae, 0x48, 0xf7, 0xd1];
    let mut rig = Rig::user();
    rig.write(DATA, &[b'x'; 700]);
    assert_eq!(rig.run_code(&code), Stop::End);
    assert_eq!(rig.cpu.regs[RCX], 701);
}

#[test]
fn conditions_see_the_compare_through_what_does_not_touch_flags() {
    let code = [0xb8, 0x05, 0x00, 0x00, 0x00, 0x83, 0xf8, 0x07, 0x0f, 0x9c, 0xc3, 0x0f, 0x92, 0xc1, 0x0f, 0x47, 0xd0, 0x19, 0xf6];
    let rig = run(&code);
    assert_eq!((rig.cpu.regs[RBX], rig.cpu.regs[RCX], rig.cpu.regs[RDX], rig.cpu.regs[RSI]), (1, 1, 0, 0xffff_ffff));
    assert_eq!(flags(&rig), rflags::CF | rflags::SF | rflags::PF | rflags::AF);
}

#[test]
fn bit_tests_reach_beyond_their_operand() {
    let code = [
        0xb8, 0x00, 0x08, 0x20, 0x00, 0x48, 0x0f, 0xba, 0x28, 0x01, 0x48, 0xc7, 0xc3, 0xff, 0xff, 0xff, 0xff, 0x48, 0x0f, 0xab,
        0x18, 0xb9, 0x82, 0x00, 0x00, 0x00, 0x48, 0x0f, 0xbb, 0x08, 0x0f, 0x92, 0xc2,
    ];
    let rig = run(&code);
    assert_eq!(rig.read(DATA + 0x7ff, 2), [0x80, 2]);
    assert_eq!(rig.read(DATA + 0x810, 1), [4]);
    assert_eq!(rig.cpu.regs[RDX], 0);
}

#[test]
fn code_that_patches_itself_runs_as_patched() {
    let code = [
        0xc6, 0x05, 0x08, 0x00, 0x00, 0x00, 0x07, 0xb9, 0x03, 0x00, 0x00, 0x00, 0x31, 0xc0, 0x04, 0x01, 0xfe, 0x05, 0xf9, 0xff,
        0xff, 0xff, 0xe2, 0xf6,
    ];
    let rig = run(&code);
    assert_eq!(rig.cpu.regs[RAX], 7 + 8 + 9);
}

#[test]
fn a_division_by_zero_leaves_the_registers() {
    let mut rig = Rig::user();
    let stop = rig.run_code(&[0xb8, 0x0a, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1]);
    assert_eq!(stop, Stop::Exception(Exception { vector: 0, error: None, cr2: 0 }));
    assert_eq!((rig.cpu.regs[RIP], rig.cpu.regs[RAX]), (CODE + 9, 10));
}

#[test]
fn pushes_and_pops_of_the_stack_pointer_take_it_at_the_right_moment() {
    let rig = run(&[0x6a, 0x05, 0x54, 0x58, 0x8f, 0x44, 0x24, 0x10, 0xff, 0x74, 0x24, 0x08, 0x5b]);
    assert_eq!((rig.cpu.regs[RAX], rig.cpu.regs[RSP]), (STACK - 8, STACK));
    assert_eq!(rig.read(STACK + 0x10, 1), [5]);
    assert_eq!(rig.cpu.regs[RBX], 0);
}

#[test]
fn byte_registers_and_rotations_do_what_the_manual_says() {
    let code = [
        0x66, 0xb8, 0x34, 0x12, 0x88, 0xe3, 0x88, 0xdc, 0x00, 0xc4, 0x86, 0xc4, 0xc1, 0xc0, 0x08, 0xd0, 0xd0, 0x0f, 0xa4, 0xd8,
        0x04, 0xd1, 0xe8,
    ];
    let rig = run(&code);
    // ax = 1234, bl = 12, ah = 12 + 34 = 46, swapped: 3446; rol 8: 344600; rcl al, 1 with CF = 0; shld 4: 3446000; shr 1.
    assert_eq!(rig.cpu.regs[RAX], 0x344_6000 >> 1);
    assert_eq!(rig.cpu.regs[RBX], 0x12);
}

#[test]
fn a_call_to_a_non_canonical_address_faults_before_it_pushes() {
    let mut rig = Rig::user();
    let stop = rig.run_code(&[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x89, 0xc3, 0xff, 0xd3]);
    assert_eq!(stop, Stop::Exception(Exception { vector: 13, error: Some(0), cr2: 0 }));
    assert_eq!((rig.cpu.regs[RIP], rig.cpu.regs[RSP]), (CODE + 13, STACK));
}

#[test]
fn addresses_of_all_sizes_are_computed() {
    let code = [
        0x48, 0x8d, 0x05, 0x00, 0x00, 0x00, 0x00, 0x67, 0x8d, 0x4c, 0x50, 0x05, 0x66, 0x8d, 0x10, 0x44, 0x8b, 0x04, 0x25, 0x10,
        0x00, 0x20, 0x00,
    ];
    let mut rig = Rig::user();
    rig.write(DATA + 0x10, &[1, 2, 3, 4]);
    assert_eq!(rig.run_code(&code), Stop::End);
    assert_eq!(rig.cpu.regs[RAX], CODE + 7);
    assert_eq!(rig.cpu.regs[RCX], CODE + 12);
    assert_eq!(rig.cpu.regs[RDX], (CODE + 7) & 0xffff);
    assert_eq!(rig.cpu.regs[8], 0x0403_0201);
}

#[test]
fn a_page_that_is_not_there_faults_with_the_address() {
    let mut rig = Rig::user();
    // mov eax, [0x7000000]
    let stop = rig.run_code(&[0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x07]);
    assert_eq!(stop, Stop::Exception(Exception { vector: 14, error: Some(4), cr2: 0x700_0000 }));
    assert_eq!(rig.cpu.regs[RIP], CODE);
}

#[test]
fn an_instruction_on_two_pages_runs_and_is_decoded_anew_when_patched() {
    let mut rig = Rig::user();
    let at = 0x10_1000 - 2;
    // mov eax, imm32 with the immediate on the second page; ud2
    rig.write(at, &[0xb8, 1, 0, 0, 0, 0x0f, 0x0b]);
    rig.cpu.regs[RIP] = at;
    assert!(matches!(rig.run(100), Stop::Exception(e) if e.vector == 6));
    assert_eq!(rig.cpu.regs[RAX], 1);
    rig.write(at + 2, &[2]);
    rig.cpu.regs[RIP] = at;
    assert!(matches!(rig.run(100), Stop::Exception(e) if e.vector == 6));
    assert_eq!(rig.cpu.regs[RAX], 0x201);
}

#[test]
fn the_budget_ends_an_endless_loop() {
    let mut rig = Rig::user();
    assert_eq!(rig.run_code_for(&[0xeb, 0xfe], 1000), Stop::Limit);
    assert_eq!(rig.cpu.regs[RIP], CODE);
    assert_eq!(rig.cpu.retired_now(), 1000);
}

/// An address that the rig does not map.
const NOWHERE: u64 = 0x4000_0000;

#[test]
fn a_fault_shows_the_flags_of_the_instructions_before_it_even_where_nobody_would_read_them() {
    // add eax, ebx; mov ecx, [rsi]; add edx, 1
    let mut rig = Rig::user();
    (rig.cpu.regs[RAX], rig.cpu.regs[RBX], rig.cpu.regs[RSI]) = (0xffff_ffff, 1, NOWHERE);
    let stop = rig.run_code(&[0x01, 0xd8, 0x8b, 0x0e, 0x83, 0xc2, 0x01]);
    assert!(matches!(stop, Stop::Exception(Exception { vector: 14, .. })), "{stop:?}");
    assert_eq!(flags(&rig), rflags::CF | rflags::ZF | rflags::AF | rflags::PF);
}

#[test]
fn an_instruction_that_a_watchpoint_stops_behind_shows_its_flags_even_where_nobody_would_read_them() {
    let mut rig = Rig::user();
    rig.write(DATA, &[1, 0, 0, 0]);
    (rig.cpu.regs[RAX], rig.cpu.regs[RSI]) = (0xffff_ffff, DATA);
    // DR0 watches four bytes for reads and writes.
    (rig.cpu.sys.dr[0], rig.cpu.sys.dr[7]) = (DATA, 0xf_0001);
    mmu::watchpoints_changed(&mut rig.cpu);
    // add eax, [rsi]; add edx, 1
    assert_eq!(rig.run_code_for(&[0x03, 0x06, 0x83, 0xc2, 0x01], 0), Stop::Limit);
    assert_eq!((rig.cpu.regs[RAX], rig.cpu.regs[RDX]), (0, 0));
    assert_eq!(flags(&rig), rflags::CF | rflags::ZF | rflags::AF | rflags::PF);
}

fn vector(stop: Stop) -> Option<u8> {
    match stop {
        Stop::Exception(e) => Some(e.vector),
        _ => None,
    }
}

#[test]
fn an_address_that_is_not_canonical_faults_by_its_base_register() {
    let far = (1u64 << 47) + 64;
    let faults = |code: &[u8], register: usize| {
        let mut rig = Rig::user();
        rig.cpu.regs[register] = far;
        vector(rig.run_code(code))
    };
    // mov eax, [rbx]; mov eax, ss:[rbx]
    assert_eq!(faults(&[0x8b, 0x03], RBX), Some(13));
    assert_eq!(faults(&[0x36, 0x8b, 0x03], RBX), Some(13));
    // mov eax, [rbp]; mov eax, ds:[rbp]; mov eax, fs:[rbp]
    assert_eq!(faults(&[0x8b, 0x45, 0x00], RBP), Some(12));
    assert_eq!(faults(&[0x3e, 0x8b, 0x45, 0x00], RBP), Some(12));
    assert_eq!(faults(&[0x64, 0x8b, 0x45, 0x00], RBP), Some(13));
    // push rax; call +0; push [rbx] with RBX and with RSP far
    assert_eq!(faults(&[0x50], RSP), Some(12));
    assert_eq!(faults(&[0xe8, 0, 0, 0, 0], RSP), Some(12));
    assert_eq!(faults(&[0xff, 0x33], RBX), Some(13));
}

#[test]
fn of_two_operands_that_fault_a_string_compare_tells_the_second() {
    let mut rig = Rig::user();
    (rig.cpu.regs[RSI], rig.cpu.regs[RDI]) = (NOWHERE, NOWHERE + 0x1000);
    assert_eq!(rig.run_code(&[0xa6]), Stop::Exception(Exception { vector: 14, error: Some(4), cr2: NOWHERE + 0x1000 }));
}

#[test]
fn a_popa_that_faults_has_loaded_the_registers_before() {
    let mut rig = Rig::user_32bit();
    rig.write(MEMORY - 4, &[1, 2, 3, 4]);
    (rig.cpu.regs[RSP], rig.cpu.regs[RSI]) = (MEMORY - 4, 5);
    assert_eq!(vector(rig.run_code(&[0x61])), Some(14));
    assert_eq!((rig.cpu.regs[RDI], rig.cpu.regs[RSI], rig.cpu.regs[RSP]), (0x0403_0201, 5, MEMORY - 4));
}

#[test]
fn a_pusha_that_faults_has_stored_the_registers_before() {
    let mut rig = Rig::user_32bit();
    (rig.cpu.regs[RSP], rig.cpu.regs[RAX]) = (4, 0x0403_0201);
    assert_eq!(vector(rig.run_code(&[0x60])), Some(14));
    assert_eq!((rig.read(0, 4), rig.cpu.regs[RSP]), (vec![1, 2, 3, 4], 4));
}

#[test]
fn arpl_through_a_code_segment_faults_only_where_it_would_write() {
    // arpl cs:[esi], ecx
    let run = |selector: u64| {
        let mut rig = Rig::user_32bit();
        rig.write(DATA, &[2, 0]);
        (rig.cpu.regs[RSI], rig.cpu.regs[RCX]) = (DATA, selector);
        vector(rig.run_code(&[0x2e, 0x63, 0x0e]))
    };
    assert_eq!((run(1), run(3)), (None, Some(13)));
}

#[test]
fn an_operand_that_ends_outside_the_canonical_addresses_is_refused_before_its_page_is_looked_at() {
    let mut rig = Rig::user();
    // mov rax, [rbx]; mov rax, [rbx - 1] (with RBX at the last canonical quadword)
    rig.cpu.regs[RBX] = (1 << 47) - 4;
    assert_eq!(vector(rig.run_code(&[0x48, 0x8b, 0x03])), Some(13));
    assert_eq!(vector(rig.run_code(&[0x48, 0x8b, 0x43, 0xfc])), Some(14));
}

#[test]
fn a_32_bit_operand_that_reaches_behind_4_gib_is_behind_the_limit() {
    // mov eax, [esi]
    let run = |addr: u64| {
        let mut rig = Rig::user_32bit();
        rig.cpu.regs[RSI] = addr;
        vector(rig.run_code(&[0x8b, 0x06]))
    };
    assert_eq!((run(0xffff_fffc), run(0xffff_fffd)), (Some(14), Some(13)));
}

#[test]
fn a_rotation_through_carry_all_the_way_round_leaves_the_flags_as_they_were() {
    // and al, 0; rcr bh, 9; setle cl
    let rig = run(&[0x24, 0x00, 0xc0, 0xdf, 0x09, 0x0f, 0x9e, 0xc1]);
    assert_eq!(rig.cpu.regs[RCX], 1);
    assert_eq!(flags(&rig) & rflags::ZF, rflags::ZF);
}
