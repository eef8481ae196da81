//! The requests of one machine in the kernel.

use std::io;

use super::abi::{IsaIrq, RawExit, Reg, Release, SegDesc};

/// A machine of vmm(4): [`freebsd`](super::freebsd) has the kernel's, the tests have one of their own. Each vCPU is used by
/// its own thread only, but for [`Vm::suspend_vcpu`].
pub trait Vm: Send + Sync {
    /// Returns the release whose interface the kernel has.
    fn release(&self) -> Release;
    /// Runs a vCPU until something is to be done for it: VM_RUN.
    fn run(&self, vcpu: usize, exit: &mut RawExit) -> io::Result<()>;
    /// Makes a vCPU one that runs: VM_ACTIVATE_CPU.
    fn activate(&self, vcpu: usize) -> io::Result<()>;
    /// Stops all vCPUs: VM_SUSPEND. Each then returns once more from [`Vm::run`], when all active ones are in it.
    fn suspend(&self, how: i32) -> io::Result<()>;
    /// Brings a vCPU back from [`Vm::run`], and keeps it from running: VM_SUSPEND_CPU.
    fn suspend_vcpu(&self, vcpu: usize) -> io::Result<()>;
    /// Lets it run again: VM_RESUME_CPU.
    fn resume_vcpu(&self, vcpu: usize) -> io::Result<()>;
    /// Reads registers: VM_GET_REGISTER_SET. `values` is as long as `numbers`.
    fn registers(&self, vcpu: usize, numbers: &[Reg], values: &mut [u64]) -> io::Result<()>;
    /// Sets a register: VM_SET_REGISTER. RIP is where the vCPU goes on.
    fn set_register(&self, vcpu: usize, number: Reg, value: u64) -> io::Result<()>;
    /// Reads the hidden part of a segment register: VM_GET_SEGMENT_DESCRIPTOR.
    fn descriptor(&self, vcpu: usize, number: Reg) -> io::Result<SegDesc>;
    /// Sets the hidden part of a segment register: VM_SET_SEGMENT_DESCRIPTOR.
    fn set_descriptor(&self, vcpu: usize, number: Reg, descriptor: SegDesc) -> io::Result<()>;
    /// Sets what the kernel does for a vCPU: VM_SET_CAPABILITY.
    fn set_capability(&self, vcpu: usize, capability: i32, value: i32) -> io::Result<()>;
    /// Raises an exception at RIP: VM_INJECT_EXCEPTION.
    fn inject(&self, vcpu: usize, vector: u8, error: Option<u32>) -> io::Result<()>;
    /// Sets an input of the 8259A pair and of the I/O APIC: VM_ISA_ASSERT_IRQ, VM_ISA_DEASSERT_IRQ.
    fn set_isa_line(&self, line: IsaIrq, level: bool) -> io::Result<()>;
    /// Sets an input of the I/O APIC: VM_IOAPIC_ASSERT_IRQ, VM_IOAPIC_DEASSERT_IRQ.
    fn set_ioapic_pin(&self, pin: i32, level: bool) -> io::Result<()>;
    /// Delivers a message-signalled interrupt: VM_LAPIC_MSI.
    fn message(&self, address: u64, data: u32) -> io::Result<()>;
    /// Pulses LINT1 of every vCPU: VM_LAPIC_LOCAL_IRQ.
    fn pulse_lint1(&self) -> io::Result<()>;
}
