//! The vCPUs' threads: one for each vCPU, the first vCPU on the caller's.
//!
//! A thread is in KVM_RUN, in the board for one access, or at its door: a kick (a signal, and `immediate_exit` for one that
//! comes before KVM_RUN) brings it back to look at its flag. With interrupt controllers in the kernel the flag is raised
//! for a stop, an NMI and a sleep of the host only.
//!
//! **Hostile guest**: an exit is one access or one string of at most a page; whatever KVM cannot go on with ends this
//! machine, with the registers in the log.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

use super::page::{Exit, KickedThread, RunPage};
use super::saved::{self, Scope};
use super::vcpu;
use crate::hypervisor::backend::{Backend, MachineExit, Platform};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::{Attention, EndsMachine};

/// One vCPU, which one thread owns.
pub struct Vcpu {
    /// Its number and APIC id.
    pub index: usize,
    /// Its file.
    pub fd: VcpuFd,
    /// What it shares with the kernel.
    pub page: Arc<RunPage>,
    /// What its state consists of.
    pub scope: Scope,
}

/// What all vCPUs of a machine share.
pub struct Shared {
    /// The board.
    pub platform: Arc<dyn Platform>,
    /// The doors.
    pub attention: Arc<Attention>,
    /// For each vCPU, whether its LINT1 was pulsed.
    pub nmis: Arc<[AtomicBool]>,
}

/// A machine, between two runs or in one.
pub struct KvmBackend {
    /// All vCPUs, but during a run.
    vcpus: Vec<Vcpu>,
    /// The threads of all vCPUs but the first.
    waiting: Vec<Waiting>,
    threads: Vec<Arc<KickedThread>>,
    shared: Arc<Shared>,
}

/// A thread that waits for its vCPU, runs it, and gives it back.
struct Waiting {
    start: Sender<Vcpu>,
    thread: JoinHandle<Option<Vcpu>>,
}

impl KvmBackend {
    /// Starts the threads of all vCPUs but the first, which wait until the machine runs.
    pub fn new(vcpus: Vec<Vcpu>, shared: Shared) -> io::Result<KvmBackend> {
        let shared = Arc::new(shared);
        let threads: Vec<Arc<KickedThread>> = vcpus.iter().map(|_| Arc::default()).collect();
        for (vcpu, thread) in vcpus.iter().zip(&threads) {
            let (page, thread) = (Arc::clone(&vcpu.page), Arc::clone(thread));
            shared.attention.door(vcpu.index).set_kick(Box::new(move || {
                page.leave_at_once();
                thread.kick();
            }));
        }
        let wait = |vcpu: &Vcpu| wait_to_run(vcpu.index, Arc::clone(&threads[vcpu.index]), Arc::clone(&shared));
        let waiting = vcpus.iter().skip(1).map(wait).collect::<io::Result<_>>()?;
        Ok(KvmBackend { vcpus, waiting, threads, shared })
    }
}

fn wait_to_run(index: usize, thread: Arc<KickedThread>, shared: Arc<Shared>) -> io::Result<Waiting> {
    let (start, wait): (_, Receiver<Vcpu>) = channel();
    let name = format!("vcpu-{index}");
    let run = move || {
        // Nobody starts a machine that was not completed.
        let mut vcpu = wait.recv().ok()?;
        run_vcpu(&mut vcpu, &thread, &shared);
        Some(vcpu)
    };
    let thread = std::thread::Builder::new().name(name).spawn(run)?;
    Ok(Waiting { start, thread })
}

/// Runs a vCPU on this thread until the machine stops.
fn run_vcpu(vcpu: &mut Vcpu, thread: &KickedThread, shared: &Shared) {
    let _ends = EndsMachine(&shared.attention);
    let _here = thread.is_here();
    let mut slept_ns = shared.attention.slept_ns();
    loop {
        vcpu.page.arm();
        if shared.attention.stopped().is_some() {
            return complete(vcpu, shared);
        }
        if shared.attention.take(vcpu.index) {
            attend(vcpu, shared, &mut slept_ns);
        }
        match vcpu.fd.run().map(drop) {
            Ok(()) => handle(vcpu, shared),
            // A kick; or this vCPU has got its start-up message.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => give_up(vcpu, shared, &format!("KVM_RUN failed: {}", io::Error::from(error))),
        }
    }
}

