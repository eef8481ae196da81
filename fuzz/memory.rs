//! The map of guest memory against a model of it: changes, modes, listeners that refuse, and the log of dirty pages.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vmctl::testing::hypervisor::memory::{GuestAddr, GuestMemory, HostMemory, MapError, MapListener, MemoryMap, Mode, Region};

use crate::bodies::Bytes;

const PAGE: u64 = 4096;
/// Pages of guest-physical space that are used.
const PAGES: u64 = 16;

/// A region as the model has it.
struct Known {
    pages: u64,
    mode: Mode,
    bytes: Vec<u8>,
}

/// A listener that keeps a mirror of the map, and refuses on request.
#[derive(Default)]
struct Mirror {
    regions: Mutex<BTreeMap<u64, (u64, Mode)>>,
    refuses: AtomicBool,
}

impl MapListener for Mirror {
    fn map_changes(&self, old: &MemoryMap, new: &MemoryMap) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::Error::other("no slot is free"));
        }
        let mut regions = self.regions.lock().expect("no panic happens under this lock");
        for gone in old.without(new) {
            assert_eq!(regions.remove(&gone.base().0), Some((gone.len(), gone.mode())), "what goes was there");
        }
        for come in new.without(old) {
            assert_eq!(regions.insert(come.base().0, (come.len(), come.mode())), None, "what comes was not");
        }
        Ok(())
    }
}

/// The memory and its model.
struct Rig {
    memory: GuestMemory,
    mirrors: [Arc<Mirror>; 2],
    known: BTreeMap<u64, Known>,
    dirty: BTreeSet<u64>,
    logging: bool,
}

impl Rig {
    /// Returns the region of the model that holds all of a span and is not in device mode, and where the span starts.
    fn find(&self, addr: u64, len: u64) -> Option<(u64, usize)> {
        let (&base, region) = self.known.range(..=addr).next_back()?;
        let inside = addr < base + region.pages * PAGE && addr + len <= base + region.pages * PAGE;
        (inside && region.mode != Mode::Device).then(|| (base, (addr - base) as usize))
    }

    fn note(&mut self, addr: u64, len: u64) {
        if self.logging && len > 0 {
            self.dirty.extend(addr / PAGE..=(addr + len - 1) / PAGE);
        }
    }

    fn insert(&mut self, bytes: &mut Bytes<'_>) {
        let (base, pages) = (u64::from(bytes.byte()) % PAGES * PAGE, 1 + u64::from(bytes.byte()) % 4);
        let mode = mode(bytes);
        let memory = match bytes.byte() % 2 {
            0 => HostMemory::anonymous(pages * PAGE),
            _ => HostMemory::shared(pages * PAGE).map(|(memory, _)| memory),
        };
        let region =
            Region::new(GuestAddr(base), pages * PAGE, mode, Arc::new(memory.expect("a few pages")), 0).expect("whole pages");
        let taken = self.known.iter().any(|(&other, known)| base < other + known.pages * PAGE && other < base + pages * PAGE);
        let refused = self.refuse(bytes);
        match self.memory.change(|map| map.insert(region)) {
            Ok(()) => {
                assert!(!taken && !refused);
                self.known.insert(base, Known { pages, mode, bytes: vec![0; (pages * PAGE) as usize] });
                self.note(base, pages * PAGE);
            }
            Err(MapError::Taken { .. }) => assert!(taken),
            Err(error) => assert!(refused && matches!(error, MapError::Refused(_)), "{error}"),
        }
    }

    /// Lets a listener refuse the next change, or none. Returns whether one does.
    fn refuse(&self, bytes: &mut Bytes<'_>) -> bool {
        let which = usize::from(bytes.byte() % 8);
        for (number, mirror) in self.mirrors.iter().enumerate() {
            mirror.refuses.store(number == which, Ordering::Relaxed);
        }
        which < self.mirrors.len()
    }

    fn remove(&mut self, base: u64, bytes: &mut Bytes<'_>) {
        let refused = self.refuse(bytes);
        match self.memory.change(|map| map.remove(GuestAddr(base)).map(drop)) {
            Ok(()) => {
                let gone = self.known.remove(&base).expect("it was there");
                assert!(!refused);
                self.dirty.retain(|page| !(base / PAGE..base / PAGE + gone.pages).contains(page));
            }
            Err(MapError::Missing { .. }) => assert!(!self.known.contains_key(&base)),
            Err(_) => assert!(refused),
        }
    }

