//! ZFS volumes, through zfs(8).
//!
//! **Device nodes on FreeBSD.** A new volume is first made in the pool's default mode (`vfs.zfs.vol.mode`, 1: a GEOM
//! provider) and then made again as a plain device by a task of the kernel, which ignores errors
//! (`sys/contrib/openzfs/module/os/freebsd/zfs/zvol_os.c`, zvol_os_create_minor; `module/zfs/zvol.c`,
//! zvol_set_volmode_impl). On a slow host the node is missing afterwards, or cannot be opened for a while. So opening a
//! volume is retried, and after that the node is recreated by setting `volmode` to `none` and back ([`open_volume`]).
//!
//! A volume in use is never set to `none`. Up to OpenZFS 2.2.6 the kernel then leaves it alone. Since 2.2.7 it waits for
//! the close, and with it wait all volumes of the pool that are to come, go or change their names (zvol_remove_minor_impl,
//! since 2.4 zvol_remove_minors_impl; `spa_zvol_taskq` is one thread); what the user asks of it through GEOM fails.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::error::HostError;
use super::program::{self, Cause, ProgramError};

/// Time-out for a node to appear by itself, and again after each time that it was recreated.
const NODE_APPEARS: Duration = Duration::from_secs(3);
/// Number of times that a node is recreated before the volume is given up.
const BRINGS_FORTH: u32 = 3;
/// Suffix of a volume's name while it is being filled. No disk has such an id, see `config::check`.
pub const MAKING: &str = ".making";

/// An error of making or removing a snapshot, with the message of zfs(8).
#[derive(Debug)]
pub enum SnapshotError {
    /// There is no room for it.
    Full(HostError),
    /// A volume was cloned from it.
    HasClones(HostError),
    /// Another reason.
    Other(HostError),
}

impl SnapshotError {
    /// Recognizes the error by its message, since the exit status of zfs(8) is always 1.
    fn of(error: HostError) -> SnapshotError {
        let words = error.to_string();
        let says = |texts: [&str; 2]| texts.iter().any(|text| words.contains(text));
        match () {
            () if says(["out of space", "quota exceeded"]) => SnapshotError::Full(error),
            () if says(["dependent clones", "has dependents"]) => SnapshotError::HasClones(error),
            () => SnapshotError::Other(error),
        }
    }
}

fn zfs(arguments: &[&str]) -> Result<String, HostError> {
    Ok(program::run("zfs", arguments)?)
}

/// Returns whether this host has ZFS at all.
pub fn is_there() -> bool {
    program::find("zfs").is_some()
}

/// Returns the dataset that a path is in.
pub fn dataset_of(path: &Path) -> Result<String, HostError> {
    let path = path.to_str().ok_or("the path is not UTF-8")?;
    let name = zfs(&["list", "-H", "-o", "name", path])?;
    match name.trim() {
        "" => Err("zfs(8) names no dataset".into()),
        name => Ok(name.to_owned()),
    }
}

/// Returns the device of a volume.
pub fn volume_device(name: &str) -> PathBuf {
    super::environment::path("/dev/zvol").join(name)
}

