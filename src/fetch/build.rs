//! Images that are built on this host of a system's own packages.
//!
//! The recipes are scripts of the tree (`scripts/debian-image`, `scripts/freebsd-image`), which `make` uses too; they
//! are in the program and run by sh(1). Each leaves `root.img` in a directory, and beside it what its loader needs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::catalogue::{Build, Recipe};
use super::digest::{Algorithm, Digest};
use super::error::{FetchError, Result};
use super::progress::Job;

const DEBIAN: &str = include_str!("../../scripts/debian-image");
const FREEBSD: &str = include_str!("../../scripts/freebsd-image");
/// Lines of the script's words that are kept for the message of its failure.
const LAST_LINES: usize = 12;

/// What the script leaves.
pub const DISK: &str = "root.img";
/// The kernel beside the disk, where the recipe has one.
pub const KERNEL: &str = "vmlinuz";
/// The initial RAM disk beside the disk, where the recipe has one.
pub const INITRD: &str = "initrd.img";

/// A program that a recipe needs, and the package that brings it.
type Tool = (&'static str, &'static str);

fn tools(recipe: Recipe) -> &'static [Tool] {
    match recipe {
        Recipe::Debian => &[("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("apt-get", "apt")],
        Recipe::FreeBsd => &[("fetch", "base"), ("makefs", "base"), ("mkimg", "base"), ("tar", "base")],
    }
}

impl Build {
    /// Names what is built: the same script with the same packages.
    pub fn key(&self) -> String {
        let text = format!("{}\n{:?}\n{}\n{:?}", self.script(), self.packages, self.disk, self.release);
        format!("built-{}", Digest::of(Algorithm::Sha256, text.as_bytes()).hex())
    }

    fn script(&self) -> &'static str {
        match self.recipe {
            Recipe::Debian => DEBIAN,
            Recipe::FreeBsd => FREEBSD,
        }
    }

    /// Why it cannot be built here, if it cannot.
    pub fn check(&self) -> Result<()> {
        if self.recipe == Recipe::FreeBsd && !cfg!(target_os = "freebsd") {
            return Err(FetchError::user(
                "an image of FreeBSD's distribution sets is built on FreeBSD only: it needs its makefs(8) and mkimg(1)",
            )
            .hint("fetch the release's own image instead: `vmctl fetch image freebsd-15.1`"));
        }
        let missing: Vec<Tool> = tools(self.recipe).iter().copied().filter(|(program, _)| find(program).is_none()).collect();
        if !missing.is_empty() {
            let programs: Vec<_> = missing.iter().map(|(program, _)| format!("`{program}`")).collect();
            let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
            let error = FetchError::user(format!("the image cannot be built here: {} missing", programs.join(", ")));
            let debian = find("apt-get").is_some();
            return Err(error.hint(match debian {
                true => format!("apt-get install {}", packages.join(" ")),
                false => "this recipe knows only Debian's packages: build it on Debian, and import it here".into(),
            }));
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(FetchError::user("the image cannot be built by this user: device nodes and owners need root")
                .hint("root can, with `sudo vmctl fetch image NAME`, but root's cache and yours are two: take an image that is fetched, like `debian-13`, or make the guest as root"));
        }
        Ok(())
    }

    /// Builds into `dir`.
    pub fn run(&self, dir: &Path, job: &Job<'_>) -> Result<()> {
        self.check()?;
        job.step("building", None, 0);
        let mut child = Command::new("sh")
            .args(["-s", "--"])
            .arg(dir)
            .env("PATH", search_path())
            .env("IMAGE_PACKAGES", self.packages.join(","))
            .env("IMAGE_BYTES", self.disk.to_string())
            .env("IMAGE_RELEASE", self.release.as_deref().unwrap_or(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| FetchError::host("cannot run `sh`").because(error))?;
        let mut stdin = child.stdin.take().expect("piped");
        // A script that ends early does not read all of itself.
        let _ = stdin.write_all(self.script().as_bytes());
        drop(stdin);
        self.follow(child, job)
    }

    /// Waits for the script, and hands on what it says.
    fn follow(&self, mut child: Child, job: &Job<'_>) -> Result<()> {
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut last: Vec<String> = Vec::new();
        let broken_off = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    last.push(line.chars().take(300).collect());
                    if last.len() > LAST_LINES {
                        last.remove(0);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
            }
            if let Err(error) = job.check() {
                break Some(error);
            }
        };
        if let Some(error) = broken_off {
            // To all that the script runs: a shell looks at its own signals only when its command has ended.
            let group = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
            return Err(error);
        }
        let status = child.wait().map_err(|error| FetchError::host("cannot wait for `sh`").because(error))?;
        let _ = reader.join();
        if status.success() {
            return Ok(());
        }
        Err(FetchError::host(format!("the image could not be built ({status})")).because(last.join("\n")))
    }
}

/// The user's path, and where system tools are.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_freebsd_sets_is_refused_elsewhere_with_the_reason() {
        let build = Build { recipe: Recipe::FreeBsd, packages: Vec::new(), disk: 1 << 30, release: None };
        if !cfg!(target_os = "freebsd") {
            assert!(build.check().unwrap_err().to_string().contains("on FreeBSD only"));
        }
    }

    #[test]
    fn other_packages_make_another_image() {
        let build = |packages: &[&str]| Build {
            recipe: Recipe::Debian,
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            disk: 2 << 30,
            release: None,
        };
        assert_eq!(build(&["sudo"]).key(), build(&["sudo"]).key());
        assert_ne!(build(&["sudo"]).key(), build(&[]).key());
    }
}
