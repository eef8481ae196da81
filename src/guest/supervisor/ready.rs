//! Readiness: the probes that need the host (TCP connections, commands), on a thread of their own, once a boot.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::ReadyProbe;

use super::hooks::run_limited;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A connection that stays open for so long without a byte counts as accepted by the guest: the listener of a forward
/// accepts before the guest does, and closes when the guest refuses.
const SETTLED: Duration = Duration::from_secs(2);

/// A probe for people.
pub fn words(probe: &ReadyProbe) -> String {
    match probe {
        ReadyProbe::Tcp(address) => format!("no TCP connection to {address}"),
        ReadyProbe::Console(text) => format!("the console has not shown `{}`", text.escape_debug()),
        ReadyProbe::Exec(command) => format!("`{}` has not succeeded", command.join(" ")),
    }
}

/// The probe thread; it ends when this is dropped.
pub struct Probing {
    cancelled: Arc<AtomicBool>,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// Tries every probe that is not the console's, in order, until it passes; `passed` is called with how many have.
pub fn start(guest: &str, probes: &[ReadyProbe], passed: impl Fn(usize) + Send + 'static) -> Option<Probing> {
    let probes: Vec<ReadyProbe> = probes.iter().filter(|probe| !matches!(probe, ReadyProbe::Console(_))).cloned().collect();
    if probes.is_empty() {
        return None;
    }
    let cancelled = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancelled);
    let guest = guest.to_owned();
    std::thread::spawn(move || {
        for (count, probe) in probes.iter().enumerate() {
            while !attempt(&guest, probe) {
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

fn attempt(guest: &str, probe: &ReadyProbe) -> bool {
    match probe {
        ReadyProbe::Tcp(address) => accepts(*address),
        ReadyProbe::Console(_) => true,
        ReadyProbe::Exec(words) => {
            let Some((program, arguments)) = words.split_first() else { return true };
            let mut command = Command::new(program);
            command.args(arguments).env("VMCTL_GUEST", guest);
            matches!(run_limited(command, b"", ATTEMPT), Ok((Some(status), _)) if status.success())
        }
    }
}

/// Whether something that is not just a forward's listener takes the connection.
fn accepts(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, ATTEMPT) else { return false };
    let connected = Instant::now();
    let mut byte = [0u8; 1];
    while connected.elapsed() < SETTLED {
        if stream.set_read_timeout(Some(Duration::from_millis(200))).is_err() {
            return false;
        }
        match stream.read(&mut byte) {
            Ok(count) => return count > 0,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return false,
        }
    }
    true
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
        assert!(!accepts(address));
        assert!(accepts(address));
        thread.join().expect("no panic");
        assert!(!accepts(address));
    }

    #[test]
    fn a_command_is_tried_until_it_succeeds() {
        let dir = tempfile::tempdir().expect("a directory");
        let flag = dir.path().join("flag");
        let probe = ReadyProbe::Exec(vec!["/usr/bin/test".into(), "-e".into(), flag.display().to_string()]);
        let (sender, passed) = mpsc::channel();
        let _probing = start("g", &[probe], move |count| sender.send(count).expect("received below")).expect("a thread");
        assert!(passed.recv_timeout(Duration::from_millis(300)).is_err());
        std::fs::write(&flag, "").expect("writes");
        assert_eq!(passed.recv_timeout(Duration::from_secs(10)), Ok(1));
    }
}
