//! The vCPUs' threads: one for each vCPU.
//!
//! A thread is in VM_RUN, in the board for one access, or, for a vCPU that was not started, at its [`Start`]. With interrupt
//! controllers and timers in the kernel it is wanted back only when the machine stops: VM_SUSPEND does that. The kernel then
//! waits in each VM_RUN until every active vCPU is in one (vm_handle_suspend in vmm.c), so each thread calls it once more
//! and ends with its answer.
//!
//! A vCPU becomes active when it gets its first start-up message. Without VM_CAP_IPI_EXIT the kernel follows INIT and
//! start-up messages by itself and returns [`Exit::StartVcpu`] from the sender's VM_RUN, on every release in the same way.
//! With it an INIT would wait until its receiver is in VM_RUN, and a vCPU that was not started would have to turn there.
//! A start-up message that is sent to all others at once, which only firmware does, starts nobody.
//!
//! **Hostile guest**: an exit is one access or one instruction; what vmm(4) or this file cannot go on with ends this
//! machine, with the registers in the log.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use super::abi::{RawExit, Reg, VM_SUSPEND_POWEROFF};
use super::exit::{Exit, instruction_bytes};
use super::vm::Vm;
use super::{msr, registers};
use crate::hypervisor::backend::{Backend, MachineExit, Platform};
use crate::hypervisor::soft::one::{OneInstruction, Outcome};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::{Attention, EndsMachine};

/// Most exits of a vCPU after the machine was stopped. The kernel returns the stop at the first.
const MOST_AFTER_STOP: u32 = 64;
/// Vectors of exceptions.
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// What all vCPUs of a machine share.
pub struct Shared {
    /// The machine in the kernel.
    pub vm: Arc<dyn Vm>,
    /// The board.
    pub platform: Arc<dyn Platform>,
    /// The doors.
    pub attention: Arc<Attention>,
    /// Where each vCPU waits for a start-up message.
    pub starts: Vec<Start>,
}

/// Where a vCPU waits for a start-up message, and where it finds one while it runs.
#[derive(Default)]
pub struct Start {
    vector: Mutex<Option<u8>>,
    changed: Condvar,
    is_active: AtomicBool,
}

impl Start {
    fn vector(&self) -> std::sync::MutexGuard<'_, Option<u8>> {
        self.vector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message. Returns whether the vCPU runs and must be brought back for it.
    fn send(&self, vector: u8) -> bool {
        *self.vector() = Some(vector);
        self.changed.notify_all();
        self.is_active.load(Ordering::Acquire)
    }

    /// Wakes the vCPU, so that it finds the machine stopped.
    fn wake(&self) {
        drop(self.vector());
        self.changed.notify_all();
    }

