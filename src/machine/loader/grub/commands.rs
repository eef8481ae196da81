//! The table of commands, and those that need no files.

use std::time::Duration;

use super::evaluate::{Done, Ended, Flow, Shell, error};
use super::menu::Entry;
use super::parse::{Block, parse};
use super::{Halt, bls, boot, files, menu, syslinux, test};
use crate::hypervisor::backend::MachineExit;
use crate::machine::loader::kernel::Way;

/// Maximum number of entries of one menu.
const MAX_ENTRIES: usize = 1000;

/// Commands that are accepted and do nothing, because everything is built in, the console is the serial port, and the
/// guest's owner needs no passwords.
const NOTHING_TO_DO: &[&str] = &[
    "insmod",
    "rmmod",
    "terminal",
    "terminal_input",
    "terminal_output",
    "serial",
    "background_color",
    "play",
    "password",
    "password_pbkdf2",
    "nativedisk",
    "parttool",
    "drivemap",
    "keymap",
    "gptsync",
    "badram",
    "cutmem",
    "hdparm",
    "efi-watchdog",
    "nx_set",
];

/// Commands that succeed only on a system with graphics.
const NOT_HERE: &[&str] = &["loadfont", "background_image", "videotest", "videoinfo", "videomode", "fwsetup", "pcidump"];

/// Returns whether a text can be a variable's name.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Runs the command `name`.
pub fn run(shell: &mut Shell<'_>, name: &str, arguments: &[String], block: Option<&Block>) -> Ended {
    match name {
        "true" | ":" => Ok(Done::Status(true)),
        "false" => Ok(Done::Status(false)),
        "[" => match arguments.split_last() {
            Some((last, words)) if last == "]" => condition(shell, words),
            _ => error("`[` has no `]`"),
        },
        "test" => condition(shell, arguments),
        "set" => set(shell, arguments),
        "unset" => each(arguments, |name| shell.unset(name)),
        "increment" => count(shell, arguments, 1),
        "decrement" => count(shell, arguments, -1),
        "export" => each(arguments, |name| shell.export(name)),
        "echo" => echo(shell, arguments),
        "sleep" => sleep(shell, arguments),
        "read" => read(shell, arguments),
        "break" | "continue" => {
            let levels = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(1);
            Ok(Done::Flow(if name == "break" { Flow::Break(levels) } else { Flow::Continue(levels) }))
        }
        "return" => Ok(Done::Flow(Flow::Return)),
        "shift" => {
            let count = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(1);
            let own = shell.arguments();
            let end = (1usize.saturating_add(count)).min(own.len());
            drop(own.drain(1.min(end)..end));
            Ok(Done::Status(true))
        }
        "setparams" => {
            let own = shell.arguments();
            own.truncate(1);
            if own.is_empty() {
                own.push(String::new());
            }
            own.extend_from_slice(arguments);
            Ok(Done::Status(true))
        }
        "eval" => Ok(Done::Flow(shell.run_text(&arguments.join(" "))?)),
        "menuentry" | "submenu" | "hiddenentry" => menu_entry(shell, name, arguments, block),
        "exit" | "normal_exit" => Ok(Done::Flow(Flow::Exit)),
        "halt" | "poweroff" => Err(Halt::Stopped(MachineExit::PowerOff)),
        "reboot" => Err(Halt::Stopped(MachineExit::Reboot)),
        "boot" if shell.loaded.is_some() => Ok(Done::Flow(Flow::Boot)),
        "boot" => error("you need to load the kernel first"),
        "clear" => {
            shell.say("\x1b[H\x1b[J")?;
            Ok(Done::Status(true))
        }
        "cpuid" => Ok(Done::Status(matches!(arguments.first().map(String::as_str), None | Some("-l" | "-p")))),
        "help" => {
            shell.say(HELP)?;
            Ok(Done::Status(true))
        }
        "normal" => menu::configure(shell, arguments.first().map(String::as_str)),
        "linux" | "linux16" | "linuxefi" | "kernel" => boot::linux(shell, arguments),
        "initrd" | "initrd16" | "initrdefi" => boot::initrd(shell, arguments),
        "multiboot" => boot::multiboot(shell, Way::Multiboot, arguments),
        "multiboot2" => boot::multiboot(shell, Way::Multiboot2, arguments),
        "module" | "module2" => boot::module(shell, arguments),
        "chainloader" | "ntldr" | "xen_hypervisor" | "kfreebsd" | "knetbsd" | "kopenbsd" | "linux32" => {
            error(format!("`{name}` needs what this loader does not have; it loads Linux and Multiboot kernels"))
        }
        "blscfg" | "bls_import" => bls::command(shell),
        "syslinux_configfile" => syslinux::configfile(shell, arguments),
        "syslinux_source" | "extract_syslinux_entries_source" => syslinux::source(shell, arguments),
        "ls" => files::ls(shell, arguments),
        "cat" => files::cat(shell, arguments),
        "source" | "." => files::source(shell, arguments),
        "configfile" => files::configfile(shell, arguments),
        "search" => files::search(shell, None, arguments),
        "search.file" | "search.fs_label" | "search.fs_uuid" => files::search(shell, name.split('.').nth(1), arguments),
        "probe" => files::probe(shell, arguments),
        "load_env" => files::load_env(shell, arguments),
        "save_env" => files::save_env(shell, arguments),
        "list_env" => files::list_env(shell, arguments),
        "cmp" => files::cmp(shell, arguments),
        name if NOTHING_TO_DO.contains(&name) => Ok(Done::Status(true)),
        name if NOT_HERE.contains(&name) => Ok(Done::Status(false)),
        _ => error(format!("can't find command `{name}'")),
    }
}

