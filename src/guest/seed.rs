//! The seed that cloud-init reads in the guest: a FAT volume labelled CIDATA with `meta-data`, `user-data`,
//! `vendor-data` and `network-config` (cloud-init, "NoCloud" data source). The documents are YAML, of which JSON is a
//! part.
//!
//! It is written before a boot if the guest file has changed it. The instance's id follows from the contents, so that
//! cloud-init runs again after an edit.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config::cloud_init::{SEED_DISK, is_public_key};
use crate::config::{CloudInit, GuestConfig, SshKey};
use crate::host::files::replace;
use crate::inputs;

use super::error::{GuestError, Result};
use super::state::GuestState;
use super::store::GuestDir;

/// Maximum size of a file in a seed.
const MOST_BYTES: u64 = 1 << 20;
/// Size of the volume in addition to its files: tables, directory, rounding.
const VOLUME_BYTES: usize = 1 << 20;
/// Label that cloud-init looks for: eleven characters, the length of a FAT label.
const LABEL: [u8; 11] = *b"CIDATA     ";

/// Returns the path of a guest's seed.
pub fn path(guest: &GuestDir) -> PathBuf {
    guest.disks_dir().join(format!("{SEED_DISK}.raw"))
}

/// Writes the seed of a guest, if it has one.
pub fn ensure(guest: &GuestDir, config: &GuestConfig, state: &GuestState) -> Result<()> {
    let Some(cloud_init) = &config.cloud_init else { return Ok(()) };
    let image = volume(&documents(cloud_init, config, state)?)
        .map_err(|error| GuestError::host(format!("cannot make the seed of cloud-init: {error}")))?;
    let path = path(guest);
    if fs::read(&path).is_ok_and(|there| there == image) {
        return Ok(());
    }
    let folder = guest.disks_dir();
    fs::create_dir_all(&folder).map_err(|error| GuestError::io("make", &folder, error))?;
    // It may contain a password.
    replace(&path, &image, 0o600).map_err(|error| GuestError::io("write the seed", &path, error))
}

/// Returns the files of a seed, by name.
fn documents(told: &CloudInit, config: &GuestConfig, state: &GuestState) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let user_data = match &told.user_data {
        Some(path) => read(path, "the user data")?,
        None => user_data(told)?,
    };
    let vendor_data = told.vendor_data.as_deref().map(|path| read(path, "the vendor data")).transpose()?;
    let network = match &told.network_config {
        Some(path) => Some(read(path, "the network configuration")?),
        None => network_config(told, config, state),
    };
    let meta_data = match &told.meta_data {
        Some(path) => read(path, "the meta data")?,
        None => {
            let mut digest = Sha256::new();
            for part in [state.uuid_for(config).as_bytes(), &user_data, vendor_data.as_deref().unwrap_or_default()] {
                digest.update((part.len() as u64).to_le_bytes());
                digest.update(part);
            }
            let id: String = digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            document(&json!({ "instance-id": format!("vmctl-{id}"), "local-hostname": told.hostname }))
        }
    };
    let mut files = vec![("meta-data", meta_data), ("user-data", user_data)];
    files.extend(vendor_data.map(|text| ("vendor-data", text)));
    files.extend(network.map(|text| ("network-config", text)));
    Ok(files)
}

/// Returns the problems of the files that a seed is made of, each with its key.
pub fn problems(told: &CloudInit) -> Vec<(&'static str, GuestError)> {
    let whole = [
        ("user_data", &told.user_data, "the user data"),
        ("vendor_data", &told.vendor_data, "the vendor data"),
        ("meta_data", &told.meta_data, "the meta data"),
        ("network_config", &told.network_config, "the network configuration"),
    ];
    let mut found: Vec<_> =
        whole.into_iter().filter_map(|(key, path, what)| Some((key, read(path.as_deref()?, what).err()?))).collect();
    if told.user_data.is_none() {
        found.extend(keys(told).err().map(|error| ("ssh_keys", error)));
        found.extend(told.password_file.as_deref().and_then(|path| password(path).err()).map(|error| ("password_file", error)));
    }
    found
}

fn document(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain values");
    text.push(b'\n');
    text
}

