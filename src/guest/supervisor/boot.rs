//! The start of a boot: reading the guest file again, the hooks, starting the engine, and handling its events until the
//! guest runs.

use std::time::Instant;

use crate::config::{Forward, HookEvent, ReadyProbe};
use crate::guest::control::Reply;
use crate::guest::engine::{self, BootSetup};
use crate::guest::error::Result;
use crate::guest::events::EventKind;
use crate::guest::install::Install;
use crate::guest::provision::ensure_disks;
use crate::guest::seed;
use crate::guest::state::{Confined, Machine, Phase};
use crate::machine::spec::EngineEvent;

use super::clients::Purpose;
use super::post::watch_engine;
use super::ready::Readiness;
use super::stage::{Boot, Preparation, Stage};
use super::{BOOT_PATIENCE, Message, Supervisor};

impl Supervisor {
    /// Reads the guest file again and runs the hooks before a boot.
    pub(super) fn begin_boot(&mut self, first: bool) {
        self.set_phase(Phase::Starting);
        if !first && let Err(error) = self.reload() {
            return self.give_up(error);
        }
        // Taken, so that only this boot has it, however it ends.
        let install = self.options.install.take();
        self.state.name = self.guest.name().to_owned();
        self.state.boots += 1;
        let forwards = self.config.nics.iter().flat_map(|nic| &nic.forwards).map(Forward::words).collect();
        if let Some(run) = &mut self.state.run {
            run.forwards = forwards;
            run.screen = None;
            run.medium = install.as_ref().map(|install| install.medium().to_owned());
        }
        let assigned = self.state.assign(&self.config).and_then(|()| match &install {
            // The medium gets its slot last, so that it moves no device of the guest.
            Some(install) => install.check(&self.config).and_then(|()| {
                install.attach(&mut self.config);
                self.state.assign(&self.config)
            }),
            None => Ok(()),
        });
        let machine = Machine::of(&self.guest, &self.config, &self.state);
        if let Some(run) = &mut self.state.run {
            run.machine = Some(machine);
        }
        // A running guest continues with the configuration in memory. At a new start the error is reported.
        let saved = assigned.and_then(|()| {
            if first {
                return self.save();
            }
            self.save_or_later();
            Ok(())
        });
        if let Err(error) = saved {
            return self.give_up(error);
        }
        let chosen = engine::of(self.config.engine).and_then(|maker| {
            maker.check(self.setup(install.as_ref()))?;
            Ok(maker)
        });
        let maker = match chosen {
            Ok(maker) => maker,
            Err(error) => return self.give_up(error),
        };
        self.emit(EventKind::Starting { boot: self.state.boots });
        if let Some(install) = &install {
            let medium = install.medium().to_owned();
            self.emit(EventKind::Installing { medium });
        }
        let preparation = Preparation { maker, install, asked: None };
        match self.submit_hooks(HookEvent::PreStart, "") {
            true => self.stage = Stage::PreStart(preparation),
            false => self.spawn_engine(preparation),
        }
    }

    /// Reads the guest file again, which may have been edited since the last boot.
    fn reload(&mut self) -> Result<()> {
        let definition = (self.options.load)()?;
        self.state.summary = Some(definition.summary(&self.options.host_file));
        (self.config, self.switches) = (definition.config, definition.switches);
        if let Some(run) = &mut self.state.run {
            run.config_hash = definition.hash;
            run.restarts += 1;
            self.state.restarts = run.restarts;
        }
        let console = &self.config.console;
        self.console.set_bounds(console.log_size.bytes(), console.log_files, console.scrollback.bytes() as usize);
        Ok(())
    }

    /// Returns the parameters of the next boot.
    fn setup<'a>(&'a self, install: Option<&'a Install>) -> BootSetup<'a> {
        BootSetup { guest: &self.guest, config: &self.config, state: &self.state, switches: &self.switches, install }
    }