/// Completes the last exit: the kernel does its part of an access only in the next KVM_RUN, which must not run the guest.
/// The kernel bounds the accesses that one instruction can still make.
fn complete(vcpu: &mut Vcpu, shared: &Shared) {
    loop {
        vcpu.page.leave_at_once();
        match vcpu.fd.run().map(drop) {
            Ok(()) => handle(vcpu, shared),
            Err(_) => return,
        }
    }
}

/// Does what the vCPU was brought back for.
fn attend(vcpu: &Vcpu, shared: &Shared, slept_ns: &mut u64) {
    if shared.nmis[vcpu.index].swap(false, Ordering::AcqRel)
        && let Err(error) = vcpu::pulse_lint1(&vcpu.fd)
    {
        eprintln!("vmctl vmm: vCPU {} gets no NMI: {error}", vcpu.index);
    }
    if shared.attention.slept_ns() != *slept_ns {
        *slept_ns = shared.attention.slept_ns();
        // The guest's watchdogs learn that it did not run. A guest that has no kvmclock cannot be told.
        let _ = vcpu.fd.kvmclock_ctrl();
    }
}

fn handle(vcpu: &Vcpu, shared: &Shared) {
    let (index, platform) = (vcpu.index, &*shared.platform);
    match vcpu.page.exit() {
        exit @ (Exit::PortIn { .. } | Exit::PortOut { .. } | Exit::Load { .. } | Exit::Store { .. }) => {
            access(exit, index, &vcpu.page, platform);
        }
        Exit::Shutdown => platform.vcpu_failed(index, MachineExit::TripleFault),
        Exit::PowerOff => shared.attention.stop(MachineExit::PowerOff),
        Exit::Reset => shared.attention.stop(MachineExit::Reboot),
        Exit::Nothing => {}
        Exit::Halt => give_up(vcpu, shared, "KVM reports a HLT, which its local APIC should have waited for"),
        Exit::FailEntry(reason) => give_up(vcpu, shared, &format!("the processor does not enter the guest (reason {reason:#x})")),
        // An INIT took the first vCPU to where firmware would be.
        Exit::InternalError(_) if index == 0 && vcpu::is_at_reset_vector(&vcpu.fd) => {
            platform.vcpu_failed(index, MachineExit::Reboot);
        }
        Exit::InternalError(reason) => give_up(vcpu, shared, &internal_error(reason)),
        Exit::Unknown(reason) => give_up(vcpu, shared, &format!("KVM returned for an unknown reason ({reason})")),
    }
}

/// Does the accesses of a vCPU's I/O exit, and answers those that read.
pub fn access(exit: Exit, index: usize, page: &RunPage, platform: &dyn Platform) {
    match exit {
        Exit::PortIn { port, width, count, offset } => {
            for at in (0..count).map(|n| offset + n * usize::from(width)) {
                let value = platform.port_read(index, port, width);
                page.write(at, width.into(), value.into());
            }
        }
        Exit::PortOut { port, width, count, offset } => {
            for at in (0..count).map(|n| offset + n * usize::from(width)) {
                platform.port_write(index, port, width, page.read(at, width.into()) as u32);
            }
        }
        Exit::Load { addr, len } => {
            let value = accesses(addr, len)
                .fold(0, |value, (at, width)| value | platform.mmio_read(index, addr.wrapping_add(at as u64), width) << (8 * at));
            page.answer_load(len, value);
        }
        Exit::Store { addr, len, value } => {
            for (at, width) in accesses(addr, len) {
                let part = value >> (8 * at) & u64::MAX >> (64 - 8 * u32::from(width));
                platform.mmio_write(index, addr.wrapping_add(at as u64), width, part);
            }
        }
        _ => {}
    }
}

