//! Tests of every key of vm-bhyve, and of every template that came with it. The settings are those of its
//! `sample-templates`, as facts about its users' files.

use super::disks::portal_of;
use super::*;
use crate::config::{EngineKind, GuestConfig, HostConfig, HostPaths, LoaderKind};
use crate::guest::definition::{Definition, Surroundings};

/// Converts and checks. Returns the configuration, and the keys of the notes.
fn checked(text: &str, template: bool) -> (GuestConfig, Vec<String>, String) {
    let conf = Conf::parse(text);
    let source = Source {
        name: "web",
        directory: Path::new("/vm/web"),
        dataset: Some("tank/vm"),
        config_dir: Path::new("/vm/.config"),
        switches: &[],
        template,
        autostart: None,
    };
    let translated = translate(&source, &conf);
    assert_eq!(conf.unseen(), [], "a key was neither translated nor told");
    let toml = translated.toml.to_string();
    let paths = HostPaths {
        config_file: "/etc/vmctl.toml".into(),
        datastore: "/store".into(),
        cache_dir: "/cache".into(),
        runtime_dir: "/run".into(),
    };
    let host = HostConfig::of(&paths, EngineKind::Embedded);
    let surroundings = Surroundings { host: &host, host_file: Path::new("/etc/vmctl.toml"), datastore: Path::new("/store") };
    let definition = Definition::load_file(Path::new("/vm/web/guest.toml"), "web", Some(&toml), &[], surroundings)
        .unwrap_or_else(|error| panic!("{error}\n{toml}"));
    (definition.config, translated.notes.0.into_iter().map(|note| note.key).collect(), toml)
}

/// The settings that most templates share.
const COMMON: &str = "cpu=1\nmemory=512M\nnetwork0_type=\"virtio-net\"\nnetwork0_switch=\"public\"\n\
                      disk0_type=\"virtio-blk\"\ndisk0_name=\"disk0.img\"\n";

const EVERYTHING: &str = r#"
loader="uefi"
loader_timeout="5"
uefi_vars="yes"
bhyveload_loader="/boot/other.so"
bhyveload_args="-e a=b"
cpu=4
cpu_sockets=1
cpu_cores=2
cpu_threads=2
memory=4G
wired_memory="yes"
hostbridge="amd"
fwcfg="qemu"
comports="com1 com2"
utctime="no"
debug="yes"
uuid="6F1C5A9E-0D2B-4C3F-9E57-1B2A3C4D5E6F"
ignore_bad_msr="yes"
ignore_msr="yes"
bhyve_options="-p 1:1"
start_slot="5"
install_slot="3"
ahci_device_limit="2"
disk0_type="nvme"
disk0_name="disk0"
disk0_dev="zvol"
disk0_opts="nocache,sectorsize=4096,bootindex=2,maxq=8"
disk0_size="20G"
disk1_type="ahci-hd"
disk1_name="disk1.img"
disk1_opts="direct,ro,bootindex=1"
disk2_type="ahci-cd"
disk2_name="/iso/debian.iso"
disk2_dev="custom"
disk3_type="ahci-hd"
disk3_name="disk3.img"
disk3_dev="file"
disk4_type="virtio-9p"
disk4_name="data=/export"
disk4_dev="9p"
disk4_opts="ro"
disk5_type="virtio-blk"
disk5_name="iqn.2020-01.example:a/3"
disk5_dev="iscsi"
disk6_type="virtio-odd"
disk6_name="odd.img"
network0_type="virtio-net"
network0_switch="public"
network0_mac="58:9c:fc:01:02:03"
network0_name="web0"
network0_span="yes"
network1_type="e1000"
network1_device="tap7"
network2_type="virtio-net"
passthru0="5/0/0"
passthru0_options="rom=/rom.bin"
passthru1="5/0/1"
passthru2="6/0/0=9:1"
virt_random="yes"
virt_console0="org.freenas.bhyve-agent"
virt_console1="yes"
graphics="yes"
graphics_port="5999"
graphics_listen="10.0.0.1"
graphics_res="1280x720"
graphics_wait="yes"
graphics_vga="off"
vnc_password="secret"
xhci_mouse="yes"
sound="yes"
sound_play="/dev/dsp1"
sound_rec="/dev/dsp2"
grub_install0="linux /a"
grub_run0="linux /b"
grub_run_partition="msdos2"
grub_run_no_partition="no"
grub_run_dir="/grub"
grub_run_file="grub.conf"
zfs_dataset_opts="compression=lz4"
zfs_zvol_opts="volblocksize=16k"
prestart="before.sh"
priority="5"
limit_pcpu="150"
limit_rbps="10M"
limit_wbps="1048576"
limit_riops="100"
limit_wiops="200"
tags="prod web"
on_restart="shutdown"
on_fault="restart"
nulliso_fix="yes"
typing_error="yes"
"#;

