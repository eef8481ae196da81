//! Removal of the parts of a switch before it becomes another one. Guests stay on it where possible.

use std::path::Path;

use super::super::dnsmasq;
use super::super::error::HostError;
use super::super::program::{HostChange, Step};
use super::steps::{SwitchSteps, destroy, is_made_for};
use super::{Kind, Observed, Switch, netgraph};

/// Default MTU of Ethernet interfaces.
const DEFAULT_MTU: u32 = 1500;

/// Returns the steps that remove what `old` has and `new` does not. [`create`](super::steps::create) then finds what is
/// missing of `new`. A switch of another kind, or in another VLAN, is taken down completely, which is refused while
/// guests are on it.
pub fn leave(old: &Switch, new: &Switch, observed: &Observed, runtime: &Path) -> Result<SwitchSteps, HostError> {
    if old.kind != new.kind || old.vlan != new.vlan || (matches!(old.kind, Kind::Vxlan { .. }) && old.uplinks != new.uplinks) {
        return destroy(old, observed, runtime, false);
    }
    let mut plan = SwitchSteps::default();
    if old.dhcp.is_some() && new.dhcp.is_none() {
        plan.steps.extend(dnsmasq::stop(&old.directory(runtime)));
    }
    let nat = |switch: &Switch| switch.nat.then(|| (switch.networks(), switch.egress_in(observed)));
    if old.nat && nat(old) != nat(new) {
        plan.steps.extend(observed.flush(&old.id).map(Step::once));
    }
    for uplink in old.uplinks.iter().filter(|uplink| !new.uplinks.contains(uplink)) {
        uplink_goes(old, uplink, observed, &mut plan);
    }
    let Some(bridge) = old.bridge().and_then(|name| observed.interface(&name)) else { return Ok(plan) };
    if old.private != new.private {
        let uplinks: Vec<String> = new.uplinks.iter().map(|uplink| new.member_of(uplink)).collect();
        for port in old.ports(observed).iter().filter(|port| !uplinks.contains(port)) {
            plan.steps.push(Step::once(observed.tools.private(&bridge.name, port, new.private)));
        }
    }
    if !is_made_for(bridge, &old.id) {
        return Ok(plan);
    }
    for prefix in old.addresses.iter().filter(|prefix| !new.addresses.contains(prefix) && bridge.addresses.contains(prefix)) {
        if observed.session == Some(prefix.address) {
            plan.risks
                .push(format!("this session is connected to `{}`, which is removed from `{}`", prefix.address, bridge.name));
        }
        let tools = observed.tools;
        plan.steps.push(Step::undone_by(tools.remove_address(&bridge.name, *prefix), tools.add_address(&bridge.name, *prefix)));
    }
    if old.mtu.is_some() && new.mtu.is_none() && bridge.mtu != DEFAULT_MTU {
        let tools = observed.tools;
        plan.steps.push(Step::undone_by(tools.mtu(&bridge.name, DEFAULT_MTU), tools.mtu(&bridge.name, bridge.mtu)));
    }
    Ok(plan)
}

