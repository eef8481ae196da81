//! 16550A UART: National Semiconductor PC16550D datasheet (1995), sections 8.0 to 8.11.
//!
//! | offset | DLAB 0 read / write | DLAB 1 |
//! |---|---|---|
//! | 0 | RBR / THR | DLL |
//! | 1 | IER | DLM |
//! | 2 | IIR / FCR | |
//! | 3, 4, 5, 6, 7 | LCR, MCR, LSR, MSR, SCR | |
//!
//! A character takes no time: THR is empty again as soon as the back end, or the queue before it, has taken the byte,
//! and input below the FIFO's trigger level is reported as a character timeout at once. Input that the driver leaves in
//! the FIFO is reported again after [`TIMEOUT_NS`]. As on a PC, the interrupt reaches the line only while OUT2 is set.
//!
//! The line is wired to an edge-triggered input, so every cause lowers it and raises it again, as in sections 8.6 and
//! 8.11: a write to THR clears the THRE interrupt before THR is empty again, a read of RBR clears the timeout, and a
//! FIFO that a driver has begun to empty is filled again only by a poll, once it is empty. A driver that stops after a
//! fixed number of bytes, as drivers do against a stuck line, gets another edge for the rest.
//!
//! **Not modelled**: bit times, parity, framing and break on input; the other end always has DCD, DSR and CTS up.
//!
//! **Hostile guest**: output that the back end does not take is queued up to 64 KiB; then THRE and TEMT stay low, and
//! bytes that are written nevertheless are dropped and counted. Input is taken from the back end only as the FIFO has
//! room.
//!
//! **Saved state**: the registers, the FIFO, the queued output, the counter.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::irq::IrqLine;
use crate::hypervisor::state::{Section, StateError};

/// The back end of a serial line or a console port: bytes out, bytes in. No method blocks. Input that arrives wakes the
/// device through the waker that the back end was built with.
pub trait CharBackend: Send {
    /// Takes bytes from the guest and returns how many. The rest is offered again at the next poll.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Fills `buf` with input for the guest and returns how many bytes.
    fn read(&mut self, buf: &mut [u8]) -> usize;
}

const KIND: &str = "uart16550";
const VERSION: u32 = 3;
const FIFO_BYTES: usize = 16;
const QUEUE_BYTES: usize = 64 * 1024;
/// Time until queued output is offered again.
const RETRY_NS: u64 = 10_000_000;
/// Time of four characters of ten bits at 115,200 Bd, after which input that the driver left in the FIFO is reported
/// again (section 8.11).
const TIMEOUT_NS: u64 = 4 * 10 * 1_000_000_000 / 115_200;

const IER_RDA: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_RLS: u8 = 1 << 2;
const IER_MSR: u8 = 1 << 3;
const IIR_NONE: u8 = 0x01;
const IIR_MSR: u8 = 0x00;
const IIR_THRE: u8 = 0x02;
const IIR_RDA: u8 = 0x04;
const IIR_RLS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;
const MSR_TERI: u8 = 1 << 2;
const MSR_RI: u8 = 1 << 6;
/// DCD, DSR and CTS.
const MSR_CONNECTED: u8 = 0xb0;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    overrun: bool,
    thre_pending: bool,
    /// Character timeout: there is input, and it has not been read for a while.
    timeout: bool,
    rx: VecDeque<u8>,
    out: VecDeque<u8>,
}

impl Regs {
    fn power_on() -> Regs {
        Regs {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: MSR_CONNECTED,
            scr: 0,
            divisor: 12,
            overrun: false,
            thre_pending: false,
            timeout: false,
            rx: VecDeque::new(),
            out: VecDeque::new(),
        }
    }

