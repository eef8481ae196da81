//! What one boot under bhyve is made of: command lines, and what they need of the host. Written by the supervisor,
//! read by the engine child.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::bhyvectl::Vm;
use crate::host::iscsi::Target;
use crate::host::swtpm::Tpm;

/// The version of this document; both sides come from one binary, a difference means that it was replaced mid-way.
pub const PLAN_VERSION: u32 = 2;

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BhyvePlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// The guest's name, which is the virtual machine's too.
    pub name: String,
    /// How many virtual CPUs it has.
    pub cpus: u32,
    /// Where it is noted what is to be undone.
    pub journal: PathBuf,
    /// Kernel modules, in the order in which they are loaded.
    pub modules: Vec<String>,
    /// Disks that nobody else may use meanwhile.
    pub disks: Vec<DiskUse>,
    /// Disks that a target of iSCSI has.
    pub units: Vec<UnitPlan>,
    /// Taps that are made for this boot.
    pub taps: Vec<TapPlan>,
    /// Hooks of netgraph nodes that are chosen for this boot.
    pub hooks: Vec<HookPlan>,
    /// Interfaces of the user's, which must be there and free.
    pub interfaces: Vec<InterfaceUse>,
    /// Files that are written anew, such as a device map.
    pub files: Vec<NewFile>,
    /// The guest's own UEFI variables.
    pub variables: Option<Copy>,
    /// Sockets that programs of this boot bind; what is in the way was left behind.
    pub sockets: Vec<PathBuf>,
    /// The lines of serial ports, the first one's first: the text between `nmdm` and `A`.
    pub lines: Vec<String>,
    /// A TPM in software.
    pub tpm: Option<Tpm>,
    /// Where the guest's screen is seen.
    pub screen: Option<Screen>,
    /// What runs before bhyve.
    pub loader: Option<Program>,
    /// bhyve itself.
    pub bhyve: Program,
    /// The jail that the loader and bhyve run in.
    pub jail: Option<String>,
    /// Limits of bhyve's process: what rctl(8) takes after the process, like `pcpu:deny=150`.
    pub limits: Vec<String>,
    /// bhyve's priority, as nice(1) takes it.
    pub nice: Option<i32>,
    /// Where the guest is saved, and what it is saved with.
    pub saved: Saved,
    /// This bhyve can save a guest.
    pub suspends: bool,
    /// This boot goes on from what was saved.
    pub resumes: bool,
}

/// A guest's saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Its memory; the kernel's part and the description have `.kern` and `.meta` behind this name (bhyvectl(8)).
    pub memory: PathBuf,
    /// The same as it is seen in the guest's jail.
    pub inside: PathBuf,
    /// Of bhyve's command line: a state fits the same devices only.
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
    /// Others may read it too.
    pub read_only: bool,
}

/// A unit of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitPlan {
    /// The id of the disk in the guest file; what [`Piece::Device`] refers to.
    pub disk: String,
    /// Where it is.
    pub target: Target,
    /// Its number there.
    pub lun: u32,
    /// Others may read it too.
    pub read_only: bool,
}

/// A tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapPlan {
    /// The id of the interface in the guest file; what [`Piece::Tap`] refers to.
    pub nic: String,
    /// `tap` or `vmnet`.
    pub kind: String,
    /// By which it is known again.
    pub description: String,
    /// The switch, for messages, and the bridge that it is.
    pub bridge: Option<(String, String)>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// It cannot talk to other private members of the bridge.
    pub private: bool,
    /// It gets a copy of every frame of the bridge.
    pub span: bool,
}

/// A hook of a netgraph(4) node, the first free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookPlan {
    /// The id of the interface in the guest file; what [`Piece::Hook`] refers to.
    pub nic: String,
    /// The node, like `bridge0:`.
    pub path: String,
}

/// An interface of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceUse {
    /// The id of the interface in the guest file.
    pub nic: String,
    /// Its name.
    pub name: String,
}

/// A file that is written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: Argument,
}

/// A file that is copied when it is not there yet, or for every boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// What is copied.
    pub from: PathBuf,
    /// Where to.
    pub to: PathBuf,
    /// For every boot.
    pub anew: bool,
}

/// Where a screen is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Screen {
    /// At a TCP port: this one, or the first free one.
    Port {
        /// Where it is listened.
        address: IpAddr,
        /// The port that the user wants.
        port: Option<u16>,
    },
    /// At a socket.
    Socket(PathBuf),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program: a name or a path.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<Argument>,
}

/// One argument, in pieces that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Argument(pub Vec<Piece>);

/// A piece of an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// The name of the tap that is made for this interface.
    Tap(String),
    /// The hook that is chosen for this interface.
    Hook(String),
    /// The device, below /dev, that this disk's unit has become.
    Device(String),
    /// The port of the screen.
    ScreenPort,
}

