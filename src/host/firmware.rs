//! Paths of the ports' firmware for bhyve(8) (freebsd-ports `sysutils/edk2`, flavor `bhyve`; formerly
//! `sysutils/uefi-edk2-bhyve` and `sysutils/uefi-edk2-bhyve-csm`).

use std::path::PathBuf;

use super::environment;

/// The package with UEFI firmware.
pub const UEFI_PACKAGE: &str = "edk2-bhyve";
/// The package with BIOS firmware.
pub const CSM_PACKAGE: &str = "uefi-edk2-bhyve-csm";

/// Directories in which it is searched.
const DIRECTORIES: [&str; 2] = ["/usr/local/share/uefi-firmware", "/usr/local/share/edk2-bhyve"];

/// UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uefi {
    /// Its code.
    pub code: PathBuf,
    /// Template for a new guest's variables. Old ports have none.
    pub vars: Option<PathBuf>,
}

fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| environment::path(&format!("{directory}/{name}"))).find(|path| path.is_file())
}

/// Returns the packaged UEFI firmware, with separate code and variables if there are both: a combined image without
/// variables does not start on every release.
pub fn uefi() -> Option<Uefi> {
    match (find("BHYVE_UEFI_CODE.fd"), find("BHYVE_UEFI_VARS.fd")) {
        (Some(code), vars @ Some(_)) => Some(Uefi { code, vars }),
        (code, _) => find("BHYVE_UEFI.fd").or(code).map(|code| Uefi { code, vars: None }),
    }
}

/// Returns the packaged BIOS firmware.
pub fn csm() -> Option<PathBuf> {
    find("BHYVE_UEFI_CSM.fd")
}
