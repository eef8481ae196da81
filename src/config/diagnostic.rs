//! What is wrong with a file, and where: `FILE:LINE:COLUMN: what`, the line, a caret, a hint.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A text that was read, and where it came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// As it is shown: a path, `template NAME (built in)`, `--set KEY=VALUE`.
    pub label: String,
    /// All of it.
    pub text: String,
    /// What a relative path in it is relative to, if that is not the guest's own directory.
    pub directory: Option<std::path::PathBuf>,
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which text.
    pub source: Arc<Source>,
    /// Bytes of it.
    pub span: Range<usize>,
}

impl Place {
    /// Line and column, from 1; the column counts characters.
    pub fn line_column(&self) -> (usize, usize) {
        let text = &self.source.text;
        let start = floor_boundary(text, self.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        (text[..start].matches('\n').count() + 1, text[line_start..start].chars().count() + 1)
    }

    /// The line that it starts on, without its end.
    fn line(&self) -> &str {
        let text = &self.source.text;
        let start = floor_boundary(text, self.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        text[line_start..line_end].trim_end_matches('\r')
    }

    /// How many characters of its line it covers, at least one.
    fn width(&self) -> usize {
        let text = &self.source.text;
        let start = floor_boundary(text, self.span.start);
        let end = floor_boundary(text, self.span.end).max(start);
        text[start..end].split('\n').next().map_or(1, |part| part.trim_end().chars().count().max(1))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column}", self.source.label)
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Lower-case, no final stop, the offending value in backticks.
    pub message: String,
    /// Where; `None` when there is no text to point at, like a file that cannot be read.
    pub place: Option<Place>,
    /// Lines that explain, like the chain of a template cycle.
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
        if let Some(place) = self.place.as_mut().filter(|place| place.source.label.contains(from)) {
            let Source { label, text, directory } = &*place.source;
            let source = Source { label: label.replace(from, to), text: text.clone(), directory: directory.clone() };
            place.source = Arc::new(source);
        }
    }

    /// At a place.
    pub fn at(place: &Place, message: impl Into<String>) -> Self {
        Self { message: message.into(), place: Some(place.clone()), notes: Vec::new(), hint: None }
    }
    /// Of no place.
    pub fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: None, notes: Vec::new(), hint: None }
    }
    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// With what to do about it, where that is known.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
    /// With a line that explains.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => {
                writeln!(f, "{place}: {}", self.message)?;
                let (line, column) = (place.line(), place.line_column().1);
                // Tabs are kept above the caret, so that it stands where the terminal shows the text.
                let indent: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                writeln!(f, "    {line}")?;
                writeln!(f, "    {indent}{}", "^".repeat(place.width()))?;
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

/// What has been found wrong so far.
pub type Problems = Vec<Diagnostic>;

/// Everything that is wrong; never empty when it is an error.
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

/// The candidate that `word` was probably meant to be.
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

    fn place(text: &str, span: Range<usize>) -> Place {
        Place { source: Arc::new(Source { label: "a.toml".into(), text: text.into(), directory: None }), span }
    }

    #[test]
    fn a_diagnostic_shows_its_line_with_a_caret_below() {
        let text = "name = \"a\"\n\tmemroy = \"1G\"\n";
        let shown = Diagnostic::at(&place(text, 12..18), "unknown key `memroy`").hint("did you mean `memory`?").to_string();
        assert_eq!(
            shown,
            "a.toml:2:2: unknown key `memroy`\n    \tmemroy = \"1G\"\n    \t^^^^^^\n    hint: did you mean `memory`?\n"
        );
    }

    #[test]
    fn a_place_beyond_or_inside_a_character_is_rounded_down() {
        assert_eq!(place("é", 1..9).line_column(), (1, 1));
        assert_eq!(place("", 5..9).line_column(), (1, 1));
        assert_eq!(place("a\n", 2..2).line_column(), (2, 1));
    }

    #[test]
    fn the_nearest_word_is_offered_only_when_it_is_near() {
        assert_eq!(nearest("memroy", ["name", "memory"]), Some("memory"));
        assert_eq!(nearest("stop-timeout", ["stop_timeout"]), Some("stop_timeout"));
        assert_eq!(nearest("zebra", ["name", "memory"]), None);
    }
}
