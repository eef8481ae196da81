//! The readers of `machine::loader::volume` against file systems and partition tables that Debian's own tools made:
//! mke2fs, mkfs.xfs, mkfs.fat with mtools, xorriso, sfdisk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use vmctl::testing::devices::disk::DiskReader;
use vmctl::testing::machine::loader::volume::iso9660::{BootImage, Iso};
use vmctl::testing::machine::loader::volume::partition::{self, Scheme};
use vmctl::testing::machine::loader::volume::probe::{Found, probe};
use vmctl::testing::machine::loader::volume::{FileSystem, Medium, NodeKind, VolumeError};

const LIMIT: u64 = 64 << 20;

struct OnDisk(File, u64);

impl DiskReader for OnDisk {
    fn size_bytes(&self) -> u64 {
        self.1
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

fn medium(path: &Path) -> Medium {
    let file = File::open(path).expect("an image that was just made");
    let size = file.metadata().expect("a file").len();
    Medium::new(Arc::new(OnDisk(file, size)))
}

fn volume(medium: &Medium) -> Box<dyn FileSystem> {
    match probe(medium) {
        Found::Volume(volume) => volume,
        Found::Named(name) => panic!("found {name}"),
        Found::Broken(error) => panic!("{error}"),
        Found::Unknown => panic!("found nothing"),
    }
}

fn found(path: &Path) -> String {
    match probe(&medium(path)) {
        Found::Volume(volume) => format!("volume {}", volume.kind()),
        Found::Named(name) => name,
        Found::Broken(error) => error.to_string(),
        Found::Unknown => "nothing".into(),
    }
}

/// Runs a tool of the host.
fn tool(name: &str, arguments: &[&str]) {
    let mut command = Command::new(name);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command.args(arguments).env("PATH", path).env("MTOOLS_SKIP_CHECK", "1").stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{name}: {e}; `make test` installs what is missing"));
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn blank(path: &Path, mib: u64) {
    File::create(path).expect("a scratch file").set_len(mib << 20).expect("room for a sparse file");
}

/// Bytes that are not the same from block to block.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

const BIG: usize = 3_000_017;
const MANY: usize = 400;

/// A tree with what a boot partition has: a long file, a long directory, links; without links for FAT.
fn tree(root: &Path, links: bool) {
    let grub = root.join("boot/grub");
    fs::create_dir_all(&grub).unwrap();
    fs::write(grub.join("grub.cfg"), "menuentry 'one' { true }\n").unwrap();
    fs::write(root.join("boot/vmlinuz-6.1.0-1-amd64"), noise(BIG)).unwrap();
    fs::write(root.join("boot/empty"), "").unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for i in 0..MANY {
        fs::write(root.join(format!("many/a file with a rather long name {i:05}.txt")), i.to_string()).unwrap();
    }
    if links {
        symlink("boot/vmlinuz-6.1.0-1-amd64", root.join("vmlinuz")).unwrap();
        symlink("/boot/grub", root.join("boot/grub2")).unwrap();
        symlink("loop-b", root.join("loop-a")).unwrap();
        symlink("loop-a", root.join("loop-b")).unwrap();
        let long = format!("{}boot/empty", "./".repeat(400));
        symlink(long, root.join("long-link")).unwrap();
    }
}

fn holds_the_tree(volume: &dyn FileSystem, links: bool) {
    let cfg = volume.read("/boot/grub/grub.cfg", LIMIT).unwrap();
    assert_eq!(cfg, b"menuentry 'one' { true }\n");
    assert!(volume.read("/boot/vmlinuz-6.1.0-1-amd64", LIMIT).unwrap() == noise(BIG));
    assert_eq!(volume.read("boot//./grub/../empty", LIMIT).unwrap(), b"");
    let mut many = volume.list("/many").unwrap();
    many.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(many.len(), MANY);
    assert_eq!(many[7], ("a file with a rather long name 00007.txt".to_string(), NodeKind::File));
    let last = format!("/many/a file with a rather long name {:05}.txt", MANY - 1);
    assert_eq!(volume.read(&last, LIMIT).unwrap(), (MANY - 1).to_string().as_bytes());
    assert_eq!(volume.kind_of("/boot").unwrap(), NodeKind::Directory);
    assert!(matches!(volume.read("/boot/none", LIMIT), Err(VolumeError::NotFound(_))));
    assert!(matches!(volume.read("/boot", LIMIT), Err(VolumeError::NotAFile(_))));
    assert!(matches!(volume.read("/boot/empty/more", LIMIT), Err(VolumeError::NotFound(_))));
    let large = volume.read("/boot/vmlinuz-6.1.0-1-amd64", 1000);
    assert!(matches!(large, Err(VolumeError::TooLarge { size, limit: 1000 }) if size == BIG as u64));
    if links {
        assert!(volume.read("/vmlinuz", LIMIT).unwrap() == noise(BIG));
        assert_eq!(volume.read("/boot/grub2/grub.cfg", LIMIT).unwrap(), cfg);
        assert_eq!(volume.read("/long-link", LIMIT).unwrap(), b"");
        assert!(matches!(volume.read("/loop-a", LIMIT), Err(VolumeError::TooDeep(_))));
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn ext2_ext3_and_ext4_are_read_with_their_label_and_uuid() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root, true);
    let uuid = "0a1b2c3d-4e5f-4061-8203-040506070809";
    for (kind, block) in [("ext2", "1024"), ("ext3", "4096"), ("ext4", "1024"), ("ext4", "4096")] {
        let image = dir.path().join(format!("{kind}-{block}"));
        blank(&image, 32);
        tool("mke2fs", &["-q", "-t", kind, "-b", block, "-L", "rootfs", "-U", uuid, "-d", text(&root), text(&image)]);
        let volume = volume(&medium(&image));
        assert_eq!((volume.kind(), volume.label().as_str(), volume.uuid().as_str()), ("ext2", "rootfs", uuid));
        holds_the_tree(volume.as_ref(), true);
    }
}

/// What e2fsprogs can make and GRUB 2.12 reads; the last ones have what only newer systems have.
#[test]
#[ignore = "needs tools: make test"]
fn ext_file_systems_are_read_whatever_their_features_are() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root, true);
    for i in 0..40 {
        // Directories go to groups of their own.
        fs::create_dir(root.join(format!("d{i}"))).unwrap();
        fs::write(root.join(format!("d{i}/file")), i.to_string()).unwrap();
    }
    for options in [
        &["-t", "ext4", "-I", "128"][..],
        &["-t", "ext4", "-I", "128", "-O", "^metadata_csum,^extent,^64bit"],
        &["-t", "ext4", "-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode"],
        &["-t", "ext4", "-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode,^64bit,^metadata_csum,^flex_bg"],
        &["-t", "ext4", "-b", "4096", "-g", "1024", "-O", "meta_bg,^resize_inode,^sparse_super"],
        &["-t", "ext4", "-b", "4096", "-g", "1024", "-O", "meta_bg,^resize_inode,sparse_super2"],
        &["-t", "ext4", "-O", "mmp"],
        &["-t", "ext4", "-O", "large_dir"],
        &["-t", "ext4", "-O", "inline_data"],
        &["-t", "ext4", "-O", "ea_inode,metadata_csum_seed,project,quota"],
        &["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
        &["-t", "ext4", "-b", "65536"],
        &["-t", "ext2", "-O", "^filetype"],
        &["-t", "ext2", "-r", "0", "-O", "none"],
        &["-t", "ext3", "-b", "1024", "-O", "^dir_index"],
    ] {
        let image = dir.path().join("image");
        let _ = fs::remove_file(&image);
        blank(&image, 64);
        tool("mke2fs", &[&["-q", "-F"], options, &["-d", text(&root), text(&image)]].concat());
        let volume = volume(&medium(&image));
        holds_the_tree(volume.as_ref(), true);
        assert_eq!(volume.read("/d39/file", LIMIT).unwrap(), b"39", "{options:?}");
    }
}

/// The state after a crash: the log has a newer state of a file's block, in each format of the log.
#[test]
#[ignore = "needs tools: make test"]
fn a_journal_that_was_not_replayed_is_looked_through() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("file"), [b'o'; 4096]).unwrap();
    fs::write(root.join("freed"), [b'f'; 1024]).unwrap();
    let image = dir.path().join("image");
    for (kind, open) in [("ext3", "jo"), ("ext4", "jo -c -v 1"), ("ext4", "jo -c -v 2"), ("ext4", "jo -c -v 3")] {
        let _ = fs::remove_file(&image);
        blank(&image, 32);
        tool("mke2fs", &["-q", "-t", kind, "-b", "1024", "-d", text(&root), text(&image)]);
        let block = |file: &str| {
            let output = Command::new("/usr/sbin/debugfs").args(["-R", &format!("bmap {file} 0"), text(&image)]).output();
            String::from_utf8(output.expect("debugfs runs").stdout).unwrap().trim().to_string()
        };
        let (file, freed) = (block("/file"), block("/freed"));
        let newer = dir.path().join("newer");
        // A logged block that begins like one of the log is told from one.
        let mut bytes = [b'n'; 1024];
        bytes[..4].copy_from_slice(&0xc03b_3998u32.to_be_bytes());
        fs::write(&newer, bytes).unwrap();
        let script = dir.path().join("script");
        let lines = format!("{open}\njw -b {file},{freed} {0}\njc\n{open}\njw -r {freed}\njc\n", text(&newer));
        fs::write(&newer, [bytes, [b'x'; 1024]].concat()).unwrap();
        fs::write(&script, lines).unwrap();
        tool("debugfs", &["-w", "-f", text(&script), text(&image)]);
        let volume = volume(&medium(&image));
        let found = volume.read("/file", LIMIT).unwrap();
        assert!(found[..1024] == bytes && found[1024..] == [b'o'; 3072], "{kind} {open}: {:?}", &found[..8]);
        assert_eq!(volume.read("/freed", LIMIT).unwrap(), [b'f'; 1024], "{kind} {open}");
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn what_a_file_system_claims_reserves_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("file"), "x").unwrap();
    let image = dir.path().join("image");
    blank(&image, 4);
    tool(
        "mke2fs",
        &["-q", "-t", "ext2", "-b", "1024", "-g", "256", "-O", "^metadata_csum,^resize_inode", "-d", text(&root), text(&image)],
    );
    // More blocks than there are bytes on any disk, in the half of the number that goes with the feature `64bit`.
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&0xf0u32.to_le_bytes(), 1024 + 0x150).unwrap();
    assert!(found(&image).contains("blocks go beyond the end of the partition"), "{}", found(&image));
    file.write_all_at(&0u32.to_le_bytes(), 1024 + 0x150).unwrap();
    tool("debugfs", &["-w", "-R", "sif /file size 0x4000000000", text(&image)]);
    let large = volume(&medium(&image)).read("/file", u64::MAX);
    assert!(matches!(large, Err(VolumeError::BeyondMedium { size: 0x40_0000_0000, .. })), "{large:?}");
}

