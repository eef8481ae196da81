//! The software TLB's fast path: one compare and one add from a linear address to a host pointer.
//!
//! A special page (MMIO, ROM when written, a page with decoded code when written, a page whose accessed or dirty
//! bit must still be set, a page with a watchpoint) has a tag that never matches, so all special handling lives in
//! `mmu`.
#![allow(unsafe_code)]

use super::cpu::{Cpu, Fault};

/// Entries of one bank.
pub const TLB_ENTRIES: usize = 1024;
/// Number of banks.
pub const TLB_BANKS: usize = 3;

/// A bank of the TLB: the privilege that its translations were made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bank {
    /// CPL 3.
    User,
    /// CPL 0 to 2, where SMAP is not in force.
    Supervisor,
    /// CPL 0 to 2 with SMAP and EFLAGS.AC = 1.
    SupervisorAc,
}
/// A tag that equals no page address.
pub const NO_TAG: u64 = u64::MAX;

/// One translation. Tags are page-aligned linear addresses.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct TlbEntry {
    /// Page that may be read through `addend`.
    pub tag_read: u64,
    /// Page that may be written through `addend`.
    pub tag_write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Guest-physical page address; the bits below it belong to `tlb`.
    pub gpa: u64,
}

impl TlbEntry {
    /// An entry that matches nothing.
    pub const EMPTY: TlbEntry = TlbEntry { tag_read: NO_TAG, tag_write: NO_TAG, addend: 0, gpa: 0 };
}

/// The TLB of one vCPU.
pub struct Tlb {
    /// Direct-mapped by bits 21:12 of the linear address.
    pub banks: [[TlbEntry; TLB_ENTRIES]; TLB_BANKS],
    /// State of the slow path: lists of used entries, a cache of page-directory entries.
    pub(super) side: super::tlb::Side,
}

/// An operand in memory: unsigned integers of 1 to 16 bytes.
pub trait Operand: Copy {}
impl Operand for u8 {}
impl Operand for u16 {}
impl Operand for u32 {}
impl Operand for u64 {}
impl Operand for u128 {}

const PAGE_MASK: u64 = !0xfff;

impl Cpu {
    #[inline(always)]
    fn tlb_entry(&self, addr: u64) -> &TlbEntry {
        let index = (addr >> 12) as usize & (TLB_ENTRIES - 1);
        &self.tlb.banks[self.bank as usize][index]
    }

    /// Returns the host address for reading `size_of::<T>()` bytes at linear address `addr`, if the TLB has it.
    #[inline(always)]
    pub fn fast_read_ptr<T: Operand>(&self, addr: u64) -> Option<*const T> {
        let entry = self.tlb_entry(addr);
        let last = addr.wrapping_add(size_of::<T>() as u64 - 1);
        // The entry is that of the first byte. An access across pages ends in another page and so never matches.
        if last & PAGE_MASK == entry.tag_read { Some(addr.wrapping_add(entry.addend) as *const T) } else { None }
    }

    /// Returns the host address for reading and writing, if the TLB has it.
    #[inline(always)]
    pub fn fast_write_ptr<T: Operand>(&self, addr: u64) -> Option<*mut T> {
        let entry = self.tlb_entry(addr);
        let last = addr.wrapping_add(size_of::<T>() as u64 - 1);
        if last & PAGE_MASK == entry.tag_write { Some(addr.wrapping_add(entry.addend) as *mut T) } else { None }
    }

    /// Loads `T` (little-endian) from linear address `addr` with the present privilege. Fills the TLB on a miss, and
    /// handles MMIO and accesses across pages.
    #[inline(always)]
    pub fn load<T: Operand + SlowOperand>(&mut self, addr: u64) -> Result<T, Fault> {
        match self.fast_read_ptr::<T>(addr) {
            // SAFETY: a TLB hit means that all bytes lie in one mapped page of guest memory.
            Some(ptr) => Ok(unsafe { ptr.read_unaligned() }),
            None => T::load_slow(self, addr),
        }
    }

    /// Stores `T` to linear address `addr` with the present privilege.
    #[inline(always)]
    pub fn store<T: Operand + SlowOperand>(&mut self, addr: u64, value: T) -> Result<(), Fault> {
        match self.fast_write_ptr::<T>(addr) {
            Some(ptr) => {
                // SAFETY: as in `load`, and the page is writable and holds no decoded code.
                unsafe { ptr.write_unaligned(value) };
                Ok(())
            }
            None => value.store_slow(self, addr),
        }
    }
}

/// The slow path of an access, out of line. `mmu` implements it.
pub trait SlowOperand: Sized {
    /// Translates (filling the TLB where the page is plain memory) and loads; raises #PF and #DB.
    fn load_slow(cpu: &mut Cpu, addr: u64) -> Result<Self, Fault>;
    /// Translates for writing and stores. Tells the block cache when the page holds code.
    fn store_slow(self, cpu: &mut Cpu, addr: u64) -> Result<(), Fault>;
}
