//! Overviews of guests for `list` and `info`, from their files alone, without a process or a connection per guest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::definition::{Definition, Surroundings};
use super::error::GuestError;
use super::state::{GuestState, LastExit, RunState, SUMMARY_FORM, Stamp, Summary};
use super::store::{GuestDir, Status};
use crate::config::Diagnostics;

/// Overview of one guest.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// Its name.
    pub name: String,
    /// `stopped`, `failed`, `starting`, `running`, `stopping`, `waiting`, `busy`.
    pub state: &'static str,
    /// Those that run, or else of the guest file; `null` when that cannot be read.
    pub cpus: Option<u32>,
    /// The same of the memory.
    pub memory_bytes: Option<u64>,
    /// The values of the guest file for the next boot; `null` where they are the same.
    pub next_boot: Option<NextBoot>,
    /// `embedded` or `bhyve`.
    pub engine: Option<String>,
    /// The vCPU back end of the running engine.
    pub backend: Option<String>,
    /// Tags, for `--tag`.
    pub tags: Vec<String>,
    /// Description for users.
    pub description: Option<String>,
    /// Whether `destroy` refuses it.
    pub protected: bool,
    /// The UUID that the guest sees.
    pub uuid: String,
    /// Address at which ssh(1) reaches it from the host, while it runs.
    pub ssh: Option<String>,
    /// Addresses of its interfaces that are known, while it runs: as its agent tells them, or as DHCP gives them.
    pub addresses: Vec<String>,
    /// Address of the VNC screen: `ADDRESS:PORT`, or `unix:PATH`.
    pub screen: Option<String>,
    /// The medium of the running installer.
    pub medium: Option<std::path::PathBuf>,
    /// Process id of the supervisor.
    pub pid: Option<u32>,
    /// Process id of the engine.
    pub engine_pid: Option<u32>,
    /// Time since the guest runs.
    pub uptime_seconds: Option<u64>,
    /// Whether all probes have passed.
    pub ready: bool,
    /// Number of restarts since it was last started.
    pub restarts: u64,
    /// Whether the configuration differs from that of this boot.
    pub restart_pending: bool,
    /// Reason why it is `failed`.
    pub failed: Option<String>,
    /// The end of the last boot.
    pub last_exit: Option<LastExit>,
    /// Problem of its file, in one line.
    pub problem: Option<String>,
}

/// Settings that change with the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NextBoot {
    /// vCPUs.
    pub cpus: Option<u32>,
    /// RAM.
    pub memory_bytes: Option<u64>,
    /// `embedded` or `bhyve`.
    pub engine: Option<String>,
    /// The UUID that the guest will see.
    pub uuid: Option<String>,
}

/// Reader of overviews. It checks files that many guests share, like templates, only once.
pub struct Observer<'a> {
    surroundings: Surroundings<'a>,
    stamps: HashMap<PathBuf, Stamp>,
}

