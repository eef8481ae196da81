//! The engine `bhyve` as the supervisor sees it: it writes a plan, and a child of this program runs it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::config::AGENT_PORT;
use crate::guest::engine::{AgentEnd, BootSetup, End, Engine, RunningEngine, own_program, write_spec};
use crate::guest::error::{GuestError, Result};
use crate::guest::store::GuestDir;
use crate::host::bhyve::HostFeatures;

use super::run::journal;
use super::{boot_planner, needs};

/// FreeBSD's bhyve(8): `vmctl bhyve --spec FILE`.
pub struct BhyveEngine {
    program: PathBuf,
    features: OnceLock<HostFeatures>,
}

impl BhyveEngine {
    /// Creates the engine, with this program as its child.
    pub fn new() -> Result<BhyveEngine> {
        Ok(BhyveEngine { program: own_program()?, features: OnceLock::new() })
    }

    /// Returns the features of the host's bhyve. They are probed once per boot.
    fn features(&self) -> Result<&HostFeatures> {
        match self.features.get() {
            Some(features) => Ok(features),
            None => {
                let found = HostFeatures::of_this_host().map_err(GuestError::as_host)?;
                Ok(self.features.get_or_init(|| found))
            }
        }
    }
}

impl Engine for BhyveEngine {
    fn check(&self, setup: BootSetup<'_>) -> Result<()> {
        needs::host()?;
        needs::programs(setup.config)?;
        needs::passthru(setup.config)?;
        needs::network(setup.config)?;
        boot_planner::plan(setup, self.features()?).map(drop)
    }

    fn build(&self, setup: BootSetup<'_>) -> Result<()> {
        write_spec(setup.guest, &boot_planner::plan(setup, self.features()?)?)
    }

    fn spawn(&self, setup: BootSetup<'_>, lease: &File) -> Result<RunningEngine> {
        let (guest, agent) = (setup.guest, setup.config.agent);
        let mut command = Command::new(&self.program);
        command.args(["bhyve", "--spec"]).arg(guest.spec_file());
        let mut engine = RunningEngine::start(command, lease, End::Asked, Vec::new())?;
        engine.agent = agent.then(|| AgentEnd::Socket(boot_planner::channel_socket(guest, AGENT_PORT)));
        Ok(engine)
    }

    fn has_left(&self, guest: &GuestDir) -> bool {
        journal::file(guest).exists()
    }

    fn sweep(&self, guest: &GuestDir) -> Result<()> {
        let failed = |words| GuestError::host(format!("what `{}` left on this host cannot be removed: {words}", guest.name()));
        journal::sweep(&journal::file(guest)).map_err(failed)
    }
}
