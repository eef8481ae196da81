//! The command line of bhyve(8), except for its devices.

use crate::config::{Clock, ComPort, DeviceKey, FwCfgContent, GuestConfig, Span, Tpm};
use crate::guest::error::{GuestError, Result};
use crate::host::bhyve as host;

use super::devices::devices;
use super::{CommandLine, Content, GeneratedFile, Inputs, memory, value};

/// Builds the whole line.
pub(super) fn bhyve(inputs: Inputs<'_>, files: &mut Vec<GeneratedFile>) -> Result<CommandLine> {
    let config = inputs.config;
    let mut line = CommandLine::new("bhyve");
    switches(inputs, &mut line);
    processors(inputs, &mut line)?;
    line.add(["-m".into(), memory(config)], &["memory.size"]);
    numa(inputs, &mut line)?;
    line.add(["-U".into(), inputs.state.uuid_for(config).to_owned()], &["uuid"]);
    if config.clock == Clock::Utc {
        line.flag("-u", "clock");
    }
    if let Some(gdb) = &config.debug.gdb {
        let wait = if gdb.wait { "w" } else { "" };
        let text = match gdb.listen.ip().is_loopback() && gdb.listen.is_ipv4() {
            true => format!("{wait}{}", gdb.listen.port()),
            false => format!("{wait}{}", gdb.listen),
        };
        line.add(["-G".into(), text], &["debug.gdb.port"]);
    }
    if let Some(layout) = config.graphics.as_ref().and_then(|graphics| graphics.keyboard.as_ref()) {
        inputs.needs(host::KEYBOARD, "graphics.keyboard")?;
        line.add(["-K".into(), layout.clone()], &["graphics.keyboard"]);
    }
    bridge(inputs, &mut line)?;
    devices(inputs, &mut line)?;
    for item in &config.bhyve.fw_cfg {
        inputs.needs(host::FW_CFG, "bhyve.fw_cfg")?;
        let (key, content) = match &item.content {
            FwCfgContent::Text(text) => ("bhyve.fw_cfg", format!("string={text}")),
            FwCfgContent::File(path) => ("bhyve.fw_cfg_files", format!("file={}", inputs.path(path, "bhyve.fw_cfg_files")?)),
        };
        line.add(["-f".into(), format!("{},{content}", item.name)], &[key]);
    }
    variables(inputs, &mut line)?;
    password(inputs, &mut line, files)?;
    for word in &config.bhyve.args {
        line.flag(word, "bhyve.args");
    }
    line.flag(&config.name, "name");
    Ok(line)
}

/// Adds flags without a value.
fn switches(inputs: Inputs<'_>, line: &mut CommandLine) {
    let (config, bhyve) = (inputs.config, &inputs.config.bhyve);
    // On 14 and later the tables are always made, and the flag does nothing.
    if inputs.features.wants_acpi_flag() {
        line.flag("-A", "engine");
    }
    let buses = inputs.state.addresses.values().any(|address| address.bus != 0);
    let wired_by = if config.passthru.is_empty() { "memory.wired" } else { "passthru" };
    for (on, flag, key) in [
        (bhyve.vmexit_on_hlt, "-H", "bhyve.vmexit_on_hlt"),
        (bhyve.vmexit_on_pause, "-P", "bhyve.vmexit_on_pause"),
        (config.memory_wired, "-S", wired_by),
        (config.memory_in_core, "-C", "memory.in_core"),
        (bhyve.ignore_bad_msr, "-w", "bhyve.ignore_bad_msr"),
        (bhyve.strict_io, "-e", "bhyve.strict_io"),
        (bhyve.x2apic, "-x", "bhyve.x2apic"),
        (!bhyve.virtio_msix, "-W", "bhyve.virtio_msix"),
        // The MP table (mptbl.c) describes bus 0 alone.
        (!bhyve.mptable || buses, "-Y", "bhyve.mptable"),
    ] {
        if on {
            line.flag(flag, key);
        }
    }
}

