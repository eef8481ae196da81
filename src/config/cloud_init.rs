//! `[cloud-init]`: settings for cloud-init in the guest. [`super::check_cloud_init`] makes them.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::addresses::InterfaceAddress;

/// Id of the seed's disk. No other disk may have it while there is a seed.
pub const SEED_DISK: &str = "cidata";

/// Settings for cloud-init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CloudInit {
    /// Host name.
    pub hostname: String,
    /// User that is made in addition to the distribution's own; without one, the keys and the password belong to the
    /// latter.
    pub user: Option<String>,
    /// Keys of the users who may log in.
    pub ssh_keys: Vec<SshKey>,
    /// File with the password, or with its crypt(3) hash.
    pub password_file: Option<PathBuf>,
    /// Addresses of the first interface; without them it uses DHCP.
    pub addresses: Vec<InterfaceAddress>,
    /// Its routers.
    pub gateways: Vec<IpAddr>,
    /// Its name servers.
    pub nameservers: Vec<IpAddr>,
    /// User data, used unchanged instead of the settings above.
    pub user_data: Option<PathBuf>,
    /// Meta data, used unchanged.
    pub meta_data: Option<PathBuf>,
    /// Vendor data, used unchanged.
    pub vendor_data: Option<PathBuf>,
    /// Network configuration, used unchanged.
    pub network_config: Option<PathBuf>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SshKey {
    /// A line of `authorized_keys`.
    Text(String),
    /// A file with keys, one per line.
    File(PathBuf),
}

/// Returns whether a line is a public key as OpenSSH writes one (sshd(8), AUTHORIZED_KEYS FILE FORMAT; without
/// options).
pub fn is_public_key(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap_or("");
    let known = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-"];
    let base64 = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
    known.iter().any(|prefix| kind.starts_with(prefix))
        && words.next().is_some_and(|word| word.len() >= 16 && base64(word))
        && !line.contains(['\n', '\r', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_told_from_a_path() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7mB9cO8u me@example";
        assert!(is_public_key(key));
        for text in
            ["~/.ssh/id.pub", "ssh-ed25519", "ssh-ed25519 short", "ssh-dss AAAAB3NzaC1kc3MAAACBAOxx", &format!("{key}\n{key}")]
        {
            assert!(!is_public_key(text), "{text}");
        }
    }
}
