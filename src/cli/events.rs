//! `vmctl events`: shows the event logs of guests.

use std::time::Duration;

use super::logs::Follower;
use super::{AnyGuests, App, Column, ExitStatus, Outcome};
use crate::guest::events::{self, Event};

/// Show the events of guests
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: AnyGuests,
    /// Continue with new events (one line each; JSON with `-o jsonl`)
    #[arg(short, long)]
    follow: bool,
    /// Number of last events
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    count: usize,
}

const COLUMNS: [Column<Event>; 3] = [
    Column { title: "TIME", wide: false, text: |event| event.time.to_string() },
    Column { title: "GUEST", wide: false, text: |event| event.guest.clone() },
    Column { title: "EVENT", wide: false, text: Event::words },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        let guests = self.guests.guests();
        let mut found = Vec::new();
        let mut followed = Vec::new();
        let status = app.each_in_turn(guests.choose(&context)?, |guest| {
            followed.push((Follower::at_end(&guest.events_log()), Vec::new()));
            found.extend(events::read(&guest.events_log()));
            Ok(ExitStatus::Done)
        })?;
        found.sort_by_key(|event| event.time);
        let surplus = found.len().saturating_sub(self.count);
        let latest = found.split_off(surplus);
        if !self.follow {
            app.ui.list("events", events::EVENT_VERSION, &latest, &COLUMNS, |event| event.words())?;
            return Ok(status);
        }
        let print = |event: &Event| match app.ui.is_json() {
            true => app.ui.data(&event.line()),
            false => app.ui.data(&format!("{}  {}  {}\n", event.time, event.guest, event.words())),
        };
        latest.iter().try_for_each(print)?;
        loop {
            std::thread::sleep(Duration::from_millis(200));
            for (follower, partial) in &mut followed {
                partial.extend(follower.more());
                while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = partial.drain(..=end).collect();
                    if let Ok(event) = serde_json::from_slice::<Event>(&line) {
                        print(&event)?;
                    }
                }
            }
        }
    }
}
