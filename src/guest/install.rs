//! An installer's run: the medium that a guest boots from once, and the answer file that the installer reads.
//!
//! A run is the first boot of one supervisor, and only that process knows it. Whatever ends the boot (the installer's
//! reboot, its power-off, a crash, a killed supervisor, a power failure of the host), the next boot follows the guest
//! file, without the medium.
//!
//! Words for the kernel: Debian's installer reads `url=` (installation guide, appendix B.2.2; `auto=true` delays its
//! questions until the file is read), Ubuntu's `autoinstall` with cloud-init's `ds=nocloud;s=` (its NoCloud data
//! source).

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::config::{BootTarget, DiskConfig, DiskDevice, EngineKind, GrubSystem, GuestConfig, LoaderKind, NicBackend};
use crate::fetch::contents::Contents as FetchContents;
use crate::fetch::image::FileStorage;
use crate::inputs;
use crate::machine::loader::volume::iso9660::{BootImage, Iso};
use crate::machine::loader::volume::probe::{Found, probe};
use crate::machine::loader::volume::{FileSystem, Medium, NodeKind};
use crate::machine::spec::{ANSWERS_PORT, AnswerContent, AnswerSpec};

use super::error::{GuestError, Result};

/// The id of the medium's drive.
pub const DRIVE: &str = "install";
/// Maximum size of all answer files together.
const ANSWERS_MAX: u64 = 16 << 20;
/// Maximum number of answer files.
const ANSWERS_MOST: usize = 64;
/// Position of the identifier of an ISO 9660 volume descriptor (ECMA-119, 8.1: sector 16, byte 1).
const ISO_IDENTIFIER: (u64, &[u8]) = (16 * 2048 + 1, b"CD001");

/// Answers for an installer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// A file for Debian's installer.
    Preseed(PathBuf),
    /// `user-data` for Ubuntu's installer, or a directory that contains it.
    Autoinstall(PathBuf),
}

/// An installer's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The medium.
    medium: PathBuf,
    /// Whether it is for a CD drive. Otherwise it is a disk that is not written.
    is_iso: bool,
    /// The files that the installer may read, by path.
    served: Vec<(String, AnswerContent)>,
    /// Words for the kernel's command line.
    words: Vec<Word>,
    /// Contents of the medium for loaders.
    found: Contents,
}

/// A word for the kernel's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// A literal word.
    Plain(String),
    /// The address of a served file: its beginning, and the path. The host part is the network's address.
    Url(&'static str, &'static str),
}

/// Contents of an ISO for loaders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Contents {
    /// A boot image for UEFI.
    uefi: bool,
    /// FreeBSD's kernel.
    freebsd: bool,
    /// OpenBSD's installer, by the path of its kernel.
    openbsd: Option<String>,
    /// NetBSD's kernel.
    netbsd: bool,
    /// A configuration of GRUB at grub-bhyve's path.
    grub: bool,
    /// A list of it all, in words.
    words: Vec<&'static str>,
}

impl Install {
    /// Creates the run with this medium and these answers. `append` are further words for the kernel's command line.
    /// The files are checked.
    pub fn new(medium: &Path, answers: Option<&Answers>, append: &str) -> Result<Install> {
        let medium = whole(medium)?;
        let failed = |error| GuestError::input("read", &medium, error);
        let file = inputs::open(&medium).map_err(failed)?;
        let contents = FileStorage::open(&medium).and_then(|file| FetchContents::of(&file)).map_err(GuestError::in_one)?;
        if contents != FetchContents::Raw {
            return Err(GuestError::user(format!("`{}` is {}, not a medium", medium.display(), contents.words()))
                .hint("`vmctl iso add` unpacks a medium, and `vmctl image import` a disk"));
        }
        let mut found = [0; ISO_IDENTIFIER.1.len()];
        let is_iso = file.read_exact_at(&mut found, ISO_IDENTIFIER.0).is_ok() && found == *ISO_IDENTIFIER.1;
        let (served, mut words) = match answers {
            None => (Vec::new(), Vec::new()),
            Some(Answers::Preseed(file)) => preseed(file)?,
            Some(Answers::Autoinstall(path)) => autoinstall(path)?,
        };
        words.extend(append.split_whitespace().map(plain));
        let found = if is_iso { Contents::of(file) } else { Contents::default() };
        Ok(Install { medium, is_iso, served, words, found })
    }

    /// Returns the medium.
    pub fn medium(&self) -> &Path {
        &self.medium
    }

