//! The command lines of one boot: loader and bhyve(8), each argument with the keys that made it.
//!
//! These are pure functions. Their inputs are a [`GuestConfig`], the addresses and the identity in a [`GuestState`],
//! the features of the host's bhyve ([`HostFeatures`]) and the names that exist only at run time ([`Resolved`]). Their
//! output is [`Lines`]. Nothing is looked up, made or run here, so the same guest file gives the same lines on any
//! machine.
//!
//! Syntax: bhyve(8), bhyve_config(5), bhyveload(8), and of grub2-bhyve `grub-core/kern/emu/main.c`. Facts from the
//! parsers of `usr.sbin/bhyve` that are not in the pages:
//!
//! * `-s` splits its text at commas and has no way to quote one (`pci_emul.c` pci_parse_slot, pci_parse_legacy_config),
//!   so a path with a comma is refused here.
//! * `%(name)` in a value is replaced and `%%` is a percent sign (`config.c` expand_config_value), so a percent sign in
//!   a path is doubled.
//! * `-s` refuses an address for which there is a node already, and `-o pci.B.S.F.x=` makes one: variables come after
//!   the devices.
//! * Unknown variables are ignored in silence; `config::bhyve_variables` has the known ones.
//! * A virtio-net without a backend has its link down (`pci_virtio_net.c`); an e1000 without one is an error
//!   (`pci_e82545.c`).
//!
//! A password is never in an argument, since every user of the host could read it. It goes into a generated file of
//! mode 0600 that `-k` reads.
mod devices; // -s
mod flags; // everything else of bhyve
mod loader; // bhyveload, grub-bhyve
mod print; // the lines for a shell
mod resolved; // names that exist only at run time

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::word::{Piece, Word};
use crate::config::{DeviceKey, DiskConfig, EngineKind, GuestConfig, PciAddress};
use crate::guest::error::{GuestError, Result};
use crate::guest::state::GuestState;
use crate::host::bhyve::{HostFeatures, Since};

pub use print::as_shell_text;
pub use resolved::{DiskPath, Firmware, Plug, Resolved, ScreenAddress};

/// One argument with its value, or a bare one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// The words, as they are given to the program.
    #[serde(serialize_with = "as_texts")]
    pub words: Vec<Word>,
    /// The keys of the guest file that made it; at least one.
    pub keys: Vec<String>,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandLine {
    /// Name of the program, which is searched in `PATH`.
    pub program: &'static str,
    /// The arguments, in order.
    pub arguments: Vec<Argument>,
}

impl CommandLine {
    fn new(program: &'static str) -> Self {
        Self { program, arguments: Vec::new() }
    }

    fn add(&mut self, words: impl IntoIterator<Item = impl Into<Word>>, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.arguments.push(Argument { words: words.into_iter().map(Into::into).collect(), keys });
    }

    fn flag(&mut self, flag: &str, key: &str) {
        self.add([flag], &[key]);
    }

    /// Returns the words of all arguments, without the program.
    pub fn words(&self) -> Vec<String> {
        self.arguments.iter().flat_map(|argument| &argument.words).map(Word::to_string).collect()
    }
}

/// A file that must exist before the first command runs. It is written again for each boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GeneratedFile {
    /// Path of the file on the host.
    pub path: PathBuf,
    /// Contents of the file.
    #[serde(serialize_with = "hide_secret")]
    pub content: Content,
    /// The key that made it.
    pub key: String,
}

/// Contents of a generated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Everybody may read it.
    Plain(Word),
    /// Mode 0600, and not shown.
    Secret(Word),
}

impl Content {
    /// Returns the text.
    pub fn text(&self) -> &Word {
        match self {
            Self::Plain(text) | Self::Secret(text) => text,
        }
    }
}

fn as_texts<S: serde::Serializer>(words: &[Word], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(words.iter().map(Word::to_string))
}

fn hide_secret<S: serde::Serializer>(content: &Content, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match content {
        Content::Plain(text) => serializer.collect_str(text),
        Content::Secret(_) => serializer.serialize_none(),
    }
}

/// The commands of one boot, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lines {
    /// The jail of the programs.
    pub jail: Option<String>,
    /// The loader, which puts the guest's kernel into memory. There is none with firmware.
    pub loader: Option<CommandLine>,
    /// The line of bhyve(8).
    pub bhyve: CommandLine,
    /// Files that both read.
    pub files: Vec<GeneratedFile>,
}

