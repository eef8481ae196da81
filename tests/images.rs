//! Disk images made by qemu-img, read by us, and compared byte for byte with what qemu-img makes of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmctl::testing::fetch::{Fetcher, Kind, Request, Silent};

/// A raw disk with data, zeros, and what does not compress; a size that is no multiple of any cluster's.
fn make_disk(path: &Path, size: usize) {
    let mut bytes = vec![0u8; size];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (start, len) in [(0, 5_000), (300_000, 400_000), (size / 2, 1_500_000), (size - 70_000, 70_000)] {
        bytes[start..start + len].iter_mut().for_each(|byte| *byte = random() as u8);
    }
    // Text-like: compresses well.
    bytes[2_000_000..4_000_000].iter_mut().enumerate().for_each(|(at, byte)| *byte = b"the quick brown fox "[at % 20]);
    // Less than a block.
    bytes[5_000_100] = 1;
    std::fs::write(path, bytes).expect("the disk is written");
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed: apt-get install qemu-utils");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a plain path").to_owned()
    }
    fn obtain(&self, path: &str) -> Result<PathBuf, String> {
        let fetcher = Fetcher::open(&self.path("cache"), Vec::new(), &Silent).expect("a cache");
        let obtained = fetcher.obtain(&Request::new(Kind::Image, path)).map_err(|error| {
            let hint = error.next_step().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            format!("{error}{hint}")
        })?;
        Ok(obtained.path)
    }
    /// Converts by qemu-img with these options, and holds what we read to what it reads.
    fn compare(&self, disk: &str, name: &str, options: &[&str]) {
        let image = self.text(name);
        let mut arguments = vec!["convert", "-f", "raw"];
        arguments.extend(options);
        arguments.extend([disk, &image]);
        qemu_img(&arguments);
        let theirs = self.text(&format!("{name}.theirs"));
        let format = options[options.iter().position(|option| *option == "-O").expect("a format is given") + 1];
        qemu_img(&["convert", "-f", format, "-O", "raw", &image, &theirs]);
        let ours = self.obtain(&image).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (ours, theirs) = (std::fs::read(ours).expect("readable"), std::fs::read(theirs).expect("readable"));
        assert_eq!(ours.len(), theirs.len(), "{name}: size");
        assert!(ours == theirs, "{name}: the bytes differ from {:?}", ours.iter().zip(&theirs).position(|(a, b)| a != b));
    }
}

const SIZE: usize = 12 * 1024 * 1024 + 512 * 3;

