//! `[cloud-init]`: what the seed tells cloud-init in the guest. Made by [`super::check_cloud_init`].

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::addresses::InterfaceAddress;

/// The id of the disk that the seed is; no other disk may have it while there is a seed.
pub const SEED_DISK: &str = "cidata";

/// What cloud-init is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CloudInit {
    /// Host name.
    pub hostname: String,
    /// User that is made beside the distribution's own; without one, the keys and the password are the latter's.
    pub user: Option<String>,
    /// Who may log in.
    pub ssh_keys: Vec<SshKey>,
    /// File with the password, or with its crypt(3) hash.
    pub password_file: Option<PathBuf>,
    /// Addresses of the first interface; DHCP without them.
    pub addresses: Vec<InterfaceAddress>,
    /// Its routers.
    pub gateways: Vec<IpAddr>,
    /// Its name servers.
    pub nameservers: Vec<IpAddr>,
    /// User data as it is, instead of what the above makes.
    pub user_data: Option<PathBuf>,
    /// Meta data as it is.
    pub meta_data: Option<PathBuf>,
    /// Vendor data as it is.
    pub vendor_data: Option<PathBuf>,
    /// Network configuration as it is.
    pub network_config: Option<PathBuf>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SshKey {
    /// As it stands in `authorized_keys`.
    Text(String),
    /// A file with keys, one a line.
    File(PathBuf),
}

/// Whether a line is a public key as OpenSSH writes one (sshd(8), AUTHORIZED_KEYS FILE FORMAT; without options).
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
