//! Guest memory: a guest-physical address space whose map may change while the machine runs.
//!
//! [`HostMemory`] is where bytes come from, [`MemoryMap`] says where they are for the guest, and [`GuestMemory`] is the
//! present map with everything that reaches the bytes: devices, loaders, file I/O. A change makes a new map; who still
//! uses the old one keeps its bytes alive. [`MapListener`]s, as the slots of a kernel's hypervisor, follow each change
//! before it counts. The software CPU works on a map of its own and looks at [`GuestMemory::generation`] instead, where
//! its chains of code end.
//!
//! No Rust reference into guest memory is ever made: the guest writes to it while we read. All access goes through raw,
//! bounds-checked copies. A page may be *watched*: the software CPU watches the pages that it has decoded code from. A
//! write to a watched page through this type is recorded, so that the watcher can drop what it derived from the page.
//! While writes are *logged*, every writer marks the pages that it wrote: [`GuestMemory::start_dirty_log`].
//!
//! **Hostile guest**: every address is checked against the map; an access outside is an `OutOfRange` error, and so is a
//! device's write to ROM.
#![allow(unsafe_code)]

mod host;
mod io;
mod map;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;

pub use self::host::HostMemory;
#[cfg(target_os = "linux")]
pub use self::io::IoVectors;
pub use self::map::{MapError, MemoryMap, Mode, Page, Region};

/// Bytes in a guest page, the unit of maps, of watching and of the log of dirty pages.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GuestAddr(pub u64);

impl GuestAddr {
    /// Returns the address `bytes` further on; `None` where it would leave the 64-bit space.
    pub fn checked_add(self, bytes: u64) -> Option<GuestAddr> {
        self.0.checked_add(bytes).map(GuestAddr)
    }
}

impl fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The error for an access that touches bytes that are not guest memory, or a device's write to ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest address {addr} with {len} bytes is outside guest memory")]
pub struct OutOfRange {
    /// First byte of the access.
    pub addr: GuestAddr,
    /// Bytes of the access.
    pub len: usize,
}

/// A part of a machine that must follow changes of the map, as the memory slots of KVM.
pub trait MapListener: Send + Sync {
    /// Follows the change from `old` to `new` before it counts, or says why it cannot; then `old` stays. Is called again
    /// with the two exchanged if another listener refuses. Must not change the map itself.
    fn map_changes(&self, old: &MemoryMap, new: &MemoryMap) -> std::io::Result<()>;
}

/// The memory of a guest. A clone shares the same memory.
#[derive(Clone)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

struct Inner {
    map: ArcSwap<MemoryMap>,
    /// The number of `map`, for those who ask often.
    generation: AtomicU64,
    /// Its lock is held while the map changes and while the log of dirty pages starts, ends or is taken.
    listeners: Mutex<Vec<Arc<dyn MapListener>>>,
    /// Writes are logged.
    logging: AtomicBool,
    /// Set when a watched page was written through this type; cleared by `take_watch_hits`.
    hit: AtomicBool,
    hits: Mutex<Vec<u64>>,
}

