//! `vmctl iso`: manages installation media in the cache.

use super::image::{import, list, remove};
use super::{App, Failure, Outcome};
use crate::fetch::{Kind, Request};

/// Installation media in the cache
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: IsoCommand,
}

#[derive(Debug, clap::Subcommand)]
enum IsoCommand {
    #[command(alias = "ls")]
    List(List),
    Add(Add),
    #[command(aliases = ["rm", "delete"])]
    Remove(Remove),
}

/// List installation media
#[derive(Debug, clap::Args)]
struct List {
    /// Only those of this name, of this family, or that match a glob, also those that are not here yet
    #[arg(value_name = "ISO")]
    names: Vec<String>,
    /// Also list what the catalogues offer and is not here yet
    #[arg(short, long)]
    all: bool,
}

/// Import an installation medium of this host into the cache
#[derive(Debug, clap::Args)]
struct Add {
    /// The file
    #[arg(value_name = "FILE")]
    file: String,
    /// Name in the cache, instead of the file's name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Expected digest
    #[arg(long, value_name = "DIGEST")]
    checksum: Option<String>,
    /// Replace a medium of this name from another file
    #[arg(long)]
    refresh: bool,
}

/// Remove installation media from the cache
///
/// Asks first.
#[derive(Debug, clap::Args)]
struct Remove {
    /// Their names
    #[arg(value_name = "ISO", required = true)]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        match self.action {
            IsoCommand::List(args) => list(app, &[Kind::Iso], &args.names, args.all),
            IsoCommand::Add(args) => args.run(app),
            IsoCommand::Remove(args) => remove(app, &[Kind::Iso], &args.names, args.yes),
        }
    }
}

impl Add {
    fn run(self, app: &App) -> Outcome {
        if crate::inputs::is_url(&self.file) {
            return Err(Failure::user(format!("`{}` is not a file of this host", self.file))
                .hint(format!("`vmctl fetch iso {}`", self.file)));
        }
        let checksum = self.checksum.as_deref().map(str::parse).transpose()?;
        import(app, &Request { name: self.name, checksum, refresh: self.refresh, ..Request::new(Kind::Iso, self.file) })
    }
}
