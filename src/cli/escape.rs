//! The escapes of a console session, as in cu(1): `~` at the beginning of a line, and one character.

/// One piece of the user's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// `~.`
    Detach,
    /// `~s`
    Stop,
    /// `~?`
    Help,
    /// `~w`
    Resize,
    /// `~^Z`
    Suspend,
}

/// The text for `~?`.
pub const HELP: &str = "\
~.   leave the console; the guest keeps running
~s   ask the guest to stop
~~   a tilde
~w   tell the guest the size of this window (types a `stty` command)
~^Z  suspend this command
~?   this help
Escapes work at the beginning of a line.
";

/// Finds escapes in the input.
#[derive(Debug)]
pub struct Escapes {
    line_start: bool,
    tilde: bool,
    enabled: bool,
}

impl Escapes {
    /// Starts at the beginning of a line. Without escapes every byte goes to the guest.
    pub fn new(enabled: bool) -> Escapes {
        Escapes { line_start: true, tilde: false, enabled }
    }

    /// Splits the bytes into text and escapes, in order.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            if self.tilde {
                self.tilde = false;
                let meaning = match byte {
                    b'.' => Some(Typed::Detach),
                    b's' => Some(Typed::Stop),
                    b'?' => Some(Typed::Help),
                    b'w' => Some(Typed::Resize),
                    0x1a => Some(Typed::Suspend),
                    _ => None,
                };
                if let Some(meaning) = meaning {
                    if !plain.is_empty() {
                        typed.push(Typed::Bytes(std::mem::take(&mut plain)));
                    }
                    typed.push(meaning);
                    self.line_start = true;
                    continue;
                }
                // `~~` is one tilde. Other characters are no escape.
                plain.push(b'~');
                if byte == b'~' {
                    self.line_start = false;
                    continue;
                }
            } else if self.enabled && self.line_start && byte == b'~' {
                self.tilde = true;
                continue;
            }
            plain.push(byte);
            self.line_start = matches!(byte, b'\r' | b'\n');
        }
        if !plain.is_empty() {
            typed.push(Typed::Bytes(plain));
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(escapes: &mut Escapes, text: &str) -> Vec<Typed> {
        text.bytes().flat_map(|byte| escapes.feed(&[byte])).collect()
    }

    fn bytes(typed: &[Typed]) -> Vec<u8> {
        typed.iter().flat_map(|t| if let Typed::Bytes(bytes) = t { bytes.clone() } else { Vec::new() }).collect()
    }

    #[test]
    fn a_tilde_and_a_dot_detach_only_at_the_beginning_of_a_line() {
        let mut escapes = Escapes::new(true);
        assert_eq!(feed(&mut escapes, "~."), [Typed::Detach]);
        assert_eq!(bytes(&feed(&mut escapes, "ls ~.\r")), b"ls ~.\r");
        assert_eq!(escapes.feed(b"ab\r~."), [Typed::Bytes(b"ab\r".to_vec()), Typed::Detach]);
    }

    #[test]
    fn two_tildes_are_one_and_an_unknown_escape_is_passed_on() {
        let mut escapes = Escapes::new(true);
        assert_eq!(bytes(&feed(&mut escapes, "~~.")), b"~.");
        assert_eq!(bytes(&feed(&mut escapes, "\r~/bin\r")), b"\r~/bin\r");
        assert_eq!(feed(&mut escapes, "~\x1a"), [Typed::Suspend]);
        assert_eq!(feed(&mut escapes, "~?~w~s"), [Typed::Help, Typed::Resize, Typed::Stop]);
    }

    #[test]
    fn control_characters_are_the_guests() {
        let mut escapes = Escapes::new(true);
        let all: Vec<u8> = (0..=255u8).filter(|byte| *byte != b'~').collect();
        assert_eq!(bytes(&escapes.feed(&all)), all);
        assert_eq!(bytes(&Escapes::new(false).feed(b"~.")), b"~.");
    }
}