    /// Starts the engine of a boot whose hooks have run.
    pub(super) fn spawn_engine(&mut self, preparation: Preparation) {
        let Preparation { maker, install, asked } = preparation;
        if asked.is_some_and(|asked| !asked.again) {
            return self.end();
        }
        let texts: Vec<String> = self
            .config
            .ready_probes()
            .into_iter()
            .filter_map(|probe| match probe {
                ReadyProbe::Console(text) => Some(text),
                _ => None,
            })
            .collect();
        self.console.new_boot(texts.into_iter());
        let spawned = seed::ensure(&self.guest, &self.config, &self.state)
            .and_then(|()| ensure_disks(&self.guest, &self.config))
            .and_then(|_| maker.build(self.setup(install.as_ref())))
            .and_then(|()| maker.spawn(self.setup(install.as_ref()), &self.lease));
        let number = self.state.boots;
        let engine = match spawned {
            Ok(engine) => engine,
            Err(error) => return self.give_up(error),
        };
        if let Err(error) = watch_engine(&engine, number, &self.mailbox.poster()) {
            return self.give_up(error);
        }
        if let Some(run) = &mut self.state.run {
            run.engine_pid = Some(engine.pid());
        }
        self.save_run();
        let boot = Box::new(Boot::new(number, install, engine, Readiness::of(&self.config)));
        self.stage = Stage::Booting { boot, until: Instant::now() + BOOT_PATIENCE };
    }

    pub(super) fn engine_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Running { backend } => {
                if let Some(boot) = self.stage.take_booting() {
                    self.now_running(boot, backend);
                }
            }
            EngineEvent::Error { message } => {
                self.emit(EventKind::EngineError { message: message.clone() });
                if let Some(boot) = self.stage.boot_mut() {
                    boot.engine_error = Some(message);
                }
            }
            EngineEvent::Confined { by, without } => {
                // Written with the next phase.
                self.state.run.as_mut().expect("set while the supervisor runs").confined = Some(Confined { by, without });
            }
            EngineEvent::DebugExit { value } => {
                if let Some(boot) = self.stage.boot_mut() {
                    boot.debug_exit = Some(value);
                }
            }
            EngineEvent::NoAcpi => {
                if let Some(boot) = self.stage.boot_mut() {
                    boot.no_acpi = true;
                }
            }
            EngineEvent::NotSuspended { message } => self.not_suspended(message),
            EngineEvent::Screen { address } => {
                if let Some(run) = &mut self.state.run {
                    run.screen = Some(address);
                }
                self.save_run();
            }
            EngineEvent::ForwardOpen { address } => {
                if let Some(boot) = self.stage.boot() {
                    boot.readiness.forwards_open.add(address.port());
                }
            }
            EngineEvent::ForwardChanged { added, nic, forward, error } => self.forward_changed(added, &nic, &forward, error),
            EngineEvent::Stats { counters } => {
                self.answer_all(|purpose| purpose == Purpose::Stats, &Reply::Stats { counters });
            }
        }
    }

    fn now_running(&mut self, mut boot: Box<Boot>, backend: String) {
        boot.running_since = Some(Instant::now());
        let (number, pid, installs) = (boot.number, boot.engine.pid(), boot.install.is_some());
        let phase = if boot.asked.is_some() { Phase::Stopping } else { Phase::Running };
        self.stage = Stage::Running(boot);
        if let Some(run) = &mut self.state.run {
            run.backend = Some(backend.clone());
        }
        self.set_phase(phase);
        self.emit(EventKind::Running { boot: number, backend, pid });
        if let Some(started) = self.started.take() {
            started(Ok(()));
        }
        self.answer_all(|purpose| purpose == Purpose::Running, &Reply::Running);
        self.submit_hooks(HookEvent::PostStart, "");
        // The probes are for the installed system.
        if installs {
            return;
        }
        self.start_agent();
        let post = self.mailbox.poster();
        if let Some(boot) = self.stage.boot_mut() {
            let passed = move |count| post.send(Message::Probed(number, count));
            boot.readiness.probe(self.guest.name(), &self.config, passed);
        }
        self.check_ready();
    }
}
