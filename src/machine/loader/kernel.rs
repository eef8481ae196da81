//! `loader = "kernel"`: a kernel file and an optional initrd from the host.
//!
//! * a bzImage whose payload can be unpacked here: the ELF kernel inside, entered at its 64-bit entry point with the
//!   zero page (Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL");
//! * any other bzImage: its own self-extractor, at its 64- or 32-bit entry;
//! * an ELF file with a PVH note: PVH; with a Multiboot header: Multiboot 1.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use super::elf::{Arrival, Elf, Headers};
use super::initrd::Initrd;
use super::unpack::Unpacker;
use super::zero_page::SetupHeader;
use super::{LoadError, multiboot, pvh, zero_page};
use crate::hypervisor::backend::BootState;
use crate::hypervisor::memory::GuestMemory;
use crate::inputs;
use crate::machine::layout;

/// The files and the command line, as configured.
#[derive(Debug, Clone)]
pub struct KernelFiles {
    /// bzImage or ELF.
    pub image: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub cmdline: String,
}

/// The highest address for an initrd whose kernel does not say: Linux's limit for old protocols.
const DEFAULT_INITRD_LIMIT: u64 = 0x3800_0000;

/// The largest file that is read as a kernel: 2 GiB.
const MAX_IMAGE: u64 = 2 << 30;

/// Loads the kernel and initrd into `mem` and says how vCPU 0 starts. `rsdp` is the ACPI root pointer's address.
pub fn load(mem: &GuestMemory, files: &KernelFiles, rsdp: u64) -> Result<BootState, LoadError> {
    let failed = |source| LoadError::Read { what: "kernel image", path: files.image.clone(), source };
    let image = inputs::read(&files.image, MAX_IMAGE).map_err(failed)?;
    let initrd = files.initrd.as_deref().map(Initrd::open).transpose()?;
    load_image(mem, &image, initrd.as_ref(), &files.cmdline, rsdp)
}

/// As [`load`], from memory.
pub fn load_bytes(
    mem: &GuestMemory,
    image: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    rsdp: u64,
) -> Result<BootState, LoadError> {
    load_image(mem, image, initrd.map(|bytes| Initrd::Bytes(bytes.into())).as_ref(), cmdline, rsdp)
}

fn load_image(
    mem: &GuestMemory,
    image: &[u8],
    initrd: Option<&Initrd<'_>>,
    cmdline: &str,
    rsdp: u64,
) -> Result<BootState, LoadError> {
    if let Some(header) = SetupHeader::find(image) {
        return load_bzimage(mem, &header?, initrd, cmdline, rsdp);
    }
    let multiboot_header = multiboot::find(image);
    if Elf::is_elf(image) {
        let elf = Elf::parse(image)?;
        if let Some(entry) = elf.pvh_entry {
            return load_pvh(mem, elf, entry, initrd, cmdline, rsdp);
        }
        if multiboot_header.is_none() {
            let text = "the ELF kernel has neither a PVH note nor a Multiboot header: no way in is known";
            return Err(LoadError::Unsupported(text.to_string()));
        }
    }
    match multiboot_header {
        Some(header) => load_multiboot(mem, image, header, initrd, cmdline),
        None => Err(LoadError::UnknownFormat(image.iter().copied().take(4).collect())),
    }
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

/// Puts a bzImage's kernel into memory; its entry point, its end, and whether it is entered in long mode.
fn place_kernel(mem: &GuestMemory, header: &SetupHeader) -> Result<(u64, u64, bool), LoadError> {
    let payload = header.payload()?;
    if let Some(elf) = Unpacker::new(payload).transpose()?.map(|unpacker| place_unpacked(mem, unpacker)).transpose()?.flatten() {
        let (start, end) = elf.span();
        return Ok((elf.physical_entry(), end.max(start + header.init_size()), elf.is_64));
    }
    let code = header.protected_mode_code()?;
    let at = header.pref_address();
    super::place(mem, "kernel", at, code, 0)?;
    let long = header.has_64bit_entry();
    Ok((if long { at + 0x200 } else { at }, at + header.init_size().max(code.len() as u64), long))
}

/// Unpacks an ELF kernel on one thread and puts it into memory on this one; `None` if it is no ELF file.
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
            // The other thread may be done.
            let _ = empty.send(piece);
        }
        arrival.finish().map(Some)
    })
}

fn load_pvh(
    mem: &GuestMemory,
    elf: Elf<'_>,
    entry: u32,
    initrd: Option<&Initrd<'_>>,
    cmdline: &str,
    rsdp: u64,
) -> Result<BootState, LoadError> {
    let headers = elf.load(mem)?;
    super::write_cmdline(mem, cmdline, usize::MAX)?;
    let initrd = place_module(mem, initrd, headers.span().1)?;
    pvh::write_start_info(mem, initrd, rsdp)?;
    protected(mem, entry, 0)
}

fn load_multiboot(
    mem: &GuestMemory,
    image: &[u8],
    header: multiboot::Header,
    initrd: Option<&Initrd<'_>>,
    cmdline: &str,
) -> Result<BootState, LoadError> {
    let (entry, end) = multiboot::load(mem, image, header)?;
    super::write_cmdline(mem, cmdline, usize::MAX)?;
    let initrd = place_module(mem, initrd, end)?;
    multiboot::write_info(mem, initrd)?;
    protected(mem, entry, multiboot::BOOTLOADER_MAGIC)
}

fn place_module(mem: &GuestMemory, module: Option<&Initrd<'_>>, end: u64) -> Result<Option<(u64, u64)>, LoadError> {
    let Some(module) = module else { return Ok(None) };
    let at = module.address(mem, DEFAULT_INITRD_LIMIT)?;
    module.check_clear_of(at, end)?;
    module.copy(mem, at)?;
    Ok(Some((at, module.size())))
}

fn protected(mem: &GuestMemory, eip: u32, eax: u32) -> Result<BootState, LoadError> {
    let gdt_limit = super::write_gdt(mem, false)?;
    Ok(BootState::Protected { eip, eax, ebx: layout::boot::START_INFO as u32, esi: 0, gdt_base: layout::boot::GDT, gdt_limit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::memory::GuestAddr;
    use crate::machine::loader::test_memory;

    /// A 32-bit ELF with one segment of `code` at 1 MiB, whose first bytes may be a Multiboot header.
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
        assert!(text.contains("neither a bzImage nor an ELF"), "{text}");
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
