//! The values of keys with a fixed set of words, and the engines that support each word: one declaration per choice.
//! The declaration makes the enum, its rows in the key table with the text of the manual, and the function that parses
//! the word. The configuration (`config`) and the machine's specification (`machine::spec`) both use these enums.
//!
//! The head of `declare.rs` describes the form of a row. For a device that the embedded engine gets too, `bhyve` becomes
//! `now` here; the compiler then reports the `match` that must wire it.
mod declare; // the macro

use serde::{Deserialize, Serialize};

use declare::choices;

/// A word that a key accepts, as the key table and the manual show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The word.
    pub value: &'static str,
    /// The engines that support it.
    pub support: Support,
    /// Description in one or two sentences.
    pub doc: &'static str,
}

/// An enum of choices.
pub trait Choices: Copy + 'static {
    /// Every value, in the order of the manual.
    const ALL: &'static [Self];
    /// The rows of the key table, which include the words of a later version.
    const ROWS: &'static [Choice];
    /// Returns the word of a file.
    fn word(self) -> &'static str;
    /// Returns the value of a word.
    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|choice| choice.word() == word)
    }
}

/// The engines that support a key or a word. A key that the guest's engine does not support is refused, never ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Every engine.
    Now,
    /// Only bhyve(8).
    Bhyve,
    /// Only the hypervisor in this program.
    Embedded,
    /// No engine of this version. The text says what to do until then.
    Later(&'static str),
}

impl Support {
    /// Returns whether this engine supports it; for `None`, whether any does.
    pub fn on(self, engine: Option<EngineKind>) -> bool {
        match self {
            Self::Now => true,
            Self::Bhyve => engine != Some(EngineKind::Embedded),
            Self::Embedded => engine != Some(EngineKind::Bhyve),
            Self::Later(_) => false,
        }
    }

    /// Returns a note for users about the engines. It is empty if all support it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Now => "",
            Self::Bhyve => "Only with `engine = \"bhyve\"`.",
            Self::Embedded => "Only with `engine = \"embedded\"`.",
            Self::Later(_) => "Not in this version.",
        }
    }
}

