//! What this host can know of a guest file before anything is made of it or started: files that are missing, images that
//! nobody has, a disk that no file system here holds, memory that the host has not, ports that are in use. Each is told
//! with its place in the guest file, by `check`, by what makes guests and by what starts them alike.
//!
//! A guest of an engine that this host has not is made ready for another host: what is looked for there is not looked for
//! here.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::check::is_image_path;
use crate::config::{
    Diagnostic, Diagnostics, DiskBackend, DiskConfig, EngineKind, Forward, ForwardProto, GuestConfig, GuestRequest, LoadedGuest,
    load_guest,
};
use crate::fetch::Facts;
use crate::host::files::can_hold;
use crate::host::memory::total_memory;
use crate::host::program::is_freebsd;
use crate::host::sockets::{Listener, listener_at};
use crate::inputs::is_url;
use crate::units::ByteSize;

use super::definition::Surroundings;
use super::error::{GuestError, Result};
use super::images::{Known, KnownImages};
use super::launcher::supervisor_of;
use super::named_files::{self, Missing, no_such_file};
use super::provision::is_there;
use super::state::RunState;
use super::store::{GuestDir, Store};
use super::switch::taps;

/// The operation that is about to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The guest's disks are made.
    Making,
    /// It boots.
    Booting,
    /// Somebody asks what would be wrong.
    Asking,
}

/// A look at this host for one guest.
#[derive(Clone, Copy)]
pub struct Preflight<'a> {
    /// The store that the guest is in, or will be.
    pub store: &'a Store,
    /// The surroundings of guest files.
    pub surroundings: Surroundings<'a>,
    /// The images that are known without the network.
    pub images: &'a KnownImages<'a>,
    /// The guest, if it is there.
    pub guest: Option<&'a GuestDir>,
}

/// How long a start waits for a port that a process of this program, or one that nobody can name, is about to give up:
/// the processes of a boot that was killed end one after another.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// The holder of a port of the host.
enum PortUser {
    /// A guest that runs.
    Guest(String),
    /// A program that is no guest's.
    Program(Listener),
    /// A process that this user may not look at, or one that is gone by now.
    Unknown,
}

/// A problem and its key.
type Problems = Vec<(String, GuestError)>;

