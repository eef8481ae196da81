//! `vmctl plan`: shows the changes that a fleet file would make.

use std::fmt::Write;

use super::render::FleetFile;
use super::{App, ExitStatus, Failure, Outcome, OutputFormat};
use crate::guest::fleet::plan::{self, Change, Class, FleetPlan, GuestAction, GuestPlan, Scope};
use crate::guest::fleet::switches::SwitchPlan;

/// Show the changes that a fleet file would make
///
/// Lists them key by key with the file and line that sets them: new things, changes that take effect at once, changes
/// at the next boot, recreated things, and removed things. `drift` marks what was changed by hand. Changes nothing.
///
/// Exits with 0 if there is nothing to do, with 2 if there is, and with 1 if something is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetFile,
    #[command(flatten)]
    selection: FleetSelection,
    /// As for `apply --reboot`
    #[arg(long, value_enum, default_value = "never", value_name = "WHEN")]
    reboot: Reboot,
}

/// Scope of a command on a fleet.
#[derive(Debug, Clone, clap::Args)]
pub struct FleetSelection {
    /// Only these guests: names or globs
    #[arg(long = "target", value_name = "GUEST")]
    targets: Vec<String>,
    /// Also remove guests and switches that are not in the fleet file any more, and disks that no guest has any more
    #[arg(long)]
    pub prune: bool,
}

/// When to restart running guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reboot {
    /// Never; changes wait for a restart
    Never,
    /// When a change takes effect only at the next boot
    WhenNeeded,
}

impl FleetSelection {
    /// Converts it for the planner.
    pub fn scope(&self, reboot: Reboot) -> Scope {
        Scope { targets: self.targets.clone(), prune: self.prune, reboot: reboot == Reboot::WhenNeeded }
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        self.planned(app).map_err(|failure| Failure { status: ExitStatus::User, ..failure })
    }

    fn planned(&self, app: &App) -> Outcome {
        let (fleet, context) = self.fleet.load_with_context(app)?;
        let plan = plan::plan(&fleet, &context.store, context.surroundings(), &self.selection.scope(self.reboot))?;
        show(app, &plan)?;
        let refused = refusals(app, &plan);
        match (refused, plan.has_changes()) {
            (ExitStatus::Done, true) => Ok(ExitStatus::Changes),
            (status, _) => Ok(status),
        }
    }
}

/// Prints a plan.
pub fn show(app: &App, plan: &FleetPlan) -> Result<(), Failure> {
    let wide = app.ui.format() == OutputFormat::Wide;
    match app.ui.format() {
        OutputFormat::Name => app.ui.data(&names(plan)),
        _ => app.ui.record("plan", 1, plan, &plan.fleet, &text(plan, wide, app.ui.colours_data())),
    }
}

/// Reports the refused guests. Returns the status of the command.
pub fn refusals(app: &App, plan: &FleetPlan) -> ExitStatus {
    let mut status = ExitStatus::Done;
    for switch in &plan.switches {
        if let Some(why) = &switch.refused {
            let failure = Failure::user(why);
            let failure = match &switch.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            };
            status = status.max(app.ui.failure_about(true, &format!("switch {}", switch.name), &failure));
        }
    }
    for guest in &plan.guests {
        if let Some(why) = &guest.refused {
            let failure = Failure::user(why);
            let failure = match why {
                why if why.ends_with("is protected") => failure.hint("set `protected = false` in its guest file first"),
                why if why.contains("belongs to") => {
                    failure.hint("name the guest differently in the fleet file, or remove the other one")
                }
                _ => failure,
            };
            status = status.max(app.ui.failure_about(true, &guest.name, &failure));
        }
    }
    status
}

fn names(plan: &FleetPlan) -> String {
    plan.guests.iter().filter(|guest| guest.does_something()).map(|guest| guest.name.clone() + "\n").collect()
}

/// Returns title, mark and colour of a class.
fn look(class: Class) -> (&'static str, char, &'static str) {
    match class {
        Class::Create => ("create", '+', "32"),
        Class::Live => ("live", '~', "36"),
        Class::NextBoot => ("next boot", '~', "33"),
        Class::Recreate => ("recreate", '!', "35"),
        Class::Destroy => ("destroy", '-', "31"),
    }
}

