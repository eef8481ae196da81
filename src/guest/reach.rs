//! The way for ssh(1) to a guest: a forward of the host, or the guest's own address.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::{ForwardProto, GuestConfig, SshKey, paths};
use crate::inputs;

use super::error::{GuestError, Result};
use super::state::GuestState;
use super::store::GuestDir;

/// Port of sshd(8) in the guest.
const SSH: u16 = 22;
/// Maximum size of a public key that is read.
const MAX_KEY_BYTES: u64 = 64 << 10;
/// Start of a server's greeting.
const GREETING: &[u8] = b"SSH-";

/// Address of a guest's sshd(8), and the user for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Address to connect to.
    pub address: SocketAddr,
    /// User to log in as; ssh's own choice if it is `None`.
    pub user: Option<String>,
    /// The guest's own file of host keys, since an address may have belonged to another guest before.
    pub known_hosts: PathBuf,
    /// Name of the host key in that file.
    pub alias: String,
    /// The private keys of those that may log in, as far as they are here.
    pub identities: Vec<PathBuf>,
}

impl Reach {
    /// Finds the way to a guest. `user` has priority over the one of `[cloud-init]` and of its image.
    pub fn of(guest: &GuestDir, config: &GuestConfig, state: &GuestState, user: Option<String>) -> Result<Reach> {
        let cloud_init = config.cloud_init.as_ref();
        let address = ssh_address(config).ok_or_else(|| {
            GuestError::user(format!("no way to port {SSH} of `{}` is known", guest.name()))
                .hint("add a forward with `guest_port = 22` to a `user` interface, or `cloud-init.addresses`")
        })?;
        Ok(Reach {
            address,
            user: user.or_else(|| cloud_init.and_then(|told| told.user.clone())).or_else(|| state.default_user.clone()),
            known_hosts: guest.path().join("known_hosts"),
            alias: format!("vmctl-{}", guest.name()),
            identities: identities(guest, config, &paths::homes()),
        })
    }

    /// Returns the options for ssh(1) and scp(1), except for the port.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            format!("HostKeyAlias={}", self.alias),
            format!("UserKnownHostsFile={}", quoted(&self.known_hosts)),
            // The first key is accepted, since it cannot be checked elsewhere. Another one later is refused.
            "StrictHostKeyChecking=accept-new".into(),
        ];
        options.extend(self.identities.iter().map(|path| format!("IdentityFile={}", quoted(path))));
        options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect()
    }

    /// Returns `USER@HOST`, or `HOST`.
    pub fn destination(&self) -> String {
        let host = self.address.ip();
        self.user.as_ref().map_or_else(|| host.to_string(), |user| format!("{user}@{host}"))
    }

    /// Returns the same as [`Reach::destination`], with an IPv6 address in brackets, which scp(1) needs before a colon.
    pub fn bracketed(&self) -> String {
        let host = match self.address.ip() {
            IpAddr::V6(ip) => format!("[{ip}]"),
            IpAddr::V4(ip) => ip.to_string(),
        };
        self.user.as_ref().map_or_else(|| host.clone(), |user| format!("{user}@{host}"))
    }

    /// Returns a block of ssh_config(5) for `name`.
    pub fn ssh_config(&self, name: &str) -> String {
        let mut lines = vec![
            format!("Host {name}"),
            format!("    HostName {}", self.address.ip()),
            format!("    Port {}", self.address.port()),
            format!("    HostKeyAlias {}", self.alias),
            format!("    UserKnownHostsFile {}", quoted(&self.known_hosts)),
            "    StrictHostKeyChecking accept-new".into(),
        ];
        lines.extend(self.user.as_ref().map(|user| format!("    User {user}")));
        lines.extend(self.identities.iter().map(|path| format!("    IdentityFile {}", quoted(path))));
        lines.join("\n") + "\n"
    }
}

