//! Whether the host's KVM is one: the device, its interface, and a short guest that is run and timed.
//!
//! Some hosts offer a /dev/kvm that opens, says version 12, and then interprets every instruction of a guest or fails on the
//! first unusual one. A machine there is slower than on the software CPU, or stops. So a guest of three hundred thousand
//! instructions runs first: CPUID, a load through a second mapping of a page, SSE2, x87, and a counted loop. What it computed
//! is compared, and the processor time that it took.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, sections 4.1 (KVM_GET_API_VERSION), 4.4 (KVM_CHECK_EXTENSION).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Group};

use super::memory::Slots;
use super::page::{Exit, RunPage};
use super::vcpu;
use crate::hypervisor::backend::{BootState, Needs};
use crate::hypervisor::entry::EntryState;
use crate::hypervisor::memory::{GuestAddr, GuestMemory, Mode};

const DEVICE: &str = "/dev/kvm";
/// The version of the interface since 2007; the kernel's documentation tells programs to refuse any other.
const VERSION: i32 = 12;

/// What the machine needs of the kernel.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Reason why the host's KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device.
    #[error("this host has no `/dev/kvm`: its kernel has no KVM, or neither `kvm_intel` nor `kvm_amd` is loaded")]
    Missing,
    /// The user may not open the device.
    #[error("no permission to open `/dev/kvm`; members of the group `{group}` have it")]
    Denied {
        /// The device's group.
        group: String,
    },
    /// The device cannot be opened.
    #[error("cannot open `/dev/kvm`")]
    Open(#[source] io::Error),
    /// The interface is another.
    #[error("`/dev/kvm` has version {found} of the interface, this program uses version {VERSION}")]
    Version {
        /// The version that was found.
        found: i32,
    },
    /// The kernel is too old.
    #[error("the host's KVM lacks {}", .0.join(", "))]
    Lacks(Vec<&'static str>),
    /// The guest has too many vCPUs.
    #[error("the guest has {wanted} vCPUs, the host's KVM runs at most {most}")]
    TooManyVcpus {
        /// vCPUs of the guest.
        wanted: u32,
        /// The limit.
        most: u32,
    },
    /// The guest is to be repeatable.
    #[error("runs of a guest with `debug.deterministic` are repeatable only on `backend = \"soft\"`")]
    Deterministic,
    /// The short guest did not come to its end.
    #[error("it does not run a guest: a short one ended with {0}")]
    Stopped(String),
    /// The short guest computed something wrong.
    #[error("it does not run a guest: a short one computed wrong results")]
    Wrong,
    /// The short guest was interpreted.
    #[error("it interprets its guests: {0} million instructions a second, which the software CPU exceeds")]
    Slow(u64),
    /// A request failed.
    #[error("cannot {action}")]
    Call {
        /// What was requested.
        action: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
}

/// Returns a function that makes an error of what failed.
pub fn cannot<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> KvmError {
    move |error| KvmError::Call { action, source: error.into() }
}

/// What the kernel says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostFacts {
    version: i32,
    lacks: Vec<&'static str>,
    most_vcpus: u32,
}

/// Opens the device and checks what the kernel says about itself.
pub fn open(needs: &Needs) -> Result<Kvm, KvmError> {
    if needs.deterministic {
        return Err(KvmError::Deterministic);
    }
    let kvm = Kvm::new().map_err(|error| refused(io::Error::from(error), || group_of(DEVICE.as_ref())))?;
    let version = kvm.get_api_version();
    let lacks = NEEDED.into_iter().filter(|&(cap, _)| !kvm.check_extension(cap)).map(|(_, name)| name).collect();
    check(&HostFacts { version, lacks, most_vcpus: kvm.get_max_vcpus() as u32 }, needs)?;
    Ok(kvm)
}

fn refused(error: io::Error, group: impl FnOnce() -> String) -> KvmError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => KvmError::Missing,
        Some(libc::EACCES | libc::EPERM) => KvmError::Denied { group: group() },
        _ => KvmError::Open(error),
    }
}