/// A directory as mkfs.xfs takes it.
fn protofile(directory: &Path, depth: usize, out: &mut String) {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let pad = " ".repeat(depth);
    for path in entries {
        // The format has words between spaces: names with spaces are written with a stand-in.
        let name = path.file_name().unwrap().to_str().unwrap().replace(' ', "_");
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_symlink() {
            out.push_str(&format!("{pad}{name} l--777 0 0 {}\n", fs::read_link(&path).unwrap().display()));
        } else if meta.is_dir() {
            out.push_str(&format!("{pad}{name} d--755 0 0\n"));
            protofile(&path, depth + 1, out);
            out.push_str(&format!("{pad}$\n"));
        } else {
            out.push_str(&format!("{pad}{name} ---644 0 0 {}\n", path.display()));
        }
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn xfs_of_both_versions_is_read_with_directories_of_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root, true);
    // Files without spaces, since the protofile has none: the same tree under other names.
    for i in 0..MANY {
        let path = root.join(format!("many/a file with a rather long name {i:05}.txt"));
        fs::rename(&path, root.join(format!("many/a_file_with_a_rather_long_name_{i:05}.txt"))).unwrap();
    }
    fs::create_dir(root.join("crowd")).unwrap();
    for i in 0..6000 {
        fs::write(root.join(format!("crowd/member-of-a-large-directory-{i:06}")), "x").unwrap();
    }
    let mut proto = String::from("/none\n0 0\nd--755 0 0\n");
    protofile(&root, 0, &mut proto);
    proto.push_str("$\n");
    let proto_file = dir.path().join("proto");
    fs::write(&proto_file, proto).unwrap();
    let uuid = "1a1b2c3d-4e5f-4061-8203-040506070809";
    for (version, meta) in [("v5", "crc=1"), ("v5-plain", "crc=1,bigtime=0,inobtcount=0"), ("v4", "crc=0")] {
        let image = dir.path().join(version);
        blank(&image, 320);
        let meta = if version == "v4" { meta.to_string() } else { format!("{meta},uuid={uuid}") };
        let mut arguments = vec!["-q", "-m", &meta, "-L", "xroot", "-p", text(&proto_file), "-f", text(&image)];
        if version == "v4" {
            arguments.splice(0..0, ["-n", "ftype=0"]);
        }
        tool("mkfs.xfs", &arguments);
        let volume = volume(&medium(&image));
        assert_eq!((volume.kind(), volume.label().as_str()), ("xfs", "xroot"));
        if version != "v4" {
            assert_eq!(volume.uuid(), uuid);
        }
        assert_eq!(volume.read("/boot/grub/grub.cfg", LIMIT).unwrap(), b"menuentry 'one' { true }\n");
        assert!(volume.read("/vmlinuz", LIMIT).unwrap() == noise(BIG), "{version}");
        assert_eq!(volume.read("/boot/grub2/grub.cfg", LIMIT).unwrap(), b"menuentry 'one' { true }\n");
        assert_eq!(volume.read("/long-link", LIMIT).unwrap(), b"", "{version}");
        assert!(matches!(volume.read("/loop-a", LIMIT), Err(VolumeError::TooDeep(_))));
        assert_eq!(volume.list("/many").unwrap().len(), MANY);
        let crowd = volume.list("/crowd").unwrap();
        assert_eq!(crowd.len(), 6000, "{version}");
        assert!(crowd.iter().all(|(_, kind)| *kind == NodeKind::File));
        assert_eq!(volume.read("/crowd/member-of-a-large-directory-005999", LIMIT).unwrap(), b"x");
        assert_eq!(volume.kind_of("/boot").unwrap(), NodeKind::Directory);
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn fat_of_every_width_is_read_with_long_names_in_any_case() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root, false);
    for (width, mib) in [("12", 8), ("16", 32), ("32", 64)] {
        let image = dir.path().join(width);
        blank(&image, mib);
        tool("mkfs.fat", &["-F", width, "-n", "ESP", "-i", "12ab34cd", text(&image)]);
        tool("mcopy", &["-s", "-i", text(&image), text(&root.join("boot")), text(&root.join("many")), "::"]);
        let volume = volume(&medium(&image));
        assert_eq!((volume.kind(), volume.label().as_str(), volume.uuid().as_str()), ("fat", "ESP", "12AB-34CD"));
        holds_the_tree(volume.as_ref(), false);
        assert_eq!(volume.read("/BOOT/Grub/GRUB.CFG", LIMIT).unwrap(), b"menuentry 'one' { true }\n");
    }
}

