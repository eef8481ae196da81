//! MSI-X table and pending-bit array: PCI Local Bus 3.0, section 6.8.2.
//!
//! Each vector has 16 bytes: message address low and high, message data, vector control (bit 0: masked). A vector that
//! fires while it or the function is masked sets its pending bit and is sent when it is unmasked.
//!
//! **Not modelled**: the bus-master bit does not hold messages back.
//!
//! **Hostile guest**: the table has the size it was built with; offsets outside of it belong to the function. Accesses
//! of 1 or 2 bytes, which the specification leaves undefined, work as memory would.

use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::hypervisor::irq::IrqSink;

const ENTRY_BYTES: u64 = 16;
const MASKED: u8 = 1;
/// Vector control, the only part of an entry with read-only bits.
const CONTROL: usize = 12;

/// The table, the pending bits and the function's two control bits.
pub struct MsixTable {
    bar: u8,
    table_offset: u64,
    pba_offset: u64,
    entries: Vec<[u8; 16]>,
    pending: Vec<bool>,
    enabled: bool,
    function_mask: bool,
    sink: Arc<dyn IrqSink>,
}

/// The saved table; the control bits are in configuration space.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    entries: Vec<[u8; 16]>,
    pending: Vec<bool>,
}

/// The table of one function, which threads that have no access to the function send messages by. A clone is the same
/// table.
#[derive(Clone)]
pub struct Messages(Arc<Mutex<MsixTable>>);

impl Messages {
    /// Shares `table`.
    pub fn new(table: MsixTable) -> Messages {
        Messages(Arc::new(Mutex::new(table)))
    }

    /// Returns the table, which is locked meanwhile.
    pub fn table(&self) -> MutexGuard<'_, MsixTable> {
        self.0.lock().expect("no panic happens under this lock")
    }

    /// Sends the message of the vector that `vector` returns, if any, or keeps it pending while it is masked. Returns `false`
    /// if the guest has not enabled MSI-X, without asking `vector`; it cannot change that meanwhile.
    pub fn send(&self, vector: impl FnOnce() -> Option<u16>) -> bool {
        let mut table = self.table();
        if !table.enabled() {
            return false;
        }
        if let Some(vector) = vector() {
            table.notify(vector);
        }
        true
    }
}

fn power_on_entry() -> [u8; 16] {
    let mut entry = [0; 16];
    entry[CONTROL] = MASKED;
    entry
}

impl MsixTable {
    /// Creates `vectors` masked vectors, with the table and the pending bits at these offsets of `bar`.
    pub fn new(bar: u8, table_offset: u64, pba_offset: u64, vectors: u16, sink: Arc<dyn IrqSink>) -> MsixTable {
        assert!((1..=2048).contains(&vectors), "MSI-X has 1 to 2048 vectors");
        MsixTable {
            bar,
            table_offset,
            pba_offset,
            entries: vec![power_on_entry(); usize::from(vectors)],
            pending: vec![false; usize::from(vectors)],
            enabled: false,
            function_mask: false,
            sink,
        }
    }

    fn table_bytes(&self) -> u64 {
        self.entries.len() as u64 * ENTRY_BYTES
    }

    fn pba_bytes(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(64) * 8
    }

    /// Returns the first offset of the BAR after both structures.
    pub fn end(&self) -> u64 {
        (self.table_offset + self.table_bytes()).max(self.pba_offset + self.pba_bytes())
    }

    /// Returns the number of vectors.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Returns whether MSI-X is enabled.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Sets the control bits, and sends the vectors that the function's mask held back.
    pub fn set_control(&mut self, enabled: bool, function_mask: bool) {
        self.enabled = enabled;
        self.function_mask = function_mask;
        if enabled && !function_mask {
            (0..self.entries.len()).for_each(|vector| self.send_pending(vector));
        }
    }

    /// Sets the control bits after a restore. Pending vectors stay pending until they are unmasked.
    pub fn restore_control(&mut self, enabled: bool, function_mask: bool) {
        self.enabled = enabled;
        self.function_mask = function_mask;
    }

    fn masked(&self, vector: usize) -> bool {
        self.function_mask || self.entries[vector][CONTROL] & MASKED != 0
    }

