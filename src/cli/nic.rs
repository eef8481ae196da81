//! `vmctl nic`: changes the network interfaces of a guest.

use super::{App, Outcome, entries};
use crate::guest::change::{self, Class};

/// Add and remove network interfaces
///
/// Changes the guest file as `edit` does. A running guest sees it at its next boot.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: NicCommand,
}

#[derive(Debug, clap::Subcommand)]
enum NicCommand {
    /// Add an interface
    Add {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// Name of the interface
        #[arg(value_name = "NIC")]
        nic: String,
        /// Network to connect to: user, tap or none
        #[arg(long, value_name = "BACKEND")]
        backend: Option<String>,
        /// The switch, for tap
        #[arg(long, value_name = "SWITCH")]
        switch: Option<String>,
        /// Device that the guest sees, like virtio-net
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// MAC address, instead of the derived one
        #[arg(long, value_name = "MAC")]
        mac: Option<String>,
    },
    /// Remove an interface
    #[command(aliases = ["rm", "delete"])]
    Remove {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// The interface
        #[arg(value_name = "NIC")]
        nic: String,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        match self.action {
            NicCommand::Add { guest, nic, backend, switch, device, mac } => {
                let guest = context.store.guest(&guest)?;
                // An entry needs more than its id.
                let backend = backend.unwrap_or_else(|| if switch.is_some() { "tap".into() } else { "user".into() });
                let given = [("backend", Some(backend)), ("switch", switch), ("device", device), ("mac", mac)];
                let keys: Vec<_> = given.into_iter().filter_map(|(key, value)| Some((key, change::text(&value?)))).collect();
                let when = change::add(&guest, Class::Nic, &nic, &keys, context.surroundings())?;
                entries::done(app, &guest, Class::Nic, &nic, "added", when)
            }
            NicCommand::Remove { guest, nic } => entries::remove(app, &context, &guest, Class::Nic, &nic, false),
        }
    }
}
