//! The jail that a guest's bhyve runs in: the devfs rules and the part of jail.conf(5) that it needs, and the check of
//! a running jail. The handbook describes it in 24.7.9.
//!
//! A jail sees only the device nodes that its devfs(8) ruleset unhides. bhyve needs vmm(4)'s nodes (`vmm` and `vmm/*`,
//! `vmm.io/*`, and since 15 `vmmctl`), the null modems of its consoles, the taps of its interfaces and the volumes of
//! its disks; a directory of devfs must itself be unhidden before its contents are visible.

use std::path::{Path, PathBuf};

use super::environment;
use super::error::{self, HostError};
use super::files::write_atomically;
use super::jail_run;
use super::program;

/// Needs of the guests in a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailNeeds {
    /// The jail's name.
    pub name: String,
    /// Its root directory.
    pub root: PathBuf,
    /// Number of the devfs ruleset.
    pub ruleset: u32,
    /// Volumes of the disks, as `pool/dataset`.
    pub volumes: Vec<String>,
    /// Further device nodes, without `/dev/`, like `nmdm*` or `tap*`.
    pub nodes: Vec<String>,
    /// Whether a guest in it has a PCI device of the host.
    pub passthru: bool,
    /// Whether a guest in it has a tap, for which the jail needs a network stack of its own.
    pub taps: bool,
    /// The bridges of its guests, with the same name on the host and in the jail.
    pub bridges: Vec<String>,
}

impl JailNeeds {
    /// Returns the paths that devfs must show, with directories before their contents.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = ["vmm", "vmm/*", "vmm.io", "vmm.io/*", "vmmctl"].map(str::to_owned).to_vec();
        let mut add = |path: String| {
            if !paths.contains(&path) {
                paths.push(path);
            }
        };
        for node in &self.nodes {
            add(node.clone());
        }
        for volume in &self.volumes {
            let mut path = "zvol".to_owned();
            add(path.clone());
            for part in volume.split('/') {
                path = format!("{path}/{part}");
                add(path.clone());
            }
        }
        if self.passthru {
            add("pci".into());
        }
        paths
    }

    /// Returns the part of /etc/devfs.rules.
    pub fn devfs_rules(&self) -> String {
        let word: String = self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut text = format!("[devfsrules_jail_{word}={}]\n", self.ruleset);
        for set in ["devfsrules_hide_all", "devfsrules_unhide_basic", "devfsrules_unhide_login"] {
            text.push_str(&format!("add include ${set}\n"));
        }
        for path in self.paths() {
            text.push_str(&format!("add path '{path}' unhide\n"));
        }
        text
    }

    /// Returns the part of /etc/jail.conf.
    pub fn jail_conf(&self) -> String {
        let network = match self.taps {
            true => self.vnet(),
            false => "\tip4 = inherit;\n\tip6 = inherit;\n".to_owned(),
        };
        let mut text = format!(
            "{name} {{\n\tpath = \"{root}\";\n\thost.hostname = \"{name}\";\n{network}\
             \tpersist;\n\texec.clean;\n\tsecurelevel = 3;\n\tmount.devfs;\n\tdevfs_ruleset = {ruleset};\n\tallow.vmm;\n",
            name = self.name,
            root = self.root.display(),
            ruleset = self.ruleset,
        );
        if self.passthru {
            text.push_str("\tallow.vmm_ppt;\n");
        }
        text + "}\n"
    }

    /// Returns the lines for a network stack of its own (the handbook, 24.7.9.1): for each bridge of its guests, one of
    /// the same name inside, and a pair of epair(4) between the two. The numbers of pairs follow from the ruleset's
    /// number, which no other jail has.
    fn vnet(&self) -> String {
        let mut text = "\tvnet;\n".to_owned();
        let ends = |at: usize| format!("epair{}{at}", self.ruleset);
        for (at, bridge) in self.bridges.iter().enumerate() {
            let pair = ends(at);
            text.push_str(&format!(
                "\texec.prestart += \"/sbin/ifconfig {pair} create up\";\n\
                 \texec.prestart += \"/sbin/ifconfig {bridge} addm {pair}a\";\n\
                 \tvnet.interface += \"{pair}b\";\n\
                 \texec.start += \"/sbin/ifconfig bridge create name {bridge} up\";\n\
                 \texec.start += \"/sbin/ifconfig {bridge} addm {pair}b\";\n\
                 \texec.start += \"/sbin/ifconfig {pair}b up\";\n\
                 \texec.poststop += \"/sbin/ifconfig {pair}a destroy\";\n"
            ));
        }
        text
    }

    /// Writes both parts into a directory, for review. Returns their paths.
    pub fn write(&self, directory: &Path) -> Result<[PathBuf; 2], HostError> {
        std::fs::create_dir_all(directory).map_err(|error| error::io("make", directory, &error))?;
        let files = [
            (directory.join(format!("{}.devfs.rules", self.name)), self.devfs_rules()),
            (directory.join(format!("{}.jail.conf", self.name)), self.jail_conf()),
        ];
        for (path, text) in &files {
            write_atomically(path, text.as_bytes(), 0o644).map_err(|error| error::io("write", path, &error))?;
        }
        Ok(files.map(|(path, _)| path))
    }
}

