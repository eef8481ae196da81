//! The interface of FreeBSD's vmm(4) on amd64: numbers of requests, registers and exits, and the layouts of their arguments.
//!
//! Read from the headers of each release:
//!
//! | release | headers | revision |
//! |---|---|---|
//! | 13 | `sys/amd64/include/vmm.h`, `vmm_dev.h` | releng/13.2 (sobomax/freebsd14_vendor 0f7ff3427c99, and freebsd-src 03ccfdd2ecf3 for `vmm_dev.h`) |
//! | 14 | the same | stable/14, `__FreeBSD_version` 1400507 |
//! | 15 | the same and `sys/dev/vmm/vmm_dev.h` | freebsd-src 001345683da7 (`vmm.h`), 272c8c2b7cfa (`sys/dev/vmm/vmm_dev.h`), 012895d5be9d (`vmm_dev.c`) |
//!
//! What differs between them: 13 returns an exit inside of VM_RUN's argument, later releases through a pointer; the numbers
//! of exits grew by two in 14; 15 makes and destroys machines by requests to `/dev/vmmctl`, earlier releases by sysctl(8),
//! and its VM_ALLOC_MEMSEG has a NUMA policy. Numbers of registers and of requests were only added at the end.
//!
//! These definitions are pure, and are tested on every system.

use std::mem::offset_of;

/// A release of FreeBSD whose interface is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// 13.x.
    R13,
    /// 14.x.
    R14,
    /// 15.0 and later.
    R15,
}

impl Release {
    /// Returns the release of a kernel by kern.osreldate (`__FreeBSD_version` in sys/sys/param.h). `None` before 13.0.
    pub fn of(osreldate: u32) -> Option<Release> {
        match osreldate {
            0..1_300_000 => None,
            1_300_000..1_400_000 => Some(Release::R13),
            1_400_000..1_500_000 => Some(Release::R14),
            1_500_000.. => Some(Release::R15),
        }
    }

    /// Returns VM_RUN.
    pub const fn run(self) -> u32 {
        match self {
            Release::R13 => both::<Run13>(b'v', 1),
            Release::R14 | Release::R15 => writes::<Run14>(b'v', 1),
        }
    }

    /// Returns VM_ALLOC_MEMSEG.
    pub const fn alloc_memseg(self) -> u32 {
        match self {
            Release::R13 | Release::R14 => writes::<MemSeg>(b'v', 14),
            Release::R15 => writes::<MemSeg15>(b'v', 14),
        }
    }

    /// Returns whether the kernel can end a VM_RUN with this exit.
    fn has_exit(self, code: u32) -> bool {
        code < if self == Release::R13 { 24 } else { 26 }
    }
}

/// Directions of a request in its number: sys/sys/ioccom.h.
const IOC_OUT: u32 = 0x4000_0000;
const IOC_IN: u32 = 0x8000_0000;
const IOCPARM_MASK: u32 = 0x1fff;

const fn request(direction: u32, group: u8, number: u32, bytes: usize) -> u32 {
    assert!(bytes <= IOCPARM_MASK as usize, "an argument fits into its number");
    direction | (bytes as u32) << 16 | (group as u32) << 8 | number
}
/// Returns `_IOW(group, number, T)`.
const fn writes<T>(group: u8, number: u32) -> u32 {
    request(IOC_IN, group, number, size_of::<T>())
}
/// Returns `_IOWR(group, number, T)`.
const fn both<T>(group: u8, number: u32) -> u32 {
    request(IOC_IN | IOC_OUT, group, number, size_of::<T>())
}

