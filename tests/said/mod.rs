//! What `vmctl` said in a test, and what the tests of several binaries ask of it.
// Each binary asks for some of it.
#![allow(dead_code)]

use std::process::Output;

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Said {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
    /// That it ended with one of these codes and these words among its errors.
    #[track_caller]
    pub fn failed_with(self, codes: &[i32], words: &str) -> Said {
        assert!(self.code.is_some_and(|code| codes.contains(&code)), "{self:?}");
        assert!(self.err.contains(words), "no `{words}` in {self:?}");
        self
    }
    #[track_caller]
    pub fn says(self, words: &str) -> Said {
        assert!(self.out.contains(words) || self.err.contains(words), "no `{words}` in {self:?}");
        self
    }
    #[track_caller]
    pub fn does_not_say(self, words: &str) -> Said {
        assert!(!self.out.contains(words) && !self.err.contains(words), "`{words}` in {self:?}");
        self
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
