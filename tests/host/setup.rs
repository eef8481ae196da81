//! `vmctl host setup`, `vmctl jail` and `vmctl doctor`.

use super::world::World;

/// sysrc(8) with a file for each variable; `-R DIR` is passed over.
const SYSRC: &str = r#"
[ "$1" = -R ] && shift 2
case "$1" in
-i) cat "$STATE/rc-$3" 2>/dev/null || exit 1 ;;
*+=*) old=$(cat "$STATE/rc-${1%%+=*}" 2>/dev/null); echo "${old:+$old }${1#*+=}" > "$STATE/rc-${1%%+=*}" ;;
*=*) echo "${1#*=}" > "$STATE/rc-${1%%=*}" ;;
esac
"#;

fn world() -> (World, String) {
    let world = World::new();
    world.program("sysrc", SYSRC);
    world.program("sysctl", "echo 'Intel(R) Xeon(R)'");
    let root = world.path().join("root");
    for directory in ["etc", "boot"] {
        std::fs::create_dir_all(root.join(directory)).expect("makes");
    }
    let root = root.to_str().expect("UTF-8").to_owned();
    (world, root)
}

#[test]
fn what_a_host_needs_is_shown_first_and_written_once() {
    let (world, root) = world();
    std::fs::write(world.state("rc-kld_list"), "nmdm fusefs\n").expect("writes");
    std::fs::write(format!("{root}/etc/sysctl.conf"), "# mine\nvfs.usermount=1\n").expect("writes");
    let said = world.vmctl(&["host", "setup", "--root", &root]).fails(2, "nothing was written");
    let said = said.says("kld_list=\"nmdm fusefs vmm\"").says("vmctl_enable=\"YES\"").says("net.link.tap.up_on_open=1");
    said.does_not_say("loader.conf");
    assert!(!std::path::Path::new(&format!("{root}/usr/local/etc/rc.d/vmctl")).exists());
    world.vmctl(&["host", "setup", "--root", &root, "--write"]).ok();
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(read(&format!("{root}/etc/sysctl.conf")), "# mine\nvfs.usermount=1\nnet.link.tap.up_on_open=1\n");
    assert_eq!(read(world.state("rc-kld_list").to_str().expect("UTF-8")), "nmdm fusefs vmm\n");
    assert_eq!(read(world.state("rc-vmctl_enable").to_str().expect("UTF-8")), "YES\n");
    assert!(read(&format!("{root}/usr/local/etc/rc.d/vmctl")).starts_with("#!/bin/sh\n"));
    world.vmctl(&["host", "setup", "--root", &root]).ok().says("nothing is missing");
}

#[test]
fn what_guests_and_switches_use_is_set_up_too() {
    let (world, root) = world();
    std::fs::write(format!("{root}/boot/loader.conf"), "pptdevs=\"1/0/0\"\n").expect("writes");
    world.guest(
        "big",
        "engine = \"bhyve\"\nstop_timeout = \"5m\"\nlimits.cpu_percent = 200\n[[passthru]]\nid = \"nic\"\ndevice = \"5/0/0\"\n",
    );
    world.host_file(
        "[[switches]]\nid = \"lan\"\naddresses = [\"10.0.0.1/24\"]\nnat = true\n\
         [[switches]]\nid = \"old\"\ntype = \"manual\"\nbridge = \"bridge0\"\n",
    );
    let said = world.vmctl(&["host", "setup", "--root", &root, "--write"]).ok();
    said.says("applies after the next boot");
    let loader = std::fs::read_to_string(format!("{root}/boot/loader.conf")).expect("reads");
    assert_eq!(loader, "pptdevs=\"1/0/0 5/0/0\"\nkern.racct.enable=\"1\"\nvmm_load=\"YES\"\n");
    for (name, text) in [
        ("gateway_enable", "YES\n"),
        ("pf_enable", "YES\n"),
        ("cloned_interfaces", "bridge0\n"),
        ("kld_list", "nmdm\n"),
        ("rcshutdown_timeout", "330\n"),
    ] {
        assert_eq!(std::fs::read_to_string(world.state(&format!("rc-{name}"))).expect("reads"), text, "{name}");
    }
    let sysctl = std::fs::read_to_string(format!("{root}/etc/sysctl.conf")).expect("reads");
    assert!(sysctl.contains("kern.init_shutdown_timeout=360\n"), "{sysctl}");
    world.vmctl(&["host", "setup", "--root", &root]).ok();
}