pub const VM_SET_CAPABILITY: u32 = writes::<Capability>(b'v', 2);
pub const VM_SUSPEND: u32 = writes::<i32>(b'v', 4);
pub const VM_MMAP_MEMSEG: u32 = writes::<MemMap>(b'v', 16);
pub const VM_SET_REGISTER: u32 = writes::<RegisterValue>(b'v', 20);
pub const VM_SET_SEGMENT_DESCRIPTOR: u32 = writes::<SegDescValue>(b'v', 22);
pub const VM_GET_SEGMENT_DESCRIPTOR: u32 = both::<SegDescValue>(b'v', 23);
pub const VM_GET_REGISTER_SET: u32 = both::<RegisterSet>(b'v', 25);
pub const VM_INJECT_EXCEPTION: u32 = writes::<ExceptionArgument>(b'v', 30);
pub const VM_IOAPIC_ASSERT_IRQ: u32 = writes::<i32>(b'v', 33);
pub const VM_IOAPIC_DEASSERT_IRQ: u32 = writes::<i32>(b'v', 34);
pub const VM_LAPIC_MSI: u32 = writes::<LapicMsi>(b'v', 36);
pub const VM_LAPIC_LOCAL_IRQ: u32 = writes::<LapicIrq>(b'v', 37);
pub const VM_SET_TOPOLOGY: u32 = writes::<CpuTopology>(b'v', 63);
pub const VM_ISA_ASSERT_IRQ: u32 = writes::<IsaIrq>(b'v', 80);
pub const VM_ISA_DEASSERT_IRQ: u32 = writes::<IsaIrq>(b'v', 81);
pub const VM_ACTIVATE_CPU: u32 = writes::<i32>(b'v', 90);
pub const VM_SUSPEND_CPU: u32 = writes::<i32>(b'v', 92);
pub const VM_RESUME_CPU: u32 = writes::<i32>(b'v', 93);
pub const VM_RTC_SETTIME: u32 = writes::<i64>(b'v', 102);
pub const VMMCTL_VM_CREATE: u32 = both::<VmName>(b'V', 0);
pub const VMMCTL_VM_DESTROY: u32 = both::<VmName>(b'V', 1);

/// `enum vm_reg_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Reg {
    Rax = 0,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Cr0,
    Cr3,
    Cr4,
    Dr7,
    Rsp,
    Rip,
    Rflags,
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
    Idtr,
    Gdtr,
    Efer,
    Cr2,
    /// VM_REG_GUEST_INTR_SHADOW; the four page-directory pointers of PAE are before it.
    IntrShadow = 38,
    /// VM_REG_GUEST_DR6; DR0 to DR3 are before it.
    Dr6 = 43,
}

/// `enum vm_cap_type`: exit at HLT, and let the kernel wait.
pub const VM_CAP_HALT_EXIT: i32 = 0;
/// Real mode and no paging, which a start-up message needs.
pub const VM_CAP_UNRESTRICTED_GUEST: i32 = 3;

/// `enum vm_suspend_how`.
pub const VM_SUSPEND_RESET: i32 = 1;
pub const VM_SUSPEND_POWEROFF: i32 = 2;
pub const VM_SUSPEND_HALT: i32 = 3;
pub const VM_SUSPEND_TRIPLEFAULT: i32 = 4;

/// APIC_LVT_LINT1 of sys/x86/include/apicreg.h: the entry of the local vector table that a pulse of the NMI pin uses.
pub const APIC_LVT_LINT1: i32 = 1;

/// VM_MAX_NAMELEN: SPECNAMELEN (255, sys/sys/param.h) less a prefix of 10, a suffix of 15 and 1.
pub const VM_MAX_NAMELEN: usize = 229;

/// `struct vmmctl_vm_create` and `struct vmmctl_vm_destroy`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct VmName {
    pub name: [u8; VM_MAX_NAMELEN + 1],
    pub reserved: [i32; 16],
}

/// `struct vm_memseg` of 13 and 14.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct MemSeg {
    pub segid: i32,
    pub len: u64,
    pub name: [u8; 16],
}

/// `struct vm_memseg` of 15. The policy DOMAINSET_POLICY_INVALID (0) is the kernel's own.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct MemSeg15 {
    pub segid: i32,
    pub len: u64,
    pub name: [u8; 16],
    pub ds_mask: u64,
    pub ds_mask_size: u64,
    pub ds_policy: i32,
}

/// `struct vm_memmap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct MemMap {
    pub gpa: u64,
    pub segid: i32,
    pub segoff: i64,
    pub len: u64,
    pub prot: i32,
    pub flags: i32,
}