/// Returns a plan as text for users.
pub fn text(plan: &FleetPlan, wide: bool, colour: bool) -> String {
    let paint = |text: &str, code: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut text = String::new();
    if plan.interrupted {
        let _ = writeln!(text, "{}", paint("an apply of this fleet was interrupted; the next one finishes it", "1;33"));
    }
    let width = plan.guests.iter().map(|guest| guest.name.len()).max().unwrap_or(0);
    for class in [Class::Create, Class::Live, Class::NextBoot, Class::Recreate, Class::Destroy] {
        let (title, mark, code) = look(class);
        let mut lines = Vec::new();
        if class == Class::Live {
            lines.extend(plan.secrets.iter().map(|id| format!("{mark} secret {id}: it is new, or another one")));
        }
        for switch in &plan.switches {
            let mut changes = switch.changes.iter().filter(|change| change.class == class).peekable();
            match class {
                Class::Create if !wide => lines.extend(changes.peek().map(|_| format!("{mark} {}", created_switch(switch)))),
                _ => lines.extend(changes.map(|change| format!("{mark} switch {}: {}", switch.name, words(change)))),
            }
        }
        for guest in plan.guests.iter().filter(|guest| guest.action != GuestAction::Leave) {
            let changes = guest.changes.iter().filter(|change| change.class == class);
            match class {
                Class::Create if !wide => lines.extend(changes.take(1).map(|_| format!("{mark} {}", created(guest, width)))),
                _ => lines.extend(changes.map(|change| format!("{mark} {:width$}  {}", guest.name, words(change)))),
            }
        }
        if !lines.is_empty() {
            let _ = writeln!(text, "{}", paint(title, &format!("1;{code}")));
            text.extend(lines.iter().map(|line| format!("  {}\n", paint(line.trim_end(), code))));
        }
    }
    for guest in plan.guests.iter().filter(|guest| guest.restart) {
        let _ = writeln!(text, "{}: a restart is due", guest.name);
    }
    for switch in plan.switches.iter().filter(|switch| switch.action == GuestAction::Leave) {
        let _ = writeln!(text, "switch {}: not in the fleet file any more; `--prune` removes it", switch.name);
    }
    for guest in &plan.guests {
        if guest.action == GuestAction::Leave {
            let _ = writeln!(text, "{}: not in the fleet file any more; `--prune` removes it", guest.name);
        }
        for path in &guest.left_over {
            let _ = writeln!(text, "{}: `{}` is not a disk of it any more; `--prune` removes it", guest.name, path.display());
        }
    }
    text + &paint(&total(plan), "1") + "\n"
}

/// Describes a new guest in one line.
fn created(guest: &GuestPlan, width: usize) -> String {
    let find = |key: &str| guest.changes.iter().find(|change| change.key == key);
    let value = |key: &str| find(key).and_then(|change| change.after.clone()).map(|value| value.trim_matches('"').to_owned());
    let cpus = value("cpus.count").unwrap_or_else(|| "1".into());
    let mut parts = vec![if cpus == "1" { "1 CPU".to_owned() } else { format!("{cpus} CPUs") }];
    parts.extend(value("memory.size"));
    let disks = guest.changes.iter().filter(|change| change.key.starts_with("disks.") && change.key.ends_with(".size"));
    parts.extend(disks.map(|change| {
        let id = change.key.trim_start_matches("disks.").trim_end_matches(".size");
        format!("{id} {}", change.after.as_deref().unwrap_or_default().trim_matches('"'))
    }));
    placed(format!("{:width$}  {}", guest.name, parts.join(", ")), find("name"))
}

