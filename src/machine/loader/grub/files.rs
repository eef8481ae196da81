//! The commands for files, and their shared parts: names of files, environment blocks.

use super::device::Device;
use super::evaluate::{Done, Ended, Flow, Shell, error};
use super::{Halt, envblk, menu};
use crate::machine::loader::volume::{FileSystem, NodeKind, VolumeError, in_place};

/// Maximum size of a configuration in bytes.
pub const MAX_CONFIG: u64 = 4 << 20;
/// Maximum size of an environment block in bytes; GRUB's has 1024.
const MAX_ENVIRONMENT: u64 = 64 * 1024;
/// Maximum number of bytes that `cat` shows.
const MAX_SHOWN: u64 = 64 * 1024;
/// Maximum number of names that `ls` shows.
const MAX_LISTED: usize = 2000;

impl Shell<'_> {
    /// Splits a file's name into device and path. Without a device it is on `$root`.
    pub fn split_name(&self, name: &str) -> Result<(&Device, String), String> {
        let (device, path) = match name.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.get("root"), name),
        };
        if !path.is_empty() && !path.starts_with('/') {
            return Err(format!("invalid file name `{name}'"));
        }
        match self.devices.find(device) {
            Some(found) => Ok((found, path.to_string())),
            None if device.is_empty() => Err("no device is set: `root` is empty".into()),
            None => Err(format!("no such device: {device}")),
        }
    }

    /// Returns file system and path of a file's name.
    pub fn locate(&self, name: &str) -> Result<(&dyn FileSystem, String), String> {
        let (device, path) = self.split_name(name)?;
        let volume = device.volume().ok_or_else(|| format!("unknown filesystem on `{}'", device.name))?;
        Ok((volume, path))
    }

    /// Reads a file.
    pub fn read_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let (volume, path) = self.locate(name)?;
        volume.read(&path, limit).map_err(|problem| match problem {
            VolumeError::NotFound(path) => format!("file `{path}' not found"),
            other => format!("`{name}': {other}"),
        })
    }
}

/// Splits the options from the other words. Those of `with_value` take the next word, or the text after `=`.
fn options(arguments: &[String], with_value: &[&str]) -> (Vec<(String, String)>, Vec<String>) {
    let (mut found, mut rest) = (Vec::new(), Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if !word.starts_with('-') || word == "-" {
            rest.push(word.clone());
            continue;
        }
        if word == "--" {
            rest.extend(words.by_ref().cloned());
            break;
        }
        match word.split_once('=') {
            Some((option, value)) => found.push((option.to_string(), value.to_string())),
            None if with_value.contains(&word.as_str()) => {
                found.push((word.clone(), words.next().cloned().unwrap_or_default()));
            }
            None => found.push((word.clone(), String::new())),
        }
    }
    (found, rest)
}

/// Runs `ls`.
pub fn ls(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let (_, names) = options(arguments, &[]);
    if names.is_empty() {
        let all: Vec<String> = shell.devices.all().iter().map(|device| format!("({})", device.name)).collect();
        shell.say(&format!("{}\n", all.join(" ")))?;
        return Ok(Done::Status(true));
    }
    for name in &names {
        let text = match listing(shell, name) {
            Ok(text) => text,
            Err(text) => return error(text),
        };
        shell.say(&text)?;
    }
    Ok(Done::Status(true))
}

fn listing(shell: &Shell<'_>, name: &str) -> Result<String, String> {
    let (device, path) = shell.split_name(name)?;
    if path.is_empty() {
        let what = match device.volume() {
            Some(volume) => format!("{} - Label `{}' UUID {}", volume.kind(), volume.label(), volume.uuid()),
            None => "no filesystem that can be read".into(),
        };
        return Ok(format!("Device {}: {what}\n", device.name));
    }
    let (volume, path) = shell.locate(name)?;
    if volume.kind_of(&path).map_err(|problem| problem.to_string())? != NodeKind::Directory {
        return Ok(format!("{}\n", path.rsplit('/').next().unwrap_or(&path)));
    }
    let mut names = volume.list(&path).map_err(|problem| problem.to_string())?;
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let shown: Vec<String> = names
        .iter()
        .take(MAX_LISTED)
        .map(|(name, kind)| if *kind == NodeKind::Directory { format!("{name}/") } else { name.clone() })
        .collect();
    let more = if names.len() > MAX_LISTED { format!(" and {} more", names.len() - MAX_LISTED) } else { String::new() };
    Ok(format!("{}{more}\n", shown.join(" ")))
}

/// Runs `cat`.
pub fn cat(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let (_, names) = options(arguments, &[]);
    for name in &names {
        match shell.read_file(name, MAX_SHOWN) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let plain: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
                shell.say(&plain)?;
                shell.say("\n")?;
            }
            Err(text) => return error(text),
        }
    }
    Ok(Done::Status(true))
}

