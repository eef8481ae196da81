//! 8042 keyboard controller with a keyboard: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
//! Device Controller"; keyboard commands from the same book's "Keyboard" section.
//!
//! | region | what |
//! |---|---|
//! | 0 | port 60h: output buffer / data for the controller or the keyboard |
//! | 1 | port 64h: status / command |
//! | 2 | port 92h: system control port A, bit 0 resets, bit 1 is A20 |
//!
//! The keyboard answers the commands that drivers send at start (identify, reset, lights, rate, scan set). Its keys are
//! never pressed, since there is no display to type at. Resets stop the machine: command FEh, output port bit 0, port
//! 92h bit 0.
//!
//! **Not modelled**: the auxiliary device (its interface test reports a fault, so drivers find no mouse); A20, which is
//! always open, as on processors and chipsets without the gate: the bits of both ports are one bit that is kept and
//! read back, and addresses never wrap; scan codes, password, multiplexing.
//!
//! **Hostile guest**: the output buffer holds 16 bytes; further answers are dropped.
//!
//! **Saved state**: the registers and the output buffer.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

use crate::hypervisor::backend::MachineExit;
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::irq::IrqLine;
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Attention;

const KIND: &str = "i8042";
const VERSION: u32 = 1;
const BUFFER_BYTES: usize = 16;

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const CONFIG_KEYBOARD_IRQ: u8 = 0x01;
const CONFIG_SYSTEM: u8 = 0x04;
const CONFIG_KEYBOARD_OFF: u8 = 0x10;
const CONFIG_MOUSE_OFF: u8 = 0x20;
const CONFIG_TRANSLATE: u8 = 0x40;
const CONFIG_WRITABLE: u8 = 0x77;
const OUTPUT_PORT_RESET: u8 = 0x01;
const OUTPUT_PORT_A20: u8 = 0x02;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    config: u8,
    output_port: u8,
    /// A controller command that waits for its data byte.
    command: Option<u8>,
    /// A keyboard command that waits for its data byte.
    keyboard_command: Option<u8>,
    scan_set: u8,
    last_was_command: bool,
    output: VecDeque<u8>,
}

impl Regs {
    fn power_on() -> Regs {
        Regs {
            config: CONFIG_KEYBOARD_IRQ | CONFIG_SYSTEM | CONFIG_MOUSE_OFF | CONFIG_TRANSLATE,
            output_port: OUTPUT_PORT_RESET | OUTPUT_PORT_A20,
            command: None,
            keyboard_command: None,
            scan_set: 2,
            last_was_command: false,
            output: VecDeque::new(),
        }
    }
}

/// The controller and its keyboard.
pub struct Ps2 {
    regs: Regs,
    line: IrqLine,
    attention: Arc<Attention>,
}

impl Ps2 {
    /// Region of port 60h.
    pub const DATA: u16 = 0;
    /// Region of port 64h.
    pub const COMMAND: u16 = 1;
    /// Region of port 92h.
    pub const PORT_92: u16 = 2;

    /// Creates a controller whose keyboard interrupts on `line`. A reset stops the machine of `attention`.
    pub fn new(line: IrqLine, attention: Arc<Attention>) -> Ps2 {
        Ps2 { regs: Regs::power_on(), line, attention }
    }

    fn wants_irq(&self) -> bool {
        !self.regs.output.is_empty() && self.regs.config & CONFIG_KEYBOARD_IRQ != 0
    }

    fn answer(&mut self, bytes: &[u8]) {
        let room = BUFFER_BYTES - self.regs.output.len().min(BUFFER_BYTES);
        self.regs.output.extend(&bytes[..bytes.len().min(room)]);
        self.line.set(self.wants_irq());
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.regs.output.pop_front().unwrap_or(0);
        // Each byte is an edge of its own.
        self.line.lower();
        self.line.set(self.wants_irq());
        byte
    }

    fn status(&self) -> u8 {
        let full = if self.regs.output.is_empty() { 0 } else { STATUS_OUTPUT_FULL };
        let command = if self.regs.last_was_command { STATUS_COMMAND } else { 0 };
        STATUS_UNLOCKED | self.regs.config & STATUS_SYSTEM | command | full
    }

    fn write_output_port(&mut self, value: u8) {
        self.regs.output_port = value;
        if value & OUTPUT_PORT_RESET == 0 {
            self.attention.stop(MachineExit::Reboot);
        }
    }

