//! `vmctl jail`.

use std::path::PathBuf;

use super::{App, ExitStatus, Outcome};
use crate::guest::definition::Definition;
use crate::guest::host_needs;

/// The jails that guests run in
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print the devfs rules and the jail.conf piece that a jail for guests needs
    ///
    /// They let bhyve in the jail use vmm(4) and see the null modems, taps and volumes of the guests that run in it, and
    /// no other device. Nothing of the system is changed: they are to be read, and put into /etc/devfs.rules and
    /// /etc/jail.conf.
    Prepare {
        /// A guest, whose jail is meant, or the name of a jail
        #[arg(value_name = "GUEST|JAIL")]
        name: String,
        /// Number of the devfs ruleset; the first free one from 100 if left out
        #[arg(long, value_name = "NUMBER")]
        ruleset: Option<u32>,
        /// Write both pieces into this directory, instead of printing them
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::Prepare { name, ruleset, write } = self.verb;
        let place = app.place()?;
        let around = place.around();
        // A guest goes before a jail of its name, unless it has no jail.
        let of_guest = place.store.guest(&name).ok().and_then(|guest| Definition::load(&guest, around).ok()?.config.jail);
        let jail = of_guest.map_or(name, |jail| jail.name);
        let needs = host_needs::jail(&jail, ruleset, &place.store, around);
        match write {
            Some(directory) => {
                for path in needs.write(&directory)? {
                    app.ui.done(path.display());
                }
            }
            None => app.ui.data(&format!(
                "# For /etc/devfs.rules, then: service devfs restart\n{}\n# For /etc/jail.conf; {} holds a FreeBSD base system\n{}",
                needs.devfs_rules(),
                needs.root.display(),
                needs.jail_conf()
            ))?,
        }
        Ok(ExitStatus::Done)
    }
}
