//! Layout of guest RAM on the board.

use super::layout;
use crate::hypervisor::memory::{GuestAddr, GuestMemory};

/// Creates RAM of `bytes` bytes (a multiple of 4096, at least 2 MiB): as much as fits below the PCI hole, the rest
/// above it.
///
/// Conventional memory ends at the display adapter's hole, as on a PC.
pub fn build(bytes: u64) -> std::io::Result<GuestMemory> {
    let low_end = bytes.min(layout::LOW_RAM_END);
    let mut regions = vec![
        (GuestAddr(0), layout::VGA_HOLE.0, true),
        (GuestAddr(layout::VGA_HOLE.1), low_end.saturating_sub(layout::VGA_HOLE.1), true),
    ];
    if bytes > low_end {
        regions.push((GuestAddr(layout::HIGH_RAM_BASE), bytes - low_end, true));
    }
    GuestMemory::new(&regions)
}