#[test]
fn the_pieces_of_a_jail_are_printed_or_written_for_review() {
    let (world, _) = world();
    world.guest(
        "web",
        "engine = \"bhyve\"\njail = { name = \"vms\", root = \"/jails/one\" }\n[[disks]]\nid = \"root\"\npath = \"/dev/zvol/tank/vm/web\"\n",
    );
    let said = world.vmctl(&["jail", "prepare", "web"]).ok();
    let said = said.says("[devfsrules_jail_vms=100]").says("add path 'zvol/tank/vm/web' unhide");
    said.says("path = \"/jails/one\";").says("allow.vmm;");
    let review = world.path().join("review");
    world.vmctl(&["jail", "prepare", "vms", "--ruleset", "120", "--write", review.to_str().expect("UTF-8")]).ok();
    let rules = std::fs::read_to_string(review.join("vms.devfs.rules")).expect("written");
    assert!(rules.starts_with("[devfsrules_jail_vms=120]\n"), "{rules}");
    assert!(std::fs::read_to_string(review.join("vms.jail.conf")).expect("written").contains("devfs_ruleset = 120;"));
}

#[test]
fn doctor_looks_at_what_the_guests_of_this_host_need() {
    let (world, _) = world();
    world.guest(
        "web",
        "engine = \"bhyve\"\nloader = \"grub\"\njail = \"vms\"\nlimits.cpu_percent = 100\n\
         [[disks]]\nid = \"root\"\npath = \"/dev/zvol/tank/vm/web\"\n",
    );
    world.program(
        "sysctl",
        "case \"$2\" in hw.vmm.vmx.initialized|hw.vmm.vmx.cap.unrestricted_guest|hw.vmm.iommu.initialized) echo 1 ;; \
         kern.racct.enable) echo 0 ;; net.link.tap.up_on_open) echo 0 ;; *) exit 1 ;; esac",
    );
    world.program("kldstat", "[ \"$3\" = vmm ]");
    world.program("freebsd-version", "printf '13.2-RELEASE\\n13.2-RELEASE-p1\\n'");
    world.program("uname", "case \"$1\" in -r) echo 13.2-RELEASE ;; *) echo FreeBSD ;; esac");
    world.program("bhyve", "");
    world.program("jls", "echo 'true 100'");
    // Half of what it takes stands in a set that the jail's own includes.
    world.program(
        "devfs",
        "case \"$3\" in 1) echo '100 path vmm unhide' ;; *) printf '100 include 1\\n200 path vmm/* unhide\\n' ;; esac",
    );
    world.program("zfs", "echo all");
    let said = world.vmctl(&["doctor", "-o", "json"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let document: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    let items = document["items"].as_array().expect("items").clone();
    let of = |check: &str| -> Vec<(String, String)> {
        let text = |item: &serde_json::Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        items.iter().filter(|item| item["check"] == check).map(|item| (text(item, "verdict"), text(item, "finding"))).collect()
    };
    assert_eq!(of("freebsd"), [("ok".to_owned(), "13.2-RELEASE".to_owned())]);
    assert_eq!(of("processor"), [("ok".to_owned(), "VT-x with EPT and unrestricted guests".to_owned())]);
    assert_eq!(of("grub-bhyve")[0].0, "bad");
    assert_eq!(of("kern.racct.enable")[0].0, "bad");
    assert_eq!(of("iommu")[0].0, "ok");
    assert!(of("firmware").is_empty() && of("pf").is_empty());
    let jail = &of("jail")[0];
    assert!(jail.0 == "bad" && jail.1.contains("does not unhide `nmdm-vmctl-*`") && jail.1.contains("`zvol/tank`"), "{jail:?}");
    assert!(of("zfs")[0].1.contains("tank/vm/web"));
    assert!(of("module").iter().any(|(verdict, words)| verdict == "ok" && words == "vmm is loaded"));
}

#[test]
fn a_jail_that_does_not_run_is_told_with_how_it_is_started() {
    let (world, _) = world();
    world.guest("web", "engine = \"bhyve\"\njail = \"vms\"\n");
    world.program("jls", "echo 'jls: jail \"vms\" not found' >&2; exit 1");
    world.vmctl(&["doctor"]).fails(1, "service jail onestart vms").says("not found");
}
