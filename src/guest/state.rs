//! The program's state of a guest, apart from the user's file: `state.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{DeviceKey, EngineKind, GuestConfig, MacAddr, NicBackend, NicConfig, PciAddress};
use crate::host::files::{replace, write_atomically};
use crate::host::process::boot_id;
use crate::machine::spec::DEVICE_SLOTS;

use super::agent::commands::AgentInterface;
use super::error::{GuestError, Result};
use super::identity;
use super::provision::disk_path;
use super::reach::ssh_address;
use super::store::GuestDir;
use super::timestamp::{BootTime, Timestamp};

/// The version of the document.
pub const STATE_VERSION: u32 = 1;

/// The state's name in a guest's directory.
pub const STATE_FILE: &str = "state.json";
/// The supervisor's run state, beside the state.
const RUN_FILE: &str = "run.json";

/// The document `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    /// Always [`STATE_VERSION`].
    pub version: u32,
    /// The guest's name when this was written.
    pub name: String,
    /// UUID, made at creation. A `uuid` in the guest file has priority.
    pub uuid: String,
    /// Time of creation.
    pub created: Option<Timestamp>,
    /// MAC address by interface id.
    #[serde(default)]
    pub macs: BTreeMap<String, String>,
    /// PCI address of each device.
    #[serde(default, with = "by_key")]
    pub addresses: BTreeMap<DeviceKey, PciAddress>,
    /// Slots of the embedded engine in the state of an earlier vmctl. They become addresses at the next assignment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) slots: BTreeMap<String, u8>,
    /// The engine if the guest file names none, fixed at creation: a change of the host's vmm(4) must not change its
    /// guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// The user in the image of its disk, for `ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// The user that its engine goes on as when root starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_uid: Option<u32>,
    /// Number of boots over its life.
    #[serde(default)]
    pub boots: u64,
    /// Number of restarts since it was last started.
    #[serde(default)]
    pub restarts: u64,
    /// Set while a supervisor has the guest, and left behind by one that was killed. It is in a file of its own,
    /// `run.json`, which is written often and has no value after a power cut.
    #[serde(skip)]
    pub run: Option<RunState>,
    /// The end of the last boot.
    #[serde(default)]
    pub last_exit: Option<LastExit>,
    /// Set when the crash limit was reached; `reset-failed` clears it.
    #[serde(default)]
    pub failed: Option<Failure>,
    /// Summary for `list`, without the guest file.
    #[serde(default)]
    pub summary: Option<Summary>,
}

/// PCI addresses as texts, as they are in the file. Entries of another version that this one does not know are skipped.
mod by_key {
    use super::{BTreeMap, DeviceKey, PciAddress};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(addresses: &BTreeMap<DeviceKey, PciAddress>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(addresses.iter().map(|(key, address)| (key.to_string(), address)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<DeviceKey, PciAddress>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
        Ok(texts.iter().filter_map(|(key, address)| Some((key.parse().ok()?, address.parse().ok()?))).collect())
    }
}

/// Reads only [`GuestState::engine`] of the state at `path`, which is needed whenever a guest file is read.
pub fn settled_engine(path: &Path) -> Option<EngineKind> {
    #[derive(Deserialize)]
    struct Settled {
        engine: Option<EngineKind>,
    }
    serde_json::from_slice::<Settled>(&std::fs::read(path).ok()?).ok()?.engine
}

/// Of the state at `path`, [`GuestState::engine_uid`] alone.
pub fn settled_user(path: &Path) -> Option<u32> {
    #[derive(Deserialize)]
    struct Settled {
        engine_uid: Option<u32>,
    }
    serde_json::from_slice::<Settled>(&std::fs::read(path).ok()?).ok()?.engine_uid
}

/// What confines an engine, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// What holds.
    pub by: Vec<String>,
    /// What this host lacks or refuses, and why.
    pub without: Vec<String>,
}

/// Run state of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Its process id.
    pub pid: u32,
    /// The boot of the host that the process belongs to.
    pub boot_id: String,
    /// Its phase.
    pub phase: Phase,
    /// When this state was entered.
    pub since: Timestamp,
    /// The same by the host's uptime, for `boot_id`. `uptime` is computed from it, since a clock may be set.
    #[serde(default)]
    pub since_boot: Option<BootTime>,
    /// When the supervisor took the guest.
    pub started: Timestamp,
    /// Process id of the engine.
    pub engine_pid: Option<u32>,
    /// The vCPU back end of the engine.
    pub backend: Option<String>,
    /// What the engine gave up, once it has.
    #[serde(default)]
    pub confined: Option<Confined>,
    /// Whether all probes have passed.
    pub ready: bool,
    /// Whether the guest's agent has answered in this boot.
    #[serde(default)]
    pub agent: bool,
    /// The guest's interfaces, as its agent tells them.
    #[serde(default)]
    pub interfaces: Vec<AgentInterface>,
    /// Hash of the configuration (with everything that it builds on) at this boot.
    pub config_hash: String,
    /// Number of restarts since the supervisor took the guest.
    pub restarts: u64,
    /// Addresses of the forwards, as `tcp 127.0.0.1:2222 -> 22`.
    #[serde(default)]
    pub forwards: Vec<String>,
    /// Address of the VNC screen: `ADDRESS:PORT`, or `unix:PATH`.
    #[serde(default)]
    pub screen: Option<String>,
    /// The medium of the running installer.
    #[serde(default)]
    pub medium: Option<PathBuf>,
    /// The configuration of this boot. The guest file may have changed since.
    #[serde(default)]
    pub machine: Option<Machine>,
}