/// Inputs of the command lines.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Configuration of the guest.
    pub config: &'a GuestConfig,
    /// Its identity and its addresses: [`GuestState::assign`] was called with the same configuration.
    pub state: &'a GuestState,
    /// Features of the host's bhyve.
    pub features: &'a HostFeatures,
    /// Names that exist only at run time.
    pub resolved: &'a Resolved,
}

/// Returns the command lines of the next boot. It is an error if this bhyve lacks a feature that the guest file asks
/// for.
pub fn build(inputs: Inputs<'_>) -> Result<Lines> {
    if inputs.config.engine != EngineKind::Bhyve {
        let message = format!("`{}` runs under the embedded engine, which has no command line", inputs.config.name);
        return Err(GuestError::user(message).hint("set `engine = \"bhyve\"`"));
    }
    let mut files = Vec::new();
    let bhyve = flags::bhyve(inputs, &mut files)?;
    let loader = loader::loader(inputs, &mut files)?;
    let jail = inputs.config.jail.as_ref().map(|jail| jail.name.clone());
    Ok(Lines { jail, loader, bhyve, files })
}

impl Inputs<'_> {
    /// Refuses a feature that came later than the host's release.
    fn needs(&self, since: Since, key: &str) -> Result<()> {
        if self.features.has(since) {
            return Ok(());
        }
        let message = format!("`{key}`: bhyve(8) of {} does not have {}", self.features.release(), since.what);
        Err(GuestError::user(message).hint(format!("{} has it", since.release)))
    }

    /// Returns the address of a device.
    fn address(&self, device: &DeviceKey) -> Result<PciAddress> {
        let known = self.state.addresses.get(device).copied();
        known.ok_or_else(|| GuestError::host(format!("no PCI address for {device}")))
    }

    /// Returns a path as programs in the guest's jail see it. The jail's own /dev has the devices.
    fn path(&self, path: &Path, key: &str) -> Result<String> {
        let seen = match (&self.config.jail, &self.resolved.jail_root) {
            (Some(jail), Some(root)) if !path.starts_with("/dev") => match path.strip_prefix(root) {
                Ok(inside) => Path::new("/").join(inside),
                Err(_) => {
                    let message = format!(
                        "`{key}`: `{}` is outside of the jail `{}`, whose root is `{}`",
                        path.display(),
                        jail.name,
                        root.display()
                    );
                    return Err(GuestError::user(message).hint("put it below that directory"));
                }
            },
            _ => path.to_owned(),
        };
        let text = seen.to_str().ok_or_else(|| GuestError::user(format!("`{key}`: `{}` is not UTF-8", path.display())))?;
        Ok(text.to_owned())
    }

    /// Returns the path of a disk as the program sees it.
    fn disk(&self, disk: &DiskConfig) -> Result<Word> {
        let found =
            self.resolved.disks.get(&disk.id).ok_or_else(|| GuestError::host(format!("no path for disk `{}`", disk.id)))?;
        match found {
            DiskPath::File(path) => Ok(self.path(path, &format!("disks.{}", disk.id))?.into()),
            DiskPath::Unit => Ok(Word::from("/dev/").then(Piece::Device(disk.id.clone()))),
        }
    }

    /// Returns a path as a part of a bhyve value, see the head of this file.
    fn value(&self, path: &Path, key: &str) -> Result<String> {
        value(&self.path(path, key)?, key)
    }
}

/// Returns a text as a part of a bhyve value, see the head of this file.
fn value(text: &str, key: &str) -> Result<String> {
    if text.contains(',') {
        let message = format!("`{key}`: `{text}` has a comma, which bhyve(8) takes for the end of a value");
        return Err(GuestError::user(message).hint("rename it, or make a link to it"));
    }
    Ok(text.replace('%', "%%"))
}

/// Returns the shortest form that bhyve(8) accepts.
fn slot(address: PciAddress) -> String {
    match (address.bus, address.function) {
        (0, 0) => address.slot.to_string(),
        (0, function) => format!("{}:{function}", address.slot),
        _ => address.to_string(),
    }
}

/// Returns the memory with a unit, since a bare number is MB to one program and bytes to the other.
fn memory(config: &GuestConfig) -> String {
    let mib = config.memory.bytes() >> 20;
    if mib.is_multiple_of(1024) { format!("{}G", mib / 1024) } else { format!("{mib}M") }
}

#[cfg(test)]
mod tests;
