//! The rules for `[cloud-init]` that go beyond one key, and the disk that the seed is.

use super::cloud_init::{CloudInit, SEED_DISK, SshKey, is_public_key};
use super::diagnostic::{Diagnostic, Problems};
use super::guest::{DiskConfig, NicConfig};
use super::table_reader::TableReader;
use crate::choices::{DiskDevice, EngineKind};

/// Maximum number of keys and of addresses in one seed.
const MOST: usize = 64;

/// Checks the table. Returns `None` when there is none.
pub(super) fn cloud_init(
    view: &TableReader<'_>,
    name: &str,
    (disks, nics): (&[DiskConfig], &[NicConfig]),
    problems: &mut Problems,
) -> Option<CloudInit> {
    view.node("cloud-init")?;
    let table = view.table("cloud-init");
    let mut instead = |whole: &str, parts: &[&str]| {
        if table.node(whole).is_none() {
            return;
        }
        for part in parts.iter().filter(|part| table.node(part).is_some()) {
            let message = format!("`cloud-init.{part}` does nothing beside `cloud-init.{whole}`");
            problems.push(Diagnostic::at(table.location_of(part), message).hint("leave one of the two out"));
        }
    };
    instead("user_data", &["user", "ssh_keys", "password_file"]);
    instead("meta_data", &["hostname"]);
    instead("network_config", &["addresses", "gateways", "nameservers"]);
    if disks.iter().any(|disk| disk.id == SEED_DISK) {
        let message = format!("the seed of `[cloud-init]` is a disk called `{SEED_DISK}`, and another disk has that name");
        problems.push(Diagnostic::at(view.location_of("disks"), message).hint("give the disk another `id`"));
    }
    let mut hostname = table.text("hostname").unwrap_or_else(|| name.to_owned());
    hostname.make_ascii_lowercase();
    let is_label =
        |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if hostname.len() > 253 || !hostname.split('.').all(is_label) {
        // A guest's name may contain an underscore, but a host name may not.
        let message = format!("`{hostname}` cannot be a host name");
        problems.push(
            Diagnostic::at(table.location_of("hostname"), message).hint("set `cloud-init.hostname`: letters, digits and `-`"),
        );
    }
    let user = table.text("user");
    if let Some(user) = &user {
        let first = user.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let rest = user.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b));
        if !first || !rest || user.len() > 32 {
            let message = format!("`{user}` cannot be the name of a user");
            problems.push(Diagnostic::at(table.location_of("user"), message));
        }
    }
    if table.node("addresses").is_some() && nics.is_empty() {
        let message = "`cloud-init.addresses` are those of the first interface, and the guest has none";
        problems.push(Diagnostic::at(table.location_of("addresses"), message));
    }
    for leaf in ["gateways", "nameservers"] {
        if table.node(leaf).is_some() && table.node("addresses").is_none() {
            let message = format!("`cloud-init.{leaf}` does nothing without `cloud-init.addresses`: DHCP provides them");
            problems.push(Diagnostic::at(table.location_of(leaf), message));
        }
    }
    Some(CloudInit {
        hostname,
        user,
        ssh_keys: ssh_keys(&table, problems),
        password_file: table.path("password_file"),
        addresses: parsed(&table, "addresses", "an address with its prefix length, like `192.0.2.10/24`", problems),
        gateways: parsed(&table, "gateways", "an IP address", problems),
        nameservers: parsed(&table, "nameservers", "an IP address", problems),
        user_data: table.path("user_data"),
        meta_data: table.path("meta_data"),
        vendor_data: table.path("vendor_data"),
        network_config: table.path("network_config"),
    })
}

/// Returns the seed's disk: vmctl writes it before every boot, and the guest reads it.
pub(super) fn seed_disk(engine: EngineKind) -> DiskConfig {
    let serial = (engine == EngineKind::Embedded).then(|| SEED_DISK.into());
    DiskConfig { serial, thin: false, ..DiskConfig::read_only(SEED_DISK, DiskDevice::VirtioBlk, None) }
}

fn ssh_keys(table: &TableReader<'_>, problems: &mut Problems) -> Vec<SshKey> {
    let nodes = table.text_nodes("ssh_keys");
    if nodes.len() > MOST {
        problems.push(Diagnostic::at(table.location_of("ssh_keys"), format!("more than {MOST} keys")));
    }
    let mut keys = Vec::new();
    for (text, node) in nodes {
        if is_public_key(text.trim()) {
            keys.push(SshKey::Text(text.trim().to_owned()));
        } else if text.is_empty() || text.contains([' ', '\n', '\0']) {
            let hint = "one line of a `.pub` file, or the path of such a file";
            problems.push(Diagnostic::at(&node.location, "this is neither a public key nor the path of one").hint(hint));
        } else {
            keys.push(SshKey::File(table.absolute(text, node)));
        }
    }
    keys
}

fn parsed<T: std::str::FromStr>(table: &TableReader<'_>, leaf: &str, what: &str, problems: &mut Problems) -> Vec<T> {
    let nodes = table.text_nodes(leaf);
    if nodes.len() > MOST {
        problems.push(Diagnostic::at(table.location_of(leaf), format!("more than {MOST} of `cloud-init.{leaf}`")));
    }
    let mut values = Vec::new();
    for (text, node) in nodes {
        match text.parse() {
            Ok(value) => values.push(value),
            Err(_) => problems.push(Diagnostic::at(&node.location, format!("`{text}` is not {what}"))),
        }
    }
    values
}
