//! The boot menu: its entries, the default, and the user's choice.

use std::time::Duration;

use super::evaluate::{Done, Ended, Flow, Shell, error};
use super::find::{Configuration, Kind};
use super::parse::Script;
use super::terminal::{Key, Terminal};
use super::{Halt, Loaded, bls, boot, editor, files, syslinux};

/// Number of entries on the screen at once.
const ROWS: usize = 14;
/// Number of characters of a title on the screen.
const COLUMNS: usize = 70;
/// Maximum nesting of menus.
const MAX_DEPTH: usize = 8;
/// Time for which a message about an entry that did not boot is shown before the menu comes back.
const MESSAGE_TIME: Duration = Duration::from_secs(10);

/// An entry of a menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Title on the screen.
    pub title: String,
    /// Name that `default` may use.
    pub id: String,
    /// The key that boots it at once.
    pub hotkey: Option<char>,
    /// Values of `$1` and so on: the title first.
    pub arguments: Vec<String>,
    /// Commands of the entry.
    pub script: Script,
    /// The commands as text, for the editor.
    pub source: String,
    /// Whether it leads to another menu.
    pub submenu: bool,
}

/// The way in which a menu was left.
enum Left {
    /// A kernel was loaded.
    Booted(Loaded),
    /// The user went back to the menu before.
    Back,
    /// The menu had no entries, or the entry loaded nothing.
    Empty,
    /// An entry called `exit`: the next configuration follows, as firmware would continue with the next disk.
    Quit,
}

/// Runs the `configuration` and its menu. Returns `None` if it has no entry and loaded nothing.
pub fn boot_from(shell: &mut Shell<'_>, configuration: &Configuration) -> Result<Option<Loaded>, Halt> {
    shell.enter();
    let left = open(shell, configuration);
    shell.leave();
    match left? {
        Left::Booted(loaded) => Ok(Some(loaded)),
        Left::Back | Left::Empty | Left::Quit => Ok(None),
    }
}

fn open(shell: &mut Shell<'_>, configuration: &Configuration) -> Result<Left, Halt> {
    shell.set("root", &configuration.device);
    let directory =
        if configuration.kind == Kind::Entries { "" } else { configuration.path.rsplit_once('/').map_or("", |(d, _)| d) };
    shell.set("prefix", &format!("({}){directory}", configuration.device));
    shell.set("cmdpath", &format!("({}){directory}", configuration.device));
    let file = format!("({}){}", configuration.device, configuration.path);
    shell.terminal.print(&format!("vmctl: boot configuration {file}\n"));
    let flow = match configuration.kind {
        Kind::Grub => run_configuration(shell, &file)?,
        Kind::Entries => {
            bls::command(shell)?;
            shell.set("timeout", "5");
            Flow::Next
        }
        Kind::Syslinux => {
            if let Err(text) = syslinux::add(shell, &file) {
                shell.complain(&text)?;
            }
            Flow::Next
        }
    };
    after_configuration(shell, flow, None, 0)
}

/// Runs a file's script with the variables that name it.
fn run_configuration(shell: &mut Shell<'_>, file: &str) -> Result<Flow, Halt> {
    shell.set("config_file", file);
    shell.set("config_directory", file.rsplit_once('/').map_or("", |(directory, _)| directory));
    for name in ["config_file", "config_directory"] {
        shell.export(name);
    }
    match shell.read_file(file, files::MAX_CONFIG) {
        Ok(bytes) => shell.run_text(&String::from_utf8_lossy(&bytes)),
        Err(text) => {
            shell.complain(&text)?;
            Ok(Flow::Next)
        }
    }
}

/// Shows the menu that a script left, or returns the kernel that it loaded itself.
fn after_configuration(shell: &mut Shell<'_>, flow: Flow, chosen: Option<&str>, depth: usize) -> Result<Left, Halt> {
    if flow == Flow::Exit {
        return Ok(Left::Back);
    }
    if let Some(loaded) = shell.loaded.take()
        && (flow == Flow::Boot || shell.menu().is_empty())
    {
        return Ok(Left::Booted(loaded));
    }
    if shell.menu().is_empty() {
        return Ok(Left::Empty);
    }
    choose(shell, chosen, depth)
}

