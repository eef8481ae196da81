//! CPUID of a guest: what the host's KVM can give, less what a guest has no business with, with the guest's topology.
//!
//! Sources: Linux `Documentation/virt/kvm/api.rst`, section 4.46 (KVM_GET_SUPPORTED_CPUID); SDM vol. 2 (CPUID); APM vol. 3
//! appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst` for leaves 0x4000_00xx.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::hypervisor::clock::TscFrequency;
use crate::hypervisor::cpuid::{CMP_LEGACY, HTT, Place};

/// The leaf has sub-leaves (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const WITH_SUB_LEAF: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
/// Last leaf of the hypervisor's: the frequencies of the TSC and of the local APIC's bus in kHz, which FreeBSD reads.
const FREQUENCIES: u32 = 0x4000_0010;
/// Frequency of the bus of KVM's local APICs (APIC_BUS_CYCLE_NS is 1).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf 1 ECX: VMX, TSC deadline, hypervisor.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 0x80000001 ECX: SVM; the performance counters of the core, of the northbridge and of the L3.
const SVM: u32 = 1 << 2;
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// What the host says beside its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTimers {
    /// The local APICs have the TSC-deadline mode (KVM_CAP_TSC_DEADLINE_TIMER).
    pub tsc_deadline: bool,
    /// Frequency of the guest's TSC, if the host knows it.
    pub tsc: Option<TscFrequency>,
}

/// Returns the answers for the vCPU at `place`, out of the `host`'s list.
pub fn for_vcpu(host: &CpuId, place: &Place, timers: &HostTimers) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> = host.as_slice().to_vec();
    entries.retain(|entry| !is_topology(entry.function) && !is_withheld(entry.function) && entry.function != FREQUENCIES);
    for entry in &mut entries {
        adapt(entry, place, timers);
    }
    for function in host.as_slice().iter().map(|entry| entry.function).filter(|&function| is_topology(function)) {
        if !entries.iter().any(|entry| entry.function == function) {
            entries.extend((0..3).map(|sub| with(function, sub, place.extended_topology(sub))));
        }
    }
    if let Some(tsc) = timers.tsc {
        entries.push(kvm_cpuid_entry2 { function: FREQUENCIES, eax: tsc.khz(), ebx: APIC_BUS_KHZ, ..Default::default() });
        let base = entries.iter_mut().find(|entry| entry.function == 0x4000_0000);
        base.into_iter().for_each(|entry| entry.eax = entry.eax.max(FREQUENCIES));
    }
    entries
}

fn with(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, flags: WITH_SUB_LEAF, eax, ebx, ecx, edx, ..Default::default() }
}

/// Leaves that list the levels of the topology.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

/// Leaves of what a guest does not get: performance counters, SGX, processor trace, hardware feedback, SVM, memory
/// encryption; and AMD's own list of levels (0x80000026), which counts them in another way: without it 0xB is read.
fn is_withheld(function: u32) -> bool {
    matches!(function, 0xa | 0x12 | 0x14 | 0x1b | 0x23 | 0x8000_000a | 0x8000_001b | 0x8000_001f | 0x8000_0022 | 0x8000_0026)
}

fn adapt(entry: &mut kvm_cpuid_entry2, place: &Place, timers: &HostTimers) {
    let shared = place.is_shared();
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ebx = place.leaf_1_ebx();
            entry.ecx = entry.ecx & !(VMX | TSC_DEADLINE) | HYPERVISOR;
            entry.ecx |= if timers.tsc_deadline { TSC_DEADLINE } else { 0 };
            entry.edx = if shared { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // A cache of type 0 ends the list.
        (4, _) if entry.eax & 0x1f != 0 => {
            entry.eax = place.cache_eax(entry.eax) & !(0x3f << 26) | place.leaf_4_cores();
        }
        (0x8000_0001, _) => {
            entry.ecx &= !(SVM | AMD_COUNTERS | CMP_LEGACY);
            entry.ecx |= if shared { CMP_LEGACY } else { 0 };
        }
        (0x8000_0008, _) => entry.ecx = place.amd_size(),
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => entry.eax = place.cache_eax(entry.eax),
        (0x8000_001e, _) => [entry.eax, entry.ebx, entry.ecx, entry.edx] = place.amd_core(),
        _ => {}
    }
}

