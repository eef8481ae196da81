//! A datastore and the guests in it. The layout is documented in docs/datastore.md.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::diagnostic::nearest;
use crate::config::paths::FLEETS_DIR;
use crate::config::{DatastoreConfig, EngineKind, GUEST_FILE, GUESTS_DIR, NamePattern, PatternError, TEMPLATES_DIR};
use crate::host::files::{abandoned, make_directory, private_directory, sweep, sync_directory, temporary_of, write_atomically};

use super::error::{GuestError, Result};
use super::events::{self, EventKind};
use super::identity::short_hash;
use super::launcher::supervisor_of;
use super::lock::{GuestLock, Holder, Role, Turn, Waiting};
use super::provision;
use super::state::{GuestState, Phase, STATE_FILE, settled_engine};

/// Maximum length of a path in `sockaddr_un` on all known platforms, without its zero byte (FreeBSD: 104).
const SOCKET_PATH_LIMIT: usize = 100;
/// Beginning of the directory names of a guest that is being made, and of one that is being removed.
const HIDDEN: [&str; 2] = [".new-", ".gone-"];
/// Beginning of the name of an editor's copy, before the guest's name.
const EDITED: &str = ".edit-";

/// A datastore.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    runtime: PathBuf,
    waiting: Waiting,
}

/// The directory of one guest.
#[derive(Debug, Clone)]
pub struct GuestDir {
    name: String,
    path: PathBuf,
    runtime: PathBuf,
    waiting: Waiting,
}

/// Status of a guest, as far as its files tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// No process has it.
    Stopped,
    /// No process has it, and it must not be started automatically.
    Failed,
    /// A supervisor has it.
    Supervised(Phase),
    /// A command is changing it.
    Busy,
}

impl Status {
    /// Returns the status as one word.
    pub fn word(&self) -> &'static str {
        match self {
            Status::Stopped => "stopped",
            Status::Failed => "failed",
            Status::Supervised(Phase::Starting) => "starting",
            Status::Supervised(Phase::Running) => "running",
            Status::Supervised(Phase::Stopping) => "stopping",
            Status::Supervised(Phase::Waiting) => "waiting",
            Status::Busy => "busy",
        }
    }
    /// Returns whether a supervisor has it.
    pub fn is_active(&self) -> bool {
        matches!(self, Status::Supervised(_))
    }
}

impl Store {
    /// Creates the store in a datastore's directory; sockets whose path would be too long go to `runtime`.
    pub fn new(datastore: &DatastoreConfig, runtime: &Path) -> Store {
        Store { root: datastore.path.clone(), runtime: runtime.to_owned(), waiting: Waiting::default() }
    }

    /// Sets the receiver of messages about waiting for another command.
    pub fn telling(self, waiting: Waiting) -> Store {
        Store { waiting, ..self }
    }

