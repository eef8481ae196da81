//! The `grub` loader on disks and media that others' tools made: a configuration of the real grub-mkconfig on ext4 and
//! on XFS, an EFI partition that leads to it, Fedora's Boot Loader Specification tree, isolinux, grub-mkrescue.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use vmctl::testing::devices::disk::DiskReader;
use vmctl::testing::hypervisor::backend::MachineExit;
use vmctl::testing::machine::loader::grub::{BootDisk, GrubError, Halt, Limits, Loaded, Loader, Options, Port};
use vmctl::testing::machine::loader::kernel::Way;

const UUID: &str = "0a1b2c3d-4e5f-4061-8203-040506070809";
const KERNEL: &str = "vmlinuz-6.1.0-2-amd64";
const OLDER: &str = "vmlinuz-6.1.0-1-amd64";

struct OnDisk(File, u64);

impl DiskReader for OnDisk {
    fn size_bytes(&self) -> u64 {
        self.1
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}

/// A console that nobody types at; time passes only while somebody waits.
struct Silent {
    said: Arc<std::sync::Mutex<String>>,
    now: Duration,
}

impl Port for Silent {
    fn write(&mut self, bytes: &[u8]) {
        self.said.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
    }
    fn read(&mut self, wait: Duration) -> Vec<u8> {
        self.now += wait;
        Vec::new()
    }
    fn stopped(&self) -> Option<MachineExit> {
        (self.now > Duration::from_secs(3600)).then_some(MachineExit::PowerOff)
    }
    fn now(&self) -> Duration {
        self.now
    }
}

fn tool(name: &str, arguments: &[&str]) {
    let mut command = Command::new(name);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command.args(arguments).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{name}: {e}; `make test` installs what is missing"));
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn disk(id: &str, path: &Path) -> BootDisk {
    let file = File::options().read(true).write(true).open(path).expect("an image that was just made");
    let size = file.metadata().expect("a file").len();
    BootDisk { id: id.into(), is_cd: path.extension().is_some_and(|e| e == "iso"), reader: Arc::new(OnDisk(file, size)) }
}

fn options() -> Options {
    Options { add_console: true, memory_bytes: 64 << 20, ..Options::default() }
}

/// What the loader boots when nobody touches the menu, and what it said.
fn boot(disks: &[&Path], options: Options) -> (Result<Loaded, Halt>, String) {
    let disks = disks.iter().map(|path| disk("root", path)).collect();
    let said = Arc::default();
    let port = Silent { said: Arc::clone(&said), now: Duration::ZERO };
    let loaded = Loader::new(disks, options).expect("a configuration").run(Box::new(port), Limits::default());
    let said = said.lock().unwrap().clone();
    (loaded, said)
}

fn booted(disks: &[&Path], options: Options) -> Loaded {
    let (loaded, said) = boot(disks, options);
    loaded.unwrap_or_else(|halt| panic!("{halt:?}\n{said}"))
}

/// A kernel as far as a loader looks: Multiboot's header, and a mark.
fn kernel(mark: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(mark.as_bytes());
    bytes.resize(100_000, 0x55);
    bytes
}

/// The same for Linux: the setup header of its boot protocol.
fn linux() -> Vec<u8> {
    let mut bytes = vec![0; 100_000];
    bytes[0x1f1] = 4;
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x201] = 0x66;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    bytes[0x211] = 1;
    bytes
}

/// A /boot with two kernels and what grub-mkconfig writes for it.
fn debian_boot(root: &Path) {
    let boot = root.join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    for name in [KERNEL, OLDER] {
        fs::write(boot.join(name), kernel(name)).unwrap();
        fs::write(boot.join(name.replace("vmlinuz", "initrd.img")), format!("initrd of {name}")).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mkconfig");
    let output = Command::new("sh").arg(script).arg(&boot).arg(UUID).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config = String::from_utf8(output.stdout).expect("text");
    assert!(config.contains("### BEGIN /etc/grub.d/10_linux ###") && config.contains(KERNEL), "{config}");
    fs::write(boot.join("grub/grub.cfg"), config).unwrap();
    tool("grub-editenv", &[text(&boot.join("grub/grubenv")), "create"]);
}

/// A GPT disk: an EFI partition of 64 MiB from 1 MiB, and one with the file system in `image`.
fn gpt_disk(dir: &Path, esp: Option<&Path>, image: &Path) -> PathBuf {
    let path = dir.join("disk");
    let root = fs::read(image).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len((70 << 20) + root.len() as u64).unwrap();
    use std::io::Write;
    let path_variable = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sfdisk");
    command.args(["-q", "--no-reread", "--no-tell-kernel", text(&path)]).env("PATH", path_variable).stdin(Stdio::piped());
    let mut child = command.spawn().expect("sfdisk runs; `make test` installs it");
    let script = format!("label: gpt\n2: start=2048,size=131072,type=U\n1: start=135168,size={}\n", root.len() / 512);
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&root, 135_168 * 512).unwrap();
    if let Some(esp) = esp {
        let esp = fs::read(esp).unwrap();
        assert!(esp.len() <= 64 << 20);
        file.write_all_at(&esp, 1 << 20).unwrap();
    }
    path
}

fn blank(path: &Path, mib: u64) {
    File::create(path).expect("a scratch file").set_len(mib << 20).expect("room for a sparse file");
}

fn ext4(dir: &Path, root: &Path) -> PathBuf {
    let image = dir.join("ext4");
    blank(&image, 16);
    tool("mke2fs", &["-q", "-t", "ext4", "-U", UUID, "-L", "root", "-d", text(root), text(&image)]);
    image
}

#[test]
#[ignore = "needs tools: make test"]
fn what_grub_mkconfig_wrote_boots_its_default_and_what_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    debian_boot(&root);
    let disk = gpt_disk(dir.path(), None, &ext4(dir.path(), &root));
    let loaded = booted(&[&disk], options());
    assert!(loaded.kernel == kernel(KERNEL));
    assert_eq!(loaded.cmdline, format!("BOOT_IMAGE=/boot/{KERNEL} root=/dev/vda1 ro"));
    assert_eq!(loaded.initrd.unwrap(), format!("initrd of {KERNEL}").as_bytes());

