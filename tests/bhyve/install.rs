//! An installer's run on every loader: the medium is what the loader boots, and the next boot does not have it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::world::{World, eventually};

/// A medium with these files, and a boot image for UEFI if it is to have one.
fn medium(world: &World, files: &[&str], uefi: bool) -> PathBuf {
    let (tree, image) = (world.root().join("tree"), world.root().join("installer.iso"));
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).expect("made");
    for file in files {
        let path = tree.join(file);
        fs::create_dir_all(path.parent().expect("in the tree")).expect("made");
        fs::write(path, "file").expect("written");
    }
    let mut command = Command::new("xorriso");
    command.args(["-as", "mkisofs", "-quiet", "-R", "-V", "MEDIUM", "-o"]).arg(&image);
    if uefi {
        fs::write(tree.join("efi.img"), vec![0; 4096]).expect("written");
        command.args(["-eltorito-platform", "efi", "-eltorito-boot", "efi.img", "-no-emul-boot"]);
    }
    let output = command.arg(&tree).stdin(Stdio::null()).output().expect("`make test` installs xorriso");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}

/// The calls of the loaders and of bhyve itself, in order.
fn boots(world: &World) -> Vec<String> {
    let boots = |call: &String| {
        ["bhyve ", "bhyveload ", "grub-bhyve "].iter().any(|name| call.starts_with(name))
            && call.ends_with(" g")
            && !call.contains("--vm")
    };
    world.calls().into_iter().filter(boots).collect()
}

#[test]
#[ignore = "needs tools: make test"]
fn each_loader_boots_the_medium_and_after_the_reboot_the_disk() {
    for (loader, file, uefi) in [
        ("loader = \"bhyveload\"", "boot/kernel/kernel", false),
        ("loader = \"uefi\"", "read.me", true),
        ("loader = \"grub\"", "boot/grub/grub.cfg", false),
        ("loader = \"grub\"\ngrub = { system = \"openbsd\" }", "7.6/amd64/bsd.rd", false),
    ] {
        let world = World::new();
        let medium = medium(&world, &[file], uefi);
        world.make_with("g", "say:installing exit:0 / say:installed", loader);
        world.vmctl(&["install", "g", medium.to_str().expect("UTF-8"), "--detach"]).ok();
        eventually("the disk boots", || world.info("g")["boots"] == 2 && world.word("g") == "running");
        let boots = boots(&world);
        let of = |medium: bool| {
            boots.iter().filter(|call| call.starts_with("bhyve ") && call.contains("installer.iso") == medium).count()
        };
        assert!((of(true), of(false)) == (1, 1), "{loader}: {boots:#?}");
        match loader {
            "loader = \"bhyveload\"" => {
                let sees = |name: &str| boots[0].contains(name);
                assert!(sees("installer.iso") && !sees("g.img"), "the loader sees the medium alone: {}", boots[0]);
            }
            "loader = \"grub\"" => {
                let roots: Vec<_> = boots.iter().filter(|call| call.starts_with("grub-bhyve")).collect();
                assert!(roots[0].contains("-r cd0 ") && roots[1].contains("-r hd0,1 "), "{roots:?}");
            }
            "loader = \"uefi\"" => assert!(boots[0].contains("installer.iso,ro"), "{boots:?}"),
            _ => {}
        }
        world.vmctl(&["stop", "g"]).ok();
        world.nothing_is_left();
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn a_medium_without_what_the_loader_boots_is_refused_with_what_it_has() {
    let world = World::new();
    let path = medium(&world, &["isolinux/isolinux.cfg", "7.6/amd64/bsd.rd"], false);
    let path = path.to_str().expect("UTF-8");
    world.make_with("g", "", "loader = \"uefi\"");
    world.vmctl(&["install", "g", path]).fails("has no boot image for UEFI").says("OpenBSD's installer, an isolinux.cfg");
    world.make_with("h", "", "loader = \"bhyveload\"");
    world.vmctl(&["install", "h", path]).fails("has no kernel of FreeBSD");
    world.make_with("i", "", "loader = \"grub\"");
    world.vmctl(&["install", "i", path]).fails("has no `/boot/grub/grub.cfg`");
    world.vmctl(&["install", "i", path, "--append", "quiet"]).fails("has no `/boot/grub/grub.cfg`");
    assert!(boots(&world).is_empty());
}

#[test]
#[ignore = "needs tools: make test"]
fn an_answer_file_that_could_not_be_told_to_the_installer_is_refused() {
    let world = World::new();
    let medium = medium(&world, &["boot/grub/grub.cfg"], false);
    world.make_with("g", "", "loader = \"grub\"\nnics = [{ id = \"net0\", backend = \"user\" }]");
    let file = world.root().join("answers.cfg");
    fs::write(&file, "d-i a b c\n").expect("written");
    let arguments = ["install", "g", medium.to_str().expect("UTF-8"), "--preseed", file.to_str().expect("UTF-8")];
    world.vmctl(&arguments).fails("cannot be told where its answer file is");
}
