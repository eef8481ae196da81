//! What an exit of VM_RUN asks for, read from the bytes that the kernel returned.
//!
//! Source: `struct vm_exit` and the handlers of vm_run() in sys/amd64/vmm/vmm.c (stable/14, 1400507): HLT, PAUSE and faults
//! in memory that the guest has are the kernel's own.
//!
//! **Hostile guest**: a guest chooses ports, addresses, numbers of registers and the bytes of an instruction. The rest is
//! the kernel's, and is checked all the same: what does not fit, or is not known, is [`Exit::Unknown`] with a reason.

use std::fmt::Write as _;
use std::mem::offset_of;

use super::abi::{self, InOut, InOutStr, InstEmul, Msr, Paging, RawExit, Release, SpinupAp, Svm, Vie, Vmx};
use crate::hypervisor::backend::MachineExit;

/// Bytes of the longest instruction.
const LONGEST_INSTRUCTION: i32 = 15;

/// What an exit asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// `in` to EAX. The kernel continues with the next instruction.
    PortIn {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        width: u8,
    },
    /// `out`. The kernel continues with the next instruction.
    PortOut {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        width: u8,
        /// The bytes.
        value: u32,
    },
    /// The instruction at RIP, which accesses a device or moves strings to or from a port.
    Instruction {
        /// Privilege level of the instruction.
        cpl: u8,
    },
    /// `rdmsr` of a register that the kernel does not have.
    ReadMsr(u32),
    /// `wrmsr` of a register that the kernel does not have.
    WriteMsr(u32),
    /// A start-up message for another vCPU, which starts at `vector << 12`.
    StartVcpu {
        /// The vCPU.
        vcpu: usize,
        /// The vector.
        vector: u8,
    },
    /// All vCPUs have stopped. The reason is whoever stopped them, or what the guest did.
    Suspended(Option<MachineExit>),
    /// VM_SUSPEND_CPU brought the vCPU back.
    Debug,
    /// Nothing to do: the thread was wanted elsewhere, or waited.
    Nothing,
    /// What this back end does not know. The machine cannot go on.
    Unknown(String),
}

impl Exit {
    /// Reads what a kernel of `release` returned, for a machine of `vcpus`.
    pub fn of(raw: &RawExit, release: Release, vcpus: usize) -> Exit {
        if !raw.is_of(release) {
            return Exit::Unknown(format!("an unknown exit ({})", raw.exitcode));
        }
        if !(0..=LONGEST_INSTRUCTION).contains(&raw.inst_length) {
            return Exit::Unknown(format!("exit {} after an instruction of {} bytes", raw.exitcode, raw.inst_length));
        }
        match raw.exitcode {
            abi::EXIT_INOUT => port(raw),
            abi::EXIT_INOUT_STR => {
                Exit::Instruction { cpl: level(raw, offset_of!(InOutStr, paging) + offset_of!(abi::GuestPaging, cpl)) }
            }
            abi::EXIT_INST_EMUL => {
                Exit::Instruction { cpl: level(raw, offset_of!(InstEmul, paging) + offset_of!(abi::GuestPaging, cpl)) }
            }
            abi::EXIT_RDMSR => Exit::ReadMsr(raw.u32_at(offset_of!(Msr, code))),
            abi::EXIT_WRMSR => Exit::WriteMsr(raw.u32_at(offset_of!(Msr, code))),
            abi::EXIT_SPINUP_AP => start(raw, vcpus),
            abi::EXIT_SUSPENDED => suspended(raw),
            abi::EXIT_DEBUG => Exit::Debug,
            abi::EXIT_BOGUS | abi::EXIT_HLT | abi::EXIT_PAUSE | abi::EXIT_REQIDLE => Exit::Nothing,
            abi::EXIT_VMX => Exit::Unknown(vmx(raw)),
            abi::EXIT_SVM => Exit::Unknown(svm(raw)),
            abi::EXIT_PAGING => Exit::Unknown(format!("a page fault at {:#x}", raw.u64_at(offset_of!(Paging, gpa)))),
            abi::EXIT_TASK_SWITCH => Exit::Unknown("a task switch, which vmm(4) leaves to its user".into()),
            code => Exit::Unknown(format!("exit {code}, which was not asked for")),
        }
    }
}

fn level(raw: &RawExit, at: usize) -> u8 {
    (raw.u32_at(at) & 3) as u8
}

fn port(raw: &RawExit) -> Exit {
    let flags = raw.u16_at(offset_of!(InOut, flags));
    let (width, port) = ((flags & 7) as u8, raw.u16_at(offset_of!(InOut, port)));
    if !matches!(width, 1 | 2 | 4) {
        return Exit::Unknown(format!("an access of {width} bytes to port {port:#x}"));
    }
    match flags & 1 << 3 {
        0 => {
            let value = raw.u32_at(offset_of!(InOut, eax)) & (u32::MAX >> (32 - 8 * u32::from(width)));
            Exit::PortOut { port, width, value }
        }
        _ => Exit::PortIn { port, width },
    }
}

