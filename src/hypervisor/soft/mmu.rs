//! Paging: the software TLB's slow path, page walks, permissions, MMIO, accesses across pages, watchpoints.
//!
//! SDM vol. 3 chapter 4 (paging), section 6.15 (#PF), 17.2 (debug registers); APM vol. 2 chapter 5.
//!
//! Modes: no paging, 32-bit (with PSE and PSE-36), PAE, 4-level; NX, SMEP, SMAP, global pages. A20 is always on.
//!
//! The TLB has three banks so that neither a change of privilege nor STAC drops anything: [`select_bank`]. The
//! permissions of an entry were computed with the bank's privilege when it was entered. [`super::tlb`] keeps what is beside
//! the entries.
//!
//! **Not modelled**: PCID, protection keys, 5-level paging, memory types; the PDPTEs of PAE paging are read at each
//! walk, as AMD's processors do.
//!
//! **Hostile guest**: a walk reads at most four entries; page tables outside of memory read as all ones, which gives a
//! reserved-bit fault.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::block;
use super::cpu::{Cpu, Exception, Fault, rflags};
use super::mem::{Bank, Operand, SlowOperand};
use super::system::regs::{cr0, cr4, efer};
use super::tlb::{Translation, WALKS, WalkEntry, enter, flush};
use crate::hypervisor::memory::{GuestAddr, Page};

/// Width of a physical address, as CPUID 0x80000008 reports it.
pub const PHYS_BITS: u32 = 40;
const PHYS_MASK: u64 = (1 << PHYS_BITS) - 1;
const PAGE: u64 = 4096;
const PAGE_MASK: u64 = !(PAGE - 1);

/// Bits of a page-table entry.
const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Bits of a page fault's error code.
const ERR_P: u32 = 1;
const ERR_W: u32 = 2;
const ERR_U: u32 = 4;
const ERR_RSVD: u32 = 8;
const ERR_ID: u32 = 16;

/// Purpose of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Load.
    Read,
    /// Store, or a read-modify-write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Privilege of an access.
#[derive(Clone, Copy)]
struct Asker {
    user: bool,
    /// RFLAGS.AC lifts SMAP for this access.
    smap_lifted: bool,
}

impl Asker {
    fn of_bank(bank: Bank) -> Asker {
        Asker { user: bank == Bank::User, smap_lifted: bank == Bank::SupervisorAc }
    }
}

/// Chooses the bank of the TLB after CPL, RFLAGS.AC, CR0.AM or CR4.SMAP may have changed.
#[inline]
pub fn select_bank(cpu: &mut Cpu) {
    let ac = cpu.rflags & rflags::AC != 0;
    if cpu.cpl == 3 {
        cpu.bank = Bank::User;
        let aligned = ac && cpu.sys.cr0 & cr0::AM != 0;
        if aligned != cpu.tlb.side.aligned {
            change_alignment_check(cpu, aligned);
        }
    } else {
        // Without SMAP the two supervisor banks would hold the same entries.
        cpu.bank = if ac && cpu.sys.cr4 & cr4::SMAP != 0 { Bank::SupervisorAc } else { Bank::Supervisor };
    }
}

#[cold]
fn change_alignment_check(cpu: &mut Cpu, aligned: bool) {
    cpu.tlb.side.aligned = aligned;
    flush(cpu, false);
}

#[cold]
fn page_fault(cpu: &mut Cpu, addr: u64, intent: Intent, asker: Asker, bits: u32) -> Fault {
    let mut error = bits;
    if intent == Intent::Write {
        error |= ERR_W;
    }
    if asker.user {
        error |= ERR_U;
    }
    let nx_on = cpu.sys.cr4 & cr4::PAE != 0 && cpu.sys.efer & efer::NXE != 0;
    if intent == Intent::Execute && (nx_on || cpu.sys.cr4 & cr4::SMEP != 0) {
        error |= ERR_ID;
    }
    cpu.exception = Exception { vector: 14, error: Some(error), cr2: addr };
    Fault
}

fn read_entry64(cpu: &Cpu, slot: u64) -> u64 {
    match cpu.map.page(GuestAddr(slot)) {
        // SAFETY: the page is mapped for the map's life, and the slot is 8-aligned within it.
        Some(page) => unsafe { (*page.host().add((slot & 0xff8) as usize).cast::<AtomicU64>()).load(Ordering::Relaxed) },
        None => u64::MAX,
    }
}