    /// Returns the directory of the datastore.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn guests_dir(&self) -> PathBuf {
        self.root.join(GUESTS_DIR)
    }

    /// Returns the fixed default engine of each existing guest.
    pub fn settled_engines(&self) -> BTreeMap<String, EngineKind> {
        let names = self.names().unwrap_or_default().into_iter();
        names
            .filter_map(|name| settled_engine(&self.guests_dir().join(&name).join(STATE_FILE)).map(|engine| (name, engine)))
            .collect()
    }

    /// Returns the names of all guests, sorted. A missing datastore has none.
    pub fn names(&self) -> Result<Vec<String>> {
        let path = self.guests_dir();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(GuestError::io("read the datastore", &path, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| GuestError::io("read the datastore", &path, error))?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
                && is_guest(&entry.path())
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Returns the directory that a guest of this name has or would have.
    pub fn directory_of(&self, name: &str) -> GuestDir {
        self.at(name, self.guests_dir().join(name))
    }

    fn at(&self, name: &str, path: PathBuf) -> GuestDir {
        GuestDir { name: name.to_owned(), path, runtime: self.runtime.clone(), waiting: self.waiting.clone() }
    }

    /// Returns a guest that exists.
    pub fn guest(&self, name: &str) -> Result<GuestDir> {
        if !name.starts_with('.') && !name.is_empty() && !name.contains('/') {
            let guest = self.directory_of(name);
            if is_guest(&guest.path) {
                return Ok(guest);
            }
            if fs::symlink_metadata(&guest.path).is_ok() {
                return Err(GuestError::user(format!("no guest is called `{name}`")).hint(is_foreign(&guest.path)));
            }
        }
        let names = self.names()?;
        let error = GuestError::user(format!("no guest is called `{name}`"));
        Err(match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if names.is_empty() => error.hint(format!("there are no guests in `{}` yet", self.root.display())),
            None => error.hint("`vmctl list` shows the guests"),
        })
    }

    /// Returns the guests that names and globs select: each once, in the order of the names. A name or a glob without a
    /// match is an error of its own, so that a command can continue with the others.
    pub fn select(&self, patterns: &[String]) -> Result<Vec<Result<GuestDir>>> {
        let mut chosen: Vec<Result<GuestDir>> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut all: Option<Vec<String>> = None;
        for pattern in patterns {
            if !NamePattern::is_pattern(pattern) {
                if seen.insert(pattern.clone()) {
                    chosen.push(self.guest(pattern));
                }
                continue;
            }
            let names = match &mut all {
                Some(names) => names,
                none => none.insert(self.names()?),
            };
            let compiled: NamePattern = pattern.parse().map_err(|error: PatternError| GuestError::user(error.to_string()))?;
            let before = seen.len();
            let matching: Vec<_> = names.iter().filter(|name| compiled.matches(name)).cloned().collect();
            if matching.is_empty() {
                let error = GuestError::user(format!("no guest matches `{pattern}`")).hint("`vmctl list` shows the guests");
                chosen.push(Err(error));
            }
            for name in matching {
                if seen.insert(name.clone()) {
                    chosen.push(Ok(self.directory_of(&name)));
                }
            }
            debug_assert!(seen.len() >= before);
        }
        Ok(chosen)
    }

    /// Makes the missing directories of the datastore.
    fn make(&self) -> Result<()> {
        let path = self.guests_dir();
        make_directory(&path, 0o755).map_err(|error| GuestError::io("make the datastore", &path, error))
    }

    /// Begins a new guest in a hidden directory. [`NewGuest::commit`] gives it its name; dropping it undoes everything.
    pub fn begin(&self, name: &str) -> Result<NewGuest> {
        self.make()?;
        let _turn = self.turn()?;
        self.sweep_hidden();
        let destination = self.directory_of(name);
        if fs::symlink_metadata(&destination.path).is_ok() {
            return Err(already_there(&destination));
        }
        if let Some(pid) = self.maker_of(name) {
            return Err(GuestError::user(format!("another command (process {pid}) is making a guest called `{name}`"))
                .hint("try again when it is done, or choose another name"));
        }
        let hidden = self.guests_dir().join(format!("{}{name}-{}", HIDDEN[0], std::process::id()));
        let make = |path: &Path, mode| {
            fs::DirBuilder::new().mode(mode).create(path).map_err(|error| GuestError::io("make", path, error))
        };
        make(&hidden, 0o755)?;
        let guest = self.at(name, hidden);
        let mut new = NewGuest { store: self.clone(), guest, destination, committed: false, lock: None };
        // The lock shows that it is being worked on when another process has the turn.
        new.lock = Some(new.guest.lock(Role::Command)?);
        make(&new.guest.disks_dir(), 0o700)?;
        Ok(new)
    }

    /// Takes the turn for giving a guest its name, so that two guests never take the same name.
    fn turn(&self) -> Result<Turn> {
        Turn::wait(&self.guests_dir().join(".lock"), "makes or renames a guest", &self.waiting)
    }

    /// Returns the process that is making a guest of this name.
    fn maker_of(&self, name: &str) -> Option<u32> {
        let begun = format!("{}{name}-", HIDDEN[0]);
        let is_it = |entry: &fs::DirEntry| {
            let entry = entry.file_name();
            entry.to_str().and_then(|entry| entry.strip_prefix(&begun)).is_some_and(|pid| pid.parse::<u32>().is_ok())
        };
        let mut makers = fs::read_dir(self.guests_dir()).into_iter().flatten().flatten().filter(is_it);
        makers.find_map(|entry| Some(GuestLock::holder(&entry.path().join(LOCK_FILE))?.pid))
    }

    /// Returns the unfinished directories of killed commands, and the locks of dead processes.
    pub fn left_hidden(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.guests_dir()).into_iter().flatten().flatten();
        let hidden = entries.filter(|entry| HIDDEN.iter().any(|start| entry.file_name().to_string_lossy().starts_with(start)));
        let free = hidden.map(|entry| entry.path()).filter(|path| GuestLock::holder(&path.join(LOCK_FILE)).is_none());
        let halves = self.shared_dirs().into_iter().flat_map(|directory| abandoned(&directory, is_half_written));
        free.chain(abandoned(&self.locks_dir(), is_lock)).chain(halves).collect()
    }

    /// Removes the remains of killed commands in the datastore, if there are any and this process may.
    pub fn sweep(&self) {
        if self.left_hidden().is_empty() {
            return;
        }
        sweep(&self.locks_dir(), is_lock);
        self.shared_dirs().iter().for_each(|directory| sweep(directory, is_half_written));
        // A process that has the turn sweeps too.
        if let Ok(Some(_turn)) = Turn::try_take(&self.guests_dir().join(".lock")) {
            self.sweep_hidden();
        }
    }

    /// Sweeps hidden directories. The caller has the turn.
    fn sweep_hidden(&self) {
        for path in self.left_hidden().into_iter().filter(|path| path.is_dir()) {
            if let Ok(Ok(_lock)) = GuestLock::acquire(&path.join(LOCK_FILE), Role::Command)
                && provision::sweep_volumes(&path)
            {
                let _ = remove_whole(&path);
            }
        }
    }

    /// Waits for the right to change a file that belongs to no guest, and removes what a killed command left of it.
    pub fn file_turn(&self, file: &Path) -> Result<Turn> {
        let real = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let path = turn_of(&self.root, &real)?;
        let turn = Turn::wait(&path, &format!("changes `{}`", file.display()), &self.waiting)?.of_its_own();
        if let (Some(directory), Some(name)) = (real.parent(), real.file_name().and_then(|name| name.to_str())) {
            sweep(directory, |found| temporary_of(found) == Some(name));
        }
        Ok(turn)
    }

    /// Returns the directories of the datastore with files of several guests.
    fn shared_dirs(&self) -> Vec<PathBuf> {
        let fleets = fs::read_dir(self.root.join(FLEETS_DIR)).into_iter().flatten().flatten().map(|entry| entry.path());
        [self.root.clone(), self.root.join(TEMPLATES_DIR)].into_iter().chain(fleets).collect()
    }

    /// Returns the directory of file turns, see [`GuestDir::turn`].
    fn locks_dir(&self) -> PathBuf {
        self.root.join(LOCKS_DIR)
    }

    /// Renames a stopped guest atomically. The caller holds its lock.
    pub fn rename(&self, guest: &GuestDir, name: &str) -> Result<GuestDir> {
        let _turn = self.turn()?;
        let destination = self.directory_of(name);
        if fs::symlink_metadata(&destination.path).is_ok() {
            return Err(already_there(&destination));
        }
        let _ = fs::remove_file(guest.socket());
        fs::rename(&guest.path, &destination.path).map_err(|error| GuestError::io("rename", &guest.path, error))?;
        let _ = sync_directory(&self.guests_dir());
        events::record(&destination.events_log(), name, EventKind::Renamed { from: guest.name.clone() });
        Ok(destination)
    }

    /// Removes a guest's directory and its contents. The caller holds its lock.
    pub fn remove(&self, guest: &GuestDir) -> Result<()> {
        let _ = fs::remove_file(guest.socket());
        // It is gone at once for all other processes. The next command sweeps the remains of a kill or a power cut.
        let hidden = self.guests_dir().join(format!("{}{}-{}", HIDDEN[1], guest.name, std::process::id()));
        fs::rename(&guest.path, &hidden).map_err(|error| GuestError::io("remove", &guest.path, error))?;
        let _ = sync_directory(&self.guests_dir());
        remove_whole(&hidden).map_err(|error| {
            GuestError::host(format!(
                "`{}` is gone, but not all of its files: cannot remove `{}`: {error}",
                guest.name,
                hidden.display()
            ))
            .hint("the next command tries again")
        })
    }
}

