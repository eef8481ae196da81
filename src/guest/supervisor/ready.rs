//! Readiness: the probes that need the host (TCP connections, commands), on a thread of their own, once per boot.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::config::{EngineKind, Forward, ForwardProto, GuestConfig, HookEvent, NicBackend, ReadyProbe};

use super::Supervisor;
use super::clients::Purpose;
use super::hooks::run_limited;
use super::stage::Stage;
use crate::guest::control::Reply;
use crate::guest::events::EventKind;
use crate::guest::reach::greets;

/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// Time-out of one attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Time after which an open connection without a byte counts as accepted by the guest: the listener of a bhyve forward
/// accepts before the guest does, and closes when the guest refuses.
const SETTLED: Duration = Duration::from_secs(2);

/// The TCP forwards of the embedded engine's user-mode network, by their ports on the host, and whether the guest has
/// accepted a connection through each in this boot. The forwards accept by themselves, even for a guest that does not
/// answer yet.
#[derive(Clone, Default)]
pub struct ForwardsOpen(Arc<Mutex<BTreeMap<u16, bool>>>);

impl ForwardsOpen {
    /// Creates the forwards of a guest that begins to boot: none is open.
    pub fn of(config: &GuestConfig) -> ForwardsOpen {
        let nics = config.nics.iter().filter(|nic| config.engine == EngineKind::Embedded && nic.backend == NicBackend::User);
        let forwards = nics.flat_map(|nic| &nic.forwards).filter(|forward| forward.proto == ForwardProto::Tcp);
        ForwardsOpen(Arc::new(Mutex::new(forwards.map(|forward| (forward.host().port(), false)).collect())))
    }

    /// Notes that one was added, or removed, while the guest runs.
    pub fn changed(&self, forward: &Forward, added: bool) {
        let mut ports = self.0.lock().expect("no panic happens under this lock");
        match (forward.proto, added) {
            (ForwardProto::Udp, _) => {}
            (ForwardProto::Tcp, true) => drop(ports.insert(forward.host().port(), false)),
            (ForwardProto::Tcp, false) => drop(ports.remove(&forward.host().port())),
        }
    }

    /// Notes that the engine reported an open one.
    pub fn add(&self, port: u16) {
        self.0.lock().expect("no panic happens under this lock").insert(port, true);
    }

    /// Returns whether the guest has accepted, or `None` if this port is not a forward of the embedded engine.
    fn is_open(&self, port: u16) -> Option<bool> {
        self.0.lock().expect("no panic happens under this lock").get(&port).copied()
    }
}

/// Returns a description of a probe for users.
pub fn words(probe: &ReadyProbe) -> String {
    match probe {
        ReadyProbe::Tcp(address) => format!("no TCP connection to {address}"),
        ReadyProbe::Ssh(address) => format!("no ssh greeting at {address}"),
        ReadyProbe::Console(text) => format!("the console has not shown `{}`", text.escape_debug()),
        ReadyProbe::Exec(command) => format!("`{}` has not succeeded", command.join(" ")),
        ReadyProbe::Agent => "the guest's agent has not answered".into(),
    }
}

/// Returns the probes of the thread, in order: all except for those of the console and of the agent.
fn on_thread(probes: &[ReadyProbe]) -> impl Iterator<Item = &ReadyProbe> {
    probes.iter().filter(|probe| !matches!(probe, ReadyProbe::Console(_) | ReadyProbe::Agent))
}

/// The probe thread. It ends when this is dropped.
pub struct Probing {
    cancelled: Arc<AtomicBool>,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// Tries each of its probes until it passes. Calls `passed` with the number of passed probes.
pub fn start(
    guest: &str,
    probes: &[ReadyProbe],
    forwards: &ForwardsOpen,
    passed: impl Fn(usize) + Send + 'static,
) -> Option<Probing> {
    let probes: Vec<ReadyProbe> = on_thread(probes).cloned().collect();
    if probes.is_empty() {
        return None;
    }
    let cancelled = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancelled);
    let (guest, forwards) = (guest.to_owned(), forwards.clone());
    std::thread::spawn(move || {
        for (count, probe) in probes.iter().enumerate() {
            while !attempt(&guest, probe, &forwards) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
            if stop.load(Ordering::Acquire) {
                return;
            }
            passed(count + 1);
        }
    });
    Some(Probing { cancelled })
}

fn attempt(guest: &str, probe: &ReadyProbe, forwards: &ForwardsOpen) -> bool {
    match probe {
        ReadyProbe::Tcp(address) => accepts(*address, forwards),
        ReadyProbe::Ssh(address) => greets(*address, ATTEMPT),
        ReadyProbe::Console(_) | ReadyProbe::Agent => true,
        ReadyProbe::Exec(words) => {
            let Some((program, arguments)) = words.split_first() else { return true };
            let mut command = Command::new(program);
            command.args(arguments).env("VMCTL_GUEST", guest);
            matches!(run_limited(command, b"", ATTEMPT), Ok((Some(status), _)) if status.success())
        }
    }
}

/// Returns whether more than just a forward's listener accepts the connection.
fn accepts(address: SocketAddr, forwards: &ForwardsOpen) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, ATTEMPT) else { return false };
    let connected = Instant::now();
    let mut byte = [0u8; 1];
    let by_forward = forwards.is_open(address.port()).is_some();
    while connected.elapsed() < if by_forward { ATTEMPT } else { SETTLED } {
        if forwards.is_open(address.port()) == Some(true) {
            return true;
        }
        if stream.set_read_timeout(Some(Duration::from_millis(200))).is_err() {
            return false;
        }
        match stream.read(&mut byte) {
            Ok(count) => return count > 0,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return false,
        }
    }
    !by_forward
}