/// Marks a name that is known only when the host has made the thing. No guest file has this character in a value.
const MARK: char = '\u{1}';

impl Argument {
    /// The word that stands for the name of an interface's tap in a command line that is still to be cut in pieces.
    pub fn tap_mark(nic: &str) -> String {
        format!("{MARK}tap {nic}{MARK}")
    }

    /// The word that stands for the hook of an interface.
    pub fn hook_mark(nic: &str) -> String {
        format!("{MARK}hook {nic}{MARK}")
    }

    /// The path that stands for the device of a disk's unit.
    pub fn device_mark(disk: &str) -> PathBuf {
        format!("/dev/{MARK}device {disk}{MARK}").into()
    }

    /// The word that stands for the screen's port.
    pub fn port_mark() -> String {
        format!("{MARK}port{MARK}")
    }

    /// Cuts a word with marks into pieces.
    pub fn cut(word: &str) -> Argument {
        // Pieces at odd places stand between two marks.
        let pieces = word.split(MARK).enumerate().filter(|(at, piece)| at % 2 == 1 || !piece.is_empty());
        Argument(
            pieces
                .map(|(at, piece)| match (at % 2, piece.split_once(' ')) {
                    (1, Some(("tap", nic))) => Piece::Tap(nic.to_owned()),
                    (1, Some(("hook", nic))) => Piece::Hook(nic.to_owned()),
                    (1, Some(("device", disk))) => Piece::Device(disk.to_owned()),
                    (1, None) if piece == "port" => Piece::ScreenPort,
                    _ => Piece::Text(piece.to_owned()),
                })
                .collect(),
        )
    }
}

impl BhyvePlan {
    /// Reads what [`write`](BhyvePlan::write) wrote; in words, why it is no plan.
    pub fn read(text: &[u8]) -> Result<BhyvePlan, String> {
        let plan: BhyvePlan = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match plan.unmade() {
            Some(what) => Err(format!("it names {what}, which it does not make")),
            None => Ok(plan),
        }
    }

    /// As JSON.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields")
    }

    /// The first thing that a word or file names and nothing of the plan makes.
    fn unmade(&self) -> Option<String> {
        let programs = self.loader.iter().chain([&self.bhyve]).flat_map(|program| &program.arguments);
        let mut pieces = programs.chain(self.files.iter().map(|file| &file.text)).flat_map(|argument| &argument.0);
        pieces.find_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Tap(nic) => (!self.taps.iter().any(|tap| tap.nic == *nic)).then(|| format!("the tap of `{nic}`")),
            Piece::Hook(nic) => (!self.hooks.iter().any(|hook| hook.nic == *nic)).then(|| format!("the hook of `{nic}`")),
            Piece::Device(disk) => (!self.units.iter().any(|unit| unit.disk == *disk)).then(|| format!("the unit `{disk}`")),
            Piece::ScreenPort => (!matches!(self.screen, Some(Screen::Port { .. }))).then(|| "a port of the screen".to_owned()),
        })
    }

    /// The virtual machine, for bhyvectl(8).
    pub fn machine(&self) -> Vm {
        Vm { name: self.name.clone(), jail: self.jail.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_names_what_it_does_not_make_is_none() {
        let word = Argument::cut(&Argument::tap_mark("net0"));
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
        assert_eq!(BhyvePlan::read(plan("").as_bytes()), Err(message));
    }

    #[test]
    fn a_word_is_cut_where_names_are_still_missing() {
        let word = format!("5,virtio-net,{},mac=02:00:00:00:00:01", Argument::tap_mark("net0"));
        let text = |text: &str| Piece::Text(text.into());
        assert_eq!(Argument::cut(&word).0, [text("5,virtio-net,"), Piece::Tap("net0".into()), text(",mac=02:00:00:00:00:01")]);
        let word = format!("29,fbuf,tcp=127.0.0.1:{}", Argument::port_mark());
        assert_eq!(Argument::cut(&word).0, [text("29,fbuf,tcp=127.0.0.1:"), Piece::ScreenPort]);
        let word = format!("(hd0) {}", Argument::device_mark("root").display());
        assert_eq!(Argument::cut(&word).0, [text("(hd0) /dev/"), Piece::Device("root".into())]);
        let word = format!("peerhook={},hook=vmlink", Argument::hook_mark("net0"));
        assert_eq!(Argument::cut(&word).0, [text("peerhook="), Piece::Hook("net0".into()), text(",hook=vmlink")]);
        assert_eq!(Argument::cut("-A").0, [text("-A")]);
        assert_eq!(Argument::cut("tap net0").0, [text("tap net0")]);
    }
}