/// The machine of a boot, as far as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The UUID that the guest sees.
    pub uuid: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// `embedded` or `bhyve`.
    pub engine: String,
    /// Its disks: ids, and where their bytes are.
    pub disks: Vec<(String, PathBuf)>,
    /// Its interfaces.
    pub nics: Vec<MachineNic>,
    /// Address at which ssh(1) reaches it from the host.
    #[serde(default)]
    pub ssh: Option<String>,
}

/// An interface of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNic {
    /// Its id.
    pub id: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// The address that the user-mode network's DHCP gives.
    pub address: Option<String>,
}

impl Machine {
    /// Of a guest with this configuration, whose addresses are assigned.
    pub fn of(guest: &GuestDir, config: &GuestConfig, state: &GuestState) -> Machine {
        let nic = |nic: &NicConfig| MachineNic {
            id: nic.id.clone(),
            mac: state.macs.get(&nic.id).cloned(),
            address: (nic.backend == NicBackend::User).then(|| nic.user.guest.to_string()),
        };
        Machine {
            uuid: state.uuid_for(config).to_owned(),
            cpus: config.cpus.count(),
            memory_bytes: config.memory.bytes(),
            engine: config.engine.as_str().to_owned(),
            disks: config.disks.iter().map(|disk| (disk.id.clone(), disk_path(guest, disk).unwrap_or_default())).collect(),
            nics: config.nics.iter().map(nic).collect(),
            ssh: ssh_address(config).map(|address| address.to_string()),
        }
    }
}

/// Phase of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Hooks run, disks are made, and the engine builds the machine.
    Starting,
    /// The guest runs.
    Running,
    /// The guest was asked to stop, or is being powered off.
    Stopping,
    /// Waiting before the next boot.
    Waiting,
}

/// End of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// The end in words.
    pub reason: String,
    /// One word for programs: `power-off`, `no-acpi`...
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The process's exit code, if it had one.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Time of the end.
    pub at: Timestamp,
}

/// Reason why a guest is not started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The reason in words.
    pub reason: String,
    /// Time of the failure.
    pub at: Timestamp,
}

/// Summary of a guest file for `list`, kept so that a thousand guests are listed without a thousand checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The version of the program that made it.
    pub program: String,
    /// The files that it was made from, as they were then.
    pub sources: Vec<Stamp>,
    /// vCPUs.
    pub cpus: u32,
    /// RAM.
    pub memory_bytes: u64,
    /// `embedded` or `bhyve`.
    pub engine: String,
    /// Tags, for `--tag`.
    pub tags: Vec<String>,
    /// Description for users.
    pub description: Option<String>,
    /// Whether `destroy` refuses it.
    pub protected: bool,
    /// See [`RunState::config_hash`].
    pub config_hash: String,
    /// The UUID that the file sets.
    #[serde(default)]
    pub uuid: Option<String>,
    /// [`SUMMARY_FORM`]; another one is made again.
    #[serde(default)]
    pub form: u32,
}

