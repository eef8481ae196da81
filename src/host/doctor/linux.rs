//! What `vmctl doctor` looks at on Linux: what an engine can be confined with, and what switches need and have left.
//!
//! An unsafe island: landlock_create_ruleset(2), which tells its version.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;

use nix::unistd::geteuid;

use super::super::program;
use super::super::switch::{self, Leftover};
use super::Finding;
use super::freebsd::Needs;

/// The first ABI of Landlock that knows files, ports, signals and abstract sockets (Linux 6.12).
const LANDLOCK_ABI: i64 = 6;
/// linux/landlock.h.
const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;

/// What the kernel has of it.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// 0: none, or not enabled.
    landlock_abi: i64,
    seccomp: bool,
    root: bool,
    /// Whether this user may make user namespaces, and with them others.
    user_namespaces: bool,
}

/// Looks at everything.
pub fn examine(needs: &Needs, runtime: &Path) -> Vec<Finding> {
    let facts = Facts {
        // SAFETY: with this flag and no attributes the call touches no memory (landlock_create_ruleset(2)).
        landlock_abi: unsafe {
            let none = std::ptr::null::<libc::c_void>();
            libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, LANDLOCK_CREATE_RULESET_VERSION)
        }
        .max(0),
        seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        root: geteuid().is_root(),
        user_namespaces: may_make_user_namespaces(),
    };
    let mut findings = vec![confinement(facts)];
    findings.extend(taps(needs));
    findings.extend(programs(needs));
    if let Some(declared) = &needs.switches {
        findings.extend(left_switches(&switch::left_over(declared, runtime)));
    }
    findings
}

/// Looks for the device of taps, which guests on switches need.
fn taps(needs: &Needs) -> Option<Finding> {
    let device = "/dev/net/tun";
    needs.switches.as_ref().filter(|switches| !switches.is_empty())?;
    Some(match Path::new(device).exists() {
        true => Finding::good("taps", device),
        false => Finding::bad("taps", format!("`{device}` is not there, and guests on switches need it"), "`modprobe tun`"),
    })
}

fn programs(needs: &Needs) -> Vec<Finding> {
    let program = |needed: bool, name: &'static str, package: &str| {
        needed.then(|| match program::find_on_linux(name) {
            Some(path) => Finding::good(name, path.display().to_string()),
            None => Finding::bad(
                name,
                format!("`{name}` is not installed, and a switch needs it"),
                format!("on Debian, `apt-get install {package}`"),
            ),
        })
    };
    [program(needs.nat, "nft", "nftables"), program(needs.dhcp, "dnsmasq", "dnsmasq-base")].into_iter().flatten().collect()
}

/// Names what is left of switches that are not declared any more.
fn left_switches(left: &[Leftover]) -> Option<Finding> {
    let words: Vec<&str> = left.iter().map(|one| one.what.as_str()).collect();
    let commands: Vec<String> = left.iter().map(|one| format!("`{}`", one.remove)).collect();
    (!left.is_empty()).then(|| Finding {
        hint: Some(format!("if nobody needs it: {}", commands.join(", "))),
        ..Finding::note("switches", format!("no host file or fleet declares what is left of a switch: {}", words.join(", ")))
    })
}

fn may_make_user_namespaces() -> bool {
    // The kernel's own limit; Debian's older switch; Ubuntu's rule for programs without an AppArmor profile.
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    number("/proc/sys/user/max_user_namespaces") != Some(0)
        && number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0)
        && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_none_or(|restricted| restricted == 0)
        && Path::new("/proc/self/ns/user").exists()
}

fn confinement(facts: Facts) -> Finding {
    let mut lacks = Vec::new();
    match facts.landlock_abi {
        0 => lacks.push("Landlock is not there or not enabled (Linux 5.13, `lsm=landlock,...`)".to_owned()),
        abi if abi < LANDLOCK_ABI => lacks.push(format!(
            "Landlock {abi} does not hold signals and abstract sockets{}; {LANDLOCK_ABI} does (Linux 6.12)",
            if abi < 4 { ", nor ports" } else { "" }
        )),
        _ => {}
    }
    if !facts.seccomp {
        lacks.push("seccomp is not in this kernel".to_owned());
    }
    if !facts.root && !facts.user_namespaces {
        lacks.push("this user may make no user namespaces".to_owned());
    }
    match lacks.is_empty() {
        true => Finding::good("confinement", format!("Landlock {}, seccomp, namespaces", facts.landlock_abi)),
        false => Finding {
            hint: Some("guests run without it; `vmctl info` says what holds each of them".into()),
            ..Finding::note("confinement", lacks.join("; "))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_a_host_lacks_to_confine_an_engine_is_told() {
        let whole = Facts { landlock_abi: 7, seccomp: true, root: true, user_namespaces: false };
        assert_eq!(confinement(whole).verdict, Verdict::Good);
        for (facts, words) in [
            (Facts { landlock_abi: 0, ..whole }, "Landlock is not there"),
            (Facts { landlock_abi: 3, ..whole }, "Landlock 3 does not hold signals and abstract sockets, nor ports"),
            (Facts { landlock_abi: 5, ..whole }, "Landlock 5 does not hold signals and abstract sockets; 6 does"),
            (Facts { seccomp: false, ..whole }, "seccomp is not"),
            (Facts { root: false, ..whole }, "no user namespaces"),
        ] {
            let found = confinement(facts);
            assert_eq!(found.verdict, Verdict::Note, "{words}");
            assert!(found.words.contains(words), "{}", found.words);
        }
    }

    #[test]
    fn this_host_is_looked_at() {
        assert_eq!(examine(&Needs::default(), Path::new("/nonexistent")).len(), 1);
        let needs = Needs { switches: Some(vec!["lan".into()]), nat: true, dhcp: true, ..Needs::default() };
        let checks: Vec<&str> = examine(&needs, Path::new("/nonexistent")).iter().map(|finding| finding.check).collect();
        assert_eq!(checks[..4], ["confinement", "taps", "nft", "dnsmasq"]);
    }

    #[test]
    fn what_is_left_of_a_switch_is_named_with_the_commands_that_remove_it() {
        assert!(left_switches(&[]).is_none());
        let left = Leftover { what: "the bridge `sw-old`".into(), remove: "ip link delete sw-old".into() };
        let found = left_switches(&[left]).expect("something is left");
        assert!(found.words.ends_with("of a switch: the bridge `sw-old`"), "{}", found.words);
        assert_eq!(found.hint.as_deref(), Some("if nobody needs it: `ip link delete sw-old`"));
    }
}
