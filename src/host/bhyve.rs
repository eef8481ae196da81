//! Features of the host's bhyve(8). They are probed, not only looked up in a table of versions.
//!
//! The probe is the text of `bhyve -s help` (one device model per line, `pci_emul.c` pci_print_supported_devices),
//! `bhyve -l help` (`pci_lpc.c` lpc_print_supported_devices), the usage text of bhyve and of bhyvectl, and sysctls
//! (`kern.osreldate`, `hw.vmm.maxcpu`, `hw.ncpu`). Features that none of these shows, like the backends of a network
//! device, follow from `kern.osreldate` (`sys/sys/param.h` __FreeBSD_version: 1302001 is 13.2).
//!
//! **Hostile input.** The texts come from programs of the host. Lines that are not understood are skipped. At most 64
//! KiB of each text is read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::error::HostError;
use super::program;

/// Maximum number of bytes of a probe's text that are read.
const MOST: usize = 64 * 1024;
/// The first release in which a guest can have as many virtual CPUs as the host has CPUs.
const MANY_CPUS: u32 = 1_302_001;

/// Outputs of a probe.
#[derive(Debug, Clone, Default)]
pub struct ProbeOutputs {
    /// Output of `bhyve -s help`.
    pub devices: String,
    /// Output of `bhyve -l help`.
    pub lpc: String,
    /// Output of `bhyve -h`, both streams.
    pub usage: String,
    /// Output of `bhyvectl` without arguments, both streams.
    pub bhyvectl: String,
    /// `kern.osreldate`.
    pub osreldate: u32,
    /// Value of `hw.vmm.maxcpu`, if it exists: vmm(4) is loaded.
    pub max_cpus: Option<u32>,
    /// `hw.ncpu`.
    pub host_cpus: Option<u32>,
}

/// Features of the host's bhyve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFeatures {
    /// `__FreeBSD_version`.
    pub osreldate: u32,
    /// Device models of `-s`.
    pub devices: BTreeSet<String>,
    /// Devices of `-l`, in lower case.
    pub lpc: BTreeSet<String>,
    /// Flags of the usage text, one letter each.
    pub flags: BTreeSet<char>,
    /// Whether guests can be suspended to a file: bhyve was built with BHYVE_SNAPSHOT.
    pub snapshot: bool,
    /// Maximum number of virtual CPUs of a guest.
    pub max_cpus: u32,
}

/// A feature that came with a release and that no probe shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Name of the feature, for messages.
    pub what: &'static str,
    /// `__FreeBSD_version` of the first release that has it.
    pub osreldate: u32,
    /// Name of that release.
    pub release: &'static str,
}

impl Since {
    const fn new(what: &'static str, osreldate: u32, release: &'static str) -> Self {
        Self { what, osreldate, release }
    }
}

