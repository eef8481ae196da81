//! PCI devices of the host that a guest can have, as pciconf(8) lists them, and the state of the IOMMU.
//!
//! `usr.sbin/pciconf/pciconf.c`, list_devs: one line per device, `NAMEUNIT@pciDOMAIN:BUS:SLOT:FUNCTION:` and
//! `key=value` words; until 12 `chip=` and `card=`, since 13 `vendor=`, `device=` and the subsystem's. With `-v`,
//! indented lines `vendor = '...'`. A device whose driver is ppt(4) can be given to a guest; drivers are chosen at boot
//! by `pptdevs` in loader.conf(5) (128 characters each in `pptdevs`, `pptdevs2` and `pptdevs3`), or later by devctl(8).

use serde::Serialize;

use super::error::HostError;
use super::program;

/// A PCI device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Name in guest files: `bus/slot/function`.
    pub device: String,
    /// Name for devctl(8): `pciDOMAIN:BUS:SLOT:FUNCTION`.
    pub selector: String,
    /// The driver that has it, with its unit; `none` without one.
    pub driver: String,
    /// Whether a guest can have it now.
    pub ready: bool,
    /// Whether it can be given to a guest at all: bridges cannot.
    pub possible: bool,
    /// Name of the vendor.
    pub vendor: String,
    /// Name of the model.
    pub model: String,
    /// Name of the device class.
    pub class: String,
}

/// State of the IOMMU, which restricts a device's access to the host's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Iommu {
    /// vmm(4) uses it.
    On,
    /// The firmware describes one. vmm(4) uses it when the first guest starts.
    Present(&'static str),
    /// It exists and is turned off by a tunable.
    Off(&'static str),
    /// The firmware describes none.
    Absent,
    /// Only root can find out.
    Unknown,
}

/// Returns the PCI devices of this host.
pub fn devices() -> Result<Vec<PciDevice>, HostError> {
    Ok(parse(&program::run("pciconf", &["-l", "-v"])?))
}

/// Reads `pciconf -lv`.
pub fn parse(text: &str) -> Vec<PciDevice> {
    let mut found: Vec<PciDevice> = Vec::new();
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            found.extend(head(line));
            continue;
        }
        let (Some(device), Some((key, value))) = (found.last_mut(), line.split_once('=')) else { continue };
        let value = value.trim().trim_matches('\'').to_owned();
        match key.trim() {
            "vendor" => device.vendor = value,
            "device" => device.model = value,
            "class" => device.class = value,
            "subclass" => device.class = format!("{}, {value}", device.class),
            _ => {}
        }
    }
    found
}

fn head(line: &str) -> Option<PciDevice> {
    let (driver, rest) = line.split_once('@')?;
    let selector = rest.split_whitespace().next()?.strip_suffix(':')?;
    let mut parts = selector.strip_prefix("pci")?.rsplitn(4, ':');
    let (function, slot, bus) = (parts.next()?, parts.next()?, parts.next()?);
    if ![function, slot, bus].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())) {
        return None;
    }
    let header = rest.split_whitespace().find_map(|word| word.strip_prefix("hdr=0x"));
    // The low seven bits are the layout: 0 is a device, 1 a PCI bridge, 2 a CardBus bridge.
    let layout = header.and_then(|text| u8::from_str_radix(text, 16).ok()).unwrap_or(0) & 0x7f;
    let bare = driver.trim_end_matches(|c: char| c.is_ascii_digit());
    Some(PciDevice {
        device: format!("{bus}/{slot}/{function}"),
        selector: selector.to_owned(),
        driver: if bare == "none" { "none".into() } else { driver.to_owned() },
        ready: bare == "ppt",
        possible: layout == 0,
        vendor: String::new(),
        model: String::new(),
        class: String::new(),
    })
}

/// Returns the state of the IOMMU: `hw.vmm.iommu.*` (`sys/amd64/vmm/io/iommu.c`), `hw.vmm.amdvi.enable`, and the ACPI
/// tables DMAR (Intel) and IVRS (AMD), which only root can read; `acpidump -t` begins each with `  SIGNATURE: Length=`
/// (`usr.sbin/acpi/acpidump/acpi.c`, acpi_print_sdt).
pub fn iommu() -> Iommu {
    let sysctl = |name: &str| program::run("sysctl", &["-n", name]).ok().map(|text| text.trim().to_owned());
    if sysctl("hw.vmm.iommu.initialized").as_deref() == Some("1") {
        return Iommu::On;
    }
    if sysctl("hw.vmm.iommu.enable").as_deref() == Some("0") {
        return Iommu::Off("hw.vmm.iommu.enable=1");
    }
    let Ok(tables) = program::run("acpidump", &["-t"]) else { return Iommu::Unknown };
    let has =
        |table: &str| tables.lines().any(|line| line.trim_start().strip_prefix(table).is_some_and(|rest| rest.starts_with(':')));
    match (has("DMAR"), has("IVRS")) {
        (true, _) => Iommu::Present("VT-d"),
        (_, true) if sysctl("hw.vmm.amdvi.enable").as_deref() == Some("0") => Iommu::Off("hw.vmm.amdvi.enable=1"),
        (_, true) => Iommu::Present("AMD-Vi"),
        _ => Iommu::Absent,
    }
}

