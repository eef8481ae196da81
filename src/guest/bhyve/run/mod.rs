//! The engine child of engine `bhyve`: one boot of one guest, from a plan to an exit code.
//!
//! The supervisor starts `vmctl bhyve --spec FILE`, which speaks the contract of [`crate::machine::spec`] like any
//! engine: a console stream, a control stream, an exit code. FILE holds a [`plan::BhyvePlan`]: the command lines of the
//! loader and of bhyve, and what they need of the host. The child
//!
//! 1. looks at what would be in the way, before anything is changed ([`prepare`]);
//! 2. undoes what an earlier child of the guest left behind, and makes what this boot needs, each thing noted in the
//!    guest's directory before it is made ([`journal`]);
//! 3. runs the loader, then bhyve, carries the console between them and the supervisor, and turns the supervisor's
//!    commands into signals and bhyvectl(8) calls ([`watch`]);
//! 4. undoes what it made, the last thing first: also when a step fails, when it is told to end, and when its
//!    supervisor is gone.
//!
//! **Hostile guest**: what waits of the console is bounded in both directions; of what bhyve writes to standard error
//! the end is kept for messages, and the supervisor bounds the log.

pub mod journal;
pub mod outcome;
pub mod plan;
pub mod prepare;
mod saved;
pub mod watch;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::host::bhyvectl::Vm;
use crate::machine::spec::EngineEvent;

use journal::Journal;
use outcome::{End, Trouble};
use plan::{BhyvePlan, PLAN_VERSION, Program};
use prepare::Prepared;
use watch::{Part, Watch};

/// How long the last boot's virtual machine may take to go: the kernel frees all of its memory first.
const LAST_MACHINE_GOES: Duration = Duration::from_secs(60);
/// bhyve's exit code after it was suspended.
const SUSPENDED: i32 = 5;

/// The streams that the supervisor hands in.
pub struct Streams {
    /// COM1's bytes.
    pub console: UnixStream,
    /// Commands and events.
    pub control: UnixStream,
    /// Held by whatever has the guest's disks open.
    pub lease: OwnedFd,
}

/// Runs one boot. To be called from the main thread, with no other thread about.
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
        Err(Trouble::Told(end)) => end,
        Err(Trouble::Failed(message)) => {
            eprintln!("vmctl bhyve: {message}");
            watch.tell(&EngineEvent::Error { message });
            End::ERROR
        }
    };
    watch.finish();
    end
}

/// From the plan to the end, with everything undone that was made.
fn boot(plan: &BhyvePlan, watch: &mut Watch<'_>) -> Result<End, Trouble> {
    if plan.version != PLAN_VERSION {
        return Err(Trouble::Failed(format!(
            "the plan has version {}, this program speaks {PLAN_VERSION}; was it replaced while the guest ran?",
            plan.version
        )));
    }
    let mut journal = Journal::open(&plan.journal);
    let held = prepare::look(plan, &journal)?;
    journal.undo().map_err(|left| Trouble::Failed(format!("what an earlier boot left behind cannot be removed: {left}")))?;
    let outcome = prepare::make(plan, &mut journal, watch, held).and_then(|mut prepared| {
        let outcome = load_and_run(plan, &mut journal, watch, &prepared);
        // The guest's last words pass before its lines go.
        watch.close_lines();
        prepared.end();
        outcome
    });
    watch.close_lines();
    match (journal.undo(), outcome) {
        (Ok(()), outcome) => outcome,
        (Err(left), outcome) => {
            // It stays in the journal: the next boot, or `stop`, tries again.
            eprintln!("vmctl bhyve: not undone: {left}");
            outcome
        }
    }
}

/// The loader, where there is one, and bhyve.
fn load_and_run(plan: &BhyvePlan, journal: &mut Journal, watch: &mut Watch<'_>, prepared: &Prepared) -> Result<End, Trouble> {
    let vm = plan.machine();
    journal.note(journal::Made::Vm { name: vm.name.clone(), jail: vm.jail.clone() })?;
    // A loader and bhyve would make one themselves, but not wait for the last one to go. They take one that is there
    // and reset it (vm_reinit); a state is loaded into it; in a jail bhyve may not make one on every release.
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

/// Makes the virtual machine, once what the last boot had by its name is gone.
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
    /// The program's own name, for messages.
    pub fn name(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or(&self.program)
    }
}
