//! Boot Loader Specification entries, type 1: `/loader/entries/*.conf`, as Fedora's and RHEL's `blscfg` and
//! systemd-boot read them (UAPI.1; Fedora's GRUB, `blscfg`).
//!
//! The values of `options` and `initrd` may hold variables, such as `$kernelopts` and `$tuned_params`.

use std::cmp::Ordering;

use super::device::Device;
use super::evaluate::{Done, Ended, Shell, error};
use super::menu::Entry;
use super::parse::{parse, quote};
use crate::machine::loader::volume::{FileSystem, NodeKind};

/// Directories of entries, on their own partition or below the root.
pub const DIRECTORIES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
const MAX_FILES: usize = 256;
const MAX_BYTES: u64 = 64 * 1024;

/// Runs `blscfg`: adds an entry per file, on `$boot` or, if that has none, on `$root`.
///
/// Fedora's GRUB takes `$boot` with a BIOS and `$root` under UEFI, where `$boot` is the EFI system partition
/// (`grub-core/commands/blscfg.c`, find_entry: `#ifdef GRUB_MACHINE_EFI`). Here a guest boots whichever of the two it
/// was installed with.
pub fn command(shell: &mut Shell<'_>) -> Ended {
    let mut names: Vec<String> = ["boot", "root"].map(|name| shell.get(name).to_string()).into();
    names.retain(|name| !name.is_empty());
    names.dedup();
    let (mut missing, mut troubles) = (Vec::new(), Vec::new());
    let mut found = None;
    for name in names {
        match shell.devices.find(&name) {
            Some(device) => {
                // Paths are relative to the file system of the entry (UAPI.1), whatever `$root` is.
                let prefix = if device.name == shell.get("root") { String::new() } else { format!("({})", device.name) };
                found = found.or_else(|| entries(device, &prefix, &mut troubles));
            }
            None => troubles.push(format!("no such device: {name}")),
        }
        missing.push(format!("`{name}'"));
    }
    for text in troubles.iter().take(8) {
        shell.complain(text)?;
    }
    match found {
        Some((_, found)) => {
            let room = 1000usize.saturating_sub(shell.menu().len());
            shell.menu().extend(found.into_iter().take(room));
            Ok(Done::Status(true))
        }
        None if missing.is_empty() => error("no device is set: `root` is empty"),
        None => error(format!("no entry in {} of {}", DIRECTORIES.join(" or "), missing.join(" or "))),
    }
}

/// Returns the directory and the entries of a device, the newest first. Returns `None` if there are none. Files that
/// cannot be read are reported in `troubles`. `prefix` goes before the paths of their files.
pub fn entries(device: &Device, prefix: &str, troubles: &mut Vec<String>) -> Option<(&'static str, Vec<Entry>)> {
    let volume = device.volume()?;
    for directory in DIRECTORIES {
        let names = match volume.list(directory) {
            Ok(names) => names,
            Err(error) => {
                if !error.is_absence() {
                    troubles.push(format!("({}){directory}: {error}", device.name));
                }
                continue;
            }
        };
        let mut names: Vec<String> = names
            .into_iter()
            .filter(|(name, kind)| name.ends_with(".conf") && *kind != NodeKind::Directory)
            .map(|(name, _)| name)
            .collect();
        names.sort_by(|a, b| compare_versions(b, a));
        names.truncate(MAX_FILES);
        let mut found = Vec::new();
        for name in names {
            match entry(volume, directory, &name, prefix) {
                Ok(entry) => found.extend(entry),
                Err(why) => troubles.push(format!("({}){directory}/{name}: {why}", device.name)),
            }
        }
        if !found.is_empty() {
            return Some((directory, found));
        }
    }
    None
}

/// Returns the entry in a file. Returns `None` if it names no kernel.
fn entry(volume: &dyn FileSystem, directory: &str, name: &str, prefix: &str) -> Result<Option<Entry>, String> {
    let bytes = volume.read(&format!("{directory}/{name}"), MAX_BYTES).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let id = name.strip_suffix(".conf").unwrap_or(name).to_string();
    let (mut title, mut version, mut kernel, mut initrds, mut options) = (None, None, None, Vec::new(), Vec::new());
    for line in text.lines() {
        let line = line.trim();
        let Some((key, value)) = line.split_once(|c: char| c.is_ascii_whitespace()) else { continue };
        let value = value.trim();
        match key {
            "title" => title = Some(value.to_string()),
            "version" => version = Some(value.to_string()),
            "linux" => kernel = Some(value.to_string()),
            "initrd" => initrds.push(value.to_string()),
            "options" => options.push(value.to_string()),
            _ => {}
        }
    }
    let Some(kernel) = kernel else { return Ok(None) };
    let title = title.or(version).unwrap_or_else(|| id.clone());
    let in_volume = |path: &str| if path.starts_with('/') { format!("{prefix}{path}") } else { path.to_string() };
    let mut source = format!("linux {} {}\n", quote(&in_volume(&kernel)), options.join(" "));
    if !initrds.is_empty() {
        let initrds: Vec<String> = initrds.iter().flat_map(|files| files.split_ascii_whitespace()).map(in_volume).collect();
        source.push_str(&format!("initrd {}\n", initrds.join(" ")));
    }
    let script = parse(&source).map_err(|problem| problem.to_string())?;
    Ok(Some(Entry { arguments: vec![title.clone()], title, id, hotkey: None, script, source, submenu: false }))
}

/// Compares versions: runs of digits by their value, the rest by its characters.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&x), Some(&y)) = (a.first(), b.first()) else { return a.len().cmp(&b.len()) };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let run = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (long, short) = (run(a), run(b));
            let value = |bytes: &[u8]| -> Vec<u8> { bytes.iter().copied().skip_while(|&byte| byte == b'0').collect() };
            let (left, right) = (value(&a[..long]), value(&b[..short]));
            match left.len().cmp(&right.len()).then(left.cmp(&right)) {
                Ordering::Equal => (a, b) = (&a[long..], &b[short..]),
                other => return other,
            }
        } else if x == y {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return x.cmp(&y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_kernels_come_after_older_ones() {
        let mut names = ["6.10.0-1", "6.9.0-200", "6.9.0-30", "6.9.0-30.fc40"];
        names.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(names, ["6.9.0-30", "6.9.0-30.fc40", "6.9.0-200", "6.10.0-1"]);
    }
}
