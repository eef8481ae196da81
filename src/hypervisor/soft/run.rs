//! The dispatcher: blocks, budget, events, HLT, and the vCPUs in turn.
//!
//! The vCPUs of a machine run on one thread, a slice of instructions each in turn: so LOCK costs nothing and, with a clock
//! driven by retired instructions, whole runs can be reproduced. Or they run at the same time, each on a thread of its
//! own, as a [`Crew`].
//!
//! **Hostile guest**: a slice is bounded by its budget; every exit of a chain that makes no progress by itself
//! (exceptions, restarted string instructions) is charged to it.
#![allow(unsafe_code)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use super::block::{Block, BlockCache, Key, SharedCache};
use super::cpu::{CS, Cpu, Fault, Leave, RIP, rflags};
use super::crew::{Crew, lock};
use super::int::{branch, locked};
use super::lower::{MAX_INSNS, Mode, decode_block};
use super::mmu;
use super::op::Op;
use super::system::kvmclock;
use super::{saved, system, tlb};
use crate::hypervisor::backend::{
    Backend, BootState, LocalApics, MachineExit, Needs, OpenBackend, Platform, Reason, Rights, VcpuEvent, VcpuSetup,
};
use crate::hypervisor::clock::ManualClock;
use crate::hypervisor::irq::Irqchip;
use crate::hypervisor::memory::{GuestAddr, GuestMemory, MemoryMap};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::{Attention, EndsMachine};

/// Number of instructions of one slice of vCPUs that take turns.
const SLICE: i64 = 16 << 10;
/// The same of a vCPU with a thread of its own. It bounds how long another one waits for it, see [`Crew::claim`].
const SHORT_SLICE: i64 = 4 << 10;
const PAGE: u64 = 4096;
/// Maximum number of bytes of one block.
const MAX_BLOCK_BYTES: u64 = MAX_INSNS as u64 * 15;

/// Opens the software back end. It works everywhere.
pub fn open(_: &Needs<'_>) -> Result<Box<dyn OpenBackend>, Reason> {
    Ok(Box::new(OpenSoft))
}

struct OpenSoft;

impl OpenBackend for OpenSoft {
    fn name(&self) -> &'static str {
        NAME
    }
    fn rights(&self) -> Rights {
        Rights::default()
    }
    fn irqchip(&mut self, _: &Arc<Attention>) -> Option<Arc<dyn Irqchip>> {
        None
    }
    fn build(self: Box<Self>, setup: VcpuSetup) -> Result<Box<dyn Backend>, Reason> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Box::new(SoftBackend::new(setup, processors > 1)?))
    }
}

const NAME: &str = "soft";

/// The software back end.
pub struct SoftBackend {
    /// The vCPUs of the thread that calls [`Backend::run`]: all, or the first.
    first: Group,
    /// The others, if they run at the same time.
    workers: Vec<Worker>,
    attention: Arc<Attention>,
}

/// The vCPUs of one thread.
struct Group {
    cpus: Vec<Box<Cpu>>,
    cache: SharedCache,
    memory: GuestMemory,
    /// The map of it that the vCPUs see.
    map: Arc<MemoryMap>,
    platform: Arc<dyn Platform>,
    apics: Arc<dyn LocalApics>,
    attention: Arc<Attention>,
    clock: Option<Arc<ManualClock>>,
    /// There is code at the reset vector: no loader entered the guest without firmware.
    firmware: bool,
    /// The vCPUs that run at the same time; there is one in this group then.
    crew: Option<Arc<Crew>>,
}

// SAFETY: the raw pointers in `Cpu` and in ops point into the group's own allocations, and the counted references to the
// block cache are all its own: they move with it, and nothing of them is tied to a thread.
unsafe impl Send for Group {}

/// A thread with a vCPU of its own. It waits between runs, and ends with the back end.
struct Worker {
    group: Arc<Mutex<Group>>,
    start: Sender<()>,
    ended: Receiver<()>,
}

impl Worker {
    fn spawn(group: Group) -> std::io::Result<Worker> {
        let name = format!("vcpu-{}", group.cpus[0].index);
        let group = Arc::new(Mutex::new(group));
        let ((start, started), (end, ended)) = (channel(), channel());
        let work = Arc::clone(&group);
        std::thread::Builder::new().name(name).spawn(move || {
            while started.recv().is_ok() {
                lock(&work).run();
                // Whoever started it may have gone.
                let _ = end.send(());
            }
        })?;
        Ok(Worker { group, start, ended })
    }
}