/// The `-f` flag and `fwcfg=qemu` (`qemu_fwcfg.c`).
pub const FW_CFG: Since = Since::new("the QEMU firmware configuration device", 1_400_000, "FreeBSD 14.0");
/// `bootindex=` (`pci_emul.c` pci_emul_add_boot_device).
pub const BOOT_INDEX: Since = Since::new("the boot order", 1_400_000, "FreeBSD 14.0");
/// `-l tpm,passthru` (`tpm_emul_passthru.c`).
pub const TPM: Since = Since::new("a TPM", 1_400_000, "FreeBSD 14.0");
/// `-l tpm,swtpm` (`tpm_emul_swtpm.c`).
pub const SWTPM: Since = Since::new("swtpm", 1_500_000, "FreeBSD 15.0");
/// `slirp` (`net_backend_slirp.c`): in stable/14 at 1400507, before 14.1; 14.0 was not at hand.
pub const SLIRP: Since = Since::new("the user-mode network (slirp)", 1_400_507, "FreeBSD 14.1");
/// `slirp,open`.
pub const SLIRP_OPEN: Since = Since::new("a user-mode network that lets the guest out", 1_501_000, "FreeBSD 15.1");
/// `rfb=unix:` (`pci_fbuf.c`, `rfb.c`).
pub const VNC_SOCKET: Since = Since::new("VNC on a socket", 1_500_000, "FreeBSD 15.0");
/// Resolutions beyond 1920x1200 (`pci_fbuf.c` COLS_MAX, ROWS_MAX): all of 14 has these bounds, as FreeBSD's patch of
/// SA-26:72 for 14 shows; main has 3840x2160 before 15.0.
pub const LARGE_SCREEN: Since = Since::new("a screen beyond 1920x1200", 1_500_000, "FreeBSD 15.0");
/// `-l com1,tcp=` (`uart_backend.c`).
pub const COM_TCP: Since = Since::new("a serial port on a TCP port", 1_500_000, "FreeBSD 15.0");
/// `-n` (`bhyverun.c` parse_numa_options).
pub const NUMA: Since = Since::new("NUMA domains", 1_500_000, "FreeBSD 15.0");
/// system.*, board.* and chassis.* of bhyve_config(5) (`smbiostbl.c`): in stable/14 at 1400507, as [`SLIRP`].
pub const SMBIOS: Since = Since::new("SMBIOS strings", 1_400_507, "FreeBSD 14.1");
/// acpi_tables_in_memory of bhyve_config(5) (`basl.c`).
pub const ACPI_IN_MEMORY: Since = Since::new("ACPI tables outside of memory", 1_400_000, "FreeBSD 14.0");
/// `-K` (`ps2kbd.c`).
pub const KEYBOARD: Since = Since::new("keyboard layouts", 1_300_000, "FreeBSD 13.0");
/// `ppt0` for a passthru device (`pci_passthru.c` passthru_lookup_pptdev).
pub const PPT_NAMES: Since = Since::new("the names of ppt(4) devices", 1_400_000, "FreeBSD 14.0");
/// `rom=` of passthru devices (`pci_passthru.c` passthru_init_rom).
pub const PASSTHRU_ROM: Since = Since::new("option ROMs of passthru devices", 1_400_000, "FreeBSD 14.0");
/// `path=` of netgraph backends (`net_backend_netgraph.c`).
pub const NETGRAPH: Since = Since::new("netgraph backends", 1_300_000, "FreeBSD 13.0");

impl HostFeatures {
    /// Reads the outputs of a probe.
    pub fn parse(outputs: &ProbeOutputs) -> HostFeatures {
        let words = |text: &str| -> BTreeSet<String> {
            let lines = cut(text).lines().map(str::trim);
            let plain = |line: &&str| {
                (1..=32).contains(&line.len()) && line.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            };
            lines.filter(plain).map(str::to_ascii_lowercase).collect()
        };
        HostFeatures {
            osreldate: outputs.osreldate,
            devices: words(&outputs.devices),
            lpc: words(&outputs.lpc),
            flags: flags(cut(&outputs.usage)),
            snapshot: cut(&outputs.bhyvectl).contains("--suspend"),
            // This is the value that hw.vmm.maxcpu gets when vmm is loaded (`sys/amd64/vmm/vmm.c` vmm_init), unless a
            // tunable sets another. Before 13.2 the maximum was 16 (VM_MAXCPU of machine/vmm.h).
            max_cpus: match (outputs.max_cpus, outputs.host_cpus) {
                (Some(most), _) => most,
                (None, Some(cpus)) if outputs.osreldate >= MANY_CPUS => cpus,
                _ => 16,
            },
        }
    }

    /// Returns whether the release has the feature.
    pub fn has(&self, since: Since) -> bool {
        self.osreldate >= since.osreldate
    }

    /// Returns whether bhyve needs `-A` for ACPI tables: up to 13 there were no tables without it (`bhyverun.c`).
    pub fn wants_acpi_flag(&self) -> bool {
        self.osreldate < 1_400_000
    }

    /// Returns the release in words, like `FreeBSD 13.2`.
    pub fn release(&self) -> String {
        format!("FreeBSD {}.{}", self.osreldate / 100_000, self.osreldate / 1000 % 100)
    }

