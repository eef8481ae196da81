//! `vmctl destroy`: removes guests and their disks.

use std::path::PathBuf;

use super::apply::carry_out;
use super::ask::{Consent, count};
use super::group::FLEET_FILE;
use super::plan::refusals;
use super::progress::{Awaited, watch_signals};
use super::render::FleetFile;
use super::selection::CommandContext;
use super::stop::{ending, is_running};
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::Fleet;
use crate::guest::control::Request;
use crate::guest::create;
use crate::guest::definition::Definition;
use crate::guest::fleet::apply::FleetLock;
use crate::guest::fleet::plan::{self, FleetPlan, GuestPlan, Scope};
use crate::guest::stopping::end_guest;
use crate::guest::store::GuestDir;

/// Remove guests and their disks
///
/// Asks first; with several guests, `all` answers for the rest. Files and devices that a guest file names by a path are
/// kept, and so is a guest file outside the datastore. A guest with `protected = true` is refused, and so is one that
/// runs.
///
/// `--fleet` removes all guests of a fleet, also those that its file does not name any more, and the switches that it
/// has declared. It shows them and asks once. While one of them is protected or runs, none is removed. The fleet file
/// is kept.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or globs, like `web1` or `web*`
    #[arg(value_name = "GUEST", required_unless_present_any = ["all", "tags", "fleet"])]
    names: Vec<String>,
    /// Every guest with this tag; with several tags, the guests that have all of them
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Every guest
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Every guest of a fleet: that of a fleet file, or of `fleet.toml` in this folder
    #[arg(long, value_name = "FLEET", num_args = 0..=1, default_missing_value = FLEET_FILE, conflicts_with_all = ["names", "tags", "all"])]
    fleet: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Power off a running guest first
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        if let Some(file) = &self.fleet {
            return self.run_fleet(app, file.clone());
        }
        let context = app.context()?;
        let chosen = Guests { names: self.names.clone(), tags: self.tags.clone(), all: self.all }.choose(&context)?;
        let mut consent = Consent::new(self.yes, chosen.len() > 1);
        app.each_in_turn(chosen, |guest| {
            let name = guest.name();
            if is_running(guest) && !self.force {
                return Err(Failure::user(format!("`{name}` is running"))
                    .hint(format!("stop it first with `vmctl stop {name}`, or add `--force`")));
            }
            let unasked = || Failure::user(format!("`{name}` is not removed without confirmation")).hint("add `--yes`");
            if !consent.ask(&format!("Remove {name} and its disks?"), unasked)? {
                return Err(Failure::user(format!("`{name}` was not removed")));
            }
            power_off(app, guest, &context)?;
            let stays = what_stays(guest, &context);
            let rest = format!("{name} may be half removed: `vmctl destroy {name}` removes what is left of it");
            let shown = app.ui.wait(Awaited::work(name, "removing it and its disks", rest));
            create::destroy(&context.store, guest, context.surroundings())?;
            drop(shown);
            app.ui.done(format!("{name} is gone{stays}"));
            Ok(ExitStatus::Done)
        })
    }

    fn run_fleet(&self, app: &App, file: PathBuf) -> Outcome {
        let (declared, context) = FleetFile::of(file).load_with_context(app)?;
        // What belongs to a fleet that declares nothing any more is what ends with it.
        let fleet = Fleet { guests: Vec::new(), secrets: Vec::new(), switches: Vec::new(), ..declared };
        let waiting = |pid: u32| app.ui.done(format!("waiting for an apply (process {pid})"));
        let lock = FleetLock::take(&fleet.name, context.surroundings().datastore, true, waiting)?;
        lock.recover(&context.store)?;
        let scope = Scope { targets: Vec::new(), prune: true, reboot: false };
        let plan = plan::plan(&fleet, &context.store, context.surroundings(), &scope)?;
        let refused = refusals(app, &plan);
        if refused != ExitStatus::Done {
            return Ok(refused);
        }
        if !plan.has_changes() {
            app.ui.done(format!("nothing of the fleet `{}` is there", fleet.name));
            return Ok(ExitStatus::Done);
        }
        let running: Vec<&GuestPlan> = plan.guests.iter().filter(|guest| guest.running).collect();
        if let (Some(guest), false) = (running.first(), self.force) {
            return Err(Failure::user(format!("`{}` of the fleet `{}` is running", guest.name, fleet.name))
                .hint("stop the fleet first with `vmctl down`, or add `--force`"));
        }
        if !self.yes {
            app.ui.words_for_a_question(&listing(&plan));
        }
        let unasked =
            || Failure::user(format!("the fleet `{}` is not removed without confirmation", fleet.name)).hint("add `--yes`");
        if !Consent::new(self.yes, false).ask(&question(&plan), unasked)? {
            return Err(Failure::user(format!("the fleet `{}` was not removed", fleet.name)));
        }
        for guest in running {
            power_off(app, &context.store.directory_of(&guest.name), &context)?;
        }
        let file = fleet.file.display();
        let rest = |name: &str| format!("{name} may be half removed: `vmctl destroy --fleet {file}` removes what is left");
        carry_out(app, &lock, &fleet, &plan, &context, (4, true, false), &rest)
    }
}

/// Returns the files of the user's that a guest leaves: its own file, and disks at a path.
fn what_stays(guest: &GuestDir, context: &CommandContext) -> String {
    let linked = std::fs::read_link(guest.file()).is_ok();
    let own = linked.then(|| guest.config_file());
    let config = Definition::load(guest, context.surroundings()).ok().map(|definition| definition.config);
    let disks = config.into_iter().flat_map(|config| config.disks).filter_map(|disk| disk.path);
    let stays: Vec<String> =
        own.into_iter().chain(disks).filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    if stays.is_empty() { String::new() } else { format!("; left where they are: {}", stays.join(", ")) }
}

/// Powers off a guest that runs, unless it is protected: one that cannot be removed is not powered off either.
fn power_off(app: &App, guest: &GuestDir, context: &CommandContext) -> Result<(), Failure> {
    if !is_running(guest) {
        return Ok(());
    }
    if Definition::load(guest, context.surroundings()).is_ok_and(|definition| definition.config.protected) {
        return Err(Failure::user(format!("`{}` is protected", guest.name()))
            .hint(format!("set `protected = false` first: `vmctl edit {}`", guest.name())));
    }
    let _shown = app.ui.wait(ending(guest, &Request::Poweroff));
    match end_guest(guest, &Request::Poweroff, None) {
        // A guest that ended meanwhile is no error here.
        Err(error) if is_running(guest) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns what of a fleet is there, a line each.
fn listing(plan: &FleetPlan) -> String {
    let guests = plan.guests.iter().map(|guest| format!("  {}{}\n", guest.name, if guest.running { " (running)" } else { "" }));
    guests.chain(plan.switches.iter().map(|switch| format!("  switch {}\n", switch.name))).collect()
}

fn question(plan: &FleetPlan) -> String {
    let switches = match plan.switches.len() {
        0 => String::new(),
        many => format!(", and {}", count(many, if many == 1 { "switch" } else { "switche" })),
    };
    format!("Remove the fleet {}: {} and all disks{switches}?", plan.fleet, count(plan.guests.len(), "guest"))
}
