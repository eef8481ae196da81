//! The state of vCPUs and of the chips in the kernel: the kernel's own structures, as bytes.
//!
//! Sources: Linux `Documentation/virt/kvm/api.rst`, sections 4.11 to 4.14 (registers), 4.18 and 4.19 (MSRs), 4.26 and 4.27
//! (KVM_GET_IRQCHIP), 4.29 and 4.30 (KVM_GET_CLOCK), 4.31 and 4.32 (KVM_GET_VCPU_EVENTS), 4.33 and 4.34 (KVM_GET_DEBUGREGS),
//! 4.38 and 4.39 (KVM_GET_MP_STATE), 4.42 to 4.45 (KVM_GET_XSAVE, KVM_GET_XCRS), 4.57 and 4.58 (KVM_GET_LAPIC), 4.72 and 4.73
//! (KVM_GET_PIT2), 5 (the kvm_run structure: an I/O exit is complete only after the next KVM_RUN).
//!
//! **Saved state**: a vCPU's is refused on a processor or kernel that gives its guests another CPUID. The values are
//! checked by the kernel, which checks what every process could give it.
//!
//! An unsafe island: structures become bytes and come from them; KVM_SET_XSAVE.
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::hypervisor::state::{Section, StateError};

const VCPU: &str = "kvm-vcpu";
const CHIPS: &str = "kvm-irqchip";
const VERSION: u32 = 1;

/// Structures of the kernel's interface.
///
/// # Safety
/// The type has no padding, and every sequence of bytes is one of its values.
unsafe trait Plain: Copy {}
// SAFETY: as for all below: integers and arrays of them; `tests` adds up the sizes of the fields.
unsafe impl Plain for kvm_regs {}
// SAFETY: as above; its padding has names.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_debugregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Plain for kvm_xcrs {}
// SAFETY: as above.
unsafe impl Plain for kvm_lapic_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_mp_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_msr_entry {}
// SAFETY: as above; its padding has a name.
unsafe impl Plain for kvm_cpuid_entry2 {}
// SAFETY: as above.
unsafe impl Plain for kvm_pit_state2 {}
// SAFETY: as above.
unsafe impl Plain for kvm_clock_data {}
// SAFETY: as above; the longest member of its union, 512 bytes, is as long as the union.
unsafe impl Plain for kvm_irqchip {}

fn bytes<T: Plain>(value: &T) -> Vec<u8> {
    // SAFETY: `T` has no padding, so all its bytes are initialised, and the slice ends before `value` does.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
}

