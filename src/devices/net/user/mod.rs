//! User-mode network: a network of its own for one guest, which reaches the outside through ordinary sockets of the
//! host and needs no privilege.
//!
//! ```text
//! 10.0.2.0/24, or another network
//!   10.0.2.2   gateway and DHCP server; traffic that may reach the host itself reaches its loopback there
//!   10.0.2.3   name server: UDP and TCP port 53 go to the host's name servers
//!   10.0.2.4   unused, or port 80 of the files that were given for this boot: see [`answers`]
//!   10.0.2.15  the guest
//! ```
//!
//! [`reach`] decides what the guest reaches of the host and of the world.
//!
//! The sockets come from [`sockets::Sockets`]: in the engine child, which may make none, from the [`connector`].
//! smoltcp handles TCP towards the guest. UDP and ICMP echo need no stack and are translated directly. Everything runs
//! on a thread of its own; the device exchanges frames with it through two bounded queues.
//!
//! **Not modelled**: IPv6; echo to the outside where the host allows it to neither a datagram nor a raw socket (it is
//! refused); addresses of the network other than those above (they are unused).
//!
//! **Hostile guest**: both queues, the connections, the conversations, the datagrams that are being assembled, and
//! their buffers are bounded; see the modules.

pub mod allowed;
pub mod answers;
pub mod connector;
mod dhcp;
mod engine;
pub mod fragments;
pub mod packet;
pub mod reach;
pub mod relay;
pub mod sockets;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use self::reach::{Addresses, Reach};
use super::Nic;
use crate::hypervisor::waking::Waker;

/// Port of [`reach::Addresses::answers`].
pub const ANSWERS_PORT: u16 = 80;
/// The longest packet that is sent to the guest, if its link does not have a smaller one.
const MTU: usize = 1500;
/// Maximum number of frames that wait in either direction.
const QUEUE_FRAMES: usize = 1024;
/// Longest frame taken from the guest.
const FRAME_MAX: usize = 65535 + 18;

/// Protocol of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An address of the host whose traffic goes to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address and port; port 0 takes a free one.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// Configuration of a network.
#[derive(Debug, Clone, Default)]
pub struct UserNetConfig {
    /// Its addresses.
    pub addresses: Addresses,
    /// What the guest may reach.
    pub reach: Reach,
    /// Length of the longest packet that the guest's link takes.
    pub mtu: Option<u16>,
    /// Inbound forwards.
    pub forwards: Vec<Forward>,
    /// The host name that DHCP tells the guest.
    pub host_name: Option<String>,
    /// Name servers. If empty, those of the host's `/etc/resolv.conf`.
    pub name_servers: Vec<SocketAddr>,
    /// Files that the guest may read at [`Addresses::answers_at`].
    pub answers: Option<Arc<answers::Files>>,
}

/// A callback with a forward's address, called once for every forward when the guest has accepted a connection through
/// it. The forward itself accepts connections whether or not the guest listens.
pub type ForwardOpened = Arc<dyn Fn(SocketAddr) + Send + Sync>;

/// A callback with a message of one line for the user.
pub type Noted = Arc<dyn Fn(&str) + Send + Sync>;

/// The parts of the host that a network uses.
#[derive(Clone)]
pub struct Outside {
    /// Makes the network's sockets.
    pub sockets: Arc<dyn sockets::Sockets>,
    /// Called on the network's thread.
    pub on_open: ForwardOpened,
    /// Called on the network's thread.
    pub on_note: Noted,
}

/// The error for a network that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UserNetError {
    /// Another program listens there.
    #[error("port already taken: `{0}` is in use by another program")]
    Taken(SocketAddr),
    /// The host does not allow it to listen there.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the host.
        source: std::io::Error,
    },
    /// The host has no thread or socket to give.
    #[error("cannot start the user-mode network")]
    Start(#[source] std::io::Error),
}

/// A change of the forwards of a network that runs.
enum ForwardChange {
    Add(Forward, sockets::AddedForward),
    Remove(Forward),
}

/// The means to change the forwards of a network that runs.
#[derive(Clone)]
pub struct ForwardControl {
    shared: Arc<Shared>,
    sockets: Arc<dyn sockets::Sockets>,
}

impl ForwardControl {
    /// Takes a forward into use whose socket the supervisor has bound.
    pub fn add(&self, forward: Forward) -> std::io::Result<()> {
        let socket = self.sockets.added_forward(&forward)?;
        self.change(ForwardChange::Add(forward, socket));
        Ok(())
    }

    /// Closes a forward, if there is one, and the connections through it.
    pub fn remove(&self, forward: Forward) {
        self.change(ForwardChange::Remove(forward));
    }

    fn change(&self, change: ForwardChange) {
        self.shared.changes.lock().expect("no panic happens under this lock").push(change);
        // It may have been notified of something else and have looked already.
        self.shared.notified.store(false, Ordering::Release);
        self.shared.ring();
    }
}

