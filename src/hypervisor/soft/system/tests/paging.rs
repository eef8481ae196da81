//! Page walks, the TLB, MMIO, watchpoints.

use super::super::super::cpu::{DS, Exception, Fault, Segment, rflags};
use super::super::super::mmu::{self, Intent, translate};
use super::super::super::tlb::{self, flush, flush_page};
use super::super::refresh_mode;
use super::super::regs::{cr0, cr4, efer};
use super::*;

const TWO_MIB: u64 = 2 * MIB;

fn access(b: &mut Bench, addr: u64, intent: Intent) -> Result<(), (u8, Option<u32>, u64)> {
    let result = match intent {
        Intent::Read => b.cpu.load::<u8>(addr).map(drop),
        Intent::Write => b.cpu.store::<u8>(addr, 1),
        Intent::Execute => translate(&mut b.cpu, addr, Intent::Execute).map(drop),
    };
    result.map_err(|Fault| {
        let Exception { vector, error, cr2 } = b.cpu.exception;
        (vector, error, cr2)
    })
}

/// Returns whether this access may happen by the rules of SDM vol. 3 section 4.6.1, written out.
#[allow(clippy::too_many_arguments)]
fn allowed(intent: Intent, cpl: u8, user: bool, write: bool, nx: bool, wp: bool, smap: bool, ac: bool, smep: bool) -> bool {
    match (cpl == 3, intent) {
        (true, Intent::Read) => user,
        (true, Intent::Write) => user && write,
        (true, Intent::Execute) => user && !nx,
        (false, Intent::Read) => !user || !smap || ac,
        (false, Intent::Write) => (write || !wp) && (!user || !smap || ac),
        (false, Intent::Execute) => !nx && !(user && smep),
    }
}

#[test]
fn every_combination_of_permissions_faults_as_the_manual_says_and_with_its_error_code() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    for bits in 0..1u32 << 8 {
        let on = |n: u32| bits >> n & 1 != 0;
        let (user, write, nx, wp, smap, ac, smep) = (on(0), on(1), on(2), on(3), on(4), on(5), on(6));
        let cpl = if on(7) { 3 } else { 0 };
        for intent in [Intent::Read, Intent::Write, Intent::Execute] {
            let entry = 0x5001 | u64::from(user) << 2 | u64::from(write) << 1 | u64::from(nx) << 63;
            b.put(b.page_entry(0), entry);
            let c = &mut b.cpu;
            c.sys.cr0 = c.sys.cr0 & !cr0::WP | if wp { cr0::WP } else { 0 };
            c.sys.cr4 = cr4::PAE | if smap { cr4::SMAP } else { 0 } | if smep { cr4::SMEP } else { 0 };
            c.rflags = rflags::FIXED | if ac { rflags::AC } else { 0 };
            flush(c, false);
            b.privilege(cpl);
            let good = allowed(intent, cpl, user, write, nx, wp, smap, ac, smep);
            let mut error = 1;
            if intent == Intent::Write {
                error |= 2;
            }
            if cpl == 3 {
                error |= 4;
            }
            if intent == Intent::Execute {
                error |= 16;
            }
            let expected = if good { Ok(()) } else { Err((14, Some(error), TWO_MIB + 8)) };
            assert_eq!(access(&mut b, TWO_MIB + 8, intent), expected, "combination {bits:#b}, {intent:?}");
            // Access again: the TLB's entry must permit no more and no less.
            assert_eq!(access(&mut b, TWO_MIB + 8, intent), expected, "again {bits:#b}, {intent:?}");
            if good && intent == Intent::Read {
                let write_good = allowed(Intent::Write, cpl, user, write, nx, wp, smap, ac, smep);
                assert_eq!(access(&mut b, TWO_MIB + 8, Intent::Write).is_ok(), write_good, "after a read {bits:#b}");
            }
        }
    }
}