    fn controller_command(&mut self, command: u8) {
        self.regs.last_was_command = true;
        self.regs.command = None;
        match command {
            0x20 => self.answer(&[self.regs.config]),
            0x60 | 0xd1..=0xd4 => self.regs.command = Some(command),
            0xa7 => self.regs.config |= CONFIG_MOUSE_OFF,
            0xa8 => self.regs.config &= !CONFIG_MOUSE_OFF,
            // Auxiliary interface test: clock line stuck low, which means that there is no device.
            0xa9 => self.answer(&[0x01]),
            0xaa => {
                self.regs.config |= CONFIG_SYSTEM;
                self.answer(&[0x55]);
            }
            0xab => self.answer(&[0x00]),
            0xad => self.regs.config |= CONFIG_KEYBOARD_OFF,
            0xae => self.regs.config &= !CONFIG_KEYBOARD_OFF,
            // Input port: keyboard not inhibited.
            0xc0 => self.answer(&[0x80]),
            0xd0 => self.answer(&[self.regs.output_port]),
            // Pulses the low bits of the output port that are 0 in the command.
            0xf0..=0xff if command & OUTPUT_PORT_RESET == 0 => self.attention.stop(MachineExit::Reboot),
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.regs.last_was_command = false;
        match self.regs.command.take() {
            Some(0x60) => {
                self.regs.config = value & CONFIG_WRITABLE;
                self.line.set(self.wants_irq());
            }
            Some(0xd1) => self.write_output_port(value),
            // A byte written for the auxiliary output buffer comes back as the keyboard's, since there is no auxiliary
            // device.
            Some(0xd2 | 0xd3) => self.answer(&[value]),
            Some(0xd4) => self.answer(&[RESEND]),
            _ => self.keyboard(value),
        }
    }

    fn keyboard(&mut self, value: u8) {
        self.regs.config &= !CONFIG_KEYBOARD_OFF;
        match self.regs.keyboard_command.take() {
            Some(0xf0) if value == 0 => return self.answer(&[ACK, self.regs.scan_set]),
            Some(0xf0) if (1..=3).contains(&value) => {
                self.regs.scan_set = value;
                return self.answer(&[ACK]);
            }
            Some(0xed | 0xf3) if value < 0x80 => return self.answer(&[ACK]),
            _ => {}
        }
        match value {
            0xed | 0xf0 | 0xf3 => {
                self.regs.keyboard_command = Some(value);
                self.answer(&[ACK]);
            }
            0xee => self.answer(&[0xee]),
            // An MF2 keyboard. Its second byte is translated to set 1, as scan codes are.
            0xf2 => self.answer(&[ACK, 0xab, if self.regs.config & CONFIG_TRANSLATE != 0 { 0x41 } else { 0x83 }]),
            0xf4 | 0xf5 => self.answer(&[ACK]),
            0xf6 => {
                self.regs.scan_set = 2;
                self.answer(&[ACK]);
            }
            0xff => {
                self.regs.scan_set = 2;
                self.answer(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }
}

impl Device for Ps2 {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        let value = match (access.region, access.offset) {
            (Ps2::DATA, 0) => self.read_data(),
            (Ps2::COMMAND, 0) => self.status(),
            (Ps2::PORT_92, 0) => self.regs.output_port & OUTPUT_PORT_A20,
            _ => 0xff,
        };
        u64::MAX << 8 | u64::from(value)
    }

    fn write(&mut self, access: Access, value: u64) {
        let value = value as u8;
        match (access.region, access.offset) {
            (Ps2::DATA, 0) => self.write_data(value),
            (Ps2::COMMAND, 0) => self.controller_command(value),
            (Ps2::PORT_92, 0) => {
                self.regs.output_port = self.regs.output_port & !OUTPUT_PORT_A20 | value & OUTPUT_PORT_A20;
                if value & 1 != 0 {
                    self.attention.stop(MachineExit::Reboot);
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.regs = Regs::power_on();
        self.line.lower();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        let possible = regs.output.len() <= BUFFER_BYTES
            && regs.config & !CONFIG_WRITABLE == 0
            && regs.command.is_none_or(|c| matches!(c, 0x60 | 0xd1..=0xd4))
            && regs.keyboard_command.is_none_or(|c| matches!(c, 0xed | 0xf0 | 0xf3))
            && (1..=3).contains(&regs.scan_set);
        if !possible {
            return Err(StateError::Damaged { kind: KIND, why: "a register or the buffer has an impossible value".into() });
        }
        self.regs = regs;
        self.line.restore(self.wants_irq());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;
    use crate::hypervisor::irq::IrqProbe;

    struct Rig {
        ps2: Ps2,
        irq: Arc<IrqProbe>,
        attention: Arc<Attention>,
    }

    fn rig() -> Rig {
        let (irq, attention) = (IrqProbe::new(), Attention::new(1));
        Rig { ps2: Ps2::new(IrqLine::new(irq.clone(), 1), attention.clone()), irq, attention }
    }

    impl Rig {
        fn command(&mut self, value: u8) {
            self.ps2.write(Access { region: Ps2::COMMAND, offset: 0, width: 1 }, u64::from(value));
        }
        fn data(&mut self, value: u8) {
            self.ps2.write(Access { region: Ps2::DATA, offset: 0, width: 1 }, u64::from(value));
        }
        fn answers(&mut self) -> Vec<u8> {
            let mut got = vec![];
            while self.ps2.read(Access { region: Ps2::COMMAND, offset: 0, width: 1 }) as u8 & STATUS_OUTPUT_FULL != 0 {
                got.push(self.ps2.read(Access { region: Ps2::DATA, offset: 0, width: 1 }) as u8);
            }
            got
        }
    }

    #[test]
    fn a_driver_s_probe_finds_the_controller_and_a_keyboard_and_no_mouse() {
        let mut rig = rig();
        rig.command(0xaa);
        assert_eq!(rig.answers(), [0x55]);
        rig.command(0xab);
        assert_eq!(rig.answers(), [0x00]);
        rig.command(0xd3);
        rig.data(0x5a);
        assert_eq!(rig.answers(), [0x5a]);
        rig.command(0xa9);
        assert_eq!(rig.answers(), [0x01]);
        rig.data(0xf2);
        assert_eq!(rig.answers(), [ACK, 0xab, 0x41]);
        rig.data(0xff);
        assert_eq!(rig.answers(), [ACK, SELF_TEST_PASSED]);
    }

    #[test]
    fn the_configuration_byte_reads_back_and_gates_the_interrupt() {
        let mut rig = rig();
        rig.command(0x60);
        rig.data(0x00);
        rig.command(0x20);
        assert!(!rig.irq.level(1));
        assert_eq!(rig.answers(), [0]);
        rig.command(0x60);
        rig.data(0x01);
        rig.data(0xf2);
        assert!(rig.irq.level(1));
        assert_eq!(rig.answers(), [ACK, 0xab, 0x83], "not translated");
        assert!(!rig.irq.level(1));
        assert_eq!(rig.irq.edges(1), 3);
    }

    #[test]
    fn a_read_drops_the_line_though_more_bytes_follow_and_each_of_them_raises_it() {
        let mut rig = rig();
        // Three bytes of an answer, and one more that comes while they wait.
        rig.data(0xf2);
        rig.data(0xee);
        let mut edges = 0;
        for (left, byte) in [ACK, 0xab, 0x41, 0xee].into_iter().enumerate().map(|(at, byte)| (3 - at, byte)) {
            edges += 1;
            assert!(rig.irq.level(1));
            assert_eq!(rig.irq.edges(1), edges);
            assert_eq!(rig.ps2.read(Access { region: Ps2::DATA, offset: 0, width: 1 }) as u8, byte);
            assert_eq!(rig.irq.level(1), left > 0);
        }
        // The answer to the last byte comes after the read that emptied the buffer.
        rig.data(0xee);
        assert_eq!((rig.irq.level(1), rig.irq.edges(1)), (true, edges + 1));
    }

    #[test]
    fn lights_rate_and_scan_set_are_acknowledged() {
        let mut rig = rig();
        for (command, argument) in [(0xed, 7), (0xf3, 0x20), (0xf0, 2)] {
            rig.data(command);
            rig.data(argument);
            assert_eq!(rig.answers(), [ACK, ACK]);
        }
        rig.data(0xf0);
        rig.data(0);
        assert_eq!(rig.answers(), [ACK, ACK, 2]);
        rig.data(0xee);
        assert_eq!(rig.answers(), [0xee]);
        rig.data(0x01);
        assert_eq!(rig.answers(), [RESEND]);
    }

    #[test]
    fn the_reset_pulse_reboots_and_other_pulses_do_not() {
        let mut rig = rig();
        rig.command(0xff);
        assert_eq!(rig.attention.stopped(), None);
        rig.command(0xfe);
        assert_eq!(rig.attention.stopped(), Some(MachineExit::Reboot));
    }

    #[test]
    fn the_output_port_and_port_92_reboot_too() {
        let mut one = rig();
        one.command(0xd1);
        one.data(0xdf);
        assert_eq!(one.attention.stopped(), None, "A20 only");
        one.command(0xd1);
        one.data(0xde);
        assert_eq!(one.attention.stopped(), Some(MachineExit::Reboot));
        let mut other = rig();
        other.ps2.write(Access { region: Ps2::PORT_92, offset: 0, width: 1 }, 3);
        assert_eq!(other.attention.stopped(), Some(MachineExit::Reboot));
    }

    #[test]
    fn the_controller_keeps_the_contract_of_devices() {
        conformance::check(|| rig().ps2, &[(0, 1), (1, 1), (2, 1)]);
    }
}
