//! netgraph(4) nodes, through ngctl(8).
//!
//! A hook of ng_bridge(4) comes into being when bhyve connects to it, some time after its name was chosen. So that two
//! guests that start at one instant never choose the same one, a name is reserved first: a lock below the run
//! directory, which all of this host's guests share and which its holder's death gives back.

use std::fs::File;
use std::io;

use super::place;
use super::program::{ProgramError, run};

/// More than any node's hooks; a bound for the search.
const MOST_LINKS: u32 = 65_536;

/// A node, as ngctl(8) shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its type, like `bridge`.
    pub kind: String,
    /// What is connected to it.
    pub hooks: Vec<Hook>,
}

/// One end of a connection of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The other node, `<unnamed>` when it has no name.
    pub peer: String,
    /// The other end's name.
    pub peer_hook: String,
}

/// The node of that name, if there is one.
pub fn node(name: &str) -> Option<Node> {
    read(&listing(&format!("{name}:")).ok()?)
}

/// What `usr.sbin/ngctl/show.c` prints: `Name: N Type: T ...`, two lines of heads, and five columns for each hook.
fn read(listing: &str) -> Option<Node> {
    let mut lines = listing.lines();
    let head: Vec<&str> = lines.next()?.split_whitespace().collect();
    let ["Name:", name, "Type:", kind, ..] = head[..] else { return None };
    let hooks = lines.skip(2).filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [name, peer, _, _, peer_hook] => {
            Some(Hook { name: name.to_owned(), peer: peer.to_owned(), peer_hook: peer_hook.to_owned() })
        }
        _ => None,
    });
    Some(Node { name: name.to_owned(), kind: kind.to_owned(), hooks: hooks.collect() })
}

/// The ng_ether(4) node of an interface: its name, without what a path of netgraph means otherwise
/// (`sys/netgraph/ng_ether.c`, ng_ether_sanitize_ifname).
pub fn ether_node(interface: &str) -> String {
    interface.replace(['.', ':'], "_")
}

/// A hook that no other guest of this program chooses as long as this is held.
#[derive(Debug)]
pub struct Reserved {
    /// Like `link2`.
    pub hook: String,
    _lock: File,
}

/// The first hook `linkN` of an ng_bridge(4) node that nothing is connected to, and that nobody has reserved.
pub fn reserve_link(path: &str) -> Result<Reserved, String> {
    let directory = place::run_directory().join("netgraph");
    let unusable = |error: io::Error| format!("cannot reserve a hook of `{path}` in `{}`: {error}", directory.display());
    super::files::private_directory(&directory).map_err(unusable)?;
    // Its path is the node's name, an id or a row of hooks (netgraph(4), Addressing); none has a slash in it.
    let node = path.replace('/', "_");
    for number in 0..MOST_LINKS {
        let hook = format!("link{number}");
        // The file stays: one that is removed while another process opens it would be locked twice.
        let lock = File::create(directory.join(format!("{node}{hook}"))).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => continue,
            Err(std::fs::TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // Asked with the lock in hand: who had it before has connected, or has given up.
        if !is_taken(&listing(path).map_err(|error| error.to_string())?, &hook) {
            return Ok(Reserved { hook, _lock: lock });
        }
    }
    Err(format!("every hook of `{path}` is taken"))
}

fn listing(path: &str) -> Result<String, ProgramError> {
    run("ngctl", &["show", path])
}

/// From ngctl's listing: below two lines of heads, each line begins with the name of a hook (`usr.sbin/ngctl/show.c`).
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
