//! Two vCPUs that run at the same time.

use super::super::super::mmu::{Width, set_entry_bits};
use super::super::super::run::SoftBackend;
use super::*;
use crate::hypervisor::backend::Backend;

/// As in `parallel.asm`.
const ROUNDS: u32 = 4000;
/// Address of `beside` in the program.
const BESIDE: u64 = 0x8200;

/// Runs the program on two vCPUs. Returns its memory and the exit.
fn run() -> (GuestMemory, MachineExit) {
    let probe = Probe::new();
    let mut setup = setup(&probe, BootState::Reset);
    setup.vcpus = 2;
    setup.attention = Attention::new(2);
    *probe.attention.lock().unwrap() = Some(setup.attention.clone());
    probe.events.lock().unwrap().push(VcpuEvent::Sipi(8));
    setup.attention.raise(1);
    let (memory, attention) = (setup.memory.clone(), setup.attention.clone());
    memory.write(GuestAddr(0x8000), include_bytes!("parallel.bin")).unwrap();
    // At the reset vector: jmp 0:0x8000.
    memory.write_rom(GuestAddr(ROM + 0xfff0), &[0xea, 0x00, 0x80, 0x00, 0x00]).unwrap();
    let mut backend = SoftBackend::new(setup, true).unwrap();
    // A program that hangs is stopped by the clock of the host.
    let (ended, waits) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if waits.recv_timeout(std::time::Duration::from_secs(20)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            attention.stop(MachineExit::Error);
        }
    });
    let exit = backend.run();
    drop(ended);
    watchdog.join().unwrap();
    (memory, exit)
}

#[test]
fn locked_instructions_are_atomic_and_changed_code_runs_on_both_vcpus() {
    let (memory, exit) = run();
    let dword = |addr: u64| memory.read_le::<u32>(GuestAddr(addr)).unwrap();
    let counts: Vec<u32> = (0x7000..0x7064).step_by(4).map(dword).collect();
    assert_eq!(exit, MachineExit::Debug(42), "{counts:x?}");
    let both = 2 * ROUNDS;
    let sum = ROUNDS * (ROUNDS + 1);
    let found = [
        ("inc", dword(0x7010), both),
        ("add, misaligned", dword(0x7017), 2 * both),
        ("inc of a byte", dword(0x7020) & 0xff, both & 0xff),
        ("dec of a word", dword(0x7024) & 0xffff, both.wrapping_neg() & 0xffff),
        ("sub", dword(0x7028), sum.wrapping_neg()),
        ("neg", dword(0x702c), 0),
        ("not", dword(0x7030), 0),
        ("adc", dword(0x7034), 3 * both),
        ("xadd", dword(0x7038), both),
        ("cmpxchg", dword(0x703c), both),
        ("cmpxchg8b, low", dword(0x7040), 0),
        ("cmpxchg8b, high", dword(0x7044), both / 2),
        ("under a lock by xchg", dword(0x704c), both),
        ("under a lock by bts", dword(0x705c), 5 * both),
        ("under a lock by bts with the number in a register", dword(0x7058), both.wrapping_neg()),
        ("inc beside code", dword(BESIDE), both),
        ("inc on two pages", dword(0x9ffe), both),
    ];
    for (what, found, expected) in found {
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn an_entry_that_another_vcpu_has_changed_gets_no_accessed_bit() {
    let mut b = bench();
    b.identity();
    b.long_mode();
    let slot = b.page_entry(0);
    for (width, entry, now) in [(Width::Wide, 0x5001, 0), (Width::Wide, 0x5001, 1 << 63 | 0x5001), (Width::Narrow, 0x5001, 0)] {
        b.put(slot, now);
        assert!(!set_entry_bits(&mut b.cpu, slot, entry, 0x20, width));
        assert_eq!(b.mem.read_le::<u64>(GuestAddr(slot)).unwrap(), now, "it stays as it is");
        b.put(slot, entry);
        assert!(set_entry_bits(&mut b.cpu, slot, entry, 0x20, width));
        assert_eq!(b.mem.read_le::<u64>(GuestAddr(slot)).unwrap(), entry | 0x20);
    }
}
