//! `vmctl switch`: manages switches.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::{App, Column, ExitStatus, Failure, Outcome};
use crate::config::{HostConfig, HostPaths, SwitchConfig};
use crate::guest::switch;
use crate::host::error::HostError;
use crate::host::program;
use crate::host::switch::status::{self, Status};
use crate::host::switch::steps::{self, SwitchSteps};
use crate::host::switch::take_over::take_over;
use crate::host::switch::{Observed, Switch};
use crate::units::ByteSize;

/// Make, show and remove switches of the host file and of fleets
///
/// Switches that `vmctl apply` made for a fleet are treated like those of the host file.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the switches and their state
    #[command(alias = "ls")]
    List,
    /// Show the details of one or more switches
    Info {
        /// Switches; all by default
        #[arg(value_name = "SWITCH")]
        names: Vec<String>,
    },
    /// Show the commands that making a switch would run, but run none
    ///
    /// Exits with 2 if there is something to do.
    Plan {
        /// Switches; all by default
        #[arg(value_name = "SWITCH")]
        names: Vec<String>,
    },
    /// Make the missing parts of switches
    ///
    /// An existing switch is left alone. If a step fails, the steps before it are undone.
    #[command(alias = "up")]
    Create {
        /// Switches
        #[arg(value_name = "SWITCH", required_unless_present = "all")]
        names: Vec<String>,
        /// Every switch
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Do not ask, even if it could cut this session's own network
        #[arg(short, long)]
        yes: bool,
        /// Make the switch in place of this bridge of another manager, which is removed (one switch only)
        #[arg(long, value_name = "BRIDGE", conflicts_with = "all")]
        take_over: Option<String>,
    },
    /// Take switches down
    ///
    /// Removes only what vmctl made. A switch with guests is refused.
    #[command(alias = "down")]
    Destroy {
        /// Switches
        #[arg(value_name = "SWITCH", required_unless_present = "all")]
        names: Vec<String>,
        /// Every switch
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Do not ask, even if it could cut this session's own network
        #[arg(short, long)]
        yes: bool,
        /// Take it down even if guests are on it, which then have no network
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

/// The plan of one switch, for programs.
#[derive(Serialize)]
struct Planned {
    name: String,
    steps: Vec<String>,
    risks: Vec<String>,
    notes: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let here = Here { app, host: app.host()?, runtime: HostPaths::of_this_user()?.runtime_dir };
        match self.verb {
            Verb::List => here.list(),
            Verb::Info { names } => here.info(&names),
            Verb::Plan { names } => here.plan(&names),
            Verb::Create { names, yes, take_over, .. } => here.create(&names, yes, take_over.as_deref()),
            Verb::Destroy { names, yes, force, .. } => here.destroy(&names, yes, force),
        }
    }
}

struct Here<'a> {
    app: &'a App,
    host: HostConfig,
    runtime: PathBuf,
}

impl Here<'_> {
    /// Returns the switches of these names, or all of them, with the state of the host.
    fn look(&self, names: &[String]) -> Result<(Vec<Switch>, Observed), Failure> {
        let chosen = switch::chosen(&self.host, names)?;
        let observed = Observed::look(&chosen, &self.runtime)?;
        Ok((chosen, observed))
    }

    fn list(&self) -> Outcome {
        let (chosen, observed) = self.look(&[])?;
        let rows: Vec<Status> = chosen.iter().map(|switch| status::look(switch, &observed, &self.runtime, false)).collect();
        self.app.ui.list("switches", 1, &rows, &COLUMNS, |status| status.name.clone())?;
        if !self.app.ui.is_json() {
            for row in &rows {
                row.problem.iter().for_each(|problem| self.app.ui.warn(format!("{}: {problem}", row.name)));
            }
        }
        Ok(ExitStatus::Done)
    }

    fn info(&self, names: &[String]) -> Outcome {
        let (chosen, observed) = self.look(names)?;
        for switch in &chosen {
            let row = status::look(switch, &observed, &self.runtime, true);
            let declared = self.host.switches.iter().find(|it| it.id == switch.id).map(SwitchConfig::declared);
            self.app.ui.record("switches", 1, &row, &row.name, &info(&row, &declared.unwrap_or_default()))?;
        }
        Ok(ExitStatus::Done)
    }

    fn plan(&self, names: &[String]) -> Outcome {
        let (app, (chosen, observed)) = (self.app, self.look(names)?);
        let mut rows = Vec::new();
        let status = app.ui.each(
            &chosen,
            |switch| switch.id.clone(),
            |switch| {
                let plan = steps::create(switch, &observed, &self.runtime)?;
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
        let pending = rows.iter().any(|row| !row.steps.is_empty());
        Ok(status.max(if pending { ExitStatus::Machine } else { ExitStatus::Done }))
    }

    /// Runs an action on each. The state is read again for each, since an earlier switch may have changed it.
    fn each(&self, names: &[String], action: impl Fn(&Switch, &Observed) -> Outcome) -> Outcome {
        let (chosen, _) = self.look(names)?;
        self.app.ui.each(
            &chosen,
            |switch| switch.id.clone(),
            |switch| action(switch, &Observed::look(std::slice::from_ref(switch), &self.runtime)?),
        )
    }

    fn create(&self, names: &[String], yes: bool, replaced: Option<&str>) -> Outcome {
        if replaced.is_some() && names.len() != 1 {
            return Err(Failure::user("`--take-over` makes one switch in the place of a bridge, and several were named"));
        }
        self.each(names, |switch, observed| {
            let plan = match replaced {
                Some(bridge) => take_over(switch, bridge, observed, &self.runtime)?,
                None => steps::create(switch, observed, &self.runtime)?,
            };
            if plan.steps.is_empty() {
                self.app.ui.done(format!("{} is there", switch.id));
                return Ok(ExitStatus::Done);
            }
            agree(self.app, &plan, &switch.id, yes)?;
            program::perform(&plan.steps).map_err(HostError::from)?;
            self.app.ui.done(format!("{} is made", switch.id));
            plan.notes.iter().for_each(|note| self.app.ui.warn(note));
            Ok(ExitStatus::Done)
        })
    }

    fn destroy(&self, names: &[String], yes: bool, force: bool) -> Outcome {
        self.each(names, |switch, observed| {
            let plan = steps::destroy(switch, observed, &self.runtime, force)?;
            agree(self.app, &plan, &switch.id, yes)?;
            let failed = program::perform_all(&plan.steps);
            if !failed.is_empty() {
                return Err(Failure::user(format!("`{}` is not removed completely: {}", switch.id, failed.join("; "))));
            }
            self.app.ui.done(format!("{} is gone", switch.id));
            Ok(ExitStatus::Done)
        })
    }
}

/// Asks before steps that could cut the session's own network.
fn agree(app: &App, plan: &SwitchSteps, name: &str, yes: bool) -> Result<(), Failure> {
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
    let _ = write!(std::io::stderr(), "Continue? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(refused()) }
}

fn info(row: &Status, declared: &str) -> String {
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let bytes = |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), |n| ByteSize::from_bytes(n).to_string());
    let mut lines = vec![
        ("name", row.name.clone()),
        ("type", row.kind.to_owned()),
        ("state", row.state.to_owned()),
        ("declared", format!("in {}", declared.replace('`', ""))),
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
