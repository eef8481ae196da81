//! The switches that a fleet's guests are on: looked at when it is planned, made when it is applied.
//!
//! They are the host file's; a fleet file only names them. Switches are FreeBSD's: elsewhere nothing is looked at but
//! whether the host file has them.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::config::{Fleet, HostConfig, HostPaths};
use crate::host::error::HostError;
use crate::host::program;
use crate::host::switch::{Observed, Switch, plan, status};

use super::error::{GuestError, Result};
use super::switches;

/// A switch that is not as the host file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SwitchPlan {
    /// Its name.
    pub name: String,
    /// `down`, `partial` or `wrong`.
    pub state: &'static str,
    /// What is missing, or why it cannot be.
    pub note: String,
}

/// The switches of guests of this host.
fn used(fleet: &Fleet, host: &HostConfig) -> Result<Vec<Switch>> {
    let nics = fleet.here().flat_map(|guest| &guest.config.nics);
    let names: BTreeSet<&String> = nics.filter_map(|nic| nic.switch.as_ref()).collect();
    names.into_iter().map(|name| switches::named(host, name)).collect()
}

fn runtime() -> Result<std::path::PathBuf> {
    Ok(HostPaths::of_this_user()?.runtime_dir)
}

/// Those that are not as they should be.
pub fn look(fleet: &Fleet, host: &HostConfig) -> Result<Vec<SwitchPlan>> {
    let used = used(fleet, host)?;
    if used.is_empty() || !program::is_freebsd() {
        return Ok(Vec::new());
    }
    let runtime = runtime()?;
    let observed = Observed::look(&used, &runtime)?;
    let statuses = used.iter().map(|switch| status::look(switch, &observed, &runtime, false));
    let differ = statuses.filter(|status| status.state != "up");
    let words = |state: &str| if state == "down" { "it is not there, and is made".to_owned() } else { String::new() };
    Ok(differ
        .map(|status| SwitchPlan {
            note: status.problem.unwrap_or_else(|| words(status.state)),
            name: status.name,
            state: status.state,
        })
        .collect())
}

/// Makes what is missing of one. What could cut this session's own network is left to `vmctl switch create`, which asks.
pub fn make(name: &str, host: &HostConfig) -> Result<()> {
    let switch = switches::named(host, name)?;
    let runtime = runtime()?;
    let observed = Observed::look(std::slice::from_ref(&switch), &runtime)?;
    let plan = plan::create(&switch, &observed, &runtime)?;
    if let Some(risk) = plan.risks.first() {
        return Err(GuestError::user(format!("switch `{name}` is not made unasked: {risk}"))
            .hint(format!("`vmctl switch create {name}` asks about it")));
    }
    program::perform(&plan.steps).map_err(HostError::from)?;
    Ok(())
}
