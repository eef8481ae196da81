//! The plan of one boot under bhyve: command lines, and their needs on the host. The supervisor writes it, the engine
//! child reads it.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::guest::error::GuestError;
use crate::host::bhyvectl::Vm;
use crate::host::iscsi::Target;
use crate::host::swtpm::Tpm;

use super::super::word::{Piece, Word};

/// The version of this document. Both sides come from one binary; a difference means that the binary was replaced
/// meanwhile.
pub const PLAN_VERSION: u32 = 2;

/// The plan of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BhyvePlan {
    /// Always [`PLAN_VERSION`].
    pub version: u32,
    /// The guest's name, which is also the name of the virtual machine.
    pub name: String,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Path of the journal of resources to undo.
    pub journal: PathBuf,
    /// Kernel modules, in the order in which they are loaded.
    pub modules: Vec<String>,
    /// Disks that no other guest may use meanwhile.
    pub disks: Vec<DiskUse>,
    /// Disks that are units of an iSCSI target.
    pub units: Vec<UnitPlan>,
    /// Taps to make for this boot.
    pub taps: Vec<TapPlan>,
    /// Hooks of netgraph nodes to choose for this boot.
    pub hooks: Vec<HookPlan>,
    /// Interfaces of the user, which must exist and be free.
    pub interfaces: Vec<InterfaceUse>,
    /// Files to write, such as a device map.
    pub files: Vec<NewFile>,
    /// The guest's own UEFI variables.
    pub variables: Option<CopiedFile>,
    /// Sockets that programs of this boot bind. An existing one is a remain.
    pub sockets: Vec<PathBuf>,
    /// The lines of serial ports, the first one's first: the text between `nmdm` and `A`.
    pub lines: Vec<String>,
    /// A TPM in software.
    pub tpm: Option<Tpm>,
    /// Address of the guest's screen.
    pub screen: Option<Screen>,
    /// The program to run before bhyve.
    pub loader: Option<Program>,
    /// The command line of bhyve.
    pub bhyve: Program,
    /// The jail of the loader and bhyve.
    pub jail: Option<String>,
    /// Limits of bhyve's process: the part of a rctl(8) rule after the process, like `pcpu:deny=150`.
    pub limits: Vec<String>,
    /// bhyve's priority, for nice(1).
    pub nice: Option<i32>,
    /// The saved state of the guest.
    pub saved: Saved,
    /// Whether this bhyve can save a guest.
    pub suspends: bool,
    /// Whether this boot resumes the saved state.
    pub resumes: bool,
}

/// A guest's saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// File of its memory. The kernel's part and the description have `.kern` and `.meta` after this name
    /// (bhyvectl(8)).
    pub memory: PathBuf,
    /// The same path in the guest's jail.
    pub inside: PathBuf,
    /// Fingerprint of bhyve's command line, since a state fits only the same devices.
    pub fingerprint: String,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskUse {
    /// The id in the guest file.
    pub id: String,
    /// A file or device.
    pub path: PathBuf,
    /// Whether others may read it too.
    pub read_only: bool,
}

/// A unit of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitPlan {
    /// The id of the disk in the guest file, to which [`Piece::Device`] refers.
    pub disk: String,
    /// The target.
    pub target: Target,
    /// Number of the unit.
    pub lun: u32,
    /// Whether others may read it too.
    pub read_only: bool,
}

/// A tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapPlan {
    /// The id of the interface in the guest file, to which [`Piece::Tap`] refers.
    pub nic: String,
    /// `tap` or `vmnet`.
    pub kind: String,
    /// Description, by which it is recognised.
    pub description: String,
    /// The switch, for messages, and its bridge.
    pub bridge: Option<(String, String)>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// Whether it cannot talk to other private members of the bridge.
    pub private: bool,
    /// Whether it gets a copy of every frame of the bridge.
    pub span: bool,
}

/// A hook of a netgraph(4) node, the first free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookPlan {
    /// The id of the interface in the guest file, to which [`Piece::Hook`] refers.
    pub nic: String,
    /// The node, like `bridge0:`.
    pub path: String,
}

/// An interface of the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceUse {
    /// The id of the interface in the guest file.
    pub nic: String,
    /// Its name.
    pub name: String,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Contents of the file.
    pub text: Word,
}

/// A file to copy if it does not exist yet, or for every boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiedFile {
    /// Source of the copy.
    pub from: PathBuf,
    /// Destination of the copy.
    pub to: PathBuf,
    /// Whether to copy for every boot.
    pub anew: bool,
}

/// Address of a screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Screen {
    /// A TCP port: this one, or the first free one.
    Port {
        /// The address to listen on.
        address: IpAddr,
        /// The port that the user wants.
        port: Option<u16>,
    },
    /// A socket.
    Socket(PathBuf),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program: a name or a path.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<Word>,
}

impl BhyvePlan {
    /// Reads the document that [`write`](BhyvePlan::write) wrote. The error says why it is not a plan.
    pub fn read(text: &[u8]) -> Result<BhyvePlan, GuestError> {
        let plan: BhyvePlan = serde_json::from_slice(text).map_err(|error| GuestError::user(error.to_string()))?;
        match plan.unmade() {
            Some(what) => Err(format!("it names {what}, which it does not make").into()),
            None => Ok(plan),
        }
    }

    /// Returns the plan as JSON.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields")
    }

    /// Returns the first placeholder in a word or file for which the plan has no resource.
    fn unmade(&self) -> Option<String> {
        let programs = self.loader.iter().chain([&self.bhyve]).flat_map(|program| &program.arguments);
        let mut pieces = programs.chain(self.files.iter().map(|file| &file.text)).flat_map(Word::pieces);
        pieces.find_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Tap(nic) => (!self.taps.iter().any(|tap| tap.nic == *nic)).then(|| format!("the tap of `{nic}`")),
            Piece::Hook(nic) => (!self.hooks.iter().any(|hook| hook.nic == *nic)).then(|| format!("the hook of `{nic}`")),
            Piece::Device(disk) => (!self.units.iter().any(|unit| unit.disk == *disk)).then(|| format!("the unit `{disk}`")),
            Piece::ScreenPort => (!matches!(self.screen, Some(Screen::Port { .. }))).then(|| "a port of the screen".to_owned()),
        })
    }

    /// Returns the virtual machine, for bhyvectl(8).
    pub fn machine(&self) -> Vm {
        Vm { name: self.name.clone(), jail: self.jail.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_names_what_it_does_not_make_is_none() {
        let word = Word::from(Piece::Tap("net0".into()));
        let plan = |taps: &str| {
            format!(
                r#"{{"version":2,"name":"g","cpus":1,"journal":"/j","modules":[],"disks":[],"units":[],"taps":[{taps}],"hooks":[],
                "interfaces":[],"files":[],"variables":null,"sockets":[],"lines":[],"tpm":null,"screen":null,"loader":null,
                "bhyve":{{"program":"bhyve","arguments":[{}]}},"jail":null,"limits":[],"nice":null,
                "saved":{{"memory":"/s","inside":"/s","fingerprint":"f"}},"suspends":false,"resumes":false}}"#,
                serde_json::to_string(&word).expect("plain")
            )
        };
        let tap = r#"{"nic":"net0","kind":"tap","description":"d","bridge":null,"mtu":null,"private":false,"span":false}"#;
        assert!(BhyvePlan::read(plan(tap).as_bytes()).is_ok());
        let message = "it names the tap of `net0`, which it does not make".to_owned();
        assert_eq!(BhyvePlan::read(plan("").as_bytes()), Err(message.into()));
    }
}
