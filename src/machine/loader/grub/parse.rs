//! GRUB's script language: words, quotes, variables, `if`, `while`, `until`, `for`, `function`, and commands that end
//! with a block (GNU GRUB manual 2.06, "Writing full configuration files directly").
//!
//! A file is parsed statement by statement, so that an invalid one does not affect the others.
//!
//! **Hostile guest**: nesting is bounded; everything else is at most as long as the text.

use std::sync::Arc;

/// Maximum nesting of blocks.
const MAX_NESTING: usize = 24;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text. Quoted text is never split, and it counts even when it is empty.
    Text {
        /// The text.
        text: String,
        /// Whether it was quoted.
        quoted: bool,
    },
    /// A variable. In quotes it is never split.
    Variable {
        /// Its name, or `?`, `#`, `*`, `@`, a number.
        name: String,
        /// Whether it was in double quotes.
        quoted: bool,
    },
}

/// A word before its variables are expanded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Word(pub Vec<Part>);

impl Word {
    /// Returns the text of a word of one unquoted piece, as keywords are.
    fn plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Text { text, quoted: false }] => Some(text),
            _ => None,
        }
    }
}

/// A list of statements.
pub type Script = Arc<Vec<Statement>>;

/// The block after a command: its statements, and its text for the editor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its statements.
    pub script: Script,
    /// The text between the braces.
    pub source: String,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A command, a function's call or an assignment.
    Command {
        /// Name and arguments.
        words: Vec<Word>,
        /// Block, as after `menuentry`.
        block: Option<Block>,
    },
    /// `if`, with its conditions and branches.
    If {
        /// Condition and body of `if` and each `elif`.
        branches: Vec<(Script, Script)>,
        /// `else`.
        otherwise: Option<Script>,
    },
    /// `while` and `until`.
    Loop {
        /// `until`.
        until: bool,
        /// Condition before each round.
        condition: Script,
        /// Body of the loop.
        body: Script,
    },
    /// `for NAME in WORDS`.
    For {
        /// The variable.
        name: String,
        /// Its values.
        words: Vec<Word>,
        /// Body of the loop.
        body: Script,
    },
    /// `function NAME { ... }`.
    Function {
        /// Its name.
        name: String,
        /// Its body.
        body: Script,
    },
}

/// The error for a text that is not a script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct SyntaxError {
    /// Number of the line.
    pub line: usize,
    /// Description of the error.
    pub problem: String,
}

/// A parser that reads a text statement by statement.
pub struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    nesting: usize,
}

/// Parses a whole text. The first invalid statement is an error.
pub fn parse(text: &str) -> Result<Script, SyntaxError> {
    Ok(Arc::new(Parser::new(text).collect::<Result<_, _>>()?))
}

impl Iterator for Parser<'_> {
    type Item = Result<Statement, SyntaxError>;

    /// Returns the next statement. After an error it is the one that begins on the next line.
    fn next(&mut self) -> Option<Self::Item> {
        self.separators();
        if self.at >= self.text.len() {
            return None;
        }
        self.nesting = 0;
        let statement = self.statement();
        if statement.is_err() {
            while self.peek().is_some_and(|byte| byte != b'\n') {
                self.at += 1;
            }
        }
        Some(statement)
    }
}

