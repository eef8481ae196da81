//! The map of guest-physical memory: which host memory is where, and what the guest may do with it.

use std::sync::Arc;

use super::{GuestAddr, HostMemory, OutOfRange, PAGE_SIZE};

/// What the guest's accesses to a region do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Loads and stores reach the memory.
    Ram,
    /// Loads reach the memory. Stores go to the bus: to nobody, or to the chip that the memory belongs to, as with flash.
    Rom,
    /// Loads and stores go to the bus, as to flash in command mode. The bytes are kept.
    Device,
}

/// A region of guest-physical memory.
#[derive(Clone)]
pub struct Region {
    base: u64,
    len: u64,
    mode: Mode,
    memory: Arc<HostMemory>,
    /// Where the region starts in `memory`.
    offset: u64,
}

impl Region {
    /// Creates a region of `len` bytes at `base` of which the bytes are those of `memory` from `offset`. Those bytes must
    /// not be in another region: what was derived from a page is kept by its guest address.
    ///
    /// All three numbers are multiples of 4096, the bytes lie inside `memory`, and the region ends below 2^64.
    pub fn new(base: GuestAddr, len: u64, mode: Mode, memory: Arc<HostMemory>, offset: u64) -> Result<Region, MapError> {
        let aligned = (base.0 | len | offset) % PAGE_SIZE == 0 && len > 0;
        let inside = offset.checked_add(len).is_some_and(|end| end <= memory.len());
        if !aligned || !inside || base.0.checked_add(len).is_none() {
            return Err(MapError::Shape { base, len });
        }
        Ok(Region { base: base.0, len, mode, memory, offset })
    }

    /// Returns the first address.
    pub fn base(&self) -> GuestAddr {
        GuestAddr(self.base)
    }
    /// Returns the size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Returns the first address behind the region.
    pub fn end(&self) -> u64 {
        self.base + self.len
    }
    /// Returns what the guest's accesses do.
    pub fn mode(&self) -> Mode {
        self.mode
    }
    /// Returns the host address of the first byte. It is valid as long as a map holds the region.
    pub fn host(&self) -> *mut u8 {
        self.memory.start().wrapping_add(self.offset as usize)
    }

    pub(super) fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// Returns the numbers of the pages that `len` bytes from `offset` in the region touch, in the host memory.
    pub(super) fn pages(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let first = (self.offset + offset) / PAGE_SIZE;
        let end = (self.offset + offset + len).div_ceil(PAGE_SIZE);
        first as usize..end as usize
    }

    /// Returns the guest address of a page of the host memory.
    pub(super) fn address_of(&self, page: usize) -> u64 {
        self.base + (page as u64 * PAGE_SIZE - self.offset)
    }

    fn is(&self, other: &Region) -> bool {
        (self.base, self.len, self.mode, self.offset) == (other.base, other.len, other.mode, other.offset)
            && Arc::ptr_eq(&self.memory, &other.memory)
    }
}

/// The error of a change of the map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A region is not whole pages of its memory and of the address space.
    #[error("{len} bytes at {base} are no whole pages of memory")]
    Shape {
        /// First byte.
        base: GuestAddr,
        /// Bytes.
        len: u64,
    },
    /// There is a region already.
    #[error("there is memory at {at} already")]
    Taken {
        /// First byte of what is there.
        at: GuestAddr,
    },
    /// No region starts at the address.
    #[error("no memory starts at {at}")]
    Missing {
        /// The address.
        at: GuestAddr,
    },
    /// A listener, as the vCPU back end, cannot follow the change.
    #[error("the guest's memory cannot be changed: {0}")]
    Refused(#[from] std::io::Error),
}

/// One page of memory, as the map that it was found in has it.
pub struct Page<'a> {
    region: &'a Region,
    number: usize,
}

impl Page<'_> {
    /// Returns the host address of the page's 4096 bytes, valid as long as the map lives.
    #[inline]
    pub fn host(&self) -> *mut u8 {
        self.region.memory.start().wrapping_add(self.number * PAGE_SIZE as usize)
    }
    /// Returns whether stores of the guest reach the memory.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.region.mode == Mode::Ram
    }
    /// Returns whether the page is watched.
    #[inline]
    pub fn is_watched(&self) -> bool {
        self.region.memory.is_watched(self.number)
    }
    /// Marks the page as written in the log of dirty pages.
    pub fn mark_dirty(&self) {
        self.region.memory.mark_dirty(self.number);
    }
}

/// The regions of guest-physical memory, in order and disjoint. What they leave out is the bus's.
#[derive(Clone, Default)]
pub struct MemoryMap {
    regions: Vec<Region>,
    /// Number of the map among those of a guest: each change makes a greater one.
    pub(super) generation: u64,
}

impl MemoryMap {
    /// Returns the regions, in order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the number of the map: each change of a guest's memory makes a greater one.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds a region.
    pub fn insert(&mut self, region: Region) -> Result<(), MapError> {
        let at = self.regions.partition_point(|other| other.base < region.base);
        let clashes = |other: &&Region| region.base < other.end() && other.base < region.end();
        let neighbours = self.regions[at.saturating_sub(1)..].iter().take(2);
        if let Some(taken) = neighbours.into_iter().find(clashes) {
            return Err(MapError::Taken { at: taken.base() });
        }
        self.regions.insert(at, region);
        Ok(())
    }

    fn index_of(&self, base: GuestAddr) -> Result<usize, MapError> {
        self.regions.iter().position(|region| region.base == base.0).ok_or(MapError::Missing { at: base })
    }

    /// Takes out the region that starts at `base`, and returns it.
    pub fn remove(&mut self, base: GuestAddr) -> Result<Region, MapError> {
        Ok(self.regions.remove(self.index_of(base)?))
    }

