//! Forwards of a guest, added and removed by commands: in its file, and at once on the network of a running guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use toml_edit::{Item, TableLike, Value};

use crate::config::{EngineKind, Forward, ForwardProto, GuestConfig, NicBackend, NicConfig};

use super::change::{When, text};
use super::control::{Reply, Request};
use super::definition::{Definition, Surroundings};
use super::edit::Edit;
use super::engine::forward_spec;
use super::error::{GuestError, Result};
use super::images::KnownImages;
use super::launcher::{ask_once, supervisor_of};
use super::preflight::Preflight;
use super::state::RunState;
use super::store::{GuestDir, Store};

/// A forward as it is typed: `[ADDRESS:]HOST:GUEST[/udp]`. To remove one, its port of the host is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypedForward {
    proto: ForwardProto,
    host_addr: Option<IpAddr>,
    host_port: u16,
    guest_port: Option<u16>,
}

impl FromStr for TypedForward {
    type Err = String;

    fn from_str(typed: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("`{typed}` is not a forward like `8080:80`, `127.0.0.1:8080:80` or `5353:53/udp`");
        let (ports, proto) = match typed.split_once('/') {
            None => (typed, ForwardProto::Tcp),
            Some((ports, "tcp")) => (ports, ForwardProto::Tcp),
            Some((ports, "udp")) => (ports, ForwardProto::Udp),
            Some(_) => return Err(wrong()),
        };
        let (address, ports) = match ports.strip_prefix('[').map(|rest| rest.split_once("]:")) {
            Some(Some((address, ports))) => (Some(address), ports),
            Some(None) => return Err(wrong()),
            None => match ports.split_once(':').filter(|(first, _)| first.parse::<IpAddr>().is_ok()) {
                Some((address, ports)) => (Some(address), ports),
                None => (None, ports),
            },
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (host, guest) = ports.split_once(':').map_or((ports, None), |(host, guest)| (host, Some(guest)));
        Ok(TypedForward {
            proto,
            host_addr: address.map(|address| address.parse().map_err(|_| wrong())).transpose()?,
            host_port: port(host)?,
            guest_port: guest.map(port).transpose()?,
        })
    }
}

impl fmt::Display for TypedForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = self.proto.as_str();
        match self.host_addr {
            Some(address) => write!(f, "{proto} {}", SocketAddr::new(address, self.host_port)),
            None => write!(f, "{proto} {}", self.host_port),
        }
    }
}

impl TypedForward {
    fn means(&self, forward: &Forward) -> bool {
        forward.proto == self.proto
            && forward.host_port == self.host_port
            && self.host_addr.is_none_or(|address| address == forward.host_addr)
            && self.guest_port.is_none_or(|port| port == forward.guest_port)
    }
}

/// A forward of a guest, for a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedForward {
    /// Name of the guest.
    pub guest: String,
    /// Name of the interface.
    pub nic: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The address on which the host listens.
    pub host: SocketAddr,
    /// Port in the guest.
    pub guest_port: u16,
    /// Whether it is in use now: the guest runs with it.
    pub active: bool,
}