    fn rx_capacity(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO_BYTES } else { 1 }
    }

    fn rx_trigger(&self) -> usize {
        if self.fcr & FCR_ENABLE == 0 { 1 } else { [1, 4, 8, 14][usize::from(self.fcr >> 6)] }
    }

    /// Returns the pending interrupt of the highest priority, as in IIR bits 3:0.
    fn interrupt(&self) -> u8 {
        if self.ier & IER_RLS != 0 && self.overrun {
            IIR_RLS
        } else if self.ier & IER_RDA != 0 && self.rx.len() >= self.rx_trigger() {
            IIR_RDA
        } else if self.ier & IER_RDA != 0 && self.timeout && !self.rx.is_empty() {
            IIR_TIMEOUT
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            IIR_THRE
        } else if self.ier & IER_MSR != 0 && self.msr & 0x0f != 0 {
            IIR_MSR
        } else {
            IIR_NONE
        }
    }

    fn thr_full(&self) -> bool {
        self.out.len() >= QUEUE_BYTES
    }

    fn lsr(&self) -> u8 {
        let ready = if self.thr_full() { 0 } else { LSR_THRE | LSR_TEMT };
        ready | if self.overrun { LSR_OVERRUN } else { 0 } | if self.rx.is_empty() { 0 } else { LSR_DATA }
    }

    /// Updates the modem inputs: the other end's, or in loopback our own outputs (DTR to DSR, RTS to CTS, OUT1 to RI,
    /// OUT2 to DCD).
    fn update_modem(&mut self) {
        let inputs = match self.mcr & MCR_LOOP {
            0 => MSR_CONNECTED,
            _ => (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4,
        };
        let changed = (inputs ^ self.msr) & 0xf0;
        let mut deltas = (changed >> 4) & !MSR_TERI;
        if self.msr & MSR_RI != 0 && inputs & MSR_RI == 0 {
            deltas |= MSR_TERI;
        }
        self.msr = inputs | (self.msr & 0x0f) | deltas;
    }
}

/// A 16550A UART.
pub struct Serial {
    regs: Regs,
    line: IrqLine,
    backend: Box<dyn CharBackend>,
    /// The back end may have more input.
    more_input: bool,
    /// The driver has read from the FIFO and not emptied it yet.
    draining: bool,
    /// When input that the driver left is reported again; `Some(0)` until a poll passes the time.
    timeout_ns: Option<u64>,
    /// When queued output is offered again.
    retry_ns: u64,
    errors: Arc<GuestErrors>,
}

impl Serial {
    /// Creates a UART whose interrupt drives `line`. The owner polls it when the back end wakes it.
    pub fn new(line: IrqLine, backend: Box<dyn CharBackend>) -> Serial {
        let errors = GuestErrors::silent();
        Serial { regs: Regs::power_on(), line, backend, more_input: true, draining: false, timeout_ns: None, retry_ns: 0, errors }
    }

    /// Reports output that is lost since the guest wrote while the queue was full.
    pub fn report_to(mut self, errors: Arc<GuestErrors>) -> Serial {
        self.errors = errors;
        self
    }

    fn update_line(&self) {
        let gate = self.regs.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        self.line.set(gate && self.regs.interrupt() != IIR_NONE);
    }

    fn take_input(&mut self) {
        let mut buf = [0; FIFO_BYTES];
        while self.more_input && !self.draining && self.regs.mcr & MCR_LOOP == 0 {
            let room = self.regs.rx_capacity().saturating_sub(self.regs.rx.len());
            if room == 0 {
                return;
            }
            let n = self.backend.read(&mut buf[..room]).min(room);
            self.regs.rx.extend(&buf[..n]);
            self.regs.timeout |= n > 0;
            self.more_input = n == room;
        }
    }

    /// Restarts the clock of the timeout: the FIFO is empty, or the driver has just read from it.
    fn restart_timeout(&mut self) {
        self.regs.timeout = false;
        self.draining = !self.regs.rx.is_empty();
        self.timeout_ns = self.draining.then_some(0);
    }

    fn look_at_timeout(&mut self, now_ns: u64) {
        match self.timeout_ns {
            Some(0) => self.timeout_ns = Some(now_ns.saturating_add(TIMEOUT_NS)),
            Some(due) if due <= now_ns => {
                self.timeout_ns = None;
                self.draining = false;
                self.regs.timeout = !self.regs.rx.is_empty();
                // The driver stopped above the trigger level. The chip would keep the line high, and no interrupt would
                // follow.
                self.line.lower();
            }
            _ => {}
        }
    }