/// A vCPU of a crew that runs. Others do not wait for it once this is dropped.
struct Aboard<'a> {
    crew: &'a Crew,
    me: usize,
    _ends: EndsMachine<'a>,
}

impl Drop for Aboard<'_> {
    fn drop(&mut self) {
        self.crew.leave(self.me);
    }
}

impl SoftBackend {
    /// Creates the vCPUs as after power-on, the first as `setup.boot` says, the others waiting for a start-up message. With
    /// `parallel`, each gets a thread of its own, where the host's processor has what that needs; not in deterministic mode.
    /// An error means that the host has no threads for them.
    pub fn new(setup: VcpuSetup, parallel: bool) -> std::io::Result<SoftBackend> {
        let parallel = parallel && setup.vcpus > 1 && setup.manual_clock.is_none() && locked::is_atomic_here();
        let crew = parallel.then(|| Arc::new(Crew::new(setup.vcpus)));
        let firmware = setup.boot == BootState::Reset;
        let cache = || BlockCache::shared(setup.memory.clone(), crew.clone());
        let together = cache();
        let cache_of = |i: usize| if parallel && i > 0 { cache() } else { together.clone() };
        let mut cpus: Vec<Box<Cpu>> = (0..setup.vcpus).map(|i| Cpu::new(&setup, i, cache_of(i))).collect();
        for (i, cpu) in cpus.iter_mut().enumerate() {
            system::reset(cpu, true);
            cpu.manual_clock = setup.manual_clock.clone();
            cpu.wait_for_sipi = i != 0;
            cpu.crew = crew.clone();
            if !firmware {
                system::set_memory_types(cpu, &setup.device_windows);
            }
        }
        if let Some(first) = cpus.first_mut() {
            system::enter(first, &setup.boot);
        }
        let group = |cpus: Vec<Box<Cpu>>| Group {
            cache: cpus.first().map_or_else(|| together.clone(), |cpu| cpu.blocks.clone()),
            cpus,
            map: setup.memory.map(),
            memory: setup.memory.clone(),
            platform: setup.platform.clone(),
            apics: setup.apics.clone().expect("the board has local APICs for a back end that has none"),
            attention: setup.attention.clone(),
            clock: setup.manual_clock.clone(),
            firmware,
            crew: crew.clone(),
        };
        let others = if parallel { cpus.split_off(1) } else { Vec::new() };
        let workers = others.into_iter().map(|cpu| Worker::spawn(group(vec![cpu]))).collect::<std::io::Result<_>>()?;
        Ok(SoftBackend { first: group(cpus), workers, attention: setup.attention.clone() })
    }

    /// Runs `act` on each vCPU in order.
    fn each(&mut self, mut act: impl FnMut(&mut Cpu)) {
        let mut act_on = |group: &mut Group| group.cpus.iter_mut().for_each(|cpu| act(cpu));
        act_on(&mut self.first);
        self.workers.iter().for_each(|worker| act_on(&mut lock(&worker.group)));
    }
}

impl Group {
    /// Waits for an event when all vCPUs do. In deterministic mode, advances the time to the next timer.
    fn idle(&self) {
        let deadline = self.attention.deadline_ns();
        if let Some(clock) = &self.clock
            && deadline != u64::MAX
        {
            clock.set_ns(deadline);
            return;
        }
        let board = self.clock.is_some() && self.attention.board_due(self.platform.clock().now_ns());
        let raised = board || self.cpus.iter().any(|cpu| self.attention.is_raised(cpu.index));
        if !raised {
            self.attention.sleep_until_timer(&*self.platform);
        }
    }

    /// Waits for an event for the crew's vCPU. The board's thread serves the timers.
    fn idle_away(&self, crew: &Crew) {
        let me = self.cpus[0].index;
        crew.leave(me);
        if !self.attention.is_raised(me) && self.attention.stopped().is_none() {
            std::thread::park();
        }
        crew.come(me);
    }

    /// Returns the number of instructions that the next slice may run.
    fn slice(&self) -> i64 {
        let Some(clock) = &self.clock else { return if self.crew.is_some() { SHORT_SLICE } else { SLICE } };
        use crate::hypervisor::clock::Clock;
        let left = self.attention.deadline_ns().saturating_sub(clock.now_ns());
        i64::try_from(left).unwrap_or(SLICE).clamp(1, SLICE)
    }

