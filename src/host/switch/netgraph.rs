//! Switches that are ng_bridge(4) nodes of vmctl.
//!
//! The node is persistent, so that it stays while nothing is connected. Both hooks of an uplink's ng_ether(4) node are
//! connected: `lower` to the wire and `upper` to the host, which is then a port of the switch like a guest. As in
//! `share/examples/netgraph/ether.bridge`, the uplink becomes promiscuous and leaves source addresses alone. Commands
//! that belong together are one run of ngctl(8), so that no part of them is left when vmctl is killed.

use super::super::error::HostError;
use super::super::netgraph::{NetgraphNode, ether_node};
use super::super::program::{HostChange, Step};
use super::steps::{SwitchSteps, risk_of_joining, vlan_child};
use super::{Observed, Switch};

/// Plans what is missing of the switch whose node has this name.
pub fn make(switch: &Switch, node: &str, observed: &Observed, plan: &mut SwitchSteps) -> Result<(), HostError> {
    let there = observed.node(node);
    if let Some(other) = there.filter(|other| other.kind != "bridge") {
        return Err(HostError::user(format!("the netgraph node `{node}` of switch `{}` exists and is not a bridge", switch.id))
            .hint(format!("its type is `{}`: give the switch another name", other.kind)));
    }
    if there.is_none() {
        // The socket's end of the hook disappears with ngctl.
        let make = format!("mkpeer . bridge vmctl link0\nname .:vmctl {node}\nmsg {node}: setpersistent\n");
        plan.steps.push(Step::undone_by(ngctl(make), shutdown(node)));
    }
    let hooks = there.map(|node| node.hooks.as_slice()).unwrap_or_default();
    let mut free = (0u32..).map(|number| format!("link{number}")).filter(|name| !hooks.iter().any(|hook| hook.name == *name));
    let mut link = || free.next().expect("there is always a higher number");
    for uplink in &switch.uplinks {
        let member = switch.member_of(uplink);
        let ether = ether_node(&member);
        let missing: Vec<&str> = ["lower", "upper"].into_iter().filter(|end| !is_connected(there, &ether, end)).collect();
        if missing.is_empty() {
            continue;
        }
        vlan_child(switch, uplink, observed, plan);
        risk_of_joining(switch, &member, observed, plan);
        plan.steps.push(Step::once(HostChange::run(&["kldload", "-n", "ng_ether"])));
        let mut join: String = missing.iter().map(|end| format!("connect {ether}: {node}: {end} {}\n", link())).collect();
        join += &format!("msg {ether}: setpromisc 1\nmsg {ether}: setautosrc 0\n");
        plan.steps.push(Step::undone_by(ngctl(join), leave(&ether, &missing)));
    }
    Ok(())
}

/// Plans taking it down. The caller has checked that no guests are connected.
pub fn unmake(switch: &Switch, node: &str, observed: &Observed, plan: &mut SwitchSteps) {
    let Some(there) = observed.node(node) else { return };
    for uplink in &switch.uplinks {
        uplink_goes(switch, node, uplink, observed, plan);
    }
    plan.steps.push(Step::once(shutdown(&there.name)));
}

/// Removes an interface of the host.
pub fn uplink_goes(switch: &Switch, node: &str, uplink: &str, observed: &Observed, plan: &mut SwitchSteps) {
    let ether = ether_node(&switch.member_of(uplink));
    let there = observed.node(node);
    let ends: Vec<&str> = ["lower", "upper"].into_iter().filter(|end| is_connected(there, &ether, end)).collect();
    if !ends.is_empty() {
        plan.steps.push(Step::once(leave(&ether, &ends)));
    }
}

/// Returns the guests on it: connected nodes that are not uplinks.
pub fn guests(switch: &Switch, node: &str, observed: &Observed) -> Vec<String> {
    let uplinks: Vec<String> = switch.uplinks.iter().map(|uplink| ether_node(&switch.member_of(uplink))).collect();
    let hooks = observed.node(node).map(|node| node.hooks.as_slice()).unwrap_or_default();
    hooks.iter().filter(|hook| !uplinks.contains(&hook.peer)).map(|hook| format!("{}:{}", hook.peer, hook.peer_hook)).collect()
}

fn is_connected(node: Option<&NetgraphNode>, ether: &str, end: &str) -> bool {
    node.is_some_and(|node| node.hooks.iter().any(|hook| hook.peer == ether && hook.peer_hook == end))
}

/// Returns the action that disconnects an uplink. An ng_ether(4) node without hooks is shut down and made again
/// (`sys/netgraph/ng_ether.c`, ng_ether_disconnect), and for a moment there is none of its name. So its settings are
/// changed before its hooks are removed.
fn leave(ether: &str, ends: &[&str]) -> HostChange {
    let mut lines = format!("msg {ether}: setpromisc 0\nmsg {ether}: setautosrc 1\n");
    lines.extend(ends.iter().map(|end| format!("rmhook {ether}: {end}\n")));
    ngctl(lines)
}

