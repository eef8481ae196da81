//! The block cache: blocks by guest-physical address and mode, links between them, the jump cache, and the handling of
//! writes to code.
//!
//! * A block is the lowered code from one guest-physical address on, inside one page. It does not know at which linear
//!   address it runs, so it stays valid when page tables change.
//! * Jumps inside a page are links: pointers from op to op. They live only among the blocks of one page, so dropping a
//!   page's blocks drops them. All other jumps go through the vCPU's jump cache, from linear address (and mode) to
//!   block, which is dropped at each TLB flush (its upper half, if all of it is in global pages, not at a CR3 write) and
//!   whenever blocks are dropped.
//! * A page with blocks is watched in guest memory and takes the TLB's slow path for writes. A bitmap of 64-byte
//!   granules tells writes to its code from writes to its data.
//! * Dropped blocks wait in a graveyard until no chain runs, since one of them may be the running one.
//!
//! **Hostile guest**: the memory that the cache takes is bounded, in proportion to the guest's own memory
//! ([`BlockCache::bound`]); everything that a block costs is counted, since code of one-byte blocks costs six times its
//! ops. When the bound is reached, all blocks go.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use super::cpu::Cpu;
use super::crew::Crew;
use super::lower::{Builder, Mode};
use super::mmu::PHYS_BITS;
use super::op::Op;
use super::tlb;
use crate::hypervisor::memory::{GuestAddr, GuestMemory, MemoryMap, Region};

/// Bounds of the memory that a cache takes, in bytes: at least enough for the code of a whole small system, however
/// small the guest is, and a maximum, however large the guest is.
const BOUNDS: (u64, u64) = (16 << 20, 192 << 20);
/// The share of the guest's memory that a cache takes at most, between these bounds: one part in this many.
const SHARE: u64 = 4;
/// Cost of a block besides its ops: its entry in the map (33 bytes, in a table that is half empty just after it has
/// grown, while the old one is still there), and the head and alignment of the allocation of its ops.
const BLOCK_COST: usize = 112 + 48;
/// Cost of a key in a page's list, with the list's room to grow.
const KEY_COST: usize = 16;
/// Cost of a page with code: its entry in the map, counted as above, and the allocation of its list.
const PAGE_COST: usize = 192;
/// More than a block costs with its pages and keys: 64 instructions of a few ops each.
const LARGEST_BLOCK: usize = 64 << 10;
/// Maximum number of keys noted for one page. Stale ones of blocks on two pages count too.
const MAX_KEYS: usize = 1 << 14;
const PAGE: u64 = 4096;
const GRANULE: u64 = 64;

/// Key of a block: the guest-physical address of its first byte, and the mode that it was decoded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

const _: () = assert!(PHYS_BITS <= Key::MODE_SHIFT && MODE_TAG >> 48 < 1 << (64 - Key::MODE_SHIFT));

impl Key {
    const MODE_SHIFT: u32 = 48;

    /// Creates the key of the block at `gpa`, which has at most [`PHYS_BITS`] bits.
    pub fn new(gpa: u64, mode: Mode) -> Key {
        Key(gpa | u64::from(mode.0) << Key::MODE_SHIFT)
    }

    fn gpa(self) -> u64 {
        self.0 & ((1 << Key::MODE_SHIFT) - 1)
    }
}

/// Lowered code of one basic block. A guest has many, and most of them are small.
pub struct Block {
    ops: Ops,
    /// Bytes of its instructions.
    pub bytes: u32,
    /// One more than the number of the second page.
    second: Option<NonZeroU32>,
}

const _: () = assert!(size_of::<Block>() == 24 && PHYS_BITS - 12 < 32);

/// The ops of a block, in an allocation of their own. Handlers walk over it, keep pointers into it and change ops there;
/// so no reference to it is made, and a `Box` would claim to be its only user whenever the block moves.
struct Ops(NonNull<[Op]>);

impl Ops {
    fn new(ops: Vec<Op>) -> Ops {
        Ops(NonNull::from(Box::leak(ops.into_boxed_slice())))
    }