    let advanced = format!("gnulinux-advanced-{UUID}>gnulinux-6.1.0-1-amd64-recovery-{UUID}");
    let loaded = booted(&[&disk], Options { entry: Some(advanced), ..options() });
    assert!(loaded.kernel == kernel(OLDER));
    assert!(loaded.cmdline.ends_with(" ro single"), "{}", loaded.cmdline);
    let loaded = booted(&[&disk], Options { entry: Some("1>2".into()), ..options() });
    assert!(loaded.kernel == kernel(OLDER));

    // What the guest itself asks for with grub-reboot and grub-set-default.
    let grubenv = root.join("boot/grub/grubenv");
    tool("grub-editenv", &[text(&grubenv), "set", "next_entry=1>2"]);
    let disk = gpt_disk(dir.path(), None, &ext4(dir.path(), &root));
    assert!(booted(&[&disk], options()).kernel == kernel(OLDER));
}

#[test]
#[ignore = "needs tools: make test"]
fn the_commands_and_the_place_of_the_guest_file_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    debian_boot(&root);
    fs::create_dir(root.join("own")).unwrap();
    fs::write(root.join("own/menu.cfg"), format!("linux /boot/{OLDER} from own\nboot\n")).unwrap();
    let disk = gpt_disk(dir.path(), None, &ext4(dir.path(), &root));
    let commands = vec![format!("linux /boot/{OLDER} 'a b' c"), format!("initrd /boot/{KERNEL} /boot/grub/grubenv")];
    let loaded = booted(&[&disk], Options { commands, partition: Some("gpt1".into()), ..options() });
    assert_eq!(loaded.cmdline, format!("BOOT_IMAGE=/boot/{OLDER} \"a b\" c"));
    assert_eq!(loaded.initrd.unwrap().len(), 100_000 + 1024);
    let place = Options { directory: Some("/own".into()), file: Some("menu.cfg".into()), ..options() };
    assert_eq!(booted(&[&disk], place).cmdline, format!("BOOT_IMAGE=/boot/{OLDER} from own"));
    let (ended, _) = boot(&[&disk], Options { commands: vec!["linux /none".into()], ..options() });
    assert!(matches!(ended, Err(Halt::GaveUp(text)) if text.contains("`grub.commands` loaded no kernel")));
}

#[test]
#[ignore = "needs tools: make test"]
fn an_efi_partition_leads_to_the_configuration_of_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    debian_boot(&root);
    // As grub-install writes it for a signed GRUB.
    let stub = format!("search.fs_uuid {UUID} root hd0,gpt1 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n");
    fs::write(dir.path().join("grub.cfg"), stub).unwrap();
    let esp = dir.path().join("esp");
    blank(&esp, 64);
    tool("mkfs.fat", &["-F", "32", text(&esp)]);
    tool("mmd", &["-i", text(&esp), "::EFI", "::EFI/debian"]);
    tool("mcopy", &["-i", text(&esp), text(&dir.path().join("grub.cfg")), "::EFI/debian/grub.cfg"]);
    let disk = gpt_disk(dir.path(), Some(&esp), &ext4(dir.path(), &root));
    let loaded = booted(&[&disk], Options { partition: Some("gpt2".into()), ..options() });
    assert!(loaded.kernel == kernel(KERNEL));
}

#[test]
#[ignore = "needs tools: make test"]
fn a_root_on_xfs_boots() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    debian_boot(&root);
    let mut proto = String::from("/none\n0 0\nd--755 0 0\nboot d--755 0 0\n");
    for name in [KERNEL, OLDER, "initrd.img-6.1.0-2-amd64", "initrd.img-6.1.0-1-amd64"] {
        proto.push_str(&format!(" {name} ---644 0 0 {}/boot/{name}\n", root.display()));
    }
    proto.push_str(&format!(" grub d--755 0 0\n  grub.cfg ---644 0 0 {}/boot/grub/grub.cfg\n $\n$\n$\n", root.display()));
    fs::write(dir.path().join("proto"), proto).unwrap();
    let image = dir.path().join("xfs");
    blank(&image, 320);
    let meta = format!("uuid={UUID}");
    tool("mkfs.xfs", &["-q", "-m", &meta, "-p", text(&dir.path().join("proto")), text(&image)]);
    // The whole disk is the file system: `root` stays where the configuration is.
    let loaded = booted(&[&image], options());
    assert!(loaded.kernel == kernel(KERNEL));
    assert_eq!(loaded.initrd.unwrap(), format!("initrd of {KERNEL}").as_bytes());
}

