//! Packet filter rules of a switch, in an anchor of their own: pf.conf(5), pfctl(8).
//!
//! This program neither reads nor writes the user's pf.conf. It must contain the anchor for the rules of switches,
//! [`NAT_LINE`]. The running packet filter says whether it does. `pfctl -s nat` prints an anchor as `nat-anchor
//! "vmctl/*" all` (`sbin/pfctl/pfctl_parser.c`, print_rule).

use super::error::HostError;
use super::ifconfig::Prefix;
use super::program::{self, HostChange, Step};

/// The line of pf.conf that translation rules of switches need.
pub const NAT_LINE: &str = "nat-anchor \"vmctl/*\"";

/// The line of pf.conf that filter rules of switches need, if the user's own rules block.
pub const FILTER_LINE: &str = "anchor \"vmctl/*\"";

/// State of the running packet filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pf {
    /// It is enabled.
    pub enabled: bool,
    /// The user's rules have [`NAT_LINE`], or one that covers it.
    pub nat_anchor: bool,
    /// The user's rules have [`FILTER_LINE`], or one that covers it.
    pub filter_anchor: bool,
    /// The user's rules block something.
    pub blocks: bool,
}

/// Asks the running packet filter. Needs root.
pub fn look() -> Result<Pf, HostError> {
    let status = program::run("pfctl", &["-s", "info"]);
    let Ok(status) = status else {
        // pfctl(8) cannot open /dev/pf without the module, and not without root.
        return match status {
            Err(error) if error.to_string().contains("No such file") => {
                Ok(Pf { enabled: false, nat_anchor: false, filter_anchor: false, blocks: false })
            }
            Err(error) => Err(error.into()),
            Ok(_) => unreachable!("matched above"),
        };
    };
    let nat = program::run("pfctl", &["-s", "nat"])?;
    let rules = program::run("pfctl", &["-s", "rules"])?;
    Ok(Pf {
        enabled: status.lines().any(|line| line.starts_with("Status: Enabled")),
        nat_anchor: has_anchor(&nat, "nat-anchor"),
        filter_anchor: has_anchor(&rules, "anchor"),
        blocks: rules.lines().any(|line| line.starts_with("block")),
    })
}

fn has_anchor(rules: &str, word: &str) -> bool {
    rules.lines().filter_map(|line| line.strip_prefix(word)?.trim_start().strip_prefix('"')).any(|rest| {
        let name = rest.split('"').next().unwrap_or_default();
        matches!(name, "vmctl/*" | "*")
    })
}

/// Returns the name of a switch's anchor.
pub fn anchor(switch: &str) -> String {
    format!("vmctl/{switch}")
}

/// Returns the rules of a switch whose networks reach the outside through the interface `egress`.
pub fn nat_rules(bridge: &str, networks: &[Prefix], egress: &str) -> String {
    let mut rules = String::new();
    for net in networks {
        rules.push_str(&format!("nat on {egress} inet from {net} to ! {net} -> ({egress}:0)\n"));
    }
    for net in networks {
        rules.push_str(&format!("pass in quick on {bridge} inet from {net} to any keep state\n"));
        rules.push_str(&format!("pass out quick on {egress} inet from {net} to any keep state\n"));
    }
    rules
}

/// Refuses a configuration that would not work: no packet filter, or one without the anchor for switches.
pub fn check(pf: &Pf, switch: &str) -> Result<(), HostError> {
    if !pf.enabled {
        return Err(HostError::user(format!("switch `{switch}` has `nat`, and pf(4) is not running"))
            .hint(format!("write {NAT_LINE} into /etc/pf.conf, then `sysrc pf_enable=YES` and `service pf start`")));
    }
    if !pf.nat_anchor {
        return Err(HostError::user(format!("switch `{switch}` has `nat`, and pf's rules do not name its anchor")).hint(
            format!(
                "add the line {NAT_LINE} to /etc/pf.conf among its translation rules, then `service pf reload`; vmctl never \
             changes that file"
            ),
        ));
    }
    Ok(())
}

/// Loads the rules of a switch.
pub fn load(switch: &str, rules: &str) -> Step {
    let words = ["pfctl", "-a", &anchor(switch), "-f", "-"].map(str::to_owned).to_vec();
    Step { action: HostChange::Run { words, input: rules.to_owned() }, undo: Some(flush(switch)) }
}

/// Returns the action that removes the rules of a switch.
pub fn flush(switch: &str) -> HostChange {
    HostChange::run(&["pfctl", "-a", &anchor(switch), "-F", "all"])
}

/// Returns whether a switch's rules are loaded: translation through `egress` from each network.
pub fn is_loaded(switch: &str, networks: &[Prefix], egress: &str) -> bool {
    let Ok(rules) = program::run("pfctl", &["-a", &anchor(switch), "-s", "nat"]) else { return false };
    covers(&rules, networks, egress)
}

fn covers(rules: &str, networks: &[Prefix], egress: &str) -> bool {
    networks.iter().all(|net| rules.lines().any(|line| line.starts_with(&format!("nat on {egress} inet from {net} to"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anchor_lines_of_the_user_are_recognised() {
        assert!(has_anchor("nat-anchor \"vmctl/*\" all\n", "nat-anchor"));
        assert!(has_anchor("scrub in\nanchor \"*\" all\n", "anchor"));
        assert!(!has_anchor("nat-anchor \"ftp-proxy/*\" all\n", "nat-anchor"));
        assert!(!has_anchor("nat-anchor \"vmctl/*\" all\n", "anchor"));
        assert!(!has_anchor("nat-anchor\nnat-anchor \"", "nat-anchor"));
    }

    #[test]
    fn rules_translate_first_and_loaded_ones_are_found_as_pfctl_prints_them() {
        let nets = ["10.10.0.0/24".parse().expect("a prefix")];
        let rules = nat_rules("sw-lan", &nets, "em0");
        assert_eq!(
            rules,
            "nat on em0 inet from 10.10.0.0/24 to ! 10.10.0.0/24 -> (em0:0)\n\
             pass in quick on sw-lan inet from 10.10.0.0/24 to any keep state\n\
             pass out quick on em0 inet from 10.10.0.0/24 to any keep state\n"
        );
        assert!(covers("nat on em0 inet from 10.10.0.0/24 to ! 10.10.0.0/24 -> (em0:0) round-robin\n", &nets, "em0"));
        assert!(!covers("nat on em0 inet from 10.10.0.0/24 to any -> (em0)\n", &nets, "em1"));
    }

    #[test]
    fn a_packet_filter_that_is_off_or_does_not_look_is_refused_with_the_line_to_write() {
        let off = Pf { enabled: false, nat_anchor: false, filter_anchor: false, blocks: false };
        assert!(check(&off, "lan").expect_err("refused").next_step().expect("a hint").contains("pf_enable=YES"));
        let blind = Pf { enabled: true, ..off };
        assert!(check(&blind, "lan").expect_err("refused").next_step().expect("a hint").contains(NAT_LINE));
        assert!(check(&Pf { nat_anchor: true, ..blind }, "lan").is_ok());
    }
}