/// The name of a guest's lock in its directory.
const LOCK_FILE: &str = "lock";
/// The directory of a datastore for turns.
const LOCKS_DIR: &str = "locks";

fn turn_of(datastore: &Path, file: &Path) -> Result<PathBuf> {
    let locks = datastore.join(LOCKS_DIR);
    make_directory(&locks, 0o700).map_err(|error| GuestError::io("make", &locks, error))?;
    Ok(locks.join(format!("{}.lock", short_hash(&[&file.to_string_lossy()]))))
}

fn is_lock(name: &str) -> bool {
    name.ends_with(".lock")
}

/// Returns whether a name among a guest's disks is that of an incomplete one. Earlier versions used a suffix.
fn is_half_made(name: &str) -> bool {
    temporary_of(name).is_some() || name.ends_with(".raw.making")
}

/// Returns whether a name is that of a file before it gets its own name.
fn is_half_written(name: &str) -> bool {
    temporary_of(name).is_some()
}

/// Removes a directory, with its lock last: until then no other process takes it for an abandoned one.
fn remove_whole(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() == LOCK_FILE => {}
            false => fs::remove_file(entry.path())?,
        }
    }
    fs::remove_dir_all(path)
}

/// Returns whether this is a directory of a guest: it has its file or its state. Anything else among the guests belongs to
/// somebody else, who may have put it there by mistake, and is neither adopted nor removed.
fn is_guest(path: &Path) -> bool {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    is_directory && [GUEST_FILE, STATE_FILE].iter().any(|file| fs::symlink_metadata(path.join(file)).is_ok())
}

