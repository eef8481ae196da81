//! `vmctl jail`: prepares jails for guests.

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
    /// Print the devfs rules and the part of jail.conf that a jail for guests needs
    ///
    /// They let bhyve in the jail use vmm(4), and see the null modems, taps and volumes of the jail's guests and no
    /// other device. The system is not changed: review them, and add them to /etc/devfs.rules and /etc/jail.conf.
    Prepare {
        /// A guest in a jail, or the name of a jail
        #[arg(value_name = "GUEST|JAIL")]
        name: String,
        /// Number of the devfs ruleset; by default the first free one from 100
        #[arg(long, value_name = "NUMBER")]
        ruleset: Option<u32>,
        /// Directory to write both parts to, instead of printing them
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::Prepare { name, ruleset, write } = self.verb;
        let context = app.context()?;
        let surroundings = context.surroundings();
        // A guest has priority over a jail of its name, unless it has no jail.
        let of_guest = context.store.guest(&name).ok().and_then(|guest| Definition::load(&guest, surroundings).ok()?.config.jail);
        let jail = of_guest.map_or(name, |jail| jail.name);
        let needs = host_needs::jail(&jail, ruleset, &context.store, surroundings);
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
