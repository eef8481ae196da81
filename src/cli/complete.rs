//! `vmctl __complete`: what the shells' completions do not know from the command line's grammar: names of guests, images,
//! templates, disks. It reports no error, since the user is at a shell prompt.

use clap::{Arg, Command};

use super::launch::is_bootable;
use super::source::GuestSource;
use super::{App, ExitStatus, Outcome, help};
use crate::config::EngineKind;
use crate::config::resolve::Templates;
use crate::fetch::catalogue::family_of;
use crate::fetch::{Cache, Catalogue, Kind};
use crate::guest::definition::Definition;

/// List what the last of the words may be, one per line
///
/// Exits with 1 if it is no place for a name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Words of the command line after `vmctl`, up to the one that is being typed
    #[arg(value_name = "WORD", last = true)]
    words: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let mut root = help::command();
        root.build();
        let Some(place) = place(&root, &self.words) else { return Ok(ExitStatus::User) };
        let mut names = names(app, &place);
        names.sort();
        names.dedup();
        app.ui.data(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        Ok(ExitStatus::Done)
    }
}

/// What a word is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The name of its value in the help, like `GUEST` or `IMAGE`.
    what: String,
    /// The argument before it, for the parts of a guest.
    guest: Option<String>,
}

/// Returns what the last of the words is; nothing for an option, a verb, or a value that has no names.
fn place(root: &Command, words: &[String]) -> Option<Place> {
    let (current, before) = words.split_last()?;
    let (mut verb, mut arguments, mut pending) = (root, Vec::new(), None);
    for word in before {
        if pending.take().is_some() {
            continue;
        }
        match word.starts_with('-') && word.len() > 1 {
            true => pending = option(verb, root, word).filter(|option| option.get_action().takes_values() && !word.contains('=')),
            false => match verb.find_subcommand(word).filter(|_| arguments.is_empty()) {
                Some(below) => verb = below,
                None => arguments.push(word.clone()),
            },
        }
    }
    if pending.is_none() && current.starts_with('-') {
        return None;
    }
    let argument = match pending {
        Some(option) => option,
        None => {
            let own: Vec<&Arg> = verb.get_positionals().collect();
            let last = own.last().copied().filter(|last| last.get_num_args().is_some_and(|count| count.max_values() > 1));
            own.get(arguments.len()).copied().or(last)?
        }
    };
    let what = argument.get_value_names()?.first()?.to_string();
    let known = ["GUEST", "IMAGE", "ISO", "TEMPLATE", "DISK", "NIC", "SWITCH"];
    known.contains(&what.split('|').next()?).then(|| Place { what, guest: arguments.into_iter().next() })
}

fn option<'a>(verb: &'a Command, root: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or_default();
    verb.get_arguments().chain(root.get_arguments()).find(|option| match name.strip_prefix("--") {
        Some(long) => option.get_long() == Some(long),
        None => option.get_short().is_some_and(|short| name.strip_prefix('-') == Some(short.to_string().as_str())),
    })
}

fn names(app: &App, place: &Place) -> Vec<String> {
    let kinds = place.what.split('|');
    kinds.flat_map(|kind| of_kind(app, kind, place.guest.as_deref()).unwrap_or_default()).collect()
}

fn of_kind(app: &App, kind: &str, guest: Option<&str>) -> Option<Vec<String>> {
    let host = app.host().ok()?;
    let store = app.datastore(&host).ok()?;
    // What no guest of this host can boot is no offer.
    let has_bhyve = host.default_engine == EngineKind::Bhyve;
    let offered = |kind: Kind| {
        let entries = Catalogue::shipped().entries().to_vec().into_iter().filter(move |entry| entry.kind == kind);
        let entries = entries.filter(|entry| has_bhyve || is_bootable(&entry.facts)).map(|entry| entry.name);
        let stored = Cache::look(&host.cache_dir).list().unwrap_or_default().into_iter();
        entries.chain(stored.filter(|it| it.record.kind == kind).map(|it| it.record.name)).collect::<Vec<_>>()
    };
    Some(match kind {
        "GUEST" => GuestSource::all(&store).iter().map(GuestSource::display_name).collect(),
        "IMAGE" => {
            let images = offered(Kind::Image);
            let families: Vec<String> = images.iter().filter_map(|name| family_of(name)).map(|(family, _)| family).collect();
            images.into_iter().chain(families).collect()
        }
        "ISO" => offered(Kind::Iso),
        "TEMPLATE" => {
            let templates = Templates { dirs: host.template_search(&store.path), ..Templates::default() };
            if has_bhyve { templates.names() } else { templates.names_by_engine().0 }
        }
        "SWITCH" => host.switches.iter().map(|switch| switch.id.clone()).collect(),
        "DISK" | "NIC" => {
            let context = app.context_to_look().ok()?;
            let config = Definition::load(&context.store.guest(guest?).ok()?, context.surroundings()).ok()?.config;
            match kind {
                "DISK" => config.disks.into_iter().map(|disk| disk.id).collect(),
                _ => config.nics.into_iter().map(|nic| nic.id).collect(),
            }
        }
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_says_what_is_being_typed() {
        let mut root = help::command();
        root.build();
        let what = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            place(&root, &words).map(|place| (place.what, place.guest))
        };
        let is = |what: &str, guest: Option<&str>| Some((what.to_owned(), guest.map(str::to_owned)));
        assert_eq!(what("start we"), is("GUEST", None));
        assert_eq!(what("start web1 we"), is("GUEST", Some("web1")));
        assert_eq!(what("-o json --datastore x stop "), is("GUEST", None));
        assert_eq!(what("rm "), is("GUEST", None));
        assert_eq!(what("ssh "), is("GUEST", None));
        assert_eq!(what("launch deb"), is("IMAGE|TEMPLATE|FILE", None));
        assert_eq!(what("launch --template "), is("TEMPLATE", None));
        assert_eq!(what("disk remove web1 "), is("DISK", Some("web1")));
        assert_eq!(what("nic rm web1 "), is("NIC", Some("web1")));
        assert_eq!(what("disk add web1 data --source "), is("IMAGE", Some("web1")));
        assert_eq!(what("image rm "), is("IMAGE", None));
        assert_eq!(what("install web "), is("ISO", Some("web")));
        assert_eq!(what("switch info "), is("SWITCH", None));
        for line in ["", "sta", "start -", "start --timeout ", "image ", "ssh web1 ", "list --state "] {
            assert_eq!(what(line), None, "{line}");
        }
    }
}