#[test]
fn permissions_of_all_levels_are_combined() {
    for level in 0..3u64 {
        let slot = [PML4, PML4 + 0x1000, PML4 + 0x2008][level as usize];
        for (bit, set) in [(1, false), (2, false), (63, true)] {
            let mut b = bench();
            b.identity();
            b.long_mode();
            b.put(b.page_entry(0), 0x5007);
            let old = b.get(slot);
            b.put(slot, if set { old | 1 << bit } else { old & !(1 << bit) });
            b.privilege(3);
            let intent = [Intent::Read, Intent::Write, Intent::Read, Intent::Execute][if set { 3 } else { bit }];
            assert_eq!(access(&mut b, TWO_MIB, intent).unwrap_err().0, 14, "level {level} bit {bit}");
        }
    }
}

#[test]
fn a_missing_page_has_error_code_zero_plus_the_kind_of_access() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    assert_eq!(access(&mut b, TWO_MIB + 0x1234, Intent::Read), Err((14, Some(0), TWO_MIB + 0x1234)));
    assert_eq!(access(&mut b, TWO_MIB + 0x1234, Intent::Write), Err((14, Some(2), TWO_MIB + 0x1234)));
    assert_eq!(access(&mut b, 1 << 39, Intent::Read), Err((14, Some(0), 1 << 39)));
    b.privilege(3);
    assert_eq!(access(&mut b, TWO_MIB, Intent::Execute), Err((14, Some(0x14), TWO_MIB)));
}

#[test]
fn reserved_bits_fault_with_their_own_error_bit() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(b.page_entry(0), 0x5003 | 1 << 45);
    assert_eq!(access(&mut b, TWO_MIB, Intent::Read), Err((14, Some(9), TWO_MIB)));
    b.put(b.page_entry(0), 0x5003 | 1 << 63);
    b.cpu.sys.efer &= !efer::NXE;
    assert_eq!(access(&mut b, TWO_MIB, Intent::Read), Err((14, Some(9), TWO_MIB)));
    // Bit 13 of a 2 MiB page, and a "large" PML4 entry.
    b.put(PML4 + 0x2010, 0x40_2083 | 1 << 14);
    assert_eq!(access(&mut b, 2 * TWO_MIB, Intent::Read), Err((14, Some(9), 2 * TWO_MIB)));
    b.put(PML4 + 8, 0x87);
    assert_eq!(access(&mut b, 1 << 39, Intent::Write), Err((14, Some(11), 1 << 39)));
}

#[test]
fn accessed_and_dirty_bits_are_set_when_used_and_not_before() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(b.page_entry(0), 0x5003);
    access(&mut b, TWO_MIB, Intent::Read).unwrap();
    assert_eq!(b.get(b.page_entry(0)), 0x5023);
    assert_eq!(b.get(PML4) & 0x20, 0x20);
    assert_eq!(b.get(PML4 + 0x1000) & 0x60, 0x20);
    assert_eq!(b.get(PML4 + 0x2008) & 0x60, 0x20);
    access(&mut b, TWO_MIB, Intent::Write).unwrap();
    assert_eq!(b.get(b.page_entry(0)), 0x5063);
    // A refused write sets nothing.
    b.put(b.page_entry(1), 0x6001);
    access(&mut b, TWO_MIB + 4096, Intent::Write).unwrap_err();
    assert_eq!(b.get(b.page_entry(1)), 0x6001);
}

#[test]
fn pages_of_2_mib_and_1_gib_reach_every_byte() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(PML4 + 0x2010, 0x40_0083);
    b.put(PML4 + 0x1008, 0x83);
    b.mem.write_le(GuestAddr(0x5a_bcd0), 0x1122_3344u32).unwrap();
    assert_eq!(b.cpu.load::<u32>(0x5a_bcd0).unwrap(), 0x1122_3344);
    assert_eq!(b.cpu.load::<u32>(0x405a_bcd0).unwrap(), 0x1122_3344);
    assert_eq!(b.get(PML4 + 0x1008), 0xa3);
}