/// A /boot partition as Fedora has it: `grub2/grub.cfg` with `blscfg`, and an entry a kernel.
fn fedora_boot(root: &Path) {
    let id = "0123456789abcdef0123456789abcdef";
    fs::create_dir_all(root.join("grub2")).unwrap();
    fs::create_dir_all(root.join("loader/entries")).unwrap();
    for version in ["6.9.12-100.fc40.x86_64", "6.10.3-200.fc40.x86_64", "0-rescue"] {
        let title = if version == "0-rescue" { "Fedora Linux (0-rescue)" } else { "Fedora Linux 40" };
        let entry = format!(
            "title {title} ({version})\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
             options root=UUID={UUID} $kernelopts $tuned_params\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
        );
        fs::write(root.join(format!("loader/entries/{id}-{version}.conf")), entry).unwrap();
        fs::write(root.join(format!("vmlinuz-{version}")), kernel(version)).unwrap();
        fs::write(root.join(format!("initramfs-{version}.img")), version).unwrap();
    }
    let config = "set pager=1\n\nif [ -f ${config_directory}/grubenv ]; then\n  load_env -f ${config_directory}/grubenv\n\
        elif [ -s $prefix/grubenv ]; then\n  load_env\nfi\n\
        if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\n   set next_entry=\n   save_env next_entry\n   set boot_once=true\n\
        else\n   set default=\"${saved_entry}\"\nfi\n\
        insmod part_gpt\ninsmod xfs\nset boot='hd0,gpt1'\nif [ x$feature_platform_search_hint = xy ]; then\n  search --no-floppy --fs-uuid --set=boot 0a1b2c3d-4e5f-4061-8203-040506070809\nfi\n\
        if [ -z \"${kernelopts}\" ]; then\n  set kernelopts=\"ro quiet\"\nfi\n\
        set timeout_style=menu\nset timeout=1\ninsmod blscfg\nblscfg\n\
        if [ -f  $prefix/custom.cfg ]; then\n  source $prefix/custom.cfg\nfi\n";
    fs::write(root.join("grub2/grub.cfg"), config).unwrap();
    tool("grub-editenv", &[text(&root.join("grub2/grubenv")), "create"]);
}

#[test]
#[ignore = "needs tools: make test"]
fn fedoras_entries_are_sorted_and_take_the_variables_of_the_environment_block() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fedora_boot(&root);
    let disk = gpt_disk(dir.path(), None, &ext4(dir.path(), &root));
    let loaded = booted(&[&disk], options());
    let newest = "6.10.3-200.fc40.x86_64";
    assert!(loaded.kernel == kernel(newest));
    assert_eq!(loaded.cmdline, format!("BOOT_IMAGE=/vmlinuz-{newest} root=UUID={UUID} ro quiet"));
    assert_eq!(loaded.initrd.unwrap(), newest.as_bytes());

    let grubenv = root.join("grub2/grubenv");
    let saved = "saved_entry=0123456789abcdef0123456789abcdef-6.9.12-100.fc40.x86_64";
    tool("grub-editenv", &[text(&grubenv), "set", saved, "kernelopts=ro rhgb", "tuned_params=isolcpus=1"]);
    let disk = gpt_disk(dir.path(), None, &ext4(dir.path(), &root));
    let loaded = booted(&[&disk], options());
    assert_eq!(loaded.cmdline, format!("BOOT_IMAGE=/vmlinuz-6.9.12-100.fc40.x86_64 root=UUID={UUID} ro rhgb isolcpus=1"));

    // Without a grub.cfg the entries are the menu, as with systemd-boot.
    fs::remove_dir_all(root.join("grub2")).unwrap();
    let disk = gpt_disk(dir.path(), None, &ext4(dir.path(), &root));
    assert!(booted(&[&disk], options()).kernel == kernel(newest));
}

fn iso(dir: &Path, root: &Path) -> PathBuf {
    let image = dir.join("medium.iso");
    tool("xorriso", &["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "MEDIUM", "-o", text(&image), text(root)]);
    image
}

#[test]
#[ignore = "needs tools: make test"]
fn a_medium_with_isolinux_shows_its_labels_and_submenus() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("isolinux")).unwrap();
    fs::create_dir_all(root.join("install.amd")).unwrap();
    fs::write(root.join("install.amd/vmlinuz"), kernel("installer")).unwrap();
    fs::write(root.join("isolinux/rescue"), kernel("rescue")).unwrap();
    fs::write(root.join("install.amd/initrd.gz"), "initrd").unwrap();
    fs::write(
        root.join("isolinux/isolinux.cfg"),
        "# D-I config\npath \nprompt 0\ntimeout 50\ninclude menu.cfg\ndefault vesamenu.c32\n",
    )
    .unwrap();
    let menu = "menu hshift 4\nmenu title Installer menu\ninclude gtk.cfg\ninclude txt.cfg\n\
        menu begin advanced\n    menu label ^Advanced options\n\tmenu title Advanced options\n\tlabel mainmenu\n\t\tmenu label ^Back..\n\t\tmenu exit\n\
        \tlabel rescue\n\t\tmenu label ^Rescue mode\n\t\tkernel rescue\n\t\tappend rescue/enable=true --- quiet\nmenu end\n\
        label help\n\tmenu label ^Help\n\ttext help\n   Display help; kernel here\n\tendtext\n\tconfig prompt.cfg\n";
    fs::write(root.join("isolinux/menu.cfg"), menu).unwrap();
    let txt = "label install\n\tmenu label ^Install\n\tkernel /install.amd/vmlinuz\n\tappend vga=788 initrd=/install.amd/initrd.gz --- quiet \n";
    fs::write(root.join("isolinux/txt.cfg"), txt).unwrap();
    let image = iso(dir.path(), &root);
    let loaded = booted(&[&image], options());
    assert!(loaded.kernel == kernel("installer"));
    assert_eq!(loaded.cmdline, "BOOT_IMAGE=(cd0)/install.amd/vmlinuz vga=788 --- quiet");
    assert_eq!(loaded.initrd.unwrap(), b"initrd");
    let rescue = Options { entry: Some("Advanced options>rescue".into()), timeout: Some(Duration::ZERO), ..options() };
    assert!(booted(&[&image], rescue).kernel == kernel("rescue"));
}

