//! State of a Linux host, as switches depend on it.

use std::path::Path;

use super::super::dnsmasq;
use super::super::error::HostError;
use super::super::nft::{self, Rules};
use super::super::{environment, netlink, program, route};
use super::tools::{FORWARDING, Tools};
use super::{Observed, Switch};

/// Reads the state that these switches depend on.
pub(super) fn look(switches: &[Switch], runtime: &Path) -> Result<Observed, HostError> {
    let mut observed = Observed {
        tools: Tools::Linux,
        interfaces: netlink::interfaces()?,
        default_route: netlink::default_route(),
        session: route::session_address(),
        dnsmasq: program::find_on_linux("dnsmasq").is_some(),
        members_without_addresses: true,
        forwarding: std::fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "1"),
        ..Observed::default()
    };
    let nat = switches.iter().any(|switch| switch.nat);
    // A table may be left of a switch that has no NAT any more.
    if nat || (environment::is_root() && program::find("nft").is_some()) {
        let failed = switches.iter().try_for_each(|switch| rules(switch, &mut observed)).err();
        observed.nft = failed.filter(|_| nat);
    }
    if nat && observed.nft.is_none() {
        observed.dropping = nft::dropping();
    }
    for switch in switches {
        observed.serve(switch, runtime);
    }
    Ok(observed)
}

fn rules(switch: &Switch, observed: &mut Observed) -> Result<(), HostError> {
    match nft::look(&switch.id)? {
        Rules::None => {}
        Rules::Foreign => observed.foreign_tables.push(switch.id.clone()),
        Rules::Ours(text) => {
            observed.filtered.push(switch.id.clone());
            if switch.egress_in(observed).is_some_and(|egress| nft::covers(&text, &switch.networks(), &egress)) {
                observed.loaded.push(switch.id.clone());
            }
        }
    }
    Ok(())
}

/// A part of a switch that is not declared any more.
pub struct Leftover {
    /// In words.
    pub what: String,
    /// The command that removes it.
    pub remove: String,
}

/// Returns what is left of switches that are not among the declared ones.
pub fn left_over(declared: &[String], runtime: &Path) -> Vec<Leftover> {
    let is_left = |switch: &str| !declared.iter().any(|name| name == switch);
    let mut found = Vec::new();
    for one in netlink::interfaces().unwrap_or_default() {
        let of = one.description.strip_prefix(super::description("").as_str()).map(str::to_owned);
        // One without a description is known by its name.
        let of = of.or_else(|| one.name.strip_prefix("sw-").filter(|_| one.unfinished).map(str::to_owned));
        if of.is_some_and(|switch| is_left(&switch)) {
            let what = format!("the interface `{}`", one.name);
            found.push(Leftover { what, remove: format!("ip link delete {}", one.name) });
        }
    }
    if environment::is_root() && program::find("nft").is_some() {
        for switch in nft::tables().iter().filter(|switch| is_left(switch)) {
            let remove = nft::flush(switch).to_string();
            found.push(Leftover { what: format!("the nftables table `{}`", nft::table(switch)), remove });
        }
    }
    for entry in std::fs::read_dir(runtime.join("switches")).into_iter().flatten().flatten() {
        let Ok(switch) = entry.file_name().into_string() else { continue };
        if let (true, Some(pid)) = (is_left(&switch), dnsmasq::running(&entry.path())) {
            found.push(Leftover { what: format!("the dnsmasq of switch `{switch}`"), remove: format!("kill {pid}") });
        }
    }
    found
}