impl Iommu {
    /// Returns a description, and what to do about it.
    pub fn words(&self) -> (String, Option<String>) {
        match self {
            Iommu::On => ("in use".into(), None),
            Iommu::Present(name) => (format!("{name}; used when the first guest with a device starts"), None),
            Iommu::Off(line) => ("turned off".into(), Some(format!("write `{line}` into /boot/loader.conf and boot again"))),
            Iommu::Absent => {
                ("none: no device can be given to a guest".into(), Some("turn on VT-d or AMD-Vi in the host's firmware".into()))
            }
            Iommu::Unknown => ("only root can find out".into(), None),
        }
    }
}

/// Returns the lines of loader.conf(5) that give these devices to ppt(4) at boot, in addition to those of `present`,
/// the three variables as they are now. Returns `None` if they do not fit.
pub fn loader_lines(present: [&str; 3], wanted: &[String]) -> Option<Vec<(&'static str, String)>> {
    const NAMES: [&str; 3] = ["pptdevs", "pptdevs2", "pptdevs3"];
    /// Maximum length that the kernel reads of each (`sys/amd64/vmm/io/ppt.c` gets them into a buffer of 128).
    const LIMIT: usize = 127;
    let mut values = present.map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>());
    let mut changed = [false; 3];
    for device in wanted {
        if values.iter().flatten().any(|other| other == device) {
            continue;
        }
        let length = |words: &[String]| words.iter().map(|word| word.len() + 1).sum::<usize>();
        let at = (0..3).find(|at| length(&values[*at]) + device.len() <= LIMIT)?;
        values[at].push(device.clone());
        changed[at] = true;
    }
    Some((0..3).filter(|at| changed[*at]).map(|at| (NAMES[at], values[at].join(" "))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
hostb0@pci0:0:0:0:\tclass=0x060000 rev=0x07 hdr=0x00 vendor=0x8086 device=0x3ec2 subvendor=0x1028 subdevice=0x085a
    vendor     = 'Intel Corporation'
    device     = '8th Gen Core Host Bridge'
    class      = bridge
    subclass   = HOST-PCI
pcib1@pci0:0:1:0:\tclass=0x060400 rev=0x07 hdr=0x01 vendor=0x8086 device=0x1901 subvendor=0x1028 subdevice=0x085a
    class      = bridge
ppt0@pci0:5:0:1:\tclass=0x020000 card=0x00018086 chip=0x15218086 rev=0x01 hdr=0x80
    vendor     = 'Intel Corporation'
    device     = 'I350 Gigabit Network Connection'
    class      = network
    subclass   = ethernet
none3@pci0:6:0:0:\tclass=0x0c0330 rev=0x03 hdr=0x00 vendor=0x1912 device=0x0014
";

    #[test]
    fn devices_are_read_as_old_and_new_releases_list_them() {
        let all = parse(OUTPUT);
        assert_eq!(all.len(), 4);
        assert_eq!((all[0].device.as_str(), all[0].driver.as_str(), all[0].ready), ("0/0/0", "hostb0", false));
        assert!(!all[1].possible && all[2].possible);
        assert_eq!(all[2].selector, "pci0:5:0:1");
        assert!(all[2].ready);
        assert_eq!(all[2].model, "I350 Gigabit Network Connection");
        assert_eq!(all[2].class, "network, ethernet");
        assert_eq!((all[3].driver.as_str(), all[3].device.as_str()), ("none", "6/0/0"));
    }

    #[test]
    fn any_text_is_read_without_harm() {
        for cut in 0..OUTPUT.len() {
            let _ = parse(&OUTPUT[cut..]);
        }
        assert!(parse("x@pci0\ny@pci:\nz@pci0:a:b:c:\n  = \n").is_empty());
    }

    #[test]
    fn devices_are_added_to_the_first_variable_that_has_room() {
        let wanted = ["5/0/0".to_owned(), "6/0/0".to_owned()];
        assert_eq!(loader_lines(["6/0/0", "", ""], &wanted), Some(vec![("pptdevs", "6/0/0 5/0/0".to_owned())]));
        assert_eq!(loader_lines(["5/0/0 6/0/0", "", ""], &wanted), Some(Vec::new()));
        let full = "1/0/0 ".repeat(21);
        assert_eq!(loader_lines([&full, "", ""], &wanted[..1]), Some(vec![("pptdevs2", "5/0/0".to_owned())]));
        assert_eq!(loader_lines([&full, &full, &full], &wanted[..1]), None);
    }
}