    fn set_mode(&mut self, base: u64, bytes: &mut Bytes<'_>) {
        let (mode, refused) = (mode(bytes), self.refuse(bytes));
        match self.memory.change(|map| map.set_mode(GuestAddr(base), mode)) {
            Ok(()) => {
                let known = self.known.get_mut(&base).expect("it was there");
                let (changed, len) = (known.mode != mode, known.pages * PAGE);
                known.mode = mode;
                if changed {
                    self.note(base, len);
                }
            }
            Err(MapError::Missing { .. }) => assert!(!self.known.contains_key(&base)),
            Err(_) => assert!(refused),
        }
    }

    fn write(&mut self, bytes: &mut Bytes<'_>, rom: bool) {
        let (addr, len) = span(bytes);
        let data: Vec<u8> = (0..len).map(|i| bytes.byte().wrapping_add(i as u8)).collect();
        let found = self.find(addr, len).filter(|(base, _)| rom || self.known[base].mode == Mode::Ram);
        let written = if rom { self.memory.write_rom(GuestAddr(addr), &data) } else { self.memory.write(GuestAddr(addr), &data) };
        assert_eq!(written.is_ok(), found.is_some(), "{addr:#x} {len}");
        if let Some((base, offset)) = found {
            let known = self.known.get_mut(&base).expect("just found");
            known.bytes[offset..offset + data.len()].copy_from_slice(&data);
            self.note(addr, len);
        }
    }

    fn read(&self, bytes: &mut Bytes<'_>) {
        let (addr, len) = span(bytes);
        let mut data = vec![0; len as usize];
        let read = self.memory.read(GuestAddr(addr), &mut data);
        match self.find(addr, len) {
            Some((base, offset)) => {
                assert!(read.is_ok());
                assert_eq!(data, self.known[&base].bytes[offset..offset + data.len()]);
            }
            None => assert!(read.is_err()),
        }
    }

    /// Takes the log, which has exactly the pages that were written and are still there.
    fn take(&mut self) {
        let told = self.memory.take_dirty();
        let told: BTreeSet<u64> = told.iter().flat_map(|&(base, len)| base.0 / PAGE..(base.0 + len) / PAGE).collect();
        assert_eq!(told, std::mem::take(&mut self.dirty));
    }
}

fn mode(bytes: &mut Bytes<'_>) -> Mode {
    [Mode::Ram, Mode::Rom, Mode::Device][usize::from(bytes.byte() % 3)]
}

fn span(bytes: &mut Bytes<'_>) -> (u64, u64) {
    let page = u64::from(bytes.byte()) % PAGES * PAGE;
    (page + u64::from(bytes.word()) % PAGE, 1 + u64::from(bytes.byte()) % 64)
}

/// Changes of the map and accesses by it.
pub fn memory_map(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mirrors: [Arc<Mirror>; 2] = Default::default();
    let memory = GuestMemory::new(MemoryMap::default());
    for mirror in &mirrors {
        memory.add_listener(mirror.clone()).expect("it refuses nothing yet");
    }
    let mut rig = Rig { memory, mirrors, known: BTreeMap::new(), dirty: BTreeSet::new(), logging: false };
    while !bytes.is_empty() {
        match bytes.byte() % 12 {
            0 | 1 => rig.insert(&mut bytes),
            2 => rig.remove(u64::from(bytes.byte()) % PAGES * PAGE, &mut bytes),
            3 => rig.set_mode(u64::from(bytes.byte()) % PAGES * PAGE, &mut bytes),
            4 | 5 => rig.write(&mut bytes, false),
            6 => rig.write(&mut bytes, true),
            7 | 8 => rig.read(&mut bytes),
            9 => {
                rig.memory.start_dirty_log();
                rig.dirty.clear();
                rig.logging = true;
            }
            10 => rig.take(),
            _ => {
                rig.memory.stop_dirty_log();
                rig.logging = false;
            }
        }
        let regions: BTreeMap<u64, (u64, Mode)> = rig.known.iter().map(|(&base, k)| (base, (k.pages * PAGE, k.mode))).collect();
        for mirror in &rig.mirrors {
            assert!(*mirror.regions.lock().expect("no panic happens under this lock") == regions);
        }
    }
}
