//! `vmctl metrics`: prints or serves metrics of guests.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::attach::signal_stream;
use super::selection::CommandContext;
use super::{AnyGuests, App, ExitStatus, Failure, Guests, Outcome, top};
use crate::guest::figures::Figures;
use crate::guest::metrics::exposition;
use crate::guest::metrics_format::Format;
use crate::host::scrape::{Document, Listen, Listener};

/// Show metrics of guests for Prometheus
///
/// Prints them once in Prometheus' text format. With --listen, serves them at `/metrics` until a signal ends it, in
/// OpenMetrics if a client asks for it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: AnyGuests,
    /// Address for HTTP: a loopback address with its port (0 for a free one), or `unix:PATH`
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

/// Requests within this time get the same figures, so that many clients cost the guests no more than one.
const FRESH: Duration = Duration::from_millis(500);

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let listen = self.listen.as_deref().map(str::parse::<Listen>).transpose()?;
        let guests = self.guests.guests();
        let context = app.context_to_look()?;
        match listen {
            Some(listen) => serve(app, &context, &guests, &listen),
            None => {
                let (figures, status) = top::look(app, &context, &guests)?;
                match app.ui.is_json() {
                    true => app.ui.list("guest-figures", 1, &figures, &[], |guest| guest.overview.name.clone())?,
                    false => app.ui.data(&exposition(&figures, Format::Prometheus))?,
                }
                Ok(status)
            }
        }
    }
}

fn serve(app: &App, context: &CommandContext, guests: &Guests, listen: &Listen) -> Outcome {
    let signals = signal_stream()?;
    let listener = Listener::open(listen)?;
    app.ui.done(format!("listening on {}", listener.address()));
    let last: Mutex<Option<(Instant, Vec<Figures>)>> = Mutex::new(None);
    let document = |accept: &str| {
        let format = Format::of_accept(accept);
        let mut last = last.lock().expect("no panic happens under this lock");
        let fresh = last.take().filter(|(at, _)| at.elapsed() < FRESH);
        let (at, figures) = fresh.unwrap_or_else(|| {
            let figures = top::look_again(context, guests);
            (Instant::now(), figures)
        });
        let body = exposition(&figures, format);
        *last = Some((at, figures));
        Document { content_type: format.content_type(), body }
    };
    listener.serve(signals.as_fd(), &document).map_err(|error| Failure::machine(anyhow::Error::new(error)))?;
    Ok(ExitStatus::Done)
}
