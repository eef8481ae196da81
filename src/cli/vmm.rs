//! `vmctl vmm`: the engine child, its connector and its host services. Started by the supervisor and by the engine, never
//! by hand.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use crate::devices::net::user::allowed::AllowedSockets;
use crate::devices::net::user::connector::{self, RemoteSockets};
use crate::devices::net::user::reach::NicReach;
use crate::devices::net::user::sockets::{self, HostServices, OwnSockets, Sockets};
use crate::host::inherited;
use crate::host::process::{exit_if_aborted, keep_from_children, own_program, raise_descriptor_limit, spawn_tied_apart};
use crate::hypervisor::backend::MachineExit;
use crate::machine::assembly::Streams;
use crate::machine::opened::nic_reach;
use crate::machine::spec::{
    ABORTED, AGENT_FD, CONNECTOR_FD, CONSOLE_FD, CONTROL_FD, FORWARDS_FD, LEASE_FD, NicBackend, NicSpec, OFFERS_FD, SERVICES_FD,
    TAPS_FD, UserNetSpec, VmmSpec,
};
use crate::machine::{sandbox, vmm};

/// Run one machine of the embedded engine (started by the supervisor)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine, as JSON
    #[arg(long, value_name = "FILE", required_unless_present_any = ["connector", "host_services"])]
    spec: Option<PathBuf>,
    /// Make sockets for an engine that may not make any
    #[arg(long, conflicts_with = "spec")]
    connector: bool,
    /// What such an engine's interfaces may reach, as JSON
    #[arg(long, value_name = "NETWORKS", requires = "connector", value_parser = parse_reach)]
    reach: Option<Reach>,
    /// Name the host's name servers for a connector, and make its raw ICMP sockets
    #[arg(long, conflicts_with_all = ["spec", "connector"])]
    host_services: bool,
    /// The user that root goes on as
    #[arg(long, value_name = "UID", conflicts_with = "spec")]
    run_as: Option<u32>,
}

impl Args {
    /// Runs the machine. The exit code is that of the engine, not of a command.
    pub fn run(&self) -> ExitCode {
        raise_descriptor_limit();
        exit_if_aborted(ABORTED);
        let outcome = match &self.spec {
            Some(spec) => machine(spec).map(ExitCode::from),
            None if self.connector => {
                let Reach(nics) = self.reach.clone().unwrap_or_default();
                serve_connections(self.run_as, nics).map(|()| ExitCode::SUCCESS)
            }
            None => serve_host(self.run_as).map(|()| ExitCode::SUCCESS),
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
    let agent = spec.agent_port.as_ref().map(|_| stream("agent", AGENT_FD)).transpose()?;
    if agent.is_some() {
        keep_from_children(&[AGENT_FD]).map_err(|e| format!("cannot keep the agent's stream: {e}"))?;
    }
    let taps = taps(&spec)?;
    // Taken before anything is opened, which could get its number. Without one, no forward is added while the guest runs.
    let forwards = inherited::stream(FORWARDS_FD).ok();
    if forwards.is_some() {
        keep_from_children(&[FORWARDS_FD]).map_err(|e| format!("cannot keep the supervisor's forwards: {e}"))?;
    }
    let outside: Arc<dyn Sockets> = match spec.has_user_network() {
        true => {
            let services = start(&["--host-services"], spec.run_as, Vec::new())
                .map_err(|e| format!("cannot start the host services: {e}"))?;
            let part = ["--connector", "--reach", &networks(&spec)];
            let offers = forwards.map(|forwards| (OFFERS_FD, forwards.into()));
            let inherited = [(SERVICES_FD, services.into())].into_iter().chain(offers).collect();
            let connector = start(&part, spec.run_as, inherited).map_err(|e| format!("cannot start the connector: {e}"))?;
            Arc::new(RemoteSockets::new(connector))
        }
        false => Arc::new(OwnSockets),
    };
    Ok(vmm::run(&spec, Streams { console, agent, taps }, control, &outside))
}

/// Takes the taps that the supervisor has opened. Nothing else of this process's may have them.
fn taps(spec: &VmmSpec) -> Result<Vec<OwnedFd>, String> {
    let numbers: Vec<RawFd> = (TAPS_FD..).take(spec.taps()).collect();
    keep_from_children(&numbers).map_err(|e| format!("a tap of the contract is missing: {e}"))?;
    numbers.iter().map(|fd| inherited::descriptor(*fd).map_err(|e| format!("no tap at descriptor {fd}: {e}"))).collect()
}

fn stream(what: &str, fd: i32) -> Result<UnixStream, String> {
    inherited::stream(fd)
        .map_err(|e| format!("no {what} stream at descriptor {fd} ({e}): only the supervisor starts this command"))
}

/// What the guest's interfaces may reach; nothing of what leads to the guest.
fn networks(spec: &VmmSpec) -> String {
    let network = |nic: &NicSpec| match &nic.backend {
        NicBackend::User(network) => Some(UserNetSpec { forwards: Vec::new(), answers: Vec::new(), ..network.clone() }),
        NicBackend::Tap | NicBackend::None => None,
    };
    let networks: Vec<UserNetSpec> = spec.nics.iter().filter_map(network).collect();
    serde_json::to_string(&networks).expect("a specification was made of JSON")
}

/// What interfaces may reach.
#[derive(Debug, Clone, Default)]
struct Reach(Vec<NicReach>);

fn parse_reach(text: &str) -> Result<Reach, serde_json::Error> {
    let networks: Vec<UserNetSpec> = serde_json::from_str(text)?;
    Ok(Reach(networks.iter().map(nic_reach).collect()))
}

/// Starts this program again with another part, which ends with this process and has the descriptors `more`.
fn start(part: &[&str], run_as: Option<u32>, more: Vec<(RawFd, OwnedFd)>) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(own_program()?);
    command.arg("vmm").args(part).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    if let Some(uid) = run_as {
        command.arg("--run-as").arg(uid.to_string());
    }
    let inherited: Vec<_> = [(CONNECTOR_FD, theirs.into())].into_iter().chain(more).collect();
    spawn_tied_apart(&mut command, &inherited)?;
    Ok(ours)
}

fn serve_host(run_as: Option<u32>) -> Result<(), String> {
    let connector = stream("connector", CONNECTOR_FD)?;
    let needs_raw = || !sockets::has_ping_sockets();
    sandbox::enter_host_services(run_as, needs_raw).map_err(|e| format!("cannot confine the host services: {}", chain(&e)))?;
    connector::serve(&connector, &HostServices::default()).map_err(|e| format!("the host services end: {e}"))
}

fn serve_connections(run_as: Option<u32>, nics: Vec<NicReach>) -> Result<(), String> {
    let engine = stream("engine", CONNECTOR_FD)?;
    let services = RemoteSockets::new(stream("host services", SERVICES_FD)?);
    let supervisor = inherited::stream(OFFERS_FD).ok();
    let sockets = AllowedSockets::new(nics, OwnSockets, Box::new(services));
    sandbox::enter_connector(run_as).map_err(|e| format!("cannot confine the connector: {}", chain(&e)))?;
    connector::serve_with(&engine, supervisor, &sockets).map_err(|e| format!("the connector ends: {e}"))
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}
