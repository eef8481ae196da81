//! What an ended loader or bhyve means (bhyve(8), EXIT STATUS; `usr.sbin/bhyve/amd64/bhyverun_machdep.c`, vmexit_suspend).

use std::time::Duration;

/// bhyve says that it was used wrongly with the code of a power-off; so soon after the start, with something on
/// standard error, it did not run a guest.
const NEVER_RAN: Duration = Duration::from_secs(2);
/// What bhyveload(8) exits with for `quit` and `reboot` at its prompt (`stand/userboot/userboot.h`).
const LOADER_QUIT: i32 = 1;
const LOADER_REBOOT: i32 = 2;

/// What presses bhyve's power button.
const SIGTERM: i32 = nix::sys::signal::Signal::SIGTERM as i32;

/// How the engine child ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(u8),
    /// As bhyve did, by this signal.
    Signal(i32),
}

/// What an exit code of the engine child is above that says by which signal bhyve was ended, as a shell says it. bhyve
/// itself has no such codes. Ending by the signal itself would have the kernel log a second crash.
const BY_SIGNAL: i32 = 128;

impl End {
    /// The engine child's exit code.
    pub fn code(self) -> u8 {
        match self {
            End::Code(code) => code,
            End::Signal(signal) => u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX),
        }
    }

    /// The signal that an exit code of the engine child stands for.
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

/// Why a boot did not go its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody asked for this end meanwhile.
    Told(End),
    /// In the words a user reads.
    Failed(String),
}

/// What somebody asked for while a program ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// A power-off; `forced` when the program had to be killed for it.
    PowerOff {
        /// It did not end by itself.
        forced: bool,
    },
    /// A reset; `forced` as above.
    Reset {
        /// It did not end by itself.
        forced: bool,
    },
    /// The end of everything.
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
    /// The end of what it wrote to standard error, in one line.
    pub words: String,
    /// What was asked for meanwhile.
    pub told: Told,
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

    /// Whether it was bhyve without a power button that the button ended: before the guest has turned ACPI on, SIGTERM does
    /// what it does to any program (`pm.c`, smi_cmd_handler).
    pub fn had_no_button(&self) -> bool {
        matches!(self.told, Told::PowerOff { forced: false }) && self.signal == Some(SIGTERM)
    }

    /// Whether bhyve ran a guest, for all that can be known.
    pub fn ran_well(&self) -> bool {
        after_bhyve(self).is_ok() && matches!(self.code, Some(0..=3 | 5))
    }
}

/// What follows the loader: the end, or bhyve.
pub fn after_loader(program: &str, ended: &Ended) -> Result<Option<End>, Trouble> {
    match (ended.told, ended.code) {
        (Told::PowerOff { .. }, _) => Ok(Some(End::POWER_OFF)),
        (Told::Reset { .. }, _) => Ok(Some(End::REBOOT)),
        (Told::End, _) => Ok(Some(End::Signal(nix::sys::signal::Signal::SIGKILL as i32))),
        (Told::Nothing, Some(0)) => Ok(None),
        (Told::Nothing, Some(LOADER_REBOOT)) if program == "bhyveload" => Ok(Some(End::REBOOT)),
        (Told::Nothing, Some(LOADER_QUIT)) if program == "bhyveload" && ended.words.is_empty() => Ok(Some(End::POWER_OFF)),
        _ => Err(match ended.failed(program) {
            Trouble::Failed(words) if ended.words.is_empty() => Trouble::Failed(format!("{words}; the console may say why")),
            other => other,
        }),
    }
}

/// What follows bhyve.
pub fn after_bhyve(ended: &Ended) -> Result<End, Trouble> {
    match (ended.told, ended.code, ended.signal) {
        (Told::PowerOff { forced: true }, ..) => Ok(End::POWER_OFF),
        (Told::Reset { forced: true }, ..) => Ok(End::REBOOT),
        _ if ended.had_no_button() => Ok(End::POWER_OFF),
        (Told::Nothing, Some(1), _) if ended.ran < NEVER_RAN && !ended.words.is_empty() => Err(ended.failed("bhyve")),
        (_, Some(code @ (0..=3 | 5)), _) => Ok(End::Code(code as u8)),
        (_, Some(4), _) => Err(ended.failed("bhyve")),
        // 64 and 71 are sysexits(3) of its option parsers, 100 a reason that it does not know: passed on as they are.
        (_, Some(code), _) => Ok(u8::try_from(code).map_or(End::ERROR, End::Code)),
        (_, None, signal) => Ok(End::Signal(signal.unwrap_or(nix::sys::signal::Signal::SIGKILL as i32))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> Ended {
        Ended { code: Some(code), signal: None, ran: Duration::from_secs(60), words: String::new(), told: Told::Nothing }
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
        assert_eq!(after_bhyve(&Ended { told: Told::PowerOff { forced: false }, ..soon }), Ok(End::POWER_OFF));
    }

    #[test]
    fn a_guest_that_had_to_be_killed_for_it_is_powered_off_all_the_same() {
        let killed = Ended { code: None, signal: Some(9), told: Told::PowerOff { forced: true }, ..ended(0) };
        assert_eq!(after_bhyve(&killed), Ok(End::POWER_OFF));
        let reset = Ended { told: Told::Reset { forced: true }, ..killed };
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
            after_loader("grub-bhyve", &Ended { told: Told::PowerOff { forced: true }, ..ended(9) }),
            Ok(Some(End::POWER_OFF))
        );
    }
}
