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

/// What the end of one request means for its command.
pub enum Ended<T> {
    /// Nothing: other requests of the command are in flight, or nobody waits for it any more.
    Nothing,
    /// This request must follow.
    Next(DiskRequest),
    /// The command is done.
    Done(T, DiskStatus),
}

impl<T> InFlight<T> {
    /// Creates an empty set.
    pub fn new() -> InFlight<T> {
        InFlight { commands: BTreeMap::new(), next_tag: 0 }
    }

    /// Adds a command, and returns the requests for its parts, of which there is at least one. They are for the disk, in
    /// this order.
    pub fn begin(&mut self, data: T, parts: Vec<Part>, flush_after: bool) -> impl Iterator<Item = DiskRequest> + use<T> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let command = Command { data, parts: parts.len() as u32, status: DiskStatus::Ok, flush_after };
        self.commands.insert(tag, command);
        parts.into_iter().map(move |(op, offset, segments)| DiskRequest { tag, op, offset, segments })
    }

    /// Notes that a request has ended.
    pub fn end(&mut self, tag: u64, status: DiskStatus) -> Ended<T> {
        let Some(command) = self.commands.get_mut(&tag) else { return Ended::Nothing };
        command.parts -= 1;
        if status != DiskStatus::Ok {
            command.status = status;
        }
        if command.parts > 0 {
            return Ended::Nothing;
        }
        if command.flush_after && command.status == DiskStatus::Ok {
            (command.flush_after, command.parts) = (false, 1);
            return Ended::Next(DiskRequest { tag, op: DiskOp::Flush, offset: 0, segments: Vec::new() });
        }
        let command = self.commands.remove(&tag).expect("it was found above");
        Ended::Done(command.data, command.status)
    }

    /// Submits the parts of a command, at least one, to the disk.
    pub fn submit(&mut self, disk: &mut dyn Disk, data: T, parts: Vec<Part>, flush_after: bool) {
        self.begin(data, parts, flush_after).for_each(|request| disk.submit(request));
    }

    /// Returns the next command that the disk has finished, with its status.
    pub fn completed(&mut self, disk: &mut dyn Disk) -> Option<(T, DiskStatus)> {
        while let Some((tag, status)) = disk.completed() {
            match self.end(tag, status) {
                Ended::Nothing => {}
                Ended::Next(request) => disk.submit(request),
                Ended::Done(data, status) => return Some((data, status)),
            }
        }
        None
    }

    /// Drops all commands, and what the disk has finished: for a reset, once nothing is in flight. What still ends is not
    /// noticed.
    pub fn clear(&mut self, disk: &mut dyn Disk) {
        while disk.completed().is_some() {}
        self.commands.clear();
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
