//! Checks of `vmctl doctor` on FreeBSD: processor, modules, firmware, sysctls, IOMMU, pf, jails, ZFS, rc.
//!
//! Once it is loaded, vmm(4) shows the features of the processor: `hw.vmm.vmx.initialized` and `hw.vmm.vmx.cap.*`
//! (`sys/amd64/vmm/intel/vmx.c`), `hw.vmm.svm.features` (`sys/amd64/vmm/amd/svm.c`; all ones until it is loaded on an
//! AMD processor). Before that, the kernel's boot messages do ([`Features`]).

use std::path::Path;

use super::super::jail::{self, JailNeeds};
use super::super::passthru::{self, Iommu};
use super::super::pf;
use super::super::processor::{Features, Fitness};
use super::super::program;
use super::super::rc;
use super::super::sysrc::RcConf;
use super::Finding;

/// Needs of this host's guests and switches.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// The names of all switches that are declared, if that is known.
    #[cfg(target_os = "linux")]
    pub switches: Option<Vec<String>>,
    /// There are guests with UEFI firmware of the ports.
    pub uefi: bool,
    /// There are guests with grub-bhyve.
    pub grub: bool,
    /// There are guests with bhyveload.
    pub bhyveload: bool,
    /// There are guests with a TPM in software.
    pub swtpm: bool,
    /// There are guests with limits.
    pub limits: bool,
    /// There are guests with PCI devices of the host.
    pub passthru: bool,
    /// There is a switch with NAT.
    pub nat: bool,
    /// There is a switch with DHCP.
    pub dhcp: bool,
    /// The jails of guests.
    pub jails: Vec<JailNeeds>,
    /// Volumes of guests that both the host and the guest cache.
    pub cached_twice: Vec<String>,
}

/// Path at which the ports install the firmware (sysutils/edk2, flavour bhyve).
const FIRMWARE: &str = "/usr/local/share/uefi-firmware/BHYVE_UEFI.fd";

/// Runs all checks.
pub fn examine(needs: &Needs) -> Vec<Finding> {
    let mut findings = vec![release(), processor()];
    findings.extend([module("vmm", true), module("nmdm", true), module("if_bridge", false), module("if_tuntap", false)]);
    findings.push(tap());
    findings.extend(programs(needs));
    findings.push(iommu(needs.passthru));
    if needs.limits {
        findings.push(racct());
    }
    if needs.nat {
        findings.push(packet_filter());
    }
    findings.extend(needs.jails.iter().map(jail_of));
    findings.extend(needs.cached_twice.iter().map(|volume| cached_twice(volume)));
    findings.push(autostart());
    findings.extend(rc::beside_vm_bhyve(&RcConf::of(Path::new("/"))).map(|(words, hint)| note("vm-bhyve", words, hint)));
    findings
}

fn sysctl(name: &str) -> Option<String> {
    program::run("sysctl", &["-n", name]).ok().map(|text| text.trim().to_owned())
}

fn note(check: &'static str, words: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { hint: Some(hint.into()), ..Finding::note(check, words) }
}

