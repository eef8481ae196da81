//! The `vmm` back end: vCPUs on FreeBSD's vmm(4), the kernel half of bhyve, with its interrupt controllers and timers.
//!
//! | file | what |
//! |---|---|
//! | `abi.rs` | numbers and layouts of 13, 14 and 15, from their headers |
//! | `exit.rs` | what an exit asks for |
//! | `vm.rs` | the requests of a machine, which a test can answer too |
//! | `registers.rs` | registers: power-on, entry, start-up, one instruction, dump |
//! | `msr.rs` | registers that the kernel leaves to its user |
//! | `irqchip.rs` | the controllers in the kernel |
//! | `run.rs` | the vCPUs' threads and what their exits ask for |
//! | `probe.rs` | whether this host can run the guest |
//! | `freebsd.rs` | the kernel: requests, memory, the making of machines |
//!
//! The machine is made, and its vCPUs with their topology, before the process gives up its rights. Afterwards its descriptor
//! has a fixed list of requests ([`Rights`]). RAM is the kernel's: it hands it over, one segment for the whole of it, in
//! which a byte's offset is its guest address less the PCI hole, so that large pages can be behind it.
//!
//! A machine of the kernel outlives the process that made it: only root can destroy it, and an engine is not root any more.
//! So the next boot of the guest destroys what an earlier one left, and the supervisor does when the guest ends. That is why
//! a reboot makes a new machine, as on every back end, and does not use VM_REINIT, which leaves RAM as it is.
//!
//! **Not modelled**: the PM timer and the HPET of the kernel are there, and no table names them: guests use the board's PM
//! timer. State of vCPUs and of the kernel's chips is not saved. Task switches in hardware, single steps over a device
//! access, and device accesses by vector instructions (see [`one`](super::soft::one)) are not carried out. The memory map
//! cannot change while the guest runs.

mod abi;
mod exit;
#[cfg(target_os = "freebsd")]
mod freebsd;
mod irqchip;
mod msr;
mod probe;
mod registers;
mod run;
#[cfg(test)]
mod tests;
mod vm;

use std::io;
use std::sync::Arc;

#[cfg(target_os = "freebsd")]
pub use freebsd::open;

use self::abi::Release;
use self::probe::{VmmError, cannot};
use self::run::{Shared, Start, VmmBackend};
use self::vm::Vm;
use super::backend::{Rights, VcpuSetup};
use super::entry::EntryState;
use super::memory::{MapListener, MemoryMap};
use super::soft::one::OneInstruction;

const NAME: &str = "vmm";

/// Requests that are left while the guest runs.
const fn running(release: Release) -> [u32; 16] {
    [
        release.run(),
        abi::VM_SUSPEND,
        abi::VM_ACTIVATE_CPU,
        abi::VM_SUSPEND_CPU,
        abi::VM_RESUME_CPU,
        abi::VM_SET_REGISTER,
        abi::VM_GET_REGISTER_SET,
        abi::VM_SET_SEGMENT_DESCRIPTOR,
        abi::VM_GET_SEGMENT_DESCRIPTOR,
        abi::VM_INJECT_EXCEPTION,
        abi::VM_ISA_ASSERT_IRQ,
        abi::VM_ISA_DEASSERT_IRQ,
        abi::VM_IOAPIC_ASSERT_IRQ,
        abi::VM_IOAPIC_DEASSERT_IRQ,
        abi::VM_LAPIC_MSI,
        abi::VM_LAPIC_LOCAL_IRQ,
    ]
}

/// Requests that are left while the machine is put together: its RAM.
const fn assembly(release: Release) -> [u32; 2] {
    [release.alloc_memseg(), abi::VM_MMAP_MEMSEG]
}

/// Returns what is left of the kernel's requests once the process is confined. `device` is the machine's descriptor.
fn rights(release: Release, device: i32) -> Rights {
    const ASSEMBLY: [[u32; 2]; 3] = [assembly(Release::R13), assembly(Release::R14), assembly(Release::R15)];
    const RUNNING: [[u32; 16]; 3] = [running(Release::R13), running(Release::R14), running(Release::R15)];
    let at = release as usize;
    Rights { assembly: &ASSEMBLY[at], running: &RUNNING[at], device: Some(device), ..Rights::default() }
}

/// Sets what the kernel does for each vCPU, and makes the first one run.
fn prepare(vm: &dyn Vm, vcpus: usize) -> Result<(), VmmError> {
    for vcpu in 0..vcpus {
        vm.set_capability(vcpu, abi::VM_CAP_HALT_EXIT, 1).map_err(cannot("let the kernel wait for a vCPU that halts"))?;
        vm.set_capability(vcpu, abi::VM_CAP_UNRESTRICTED_GUEST, 1).map_err(|_| VmmError::NoRealMode)?;
    }
    registers::reset(vm, 0).map_err(cannot("reset a vCPU"))?;
    vm.activate(0).map_err(cannot("make a vCPU run"))
}

/// Builds the vCPUs of a prepared machine that has its memory.
fn build(vm: Arc<dyn Vm>, setup: VcpuSetup) -> Result<VmmBackend, VmmError> {
    setup.memory.add_listener(Arc::new(FixedMap)).map_err(cannot("give the guest its memory"))?;
    if let Some(state) = EntryState::of(&setup.boot) {
        registers::enter(&*vm, 0, &state).map_err(cannot("set a vCPU's registers"))?;
    }
    let instructions = (0..setup.vcpus).map(|index| OneInstruction::new(&setup, index)).collect();
    let starts = (0..setup.vcpus).map(|_| Start::default()).collect();
    let shared = Shared { vm, platform: setup.platform, attention: setup.attention, starts };
    VmmBackend::new(Arc::new(shared), instructions).map_err(cannot("start a vCPU's thread"))
}

/// Memory that stays as it was handed over.
struct FixedMap;

impl MapListener for FixedMap {
    fn map_changes(&self, old: &MemoryMap, _new: &MemoryMap) -> io::Result<()> {
        // The first change is that from no memory at all.
        match old.regions() {
            [] => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the `vmm` back end cannot change the memory of a guest")),
        }
    }
}
