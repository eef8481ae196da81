//! A datastore and the guests in it. The layout is documented in docs/datastore.md.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::diagnostic::nearest;
use crate::config::{DatastoreConfig, EngineKind, GUEST_FILE, GUESTS_DIR, NamePattern};
use crate::host::files::{abandoned, make_directory, private_directory, sweep, sync_directory, temporary_of, write_atomically};

use super::error::{GuestError, Result};
use super::events::{self, EventKind};
use super::identity::short_hash;
use super::launcher::supervisor_of;
use super::lock::{GuestLock, Holder, Role, Turn, Waiting};
use super::provision;
use super::state::{GuestState, Phase, STATE_FILE, settled_engine};

/// The longest path that fits in `sockaddr_un` on every platform that we know, without its zero byte (FreeBSD: 104).
const SOCKET_PATH_LIMIT: usize = 100;
/// What the directory of a guest that is being made begins with, and of one that is being removed.
const HIDDEN: [&str; 2] = [".new-", ".gone-"];
/// The copy that an editor is given begins with this, and the guest's name.
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

/// What a guest is at, as far as its files tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Nobody has it.
    Stopped,
    /// Nobody has it, and it must not be started by itself.
    Failed,
    /// A supervisor has it.
    Supervised(Phase),
    /// A command changes it at this moment.
    Busy,
}

impl Status {
    /// One word.
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
    /// Whether a supervisor has it.
    pub fn is_active(&self) -> bool {
        matches!(self, Status::Supervised(_))
    }
}

impl Store {
    /// The store in a datastore's directory; sockets whose path would be too long go to `runtime`.
    pub fn new(datastore: &DatastoreConfig, runtime: &Path) -> Store {
        Store { root: datastore.path.clone(), runtime: runtime.to_owned(), waiting: Waiting::default() }
    }

