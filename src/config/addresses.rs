//! Addresses as the files write them: MAC, PCI, and IP addresses with their networks.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

/// A MAC address: individual, and not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for MacAddr {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A PCI address of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// 0 to 255.
    pub bus: u8,
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// Returns function 0 of a slot of bus 0.
    pub const fn slot(slot: u8) -> Self {
        Self { bus: 0, slot, function: 0 }
    }
}

/// `BUS:SLOT:FUNCTION`, the one form in which nothing is left out.
impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.bus, self.slot, self.function)
    }
}

/// `SLOT`, `SLOT:FUNCTION` or `BUS:SLOT:FUNCTION`, in decimal as bhyve(8) takes them.
impl std::str::FromStr for PciAddress {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = Vec::with_capacity(3);
        for part in text.split(':') {
            let digits = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            numbers.push(if digits { part.parse::<u8>().map_err(|_| ())? } else { return Err(()) });
        }
        let address = match numbers[..] {
            [slot] => Self { bus: 0, slot, function: 0 },
            [slot, function] => Self { bus: 0, slot, function },
            [bus, slot, function] => Self { bus, slot, function },
            _ => return Err(()),
        };
        if address.slot > 31 || address.function > 7 { Err(()) } else { Ok(address) }
    }
}

impl Serialize for PciAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InterfaceAddress {
    /// The address itself, not that of the network.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
}

impl std::fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl std::str::FromStr for InterfaceAddress {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let digits = (1..=3).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix: u8 = if digits { prefix.parse().map_err(|_| ())? } else { return Err(()) };
        let most = if address.is_ipv4() { 32 } else { 128 };
        if !(1..=most).contains(&prefix) || address.is_unspecified() || address.is_multicast() {
            return Err(());
        }
        Ok(Self { address, prefix })
    }
}

impl InterfaceAddress {
    /// Returns whether an IPv4 address is in its network.
    pub fn holds(&self, other: Ipv4Addr) -> bool {
        let IpAddr::V4(address) = self.address else { return false };
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        u32::from(address) & mask == u32::from(other) & mask
    }

    /// Returns the first and the last address of its network, if it is an IPv4 address.
    pub fn ends(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let IpAddr::V4(address) = self.address else { return None };
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        let first = u32::from(address) & mask;
        Some((Ipv4Addr::from(first), Ipv4Addr::from(first | !mask)))
    }
}

/// Parses `10.0.2.0/24`: the first address and the prefix length.
pub fn network(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let valid = (8..=28).contains(&prefix) && u32::from(address) & (u32::MAX >> prefix) == 0;
    let unicast = !address.is_loopback() && !address.is_multicast() && !address.is_unspecified() && address.octets()[0] < 240;
    (valid && unicast).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_read_in_three_forms_and_written_in_one() {
        for (text, shown) in [("4", "0:4:0"), ("4:1", "0:4:1"), ("1:31:7", "1:31:7"), ("255:0:0", "255:0:0")] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), shown);
        }
        for bad in ["", "32", "4:8", "256:0:0", "0:0:0:0", "4:", ":4", "-1", "+1", "0x4", "4:a"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interface_address_knows_its_network() {
        let address: InterfaceAddress = "10.1.0.1/24".parse().unwrap();
        assert!(address.holds(Ipv4Addr::new(10, 1, 0, 255)) && !address.holds(Ipv4Addr::new(10, 1, 1, 0)));
        assert_eq!(address.ends(), Some((Ipv4Addr::new(10, 1, 0, 0), Ipv4Addr::new(10, 1, 0, 255))));
        assert!("fd00::1/64".parse::<InterfaceAddress>().is_ok());
        for bad in ["10.1.0.1", "10.1.0.1/33", "10.1.0.1/0", "::/64", "224.0.0.1/24", "x/24", "10.1.0.1/+4"] {
            assert!(bad.parse::<InterfaceAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_is_its_first_address_with_a_prefix_length() {
        assert_eq!(network("10.0.2.0/24"), Some((Ipv4Addr::new(10, 0, 2, 0), 24)));
        for bad in ["10.0.2.1/24", "10.0.2.0/29", "10.0.2.0/7", "10.0.2.0", "x/24", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8"] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }
}
