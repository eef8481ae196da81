//! DHCP and DNS for the guests of a switch, through dnsmasq(8) of the port dns/dnsmasq: one process per switch, with
//! its configuration, its pid and its leases in the switch's directory under the runtime directory.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::HostError;
use super::ifconfig::Prefix;
use super::process;
use super::program::{self, HostChange, Step};

/// Range of addresses for DHCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address.
    pub last: Ipv4Addr,
    /// Duration of a lease.
    pub lease: Duration,
}

/// The DHCP and DNS service of one switch.
#[derive(Debug, Clone)]
pub struct Service<'a> {
    /// The switch.
    pub switch: &'a str,
    /// The interface on which it listens.
    pub interface: String,
    /// The host's loopback interface, on which it does not listen.
    pub loopback: &'static str,
    /// The host's address on it.
    pub address: Prefix,
    /// The addresses for guests.
    pub range: &'a Range,
    /// Name servers for guests; the service itself when empty.
    pub dns: &'a [IpAddr],
    /// Domain for guests.
    pub domain: Option<&'a str>,
    /// The directory of the switch.
    pub directory: &'a Path,
}

impl Service<'_> {
    fn config_file(&self) -> PathBuf {
        self.directory.join("dnsmasq.conf")
    }
    fn pid_file(&self) -> PathBuf {
        self.directory.join("dnsmasq.pid")
    }

    /// Returns the text of its configuration file.
    pub fn config(&self) -> String {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.address.length)).unwrap_or(0);
        let mut config = format!(
            "# The switch `{}` of vmctl; written anew when it is made.\n\
             interface={}\n\
             except-interface={}\n\
             bind-interfaces\n\
             no-hosts\n\
             dhcp-authoritative\n\
             dhcp-range={},{},{},{}s\n\
             dhcp-leasefile={}\n\
             pid-file={}\n",
            self.switch,
            self.interface,
            self.loopback,
            self.range.first,
            self.range.last,
            Ipv4Addr::from(mask),
            self.range.lease.as_secs(),
            self.directory.join("dnsmasq.leases").display(),
            self.pid_file().display(),
        );
        // Options 6 and 15: name servers and domain (RFC 2132).
        let servers: Vec<String> = self.dns.iter().filter(|server| server.is_ipv4()).map(ToString::to_string).collect();
        if !servers.is_empty() {
            config.push_str(&format!("dhcp-option=option:dns-server,{}\n", servers.join(",")));
        }
        if let Some(domain) = self.domain {
            config.push_str(&format!("domain={domain}\n"));
        }
        config
    }

    /// Returns whether it runs with the configuration that it should have.
    pub fn is_running(&self) -> bool {
        std::fs::read_to_string(self.config_file()).is_ok_and(|text| text == self.config()) && running(self.directory).is_some()
    }

    /// Returns the steps that write the configuration and restart the service.
    pub fn start(&self) -> Vec<Step> {
        let file = self.config_file().display().to_string();
        let mut steps: Vec<Step> = running(self.directory).map(|pid| Step::once(kill(pid))).into_iter().collect();
        steps.push(Step::undone_by(
            HostChange::Write { path: self.config_file(), text: self.config() },
            HostChange::Remove { path: self.config_file() },
        ));
        steps.push(Step::once(HostChange::run(&["dnsmasq", &format!("--conf-file={file}")])));
        steps
    }
}

/// Refuses a range that is outside of the network, or contains the host's own address.
pub fn check(switch: &str, address: Prefix, range: &Range) -> Result<(), HostError> {
    let bad = |words: String| Err(HostError::user(format!("`dhcp` of switch `{switch}`: {words}")));
    if range.first > range.last {
        return bad(format!("`{}` comes after `{}`", range.first, range.last));
    }
    for end in [range.first, range.last] {
        if !address.contains(end.into()) {
            return bad(format!("`{end}` is not in the network of `{address}`"));
        }
    }
    match address.address {
        IpAddr::V4(own) if (range.first..=range.last).contains(&own) => {
            bad(format!("it would give out the host's own address `{own}`"))
        }
        _ => Ok(()),
    }
}

fn kill(pid: u32) -> HostChange {
    match program::is_freebsd() {
        true => HostChange::run(&["kill", &pid.to_string()]),
        false => HostChange::End { pid },
    }
}

/// Returns the steps that stop the service of a switch's directory, if one runs, and remove its files.
pub fn stop(directory: &Path) -> Vec<Step> {
    let mut steps: Vec<Step> = running(directory).map(|pid| Step::once(kill(pid))).into_iter().collect();
    let files = ["dnsmasq.conf", "dnsmasq.pid", "dnsmasq.leases"].map(|name| directory.join(name));
    steps.extend(files.into_iter().filter(|path| path.exists()).map(|path| Step::once(HostChange::Remove { path })));
    steps
}

/// Returns the process that serves a switch: the pid in its file, if that process is a dnsmasq with this configuration.
pub fn running(directory: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(directory.join("dnsmasq.pid")).ok()?.trim().parse().ok()?;
    let command = match program::is_freebsd() {
        true => program::run("ps", &["-o", "command=", "-p", &pid.to_string()]).ok()?,
        false => process::look_at(pid)?.words.join(" "),
    };
    let file = directory.join("dnsmasq.conf");
    command.contains(file.to_str()?).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> Range {
        Range {
            first: first.parse().expect("an address"),
            last: last.parse().expect("an address"),
            lease: Duration::from_secs(3600),
        }
    }

    #[test]
    fn the_configuration_listens_on_the_switch_alone() {
        let range = range("10.10.0.100", "10.10.0.199");
        let service = Service {
            switch: "lan",
            interface: "sw-lan".into(),
            loopback: "lo0",
            address: "10.10.0.1/24".parse().expect("a prefix"),
            range: &range,
            dns: &["9.9.9.9".parse().expect("an address")],
            domain: Some("guests.example"),
            directory: Path::new("/var/run/vmctl/switches/lan"),
        };
        let config = service.config();
        assert!(config.contains("\ninterface=sw-lan\nexcept-interface=lo0\nbind-interfaces\n"), "{config}");
        assert!(config.contains("\ndhcp-range=10.10.0.100,10.10.0.199,255.255.255.0,3600s\n"), "{config}");
        assert!(config.contains("\npid-file=/var/run/vmctl/switches/lan/dnsmasq.pid\n"), "{config}");
        assert!(config.ends_with("dhcp-option=option:dns-server,9.9.9.9\ndomain=guests.example\n"), "{config}");
    }

    #[test]
    fn a_range_that_cannot_be_is_refused() {
        let address: Prefix = "10.10.0.1/24".parse().expect("a prefix");
        for (first, last, words) in [
            ("10.10.0.9", "10.10.0.2", "comes after"),
            ("10.10.1.9", "10.10.1.20", "not in the network"),
            ("10.10.0.1", "10.10.0.20", "own address"),
        ] {
            let error = check("lan", address, &range(first, last)).expect_err("refused");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(check("lan", address, &range("10.10.0.2", "10.10.0.20")).is_ok());
    }
}