#[test]
fn pae_and_32_bit_paging_walk_their_own_tables() {
    let mut b = bench();
    let c = &mut b.cpu;
    c.sys.cr0 = cr0::PE | cr0::PG | cr0::WP;
    c.sys.cr4 = cr4::PAE;
    c.sys.cr3 = 0x2020;
    b.put(0x2020 + 8, 0x3001);
    b.put(0x3000, 0x4003);
    b.put(0x4008, 0x5003);
    b.put(0x3008, 0x60_0083);
    b.put(0x5010, 77);
    b.put(0x60_0018, 78);
    b.privilege(0);
    b.cpu.segs[CS].attr = 0xc09b;
    flush(&mut b.cpu, false);
    assert_eq!(b.cpu.load::<u64>(0x4000_1010).unwrap(), 77);
    assert_eq!(b.cpu.load::<u64>(0x4020_0018).unwrap(), 78);
    b.put(0x2020 + 16, 0x3003);
    assert_eq!(access(&mut b, 0x8000_0000, Intent::Read), Err((14, Some(9), 0x8000_0000)), "PDPTE bit 1 is reserved");

    b.cpu.sys.cr4 = cr4::PSE;
    b.cpu.sys.cr3 = 0x7000;
    flush(&mut b.cpu, false);
    b.mem.write_le(GuestAddr(0x7004), 0x8003u32).unwrap();
    b.mem.write_le(GuestAddr(0x8008), 0x5003u32).unwrap();
    b.mem.write_le(GuestAddr(0x700c), 0x80_0083u32).unwrap();
    b.put(0x80_0020, 79);
    assert_eq!(b.cpu.load::<u64>(0x40_2010).unwrap(), 77);
    assert_eq!(b.cpu.load::<u64>(0xc0_0020).unwrap(), 79);
    b.cpu.store::<u64>(0xc0_0020, 1).unwrap();
    assert_eq!(b.mem.read_le::<u32>(GuestAddr(0x700c)).unwrap(), 0x80_00e3);
    b.cpu.sys.cr4 = 0;
    flush(&mut b.cpu, false);
    b.mem.write_le(GuestAddr(0x80_0000), 0x5003u32).unwrap();
    assert_eq!(b.cpu.load::<u64>(0xc0_0010).unwrap(), 77, "without PSE bit 7 means nothing");
}

#[test]
fn a_non_canonical_address_is_a_general_protection_fault() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    // The address is kept until the instruction is left, for `stackfault`.
    assert_eq!(access(&mut b, 1 << 47, Intent::Read), Err((13, Some(0), 1 << 47)));
    assert_eq!(access(&mut b, u64::MAX >> 1, Intent::Write), Err((13, Some(0), u64::MAX >> 1)));
}

#[test]
fn a_store_across_pages_writes_nothing_when_the_second_page_faults() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(b.page_entry(0), 0x5003);
    assert_eq!(b.cpu.store::<u64>(TWO_MIB + 0xffc, u64::MAX), Err(Fault));
    assert_eq!(b.cpu.exception.cr2, TWO_MIB + 0x1000);
    assert_eq!(b.get(0x5ff8), 0);
    b.put(b.page_entry(1), 0x9003);
    b.cpu.store::<u64>(TWO_MIB + 0xffc, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(b.mem.read_le::<u32>(GuestAddr(0x5ffc)).unwrap(), 0x5566_7788);
    assert_eq!(b.mem.read_le::<u32>(GuestAddr(0x9000)).unwrap(), 0x1122_3344);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB + 0xffc).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(b.cpu.load::<u128>(TWO_MIB + 0xff9).unwrap() >> 24 & 0xffff_ffff, 0x5566_7788);
}