/// Creates an action of ngctl(8) with one command per line. ngctl ends at the first that fails.
fn ngctl(input: String) -> HostChange {
    HostChange::Run { words: ["ngctl", "-f", "-"].map(str::to_owned).to_vec(), input }
}

fn shutdown(node: &str) -> HostChange {
    HostChange::run(&["ngctl", "shutdown", &format!("{node}:")])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::ifconfig::Interface;
    use super::super::super::netgraph::Hook;
    use super::super::tests::plain;
    use super::super::{Kind, change, steps};
    use super::*;

    fn switch(uplinks: &[&str]) -> Switch {
        let uplinks = uplinks.iter().map(|name| (*name).to_owned()).collect();
        Switch { kind: Kind::Netgraph { node: "vmctl-lan".into(), ours: true }, uplinks, ..plain("lan") }
    }

    fn hook(name: &str, peer: &str, peer_hook: &str) -> Hook {
        Hook { name: name.into(), peer: peer.into(), peer_hook: peer_hook.into() }
    }

    fn observed(hooks: Option<Vec<Hook>>) -> Observed {
        let interface = |name: &str| Interface { name: name.into(), up: true, mtu: 1500, ..Interface::default() };
        let nodes = hooks.map(|hooks| NetgraphNode { name: "vmctl-lan".into(), kind: "bridge".into(), hooks });
        Observed {
            interfaces: vec![interface("em0"), interface("em1")],
            nodes: nodes.into_iter().collect(),
            ..Observed::default()
        }
    }

    fn lines(plan: Result<SwitchSteps, HostError>) -> Vec<String> {
        plan.expect("can be").steps.iter().map(|step| step.action.to_string()).collect()
    }

    fn created(switch: &Switch, observed: &Observed) -> Vec<String> {
        lines(steps::create(switch, observed, Path::new("/run")))
    }

    #[test]
    fn a_node_is_made_persistent_and_its_uplink_is_connected_by_both_ends() {
        let vlan = Switch { vlan: Some(10), ..switch(&["em1"]) };
        assert_eq!(
            created(&vlan, &observed(None)),
            [
                "ngctl -f -\n  | mkpeer . bridge vmctl link0\n  | name .:vmctl vmctl-lan\n  | msg vmctl-lan: setpersistent",
                "ifconfig vlan create vlandev em1 vlan 10 description 'vmctl switch lan' group vmctl up name em1.10",
                "kldload -n ng_ether",
                "ngctl -f -\n  | connect em1_10: vmctl-lan: lower link0\n  | connect em1_10: vmctl-lan: upper link1\n  \
                 | msg em1_10: setpromisc 1\n  | msg em1_10: setautosrc 0",
            ]
        );
    }

    #[test]
    fn what_is_there_is_left_alone_and_guests_keep_their_links() {
        let whole = vec![hook("link0", "em1", "lower"), hook("link1", "em1", "upper"), hook("link2", "<unnamed>", "vmlink")];
        assert!(created(&switch(&["em1"]), &observed(Some(whole.clone()))).is_empty());
        let more = created(&switch(&["em1", "em0"]), &observed(Some(whole)));
        assert!(more[1].contains("connect em0: vmctl-lan: lower link3\n  | connect em0: vmctl-lan: upper link4"), "{more:?}");
        let half = created(&switch(&["em1"]), &observed(Some(vec![hook("link0", "em1", "lower")])));
        assert!(half[1].contains("connect em1: vmctl-lan: upper link1") && !half[1].contains("lower"), "{half:?}");
    }

    #[test]
    fn a_node_that_guests_are_on_stays_and_one_of_another_type_is_not_taken() {
        let hooks = vec![hook("link0", "em1", "lower"), hook("link1", "em1", "upper"), hook("link2", "<unnamed>", "vmlink")];
        let used = observed(Some(hooks.clone()));
        let destroy = |observed: &Observed, force| steps::destroy(&switch(&["em1"]), observed, Path::new("/run"), force);
        assert_eq!(destroy(&used, false).expect_err("in use").to_string(), "switch `lan` is in use by <unnamed>:vmlink");
        let steps =
            ["ngctl -f -\n  | msg em1: setpromisc 0\n  | msg em1: setautosrc 1\n  | rmhook em1: lower\n  | rmhook em1: upper"];
        assert_eq!(lines(destroy(&used, true)), [steps[0], "ngctl shutdown vmctl-lan:"]);
        let leave = change::leave(&switch(&["em1"]), &switch(&[]), &used, Path::new("/run"));
        assert_eq!(lines(leave), steps);
        let mut other = observed(Some(Vec::new()));
        other.nodes[0].kind = "hub".into();
        let error = steps::create(&switch(&[]), &other, Path::new("/run")).expect_err("refused");
        assert!(error.to_string().contains("exists and is not a bridge"), "{error}");
    }
}
