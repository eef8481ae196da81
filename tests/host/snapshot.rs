//! `vmctl snapshot`, `snapshots` and `rollback`.

use vmctl::testing::guest::lock::{GuestLock, Role};

use super::world::World;

/// zfs(8) with two volumes, snapshots in a file and one second between any two.
const ZFS: &str = r#"
case "$1" in
list)
    case "$*" in
    *"-t snapshot"*)
        for last in "$@"; do :; done
        n=0
        while read -r name; do
            n=$((n + 1))
            case "$name" in "$last"@*) printf '%s\t4096\t%s\n' "$name" "$((1790000000 + n))" ;; esac
        done < "$STATE/snapshots" ;;
    *) echo tank/vm ;;
    esac ;;
get) echo /tank/vm ;;
snapshot) [ "$2" = -r ] && shift; shift; for name in "$@"; do echo "$name" >> "$STATE/snapshots"; done ;;
destroy) grep -vxF "$3" "$STATE/snapshots" > "$STATE/new"; mv "$STATE/new" "$STATE/snapshots" ;;
esac
"#;

const GUEST: &str = "kernel.image = \"/kernel\"\n\
                     [[disks]]\nid = \"root\"\npath = \"/dev/zvol/tank/vm/web-root\"\n\
                     [[disks]]\nid = \"data\"\npath = \"/dev/zvol/tank/vm/web-data\"\n";

fn world() -> World {
    let world = World::new();
    world.program("zfs", ZFS);
    std::fs::write(world.state("snapshots"), "").expect("writes");
    world.guest("web", GUEST);
    world
}

#[test]
fn all_volumes_of_a_guest_are_snapshot_in_one_call() {
    let world = world();
    world.vmctl(&["snapshot", "web", "before"]).ok().says("web: snapshot before");
    assert_eq!(world.calls_of(&["zfs snapshot"]), ["zfs snapshot -r tank/vm/web-root@before tank/vm/web-data@before"]);
    world.vmctl(&["snapshot", "web"]).ok();
    let said = world.vmctl(&["snapshots", "web", "-o", "json"]).ok();
    let document: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(document["items"].as_array().expect("items").len(), 2);
    assert_eq!(document["items"][0]["name"], "before");
    assert_eq!(document["items"][0]["used_bytes"], 8192);
    assert_eq!(document["items"][0]["complete"], true);
}

#[test]
fn a_snapshot_or_a_rollback_that_was_killed_at_any_call_is_finished_by_the_same_command() {
    const BACK: [&str; 2] = ["zfs rollback tank/vm/web-root@one", "zfs rollback tank/vm/web-data@one"];
    const BACK_PAST_NEWER: [&str; 2] = ["zfs rollback -r tank/vm/web-root@one", "zfs rollback -r tank/vm/web-data@one"];
    // What the command looks up, and what it does: it is killed at each call in turn.
    let killed_at_each = |prepare: &[&str], arguments: &[&str], wanted: &[&str]| {
        let trial = world();
        prepare.iter().for_each(|name| drop(trial.vmctl(&["snapshot", "web", name]).ok()));
        trial.calls();
        trial.vmctl(arguments).ok();
        let calls = trial.calls();
        assert!(wanted.iter().all(|call| calls.iter().any(|made| made == call)), "{calls:?}");
        for call in &calls {
            let world = world();
            prepare.iter().for_each(|name| drop(world.vmctl(&["snapshot", "web", name]).ok()));
            let call = &call.replace(trial.path().to_str().expect("UTF-8"), world.path().to_str().expect("UTF-8"));
            world.kill(call);
            let said = world.vmctl(arguments);
            assert_eq!(said.code, None, "{call}: {said:?}");
            world.kill("");
            world.calls();
            let again = world.vmctl(arguments);
            assert_eq!(again.code, Some(0), "{call}: {again:?}");
            let made = world.calls();
            assert!(wanted.iter().all(|call| made.iter().any(|made| made == call)), "{call}: {made:?}");
            // Nothing is held, and nothing half is told of as whole.
            world.vmctl(&["snapshot", "web", "after"]).ok();
            let said = world.vmctl(&["snapshots", "web", "-o", "json"]).ok();
            let document: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
            let items = document["items"].as_array().expect("items");
            assert!(items.iter().all(|item| item["complete"] == true), "{call}: {said:?}");
        }
        calls.len()
    };
    let both = "zfs snapshot -r tank/vm/web-root@new tank/vm/web-data@new";
    assert!(killed_at_each(&["one"], &["snapshot", "web", "new"], &[both]) > 1);
    assert!(killed_at_each(&["one"], &["rollback", "web", "one"], &BACK) > 2);
    assert!(killed_at_each(&["one", "two"], &["rollback", "web", "one", "--destroy-newer"], &BACK_PAST_NEWER) > 2);
}

#[test]
fn going_back_past_a_newer_snapshot_must_be_meant() {
    let world = world();
    world.vmctl(&["snapshot", "web", "one"]).ok();
    world.vmctl(&["snapshot", "web", "two"]).ok();
    world.vmctl(&["rollback", "web", "one"]).fails(1, "would be destroyed: `two`").says("--destroy-newer");
    assert!(world.calls_of(&["zfs rollback"]).is_empty());
    world.vmctl(&["rollback", "web", "one", "--destroy-newer"]).ok();
    assert_eq!(
        world.calls_of(&["zfs rollback"]),
        ["zfs rollback -r tank/vm/web-root@one", "zfs rollback -r tank/vm/web-data@one"]
    );
    world.vmctl(&["rollback", "web", "two"]).ok();
    world.vmctl(&["rollback", "web", "three"]).fails(1, "no snapshot called `three`").says("`one`, `two`");
}