fn release() -> Finding {
    let (kernel, world) = match program::run("freebsd-version", &["-k", "-u"]) {
        Ok(text) => {
            let mut lines = text.lines().map(str::to_owned);
            (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
        }
        Err(error) => return Finding::note("freebsd", error.to_string()),
    };
    let series = |version: &str| version.split('-').next().unwrap_or_default().to_owned();
    let running = program::run("uname", &["-r"]).map(|text| text.trim().to_owned()).unwrap_or_default();
    if series(&running) != series(&kernel) || series(&running) != series(&world) {
        let words = format!("{running} runs; {kernel} and {world} are installed");
        return note("freebsd", words, "bhyve of one release and vmm(4) of another may not match: boot the installed kernel");
    }
    Finding::good("freebsd", running)
}

fn processor() -> Finding {
    if sysctl("hw.vmm.vmx.initialized").as_deref() == Some("1") {
        return match sysctl("hw.vmm.vmx.cap.unrestricted_guest").as_deref() {
            Some("1") => Finding::good("processor", "VT-x with EPT and unrestricted guests"),
            _ => note("processor", "VT-x with EPT, without unrestricted guests", "such a guest has one virtual CPU, and no UEFI"),
        };
    }
    // All ones mean "not asked yet" (svm.c initialises it so). sysctl prints them unsigned or as -1.
    let svm = sysctl("hw.vmm.svm.features").filter(|text| !matches!(text.as_str(), "-1" | "4294967295" | "0"));
    if svm.is_some() {
        return Finding::good("processor", "AMD-V with nested paging");
    }
    let model = sysctl("hw.model").unwrap_or_else(|| "the processor".into());
    match Features::of_this_host() {
        Some(found) => words_for(&model, &found),
        None => Finding::note("processor", format!("{model}; its features are known when vmm(4) is loaded")),
    }
}

fn words_for(model: &str, found: &Features) -> Finding {
    const RUNS_ANYWHERE: &str = "guests run under `engine = \"embedded\"`";
    match found.fitness() {
        Fitness::Unknown => {
            Finding::note("processor", format!("{model}; its boot messages are gone: load vmm(4) to learn its features"))
        }
        Fitness::Bad(why) if found.popcnt => {
            let hint = format!("turn on VT-x or AMD-V in the host's firmware; until then {RUNS_ANYWHERE}");
            Finding::bad("processor", format!("{model} {why}"), hint)
        }
        Fitness::Bad(why) => Finding::bad("processor", format!("{model} {why}"), RUNS_ANYWHERE),
        Fitness::Restricted => note(
            "processor",
            format!("{model}: EPT, without unrestricted guests"),
            "such a guest has one virtual CPU, and no UEFI",
        ),
        Fitness::Good if found.nested_paging => Finding::good("processor", format!("{model}: nested paging")),
        Fitness::Good => Finding::good("processor", format!("{model}: EPT and unrestricted guests")),
    }
}

fn module(name: &'static str, needed: bool) -> Finding {
    if program::run("kldstat", &["-q", "-m", name]).is_ok() {
        return Finding::good("module", format!("{name} is loaded"));
    }
    let words = format!("{name} is not loaded; vmctl loads it when a guest or a switch needs it");
    match needed {
        true => note("module", words, "`vmctl host setup` loads it at boot"),
        false => Finding::note("module", words),
    }
}

fn tap() -> Finding {
    match sysctl("net.link.tap.up_on_open").as_deref() {
        Some("1") => Finding::good("net.link.tap.up_on_open", "1"),
        Some(value) => {
            note("net.link.tap.up_on_open", value.to_owned(), "vmctl brings its taps up itself; others need `vmctl host setup`")
        }
        None => Finding::note("net.link.tap.up_on_open", "missing until if_tuntap is loaded"),
    }
}

fn programs(needs: &Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    let file = |check, path: &str, package: &str| match Path::new(path).exists() {
        true => Finding::good(check, path.to_owned()),
        false => Finding::bad(check, format!("`{path}` is not there, and a guest needs it"), package.to_owned()),
    };
    let program = |check, name: &str, package: &str| match program::find(name) {
        Some(path) => Finding::good(check, path.display().to_string()),
        None => Finding::bad(check, format!("`{name}` is not installed, and a guest or switch needs it"), package.to_owned()),
    };
    findings.push(program("bhyve", "bhyve", "it is part of FreeBSD for amd64 and arm64"));
    if needs.uefi {
        findings.push(file("firmware", FIRMWARE, "`pkg install edk2-bhyve`, or `uefi.firmware` in the guest's file"));
    }
    if needs.bhyveload {
        findings.push(file("bhyveload", "/boot/userboot.so", "it is part of FreeBSD's base system"));
    }
    if needs.grub {
        findings.push(program("grub-bhyve", "grub-bhyve", "`pkg install grub2-bhyve`"));
    }
    if needs.swtpm {
        findings.push(program("swtpm", "swtpm", "`pkg install swtpm`"));
    }
    if needs.dhcp {
        findings.push(program("dnsmasq", "dnsmasq", "`pkg install dnsmasq`"));
    }
    findings
}

fn iommu(needed: bool) -> Finding {
    let state = passthru::iommu();
    let (words, hint) = state.words();
    match (state, hint) {
        (Iommu::On | Iommu::Present(_), _) => Finding::good("iommu", words),
        (_, Some(hint)) if needed => Finding::bad("iommu", format!("{words}; a guest has a PCI device of the host"), hint),
        (_, hint) => Finding { hint, ..Finding::note("iommu", words) },
    }
}

fn racct() -> Finding {
    match sysctl("kern.racct.enable").as_deref() {
        Some("1") => Finding::good("kern.racct.enable", "1"),
        _ => Finding::bad(
            "kern.racct.enable",
            "off, and guests have limits",
            "`vmctl host setup --write` puts it into /boot/loader.conf; then boot again",
        ),
    }
}

fn packet_filter() -> Finding {
    match pf::look() {
        Err(error) => Finding::note("pf", error.to_string()),
        Ok(pf) => match pf::check(&pf, "of the host file") {
            Ok(()) if pf.blocks && !pf.filter_anchor => note(
                "pf",
                "its rules block traffic and do not have vmctl's anchor",
                format!("add the line {} to /etc/pf.conf", pf::FILTER_LINE),
            ),
            Ok(()) => Finding::good("pf", format!("runs, with {}", pf::NAT_LINE)),
            Err(error) => Finding::bad("pf", error.to_string(), error.next_step().unwrap_or_default()),
        },
    }
}

fn jail_of(needs: &JailNeeds) -> Finding {
    let hint = format!("`vmctl jail prepare {}` shows what it needs", needs.name);
    match jail::check(needs) {
        Ok(wrong) if wrong.is_empty() => Finding::good("jail", format!("{} may use vmm(4) and sees its devices", needs.name)),
        Ok(wrong) => Finding::bad("jail", format!("{}: {}", needs.name, wrong.join("; ")), hint),
        Err(error) => Finding::bad("jail", error.to_string(), error.next_step().unwrap_or(&hint)),
    }
}

fn cached_twice(volume: &str) -> Finding {
    note(
        "zfs",
        format!("`{volume}` is cached by the host, and again by a guest that uses ZFS itself"),
        format!("if the guest is on ZFS: `zfs set primarycache=metadata {volume}`"),
    )
}

fn autostart() -> Finding {
    let root = Path::new("/");
    match rc::missing(&RcConf::of(root), root) {
        Ok(None) => Finding::good("autostart", "rc(8) starts guests with this host"),
        Ok(Some(hint)) => note("autostart", "guests do not start with this host", hint),
        Err(error) => Finding::note("autostart", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_processor_is_judged_by_its_boot_messages() {
        let intel = "  Features2=0x1<SSE3,VMX,POPCNT>\n  VT-x: PAT,HLT,EPT,UG\n";
        let verdict = |boot: &str| words_for("X", &Features::parse(boot)).verdict;
        assert_eq!(verdict(intel), Verdict::Good);
        assert_eq!(verdict(&intel.replace(",UG", "")), Verdict::Note);
        assert_eq!(verdict(""), Verdict::Note);
        let off = words_for("X", &Features::parse(&intel.replace("PAT", "(disabled in BIOS) PAT")));
        assert!(off.verdict == Verdict::Bad && off.hint.expect("one").contains("firmware"));
        let amd = words_for("X", &Features::parse("  Features2=0x1<POPCNT>\n  SVM: NP,NRIP\n"));
        assert_eq!(amd.words, "X: nested paging");
    }
}
