//! `vmctl ssh-config`.

use super::{App, ExitStatus, Guests, Outcome};
use crate::guest::definition::Definition;
use crate::guest::reach::Reach;

/// Print blocks for ssh_config(5)
///
/// One `Host` block a guest, so that ssh(1), scp(1), rsync(1) and editors reach guests by their names:
/// `vmctl ssh-config --all >> ~/.ssh/config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place_to_look()?;
        app.each_in_turn(self.guests.choose(&place)?, |guest| {
            let config = Definition::load(guest, place.around())?.config;
            let reach = Reach::of(guest, &config, &guest.state()?, None)?;
            app.ui.data(&reach.ssh_config(guest.name()))?;
            Ok(ExitStatus::Done)
        })
    }
}