/// Progress of one boot of a guest towards being ready.
pub struct Readiness {
    /// Forwards through which a service of the guest has answered.
    pub forwards_open: ForwardsOpen,
    /// What this boot waits for, also when its forwards change.
    probes: Vec<ReadyProbe>,
    /// Whether the guest's agent has answered.
    pub agent_answered: bool,
    /// Number of probes of the thread that have passed.
    pub probes_passed: usize,
    probing: Option<Probing>,
    late_at: Option<Instant>,
    ready: bool,
}

impl Readiness {
    /// Creates the state of a boot that begins.
    pub fn of(config: &GuestConfig) -> Readiness {
        let forwards_open = ForwardsOpen::of(config);
        let probes = config.ready_probes();
        Readiness { forwards_open, probes, agent_answered: false, probes_passed: 0, probing: None, late_at: None, ready: false }
    }

    /// Starts the probes and their time-out.
    pub fn probe(&mut self, guest: &str, config: &GuestConfig, passed: impl Fn(usize) + Send + 'static) {
        self.late_at = Some(Instant::now() + config.ready.timeout);
        self.probing = start(guest, &self.probes, &self.forwards_open, passed);
    }

    /// Returns whether an answer of the agent is missing.
    fn waits_for_agent(&self) -> bool {
        !self.agent_answered && self.probes.contains(&ReadyProbe::Agent)
    }

    /// Returns whether the guest is ready.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Returns the time at which the guest is late, unless it is ready before.
    pub fn late_at(&self) -> Option<Instant> {
        self.late_at
    }

    /// Returns `true` once, when the guest is not ready in time.
    pub fn is_late(&mut self, now: Instant) -> bool {
        self.late_at.take_if(|at| now >= *at).is_some()
    }
}

impl Supervisor {
    /// Checks whether the last missing probe has passed.
    pub(super) fn check_ready(&mut self) {
        if self.stage.is_running() && self.console.has_asked_for_login() {
            self.answer_all(|purpose| matches!(purpose, Purpose::Login(_)), &Reply::Ready);
        }
        if self.stage.boot().is_some_and(|boot| boot.readiness.agent_answered) {
            self.answer_all(|purpose| matches!(purpose, Purpose::Agent(_)), &Reply::Ready);
        }
        let Stage::Running(boot) = &mut self.stage else { return };
        let readiness = &mut boot.readiness;
        if readiness.ready
            || boot.install.is_some()
            || readiness.probes_passed < on_thread(&readiness.probes).count()
            || self.console.missing_text().is_some()
            || readiness.waits_for_agent()
        {
            return;
        }
        (readiness.ready, readiness.late_at) = (true, None);
        let after_ms = boot.running_since.map_or(0, |since| since.elapsed().as_millis() as u64);
        if let Some(run) = &mut self.state.run {
            run.ready = true;
        }
        self.save_run();
        self.emit(EventKind::Ready { after_ms });
        self.answer_all(|purpose| matches!(purpose, Purpose::Ready(_)), &Reply::Ready);
        self.submit_hooks(HookEvent::Ready, "");
    }

    /// Returns a description of the probe that has not passed.
    pub(super) fn missing_probe(&self) -> String {
        let boot = self.stage.boot();
        if boot.is_some_and(|boot| boot.install.is_some()) {
            return "the installer still runs".into();
        }
        if let Some(text) = self.console.missing_text() {
            return words(&ReadyProbe::Console(text));
        }
        let missing = boot.and_then(|boot| on_thread(&boot.readiness.probes).nth(boot.readiness.probes_passed));
        let agent = boot.filter(|boot| boot.readiness.waits_for_agent()).map(|_| &ReadyProbe::Agent);
        missing.or(agent).map(words).unwrap_or_else(|| "the guest does not run".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::mpsc;

    #[test]
    fn a_service_that_speaks_is_ready_and_a_listener_that_hangs_up_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("has an address");
        let thread = std::thread::spawn(move || {
            drop(listener.accept().expect("accepts"));
            listener.accept().expect("accepts").0.write_all(b"SSH-2.0").expect("writes");
        });
        let none = ForwardsOpen::default();
        assert!(!accepts(address, &none));
        assert!(accepts(address, &none));
        thread.join().expect("no panic");
        assert!(!accepts(address, &none));
    }

    #[test]
    fn a_forward_that_accepts_for_a_silent_guest_is_not_ready_until_the_guest_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("has an address");
        let forwards = ForwardsOpen(Arc::new(Mutex::new(BTreeMap::from([(address.port(), false)]))));
        assert!(!accepts(address, &forwards));
        let later = forwards.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            later.add(address.port());
        });
        assert!(accepts(address, &forwards));
        thread.join().expect("no panic");
    }

    #[test]
    fn a_command_is_tried_until_it_succeeds() {
        let dir = tempfile::tempdir().expect("a directory");
        let flag = dir.path().join("flag");
        let probe = ReadyProbe::Exec(vec!["/usr/bin/test".into(), "-e".into(), flag.display().to_string()]);
        let (sender, passed) = mpsc::channel();
        let _probing = start("g", &[probe], &ForwardsOpen::default(), move |count| sender.send(count).expect("received below"))
            .expect("a thread");
        assert!(passed.recv_timeout(Duration::from_millis(300)).is_err());
        std::fs::write(&flag, "").expect("writes");
        assert_eq!(passed.recv_timeout(Duration::from_secs(10)), Ok(1));
    }
}
