//! Questions before something is lost, or before more is done than was named.

use std::io::{BufRead, IsTerminal, Write};

use super::Failure;
use super::progress::asking;

/// The user's consent to the same thing for each of several items.
pub struct Consent {
    /// Given for all that is left: by `--yes`, or by the answer `all`.
    for_all: bool,
    /// Several are asked about, so that `all` is an answer.
    many: bool,
}

impl Consent {
    /// Consent that `--yes` gave, or that is asked for: for one item, or for `many`.
    pub fn new(yes: bool, many: bool) -> Consent {
        Consent { for_all: yes, many }
    }

    /// Asks `question`, unless it is answered already. Where nobody can answer, the failure is `unasked`.
    pub fn ask(&mut self, question: &str, unasked: impl FnOnce() -> Failure) -> Result<bool, Failure> {
        if self.for_all {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            return Err(unasked());
        }
        let answers = if self.many { "[y/N/all]" } else { "[y/N]" };
        let _ = write!(std::io::stderr(), "{question} {answers} ");
        let mut answer = String::new();
        asking(|| std::io::stdin().lock().read_line(&mut answer))?;
        Ok(self.take(&answer))
    }

    /// Takes an answer as it was typed.
    fn take(&mut self, answer: &str) -> bool {
        let answer = answer.trim().to_ascii_lowercase();
        self.for_all = self.many && matches!(answer.as_str(), "a" | "all");
        self.for_all || matches!(answer.as_str(), "y" | "yes")
    }
}

/// Returns the names in a question: at most so many that it can be read.
pub fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Returns `1 guest`, `3 guests`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_an_answer_where_several_are_asked_about_and_holds_for_the_rest() {
        let mut consent = Consent::new(false, true);
        assert!(consent.take("y\n") && !consent.for_all);
        assert!(!consent.take("\n") && !consent.take("no\n"));
        assert!(consent.take("All\n") && consent.for_all);
        assert!(consent.ask("not asked", || Failure::user("asked")).is_ok_and(|given| given));
        let mut one = Consent::new(false, false);
        assert!(!one.take("all\n") && !one.for_all);
    }

    #[test]
    fn a_question_about_forty_guests_can_be_read() {
        let names: Vec<String> = (1..=40).map(|n| format!("g{n}")).collect();
        assert!(listed(&names).ends_with("g12 and 28 more"), "{}", listed(&names));
        assert_eq!(listed(&names[..2]), "g1, g2");
    }
}
