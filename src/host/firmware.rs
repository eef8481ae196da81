//! Where the ports put firmware for bhyve(8) (freebsd-ports `sysutils/edk2`, flavor `bhyve`; formerly
//! `sysutils/uefi-edk2-bhyve` and `sysutils/uefi-edk2-bhyve-csm`).

use std::path::PathBuf;

use super::place;

/// The package with UEFI firmware.
pub const UEFI_PACKAGE: &str = "edk2-bhyve";
/// The package with firmware that boots as a BIOS does.
pub const CSM_PACKAGE: &str = "uefi-edk2-bhyve-csm";

/// Where it is looked for.
const DIRECTORIES: [&str; 2] = ["/usr/local/share/uefi-firmware", "/usr/local/share/edk2-bhyve"];

/// UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uefi {
    /// Its code.
    pub code: PathBuf,
    /// What a new guest's variables start from; old ports have none.
    pub vars: Option<PathBuf>,
}

fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| place::path(&format!("{directory}/{name}"))).find(|path| path.is_file())
}

/// The packaged UEFI firmware. Code and variables apart where there are both: a combined image that is given without
/// variables does not start on every release.
pub fn uefi() -> Option<Uefi> {
    match (find("BHYVE_UEFI_CODE.fd"), find("BHYVE_UEFI_VARS.fd")) {
        (Some(code), vars @ Some(_)) => Some(Uefi { code, vars }),
        (code, _) => find("BHYVE_UEFI.fd").or(code).map(|code| Uefi { code, vars: None }),
    }
}

/// The packaged firmware that boots as a BIOS does.
pub fn csm() -> Option<PathBuf> {
    find("BHYVE_UEFI_CSM.fd")
}
