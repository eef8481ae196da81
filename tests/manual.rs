//! The manual page of the files holds every key of the key table and no other, and is clean mdoc. Its lists of keys are
//! written from the table: `BLESS=1` puts them in. The page of the command likewise has every verb and option of `--help`.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use vmctl::testing::choices::Support;
use vmctl::testing::config::fleet::keys::FLEET_KEYS;
use vmctl::testing::config::host_keys::HOST_KEYS;
use vmctl::testing::config::key::{Key, Kind};
use vmctl::testing::config::keys::GUEST_KEYS;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/vmctl.toml.5");

/// A text of the key table as mdoc: one sentence a line, words in backticks in bold.
fn mdoc(text: &str) -> String {
    let mut result = String::new();
    for (at, part) in text.replace('\\', "\\e").split('`').enumerate() {
        result.push_str(&if at % 2 == 1 { format!("\\fB{part}\\fP") } else { part.replace(". ", ".\n") });
    }
    result.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}\n") } else { format!("{line}\n") }).collect()
}

fn argument(kind: Kind) -> &'static str {
    match kind {
        Kind::Table { short: None } => "table",
        Kind::Table { short: Some(_) } => "value | table",
        Kind::Entries => "tables",
        Kind::Text => "text",
        Kind::Name => "name",
        Kind::Path => "path",
        Kind::Flag => "true | false",
        Kind::Integer { .. } => "number",
        Kind::Size => "size",
        Kind::Duration => "duration",
        Kind::OneOf(_) => "choice",
        Kind::Texts { one: false } => "[texts]",
        Kind::Texts { one: true } => "text | [texts]",
        Kind::Paths => "[paths]",
        Kind::Map => "table of your own",
        Kind::Mac => "MAC-address",
        Kind::Uuid => "UUID",
        Kind::Address => "IP-address",
        Kind::Network => "IPv4-network",
        Kind::Slot => "PCI-address",
    }
}

/// Which engines act on it; nothing when all do.
fn engines(support: Support) -> String {
    mdoc(support.words())
}

fn item(key: &Key, text: &mut String) {
    let head = match key.kind {
        Kind::Table { short: None } => format!("[{}]", key.path),
        Kind::Entries => format!("[[{}]]", key.path),
        kind => format!("{} No = Ar {}", key.path, argument(kind)),
    };
    writeln!(text, ".It Ic {head}").unwrap();
    text.push_str(&mdoc(key.doc));
    if let Kind::Integer { min, max } = key.kind {
        writeln!(text, "From {min} to {max}.").unwrap();
    }
    if let Kind::OneOf(choices) = key.kind {
        writeln!(text, ".Bl -tag -width writethrough -compact").unwrap();
        for choice in choices {
            writeln!(text, ".It Li {}", choice.value).unwrap();
            text.push_str(&mdoc(choice.doc));
            if choice.support != Support::Now {
                text.push_str(&engines(choice.support));
            }
        }
        writeln!(text, ".El").unwrap();
    }
    if let Some(default) = key.default {
        writeln!(text, "Default:\n.Li {} .", default.replace('"', "\\(dq")).unwrap();
    }
    text.push_str(&engines(key.support));
}

/// `but` are keys that the page lists elsewhere.
fn list(keys: &[Key], but: &[Key]) -> String {
    let mut text = String::from(".Bl -tag -width Ds\n");
    keys.iter().filter(|key| !but.contains(key)).for_each(|key| item(key, &mut text));
    text.push_str(".El\n");
    text
}

/// The page with its lists as the key table has them now.
fn written(page: &str) -> String {
    let mut page = page.to_owned();
    let none: &[Key] = &[];
    for (name, keys, but) in [("guest", &GUEST_KEYS, none), ("host", &HOST_KEYS, none), ("fleet", &FLEET_KEYS, &HOST_KEYS)] {
        let begin = format!(".\\\" BEGIN {name}\n");
        let start = page.find(&begin).expect("the page has the mark") + begin.len();
        let end = page.find(&format!(".\\\" END {name}\n")).expect("the page has the mark");
        page.replace_range(start..end, &list(keys, but));
    }
    page
}