    /// Runs the group's vCPU at `index` for a slice. Returns false if it waits for an event.
    fn run_slice(&mut self, index: usize) -> bool {
        let budget = self.slice();
        let cpu = &mut self.cpus[index];
        (cpu.granted, cpu.budget) = (budget, budget);
        refresh(cpu);
        let mut worked = false;
        while self.cpus[index].budget > 0 && self.attention.stopped().is_none() {
            let held = std::mem::take(&mut self.cpus[index].debug_shadow);
            if !held && system::take_debug_trap(&mut self.cpus[index]) && !self.exception(index) {
                break;
            }
            let shadow = std::mem::take(&mut self.cpus[index].interrupt_shadow);
            if !self.take_events(index, shadow) {
                break;
            }
            worked = true;
            let alone = held || shadow && self.cpus[index].event_pending;
            if !self.run_chain(index, alone, held) {
                break;
            }
        }
        let cpu = &mut self.cpus[index];
        cpu.sync_clock();
        cpu.retired = cpu.retired_now();
        (cpu.granted, cpu.budget) = (0, 0);
        worked
    }

    /// Takes what is pending for the vCPU. Returns false if there is nothing to run.
    fn take_events(&mut self, index: usize, shadow: bool) -> bool {
        let cpu = &mut *self.cpus[index];
        let vcpu = cpu.index;
        let raised = self.attention.is_raised(vcpu) && self.attention.take(vcpu);
        if raised && self.attention.slept_ns() != cpu.slept_ns {
            cpu.slept_ns = self.attention.slept_ns();
            kvmclock::guest_was_stopped(cpu);
        }
        cpu.event_pending |= raised;
        let interrupts = cpu.rflags & rflags::IF != 0 && !shadow && !cpu.wait_for_sipi;
        let nmi = !cpu.nmi_blocked && !cpu.wait_for_sipi && !shadow;
        if cpu.event_pending && (raised || interrupts || (nmi && cpu.nmi_was_blocked)) {
            cpu.nmi_was_blocked = !nmi;
            match self.apics.take_event(vcpu, interrupts, nmi) {
                Some(event) => deliver(cpu, event, &*self.platform, self.firmware),
                // With interrupts disabled, an empty answer says nothing about pending ones.
                None if interrupts && nmi => cpu.event_pending = false,
                None => {}
            }
        }
        !cpu.halted && !cpu.wait_for_sipi
    }

    /// Runs one chain of blocks (one instruction only, if `alone`; with debug exceptions `held` off before it) and
    /// handles its exit. Returns false at the end of the slice.
    fn run_chain(&mut self, index: usize, alone: bool, held: bool) -> bool {
        let cpu = &mut *self.cpus[index];
        let mode = cpu.mode;
        let stepping = mode.has(Mode::STEP);
        if alone {
            cpu.set_mode(Mode(mode.0 | Mode::STEP));
        }
        let trap_flag = cpu.rflags & rflags::TF != 0;
        if stepping && system::before_step(cpu, held).is_err() {
            return self.exception(index);
        }
        let entry = match find(cpu) {
            Ok((entry, new_page)) => {
                if let Some((first, second)) = new_page {
                    self.protect(first, second);
                }
                entry
            }
            Err(Fault) => {
                if alone {
                    cpu.set_mode(mode);
                }
                return self.exception(index);
            }
        };
        let cpu = &mut *self.cpus[index];
        // SAFETY: `entry` is a live block's: nothing is freed before the next `bury`.
        unsafe { chain(cpu, entry) };
        if alone {
            cpu.set_mode(mode);
        }
        let raised = cpu.leave == Leave::Exception;
        let goes_on = self.left(index);
        if stepping && !raised {
            system::after_step(&mut self.cpus[index], trap_flag);
        }
        goes_on
    }

    /// Handles the exit of a chain. Returns false at the end of the slice.
    fn left(&mut self, index: usize) -> bool {
        let cpu = &mut *self.cpus[index];
        cpu.leave_after_op = false;
        let mut goes_on = true;
        match cpu.leave {
            Leave::Jump => {}
            Leave::Link => {
                let mut pages = None;
                link(cpu, |_, first, second| pages = Some((first, second)));
                if let Some((first, second)) = pages {
                    self.protect(first, second);
                }
            }
            Leave::Lookup => refresh(cpu),
            Leave::Exception => return self.exception(index),
            Leave::Halt => {
                cpu.halted = true;
                refresh(cpu);
            }
            Leave::Yield => {
                refresh(cpu);
                match &self.crew {
                    // Whoever it waits for may need the processor.
                    Some(_) => std::thread::yield_now(),
                    None => goes_on = false,
                }
            }
            Leave::Shutdown => {
                self.failed(index);
                return false;
            }
        }
        self.follow_memory();
        goes_on
    }