impl<'a> Parser<'a> {
    /// Creates a parser at the first statement of `text`.
    pub fn new(text: &'a str) -> Parser<'a> {
        Parser { text: text.as_bytes(), at: 0, line: 1, nesting: 0 }
    }

    fn error<T>(&self, problem: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line, problem: problem.into() })
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        self.line += usize::from(byte == b'\n');
        Some(byte)
    }

    fn blanks(&mut self) {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r') => self.at += 1,
                Some(b'\\') if self.text[self.at..].starts_with(b"\\\n") => {
                    self.at += 2;
                    self.line += 1;
                }
                Some(b'\\') if self.text[self.at..].starts_with(b"\\\r\n") => {
                    self.at += 3;
                    self.line += 1;
                }
                Some(b'#') => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn separators(&mut self) {
        self.blanks();
        while matches!(self.peek(), Some(b'\n' | b';')) {
            self.take();
            self.blanks();
        }
    }

    /// Returns whether there is a brace alone here.
    fn brace(&self, brace: u8) -> bool {
        let ends = |byte: Option<&u8>| byte.is_none_or(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b';' | b'}'));
        self.peek() == Some(brace) && ends(self.text.get(self.at + 1))
    }

    fn word(&mut self) -> Result<Word, SyntaxError> {
        let mut parts: Vec<Part> = Vec::new();
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' => break,
                b'\'' => {
                    self.at += 1;
                    let text = self.quoted_by(b'\'')?;
                    parts.push(Part::Text { text, quoted: true });
                }
                b'"' => {
                    self.at += 1;
                    self.double_quoted(&mut parts)?;
                }
                b'$' => {
                    self.at += 1;
                    let part = self.variable(false)?;
                    parts.push(part);
                }
                b'\\' => {
                    self.at += 1;
                    match self.take() {
                        Some(b'\n') => {}
                        Some(_) => {
                            let text = self.character(self.at - 1);
                            parts.push(Part::Text { text, quoted: true });
                        }
                        None => push(&mut parts, "\\", false),
                    }
                }
                _ => {
                    self.at += 1;
                    let text = self.character(self.at - 1);
                    push(&mut parts, &text, false);
                }
            }
        }
        Ok(Word(parts))
    }

    /// Returns the character whose first byte, at `start`, was taken.
    fn character(&mut self, start: usize) -> String {
        while self.peek().is_some_and(|byte| byte & 0xc0 == 0x80) {
            self.at += 1;
        }
        String::from_utf8_lossy(&self.text[start..self.at]).into_owned()
    }

    fn quoted_by(&mut self, quote: u8) -> Result<String, SyntaxError> {
        let start = self.at;
        while let Some(byte) = self.take() {
            if byte == quote {
                return Ok(String::from_utf8_lossy(&self.text[start..self.at - 1]).into_owned());
            }
        }
        self.error(format!("a quote `{}` has no end", char::from(quote)))
    }

    fn double_quoted(&mut self, parts: &mut Vec<Part>) -> Result<(), SyntaxError> {
        // Even an empty pair of quotes makes a word.
        parts.push(Part::Text { text: String::new(), quoted: true });
        loop {
            match self.take() {
                None => return self.error("a quote `\"` has no end"),
                Some(b'"') => return Ok(()),
                Some(b'$') => {
                    let part = self.variable(true)?;
                    parts.push(part);
                }
                Some(b'\\') => match self.peek() {
                    Some(byte @ (b'$' | b'"' | b'\\')) => {
                        self.at += 1;
                        push(parts, &char::from(byte).to_string(), true);
                    }
                    Some(b'\n') => drop(self.take()),
                    _ => push(parts, "\\", true),
                },
                Some(_) => {
                    let text = self.character(self.at - 1);
                    push(parts, &text, true);
                }
            }
        }
    }

    /// Parses the variable after a `$`.
    fn variable(&mut self, quoted: bool) -> Result<Part, SyntaxError> {
        let start = self.at;
        let name = match self.peek() {
            Some(b'{') => {
                self.at += 1;
                return Ok(Part::Variable { name: self.quoted_by(b'}')?, quoted });
            }
            Some(b'?' | b'#' | b'*' | b'@') => {
                self.at += 1;
                1
            }
            Some(byte) if byte.is_ascii_digit() => self.run(|byte| byte.is_ascii_digit()),
            Some(byte) if byte.is_ascii_alphabetic() || byte == b'_' => {
                self.run(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            }
            _ => return Ok(Part::Text { text: "$".into(), quoted }),
        };
        let name = String::from_utf8_lossy(&self.text[start..start + name]).into_owned();
        Ok(Part::Variable { name, quoted })
    }

    fn run(&mut self, belongs: impl Fn(u8) -> bool) -> usize {
        let start = self.at;
        while self.peek().is_some_and(&belongs) {
            self.at += 1;
        }
        self.at - start
    }

    fn statement(&mut self) -> Result<Statement, SyntaxError> {
        let first = self.word()?;
        match first.plain() {
            Some("if") => self.conditional(),
            Some(keyword @ ("while" | "until")) => {
                let until = keyword == "until";
                let (condition, _) = self.list_until(&["do"])?;
                let (body, _) = self.list_until(&["done"])?;
                Ok(Statement::Loop { until, condition, body })
            }
            Some("for") => self.for_loop(),
            Some("function") => {
                self.blanks();
                let name = self.word()?.plain().map(str::to_string);
                let Some(name) = name else { return self.error("a function has no name") };
                self.separators();
                if !self.brace(b'{') {
                    return self.error(format!("the function `{name}` has no body"));
                }
                Ok(Statement::Function { name, body: self.block()?.script })
            }
            Some(stray @ ("then" | "elif" | "else" | "fi" | "do" | "done" | "}")) => {
                self.error(format!("`{stray}` is where a command should be"))
            }
            _ => self.command(first),
        }
    }

    fn command(&mut self, first: Word) -> Result<Statement, SyntaxError> {
        let mut words = vec![first];
        loop {
            self.blanks();
            match self.peek() {
                None | Some(b'\n' | b';') => break,
                Some(b'{') if self.brace(b'{') => {
                    let block = Some(self.block()?);
                    return Ok(Statement::Command { words, block });
                }
                Some(b'}') if self.nesting > 0 && self.brace(b'}') => break,
                Some(_) => words.push(self.word()?),
            }
        }
        Ok(Statement::Command { words, block: None })
    }

    fn deeper(&mut self) -> Result<(), SyntaxError> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return self.error("blocks are nested too deeply");
        }
        Ok(())
    }

    /// Parses from `{` to its `}`.
    fn block(&mut self) -> Result<Block, SyntaxError> {
        self.deeper()?;
        self.take();
        let start = self.at;
        let mut statements = Vec::new();
        loop {
            self.separators();
            match self.peek() {
                None => return self.error("a block `{` has no end"),
                Some(b'}') if self.brace(b'}') => break,
                Some(_) => statements.push(self.statement()?),
            }
        }
        let source = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        self.take();
        self.nesting -= 1;
        Ok(Block { script: Arc::new(statements), source })
    }

    /// Parses statements up to one of the keywords, which it takes and returns.
    fn list_until(&mut self, ends: &[&'static str]) -> Result<(Script, &'static str), SyntaxError> {
        self.deeper()?;
        let mut statements = Vec::new();
        loop {
            self.separators();
            if self.at >= self.text.len() {
                return self.error(format!("`{}` is missing", ends.join("` or `")));
            }
            let (at, line) = (self.at, self.line);
            let word = self.word()?;
            if let Some(end) = ends.iter().find(|end| word.plain() == Some(**end)) {
                self.nesting -= 1;
                return Ok((Arc::new(statements), end));
            }
            (self.at, self.line) = (at, line);
            statements.push(self.statement()?);
        }
    }

    fn conditional(&mut self) -> Result<Statement, SyntaxError> {
        let mut branches = Vec::new();
        loop {
            let (condition, _) = self.list_until(&["then"])?;
            let (body, end) = self.list_until(&["elif", "else", "fi"])?;
            branches.push((condition, body));
            match end {
                "elif" => {}
                "else" => {
                    let (otherwise, _) = self.list_until(&["fi"])?;
                    return Ok(Statement::If { branches, otherwise: Some(otherwise) });
                }
                _ => return Ok(Statement::If { branches, otherwise: None }),
            }
        }
    }

    fn for_loop(&mut self) -> Result<Statement, SyntaxError> {
        self.blanks();
        let Some(name) = self.word()?.plain().map(str::to_string) else { return self.error("`for` has no variable") };
        self.blanks();
        if self.word()?.plain() != Some("in") {
            return self.error("`for` has no `in`");
        }
        let mut words = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                None | Some(b'\n' | b';') => break,
                Some(_) => words.push(self.word()?),
            }
        }
        self.list_until(&["do"])
            .and_then(|(before, _)| if before.is_empty() { Ok(()) } else { self.error("`do` is missing") })?;
        let (body, _) = self.list_until(&["done"])?;
        Ok(Statement::For { name, words, body })
    }
}