#[test]
fn a_snapshot_that_not_every_disk_has_is_not_gone_back_to() {
    let world = world();
    std::fs::write(world.state("snapshots"), "tank/vm/web-root@half\n").expect("writes");
    world.vmctl(&["rollback", "web", "half"]).fails(1, "not every disk of `web` has the snapshot `half`");
}

#[test]
fn a_running_guest_is_not_taken_back_under_its_own_feet() {
    let world = world();
    world.vmctl(&["snapshot", "web", "one"]).ok();
    let lock = world.path().join("ds/guests/web/lock");
    let _running = GuestLock::acquire(&lock, Role::Supervisor).expect("no error").expect("free");
    world
        .vmctl(&["rollback", "web", "one"])
        .fails(1, "`web` runs, and going back to a snapshot under a running guest damages its file systems")
        .says("--force");
    assert!(world.calls_of(&["zfs rollback"]).is_empty());
    world.vmctl(&["rollback", "web", "one", "--force"]).ok();
    world.vmctl(&["snapshot", "web", "two"]).ok().says("as after a power cut");
}

#[test]
fn snapshot_and_rollback_show_what_they_do_and_say_after_ctrl_c_what_may_be_done() {
    let world = world();
    world.vmctl(&["snapshot", "web", "one"]).ok();
    for (held, arguments, shown, rest) in [
        (
            "zfs snapshot",
            &["snapshot", "web", "two"][..],
            "web: taking a snapshot of its disks, ",
            "the snapshot may have been taken: `vmctl snapshots web` shows it",
        ),
        (
            "zfs rollback",
            &["rollback", "web", "one", "--destroy-newer"],
            "web: rolling its disks back to one, ",
            "some disks of web may be as at one already: `vmctl rollback web one --destroy-newer` rolls back the others",
        ),
        (
            "zfs destroy",
            &["snapshot", "web", "one", "--remove"],
            "web: removing snapshot one, ",
            "one may be gone from some disks of web already: `vmctl snapshot web one --remove` removes the rest",
        ),
    ] {
        world.hold(held);
        let underway = world.until(arguments, shown);
        underway.interrupt();
        let (code, said) = underway.end();
        world.hold("");
        assert!(code == Some(130) && said.contains(&format!("interrupted: {rest}")), "{code:?} {said}");
        world.vmctl(arguments).ok();
    }
}

#[test]
fn snapshots_are_removed_by_name() {
    let world = world();
    world.vmctl(&["snapshot", "web", "one"]).ok();
    world.vmctl(&["snapshot", "web", "one", "--remove"]).ok().says("snapshot one is gone");
    assert_eq!(world.calls_of(&["zfs destroy"]), ["zfs destroy -r tank/vm/web-root@one", "zfs destroy -r tank/vm/web-data@one"]);
    world.vmctl(&["snapshot", "web", "one", "--remove"]).fails(1, "it has none");
}

#[test]
fn what_cannot_be_snapshot_is_said_with_the_reason() {
    let world = world();
    world.vmctl(&["snapshot", "web", "a@b"]).fails(1, "`a@b` is not a name for a snapshot");
    world.guest("sparse", "kernel.image = \"/kernel\"\n[[disks]]\nid = \"root\"\nsize = \"1G\"\n");
    world.vmctl(&["snapshot", "sparse"]).fails(1, "a file in a dataset that is not the guest's own");
    world.guest("bare", "kernel.image = \"/kernel\"\n");
    world.vmctl(&["snapshot", "bare"]).fails(1, "`bare` has nothing in ZFS");
    world.fail("zfs snapshot");
    world.vmctl(&["snapshot", "web", "x"]).fails(1, "told to fail");
    let none = World::new();
    none.guest("web", GUEST);
    none.vmctl(&["snapshot", "web"]).fails(1, "this host has no ZFS").says("vmctl clone");
}

#[test]
fn a_linked_clone_that_fails_leaves_no_snapshot_behind() {
    let world = world();
    world.guest("base", "engine = \"bhyve\"\n[[disks]]\nid = \"root\"\nbackend = \"zvol\"\nsize = \"1G\"\n");
    world.fail("zfs clone");
    world.vmctl(&["clone", "base", "copy", "--linked"]).fails(2, "told to fail");
    assert_eq!(
        world.calls_of(&["zfs snapshot", "zfs clone", "zfs destroy"]),
        [
            "zfs snapshot tank/vm/base-root@vmctl-tank:vm:copy-root",
            "zfs clone -o volmode=dev tank/vm/base-root@vmctl-tank:vm:copy-root tank/vm/copy-root",
            "zfs destroy tank/vm/copy-root",
            "zfs destroy tank/vm/base-root@vmctl-tank:vm:copy-root",
        ]
    );
    assert!(!world.path().join("ds/guests/copy").exists());
    world.vmctl(&["clone", "web", "copy", "--linked"]).fails(1, "only those are linked");
}

#[test]
fn a_destroy_that_is_broken_off_says_how_to_remove_the_rest() {
    let world = world();
    world.guest("base", "engine = \"bhyve\"\n[[disks]]\nid = \"root\"\nbackend = \"zvol\"\nsize = \"1G\"\n");
    world.hold("zfs destroy");
    let underway = world.until(&["destroy", "base", "--yes"], "base: removing it and its disks, ");
    underway.interrupt();
    let (code, said) = underway.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("interrupted: base may be half removed: `vmctl destroy base` removes what is left of it"), "{said}");
    world.hold("");
    world.vmctl(&["destroy", "base", "--yes"]).ok().says("base is gone");
    assert!(!world.path().join("ds/guests/base").exists());
}