    /// Checks whether a guest can be installed like this.
    pub fn check(&self, config: &GuestConfig) -> Result<()> {
        let name = &config.name;
        if config.loader == LoaderKind::Kernel {
            return Err(GuestError::user(format!("`{name}` boots a kernel of the host, not a medium"))
                .hint("another loader boots media: `--set loader=grub`, or `vmctl edit`"));
        }
        if config.disks.iter().any(|disk| disk.id == DRIVE) {
            return Err(GuestError::user(format!("`{name}` has a disk `{DRIVE}`, as the medium's drive is called"))
                .hint("give that disk another id"));
        }
        let can_hold = |disk: &DiskConfig| !disk.ro && disk.device != DiskDevice::AhciCd;
        if !config.disks.iter().any(can_hold) {
            return Err(GuestError::user(format!("`{name}` has no disk that could be installed to"))
                .hint(format!("`vmctl disk add {name} root --size 20G` adds one")));
        }
        self.check_loader(config)?;
        let embedded_grub = config.engine == EngineKind::Embedded && config.loader == LoaderKind::Grub;
        if !self.words.is_empty() && !embedded_grub {
            return Err(GuestError::user(format!(
                "the installer of `{name}` cannot be told where its answer file is, or anything else: only `loader = \"grub\"` of \
                 the embedded engine adds words to the kernel's command line"
            ))
            .hint("type them at the medium's own menu, or put the answers on a disk"));
        }
        if !self.served.is_empty() && !config.nics.iter().any(|nic| nic.backend == NicBackend::User) {
            return Err(GuestError::user(format!(
                "`{name}` has no user-mode network, over which the installer would read its answer file"
            ))
            .hint("`--network user`, or an interface with `backend = \"user\"`"));
        }
        Ok(())
    }

    /// Checks whether the guest's loader can boot from an ISO. The embedded engine's loader reports that itself, in
    /// detail.
    fn check_loader(&self, config: &GuestConfig) -> Result<()> {
        let system = config.grub.as_ref().map(|grub| grub.system);
        let (there, what) = match (config.loader, system) {
            _ if !self.is_iso || config.engine == EngineKind::Embedded => return Ok(()),
            (LoaderKind::Uefi, _) => {
                (self.found.uefi || config.uefi.as_ref().is_some_and(|uefi| uefi.csm), "boot image for UEFI")
            }
            (LoaderKind::Bhyveload, _) => (self.found.freebsd, "kernel of FreeBSD"),
            (LoaderKind::Grub, Some(GrubSystem::Openbsd)) => (self.found.openbsd.is_some(), "installer of OpenBSD"),
            (LoaderKind::Grub, Some(GrubSystem::Netbsd)) => (self.found.netbsd, "kernel of NetBSD"),
            (LoaderKind::Grub, _) => (self.found.grub, "`/boot/grub/grub.cfg`"),
            (LoaderKind::Kernel, _) => return Ok(()),
        };
        if there {
            return Ok(());
        }
        let has = if self.found.words.is_empty() { "nothing that a loader boots".into() } else { self.found.words.join(", ") };
        Err(GuestError::user(format!("`{}` has no {what}, which the guest's loader boots", self.medium.display()))
            .hint(format!("found on it: {has}")))
    }

    /// Adds the medium to a configuration, first in the boot order. Settings for booting the installed system do not
    /// apply to the medium.
    pub fn attach(&self, config: &mut GuestConfig) {
        let device = if self.is_iso { DiskDevice::AhciCd } else { DiskDevice::AhciHd };
        let disk = DiskConfig::read_only(DRIVE, device, Some(self.medium.clone()));
        config.disks.insert(0, disk);
        // The loaders of bhyve(8) use the first of this order. Firmware gets it as `bootindex`.
        config.boot_order.insert(0, BootTarget::Disk(DRIVE.to_owned()));
        if let Some(grub) = &mut config.grub {
            (grub.partition, grub.directory, grub.file, grub.entry) = (None, None, None, None);
            grub.commands.clear();
            (grub.kernel, grub.root) = (None, None);
            if grub.system == GrubSystem::Openbsd {
                grub.kernel.clone_from(&self.found.openbsd);
            }
            if !self.is_iso && config.engine == EngineKind::Bhyve && grub.system == GrubSystem::Linux {
                grub.partition = Some("1".to_owned());
            }
        }
    }

