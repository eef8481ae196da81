//! The command line: one file per verb. Only this part prints.
//!
//! A verb's file holds `Args` (clap's derive: every option documented once, there) and `Args::run(self, &App)`, which
//! calls into the program and hands what it gets to [`Ui`]. A verb is added by its `mod` line and its line in [`Verb`].
//! Conventions: `GUEST...` takes several names and globs ([`Guests`]); `-o` and `-q` work everywhere; data goes to
//! standard output, words to standard error; a command on many guests continues after one fails ([`Ui::each`]).

mod apply;
mod argv;
mod ask;
mod attach;
mod autostart;
mod autostart_rc;
mod bhyve;
mod check;
mod clone;
mod complete;
mod completions;
mod console;
mod cp;
mod create;
mod destroy;
mod disk;
mod doctor;
mod down;
mod edit;
mod entries;
mod escape;
mod events;
mod exec;
mod fetch;
mod forward;
mod graph;
mod group;
mod help;
mod host;
mod image;
mod import;
mod info;
mod init;
mod install;
mod iso;
mod jail;
mod kill;
mod launch;
mod list;
mod logs;
mod media;
mod metrics;
mod misspelt;
mod nic;
mod passthru;
mod plan;
mod poweroff;
mod progress;
mod project;
mod reachable;
mod rename;
mod render;
mod reset;
mod reset_failed;
mod restart;
mod rollback;
mod run;
mod schema;
mod selection;
mod show;
mod snapshot;
mod snapshots;
mod source;
mod ssh;
mod ssh_config;
mod start;
mod stop;
mod suspend;
mod switch;
mod top;
mod ui;
mod up;
mod visible;
mod vmm;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{FromArgMatches, Parser};

use crate::config::{DatastoreConfig, HostConfig, HostPaths};
use crate::guest::engine;
pub use ui::{Column, ExitStatus, Failure, Outcome, OutputFormat, Ui};

/// Heading of the options that every command has.
const OF_EVERY_COMMAND: &str = "Options of every command";

/// Manages virtual machines: each is one TOML file.
#[derive(Debug, Parser)]
#[command(name = "vmctl", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    common: CommonOptions,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
struct CommonOptions {
    /// Output format: `table`, `wide`, `json`, `jsonl` or `name`
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT", hide_possible_values = true, help_heading = OF_EVERY_COMMAND, display_order = 900)]
    output: OutputFormat,
    /// Print nothing on success
    #[arg(short, long, global = true, help_heading = OF_EVERY_COMMAND, display_order = 901)]
    quiet: bool,
    /// Host file, instead of the system's or the user's own (or set VMCTL_CONFIG)
    #[arg(long, global = true, value_name = "FILE", help_heading = OF_EVERY_COMMAND, display_order = 902)]
    config: Option<PathBuf>,
    /// Datastore: a name from the host file, or a directory (or set VMCTL_DATASTORE)
    #[arg(long, global = true, value_name = "NAME|DIR", help_heading = OF_EVERY_COMMAND, display_order = 903)]
    datastore: Option<String>,
}

/// Command line of a supervisor that `start` runs.
#[derive(Debug, Parser)]
struct SupervisorCli {
    #[command(flatten)]
    common: CommonOptions,
    #[command(subcommand)]
    verb: SupervisorVerb,
}

#[derive(Debug, clap::Subcommand)]
enum SupervisorVerb {
    Run(run::Args),
}