    /// The same; who waits for another command says so.
    pub fn telling(self, waiting: Waiting) -> Store {
        Store { waiting, ..self }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn guests_dir(&self) -> PathBuf {
        self.root.join(GUESTS_DIR)
    }

    /// What was settled, for each guest that is there, to run it when its file does not say.
    pub fn settled_engines(&self) -> BTreeMap<String, EngineKind> {
        let names = self.names().unwrap_or_default().into_iter();
        names
            .filter_map(|name| settled_engine(&self.guests_dir().join(&name).join(STATE_FILE)).map(|engine| (name, engine)))
            .collect()
    }

    /// The names of all guests, sorted. A datastore that does not exist yet has none.
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
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The directory that a guest of this name has or would have.
    pub fn place(&self, name: &str) -> GuestDir {
        self.at(name, self.guests_dir().join(name))
    }

    fn at(&self, name: &str, path: PathBuf) -> GuestDir {
        GuestDir { name: name.to_owned(), path, runtime: self.runtime.clone(), waiting: self.waiting.clone() }
    }

    /// A guest that exists.
    pub fn guest(&self, name: &str) -> Result<GuestDir> {
        if !name.starts_with('.') && !name.is_empty() && !name.contains('/') {
            let guest = self.place(name);
            if guest.path.is_dir() {
                return Ok(guest);
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

    /// The guests that names and globs mean: each once, in the order of the names. A name or a glob that means none is
    /// an error of its own, so that a command can go on with the others.
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
            let compiled: NamePattern =
                pattern.parse().map_err(|error| GuestError::user(format!("`{pattern}` is no pattern: {error}")))?;
            let before = seen.len();
            let matching: Vec<_> = names.iter().filter(|name| compiled.matches(name)).cloned().collect();
            if matching.is_empty() {
                let error = GuestError::user(format!("no guest matches `{pattern}`")).hint("`vmctl list` shows the guests");
                chosen.push(Err(error));
            }
            for name in matching {
                if seen.insert(name.clone()) {
                    chosen.push(Ok(self.place(&name)));
                }
            }
            debug_assert!(seen.len() >= before);
        }
        Ok(chosen)
    }

    /// Makes what is missing of the datastore's directories.
    fn make(&self) -> Result<()> {
        let path = self.guests_dir();
        make_directory(&path, 0o755).map_err(|error| GuestError::io("make the datastore", &path, error))
    }

    /// Begins a new guest in a hidden directory; [`NewGuest::commit`] gives it its name, dropping it undoes all.
    pub fn begin(&self, name: &str) -> Result<NewGuest> {
        self.make()?;
        let _turn = self.turn()?;
        self.sweep_hidden();
        let place = self.place(name);
        if fs::symlink_metadata(&place.path).is_ok() {
            return Err(already_there(name));
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
        let mut new = NewGuest { store: self.clone(), guest, place, committed: false, lock: None };
        // With the lock, it is seen to be at work when the turn is another's.
        new.lock = Some(new.guest.lock(Role::Command)?);
        make(&new.guest.disks_dir(), 0o700)?;
        Ok(new)
    }

    /// Held for the instants in which a guest gets its name: two of them never take one name.
    fn turn(&self) -> Result<Turn> {
        Turn::wait(&self.guests_dir().join(".lock"), "makes or renames a guest", &self.waiting)
    }

    /// Who is making a guest of this name at this moment.
    fn maker_of(&self, name: &str) -> Option<u32> {
        let begun = format!("{}{name}-", HIDDEN[0]);
        let is_it = |entry: &fs::DirEntry| {
            let entry = entry.file_name();
            entry.to_str().and_then(|entry| entry.strip_prefix(&begun)).is_some_and(|pid| pid.parse::<u32>().is_ok())
        };
        let mut makers = fs::read_dir(self.guests_dir()).into_iter().flatten().flatten().filter(is_it);
        makers.find_map(|entry| Some(GuestLock::holder(&entry.path().join(LOCK_FILE))?.pid))
    }

    /// The directories that killed commands left half-made or half-gone, and the locks of the dead.
    pub fn left_hidden(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.guests_dir()).into_iter().flatten().flatten();
        let hidden = entries.filter(|entry| HIDDEN.iter().any(|start| entry.file_name().to_string_lossy().starts_with(start)));
        let free = hidden.map(|entry| entry.path()).filter(|path| GuestLock::holder(&path.join(LOCK_FILE)).is_none());
        free.chain(abandoned(&self.locks_dir(), is_lock)).collect()
    }

    /// Removes what killed commands left in the datastore, if there is anything and this process may.
    pub fn sweep(&self) {
        if self.left_hidden().is_empty() {
            return;
        }
        sweep(&self.locks_dir(), is_lock);
        // Who has the turn sweeps, too.
        if let Ok(Some(_turn)) = Turn::try_take(&self.guests_dir().join(".lock")) {
            self.sweep_hidden();
        }
    }

    /// The caller has the turn.
    fn sweep_hidden(&self) {
        for path in self.left_hidden().into_iter().filter(|path| path.is_dir()) {
            if let Ok(Ok(_lock)) = GuestLock::acquire(&path.join(LOCK_FILE), Role::Command)
                && provision::sweep_volumes(&path)
            {
                let _ = remove_whole(&path);
            }
        }
    }

    /// Waits for the right to change a file that is no guest's.
    pub fn file_turn(&self, file: &Path) -> Result<Turn> {
        let path = turn_of(&self.root, &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()))?;
        Ok(Turn::wait(&path, &format!("changes `{}`", file.display()), &self.waiting)?.of_its_own())
    }

    /// Where the turns of files are, see [`GuestDir::turn`].
    fn locks_dir(&self) -> PathBuf {
        self.root.join(LOCKS_DIR)
    }

    /// Gives a stopped guest another name, by one rename. The caller holds its lock.
    pub fn rename(&self, guest: &GuestDir, name: &str) -> Result<GuestDir> {
        let _turn = self.turn()?;
        let place = self.place(name);
        if fs::symlink_metadata(&place.path).is_ok() {
            return Err(already_there(name));
        }
        let _ = fs::remove_file(guest.socket());
        fs::rename(&guest.path, &place.path).map_err(|error| GuestError::io("rename", &guest.path, error))?;
        let _ = sync_directory(&self.guests_dir());
        events::record(&place.events_log(), name, EventKind::Renamed { from: guest.name.clone() });
        Ok(place)
    }

    /// Removes a guest's directory and all in it. The caller holds its lock.
    pub fn remove(&self, guest: &GuestDir) -> Result<()> {
        let _ = fs::remove_file(guest.socket());
        // It is gone at once for everyone else; what a kill or a power cut leaves is swept by the next command.
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
/// The directory of a datastore in which turns are taken.
const LOCKS_DIR: &str = "locks";

fn turn_of(datastore: &Path, file: &Path) -> Result<PathBuf> {
    let locks = datastore.join(LOCKS_DIR);
    make_directory(&locks, 0o700).map_err(|error| GuestError::io("make", &locks, error))?;
    Ok(locks.join(format!("{}.lock", short_hash(&[&file.to_string_lossy()]))))
}

fn is_lock(name: &str) -> bool {
    name.ends_with(".lock")
}

/// Whether a name among a guest's disks is that of one that is not whole; earlier versions gave it an ending.
fn is_half_made(name: &str) -> bool {
    temporary_of(name).is_some() || name.ends_with(".raw.making")
}

/// Removes a directory, its lock last: until then nobody else takes it for one that was left behind.
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

fn already_there(name: &str) -> GuestError {
    GuestError::user(format!("a guest called `{name}` exists already"))
        .hint(format!("choose another name, or remove it with `vmctl destroy {name}`"))
}

/// A guest that is being made.
pub struct NewGuest {
    store: Store,
    guest: GuestDir,
    place: GuestDir,
    committed: bool,
    lock: Option<GuestLock>,
}

impl NewGuest {
    /// Where its files go meanwhile.
    pub fn guest(&self) -> &GuestDir {
        &self.guest
    }
    /// Where it will be.
    pub fn place(&self) -> &GuestDir {
        &self.place
    }
    /// Gives it its name: from now on it exists. Its lock is still held through what is returned.
    pub fn commit(mut self) -> Result<(GuestDir, GuestLock)> {
        let turn = self.store.turn()?;
        if fs::symlink_metadata(&self.place.path).is_ok() {
            return Err(already_there(&self.place.name));
        }
        fs::rename(&self.guest.path, &self.place.path).map_err(|error| GuestError::io("make", &self.place.path, error))?;
        self.committed = true;
        provision::keep_volumes(&self.place);
        drop(turn);
        let _ = sync_directory(self.place.path.parent().unwrap_or(Path::new("/")));
        let lock = self.lock.take().expect("taken at the beginning");
        Ok((self.place.clone(), lock))
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
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The user's file.
    pub fn file(&self) -> PathBuf {
        self.path.join(GUEST_FILE)
    }
    /// The user's file where it really is: `create --file` leaves it in its place and links to it, and what it names
    /// is relative to that place.
    pub fn config_file(&self) -> PathBuf {
        let file = self.file();
        match fs::read_link(&file) {
            Ok(target) => self.path.join(target),
            Err(_) => file,
        }
    }
    /// What the program knows.
    pub fn state_file(&self) -> PathBuf {
        self.path.join(STATE_FILE)
    }
    /// Disks that have no path of their own.
    pub fn disks_dir(&self) -> PathBuf {
        self.path.join("disks")
    }
    /// What the serial line said.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }
    /// What the engine wrote to standard error.
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }
    /// What the supervisor wrote to standard error.
    pub fn supervisor_log(&self) -> PathBuf {
        self.path.join("supervisor.log")
    }
    /// What happened.
    pub fn events_log(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }
    /// Held by who runs or changes it.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK_FILE)
    }
    /// Held by the engine too, so that its disks are not opened twice.
    pub fn lease_file(&self) -> PathBuf {
        self.path.join("engine.lock")
    }
    /// What the engine child is given.
    pub fn spec_file(&self) -> PathBuf {
        self.path.join("vmm.json")
    }

    /// What an engine child has made of the host and must undo.
    pub fn journal_file(&self) -> PathBuf {
        self.path.join("bhyve.journal")
    }

    /// Where the supervisor listens: in the directory, or under a short name in the runtime directory.
    pub fn socket(&self) -> PathBuf {
        self.socket_called("control")
    }

    /// A socket of the guest's: in the directory, or under a short name in the runtime directory.
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

    /// Makes the directory that the socket is in.
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

    /// Whether a command is making it: it has not got its name yet.
    pub fn is_being_made(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".new-"))
    }

