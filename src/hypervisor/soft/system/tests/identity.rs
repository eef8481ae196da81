//! CPUID, MSRs, the paravirtual clock, reset and entry states.

use super::super::super::cpu::{Fault, RIP};
use super::super::super::lower::Mode;
use super::super::cpuid::leaves;
use super::super::msr::{rdmsr, wrmsr};
use super::super::regs::msr;
use super::super::{enter, start_up};
use super::*;

/// Returns any op: these bodies use none.
fn some_op() -> super::super::super::op::Op {
    super::super::super::op::Op {
        handler: crate::hypervisor::soft::op::called_op!(super::super::control::nop),
        imm: 0,
        disp: 0,
        aux: 0,
        pc: 0,
        len: 2,
        dst: 0,
        src: 0,
        base: super::super::super::cpu::ZERO as u8,
        index: super::super::super::cpu::ZERO as u8,
        scale: 0,
    }
}

fn write(b: &mut Bench, number: u32, value: u64) -> Result<(), Fault> {
    (b.cpu.regs[1], b.cpu.regs[0], b.cpu.regs[2]) = (number.into(), value & 0xffff_ffff, value >> 32);
    wrmsr(&mut b.cpu, &some_op())
}

fn read(b: &mut Bench, number: u32) -> Result<u64, Fault> {
    b.cpu.regs[1] = number.into();
    rdmsr(&mut b.cpu, &some_op())?;
    Ok(b.cpu.regs[2] << 32 | b.cpu.regs[0])
}

#[test]
fn registers_that_do_not_exist_raise_general_protection() {
    let mut b = bench();
    for number in [0x48, 0x10a, 0x400, 0x606, 0xc000_0104, 0xc001_0200, 0x4b56_4d02, 0x4b56_4d03] {
        assert_eq!(read(&mut b, number), Err(Fault), "{number:#x}");
        assert_eq!(b.cpu.exception.vector, 13);
        assert_eq!(write(&mut b, number, 0), Err(Fault), "{number:#x}");
    }
}

#[test]
fn the_registers_that_every_amd_processor_has_can_be_read_and_written() {
    let mut b = bench();
    let ranges = [0xc001_0000..=0xc001_0007, 0xc001_0016..=0xc001_001a, 0xc001_0050..=0xc001_0056, 0xc001_0111..=0xc001_0115];
    let single = [0x1_0010, 0x1_0015, 0x1_001d, 0x1_001f, 0x1_0022, 0x1_0074, 0x1_1020, 0x1_1021, 0x1_1022, 0x1_1023, 0x1_1028];
    let single = single.into_iter().map(|n| 0xc000_0000 + n).chain(0xc001_1029..=0xc001_102c);
    for number in ranges.into_iter().flatten().chain(single) {
        let value = read(&mut b, number).unwrap_or_else(|_| panic!("{number:#x} is there"));
        write(&mut b, number, value).unwrap();
    }
    // Performance counters keep nothing: that is how Linux finds out that they do not count.
    write(&mut b, 0xc001_0004, 0xabcd).unwrap();
    assert_eq!(read(&mut b, 0xc001_0004).unwrap(), 0);
    // The name is that of CPUID.
    let name: Vec<u8> = (0..6).flat_map(|n| read(&mut b, 0xc001_0030 + n).unwrap().to_le_bytes()).collect();
    let told: Vec<u8> = (2..5).flat_map(|n| leaves(&b.cpu, 0x8000_0000 + n, 0)).flat_map(u32::to_le_bytes).collect();
    assert_eq!(name, told);
    // The ends of memory: 16 MiB, and the region below 4 GiB is not writable.
    assert_eq!((read(&mut b, msr::TOP_MEM).unwrap(), read(&mut b, msr::TOP_MEM2).unwrap()), (16 * MIB, 1 << 32));
}

