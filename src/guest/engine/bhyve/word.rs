//! Words of command lines and texts of files, which may contain a name that is known only at boot, such as that of a tap
//! that does not exist yet.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A word, in pieces that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Word(Vec<Piece>);

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Piece {
    /// A literal text.
    Text(String),
    /// The name of the tap that is made for this interface.
    Tap(String),
    /// The hook that is chosen for this interface.
    Hook(String),
    /// The device of this disk's unit, below /dev.
    Device(String),
    /// The port of the screen.
    ScreenPort,
}

impl Word {
    /// Returns the pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Appends to the word.
    pub fn push(&mut self, more: impl Into<Word>) {
        for piece in more.into().0 {
            match (self.0.last_mut(), piece) {
                (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
                (_, piece) => self.0.push(piece),
            }
        }
    }

    /// Returns the word with `more` appended.
    pub fn then(mut self, more: impl Into<Word>) -> Word {
        self.push(more);
        self
    }
}

impl From<Piece> for Word {
    fn from(piece: Piece) -> Word {
        match piece {
            Piece::Text(text) if text.is_empty() => Word::default(),
            piece => Word(vec![piece]),
        }
    }
}

impl From<String> for Word {
    fn from(text: String) -> Word {
        Piece::Text(text).into()
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Word {
        text.to_owned().into()
    }
}

impl fmt::Display for Word {
    /// Writes the word for users, with the names that are known only at boot in angle brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Tap(nic) => write!(f, "<tap of {nic}>"),
            Piece::Hook(nic) => write!(f, "<hook of {nic}>"),
            Piece::Device(disk) => write!(f, "<device of {disk}>"),
            Piece::ScreenPort => f.write_str("<port>"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_follow_each_other_are_one_piece_and_a_name_of_the_boot_is_its_own() {
        let text = |text: &str| Piece::Text(text.into());
        let word = Word::from("5,virtio-net,").then(Piece::Tap("net0".into())).then(",mac=").then("02:00:00:00:00:01".to_owned());
        assert_eq!(word.pieces(), [text("5,virtio-net,"), Piece::Tap("net0".into()), text(",mac=02:00:00:00:00:01")]);
        assert_eq!(Word::from("").then(Piece::ScreenPort).pieces(), [Piece::ScreenPort]);
        let json = serde_json::to_string(&word).expect("plain");
        assert_eq!(serde_json::from_str::<Word>(&json).expect("reads back"), word);
    }
}