    /// Changes what accesses to the region that starts at `base` do.
    pub fn set_mode(&mut self, base: GuestAddr, mode: Mode) -> Result<(), MapError> {
        let index = self.index_of(base)?;
        self.regions[index].mode = mode;
        Ok(())
    }

    /// Returns the regions of this map that `other` has not, or has in another way.
    pub fn without(&self, other: &MemoryMap) -> Vec<Region> {
        self.regions.iter().filter(|region| !other.regions.iter().any(|kept| kept.is(region))).cloned().collect()
    }

    /// Returns the memory of mode RAM or ROM that holds `addr`.
    #[inline]
    fn region(&self, addr: u64) -> Option<&Region> {
        self.regions.iter().find(|region| addr.wrapping_sub(region.base) < region.len && region.mode != Mode::Device)
    }

    /// Returns the page that holds `addr`. `None` where loads go to the bus.
    #[inline]
    pub fn page(&self, addr: GuestAddr) -> Option<Page<'_>> {
        let region = self.region(addr.0)?;
        Some(Page { region, number: ((region.offset + (addr.0 - region.base)) / PAGE_SIZE) as usize })
    }

    /// Starts or ends watching the page that holds `addr`. Outside of memory this does nothing.
    pub fn watch(&self, addr: GuestAddr, on: bool) {
        if let Some(page) = self.page(addr) {
            page.region.memory.watch(page.number, on);
        }
    }

    /// Returns the region that holds all `len` bytes at `addr`, and where in it they start.
    #[inline]
    pub(super) fn span(&self, addr: GuestAddr, len: usize) -> Result<(&Region, u64), OutOfRange> {
        let region = self.region(addr.0).ok_or(OutOfRange { addr, len })?;
        let offset = addr.0 - region.base;
        if len as u64 > region.len - offset {
            return Err(OutOfRange { addr, len });
        }
        Ok((region, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(base: u64, pages: u64) -> Region {
        let memory = Arc::new(HostMemory::anonymous(pages * PAGE_SIZE).unwrap());
        Region::new(GuestAddr(base), pages * PAGE_SIZE, Mode::Ram, memory, 0).unwrap()
    }

    #[test]
    fn regions_are_whole_pages_of_their_memory() {
        let memory = Arc::new(HostMemory::anonymous(4 * PAGE_SIZE).unwrap());
        let new = |base, len, offset| Region::new(GuestAddr(base), len, Mode::Ram, memory.clone(), offset).is_ok();
        assert!(new(0x1000, 0x1000, 0x3000));
        for (base, len, offset) in [
            (0x10, 0x1000, 0),
            (0x1000, 0x10, 0),
            (0x1000, 0x1000, 0x10),
            (0x1000, 0, 0),
            (0x1000, 0x1000, 0x4000),
            (0x1000, 0x5000, 0),
            (0x1000, !0xfff, 0x1000),
            (!0xfff, 0x1000, 0),
        ] {
            assert!(!new(base, len, offset), "{base:#x} {len:#x} {offset:#x}");
        }
    }

    #[test]
    fn regions_do_not_overlap_and_are_found_by_their_addresses() {
        let mut map = MemoryMap::default();
        for base in [0x8000, 0, 0x4000] {
            map.insert(region(base, 2)).unwrap();
        }
        assert_eq!(map.regions().iter().map(|r| r.base).collect::<Vec<_>>(), [0, 0x4000, 0x8000]);
        for (base, pages, taken) in [(0x1000, 1, 0), (0x2000, 3, 0x4000), (0x5000, 8, 0x4000), (0x7000, 2, 0x8000)] {
            match map.insert(region(base, pages)) {
                Err(MapError::Taken { at }) => assert_eq!(at.0, taken),
                other => panic!("{base:#x}: {other:?}"),
            }
        }
        map.insert(region(0x2000, 2)).unwrap();
        let at = |addr| map.page(GuestAddr(addr)).map(|page| page.region.base);
        assert_eq!((at(0x1fff), at(0x2000), at(0x6000), at(u64::MAX)), (Some(0), Some(0x2000), None, None));
    }

    #[test]
    fn what_changed_between_two_maps_is_told() {
        let mut old = MemoryMap::default();
        for base in [0, 0x4000, 0x8000] {
            old.insert(region(base, 2)).unwrap();
        }
        let mut new = old.clone();
        new.set_mode(GuestAddr(0x4000), Mode::Rom).unwrap();
        let moved = new.remove(GuestAddr(0x8000)).unwrap();
        new.insert(Region { base: 0xc000, ..moved }).unwrap();
        let bases = |regions: Vec<Region>| regions.iter().map(|r| r.base).collect::<Vec<_>>();
        assert_eq!(bases(old.without(&new)), [0x4000, 0x8000]);
        assert_eq!(bases(new.without(&old)), [0x4000, 0xc000]);
        assert!(matches!(new.remove(GuestAddr(0x8000)), Err(MapError::Missing { .. })));
        assert!(matches!(new.set_mode(GuestAddr(0x1000), Mode::Rom), Err(MapError::Missing { .. })));
    }

    #[test]
    fn memory_in_device_mode_is_the_bus_s_and_keeps_its_bytes() {
        let mut map = MemoryMap::default();
        map.insert(region(0, 2)).unwrap();
        map.set_mode(GuestAddr(0), Mode::Device).unwrap();
        assert!(map.page(GuestAddr(0x1000)).is_none() && map.span(GuestAddr(0), 1).is_err());
        map.set_mode(GuestAddr(0), Mode::Rom).unwrap();
        assert!(!map.page(GuestAddr(0x1000)).unwrap().is_writable());
    }
}
