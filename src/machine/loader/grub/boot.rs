//! `linux`, `initrd`, `multiboot` and `module`: from files of the guest to a kernel that is ready to be loaded.

use super::evaluate::{Done, Ended, Flow, Shell, error};
use super::{Halt, Loaded};
use crate::machine::loader::elf::Elf;
use crate::machine::loader::kernel::{self, Way};
use crate::machine::loader::zero_page::SetupHeader;
use crate::machine::loader::{multiboot, multiboot2, unpack};

/// Maximum number of modules of one kernel.
const MAX_MODULES: usize = 60;

/// Returns a kernel's argument as GRUB passes it on: quoted where it has a space.
fn argument(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\'', "\\'");
    if text.contains(' ') { format!("\"{escaped}\"") } else { escaped }
}

/// Reads a kernel's bytes, unpacked if it is packed as a whole, as for all files of GRUB.
fn read_kernel(shell: &Shell<'_>, file: &str) -> Result<Vec<u8>, String> {
    let limit = shell.options.memory_bytes;
    unpacked(shell.read_file(file, limit)?, file, limit)
}

fn unpacked(bytes: Vec<u8>, file: &str, limit: u64) -> Result<Vec<u8>, String> {
    match unpack::whole(&bytes, limit) {
        Ok(whole) => Ok(whole.unwrap_or(bytes)),
        Err(problem) => Err(format!("`{file}': {problem}")),
    }
}

/// Returns a file's name without its device.
fn path_of(file: &str) -> &str {
    file.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(file, |(_, path)| path)
}

/// Returns a file's path and the words after it, which are passed to a Multiboot kernel and its modules.
///
/// GRUB 2 leaves the path out. Kernels that know that ask the loader for its name. This one is not GRUB, so they take
/// the first word for the path, as all kernels did before GRUB 2 (Xen, `xen/arch/x86/setup.c`, cmdline_cook).
fn words_of(file: &str, rest: &[String]) -> String {
    std::iter::once(path_of(file).to_string()).chain(rest.iter().map(|word| argument(word))).collect::<Vec<_>>().join(" ")
}

/// Returns the words without the options in front.
fn without_options(mut words: &[String]) -> (Vec<&str>, &[String]) {
    let mut options = Vec::new();
    while let [option, rest @ ..] = words
        && option.starts_with("--")
    {
        options.push(option.as_str());
        words = rest;
    }
    (options, words)
}

/// Loads a Multiboot kernel.
pub fn multiboot(shell: &mut Shell<'_>, way: Way, arguments: &[String]) -> Ended {
    shell.loaded = None;
    let (_, [file, rest @ ..]) = without_options(arguments) else { return error("filename expected") };
    let kernel = match read_kernel(shell, file) {
        Ok(kernel) => kernel,
        Err(text) => return error(text),
    };
    let (has_header, version) = match way {
        Way::Multiboot2 => (multiboot2::find(&kernel).is_some(), 2),
        _ => (multiboot::find(&kernel).is_some(), 1),
    };
    if !has_header {
        return error(format!("`{file}` has no Multiboot {version} header"));
    }
    if !shell.options.append.is_empty() {
        return error(format!("`{file}` is not a Linux kernel: it can use neither an answer file nor words for one"));
    }
    let cmdline = words_of(file, rest);
    shell.loaded = Some(Loaded { name: file.clone(), kernel, cmdline, way, initrd: None, modules: Vec::new() });
    Ok(Done::Status(true))
}