    /// Probes this host. `run` runs a program and returns its output, both streams, or an error. Missing answers are an
    /// error too: without its devices every guest would be refused for the wrong reason.
    pub fn probe(run: impl Fn(&str, &[&str]) -> Result<String, HostError>) -> Result<HostFeatures, HostError> {
        let usage_of = |program: &str, arguments: &[&str], wanted: &str| -> Result<String, HostError> {
            let text = run(program, arguments)?;
            match text.lines().any(|line| line.trim().eq_ignore_ascii_case(wanted)) {
                true => Ok(text),
                false => {
                    let words = cut(&text).lines().map(str::trim).filter(|line| !line.is_empty()).take(8).collect::<Vec<_>>();
                    Err(format!("`{}` does not list its features: {}", program::typed(program, arguments), words.join("; "))
                        .into())
                }
            }
        };
        let number = |name: &str| -> Result<u32, HostError> {
            let text = run("sysctl", &["-n", name])?;
            text.trim().parse().map_err(|_| format!("`sysctl -n {name}` gives no number: {}", text.trim()).into())
        };
        let outputs = ProbeOutputs {
            devices: usage_of("bhyve", &["-s", "help"], "hostbridge")?,
            lpc: usage_of("bhyve", &["-l", "help"], "com1")?,
            usage: run("bhyve", &["-h"])?,
            bhyvectl: run("bhyvectl", &[])?,
            osreldate: number("kern.osreldate")?,
            // It does not exist before vmm(4) is loaded.
            max_cpus: number("hw.vmm.maxcpu").ok(),
            host_cpus: number("hw.ncpu").ok(),
        };
        Ok(HostFeatures::parse(&outputs))
    }

    /// Probes the host that this runs on. The error says why the features are not known.
    pub fn of_this_host() -> Result<HostFeatures, HostError> {
        if !program::is_freebsd() {
            return Err("this host has no bhyve(8): it is not FreeBSD".into());
        }
        HostFeatures::probe(|program, arguments| {
            let file = program::find(program).ok_or_else(|| format!("there is no program `{program}`"))?;
            let output = std::process::Command::new(file).args(arguments).stdin(std::process::Stdio::null()).output();
            let output = output.map_err(|error| format!("cannot run `{program}`: {error}"))?;
            let mut text = output.stdout;
            text.extend(output.stderr);
            Ok(String::from_utf8_lossy(&text).into_owned())
        })
    }

