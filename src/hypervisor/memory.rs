//! Guest memory: a guest-physical address space made of a few flat regions of host memory.
//!
//! No Rust reference into guest memory is ever made: the guest writes to it while we read. All access goes through raw,
//! bounds-checked copies. A page may be *watched*: the software CPU watches the pages that it has decoded code from. A
//! write to a watched page through this type is recorded, so that the watcher can drop what it derived from the page.
//!
//! **Hostile guest**: every address is checked against the regions; an access outside is an `OutOfRange` error. In the
//! `_or_ignore` forms such a read gives all ones and such a write is dropped.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes in a guest page, the unit of watching.
pub const PAGE_SIZE: u64 = 4096;
/// Maximum number of buffers of one vectored system call: IOV_MAX of Linux and FreeBSD.
pub const IO_VECTORS_MAX: usize = 1024;

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

/// The error for an access that touches bytes that are not guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest address {addr} with {len} bytes is outside guest memory")]
pub struct OutOfRange {
    /// First byte of the access.
    pub addr: GuestAddr,
    /// Bytes of the access.
    pub len: usize,
}

struct Region {
    base: u64,
    len: u64,
    host: *mut u8,
    writable: bool,
    /// One byte per page: non-zero while the page is watched.
    watched: Box<[AtomicU8]>,
}

// SAFETY: `host` points to a mapping that lives as long as the region and is only accessed through raw copies;
// the guest and the devices may race on its bytes exactly as hardware does.
unsafe impl Send for Region {}
// SAFETY: as above; every other field is immutable or atomic.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `host` and `len` are what `mmap` returned in `map_anonymous`, unmapped once, here.
        unsafe { libc::munmap(self.host.cast(), self.len as usize) };
    }
}

/// The memory of a guest. A clone shares the same memory.
#[derive(Clone)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

struct Inner {
    regions: Vec<Region>,
    /// Set when a watched page was written through this type; cleared by `take_watch_hits`.
    hit: AtomicBool,
    hits: Mutex<Vec<u64>>,
}

fn map_anonymous(len: u64) -> std::io::Result<*mut u8> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // FreeBSD reserves no swap for pages that are not written (vm.overcommit). A core file must not contain the guest.
    #[cfg(target_os = "freebsd")]
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NOCORE;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
    let host = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if host == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(host.cast())
}