/// Splits the bytes of an access into those that a bus has: aligned, of 1, 2, 4 or 8 bytes. Each is an offset and a width.
fn accesses(addr: u64, len: usize) -> impl Iterator<Item = (usize, u8)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len.checked_sub(at).filter(|&left| left > 0)?;
        let aligned = addr.wrapping_add(at as u64).trailing_zeros().min(3);
        // A whole power of two goes to the bus as the guest made it, aligned or not.
        let width = if left == len && len.is_power_of_two() { len } else { (1 << aligned).min(1 << left.ilog2()) };
        at += width;
        Some((at - width, width as u8))
    })
}

fn internal_error(reason: u32) -> String {
    let words = match reason {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the processor left the guest for an unexpected reason",
        _ => "unknown",
    };
    format!("KVM gave up (internal error {reason}: {words})")
}

/// Ends the machine, since KVM cannot go on. Standard error is the supervisor's log of this engine.
fn give_up(vcpu: &Vcpu, shared: &Shared, why: &str) {
    eprintln!("vmctl vmm: vCPU {}: {why}; its registers:\n  {}", vcpu.index, vcpu::dump(&vcpu.fd));
    shared.platform.vcpu_failed(vcpu.index, MachineExit::Error);
}

impl Backend for KvmBackend {
    fn name(&self) -> &'static str {
        super::NAME
    }

    fn run(&mut self) -> MachineExit {
        let others = self.vcpus.split_off(1).into_iter().zip(self.waiting.drain(..));
        let start = |(vcpu, waiting): (Vcpu, Waiting)| {
            // A thread that has ended stopped the machine.
            let _ = waiting.start.send(vcpu);
            waiting.thread
        };
        let others: Vec<JoinHandle<Option<Vcpu>>> = others.map(start).collect();
        run_vcpu(&mut self.vcpus[0], &self.threads[0], &self.shared);
        for thread in others {
            // A panic was printed, and has stopped the machine.
            self.vcpus.extend(thread.join().ok().flatten());
        }
        self.shared.attention.stopped().unwrap_or(MachineExit::Error)
    }

    fn save(&self) -> Result<Vec<Section>, StateError> {
        if self.vcpus.len() != self.threads.len() {
            return Err(StateError::Damaged { kind: super::NAME, why: "the thread of a vCPU has failed".into() });
        }
        self.vcpus.iter().map(|vcpu| saved::save_vcpu(&vcpu.fd, &vcpu.scope)).collect()
    }

    fn load(&mut self, sections: &[Section]) -> Result<(), StateError> {
        if sections.len() != self.vcpus.len() {
            let why = format!("{} vCPUs for {}", sections.len(), self.vcpus.len());
            return Err(StateError::Damaged { kind: super::NAME, why });
        }
        let pairs = || self.vcpus.iter().zip(sections);
        let states = pairs().map(|(vcpu, section)| saved::decode_vcpu(section, &vcpu.scope));
        // All are looked at before the first one is changed.
        let states = states.collect::<Result<Vec<_>, _>>()?;
        self.vcpus.iter().zip(&states).try_for_each(|(vcpu, state)| saved::load_vcpu(&vcpu.fd, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_of_an_odd_length_is_split_where_a_bus_would() {
        let split = |addr, len| accesses(addr, len).collect::<Vec<_>>();
        assert_eq!(split(0x1000, 8), [(0, 8)]);
        assert_eq!(split(0x1001, 4), [(0, 4)]);
        assert_eq!(split(0x1000, 3), [(0, 2), (2, 1)]);
        assert_eq!(split(0x1001, 7), [(0, 1), (1, 2), (3, 4)]);
        assert_eq!(split(0x1ffa, 6), [(0, 2), (2, 4)]);
        assert_eq!(split(u64::MAX, 3), [(0, 1), (1, 2)]);
    }
}