    fn first(&self) -> *mut Op {
        self.0.as_ptr().cast()
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        // SAFETY: `new` leaked this box, and nothing else frees it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Block {
    /// Puts the ops in place and sets the pointers between them.
    ///
    /// `second_page` is the guest-physical address of a second page, if the block's one instruction lies on two pages.
    pub fn new(builder: Builder, second_page: Option<u64>) -> Block {
        let ops = Ops::new(builder.ops);
        let first = ops.first();
        for fixup in &builder.fixups {
            assert!(fixup.op < ops.0.len() && fixup.target < ops.0.len(), "fixups are indices of pushed ops");
            // SAFETY: both indices were checked; the pointers stay good since the slice never moves or grows. They are
            // made from one pointer to the whole slice, as handlers walk from op to op.
            unsafe { (*first.add(fixup.op)).imm = first.add(fixup.target) as u64 };
        }
        let second = second_page.and_then(|gpa| NonZeroU32::new((gpa / PAGE) as u32 + 1));
        Block { ops, bytes: builder.bytes, second }
    }

    /// Returns the guest-physical address of the second page, for a block whose one instruction lies on two pages.
    pub fn second_page(&self) -> Option<u64> {
        self.second.map(|number| u64::from(number.get() - 1) * PAGE)
    }

    /// Returns the bytes of memory that the block takes, without its keys in the lists of pages.
    fn cost(&self) -> usize {
        self.ops.0.len() * size_of::<Op>() + BLOCK_COST
    }

    /// Returns the block's first op.
    pub fn entry(&self) -> *const Op {
        self.ops.first()
    }
}

/// A hasher that spreads addresses over the table. It does not resist an attacker, since a guest could only slow down
/// itself.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// The blocks of one page.
#[derive(Default)]
struct Page {
    /// Bit i set: bytes `64 * i ..` of the page are decoded.
    granules: u64,
    keys: Vec<Key>,
}

/// A block cache of the vCPUs of one thread, each of which holds it. It is borrowed for single calls.
pub type SharedCache = Rc<RefCell<BlockCache>>;

/// The blocks decoded so far, for the vCPUs of one thread.
pub struct BlockCache {
    blocks: Map<Key, Block>,
    pages: Map<u64, Page>,
    graveyard: Vec<Block>,
    /// Cost of the blocks, their keys and their pages, in bytes.
    cost: usize,
    /// Maximum of `cost`.
    bound: usize,
    memory: GuestMemory,
    /// The map that the code was read by.
    map: Arc<MemoryMap>,
    /// The vCPUs that run at the same time, each with a cache of its own.
    crew: Option<Arc<Crew>>,
    /// Number of drops so far. A jump cache that was filled in another generation is stale.
    pub generation: u64,
}

impl BlockCache {
    /// Creates an empty cache for code in `memory`: of all vCPUs, or of one of a `crew`.
    pub fn new(memory: GuestMemory, crew: Option<Arc<Crew>>) -> BlockCache {
        let map = memory.map();
        let caches = crew.as_ref().map_or(1, |crew| crew.vcpus());
        BlockCache {
            blocks: Map::default(),
            pages: Map::default(),
            graveyard: Vec::new(),
            cost: 0,
            bound: BlockCache::bound(map.regions().iter().map(Region::len).sum()) / caches,
            crew,
            memory,
            map,
            generation: 1,
        }
    }

    /// Creates an empty cache, as [`BlockCache::new`] does, for vCPUs to hold.
    pub fn shared(memory: GuestMemory, crew: Option<Arc<Crew>>) -> SharedCache {
        Rc::new(RefCell::new(BlockCache::new(memory, crew)))
    }

    /// Returns the maximum number of bytes that the cache of a guest with `memory_bytes` of memory takes.
    pub fn bound(memory_bytes: u64) -> usize {
        (memory_bytes / SHARE).clamp(BOUNDS.0, BOUNDS.1) as usize
    }

    /// Returns the block at `key`.
    pub fn get(&self, key: Key) -> Option<&Block> {
        self.blocks.get(&key)
    }

    /// Returns whether `entry` is the first op of a block that may be linked to. A block on two pages may not.
    pub fn is_plain(&self, key: Key) -> bool {
        self.get(key).is_some_and(|b| b.second.is_none())
    }

