//! Whether this host's vmm(4) can run the guest, from what the kernel says about itself.
//!
//! Sources: sys/amd64/vmm/vmm_dev.c (sysctl_vmm_create: EPERM in a jail without `allow.vmm`, EEXIST for a name that is
//! taken) and vmm.c (vm_create: ENXIO where no processor of the host has what it needs); from 15 on sys/dev/vmm/vmm_dev.c.

use std::io;

use super::abi::{Release, VM_MAX_NAMELEN};
use crate::hypervisor::backend::Needs;

/// vCPUs of one machine on a kernel that has no hw.vmm.maxcpu: VM_MAXCPU of 13's vmm.h.
const MOST_VCPUS_OF_13: u32 = 16;

/// Reason why the host's vmm(4) cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The kernel is older than 13.0.
    #[error("this host's release is too old: vmm(4) is used from FreeBSD 13.0 on (kern.osreldate is {0})")]
    OldRelease(u32),
    /// The module is not loaded.
    #[error("vmm(4) is not loaded; `kldload vmm` loads it, and `vmm_load=\"YES\"` in `/boot/loader.conf` does at every boot")]
    NotLoaded,
    /// The processor has not what it takes.
    #[error(
        "this host's processor has no virtualisation with nested paging (EPT or RVI), or the firmware has turned it off: vmm(4) needs it"
    )]
    NoNestedPaging,
    /// Intel's first processors with nested paging.
    #[error("this host's processor runs no guest without paging (it has no `unrestricted guest`)")]
    NoRealMode,
    /// The process is not root's.
    #[error("no permission to make a machine of vmm(4): only root may, and a jail needs `allow.vmm`")]
    Denied,
    /// The guest has too many vCPUs.
    #[error("the guest has {wanted} vCPUs, this host's vmm(4) runs at most {most} (hw.vmm.maxcpu, set in `/boot/loader.conf`)")]
    TooManyVcpus {
        /// vCPUs of the guest.
        wanted: u32,
        /// The limit.
        most: u32,
    },
    /// The name is in use and does not become free.
    #[error("the kernel still has the machine `{0}` of an earlier boot")]
    Taken(String),
    /// The guest is to be repeatable.
    #[error("runs of a guest with `debug.deterministic` are repeatable only on `backend = \"soft\"`")]
    Deterministic,
    /// A request failed.
    #[error("cannot {action}")]
    Call {
        /// What was requested.
        action: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
}

/// Returns a function that makes an error of what failed.
pub fn cannot(action: &'static str) -> impl Fn(io::Error) -> VmmError {
    move |source| VmmError::Call { action, source }
}

/// What the kernel says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// kern.osreldate.
    pub osreldate: u32,
    /// Whether there is `/dev/vmmctl` or hw.vmm.create.
    pub is_loaded: bool,
    /// Whether the processor has SVM with nested paging, or VMX; EPT cannot be seen from a program.
    pub has_hardware: bool,
    /// hw.vmm.maxcpu, from 14 on.
    pub most_vcpus: Option<u32>,
}

/// Checks the host against the guest, and returns the release whose interface the kernel has.
pub fn check(host: &HostFacts, needs: &Needs<'_>) -> Result<Release, VmmError> {
    if needs.deterministic {
        return Err(VmmError::Deterministic);
    }
    let release = Release::of(host.osreldate).ok_or(VmmError::OldRelease(host.osreldate))?;
    if !host.has_hardware {
        return Err(VmmError::NoNestedPaging);
    }
    if !host.is_loaded {
        return Err(VmmError::NotLoaded);
    }
    let (wanted, most) = (needs.topology.count(), host.most_vcpus.unwrap_or(MOST_VCPUS_OF_13));
    if wanted > most {
        return Err(VmmError::TooManyVcpus { wanted, most });
    }
    Ok(release)
}

