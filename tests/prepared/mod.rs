//! What tests that boot Debian's kernel need beside the tree: `make test` prepares it.

use std::path::{Path, PathBuf};

/// Returns the folder with the test kernel and its initrd.
pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/test-guest");
    assert!(folder.join("initrd.img").exists(), "`{}` is missing: `make test` prepares it", folder.display());
    folder
}

/// Returns the program: the optimised one that `VMCTL_TEST_PROGRAM` names, as a boot on a software CPU that is not
/// optimised takes five times as long, else the one that was built with the tests.
pub fn program() -> PathBuf {
    std::env::var_os("VMCTL_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_vmctl").into(), PathBuf::from)
}
