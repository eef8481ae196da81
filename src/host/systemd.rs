//! The systemd unit that starts guests with the host and stops them in order (systemd.service(5), systemd.unit(5)).
//!
//! The unit is a oneshot that remains after its start, so that the supervisors stay in its control group. When it is
//! stopped, systemd first runs `ExecStop=` and leaves the group alone meanwhile. `KillMode=process` keeps systemd from
//! then sending SIGTERM to all supervisors at once, if `down` was cut off: the remaining guests are stopped by the
//! signal that every process gets at the end of a shutdown. `TimeoutStopSec=` is the time-out of `down` and some more.
//! No controller is used, so nothing is delegated.

//!
//! A user's manager is itself a unit of the system, `user@UID.service`, and is killed with all its processes if it
//! takes longer to stop than that unit's `TimeoutStopSec=`. It is found through `XDG_RUNTIME_DIR`, which sessions
//! without pam_systemd(8) (sudo, cron) do not have; the directory is where that module puts it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::environment;
use super::error::HostError;
use super::files::write_atomically;

/// The name of the unit.
pub const UNIT: &str = "vmctl-autostart.service";

/// Time that `ExecStop=` has in addition to the time-out of `down`.
pub const AFTER_DOWN: Duration = Duration::from_secs(15);

/// A service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// The host's.
    System,
    /// The one of this user, which runs while the user is logged in, or always with lingering.
    User,
}

/// Contents of the unit.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The program, absolute.
    pub program: PathBuf,
    /// Options before the verb.
    pub options: Vec<String>,
    /// Time-out for all guests together to stop.
    pub stop_timeout: Duration,
    /// The manager that runs it.
    pub manager: Manager,
}

impl Unit {
    /// Returns the text of the unit.
    pub fn text(&self) -> String {
        let options: String = self.options.iter().map(|option| format!(" {}", quoted(option))).collect();
        let program = quoted(&self.program.to_string_lossy()) + &options;
        let seconds = self.stop_timeout.as_secs().max(1);
        let all = (self.stop_timeout + AFTER_DOWN).as_secs().max(1);
        let (network, target) = match self.manager {
            Manager::System => (
                "Wants=network-online.target\nAfter=network-online.target local-fs.target remote-fs.target\n",
                "multi-user.target",
            ),
            Manager::User => ("", "default.target"),
        };
        // Switches are gone after a boot. One that cannot be made keeps no guest from another.
        let switches = match self.manager {
            Manager::System => format!("ExecStartPre=-{program} switch create --all --yes\n"),
            Manager::User => String::new(),
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
             {switches}ExecStart={program} autostart start\n\
             ExecStop={program} down --all --timeout {seconds}s\n\
             # A guest that does not start leaves the others running, and the unit active: they are to be stopped, too.\n\
             SuccessExitStatus=1 2\n\
             KillMode=process\n\
             TimeoutStartSec=infinity\n\
             TimeoutStopSec={all}s\n\
             \n\
             [Install]\n\
             WantedBy={target}\n"
        )
    }

    /// Returns the path of the unit; `None` for a user who has no home (systemd.unit(5), USER UNIT SEARCH PATH).
    pub fn path(manager: Manager) -> Option<PathBuf> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Some(match manager {
            Manager::System => environment::path("/etc/systemd/system").join(UNIT),
            Manager::User => {
                let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))?;
                config.join("systemd/user").join(UNIT)
            }
        })
    }

    /// Writes the unit.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        write_atomically(path, self.text().as_bytes(), 0o644)
    }
}

/// Quotes a word of a command line, and doubles the characters that systemd would expand (systemd.service(5), COMMAND
/// LINES).
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

/// Returns whether systemd runs this host (sd_booted(3)).
pub fn is_running() -> bool {
    environment::path("/run/systemd/system").is_dir()
}

/// Runs systemctl(1). The error is its message.
pub fn systemctl(manager: Manager, arguments: &[&str]) -> Result<(), HostError> {
    let user: &[&str] = if manager == Manager::User { &["--user"] } else { &[] };
    run("systemctl", user.iter().chain(arguments).copied()).map(drop)
}

