//! `vmctl cp`: copies files between the host and a guest.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::reachable::reach;
use super::{App, Failure, Outcome};

/// Copy files between the host and a guest with scp(1)
///
/// A path in a guest is written `GUEST:PATH`. A path of the host that contains a colon needs a slash before it, like
/// `./a:b`. All paths in guests must be in the same guest. A guest that boots is waited for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Copy directories, too
    #[arg(short, long)]
    recursive: bool,
    /// User to log in as
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Files to copy, and last the destination
    #[arg(value_name = "PATH", num_args = 2.., required = true)]
    paths: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        let names: Vec<&str> = self.paths.iter().filter_map(|path| in_guest(path)).map(|(name, _)| name).collect();
        let name = *names.first().ok_or_else(|| Failure::user("no path is in a guest").hint("write one as `GUEST:PATH`"))?;
        if names.iter().any(|other| *other != name) {
            return Err(Failure::user("the paths are in several guests").hint("copy by way of the host"));
        }
        let guest = context.store.guest(name)?;
        let reach = reach(app, &context, &guest, self.user)?;
        let mut command = Command::new("scp");
        command.args(reach.options()).args(["-P", &reach.address.port().to_string()]);
        if self.recursive {
            command.arg("-r");
        }
        command.arg("--").args(self.paths.iter().map(|path| match in_guest(path) {
            Some((_, rest)) => format!("{}:{rest}", reach.bracketed()),
            None => path.clone(),
        }));
        Err(Failure::user(format!("cannot run `scp`: {}", command.exec()))
            .hint("the package `openssh-client` brings it on Debian"))
    }
}

/// Splits a path in a guest as scp(1) does: at a colon with no slash before it.
fn in_guest(path: &str) -> Option<(&str, &str)> {
    path.split_once(':').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
}
