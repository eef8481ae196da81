//! Which program listens on a port of the host, as far as this user may know.

/// A program that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub program: String,
}

/// The program that has the port of `proto` (`tcp` or `udp`); `None` where that cannot be known.
#[cfg(target_os = "linux")]
pub fn listener_at(proto: &str, port: u16) -> Option<Listener> {
    let tables = [format!("/proc/net/{proto}"), format!("/proc/net/{proto}6")];
    let mut inodes = tables.iter().filter_map(|table| inode_at(&std::fs::read_to_string(table).ok()?, port, proto == "tcp"));
    let socket = format!("socket:[{}]", inodes.next()?);
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pid = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == socket.as_str())
    })?;
    let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
    Some(Listener { pid, program })
}

/// sockstat(1) finds it.
#[cfg(not(target_os = "linux"))]
pub fn listener_at(proto: &str, port: u16) -> Option<Listener> {
    let port = port.to_string();
    let text = super::program::run("sockstat", &["-l", "-q", "-P", proto, "-p", &port]).ok()?;
    // USER COMMAND PID FD PROTO LOCAL FOREIGN
    let fields: Vec<&str> = text.lines().next()?.split_whitespace().collect();
    Some(Listener { pid: fields.get(2)?.parse().ok()?, program: (*fields.get(1)?).to_owned() })
}

/// The inode of the socket at a port in a table of proc(5), /proc/net/tcp or udp; of a connection, only what listens
/// (state `0A`).
#[cfg(any(target_os = "linux", test))]
fn inode_at(table: &str, port: u16, listens: bool) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local, 16).ok()? == port && (!listens || *fields.get(3)? == "0A");
        if is_it { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_in_the_kernels_table_and_a_connection_from_its_port_is_none() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:08AE 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
             1: 0100007F:08AE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n";
        assert_eq!(inode_at(table, 2222, true), Some(4242));
        assert_eq!(inode_at(table, 2222, false), Some(11));
        assert_eq!(inode_at(table, 22, true), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_program_that_listens_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("bound").port();
        assert_eq!(listener_at("tcp", port).map(|listener| listener.pid), Some(std::process::id()));
    }
}
