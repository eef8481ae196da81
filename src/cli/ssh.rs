//! `vmctl ssh`: logs in to a guest.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{App, Failure, Outcome};
use crate::guest::definition::Definition;
use crate::guest::reach::Reach;

/// Log in to a guest with ssh(1)
///
/// Uses a forward to port 22 of the guest, or its `cloud-init.addresses`. The user is that of `[cloud-init]`, or of the
/// guest's image. Host keys are kept with the guest. The exit status is that of ssh.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// User to log in as
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Command to run in the guest, with options of ssh(1) before it
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        let reach = Reach::of(&guest, &Definition::load(&guest, context.surroundings())?.config, &guest.state()?, self.user)?;
        let mut command = Command::new("ssh");
        command.args(reach.options()).args(["-p", &reach.address.port().to_string()]);
        let failed = command.arg(reach.destination()).args(self.command).exec();
        Err(Failure::user(format!("cannot run `ssh`: {failed}")).hint("the package `openssh-client` brings it on Debian"))
    }
}
