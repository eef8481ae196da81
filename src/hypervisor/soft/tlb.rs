//! What is kept beside the software TLB's entries, and how entries come and go.
//!
//! There are lists of the used entries (a CR3 write touches only those), a small cache of page-directory entries, and two
//! filters that say "surely no such page here" for code pages and for INVLPG within large pages.

use std::sync::Arc;

use super::block::{self, Dropped};
use super::cpu::Cpu;
use super::mem::{NO_TAG, TLB_BANKS, TLB_ENTRIES, Tlb, TlbEntry};
use crate::hypervisor::memory::{GuestAddr, MemoryMap, PAGE_SIZE, Page};

const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

/// Bits of [`TlbEntry::gpa`] below the page address.
const GLOBAL: u64 = 1 << 0;
const LARGE: u64 = 1 << 1;
const IN_LOCAL: u64 = 1 << 2;
const IN_GLOBAL: u64 = 1 << 3;

/// A page that a walk found and that permits the access.
pub(super) struct Translation {
    /// Guest-physical address of the 4 KiB piece.
    pub gpa: u64,
    /// A store would be permitted too, and the dirty bit is set.
    pub write: bool,
    pub global: bool,
    pub large: bool,
}

const TOTAL: usize = TLB_BANKS * TLB_ENTRIES;
pub(super) const WALKS: usize = 256;

/// Numbers of TLB entries in use: `bank * TLB_ENTRIES + index`.
struct UsedList {
    count: usize,
    numbers: [u16; TOTAL],
}

impl UsedList {
    const EMPTY: UsedList = UsedList { count: 0, numbers: [0; TOTAL] };
    fn push(&mut self, number: usize) {
        // An entry is in a list at most once (IN_LOCAL, IN_GLOBAL), so the list cannot overflow.
        self.numbers[self.count] = number as u16;
        self.count += 1;
    }
}

/// A page-directory entry that points to a page table.
#[derive(Clone, Copy)]
pub(super) struct WalkEntry {
    /// Linear address >> 21.
    pub tag: u64,
    /// Guest-physical address of the page table.
    pub table: u64,
    /// RW, US and NX as all levels above permit.
    pub perms: u64,
    pub generation: u64,
}

/// A set of keys in 4096 bits that answers "never noted" or "perhaps noted".
struct Filter([u64; 64]);

impl Filter {
    const EMPTY: Filter = Filter([0; 64]);
    fn note(&mut self, key: u64) {
        self.0[(key >> 6 & 63) as usize] |= 1 << (key & 63);
    }
    fn may_have(&self, key: u64) -> bool {
        self.0[(key >> 6 & 63) as usize] >> (key & 63) & 1 != 0
    }
    fn clear(&mut self) {
        self.0 = [0; 64];
    }
}

/// State of the slow path, beside the TLB's entries.
pub struct Side {
    local: UsedList,
    global: UsedList,
    pub(super) walks: [WalkEntry; WALKS],
    pub(super) generation: u64,
    /// Guest pages that have had a write tag.
    written: Filter,
    /// 2 MiB pieces of large pages that have been entered.
    large: Filter,
    /// The debug registers that watch data, as bits in DR7's order.
    pub(super) watching: u8,
    /// Whether alignment is checked: CPL 3, CR0.AM, RFLAGS.AC. Then the user bank is empty.
    pub(super) aligned: bool,
}

impl Tlb {
    /// Creates an empty TLB.
    pub fn new() -> Box<Tlb> {
        Box::new(Tlb {
            banks: [[TlbEntry::EMPTY; TLB_ENTRIES]; TLB_BANKS],
            side: Side {
                local: UsedList::EMPTY,
                global: UsedList::EMPTY,
                walks: [WalkEntry { tag: 0, table: 0, perms: 0, generation: 0 }; WALKS],
                generation: 1,
                written: Filter::EMPTY,
                large: Filter::EMPTY,
                watching: 0,
                aligned: false,
            },
        })
    }
}

/// Enters a page into the present bank: the linear address of the page, its host address, what the walk found, and whether
/// stores may go there unseen.
pub(super) fn enter(cpu: &mut Cpu, page_addr: u64, host: *mut u8, page: &Translation, write: bool) {
    let index = (page_addr >> 12) as usize & (TLB_ENTRIES - 1);
    let number = cpu.bank as usize * TLB_ENTRIES + index;
    let tlb = &mut *cpu.tlb;
    let entry = &mut tlb.banks[cpu.bank as usize][index];
    let mut lists = entry.gpa & (IN_LOCAL | IN_GLOBAL);
    if page.global {
        if lists & IN_GLOBAL == 0 {
            tlb.side.global.push(number);
            lists |= IN_GLOBAL;
        }
        lists |= GLOBAL;
    } else if lists & IN_LOCAL == 0 {
        tlb.side.local.push(number);
        lists |= IN_LOCAL;
    }
    if page.large {
        tlb.side.large.note(page_addr >> 21);
        lists |= LARGE;
    }
    if write {
        tlb.side.written.note(page.gpa >> 12);
    }
    *entry = TlbEntry {
        tag_read: page_addr,
        tag_write: if write { page_addr } else { NO_TAG },
        addend: (host as u64).wrapping_sub(page_addr),
        gpa: page.gpa | lists,
    };
}

