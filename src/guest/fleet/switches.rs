//! The switches of a fleet: compared when it is planned; made, changed and removed when it is applied.
//!
//! A fleet declares switches, and its guests may also be on those of the host file. Both are compared with the host.
//! The declared switches are kept in the datastore ([`crate::config::fleet::switches`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::fleet::switches::{FleetSwitch, kept_file, kept_switches, kept_text};
use crate::config::{EngineKind, Fleet, HostConfig, HostPaths};
use crate::host::error::HostError;
use crate::host::files::write_atomically;
use crate::host::program;
use crate::host::switch::{Observed, Switch, change, status, steps};

use super::plan::{Change, Class, GuestAction, Targets, additions, differences, remark};
use crate::guest::definition::{Definition, Surroundings};
use crate::guest::error::{GuestError, Result};
use crate::guest::store::Store;
use crate::guest::switch;

/// Plan for one switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SwitchPlan {
    /// Its name.
    pub name: String,
    /// Action for the whole switch.
    pub action: GuestAction,
    /// Its status: `up`, `down`, `partial` or `wrong`.
    pub state: &'static str,
    /// Changes, key by key. A missing part of a switch that should exist is drift.
    pub changes: Vec<Change>,
    /// Reason why nothing is done.
    pub refused: Option<String>,
    /// Hint for the user.
    #[serde(skip)]
    pub hint: Option<String>,
}

impl SwitchPlan {
    /// Returns whether applying it would do something.
    pub fn does_something(&self) -> bool {
        matches!(self.action, GuestAction::Create | GuestAction::Change | GuestAction::Destroy)
    }
    fn of(name: &str, action: GuestAction, state: &'static str) -> SwitchPlan {
        SwitchPlan { name: name.to_owned(), action, state, changes: Vec::new(), refused: None, hint: None }
    }
    fn refuse(&mut self, error: &HostError) {
        self.refused = Some(error.to_string());
        self.hint = error.next_step().map(str::to_owned);
    }
}

fn runtime() -> Result<PathBuf> {
    Ok(HostPaths::of_this_user()?.runtime_dir)
}

/// Comparison of a fleet with the switches of a host, which has those that the fleet declares.
struct Look<'a> {
    fleet: &'a Fleet,
    host: &'a HostConfig,
    kept: Vec<FleetSwitch>,
    observed: Observed,
    runtime: PathBuf,
}

/// Returns the switches that are not as they should be. `targets` selects guests. If that is not all of them, only
/// their switches are compared.
pub fn look(
    fleet: &Fleet,
    store: &Store,
    surroundings: Surroundings<'_>,
    targets: &Targets,
    prune: bool,
) -> Result<Vec<SwitchPlan>> {
    // A guest of bhyve may be planned on any host; only FreeBSD has its switches.
    let is_freebsd = program::is_freebsd();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for guest in fleet.here().filter(|guest| targets.mean(&guest.config.name)) {
        for name in guest.config.nics.iter().filter_map(|nic| nic.switch.as_deref()) {
            switch::named(surroundings.host, name)?;
            if is_freebsd || guest.config.engine == EngineKind::Embedded {
                names.insert(name);
            }
        }
    }
    if targets.are_all() {
        names.extend(fleet.switches_here().map(|switch| switch.config.id.as_str()));
    }
    let wanted: Vec<Switch> = names.iter().map(|name| switch::named(surroundings.host, name)).collect::<Result<_>>()?;
    let kept = kept_switches(surroundings.datastore, &fleet.name)?;
    if wanted.is_empty() && kept.is_empty() {
        return Ok(Vec::new());
    }
    let runtime = runtime()?;
    let all: Vec<Switch> = kept.iter().map(|switch| switch::switch(&switch.config)).chain(wanted.iter().cloned()).collect();
    let observed = Observed::look(&all, &runtime)?;
    let look = Look { fleet, host: surroundings.host, kept, observed, runtime };
    let mut plans: Vec<SwitchPlan> = wanted.iter().filter_map(|switch| look.wanted(switch)).collect();
    if targets.are_all() {
        for kept in look.kept.iter().filter(|kept| look.declared(&kept.config.id).is_none()) {
            plans.push(look.removal(kept, store, surroundings, prune));
        }
    }
    Ok(plans)
}