fn read_entry32(cpu: &Cpu, slot: u64) -> u64 {
    match cpu.map.page(GuestAddr(slot)) {
        // SAFETY: as above, 4-aligned.
        Some(page) => unsafe {
            u64::from((*page.host().add((slot & 0xffc) as usize).cast::<AtomicU32>()).load(Ordering::Relaxed))
        },
        None => u64::from(u32::MAX),
    }
}

/// Width of a page-table entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// 32 bits.
    Narrow,
    /// 64 bits.
    Wide,
}

/// Sets accessed and dirty bits in the entry at `slot`, which was read as `entry`. A write to tables in ROM is dropped.
/// Returns false, and changes nothing, if another vCPU has changed the entry since: the walk must begin again.
#[cold]
pub(super) fn set_entry_bits(cpu: &mut Cpu, slot: u64, entry: u64, bits: u64, width: Width) -> bool {
    let Some(page) = cpu.map.page(GuestAddr(slot)).filter(Page::is_writable) else { return true };
    let host = page.host();
    // SAFETY: the page is mapped for the map's life, and the slot is aligned within it to the width of its entry.
    let set = unsafe {
        match width {
            Width::Narrow => {
                let cell = &*host.add((slot & 0xffc) as usize).cast::<AtomicU32>();
                cell.compare_exchange(entry as u32, (entry | bits) as u32, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            }
            Width::Wide => {
                let cell = &*host.add((slot & 0xff8) as usize).cast::<AtomicU64>();
                cell.compare_exchange(entry, entry | bits, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            }
        }
    };
    if !set {
        return false;
    }
    if cpu.memory.is_logging() {
        page.mark_dirty();
    }
    if page.is_watched() {
        block::note_store(cpu, slot, 4);
    }
    true
}

/// Permissions of all levels together. They are checked against the access before the accessed and dirty bits are set.
struct Found {
    slot: u64,
    entry: u64,
    width: Width,
    /// RW, US, NX.
    perms: u64,
    gpa: u64,
    large: bool,
}

/// Checks an access. Returns `None` if the entry has changed since it was read.
fn permit(cpu: &mut Cpu, addr: u64, intent: Intent, asker: Asker, found: Found) -> Result<Option<Translation>, Fault> {
    let user_page = found.perms & US != 0;
    let writable = found.perms & RW != 0 || (!asker.user && cpu.sys.cr0 & cr0::WP == 0);
    let data = if asker.user { user_page } else { !user_page || asker.smap_lifted || cpu.sys.cr4 & cr4::SMAP == 0 };
    let permitted = match intent {
        Intent::Read => data,
        Intent::Write => data && writable,
        Intent::Execute => {
            let who = if asker.user { user_page } else { !user_page || cpu.sys.cr4 & cr4::SMEP == 0 };
            who && found.perms & NX == 0
        }
    };
    if !permitted {
        return Err(page_fault(cpu, addr, intent, asker, ERR_P));
    }
    let wanted = if intent == Intent::Write { A | D } else { A };
    if found.entry & wanted != wanted && !set_entry_bits(cpu, found.slot, found.entry, wanted, found.width) {
        return Ok(None);
    }
    Ok(Some(Translation {
        gpa: found.gpa & PAGE_MASK,
        write: data && writable && (found.entry | wanted) & D != 0,
        global: found.entry & G != 0 && cpu.sys.cr4 & cr4::PGE != 0,
        large: found.large,
    }))
}

/// Walks 4-level and PAE page tables. Returns `None` if an entry has changed since it was read.
fn walk_wide(cpu: &mut Cpu, addr: u64, intent: Intent, asker: Asker, long: bool) -> Result<Option<Translation>, Fault> {
    let mut reserved = 0x000f_ffff_ffff_f000 & !PHYS_MASK;
    if !long {
        reserved |= 0x7ff0_0000_0000_0000;
    }
    if cpu.sys.efer & efer::NXE == 0 {
        reserved |= NX;
    }
    let mut perms = RW | US;
    let (mut level, mut table) = if long { (4u32, cpu.sys.cr3 & PHYS_MASK & PAGE_MASK) } else { (3, cpu.sys.cr3 & 0xffff_ffe0) };
    let cached = cpu.tlb.side.walks[(addr >> 21) as usize % WALKS];
    if cached.tag == addr >> 21 && cached.generation == cpu.tlb.side.generation {
        (level, table, perms) = (1, cached.table, cached.perms);
    }
    loop {
        let shift = 12 + 9 * (level - 1);
        let index = (addr >> shift) & if level == 3 && !long { 3 } else { 0x1ff };
        let slot = table + index * 8;
        let entry = read_entry64(cpu, slot);
        if entry & P == 0 {
            return Err(page_fault(cpu, addr, intent, asker, 0));
        }
        if level == 3 && !long {
            if entry & (reserved | NX | 0x1e6) != 0 {
                return Err(page_fault(cpu, addr, intent, asker, ERR_P | ERR_RSVD));
            }
            (table, level) = (entry & PHYS_MASK & PAGE_MASK, 2);
            continue;
        }
        let last = level == 1 || (entry & PS != 0 && level < 4);
        let low = if last && level > 1 { (1u64 << shift) - 1 & !0x1fff } else { 0 };
        if entry & (reserved | low) != 0 || (level == 4 && entry & PS != 0) {
            return Err(page_fault(cpu, addr, intent, asker, ERR_P | ERR_RSVD));
        }
        perms = (perms & entry & (RW | US)) | (perms | entry) & NX;
        if last {
            let offset = (1u64 << shift) - 1;
            let gpa = (entry & PHYS_MASK & PAGE_MASK & !offset) | (addr & offset);
            return permit(cpu, addr, intent, asker, Found { slot, entry, width: Width::Wide, perms, gpa, large: level > 1 });
        }
        if entry & A == 0 && !set_entry_bits(cpu, slot, entry, A, Width::Wide) {
            return Ok(None);
        }
        (table, level) = (entry & PHYS_MASK & PAGE_MASK, level - 1);
        if level == 1 {
            let generation = cpu.tlb.side.generation;
            cpu.tlb.side.walks[(addr >> 21) as usize % WALKS] = WalkEntry { tag: addr >> 21, table, perms, generation };
        }
    }
}

/// Walks 32-bit page tables. Returns `None` if an entry has changed since it was read.
fn walk_narrow(cpu: &mut Cpu, addr: u64, intent: Intent, asker: Asker) -> Result<Option<Translation>, Fault> {
    let slot = (cpu.sys.cr3 & 0xffff_f000) + (addr >> 22 & 0x3ff) * 4;
    let entry = read_entry32(cpu, slot);
    if entry & P == 0 {
        return Err(page_fault(cpu, addr, intent, asker, 0));
    }
    if entry & PS != 0 && cpu.sys.cr4 & cr4::PSE != 0 {
        // PSE-36: bits 20:13 are bits 39:32 of the address, bit 21 is reserved.
        if entry & 1 << 21 != 0 {
            return Err(page_fault(cpu, addr, intent, asker, ERR_P | ERR_RSVD));
        }
        let gpa = (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32 | (addr & 0x3f_ffff);
        let (width, perms) = (Width::Narrow, entry & (RW | US));
        return permit(cpu, addr, intent, asker, Found { slot, entry, width, perms, gpa, large: true });
    }
    if entry & A == 0 && !set_entry_bits(cpu, slot, entry, A, Width::Narrow) {
        return Ok(None);
    }
    let leaf_slot = (entry & 0xffff_f000) + (addr >> 12 & 0x3ff) * 4;
    let leaf = read_entry32(cpu, leaf_slot);
    if leaf & P == 0 {
        return Err(page_fault(cpu, addr, intent, asker, 0));
    }
    let (perms, gpa) = (entry & leaf & (RW | US), leaf & 0xffff_f000);
    let found = Found { slot: leaf_slot, entry: leaf, width: Width::Narrow, perms, gpa, large: false };
    permit(cpu, addr, intent, asker, found)
}

fn walk(cpu: &mut Cpu, addr: u64, intent: Intent, asker: Asker) -> Result<Translation, Fault> {
    if cpu.sys.cr0 & cr0::PG == 0 {
        return Ok(Translation { gpa: addr & 0xffff_f000, write: true, global: false, large: false });
    }
    let long = cpu.sys.efer & efer::LMA != 0;
    if long && !is_canonical(addr) {
        return Err(not_canonical(cpu, addr));
    }
    // It begins again only if another vCPU changed an entry between two instructions of the host. No guest can do that
    // each time.
    loop {
        let found = if long {
            walk_wide(cpu, addr, intent, asker, true)?
        } else if cpu.sys.cr4 & cr4::PAE != 0 {
            walk_wide(cpu, addr & 0xffff_ffff, intent, asker, false)?
        } else {
            walk_narrow(cpu, addr & 0xffff_ffff, intent, asker)?
        };
        if let Some(translation) = found {
            return Ok(translation);
        }
    }
}

/// Returns whether bits 63 to 47 of `addr` are equal.
#[inline]
pub fn is_canonical(addr: u64) -> bool {
    ((addr as i64) << 16 >> 16) as u64 == addr
}

/// Raises #GP(0) for an access to an address that is not canonical. Leaves the address in `cr2`: if the access went
/// through the stack segment, [`super::system::stackfault`] makes it #SS(0).
#[cold]
pub fn not_canonical(cpu: &mut Cpu, addr: u64) -> Fault {
    cpu.exception = Exception { vector: 13, error: Some(0), cr2: addr };
    Fault
}

/// Raises the fault for an operand of `bytes` that is not canonical as a whole, before its pages are looked at. (An
/// operand that is accessed in several parts is checked part by part.)
pub fn require_canonical(cpu: &mut Cpu, addr: u64, bytes: u64) -> Result<(), Fault> {
    for end in [addr, addr.wrapping_add(bytes - 1)] {
        if !is_canonical(end) {
            return Err(not_canonical(cpu, end));
        }
    }
    Ok(())
}

/// Destination of an access.
#[derive(Clone, Copy)]
struct Target {
    gpa: u64,
    /// The byte in host memory, and whether the guest may write there. `None` is MMIO.
    host: Option<(*mut u8, bool)>,
}

/// Translates with the present bank's privilege, and enters a plain page into the TLB.
fn resolve(cpu: &mut Cpu, addr: u64, intent: Intent) -> Result<Target, Fault> {
    let page = walk(cpu, addr, intent, Asker::of_bank(cpu.bank))?;
    let gpa = page.gpa | (addr & !PAGE_MASK);
    let Some(memory) = cpu.map.page(GuestAddr(page.gpa)) else {
        return Ok(Target { gpa, host: None });
    };
    let (host, writable) = (memory.host(), memory.is_writable());
    let special = cpu.tlb.side.watching != 0 && is_watchpoint_page(cpu, addr);
    if !special && !(cpu.bank == Bank::User && cpu.tlb.side.aligned) {
        let mut write = writable && page.write && !memory.is_watched();
        if cpu.memory.is_logging() {
            // A page counts as written from the moment at which stores to it are not seen any more.
            write &= intent == Intent::Write;
            if write {
                memory.mark_dirty();
            }
        }
        enter(cpu, addr & PAGE_MASK, host, &page, write);
    }
    // SAFETY: the offset is below the page's size.
    Ok(Target { gpa, host: Some((unsafe { host.add((addr & !PAGE_MASK) as usize) }, writable)) })
}

/// Translates one linear address with the present privilege; sets accessed and dirty bits; raises #PF.
pub fn translate(cpu: &mut Cpu, addr: u64, intent: Intent) -> Result<u64, Fault> {
    if intent == Intent::Execute {
        return translate_fetch(cpu, addr).map(|(gpa, _)| gpa);
    }
    resolve(cpu, addr, intent).map(|target| target.gpa)
}

/// Translates for an instruction fetch. Also returns whether the page is global.
pub fn translate_fetch(cpu: &mut Cpu, addr: u64) -> Result<(u64, bool), Fault> {
    let page = walk(cpu, addr, Intent::Execute, Asker::of_bank(cpu.bank))?;
    Ok((page.gpa | (addr & !PAGE_MASK), page.global))
}

/// Runs `access` with supervisor privilege and SMAP in force, whatever the CPL is: an implicit access.
fn as_system<R>(cpu: &mut Cpu, access: impl FnOnce(&mut Cpu) -> R) -> R {
    let bank = std::mem::replace(&mut cpu.bank, Bank::Supervisor);
    let result = access(cpu);
    cpu.bank = bank;
    result
}

/// Translates as a supervisor access, whatever the CPL is (descriptor tables, task state, stack switches).
pub fn translate_system(cpu: &mut Cpu, addr: u64, intent: Intent) -> Result<u64, Fault> {
    as_system(cpu, |cpu| translate(cpu, addr, intent))
}

/// Loads `T` from linear address `addr` with supervisor privilege.
pub fn load_system<T: SlowOperand + Operand>(cpu: &mut Cpu, addr: u64) -> Result<T, Fault> {
    as_system(cpu, |cpu| cpu.load::<T>(addr))
}

/// Stores to a linear address with supervisor privilege.
pub fn store_system<T: SlowOperand + Operand>(cpu: &mut Cpu, addr: u64, value: T) -> Result<(), Fault> {
    as_system(cpu, |cpu| cpu.store::<T>(addr, value))
}

/// Returns the linear address of the first byte after `addr`'s page.
fn next_page(cpu: &Cpu, addr: u64) -> u64 {
    let next = (addr & PAGE_MASK).wrapping_add(PAGE);
    if cpu.is_64bit() || cpu.sys.efer & efer::LMA != 0 && addr > u64::from(u32::MAX) { next } else { next & 0xffff_ffff }
}

/// Checks that `bytes` from `addr` could be written (for read-modify-write and multi-part stores). Changes only A and D
/// bits.
pub fn probe_write(cpu: &mut Cpu, addr: u64, bytes: u64) -> Result<(), Fault> {
    probe(cpu, addr, bytes, Intent::Write)
}

/// Checks the same for an operand that is read and then written in one piece.
pub fn probe_update(cpu: &mut Cpu, addr: u64, bytes: u64) -> Result<(), Fault> {
    require_canonical(cpu, addr, bytes)?;
    probe(cpu, addr, bytes, Intent::Write)
}

fn probe(cpu: &mut Cpu, mut addr: u64, bytes: u64, intent: Intent) -> Result<(), Fault> {
    require_canonical(cpu, addr, bytes.clamp(1, 8))?;
    let mut left = bytes;
    while left > 0 {
        translate(cpu, addr, intent)?;
        left = left.saturating_sub(PAGE - (addr & !PAGE_MASK));
        addr = next_page(cpu, addr);
    }
    Ok(())
}

/// Returns the host address of the byte at linear `addr`, valid to the end of its page, for a load of more than one
/// operand (string instructions). Returns `None` where the page is not plain memory or a debug register watches it.
pub fn host_for_read(cpu: &mut Cpu, addr: u64) -> Result<Option<*const u8>, Fault> {
    if let Some(host) = cpu.fast_read_ptr::<u8>(addr) {
        return Ok(Some(host));
    }
    resolve(cpu, addr, Intent::Read)?;
    Ok(cpu.fast_read_ptr::<u8>(addr))
}

/// Returns the same as [`host_for_read`], for writing. Returns `None` also for a page with decoded code and for ROM.
pub fn host_for_write(cpu: &mut Cpu, addr: u64) -> Result<Option<*mut u8>, Fault> {
    if let Some(host) = cpu.fast_write_ptr::<u8>(addr) {
        return Ok(Some(host));
    }
    resolve(cpu, addr, Intent::Write)?;
    Ok(cpu.fast_write_ptr::<u8>(addr))
}

/// Updates the watchpoints after a change of DR7 or DR0 to DR3.
pub fn watchpoints_changed(cpu: &mut Cpu) {
    let dr7 = cpu.sys.dr[7];
    let mut watching = 0;
    for n in 0..4 {
        let enabled = dr7 >> (2 * n) & 3 != 0;
        // R/W: 1 is writes, 3 is reads and writes; 0 is execution, 2 is I/O.
        if enabled && dr7 >> (16 + 4 * n) & 1 != 0 {
            watching |= 1 << n;
        }
    }
    if watching != 0 || cpu.tlb.side.watching != 0 {
        cpu.tlb.side.watching = watching;
        flush(cpu, false);
    }
}

/// Returns the first byte and length of what debug register `n` watches.
pub fn watched_bytes(cpu: &Cpu, n: usize) -> (u64, u64) {
    let len = [1, 2, 8, 4][(cpu.sys.dr[7] >> (18 + 4 * n) & 3) as usize];
    (cpu.sys.dr[n] & !(len - 1), len)
}

fn is_watchpoint_page(cpu: &Cpu, addr: u64) -> bool {
    (0..4).any(|n| cpu.tlb.side.watching >> n & 1 != 0 && (watched_bytes(cpu, n).0 ^ addr) & PAGE_MASK == 0)
}

#[cold]
fn note_watchpoints(cpu: &mut Cpu, addr: u64, size: u64, write: bool) {
    for n in 0..4 {
        let kind = cpu.sys.dr[7] >> (16 + 4 * n) & 3;
        if cpu.tlb.side.watching >> n & 1 == 0 || (kind == 1 && !write) {
            continue;
        }
        let (first, len) = watched_bytes(cpu, n);
        if addr < first.wrapping_add(len) && first < addr.wrapping_add(size) {
            cpu.debug_pending |= 1 << n;
            cpu.leave_after_op = true;
        }
    }
}

/// Makes the chain leave after this instruction if an access to a device made an interrupt pending, stopped the
/// machine or changed the map of memory.
#[inline]
pub fn after_device_access(cpu: &mut Cpu) {
    let moved = cpu.memory.generation() != cpu.map.generation();
    if moved || cpu.attention.is_raised(cpu.index) || cpu.attention.stopped().is_some() {
        cpu.leave_after_op = true;
    }
}

/// Returns the largest naturally aligned access that fits at `gpa` into `left` bytes.
fn device_width(gpa: u64, left: u64) -> u64 {
    let mut width = 8;
    while width > left || gpa & (width - 1) != 0 {
        width >>= 1;
    }
    width
}

/// Loads from the vCPU's local APIC or from a device.
fn mmio_read(cpu: &Cpu, gpa: u64, width: u8) -> u64 {
    cpu.apics.read(cpu.index, gpa, width).unwrap_or_else(|| cpu.platform.mmio_read(cpu.index, gpa, width))
}

/// Stores to the vCPU's local APIC or to a device.
fn mmio_write(cpu: &Cpu, gpa: u64, width: u8, value: u64) {
    if !cpu.apics.write(cpu.index, gpa, width, value) {
        cpu.platform.mmio_write(cpu.index, gpa, width, value);
    }
}

/// Loads 1 to 16 bytes that lie in one page.
fn load_part(cpu: &mut Cpu, target: Target, size: u64) -> u128 {
    if let Some((host, _)) = target.host {
        let mut bytes = [0u8; 16];
        // SAFETY: the part lies within its page; `bytes` is ours.
        unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), size as usize) };
        return u128::from_le_bytes(bytes);
    }
    cpu.sync_clock();
    let mut value = 0u128;
    let mut done = 0;
    // A misaligned access that is as wide as a device access stays one access, as on the PCI bus.
    if matches!(size, 1 | 2 | 4 | 8) {
        value = u128::from(mmio_read(cpu, target.gpa, size as u8)) & (u128::MAX >> (128 - 8 * size));
        done = size;
    }
    while done < size {
        let width = device_width(target.gpa + done, size - done);
        let part = mmio_read(cpu, target.gpa + done, width as u8) & (u64::MAX >> (64 - 8 * width));
        value |= u128::from(part) << (8 * done);
        done += width;
    }
    after_device_access(cpu);
    value
}

