//! Task switches in protected mode: what is saved, what is loaded, and in which task a fault belongs.

use super::super::super::cpu::{DS, ES, Exception, FS, Fault, GS, LDTR, Leave, RIP, TR, ZERO, rflags};
use super::super::super::mem::Bank;
use super::super::super::op::Op;
use super::super::far::{far_direct, interrupt, interrupt_return};
use super::super::regs::dr;
use super::super::{deliver_exception, deliver_interrupt};
use super::*;

/// The TSS of the task that runs, and of the one that is switched to.
const OLD: u64 = 0x4000;
const NEW: u64 = 0x4800;
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD_TSS: u16 = 0x18;
const NEW_TSS: u16 = 0x20;
const GATE: u16 = 0x28;
const CODE3: u16 = 0x33;
const DATA3: u16 = 0x3b;
const LDT: u16 = 0x40;
const ABSENT_DATA: u16 = 0x48;
const NARROW_TSS: u16 = 0x50;

fn tss_descriptor(base: u64, limit: u64, attr: u64) -> u64 {
    limit | (base & 0xff_ffff) << 16 | attr << 40 | (base >> 24) << 56
}

fn op(imm: u64, call: bool) -> Op {
    Op {
        handler: crate::hypervisor::soft::op::called_op!(super::super::control::nop),
        imm,
        disp: 0,
        aux: 0,
        pc: 0,
        len: 7,
        dst: u8::from(call),
        src: 4,
        base: ZERO as u8,
        index: ZERO as u8,
        scale: 0,
    }
}

/// Returns a bench in 32-bit protected mode without paging at privilege 0, in the task [`OLD`]. [`NEW`] is ready at
/// privilege 0.
fn ready() -> Bench {
    let mut b = bench();
    let descriptors = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        tss_descriptor(OLD, 0x67, 0x8b),
        tss_descriptor(NEW, 0x67, 0x89),
        u64::from(NEW_TSS) << 16 | 0x8500 << 32,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        tss_descriptor(0x5000, 0xff, 0x82),
        0x00cf_1300_0000_ffff,
        tss_descriptor(NEW, 0x2b, 0x81),
    ];
    for (i, d) in descriptors.into_iter().enumerate() {
        b.put(GDT + 8 * i as u64, d);
    }
    for v in 0..256u64 {
        b.put(IDT + 8 * v, (HANDLER + 16 * v) & 0xffff | u64::from(CODE) << 16 | 0x8e00 << 32);
    }
    let c = &mut b.cpu;
    c.sys.cr0 = cr0::PE | cr0::ET;
    (c.sys.gdt_base, c.sys.gdt_limit) = (GDT, 8 * 11 - 1);
    (c.sys.idt_base, c.sys.idt_limit) = (IDT, 0x7ff);
    c.segs[CS] = Segment::flat(CODE, 0xc09b);
    for which in [ES, SS, DS, FS, GS] {
        c.segs[which] = Segment::flat(DATA, 0xc093);
    }
    c.segs[TR] = Segment { selector: OLD_TSS, attr: 0x8b, limit: 0x67, base: OLD };
    for n in 0..8 {
        c.regs[n] = 0x1000_0000 + n as u64;
    }
    c.regs[4] = 0x8000;
    c.next_rip = 0x1_0007;
    c.regs[RIP] = 0x1_0000;
    c.rflags |= rflags::IF;
    refresh_mode(c);
    for (offset, value) in [(0x1c, 0x77_7000), (0x20, 0x2_0000), (0x24, 2 | rflags::DF), (0x38, 0x9000), (0x60, u64::from(LDT))] {
        put32(&b, NEW + offset, value);
    }
    for (n, value) in [(0, 0xa0), (1, 0xa1), (2, 0xa2), (3, 0xa3), (5, 0xa5), (6, 0xa6), (7, 0xa7)] {
        put32(&b, NEW + 0x28 + 4 * n, value);
    }
    for (n, selector) in [DATA, CODE, DATA, DATA3, 0, DATA].into_iter().enumerate() {
        put32(&b, NEW + 0x48 + 4 * n as u64, selector.into());
    }
    b
}

