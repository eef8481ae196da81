//! `vmctl cp`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{App, Failure, Outcome};
use crate::guest::definition::Definition;
use crate::guest::reach::Reach;

/// Copy files between the host and a guest with scp(1)
///
/// A path in a guest is written `GUEST:PATH`; a path of the host that has a colon, with a slash before it, like `./a:b`.
/// All paths in guests must be of one guest.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Copy directories, too
    #[arg(short, long)]
    recursive: bool,
    /// Who logs in
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// What is copied, and where to, the last one
    #[arg(value_name = "PATH", num_args = 2.., required = true)]
    paths: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let names: Vec<&str> = self.paths.iter().filter_map(|path| in_guest(path)).map(|(name, _)| name).collect();
        let name = *names.first().ok_or_else(|| Failure::user("no path is in a guest").hint("write one as `GUEST:PATH`"))?;
        if names.iter().any(|other| *other != name) {
            return Err(Failure::user("the paths are in several guests").hint("copy by way of the host"));
        }
        let guest = place.store.guest(name)?;
        let reach = Reach::of(&guest, &Definition::load(&guest, place.around())?.config, &guest.state()?, self.user)?;
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

/// As scp(1) tells them apart: a colon with no slash before it.
fn in_guest(path: &str) -> Option<(&str, &str)> {
    path.split_once(':').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
}
