//! What `vmctl doctor` looks at on Linux: what an engine can be confined with.
//!
//! An unsafe island: landlock_create_ruleset(2), which tells its version.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;

use nix::unistd::geteuid;

use super::Finding;

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
pub fn examine() -> Vec<Finding> {
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
    vec![confinement(facts)]
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
        assert_eq!(examine().len(), 1);
    }
}