fn put32(b: &Bench, addr: u64, value: u64) {
    b.mem.write_le(GuestAddr(addr), value as u32).unwrap();
}
fn get32(b: &Bench, addr: u64) -> u64 {
    u64::from(b.mem.read_le::<u32>(GuestAddr(addr)).unwrap())
}
fn is_busy(b: &Bench, selector: u16) -> bool {
    b.get(GDT + u64::from(selector)) >> 41 & 1 != 0
}

fn go(b: &mut Bench, selector: u16, call: bool) -> Result<(), Fault> {
    b.cpu.leave = Leave::Lookup;
    far_direct(&mut b.cpu, &op(u64::from(selector) << 32 | 0xf4f4_f4f4, call))
}

fn raised(b: &Bench) -> (u8, Option<u32>) {
    (b.cpu.exception.vector, b.cpu.exception.error)
}

#[test]
fn a_jump_to_a_task_saves_the_old_one_and_loads_the_new_one() {
    for selector in [NEW_TSS, GATE] {
        let mut b = ready();
        b.cpu.sys.dr[7] |= 0x3ff;
        go(&mut b, selector, false).unwrap();
        assert_eq!((get32(&b, OLD + 0x20), get32(&b, OLD + 0x24)), (0x1_0007, rflags::FIXED | rflags::IF));
        assert_eq!((get32(&b, OLD + 0x28), get32(&b, OLD + 0x38)), (0x1000_0000, 0x8000));
        assert_eq!((get32(&b, OLD + 0x48), get32(&b, OLD + 0x4c)), (DATA.into(), CODE.into()));
        assert_eq!((is_busy(&b, OLD_TSS), is_busy(&b, NEW_TSS)), (false, true));
        let c = &b.cpu;
        assert_eq!(
            (c.next_rip, c.rflags & (rflags::DF | rflags::IF | rflags::NT), c.leave),
            (0x2_0000, rflags::DF, Leave::Lookup)
        );
        assert_eq!(c.regs[..8], [0xa0, 0xa1, 0xa2, 0xa3, 0x9000, 0xa5, 0xa6, 0xa7]);
        assert_eq!((c.segs[TR].selector, c.segs[TR].base, c.segs[TR].attr), (NEW_TSS, NEW, 0x8b));
        assert_eq!((c.segs[LDTR].selector, c.segs[LDTR].base), (LDT, 0x5000));
        assert_eq!((c.segs[CS], c.segs[SS]), (Segment::flat(CODE, 0xc09b), Segment::flat(DATA, 0xc093)));
        assert_eq!((c.segs[DS].selector, c.segs[FS], c.segs[GS].present()), (DATA3, Segment::default(), true));
        assert_ne!(c.sys.cr0 & cr0::TS, 0);
        assert_eq!(c.sys.dr[7] & 0x3ff, 0x2aa, "the local breakpoints go");
        assert_eq!(c.sys.cr3, 0, "without paging CR3 is not loaded");
    }
}

#[test]
fn a_call_nests_the_task_and_iret_comes_back_along_the_link() {
    let mut b = ready();
    go(&mut b, GATE, true).unwrap();
    assert_eq!((is_busy(&b, OLD_TSS), is_busy(&b, NEW_TSS)), (true, true));
    assert_ne!(b.cpu.rflags & rflags::NT, 0);
    assert_eq!(b.get(NEW) as u16, OLD_TSS);
    // A task calls neither itself nor its caller.
    for selector in [OLD_TSS, NEW_TSS, GATE] {
        assert_eq!(go(&mut b, selector, true), Err(Fault));
        assert_eq!(raised(&b), (13, Some(u32::from(if selector == GATE { NEW_TSS } else { selector }))));
    }
    b.cpu.next_rip = 0x2_0001;
    b.cpu.nmi_blocked = true;
    interrupt_return(&mut b.cpu, &op(0, false)).unwrap();
    assert_eq!((b.cpu.next_rip, b.cpu.regs[4], b.cpu.segs[TR].selector), (0x1_0007, 0x8000, OLD_TSS));
    assert_eq!(b.cpu.rflags & (rflags::NT | rflags::IF), rflags::IF);
    assert_eq!((is_busy(&b, OLD_TSS), is_busy(&b, NEW_TSS)), (true, false));
    assert!(!b.cpu.nmi_blocked);
    // The nested task continues behind its IRET, without NT, when it is called again.
    assert_eq!((get32(&b, NEW + 0x20), get32(&b, NEW + 0x24) & rflags::NT), (0x2_0001, 0));
    // Its link names a task that is not busy: #TS.
    b.cpu.rflags |= rflags::NT;
    put32(&b, OLD, NEW_TSS.into());
    assert_eq!(interrupt_return(&mut b.cpu, &op(0, false)), Err(Fault));
    assert_eq!(raised(&b), (10, Some(NEW_TSS.into())));
}

