//! `vmctl ssh`: logs in to a guest.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::reachable::reach;
use super::{App, Failure, Outcome};

/// Log in to a guest with ssh(1)
///
/// Uses a forward to port 22 of the guest, or its `cloud-init.addresses`. The user is that of `[cloud-init]`, or of the
/// guest's image, and the key is the one whose public half is in `ssh_keys`. Host keys are kept with the guest. A guest that
/// boots is waited for until its sshd(8) greets. The exit status is that of ssh.
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
        let reach = reach(app, &context, &guest, self.user)?;
        let mut command = Command::new("ssh");
        command.args(reach.options()).args(["-p", &reach.address.port().to_string()]);
        let failed = command.arg(reach.destination()).args(self.command).exec();
        Err(Failure::user(format!("cannot run `ssh`: {failed}")).hint("the package `openssh-client` brings it on Debian"))
    }
}
