//! What is shown while a command waits: on a terminal, in a log, and after Ctrl-C.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::console::Terminal;
use crate::world::World;

/// `vmctl` on a terminal of 100 columns.
fn on_terminal(world: &World, arguments: &[&str]) -> Terminal {
    let vmctl = world.command(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", "stty cols 100 rows 30 && exec \"$@\"", "sh"]).arg(vmctl.get_program()).args(vmctl.get_args());
    command.env_clear().envs(vmctl.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
    command.current_dir(world.path());
    Terminal::of(&mut command)
}

#[test]
fn a_start_on_a_terminal_shows_what_it_waits_for_and_the_consoles_last_line() {
    let world = World::new();
    world.make("g", "say:Starting_sshd sleep:3000 say:login:", "ready = { console = \"login:\" }");
    let mut terminal = on_terminal(&world, &["start", "g", "--wait", "--timeout", "90s"]);
    terminal.wait_for("waiting for its login prompt, 1 s of 90 s: Starting sshd");
    terminal.wait_for("g is ready after 3 s: vmctl console g");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn a_start_in_a_log_prints_a_line_and_nothing_where_nobody_reads_it() {
    let world = World::new();
    let ready = "ready = { console = \"END\" }";
    for name in ["g", "h", "i"] {
        world.make(name, "say:Starting_sshd sleep:4500 say:END", ready);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let said = world.vmctl(&["start", "g", "--wait"]).ok().says("g: waiting for `END` on its console, 3 s of ");
            said.says("s: Starting sshd").says("g is ready after 4 s: vmctl console g");
        });
        scope.spawn(|| assert_eq!(world.vmctl(&["-q", "start", "h", "--wait"]).ok().err, ""));
        scope.spawn(|| assert_eq!(world.vmctl(&["-o", "json", "start", "i", "--wait"]).ok().err, ""));
    });
}

#[test]
fn ctrl_c_ends_the_wait_and_says_what_goes_on() {
    let world = World::new();
    world.make("g", "deaf say:booting", "ready = { console = \"END\" }\nstop_timeout = \"60s\"");
    let mut terminal = on_terminal(&world, &["start", "g", "--wait"]);
    terminal.wait_for("booting");
    terminal.signal(Signal::SIGINT);
    terminal.wait_for("interrupted: g keeps running: `vmctl wait g` waits again, `vmctl stop g` stops it");
    assert_eq!(terminal.code(), Some(130));
    assert_eq!(world.word("g"), "running");
    for arguments in [&["stop", "g"][..], &["down", "g"]] {
        let mut terminal = on_terminal(&world, arguments);
        terminal.wait_for("shutting down, 1 s");
        terminal.signal(Signal::SIGINT);
        terminal.wait_for(
            "interrupted: g goes on shutting down, and is powered off when its time is over: `vmctl wait g --for stopped`",
        );
        assert_eq!(terminal.code(), Some(130));
    }
    // What it says is true.
    assert_eq!(world.word("g"), "stopping");
    world.vmctl(&["stop", "--force", "g"]).ok();
}