fn group_of(path: &Path) -> String {
    let Ok(device) = path.metadata() else { return "kvm".into() };
    let group = Group::from_gid(Gid::from_raw(device.gid())).ok().flatten();
    group.map_or_else(|| device.gid().to_string(), |group| group.name)
}

fn check(host: &HostFacts, needs: &Needs) -> Result<(), KvmError> {
    let wanted = needs.topology.count();
    match host {
        HostFacts { version, .. } if *version != VERSION => Err(KvmError::Version { found: *version }),
        HostFacts { lacks, .. } if !lacks.is_empty() => Err(KvmError::Lacks(lacks.clone())),
        &HostFacts { most_vcpus, .. } if wanted > most_vcpus => Err(KvmError::TooManyVcpus { wanted, most: most_vcpus }),
        _ => Ok(()),
    }
}

/// Turns of the counted loop, of three instructions each.
const TURNS: u32 = 100_000;
/// Times that the guest runs at most. The first may pay for page tables, and any for a busy host.
const RUNS: usize = 5;
/// A processor that runs fewer instructions a second interprets them: one in hardware runs a thousand times as many, and
/// KVM in an emulated machine still a hundred million.
const LEAST_MIPS: u64 = 20;

/// Guest addresses: page tables, code, data, and where a second mapping of the first 2 MiB starts.
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x4000;
const MEMORY: u64 = 0x1_0000;
const SECOND_MAPPING: u64 = 0x20_0000;

/// What the guest doubles.
const NUMBER: u64 = 123_456_789;

/// The guest, in 64-bit mode: first what an interpreter may not know, so that it fails early. Ends with R8 the highest leaf
/// of CPUID, RDI twice [`NUMBER`], RSI 2, RAX the sum of the loop.
const PROGRAM: &[u8] = &[
    0x31, 0xc0, // xor eax, eax
    0x31, 0xc9, // xor ecx, ecx
    0x0f, 0xa2, // cpuid
    0x41, 0x89, 0xc0, // mov r8d, eax
    0xbb, 0x15, 0xcd, 0x5b, 0x07, // mov ebx, 123456789
    0x48, 0x89, 0x1c, 0x25, 0x00, 0x50, 0x00, 0x00, // mov [0x5000], rbx
    0x48, 0x8b, 0x14, 0x25, 0x00, 0x50, 0x20, 0x00, // mov rdx, [0x205000]
    0x66, 0x48, 0x0f, 0x6e, 0xc2, // movq xmm0, rdx
    0x66, 0x0f, 0xd4, 0xc0, // paddq xmm0, xmm0
    0x66, 0x48, 0x0f, 0x7e, 0xc7, // movq rdi, xmm0
    0xdb, 0xe3, // fninit
    0xd9, 0xe8, // fld1
    0xd9, 0xe8, // fld1
    0xde, 0xc1, // faddp
    0xdb, 0x1c, 0x25, 0x08, 0x50, 0x00, 0x00, // fistp dword [0x5008]
    0x8b, 0x34, 0x25, 0x08, 0x50, 0x00, 0x00, // mov esi, [0x5008]
    0x31, 0xc0, // xor eax, eax
    0xb9, 0xa0, 0x86, 0x01, 0x00, // mov ecx, 100000
    0x48, 0x01, 0xc8, // 1: add rax, rcx
    0xff, 0xc9, // dec ecx
    0x75, 0xf9, // jnz 1b
    0xf4, // hlt
];

/// How one run of the short guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Run {
    /// At its end, with these results after this processor time.
    Ended { results: Results, took: Duration },
    /// Elsewhere.
    Stopped(String),
}

/// What the guest computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Results {
    sum: u64,
    doubled: u64,
    two: u64,
    leaves: u64,
}

impl Results {
    fn are_right(&self) -> bool {
        let turns = u64::from(TURNS);
        (self.sum, self.doubled, self.two) == (turns * (turns + 1) / 2, 2 * NUMBER, 2) && self.leaves > 0
    }
}

