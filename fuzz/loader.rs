//! The targets of the loaders: file systems and kernels with some of their bytes changed, and boot configurations with keys.

use std::time::Duration;

use vmctl::testing::devices::disk::DiskReader;
use vmctl::testing::hypervisor::backend::MachineExit;
use vmctl::testing::machine::loader::grub::{Devices, Limits, Loader, Options, Port};
use vmctl::testing::machine::loader::initrd::Initrd;
use vmctl::testing::machine::loader::kernel::{Image, Module, Way, load_image};
use vmctl::testing::machine::loader::volume::probe::{Found, probe};
use vmctl::testing::machine::loader::volume::{FileSystem, Medium, NodeKind, Result, VolumeError, in_place, partition};

use super::Bytes;

/// What `make-templates` made, and the size of each disk.
const TEMPLATES: &[(&[u8], u64)] = &[
    (include_bytes!("templates/ext4"), 192 << 10),
    (include_bytes!("templates/ext2"), 192 << 10),
    (include_bytes!("templates/fat"), 64 << 10),
    (include_bytes!("templates/iso"), 512 << 10),
    (include_bytes!("templates/xfs"), 320 << 20),
    (include_bytes!("templates/gpt"), 1 << 20),
    (include_bytes!("templates/dos"), 1 << 20),
    (include_bytes!("templates/spread"), 1 << 20),
    (include_bytes!("templates/journal"), 2 << 20),
];
const READ_MAX: u64 = 1 << 20;

/// A disk that is zeros beyond its first bytes.
struct Template {
    bytes: Vec<u8>,
    size: u64,
    written: std::sync::Mutex<Vec<std::ops::Range<u64>>>,
}

impl DiskReader for Template {
    fn size_bytes(&self) -> u64 {
        self.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        assert!(offset + buffer.len() as u64 <= self.size, "nothing is read beyond the disk");
        buffer.fill(0);
        if let Some(there) = self.bytes.get(offset as usize..) {
            let len = there.len().min(buffer.len());
            buffer[..len].copy_from_slice(&there[..len]);
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let end = offset + bytes.len() as u64;
        assert!(end <= self.size, "nothing is written beyond the disk");
        self.written.lock().expect("nobody panicked").push(offset..end);
        Ok(())
    }
}

/// A template's bytes, and where those are that mean something.
fn unpack(records: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut places) = (Vec::new(), Vec::new());
    let mut rest = records;
    while let [a, b, c, d, e, f, g, h, more @ ..] = rest {
        let offset = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let len = u32::from_le_bytes([*e, *f, *g, *h]) as usize;
        bytes.resize(offset, 0);
        bytes.extend_from_slice(&more[..len]);
        places.extend(offset..offset + len);
        rest = &more[len..];
    }
    (bytes, places)
}

fn look(volume: &dyn FileSystem) {
    let _ = (volume.label(), volume.uuid());
    for directory in ["/", "/boot", "/boot/grub", "/link", "/many"] {
        if let Ok(names) = volume.list(directory) {
            for (name, _) in names.iter().take(3) {
                let _ = volume.kind_of(&format!("{directory}/{name}"));
            }
        }
    }
    for file in ["/boot/grub/grub.cfg", "/link/grub.cfg", "/many/a-file-of-a-directory-007"] {
        if let Ok(bytes) = volume.read(file, READ_MAX) {
            assert!(bytes.len() as u64 <= READ_MAX);
            let _ = in_place::replace(volume, file, &bytes, &vec![b'#'; bytes.len()]);
        }
    }
}

/// Partition tables and file systems: the input says which, which bytes change, and where the disk ends.
pub fn volume(data: &[u8]) {
    let mut input = Bytes::new(data);
    let (records, mut size) = TEMPLATES[usize::from(input.byte()) % TEMPLATES.len()];
    let (mut bytes, places) = unpack(records);
    for _ in 0..=input.byte() % 12 {
        let place = input.word() as usize % places.len();
        for i in 0..=usize::from(input.byte() % 4) {
            if let Some(byte) = bytes.get_mut(places[place] + i) {
                *byte = input.byte();
            }
        }
    }
    if input.byte() < 40 {
        size = (size * u64::from(input.byte()) / 256) & !511;
    }
    bytes.truncate(size as usize);
    let disk = std::sync::Arc::new(Template { bytes, size, written: std::sync::Mutex::default() });
    let medium = Medium::new(disk.clone());
    if let Found::Volume(found) = probe(&medium) {
        look(found.as_ref());
    }
    for part in partition::read(&medium).unwrap_or_default() {
        if let Found::Volume(found) = probe(&medium.window(part.start, part.len)) {
            disk.written.lock().expect("nobody panicked").clear();
            look(found.as_ref());
            let written = disk.written.lock().expect("nobody panicked");
            let inside = |place: &std::ops::Range<u64>| place.start >= part.start && place.end <= part.start + part.len;
            assert!(written.iter().all(inside), "nothing is written beyond the partition");
        }
    }
}

