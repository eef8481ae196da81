//! Exceptions and interrupts through the tables.

use super::super::super::cpu::{Exception, RIP, rflags};
use super::super::super::mem::Bank;
use super::super::{TripleFault, deliver_exception, deliver_interrupt, deliver_nmi};
use super::*;

fn ready(cpl: u8) -> Bench {
    let mut b = bench();
    b.identity();
    b.tables();
    b.long_mode();
    b.privilege(cpl);
    b.cpu.regs[RIP] = 0x1_2345;
    b.cpu.regs[4] = 0x8008;
    b.cpu.rflags |= rflags::IF;
    b
}

fn raise(b: &mut Bench, vector: u8, error: Option<u32>) -> Result<(), TripleFault> {
    b.cpu.exception = Exception { vector, error, cr2: 0xdead_b000 };
    deliver_exception(&mut b.cpu)
}

fn frame(b: &Bench, count: u64) -> Vec<u64> {
    (0..count).map(|i| b.get(b.cpu.regs[4] + 8 * i)).collect()
}

#[test]
fn an_exception_in_user_mode_switches_to_the_stack_of_the_task_state() {
    let mut b = ready(3);
    raise(&mut b, 13, Some(0x18)).unwrap();
    assert_eq!(b.cpu.regs[4], 0x9000 - 48);
    let flags = rflags::FIXED | rflags::IF | rflags::RF;
    assert_eq!(frame(&b, 6), [0x18, 0x1_2345, USER_CODE.into(), flags, 0x8008, USER_DATA.into()]);
    assert_eq!((b.cpu.cpl, b.cpu.segs[CS].selector, b.cpu.segs[SS].selector), (0, KERNEL_CODE, 0));
    assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * 13);
    assert_eq!(b.cpu.rflags & (rflags::IF | rflags::RF), 0);
    assert_eq!(b.cpu.bank, Bank::Supervisor);
}

#[test]
fn an_interrupt_in_kernel_mode_aligns_the_stack_and_has_no_error_code() {
    let mut b = ready(0);
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!(b.cpu.regs[4], 0x8000 - 40);
    assert_eq!(frame(&b, 5), [0x1_2345, KERNEL_CODE.into(), rflags::FIXED | rflags::IF, 0x8008, KERNEL_DATA.into()]);
}

#[test]
fn a_gate_with_an_interrupt_stack_uses_it_at_any_privilege() {
    for cpl in [0, 3] {
        let mut b = ready(cpl);
        let gate = b.get(IDT + 32);
        b.put(IDT + 32, gate | 1 << 32);
        deliver_nmi(&mut b.cpu).unwrap();
        assert_eq!(b.cpu.regs[4], 0xa000 - 40);
        assert!(b.cpu.nmi_blocked);
    }
}

#[test]
fn a_trap_gate_leaves_interrupts_on() {
    let mut b = ready(0);
    let gate = b.get(IDT + 16 * 3);
    b.put(IDT + 16 * 3, gate | 1 << 40);
    raise(&mut b, 3, None).unwrap();
    assert_ne!(b.cpu.rflags & rflags::IF, 0);
}

#[test]
fn a_page_fault_sets_cr2() {
    let mut b = ready(0);
    raise(&mut b, 14, Some(2)).unwrap();
    assert_eq!(b.cpu.sys.cr2, 0xdead_b000);
}

#[test]
fn contributory_exceptions_make_a_double_fault_and_a_third_shuts_down() {
    // The #GP handler is not present: #NP while delivering #GP is a double fault.
    let mut b = ready(3);
    let gate = b.get(IDT + 16 * 13);
    b.put(IDT + 16 * 13, gate & !(1 << 47));
    raise(&mut b, 13, Some(0)).unwrap();
    assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * 8);
    assert_eq!(frame(&b, 2), [0, 0x1_2345]);
    // And so is the handler of #DF.
    let mut b = ready(3);
    for v in [8, 11, 13] {
        let gate = b.get(IDT + 16 * v);
        b.put(IDT + 16 * v, gate & !(1 << 47));
    }
    assert_eq!(raise(&mut b, 13, Some(0)), Err(TripleFault));
}

#[test]
fn a_benign_exception_is_followed_by_what_its_delivery_raised() {
    // #UD through a missing gate is #NP with the gate's index, IDT and EXT.
    let mut b = ready(0);
    let gate = b.get(IDT + 16 * 6);
    b.put(IDT + 16 * 6, gate & !(1 << 47));
    raise(&mut b, 6, None).unwrap();
    assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * 11);
    assert_eq!(frame(&b, 1), [6 * 8 + 3]);
}

#[test]
fn a_page_fault_on_the_new_stack_is_delivered_in_place_of_an_interrupt() {
    let mut b = ready(3);
    b.put(TSS + 4, 0x60_0000);
    let gate = b.get(IDT + 16 * 14);
    b.put(IDT + 16 * 14, gate | 1 << 32);
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * 14);
    assert_eq!(b.cpu.sys.cr2, 0x60_0000 - 8);
    assert_eq!(frame(&b, 1), [2]);
    // A page fault that meets it is a double fault.
    let mut b = ready(3);
    b.put(TSS + 4, 0x60_0000);
    let gate = b.get(IDT + 16 * 8);
    b.put(IDT + 16 * 8, gate | 1 << 32);
    raise(&mut b, 14, Some(4)).unwrap();
    assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * 8);
}

#[test]
fn a_vector_behind_the_table_is_a_general_protection_fault_with_its_index() {
    let mut b = ready(0);
    b.cpu.sys.idt_limit = 16 * 0x20 - 1;
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * 13);
    assert_eq!(frame(&b, 1), [0x40 * 8 + 3]);
}

#[test]
fn no_tables_at_all_is_a_triple_fault() {
    let mut b = ready(0);
    b.cpu.sys.idt_limit = 0;
    assert_eq!(raise(&mut b, 6, None), Err(TripleFault));
}

#[test]
fn real_mode_pushes_three_words_and_takes_the_vector_from_the_table() {
    let mut b = bench();
    b.mem.write_le(GuestAddr(0x21 * 4), 0x1234_5678u32).unwrap();
    b.cpu.regs[4] = 0x100;
    b.cpu.segs[SS].base = 0x2_0000;
    b.cpu.rflags |= rflags::IF;
    b.cpu.regs[RIP] = 0x777;
    deliver_interrupt(&mut b.cpu, 0x21).unwrap();
    assert_eq!((b.cpu.segs[CS].selector, b.cpu.segs[CS].base, b.cpu.regs[RIP]), (0x1234, 0x1_2340, 0x5678));
    assert_eq!(b.cpu.regs[4], 0xfa);
    assert_eq!(b.get(0x2_00fa) & 0xffff_ffff_ffff, 0x0202_f000_0777);
    assert_eq!(b.cpu.rflags & rflags::IF, 0);
}
