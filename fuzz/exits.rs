//! Exits of KVM's as no kernel makes them: what a vCPU shares with the kernel has any contents.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use linux::kvm_exits;

/// There is no KVM on this system.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn kvm_exits(_: &[u8]) {}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use vmctl::testing::hypervisor::backend::{MachineExit, Platform};
    use vmctl::testing::hypervisor::clock::{Clock, ManualClock};
    use vmctl::testing::hypervisor::kvm::replay_exit;

    use crate::bodies::Bytes;

    /// Offset of the exit's reason in `struct kvm_run`, and of what belongs to it (linux/kvm.h).
    const REASON: usize = 8;
    const BODY: usize = 32;
    /// KVM_EXIT_IO and KVM_EXIT_MMIO.
    const REASONS: [u32; 2] = [2, 6];
    /// Bytes of the page, and so of one exit.
    const PAGE_BYTES: usize = 3 * 4096;

    /// A board that counts the bytes of what is asked.
    struct Counts {
        bytes: AtomicUsize,
        clock: Arc<ManualClock>,
    }

    impl Counts {
        fn note(&self, width: u8, widths: &[u8]) {
            assert!(widths.contains(&width), "an access of {width} bytes");
            self.bytes.fetch_add(width.into(), Ordering::Relaxed);
        }
    }

    impl Platform for Counts {
        fn port_read(&self, _: usize, _: u16, width: u8) -> u32 {
            self.note(width, &[1, 2, 4]);
            u32::MAX
        }
        fn port_write(&self, _: usize, _: u16, width: u8, _: u32) {
            self.note(width, &[1, 2, 4]);
        }
        fn mmio_read(&self, _: usize, _: u64, width: u8) -> u64 {
            self.note(width, &[1, 2, 4, 8]);
            u64::MAX
        }
        fn mmio_write(&self, _: usize, _: u64, width: u8, value: u64) {
            self.note(width, &[1, 2, 4, 8]);
            assert!(width == 8 || value >> (8 * u32::from(width)) == 0, "{value:#x} in {width} bytes");
        }
        fn advance(&self, _: u64) -> Option<u64> {
            None
        }
        fn vcpu_failed(&self, _: usize, _: MachineExit) {}
        fn clock(&self) -> &dyn Clock {
            &*self.clock
        }
    }

    /// A page with any contents, and mostly with a reason that has accesses.
    pub fn kvm_exits(data: &[u8]) {
        let mut bytes = Bytes::new(data);
        let mut page = [0; 256];
        while !bytes.is_empty() {
            let choice = bytes.byte();
            page[BODY..BODY + 32].copy_from_slice(&bytes.array::<32>());
            let reason = match choice {
                0..=0xef => REASONS[usize::from(choice) % 2],
                _ => bytes.word().into(),
            };
            page[REASON..REASON + 4].copy_from_slice(&reason.to_le_bytes());
            // Small widths and counts, and an offset inside the page, reach what stands behind the checks.
            if choice % 8 == 0 {
                page[BODY + 1] = [1, 2, 4, 8][usize::from(bytes.byte() % 4)];
                page[BODY + 4..BODY + 8].copy_from_slice(&u32::from(bytes.byte()).to_le_bytes());
                page[BODY + 8..BODY + 16].copy_from_slice(&u64::from(bytes.word() % 0x3100).to_le_bytes());
            }
            let board = Counts { bytes: AtomicUsize::new(0), clock: ManualClock::new(0) };
            replay_exit(&page, &board).expect("some pages of memory");
            assert!(board.bytes.into_inner() <= PAGE_BYTES, "more than the page has");
        }
    }
}