/// Returns the error for a machine called `name` that the kernel did not make.
pub fn refused(error: io::Error, name: &str) -> VmmError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => VmmError::Denied,
        Some(libc::ENXIO | libc::ENODEV) => VmmError::NoNestedPaging,
        Some(libc::ENOENT) => VmmError::NotLoaded,
        Some(libc::EEXIST) => VmmError::Taken(name.into()),
        _ => cannot("make a machine of vmm(4)")(error),
    }
}

/// Returns the name that the kernel knows the machine by.
pub fn checked_name(name: &str) -> Result<&str, VmmError> {
    let is_name = !name.is_empty() && name.len() <= VM_MAX_NAMELEN && !name.contains(['/', '\0']);
    let odd = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no name for it"));
    if is_name { Ok(name) } else { Err(cannot("make a machine of vmm(4)")(odd())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Topology;

    const HOST: HostFacts = HostFacts { osreldate: 1_400_507, is_loaded: true, has_hardware: true, most_vcpus: Some(4) };

    fn verdict(host: HostFacts, vcpus: u32) -> String {
        let topology = Topology { sockets: vcpus, ..Topology::ONE };
        let needs = Needs { machine: "vmctl-1", topology, deterministic: false };
        check(&host, &needs).map_or_else(|error| error.to_string(), |release| format!("{release:?}"))
    }

    #[test]
    fn a_host_that_cannot_run_the_guest_says_why_and_what_to_do() {
        assert_eq!(verdict(HOST, 4), "R14");
        let words = verdict(HostFacts { osreldate: 1_204_000, ..HOST }, 1);
        assert_eq!(words, "this host's release is too old: vmm(4) is used from FreeBSD 13.0 on (kern.osreldate is 1204000)");
        let words = verdict(HostFacts { is_loaded: false, ..HOST }, 1);
        assert!(words.starts_with("vmm(4) is not loaded; `kldload vmm` loads it"), "{words}");
        let words = verdict(HostFacts { has_hardware: false, is_loaded: false, ..HOST }, 1);
        assert!(words.contains("nested paging (EPT or RVI)"), "{words}");
        let words = verdict(HOST, 5);
        assert!(words.starts_with("the guest has 5 vCPUs, this host's vmm(4) runs at most 4 (hw.vmm.maxcpu"), "{words}");
    }

    #[test]
    fn release_13_runs_16_vcpus_without_saying_so() {
        let host = HostFacts { osreldate: 1_302_001, most_vcpus: None, ..HOST };
        assert_eq!(verdict(host.clone(), 16), "R13");
        assert!(verdict(host, 17).contains("at most 16"));
    }

    #[test]
    fn a_guest_that_is_to_be_repeatable_is_refused() {
        let needs = Needs { machine: "vmctl-1", topology: Topology::ONE, deterministic: true };
        assert!(matches!(check(&HOST, &needs), Err(VmmError::Deterministic)));
    }

    #[test]
    fn what_the_kernel_answers_to_a_new_machine_is_told_in_words() {
        let words = |errno| refused(io::Error::from_raw_os_error(errno), "vmctl-1").to_string();
        assert!(words(libc::EPERM).contains("only root may, and a jail needs `allow.vmm`"));
        assert!(words(libc::EACCES).starts_with("no permission"));
        assert!(words(libc::ENXIO).contains("nested paging"));
        assert!(words(libc::ENOENT).contains("kldload vmm"));
        assert_eq!(words(libc::EEXIST), "the kernel still has the machine `vmctl-1` of an earlier boot");
        assert_eq!(words(libc::ENOMEM), "cannot make a machine of vmm(4)");
    }

    #[test]
    fn a_name_that_is_no_file_of_dev_vmm_is_refused() {
        assert!(checked_name("vmctl-4f8d").is_ok() && checked_name(&"x".repeat(229)).is_ok());
        for name in ["", "a/b", "a\0b", &"x".repeat(230)] {
            assert!(checked_name(name).is_err(), "{name:?}");
        }
    }
}
