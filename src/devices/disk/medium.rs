//! Operations on a disk's file or device beyond reading and writing: making writes durable, giving space back, zeroing.
//!
//! | | Linux | FreeBSD, a file | FreeBSD, a device (zvol, disk, partition) |
//! |---|---|---|---|
//! | durable | fdatasync(2) | fdatasync(2) | DIOCGFLUSH: fsync(2) flushes no device's cache and no zvol's log |
//! | give back | fallocate(2) PUNCH_HOLE | fspacectl(2), since 14.0 | DIOCGDELETE |
//! | zero | fallocate(2) ZERO_RANGE | written | written |
//! | unit | byte | byte | DIOCGSECTORSIZE: each buffer and offset is a multiple of it |
//! | logical block | 512; a block device: BLKSSZGET | 512 | DIOCGSECTORSIZE |
//!
//! FreeBSD: sys/sys/disk.h; sys/geom/geom_dev.c and, for volmode=dev, zvol_os.c of OpenZFS answer the requests;
//! usr.sbin/bhyve/block_if.c asks the same. fspacectl(2) writes zeros where the file system cannot free
//! (vop_stddeallocate), so it is used only where fpathconf(2) says _PC_DEALLOC_PRESENT. Releases before 14.0 have no
//! such function, so it is looked up when the program runs.
//!
//! An unsafe island: ioctl(2), fpathconf(2) and a function looked up by its name.
#![allow(unsafe_code)]

use std::io;

#[cfg(target_os = "freebsd")]
pub use freebsd::{block_bytes, can_discard, discard, sector_bytes, sync_data, zero_range};
#[cfg(target_os = "linux")]
pub use linux::{block_bytes, can_discard, discard, sector_bytes, sync_data, zero_range};
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub use plain::{block_bytes, can_discard, discard, sector_bytes, sync_data, zero_range};

/// Returns whether the error says that the file does not support the operation at all.
pub fn is_unsupported(error: &io::Error) -> bool {
    let codes = [libc::EOPNOTSUPP, libc::ENOTSUP, libc::ENOSYS, libc::EINVAL, libc::ENOTTY, libc::ENODEV];
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Size of the logical blocks of a file: what is in it was not made for one of the host's sizes.
const FILE_BLOCK_BYTES: u32 = 512;

/// Returns the size of a device's logical blocks, or that of a file where it is none that a guest can have.
fn usable_block(bytes: u64) -> u32 {
    u32::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two() && (512..=4096).contains(bytes)).unwrap_or(FILE_BLOCK_BYTES)
}

/// Returns the largest range inside of `offset..offset + bytes` that begins and ends at multiples of `unit`.
#[cfg(any(target_os = "freebsd", test))]
fn whole_units(offset: u64, bytes: u64, unit: u64) -> Option<(u64, u64)> {
    let start = offset.checked_next_multiple_of(unit)?;
    let end = offset.checked_add(bytes)? / unit * unit;
    (start < end).then(|| (start, end - start))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;

    use std::os::fd::AsRawFd;

    use nix::fcntl::{FallocateFlags, fallocate};

    use super::{FILE_BLOCK_BYTES, usable_block};

    // include/uapi/linux/fs.h: BLKSSZGET is _IO(0x12, 104), and writes an int.
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);

    /// Returns the size of a logical block: of a device, the one that its partition tables count in.
    pub fn block_bytes(file: &File, regular: bool) -> io::Result<u32> {
        if regular {
            return Ok(FILE_BLOCK_BYTES);
        }
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one int, which lives over the call.
        unsafe { blksszget(file.as_raw_fd(), &mut bytes) }?;
        Ok(usable_block(u64::try_from(bytes).unwrap_or(0)))
    }

    /// Returns the unit of transfers: one byte.
    pub fn sector_bytes(_: &File, _regular: bool) -> io::Result<u64> {
        Ok(1)
    }

    /// Returns whether the file system gives back the space of a hole. It tries beyond the end of the file, where no
    /// data can be lost.
    pub fn can_discard(file: &File, regular: bool, size: u64) -> bool {
        !regular || discard(file, regular, size, 4096).is_ok()
    }

    /// Gives the space of a range back to the host.
    pub fn discard(file: &File, _regular: bool, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(file, flags, offset as libc::off_t, bytes as libc::off_t)?)
    }

    /// Zeroes a range without writing it all.
    pub fn zero_range(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(file, flags, offset as libc::off_t, bytes as libc::off_t)?)
    }

    /// Makes earlier writes durable.
    pub fn sync_data(file: &File, _regular: bool) -> io::Result<()> {
        file.sync_data()
    }
}

