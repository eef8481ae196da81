//! Checks of the rules that involve more than one key, for the machine as bhyve(8) runs it: its jail, CPUs, NUMA domains,
//! limits, PCI addresses and settings of its own. The results are in [`super::hardware`].

use std::net::{IpAddr, SocketAddr};

use super::addresses::PciAddress;
use super::bhyve_variables;
use super::check_devices::slot;
use super::diagnostic::{Diagnostic, Location, Problems, nearest};
use super::guest::GuestConfig;
use super::hardware::*;
use super::layer::{Spanned, Value};
use super::rules::{command_words, entry_id, map};
use super::table_reader::TableReader;
use crate::choices::{FwCfg, Hostbridge, LoaderKind};
use crate::units::ByteSize;

pub(super) fn jail(view: &TableReader<'_>, problems: &mut Problems) -> Option<JailConfig> {
    view.node("jail")?;
    let table = view.table("jail");
    let Some(name) = table.text("name") else {
        problems.push(Diagnostic::at(table.location, "`jail` has no `name`").hint("`jail = \"NAME\"` is enough"));
        return None;
    };
    Some(JailConfig { name, root: table.path("root") })
}

/// Parses `0-3` or `0,2,5-6`: numbers and spans, in any order, none twice, at most 1024 spans.
pub fn spans(text: &str) -> Option<Vec<Span>> {
    let mut found: Vec<Span> = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| match (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u32>().ok(),
            false => None,
        };
        let span = match part.trim().split_once('-') {
            Some((first, last)) => Span { first: number(first)?, last: number(last)? },
            None => number(part.trim()).map(|one| Span { first: one, last: one })?,
        };
        let apart = found.iter().all(|other| span.last < other.first || other.last < span.first);
        if span.first > span.last || !apart || found.len() >= 1024 {
            return None;
        }
        found.push(span);
    }
    Some(found)
}

pub(super) fn pins(view: &TableReader<'_>, vcpus: u32, problems: &mut Problems) -> Vec<CpuPin> {
    let mut pins: Vec<CpuPin> = Vec::new();
    for (text, node) in view.table("cpus").text_nodes("pin") {
        let parsed = text.split_once(':').and_then(|(vcpu, host)| Some((spans(vcpu)?, spans(host)?)));
        let Some((wanted, host)) = parsed.filter(|(wanted, _)| matches!(wanted[..], [Span { first, last }] if first == last))
        else {
            let hint = "a virtual CPU, a colon, and CPUs of the host: `0:4` or `1:5-6`";
            problems.push(Diagnostic::at(&node.location, format!("`{text}` is not a CPU pinning")).hint(hint));
            continue;
        };
        let vcpu = wanted[0].first;
        if vcpu >= vcpus {
            let message = format!("`{text}` pins CPU {vcpu} of a guest that has {vcpus}, from 0");
            problems.push(Diagnostic::at(&node.location, message));
        } else if pins.iter().any(|pin| pin.vcpu == vcpu) {
            let hint = format!("one entry names all of them: `{vcpu}:4,6`");
            problems.push(Diagnostic::at(&node.location, format!("CPU {vcpu} is pinned twice")).hint(hint));
        }
        pins.push(CpuPin { vcpu, host });
    }
    pins
}

pub(super) fn numa(view: &TableReader<'_>, config: (u32, ByteSize, LoaderKind), problems: &mut Problems) -> Vec<NumaDomain> {
    let (vcpus, memory, loader) = config;
    let mut seen = Vec::new();
    let mut owner: Vec<Option<String>> = vec![None; vcpus as usize];
    let mut domains = Vec::new();
    let entries = view.entries("numa");
    for entry in &entries {
        let id = entry_id(entry, "numa", &mut seen, problems);
        let (Some(size), Some(text)) = (entry.size("size"), entry.text("cpus")) else {
            let missing = if entry.node("size").is_none() { "size" } else { "cpus" };
            problems.push(Diagnostic::at(entry.location, format!("NUMA domain `{id}` has no `{missing}`")));
            continue;
        };
        let Some(cpus) = spans(&text) else {
            problems
                .push(Diagnostic::at(entry.location_of("cpus"), format!("`{text}` names no CPUs")).hint("like `0-3` or `0,2`"));
            continue;
        };
        for cpu in cpus.iter().flat_map(|span| span.first..=span.last).take(4096) {
            match owner.get_mut(cpu as usize) {
                None => {
                    let message = format!("domain `{id}` has CPU {cpu}, the guest has {vcpus}, from 0");
                    problems.push(Diagnostic::at(entry.location_of("cpus"), message));
                    break;
                }
                Some(Some(other)) => {
                    let message = format!("CPU {cpu} is in the domains `{other}` and `{id}`");
                    problems.push(Diagnostic::at(entry.location_of("cpus"), message));
                    break;
                }
                Some(free) => *free = Some(id.clone()),
            }
        }
        domains.push(NumaDomain { id, size, cpus, policy: entry.text("policy") });
    }
    if domains.is_empty() || domains.len() != entries.len() {
        return domains;
    }
    let location = entries[0].location;
    let sum: u64 = domains.iter().map(|domain| domain.size.bytes()).fold(0, u64::saturating_add);
    if domains.len() > 8 {
        problems.push(Diagnostic::at(location, format!("{} NUMA domains are more than the maximum of 8", domains.len())));
    } else if sum != memory.bytes() {
        let message = format!("the NUMA domains have {} together, the guest has {memory}", ByteSize::from_bytes(sum));
        problems.push(Diagnostic::at(location, message).hint("make `size` of the domains add up to `memory`"));
    } else if let Some(cpu) = owner.iter().position(Option::is_none) {
        problems.push(Diagnostic::at(location, format!("CPU {cpu} is in no NUMA domain")));
    } else if loader != LoaderKind::Uefi {
        let message = "NUMA domains need `loader = \"uefi\"`: the other loaders know of no domains";
        problems.push(Diagnostic::at(location, message));
    }
    domains
}