/// Loads a module of a Multiboot kernel, with its own words.
pub fn module(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let (options, [file, rest @ ..]) = without_options(arguments) else { return error("filename expected") };
    let Some(loaded) = &shell.loaded else { return error("you need to load the kernel first") };
    if loaded.modules.len() >= MAX_MODULES {
        return error("the kernel has too many modules");
    }
    let used: u64 = loaded.modules.iter().map(|(bytes, _)| bytes.len() as u64).sum();
    let limit = shell.options.memory_bytes.saturating_sub(used);
    let bytes = shell
        .read_file(file, limit)
        .and_then(|bytes| if options.contains(&"--nounzip") { Ok(bytes) } else { unpacked(bytes, file, limit) });
    let words = words_of(file, rest);
    match (bytes, &mut shell.loaded) {
        (Ok(bytes), Some(loaded)) => loaded.modules.push((bytes, words)),
        (Err(text), _) => return error(text),
        (Ok(_), None) => {}
    }
    Ok(Done::Status(true))
}

/// Loads a kernel. Its command line begins with its name, as with GRUB.
pub fn linux(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    shell.loaded = None;
    let [file, rest @ ..] = arguments else { return error("filename expected") };
    let kernel = match read_kernel(shell, file) {
        Ok(kernel) => kernel,
        Err(text) => return error(text),
    };
    let is_linux = SetupHeader::find(&kernel).is_some();
    let known = is_linux || Elf::is_elf(&kernel) || multiboot::find(&kernel).is_some() || multiboot2::find(&kernel).is_some();
    if !known {
        let what = kernel::name_of(&kernel).map_or(String::new(), |name| format!(": it is {name}"));
        return error(format!("`{file}` is neither a Linux nor a Multiboot kernel{what}"));
    }
    let mut words = vec![format!("BOOT_IMAGE={file}")];
    words.extend(rest.iter().map(|word| argument(word)));
    let more = &shell.options.append;
    if !more.is_empty() {
        if !is_linux {
            return error(format!("`{file}` is not a Linux kernel: it can use neither an answer file nor words for one"));
        }
        // Debian's installer keeps the words after `---` for the installed system. The older mark is `--`.
        let at = words.iter().position(|word| word == "---" || word == "--").unwrap_or(words.len());
        words.splice(at..at, more.iter().cloned());
        shell.say(&format!("`{}` is added to the kernel's command line.\n", more.join(" ")))?;
    }
    if is_linux && shell.options.add_console && !rest.iter().any(|word| word.starts_with("console=")) {
        words.push("console=ttyS0".into());
        shell.say("`console=ttyS0` is added to the kernel's command line: this guest has no other console.\n")?;
    }
    let cmdline = words.join(" ");
    shell.loaded = Some(Loaded { name: file.clone(), kernel, cmdline, way: Way::Any, initrd: None, modules: Vec::new() });
    Ok(Done::Status(true))
}

/// Loads initial RAM disks, one after the other. Each begins at a multiple of four bytes.
pub fn initrd(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    if shell.loaded.is_none() {
        return error("you need to load the kernel first");
    }
    let mut joined: Vec<u8> = Vec::new();
    for file in arguments {
        joined.resize(joined.len().next_multiple_of(4), 0);
        match shell.read_file(file, shell.options.memory_bytes.saturating_sub(joined.len() as u64)) {
            Ok(bytes) => joined.extend_from_slice(&bytes),
            Err(text) => return error(text),
        }
    }
    if let Some(loaded) = &mut shell.loaded {
        loaded.initrd = (!joined.is_empty()).then_some(joined);
    }
    Ok(Done::Status(true))
}

/// Runs an entry's body. Returns the kernel that it loaded, if it did, and where it leads. Variables saved by an entry
/// that loads nothing are not kept.
pub fn run_entry(shell: &mut Shell<'_>, entry: &super::menu::Entry) -> Result<(Option<Loaded>, Flow), Halt> {
    shell.loaded = None;
    shell.errors = 0;
    let saved = shell.saved.clone();
    let mut own = vec![String::new()];
    own.extend_from_slice(&entry.arguments);
    let flow = shell.call(&entry.script, own)?;
    // An entry that ends with `exit` boots nothing, whatever it loaded.
    let loaded = shell.loaded.take().filter(|_| flow != Flow::Exit);
    if loaded.is_none() {
        shell.saved = saved;
    }
    Ok((loaded, flow))
}