/// Counts the changes of [`Summary`].
pub const SUMMARY_FORM: u32 = 1;

/// Identity of a file at some time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Absolute path.
    pub path: PathBuf,
    /// Time of change in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Size in bytes.
    pub size: u64,
    /// Number of the inode, which differs when an editor replaces a file.
    pub inode: u64,
}

impl LastExit {
    /// Creates the end of this moment. `status` is the process's exit code and the signal that ended it.
    pub fn new(reason: String, kind: &str, status: (Option<i32>, Option<i32>)) -> LastExit {
        LastExit { reason, kind: kind.to_owned(), code: status.0, signal: status.1, at: Timestamp::now() }
    }

    /// Creates the end of a boot whose supervisor did not live to see it.
    pub fn of_lost(run: &RunState) -> LastExit {
        let reason = "the supervisor was killed, or the host went down".to_owned();
        LastExit { at: run.since, ..LastExit::new(reason, "lost", (None, None)) }
    }
}

impl RunState {
    /// Returns the time since the phase was entered.
    pub fn lasting(&self) -> Duration {
        match self.since_boot.filter(|_| self.boot_id == crate::host::process::boot_id()) {
            Some(since) => since.elapsed(),
            None => self.since.elapsed(),
        }
    }

    /// Of this very process, a supervisor that takes its guest now.
    pub fn begin(config_hash: String) -> RunState {
        RunState {
            pid: std::process::id(),
            boot_id: boot_id(),
            phase: Phase::Starting,
            since: Timestamp::now(),
            since_boot: Some(BootTime::now()),
            started: Timestamp::now(),
            engine_pid: None,
            backend: None,
            confined: None,
            ready: false,
            agent: false,
            interfaces: Vec::new(),
            config_hash,
            restarts: 0,
            forwards: Vec::new(),
            screen: None,
            medium: None,
            machine: None,
        }
    }

    /// Reads the run state beside `state`, or beside another file of the guest's directory. Returns `None` if it is not
    /// valid.
    pub fn load(state: &Path) -> Option<RunState> {
        serde_json::from_slice(&std::fs::read(state.with_file_name(RUN_FILE)).ok()?).ok()
    }
}

impl Stamp {
    /// Returns the identity of a file now, or zeros if it does not exist.
    pub fn of(path: &Path) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        let (modified_ns, size, inode) = std::fs::metadata(path).map_or((0, 0, 0), |metadata| {
            let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
            (modified_ns, metadata.len(), metadata.ino())
        });
        Stamp { path: path.to_owned(), modified_ns, size, inode }
    }
}

impl GuestState {
    /// Creates the state of a new guest.
    pub fn new(name: &str) -> GuestState {
        GuestState {
            version: STATE_VERSION,
            name: name.to_owned(),
            uuid: identity::random_uuid(),
            created: Some(Timestamp::now()),
            macs: BTreeMap::new(),
            slots: BTreeMap::new(),
            addresses: BTreeMap::new(),
            engine: None,
            default_user: None,
            engine_uid: None,
            boots: 0,
            restarts: 0,
            run: None,
            last_exit: None,
            failed: None,
            summary: None,
        }
    }

    /// Reads `path`. A missing or damaged file is replaced by a state whose UUID follows from the directory's path, and
    /// so do its addresses.
    pub fn load(path: &Path, name: &str) -> Result<GuestState> {
        let made_up = || {
            let directory = path.parent().unwrap_or(path).to_string_lossy();
            GuestState { uuid: identity::derived_uuid(&["vmctl", &directory]), created: None, ..GuestState::new(name) }
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(made_up()),
            Err(error) => return Err(GuestError::io("read", path, error)),
        };
        match serde_json::from_str::<GuestState>(&text) {
            Ok(state) if state.version == STATE_VERSION => {
                // The directory's name is the guest's name, whatever it was when this was written.
                Ok(GuestState { run: RunState::load(path), name: name.to_owned(), ..state })
            }
            Ok(state) => Err(GuestError::user(format!(
                "`{}` is of version {}, this vmctl knows version {STATE_VERSION}",
                path.display(),
                state.version
            ))
            .hint("a newer vmctl wrote it: use that one")),
            Err(_) => Ok(made_up()),
        }
    }