#[test]
fn every_key_of_vm_bhyve_is_translated_or_told_with_its_reason() {
    let (config, notes, toml) = checked(EVERYTHING, false);
    assert_eq!((config.cpus.count(), config.cpus.sockets, config.cpus.cores, config.cpus.threads), (4, 1, 2, 2));
    assert!(config.memory_wired && config.memory == ByteSize::from_gib(4));
    assert_eq!(config.uuid.as_deref(), Some("6f1c5a9e-0d2b-4c3f-9e57-1b2a3c4d5e6f"));
    assert_eq!(config.tags, ["prod", "web"]);
    assert_eq!(config.disks.len(), 6 - 1, "{toml}");
    assert_eq!(config.disks[0].path.as_deref(), Some(Path::new("/dev/zvol/tank/vm/web/disk0")));
    assert_eq!(config.disks[1].path.as_deref(), Some(Path::new("/vm/web/disk1.img")));
    assert_eq!(config.disks[0].options, ["maxq=8"]);
    assert!(config.disks[1].ro && config.disks[1].controller.as_deref() == Some("ahci0"));
    assert_eq!(config.disks[3].controller.as_deref(), Some("ahci1"));
    assert_eq!(config.disks[4].iscsi.as_ref().map(|unit| unit.lun), Some(3));
    assert_eq!(config.shares[0].path, Path::new("/export"));
    assert_eq!(config.nics[0].mac.map(|mac| mac.to_string()).as_deref(), Some("58:9c:fc:01:02:03"));
    assert_eq!(config.nics[1].interface.as_deref(), Some("tap7"));
    assert_eq!(config.boot_order.len(), 2);
    assert_eq!(config.passthru.len(), 3);
    assert_eq!(config.channels.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["org.freenas.bhyve-agent", "1"]);
    assert_eq!(config.limits.nice, Some(5));
    assert_eq!(config.limits.write_bps, Some(ByteSize::from_mib(1)));
    assert_eq!(config.hooks[0].command, ["/vm/web/before.sh", "web", "tank/vm/web"]);
    assert!(config.bhyve.ignore_bad_msr);
    assert_eq!(config.bhyve.args.len(), 2, "what no key stands for: {:?}", config.bhyve.args);
    assert_eq!(config.pins.len(), 1, "{toml}");
    assert!(config.bhyve.args[1].ends_with(",virtio-odd,/vm/web/odd.img"), "{:?}", config.bhyve.args);
    for key in [
        "loader_timeout",
        "bhyveload_loader",
        "bhyveload_args",
        "debug",
        "ignore_bad_msr",
        "ignore_msr",
        "install_slot",
        "disk0_size",
        "disk5_name",
        "disk6_type",
        "network0_name",
        "network2_switch",
        "grub_install0",
        "grub_run0",
        "grub_run_partition",
        "grub_run_dir",
        "grub_run_file",
        "zfs_dataset_opts",
        "zfs_zvol_opts",
        "nulliso_fix",
        "typing_error",
    ] {
        assert!(notes.iter().any(|note| note == key), "{key} is not told: {notes:?}");
    }
}

#[test]
fn devices_keep_the_addresses_that_vm_bhyve_gave_them() {
    let (config, _, toml) = checked(EVERYTHING, false);
    let at = |slot: Option<crate::config::PciAddress>| slot.map(|slot| slot.to_string()).unwrap_or_default();
    assert_eq!(at(config.disks[0].slot), "0:5:0", "{toml}");
    let slot = |name: &str| config.bhyve.slots.iter().find(|(other, _)| other == name).map(|(_, slot)| slot.to_string());
    assert_eq!(slot("ahci:ahci0").as_deref(), Some("0:6:0"));
    assert_eq!(slot("share:data").as_deref(), Some("0:7:0"));
    assert_eq!(at(config.disks[4].slot), "0:8:0");
    assert_eq!(slot("ahci:ahci1").as_deref(), Some("0:10:0"));
    assert_eq!(at(config.nics[0].slot), "0:11:0");
    assert_eq!(at(config.nics[1].slot), "0:11:1");
    assert_eq!(slot("rng").as_deref(), Some("0:12:0"));
    assert_eq!(at(config.passthru[1].slot), "0:13:1");
    assert_eq!(at(config.passthru[2].slot), "0:9:1");
    assert_eq!(at(config.graphics.expect("a screen").slot), "0:14:0");
}

