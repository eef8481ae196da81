//! A cache of its own for each test, and what the tests look at.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use vmctl::testing::fetch::digest::Algorithm;
use vmctl::testing::fetch::net::Patience;
use vmctl::testing::fetch::{CatalogueSource, Digest, Fetcher, Kind, Obtained, Progress, Request, Silent};

/// Little patience, so that a test of a bad server is over soon; enough for a busy machine.
pub const PATIENCE: Patience = Patience { stall: Duration::from_secs(2), tries: 3, pause: Duration::from_millis(10) };

pub struct World {
    dir: tempfile::TempDir,
}

/// Bytes that do not compress, and are the same every time.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// An error as the user sees it: the chain and the hint in one line.
pub fn said(error: &vmctl::testing::fetch::FetchError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    error.next_step().map_or(text.clone(), |hint| format!("{text}; hint: {hint}"))
}

impl World {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    pub fn fetcher<'a>(&self, progress: &'a dyn Progress) -> Fetcher<'a> {
        Fetcher::open(&self.cache(), Vec::new(), progress).expect("a cache").patience(PATIENCE)
    }

    /// Fetches a URL that must have this digest.
    pub fn fetch(&self, url: &str, digest: Option<&Digest>) -> Result<Obtained, String> {
        let request = Request { checksum: digest.cloned(), ..Request::new(Kind::Image, url) };
        self.fetcher(&Silent).obtain(&request).map_err(|error| said(&error))
    }

    /// Fetches a name of this catalogue.
    pub fn fetch_name(&self, catalogue: &str, kind: Kind, name: &str) -> Result<Obtained, String> {
        std::fs::write(self.path("catalogue.toml"), catalogue).unwrap();
        let at = self.path("catalogue.toml").to_str().unwrap().to_owned();
        let sources = vec![CatalogueSource { id: "test".into(), at }];
        let fetcher = Fetcher::open(&self.cache(), sources, &Silent).expect("a cache").patience(PATIENCE);
        fetcher.obtain(&Request::new(kind, name)).map_err(|error| said(&error))
    }

    /// The names of what is in a directory of the cache, locks aside.
    pub fn entries(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.cache().join(directory)) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    /// Nothing is kept, and nothing is left behind.
    pub fn is_clean(&self) -> bool {
        self.entries("objects").is_empty() && self.entries("work").is_empty() && self.partial_downloads().is_empty()
    }

    /// The parts of downloads that hold something.
    pub fn partial_downloads(&self) -> Vec<PathBuf> {
        let part = |name: String| self.cache().join("partial").join(name);
        let partial_downloads = self.entries("partial").into_iter().filter(|name| name.ends_with(".part")).map(part);
        partial_downloads.filter(|path| std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)).collect()
    }

    /// vmctl with this cache.
    pub fn vmctl(&self, arguments: &[&str]) -> Command {
        let host = self.path("vmctl.toml");
        if !host.exists() {
            std::fs::write(&host, format!("cache_dir = \"{}\"\n", self.cache().display())).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.arg("--config").arg(host).args(arguments).env("NO_COLOR", "1").current_dir(self.dir.path());
        command
    }

    /// Runs it: status, standard output, standard error.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.vmctl(arguments).output().expect("vmctl runs");
        (status.code().unwrap_or(-1), String::from_utf8(stdout).expect("text"), String::from_utf8(stderr).expect("text"))
    }
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