/// Shows the menu of the scripts so far, until something boots.
#[cfg(test)]
pub fn show(shell: &mut Shell<'_>) -> Result<Option<Loaded>, Halt> {
    match after_configuration(shell, Flow::Next, None, 0)? {
        Left::Booted(loaded) => Ok(Some(loaded)),
        Left::Back | Left::Empty | Left::Quit => Ok(None),
    }
}

/// Runs `configfile` and `normal`: shows another configuration's menu, with its own variables.
pub fn configure(shell: &mut Shell<'_>, file: Option<&str>) -> Ended {
    let file = file.map_or_else(|| format!("{}/grub.cfg", shell.get("prefix")), str::to_string);
    // `(device)` is put before a name that has none, since the other configuration may change `root`.
    let file = match shell.split_name(&file) {
        Ok((device, path)) => format!("({}){path}", device.name),
        Err(text) => return error(text),
    };
    if let Err(text) = shell.read_file(&file, files::MAX_CONFIG) {
        return error(text);
    }
    configure_with(shell, |shell| run_configuration(shell, &file))
}

/// Shows the menu that `run` leaves, with its own variables.
pub fn configure_with(shell: &mut Shell<'_>, run: impl FnOnce(&mut Shell<'_>) -> Result<Flow, Halt>) -> Ended {
    shell.enter();
    let outcome = shell.nested(run).and_then(|flow| after_configuration(shell, flow, None, 1));
    shell.leave();
    Ok(match outcome? {
        Left::Booted(loaded) => {
            shell.loaded = Some(loaded);
            Done::Flow(Flow::Boot)
        }
        Left::Quit => Done::Flow(Flow::Exit),
        Left::Back | Left::Empty => Done::Status(true),
    })
}

/// Returns the index of the entry that `name` selects: by title, id, or number from 0.
fn position(entries: &[Entry], name: &str) -> Option<usize> {
    let by_name = entries.iter().position(|entry| entry.title == name || entry.id == name);
    by_name.or_else(|| name.parse::<usize>().ok().filter(|&number| number < entries.len()))
}

/// Returns the entry that is selected at this level, and the rest of the name for the menus below.
fn first_choice<'a>(entries: &[Entry], name: &'a str) -> (Option<usize>, &'a str) {
    // A title may contain the separator.
    if let Some(found) = position(entries, name) {
        return (Some(found), "");
    }
    // `>>` stands for the character; `>` leads into a submenu.
    let mut from = 0;
    while let Some(at) = name[from..].find('>').map(|at| from + at) {
        if name[at + 1..].starts_with('>') {
            from = at + 2;
            continue;
        }
        return (position(entries, &name[..at].replace(">>", ">")), &name[at + 1..]);
    }
    (position(entries, &name.replace(">>", ">")), "")
}

/// Returns the value of `chosen` for an entry, which `savedefault` of grub-mkconfig saves: the ids of the submenus and
/// the entry (GRUB, `grub-core/normal/menu.c`, grub_menu_execute_entry).
fn way_to(entry: &Entry, before: Option<&str>) -> String {
    let id = entry.id.replace('>', ">>");
    before.map_or_else(|| id.clone(), |before| format!("{before}>{id}"))
}

/// Initial state of the menu.
struct Beginning {
    default: usize,
    rest: String,
    /// Time until the default boots; `None` waits for the user.
    wait: Option<Duration>,
    hidden: bool,
    /// The entry that was named and does not exist.
    missing: Option<String>,
}

fn beginning(shell: &mut Shell<'_>, chosen: Option<&str>, depth: usize) -> Beginning {
    let entries = shell.menu().clone();
    let own = shell.options.entry.clone().filter(|_| depth <= 1 && chosen.is_none());
    let name = match (chosen, &own) {
        (Some(name), _) => name.to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) if shell.get("default") == "saved" => shell.get("saved_entry").to_string(),
        (None, None) => shell.get("default").to_string(),
    };
    let (found, rest) = first_choice(&entries, &name);
    let missing = own.filter(|_| found.is_none());
    let configured = match shell.get("timeout").trim().parse::<i64>() {
        Ok(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        Err(_) => None,
    };
    // A submenu on the way to the default is passed at once. One that the user opened waits for the user.
    let wait = match (depth, chosen) {
        (0 | 1, _) => shell.options.timeout.or(configured),
        (_, Some(name)) if !name.is_empty() => Some(Duration::ZERO),
        _ => None,
    };
    let hidden = wait.is_some_and(|wait| wait.is_zero()) || matches!(shell.get("timeout_style"), "hidden" | "countdown");
    Beginning { default: found.unwrap_or(0), rest: rest.to_string(), wait, hidden, missing }
}