pub(super) fn limits(view: &TableReader<'_>, problems: &mut Problems) -> Limits {
    let table = view.table("limits");
    let mut bps = |leaf: &str| {
        let size = table.size(leaf)?;
        if size.bytes() == 0 {
            problems.push(Diagnostic::at(table.location_of(leaf), format!("`limits.{leaf}` is zero")));
        }
        Some(size)
    };
    Limits {
        cpu_percent: table.small("cpu_percent"),
        nice: table.number("nice").map(|nice| i32::try_from(nice).expect("the key table's bounds fit")),
        read_bps: bps("read_bps"),
        write_bps: bps("write_bps"),
        read_iops: table.small("read_iops"),
        write_iops: table.small("write_iops"),
    }
}

pub(super) fn gdb(view: &TableReader<'_>, problems: &mut Problems) -> Option<GdbStub> {
    let debug = view.table("debug");
    debug.node("gdb")?;
    let table = debug.table("gdb");
    let Some(port) = table.small("port") else {
        problems.push(Diagnostic::at(table.location, "`debug.gdb` has no `port`").hint("like `port = 1234`"));
        return None;
    };
    let address: IpAddr = table.text("listen").and_then(|text| text.parse().ok()).expect("walked, and has a default");
    let port = u16::try_from(port).expect("the key table's bounds fit");
    Some(GdbStub { listen: SocketAddr::new(address, port), wait: table.flag("wait") })
}

pub(super) fn bhyve(view: &TableReader<'_>, problems: &mut Problems) -> BhyveConfig {
    let table = view.table("bhyve");
    let mut fw_cfg: Vec<FwCfgItem> = map(&table, "fw_cfg", problems)
        .into_iter()
        .map(|(name, text)| FwCfgItem { name, content: FwCfgContent::Text(text) })
        .collect();
    for (name, text) in map(&table, "fw_cfg_files", problems) {
        if !text.starts_with('/') {
            let message = format!("`{text}` is not an absolute path");
            problems.push(Diagnostic::at(table.location_of("fw_cfg_files"), message));
        }
        fw_cfg.push(FwCfgItem { name, content: FwCfgContent::File(text.into()) });
    }
    for item in &fw_cfg {
        // QEMU_FWCFG_MAX_NAME in qemu_fwcfg.c, with its NUL; a comma would end the name on bhyve's command line.
        if item.name.is_empty() || item.name.len() > 55 || item.name.contains([',', ' ']) || !item.name.is_ascii() {
            let message = format!("`{}` is not the name of a firmware configuration item", item.name);
            problems.push(Diagnostic::at(table.location, message).hint("at most 55 characters, like `opt/org.example/key`"));
        }
    }
    if !fw_cfg.is_empty() && table.chosen("fwcfg") != Some(FwCfg::Qemu) {
        let message = "a guest sees firmware configuration items only with `fwcfg = \"qemu\"`";
        problems.push(Diagnostic::at(table.location, message).hint("set it in `[bhyve]`"));
    }
    let mut slots = Vec::new();
    for (name, text) in map(&table, "slots", problems) {
        match text.parse::<PciAddress>() {
            Ok(address) => slots.push((name, address)),
            Err(()) => {
                let message = format!("`bhyve.slots.{name}` is `{text}`, not a PCI address");
                problems.push(Diagnostic::at(table.location_of("slots"), message).hint("like `31` or `0:31:0`"));
            }
        }
    }
    for (name, _) in map(&table, "options", &mut Vec::new()) {
        if let Some((message, hint)) = bhyve_variables::refusal(&name) {
            problems.push(Diagnostic::at(place_in(&table, "options", &name), message).maybe_hint(hint));
        }
    }
    BhyveConfig {
        args: command_words(&table, "args", problems),
        options: map(&table, "options", problems),
        slots,
        hostbridge: table.choice("hostbridge"),
        fwcfg: table.chosen("fwcfg"),
        fw_cfg,
        acpi_tables_in_memory: table.flag("acpi_tables_in_memory"),
        ignore_bad_msr: table.flag("ignore_bad_msr"),
        strict_io: table.flag("strict_io"),
        vmexit_on_hlt: table.flag("vmexit_on_hlt"),
        vmexit_on_pause: table.flag("vmexit_on_pause"),
        x2apic: table.flag("x2apic"),
        mptable: table.flag("mptable"),
        virtio_msix: table.flag("virtio_msix"),
    }
}