/// All verbs, in the order of the help.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    Init(init::Args),
    Launch(launch::Args),
    Install(install::Args),
    Create(create::Args),
    Start(start::Args),
    #[command(alias = "shutdown")]
    Stop(stop::Args),
    #[command(alias = "reboot")]
    Restart(restart::Args),
    Reset(reset::Args),
    Poweroff(poweroff::Args),
    Suspend(suspend::Args),
    Wait(wait::Args),
    Kill(kill::Args),
    #[command(aliases = ["rm", "remove", "delete"])]
    Destroy(destroy::Args),
    Rename(rename::Args),
    Clone(clone::Args),
    Snapshot(snapshot::Args),
    Snapshots(snapshots::Args),
    Rollback(rollback::Args),
    Edit(edit::Args),
    #[command(aliases = ["ls", "ps", "status"])]
    List(list::Args),
    #[command(alias = "inspect")]
    Info(info::Args),
    Top(top::Args),
    Metrics(metrics::Args),
    Logs(logs::Args),
    Console(console::Args),
    #[command(alias = "shell")]
    Ssh(ssh::Args),
    Exec(exec::Args),
    Cp(cp::Args),
    SshConfig(ssh_config::Args),
    Disk(disk::Args),
    Nic(nic::Args),
    Forward(forward::Args),
    Media(media::Args),
    Events(events::Args),
    Run(run::Args),
    ResetFailed(reset_failed::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Render(render::Args),
    Up(up::Args),
    Down(down::Args),
    Autostart(autostart::Args),
    Fetch(fetch::Args),
    Image(image::Args),
    Iso(iso::Args),
    Switch(switch::Args),
    Passthru(passthru::Args),
    Jail(jail::Args),
    Host(host::Args),
    Import(import::Args),
    Graph(graph::Args),
    Doctor(doctor::Args),
    Check(check::Args),
    Show(show::Args),
    Argv(argv::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    #[command(name = "__complete", hide = true)]
    Complete(complete::Args),
    #[command(hide = true)]
    Vmm(vmm::Args),
    #[command(hide = true)]
    Bhyve(bhyve::Args),
}

/// Context of every verb.
#[derive(Debug, Clone)]
pub struct App {
    /// The renderer.
    pub ui: Ui,
    config: Option<PathBuf>,
    datastore: Option<String>,
}

impl App {
    /// Returns the checked host file, or the defaults if there is none, with the switches of the fleets that were
    /// applied here.
    pub fn host(&self) -> Result<HostConfig, Failure> {
        let mut host = self.host_alone()?;
        // A missing datastore is reported by the code that needs it.
        let chosen = self.datastore(&host).ok();
        host.add_fleets(chosen.as_ref().map(|store| store.path.as_path()), None)?;
        Ok(host)
    }

    /// Returns the same without the switches of fleets.
    fn host_alone(&self) -> Result<HostConfig, Failure> {
        Ok(HostConfig::load(self.config.as_deref(), &HostPaths::of_this_user()?, engine::of_this_host())?)
    }

    /// Reports a failure, and returns the exit status.
    fn status(&self, outcome: Outcome) -> ExitCode {
        let status = outcome.unwrap_or_else(|failure| {
            self.ui.failure(&failure);
            failure.status
        });
        status.into()
    }

    /// Returns the path of the host file, which may not exist.
    pub fn host_file(&self) -> Result<PathBuf, Failure> {
        match &self.config {
            Some(file) => Ok(file.clone()),
            None => Ok(HostPaths::of_this_user()?.config_file),
        }
    }

    /// Returns the datastore that the user selected.
    pub fn datastore(&self, host: &HostConfig) -> Result<DatastoreConfig, Failure> {
        let Some(wanted) = &self.datastore else { return Ok(host.datastore().clone()) };
        if let Some(store) = host.datastores.iter().find(|store| store.id == *wanted) {
            return Ok(store.clone());
        }
        if wanted.contains('/') {
            let path: PathBuf = std::path::absolute(wanted)?.components().collect();
            return Ok(DatastoreConfig { id: wanted.clone(), path });
        }
        let known: Vec<_> = host.datastores.iter().map(|store| format!("`{}`", store.id)).collect();
        Err(Failure::user(format!("no datastore is called `{wanted}`"))
            .hint(format!("known: {}; a directory is written with a slash, like `./{wanted}`", known.join(", "))))
    }
}

/// Selection of guests for a command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Guests {
    /// Names or globs, like `web1` or `web*`
    #[arg(value_name = "GUEST", required_unless_present_any = ["all", "tags"])]
    pub names: Vec<String>,
    /// Every guest with this tag; with several tags, the guests that have all of them
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Every guest
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
}