/// Returns the forwards of a guest's file.
pub fn list(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<Vec<ListedForward>> {
    let config = Definition::load(guest, surroundings)?.config;
    let run = RunState::load(&guest.state_file()).filter(|_| supervisor_of(guest).is_some());
    let active = |forward: &Forward| run.as_ref().is_some_and(|run| run.forwards.contains(&forward.words()));
    let of_nic = |nic: &NicConfig| -> Vec<ListedForward> {
        let listed = |forward: &Forward| ListedForward {
            guest: guest.name().to_owned(),
            nic: nic.id.clone(),
            protocol: forward.proto.as_str(),
            host: forward.host(),
            guest_port: forward.guest_port,
            active: active(forward),
        };
        nic.forwards.iter().map(listed).collect()
    };
    Ok(config.nics.iter().flat_map(of_nic).collect())
}

/// Adds a forward to an interface, or else to the first user-mode network: to the file, and to a running guest. If that
/// refuses it, the file is as it was.
pub fn add(
    guest: &GuestDir,
    nic: Option<&str>,
    typed: &TypedForward,
    store: &Store,
    surroundings: Surroundings<'_>,
) -> Result<(Forward, When)> {
    let mut edit = Edit::begin(guest, surroundings)?;
    let before = edit.config(surroundings)?;
    let nic = network(guest, &before, nic)?.id.clone();
    let guest_port = typed.guest_port.ok_or_else(|| {
        GuestError::user(format!("`{typed}` names no port in the guest")).hint(format!("like `{}:80`", typed.host_port))
    })?;
    let host_addr = typed.host_addr.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let forward = Forward { proto: typed.proto, host_addr, host_port: typed.host_port, guest_port };
    if before.nics.iter().any(|nic| nic.forwards.contains(&forward)) {
        return Err(GuestError::user(format!("`{}` has the forward {} already", guest.name(), forward.words())));
    }
    edit.apply(&sets(&before, &nic, &forward), &[])?;
    // Another forward of this guest at that port is told with its line.
    edit.config(surroundings)?;
    let images = KnownImages::new(surroundings.host);
    let preflight = Preflight { store, surroundings, images: &images, guest: None };
    if let Some(error) = preflight.port_problem(&forward, Duration::ZERO) {
        return Err(error);
    }
    edit.save(surroundings)?;
    let request = Request::AddForward { nic: nic.clone(), forward: forward_spec(&forward) };
    let when = at_once(guest, &nic, request).map_err(|error| edit.put_back(error, surroundings))?;
    Ok((forward, when))
}

/// Removes a forward from the file and from a running guest, in the same way.
pub fn remove(guest: &GuestDir, typed: &TypedForward, surroundings: Surroundings<'_>) -> Result<(Forward, When)> {
    let mut edit = Edit::begin(guest, surroundings)?;
    let before = edit.config(surroundings)?;
    let all = || before.nics.iter().flat_map(|nic| nic.forwards.iter().map(|forward| (&nic.id, *forward)));
    let (nic, forward) = all().find(|(_, forward)| typed.means(forward)).ok_or_else(|| {
        let known: Vec<String> = all().map(|(_, forward)| format!("`{}`", forward.words())).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        GuestError::user(format!("`{}` has no forward `{typed}`", guest.name())).hint(format!("there are: {known}"))
    })?;
    edit.change(|document| {
        if let Some(entry) = document.get_mut("nics").and_then(|nics| entry_of(nics, nic)) {
            take_out(entry, &forward);
        }
    })?;
    if edit.config(surroundings)?.nics.iter().any(|nic| nic.forwards.contains(&forward)) {
        return Err(GuestError::user(format!(
            "the forward {} of `{}` is not one of its own file",
            forward.words(),
            guest.name()
        ))
        .hint("it comes from a template: `vmctl show --explain` says from where; exclude it with its `id` and `remove = true`"));
    }
    edit.save(surroundings)?;
    let request = Request::RemoveForward { nic: nic.clone(), forward: forward_spec(&forward) };
    let when = at_once(guest, nic, request).map_err(|error| edit.put_back(error, surroundings))?;
    Ok((forward, when))
}

/// Returns the interface for a forward: the named one, or else the first user-mode network.
fn network<'a>(guest: &GuestDir, config: &'a GuestConfig, nic: Option<&str>) -> Result<&'a NicConfig> {
    let Some(nic) = nic else {
        return config.nics.iter().find(|nic| nic.backend == NicBackend::User).ok_or_else(|| {
            GuestError::user(format!("`{}` has no user-mode network, and other networks have no forwards", guest.name()))
                .hint(format!("`vmctl nic add {} NAME` adds one for the next boot", guest.name()))
        });
    };
    let found = config.nics.iter().find(|known| known.id == nic).ok_or_else(|| {
        let known: Vec<String> = config.nics.iter().map(|nic| format!("`{}`", nic.id)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        GuestError::user(format!("`{}` has no interface `{nic}`", guest.name())).hint(format!("there are: {known}"))
    })?;
    if found.backend != NicBackend::User {
        let backend = found.backend.as_str();
        return Err(GuestError::user(format!(
            "interface `{nic}` of `{}` is of backend `{backend}`, and only `user` has forwards",
            guest.name()
        ))
        .hint("the guest is reached there at its own address"));
    }
    Ok(found)
}

/// Returns what `--set` would say for a forward.
fn sets(config: &GuestConfig, nic: &str, forward: &Forward) -> Vec<String> {
    let name = format!("{}-{}", forward.proto.as_str(), forward.host_port);
    // Two addresses of the host may have the same port.
    let alike = |other: &&Forward| other.proto == forward.proto && other.host_port == forward.host_port;
    let id = match config.nics.iter().flat_map(|nic| &nic.forwards).filter(alike).count() {
        0 => name,
        others => format!("{name}-{}", others + 1),
    };
    let path = format!("nics.{nic}.forwards.{id}");
    let mut sets = Vec::new();
    if forward.proto != ForwardProto::Tcp {
        sets.push(format!("{path}.proto={}", text(forward.proto.as_str())));
    }
    if forward.host_addr != IpAddr::from(Ipv4Addr::LOCALHOST) {
        sets.push(format!("{path}.host_addr={}", text(&forward.host_addr.to_string())));
    }
    sets.extend([format!("{path}.host_port={}", forward.host_port), format!("{path}.guest_port={}", forward.guest_port)]);
    sets
}

