//! ZFS volumes of a guest.

use super::world::World;

#[test]
fn a_volume_is_made_with_its_properties_and_thick_when_it_is_asked_for() {
    let world = World::new();
    // It fails, so that nothing waits for a device: what it was called with is what counts.
    world.program("zfs", "case \"$1\" in list) echo tank/vm ;; create) exit 1 ;; esac");
    let file = world.path().join("web.toml");
    let text = "engine = \"bhyve\"\nname = \"web\"\n[[disks]]\nid = \"root\"\nbackend = \"zvol\"\nsize = \"1G\"\nthin = false\n\
                properties = { volblocksize = \"16K\", compression = \"zstd\" }\n";
    std::fs::write(&file, text).expect("writes");
    world.vmctl(&["create", "web", "--file", file.to_str().expect("text")]);
    assert_eq!(
        world.calls_of(&["zfs create"]),
        ["zfs create -o volmode=dev -o volblocksize=16K -o compression=zstd -V 1073741824 tank/vm/web-root"]
    );
}
