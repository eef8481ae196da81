//! Memory whose map changes, and its log of dirty pages, while programs run.

use std::time::Duration;

use super::super::super::run::SoftBackend;
use super::*;
use crate::hypervisor::backend::Backend;
use crate::hypervisor::memory::{HostMemory, PAGE_SIZE, Region};

/// Address of the page that is a region of its own.
const PAGE: u64 = 0x9000;

/// Returns a page of host memory that starts with `bytes`.
fn page(bytes: &[u8]) -> Region {
    let memory = Arc::new(HostMemory::anonymous(PAGE_SIZE).unwrap());
    let region = Region::new(GuestAddr(PAGE), PAGE_SIZE, Mode::Ram, memory, 0).unwrap();
    let mem = GuestMemory::anonymous(&[]).unwrap();
    mem.change(|map| map.insert(region.clone())).unwrap();
    mem.write(GuestAddr(PAGE), bytes).unwrap();
    region
}

/// A machine whose memory has a region of its own at [`PAGE`] with `bytes`, and that runs `program` from 0:0x8000.
fn machine(probe: &Arc<Probe>, bytes: &[u8], program: &[u8]) -> VcpuSetup {
    let mut setup = setup(probe, BootState::Reset);
    let behind = PAGE + PAGE_SIZE;
    let layout = [(GuestAddr(0), PAGE, Mode::Ram), (GuestAddr(behind), MIB, Mode::Ram), (GuestAddr(ROM), 0x1_0000, Mode::Rom)];
    setup.memory = GuestMemory::anonymous(&layout).unwrap();
    setup.memory.change(|map| map.insert(page(bytes))).unwrap();
    setup.memory.write(GuestAddr(0x8000), program).unwrap();
    // At the reset vector: jmp 0:0x8000.
    setup.memory.write_rom(GuestAddr(ROM + 0xfff0), &[0xea, 0x00, 0x80, 0x00, 0x00]).unwrap();
    setup
}

/// Runs the machine. Returns what it wrote to port 0xe9, its other writes, and the exit.
fn run(probe: &Probe, setup: VcpuSetup) -> (String, Vec<(u64, u8, u64)>, MachineExit) {
    let exit = SoftBackend::new(setup, false).unwrap().run();
    let (said, others): (Vec<_>, Vec<_>) = probe.writes().into_iter().partition(|write| write.0 == 0xe9);
    (said.iter().map(|write| write.2 as u8 as char).collect(), others, exit)
}

#[test]
fn a_change_of_the_map_counts_from_the_next_instruction_on() {
    let probe = Probe::new();
    // For each step: mov al, [0x9041]; out 0xe9, al; mov [0x9042], al; mov al, step; out 0xf7, al
    let mut program = Vec::new();
    for step in 1..=4 {
        program.extend([0xa0, 0x41, 0x90, 0xe6, 0xe9, 0xa2, 0x42, 0x90, 0xb0, step, 0xe6, 0xf7]);
    }
    program.extend([0xe6, 0xf4]);
    let setup = machine(&probe, &[b'r'; 0x80], &program);
    let memory = setup.memory.clone();
    *probe.on_write.lock().unwrap() = Some(Box::new({
        let memory = memory.clone();
        move |step| {
            let at = GuestAddr(PAGE);
            let changed = memory.change(|map| match step {
                1 => map.set_mode(at, Mode::Device),
                2 => map.set_mode(at, Mode::Rom),
                3 => map.remove(at).and_then(|_| map.insert(page(&[b's'; 0x80]))),
                _ => map.remove(at).map(drop),
            });
            changed.unwrap();
        }
    }));
    // The device answers with the low byte of the address, `A`.
    let (said, others, exit) = run(&probe, setup);
    assert_eq!((said.as_str(), exit), ("rArs", MachineExit::Debug(4)));
    let stores: Vec<_> = others.iter().filter(|write| write.0 == PAGE + 0x42).map(|write| write.2 as u8 as char).collect();
    assert_eq!(stores, ['A', 'r'], "stores to a device and to ROM go to the bus, those to RAM do not");
    assert!(!memory.contains(GuestAddr(PAGE), 1));
}

#[test]
fn code_of_memory_that_was_exchanged_is_forgotten() {
    let probe = Probe::new();
    // call 0x9000; mov al, 1; out 0xf7, al; call 0x9000; mov al, 42; out 0xf4, al
    let program = [0xe8, 0xfd, 0x0f, 0xb0, 1, 0xe6, 0xf7, 0xe8, 0xf6, 0x0f, 0xb0, 42, 0xe6, 0xf4];
    // mov al, letter; out 0xe9, al; ret
    let code = |letter| [0xb0, letter, 0xe6, 0xe9, 0xc3];
    let setup = machine(&probe, &code(b'x'), &program);
    let memory = setup.memory.clone();
    *probe.on_write.lock().unwrap() = Some(Box::new(move |_| {
        memory.change(|map| map.remove(GuestAddr(PAGE)).and_then(|_| map.insert(page(&code(b'y'))))).unwrap();
    }));
    let (said, _, exit) = run(&probe, setup);
    assert_eq!((said.as_str(), exit), ("xy", MachineExit::Debug(42)));
}

#[test]
fn a_copy_that_follows_the_log_of_a_running_guest_is_its_memory_in_the_end() {
    let probe = Probe::new();
    // mov bx, 0x1000; again: inc word [bx]; add bx, 0x1000; cmp bx, 0x8000; jb again; jmp to the first
    let program = [0xbb, 0x00, 0x10, 0xff, 0x07, 0x81, 0xc3, 0x00, 0x10, 0x81, 0xfb, 0x00, 0x80, 0x72, 0xf4, 0xeb, 0xef];
    let setup = machine(&probe, &[], &program);
    let (memory, attention) = (setup.memory.clone(), setup.attention.clone());
    let runner = std::thread::spawn(move || SoftBackend::new(setup, false).unwrap().run());
    let mut copy = vec![0u8; 0x9000];
    let mut follow = |dirty: Vec<(GuestAddr, u64)>| {
        for (base, len) in dirty {
            memory.read(base, &mut copy[base.0 as usize..(base.0 + len) as usize]).unwrap();
        }
    };
    memory.start_dirty_log();
    follow(vec![(GuestAddr(0), 0x9000)]);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(1));
        follow(memory.take_dirty());
    }
    attention.stop(MachineExit::PowerOff);
    assert_eq!(runner.join().unwrap(), MachineExit::PowerOff);
    let last = memory.take_dirty();
    assert!(last.iter().all(|&(base, len)| base.0 >= 0x1000 && base.0 + len <= 0x8000), "{last:?}");
    follow(last);
    let mut bytes = vec![0; copy.len()];
    memory.read(GuestAddr(0), &mut bytes).unwrap();
    assert!(bytes == copy, "a page that was written is missing in the log");
    assert_ne!(bytes[0x1000..0x1002], [0, 0], "the program ran");
}