    /// Keeps a block. Returns its first op and whether one of its pages is new as a page with code; then all TLBs must
    /// be told. Must be called only while no chain runs.
    pub fn insert(&mut self, key: Key, block: Block) -> (*const Op, bool) {
        // Both keys of the block, and pages for them, are new at worst.
        let most = block.cost() + 2 * (KEY_COST + PAGE_COST);
        // A crew's vCPU has made room before it claimed the block's pages, which it would lose here.
        if self.crew.is_none()
            && (self.cost + most > self.bound
                || self.is_crowded(key.gpa())
                || block.second_page().is_some_and(|gpa| self.is_crowded(gpa)))
        {
            self.drop_all();
        }
        self.cost += block.cost();
        let entry = block.entry();
        let offset = key.gpa() % PAGE;
        let bytes = u64::from(block.bytes.max(1));
        let here = bytes.min(PAGE - offset);
        let mut new = self.note(key.gpa(), here, key);
        if let Some(second) = block.second_page() {
            new |= self.note(second, bytes - here, key);
        }
        if let Some(old) = self.blocks.insert(key, block) {
            self.cost -= old.cost();
            self.graveyard.push(old);
            self.generation += 1;
        }
        (entry, new)
    }

    fn note(&mut self, gpa: u64, bytes: u64, key: Key) -> bool {
        let new = self.enter_page(gpa & !(PAGE - 1));
        let page = self.pages.get_mut(&(gpa & !(PAGE - 1))).expect("it was entered");
        page.granules |= granules(gpa % PAGE, bytes);
        page.keys.push(key);
        self.cost += KEY_COST;
        if new {
            self.map.watch(GuestAddr(gpa), true);
        }
        new
    }

    /// Enters a page that code is read from. Returns whether it is new.
    fn enter_page(&mut self, page: u64) -> bool {
        let new = !self.pages.contains_key(&page);
        if new {
            self.pages.insert(page, Page::default());
            self.cost += PAGE_COST;
        }
        new
    }

    /// Returns whether the page at `gpa` has as many keys as it may have.
    fn is_crowded(&self, gpa: u64) -> bool {
        self.pages.get(&(gpa & !(PAGE - 1))).is_some_and(|page| page.keys.len() >= MAX_KEYS)
    }

    /// Makes room for the next block, whose first byte is at `gpa`, of a crew's vCPU. Must be called only while no chain runs.
    pub fn make_room(&mut self, gpa: u64) {
        if self.is_crowded(gpa) || self.cost + LARGEST_BLOCK > self.bound {
            self.drop_all();
        }
    }

    /// Claims the pages of `spans`, each of some bytes inside one page, before a crew's vCPU reads them as code: from then
    /// on no store into them is missed. Must be called only while no chain runs.
    pub fn claim(&mut self, cpu: &mut Cpu, spans: &[(u64, u64)]) {
        let Some(crew) = self.crew.clone() else { return };
        let page_of = |gpa: u64| gpa & !(PAGE - 1);
        // What the vCPU is told while it waits may drop a page again.
        while let Some(page) = spans.iter().map(|span| page_of(span.0)).find(|page| !self.pages.contains_key(page)) {
            self.enter_page(page);
            let map = self.map.clone();
            crew.claim(cpu.index, page, &map, || self.open_mail(cpu, &crew));
            tlb::protect_code_page(cpu, page);
        }
        for &(gpa, bytes) in spans {
            crew.will_decode(page_of(gpa), granules(gpa % PAGE, bytes));
        }
    }

    /// Opens the mailbox of a crew's vCPU. Must be called only while no chain runs on it.
    pub fn open_mail(&mut self, cpu: &mut Cpu, crew: &Crew) {
        crew.open(cpu.index, |mail| {
            mail.protect.iter().for_each(|&page| tlb::protect_code_page(cpu, page));
            for (page, written) in mail.written {
                if self.pages.get(&page).is_some_and(|page| page.granules & written != 0) {
                    self.drop_page(page);
                }
            }
        });
    }

    fn unwatch(&self, page: u64) {
        match &self.crew {
            Some(crew) => crew.drop_page(page, &self.map),
            None => self.map.watch(GuestAddr(page), false),
        }
    }

    /// Frees dropped blocks. Must be called only while no chain runs.
    pub fn bury(&mut self) {
        self.graveyard.clear();
        // Keep room for the blocks of a few pages, but not for all blocks.
        self.graveyard.shrink_to(1024);
    }

    /// Returns whether a write of `bytes` at `gpa`, inside one page, would change decoded code.
    pub fn holds_code(&self, gpa: u64, bytes: u64) -> bool {
        self.pages.get(&(gpa & !(PAGE - 1))).is_some_and(|p| p.granules & granules(gpa % PAGE, bytes) != 0)
    }

