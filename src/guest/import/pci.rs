//! PCI addresses of vm-bhyve. Imported guests get the same ones, since the names of interfaces in Linux, and the
//! detection of new hardware in Windows, follow from them.
//!
//! `lib/vm-run` of vm-bhyve: devices begin at slot 4 (`start_slot`) and come in the order disks, interfaces, rng,
//! passthrough, screen, tablet, sound, virtio console. With UEFI a disk has a slot of its own; else disks, and always
//! interfaces, share slots by function, eight of them. After slot 30 of bus 0 (31 is the LPC bridge) it continues at
//! bus 1.

/// The next free address.
#[derive(Debug)]
pub struct Layout {
    bus: u8,
    slot: u8,
    function: u8,
    last_slot: u8,
    uefi: bool,
}

impl Layout {
    /// Begins at a slot of bus 0.
    pub fn new(start: u8, uefi: bool) -> Layout {
        Layout { bus: 0, slot: start.min(30), function: 0, last_slot: 30, uefi }
    }

    fn settle(&mut self) {
        if self.function > 7 {
            self.function = 0;
            self.slot += 1;
        }
        if self.slot > self.last_slot {
            self.slot = 0;
            self.bus = self.bus.saturating_add(1);
            self.last_slot = 31;
        }
    }

    fn here(&self) -> String {
        format!("{}:{}:{}", self.bus, self.slot, self.function)
    }

    fn next_slot(&mut self) {
        self.function = 0;
        self.slot += 1;
        self.settle();
    }

    /// Returns the address of a disk or an AHCI controller.
    pub fn disk(&mut self) -> String {
        self.settle();
        let here = self.here();
        if self.uefi {
            self.slot += 1;
        } else {
            self.function += 1;
        }
        here
    }

    /// Moves on after the last disk.
    pub fn after_disks(&mut self, any: bool) {
        match any && !self.uefi {
            true => self.next_slot(),
            false => self.settle(),
        }
    }

    /// Returns the address of a network interface.
    pub fn nic(&mut self) -> String {
        self.settle();
        let here = self.here();
        self.function += 1;
        here
    }

    /// Moves on after the last interface.
    pub fn after_nics(&mut self, any: bool) {
        if any {
            self.next_slot();
        }
    }

    /// Returns the address of a device with a slot of its own.
    pub fn single(&mut self) -> String {
        let here = format!("{}:{}:0", self.bus, self.slot);
        self.next_slot();
        here
    }

    /// Returns the addresses of PCI devices of the host, as `bus/slot/function`: those of one bus of the host share a
    /// slot.
    pub fn passthru(&mut self, devices: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        let mut last: Option<&str> = None;
        for device in devices {
            let bus = device.split('/').next().unwrap_or_default();
            if last.is_some_and(|last| last != bus) {
                self.next_slot();
            }
            found.push(self.here());
            self.function += 1;
            self.settle();
            last = Some(bus);
        }
        if !devices.is_empty() {
            self.next_slot();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uefi_disks_have_a_slot_each_and_interfaces_share_one() {
        let mut layout = Layout::new(4, true);
        assert_eq!([layout.disk(), layout.disk()], ["0:4:0", "0:5:0"]);
        layout.after_disks(true);
        assert_eq!([layout.nic(), layout.nic()], ["0:6:0", "0:6:1"]);
        layout.after_nics(true);
        assert_eq!([layout.single(), layout.single()], ["0:7:0", "0:8:0"]);
    }

    #[test]
    fn other_loaders_share_slots_by_function() {
        let mut layout = Layout::new(4, false);
        let disks: Vec<String> = (0..9).map(|_| layout.disk()).collect();
        assert_eq!((disks[0].as_str(), disks[7].as_str(), disks[8].as_str()), ("0:4:0", "0:4:7", "0:5:0"));
        layout.after_disks(true);
        assert_eq!(layout.nic(), "0:6:0");
        layout.after_nics(true);
        assert_eq!(layout.passthru(&["5/0/0", "5/0/1", "6/0/0"]), ["0:7:0", "0:7:1", "0:8:0"]);
        assert_eq!(layout.single(), "0:9:0");
    }

    #[test]
    fn what_does_not_fit_on_a_bus_goes_to_the_next_one() {
        let mut layout = Layout::new(29, true);
        assert_eq!([layout.disk(), layout.disk(), layout.disk()], ["0:29:0", "0:30:0", "1:0:0"]);
        for _ in 0..100_000 {
            let _ = layout.disk();
        }
    }
}
