//! rc.conf(5) through sysrc(8), and the two files of `name=value` lines that sysrc(8) cannot write because their names
//! have dots: sysctl.conf(5) and loader.conf(5).

use std::path::{Path, PathBuf};

use super::error::{self, HostError};
use super::files::write_atomically;
use super::program::{self, Cause};

/// The rc.conf of the system below a directory; `/` is this one.
#[derive(Debug, Clone)]
pub struct RcConf {
    root: PathBuf,
}

impl RcConf {
    /// Opens the rc.conf of the system below `root`.
    pub fn of(root: &Path) -> RcConf {
        RcConf { root: root.to_owned() }
    }

    fn arguments<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let root = self.root.to_str().unwrap_or("/");
        let mut arguments = if root == "/" { Vec::new() } else { vec!["-R", root] };
        arguments.extend(rest);
        arguments
    }

    /// Returns the value of a variable, defaults included, or `None` if it is not set. For an unknown one `sysrc -i`
    /// prints nothing, and fails since 13 (`usr.sbin/sysrc/sysrc`).
    pub fn get(&self, name: &str) -> Result<Option<String>, HostError> {
        match program::run("sysrc", &self.arguments(&["-i", "-n", name])) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|value| !value.is_empty())),
            Err(error) if matches!(&error.cause, Cause::Failed { words, .. } if words.is_empty()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the words of a variable.
    pub fn words(&self, name: &str) -> Result<Vec<String>, HostError> {
        Ok(self.get(name)?.unwrap_or_default().split_whitespace().map(str::to_owned).collect())
    }

    /// Returns whether a variable has a value that rc.subr(8) accepts as yes.
    pub fn is_yes(&self, name: &str) -> Result<bool, HostError> {
        let value = self.get(name)?.unwrap_or_default().to_ascii_lowercase();
        Ok(matches!(value.as_str(), "yes" | "true" | "on" | "1"))
    }

    /// Sets a variable. sysrc(8) ends with 0 if it could not write (`usr.sbin/sysrc/sysrc`, f_sysrc_set), so its
    /// message is an error unless the value is set.
    pub fn set(&self, name: &str, value: &str) -> Result<(), HostError> {
        let assignment = format!("{name}={value}");
        let words = program::run_for_stderr("sysrc", &self.arguments(&[&assignment]))?;
        if self.get(name)?.unwrap_or_default() == value.trim() {
            return Ok(());
        }
        Err(HostError::user(format!("`sysrc {}` did not set it: {words}", program::typed(&assignment, &[]))))
    }

    /// Adds words to a variable that does not have them yet.
    pub fn add(&self, name: &str, words: &str) -> Result<(), HostError> {
        program::run("sysrc", &self.arguments(&[&format!("{name}+={words}")])).map(drop).map_err(Into::into)
    }
}

/// Returns the value of a `name=value` line, without quotes. The last one counts.
pub fn value_in<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| value_of_line(line, name)).next_back()
}

fn value_of_line<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = line.split_once('=')?;
    if key.trim() != name {
        return None;
    }
    let value = value.split('#').next().unwrap_or_default().trim();
    Some(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

/// Returns the text with this line: it replaces the last line of the name, or is added. Nothing else changes.
pub fn with_line(text: &str, name: &str, line: &str) -> String {
    let last = text.lines().enumerate().filter(|(_, line)| value_of_line(line, name).is_some()).last();
    let mut lines: Vec<&str> = text.lines().collect();
    match last {
        Some((at, _)) => lines[at] = line,
        None => lines.push(line),
    }
    lines.join("\n") + "\n"
}

/// Puts a line into a file. The file is replaced atomically and keeps its mode.
pub fn put_line(path: &Path, name: &str, line: &str) -> Result<(), HostError> {
    use std::os::unix::fs::PermissionsExt;
    let (text, mode) = match std::fs::read_to_string(path) {
        Ok(text) => (text, std::fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (String::new(), 0o644),
        Err(error) => return Err(error::io("read", path, &error)),
    };
    write_atomically(path, with_line(&text, name, line).as_bytes(), mode).map_err(|error| error::io("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_name_counts_and_is_replaced() {
        let text = "# boot\nvmm_load=\"NO\"\npptdevs=\"1/0/0\" # card\nvmm_load=\"YES\"\n";
        assert_eq!(value_in(text, "vmm_load"), Some("YES"));
        assert_eq!(value_in(text, "pptdevs"), Some("1/0/0"));
        assert_eq!(value_in(text, "load"), None);
        let after = with_line(text, "vmm_load", "vmm_load=\"X\"");
        assert_eq!(after, "# boot\nvmm_load=\"NO\"\npptdevs=\"1/0/0\" # card\nvmm_load=\"X\"\n");
        assert_eq!(with_line("a=1", "b", "b=2"), "a=1\nb=2\n");
        assert_eq!(with_line("", "b", "b=2"), "b=2\n");
    }

    #[test]
    fn a_file_keeps_its_mode_when_a_line_is_put_into_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sysctl.conf");
        put_line(&path, "a.b", "a.b=1").expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets");
        put_line(&path, "a.b", "a.b=2").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "a.b=2\n");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    }
}