/// Drops all translations or, with `keep_global`, all that are not global; and the jump cache.
pub fn flush(cpu: &mut Cpu, keep_global: bool) {
    let tlb = &mut *cpu.tlb;
    let side = &mut tlb.side;
    side.generation += 1;
    for &number in &side.local.numbers[..side.local.count] {
        let entry = &mut tlb.banks[number as usize / TLB_ENTRIES][number as usize % TLB_ENTRIES];
        if entry.gpa & GLOBAL != 0 {
            entry.gpa &= !IN_LOCAL;
        } else {
            *entry = TlbEntry { gpa: entry.gpa & IN_GLOBAL, ..TlbEntry::EMPTY };
        }
    }
    side.local.count = 0;
    if !keep_global {
        for &number in &side.global.numbers[..side.global.count] {
            tlb.banks[number as usize / TLB_ENTRIES][number as usize % TLB_ENTRIES] = TlbEntry::EMPTY;
        }
        side.global.count = 0;
        side.written.clear();
        side.large.clear();
    }
    block::forget_jumps(cpu, if keep_global { Dropped::NotGlobal } else { Dropped::All });
}

/// Takes `map` for the memory that the vCPU sees from now on. Drops all translations.
///
/// Pages that the vCPU could write to unseen are marked in the log of dirty pages: it may have written to them since
/// their marks were taken.
#[cold]
pub fn follow_map(cpu: &mut Cpu, map: &Arc<MemoryMap>) {
    if cpu.memory.is_logging() {
        let tlb = &*cpu.tlb;
        for list in [&tlb.side.local, &tlb.side.global] {
            for &number in &list.numbers[..list.count] {
                let entry = &tlb.banks[number as usize / TLB_ENTRIES][number as usize % TLB_ENTRIES];
                if entry.tag_write != NO_TAG {
                    cpu.map.page(GuestAddr(entry.gpa & PAGE_MASK)).iter().for_each(Page::mark_dirty);
                }
            }
        }
    }
    cpu.map = map.clone();
    flush(cpu, false);
}

/// Drops the translation of one page, even if it is global: INVLPG.
pub fn flush_page(cpu: &mut Cpu, addr: u64) {
    let tlb = &mut *cpu.tlb;
    // INVLPG drops all of the paging-structure caches (SDM vol. 3 section 4.10.4.1).
    tlb.side.generation += 1;
    let page = addr & PAGE_MASK;
    for bank in &mut tlb.banks {
        let entry = &mut bank[(addr >> 12) as usize & (TLB_ENTRIES - 1)];
        if entry.tag_read == page {
            (entry.tag_read, entry.tag_write) = (NO_TAG, NO_TAG);
        }
    }
    if tlb.side.large.may_have(addr >> 21) {
        // The page may be large: its other pieces go too. Pages of 1 GiB and 4 MiB count with their largest reach.
        for entry in tlb.banks.iter_mut().flatten() {
            if entry.gpa & LARGE != 0 && entry.tag_read >> 30 == addr >> 30 {
                (entry.tag_read, entry.tag_write) = (NO_TAG, NO_TAG);
            }
        }
        block::forget_jumps(cpu, Dropped::All);
    } else {
        block::forget_jumps(cpu, Dropped::Page(page));
    }
}

/// Makes the page at guest-physical `gpa` take the slow path for writes in this vCPU's TLB, since it now holds code.
pub fn protect_code_page(cpu: &mut Cpu, gpa: u64) {
    let tlb = &mut *cpu.tlb;
    let side = &tlb.side;
    if !side.written.may_have(gpa >> 12) {
        return;
    }
    for list in [&side.local, &side.global] {
        for &number in &list.numbers[..list.count] {
            let entry = &mut tlb.banks[number as usize / TLB_ENTRIES][number as usize % TLB_ENTRIES];
            if (entry.gpa ^ gpa) & PAGE_MASK == 0 {
                entry.tag_write = NO_TAG;
            }
        }
    }
}