impl GuestMemory {
    /// Creates the memory of a guest with `map`.
    pub fn new(map: MemoryMap) -> GuestMemory {
        GuestMemory {
            inner: Arc::new(Inner {
                generation: AtomicU64::new(map.generation),
                map: ArcSwap::from_pointee(map),
                listeners: Mutex::new(Vec::new()),
                logging: AtomicBool::new(false),
                hit: AtomicBool::new(false),
                hits: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Creates memory of the given `(base, bytes, mode)` regions, each anonymous.
    pub fn anonymous(layout: &[(GuestAddr, u64, Mode)]) -> Result<GuestMemory, MapError> {
        let mut map = MemoryMap::default();
        for &(base, len, mode) in layout {
            map.insert(Region::new(base, len, mode, Arc::new(HostMemory::anonymous(len)?), 0)?)?;
        }
        Ok(GuestMemory::new(map))
    }

    /// Returns the present map.
    pub fn map(&self) -> Arc<MemoryMap> {
        self.inner.map.load_full()
    }

    /// Returns the number of the present map. It costs one load. It changes also when the log of dirty pages starts, ends
    /// or is taken.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<dyn MapListener>>> {
        self.inner.listeners.lock().expect("no panic happens under this lock")
    }

    /// Adds a listener, which follows the change from no memory to the present map at once.
    pub fn add_listener(&self, listener: Arc<dyn MapListener>) -> std::io::Result<()> {
        let mut listeners = self.listeners();
        listener.map_changes(&MemoryMap::default(), &self.map())?;
        listeners.push(listener);
        Ok(())
    }

    /// Changes the map: `change` gets a copy of it, which becomes the map once it returns and all listeners followed. If
    /// one of them fails, the map stays as it is.
    ///
    /// Nobody begins an access by the old map once this returns, except for vCPUs of the software CPU, which take the new
    /// one where they end a chain of code.
    pub fn change<T>(&self, change: impl FnOnce(&mut MemoryMap) -> Result<T, MapError>) -> Result<T, MapError> {
        let listeners = self.listeners();
        let old = self.map();
        let mut new = (*old).clone();
        let value = change(&mut new)?;
        for (told, listener) in listeners.iter().enumerate() {
            if let Err(error) = listener.map_changes(&old, &new) {
                for listener in listeners[..told].iter().rev() {
                    let _ = listener.map_changes(&new, &old);
                }
                return Err(error.into());
            }
        }
        if self.is_logging() {
            for region in new.without(&old) {
                region.pages(0, region.len()).for_each(|page| region.memory().mark_dirty(page));
            }
        }
        self.publish(&listeners, new);
        Ok(value)
    }

    /// Makes `map` the present one, with a new number.
    fn publish(&self, _: &MutexGuard<'_, Vec<Arc<dyn MapListener>>>, mut map: MemoryMap) {
        map.generation = self.generation() + 1;
        let generation = map.generation;
        self.inner.map.store(Arc::new(map));
        self.inner.generation.store(generation, Ordering::Release);
    }

    /// Returns whether all `len` bytes at `addr` are memory of one region.
    pub fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.inner.map.load().span(addr, len).is_ok())
    }

    /// Returns whether all `len` bytes at `addr` are memory of one region that devices may write to.
    pub fn is_writable(&self, addr: GuestAddr, len: u64) -> bool {
        let map = self.inner.map.load();
        usize::try_from(len).is_ok_and(|len| map.span(addr, len).is_ok_and(|(region, _)| region.mode() == Mode::Ram))
    }

    /// Starts the log of dirty pages, empty. From now on every writer (vCPUs and devices) marks the pages that it wrote.
    pub fn start_dirty_log(&self) {
        let listeners = self.listeners();
        let map = self.map();
        take_marks(&map);
        self.inner.logging.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // vCPUs of the software CPU must find out that their writes are logged.
        self.publish(&listeners, (*map).clone());
    }

    /// Takes the pages that were written since the log started or was taken last, as disjoint `(base, bytes)`, in order.
    ///
    /// A page that is written while this runs is in this answer or in the next. What a vCPU wrote last is in the answer
    /// once it has stopped.
    pub fn take_dirty(&self) -> Vec<(GuestAddr, u64)> {
        let listeners = self.listeners();
        let map = self.map();
        let dirty = take_marks(&map);
        // A writer that found its page marked still has its bytes read by the caller: see `note_write`.
        fence(Ordering::SeqCst);
        // vCPUs of the software CPU must mark the pages again that they write next.
        self.publish(&listeners, (*map).clone());
        dirty
    }

    /// Ends the log of dirty pages.
    pub fn stop_dirty_log(&self) {
        let listeners = self.listeners();
        self.inner.logging.store(false, Ordering::SeqCst);
        self.publish(&listeners, (*self.map()).clone());
    }

    /// Returns whether writes are logged. It costs one relaxed load.
    #[inline]
    pub fn is_logging(&self) -> bool {
        self.inner.logging.load(Ordering::Relaxed)
    }

    /// Copies `buf.len()` bytes from `addr`.
    pub fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let map = self.inner.map.load();
        let host = host_at(map.span(addr, buf.len())?);
        // SAFETY: `span` checked that the bytes are inside the region, whose memory the map keeps; `buf` is ours and does
        // not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(host, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies `buf` to `addr` in RAM, as a device does, and notes the write.
    pub fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), OutOfRange> {
        let map = self.inner.map.load();
        let span = writable(map.span(addr, buf.len())?, buf.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), host_at(span), buf.len()) };
        self.note_write(span, buf.len());
        Ok(())
    }

    /// Copies `buf` to `addr`, in ROM too: what fills a ROM.
    pub fn write_rom(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), OutOfRange> {
        let map = self.inner.map.load();
        let span = map.span(addr, buf.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), host_at(span), buf.len()) };
        self.note_write(span, buf.len());
        Ok(())
    }

    /// Fills `len` bytes at `addr` in RAM with `byte`.
    pub fn fill(&self, addr: GuestAddr, byte: u8, len: usize) -> Result<(), OutOfRange> {
        let map = self.inner.map.load();
        let span = writable(map.span(addr, len)?, len)?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::write_bytes(host_at(span), byte, len) };
        self.note_write(span, len);
        Ok(())
    }

    /// Notes that `len` bytes of a span were written: in the log, and for those who watch. Comes after the write.
    fn note_write(&self, (region, offset): (&Region, u64), len: usize) {
        if len == 0 {
            return;
        }
        // Either a log that starts now sees the bytes, or this sees that it has started.
        fence(Ordering::SeqCst);
        let logging = self.is_logging();
        for page in region.pages(offset, len as u64) {
            if logging {
                region.memory().mark_dirty(page);
            }
            if region.memory().is_watched(page) {
                let mut hits = self.inner.hits.lock().expect("no panic happens under this lock");
                let gpa = region.address_of(page);
                if !hits.contains(&gpa) {
                    hits.push(gpa);
                }
                self.inner.hit.store(true, Ordering::Release);
            }
        }
    }

    /// Returns whether a watched page was written since the last `take_watch_hits`. It costs one relaxed load.
    #[inline]
    pub fn has_watch_hits(&self) -> bool {
        self.inner.hit.load(Ordering::Relaxed)
    }

    /// Takes the guest-physical addresses of the watched pages that were written since the last call.
    pub fn take_watch_hits(&self) -> Vec<u64> {
        let mut hits = self.inner.hits.lock().expect("no panic happens under this lock");
        self.inner.hit.store(false, Ordering::Release);
        std::mem::take(&mut *hits)
    }

    /// Reads a little-endian integer of the size of `T`.
    pub fn read_le<T: LittleEndian>(&self, addr: GuestAddr) -> Result<T, OutOfRange> {
        let mut bytes = [0u8; 8];
        self.read(addr, &mut bytes[..T::BYTES])?;
        Ok(T::from_u64(u64::from_le_bytes(bytes)))
    }

    /// Writes a little-endian integer of the size of `T`.
    pub fn write_le<T: LittleEndian>(&self, addr: GuestAddr, value: T) -> Result<(), OutOfRange> {
        self.write(addr, &value.into_u64().to_le_bytes()[..T::BYTES])
    }

    /// Loads an aligned 16-bit integer with acquire order, for ring indices that the guest's other CPUs write.
    pub fn load_acquire_u16(&self, addr: GuestAddr) -> Result<u16, OutOfRange> {
        let map = self.inner.map.load();
        let host = host_at(map.span(addr, 2)?);
        if addr.0 % 2 != 0 {
            return self.read_le(addr);
        }
        // SAFETY: inside the mapping and aligned; an atomic access to shared bytes is what the guest's CPUs do too.
        let value = unsafe { (*host.cast::<std::sync::atomic::AtomicU16>()).load(Ordering::Acquire) };
        Ok(u16::from_le(value))
    }

    /// Stores an aligned 16-bit integer with release order, for ring indices.
    pub fn store_release_u16(&self, addr: GuestAddr, value: u16) -> Result<(), OutOfRange> {
        let map = self.inner.map.load();
        let span = writable(map.span(addr, 2)?, 2)?;
        if addr.0 % 2 != 0 {
            return self.write_le(addr, value);
        }
        // SAFETY: as in `load_acquire_u16`.
        unsafe { (*host_at(span).cast::<std::sync::atomic::AtomicU16>()).store(value.to_le(), Ordering::Release) };
        self.note_write(span, 2);
        Ok(())
    }
}

