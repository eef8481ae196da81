//! The commands of the QEMU guest agent that are used, and their answers (QEMU, qga/qapi-schema.json).
//!
//! **Hostile guest**: what is kept of an answer is bounded; a command's output is at most [`MOST_OUTPUT`] bytes in all.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{AgentClient, AgentError, Result, printable};

/// Time-out of a command that the agent answers at once.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Time-out of an answer that may hold much output.
const LONG_ANSWER: Duration = Duration::from_secs(60);
/// Maximum size of the output of a command, of both streams together.
pub const MOST_OUTPUT: usize = 16 << 20;
/// Maximum length of an answer with output: base64 takes four bytes for three.
const LONG: usize = MOST_OUTPUT / 3 * 4 + 4096;
/// Maximum length of other answers.
const PLAIN: usize = 256 * 1024;
/// Maximum number of interfaces that are kept, and of addresses of each.
const MOST_INTERFACES: usize = 32;
const MOST_ADDRESSES: usize = 8;
/// Maximum length of an interface's name. Linux has 15 characters.
const NAME_CHARS: usize = 32;

/// A network interface as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInterface {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC address in lower case, as it came.
    pub mac: Option<String>,
    /// Its addresses, without those of the link alone.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct RawInterface {
    name: String,
    #[serde(rename = "hardware-address")]
    mac: Option<String>,
    #[serde(default, rename = "ip-addresses")]
    addresses: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(rename = "ip-address")]
    address: String,
}

/// A command that is to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCommand {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Its standard input.
    pub input: Option<Vec<u8>>,
}

/// The end of a command in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i64>,
    /// The signal that ended it.
    pub signal: Option<i64>,
    /// Its standard output.
    pub out: Vec<u8>,
    /// Its standard error.
    pub err: Vec<u8>,
    /// Whether some of its output is missing, since the agent left it out.
    pub truncated: bool,
}

#[derive(Deserialize)]
struct RawStatus {
    exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
    #[serde(default, rename = "out-data")]
    out: String,
    #[serde(default, rename = "err-data")]
    err: String,
    #[serde(default, rename = "out-truncated")]
    out_truncated: bool,
    #[serde(default, rename = "err-truncated")]
    err_truncated: bool,
}

/// Returns the guest's interfaces that have an address, except for the loopback.
pub fn interfaces(client: &mut AgentClient) -> Result<Vec<AgentInterface>> {
    let answer = client.call("guest-network-get-interfaces", None, PLAIN, ANSWER)?;
    let raw: Vec<RawInterface> =
        serde_json::from_value(answer).map_err(|_| AgentError::Malformed("no list of network interfaces"))?;
    Ok(raw.into_iter().filter_map(interface).take(MOST_INTERFACES).collect())
}

fn interface(raw: RawInterface) -> Option<AgentInterface> {
    let addresses = raw.addresses.iter().filter_map(|raw| raw.address.parse::<IpAddr>().ok());
    let addresses: Vec<IpAddr> = addresses.filter(is_shown).take(MOST_ADDRESSES).collect();
    let short = |text: &str| printable(text).chars().take(NAME_CHARS).collect::<String>();
    let mac = raw.mac.map(|mac| short(&mac.to_lowercase()));
    (!addresses.is_empty()).then(|| AgentInterface { name: short(&raw.name), mac, addresses })
}

fn is_shown(address: &IpAddr) -> bool {
    let of_link = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !of_link && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// Starts a command in the guest and returns its process id there.
pub fn execute(client: &mut AgentClient, command: &GuestCommand) -> Result<i64> {
    let (path, arguments) = command.words.split_first().ok_or(AgentError::Malformed("a command without a program"))?;
    let mut request = json!({ "path": path, "arg": arguments, "capture-output": true });
    if let Some(input) = &command.input {
        request["input-data"] = STANDARD.encode(input).into();
    }
    let answer = client.call("guest-exec", Some(request), PLAIN, ANSWER)?;
    answer["pid"].as_i64().ok_or(AgentError::Malformed("no process id"))
}

/// Returns the end of a command, if it has ended.
pub fn executed(client: &mut AgentClient, pid: i64) -> Result<Option<Executed>> {
    let answer = client.call("guest-exec-status", Some(json!({ "pid": pid })), LONG, LONG_ANSWER)?;
    let malformed = |_| AgentError::Malformed("no status of a command");
    let raw: RawStatus = serde_json::from_value(answer).map_err(malformed)?;
    if !raw.exited {
        return Ok(None);
    }
    let decoded = |text: &str| STANDARD.decode(text).map_err(|_| AgentError::Malformed("output that is not base64"));
    let (out, err) = (decoded(&raw.out)?, decoded(&raw.err)?);
    let truncated = raw.out_truncated || raw.err_truncated;
    Ok(Some(Executed { code: raw.exitcode, signal: raw.signal, out, err, truncated }))
}

/// Asks the guest to shut down and power off. There is no answer.
pub fn shut_down(client: &mut AgentClient) -> Result<()> {
    client.tell("guest-shutdown", Some(json!({ "mode": "powerdown" })), ANSWER)
}
