//! `vmctl passthru`: lists PCI devices of the host.

use super::{App, Column, ExitStatus, Outcome};
use crate::host::passthru::{self, PciDevice};

/// PCI devices of the host that guests can have
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List devices, whether a guest can have them now, and the state of the IOMMU
    #[command(alias = "ls")]
    List {
        /// Also list bridges, which no guest can have
        #[arg(long)]
        all: bool,
    },
}

const COLUMNS: [Column<PciDevice>; 7] = [
    Column { title: "DEVICE", wide: false, text: |device| device.device.clone() },
    Column { title: "READY", wide: false, text: ready },
    Column { title: "DRIVER", wide: false, text: |device| device.driver.clone() },
    Column { title: "CLASS", wide: true, text: |device| device.class.clone() },
    Column { title: "VENDOR", wide: true, text: |device| device.vendor.clone() },
    Column { title: "MODEL", wide: false, text: |device| device.model.clone() },
    Column { title: "SELECTOR", wide: true, text: |device| device.selector.clone() },
];

fn ready(device: &PciDevice) -> String {
    match (device.ready, device.possible) {
        (true, _) => "yes".into(),
        (false, true) => "no".into(),
        (false, false) => "never".into(),
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::List { all } = self.verb;
        let mut devices = passthru::devices()?;
        devices.retain(|device| all || device.possible);
        app.ui.list("passthru", 1, &devices, &COLUMNS, |device| device.device.clone())?;
        let (words, hint) = passthru::iommu().words();
        app.ui.done(format!("IOMMU: {words}"));
        if let Some(hint) = hint {
            app.ui.warn(hint);
        }
        if let Some(example) = devices.iter().find(|device| !device.ready && device.possible) {
            app.ui.done(format!(
                "a device is made ready at boot with pptdevs=\"{}\" and vmm_load=\"YES\" in /boot/loader.conf, which `vmctl \
                 host setup` writes for the devices of guest files, and now with `devctl set driver -f {} ppt`",
                example.device, example.selector
            ));
        }
        Ok(ExitStatus::Done)
    }
}
