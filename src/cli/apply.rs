//! `vmctl apply`: changes the guests to match a fleet file.

use std::io::IsTerminal;
use std::sync::Mutex;

use dialoguer::{Confirm, Input};

use super::plan::{FleetSelection, Reboot, refusals, show};
use super::progress::{Awaited, ProgressDisplay, asking, watch_signals};
use super::render::FleetFile;
use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::Fleet;
use crate::guest::fleet::apply::{Apply, FleetLock, Manner};
use crate::guest::fleet::plan::{self, FleetPlan, GuestAction};
use crate::guest::logs::LastLine;

/// Change the guests to match a fleet file
///
/// Shows the plan, asks, and applies it: first the switches that the fleet declares, then guest by guest. If a guest
/// fails, it is restored and the others continue. If an apply is killed, the next one completes it. Does not start
/// guests; `vmctl up` does.
///
/// No data is removed without `--prune`, which also asks for the fleet's name. Without a terminal, both `--yes` and
/// `--prune` are needed. A guest with `protected = true` is never removed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetFile,
    #[command(flatten)]
    selection: FleetSelection,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Maximum number of guests at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Whether to restart running guests
    #[arg(long, value_enum, default_value = "never", value_name = "WHEN")]
    reboot: Reboot,
    /// Wait while another apply works on the fleet
    #[arg(long)]
    wait: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let (fleet, context) = self.fleet.load_with_context(app)?;
        let waiting = |pid: u32| app.ui.done(format!("waiting for another apply (process {pid})"));
        let lock = FleetLock::take(&fleet.name, context.surroundings().datastore, self.wait, waiting)?;
        let recovered = lock.recover(&context.store)?;
        if !recovered.is_empty() {
            app.ui.done(format!("an apply was interrupted at {}; continuing", recovered.join(", ")));
        }
        let plan = plan::plan(&fleet, &context.store, context.surroundings(), &self.selection.scope(self.reboot))?;
        let refused = refusals(app, &plan);
        let how = (usize::from(self.parallel), self.selection.prune, self.reboot == Reboot::WhenNeeded);
        if !plan.has_changes() {
            // This also removes the remains of a killed apply.
            carry_out(app, &lock, &fleet, &plan, &context, how, &half_applied(&fleet))?;
            app.ui.done(format!("{}: nothing to do", fleet.name));
            return Ok(refused);
        }
        if !self.yes || app.ui.is_json() {
            show(app, &plan)?;
        }
        self.ask(&plan)?;
        let done = carry_out(app, &lock, &fleet, &plan, &context, how, &half_applied(&fleet))?;
        Ok(refused.max(done))
    }

    fn ask(&self, plan: &FleetPlan) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            let flags = if plan.destroys() { "add `--yes` beside `--prune`" } else { "add `--yes`" };
            return Err(Failure::user("nothing is applied without confirmation").hint(flags));
        }
        let asked = asking(|| Confirm::new().with_prompt("Apply this?").default(false).interact());
        if !asked.map_err(unanswered)? {
            return Err(Failure::user("nothing was applied"));
        }
        if plan.destroys() {
            let count = plan.count(GuestAction::Destroy);
            let prompt = format!(
                "{count} guests and their disks, or disks of others, are removed permanently. Type `{}` to continue",
                plan.fleet
            );
            let answer =
                asking(|| Input::<String>::new().with_prompt(prompt).allow_empty(true).interact_text()).map_err(unanswered)?;
            if answer != plan.fleet {
                return Err(Failure::user("nothing was applied"));
            }
        }
        Ok(())
    }
}

/// Returns the words for a guest of a fleet whose step a signal broke off.
pub fn half_applied(fleet: &Fleet) -> impl Fn(&str) -> String + Sync + '_ {
    |name| {
        let file = fleet.file.display();
        format!("{name} is half done, and the next `vmctl apply` finishes it or puts it back: {file}")
    }
}

/// Carries a plan out, and prints the result for each guest and switch. The three of `how` are the number of guests at
/// once, whether data may be removed, and whether guests may be booted again. `rest` is printed for a guest whose step a
/// signal broke off.
pub fn carry_out(
    app: &App,
    lock: &FleetLock,
    fleet: &Fleet,
    plan: &FleetPlan,
    context: &CommandContext,
    (parallel, prune, reboot): (usize, bool, bool),
    rest: &(dyn Fn(&str) -> String + Sync),
) -> Outcome {
    let worst = Mutex::new(ExitStatus::Done);
    let manner = Manner { parallel, prune, reboot, progress: &ProgressDisplay::new(&app.ui) };
    let begin = |name: &str, action: GuestAction| {
        let (what, reboots) = match action {
            GuestAction::Create => ("making its disks", false),
            GuestAction::Destroy => ("removing its disks", false),
            _ if reboot => ("changing it, and waiting until it has shut down and runs again", true),
            _ => ("changing it", false),
        };
        let log = reboots.then(|| LastLine::from_now(context.store.directory_of(name).console_log()));
        app.ui.wait(Awaited { log, ..Awaited::work(name, what, rest(name)) })
    };
    let apply = Apply { lock, fleet, plan, store: &context.store, surroundings: context.surroundings(), manner };
    apply.run(begin, |outcome| {
        let words = match outcome.action {
            GuestAction::Create => "is made",
            GuestAction::Destroy => "is gone",
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
