//! Guest programs, run whole by the back end.

use super::super::super::run::{SoftBackend, SoftOptions};
use super::*;
use crate::hypervisor::backend::Backend;

/// Runs a program from 0:0x8000 in real mode until it stops the machine; what it wrote to port 0xe9, and the end.
fn run(program: &[u8]) -> (String, MachineExit) {
    let probe = Probe::new();
    let setup = setup(&probe, BootState::Reset);
    setup.memory.write(GuestAddr(0x8000), program).unwrap();
    // At the reset vector: jmp 0:0x8000.
    setup.memory.write(GuestAddr(ROM + 0xfff0), &[0xea, 0x00, 0x80, 0x00, 0x00]).unwrap();
    let attention = setup.attention.clone();
    // A program that goes astray is stopped by the clock of the host.
    let watchdog = std::thread::spawn({
        let attention = attention.clone();
        move || {
            for _ in 0..1000 {
                std::thread::sleep(std::time::Duration::from_millis(10));
                if attention.stopped().is_some() {
                    return;
                }
            }
            attention.stop(MachineExit::Error);
        }
    });
    let exit = SoftBackend::new(setup, SoftOptions::default()).run();
    watchdog.join().unwrap();
    let said = probe.writes().iter().filter(|w| w.0 == 0xe9).map(|w| w.2 as u8 as char).collect();
    (said, exit)
}

#[test]
fn a_system_comes_up_from_real_mode_to_user_mode_in_long_mode() {
    let (said, exit) = run(include_bytes!("modes.bin"));
    assert_eq!((said.as_str(), exit), ("RrPGNLICGV6UuSTH", MachineExit::Debug(42)));
}

#[test]
fn interrupts_string_io_changed_code_and_breakpoints_happen_where_they_should() {
    let (said, exit) = run(include_bytes!("events.bin"));
    assert_eq!((said.as_str(), exit), ("aibcidxyzklmysBW", MachineExit::Debug(42)));
}

#[test]
fn faulting_instructions_start_again_and_protection_holds_for_running_code() {
    let (said, exit) = run(include_bytes!("faults.bin"));
    assert_eq!((said.as_str(), exit), ("DWXSCF", MachineExit::Debug(42)));
}

#[test]
fn a_program_without_tables_that_faults_shuts_the_machine_down() {
    // lidt [zero]; ud2
    let (_, exit) = run(&[0x0f, 0x01, 0x1e, 0x00, 0x70, 0x0f, 0x0b]);
    assert_eq!(exit, MachineExit::TripleFault);
}
