//! Bits of the control registers, EFER and DR6/DR7, and the numbers of the model-specific registers.
//!
//! SDM vol. 3 section 2.5 (control registers), 17.2 (debug registers), vol. 4 (MSRs); APM vol. 2 section 3.1; the KVM
//! numbers are those of Linux' documentation `virt/kvm/x86/msr.rst`.
#![allow(missing_docs)]

pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Bits that can be set.
    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

pub mod cr4 {
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    /// Bits that this processor has (no VME, PVI, UMIP, LA57, PCID, PKE).
    pub const ALL: u64 = TSD | DE | PSE | PAE | MCE | PGE | PCE | OSFXSR | OSXMMEXCPT | FSGSBASE | OSXSAVE | SMEP | SMAP;
    /// Bits whose change drops all translations.
    pub const PAGING: u64 = PSE | PAE | PGE | SMEP | SMAP;
}

pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    /// Automatic IBRS: it can be set and has no effect, since nothing speculates here.
    pub const AIBRSE: u64 = 1 << 21;
    /// Bits that software may set.
    pub const ALL: u64 = SCE | LME | NXE | AIBRSE;
}

pub mod debug_ctl {
    /// Records branches and interrupts.
    pub const LBR: u64 = 1 << 0;
    /// Makes TF trap after branches only.
    pub const BTF: u64 = 1 << 1;
    /// Bits that are cleared when #DB is delivered.
    pub const UNTIL_DEBUG: u64 = LBR | BTF;
    /// All bits, with the four that select what the performance-monitor pins show.
    pub const ALL: u64 = 0x3f;
}

pub mod dr {
    /// Access to a debug register. In DR6 bit n is breakpoint n.
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    /// The task switched to has the T flag set in its TSS.
    pub const BT: u64 = 1 << 15;
    /// Breakpoints 0 to 3.
    pub const BREAKPOINTS: u64 = 0xf;
    /// Bits of DR6 that read as one.
    pub const DR6_FIXED: u64 = 0xffff_0ff0;
    /// Bits of DR6 that can be written.
    pub const DR6_MASK: u64 = 0xe00f;
    /// Bits of DR7 that a task switch clears: the local enables and LE.
    pub const DR7_LOCAL: u64 = 0x155;
    /// Bit of DR7 that reads as one.
    pub const DR7_FIXED: u64 = 0x400;
    pub const DR7_GD: u64 = 1 << 13;
    /// Bits of DR7 that can be written.
    pub const DR7_MASK: u64 = 0xffff_23ff;
}

/// Bits of a descriptor's attributes as in [`Segment::attr`](super::super::cpu::Segment).
pub mod attr {
    pub const ACCESSED: u16 = 1 << 0;
    /// Data: writable; code: readable.
    pub const RW: u16 = 1 << 1;
    /// Data: expand-down; code: conforming.
    pub const DC: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const L: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const G: u16 = 1 << 15;
}

pub mod msr {
    pub const TSC: u32 = 0x10;
    pub const KVM_WALL_CLOCK_OLD: u32 = 0x11;
    pub const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUG_CTL: u32 = 0x1d9;
    /// LastBranchFromIP, LastBranchToIP, LastIntFromIP, LastIntToIP.
    pub const LAST_BRANCH_FIRST: u32 = 0x1db;
    pub const LAST_BRANCH_LAST: u32 = 0x1de;
    pub const MTRR_PHYS_FIRST: u32 = 0x200;
    pub const MTRR_PHYS_LAST: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K_0: u32 = 0x258;
    pub const MTRR_FIX16K_1: u32 = 0x259;
    pub const MTRR_FIX4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const TOP_MEM: u32 = 0xc001_001a;
    pub const TOP_MEM2: u32 = 0xc001_001d;
    pub const INT_PENDING: u32 = 0xc001_0055;
    pub const MMIO_CONF_BASE: u32 = 0xc001_0058;
    pub const PSTATE_CURRENT_LIMIT: u32 = 0xc001_0061;
    pub const OSVW_ID_LENGTH: u32 = 0xc001_0140;
    pub const OSVW_STATUS: u32 = 0xc001_0141;
    pub const IC_CFG: u32 = 0xc001_1021;
    pub const DC_CFG: u32 = 0xc001_1022;
    pub const BU_CFG: u32 = 0xc001_1023;
    pub const DE_CFG: u32 = 0xc001_1029;
    pub const BU_CFG2: u32 = 0xc001_102a;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const PATCH_LOADER: u32 = 0xc001_0020;
    /// Four event selects, then four counters.
    pub const PERF_FIRST: u32 = 0xc001_0000;
    pub const PERF_LAST: u32 = 0xc001_0007;
    pub const IORR_FIRST: u32 = 0xc001_0016;
    pub const IORR_LAST: u32 = 0xc001_0019;
    pub const MC_EXCEPTION_REDIRECT: u32 = 0xc001_0022;
    pub const PROCESSOR_NAME_FIRST: u32 = 0xc001_0030;
    pub const PROCESSOR_NAME_LAST: u32 = 0xc001_0035;
    pub const IO_TRAP_FIRST: u32 = 0xc001_0050;
    pub const IO_TRAP_LAST: u32 = 0xc001_0054;
    pub const SMI_TRIGGER: u32 = 0xc001_0056;
    pub const CPU_WATCHDOG: u32 = 0xc001_0074;
    pub const SMM_BASE: u32 = 0xc001_0111;
    pub const SMM_ADDR: u32 = 0xc001_0112;
    pub const SMM_MASK: u32 = 0xc001_0113;
    pub const VM_CR: u32 = 0xc001_0114;
    pub const IGNNE: u32 = 0xc001_0115;
    pub const LS_CFG: u32 = 0xc001_1020;
    pub const FP_CFG: u32 = 0xc001_1028;
    pub const L2_PREFETCH_CFG: u32 = 0xc001_102b;
    pub const EX_CFG: u32 = 0xc001_102c;
}
