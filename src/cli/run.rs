//! `vmctl run`: the supervisor itself, in the foreground or, for `start`, detached.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::attach;
use super::selection::CommandContext;
use super::start::preflight;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::{HostConfig, HostPaths};
use crate::guest::definition::Definition;
use crate::guest::engine;
use crate::guest::install::{Answers, Install};
use crate::guest::launcher::Report;
use crate::guest::store::GuestDir;
use crate::guest::supervisor::restart::ExitReason;
use crate::guest::supervisor::{Ending, Options, block_signals, supervise};
use crate::guest::trust;

/// Exit status of `run` in the foreground for what is 1 in other commands.
const USERS_FAULT: u8 = 4;

/// Run a guest in the foreground
///
/// Shows its console on this terminal until it stops. The restart policy applies as it does with `start`. `~.` leaves
/// the console and `~s` asks the guest to stop, as in `console`. A signal to this command also asks the guest to stop,
/// and a second signal powers it off. Exits with 0 if the guest stopped, with 2 if it or the host failed, with 4 for a
/// mistake that the user can correct, such as a kernel that is refused, and, if the guest wrote VALUE to the debug-exit
/// port, with VALUE * 2 + 1: an odd number always comes from the guest.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Run without a terminal, for `start`
    #[arg(long, hide = true)]
    supervise: bool,
    /// Run an installer, for `install`
    #[command(flatten)]
    install: InstallerRun,
}

/// Options that `install` passes to the supervisor.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct InstallerRun {
    /// The medium of the first boot
    #[arg(long, value_name = "FILE", hide = true)]
    installer: Option<PathBuf>,
    #[arg(long, value_name = "FILE", hide = true, requires = "installer")]
    preseed: Option<PathBuf>,
    #[arg(long, value_name = "PATH", hide = true, requires = "installer")]
    autoinstall: Option<PathBuf>,
    #[arg(long, value_name = "WORDS", hide = true, requires = "installer", allow_hyphen_values = true)]
    append: Option<String>,
}

impl InstallerRun {
    /// Creates the options for this medium.
    pub fn new(medium: &Path, answers: Option<&Answers>, append: Option<&str>) -> InstallerRun {
        let mut run = InstallerRun { installer: Some(medium.to_owned()), append: append.map(str::to_owned), ..Self::default() };
        match answers {
            Some(Answers::Preseed(file)) => run.preseed = Some(file.clone()),
            Some(Answers::Autoinstall(path)) => run.autoinstall = Some(path.clone()),
            None => {}
        }
        run
    }

    /// Returns the command line of these options.
    pub fn words(&self) -> Vec<OsString> {
        let pairs = [
            ("--installer", self.installer.clone().map(PathBuf::into_os_string)),
            ("--preseed", self.preseed.clone().map(PathBuf::into_os_string)),
            ("--autoinstall", self.autoinstall.clone().map(PathBuf::into_os_string)),
            ("--append", self.append.clone().map(OsString::from)),
        ];
        pairs.into_iter().filter_map(|(name, value)| Some([name.into(), value?])).flatten().collect()
    }

    /// Returns the run, if there is one. Its files are checked.
    pub fn install(&self) -> Result<Option<Install>, Failure> {
        let Some(medium) = &self.installer else { return Ok(None) };
        let preseed = self.preseed.clone().map(Answers::Preseed);
        let answers = preseed.or(self.autoinstall.clone().map(Answers::Autoinstall));
        Ok(Some(Install::new(medium, answers.as_ref(), self.append.as_deref().unwrap_or(""))?))
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        if self.supervise {
            return match self.prepare(app) {
                Ok((options, guest)) => detached(options, guest),
                Err(failure) => {
                    report(&Report::failed(
                        &failure.text(),
                        failure.hint.as_ref().map(|hint| hint.0.as_str()),
                        failure.is_users(),
                    ));
                    Err(failure)
                }
            };
        }
        self.in_foreground(app).map_err(|failure| match failure.status {
            // 1 belongs to a guest that wrote 0 to its debug-exit port.
            ExitStatus::User => Failure { status: ExitStatus::Engine(USERS_FAULT), ..failure },
            _ => failure,
        })
    }

