//! The processor's features for vmm(4), from the kernel's boot messages: before vmm is loaded there is no other source.
//!
//! `sys/x86/x86/identcpu.c`: `Features2=...,POPCNT,...`; `VT-x: ...,EPT,UG,...` where the processor has VT-x
//! (print_vmx_info), `SVM: NP,...` where it has AMD-V (print_svm_info), both with `(disabled in BIOS)` before them if
//! the firmware keeps it off. A virtual machine without nested virtualisation has neither line.

use super::{environment, program};

/// Features in a processor's boot messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// VT-x with extended page tables.
    pub ept: bool,
    /// VT-x with unrestricted guests.
    pub unrestricted: bool,
    /// AMD-V with nested paging.
    pub nested_paging: bool,
    /// The POPCNT instruction.
    pub popcnt: bool,
    /// The firmware keeps VT-x or AMD-V off.
    pub disabled: bool,
    /// The messages contain the processor at all.
    pub any: bool,
}

/// Whether a processor can run guests under vmm(4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// It can.
    Good,
    /// It can, with one virtual CPU and without firmware.
    Restricted,
    /// It cannot, for this reason.
    Bad(&'static str),
    /// It is not known, since the messages are gone.
    Unknown,
}

impl Features {
    /// Reads boot messages.
    pub fn parse(boot: &str) -> Features {
        let mut found = Features::default();
        for line in boot.lines().map(str::trim) {
            let list = line.strip_prefix("VT-x: ").or_else(|| line.strip_prefix("SVM: "));
            if let Some(list) = list {
                let (disabled, list) = match list.strip_prefix("(disabled in BIOS) ") {
                    Some(rest) => (true, rest),
                    None => (false, list),
                };
                let has = |word: &str| list.split(',').any(|other| other.trim() == word);
                found.any = true;
                found.disabled |= disabled;
                found.ept |= has("EPT");
                found.unrestricted |= has("UG");
                found.nested_paging |= has("NP");
            } else if line.starts_with("Features2=") {
                found.any = true;
                found.popcnt |= line.contains("POPCNT");
            }
        }
        found
    }

    /// Reads the features of this host, from the messages that rc(8) kept or that are still in the kernel's buffer.
    pub fn of_this_host() -> Option<Features> {
        let kept = std::fs::read_to_string(environment::path("/var/run/dmesg.boot")).ok();
        kept.or_else(|| program::run("dmesg", &[]).ok()).map(|boot| Features::parse(&boot))
    }

    /// Returns whether vmm(4) can run guests (`sys/amd64/vmm/intel/vmx.c` vmx_modinit, `sys/amd64/vmm/amd/svm.c`
    /// svm_modinit).
    pub fn fitness(&self) -> Fitness {
        match (self.ept, self.nested_paging) {
            _ if !self.any => Fitness::Unknown,
            (false, false) => Fitness::Bad("has no EPT and no nested paging, or a hypervisor does not pass them on"),
            _ if self.disabled => Fitness::Bad("has VT-x or AMD-V turned off in the host's firmware"),
            _ if !self.popcnt => Fitness::Bad("has no POPCNT, and bhyve needs it"),
            (true, _) if !self.unrestricted => Fitness::Restricted,
            _ => Fitness::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: &str = "\
CPU: Intel(R) Xeon(R)
  Features2=0x7ffafbbf<SSE3,PCLMULQDQ,VMX,POPCNT,AESNI>
  VT-x: PAT,HLT,MTRR,PAUSE,EPT,UG,VPID
";

    #[test]
    fn what_a_processor_can_is_read_from_its_boot_messages() {
        let intel = Features::parse(INTEL);
        let wanted = Features { ept: true, unrestricted: true, popcnt: true, any: true, ..Features::default() };
        assert_eq!((intel.fitness(), intel), (Fitness::Good, wanted));
        let amd = Features::parse("  Features2=0x1<SSE3,POPCNT>\n  SVM: NP,NRIP,AFlush,NAsids=32768\n");
        assert_eq!(amd.fitness(), Fitness::Good);
    }

    #[test]
    fn what_a_processor_lacks_is_said() {
        let fitness = |boot: &str| Features::parse(boot).fitness();
        assert_eq!(fitness(&INTEL.replace("POPCNT,", "")), Fitness::Bad("has no POPCNT, and bhyve needs it"));
        assert!(matches!(fitness("  Features2=0x1<SSE3,POPCNT>\n"), Fitness::Bad(why) if why.contains("hypervisor")));
        assert_eq!(fitness("  Features2=0x1<POPCNT>\n  VT-x: EPT\n"), Fitness::Restricted);
        assert_eq!(fitness(""), Fitness::Unknown);
    }

    #[test]
    fn what_the_firmware_keeps_off_is_not_there() {
        for (line, off) in [("VT-x: ", "VT-x: (disabled in BIOS) "), ("SVM: ", "SVM: (disabled in BIOS) ")] {
            let boot = INTEL.replace("VT-x: PAT", &format!("{line}NP,PAT")).replace(line, off);
            let found = Features::parse(&boot);
            assert!(matches!(found.fitness(), Fitness::Bad(why) if why.contains("firmware")), "{found:?}");
        }
    }
}