    /// The releases that [`Self::of_release`] knows.
    pub const RELEASES: [&'static str; 5] = ["13.2", "14.0", "14.3", "15.0", "current"];

    /// Returns the features of a release's bhyve on amd64, from its sources: for command lines that will run elsewhere.
    pub fn of_release(name: &str) -> Option<HostFeatures> {
        let release = match name.strip_suffix("-RELEASE").unwrap_or(name).to_ascii_lowercase().as_str() {
            "13.2" | "13" => &RELEASE_13_2,
            "14.0" => &RELEASE_14_0,
            "14.3" | "14" => &RELEASE_14_3,
            "15.0" | "15" => &RELEASE_15_0,
            "current" | "16.0" | "16" => &CURRENT,
            _ => return None,
        };
        let outputs = ProbeOutputs {
            devices: release.devices.into(),
            lpc: release.lpc.into(),
            usage: release.usage.into(),
            bhyvectl: String::new(),
            osreldate: release.osreldate,
            // The host's number of CPUs is not known: take as many as a guest file can ask for.
            max_cpus: Some(64),
            host_cpus: None,
        };
        Some(HostFeatures::parse(&outputs))
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MOST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Returns the flags in the usage text: lines like `-A: create ACPI tables`, and those in its first brackets.
fn flags(usage: &str) -> BTreeSet<char> {
    let mut found = BTreeSet::new();
    for line in usage.lines() {
        let mut rest = line.trim_start().chars();
        if let (Some('-'), Some(flag), Some(':')) = (rest.next(), rest.next(), rest.next()) {
            found.insert(flag);
        }
        if line.starts_with("Usage:")
            && let Some((_, rest)) = line.split_once("[-")
            && let Some((letters, _)) = rest.split_once(']')
        {
            found.extend(letters.chars().filter(char::is_ascii_alphabetic));
        }
    }
    found
}

/// Outputs of the programs of one release.
struct Release {
    osreldate: u32,
    devices: &'static str,
    lpc: &'static str,
    usage: &'static str,
}

/// `usr.sbin/bhyve` of releng/13.2: the PCI_EMUL_SET entries of pci_*.c; `pci_lpc.c`; usage() of `bhyverun.c`.
const RELEASE_13_2: Release = Release {
    osreldate: 1_302_001,
    devices: include_str!("bhyve_probes/13.2-devices.txt"),
    lpc: "bootrom\ncom1\ncom2\ncom3\ncom4\npc-testdev\n",
    usage: include_str!("bhyve_probes/13.2-usage.txt"),
};
/// releng/14.0: the same devices and igd-lpc (`pci_gvt-d.c`); tpm (`tpm_device.c`).
const RELEASE_14_0: Release = Release {
    osreldate: 1_400_097,
    devices: include_str!("bhyve_probes/14-devices.txt"),
    lpc: "bootrom\ncom1\ncom2\ncom3\ncom4\ntpm\npc-testdev\n",
    usage: include_str!("bhyve_probes/14-usage.txt"),
};
/// releng/14.3.
const RELEASE_14_3: Release = Release { osreldate: 1_403_000, ..RELEASE_14_0 };
/// releng/15.0: usage in `amd64/bhyverun_machdep.c` bhyve_usage(), without -A and with -n.
const RELEASE_15_0: Release = Release { osreldate: 1_500_068, usage: include_str!("bhyve_probes/15-usage.txt"), ..RELEASE_14_0 };
/// main: -M.
const CURRENT: Release = Release { osreldate: 1_600_000, usage: include_str!("bhyve_probes/current-usage.txt"), ..RELEASE_14_0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_each_release_yields_what_its_sources_say() {
        let release = |name| HostFeatures::of_release(name).expect("a known release");
        let old = release("13.2");
        assert_eq!(old.release(), "FreeBSD 13.2");
        assert!(old.wants_acpi_flag() && !old.has(FW_CFG) && !old.lpc.contains("tpm") && old.flags.contains(&'K'));
        assert_eq!(old.max_cpus, 64);
        assert!(old.devices.contains("virtio-9p") && !old.devices.contains("igd-lpc"));
        let fourteen = release("14.3-RELEASE");
        assert!(!fourteen.wants_acpi_flag() && fourteen.has(TPM) && !fourteen.flags.contains(&'n'));
        assert!(fourteen.has(SLIRP) && fourteen.has(SMBIOS) && !fourteen.has(SLIRP_OPEN) && !fourteen.has(LARGE_SCREEN));
        assert!(!release("14.0").has(SLIRP) && !release("14.0").has(SMBIOS) && release("15.0").has(LARGE_SCREEN));
        let fifteen = release("15.0");
        assert!(fifteen.has(SLIRP) && !fifteen.has(SLIRP_OPEN) && fifteen.flags.contains(&'n') && !fifteen.flags.contains(&'M'));
        assert!(release("current").flags.contains(&'M') && release("CURRENT").has(SLIRP_OPEN));
        for name in HostFeatures::RELEASES {
            assert!(release(name).devices.len() > 15, "{name}");
        }
        assert_eq!(HostFeatures::of_release("9.1"), None);
    }

    #[test]
    fn a_guest_has_as_many_cpus_as_vmm_gives_or_will_give() {
        let most = |osreldate, max_cpus| {
            HostFeatures::parse(&ProbeOutputs { osreldate, max_cpus, host_cpus: Some(24), ..ProbeOutputs::default() }).max_cpus
        };
        assert_eq!((most(1_302_001, Some(4)), most(1_302_001, None), most(1_301_000, None)), (4, 24, 16));
    }

    #[test]
    fn a_bhyve_with_snapshots_says_so_in_bhyvectls_usage() {
        let outputs = ProbeOutputs { bhyvectl: "  [--suspend=<file>]\n".into(), ..ProbeOutputs::default() };
        assert!(HostFeatures::parse(&outputs).snapshot);
        assert!(!HostFeatures::parse(&ProbeOutputs::default()).snapshot);
    }

    #[test]
    fn a_probe_of_anything_is_read_without_harm() {
        for text in ["", "\0\u{feff}\u{e9}", "Usage: [-", "Usage: ]-[", "-", &"é".repeat(MOST), "-\u{e9}: x"] {
            let text = text.to_owned();
            let outputs = ProbeOutputs {
                devices: text.clone(),
                lpc: text.clone(),
                usage: text.clone(),
                bhyvectl: text,
                osreldate: u32::MAX,
                max_cpus: None,
                host_cpus: None,
            };
            let features = HostFeatures::parse(&outputs);
            assert!(features.devices.len() <= 1 && features.release().starts_with("FreeBSD "));
        }
    }
}