impl Preflight<'_> {
    /// Refuses what is wrong with the file of a guest that is there, with its places.
    pub fn check_guest(self, moment: Moment) -> Result<()> {
        let Some(guest) = self.guest else { return Ok(()) };
        let host = self.surroundings.host_for(guest);
        let file = guest.config_file();
        let request = GuestRequest {
            file: &file,
            text: None,
            name: Some(guest.name()),
            sets: &[],
            host: &host,
            datastore: self.surroundings.datastore,
        };
        Ok(self.check(&load_guest(&request)?, moment)?)
    }

    /// Refuses what is wrong, with its places.
    pub fn check(self, loaded: &LoadedGuest, moment: Moment) -> std::result::Result<(), Diagnostics> {
        let told = self.problems(&loaded.config, moment).into_iter();
        let mut problems: Vec<Diagnostic> = told
            .map(|(key, error)| {
                Diagnostic::at(&loaded.location_of(&key), error.chain()).maybe_hint(error.next_step().map(str::to_owned))
            })
            .collect();
        problems.sort_by_key(|problem| {
            problem.location.as_ref().map(|at| (at.source != loaded.resolved.start.source, at.span.start))
        });
        if problems.is_empty() { Ok(()) } else { Err(Diagnostics(problems)) }
    }

    /// Returns what is wrong, each with its key; an entry without an id is `#N`.
    pub fn problems(self, config: &GuestConfig, moment: Moment) -> Problems {
        let is_of_other_host = config.engine == EngineKind::Bhyve && !is_freebsd();
        let here = |applies: bool| if applies && !is_of_other_host { Missing::Refused } else { Missing::Allowed };
        // A kernel may come later, by the first boot. A guest is not made around a disk that is not there.
        let mut found = named_files::problems(config, here(true), here(moment != Moment::Making));
        if is_of_other_host {
            return found;
        }
        if config.engine == EngineKind::Embedded && moment != Moment::Making {
            found.extend(taps::problems(config, &self.surroundings.host.switches));
        }
        self.disks(config, moment, &mut found);
        if moment != Moment::Making {
            found.extend(memory_problem(config));
            self.ports(config, moment, &mut found);
        }
        found
    }

    fn disks(self, config: &GuestConfig, moment: Moment, found: &mut Problems) {
        for disk in &config.disks {
            let mut tell = |leaf: &str, error: GuestError| found.push((format!("disks.{}.{leaf}", disk.id), error));
            // What is there already is neither fetched nor made again. A volume is asked about only for its source.
            let is_file = disk.backend == DiskBackend::Sparse;
            if disk.source.is_none() && (moment == Moment::Booting || !is_file) {
                continue;
            }
            if self.guest.is_some_and(|guest| is_there(guest, disk).unwrap_or(true)) {
                continue;
            }
            if let Some(source) = &disk.source
                && let Some(error) = source_problem(self.images, disk, source)
            {
                tell("source", error);
            }
            if moment != Moment::Booting
                && let Some(error) = self.size_problem(disk)
            {
                tell("size", error);
            }
        }
        if let Some(error) = loader_problem(self.images, config) {
            found.push((format!("disks.{}.source", config.disks[0].id), error));
        }
    }

    /// Asks the file system of a new disk whether it takes a file of that size.
    fn size_problem(self, disk: &DiskConfig) -> Option<GuestError> {
        let size = disk.size.filter(|_| disk.backend == DiskBackend::Sparse)?;
        let directory = disk.path.as_deref().and_then(Path::parent).unwrap_or(self.store.root());
        let error = can_hold(directory, size.bytes()).err()?;
        Some(
            GuestError::user(format!("disk `{}`: `{}` cannot hold a file of {size}: {error}", disk.id, directory.display()))
                .hint("make the disk smaller, or put the datastore on another file system"),
        )
    }

    /// The ports of the host that a guest which does not run will listen on.
    fn ports(self, config: &GuestConfig, moment: Moment, found: &mut Problems) {
        if self.guest.is_some_and(|guest| supervisor_of(guest).is_some()) {
            return;
        }
        let patience = if moment == Moment::Booting { PORT_PATIENCE } else { Duration::ZERO };
        for nic in &config.nics {
            for (at, forward) in nic.forwards.iter().enumerate() {
                if let Some(error) = self.port_problem(forward, patience) {
                    found.push((format!("nics.{}.forwards.#{at}.host_port", nic.id), error));
                }
            }
        }
    }

    /// Returns why a port of the host cannot be forwarded, once nobody gives it up within `patience`.
    pub fn port_problem(self, forward: &Forward, patience: Duration) -> Option<GuestError> {
        let address = forward.host();
        let started = Instant::now();
        let (error, user) = loop {
            let error = listen(forward.proto, address).err()?;
            let user = match error.kind() {
                io::ErrorKind::AddrInUse => self.user_of(forward.proto, address),
                _ => PortUser::Unknown,
            };
            if error.kind() != io::ErrorKind::AddrInUse || !user.may_be_ending() || started.elapsed() >= patience {
                break (error, user);
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let port = format!("port {} of the host, which leads to port {} of the guest,", address.port(), forward.guest_port);
        Some(match error.kind() {
            io::ErrorKind::AddrInUse => {
                let (user, hint) = user.words();
                GuestError::user(format!("{port} is in use{user}")).hint(hint)
            }
            io::ErrorKind::PermissionDenied => GuestError::user(format!("{port} is not for this user: {error}"))
                .hint("ports below 1024 are the system's: take a higher one"),
            io::ErrorKind::AddrNotAvailable => {
                GuestError::user(format!("`{}` is not an address of this host: {error}", address.ip()))
            }
            _ => GuestError::user(format!("{port} cannot be used: {error}")),
        })
    }

    /// Returns the holder of a port.
    fn user_of(self, proto: ForwardProto, address: SocketAddr) -> PortUser {
        let proto = if proto == ForwardProto::Tcp { "tcp" } else { "udp" };
        let word = format!("{proto} ");
        let holds = |run: &RunState| {
            run.forwards.iter().any(|told| {
                let host = told.strip_prefix(&word).and_then(|rest| rest.split(' ').next());
                host.and_then(|host| host.parse::<SocketAddr>().ok()).is_some_and(|host| host.port() == address.port())
            })
        };
        for name in self.store.names().unwrap_or_default() {
            let guest = self.store.directory_of(&name);
            if RunState::load(&guest.state_file()).is_some_and(|run| holds(&run)) && supervisor_of(&guest).is_some() {
                return PortUser::Guest(name);
            }
        }
        listener_at(proto, address.port()).map_or(PortUser::Unknown, PortUser::Program)
    }
}

impl PortUser {
    /// Whether the port may be free in a moment: nobody listens there any more, or an engine or a connector whose
    /// supervisor is gone does.
    fn may_be_ending(&self) -> bool {
        match self {
            Self::Guest(_) => false,
            Self::Program(listener) => listener.program == env!("CARGO_PKG_NAME"),
            Self::Unknown => true,
        }
    }

    /// Returns it in words, and what to do about it.
    fn words(&self) -> (String, String) {
        let other = "set another `host_port`";
        match self {
            Self::Guest(name) => (format!(" by guest `{name}`"), format!("{other}, or stop the other: `vmctl stop {name}`")),
            Self::Program(Listener { pid, program }) => (format!(" by `{program}` (process {pid})"), other.to_owned()),
            Self::Unknown => (String::new(), other.to_owned()),
        }
    }
}

/// Listens on a port for a moment.
fn listen(proto: ForwardProto, address: SocketAddr) -> io::Result<()> {
    match proto {
        ForwardProto::Tcp => TcpListener::bind(address).map(drop),
        ForwardProto::Udp => UdpSocket::bind(address).map(drop),
    }
}

fn source_problem(images: &KnownImages<'_>, disk: &DiskConfig, source: &str) -> Option<GuestError> {
    if is_image_path(source) {
        let path = Path::new(source);
        let error = std::fs::metadata(path).err().filter(|error| error.kind() == io::ErrorKind::NotFound);
        return error.map(|_| no_such_file(&format!("disk `{}`", disk.id), path));
    }
    match images.find(source) {
        Known::Nowhere(error) => Some(error.about(&format!("disk `{}`", disk.id))),
        Known::Elsewhere if is_url(source) && disk.checksum.is_none() => {
            let message = format!("disk `{}`: there is no checksum to hold `{source}` to", disk.id);
            Some(GuestError::user(message).hint("add `checksum = \"sha256:HEX\"`, as its publisher gives it"))
        }
        Known::Elsewhere | Known::Here(_) => None,
    }
}

/// Returns an image that the guest's loader cannot boot. Of a guest that has a kernel of its own, no image is booted.
fn loader_problem(images: &KnownImages<'_>, config: &GuestConfig) -> Option<GuestError> {
    let first = config.disks.first().filter(|disk| disk.path.is_none())?;
    let source = first.source.as_deref().filter(|source| !is_image_path(source) && !is_url(source))?;
    if config.engine != EngineKind::Embedded || config.kernel.is_some() {
        return None;
    }
    match images.find(source) {
        Known::Here(facts) => unbootable(source, &facts),
        _ => None,
    }
}

/// Returns why the embedded engine's boot menu does not boot an image.
fn unbootable(source: &str, facts: &Facts) -> Option<GuestError> {
    match facts.loader.as_deref()? {
        "grub" => None,
        "kernel" => Some(
            GuestError::user(format!("image `{source}` has no boot menu: it boots with the kernel that comes with it"))
                .hint(format!("`vmctl launch {source} NAME` makes a guest with that kernel")),
        ),
        loader => Some(not_for_embedded(source, loader)),
    }
}

/// Returns an image that boots with a loader of bhyve's.
pub fn not_for_embedded(image: &str, loader: &str) -> GuestError {
    GuestError::user(format!("image `{image}` boots with `{loader}`, and the engine `embedded` has no such loader"))
        .hint("`vmctl image list --all` shows what each image needs; bhyve, on FreeBSD, has all loaders")
}

/// Returns memory that the host has not.
fn memory_problem(config: &GuestConfig) -> Option<(String, GuestError)> {
    if config.memory_overcommit {
        return None;
    }
    let total = total_memory().filter(|total| config.memory.bytes() > *total)?;
    let total = ByteSize::from_bytes(total >> 20 << 20);
    let message = format!("{} of memory is more than this host has, which is {total}", config.memory);
    let hint = "make it less, or insist with `memory.overcommit = true`";
    Some(("memory.size".into(), GuestError::user(message).hint(hint)))
}

/// Returns what a host with so much free memory should know of a guest that is started; it is started all the same.
pub fn memory_warning(config: &GuestConfig) -> Option<String> {
    let free = crate::host::memory::available_memory().filter(|free| config.memory.bytes() > *free)?;
    let free = ByteSize::from_bytes(free >> 20 << 20);
    let warns = !config.memory_overcommit;
    warns.then(|| format!("{} may use {} of memory, and {free} are available on this host now", config.name, config.memory))
}
