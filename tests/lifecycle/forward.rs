//! Forwards that are added and removed while a guest runs, and while it does not.

use std::net::{TcpListener, TcpStream, UdpSocket};

use crate::world::World;

const NETWORK: &str = "nics = [{ id = \"net0\", backend = \"user\" }, { id = \"cut\", backend = \"none\" }]";

/// A port of the host that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound").port()
}

fn text(world: &World) -> String {
    std::fs::read_to_string(world.path().join("g.toml")).expect("reads")
}

fn forwards(world: &World) -> String {
    world.state("g")["forwards"].to_string()
}

#[test]
fn a_forward_is_there_at_once_and_in_the_file_and_goes_in_the_same_way() {
    let world = World::new();
    world.make("g", "", NETWORK);
    world.vmctl(&["start", "g"]).ok();
    let (port, udp) = (free_port(), free_port());
    let typed = format!("{port}:22");
    let said = format!("g: tcp 127.0.0.1:{port} leads to port 22 of the guest: vmctl ssh g");
    world.vmctl(&["forward", "add", "g", &typed]).ok().says(&said);
    TcpStream::connect(("127.0.0.1", port)).expect("the host listens");
    assert!(text(&world).contains(&format!("host_port = {port}")), "{}", text(&world));
    assert!(forwards(&world).contains(&format!("tcp 127.0.0.1:{port} -> 22")), "{}", forwards(&world));
    // The file says what runs.
    assert_eq!(world.state("g")["restart_pending"], false);
    world.vmctl(&["ssh-config", "g"]).ok().says(&format!("Port {port}"));
    world.vmctl(&["forward", "add", "g", &format!("0.0.0.0:{udp}:53/udp")]).ok();
    let listed = world.vmctl(&["forward", "list", "g"]).ok();
    listed.says(&format!("0.0.0.0:{udp}")).says("yes").does_not_say(" no");
    world.vmctl(&["forward", "add", "g", &typed]).fails(1, "has the forward").says("already");
    world.vmctl(&["forward", "remove", "g", &port.to_string()]).ok().says("is removed");
    world.vmctl(&["forward", "remove", "g", &format!("{udp}:53/udp")]).ok();
    assert_eq!(forwards(&world), "[]");
    assert!(!text(&world).contains("forwards"), "{}", text(&world));
    assert_eq!(world.state("g")["restart_pending"], false);
    world.vmctl(&["forward", "remove", "g", &port.to_string()]).fails(1, "has no forward").says("there are: none");
    world.vmctl(&["stop", "g", "--force"]).ok();
}

#[test]
fn a_stopped_guest_has_its_forward_in_the_file_alone() {
    let world = World::new();
    world.make("g", "", NETWORK);
    let port = free_port();
    world.vmctl(&["forward", "add", "g", &format!("{port}:80"), "--nic", "net0"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    world.vmctl(&["forward", "list", "g"]).ok().says(" no");
    world.vmctl(&["start", "g"]).ok();
    assert!(forwards(&world).contains(&format!("{port} -> 80")));
    world.vmctl(&["stop", "g", "--force"]).ok();
    world.vmctl(&["forward", "remove", "g", &format!("{port}:80")]).ok();
    assert!(!text(&world).contains("forwards"));
}

#[test]
fn what_cannot_be_forwarded_is_refused_and_the_file_is_as_it_was() {
    let world = World::new();
    world.make("g", "refuses", NETWORK);
    let before = text(&world);
    let port = free_port();
    let typed = format!("{port}:80");
    world.vmctl(&["forward", "add", "g", &typed, "--nic", "cut"]).fails(1, "is of backend `none`, and only `user` has forwards");
    world.vmctl(&["forward", "add", "g", &typed, "--nic", "other"]).fails(1, "no interface `other`").says("`net0`, `cut`");
    world.vmctl(&["forward", "add", "g", "80"]).fails(1, "names no port in the guest");
    world.vmctl(&["forward", "add", "g", "eighty:80"]).fails(1, "is not a forward like");
    let (taken, udp) = (TcpListener::bind("127.0.0.1:0").expect("binds"), UdpSocket::bind("127.0.0.1:0").expect("binds"));
    let (taken, udp) =
        (taken.local_addr().map(|at| (at, taken)).expect("bound"), udp.local_addr().map(|at| (at, udp)).expect("bound"));
    let process = format!("(process {})", std::process::id());
    world.vmctl(&["forward", "add", "g", &format!("{}:80", taken.0.port())]).fails(1, "is in use by").says(&process);
    world.vmctl(&["forward", "add", "g", &format!("{}:80/udp", udp.0.port())]).fails(1, "is in use by").says(&process);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["forward", "add", "g", &typed]).fails(1, "the network is full");
    assert_eq!(text(&world), before);
    assert_eq!(forwards(&world), "[]");
    world.vmctl(&["stop", "g", "--force"]).ok();
}

#[test]
fn a_port_that_another_guest_has_is_refused_with_its_name() {
    let world = World::new();
    let port = free_port();
    world.make(
        "h",
        "",
        &format!("nics = [{{ id = \"net0\", backend = \"user\", forwards = [{{ host_port = {port}, guest_port = 80 }}] }}]"),
    );
    world.make("g", "", NETWORK);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["forward", "add", "g", &format!("{port}:81")]).ok();
    world.vmctl(&["forward", "add", "h", &format!("{port}:82")]).fails(1, "is already forwarded by `net0`");
    world.vmctl(&["forward", "remove", "h", &port.to_string()]).ok();
    world.vmctl(&["forward", "add", "h", &format!("{port}:82")]).fails(1, "is in use by guest `g`");
    world.vmctl(&["stop", "g", "--force"]).ok();
}
