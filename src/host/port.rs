//! A TCP port for a program that binds it itself: probed, and reserved against others of this program's.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use super::files::private_directory;
use super::place;

/// A port that nobody listens on, reserved as long as this lives.
#[derive(Debug)]
pub struct Reserved {
    /// Where the program is to listen.
    pub address: SocketAddr,
    _lock: File,
}

/// The first free port of `ports` at `ip`; [`io::ErrorKind::AddrInUse`] when none is.
///
/// Between the probe and the program's own bind the port is free for a moment. Two processes of this program never
/// take the same one: each locks a file of the port's.
pub fn reserve(ip: IpAddr, ports: impl Iterator<Item = u16>) -> io::Result<Reserved> {
    let directory = place::run_directory();
    private_directory(&directory)?;
    for port in ports {
        let file = File::options().create(true).truncate(false).write(true).open(directory.join(format!("port-{port}.lock")))?;
        if file.try_lock().is_err() {
            continue;
        }
        let address = SocketAddr::new(ip, port);
        match TcpListener::bind(address) {
            Ok(_) => return Ok(Reserved { address, _lock: file }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}