/// Stores 1 to 16 bytes within one page.
fn store_part(cpu: &mut Cpu, target: Target, size: u64, value: u128) {
    let value = value & (u128::MAX >> (128 - 8 * size));
    if let Some((host, true)) = target.host {
        // SAFETY: the part lies within its writable page.
        unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), host, size as usize) };
        note_written(cpu, target.gpa, size);
        return;
    }
    cpu.sync_clock();
    if matches!(size, 1 | 2 | 4 | 8) {
        mmio_write(cpu, target.gpa, size as u8, value as u64);
    } else {
        let mut done = 0;
        while done < size {
            let width = device_width(target.gpa + done, size - done);
            let part = (value >> (8 * done)) as u64 & (u64::MAX >> (64 - 8 * width));
            mmio_write(cpu, target.gpa + done, width as u8, part);
            done += width;
        }
    }
    after_device_access(cpu);
}

/// Raises #AC where alignment is checked and the access is misaligned. 16-byte operands that must be aligned raise #GP
/// themselves; the others are checked as 8-byte ones.
fn check_alignment(cpu: &mut Cpu, addr: u64, size: u64) -> Result<(), Fault> {
    if cpu.bank == Bank::User && cpu.tlb.side.aligned && addr & (size.min(8) - 1) != 0 {
        return Err(cpu.raise(17, Some(0)));
    }
    Ok(())
}