#[test]
fn rdpmc_reads_four_counters_and_needs_cr4_pce_in_user_mode() {
    let mut b = bench();
    let rdpmc = |b: &mut Bench, n: u64| {
        (b.cpu.regs[0], b.cpu.regs[1], b.cpu.regs[2]) = (7, n, 7);
        super::super::control::rdpmc(&mut b.cpu, &some_op()).map(|()| (b.cpu.regs[0], b.cpu.regs[2]))
    };
    for n in 0..4 {
        assert_eq!(rdpmc(&mut b, n), Ok((0, 0)));
    }
    assert_eq!(rdpmc(&mut b, 4), Err(Fault));
    b.cpu.cpl = 3;
    assert_eq!(rdpmc(&mut b, 0), Err(Fault));
    b.cpu.sys.cr4 |= cr4::PCE;
    assert_eq!(rdpmc(&mut b, 3), Ok((0, 0)));
}

#[test]
fn cpuid_shows_the_local_apic_only_while_it_is_switched_on() {
    let b = bench();
    let bits = |b: &Bench| (leaves(&b.cpu, 1, 0)[3] >> 9 & 1, leaves(&b.cpu, 0x8000_0001, 0)[3] >> 9 & 1);
    assert_eq!(bits(&b), (1, 1));
    b.probe.apic_base.store(0xfee0_0100, Ordering::Relaxed);
    assert_eq!(bits(&b), (0, 0));
}

#[test]
fn the_x87_error_pointers_are_always_saved_and_restored_as_cpuid_says() {
    let b = bench();
    assert_ne!(leaves(&b.cpu, 0x8000_0008, 0)[1] & 1 << 2, 0, "XSAVEERPTR");
    // No exception is pending: FXSAVE, FXRSTOR of an empty image, FXSAVE.
    let mut rig = super::super::super::rig::Rig::supervisor();
    (rig.cpu.fpu.fip, rig.cpu.fpu.fdp, rig.cpu.fpu.fop) = (0x1234_5678, 0x9abc_def0, 0x123);
    rig.cpu.sys.cr4 |= cr4::OSXSAVE;
    let code = [
        &[0x0f, 0xae, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00][..], // fxsave [0x200000]
        &[0x0f, 0xae, 0x0c, 0x25, 0x00, 0x10, 0x20, 0x00],     // fxrstor [0x201000]
        &[0x0f, 0xae, 0x04, 0x25, 0x00, 0x20, 0x20, 0x00],     // fxsave [0x202000]
        &[0xb8, 0x01, 0x00, 0x00, 0x00, 0x31, 0xd2],           // mov eax, 1; xor edx, edx
        &[0x0f, 0xae, 0x2c, 0x25, 0x00, 0x30, 0x20, 0x00],     // xrstor [0x203000]
    ];
    let data = super::super::super::rig::DATA;
    let mut image = rig.read(data + 0x3000, 24);
    image[6..8].copy_from_slice(&0x321u16.to_le_bytes());
    image[8..12].copy_from_slice(&0x1111u32.to_le_bytes());
    image[16..20].copy_from_slice(&0x2222u32.to_le_bytes());
    rig.write(data + 0x3000, &image);
    rig.write(data + 0x3000 + 512, &[1]);
    assert_eq!(rig.run_code(&code.concat()), super::super::super::rig::Stop::End);
    let pointers = |at: u64| (rig.read(data + at + 6, 2), rig.read(data + at + 8, 4), rig.read(data + at + 16, 4));
    assert_eq!(pointers(0), (vec![0x23, 1], vec![0x78, 0x56, 0x34, 0x12], vec![0xf0, 0xde, 0xbc, 0x9a]));
    assert_eq!(pointers(0x2000), (vec![0; 2], vec![0; 4], vec![0; 4]), "nothing of before is left");
    assert_eq!((rig.cpu.fpu.fop, rig.cpu.fpu.fip, rig.cpu.fpu.fdp), (0x321, 0x1111, 0x2222));
}