    fn send(&self, vector: usize) {
        let entry = &self.entries[vector];
        let address = u64::from_le_bytes(entry[0..8].try_into().expect("eight bytes"));
        let data = u32::from_le_bytes(entry[8..12].try_into().expect("four bytes"));
        self.sink.message(address, data);
    }

    fn send_pending(&mut self, vector: usize) {
        if self.pending[vector] && self.enabled && !self.masked(vector) {
            self.pending[vector] = false;
            self.send(vector);
        }
    }

    /// Sends `vector`, or sets its pending bit.
    pub fn notify(&mut self, vector: u16) {
        let vector = usize::from(vector);
        // A vector that fires while MSI-X is off is lost, and not pending: the function then uses INTx.
        if !self.enabled || vector >= self.entries.len() {
            return;
        }
        if self.masked(vector) {
            self.pending[vector] = true;
        } else {
            self.send(vector);
        }
    }

    /// Reads the table or the pending bits. Returns `None` if the offset is in neither.
    pub fn read(&self, bar: u8, offset: u64, width: u8) -> Option<u64> {
        if bar != self.bar {
            return None;
        }
        let byte_at: Box<dyn Fn(u64) -> u8> = if offset.wrapping_sub(self.table_offset) < self.table_bytes() {
            Box::new(|at| {
                let at = at - self.table_offset;
                self.entries.get((at / ENTRY_BYTES) as usize).map_or(0, |entry| entry[(at % ENTRY_BYTES) as usize])
            })
        } else if offset.wrapping_sub(self.pba_offset) < self.pba_bytes() {
            Box::new(|at| {
                let first = (at - self.pba_offset) as usize * 8;
                (0..8).map(|bit| u8::from(self.pending.get(first + bit).copied().unwrap_or(false)) << bit).sum()
            })
        } else {
            return None;
        };
        Some((0..u64::from(width)).map(|i| u64::from(byte_at(offset + i)) << (8 * i)).sum())
    }

    /// Writes the table or the (read-only) pending bits. Returns `false` if the offset is in neither.
    pub fn write(&mut self, bar: u8, offset: u64, width: u8, value: u64) -> bool {
        if bar != self.bar {
            return false;
        }
        if offset.wrapping_sub(self.table_offset) >= self.table_bytes() {
            return offset.wrapping_sub(self.pba_offset) < self.pba_bytes();
        }
        let at = offset - self.table_offset;
        for i in 0..u64::from(width.min(8)) {
            let (vector, byte) = (((at + i) / ENTRY_BYTES) as usize, ((at + i) % ENTRY_BYTES) as usize);
            let Some(entry) = self.entries.get_mut(vector) else { break };
            let mask = match byte {
                // A message is one aligned dword, so the two lowest bits of its address are zero
                // (6.8.2.4).
                0 => 0xfc,
                CONTROL => MASKED,
                13..=15 => 0,
                _ => 0xff,
            };
            entry[byte] = value.to_le_bytes()[i as usize] & mask;
        }
        // An 8-byte write may unmask the vector that its second half belongs to.
        let last = (((at + u64::from(width.clamp(1, 8)) - 1) / ENTRY_BYTES) as usize).min(self.entries.len() - 1);
        ((at / ENTRY_BYTES) as usize..=last).for_each(|vector| self.send_pending(vector));
        true
    }

    /// Resets the table: all masked, nothing pending, disabled.
    pub fn reset(&mut self) {
        self.entries.fill(power_on_entry());
        self.pending.fill(false);
        self.enabled = false;
        self.function_mask = false;
    }

    /// Returns the table's state.
    pub fn save(&self) -> MsixState {
        MsixState { entries: self.entries.clone(), pending: self.pending.clone() }
    }

    /// Restores a saved table of the same size, or returns what is wrong with it.
    pub fn load(&mut self, state: &MsixState) -> Result<(), String> {
        let vectors = self.entries.len();
        if state.entries.len() != vectors || state.pending.len() != vectors {
            return Err(format!("the MSI-X table is not of {vectors} vectors"));
        }
        if state.entries.iter().any(|e| e[0] & 3 != 0 || e[CONTROL] & !MASKED != 0 || e[13..] != [0; 3]) {
            return Err("a reserved bit of the MSI-X table is set".into());
        }
        self.entries.clone_from(&state.entries);
        self.pending.clone_from(&state.pending);
        Ok(())
    }
}
