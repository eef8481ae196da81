//! `loader = "grub"`: the guest's own boot menu, read from its disks and shown on its serial console, without firmware.
//!
//! A configuration of GRUB 2 is evaluated; Boot Loader Specification entries and the files of syslinux, isolinux and
//! extlinux are turned into entries of the same kind. What an entry loads goes to [`super::kernel`].
//!
//! **Not modelled**: writing, save for `save_env` in its file's place on the disk ([`super::volume::in_place`]),
//! graphics, chain loading, passwords, wildcards, `loopback`. A command that is not known is an error on the console,
//! as GRUB's would be, and evaluation goes on.
//!
//! **Hostile guest**: between two keys of the user a script may run [`Limits::commands`] commands, for so long, print
//! and sleep so much; variables, menus, files and nesting have their bounds. Then the loader gives up and says so.
pub mod bls; // Boot Loader Specification entries
pub mod boot; // linux, initrd, boot
pub mod commands; // the commands that need no files
pub mod device; // (hd0,gpt1)
pub mod editor; // lines of text under the user's hands
pub mod envblk; // environment blocks
pub mod evaluate; // scripts, variables, control flow
pub mod files; // the commands for files
pub mod find; // where the configuration is
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

/// What the guest file says under `[grub]`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which entry boots, by title, id or number, `a>b` for one in a submenu; instead of the configuration's default.
    pub entry: Option<String>,
    /// Commands instead of the guest's configuration.
    pub commands: Vec<String>,
    /// The configuration's directory.
    pub directory: Option<String>,
    /// The configuration's name.
    pub file: Option<String>,
    /// Where it is: `1`, `gpt2`, `hd1,msdos1`, `none`.
    pub partition: Option<String>,
    /// How long the menu waits; instead of the configuration's own time.
    pub timeout: Option<Duration>,
    /// Whether a Linux command line that names no console is given the serial one.
    pub add_console: bool,
    /// The one disk whose configuration counts, by its id.
    pub disk: Option<String>,
    /// Words for the kernel's command line, before a `---` in it: what follows that is for the system that an installer
    /// makes.
    pub append: Vec<String>,
    /// Bytes that kernel and initrd may have.
    pub memory_bytes: u64,
}

/// What a script may do between two keys of the user.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Commands.
    pub commands: u32,
    /// Time, without what it sleeps.
    pub busy: Duration,
    /// Time that it sleeps.
    pub asleep: Duration,
    /// Bytes that it prints.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { commands: 100_000, busy: Duration::from_secs(60), asleep: Duration::from_secs(300), output: 1 << 20 }
    }
}

/// Why the loader ends without a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The machine was stopped, or the user chose to turn it off.
    Stopped(MachineExit),
    /// There is nothing to boot, in the words a user reads.
    GaveUp(String),
}

/// A guest that this loader cannot boot.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GrubError(pub String);

/// A kernel, ready to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its file's name, for messages.
    pub name: String,
    /// Its bytes.
    pub kernel: Vec<u8>,
    /// Its command line.
    pub cmdline: String,
    /// Which way in it was loaded for.
    pub way: Way,
    /// Its initial RAM disks, joined.
    pub initrd: Option<Vec<u8>>,
    /// Its modules, each with its string.
    pub modules: Vec<(Vec<u8>, String)>,
}

impl Loaded {
    /// Puts it into `mem` and says how vCPU 0 starts.
    pub fn place(&self, mem: &GuestMemory, rsdp: u64) -> Result<BootState, LoadError> {
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

/// The loader, with what it found on the disks.
pub struct Loader {
    devices: Devices,
    options: Options,
    places: find::Places,
}

impl Loader {
    /// Reads the partition tables and finds the configurations; says what is there when there is none.
    pub fn new(disks: Vec<BootDisk>, options: Options) -> Result<Loader, GrubError> {
        Loader::on(Devices::new(disks), options)
    }

    /// The same for devices that were looked at before.
    pub fn on(devices: Devices, options: Options) -> Result<Loader, GrubError> {
        let places = if options.commands.is_empty() { find::places(&devices, &options)? } else { find::Places::default() };
        Ok(Loader { devices, options, places })
    }

    /// Shows the menu and loads what is chosen.
    pub fn run(&self, port: Box<dyn Port>, limits: Limits) -> Result<Loaded, Halt> {
        let mut terminal = Terminal::new(port);
        let mut shell = Shell::new(&self.devices, &mut terminal, &self.options, limits);
        if !self.options.commands.is_empty() {
            return shell.run_commands(&self.options.commands);
        }
        for text in &self.places.troubles {
            shell.complain(text)?;
        }
        let mut tried = Vec::new();
        for place in &self.places.found {
            if let Some(loaded) = menu::boot_from(&mut shell, place)? {
                files::write_saved(&mut shell)?;
                return Ok(loaded);
            }
            // What a configuration saved that led to no kernel is not kept.
            shell.saved.clear();
            tried.push(format!("({}){}", place.device, place.path));
        }
        Err(Halt::GaveUp(format!("{} has no entry that boots", tried.join(", "))))
    }
}

#[cfg(test)]
mod tests;