#[test]
fn what_is_wrong_with_a_tss_is_raised_in_the_old_task() {
    // The target of the jump, the change before it, and the exception with its selector.
    type Case = (u16, fn(&mut Bench), (u8, u16));
    let cases: [Case; 7] = [
        (NEW_TSS, |b| b.put(GDT + 0x20, tss_descriptor(NEW, 0x67, 0x8b)), (13, NEW_TSS)),
        (NEW_TSS, |b| b.put(GDT + 0x20, tss_descriptor(NEW, 0x67, 0x09)), (11, NEW_TSS)),
        (NEW_TSS, |b| b.put(GDT + 0x20, tss_descriptor(NEW, 0x66, 0x89)), (10, NEW_TSS)),
        (GATE, |b| b.put(GDT + 0x28, u64::from(NEW_TSS) << 16 | 0x0500 << 32), (11, GATE)),
        (GATE, |b| b.put(GDT + 0x28, u64::from(NEW_TSS | 4) << 16 | 0x8500 << 32), (13, NEW_TSS | 4)),
        (GATE, |b| b.put(GDT + 0x28, u64::from(DATA) << 16 | 0x8500 << 32), (13, DATA)),
        (GATE | 3, |_| (), (13, GATE)),
    ];
    for (selector, spoil, (vector, error)) in cases {
        let mut b = ready();
        spoil(&mut b);
        assert_eq!(go(&mut b, selector, true), Err(Fault));
        assert_eq!(raised(&b), (vector, Some(error.into())), "{selector:#x}");
        assert_eq!((b.cpu.segs[TR].selector, b.cpu.regs[4], get32(&b, OLD + 0x20)), (OLD_TSS, 0x8000, 0));
    }
}

#[test]
fn what_is_wrong_with_a_segment_is_raised_in_the_new_task() {
    let cases = [
        (0x60, DATA, (10, DATA)),
        (0x60, LDT | 4, (10, LDT | 4)),
        (0x4c, 0, (10, 0)),
        (0x4c, DATA, (10, DATA)),
        (0x4c, CODE | 3, (10, CODE)),
        (0x50, 0, (10, 0)),
        (0x50, DATA3, (10, DATA3 & !3)),
        (0x50, ABSENT_DATA, (12, ABSENT_DATA)),
        (0x54, ABSENT_DATA, (11, ABSENT_DATA)),
        (0x54, 0x1000, (10, 0x1000)),
        (0x5c, OLD_TSS, (10, OLD_TSS)),
    ];
    for (offset, selector, (vector, error)) in cases {
        let mut b = ready();
        put32(&b, NEW + offset, selector.into());
        go(&mut b, NEW_TSS, true).unwrap();
        assert_eq!((b.cpu.leave, raised(&b)), (Leave::Exception, (vector, Some(error.into()))), "{offset:#x}");
        assert_eq!((b.cpu.next_rip, b.cpu.segs[TR].selector, b.cpu.regs[0]), (0x2_0000, NEW_TSS, 0xa0));
        // As an exception's handler the task is external to the program. (Without a stack there is no second handler.)
        if offset <= 0x50 || offset == 0x60 {
            continue;
        }
        let mut b = ready();
        put32(&b, NEW + offset, selector.into());
        b.put(IDT + 8 * 6, u64::from(NEW_TSS) << 16 | 0x8500 << 32);
        b.cpu.exception = Exception { vector: 6, error: None, cr2: 0 };
        deliver_exception(&mut b.cpu).unwrap();
        assert_eq!(b.cpu.regs[RIP], HANDLER + 16 * u64::from(vector));
        assert_eq!((get32(&b, b.cpu.regs[4]), get32(&b, b.cpu.regs[4] + 4)), (u64::from(error) | 1, 0x2_0000), "{offset:#x}");
    }
}

