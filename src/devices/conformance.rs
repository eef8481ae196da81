//! The contract that every device must meet, as one test that each chip's tests call.

use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::state::{Section, StateError};

/// Tests a device against the contract of [`Device`]: every offset and width survives; reset equals new; save, load,
/// save is the identity; foreign, short and over-long state is refused and changes nothing.
///
/// `new` builds the same device each time. `regions` are its `(region, bytes)`.
pub fn check<D: Device>(new: impl Fn() -> D, regions: &[(u16, u64)]) {
    let fresh = new().save();
    let mut device = new();
    abuse(&mut device, regions);

    let used = device.save();
    let mut other = new();
    other.load(&used).expect("a device takes the state of its twin");
    assert_eq!(other.save(), used, "save, load, save is the identity");

    device.reset();
    assert_eq!(device.save(), fresh, "reset equals new");
    refuses_what_is_not_its_state(&mut other, &used);
}

/// Reads and writes every offset near the regions' ends with every width, with a few hostile values.
fn abuse(device: &mut dyn Device, regions: &[(u16, u64)]) {
    for &(region, bytes) in regions {
        let offsets = (0..bytes.min(0x500)).chain(bytes.saturating_sub(0x20)..bytes + 8).chain([u64::MAX - 8]);
        for offset in offsets {
            for width in [1u8, 2, 4, 8] {
                let access = Access { region, offset, width };
                let ones = u64::MAX >> (64 - 8 * u32::from(width));
                for value in [ones, 0, 0xa5a5_a5a5_a5a5_a5a5 & ones, offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) & ones] {
                    let _ = device.read(access);
                    device.write(access, value);
                    let _ = device.deadline_ns();
                }
                device.poll(offset.min(1 << 40) * 1000);
            }
        }
    }
    device.write(Access { region: u16::MAX, offset: 0, width: 1 }, 0);
    let _ = device.read(Access { region: u16::MAX, offset: 0, width: 1 });
}

/// Returns `section` with the encoding of `from`, which must be in it once, replaced by that of `to`.
pub fn replaced<F: serde::Serialize, T: serde::Serialize>(section: &Section, from: &F, to: &T) -> Section {
    let [from, to] = [postcard::to_stdvec(from), postcard::to_stdvec(to)].map(|bytes| bytes.expect("plain data"));
    let found: Vec<usize> = (0..section.bytes.len()).filter(|&at| section.bytes[at..].starts_with(&from)).collect();
    assert_eq!(found.len(), 1, "{from:02x?} in {:02x?}", section.bytes);
    let (before, behind) = (&section.bytes[..found[0]], &section.bytes[found[0] + from.len()..]);
    Section { bytes: [before, &to, behind].concat(), ..section.clone() }
}

fn refuses_what_is_not_its_state(device: &mut dyn Device, good: &Section) {
    let foreign = Section { kind: "something-else".into(), ..good.clone() };
    assert!(matches!(device.load(&foreign), Err(StateError::Kind { .. })), "foreign state is refused");
    let newer = Section { version: good.version + 1, ..good.clone() };
    assert!(matches!(device.load(&newer), Err(StateError::Version { .. })), "another version is refused");
    // A part without state is saved in no bytes.
    for cut in [0, 1, good.bytes.len() / 2, good.bytes.len().saturating_sub(1)].into_iter().filter(|&cut| cut < good.bytes.len())
    {
        let short = Section { bytes: good.bytes[..cut].to_vec(), ..good.clone() };
        assert!(device.load(&short).is_err(), "state cut to {cut} bytes is refused");
    }
    let mut long = good.clone();
    long.bytes.push(0);
    assert!(device.load(&long).is_err(), "over-long state is refused");
    assert_eq!(&device.save(), good, "a refused state changes nothing");
}
