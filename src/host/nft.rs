//! NAT of a switch on Linux, in an nftables table of its own: nft(8).
//!
//! The tables of others are neither read for their rules nor changed. A chain of theirs may still drop what is forwarded
//! (nft(8), "verdict statements": an accept ends one base chain only), which is a note for the user.

#[cfg(any(test, target_os = "linux"))]
use super::error::HostError;
use super::ifconfig::Prefix;
use super::program::{HostChange, Step};
use super::switch::description;

/// State of a switch's table.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rules {
    /// There is no table of this name.
    None,
    /// It is vmctl's, with this text.
    Ours(String),
    /// It was not made by vmctl.
    Foreign,
}

/// Returns the name of a switch's table.
pub fn table(switch: &str) -> String {
    format!("vmctl-{switch}")
}

/// Reads a switch's table. Only root may.
#[cfg(target_os = "linux")]
pub fn look(switch: &str) -> Result<Rules, HostError> {
    match super::program::run("nft", &["list", "table", "ip", &table(switch)]) {
        Ok(text) if text.contains(&format!("comment \"{}\"", description(switch))) => Ok(Rules::Ours(text)),
        Ok(_) => Ok(Rules::Foreign),
        Err(error) if error.to_string().contains("No such file or directory") => Ok(Rules::None),
        Err(error) => Err(failed(error.into())),
    }
}

/// Adds the next step to an error of nft(8), by its words for the errors of the kernel.
#[cfg(any(test, target_os = "linux"))]
fn failed(error: HostError) -> HostError {
    let words = error.to_string();
    let hint = if words.contains("must be root") {
        "run the command as root, as with `sudo`"
    } else if ["not supported", "Unable to initialize"].iter().any(|part| words.contains(part)) {
        "load the module with `modprobe nf_tables`, or boot a kernel that has it (CONFIG_NF_TABLES)"
    } else {
        return error;
    };
    error.hint(hint)
}

/// Returns the base chains that drop what is forwarded and has no other rule, like `ip filter FORWARD`.
#[cfg(target_os = "linux")]
pub fn dropping() -> Vec<String> {
    super::program::run("nft", &["list", "chains"]).map(|text| dropping_in(&text)).unwrap_or_default()
}

/// Reads `nft list chains`: `table FAMILY NAME {`, `chain NAME {`, `type filter hook forward priority filter; policy drop;`.
#[cfg(any(test, target_os = "linux"))]
fn dropping_in(text: &str) -> Vec<String> {
    let (mut table, mut chain, mut found) = (String::new(), String::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        let name = |word: &str| line.strip_prefix(word).and_then(|rest| rest.strip_suffix(" {")).map(str::to_owned);
        if let Some(name) = name("table ") {
            table = name;
        } else if let Some(name) = name("chain ") {
            chain = name;
        } else if line.contains(" hook forward ") && line.contains("policy drop;") {
            found.push(format!("{table} {chain}"));
        }
    }
    found
}

/// Returns the rule that lets a network out through the interface `egress`, as nft(8) prints it again.
fn rule(net: &Prefix, egress: &str) -> String {
    // A network of one address is printed without its length.
    let net = if net.length == 32 { net.address.to_string() } else { net.to_string() };
    format!("ip saddr {net} ip daddr != {net} oifname \"{egress}\" masquerade")
}

/// Returns whether a table has the rules for these networks and this interface, and no others.
#[cfg(any(test, target_os = "linux"))]
pub fn covers(text: &str, networks: &[Prefix], egress: &str) -> bool {
    let wanted: Vec<String> = networks.iter().map(|net| rule(net, egress)).collect();
    let has: Vec<&str> = text.lines().map(str::trim).filter(|line| line.ends_with(" masquerade")).collect();
    has.len() == wanted.len() && wanted.iter().all(|rule| has.contains(&rule.as_str()))
}

/// Returns the step that loads the rules of a switch, in place of those that it has.
pub fn load(switch: &str, networks: &[Prefix], egress: &str) -> Step {
    let table = table(switch);
    let rules: String = networks.iter().map(|net| format!("    {}\n", rule(net, egress))).collect();
    // Declared first, so that there is one to delete; all of it is one transaction.
    let input = format!(
        "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n  comment \"{}\"\n  chain nat {{\n    \
         type nat hook postrouting priority 100; policy accept;\n{rules}  }}\n}}\n",
        description(switch)
    );
    let words = ["nft", "-f", "-"].map(str::to_owned).to_vec();
    Step { action: HostChange::Run { words, input }, undo: Some(flush(switch)) }
}

/// Returns the change that removes the rules of a switch.
pub fn flush(switch: &str) -> HostChange {
    HostChange::run(&["nft", "delete", "table", "ip", &table(switch)])
}

/// Returns the switches that have a table here.
#[cfg(target_os = "linux")]
pub fn tables() -> Vec<String> {
    let text = super::program::run("nft", &["list", "tables", "ip"]).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix("table ip vmctl-")).map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_again_as_nft_prints_them() {
        let nets: Vec<Prefix> = ["10.10.0.0/24", "10.11.0.1/32"].iter().map(|net| net.parse().expect("a prefix")).collect();
        let printed = "table ip vmctl-lan {\n\tcomment \"vmctl switch lan\"\n\n\tchain nat {\n\t\ttype nat hook postrouting \
                       priority srcnat; policy accept;\n\t\tip saddr 10.10.0.0/24 ip daddr != 10.10.0.0/24 oifname \"eth0\" \
                       masquerade\n\t\tip saddr 10.11.0.1 ip daddr != 10.11.0.1 oifname \"eth0\" masquerade\n\t}\n}\n";
        assert!(covers(printed, &nets, "eth0"));
        assert!(!covers(printed, &nets, "eth1") && !covers(printed, &nets[..1], "eth0") && !covers("", &nets, "eth0"));
        let HostChange::Run { input, .. } = load("lan", &nets, "eth0").action else { panic!("it runs nft") };
        assert!(covers(&input, &nets, "eth0"), "{input}");
        assert!(input.starts_with("table ip vmctl-lan\ndelete table ip vmctl-lan\n"), "{input}");
    }

    #[test]
    fn chains_that_drop_what_is_forwarded_are_named() {
        let text = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n\
                    \tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n\
                    table inet mine {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy accept;\n\t}\n}\n";
        assert_eq!(dropping_in(text), ["ip filter FORWARD"]);
    }

    #[test]
    fn an_error_of_nft_says_what_to_do() {
        for (words, hint) in [
            ("`nft list table ip vmctl-lan` failed: Operation not permitted (you must be root)", "as root"),
            ("`nft -f -` failed: Unable to initialize Netlink socket: Protocol not supported", "modprobe nf_tables"),
        ] {
            assert!(failed(HostError::user(words)).next_step().is_some_and(|step| step.contains(hint)), "{words}");
        }
    }
}