#[test]
fn every_template_that_vm_bhyve_came_with_passes_the_check() {
    let grub = |more: &str| format!("loader=\"grub\"\n{COMMON}{more}");
    let uefi = |more: &str| format!("loader=\"uefi\"\n{COMMON}{more}");
    let zvol = "disk0_name=\"disk0\"\ndisk0_dev=\"sparse-zvol\"\n";
    for (name, text, loader) in [
        ("default", format!("loader=\"bhyveload\"\n{COMMON}"), LoaderKind::Bhyveload),
        ("freebsd-zvol", format!("loader=\"bhyveload\"\n{COMMON}{zvol}"), LoaderKind::Bhyveload),
        ("linux-zvol", grub(zvol), LoaderKind::Grub),
        ("ubuntu", grub("memory=1024M\n"), LoaderKind::Grub),
        ("debian", grub("disk0_type=\"ahci-hd\"\ngrub_run_partition=\"1\"\ngrub_run_dir=\"/boot/grub\"\n"), LoaderKind::Grub),
        (
            "debian-preseed",
            grub("disk0_type=\"ahci-hd\"\ngrub_install0=\"linux /install\"\ngrub_install1=\"initrd /i\"\n"),
            LoaderKind::Grub,
        ),
        (
            "alpine",
            grub("grub_install0=\"linux /b\"\ngrub_run0=\"linux /boot/vmlinuz root=/dev/vda3\"\ngrub_run1=\"initrd /boot/i\"\n"),
            LoaderKind::Grub,
        ),
        ("arch", grub("grub_install0=\"linux /arch\"\ngrub_install1=\"initrd /arch\"\n"), LoaderKind::Grub),
        (
            "gentoo",
            grub(
                "memory=512MB\ngrub_run0=\"set root=(hd0,gpt2)\"\ngrub_run1=\"set timeout=1\"\ngrub_run2=\"configfile /grub/grub.cfg\"\n",
            ),
            LoaderKind::Grub,
        ),
        (
            "fedora-server",
            grub("guest=\"linux\"\ngrub_run0=\"linux /vmlinuz\"\ngrub_run1=\"initrd /initramfs\"\n"),
            LoaderKind::Grub,
        ),
        (
            "freepbx",
            grub("grub_install0=\"linux /isolinux/vmlinuz\"\ngrub_run0=\"linux /vmlinuz rd_LVM_LV=VolGroup/lv_swap\"\n"),
            LoaderKind::Grub,
        ),
        (
            "opensuse-42.3",
            grub(
                "cpu=4\ngrub_run_partition=\"2\"\ngrub_run0=\"linux /boot/vmlinuz\"\ngrub_run1=\"initrd /boot/initrd\"\ngrub_run2=\"boot\"\n",
            ),
            LoaderKind::Grub,
        ),
        (
            "openbsd",
            grub("grub_install0=\"kopenbsd -h com0 /5.9/amd64/bsd.rd\"\ngrub_run0=\"kopenbsd -h com0 -r sd0a /bsd\"\n"),
            LoaderKind::Grub,
        ),
        (
            "netbsd",
            grub(
                "guest=\"generic\"\ngrub_run_partition=\"msdos1\"\ngrub_run0=\"knetbsd -h -r ld0a /netbsd\"\ngrub_run1=\"boot\"\n",
            ),
            LoaderKind::Grub,
        ),
        (
            "resflash",
            grub("grub_run_partition=\"openbsd4\"\ngrub_run0=\"kopenbsd -h com0 -r sd0d /bsd\"\nbhyve_options=\"-w\"\n"),
            LoaderKind::Grub,
        ),
        (
            "fortitester",
            grub(
                "cpu=8\nmemory=16g\nnetwork0_type=\"e1000\"\nnetwork0_switch=\"\"\ndisk0_type=\"ahci-hd\"\ndisk1_type=\"ahci-hd\"\ndisk1_name=\"disk1.img\"\n",
            ),
            LoaderKind::Grub,
        ),
        ("centos", format!("guest=\"centos\"\nlinux_kernel=\"3.10.0-229.el7.x86_64\"\n{COMMON}"), LoaderKind::Grub),
        (
            "centos6",
            format!("guest=\"linux\"\n{COMMON}grub_run_partition=\"msdos1\"\ngrub_run0=\"linux /vmlinuz\"\ngrub_run1=\"boot\"\n"),
            LoaderKind::Grub,
        ),
        ("opensuse", format!("guest=\"opensuse\"\n{COMMON}"), LoaderKind::Grub),
        ("centos7", format!("uefi=\"yes\"\ngraphics=\"yes\"\nxhci_mouse=\"yes\"\n{COMMON}"), LoaderKind::Uefi),
        (
            "windows",
            format!(
                "uefi=\"yes\"\ngraphics=\"yes\"\nxhci_mouse=\"yes\"\n{COMMON}network0_type=\"e1000\"\ndisk0_type=\"ahci-hd\"\n"
            ),
            LoaderKind::Uefi,
        ),
        ("windows-csm", format!("loader=\"uefi-csm\"\n{COMMON}graphics=\"yes\"\n"), LoaderKind::Uefi),
        ("almalinux8", uefi("graphics=\"yes\"\nxhci_mouse=\"yes\"\n"), LoaderKind::Uefi),
        ("dragonfly", format!("uefi=\"yes\"\ngraphics=\"yes\"\n{COMMON}disk0_type=\"ahci-hd\"\n"), LoaderKind::Uefi),
        (
            "android",
            uefi("grub_install0=\"linuxefi /k\"\ngrub_run0=\"linuxefi /kernel\"\ngraphics=1\ngraphics_wait=1\nxhci_mouse=1\n"),
            LoaderKind::Uefi,
        ),
        (
            "openbsd-uefi",
            uefi(
                "graphics=\"yes\"\nhostbridge=\"amd\"\ngraphics_port=\"5900\"\ngraphics_res=\"800x600\"\ngraphics_vga=\"off\"\nxhci_mouse=\"yes\"\nutctime=\"yes\"\nvirt_random=\"yes\"\n",
            ),
            LoaderKind::Uefi,
        ),
        ("openbsd-zvol", uefi(zvol), LoaderKind::Uefi),
        (
            "flatcar",
            uefi("fwcfg_type=\"qemu\"\nbhyve_options=\"-A -f name=opt/org.flatcar-linux/config,file=/p.ign\"\n"),
            LoaderKind::Uefi,
        ),
        ("coreos", format!("uefi=\"yes\"\n{COMMON}grub_install0=\"linux /coreos/vmlinuz\"\n"), LoaderKind::Uefi),
        ("cloud", uefi("uefi_vars=\"yes\"\nuefi_custom=\"x\"\n"), LoaderKind::Uefi),
        ("custom", format!("loader=\"uefi-custom\"\n{COMMON}"), LoaderKind::Uefi),
        ("devel", format!("loader=\"uefi-devel\"\n{COMMON}"), LoaderKind::Uefi),
    ] {
        for template in [true, false] {
            let (config, _, toml) = checked(&text, template);
            assert_eq!(config.loader, loader, "{name}\n{toml}");
            assert!(!config.disks.is_empty(), "{name}");
        }
    }
}

