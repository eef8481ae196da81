//! A TCP port for a program that binds it itself: the port is probed, and reserved against other processes of this
//! program.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use super::environment;
use super::files::private_directory;

/// A free port, reserved as long as this lives.
#[derive(Debug)]
pub struct Reserved {
    /// The address on which the program must listen.
    pub address: SocketAddr,
    _lock: File,
}

/// Returns the first free port of `ports` at `ip`; the error is [`io::ErrorKind::AddrInUse`] if none is.
///
/// Between the probe and the program's own bind the port is free for a moment. Two processes of this program never take
/// the same one, since each locks a file for its port.
pub fn reserve(ip: IpAddr, ports: impl Iterator<Item = u16>) -> io::Result<Reserved> {
    let directory = environment::run_directory();
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