/// FAT32 with fewer than 65,525 clusters, as `mkfs.fat -F 32` makes it on small and 4Kn disks. mtools does not know it: the
/// number of sectors is changed when everything is there.
#[test]
#[ignore = "needs tools: make test"]
fn fat32_is_told_by_its_boot_sector_and_not_by_the_number_of_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root, false);
    let image = dir.path().join("image");
    blank(&image, 64);
    tool("mkfs.fat", &["-F", "32", "-s", "1", "-n", "ESP", text(&image)]);
    tool("mcopy", &["-s", "-i", text(&image), text(&root.join("boot")), text(&root.join("many")), "::"]);
    for sectors in [60_000u32, 12_000] {
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(&sectors.to_le_bytes(), 32).unwrap();
        file.set_len(u64::from(sectors) * 512).unwrap();
        holds_the_tree(volume(&medium(&image)).as_ref(), false);
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn iso_9660_is_read_by_rock_ridge_by_joliet_and_by_its_plain_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root, true);
    let make = |name: &str, flags: &[&str]| {
        let image = dir.path().join(name);
        let mut arguments = vec!["-as", "mkisofs", "-quiet", "-V", "MEDIUM"];
        arguments.extend(flags);
        arguments.extend(["-o", text(&image), text(&root)]);
        tool("xorriso", &arguments);
        volume(&medium(&image))
    };
    for flags in [&["-R"][..], &["-R", "-J"]] {
        let volume = make("rock", flags);
        assert_eq!((volume.kind(), volume.label().as_str()), ("iso9660", "MEDIUM"));
        assert_eq!(volume.uuid().split('-').count(), 7, "{}", volume.uuid());
        holds_the_tree(volume.as_ref(), true);
    }
    fs::remove_dir_all(&root).unwrap();
    tree(&root, false);
    let joliet = make("joliet", &["-J", "-joliet-long", "--norock"]);
    holds_the_tree(joliet.as_ref(), false);
    let plain = make("plain", &["--norock", "-iso-level", "3"]);
    assert_eq!(plain.read("/boot/grub/grub.cfg", LIMIT).unwrap(), b"menuentry 'one' { true }\n");
    assert_eq!(plain.read("/BOOT/EMPTY", LIMIT).unwrap(), b"");
}