/// Returns the host address of the first byte of a span.
fn host_at((region, offset): (&Region, u64)) -> *mut u8 {
    region.host().wrapping_add(offset as usize)
}

/// Refuses a span of `len` bytes that a device may not write to.
fn writable((region, offset): (&Region, u64), len: usize) -> Result<(&Region, u64), OutOfRange> {
    match region.mode() {
        Mode::Ram => Ok((region, offset)),
        Mode::Rom | Mode::Device => Err(OutOfRange { addr: GuestAddr(region.base().0 + offset), len }),
    }
}

/// Clears the marks of dirty pages in all of `map`, and returns the ranges that had them.
fn take_marks(map: &MemoryMap) -> Vec<(GuestAddr, u64)> {
    let mut dirty: Vec<(GuestAddr, u64)> = Vec::new();
    for region in map.regions() {
        region.memory().take_dirty(region.pages(0, region.len()), |page| {
            let gpa = region.address_of(page);
            match dirty.last_mut() {
                Some((base, len)) if base.0 + *len == gpa => *len += PAGE_SIZE,
                _ => dirty.push((GuestAddr(gpa), PAGE_SIZE)),
            }
        });
    }
    dirty
}

/// Integers that can be read from and written to guest memory.
pub trait LittleEndian: Copy {
    /// Bytes of the integer.
    const BYTES: usize;
    /// Takes the integer from the low bytes of `value`.
    fn from_u64(value: u64) -> Self;
    /// Returns the integer, zero-extended.
    fn into_u64(self) -> u64;
}