#[test]
#[ignore = "needs tools: make test"]
fn a_medium_of_grub_mkrescue_boots_by_its_own_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    fs::write(root.join("boot/vmlinuz"), kernel("rescue medium")).unwrap();
    let config =
        "search --set=root --file /boot/vmlinuz\nset timeout=0\nmenuentry rescue { linux /boot/vmlinuz console=ttyS0 }\n";
    fs::write(root.join("boot/grub/grub.cfg"), config).unwrap();
    let image = dir.path().join("rescue.iso");
    tool("grub-mkrescue", &["-o", text(&image), text(&root)]);
    let loaded = booted(&[&image], options());
    assert!(loaded.kernel == kernel("rescue medium"));
    assert_eq!(loaded.cmdline, "BOOT_IMAGE=/boot/vmlinuz console=ttyS0");
}

#[test]
#[ignore = "needs tools: make test"]
fn an_installers_medium_is_booted_whatever_the_disk_has_and_its_words_stand_before_those_of_the_installed_system() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, tree) = (dir.path().join("root"), dir.path().join("tree"));
    debian_boot(&root);
    let root_disk = ext4(dir.path(), &root);
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    fs::write(tree.join("vmlinuz"), linux()).unwrap();
    let config = "set timeout=0\nmenuentry install { linux /vmlinuz vga=788 --- quiet }\n";
    fs::write(tree.join("boot/grub/grub.cfg"), config).unwrap();
    let medium = iso(dir.path(), &tree);
    let append = vec!["auto=true".to_string(), "ds=nocloud;s=http://10.0.2.4/".to_string()];
    let look = |on: &str| {
        let options = Options { disk: Some(on.into()), append: append.clone(), ..options() };
        Loader::new(vec![disk("root", &root_disk), disk("install", &medium)], options)
    };
    let silent = Silent { said: Arc::default(), now: Duration::ZERO };
    let loaded = look("install").expect("a configuration").run(Box::new(silent), Limits::default()).expect("boots");
    assert_eq!(loaded.cmdline, "BOOT_IMAGE=/vmlinuz vga=788 auto=true ds=nocloud;s=http://10.0.2.4/ --- quiet console=ttyS0");
    let error = look("none").err().expect("no such disk").to_string();
    assert!(error.contains("no boot configuration") && error.contains("iso9660"), "{error}");
}

#[test]
#[ignore = "needs tools: make test"]
fn a_guest_with_nothing_to_boot_is_told_what_each_partition_has() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot")).unwrap();
    fs::write(root.join("boot/loader"), "x").unwrap();
    let image = iso(dir.path(), &root);
    let refused = |disks: Vec<BootDisk>| -> GrubError { Loader::new(disks, options()).err().expect("it has nothing to boot") };
    let said = refused(vec![disk("cd", &image)]).to_string();
    assert!(said.ends_with("found: disk `cd` (cd0): iso9660 `MEDIUM`, with FreeBSD's loader"), "{said}");
    let locked = dir.path().join("luks");
    blank(&locked, 4);
    File::options().write(true).open(&locked).unwrap().write_all_at(b"LUKS\xba\xbe\x00\x02", 0).unwrap();
    let path = gpt_disk(dir.path(), None, &locked);
    let said = refused(vec![disk("root", &path)]).to_string();
    assert!(said.contains("partition 1 (hd0,gpt1): LUKS2 encryption; partition 2 (hd0,gpt2): unknown contents"), "{said}");
}

#[test]
#[ignore = "needs tools: make test"]
fn a_configuration_that_loops_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    for (config, why) in [
        ("while true; do set a=$a$a; done", "without an end"),
        ("configfile /boot/grub/grub.cfg", "nested too deeply"),
        ("source /boot/grub/grub.cfg", "nested too deeply"),
        ("submenu x { source /boot/grub/grub.cfg }\nset timeout=0\nset default='0>0>0>0>0>0>0>0>0>0>0>0'", "nested too deeply"),
    ] {
        fs::write(root.join("boot/grub/grub.cfg"), config).unwrap();
        let (ended, said) = boot(&[&iso(dir.path(), &root)], options());
        let Err(Halt::GaveUp(text)) = ended else { panic!("{config}: {ended:?}") };
        assert!(text.contains(why) || said.contains(why), "{config}: {text}\n{said}");
    }
}

/// A menu as grub-mkconfig writes it with `GRUB_DEFAULT=saved` and `GRUB_SAVEDEFAULT=true`, and Ubuntu's `recordfail`.
const SAVING: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
set timeout=0
menuentry 'One' --id one { recordfail; savedefault; linux /boot/one fail=$recordfail }
submenu 'More > of it' --id 'more>' {
  menuentry 'Two' --id two { savedefault; linux /boot/two }
}
menuentry 'Three' --id three { savedefault; linux /boot/three }
"#;

/// A root with [`SAVING`], and an environment block that holds what grub-editenv put into it.
fn saving_root(dir: &Path, set: &[&str]) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    for name in ["one", "two", "three"] {
        fs::write(root.join("boot").join(name), kernel(name)).unwrap();
    }
    fs::write(root.join("boot/grub/grub.cfg"), SAVING).unwrap();
    let grubenv = root.join("boot/grub/grubenv");
    tool("grub-editenv", &[text(&grubenv), "create"]);
    tool("grub-editenv", &[&[text(&grubenv), "set", "kernelopts=ro quiet"], set].concat());
    root
}

