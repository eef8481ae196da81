use std::path::Path;

use super::super::slots;
use super::*;
use crate::config::{Diagnostics, EngineKind, GuestRequest, HostConfig, HostPaths, load_guest};

fn config(text: &str) -> GuestConfig {
    checked(text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn checked(text: &str) -> std::result::Result<GuestConfig, Diagnostics> {
    let paths = HostPaths {
        config_file: "/nonexistent/vmctl.toml".into(),
        datastore: "/nonexistent".into(),
        cache_dir: "/nonexistent".into(),
        runtime_dir: "/nonexistent".into(),
    };
    let host = HostConfig::of(&paths, EngineKind::Embedded);
    let text = format!("engine = 'bhyve'\n{text}");
    let request = GuestRequest {
        file: Path::new("/guests/g/guest.toml"),
        text: Some(&text),
        name: Some("g"),
        sets: &[],
        host: &host,
        datastore: Path::new("/nonexistent"),
    };
    load_guest(&request).map(|loaded| loaded.config)
}

fn built(text: &str, release: &str) -> Result<Lines> {
    let config = config(text);
    let mut state = GuestState::new("g");
    state.assign(&config)?;
    let features = HostFeatures::of_release(release).expect("a known release");
    let resolved = Resolved::defaults(&config, Path::new("/guests/g"));
    build(Inputs { config: &config, state: &state, features: &features, resolved: &resolved })
}

fn line(text: &str, release: &str) -> String {
    built(text, release).unwrap_or_else(|error| panic!("{text}: {error}")).bhyve.words().join(" ")
}

fn refused(text: &str, release: &str) -> String {
    let error = built(text, release).expect_err(text);
    format!("{error}; {}", error.next_step().unwrap_or_default())
}

fn addresses(state: &GuestState, name: &str) -> String {
    state.addresses.get(&name.parse().expect(name)).map(ToString::to_string).unwrap_or_default()
}

#[test]
fn a_device_keeps_its_address_when_others_come_and_go() {
    let disk = |id: &str| format!("[[disks]]\nid = '{id}'\nsize = '1G'\n");
    let mut state = GuestState::new("g");
    let three = format!("{}{}{}[[nics]]\nid = 'net0'\nswitch = 's'\n", disk("a"), disk("b"), disk("c"));
    state.assign(&config(&three)).unwrap();
    assert_eq!((addresses(&state, "disk:a"), addresses(&state, "nic:net0")), ("0:3:0".into(), "0:6:0".into()));
    // `b` is removed, and `d` comes first in the file and takes the free slot.
    let edited = format!("{}{}{}[[nics]]\nid = 'net0'\nswitch = 's'\n", disk("d"), disk("a"), disk("c"));
    state.assign(&config(&edited)).unwrap();
    assert_eq!(addresses(&state, "disk:a"), "0:3:0");
    assert_eq!(addresses(&state, "disk:c"), "0:5:0");
    assert_eq!(addresses(&state, "nic:net0"), "0:6:0");
    assert_eq!(addresses(&state, "disk:d"), "0:4:0");
    // A slot in the file has priority over one in the state, whose device moves.
    let fixed = edited.replace("id = 'd'\n", "id = 'd'\nslot = '3'\n");
    state.assign(&config(&fixed)).unwrap();
    assert_eq!((addresses(&state, "disk:d"), addresses(&state, "disk:a")), ("0:3:0".into(), "0:4:0".into()));
    assert_eq!(addresses(&state, "lpc"), "0:31:0");
}

#[test]
fn the_slots_of_the_embedded_engine_are_taken_over() {
    let text = "[[disks]]\nid = 'a'\nsize = '1G'\n[[disks]]\nid = 'b'\nsize = '1G'\n";
    let mut state = GuestState::new("g");
    state.addresses.insert(DeviceKey::Disk("b".into()), PciAddress::slot(4));
    state.addresses.insert(DeviceKey::Disk("a".into()), PciAddress::slot(5));
    state.assign(&config(text)).unwrap();
    assert_eq!((addresses(&state, "disk:a"), addresses(&state, "disk:b")), ("0:5:0".into(), "0:4:0".into()));
}

#[test]
fn a_full_bus_is_followed_by_the_next_one_and_the_mp_table_goes() {
    let disks: String = (0..40).map(|at| format!("[[disks]]\nid = 'd{at}'\nsize = '1G'\n")).collect();
    let text = line(&disks, "14.3");
    assert!(text.contains("-s 1:1:0,virtio-blk,") && text.contains(" -Y "), "{text}");
    assert!(text.contains("-s 0,hostbridge") && text.contains("-s 31,lpc"), "{text}");
    assert!(!line("", "14.3").contains("-Y"));
}

#[test]
fn two_devices_at_one_address_and_a_function_alone_are_refused() {
    let two = "[[disks]]\nid = 'a'\nsize = '1G'\nslot = '5:1'\n";
    let mut state = GuestState::new("g");
    let error = slots::assign(&config(two), &mut state).unwrap_err();
    assert!(error.to_string().contains("nothing is at 0:5:0"), "{error}");
}

#[test]
fn acpi_needs_its_flag_through_13_alone() {
    assert!(line("", "13.2").contains("-A"));
    assert!(!line("", "14.0").contains("-A"));
}

#[test]
fn a_key_that_needs_a_later_release_is_refused_with_that_release() {
    for (text, release, later) in [
        ("[tpm]\n", "14.3", "FreeBSD 15.0"),
        ("[tpm]\ntype = 'passthru'\n", "13.2", "FreeBSD 14.0"),
        ("[bhyve]\nfwcfg = 'qemu'\n", "13.2", "FreeBSD 14.0"),
        ("[bhyve]\nfwcfg = 'qemu'\nfw_cfg = { a = 'b' }\n", "13.2", "FreeBSD 14.0"),
        ("[bhyve]\nacpi_tables_in_memory = false\n", "13.2", "FreeBSD 14.0"),
        ("[smbios]\nserial = 'x'\n", "14.0", "FreeBSD 14.1"),
        ("[graphics]\nsocket = true\n", "14.3", "FreeBSD 15.0"),
        ("[graphics]\nresolution = '2560x1440'\n", "14.3", "FreeBSD 15.0"),
        ("[console]\ncom2 = '127.0.0.1:4000'\n", "14.3", "FreeBSD 15.0"),
        ("[[nics]]\nid = 'n'\nisolated = true\n", "14.0", "FreeBSD 14.1"),
        ("[[nics]]\nid = 'n'\n", "14.3", "FreeBSD 15.1"),
        ("[[nics]]\nid = 'n'\n", "15.0", "FreeBSD 15.1"),
        ("[[passthru]]\nid = 'p'\ndevice = 'ppt0'\n", "13.2", "FreeBSD 14.0"),
        ("memory = '2G'\n[[numa]]\nid = 'a'\nsize = '2G'\ncpus = '0'\n", "14.3", "FreeBSD 15.0"),
        ("[boot]\norder = ['a']\n[bhyve]\nfwcfg = 'qemu'\n[[disks]]\nid = 'a'\nsize = '1G'\n", "13.2", "FreeBSD 14.0"),
    ] {
        let said = refused(text, release);
        assert!(said.contains(&format!("FreeBSD {release}")) && said.contains(&format!("{later} has it")), "{text}: {said}");
    }
}

#[test]
fn a_key_is_passed_on_from_the_first_release_that_has_it() {
    for (text, release, words) in [
        ("[smbios]\nserial = 'x'\n", "14.3", "-o system.serial_number=x"),
        ("[[nics]]\nid = 'n'\nisolated = true\n", "14.3", "virtio-net,slirp,mac="),
        ("[graphics]\nresolution = '1920x1200'\n", "13.2", "w=1920,h=1200"),
        ("[graphics]\nresolution = '3840x2160'\n", "15.0", "w=3840,h=2160"),
    ] {
        let built = line(text, release);
        assert!(built.contains(words), "{text}: {built}");
    }
}

#[test]
fn what_bhyve_was_built_without_is_refused() {
    let config = config("[sound]\n");
    let mut state = GuestState::new("g");
    state.assign(&config).unwrap();
    let mut features = HostFeatures::of_release("14.3").unwrap();
    features.devices.remove("hda");
    let resolved = Resolved::defaults(&config, Path::new("/guests/g"));
    let error = build(Inputs { config: &config, state: &state, features: &features, resolved: &resolved }).unwrap_err();
    assert!(error.to_string().contains("has no device `hda`"), "{error}");
}

#[test]
fn a_password_is_in_no_argument() {
    let config = config("[graphics]\npassword_file = 'p'\n");
    let mut state = GuestState::new("g");
    state.assign(&config).unwrap();
    let features = HostFeatures::of_release("14.3").unwrap();
    let mut resolved = Resolved::defaults(&config, Path::new("/guests/g"));
    resolved.vnc_password = Some("hid%den".into());
    let lines = build(Inputs { config: &config, state: &state, features: &features, resolved: &resolved }).unwrap();
    let words = lines.bhyve.words().join(" ");
    assert!(!words.contains("hid") && words.contains("-k /guests/g/bhyve-secrets.conf"), "{words}");
    assert_eq!(lines.files[0].content, Content::Secret("pci.0.29.0.password=hid%%den\n".into()));
    let shown = format!("{}{}", as_shell_text(&lines, true), serde_json::to_string(&lines).unwrap());
    assert!(!shown.contains("hid"), "{shown}");
    // The file is read after the device exists, or bhyve would count the address as occupied.
    assert!(words.find(",fbuf,") < words.find("-k "));
}

#[test]
fn a_variable_comes_after_the_devices() {
    let words = line("[[nics]]\nid = 'n'\nbackend = 'none'\n[bhyve]\noptions = { 'pci.0.3.0.mtu' = 9000 }\n", "14.3");
    assert!(words.contains("-s 3,virtio-net -s"), "{words}");
    let mac = words.find("-o pci.0.3.0.mac=").expect("the address is a variable");
    assert!(words.find("-s 31,lpc").unwrap() < mac && mac < words.find("-o pci.0.3.0.mtu=9000").unwrap(), "{words}");
    let e1000 = checked("[[nics]]\nid = 'n'\nbackend = 'none'\ndevice = 'e1000'\n").unwrap_err().to_string();
    assert!(e1000.contains("no e1000 without a cable"), "{e1000}");
}

#[test]
fn paths_that_bhyve_would_take_apart_are_refused_or_written_so_that_it_does_not() {
    let disk = |path: &str| format!("[[disks]]\nid = 'a'\npath = '{path}'\n");
    assert!(refused(&disk("/a,b"), "14.3").contains("has a comma"));
    assert!(line(&disk("/a%(name) b"), "14.3").contains("virtio-blk,/a%%(name) b"));
}

#[test]
fn in_a_jail_paths_are_those_of_the_jail() {
    let jail = "[jail]\nname = 'j'\nroot = '/guests'\n";
    let inside = line(&format!("{jail}[[disks]]\nid = 'a'\nsize = '1G'\n[[disks]]\nid = 'z'\npath = '/dev/zvol/x'\n"), "14.3");
    assert!(inside.contains("virtio-blk,/g/disks/a.raw") && inside.contains("virtio-blk,/dev/zvol/x"), "{inside}");
    let outside = refused(&format!("{jail}[[disks]]\nid = 'a'\npath = '/other/a'\n"), "14.3");
    assert!(outside.contains("outside of the jail `j`"), "{outside}");
}

#[test]
fn the_user_mode_network_is_slirp_with_its_forwards() {
    let nic = "[[nics]]\nid = 'n'\nisolated = true\n[[nics.forwards]]\nhost_port = 2222\nguest_port = 22\n[[nics.forwards]]\nproto = 'udp'\nhost_port = 53\nguest_port = 53\nhost_addr = '0.0.0.0'\n";
    let closed = line(nic, "15.0");
    assert!(
        closed.contains("virtio-net,slirp,hostfwd=tcp:127.0.0.1:2222-10.0.2.15:22;udp:0.0.0.0:53-10.0.2.15:53,mac="),
        "{closed}"
    );
    assert!(line("[[nics]]\nid = 'n'\n", "current").contains("virtio-net,slirp,open,mac="));
    assert!(refused(&nic.replace("0.0.0.0", "::1"), "15.0").contains("IPv4 addresses alone"));
}

#[test]
fn disks_that_share_a_controller_are_its_ports() {
    let text = "[[disks]]\nid = 'a'\nsize = '1G'\ndevice = 'ahci-hd'\ncontroller = 's'\nserial = 'A'\n[[disks]]\nid = 'c'\npath = '/c.iso'\ndevice = 'ahci-cd'\ncontroller = 's'\n";
    assert!(line(text, "14.3").contains("-s 3,ahci,hd:/guests/g/disks/a.raw,ser=A,cd:/c.iso"), "{}", line(text, "14.3"));
}

#[test]
fn grub_gets_a_map_and_a_configuration_when_commands_are_given() {
    let text = "loader = 'grub'\n[grub]\npartition = 'gpt2'\ncommands = ['linux /vmlinuz', 'initrd /initrd']\n[[disks]]\nid = 'a'\nsize = '1G'\n[[disks]]\nid = 'c'\npath = '/c.iso'\ndevice = 'ahci-cd'\n";
    let lines = built(text, "14.3").unwrap();
    let contents: Vec<String> = lines.files.iter().map(|file| file.content.text().to_string()).collect();
    assert_eq!(contents[0], "(hd0) /guests/g/disks/a.raw\n(cd0) /c.iso\n");
    assert_eq!(
        contents[1],
        "set timeout=3\nset root=hd0,gpt2\nmenuentry \"g\" {\n  linux /vmlinuz\n  initrd /initrd\n  boot\n}\n"
    );
    let words = lines.loader.unwrap().words().join(" ");
    assert!(words.contains("-r host -d /guests/g g"), "{words}");
}

#[test]
fn what_was_found_on_the_disk_is_booted_unless_the_file_says_otherwise() {
    use super::super::partitions::{KernelName, RootPartition};
    let commands = |text: &str, grub: &str, kernel| {
        let disks = "[[disks]]\nid = 'other'\nsize = '1G'\n[[disks]]\nid = 'root'\nsize = '1G'\n[boot]\norder = ['root']\n";
        let config = config(&format!("loader = 'grub'\n{text}{disks}"));
        let mut state = GuestState::new("g");
        state.assign(&config).unwrap();
        let features = HostFeatures::of_release("14.3").unwrap();
        let mut resolved = Resolved::defaults(&config, Path::new("/guests/g"));
        resolved.root_partition = Some(RootPartition { grub: grub.into(), kernel });
        let lines = build(Inputs { config: &config, state: &state, features: &features, resolved: &resolved }).unwrap();
        lines.files[1].content.text().to_string().lines().nth(3).unwrap().trim().to_owned()
    };
    let netbsd = "[grub]\nsystem = 'netbsd'\n";
    assert_eq!(commands(netbsd, "netbsd5", KernelName::Letter('e')), "knetbsd -h -r ld1e (hd1,netbsd5)/netbsd");
    assert_eq!(commands(netbsd, "gpt2", KernelName::Wedge(1)), "knetbsd -h -r dk1 (hd1,gpt2)/netbsd");
    let said = "[grub]\nsystem = 'openbsd'\nroot = 'sd0d'\n";
    assert_eq!(commands(said, "gpt4", KernelName::Letter('a')), "kopenbsd -h com0 -r sd0d (hd1,gpt4)/bsd");
}

#[test]
fn the_kernels_of_openbsd_and_netbsd_are_loaded_with_commands_of_ours() {
    let commands = |text: &str| {
        let disk = "[[disks]]\nid = 'a'\nsize = '1G'\n";
        let lines = built(&format!("loader = 'grub'\n{text}{disk}"), "14.3").unwrap();
        lines.files[1].content.text().to_string().lines().nth(3).unwrap().trim().to_owned()
    };
    assert_eq!(commands("[grub]\nsystem = 'openbsd'\n"), "kopenbsd -h com0 -r sd0a (hd0,openbsd1)/bsd");
    assert_eq!(commands("[grub]\nsystem = 'netbsd'\npartition = 'msdos1'\n"), "knetbsd -h -r ld0a (hd0,msdos1)/netbsd");
    let cd = "[boot]\norder = ['cd']\n[[disks]]\nid = 'cd'\npath = '/c.iso'\ndevice = 'ahci-cd'\n";
    assert_eq!(
        commands(&format!("[grub]\nsystem = 'openbsd'\nkernel = '/7.6/amd64/bsd.rd'\n{cd}")),
        "kopenbsd -h com0 (cd0)/7.6/amd64/bsd.rd"
    );
}

#[test]
fn what_only_the_boot_knows_stands_in_pieces_of_its_own() {
    let text = |text: &str| Piece::Text(text.into());
    let guest = config(
        "[[disks]]\nid = 'root'\nsize = '1G'\n[graphics]\n\
         [[nics]]\nid = 'net0'\nswitch = 's'\nmac = '02:00:00:00:00:01'\n\
         [[nics]]\nid = 'net1'\nbackend = 'netgraph'\nswitch = 'ng'\nhook = 'vmlink'\nmac = '02:00:00:00:00:02'\n",
    );
    let mut state = GuestState::new("g");
    state.assign(&guest).unwrap();
    let features = HostFeatures::of_release("14.3").unwrap();
    let mut resolved = Resolved::defaults(&guest, Path::new("/guests/g"));
    resolved.disks.insert("root".into(), DiskPath::Unit);
    resolved.interfaces.insert("net0".into(), Plug::Tap);
    resolved.interfaces.insert("net1".into(), Plug::Netgraph { path: "br0:".into(), peerhook: None });
    resolved.vnc = Some(ScreenAddress::Tcp { address: std::net::Ipv6Addr::LOCALHOST.into(), port: None });
    let lines = build(Inputs { config: &guest, state: &state, features: &features, resolved: &resolved }).unwrap();
    let pieces = |key: &str| {
        let argument = lines.bhyve.arguments.iter().find(|argument| argument.keys.iter().any(|other| other == key));
        argument.expect(key).words[1].pieces().to_vec()
    };
    assert_eq!(pieces("disks.root"), [text("3,virtio-blk,/dev/"), Piece::Device("root".into())]);
    assert_eq!(pieces("nics.net0"), [text("4,virtio-net,"), Piece::Tap("net0".into()), text(",mac=02:00:00:00:00:01")]);
    let hook = [text("5,virtio-net,netgraph,path=br0:,peerhook="), Piece::Hook("net1".into())];
    assert_eq!(pieces("nics.net1"), [&hook[..], &[text(",hook=vmlink,mac=02:00:00:00:00:02")]].concat());
    assert_eq!(pieces("graphics"), [text("29,fbuf,tcp=[::1]:"), Piece::ScreenPort]);
    let guest = config("loader = 'bhyveload'\n[[disks]]\nid = 'root'\nsize = '1G'\n");
    let lines = build(Inputs { config: &guest, state: &state, features: &features, resolved: &resolved }).unwrap();
    let loader = lines.loader.expect("a loader");
    assert!(
        loader.arguments.iter().any(|argument| argument.words.last().unwrap().pieces().contains(&Piece::Device("root".into())))
    );
}