    /// Delivers the exception that was raised. Returns false if that was the third fault.
    fn exception(&mut self, index: usize) -> bool {
        let cpu = &mut *self.cpus[index];
        cpu.budget -= 1;
        cpu.leave_after_op = false;
        if system::deliver_exception(cpu).is_err() {
            self.failed(index);
            return false;
        }
        refresh(cpu);
        true
    }

    /// Shuts the vCPU down: it runs no instruction until INIT or NMI.
    fn failed(&mut self, index: usize) {
        let cpu = &mut *self.cpus[index];
        cpu.halted = true;
        cpu.debug_pending = 0;
        cpu.rflags &= !rflags::IF;
        self.platform.vcpu_failed(cpu.index, MachineExit::TripleFault);
    }

    /// Drops what was derived from pages that devices wrote to, and follows changes of the map of memory. Must be called
    /// only while no chain runs.
    #[inline]
    fn follow_memory(&mut self) {
        match &self.crew {
            Some(crew) => {
                crew.take_device_writes(&self.memory);
                if crew.has_mail(self.cpus[0].index) {
                    self.cache.borrow_mut().open_mail(&mut self.cpus[0], crew);
                }
            }
            None if self.memory.has_watch_hits() => self.cache.borrow_mut().drop_written(),
            None => {}
        }
        if self.memory.generation() != self.map.generation() {
            self.follow_map();
        }
    }

    #[cold]
    fn follow_map(&mut self) {
        self.map = self.memory.map();
        self.cache.borrow_mut().follow(&self.map);
        for cpu in &mut self.cpus {
            tlb::follow_map(cpu, &self.map);
        }
    }

    /// Makes all vCPUs take the slow path for writes to pages that hold code now.
    fn protect(&mut self, first: u64, second: Option<u64>) {
        for cpu in &mut self.cpus {
            tlb::protect_code_page(cpu, first & !(PAGE - 1));
            if let Some(second) = second {
                tlb::protect_code_page(cpu, second);
            }
        }
    }

    /// Runs until the machine stops, and returns the reason.
    fn run(&mut self) -> MachineExit {
        for cpu in &self.cpus {
            let thread = std::thread::current();
            self.attention.door(cpu.index).set_kick(Box::new(move || thread.unpark()));
        }
        match self.crew.clone() {
            Some(crew) => self.run_aboard(&crew),
            None => self.run_in_turn(),
        }
    }

    /// Runs the vCPUs in turn, and the board's timers between them.
    fn run_in_turn(&mut self) -> MachineExit {
        self.attention.keep_timers_here();
        if self.clock.is_some() {
            self.attention.serve_here();
        }
        loop {
            // Also before it stops: what the vCPUs wrote last must be in the log of dirty pages.
            self.follow_memory();
            if let Some(exit) = self.attention.stopped() {
                return exit;
            }
            self.attention.serve_board(&*self.platform);
            self.follow_memory();
            let mut worked = false;
            for index in 0..self.cpus.len() {
                worked |= self.run_slice(index);
            }
            if !worked {
                self.idle();
            }
        }
    }

    /// Runs the one vCPU, beside the others of the crew.
    fn run_aboard(&mut self, crew: &Crew) -> MachineExit {
        let (me, attention) = (self.cpus[0].index, self.attention.clone());
        let _aboard = Aboard { crew, me, _ends: EndsMachine(&attention) };
        crew.come(me);
        loop {
            self.follow_memory();
            if let Some(exit) = self.attention.stopped() {
                return exit;
            }
            if !self.run_slice(0) {
                self.idle_away(crew);
            }
        }
    }
}

/// Runs ops until a handler leaves the chain.
///
/// # Safety
/// `entry` must be the first op of a live block of the vCPU's cache.
pub unsafe fn chain(cpu: &mut Cpu, entry: *const Op) {
    let cpu: *mut Cpu = cpu;
    let mut op = entry;
    while !op.is_null() {
        // SAFETY: `cpu` was made here of a reference that is not used before the chain has ended. `entry` is the caller's
        // promise; handlers return null or, without tail calls, the next op of a live block.
        op = unsafe { ((*op).handler)(cpu, op) };
    }
}

