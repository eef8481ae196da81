//! Host memory behind guest memory: where it comes from, and what is noted of its pages.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::PAGE_SIZE;

/// Alignment of host memory: a large page of x86-64 and of AArch64 with 4 KiB granules. Where guest and host address
/// are equal modulo this, the host can back the guest with large pages, which a nested page walk needs.
const ALIGNMENT: u64 = 2 << 20;

/// A range of host memory that guest memory is made of.
///
/// No reference into it is ever made: the guest writes to it while we read.
pub struct HostMemory {
    host: *mut u8,
    len: u64,
    owner: Owner,
    /// One byte per page, non-zero while the page is watched. Not there before the first page is.
    watched: OnceLock<Box<[AtomicU8]>>,
    /// One bit per page, set when the page was written while writes were logged. Not there before the first log.
    dirty: OnceLock<Box<[AtomicU64]>>,
}

/// Owner of the bytes.
enum Owner {
    /// This mapping.
    Mapping,
    /// Another object, which is dropped with the memory.
    #[allow(dead_code, reason = "it is there to be dropped")]
    Lender(Box<dyn Send + Sync>),
}

// SAFETY: `host` points to memory that lives as long as this and is only accessed through raw copies; the guest and the
// devices may race on its bytes exactly as hardware does.
unsafe impl Send for HostMemory {}
// SAFETY: as above; every other field is immutable or atomic.
unsafe impl Sync for HostMemory {}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Mapping) {
            // SAFETY: `host` and `len` are the whole of what `map` made, unmapped once, here.
            unsafe { libc::munmap(self.host.cast(), self.len as usize) };
        }
    }
}

/// Flags of anonymous memory. The guest's memory is promised and not reserved.
#[cfg(any(target_os = "linux", target_os = "android"))]
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
/// FreeBSD reserves no swap for pages that are not written (vm.overcommit). A core file must not contain the guest.
#[cfg(target_os = "freebsd")]
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NOCORE;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANON;

/// Maps `len` anonymous bytes at a multiple of [`ALIGNMENT`]: mmap(2). No call here replaces or protects a mapping, since
/// an engine's sandbox permits neither.
fn map(len: u64) -> io::Result<*mut u8> {
    let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
    let bytes = usize::try_from(len).map_err(|_| too_large())?;
    let around = bytes.checked_add(ALIGNMENT as usize).ok_or_else(too_large)?;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), around, libc::PROT_READ | libc::PROT_WRITE, ANONYMOUS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = start.addr().next_multiple_of(ALIGNMENT as usize) - start.addr();
    // SAFETY: `head`, `bytes` and the rest are the length of the mapping, which is ours alone: what is not kept of it on
    // both sides is given back.
    unsafe {
        let host = start.byte_add(head);
        if head > 0 {
            libc::munmap(start, head);
        }
        libc::munmap(host.byte_add(bytes), ALIGNMENT as usize - head);
        Ok(host.cast())
    }
}

impl HostMemory {
    fn of(host: *mut u8, len: u64, owner: Owner) -> HostMemory {
        HostMemory { host, len, owner, watched: OnceLock::new(), dirty: OnceLock::new() }
    }

    /// Creates `len` bytes, a multiple of 4096: zero-filled, touched lazily, private to this process.
    pub fn anonymous(len: u64) -> io::Result<HostMemory> {
        check_size(len)?;
        Ok(HostMemory::of(map(len)?, len, Owner::Mapping))
    }