/// Returns the first number of a devfs ruleset from 100 that this text of devfs.rules(5) does not use. Sections are
/// `[name=number]`.
pub fn free_ruleset(rules: &str) -> u32 {
    let number =
        |line: &str| -> Option<u32> { line.trim().strip_prefix('[')?.strip_suffix(']')?.split_once('=')?.1.trim().parse().ok() };
    let used: Vec<u32> = rules.lines().filter_map(number).collect();
    (100..).find(|number| !used.contains(number)).expect("there are more numbers than lines")
}

/// Returns the problems of a running jail. There are none if all is as it should be.
pub fn check(needs: &JailNeeds) -> Result<Vec<String>, HostError> {
    // Without -n, jls(8) prints the bare values in the order of the request.
    let text = program::run("jls", &["-j", &needs.name, "allow.vmm", "devfs_ruleset"]).map_err(|error| {
        let words = error.to_string();
        let hint = match words.contains("unknown parameter") {
            true => "`allow.vmm` exists once vmm(4) is loaded: `kldload vmm`".to_owned(),
            false => {
                format!("start it with `service jail onestart {0}`; `vmctl jail prepare {0}` shows how it is made", needs.name)
            }
        };
        HostError::user(format!("jail `{}` cannot be used: {words}", needs.name)).hint(hint)
    })?;
    let mut words = text.split_whitespace();
    let mut wrong = Vec::new();
    if words.next() != Some("true") {
        wrong.push("it does not have `allow.vmm`".to_owned());
    }
    if needs.taps && jail_run::has_vnet(&needs.name) == Ok(false) && jail_run::taps_need_vnet() {
        wrong.push(
            "it has no network stack of its own (`vnet`), without which bhyve cannot use the taps of its guests".to_owned(),
        );
    }
    let ruleset: u32 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    if ruleset != 0 {
        let has_vmmctl = environment::has_entry(&environment::path("/dev"), "vmmctl");
        for path in hidden(needs, &rules_of(ruleset)?, has_vmmctl) {
            wrong.push(format!("its devfs ruleset {ruleset} does not unhide `{path}`"));
        }
    }
    Ok(wrong)
}

/// Returns the paths that the rules do not unhide. `vmmctl` counts where the host has it (`sys/dev/vmm/vmm_dev.c`, since
/// 15): bhyve makes its machine through it, so a jail from before an upgrade needs one more rule.
fn hidden(needs: &JailNeeds, rules: &str, has_vmmctl: bool) -> Vec<String> {
    needs.paths().into_iter().filter(|path| (has_vmmctl || path != "vmmctl") && !unhides(rules, path)).collect()
}

/// Returns the rules of a set and of the sets that it includes, as `devfs rule show` prints them.
fn rules_of(ruleset: u32) -> Result<String, HostError> {
    let (mut sets, mut text) = (vec![ruleset], String::new());
    let mut at = 0;
    while let Some(set) = sets.get(at) {
        let rules = program::run("devfs", &["rule", "-s", &set.to_string(), "show"])?;
        for more in included(&rules) {
            if !sets.contains(&more) {
                sets.push(more);
            }
        }
        text += &rules;
        at += 1;
    }
    Ok(text)
}

/// Returns the sets that rules include. A rule is printed as `NUMBER`, then its object, then its action: `path
/// PATTERN`, `unhide`, and last `include SET` (`sbin/devfs/rule.c`, rulespec_outfp).
fn included(rules: &str) -> Vec<u32> {
    let set = |line: &str| {
        let (_, set) = line.rsplit_once(" include ")?;
        set.trim().parse().ok()
    };
    rules.lines().filter_map(set).collect()
}