/// Lets the user choose until something boots.
fn choose(shell: &mut Shell<'_>, chosen: Option<&str>, depth: usize) -> Result<Left, Halt> {
    let begin = beginning(shell, chosen, depth);
    if let Some(name) = begin.missing {
        let titles: Vec<String> = shell.menu().iter().map(|entry| format!("`{}`", entry.title)).collect();
        return Err(Halt::GaveUp(format!(
            "`grub.entry` is `{name}`, which the menu does not have; it has {}",
            titles.join(", ")
        )));
    }
    let mut selected = begin.default;
    let mut attended = false;
    if let Some(wait) = begin.wait {
        match count_down(shell, selected, wait, begin.hidden)? {
            None => match enter_with_fallback(shell, selected, &begin.rest, depth)? {
                left @ (Left::Booted(_) | Left::Quit) => return Ok(left),
                Left::Empty if depth <= 1 => return Err(unattended(shell, selected)),
                Left::Empty => return Ok(Left::Empty),
                Left::Back => {}
            },
            Some(key) => {
                attended = true;
                shell.refresh();
                if let Some(left) = act(shell, &mut selected, key, depth)? {
                    return Ok(left);
                }
            }
        }
    }
    loop {
        draw(shell, selected);
        let note = if attended || begin.wait.is_none() { "" } else { "The time is over and the default did not boot." };
        shell.terminal.print(&format!("  {note}"));
        let key = shell.terminal.key(None)?.expect("it waits without a limit");
        attended = true;
        shell.refresh();
        if let Some(left) = act(shell, &mut selected, key, depth)? {
            return Ok(left);
        }
    }
}

/// Boots the default. If it loads nothing and there is no user, boots the entry that `fallback` names.
fn enter_with_fallback(shell: &mut Shell<'_>, selected: usize, rest: &str, depth: usize) -> Result<Left, Halt> {
    let mut left = enter(shell, selected, rest, depth)?;
    let fallback: Vec<usize> = {
        let names = shell.get("fallback").to_string();
        names.split_whitespace().filter_map(|name| position(shell.menu(), name)).collect()
    };
    for other in fallback.into_iter().filter(|&other| other != selected) {
        if !matches!(left, Left::Empty) {
            break;
        }
        left = enter(shell, other, "", depth)?;
    }
    Ok(left)
}

/// Creates the error for a default that did not boot without a user. The guest's start has failed, and the caller is
/// told.
fn unattended(shell: &mut Shell<'_>, selected: usize) -> Halt {
    let title = shell.menu().get(selected).map_or(String::new(), |entry| entry.title.clone());
    Halt::GaveUp(format!("the entry `{title}` loaded no kernel; its output is on the console"))
}

/// Waits until the default boots. Returns the key that ended the wait, or `None` when the time is over.
fn count_down(shell: &mut Shell<'_>, selected: usize, wait: Duration, hidden: bool) -> Result<Option<Key>, Halt> {
    if wait.is_zero() {
        return Ok(None);
    }
    if !hidden {
        draw(shell, selected);
    }
    let end = shell.terminal.now() + wait;
    loop {
        let left = end.saturating_sub(shell.terminal.now());
        if left.is_zero() {
            return Ok(None);
        }
        let seconds = left.as_millis().div_ceil(1000);
        let keys = if hidden { "; any key shows the menu" } else { "" };
        shell.terminal.print(&format!("\r\x1b[2K  The highlighted entry boots in {seconds} s{keys}."));
        let until_next = left - Duration::from_secs(seconds.saturating_sub(1) as u64).min(left);
        if let Some(key) = shell.terminal.key(Some(until_next.max(Duration::from_millis(1))))? {
            shell.terminal.print("\r\x1b[2K");
            return Ok(Some(if hidden { Key::Escape } else { key }));
        }
    }
}

