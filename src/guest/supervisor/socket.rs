//! The control socket and the permission to connect to it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use crate::config::GuestConfig;
use crate::guest::error::{GuestError, Result};
use crate::guest::store::GuestDir;

/// Lets the `owner` of the guest file talk to the supervisor: stop and restart the guest, and use its console.
pub(super) fn give_to_owner(guest: &GuestDir, config: &GuestConfig) -> Result<()> {
    let Some(owner) = &config.owner else { return Ok(()) };
    let user = nix::unistd::User::from_name(owner).ok().flatten();
    let user = user.ok_or_else(|| GuestError::user(format!("`owner`: no user of this host is called `{owner}`")))?;
    let ours = nix::unistd::geteuid();
    if user.uid == ours {
        return Ok(());
    }
    if !ours.is_root() {
        return Err(GuestError::user(format!("only root can start a guest for its owner `{owner}`")));
    }
    let socket = guest.socket();
    std::os::unix::fs::lchown(&socket, Some(user.uid.as_raw()), None)
        .map_err(|error| GuestError::io("give to the owner", &socket, error))
}

/// Listens at the guest's socket. The caller holds the guest's lock, so an existing socket was left by a dead
/// supervisor.
pub(super) fn listen(guest: &GuestDir) -> Result<UnixListener> {
    let socket = guest.prepare_socket()?;
    let _ = std::fs::remove_file(&socket);
    let failed = |error| GuestError::io("listen at", &socket, error);
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&socket);
    nix::sys::stat::umask(old);
    let listener = listener.map_err(failed)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
