//! Far transfers and the segments that they leave.

use super::super::super::cpu::{DS, ES, FS, Fault, GS, ZERO};
use super::super::super::op::Op;
use super::super::far::{far_return, interrupt_return};
use super::*;

/// Returns an op whose operand has `size` bytes.
fn op(size: u8) -> Op {
    Op {
        handler: crate::hypervisor::soft::op::called_op!(super::super::control::nop),
        imm: 0,
        disp: 0,
        aux: 0,
        pc: 0,
        len: 2,
        dst: 0,
        src: size,
        base: ZERO as u8,
        index: ZERO as u8,
        scale: 0,
    }
}

fn ready() -> Bench {
    let mut b = bench();
    b.identity();
    b.tables();
    b.long_mode();
    b.cpu.regs[4] = 0x8000;
    for which in [ES, DS, FS, GS] {
        b.cpu.segs[which] = Segment { base: 0x1000 * which as u64, ..Segment::flat(KERNEL_DATA, 0xc093) };
    }
    b
}

type Transfer = fn(&mut Cpu, &Op) -> Result<(), Fault>;

#[test]
fn a_return_to_an_outer_ring_nulls_inner_segments_and_keeps_the_bases_of_fs_and_gs() {
    let frames: [(Transfer, &[u64]); 2] = [
        (interrupt_return, &[0x7000, USER_CODE as u64, 0x2, 0x9000, USER_DATA as u64]),
        (far_return, &[0x7000, USER_CODE as u64, 0x9000, USER_DATA as u64]),
    ];
    for (transfer, frame) in frames {
        let mut b = ready();
        for (i, word) in frame.iter().enumerate() {
            b.put(0x8000 + 8 * i as u64, *word);
        }
        b.cpu.segs[GS] = Segment { base: 0x7f00_0000_1000, ..Segment::flat(USER_DATA, 0xc0f3) };
        transfer(&mut b.cpu, &op(8)).unwrap();
        assert_eq!((b.cpu.cpl, b.cpu.next_rip), (3, 0x7000));
        for which in [ES, DS, FS] {
            assert_eq!((b.cpu.segs[which].selector, b.cpu.segs[which].present()), (0, false), "{which}");
        }
        assert_eq!(b.cpu.segs[FS].base, 0x1000 * FS as u64, "FS has no selector and keeps its base");
        assert_eq!((b.cpu.segs[GS].selector, b.cpu.segs[GS].base), (USER_DATA, 0x7f00_0000_1000));
    }
}

#[test]
fn loading_a_null_selector_clears_the_base_as_cpuid_says() {
    let mut b = ready();
    super::super::segment::load_segment(&mut b.cpu, FS, 0).unwrap();
    assert_eq!(b.cpu.segs[FS], Segment::default());
    assert_ne!(super::super::cpuid::leaves(&b.cpu, 0x8000_0021, 0)[0] & 1 << 6, 0);
}
