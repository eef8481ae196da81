//! Meaning of the exit of a loader or bhyve (bhyve(8), EXIT STATUS; `usr.sbin/bhyve/amd64/bhyverun_machdep.c`,
//! vmexit_suspend).

use std::time::Duration;

/// bhyve reports wrong usage with the code of a power-off. If it ends within this time with a message on standard
/// error, it did not run a guest.
const NEVER_RAN: Duration = Duration::from_secs(2);
/// Exit code of bhyveload(8) for `quit` and `reboot` at its prompt (`stand/userboot/userboot.h`).
const LOADER_QUIT: i32 = 1;
const LOADER_REBOOT: i32 = 2;

/// The signal for bhyve's power button.
const SIGTERM: i32 = nix::sys::signal::Signal::SIGTERM as i32;

/// The way in which the engine child ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exits with this code.
    Code(u8),
    /// It ends as bhyve did, by this signal.
    Signal(i32),
}

/// Exit codes of the engine child above this tell the signal that ended bhyve, as in a shell. bhyve itself has no such
/// codes. If the child ended by the signal itself, the kernel would log a second crash.
const BY_SIGNAL: i32 = 128;

impl End {
    /// Returns the engine child's exit code.
    pub fn code(self) -> u8 {
        match self {
            End::Code(code) => code,
            End::Signal(signal) => u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX),
        }
    }

    /// Returns the signal for an exit code of the engine child.
    pub fn signal_of(code: i32) -> Option<i32> {
        (BY_SIGNAL + 1..256).contains(&code).then(|| code - BY_SIGNAL)
    }

    /// A reboot.
    pub const REBOOT: End = End::Code(0);
    /// A power-off.
    pub const POWER_OFF: End = End::Code(1);
    /// An error.
    pub const ERROR: End = End::Code(4);
}

/// Reason why a boot ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// This end was requested meanwhile.
    Requested(End),
    /// It failed, with a message for the user.
    Failed(String),
}

/// A request that came while a program ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlRequest {
    /// None.
    Nothing,
    /// A power-off; `forced` if the program had to be killed for it.
    PowerOff {
        /// The program did not end by itself.
        forced: bool,
    },
    /// A reset; `forced` as above.
    Reset {
        /// The program did not end by itself.
        forced: bool,
    },
    /// The end of the engine child.
    End,
}

/// A program that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How long it ran.
    pub ran: Duration,
    /// The end of its standard error, in one line.
    pub words: String,
    /// The request that came meanwhile.
    pub requested: ControlRequest,
}

impl Ended {
    fn how(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
        }
    }

    fn failed(&self, program: &str) -> Trouble {
        match self.words.is_empty() {
            true => Trouble::Failed(format!("`{program}` {}", self.how())),
            false => Trouble::Failed(format!("`{program}` {}: {}", self.how(), self.words)),
        }
    }

    /// Returns whether the power button ended bhyve because bhyve had no button: before the guest has enabled ACPI,
    /// SIGTERM has its default action (`pm.c`, smi_cmd_handler).
    pub fn had_no_button(&self) -> bool {
        matches!(self.requested, ControlRequest::PowerOff { forced: false }) && self.signal == Some(SIGTERM)
    }

    /// Returns whether bhyve ran a guest, as far as can be known.
    pub fn ran_well(&self) -> bool {
        after_bhyve(self).is_ok() && matches!(self.code, Some(0..=3 | 5))
    }
}

/// Returns the end after the loader, or `None` if bhyve follows.
pub fn after_loader(program: &str, ended: &Ended) -> Result<Option<End>, Trouble> {
    match (ended.requested, ended.code) {
        (ControlRequest::PowerOff { .. }, _) => Ok(Some(End::POWER_OFF)),
        (ControlRequest::Reset { .. }, _) => Ok(Some(End::REBOOT)),
        (ControlRequest::End, _) => Ok(Some(End::Signal(nix::sys::signal::Signal::SIGKILL as i32))),
        (ControlRequest::Nothing, Some(0)) => Ok(None),
        (ControlRequest::Nothing, Some(LOADER_REBOOT)) if program == "bhyveload" => Ok(Some(End::REBOOT)),
        (ControlRequest::Nothing, Some(LOADER_QUIT)) if program == "bhyveload" && ended.words.is_empty() => {
            Ok(Some(End::POWER_OFF))
        }
        _ => Err(match ended.failed(program) {
            Trouble::Failed(words) if ended.words.is_empty() => Trouble::Failed(format!("{words}; the console may say why")),
            other => other,
        }),
    }
}

