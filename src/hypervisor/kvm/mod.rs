//! The `kvm` back end: vCPUs on Linux' KVM, with its interrupt controllers.
//!
//! | file | what |
//! |---|---|
//! | `probe.rs` | whether the host's KVM can be believed: a short guest, run and timed |
//! | `cpuid.rs` | CPUID of a guest, out of the host's |
//! | `memory.rs` | memory slots, which follow the map of guest memory |
//! | `irqchip.rs` | 8259A pair, I/O APIC, local APICs and 8254 in the kernel |
//! | `vcpu.rs` | registers: entry, memory types, local APIC, dump |
//! | `page.rs` | what a vCPU shares with the kernel, and the kick |
//! | `run.rs` | the vCPUs' threads and their exits |
//! | `saved.rs` | the state of vCPUs and chips |
//!
//! VM and vCPUs are created before the process gives up its rights. Afterwards the process has a fixed list of requests left
//! ([`Rights`]).
//!
//! **Not modelled**: nested virtualisation and performance counters are not offered to guests. An INIT of vCPU 0 takes it to
//! the reset vector; where there is no firmware, the machine reboots, as on the software CPU.

mod cpuid;
mod irqchip;
mod memory;
mod page;
mod probe;
mod run;
mod saved;
mod vcpu;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_MSR_FILTER, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_irq_level, kvm_lapic_state, kvm_msi, kvm_msrs, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use self::memory::Slots;
use self::page::{KICK_SIGNAL, RunPage, handle_kicks};
use self::probe::{KvmError, cannot};
use self::run::{KvmBackend, Shared, Vcpu};
use self::saved::Scope;
use super::backend::{Backend, Needs, OpenBackend, Platform, Reason, Rights, VcpuSetup};
use super::clock::TscFrequency;
use super::cpuid::Place;
use super::entry::{EntryState, MemoryTypes};
use super::irq::Irqchip;
use super::waking::Attention;

const NAME: &str = "kvm";

/// Where KVM keeps a task-state segment and a page table of its own on Intel's processors: four pages below the area of a
/// PC's firmware, where this machine has no memory.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TASK_STATE: usize = 0xfffb_d000;

/// Returns the number of a request that reads and writes nothing: `_IO(KVMIO, number)` of linux/kvm.h and asm-generic/ioctl.h.
const fn plain(number: u32) -> u32 {
    0xae << 8 | number
}
/// Returns `_IOW(KVMIO, number, T)`.
const fn writes<T>(number: u32) -> u32 {
    1 << 30 | (size_of::<T>() as u32) << 16 | plain(number)
}
/// Returns `_IOR(KVMIO, number, T)`.
const fn reads<T>(number: u32) -> u32 {
    2 << 30 | (size_of::<T>() as u32) << 16 | plain(number)
}

const KVM_SET_USER_MEMORY_REGION: u32 = writes::<kvm_userspace_memory_region>(0x46);
const KVM_IRQ_LINE: u32 = writes::<kvm_irq_level>(0x61);
const KVM_RUN: u32 = plain(0x80);
const KVM_GET_REGS: u32 = reads::<kvm_regs>(0x81);
const KVM_SET_REGS: u32 = writes::<kvm_regs>(0x82);
const KVM_GET_SREGS: u32 = reads::<kvm_sregs>(0x83);
const KVM_SET_SREGS: u32 = writes::<kvm_sregs>(0x84);
const KVM_SET_MSRS: u32 = writes::<kvm_msrs>(0x89);
const KVM_GET_LAPIC: u32 = reads::<kvm_lapic_state>(0x8e);
const KVM_NMI: u32 = plain(0x9a);
const KVM_SIGNAL_MSI: u32 = writes::<kvm_msi>(0xa5);
const KVM_KVMCLOCK_CTRL: u32 = plain(0xad);