const HELP: &str = "\
ls [(DEVICE)[/PATH]]      devices, or what is in a directory
cat FILE                  shows a file
set [NAME=VALUE]          variables; `root` is the device of paths without one
search --file|--label|--fs-uuid NAME --set=root
linux FILE [ARGUMENT...]  loads a kernel
initrd FILE...            loads its initial RAM disks
boot                      runs it
configfile FILE           shows the menu of another configuration
exit                      back to the menu
halt, reboot              stops the guest
";

fn condition(shell: &mut Shell<'_>, words: &[String]) -> Ended {
    match test::test(shell, words) {
        Some(value) => Ok(Done::Status(value)),
        None => error(format!("`{}' is not an expression", words.join(" "))),
    }
}

fn each(names: &[String], mut act: impl FnMut(&str)) -> Ended {
    // `export NAME=VALUE` is not valid in GRUB, but some files have it.
    names.iter().for_each(|name| act(name.split('=').next().unwrap_or(name)));
    Ok(Done::Status(true))
}

fn set(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let [first, ..] = arguments else {
        let all: String = shell.variables().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        shell.say(&all)?;
        return Ok(Done::Status(true));
    };
    match first.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            shell.set(name, value);
            Ok(Done::Status(true))
        }
        _ => error(format!("not an assignment: `{first}'")),
    }
}

/// Runs `increment` and `decrement`, with which Fedora counts attempts to boot (rhboot's GRUB,
/// `grub-core/commands/increment.c`).
fn count(shell: &mut Shell<'_>, arguments: &[String], by: i64) -> Ended {
    let name = match arguments {
        [] => return error("no variable specified"),
        [name] => name,
        _ => return error("too many arguments"),
    };
    let Some(old) = shell.value_of(name) else { return error(format!("no such variable `{name}'")) };
    match number(old) {
        Some(value) => {
            shell.set(name, &value.saturating_add(by).to_string());
            Ok(Done::Status(true))
        }
        None => error(format!("`{old}' is not a number")),
    }
}

/// Parses a whole number as strtol(3) does: `-1`, `0x1f`, `017`.
fn number(text: &str) -> Option<i64> {
    let (negative, digits) = match text.trim().strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.trim()),
    };
    let (digits, base) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    let value = i64::from_str_radix(digits, base).ok().filter(|_| !digits.starts_with(['+', '-']))?;
    Some(if negative { -value } else { value })
}

fn echo(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let (mut newline, mut escapes) = (true, false);
    let mut words = arguments;
    while let [option @ ("-n" | "-e"), ..] = words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        if *option == "-n" {
            newline = false;
        } else {
            escapes = true;
        }
        words = &words[1..];
    }
    let mut text = words.join(" ");
    if escapes {
        text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r").replace("\\\\", "\\");
    }
    if newline {
        text.push('\n');
    }
    shell.say(&text)?;
    Ok(Done::Status(true))
}

fn sleep(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let interruptible = arguments.iter().any(|word| matches!(word.as_str(), "-i" | "--interruptible"));
    let Some(seconds) = arguments.iter().find_map(|word| word.parse::<u32>().ok()) else {
        return error("`sleep` needs a number of seconds");
    };
    let end = shell.terminal.now() + Duration::from_secs(seconds.into());
    loop {
        let left = end.saturating_sub(shell.terminal.now());
        if left.is_zero() {
            return Ok(Done::Status(true));
        }
        if shell.sleep(left)? && interruptible {
            return Ok(Done::Status(false));
        }
    }
}

fn read(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let line = super::editor::line(shell, "", "")?.unwrap_or_default();
    if let Some(name) = arguments.iter().find(|word| !word.starts_with('-')) {
        shell.set(name, &line);
    }
    Ok(Done::Status(true))
}

fn menu_entry(shell: &mut Shell<'_>, name: &str, arguments: &[String], block: Option<&Block>) -> Ended {
    let (mut id, mut hotkey, mut own) = (None, None, Vec::new());
    let mut source = None;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (option, mut value) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_string())),
            _ => (word.as_str(), None),
        };
        if matches!(option, "--id" | "--class" | "--users" | "--hotkey" | "--source") && value.is_none() {
            value = words.next().cloned();
        }
        match option {
            "--id" => id = value,
            "--hotkey" => hotkey = value.and_then(|key| key.chars().next()),
            "--source" => source = value,
            "--class" | "--users" | "--unrestricted" => {}
            _ => own.push(word.clone()),
        }
    }
    let Some(title) = own.first().cloned() else { return error(format!("`{name}` has no title")) };
    let (script, source) = match (block, source) {
        (Some(block), _) => (block.script.clone(), block.source.clone()),
        (None, Some(text)) => match parse(&text) {
            Ok(script) => (script, text),
            Err(problem) => return error(problem.to_string()),
        },
        (None, None) => return error(format!("`{name}` has no body")),
    };
    if name == "hiddenentry" {
        return Ok(Done::Status(true));
    }
    if shell.menu().len() >= MAX_ENTRIES {
        return error("the menu has too many entries");
    }
    let id = id.unwrap_or_else(|| title.clone());
    let submenu = name == "submenu";
    shell.menu().push(Entry { title, id, hotkey, arguments: own, script, source, submenu });
    Ok(Done::Status(true))
}
