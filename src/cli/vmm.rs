//! `vmctl vmm`: the engine child, and its connector. Started by the supervisor and by the engine, never by hand.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use crate::devices::net::user::connector::{self, RemoteSockets};
use crate::devices::net::user::sockets::{OwnSockets, Sockets};
use crate::host::inherited;
use crate::host::process::{keep_from_children, raise_descriptor_limit, spawn_tied};
use crate::hypervisor::backend::MachineExit;
use crate::machine::spec::{CONNECTOR_FD, CONSOLE_FD, CONTROL_FD, LEASE_FD, VmmSpec};
use crate::machine::{sandbox, vmm};

/// Run one machine of the embedded engine (started by the supervisor)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine, as JSON
    #[arg(long, value_name = "FILE", required_unless_present = "connector")]
    spec: Option<PathBuf>,
    /// Make sockets for an engine that may make none
    #[arg(long, conflicts_with = "spec")]
    connector: bool,
}

impl Args {
    /// Runs the machine; the exit code is the engine's, not a command's.
    pub fn run(&self) -> ExitCode {
        raise_descriptor_limit();
        let outcome = match &self.spec {
            Some(spec) => machine(spec).map(ExitCode::from),
            None => serve().map(|()| ExitCode::SUCCESS),
        };
        outcome.unwrap_or_else(|message| {
            eprintln!("vmctl vmm: {message}");
            ExitCode::from(MachineExit::Error.code())
        })
    }
}

fn machine(spec: &Path) -> Result<u8, String> {
    let path = spec.display();
    let text = std::fs::read(spec).map_err(|e| format!("cannot read `{path}`: {e}"))?;
    let spec: VmmSpec = serde_json::from_slice(&text).map_err(|e| format!("`{path}` is not a machine specification: {e}"))?;
    let (console, control) = (stream("console", CONSOLE_FD)?, stream("control", CONTROL_FD)?);
    keep_from_children(&[CONSOLE_FD, CONTROL_FD, LEASE_FD])
        .map_err(|e| format!("a descriptor of the contract is missing: {e}"))?;
    let outside: Arc<dyn Sockets> = match spec.has_user_network() {
        true => Arc::new(RemoteSockets::new(start_connector().map_err(|e| format!("cannot start the connector: {e}"))?)),
        false => Arc::new(OwnSockets::default()),
    };
    Ok(vmm::run(&spec, console, control, &outside))
}

fn stream(what: &str, fd: i32) -> Result<UnixStream, String> {
    inherited::stream(fd)
        .map_err(|e| format!("no {what} stream at descriptor {fd} ({e}): this command is the supervisor's to start"))
}

/// Starts this program again as the connector, which ends with this process.
fn start_connector() -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let program = match cfg!(target_os = "linux") {
        true => "/proc/self/exe".into(),
        false => std::env::current_exe()?,
    };
    let mut command = Command::new(program);
    command.args(["vmm", "--connector"]).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    spawn_tied(&mut command, &[(CONNECTOR_FD, theirs.into())])?;
    Ok(ours)
}

fn serve() -> Result<(), String> {
    let engine = stream("engine", CONNECTOR_FD)?;
    sandbox::enter_connector().map_err(|e| format!("cannot confine the connector: {e}"))?;
    connector::serve(&engine, &OwnSockets::default()).map_err(|e| format!("the connector ends: {e}"))
}