    fn in_foreground(&self, app: &App) -> Outcome {
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        foreground(app, context, guest, self.install.install()?)
    }

    /// Returns the options of a detached supervisor. All errors here are reported to the process that started it.
    fn prepare(&self, app: &App) -> Result<(Options, GuestDir), Failure> {
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        let install = self.install.install()?;
        let options = options(app, context, &guest, false)?;
        Ok((Options { install, ..options }, guest))
    }
}

/// Sends a report to the process that started this supervisor. It may be gone, and then no report is needed.
fn report(report: &Report) {
    let line = serde_json::to_string(report).expect("plain fields") + "\n";
    let _ = std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes());
    crate::host::process::give_up_stdout();
}

fn options(app: &App, context: CommandContext, guest: &GuestDir, foreground: bool) -> Result<Options, Failure> {
    let surroundings = context.surroundings();
    let (host_file, datastore) = (surroundings.host_file.to_owned(), surroundings.datastore.to_owned());
    let (config, guest, store) = (app.config.clone(), guest.clone(), datastore.clone());
    let load_host = move || -> crate::guest::error::Result<HostConfig> {
        let mut host = HostConfig::load(config.as_deref(), &HostPaths::of_this_user()?, engine::of_this_host())?;
        host.add_fleets(Some(&store), None)?;
        Ok(host)
    };
    let host_path = host_file.clone();
    Ok(Options {
        // The host file is read again too, since its defaults are part of a guest's configuration.
        load: Box::new(move || {
            let host = load_host()?;
            let surroundings =
                crate::guest::definition::Surroundings { host: &host, host_file: &host_path, datastore: &datastore };
            let definition = Definition::load(&guest, surroundings)?;
            trust::check_guest(&guest, &definition, &host_path)?;
            Ok(definition)
        }),
        started: Box::new(|_| ()),
        foreground,
        console: None,
        host_file,
        install: None,
    })
}

fn detached(mut options: Options, guest: GuestDir) -> Outcome {
    options.started = Box::new(|outcome| report(&Report::of(outcome)));
    // Errors have been reported to the process that started us, and are in the event log.
    match supervise(guest, options) {
        Ok(Ending::Stopped(_)) => Ok(ExitStatus::Done),
        Ok(Ending::Failed(_)) | Err(_) => Ok(ExitStatus::Machine),
    }
}

fn foreground(app: &App, context: CommandContext, guest: GuestDir, install: Option<Install>) -> Outcome {
    preflight(app, &context, &guest, &Definition::load(&guest, context.surroundings())?)?;
    let mut options = options(app, context, &guest, true)?;
    options.install = install;
    let (ours, theirs) = UnixStream::pair()?;
    options.console = Some(theirs);
    // The supervisor takes the signals, which must be blocked in every thread. So block them before there is another.
    block_signals()?;
    app.ui.done(format!("console of {}; `~s` stops the guest, `~.` leaves its console, `~?` lists the escapes", guest.name()));
    let (watched, watcher) = (guest.clone(), app.clone());
    let console = std::thread::spawn(move || attach::in_foreground(&watcher, &watched, ours));
    let ending = supervise(guest, options);
    // The stream has ended with the supervisor, so this does not wait. The terminal is restored when it returns.
    if let Ok(Err(failure)) = console.join() {
        app.ui.failure(&failure);
    }
    let ending = ending?;
    match ending {
        Ending::Stopped(Some(ExitReason::Debug(value))) => Ok(ExitStatus::Engine((value << 1) | 1)),
        Ending::Stopped(reason) => {
            if let Some(reason) = reason {
                app.ui.done(reason.words());
            }
            Ok(ExitStatus::Done)
        }
        Ending::Failed(reason) => Err(Failure::machine(anyhow::anyhow!(reason))),
    }
}