/// Boots, with the entry that somebody picks if they do; the name of the kernel, and what was said.
fn boots(image: &Path, entry: Option<&str>) -> (String, String) {
    let (loaded, said) = boot(&[image], Options { entry: entry.map(str::to_string), ..options() });
    (loaded.unwrap_or_else(|halt| panic!("{halt:?}\n{said}")).name, said)
}

/// The ranges of sectors in which two images differ.
fn differences(one: &[u8], other: &[u8]) -> Vec<std::ops::Range<usize>> {
    assert_eq!(one.len(), other.len());
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..one.len()).step_by(512).filter(|&at| one[at..at + 512] != other[at..at + 512]) {
        match found.last_mut() {
            Some(last) if last.end == at => last.end = at + 512,
            _ => found.push(at..at + 512),
        }
    }
    found
}

/// What grub-editenv finds in the block of an ext4 image.
fn grubenv_of(dir: &Path, image: &Path) -> String {
    let copy = dir.join("grubenv");
    tool("debugfs", &["-R", &format!("dump /boot/grub/grubenv {}", text(&copy)), text(image)]);
    let output = Command::new("grub-editenv").args([text(&copy), "list"]).output().expect("grub-editenv runs");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
#[ignore = "needs tools: make test"]
fn what_is_picked_is_the_default_of_the_next_boot_and_nothing_else_on_the_disk_changes() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4(dir.path(), &saving_root(dir.path(), &[]));
    assert_eq!(boots(&image, None).0, "/boot/one");
    assert_eq!(grubenv_of(dir.path(), &image), "kernelopts=ro quiet\nrecordfail=1\nsaved_entry=one\n");
    let before = fs::read(&image).unwrap();
    assert_eq!(boots(&image, Some("more>>>two")).0, "/boot/two");
    assert_eq!(grubenv_of(dir.path(), &image), "kernelopts=ro quiet\nrecordfail=1\nsaved_entry=more>>>two\n");
    let (name, said) = boots(&image, None);
    assert!(name == "/boot/two" && !said.contains("error"), "{said}");
    let changed = differences(&before, &fs::read(&image).unwrap());
    assert!(changed.len() == 1 && changed[0].len() <= 1024, "{changed:?}");
    tool("e2fsck", &["-f", "-n", text(&image)]);
}

