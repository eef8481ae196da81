//! The command lines as text for a shell.

use std::fmt::Write;

use super::{CommandLine, Content, Lines};

/// Returns the lines, with one argument and its value per line; with `explain`, each with the keys that made it.
pub fn as_shell_text(lines: &Lines, explain: bool) -> String {
    let mut text = String::new();
    for file in &lines.files {
        let key = if explain { format!("  # {}", file.key) } else { String::new() };
        let _ = writeln!(text, "# {}{key}", file.path.display());
        match &file.content {
            Content::Plain(content) => {
                for line in content.to_string().lines() {
                    let _ = writeln!(text, "#   {line}");
                }
            }
            Content::Secret(_) => text.push_str("#   (not shown: it holds a secret)\n"),
        }
    }
    for line in lines.loader.iter().chain([&lines.bhyve]) {
        command(&mut text, line, lines.jail.as_deref(), explain);
    }
    text
}

fn command(text: &mut String, line: &CommandLine, jail: Option<&str>, explain: bool) {
    let program = match jail {
        Some(jail) => format!("jexec {} {}", quoted(jail), line.program),
        None => line.program.to_owned(),
    };
    text.push_str(&program);
    for argument in &line.arguments {
        let words = argument.words.iter().map(|word| quoted(&word.to_string())).collect::<Vec<_>>().join(" ");
        match explain {
            // A comment cannot come before a continuation line, so the explained form is only for reading.
            true => {
                let _ = write!(text, "\n    {words:<60} # {}", argument.keys.join(", "));
            }
            false => {
                let _ = write!(text, " \\\n    {words}");
            }
        }
    }
    text.push('\n');
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,=@%+".contains(&b);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
