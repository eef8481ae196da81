//! Null-modem lines, nmdm(4): two connected terminals. bhyve has the A side. This program has the B side from before
//! the loader until after bhyve's end, so that no output is lost.
//!
//! `sys/dev/nmdm/nmdm.c`: a name may be any text between `nmdm` and `A` or `B`; the pair is created when one of the
//! names is looked up and removed when both sides are closed. The driver drops the carrier when the other side closes,
//! which ends a terminal that does not ignore it; therefore CLOCAL is set. The devices of a pair disappear a moment
//! after the last close (`sys/kern/tty.c`, tty_rel_free: destroy_dev_sched_cb). Until then their names exist but cannot
//! be opened.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::environment;
use super::jail_run;
use super::program::ProgramError;

/// Time-out for the devices of a closed pair to disappear.
const GOING: Duration = Duration::from_secs(5);

/// The B side of a line.
#[derive(Debug)]
pub struct Line {
    file: File,
    /// On a made-up host, the lock that keeps the pair, and its name, to be removed.
    made_up: Option<MadeUp>,
}

#[derive(Debug)]
struct MadeUp {
    name: PathBuf,
    _other_side: File,
    _lock: File,
}

/// Returns the device of bhyve's side of the line `name`.
pub fn a_side(name: &str) -> String {
    format!("/dev/nmdm{name}A")
}

/// Returns whether the line `name` is open: its pair exists only then.
pub fn in_use(name: &str) -> bool {
    match environment::is_made_up() {
        // The name of a pseudo-terminal stays when its holder is killed, but a lock does not.
        true => File::open(lock_file(&environment::path(&a_side(name)))).is_ok_and(|file| file.try_lock_shared().is_err()),
        false => environment::has_entry(&environment::path("/dev"), &format!("nmdm{name}A")),
    }
}

/// Returns the file that is locked while the B side is open, on a made-up host.
fn lock_file(a_side: &Path) -> PathBuf {
    a_side.with_extension("lock")
}

/// Returns whether the line `name` is free. It waits a while for the devices of the last boot to disappear.
pub fn wait_until_free(name: &str) -> bool {
    let until = Instant::now() + GOING;
    while in_use(name) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Creates the pair of the line `name` so that a jail sees it. Returns `false` if the jail's devfs(8) rules hide it.
///
/// On 13.2, the devices of a pair belonged to the host or jail that looked one of them up first, and a jail saw none
/// that belong to the host; the host sees those of its jails. Must be called before [`Line::open`].
pub fn make_in_jail(name: &str, jail: &str) -> Result<bool, ProgramError> {
    jail_run::sees(jail, &a_side(name))
}

impl Line {
    /// Opens the B side of the line `name`. Reads and writes do not block.
    pub fn open(name: &str) -> io::Result<Line> {
        if environment::is_made_up() {
            return Line::make_up(&environment::path(&a_side(name)));
        }
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::options().read(true).write(true).custom_flags(flags.bits()).open(format!("/dev/nmdm{name}B"))?;
        make_raw(&file)?;
        Ok(Line { file, made_up: None })
    }

    /// Returns the file to read from and write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes a pseudo-terminal instead. Its other side gets the name that bhyve is told.
    fn make_up(name: &Path) -> io::Result<Line> {
        use nix::pty::{grantpt, posix_openpt, unlockpt};
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let file = File::from(std::os::fd::OwnedFd::from(master));
        let other = other_side(&file)?;
        let other_file =
            File::options().read(true).write(true).custom_flags((OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits()).open(&other)?;
        make_raw(&other_file)?;
        let lock = File::create(lock_file(name))?;
        lock.lock()?;
        let _ = std::fs::remove_file(name);
        std::os::unix::fs::symlink(&other, name)?;
        Ok(Line { file, made_up: Some(MadeUp { name: name.to_owned(), _other_side: other_file, _lock: lock }) })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(made_up) = &self.made_up {
            let _ = std::fs::remove_file(&made_up.name);
        }
    }
}

/// Sets the terminal to pass bytes unchanged and to ignore the carrier.
fn make_raw(file: &File) -> io::Result<()> {
    let mut termios = tcgetattr(file.as_fd())?;
    cfmakeraw(&mut termios);
    termios.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
    Ok(tcsetattr(file.as_fd(), SetArg::TCSANOW, &termios)?)
}

/// Returns the name of a pseudo-terminal's other side.
#[cfg(target_os = "linux")]
fn other_side(master: &File) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    nix::ioctl_read!(number_of, b'T', 0x30, nix::libc::c_uint);
    let mut number = 0;
    #[allow(unsafe_code, reason = "this folder is an island")]
    // SAFETY: TIOCGPTN (tty_ioctl(4)) writes one unsigned int through the pointer, which lives over the call.
    unsafe { number_of(master.as_raw_fd(), &mut number) }?;
    Ok(format!("/dev/pts/{number}").into())
}

/// Fails, since made-up hosts are for the tests on Linux.
#[cfg(not(target_os = "linux"))]
fn other_side(_master: &File) -> io::Result<PathBuf> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn what_is_written_to_one_side_is_read_from_the_other_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = dir.path().join("nmdmxA");
        let line = Line::make_up(&name).expect("a pair");
        let mut other = File::options().read(true).write(true).open(&name).expect("opens");
        other.write_all(b"a\nb\r\x03").expect("writes");
        let mut buffer = [0; 16];
        let mut seen = Vec::new();
        while seen.len() < 5 {
            match line.file().read(&mut buffer) {
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(seen, b"a\nb\r\x03");
        line.file().write_all(b"\x04\r").expect("writes");
        other.read_exact(&mut buffer[..2]).expect("reads");
        assert_eq!(&buffer[..2], b"\x04\r");
        drop(line);
        assert!(!name.exists());
    }
}
