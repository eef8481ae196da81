//! `vmctl metrics`.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::attach::signal_stream;
use super::selection::Place;
use super::{AnyGuests, App, ExitStatus, Failure, Guests, Outcome, top};
use crate::guest::figures::Figures;
use crate::guest::metrics::exposition;
use crate::guest::metrics_format::Format;
use crate::host::scrape::{Document, Listen, Listener};

/// Show what guests use, for Prometheus
///
/// In its text format, once on standard output; with --listen, to whoever asks for `/metrics`, in OpenMetrics where that is
/// asked for, until a signal ends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: AnyGuests,
    /// Answer HTTP there: a loopback address with its port (0 for one that is free), or `unix:PATH`
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

/// Requests within this time get the same figures: many clients cost the guests no more than one.
const FRESH: Duration = Duration::from_millis(500);

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let listen = self.listen.as_deref().map(str::parse::<Listen>).transpose()?;
        let guests = self.guests.guests();
        let place = app.place_to_look()?;
        match listen {
            Some(listen) => serve(app, &place, &guests, &listen),
            None => {
                let (figures, status) = top::look(app, &place, &guests)?;
                match app.ui.is_json() {
                    true => app.ui.list("guest-figures", 1, &figures, &[], |guest| guest.overview.name.clone())?,
                    false => app.ui.data(&exposition(&figures, Format::Prometheus))?,
                }
                Ok(status)
            }
        }
    }
}

fn serve(app: &App, place: &Place, guests: &Guests, listen: &Listen) -> Outcome {
    let signals = signal_stream()?;
    let listener = Listener::open(listen)?;
    app.ui.done(format!("listening on {}", listener.place()));
    let last: Mutex<Option<(Instant, Vec<Figures>)>> = Mutex::new(None);
    let document = |accept: &str| {
        let format = Format::of_accept(accept);
        let mut last = last.lock().expect("no panic happens under this lock");
        let fresh = last.take().filter(|(at, _)| at.elapsed() < FRESH);
        let (at, figures) = fresh.unwrap_or_else(|| {
            let figures = top::look_again(place, guests);
            (Instant::now(), figures)
        });
        let body = exposition(&figures, format);
        *last = Some((at, figures));
        Document { content_type: format.content_type(), body }
    };
    listener.serve(signals.as_fd(), &document).map_err(|error| Failure::machine(anyhow::Error::new(error)))?;
    Ok(ExitStatus::Done)
}