/// Builds the user data for cloud-init's modules "Users and Groups", "SSH" and "Set Passwords".
fn user_data(told: &CloudInit) -> Result<Vec<u8>> {
    let keys = keys(told)?;
    let password = told.password_file.as_deref().map(password).transpose()?;
    let mut top = Map::new();
    match &told.user {
        Some(name) => {
            let mut user = Map::new();
            user.insert("name".into(), json!(name));
            user.insert("sudo".into(), json!("ALL=(ALL) NOPASSWD:ALL"));
            user.insert("ssh_authorized_keys".into(), json!(keys));
            user.insert("lock_passwd".into(), json!(password.is_none()));
            if let Some(password) = password {
                let key = if password.starts_with('$') { "passwd" } else { "plain_text_passwd" };
                user.insert(key.into(), json!(password));
            }
            top.insert("users".into(), json!(["default", user]));
        }
        None => {
            if !keys.is_empty() {
                top.insert("ssh_authorized_keys".into(), json!(keys));
            }
            if let Some(password) = password {
                top.insert("password".into(), json!(password));
                top.insert("chpasswd".into(), json!({ "expire": false }));
            }
        }
    }
    let mut text = b"#cloud-config\n".to_vec();
    text.extend(document(&Value::Object(top)));
    Ok(text)
}

fn keys(told: &CloudInit) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for key in &told.ssh_keys {
        match key {
            SshKey::Text(key) => keys.push(key.clone()),
            SshKey::File(path) => {
                let text = String::from_utf8_lossy(&read(path, "the public key")?).into_owned();
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
                let found: Vec<String> = lines.map(str::to_owned).collect();
                if found.is_empty() || !found.iter().all(|line| is_public_key(line)) {
                    return Err(GuestError::user(format!("`{}` holds no public key", path.display()))
                        .hint("a `.pub` file, as ssh-keygen(1) writes it"));
                }
                keys.extend(found);
            }
        }
    }
    Ok(keys)
}

fn password(path: &Path) -> Result<String> {
    let text = read(path, "the password")?;
    let line = String::from_utf8(text).ok().and_then(|text| text.lines().next().map(str::to_owned));
    line.filter(|line| !line.is_empty())
        .ok_or_else(|| GuestError::user(format!("`{}` does not begin with a password", path.display())))
}

/// Builds cloud-init's network configuration, version 2. Returns `None` for cloud-init's default, DHCP.
fn network_config(told: &CloudInit, config: &GuestConfig, state: &GuestState) -> Option<Vec<u8>> {
    if told.addresses.is_empty() {
        return None;
    }
    let mut ethernets = Map::new();
    for (at, nic) in config.nics.iter().enumerate() {
        let mac = state.mac(&nic.id)?;
        let mut interface = json!({ "match": { "macaddress": mac.to_string() } });
        if at == 0 {
            interface["addresses"] = told.addresses.iter().map(|address| json!(address.to_string())).collect();
            interface["routes"] = told
                .gateways
                .iter()
                .map(|gateway| json!({ "to": if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "via": gateway }))
                .collect();
            interface["nameservers"] = json!({ "addresses": told.nameservers });
        } else {
            interface["dhcp4"] = json!(true);
        }
        ethernets.insert(nic.id.clone(), interface);
    }
    Some(document(&json!({ "version": 2, "ethernets": ethernets })))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    inputs::read(path, MOST_BYTES).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => {
            GuestError::user(format!("`{}` is longer than 1 MiB, the most that goes into a seed", path.display()))
        }
        _ => GuestError::input(&format!("read {what} at"), path, error),
    })
}

