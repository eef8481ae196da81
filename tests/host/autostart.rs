//! `vmctl autostart` with rc.conf(5), and the rc.d script.

use std::process::Command;

use super::world::World;

/// sysrc(8) with a file for each variable.
const SYSRC: &str = r#"
case "$1" in
-i) cat "$STATE/rc-$3" 2>/dev/null || exit 1 ;;
*=*) echo "${1#*=}" > "$STATE/rc-${1%%=*}" ;;
esac
"#;

fn world() -> World {
    let world = World::new();
    world.program("sysrc", SYSRC);
    for name in ["web", "db"] {
        world.guest(name, "engine = \"bhyve\"\n");
    }
    world.guest("always", "engine = \"bhyve\"\nautostart = true\n");
    world
}

#[test]
fn guests_are_kept_in_the_list_of_rc_conf() {
    let world = world();
    world.vmctl(&["autostart", "enable", "web", "db"]).ok().says("web starts with this host").says("vmctl host setup");
    assert_eq!(world.calls_of(&["sysrc vmctl_list"]), ["sysrc vmctl_list=web db"]);
    world.vmctl(&["autostart", "enable", "web"]).ok();
    assert!(world.calls_of(&["sysrc vmctl_list"]).is_empty());
    world.vmctl(&["autostart", "enable", "nobody"]).fails(1, "nobody");
    world.vmctl(&["autostart", "list"]).ok().says("always").says("web").says("db");
    world.vmctl(&["autostart", "disable", "web"]).ok().says("web does not start");
    assert_eq!(world.calls_of(&["sysrc vmctl_list"]), ["sysrc vmctl_list=db"]);
    world.vmctl(&["autostart", "list"]).ok().does_not_say("web");
    world.vmctl(&["autostart", "disable", "always"]).fails(1, "since its file says so");
    world.vmctl(&["autostart", "disable"]).ok();
    assert_eq!(world.calls_of(&["sysrc vmctl_enable"]), ["sysrc vmctl_enable=NO"]);
}

#[test]
fn vm_bhyves_script_beside_ours_is_warned_of() {
    let world = world();
    world.vmctl(&["autostart", "enable", "web"]).ok().does_not_say("vm_enable");
    std::fs::write(world.state("rc-vm_enable"), "YES\n").expect("writes");
    world.vmctl(&["autostart", "enable", "web"]).ok().says("vm-bhyve's `vm_enable` is on").says("sysrc vm_enable=NO");
    world.vmctl(&["doctor"]).says("vm-bhyve's `vm_enable` is on").says("sysrc vm_enable=NO");
}

/// Runs the rc.d script with an rc.subr(8) that does no more than it needs.
fn script(world: &World, argument: &str, settings: &str) -> Vec<String> {
    let subr = world.path().join("rc.subr");
    let text = format!(
        "load_rc_config() {{ {settings} :; }}\nrun_rc_command() {{ case $1 in start) $start_cmd ;; stop) $stop_cmd ;; \
         status) $status_cmd ;; esac; }}\n"
    );
    std::fs::write(&subr, text).expect("writes");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/rc.d/vmctl");
    let text = std::fs::read_to_string(source).expect("it is part of the source");
    // The script's own path of programs is the system's; here the recording one comes first.
    let text = text.replace("/etc/rc.subr", subr.to_str().expect("UTF-8"));
    let copy = world.path().join("script");
    std::fs::write(&copy, text).expect("writes");
    world.program("vmctl", "");
    let said = Command::new("sh")
        .arg(&copy)
        .arg(argument)
        .env("STATE", world.path().join("state"))
        .env("vmctl_path", world.path().join("bin/vmctl"))
        .output()
        .expect("runs");
    assert!(said.status.success(), "{said:?}");
    world.calls_of(&["vmctl"])
}

#[test]
fn the_script_makes_switches_then_starts_guests_and_stops_them_in_time() {
    let world = world();
    assert_eq!(script(&world, "start", ""), ["vmctl switch create --all --yes", "vmctl autostart start"]);
    assert_eq!(script(&world, "stop", ""), ["vmctl down --all --timeout 75s"]);
    assert_eq!(script(&world, "stop", "rcshutdown_timeout=300;"), ["vmctl down --all --timeout 285s"]);
    assert_eq!(script(&world, "stop", "rcshutdown_timeout=8;"), ["vmctl down --all --timeout 5s"]);
    assert_eq!(script(&world, "stop", "vmctl_stop_timeout=20;"), ["vmctl down --all --timeout 20s"]);
    assert_eq!(script(&world, "status", ""), ["vmctl list"]);
}
