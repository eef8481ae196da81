//! Interrupts as objects: a device holds a line or a message target, never a number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::state::{Section, StateError};

/// The machine's interrupt controllers, as the devices see them.
pub trait IrqSink: Send + Sync {
    /// Sets the level of a global system interrupt. With `edge` false the level is only restored.
    fn set_line(&self, gsi: u32, level: bool, edge: bool);
    /// Delivers a message-signalled interrupt: PCI 3.0 section 6.8, Intel SDM vol. 3 section 11.11.
    fn message(&self, address: u64, data: u32);
}

/// The machine's interrupt controllers as a whole, wherever they are: in this process, in a kernel's hypervisor, or split
/// between the two.
pub trait Irqchip: IrqSink {
    /// Pulses the NMI pin, which is wired to LINT1 of every vCPU.
    fn nmi(&self);
    /// Runs the timers in this process that are due at `now_ns`. Returns when the next one is.
    fn advance(&self, now_ns: u64) -> Option<u64>;
    /// Resets all chips to the power-on state. The devices' lines stay as they are.
    fn reset(&self);
    /// Returns the state of all chips, if it can be had.
    fn save(&self) -> Result<Section, StateError>;
    /// Restores a saved state. On an error the chips are unchanged.
    fn load(&self, section: &Section) -> Result<(), StateError>;
}

/// One interrupt pin of one device. Several devices may share a pin; the sink sees the OR of their lines.
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
    level: AtomicBool,
}

impl IrqLine {
    /// Creates a line to global system interrupt `gsi`, low.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> IrqLine {
        IrqLine { sink, gsi, level: AtomicBool::new(false) }
    }
    /// Returns the global system interrupt number that this line is wired to.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
    /// Returns the level that this line was last driven to.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }
    /// Drives the line. The sink gets only changes.
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
    /// Drives the line high and low again: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
    /// Sets the level after a restore, without an edge. The sink counts the lines of a pin, so it gets only changes.
    pub fn restore(&self, level: bool) {
        if self.level.swap(level, Ordering::Relaxed) != level {
            self.sink.set_line(self.gsi, level, false);
        }
    }
}

/// Number of devices that hold each interrupt high. Lines that share an interrupt are wired or: one device must not lower
/// what another holds high.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineCounts<const GSIS: usize>([u16; GSIS]);

impl<const GSIS: usize> Default for LineCounts<GSIS> {
    fn default() -> Self {
        LineCounts([0; GSIS])
    }
}

impl<const GSIS: usize> LineCounts<GSIS> {
    /// Counts a line of `gsi` that became high or low. Returns the level of the interrupt if that changed it.
    pub fn count(&mut self, gsi: u32, level: bool) -> Option<bool> {
        let high = self.0.get_mut(gsi as usize)?;
        let before = *high > 0;
        *high = if level { high.saturating_add(1) } else { high.saturating_sub(1) };
        let now = *high > 0;
        (now != before).then_some(now)
    }

    /// Returns the level of each interrupt.
    pub fn levels(&self) -> impl Iterator<Item = bool> {
        self.0.into_iter().map(|high| high > 0)
    }
}

/// A sink that records what it gets, for tests.
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
    /// Creates a probe that has seen nothing.
    pub fn new() -> Arc<IrqProbe> {
        Arc::new(IrqProbe::default())
    }
    /// Returns the present level of `gsi`.
    pub fn level(&self, gsi: u32) -> bool {
        self.seen.lock().expect("not poisoned").levels.get(&gsi).copied().unwrap_or(false)
    }
    /// Returns the number of rising edges of `gsi` seen so far.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_high_as_long_as_one_of_its_lines_is() {
        let mut counts = LineCounts::<4>::default();
        assert_eq!([counts.count(3, true), counts.count(3, true), counts.count(1, false)], [Some(true), None, None]);
        assert_eq!(counts.levels().collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!([counts.count(3, false), counts.count(3, false), counts.count(4, true)], [None, Some(false), None]);
    }
}