    /// Replaces `path` with this.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain fields");
        text.push(b'\n');
        write_atomically(path, &text, 0o644).map_err(|error| GuestError::io("write", path, error))
    }

    /// Replaces `run.json` beside `path` with the run state, or removes it.
    pub fn save_run(&self, path: &Path) -> Result<()> {
        let path = path.with_file_name(RUN_FILE);
        let written = match &self.run {
            Some(run) => replace(&path, &serde_json::to_vec(run).expect("plain fields"), 0o644),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        written.map_err(|error| GuestError::io("write", &path, error))
    }

    /// Returns the UUID that the guest sees.
    pub fn uuid_for<'a>(&'a self, config: &'a GuestConfig) -> &'a str {
        config.uuid.as_deref().unwrap_or(&self.uuid)
    }

    /// Gives every interface an address and every device a slot. Those that have one keep it.
    pub fn assign(&mut self, config: &GuestConfig) -> Result<()> {
        let uuid = self.uuid_for(config).to_owned();
        for nic in &config.nics {
            match nic.mac {
                Some(mac) => drop(self.macs.insert(nic.id.clone(), mac.to_string())),
                None => {
                    let known = self.macs.get(&nic.id).is_some_and(|mac| mac.parse::<MacAddr>().is_ok());
                    if !known {
                        self.macs.insert(nic.id.clone(), identity::derived_mac(&uuid, &nic.id).to_string());
                    }
                }
            }
        }
        self.take_over_slots(config.engine);
        if config.engine == EngineKind::Bhyve {
            self.macs.retain(|id, _| config.nics.iter().any(|nic| nic.id == *id));
            return super::engine::bhyve::slots::assign(config, self);
        }
        let disks = config.disks.iter().map(|disk| DeviceKey::Disk(disk.id.clone()));
        let wanted: Vec<_> = disks.chain(config.nics.iter().map(|nic| DeviceKey::Nic(nic.id.clone()))).collect();
        self.macs.retain(|id, _| config.nics.iter().any(|nic| nic.id == *id));
        let mut taken = BTreeSet::new();
        self.addresses.retain(|key, address| match key {
            DeviceKey::Disk(_) | DeviceKey::Nic(_) => {
                let fits = *address == PciAddress::slot(address.slot) && DEVICE_SLOTS.contains(&address.slot);
                fits && wanted.contains(key) && taken.insert(address.slot)
            }
            // Devices of bhyve only: this engine has none of them.
            _ => true,
        });
        for key in wanted {
            if self.addresses.contains_key(&key) {
                continue;
            }
            let Some(slot) = DEVICE_SLOTS.clone().find(|slot| !taken.contains(slot)) else {
                let room = DEVICE_SLOTS.count();
                return Err(GuestError::user(format!("`{}` has more disks and nics than the {room} that fit", config.name)));
            };
            taken.insert(slot);
            self.addresses.insert(key, PciAddress::slot(slot));
        }
        Ok(())
    }

    /// Converts the slots of the embedded engine from an earlier vmctl. Under bhyve its own addresses come first, and the
    /// slots of the screen and the tablet are not converted.
    fn take_over_slots(&mut self, engine: EngineKind) {
        for (key, slot) in std::mem::take(&mut self.slots) {
            let Ok(key) = key.parse::<DeviceKey>() else { continue };
            match engine {
                EngineKind::Embedded => drop(self.addresses.insert(key, PciAddress::slot(slot))),
                EngineKind::Bhyve if slot <= 28 => drop(self.addresses.entry(key).or_insert(PciAddress::slot(slot))),
                EngineKind::Bhyve => {}
            }
        }
    }

    /// Returns the PCI address of a device, as it was last assigned.
    pub fn address(&self, key: &DeviceKey) -> Option<PciAddress> {
        let old = self.slots.get(&key.to_string()).map(|slot| PciAddress::slot(*slot));
        old.or_else(|| self.addresses.get(key).copied())
    }

    /// Returns the address of an interface, which must have been assigned.
    pub fn mac(&self, nic: &str) -> Option<MacAddr> {
        self.macs.get(nic)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunState {
        RunState {
            pid: 7,
            boot_id: "b".into(),
            phase: Phase::Running,
            since: Timestamp(1),
            since_boot: None,
            started: Timestamp(1),
            engine_pid: None,
            backend: None,
            confined: None,
            ready: false,
            agent: false,
            interfaces: Vec::new(),
            config_hash: String::new(),
            restarts: 0,
            forwards: Vec::new(),
            screen: None,
            medium: None,
            machine: None,
        }
    }

    #[test]
    fn a_state_survives_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let mut state = GuestState::new("g");
        state.failed = Some(Failure { reason: "crashed 5 times".into(), at: Timestamp(1000) });
        state.save(&path).expect("saves");
        assert_eq!(GuestState::load(&path, "g").expect("loads"), state);
    }

    #[test]
    fn a_supervisors_account_is_kept_apart_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let mut state = GuestState::new("g");
        state.run = Some(run());
        state.save(&path).expect("saves");
        assert_eq!(GuestState::load(&path, "g").expect("loads").run, None);
        state.save_run(&path).expect("saves");
        assert_eq!(GuestState::load(&path, "g").expect("loads"), state);
        std::fs::write(path.with_file_name(RUN_FILE), "").expect("writes");
        assert_eq!(GuestState::load(&path, "g").expect("loads").run, None);
        state.run = None;
        state.save_run(&path).expect("removes");
        state.save_run(&path).expect("is gone already");
    }

    #[test]
    fn a_clock_that_is_set_does_not_change_how_long_a_guest_has_run() {
        let a_day_ago = Timestamp(Timestamp::now().0 - 86_400_000);
        let mut run = RunState { boot_id: crate::host::process::boot_id(), since: a_day_ago, ..run() };
        assert!(run.lasting() >= Duration::from_secs(86_400), "an older supervisor wrote no more than this");
        run.since_boot = Some(BootTime::now());
        assert!(run.lasting() < Duration::from_secs(60), "{:?}", run.lasting());
        run.boot_id = "another".into();
        assert!(run.lasting() >= Duration::from_secs(86_400));
    }

    #[test]
    fn the_slots_of_an_earlier_vmctl_are_taken_over_by_the_engine_that_had_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let old = serde_json::json!({
            "version": 1, "name": "g", "uuid": "u", "created": null,
            "slots": {"disk:a": 7, "disk:b": 30, "nic:n": 9}, "addresses": {"disk:a": "0:3:0", "lpc": "0:31:0", "later:x": "?"},
        });
        std::fs::write(&path, old.to_string()).expect("writes");
        let taken = |engine: EngineKind| {
            let mut state = GuestState::load(&path, "g").expect("loads");
            state.take_over_slots(engine);
            state.save(&path.with_file_name("new.json")).expect("saves");
            let again = GuestState::load(&path.with_file_name("new.json"), "g").expect("loads");
            assert_eq!(again, state);
            let texts = state.addresses.iter().map(|(key, address)| format!("{key}={address}"));
            texts.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(taken(EngineKind::Embedded), "lpc=0:31:0 disk:a=0:7:0 disk:b=0:30:0 nic:n=0:9:0");
        assert_eq!(taken(EngineKind::Bhyve), "lpc=0:31:0 disk:a=0:3:0 nic:n=0:9:0");
    }

    #[test]
    fn a_lost_or_damaged_state_gives_the_same_identity_each_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let missing = GuestState::load(&path, "g").expect("made up");
        std::fs::write(&path, "{\"version\":1,\"na").expect("writes");
        let damaged = GuestState::load(&path, "g").expect("made up");
        assert_eq!(missing.uuid, damaged.uuid);
    }

    #[test]
    fn a_state_of_a_newer_version_is_not_overwritten_in_silence() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let newer = GuestState { version: 2, ..GuestState::new("g") };
        newer.save(&path).expect("saves");
        let error = GuestState::load(&path, "g").expect_err("refused");
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}