    /// Waits for a message. `None` when the machine stops first.
    fn wait(&self, attention: &Attention) -> Option<u8> {
        let mut vector = self.vector();
        loop {
            if attention.stopped().is_some() {
                return None;
            }
            if vector.is_some() {
                return vector.take();
            }
            vector = self.changed.wait(vector).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// How a vCPU's thread ended.
enum Ended {
    /// In agreement with the kernel, or before it was active.
    Well,
    /// A vCPU that cannot run. The other threads may wait in the kernel for this vCPU until the process ends.
    Broken,
}

/// A running machine.
pub struct VmmBackend {
    shared: Arc<Shared>,
    starts: Vec<Sender<()>>,
    ends: Receiver<Ended>,
}

impl VmmBackend {
    /// Starts the threads of all vCPUs, which wait until the machine runs. `instructions` has one for each.
    pub fn new(shared: Arc<Shared>, instructions: Vec<OneInstruction>) -> io::Result<VmmBackend> {
        for index in 0..instructions.len() {
            // The doors belong to what `shared` holds.
            let shared = Arc::downgrade(&shared);
            let door = shared.upgrade().expect("it is held here");
            door.attention.door(index).set_kick(Box::new(move || kick(&shared, index)));
        }
        let (end, ends) = channel();
        let mut starts = Vec::new();
        for (index, one) in instructions.into_iter().enumerate() {
            let (start, wait): (_, Receiver<()>) = channel();
            let mut vcpu = Vcpu { index, one, shared: Arc::clone(&shared) };
            let end = end.clone();
            std::thread::Builder::new().name(format!("vcpu-{index}")).spawn(move || {
                // Nobody starts a machine that was not completed.
                if wait.recv().is_ok() {
                    // Whoever started it may have gone.
                    let _ = end.send(vcpu.live());
                }
            })?;
            starts.push(start);
        }
        Ok(VmmBackend { shared, starts, ends })
    }
}

/// Brings a vCPU back if the machine stops.
fn kick(shared: &Weak<Shared>, index: usize) {
    if let Some(shared) = shared.upgrade()
        && shared.attention.stopped().is_some()
    {
        shared.suspend();
        shared.starts[index].wake();
    }
}

impl Shared {
    /// Stops all vCPUs. It fails if they are stopped already.
    fn suspend(&self) {
        let _ = self.vm.suspend(VM_SUSPEND_POWEROFF);
    }

    /// Sends a start-up message.
    fn start(&self, vcpu: usize, vector: u8) -> io::Result<()> {
        let Some(start) = self.starts.get(vcpu) else { return Ok(()) };
        if start.send(vector) { self.vm.suspend_vcpu(vcpu) } else { Ok(()) }
    }
}

/// One vCPU, which one thread owns.
struct Vcpu {
    index: usize,
    one: OneInstruction,
    shared: Arc<Shared>,
}

impl Vcpu {
    /// Waits for the vCPU's start and runs it until the machine stops.
    fn live(&mut self) -> Ended {
        let shared = Arc::clone(&self.shared);
        let _ends = EndsMachine(&shared.attention);
        if self.index > 0 {
            let start = &shared.starts[self.index];
            let Some(vector) = start.wait(&shared.attention) else { return Ended::Well };
            let started = shared.vm.activate(self.index).and_then(|()| {
                start.is_active.store(true, Ordering::Release);
                // The last message counts, also one that came before the vCPU could be brought back for it.
                let vector = start.vector().take().unwrap_or(vector);
                registers::start_up(&*shared.vm, self.index, vector)
            });
            if let Err(error) = started {
                self.give_up(&format!("it cannot be started: {error}"), None);
                return Ended::Broken;
            }
        }
        self.run()
    }

    fn run(&mut self) -> Ended {
        let mut raw = RawExit::empty();
        let mut left = MOST_AFTER_STOP;
        loop {
            if self.shared.attention.stopped().is_some() {
                self.shared.suspend();
                left -= 1;
                if left == 0 {
                    return Ended::Broken;
                }
            }
            match self.shared.vm.run(self.index, &mut raw) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => continue,
                Err(error) => {
                    self.give_up(&format!("VM_RUN failed: {error}"), Some(&raw));
                    return Ended::Broken;
                }
            }
            let exit = Exit::of(&raw, self.shared.vm.release(), self.shared.starts.len());
            if let Exit::Suspended(why) = exit {
                // Without a reason of the guest's, another program has stopped it, or this one has.
                self.shared.attention.stop(why.unwrap_or(MachineExit::PowerOff));
                return Ended::Well;
            }
            if let Err(error) = self.handle(exit, &raw) {
                self.give_up(&format!("vmm(4) refuses a request: {error}"), Some(&raw));
            }
        }
    }

    fn handle(&mut self, exit: Exit, raw: &RawExit) -> io::Result<()> {
        let (index, shared) = (self.index, Arc::clone(&self.shared));
        let (vm, platform) = (&*shared.vm, &*shared.platform);
        match exit {
            Exit::PortIn { port, width } => {
                let value = u64::from(platform.port_read(index, port, width));
                self.set_low_rax(value, width)
            }
            Exit::PortOut { port, width, value } => {
                platform.port_write(index, port, width, value);
                Ok(())
            }
            Exit::Instruction { cpl } => self.carry_out(cpl, raw),
            Exit::ReadMsr(number) => match msr::read(number) {
                Some(value) => {
                    vm.set_register(index, Reg::Rax, value & 0xffff_ffff)?;
                    vm.set_register(index, Reg::Rdx, value >> 32)
                }
                None => vm.inject(index, GENERAL_PROTECTION, Some(0)),
            },
            Exit::WriteMsr(number) if msr::ignores_write(number) => Ok(()),
            Exit::WriteMsr(_) => vm.inject(index, GENERAL_PROTECTION, Some(0)),
            Exit::StartVcpu { vcpu, vector } => shared.start(vcpu, vector),
            Exit::Debug => self.start_again(),
            Exit::Unknown(why) => {
                self.give_up(&format!("{why} at {:#x}", raw.rip), Some(raw));
                Ok(())
            }
            Exit::Suspended(_) | Exit::Nothing => Ok(()),
        }
    }

    /// Sets the low bytes of RAX to what `in` read. Four bytes clear the upper half.
    fn set_low_rax(&self, value: u64, width: u8) -> io::Result<()> {
        let (vm, low) = (&*self.shared.vm, u64::MAX >> (64 - 8 * u32::from(width)));
        let mut rax = [0];
        if width < 4 {
            vm.registers(self.index, &[Reg::Rax], &mut rax)?;
        }
        vm.set_register(self.index, Reg::Rax, rax[0] & !low | value & low)
    }

    /// Runs one instruction for the kernel.
    fn carry_out(&mut self, cpl: u8, raw: &RawExit) -> io::Result<()> {
        let (index, shared) = (self.index, Arc::clone(&self.shared));
        let vm = &*shared.vm;
        let before = registers::read(vm, index, cpl)?;
        let mut after = before;
        match self.one.run(&mut after) {
            Outcome::Done => registers::write_changes(vm, index, &before, &after),
            Outcome::Raised(exception) => {
                registers::write_changes(vm, index, &before, &after)?;
                if exception.vector == PAGE_FAULT {
                    vm.set_register(index, Reg::Cr2, exception.cr2)?;
                }
                vm.inject(index, exception.vector, exception.error)
            }
            Outcome::Refused(why) => {
                self.give_up(&format!("the instruction at {:#x} cannot be carried out: {why}", before.rip), Some(raw));
                Ok(())
            }
        }
    }

    /// Does what the vCPU was brought back for: a start-up message while it ran.
    fn start_again(&self) -> io::Result<()> {
        let (vm, message) = (&*self.shared.vm, self.shared.starts[self.index].vector().take());
        vm.resume_vcpu(self.index)?;
        match message {
            Some(vector) => registers::start_up(vm, self.index, vector),
            None => Ok(()),
        }
    }

    /// Ends the machine, since it cannot go on. Standard error is the supervisor's log of this engine.
    fn give_up(&self, why: &str, raw: Option<&RawExit>) {
        if self.shared.attention.stopped().is_none() {
            let bytes = raw.and_then(instruction_bytes).map(|bytes| format!("\n  instruction {bytes}")).unwrap_or_default();
            let dump = registers::dump(&*self.shared.vm, self.index);
            eprintln!("vmctl vmm: vCPU {}: {why}; its registers:\n  {dump}{bytes}", self.index);
        }
        self.shared.platform.vcpu_failed(self.index, MachineExit::Error);
    }
}

impl Backend for VmmBackend {
    fn name(&self) -> &'static str {
        super::NAME
    }

    /// The first vCPU has a thread of its own too: this one waits for all, and for none once one of them is broken.
    fn run(&mut self) -> MachineExit {
        let threads = self.starts.len();
        for start in self.starts.drain(..) {
            // A thread that has ended stopped the machine.
            let _ = start.send(());
        }
        for _ in 0..threads {
            match self.ends.recv() {
                Ok(Ended::Well) => {}
                Ok(Ended::Broken) | Err(_) => break,
            }
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