    /// Drops all blocks of the page at `gpa`.
    pub fn drop_page(&mut self, gpa: u64) {
        let base = gpa & !(PAGE - 1);
        let Some(page) = self.pages.remove(&base) else { return };
        self.unwatch(base);
        self.generation += 1;
        self.cost -= PAGE_COST + page.keys.len() * KEY_COST;
        for key in page.keys {
            if let Some(block) = self.blocks.remove(&key) {
                self.cost -= block.cost();
                self.graveyard.push(block);
            }
        }
    }

    /// Drops all blocks.
    pub fn drop_all(&mut self) {
        self.pages.keys().for_each(|&page| self.unwatch(page));
        // Drop the tables too: the next blocks may be few with many ops, and the cost of tables for many blocks is not
        // counted.
        self.pages = Map::default();
        self.graveyard.extend(std::mem::take(&mut self.blocks).into_values());
        self.cost = 0;
        self.generation += 1;
    }

    /// Takes `map` for the memory that code is in, and drops the blocks of pages that are not what they were.
    pub fn follow(&mut self, map: &Arc<MemoryMap>) {
        let changed = self.map.without(map);
        let gone = |gpa: &u64| changed.iter().any(|region| gpa.wrapping_sub(region.base().0) < region.len());
        let pages: Vec<u64> = self.pages.keys().copied().filter(gone).collect();
        for gpa in pages {
            self.drop_page(gpa);
        }
        // Code that was read where nothing was may be memory now.
        if !map.without(&self.map).is_empty() {
            let outside = self.pages.keys().copied().filter(|&gpa| self.map.page(GuestAddr(gpa)).is_none()).collect::<Vec<_>>();
            for gpa in outside {
                self.drop_page(gpa);
            }
        }
        self.map = map.clone();
    }

    /// Drops the blocks of pages that devices wrote to.
    pub fn drop_written(&mut self) {
        for gpa in self.memory.take_watch_hits() {
            self.drop_page(gpa);
        }
    }
}

/// Returns the granules that `bytes` (at least 1) from `offset` in a page touch.
pub fn granules(offset: u64, bytes: u64) -> u64 {
    let first = offset / GRANULE;
    let last = ((offset + bytes.max(1) - 1) / GRANULE).min(63);
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

/// Handles a store of the vCPU to `len` bytes at guest-physical `gpa`, in a watched page (never across pages). If it
/// hit decoded code, drops the page's blocks, ends watching the page, and makes the chain leave after this op.
#[cold]
pub fn note_store(cpu: &mut Cpu, gpa: u64, len: u64) {
    let mut blocks = cpu.blocks.borrow_mut();
    if let Some(crew) = &blocks.crew {
        crew.note_store(cpu.index, gpa & !(PAGE - 1), granules(gpa % PAGE, len));
    }
    if blocks.holds_code(gpa, len) {
        blocks.drop_page(gpa);
        cpu.jump_generation = blocks.generation;
        drop(blocks);
        cpu.drop_jumps();
        cpu.leave_after_op = true;
    }
}

/// Selects the translations of a vCPU that were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// All.
    All,
    /// All of pages that are not global: a CR3 write.
    NotGlobal,
    /// The one of the page at this linear address.
    Page(u64),
}

/// Drops cached links from linear addresses to blocks, since translations were dropped.
pub fn forget_jumps(cpu: &mut Cpu, dropped: Dropped) {
    match dropped {
        Dropped::All => cpu.drop_jumps(),
        Dropped::NotGlobal => {
            cpu.drop_jumps_of(LOWER);
            if !cpu.jumps.upper_is_global {
                cpu.drop_jumps_of(UPPER);
            }
        }
        Dropped::Page(page) if cpu.jumps.may_have_fetched(page) => cpu.drop_jumps_of(half(page)),
        Dropped::Page(_) => {}
    }
}

impl Cpu {
    /// Drops the jump cache.
    pub fn drop_jumps(&mut self) {
        self.drop_jumps_of(LOWER);
        self.drop_jumps_of(UPPER);
    }

    fn drop_jumps_of(&mut self, half: usize) {
        let epoch = (self.jump_tags[half] >> 58) + 1;
        if epoch == 64 {
            self.jumps.clear(half);
        }
        self.jumps.fetched[half] = [0; 64];
        if half == UPPER {
            self.jumps.upper_is_global = true;
        }
        self.jump_tags[half] = (self.jump_tags[half] & MODE_TAG) | (epoch % 64) << 58;
    }