#[test]
#[ignore = "needs tools: make test"]
fn a_next_entry_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = saving_root(dir.path(), &["next_entry=three", "saved_entry=one"]);
    let root = ext4(dir.path(), &root);
    let image = gpt_disk(dir.path(), None, &root);
    for expected in ["/boot/three", "/boot/one", "/boot/one"] {
        let (name, said) = boots(&image, None);
        assert!(name == expected && !said.contains("error"), "{name} and not {expected}: {said}");
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn attempts_to_boot_are_counted_down_until_the_entry_before_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let root = saving_root(dir.path(), &["boot_counter=2", "boot_success=0"]);
    // As Fedora's systems with rpm-ostree count.
    let config = "load_env\nset default=0\nif [ -n \"$boot_counter\" -a \"$boot_success\" = 0 ]; then\n\
        if [ \"$boot_counter\" -le 0 ]; then set default=1; set boot_counter=-1; else decrement boot_counter; fi\nsave_env boot_counter\nfi\n\
        set timeout=0\nmenuentry new { linux /boot/two }\nmenuentry old { linux /boot/one }\n";
    fs::write(root.join("boot/grub/grub.cfg"), config).unwrap();
    let image = ext4(dir.path(), &root);
    let counter =
        || grubenv_of(dir.path(), &image).lines().find_map(|line| line.strip_prefix("boot_counter=").map(str::to_owned));
    for (name, left) in [("/boot/two", "1"), ("/boot/two", "0"), ("/boot/one", "-1"), ("/boot/one", "-1")] {
        let (booted, said) = boots(&image, None);
        assert!(booted == name && !said.contains("error"), "{booted} and not {name}: {said}");
        assert_eq!(counter().as_deref(), Some(left));
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn xfs_and_fat_take_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let root = saving_root(dir.path(), &[]);
    let at = |name: &str| format!("{}/boot/{name}", root.display());
    let proto = format!(
        "/none\n0 0\nd--755 0 0\nboot d--755 0 0\n one ---644 0 0 {}\n two ---644 0 0 {}\n grub d--755 0 0\n  \
         grub.cfg ---644 0 0 {}\n  grubenv ---644 0 0 {}\n $\n$\n$\n",
        at("one"),
        at("two"),
        at("grub/grub.cfg"),
        at("grub/grubenv")
    );
    fs::write(dir.path().join("proto"), proto).unwrap();
    let xfs = dir.path().join("xfs");
    blank(&xfs, 320);
    tool("mkfs.xfs", &["-q", "-p", text(&dir.path().join("proto")), text(&xfs)]);
    let fat = dir.path().join("fat");
    blank(&fat, 64);
    tool("mkfs.fat", &["-F", "32", text(&fat)]);
    tool("mcopy", &["-s", "-i", text(&fat), text(&root.join("boot")), "::"]);
    for image in [&xfs, &fat] {
        let before = fs::read(image).unwrap();
        let (name, said) = boots(image, Some("1>0"));
        assert!(name == "/boot/two" && !said.contains("error"), "{said}");
        let changed = differences(&before, &fs::read(image).unwrap());
        assert!(changed.len() == 1 && changed[0].len() <= 1024, "{changed:?}");
        assert_eq!(boots(image, None).0, "/boot/two");
    }
    tool("xfs_repair", &["-n", text(&xfs)]);
    tool("fsck.fat", &["-n", text(&fat)]);
}

#[test]
#[ignore = "needs tools: make test"]
fn where_nothing_may_be_written_it_is_said_and_the_guest_boots() {
    let dir = tempfile::tempdir().unwrap();
    let root = saving_root(dir.path(), &[]);
    let image = ext4(dir.path(), &root);
    let unchanged = |image: &Path, why: &str| {
        let before = fs::read(image).unwrap();
        let (name, said) = boots(image, None);
        assert_eq!(name, "/boot/one");
        let text = format!("/boot/grub/grubenv' is kept until the guest runs, but is not written: {why}");
        assert!(said.contains(&text), "no `{text}` in {said}");
        assert_eq!(said.matches("is not written").count(), 1, "{said}");
        assert!(before == fs::read(image).unwrap(), "{why}");
    };
    // A journal that is to be replayed, and blocks that files share.
    let shared = dir.path().join("shared");
    fs::copy(&image, &shared).unwrap();
    let (block, script) = (dir.path().join("block"), dir.path().join("script"));
    fs::write(&block, [b'j'; 1024]).unwrap();
    fs::write(&script, format!("jo -c -v 3\njw -b 9000 {}\njc\n", text(&block))).unwrap();
    tool("debugfs", &["-w", "-f", text(&script), text(&image)]);
    unchanged(&image, "its file system was not unmounted");
    tool("debugfs", &["-w", "-R", "feature +shared_blocks", text(&shared)]);
    unchanged(&shared, "its file system has features with which this loader only reads it");
    unchanged(&iso(dir.path(), &root), "its file system can only be read");
    // A block in two clusters that are apart: the second is beyond a file that was there before.
    let apart = dir.path().join("apart");
    blank(&apart, 16);
    tool("mkfs.fat", &["-F", "16", "-s", "1", text(&apart)]);
    tool("mmd", &["-i", text(&apart), "::boot", "::boot/grub"]);
    let sector = dir.path().join("sector");
    fs::write(&sector, [b's'; 512]).unwrap();
    for name in ["::first", "::second"] {
        tool("mcopy", &["-i", text(&apart), text(&sector), name]);
    }
    tool("mdel", &["-i", text(&apart), "::first"]);
    for name in ["grub/grubenv", "grub/grub.cfg", "one", "two", "three"] {
        tool("mcopy", &["-i", text(&apart), text(&root.join("boot").join(name)), &format!("::boot/{name}")]);
    }
    unchanged(&apart, "its bytes are not in one place of the disk");
}

/// The EFI system partition and the `/boot` of a Fedora that was installed under UEFI: `$boot` is the former, where no entry
/// is, and `$root` the latter.
fn fedora_uefi(dir: &Path, grubenv: &[&str]) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("grub2")).unwrap();
    fs::create_dir_all(root.join("loader/entries")).unwrap();
    for version in ["6.1", "5.9"] {
        let entry = format!("title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\noptions v={version}\n");
        fs::write(root.join(format!("loader/entries/aa-{version}.conf")), entry).unwrap();
        fs::write(root.join(format!("vmlinuz-{version}")), kernel(version)).unwrap();
    }
    let config = format!(
        "load_env -f ${{config_directory}}/grubenv\nset default=\"${{saved_entry}}\"\nset timeout=1\n\
        if [ -n \"${{boot_counter}}\" -a \"${{boot_success}}\" = \"0\" ]; then\n  decrement boot_counter\n  save_env boot_counter\nfi\n\
        search --no-floppy --fs-uuid --set=root {UUID}\nsearch --no-floppy --fs-uuid --set=boot FADF-2A0D\ninsmod blscfg\nblscfg\n"
    );
    fs::write(root.join("grub2/grub.cfg"), config).unwrap();
    let block = root.join("grub2/grubenv");
    tool("grub-editenv", &[text(&block), "create"]);
    tool("grub-editenv", &[&[text(&block), "set"], grubenv].concat());
    let (esp, stub) = (dir.join("esp"), dir.join("stub"));
    let lines = format!(
        "search --no-floppy --fs-uuid --set=dev {UUID}\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n"
    );
    fs::write(&stub, lines).unwrap();
    blank(&esp, 40);
    tool("mkfs.fat", &["-i", "FADF2A0D", text(&esp)]);
    tool("mmd", &["-i", text(&esp), "::/EFI", "::/EFI/fedora"]);
    tool("mcopy", &["-i", text(&esp), text(&stub), "::/EFI/fedora/grub.cfg"]);
    gpt_disk(dir, Some(&esp), &ext4(dir, &root))
}

#[test]
#[ignore = "needs tools: make test"]
fn a_fedora_that_was_installed_under_uefi_boots_its_saved_entry_and_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = fedora_uefi(dir.path(), &["saved_entry=aa-5.9", "boot_counter=3", "boot_success=0"]);
    let counter = || {
        let bytes = fs::read(&image).unwrap();
        let at = bytes.windows(13).position(|window| window == b"boot_counter=").expect("a block");
        bytes[at + 13]
    };
    // The first partition has a configuration that leads to the second.
    for partition in [None, Some("gpt2".to_string()), Some("gpt1".to_string())] {
        let before = counter();
        let loaded = booted(&[&image], Options { partition, ..options() });
        assert_eq!(loaded.cmdline, "BOOT_IMAGE=/vmlinuz-5.9 v=5.9");
        assert_eq!(counter(), before - 1);
    }
}