fn from_bytes<T: Plain>(kind: &'static str, bytes: &[u8]) -> Result<T, StateError> {
    if bytes.len() != size_of::<T>() {
        let why = format!("{} bytes for {} of `{}`", bytes.len(), size_of::<T>(), std::any::type_name::<T>());
        return Err(StateError::Damaged { kind, why });
    }
    // SAFETY: the bytes are as many as `T` has, and every sequence of bytes is a value of it.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Returns a function that makes an error of a request that failed.
fn failed<E: Into<io::Error>>(kind: &'static str, request: &'static str) -> impl Fn(E) -> StateError {
    move |error| StateError::Damaged { kind, why: format!("{request}: {}", error.into()) }
}

/// What decides whether a state fits a vCPU, and what it consists of.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The vCPU's CPUID, as it was set.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// The MSRs that the host's KVM saves (KVM_GET_MSR_INDEX_LIST).
    pub msrs: std::sync::Arc<[u32]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedVcpu {
    cpuid: Vec<Vec<u8>>,
    mp_state: Vec<u8>,
    regs: Vec<u8>,
    sregs: Vec<u8>,
    xsave: Vec<u32>,
    xcrs: Vec<u8>,
    debug: Vec<u8>,
    lapic: Vec<u8>,
    msrs: Vec<(u32, u64)>,
    events: Vec<u8>,
}

/// Returns the state of a vCPU that is in no KVM_RUN and whose last exit is complete.
pub fn save_vcpu(fd: &VcpuFd, scope: &Scope) -> Result<Section, StateError> {
    // The first, since it takes an INIT or a start-up message that has come, which changes what follows.
    let mp_state = fd.get_mp_state().map_err(failed(VCPU, "KVM_GET_MP_STATE"))?;
    let state = SavedVcpu {
        cpuid: scope.cpuid.iter().map(bytes).collect(),
        mp_state: bytes(&mp_state),
        regs: bytes(&fd.get_regs().map_err(failed(VCPU, "KVM_GET_REGS"))?),
        sregs: bytes(&fd.get_sregs().map_err(failed(VCPU, "KVM_GET_SREGS"))?),
        xsave: fd.get_xsave().map_err(failed(VCPU, "KVM_GET_XSAVE"))?.region.to_vec(),
        xcrs: bytes(&fd.get_xcrs().map_err(failed(VCPU, "KVM_GET_XCRS"))?),
        debug: bytes(&fd.get_debug_regs().map_err(failed(VCPU, "KVM_GET_DEBUGREGS"))?),
        lapic: bytes(&fd.get_lapic().map_err(failed(VCPU, "KVM_GET_LAPIC"))?),
        msrs: read_msrs(fd, &scope.msrs)?,
        // The last, since reading the others may have made an event of a request.
        events: bytes(&fd.get_vcpu_events().map_err(failed(VCPU, "KVM_GET_VCPU_EVENTS"))?),
    };
    Ok(Section::encode(VCPU, VERSION, &state))
}

/// A decoded state of a vCPU, which fits it.
pub struct DecodedVcpu {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

/// Reads a state and refuses one that is not of such a vCPU.
pub fn decode_vcpu(section: &Section, scope: &Scope) -> Result<DecodedVcpu, StateError> {
    let state: SavedVcpu = section.decode(VCPU, VERSION)?;
    let damaged = |why: String| StateError::Damaged { kind: VCPU, why };
    if !state.cpuid.iter().eq(scope.cpuid.iter().map(bytes).collect::<Vec<_>>().iter()) {
        return Err(damaged("it is of a vCPU with another CPUID: another processor, another kernel, or another guest".into()));
    }
    if let Some((foreign, _)) = state.msrs.iter().find(|(index, _)| !scope.msrs.contains(index)) {
        return Err(damaged(format!("this host does not save the register {foreign:#x}")));
    }
    let mut xsave = Box::<kvm_xsave>::default();
    let words = state.xsave.len();
    xsave.region = state.xsave.try_into().map_err(|_| damaged(format!("{words} words of an XSAVE area")))?;
    Ok(DecodedVcpu {
        mp_state: from_bytes(VCPU, &state.mp_state)?,
        regs: from_bytes(VCPU, &state.regs)?,
        sregs: from_bytes(VCPU, &state.sregs)?,
        xsave,
        xcrs: from_bytes(VCPU, &state.xcrs)?,
        debug: from_bytes(VCPU, &state.debug)?,
        lapic: from_bytes(VCPU, &state.lapic)?,
        msrs: state.msrs,
        events: from_bytes(VCPU, &state.events)?,
    })
}

/// Restores a state into a vCPU that has not run.
pub fn load_vcpu(fd: &VcpuFd, state: &DecodedVcpu) -> Result<(), StateError> {
    fd.set_mp_state(state.mp_state).map_err(failed(VCPU, "KVM_SET_MP_STATE"))?;
    fd.set_regs(&state.regs).map_err(failed(VCPU, "KVM_SET_REGS"))?;
    // With the address and the mode of the local APIC, whose registers follow.
    fd.set_sregs(&state.sregs).map_err(failed(VCPU, "KVM_SET_SREGS"))?;
    // Which parts of the XSAVE area there are.
    fd.set_xcrs(&state.xcrs).map_err(failed(VCPU, "KVM_SET_XCRS"))?;
    // SAFETY: the kernel reads 4096 bytes unless arch_prctl(2) gave guests larger parts, which this program never asks.
    unsafe { fd.set_xsave(&state.xsave) }.map_err(failed(VCPU, "KVM_SET_XSAVE"))?;
    fd.set_debug_regs(&state.debug).map_err(failed(VCPU, "KVM_SET_DEBUGREGS"))?;
    fd.set_lapic(&state.lapic).map_err(failed(VCPU, "KVM_SET_LAPIC"))?;
    // With IA32_TSC_DEADLINE, which needs the local APIC's timer to be in its mode.
    write_msrs(fd, &state.msrs)?;
    fd.set_vcpu_events(&state.events).map_err(failed(VCPU, "KVM_SET_VCPU_EVENTS"))
}

fn entries(list: &[(u32, u64)]) -> Result<Msrs, StateError> {
    let entries: Vec<_> = list.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|error| StateError::Damaged { kind: VCPU, why: format!("its MSRs: {error:?}") })
}

/// Returns the values of all `msrs` that this vCPU has. The kernel lists more than a vCPU may have.
fn read_msrs(fd: &VcpuFd, msrs: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
    let mut found = Vec::new();
    let mut rest = msrs;
    while !rest.is_empty() {
        let mut list = entries(&rest.iter().map(|&index| (index, 0)).collect::<Vec<_>>())?;
        // It stops at the first one that the vCPU does not have.
        let read = fd.get_msrs(&mut list).map_err(failed(VCPU, "KVM_GET_MSRS"))?;
        found.extend(list.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(found)
}

fn write_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let written = fd.set_msrs(&entries(rest)?).map_err(failed(VCPU, "KVM_SET_MSRS"))?;
        let Some(&(index, value)) = rest.get(written) else { return Ok(()) };
        // One that the host only reports, such as a capability, is right if it is what it was.
        if read_msrs(fd, &[index])? != [(index, value)] {
            return Err(StateError::Damaged { kind: VCPU, why: format!("KVM refuses {value:#x} for the register {index:#x}") });
        }
        rest = &rest[written + 1..];
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedChips {
    /// The 8259A pair and the I/O APIC.
    chips: Vec<Vec<u8>>,
    pit: Vec<u8>,
    clock: Vec<u8>,
}

const ALL_CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Returns the state of the chips and of the paravirtual clock of a VM whose vCPUs are in no KVM_RUN.
pub fn save_chips(vm: &VmFd) -> Result<Section, StateError> {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(failed(CHIPS, "KVM_GET_IRQCHIP"))?;
        Ok(bytes(&chip))
    };
    let state = SavedChips {
        chips: ALL_CHIPS.into_iter().map(chip).collect::<Result<_, StateError>>()?,
        pit: bytes(&vm.get_pit2().map_err(failed(CHIPS, "KVM_GET_PIT2"))?),
        clock: bytes(&vm.get_clock().map_err(failed(CHIPS, "KVM_GET_CLOCK"))?),
    };
    Ok(Section::encode(CHIPS, VERSION, &state))
}

/// Restores the state of the chips and of the clock. On an error the chips are as before, as far as the kernel lets us.
pub fn load_chips(vm: &VmFd, section: &Section) -> Result<(), StateError> {
    let before = save_chips(vm)?;
    set_chips(vm, section).inspect_err(|_| drop(set_chips(vm, &before)))
}

fn set_chips(vm: &VmFd, section: &Section) -> Result<(), StateError> {
    let state: SavedChips = section.decode(CHIPS, VERSION)?;
    let chips = state.chips.iter().map(|chip| from_bytes::<kvm_irqchip>(CHIPS, chip)).collect::<Result<Vec<_>, _>>()?;
    if !chips.iter().map(|chip| chip.chip_id).eq(ALL_CHIPS) {
        return Err(StateError::Damaged { kind: CHIPS, why: "it is not of the two 8259A and the I/O APIC".into() });
    }
    let (pit, clock) = (from_bytes(CHIPS, &state.pit)?, from_bytes::<kvm_clock_data>(CHIPS, &state.clock)?);
    // Its time goes on from where it was; the flags are what the kernel said about the moment of saving.
    let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
    vm.set_clock(&clock).map_err(failed(CHIPS, "KVM_SET_CLOCK"))?;
    chips.iter().try_for_each(|chip| vm.set_irqchip(chip)).map_err(failed(CHIPS, "KVM_SET_IRQCHIP"))?;
    vm.set_pit2(&pit).map_err(failed(CHIPS, "KVM_SET_PIT2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_structures_have_no_padding() {
        // linux/kvm.h and asm/kvm.h: the sums of their fields.
        assert_eq!(size_of::<kvm_regs>(), 18 * 8);
        assert_eq!(size_of::<kvm_sregs>(), 8 * 24 + 2 * 16 + 7 * 8 + 4 * 8);
        assert_eq!(size_of::<kvm_debugregs>(), (4 + 3 + 9) * 8);
        assert_eq!(size_of::<kvm_vcpu_events>(), 8 + 4 + 4 + 4 + 4 + 4 + 1 + 26 + 1 + 8);
        assert_eq!(size_of::<kvm_xcrs>(), 8 + 16 * 16 + 16 * 8);
        assert_eq!(size_of::<kvm_lapic_state>(), 1024);
        assert_eq!(size_of::<kvm_mp_state>(), 4);
        assert_eq!(size_of::<kvm_msr_entry>(), 16);
        assert_eq!(size_of::<kvm_cpuid_entry2>(), 7 * 4 + 3 * 4);
        assert_eq!(size_of::<kvm_pit_state2>(), 3 * (4 + 2 + 10 + 8) + 4 + 9 * 4);
        assert_eq!(size_of::<kvm_clock_data>(), 8 + 8 + 8 + 8 + 4 * 4);
        assert_eq!(size_of::<kvm_irqchip>(), 8 + 512);
    }

    fn state(cpuid: &[kvm_cpuid_entry2]) -> SavedVcpu {
        SavedVcpu {
            cpuid: cpuid.iter().map(bytes).collect(),
            mp_state: bytes(&kvm_mp_state { mp_state: 3 }),
            regs: bytes(&kvm_regs { rax: 7, rip: 0x1000, ..Default::default() }),
            sregs: bytes(&kvm_sregs::default()),
            xsave: vec![5; 1024],
            xcrs: bytes(&kvm_xcrs::default()),
            debug: bytes(&kvm_debugregs::default()),
            lapic: bytes(&kvm_lapic_state::default()),
            msrs: vec![(0x10, 99)],
            events: bytes(&kvm_vcpu_events::default()),
        }
    }

    fn decode(state: &SavedVcpu, scope: &Scope) -> Result<DecodedVcpu, StateError> {
        decode_vcpu(&Section::encode(VCPU, VERSION, state), scope)
    }

    fn why(state: &SavedVcpu, scope: &Scope) -> String {
        decode(state, scope).err().unwrap().to_string()
    }

    #[test]
    fn a_state_that_is_not_of_such_a_vcpu_is_refused() {
        let scope =
            Scope { cpuid: vec![kvm_cpuid_entry2 { function: 1, eax: 2, ..Default::default() }], msrs: [0x10, 0x174].into() };
        let good = decode(&state(&scope.cpuid), &scope).unwrap();
        assert_eq!((good.regs.rax, good.regs.rip, good.mp_state.mp_state, good.xsave.region[1023]), (7, 0x1000, 3, 5));
        assert_eq!(good.msrs, [(0x10, 99)]);
        assert!(why(&state(&[]), &scope).contains("another CPUID"));
        assert!(why(&state(&scope.cpuid), &Scope { msrs: [0x174].into(), ..scope.clone() }).contains("register 0x10"));
        let short = SavedVcpu { lapic: vec![0; 1023], ..state(&scope.cpuid) };
        assert!(why(&short, &scope).contains("1023 bytes for 1024"));
        let short = SavedVcpu { xsave: vec![0; 1025], ..state(&scope.cpuid) };
        assert!(why(&short, &scope).contains("1025 words"));
        let foreign = Section { kind: "soft-vcpu".into(), version: 1, bytes: vec![] };
        assert!(matches!(decode_vcpu(&foreign, &scope), Err(StateError::Kind { .. })));
    }
}
