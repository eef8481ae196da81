//! `vmctl init`: a datastore and a first guest file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use super::source::GuestSource;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::{GUESTS_DIR, TEMPLATES_DIR};

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

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let (host, store) = app.host_and_datastore()?;
        for directory in [GUESTS_DIR, TEMPLATES_DIR] {
            let path = store.path.join(directory);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        app.ui.done(format!("datastore `{}` is ready", store.path.display()));
        let shown = self.file.display();
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.file).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::user(format!("`{shown}` is there already")).hint("name another file: `vmctl init OTHER.toml`")
            }
            _ => Failure::user(format!("cannot write `{shown}`: {error}")),
        })?;
        file.write_all(FIRST_GUEST.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write `{shown}`"))?;
        GuestSource { file: self.file.clone(), name: None }.load(&host, &store, &[])?;
        app.ui.done(format!("wrote `{shown}`: name a kernel and a disk in it, then `vmctl check {shown}`"));
        Ok(ExitStatus::Done)
    }
}
