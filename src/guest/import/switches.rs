//! Conversion of vm-bhyve's switches to `[[switches]]` of the host file.
//!
//! `system.conf`: `switch_list` names them; `type_X`, `ports_X`, `vlan_X`, `addr_X`, `addr6_X`, `mtu_X`, `private_X`,
//! `bridge_X` and `nat_X` are their settings (`lib/vm-switch` and `lib/vm-switch-*`).

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use crate::host::program;

use super::Notes;
use super::conf::Conf;

/// A switch of vm-bhyve.
#[derive(Debug, Clone)]
pub struct ImportedSwitch {
    /// Name in vm-bhyve.
    pub old: String,
    /// Name in the host file.
    pub id: String,
    /// `bridge`, `manual`, `vxlan`, `netgraph` or `vale`.
    pub kind: &'static str,
    table: Table,
}

/// Returns a valid name for a switch of the host file.
fn name_of(old: &str) -> String {
    let plain: String = old
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c) { c } else { '-' })
        .take(12)
        .collect();
    plain.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// Returns the switches of a `system.conf`.
pub fn read(conf: &Conf, notes: &mut Notes) -> Vec<ImportedSwitch> {
    let mut found: Vec<ImportedSwitch> = Vec::new();
    for old in conf.get("switch_list").unwrap_or_default().split_whitespace() {
        let id = name_of(old);
        if id.is_empty() || found.iter().any(|other| other.id == id) {
            notes.add("switch_list", old, "its name cannot be made one of 12 characters; add it to the host file by hand");
            continue;
        }
        if id != old {
            notes.add("switch_list", old, format!("it is called `{id}` here: at most 12 lower-case characters"));
        }
        found.push(switch(conf, old, id, notes));
    }
    found
}

fn switch(conf: &Conf, old: &str, id: String, notes: &mut Notes) -> ImportedSwitch {
    let get = |key: &str| conf.get(&format!("{key}_{old}"));
    let mut table = Table::new();
    table["id"] = value(id.as_str());
    let words = |text: &str| Array::from_iter(text.split_whitespace());
    let kind = match get("type").unwrap_or("standard") {
        "manual" => "manual",
        "vxlan" => "vxlan",
        "netgraph" => "netgraph",
        "vale" => "vale",
        "standard" | "auto" => "bridge",
        other => {
            notes.add(format!("type_{old}"), other, "not a type of switch that is known; a bridge is made");
            "bridge"
        }
    };
    if kind != "bridge" {
        table["type"] = value(kind);
    }
    let has = |key: &str| match kind {
        "bridge" => key != "bridge",
        "vxlan" => matches!(key, "ports" | "vlan" | "addr" | "addr6" | "mtu" | "private"),
        "manual" => matches!(key, "bridge" | "private"),
        "vale" => key == "ports",
        _ => false,
    };
    for key in ["ports", "vlan", "addr", "addr6", "mtu", "private", "bridge"] {
        if let (false, Some(text)) = (has(key), get(key)) {
            notes.add(format!("{key}_{old}"), text, format!("a switch of type `{kind}` has no such setting"));
        }
    }
    match kind {
        "manual" => table["bridge"] = value(get("bridge").unwrap_or("bridge0")),
        "netgraph" => table["bridge"] = value(old),
        _ => {}
    }
    if let (true, Some(ports)) = (has("ports"), get("ports")) {
        table["uplinks"] = value(words(ports));
    }
    if let (true, Some(text)) = (has("vlan"), get("vlan")) {
        match (text.parse::<i64>(), kind) {
            (Ok(number), "vxlan") => table["vni"] = value(number),
            (Ok(0), _) => {}
            (Ok(number), _) => table["vlan"] = value(number),
            (Err(_), _) => notes.add(format!("vlan_{old}"), text, "not a number"),
        }
    }
    let mut addresses = Array::new();
    for key in ["addr", "addr6"].into_iter().filter(|key| has(key)) {
        for address in get(key).unwrap_or_default().split_whitespace() {
            match address.parse::<crate::host::ifconfig::Prefix>() {
                Ok(_) => addresses.push(address),
                Err(_) => notes.add(format!("{key}_{old}"), address, "not an address with its prefix length"),
            }
        }
    }
    if !addresses.is_empty() {
        table["addresses"] = value(addresses);
    }
    if let (true, Some(text)) = (has("mtu"), get("mtu")) {
        match text.parse::<i64>() {
            Ok(mtu) => table["mtu"] = value(mtu),
            Err(_) => notes.add(format!("mtu_{old}"), text, "not a number"),
        }
    }
    if has("private") && conf.yes(&format!("private_{old}")) == Some(true) {
        table["private"] = value(true);
    }
    if let Some(text) = get("nat").filter(|text| super::conf::is_yes(text)) {
        notes.add(format!("nat_{old}"), text, "vm-bhyve has none any more; set `nat = true` on the switch, which needs pf(4)");
    }
    if kind == "vxlan" {
        match multicast_group(old) {
            Some(group) => table["group"] = value(group),
            None => notes.add(
                format!("type_{old}"),
                kind,
                format!("set `group` to the multicast group of the other hosts, 239 and three bytes of `md5 -qs {old}`"),
            ),
        }
    }
    ImportedSwitch { old: old.to_owned(), id, kind, table }
}