    /// Returns the tag from which the keys of the jump cache's entries for `addr` are made.
    #[inline(always)]
    pub fn jump_tag(&self, addr: u64) -> u64 {
        self.jump_tags[half(addr)]
    }

    /// Sets the mode that blocks are looked up in.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        for tag in &mut self.jump_tags {
            *tag = (*tag & !MODE_TAG) | u64::from(mode.0) << 48;
        }
    }
}

/// The halves of the linear addresses. Systems keep their own code in the upper half, in global pages, and change the
/// page tables of the lower half with every process. So each half has an epoch of its own.
const LOWER: usize = 0;
const UPPER: usize = 1;
#[inline(always)]
fn half(addr: u64) -> usize {
    (addr >> 63) as usize
}

/// Bits of the tag that hold the mode: 57:48. Above them is the epoch, below them are the bits of the linear address.
const MODE_TAG: u64 = 0x3ff << 48;
/// Number of entries of the jump cache.
pub const JUMPS: usize = 4096;

/// One entry of the jump cache.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct JumpEntry {
    /// Canonical linear address, exclusive-or'ed with its half's tag in [`Cpu::jump_tags`]. Two different pairs of canonical address and
    /// tag never give the same key, since bits 63:47 of the address are equal.
    pub key: u64,
    /// First op of the block.
    pub entry: *const Op,
}

/// The map from linear address, mode and epoch to a block.
pub struct JumpCache {
    entries: [JumpEntry; JUMPS],
    /// The same for the guest-physical address of pages that code is fetched from.
    fetches: [(u64, u64); FETCHES],
    /// For each half, bits of the page numbers that code was fetched from in this epoch, modulo 4096.
    fetched: [[u64; 64]; 2],
    /// Whether all pages of the upper half that code was fetched from in this epoch are global.
    upper_is_global: bool,
}

const FETCHES: usize = 256;
/// A key that no canonical address gives: the tag changes the bits above bit 47, and they would have to agree with bit
/// 47.
const NO_ENTRY: u64 = 0;

impl JumpCache {
    /// Creates an empty cache.
    pub fn new() -> Box<JumpCache> {
        let mut cache = Box::new(JumpCache {
            entries: [JumpEntry { key: NO_ENTRY, entry: std::ptr::null() }; JUMPS],
            fetches: [(NO_ENTRY, 0); FETCHES],
            fetched: [[0; 64]; 2],
            upper_is_global: true,
        });
        cache.clear(LOWER);
        cache
    }

    /// Removes the entries of one half.
    fn clear(&mut self, half: usize) {
        // Tags leave bit 47 of the address alone, and bit 47 selects the half. A key that belongs to another slot is
        // never looked for in this one.
        let is_of = |key: u64| (key >> 47 & 1) as usize == half;
        for (i, e) in self.entries.iter_mut().enumerate().filter(|(_, e)| is_of(e.key)) {
            *e = JumpEntry { key: (i as u64) ^ 1, entry: std::ptr::null() };
        }
        for (i, e) in self.fetches.iter_mut().enumerate().filter(|(_, e)| is_of(e.0)) {
            *e = (((i as u64) ^ 1) << 12, 0);
        }
    }

    #[inline(always)]
    fn slot(addr: u64) -> usize {
        (addr ^ addr >> 12) as usize & (JUMPS - 1)
    }

    /// Returns the entry that would hold `addr`.
    #[inline(always)]
    pub fn entry(&self, addr: u64) -> &JumpEntry {
        // SAFETY: `slot` masks the index.
        unsafe { self.entries.get_unchecked(Self::slot(addr)) }
    }

    /// Returns the block at `addr`, if the cache has it.
    #[inline(always)]
    pub fn find(&self, addr: u64, tag: u64) -> Option<*const Op> {
        let e = self.entry(addr);
        (e.key == addr ^ tag && (addr << 16) as i64 >> 16 == addr as i64).then_some(e.entry)
    }

    /// Adds a block.
    pub fn put(&mut self, addr: u64, tag: u64, entry: *const Op) {
        self.entries[Self::slot(addr)] = JumpEntry { key: addr ^ tag, entry };
    }

    /// Returns the guest-physical page of the canonical linear address `addr`, if code was fetched from there.
    pub fn find_fetch(&self, addr: u64, tag: u64) -> Option<u64> {
        let (key, gpa) = self.fetches[(addr >> 12) as usize % FETCHES];
        (key == (addr & !0xfff) ^ tag).then_some(gpa)
    }

