//! What `disk` and `nic` share: taking one of a guest's parts away, and saying what was done to one.

use super::selection::Place;
use super::{App, ExitStatus, Outcome};
use crate::guest::change::{self, Class, When};
use crate::guest::store::GuestDir;

/// Says what was done to a part, and when the guest sees it.
pub fn done(app: &App, guest: &GuestDir, class: Class, id: &str, what: &str, when: When) -> Outcome {
    app.ui.done(format!("{}: {} {id} is {what}{}", guest.name(), class.word(), when.words()));
    Ok(ExitStatus::Done)
}

/// Takes a part away; with `purge` its bytes, too.
pub fn remove(app: &App, place: &Place, guest: &str, class: Class, id: &str, purge: bool) -> Outcome {
    let guest = place.store.guest(guest)?;
    let when = change::remove(&guest, class, id, purge, place.around())?;
    done(app, &guest, class, id, "removed", when)
}