    /// Takes its lock, or says who has it.
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

    /// Takes its lock for a change that needs it stopped; `verb` completes "cannot ... a running guest".
    pub fn lock_stopped(&self, verb: &str) -> Result<GuestLock> {
        if supervisor_of(self).is_some() {
            return Err(GuestError::user(format!("cannot {verb} a running guest"))
                .hint(format!("stop it first: `vmctl stop {}`", self.name)));
        }
        self.lock(Role::Command)
    }

    /// Waits for the right to change its file and what follows from it, whether it runs or not. Guests whose files are
    /// links to the same one have one turn together.
    pub fn turn(&self) -> Result<Turn> {
        loop {
            let path = self.turn_file()?;
            let turn = Turn::wait(&path, &format!("changes the file of `{}`", self.name), &self.waiting)?.of_its_own();
            if let Some(turn) = self.begin_turn(turn, &path)? {
                return Ok(turn);
            }
        }
    }

    /// The same, if nobody else has it.
    pub fn try_turn(&self) -> Result<Option<Turn>> {
        let path = self.turn_file()?;
        match Turn::try_take(&path)? {
            Some(turn) => self.begin_turn(turn.of_its_own(), &path),
            None => Ok(None),
        }
    }

    /// `None` when the file has another place meanwhile.
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
        // A link of the user's is followed by who writes, and not by who edits.
        for file in [fs::canonicalize(&file).unwrap_or_else(|_| file.clone()), file] {
            if let (Some(directory), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) {
                sweep(directory, |found| temporary_of(found).is_some_and(|of| of == name || of.starts_with(&edited)));
                self.keep_broken_off(directory, &edited);
            }
        }
        Ok(Some(turn))
    }

    /// Copies of the file whose editors' commands are gone: who has the turn is the only one to edit. What somebody typed
    /// is kept.
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

    /// Puts the copy of an edit that was given up where it is kept, and says where.
    pub fn keep_edited(&self, copy: &Path) -> Option<PathBuf> {
        let kept = self.kept_edit();
        let text = fs::read(copy).ok()?;
        write_atomically(&kept, &text, 0o600).ok()?;
        let _ = fs::remove_file(copy);
        Some(kept)
    }

    /// The text of the last edit that was given up, or broken off.
    pub fn kept_edit(&self) -> PathBuf {
        self.path.join("edited.toml")
    }

    /// The right to change a file of its directory, for an instant.
    pub fn short_turn(&self, file: &str) -> Result<Turn> {
        let path = turn_of(self.datastore(), &self.path.join(file))?;
        Ok(Turn::wait(&path, &format!("changes `{file}` of `{}`", self.name), &self.waiting)?.of_its_own())
    }

    /// Named after the file, since it may be that of several guests, and its own directory is the user's.
    fn turn_file(&self) -> Result<PathBuf> {
        let file = self.config_file();
        turn_of(self.datastore(), &fs::canonicalize(&file).unwrap_or(file))
    }

    fn datastore(&self) -> &Path {
        self.path.ancestors().nth(2).unwrap_or(&self.path)
    }

    /// Where the copy is that an editor is given: beside the file, and with its ending, so that editors know its kind.
    pub fn edited_file(&self) -> PathBuf {
        self.config_file().with_file_name(format!("{EDITED}{}-{}.toml", self.name, std::process::id()))
    }

    /// What commands that are gone have left half-written in its directory.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let mut left = abandoned(&self.path, |name| temporary_of(name).is_some());
        left.extend(abandoned(&self.disks_dir(), is_half_made));
        left
    }

    fn sweep(&self) {
        if !self.is_being_made() {
            provision::keep_volumes(self);
        }
        sweep(&self.path, |name| temporary_of(name).is_some());
        sweep(&self.disks_dir(), is_half_made);
    }

    /// What the program knows of it.
    pub fn state(&self) -> Result<GuestState> {
        GuestState::load(&self.state_file(), &self.name)
    }

    /// What it is at: one look at the lock, and the state for the rest.
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
        // A name that begins like it is another one.
        make(&store, "a-1");
        drop(store.begin("a-1-2").expect("begins"));
        store.sweep();
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