#[test]
fn the_manual_page_has_every_key_of_the_table_and_no_other() {
    let page = std::fs::read_to_string(PAGE).expect("it is part of the source");
    let expected = written(&page);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(PAGE, &expected).expect("the source is writable");
    } else {
        assert!(
            page == expected,
            "man/vmctl.toml.5 is behind src/config/keys.rs and src/choices: BLESS=1 cargo test --test manual"
        );
    }
    for key in GUEST_KEYS.iter().chain(HOST_KEYS.iter()).chain(FLEET_KEYS.iter()) {
        let heads = [format!(".It Ic {} ", key.path), format!(".It Ic [{}]\n", key.path), format!(".It Ic [[{}]]\n", key.path)];
        assert!(heads.iter().any(|head| expected.contains(head)), "{}", key.path);
    }
}

const COMMAND_PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/vmctl.1");

/// What the help says, as mdoc with a final stop.
fn help(long: Option<&clap::builder::StyledStr>, short: Option<&clap::builder::StyledStr>) -> String {
    let said = long.or(short).expect("everything has its help").to_string();
    let mut text = String::new();
    for (at, paragraph) in said.split("\n\n").enumerate() {
        if at > 0 {
            text.push_str(".Pp\n");
        }
        let paragraph = paragraph.trim_end().replace('\n', " ");
        let stop = if paragraph.ends_with(['.', ')']) { "" } else { "." };
        text.push_str(&mdoc(&format!("{paragraph}{stop}")).replace('~', "\\(ti"));
    }
    text
}

/// The options that `keep` lets through, as a list; nothing if there is none.
fn options(command: &clap::Command, keep: impl Fn(&clap::Arg) -> bool) -> String {
    let mut text = String::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set() && keep(arg)) {
        let value = arg.get_value_names().and_then(|names| names.first());
        if let Some(long) = arg.get_long() {
            let short = arg.get_short().map_or(String::new(), |short| format!("Fl {short} , "));
            let value = value.filter(|_| arg.get_action().takes_values()).map_or(String::new(), |name| format!(" Ar {name}"));
            writeln!(text, ".It {short}Fl -{long}{value}").unwrap();
        } else {
            writeln!(text, ".It Ar {}", value.expect("an argument has a name")).unwrap();
        }
        text.push_str(&help(arg.get_long_help(), arg.get_help()));
        let choices = arg.get_possible_values();
        if arg.get_action().takes_values() && !choices.is_empty() {
            let names: Vec<_> = choices.iter().map(|choice| choice.get_name()).collect();
            writeln!(text, "One of\n.Li {} .", names.join(" , ")).unwrap();
        }
        if let [default] = arg.get_default_values()
            && arg.get_action().takes_values()
        {
            writeln!(text, "Default:\n.Li {} .", default.to_string_lossy()).unwrap();
        }
    }
    if text.is_empty() { text } else { format!(".Bl -tag -width Ds\n{text}.El\n") }
}

/// The verbs of the help, in its order.
fn verbs(root: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    root.get_subcommands().filter(|verb| !verb.is_hide_set())
}

/// A verb and the verbs below it, each with its whole name.
fn with_sub_verbs(verb: &clap::Command) -> Vec<(String, &clap::Command)> {
    let name = verb.get_name().to_owned();
    let below = verbs(verb).filter(|sub| sub.get_name() != "help").map(|sub| (format!("{name} {}", sub.get_name()), sub));
    let below: Vec<_> = below.collect();
    std::iter::once((name, verb)).chain(below).collect()
}

