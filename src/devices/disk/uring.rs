//! A disk's requests through io_uring: one thread, many requests at once (io_uring(7), io_uring_enter(2)).
//!
//! The ring is made, with all that it may ever do, before the process is confined: an io_uring does its work past seccomp. Its
//! two files are registered, the disk's and the eventfd(2) that wakes the thread, and it is restricted to reads, writes and
//! syncs of these two (IORING_REGISTER_RESTRICTIONS); nothing can be registered any more. So a guest that has taken the
//! process over can do by the ring what it can do to the disk anyway. A kernel without that (before 5.10), or where io_uring
//! is off (kernel.io_uring_disabled, a container), has no ring, and the disk has its pool of threads.
//!
//! What a ring does not do, or not without a buffer (discards, zeros, misaligned direct I/O), is done on its thread by the
//! same code as in the pool. A misaligned write reads and writes whole blocks, so it waits until nothing else is in flight.
//!
//! **Hostile guest**: at most [`ENTRIES`] requests are in flight, others wait in the disk's list, which the device bounds. The
//! addresses that the kernel gets are those of guest memory, which was checked, and which lives until the kernel is done.
//!
//! An unsafe island: the kernel gets addresses that it uses later.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::file::{CacheMode, Engine, advance};
use super::{DiskOp, DiskRequest, DiskStatus};
use crate::hypervisor::memory::{GuestAddr, IoVectors};

/// Size of the ring. One entry is for the eventfd.
const ENTRIES: u32 = 128;
/// Places of the registered files.
const DISK: types::Fixed = types::Fixed(0);
const WAKE: types::Fixed = types::Fixed(1);
/// The tag of the read of the eventfd; those of requests are their slots.
const WOKEN: u64 = u64::MAX;

/// A ring for one disk, which does nothing yet.
pub struct Ring {
    ring: IoUring,
    wake: EventFd,
}

/// What wakes the thread of a ring.
pub struct WakeRing(EventFd);

impl WakeRing {
    /// Makes the thread look at the disk's list.
    pub fn wake(&self) {
        // It fails only if the counter is full, and then it wakes all the same.
        let _ = self.0.write(1);
    }
}

impl Ring {
    /// Makes a ring for `file`, if this host has and allows one.
    pub fn open(file: &File) -> Option<Ring> {
        Ring::try_open(file).ok()
    }

    fn try_open(file: &File) -> io::Result<Ring> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd(), wake.as_raw_fd()])?;
        let fixed = Flags::FIXED_FILE.bits();
        let ops = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Read::CODE];
        let mut rules: Vec<Restriction> = ops.into_iter().map(Restriction::sqe_op).collect();
        rules.extend([Restriction::sqe_flags_required(fixed), Restriction::sqe_flags_allowed(fixed)]);
        submitter.register_restrictions(&mut rules)?;
        submitter.register_enable_rings()?;
        Ok(Ring { ring, wake })
    }

    /// Returns the ring's thread, and what wakes it.
    pub fn start(self) -> (Runner, WakeRing) {
        let slots: Vec<Option<Flight>> = (1..ENTRIES).map(|_| None).collect();
        let free = (0..slots.len()).collect();
        let runner = Runner { ring: self.ring, slots, free, armed: false, count: Box::new([0; 8]), results: Vec::new() };
        (runner, WakeRing(self.wake))
    }
}

/// What the kernel does for a request.
enum Stage {
    /// Moves its bytes.
    Transfer,
    /// Makes it durable.
    Sync,
}

/// A request in flight. The kernel uses its vectors until it has answered.
struct Flight {
    request: DiskRequest,
    stage: Stage,
    left: VecDeque<(GuestAddr, u32)>,
    offset: u64,
    vectors: Option<IoVectors>,
}

/// The state of a ring's thread.
pub struct Runner {
    ring: IoUring,
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// The read of the eventfd is in flight.
    armed: bool,
    /// Where the kernel puts what it reads.
    count: Box<[u8; 8]>,
    /// Results that were not delivered yet.
    results: Vec<(u64, DiskStatus)>,
}

