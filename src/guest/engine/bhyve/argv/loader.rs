//! The command line of the loader, and the files that it reads.

use super::super::partitions::{KernelName, RootPartition};
use super::super::word::Word;
use crate::config::{BhyveLoaderKind, BootTarget, ComPort, DiskConfig, DiskDevice, Grub, GrubSystem, GuestConfig};
use crate::guest::error::{GuestError, Result};

use super::{CommandLine, Content, GeneratedFile, Inputs, memory};

/// Returns the line of bhyveload(8) or grub-bhyve. There is none with firmware.
pub(super) fn loader(inputs: Inputs<'_>, files: &mut Vec<GeneratedFile>) -> Result<Option<CommandLine>> {
    match inputs.config.loader.on_bhyve() {
        Some(BhyveLoaderKind::Bhyveload) => bhyveload(inputs).map(Some),
        Some(BhyveLoaderKind::Grub) => grub(inputs, files).map(Some),
        Some(BhyveLoaderKind::Uefi) => Ok(None),
        None => Err(GuestError::user(format!("`loader = \"{}\"` is the embedded engine's", inputs.config.loader.as_str()))),
    }
}

/// Adds the first serial port, which is the loader's console too.
fn console(inputs: Inputs<'_>, line: &mut CommandLine) -> Result<()> {
    let device = match &inputs.config.console.com[0] {
        ComPort::Console => inputs.resolved.consoles[0].clone(),
        ComPort::Device(path) => Some(inputs.path(path, "console.com1")?),
        ComPort::None | ComPort::Tcp(_) => None,
    };
    if let Some(device) = device {
        line.add(["-c".into(), device], &["console.com1"]);
    }
    Ok(())
}

/// Returns the disks to boot from: those of the boot order, or all.
fn boot_disks(config: &GuestConfig) -> Vec<&DiskConfig> {
    if config.boot_order.is_empty() {
        return config.disks.iter().collect();
    }
    let find = |id: &String| config.disks.iter().find(|disk| disk.id == *id);
    let disks = config.boot_order.iter().filter_map(|target| match target {
        BootTarget::Disk(id) => find(id),
        BootTarget::Nic(_) => None,
    });
    disks.collect()
}

/// Returns the disk that GRUB boots from. GRUB does not support SCSI disks.
pub(super) fn boot_disk(config: &GuestConfig) -> Option<&DiskConfig> {
    boot_disks(config).into_iter().find(|disk| disk.device != DiskDevice::VirtioScsi)
}

fn bhyveload(inputs: Inputs<'_>) -> Result<CommandLine> {
    let config = inputs.config;
    let settings = config.bhyveload.as_ref().expect("checked: it is there with this loader");
    let mut line = CommandLine::new("bhyveload");
    if config.memory_wired {
        line.flag("-S", "memory.wired");
    }
    if config.memory_in_core {
        line.flag("-C", "memory.in_core");
    }
    console(inputs, &mut line)?;
    line.add(["-m".into(), memory(config)], &["memory.size"]);
    // Without firmware, FreeBSD's kernel gets its machine's UUID only from its loader; with firmware it is in SMBIOS.
    line.add(["-e".into(), format!("smbios.system.uuid={}", inputs.state.uuid_for(config))], &["uuid"]);
    if let Some(timeout) = settings.timeout {
        line.add(["-e".into(), format!("autoboot_delay={}", timeout.as_secs())], &["bhyveload.timeout"]);
    }
    for (name, value) in &settings.env {
        line.add(["-e".into(), format!("{name}={value}")], &["bhyveload.env"]);
    }
    if let Some(directory) = &settings.host_dir {
        line.add(["-h".into(), inputs.path(directory, "bhyveload.host_dir")?], &["bhyveload.host_dir"]);
    }
    if let Some(loader) = &settings.loader {
        line.add(["-l".into(), inputs.path(loader, "bhyveload.loader")?], &["bhyveload.loader"]);
    }
    for disk in boot_disks(config) {
        if disk.device == DiskDevice::VirtioScsi {
            continue;
        }
        line.add(["-d".into(), inputs.disk(disk)?], &[&format!("disks.{}", disk.id)]);
    }
    for word in &settings.args {
        line.flag(word, "bhyveload.args");
    }
    line.flag(&config.name, "name");
    Ok(line)
}