/// Builds a FAT volume with these files: the same bytes for the same files.
fn volume(files: &[(&str, Vec<u8>)]) -> std::io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut image = Cursor::new(vec![0u8; (VOLUME_BYTES + content).next_multiple_of(64 * 1024)]);
    fatfs::format_volume(&mut image, fatfs::FormatVolumeOptions::new().volume_label(LABEL))?;
    let volume = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new())?;
    for (name, bytes) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(image.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use crate::config::guest_of;

    fn config_of(text: &str) -> GuestConfig {
        guest_of(&format!("kernel = {{ image = \"/k\" }}\n{text}"))
    }

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7mB9cO8u me@example";

    fn files(text: &str) -> Vec<(&'static str, String)> {
        let config = config_of(text);
        let mut state = GuestState::new("g");
        state.assign(&config).expect("assigns");
        let documents = documents(config.cloud_init.as_ref().expect("a seed"), &config, &state).expect("documents");
        documents.into_iter().map(|(name, bytes)| (name, String::from_utf8(bytes).expect("text"))).collect()
    }

    fn parsed(files: &[(&str, String)], name: &str) -> Value {
        let text = &files.iter().find(|(file, _)| *file == name).expect("there").1;
        serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap_or(text)).expect("JSON")
    }

    #[test]
    fn the_distributions_own_user_gets_the_keys_when_no_other_is_named() {
        let found = files(&format!("[cloud-init]\nssh_keys = [\"{KEY}\"]\n"));
        assert_eq!(parsed(&found, "user-data"), json!({ "ssh_authorized_keys": [KEY] }));
        assert_eq!(parsed(&found, "meta-data")["local-hostname"], "g");
        assert_eq!(found.len(), 2, "no network configuration: cloud-init asks DHCP");
    }

    #[test]
    fn a_user_and_addresses_are_told_as_cloud_init_wants_them() {
        let text = format!(
            "nics = [{{ id = \"net0\", mac = \"02:00:00:00:00:01\" }}, {{ id = \"net1\" }}]\n[cloud-init]\nuser = \"ann\"\n\
             ssh_keys = [\"{KEY}\"]\naddresses = [\"192.0.2.10/24\"]\ngateways = [\"192.0.2.1\"]\nnameservers = [\"192.0.2.2\"]\n"
        );
        let found = files(&text);
        let user = &parsed(&found, "user-data")["users"][1];
        assert_eq!((&user["name"], &user["lock_passwd"]), (&json!("ann"), &json!(true)));
        let network = parsed(&found, "network-config");
        let first = &network["ethernets"]["net0"];
        assert_eq!(first["match"]["macaddress"], "02:00:00:00:00:01");
        assert_eq!(first["addresses"], json!(["192.0.2.10/24"]));
        assert_eq!(first["routes"], json!([{ "to": "0.0.0.0/0", "via": "192.0.2.1" }]));
        assert_eq!(network["ethernets"]["net1"]["dhcp4"], true);
    }

    #[test]
    fn an_edit_makes_another_instance_and_nothing_else_does() {
        let id = |text: &str| {
            let config = config_of(text);
            let mut state = GuestState::new("g");
            state.uuid = "4c4c4544-0000-4000-8000-000000000001".into();
            state.assign(&config).expect("assigns");
            let files = documents(config.cloud_init.as_ref().expect("a seed"), &config, &state).expect("documents");
            serde_json::from_slice::<Value>(&files[0].1).expect("JSON")["instance-id"].clone()
        };
        let text = format!("[cloud-init]\nssh_keys = [\"{KEY}\"]\n");
        assert_eq!(id(&text), id(&text));
        assert_ne!(id(&text), id(&format!("{text}user = \"ann\"\n")));
    }

    #[test]
    fn the_volume_is_a_fat_file_system_with_the_label_and_the_files() {
        let files = [("meta-data", b"{}\n".to_vec()), ("user-data", vec![b'x'; 900_000])];
        let image = volume(&files).expect("a volume");
        assert_eq!(image, volume(&files).expect("a volume"), "the same bytes");
        let mut cursor = Cursor::new(image);
        let read = fatfs::FileSystem::new(&mut cursor, fatfs::FsOptions::new()).expect("opens");
        assert_eq!(read.volume_label(), "CIDATA");
        let mut bytes = Vec::new();
        read.root_dir().open_file("user-data").expect("there").read_to_end(&mut bytes).expect("reads");
        assert_eq!(bytes, files[1].1);
    }

    #[test]
    fn what_is_no_key_and_what_is_too_long_is_refused_with_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key.pub");
        let told = format!("[cloud-init]\nssh_keys = [\"{}\"]\n", file.display());
        let config = config_of(&told);
        let documents = || super::documents(config.cloud_init.as_ref().expect("a seed"), &config, &GuestState::new("g"));
        assert!(documents().expect_err("missing").chain().contains("key.pub"));
        fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\n").expect("writes");
        assert!(documents().expect_err("a private key").chain().contains("holds no public key"));
        fs::write(&file, format!("# mine\n{KEY}\n\n{KEY}\n")).expect("writes");
        documents().expect("two keys");
        fs::write(&file, vec![b'a'; MOST_BYTES as usize + 1]).expect("writes");
        assert!(documents().expect_err("too long").chain().contains("longer than 1 MiB"));
    }
}
