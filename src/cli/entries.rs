//! Code that `disk` and `nic` share: removing an entry of a guest file, and reporting a change of one.

use super::selection::CommandContext;
use super::{App, ExitStatus, Outcome};
use crate::guest::change::{self, Class, When};
use crate::guest::store::GuestDir;

/// Reports a change of an entry, and when the guest sees it.
pub fn done(app: &App, guest: &GuestDir, class: Class, id: &str, what: &str, when: When) -> Outcome {
    app.ui.done(format!("{}: {} {id} is {what}{}", guest.name(), class.word(), when.words()));
    Ok(ExitStatus::Done)
}

/// Removes an entry; with `purge` its bytes too.
pub fn remove(app: &App, context: &CommandContext, guest: &str, class: Class, id: &str, purge: bool) -> Outcome {
    let guest = context.store.guest(guest)?;
    let when = change::remove(&guest, class, id, purge, context.surroundings())?;
    done(app, &guest, class, id, "removed", when)
}