/// Runs one vCPU without events until an exception (which is not delivered), HLT, or about `limit` instructions: for
/// tests and benchmarks. Returns the reason; it is `Jump` at the limit.
pub fn run_alone(cpu: &mut Cpu, limit: i64) -> Leave {
    let protect = |cpu: &mut Cpu, first: u64, second: Option<u64>| {
        tlb::protect_code_page(cpu, first & !(PAGE - 1));
        if let Some(second) = second {
            tlb::protect_code_page(cpu, second);
        }
    };
    (cpu.granted, cpu.budget) = (limit, limit);
    refresh(cpu);
    loop {
        if cpu.memory.has_watch_hits() {
            cpu.blocks.borrow_mut().drop_written();
        }
        if cpu.memory.generation() != cpu.map.generation() {
            let map = cpu.memory.map();
            cpu.blocks.borrow_mut().follow(&map);
            tlb::follow_map(cpu, &map);
        }
        match find(cpu) {
            Ok((entry, new)) => {
                if let Some((first, second)) = new {
                    protect(cpu, first, second);
                }
                // SAFETY: `entry` was found just now, and nothing was dropped since.
                unsafe { chain(cpu, entry) };
            }
            Err(Fault) => return Leave::Exception,
        }
        cpu.leave_after_op = false;
        match cpu.leave {
            Leave::Link => link(cpu, protect),
            Leave::Jump => {}
            Leave::Lookup | Leave::Yield => refresh(cpu),
            stop => return stop,
        }
        if cpu.budget <= 0 {
            return Leave::Jump;
        }
    }
}

/// Finds the block at RIP and lets the op that jumped there point to it, if both are in one page. Tells `protect` of
/// pages that hold code now. Must be called right after a chain left with [`Leave::Link`].
pub fn link(cpu: &mut Cpu, protect: impl FnOnce(&mut Cpu, u64, Option<u64>)) {
    let from = cpu.link_from;
    let generation = cpu.blocks.borrow().generation;
    if cpu.jump_generation != generation {
        return;
    }
    // The lookup that follows raises a fault here again, and it is delivered then.
    let Ok((entry, new_page)) = find(cpu) else { return };
    if let Some((first, second)) = new_page {
        protect(cpu, first, second);
    }
    if may_link(cpu) && cpu.blocks.borrow().generation == generation {
        // SAFETY: no block was dropped since the op was running, so `from` is live; nothing else refers to it.
        unsafe { branch::set_link(from, entry) };
    }
}

/// Returns whether the block at RIP lies wholly in the page of the op that wants to point to it. It may lie in another
/// page even after a short jump, since the guest may have changed page tables without a flush.
fn may_link(cpu: &mut Cpu) -> bool {
    let linear = linear_rip(cpu);
    fetch_address(cpu, linear)
        .is_ok_and(|gpa| gpa >> 12 == u64::from(cpu.link_page) && cpu.blocks.borrow().is_plain(Key::new(gpa, cpu.mode)))
}

pub(super) fn linear_rip(cpu: &Cpu) -> u64 {
    if cpu.mode.is_64bit() { cpu.regs[RIP] } else { cpu.segs[CS].base.wrapping_add(cpu.regs[RIP]) & 0xffff_ffff }
}

/// Pages that hold code now and did not before.
type NewPages = Option<(u64, Option<u64>)>;