/// A file system whose configurations are the input's text.
struct Configured {
    text: Vec<u8>,
    /// Which of the places of a configuration there are.
    which: u8,
    nowhere: Medium,
}

impl FileSystem for Configured {
    fn kind(&self) -> &'static str {
        "ext2"
    }
    fn label(&self) -> String {
        "label".into()
    }
    fn uuid(&self) -> String {
        "1234".into()
    }
    fn kind_of(&self, path: &str) -> Result<NodeKind> {
        let there = match path.rsplit('/').next().unwrap_or("") {
            "grub.cfg" => self.which & 1 != 0,
            "isolinux.cfg" => self.which & 2 != 0,
            "entries" => return Ok(NodeKind::Directory),
            "linux" | "a.conf" | "grubenv" | "menu.cfg" => true,
            _ => false,
        };
        if there { Ok(NodeKind::File) } else { Err(VolumeError::NotFound(path.into())) }
    }
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        self.kind_of(path)?;
        if path.ends_with("linux") {
            let words = [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)];
            return Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        let size = self.text.len() as u64;
        if size > limit { Err(VolumeError::TooLarge { size, limit }) } else { Ok(self.text.clone()) }
    }
    fn list(&self, path: &str) -> Result<Vec<(String, NodeKind)>> {
        match path {
            "/loader/entries" if self.which & 4 != 0 => Ok(vec![("a.conf".into(), NodeKind::File)]),
            _ => Err(VolumeError::NotFound(path.into())),
        }
    }
    fn pinned(&self, _: &str) -> Result<Option<&'static str>> {
        Ok(None)
    }
    fn window(&self) -> &Medium {
        &self.nowhere
    }
}

/// Keys that are typed one a second, and time that passes only while somebody waits or looks.
struct Typed {
    keys: Vec<u8>,
    now: std::cell::Cell<Duration>,
    written: usize,
}

impl Port for Typed {
    fn write(&mut self, bytes: &[u8]) {
        self.written += bytes.len();
        assert!(self.written < 64 << 20, "what is printed is bounded");
    }
    fn read(&mut self, wait: Duration) -> Vec<u8> {
        self.now.set(self.now.get() + wait);
        if self.keys.is_empty() || wait < Duration::from_millis(50) { Vec::new() } else { vec![self.keys.remove(0)] }
    }
    fn stopped(&self) -> Option<MachineExit> {
        (self.keys.is_empty() && self.now.get() > Duration::from_secs(2000)).then_some(MachineExit::PowerOff)
    }
    fn now(&self) -> Duration {
        self.now.set(self.now.get() + Duration::from_micros(20));
        self.now.get()
    }
}

/// Words that make scripts likelier than letters do.
const WORDS: &[&str] = &[
    "if ",
    "then ",
    "elif ",
    "else ",
    "fi\n",
    "while ",
    "until ",
    "do ",
    "done\n",
    "for x in ",
    "function f {",
    "menuentry a {",
    "submenu b {",
    "}\n",
    ";",
    "\n",
    " ",
    "$x ",
    "\"$x\" ",
    "${x}",
    "'",
    "\"",
    "\\",
    "set x=",
    "true",
    "false",
    "[ x = y ]",
    "set timeout=0\n",
    "set default='0>1'\n",
    "linux /linux ",
    "initrd /grubenv\n",
    "boot\n",
    "configfile /menu.cfg\n",
    "source /menu.cfg\n",
    "search --label label --set=root\n",
    "load_env\n",
    "save_env x\n",
    "echo ",
    "f ",
    "break ",
    "continue ",
    "return ",
    "shift ",
    "setparams a b ",
    "blscfg\n",
    "syslinux_configfile /menu.cfg\n",
    "sleep 1\n",
    "eval ",
    "label l\n",
    "kernel linux\n",
    "append initrd=grubenv a\n",
    "menu begin\n",
    "menu end\n",
    "include menu.cfg\n",
    "default l\n",
    "title t\n",
    "options $x y\n",
    "$1 $@ $# ",
    "ls / ",
    "probe --fs-uuid hd0 ",
    "test -f /linux -a ",
    "export x\n",
    "exit\n",
    "ui menu.c32\n",
    "prompt 1\n",
    "timeout 5\n",
    "ontimeout l x\n",
    "menu hide\n",
    "menu separator\n",
    "localboot 0\n",
    "config menu.cfg\n",
    "kernel mboot.c32\n",
    "append linux --- linux\n",
    "multiboot /linux ",
    "module /linux ",
];

