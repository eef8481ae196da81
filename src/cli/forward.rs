//! `vmctl forward`: changes the forwards of a guest's user-mode network.

use super::{AnyGuests, App, Column, ExitStatus, Outcome};
use crate::guest::forwards::{self, ListedForward, TypedForward};

/// Add, remove and list forwards of ports
///
/// Changes the guest file as `edit` does, and the user-mode network of a running guest at once. A guest of the engine
/// `bhyve` sees it at its next boot.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: ForwardCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ForwardCommand {
    /// Forward a port of the host to a port of the guest
    Add {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// Ports, like `8080:80`; with an address of the host, like `0.0.0.0:8080:80`; UDP's like `5353:53/udp`
        #[arg(value_name = "[ADDRESS:]HOST:GUEST[/udp]", required = true)]
        forwards: Vec<TypedForward>,
        /// Name of the interface; the first user-mode network by default
        #[arg(long, value_name = "NIC")]
        nic: Option<String>,
    },
    /// Remove a forward
    ///
    /// Connections through it are closed.
    Remove {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// Ports, like `8080:80`, or only the host's, like `8080`
        #[arg(value_name = "[ADDRESS:]HOST[:GUEST][/udp]", required = true)]
        forwards: Vec<TypedForward>,
    },
    /// List the forwards of guests
    List {
        #[command(flatten)]
        guests: AnyGuests,
    },
}

const COLUMNS: [Column<ListedForward>; 6] = [
    Column { title: "GUEST", wide: false, text: |forward| forward.guest.clone() },
    Column { title: "HOST", wide: false, text: |forward| forward.host.to_string() },
    Column { title: "PORT", wide: false, text: |forward| forward.guest_port.to_string() },
    Column { title: "PROTOCOL", wide: false, text: |forward| forward.protocol.to_owned() },
    Column { title: "NIC", wide: true, text: |forward| forward.nic.clone() },
    Column { title: "ACTIVE", wide: false, text: |forward| (if forward.active { "yes" } else { "no" }).to_owned() },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        match self.action {
            ForwardCommand::Add { guest, forwards, nic } => {
                let context = app.context()?;
                let guest = context.store.guest(&guest)?;
                let name = guest.name();
                app.ui.each(&forwards, ToString::to_string, |typed| {
                    let (forward, when) = forwards::add(&guest, nic.as_deref(), typed, &context.store, context.surroundings())?;
                    let next = if forward.guest_port == 22 { format!(": vmctl ssh {name}") } else { String::new() };
                    app.ui.done(format!(
                        "{name}: {} {} leads to port {} of the guest{}{next}",
                        forward.proto.as_str(),
                        forward.host(),
                        forward.guest_port,
                        when.words()
                    ));
                    Ok(ExitStatus::Done)
                })
            }
            ForwardCommand::Remove { guest, forwards } => {
                let context = app.context()?;
                let guest = context.store.guest(&guest)?;
                app.ui.each(&forwards, ToString::to_string, |typed| {
                    let (forward, when) = forwards::remove(&guest, typed, context.surroundings())?;
                    app.ui.done(format!("{}: the forward {} is removed{}", guest.name(), forward.words(), when.words()));
                    Ok(ExitStatus::Done)
                })
            }
            ForwardCommand::List { guests } => {
                let context = app.context_to_look()?;
                let mut rows = Vec::new();
                let status = app.each_in_turn(guests.guests().choose(&context)?, |guest| {
                    rows.extend(forwards::list(guest, context.surroundings())?);
                    Ok(ExitStatus::Done)
                })?;
                app.ui.list("forwards", 1, &rows, &COLUMNS, |forward| format!("{}/{}", forward.host, forward.protocol))?;
                Ok(status)
            }
        }
    }
}
