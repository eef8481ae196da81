//! Errors of guests, with messages for the user.

use std::path::Path;

use crate::config::Diagnostics;
pub use crate::error::{Error as GuestError, Fault};

/// The result of the functions of this folder.
pub type Result<T> = std::result::Result<T, GuestError>;

impl From<Diagnostics> for GuestError {
    /// Wraps the problems of a guest file: the text with its positions, and for a terminal the positions themselves.
    fn from(diagnostics: Diagnostics) -> GuestError {
        GuestError::user(diagnostics.to_string().trim_end()).attach(diagnostics)
    }
}

/// Returns the same error, told of `to` where it names `from`: a directory that has another name while it is filled.
pub fn told_of(error: GuestError, from: &Path, to: &Path) -> GuestError {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    let diagnostics = error.attached::<Diagnostics>().cloned();
    let error = error.map_text(|text| text.replace(&*from, &to));
    match diagnostics {
        Some(mut diagnostics) => {
            diagnostics.0.iter_mut().for_each(|diagnostic| diagnostic.told_of(&from, &to));
            error.attach(diagnostics)
        }
        None => error,
    }
}
