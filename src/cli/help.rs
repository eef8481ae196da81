//! The command line as a whole, and its help: verbs in groups, those of every day first.

use std::ffi::OsString;
use std::fmt::Write;

use clap::builder::Styles;
use clap::{Command, CommandFactory};

/// Groups of the help: title and verbs. A verb that no group names is among the last ones.
const GROUPS: &[(&str, &[&str])] = &[
    ("Every day", &["launch", "list", "info", "start", "stop", "restart", "ssh", "cp", "console", "logs", "forward", "destroy"]),
    (
        "Guests",
        &[
            "init",
            "create",
            "install",
            "clone",
            "rename",
            "edit",
            "check",
            "show",
            "run",
            "wait",
            "exec",
            "events",
            "top",
            "metrics",
            "ssh-config",
            "reset",
            "poweroff",
            "kill",
            "reset-failed",
        ],
    ),
    ("Disks, images and networks", &["image", "iso", "fetch", "disk", "media", "nic"]),
    ("Many guests", &["up", "down", "plan", "apply", "render", "graph", "autostart"]),
    ("This host", &["doctor", "import", "schema", "completions"]),
    ("With bhyve, on FreeBSD", &["switch", "snapshot", "snapshots", "rollback", "suspend", "passthru", "jail", "argv", "host"]),
];
/// Title of the verbs that no group names.
const OTHERS: &str = "Others";

/// Returns the command line, with its help.
pub fn command() -> Command {
    let command = super::Cli::command();
    let groups = groups(&command);
    let styles = Styles::styled();
    let heading = styles.get_header();
    let options = format!("{heading}Options:{heading:#}\n{{options}}");
    command.help_template(format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}{options}\n\n{MORE}"))
}

const MORE: &str =
    "`vmctl launch debian` makes a first guest. `vmctl VERB --help` describes a verb,\nand `man vmctl` describes them all.";

/// Returns the verbs, a line each, below the titles of their groups.
fn groups(command: &Command) -> String {
    let styles = Styles::styled();
    let (heading, literal) = (styles.get_header(), styles.get_literal());
    let shown: Vec<&Command> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
    let is_grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let others: Vec<&str> = shown.iter().map(|verb| verb.get_name()).filter(|name| !is_grouped(name)).collect();
    let width = shown.iter().map(|verb| verb.get_name().len()).max().unwrap_or(0);
    let mut text = String::new();
    for (title, names) in GROUPS.iter().copied().chain([(OTHERS, &others[..])]) {
        let verbs: Vec<_> = names.iter().filter_map(|name| shown.iter().find(|verb| verb.get_name() == *name)).collect();
        if verbs.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{heading}{title}:{heading:#}");
        for verb in verbs {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {literal}{:<width$}{literal:#}  {about}", verb.get_name());
        }
        text.push('\n');
    }
    text
}

/// Returns the words of this process, with a `help` before a verb as a `--help` after it.
pub fn words(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_one_group_and_the_everyday_ones_come_first() {
        let help = command().render_help().to_string();
        for verb in super::super::Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let line = format!("\n  {} ", verb.get_name());
            assert_eq!(help.matches(&line).count(), 1, "{line:?} in {help}");
        }
        let first = help.split("Every day:\n").nth(1).and_then(|rest| rest.lines().next());
        assert!(first.is_some_and(|line| line.trim_start().starts_with("launch ")), "{help}");
        assert!(help.find("  suspend").unwrap() > help.find("on FreeBSD:").unwrap());
        let named: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        assert!(named.iter().all(|name| named.iter().filter(|other| *other == name).count() == 1));
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        // The verbs' lines are not wrapped on a narrow terminal.
        let verbs = help.split("\nOptions:").next().unwrap();
        assert!(verbs.lines().all(|line| line.chars().count() <= 80), "{verbs}");
    }

    #[test]
    fn a_verbs_own_options_come_before_those_of_every_command() {
        let mut root = command();
        root.build();
        let help = root.find_subcommand_mut("start").unwrap().render_long_help().to_string();
        let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("no {text} in {help}"));
        assert!(at("--if-stopped") < at("Options of every command:") && at("Options of every command:") < at("--datastore"));
        assert!(at("--wait") < at("--quiet"));
    }

    #[test]
    fn help_is_a_word_too() {
        let ours = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(words(ours("vmctl help image list")), ours("vmctl image list --help"));
        assert_eq!(words(ours("vmctl help")), ours("vmctl --help"));
        assert_eq!(words(ours("vmctl start help")), ours("vmctl start help"));
    }
}
