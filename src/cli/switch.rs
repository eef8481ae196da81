//! `vmctl switch`.

use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;

use super::{App, Column, ExitStatus, Failure, Outcome};
use crate::config::HostPaths;
use crate::guest::switches;
use crate::host::program;
use crate::host::switch::plan::{self, Plan};
use crate::host::switch::status::{self, Status};
use crate::host::switch::{Observed, Switch};
use crate::units::ByteSize;

/// Make, show and remove the switches of the host file
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the switches of the host file and how they stand
    List,
    /// Show one or more switches closely
    Info {
        /// Switches; all if left out
        #[arg(value_name = "SWITCH")]
        names: Vec<String>,
    },
    /// Show what making a switch would do, as commands, and do nothing
    ///
    /// Exits with 2 when there is something to do.
    Plan {
        /// Switches; all if left out
        #[arg(value_name = "SWITCH")]
        names: Vec<String>,
    },
    /// Make what is missing of switches
    ///
    /// A switch that is there is left alone. What was made is taken back when a later step fails.
    #[command(alias = "up")]
    Create {
        /// Switches
        #[arg(value_name = "SWITCH", required_unless_present = "all")]
        names: Vec<String>,
        /// Every switch of the host file
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Do not ask, even if it could cut this session's own network
        #[arg(short, long)]
        yes: bool,
    },
    /// Take switches down
    ///
    /// Only what vmctl made goes. A switch that guests are on is refused.
    #[command(alias = "down")]
    Destroy {
        /// Switches
        #[arg(value_name = "SWITCH", required_unless_present = "all")]
        names: Vec<String>,
        /// Every switch of the host file
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Do not ask, even if it could cut this session's own network
        #[arg(short, long)]
        yes: bool,
        /// Even while guests are on it, which then have no network
        #[arg(short, long)]
        force: bool,
    },
}

const COLUMNS: [Column<Status>; 10] = [
    Column { title: "NAME", wide: false, text: |status| status.name.clone() },
    Column { title: "TYPE", wide: false, text: |status| status.kind.to_owned() },
    Column { title: "STATE", wide: false, text: |status| status.state.to_owned() },
    Column { title: "BRIDGE", wide: false, text: |status| status.bridge.clone().unwrap_or_default() },
    Column { title: "UPLINKS", wide: false, text: uplinks },
    Column { title: "ADDRESSES", wide: false, text: |status| status.addresses.join(",") },
    Column { title: "MTU", wide: true, text: |status| status.mtu.map(|mtu| mtu.to_string()).unwrap_or_default() },
    Column { title: "NAT", wide: false, text: |status| status.nat.clone() },
    Column { title: "DHCP", wide: true, text: |status| status.dhcp.clone() },
    Column { title: "PORTS", wide: false, text: |status| status.ports.len().to_string() },
];

fn uplinks(status: &Status) -> String {
    let vlan = status.vlan.map(|vlan| format!(" vlan {vlan}")).unwrap_or_default();
    match status.uplinks.is_empty() {
        true => String::new(),
        false => format!("{}{vlan}", status.uplinks.join(",")),
    }
}