/// Handles a key. Returns how the menu is left, if it is.
fn act(shell: &mut Shell<'_>, selected: &mut usize, key: Key, depth: usize) -> Result<Option<Left>, Halt> {
    let count = shell.menu().len();
    let hotkey = |shell: &mut Shell<'_>, c: char| shell.menu().iter().position(|entry| entry.hotkey == Some(c));
    match key {
        Key::Up => *selected = selected.saturating_sub(1),
        Key::Down => *selected = (*selected + 1).min(count - 1),
        Key::Home => *selected = 0,
        Key::End => *selected = count - 1,
        Key::Enter | Key::Right | Key::Control('x') => {
            let left = enter(shell, *selected, "", depth)?;
            if matches!(left, Left::Booted(_) | Left::Quit) {
                return Ok(Some(left));
            }
        }
        Key::Escape | Key::Left if depth > 1 => return Ok(Some(Left::Back)),
        Key::Char('e') if hotkey(shell, 'e').is_none() => {
            let entry = shell.menu()[*selected].clone();
            if let Some(loaded) = editor::entry(shell, &entry)? {
                return Ok(Some(Left::Booted(loaded)));
            }
        }
        Key::Char('c') if hotkey(shell, 'c').is_none() => {
            if let Some(loaded) = editor::command_line(shell)? {
                return Ok(Some(Left::Booted(loaded)));
            }
        }
        Key::Char(c) => {
            if let Some(found) = hotkey(shell, c) {
                *selected = found;
                let left = enter(shell, found, "", depth)?;
                if matches!(left, Left::Booted(_) | Left::Quit) {
                    return Ok(Some(left));
                }
            } else if let Some(number) = c.to_digit(10).filter(|&number| number >= 1 && number as usize <= count) {
                *selected = number as usize - 1;
            }
        }
        _ => {}
    }
    Ok(None)
}

/// Boots an entry or opens its submenu. `rest` is the part of the default for that menu.
fn enter(shell: &mut Shell<'_>, selected: usize, rest: &str, depth: usize) -> Result<Left, Halt> {
    let entry = shell.menu()[selected].clone();
    shell.terminal.print("\x1b[H\x1b[J");
    let before = shell.value_of("chosen").map(str::to_owned);
    let chosen = way_to(&entry, before.as_deref());
    if entry.submenu {
        if depth >= MAX_DEPTH {
            shell.complain("menus are nested too deeply")?;
            return Ok(Left::Empty);
        }
        shell.enter();
        shell.set("chosen", &chosen);
        shell.export("chosen");
        let mut own = vec![String::new()];
        own.extend_from_slice(&entry.arguments);
        let outcome = shell.call(&entry.script, own);
        let outcome = outcome.and_then(|flow| after_configuration(shell, flow, Some(rest), depth.max(1) + 1));
        shell.leave();
        return outcome;
    }
    shell.terminal.print(&format!("  Booting `{}`\n\n", entry.title));
    shell.set("chosen", &chosen);
    shell.export("chosen");
    let (loaded, flow) = boot::run_entry(shell, &entry)?;
    match before {
        Some(before) => shell.set("chosen", &before),
        None => shell.unset("chosen"),
    }
    match loaded {
        Some(loaded) => Ok(Left::Booted(loaded)),
        None if flow == Flow::Exit => Ok(Left::Quit),
        None => {
            shell.terminal.print("\nThe entry loaded no kernel. Press any key to go back to the menu.\n");
            let attended = shell.terminal.key(Some(MESSAGE_TIME))?.is_some();
            Ok(if attended { Left::Back } else { Left::Empty })
        }
    }
}

fn draw(shell: &mut Shell<'_>, selected: usize) {
    let entries = shell.menu().clone();
    let Shell { terminal, .. } = shell;
    draw_entries(terminal, &entries, selected);
}

fn draw_entries(terminal: &mut Terminal, entries: &[Entry], selected: usize) {
    let top = selected.saturating_sub(ROWS - 1);
    let mut text = String::from("\x1b[H\x1b[J  vmctl boot menu\n\n");
    for (number, entry) in entries.iter().enumerate().skip(top).take(ROWS) {
        let title: String = entry.title.chars().filter(|c| !c.is_control()).take(COLUMNS).collect();
        let (mark, on, off) = if number == selected { ("*", "\x1b[7m", "\x1b[0m") } else { (" ", "", "") };
        let more = if entry.submenu { " >" } else { "" };
        text.push_str(&format!("  {mark} {on}{title}{more}{off}\n"));
    }
    if entries.len() > top + ROWS {
        text.push_str(&format!("    {} more below\n", entries.len() - top - ROWS));
    }
    text.push_str("\n  Up, down or a number choose; enter boots; e edits; c is a command line.\n");
    terminal.print(&text);
}
