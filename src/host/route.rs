//! The default route, read from route(8), and the network of this session.

use std::net::IpAddr;

use super::program;

/// The route of packets that no other route takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The interface.
    pub interface: String,
    /// The router. There is none on a point-to-point link.
    pub gateway: Option<IpAddr>,
}

/// Returns the IPv4 default route of FreeBSD, if there is one.
pub fn default_route() -> Option<DefaultRoute> {
    parse(&program::run("route", &["-n", "get", "-inet", "default"]).ok()?)
}

/// Parses `route -n get default`: FreeBSD's `sbin/route/route.c` prints `key: value` lines, with the key right-aligned.
fn parse(text: &str) -> Option<DefaultRoute> {
    let value = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let gateway = value("gateway:").and_then(|text| text.parse().ok());
    Some(DefaultRoute { interface: value("interface:")?.to_owned(), gateway })
}

/// Returns the address of this host to which the session of this terminal is connected: the third word of
/// `SSH_CONNECTION`, which sshd(8) sets (client address, client port, server address, server port).
pub fn session_address() -> Option<IpAddr> {
    server_address(&std::env::var("SSH_CONNECTION").ok()?)
}

fn server_address(text: &str) -> Option<IpAddr> {
    // A link-local address has its interface after a `%`. A switch could not move such an address.
    text.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_has_an_interface_and_a_router() {
        let text = "   route to: 0.0.0.0\ndestination: 0.0.0.0\n       mask: 0.0.0.0\n    gateway: 192.0.2.1\n        fib: 0\n  interface: em0\n      flags: <UP,GATEWAY,DONE,STATIC>\n";
        let route = parse(text).expect("a route");
        assert_eq!(route, DefaultRoute { interface: "em0".into(), gateway: Some("192.0.2.1".parse().expect("an address")) });
        assert_eq!(parse("  interface: tun0\n").expect("a route").gateway, None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_session_is_where_ssh_arrived() {
        assert_eq!(server_address("203.0.113.9 50022 192.0.2.5 22"), "192.0.2.5".parse().ok());
        assert_eq!(server_address("203.0.113.9"), None);
    }
}
