//! `loader = "kernel"`: a kernel file, an optional initrd and modules from the host.
//!
//! * a bzImage whose payload can be unpacked here: the ELF kernel inside, entered at its 64-bit entry point with the
//!   zero page (Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL");
//! * any other bzImage: its own self-extractor, at its 64- or 32-bit entry;
//! * an ELF file with a PVH note: PVH; any file with a Multiboot header: Multiboot 1 or 2.
//!
//! Each of them may be packed as a whole, as kernels of FreeBSD and Xen often are.
//!
//! **Hostile file**: the guest's memory bounds what is read and unpacked.

use std::sync::mpsc;
use std::thread;

use super::elf::{Arrival, Elf, Headers};
use super::initrd::Initrd;
use super::unpack::{self, Unpacker};
use super::zero_page::SetupHeader;
use super::{HostFile, LoadError, multiboot, multiboot2, pvh, zero_page};
use crate::hypervisor::backend::BootState;
use crate::hypervisor::memory::{GuestAddr, GuestMemory, Region};
use crate::machine::layout;

/// The files and the command line, as configured.
#[derive(Debug)]
pub struct KernelFiles {
    /// bzImage, ELF, or with a Multiboot header.
    pub image: HostFile,
    /// Initial RAM disk.
    pub initrd: Option<HostFile>,
    /// Modules, each with the words that are passed to it.
    pub modules: Vec<(HostFile, String)>,
    /// Command line.
    pub cmdline: String,
}

/// Requested entry protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Any protocol that the kernel supports.
    #[default]
    Any,
    /// Multiboot 1.
    Multiboot,
    /// Multiboot 2.
    Multiboot2,
}

/// A kernel with its arguments.
pub struct Image<'a> {
    /// Its file.
    pub bytes: &'a [u8],
    /// The entry protocol.
    pub way: Way,
    /// Name before a Multiboot command line; `None` if `cmdline` has it already.
    pub name: Option<String>,
    /// Its command line.
    pub cmdline: &'a str,
    /// Initial RAM disk. It is the first module where the protocol has no such thing.
    pub initrd: Option<Module<'a>>,
    /// Its modules.
    pub modules: Vec<Module<'a>>,
}

/// A module and its string.
pub struct Module<'a> {
    /// Its bytes.
    pub data: Initrd<'a>,
    /// Its string: by convention its file's name, then its arguments.
    pub words: String,
}

/// A module in guest memory.
#[derive(Debug)]
pub struct PlacedModule {
    /// Address.
    pub at: u64,
    /// Number of bytes.
    pub size: u64,
    /// Its string.
    pub words: String,
    /// Address of the string, NUL-terminated.
    pub words_at: u64,
}

/// The highest address for an initrd if the kernel does not define it: Linux's limit for old protocols.
const DEFAULT_INITRD_LIMIT: u64 = 0x3800_0000;
/// Maximum number of modules of one kernel.
const MAX_MODULES: usize = 64;

/// Loads the kernel and its modules into `mem` and returns how vCPU 0 starts. `rsdp` is the ACPI root pointer's
/// address.
pub fn load(mem: &GuestMemory, files: &KernelFiles, rsdp: u64) -> Result<BootState, LoadError> {
    // A kernel's file cannot be larger than the memory that it is for.
    let bytes = files.image.read(memory_bytes(mem))?;
    let module = |file, words| Module { data: Initrd::of(file), words };
    let initrd = files.initrd.as_ref().map(|file| module(file, file.name()));
    if let (Some(initrd), Some(file)) = (&initrd, &files.initrd)
        && initrd.data.size() == 0
    {
        return Err(file.empty());
    }
    let modules = files.modules.iter().map(|(file, words)| module(file, join(&file.name(), words))).collect();
    let name = Some(files.image.name());
    let image = Image { bytes: &bytes, way: Way::Any, name, cmdline: &files.cmdline, initrd, modules };
    if bytes.is_empty() {
        return Err(files.image.empty());
    }
    load_image(mem, &image, rsdp)
}

fn join(name: &str, words: &str) -> String {
    if words.is_empty() { name.to_string() } else { format!("{name} {words}") }
}

fn memory_bytes(mem: &GuestMemory) -> u64 {
    mem.map().regions().iter().map(Region::len).sum()
}