/// State that the device's side and the thread share.
struct Shared {
    from_guest: Mutex<VecDeque<Vec<u8>>>,
    to_guest: Mutex<VecDeque<Vec<u8>>>,
    /// Changes of the forwards.
    changes: Mutex<Vec<ForwardChange>>,
    /// The thread was notified and has not looked yet.
    notified: AtomicBool,
    stop: AtomicBool,
    bell: UnixStream,
    waker: Waker,
}

impl Shared {
    /// Notifies the thread.
    fn ring(&self) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            // A full socket already has a byte in it.
            let _ = (&self.bell).write(&[1]);
        }
    }
}

/// The device's end of the network.
pub struct UserNet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests let the host choose the ports"))]
    forwards: Vec<Forward>,
    sockets: Arc<dyn sockets::Sockets>,
}

fn listen_error(address: SocketAddr, source: std::io::Error) -> UserNetError {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => UserNetError::Taken(address),
        _ => UserNetError::Listen { address, source },
    }
}

/// The sockets of a network's forwards, open.
#[derive(Default)]
pub struct Listeners {
    tcp: Vec<tcp::Listener>,
    udp: Vec<udp::Listener>,
    forwards: Vec<Forward>,
}

impl Listeners {
    /// Opens the sockets of `config`. A forward that cannot listen fails it all.
    pub fn open(config: &UserNetConfig, sockets: &dyn sockets::Sockets) -> Result<Listeners, UserNetError> {
        let (mut tcp, mut udp, mut forwards) = (vec![], vec![], vec![]);
        for forward in &config.forwards {
            let failed = |error| listen_error(forward.host, error);
            let guest_port = forward.guest_port;
            let host = match forward.protocol {
                Protocol::Tcp => {
                    let socket = TcpListener::bind(forward.host).map_err(failed)?;
                    socket.set_nonblocking(true).map_err(failed)?;
                    let host = socket.local_addr().map_err(failed)?;
                    tcp.push(tcp::Listener { socket, host, guest_port, opened: false, paused: None });
                    host
                }
                Protocol::Udp => {
                    let socket = UdpSocket::bind(forward.host).map_err(failed)?;
                    socket.set_nonblocking(true).map_err(failed)?;
                    let host = socket.local_addr().map_err(failed)?;
                    let socket = sockets.forward(socket).map_err(UserNetError::Start)?;
                    udp.push(udp::Listener { socket, host, guest_port });
                    host
                }
            };
            forwards.push(Forward { host, ..*forward });
        }
        Ok(Listeners { tcp, udp, forwards })
    }
}

impl UserNet {
    /// Opens the forwards and starts a network; its device is woken through `waker`.
    #[cfg(test)]
    pub fn new(config: &UserNetConfig, waker: Waker, outside: Outside) -> Result<UserNet, UserNetError> {
        let listeners = Listeners::open(config, &*outside.sockets)?;
        UserNet::on(listeners, config, waker, outside)
    }

    /// Starts a network on sockets that were opened for the same configuration.
    pub fn on(listeners: Listeners, config: &UserNetConfig, waker: Waker, outside: Outside) -> Result<UserNet, UserNetError> {
        let Listeners { tcp, udp, forwards } = listeners;
        let (bell, heard) = UnixStream::pair().map_err(UserNetError::Start)?;
        bell.set_nonblocking(true).and_then(|()| heard.set_nonblocking(true)).map_err(UserNetError::Start)?;
        let shared = Arc::new(Shared {
            from_guest: Mutex::default(),
            to_guest: Mutex::default(),
            changes: Mutex::default(),
            notified: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            bell,
            waker,
        });
        let engine = engine::Engine::new(shared.clone(), heard, config, (tcp, udp), &outside);
        let thread = std::thread::Builder::new().name("user-net".into()).spawn(move || engine.run());
        Ok(UserNet { shared, thread: Some(thread.map_err(UserNetError::Start)?), forwards, sockets: outside.sockets })
    }

    /// Returns the means to change its forwards.
    pub fn forward_control(&self) -> ForwardControl {
        ForwardControl { shared: Arc::clone(&self.shared), sockets: Arc::clone(&self.sockets) }
    }

    /// Returns the forwards, with the chosen ports where the configuration left them open.
    #[cfg(test)]
    pub fn forwards(&self) -> &[Forward] {
        &self.forwards
    }
}

impl Nic for UserNet {
    fn transmit(&mut self, frame: &[u8]) {
        if frame.len() > FRAME_MAX {
            return;
        }
        {
            let mut queue = self.shared.from_guest.lock().expect("no panic happens under this lock");
            if queue.len() >= QUEUE_FRAMES {
                return;
            }
            queue.push_back(frame.to_vec());
        }
        self.shared.ring();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut queue = self.shared.to_guest.lock().expect("no panic happens under this lock");
        let frame = queue.pop_front();
        // The thread stopped filling when there was no room. It continues when half of the queue is free.
        let resume = frame.is_some() && queue.len() == QUEUE_FRAMES / 2;
        drop(queue);
        if resume {
            self.shared.ring();
        }
        frame
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.notified.store(false, Ordering::Release);
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