    /// Returns the words for the kernel's command line, for a guest whose network serves the files at `address`.
    pub fn words(&self, address: Ipv4Addr) -> Vec<String> {
        let word = |word: &Word| match word {
            Word::Plain(text) => text.clone(),
            Word::Url(begin, path) => format!("{begin}{}", url(address, path)),
        };
        self.words.iter().map(word).collect()
    }

    /// Returns the files that the installer may read.
    pub fn answers(&self) -> Vec<AnswerSpec> {
        self.served.iter().map(|(path, content)| AnswerSpec { path: path.clone(), content: content.clone() }).collect()
    }
}

impl Contents {
    fn of(file: File) -> Contents {
        let medium = Medium::of_file(file);
        let images = Iso::boot_images(&medium);
        let Found::Volume(volume) = probe(&medium) else { return Contents::default() };
        let has = |path: &str| matches!(volume.kind_of(path), Ok(NodeKind::File));
        let mut found = Contents {
            uefi: images.contains(&BootImage::Uefi),
            freebsd: has("/boot/kernel/kernel") || has("/boot/kernel/kernel.gz"),
            openbsd: openbsd_kernel(volume.as_ref()),
            netbsd: has("/netbsd"),
            grub: has("/boot/grub/grub.cfg"),
            words: Vec::new(),
        };
        let all = [
            (found.uefi, "a boot image for UEFI"),
            (images.contains(&BootImage::Bios), "a boot image for a BIOS"),
            (found.freebsd, "a kernel of FreeBSD"),
            (found.openbsd.is_some(), "OpenBSD's installer"),
            (found.netbsd, "a kernel of NetBSD"),
            (found.grub, "a grub.cfg"),
            (has("/isolinux/isolinux.cfg") || has("/isolinux.cfg"), "an isolinux.cfg"),
        ];
        found.words = all.into_iter().filter_map(|(there, words)| there.then_some(words)).collect();
        found
    }
}

/// Returns the path of OpenBSD's installer kernel, which is `/RELEASE/amd64/bsd.rd` on its media.
fn openbsd_kernel(volume: &dyn FileSystem) -> Option<String> {
    let is_release = |name: &str| name.starts_with(|c: char| c.is_ascii_digit()) && name.contains('.');
    let releases = volume.list("/").unwrap_or_default();
    let mut paths = releases.iter().filter(|(name, _)| is_release(name)).map(|(name, _)| format!("/{name}/amd64/bsd.rd"));
    paths.find(|path| matches!(volume.kind_of(path), Ok(NodeKind::File)))
}

/// Returns an absolute path.
fn whole(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| GuestError::io("find", path, error))
}

fn plain(text: &str) -> Word {
    Word::Plain(text.to_owned())
}

fn url(address: Ipv4Addr, path: &str) -> String {
    match ANSWERS_PORT {
        80 => format!("http://{address}{path}"),
        port => format!("http://{address}:{port}{path}"),
    }
}

type AnswerSet = (Vec<(String, AnswerContent)>, Vec<Word>);

fn preseed(file: &Path) -> Result<AnswerSet> {
    const NAME: &str = "/preseed.cfg";
    let file = whole(file)?;
    size_of(&file)?;
    let words = [plain("auto=true"), plain("priority=critical"), Word::Url("url=", NAME), plain("interface=auto")];
    Ok((vec![(NAME.to_owned(), AnswerContent::File(file))], words.to_vec()))
}