/// Returns a hint for a path among the guests that is no guest.
fn is_foreign(path: &Path) -> String {
    format!("`{}` is no guest's directory: it has neither {GUEST_FILE} nor {STATE_FILE}", path.display())
}

fn already_there(guest: &GuestDir) -> GuestError {
    let name = &guest.name;
    if !is_guest(&guest.path) {
        let message = format!("`{}` is there already, and is no guest", guest.path.display());
        return GuestError::user(message).hint("choose another name for the guest, or take it away yourself");
    }
    GuestError::user(format!("a guest called `{name}` exists already"))
        .hint(format!("choose another name, or remove it with `vmctl destroy {name}`"))
}

/// A guest that is being made.
pub struct NewGuest {
    store: Store,
    guest: GuestDir,
    destination: GuestDir,
    committed: bool,
    lock: Option<GuestLock>,
}

impl NewGuest {
    /// Returns its present, hidden directory.
    pub fn guest(&self) -> &GuestDir {
        &self.guest
    }
    /// Returns its final directory.
    pub fn destination(&self) -> &GuestDir {
        &self.destination
    }
    /// Gives it its name: from now on it exists. Its lock stays held through the returned lock.
    pub fn commit(mut self) -> Result<(GuestDir, GuestLock)> {
        let turn = self.store.turn()?;
        if fs::symlink_metadata(&self.destination.path).is_ok() {
            return Err(already_there(&self.destination));
        }
        fs::rename(&self.guest.path, &self.destination.path)
            .map_err(|error| GuestError::io("make", &self.destination.path, error))?;
        self.committed = true;
        provision::keep_volumes(&self.destination);
        drop(turn);
        let _ = sync_directory(self.destination.path.parent().unwrap_or(Path::new("/")));
        let lock = self.lock.take().expect("taken at the beginning");
        Ok((self.destination.clone(), lock))
    }
}

impl Drop for NewGuest {
    fn drop(&mut self) {
        if !self.committed {
            let _ = remove_whole(&self.guest.path);
        }
    }
}

