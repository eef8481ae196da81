//! bhyvectl(8): what is done to a virtual machine from outside (`usr.sbin/bhyvectl/bhyvectl.c`).

use std::collections::BTreeMap;
use std::path::Path;

use super::program::{ProgramError, run};
use super::{jail_run, place};

/// The most counters that are taken from one answer.
const MOST_COUNTERS: usize = 4096;

/// A virtual machine of vmm(4), seen from a jail or from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its name below /dev/vmm.
    pub name: String,
    /// The jail that it is in.
    pub jail: Option<String>,
}

impl Vm {
    /// Whether the kernel has it.
    pub fn exists(&self) -> bool {
        place::has_entry(&place::path("/dev/vmm"), &self.name)
    }

    /// Makes it, without anything in it.
    pub fn create(&self) -> Result<(), ProgramError> {
        self.call(&["--create"]).map(drop)
    }

    /// Removes it, if it is there.
    pub fn destroy(&self) -> Result<(), ProgramError> {
        match self.exists() {
            true => self.call(&["--destroy"]).map(drop),
            false => Ok(()),
        }
    }

    /// Ends it as the guest's own power-off does.
    pub fn force_poweroff(&self) -> Result<(), ProgramError> {
        self.call(&["--force-poweroff"]).map(drop)
    }

    /// Ends it as the guest's own reset does.
    pub fn force_reset(&self) -> Result<(), ProgramError> {
        self.call(&["--force-reset"]).map(drop)
    }

    /// Raises a non-maskable interrupt on a virtual CPU.
    pub fn inject_nmi(&self, cpu: usize) -> Result<(), ProgramError> {
        self.call(&[&format!("--cpu={cpu}"), "--inject-nmi"]).map(drop)
    }

    /// Saves it to `file` and two more files beside it, and ends it.
    pub fn suspend(&self, file: &Path) -> Result<(), ProgramError> {
        self.call(&[&format!("--suspend={}", file.display())]).map(drop)
    }

    /// The counters of a virtual CPU.
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

/// Lines of a name, a tab and a number; anything else is not a counter.
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