choices! {
    /// Kind of an engine.
    pub enum EngineKind {
        now Embedded = "embedded": "The hypervisor in this program, on any machine.";
        now Bhyve = "bhyve": "bhyve(8), on FreeBSD. The file can be checked anywhere.";
    }

    /// The requested vCPU back end.
    pub enum BackendKind {
        now Auto = "auto": "The fastest that really works on this machine.";
        now Kvm = "kvm": "KVM, on Linux.";
        now Vmm = "vmm": "vmm(4), on FreeBSD. It has not run on a FreeBSD host yet, and auto does not take it.";
        now Soft = "soft": "The software CPU, on any machine.";
    }

    /// The way in which a guest boots.
    pub enum LoaderKind [embedded EmbeddedLoaderKind] [bhyve BhyveLoaderKind] {
        embedded Kernel = "kernel": "A kernel from the host, entered directly: a Linux bzImage, an ELF file with a PVH note, or a Multiboot image.";
        now Grub = "grub": "The guest's own boot menu, or commands of yours. With the embedded engine also Boot Loader Specification entries and the menus of syslinux, isolinux and extlinux, on ext2/3/4, XFS, FAT and ISO 9660.";
        bhyve Uefi = "uefi": "UEFI firmware.";
        bhyve Bhyveload = "bhyveload": "FreeBSD's loader, for FreeBSD guests.";
    }

    /// A system that GRUB loads.
    pub enum GrubSystem [embedded EmbeddedGrubSystem] {
        now Linux = "linux": "A system that reads a grub.cfg, or `commands`.";
        bhyve Openbsd = "openbsd": "OpenBSD, with kopenbsd.";
        bhyve Netbsd = "netbsd": "NetBSD, with knetbsd.";
    }

    /// Time that the real-time clock shows.
    pub enum Clock [embedded EmbeddedClock] {
        now Utc = "utc": "UTC, as Unix systems expect.";
        bhyve Localtime = "localtime": "The host's local time, as Windows expects.";
    }

    /// Storage of a disk's bytes.
    pub enum DiskBackend {
        now Sparse = "sparse": "A sparse raw file that vmctl makes and grows; it takes up only what was written.";
        bhyve Zvol = "zvol": "A ZFS volume that vmctl makes and grows.";
        now File = "file": "An existing raw file or device; vmctl never creates, grows or deletes it.";
        bhyve Iscsi = "iscsi": "A unit of an iSCSI target, which iscsid(8) of the host attaches.";
    }

    /// Format of a disk's file.
    pub enum DiskFormat {
        now Raw = "raw": "The bytes of the disk as they are, whatever they look like.";
    }

    /// The disk device that the guest sees. bhyve(8) spells them alike.
    pub enum DiskDevice [embedded EmbeddedDiskDevice] [bhyve BhyveDiskDevice] {
        now VirtioBlk = "virtio-blk": "A virtio block device.";
        now AhciHd = "ahci-hd": "A SATA disk.";
        now AhciCd = "ahci-cd": "A SATA CD drive, with the image at `path` in it.";
        bhyve Nvme = "nvme": "An NVMe disk; the best choice for Windows.";
        bhyve VirtioScsi = "virtio-scsi": "A virtio SCSI controller on a CAM target layer device, like `/dev/cam/ctl1.0`.";
    }

    /// When a guest's write completes.
    pub enum DiskCache [embedded EmbeddedDiskCache] [bhyve BhyveDiskCache] {
        now Writeback = "writeback": "The host's page cache; the guest's flush waits for the medium.";
        now Writethrough = "writethrough": "Every write waits for the medium.";
        now None = "none": "The host's page cache is bypassed (O_DIRECT); a file system that cannot is refused or, as ZFS, ignores it.";
        embedded Unsafe = "unsafe": "The guest's flush waits for nothing: a power cut loses data.";
    }

    /// Connection of a network interface.
    pub enum NicBackend [embedded EmbeddedNicBackend] {
        now User = "user": "A network inside vmctl, or bhyve's slirp, with DHCP, DNS and NAT; needs no switch.";
        now Tap = "tap": "A tap interface, on a switch; with the embedded engine on Linux.";
        bhyve Vmnet = "vmnet": "A vmnet interface: a tap that goes down with bhyve.";
        bhyve Vale = "vale": "A port of a vale(4) switch.";
        bhyve Netgraph = "netgraph": "A hook of a netgraph(4) node.";
        bhyve Netmap = "netmap": "An interface of the host, with netmap(4).";
        now None = "none": "Not connected: the link is down. The other keys are kept for when it is connected again.";
    }

    /// The network device that the guest sees. bhyve(8) spells them alike.
    pub enum NicDevice [embedded EmbeddedNicDevice] {
        now VirtioNet = "virtio-net": "A virtio network device.";
        bhyve E1000 = "e1000": "An Intel 82545EM.";
    }

    /// A transport protocol.
    pub enum ForwardProto {
        now Tcp = "tcp": "TCP.";
        now Udp = "udp": "UDP.";
    }

    /// Action of the supervisor after an exit.
    pub enum ExitAction {
        now Restart = "restart": "Boot again.";
        now Stop = "stop": "Leave it stopped.";
    }

    /// State that the guests after this one wait for.
    pub enum AutostartWait {
        now Running = "running": "It runs.";
        now Ready = "ready": "Its `[ready]` probes have passed.";
    }

    /// Event for a hook.
    pub enum HookEvent {
        now PostCreate = "post-create": "The guest was created.";
        now PreStart = "pre-start": "Before every boot, also after a reboot.";
        now PostStart = "post-start": "The guest runs.";
        now Ready = "ready": "Its probes have passed.";
        now PreStop = "pre-stop": "Before `stop` presses the power button.";
        now PostStop = "post-stop": "It has stopped for good.";
        now Crash = "crash": "It crashed; before the policy is applied.";
        now Failed = "failed": "The limit of crashes was reached.";
        now PreDestroy = "pre-destroy": "Before it is destroyed.";
    }

    /// Consequence of a hook's failure.
    pub enum HookFailure {
        now Ignore = "ignore": "It is logged.";
        now Fail = "fail": "The action after the hook does not happen; only for the `pre-` events.";
    }

    /// The VGA part of a screen; `vga=` of bhyve(8).
    pub enum Vga {
        bhyve Io = "io": "VGA text mode for guests that use its ports: most do.";
        bhyve On = "on": "VGA always.";
        bhyve Off = "off": "No VGA; OpenBSD with UEFI needs this.";
    }

    /// Kind of a trusted platform module.
    pub enum TpmKind {
        bhyve Swtpm = "swtpm": "swtpm(8) of the ports, which vmctl starts and stops.";
        bhyve Passthru = "passthru": "A TPM of the host.";
    }

    /// The bridge at slot 0.
    pub enum Hostbridge {
        bhyve Standard = "standard": "An Intel one.";
        bhyve Amd = "amd": "An AMD one, for guests that check for it.";
        bhyve None = "none": "None; slot 0 is free for another device.";
    }

    /// A firmware configuration interface; bhyve(8) spells them alike.
    pub enum FwCfg {
        bhyve Bhyve = "bhyve": "bhyve's own.";
        bhyve Qemu = "qemu": "QEMU's, for firmware that reads it; `boot.order` needs it.";
    }

    /// Kind of a switch.
    pub enum SwitchType {
        now Bridge = "bridge": "A bridge that vmctl makes: an if_bridge(4) on FreeBSD, one of the kernel's on Linux.";
        now Manual = "manual": "A bridge of yours, named with `bridge`, which vmctl only adds taps to.";
        bhyve Vxlan = "vxlan": "A bridge with a vxlan(4) interface to other hosts.";
        bhyve Vale = "vale": "A vale(4) switch.";
        bhyve Netgraph = "netgraph": "An ng_bridge(4) node that vmctl makes; or one of yours, named with `bridge`.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_one_value_and_another_for_none() {
        assert_eq!(DiskDevice::of_word("nvme"), Some(DiskDevice::Nvme));
        assert_eq!(DiskDevice::Nvme.as_str(), "nvme");
        assert_eq!(BackendKind::of_word("vmm"), Some(BackendKind::Vmm));
        assert_eq!(BackendKind::of_word("hvf"), None);
    }

    #[test]
    fn what_one_engine_has_follows_from_the_rows() {
        for disk in DiskDevice::ALL {
            let row = DiskDevice::ROWS.iter().find(|row| row.value == disk.as_str()).unwrap();
            assert_eq!(disk.on_embedded().is_some(), row.support.on(Some(EngineKind::Embedded)), "{disk:?}");
        }
        assert_eq!(LoaderKind::Kernel.on_bhyve(), None);
        assert_eq!(serde_json::to_string(&DiskDevice::AhciCd.on_embedded()).unwrap(), "\"ahci-cd\"");
    }
}