fn load(cpu: &mut Cpu, addr: u64, size: u64) -> Result<u128, Fault> {
    require_canonical(cpu, addr, size)?;
    check_alignment(cpu, addr, size)?;
    let first = resolve(cpu, addr, Intent::Read)?;
    let here = PAGE - (addr & !PAGE_MASK);
    let value = if here >= size {
        load_part(cpu, first, size)
    } else {
        let behind = next_page(cpu, addr);
        let second = resolve(cpu, behind, Intent::Read)?;
        load_part(cpu, first, here) | load_part(cpu, second, size - here) << (8 * here)
    };
    if cpu.tlb.side.watching != 0 {
        note_watchpoints(cpu, addr, size, false);
    }
    Ok(value)
}

fn store(cpu: &mut Cpu, addr: u64, size: u64, value: u128) -> Result<(), Fault> {
    require_canonical(cpu, addr, size)?;
    check_alignment(cpu, addr, size)?;
    let first = resolve(cpu, addr, Intent::Write)?;
    let here = PAGE - (addr & !PAGE_MASK);
    if here >= size {
        store_part(cpu, first, size, value);
    } else {
        let behind = next_page(cpu, addr);
        let second = resolve(cpu, behind, Intent::Write)?;
        store_part(cpu, first, here, value);
        store_part(cpu, second, size - here, value >> (8 * here));
    }
    if cpu.tlb.side.watching != 0 {
        note_watchpoints(cpu, addr, size, true);
    }
    Ok(())
}