/// Selection of guests for a command that shows something: all guests if none is named.
#[derive(Debug, Clone, clap::Args)]
pub struct AnyGuests {
    /// Names or globs, like `web1` or `web*`; all guests by default
    #[arg(value_name = "GUEST")]
    pub names: Vec<String>,
    /// Guests with this tag; with several tags, the guests that have all of them
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
}

impl AnyGuests {
    /// Converts it to a selection of other commands.
    pub fn guests(self) -> Guests {
        Guests { names: self.names, tags: self.tags, all: false }
    }
}

/// Runs the command line of this process and returns its exit status.
pub fn main() -> ExitCode {
    let words = help::words(std::env::args_os().collect());
    if let Some(status) = run_guests_process(&words) {
        return status;
    }
    match parse(words) {
        Ok(cli) => run(cli),
        Err(status) => status,
    }
}

/// Runs a process that lives as long as a guest: its supervisor or its engine. Returns `None` for all other command lines,
/// and for a wrong one, which the whole command line reports.
///
/// These processes do without the whole command line: building it maps 2 MiB of the program and takes 1 MiB of memory
/// that each of them would keep.
fn run_guests_process(words: &[OsString]) -> Option<ExitCode> {
    match words.get(1)?.to_str()? {
        "vmm" => return Some(args_alone::<vmm::Args>(words)?.run()),
        "bhyve" => return Some(args_alone::<bhyve::Args>(words)?.run()),
        _ => {}
    }
    if !words.iter().any(|word| word == "--supervise") {
        return None;
    }
    let SupervisorCli { common, verb: SupervisorVerb::Run(args) } = SupervisorCli::try_parse_from(words).ok()?;
    let app = common.app();
    Some(app.status(args.run(&app)))
}

/// Parses the arguments of a verb that is the first word.
fn args_alone<A: clap::Args>(words: &[OsString]) -> Option<A> {
    let command = A::augment_args(clap::Command::new(env!("CARGO_PKG_NAME")));
    A::from_arg_matches(&command.try_get_matches_from(&words[1..]).ok()?).ok()
}

/// Parses a command line. Prints what is wrong with it, or its help, and returns the exit status for it.
fn parse(words: Vec<OsString>) -> Result<Cli, ExitCode> {
    let command = help::command();
    let parsed = command.clone().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        if let Some(failure) = misspelt::explain(&error, &command) {
            Ui::new(OutputFormat::Table, false).failure(&failure);
            return failure.status.into();
        }
        // --help and --version come here too and are no failure. A closed output is none either.
        let _ = error.print();
        if error.use_stderr() { ExitStatus::User.into() } else { ExitStatus::Done.into() }
    })
}

