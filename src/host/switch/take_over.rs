//! Replacement of another manager's bridge by a switch, which gets the bridge's members and the addresses of the host
//! on it.

use std::path::Path;

use super::super::error::HostError;
use super::super::program::Step;
use super::steps::{self, SwitchSteps};
use super::{Observed, Switch, description};

/// Plans a switch in place of `bridge`. If a step fails, the bridge is made again.
pub fn take_over(switch: &Switch, bridge: &str, observed: &Observed, runtime: &Path) -> Result<SwitchSteps, HostError> {
    let Some(old) = observed.interface(bridge) else {
        // The bridge is gone with its manager, or an earlier command has replaced it.
        return steps::create(switch, observed, runtime);
    };
    if old.description == description(&switch.id) || switch.bridge().as_deref() == Some(bridge) {
        return Err(HostError::user(format!("`{bridge}` is the bridge of switch `{}` itself", switch.id)));
    }
    let guests: Vec<&str> = old.members.iter().map(String::as_str).filter(|name| is_of_a_guest(name)).collect();
    if !guests.is_empty() {
        return Err(HostError::user(format!("`{bridge}` is in use by {}", guests.join(", ")))
            .hint("stop the guests that are on it first: with vm-bhyve, `vm stopall`"));
    }
    let mut steps = Vec::new();
    let tools = observed.tools;
    for prefix in &old.addresses {
        steps.push(Step::undone_by(tools.remove_address(bridge, *prefix), tools.add_address(bridge, *prefix)));
    }
    for member in &old.members {
        steps.push(tools.leave(bridge, member));
    }
    steps.push(Step::undone_by(tools.destroy(bridge), tools.remake_bridge(bridge)));
    let mut after = observed.clone();
    after.interfaces.retain(|interface| interface.name != bridge);
    let mut plan = steps::create(switch, &after, runtime)?;
    if observed.session_interface().is_some_and(|session| session.name == bridge) {
        plan.risks
            .push(format!("this session came in through `{bridge}`, which is removed before switch `{}` is made", switch.id));
    }
    plan.steps.splice(0..0, steps);
    Ok(plan)
}

/// Returns whether a member of a bridge is the end of a guest's interface.
fn is_of_a_guest(member: &str) -> bool {
    ["tap", "vmnet"].iter().any(|kind| member.strip_prefix(kind).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::super::super::ifconfig::Interface;
    use super::super::tests::plain;
    use super::*;

    fn observed(members: &[&str]) -> Observed {
        let interface = |name: &str| Interface { name: name.into(), up: true, mtu: 1500, ..Interface::default() };
        let old = Interface {
            members: members.iter().map(|name| (*name).to_owned()).collect(),
            addresses: vec!["10.0.0.1/24".parse().expect("a prefix")],
            ..interface("vm-lan")
        };
        Observed { interfaces: vec![interface("em0"), old], ..Observed::default() }
    }

    fn switch() -> Switch {
        Switch { uplinks: vec!["em0".into()], addresses: vec!["10.0.0.1/24".parse().expect("a prefix")], ..plain("lan") }
    }

    #[test]
    fn the_old_bridge_gives_back_all_it_has_and_comes_again_when_the_switch_cannot_be_made() {
        let plan = take_over(&switch(), "vm-lan", &observed(&["em0"]), Path::new("/run")).expect("can be");
        let steps: Vec<String> = plan.steps.iter().map(|step| step.action.to_string()).collect();
        assert_eq!(
            steps[..3],
            ["ifconfig vm-lan inet 10.0.0.1 -alias", "ifconfig vm-lan deletem em0", "ifconfig vm-lan destroy"]
        );
        assert!(
            steps[3].contains("name sw-lan") && steps.iter().any(|step| step.ends_with("inet 10.0.0.1/24 alias")),
            "{steps:?}"
        );
        let undone: Vec<String> = plan.steps[..3].iter().rev().map(|step| step.undo.as_ref().expect("one").to_string()).collect();
        assert_eq!(
            undone,
            ["ifconfig bridge create up name vm-lan", "ifconfig vm-lan addm em0", "ifconfig vm-lan inet 10.0.0.1/24 alias"]
        );
        let session = Observed { session: Some("10.0.0.1".parse().expect("one")), ..observed(&["em0"]) };
        assert_eq!(take_over(&switch(), "vm-lan", &session, Path::new("/run")).expect("can be").risks.len(), 1);
    }

    #[test]
    fn a_bridge_that_guests_are_on_stays_and_one_that_is_gone_is_no_error() {
        let error = take_over(&switch(), "vm-lan", &observed(&["em0", "tap3"]), Path::new("/run")).expect_err("in use");
        assert_eq!(error.to_string(), "`vm-lan` is in use by tap3");
        assert!(take_over(&switch(), "vm-gone", &observed(&[]), Path::new("/run")).is_err(), "the address is on `vm-lan`");
        let mut gone = observed(&[]);
        gone.interfaces.pop();
        assert!(
            take_over(&switch(), "vm-lan", &gone, Path::new("/run")).expect("can be").steps[0]
                .action
                .to_string()
                .contains("sw-lan")
        );
    }
}