/// Removes an interface of the host from the switch, and the VLAN interface that was made on it.
fn uplink_goes(switch: &Switch, uplink: &str, observed: &Observed, plan: &mut SwitchSteps) {
    let member = switch.member_of(uplink);
    if observed.session_interface().is_some_and(|session| session.name == member || session.name == uplink) {
        plan.risks.push(format!("`{uplink}` carries this session, and leaves switch `{}`", switch.id));
    }
    if let Some(node) = switch.own_node() {
        netgraph::uplink_goes(switch, node, uplink, observed, plan);
    }
    if switch.kind == Kind::Vale {
        let port = format!("{}:{uplink}", switch.vale());
        if observed.vale_ports.contains(&port) {
            let (leave, join) = (["valectl", "-d", port.as_str()], ["valectl", "-h", port.as_str()]);
            plan.steps.push(Step::undone_by(HostChange::run(&leave), HostChange::run(&join)));
        }
        return;
    }
    if let Some(bridge) = switch.bridge().and_then(|name| observed.interface(&name))
        && bridge.members.contains(&member)
    {
        plan.steps.push(observed.tools.leave(&bridge.name, &member));
    }
    let made = observed.interface(&member).is_some_and(|one| is_made_for(one, &switch.id));
    if switch.vlan.is_some() && made {
        plan.steps.push(Step::once(observed.tools.destroy(&member)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::ifconfig::Interface;
    use super::super::description;
    use super::super::tests::plain;
    use super::*;

    fn interface(name: &str, members: &[&str], addresses: &[&str]) -> Interface {
        Interface {
            name: name.into(),
            up: true,
            mtu: 1500,
            description: if name.starts_with("em") && !name.contains('.') { String::new() } else { description("lan") },
            members: members.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|text| text.parse().expect("a prefix")).collect(),
            ..Interface::default()
        }
    }

    fn lines(old: &Switch, new: &Switch, observed: &Observed) -> Vec<String> {
        let plan = leave(old, new, observed, Path::new("/run")).expect("can be");
        plan.steps.iter().map(|step| step.action.to_string()).collect()
    }

    fn prefixes(texts: &[&str]) -> Vec<super::super::Prefix> {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    #[test]
    fn what_a_switch_does_not_have_any_more_goes_and_guests_stay() {
        let observed = Observed {
            interfaces: vec![
                interface("em0", &[], &[]),
                interface("em1", &[], &[]),
                interface("em1.7", &[], &[]),
                interface("em0.7", &[], &[]),
                Interface { mtu: 9000, ..interface("sw-lan", &["em0.7", "em1.7", "tap3"], &["10.0.0.1/24", "10.0.1.1/24"]) },
            ],
            ..Observed::default()
        };
        let old = Switch {
            uplinks: vec!["em0".into(), "em1".into()],
            vlan: Some(7),
            addresses: prefixes(&["10.0.0.1/24", "10.0.1.1/24"]),
            mtu: Some(9000),
            nat: true,
            egress: Some("em0".into()),
            ..plain("lan")
        };
        assert!(lines(&old, &old, &observed).is_empty());
        let new = Switch {
            uplinks: vec!["em0".into()],
            addresses: prefixes(&["10.0.0.1/24"]),
            mtu: None,
            private: true,
            nat: false,
            ..old.clone()
        };
        assert_eq!(
            lines(&old, &new, &observed),
            [
                "pfctl -a vmctl/lan -F all",
                "ifconfig sw-lan deletem em1.7",
                "ifconfig em1.7 destroy",
                "ifconfig sw-lan private tap3",
                "ifconfig sw-lan inet 10.0.1.1 -alias",
                "ifconfig sw-lan mtu 1500",
            ]
        );
        assert_eq!(lines(&new, &old, &observed), ["ifconfig sw-lan -private tap3"]);
    }

    #[test]
    fn a_switch_in_another_vlan_is_made_anew_unless_guests_are_on_it() {
        let with = |members: &[&str]| Observed {
            interfaces: vec![interface("em1", &[], &[]), interface("em1.7", &[], &[]), interface("sw-lan", members, &[])],
            ..Observed::default()
        };
        let old = Switch { uplinks: vec!["em1".into()], vlan: Some(7), ..plain("lan") };
        let new = Switch { vlan: Some(8), ..old.clone() };
        assert_eq!(lines(&old, &new, &with(&["em1.7"])), ["ifconfig sw-lan destroy", "ifconfig em1.7 destroy"]);
        let error = leave(&old, &new, &with(&["em1.7", "tap3"]), Path::new("/run")).expect_err("in use");
        assert_eq!(error.to_string(), "switch `lan` is in use by tap3");
    }

    #[test]
    fn a_session_that_would_be_cut_is_a_risk() {
        let mut observed = Observed {
            interfaces: vec![interface("em1", &[], &["192.0.2.5/24"]), interface("sw-lan", &["em1"], &["192.0.2.9/24"])],
            session: "192.0.2.9".parse().ok(),
            ..Observed::default()
        };
        let old = Switch { uplinks: vec!["em1".into()], addresses: prefixes(&["192.0.2.9/24"]), ..plain("lan") };
        let risks = |observed: &Observed| {
            let plan = leave(&old, &plain("lan"), observed, Path::new("/run")).expect("can be");
            plan.risks
        };
        assert_eq!(risks(&observed), ["this session is connected to `192.0.2.9`, which is removed from `sw-lan`"]);
        observed.session = "192.0.2.5".parse().ok();
        assert_eq!(risks(&observed), ["`em1` carries this session, and leaves switch `lan`"]);
    }

    #[test]
    fn an_uplink_leaves_a_vale_switch_as_a_port() {
        let observed = Observed { vale_ports: vec!["vale-lan:em1".into()], ..Observed::default() };
        let old = Switch { kind: Kind::Vale, uplinks: vec!["em1".into(), "em2".into()], ..plain("lan") };
        assert_eq!(lines(&old, &Switch { uplinks: Vec::new(), ..old.clone() }, &observed), ["valectl -d vale-lan:em1"]);
    }
}
