//! `vmctl ssh-config`: prints the ssh configuration of guests.

use super::{App, ExitStatus, Guests, Outcome};
use crate::guest::definition::Definition;
use crate::guest::reach::Reach;

/// Print blocks for ssh_config(5)
///
/// Prints one `Host` block per guest, so that ssh(1), scp(1), rsync(1) and editors reach guests by their names: `vmctl
/// ssh-config --all >> ~/.ssh/config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        app.each_in_turn(self.guests.choose(&context)?, |guest| {
            let config = Definition::load(guest, context.surroundings())?.config;
            let reach = Reach::of(guest, &config, &guest.state()?, None)?;
            app.ui.data(&reach.ssh_config(guest.name()))?;
            Ok(ExitStatus::Done)
        })
    }
}