#[cfg(target_os = "freebsd")]
mod freebsd {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::sync::OnceLock;

    use super::{FILE_BLOCK_BYTES, is_unsupported, usable_block, whole_units};

    /// sys/sys/unistd.h, since 14.0; an earlier fpathconf(2) refuses it as unknown.
    const PC_DEALLOC_PRESENT: libc::c_int = 65;

    /// `struct diocgattr_arg` of sys/sys/disk.h. Only the integer of the union is used.
    #[repr(C)]
    pub struct Attribute {
        name: [u8; 64],
        len: libc::c_int,
        value: AttributeValue,
    }

    #[repr(C)]
    union AttributeValue {
        integer: libc::c_int,
        offset: libc::off_t,
        text: [u8; 256],
    }

    nix::ioctl_read!(diocgsectorsize, b'd', 128, libc::c_uint);
    nix::ioctl_none!(diocgflush, b'd', 135);
    nix::ioctl_write_ptr!(diocgdelete, b'd', 136, [libc::off_t; 2]);
    nix::ioctl_readwrite!(diocgattr, b'd', 142, Attribute);

    type Fspacectl = unsafe extern "C" fn(
        libc::c_int,
        libc::c_int,
        *const libc::spacectl_range,
        libc::c_int,
        *mut libc::spacectl_range,
    ) -> libc::c_int;