/// Returns the block at RIP: from the jump cache, from the block cache, or decoded now. Raises the exceptions of the
/// fetch.
pub fn find(cpu: &mut Cpu) -> Result<(*const Op, NewPages), Fault> {
    let generation = cpu.blocks.borrow().generation;
    follow_generation(cpu, generation);
    let linear = linear_rip(cpu);
    if let Some(entry) = cpu.jumps.find(linear, cpu.jump_tag(linear)) {
        return Ok((entry, None));
    }
    cpu.blocks.borrow_mut().bury();
    let limit_left = code_left(cpu, linear)?;
    let gpa = fetch_address(cpu, linear)?;
    let key = Key::new(gpa, cpu.mode);
    let (generation, found) = {
        let blocks = cpu.blocks.borrow();
        let fits = |block: &&Block| u64::from(block.bytes) <= limit_left;
        (blocks.generation, blocks.get(key).filter(fits).map(|block| (block.entry(), block.second_page())))
    };
    if let Some((entry, second)) = found {
        let same = match second {
            None => true,
            // The accessed bit that the walk sets may lie in the block's own page, and then the block is dropped.
            Some(page) => fetch_address(cpu, next_page(cpu, linear))? == page && cpu.blocks.borrow().generation == generation,
        };
        if same {
            remember(cpu, linear, limit_left, entry);
            return Ok((entry, None));
        }
    }
    let block = decode(cpu, linear, gpa, limit_left)?;
    let second = block.second_page();
    let (entry, new) = cpu.blocks.borrow_mut().insert(key, block);
    let generation = cpu.blocks.borrow().generation;
    follow_generation(cpu, generation);
    remember(cpu, linear, limit_left, entry);
    Ok((entry, new.then_some((gpa, second))))
}

/// Empties the jump cache if it was filled in another generation of the block cache.
fn follow_generation(cpu: &mut Cpu, generation: u64) {
    if cpu.jump_generation != generation {
        cpu.jump_generation = generation;
        cpu.drop_jumps();
    }
}

/// Checks that code may be at RIP, whose linear address is `linear`, and returns how many bytes of its segment are left.
fn code_left(cpu: &mut Cpu, linear: u64) -> Result<u64, Fault> {
    if cpu.mode.is_64bit() {
        return if mmu::is_canonical(linear) { Ok(u64::MAX) } else { Err(cpu.general_protection(0)) };
    }
    let (limit, rip) = (u64::from(cpu.segs[CS].limit), cpu.regs[RIP]);
    if rip > limit { Err(cpu.general_protection(0)) } else { Ok(limit - rip + 1) }
}

/// Decodes the block at RIP anew. Raises the exceptions of the fetch.
#[cfg(any(all(target_os = "freebsd", target_arch = "x86_64"), test))]
pub(super) fn decode_here(cpu: &mut Cpu) -> Result<Block, Fault> {
    let linear = linear_rip(cpu);
    let limit_left = code_left(cpu, linear)?;
    let gpa = fetch_address(cpu, linear)?;
    decode(cpu, linear, gpa, limit_left)
}

fn remember(cpu: &mut Cpu, linear: u64, limit_left: u64, entry: *const Op) {
    if limit_left >= PAGE && !cpu.mode.has(Mode::STEP) {
        let tag = cpu.jump_tag(linear);
        cpu.jumps.put(linear, tag, entry);
    }
}

fn next_page(cpu: &Cpu, linear: u64) -> u64 {
    let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
    if cpu.mode.is_64bit() { next } else { next & 0xffff_ffff }
}

/// Translates for a fetch, through the vCPU's cache of pages that code was fetched from.
pub(super) fn fetch_address(cpu: &mut Cpu, linear: u64) -> Result<u64, Fault> {
    let tag = cpu.jump_tag(linear);
    if let Some(page) = cpu.jumps.find_fetch(linear, tag) {
        return Ok(page | linear & (PAGE - 1));
    }
    let (gpa, global) = mmu::translate_fetch(cpu, linear)?;
    if mmu::is_canonical(linear) {
        cpu.jumps.put_fetch(linear, tag, gpa, global);
    }
    Ok(gpa)
}

/// Decodes the block at `linear`, which is put into the cache next.
fn decode(cpu: &mut Cpu, linear: u64, gpa: u64, limit_left: u64) -> Result<Block, Fault> {
    let cache = cpu.blocks.clone();
    if cpu.crew.is_some() {
        let mut cache = cache.borrow_mut();
        cache.make_room(gpa);
        cache.claim(cpu, &[(gpa, MAX_BLOCK_BYTES.min(PAGE - gpa % PAGE))]);
    }
    let offset = (gpa & (PAGE - 1)) as usize;
    let mut bytes = [0xffu8; PAGE as usize + 16];
    let room = (PAGE as usize - offset).min(usize::try_from(limit_left).unwrap_or(usize::MAX));
    fetch(cpu, gpa, &mut bytes[..room]);
    let (rip, mode) = (cpu.regs[RIP], cpu.mode);
    if let Ok(builder) = decode_block(&bytes[..room], rip, mode, gpa, false, cpu.crew.is_some()) {
        return Ok(Block::new(builder, None));
    }
    if room < PAGE as usize - offset {
        // The instruction extends beyond the segment's limit.
        return Err(cpu.general_protection(0));
    }
    let second = fetch_address(cpu, next_page(cpu, linear))?;
    let more = 15usize.min(usize::try_from(limit_left).unwrap_or(usize::MAX).saturating_sub(room));
    if cpu.crew.is_some() {
        cache.borrow_mut().claim(cpu, &[(gpa, room as u64), (second, 15)]);
        fetch(cpu, gpa, &mut bytes[..room]);
    }
    fetch(cpu, second, &mut bytes[room..room + more]);
    let whole = &bytes[..(room + more).min(15)];
    match decode_block(whole, rip, mode, gpa, true, cpu.crew.is_some()) {
        Ok(builder) => Ok(Block::new(builder, Some(second))),
        Err(_) => Err(cpu.general_protection(0)),
    }
}

