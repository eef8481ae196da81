//! `vmctl switch`, on a host whose ifconfig(8) keeps its interfaces in files.

use super::world::World;

/// ifconfig(8) with a directory for each interface.
const IFCONFIG: &str = r#"
show() {
    for d in "$STATE"/if/*; do
        printf '%s: flags=8843<%sBROADCAST> metric 0 mtu %s\n' "${d##*/}" "$(cat "$d/up")" "$(cat "$d/mtu")"
        [ -s "$d/description" ] && printf '\tdescription: %s\n' "$(cat "$d/description")"
        while read -r a; do printf '\tinet %s netmask 0xffffff00 broadcast 0\n' "${a%/*}"; done < "$d/inet"
        while read -r m; do printf '\tmember: %s flags=143<LEARNING,DISCOVER>\n' "$m"; done < "$d/member"
        [ -s "$d/vlan" ] && printf '\tvlan: %s\n' "$(cat "$d/vlan")"
    done
}
make() {
    mkdir "$STATE/if/$1"; echo 1500 > "$STATE/if/$1/mtu"
    for f in up description inet member vlan; do : > "$STATE/if/$1/$f"; done
}
without() { grep -v "^$2" "$1" > "$1.new"; mv "$1.new" "$1"; }
words=" $*"; name="${words##* name }"
case "$1" in
-a) show; exit 0 ;;
bridge | vxlan) make "$name" ;;
vlan) make "$name"; echo "$6 vlanproto: 802.1q vlanpcp: 0 parent interface: $4" > "$STATE/if/$name/vlan" ;;
*) name="$1" ;;
esac
d="$STATE/if/$name"; shift
[ -d "$d" ] || { echo "interface does not exist" >&2; exit 1; }
while [ $# -gt 0 ]; do
    case "$1" in
    up) echo UP, > "$d/up" ;;
    down) : > "$d/up" ;;
    destroy) rm -r "$d"; for o in "$STATE"/if/*; do without "$o/member" "${d##*/}\$"; done ;;
    mtu) echo "$2" > "$d/mtu"; shift ;;
    description) echo "$2" > "$d/description"; shift ;;
    group | name) shift ;;
    addm) echo "$2" >> "$d/member"; shift ;;
    deletem) without "$d/member" "$2\$"; shift ;;
    inet) case "$3" in alias) echo "$2" >> "$d/inet" ;; -alias) without "$d/inet" "$2" ;; esac; shift 2 ;;
    esac
    shift
done
exit 0
"#;

/// pfctl(8) that is on and whose main rules are in a file; anchors are files too.
const PFCTL: &str = r#"
case "$*" in
"-s info") cat "$STATE/pf-info" ;;
"-s nat") cat "$STATE/pf-nat" ;;
"-s rules") ;;
*"-f -") cat > "$STATE/anchor-${2#vmctl/}" ;;
*"-F all") rm -f "$STATE/anchor-${2#vmctl/}" ;;
*"-s nat") cat "$STATE/anchor-${2#vmctl/}" 2>/dev/null ;;
esac
"#;

const SYSCTL: &str = r#"case "$1 $2" in
*member_ifaddrs) cat "$STATE/member_ifaddrs" ;;
-n*) cat "$STATE/forwarding" ;;
*) echo "${1#*=}" > "$STATE/forwarding" ;;
esac
"#;

pub fn world(switches: &str) -> World {
    let world = World::new();
    world.program("ifconfig", IFCONFIG);
    world.program("pfctl", PFCTL);
    world.program("route", "[ \"$2\" = get ] && printf '    gateway: 192.0.2.1\\n  interface: em0\\n'; exit 0");
    world.program("sysctl", SYSCTL);
    world.program("netstat", "exit 1");
    std::fs::write(world.state("forwarding"), "0\n").expect("writes");
    std::fs::write(world.state("pf-info"), "Status: Enabled for 1 days 00:00:00\n").expect("writes");
    std::fs::write(world.state("pf-nat"), "nat-anchor \"vmctl/*\" all\n").expect("writes");
    for (name, address) in [("em0", "192.0.2.5/24\n"), ("em1", "")] {
        let directory = world.state("if").join(name);
        std::fs::create_dir_all(&directory).expect("makes");
        for (file, text) in
            [("mtu", "1500\n"), ("up", "UP,\n"), ("description", ""), ("inet", address), ("member", ""), ("vlan", "")]
        {
            std::fs::write(directory.join(file), text).expect("writes");
        }
    }
    world.host_file(switches);
    world
}

