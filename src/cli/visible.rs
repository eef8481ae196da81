//! Output of bytes from a guest, or from another user's file, to a terminal: sequences that would move its cursor, set
//! its title or write its clipboard are shown as text.
//!
//! **Hostile guest**: the output is at most six times as long as the input.

use std::borrow::Cow;

/// Maximum length of a colour sequence that is let through.
const LONGEST_COLOUR: usize = 16;

/// Returns `bytes` with every control character except newline, tab and the carriage return of a line's end as visible
/// text: `^[` for escape, `\u009b` for those above ASCII and those that change the direction of the text, `\x9b` for
/// bytes that are not UTF-8.
pub fn visible(bytes: &[u8]) -> Cow<'_, [u8]> {
    escape(bytes, false)
}

/// Returns the same for our own text with colours: sequences that only set a colour are let through.
pub fn visible_but_colours(bytes: &[u8]) -> Cow<'_, [u8]> {
    escape(bytes, true)
}

fn escape(bytes: &[u8], colours: bool) -> Cow<'_, [u8]> {
    if bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        let mut rest = text.char_indices().peekable();
        while let Some((at, char)) = rest.next() {
            match char {
                '\n' | '\t' => out.push(char as u8),
                '\r' if text[at + 1..].starts_with('\n') => out.push(b'\r'),
                '\x1b' if colours && colour(&text[at..]).is_some() => {
                    let length = colour(&text[at..]).unwrap_or(1);
                    out.extend_from_slice(&bytes_of(text, at, length));
                    while rest.peek().is_some_and(|(next, _)| *next < at + length) {
                        rest.next();
                    }
                }
                '\0'..='\x1f' => out.extend([b'^', char as u8 + b'@']),
                '\x7f' => out.extend(b"^?"),
                _ if is_control(char) => out.extend(format!("\\u{:04x}", char as u32).into_bytes()),
                _ => out.extend(char.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        // A character that is cut at the very end continues in the next piece. Its beginning alone has no effect.
        let invalid = chunk.invalid();
        match invalid.first() {
            Some(0xc2..=0xf4) if at_the_end(bytes, invalid) => out.extend(invalid),
            _ => invalid.iter().for_each(|byte| out.extend(format!("\\x{byte:02x}").into_bytes())),
        }
    }
    Cow::Owned(out)
}

fn bytes_of(text: &str, at: usize, length: usize) -> Vec<u8> {
    text.as_bytes()[at..at + length].to_vec()
}

fn at_the_end(bytes: &[u8], part: &[u8]) -> bool {
    std::ptr::eq(bytes.as_ptr_range().end, part.as_ptr_range().end)
}

/// Returns whether it is a C1 control, or changes the direction of the text around it (Unicode 16, 23.2 and 23.8; UAX
/// #9, 2).
fn is_control(char: char) -> bool {
    matches!(char, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns the length of the colour sequence (ECMA-48, 8.3.117, SGR) at the start of `text`, but not of one that hides
/// text.
fn colour(text: &str) -> Option<usize> {
    let words = text.strip_prefix("\x1b[")?;
    let length = words.find(|char: char| !char.is_ascii_digit() && char != ';')?;
    let hides = words[..length].split(';').next().is_some_and(|first| first == "8" || first == "28");
    (words[length..].starts_with('m') && length <= LONGEST_COLOUR && !hides).then_some(length + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(&visible(bytes)).into_owned()
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (bytes, shown) in [
            (&b"login: \r\n\tok\n"[..], "login: \r\n\tok\n"),
            (b"\x1b]52;c;cm0gLXJm\x07", "^[]52;c;cm0gLXJm^G"),
            (b"\x1b[2J\x1b[31mred", "^[[2J^[[31mred"),
            (b"safe\rrm -rf", "safe^Mrm -rf"),
            (b"a\x08b\x7fc\0", "a^Hb^?c^@"),
            ("gr\u{fc}n \u{9b}2J".as_bytes(), "gr\u{fc}n \\u009b2J"),
            ("\u{202e}txt.exe".as_bytes(), "\\u202etxt.exe"),
            (b"\x9b2J \xff", "\\x9b2J \\xff"),
        ] {
            assert_eq!(text(bytes), shown, "{bytes:?}");
        }
    }

    #[test]
    fn a_character_that_is_cut_in_two_is_passed_in_two() {
        let whole = "gr\u{fc}n".as_bytes();
        let (one, other) = whole.split_at(3);
        assert_eq!(*visible(one), *one);
        assert_eq!(text(other), "\\xbcn", "the rest alone might be a control");
    }

    #[test]
    fn our_colours_pass_and_no_other_sequence_does() {
        let shown = |text: &str| String::from_utf8(visible_but_colours(text.as_bytes()).into_owned()).expect("UTF-8");
        assert_eq!(shown("\x1b[1;31merror:\x1b[0m no"), "\x1b[1;31merror:\x1b[0m no");
        assert_eq!(shown("\x1b[8mhidden"), "^[[8mhidden");
        assert_eq!(shown("\x1b[2J\x1b]0;t\x07\x1b["), "^[[2J^[]0;t^G^[[");
    }
}
