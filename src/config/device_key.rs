//! Names of the devices that have PCI addresses, as in `bhyve.slots` and in the state of a guest.

use std::fmt;
use std::str::FromStr;

/// The name of a PCI device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKey {
    /// The host bridge.
    Hostbridge,
    /// The LPC bridge.
    Lpc,
    /// A disk that is a separate device.
    Disk(String),
    /// A controller that disks share.
    Controller(String),
    /// An interface.
    Nic(String),
    /// A device of the host.
    Passthru(String),
    /// The screen.
    Graphics,
    /// The tablet.
    Tablet,
    /// The random-number device.
    Rng,
    /// The sockets to the host.
    Channels,
    /// The sound card.
    Sound,
    /// An input device of the host.
    Input(String),
    /// A shared directory.
    Share(String),
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKey::Hostbridge => f.write_str("hostbridge"),
            DeviceKey::Lpc => f.write_str("lpc"),
            DeviceKey::Disk(id) => write!(f, "disk:{id}"),
            DeviceKey::Controller(id) => write!(f, "ahci:{id}"),
            DeviceKey::Nic(id) => write!(f, "nic:{id}"),
            DeviceKey::Passthru(id) => write!(f, "passthru:{id}"),
            DeviceKey::Graphics => f.write_str("graphics"),
            DeviceKey::Tablet => f.write_str("tablet"),
            DeviceKey::Rng => f.write_str("rng"),
            DeviceKey::Channels => f.write_str("channels"),
            DeviceKey::Sound => f.write_str("sound"),
            DeviceKey::Input(id) => write!(f, "input:{id}"),
            DeviceKey::Share(id) => write!(f, "share:{id}"),
        }
    }
}

impl FromStr for DeviceKey {
    type Err = ();

    fn from_str(text: &str) -> Result<DeviceKey, ()> {
        Ok(match text.split_once(':') {
            Some(("disk", id)) => DeviceKey::Disk(id.into()),
            Some(("ahci", id)) => DeviceKey::Controller(id.into()),
            Some(("nic", id)) => DeviceKey::Nic(id.into()),
            Some(("passthru", id)) => DeviceKey::Passthru(id.into()),
            Some(("input", id)) => DeviceKey::Input(id.into()),
            Some(("share", id)) => DeviceKey::Share(id.into()),
            Some(_) => return Err(()),
            None => match text {
                "hostbridge" => DeviceKey::Hostbridge,
                "lpc" => DeviceKey::Lpc,
                "graphics" => DeviceKey::Graphics,
                "tablet" => DeviceKey::Tablet,
                "rng" => DeviceKey::Rng,
                "channels" => DeviceKey::Channels,
                "sound" => DeviceKey::Sound,
                _ => return Err(()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_as_it_is_written() {
        let id = || "a".to_owned();
        use DeviceKey::*;
        let all = [Hostbridge, Lpc, Disk(id()), Controller(id()), Nic(id()), Passthru(id()), Graphics, Tablet, Rng];
        for key in all.into_iter().chain([Channels, Sound, Input(id()), Share(id())]) {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        assert_eq!("disk".parse::<DeviceKey>(), Err(()));
        assert_eq!("lpc:a".parse::<DeviceKey>(), Err(()));
    }
}