const CHANGES: [&str; 7] =
    ["ifconfig bridge", "ifconfig sw", "ifconfig em", "ifconfig vlan", "pfctl -a", "sysctl net", "dnsmasq"];

fn changes(world: &World) -> Vec<String> {
    world.calls_of(&CHANGES).into_iter().filter(|call| !call.contains("-s nat")).collect()
}

pub const LAN: &str = "[[switches]]\nid = \"lan\"\nuplinks = [\"em1\"]\nvlan = 10\naddresses = [\"10.10.0.1/24\"]\n";

#[test]
fn where_bridges_take_no_member_with_an_address_an_uplink_that_keeps_one_is_refused_before_anything_is_done() {
    let world = world("[[switches]]\nid = \"lan\"\nuplinks = [\"em0\"]\n");
    std::fs::write(world.state("member_ifaddrs"), "0\n").expect("writes");
    let said = world.vmctl(&["switch", "create", "lan"]).fails(1, "`em0` has the address `192.0.2.5/24`");
    said.says("`addresses = [\"192.0.2.5/24\"]` of switch `lan`").says("`sysctl net.link.bridge.member_ifaddrs=1`");
    assert!(changes(&world).is_empty());
    std::fs::write(world.state("member_ifaddrs"), "1\n").expect("writes");
    world.vmctl(&["switch", "create", "lan", "--yes"]).ok();
}

#[test]
fn a_switch_is_made_once_shown_and_unmade() {
    let world = world(LAN);
    world.vmctl(&["switch", "list"]).ok().says("lan   bridge  down");
    world
        .vmctl(&["switch", "plan"])
        .fails(2, "")
        .says("ifconfig bridge create description 'vmctl switch lan' group vmctl up name sw-lan");
    assert!(changes(&world).is_empty());
    world.vmctl(&["switch", "create", "lan"]).ok().says("lan is made");
    assert_eq!(
        changes(&world),
        [
            "ifconfig bridge create description vmctl switch lan group vmctl up name sw-lan",
            "ifconfig vlan create vlandev em1 vlan 10 description vmctl switch lan group vmctl up name em1.10",
            "ifconfig sw-lan addm em1.10",
            "ifconfig sw-lan inet 10.10.0.1/24 alias",
        ]
    );
    world.vmctl(&["switch", "create", "--all"]).ok().says("lan is there");
    world.vmctl(&["switch", "plan", "lan"]).ok().says("nothing to do");
    assert!(changes(&world).is_empty());
    let said = world.vmctl(&["switch", "list", "-o", "json"]).ok();
    let document: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(document["items"][0]["state"], "up");
    assert_eq!(document["items"][0]["addresses"][0], "10.10.0.1/24");
    world.vmctl(&["switch", "info", "lan"]).ok().says("uplinks    em1 vlan 10");
    world.vmctl(&["switch", "destroy", "lan"]).ok().says("lan is gone");
    assert_eq!(changes(&world), ["ifconfig sw-lan destroy", "ifconfig em1.10 destroy"]);
    world.vmctl(&["switch", "destroy", "lan"]).ok();
    assert!(changes(&world).is_empty());
}

#[test]
fn each_step_that_fails_leaves_the_host_as_it_was() {
    let switches = format!("{LAN}mtu = 9000\nnat = true\n");
    for step in
        ["bridge create", "em1 mtu", "vlan create", "addm em1.10", "sw-lan mtu", "inet 10.10.0.1/24", "-f -", "forwarding=1"]
    {
        let world = world(&switches);
        world.fail(step);
        world.vmctl(&["switch", "create", "lan"]).fails(1, "told to fail");
        let interfaces: Vec<String> = std::fs::read_dir(world.state("if"))
            .expect("lists")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        assert_eq!(interfaces.len(), 2, "{step}: {interfaces:?}");
        let read = |file: &str| std::fs::read_to_string(world.state(file)).unwrap_or_default();
        assert_eq!(read("if/em1/mtu"), "1500\n", "{step}");
        assert_eq!(read("anchor-lan"), "", "{step}");
        assert_eq!(read("forwarding"), "0\n", "{step}");
    }
}