/// Returns the size of a volume, or `None` if there is none of this name.
pub fn volume_size(name: &str) -> Result<Option<u64>, HostError> {
    match program::run("zfs", &["list", "-H", "-p", "-o", "name,volsize", name]) {
        Ok(text) => match text.trim().split_once('\t').filter(|(found, _)| *found == name) {
            Some((_, size)) => size.parse().map(Some).map_err(|_| format!("`{name}` is not a ZFS volume").into()),
            None => Ok(None),
        },
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether zfs(8) says that the dataset does not exist.
fn is_missing(error: &ProgramError) -> bool {
    matches!(&error.cause, Cause::Failed { words, .. } if words.contains("does not exist"))
}

/// Makes a volume with these properties. A thin one uses space as it is written. `volmode` is `dev` unless they set
/// another. ZFS needs a multiple of the block size, so the size is rounded up to 1 MiB. The device exists once
/// [`open_volume`] has returned.
pub fn create_volume(name: &str, size: u64, thin: bool, properties: &[(String, String)]) -> Result<(), HostError> {
    let size = size.next_multiple_of(1 << 20).to_string();
    let mut options: Vec<String> = properties.iter().map(|(property, value)| format!("{property}={value}")).collect();
    if !properties.iter().any(|(property, _)| property == "volmode") {
        options.insert(0, "volmode=dev".into());
    }
    let mut words = vec!["create"];
    words.extend(thin.then_some("-s"));
    words.extend(options.iter().flat_map(|option| ["-o", option]));
    words.extend(["-V", &size, name]);
    zfs(&words).map(drop)
}

/// Opens the device of a volume. Retries while it is missing (ENOENT), not ready (ENXIO) or in use by the kernel's own
/// probe (EBUSY); then recreates a node that is missing or not ready by setting `volmode` to `none` and back.
pub fn open_volume(name: &str, write: bool) -> Result<File, HostError> {
    let device = volume_device(name);
    let open = || File::options().read(true).write(write).open(&device);
    open_or_recreate(name, &device, NODE_APPEARS, open, || bring_forth(name))
}

fn open_or_recreate(
    name: &str,
    device: &Path,
    patience: Duration,
    open: impl Fn() -> io::Result<File>,
    recreate: impl Fn() -> Result<(), HostError>,
) -> Result<File, HostError> {
    let mut tries = 0;
    loop {
        match retry_while_it_appears(&open, patience) {
            Ok(file) => return Ok(file),
            Err(error) if !is_passing(&error) => return Err(format!("cannot open `{}`: {error}", device.display()).into()),
            Err(error) if tries == BRINGS_FORTH && is_in_use(&error) => {
                return Err(format!("the device `{}` of volume `{name}` is in use: {error}", device.display()).into());
            }
            Err(error) if tries == BRINGS_FORTH => {
                return Err(format!(
                    "the device `{}` of volume `{name}` cannot be opened, though its `volmode` was set to `none` and back \
                     {BRINGS_FORTH} times: {error}",
                    device.display()
                )
                .into());
            }
            Err(error) if is_in_use(&error) => {}
            Err(_) => recreate()?,
        }
        tries += 1;
    }
}

fn retry_while_it_appears<T>(mut open: impl FnMut() -> io::Result<T>, patience: Duration) -> io::Result<T> {
    let until = Instant::now() + patience;
    loop {
        match open() {
            Err(error) if is_passing(&error) && Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

/// Returns whether a volume's device may appear a moment later.
fn is_passing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENXIO | Errno::EBUSY))
}

/// Returns whether the error says that a volume has a user, under whom its node must not be taken away.
fn is_in_use(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::EBUSY)
}

/// Makes the kernel recreate the node of a volume.
fn bring_forth(name: &str) -> Result<(), HostError> {
    // A volume that the user made visible in another way stays so.
    let mode = match property(name, "volmode")?.as_str() {
        mode @ ("geom" | "full") => mode.to_owned(),
        _ => "dev".to_owned(),
    };
    zfs(&["set", "volmode=none", name])?;
    zfs(&["set", &format!("volmode={mode}"), name]).map(drop)
}

/// Gives a volume another name.
pub fn rename_volume(from: &str, to: &str) -> Result<(), HostError> {
    zfs(&["rename", from, to]).map(drop)
}

/// Makes a volume larger.
pub fn grow_volume(name: &str, size: u64) -> Result<(), HostError> {
    zfs(&["set", &format!("volsize={}", size.next_multiple_of(1 << 20)), name]).map(drop)
}

/// Removes a volume and its snapshots, and the snapshot of another volume that [`clone_volume`] made for it. A missing
/// volume is no error.
pub fn destroy_volume(name: &str) -> Result<(), HostError> {
    let origin = property(name, "origin").ok().filter(|origin| origin.contains("@vmctl-"));
    match program::run("zfs", &["destroy", "-r", name]) {
        Err(error) if !is_missing(&error) => return Err(error.into()),
        _ => {}
    }
    if let Some(origin) = origin {
        let _ = zfs(&["destroy", &origin]);
    }
    Ok(())
}

/// Copies a volume through a snapshot that is removed afterwards. The copy does not depend on its source.
pub fn copy_volume(from: &str, to: &str) -> Result<(), HostError> {
    let snapshot = format!("{from}@vmctl-clone-{}", std::process::id());
    zfs(&["snapshot", &snapshot])?;
    let copied = send_receive(&snapshot, to);
    let _ = zfs(&["destroy", &snapshot]);
    copied?;
    let _ = zfs(&["destroy", &format!("{to}@vmctl-clone-{}", std::process::id())]);
    Ok(())
}

fn send_receive(snapshot: &str, to: &str) -> Result<(), HostError> {
    let failed = |error: io::Error| HostError::user(format!("cannot run zfs(8): {error}"));
    let zfs = || Command::new(program::find("zfs").unwrap_or_else(|| "zfs".into()));
    let mut send = zfs().args(["send", snapshot]).stdout(std::process::Stdio::piped()).spawn().map_err(failed)?;
    let stream = send.stdout.take().expect("piped above");
    let receive = zfs().args(["receive", "-o", "volmode=dev", to]).stdin(stream).output().map_err(failed)?;
    let sent = send.wait().map_err(failed)?;
    match sent.success() && receive.status.success() {
        true => Ok(()),
        false => Err(format!("`zfs receive {to}` failed: {}", String::from_utf8_lossy(&receive.stderr).trim()).into()),
    }
}

/// Makes a volume that shares the bytes of another until they differ: a clone of a snapshot, on which it depends.
pub fn clone_volume(from: &str, to: &str) -> Result<(), HostError> {
    let snapshot = format!("{from}@vmctl-{}", to.replace('/', ":"));
    if let Err(error) = zfs(&["snapshot", &snapshot]) {
        if !error.to_string().contains("already exists") {
            return Err(error);
        }
        // A command that was killed before it cloned the snapshot left it. A snapshot with a clone cannot be destroyed.
        zfs(&["destroy", &snapshot]).map_err(|_| error)?;
        zfs(&["snapshot", &snapshot])?;
    }
    let cloned = zfs(&["clone", "-o", "volmode=dev", &snapshot, to]).map(drop);
    if let Err(error) = &cloned {
        if !error.to_string().contains("already exists") {
            let _ = zfs(&["destroy", to]);
        }
        let _ = zfs(&["destroy", &snapshot]);
    }
    cloned
}

/// A snapshot of a dataset or volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The dataset.
    pub dataset: String,
    /// The part after the `@`.
    pub name: String,
    /// Bytes that only it holds.
    pub used: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// Returns whether a name can be that of a snapshot: a component by the rules of zfs(8), and not longer than needed.
pub fn is_snapshot_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('-') && name.bytes().all(plain)
}