impl Look<'_> {
    fn declared(&self, name: &str) -> Option<&FleetSwitch> {
        self.fleet.switches_here().find(|switch| switch.config.id == name)
    }

    /// Compares a switch that should exist.
    fn wanted(&self, switch: &Switch) -> Option<SwitchPlan> {
        let status = status::look(switch, &self.observed, &self.runtime, false);
        let declared = self.declared(&switch.id);
        let kept = self.kept.iter().find(|kept| kept.config.id == switch.id);
        let planned = |action| SwitchPlan::of(&switch.id, action, status.state);
        let mut planned = match (declared, kept) {
            (Some(declared), None) => SwitchPlan { changes: additions(declared.origins.clone()), ..planned(GuestAction::Create) },
            (Some(declared), Some(kept)) if declared.config != kept.config => {
                let mut planned = SwitchPlan {
                    changes: differences(&kept.origins, declared.origins.clone(), |_| Class::Live),
                    ..planned(GuestAction::Change)
                };
                let old = switch::switch(&kept.config);
                match change::leave(&old, switch, &self.observed, &self.runtime) {
                    Err(error) => {
                        planned.refuse(&error);
                        planned.hint = Some("stop the guests on it first: for this change it is made anew".into());
                    }
                    Ok(plan) => {
                        if let Some(risk) = plan.risks.first() {
                            planned.refused = Some(unasked(&switch.id, risk));
                            planned.hint = Some(format!("`vmctl switch destroy {}` asks about it; then apply", switch.id));
                        }
                    }
                }
                planned
            }
            _ if status.state == "up" => return None,
            _ => {
                let note = match (&status.problem, status.state) {
                    (Some(problem), _) => problem.clone(),
                    (None, _) => "it is not there, and is made".to_owned(),
                };
                SwitchPlan { changes: vec![remark(Class::Live, "", note, true)], ..planned(GuestAction::Change) }
            }
        };
        if planned.refused.is_none() {
            match steps::create(switch, &self.observed, &self.runtime) {
                // The present state of a changed switch may conflict with its future one. That is checked again then.
                Err(_) if planned.action == GuestAction::Change && kept.is_some() && status.state != "wrong" => {}
                Err(error) => planned.refuse(&error),
                Ok(_) => {}
            }
        }
        Some(planned)
    }

    /// Plans the removal of a switch that the fleet file does not have any more.
    fn removal(&self, kept: &FleetSwitch, store: &Store, surroundings: Surroundings<'_>, prune: bool) -> SwitchPlan {
        let switch = switch::switch(&kept.config);
        let status = status::look(&switch, &self.observed, &self.runtime, false);
        let mut planned = SwitchPlan::of(&switch.id, GuestAction::Leave, status.state);
        if let Some(other) = self.host.switches.iter().find(|other| other.id == switch.id) {
            let note = format!("it stays: {} has it", other.declared());
            planned.changes.push(remark(Class::Live, "", note, false));
            planned.action = GuestAction::Change;
            return planned;
        }
        if !prune {
            return planned;
        }
        planned.action = GuestAction::Destroy;
        planned.changes.push(remark(Class::Destroy, "", "it is taken down", false));
        if let Some(guest) = self.user_of(&switch.id, store, surroundings) {
            planned.refused = Some(format!("switch `{}` goes, and guest `{guest}` is plugged into it", switch.id));
            planned.hint = Some("it belongs to no fleet, or to another one: give it another switch first".into());
        }
        planned
    }

    /// Returns a guest outside the fleet that is on a switch. Those of the fleet have been checked.
    fn user_of(&self, switch: &str, store: &Store, surroundings: Surroundings<'_>) -> Option<String> {
        let others = store.names().unwrap_or_default().into_iter().filter(|name| self.fleet.guest(name).is_none());
        let uses = |name: &String| {
            let guest = store.directory_of(name);
            let of_this =
                super::membership::Membership::load(&guest).ok().flatten().is_some_and(|it| it.fleet == self.fleet.name);
            let definition = Definition::load(&guest, surroundings);
            !of_this && definition.is_ok_and(|it| it.config.nics.iter().any(|nic| nic.switch.as_deref() == Some(switch)))
        };
        others.into_iter().find(uses)
    }
}

fn unasked(name: &str, risk: &str) -> String {
    format!("switch `{name}` is not changed unasked: {risk}")
}

/// Execution of the plans for switches, except for removals.
pub struct Making<'a> {
    /// The fleet.
    pub fleet: &'a Fleet,
    /// The host, with the switches that the fleet declares.
    pub host: &'a HostConfig,
    /// Datastore with the declared switches.
    pub datastore: &'a Path,
}

