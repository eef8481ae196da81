//! The systemd unit that starts guests with the host and stops them in order (systemd.service(5), systemd.unit(5)).
//!
//! The unit is a oneshot that remains after its start, so that the supervisors stay in its control group. When it is
//! stopped, systemd runs `ExecStop=` first and leaves the group alone meanwhile; `KillMode=process` keeps it from sending
//! SIGTERM to all supervisors at once afterwards, should `down` have been cut off: what is left then is stopped by the
//! signal that every process gets at the very end of a shutdown. `TimeoutStopSec=` is what `down` is told and some more.
//! No controller is touched and so nothing is delegated.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::files::write_atomically;

/// The name of the unit.
pub const UNIT: &str = "vmctl-autostart.service";

/// Whose service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// The host's.
    System,
    /// The one of this user, which runs while they are logged in, or always with lingering.
    User,
}

/// What stands in the unit.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The program, absolute.
    pub program: PathBuf,
    /// Options before the verb.
    pub options: Vec<String>,
    /// How long all guests together may take to stop.
    pub stop_timeout: Duration,
    /// Whose it is.
    pub manager: Manager,
}

impl Unit {
    /// Its text.
    pub fn text(&self) -> String {
        let options: String = self.options.iter().map(|option| format!(" {}", quoted(option))).collect();
        let program = quoted(&self.program.to_string_lossy()) + &options;
        let seconds = self.stop_timeout.as_secs().max(1);
        let (network, target) = match self.manager {
            Manager::System => (
                "Wants=network-online.target\nAfter=network-online.target local-fs.target remote-fs.target\n",
                "multi-user.target",
            ),
            Manager::User => ("", "default.target"),
        };
        format!(
            "# Written by `vmctl autostart enable`, which replaces it; own settings go into a drop-in (systemctl edit).\n\
             [Unit]\n\
             Description=Guests of vmctl that start with the host\n\
             Documentation=man:vmctl(1)\n\
             {network}\n\
             [Service]\n\
             Type=oneshot\n\
             RemainAfterExit=yes\n\
             ExecStart={program} autostart start\n\
             ExecStop={program} down --timeout {seconds}s\n\
             # A guest that does not start leaves the others running, and the unit active: they are to be stopped, too.\n\
             SuccessExitStatus=1 2\n\
             KillMode=process\n\
             TimeoutStartSec=infinity\n\
             TimeoutStopSec={}s\n\
             \n\
             [Install]\n\
             WantedBy={target}\n",
            seconds + 15
        )
    }

    /// Where it belongs. `config_home` is the user's configuration directory.
    pub fn path(manager: Manager, config_home: &Path) -> PathBuf {
        match manager {
            Manager::System => Path::new("/etc/systemd/system").join(UNIT),
            Manager::User => config_home.join("systemd/user").join(UNIT),
        }
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        write_atomically(path, self.text().as_bytes(), 0o644)
    }
}

/// A word of a command line: in quotes, with what systemd would expand doubled (systemd.service(5), COMMAND LINES).
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// Whether systemd runs this host (sd_booted(3)).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Runs systemctl(1); an error is what it said.
pub fn systemctl(manager: Manager, arguments: &[&str]) -> Result<(), String> {
    let user: &[&str] = if manager == Manager::User { &["--user"] } else { &[] };
    run("systemctl", user.iter().chain(arguments).copied())
}

/// Has the user's service manager run from the host's boot on, logged in or not (loginctl(1)).
pub fn enable_linger() -> Result<(), String> {
    run("loginctl", ["enable-linger"].into_iter())
}

fn run<'a>(program: &str, arguments: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let arguments: Vec<&str> = arguments.collect();
    let output = Command::new(program)
        .args(&arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {program}(1): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).lines().collect::<Vec<_>>().join(" ");
    Err(format!("`{program} {}` failed: {}", arguments.join(" "), words.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_line_reach_the_program_as_they_are() {
        assert_eq!(quoted("/a b/$x%y\"z\\"), "\"/a b/$$x%%y\\\"z\\\\\"");
    }

    #[test]
    fn the_unit_gives_down_its_time_and_stops_nothing_by_itself() {
        let unit = Unit {
            program: "/usr/local/bin/vmctl".into(),
            options: vec!["--datastore".into(), "/srv/my guests".into()],
            stop_timeout: Duration::from_secs(180),
            manager: Manager::System,
        };
        let text = unit.text();
        for line in [
            "ExecStart=\"/usr/local/bin/vmctl\" \"--datastore\" \"/srv/my guests\" autostart start",
            "ExecStop=\"/usr/local/bin/vmctl\" \"--datastore\" \"/srv/my guests\" down --timeout 180s",
            "TimeoutStopSec=195s",
            "RemainAfterExit=yes",
            "KillMode=process",
            "WantedBy=multi-user.target",
        ] {
            assert!(text.lines().any(|other| other == line), "no `{line}` in\n{text}");
        }
        assert!(Unit { manager: Manager::User, ..unit }.text().contains("WantedBy=default.target"));
    }
}