/// What is left of KVM's requests once the process is confined.
const RIGHTS: Rights = Rights {
    // The state in which the loader enters the guest.
    assembly: &[KVM_SET_USER_MEMORY_REGION, KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_MSRS],
    running: &[
        KVM_RUN,
        KVM_IRQ_LINE,
        KVM_SIGNAL_MSI,
        // An NMI, if LINT1 lets it through.
        KVM_GET_LAPIC,
        KVM_NMI,
        // After a sleep of the host.
        KVM_KVMCLOCK_CTRL,
        // The dump of a vCPU that KVM gave up.
        KVM_GET_REGS,
        KVM_GET_SREGS,
    ],
    kick: Some(KICK_SIGNAL),
    large_pages: true,
    device: None,
};

/// A VM and its vCPUs, before its machine is put together.
struct OpenKvm {
    vm: Arc<VmFd>,
    vcpus: Vec<Vcpu>,
    nmis: Arc<[AtomicBool]>,
    physical_bits: u32,
    most_slots: usize,
}

/// Does what the exit in `page`, the contents of a vCPU's page, asks of the board: for exits that no kernel would make.
pub fn replay_exit(page: &[u8], platform: &dyn Platform) -> std::io::Result<()> {
    let page = RunPage::replayed(page)?;
    run::access(page.exit(), 0, &page, platform);
    Ok(())
}

/// Opens KVM, if it really runs guests on this host and has what the guest needs.
pub fn open(needs: &Needs) -> Result<Box<dyn OpenBackend>, Reason> {
    let kvm = probe::open(needs)?;
    probe::try_guest(&kvm)?;
    Ok(Box::new(OpenKvm::new(&kvm, needs)?))
}

impl OpenKvm {
    fn new(kvm: &Kvm, needs: &Needs) -> Result<OpenKvm, KvmError> {
        handle_kicks().map_err(cannot("handle the signal that ends KVM_RUN"))?;
        let vm = probe::create_vm(kvm)?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(cannot("place KVM's own page table"))?;
        vm.set_tss_address(TASK_STATE).map_err(cannot("place KVM's own task-state segment"))?;
        irqchip::create(&vm).map_err(cannot("create the interrupt controllers"))?;
        withhold_counters(kvm, &vm);
        if kvm.check_extension_raw(KVM_CAP_X86_MSR_FILTER.into()) > 0 {
            vcpu::withhold_msrs(&vm).map_err(cannot("withhold registers from the guest"))?;
        }
        let host = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(cannot("read what the host's CPU can"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let msrs = kvm.get_msr_index_list().map_err(cannot("list the registers of a vCPU"))?.as_slice().into();
        let vcpus = (0..needs.topology.count() as usize)
            .map(|index| create_vcpu(&vm, (&host, &msrs), &Place::of(needs.topology, index), tsc_deadline))
            .collect::<Result<Vec<_>, _>>()?;
        vcpu::wire_local_apic(&vcpus[0].fd).map_err(cannot("set a vCPU's local APIC"))?;
        let nmis = vcpus.iter().map(|_| AtomicBool::new(false)).collect();
        let (physical_bits, most_slots) = (cpuid::physical_bits(&host), kvm.get_nr_memslots());
        Ok(OpenKvm { vm: Arc::new(vm), vcpus, nmis, physical_bits, most_slots })
    }
}

/// Takes performance counters from the guest, where the kernel can: they would count what else the host does.
fn withhold_counters(kvm: &Kvm, vm: &VmFd) {
    if kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) & KVM_PMU_CAP_DISABLE as i32 != 0 {
        let mut request = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        request.args[0] = KVM_PMU_CAP_DISABLE.into();
        // A kernel that refuses goes on with counters that CPUID does not show.
        let _ = vm.enable_cap(&request);
    }
}

fn create_vcpu(vm: &VmFd, (host, msrs): (&CpuId, &Arc<[u32]>), place: &Place, tsc_deadline: bool) -> Result<Vcpu, KvmError> {
    let fd = vm.create_vcpu(place.id.into()).map_err(cannot("create a vCPU"))?;
    let page = RunPage::of(&fd, vm.run_size()).map_err(cannot("map a vCPU"))?;
    let invariant = host.as_slice().iter().any(|entry| entry.function == 0x8000_0007 && entry.edx & 1 << 8 != 0);
    let tsc = fd.get_tsc_khz().ok().filter(|_| invariant).and_then(TscFrequency::from_khz);
    let entries = cpuid::for_vcpu(host, place, &cpuid::HostTimers { tsc_deadline, tsc });
    let list = CpuId::from_entries(&entries).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData));
    fd.set_cpuid2(&list.map_err(cannot("list a vCPU's CPUID"))?).map_err(cannot("set a vCPU's CPUID"))?;
    Ok(Vcpu { index: place.id as usize, fd, page, scope: Scope { cpuid: entries, msrs: Arc::clone(msrs) } })
}