impl<'a> Observer<'a> {
    /// Creates the reader with the parameters for guest files.
    pub fn new(surroundings: Surroundings<'a>) -> Observer<'a> {
        Observer { surroundings, stamps: HashMap::new() }
    }

    /// Returns the overview of one guest, with its state.
    pub fn look(&mut self, guest: &GuestDir) -> Result<(Overview, GuestState), GuestError> {
        let state = guest.state()?;
        let status = guest.status(&state);
        let (summary, problem) = match self.summary(guest, &state) {
            Ok(summary) => (Some(summary), None),
            Err(error) => (None, Some(one_line(&error))),
        };
        let run = state.run.as_ref().filter(|_| status.is_active());
        let machine = run.and_then(|run| run.machine.as_ref());
        let own_uuid = summary.as_ref().and_then(|summary| summary.uuid.clone()).unwrap_or_else(|| state.uuid.clone());
        let next_boot = machine.zip(summary.as_ref()).map(|(machine, summary)| NextBoot {
            cpus: Some(summary.cpus).filter(|cpus| *cpus != machine.cpus),
            memory_bytes: Some(summary.memory_bytes).filter(|memory| *memory != machine.memory_bytes),
            engine: Some(summary.engine.clone()).filter(|engine| *engine != machine.engine),
            uuid: Some(own_uuid.clone()).filter(|uuid| *uuid != machine.uuid),
        });
        let run_of_nobody = matches!(status, Status::Stopped | Status::Failed);
        let overview = Overview {
            name: guest.name().to_owned(),
            state: status.word(),
            cpus: machine.map(|machine| machine.cpus).or(summary.as_ref().map(|summary| summary.cpus)),
            memory_bytes: machine.map(|machine| machine.memory_bytes).or(summary.as_ref().map(|summary| summary.memory_bytes)),
            engine: machine.map(|machine| machine.engine.clone()).or(summary.as_ref().map(|summary| summary.engine.clone())),
            next_boot: next_boot.filter(|next| *next != NextBoot::default()),
            backend: run.and_then(|run| run.backend.clone()),
            tags: summary.as_ref().map(|summary| summary.tags.clone()).unwrap_or_default(),
            description: summary.as_ref().and_then(|summary| summary.description.clone()),
            protected: summary.as_ref().is_some_and(|summary| summary.protected),
            uuid: machine.map_or(own_uuid, |machine| machine.uuid.clone()),
            ssh: machine.and_then(|machine| machine.ssh.clone()),
            addresses: addresses(run),
            screen: run.and_then(|run| run.screen.clone()),
            medium: run.and_then(|run| run.medium.clone()),
            pid: run.map(|run| run.pid),
            engine_pid: run.and_then(|run| run.engine_pid),
            uptime_seconds: run
                .filter(|_| status == Status::Supervised(super::state::Phase::Running))
                .map(|run| run.lasting().as_secs()),
            ready: run.is_some_and(|run| run.ready),
            restarts: run.map_or(state.restarts, |run| run.restarts),
            restart_pending: match (run, &summary) {
                (Some(run), Some(summary)) => run.config_hash != summary.config_hash,
                _ => false,
            },
            failed: state.failed.as_ref().filter(|_| status == Status::Failed).map(|failed| failed.reason.clone()),
            // A run state without a supervisor belongs to a boot whose end no process saw.
            last_exit: match &state.run {
                Some(run) if run_of_nobody => Some(LastExit::of_lost(run)),
                _ => state.last_exit.clone(),
            },
            problem,
        };
        Ok((overview, state))
    }

    fn summary(&mut self, guest: &GuestDir, state: &GuestState) -> Result<Summary, GuestError> {
        if let Some(summary) = &state.summary
            && summary.program == env!("CARGO_PKG_VERSION")
            && summary.form == SUMMARY_FORM
            && summary.sources.first().is_some_and(|source| source.path == guest.config_file())
            && summary.sources.iter().all(|source| self.stamp(&source.path) == *source)
        {
            return Ok(summary.clone());
        }
        Ok(Definition::load(guest, self.surroundings)?.summary(self.surroundings.host_file))
    }

    fn stamp(&mut self, path: &Path) -> Stamp {
        match self.stamps.get(path) {
            Some(stamp) => stamp.clone(),
            None => {
                let stamp = Stamp::of(path);
                self.stamps.insert(path.to_owned(), stamp.clone());
                stamp
            }
        }
    }
}

/// Returns the addresses of a guest that runs. What its agent has told has priority over what DHCP would give.
fn addresses(run: Option<&RunState>) -> Vec<String> {
    let Some(run) = run else { return Vec::new() };
    let told: Vec<String> = run.interfaces.iter().flat_map(|interface| &interface.addresses).map(ToString::to_string).collect();
    match told.is_empty() {
        true => run.machine.iter().flat_map(|machine| &machine.nics).filter_map(|nic| nic.address.clone()).collect(),
        false => told,
    }
}

fn one_line(error: &GuestError) -> String {
    match error.attached::<Diagnostics>().and_then(|diagnostics| diagnostics.0.first()) {
        Some(first) => match &first.location {
            Some(place) => format!("{place}: {}", first.message),
            None => first.message.clone(),
        },
        None => error.chain(),
    }
}
