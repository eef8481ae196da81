//! `vmctl snapshots`: lists snapshots.

use super::{App, Column, ExitStatus, Guests, Outcome};
use crate::guest::snapshot::{self, GuestSnapshot};
use crate::units::ByteSize;

/// List the snapshots of guests
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

const COLUMNS: [Column<GuestSnapshot>; 5] = [
    Column { title: "GUEST", wide: false, text: |snapshot| snapshot.guest.clone() },
    Column { title: "NAME", wide: false, text: |snapshot| snapshot.name.clone() },
    Column { title: "CREATED", wide: false, text: |snapshot| snapshot.created.to_string() },
    Column { title: "USED", wide: false, text: |snapshot| ByteSize::from_bytes(snapshot.used_bytes).to_string() },
    Column {
        title: "OF",
        wide: true,
        text: |snapshot| {
            let part = if snapshot.complete { "" } else { " (not all)" };
            format!("{}{part}", snapshot.datasets.join(","))
        },
    },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        let mut rows = Vec::new();
        let status = app.each_in_turn(self.guests.choose(&context)?, |guest| {
            rows.extend(snapshot::list(guest, context.surroundings())?);
            Ok(ExitStatus::Done)
        })?;
        app.ui.list("snapshots", 1, &rows, &COLUMNS, |snapshot| format!("{}@{}", snapshot.guest, snapshot.name))?;
        Ok(status)
    }
}