/// Loads a kernel from memory, as [`load`] does.
pub fn load_image(mem: &GuestMemory, image: &Image<'_>, rsdp: u64) -> Result<BootState, LoadError> {
    if image.modules.len() + usize::from(image.initrd.is_some()) > MAX_MODULES {
        return Err(LoadError::Unsupported(format!("a kernel takes at most {MAX_MODULES} modules here")));
    }
    // The whole file may be packed, unlike a bzImage, which unpacks its own payload.
    let unpacked;
    let mut bytes = image.bytes;
    if let Some(whole) = unpack::whole(bytes, memory_bytes(mem))? {
        unpacked = whole;
        bytes = &unpacked;
    }
    match image.way {
        Way::Any => load_any(mem, bytes, image, rsdp),
        Way::Multiboot => {
            let no_header = || LoadError::Unsupported("the kernel has no Multiboot 1 header".into());
            load_multiboot(mem, bytes, multiboot::find(bytes).ok_or_else(no_header)?, image)
        }
        Way::Multiboot2 => {
            let no_header = || LoadError::Unsupported("the kernel has no Multiboot 2 header".into());
            load_multiboot2(mem, bytes, multiboot2::find(bytes).ok_or_else(no_header)?, image, rsdp)
        }
    }
}

fn load_any(mem: &GuestMemory, bytes: &[u8], image: &Image<'_>, rsdp: u64) -> Result<BootState, LoadError> {
    // Linux comes first: its images may also have an ELF or PE header.
    if let Some(header) = SetupHeader::find(bytes) {
        if !image.modules.is_empty() {
            return Err(LoadError::Unsupported("a Linux kernel takes an initial RAM disk and no modules".into()));
        }
        return load_bzimage(mem, &header?, image.initrd.as_ref().map(|module| &module.data), image.cmdline, rsdp);
    }
    let is_elf = Elf::is_elf(bytes);
    if is_elf {
        let elf = Elf::parse(bytes)?;
        if let Some(entry) = elf.pvh_entry {
            return load_pvh(mem, elf, entry, image, rsdp);
        }
    }
    if let Some(header) = multiboot::find(bytes) {
        return load_multiboot(mem, bytes, header, image);
    }
    if let Some(header) = multiboot2::find(bytes) {
        return load_multiboot2(mem, bytes, header, image, rsdp);
    }
    if is_elf {
        let text = "the ELF kernel has neither a PVH note nor a Multiboot header, so its entry point is not known";
        return Err(LoadError::Unsupported(text.to_string()));
    }
    Err(match name_of(bytes) {
        Some(name) => LoadError::NoKernel(name),
        None => LoadError::UnknownFormat(bytes.iter().copied().take(4).collect()),
    })
}

