//! `vmctl install`: runs an installer.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dialoguer::{Input, Select};

use super::launch::boot_or_remove;
use super::progress::{Awaited, ProgressDisplay, asking, watch_signals};
use super::run::InstallerRun;
use super::selection::CommandContext;
use super::start::{self, How};
use super::{App, Failure, Outcome};
use crate::config::{EngineKind, SwitchConfig};
use crate::fetch::{Kind, Request};
use crate::guest::create::{self, Origin};
use crate::guest::definition::Definition;
use crate::guest::images::Images;
use crate::guest::install::{Answers, Install};
use crate::guest::launch_file::{NewMachine, Wire};
use crate::guest::launcher;
use crate::guest::store::GuestDir;
use crate::units::ByteSize;

/// Install a guest from a medium
///
/// Boots the guest once from the medium and shows its console. When the installer reboots, the medium is removed and
/// the guest boots from its disk. The same happens after a power-off, after a crash, and after a supervisor that was
/// killed: the medium belongs to this one boot. `[ready]` applies from the next boot on.
///
/// An existing guest must be stopped. A new one is made from `--template` or `--file` with `--set`, or from `--size`,
/// `--memory`, `--network` and `--loader`. On a terminal, missing ones are asked for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// The medium: a file, or a name of `vmctl iso list --all`, which is fetched if it is not here
    #[arg(value_name = "ISO")]
    medium: String,
    /// Do not open the console
    #[arg(short, long, conflicts_with = "wait")]
    detach: bool,
    /// Wait, without the console, until the installed system is ready by the guest's `[ready]`
    #[arg(short, long)]
    wait: bool,
    /// Time to wait, instead of the guest file's `ready.timeout`
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = crate::units::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    new: New,
}

/// Answers for the installer.
#[derive(Debug, clap::Args)]
struct AnswerArgs {
    /// Answer file for Debian's installer, which reads it over HTTP from the user-mode network
    #[arg(long, value_name = "FILE", conflicts_with = "autoinstall")]
    preseed: Option<PathBuf>,
    /// The same for Ubuntu's installer: a `user-data` file, or a directory that contains it
    #[arg(long, value_name = "PATH")]
    autoinstall: Option<PathBuf>,
    /// Further words for the command line of the medium's kernel, before a `---` in it
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
}

/// The source of a new guest.
#[derive(Debug, clap::Args)]
struct New {
    /// Guest file of the new guest, which stays where it is
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Template of the new guest
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "file")]
    template: Option<String>,
    /// Set a key in the new guest's file, like `memory=2G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Size of the new guest's disk
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["file", "template"])]
    size: Option<ByteSize>,
    /// RAM of the new guest
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["file", "template"])]
    memory: Option<ByteSize>,
    /// Network of the new guest: `user`, `none`, or a switch
    #[arg(long, value_name = "NETWORK", conflicts_with_all = ["file", "template"])]
    network: Option<String>,
    /// Loader of the new guest: `grub`, `uefi` or `bhyveload`
    #[arg(long, value_name = "LOADER", conflicts_with_all = ["file", "template"])]
    loader: Option<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        watch_signals();
        let answers = self.answers.answers();
        let progress = ProgressDisplay::new(&app.ui);
        // Kept until the guest runs, so that the fetched medium is not removed meanwhile.
        let fetched = if Path::new(&self.medium).is_file() { None } else { Some(self.fetch(&context, &progress)?) };
        let medium = fetched.as_ref().map_or_else(|| PathBuf::from(&self.medium), |fetched| fetched.path.clone());
        // Problems of the files are reported before a guest is made for them.
        let install = Install::new(&medium, answers.as_ref(), self.answers.append.as_deref().unwrap_or(""))?;
        let is_new = !context.store.names()?.contains(&self.guest);
        let guest = match is_new {
            false => self.there(&context)?,
            true => {
                let origin = asking(|| self.new.origin(&context))?;
                let _shown = app.ui.wait(Awaited::making(&self.guest));
                create::create(&context.store, &self.guest, &origin, &self.new.sets, context.surroundings(), &progress)?
            }
        };
        if let Err(error) = install.check(&Definition::load(&guest, context.surroundings())?.config) {
            if is_new {
                create::destroy(&context.store, &guest, context.surroundings())?;
            }
            return Err(error.into());
        }
        let run = InstallerRun::new(
            &absolute(&medium)?,
            answers.map(|answers| answers.absolute()).transpose()?.as_ref(),
            self.answers.append.as_deref(),
        );
        let how = match (self.wait, self.timeout) {
            (true, Some(timeout)) => How::within(true, timeout),
            (true, None) => How::plain(true),
            (false, _) if self.detach => How::plain(false),
            (false, _) => How::with_console(),
        };
        if is_new {
            let began = Instant::now();
            boot_or_remove(app, &context, &guest, &run.words())?;
            return start::then(app, &context, &guest, &how, began);
        }
        start::start_installer(app, &context, &guest, &how, &run.words())
    }

    fn fetch(&self, context: &CommandContext, progress: &ProgressDisplay) -> Result<crate::fetch::Obtained, Failure> {
        let images = Images { host: &context.host, progress };
        Ok(images.fetcher()?.obtain(&Request::new(Kind::Iso, &self.medium))?)
    }

    /// Returns an existing guest. It is an error if there also are options for a new one.
    fn there(&self, context: &CommandContext) -> Result<GuestDir, Failure> {
        let guest = context.store.guest(&self.guest)?;
        if let Some(holder) = launcher::supervisor_of(&guest) {
            return Err(Failure::user(format!("`{}` is running (supervisor {})", self.guest, holder.pid))
                .hint(format!("stop it first: `vmctl stop {}`", self.guest)));
        }
        match self.new.given() {
            None => Ok(guest),
            Some(option) => Err(Failure::user(format!("`{}` exists already, and `{option}` is for a new guest", self.guest))
                .hint(format!("`vmctl edit {0}` changes it, `vmctl destroy {0}` makes room for another", self.guest))),
        }
    }
}

