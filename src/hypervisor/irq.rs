//! Interrupts as objects: a device holds a line or a message target, never a number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where lines and messages end: the machine's interrupt controllers.
pub trait IrqSink: Send + Sync {
    /// The level of a global system interrupt changed (or, with `edge` false, is only restored).
    fn set_line(&self, gsi: u32, level: bool, edge: bool);
    /// A message-signalled interrupt: PCI 3.0 section 6.8, Intel SDM vol. 3 section 11.11.
    fn message(&self, address: u64, data: u32);
}

/// One interrupt pin of one device. Lines of several devices may share a pin; the sink sees the OR of them.
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
    level: AtomicBool,
}

impl IrqLine {
    /// A line to global system interrupt `gsi`, low.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> IrqLine {
        IrqLine { sink, gsi, level: AtomicBool::new(false) }
    }
    /// The global system interrupt number that this line is wired to.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
    /// The level this line was last driven to.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }
    /// Drives the line; the sink hears only changes.
    pub fn set(&self, level: bool) {
        if self.level.swap(level, Ordering::Relaxed) != level {
            self.sink.set_line(self.gsi, level, true);
        }
    }
    /// Drives the line high.
    pub fn raise(&self) {
        self.set(true);
    }
    /// Drives the line low.
    pub fn lower(&self) {
        self.set(false);
    }
    /// High and low again: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
    /// Sets the level after a restore: no edge is seen, and the sink, which counts the lines of a pin, hears only changes.
    pub fn restore(&self, level: bool) {
        if self.level.swap(level, Ordering::Relaxed) != level {
            self.sink.set_line(self.gsi, level, false);
        }
    }
}

/// A sink that remembers, for tests.
#[derive(Default)]
pub struct IrqProbe {
    seen: std::sync::Mutex<ProbeState>,
}

#[derive(Default)]
struct ProbeState {
    levels: std::collections::BTreeMap<u32, bool>,
    edges: std::collections::BTreeMap<u32, u32>,
    messages: Vec<(u64, u32)>,
}

impl IrqProbe {
    /// A probe that has seen nothing.
    pub fn new() -> Arc<IrqProbe> {
        Arc::new(IrqProbe::default())
    }
    /// The present level of `gsi`.
    pub fn level(&self, gsi: u32) -> bool {
        self.seen.lock().expect("not poisoned").levels.get(&gsi).copied().unwrap_or(false)
    }
    /// Rising edges of `gsi` seen so far.
    pub fn edges(&self, gsi: u32) -> u32 {
        self.seen.lock().expect("not poisoned").edges.get(&gsi).copied().unwrap_or(0)
    }
    /// Takes the messages seen so far.
    pub fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.seen.lock().expect("not poisoned").messages)
    }
}

impl IrqSink for IrqProbe {
    fn set_line(&self, gsi: u32, level: bool, edge: bool) {
        let mut seen = self.seen.lock().expect("not poisoned");
        seen.levels.insert(gsi, level);
        if level && edge {
            *seen.edges.entry(gsi).or_default() += 1;
        }
    }
    fn message(&self, address: u64, data: u32) {
        self.seen.lock().expect("not poisoned").messages.push((address, data));
    }
}
