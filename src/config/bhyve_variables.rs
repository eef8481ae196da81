//! The variables of bhyve(8): those of `bhyve_config(5)`, and others that its sources read. bhyve silently ignores
//! unknown ones, so a typing error would have no effect and no message.

use super::diagnostic::nearest;

/// Variables by their full name. `N` stands for a number.
const GLOBAL: &[&str] = &[
    "acpi_tables",
    "acpi_tables_in_memory",
    "bios.release_date",
    "bios.vendor",
    "bios.version",
    "board.asset_tag",
    "board.location",
    "board.manufacturer",
    "board.product_name",
    "board.serial_number",
    "board.version",
    "bootrom",
    "bootvars",
    "chassis.asset_tag",
    "chassis.manufacturer",
    "chassis.serial_number",
    "chassis.sku",
    "chassis.version",
    "cores",
    "cpus",
    "domains.N.cpus",
    "domains.N.domain_policy",
    "domains.N.size",
    "gdb.address",
    "gdb.port",
    "gdb.wait",
    "keyboard.layout",
    "lpc.bootrom",
    "lpc.bootvars",
    "lpc.comN.path",
    "lpc.fwcfg",
    "lpc.pc-testdev",
    "lpc.pcireg.device",
    "lpc.pcireg.revid",
    "lpc.pcireg.subdevice",
    "lpc.pcireg.subvendor",
    "lpc.pcireg.vendor",
    "memory.guest_in_core",
    "memory.size",
    "memory.wired",
    "pci.enable_bars",
    "rtc.use_localtime",
    "sockets",
    "system.family_name",
    "system.manufacturer",
    "system.product_name",
    "system.serial_number",
    "system.sku",
    "system.version",
    "threads",
    "tpm.path",
    "tpm.type",
    "tpm.version",
    "uuid",
    "vcpu.N.cpuset",
    "virtio_msix",
    "x86.mptable",
    "x86.strictio",
    "x86.strictmsr",
    "x86.verbosemsr",
    "x86.vmexit_on_hlt",
    "x86.vmexit_on_pause",
    "x86.x2apic",
];

/// Variables of a device: `pci.BUS.SLOT.FUNCTION.` and one of these.
const OF_A_DEVICE: &[&str] = &[
    // Block devices, and also AHCI and NVMe.
    "bootindex",
    "direct",
    "dsm",
    "eui64",
    "ioslots",
    "maxq",
    "model",
    "nmrr",
    "nocache",
    "nodelete",
    "path",
    "port.N.bootindex",
    "port.N.direct",
    "port.N.model",
    "port.N.nmrr",
    "port.N.nocache",
    "port.N.nodelete",
    "port.N.path",
    "port.N.rev",
    "port.N.ro",
    "port.N.sectorsize",
    "port.N.ser",
    "port.N.sync",
    "port.N.type",
    "qsz",
    "ram",
    "rev",
    "ro",
    "sectorsize",
    "sectsz",
    "ser",
    "sync",
    "type",
    // virtio-scsi.
    "backend",
    "ctl_ringsz",
    "dev",
    "evt_ringsz",
    "iid",
    "num_queues",
    "req_ringsz",
    "seg_max",
    "target",
    "thr_per_q",
    // Interfaces.
    "hook",
    "hostfwd",
    "mac",
    "mtu",
    "open",
    "peerhook",
    "socket",
    // Screen, sound, USB, passthru, shares, bridges.
    "bus",
    "device",
    "devid",
    "func",
    "h",
    "password",
    "pcireg.device",
    "pcireg.revid",
    "pcireg.subdevice",
    "pcireg.subvendor",
    "pcireg.vendor",
    "play",
    "port.N.name",
    "pptdev",
    "rec",
    "rfb",
    "rom",
    "sharename",
    "slot",
    "slot.N.device",
    "tcp",
    "vendor",
    "vga",
    "w",
    "wait",
];

/// Variables that vmctl itself relies on: with another value vmctl could not control the guest.
const OURS: &[(&str, &str)] = &[
    ("name", "it is the guest's name"),
    ("config.dump", "bhyve would print its variables and end; `vmctl argv` shows the command line"),
    ("destroy_on_poweroff", "vmctl looks at the machine before it destroys it"),
];

/// Returns why a guest file may not have a variable, and what to do.
pub fn refusal(name: &str) -> Option<(String, Option<String>)> {
    if let Some((_, why)) = OURS.iter().find(|(ours, _)| *ours == name) {
        return Some((format!("the variable `{name}` is not for guest files: {why}"), None));
    }
    let plain = general(name);
    if GLOBAL.contains(&plain.as_str()) {
        return None;
    }
    if let Some(rest) = plain.strip_prefix("pci.N.N.N.") {
        let given = name.splitn(5, '.').nth(4).unwrap_or(rest);
        return device_refusal(given).map(|(message, hint)| (format!("{message} (`{name}`)"), hint));
    }
    let near = nearest(&plain, GLOBAL.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    Some((format!("bhyve(8) knows no variable `{name}`, and would ignore it"), near))
}

/// Returns the same for the variable of a device, and so for a name in its `options`.
pub fn device_refusal(name: &str) -> Option<(String, Option<String>)> {
    let plain = general(name);
    if OF_A_DEVICE.contains(&plain.as_str()) {
        return None;
    }
    let near = nearest(&plain, OF_A_DEVICE.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    Some((format!("no device of bhyve(8) knows `{name}`, and it would be ignored"), near))
}

/// Returns a name with `N` instead of each number between dots, and of that of a serial port.
fn general(name: &str) -> String {
    let part = |part: &str| match part {
        part if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => "N".to_owned(),
        "com1" | "com2" | "com3" | "com4" => "comN".to_owned(),
        part => part.to_owned(),
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bhyve_would_ignore_in_silence_is_refused() {
        for known in
            ["x86.strictmsr", "pci.0.4.0.maxq", "lpc.com2.path", "vcpu.3.cpuset", "pci.1.31.7.port.2.path", "domains.0.cpus"]
        {
            assert_eq!(refusal(known), None, "{known}");
        }
        for (unknown, near) in [("x86.strctmsr", "x86.strictmsr"), ("memory.sise", "memory.size"), ("pci.0.4.0.maxqq", "maxq")] {
            let (message, hint) = refusal(unknown).expect(unknown);
            assert!(message.contains(unknown) && hint.unwrap().contains(near), "{message}");
        }
        for ours in ["name", "config.dump", "destroy_on_poweroff", "", ".", "pci.0.4.0", "pci.0.4.0."] {
            assert!(refusal(ours).is_some(), "{ours}");
        }
    }
}
