//! The guest's memory as KVM has it: one slot for each region of the map.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, section 4.35 (KVM_SET_USER_MEMORY_REGION).
//!
//! An unsafe island: the kernel writes to the memory of a slot, so the map must live as long as the slot.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::hypervisor::memory::{MapListener, MemoryMap, Mode, Region};

/// The slots of one machine.
pub struct Slots {
    vm: Arc<VmFd>,
    /// The first address of the region in each slot, which keeps its memory mapped.
    slots: Mutex<Vec<Option<Region>>>,
    most: usize,
}

impl Slots {
    /// Creates no slots. The kernel has `most`.
    pub fn new(vm: Arc<VmFd>, most: usize) -> Slots {
        Slots { vm, slots: Mutex::default(), most }
    }

    /// Sets one slot. No bytes remove what is in it.
    fn set(&self, slot: usize, region: &Region, bytes: u64) -> io::Result<()> {
        let flags = if region.mode() == Mode::Rom { KVM_MEM_READONLY } else { 0 };
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags,
            guest_phys_addr: region.base().0,
            memory_size: bytes,
            userspace_addr: region.host().addr() as u64,
        };
        // SAFETY: the region's memory lives as long as `slots` holds the region, and it is removed from there only after
        // the slot is gone; no Rust reference is ever made into it.
        unsafe { self.vm.set_user_memory_region(slot) }.map_err(io::Error::from)
    }

    fn remove(&self, slots: &mut [Option<Region>], region: &Region) -> io::Result<()> {
        let held = |slot: &Option<Region>| slot.as_ref().is_some_and(|held| held.base() == region.base());
        let Some(slot) = slots.iter().position(held) else { return Ok(()) };
        self.set(slot, region, 0)?;
        slots[slot] = None;
        Ok(())
    }

    fn insert(&self, slots: &mut Vec<Option<Region>>, region: &Region) -> io::Result<()> {
        let free = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        if free >= self.most {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("the host has {} slots of memory", self.most)));
        }
        self.set(free, region, region.len())?;
        if free == slots.len() {
            slots.push(None);
        }
        slots[free] = Some(region.clone());
        advise_large_pages(region);
        Ok(())
    }
}

/// Asks for large pages behind a region: madvise(2). Many systems give them only then, and a walk of nested page tables
/// costs much more without. A system without them refuses, which costs only speed.
fn advise_large_pages(region: &Region) {
    // SAFETY: the region is mapped as a whole; the advice changes no byte of it.
    unsafe { libc::madvise(region.host().cast(), region.len() as usize, libc::MADV_HUGEPAGE) };
}

impl MapListener for Slots {
    fn map_changes(&self, old: &MemoryMap, new: &MemoryMap) -> io::Result<()> {
        let in_slots = |region: &&Region| region.mode() != Mode::Device;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (gone, come) = (old.without(new), new.without(old));
        gone.iter().filter(in_slots).try_for_each(|region| self.remove(&mut slots, region))?;
        for (done, region) in come.iter().filter(in_slots).enumerate() {
            if let Err(error) = self.insert(&mut slots, region) {
                // The old map stays: it is put back as far as the kernel lets us.
                come.iter().filter(in_slots).take(done).for_each(|region| drop(self.remove(&mut slots, region)));
                gone.iter().filter(in_slots).for_each(|region| drop(self.insert(&mut slots, region)));
                return Err(error);
            }
        }
        Ok(())
    }
}