/// Judges a run. An error is final if it is not [`KvmError::Slow`].
fn judge(run: &Run) -> Result<(), KvmError> {
    match run {
        Run::Stopped(why) => Err(KvmError::Stopped(why.clone())),
        Run::Ended { results, .. } if !results.are_right() => Err(KvmError::Wrong),
        Run::Ended { took, .. } => {
            let mips = 3 * u64::from(TURNS) / (took.as_micros() as u64).max(1);
            if mips < LEAST_MIPS { Err(KvmError::Slow(mips)) } else { Ok(()) }
        }
    }
}

/// Runs the short guest until it was quick once, a few times at most.
pub fn try_guest(kvm: &Kvm) -> Result<(), KvmError> {
    let mut guest = ShortGuest::new(kvm)?;
    let mut verdict = Ok(());
    for _ in 0..RUNS {
        verdict = judge(&guest.run()?);
        if !matches!(verdict, Err(KvmError::Slow(_))) {
            break;
        }
    }
    verdict
}

struct ShortGuest {
    vcpu: VcpuFd,
    page: Arc<RunPage>,
    /// Keeps the VM and its memory.
    _memory: GuestMemory,
    entry: EntryState,
}

impl ShortGuest {
    fn new(kvm: &Kvm) -> Result<ShortGuest, KvmError> {
        let vm = Arc::new(create_vm(kvm)?);
        let memory = GuestMemory::anonymous(&[(GuestAddr(0), MEMORY, Mode::Ram)]);
        let memory = memory.map_err(io::Error::other).map_err(cannot("reserve memory for a short guest"))?;
        // The PML4, the PDPT, and a page directory that maps the first 2 MiB twice: present, writable, large.
        let words = [
            (TABLES, TABLES + 0x1000 | 3),
            (TABLES + 0x1000, TABLES + 0x2000 | 3),
            (TABLES + 0x2000, 0x83),
            (TABLES + 0x2000 + (SECOND_MAPPING >> 21) * 8, 0x83),
        ];
        for (at, value) in words {
            memory.write_le::<u64>(GuestAddr(at), value).expect("inside the short guest's memory");
        }
        memory.write(GuestAddr(CODE), PROGRAM).expect("inside the short guest's memory");
        memory.add_listener(Arc::new(Slots::new(Arc::clone(&vm), 1))).map_err(cannot("give a short guest its memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(cannot("create a vCPU"))?;
        let page = RunPage::of(&vcpu, vm.run_size()).map_err(cannot("map a vCPU"))?;
        let cpuid =
            kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(cannot("read what the host's CPU can"))?;
        vcpu.set_cpuid2(&cpuid).map_err(cannot("set a vCPU's CPUID"))?;
        let boot = BootState::Long { rip: CODE, rsi: 0, cr3: TABLES, gdt_base: 0, gdt_limit: 0 };
        let mut entry = EntryState::of(&boot).expect("not the state after power-on");
        // SSE2 needs CR4.OSFXSR.
        entry.cr4 |= 1 << 9;
        Ok(ShortGuest { vcpu, page, _memory: memory, entry })
    }

    fn run(&mut self) -> Result<Run, KvmError> {
        vcpu::enter(&self.vcpu, &self.entry).map_err(cannot("set a vCPU's registers"))?;
        let begin = processor_time();
        let exit = loop {
            match self.vcpu.run().map(drop) {
                Ok(()) => break self.page.exit(),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Ok(Run::Stopped(io::Error::from(error).to_string())),
            }
        };
        let took = processor_time().saturating_sub(begin);
        let regs = self.vcpu.get_regs().map_err(cannot("read a vCPU's registers"))?;
        Ok(match exit {
            Exit::Halt => {
                let results = Results { sum: regs.rax, doubled: regs.rdi, two: regs.rsi, leaves: regs.r8 };
                Run::Ended { results, took }
            }
            Exit::InternalError(reason) => Run::Stopped(format!("an internal error ({reason}) at {:#x}", regs.rip)),
            other => Run::Stopped(format!("{other:?} at {:#x}", regs.rip)),
        })
    }
}

/// Returns the processor time of this thread, in which a guest's is included. Other processes do not count.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Creates a VM. A signal may interrupt that.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            done => return done.map_err(cannot("create a virtual machine")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Topology;

    const NEEDS: Needs<'static> =
        Needs { machine: "", topology: Topology { sockets: 1, cores: 4, threads: 1 }, deterministic: false };

    fn said(result: Result<(), KvmError>) -> String {
        result.map_or_else(|error| error.to_string(), |()| "good".into())
    }

    #[test]
    fn a_device_that_does_not_open_has_a_reason() {
        let says = |code| refused(io::Error::from_raw_os_error(code), || "kvm".into()).to_string();
        assert!(says(libc::ENOENT).starts_with("this host has no `/dev/kvm`"));
        assert_eq!(says(libc::EACCES), "no permission to open `/dev/kvm`; members of the group `kvm` have it");
        assert_eq!(says(libc::EMFILE), "cannot open `/dev/kvm`");
        assert_eq!(group_of("/".as_ref()), "root");
    }

    #[test]
    fn a_kernel_must_have_the_interface_all_capabilities_and_enough_vcpus() {
        let good = HostFacts { version: 12, lacks: vec![], most_vcpus: 4 };
        assert_eq!(said(check(&good, &NEEDS)), "good");
        let cases = [
            (
                HostFacts { version: 11, ..good.clone() },
                "`/dev/kvm` has version 11 of the interface, this program uses version 12",
            ),
            (
                HostFacts { lacks: vec!["KVM_CAP_PIT2", "KVM_CAP_IRQCHIP"], ..good.clone() },
                "the host's KVM lacks KVM_CAP_PIT2, KVM_CAP_IRQCHIP",
            ),
            (HostFacts { most_vcpus: 3, ..good }, "the guest has 4 vCPUs, the host's KVM runs at most 3"),
        ];
        for (host, expected) in cases {
            assert_eq!(said(check(&host, &NEEDS)), expected);
        }
        let refusal = open(&Needs { deterministic: true, ..NEEDS }).err().unwrap();
        assert!(refusal.to_string().contains("`backend = \"soft\"`"));
    }

    #[test]
    fn a_guest_must_end_with_the_right_results_in_the_time_of_a_processor() {
        let results = |two, leaves| Results { sum: 5_000_050_000, doubled: 246_913_578, two, leaves };
        let ended = |two, leaves, micros| Run::Ended { results: results(two, leaves), took: Duration::from_micros(micros) };
        assert_eq!(said(judge(&ended(2, 16, 90))), "good");
        assert_eq!(said(judge(&ended(2, 16, 0))), "good");
        assert_eq!(said(judge(&ended(2, 16, 14_000))), "good");
        assert!(said(judge(&ended(2, 16, 150_000))).starts_with("it interprets its guests: 2 million"));
        for wrong in [ended(3, 16, 90), ended(2, 0, 90)] {
            assert!(said(judge(&wrong)).ends_with("computed wrong results"));
        }
        let stopped = judge(&Run::Stopped("an internal error (1) at 0x4025".into()));
        assert_eq!(said(stopped), "it does not run a guest: a short one ended with an internal error (1) at 0x4025");
    }

    #[test]
    fn the_short_guest_computes_the_same_on_the_software_cpu() {
        use crate::hypervisor::soft::rig::{Rig, Stop};
        let mut rig = Rig::supervisor();
        // The rig maps its memory once; the second mapping is the same bytes here.
        let code: Vec<u8> = PROGRAM[..PROGRAM.len() - 1].to_vec();
        let at = code.windows(4).position(|bytes| bytes == [0x00, 0x50, 0x20, 0x00]).unwrap();
        let code = [&code[..at], &[0x00, 0x50, 0x00, 0x00], &code[at + 4..]].concat();
        assert!(matches!(rig.run_code(&code), Stop::End));
        let regs = &rig.cpu.regs;
        let results = Results { sum: regs[0], doubled: regs[7], two: regs[6], leaves: regs[8] };
        assert!(results.are_right(), "{results:?}");
    }
}