#[test]
fn nat_needs_the_anchor_line_and_says_which() {
    let world = world("[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\nnat = true\n");
    std::fs::write(world.state("pf-nat"), "").expect("writes");
    world.vmctl(&["switch", "create", "lan"]).fails(1, "pf's rules do not name its anchor").says("nat-anchor \"vmctl/*\"");
    assert!(changes(&world).is_empty());
    std::fs::write(world.state("pf-nat"), "nat-anchor \"vmctl/*\" all\n").expect("writes");
    world.vmctl(&["switch", "create", "lan"]).ok().says("gateway_enable=YES");
    let rules = std::fs::read_to_string(world.state("anchor-lan")).expect("loaded");
    assert!(rules.starts_with("nat on em0 inet from 10.10.0.0/24 to ! 10.10.0.0/24 -> (em0:0)\n"), "{rules}");
    world.vmctl(&["switch", "plan"]).ok();
    world.vmctl(&["switch", "destroy", "lan"]).ok();
    assert!(!world.state("anchor-lan").exists());
}

#[test]
fn dhcp_is_served_by_a_dnsmasq_of_its_own() {
    let switches = "[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\ndhcp = \"10.10.0.100-10.10.0.199\"\n";
    let world = world(switches);
    world.vmctl(&["switch", "create", "lan"]).fails(1, "dnsmasq(8) is not installed").says("pkg install dnsmasq");
    assert!(changes(&world).is_empty());
    world.program("dnsmasq", "sed -n 's/^pid-file=//p' \"${1#--conf-file=}\" | while read -r f; do echo 4242 > \"$f\"; done");
    world.program(
        "ps",
        "[ -f \"$STATE/gone\" ] || echo \"dnsmasq --conf-file=$(dirname \"$STATE\")/run/switches/lan/dnsmasq.conf\"",
    );
    world.program("kill", ": > \"$STATE/gone\"");
    world.vmctl(&["switch", "create", "lan"]).ok();
    let config = std::fs::read_to_string(world.path().join("run/switches/lan/dnsmasq.conf")).expect("written");
    assert!(config.contains("\ninterface=sw-lan\n") && config.contains("\ndhcp-range=10.10.0.100,10.10.0.199,255.255.255.0,"));
    world.vmctl(&["switch", "list", "-o", "wide"]).ok().says("10.10.0.100-10.10.0.199 (runs)");
    world.vmctl(&["switch", "create", "lan"]).ok().says("lan is there");
    world.calls();
    world.vmctl(&["switch", "destroy", "lan"]).ok();
    assert_eq!(world.calls_of(&["kill"]), ["kill 4242"]);
    assert!(!world.path().join("run/switches/lan/dnsmasq.conf").exists());
}

#[test]
fn the_network_of_the_session_is_not_cut_without_a_word() {
    let world = world("[[switches]]\nid = \"lan\"\nuplinks = [\"em0\"]\naddresses = [\"192.0.2.5/24\"]\n");
    let session = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env("SSH_CONNECTION", "203.0.113.9 50022 192.0.2.5 22");
        super::world::Said::from(command.output().expect("runs"))
    };
    let said = session(&["switch", "create", "lan"]).fails(1, "this session's own network could be cut");
    said.says("moves from `em0` to `sw-lan`").says("--yes");
    assert!(changes(&world).is_empty());
    session(&["switch", "create", "lan", "--yes"]).ok();
    assert_eq!(std::fs::read_to_string(world.state("if/sw-lan/inet")).expect("reads"), "192.0.2.5/24\n");
    assert_eq!(std::fs::read_to_string(world.state("if/em0/inet")).expect("reads"), "");
    assert!(world.calls().contains(&"route -n add default 192.0.2.1".to_owned()));
    session(&["switch", "destroy", "lan"]).fails(1, "could be cut");
    session(&["switch", "destroy", "lan", "--yes"]).ok();
    assert_eq!(std::fs::read_to_string(world.state("if/em0/inet")).expect("reads"), "192.0.2.5/24\n");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_changed() {
    let world = world(
        "[[switches]]\nid = \"up\"\nuplinks = [\"igb9\"]\n\
         [[switches]]\nid = \"mine\"\ntype = \"manual\"\nbridge = \"bridge9\"\n\
         [[switches]]\nid = \"ng\"\ntype = \"netgraph\"\nbridge = \"bnet0\"\n\
         [[switches]]\nid = \"dup\"\naddresses = [\"192.0.2.5/24\"]\n",
    );
    world
        .vmctl(&["switch", "create", "up"])
        .fails(1, "uplink `igb9`, and there is no such interface")
        .says("there are: em0, em1");
    world.vmctl(&["switch", "create", "mine"]).fails(1, "is the bridge `bridge9`, and there is none");
    world.vmctl(&["switch", "create", "ng"]).fails(1, "netgraph node `bnet0`");
    world.vmctl(&["switch", "create", "dup"]).fails(1, "is on `em0` already");
    world.vmctl(&["switch", "create", "none"]).fails(1, "no switch is called `none`").says("`up`, `mine`");
    assert!(changes(&world).is_empty());
    world.vmctl(&["switch", "list"]).ok().says("wrong");
}

