//! Plans for switches: the missing steps, and the steps to take a switch down.

use std::net::IpAddr;
use std::path::Path;

use super::super::dnsmasq::{self, Service};
use super::super::error::HostError;
use super::super::ifconfig::{Interface, Prefix};
use super::super::program::{HostChange, Step};
use super::super::{nft, pf};
use super::tools::{Tools, freebsd_interface};
use super::{Kind, Observed, Switch, description, netgraph};

/// The file in a switch's directory that lists the addresses which were moved from an uplink to the switch.
const MOVED: &str = "moved";

/// A plan for a switch.
#[derive(Debug, Clone, Default)]
pub struct SwitchSteps {
    /// The steps, in order. There are none when everything is as it should be.
    pub steps: Vec<Step>,
    /// Risks for the network connection of the user's session.
    pub risks: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl SwitchSteps {
    fn run(&mut self, action: &[&str], undo: &[&str]) {
        self.steps.push(Step::undone_by(HostChange::run(action), HostChange::run(undo)));
    }
    fn once(&mut self, action: HostChange) {
        self.steps.push(Step::once(action));
    }
    fn undone_by(&mut self, action: HostChange, undo: HostChange) {
        self.steps.push(Step::undone_by(action, undo));
    }
}

/// Plans the missing parts of a switch. An impossible switch is refused before anything is done.
pub fn create(switch: &Switch, observed: &Observed, runtime: &Path) -> Result<SwitchSteps, HostError> {
    refuse(switch, observed)?;
    let mut plan = SwitchSteps::default();
    match &switch.kind {
        Kind::Manual { .. } | Kind::Netgraph { ours: false, .. } => {}
        Kind::Netgraph { node, .. } => netgraph::make(switch, node, observed, &mut plan)?,
        Kind::Vale => vale(switch, observed, &mut plan),
        Kind::Bridge | Kind::Vxlan { .. } => bridge(switch, observed, runtime, &mut plan)?,
    }
    if switch.nat {
        nat(switch, observed, &mut plan)?;
    }
    if let Some(service) = service(switch, observed.tools, &switch.directory(runtime))
        && !observed.serving.contains(&switch.id)
    {
        plan.steps.extend(service.start());
    }
    Ok(plan)
}

/// Returns the DHCP service of a switch.
pub fn service<'a>(switch: &'a Switch, tools: Tools, directory: &'a Path) -> Option<Service<'a>> {
    Some(Service {
        loopback: if tools == Tools::Linux { "lo" } else { "lo0" },
        switch: &switch.id,
        interface: switch.bridge()?,
        address: switch.served()?,
        range: switch.dhcp.as_ref()?,
        dns: &switch.dns,
        domain: switch.domain.as_deref(),
        directory,
    })
}

/// Refuses an impossible switch, whatever exists already.
fn refuse(switch: &Switch, observed: &Observed) -> Result<(), HostError> {
    let id = &switch.id;
    match &switch.kind {
        Kind::Vxlan { .. } | Kind::Netgraph { .. } | Kind::Vale if observed.tools == Tools::Linux => {
            let kind = switch.kind.word();
            return Err(HostError::user(format!("switch `{id}` is of type `{kind}`, which only FreeBSD has"))
                .hint("on Linux there are the types `bridge` and `manual`"));
        }
        Kind::Manual { bridge } => manual(id, bridge, observed)?,
        Kind::Netgraph { node, ours: false } if observed.node(node).is_none() => {
            return Err(HostError::user(format!("switch `{id}` is the netgraph node `{node}`, and there is none of that name"))
                .hint("leave out `bridge` and vmctl makes one, or make it as /usr/share/examples/netgraph/ether.bridge shows"));
        }
        _ => {}
    }
    uplinks(switch, observed)?;
    if switch.dhcp.is_some() {
        if !observed.dnsmasq {
            let hint = match observed.tools {
                Tools::FreeBsd => "install it with `pkg install dnsmasq` (dns/dnsmasq)",
                Tools::Linux => "install it, on Debian with `apt-get install dnsmasq-base`",
            };
            return Err(HostError::user(format!("switch `{id}` has `dhcp`, and dnsmasq(8) is not installed")).hint(hint));
        }
        let (Some(address), Some(range)) = (switch.served(), &switch.dhcp) else {
            return Err(HostError::user(format!("switch `{id}` has `dhcp` and no IPv4 address of its own"))
                .hint("add one, like `addresses = [\"10.10.0.1/24\"]`"));
        };
        dnsmasq::check(id, address, range)?;
    }
    Ok(())
}

/// Refuses a bridge of the user's that is none.
fn manual(id: &str, bridge: &str, observed: &Observed) -> Result<(), HostError> {
    let Some(interface) = observed.interface(bridge) else {
        let make = observed.tools.bridge_hint(bridge);
        return Err(HostError::user(format!("switch `{id}` is the bridge `{bridge}`, and there is none of that name"))
            .hint(format!("make it with `{make}`, or leave out `type = \"manual\"` and vmctl makes one")));
    };
    if observed.tools == Tools::Linux && interface.kind != "bridge" {
        return Err(HostError::user(format!("switch `{id}` is the bridge `{bridge}`, and this interface is no bridge"))
            .hint("name a bridge, or leave out `type = \"manual\"` and give vmctl the interface with `uplinks`"));
    }
    Ok(())
}

/// Refuses uplinks that are missing, or in use otherwise.
fn uplinks(switch: &Switch, observed: &Observed) -> Result<(), HostError> {
    let (id, ours) = (&switch.id, switch.bridge());
    for uplink in &switch.uplinks {
        let Some(interface) = observed.interface(uplink) else {
            let known: Vec<&str> = observed.interfaces.iter().map(|one| one.name.as_str()).collect();
            return Err(HostError::user(format!("switch `{id}` has the uplink `{uplink}`, and there is no such interface"))
                .hint(format!("there are: {}", known.join(", "))));
        };
        let member = switch.member_of(uplink);
        if let Some(other) = observed.bridge_of(&member).filter(|other| Some(&other.name) != ours.as_ref()) {
            return Err(HostError::user(format!("`{member}` of switch `{id}` is a member of `{}` already", other.name))
                .hint(format!("use that bridge with `type = \"manual\"` and `bridge = \"{}\"`", other.name)));
        }
        if let (Some(tag), Some(child)) = (switch.vlan, observed.interface(&member))
            && child.vlan != Some((tag, uplink.clone()))
        {
            return Err(HostError::user(format!("`{member}` exists and is not VLAN {tag} of `{}`", interface.name)));
        }
    }
    Ok(())
}

fn vale(switch: &Switch, observed: &Observed, plan: &mut SwitchSteps) {
    for uplink in &switch.uplinks {
        let port = format!("{}:{uplink}", switch.vale());
        if observed.vale_ports.contains(&port) {
            continue;
        }
        risk_of_joining(switch, uplink, observed, plan);
        plan.run(&["valectl", "-h", &port], &["valectl", "-d", &port]);
    }
}

fn bridge(switch: &Switch, observed: &Observed, runtime: &Path, plan: &mut SwitchSteps) -> Result<(), HostError> {
    let name = switch.bridge().expect("this kind has one");
    let there = observed.interface(&name);
    if let Some(other) = there.filter(|one| !is_made_for(one, &switch.id)) {
        return Err(HostError::user(format!("`{}` exists and was not made by vmctl", other.name))
            .hint("give the switch another name, or use that bridge with `type = \"manual\"`"));
    }
    let tools = observed.tools;
    match there {
        None => plan.steps.push(tools.make_bridge(&switch.id, &name)),
        Some(one) => {
            plan.steps.extend(one.unfinished.then(|| tools.describe(&switch.id, &name)));
            plan.steps.extend((!one.up).then(|| tools.up(&name)));
        }
    }
    let members = there.map(|one| one.members.as_slice()).unwrap_or_default();
    if observed.members_without_addresses {
        addresses(switch, &name, there, observed, runtime, plan)?;
    }
    if let Kind::Vxlan { vni, .. } = switch.kind {
        vxlan(switch, vni, members, observed, plan)?;
    } else {
        for uplink in &switch.uplinks {
            join(switch, uplink, &name, members, observed, plan)?;
        }
    }
    if let (Some(mtu), true) = (switch.mtu, there.is_none_or(|one| Some(one.mtu) != switch.mtu)) {
        plan.once(tools.mtu(&name, mtu));
    }
    // The uplink keeps the address as long as it can, so that the host is away only for a moment.
    match observed.members_without_addresses {
        true => Ok(()),
        false => addresses(switch, &name, there, observed, runtime, plan),
    }
}

fn join(
    switch: &Switch,
    uplink: &str,
    bridge: &str,
    members: &[String],
    observed: &Observed,
    plan: &mut SwitchSteps,
) -> Result<(), HostError> {
    let member = switch.member_of(uplink);
    if !members.contains(&member) {
        refuse_addressed(switch, &member, observed)?;
    }
    let interface = observed.interface(uplink).expect("refused when it is not there");
    // A bridge accepts only members of its own MTU (if_bridge(4)).
    if let Some(mtu) = switch.mtu.filter(|mtu| *mtu != interface.mtu && !members.contains(&member)) {
        plan.undone_by(observed.tools.mtu(uplink, mtu), observed.tools.mtu(uplink, interface.mtu));
    }
    if !interface.up {
        plan.steps.push(observed.tools.up(uplink));
    }
    vlan_child(switch, uplink, observed, plan);
    if !members.contains(&member) {
        risk_of_joining(switch, &member, observed, plan);
        plan.steps.push(observed.tools.join(bridge, &member));
    }
    Ok(())
}

/// Refuses a member that keeps an address, where bridges refuse those.
fn refuse_addressed(switch: &Switch, member: &str, observed: &Observed) -> Result<(), HostError> {
    let moves = |prefix: &Prefix| switch.vlan.is_none() && switch.addresses.iter().any(|own| own.address == prefix.address);
    let stays = observed.interface(member).and_then(|one| one.addresses.iter().find(|prefix| !moves(prefix)));
    match stays.filter(|_| observed.members_without_addresses) {
        None => Ok(()),
        Some(prefix) if observed.tools == Tools::Linux => Err(HostError::user(format!(
            "`{member}` has the address `{prefix}`, and the host is not reached at an address of a bridge's member"
        ))
        .hint(format!(
            "give it to the switch, which moves it: `addresses = [\"{prefix}\"]` of switch `{}`; where it comes by DHCP, let \
             the DHCP client of this host run on the bridge",
            switch.id
        ))),
        Some(prefix) => Err(HostError::user(format!(
            "`{member}` has the address `{prefix}`, and on this release no member of a bridge may have one"
        ))
        .hint(format!(
            "give it to the switch, which moves it: `addresses = [\"{prefix}\"]` of switch `{}`; or `sysctl \
             net.link.bridge.member_ifaddrs=1`",
            switch.id
        ))),
    }
}

/// Plans the vlan(4) interface on an uplink of a switch in a VLAN.
pub(super) fn vlan_child(switch: &Switch, uplink: &str, observed: &Observed, plan: &mut SwitchSteps) {
    let member = switch.member_of(uplink);
    let Some(tag) = switch.vlan else { return };
    match observed.interface(&member) {
        None => plan.steps.push(observed.tools.make_vlan(&switch.id, &member, uplink, tag)),
        Some(one) => plan.steps.extend(one.unfinished.then(|| observed.tools.describe(&switch.id, &member))),
    }
}

/// Notes the risk of a member that joins: an interface that joins a bridge loses its offloads, for which drivers reset
/// it, so its link is down for a moment. sshd(8) tells the interface of the session, unless a program like sudo(8) has
/// dropped that. Then the interface of the default route is used.
pub(super) fn risk_of_joining(switch: &Switch, member: &str, observed: &Observed, plan: &mut SwitchSteps) {
    let carries = match (observed.session_interface(), observed.session, &observed.default_route) {
        (Some(session), ..) if session.name == member => "carries this session",
        (None, None, Some(route)) if route.interface == member => "has this host's default route",
        _ => return,
    };
    let id = &switch.id;
    plan.risks.push(format!("`{member}` {carries}; its link may be gone for some seconds when it joins switch `{id}`"));
}

fn vxlan(switch: &Switch, vni: u32, members: &[String], observed: &Observed, plan: &mut SwitchSteps) -> Result<(), HostError> {
    let (id, name, bridge) = (&switch.id, switch.vxlan_interface(), switch.bridge().expect("this kind has one"));
    let [uplink] = switch.uplinks.as_slice() else {
        return Err(HostError::user(format!("switch `{id}` is a vxlan and has {} uplinks", switch.uplinks.len()))
            .hint("name the one interface that leads to the other hosts"));
    };
    let group = switch.vxlan_group().expect("this kind has one");
    let local = observed
        .interface(uplink)
        .and_then(|one| one.addresses.iter().find(|prefix| prefix.address.is_ipv4() == group.is_ipv4()));
    let Some(local) = local else {
        return Err(HostError::user(format!(
            "switch `{id}` is a vxlan, and its uplink `{uplink}` has no address of the family of `{group}`"
        ))
        .hint(format!("give it one with `ifconfig {uplink} inet ADDRESS/PREFIX`")));
    };
    if observed.interface(&name).is_none() {
        let (vni, local, group) = (vni.to_string(), local.address.to_string(), group.to_string());
        let create = ["vxlan", "create", "vxlanid", &vni, "vxlanlocal", &local, "vxlangroup", &group, "vxlandev", uplink];
        plan.undone_by(freebsd_interface(&create, id, &name), observed.tools.destroy(&name));
    }
    if !members.contains(&name) {
        plan.steps.push(observed.tools.join(&bridge, &name));
    }
    Ok(())
}

fn addresses(
    switch: &Switch,
    name: &str,
    there: Option<&Interface>,
    observed: &Observed,
    runtime: &Path,
    plan: &mut SwitchSteps,
) -> Result<(), HostError> {
    for prefix in &switch.addresses {
        if there.is_some_and(|one| one.addresses.contains(prefix)) {
            continue;
        }
        let holder = observed
            .interfaces
            .iter()
            .find(|one| one.name != name && one.addresses.iter().any(|other| other.address == prefix.address));
        match holder {
            None => {
                let tools = observed.tools;
                plan.undone_by(tools.add_address(name, *prefix), tools.remove_address(name, *prefix));
            }
            Some(holder) if switch.uplinks.contains(&holder.name) && switch.vlan.is_none() => {
                move_address(switch, prefix, holder, name, observed, runtime, plan);
            }
            Some(holder) => {
                return Err(HostError::user(format!(
                    "address `{}` of switch `{}` is on `{}` already",
                    prefix.address, switch.id, holder.name
                ))
                .hint("choose another, or take it off that interface first"));
            }
        }
    }
    Ok(())
}

/// Moves the host's address from the uplink to the bridge, as in the handbook. A default route through the address is
/// moved too.
fn move_address(
    switch: &Switch,
    prefix: &Prefix,
    holder: &Interface,
    name: &str,
    observed: &Observed,
    runtime: &Path,
    plan: &mut SwitchSteps,
) {
    let own = holder.addresses.iter().find(|other| other.address == prefix.address).copied().unwrap_or(*prefix);
    let gateway = observed
        .default_route
        .as_ref()
        .filter(|route| route.interface == holder.name)
        .and_then(|route| route.gateway)
        .filter(|gateway| prefix.contains(*gateway));
    if observed.session == Some(prefix.address) {
        plan.risks
            .push(format!("this session is connected to `{}`, which moves from `{}` to `{name}`", prefix.address, holder.name));
    } else {
        plan.notes.push(format!("`{}` moves from `{}` to `{name}`", prefix.address, holder.name));
    }
    let record = switch.directory(runtime).join(MOVED);
    let gone = gateway.map(|gateway| format!(" {gateway}")).unwrap_or_default();
    plan.steps.push(Step::undone_by(
        HostChange::Write { path: record.clone(), text: format!("{} {own}{gone}\n", holder.name) },
        HostChange::Remove { path: record },
    ));
    steps_of_a_move((&holder.name, own), (name, *prefix), gateway, observed.tools, plan);
}

/// Moves an address from one interface to another, which may know it with another length of the network.
fn steps_of_a_move(
    (from, own): (&str, Prefix),
    (to, prefix): (&str, Prefix),
    gateway: Option<IpAddr>,
    tools: Tools,
    plan: &mut SwitchSteps,
) {
    if let Some(gateway) = gateway {
        plan.undone_by(tools.default_route(gateway, false), tools.default_route(gateway, true));
    }
    plan.undone_by(tools.remove_address(from, own), tools.add_address(from, own));
    plan.undone_by(tools.add_address(to, prefix), tools.remove_address(to, prefix));
    if let Some(gateway) = gateway {
        plan.undone_by(tools.default_route(gateway, true), tools.default_route(gateway, false));
    }
}

fn nat(switch: &Switch, observed: &Observed, plan: &mut SwitchSteps) -> Result<(), HostError> {
    let id = &switch.id;
    let networks = switch.networks();
    let Some(bridge) = switch.bridge() else {
        return Err(HostError::user(format!("switch `{id}` is of type `{}`, and `nat` needs a bridge", switch.kind.word())));
    };
    if networks.is_empty() {
        return Err(HostError::user(format!("switch `{id}` has `nat` and no IPv4 address of its own"))
            .hint("add one, like `addresses = [\"10.10.0.1/24\"]`"));
    }
    let Some(egress) = switch.egress_in(observed) else {
        return Err(HostError::user(format!("switch `{id}` has `nat`, and this host has no default route"))
            .hint("name the interface with `egress`"));
    };
    if observed.interface(&egress).is_none() {
        return Err(HostError::user(format!("switch `{id}` has the egress `{egress}`, and there is no such interface")));
    }
    if !observed.loaded.contains(id) && observed.tools == Tools::Linux {
        if let Some(error) = &observed.nft {
            return Err(error.clone());
        }
        if observed.foreign_tables.contains(id) {
            let table = nft::table(id);
            return Err(HostError::user(format!("the nftables table `{table}` exists and was not made by vmctl"))
                .hint("give the switch another name, or remove that table if nobody needs it: `nft list table ip` shows it"));
        }
        for chain in &observed.dropping {
            plan.notes.push(format!(
                "the nftables chain `{chain}` drops what it does not accept: it decides whether guests reach the outside"
            ));
        }
        plan.steps.push(nft::load(id, &networks, &egress));
    } else if !observed.loaded.contains(id) {
        let pf = observed.pf.clone().unwrap_or_else(|| Err(HostError::user("pf(4) was not asked")))?;
        pf::check(&pf, id)?;
        if pf.blocks && !pf.filter_anchor {
            let line = pf::FILTER_LINE;
            plan.notes
                .push(format!("pf's rules block traffic and do not have `{line}`: they decide whether guests reach the outside"));
        }
        plan.steps.push(pf::load(id, &pf::nat_rules(&bridge, &networks, &egress)));
    }
    if !observed.forwarding {
        plan.steps.push(observed.tools.forward());
        plan.notes.push(observed.tools.forwarding_note().into());
    }
    Ok(())
}

/// Returns whether vmctl made an interface for the switch of this name.
pub(super) fn is_made_for(interface: &Interface, switch: &str) -> bool {
    interface.description == description(switch) || interface.unfinished
}

/// Plans taking a switch down. Guests on it prevent that unless `force`.
pub fn destroy(switch: &Switch, observed: &Observed, runtime: &Path, force: bool) -> Result<SwitchSteps, HostError> {
    let mut plan = SwitchSteps::default();
    let directory = switch.directory(runtime);
    let ours = |name: &str| observed.interface(name).filter(|one| is_made_for(one, &switch.id));
    let made: Vec<String> = switch.uplinks.iter().map(|uplink| switch.member_of(uplink)).collect();
    if switch.own_node().is_some() || switch.bridge().is_some_and(|name| ours(&name).is_some()) {
        let guests = switch.ports(observed);
        if !guests.is_empty() && !force {
            return Err(HostError::user(format!("switch `{}` is in use by {}", switch.id, guests.join(", ")))
                .hint("stop the guests on it, or use `--force` and they lose their network"));
        }
    }
    if let Some(node) = switch.own_node() {
        netgraph::unmake(switch, node, observed, &mut plan);
    }
    plan.steps.extend(dnsmasq::stop(&directory));
    // A table may be left of a switch that has no NAT any more.
    if observed.tools == Tools::Linux || (switch.nat && observed.loaded.contains(&switch.id)) {
        plan.steps.extend(observed.flush(&switch.id).map(Step::once));
    }
    move_back(switch, observed, &directory, &mut plan);
    if let Some(bridge) = switch.bridge().and_then(|name| ours(&name)) {
        plan.once(observed.tools.destroy(&bridge.name));
    }
    if let Some(vxlan) = ours(&switch.vxlan_interface()) {
        plan.once(observed.tools.destroy(&vxlan.name));
    }
    if switch.vlan.is_some() {
        for child in made.iter().filter_map(|name| ours(name)) {
            plan.once(observed.tools.destroy(&child.name));
        }
    }
    if switch.kind == Kind::Vale {
        for uplink in &switch.uplinks {
            let port = format!("{}:{uplink}", switch.vale());
            if observed.vale_ports.contains(&port) {
                plan.once(HostChange::run(&["valectl", "-d", &port]));
            }
        }
    }
    Ok(plan)
}

/// Moves an address back to the uplink from which it was moved.
fn move_back(switch: &Switch, observed: &Observed, directory: &Path, plan: &mut SwitchSteps) {
    let record = directory.join(MOVED);
    let Ok(text) = std::fs::read_to_string(&record) else { return };
    let Some(name) = switch.bridge().filter(|name| observed.interface(name).is_some()) else {
        plan.steps.push(Step::once(HostChange::Remove { path: record }));
        return;
    };
    let mut members = observed.interface(&name).map(|one| one.members.clone()).unwrap_or_default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(to), Some(prefix)) = (words.next(), words.next().and_then(|word| word.parse::<Prefix>().ok())) else {
            continue;
        };
        let gateway = words.next().and_then(|word| word.parse().ok());
        if observed.session == Some(prefix.address) {
            plan.risks.push(format!("this session is connected to `{}`, which moves from `{name}` to `{to}`", prefix.address));
        }
        if let (true, Some(at)) = (observed.members_without_addresses, members.iter().position(|member| member == to)) {
            members.remove(at);
            plan.steps.push(observed.tools.leave(&name, to));
        }
        steps_of_a_move((&name, prefix), (to, prefix), gateway, observed.tools, plan);
    }
    plan.steps.push(Step::once(HostChange::Remove { path: record }));
}