fn run(cli: Cli) -> ExitCode {
    let app = cli.common.app();
    let outcome = match cli.verb {
        Verb::Init(args) => args.run(&app),
        Verb::Launch(args) => args.run(&app),
        Verb::Install(args) => args.run(&app),
        Verb::Create(args) => args.run(&app),
        Verb::Start(args) => args.run(&app),
        Verb::Stop(args) => args.run(&app),
        Verb::Restart(args) => args.run(&app),
        Verb::Reset(args) => args.run(&app),
        Verb::Poweroff(args) => args.run(&app),
        Verb::Suspend(args) => args.run(&app),
        Verb::Wait(args) => args.run(&app),
        Verb::Kill(args) => args.run(&app),
        Verb::Destroy(args) => args.run(&app),
        Verb::Rename(args) => args.run(&app),
        Verb::Clone(args) => args.run(&app),
        Verb::Snapshot(args) => args.run(&app),
        Verb::Snapshots(args) => args.run(&app),
        Verb::Rollback(args) => args.run(&app),
        Verb::Edit(args) => args.run(&app),
        Verb::List(args) => args.run(&app),
        Verb::Info(args) => args.run(&app),
        Verb::Top(args) => args.run(&app),
        Verb::Metrics(args) => args.run(&app),
        Verb::Logs(args) => args.run(&app),
        Verb::Console(args) => args.run(&app),
        Verb::Ssh(args) => args.run(&app),
        Verb::Exec(args) => args.run(&app),
        Verb::Cp(args) => args.run(&app),
        Verb::SshConfig(args) => args.run(&app),
        Verb::Disk(args) => args.run(&app),
        Verb::Nic(args) => args.run(&app),
        Verb::Forward(args) => args.run(&app),
        Verb::Media(args) => args.run(&app),
        Verb::Events(args) => args.run(&app),
        Verb::Run(args) => args.run(&app),
        Verb::ResetFailed(args) => args.run(&app),
        Verb::Plan(args) => args.run(&app),
        Verb::Apply(args) => args.run(&app),
        Verb::Render(args) => args.run(&app),
        Verb::Up(args) => args.run(&app),
        Verb::Down(args) => args.run(&app),
        Verb::Autostart(args) => args.run(&app),
        Verb::Fetch(args) => args.run(&app),
        Verb::Image(args) => args.run(&app),
        Verb::Iso(args) => args.run(&app),
        Verb::Switch(args) => args.run(&app),
        Verb::Passthru(args) => args.run(&app),
        Verb::Jail(args) => args.run(&app),
        Verb::Host(args) => args.run(&app),
        Verb::Import(args) => args.run(&app),
        Verb::Graph(args) => args.run(&app),
        Verb::Doctor(args) => args.run(&app),
        Verb::Check(args) => args.run(&app),
        Verb::Show(args) => args.run(&app),
        Verb::Argv(args) => args.run(&app),
        Verb::Schema(args) => args.run(&app),
        Verb::Completions(args) => args.run(&app),
        Verb::Complete(args) => args.run(&app),
        Verb::Vmm(args) => return args.run(),
        Verb::Bhyve(args) => return args.run(),
    };
    app.status(outcome)
}

impl CommonOptions {
    /// Returns the context of a verb. Options come before the environment.
    fn app(self) -> App {
        App {
            ui: Ui::new(self.output, self.quiet),
            config: self.config.or_else(|| from_env("VMCTL_CONFIG").map(PathBuf::from)),
            datastore: self.datastore.or_else(|| from_env("VMCTL_DATASTORE").and_then(|value| value.into_string().ok())),
        }
    }
}

/// Returns an environment variable that is not empty.
fn from_env(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
        super::SupervisorCli::command().debug_assert();
    }

    #[test]
    fn a_supervisors_command_line_is_parsed_alone_and_means_the_same() {
        let words = ["vmctl", "--config", "/h.toml", "--datastore", "/d", "run", "--supervise", "web1"];
        let alone = super::SupervisorCli::parse_from(words);
        let whole = super::Cli::parse_from(words);
        assert_eq!(format!("{:?}", alone.common), format!("{:?}", whole.common));
        assert_eq!(format!("{:?}", alone.verb), format!("{:?}", whole.verb));
    }

    #[test]
    fn an_engines_command_line_is_parsed_alone_and_a_wrong_one_is_left_to_the_whole() {
        let words = |text: &str| text.split(' ').map(std::ffi::OsString::from).collect::<Vec<_>>();
        assert!(super::args_alone::<super::vmm::Args>(&words("vmctl vmm --spec /x.json")).is_some());
        assert!(super::args_alone::<super::bhyve::Args>(&words("vmctl bhyve --spec /x.json")).is_some());
        for other in ["vmctl vmm --help", "vmctl vmm", "vmctl vmm -q --spec /x.json"] {
            assert!(super::args_alone::<super::vmm::Args>(&words(other)).is_none(), "{other}");
        }
        for other in ["vmctl", "vmctl list", "vmctl run web1", "vmctl vmm --help", "vmctl run --supervise"] {
            assert!(super::run_guests_process(&words(other)).is_none(), "{other}");
        }
    }
}
