//! A datastore and the guests in it. The layout is documented in docs/datastore.md.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::diagnostic::nearest;
use crate::config::{DatastoreConfig, EngineKind, GUEST_FILE, GUESTS_DIR};
use crate::host::files::{private_directory, sync_directory};

use super::error::{GuestError, Result};
use super::events::{self, EventKind};
use super::identity::short_hash;
use super::launcher::supervisor_of;
use super::lock::{GuestLock, Holder, Role};
use super::provision;
use super::state::{GuestState, Phase, STATE_FILE, settled_engine};

/// The longest path that fits in `sockaddr_un` on every platform that we know, without its zero byte (FreeBSD: 104).
const SOCKET_PATH_LIMIT: usize = 100;

/// A datastore.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    runtime: PathBuf,
}

/// The directory of one guest.
#[derive(Debug, Clone)]
pub struct GuestDir {
    name: String,
    path: PathBuf,
    runtime: PathBuf,
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
        Store { root: datastore.path.clone(), runtime: runtime.to_owned() }
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
        GuestDir { name: name.to_owned(), path: self.guests_dir().join(name), runtime: self.runtime.clone() }
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
            if !pattern.contains(['*', '?', '[', '{']) {
                if seen.insert(pattern.clone()) {
                    chosen.push(self.guest(pattern));
                }
                continue;
            }
            let names = match &mut all {
                Some(names) => names,
                none => none.insert(self.names()?),
            };
            let glob = globset::Glob::new(pattern)
                .map_err(|error| GuestError::user(format!("`{pattern}` is no pattern: {}", error.kind())))?
                .compile_matcher();
            let before = seen.len();
            let matching: Vec<_> = names.iter().filter(|name| glob.is_match(name.as_str())).cloned().collect();
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
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .map_err(|error| GuestError::io("make the datastore", &path, error))
    }

    /// Begins a new guest in a hidden directory; [`NewGuest::commit`] gives it its name, dropping it undoes all.
    pub fn begin(&self, name: &str) -> Result<NewGuest> {
        self.make()?;
        let guard = self.lock()?;
        self.sweep();
        let place = self.place(name);
        if fs::symlink_metadata(&place.path).is_ok() {
            return Err(already_there(name));
        }
        let hidden = self.guests_dir().join(format!(".new-{name}-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o755).create(&hidden).map_err(|error| GuestError::io("make", &hidden, error))?;
        let guest = GuestDir { name: name.to_owned(), path: hidden, runtime: self.runtime.clone() };
        let mut new = NewGuest { guest, place, committed: false, lock: None, _guard: guard };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(new.guest.disks_dir())
            .map_err(|error| GuestError::io("make", &new.guest.disks_dir(), error))?;
        new.lock = Some(new.guest.lock(Role::Command)?);
        Ok(new)
    }

    /// Held while a guest is made or gets another name: two of them never take one name.
    fn lock(&self) -> Result<File> {
        let path = self.guests_dir().join(".lock");
        let file = File::create(&path).map_err(|error| GuestError::io("open the lock", &path, error))?;
        file.lock().map_err(|error| GuestError::io("lock", &path, error))?;
        Ok(file)
    }

    /// Removes what killed commands left half-made or half-gone.
    fn sweep(&self) {
        for entry in fs::read_dir(self.guests_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if (name.starts_with(".new-") || name.starts_with(".gone-"))
                && GuestLock::holder(&entry.path().join("lock")).is_none()
                && provision::sweep_volumes(&entry.path())
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Gives a stopped guest another name. The caller holds its lock.
    pub fn rename(&self, guest: &GuestDir, name: &str) -> Result<GuestDir> {
        let _guard = self.lock()?;
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
        // It is gone at once for everyone else; what a power cut leaves is swept by the next `create`.
        let hidden = self.guests_dir().join(format!(".gone-{}-{}", guest.name, std::process::id()));
        fs::rename(&guest.path, &hidden).map_err(|error| GuestError::io("remove", &guest.path, error))?;
        let _ = sync_directory(&self.guests_dir());
        fs::remove_dir_all(&hidden).map_err(|error| GuestError::io("remove", &hidden, error))
    }
}

fn already_there(name: &str) -> GuestError {
    GuestError::user(format!("a guest called `{name}` exists already"))
        .hint(format!("choose another name, or remove it with `vmctl destroy {name}`"))
}

/// A guest that is being made.
pub struct NewGuest {
    guest: GuestDir,
    place: GuestDir,
    committed: bool,
    lock: Option<GuestLock>,
    _guard: File,
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
        fs::rename(&self.guest.path, &self.place.path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => already_there(&self.place.name),
            _ => GuestError::io("make", &self.place.path, error),
        })?;
        self.committed = true;
        provision::keep_volumes(&self.place);
        let _ = sync_directory(self.place.path.parent().unwrap_or(Path::new("/")));
        let lock = self.lock.take().expect("taken at the beginning");
        Ok((self.place.clone(), lock))
    }
}

impl Drop for NewGuest {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.guest.path);
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
        self.path.join("lock")
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
            Ok(lock) => Ok(lock),
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
        let short = GuestDir { name: "a".into(), path: "/var/lib/vmctl/guests/a".into(), runtime: runtime.clone() };
        assert_eq!(short.socket(), Path::new("/var/lib/vmctl/guests/a/control.sock"));
        let long = GuestDir { name: "a".into(), path: PathBuf::from("/x".repeat(60)), runtime };
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
