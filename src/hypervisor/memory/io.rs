//! File I/O straight from and to guest memory: system calls that move the bytes before they return, and the vectors for those
//! that move them later.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
#[cfg(target_os = "linux")]
use std::sync::Arc;

use super::{GuestAddr, GuestMemory, MemoryMap, host_at, writable};

/// Maximum number of buffers of one vectored system call: IOV_MAX of Linux and FreeBSD.
const IO_VECTORS_MAX: usize = 1024;

fn bytes(answer: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Returns the host addresses of `segments` for one vectored system call: at most [`IO_VECTORS_MAX`] of them. They are
/// valid as long as the map lives.
fn io_vectors(map: &MemoryMap, segments: &[(GuestAddr, u32)], written: bool) -> io::Result<Vec<libc::iovec>> {
    let vector = |&(addr, len): &(GuestAddr, u32)| {
        let mut span = map.span(addr, len as usize).map_err(io::Error::other)?;
        if written {
            span = writable(span, len as usize).map_err(io::Error::other)?;
        }
        Ok(libc::iovec { iov_base: host_at(span).cast(), iov_len: len as usize })
    };
    segments.iter().take(IO_VECTORS_MAX).map(vector).collect()
}

/// Host addresses of guest buffers, for a system call that moves the bytes later. The memory stays as long as this lives.
#[cfg(target_os = "linux")]
pub struct IoVectors {
    vectors: Vec<libc::iovec>,
    /// Keeps the memory.
    _map: Arc<MemoryMap>,
}

// SAFETY: the addresses are those of guest memory, which any thread may access, and which the map keeps.
#[cfg(target_os = "linux")]
unsafe impl Send for IoVectors {}

#[cfg(target_os = "linux")]
impl IoVectors {
    /// Returns the list for the system call.
    pub fn list(&self) -> &[libc::iovec] {
        &self.vectors
    }
}

impl GuestMemory {
    /// Returns the host addresses of `segments`, of the first [`IO_VECTORS_MAX`] if there are more. If they will be `written`
    /// to, they must be RAM, and [`GuestMemory::note_read`] must follow.
    #[cfg(target_os = "linux")]
    pub fn io_vectors(&self, segments: &[(GuestAddr, u32)], written: bool) -> io::Result<IoVectors> {
        let map = self.map();
        Ok(IoVectors { vectors: io_vectors(&map, segments, written)?, _map: map })
    }

    /// Notes that the host wrote the first `bytes` bytes of `segments`.
    pub fn note_read(&self, segments: &[(GuestAddr, u32)], bytes: u64) {
        let map = self.inner.map.load();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        for &(addr, len) in segments {
            let part = left.min(len as usize);
            if let Ok(span) = map.span(addr, part) {
                self.note_write(span, part);
            }
            left -= part;
            if left == 0 {
                break;
            }
        }
    }

    /// Reads from `file` at `file_offset` straight into RAM; returns the bytes read.
    pub fn read_from_file(&self, file: &File, file_offset: u64, addr: GuestAddr, len: usize) -> io::Result<usize> {
        let map = self.inner.map.load();
        let span = map.span(addr, len).and_then(|span| writable(span, len)).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `len` bytes into the checked span.
        let n = bytes(unsafe { libc::pread(file.as_raw_fd(), host_at(span).cast(), len, file_offset as libc::off_t) })?;
        self.note_write(span, n);
        Ok(n)
    }

    /// Writes guest memory straight to `file` at `file_offset`; returns the bytes written.
    pub fn write_to_file(&self, file: &File, file_offset: u64, addr: GuestAddr, len: usize) -> io::Result<usize> {
        let map = self.inner.map.load();
        let span = map.span(addr, len).map_err(io::Error::other)?;
        // SAFETY: the kernel reads at most `len` bytes from the checked span.
        bytes(unsafe { libc::pwrite(file.as_raw_fd(), host_at(span).cast(), len, file_offset as libc::off_t) })
    }

    /// Reads from a file straight into `segments`, in order; returns the bytes read, which may be fewer.
    pub fn read_vectored_from_file(&self, file: &File, file_offset: u64, segments: &[(GuestAddr, u32)]) -> io::Result<usize> {
        let map = self.inner.map.load();
        let vectors = io_vectors(&map, segments, true)?;
        let count = vectors.len() as libc::c_int;
        // SAFETY: every vector was checked to lie inside a region, whose memory the map keeps.
        let n = bytes(unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, file_offset as libc::off_t) })?;
        self.note_read(segments, n as u64);
        Ok(n)
    }

    /// Writes `segments`, in order, straight to a file; returns the bytes written, which may be fewer.
    pub fn write_vectored_to_file(&self, file: &File, file_offset: u64, segments: &[(GuestAddr, u32)]) -> io::Result<usize> {
        let map = self.inner.map.load();
        let vectors = io_vectors(&map, segments, false)?;
        let count = vectors.len() as libc::c_int;
        // SAFETY: as in `read_vectored_from_file`.
        bytes(unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, file_offset as libc::off_t) })
    }
}