fn verb_list(root: &clap::Command) -> String {
    let mut text = String::new();
    for (name, verb) in verbs(root).flat_map(with_sub_verbs) {
        writeln!(text, ".Ss {name}").unwrap();
        let arguments: String = verb
            .get_positionals()
            .map(|arg| {
                let name = arg.get_value_names().and_then(|names| names.first()).expect("an argument has a name");
                let more = if arg.get_action().takes_values() && arg.get_num_args().is_some_and(|n| n.max_values() > 1) {
                    " ..."
                } else {
                    ""
                };
                if arg.is_required_set() { format!(" Ar {name}") } else { format!(" Oo Ar {name}{more} Oc") }
            })
            .collect();
        let arguments = arguments.trim_start();
        if arguments.is_empty() {
            writeln!(text, ".Nm vmctl\n.Ic {name}\n.Pp").unwrap();
        } else {
            writeln!(text, ".Nm vmctl\n.Ic {name}\n.{arguments}\n.Pp").unwrap();
        }
        text.push_str(&help(verb.get_long_about(), verb.get_about()));
        text.push_str(&options(verb, |arg| !arg.is_global_set() && arg.get_id() != "help" && arg.get_id() != "version"));
    }
    text
}

#[test]
fn the_page_of_the_command_has_every_verb_and_option_of_the_help() {
    let mut root = vmctl::testing::cli::Cli::command();
    root.build();
    let page = std::fs::read_to_string(COMMAND_PAGE).expect("it is part of the source");
    let mut expected = page.clone();
    for (name, text) in [("options", options(&root, |_| true)), ("verbs", verb_list(&root))] {
        let begin = format!(".\\\" BEGIN {name}\n");
        let start = expected.find(&begin).expect("the page has the mark") + begin.len();
        let end = expected.find(&format!(".\\\" END {name}\n")).expect("the page has the mark");
        expected.replace_range(start..end, &text);
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(COMMAND_PAGE, &expected).expect("the source is writable");
    } else {
        assert!(page == expected, "man/vmctl.1 is behind src/cli/: BLESS=1 cargo test --test manual");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_vmctl")).arg("--help").output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("text");
    // The verbs are in groups, each with a title.
    let listed = said.lines().skip_while(|line| *line != "Every day:").take_while(|line| *line != "Options:");
    let listed = listed.filter(|line| line.starts_with("  "));
    let listed: Vec<_> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(listed.len() > 20, "{said}");
    for verb in listed {
        assert!(expected.contains(&format!(".Ss {verb}\n")), "{verb}");
    }
}

/// The source files below a directory.
fn sources(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.extend((path.extension().is_some_and(|extension| extension == "rs")).then_some(path)),
        }
    }
}

#[test]
fn every_command_that_a_message_names_has_that_verb_and_those_options() {
    let mut root = vmctl::testing::cli::Cli::command();
    root.build();
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut seen = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for part in text.split("`vmctl ").skip(1) {
            let command = part.split('`').next().unwrap_or_default();
            let mut verb = &root;
            for word in command.split_whitespace().take_while(|word| !word.contains(['\"', '\\', '\n'])) {
                if let Some(option) = word.strip_prefix("--") {
                    let name = option.split(['=', '{']).next().unwrap_or_default();
                    let known = verb.get_arguments().chain(root.get_arguments()).any(|arg| arg.get_long() == Some(name));
                    assert!(known, "{}: `vmctl {command}`: no --{name}", file.display());
                    seen += 1;
                } else if word.bytes().all(|byte| byte.is_ascii_uppercase()) {
                    // It stands for what the user writes.
                } else if verb.has_subcommands() && !word.contains('{') {
                    let sub = verb.find_subcommand(word);
                    verb = sub.unwrap_or_else(|| panic!("{}: `vmctl {command}`: no verb `{word}`", file.display()));
                } else if verb.has_subcommands() {
                    // Which verb it is depends on the message's values.
                    break;
                }
            }
        }
    }
    assert!(seen > 10, "{seen} options were found");
}

#[test]
#[ignore = "needs tools: make test"]
fn every_manual_page_is_clean_mdoc() {
    for entry in std::fs::read_dir(Path::new(PAGE).parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