impl OpenBackend for OpenKvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn rights(&self) -> Rights {
        RIGHTS
    }

    fn irqchip(&mut self, attention: &Arc<Attention>) -> Option<Arc<dyn Irqchip>> {
        let (vm, nmis) = (Arc::clone(&self.vm), Arc::clone(&self.nmis));
        Some(Arc::new(irqchip::KvmIrqchip::new(vm, nmis, Arc::clone(attention))))
    }

    fn build(self: Box<Self>, setup: VcpuSetup) -> Result<Box<dyn Backend>, Reason> {
        let slots = Slots::new(Arc::clone(&self.vm), self.most_slots);
        setup.memory.add_listener(Arc::new(slots)).map_err(cannot("give the guest its memory"))?;
        if let Some(state) = EntryState::of(&setup.boot) {
            let types = MemoryTypes::around(&setup.device_windows, self.physical_bits);
            for vcpu in &self.vcpus {
                vcpu::set_memory_types(&vcpu.fd, &types).map_err(cannot("set a vCPU's memory types"))?;
            }
            vcpu::enter(&self.vcpus[0].fd, &state).map_err(cannot("set a vCPU's registers"))?;
        }
        let shared = Shared { platform: setup.platform, attention: setup.attention, nmis: self.nmis };
        let backend = KvmBackend::new(self.vcpus, shared).map_err(cannot("start a vCPU's thread"))?;
        Ok(Box::new(backend))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_those_of_the_kernels_header() {
        // As strace(1) shows them for x86-64, and as kvm-ioctls sends them.
        assert_eq!((KVM_RUN, KVM_NMI, KVM_KVMCLOCK_CTRL), (0xae80, 0xae9a, 0xaead));
        assert_eq!((KVM_SET_USER_MEMORY_REGION, KVM_IRQ_LINE, KVM_SIGNAL_MSI), (0x4020_ae46, 0x4008_ae61, 0x4020_aea5));
        assert_eq!((KVM_GET_REGS, KVM_SET_REGS), (0x8090_ae81, 0x4090_ae82));
        assert_eq!((KVM_GET_SREGS, KVM_SET_SREGS), (0x8138_ae83, 0x4138_ae84));
        assert_eq!((KVM_SET_MSRS, KVM_GET_LAPIC), (0x4008_ae89, 0x8400_ae8e));
    }

    #[test]
    fn nothing_is_left_that_makes_or_changes_a_vm_while_the_guest_runs() {
        for request in [KVM_SET_USER_MEMORY_REGION, KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_MSRS] {
            assert!(RIGHTS.assembly.contains(&request) && !RIGHTS.running.contains(&request));
        }
        // KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_DEVICE, KVM_ENABLE_CAP, KVM_SET_GSI_ROUTING by their numbers.
        let numbers = [RIGHTS.assembly, RIGHTS.running].concat().into_iter().map(|request| request & 0xff);
        assert!(numbers.into_iter().all(|number| ![0x01, 0x41, 0xe0, 0xa3, 0x6a].contains(&number)));
        assert_eq!((RIGHTS.assembly.len(), RIGHTS.running.len()), (4, 8));
    }
}
