//! Permanent settings of a FreeBSD host: lines of rc.conf(5), sysctl.conf(5) and loader.conf(5) as in 24.7.13 of the
//! handbook, and the rc.d script. They are shown first, and written only on request.

use std::path::{Path, PathBuf};

use super::error::HostError;
use super::passthru;
use super::rc;
use super::sysrc::{self, RcConf};

/// Features that this host's guests and switches use.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    /// Resource limits.
    pub limits: bool,
    /// PCI devices, as `bus/slot/function`.
    pub passthru: Vec<String>,
    /// Whether the processors are from AMD, whose IOMMU must be enabled.
    pub amd: bool,
    /// NAT on a switch.
    pub nat: bool,
    /// Bridges of the user, which must exist before guests start.
    pub manual_bridges: Vec<String>,
    /// The longest stop time-out of a guest, in seconds.
    pub stop_seconds: u64,
}

/// A line or file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub file: PathBuf,
    /// The line to write, or a description of a whole file.
    pub line: String,
    /// Reason for the change.
    pub reason: String,
    /// Whether it takes effect only after the next boot.
    pub reboot: bool,
    how: How,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum How {
    Set { name: String, value: String },
    Add { name: String, words: String },
    Line { name: String },
    Script,
}

/// Returns the changes that are missing on the system below `root`.
pub fn plan(root: &Path, uses: &Uses) -> Result<Vec<Change>, HostError> {
    let rc_conf = RcConf::of(root);
    let mut changes = Vec::new();
    modules(root, &rc_conf, uses, &mut changes)?;
    let mut set = |name: &str, value: &str, reason: &str, missing: bool| {
        if missing {
            let how = How::Set { name: name.into(), value: value.into() };
            let line = format!("{name}=\"{value}\"");
            changes.push(Change { file: root.join("etc/rc.conf"), line, reason: reason.into(), reboot: false, how });
        }
    };
    set("vmctl_enable", "YES", "guests start with the host and stop with it", !rc_conf.is_yes("vmctl_enable")?);
    if uses.nat {
        set("gateway_enable", "YES", "a switch has NAT", !rc_conf.is_yes("gateway_enable")?);
        set("pf_enable", "YES", "a switch has NAT", !rc_conf.is_yes("pf_enable")?);
    }
    // rc.shutdown(8) is killed after this time, and init(8) continues after another.
    let wanted = uses.stop_seconds + 30;
    let has = rc_conf.get("rcshutdown_timeout")?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(90);
    let longer = format!("a guest has {} seconds to stop", uses.stop_seconds);
    set("rcshutdown_timeout", &wanted.to_string(), &longer, has < wanted && uses.stop_seconds > 60);
    if has < wanted && uses.stop_seconds > 60 {
        let (name, value) = ("kern.init_shutdown_timeout", (wanted + 30).to_string());
        line(root, "etc/sysctl.conf", name, &format!("{name}={value}"), &value, &longer, false, &mut changes);
    }
    let tap = "net.link.tap.up_on_open";
    line(
        root,
        "etc/sysctl.conf",
        tap,
        &format!("{tap}=1"),
        "1",
        "taps of guests come up when they are opened",
        false,
        &mut changes,
    );
    loader(root, uses, &mut changes)?;
    if !rc::is_installed(root) {
        changes.push(Change {
            file: rc::script_path(root),
            line: "the rc.d script of this vmctl".into(),
            reason: "rc(8) starts and stops guests with it".into(),
            reboot: false,
            how: How::Script,
        });
    }
    Ok(changes)
}

fn modules(root: &Path, rc_conf: &RcConf, uses: &Uses, changes: &mut Vec<Change>) -> Result<(), HostError> {
    let mut add = |name: &str, wanted: &[&str], reason: &str| -> Result<(), HostError> {
        let there = rc_conf.words(name)?;
        let missing: Vec<&str> = wanted.iter().copied().filter(|word| !there.iter().any(|other| other == word)).collect();
        if !missing.is_empty() {
            let words = missing.join(" ");
            changes.push(Change {
                file: root.join("etc/rc.conf"),
                line: format!("{name}=\"{}\"", there.iter().map(String::as_str).chain(missing).collect::<Vec<_>>().join(" ")),
                reason: reason.into(),
                reboot: false,
                how: How::Add { name: name.into(), words },
            });
        }
        Ok(())
    };
    // ppt(4) takes devices only if the loader loads vmm(4). kld_list comes too late for that.
    let kernel: &[&str] = if uses.passthru.is_empty() { &["vmm", "nmdm"] } else { &["nmdm"] };
    add("kld_list", kernel, "bhyve's modules: virtual machines and null modems")?;
    let clonable = |name: &&String| {
        let bare = name.trim_end_matches(|c: char| c.is_ascii_digit());
        bare == "bridge" && bare.len() < name.len()
    };
    let bridges: Vec<&str> = uses.manual_bridges.iter().filter(clonable).map(String::as_str).collect();
    if !bridges.is_empty() {
        add("cloned_interfaces", &bridges, "switches of type `manual` are on it")?;
    }
    Ok(())
}

fn loader(root: &Path, uses: &Uses, changes: &mut Vec<Change>) -> Result<(), HostError> {
    const FILE: &str = "boot/loader.conf";
    let mut put = |name: &str, value: &str, reason: &str| {
        line(root, FILE, name, &format!("{name}=\"{value}\""), value, reason, true, changes);
    };
    if uses.limits {
        put("kern.racct.enable", "1", "guests have limits, which rctl(8) watches");
    }
    if uses.passthru.is_empty() {
        return Ok(());
    }
    put("vmm_load", "YES", "devices are given to guests at boot");
    if uses.amd {
        put("hw.vmm.amdvi.enable", "1", "devices are given to guests, behind AMD's IOMMU");
    }
    let text = read(&root.join(FILE));
    let value = |name: &str| sysrc::value_in(&text, name).unwrap_or_default();
    let present = [value("pptdevs"), value("pptdevs2"), value("pptdevs3")];
    let lines = passthru::loader_lines(present, &uses.passthru).ok_or_else(|| {
        HostError::user("the devices do not fit into `pptdevs`, `pptdevs2` and `pptdevs3` of loader.conf")
            .hint("remove those that no guest uses any more")
    })?;
    for (name, value) in lines {
        put(name, &value, "guests have these devices");
    }
    Ok(())
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[allow(clippy::too_many_arguments, reason = "one line of a table")]
fn line(root: &Path, file: &str, name: &str, text: &str, value: &str, reason: &str, reboot: bool, changes: &mut Vec<Change>) {
    let path = root.join(file);
    if sysrc::value_in(&read(&path), name) != Some(value) {
        let how = How::Line { name: name.into() };
        changes.push(Change { file: path, line: text.into(), reason: reason.into(), reboot, how });
    }
}

/// Writes one change.
pub fn write(root: &Path, change: &Change) -> Result<(), HostError> {
    let rc_conf = RcConf::of(root);
    match &change.how {
        How::Set { name, value } => rc_conf.set(name, value),
        How::Add { name, words } => rc_conf.add(name, words),
        How::Line { name } => sysrc::put_line(&change.file, name, &change.line),
        How::Script => rc::install(root),
    }
}
