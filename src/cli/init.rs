//! `vmctl init`: a datastore and a first guest file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use super::source::GuestSource;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::{EngineKind, GUESTS_DIR, TEMPLATES_DIR};
use crate::host::files::make_directory;
use crate::host::route::default_route;

/// Make the datastore and write a first guest file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to write; never overwritten
    #[arg(value_name = "FILE", default_value = "demo.toml")]
    file: PathBuf,
}

const FIRST_GUEST: &str = r#"# A guest of vmctl. Every key is in vmctl.toml(5); `vmctl check FILE` says what is wrong with a file.
template = "debian"
memory = "1G"

[kernel]
image = "vmlinuz" # relative to this file
initrd = "initrd.img"

[[disks]]
id = "root"
path = "root.img" # a raw image with the root file system on it
"#;

/// The same where bhyve(8) runs guests.
const FIRST_GUEST_OF_BHYVE: &str = r#"# A guest of vmctl. Every key is in vmctl.toml(5); `vmctl check FILE` says what is wrong with a file.
engine = "bhyve"
loader = "bhyveload" # FreeBSD guests; "uefi" and "grub" are for others
memory = "1G"

[[disks]]
id = "root"
path = "root.img" # relative to this file: a raw image of FreeBSD

[[nics]]
id = "net0"
backend = "tap"
switch = "public" # of the host file
"#;
/// The switch that it names.
const FIRST_SWITCH: &str = "public";

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let (host, store) = app.host_and_datastore()?;
        for directory in [GUESTS_DIR, TEMPLATES_DIR] {
            let path = store.path.join(directory);
            make_directory(&path, 0o755).with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        app.ui.done(format!("datastore `{}` is ready", store.path.display()));
        let shown = self.file.display();
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.file).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::user(format!("`{shown}` is there already")).hint("name another file: `vmctl init OTHER.toml`")
            }
            _ => Failure::user(format!("cannot write `{shown}`: {error}")),
        })?;
        let bhyve = host.engine() == EngineKind::Bhyve;
        file.write_all(if bhyve { FIRST_GUEST_OF_BHYVE } else { FIRST_GUEST }.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write `{shown}`"))?;
        GuestSource { file: self.file.clone(), name: None }.load(&host, &store, &[])?;
        let what = if bhyve { "a disk" } else { "a kernel and a disk" };
        app.ui.done(format!("wrote `{shown}`: name {what} in it, then `vmctl check {shown}`"));
        if bhyve && !host.switches.iter().any(|switch| switch.id == FIRST_SWITCH) {
            let uplink = default_route().map_or_else(|| "em0".to_owned(), |route| route.interface);
            app.ui.done(format!(
                "its network is the switch `{FIRST_SWITCH}`, which the host file `{}` does not have yet: add `[[switches]]` with \
                 `id = \"{FIRST_SWITCH}\"` and `uplinks = [\"{uplink}\"]`, then `vmctl switch create {FIRST_SWITCH}`",
                app.host_file()?.display()
            ));
        }
        Ok(ExitStatus::Done)
    }
}