#[test]
fn what_vm_bhyve_does_without_being_told_is_done_here_too() {
    let (config, _, toml) = checked(&format!("loader=\"uefi\"\n{COMMON}"), false);
    assert!(!config.rng && config.bhyve.ignore_bad_msr, "{toml}");
    assert_eq!(config.restart.on_crash, crate::config::ExitAction::Stop);
    assert!(config.uefi.as_ref().is_some_and(|uefi| !uefi.persistent));
    assert_eq!(config.disks[0].path.as_deref(), Some(Path::new("/vm/web/disk0.img")));
}

#[test]
fn an_option_of_bhyve_that_a_key_stands_for_becomes_that_key() {
    let with = |options: &str| checked(&format!("loader=\"bhyveload\"\n{COMMON}bhyve_options=\"{options}\"\n"), false);
    for options in ["-S", "-HS", "-SHw", "-w -S -A"] {
        let (config, _, toml) = with(options);
        assert!(config.memory_wired && config.memory == ByteSize::from_mib(512), "{options}: {toml}");
        assert!(config.bhyve.args.is_empty(), "{options}: {:?}", config.bhyve.args);
    }
    let with_qemu =
        |options: &str| checked(&format!("loader=\"uefi\"\nfwcfg=\"qemu\"\n{COMMON}bhyve_options=\"{options}\"\n"), false);
    let (config, _, toml) = with_qemu(
        "-HPCuexWY -p 0:3 -o rtc.use_localtime=true -o a.b=c -f name=opt/x/y,string=z -f opt/x/file,file=rel.ign -D -s 9,virtio-rnd",
    );
    assert!(config.memory_in_core && config.bhyve.strict_io && config.bhyve.x2apic, "{toml}");
    assert!(!config.bhyve.virtio_msix && !config.bhyve.mptable, "{toml}");
    assert_eq!(config.pins[0].vcpu, 0);
    assert_eq!(config.bhyve.options, [("rtc.use_localtime".to_owned(), "true".to_owned())]);
    assert!(toml.contains("\"/vm/web/rel.ign\""), "{toml}");
    assert_eq!(config.bhyve.args, ["-o", "a.b=c", "-D", "-s", "9,virtio-rnd"]);
    assert_eq!(with("-f opt/x,string=y").0.bhyve.args, ["-f", "opt/x,string=y"]);
    let (config, notes, _) = with("-p 7:1 -p x");
    assert!(config.pins.is_empty() && notes.iter().filter(|note| *note == "bhyve_options").count() == 2);
}

