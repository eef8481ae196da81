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
    #[command(subcommand)]
    verb: Verb,
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
    #[command(aliases = ["shell", "exec"])]
    Ssh(ssh::Args),
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
    let command = help::command();
    let words = help::words(std::env::args_os().collect());
    let parsed = command.clone().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(failure) = misspelt::explain(&error, &command) {
                Ui::new(OutputFormat::Table, false).failure(&failure);
                return failure.status.into();
            }
            // --help and --version come here too and are no failure. A closed output is none either.
            let _ = error.print();
            return if error.use_stderr() { ExitStatus::User.into() } else { ExitStatus::Done.into() };
        }
    };
    let app = App {
        ui: Ui::new(cli.output, cli.quiet),
        config: cli.config.or_else(|| from_env("VMCTL_CONFIG").map(PathBuf::from)),
        datastore: cli.datastore.or_else(|| from_env("VMCTL_DATASTORE").and_then(|value| value.into_string().ok())),
    };
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
    let status = outcome.unwrap_or_else(|failure| {
        app.ui.failure(&failure);
        failure.status
    });
    status.into()
}

/// Returns an environment variable that is not empty.
fn from_env(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