#[test]
#[ignore = "needs tools: make test"]
fn qcow2_of_every_kind_is_read_as_qemu_img_reads_it() {
    let bench = Bench::new();
    let disk = bench.text("disk.raw");
    make_disk(&bench.path("disk.raw"), SIZE);
    for (name, options) in [
        ("v2.qcow2", &["-O", "qcow2", "-o", "compat=0.10"][..]),
        ("v3.qcow2", &["-O", "qcow2", "-o", "compat=1.1"]),
        ("small.qcow2", &["-O", "qcow2", "-o", "cluster_size=512"]),
        ("large.qcow2", &["-O", "qcow2", "-o", "cluster_size=2M"]),
        ("zlib.qcow2", &["-c", "-O", "qcow2", "-o", "compression_type=zlib"]),
        ("zstd.qcow2", &["-c", "-O", "qcow2", "-o", "compression_type=zstd"]),
        ("zstd-large.qcow2", &["-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=2M"]),
        ("zlib-small.qcow2", &["-c", "-O", "qcow2", "-o", "cluster_size=4096"]),
        ("extended.qcow2", &["-O", "qcow2", "-o", "extended_l2=on"]),
        ("extended-zlib.qcow2", &["-c", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"]),
        ("preallocated.qcow2", &["-O", "qcow2", "-o", "preallocation=metadata"]),
    ] {
        bench.compare(&disk, name, options);
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn vmdk_of_every_kind_is_read_as_qemu_img_reads_it() {
    let bench = Bench::new();
    let disk = bench.text("disk.raw");
    make_disk(&bench.path("disk.raw"), SIZE);
    for (name, options) in [
        ("sparse.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicSparse"][..]),
        ("stream.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        ("flat.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicFlat"]),
        ("extents.vmdk", &["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"]),
        ("flat-extents.vmdk", &["-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"]),
        ("zeroed.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on"]),
    ] {
        bench.compare(&disk, name, options);
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn vhd_of_every_kind_is_read_as_qemu_img_reads_it() {
    let bench = Bench::new();
    let disk = bench.text("disk.raw");
    make_disk(&bench.path("disk.raw"), SIZE);
    for (name, options) in [
        ("dynamic.vhd", &["-O", "vpc", "-o", "subformat=dynamic"][..]),
        ("fixed.vhd", &["-O", "vpc", "-o", "subformat=fixed"]),
        ("exact.vhd", &["-O", "vpc", "-o", "subformat=dynamic,force_size=on"]),
        ("exact-fixed.vhd", &["-O", "vpc", "-o", "subformat=fixed,force_size=on"]),
    ] {
        bench.compare(&disk, name, options);
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn an_image_over_several_tables_is_read_whole() {
    // With clusters of 4 KiB one L2 table covers 2 MiB; a VMDK's grain table covers 32 MiB.
    let bench = Bench::new();
    let disk = bench.text("disk.raw");
    let file = std::fs::File::create(bench.path("disk.raw")).unwrap();
    file.set_len(70 << 20).unwrap();
    for (at, mib) in [1u64, 2, 3, 31, 32, 33, 63, 69].into_iter().enumerate() {
        std::os::unix::fs::FileExt::write_all_at(&file, &[at as u8 + 1; 70_000], mib << 20).unwrap();
    }
    for (name, options) in [
        ("wide.qcow2", &["-c", "-O", "qcow2", "-o", "cluster_size=4096"][..]),
        ("wide.vmdk", &["-O", "vmdk"]),
        ("wide.vhd", &["-O", "vpc"]),
    ] {
        bench.compare(&disk, name, options);
        let ours = bench.obtain(&bench.text(name)).unwrap();
        let used = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(ours).unwrap()) * 512;
        assert!(used < 4 << 20, "{name}: {used} bytes in use");
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn images_that_need_more_than_themselves_are_refused_with_the_reason() {
    let bench = Bench::new();
    let base = bench.text("base.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &base, "10M"]);
    let over = bench.text("over.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &over]);
    let said = bench.obtain(&over).unwrap_err();
    assert!(said.starts_with("the qcow2 image holds only what differs from its backing file `"), "{said}");
    assert!(said.contains("base.qcow2`; hint: make it whole"), "{said}");
    let data = format!("data_file={}", bench.text("data.raw"));
    let external = bench.text("external.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, &external, "10M"]);
    assert!(bench.obtain(&external).unwrap_err().starts_with("the qcow2 image keeps its data in another file"));
    let secret = bench.text("secret.qcow2");
    let options = [
        "create",
        "-q",
        "--object",
        "secret,id=s,data=password",
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s",
    ];
    qemu_img(&[&options[..], &["-o", "encrypt.iter-time=10", &secret, "10M"]].concat());
    assert!(bench.obtain(&secret).unwrap_err().starts_with("the qcow2 image is encrypted (LUKS)"));
    let parent = bench.text("parent.vmdk");
    qemu_img(&["create", "-q", "-f", "vmdk", &parent, "10M"]);
    let child = bench.text("child.vmdk");
    qemu_img(&["create", "-q", "-f", "vmdk", "-b", &parent, "-F", "vmdk", &child]);
    assert!(bench.obtain(&child).unwrap_err().starts_with("the VMDK holds only what differs from its parent"));
    for (format, name) in [("vhdx", "VHDX"), ("vdi", "VDI"), ("qed", "QED")] {
        let image = bench.text(&format!("other.{format}"));
        qemu_img(&["create", "-q", "-f", format, &image, "10M"]);
        assert!(bench.obtain(&image).unwrap_err().starts_with(&format!("{name} images are not read")), "{format}");
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn an_extent_of_a_vmdk_is_looked_for_beside_it_and_nowhere_else() {
    let bench = Bench::new();
    std::fs::write(bench.path("outside.bin"), [1; 1024]).unwrap();
    std::fs::create_dir(bench.path("in")).unwrap();
    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2 FLAT \"../outside.bin\" 0\n";
    std::fs::write(bench.path("in/trap.vmdk"), text).unwrap();
    let said = bench.obtain(&bench.text("in/trap.vmdk")).unwrap_err();
    assert!(said.starts_with("the VMDK's extent `../outside.bin` is not beside it"), "{said}");
}

#[test]
#[ignore = "needs tools: make test"]
fn images_cut_short_or_damaged_are_errors_and_leave_nothing() {
    let bench = Bench::new();
    let disk = bench.text("disk.raw");
    make_disk(&bench.path("disk.raw"), SIZE);
    for (format, options) in
        [("qcow2", "compression_type=zlib"), ("vmdk", "subformat=streamOptimized"), ("vpc", "subformat=dynamic")]
    {
        let whole = bench.path(&format!("whole.{format}"));
        let mut arguments = vec!["convert", "-f", "raw", "-O", format, "-o", options, &disk, whole.to_str().unwrap()];
        if format == "qcow2" {
            arguments.insert(1, "-c");
        }
        qemu_img(&arguments);
        let bytes = std::fs::read(&whole).unwrap();
        let cut = bench.path(&format!("cut.{format}"));
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        let said = bench.obtain(cut.to_str().unwrap()).unwrap_err();
        assert!(said.contains("the image is damaged"), "{format}: {said}");
    }
    assert_eq!(std::fs::read_dir(bench.path("cache/work")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(bench.path("cache/objects")).unwrap().count(), 0);
}

#[test]
#[ignore = "needs tools: make test"]
fn a_raw_image_is_its_own_answer_and_a_packed_one_is_unpacked_once() {
    let bench = Bench::new();
    make_disk(&bench.path("disk.raw"), SIZE);
    assert_eq!(bench.obtain(&bench.text("disk.raw")).unwrap(), bench.path("disk.raw").canonicalize().unwrap());
    let packed = std::fs::File::create(bench.path("disk.raw.xz")).unwrap();
    let status = Command::new("xz").args(["-0", "-c"]).arg(bench.path("disk.raw")).stdout(packed).status().unwrap();
    assert!(status.success());
    let first = bench.obtain(&bench.text("disk.raw.xz")).unwrap();
    assert!(std::fs::read(&first).unwrap() == std::fs::read(bench.path("disk.raw")).unwrap());
    let made = std::fs::metadata(&first).unwrap().modified().unwrap();
    assert_eq!(bench.obtain(&bench.text("disk.raw.xz")).unwrap(), first);
    assert_eq!(std::fs::metadata(&first).unwrap().modified().unwrap(), made);
}