/// Runs `cmp`.
pub fn cmp(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let (_, names) = options(arguments, &[]);
    let [one, other] = names.as_slice() else { return error("`cmp` needs two files") };
    match (shell.read_file(one, MAX_CONFIG), shell.read_file(other, MAX_CONFIG)) {
        (Ok(one), Ok(other)) => Ok(Done::Status(one == other)),
        (Err(text), _) | (_, Err(text)) => error(text),
    }
}

/// Runs `source`: runs a file here.
pub fn source(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let [name, ..] = arguments else { return error("filename expected") };
    match shell.read_file(name, MAX_CONFIG) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(Done::Flow(shell.run_text(&text)?))
        }
        Err(text) => error(text),
    }
}

/// Runs `configfile`: shows the menu of another configuration.
pub fn configfile(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let [name, ..] = arguments else { return error("filename expected") };
    menu::configure(shell, Some(name))
}

/// Runs `search`: finds the device with a file, a label or a UUID. `kind` comes from the command's own name.
pub fn search(shell: &mut Shell<'_>, kind: Option<&str>, arguments: &[String]) -> Ended {
    let hints = ["--hint", "--hint-bios", "--hint-efi", "--hint-baremetal", "--hint-ieee1275", "--hint-arc", "-h"];
    let (found, mut names) = options(arguments, &hints);
    let mut by = kind.unwrap_or("").to_string();
    let mut variable = None;
    let mut wanted_hints = Vec::new();
    for (option, value) in found {
        match option.as_str() {
            "--file" | "-f" => by = "file".into(),
            "--label" | "-l" => by = "fs_label".into(),
            "--fs-uuid" | "-u" => by = "fs_uuid".into(),
            "--set" | "-s" => variable = Some(if value.is_empty() { "root".to_string() } else { value.clone() }),
            "--hint" | "--hint-bios" | "-h" => wanted_hints.push(value.trim_end_matches(',').to_string()),
            _ => {}
        }
        // `--label=NAME` and similar.
        if matches!(option.as_str(), "--file" | "--label" | "--fs-uuid") && !value.is_empty() {
            names.insert(0, value);
        }
    }
    let Some(wanted) = names.first().cloned() else { return error("one argument expected") };
    if kind.is_some() && variable.is_none() {
        // The old commands take the variable as their second word.
        variable = names.get(1).cloned();
    }
    let matches = |device: &&Device| {
        let Some(volume) = device.volume() else { return false };
        match by.as_str() {
            "fs_uuid" => volume.uuid().eq_ignore_ascii_case(&wanted),
            "fs_label" => volume.label() == wanted,
            "file" => {
                let name = format!("({}){wanted}", device.name);
                matches!(shell.answered(&name, volume.kind_of(&wanted)), Some(NodeKind::File | NodeKind::Directory))
            }
            _ => false,
        }
    };
    let mut all: Vec<String> = shell.devices.all().iter().filter(matches).map(|device| device.name.clone()).collect();
    all.sort_by_key(|name| !wanted_hints.contains(name));
    let Some(first) = all.first() else {
        return error(if by == "fs_uuid" || by == "fs_label" {
            format!("no such device: {wanted}")
        } else {
            format!("no device has the file {wanted}")
        });
    };
    match variable {
        Some(variable) => shell.set(&variable, first),
        None => shell.say(&format!("{}\n", all.join(" ")))?,
    }
    Ok(Done::Status(true))
}

/// Runs `probe`: prints a property of a device.
pub fn probe(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let (found, names) = options(arguments, &["-s"]);
    let Some(name) = names.first() else { return error("one argument expected") };
    let Some(device) = shell.devices.find(name) else { return error(format!("no such device: {name}")) };
    let (mut variable, mut value) = (None, None);
    for (option, set) in &found {
        let volume = || device.volume().ok_or_else(|| format!("unknown filesystem on `{}'", device.name));
        let answer = match option.as_str() {
            "--set" | "-s" => {
                variable = Some(set.clone());
                continue;
            }
            "--fs" | "-f" => volume().map(|volume| volume.kind().to_string()),
            "--fs-uuid" | "-u" => volume().map(|volume| volume.uuid()),
            "--label" | "-l" => volume().map(|volume| volume.label()),
            "--part-uuid" => Ok(device.part_uuid.clone()),
            "--partmap" | "-p" => Ok(match () {
                () if device.name.contains(",gpt") => "gpt",
                () if device.name.contains(",msdos") => "msdos",
                () => "none",
            }
            .to_string()),
            "--driver" | "-d" => Ok("vmctl".to_string()),
            _ => Err(format!("unknown argument `{option}'")),
        };
        match answer {
            Ok(answer) => value = Some(answer),
            Err(text) => return error(text),
        }
    }
    let Some(value) = value else { return error("`probe` was not told what to look for") };
    match variable {
        Some(variable) => shell.set(&variable, &value),
        None => shell.say(&format!("{value}\n"))?,
    }
    Ok(Done::Status(true))
}

