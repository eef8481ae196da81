//! `vmctl apply`: makes the guests what a fleet file says.

use std::io::IsTerminal;
use std::sync::Mutex;

use dialoguer::{Confirm, Input};

use super::plan::{Reboot, What, refusals, show};
use super::progress::Shown;
use super::render::FleetFile;
use super::selection::Place;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::Fleet;
use crate::guest::apply::{Apply, FleetLock, Manner};
use crate::guest::plan::{self, Action, Plan};

/// Make the guests what a fleet file says
///
/// Shows the plan, asks, and does it: the switches that the fleet declares, then guest by guest; a guest for which
/// something fails is put back as it was, and the others go on. Killed at any point, the next apply finishes. Does not
/// start guests; `vmctl up` does.
///
/// No data is removed without `--prune`, which asks once more: for the fleet's name. Where there is nobody to ask, both
/// `--yes` and `--prune` must be given. A guest with `protected = true` is never removed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetFile,
    #[command(flatten)]
    what: What,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How many guests at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Whether running guests are booted again
    #[arg(long, value_enum, default_value = "never", value_name = "WHEN")]
    reboot: Reboot,
    /// Wait while another apply is at work on the fleet
    #[arg(long)]
    wait: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let (fleet, place) = self.fleet.load_with_place(app)?;
        let waiting = |pid: u32| app.ui.done(format!("waiting for another apply (process {pid})"));
        let lock = FleetLock::take(&fleet.name, place.around().datastore, self.wait, waiting)?;
        let recovered = lock.recover(&place.store)?;
        if !recovered.is_empty() {
            app.ui.done(format!("an apply was interrupted at {}; going on", recovered.join(", ")));
        }
        let plan = plan::plan(&fleet, &place.store, place.around(), &self.what.scope(self.reboot))?;
        let refused = refusals(app, &plan);
        let how = (usize::from(self.parallel), self.what.prune, self.reboot == Reboot::WhenNeeded);
        if !plan.has_changes() {
            // Also what a killed apply left behind goes.
            carry_out(app, &lock, &fleet, &plan, &place, how)?;
            app.ui.done(format!("{}: nothing to do", fleet.name));
            return Ok(refused);
        }
        if !self.yes || app.ui.is_json() {
            show(app, &plan)?;
        }
        self.ask(&plan)?;
        let done = carry_out(app, &lock, &fleet, &plan, &place, how)?;
        Ok(refused.max(done))
    }

    fn ask(&self, plan: &Plan) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            let flags = if plan.destroys() { "add `--yes` beside `--prune`" } else { "add `--yes`" };
            return Err(Failure::user("nothing is applied without being asked about").hint(flags));
        }
        let asked = Confirm::new().with_prompt("Apply this?").default(false).interact();
        if !asked.map_err(unanswered)? {
            return Err(Failure::user("nothing was applied"));
        }
        if plan.destroys() {
            let count = plan.count(Action::Destroy);
            let prompt = format!(
                "{count} guests and their disks, or disks of others, are removed for good. Type `{}` to go on",
                plan.fleet
            );
            let answer: String = Input::new().with_prompt(prompt).allow_empty(true).interact_text().map_err(unanswered)?;
            if answer != plan.fleet {
                return Err(Failure::user("nothing was applied"));
            }
        }
        Ok(())
    }
}

/// Carries a plan out, and says what became of each guest and switch. `how` is how many at once, and whether data may be
/// removed and guests booted again.
pub fn carry_out(
    app: &App,
    lock: &FleetLock,
    fleet: &Fleet,
    plan: &Plan,
    place: &Place,
    (parallel, prune, reboot): (usize, bool, bool),
) -> Outcome {
    let worst = Mutex::new(ExitStatus::Done);
    let manner = Manner { parallel, prune, reboot, progress: &Shown::new(&app.ui) };
    Apply { lock, fleet, plan, store: &place.store, around: place.around(), manner }.run(|outcome| {
        let words = match outcome.action {
            Action::Create => "is made",
            Action::Destroy => "is gone",
            _ if outcome.restarted => "has changed, and runs again",
            _ => "has changed",
        };
        match outcome.error {
            None => app.ui.done(format!("{} {words}", outcome.what)),
            Some(error) => {
                let status = app.ui.failure_about(true, &outcome.what, &Failure::from(error));
                let mut worst = worst.lock().expect("no panic happens under this lock");
                *worst = (*worst).max(status);
            }
        }
    })?;
    Ok(worst.into_inner().expect("no panic happened under this lock"))
}

fn unanswered(error: dialoguer::Error) -> Failure {
    Failure::user(format!("nothing was applied: {error}"))
}