/// Returns the table of an interface in a guest file.
fn entry_of<'a>(nics: &'a mut Item, id: &str) -> Option<&'a mut dyn TableLike> {
    let is_it = |entry: &dyn TableLike| entry.get("id").and_then(Item::as_str) == Some(id);
    match nics {
        Item::ArrayOfTables(entries) => entries.iter_mut().find(|entry| is_it(*entry)).map(|entry| entry as &mut dyn TableLike),
        Item::Value(Value::Array(entries)) => entries
            .iter_mut()
            .filter_map(Value::as_inline_table_mut)
            .find(|entry| is_it(*entry))
            .map(|entry| entry as &mut dyn TableLike),
        _ => None,
    }
}

/// Takes a forward out of the table of its interface.
fn take_out(nic: &mut dyn TableLike, forward: &Forward) {
    let is_it = |entry: &dyn TableLike| {
        let number = |key: &str| entry.get(key).and_then(Item::as_integer);
        let word = |key: &str| entry.get(key).and_then(Item::as_str);
        let address = word("host_addr").map_or(Some(Ipv4Addr::LOCALHOST.into()), |text| text.parse::<IpAddr>().ok());
        number("host_port") == Some(forward.host_port.into())
            && word("proto").unwrap_or(ForwardProto::Tcp.as_str()) == forward.proto.as_str()
            && address == Some(forward.host_addr)
    };
    let left = match nic.get_mut("forwards") {
        Some(Item::ArrayOfTables(entries)) => {
            entries.retain(|entry| !is_it(entry));
            entries.len()
        }
        Some(Item::Value(Value::Array(entries))) => {
            entries.retain(|entry| !entry.as_inline_table().is_some_and(|entry| is_it(entry)));
            entries.len()
        }
        _ => return,
    };
    if left == 0 {
        nic.remove("forwards");
    }
}

/// Asks a running guest to change it at once. One of the engine `bhyve`, and one that was booted without the interface,
/// changes with its next boot.
fn at_once(guest: &GuestDir, nic: &str, request: Request) -> Result<When> {
    if supervisor_of(guest).is_none() {
        return Ok(When::Now);
    }
    if let Reply::Status(run) = ask_once(guest, Request::Status)?
        && let Some(machine) = &run.machine
        && (machine.engine != EngineKind::Embedded.as_str() || !machine.nics.iter().any(|known| known.id == nic))
    {
        return Ok(When::NextBoot);
    }
    match ask_once(guest, request)? {
        Reply::Done => Ok(When::Now),
        other => Err(GuestError::host(format!("the supervisor answered {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml_edit::DocumentMut;

    #[test]
    fn a_forward_is_typed_with_an_address_and_a_protocol_or_without() {
        let typed = |text: &str| text.parse::<TypedForward>();
        let plain = TypedForward { proto: ForwardProto::Tcp, host_addr: None, host_port: 8080, guest_port: Some(80) };
        assert_eq!(typed("8080:80"), Ok(plain));
        assert_eq!(typed("8080:80/tcp"), Ok(plain));
        assert_eq!(typed("0.0.0.0:8080:80"), Ok(TypedForward { host_addr: Some(Ipv4Addr::UNSPECIFIED.into()), ..plain }));
        assert_eq!(typed("[::1]:8080:80"), Ok(TypedForward { host_addr: "::1".parse().ok(), ..plain }));
        assert_eq!(typed("8080"), Ok(TypedForward { guest_port: None, ..plain }));
        assert_eq!(typed("8080:80/udp"), Ok(TypedForward { proto: ForwardProto::Udp, ..plain }));
        for text in ["", "x", "8080:", ":80", "0:80", "8080:65536", "8080:80/sctp", "a.b:8080:80", "[::1:8080:80", "1:2:3"] {
            assert!(typed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_forward_leaves_the_file_in_either_way_of_writing_and_nothing_else_does() {
        let forward =
            Forward { proto: ForwardProto::Tcp, host_addr: Ipv4Addr::LOCALHOST.into(), host_port: 2222, guest_port: 22 };
        let after = |text: &str| {
            let mut document = text.parse::<DocumentMut>().expect("TOML");
            if let Some(entry) = document.get_mut("nics").and_then(|nics| entry_of(nics, "net0")) {
                take_out(entry, &forward);
            }
            document.to_string()
        };
        let short =
            "nics = [{ id = \"net0\", forwards = [{ host_port = 2222, guest_port = 22 }, { host_port = 1, guest_port = 1 }] }]\n";
        assert!(!after(short).contains("2222") && after(short).contains("host_port = 1,"), "{}", after(short));
        let long = "# mine\n[[nics]]\nid = \"net0\"\n[[nics.forwards]]\nhost_port = 2222\nguest_port = 22\n";
        assert_eq!(after(long), "# mine\n[[nics]]\nid = \"net0\"\n");
        for other in ["proto = \"udp\"", "host_addr = \"0.0.0.0\""] {
            let text = format!("nics = [{{ id = \"net0\", forwards = [{{ {other}, host_port = 2222, guest_port = 22 }}] }}]\n");
            assert_eq!(after(&text), text);
        }
    }
}