impl AnswerArgs {
    fn answers(&self) -> Option<Answers> {
        let preseed = self.preseed.clone().map(Answers::Preseed);
        preseed.or(self.autoinstall.clone().map(Answers::Autoinstall))
    }
}

impl Answers {
    /// Makes the paths absolute, since the supervisor starts in another directory.
    fn absolute(self) -> Result<Answers, Failure> {
        Ok(match self {
            Answers::Preseed(path) => Answers::Preseed(absolute(&path)?),
            Answers::Autoinstall(path) => Answers::Autoinstall(absolute(&path)?),
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::user(format!("cannot find `{}`: {error}", path.display())))
}

impl New {
    /// Returns an option that was given.
    fn given(&self) -> Option<&'static str> {
        let given = [
            ("--file", self.file.is_some()),
            ("--template", self.template.is_some()),
            ("--set", !self.sets.is_empty()),
            ("--size", self.size.is_some()),
            ("--memory", self.memory.is_some()),
            ("--network", self.network.is_some()),
            ("--loader", self.loader.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    fn origin(&self, context: &CommandContext) -> Result<Origin, Failure> {
        if let Some(path) = &self.file {
            return Ok(Origin::File { path: path.clone(), copy: false });
        }
        if let Some(template) = &self.template {
            return Ok(Origin::Template(template.clone()));
        }
        let engine = context.host.engine();
        let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let missing: Vec<&str> = [
            ("--size", self.size.is_none()),
            ("--memory", self.memory.is_none()),
            ("--network", self.network.is_none()),
            ("--loader", self.loader.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if !asks && !missing.is_empty() {
            return Err(Failure::user(format!(
                "there is no such guest, and options for a new one are missing: {}",
                missing.join(", ")
            ))
            .hint("or `--template`, or `--file`"));
        }
        let switches = &context.host.switches;
        let size = self.size.map_or_else(|| ask_size("Size of the disk", "20G"), Ok)?;
        let memory = self.memory.map_or_else(|| ask_size("Memory", "2G"), Ok)?;
        let wire = match &self.network {
            Some(name) => wire(name, switches)?,
            None => ask_network(engine, switches)?,
        };
        let loader = match &self.loader {
            Some(loader) => loader.clone(),
            None => ask_loader(engine)?,
        };
        let text = NewMachine { size, memory, wire, loader }.text();
        Ok(Origin::Image { text, boot: Vec::new(), user: None })
    }
}

fn wire(name: &str, switches: &[SwitchConfig]) -> Result<Wire, Failure> {
    match name {
        "user" => Ok(Wire::User),
        "none" => Ok(Wire::None),
        name if switches.iter().any(|switch| switch.id == name) => Ok(Wire::Switch(name.to_owned())),
        name => {
            let known: Vec<String> = switches.iter().map(|switch| format!("`{}`", switch.id)).collect();
            Err(Failure::user(format!("`{name}` is neither `user`, nor `none`, nor a switch")).hint(if known.is_empty() {
                "there is no switch".to_owned()
            } else {
                format!("there are {}", known.join(", "))
            }))
        }
    }
}

fn ask_size(what: &str, default: &str) -> Result<ByteSize, Failure> {
    let text: String = Input::new()
        .with_prompt(what)
        .default(default.to_owned())
        .validate_with(|text: &String| text.parse::<ByteSize>().map(drop).map_err(|error| error.to_string()))
        .interact_text()
        .map_err(unanswered)?;
    text.parse().map_err(|error| Failure::user(format!("`{text}` is not a size: {error}")))
}

fn ask_network(engine: EngineKind, switches: &[SwitchConfig]) -> Result<Wire, Failure> {
    let mut choices: Vec<(String, Wire)> = vec![("user: a network of its own, through the host".into(), Wire::User)];
    if engine == EngineKind::Bhyve {
        choices.extend(switches.iter().map(|switch| (format!("switch {}", switch.id), Wire::Switch(switch.id.clone()))));
    }
    choices.push(("none".into(), Wire::None));
    choose("Network", choices)
}

fn ask_loader(engine: EngineKind) -> Result<String, Failure> {
    let all: &[(&str, &str)] = match engine {
        EngineKind::Embedded => return Ok("grub".to_owned()),
        EngineKind::Bhyve => &[
            ("uefi", "uefi: firmware, for most systems"),
            ("bhyveload", "bhyveload: FreeBSD's own, for FreeBSD"),
            ("grub", "grub: grub-bhyve, for Linux, OpenBSD and NetBSD without firmware"),
        ],
    };
    choose("Loader", all.iter().map(|(name, words)| ((*words).to_owned(), (*name).to_owned())).collect())
}

fn choose<T>(what: &str, mut choices: Vec<(String, T)>) -> Result<T, Failure> {
    let words: Vec<&String> = choices.iter().map(|(words, _)| words).collect();
    let at = Select::new().with_prompt(what).items(&words).default(0).interact().map_err(unanswered)?;
    Ok(choices.swap_remove(at).1)
}

fn unanswered(error: dialoguer::Error) -> Failure {
    Failure::user(format!("nothing was installed: {error}"))
}