/// Takes snapshots of datasets and all below them. They are taken at the same moment if they are in one pool.
pub fn snapshot(datasets: &[String], name: &str) -> Result<(), SnapshotError> {
    let names: Vec<String> = datasets.iter().map(|dataset| format!("{dataset}@{name}")).collect();
    let arguments: Vec<&str> = ["snapshot", "-r"].into_iter().chain(names.iter().map(String::as_str)).collect();
    zfs(&arguments).map(drop).map_err(SnapshotError::of)
}

/// Returns the snapshots of a dataset itself, the oldest first.
pub fn snapshots(dataset: &str) -> Result<Vec<Snapshot>, HostError> {
    let columns = "name,used,creation";
    let text = zfs(&["list", "-H", "-p", "-t", "snapshot", "-d", "1", "-o", columns, "-s", "creation", dataset])?;
    Ok(text.lines().filter_map(snapshot_of_line).collect())
}

fn snapshot_of_line(line: &str) -> Option<Snapshot> {
    let mut words = line.split('\t');
    let (dataset, name) = words.next()?.split_once('@')?;
    let (used, created) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Snapshot { dataset: dataset.to_owned(), name: name.to_owned(), used, created })
}

/// Rolls a dataset back to a snapshot. `newer` also destroys the snapshots after it, which ZFS refuses otherwise.
pub fn rollback(dataset: &str, name: &str, newer: bool) -> Result<(), HostError> {
    let snapshot = format!("{dataset}@{name}");
    let arguments: &[&str] = if newer { &["rollback", "-r", &snapshot] } else { &["rollback", &snapshot] };
    zfs(arguments).map(drop)
}

/// Removes a snapshot of a dataset and of all below it.
pub fn destroy_snapshot(dataset: &str, name: &str) -> Result<(), SnapshotError> {
    zfs(&["destroy", "-r", &format!("{dataset}@{name}")]).map(drop).map_err(SnapshotError::of)
}

