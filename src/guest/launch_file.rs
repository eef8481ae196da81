//! The guest file that `launch` writes for an image of the catalogue.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value, value};

use crate::config::EngineKind;
use crate::config::cloud_init::is_public_key;
use crate::fetch::Obtained;
use crate::inputs;
use crate::units::ByteSize;

use super::error::{GuestError, Result};
use super::store::Store;

/// Ports of the host that are tried for the forward to the guest's sshd(8). Outgoing connections take theirs from 32768
/// on Linux and from 10000 on FreeBSD (`net.inet.ip.portrange.first`), so that none of them is in the way of a start.
const PORTS: std::ops::Range<u16> = 7200..7800;
/// Default RAM of a guest.
const MEMORY: &str = "1GiB";
/// Room of a guest in addition to its image.
const ROOM: u64 = 2 << 30;

/// Returns the public key of the user: the first of `~/.ssh` that OpenSSH would use, or else the key of vmctl in the
/// datastore, which is made if it does not exist.
pub fn public_key(store: &Store, home: Option<&Path>) -> Result<PathBuf> {
    let own = home
        .into_iter()
        .flat_map(|home| ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"].map(|name| home.join(".ssh").join(name)));
    let usable =
        |path: &PathBuf| inputs::read_text(path, 64 << 10).is_ok_and(|text| text.lines().next().is_some_and(is_public_key));
    if let Some(key) = own.into_iter().find(usable) {
        return Ok(key);
    }
    let folder = store.root().join("ssh");
    let (private, public) = (folder.join("id_ed25519"), folder.join("id_ed25519.pub"));
    if usable(&public) {
        return Ok(public);
    }
    crate::host::files::private_directory(&folder).map_err(|error| GuestError::io("make", &folder, error))?;
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "vmctl", "-f"]).arg(&private);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| GuestError::user(format!("cannot run `ssh-keygen`: {error}")).hint("install OpenSSH's client"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(GuestError::host(format!("`ssh-keygen` failed: {words}")));
    }
    Ok(public)
}

/// Returns a free port of the loopback. Another program may take it before the guest starts. The start then fails with
/// the port's number, and `edit` changes it.
pub fn free_port(taken: &[u16]) -> Result<u16> {
    PORTS
        .filter(|port| !taken.contains(port))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or_else(|| GuestError::user(format!("no port of {} to {} is free", PORTS.start, PORTS.end - 1)))
}

/// Returns the guest file: the image as a disk, a user-mode network with a forward to sshd(8), and a seed of cloud-init
/// if the image reads one. Only the embedded engine has forwards from the host and kernels, so the file names it if
/// another `engine` is the default. A kernel of the image is in `boot/` beside the file. `source` is the image and the
/// user's checksum, as they were given.
pub fn text(image: &Obtained, (source, checksum): (&str, Option<&str>), key: &Path, port: u16, engine: EngineKind) -> String {
    let facts = &image.facts;
    let mut file = DocumentMut::new();
    if engine != EngineKind::Embedded {
        file["engine"] = value(EngineKind::Embedded.as_str());
    }
    if let Some(description) = &facts.description {
        file["description"] = value(description.as_str());
    }
    file["memory"] = value(MEMORY);
    if let Some(loader) = &facts.loader {
        file["loader"] = value(loader.as_str());
    }
    if image.kernel.is_some() {
        let mut table = Table::new();
        table["image"] = value("boot/vmlinuz");
        if image.initrd.is_some() {
            table["initrd"] = value("boot/initrd.img");
        }
        if let Some(cmdline) = &facts.cmdline {
            table["cmdline"] = value(cmdline.as_str());
        }
        file["kernel"] = Item::Table(table);
    }
    let size = facts.least_disk_bytes.unwrap_or(0).max(image.size_bytes) + ROOM;
    let mut disk = Table::new();
    disk["id"] = value("root");
    disk["source"] = value(source);
    if let Some(checksum) = checksum {
        disk["checksum"] = value(checksum);
    }
    disk["size"] = value(ByteSize::from_bytes(size.next_multiple_of(1 << 30)).to_string());
    file["disks"] = Item::ArrayOfTables(ArrayOfTables::from_iter([disk]));
    let forward =
        InlineTable::from_iter([("id", Value::from("ssh")), ("host_port", i64::from(port).into()), ("guest_port", 22.into())]);
    let mut nic = Table::new();
    nic["id"] = value("net0");
    nic["forwards"] = value(Array::from_iter([forward]));
    file["nics"] = Item::ArrayOfTables(ArrayOfTables::from_iter([nic]));
    // What it waits for is the default: sshd's greeting, or the login prompt.
    let mut ready = Table::new();
    if facts.cloud_init {
        let mut seed = Table::new();
        seed["ssh_keys"] = value(Array::from_iter([key.to_string_lossy().as_ref()]));
        file["cloud-init"] = Item::Table(seed);
    }
    ready["timeout"] = value("15m");
    file["ready"] = Item::Table(ready);
    file.to_string()
}

/// The network of a new guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// A user-mode network.
    User,
    /// A switch of the host file.
    Switch(String),
    /// None: it has no interface.
    None,
}

/// A guest to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine {
    /// Size of its disk.
    pub size: ByteSize,
    /// RAM.
    pub memory: ByteSize,
    /// Its network.
    pub wire: Wire,
    /// Loader, as in the guest file.
    pub loader: String,
}

impl NewMachine {
    /// Returns its guest file.
    pub fn text(&self) -> String {
        let mut file = DocumentMut::new();
        file["memory"] = value(self.memory.to_string());
        file["loader"] = value(self.loader.as_str());
        let mut disk = Table::new();
        disk["id"] = value("root");
        disk["size"] = value(self.size.to_string());
        file["disks"] = Item::ArrayOfTables(ArrayOfTables::from_iter([disk]));
        let mut nic = Table::new();
        nic["id"] = value("net0");
        match &self.wire {
            Wire::None => return file.to_string(),
            Wire::User => nic["backend"] = value("user"),
            Wire::Switch(id) => nic["switch"] = value(id.as_str()),
        }
        file["nics"] = Item::ArrayOfTables(ArrayOfTables::from_iter([nic]));
        file.to_string()
    }
}