/// Returns the address of a guest's sshd(8), as its host reaches it: a forward, or its own address.
pub fn ssh_address(config: &GuestConfig) -> Option<SocketAddr> {
    let mut forwards = config.nics.iter().flat_map(|nic| &nic.forwards);
    let forward = forwards.find(|forward| forward.proto == ForwardProto::Tcp && forward.guest_port == SSH);
    let own = || config.cloud_init.as_ref()?.addresses.first().map(|address| SocketAddr::new(address.address, SSH));
    forward.map(|forward| forward.reachable()).or_else(own)
}

/// Returns whether sshd(8) greets at `address` within `patience`: the first bytes of its identification (RFC 4253,
/// 4.2). A listener of a forward accepts for a guest that does not answer yet, too.
pub fn greets(address: SocketAddr, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else { return false };
    let mut seen = Vec::new();
    let mut buffer = [0u8; 64];
    while seen.len() < GREETING.len() {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if stream.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => seen.extend_from_slice(&buffer[..count]),
            _ => return false,
        }
    }
    seen.starts_with(GREETING)
}

/// Returns the private keys whose public halves are in the guest's `ssh_keys`: beside the file that is named there, or for
/// a key that is written there, among those of `.ssh` in the user's `homes` and of the datastore. The key that vmctl made
/// comes last.
fn identities(guest: &GuestDir, config: &GuestConfig, homes: &[PathBuf]) -> Vec<PathBuf> {
    let own = guest.path().parent().and_then(Path::parent).map(|root| root.join("ssh").join("id_ed25519.pub"));
    let named = config.cloud_init.iter().flat_map(|told| &told.ssh_keys);
    let mut public = Vec::new();
    for key in named {
        match key {
            SshKey::File(path) => public.push(path.clone()),
            SshKey::Text(line) => {
                let known = homes.iter().flat_map(|home| public_keys_of(&home.join(".ssh"))).chain(own.clone());
                public.extend(known.filter(|path| is_of(path, line)));
            }
        }
    }
    public.extend(own);
    let mut found: Vec<PathBuf> = Vec::new();
    for path in public.iter().filter(|path| path.extension().is_some_and(|extension| extension == "pub")) {
        let private = path.with_extension("");
        if private.is_file() && !found.contains(&private) {
            found.push(private);
        }
    }
    found
}

/// Returns the public keys of a folder.
fn public_keys_of(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut keys: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "pub")).collect();
    keys.sort();
    keys
}

/// Returns whether a file of `.pub` has this key, whatever the comments of the two are.
fn is_of(path: &Path, key: &str) -> bool {
    let words = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    let text = inputs::read_text(path, MAX_KEY_BYTES).unwrap_or_default();
    text.lines().any(|line| words(line) == words(key))
}

/// Quotes a path in double quotes for ssh_config(5). A path that contains one cannot be written there.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatastoreConfig, guest_of};
    use crate::guest::store::Store;

    #[test]
    fn the_private_half_of_a_key_is_found_in_each_home_of_the_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let homes = ["shell", "account"].map(|name| dir.path().join(name));
        let key = |home: &Path, name: &str, line: &str| {
            let folder = home.join(".ssh");
            std::fs::create_dir_all(&folder).expect("makes");
            std::fs::write(folder.join(format!("{name}.pub")), format!("{line} of {name}\n")).expect("writes");
            std::fs::write(folder.join(name), "private").expect("writes");
            folder.join(name)
        };
        let [own, other] = [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB",
        ];
        key(&homes[0], "id_other", other);
        let private = key(&homes[1], "id_ed25519", own);
        let text = format!("kernel.image = \"/k\"\n[cloud-init]\nssh_keys = [\"{own} me@here\"]\n");
        let config = guest_of(&text);
        let store = Store::new(&DatastoreConfig { id: "default".into(), path: dir.path().join("ds") }, dir.path());
        let found = |homes: &[PathBuf]| identities(&store.directory_of("g"), &config, homes);
        assert_eq!([found(&homes), found(&homes[1..])], [vec![private.clone()], vec![private]]);
        assert!(found(&homes[..1]).is_empty());
    }
}
