//! Images that are built on this host from a system's own packages.
//!
//! The recipes are scripts of the tree (`scripts/debian-image`, `scripts/freebsd-image`), which `make` uses too. They
//! are compiled into the program and run by sh(1). Each leaves `root.img` in a directory, and beside it the files that
//! its loader needs.

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
/// Number of lines of the script's output that are kept for the message of its failure.
const LAST_LINES: usize = 12;

/// Name of the disk that the script makes.
pub const DISK: &str = "root.img";
/// Name of the kernel beside the disk, if the recipe has one.
pub const KERNEL: &str = "vmlinuz";
/// Name of the initial RAM disk beside the disk, if the recipe has one.
pub const INITRD: &str = "initrd.img";

/// A program that a recipe needs, and the package that has it.
type Tool = (&'static str, &'static str);

/// Returns the tools of a recipe. Debian's needs more where this user is not root: see the script.
fn tools(recipe: Recipe, root: bool) -> Vec<Tool> {
    match recipe {
        Recipe::Debian => {
            let mut tools = vec![("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("apt-get", "apt")];
            if !root {
                tools.push(("fakeroot", "fakeroot"));
                if !has_namespaces() {
                    tools.push(("fakechroot", "fakechroot"));
                }
            }
            tools
        }
        Recipe::FreeBsd => vec![("fetch", "base"), ("makefs", "base"), ("mkimg", "base"), ("tar", "base")],
    }
}

/// Returns whether this host gives this user a user namespace with a range of ids.
fn has_namespaces() -> bool {
    let mut command = Command::new("mmdebstrap");
    command.args(["--unshare-helper", "true"]).env("PATH", search_path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Build {
    /// Returns the key of the image: the same script with the same packages gives the same key.
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

    /// Returns an error if it cannot be built here.
    pub fn check(&self) -> Result<()> {
        if self.recipe == Recipe::FreeBsd && !cfg!(target_os = "freebsd") {
            return Err(FetchError::user(
                "an image of FreeBSD's distribution sets is built on FreeBSD only: it needs its makefs(8) and mkimg(1)",
            )
            .hint("fetch the release's own image instead: `vmctl fetch image freebsd-15.1`"));
        }
        let root = nix::unistd::geteuid().is_root();
        let missing: Vec<Tool> = tools(self.recipe, root).into_iter().filter(|(program, _)| find(program).is_none()).collect();
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
        if self.recipe == Recipe::FreeBsd && !root {
            return Err(FetchError::user("the image cannot be built by this user: owners of files need root")
                .hint("take an image that is fetched, like `freebsd-15.1`, or make the guest as root"));
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
            .env("IMAGE_VERBOSE", "1")
            .env("IMAGE_RELEASE", self.release.as_deref().unwrap_or(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| FetchError::host("cannot run `sh`").because(error))?;
        let mut stdin = child.stdin.take().expect("piped");
        // A script that ends early does not read all of its input.
        let _ = stdin.write_all(self.script().as_bytes());
        drop(stdin);
        self.follow(child, job)
    }

    /// Waits for the script, and passes on its output.
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
        let (mut last, mut progress): (Vec<String>, _) = (Vec::new(), Steps::default());
        let broken_off = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    job.line(&progress.of(&line));
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
            // Signal the whole group, since a shell handles its own signals only when its command has ended.
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

/// The step that a recipe is at: mmdebstrap(1) begins the line of each with `I:`.
#[derive(Default)]
struct Steps(String);

impl Steps {
    /// Returns what is shown for a line of the script.
    fn of(&mut self, line: &str) -> String {
        let line = line.trim();
        match line.strip_prefix("I: ") {
            Some(step) => {
                step.trim_end_matches('.').clone_into(&mut self.0);
                self.0.clone()
            }
            None if self.0.is_empty() => line.to_owned(),
            None => format!("{}: {line}", self.0),
        }
    }
}

/// Returns the user's path, and the directories of system tools.
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
    fn without_root_the_owners_of_files_need_a_tool() {
        let has = |root| tools(Recipe::Debian, root).iter().any(|(program, _)| *program == "fakeroot");
        assert!(has(false) && !has(true));
    }

    #[test]
    fn a_build_shows_its_step_and_the_last_line() {
        let mut steps = Steps::default();
        assert_eq!(steps.of("anything"), "anything");
        assert_eq!(steps.of("I: downloading packages with apt..."), "downloading packages with apt");
        assert_eq!(steps.of("Get:7 http://deb.debian.org"), "downloading packages with apt: Get:7 http://deb.debian.org");
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