/// Returns a property of a dataset.
pub fn property(dataset: &str, name: &str) -> Result<String, HostError> {
    Ok(zfs(&["get", "-H", "-o", "value", name, dataset])?.trim().to_owned())
}

/// Returns the dataset whose mountpoint a directory is, if it is one.
pub fn dataset_mounted_at(directory: &Path) -> Option<String> {
    let dataset = dataset_of(directory).ok()?;
    (property(&dataset, "mountpoint").ok()? == directory.to_str()?).then_some(dataset)
}

/// Returns the volume behind a device below /dev/zvol.
pub fn volume_of_device(path: &Path) -> Option<String> {
    let volumes = super::environment::path("/dev/zvol");
    path.strip_prefix(volumes).or_else(|_| path.strip_prefix("/dev/zvol")).ok()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_missing_is_recreated_and_one_in_use_is_left_to_its_user() {
        use std::cell::Cell;
        let opened = |errno: Errno| {
            let recreated = Cell::new(0);
            let recreate = || {
                recreated.set(recreated.get() + 1);
                Ok(())
            };
            let open = || Err(io::Error::from(errno));
            let error = open_or_recreate("tank/v", Path::new("/dev/zvol/tank/v"), Duration::ZERO, open, recreate);
            (recreated.get(), error.expect_err("never opens").to_string())
        };
        for missing in [Errno::ENOENT, Errno::ENXIO] {
            let (times, words) = opened(missing);
            assert_eq!(times, BRINGS_FORTH);
            assert!(words.contains("though its `volmode` was set to `none` and back 3 times"), "{words}");
        }
        let (times, words) = opened(Errno::EBUSY);
        assert_eq!(times, 0, "the pool would wait for its user");
        assert!(words.contains("the device `/dev/zvol/tank/v` of volume `tank/v` is in use"), "{words}");
        assert_eq!(opened(Errno::EACCES).0, 0);
    }

    #[test]
    fn snapshots_are_read_from_tabs() {
        let line = "tank/vm/web-root@before\t4096\t1790000000";
        let expected = Snapshot { dataset: "tank/vm/web-root".into(), name: "before".into(), used: 4096, created: 1_790_000_000 };
        assert_eq!(snapshot_of_line(line), Some(expected));
        assert_eq!(snapshot_of_line("tank/vm\t1\t2"), None);
        assert_eq!(snapshot_of_line(""), None);
    }

    #[test]
    fn names_that_zfs_would_take_for_something_else_are_none() {
        for name in ["", "-r", "a@b", "a/b", "a b", "a%b"] {
            assert!(!is_snapshot_name(name), "{name}");
        }
        assert!(is_snapshot_name("2026-11-26T22:03:17.auto_1"));
    }

    #[test]
    fn a_device_that_is_missing_not_ready_or_busy_is_tried_again_and_one_that_is_refused_is_not() {
        let patience = Duration::from_secs(3600);
        let tries = |errors: &[Errno]| {
            let mut left = errors.iter();
            let opened = retry_while_it_appears(|| left.next().map_or(Ok(()), |errno| Err((*errno).into())), patience);
            (opened.map_err(|error| error.raw_os_error()), left.len())
        };
        assert_eq!(tries(&[Errno::ENOENT, Errno::ENXIO, Errno::EBUSY, Errno::EBUSY]), (Ok(()), 0));
        assert_eq!(tries(&[Errno::EBUSY, Errno::EACCES, Errno::EBUSY]), (Err(Some(Errno::EACCES as i32)), 1));
        // Nobody waits for ever, and the last error is told.
        let opened = retry_while_it_appears(|| Err::<(), _>(Errno::EBUSY.into()), Duration::ZERO);
        assert_eq!(opened.map_err(|error| error.raw_os_error()), Err(Some(Errno::EBUSY as i32)));
    }

    #[test]
    fn a_device_of_a_volume_names_it() {
        assert_eq!(volume_of_device(Path::new("/dev/zvol/tank/vm/web")).as_deref(), Some("tank/vm/web"));
        assert_eq!(volume_of_device(Path::new("/dev/da0")), None);
    }
}
