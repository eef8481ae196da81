//! Commands that do not exist: what other managers call them, and what is much like them.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Failure;
use crate::fetch::catalogue::near;

/// Words of other managers, and what to type here. The first is the verb that they stand below.
const ELSEWHERE: &[(&str, &[&str], &str)] = &[
    ("", &["attach", "connect", "serial", "tty"], "`vmctl console GUEST` opens the serial console"),
    ("", &["login"], "`vmctl ssh GUEST` logs in, and `vmctl console GUEST` opens the serial console"),
    (
        "",
        &["new", "add", "make"],
        "`vmctl launch IMAGE` makes a guest and starts it, and `vmctl create --file FILE` only makes it",
    ),
    ("", &["define", "register"], "`vmctl create --file FILE` makes the guest of a file"),
    ("", &["undefine", "unregister", "purge"], "`vmctl destroy GUEST` removes a guest and its disks"),
    ("", &["boot", "power-on", "poweron", "resume", "thaw"], "`vmctl start GUEST` starts a guest, also one that was suspended"),
    ("", &["halt", "off", "power-off"], "`vmctl stop GUEST` presses the power button, and `vmctl poweroff GUEST` pulls the plug"),
    ("", &["pause", "save", "freeze"], "`vmctl suspend GUEST` saves a guest and stops it"),
    ("", &["mv", "move"], "`vmctl rename GUEST NAME` renames a guest"),
    ("", &["copy", "scp", "push", "transfer"], "`vmctl cp FILE GUEST:PATH` copies a file, and `vmctl clone GUEST NAME` a guest"),
    ("", &["mount", "share"], "`vmctl cp` copies files between the host and a guest"),
    ("", &["pull", "download"], "`vmctl fetch image NAME` fetches an image"),
    ("", &["images", "find", "search", "remote"], "`vmctl image list --all` lists the images that there are"),
    ("", &["isos"], "`vmctl iso list --all` lists the installation media that there are"),
    (
        "",
        &["network", "networks", "net", "bridge", "bridges", "switches"],
        "`vmctl switch list` lists the switches, and `vmctl nic` changes a guest's interfaces",
    ),
    ("", &["disks", "volume", "volumes", "storage"], "`vmctl info GUEST` shows a guest's disks, and `vmctl disk` changes them"),
    ("", &["templates", "template"], "a template is used with `vmctl launch TEMPLATE`, and vmctl.toml(5) says what one is"),
    ("", &["describe", "get", "dominfo"], "`vmctl info GUEST` shows the details of a guest"),
    (
        "",
        &["dumpxml", "config", "configure", "set", "unset"],
        "`vmctl edit GUEST` changes a guest file, and `vmctl show GUEST` prints what it means",
    ),
    ("", &["validate", "lint", "verify"], "`vmctl check FILE` checks a file"),
    ("", &["log"], "`vmctl logs GUEST` shows the log of the console"),
    ("", &["monitor", "stats", "stat"], "`vmctl top` shows what guests use"),
    (
        "",
        &["ip", "address", "addresses", "port", "ports"],
        "`vmctl list` shows how ssh reaches each guest, and `vmctl info GUEST` all forwards",
    ),
    ("", &["vm", "guest", "guests", "machine"], "no such word is needed: `vmctl list`, `vmctl start GUEST`"),
    ("", &["datastore", "datastores"], "`--datastore` chooses one, and the host file names them"),
    ("", &["version"], "`vmctl --version` prints the version"),
    ("disk", &["list", "ls", "show"], "`vmctl info GUEST` shows a guest's disks"),
    ("nic", &["list", "ls", "show"], "`vmctl info GUEST` shows a guest's interfaces"),
    ("media", &["list", "ls", "show"], "`vmctl info GUEST` shows a guest's media among its disks"),
    ("image", &["fetch", "pull", "download", "get"], "`vmctl fetch image NAME` fetches an image"),
    ("iso", &["fetch", "pull", "download", "get"], "`vmctl fetch iso NAME` fetches an installation medium"),
    ("image", &["add"], "`vmctl image import FILE` takes a file of this host into the cache"),
    ("iso", &["import"], "`vmctl iso add FILE` takes a file of this host into the cache"),
];

/// Returns the failure of a command line that names a command which does not exist. Other mistakes are told by clap.
pub fn explain(error: &clap::Error, root: &clap::Command) -> Option<Failure> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let usage = error.get(ContextKind::Usage).map(ToString::to_string).unwrap_or_default();
    let above = above(&usage, root);
    let (parent, path) = above.map_or((root, "vmctl".to_owned()), |verb| (verb, format!("vmctl {}", verb.get_name())));
    let failure = Failure::user(format!("`{path}` has no command `{word}`"));
    let parent_name = above.map_or("", clap::Command::get_name);
    let lower = word.to_ascii_lowercase();
    if let Some((_, _, words)) =
        ELSEWHERE.iter().find(|(verb, theirs, _)| *verb == parent_name && theirs.contains(&lower.as_str()))
    {
        return Some(failure.hint(*words));
    }
    let own = parent.get_subcommands().filter(|verb| !verb.is_hide_set());
    let names = own.flat_map(|verb| std::iter::once(verb.get_name()).chain(verb.get_all_aliases()));
    Some(match near(word, names) {
        Some(near) => failure.hint(format!("did you mean {near}? `{path} --help` shows all")),
        None => failure.hint(format!("`{path} --help` shows all commands")),
    })
}

/// Returns the verb whose sub-command is missing, from clap's usage line: `Usage: vmctl image [OPTIONS] <COMMAND>`.
fn above<'a>(usage: &str, root: &'a clap::Command) -> Option<&'a clap::Command> {
    let verb = usage.split_whitespace().skip_while(|word| !word.ends_with("vmctl")).nth(1)?;
    root.find_subcommand(verb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::help;

    fn said(words: &[&str]) -> String {
        let root = help::command();
        let error = root.clone().try_get_matches_from([&["vmctl"], words].concat()).expect_err("it does not exist");
        let failure = explain(&error, &root).expect("a command that does not exist");
        format!("{}: {}", failure.text(), failure.hint.expect("a hint").0)
    }

    #[test]
    fn a_misspelt_command_is_met_with_what_was_meant() {
        for (words, meant) in [
            (&["strat"][..], "did you mean `start`"),
            (&["iamge", "list"], "did you mean `image`"),
            (&["lanch", "debian"], "did you mean `launch`"),
            (&["image", "lsit"], "`vmctl image` has no command `lsit`: did you mean `list`"),
            (&["attach", "web"], "`vmctl console GUEST`"),
            (&["disk", "ls"], "`vmctl info GUEST` shows a guest's disks"),
            (&["-q", "image", "pull", "debian"], "`vmctl fetch image NAME`"),
            (&["zzz"], "`vmctl --help` shows all commands"),
        ] {
            assert!(said(words).contains(meant), "{words:?}: {}", said(words));
        }
    }

    #[test]
    fn no_word_of_others_is_one_of_ours() {
        let root = help::command();
        for (verb, words, _) in ELSEWHERE {
            let parent = if verb.is_empty() { &root } else { root.find_subcommand(verb).expect("a verb of ours") };
            for word in *words {
                assert!(parent.find_subcommand(word).is_none(), "{verb} {word}");
            }
        }
    }
}