#[test]
fn device_memory_is_reached_in_accesses_of_at_most_8_bytes() {
    let mut b = bench();
    b.cpu.sys.cr0 |= cr0::PE;
    let base = 0x8000_0010u64;
    assert_eq!(b.cpu.load::<u32>(base).unwrap(), 0x10);
    assert_eq!(b.cpu.load::<u128>(base).unwrap(), 0x18_0000_0018_0000_0010_0000_0010);
    b.cpu.store::<u16>(base, 0xabcd).unwrap();
    b.cpu.store::<u64>(base + 0xfec, 0x8877_6655_4433_2211).unwrap();
    b.cpu.store::<u64>(base + 0xfeb, 0x8877_6655_4433_2211).unwrap();
    assert_eq!(
        b.probe.writes(),
        [
            (base, 2, 0xabcd),
            (0x8000_0ffc, 4, 0x4433_2211),
            (0x8000_1000, 4, 0x8877_6655),
            (0x8000_0ffb, 1, 0x11),
            (0x8000_0ffc, 4, 0x5544_3322),
            (0x8000_1000, 2, 0x7766),
            (0x8000_1002, 1, 0x88),
        ]
    );
}

#[test]
fn a_store_to_rom_goes_to_the_platform_and_changes_nothing() {
    let mut b = bench();
    b.cpu.sys.cr0 |= cr0::PE;
    b.cpu.store::<u32>(ROM + 16, 7).unwrap();
    assert_eq!(b.cpu.load::<u32>(ROM + 16).unwrap(), 0);
    b.cpu.store::<u32>(ROM + 16, 8).unwrap();
    assert_eq!(b.probe.writes(), [(ROM + 16, 4, 7), (ROM + 16, 4, 8)]);
}

#[test]
fn a_store_to_a_watched_page_never_enters_a_write_tag() {
    let mut b = bench();
    b.cpu.sys.cr0 |= cr0::PE;
    b.cpu.store::<u32>(0x5000, 1).unwrap();
    assert!(b.cpu.fast_write_ptr::<u32>(0x5000).is_some());
    b.cpu.map.watch(GuestAddr(0x5000), true);
    tlb::protect_code_page(&mut b.cpu, 0x5000);
    for value in 2..5 {
        assert!(b.cpu.fast_write_ptr::<u32>(0x5000).is_none());
        b.cpu.store::<u32>(0x5000, value).unwrap();
        assert_eq!(b.cpu.load::<u32>(0x5000).unwrap(), value);
    }
    assert!(b.cpu.fast_read_ptr::<u32>(0x5000).is_some());
    b.cpu.map.watch(GuestAddr(0x5000), false);
    b.cpu.store::<u32>(0x5000, 9).unwrap();
    assert!(b.cpu.fast_write_ptr::<u32>(0x5000).is_some());
}

#[test]
fn a_cr3_write_keeps_global_pages_and_invlpg_drops_them() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(b.page_entry(0), 0x5003);
    b.put(b.page_entry(1), 0x6103);
    b.put(0x7000, 70);
    b.put(0x5000, 50);
    b.put(0x6000, 60);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB).unwrap(), 50);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB + 4096).unwrap(), 60);
    b.put(b.page_entry(0), 0x7003);
    b.put(b.page_entry(1), 0x7103);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB).unwrap(), 50, "the TLB still has it");
    flush(&mut b.cpu, true);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB).unwrap(), 70);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB + 4096).unwrap(), 60, "global");
    flush_page(&mut b.cpu, TWO_MIB + 4100);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB + 4096).unwrap(), 70);
    b.put(b.page_entry(1), 0x6103);
    flush(&mut b.cpu, false);
    assert_eq!(b.cpu.load::<u64>(TWO_MIB + 4096).unwrap(), 60);
}

#[test]
fn invlpg_anywhere_in_a_large_page_drops_all_of_it() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(PML4 + 0x2010, 0x40_0083);
    b.put(0x40_0000, 4);
    b.put(0x5f_f000, 5);
    b.put(0x80_0000, 8);
    b.put(0x9f_f000, 9);
    assert_eq!(b.cpu.load::<u64>(0x40_0000).unwrap(), 4);
    assert_eq!(b.cpu.load::<u64>(0x5f_f000).unwrap(), 5);
    b.put(PML4 + 0x2010, 0x80_0083);
    flush_page(&mut b.cpu, 0x5f_f000);
    assert_eq!(b.cpu.load::<u64>(0x40_0000).unwrap(), 8);
    assert_eq!(b.cpu.load::<u64>(0x5f_f000).unwrap(), 9);
}

