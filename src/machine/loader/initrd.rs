//! Initial RAM disks and Multiboot modules: their address, and the way into guest memory.
//!
//! A file of the host is read straight into guest memory: no copy of it is made.

use std::borrow::Cow;

use super::{HostFile, LoadError, low_ram_end};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

/// Maximum number of bytes that one call reads.
const CHUNK: u64 = 1 << 30;

/// Contents to put into guest memory.
pub enum Initrd<'a> {
    /// Bytes in memory.
    Bytes(Cow<'a, [u8]>),
    /// A regular file and its length in bytes.
    File(&'a HostFile, u64),
}

impl<'a> Initrd<'a> {
    /// In a file of the host.
    pub fn of(file: &'a HostFile) -> Initrd<'a> {
        Initrd::File(file, file.length)
    }

    /// Returns the number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Initrd::Bytes(bytes) => bytes.len() as u64,
            Initrd::File(_, len) => *len,
        }
    }

    /// Returns the highest address below `limit`, on a page's start, above the firmware area.
    pub fn address(&self, mem: &GuestMemory, limit: u64) -> Result<u64, LoadError> {
        address(mem, self.size(), limit)
    }

    /// Fails if the kernel, which ends at `kernel_end`, and this at `at` overlap.
    pub fn check_clear_of(&self, at: u64, kernel_end: u64) -> Result<(), LoadError> {
        if at < kernel_end { Err(self.no_room(at)) } else { Ok(()) }
    }

    fn no_room(&self, at: u64) -> LoadError {
        LoadError::NoRoom { object: "initrd", needs: self.size(), at: GuestAddr(at) }
    }

    /// Copies it to `at`.
    pub fn copy(&self, mem: &GuestMemory, at: u64) -> Result<(), LoadError> {
        let (file, len) = match self {
            Initrd::Bytes(bytes) => return Ok(mem.write(GuestAddr(at), bytes)?),
            Initrd::File(file, len) => (file, *len),
        };
        let mut done = 0;
        while done < len {
            let part = (len - done).min(CHUNK) as usize;
            match mem.read_from_file(&file.file, done, GuestAddr(at + done), part) {
                Ok(0) => {
                    let detail = format!("it ended after {done} of {len} bytes while it was read");
                    return Err(LoadError::Truncated { object: "the initrd", detail });
                }
                Ok(count) => done += count as u64,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(file.failed(source)),
            }
        }
        Ok(())
    }
}

/// Returns the highest address for `size` bytes below `limit`, on a page's start, above the firmware area.
pub fn address(mem: &GuestMemory, size: u64, limit: u64) -> Result<u64, LoadError> {
    let at = low_ram_end(mem).min(limit).saturating_sub(size) & !0xfff;
    // Zero bytes fit everywhere.
    if size > 0 && (at < layout::KERNEL_FLOOR || !mem.contains(GuestAddr(at), size)) {
        return Err(LoadError::NoRoom { object: "initrd", needs: size, at: GuestAddr(at) });
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::loader::test_memory;

    #[test]
    fn a_file_and_its_bytes_get_the_same_place_and_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        let content: Vec<u8> = (0..5000u32).map(|at| (at * 7) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = HostFile::open("initrd", &path).unwrap();
        for initrd in [Initrd::of(&file), Initrd::Bytes(content.as_slice().into())] {
            let mem = test_memory(16);
            let at = initrd.address(&mem, 12 << 20).unwrap();
            assert_eq!(at, (12 << 20) - 8192);
            initrd.copy(&mem, at).unwrap();
            let mut found = vec![0; content.len()];
            mem.read(GuestAddr(at), &mut found).unwrap();
            assert_eq!(found, content);
        }
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_and_one_without_room_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        std::fs::write(&path, [1; 9000]).unwrap();
        let file = HostFile::open("initrd", &path).unwrap();
        let initrd = Initrd::of(&file);
        std::fs::write(&path, [1; 100]).unwrap();
        let mem = test_memory(16);
        let text = initrd.copy(&mem, 4 << 20).unwrap_err().to_string();
        assert!(text.contains("100 of 9000"), "{text}");
        assert!(matches!(initrd.address(&mem, 1 << 20), Err(LoadError::NoRoom { .. })));
        assert!(matches!(initrd.check_clear_of(0x20_0000, 0x20_0001), Err(LoadError::NoRoom { .. })));
        initrd.check_clear_of(0x20_0000, 0x20_0000).unwrap();
    }
}
