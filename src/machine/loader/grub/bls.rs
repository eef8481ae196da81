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

/// Where entries are, on their own partition or below the root.
pub const DIRECTORIES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
const MAX_FILES: usize = 256;
const MAX_BYTES: u64 = 64 * 1024;

/// `blscfg`: adds an entry a file, on `$boot` or else `$root`.
pub fn command(shell: &mut Shell<'_>) -> Ended {
    let name = if shell.get("boot").is_empty() { shell.get("root") } else { shell.get("boot") };
    let Some(device) = shell.devices.find(name) else { return error(format!("no such device: {name}")) };
    match entries(device) {
        Some(found) => {
            let room = 1000usize.saturating_sub(shell.menu().len());
            shell.menu().extend(found.into_iter().take(room));
            Ok(Done::Status(true))
        }
        None => error(format!("`{name}' has no {}", DIRECTORIES.join(" or "))),
    }
}

/// The entries of a device, the newest first; `None` without any.
pub fn entries(device: &Device) -> Option<Vec<Entry>> {
    let volume = device.volume()?;
    for directory in DIRECTORIES {
        let Ok(names) = volume.list(directory) else { continue };
        let mut names: Vec<String> = names
            .into_iter()
            .filter(|(name, kind)| name.ends_with(".conf") && *kind != NodeKind::Directory)
            .map(|(name, _)| name)
            .collect();
        names.sort_by(|a, b| compare_versions(b, a));
        names.truncate(MAX_FILES);
        let found: Vec<Entry> = names.iter().filter_map(|name| entry(volume, directory, name)).collect();
        if !found.is_empty() {
            return Some(found);
        }
    }
    None
}

fn entry(volume: &dyn FileSystem, directory: &str, name: &str) -> Option<Entry> {
    let bytes = volume.read(&format!("{directory}/{name}"), MAX_BYTES).ok()?;
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
    let kernel = kernel?;
    let title = title.or(version).unwrap_or_else(|| id.clone());
    let mut source = format!("linux {} {}\n", quote(&kernel), options.join(" "));
    if !initrds.is_empty() {
        source.push_str(&format!("initrd {}\n", initrds.join(" ")));
    }
    // An entry that is no script shows its error when it is chosen.
    let script = parse(&source).ok()?;
    Some(Entry { arguments: vec![title.clone()], title, id, hotkey: None, script, source, submenu: false })
}

/// Versions as people count: runs of digits by their value, the rest by its characters.
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