/// What `plan` says of one switch, for programs.
#[derive(Serialize)]
struct Planned {
    name: String,
    steps: Vec<String>,
    risks: Vec<String>,
    notes: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let host = app.host()?;
        let runtime = HostPaths::of_this_user()?.runtime_dir;
        let look = |names: &[String]| -> Result<(Vec<Switch>, Observed), Failure> {
            let chosen = switches::chosen(&host, names)?;
            if !program::is_freebsd() {
                return Err(
                    Failure::user("switches are FreeBSD's").hint("elsewhere guests use `backend = \"user\"`, which needs none")
                );
            }
            let observed = Observed::look(&chosen, &runtime)?;
            Ok((chosen, observed))
        };
        match self.verb {
            Verb::List => {
                let (chosen, observed) = look(&[])?;
                let rows: Vec<Status> = chosen.iter().map(|switch| status::look(switch, &observed, &runtime, false)).collect();
                app.ui.list("switches", 1, &rows, &COLUMNS, |status| status.name.clone())?;
                if !app.ui.is_json() {
                    for row in &rows {
                        row.problem.iter().for_each(|problem| app.ui.warn(format!("{}: {problem}", row.name)));
                    }
                }
                Ok(ExitStatus::Done)
            }
            Verb::Info { names } => {
                let (chosen, observed) = look(&names)?;
                for switch in &chosen {
                    let row = status::look(switch, &observed, &runtime, true);
                    let text = info(&row);
                    app.ui.record("switches", 1, &row, &row.name, &text)?;
                }
                Ok(ExitStatus::Done)
            }
            Verb::Plan { names } => {
                let (chosen, observed) = look(&names)?;
                show_plans(app, &chosen, |switch| Ok(plan::create(switch, &observed, &runtime)?))
            }
            Verb::Create { names, yes, .. } => app.ui.each(
                &look(&names)?.0,
                |switch| switch.id.clone(),
                |switch| {
                    // Looked at again: an earlier switch may have changed what this one finds.
                    let observed = Observed::look(std::slice::from_ref(switch), &runtime)?;
                    let plan = plan::create(switch, &observed, &runtime)?;
                    if plan.steps.is_empty() {
                        app.ui.done(format!("{} is there", switch.id));
                        return Ok(ExitStatus::Done);
                    }
                    agree(app, &plan, &switch.id, yes)?;
                    program::perform(&plan.steps).map_err(crate::host::error::HostError::from)?;
                    app.ui.done(format!("{} is made", switch.id));
                    plan.notes.iter().for_each(|note| app.ui.warn(note));
                    Ok(ExitStatus::Done)
                },
            ),
            Verb::Destroy { names, yes, force, .. } => app.ui.each(
                &look(&names)?.0,
                |switch| switch.id.clone(),
                |switch| {
                    let observed = Observed::look(std::slice::from_ref(switch), &runtime)?;
                    let plan = plan::destroy(switch, &observed, &runtime, force)?;
                    agree(app, &plan, &switch.id, yes)?;
                    let failed = program::perform_all(&plan.steps);
                    if !failed.is_empty() {
                        return Err(Failure::user(format!("not all of `{}` is gone: {}", switch.id, failed.join("; "))));
                    }
                    app.ui.done(format!("{} is gone", switch.id));
                    Ok(ExitStatus::Done)
                },
            ),
        }
    }
}

fn show_plans(app: &App, chosen: &[Switch], make: impl Fn(&Switch) -> Result<Plan, Failure>) -> Outcome {
    let mut rows = Vec::new();
    let mut pending = false;
    let status = app.ui.each(
        chosen,
        |switch| switch.id.clone(),
        |switch| {
            let plan = make(switch)?;
            pending |= !plan.steps.is_empty();
            rows.push(Planned {
                name: switch.id.clone(),
                steps: plan.steps.iter().map(|step| step.action.to_string()).collect(),
                risks: plan.risks,
                notes: plan.notes,
            });
            Ok(ExitStatus::Done)
        },
    )?;
    if app.ui.is_json() {
        app.ui.list("switch-plan", 1, &rows, &[], |row| row.name.clone())?;
    } else {
        for row in &rows {
            let steps = if row.steps.is_empty() { "nothing to do".into() } else { row.steps.join("\n") };
            app.ui.data(&format!("# {}\n{steps}\n", row.name))?;
            row.risks.iter().chain(&row.notes).for_each(|words| app.ui.warn(format!("{}: {words}", row.name)));
        }
    }
    Ok(status.max(if pending { ExitStatus::Machine } else { ExitStatus::Done }))
}

/// What could cut the session's own network is asked about first.
fn agree(app: &App, plan: &Plan, name: &str, yes: bool) -> Result<(), Failure> {
    if plan.risks.is_empty() {
        return Ok(());
    }
    plan.risks.iter().for_each(|risk| app.ui.warn(risk));
    if yes {
        return Ok(());
    }
    let refused = || {
        Failure::user(format!("switch `{name}` was left alone, since this session's own network could be cut"))
            .hint("do it at the console, or add `--yes`")
    };
    if !std::io::stdin().is_terminal() {
        return Err(refused());
    }
    let _ = write!(std::io::stderr(), "Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(refused()) }
}

fn info(row: &Status) -> String {
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let bytes = |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), |n| ByteSize::from_bytes(n).to_string());
    let mut lines = vec![
        ("name", row.name.clone()),
        ("type", row.kind.to_owned()),
        ("state", row.state.to_owned()),
        ("bridge", or_none(row.bridge.clone().unwrap_or_default())),
        ("uplinks", or_none(uplinks(row))),
        ("addresses", or_none(row.addresses.join(", "))),
        ("mtu", row.mtu.map_or_else(|| "unknown".into(), |mtu| mtu.to_string())),
        ("private", if row.private { "yes".into() } else { "no".into() }),
        ("nat", row.nat.clone()),
        ("dhcp", row.dhcp.clone()),
        ("ports", or_none(row.ports.join(", "))),
        ("received", bytes(row.bytes_in)),
        ("sent", bytes(row.bytes_out)),
    ];
    lines.extend(row.problem.iter().map(|problem| ("problem", problem.clone())));
    lines.into_iter().map(|(name, text)| format!("{name:<10} {text}\n")).collect()
}