#[test]
fn a_switch_that_guests_are_on_stays() {
    let world = world(LAN);
    world.vmctl(&["switch", "create", "lan"]).ok();
    std::fs::write(world.state("if/sw-lan/member"), "em1.10\ntap3\n").expect("writes");
    world.vmctl(&["switch", "destroy", "lan"]).fails(1, "in use by tap3").says("--force");
    world.vmctl(&["switch", "destroy", "lan", "--force"]).ok();
}

#[test]
fn private_vxlan_and_vale_switches_are_made() {
    let world = world(
        "[[switches]]\nid = \"far\"\ntype = \"vxlan\"\nvni = 42\nuplinks = [\"em0\"]\n\
         [[switches]]\nid = \"fast\"\ntype = \"vale\"\nuplinks = [\"em1\"]\n",
    );
    // As the real one does, it lists with status 1, and refuses a port that is there.
    let valectl = "case \"$1\" in -h) grep -q \"^$2 \" \"$STATE/vale\" 2>/dev/null && exit 1\n\
         echo \"$2 bridge_idx 0 port_idx 0\" >> \"$STATE/vale\" ;;\n\
         -d) rm \"$STATE/vale\" ;; *) cat \"$STATE/vale\" 2>/dev/null; exit 1 ;; esac";
    world.program("valectl", valectl);
    world.vmctl(&["switch", "create", "--all"]).ok();
    let calls = world.calls();
    let vxlan = "ifconfig vxlan create vxlanid 42 vxlanlocal 192.0.2.5 vxlangroup 239.0.0.42 vxlandev em0 \
                 description vmctl switch far group vmctl up name vx-far";
    assert!(calls.contains(&vxlan.to_owned()), "{calls:?}");
    assert!(calls.contains(&"valectl -h vale-fast:em1".to_owned()), "{calls:?}");
    world.vmctl(&["switch", "plan"]).ok();
    world.vmctl(&["switch", "create", "fast"]).ok();
    assert!(!world.calls().contains(&"valectl -h vale-fast:em1".to_owned()), "it is attached already");
    world.vmctl(&["switch", "destroy", "--all"]).ok();
    let calls = world.calls();
    assert!(calls.contains(&"valectl -d vale-fast:em1".to_owned()) && calls.contains(&"ifconfig vx-far destroy".to_owned()));
}

/// ngctl(8) with a file for each node: a line for each hook, with the other node and its hook.
const NGCTL: &str = r#"
n="$STATE/ng"; mkdir -p "$n"
fail() { echo "ngctl: send msg: No such file or directory" >&2; exit 71; }
case "$1" in
show)
    f="$n/${2%:}"; [ -e "$f" ] || fail
    printf '  Name: %-15s Type: %-15s ID: 00000001   Num hooks: %s\n' "${2%:}" bridge "$(grep -c . "$f")"
    [ -s "$f" ] || exit 0
    printf '  Local hook  Peer name  Peer type  Peer ID  Peer hook\n  ---  ---  ---  ---  ---\n'
    while read -r hook peer end; do printf '  %-15s %-15s %-12s %-15s %-15s\n' "$hook" "$peer" ether 00000002 "$end"; done < "$f"
    exit 0 ;;