#[test]
fn every_path_of_an_import_is_absolute() {
    let text = "loader=\"bhyveload\"\nbhyveload_loader=\"own/loader.so\"\ncpu=1\nmemory=1G\n\
                disk0_type=\"virtio-blk\"\ndisk0_name=\"disks/a.img\"\ndisk0_dev=\"custom\"\n\
                disk1_type=\"virtio-9p\"\ndisk1_name=\"data=export\"\nprestart=\"before.sh\"\n\
                passthru0=\"5/0/0\"\npassthru0_options=\"rom=a.rom\"\n";
    let (config, _, toml) = checked(text, false);
    assert_eq!(config.disks[0].path.as_deref(), Some(Path::new("/vm/web/disks/a.img")));
    assert_eq!(config.shares[0].path, Path::new("/vm/web/export"));
    for path in ["\"/vm/web/own/loader.so\"", "\"/vm/web/before.sh\"", "\"/vm/web/a.rom\""] {
        assert!(toml.contains(path), "{path}: {toml}");
    }
}

#[test]
fn a_bare_number_of_memory_is_what_bhyve_takes_it_for() {
    let memory = |text: &str| checked(&format!("loader=\"uefi\"\n{COMMON}memory={text}\n"), false).0.memory;
    assert_eq!(memory("512"), ByteSize::from_mib(512));
    assert_eq!(memory("1073741824"), ByteSize::from_gib(1));
    assert_eq!(memory("2g"), ByteSize::from_gib(2));
    let (config, notes, _) = checked("loader=\"uefi\"\ncpu=1\nmemory=lots\n", false);
    assert_eq!(config.memory, ByteSize::from_mib(512));
    assert!(notes.contains(&"memory".to_owned()));
}

#[test]
fn a_topology_that_bhyve_would_refuse_is_dropped_and_told() {
    let (config, notes, _) = checked("loader=\"uefi\"\ncpu=3\ncpu_sockets=2\ncpu_cores=2\nmemory=1G\n", false);
    assert_eq!(config.cpus.count(), 3);
    assert!(notes.iter().any(|note| note.starts_with("cpu_sockets")));
}

#[test]
fn the_portal_of_a_session_is_found() {
    let text = "Target name                          Target portal    State\niqn.2020-01.example:a                10.1.1.1         Connected: da0\n";
    assert_eq!(portal_of(text, "iqn.2020-01.example:a").as_deref(), Some("10.1.1.1"));
    assert_eq!(portal_of(text, "iqn.2020-01.example:b"), None);
}