impl GuestMemory {
    /// Creates memory of the given `(base, bytes, writable)` regions, zero-filled and touched lazily.
    ///
    /// Fails when the host refuses the mapping. Regions must be page-aligned, sorted and disjoint.
    pub fn new(layout: &[(GuestAddr, u64, bool)]) -> std::io::Result<GuestMemory> {
        let mut regions: Vec<Region> = Vec::with_capacity(layout.len());
        for &(base, len, writable) in layout {
            let aligned = base.0 % PAGE_SIZE == 0 && len % PAGE_SIZE == 0 && len > 0;
            let ordered = regions.last().is_none_or(|last| last.base + last.len <= base.0);
            if !aligned || !ordered || base.0.checked_add(len).is_none() {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    "memory regions must be page-aligned, sorted and disjoint",
                ));
            }
            let host = map_anonymous(len)?;
            let watched = (0..len / PAGE_SIZE).map(|_| AtomicU8::new(0)).collect();
            regions.push(Region { base: base.0, len, host, writable, watched });
        }
        Ok(GuestMemory { inner: Arc::new(Inner { regions, hit: AtomicBool::new(false), hits: Mutex::new(Vec::new()) }) })
    }

    fn region(&self, addr: u64) -> Option<&Region> {
        self.inner.regions.iter().find(|r| addr >= r.base && addr - r.base < r.len)
    }

    /// Returns the `(base, bytes, writable)` regions, in order.
    pub fn regions(&self) -> impl Iterator<Item = (GuestAddr, u64, bool)> + '_ {
        self.inner.regions.iter().map(|r| (GuestAddr(r.base), r.len, r.writable))
    }

    /// Returns the host address of the page that holds `addr` and whether the guest may write to it.
    ///
    /// `None` outside of memory. The pointer is valid for the page's 4096 bytes, as long as this memory lives.
    pub fn host_page(&self, addr: GuestAddr) -> Option<(*mut u8, bool)> {
        let page = addr.0 & !(PAGE_SIZE - 1);
        let r = self.region(page)?;
        // SAFETY: `page` is inside the region, so the offset is inside the mapping.
        Some((unsafe { r.host.add((page - r.base) as usize) }, r.writable))
    }

    /// Returns whether all `len` bytes at `addr` are memory of one region.
    pub fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        self.region(addr.0).is_some_and(|r| len <= r.len - (addr.0 - r.base))
    }

    fn span(&self, addr: GuestAddr, len: usize) -> Result<(&Region, usize), OutOfRange> {
        let r = self.region(addr.0).ok_or(OutOfRange { addr, len })?;
        let offset = addr.0 - r.base;
        if len as u64 > r.len - offset {
            return Err(OutOfRange { addr, len });
        }
        Ok((r, offset as usize))
    }

    /// Copies `buf.len()` bytes from `addr`.
    pub fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let (r, offset) = self.span(addr, buf.len())?;
        // SAFETY: `span` checked that the bytes are inside the mapping; `buf` is ours and does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(r.host.add(offset), buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies `buf` to `addr`, even where the guest itself may not write, and records the write to watched pages.
    pub fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), OutOfRange> {
        let (r, offset) = self.span(addr, buf.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), r.host.add(offset), buf.len()) };
        self.note_write(r, offset, buf.len());
        Ok(())
    }

    /// Fills `len` bytes at `addr` with `byte`.
    pub fn fill(&self, addr: GuestAddr, byte: u8, len: usize) -> Result<(), OutOfRange> {
        let (r, offset) = self.span(addr, len)?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::write_bytes(r.host.add(offset), byte, len) };
        self.note_write(r, offset, len);
        Ok(())
    }

    fn note_write(&self, r: &Region, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let first = offset / PAGE_SIZE as usize;
        let last = (offset + len - 1) / PAGE_SIZE as usize;
        for page in first..=last {
            if r.watched[page].load(Ordering::Relaxed) != 0 {
                let mut hits = self.inner.hits.lock().expect("no panic happens under this lock");
                let gpa = r.base + page as u64 * PAGE_SIZE;
                if !hits.contains(&gpa) {
                    hits.push(gpa);
                }
                self.inner.hit.store(true, Ordering::Release);
            }
        }
    }

    /// Starts or ends watching the page that holds `addr`. Outside of memory this does nothing.
    pub fn watch(&self, addr: GuestAddr, on: bool) {
        if let Some(r) = self.region(addr.0) {
            r.watched[((addr.0 - r.base) / PAGE_SIZE) as usize].store(u8::from(on), Ordering::Relaxed);
        }
    }

    /// Returns whether the page that holds `addr` is watched.
    pub fn is_watched(&self, addr: GuestAddr) -> bool {
        self.region(addr.0).is_some_and(|r| r.watched[((addr.0 - r.base) / PAGE_SIZE) as usize].load(Ordering::Relaxed) != 0)
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
        let (r, offset) = self.span(addr, 2)?;
        if offset % 2 != 0 {
            return self.read_le(addr);
        }
        // SAFETY: inside the mapping and aligned; an atomic access to shared bytes is what the guest's CPUs do too.
        let value = unsafe { (*r.host.add(offset).cast::<std::sync::atomic::AtomicU16>()).load(Ordering::Acquire) };
        Ok(u16::from_le(value))
    }

    /// Stores an aligned 16-bit integer with release order, for ring indices.
    pub fn store_release_u16(&self, addr: GuestAddr, value: u16) -> Result<(), OutOfRange> {
        let (r, offset) = self.span(addr, 2)?;
        if offset % 2 != 0 {
            return self.write_le(addr, value);
        }
        // SAFETY: as in `load_acquire_u16`.
        unsafe { (*r.host.add(offset).cast::<std::sync::atomic::AtomicU16>()).store(value.to_le(), Ordering::Release) };
        self.note_write(r, offset, 2);
        Ok(())
    }

    /// Reads from a file descriptor's file at `file_offset` straight into guest memory; returns the bytes read.
    pub fn read_from_file(&self, file: &std::fs::File, file_offset: u64, addr: GuestAddr, len: usize) -> std::io::Result<usize> {
        use std::os::fd::AsRawFd;
        let (r, offset) = self.span(addr, len).map_err(std::io::Error::other)?;
        // SAFETY: the kernel writes at most `len` bytes into the checked span.
        let n = unsafe { libc::pread(file.as_raw_fd(), r.host.add(offset).cast(), len, file_offset as libc::off_t) };
        if n < 0 {
            return Err(std::io::Error::last_os_error());
        }
        self.note_write(r, offset, n as usize);
        Ok(n as usize)
    }

    /// Writes guest memory straight to a file at `file_offset`; returns the bytes written.
    pub fn write_to_file(&self, file: &std::fs::File, file_offset: u64, addr: GuestAddr, len: usize) -> std::io::Result<usize> {
        use std::os::fd::AsRawFd;
        let (r, offset) = self.span(addr, len).map_err(std::io::Error::other)?;
        // SAFETY: the kernel reads at most `len` bytes from the checked span.
        let n = unsafe { libc::pwrite(file.as_raw_fd(), r.host.add(offset).cast(), len, file_offset as libc::off_t) };
        if n < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(n as usize)
    }

    /// Returns the host addresses of `segments` for one vectored system call: at most [`IO_VECTORS_MAX`] of them.
    fn io_vectors(&self, segments: &[(GuestAddr, u32)]) -> std::io::Result<Vec<libc::iovec>> {
        let vector = |&(addr, len): &(GuestAddr, u32)| {
            let (r, offset) = self.span(addr, len as usize).map_err(std::io::Error::other)?;
            // SAFETY: `span` checked that the bytes are inside the mapping.
            Ok(libc::iovec { iov_base: unsafe { r.host.add(offset) }.cast(), iov_len: len as usize })
        };
        segments.iter().take(IO_VECTORS_MAX).map(vector).collect()
    }

    /// Reads from a file straight into `segments`, in order; returns the bytes read, which may be fewer.
    pub fn read_vectored_from_file(
        &self,
        file: &std::fs::File,
        file_offset: u64,
        segments: &[(GuestAddr, u32)],
    ) -> std::io::Result<usize> {
        use std::os::fd::AsRawFd;
        let vectors = self.io_vectors(segments)?;
        // SAFETY: every vector was checked to lie inside a mapping, which lives as long as `self`.
        let n =
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, file_offset as libc::off_t) };
        if n < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut left = n as usize;
        for &(addr, len) in segments {
            let part = left.min(len as usize);
            let (r, offset) = self.span(addr, part).map_err(std::io::Error::other)?;
            self.note_write(r, offset, part);
            left -= part;
            if left == 0 {
                break;
            }
        }
        Ok(n as usize)
    }

    /// Writes `segments`, in order, straight to a file; returns the bytes written, which may be fewer.
    pub fn write_vectored_to_file(
        &self,
        file: &std::fs::File,
        file_offset: u64,
        segments: &[(GuestAddr, u32)],
    ) -> std::io::Result<usize> {
        use std::os::fd::AsRawFd;
        let vectors = self.io_vectors(segments)?;
        // SAFETY: as in `read_vectored_from_file`.
        let n = unsafe {
            libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, file_offset as libc::off_t)
        };
        if n < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(n as usize)
    }
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
        GuestMemory::new(&[(GuestAddr(0), 0x4000, true), (GuestAddr(0x10_0000), 0x2000, false)]).unwrap()
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
        mem.watch(GuestAddr(0x1000), true);
        mem.write(GuestAddr(0x0ffe), &[1, 2, 3, 4]).unwrap();
        mem.write(GuestAddr(0x1800), &[1]).unwrap();
        assert!(mem.has_watch_hits());
        assert_eq!(mem.take_watch_hits(), vec![0x1000]);
        assert!(!mem.has_watch_hits());
    }
}