/// Reads code. Bytes that are not memory read as all ones.
fn fetch(cpu: &Cpu, gpa: u64, buf: &mut [u8]) {
    if cpu.memory.read(GuestAddr(gpa), buf).is_err() {
        buf.fill(0xff);
    }
}

/// Applies an event from outside to a vCPU.
fn deliver(cpu: &mut Cpu, event: VcpuEvent, platform: &dyn Platform, firmware: bool) {
    let delivered = match event {
        VcpuEvent::Interrupt(vector) => {
            cpu.halted = false;
            system::deliver_interrupt(cpu, vector)
        }
        VcpuEvent::Nmi => {
            cpu.halted = false;
            cpu.nmi_blocked = true;
            system::deliver_nmi(cpu)
        }
        VcpuEvent::Init => {
            cpu.halted = false;
            system::reset(cpu, false);
            cpu.wait_for_sipi = cpu.index != 0;
            if cpu.index == 0 && !firmware {
                // The bootstrap processor jumps to the reset vector (SDM vol. 3 section 8.4.2), where firmware starts
                // the system again. Without firmware, the machine does that.
                cpu.halted = true;
                platform.vcpu_failed(0, MachineExit::Reboot);
            }
            Ok(())
        }
        VcpuEvent::Sipi(vector) => {
            if cpu.wait_for_sipi {
                cpu.wait_for_sipi = false;
                cpu.halted = false;
                system::start_up(cpu, vector);
            }
            Ok(())
        }
    };
    cpu.budget -= 1;
    if delivered.is_err() {
        cpu.halted = true;
        cpu.rflags &= !rflags::IF;
        platform.vcpu_failed(cpu.index, MachineExit::TripleFault);
    }
    refresh(cpu);
}

/// Updates the mode after anything that may have changed it.
pub fn refresh(cpu: &mut Cpu) {
    let mode = system::refresh_mode(cpu);
    cpu.set_mode(mode);
}

impl Backend for SoftBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&mut self) -> MachineExit {
        for worker in &self.workers {
            worker.start.send(()).expect("a worker waits for its next run");
        }
        let exit = self.first.run();
        for worker in &self.workers {
            // One that is gone has ended in a panic, and has stopped the machine.
            let _ = worker.ended.recv();
        }
        self.attention.stopped().unwrap_or(exit)
    }

    fn save(&self) -> Result<Vec<Section>, StateError> {
        let save = |group: &Group| group.cpus.iter().map(|cpu| saved::save(cpu)).collect::<Vec<_>>();
        let others = self.workers.iter().flat_map(|worker| save(&lock(&worker.group)));
        Ok(save(&self.first).into_iter().chain(others).collect())
    }

    fn load(&mut self, sections: &[Section]) -> Result<(), StateError> {
        let vcpus = self.first.cpus.len() + self.workers.len();
        if sections.len() != vcpus {
            let why = format!("it has {} vCPUs, the machine has {vcpus}", sections.len());
            return Err(StateError::Damaged { kind: saved::KIND, why });
        }
        let mut states = sections.iter().map(saved::decode).collect::<Result<Vec<_>, _>>()?.into_iter();
        let attention = self.attention.clone();
        self.each(|cpu| {
            cpu.blocks.borrow_mut().drop_all();
            saved::load(cpu, states.next().expect("counted above"));
            tlb::flush(cpu, false);
            mmu::watchpoints_changed(cpu);
            cpu.drop_jumps();
            cpu.event_pending = true;
            attention.raise(cpu.index);
        });
        Ok(())
    }
}