/// Describes a new switch in one line.
fn created_switch(switch: &SwitchPlan) -> String {
    let find = |key: &str| switch.changes.iter().find(|change| change.key == key);
    let value = |key: &str| {
        let value = find(key)?.after.clone()?;
        Some(value.trim_matches(['[', ']']).replace('"', "")).filter(|value| !value.is_empty())
    };
    let mut parts = vec![value("type").unwrap_or_else(|| "bridge".into())];
    parts.extend(["uplinks", "vlan", "addresses"].into_iter().filter_map(|key| Some(format!("{key} {}", value(key)?))));
    placed(format!("switch {}  {}", switch.name, parts.join(", ")), find("id"))
}

/// Adds the position of its name to a line about something new.
fn placed(line: String, name: Option<&Change>) -> String {
    match name.and_then(|change| Some((change.source.as_ref()?, change.line?))) {
        Some((source, at)) => format!("{line:<56}  # {source}:{at}"),
        None => line,
    }
}

/// Describes one change in words, with its position.
fn words(change: &Change) -> String {
    let mut line = match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!("{}: {before} -> {after}", change.key),
        (None, Some(after)) => format!("{}: {after}", change.key),
        (Some(before), None) => format!("{}: {before} -> not set", change.key),
        (None, None) => change.key.clone(),
    };
    if let Some(note) = &change.note {
        line += if line.is_empty() { "" } else { ": " };
        line += note;
    }
    if change.drift {
        line += " (drift)";
    }
    match (&change.source, change.line) {
        (Some(source), Some(at)) => format!("{line:<40}  # {source}:{at}"),
        (Some(source), None) => format!("{line:<40}  # {source}"),
        _ => line,
    }
}

fn total(plan: &FleetPlan) -> String {
    let mut parts = Vec::new();
    for (action, words) in
        [(GuestAction::Create, "to create"), (GuestAction::Change, "to change"), (GuestAction::Destroy, "to destroy")]
    {
        let count = plan.guests.iter().filter(|guest| guest.action == action && guest.refused.is_none()).count();
        parts.extend((count > 0).then(|| format!("{count} {words}")));
    }
    if parts.is_empty() {
        parts.push(if plan.has_changes() { "no guest to change".to_owned() } else { "nothing to do".to_owned() });
    }
    parts.push(format!("{} as they should be", plan.unchanged));
    if plan.elsewhere > 0 {
        parts.push(format!("{} for other hosts", plan.elsewhere));
    }
    format!("{}: {}", plan.fleet, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(changes: Vec<Change>) -> FleetPlan {
        let guest = GuestPlan {
            name: "web".into(),
            action: GuestAction::Change,
            running: true,
            restart: true,
            changes,
            refused: None,
            left_over: Vec::new(),
        };
        let fleet = "room".to_owned();
        FleetPlan {
            fleet,
            interrupted: false,
            guests: vec![guest],
            secrets: Vec::new(),
            switches: Vec::new(),
            unchanged: 3,
            elsewhere: 1,
        }
    }

    fn memory() -> Change {
        Change {
            class: Class::NextBoot,
            key: "memory.size".into(),
            before: Some("\"512M\"".into()),
            after: Some("\"1G\"".into()),
            source: Some("fleet.toml".into()),
            line: Some(7),
            drift: false,
            note: None,
        }
    }

    #[test]
    fn a_plan_is_coloured_for_a_terminal_and_says_the_same_without() {
        let plan = plan_of(vec![memory(), Change { class: Class::Destroy, drift: true, ..memory() }]);
        let plain = text(&plan, false, false);
        let expected = "next boot\n  ~ web  memory.size: \"512M\" -> \"1G\"               # fleet.toml:7\n\
                        destroy\n  - web  memory.size: \"512M\" -> \"1G\" (drift)       # fleet.toml:7\n\
                        web: a restart is due\nroom: 1 to change, 3 as they should be, 1 for other hosts\n";
        assert_eq!(plain, expected);
        let coloured = text(&plan, false, true);
        assert!(coloured.contains("\x1b[1;31mdestroy\x1b[0m\n  \x1b[31m- web"), "{coloured:?}");
        let mut stripped = coloured;
        for code in ["1;33", "1;31", "33", "31", "1", "0"] {
            stripped = stripped.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(stripped, plain);
    }
}
