//! Descriptors that a parent left open for this process.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Returns the stream socket at descriptor `fd`, which this process may use and close. It is an error if there is none.
pub fn stream(fd: RawFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(descriptor(fd)?);
    // A file or a pipe instead is refused here, not at the first use.
    stream.local_addr()?;
    Ok(stream)
}

/// Returns the descriptor `fd`, of any type, which this process may use and close. It is an error if it is not open.
pub fn descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD looks at a descriptor number and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the contract with the parent nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_number_without_a_descriptor_is_an_error() {
        assert!(super::stream(987).is_err());
        assert!(super::descriptor(987).is_err());
    }
}
