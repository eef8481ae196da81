//! What CPUID says about the place of a vCPU in its machine, the same for every back end.
//!
//! APIC ids are 0, 1, 2 ... without gaps. So a guest sees the right topology only where the cores of a socket and the
//! threads of a core are powers of two, or there is one socket.
//!
//! Sources: SDM vol. 2 (CPUID); APM vol. 3 appendix E; Linux `virt/kvm/x86/cpuid.rst` for leaves 0x4000_00xx.

use crate::units::Topology;

/// Registers of one answer: EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

/// Bit of leaf 1 EDX: a package has several logical processors.
pub const HTT: u32 = 1 << 28;
/// Bit of leaf 0x80000001 ECX: the cores of a package are counted as threads (CmpLegacy).
pub const CMP_LEGACY: u32 = 1 << 1;

/// Returns the number of bits needed to number `count` things.
fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

/// A vCPU's place in its package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Threads of a core.
    pub threads: u32,
    /// Threads of a package.
    pub package: u32,
    /// APIC id.
    pub id: u32,
}

impl Place {
    /// Returns the place of vCPU `index`.
    pub fn of(topology: Topology, index: usize) -> Place {
        let threads = topology.threads.max(1);
        Place { threads, package: (topology.cores * threads).max(1), id: index as u32 }
    }

    /// Returns whether the package has several threads.
    pub fn is_shared(&self) -> bool {
        self.package > 1
    }

    /// Returns EBX of leaf 1: APIC id, logical processors of the package, and CLFLUSH's 64 bytes.
    pub fn leaf_1_ebx(&self) -> u32 {
        self.id << 24 | (self.package & 0xff) << 16 | 8 << 8
    }

    /// Returns leaf 0xB; 0x1F is the same without levels of its own.
    pub fn extended_topology(&self, sub: u32) -> Leaf {
        match sub {
            0 => [bits_for(self.threads), self.threads, 1 << 8, self.id],
            1 => [bits_for(self.package), self.package, 2 << 8 | 1, self.id],
            n => [0, 0, n & 0xff, self.id],
        }
    }

    /// Returns EAX of a cache's leaf (4, 0x8000001D) with what shares the cache: the threads of a core for levels 1 and 2,
    /// else the package's. Bits 31:26, which only leaf 4 has, say how many cores there are.
    pub fn cache_eax(&self, eax: u32) -> u32 {
        let sharing = if eax >> 5 & 7 < 3 { self.threads } else { self.package };
        eax & !(0xfff << 14) | (sharing - 1 & 0xfff) << 14
    }

    /// Returns bits 31:26 of leaf 4's EAX: cores of the package, less one.
    #[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), allow(dead_code, reason = "only KVM needs it"))]
    pub fn leaf_4_cores(&self) -> u32 {
        (self.package / self.threads - 1 & 0x3f) << 26
    }

    /// Returns ECX of leaf 0x80000008: threads of the package and the bits of their ids.
    pub fn amd_size(&self) -> u32 {
        if self.is_shared() { bits_for(self.package) << 12 | (self.package - 1) & 0xff } else { 0 }
    }

    /// Returns leaf 0x8000001E: APIC id, and the core within its package.
    pub fn amd_core(&self) -> Leaf {
        [self.id, (self.threads - 1) << 8 | (self.id % self.package / self.threads) & 0xff, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_knows_its_place() {
        let place = Place::of(Topology { sockets: 2, cores: 4, threads: 2 }, 13);
        assert_eq!(place, Place { threads: 2, package: 8, id: 13 });
        assert_eq!(place.leaf_1_ebx(), 13 << 24 | 8 << 16 | 8 << 8);
        assert_eq!(place.extended_topology(0), [1, 2, 0x100, 13]);
        assert_eq!(place.extended_topology(1), [3, 8, 0x201, 13]);
        assert_eq!(place.extended_topology(2), [0, 0, 2, 13]);
        assert_eq!(place.amd_size(), 3 << 12 | 7);
        assert_eq!(place.amd_core(), [13, 1 << 8 | 2, 0, 0]);
        assert_eq!(place.leaf_4_cores(), 3 << 26);
        assert_eq!(Place::of(Topology::ONE, 0).amd_size(), 0);
    }

    #[test]
    fn a_cache_says_who_shares_it_and_keeps_the_rest() {
        let place = Place::of(Topology { sockets: 1, cores: 4, threads: 2 }, 0);
        for (level, sharing) in [(1, 2), (2, 2), (3, 8)] {
            let eax = 0xfc00_0121 & !(7 << 5) | level << 5 | 0xabc << 14;
            assert_eq!(place.cache_eax(eax), 0xfc00_0101 | level << 5 | (sharing - 1) << 14);
        }
    }
}
