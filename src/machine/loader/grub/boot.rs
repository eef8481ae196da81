//! `linux` and `initrd`: from files of the guest to a kernel that is ready to be placed.

use super::evaluate::{Done, Ended, Flow, Shell, error};
use super::{Halt, Loaded};
use crate::machine::loader::elf::Elf;
use crate::machine::loader::zero_page::SetupHeader;

/// A kernel's argument as GRUB passes it on: quoted where it has a space.
fn argument(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\'', "\\'");
    if text.contains(' ') { format!("\"{escaped}\"") } else { escaped }
}

/// Loads a kernel; its command line begins with its name, as with GRUB.
pub fn linux(shell: &mut Shell<'_>, command: &str, arguments: &[String]) -> Ended {
    shell.loaded = None;
    let [file, rest @ ..] = arguments else { return error("filename expected") };
    let kernel = match shell.read_file(file, shell.options.memory_bytes) {
        Ok(kernel) => kernel,
        Err(text) => return error(text),
    };
    let is_linux = SetupHeader::find(&kernel).is_some();
    let known = is_linux || Elf::is_elf(&kernel) || crate::machine::loader::multiboot::find(&kernel).is_some();
    if !known {
        return error(format!("`{file}` is neither a Linux nor a Multiboot kernel"));
    }
    let path = file.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(file.as_str(), |(_, path)| path);
    let first = if command == "multiboot" { path.to_string() } else { format!("BOOT_IMAGE={file}") };
    let mut words = vec![first];
    words.extend(rest.iter().map(|word| argument(word)));
    let more = &shell.options.append;
    if !more.is_empty() {
        if !is_linux {
            return error(format!("`{file}` is no Linux kernel: it takes no answer file, and no words for one"));
        }
        // Debian's installer keeps the words behind `---` for the installed system; the older sign is `--`.
        let at = words.iter().position(|word| word == "---" || word == "--").unwrap_or(words.len());
        words.splice(at..at, more.iter().cloned());
        shell.say(&format!("`{}` is added to the kernel's command line.\n", more.join(" ")))?;
    }
    if is_linux && shell.options.add_console && !rest.iter().any(|word| word.starts_with("console=")) {
        words.push("console=ttyS0".into());
        shell.say("`console=ttyS0` is added to the kernel's command line: this guest has no other console.\n")?;
    }
    shell.loaded = Some(Loaded { name: file.clone(), kernel, cmdline: words.join(" "), initrd: None });
    Ok(Done::Status(true))
}

/// Loads initial RAM disks, one behind the other; each begins at a multiple of four bytes.
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

/// Runs an entry's body; what it loaded, if it did, and where it leads. What one that loads nothing saved is not kept.
pub fn run_entry(shell: &mut Shell<'_>, entry: &super::menu::Entry) -> Result<(Option<Loaded>, Flow), Halt> {
    shell.loaded = None;
    shell.errors = 0;
    let saved = shell.saved.clone();
    let mut own = vec![String::new()];
    own.extend_from_slice(&entry.arguments);
    let flow = shell.call(&entry.script, own)?;
    // An entry that is left by `exit` boots nothing, whatever it loaded.
    let loaded = shell.loaded.take().filter(|_| flow != Flow::Exit);
    if loaded.is_none() {
        shell.saved = saved;
    }
    Ok((loaded, flow))
}
