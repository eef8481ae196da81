//! Editors for the user: one line, the command line, and the lines of an entry.

use super::evaluate::{Flow, Shell};
use super::menu::Entry;
use super::parse::parse;
use super::terminal::Key;
use super::{Halt, Loaded, boot};

/// Maximum number of characters of a line.
const MAX_LINE: usize = 4096;
/// Maximum number of lines of an entry.
const MAX_LINES: usize = 200;
/// Maximum number of lines of command history.
const MAX_HISTORY: usize = 50;
/// Numbers of lines of an entry and columns that are on the screen at once.
const ROWS: usize = 16;
const COLUMNS: usize = 76;

/// Applies a key to a line at a position.
fn change(line: &mut Vec<char>, at: &mut usize, key: Key) {
    match key {
        Key::Char(c) if line.len() < MAX_LINE => {
            line.insert(*at, c);
            *at += 1;
        }
        Key::Backspace if *at > 0 => {
            *at -= 1;
            line.remove(*at);
        }
        Key::Delete if *at < line.len() => drop(line.remove(*at)),
        Key::Left => *at = at.saturating_sub(1),
        Key::Right => *at = (*at + 1).min(line.len()),
        Key::Home => *at = 0,
        Key::End => *at = line.len(),
        Key::Control('k') => line.truncate(*at),
        Key::Control('u') => {
            line.drain(..*at);
            *at = 0;
        }
        _ => {}
    }
}

/// Reads a line that begins with `text`. Returns `None` if it was left with escape or control-c.
pub fn line(shell: &mut Shell<'_>, prompt: &str, text: &str) -> Result<Option<String>, Halt> {
    line_with_history(shell, prompt, text, &[])
}

fn line_with_history(shell: &mut Shell<'_>, prompt: &str, text: &str, history: &[String]) -> Result<Option<String>, Halt> {
    let mut line: Vec<char> = text.chars().collect();
    let mut at = line.len();
    let mut back = history.len();
    loop {
        let shown: String = line.iter().collect();
        let left = line.len() - at;
        let cursor = if left > 0 { format!("\x1b[{left}D") } else { String::new() };
        shell.terminal.print(&format!("\r\x1b[2K{prompt}{shown}{cursor}"));
        let key = shell.terminal.key(None)?.expect("it waits without a limit");
        shell.refresh();
        match key {
            Key::Enter => {
                shell.terminal.print("\n");
                return Ok(Some(line.into_iter().collect()));
            }
            Key::Escape | Key::Control('c') => {
                shell.terminal.print("\n");
                return Ok(None);
            }
            Key::Up | Key::Down => {
                let next = if key == Key::Up { back.saturating_sub(1) } else { (back + 1).min(history.len()) };
                if next != back {
                    back = next;
                    line = history.get(back).map_or(Vec::new(), |text| text.chars().collect());
                    at = line.len();
                }
            }
            key => change(&mut line, &mut at, key),
        }
    }
}

/// Runs the command line, until a kernel must run (`Some`) or the user goes back to the menu.
pub fn command_line(shell: &mut Shell<'_>) -> Result<Option<Loaded>, Halt> {
    shell.terminal.print("\x1b[H\x1b[J  GRUB commands; `help` lists some, escape goes back to the menu.\n\n");
    let mut history: Vec<String> = Vec::new();
    loop {
        let Some(text) = line_with_history(shell, "grub> ", "", &history)? else { return Ok(None) };
        if text.trim().is_empty() {
            continue;
        }
        history.push(text.clone());
        if history.len() > MAX_HISTORY {
            history.remove(0);
        }
        match shell.run_text(&text)? {
            Flow::Boot => return Ok(shell.loaded.take()),
            Flow::Exit => return Ok(None),
            _ => {}
        }
    }
}

/// Lets the user change an entry. Returns the kernel that the entry loads when it is booted with control-x.
pub fn entry(shell: &mut Shell<'_>, entry: &Entry) -> Result<Option<Loaded>, Halt> {
    let mut lines: Vec<Vec<char>> =
        entry.source.trim_matches('\n').lines().map(|l| l.replace('\t', " ").chars().collect()).collect();
    lines.truncate(MAX_LINES);
    if lines.is_empty() {
        lines.push(Vec::new());
    }
    let (mut row, mut at) = (0, 0);
    let mut note = String::new();
    loop {
        draw(shell, &entry.title, &lines, row, at, &note);
        let key = shell.terminal.key(None)?.expect("it waits without a limit");
        shell.refresh();
        note.clear();
        match key {
            Key::Escape => return Ok(None),
            Key::Control('x') => {
                let text: Vec<String> = lines.iter().map(|line| line.iter().collect()).collect();
                let source = text.join("\n");
                shell.terminal.print("\x1b[H\x1b[J");
                match parse(&source) {
                    Ok(script) => {
                        let changed = Entry { script, source, ..entry.clone() };
                        if let (Some(loaded), _) = boot::run_entry(shell, &changed)? {
                            return Ok(Some(loaded));
                        }
                        shell.terminal.print("Press any key to continue editing.");
                        shell.terminal.key(None)?;
                    }
                    Err(error) => note = error.to_string(),
                }
            }
            Key::Up => row = row.saturating_sub(1),
            Key::Down => row = (row + 1).min(lines.len() - 1),
            // The position was kept within its line.
            Key::Enter if lines.len() < MAX_LINES => {
                let rest = lines[row].split_off(at);
                row += 1;
                lines.insert(row, rest);
                at = 0;
            }
            Key::Backspace if at == 0 && row > 0 => {
                let mut rest = lines.remove(row);
                row -= 1;
                at = lines[row].len();
                lines[row].append(&mut rest);
                lines[row].truncate(MAX_LINE);
            }
            key => change(&mut lines[row], &mut at, key),
        }
        at = at.min(lines[row].len());
    }
}

fn draw(shell: &mut Shell<'_>, title: &str, lines: &[Vec<char>], row: usize, at: usize, note: &str) {
    let top = row.saturating_sub(ROWS - 1);
    let mut text = format!("\x1b[H\x1b[J  {title}\n\n");
    // The line with the cursor is scrolled so that the cursor is on the screen.
    let shift = at.saturating_sub(COLUMNS);
    for (number, line) in lines.iter().enumerate().skip(top).take(ROWS) {
        let from = if number == row { shift.min(line.len()) } else { 0 };
        let shown: String = line[from..].iter().take(COLUMNS).collect();
        text.push_str(&format!("  {shown}\n"));
    }
    text.push_str(&format!("\n  Control-x or F10 boots, escape goes back without a change.\n  {note}"));
    text.push_str(&format!("\x1b[{};{}H", row - top + 3, at - shift + 3));
    shell.terminal.print(&text);
}
