//! Guest programs, run whole by the back end.

use super::super::super::run::SoftBackend;
use super::*;
use crate::hypervisor::backend::Backend;

/// Runs a program from 0:0x8000 in real mode until it stops the machine. Returns what it wrote to port 0xe9, and the
/// exit.
fn run(program: &[u8]) -> (String, MachineExit) {
    run_from(program, BootState::Reset)
}

/// Runs the program at 0x8000 in the same way, entered as in `boot`.
fn run_from(program: &[u8], boot: BootState) -> (String, MachineExit) {
    let probe = Probe::new();
    let setup = setup(&probe, boot);
    setup.memory.write(GuestAddr(0x8000), program).unwrap();
    // At the reset vector: jmp 0:0x8000.
    setup.memory.write_rom(GuestAddr(ROM + 0xfff0), &[0xea, 0x00, 0x80, 0x00, 0x00]).unwrap();
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
    let exit = SoftBackend::new(setup, false).unwrap().run();
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

#[test]
fn init_to_the_first_processor_starts_firmware_or_where_there_is_none_the_machine_anew() {
    let again = |flag: u8| {
        // cmp byte [0x7000], 1; je +8; mov byte [0x7000], 1; out 0xf6, al; hlt; mov al, flag; out 0xf4, al
        let program = [
            &[0x80, 0x3e, 0x00, 0x70, 0x01, 0x74, 0x08][..],
            &[0xc6, 0x06, 0x00, 0x70, 0x01, 0xe6, 0xf6, 0xf4],
            &[0xb0, flag, 0xe6, 0xf4],
        ];
        program.concat()
    };
    assert_eq!(run(&again(9)).1, MachineExit::Debug(9), "it came through the reset vector a second time");
    let boot = BootState::Protected { eip: 0x8000, eax: 0, ebx: 0, esi: 0, gdt_base: 0x500, gdt_limit: 31 };
    // out 0xf6, al; hlt
    assert_eq!(run_from(&[0xe6, 0xf6, 0xf4], boot).1, MachineExit::Reboot);
}

#[test]
fn in_real_mode_one_may_store_through_cs_as_through_any_segment() {
    // mov byte cs:[0x8020], 0x2a; inc byte cs:[0x8020]; mov al, ds:[0x8020]; out 0xf4, al
    let program = [&[0x2e, 0xc6, 0x06, 0x20, 0x80, 0x2a][..], &[0x2e, 0xfe, 0x06, 0x20, 0x80], &[0xa0, 0x20, 0x80, 0xe6, 0xf4]];
    assert_eq!(run(&program.concat()).1, MachineExit::Debug(0x2b));
    // The limit holds: mov byte cs:[ffff + 1] through a 32-bit address is #GP, whose handler says 7.
    let program = [
        // mov word [13 * 4], 0x8020; mov word [13 * 4 + 2], 0
        &[0xc7, 0x06, 0x34, 0x00, 0x20, 0x80, 0xc7, 0x06, 0x36, 0x00, 0x00, 0x00][..],
        // mov ebx, 0x10000; mov byte cs:[ebx], 1
        &[0x66, 0xbb, 0x00, 0x00, 0x01, 0x00, 0x2e, 0x67, 0xc6, 0x03, 0x01],
        &[0x90; 9],
        &[0xb0, 7, 0xe6, 0xf4],
    ];
    assert_eq!(run(&program.concat()).1, MachineExit::Debug(7));
}
