//! The command lines of one boot: loader and bhyve(8), each argument with the keys that made it.
//!
//! Pure: a [`GuestConfig`], the addresses and the identity in a [`GuestState`], what the host's bhyve can do
//! ([`HostFeatures`]) and the names that exist only at run time ([`Resolved`]) go in; [`Lines`] come out. Nothing is
//! looked up, made or run here, so the same guest file gives the same lines on any machine.
//!
//! Syntax: bhyve(8), bhyve_config(5), bhyveload(8), and of grub2-bhyve `grub-core/kern/emu/main.c`. What the parsers of
//! `usr.sbin/bhyve` do and the pages do not say:
//!
//! * `-s` splits its text at commas and has no way to quote one (`pci_emul.c` pci_parse_slot, pci_parse_legacy_config),
//!   so a path with a comma is refused here.
//! * `%(name)` in a value is replaced and `%%` stands for a percent sign (`config.c` expand_config_value), so a percent
//!   sign in a path of ours is doubled.
//! * `-s` refuses an address for which there is a node already, and `-o pci.B.S.F.x=` makes one: variables come after
//!   the devices.
//! * Unknown variables are ignored in silence; `config::bhyve_variables` has the known ones.
//! * A virtio-net without a backend is one whose cable is out (`pci_virtio_net.c`); an e1000 without one is an error
//!   (`pci_e82545.c`).
//!
//! A password never stands in an argument, which every user of the host could read: it goes into a generated file of
//! mode 0600 that `-k` reads.
mod devices; // -s
mod flags; // everything else of bhyve
mod loader; // bhyveload, grub-bhyve
mod print; // the lines for a shell
mod resolved; // what exists only at run time

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{EngineKind, GuestConfig, PciAddress};
use crate::guest::error::{GuestError, Result};
use crate::guest::state::GuestState;
use crate::host::bhyve::{HostFeatures, Since};

pub use print::shown;
pub use resolved::{Firmware, Resolved};

/// One argument with its value, or a bare one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// As they are given to the program.
    pub words: Vec<String>,
    /// The keys of the guest file that made it; at least one.
    pub keys: Vec<String>,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandLine {
    /// Its name, looked for in `PATH`.
    pub program: &'static str,
    /// In order.
    pub arguments: Vec<Argument>,
}

impl CommandLine {
    fn new(program: &'static str) -> Self {
        Self { program, arguments: Vec::new() }
    }

    fn add<const N: usize>(&mut self, words: [String; N], keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.arguments.push(Argument { words: words.into(), keys });
    }

    fn flag(&mut self, flag: &str, key: &str) {
        self.add([flag.to_owned()], &[key]);
    }

    /// The arguments in one row, without the program.
    pub fn words(&self) -> Vec<String> {
        self.arguments.iter().flat_map(|argument| argument.words.clone()).collect()
    }
}

/// A file that must be there before the first command is run; made anew for each boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GeneratedFile {
    /// Where, as the host sees it.
    pub path: PathBuf,
    /// What is in it.
    #[serde(serialize_with = "hide_secret")]
    pub content: Content,
    /// The key that made it.
    pub key: String,
}

/// What is in a generated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// For everyone to read.
    Plain(String),
    /// Of mode 0600; not shown.
    Secret(String),
}

impl Content {
    /// The text.
    pub fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Secret(text) => text,
        }
    }
}

fn hide_secret<S: serde::Serializer>(content: &Content, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match content {
        Content::Plain(text) => serializer.serialize_str(text),
        Content::Secret(_) => serializer.serialize_none(),
    }
}

/// The commands of one boot, in the order in which they are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lines {
    /// The jail that the programs run in.
    pub jail: Option<String>,
    /// What puts the guest's kernel into memory; none with firmware.
    pub loader: Option<CommandLine>,
    /// bhyve(8) itself.
    pub bhyve: CommandLine,
    /// What both read.
    pub files: Vec<GeneratedFile>,
}

/// Everything that goes in.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The guest.
    pub config: &'a GuestConfig,
    /// Its identity and its addresses: [`GuestState::assign`] was called with the same configuration.
    pub state: &'a GuestState,
    /// The host's bhyve.
    pub features: &'a HostFeatures,
    /// What exists only at run time.
    pub resolved: &'a Resolved,
}

/// The command lines of the next boot; an error when this bhyve cannot do what the guest file asks for.
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
    /// Refuses what came later than the host's release.
    fn needs(&self, since: Since, key: &str) -> Result<()> {
        if self.features.has(since) {
            return Ok(());
        }
        let message = format!("`{key}`: bhyve(8) of {} does not have {}", self.features.release(), since.what);
        Err(GuestError::user(message).hint(format!("{} has it", since.release)))
    }

    /// The address of a device.
    fn address(&self, name: &str) -> Result<PciAddress> {
        let known = self.state.addresses.get(name).and_then(|address| address.parse().ok());
        known.ok_or_else(|| GuestError::host(format!("no PCI address for {name}")))
    }

    /// A path as the program sees it that runs in the guest's jail. The jail's own /dev has the devices.
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

    /// A path as a part of a value of bhyve's, see the head of this file.
    fn value(&self, path: &Path, key: &str) -> Result<String> {
        value(&self.path(path, key)?, key)
    }
}

/// A text as a part of a value of bhyve's, see the head of this file.
fn value(text: &str, key: &str) -> Result<String> {
    if text.contains(',') {
        let message = format!("`{key}`: `{text}` has a comma, which bhyve(8) takes for the end of a value");
        return Err(GuestError::user(message).hint("rename it, or make a link to it"));
    }
    Ok(text.replace('%', "%%"))
}

/// As short as bhyve(8) takes it.
fn slot(address: PciAddress) -> String {
    match (address.bus, address.function) {
        (0, 0) => address.slot.to_string(),
        (0, function) => format!("{}:{function}", address.slot),
        _ => address.to_string(),
    }
}

/// Memory with the unit that the programs need: a bare number is MB to one and bytes to the other.
fn memory(config: &GuestConfig) -> String {
    let mib = config.memory.bytes() >> 20;
    if mib.is_multiple_of(1024) { format!("{}G", mib / 1024) } else { format!("{mib}M") }
}

#[cfg(test)]
mod tests;