/// `struct vm_register`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RegisterValue {
    pub cpuid: i32,
    pub regnum: i32,
    pub regval: u64,
}

/// `struct vm_register_set`. The pointers are those of `count` numbers and of `count` values.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RegisterSet {
    pub cpuid: i32,
    pub count: u32,
    pub regnums: *const i32,
    pub regvals: *mut u64,
}

/// `struct seg_desc`. `access` has the bits of a VMX segment's access rights; bit 16 marks a segment that is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SegDesc {
    pub base: u64,
    pub limit: u32,
    pub access: u32,
}

/// `struct vm_seg_desc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SegDescValue {
    pub cpuid: i32,
    pub regnum: i32,
    pub desc: SegDesc,
}

/// `struct vm_capability`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Capability {
    pub cpuid: i32,
    pub captype: i32,
    pub capval: i32,
    pub allcpus: i32,
}

/// `struct vm_exception`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ExceptionArgument {
    pub cpuid: i32,
    pub vector: i32,
    pub error_code: u32,
    pub error_code_valid: i32,
    pub restart_instruction: i32,
}

/// `struct vm_lapic_msi`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LapicMsi {
    pub msg: u64,
    pub addr: u64,
}

/// `struct vm_lapic_irq`. All vCPUs are -1.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LapicIrq {
    pub cpuid: i32,
    pub vector: i32,
}

/// `struct vm_isa_irq`. No pin of the I/O APIC is -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct IsaIrq {
    pub atpic_irq: i32,
    pub ioapic_irq: i32,
}

/// `struct vm_cpu_topology`. `maxcpus` is not used.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct CpuTopology {
    pub sockets: u16,
    pub cores: u16,
    pub threads: u16,
    pub maxcpus: u16,
}

/// `struct vm_run` of 13.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Run13 {
    pub cpuid: i32,
    pub exit: RawExit,
}

/// `struct vm_run` of 14 and later.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Run14 {
    pub cpuid: i32,
    pub cpuset: *mut u8,
    pub cpusetsize: u64,
    pub exit: *mut RawExit,
}

/// `struct vm_exit`, with its union as bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawExit {
    pub exitcode: u32,
    pub inst_length: i32,
    pub rip: u64,
    pub u: Payload,
}

/// The union of `struct vm_exit`, which holds 64-bit numbers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub struct Payload(pub [u8; 120]);

impl RawExit {
    /// Returns an exit that nothing was written to.
    pub const fn empty() -> RawExit {
        RawExit { exitcode: EXIT_BOGUS, inst_length: 0, rip: 0, u: Payload([0; 120]) }
    }
    pub fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes_at(at))
    }
    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes_at(at))
    }
    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes_at(at))
    }
    fn bytes_at<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.u.0[at + i])
    }
    /// Returns whether a kernel of `release` knows the exit's number.
    pub fn is_of(&self, release: Release) -> bool {
        release.has_exit(self.exitcode)
    }
}

/// `enum vm_exitcode`: those that are told apart here.
pub const EXIT_INOUT: u32 = 0;
pub const EXIT_VMX: u32 = 1;
pub const EXIT_BOGUS: u32 = 2;
pub const EXIT_RDMSR: u32 = 3;
pub const EXIT_WRMSR: u32 = 4;
pub const EXIT_HLT: u32 = 5;
pub const EXIT_PAUSE: u32 = 7;
pub const EXIT_PAGING: u32 = 8;
pub const EXIT_INST_EMUL: u32 = 9;
pub const EXIT_SPINUP_AP: u32 = 10;
pub const EXIT_SUSPENDED: u32 = 14;
pub const EXIT_INOUT_STR: u32 = 15;
pub const EXIT_TASK_SWITCH: u32 = 16;
pub const EXIT_SVM: u32 = 19;
pub const EXIT_REQIDLE: u32 = 20;
pub const EXIT_DEBUG: u32 = 21;

/// `struct vm_guest_paging`.
#[repr(C)]
pub struct GuestPaging {
    pub cr3: u64,
    pub cpl: i32,
    pub cpu_mode: i32,
    pub paging_mode: i32,
}