    fn may_have_fetched(&self, addr: u64) -> bool {
        self.fetched[half(addr)][(addr >> 18 & 63) as usize] >> (addr >> 12 & 63) & 1 != 0
    }

    /// Adds a page of code, and whether it is global.
    pub fn put_fetch(&mut self, addr: u64, tag: u64, gpa: u64, global: bool) {
        self.fetched[half(addr)][(addr >> 18 & 63) as usize] |= 1 << (addr >> 12 & 63);
        self.upper_is_global &= global || half(addr) == LOWER;
        self.fetches[(addr >> 12) as usize % FETCHES] = ((addr & !0xfff) ^ tag, gpa & !0xfff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::memory::Mode as MemoryMode;
    use crate::hypervisor::soft::cpu::RIP;
    use crate::hypervisor::soft::rig::{DATA, Rig, Stop};
    use crate::hypervisor::soft::tlb;

    #[test]
    fn granules_cover_the_bytes_and_no_more() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(4095, 1), 1 << 63);
        assert_eq!(granules(0, 4096), u64::MAX);
        assert_eq!(granules(128, 64), 4);
    }

    /// Returns the bytes that `cache` takes at least: ops, map entries at the highest fill that a table has, keys.
    fn bytes_taken(cache: &BlockCache) -> usize {
        let entries =
            cache.blocks.capacity() * (size_of::<(Key, Block)>() + 1) + cache.pages.capacity() * (size_of::<(u64, Page)>() + 1);
        let ops: usize = cache.blocks.values().map(|b| b.cost() - BLOCK_COST).sum();
        let keys: usize = cache.pages.values().map(|p| p.keys.capacity() * size_of::<Key>()).sum();
        entries + ops + keys + cache.graveyard.capacity() * size_of::<Block>()
    }

    #[test]
    fn the_cache_of_a_small_guest_takes_no_more_memory_than_the_guest_however_small_its_blocks_are() {
        use crate::hypervisor::soft::lower::decode_block;
        const MEMORY: u64 = 16 << 20;
        assert_eq!(BlockCache::bound(MEMORY), 16 << 20);
        assert_eq!(BlockCache::bound(512 << 20), 128 << 20);
        assert_eq!(BlockCache::bound(64 << 30), 192 << 20);
        let memory = GuestMemory::anonymous(&[(GuestAddr(0), MEMORY, MemoryMode::Ram)]).unwrap();
        let mut cache = BlockCache::new(memory, None);
        // First a RET at every byte; then long blocks, after tables for many short ones.
        let code: [&[u8]; 2] = [&[0xc3], &[0x48, 0x0f, 0xaf, 0xc0].repeat(16)];
        for (bytes, stride) in code.into_iter().zip([1, 64]) {
            let mut most = 0;
            for gpa in (0..MEMORY / 64 * stride as u64).step_by(stride) {
                let block = Block::new(decode_block(bytes, gpa, Mode(Mode::LONG), gpa, false, false).unwrap(), None);
                cache.bury();
                cache.insert(Key::new(gpa, Mode(Mode::LONG)), block);
                if gpa / stride as u64 % 0x1000 == 0 {
                    most = most.max(bytes_taken(&cache));
                    assert!(cache.cost <= cache.bound, "{} of {}", cache.cost, cache.bound);
                }
            }
            assert!(most <= MEMORY as usize && most > MEMORY as usize / 4, "{most}");
        }
        // Dropped blocks must not count any more.
        for gpa in (0..MEMORY).step_by(PAGE as usize) {
            cache.drop_page(gpa);
        }
        assert_eq!((cache.cost, cache.blocks.len(), cache.pages.len()), (0, 0, 0));
    }

    #[test]
    fn a_cleared_jump_cache_finds_nothing_even_at_zero() {
        let cache = JumpCache::new();
        for addr in [0u64, 1, 0x1000, 0xffff_ffff_8000_0000] {
            for tag in [0u64, 1 << 48, 63 << 58] {
                assert!(cache.find(addr, tag).is_none());
                assert!(cache.find_fetch(addr, tag).is_none());
            }
        }
    }

