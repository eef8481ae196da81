//! The commands of a disk device that its disk has not finished.
//!
//! A command of the guest becomes one or more requests to the disk, followed by a flush if the device writes through. The
//! command is done when all of them are. If one of them fails the command fails, and there is no flush.
//!
//! **Hostile guest**: the device bounds its commands and their parts, and nothing else grows here.

use std::collections::BTreeMap;

use super::{Disk, DiskOp, DiskRequest, DiskStatus};
use crate::hypervisor::memory::GuestAddr;

/// One request to the disk: operation, first byte, the guest's buffers.
pub type Part = (DiskOp, u64, Vec<(GuestAddr, u32)>);

struct Command<T> {
    data: T,
    /// Number of requests that are not yet completed.
    parts: u32,
    status: DiskStatus,
    flush_after: bool,
}

/// The commands in flight, each with the device's own data.
pub struct InFlight<T> {
    commands: BTreeMap<u64, Command<T>>,
    next_tag: u64,
}

impl<T> InFlight<T> {
    /// Creates an empty set.
    pub fn new() -> InFlight<T> {
        InFlight { commands: BTreeMap::new(), next_tag: 0 }
    }

    /// Submits the parts of a command, at least one, to the disk.
    pub fn submit(&mut self, disk: &mut dyn Disk, data: T, parts: Vec<Part>, flush_after: bool) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let command = Command { data, parts: parts.len() as u32, status: DiskStatus::Ok, flush_after };
        self.commands.insert(tag, command);
        for (op, offset, segments) in parts {
            disk.submit(DiskRequest { tag, op, offset, segments });
        }
    }

    /// Returns the next command that the disk has finished, with its status.
    pub fn completed(&mut self, disk: &mut dyn Disk) -> Option<(T, DiskStatus)> {
        while let Some((tag, status)) = disk.completed() {
            let Some(command) = self.commands.get_mut(&tag) else { continue };
            command.parts -= 1;
            if status != DiskStatus::Ok {
                command.status = status;
            }
            if command.parts > 0 {
                continue;
            }
            if command.flush_after && command.status == DiskStatus::Ok {
                (command.flush_after, command.parts) = (false, 1);
                disk.submit(DiskRequest { tag, op: DiskOp::Flush, offset: 0, segments: Vec::new() });
                continue;
            }
            let command = self.commands.remove(&tag).expect("it was found above");
            return Some((command.data, command.status));
        }
        None
    }

    /// Waits until the disk has finished its requests, and drops all commands: for a reset.
    pub fn drain(&mut self, disk: &mut dyn Disk) {
        disk.drain();
        while disk.completed().is_some() {}
        self.commands.clear();
    }

    /// Drops the commands of which `which` is true: nobody waits for them any more.
    pub fn forget(&mut self, which: impl Fn(&T) -> bool) {
        self.commands.retain(|_, command| !which(&command.data));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// What the device knows of each, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.commands.values().map(|command| &command.data)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryDisk;
    use super::*;
    use crate::hypervisor::memory::{GuestAddr, GuestMemory, Mode};

    #[test]
    fn a_command_ends_after_its_last_part_and_its_flush_and_one_that_fails_is_not_flushed() {
        let memory = GuestMemory::anonymous(&[(GuestAddr(0), 4096, Mode::Ram)]).unwrap();
        let (mut disk, handle) = MemoryDisk::new(&memory, 4096, false);
        let mut commands = InFlight::new();
        handle.hold(true);
        let part = |offset| (DiskOp::WriteZeroes { bytes: 512, may_unmap: false }, offset, Vec::new());
        commands.submit(&mut disk, "twice", vec![part(0), part(512)], true);
        assert!(commands.completed(&mut disk).is_none());
        handle.release(0);
        assert!(commands.completed(&mut disk).is_none(), "half of it");
        handle.release(0);
        assert!(commands.completed(&mut disk).is_none(), "the flush");
        assert_eq!(commands.iter().collect::<Vec<_>>(), [&"twice"]);
        handle.release(0);
        assert_eq!(commands.completed(&mut disk), Some(("twice", DiskStatus::Ok)));
        assert!(commands.is_empty());
        handle.hold(false);
        handle.fail(true);
        commands.submit(&mut disk, "fails", vec![part(0)], true);
        assert_eq!(commands.completed(&mut disk), Some(("fails", DiskStatus::IoError)));
    }
}