#[test]
#[ignore = "needs tools: make test"]
fn the_boot_images_of_an_iso_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("bios.img"), noise(4096)).unwrap();
    fs::write(root.join("efi.img"), noise(8192)).unwrap();
    let image = dir.path().join("iso");
    let boot = ["-b", "bios.img", "-no-emul-boot", "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot"];
    let mut arguments = vec!["-as", "mkisofs", "-quiet"];
    arguments.extend(boot);
    arguments.extend(["-o", text(&image), text(&root)]);
    tool("xorriso", &arguments);
    assert_eq!(Iso::boot_images(&medium(&image)), [BootImage::Bios, BootImage::Uefi]);
}

fn sfdisk(image: &Path, script: &str) {
    use std::io::Write;
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sfdisk");
    command.args(["-q", "--no-reread", "--no-tell-kernel", text(image)]).env("PATH", path).stdin(Stdio::piped());
    let mut child = command.spawn().expect("sfdisk runs; `make test` installs it");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "needs tools: make test"]
fn partitions_of_both_tables_have_grubs_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    blank(&image, 64);
    sfdisk(&image, "label: dos\n2048,2048,83\n4096,2048,82\n8192,65536,5\n10240,2048\n14336,2048\n20480,4096\n");
    let dos = partition::read(&medium(&image)).unwrap();
    let numbers: Vec<_> = dos.iter().map(|p| (p.number, p.scheme, p.start / 512, p.len / 512)).collect();
    let of = |number, start, sectors| (number, Scheme::Msdos, start, sectors);
    assert_eq!(numbers, [of(1, 2048, 2048), of(2, 4096, 2048), of(5, 10240, 2048), of(6, 14336, 2048), of(7, 20480, 4096)]);

    blank(&image, 64);
    sfdisk(&image, "label: gpt\n1: start=2048,size=2048,type=U,uuid=11111111-2222-3333-4444-555555555555\n4: start=8192\n");
    let gpt = partition::read(&medium(&image)).unwrap();
    assert_eq!(
        gpt.iter().map(|p| (p.number, p.scheme, p.start / 512)).collect::<Vec<_>>(),
        [(1, Scheme::Gpt, 2048), (4, Scheme::Gpt, 8192)]
    );
    assert_eq!(gpt[0].uuid, "11111111-2222-3333-4444-555555555555");
    // A damaged first header: the backup at the end says the same.
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0xff; 64], 512).unwrap();
    assert_eq!(partition::read(&medium(&image)).unwrap(), gpt);
    // An extended partition that leads back to itself ends.
    blank(&image, 8);
    let mut record = [0u8; 512];
    record[446 + 4] = 5;
    record[446 + 8] = 1;
    record[446 + 12] = 99;
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut link = record;
    link[446 + 4] = 0;
    link[462 + 4] = 5;
    link[462 + 12] = 99;
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&record, 0).unwrap();
    file.write_all_at(&link, 512).unwrap();
    assert_eq!(partition::read(&medium(&image)).unwrap(), []);
}

