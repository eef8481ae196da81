//! The terminal of a console session: raw mode, which is always undone, and the window's size.
//!
//! An unsafe island for one ioctl: TIOCGWINSZ (tty_ioctl(4)).
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, Once};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

nix::ioctl_read_bad!(window_size_ioctl, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// The settings to restore, for the panic hook; `None` while raw mode is off.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Standard input in raw mode, until dropped. The settings are restored on every exit except SIGKILL: by `Drop`, and by
/// a panic hook that runs before the message is printed. The holder must turn signals into an ordinary return.
pub struct RawMode {
    original: Termios,
}

impl RawMode {
    /// Turns raw mode on. Returns `None` if standard input is not a terminal.
    pub fn enter() -> io::Result<Option<RawMode>> {
        let stdin = io::stdin();
        if !io::IsTerminal::is_terminal(&stdin) {
            return Ok(None);
        }
        let original = tcgetattr(&stdin)?;
        let mut raw = original.clone();
        cfmakeraw(&mut raw);
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if let Ok(mut original) = ORIGINAL.lock() {
                    restore(original.take());
                }
                previous(info);
            }));
        });
        *ORIGINAL.lock().expect("no panic happens under this lock") = Some(original.clone());
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(RawMode { original }))
    }

    /// Restores the terminal for a while, as for `~^Z`. [`RawMode::resume`] undoes it.
    pub fn suspend(&self) {
        restore(Some(self.original.clone()));
    }

    /// Turns raw mode on again after [`RawMode::suspend`].
    pub fn resume(&self) -> io::Result<()> {
        let mut raw = self.original.clone();
        cfmakeraw(&mut raw);
        Ok(tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?)
    }
}

fn restore(original: Option<Termios>) {
    if let Some(original) = original {
        // TCSANOW and not TCSADRAIN, since a terminal that is gone or stopped must not block.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &original);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Ok(mut original) = ORIGINAL.lock() {
            original.take();
        }
        restore(Some(self.original.clone()));
    }
}

/// Returns the rows and columns of the terminal on `fd`, if it reports them.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` through the pointer, which lives over the call.
    unsafe { window_size_ioctl(fd.as_raw_fd(), &mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Returns the rows and columns of the terminal of this process.
pub fn own_window_size() -> Option<(u16, u16)> {
    window_size(io::stdout().as_fd()).or_else(|| window_size(io::stdin().as_fd()))
}

/// Resets the modes that a guest's full-screen program may have left on: colours, hidden cursor, the alternate screen,
/// mouse reports, bracketed paste (ECMA-48, xterm control sequences).
pub fn reset_modes(out: &mut dyn Write) {
    let _ = out.write_all(b"\x1b[0m\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1049l");
    let _ = out.flush();
}
