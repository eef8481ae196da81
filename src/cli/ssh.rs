//! `vmctl ssh`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{App, Failure, Outcome};
use crate::guest::definition::Definition;
use crate::guest::reach::Reach;

/// Log in to a guest with ssh(1)
///
/// By a forward to port 22 of the guest, or at its `cloud-init.addresses`. The user is that of `[cloud-init]`, or of
/// the guest's image. Host keys are kept with the guest. The exit status is ssh's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Who logs in
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Command in the guest, and options of ssh(1) before it
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let guest = place.store.guest(&self.guest)?;
        let reach = Reach::of(&guest, &Definition::load(&guest, place.around())?.config, &guest.state()?, self.user)?;
        let mut command = Command::new("ssh");
        command.args(reach.options()).args(["-p", &reach.address.port().to_string()]);
        let failed = command.arg(reach.destination()).args(self.command).exec();
        Err(Failure::user(format!("cannot run `ssh`: {failed}")).hint("the package `openssh-client` brings it on Debian"))
    }
}
