//! netgraph(4) nodes, through ngctl(8).
//!
//! bhyve creates a hook of ng_bridge(4) when it connects, some time after its name was chosen. A name is therefore
//! reserved first, so that two guests that start at the same time never choose the same one. The reservation is a lock
//! below the run directory, which all guests of this host share and which ends with its holder.

use std::fs::File;
use std::io;

use super::environment;
use super::error::HostError;
use super::program::{ProgramError, run};

/// Maximum number of links that are tried. No node has as many hooks.
const MOST_LINKS: u32 = 65_536;

/// A node, as ngctl(8) prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetgraphNode {
    /// Its name.
    pub name: String,
    /// Its type, like `bridge`.
    pub kind: String,
    /// Its connections.
    pub hooks: Vec<Hook>,
}

/// One end of a connection of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The other node, `<unnamed>` when it has no name.
    pub peer: String,
    /// Name of the hook at the other end.
    pub peer_hook: String,
}

/// Returns the node of this name, if there is one.
pub fn node(name: &str) -> Option<NetgraphNode> {
    read(&listing(&format!("{name}:")).ok()?)
}

/// Parses the output of `usr.sbin/ngctl/show.c`: `Name: N Type: T ...`, two lines of headings, and five columns for
/// each hook.
fn read(listing: &str) -> Option<NetgraphNode> {
    let mut lines = listing.lines();
    let head: Vec<&str> = lines.next()?.split_whitespace().collect();
    let ["Name:", name, "Type:", kind, ..] = head[..] else { return None };
    let hooks = lines.skip(2).filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [name, peer, _, _, peer_hook] => {
            Some(Hook { name: name.to_owned(), peer: peer.to_owned(), peer_hook: peer_hook.to_owned() })
        }
        _ => None,
    });
    Some(NetgraphNode { name: name.to_owned(), kind: kind.to_owned(), hooks: hooks.collect() })
}

/// Returns the name of the ng_ether(4) node of an interface: the interface's name without the characters that a
/// netgraph path uses otherwise (`sys/netgraph/ng_ether.c`, ng_ether_sanitize_ifname).
pub fn ether_node(interface: &str) -> String {
    interface.replace(['.', ':'], "_")
}

/// A reserved hook. No other guest of this program chooses it as long as this lives.
#[derive(Debug)]
pub struct Reserved {
    /// Name of the hook, like `link2`.
    pub hook: String,
    _lock: File,
}

/// Reserves the first hook `linkN` of an ng_bridge(4) node that is neither connected nor reserved.
pub fn reserve_link(path: &str) -> Result<Reserved, HostError> {
    let directory = environment::run_directory().join("netgraph");
    let unusable =
        |error: io::Error| HostError::user(format!("cannot reserve a hook of `{path}` in `{}`: {error}", directory.display()));
    super::files::private_directory(&directory).map_err(unusable)?;
    // The path is the node's name, an id or a sequence of hooks (netgraph(4), Addressing). None contains a slash.
    let node = path.replace('/', "_");
    for number in 0..MOST_LINKS {
        let hook = format!("link{number}");
        // The file is not removed: if it were removed while another process opens it, it could be locked twice.
        let lock = File::create(directory.join(format!("{node}{hook}"))).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => continue,
            Err(std::fs::TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // Checked with the lock held: the previous holder has connected, or has given up.
        if !is_taken(&listing(path)?, &hook) {
            return Ok(Reserved { hook, _lock: lock });
        }
    }
    Err(format!("every hook of `{path}` is taken").into())
}

fn listing(path: &str) -> Result<String, ProgramError> {
    run("ngctl", &["show", path])
}

/// Returns whether ngctl's listing has the hook: below two lines of headings, each line begins with the name of a hook
/// (`usr.sbin/ngctl/show.c`).
pub fn is_taken(listing: &str, hook: &str) -> bool {
    listing.lines().any(|line| line.split_whitespace().next() == Some(hook))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_taken_when_something_is_connected_to_it() {
        let listing = "  Name: bridge0         Type: bridge          ID: 00000005   Num hooks: 3\n\
            \u{20} Local hook      Peer name       Peer type    Peer ID         Peer hook\n\
            \u{20} ----------      ---------       ---------    -------         ---------\n\
            \u{20} link3           vm1             socket       0000000a        vmlink\n\
            \u{20} link1           em0             ether        00000002        upper\n\
            \u{20} link0           em0             ether        00000002        lower\n";
        let taken = (0..5).map(|number| is_taken(listing, &format!("link{number}"))).collect::<Vec<_>>();
        assert_eq!(taken, [true, true, false, true, false]);
        let node = read(listing).expect("a node");
        assert_eq!((node.name.as_str(), node.kind.as_str(), node.hooks.len()), ("bridge0", "bridge", 3));
        assert_eq!(node.hooks[2], Hook { name: "link0".into(), peer: "em0".into(), peer_hook: "lower".into() });
        assert_eq!(read("ngctl: send msg: No such file or directory\n"), None);
        assert!(!is_taken("", "link0") && !is_taken(listing, "vmlink"));
    }
}