fn start(raw: &RawExit, vcpus: usize) -> Exit {
    let (vcpu, rip) = (raw.u32_at(offset_of!(SpinupAp, vcpu)), raw.u64_at(offset_of!(SpinupAp, rip)));
    // A message to an APIC that is not there reaches nobody.
    if vcpu as usize >= vcpus {
        return Exit::Nothing;
    }
    match u8::try_from(rip >> 12) {
        Ok(vector) if rip % 0x1000 == 0 => Exit::StartVcpu { vcpu: vcpu as usize, vector },
        _ => Exit::Unknown(format!("a start of vCPU {vcpu} at {rip:#x}")),
    }
}

fn suspended(raw: &RawExit) -> Exit {
    match raw.u32_at(0) as i32 {
        abi::VM_SUSPEND_RESET => Exit::Suspended(Some(MachineExit::Reboot)),
        // The request of this program.
        abi::VM_SUSPEND_POWEROFF => Exit::Suspended(None),
        abi::VM_SUSPEND_HALT => Exit::Suspended(Some(MachineExit::Halt)),
        abi::VM_SUSPEND_TRIPLEFAULT => Exit::Suspended(Some(MachineExit::TripleFault)),
        how => Exit::Unknown(format!("a stop for an unknown reason ({how})")),
    }
}

/// Exit reasons of VMX that a reader of the log can act on: SDM vol. 3 appendix C.
const VMX_INVALID_GUEST_STATE: u32 = 33;

fn vmx(raw: &RawExit) -> String {
    let (status, reason) = (raw.u32_at(offset_of!(Vmx, status)), raw.u32_at(offset_of!(Vmx, exit_reason)));
    let qualification = raw.u64_at(offset_of!(Vmx, exit_qualification));
    if status != 0 {
        let error = raw.u32_at(offset_of!(Vmx, inst_error));
        return format!("the processor does not enter the guest (VMX status {status}, error {error})");
    }
    match reason & 0xffff {
        VMX_INVALID_GUEST_STATE => format!("the processor does not enter the guest: its state is invalid ({qualification:#x})"),
        basic => format!("an exit of VMX that vmm(4) does not know (reason {basic}, qualification {qualification:#x})"),
    }
}

/// VMEXIT_INVALID, APM vol. 2 appendix C: -1.
const SVM_INVALID: u64 = u64::MAX;

fn svm(raw: &RawExit) -> String {
    let (code, info1, info2) =
        (raw.u64_at(offset_of!(Svm, exitcode)), raw.u64_at(offset_of!(Svm, exitinfo1)), raw.u64_at(offset_of!(Svm, exitinfo2)));
    match code {
        SVM_INVALID => "the processor does not enter the guest: its state is invalid".into(),
        _ => format!("an exit of SVM that vmm(4) does not know (code {code:#x}, {info1:#x}, {info2:#x})"),
    }
}