/// Makes the user's service manager run from the host's boot on, logged in or not (loginctl(1)), and waits until it
/// runs.
pub fn enable_linger() -> Result<(), HostError> {
    let uid = nix::unistd::geteuid().to_string();
    // Without polkit only root may do that. But root may have done so before.
    let lingers = || run("loginctl", ["show-user", &uid, "--property=Linger"].into_iter()).is_ok_and(|said| said == "Linger=yes");
    if !lingers() {
        run("loginctl", ["enable-linger"].into_iter())?;
    }
    let until = Instant::now() + MANAGER_PATIENCE;
    while is_running() && runtime_directory().is_some_and(|path| !path.join("systemd/private").exists()) && Instant::now() < until
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Returns the stop time-out of the user's service manager, `user@.service` with all its processes; `None` if it is not
/// known or has no limit.
pub fn time_of_user_manager() -> Option<Duration> {
    let unit = format!("user@{}.service", nix::unistd::geteuid());
    time_span(run("systemctl", ["show", &unit, "--property=TimeoutStopUSec"].into_iter()).ok()?.strip_prefix("TimeoutStopUSec=")?)
}

/// Time-out for a manager that is being started.
const MANAGER_PATIENCE: Duration = Duration::from_secs(10);

/// Returns the directory in which this user's service manager listens, unless the environment has it already.
fn runtime_directory() -> Option<PathBuf> {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(path) if !path.is_empty() => None,
        _ => Some(environment::path("/run/user").join(nix::unistd::geteuid().to_string())),
    }
}

/// Parses a time span as systemctl(1) prints it (systemd.time(7)): `2min`, `1min 30s`, `infinity`.
fn time_span(text: &str) -> Option<Duration> {
    let part = |word: &str| {
        let (number, unit) = word.split_at(word.find(|c: char| c.is_ascii_alphabetic())?);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
    };
    text.split(' ').map(part).try_fold(Duration::ZERO, |sum, part| sum.checked_add(part?))
}

/// Runs a program. Returns its output in one line.
fn run<'a>(program: &str, arguments: impl Iterator<Item = &'a str>) -> Result<String, HostError> {
    let arguments: Vec<&str> = arguments.collect();
    let mut command = Command::new(program);
    command.args(&arguments).stdin(std::process::Stdio::null());
    let owned = |path: &PathBuf| path.metadata().is_ok_and(|metadata| metadata.uid() == nix::unistd::geteuid().as_raw());
    if let Some(path) = runtime_directory().filter(owned) {
        command.env("XDG_RUNTIME_DIR", path);
    }
    let output = command.output().map_err(|error| format!("cannot run {program}(1): {error}"))?;
    let line = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().collect::<Vec<_>>().join(" ").trim().to_owned();
    match output.status.success() {
        true => Ok(line(&output.stdout)),
        false => Err(format!("`{program} {}` failed: {}", arguments.join(" "), line(&output.stderr)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_line_reach_the_program_as_they_are() {
        assert_eq!(quoted("/a b/$x%y\"z\\"), "\"/a b/$$x%%y\\\"z\\\\\"");
    }

    #[test]
    fn spans_of_time_are_read_as_systemctl_prints_them() {
        let seconds = |text| time_span(text).map(|span| span.as_secs_f64());
        assert_eq!([seconds("2min"), seconds("1min 30s"), seconds("1h 500ms")], [Some(120.0), Some(90.0), Some(3600.5)]);
        assert_eq!([seconds("infinity"), seconds(""), seconds("-1s"), seconds("1e300d"), seconds("7")], [None; 5]);
    }

    /// The user's unit has the rest of the 120 seconds of `user@.service`.
    #[test]
    fn the_packaged_units_are_those_that_autostart_enable_writes() {
        for (manager, seconds, packaged) in [
            (Manager::System, 180, include_str!("../../packaging/systemd/system/vmctl-autostart.service")),
            (Manager::User, 100, include_str!("../../packaging/systemd/user/vmctl-autostart.service")),
        ] {
            let unit =
                Unit { program: "@PROGRAM@".into(), options: Vec::new(), stop_timeout: Duration::from_secs(seconds), manager };
            let below_the_comment = |text: &str| text.split_once('\n').map(|(_, rest)| rest.to_owned());
            assert_eq!(below_the_comment(packaged), below_the_comment(&unit.text()));
        }
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
            "ExecStop=\"/usr/local/bin/vmctl\" \"--datastore\" \"/srv/my guests\" down --all --timeout 180s",
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