impl Making<'_> {
    /// Changes and makes the switches, and keeps the declaration. Reports the result of each.
    pub fn make(&self, plans: &[SwitchPlan], mut each: impl FnMut(&SwitchPlan, Result<()>)) -> Result<()> {
        let todo =
            || plans.iter().filter(|it| it.refused.is_none() && matches!(it.action, GuestAction::Create | GuestAction::Change));
        if todo().next().is_none() {
            return Ok(());
        }
        let kept = kept_switches(self.datastore, &self.fleet.name)?;
        let mut failed: BTreeMap<&str, GuestError> = BTreeMap::new();
        for planned in todo() {
            if let Some(old) = kept.iter().find(|old| old.config.id == planned.name)
                && self.fleet.switches_here().any(|new| new.config.id == planned.name && new.config != old.config)
                && let Err(error) = self.leave(old)
            {
                failed.insert(&planned.name, error);
            }
        }
        // A switch that could not be changed stays as it was known, and one that is removed is known until it is gone.
        // Those that now belong to the host file or another fleet are theirs.
        let mut all = kept;
        for planned in todo().filter(|planned| !failed.contains_key(planned.name.as_str())) {
            all.retain(|it| it.config.id != planned.name);
            all.extend(self.fleet.switches_here().find(|it| it.config.id == planned.name).cloned());
        }
        keep(self.datastore, &self.fleet.name, &all)?;
        for planned in todo() {
            let outcome = match failed.remove(planned.name.as_str()) {
                Some(error) => Err(error),
                None if self.host.switches.iter().any(|it| it.id == planned.name) => self.create(&planned.name),
                None => Ok(()),
            };
            each(planned, outcome);
        }
        Ok(())
    }

    fn leave(&self, old: &FleetSwitch) -> Result<()> {
        let (old, new) = (switch::switch(&old.config), switch::named(self.host, &old.config.id)?);
        let runtime = runtime()?;
        let observed = Observed::look(&[old.clone(), new.clone()], &runtime)?;
        let plan = change::leave(&old, &new, &observed, &runtime)?;
        if let Some(risk) = plan.risks.first() {
            return Err(GuestError::user(unasked(&old.id, risk)));
        }
        program::perform(&plan.steps).map_err(HostError::from)?;
        Ok(())
    }

    /// Makes the missing parts of a switch. Steps that could cut this session's own network are left to
    /// `vmctl switch create`, which asks.
    fn create(&self, name: &str) -> Result<()> {
        let switch = switch::named(self.host, name)?;
        let runtime = runtime()?;
        let observed = Observed::look(std::slice::from_ref(&switch), &runtime)?;
        let plan = steps::create(&switch, &observed, &runtime)?;
        if let Some(risk) = plan.risks.first() {
            return Err(GuestError::user(format!("switch `{name}` is not made unasked: {risk}"))
                .hint(format!("`vmctl switch create {name}` asks about it")));
        }
        program::perform(&plan.steps).map_err(HostError::from)?;
        Ok(())
    }

    /// Removes switches, once the guests on them are gone.
    pub fn remove(&self, plans: &[SwitchPlan], mut each: impl FnMut(&SwitchPlan, Result<()>)) -> Result<()> {
        for planned in plans.iter().filter(|it| it.refused.is_none() && it.action == GuestAction::Destroy) {
            let mut kept = kept_switches(self.datastore, &self.fleet.name)?;
            let Some(old) = kept.iter().find(|old| old.config.id == planned.name) else { continue };
            let outcome = self.destroy(old);
            if outcome.is_ok() {
                kept.retain(|it| it.config.id != planned.name);
                keep(self.datastore, &self.fleet.name, &kept)?;
            }
            each(planned, outcome);
        }
        Ok(())
    }

    fn destroy(&self, old: &FleetSwitch) -> Result<()> {
        let switch = switch::switch(&old.config);
        let runtime = runtime()?;
        let observed = Observed::look(std::slice::from_ref(&switch), &runtime)?;
        let plan = steps::destroy(&switch, &observed, &runtime, false)?;
        if let Some(risk) = plan.risks.first() {
            return Err(GuestError::user(format!("switch `{}` is not taken down without confirmation: {risk}", switch.id))
                .hint(format!("`vmctl switch destroy {}` asks about it", switch.id)));
        }
        match program::perform_all(&plan.steps) {
            failed if failed.is_empty() => Ok(()),
            failed => Err(GuestError::host(format!("switch `{}` is not removed completely: {}", switch.id, failed.join("; ")))),
        }
    }
}

/// Writes the switches that a fleet has declared on this host. The file is removed with the last one.
fn keep(datastore: &Path, fleet: &str, switches: &[FleetSwitch]) -> Result<()> {
    let file = kept_file(datastore, fleet);
    if switches.is_empty() {
        return match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GuestError::io("remove", &file, error)),
            _ => Ok(()),
        };
    }
    let text = kept_text(fleet, switches);
    write_atomically(&file, text.as_bytes(), 0o644).map_err(|error| GuestError::io("write", &file, error))
}