#[test]
#[ignore = "needs tools: make test"]
fn what_an_attempt_saves_is_written_when_its_kernel_is_entered_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let root = saving_root(dir.path(), &["boot_counter=5"]);
    // A configuration without entries, then one whose first entry has no kernel.
    let empty = "load_env\nset boot_counter=1\nsave_env boot_counter\n";
    fs::write(root.join("boot/grub/grub.cfg"), empty).unwrap();
    fs::create_dir_all(root.join("grub")).unwrap();
    fs::copy(root.join("boot/grub/grubenv"), root.join("grub/grubenv")).unwrap();
    let second = "load_env -f /boot/grub/grubenv\nset timeout=0\nset default=bad\nset fallback=1\n\
        menuentry bad { boot_counter=2; save_env -f /boot/grub/grubenv boot_counter; linux /none }\n\
        menuentry good { good=yes; save_env -f /boot/grub/grubenv good; linux /boot/one $boot_counter }\n";
    fs::write(root.join("grub/grub.cfg"), second).unwrap();
    let image = ext4(dir.path(), &root);
    let (name, said) = boots(&image, None);
    assert_eq!(name, "/boot/one", "{said}");
    assert_eq!(grubenv_of(dir.path(), &image), "kernelopts=ro quiet\nboot_counter=5\ngood=yes\n");
    // Nothing boots: nothing is written.
    let before = fs::read(&image).unwrap();
    let (ended, _) = boot(&[&image], Options { entry: Some("bad".into()), ..options() });
    assert!(ended.is_err() || ended.is_ok_and(|loaded| loaded.name == "/boot/one"));
    fs::write(&image, &before).unwrap();
    fs::write(root.join("grub/grub.cfg"), second.replace("set fallback=1", "")).unwrap();
    let image = ext4(dir.path(), &root);
    let before = fs::read(&image).unwrap();
    assert!(boot(&[&image], options()).0.is_err());
    assert!(before == fs::read(&image).unwrap());
}

#[test]
#[ignore = "needs tools: make test"]
fn a_disk_that_cannot_be_read_is_told_and_not_taken_for_one_without_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4(dir.path(), &saving_root(dir.path(), &[]));
    // The directory's inode: its checksum does not hold any more.
    tool("debugfs", &["-w", "-R", "sif /boot/grub generation 77", text(&image)]);
    let bytes = fs::read(&image).unwrap();
    let inode = bytes.windows(4).enumerate().find(|(at, window)| at % 256 == 100 && *window == 77u32.to_le_bytes());
    let at = inode.expect("the generation that was just set").0;
    File::options().write(true).open(&image).unwrap().write_all_at(&[78], at as u64).unwrap();
    let said = Loader::new(vec![disk("root", &image)], options()).err().expect("nothing can be read").to_string();
    assert!(said.contains("could not be read: (hd0)/boot/grub/grub.cfg: the ext2 file system is damaged"), "{said}");
}

/// An ext4 disk with this extlinux.conf and kernels of these names.
fn extlinux(dir: &Path, config: &str, kernels: &[&str]) -> PathBuf {
    let root = dir.join("extlinux");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("boot")).unwrap();
    for name in kernels {
        fs::write(root.join("boot").join(name), kernel(name)).unwrap();
    }
    fs::write(root.join("boot/initramfs"), "initramfs").unwrap();
    fs::write(root.join("boot/extlinux.conf"), config).unwrap();
    ext4(dir, &root)
}

#[test]
#[ignore = "needs tools: make test"]
fn extlinux_boots_what_syslinux_would_and_when() {
    let dir = tempfile::tempdir().unwrap();
    let two =
        "LABEL lts\n LINUX lts\n INITRD initramfs\n APPEND lts=1\n\nLABEL virt\n LINUX virt\n INITRD initramfs\n APPEND virt=1\n";
    let cases = [
        // MENU SEPARATOR behind the last label, as Alpine's update-extlinux writes it.
        ("DEFAULT menu.c32\nPROMPT 0\nMENU HIDDEN\nTIMEOUT 10\nLABEL virt\n  MENU LABEL Linux virt\n  LINUX virt\n  APPEND quiet\n\nMENU SEPARATOR\n".to_string(), "quiet"),
        // Words behind the label.
        (format!("DEFAULT virt   # my default\nTIMEOUT 10\n{two}"), "virt=1"),
        (format!("DEFAULT virt extra=1\n{two}"), "virt=1 extra=1"),
        // No TIMEOUT, PROMPT or menu.
        ("DEFAULT linux\nLABEL linux\n KERNEL /boot/virt\n APPEND initrd=/boot/initramfs quiet\n".to_string(), "quiet"),
        // A kernel without a label, a label without a kernel, and one that the menu hides.
        ("DEFAULT virt quiet initrd=initramfs\n".to_string(), "quiet"),
        ("APPEND global\nDEFAULT virt\nLABEL virt\n".to_string(), "global"),
        (format!("DEFAULT virt\nPROMPT 0\n{two} MENU HIDE\n"), "virt=1"),
        (format!("UI menu.c32\nTIMEOUT 10\n{two} MENU DEFAULT\n"), "virt=1"),
        (format!("UI menu.c32\nTIMEOUT 10\nONTIMEOUT virt late\n{two}"), "virt=1 late"),
        (format!("PROMPT 1\nDEFAULT VIRT\nTOTALTIMEOUT 30\n{two}"), "virt=1"),
        ("DEFAULT x\nAPPEND one\nLABEL x\n LINUX virt - two\n APPEND -\n".to_string(), "- two"),
    ];
    for (config, arguments) in cases {
        let (loaded, said) = boot(&[&extlinux(dir.path(), &config, &["lts", "virt"])], options());
        let loaded = loaded.unwrap_or_else(|halt| panic!("{config}: {halt:?}\n{said}"));
        assert!(loaded.kernel == kernel("virt"), "{config}: {}", loaded.name);
        assert!(loaded.cmdline.ends_with(&format!(" {arguments}")), "{config}: {}", loaded.cmdline);
        assert!(!said.contains("error"), "{config}: {said}");
    }
    // mboot.c32, which is a loader of Multiboot kernels.
    let config = "DEFAULT x\nLABEL x\n KERNEL mboot.c32\n APPEND virt a b --- initramfs c --- lts\n";
    let loaded = booted(&[&extlinux(dir.path(), config, &["lts", "virt"])], options());
    assert_eq!((loaded.way, loaded.cmdline.as_str()), (Way::Multiboot, "/boot/virt a b"));
    let words: Vec<&str> = loaded.modules.iter().map(|(_, words)| words.as_str()).collect();
    assert_eq!(words, ["/boot/initramfs c", "/boot/lts"]);
    // A default that is nothing is said, and the first entry is there.
    let config = format!("DEFAULT none\nTIMEOUT 10\n{two}");
    let (loaded, said) = boot(&[&extlinux(dir.path(), &config, &["lts", "virt"])], options());
    assert!(
        loaded.is_ok_and(|loaded| loaded.kernel == kernel("lts")) && said.contains("`none` is neither a label nor a kernel"),
        "{said}"
    );
}

