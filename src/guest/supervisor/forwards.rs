//! Forwards of a running guest: the supervisor binds the socket and passes it to the engine's connector, the engine takes
//! it into use. The guest file is the command's; it is read again, so that the next boot is known to be the same.

use std::io;

use crate::config::{EngineKind, Forward, GuestConfig, NicBackend};
use crate::guest::control::Reply;
use crate::guest::events::EventKind;
use crate::machine::forwards::host;
use crate::machine::spec::{EngineCommand, ForwardSpec};

use super::clients::Purpose;
use super::stage::Stage;
use super::{Supervisor, start_error_reply};

impl Supervisor {
    /// Begins to add or remove a forward. The client is answered when the engine has done it.
    pub(super) fn change_forward(&mut self, at: usize, nic: &str, forward: ForwardSpec, added: bool) {
        if let Err(message) = self.begin_change(nic, &forward, added) {
            return self.clients[at].answer(&start_error_reply(message));
        }
        let protocol = forward.protocol;
        self.clients[at].purpose = Purpose::Forward { added, protocol, host: host(&forward) };
    }

    fn begin_change(&mut self, nic: &str, forward: &ForwardSpec, added: bool) -> Result<(), String> {
        if self.config.engine != EngineKind::Embedded {
            return Err("only the engine `embedded` changes the forwards of a running guest".into());
        }
        let is_user = |config: &GuestConfig| config.nics.iter().any(|other| other.id == nic && other.backend == NicBackend::User);
        if !is_user(&self.config) {
            return Err(format!("the running guest has no user-mode network `{nic}`"));
        }
        let Stage::Running(boot) = &mut self.stage else { return Err("the guest does not run at this moment".into()) };
        let engine = &mut boot.engine;
        let sockets = engine.forwards().ok_or("this engine takes no forwards")?;
        let address = host(forward);
        let nic = nic.to_owned();
        let command = match added {
            true => {
                sockets.add(forward).map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => format!("port {} of the host is in use", address.port()),
                    _ => format!("cannot listen on `{address}`: {error}"),
                })?;
                EngineCommand::AddForward { nic, forward: forward.clone() }
            }
            false => {
                sockets.remove(forward).map_err(|error| format!("the engine's connector does not listen: {error}"))?;
                EngineCommand::RemoveForward { nic, forward: forward.clone() }
            }
        };
        engine.command(&command);
        let action = if added { "forward-add" } else { "forward-remove" };
        self.emit(EventKind::Requested { action: format!("{action} {address}") });
        Ok(())
    }

    /// Handles the engine's answer.
    pub(super) fn forward_changed(&mut self, added: bool, nic: &str, changed: &ForwardSpec, error: Option<String>) {
        let address = host(changed);
        let waits = Purpose::Forward { added, protocol: changed.protocol, host: address };
        if let Some(message) = error {
            let sockets = self.stage.boot().and_then(|boot| boot.engine.forwards());
            if let (true, Some(sockets)) = (added, sockets) {
                // The connector may still have the socket, and the host would listen for nobody.
                let _ = sockets.remove(changed);
            }
            return self.answer_all(|purpose| purpose == waits, &start_error_reply(message));
        }
        let forward = Forward {
            proto: changed.protocol,
            host_addr: changed.host_address,
            host_port: changed.host_port,
            guest_port: changed.guest_port,
        };
        let same = |other: &Forward| other.proto == forward.proto && other.host() == address;
        for known in &mut self.config.nics {
            known.forwards.retain(|other| !same(other));
            if added && known.id == nic {
                known.forwards.push(forward);
            }
        }
        if let Some(boot) = self.stage.boot() {
            boot.readiness.forwards_open.changed(&forward, added);
        }
        let forwards = self.config.nics.iter().flat_map(|nic| &nic.forwards).map(Forward::words).collect();
        let hash = self.hash_of_the_same_file();
        if let Some(run) = &mut self.state.run {
            run.forwards = forwards;
            run.config_hash = hash.unwrap_or_else(|| run.config_hash.clone());
        }
        self.save_run();
        self.answer_all(|purpose| purpose == waits, &Reply::Done);
    }

    /// Returns the hash of the guest file if it says now what the guest runs with.
    fn hash_of_the_same_file(&mut self) -> Option<String> {
        let definition = (self.options.load)().ok()?;
        let sorted = |config: &GuestConfig| {
            let mut config = config.clone();
            let words = |forward: &Forward| (forward.proto.as_str(), forward.host());
            config.nics.iter_mut().for_each(|nic| nic.forwards.sort_by_key(words));
            config
        };
        // The medium of an installer's run is no part of the file.
        let installs = self.stage.boot().is_some_and(|boot| boot.install.is_some());
        (!installs && sorted(&definition.config) == sorted(&self.config)).then_some(definition.hash)
    }
}