/// Returns the host address of an operand of `size` bytes that is read and written in one piece, and its guest-physical
/// address, for [`updated`]. Returns `None` if it is not all in one page of memory that the guest may write to.
pub fn host_for_update(cpu: &mut Cpu, addr: u64, size: u64) -> Result<Option<(*mut u8, u64)>, Fault> {
    require_canonical(cpu, addr, size)?;
    check_alignment(cpu, addr, size)?;
    let target = resolve(cpu, addr, Intent::Write)?;
    let inside = PAGE - (addr & !PAGE_MASK) >= size;
    Ok(target.host.filter(|&(_, writable)| inside && writable).map(|(host, _)| (host, target.gpa)))
}

/// Notes that an operand was written through [`host_for_update`]'s address.
pub fn updated(cpu: &mut Cpu, addr: u64, gpa: u64, size: u64) {
    note_written(cpu, gpa, size);
    if cpu.tlb.side.watching != 0 {
        note_watchpoints(cpu, addr, size, true);
    }
}

/// Notes a store to `size` bytes at `gpa` in one page of memory: in the log of dirty pages, and for those who hold code.
fn note_written(cpu: &mut Cpu, gpa: u64, size: u64) {
    // Either a log of dirty pages that starts now sees the bytes, or this sees that it has started.
    fence(Ordering::SeqCst);
    let page = cpu.map.page(GuestAddr(gpa));
    if cpu.memory.is_logging() {
        page.iter().for_each(Page::mark_dirty);
    }
    if page.is_some_and(|page| page.is_watched()) {
        block::note_store(cpu, gpa, size);
    }
}

macro_rules! slow_operand {
    ($($t:ty),*) => {$(
        impl SlowOperand for $t {
            #[cold]
            #[inline(never)]
            fn load_slow(cpu: &mut Cpu, addr: u64) -> Result<$t, Fault> {
                load(cpu, addr, size_of::<$t>() as u64).map(|value| value as $t)
            }
            #[cold]
            #[inline(never)]
            fn store_slow(self, cpu: &mut Cpu, addr: u64) -> Result<(), Fault> {
                store(cpu, addr, size_of::<$t>() as u64, self as u128)
            }
        }
    )*};
}
slow_operand!(u8, u16, u32, u64, u128);
