//! The guest's agent: readiness, addresses, and commands in the guest.

use std::io::Write;
use std::process::Stdio;

use super::world::{Said, World, eventually};

const AGENT: &str = "agent = true\nready = { agent = true, timeout = \"20s\" }";

#[test]
fn a_guest_is_ready_when_its_agent_answers_and_its_addresses_are_shown() {
    let world = World::new();
    world.make("g", "agent", AGENT);
    world.vmctl(&["start", "g", "--wait"]).ok().says("g is ready");
    world.vmctl(&["wait", "g", "--for", "agent"]).ok().says("g has an agent: vmctl exec g COMMAND");
    eventually("its addresses are known", || world.state("g")["interfaces"].as_array().is_some_and(|all| !all.is_empty()));
    world.vmctl(&["info", "g"]).ok().says("in the guest").says("eth0 (52:54:00:aa:bb:cc): 192.0.2.7\n");
    assert_eq!(world.state("g")["addresses"], serde_json::json!(["192.0.2.7"]));
    assert_eq!(world.state("g")["agent"], true);
    world.vmctl(&["stop", "g"]).ok();
    assert_eq!(world.state("g")["addresses"], serde_json::json!([]));
    assert_eq!(world.state("g")["agent"], serde_json::Value::Null);
}

#[test]
fn a_command_in_the_guest_has_its_output_and_its_exit_status() {
    let world = World::new();
    world.make("g", "agent", AGENT);
    world.vmctl(&["exec", "g", "true"]).fails(1, "`g` is not running").says("vmctl start g");
    world.vmctl(&["start", "g"]).ok();
    // It waits for the agent by itself.
    assert_eq!(world.vmctl(&["exec", "g", "--", "echo", "-n", "a  b"]).ok().out, "-n a  b\n");
    assert_eq!(world.vmctl(&["exec", "g", "echo", "--", "x"]).ok().out, "-- x\n");
    let warned = world.vmctl(&["exec", "g", "--", "warn"]).fails(3, "careful");
    assert_eq!(warned.out, "");
    world.vmctl(&["exec", "g", "--", "crash"]).fails(128 + 11, "");
    let missing = "the guest's agent refused: Failed to execute child process nothing (No such file or directory)";
    world.vmctl(&["exec", "g", "--", "nothing"]).fails(1, missing);
    assert_eq!(world.vmctl(&["exec", "g", "--", "flood"]).ok().out.len(), 8 << 20);
    let mut cat = world.command(&["exec", "-i", "g", "--", "cat"]);
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(b"from\nhere").expect("writes");
    assert_eq!(Said::from(child.wait_with_output().expect("ends")).ok().out, "from\nhere");
    let stays = world.vmctl(&["exec", "g", "--timeout", "200ms", "--", "stay"]);
    stays.fails(1, "the command did not end within 200ms").says("it goes on in the guest");
}

#[test]
fn a_command_whose_guest_ends_is_over_and_a_stop_tells_the_agent_too() {
    let world = World::new();
    world.make("g", "agent deaf", AGENT);
    world.vmctl(&["start", "g", "--wait"]).ok();
    let stays = world.command(&["exec", "g", "--", "stay"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let stays = stays.expect("runs");
    eventually("it runs", || world.vmctl(&["logs", "g"]).out.contains("runs \"stay\""));
    world.vmctl(&["stop", "g", "--timeout", "2s"]).ok();
    Said::from(stays.wait_with_output().expect("ends")).fails(1, "ended before the command did");
    world.vmctl(&["logs", "g"]).ok().says("told to shut down");
}

#[test]
fn an_agent_that_lies_floods_or_never_answers_is_an_error_in_time() {
    let world = World::new();
    let at_once = "agent = true\nready = { timeout = \"500ms\", console = \"never\" }";
    for kind in ["silent", "floods"] {
        world.make(kind, &format!("agent:{kind}"), at_once);
        world.vmctl(&["start", kind]).ok();
        world.vmctl(&["wait", kind, "--for", "agent"]).fails(1, "not in time: the guest's agent has not answered");
        world.vmctl(&["exec", kind, "--", "echo"]).fails(1, "has not answered").says("`qemu-guest-agent`");
        world.vmctl(&["stop", kind]).ok();
    }
    world.make("lies", "agent:lies", AGENT);
    world.vmctl(&["start", "lies", "--wait"]).ok();
    let lies = "the guest's agent answered with something else than asked for: no JSON object";
    world.vmctl(&["exec", "lies", "--", "echo"]).fails(1, lies);
    world.vmctl(&["info", "lies"]).ok();
    world.vmctl(&["stop", "lies"]).ok();
}

#[test]
fn a_guest_without_a_port_for_an_agent_is_told_how_to_get_one() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    let none = "the guest has no port for an agent in this boot";
    world.vmctl(&["exec", "g", "--", "echo"]).fails(1, none).says("set `agent = true` in the guest file");
    world.vmctl(&["wait", "g", "--for", "agent"]).fails(1, none);
    world.vmctl(&["stop", "g"]).ok();
    let file = world.file("h", "", "ready.agent = true");
    let refused = world.vmctl(&["check", file.to_str().expect("UTF-8")]);
    refused.fails(1, "`ready.agent` waits for an agent").says("add `agent = true`");
}
