//! ZFS volumes, through zfs(8).

use std::path::{Path, PathBuf};
use std::process::Command;

/// What zfs(8) printed when it failed, in one line.
pub type Failure = String;

fn zfs(arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new("zfs").args(arguments).output().map_err(|error| format!("cannot run zfs(8): {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).lines().collect::<Vec<_>>().join(" ");
    Err(format!("`zfs {}` failed: {}", arguments.join(" "), words.trim()))
}

/// The dataset that a path is in.
pub fn dataset_of(path: &Path) -> Result<String, Failure> {
    let path = path.to_str().ok_or("the path is not UTF-8")?;
    let name = zfs(&["list", "-H", "-o", "name", path])?;
    match name.trim() {
        "" => Err("zfs(8) names no dataset".into()),
        name => Ok(name.to_owned()),
    }
}

/// The device of a volume.
pub fn volume_device(name: &str) -> PathBuf {
    Path::new("/dev/zvol").join(name)
}

/// Makes a volume that takes space as it is written to. ZFS wants a multiple of the block size: rounded up to 1 MiB.
pub fn create_volume(name: &str, size: u64) -> Result<(), Failure> {
    let size = size.next_multiple_of(1 << 20).to_string();
    zfs(&["create", "-s", "-o", "volmode=dev", "-V", &size, name]).map(drop)?;
    wait_for_device(name)
}

/// Makes a volume larger.
pub fn grow_volume(name: &str, size: u64) -> Result<(), Failure> {
    zfs(&["set", &format!("volsize={}", size.next_multiple_of(1 << 20)), name]).map(drop)
}

/// Removes a volume and its snapshots.
pub fn destroy_volume(name: &str) -> Result<(), Failure> {
    zfs(&["destroy", "-r", name]).map(drop)
}

/// Copies a volume through a snapshot that is removed afterwards; the copy does not depend on its source.
pub fn copy_volume(from: &str, to: &str) -> Result<(), Failure> {
    let snapshot = format!("{from}@vmctl-clone-{}", std::process::id());
    zfs(&["snapshot", &snapshot])?;
    let copied = send_receive(&snapshot, to);
    let _ = zfs(&["destroy", &snapshot]);
    copied?;
    let _ = zfs(&["destroy", &format!("{to}@vmctl-clone-{}", std::process::id())]);
    wait_for_device(to)
}

fn send_receive(snapshot: &str, to: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| format!("cannot run zfs(8): {error}");
    let mut send = Command::new("zfs").args(["send", snapshot]).stdout(std::process::Stdio::piped()).spawn().map_err(failed)?;
    let stream = send.stdout.take().expect("piped above");
    let receive = Command::new("zfs").args(["receive", to]).stdin(stream).output().map_err(failed)?;
    let sent = send.wait().map_err(failed)?;
    match sent.success() && receive.status.success() {
        true => Ok(()),
        false => Err(format!("`zfs receive {to}` failed: {}", String::from_utf8_lossy(&receive.stderr).trim())),
    }
}

/// The device appears a moment after the volume.
fn wait_for_device(name: &str) -> Result<(), Failure> {
    let device = volume_device(name);
    for _ in 0..500 {
        if device.exists() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Err(format!("`{}` has not appeared", device.display()))
}