#[test]
fn an_exception_through_a_task_gate_pushes_its_error_code_on_the_new_stack() {
    let gate = u64::from(NEW_TSS) << 16 | 0x8500 << 32;
    let mut b = ready();
    b.put(IDT + 8 * 13, gate);
    b.cpu.exception = Exception { vector: 13, error: Some(0x1234), cr2: 0 };
    deliver_exception(&mut b.cpu).unwrap();
    assert_eq!((b.cpu.regs[RIP], b.cpu.regs[4], get32(&b, 0x8ffc)), (0x2_0000, 0x8ffc, 0x1234));
    // The old task comes back to the faulting instruction, with RF.
    assert_eq!((get32(&b, OLD + 0x20), get32(&b, OLD + 0x24)), (0x1_0000, rflags::FIXED | rflags::IF | rflags::RF));
    // An interrupt has no error code, and comes back to the next instruction without RF.
    let mut b = ready();
    b.put(IDT + 8 * 0x40, gate);
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!((b.cpu.regs[RIP], b.cpu.regs[4]), (0x2_0000, 0x9000));
    assert_eq!((get32(&b, OLD + 0x20), get32(&b, OLD + 0x24)), (0x1_0000, rflags::FIXED | rflags::IF));
    // INT n looks at the gate's privilege.
    let mut b = ready();
    b.put(IDT + 8 * 0x40, gate);
    interrupt(&mut b.cpu, &Op { src: 1, ..op(0x40, false) }).unwrap();
    assert_eq!((b.cpu.next_rip, get32(&b, OLD + 0x20), b.get(NEW) as u16), (0x2_0000, 0x1_0007, OLD_TSS));
    let mut b = ready();
    b.put(IDT + 8 * 0x40, gate);
    b.cpu.cpl = 3;
    assert_eq!(interrupt(&mut b.cpu, &Op { src: 1, ..op(0x40, false) }), Err(Fault));
    assert_eq!(raised(&b), (13, Some(0x40 * 8 + 2)));
    // A gate to a task that is busy: #GP with its selector, and EXT.
    let mut b = ready();
    b.put(IDT + 8 * 0x40, u64::from(OLD_TSS) << 16 | 0x8500 << 32);
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!((b.cpu.regs[RIP], get32(&b, b.cpu.regs[4])), (HANDLER + 16 * 13, u64::from(OLD_TSS) | 1));
}

#[test]
fn a_double_fault_finds_its_task_when_the_stack_is_gone() {
    let mut b = ready();
    b.put(IDT + 8 * 8, u64::from(NEW_TSS) << 16 | 0x8500 << 32);
    // The stack segment ends below the stack pointer.
    b.cpu.segs[SS].limit = 0xfff;
    b.cpu.exception = Exception { vector: 13, error: Some(0), cr2: 0 };
    deliver_exception(&mut b.cpu).unwrap();
    assert_eq!((b.cpu.regs[RIP], b.cpu.segs[TR].selector, get32(&b, 0x8ffc)), (0x2_0000, NEW_TSS, 0));
}