#[test]
#[ignore = "needs tools: make test"]
fn localboot_and_exit_go_on_to_the_next_disk_and_config_to_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("isolinux")).unwrap();
    fs::write(tree.join("isolinux/linux"), kernel("installer")).unwrap();
    fs::write(tree.join("isolinux/more.cfg"), "DEFAULT other\nLABEL other\n LINUX linux\n APPEND other\n").unwrap();
    let root = extlinux(dir.path(), "DEFAULT virt\nLABEL virt\n LINUX virt\n", &["virt"]);
    let installer = "LABEL linux\nLABEL local\n LOCALBOOT 0x80\nLABEL more\n CONFIG more.cfg\n";
    for (default, mark) in [("local", "virt"), ("linux", "installer"), ("more", "installer")] {
        fs::write(tree.join("isolinux/isolinux.cfg"), format!("DEFAULT {default}\n{installer}")).unwrap();
        let loaded = booted(&[&iso(dir.path(), &tree), &root], options());
        assert!(loaded.kernel == kernel(mark), "{default}: {}", loaded.name);
        assert_eq!(default == "more", loaded.cmdline.ends_with(" other"));
    }
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    let config = "set timeout=0\nmenuentry local { exit 1 }\nmenuentry install { linux /isolinux/linux }\n";
    fs::write(tree.join("boot/grub/grub.cfg"), config).unwrap();
    fs::remove_dir_all(tree.join("isolinux")).unwrap();
    assert!(booted(&[&iso(dir.path(), &tree), &root], options()).kernel == kernel("virt"));
}

#[test]
#[ignore = "needs tools: make test"]
fn multiboot_kernels_of_both_versions_take_modules_with_their_words() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    fs::write(root.join("boot/xen"), kernel("xen")).unwrap();
    let words = [0xe852_50d6u32, 0, 24, 0u32.wrapping_sub(0xe852_50d6 + 24), 0, 8];
    fs::write(root.join("boot/two"), words.map(u32::to_le_bytes).concat()).unwrap();
    fs::write(root.join("boot/module"), "module").unwrap();
    for name in ["xen", "module"] {
        let packed = Command::new("gzip").args(["-c", text(&root.join("boot").join(name))]).output().expect("gzip runs");
        fs::write(root.join(format!("boot/{name}.gz")), packed.stdout).unwrap();
    }
    let config = "set timeout=0\nmenuentry one --id one {\n multiboot /boot/xen.gz placeholder 'a b'\n \
        module /boot/module.gz placeholder root=x\n module --nounzip /boot/module.gz\n}\n\
        menuentry two --id two {\n multiboot2 (hd0)/boot/two x\n module2 /boot/module\n}\n\
        menuentry wrong --id wrong {\n multiboot2 /boot/xen\n}\n";
    fs::write(root.join("boot/grub/grub.cfg"), config).unwrap();
    let image = ext4(dir.path(), &root);
    let loaded = booted(&[&image], options());
    assert!(loaded.kernel == kernel("xen"));
    assert_eq!((loaded.way, loaded.cmdline.as_str()), (Way::Multiboot, "/boot/xen.gz placeholder \"a b\""));
    assert_eq!(loaded.modules[0], (b"module".to_vec(), "/boot/module.gz placeholder root=x".to_string()));
    assert!(loaded.modules[1].0.starts_with(&[0x1f, 0x8b]) && loaded.modules[1].1 == "/boot/module.gz");
    let of = |entry: &str| boot(&[&image], Options { entry: Some(entry.into()), ..options() });
    let loaded = of("two").0.expect("boots");
    assert_eq!((loaded.way, loaded.cmdline.as_str(), loaded.modules.len()), (Way::Multiboot2, "/boot/two x", 1));
    let (ended, said) = of("wrong");
    assert!(ended.is_err() && said.contains("has no Multiboot 2 header"), "{said}");
}
