//! Availability of vmm(4) to this process. The default engine follows from it.
//!
//! Once vmm is loaded it is asked directly: a process that may make virtual machines may read the sysctl
//! `hw.vmm.create`, and no other process may (`sys/amd64/vmm/vmm_dev.c`, sysctl_vmm_create and vmm_priv_check: a jail
//! without `allow.vmm` may not). sysctl(8) prints nothing, not even a newline, and ends with 0 when the kernel refuses
//! a value (`sbin/sysctl/sysctl.c`, show_var), and ends with 1 for an unknown name. While vmm is not loaded, the
//! conditions for loading it are checked. Nothing is loaded here.

use super::error::HostError;
use super::processor::{Features, Fitness};
use super::{environment, program};

/// Checks that this process can use it now or once it is loaded. The error is the reason why not.
pub fn can_be_had() -> Result<(), HostError> {
    // Every command asks this, so no program is run on a host that cannot be FreeBSD.
    if !(cfg!(target_os = "freebsd") || environment::is_made_up()) || !program::is_freebsd() {
        return Err("this host is not FreeBSD".into());
    }
    if !environment::is_root() {
        return Err("only root may use vmm(4)".into());
    }
    if program::find("bhyve").is_none() {
        return Err("there is no program `bhyve` on this host".into());
    }
    match program::run("sysctl", &["-n", "hw.vmm.create"]) {
        Ok(text) if text.is_empty() => Err("this jail has no `allow.vmm`".into()),
        Ok(_) => Ok(()),
        Err(_) => can_be_loaded(),
    }
}

fn can_be_loaded() -> Result<(), HostError> {
    let sysctl = |name: &str| program::run("sysctl", &["-n", name]).map(|text| text.trim().to_owned()).unwrap_or_default();
    if sysctl("security.jail.jailed") == "1" {
        return Err("vmm(4) is not loaded, and a jail cannot load it".into());
    }
    // security(7): from level 1 on no module can be loaded.
    if sysctl("kern.securelevel").parse().is_ok_and(|level: i32| level > 0) {
        return Err("vmm(4) is not loaded, and the kernel's secure level forbids loading it".into());
    }
    let path = sysctl("kern.module_path");
    if !path
        .split(';')
        .filter(|directory| !directory.is_empty())
        .any(|directory| environment::path(directory).join("vmm.ko").is_file())
    {
        return Err(format!("there is no module vmm.ko in `{path}`").into());
    }
    match Features::of_this_host().map(|found| found.fitness()) {
        Some(Fitness::Bad(why)) => Err(format!("the processor {why}").into()),
        // Without the messages, loading vmm decides.
        Some(Fitness::Good | Fitness::Restricted | Fitness::Unknown) | None => Ok(()),
    }
}