#[cfg(test)]
mod tests {
    use super::super::tests::plain;
    use super::*;
    use crate::host::dnsmasq::Range;
    use crate::host::pf::Pf;
    use crate::host::route::DefaultRoute;
    use std::time::Duration;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface {
            name: name.into(),
            up: true,
            mtu: 1500,
            addresses: addresses.iter().map(|text| text.parse().expect("a prefix")).collect(),
            ..Interface::default()
        }
    }

    fn host() -> Observed {
        Observed {
            interfaces: vec![interface("em0", &["192.0.2.5/24"]), interface("em1", &[]), interface("lo0", &["127.0.0.1/8"])],
            default_route: Some(DefaultRoute { interface: "em0".into(), gateway: "192.0.2.1".parse().ok() }),
            pf: Some(Ok(Pf { enabled: true, nat_anchor: true, filter_anchor: true, blocks: false })),
            dnsmasq: true,
            ..Observed::default()
        }
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.action.to_string()).collect()
    }

    fn planned(switch: &Switch, observed: &Observed) -> SwitchSteps {
        create(switch, observed, Path::new("/run")).expect("can be")
    }

    #[test]
    fn a_bridge_is_made_and_its_uplink_joins() {
        let switch = Switch { uplinks: vec!["em1".into()], mtu: Some(9000), ..plain("lan") };
        assert_eq!(
            lines(&planned(&switch, &host()).steps),
            [
                "ifconfig bridge create description 'vmctl switch lan' group vmctl up name sw-lan",
                "ifconfig em1 mtu 9000",
                "ifconfig sw-lan addm em1",
                "ifconfig sw-lan mtu 9000",
            ]
        );
    }

    #[test]
    fn nothing_is_left_to_do_for_a_switch_that_is_there() {
        let mut observed = host();
        observed.interfaces.push(Interface {
            description: description("lan"),
            members: vec!["em1".into(), "tap0".into()],
            ..interface("sw-lan", &["10.10.0.1/24"])
        });
        let switch =
            Switch { uplinks: vec!["em1".into()], addresses: vec!["10.10.0.1/24".parse().expect("a prefix")], ..plain("lan") };
        assert!(planned(&switch, &observed).steps.is_empty());
    }

    #[test]
    fn a_vlan_has_a_child_on_each_uplink() {
        let switch = Switch { uplinks: vec!["em1".into()], vlan: Some(10), ..plain("lan") };
        let plan = planned(&switch, &host());
        assert_eq!(
            lines(&plan.steps)[1..],
            [
                "ifconfig vlan create vlandev em1 vlan 10 description 'vmctl switch lan' group vmctl up name em1.10",
                "ifconfig sw-lan addm em1.10",
            ]
        );
        assert_eq!(plan.steps[1].undo.as_ref().expect("a way back").to_string(), "ifconfig em1.10 destroy");
    }

    #[test]
    fn where_no_member_may_have_an_address_it_moves_before_the_uplink_joins_and_back_after_it_has_left() {
        let observed = Observed { members_without_addresses: true, ..host() };
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a prefix")).collect();
        let switch = Switch { uplinks: vec!["em0".into()], addresses: prefixes(&["192.0.2.5/24"]), ..plain("lan") };
        assert_eq!(
            lines(&planned(&switch, &observed).steps)[2..],
            [
                "route -n delete default",
                "ifconfig em0 inet 192.0.2.5 -alias",
                "ifconfig sw-lan inet 192.0.2.5/24 alias",
                "route -n add default 192.0.2.1",
                "ifconfig sw-lan addm em0",
            ]
        );
        // Nothing else of the host's may stay on the uplink, nor on the VLAN's interface on it.
        for (switch, holder, address) in [
            (Switch { addresses: prefixes(&["10.0.0.1/24"]), ..switch.clone() }, "em0", "192.0.2.5/24"),
            (Switch { uplinks: vec!["em1".into()], vlan: Some(7), ..plain("lan") }, "em1.7", "198.51.100.2/24"),
        ] {
            let mut observed = observed.clone();
            let vlan = Some((7, "em1".to_owned()));
            observed.interfaces.push(Interface { vlan, ..interface("em1.7", &["198.51.100.2/24"]) });
            let error = create(&switch, &observed, Path::new("/run")).expect_err("refused");
            assert!(error.to_string().contains(&format!("`{holder}` has the address `{address}`")), "{error}");
            observed.members_without_addresses = false;
            assert!(create(&switch, &observed, Path::new("/run")).is_ok());
        }
        let runtime = tempfile::tempdir().expect("a directory");
        let directory = switch.directory(runtime.path());
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::write(directory.join(MOVED), "em0 192.0.2.5/24 192.0.2.1\nem0 2001:db8::5/64\n").expect("writes");
        let bridge = Interface { description: description("lan"), members: vec!["em0".into()], ..interface("sw-lan", &[]) };
        let observed = Observed { interfaces: vec![interface("em0", &[]), bridge], ..observed };
        let plan = destroy(&switch, &observed, runtime.path(), false).expect("can be");
        let said = lines(&plan.steps);
        assert_eq!(said[..2], ["ifconfig sw-lan deletem em0", "route -n delete default"]);
        assert_eq!(said.iter().filter(|line| line.contains("deletem")).count(), 1);
    }

    #[test]
    fn the_hosts_address_moves_with_its_default_route_and_the_session_is_warned() {
        let observed = Observed { session: "192.0.2.5".parse().ok(), ..host() };
        let switch =
            Switch { uplinks: vec!["em0".into()], addresses: vec!["192.0.2.5/24".parse().expect("a prefix")], ..plain("lan") };
        let plan = planned(&switch, &observed);
        assert_eq!(
            lines(&plan.steps)[1..],
            [
                "ifconfig sw-lan addm em0",
                "write /run/switches/lan/moved\n  | em0 192.0.2.5/24 192.0.2.1",
                "route -n delete default",
                "ifconfig em0 inet 192.0.2.5 -alias",
                "ifconfig sw-lan inet 192.0.2.5/24 alias",
                "route -n add default 192.0.2.1",
            ]
        );
        assert_eq!(plan.risks.len(), 2, "{:?}", plan.risks);
        assert!(plan.risks[1].contains("moves from `em0` to `sw-lan`"));
    }

    #[test]
    fn without_a_known_session_the_default_routes_interface_is_warned_about() {
        let switch = |uplink: &str| Switch { uplinks: vec![uplink.into()], ..plain("lan") };
        let risks = |uplink: &str, observed: &Observed| planned(&switch(uplink), observed).risks.len();
        assert_eq!((risks("em0", &host()), risks("em1", &host())), (1, 0));
        let elsewhere = Observed { session: "127.0.0.1".parse().ok(), ..host() };
        assert_eq!(risks("em0", &elsewhere), 0);
    }

    #[test]
    fn nat_and_dhcp_come_last_and_forwarding_is_turned_on() {
        let switch = Switch {
            addresses: vec!["10.10.0.1/24".parse().expect("a prefix")],
            nat: true,
            dhcp: Some(Range {
                first: "10.10.0.100".parse().expect("an address"),
                last: "10.10.0.199".parse().expect("an address"),
                lease: Duration::from_secs(60),
            }),
            ..plain("lan")
        };
        let plan = planned(&switch, &host());
        let all = lines(&plan.steps);
        assert_eq!(all[1], "ifconfig sw-lan inet 10.10.0.1/24 alias");
        assert!(all[2].starts_with("pfctl -a vmctl/lan -f -\n  | nat on em0 inet from 10.10.0.0/24"), "{}", all[2]);
        assert_eq!(all[3], "sysctl net.inet.ip.forwarding=1");
        assert!(all[4].starts_with("write /run/switches/lan/dnsmasq.conf"));
        assert_eq!(all[5], "dnsmasq --conf-file=/run/switches/lan/dnsmasq.conf");
    }

    #[test]
    fn a_vxlan_needs_one_uplink_with_an_address() {
        let switch = Switch { kind: Kind::Vxlan { vni: 42, group: None }, uplinks: vec!["em0".into()], ..plain("x") };
        let all = lines(&planned(&switch, &host()).steps);
        assert_eq!(
            all[1],
            "ifconfig vxlan create vxlanid 42 vxlanlocal 192.0.2.5 vxlangroup 239.0.0.42 vxlandev em0 description 'vmctl switch x' group vmctl up name vx-x"
        );
        assert_eq!(all[2], "ifconfig sw-x addm vx-x");
        let bare = Switch { uplinks: vec!["em1".into()], ..switch };
        assert!(create(&bare, &host(), Path::new("/run")).expect_err("refused").to_string().contains("no address"));
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_done() {
        let mut observed = host();
        observed.interfaces.push(Interface { members: vec!["em1".into()], ..interface("bridge0", &[]) });
        observed.interfaces.push(interface("sw-taken", &[]));
        observed.dnsmasq = false;
        let address = || vec!["10.10.0.1/24".parse().expect("a prefix")];
        let range = Range { first: [10, 10, 0, 9].into(), last: [10, 10, 0, 20].into(), lease: Duration::from_secs(60) };
        for (switch, words) in [
            (Switch { uplinks: vec!["igb7".into()], ..plain("a") }, "no such interface"),
            (Switch { uplinks: vec!["em1".into()], ..plain("a") }, "member of `bridge0` already"),
            (Switch { kind: Kind::Manual { bridge: "bridge9".into() }, ..plain("a") }, "none of that name"),
            (Switch { kind: Kind::Netgraph { node: "bnet0".into(), ours: false }, ..plain("a") }, "none of that name"),
            (plain("taken"), "not made by vmctl"),
            (Switch { addresses: vec!["127.0.0.1/8".parse().expect("a prefix")], ..plain("a") }, "is on `lo0` already"),
            (Switch { nat: true, ..plain("a") }, "no IPv4 address"),
            (Switch { nat: true, kind: Kind::Vale, ..plain("a") }, "needs a bridge"),
            (Switch { nat: true, egress: Some("ix0".into()), addresses: address(), ..plain("a") }, "egress `ix0`"),
            (Switch { dhcp: Some(range), addresses: address(), ..plain("a") }, "dnsmasq(8) is not installed"),
        ] {
            let error = create(&switch, &observed, Path::new("/run")).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_switch_in_use_stays_and_only_what_vmctl_made_goes() {
        let mut observed = host();
        let mine = |name: &str, members: &[&str]| Interface {
            description: description("lan"),
            members: members.iter().map(|name| (*name).to_owned()).collect(),
            ..interface(name, &[])
        };
        observed.interfaces.push(mine("sw-lan", &["em1.10", "tap4"]));
        observed.interfaces.push(mine("em1.10", &[]));
        let switch = Switch { uplinks: vec!["em1".into()], vlan: Some(10), ..plain("lan") };
        let error = destroy(&switch, &observed, Path::new("/run"), false).expect_err("in use");
        assert_eq!(error.to_string(), "switch `lan` is in use by tap4");
        let plan = destroy(&switch, &observed, Path::new("/run"), true).expect("forced");
        assert_eq!(lines(&plan.steps), ["ifconfig sw-lan destroy", "ifconfig em1.10 destroy"]);
        let manual = Switch { kind: Kind::Manual { bridge: "em1".into() }, ..plain("lan") };
        assert!(destroy(&manual, &observed, Path::new("/run"), false).expect("nothing to do").steps.is_empty());
    }

    #[test]
    fn an_address_that_was_moved_goes_back() {
        let runtime = tempfile::tempdir().expect("a directory");
        let mut observed = host();
        observed.interfaces.push(Interface { description: description("lan"), ..interface("sw-lan", &["192.0.2.5/24"]) });
        let switch = Switch { uplinks: vec!["em0".into()], ..plain("lan") };
        let directory = switch.directory(runtime.path());
        std::fs::create_dir_all(&directory).expect("makes");
        std::fs::write(directory.join(MOVED), "em0 192.0.2.5/24 192.0.2.1\n").expect("writes");
        let plan = destroy(&switch, &observed, runtime.path(), false).expect("can be");
        assert_eq!(
            lines(&plan.steps)[..4],
            [
                "route -n delete default",
                "ifconfig sw-lan inet 192.0.2.5 -alias",
                "ifconfig em0 inet 192.0.2.5/24 alias",
                "route -n add default 192.0.2.1",
            ]
        );
        assert_eq!(lines(&plan.steps)[5], "ifconfig sw-lan destroy");
    }
}