/// The environment block of a command.
struct Environment {
    /// The canonical name of the file: `(hd0)/boot/grub/grubenv`.
    name: String,
    bytes: Vec<u8>,
    /// The variables in the command's arguments.
    names: Vec<String>,
}

/// An environment block that was saved, and is written when a kernel is entered.
#[derive(Clone)]
pub struct Saved {
    /// The bytes on the disk.
    before: Vec<u8>,
    /// The bytes to write.
    bytes: Vec<u8>,
    /// Whether it can be written on the disk, as far as can be checked before.
    on_disk: bool,
}

/// Maximum number of environment blocks that one boot may save.
const MAX_SAVED: usize = 16;

fn environment(shell: &Shell<'_>, arguments: &[String]) -> Result<Environment, String> {
    let (found, names) = options(arguments, &["--file", "-f"]);
    let file = found.iter().find(|(option, _)| matches!(option.as_str(), "--file" | "-f")).map(|(_, file)| file.clone());
    let file = file.unwrap_or_else(|| format!("{}/grubenv", shell.get("prefix")));
    let name = shell.split_name(&file).map(|(device, path)| format!("({}){path}", device.name))?;
    let bytes = match shell.saved.get(&name) {
        Some(saved) => saved.bytes.clone(),
        None => shell.read_file(&file, MAX_ENVIRONMENT)?,
    };
    Ok(Environment { name, bytes, names })
}

/// Runs `load_env`.
pub fn load_env(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    match environment(shell, arguments) {
        Ok(Environment { bytes, names, .. }) => {
            for (name, value) in envblk::variables(&bytes) {
                if names.is_empty() || names.contains(&name) {
                    shell.set(&name, &value);
                }
            }
            Ok(Done::Status(true))
        }
        Err(text) => error(text),
    }
}

/// Runs `save_env`. The values are valid for this loader from now on, and are written to the file's bytes on the disk
/// when a kernel is entered. A file that cannot be written there is reported at once.
pub fn save_env(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let Environment { name: file, bytes, names } = match environment(shell, arguments) {
        Ok(environment) => environment,
        Err(text) => return error(text),
    };
    if names.is_empty() {
        return error("no variable is specified");
    }
    let mut changed = bytes.clone();
    for name in names {
        changed = match envblk::with(&changed, &name, shell.value_of(&name)) {
            Ok(changed) => changed,
            Err(problem) => return error(format!("`{file}', `{name}': {problem}")),
        };
    }
    let earlier = shell.saved.get(&file);
    if earlier.is_none() && shell.saved.len() >= MAX_SAVED {
        return error("too many environment blocks are saved");
    }
    let before = earlier.map_or_else(|| bytes.clone(), |saved| saved.before.clone());
    // A file that cannot be written is reported once.
    let was_fine = earlier.is_none_or(|saved| saved.on_disk);
    let looked = match was_fine && changed != before {
        true => with_volume(shell, &file, |volume, path| in_place::look(volume, path, &before, &changed)),
        false => Ok(()),
    };
    shell.saved.insert(file.clone(), Saved { before, bytes: changed, on_disk: was_fine && looked.is_ok() });
    match looked {
        Ok(()) => Ok(Done::Status(was_fine)),
        Err(why) => error(format!("`{file}' is kept until the guest runs, but is not written: {why}")),
    }
}

fn with_volume(
    shell: &Shell<'_>,
    file: &str,
    act: impl FnOnce(&dyn FileSystem, &str) -> Result<(), in_place::InPlaceError>,
) -> Result<(), String> {
    let (volume, path) = shell.locate(file)?;
    act(volume, &path).map_err(|problem| problem.to_string())
}

/// Writes the saved blocks, since a kernel is entered now.
pub fn write_saved(shell: &mut Shell<'_>) -> Result<(), Halt> {
    for (file, saved) in std::mem::take(&mut shell.saved) {
        if !saved.on_disk || saved.before == saved.bytes {
            continue;
        }
        let written = with_volume(shell, &file, |volume, path| in_place::replace(volume, path, &saved.before, &saved.bytes));
        if let Err(why) = written {
            shell.complain(&format!("`{file}' is not written: {why}"))?;
        }
    }
    Ok(())
}

/// Runs `list_env`.
pub fn list_env(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    match environment(shell, arguments) {
        Ok(Environment { bytes, .. }) => {
            let text: String = envblk::variables(&bytes).iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            shell.say(&text)?;
            Ok(Done::Flow(Flow::Next))
        }
        Err(text) => error(text),
    }
}
