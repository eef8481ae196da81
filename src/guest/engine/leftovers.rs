//! Removal of the remains of boots whose engine child and supervisor were both killed, so that no process will undo them:
//! under bhyve a tap, a virtual machine with the guest's memory, a TPM's process.

use std::fs::File;

use crate::guest::error::Result;
use crate::guest::events::{self, EventKind};
use crate::guest::lock::{GuestLock, Role};
use crate::guest::state::LastExit;
use crate::guest::store::{GuestDir, Store};

/// Removes the remains of a guest that no process runs any more. Returns `false` when there are none, or a process is
/// still working on it. Keeps the way in which the guest ended in its state.
pub fn sweep(guest: &GuestDir) -> Result<bool> {
    if !super::all()?.iter().any(|engine| engine.has_left(guest)) {
        return Ok(false);
    }
    let Ok(_lock) = GuestLock::acquire(&guest.lock_file(), Role::Command)? else { return Ok(false) };
    // An engine child that has lost its supervisor cleans up itself, and holds this lock meanwhile.
    let lease = File::options().write(true).open(guest.lease_file());
    if lease.as_ref().is_ok_and(|lease| lease.try_lock().is_err()) {
        return Ok(false);
    }
    super::sweep(guest)?;
    let mut state = guest.state()?;
    if let Some(run) = state.run.take() {
        events::record(&guest.events_log(), guest.name(), EventKind::SupervisorLost { pid: run.pid });
        state.last_exit = Some(LastExit::of_lost(&run));
        state.save(&guest.state_file())?;
        state.save_run(&guest.state_file())?;
    }
    Ok(true)
}

/// Sweeps every guest of a store as [`sweep`] does, except one that sweeps itself when it boots. Returns the guests
/// with remains, and the results.
pub fn sweep_all(store: &Store, but: Option<&str>) -> Vec<(String, Result<()>)> {
    let names = store.names().unwrap_or_default().into_iter().filter(|name| but != Some(name.as_str()));
    let guests = names.filter_map(|name| store.guest(&name).ok());
    guests
        .filter_map(|guest| match sweep(&guest) {
            Ok(true) => Some((guest.name().to_owned(), Ok(()))),
            Ok(false) => None,
            Err(error) => Some((guest.name().to_owned(), Err(error))),
        })
        .collect()
}
