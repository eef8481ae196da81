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

/// A running machine.
pub struct KvmBackend {
    first: Vcpu,
    others: Vec<Waiting>,
    threads: Vec<Arc<KickedThread>>,
    shared: Arc<Shared>,
}

/// A thread that waits for the machine to start.
struct Waiting {
    start: Sender<()>,
    thread: JoinHandle<()>,
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
        let mut vcpus = vcpus.into_iter();
        let first = vcpus.next().expect("a machine has a vCPU");
        let wait = |vcpu: Vcpu| wait_to_run(Arc::clone(&threads[vcpu.index]), vcpu, Arc::clone(&shared));
        let others = vcpus.map(wait).collect::<io::Result<_>>()?;
        Ok(KvmBackend { first, others, threads, shared })
    }
}

fn wait_to_run(thread: Arc<KickedThread>, mut vcpu: Vcpu, shared: Arc<Shared>) -> io::Result<Waiting> {
    let (start, wait): (_, Receiver<()>) = channel();
    let name = format!("vcpu-{}", vcpu.index);
    let run = move || {
        // Nobody starts a machine that was not completed.
        if wait.recv().is_ok() {
            run_vcpu(&mut vcpu, &thread, &shared);
        }
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
            return;
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
        Exit::PortIn { port, width, count, offset } => {
            for at in (0..count).map(|n| offset + n * usize::from(width)) {
                let value = platform.port_read(index, port, width);
                vcpu.page.write(at, width.into(), value.into());
            }
        }
        Exit::PortOut { port, width, count, offset } => {
            for at in (0..count).map(|n| offset + n * usize::from(width)) {
                platform.port_write(index, port, width, vcpu.page.read(at, width.into()) as u32);
            }
        }
        Exit::Load { addr, len } => {
            let value = accesses(addr, len)
                .fold(0, |value, (at, width)| value | platform.mmio_read(index, addr.wrapping_add(at as u64), width) << (8 * at));
            vcpu.page.answer_load(len, value);
        }
        Exit::Store { addr, len, value } => {
            for (at, width) in accesses(addr, len) {
                let part = value >> (8 * at) & u64::MAX >> (64 - 8 * u32::from(width));
                platform.mmio_write(index, addr.wrapping_add(at as u64), width, part);
            }
        }
        Exit::Shutdown => platform.vcpu_failed(index, MachineExit::TripleFault),
        Exit::PowerOff => shared.attention.stop(MachineExit::PowerOff),
        Exit::Reset => shared.attention.stop(MachineExit::Reboot),
        Exit::Nothing => {}
        Exit::Halt => give_up(vcpu, shared, "KVM reports a HLT, which its local APIC should have waited for"),
        Exit::FailEntry(reason) => give_up(vcpu, shared, &format!("the processor does not enter the guest (reason {reason:#x})")),
        Exit::InternalError(reason) => give_up(vcpu, shared, &internal_error(reason)),
        Exit::Unknown(reason) => give_up(vcpu, shared, &format!("KVM returned for an unknown reason ({reason})")),
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
        let others: Vec<JoinHandle<()>> = self
            .others
            .drain(..)
            .map(|other| {
                // A thread that has ended stopped the machine.
                let _ = other.start.send(());
                other.thread
            })
            .collect();
        run_vcpu(&mut self.first, &self.threads[0], &self.shared);
        for thread in others {
            // A panic was printed, and has stopped the machine.
            let _ = thread.join();
        }
        self.shared.attention.stopped().unwrap_or(MachineExit::Error)
    }

    fn save(&self) -> Result<Vec<Section>, StateError> {
        Err(StateError::NotSaved { kind: super::NAME })
    }

    fn load(&mut self, _sections: &[Section]) -> Result<(), StateError> {
        Err(StateError::NotSaved { kind: super::NAME })
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
