//! Checks of the rules for how a guest boots: the loaders that bhyve(8) has, its firmware, the order of the devices, and the
//! SMBIOS tables. The results are in [`super::hardware`].

use std::time::Duration;

use super::diagnostic::{Diagnostic, Location, Problems};
use super::guest::{DiskConfig, NicConfig};
use super::hardware::*;
use super::rules::{command_words, map};
use super::table_reader::TableReader;
use crate::choices::{Choices, EngineKind, FwCfg, GrubSystem, LoaderKind};
use crate::units::parse_duration;

/// Refuses the table of a loader that the guest does not use, since it would silently have no effect.
pub(super) fn loader_tables(view: &TableReader<'_>, loader: LoaderKind, problems: &mut Problems) {
    let name = loader.as_str();
    for of in LoaderKind::ALL.iter().filter(|of| **of != loader) {
        // Its table is called after it.
        let table = of.as_str();
        if let Some(node) = view.node(table) {
            let message = format!("`{table}` does nothing with `loader = \"{name}\"`");
            let hint = format!("set `loader = \"{table}\"`, or drop the table (`unset = [\"{table}\"]` if a template sets it)");
            problems.push(Diagnostic::at(&node.location, message).hint(hint));
        }
    }
}

pub(super) fn grub(view: &TableReader<'_>, engine: EngineKind, problems: &mut Problems) -> Grub {
    let table = view.table("grub");
    let system: GrubSystem = table.choice("system");
    for leaf in ["partition", "directory", "file", "kernel", "root", "entry"] {
        if let Some(text) = table.text(leaf) {
            one_line(&text, &format!("grub.{leaf}"), table.location_of(leaf), problems);
        }
    }
    for (text, node) in table.text_nodes("commands") {
        one_line(text, "grub.commands", &node.location, problems);
    }
    let without = |leaf: &str, why: &str, problems: &mut Problems| {
        if let Some(node) = table.unlike_default(leaf) {
            problems.push(Diagnostic::at(&node.location, format!("`grub.{leaf}` does nothing {why}")));
        }
    };
    if system == GrubSystem::Linux {
        without("kernel", "with `system = \"linux\"`: write `commands`", problems);
        without("root", "with `system = \"linux\"`: write `commands`", problems);
    } else if table.node("commands").is_some() {
        without("commands", "with OpenBSD and NetBSD, whose commands are written from `kernel` and `root`", problems);
    }
    if table.node("commands").is_some() || system != GrubSystem::Linux {
        without("directory", "when vmctl writes the configuration", problems);
        without("file", "when vmctl writes the configuration", problems);
        without("entry", "without a menu: `commands` have none", problems);
    }
    // grub-bhyve shows the guest's own menu as that is configured, and has no option for the time.
    if engine == EngineKind::Bhyve && system == GrubSystem::Linux && table.node("commands").is_none() {
        without("timeout", "without `commands`: the guest's own configuration sets the time of its menu", problems);
    }
    let timeout = table.text("timeout").and_then(|text| parse_duration(&text).ok());
    Grub {
        partition: table.text("partition"),
        directory: table.text("directory"),
        file: table.text("file"),
        commands: table.texts("commands"),
        entry: table.text("entry"),
        console: table.flag("console"),
        timeout: timeout.unwrap_or(Duration::from_secs(3)),
        menu_timeout: timeout,
        system,
        kernel: table.text("kernel"),
        root: table.text("root"),
    }
}

fn one_line(text: &str, what: &str, location: &Location, problems: &mut Problems) {
    if text.chars().any(char::is_control) {
        problems.push(Diagnostic::at(location, format!("`{what}` has a control character; it is one line")));
    }
}

pub(super) fn uefi(view: &TableReader<'_>, problems: &mut Problems) -> Uefi {
    let table = view.table("uefi");
    let csm = table.flag("csm");
    for leaf in ["firmware", "vars"] {
        if csm && let Some(node) = table.unlike_default(leaf) {
            let message =
                format!("`uefi.{leaf}` does not go with `csm = true`, which is a firmware of its own without variables");
            problems.push(Diagnostic::at(&node.location, message));
        }
    }
    let persistent = table.flag("persistent");
    if !persistent && let Some(node) = table.node("vars") {
        problems.push(Diagnostic::at(&node.location, "`uefi.vars` does nothing with `persistent = false`"));
    }
    Uefi { firmware: table.path("firmware"), vars: table.path("vars"), persistent: persistent && !csm, csm }
}

pub(super) fn bhyveload(view: &TableReader<'_>, problems: &mut Problems) -> Bhyveload {
    let table = view.table("bhyveload");
    Bhyveload {
        loader: table.path("loader"),
        env: map(&table, "env", problems),
        host_dir: table.path("host_dir"),
        args: command_words(&table, "args", problems),
        timeout: table.node("timeout").map(|_| table.duration("timeout")),
    }
}

pub(super) fn boot_order(
    view: &TableReader<'_>,
    config: (&[DiskConfig], &[NicConfig], LoaderKind),
    problems: &mut Problems,
) -> Vec<BootTarget> {
    let (disks, nics, loader) = config;
    let table = view.table("boot");
    let mut order = Vec::new();
    for (id, node) in table.text_nodes("order") {
        let target = match (disks.iter().any(|disk| disk.id == id), nics.iter().any(|nic| nic.id == id)) {
            (true, _) => BootTarget::Disk(id.to_owned()),
            (false, true) if loader == LoaderKind::Uefi => BootTarget::Nic(id.to_owned()),
            (false, true) => {
                problems.push(Diagnostic::at(&node.location, format!("only UEFI boots from an interface, like `{id}`")));
                continue;
            }
            (false, false) => {
                problems.push(Diagnostic::at(&node.location, format!("no disk and no interface has the id `{id}`")));
                continue;
            }
        };
        if order.contains(&target) {
            problems.push(Diagnostic::at(&node.location, format!("`{id}` is given twice")));
        }
        order.push(target);
    }
    let qemu = view.table("bhyve").chosen("fwcfg") == Some(FwCfg::Qemu);
    if !order.is_empty() && loader == LoaderKind::Uefi && !qemu {
        let message = "firmware learns `boot.order` only with `bhyve.fwcfg = \"qemu\"`";
        let hint = "set it, with a firmware that reads it; or put the disk that is booted first in the file";
        problems.push(Diagnostic::at(table.location_of("order"), message).hint(hint));
    }
    order
}

pub(super) fn smbios(view: &TableReader<'_>, problems: &mut Problems) -> Smbios {
    let table = view.table("smbios");
    let mut text = |leaf: &str| {
        let text = table.text(leaf)?;
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            let message = format!("`{text}` cannot be in the SMBIOS tables");
            let hint = "1 to 128 printable ASCII characters";
            problems.push(Diagnostic::at(table.location_of(leaf), message).hint(hint));
        }
        Some(text)
    };
    Smbios {
        manufacturer: text("manufacturer"),
        product: text("product"),
        version: text("version"),
        serial: text("serial"),
        sku: text("sku"),
        family: text("family"),
        asset_tag: text("asset_tag"),
    }
}
