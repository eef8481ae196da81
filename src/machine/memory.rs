//! Layout of guest RAM on the board.

use std::io;
use std::sync::Arc;

use super::layout;
use crate::hypervisor::backend::{OpenBackend, RamPiece};
use crate::hypervisor::memory::{GuestAddr, GuestMemory, HostMemory, MapError, MemoryMap, Mode, Region};

/// Creates RAM of `bytes` bytes (a multiple of 4096, at least 2 MiB): as much as fits below the PCI hole, the rest
/// above it.
///
/// Conventional memory ends at the display adapter's hole, as on a PC. All of it is one reservation of the host in which
/// a byte's offset is its guest address, or its guest address less the PCI hole. So guest and host address are equal
/// modulo a large page, and the host can back the guest with large pages.
pub fn build(bytes: u64) -> io::Result<GuestMemory> {
    let memory = Arc::new(HostMemory::anonymous(bytes)?);
    of(pieces(bytes).map(|piece| (piece, Arc::clone(&memory), piece.offset)))
}

/// Creates the same RAM for a machine that `backend` runs. A back end whose kernel half owns the RAM hands each piece over.
pub fn build_for(bytes: u64, backend: &mut dyn OpenBackend) -> io::Result<GuestMemory> {
    let pieces: Vec<RamPiece> = pieces(bytes).collect();
    match backend.ram(bytes, &pieces)? {
        Some(lent) => of(pieces.into_iter().zip(lent).map(|(piece, memory)| (piece, memory, 0))),
        None => build(bytes),
    }
}

/// Returns the pieces of RAM of `bytes` bytes.
fn pieces(bytes: u64) -> impl Iterator<Item = RamPiece> {
    let low_end = bytes.min(layout::LOW_RAM_END);
    let (hole, behind) = layout::VGA_HOLE;
    let piece = |(base, len, offset)| RamPiece { base: GuestAddr(base), len, offset };
    let all = [
        (0, hole, 0),
        (behind, low_end.saturating_sub(behind), behind),
        (layout::HIGH_RAM_BASE, bytes.saturating_sub(low_end), low_end),
    ];
    all.into_iter().map(piece).filter(|piece| piece.len > 0)
}

/// Makes the map of pieces, each with its memory and where it starts there.
fn of(pieces: impl Iterator<Item = (RamPiece, Arc<HostMemory>, u64)>) -> io::Result<GuestMemory> {
    let mut map = MemoryMap::default();
    let mut insert =
        |(piece, memory, offset): (RamPiece, _, _)| map.insert(Region::new(piece.base, piece.len, Mode::Ram, memory, offset)?);
    for piece in pieces {
        insert(piece).map_err(|error| match error {
            MapError::Refused(error) => error,
            shape => io::Error::new(io::ErrorKind::InvalidInput, shape),
        })?;
    }
    Ok(GuestMemory::new(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_host_addresses_are_equal_modulo_a_large_page() {
        for bytes in [2 << 20, 64 << 20, layout::LOW_RAM_END, layout::LOW_RAM_END + (3 << 20)] {
            let map = build(bytes).unwrap().map();
            let sum: u64 = map.regions().iter().map(Region::len).sum();
            assert_eq!(sum, bytes - (layout::VGA_HOLE.1 - layout::VGA_HOLE.0));
            for region in map.regions() {
                assert_eq!((region.host().addr() as u64).wrapping_sub(region.base().0) % (2 << 20), 0, "{}", region.base());
            }
        }
    }
}