/// Returns the position of a name in a table with the user's own names.
fn place_in<'a>(view: &TableReader<'a>, leaf: &str, name: &str) -> &'a Location {
    match view.node(leaf) {
        Some(Spanned { value: Value::Table(table), .. }) => {
            table.0.iter().find(|(other, _)| other.text == name).map_or(view.location, |(name, _)| &name.location)
        }
        _ => view.location,
    }
}

/// Checks that the names in `bhyve.slots` are devices of the guest.
pub(super) fn slot_names(view: &TableReader<'_>, config: &GuestConfig, problems: &mut Problems) {
    let table = view.table("bhyve");
    let known = known_slots(config);
    let mut taken: Vec<(PciAddress, String)> = Vec::new();
    let mut all: Vec<(PciAddress, String, &Location)> = Vec::new();
    for class in ["disks", "nics", "passthru"] {
        for entry in view.entries(class) {
            let name = format!("{class}.{}", entry.text("id").unwrap_or_default());
            all.extend(slot(&entry).map(|address| (address, name, entry.location_of("slot"))));
        }
    }
    let graphics = view.table("graphics");
    all.extend(slot(&graphics).map(|address| (address, "graphics".to_owned(), graphics.location_of("slot"))));
    for (name, address) in &config.bhyve.slots {
        all.push((*address, format!("bhyve.slots.{name}"), place_in(&table, "slots", name)));
    }
    for (slot, name, location) in all {
        if let Some((_, other)) = taken.iter().find(|(taken, _)| *taken == slot) {
            problems.push(Diagnostic::at(location, format!("`{other}` and `{name}` are both at the PCI address {slot}")));
        }
        taken.push((slot, name));
    }
    for (name, slot) in &config.bhyve.slots {
        let location = place_in(&table, "slots", name);
        if !known.contains(name) {
            let hint = nearest(name, known.iter().map(String::as_str))
                .map_or_else(|| format!("it has {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
            problems.push(
                Diagnostic::at(location, format!("the guest has no device `{name}` without a `slot` of its own")).hint(hint),
            );
        } else if name == "lpc" && slot.bus != 0 {
            problems.push(Diagnostic::at(location, "bhyve(8) has the LPC bridge only on bus 0"));
        }
    }
}

/// Returns the valid names for `bhyve.slots`.
fn known_slots(config: &GuestConfig) -> Vec<String> {
    let mut known = vec!["lpc".to_owned()];
    known.extend((config.bhyve.hostbridge != Hostbridge::None).then(|| "hostbridge".into()));
    known.extend(config.rng.then(|| "rng".into()));
    known.extend(config.graphics.as_ref().filter(|graphics| graphics.tablet).map(|_| "tablet".into()));
    known.extend(config.sound.as_ref().map(|_| "sound".into()));
    known.extend((!config.channels.is_empty()).then(|| "channels".into()));
    known.extend(config.disks.iter().filter_map(|disk| Some(format!("ahci:{}", disk.controller.as_ref()?))));
    known.extend(config.inputs.iter().map(|input| format!("input:{}", input.id)));
    known.extend(config.shares.iter().map(|share| format!("share:{}", share.id)));
    known.dedup();
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_and_ranges_without_overlap() {
        assert_eq!(spans("0-3"), Some(vec![Span { first: 0, last: 3 }]));
        assert_eq!(spans("0, 5-6"), Some(vec![Span { first: 0, last: 0 }, Span { first: 5, last: 6 }]));
        for bad in ["", "-", "3-1", "0,0", "0-4,2", "a", "+1", "1-", "123456"] {
            assert_eq!(spans(bad), None, "{bad}");
        }
    }
}