fn processors(inputs: Inputs<'_>, line: &mut CommandLine) -> Result<()> {
    let cpus = inputs.config.cpus;
    if cpus.count() > inputs.features.max_cpus {
        let most = inputs.features.max_cpus;
        let message = format!("`cpus.count` is {}, and bhyve(8) of this host gives a guest at most {most}", cpus.count());
        return Err(GuestError::user(message)
            .hint("as many as the host has CPUs, unless `hw.vmm.maxcpu` in /boot/loader.conf says another number"));
    }
    let text = match (cpus.cores, cpus.threads) {
        (1, 1) => cpus.count().to_string(),
        (cores, threads) => format!("cpus={},sockets={},cores={cores},threads={threads}", cpus.count(), cpus.sockets),
    };
    line.add(["-c".into(), text], &["cpus.count"]);
    for pin in &inputs.config.pins {
        match pin.host[..] {
            [Span { first, last }] if first == last => {
                line.add(["-p".into(), format!("{}:{first}", pin.vcpu)], &["cpus.pin"]);
            }
            _ => line.add(["-o".into(), format!("vcpu.{}.cpuset={}", pin.vcpu, spans(&pin.host))], &["cpus.pin"]),
        }
    }
    Ok(())
}

fn spans(spans: &[Span]) -> String {
    let one = |span: &Span| match span.first == span.last {
        true => span.first.to_string(),
        false => format!("{}-{}", span.first, span.last),
    };
    spans.iter().map(one).collect::<Vec<_>>().join(",")
}

fn numa(inputs: Inputs<'_>, line: &mut CommandLine) -> Result<()> {
    for (at, domain) in inputs.config.numa.iter().enumerate() {
        let key = format!("numa.{}", domain.id);
        inputs.needs(host::NUMA, &key)?;
        let mib = domain.size.bytes() >> 20;
        let one = &domain.cpus[..1];
        let policy = domain.policy.as_ref().map_or(String::new(), |policy| format!(",{policy}"));
        line.add(["-n".into(), format!("{at},{mib}M,{}{policy}", spans(one))], &[&key]);
        if domain.cpus.len() > 1 {
            // -n splits its text at commas.
            line.add(["-o".into(), format!("domains.{at}.cpus={}", spans(&domain.cpus))], &[&key]);
        }
    }
    Ok(())
}

/// Adds the devices behind the LPC bridge: serial ports, firmware, TPM.
fn bridge(inputs: Inputs<'_>, line: &mut CommandLine) -> Result<()> {
    let config = inputs.config;
    let has = |device: &str, key: &str| match inputs.features.lpc.contains(device) {
        true => Ok(()),
        false => {
            let message = format!("`{key}`: bhyve(8) of {} has no `-l {device}`", inputs.features.release());
            Err(GuestError::user(message).hint("FreeBSD 14.0 has it; `bhyve -l help` shows the host's"))
        }
    };
    for (at, port) in config.console.com.iter().enumerate() {
        let name = format!("com{}", at + 1);
        let key = format!("console.{name}");
        let target = match port {
            ComPort::None => continue,
            ComPort::Console => {
                let device = inputs.resolved.consoles[at].clone();
                device.ok_or_else(|| GuestError::host(format!("no line for `{key}`")))?
            }
            ComPort::Device(path) => inputs.value(path, &key)?,
            ComPort::Tcp(address) => {
                inputs.needs(host::COM_TCP, &key)?;
                format!("tcp={address}")
            }
        };
        has(&name, &key)?;
        line.add(["-l".into(), format!("{name},{target}")], &[&key]);
    }
    if config.uefi.is_some() {
        let firmware = inputs.resolved.firmware.as_ref().ok_or_else(|| GuestError::host("no firmware"))?;
        // The port's own files have the same path in the jail.
        let code = match firmware.code.starts_with("/usr/local/share") {
            true => value(&firmware.code.to_string_lossy(), "uefi.firmware")?,
            false => inputs.value(&firmware.code, "uefi.firmware")?,
        };
        let mut text = format!("bootrom,{code}");
        if let Some(vars) = &firmware.vars {
            text.push(',');
            text.push_str(&inputs.value(vars, "uefi.vars")?);
        }
        line.add(["-l".into(), text], &["loader", "uefi"]);
    }
    if let Some(fwcfg) = config.bhyve.fwcfg {
        inputs.needs(host::FW_CFG, "bhyve.fwcfg")?;
        // `-l` does not support fwcfg (pci_lpc.c lpc_device_parse). bhyve_init_config() has the variable.
        line.add(["-o".into(), format!("lpc.fwcfg={}", fwcfg.as_str())], &["bhyve.fwcfg"]);
    }
    match &config.tpm {
        None => {}
        Some(Tpm::Passthru(path)) => {
            inputs.needs(host::TPM, "tpm")?;
            has("tpm", "tpm")?;
            line.add(["-l".into(), format!("tpm,passthru,{}", inputs.value(path, "tpm.path")?)], &["tpm.type", "tpm.path"]);
        }
        Some(Tpm::Swtpm) => {
            inputs.needs(host::SWTPM, "tpm")?;
            let socket = inputs.resolved.tpm_socket.as_ref().ok_or_else(|| GuestError::host("no socket of swtpm"))?;
            line.add(["-l".into(), format!("tpm,swtpm,{}", inputs.value(socket, "tpm")?)], &["tpm.type"]);
        }
    }
    Ok(())
}