macro_rules! little_endian {
    ($($t:ty),*) => {$(
        impl LittleEndian for $t {
            const BYTES: usize = std::mem::size_of::<$t>();
            fn from_u64(value: u64) -> Self { value as $t }
            fn into_u64(self) -> u64 { self as u64 }
        }
    )*};
}
little_endian!(u8, u16, u32, u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn two_regions() -> GuestMemory {
        GuestMemory::anonymous(&[(GuestAddr(0), 0x4000, Mode::Ram), (GuestAddr(0x10_0000), 0x2000, Mode::Rom)]).unwrap()
    }

    fn region(base: u64, pages: u64) -> Region {
        let memory = Arc::new(HostMemory::anonymous(pages * PAGE_SIZE).unwrap());
        Region::new(GuestAddr(base), pages * PAGE_SIZE, Mode::Ram, memory, 0).unwrap()
    }

    #[test]
    fn an_access_across_the_end_of_a_region_is_refused() {
        let mem = two_regions();
        assert!(mem.write_le(GuestAddr(0x3ffc), 0u64).is_err());
        assert!(mem.read_le::<u32>(GuestAddr(0x8000)).is_err());
        assert!(mem.read_le::<u32>(GuestAddr(u64::MAX - 1)).is_err());
        mem.write_le(GuestAddr(0x3ff8), 7u64).unwrap();
        assert_eq!(mem.read_le::<u64>(GuestAddr(0x3ff8)).unwrap(), 7);
    }

    #[test]
    fn a_write_to_a_watched_page_is_reported_once() {
        let mem = two_regions();
        mem.map().watch(GuestAddr(0x1000), true);
        mem.write(GuestAddr(0x0ffe), &[1, 2, 3, 4]).unwrap();
        mem.write(GuestAddr(0x1800), &[1]).unwrap();
        assert!(mem.has_watch_hits());
        assert_eq!(mem.take_watch_hits(), vec![0x1000]);
        assert!(!mem.has_watch_hits());
    }

    #[test]
    fn a_device_cannot_write_to_rom_in_any_way() {
        let mem = two_regions();
        let rom = GuestAddr(0x10_0000);
        mem.write_rom(rom, b"firmware").unwrap();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[0xaa; 64]).unwrap();
        assert!(mem.write(rom, b"overwritten").is_err());
        assert!(mem.fill(rom, 0, 8).is_err());
        assert!(mem.write_le(rom, 1u32).is_err());
        assert!(mem.store_release_u16(rom, 1).is_err());
        assert!(mem.read_from_file(&file, 0, rom, 8).is_err());
        assert!(mem.read_vectored_from_file(&file, 0, &[(GuestAddr(0), 8), (rom, 8)]).is_err());
        let mut bytes = [0; 8];
        mem.read(rom, &mut bytes).unwrap();
        assert_eq!(&bytes, b"firmware");
        assert!(!mem.is_writable(rom, 1) && mem.contains(rom, 1) && mem.is_writable(GuestAddr(0x3fff), 1));
        assert!(!mem.is_writable(GuestAddr(0x3fff), 2));
    }

    /// A listener that keeps what it was told as `(gone, come)` and refuses regions at one address.
    struct Listener {
        told: Mutex<Vec<(Vec<u64>, Vec<u64>)>>,
        refused: u64,
    }

    impl MapListener for Listener {
        fn map_changes(&self, old: &MemoryMap, new: &MemoryMap) -> std::io::Result<()> {
            let bases = |regions: Vec<Region>| regions.iter().map(|region| region.base().0).collect::<Vec<_>>();
            let (gone, come) = (bases(old.without(new)), bases(new.without(old)));
            if come.contains(&self.refused) {
                return Err(std::io::Error::other("no slot is free"));
            }
            self.told.lock().unwrap().push((gone, come));
            Ok(())
        }
    }

    #[test]
    fn listeners_follow_each_change_and_one_that_cannot_keeps_the_map_as_it_is() {
        let mem = two_regions();
        let listeners = [0u64, 0x20_0000].map(|refused| Arc::new(Listener { told: Mutex::default(), refused }));
        // The first refuses nothing that comes: its address is in the map before it is there.
        assert!(mem.add_listener(listeners[0].clone()).is_err());
        let first = Arc::new(Listener { told: Mutex::default(), refused: 1 });
        mem.add_listener(first.clone()).unwrap();
        mem.add_listener(listeners[1].clone()).unwrap();
        let generation = mem.generation();
        mem.change(|map| map.insert(region(0x8000, 2))).unwrap();
        mem.change(|map| map.set_mode(GuestAddr(0x10_0000), Mode::Device)).unwrap();
        assert_eq!(mem.generation(), generation + 2);
        let refused = mem.change(|map| map.insert(region(0x20_0000, 1))).unwrap_err();
        assert_eq!(refused.to_string(), "the guest's memory cannot be changed: no slot is free");
        assert!(mem.change(|map| map.remove(GuestAddr(0x8000)).and_then(|_| map.remove(GuestAddr(1)))).is_err());
        assert_eq!(mem.generation(), generation + 2);
        assert!(mem.contains(GuestAddr(0x8000), 0x2000) && !mem.contains(GuestAddr(0x10_0000), 1));
        let told = first.told.lock().unwrap();
        let rom = 0x10_0000;
        assert_eq!(
            *told,
            [
                (vec![], vec![0, rom]),
                (vec![], vec![0x8000]),
                (vec![rom], vec![rom]),
                (vec![], vec![0x20_0000]),
                (vec![0x20_0000], vec![])
            ]
        );
        assert_eq!(listeners[1].told.lock().unwrap().len(), 3);
    }

    #[test]
    fn every_write_of_a_device_is_in_the_log() {
        let mem = GuestMemory::anonymous(&[(GuestAddr(0x1000), 0x1_0000, Mode::Ram)]).unwrap();
        mem.write(GuestAddr(0x1000), &[1]).unwrap();
        mem.start_dirty_log();
        assert_eq!(mem.take_dirty(), []);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[0xaa; 64]).unwrap();
        mem.write(GuestAddr(0x1fff), &[1, 2]).unwrap();
        mem.fill(GuestAddr(0x4010), 1, 1).unwrap();
        mem.store_release_u16(GuestAddr(0x6000), 1).unwrap();
        mem.read_from_file(&file, 0, GuestAddr(0x8000), 64).unwrap();
        // The file ends in the first of the two.
        mem.read_vectored_from_file(&file, 0, &[(GuestAddr(0xa000), 128), (GuestAddr(0xc000), 64)]).unwrap();
        mem.change(|map| map.insert(region(0x2_0000, 2))).unwrap();
        let pages =
            |list: &[(u64, u64)]| list.iter().map(|&(base, pages)| (GuestAddr(base), pages * PAGE_SIZE)).collect::<Vec<_>>();
        assert_eq!(mem.take_dirty(), pages(&[(0x1000, 2), (0x4000, 1), (0x6000, 1), (0x8000, 1), (0xa000, 1), (0x2_0000, 2)]));
        assert_eq!(mem.take_dirty(), []);
        mem.write(GuestAddr(0x5000), &[1]).unwrap();
        mem.stop_dirty_log();
        mem.write(GuestAddr(0x7000), &[1]).unwrap();
        mem.start_dirty_log();
        assert_eq!(mem.take_dirty(), [], "an old log is none of the new one");
    }

    #[test]
    fn memory_that_is_shared_or_lent_is_the_same_bytes_elsewhere() {
        use std::os::unix::fs::FileExt;
        let (memory, file) = HostMemory::shared(0x2000).unwrap();
        let mut own = vec![7u8; 0x3000];
        let aligned = own.as_mut_ptr().wrapping_add(own.as_ptr().align_offset(0x1000));
        let dropped = Arc::new(());
        // SAFETY: the bytes live to the end of this test and are reached through the memory alone.
        let lent = unsafe { HostMemory::lent(aligned, 0x1000, Box::new(dropped.clone())) }.unwrap();
        let mut map = MemoryMap::default();
        map.insert(Region::new(GuestAddr(0), 0x1000, Mode::Ram, Arc::new(memory), 0x1000).unwrap()).unwrap();
        map.insert(Region::new(GuestAddr(0x1000), 0x1000, Mode::Ram, Arc::new(lent), 0).unwrap()).unwrap();
        let mem = GuestMemory::new(map);
        mem.write(GuestAddr(0xffc), b"file").unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0x1ffc).unwrap();
        assert_eq!(&bytes, b"file");
        assert_eq!(mem.read_le::<u16>(GuestAddr(0x1000)).unwrap(), 0x0707);
        assert_eq!(Arc::strong_count(&dropped), 2);
        drop(mem);
        assert_eq!(Arc::strong_count(&dropped), 1);
        // Private pages of a file change nothing in it.
        let private = HostMemory::file(&file, 0x1000, 0x1000, false).unwrap();
        let mut map = MemoryMap::default();
        map.insert(Region::new(GuestAddr(0), 0x1000, Mode::Ram, Arc::new(private), 0).unwrap()).unwrap();
        let mem = GuestMemory::new(map);
        assert_eq!(mem.read_le::<u32>(GuestAddr(0xffc)).unwrap(), u32::from_le_bytes(*b"file"));
        mem.write(GuestAddr(0xffc), b"mine").unwrap();
        file.read_exact_at(&mut bytes, 0x1ffc).unwrap();
        assert_eq!(&bytes, b"file");
        assert!(HostMemory::file(&file, 0x2000, 0x1000, true).is_err() && HostMemory::file(&file, 1, 0x1000, true).is_err());
    }
}
