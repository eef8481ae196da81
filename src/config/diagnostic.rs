//! Problems of a file, with their positions: `FILE:LINE:COLUMN: what`, the line, a caret, a hint.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A text that was read, and its origin.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Name for messages: a path, `template NAME (built in)`, `--set KEY=VALUE`.
    pub label: String,
    /// The whole text.
    pub text: String,
    /// Base of relative paths in it, if that is not the guest's own directory.
    pub directory: Option<std::path::PathBuf>,
}

/// A position in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The text.
    pub source: Arc<Source>,
    /// Range of bytes in it.
    pub span: Range<usize>,
}

impl Location {
    /// Returns the line and column, from 1. The column counts characters.
    pub fn line_column(&self) -> (usize, usize) {
        let text = &self.source.text;
        let start = floor_boundary(text, self.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        (text[..start].matches('\n').count() + 1, text[line_start..start].chars().count() + 1)
    }

    /// Returns the line on which it starts, without its end.
    fn line(&self) -> &str {
        let text = &self.source.text;
        let start = floor_boundary(text, self.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        text[line_start..line_end].trim_end_matches('\r')
    }

    /// Returns the number of characters of its line that it covers, at least one.
    fn width(&self) -> usize {
        let text = &self.source.text;
        let start = floor_boundary(text, self.span.start);
        let end = floor_boundary(text, self.span.end).max(start);
        text[start..end].split('\n').next().map_or(1, |part| part.trim_end().chars().count().max(1))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column}", self.source.label)
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// One problem of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Lower-case, no final stop, the offending value in backticks.
    pub message: String,
    /// Its position; `None` if there is no text, as for a file that cannot be read.
    pub location: Option<Location>,
    /// Lines that explain it, like the chain of a template cycle.
    pub notes: Vec<String>,
    /// The next step.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Tells of `to` where it names `from`.
    pub fn told_of(&mut self, from: &str, to: &str) {
        let texts = [Some(&mut self.message), self.hint.as_mut()].into_iter().flatten().chain(&mut self.notes);
        for text in texts {
            *text = text.replace(from, to);
        }
        if let Some(location) = self.location.as_mut().filter(|location| location.source.label.contains(from)) {
            let Source { label, text, directory } = &*location.source;
            let source = Source { label: label.replace(from, to), text: text.clone(), directory: directory.clone() };
            location.source = Arc::new(source);
        }
    }

    /// Creates a problem at a position.
    pub fn at(location: &Location, message: impl Into<String>) -> Self {
        Self { message: message.into(), location: Some(location.clone()), notes: Vec::new(), hint: None }
    }
    /// Creates a problem without a position.
    pub fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), location: None, notes: Vec::new(), hint: None }
    }
    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Adds what to do about it, if that is known.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
    /// Adds a line that explains it.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => {
                writeln!(f, "{location}: {}", self.message)?;
                let (line, column) = (location.line(), location.line_column().1);
                // Tabs are kept above the caret, so that it is where the terminal shows the text.
                let indent: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                writeln!(f, "    {line}")?;
                writeln!(f, "    {indent}{}", "^".repeat(location.width()))?;
            }
            None => writeln!(f, "error: {}", self.message)?,
        }
        for note in &self.notes {
            writeln!(f, "    note: {note}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "    hint: {hint}")?;
        }
        Ok(())
    }
}

/// Problems found so far.
pub type Problems = Vec<Diagnostic>;

/// All problems of a file. As an error it is never empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|diagnostic| diagnostic.fmt(f))
    }
}

impl std::error::Error for Diagnostics {}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

/// Returns the candidate that is most similar to `word`, if it is similar enough.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| {
            let near = candidate.to_lowercase().replace('-', "_");
            let prefix = near.starts_with(&folded) || folded.starts_with(&near);
            (strsim::jaro_winkler(&folded, &near) + if prefix { 0.1 } else { 0.0 }, candidate)
        })
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str, span: Range<usize>) -> Location {
        Location { source: Arc::new(Source { label: "a.toml".into(), text: text.into(), directory: None }), span }
    }

    #[test]
    fn a_diagnostic_shows_its_line_with_a_caret_below() {
        let text = "name = \"a\"\n\tmemroy = \"1G\"\n";
        let shown = Diagnostic::at(&location(text, 12..18), "unknown key `memroy`").hint("did you mean `memory`?").to_string();
        assert_eq!(
            shown,
            "a.toml:2:2: unknown key `memroy`\n    \tmemroy = \"1G\"\n    \t^^^^^^\n    hint: did you mean `memory`?\n"
        );
    }

    #[test]
    fn a_place_beyond_or_inside_a_character_is_rounded_down() {
        assert_eq!(location("é", 1..9).line_column(), (1, 1));
        assert_eq!(location("", 5..9).line_column(), (1, 1));
        assert_eq!(location("a\n", 2..2).line_column(), (2, 1));
    }

    #[test]
    fn the_nearest_word_is_offered_only_when_it_is_near() {
        assert_eq!(nearest("memroy", ["name", "memory"]), Some("memory"));
        assert_eq!(nearest("stop-timeout", ["stop_timeout"]), Some("stop_timeout"));
        assert_eq!(nearest("zebra", ["name", "memory"]), None);
    }
}