#[test]
#[ignore = "needs tools: make test"]
fn a_gpt_counts_only_behind_a_boot_record_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (image, other) = (dir.path().join("disk"), dir.path().join("other"));
    blank(&image, 64);
    sfdisk(&image, "label: gpt\nstart=8192,size=8192\n");
    blank(&other, 64);
    sfdisk(&other, "label: dos\nstart=2048,size=4096,type=83\n");
    let (gpt, dos) = (fs::read(&image).unwrap(), fs::read(&other).unwrap());
    let scheme = |boot_record: Option<&[u8]>, first_header: bool| {
        let mut bytes = gpt.clone();
        bytes[..512].copy_from_slice(boot_record.unwrap_or(&[0; 512]));
        if !first_header {
            bytes[512..1024].fill(0);
        }
        partition::read(&Medium::new(Arc::new(bytes))).unwrap().first().map(|part| part.scheme)
    };
    // The old GPT behind a new table: whole, and with the backup at the end only.
    assert_eq!(scheme(Some(&dos[..512]), true), Some(Scheme::Msdos));
    assert_eq!(scheme(Some(&dos[..512]), false), Some(Scheme::Msdos));
    // A table without entries, and a file system's boot sector, are none of a GPT's either.
    let mut empty = [0; 512];
    empty[510..].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(scheme(Some(&empty), true), None);
    // A hybrid one says that there is a GPT.
    let mut hybrid = dos[..512].to_vec();
    hybrid[462 + 4] = 0xee;
    assert_eq!(scheme(Some(&hybrid), true), Some(Scheme::Gpt));
    assert_eq!(scheme(Some(&hybrid), false), Some(Scheme::Gpt));
    // No boot record: the first header counts, and the one at the end is left over.
    assert_eq!(scheme(None, true), Some(Scheme::Gpt));
    assert_eq!(scheme(None, false), None);
}

