//! The engine child of engine `bhyve`: one boot of one guest, from a plan to an exit code.
//!
//! The supervisor starts `vmctl bhyve --spec FILE`, which speaks the contract of [`crate::machine::spec`] like any
//! engine: a console stream, a control stream, an exit code. FILE holds a [`boot_plan::BhyvePlan`]: the command lines of the
//! loader and of bhyve, and their needs on the host. The child
//!
//! 1. checks for obstacles before it changes anything ([`prepare`]);
//! 2. removes the remains of an earlier child of the guest, and makes the resources of this boot. It notes each in the
//!    guest's directory before it makes it ([`journal`]);
//! 3. runs the loader, then bhyve, connects their console to the supervisor, and translates the supervisor's commands
//!    to signals and bhyvectl(8) calls ([`watch`]);
//! 4. removes its resources, the last one first: also when a step fails, when it is told to end, and when its
//!    supervisor is gone.
//!
//! **Hostile guest**: the console's queues are bounded in both directions. Only the end of bhyve's standard error is
//! kept for messages, and the supervisor bounds the log.

pub mod boot_plan;
pub mod journal;
pub mod outcome;
pub mod prepare;
mod saved;
pub mod watch;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::host::bhyvectl::Vm;
use crate::machine::spec::EngineEvent;

use boot_plan::{BhyvePlan, PLAN_VERSION, Program};
use journal::Journal;
use outcome::{End, Trouble};
use prepare::Prepared;
use watch::{Part, Watch};

/// Time-out for the last boot's virtual machine to disappear. The kernel frees all of its memory first.
const LAST_MACHINE_GOES: Duration = Duration::from_secs(60);
/// bhyve's exit code after it was suspended.
const SUSPENDED: i32 = 5;

/// The streams from the supervisor.
pub struct Streams {
    /// Bytes of COM1.
    pub console: UnixStream,
    /// Commands and events.
    pub control: UnixStream,
    /// The lease, which is held by every process that has the guest's disks open.
    pub lease: OwnedFd,
}

/// Runs one boot. Must be called from the main thread, with no other threads running.
pub fn run(plan: &BhyvePlan, streams: Streams) -> End {
    let mut watch = match Watch::new(plan, streams) {
        Ok(watch) => watch,
        Err(error) => {
            eprintln!("vmctl bhyve: {error}");
            return End::ERROR;
        }
    };
    let end = match boot(plan, &mut watch) {
        Ok(end) => end,
        Err(Trouble::Requested(end)) => end,
        Err(Trouble::Failed(message)) => {
            eprintln!("vmctl bhyve: {message}");
            watch.tell(&EngineEvent::Error { message });
            End::ERROR
        }
    };
    watch.finish();
    end
}

/// Runs the boot from the plan to the end, and undoes everything that was made.
fn boot(plan: &BhyvePlan, watch: &mut Watch<'_>) -> Result<End, Trouble> {
    if plan.version != PLAN_VERSION {
        return Err(Trouble::Failed(format!(
            "the plan has version {}, this program speaks {PLAN_VERSION}; was it replaced while the guest ran?",
            plan.version
        )));
    }
    let mut journal = Journal::open(&plan.journal);
    let reservations = prepare::look(plan, &journal)?;
    journal.undo().map_err(|left| Trouble::Failed(format!("what an earlier boot left behind cannot be removed: {left}")))?;
    let outcome = prepare::make(plan, &mut journal, watch, reservations).and_then(|mut prepared| {
        let outcome = load_and_run(plan, &mut journal, watch, &prepared);
        // The guest's last output is passed on before its lines close.
        watch.close_lines();
        prepared.end();
        outcome
    });
    watch.close_lines();
    match (journal.undo(), outcome) {
        (Ok(()), outcome) => outcome,
        (Err(left), outcome) => {
            // It stays in the journal. The next boot, or `stop`, tries again.
            eprintln!("vmctl bhyve: not undone: {left}");
            outcome
        }
    }
}

/// Runs the loader, if there is one, and bhyve.
fn load_and_run(plan: &BhyvePlan, journal: &mut Journal, watch: &mut Watch<'_>, prepared: &Prepared) -> Result<End, Trouble> {
    let vm = plan.machine();
    journal.note(journal::Made::Vm { name: vm.name.clone(), jail: vm.jail.clone() })?;
    // A loader and bhyve would make a machine themselves, but would not wait for the last one to disappear. They use an
    // existing machine and reset it (vm_reinit). A saved state is loaded into it. In a jail bhyve may not make a
    // machine on every release.
    make_machine(&vm, watch)?;
    if let Some(loader) = plan.loader.as_ref().filter(|_| !plan.resumes) {
        let ended = watch.run(Part::Loader, &prepared.words(plan, loader))?;
        if let Some(end) = outcome::after_loader(loader.name(), &ended)? {
            return Ok(end);
        }
    }
    let ended = watch.run(Part::Bhyve, &prepared.bhyve_words(plan))?;
    if plan.resumes && ended.ran_well() {
        plan.saved.forget();
    }
    if ended.code == Some(SUSPENDED) {
        plan.saved.keep().map_err(|error| Trouble::Failed(format!("the saved guest cannot be kept: {error}")))?;
    }
    if ended.had_no_button() {
        watch.tell(&EngineEvent::NoAcpi);
    }
    outcome::after_bhyve(&ended)
}

/// Makes the virtual machine, once the machine of the last boot is gone.
fn make_machine(vm: &Vm, watch: &mut Watch<'_>) -> Result<(), Trouble> {
    let until = Instant::now() + LAST_MACHINE_GOES;
    while !vm.create().map_err(|error| Trouble::Failed(error.to_string()))? {
        if Instant::now() > until {
            return Err(Trouble::Failed(format!(
                "`bhyvectl --vm={name} --create` failed: the kernel has had a virtual machine `{name}` for {} s that nobody \
                 asked for; if nothing runs it, remove it with `bhyvectl --vm={name} --destroy`",
                LAST_MACHINE_GOES.as_secs(),
                name = vm.name
            )));
        }
        watch.orders()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl Program {
    /// Returns the program's own name, for messages.
    pub fn name(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or(&self.program)
    }
}