shutdown) rm "$n/${2%:}" || fail; exit 0 ;;
esac
while read -r verb a b c d; do
    case "$verb" in
    mkpeer) ;;
    name) : > "$n/$b" ;;
    connect) f="$n/${b%:}"; [ -e "$f" ] || fail; echo "$d ${a%:} $c" >> "$f" ;;
    rmhook) for f in "$n"/*; do grep -v " ${a%:} $b\$" "$f" > "$STATE/ng.new"; mv "$STATE/ng.new" "$f"; done ;;
    # As the real one does, an ng_ether(4) node without hooks is made anew, and a message finds none meanwhile.
    msg) case "$a" in vmctl-*) ;; *) cat "$n"/* | grep -q " ${a%:} " || fail ;; esac; echo "$a $b $c" >> "$STATE/ng-messages" ;;
    esac
done
"#;

#[test]
fn a_netgraph_node_is_made_with_its_uplinks_shown_and_unmade() {
    let world = world("[[switches]]\nid = \"ng\"\ntype = \"netgraph\"\nuplinks = [\"em1\"]\nvlan = 10\n");
    world.program("ngctl", NGCTL);
    world.program("kldload", "");
    world.vmctl(&["switch", "list"]).ok().says("ng    netgraph  down");
    world.vmctl(&["switch", "create", "ng"]).ok().says("ng is made");
    let node = world.state("ng/vmctl-ng");
    assert_eq!(std::fs::read_to_string(&node).expect("made"), "link0 em1_10 lower\nlink1 em1_10 upper\n");
    let messages = std::fs::read_to_string(world.state("ng-messages")).expect("sent");
    assert_eq!(messages, "vmctl-ng: setpersistent \nem1_10: setpromisc 1\nem1_10: setautosrc 0\n");
    world.vmctl(&["switch", "list"]).ok().says("ng    netgraph  up");
    world.vmctl(&["switch", "plan"]).ok().says("nothing to do");
    // A guest: bhyve's node has a name of its own or none.
    std::fs::write(&node, "link0 em1_10 lower\nlink1 em1_10 upper\nlink2 <unnamed> vmlink\n").expect("writes");
    world.vmctl(&["switch", "info", "ng"]).ok().says("ports      <unnamed>:vmlink");
    world.vmctl(&["switch", "destroy", "ng"]).fails(1, "in use by <unnamed>:vmlink").says("--force");
    world.vmctl(&["switch", "destroy", "ng", "--force"]).ok();
    assert!(!node.exists() && !world.state("if/em1.10").exists());
    let messages = std::fs::read_to_string(world.state("ng-messages")).expect("sent");
    assert!(messages.ends_with("em1_10: setpromisc 0\nem1_10: setautosrc 1\n"), "{messages}");
    world.vmctl(&["switch", "destroy", "ng"]).ok();
}

#[test]
fn a_switch_takes_the_place_of_another_managers_bridge() {
    let world = world("[[switches]]\nid = \"lan\"\nuplinks = [\"em1\"]\naddresses = [\"10.0.0.1/24\"]\n");
    let old = world.state("if/vm-lan");
    std::fs::create_dir_all(&old).expect("makes");
    let make_old = || {
        for (file, text) in [
            ("mtu", "1500\n"),
            ("up", "UP,\n"),
            ("description", ""),
            ("inet", "10.0.0.1/24\n"),
            ("member", "em1\n"),
            ("vlan", ""),
        ] {
            std::fs::write(old.join(file), text).expect("writes");
        }
    };
    make_old();
    world.vmctl(&["switch", "create", "lan"]).fails(1, "`em1` of switch `lan` is a member of `vm-lan` already");
    std::fs::write(old.join("member"), "em1\ntap4\n").expect("writes");
    world.vmctl(&["switch", "create", "lan", "--take-over", "vm-lan"]).fails(1, "`vm-lan` is in use by tap4").says("vm stopall");
    make_old();
    world.fail("sw-lan inet");
    world.vmctl(&["switch", "create", "lan", "--take-over", "vm-lan"]).fails(1, "told to fail");
    let read = |file: &str| std::fs::read_to_string(old.join(file)).unwrap_or_default();
    assert_eq!((read("inet").as_str(), read("member").as_str()), ("10.0.0.1/24\n", "em1\n"));
    world.fail("");
    world.vmctl(&["switch", "create", "lan", "--take-over", "vm-lan"]).ok().says("lan is made");
    assert!(!old.exists());
    assert_eq!(std::fs::read_to_string(world.state("if/sw-lan/inet")).expect("reads"), "10.0.0.1/24\n");
    world.vmctl(&["switch", "create", "lan", "--take-over", "vm-lan"]).ok().says("lan is there");
}