/// `struct vm_inout`. Bits of `flags`: 2:0 bytes, 3 in, 4 string, 5 rep.
#[repr(C)]
pub struct InOut {
    pub flags: u16,
    pub port: u16,
    pub eax: u32,
}

/// `struct vm_inout_str`.
#[repr(C)]
pub struct InOutStr {
    pub inout: InOut,
    pub paging: GuestPaging,
    pub rflags: u64,
    pub cr0: u64,
    pub index: u64,
    pub count: u64,
    pub addrsize: i32,
    pub seg_name: i32,
    pub seg_desc: SegDesc,
}

/// `struct vie`, as far as it is looked at.
#[repr(C)]
pub struct Vie {
    pub inst: [u8; 15],
    pub num_valid: u8,
    pub decoded: [u8; 48],
}

/// `u.inst_emul`.
#[repr(C)]
pub struct InstEmul {
    pub gpa: u64,
    pub gla: u64,
    pub cs_base: u64,
    pub cs_d: i32,
    pub paging: GuestPaging,
    pub vie: Vie,
}

/// `u.vmx`.
#[repr(C)]
pub struct Vmx {
    pub status: i32,
    pub exit_reason: u32,
    pub exit_qualification: u64,
    pub inst_type: i32,
    pub inst_error: i32,
}

/// `u.svm`.
#[repr(C)]
pub struct Svm {
    pub exitcode: u64,
    pub exitinfo1: u64,
    pub exitinfo2: u64,
}

/// `u.paging`.
#[repr(C)]
pub struct Paging {
    pub gpa: u64,
    pub fault_type: i32,
}

/// `u.msr`.
#[repr(C)]
pub struct Msr {
    pub code: u32,
    pub wval: u64,
}

/// `u.spinup_ap`.
#[repr(C)]
pub struct SpinupAp {
    pub vcpu: i32,
    pub rip: u64,
}