    #[test]
    fn a_block_that_the_walk_to_its_second_page_drops_is_not_run_again() {
        const UPPER: u64 = 0xffff_ffff_8000_0000;
        const TABLE: u64 = 0x30_0000;
        let mut rig = Rig::user();
        // mov eax, imm32 on two pages; ud2. The first page also is the page table of another mapping of both: its entries
        // 503 and 504, of which the second lies beside the code and has no accessed bit yet.
        let (first, second) = (DATA, DATA + 0x1000);
        rig.write(first + 0xffd, &[0xb8, 1, 0, 0, 0, 0x0f, 0x0b]);
        rig.write(first + 503 * 8, &(first | 0x67).to_le_bytes());
        rig.write(first + 504 * 8, &(second | 0x47).to_le_bytes());
        let tables = rig.cpu.sys.cr3;
        for (slot, value) in [(tables + 511 * 8, TABLE), (TABLE + 510 * 8, TABLE + 0x1000), (TABLE + 0x1000, first)] {
            rig.write(slot, &(value | 0x27).to_le_bytes());
        }
        let run = |rig: &mut Rig, page: u64| {
            rig.cpu.regs[RIP] = page + 0xffd;
            assert!(matches!(rig.run(1000), Stop::Exception(e) if e.vector == 6));
            rig.cpu.regs[0]
        };
        assert_eq!((run(&mut rig, first), run(&mut rig, UPPER + 503 * 0x1000)), (1, 1));
        assert_eq!(rig.read(first + 504 * 8, 1), [0x67], "the walk sets the accessed bit");
        rig.write(first + 0xffe, &[2]);
        assert_eq!((run(&mut rig, UPPER + 503 * 0x1000), run(&mut rig, first)), (2, 2));
    }

    #[test]
    fn the_upper_half_keeps_its_jumps_over_a_cr3_write_only_where_all_of_it_is_global() {
        const UPPER: u64 = 0xffff_ffff_8000_0000;
        const TABLE: u64 = 0x30_0000;
        let mut rig = Rig::user();
        let tables = rig.cpu.sys.cr3;
        for (slot, value) in [(tables + 511 * 8, TABLE | 7), (TABLE + 510 * 8, (TABLE + 0x1000) | 7)] {
            rig.write(slot, &value.to_le_bytes());
        }
        rig.write(TABLE + 0x1000, &(TABLE + 0x2000 | 7).to_le_bytes());
        let map = |rig: &mut Rig, page: u64, gpa: u64, global: bool| {
            rig.write(TABLE + 0x2000 + page * 8, &(gpa | 0x67 | u64::from(global) << 8).to_le_bytes());
        };
        // At two pages: mov eax, 1 or 2 or 3; ud2
        for n in 1..=3u8 {
            rig.write(DATA + u64::from(n) * 0x1000, &[0xb8, n, 0, 0, 0, 0x0f, 0x0b]);
        }
        let run = |rig: &mut Rig, page: u64| {
            rig.cpu.regs[RIP] = UPPER + page * 0x1000;
            assert!(matches!(rig.run(1000), Stop::Exception(e) if e.vector == 6));
            rig.cpu.regs[0]
        };
        map(&mut rig, 0, DATA + 0x1000, true);
        assert_eq!(run(&mut rig, 0), 1);
        map(&mut rig, 0, DATA + 0x2000, true);
        tlb::flush(&mut rig.cpu, true);
        assert_eq!(run(&mut rig, 0), 1, "a global translation outlives a CR3 write");
        tlb::flush_page(&mut rig.cpu, UPPER);
        assert_eq!(run(&mut rig, 0), 2, "and no INVLPG");
        // One page among them is not global.
        map(&mut rig, 1, DATA + 0x1000, false);
        assert_eq!(run(&mut rig, 1), 1);
        map(&mut rig, 1, DATA + 0x3000, false);
        tlb::flush(&mut rig.cpu, true);
        assert_eq!(run(&mut rig, 1), 3);
        assert_eq!(run(&mut rig, 0), 2);
        // More CR3 writes than there are epochs, so that the halves wrap around at different times.
        map(&mut rig, 1, DATA + 0x2000, false);
        for _ in 0..130 {
            tlb::flush(&mut rig.cpu, true);
            assert_eq!((run(&mut rig, 0), run(&mut rig, 1)), (2, 2));
        }
        map(&mut rig, 0, DATA + 0x3000, true);
        tlb::flush(&mut rig.cpu, false);
        assert_eq!(run(&mut rig, 0), 3);
    }
}