impl GuestDir {
    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Returns its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Returns the user's file.
    pub fn file(&self) -> PathBuf {
        self.path.join(GUEST_FILE)
    }
    /// Returns the real path of the user's file: `create --file` leaves the file at its path and links to it, and paths
    /// in it are relative to that.
    pub fn config_file(&self) -> PathBuf {
        let file = self.file();
        match fs::read_link(&file) {
            Ok(target) => self.path.join(target),
            Err(_) => file,
        }
    }
    /// Returns the path of the state.
    pub fn state_file(&self) -> PathBuf {
        self.path.join(STATE_FILE)
    }
    /// Returns the directory of disks that have no path of their own.
    pub fn disks_dir(&self) -> PathBuf {
        self.path.join("disks")
    }
    /// Returns the log of the serial line.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }
    /// Returns the log of the engine's standard error.
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }
    /// Returns the log of the supervisor's standard error.
    pub fn supervisor_log(&self) -> PathBuf {
        self.path.join("supervisor.log")
    }
    /// Returns the event log.
    pub fn events_log(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }
    /// Returns the lock of the process that runs or changes it.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK_FILE)
    }
    /// Returns the lease, which the engine holds too, so that its disks are not opened twice.
    pub fn lease_file(&self) -> PathBuf {
        self.path.join("engine.lock")
    }
    /// Returns the specification for the engine child.
    pub fn spec_file(&self) -> PathBuf {
        self.path.join("vmm.json")
    }

    /// Returns the path of the control socket: in the directory, or with a short name in the runtime directory.
    pub fn socket(&self) -> PathBuf {
        self.socket_called("control")
    }

    /// Returns the path of a socket of the guest: in the directory, or with a short name in the runtime directory.
    pub fn socket_called(&self, what: &str) -> PathBuf {
        let here = self.path.join(format!("{what}.sock"));
        if here.as_os_str().len() <= SOCKET_PATH_LIMIT {
            return here;
        }
        let path = self.path.to_string_lossy();
        self.runtime.join(match what {
            "control" => format!("{}.sock", short_hash(&[&path])),
            _ => format!("{}.sock", short_hash(&[&path, what])),
        })
    }

    /// Makes the directory of the socket.
    pub fn prepare_socket(&self) -> Result<PathBuf> {
        let socket = self.socket();
        if let Some(parent) = socket.parent()
            && parent != self.path
        {
            private_directory(parent).map_err(|error| GuestError::io("use the runtime directory", parent, error))?;
        }
        if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(GuestError::user(format!("`{}` is too long for a socket's path", socket.display()))
                .hint("set XDG_RUNTIME_DIR to a shorter directory"));
        }
        Ok(socket)
    }

    /// Returns whether a command is making it, so that it has no name yet.
    pub fn is_being_made(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".new-"))
    }

    /// Takes its lock, or reports its holder.
    pub fn lock(&self, role: Role) -> Result<GuestLock> {
        if !self.path.is_dir() {
            return Err(GuestError::user(format!("no guest is called `{}`", self.name)));
        }
        match GuestLock::acquire(&self.lock_file(), role)? {
            Ok(lock) => {
                self.sweep();
                Ok(lock)
            }
            Err(Some(Holder { role: Role::Supervisor, pid, .. })) => {
                Err(GuestError::user(format!("`{}` is running already (supervisor {pid})", self.name)))
            }
            Err(Some(Holder { pid, .. })) => {
                Err(GuestError::user(format!("another command (process {pid}) is at work on `{}`", self.name))
                    .hint("try again when it is done"))
            }
            Err(None) => {
                Err(GuestError::user(format!("another command is at work on `{}`", self.name)).hint("try again when it is done"))
            }
        }
    }

    /// Takes its lock for a change that needs it stopped. `verb` completes "cannot ... a running guest".
    pub fn lock_stopped(&self, verb: &str) -> Result<GuestLock> {
        if supervisor_of(self).is_some() {
            return Err(GuestError::user(format!("cannot {verb} a running guest"))
                .hint(format!("stop it first: `vmctl stop {}`", self.name)));
        }
        self.lock(Role::Command)
    }

    /// Waits for the right to change its file and everything that follows from it, whether it runs or not. Guests whose
    /// files are links to the same one share a turn.
    pub fn turn(&self) -> Result<Turn> {
        loop {
            let path = self.turn_file()?;
            let turn = Turn::wait(&path, &format!("changes the file of `{}`", self.name), &self.waiting)?.of_its_own();
            if let Some(turn) = self.begin_turn(turn, &path)? {
                return Ok(turn);
            }
        }
    }

    /// Takes the turn if it is free.
    pub fn try_turn(&self) -> Result<Option<Turn>> {
        let path = self.turn_file()?;
        match Turn::try_take(&path)? {
            Some(turn) => self.begin_turn(turn.of_its_own(), &path),
            None => Ok(None),
        }
    }

    /// Begins the turn. Returns `None` if the file has moved meanwhile.
    fn begin_turn(&self, turn: Turn, path: &Path) -> Result<Option<Turn>> {
        if !self.path.is_dir() {
            return Err(GuestError::user(format!("no guest is called `{}`", self.name)));
        }
        if self.turn_file()? != path {
            return Ok(None);
        }
        self.sweep();
        let file = self.config_file();
        let edited = format!("{EDITED}{}-", self.name);
        // The user's link is followed by commands that write, and not by the editor.
        for file in [fs::canonicalize(&file).unwrap_or_else(|_| file.clone()), file] {
            if let (Some(directory), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) {
                sweep(directory, |found| temporary_of(found).is_some_and(|of| of == name || of.starts_with(&edited)));
                self.keep_broken_off(directory, &edited);
            }
        }
        Ok(Some(turn))
    }

    /// Keeps the copies of interrupted edits: only the holder of the turn edits, so other copies are abandoned. The
    /// user's text is kept.
    fn keep_broken_off(&self, directory: &Path, edited: &str) {
        let is_copy = |name: &str| {
            let pid = name.strip_prefix(edited).and_then(|rest| rest.strip_suffix(".toml"));
            pid.is_some_and(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let text = fs::read(self.config_file()).ok();
        for copy in abandoned(directory, is_copy) {
            let _ = match fs::read(&copy).ok() == text {
                true => fs::remove_file(&copy).ok(),
                false => self.keep_edited(&copy).map(drop),
            };
        }
    }

    /// Moves the copy of an edit that was given up to the path for kept edits, and returns it.
    pub fn keep_edited(&self, copy: &Path) -> Option<PathBuf> {
        let kept = self.kept_edit();
        let text = fs::read(copy).ok()?;
        write_atomically(&kept, &text, 0o600).ok()?;
        let _ = fs::remove_file(copy);
        Some(kept)
    }

    /// Returns the path of the text of the last edit that was given up or interrupted.
    pub fn kept_edit(&self) -> PathBuf {
        self.path.join("edited.toml")
    }

    /// Waits for the right to change a file of its directory, for a moment.
    pub fn short_turn(&self, file: &str) -> Result<Turn> {
        let path = turn_of(self.datastore(), &self.path.join(file))?;
        Ok(Turn::wait(&path, &format!("changes `{file}` of `{}`", self.name), &self.waiting)?.of_its_own())
    }

    /// Returns the path of the turn, named after the file, since several guests may share it, and its own directory
    /// belongs to the user.
    fn turn_file(&self) -> Result<PathBuf> {
        let file = self.config_file();
        turn_of(self.datastore(), &fs::canonicalize(&file).unwrap_or(file))
    }

    fn datastore(&self) -> &Path {
        self.path.ancestors().nth(2).unwrap_or(&self.path)
    }

    /// Returns the path of the copy for an editor: beside the file, and with its suffix, so that editors recognise its
    /// type.
    pub fn edited_file(&self) -> PathBuf {
        self.config_file().with_file_name(format!("{EDITED}{}-{}.toml", self.name, std::process::id()))
    }

    /// Returns the half-written files in its directory whose commands are gone.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let mut left = abandoned(&self.path, is_half_written);
        left.extend(abandoned(&self.disks_dir(), is_half_made));
        left
    }

    fn sweep(&self) {
        if !self.is_being_made() {
            provision::keep_volumes(self);
        }
        sweep(&self.path, is_half_written);
        sweep(&self.disks_dir(), is_half_made);
    }

    /// Reads its state.
    pub fn state(&self) -> Result<GuestState> {
        GuestState::load(&self.state_file(), &self.name)
    }

    /// Returns its status, from the lock and the state.
    pub fn status(&self, state: &GuestState) -> Status {
        match GuestLock::holder(&self.lock_file()) {
            Some(Holder { role: Role::Supervisor, .. }) => {
                Status::Supervised(state.run.as_ref().map_or(Phase::Starting, |run| run.phase))
            }
            Some(_) => Status::Busy,
            None if state.failed.is_some() => Status::Failed,
            None => Status::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let config = DatastoreConfig { id: "default".into(), path: dir.path().join("ds") };
        let store = Store::new(&config, &dir.path().join("run"));
        (dir, store)
    }

    fn make(store: &Store, name: &str) -> GuestDir {
        let new = store.begin(name).expect("begins");
        GuestState::new(name).save(&new.guest().state_file()).expect("saves");
        new.commit().expect("commits").0
    }

    #[test]
    fn a_guest_exists_once_it_is_committed_and_is_gone_without_a_trace_otherwise() {
        let (_dir, store) = store();
        drop(store.begin("a").expect("begins"));
        assert!(store.names().expect("lists").is_empty());
        assert!(store.guest("a").is_err());
        make(&store, "a");
        assert_eq!(store.names().expect("lists"), ["a"]);
        assert!(store.begin("a").err().expect("refused").to_string().contains("exists already"));
        let left: Vec<_> = fs::read_dir(store.guests_dir()).expect("lists").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn a_guest_that_takes_long_to_make_holds_up_nobody_but_who_wants_its_name() {
        let (_dir, store) = store();
        let long = store.begin("a").expect("begins");
        make(&store, "b");
        let error = store.begin("a").err().expect("refused").to_string();
        assert!(error.contains(&format!("(process {}) is making a guest called `a`", std::process::id())), "{error}");
        // A name with this name as its beginning is another one.
        make(&store, "a-1");
        drop(store.begin("a-1-2").expect("begins"));
        store.sweep();
        GuestState::new("a").save(&long.guest().state_file()).expect("saves");
        long.commit().expect("commits");
        assert_eq!(store.names().expect("lists"), ["a", "a-1", "b"]);
    }

    #[test]
    fn what_a_killed_create_left_is_swept_by_the_next() {
        let (_dir, store) = store();
        make(&store, "a");
        let left = store.guests_dir().join(".new-b-1");
        fs::create_dir(&left).expect("makes");
        fs::write(left.join("lock"), "{\"pid\":1,\"boot_id\":\"x\",\"role\":\"command\"}").expect("writes");
        make(&store, "c");
        assert!(!left.exists());
    }

    #[test]
    fn globs_mean_each_guest_once_and_what_means_none_is_said() {
        let (_dir, store) = store();
        for name in ["web1", "web2", "db"] {
            make(&store, name);
        }
        let words = |patterns: &[&str]| -> Vec<String> {
            let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
            let chosen = store.select(&patterns).expect("selects");
            chosen.into_iter().map(|guest| guest.map_or_else(|e| e.to_string(), |g| g.name().to_owned())).collect()
        };
        assert_eq!(words(&["web2", "web*"]), ["web2", "web1"]);
        assert_eq!(words(&["x*", "dbb", "db"]), ["no guest matches `x*`", "no guest is called `dbb`", "db"]);
        assert_eq!(words(&["{db,web1}"]), ["db", "web1"]);
    }

    #[test]
    fn a_name_never_leads_out_of_the_store() {
        let (_dir, store) = store();
        make(&store, "a");
        for name in ["..", ".", "", "../guests/a", "a/", "/etc"] {
            assert!(store.guest(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_long_directory_has_its_socket_in_the_runtime_directory() {
        let runtime = PathBuf::from("/run/vmctl");
        let at = |path: PathBuf| GuestDir { name: "a".into(), path, runtime: runtime.clone(), waiting: Waiting::default() };
        let short = at("/var/lib/vmctl/guests/a".into());
        assert_eq!(short.socket(), Path::new("/var/lib/vmctl/guests/a/control.sock"));
        let long = at(PathBuf::from("/x".repeat(60)));
        assert!(long.socket().starts_with("/run/vmctl"));
        assert!(long.socket().as_os_str().len() < SOCKET_PATH_LIMIT);
    }

    #[test]
    fn a_supervised_guest_is_told_from_a_busy_one() {
        let (_dir, store) = store();
        let guest = make(&store, "a");
        let state = guest.state().expect("loads");
        assert_eq!(guest.status(&state), Status::Stopped);
        let lock = guest.lock(Role::Command).expect("free");
        assert_eq!(guest.status(&state), Status::Busy);
        drop(lock);
        let _lock = guest.lock(Role::Supervisor).expect("free");
        assert_eq!(guest.status(&state), Status::Supervised(Phase::Starting));
        assert!(guest.lock(Role::Supervisor).expect_err("taken").to_string().contains("running already"));
        assert!(guest.lock_stopped("rename").expect_err("taken").to_string().contains("cannot rename a running guest"));
    }
}
