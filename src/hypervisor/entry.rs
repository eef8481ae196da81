//! The state in which a loader enters the guest, the same for every back end: registers, and the memory types that
//! firmware would have set.
//!
//! Sources: Linux' boot protocol and PVH for the registers; SDM vol. 3 section 11.11 for the memory types.

use super::backend::BootState;

/// CR0 bits.
const PE: u64 = 1 << 0;
const ET: u64 = 1 << 4;
const PG: u64 = 1 << 31;
/// CR4.PAE.
const PAE: u64 = 1 << 5;
/// IA32_EFER bits.
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;

/// A segment register's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// The visible part.
    pub selector: u16,
    /// Bits 47:40 and 55:52 of the descriptor, as bits 7:0 and 15:12.
    pub attributes: u16,
    /// Last byte.
    pub limit: u32,
    /// First byte.
    pub base: u64,
}

/// Registers of vCPU 0 where a loader enters the guest. All that is not here is zero, or as after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryState {
    /// Instruction pointer.
    pub rip: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// CS.
    pub code: SegmentState,
    /// DS, ES, FS, GS and SS.
    pub data: SegmentState,
    /// TR.
    pub task: SegmentState,
    /// First byte of the GDT.
    pub gdt_base: u64,
    /// Last byte of the GDT.
    pub gdt_limit: u16,
}

impl EntryState {
    /// Returns the state for `boot`. `None` after power-on: then nothing is set after the reset.
    pub fn of(boot: &BootState) -> Option<EntryState> {
        let flat = |selector, attributes| SegmentState { selector, attributes, limit: u32::MAX, base: 0 };
        let enter = |code, gdt_base, gdt_limit| EntryState {
            rip: 0,
            rax: 0,
            rbx: 0,
            rsi: 0,
            cr0: PE | ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            code: flat(0x10, code),
            data: flat(0x18, 0xc093),
            task: SegmentState { selector: 0, attributes: 0x8b, limit: 0x67, base: 0 },
            gdt_base,
            gdt_limit,
        };
        match *boot {
            BootState::Reset => None,
            BootState::Protected { eip, eax, ebx, esi, gdt_base, gdt_limit } => Some(EntryState {
                rip: eip.into(),
                rax: eax.into(),
                rbx: ebx.into(),
                rsi: esi.into(),
                ..enter(0xc09b, gdt_base, gdt_limit)
            }),
            BootState::Long { rip, rsi, cr3, gdt_base, gdt_limit } => Some(EntryState {
                rip,
                rsi,
                cr3,
                cr0: PE | ET | PG,
                cr4: PAE,
                efer: LME | LMA,
                ..enter(0xa09b, gdt_base, gdt_limit)
            }),
        }
    }
}

const UNCACHEABLE: u8 = 0;
const WRITE_BACK: u8 = 6;
/// Valid bit in the mask of a variable range.
const VALID: u64 = 1 << 11;
/// Enable bits of IA32_MTRR_DEF_TYPE: the fixed ranges, all.
const FIXED_ENABLE: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;

/// The memory-type range registers as firmware leaves them. With all of them disabled, a system treats all memory as
/// uncacheable and does not use the page-attribute table either (SDM vol. 3 section 11.11; Linux, `pat_bp_init`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryTypes {
    /// The eleven registers of the fixed ranges, in the order of their addresses.
    pub fixed: [u64; 11],
    /// Base and mask of each variable range.
    pub variable: [u64; 16],
    /// IA32_MTRR_DEF_TYPE.
    pub default: u64,
}

impl MemoryTypes {
    /// Returns the registers with which all memory is write-back but for the devices' `windows`, see
    /// [`VcpuSetup::device_windows`](super::backend::VcpuSetup), on a processor with `physical_bits` of address.
    pub fn around(windows: &[(u64, u64)], physical_bits: u32) -> MemoryTypes {
        let (mut fixed, mut variable, mut used) = ([[WRITE_BACK; 8]; 11], [0; 16], 0);
        for &(base, bytes) in windows {
            if base < 0x10_0000 {
                for (i, kind) in fixed.iter_mut().flatten().enumerate() {
                    if (base..base + bytes).contains(&fixed_range_start(i as u64)) {
                        *kind = UNCACHEABLE;
                    }
                }
            } else if let Some([range, mask]) = variable.get_mut(used..used + 2) {
                *range = base | u64::from(UNCACHEABLE);
                *mask = !(bytes - 1) & ((1 << physical_bits) - 1) | VALID;
                used += 2;
            }
        }
        let default = ENABLE | FIXED_ENABLE | u64::from(WRITE_BACK);
        MemoryTypes { fixed: fixed.map(u64::from_le_bytes), variable, default }
    }
}

/// Returns the first address of the fixed range that byte `i` of the eleven registers describes (SDM vol. 3 table
/// 11-9).
fn fixed_range_start(i: u64) -> u64 {
    match i {
        0..8 => i << 16,
        8..24 => 0x8_0000 + ((i - 8) << 14),
        _ => 0xc_0000 + ((i - 24) << 12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_enters_with_flat_segments_and_its_registers() {
        assert_eq!(EntryState::of(&BootState::Reset), None);
        let boot = BootState::Protected { eip: 1, eax: 2, ebx: 3, esi: 4, gdt_base: 0x500, gdt_limit: 31 };
        let state = EntryState::of(&boot).unwrap();
        assert_eq!((state.rip, state.rax, state.rbx, state.rsi), (1, 2, 3, 4));
        assert_eq!((state.cr0, state.cr4, state.efer, state.code.attributes), (PE | ET, 0, 0, 0xc09b));
        let boot = BootState::Long { rip: 1, rsi: 2, cr3: 0x9000, gdt_base: 0x500, gdt_limit: 31 };
        let state = EntryState::of(&boot).unwrap();
        assert_eq!((state.rip, state.rsi, state.cr3, state.rax), (1, 2, 0x9000, 0));
        assert_eq!((state.cr0, state.cr4, state.efer), (PE | ET | PG, PAE, LME | LMA));
        assert_eq!((state.code.attributes, state.data.limit), (0xa09b, u32::MAX));
    }

    #[test]
    fn memory_is_write_back_but_for_the_windows() {
        let types = MemoryTypes::around(&[(0xa_0000, 0x2_0000), (3 << 30, 1 << 30)], 40);
        let all = u64::from_le_bytes([WRITE_BACK; 8]);
        assert_eq!(types.fixed, [all, all, 0, all, all, all, all, all, all, all, all]);
        assert_eq!(types.variable[..4], [3 << 30, 0xff_c000_0800, 0, 0]);
        assert_eq!(types.default, 0xc06);
    }
}