/// Returns the end after bhyve.
pub fn after_bhyve(ended: &Ended) -> Result<End, Trouble> {
    match (ended.requested, ended.code, ended.signal) {
        (ControlRequest::PowerOff { forced: true }, ..) => Ok(End::POWER_OFF),
        (ControlRequest::Reset { forced: true }, ..) => Ok(End::REBOOT),
        _ if ended.had_no_button() => Ok(End::POWER_OFF),
        (ControlRequest::Nothing, Some(1), _) if ended.ran < NEVER_RAN && !ended.words.is_empty() => Err(ended.failed("bhyve")),
        (_, Some(code @ (0..=3 | 5)), _) => Ok(End::Code(code as u8)),
        (_, Some(4), _) => Err(ended.failed("bhyve")),
        // 64 and 71 are sysexits(3) of its option parsers, 100 is an unknown reason. They are passed on unchanged.
        (_, Some(code), _) => Ok(u8::try_from(code).map_or(End::ERROR, End::Code)),
        (_, None, signal) => Ok(End::Signal(signal.unwrap_or(nix::sys::signal::Signal::SIGKILL as i32))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> Ended {
        Ended {
            code: Some(code),
            signal: None,
            ran: Duration::from_secs(60),
            words: String::new(),
            requested: ControlRequest::Nothing,
        }
    }

    #[test]
    fn every_exit_code_of_bhyve_has_its_end() {
        let ends: Vec<_> = [0, 1, 2, 3, 5, 64, 71, 100].map(|code| after_bhyve(&ended(code))).into_iter().collect();
        let expected: Vec<_> = [0, 1, 2, 3, 5, 64, 71, 100].map(|code| Ok(End::Code(code))).into_iter().collect();
        assert_eq!(ends, expected);
        assert_eq!(after_bhyve(&ended(4)), Err(Trouble::Failed("`bhyve` ended with status 4".into())));
        let killed = Ended { code: None, signal: Some(11), ..ended(0) };
        assert_eq!(after_bhyve(&killed), Ok(End::Signal(11)));
    }

    #[test]
    fn the_signal_that_ended_bhyve_is_an_exit_code_of_the_child_and_none_of_bhyves() {
        for signal in [6, 9, 11, 15] {
            assert_eq!(End::signal_of(End::Signal(signal).code().into()), Some(signal));
        }
        assert_eq!([0, 1, 2, 3, 4, 5, 64, 71, 100].map(|code| End::signal_of(End::Code(code).code().into())), [None; 9]);
    }

    #[test]
    fn a_power_off_at_once_with_words_is_an_error_unless_it_was_asked_for() {
        let soon = Ended { ran: Duration::from_millis(40), words: "bhyve: bad slot".into(), ..ended(1) };
        assert_eq!(after_bhyve(&soon), Err(Trouble::Failed("`bhyve` ended with status 1: bhyve: bad slot".into())));
        assert_eq!(after_bhyve(&Ended { words: String::new(), ..soon.clone() }), Ok(End::POWER_OFF));
        assert_eq!(after_bhyve(&Ended { ran: NEVER_RAN, ..soon.clone() }), Ok(End::POWER_OFF));
        assert_eq!(after_bhyve(&Ended { requested: ControlRequest::PowerOff { forced: false }, ..soon }), Ok(End::POWER_OFF));
    }

    #[test]
    fn a_guest_that_had_to_be_killed_for_it_is_powered_off_all_the_same() {
        let killed = Ended { code: None, signal: Some(9), requested: ControlRequest::PowerOff { forced: true }, ..ended(0) };
        assert_eq!(after_bhyve(&killed), Ok(End::POWER_OFF));
        let reset = Ended { requested: ControlRequest::Reset { forced: true }, ..killed };
        assert_eq!(after_bhyve(&reset), Ok(End::REBOOT));
    }

    #[test]
    fn the_loaders_own_ways_out_are_no_errors() {
        assert_eq!(after_loader("bhyveload", &ended(0)), Ok(None));
        assert_eq!(after_loader("bhyveload", &ended(2)), Ok(Some(End::REBOOT)));
        assert_eq!(after_loader("bhyveload", &ended(1)), Ok(Some(End::POWER_OFF)));
        let wrong = Ended { words: "vm_create: Device not configured".into(), ..ended(1) };
        let message = "`bhyveload` ended with status 1: vm_create: Device not configured".to_owned();
        assert_eq!(after_loader("bhyveload", &wrong), Err(Trouble::Failed(message)));
        let message = "`grub-bhyve` ended with status 1; the console may say why".to_owned();
        assert_eq!(after_loader("grub-bhyve", &ended(1)), Err(Trouble::Failed(message)));
        assert_eq!(
            after_loader("grub-bhyve", &Ended { requested: ControlRequest::PowerOff { forced: true }, ..ended(9) }),
            Ok(Some(End::POWER_OFF))
        );
    }
}