/// Adds variables of bhyve_config(5), with those of the guest file last, so that they win.
fn variables(inputs: Inputs<'_>, line: &mut CommandLine) -> Result<()> {
    let config: &GuestConfig = inputs.config;
    let smbios = &config.smbios;
    for (names, text, key) in [
        (&["system.manufacturer"][..], &smbios.manufacturer, "smbios.manufacturer"),
        (&["system.product_name"], &smbios.product, "smbios.product"),
        (&["system.version"], &smbios.version, "smbios.version"),
        (&["system.serial_number"], &smbios.serial, "smbios.serial"),
        (&["system.sku"], &smbios.sku, "smbios.sku"),
        (&["system.family_name"], &smbios.family, "smbios.family"),
        (&["board.asset_tag", "chassis.asset_tag"], &smbios.asset_tag, "smbios.asset_tag"),
    ] {
        if let Some(text) = text {
            inputs.needs(host::SMBIOS, key)?;
            for name in names {
                line.add(["-o".into(), format!("{name}={}", text.replace('%', "%%"))], &[key]);
            }
        }
    }
    if !config.bhyve.acpi_tables_in_memory {
        inputs.needs(host::ACPI_IN_MEMORY, "bhyve.acpi_tables_in_memory")?;
        line.add(["-o", "acpi_tables_in_memory=false"], &["bhyve.acpi_tables_in_memory"]);
    }
    for (name, text) in &config.bhyve.options {
        line.add(["-o".into(), format!("{name}={text}")], &["bhyve.options"]);
    }
    Ok(())
}

/// Adds the password of VNC, in a file that only the engine's user can read.
fn password(inputs: Inputs<'_>, line: &mut CommandLine, files: &mut Vec<GeneratedFile>) -> Result<()> {
    let wants = inputs.config.graphics.as_ref().is_some_and(|graphics| graphics.password_file.is_some());
    let password = match (&inputs.resolved.vnc_password, wants) {
        (Some(password), true) => password.as_str(),
        // `vmctl argv` does not read it.
        (None, true) => "",
        (_, false) => return Ok(()),
    };
    let address = inputs.address(&DeviceKey::Graphics)?;
    let path = inputs.resolved.directory.join("bhyve-secrets.conf");
    let node = format!("pci.{}.{}.{}", address.bus, address.slot, address.function);
    let content = format!("{node}.password={}\n", password.replace('%', "%%"));
    line.add(["-k".into(), inputs.path(&path, "graphics.password_file")?], &["graphics.password_file"]);
    files.push(GeneratedFile { path, content: Content::Secret(content.into()), key: "graphics.password_file".into() });
    Ok(())
}