    /// Returns fspacectl(2), if this system has it.
    fn fspacectl() -> Option<Fspacectl> {
        static FOUND: OnceLock<Option<Fspacectl>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            // SAFETY: the name is a C string; RTLD_DEFAULT searches what is loaded.
            let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"fspacectl".as_ptr()) };
            // SAFETY: libc's function of this name has this signature (fspacectl(2)); null is `None`.
            unsafe { std::mem::transmute::<*mut libc::c_void, Option<Fspacectl>>(address) }
        })
    }

    /// Returns the unit of transfers: a device's sector, or one byte for a file.
    pub fn sector_bytes(file: &File, regular: bool) -> io::Result<u64> {
        if regular {
            return Ok(1);
        }
        let mut bytes: libc::c_uint = 0;
        // SAFETY: the request writes one u_int, which lives over the call.
        unsafe { diocgsectorsize(file.as_raw_fd(), &mut bytes) }?;
        Ok(u64::from(bytes).max(1))
    }

    /// Returns the size of a logical block: of a device, the one that its partition tables count in.
    pub fn block_bytes(file: &File, regular: bool) -> io::Result<u32> {
        if regular {
            return Ok(FILE_BLOCK_BYTES);
        }
        sector_bytes(file, regular).map(usable_block)
    }

    /// Returns whether the file system or the device gives space back.
    pub fn can_discard(file: &File, regular: bool, _size: u64) -> bool {
        let fd = file.as_raw_fd();
        if regular {
            // SAFETY: fpathconf touches no memory of ours.
            return fspacectl().is_some() && unsafe { libc::fpathconf(fd, PC_DEALLOC_PRESENT) } == 1;
        }
        let mut name = [0; 64];
        name[..15].copy_from_slice(b"GEOM::candelete");
        let len = size_of::<libc::c_int>() as libc::c_int;
        let mut attribute = Attribute { name, len, value: AttributeValue { text: [0; 256] } };
        // SAFETY: the request reads and writes one `struct diocgattr_arg`, which lives over the call; every bit pattern
        // of the union is an integer.
        unsafe { diocgattr(fd, &mut attribute).is_ok() && attribute.value.integer != 0 }
    }

    /// Gives the space of a range back to the host.
    pub fn discard(file: &File, regular: bool, offset: u64, bytes: u64) -> io::Result<()> {
        if !regular {
            // A part of a sector cannot be given back, and a request for it makes the kernel log a line.
            let Some((offset, bytes)) = whole_units(offset, bytes, sector_bytes(file, regular)?) else { return Ok(()) };
            let range = [offset as libc::off_t, bytes as libc::off_t];
            // SAFETY: the request reads two off_t, which live over the call.
            unsafe { diocgdelete(file.as_raw_fd(), &range) }?;
            return Ok(());
        }
        let Some(fspacectl) = fspacectl() else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut range = libc::spacectl_range { r_offset: offset as libc::off_t, r_len: bytes as libc::off_t };
        while range.r_len > 0 {
            let mut left = libc::spacectl_range { r_offset: 0, r_len: 0 };
            // SAFETY: both ranges live over the call, which reads the first and writes what is left to the second.
            if unsafe { fspacectl(file.as_raw_fd(), libc::SPACECTL_DEALLOC, &range, 0, &mut left) } == 0 {
                range = left;
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Zeroes a range without writing it all. This system cannot.
    pub fn zero_range(_: &File, _offset: u64, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes earlier writes durable.
    pub fn sync_data(file: &File, regular: bool) -> io::Result<()> {
        if regular {
            return file.sync_data();
        }
        // SAFETY: the request has no argument.
        match unsafe { diocgflush(file.as_raw_fd()) }.map_err(io::Error::from) {
            // A device that cannot flush has nothing to flush, or nothing more can be done, as on the file systems.
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other.map(drop),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
mod plain {
    use std::fs::File;
    use std::io;

    /// Returns the unit of transfers: one byte.
    pub fn sector_bytes(_: &File, _regular: bool) -> io::Result<u64> {
        Ok(1)
    }
    /// Returns that of a file.
    pub fn block_bytes(_: &File, _regular: bool) -> io::Result<u32> {
        Ok(super::FILE_BLOCK_BYTES)
    }
    /// Returns false: not known for this system.
    pub fn can_discard(_: &File, _regular: bool, _size: u64) -> bool {
        false
    }
    /// Fails: not known for this system.
    pub fn discard(_: &File, _regular: bool, _offset: u64, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Fails: not known for this system.
    pub fn zero_range(_: &File, _offset: u64, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Makes earlier writes durable.
    pub fn sync_data(file: &File, _regular: bool) -> io::Result<()> {
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_whole_sectors_of_a_range_are_given_back() {
        assert_eq!(whole_units(0, 4096, 4096), Some((0, 4096)));
        assert_eq!(whole_units(512, 8192, 4096), Some((4096, 4096)));
        assert_eq!(whole_units(512, 4096, 4096), None);
        assert_eq!(whole_units(512, 1024, 512), Some((512, 1024)));
        assert_eq!(whole_units(u64::MAX, 1, 512), None);
    }

    #[test]
    fn a_guest_gets_no_logical_block_that_no_disk_has() {
        let cases = [(512, 512), (4096, 4096), (2048, 2048), (0, 512), (520, 512), (8192, 512), (u64::MAX, 512)];
        assert!(cases.iter().all(|&(host, guest)| usable_block(host) == guest));
    }

    #[test]
    fn a_discarded_range_of_a_file_reads_as_zeros_where_the_file_system_can_discard() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 16]).expect("writes");
        let file = File::options().read(true).write(true).open(&path).expect("opens");
        assert_eq!(sector_bytes(&file, true).expect("answers"), 1);
        let done = discard(&file, true, 4096, 8192);
        let bytes = std::fs::read(&path).expect("reads");
        match can_discard(&file, true, 1 << 16) {
            true => {
                done.expect("discards");
                assert!(bytes[4096..12288].iter().all(|&byte| byte == 0));
            }
            false => assert!(done.is_err_and(|error| is_unsupported(&error)) || bytes[4096..12288].iter().all(|&byte| byte == 0)),
        }
        assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|&byte| byte == 7));
        sync_data(&file, true).expect("syncs");
    }
}
