//! The block cache.

use super::cpu::Cpu;

/// The blocks decoded so far.
pub struct BlockCache {}

/// The vCPU stored to `len` bytes at guest-physical `gpa`, in a watched page (never across pages): the page's blocks
/// are dropped, and the page is no longer watched once it has none. The caller leaves the chain after its op.
pub fn note_store(cpu: &mut Cpu, gpa: u64, len: u64) {
    let _ = (cpu, gpa, len);
}

/// Translations of this vCPU were dropped: of all pages, or of the one at linear address `page`. Cached links from
/// linear addresses to blocks go.
pub fn forget_jumps(cpu: &mut Cpu, page: Option<u64>) {
    let _ = (cpu, page);
}
