//! `loader = "grub"`: the guest's own boot menu, read from its disks and shown on its serial console, without firmware.
//!
//! A configuration of GRUB 2 is evaluated; Boot Loader Specification entries and the files of syslinux, isolinux and
//! extlinux are turned into entries of the same kind. The kernel of an entry goes to [`super::kernel`].
//!
//! **Not modelled**: writing, except for `save_env` to the existing bytes of its file ([`super::volume::in_place`]),
//! graphics, chain loading, passwords, wildcards, `loopback`. An unknown command is an error on the console, as with
//! GRUB, and evaluation continues.
//!
//! **Hostile guest**: between two keys of the user, [`Limits`] bound the commands, the time and the output of a script;
//! variables, menus, files and nesting have their own bounds. Beyond them the loader gives up with a message.
pub mod bls; // Boot Loader Specification entries
pub mod boot; // linux, initrd, boot
pub mod commands; // the commands that need no files
pub mod device; // (hd0,gpt1)
pub mod editor; // text editors for the user
pub mod envblk; // environment blocks
pub mod evaluate; // scripts, variables, control flow
pub mod files; // the commands for files
pub mod find; // search for the configuration
pub mod menu; // the menu
pub mod parse; // the script language
pub mod syslinux; // the configurations of syslinux, isolinux, extlinux
pub mod terminal; // keys and text
pub mod test; // test and [

use std::time::Duration;

pub use device::{BootDisk, Devices};
pub use evaluate::Shell;
pub use terminal::{ConsolePort, Port, Terminal};

use super::LoadError;
use super::initrd::Initrd;
use super::kernel::{self, Image, Module, Way};
use crate::hypervisor::backend::{BootState, MachineExit};
use crate::hypervisor::memory::GuestMemory;

/// The table `[grub]` of the guest file.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The entry that boots, by title, id or number, `a>b` for one in a submenu; instead of the configuration's
    /// default.
    pub entry: Option<String>,
    /// Commands instead of the guest's configuration.
    pub commands: Vec<String>,
    /// Directory of the configuration.
    pub directory: Option<String>,
    /// File name of the configuration.
    pub file: Option<String>,
    /// Partition of the configuration: `1`, `gpt2`, `hd1,msdos1`, `none`.
    pub partition: Option<String>,
    /// Time that the menu waits, instead of the configuration's own time.
    pub timeout: Option<Duration>,
    /// Whether to add the serial console to a Linux command line that names no console.
    pub add_console: bool,
    /// The only disk whose configuration counts, by its id.
    pub disk: Option<String>,
    /// Words for the kernel's command line, before a `---` in it: words after it belong to the system that an installer
    /// makes.
    pub append: Vec<String>,
    /// Maximum number of bytes of kernel and initrd.
    pub memory_bytes: u64,
}

/// Limits of a script between two keys of the user.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Number of commands.
    pub commands: u32,
    /// Running time, without sleep.
    pub busy: Duration,
    /// Sleeping time.
    pub asleep: Duration,
    /// Number of bytes printed.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { commands: 100_000, busy: Duration::from_secs(60), asleep: Duration::from_secs(300), output: 1 << 20 }
    }
}

/// Reason why the loader ended without a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The machine was stopped, or the user chose to turn it off.
    Stopped(MachineExit),
    /// There is nothing to boot, with a message for the user.
    GaveUp(String),
}

/// The error for a guest that this loader cannot boot.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GrubError(pub String);

/// A kernel that is ready to be put into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its file's name, for messages.
    pub name: String,
    /// Its bytes.
    pub kernel: Vec<u8>,
    /// Its command line.
    pub cmdline: String,
    /// Entry protocol that it was loaded for.
    pub way: Way,
    /// Its initial RAM disks, joined.
    pub initrd: Option<Vec<u8>>,
    /// Its modules, each with its string.
    pub modules: Vec<(Vec<u8>, String)>,
}

impl Loaded {
    /// Puts the kernel into `mem` and returns how vCPU 0 starts.
    pub fn load_into(&self, mem: &GuestMemory, rsdp: u64) -> Result<BootState, LoadError> {
        let image = Image {
            bytes: &self.kernel,
            way: self.way,
            name: None,
            cmdline: &self.cmdline,
            initrd: self.initrd.as_ref().map(|bytes| borrowed(bytes, "initrd")),
            modules: self.modules.iter().map(|(bytes, words)| borrowed(bytes, words)).collect(),
        };
        kernel::load_image(mem, &image, rsdp)
    }
}

fn borrowed<'a>(bytes: &'a [u8], words: &str) -> Module<'a> {
    Module { data: Initrd::Bytes(bytes.into()), words: words.into() }
}

/// The loader, with the configurations that it found on the disks.
pub struct Loader {
    devices: Devices,
    options: Options,
    configurations: find::Configurations,
}

impl Loader {
    /// Reads the partition tables and finds the configurations. If there is none, the error describes the disks.
    pub fn new(disks: Vec<BootDisk>, options: Options) -> Result<Loader, GrubError> {
        Loader::on(Devices::new(disks), options)
    }

    /// Creates the loader for devices that have been detected before.
    pub fn on(devices: Devices, options: Options) -> Result<Loader, GrubError> {
        let configurations =
            if options.commands.is_empty() { find::configurations(&devices, &options)? } else { find::Configurations::default() };
        Ok(Loader { devices, options, configurations })
    }

    /// Shows the menu and loads the selected entry.
    pub fn run(&self, port: Box<dyn Port>, limits: Limits) -> Result<Loaded, Halt> {
        let mut terminal = Terminal::new(port);
        let mut shell = Shell::new(&self.devices, &mut terminal, &self.options, limits);
        if !self.options.commands.is_empty() {
            return shell.run_commands(&self.options.commands);
        }
        for text in &self.configurations.troubles {
            shell.complain(text)?;
        }
        let mut tried = Vec::new();
        for configuration in &self.configurations.found {
            if let Some(loaded) = menu::boot_from(&mut shell, configuration)? {
                files::write_saved(&mut shell)?;
                return Ok(loaded);
            }
            // Variables saved by a configuration that led to no kernel are not kept.
            shell.saved.clear();
            tried.push(format!("({}){}", configuration.device, configuration.path));
        }
        Err(Halt::GaveUp(format!("{} has no entry that boots", tried.join(", "))))
    }
}

#[cfg(test)]
mod tests;
