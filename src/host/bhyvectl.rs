//! bhyvectl(8): operations on a virtual machine from outside (`usr.sbin/bhyvectl/bhyvectl.c`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::program::{Cause, ProgramError, run};
use super::{environment, jail_run};

/// Maximum number of counters that are read from one answer.
const MOST_COUNTERS: usize = 4096;

/// Time-out for the device of a destroyed machine to disappear.
const GOING: Duration = Duration::from_secs(30);

/// A virtual machine of vmm(4), seen from a jail or from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its name below /dev/vmm.
    pub name: String,
    /// The jail that it is in.
    pub jail: Option<String>,
}

impl Vm {
    /// Returns whether the kernel has the machine.
    pub fn exists(&self) -> bool {
        environment::has_entry(&environment::path("/dev/vmm"), &self.name)
    }

    /// Creates an empty machine. Returns `false` when the kernel still has one of this name, which may be on its way
    /// out: destruction continues after bhyvectl(8) has ended. It removes the device first and the name last, when all
    /// memory has been freed (`sys/amd64/vmm/vmm_dev.c`, sysctl_vmm_destroy and vmmdev_destroy). bhyvectl prints `errno
    /// = 17` for EEXIST.
    pub fn create(&self) -> Result<bool, ProgramError> {
        match self.call(&["--create"]) {
            Ok(_) => Ok(true),
            Err(ProgramError { cause: Cause::Failed { words, .. }, .. })
                if words.contains("errno = 17") || words.contains("File exists") =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Destroys the machine, if it exists, and waits until its device is gone.
    pub fn destroy(&self) -> Result<(), ProgramError> {
        if !self.exists() {
            return Ok(());
        }
        match self.call(&["--destroy"]) {
            Ok(_) => {}
            // Another process has destroyed it, and it is not gone yet.
            Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if is_going(&words) => {}
            Err(error) => return Err(error),
        }
        let until = Instant::now() + GOING;
        while self.exists() {
            if Instant::now() > until {
                let words = format!("/dev/vmm/{} still exists after {} s", self.name, GOING.as_secs());
                let command = format!("bhyvectl --vm={} --destroy", self.name);
                return Err(ProgramError { command, cause: Cause::Failed { status: Some(0), words } });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends the machine as the guest's own power-off does.
    pub fn force_poweroff(&self) -> Result<(), ProgramError> {
        self.call(&["--force-poweroff"]).map(drop)
    }

    /// Ends the machine as the guest's own reset does.
    pub fn force_reset(&self) -> Result<(), ProgramError> {
        self.call(&["--force-reset"]).map(drop)
    }

    /// Raises a non-maskable interrupt on a virtual CPU.
    pub fn inject_nmi(&self, cpu: usize) -> Result<(), ProgramError> {
        self.call(&[&format!("--cpu={cpu}"), "--inject-nmi"]).map(drop)
    }

    /// Saves the machine to `file` and two more files beside it, and ends it.
    pub fn suspend(&self, file: &Path) -> Result<(), ProgramError> {
        self.call(&[&format!("--suspend={}", file.display())]).map(drop)
    }

    /// Returns the counters of a virtual CPU.
    pub fn stats(&self, cpu: usize) -> Result<BTreeMap<String, u64>, ProgramError> {
        Ok(counters(&self.call(&[&format!("--cpu={cpu}"), "--get-stats"])?, cpu))
    }

    fn call(&self, arguments: &[&str]) -> Result<String, ProgramError> {
        let mut words = vec!["bhyvectl".to_owned(), format!("--vm={}", self.name)];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        let words = jail_run::inside(self.jail.as_deref(), words);
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        run(&words[0], &arguments)
    }
}

/// Returns whether bhyvectl(8) says that it found no machine, or one whose device is disappearing (ENOENT, ENXIO). Up
/// to 13.2 it prints `vm_open: NAME could not be opened: WHY`, and later `VM:NAME is not created.`
fn is_going(words: &str) -> bool {
    let why = |why: &str| words.contains(&format!("could not be opened: {why}"));
    words.contains("is not created") || why("No such file or directory") || why("Device not configured")
}

/// Parses lines of a name, a tab and a number. Other lines are not counters.
pub fn counters(text: &str, cpu: usize) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.rsplit_once('\t')?;
        let name: Vec<_> = name.split_whitespace().collect();
        Some((format!("vcpu{cpu}.{}", name.join("-")), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).take(MOST_COUNTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_a_cpu_are_read_and_nothing_else() {
        let text =
            "vcpu1 stats:\nvm exits due to external interrupt      \t27\nnumber of ticks vcpu was idle           \t9\nodd\tx\n";
        let found = counters(text, 1);
        assert_eq!(found.len(), 2);
        assert_eq!(found["vcpu1.vm-exits-due-to-external-interrupt"], 27);
    }
}