/// Boot configurations of all kinds, their menus and a user who types.
pub fn boot_config(data: &[u8]) {
    let mut input = Bytes::new(data);
    let which = input.byte();
    let keys: Vec<u8> = (0..input.byte() % 24).map(|_| input.byte()).collect();
    let mut text = Vec::new();
    while !input.is_empty() {
        let byte = input.byte();
        match WORDS.get(usize::from(byte)) {
            Some(word) => text.extend_from_slice(word.as_bytes()),
            None => text.push(byte & 0x7f),
        }
    }
    let devices = Devices::of(Box::new(Configured { text, which, nowhere: Medium::new(std::sync::Arc::new(Vec::new())) }));
    let timeout = (which & 0x10 != 0).then_some(Duration::from_secs(1));
    let options = Options { timeout, add_console: which & 0x20 != 0, memory_bytes: 1 << 20, ..Options::default() };
    let limits = Limits { commands: 500, output: 64 << 10, ..Limits::default() };
    let port = Typed { keys, now: std::cell::Cell::new(Duration::ZERO), written: 0 };
    if let Ok(loader) = Loader::on(devices, options)
        && let Ok(loaded) = loader.run(Box::new(port), limits)
    {
        assert!(loaded.kernel.len() <= 1 << 20);
    }
}

/// Kernels as far as a loader looks, by their kind.
fn kernel_of(kind: u8) -> Vec<u8> {
    let mut file = vec![0; 6000];
    let mut put = |at: usize, words: &[u32]| {
        file[at..at + 4 * words.len()].copy_from_slice(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
    };
    let sum = |words: &[u32]| words.iter().fold(0u32, |sum, word| sum.wrapping_sub(*word));
    if kind & 3 == 0 {
        // A bzImage: its header from 1f1h on.
        put(0x1fc, &[0xaa55_0000]);
        put(0x200, &[0x6448_66eb, 0x020c_5372]);
        put(0x210, &[0x0000_0100, 0x10_0000]);
        put(0x22c, &[0x37ff_ffff, 0x20_0000, 1 << 16, 0x7ff]);
        put(0x248, &[0x100, 0x400]);
        put(0x258, &[0x10_0000, 0, 0x10_0000]);
        return file;
    }
    // A 32-bit ELF file of one segment and one note.
    put(0, &[0x464c_457f, 0x0001_0101, 0, 0, 0x0003_0002, 1, 0x10_000c, 52, 0, 0, 0x0020_0034, 2]);
    put(52, &[1, 0x100, 0x10_0000, 0x10_0000, 0x400, 0x1000, 7, 4]);
    put(84, &[4, 0x300, 0, 0, 24, 24, 4, 4]);
    match kind & 3 {
        1 => put(0x100, &[0x1bad_b002, 1 << 16, sum(&[0x1bad_b002, 1 << 16]), 0x10_0100, 0x10_0000, 0, 0, 0x10_0010]),
        2 => put(
            0x100,
            &[0xe852_50d6, 0, 60, sum(&[0xe852_50d6, 60]), 2, 24, 0x10_0100, 0x10_0000, 0, 0, 3, 12, 0x10_0000, 0, 1, 12, 4],
        ),
        _ => put(0x300, &[4, 4, 18, 0x006e_6558, 0x10_0000]),
    }
    file
}

/// A gzip stream of one stored block (RFC 1951 section 3.2.4, RFC 1952 section 2.3).
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut sum = !0u32;
    for &byte in bytes {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
    }
    let len = bytes.len() as u16;
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
    stream.extend([len, !len].map(u16::to_le_bytes).concat());
    stream.extend(bytes);
    stream.extend([!sum, len.into()].map(u32::to_le_bytes).concat());
    stream
}

/// A kernel with some of its bytes changed, cut or packed, its modules and its command line.
pub fn kernel(data: &[u8]) {
    let mut input = Bytes::new(data);
    let kind = input.byte();
    let mut file = kernel_of(kind);
    for _ in 0..input.byte() % 10 {
        // What means something stands at the start.
        let at = usize::from(input.word()) % 0x320;
        for i in 0..=usize::from(input.byte() % 4) {
            file[at + i] = input.byte();
        }
    }
    if input.byte() < 40 {
        file.truncate(usize::from(input.word()) % 6000);
    }
    if kind & 0x30 == 0x10 {
        file = stored(&file);
        if input.byte() < 80 {
            let at = usize::from(input.word()) % file.len();
            file[at] = input.byte();
        }
    }
    let bytes = input.array::<32>();
    let module = |words: &str| Module { data: Initrd::Bytes(bytes.as_slice().into()), words: words.into() };
    let way = [Way::Any, Way::Any, Way::Multiboot, Way::Multiboot2][usize::from(kind >> 6)];
    let modules = if kind & 4 != 0 { vec![module("a"), module("b c")] } else { Vec::new() };
    let initrd = (kind & 8 != 0).then(|| module("initrd"));
    let mem = vmctl::testing::machine::memory::build(4 << 20).expect("the host has memory");
    let image = Image { bytes: &file, way, name: Some("kernel".into()), cmdline: "a b", initrd, modules };
    let _ = load_image(&mem, &image, 0xe_0000);
}