    fn flush(&mut self) {
        while !self.regs.out.is_empty() {
            let (bytes, _) = self.regs.out.as_slices();
            let n = self.backend.write(bytes).min(bytes.len());
            if n == 0 {
                return;
            }
            let was_full = self.regs.thr_full();
            self.regs.out.drain(..n);
            if was_full {
                self.regs.thre_pending = true;
            }
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.regs.thre_pending = false;
        self.update_line();
        if self.regs.mcr & MCR_LOOP != 0 {
            if self.regs.rx.len() < self.regs.rx_capacity() {
                self.regs.rx.push_back(byte);
                self.regs.timeout = true;
            } else {
                self.regs.overrun = true;
            }
        } else if self.regs.out.is_empty() && self.backend.write(&[byte]) == 1 {
        } else if self.regs.thr_full() {
            self.errors.report(&"a byte was written to a transmitter that is full, and is lost");
            return;
        } else {
            self.regs.out.push_back(byte);
        }
        self.regs.thre_pending = !self.regs.thr_full();
    }

    fn write_fcr(&mut self, value: u8) {
        let regs = &mut self.regs;
        if (value ^ regs.fcr) & FCR_ENABLE != 0 || value & FCR_CLEAR_RX != 0 {
            regs.rx.clear();
            self.restart_timeout();
        }
        let regs = &mut self.regs;
        // The other bits can be written only together with the enable bit.
        regs.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        match offset {
            0 if dlab => self.regs.divisor as u8,
            1 if dlab => (self.regs.divisor >> 8) as u8,
            0 => {
                let byte = self.regs.rx.pop_front().unwrap_or(0);
                self.restart_timeout();
                byte
            }
            1 => self.regs.ier,
            2 => {
                let interrupt = self.regs.interrupt();
                if interrupt == IIR_THRE {
                    self.regs.thre_pending = false;
                }
                interrupt | if self.regs.fcr & FCR_ENABLE != 0 { IIR_FIFOS } else { 0 }
            }
            3 => self.regs.lcr,
            4 => self.regs.mcr,
            5 => {
                let lsr = self.regs.lsr();
                self.regs.overrun = false;
                lsr
            }
            6 => {
                let msr = self.regs.msr;
                self.regs.msr &= 0xf0;
                msr
            }
            7 => self.regs.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        match offset {
            0 if dlab => self.regs.divisor = self.regs.divisor & 0xff00 | u16::from(value),
            1 if dlab => self.regs.divisor = self.regs.divisor & 0x00ff | u16::from(value) << 8,
            0 => self.transmit(value),
            1 => {
                // Enabling the interrupt while THR is empty raises it (section 8.6.3 note, and the chip itself).
                if value & !self.regs.ier & IER_THRE != 0 && !self.regs.thr_full() {
                    self.regs.thre_pending = true;
                }
                self.regs.ier = value & 0x0f;
            }
            2 => self.write_fcr(value),
            3 => self.regs.lcr = value,
            4 => {
                self.regs.mcr = value & 0x1f;
                self.regs.update_modem();
            }
            7 => self.regs.scr = value,
            _ => {}
        }
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        if access.region != 0 {
            return u64::MAX;
        }
        let value = self.read_register(access.offset);
        self.update_line();
        u64::MAX << 8 | u64::from(value)
    }

    fn write(&mut self, access: Access, value: u64) {
        if access.region == 0 {
            self.write_register(access.offset, value as u8);
            self.update_line();
        }
    }

    fn reset(&mut self) {
        // Output that the guest has sent still belongs to the reader of the console.
        let out = std::mem::take(&mut self.regs.out);
        self.regs = Regs { out, ..Regs::power_on() };
        self.more_input = true;
        self.restart_timeout();
        self.update_line();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        let legal =
            regs.rx.len() <= FIFO_BYTES && regs.out.len() <= QUEUE_BYTES && regs.ier & !0x0f == 0 && regs.mcr & !0x1f == 0;
        if !legal {
            return Err(StateError::Damaged { kind: KIND, why: "a register or a queue has an impossible value".into() });
        }
        self.regs = regs;
        self.more_input = true;
        self.draining = false;
        self.timeout_ns = (!self.regs.rx.is_empty() && !self.regs.timeout).then_some(0);
        let gate = self.regs.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        self.line.restore(gate && self.regs.interrupt() != IIR_NONE);
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        let output = (!self.regs.out.is_empty()).then_some(self.retry_ns);
        let may_take = self.more_input && self.regs.rx.is_empty() && self.regs.mcr & MCR_LOOP == 0;
        let input = if may_take { Some(0) } else { self.timeout_ns };
        [output, input].into_iter().flatten().min()
    }

    fn poll(&mut self, now_ns: u64) {
        if !self.regs.out.is_empty() {
            self.flush();
            self.retry_ns = now_ns.saturating_add(RETRY_NS);
        }
        self.look_at_timeout(now_ns);
        self.more_input = true;
        self.take_input();
        self.update_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;
    use crate::hypervisor::irq::IrqProbe;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Wire {
        sent: Vec<u8>,
        input: VecDeque<u8>,
        room: usize,
    }

    impl CharBackend for Arc<Mutex<Wire>> {
        fn write(&mut self, bytes: &[u8]) -> usize {
            let mut wire = self.lock().unwrap();
            let n = bytes.len().min(wire.room);
            wire.room -= n;
            wire.sent.extend_from_slice(&bytes[..n]);
            n
        }
        fn read(&mut self, buf: &mut [u8]) -> usize {
            let mut wire = self.lock().unwrap();
            let n = buf.len().min(wire.input.len());
            wire.input.drain(..n).zip(buf).for_each(|(byte, slot)| *slot = byte);
            n
        }
    }

    struct Rig {
        uart: Serial,
        wire: Arc<Mutex<Wire>>,
        irq: Arc<IrqProbe>,
    }

    fn rig() -> Rig {
        let (irq, wire) = (IrqProbe::new(), Arc::new(Mutex::new(Wire { room: usize::MAX, ..Wire::default() })));
        let uart = Serial::new(IrqLine::new(irq.clone(), 4), Box::new(wire.clone()));
        Rig { uart, wire, irq }
    }

    impl Rig {
        fn inb(&mut self, offset: u64) -> u8 {
            self.uart.read(Access { region: 0, offset, width: 1 }) as u8
        }
        fn outb(&mut self, offset: u64, value: u8) {
            self.uart.write(Access { region: 0, offset, width: 1 }, u64::from(value));
        }
        fn type_in(&mut self, bytes: &[u8]) {
            self.wire.lock().unwrap().input.extend(bytes);
            self.uart.poll(0);
        }
    }

    #[test]
    fn what_the_guest_writes_reaches_the_back_end() {
        let mut rig = rig();
        b"hello".iter().for_each(|&b| rig.outb(0, b));
        assert_eq!(rig.wire.lock().unwrap().sent, b"hello");
        assert_eq!(rig.inb(5), LSR_THRE | LSR_TEMT);
    }

    #[test]
    fn reading_iir_clears_the_thre_interrupt() {
        let mut rig = rig();
        rig.outb(4, MCR_OUT2);
        rig.outb(1, IER_THRE);
        assert!(rig.irq.level(4));
        assert_eq!(rig.inb(2), IIR_THRE);
        assert!(!rig.irq.level(4));
        assert_eq!(rig.inb(2), IIR_NONE);
        rig.outb(0, b'x');
        assert!(rig.irq.level(4), "the byte is gone at once");
    }

    #[test]
    fn the_line_stays_low_without_out2() {
        let mut rig = rig();
        rig.outb(1, IER_THRE);
        assert!(!rig.irq.level(4));
        rig.outb(4, MCR_OUT2);
        assert!(rig.irq.level(4));
    }

    #[test]
    fn input_is_a_timeout_below_the_trigger_level_and_data_above() {
        let mut rig = rig();
        rig.outb(4, MCR_OUT2);
        rig.outb(2, FCR_ENABLE | 0x40);
        rig.outb(1, IER_RDA);
        rig.type_in(b"a");
        assert_eq!(rig.inb(2), IIR_TIMEOUT | IIR_FIFOS);
        rig.type_in(b"bcd");
        assert_eq!(rig.inb(2), IIR_RDA | IIR_FIFOS);
        assert!(rig.irq.level(4));
        let got: Vec<u8> = (0..4).map(|_| rig.inb(0)).collect();
        assert_eq!(got, b"abcd");
        assert!(!rig.irq.level(4));
        assert_eq!(rig.inb(5) & LSR_DATA, 0);
    }

    #[test]
    fn a_paste_longer_than_the_fifo_arrives_whole() {
        let mut rig = rig();
        rig.outb(2, FCR_ENABLE);
        let text: Vec<u8> = (0..200).collect();
        rig.type_in(&text);
        let mut got = Vec::new();
        while rig.uart.deadline_ns().is_some() || rig.inb(5) & LSR_DATA != 0 {
            while rig.inb(5) & LSR_DATA != 0 {
                got.push(rig.inb(0));
            }
            rig.uart.poll(0);
        }
        assert_eq!(got, text);
    }

    /// An interrupt handler on an edge-triggered input, as in drivers: it makes passes until nothing is pending, and at
    /// most a fixed number, against a stuck line. The board polls the chip after every `pause` accesses.
    struct Handler {
        pause: usize,
        accesses: usize,
        now_ns: u64,
        got: Vec<u8>,
    }

    impl Handler {
        fn inb(&mut self, rig: &mut Rig, offset: u64) -> u8 {
            let value = rig.inb(offset);
            self.accesses += 1;
            if self.accesses.is_multiple_of(self.pause) {
                self.board(rig);
            }
            value
        }
        fn board(&mut self, rig: &mut Rig) {
            self.now_ns += 1000;
            if rig.uart.deadline_ns().is_some_and(|due| due <= self.now_ns) {
                rig.uart.poll(self.now_ns);
            }
        }
        fn run(&mut self, rig: &mut Rig, passes: usize, bytes_a_pass: usize) {
            for _ in 0..passes {
                if self.inb(rig, 2) & 1 != 0 {
                    return;
                }
                for _ in 0..bytes_a_pass {
                    if self.inb(rig, 5) & LSR_DATA == 0 {
                        break;
                    }
                    let byte = self.inb(rig, 0);
                    self.got.push(byte);
                }
            }
        }
    }

    #[test]
    fn a_driver_that_gives_up_after_so_many_bytes_gets_another_edge_for_the_rest_of_a_long_paste() {
        let text: Vec<u8> = (0..200_000u32).map(|n| (n * 7 >> 2) as u8).collect();
        // The FIFO off, and on with two trigger levels; polls in the middle of the handler or hardly ever; a handler of
        // Linux's 512 passes of 256 bytes, and shorter ones.
        for (fcr, pause) in [0, 0x01, 0x81].into_iter().flat_map(|fcr| [1, 64, 100_000].map(|p| (fcr, p))) {
            for (passes, bytes) in [(512, 256), (1, 256), (1, 8), (3, 1)] {
                let mut rig = rig();
                rig.outb(4, MCR_OUT2);
                rig.outb(2, fcr);
                rig.outb(1, IER_RDA | IER_RLS);
                let mut handler = Handler { pause, accesses: 0, now_ns: 0, got: vec![] };
                let length = if bytes * passes < 256 { 3000 } else { text.len() };
                rig.type_in(&text[..length]);
                let (mut seen, mut quiet) = (0, 0);
                while handler.got.len() < length && quiet < 1000 {
                    handler.board(&mut rig);
                    quiet += 1;
                    if rig.irq.edges(4) != seen {
                        (seen, quiet) = (rig.irq.edges(4), 0);
                        handler.run(&mut rig, passes, bytes);
                    }
                }
                let way = format!("FCR {fcr:#x}, a poll every {pause}, {passes} passes of {bytes}");
                assert!(handler.got == text[..length], "{way}: {} of {length} bytes", handler.got.len());
            }
        }
    }

    #[test]
    fn a_read_that_empties_the_receiver_drops_the_line_and_what_comes_after_raises_it_again() {
        for (fcr, capacity) in [(0, 1), (FCR_ENABLE, FIFO_BYTES), (FCR_ENABLE | 0xc0, FIFO_BYTES)] {
            let mut rig = rig();
            rig.outb(4, MCR_OUT2);
            rig.outb(1, IER_RDA);
            rig.outb(2, fcr);
            // More than fits, so that each read that empties the receiver could be followed by the next bytes at once.
            let text: Vec<u8> = (0..3 * FIFO_BYTES as u8).collect();
            rig.type_in(&text);
            let (mut got, mut edges) = (Vec::new(), 0);
            while got.len() < text.len() {
                edges += 1;
                assert!(rig.irq.level(4), "{fcr:#x} after {}", got.len());
                assert_eq!(rig.irq.edges(4), edges, "{fcr:#x} after {}", got.len());
                for left in (0..capacity).rev() {
                    assert_ne!(rig.inb(5) & LSR_DATA, 0);
                    got.push(rig.inb(0));
                    assert_eq!(rig.inb(5) & LSR_DATA != 0, left > 0, "nothing comes in between");
                }
                // A driver that has seen the receiver empty goes away. The line is low by then, whoever reads first.
                assert!(!rig.irq.level(4), "{fcr:#x} after {}", got.len());
                rig.uart.poll(0);
            }
            assert_eq!(got, text);
            assert!(!rig.irq.level(4));
        }
    }

    #[test]
    fn each_byte_written_drops_the_thre_interrupt_and_raises_it_again() {
        let mut rig = rig();
        rig.outb(4, MCR_OUT2);
        rig.outb(1, IER_THRE);
        // A handler that reads LSR and never IIR.
        for n in 1..=20 {
            assert_eq!(rig.irq.edges(4), n);
            rig.outb(0, b'x');
        }
    }

    #[test]
    fn input_that_waits_is_taken_after_the_fifo_was_cleared_and_after_loopback() {
        for back in [(2, FCR_ENABLE | FCR_CLEAR_RX), (4, MCR_OUT2)] {
            let mut rig = rig();
            rig.outb(2, FCR_ENABLE);
            if back.0 == 4 {
                rig.outb(4, MCR_LOOP);
            }
            rig.type_in(&[b'a'; 40]);
            rig.outb(back.0, back.1);
            assert_eq!(rig.uart.deadline_ns(), Some(0), "the board comes back");
            rig.uart.poll(0);
            assert_eq!(rig.inb(5) & LSR_DATA, LSR_DATA);
        }
    }

    #[test]
    fn output_waits_for_a_slow_back_end_and_what_is_lost_is_counted() {
        let mut rig = rig();
        let errors = Arc::clone(&rig.uart.errors);
        rig.wire.lock().unwrap().room = 0;
        for _ in 0..QUEUE_BYTES {
            rig.outb(0, b'.');
        }
        assert_eq!(rig.inb(5) & LSR_THRE, 0);
        rig.outb(0, b'!');
        assert_eq!(errors.count(), 1);
        rig.wire.lock().unwrap().room = usize::MAX;
        assert!(rig.uart.deadline_ns().is_some());
        rig.uart.poll(RETRY_NS);
        assert_eq!(rig.wire.lock().unwrap().sent.len(), QUEUE_BYTES);
        assert_eq!(rig.inb(5) & LSR_THRE, LSR_THRE);
        assert_eq!(rig.uart.deadline_ns(), None);
    }

    #[test]
    fn loopback_returns_bytes_and_modem_lines_and_sends_nothing() {
        let mut rig = rig();
        rig.outb(4, MCR_LOOP | 0x0a);
        assert_eq!(rig.inb(6) & 0xf0, 0x90);
        rig.outb(0, 0x5a);
        assert_eq!(rig.inb(0), 0x5a);
        rig.outb(0, 1);
        rig.outb(0, 2);
        assert_ne!(rig.inb(5) & LSR_OVERRUN, 0);
        assert_eq!(rig.inb(5) & LSR_OVERRUN, 0, "reading LSR clears the error");
        assert!(rig.wire.lock().unwrap().sent.is_empty());
    }

    #[test]
    fn the_divisor_and_scratch_hold_what_is_written() {
        let mut rig = rig();
        rig.outb(3, LCR_DLAB | 3);
        rig.outb(0, 0x34);
        rig.outb(1, 0x12);
        assert_eq!((rig.inb(0), rig.inb(1)), (0x34, 0x12));
        rig.outb(3, 3);
        assert_eq!(rig.inb(1), 0);
        rig.outb(7, 0x77);
        assert_eq!(rig.inb(7), 0x77);
    }

    #[test]
    fn the_uart_keeps_the_contract_of_devices() {
        conformance::check(|| rig().uart, &[(0, 8)]);
    }
}
