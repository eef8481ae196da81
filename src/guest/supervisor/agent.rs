//! The guest's agent, as the supervisor uses it: for readiness, addresses, commands, and a shutdown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::guest::agent::commands::{Executed, GuestCommand};
use crate::guest::agent::service::{Agent, News};
use crate::guest::control::Reply;

use super::clients::Purpose;
use super::stage::Stage;
use super::{Message, Supervisor, start_error_reply};

/// Bytes of a command's output in one reply, so that its frame stays far below the limit.
const PIECE: usize = 96 * 1024;

impl Supervisor {
    /// Starts to talk to the agent of the boot that runs, if the guest has a port for one.
    pub(super) fn start_agent(&mut self) {
        let post = self.mailbox.poster();
        let Some(boot) = self.stage.boot_mut() else { return };
        let number = boot.number;
        let tell = move |news| post.send(Message::Agent(number, news));
        boot.agent = boot.engine.take_agent().map(|end| Agent::start(end, tell));
    }

    pub(super) fn agent_told(&mut self, news: News) {
        match news {
            News::Answered => {
                if let Some(boot) = self.stage.boot_mut() {
                    boot.readiness.agent_answered = true;
                }
                if let Some(run) = &mut self.state.run {
                    run.agent = true;
                }
                self.save_run();
                self.check_ready();
            }
            News::Addresses(interfaces) => {
                if let Some(run) = &mut self.state.run {
                    run.interfaces = interfaces;
                }
                self.save_run();
            }
            News::Executed(number, outcome) => self.executed(number, outcome),
        }
    }

    /// Runs a command in the guest for a client.
    pub(super) fn execute(&mut self, at: usize, words: Vec<String>, input: Option<&str>) {
        let input = match input.map(|text| STANDARD.decode(text)).transpose() {
            Ok(input) => input,
            Err(_) => return self.clients[at].answer(&start_error_reply("the input is not base64".into())),
        };
        let number = self.commands_begun;
        let asked = match &self.stage {
            Stage::Running(boot) => match &boot.agent {
                None => Err("the guest has no port for an agent in this boot".to_owned()),
                Some(_) if !boot.readiness.agent_answered => Err("the guest's agent has not answered yet".to_owned()),
                Some(agent) => agent.execute(number, GuestCommand { words, input }),
            },
            _ => Err("the guest does not run at this moment".to_owned()),
        };
        match asked {
            Ok(()) => {
                self.commands_begun += 1;
                self.clients[at].purpose = Purpose::Execute(number);
            }
            Err(message) => self.clients[at].answer(&start_error_reply(message)),
        }
    }

    fn executed(&mut self, number: u64, outcome: std::result::Result<Executed, String>) {
        // Whoever asked may have left meanwhile.
        let Some(client) = self.clients.iter_mut().find(|client| client.purpose == Purpose::Execute(number)) else { return };
        match outcome {
            Ok(Executed { code, signal, out, err, truncated }) => {
                for (error, bytes) in [(false, &out), (true, &err)] {
                    for piece in bytes.chunks(PIECE) {
                        client.output(&Reply::Output { error, base64: STANDARD.encode(piece) });
                    }
                }
                client.answer(&Reply::Executed { code, signal, truncated });
            }
            Err(message) => client.answer(&start_error_reply(message)),
        }
    }
}
