//! The rc.d script of the tree, run as rc(8), rc.shutdown(8) and service(8) run it, with guests that depend on each
//! other.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::{NIC, Said, World};

/// What the script uses of `libexec/rc/rc.subr`: rc.conf(5) is read; without `rcvar` set to yes only the `one` forms
/// and `status` are carried out, and the `fast` form of rc.shutdown(8) says nothing; a service with a `command`, or `${name}_program`, of which a process exists already
/// is not started; `required_files` must be readable before a start; `restart` is a stop and a start.
const SUBR: &str = r#"
checkyesno() {
	eval _value=\$$1
	case $_value in [Yy][Ee][Ss] | [Tt][Rr][Uu][Ee] | [Oo][Nn] | 1) return 0 ;; esac
	return 1
}
load_rc_config() { rcshutdown_timeout=90; . "$RC_CONF"; }
run_rc_command() {
	_arg=${1#one}
	_arg=${_arg#fast}
	eval _command=\${${name}_program:-$command}
	if [ "$_arg" = start ] && [ -n "$_command" ] && pgrep -f "$_command" >/dev/null; then
		echo "$name already running?" >&2
		return 1
	fi
	if [ "$_arg" = status ]; then $status_cmd; return; fi
	if [ "$1" = "${1#one}" ] && ! checkyesno "$rcvar"; then
		[ "$1" = "${1#fast}" ] || return 0
		echo "Cannot '$1' $name. Set $rcvar to YES in /etc/rc.conf or use 'one$1' instead of '$1'."
		return 0
	fi
	case $_arg in
	start)
		for _file in $required_files; do
			[ -r "$_file" ] || { echo "$name: $_file is not readable." >&2; return 1; }
		done
		$start_cmd ;;
	stop) $stop_cmd ;;
	restart) run_rc_command onestop; run_rc_command onestart ;;
	*) echo "$0: unknown directive '$1'" >&2; return 1 ;;
	esac
}
"#;

/// Runs the script.
fn service(world: &World, argument: &str) -> Said {
    let root = world.root();
    let file = |name: &str, text: &str| {
        fs::write(root.join(name), text).expect("writes");
        root.join(name).display().to_string()
    };
    let subr = file("rc.subr", SUBR);
    let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/rc.d/vmctl")).expect("it is part of the source");
    // The path of programs is the system's own; here it is the made-up host's.
    let path = format!("PATH={}:/usr/bin:/bin", root.join("bin").display());
    let script = script.replace("/etc/rc.subr", &subr).replace(&script_path(&script), &path);
    let script = file("vmctl-rc", &script);
    let mut command = Command::new("sh");
    // As init(8) runs it: with next to no environment.
    command.arg(script).arg(argument).env_clear().env("PATH", "/usr/bin:/bin").env("VMCTL_HOST_ROOT", &root);
    command.env("RC_CONF", root.join("rc.conf")).env("VMCTL_RUNTIME_DIR", &root);
    command.output().expect("runs").into()
}

/// The script's line that sets the path of programs.
fn script_path(script: &str) -> String {
    script.lines().find(|line| line.starts_with("PATH=")).expect("it sets one").to_owned()
}

fn rc_conf(world: &World, text: &str) {
    let root = world.root();
    let places = format!("vmctl_datastore=\"{0}/ds\"\nvmctl_config=\"{0}/host.toml\"\n", root.display());
    let program = format!("vmctl_path=\"{}\"\n", env!("CARGO_BIN_EXE_vmctl"));
    fs::write(root.join("rc.conf"), format!("{places}{program}{text}")).expect("writes");
}

/// The names of guests in the order in which bhyve was started, or their machines destroyed.
fn order(world: &World, what: &str) -> Vec<String> {
    let changes = world.changes();
    changes
        .iter()
        .filter_map(|call| match what {
            "started" => call.strip_prefix("bhyve ").map(str::to_owned),
            _ => call.strip_prefix("bhyvectl --vm=")?.strip_suffix(" --destroy").map(str::to_owned),
        })
        .collect()
}

/// A database, what uses it, and what uses that; and a guest that nothing starts.
fn three_guests(world: &World) {
    let after = |name: &str| format!("autostart = {{ enabled = true, after = [\"{name}\"] }}\n{NIC}");
    world.make("web", "say:up", &after("app"));
    world.make("app", "say:up", &after("db"));
    world.make("db", "say:up", &format!("autostart = true\n{NIC}"));
    world.make("idle", "say:up", NIC);
}