#[test]
fn a_task_of_virtual_8086_mode_and_one_at_privilege_3_get_their_segments() {
    let mut b = ready();
    put32(&b, NEW + 0x24, 2 | rflags::VM);
    for n in 0..6 {
        put32(&b, NEW + 0x48 + 4 * n, 0x1000 + n);
    }
    go(&mut b, NEW_TSS, false).unwrap();
    assert_eq!((b.cpu.cpl, b.cpu.rflags & rflags::VM), (3, rflags::VM));
    assert_eq!(b.cpu.segs[CS], Segment { selector: 0x1001, attr: 0xf3, limit: 0xffff, base: 0x1_0010 });
    let mut b = ready();
    for (n, selector) in [(0, DATA3), (1, CODE3), (2, DATA3)] {
        put32(&b, NEW + 0x48 + 4 * n, selector.into());
    }
    put32(&b, NEW + 0x5c, 0);
    go(&mut b, NEW_TSS, false).unwrap();
    assert_eq!((b.cpu.cpl, b.cpu.segs[CS].selector, b.cpu.bank), (3, CODE3, Bank::User));
}

#[test]
fn a_16_bit_task_has_words() {
    let mut b = ready();
    for n in 0..11 {
        b.mem.write_le(GuestAddr(NEW + 0x0e + 2 * n), 0x100 + n as u16).unwrap();
    }
    for (n, selector) in [DATA, CODE, DATA, DATA, 0].into_iter().enumerate() {
        b.mem.write_le(GuestAddr(NEW + 0x22 + 2 * n as u64), selector).unwrap();
    }
    go(&mut b, NARROW_TSS, true).unwrap();
    assert_eq!((b.cpu.next_rip, b.cpu.regs[0], b.cpu.regs[7]), (0x100, 0x102, 0x109));
    assert_eq!((b.cpu.segs[TR].attr, b.cpu.segs[FS].present(), b.cpu.segs[LDTR].present()), (0x83, false, false));
    // Back: the words are saved in its TSS.
    b.cpu.regs[0] = 0xdead_beef;
    b.cpu.next_rip = 0x222;
    interrupt_return(&mut b.cpu, &op(0, false)).unwrap();
    assert_eq!(b.mem.read_le::<u16>(GuestAddr(NEW + 0x12)).unwrap(), 0xbeef);
    assert_eq!((b.mem.read_le::<u16>(GuestAddr(NEW + 0x0e)).unwrap(), b.cpu.next_rip), (0x222, 0x1_0007));
}

#[test]
fn a_task_with_the_debug_trap_flag_is_trapped_before_its_first_instruction() {
    let mut b = ready();
    put32(&b, NEW + 0x64, 1);
    go(&mut b, NEW_TSS, false).unwrap();
    assert_eq!(b.cpu.debug_pending, dr::BT);
}

#[test]
fn a_tss_on_a_page_that_is_not_there_is_a_page_fault_in_the_old_task() {
    let mut b = ready();
    b.identity();
    // 2 MiB of identity by PAE paging; the new TSS lies behind it.
    b.put(0x6000, PML4 + 0x2001);
    b.put(GDT + 0x20, tss_descriptor(0x20_0000, 0x67, 0x89));
    b.cpu.sys.cr3 = 0x6000;
    b.cpu.sys.cr4 = cr4::PAE;
    b.cpu.sys.cr0 |= cr0::PG;
    assert_eq!(go(&mut b, NEW_TSS, true), Err(Fault));
    assert_eq!((b.cpu.exception.vector, b.cpu.exception.cr2, b.cpu.segs[TR].selector), (14, 0x20_0000, OLD_TSS));
    assert_eq!((get32(&b, OLD + 0x20), is_busy(&b, NEW_TSS)), (0, false));
}

#[test]
fn long_mode_has_no_task_switches() {
    let mut b = ready();
    b.identity();
    b.long_mode();
    for selector in [NEW_TSS, GATE] {
        assert_eq!(go(&mut b, selector, true), Err(Fault));
        assert_eq!(raised(&b), (13, Some(selector.into())));
    }
    b.cpu.rflags |= rflags::NT;
    assert_eq!(interrupt_return(&mut b.cpu, &op(0, false)), Err(Fault));
    assert_eq!(raised(&b), (13, Some(0)));
}