/// Returns the multicast group of a vxlan switch in vm-bhyve: 239 and the first three bytes of its name's MD5, which
/// md5(1) of the host computes.
fn multicast_group(name: &str) -> Option<String> {
    group_of(program::run("md5", &["-q", "-s", name]).ok()?.trim())
}

fn group_of(digest: &str) -> Option<String> {
    let byte = |at: usize| u8::from_str_radix(digest.get(at..at + 2)?, 16).ok();
    Some(format!("239.{}.{}.{}", byte(0)?, byte(2)?, byte(4)?))
}

/// Returns the host file with the missing switches at its end. Returns `None` if it has all of them, or has them in an
/// inline array, which cannot be extended line by line.
pub fn with_switches(host_file: &str, switches: &[ImportedSwitch]) -> Result<Option<String>, toml_edit::TomlError> {
    let document: DocumentMut = host_file.parse()?;
    let there = document.get("switches");
    if there.is_some_and(|item| !item.is_array_of_tables()) {
        return Ok(None);
    }
    let has = |id: &str| {
        let mut entries = there.and_then(Item::as_array_of_tables).into_iter().flat_map(ArrayOfTables::iter);
        entries.any(|entry| entry.get("id").and_then(Item::as_str) == Some(id))
    };
    let mut new = ArrayOfTables::new();
    for switch in switches.iter().filter(|switch| !has(&switch.id)) {
        new.push(switch.table.clone());
    }
    if new.is_empty() {
        return Ok(None);
    }
    let mut added = DocumentMut::new();
    added["switches"] = Item::ArrayOfTables(new);
    let gap = if host_file.is_empty() || host_file.ends_with("\n\n") { "" } else { "\n" };
    let line_end = if host_file.is_empty() || host_file.ends_with('\n') { "" } else { "\n" };
    Ok(Some(format!("{host_file}{line_end}{gap}{added}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_switch_becomes_one_of_the_host_file() {
        let conf = Conf::parse(
            "switch_list=\"public Lan wan ng fast vx\"\n\
             type_public=\"standard\"\nports_public=\"em0 em1\"\nvlan_public=\"10\"\naddr_public=\"10.0.0.1/24\"\n\
             addr6_public=\"fd00::1/64\"\nmtu_public=\"9000\"\nprivate_public=\"yes\"\nnat_public=\"yes\"\n\
             type_Lan=\"manual\"\nbridge_Lan=\"bridge7\"\nmtu_Lan=\"9000\"\n\
             type_ng=\"netgraph\"\ntype_fast=\"vale\"\ntype_vx=\"vxlan\"\nvlan_vx=\"42\"\nports_vx=\"em0\"\n",
        );
        let mut notes = Notes::default();
        let switches = read(&conf, &mut notes);
        let text = with_switches("", &switches).expect("TOML").expect("new ones");
        assert!(
            text.contains(
                "[[switches]]\nid = \"public\"\nuplinks = [\"em0\", \"em1\"]\nvlan = 10\n\
                 addresses = [\"10.0.0.1/24\", \"fd00::1/64\"]\nmtu = 9000\nprivate = true\n"
            ),
            "{text}"
        );
        assert!(text.contains("id = \"lan\"\ntype = \"manual\"\nbridge = \"bridge7\"\n"), "{text}");
        assert!(text.contains("id = \"wan\"\n\n"), "{text}");
        assert!(text.contains("id = \"ng\"\ntype = \"netgraph\"\nbridge = \"ng\"\n"), "{text}");
        assert!(text.contains("id = \"vx\"\ntype = \"vxlan\"\nuplinks = [\"em0\"]\nvni = 42\n"), "{text}");
        let keys: Vec<&str> = notes.0.iter().map(|note| note.key.as_str()).collect();
        assert!(keys.contains(&"nat_public") && keys.contains(&"mtu_Lan") && keys.contains(&"switch_list"), "{keys:?}");
        assert!(conf.unseen().is_empty(), "{:?}", conf.unseen());
    }

    #[test]
    fn switches_that_are_there_stay_as_they_are() {
        let conf = Conf::parse("switch_list=\"public\"\nports_public=\"em0\"\n");
        let switches = read(&conf, &mut Notes::default());
        let host = "# mine\n[[switches]]\nid = \"public\"\nmtu = 1400\n";
        assert_eq!(with_switches(host, &switches).expect("TOML"), None);
    }

    #[test]
    fn a_group_is_made_of_the_first_bytes_of_a_digest() {
        assert_eq!(group_of("4c9184f37cff01bcdc32dc486ec36961"), Some("239.76.145.132".into()));
        assert_eq!(group_of("4c"), None);
    }
}