impl Runner {
    /// Carries out the disk's requests until it is told to stop, and finishes them all before.
    pub fn run(mut self, engine: &Engine) {
        while let Some(requests) = engine.take_for_ring(self.free.len(), self.is_idle()) {
            requests.into_iter().for_each(|request| self.begin(engine, request));
            self.deliver(engine);
            self.arm();
            self.turn(engine);
            self.deliver(engine);
        }
        // Whoever said that it stops wakes it, too: the kernel is done with `count` then.
        while self.armed {
            self.turn(engine);
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Submits what is in the ring, waits for an answer, and handles all that are there.
    fn turn(&mut self, engine: &Engine) {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            // A signal; answers must be taken first; no memory at the moment.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            // The kernel may use the memory of what is in flight: there is no way on, and none back.
            Err(error) => {
                eprintln!("vmctl vmm: the io_uring of a disk is refused: {error}");
                std::process::abort();
            }
        }
        let answers: Vec<(u64, i32)> = self.ring.completion().map(|answer| (answer.user_data(), answer.result())).collect();
        for (tag, result) in answers {
            match tag {
                WOKEN => self.armed = false,
                slot => self.answered(engine, slot as usize, result),
            }
        }
    }

    /// Gives results to the device, and only then counts their requests as ended.
    fn deliver(&mut self, engine: &Engine) {
        if !self.results.is_empty() {
            engine.deliver(&self.results);
            engine.ended_in_ring(self.results.len());
            self.results.clear();
        }
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: the memory that an entry names is that of guest buffers and of their vectors, which a `Flight` keeps in
        // its slot until the kernel has answered, or the `count` of this runner, which ends when nothing is in flight.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("a ring has room for each slot and the eventfd");
    }

    fn arm(&mut self) {
        if !std::mem::replace(&mut self.armed, true) {
            let at = self.count.as_mut_ptr();
            self.push(&opcode::Read::new(WAKE, at, 8).build().user_data(WOKEN));
        }
    }

    fn begin(&mut self, engine: &Engine, request: DiskRequest) {
        let inside = engine.is_inside(&request);
        match request.op {
            DiskOp::Read | DiskOp::Write if inside && request.bytes() > 0 && engine.is_aligned(&request) => {
                let left = request.segments.iter().copied().filter(|&(_, len)| len > 0).collect();
                let offset = request.offset;
                self.put(engine, Flight { request, stage: Stage::Transfer, left, offset, vectors: None });
            }
            DiskOp::Flush if !engine.ignores_flushes() => {
                self.put(engine, Flight { request, stage: Stage::Sync, left: VecDeque::new(), offset: 0, vectors: None });
            }
            _ => {
                if engine.writes_whole_blocks(&request) {
                    self.wait_for_all(engine);
                }
                self.do_here(engine, &request);
            }
        }
    }

    /// Waits until nothing is in flight.
    fn wait_for_all(&mut self, engine: &Engine) {
        while !self.is_idle() {
            self.turn(engine);
        }
    }

    /// Does a request on this thread.
    fn do_here(&mut self, engine: &Engine, request: &DiskRequest) {
        let status = engine.carry_out(request);
        engine.count(request, status);
        self.results.push((request.tag, status));
    }

    fn put(&mut self, engine: &Engine, flight: Flight) {
        let slot = self.free.pop().expect("no more requests are taken than there are slots");
        self.slots[slot] = Some(flight);
        self.submit(engine, slot);
    }

    /// Puts what a request needs next into the ring.
    fn submit(&mut self, engine: &Engine, slot: usize) {
        let flight = self.slots[slot].as_mut().expect("a slot in use");
        let entry = match flight.stage {
            Stage::Sync => opcode::Fsync::new(DISK).flags(types::FsyncFlags::DATASYNC).build(),
            Stage::Transfer => {
                let reads = flight.request.op == DiskOp::Read;
                match engine.memory().io_vectors(flight.left.make_contiguous(), reads) {
                    Err(error) => return self.finish(engine, slot, Err(error)),
                    Ok(vectors) => {
                        let list = flight.vectors.insert(vectors).list();
                        let (at, count) = (list.as_ptr(), list.len() as u32);
                        match reads {
                            true => opcode::Readv::new(DISK, at, count).offset(flight.offset).build(),
                            false => opcode::Writev::new(DISK, at, count).offset(flight.offset).build(),
                        }
                    }
                }
            }
        };
        self.push(&entry.user_data(slot as u64));
    }

    fn answered(&mut self, engine: &Engine, slot: usize, result: i32) {
        let flight = self.slots[slot].as_mut().expect("an answer is for a slot in use");
        let write = flight.request.op == DiskOp::Write;
        match (result, &flight.stage) {
            (error, _) if error == -libc::EINTR => self.submit(engine, slot),
            // The file does not do this by a ring, or the kernel got no thread for it (a limit of processes).
            (error, _) if [libc::EAGAIN, libc::EOPNOTSUPP, libc::ECANCELED].contains(&-error) => {
                let flight = self.free_slot(slot);
                self.do_here(engine, &flight.request);
            }
            (error, _) if error < 0 => self.finish(engine, slot, Err(io::Error::from_raw_os_error(-error))),
            (0, Stage::Transfer) if write => self.finish(engine, slot, Err(io::ErrorKind::WriteZero.into())),
            (0, Stage::Transfer) => self.finish(engine, slot, Err(io::ErrorKind::UnexpectedEof.into())),
            (_, Stage::Sync) => self.finish(engine, slot, Ok(())),
            (moved, Stage::Transfer) => {
                let moved = moved as u64;
                if !write {
                    engine.memory().note_read(flight.left.make_contiguous(), moved);
                }
                advance(&mut flight.left, moved);
                flight.offset += moved;
                match (flight.left.is_empty(), write && engine.cache() == CacheMode::Writethrough) {
                    (false, _) => self.submit(engine, slot),
                    (true, true) => {
                        flight.stage = Stage::Sync;
                        self.submit(engine, slot);
                    }
                    (true, false) => self.finish(engine, slot, Ok(())),
                }
            }
        }
    }

    fn free_slot(&mut self, slot: usize) -> Flight {
        self.free.push(slot);
        self.slots[slot].take().expect("a slot in use")
    }

    fn finish(&mut self, engine: &Engine, slot: usize, result: io::Result<()>) {
        let Flight { request, .. } = self.free_slot(slot);
        let status = engine.conclude(&request, result);
        engine.count(&request, status);
        self.results.push((request.tag, status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 16).expect("grows");
        file
    }

    /// Submits one entry, and returns the answer to it.
    fn answer(ring: &mut IoUring, entry: &Entry) -> i32 {
        // SAFETY: the tests' entries name memory that lives until the answer, or none.
        unsafe { ring.submission().push(entry) }.expect("room");
        ring.submit_and_wait(1).expect("submits");
        ring.completion().next().expect("an answer").result()
    }

    #[test]
    fn a_ring_does_nothing_but_reads_writes_and_syncs_of_its_two_files() {
        let file = file();
        // A host without io_uring has the pool, which the tests of `file` hold.
        let Some(Ring { mut ring, .. }) = Ring::open(&file) else { return };
        let mut byte = [1u8; 8];
        let fd = types::Fd(file.as_raw_fd());
        assert_eq!(answer(&mut ring, &opcode::Read::new(DISK, byte.as_mut_ptr(), 8).build()), 8);
        assert_eq!(byte, [0; 8]);
        assert_eq!(answer(&mut ring, &opcode::Fsync::new(DISK).build()), 0);
        let path = c"/etc/passwd";
        for (entry, what) in [
            (opcode::Read::new(fd, byte.as_mut_ptr(), 8).build(), "a file that is not registered"),
            (opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(), "opening"),
            (opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(), "a socket"),
            (opcode::Close::new(fd).build(), "closing"),
            (opcode::Nop::new().build(), "even nothing"),
            (opcode::Fsync::new(DISK).build().flags(Flags::ASYNC), "another flag"),
        ] {
            assert_eq!(answer(&mut ring, &entry), -libc::EACCES, "{what}");
        }
        let refused = ring.submitter().register_files_update(0, &[0]).expect_err("nothing is registered any more");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
}