#[test]
#[ignore = "needs tools: make test"]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let with = |at: u64, bytes: &[u8]| {
        blank(&image, 4);
        File::options().write(true).open(&image).unwrap().write_all_at(bytes, at).unwrap();
        found(&image)
    };
    assert_eq!(with(0, b"LUKS\xba\xbe\x00\x02"), "LUKS2 encryption");
    assert_eq!(with(0x1_0040, b"_BHRfS_M"), "a btrfs file system");
    assert_eq!(with(512, b"LABELONE"), "an LVM physical volume");
    assert_eq!(with(0, b"nothing at all"), "nothing");
    assert_eq!(with(0x8800, b"\0NSR03\x01"), "a UDF file system");
    blank(&image, 4);
    tool("mkswap", &[text(&image)]);
    assert_eq!(found(&image), "swap space");
    blank(&image, 4);
    tool("mke2fs", &["-q", "-t", "ext4", "-O", "encrypt,casefold", text(&image)]);
    let said = found(&image);
    assert!(said == "volume ext2" || said.contains("cannot read"), "{said}");
}

/// Every byte of the first blocks set to something else, and the file cut anywhere: an error or a volume, never a
/// panic, and never without an end.
#[test]
#[ignore = "needs tools: make test"]
fn damaged_file_systems_end_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    fs::write(root.join("boot/grub/grub.cfg"), noise(5000)).unwrap();
    let ext = dir.path().join("ext");
    blank(&ext, 1);
    tool("mke2fs", &["-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-d", text(&root), text(&ext)]);
    let fat = dir.path().join("fat");
    blank(&fat, 1);
    tool("mkfs.fat", &[text(&fat)]);
    tool("mcopy", &["-s", "-i", text(&fat), text(&root.join("boot")), "::"]);
    let iso = dir.path().join("iso");
    tool("xorriso", &["-as", "mkisofs", "-quiet", "-R", "-J", "-o", text(&iso), text(&root)]);
    let mut random = 1u64;
    for image in [&ext, &fat, &iso] {
        let whole = fs::read(image).unwrap();
        // What is there and not zero is worth changing.
        let places: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] != 0).collect();
        for round in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..=round % 5 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let place = places[(random >> 33) as usize % places.len()];
                bytes[place] = (random >> 20) as u8;
            }
            if round % 7 == 0 {
                bytes.truncate((random >> 33) as usize % whole.len());
            }
            let medium = Medium::new(Arc::new(bytes));
            let _ = partition::read(&medium);
            if let Found::Volume(volume) = probe(&medium) {
                let _ = (volume.label(), volume.uuid(), volume.list("/boot"), volume.list("/"));
                let _ = volume.read("/boot/grub/grub.cfg", LIMIT);
            }
        }
    }
}
