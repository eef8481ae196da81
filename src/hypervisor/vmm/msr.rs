//! Registers that the kernel leaves to its user, and that guests read or write without asking CPUID.
//!
//! A guest finds what they are on a machine without the feature; a write to them changes nothing. Any other register raises
//! a general-protection fault, as on a processor that has it not.
//!
//! Sources: SDM vol. 4; BIOS and Kernel Developer's Guides of AMD, families 10h to 16h.

/// IA32_PLATFORM_ID, IA32_BIOS_SIGN_ID: no update of the microcode.
const PLATFORM_ID: u32 = 0x17;
const BIOS_SIGN_ID: u32 = 0x8b;
/// IA32_FEATURE_CONTROL: locked, with nothing on.
const FEATURE_CONTROL: u32 = 0x3a;
/// MISC_FEATURE_ENABLES.
const MISC_FEATURE_ENABLES: u32 = 0x140;
/// MSR_RAPL_POWER_UNIT with the value of the manual's example, and the counters of energy.
const RAPL_POWER_UNIT: u32 = 0x606;
const ENERGY: [u32; 4] = [0x611, 0x619, 0x639, 0x641];
/// HWCR of AMD: MONITOR and MWAIT off, the TSC counts at a fixed rate.
const HWCR: u32 = 0xc001_0015;
/// NB_CFG, LS_CFG and IC_CFG of AMD.
const CONFIGURATION: [u32; 3] = [0xc001_001f, 0xc001_1020, 0xc001_1021];
/// AMD: performance events and counters, SMM's address and mask, P-states.
const COUNTERS: std::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
const SMM: [u32; 2] = [0xc001_0112, 0xc001_0113];
const P_STATES: std::ops::RangeInclusive<u32> = 0xc001_0061..=0xc001_0064;
/// P-state control.
const P_STATE_CONTROL: u32 = 0xc001_0062;
/// DE_CFG of AMD families 10h and 12h, with the work-around for erratum 721 in force.
const DE_CFG: u32 = 0xc001_1029;

/// Returns what `rdmsr` gives. `None` for a general-protection fault.
pub fn read(number: u32) -> Option<u64> {
    Some(match number {
        PLATFORM_ID | BIOS_SIGN_ID | MISC_FEATURE_ENABLES => 0,
        FEATURE_CONTROL | DE_CFG => 1,
        RAPL_POWER_UNIT => 0x000a_1003,
        HWCR => 1 << 24 | 1 << 9 | 1 << 4,
        _ if is_zero(number) => 0,
        _ => return None,
    })
}

fn is_zero(number: u32) -> bool {
    ENERGY.contains(&number)
        || CONFIGURATION.contains(&number)
        || SMM.contains(&number)
        || COUNTERS.contains(&number)
        || P_STATES.contains(&number)
}

/// Returns whether `wrmsr` is ignored. Otherwise it raises a general-protection fault.
pub fn ignores_write(number: u32) -> bool {
    matches!(number, HWCR | P_STATE_CONTROL | BIOS_SIGN_ID) || CONFIGURATION.contains(&number) || COUNTERS.contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_that_no_processor_has_faults() {
        assert_eq!((read(0x8b), read(0x3a), read(0xc001_0015)), (Some(0), Some(1), Some(0x0100_0210)));
        assert_eq!((read(0x611), read(0xc001_0007), read(0xc001_0063)), (Some(0), Some(0), Some(0)));
        for number in [0, 0x480, 0x4b56_4d00, 0xc001_0114, u32::MAX] {
            assert_eq!((read(number), ignores_write(number)), (None, false), "{number:#x}");
        }
        assert!(ignores_write(0xc001_1020) && ignores_write(0xc001_0004));
    }
}
