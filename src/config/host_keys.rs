//! The keys of the host file.

use super::key::{Key, KeyTable, Kind, key, with};
use crate::choices::{Choices, Support, SwitchType};
use Kind::{Address, Entries, Flag, Integer, Map, Name, OneOf, Path, Paths, Text, Texts};
use Support::{Bhyve, Later, Now};

/// The keys of the host file; `[defaults]` holds the keys of a guest.
pub static HOST_KEYS: KeyTable = KeyTable::new(&joined::<{ HOST_ONLY.len() + SWITCH_KEYS.len() }>(&[HOST_ONLY, SWITCH_KEYS]));

/// Joins tables of keys.
pub(super) const fn joined<const N: usize>(tables: &[&[Key]]) -> [Key; N] {
    let mut all = [tables[0][0]; N];
    let (mut table, mut at) = (0, 0);
    while table < tables.len() {
        let mut key = 0;
        while key < tables[table].len() {
            all[at] = tables[table][key];
            (key, at) = (key + 1, at + 1);
        }
        table += 1;
    }
    assert!(at == N);
    all
}

const HOST_ONLY: &[Key] = &[
    key("name", Text, Now, "What fleet files call this host; its host name without it."),
    key("labels", Texts { one: false }, Now, "Words by which fleet files choose this host, like `ssd` or `rack=a`."),
    key("default_datastore", Name, Now, "The datastore that is used when none is named; the first one without it."),
    key(
        "template_dirs",
        Paths,
        Now,
        "Directories with templates, searched after the datastore's own and before the built-in ones.",
    ),
    key("cache_dir", Path, Now, "Where downloads are kept."),
    with("autostart_parallel", Integer { min: 1, max: 64 }, "2", Now, "How many guests autostart starts at once."),
    with(
        "engine_uids",
        Text,
        "\"1900000000-1999999999\"",
        Now,
        "Users that nobody else is, first and last. An embedded engine that root starts goes on as one of them, each guest's as another, with the group of the same number.",
    ),
    key("defaults", Map, Now, "Keys of a guest file that apply to every guest unless its templates or its file say otherwise."),
    key("datastores", Entries, Now, "Where guests live. Without one, the default directory of the user is used."),
    key("datastores.id", Name, Now, "Its name. Required."),
    key("datastores.path", Path, Now, "Its directory. Required."),
    key("datastores.dataset", Text, Later("until then mount the dataset and give its `path`"), "ZFS dataset."),
    key(
        "catalogues",
        Entries,
        Now,
        "Catalogues of images beside the one in the program; an entry of a later one replaces an earlier one.",
    ),
    key("catalogues.id", Name, Now, "Its name. Required."),
    key("catalogues.url", Text, Now, "An https URL or an absolute path. Required."),
    key("switches", Entries, Now, "What the interfaces of guests are plugged into."),
];

/// The keys of an entry of `switches`, in the host file and in fleet files.
pub(super) const SWITCH_KEYS: &[Key] = &[
    key("switches.id", Name, Now, "Its name, at most 12 characters: interfaces are named after it. Required."),
    with("switches.type", OneOf(SwitchType::ROWS), "\"bridge\"", Now, "What it is."),
    key("switches.bridge", Text, Now, "The existing interface or node, for `manual` and `netgraph`."),
    key("switches.uplinks", Texts { one: false }, Now, "Interfaces of the host that belong to it; one for `vxlan`."),
    key("switches.vlan", Integer { min: 1, max: 4094 }, Now, "VLAN of the uplinks that the switch is in."),
    key("switches.vni", Integer { min: 1, max: 16_777_215 }, Bhyve, "Number of the network, for `vxlan`."),
    key("switches.group", Address, Bhyve, "Multicast group, for `vxlan`; without it one that is derived from the number."),
    key("switches.addresses", Texts { one: false }, Now, "Addresses of the host on it, with prefix lengths, like `10.1.0.1/24`."),
    key("switches.mtu", Integer { min: 576, max: 9216 }, Now, "Largest packet."),
    with("switches.private", Flag, "false", Now, "Whether guests on it cannot talk to each other."),
    with(
        "switches.nat",
        Flag,
        "false",
        Now,
        "Whether guests reach the world through the host's addresses, with pf(4) on FreeBSD and nftables on Linux.",
    ),
    key("switches.egress", Text, Now, "Interface that NAT leaves through; that of the default route without it."),
    key("switches.dhcp", Text, Now, "Range of addresses that are given out, like `10.1.0.100-10.1.0.199`."),
    key(
        "switches.dns",
        Texts { one: false },
        Now,
        "Name servers that DHCP announces; the host's address on the switch without it.",
    ),
    key("switches.domain", Text, Now, "Domain that DHCP announces."),
];
