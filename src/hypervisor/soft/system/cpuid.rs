//! CPUID: the model "soft-v2".
//!
//! x86-64-v2 with AES, PCLMULQDQ, SHA, RDRAND and XSAVE for x87 and SSE state, under AMD's name: an AMD processor of
//! family 19h has no Meltdown, and with the bits of leaf 0x80000021 no guest turns on a mitigation that would cost an
//! interpreter dearly (automatic IBRS instead of retpolines, SRSO_NO, LFENCE always serialising). Every listed feature
//! is implemented. A feature that is implemented but not listed may change.
//!
//! Sources: APM vol. 3 appendix E; SDM vol. 2 (CPUID); Linux `virt/kvm/x86/cpuid.rst` for leaves 0x4000_00xx.
//!
//! **Not modelled**: APIC ids with gaps ([`Place`]).

use super::super::cpu::{Cpu, Fault};
use super::super::mmu::PHYS_BITS;
use super::super::op::Op;
use super::regs::{cr4, msr};
use crate::hypervisor::clock::TscFrequency;
use crate::hypervisor::cpuid::{CMP_LEGACY, HTT, Place};

/// Family 19h, model 11h, stepping 1: leaf 1 EAX, and EDX after reset.
pub const SIGNATURE: u32 = 0x00a1_0f11;

/// Leaf 1 ECX.
mod ecx1 {
    pub const ALL: u32 = 1 << 0 // SSE3
        | 1 << 1 // PCLMULQDQ
        | 1 << 9 // SSSE3
        | 1 << 13 // CMPXCHG16B
        | 1 << 19 // SSE4.1
        | 1 << 20 // SSE4.2
        | 1 << 21 // x2APIC
        | 1 << 23 // POPCNT
        | 1 << 24 // TSC deadline
        | 1 << 25 // AES
        | 1 << 26 // XSAVE
        | 1 << 30 // RDRAND
        | 1 << 31; // hypervisor
    pub const OSXSAVE: u32 = 1 << 27;
}

/// Leaf 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
const EDX1: u32 = 1 << 0
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// The local APIC, in EDX of leaves 1 and 0x80000001.
const APIC: u32 = 1 << 9;

/// Returns [`APIC`] if the local APIC is switched off in IA32_APIC_BASE: the bit shows that (SDM vol. 3 section
/// 10.4.3).
fn apic_off(cpu: &Cpu) -> u32 {
    match cpu.apics.msr_read(cpu.index, msr::APIC_BASE) {
        Ok(base) if base & 1 << 11 == 0 => APIC,
        _ => 0,
    }
}

/// Leaf 7 EBX: FSGSBASE, SMEP, ERMS, RDSEED, SMAP, CLFLUSHOPT, SHA.
const EBX7: u32 = 1 << 0 | 1 << 7 | 1 << 9 | 1 << 18 | 1 << 20 | 1 << 23 | 1 << 29;

/// Leaf 0x80000001 EDX: the bits that repeat leaf 1, then SYSCALL, NX, MMXEXT, 1 GiB pages, RDTSCP, long mode.
const EDX8: u32 = (EDX1 & 0x0183_f3ff) & !(1 << 11) | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 29;
/// Leaf 0x80000001 ECX: LAHF in 64-bit mode, CR8 in legacy mode is absent, PREFETCHW, topology extensions.
const ECX8: u32 = 1 << 0 | 1 << 8 | 1 << 22;

/// Frequency of the TSC.
pub const TSC_FREQUENCY: TscFrequency = TscFrequency::NANOSECONDS;
/// APIC bus frequency in kHz, as in leaf 0x40000010.
pub const APIC_BUS_KHZ: u32 = 1_000_000;

