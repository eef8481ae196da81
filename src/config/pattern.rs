//! Patterns of guest names, as a shell has them: `*`, `?`, `[a-c]`, `[!a-c]` and `{web,db}`.

use std::str::FromStr;

use glob::Pattern;

/// A pattern of guest names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern(Vec<Pattern>);

/// A text that is not a pattern, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a pattern: {fault}")]
pub struct PatternError {
    text: String,
    fault: PatternFault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum PatternFault {
    #[error("a group `{{` is not closed")]
    Unclosed,
    #[error("`}}` closes no group")]
    Unopened,
    #[error("its groups have more than {MAX_ALTERNATIVES} alternatives")]
    TooMany,
    #[error("a range `[` is not closed")]
    Range,
}

/// Alternatives that a pattern may have, all its groups multiplied.
const MAX_ALTERNATIVES: usize = 1024;

impl NamePattern {
    /// Whether a text has any of the signs that make it more than a name.
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?', '[', '{'])
    }

    /// Whether a name is one of those that are meant.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let compiled = alternatives(text).and_then(|texts| texts.iter().map(|text| compile(text)).collect());
        compiled.map(NamePattern).map_err(|fault| PatternError { text: text.to_owned(), fault })
    }
}

fn compile(text: &str) -> Result<Pattern, PatternFault> {
    // The crate knows `**` for folders only, and `!` alone for what is not meant.
    let mut text = text.replace("[^", "[!");
    while text.contains("**") {
        text = text.replace("**", "*");
    }
    // What is left to be wrong is a range.
    Pattern::new(&text).map_err(|_| PatternFault::Range)
}

/// The texts that a text with groups `{a,b}` stands for.
fn alternatives(text: &str) -> Result<Vec<String>, PatternFault> {
    let mut done = Vec::new();
    let mut left = vec![text.to_owned()];
    while let Some(text) = left.pop() {
        let Some(start) = text.find('{') else {
            if text.contains('}') {
                return Err(PatternFault::Unopened);
            }
            done.push(text);
            continue;
        };
        let (commas, end) = group(&text[start..]).ok_or(PatternFault::Unclosed)?;
        let cuts = [&[0], &commas[..], &[end]].concat();
        for cut in cuts.windows(2) {
            left.push(format!("{}{}{}", &text[..start], &text[start + cut[0] + 1..start + cut[1]], &text[start + end + 1..]));
        }
        if done.len() + left.len() > MAX_ALTERNATIVES {
            return Err(PatternFault::TooMany);
        }
    }
    Ok(done)
}

/// Where the commas and the end of the group are that a text begins with.
fn group(text: &str) -> Option<(Vec<usize>, usize)> {
    let (mut depth, mut commas) = (0, Vec::new());
    for (at, sign) in text.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth == 1 => return Some((commas, at)),
            '}' => depth -= 1,
            ',' if depth == 1 => commas.push(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_a_shells_mean() {
        for (pattern, meant, not) in [
            ("web*", &["web", "web1"][..], &["aweb", "wex"][..]),
            ("web?", &["web1"], &["web", "web12"]),
            ("web[1-3]", &["web1", "web3"], &["web4", "web"]),
            ("web[!1]", &["web2"], &["web1"]),
            ("web[^1]", &["web2"], &["web1"]),
            ("{web,db}-?", &["web-1", "db-2"], &["web", "mail-1"]),
            ("{web,{db,dc}{1,2}}", &["web", "db1", "dc2"], &["db", "web1"]),
            ("a**z", &["az", "a-z"], &["a"]),
            ("{,x}y", &["y", "xy"], &["x"]),
        ] {
            let compiled: NamePattern = pattern.parse().expect(pattern);
            for name in meant {
                assert!(compiled.matches(name), "{pattern} {name}");
            }
            for name in not {
                assert!(!compiled.matches(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_is_named_and_costs_little() {
        for wrong in ["web[", "{a,b", "a}", "{a,{b}"] {
            assert!(wrong.parse::<NamePattern>().is_err(), "{wrong}");
        }
        let error = "{a,b}".repeat(10_000).parse::<NamePattern>().expect_err("too many");
        assert_eq!(error.fault, PatternFault::TooMany);
    }
}
