//! Status of a switch, for `vmctl switch list` and `info`.

use std::path::Path;

use serde::Serialize;

use super::{Observed, Switch, steps};

/// Status of a switch.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `bridge`, `manual`, `vxlan`, `netgraph` or `vale`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `up`, `down`, `partial`, or `wrong` if it cannot be as the host file wants it.
    pub state: &'static str,
    /// The interface that taps are added to.
    pub bridge: Option<String>,
    /// Interfaces of the host that belong to it.
    pub uplinks: Vec<String>,
    /// The VLAN of the uplinks.
    pub vlan: Option<u16>,
    /// Present addresses of the host on it.
    pub addresses: Vec<String>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Whether guests cannot talk to each other.
    pub private: bool,
    /// `off`, or the interface of NAT.
    pub nat: String,
    /// The range for DHCP, and whether the service runs.
    pub dhcp: String,
    /// The interfaces of guests on it.
    pub ports: Vec<String>,
    /// Number of bytes received, if it was counted.
    pub bytes_in: Option<u64>,
    /// Number of bytes sent.
    pub bytes_out: Option<u64>,
    /// Problem, or missing part.
    pub problem: Option<String>,
}

/// Returns the status of a switch. With `closely` it also counts the bytes.
pub fn look(switch: &Switch, observed: &Observed, runtime: &Path, closely: bool) -> Status {
    let bridge = switch.bridge();
    let interface = bridge.as_deref().and_then(|name| observed.interface(name));
    // Only root may ask the packet filter. For other users the status ignores the switch's rules.
    let unasked = observed.unasked().filter(|_| switch.nat).map(|error| format!("its NAT is not known: {error}"));
    let planned = match unasked {
        Some(_) => steps::create(&Switch { nat: false, ..switch.clone() }, observed, runtime),
        None => steps::create(switch, observed, runtime),
    };
    let there = match (&bridge, switch.own_node()) {
        (Some(_), _) => interface.is_some(),
        (None, Some(node)) => observed.node(node).is_some(),
        (None, None) => true,
    };
    let (state, problem) = match &planned {
        Err(error) => ("wrong", Some(error.to_string())),
        Ok(plan) if plan.steps.is_empty() => ("up", None),
        Ok(_) if !there => ("down", None),
        Ok(plan) => ("partial", plan.steps.first().map(|step| format!("missing: {}", first_line(&step.action.to_string())))),
    };
    let traffic = if closely { interface.and_then(|one| observed.tools.traffic(&one.name)) } else { None };
    let bytes = traffic.map(|traffic| (traffic.received_bytes, traffic.sent_bytes));
    Status {
        name: switch.id.clone(),
        kind: switch.kind.word(),
        state,
        ports: switch.ports(observed),
        addresses: interface.map(|one| one.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        mtu: interface.map(|one| one.mtu).or(switch.mtu),
        bridge,
        uplinks: switch.uplinks.clone(),
        vlan: switch.vlan,
        private: switch.private,
        nat: match (switch.nat, switch.egress_in(observed)) {
            (true, Some(egress)) => egress,
            (true, None) => "no egress".into(),
            (false, _) => "off".into(),
        },
        dhcp: match &switch.dhcp {
            None => "off".into(),
            Some(range) => {
                let runs = if observed.serving.contains(&switch.id) { "runs" } else { "stopped" };
                format!("{}-{} ({runs})", range.first, range.last)
            }
        },
        bytes_in: bytes.map(|(received, _)| received),
        bytes_out: bytes.map(|(_, sent)| sent),
        problem: problem.or(unasked),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::plain;
    use super::super::{Kind, description};
    use super::*;
    use crate::host::error::HostError;
    use crate::host::ifconfig::Interface;

    #[test]
    fn a_switch_is_down_partial_up_or_wrong() {
        let em1 = Interface { name: "em1".into(), up: true, mtu: 1500, ..Interface::default() };
        let switch = Switch { uplinks: vec!["em1".into()], ..plain("lan") };
        let state =
            |interfaces: Vec<Interface>| look(&switch, &Observed { interfaces, ..Observed::default() }, Path::new("/run"), false);
        let bridge = Interface { name: "sw-lan".into(), up: true, description: description("lan"), ..em1.clone() };
        assert_eq!(state(vec![em1.clone()]).state, "down");
        let partial = state(vec![em1.clone(), bridge.clone()]);
        assert_eq!((partial.state, partial.problem.as_deref()), ("partial", Some("missing: ifconfig sw-lan addm em1")));
        let whole = Interface { members: vec!["em1".into(), "tap0".into()], ..bridge };
        let up = state(vec![em1, whole]);
        assert_eq!((up.state, up.ports.as_slice()), ("up", ["tap0".to_owned()].as_slice()));
        assert_eq!(state(Vec::new()).state, "wrong");
        let observed = Observed {
            interfaces: vec![Interface {
                name: "sw-lan".into(),
                up: true,
                description: description("lan"),
                addresses: vec!["10.0.0.1/24".parse().expect("a prefix")],
                ..Interface::default()
            }],
            pf: Some(Err(HostError::user("`pfctl -s info` failed: /dev/pf: Permission denied"))),
            ..Observed::default()
        };
        let nat = Switch { nat: true, addresses: vec!["10.0.0.1/24".parse().expect("a prefix")], ..plain("lan") };
        let for_others = look(&nat, &observed, Path::new("/run"), false);
        assert_eq!(for_others.state, "up");
        assert!(for_others.problem.is_some_and(|problem| problem.contains("Permission denied")));
        let manual = Switch { kind: Kind::Manual { bridge: "bridge0".into() }, ..plain("m") };
        assert_eq!(look(&manual, &Observed::default(), Path::new("/run"), false).state, "wrong");
    }
}