/// Returns whether a rule unhides a path. An asterisk at the end of its pattern stands for any text.
fn unhides(rules: &str, path: &str) -> bool {
    rules.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == "path") else { return false };
        let Some(pattern) = words.get(at + 1) else { return false };
        let matches = match pattern.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => *pattern == path,
        };
        matches && words[at + 2..].contains(&"unhide")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> JailNeeds {
        JailNeeds {
            name: "vms".into(),
            root: "/jails/vms".into(),
            ruleset: 100,
            volumes: vec!["zroot/vms/web".into(), "zroot/vms/db".into()],
            nodes: vec!["nmdm*".into(), "tap*".into()],
            passthru: false,
            taps: false,
            bridges: Vec::new(),
        }
    }

    #[test]
    fn the_rules_unhide_what_bhyve_opens_directories_first() {
        assert_eq!(
            needs().devfs_rules(),
            "[devfsrules_jail_vms=100]\n\
             add include $devfsrules_hide_all\n\
             add include $devfsrules_unhide_basic\n\
             add include $devfsrules_unhide_login\n\
             add path 'vmm' unhide\n\
             add path 'vmm/*' unhide\n\
             add path 'vmm.io' unhide\n\
             add path 'vmm.io/*' unhide\n\
             add path 'vmmctl' unhide\n\
             add path 'nmdm*' unhide\n\
             add path 'tap*' unhide\n\
             add path 'zvol' unhide\n\
             add path 'zvol/zroot' unhide\n\
             add path 'zvol/zroot/vms' unhide\n\
             add path 'zvol/zroot/vms/web' unhide\n\
             add path 'zvol/zroot/vms/db' unhide\n"
        );
    }

    #[test]
    fn the_jail_is_allowed_vmm_and_passthrough_only_when_it_is_needed() {
        let conf = needs().jail_conf();
        assert!(conf.starts_with("vms {\n\tpath = \"/jails/vms\";\n") && conf.ends_with("\tallow.vmm;\n}\n"), "{conf}");
        assert!(conf.contains("\tdevfs_ruleset = 100;\n"));
        assert!(JailNeeds { passthru: true, ..needs() }.jail_conf().contains("allow.vmm_ppt;"));
    }

    #[test]
    fn a_jail_of_guests_with_taps_has_a_stack_of_its_own_and_their_bridges_in_it() {
        let conf = JailNeeds { taps: true, bridges: vec!["sw-lan".into(), "bridge0".into()], ..needs() }.jail_conf();
        assert!(!conf.contains("inherit"), "{conf}");
        let pair = "\tvnet;\n\
             \texec.prestart += \"/sbin/ifconfig epair1000 create up\";\n\
             \texec.prestart += \"/sbin/ifconfig sw-lan addm epair1000a\";\n\
             \tvnet.interface += \"epair1000b\";\n\
             \texec.start += \"/sbin/ifconfig bridge create name sw-lan up\";\n\
             \texec.start += \"/sbin/ifconfig sw-lan addm epair1000b\";\n\
             \texec.start += \"/sbin/ifconfig epair1000b up\";\n\
             \texec.poststop += \"/sbin/ifconfig epair1000a destroy\";\n";
        assert!(conf.contains(pair) && conf.contains("bridge0 addm epair1001b"), "{conf}");
    }

    #[test]
    fn a_ruleset_number_that_is_in_use_is_not_taken() {
        assert_eq!(free_ruleset(""), 100);
        assert_eq!(free_ruleset("[a=100]\nadd path x unhide\n[b=102]\n[c=101]\n[d=x]\n"), 103);
    }

    #[test]
    fn shown_rules_are_matched_as_devfs_prints_them() {
        let rules = "100 include 1\n200 path vmm unhide\n300 path vmm/* unhide\n400 path tap* hide\n500 path\n";
        assert!(unhides(rules, "vmm") && unhides(rules, "vmm/*"));
        assert!(!unhides(rules, "tap*") && !unhides(rules, "zvol"));
        assert_eq!(included(&format!("{rules}600 path zvol unhide include 7\n")), [1, 7]);
    }

    #[test]
    fn a_ruleset_without_vmmctl_is_incomplete_where_the_host_has_that_device() {
        let needs = JailNeeds { volumes: vec![], nodes: vec![], ..needs() };
        let old = "100 path vmm unhide\n200 path vmm/* unhide\n300 path vmm.io unhide\n400 path vmm.io/* unhide\n";
        assert!(hidden(&needs, old, false).is_empty());
        assert_eq!(hidden(&needs, old, true), ["vmmctl"]);
        assert!(hidden(&needs, &format!("{old}500 path vmmctl unhide\n"), true).is_empty());
    }
}