#[test]
fn what_is_written_to_a_register_is_read_back() {
    let mut b = bench();
    for (number, value) in [
        (msr::STAR, 0x23_0010_0000_0000),
        (msr::LSTAR, 0xffff_ffff_8100_0000),
        (msr::SFMASK, 0x4_7700),
        (msr::KERNEL_GS_BASE, 0xffff_8880_0000_0000),
        (msr::FS_BASE, 0x7f00_1234_5000),
        (msr::GS_BASE, 0x1000),
        (msr::PAT, 0x0407_0506_0007_0106),
        (msr::MTRR_DEF_TYPE, 0xc06),
        (0x201, 0xff_c000_0800),
        (0x250, 0x0606_0606_0606_0606),
        (0x26f, 0x0505_0505_0505_0505),
        (msr::TSC_AUX, 3),
        (msr::SYSENTER_EIP, 0xffff_ffff_8200_0000),
        (msr::EFER, 0xd01 & !0x400),
    ] {
        write(&mut b, number, value).unwrap();
        assert_eq!(read(&mut b, number).unwrap(), value, "{number:#x}");
    }
}

#[test]
fn impossible_values_are_refused() {
    let mut b = bench();
    for (number, value) in [
        (msr::LSTAR, 1 << 47),
        (msr::GS_BASE, 0x8000_0000_0000_0000),
        (msr::PAT, 2),
        (msr::MTRR_DEF_TYPE, 2),
        (msr::EFER, 1 << 12),
        (0x201, 1 << 63),
        (msr::TSC_AUX, 1 << 32),
    ] {
        assert_eq!(write(&mut b, number, value), Err(Fault), "{number:#x}");
    }
}

#[test]
fn the_tsc_counts_nanoseconds_and_can_be_moved() {
    let mut b = bench();
    b.probe.clock.advance_ns(1000);
    assert_eq!(read(&mut b, msr::TSC).unwrap(), 1000);
    write(&mut b, msr::TSC, 50_000).unwrap();
    b.probe.clock.advance_ns(5);
    assert_eq!(read(&mut b, msr::TSC).unwrap(), 50_005);
    assert_eq!(read(&mut b, msr::TSC_ADJUST).unwrap(), 49_000);
    write(&mut b, msr::TSC_ADJUST, 0).unwrap();
    assert_eq!(read(&mut b, msr::TSC).unwrap(), 1005);
    // The APIC's deadline is in the platform's time.
    write(&mut b, msr::TSC, 0).unwrap();
    write(&mut b, msr::TSC_DEADLINE, 100).unwrap();
    assert_eq!(b.probe.deadline.load(Ordering::Relaxed), 1105);
    assert_eq!(read(&mut b, msr::TSC_DEADLINE).unwrap(), 100);
}

#[test]
fn the_paravirtual_clock_says_what_the_tsc_says() {
    let mut b = bench();
    b.probe.clock.advance_ns(7_000_000);
    write(&mut b, msr::TSC, 500).unwrap();
    write(&mut b, msr::KVM_SYSTEM_TIME, 0x6001).unwrap();
    let version = b.get(0x6000);
    assert!(version != 0 && version % 2 == 0);
    assert_eq!((b.get(0x6008), b.get(0x6010)), (500, 7_000_000));
    let mul = u64::from(b.mem.read_le::<u32>(GuestAddr(0x6018)).unwrap());
    let shift = b.mem.read_le::<u8>(GuestAddr(0x601c)).unwrap();
    assert_eq!(b.mem.read_le::<u8>(GuestAddr(0x601d)).unwrap(), 1, "the TSC is stable");
    assert_eq!(((1_234_567u64 << shift) * mul) >> 32, 1_234_567);
    write(&mut b, msr::KVM_WALL_CLOCK, 0x6100).unwrap();
    assert_eq!(b.mem.read_le::<u32>(GuestAddr(0x6104)).unwrap(), 1_700_000_000);
    assert_eq!(b.mem.read_le::<u32>(GuestAddr(0x6108)).unwrap(), 123_456_789);
    // Outside of memory nothing happens.
    write(&mut b, msr::KVM_SYSTEM_TIME, 0x7fff_ffff_0001).unwrap();
}