#[test]
fn guests_start_after_those_that_they_need_and_stop_before_them() {
    let world = World::new();
    three_guests(&world);
    rc_conf(&world, "vmctl_enable=\"YES\"\n");
    // One that was started by hand does not keep the others from being started.
    world.vmctl(&["start", "idle"]).ok();
    world.forget_calls();
    service(&world, "start").ok().says("db is running");
    assert_eq!(order(&world, "started"), ["db", "app", "web"]);
    let status = service(&world, "status").ok();
    for (name, state) in [("web", "running"), ("app", "running"), ("db", "running"), ("idle", "running")] {
        assert!(status.out.lines().any(|line| line.contains(name) && line.contains(state)), "{name}: {}", status.out);
    }
    world.forget_calls();
    world.vmctl(&["stop", "idle"]).ok();
    world.forget_calls();
    service(&world, "faststop")
        .ok()
        .says("Stopping guests within 75 seconds")
        .says("web has stopped: the guest shut itself down");
    assert_eq!(order(&world, "stopped"), ["web", "app", "db"]);
    world.nothing_is_left();
}

#[test]
fn what_rc_conf_lists_starts_too_and_without_vmctl_enable_nothing_does() {
    let world = World::new();
    three_guests(&world);
    rc_conf(&world, "vmctl_list=\"idle\"\n");
    service(&world, "start").ok().says("Set vmctl_enable to YES");
    let said = service(&world, "faststop").ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
    assert_eq!(order(&world, "started"), Vec::<String>::new());
    // sysrc(8) tells the program what the list is, as rc.conf(5) has it.
    fs::write(world.state("rc-vmctl_list"), "idle").expect("writes");
    service(&world, "onestart").ok();
    let mut started = order(&world, "started");
    started.sort();
    assert_eq!(started, ["app", "db", "idle", "web"]);
    service(&world, "onestop").ok();
    world.nothing_is_left();
}

#[test]
fn a_guest_that_does_not_shut_down_is_powered_off_within_the_time_of_the_shutdown() {
    let world = World::new();
    world.make("db", "say:up", &format!("autostart = true\n{NIC}"));
    world.make(
        "web",
        "deaf say:up",
        &format!("stop_timeout = \"5m\"\nautostart = {{ enabled = true, after = [\"db\"] }}\n{NIC}"),
    );
    rc_conf(&world, "vmctl_enable=\"YES\"\nrcshutdown_timeout=25\n");
    service(&world, "start").ok();
    let started = Instant::now();
    world.forget_calls();
    service(&world, "stop")
        .ok()
        .says("Stopping guests within 10 seconds")
        .says("web has stopped: the guest did not shut down in time and was powered off");
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    assert_eq!(order(&world, "stopped"), ["web", "db"]);
    world.nothing_is_left();
}

#[test]
fn a_program_that_is_not_where_rc_conf_says_is_named() {
    let world = World::new();
    rc_conf(&world, "vmctl_enable=\"YES\"\nvmctl_path=\"/nowhere/vmctl\"\n");
    service(&world, "start").fails("/nowhere/vmctl is not readable");
}

#[test]
fn autostart_is_kept_with_sysrc_and_says_where_the_guests_are() {
    let world = World::new();
    three_guests(&world);
    world.forget_calls();
    world.vmctl(&["autostart", "enable", "idle"]).ok().says("idle starts with this host");
    let root = world.root();
    let calls: Vec<String> = world.calls().into_iter().filter(|call| call.starts_with("sysrc vmctl_")).collect();
    assert_eq!(
        calls,
        [
            format!("sysrc vmctl_config={}", root.join("host.toml").display()),
            format!("sysrc vmctl_datastore={}", root.join("ds").display()),
            "sysrc vmctl_list=idle".to_owned()
        ]
    );
    let list = world.vmctl(&["autostart", "list"]).ok().out;
    for name in ["web", "app", "db", "idle"] {
        assert!(list.contains(name), "{list}");
    }
    world.forget_calls();
    world.vmctl(&["autostart", "disable", "idle"]).ok();
    world.vmctl(&["autostart", "disable"]).ok();
    let calls: Vec<String> = world.calls().into_iter().filter(|call| call.starts_with("sysrc vmctl_")).collect();
    assert_eq!(calls, ["sysrc vmctl_list=", "sysrc vmctl_enable=NO"]);
    assert!(!world.vmctl(&["autostart", "list"]).ok().out.contains("idle"));
}

#[test]
fn an_rc_conf_that_cannot_be_written_is_said() {
    let world = World::new();
    world.make("g", "say:up", "");
    std::fs::write(world.state("rc-read-only"), "").expect("writes");
    world.vmctl(&["autostart", "enable", "g"]).fails("Read-only file system");
}