const BRAND: &[u8; 48] = b"vmctl soft-v2 virtual processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Returns eight bytes of the processor's name, for its registers.
pub fn brand_part(n: usize) -> u64 {
    BRAND[8 * n..].first_chunk().map_or(0, |part| u64::from_le_bytes(*part))
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Returns the answer to `leaf`, `sub`: EAX, EBX, ECX, EDX.
pub fn leaves(cpu: &Cpu, leaf: u32, sub: u32) -> [u32; 4] {
    let place = Place::of(cpu.topology, cpu.index);
    match leaf {
        0 => [0xd, word(b"Auth"), word(b"cAMD"), word(b"enti")],
        1 => {
            let osxsave = if cpu.sys.cr4 & cr4::OSXSAVE != 0 { ecx1::OSXSAVE } else { 0 };
            let htt = if place.is_shared() { HTT } else { 0 };
            [SIGNATURE, place.leaf_1_ebx(), ecx1::ALL | osxsave, (EDX1 | htt) & !apic_off(cpu)]
        }
        // The APIC timer always runs (ARAT).
        6 => [4, 0, 0, 0],
        7 if sub == 0 => [0, EBX7, 0, 0],
        0xb => place.extended_topology(sub),
        0xd => match sub {
            // XCR0 may have x87 and SSE: 512 bytes of FXSAVE and 64 of header.
            0 => [3, 576, 576, 0],
            _ => [0; 4],
        },
        0x4000_0000 => [0x4000_0010, word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")],
        // Clock source old and new, no I/O delay needed, the clock is stable.
        0x4000_0001 => [1 << 0 | 1 << 1 | 1 << 3 | 1 << 24, 0, 0, 0],
        0x4000_0010 => [TSC_FREQUENCY.khz(), APIC_BUS_KHZ, 0, 0],
        0x8000_0000..=0x8fff_ffff => extended(cpu, &place, leaf, sub),
        _ => [0; 4],
    }
}

fn extended(cpu: &Cpu, place: &Place, leaf: u32, sub: u32) -> [u32; 4] {
    match leaf {
        0x8000_0000 => [0x8000_0021, word(b"Auth"), word(b"cAMD"), word(b"enti")],
        0x8000_0001 => {
            let legacy = if place.is_shared() { CMP_LEGACY } else { 0 };
            [SIGNATURE, 0, ECX8 | legacy, EDX8 & !apic_off(cpu)]
        }
        0x8000_0002..=0x8000_0004 => {
            let part = &BRAND[(leaf as usize - 0x8000_0002) * 16..][..16];
            [word(part), word(&part[4..]), word(&part[8..]), word(&part[12..])]
        }
        // L1: 32 KiB, 8 ways, 64-byte lines; TLBs of 64 entries.
        0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 32 << 24 | 8 << 16 | 1 << 8 | 64, 32 << 24 | 8 << 16 | 1 << 8 | 64],
        // L2: 512 KiB, 8 ways; L3: 16 MiB, 16 ways.
        0x8000_0006 => [0, 0x4200_4200, 512 << 16 | 6 << 12 | 1 << 8 | 64, 32 << 18 | 8 << 12 | 1 << 8 | 64],
        // The TSC is invariant.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        0x8000_0008 => {
            // Speculative store bypass does not happen (SSB_NO). WBNOINVD. FXSAVE and similar always save and restore
            // the x87 error pointers (XSAVEERPTR, named RstrFpErrPtrs in the APM): so nothing of another process is
            // left in them, and no guest needs to clear them at each switch.
            let ebx = 1 << 26 | 1 << 9 | 1 << 2;
            [48 << 8 | PHYS_BITS, ebx, place.amd_size(), 0]
        }
        0x8000_001d => cache(place, sub),
        0x8000_001e => place.amd_core(),
        // LFENCE always serialises, a null selector clears the base, automatic IBRS, SRSO does not exist;
        // ECX: nor does TSA.
        0x8000_0021 => [1 << 2 | 1 << 6 | 1 << 8 | 1 << 29, 0, 1 << 1 | 1 << 2, 0],
        _ => [0; 4],
    }
}

/// Returns leaf 0x8000001D: the caches, in the layout of leaf 4 of Intel's processors.
fn cache(place: &Place, sub: u32) -> [u32; 4] {
    let (kind, level, ways, sets) = match sub {
        0 => (1, 1, 8, 64),
        1 => (2, 1, 8, 64),
        2 => (3, 2, 8, 1024),
        3 => (3, 3, 16, 16384),
        _ => return [0; 4],
    };
    // Self-initialising; 64-byte lines, one partition.
    [place.cache_eax(1 << 8 | level << 5 | kind), (ways - 1) << 22 | 63, sets - 1, 0]
}

/// Executes CPUID.
pub fn cpuid(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let [eax, ebx, ecx, edx] = leaves(cpu, cpu.regs[0] as u32, cpu.regs[1] as u32);
    cpu.regs[0] = u64::from(eax);
    cpu.regs[3] = u64::from(ebx);
    cpu.regs[1] = u64::from(ecx);
    cpu.regs[2] = u64::from(edx);
    Ok(())
}