#[test]
fn after_a_sleep_of_the_host_the_guests_clocks_are_right_and_its_watchdogs_are_told() {
    let mut b = bench();
    write(&mut b, msr::KVM_SYSTEM_TIME, 0x6001).unwrap();
    write(&mut b, msr::KVM_WALL_CLOCK, 0x6100).unwrap();
    let before = read(&mut b, msr::TSC).unwrap();
    let hours = 8 * 3600 * 1_000_000_000;
    b.probe.clock.sleep_ns(hours);
    crate::hypervisor::soft::system::kvmclock::guest_was_stopped(&mut b.cpu);
    assert_eq!(read(&mut b, msr::TSC).unwrap() - before, hours);
    assert_eq!(b.mem.read_le::<u8>(GuestAddr(0x601d)).unwrap(), 3, "stable, and the guest was stopped");
    // The wall clock of the boot and the time since then still make the time of day.
    write(&mut b, msr::KVM_WALL_CLOCK, 0x6100).unwrap();
    assert_eq!(b.mem.read_le::<u32>(GuestAddr(0x6104)).unwrap(), 1_700_000_000);
    // A guest without the clock has nothing that could be written.
    write(&mut b, msr::KVM_SYSTEM_TIME, 0).unwrap();
    crate::hypervisor::soft::system::kvmclock::guest_was_stopped(&mut b.cpu);
}

#[test]
fn cpuid_names_the_model_and_the_hypervisor() {
    let b = bench();
    let text = |leaf: u32, order: [usize; 3]| -> String {
        let r = leaves(&b.cpu, leaf, 0);
        order.iter().flat_map(|&i| r[i].to_le_bytes()).map(char::from).collect()
    };
    assert_eq!(text(0, [1, 3, 2]), "AuthenticAMD");
    assert_eq!(text(0x4000_0000, [1, 2, 3]), "KVMKVMKVM\0\0\0");
    assert_eq!(leaves(&b.cpu, 0x4000_0010, 0)[0], 1_000_000);
    assert_eq!(leaves(&b.cpu, 0x8000_0007, 0)[3], 1 << 8);
    // No AVX, FMA, MOVBE, RDPID, AVX2, BMI; SSE to SSE4.2, POPCNT, CMPXCHG16B.
    let ecx = leaves(&b.cpu, 1, 0)[2];
    assert_eq!(ecx & (1 << 28 | 1 << 12 | 1 << 22), 0);
    assert_eq!(ecx & (1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23), 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23);
    assert_eq!(leaves(&b.cpu, 7, 0)[1] & (1 << 3 | 1 << 5 | 1 << 8 | 1 << 16), 0);
}

#[test]
fn topology_leaves_agree_with_each_other() {
    let mut b = bench();
    b.cpu.topology = Topology { sockets: 2, cores: 2, threads: 2 };
    b.cpu.index = 5;
    assert_eq!(leaves(&b.cpu, 1, 0)[1] >> 16, 5 << 8 | 4);
    assert_eq!(leaves(&b.cpu, 0xb, 0), [1, 2, 1 << 8, 5]);
    assert_eq!(leaves(&b.cpu, 0xb, 1), [2, 4, 2 << 8 | 1, 5]);
    assert_eq!(leaves(&b.cpu, 0x8000_0008, 0)[2], 2 << 12 | 3);
    assert_eq!(leaves(&b.cpu, 0x8000_001e, 0)[0], 5);
}

#[test]
fn power_on_starts_at_the_reset_vector_and_a_start_up_message_elsewhere() {
    let mut b = bench();
    assert_eq!((b.cpu.segs[CS].base, b.cpu.regs[RIP]), (0xffff_0000, 0xfff0));
    assert_eq!(b.cpu.sys.cr0, 0x6000_0010);
    assert!(refresh_mode(&mut b.cpu).has(Mode::REAL));
    start_up(&mut b.cpu, 0x9a);
    assert_eq!((b.cpu.segs[CS].selector, b.cpu.segs[CS].base, b.cpu.regs[RIP]), (0x9a00, 0x9_a000, 0));
}