/// Sizes and places as a C compiler for amd64 lays these structures down.
const _: () = {
    assert!(size_of::<VmName>() == 296 && offset_of!(VmName, reserved) == 232);
    assert!(size_of::<MemSeg>() == 32 && offset_of!(MemSeg, len) == 8 && offset_of!(MemSeg, name) == 16);
    assert!(size_of::<MemSeg15>() == 56 && offset_of!(MemSeg15, name) == 16 && offset_of!(MemSeg15, ds_mask) == 32);
    assert!(offset_of!(MemSeg15, ds_mask_size) == 40 && offset_of!(MemSeg15, ds_policy) == 48);
    assert!(size_of::<MemMap>() == 40 && offset_of!(MemMap, segid) == 8 && offset_of!(MemMap, segoff) == 16);
    assert!(offset_of!(MemMap, len) == 24 && offset_of!(MemMap, prot) == 32 && offset_of!(MemMap, flags) == 36);
    assert!(size_of::<RegisterValue>() == 16 && offset_of!(RegisterValue, regval) == 8);
    assert!(size_of::<RegisterSet>() == 24 && offset_of!(RegisterSet, regnums) == 8 && offset_of!(RegisterSet, regvals) == 16);
    assert!(size_of::<SegDesc>() == 16 && offset_of!(SegDesc, limit) == 8 && offset_of!(SegDesc, access) == 12);
    assert!(size_of::<SegDescValue>() == 24 && offset_of!(SegDescValue, desc) == 8);
    assert!(size_of::<Capability>() == 16 && size_of::<ExceptionArgument>() == 20);
    assert!(size_of::<LapicMsi>() == 16 && offset_of!(LapicMsi, addr) == 8 && size_of::<LapicIrq>() == 8);
    assert!(size_of::<IsaIrq>() == 8 && size_of::<CpuTopology>() == 8);
    assert!(size_of::<RawExit>() == 136 && offset_of!(RawExit, rip) == 8 && offset_of!(RawExit, u) == 16);
    assert!(size_of::<Run13>() == 144 && offset_of!(Run13, exit) == 8);
    assert!(size_of::<Run14>() == 32 && offset_of!(Run14, cpuset) == 8 && offset_of!(Run14, exit) == 24);
    assert!(size_of::<GuestPaging>() == 24 && offset_of!(GuestPaging, cpl) == 8 && offset_of!(GuestPaging, paging_mode) == 16);
    assert!(size_of::<InOut>() == 8 && offset_of!(InOut, port) == 2 && offset_of!(InOut, eax) == 4);
    assert!(size_of::<InOutStr>() == 88 && offset_of!(InOutStr, paging) == 8 && offset_of!(InOutStr, rflags) == 32);
    assert!(offset_of!(InOutStr, count) == 56 && offset_of!(InOutStr, addrsize) == 64 && offset_of!(InOutStr, seg_desc) == 72);
    assert!(size_of::<Vie>() == 64 && offset_of!(Vie, num_valid) == 15);
    assert!(size_of::<InstEmul>() == 120 && offset_of!(InstEmul, cs_d) == 24 && offset_of!(InstEmul, paging) == 32);
    assert!(offset_of!(InstEmul, vie) == 56);
    assert!(size_of::<Vmx>() == 24 && offset_of!(Vmx, exit_qualification) == 8 && offset_of!(Vmx, inst_error) == 20);
    assert!(size_of::<Svm>() == 24 && offset_of!(Paging, fault_type) == 8);
    assert!(offset_of!(Msr, wval) == 8 && offset_of!(SpinupAp, rip) == 8);
    assert!(
        Reg::Rip as i32 == 20
            && Reg::Es as i32 == 22
            && Reg::Ldtr as i32 == 28
            && Reg::Efer as i32 == 32
            && Reg::Cr2 as i32 == 33
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_that_a_compiler_makes_of_each_releases_headers() {
        assert_eq!(Release::R13.run(), 0xc090_7601);
        assert_eq!((Release::R14.run(), Release::R15.run()), (0x8020_7601, 0x8020_7601));
        assert_eq!((Release::R13.alloc_memseg(), Release::R14.alloc_memseg()), (0x8020_760e, 0x8020_760e));
        assert_eq!(Release::R15.alloc_memseg(), 0x8038_760e);
        assert_eq!((VM_SET_CAPABILITY, VM_SUSPEND, VM_MMAP_MEMSEG), (0x8010_7602, 0x8004_7604, 0x8028_7610));
        assert_eq!((VM_SET_REGISTER, VM_GET_REGISTER_SET), (0x8010_7614, 0xc018_7619));
        assert_eq!((VM_SET_SEGMENT_DESCRIPTOR, VM_GET_SEGMENT_DESCRIPTOR), (0x8018_7616, 0xc018_7617));
        assert_eq!((VM_INJECT_EXCEPTION, VM_LAPIC_MSI, VM_LAPIC_LOCAL_IRQ), (0x8014_761e, 0x8010_7624, 0x8008_7625));
        assert_eq!((VM_IOAPIC_ASSERT_IRQ, VM_IOAPIC_DEASSERT_IRQ), (0x8004_7621, 0x8004_7622));
        assert_eq!((VM_ISA_ASSERT_IRQ, VM_ISA_DEASSERT_IRQ, VM_SET_TOPOLOGY), (0x8008_7650, 0x8008_7651, 0x8008_763f));
        assert_eq!((VM_ACTIVATE_CPU, VM_SUSPEND_CPU, VM_RESUME_CPU), (0x8004_765a, 0x8004_765c, 0x8004_765d));
        assert_eq!((VM_RTC_SETTIME, APIC_LVT_LINT1), (0x8008_7666, 1));
        assert_eq!((VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY), (0xc128_5600, 0xc128_5601));
    }

    #[test]
    fn a_release_is_known_by_its_kernels_number_and_an_old_one_is_not() {
        let of = |numbers: [u32; 4]| numbers.map(Release::of);
        assert_eq!(
            of([1_204_000, 1_302_001, 1_400_507, 1_500_068]),
            [None, Some(Release::R13), Some(Release::R14), Some(Release::R15)]
        );
        assert_eq!(Release::of(1_600_000), Some(Release::R15));
    }
}
