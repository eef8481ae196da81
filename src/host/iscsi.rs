//! Units of iSCSI targets, through iscsictl(8); iscsid(8) logs in.
//!
//! `usr.bin/iscsictl/iscsictl.c`, kernel_list and `periphs.c`, print_periphs: with `--libxo json`, a list of sessions
//! with their devices.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::HostError;
use super::kmod;
use super::program::run;

/// Time-out for the login and the devices.
const PATIENCE: Duration = Duration::from_secs(30);

/// A target at a portal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Name, like `iqn.2026-01.example:disk0`.
    pub name: String,
    /// Host or host:port.
    pub portal: String,
}

#[derive(Deserialize)]
struct Document {
    iscsictl: Sessions,
}

#[derive(Deserialize)]
struct Sessions {
    #[serde(default)]
    session: Vec<Session>,
}

#[derive(Deserialize)]
struct Session {
    #[serde(default)]
    name: String,
    #[serde(default)]
    portal: String,
    #[serde(default)]
    state: String,
    devices: Option<Devices>,
}

#[derive(Deserialize)]
struct Devices {
    #[serde(default)]
    lun: Vec<Unit>,
}

#[derive(Deserialize)]
struct Unit {
    lun: u32,
    device: String,
}

/// State of a session, and the devices of its units by their numbers.
pub type Found = (String, Vec<(u32, String)>);

/// Returns the session of one target in a listing, or nothing if there is no session.
pub fn find(listing: &str, target: &Target) -> Option<Found> {
    let document: Document = serde_json::from_str(listing).ok()?;
    let session =
        document.iscsictl.session.into_iter().find(|session| session.name == target.name && session.portal == target.portal)?;
    let units = session.devices.map(|devices| devices.lun).unwrap_or_default();
    Some((session.state, units.into_iter().map(|unit| (unit.lun, unit.device)).collect()))
}

impl Target {
    fn look(&self) -> Result<Option<Found>, HostError> {
        Ok(find(&run("iscsictl", &["--libxo", "json", "-L"])?, self))
    }

    /// Prepares this host for an initiator.
    pub fn prepare() -> Result<(), HostError> {
        kmod::ensure("iscsi")?;
        match run("service", &["iscsid", "onestatus"]) {
            Ok(_) => Ok(()),
            Err(_) => run("service", &["iscsid", "onestart"]).map(drop).map_err(HostError::from),
        }
    }

    /// Returns whether there is a session with the target.
    pub fn is_attached(&self) -> Result<bool, HostError> {
        Ok(self.look()?.is_some())
    }

    /// Begins a session.
    pub fn attach(&self) -> Result<(), HostError> {
        run("iscsictl", &["-A", "-p", &self.portal, "-t", &self.name]).map(drop).map_err(HostError::from)
    }

    /// Ends the session, if there is one.
    pub fn detach(&self) -> Result<(), HostError> {
        match self.is_attached()? {
            true => run("iscsictl", &["-R", "-p", &self.portal, "-t", &self.name]).map(drop).map_err(HostError::from),
            false => Ok(()),
        }
    }

    /// Returns the device of one of its units, like `da0`, once it has appeared.
    pub fn device(&self, lun: u32) -> Result<String, HostError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let (state, units) = self.look()?.ok_or_else(|| format!("there is no session with `{}`", self.name))?;
            if let Some((_, device)) = units.into_iter().find(|(number, _)| *number == lun) {
                return Ok(device);
            }
            if Instant::now() > until {
                return Err(format!("`{}` at {} gives no unit {lun}: {state}", self.name, self.portal).into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_a_target_is_found_and_what_is_no_listing_has_none() {
        let listing = r#"{"iscsictl": {"session": [
            {"name":"iqn.a:x","portal":"10.0.0.1","state":"Connected","devices":{"lun":[{"lun":0,"device":"da0"},{"lun":3,"device":"da1"}],"scbus":7}},
            {"name":"iqn.a:y","portal":"10.0.0.1","state":"Waiting for iscsid(8)"}]}}"#;
        let target = |name: &str| Target { name: name.into(), portal: "10.0.0.1".into() };
        assert_eq!(find(listing, &target("iqn.a:x")).expect("a session").1[1], (3, "da1".to_owned()));
        assert_eq!(find(listing, &target("iqn.a:y")), Some(("Waiting for iscsid(8)".into(), Vec::new())));
        assert_eq!(find(listing, &target("iqn.a:z")), None);
        assert_eq!(find(r#"{"iscsictl": {}}"#, &target("iqn.a:x")), None);
        assert_eq!(find("Target name", &target("iqn.a:x")), None);
    }
}