#[test]
fn init_keeps_the_model_specific_registers() {
    let mut b = bench();
    b.long_mode();
    b.cpu.sys.mtrr_def_type = 0xc06;
    b.cpu.xmm[3] = [1, 2];
    reset(&mut b.cpu, false);
    assert_eq!((b.cpu.sys.mtrr_def_type, b.cpu.xmm[3], b.cpu.sys.efer), (0xc06, [1, 2], 0));
    reset(&mut b.cpu, true);
    assert_eq!((b.cpu.sys.mtrr_def_type, b.cpu.xmm[3]), (0, [0, 0]));
}

#[test]
fn loaders_enter_in_flat_protected_or_long_mode() {
    let mut b = bench();
    let boot = BootState::Protected { eip: 0x10_0000, eax: 1, ebx: 2, esi: 3, gdt_base: 0x500, gdt_limit: 31 };
    enter(&mut b.cpu, &boot);
    let mode = refresh_mode(&mut b.cpu);
    assert_eq!(mode.0, Mode::CODE32 | Mode::STACK32 | Mode::FLAT | Mode::SSE_UD);
    assert_eq!((b.cpu.regs[RIP], b.cpu.regs[0], b.cpu.regs[3], b.cpu.regs[6]), (0x10_0000, 1, 2, 3));
    let mut b = bench();
    enter(&mut b.cpu, &BootState::Long { rip: 0x20_0000, rsi: 9, cr3: PML4, gdt_base: 0x500, gdt_limit: 31 });
    let mode = refresh_mode(&mut b.cpu);
    assert_eq!(mode.0, Mode::LONG | Mode::STACK32 | Mode::SSE_UD);
}

#[test]
fn a_loader_finds_the_memory_types_that_firmware_leaves() {
    let mut b = bench();
    assert_eq!(read(&mut b, msr::MTRR_DEF_TYPE).unwrap(), 0, "off after reset");
    super::super::set_memory_types(&mut b.cpu, &[(0xa_0000, 0x2_0000), (3 << 30, 1 << 30)]);
    // Enabled, fixed ranges enabled, write-back.
    assert_eq!(read(&mut b, msr::MTRR_DEF_TYPE).unwrap(), 0xc06);
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    for number in [0x250, 0x258].into_iter().chain(0x268..=0x26f) {
        assert_eq!(read(&mut b, number).unwrap(), WRITE_BACK, "{number:#x}");
    }
    assert_eq!(read(&mut b, msr::MTRR_FIX16K_1).unwrap(), 0, "a0000 to bffff");
    // The fourth GiB, of 40 bits of address.
    assert_eq!((read(&mut b, 0x200).unwrap(), read(&mut b, 0x201).unwrap()), (0xc000_0000, 0xff_c000_0800));
    assert_eq!(read(&mut b, 0x203).unwrap(), 0);
    // Write-combining, fixed ranges, eight variable ones; and the capability cannot be written.
    assert_eq!(read(&mut b, msr::MTRR_CAP).unwrap(), 0x508);
    assert_eq!(write(&mut b, msr::MTRR_CAP, 0x508), Err(Fault));
}

#[test]
fn random_numbers_are_the_same_in_every_deterministic_run_and_differ_within_one() {
    use super::super::super::rig::{Rig, Stop};
    // rdrand rax; rdrand rcx; rdseed rdx
    let code = [0x48, 0x0f, 0xc7, 0xf0, 0x48, 0x0f, 0xc7, 0xf1, 0x48, 0x0f, 0xc7, 0xfa];
    let numbers = |deterministic: bool| {
        let mut rig = Rig::user();
        rig.cpu.manual_clock = deterministic.then(|| ManualClock::new(0));
        assert_eq!(rig.run_code(&code), Stop::End);
        [0, 1, 2].map(|register| rig.cpu.regs[register])
    };
    let [a, b, c] = numbers(true);
    assert_eq!(numbers(true), [a, b, c]);
    assert!(a != b && b != c && c != a);
    assert_ne!(numbers(false), numbers(false), "the host's, otherwise");
}