    /// Maps `len` bytes of `file` from `offset`, both multiples of 4096, and both inside the file. Writes of the guest
    /// go to the file and to everybody who maps it, if `shared`, or else stay here.
    ///
    /// A file that is cut while it is mapped ends this process at the next access (SIGBUS), so it must be one that
    /// nobody else can cut.
    pub fn file(file: &File, offset: u64, len: u64, shared: bool) -> io::Result<HostMemory> {
        if offset % PAGE_SIZE != 0 || offset.checked_add(len).is_none_or(|end| file.metadata().is_ok_and(|file| end > file.len()))
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pages are not all in the file"));
        }
        let memory = HostMemory::anonymous(len)?;
        let flags = libc::MAP_FIXED | if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the new mapping replaces the whole of one that is ours and that nobody has seen yet.
        let host =
            unsafe { libc::mmap(memory.host.cast(), len as usize, access, flags, file.as_raw_fd(), offset as libc::off_t) };
        if host == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(memory)
    }

    /// Creates `len` bytes that another process can map too, and the file that stands for them: memfd_create(2).
    pub fn shared(len: u64) -> io::Result<(HostMemory, File)> {
        use std::os::fd::FromRawFd;
        // SAFETY: the name is a C string that lives over the call.
        let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now and is nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len)?;
        Ok((HostMemory::file(&file, 0, len, true)?, file))
    }

    /// Takes memory that somebody else made, as a vCPU back end whose kernel half owns the guest's memory.
    ///
    /// # Safety
    /// `len` bytes at `host` must be readable and writable until `owner` is dropped, and nothing else in this process
    /// may hold references into them.
    pub unsafe fn lent(host: *mut u8, len: u64, owner: Box<dyn Send + Sync>) -> io::Result<HostMemory> {
        check_size(len)?;
        Ok(HostMemory::of(host, len, Owner::Lender(owner)))
    }

    /// Returns the size in bytes, which is not zero.
    #[allow(clippy::len_without_is_empty, reason = "it has at least one page")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns the address of the first byte, valid as long as this lives.
    pub(super) fn start(&self) -> *mut u8 {
        self.host
    }

    /// Starts or ends watching a page.
    pub(super) fn watch(&self, page: usize, on: bool) {
        if on || self.watched.get().is_some() {
            let pages = (self.len / PAGE_SIZE) as usize;
            let watched = self.watched.get_or_init(|| (0..pages).map(|_| AtomicU8::new(0)).collect());
            watched[page].store(u8::from(on), Ordering::Relaxed);
        }
    }

    /// Returns whether a page is watched.
    #[inline]
    pub(super) fn is_watched(&self, page: usize) -> bool {
        self.watched.get().is_some_and(|watched| watched[page].load(Ordering::Relaxed) != 0)
    }

    fn dirty(&self) -> &[AtomicU64] {
        let words = (self.len / PAGE_SIZE).div_ceil(64) as usize;
        self.dirty.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Marks a page as written.
    #[inline]
    pub(super) fn mark_dirty(&self, page: usize) {
        let word = &self.dirty()[page / 64];
        let bit = 1 << (page % 64);
        // Most writes go to pages that were written before, and a load does not take the line from other writers.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Clears the marks of `pages` and calls `found` with each page that had one.
    pub(super) fn take_dirty(&self, pages: std::ops::Range<usize>, mut found: impl FnMut(usize)) {
        let dirty = self.dirty();
        let mut page = pages.start;
        while page < pages.end {
            let (word, first) = (page / 64, page % 64);
            let count = (64 - first).min(pages.end - page);
            let mask = (u64::MAX >> (64 - count)) << first;
            let mut bits = dirty[word].fetch_and(!mask, Ordering::AcqRel) & mask;
            while bits != 0 {
                found(word * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
            page += count;
        }
    }
}

fn check_size(len: u64) -> io::Result<()> {
    if len == 0 || len % PAGE_SIZE != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "guest memory is whole pages, at least one"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_to_large_pages_whatever_its_size_is() {
        for pages in [1, 511, 512, 513, 3000] {
            let memory = HostMemory::anonymous(pages * PAGE_SIZE).unwrap();
            assert_eq!(memory.start().addr() as u64 % ALIGNMENT, 0);
        }
        for len in [0, 1, PAGE_SIZE + 1] {
            assert!(HostMemory::anonymous(len).is_err());
        }
        assert!(HostMemory::anonymous(!(PAGE_SIZE - 1)).is_err());
    }

    #[test]
    fn the_marks_of_a_part_are_taken_and_the_others_stay() {
        let memory = HostMemory::anonymous(200 * PAGE_SIZE).unwrap();
        for page in [0, 63, 64, 130, 199] {
            memory.mark_dirty(page);
        }
        let taken = |pages| {
            let mut taken = Vec::new();
            memory.take_dirty(pages, |page| taken.push(page));
            taken
        };
        assert_eq!(taken(1..131), [63, 64, 130]);
        assert_eq!(taken(0..200), [0, 199]);
        assert_eq!(taken(0..200), [0; 0]);
    }
}