/// Returns the bytes of the instruction that an exit is about, as the kernel read them, for the log.
pub fn instruction_bytes(raw: &RawExit) -> Option<String> {
    if raw.exitcode != abi::EXIT_INST_EMUL {
        return None;
    }
    let vie = offset_of!(InstEmul, vie);
    let (inst, valid) = (vie + offset_of!(Vie, inst), raw.u.0[vie + offset_of!(Vie, num_valid)]);
    let bytes = &raw.u.0[inst..inst + usize::from(valid).min(LONGEST_INSTRUCTION as usize)];
    let mut text = format!("at {:#x}:", raw.u64_at(offset_of!(InstEmul, gpa)));
    bytes.iter().for_each(|byte| write!(text, " {byte:02x}").expect("a string grows"));
    Some(text)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Makes an exit as a kernel does.
    pub fn raw(code: u32, inst_length: i32, parts: &[(usize, &[u8])]) -> RawExit {
        let mut raw = RawExit { exitcode: code, inst_length, rip: 0x1000, ..RawExit::empty() };
        for &(at, bytes) in parts {
            raw.u.0[at..at + bytes.len()].copy_from_slice(bytes);
        }
        raw
    }

    /// An access to a port by `in` or `out`.
    pub fn inout(flags: u16, port: u16, eax: u32) -> RawExit {
        raw(0, 1, &[(0, &flags.to_le_bytes()), (2, &port.to_le_bytes()), (4, &eax.to_le_bytes())])
    }

    /// A stop of all vCPUs.
    pub fn stop(how: i32) -> RawExit {
        raw(14, 0, &[(0, &how.to_le_bytes())])
    }

    /// A start-up message for a vCPU.
    pub fn spinup(vcpu: i32, rip: u64) -> RawExit {
        raw(10, 0, &[(0, &vcpu.to_le_bytes()), (8, &rip.to_le_bytes())])
    }

    fn of(raw: &RawExit) -> Exit {
        Exit::of(raw, Release::R14, 4)
    }

    fn is_unknown(raw: &RawExit, words: &str) {
        match of(raw) {
            Exit::Unknown(why) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_port_access_has_its_width_and_its_bytes_and_no_more() {
        assert_eq!(of(&inout(1 | 1 << 3, 0x3f8, 0)), Exit::PortIn { port: 0x3f8, width: 1 });
        assert_eq!(of(&inout(2, 0xcf8, 0xdead_beef)), Exit::PortOut { port: 0xcf8, width: 2, value: 0xbeef });
        assert_eq!(of(&inout(4, 0xffff, u32::MAX)), Exit::PortOut { port: 0xffff, width: 4, value: u32::MAX });
        for width in [0, 3, 5, 6, 7] {
            is_unknown(&inout(width, 0x60, 0), "bytes to port 0x60");
        }
    }

    #[test]
    fn device_memory_and_strings_are_an_instruction_at_its_privilege() {
        let emul = raw(9, 0, &[(0, &0xc000_0010u64.to_le_bytes()), (32 + 8, &3i32.to_le_bytes())]);
        assert_eq!(of(&emul), Exit::Instruction { cpl: 3 });
        let string = raw(15, 2, &[(8 + 8, &(-1i32).to_le_bytes())]);
        assert_eq!(of(&string), Exit::Instruction { cpl: 3 });
    }

    #[test]
    fn an_instructions_bytes_are_shown_and_their_number_is_not_believed() {
        let emul = |valid: u8| raw(9, 0, &[(0, &0xc000_0010u64.to_le_bytes()), (56, &[0x8b, 0x07]), (71, &[valid])]);
        assert_eq!(instruction_bytes(&emul(2)).unwrap(), "at 0xc0000010: 8b 07");
        assert_eq!(instruction_bytes(&emul(0)).unwrap(), "at 0xc0000010:");
        assert_eq!(instruction_bytes(&emul(255)).unwrap().split(' ').count(), 2 + 15);
        assert_eq!(instruction_bytes(&inout(1, 2, 3)), None);
    }

    #[test]
    fn a_start_names_a_vcpu_of_the_machine_and_a_page_below_1_mib() {
        assert_eq!(of(&spinup(3, 0x9a000)), Exit::StartVcpu { vcpu: 3, vector: 0x9a });
        for nobody in [4, 255, -1] {
            assert_eq!(of(&spinup(nobody, 0x9a000)), Exit::Nothing);
        }
        for rip in [0x100_0000, 0x9a001, u64::MAX] {
            is_unknown(&spinup(1, rip), "a start of vCPU 1");
        }
    }

    #[test]
    fn the_guests_own_end_is_told_from_a_stop_by_this_program() {
        let suspended = [1, 2, 3, 4].map(|how| of(&stop(how)));
        let exits = [Some(MachineExit::Reboot), None, Some(MachineExit::Halt), Some(MachineExit::TripleFault)];
        assert_eq!(suspended, exits.map(Exit::Suspended));
        is_unknown(&stop(0), "unknown reason (0)");
        is_unknown(&stop(-7), "unknown reason (-7)");
    }

    #[test]
    fn registers_are_named_and_waiting_is_nothing() {
        assert_eq!(of(&raw(3, 2, &[(0, &0x8bu32.to_le_bytes())])), Exit::ReadMsr(0x8b));
        assert_eq!(of(&raw(4, 2, &[(0, &0xc001_0015u32.to_le_bytes()), (8, &[1])])), Exit::WriteMsr(0xc001_0015));
        for code in [2, 5, 7, 20] {
            assert_eq!(of(&raw(code, 0, &[])), Exit::Nothing, "{code}");
        }
        assert_eq!(of(&raw(21, 0, &[])), Exit::Debug);
    }

    #[test]
    fn a_processor_that_does_not_enter_says_so() {
        is_unknown(&raw(1, 0, &[(0, &1i32.to_le_bytes()), (20, &7i32.to_le_bytes())]), "VMX status 1, error 7");
        is_unknown(&raw(1, 0, &[(4, &0x8000_0021u32.to_le_bytes())]), "its state is invalid");
        is_unknown(&raw(1, 0, &[(4, &2u32.to_le_bytes()), (8, &[9])]), "reason 2, qualification 0x9");
        is_unknown(&raw(19, 0, &[(0, &u64::MAX.to_le_bytes())]), "its state is invalid");
        is_unknown(&raw(19, 0, &[(0, &0x7fu64.to_le_bytes())]), "code 0x7f");
    }

    #[test]
    fn every_number_of_an_exit_is_answered_on_every_release() {
        for release in [Release::R13, Release::R14, Release::R15] {
            for code in (0..64).chain([u32::MAX, 1 << 31]) {
                for length in [i32::MIN, -1, 0, 15, 16, i32::MAX] {
                    for fill in [0, 0xff] {
                        let mut raw = raw(code, length, &[]);
                        raw.u.0.fill(fill);
                        let exit = Exit::of(&raw, release, 1);
                        let bad_length = !(0..=15).contains(&length);
                        assert!(!bad_length || matches!(exit, Exit::Unknown(_)), "{code} {length} {exit:?}");
                        let _ = instruction_bytes(&raw);
                    }
                }
            }
        }
        let known = |release| !matches!(Exit::of(&raw(24, 0, &[]), release, 1), Exit::Unknown(why) if why.contains("unknown"));
        assert_eq!([Release::R13, Release::R14].map(known), [false, true]);
    }
}