fn grub(inputs: Inputs<'_>, files: &mut Vec<GeneratedFile>) -> Result<CommandLine> {
    let config = inputs.config;
    let settings = config.grub.as_ref().expect("checked: it is there with this loader");
    let mut map = Word::default();
    let mut names: Vec<(&str, String)> = Vec::new();
    let (mut disks, mut drives) = (0, 0);
    for disk in config.disks.iter().filter(|disk| disk.device != DiskDevice::VirtioScsi) {
        let (prefix, count) = if disk.device == DiskDevice::AhciCd { ("cd", &mut drives) } else { ("hd", &mut disks) };
        let name = format!("{prefix}{count}");
        *count += 1;
        map.push(Word::from(format!("({name}) ")).then(inputs.disk(disk)?).then("\n"));
        names.push((&disk.id, name));
    }
    let Some(boot) = boot_disk(config) else {
        return Err(GuestError::user(format!("`{}` has no disk that GRUB could boot from", config.name)));
    };
    let name = names.iter().find(|(id, _)| *id == boot.id).map(|(_, name)| name.as_str()).expect("it is in the map");
    let root = root(name, settings, inputs.resolved.root_partition.as_ref());
    let directory = &inputs.resolved.directory;
    let map_path = directory.join("device.map");
    let mut line = CommandLine::new("grub-bhyve");
    if config.memory_wired {
        line.flag("-S", "memory.wired");
    }
    console(inputs, &mut line)?;
    line.add(["-m".into(), inputs.path(&map_path, "disks")?], &["disks"]);
    line.add(["-M".into(), memory(config)], &["memory.size"]);
    files.push(GeneratedFile { path: map_path, content: Content::Plain(map), key: "disks".into() });
    match written(inputs, settings, boot, &root) {
        Some((content, key)) => {
            line.add(["-r", "host"], &[key]);
            line.add(["-d".into(), inputs.path(directory, key)?], &[key]);
            files.push(GeneratedFile {
                path: directory.join("grub.cfg"),
                content: Content::Plain(content.into()),
                key: key.into(),
            });
        }
        None => {
            let key = if settings.partition.is_some() { "grub.partition" } else { "boot.order" };
            line.add(["-r".into(), root], &[key]);
            if let Some(directory) = &settings.directory {
                line.add(["-d".into(), directory.clone()], &["grub.directory"]);
            }
            if let Some(file) = &settings.file {
                line.add(["-g".into(), file.clone()], &["grub.file"]);
            }
        }
    }
    line.flag(&config.name, "name");
    Ok(line)
}

/// Returns GRUB's name of the file system to boot from: `hd0,msdos1`. A CD, and a disk that the guest file says has no
/// partitions, is a file system itself. If the guest file leaves it open, the partition found on the disk is used, or
/// else the one that installers use.
fn root(disk: &str, settings: &Grub, found: Option<&RootPartition>) -> String {
    let partition = match (settings.partition.as_deref(), settings.system) {
        (Some("none"), _) => None,
        (Some(partition), _) => Some(partition),
        (None, _) if disk.starts_with("cd") => None,
        (None, GrubSystem::Linux) => Some("1"),
        (None, GrubSystem::Openbsd) => Some(found.map_or("openbsd1", |found| &found.grub)),
        (None, GrubSystem::Netbsd) => Some(found.map_or("netbsd1", |found| &found.grub)),
    };
    match partition {
        Some(partition) => format!("{disk},{partition}"),
        None => disk.to_owned(),
    }
}

/// Returns the kernel's name of its root: OpenBSD has every disk as `sd`; NetBSD has virtio and NVMe as `ld`, SATA as
/// `wd`, and the partitions of a GPT as wedges.
fn root_device(inputs: Inputs<'_>, settings: &Grub, boot: &DiskConfig) -> String {
    if let Some(root) = &settings.root {
        return root.clone();
    }
    let family = |disk: &DiskConfig| match (settings.system, disk.device) {
        (_, DiskDevice::AhciCd) => "cd",
        (GrubSystem::Netbsd, DiskDevice::AhciHd) => "wd",
        (GrubSystem::Netbsd, _) => "ld",
        _ => "sd",
    };
    let alike = inputs.config.disks.iter().take_while(|disk| disk.id != boot.id).filter(|disk| family(disk) == family(boot));
    let letter = match inputs.resolved.root_partition.as_ref().map(|found| found.kernel) {
        Some(KernelName::Wedge(number)) => return format!("dk{number}"),
        Some(KernelName::Letter(letter)) => letter,
        None => 'a',
    };
    format!("{}{}{letter}", family(boot), alike.count())
}

/// Returns the configuration that vmctl writes, and the key for it. There is none if the guest has its own.
fn written(inputs: Inputs<'_>, settings: &Grub, boot: &DiskConfig, root: &str) -> Option<(String, &'static str)> {
    let kernel = |default: &'static str| settings.kernel.as_deref().unwrap_or(default).to_owned();
    // The console is com0 for OpenBSD. With -h, NetBSD's kernel uses the serial line.
    let (commands, key) = match settings.system {
        GrubSystem::Linux if settings.commands.is_empty() => return None,
        GrubSystem::Linux => (settings.commands.clone(), "grub.commands"),
        // The installer's kernel contains its root.
        GrubSystem::Openbsd if root.starts_with("cd") && settings.root.is_none() => {
            (vec![format!("kopenbsd -h com0 ({root}){}", kernel("/bsd"))], "grub.system")
        }
        GrubSystem::Openbsd => {
            let device = root_device(inputs, settings, boot);
            (vec![format!("kopenbsd -h com0 -r {device} ({root}){}", kernel("/bsd"))], "grub.system")
        }
        GrubSystem::Netbsd => {
            let device = root_device(inputs, settings, boot);
            (vec![format!("knetbsd -h -r {device} ({root}){}", kernel("/netbsd"))], "grub.system")
        }
    };
    let name = &inputs.config.name;
    let mut text = format!("set timeout={}\nset root={root}\nmenuentry \"{name}\" {{\n", settings.timeout.as_secs());
    for command in &commands {
        text.push_str(&format!("  {command}\n"));
    }
    if !commands.iter().any(|command| command.trim() == "boot") {
        text.push_str("  boot\n");
    }
    text.push_str("}\n");
    Some((text, key))
}
