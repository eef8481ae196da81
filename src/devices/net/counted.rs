//! Counters of an interface since the machine was built. They wrap any back end and count its frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{HEADER_BYTES, Nic, Offloads};

/// Counts of frames and bytes. The directions are those of the guest.
#[derive(Debug, Default)]
pub struct NicCounters {
    received_bytes: AtomicU64,
    received_packets: AtomicU64,
    sent_bytes: AtomicU64,
    sent_packets: AtomicU64,
}

impl NicCounters {
    /// Returns each count with its name.
    pub fn read(&self) -> [(&'static str, u64); 4] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("received-bytes", value(&self.received_bytes)),
            ("received-packets", value(&self.received_packets)),
            ("sent-bytes", value(&self.sent_bytes)),
            ("sent-packets", value(&self.sent_packets)),
        ]
    }
}

/// A back end whose frames are counted.
pub struct Counted {
    nic: Box<dyn Nic>,
    counters: Arc<NicCounters>,
}

impl Counted {
    /// Wraps `nic` and counts its frames.
    pub fn new(nic: Box<dyn Nic>) -> Counted {
        Counted { nic, counters: Arc::default() }
    }

    /// Returns the counters. They continue to count.
    pub fn counters(&self) -> Arc<NicCounters> {
        Arc::clone(&self.counters)
    }
}

impl Counted {
    /// Returns the bytes of a frame, without the header before it.
    fn frame_bytes(&self, packet: &[u8]) -> u64 {
        let header = if self.nic.has_headers() { HEADER_BYTES } else { 0 };
        packet.len().saturating_sub(header) as u64
    }
}

impl Nic for Counted {
    fn transmit(&mut self, frame: &[u8]) {
        // Where there is no wire, nothing is sent.
        if self.nic.link_up() {
            self.counters.sent_bytes.fetch_add(self.frame_bytes(frame), Ordering::Relaxed);
            self.counters.sent_packets.fetch_add(1, Ordering::Relaxed);
        }
        self.nic.transmit(frame);
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let frame = self.nic.receive()?;
        self.counters.received_bytes.fetch_add(self.frame_bytes(&frame), Ordering::Relaxed);
        self.counters.received_packets.fetch_add(1, Ordering::Relaxed);
        Some(frame)
    }

    fn link_up(&self) -> bool {
        self.nic.link_up()
    }

    fn has_headers(&self) -> bool {
        self.nic.has_headers()
    }

    fn accept(&mut self, offloads: Offloads) {
        self.nic.accept(offloads);
    }
}

#[cfg(test)]
mod tests {
    use super::super::NoWire;
    use super::*;

    /// A back end that returns the frames that it is sent.
    #[derive(Default)]
    struct Loop(Vec<Vec<u8>>);

    impl Nic for Loop {
        fn transmit(&mut self, frame: &[u8]) {
            self.0.push(frame.to_vec());
        }
        fn receive(&mut self) -> Option<Vec<u8>> {
            self.0.pop()
        }
    }

    #[test]
    fn frames_are_counted_in_each_direction_and_none_without_a_wire() {
        let mut nic = Counted::new(Box::<Loop>::default());
        let counters = nic.counters();
        nic.transmit(&[0; 60]);
        nic.transmit(&[0; 100]);
        assert_eq!(nic.receive().map(|frame| frame.len()), Some(100));
        let expected = [("received-bytes", 100), ("received-packets", 1), ("sent-bytes", 160), ("sent-packets", 2)];
        assert_eq!(counters.read(), expected);
        let mut nowhere = Counted::new(Box::new(NoWire));
        nowhere.transmit(&[0; 60]);
        assert!(nowhere.counters().read().iter().all(|(_, value)| *value == 0));
    }
}
