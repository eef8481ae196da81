//! `vmctl init`: makes a datastore and a first guest file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::source::GuestSource;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::paths::home;
use crate::config::{EngineKind, GUESTS_DIR, TEMPLATES_DIR};
use crate::guest::clone::ports_in_use;
use crate::guest::launch_file::{free_port, public_key};
use crate::host::files::make_directory;
use crate::host::route::default_route;

/// Make the datastore and write a first guest file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write; an existing one is not overwritten
    #[arg(value_name = "FILE", default_value = "demo.toml")]
    file: PathBuf,
}

/// An image that cloud-init makes a guest of, of a distribution whose mirrors keep it.
const FIRST_IMAGE: &str = "debian-13";

/// Returns the first guest of the embedded engine: it starts as it is.
fn first_guest(key: Option<&Path>, port: u16) -> String {
    let keys = match key {
        Some(key) => format!("ssh_keys = [{}] # who may log in\n", toml_edit::Value::from(key.to_string_lossy().as_ref())),
        None => "# ssh_keys = [\"~/.ssh/id_ed25519.pub\"] # who may log in\n".into(),
    };
    format!(
        "# A guest of vmctl. Every key is in vmctl.toml(5); `vmctl check FILE` says what is wrong with a file.\n\
         memory = \"1G\"\n\
         loader = \"grub\" # the boot menu of its disk\n\
         ready.timeout = \"15m\" # the first boot takes its time\n\
         \n\
         [[disks]]\n\
         id = \"root\"\n\
         source = \"{FIRST_IMAGE}\" # of the catalogue: `vmctl image list --all`; it is fetched once\n\
         size = \"8G\"\n\
         \n\
         [[nics]]\n\
         id = \"net0\"\n\
         forwards = [{{ id = \"ssh\", host_port = {port}, guest_port = 22 }}] # `vmctl ssh` goes this way\n\
         \n\
         [cloud-init]\n\
         {keys}"
    )
}

/// The same for hosts on which bhyve(8) runs guests.
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
/// The switch in this file.
const FIRST_SWITCH: &str = "public";

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        let (host, store) = (&context.host, context.datastore());
        for directory in [GUESTS_DIR, TEMPLATES_DIR] {
            let path = store.path.join(directory);
            make_directory(&path, 0o755).with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        app.ui.done(format!("datastore `{}` is ready", store.path.display()));
        let path = self.file.display();
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.file).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::user(format!("`{path}` exists already")).hint("name another file: `vmctl init OTHER.toml`")
            }
            _ => Failure::user(format!("cannot write `{path}`: {error}")),
        })?;
        let bhyve = host.engine() == EngineKind::Bhyve;
        let text = match bhyve {
            true => FIRST_GUEST_OF_BHYVE.to_owned(),
            false => {
                let key = public_key(&context.store, home().as_deref()).ok();
                first_guest(key.as_deref(), free_port(&ports_in_use(&context.store, context.surroundings()))?)
            }
        };
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(|| format!("cannot write `{path}`"))?;
        GuestSource { file: self.file.clone(), name: None }.load(host, store, &[])?;
        app.ui.done(match bhyve {
            true => format!("wrote `{path}`: name a disk in it, then `vmctl check {path}`"),
            false => format!("wrote `{path}`: `vmctl launch --file {path}` makes its guest and starts it"),
        });
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
