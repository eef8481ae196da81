//! `vmctl passthru`.

use super::world::World;

const PCICONF: &str = r#"cat <<'END'
pcib1@pci0:0:1:0:	class=0x060400 rev=0x07 hdr=0x01 vendor=0x8086 device=0x1901 subvendor=0x1028 subdevice=0x085a
    class      = bridge
ppt0@pci0:5:0:0:	class=0x020000 rev=0x01 hdr=0x00 vendor=0x8086 device=0x1521 subvendor=0x8086 subdevice=0x0001
    vendor     = 'Intel Corporation'
    device     = 'I350 Gigabit Network Connection'
    class      = network
xhci0@pci0:6:0:0:	class=0x0c0330 rev=0x03 hdr=0x00 vendor=0x1912 device=0x0014 subvendor=0x1912 subdevice=0x0014
    device     = 'uPD720201 USB 3.0 Host Controller'
END"#;

#[test]
fn devices_are_listed_with_what_makes_one_ready() {
    let world = World::new();
    world.program("pciconf", PCICONF);
    world.program("sysctl", "[ \"$2\" = hw.vmm.iommu.initialized ] && echo 1");
    let said = world.vmctl(&["passthru", "list"]).ok();
    assert!(said.out.contains("5/0/0   yes    ppt0"), "{said:?}");
    assert!(said.out.contains("6/0/0   no     xhci0"), "{said:?}");
    let said = said.says("IOMMU: in use").says("pptdevs=\"6/0/0\"").says("devctl set driver -f pci0:6:0:0 ppt");
    said.does_not_say("0/1/0");
    world.vmctl(&["passthru", "list", "--all"]).ok().says("0/1/0   never  pcib1");
    let json = world.vmctl(&["passthru", "list", "-o", "json"]).ok();
    let document: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(document["items"][0]["device"], "5/0/0");
    assert_eq!(document["items"][0]["ready"], true);
}

#[test]
fn a_host_without_an_iommu_is_told_what_to_turn_on() {
    let world = World::new();
    world.program("pciconf", PCICONF);
    world.program("sysctl", "exit 1");
    world.program("acpidump", "echo '  Signature: FACP, APIC'");
    world.vmctl(&["passthru", "list"]).ok().says("IOMMU: none").says("turn on VT-d or AMD-Vi");
    world.program("acpidump", "echo '  DMAR: Length=128, Revision=1, Checksum=1,'");
    world.vmctl(&["passthru", "list"]).ok().says("IOMMU: VT-d");
}

#[test]
fn a_host_without_pciconf_is_told_what_this_needs() {
    World::new().vmctl(&["passthru", "list"]).fails(1, "there is no program `pciconf`").says("FreeBSD's base system");
}