/// Appends to the last part if it is text of the same kind.
fn push(parts: &mut Vec<Part>, more: &str, is_quoted: bool) {
    match parts.last_mut() {
        Some(Part::Text { text, quoted }) if *quoted == is_quoted => text.push_str(more),
        _ => parts.push(Part::Text { text: more.to_string(), quoted: is_quoted }),
    }
}

/// Quotes a text so that it is one word of a script, whatever it contains.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Word> {
        match &parse(text).expect("a script")[..] {
            [Statement::Command { words, .. }] => words.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn plain(text: &str) -> Part {
        Part::Text { text: text.into(), quoted: false }
    }
    fn quoted(text: &str) -> Part {
        Part::Text { text: text.into(), quoted: true }
    }
    fn variable(name: &str, quoted: bool) -> Part {
        Part::Variable { name: name.into(), quoted }
    }

    #[test]
    fn words_are_split_and_quoted_as_grub_does() {
        let expected = [
            Word(vec![plain("a")]),
            Word(vec![quoted("b c")]),
            Word(vec![quoted("d "), variable("x", true), quoted("\\n\"")]),
            Word(vec![plain("e"), variable("y_1", false), quoted(" "), plain("f")]),
            Word(vec![variable("z", false)]),
        ];
        assert_eq!(words("a 'b c' \"d ${x}\\n\\\"\" e$y_1\\ f \\\n ${z} # comment"), expected);
        assert_eq!(words("echo \"\""), [Word(vec![plain("echo")]), Word(vec![quoted("")])]);
        assert_eq!(words(&format!("echo {}", quote("it's"))).len(), 2);
    }

    #[test]
    fn what_grub_mkconfig_writes_is_understood() {
        let text = r#"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
elif [ x$a = xb ]; then true
else
   set default="0"
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
	load_video
	linux	/boot/vmlinuz root=UUID=1 ro  quiet
}
submenu 'Advanced' { menuentry one { true; } }
for x in a b; do echo $x; done
while false; do true; done
"#;
        let script = parse(text).expect("a script");
        assert_eq!(script.len(), 6);
        let Statement::If { branches, otherwise } = &script[0] else { panic!() };
        assert_eq!((branches.len(), otherwise.is_some()), (2, true));
        let Statement::Command { words, block: Some(block) } = &script[2] else { panic!() };
        assert_eq!((words.len(), block.script.len()), (6, 2));
        assert!(block.source.contains("linux\t/boot/vmlinuz"));
    }

    #[test]
    fn an_error_names_its_line_and_the_statements_after_it_are_still_read() {
        let parts: Vec<_> = Parser::new("echo one\nfi\necho two\nif true; then\n").collect();
        assert!(parts[0].is_ok() && parts[2].is_ok());
        assert_eq!(parts[1].as_ref().unwrap_err().to_string(), "line 2: `fi` is where a command should be");
        assert!(parts[3].as_ref().unwrap_err().to_string().contains("is missing"));
    }

    #[test]
    fn nesting_is_bounded() {
        let text = "if true; then ".repeat(10_000);
        assert!(parse(&text).unwrap_err().problem.contains("too deeply"));
    }
}