/// Returns the type of a file that is not a kernel, if it is known.
pub fn name_of(bytes: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let pe_at = bytes.get(0x3c..0x40).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let names: [(bool, &'static str); 14] = [
        (at(0, b"MZ\0\0zimg"), "a kernel packed for UEFI firmware (EFI zboot)"),
        (at(0, b"MZ") && at(pe_at, b"PE\0\0"), "a PE file, which is a program for UEFI firmware"),
        (at(0, b"MZ"), "a program for DOS"),
        (at(0, b"\x89LZO\0\r\n\x1a\n"), "packed with lzop, which is not unpacked here"),
        (at(0, &[0x5d, 0, 0]), "packed with LZMA, which is not unpacked here"),
        (at(0, b"LZIP"), "packed with lzip, which is not unpacked here"),
        (at(0, b"PK\x03\x04"), "a ZIP archive"),
        (at(257, b"ustar"), "a tar archive"),
        (at(0, b"070701") || at(0, b"070702") || at(0, &[0xc7, 0x71]), "a cpio archive, as initial RAM disks are"),
        (at(0, &[0x27, 0x05, 0x19, 0x56]), "an image for U-Boot"),
        (at(56, b"ARM\x64"), "a kernel for ARM"),
        (at(0, b"QFI\xfb"), "a qcow2 disk image"),
        (at(0x8001, b"CD001"), "an ISO 9660 image"),
        (at(0, b"#!"), "a script"),
    ];
    names.into_iter().find(|(is, _)| *is).map(|(_, name)| name)
}

fn load_bzimage(
    mem: &GuestMemory,
    header: &SetupHeader,
    initrd: Option<&Initrd<'_>>,
    cmdline: &str,
    rsdp: u64,
) -> Result<BootState, LoadError> {
    super::write_cmdline(mem, cmdline, header.cmdline_max())?;
    let initrd = initrd.map(|initrd| Ok::<_, LoadError>((initrd, initrd.address(mem, header.initrd_limit())?))).transpose()?;
    // The initrd is read while the kernel is unpacked.
    let (rip, end, long) = thread::scope(|scope| {
        let reader = initrd.map(|(initrd, at)| thread::Builder::new().spawn_scoped(scope, move || initrd.copy(mem, at)));
        let reader = reader.transpose().map_err(LoadError::Thread)?;
        let kernel = place_kernel(mem, header);
        reader.map_or(Ok(()), |reader| reader.join().expect("no panic"))?;
        kernel
    })?;
    if let Some((initrd, at)) = initrd {
        initrd.check_clear_of(at, end)?;
    }
    zero_page::write(mem, header, initrd.map(|(initrd, at)| (at, initrd.size())), rsdp)?;
    let gdt_limit = super::write_gdt(mem, long)?;
    let gdt_base = layout::boot::GDT;
    if long {
        let cr3 = super::write_page_tables(mem)?;
        return Ok(BootState::Long { rip, rsi: layout::boot::ZERO_PAGE, cr3, gdt_base, gdt_limit });
    }
    Ok(BootState::Protected { eip: rip as u32, eax: 0, ebx: 0, esi: layout::boot::ZERO_PAGE as u32, gdt_base, gdt_limit })
}

/// Puts a bzImage's kernel into memory. Returns its entry point, its end, and whether it is entered in long mode.
fn place_kernel(mem: &GuestMemory, header: &SetupHeader) -> Result<(u64, u64, bool), LoadError> {
    let payload = header.payload()?;
    if let Some(elf) = Unpacker::new(payload).transpose()?.map(|unpacker| place_unpacked(mem, unpacker)).transpose()?.flatten() {
        let (start, end) = elf.span();
        return Ok((elf.physical_entry(), end.max(start + header.init_size()), elf.is_64));
    }
    let code = header.protected_mode_code()?;
    let at = header.pref_address();
    super::copy_in(mem, "kernel", at, code, 0)?;
    let long = header.has_64bit_entry();
    Ok((if long { at + 0x200 } else { at }, at + header.init_size().max(code.len() as u64), long))
}

/// Unpacks an ELF kernel on one thread and puts it into memory on this one. Returns `None` if it is not an ELF file.
fn place_unpacked(mem: &GuestMemory, mut unpacker: Unpacker<'_>) -> Result<Option<Headers>, LoadError> {
    let mut first = Vec::new();
    unpacker.next_piece(&mut first)?;
    if !Elf::is_elf(&first) {
        return Ok(None);
    }
    let mut arrival = Arrival::of(mem, Headers::parse(&first)?)?;
    let (full, pieces) = mpsc::sync_channel(1);
    let (empty, buffers) = mpsc::channel();
    let unpack = move || {
        loop {
            // Buffers come back from the other thread, so that two of them serve for the whole kernel.
            let mut piece = buffers.try_recv().unwrap_or_default();
            let sent = match unpacker.next_piece(&mut piece) {
                Ok(false) => return,
                Ok(true) => full.send(Ok(piece)),
                Err(error) => full.send(Err(error)),
            };
            if sent.is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        thread::Builder::new().spawn_scoped(scope, unpack).map_err(LoadError::Thread)?;
        arrival.take(&first)?;
        let _ = empty.send(first);
        for piece in pieces {
            let piece = piece?;
            arrival.take(&piece)?;
            // The other thread may have ended.
            let _ = empty.send(piece);
        }
        arrival.finish().map(Some)
    })
}

fn load_pvh(mem: &GuestMemory, elf: Elf<'_>, entry: u32, image: &Image<'_>, rsdp: u64) -> Result<BootState, LoadError> {
    let headers = elf.load(mem)?;
    super::write_cmdline(mem, image.cmdline, usize::MAX)?;
    let modules = place_modules(mem, image, headers.span().1)?;
    pvh::write_start_info(mem, &modules, rsdp)?;
    protected(mem, entry, 0, layout::boot::START_INFO)
}

/// Returns the command line with the image's name before it (Multiboot 0.6.96 leaves its form to the system; kernels
/// take the first word for the name, as GRUB Legacy and QEMU pass it).
fn with_name(image: &Image<'_>) -> String {
    image.name.as_ref().map_or_else(|| image.cmdline.to_string(), |name| join(name, image.cmdline))
}

fn load_multiboot(mem: &GuestMemory, bytes: &[u8], header: multiboot::Header, image: &Image<'_>) -> Result<BootState, LoadError> {
    let (entry, end) = multiboot::load(mem, bytes, header)?;
    super::write_cmdline(mem, &with_name(image), usize::MAX)?;
    let modules = place_modules(mem, image, end)?;
    multiboot::write_info(mem, &modules)?;
    protected(mem, entry, multiboot::BOOTLOADER_MAGIC, layout::boot::START_INFO)
}

fn load_multiboot2(
    mem: &GuestMemory,
    bytes: &[u8],
    header: multiboot2::Header<'_>,
    image: &Image<'_>,
    rsdp: u64,
) -> Result<BootState, LoadError> {
    let (entry, start, end) = multiboot2::load(mem, bytes, header)?;
    let modules = place_modules(mem, image, end)?;
    let info = multiboot2::write_info(mem, &with_name(image), &modules, start, rsdp)?;
    protected(mem, entry, multiboot2::BOOTLOADER_MAGIC, info)
}

/// Puts the modules into memory one after the other, each on a page's start, as high as possible; and their strings.
fn place_modules(mem: &GuestMemory, image: &Image<'_>, kernel_end: u64) -> Result<Vec<PlacedModule>, LoadError> {
    let modules: Vec<&Module<'_>> = image.initrd.iter().chain(&image.modules).collect();
    let total = modules.iter().map(|module| module.data.size().next_multiple_of(4096)).sum();
    let mut at = super::initrd::address(mem, total, DEFAULT_INITRD_LIMIT)?;
    // The modules are at the top of memory, the kernel grows from below.
    if at < kernel_end && total > 0 {
        return Err(LoadError::NoRoom { object: "modules", needs: total, at: GuestAddr(at) });
    }
    let (mut words_at, words_end) = (layout::boot::STRINGS, layout::boot::STRINGS + layout::boot::STRINGS_BYTES);
    let mut placed = Vec::new();
    for module in modules {
        let words = [module.words.as_bytes(), b"\0"].concat();
        if words_at + words.len() as u64 > words_end {
            return Err(LoadError::Unsupported(format!(
                "the strings of the modules have more than {} bytes",
                layout::boot::STRINGS_BYTES
            )));
        }
        mem.write(GuestAddr(words_at), &words)?;
        module.data.copy(mem, at)?;
        placed.push(PlacedModule { at, size: module.data.size(), words: module.words.clone(), words_at });
        words_at += words.len() as u64;
        at += module.data.size().next_multiple_of(4096);
    }
    Ok(placed)
}

fn protected(mem: &GuestMemory, eip: u32, eax: u32, info: u64) -> Result<BootState, LoadError> {
    let gdt_limit = super::write_gdt(mem, false)?;
    Ok(BootState::Protected { eip, eax, ebx: info as u32, esi: 0, gdt_base: layout::boot::GDT, gdt_limit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::loader::test_memory;
    use std::path::Path;

    /// Returns a 32-bit ELF with one segment of `code` at 1 MiB, whose first bytes may be a Multiboot header.
    fn elf32(code: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(52, 0);
        let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut file, 16, &[2, 0, 3, 0, 1, 0, 0, 0]);
        put(&mut file, 24, &0x10_000cu32.to_le_bytes());
        put(&mut file, 28, &52u32.to_le_bytes());
        put(&mut file, 42, &[32, 0, 1, 0]);
        for word in [1u32, 84, 0x10_0000, 0x10_0000, code.len() as u32, code.len() as u32 + 64, 7, 4] {
            file.extend(word.to_le_bytes());
        }
        file.extend(code);
        file
    }

    fn multiboot_kernel() -> Vec<u8> {
        let mut code = Vec::new();
        for word in [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)] {
            code.extend(word.to_le_bytes());
        }
        code.extend([0xf4; 4]);
        elf32(&code)
    }

    fn load_bytes(
        mem: &GuestMemory,
        bytes: &[u8],
        initrd: Option<&[u8]>,
        cmdline: &str,
        rsdp: u64,
    ) -> Result<BootState, LoadError> {
        let initrd = initrd.map(|bytes| Module { data: Initrd::Bytes(bytes.into()), words: "initrd a=1".into() });
        load_image(mem, &Image { bytes, way: Way::Any, name: None, cmdline, initrd, modules: Vec::new() }, rsdp)
    }

    fn text_at(mem: &GuestMemory, at: u32) -> String {
        let bytes = (u64::from(at)..).map(|at| mem.read_le::<u8>(GuestAddr(at)).unwrap()).take_while(|&byte| byte != 0);
        String::from_utf8(bytes.collect()).unwrap()
    }

    /// Writes a kernel and two modules to files, as for `loader = "kernel"`.
    fn files(dir: &Path, kernel: &[u8]) -> KernelFiles {
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            HostFile::open("module", &dir.join(name)).unwrap()
        };
        KernelFiles {
            image: write("kernel", kernel),
            initrd: None,
            modules: vec![(write("one", &[1; 5000]), "a b".into()), (write("two", b"2"), String::new())],
            cmdline: "console=com1 x".into(),
        }
    }

    #[test]
    fn multiboot_kernels_get_their_name_in_front_and_every_module_with_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let mem = test_memory(16);
        load(&mem, &files(dir.path(), &multiboot_kernel()), 0xe_0000).unwrap();
        let word = |at: u64| mem.read_le::<u32>(GuestAddr(at)).unwrap();
        let info = layout::boot::START_INFO;
        assert_eq!(text_at(&mem, word(info + 16)), "kernel console=com1 x");
        assert_eq!(word(info + 20), 2);
        let list = u64::from(word(info + 24));
        let modules = [0, 16].map(|at| (word(list + at), word(list + at + 4), text_at(&mem, word(list + at + 8))));
        let [(start, end, words), (second, last, more)] = modules;
        assert_eq!((end - start, words.as_str(), last - second, more.as_str()), (5000, "one a b", 1, "two"));
        assert!(start % 4096 == 0 && second == start + 8192);
        assert_eq!(mem.read_le::<u8>(GuestAddr(second.into())).unwrap(), b'2');
    }

    /// Returns an ELF file with a Multiboot 2 header of these tags.
    fn multiboot2_kernel(tags: &[u8]) -> Vec<u8> {
        let len = 16 + tags.len() as u32;
        let sum = 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(len);
        // Headers begin at a multiple of eight of the file, the code at 84.
        let mut code = vec![0xf4; 4];
        code.extend([0xe852_50d6, 0, len, sum].map(u32::to_le_bytes).concat());
        code.extend(tags);
        elf32(&code)
    }

    #[test]
    fn a_multiboot_2_kernel_finds_its_tags() {
        let dir = tempfile::tempdir().unwrap();
        let mem = test_memory(16);
        mem.write(GuestAddr(0xe_0000), b"RSD PTR ").unwrap();
        let end = [0, 0, 0, 0, 8, 0, 0, 0];
        let state = load(&mem, &files(dir.path(), &multiboot2_kernel(&end)), 0xe_0000).unwrap();
        let BootState::Protected { eip, eax, ebx, .. } = state else { panic!("wrong entry state") };
        assert_eq!((eip, eax), (0x10_000c, multiboot2::BOOTLOADER_MAGIC));
        let word = |at: u64| mem.read_le::<u32>(GuestAddr(at)).unwrap();
        let (mut at, total) = (u64::from(ebx) + 8, word(ebx.into()));
        let mut tags = Vec::new();
        while word(at) != 0 {
            tags.push((word(at), at));
            at += u64::from(word(at + 4)).next_multiple_of(8);
        }
        assert_eq!(at + 8, u64::from(ebx + total));
        assert_eq!(tags.iter().map(|tag| tag.0).collect::<Vec<_>>(), [1, 2, 3, 3, 4, 6, 14, 15, 21]);
        assert_eq!(text_at(&mem, tags[0].1 as u32 + 8), "kernel console=com1 x");
        assert_eq!(text_at(&mem, tags[2].1 as u32 + 16), "one a b");
        assert_eq!(mem.read_le::<u8>(GuestAddr(word(tags[3].1 + 8).into())).unwrap(), b'2');
        assert_eq!(word(tags[8].1 + 8), 0x10_0000);
        // A required tag that is unknown.
        let strange = [99, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0];
        let text = load_bytes(&mem, &multiboot2_kernel(&strange), None, "", 0xe_0000).unwrap_err().to_string();
        assert!(text.contains("tag 99"), "{text}");
    }

    #[test]
    fn a_multiboot_2_kernel_is_loaded_by_the_addresses_of_its_header() {
        // The header at 1 MiB plus 8, the image from there on, an entry point.
        let tags = [2u16, 0].map(u16::to_le_bytes).concat();
        let mut tags = [tags, [24, 0x10_0008, 0x10_0000, 0, 0x10_9000].map(u32::to_le_bytes).concat()].concat();
        tags.extend([3u32, 12, 0x10_0040, 0, 0, 8].map(u32::to_le_bytes).concat());
        let len = 16 + tags.len() as u32;
        let sum = 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(len);
        let mut file = vec![0x90; 8];
        file.extend([0xe852_50d6, 0, len, sum].map(u32::to_le_bytes).concat());
        file.extend(&tags);
        file.resize(200, 0xf4);
        let mem = test_memory(16);
        let state = load_bytes(&mem, &file, None, "", 0xe_0000).unwrap();
        assert!(matches!(state, BootState::Protected { eip: 0x10_0040, .. }), "{state:?}");
        assert_eq!(mem.read_le::<u32>(GuestAddr(0x10_0008)).unwrap(), 0xe852_50d6);
    }

    #[test]
    fn a_kernel_that_is_packed_as_a_whole_is_unpacked() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&multiboot_kernel()).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&multiboot_kernel()).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&multiboot_kernel()).unwrap();
        for packed in [gzip.clone(), bzip2.finish().unwrap(), lz4.finish().unwrap()] {
            let state = load_bytes(&test_memory(16), &packed, None, "", 0).unwrap();
            assert!(matches!(state, BootState::Protected { eip: 0x10_000c, .. }));
        }
        let text = load_bytes(&test_memory(16), &gzip[..gzip.len() / 2], None, "", 0).unwrap_err().to_string();
        assert!(text.starts_with("cannot unpack the gzip"), "{text}");
        // An image that unpacks to more than the guest's memory.
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        bomb.write_all(&vec![0; 20 << 20]).unwrap();
        let text = load_bytes(&test_memory(16), &bomb.finish().unwrap(), None, "", 0).unwrap_err().to_string();
        assert!(text.contains("more than"), "{text}");
    }

    #[test]
    fn an_empty_initrd_and_an_empty_kernel_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut files = files(dir.path(), &multiboot_kernel());
        let refused = |files: &KernelFiles| load(&test_memory(16), files, 0).unwrap_err();
        std::fs::write(path("initrd"), "").unwrap();
        files.initrd = Some(HostFile::open("initrd", &path("initrd")).unwrap());
        let text = refused(&files).to_string();
        assert!(text.starts_with("the initrd `") && text.ends_with("/initrd` is empty"), "{text}");
        files.initrd = None;
        std::fs::write(path("empty"), "").unwrap();
        let kernel = std::mem::replace(&mut files.image, HostFile::open("kernel image", &path("empty")).unwrap());
        let text = refused(&files).to_string();
        assert!(text.starts_with("the kernel image `") && text.ends_with("/empty` is empty"), "{text}");
        // A module may be.
        files.image = kernel;
        std::fs::write(path("two"), "").unwrap();
        files.modules[1].0 = HostFile::open("module", &path("two")).unwrap();
        load(&test_memory(16), &files, 0).unwrap();
        let text = format!("{:?}", HostFile::open("kernel image", Path::new("/dev/zero")).unwrap_err());
        assert!(text.contains("a character device"), "{text}");
        std::fs::File::create(path("large")).unwrap().set_len((16 << 20) + 1).unwrap();
        files.image = HostFile::open("kernel image", &path("large")).unwrap();
        assert!(format!("{:?}", refused(&files)).contains("FileTooLarge"));
    }

    #[test]
    fn what_is_known_and_no_kernel_is_named() {
        let named = |bytes: &[u8]| load_bytes(&test_memory(16), bytes, None, "", 0).unwrap_err().to_string();
        let mut pe = vec![0; 512];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x80;
        pe[0x80..0x84].copy_from_slice(b"PE\0\0");
        assert!(named(&pe).contains("a PE file"), "{}", named(&pe));
        // The same with a Multiboot header that has no addresses.
        pe.extend([0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)].map(u32::to_le_bytes).concat());
        assert!(named(&pe).contains("is a PE file, which is a program for UEFI firmware, and its header has no addresses"));
        assert!(named(b"070701....").contains("a cpio archive"));
        assert!(named(b"\x89LZO\0\r\n\x1a\n").contains("lzop"));
        assert!(named(b"QFI\xfb").contains("qcow2"));
    }

    #[test]
    fn a_kernel_below_one_mib_is_told_so() {
        let mut file = multiboot_kernel();
        file[52 + 12..52 + 16].copy_from_slice(&0x8000u32.to_le_bytes());
        let text = load_bytes(&test_memory(16), &file, None, "", 0).unwrap_err().to_string();
        assert_eq!(text, "the kernel is linked for 0x8000, below 1 MiB, where the firmware's and the loader's tables are");
    }

    /// Returns a bzImage of protocol 2.05, whose version string is this.
    fn old_linux(version: &str) -> Vec<u8> {
        let mut file = vec![0; 4096];
        file[0x1f1] = 4;
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x201] = 0x36;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x0205u16.to_le_bytes());
        file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        file[0x211] = 1;
        file[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
        file[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        file[2560..].fill(0xf4);
        file
    }

    #[test]
    fn an_old_linux_is_entered_in_protected_mode_and_what_calls_a_bios_is_told_so() {
        let mem = test_memory(32);
        let state = load_bytes(&mem, &old_linux("2.6.18-8.el5"), Some(b"initrd"), "quiet", 0).unwrap();
        let BootState::Protected { eip, esi, .. } = state else { panic!("{state:?}") };
        assert_eq!((eip, u64::from(esi)), (0x10_0000, layout::boot::ZERO_PAGE));
        assert_eq!(mem.read_le::<u8>(GuestAddr(0x10_0000)).unwrap(), 0xf4);
        for name in ["iPXE 1.21.1", "MEMDISK 6.03"] {
            let text = load_bytes(&test_memory(32), &old_linux(name), None, "", 0).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("calls the BIOS, and this engine has none"), "{text}");
        }
        let mut low = old_linux("2.4.1");
        low[0x211] = 0;
        assert!(load_bytes(&mem, &low, None, "", 0).unwrap_err().to_string().contains("zImage"));
    }

    #[test]
    fn a_multiboot_elf_is_entered_with_the_magic_and_its_module() {
        let mem = test_memory(16);
        let state = load_bytes(&mem, &multiboot_kernel(), Some(b"module"), "hello", 0).unwrap();
        let BootState::Protected { eip, eax, ebx, .. } = state else { panic!("wrong entry state") };
        assert_eq!((eip, eax, u64::from(ebx)), (0x10_000c, multiboot::BOOTLOADER_MAGIC, layout::boot::START_INFO));
        let info = GuestAddr(layout::boot::START_INFO);
        assert_eq!(mem.read_le::<u32>(GuestAddr(info.0 + 20)).unwrap(), 1);
        let start: u32 = mem.read_le(GuestAddr(layout::boot::LISTS)).unwrap();
        let mut module = [0; 6];
        mem.read(GuestAddr(u64::from(start)), &mut module).unwrap();
        assert_eq!(&module, b"module");
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let mem = test_memory(16);
        let text = load_bytes(&mem, b"#!/bin/sh\n", None, "", 0).unwrap_err().to_string();
        assert!(text.contains("a script"), "{text}");
        let text = load_bytes(&mem, b"\x01\x02\x03\x04\x05", None, "", 0).unwrap_err().to_string();
        assert!(text.contains("begins with [01, 02, 03, 04]"), "{text}");
        let text = load_bytes(&mem, &elf32(&[0xf4; 64]), None, "", 0).unwrap_err().to_string();
        assert!(text.contains("PVH"), "{text}");
    }

    #[test]
    fn every_truncation_of_a_kernel_is_an_error_and_never_a_panic() {
        let whole = multiboot_kernel();
        for len in 0..whole.len() {
            let _ = load_bytes(&test_memory(4), &whole[..len], None, "", 0);
        }
        assert!(load_bytes(&test_memory(4), &whole[..whole.len() - 1], None, "", 0).is_err());
    }

    #[test]
    fn a_kernel_beyond_the_guests_memory_is_refused() {
        let mut file = multiboot_kernel();
        file[52 + 12..52 + 16].copy_from_slice(&0x7000_0000u32.to_le_bytes());
        let text = load_bytes(&test_memory(16), &file, None, "", 0).unwrap_err().to_string();
        assert!(text.contains("more `memory`"), "{text}");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let text = load_bytes(&test_memory(16), &multiboot_kernel(), None, &"x".repeat(70_000), 0).unwrap_err().to_string();
        assert!(text.contains("70000"), "{text}");
    }
}