/// Returns the number of bits of a physical address on the host.
pub fn physical_bits(host: &CpuId) -> u32 {
    let size = host.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    size.map(|entry| entry.eax & 0xff).filter(|bits| (32..=52).contains(bits)).unwrap_or(36)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Topology;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        with(function, index, registers)
    }

    fn host() -> CpuId {
        let all = u32::MAX;
        let entries = [
            leaf(1, 0, [0xa0_0f11, 7 << 24 | 64 << 16, all & !TSC_DEADLINE, all]),
            leaf(4, 0, [0xfffc_0121, 1, 2, 3]),
            leaf(4, 1, [0, 0, 0, 0]),
            leaf(0xa, 0, [8, 8, 8, 8]),
            leaf(0xb, 0, [0, 0, 0, 7]),
            leaf(0x4000_0000, 0, [0x4000_0001, 1, 2, 3]),
            leaf(0x4000_0001, 0, [0x0100_003b, 0, 0, 0]),
            leaf(0x8000_0001, 0, [1, 2, all, all]),
            leaf(0x8000_0008, 0, [0x3028, 5, 0x703f, 0]),
            leaf(0x8000_000a, 0, [1, 1, 1, 1]),
            leaf(0x8000_001e, 0, [7, 7, 7, 7]),
            leaf(0x8000_0026, 0, [1, 1, 1, 1]),
        ];
        CpuId::from_entries(&entries).unwrap()
    }

    fn given(topology: Topology, index: usize, timers: HostTimers) -> impl Fn(u32, u32) -> Option<[u32; 4]> {
        let entries = for_vcpu(&host(), &Place::of(topology, index), &timers);
        move |function, index| {
            let mut found = entries.iter().filter(|entry| entry.function == function && entry.index == index);
            let entry = found.next();
            assert!(found.next().is_none(), "{function:#x} is there twice");
            entry.map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
        }
    }

    #[test]
    fn a_guest_has_its_own_topology() {
        let timers = HostTimers { tsc_deadline: false, tsc: None };
        let leaf = given(Topology { sockets: 1, cores: 2, threads: 2 }, 3, timers);
        let [_, ebx, ecx, edx] = leaf(1, 0).unwrap();
        assert_eq!((ebx, edx & HTT, ecx & TSC_DEADLINE), (3 << 24 | 4 << 16 | 8 << 8, HTT, 0));
        assert_eq!(leaf(4, 0).unwrap(), [1 << 26 | 1 << 14 | 0x121, 1, 2, 3]);
        assert_eq!(leaf(4, 1).unwrap(), [0; 4]);
        assert_eq!([leaf(0xb, 0).unwrap()[1], leaf(0xb, 1).unwrap()[1], leaf(0xb, 2).unwrap()[2]], [2, 4, 2]);
        assert_eq!(leaf(0x8000_0008, 0).unwrap(), [0x3028, 5, 2 << 12 | 3, 0]);
        assert_eq!(leaf(0x8000_001e, 0).unwrap(), [3, 1 << 8 | 1, 0, 0]);
        let leaf = given(Topology::ONE, 0, timers);
        assert_eq!((leaf(1, 0).unwrap()[3] & HTT, leaf(0x8000_0001, 0).unwrap()[2] & CMP_LEGACY), (0, 0));
    }

    #[test]
    fn a_guest_gets_no_virtualisation_and_no_counters_and_keeps_kvms_clock() {
        let timers = HostTimers { tsc_deadline: true, tsc: TscFrequency::from_khz(2_500_000) };
        let leaf = given(Topology::ONE, 0, timers);
        let ecx = leaf(1, 0).unwrap()[2];
        assert_eq!(ecx & (VMX | HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
        assert_eq!(leaf(0x8000_0001, 0).unwrap()[2] & (SVM | AMD_COUNTERS), 0);
        assert_eq!([leaf(0xa, 0), leaf(0x8000_000a, 0), leaf(0x8000_0026, 0)], [None, None, None]);
        assert_eq!(leaf(0x4000_0001, 0).unwrap()[0], 0x0100_003b);
        assert_eq!(leaf(0x4000_0000, 0).unwrap(), [FREQUENCIES, 1, 2, 3]);
        assert_eq!(leaf(FREQUENCIES, 0).unwrap()[..2], [2_500_000, APIC_BUS_KHZ]);
        assert_eq!(physical_bits(&host()), 0x28);
    }
}