#[test]
fn a_watchpoint_traps_behind_the_access_that_touches_its_bytes() {
    let mut b = bench();
    b.cpu.sys.cr0 |= cr0::PE;
    b.cpu.load::<u64>(0x5000).unwrap();
    // DR1: 4 bytes at 0x5004, writes.
    b.cpu.sys.dr[1] = 0x5004;
    b.cpu.sys.dr[7] = 0x400 | 1 << 2 | 0b1101 << 20;
    mmu::watchpoints_changed(&mut b.cpu);
    b.cpu.load::<u64>(0x5000).unwrap();
    b.cpu.store::<u32>(0x5000, 1).unwrap();
    assert_eq!(b.cpu.debug_pending, 0);
    b.cpu.store::<u16>(0x5006, 1).unwrap();
    assert_eq!(b.cpu.debug_pending, 2);
    assert!(super::super::take_debug_trap(&mut b.cpu));
    assert_eq!((b.cpu.exception.vector, b.cpu.sys.dr[6] & 0xf), (1, 2));
    b.cpu.sys.dr[7] = 0x400;
    mmu::watchpoints_changed(&mut b.cpu);
    b.cpu.store::<u16>(0x5006, 1).unwrap();
    assert_eq!(b.cpu.debug_pending, 0);
}

#[test]
fn alignment_is_checked_in_user_mode_only_and_only_when_both_switches_are_on() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.cpu.load::<u32>(0x8001).unwrap();
    b.cpu.sys.cr0 |= cr0::AM;
    b.cpu.rflags |= rflags::AC;
    refresh_mode(&mut b.cpu);
    b.cpu.load::<u32>(0x8001).unwrap();
    b.privilege(3);
    for _ in 0..2 {
        assert_eq!(b.cpu.load::<u32>(0x8001), Err(Fault));
        assert_eq!((b.cpu.exception.vector, b.cpu.exception.error), (17, Some(0)));
        b.cpu.load::<u32>(0x8004).unwrap();
    }
    b.cpu.rflags &= !rflags::AC;
    refresh_mode(&mut b.cpu);
    b.cpu.load::<u32>(0x8001).unwrap();
}

#[test]
fn an_access_at_the_top_of_a_32_bit_space_wraps() {
    let mut b = bench();
    b.cpu.sys.cr0 |= cr0::PE;
    b.cpu.segs[DS] = Segment::flat(8, 0xc093);
    b.mem.write_rom(GuestAddr(0xffff_fffe), &[1, 2]).unwrap();
    b.mem.write(GuestAddr(0), &[3, 4]).unwrap();
    assert_eq!(b.cpu.load::<u32>(0xffff_fffe).unwrap(), 0x0403_0201);
}

#[test]
fn system_accesses_ignore_the_privilege_level_and_obey_smap() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    b.put(b.page_entry(0), 0x5003);
    b.put(b.page_entry(1), 0x6007);
    b.privilege(3);
    assert!(b.cpu.load::<u8>(TWO_MIB).is_err());
    mmu::load_system::<u8>(&mut b.cpu, TWO_MIB).unwrap();
    assert!(b.cpu.load::<u8>(TWO_MIB).is_err(), "the user bank did not learn it");
    b.cpu.sys.cr4 |= cr4::SMAP;
    b.cpu.rflags |= rflags::AC;
    refresh_mode(&mut b.cpu);
    assert!(mmu::load_system::<u8>(&mut b.cpu, TWO_MIB + 4096).is_err());
    assert_eq!(b.cpu.exception.error, Some(1));
}