fn autoinstall(path: &Path) -> Result<AnswerSet> {
    let path = whole(path)?;
    let mut served: Vec<(String, AnswerContent)> = Vec::new();
    let user_data = if path.is_dir() { path.join("user-data") } else { path.clone() };
    if path.is_dir() {
        let entries = std::fs::read_dir(&path).map_err(|error| GuestError::io("read", &path, error))?;
        let mut total = 0;
        for entry in entries {
            let entry = entry.map_err(|error| GuestError::io("read", &path, error))?;
            let name = entry.file_name();
            // Files of an editor and of git.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            let Some(name) = name.to_str().filter(|name| plain(name)) else {
                return Err(GuestError::user(format!("`{}` has a name that is not served", entry.path().display()))
                    .hint("letters, digits, `.`, `_` and `-`"));
            };
            total += size_of(&entry.path())?;
            served.push((format!("/{name}"), AnswerContent::File(entry.path())));
        }
        if served.len() > ANSWERS_MOST || total > ANSWERS_MAX {
            return Err(GuestError::user(format!(
                "`{}` has more than {ANSWERS_MOST} files or {} MiB",
                path.display(),
                ANSWERS_MAX >> 20
            )));
        }
        served.sort_by(|one, other| one.0.cmp(&other.0));
    } else {
        served.push(("/user-data".to_owned(), AnswerContent::File(path.clone())));
    }
    size_of(&user_data)?;
    let mut begin = String::new();
    let file = inputs::open(&user_data).map_err(|error| GuestError::input("read", &user_data, error))?;
    let _ = file.take(256).read_to_string(&mut begin);
    if begin.lines().next().map(str::trim_end) != Some("#cloud-config") {
        return Err(GuestError::user(format!("`{}` does not begin with `#cloud-config`", user_data.display()))
            .hint("the installer would ignore it; its configuration belongs below `autoinstall:`"));
    }
    if !served.iter().any(|(path, _)| path == "/meta-data") {
        // Without it cloud-init does not accept the source.
        served.push(("/meta-data".to_owned(), AnswerContent::Text("instance-id: vmctl-install\n".to_owned())));
    }
    let words = [plain("autoinstall"), Word::Url("ds=nocloud;s=", "/")];
    Ok((served, words.to_vec()))
}

/// Returns the size of a file that can be served.
fn size_of(path: &Path) -> Result<u64> {
    let failed = |error| GuestError::input("read the answer file", path, error);
    let metadata = inputs::open(path).and_then(|file| file.metadata()).map_err(failed)?;
    if metadata.len() > ANSWERS_MAX {
        return Err(GuestError::user(format!("`{}` has more than {} MiB", path.display(), ANSWERS_MAX >> 20)));
    }
    Ok(metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(dir: &Path, is_iso: bool) -> PathBuf {
        let path = dir.join("medium");
        let mut bytes = vec![0; 40 * 2048];
        if is_iso {
            bytes[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
        }
        std::fs::write(&path, bytes).expect("written");
        path
    }

    #[test]
    fn an_iso_is_for_a_cd_drive_and_anything_else_for_a_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        for is_iso in [true, false] {
            let install = Install::new(&medium(dir.path(), is_iso), None, "").expect("a medium");
            assert_eq!(install.is_iso, is_iso);
        }
        assert!(Install::new(dir.path(), None, "").is_err(), "a directory");
        assert!(Install::new(&dir.path().join("none"), None, "").is_err());
    }

    #[test]
    fn a_preseed_file_has_the_words_that_debians_installer_reads() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("answers.cfg");
        std::fs::write(&file, "d-i a b c\n").expect("written");
        let answers = Answers::Preseed(file.clone());
        let install = Install::new(&medium(dir.path(), true), Some(&answers), "DEBIAN_FRONTEND=text  x=1").expect("a run");
        let words = "auto=true priority=critical url=http://10.0.2.4/preseed.cfg interface=auto DEBIAN_FRONTEND=text x=1";
        assert_eq!(install.words(Ipv4Addr::new(10, 0, 2, 4)).join(" "), words);
        let file = std::fs::canonicalize(file).expect("there");
        assert_eq!(install.answers(), [AnswerSpec { path: "/preseed.cfg".into(), content: AnswerContent::File(file) }]);
    }

    #[test]
    fn an_autoinstall_directory_is_served_with_the_meta_data_that_it_lacks() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("seed");
        std::fs::create_dir(&folder).expect("made");
        let run = || Install::new(&medium(dir.path(), true), Some(&Answers::Autoinstall(folder.clone())), "");
        assert!(run().is_err(), "no user-data");
        std::fs::write(folder.join("user-data"), "autoinstall: {}\n").expect("written");
        let error = run().expect_err("no header");
        assert!(error.to_string().contains("#cloud-config"), "{error}");
        std::fs::write(folder.join("user-data"), "#cloud-config\nautoinstall: {}\n").expect("written");
        std::fs::write(folder.join(".hidden"), "").expect("written");
        let install = run().expect("a run");
        let paths: Vec<String> = install.answers().into_iter().map(|answer| answer.path).collect();
        assert_eq!(paths, ["/user-data", "/meta-data"]);
        let words = install.words(Ipv4Addr::new(192, 168, 77, 5));
        assert_eq!(words, ["autoinstall", "ds=nocloud;s=http://192.168.77.5/"]);
        std::fs::create_dir(folder.join("more")).expect("made");
        let error = run().expect_err("a directory in it");
        assert!(error.chain().contains("it is a directory"), "{}", error.chain());
    }
}
