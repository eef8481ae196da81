//! The keys of a fleet file. `[defaults]`, `[[templates]]` and `[[guests]]` also hold the keys of a guest file.

use crate::choices::Support::{Bhyve, Now};
use crate::config::host_keys::{SWITCH_KEYS, joined};
use crate::config::key::Kind::{Duration, Entries, Integer, Map, Name, Path, Text, Texts};
use crate::config::key::{Key, KeyTable, TABLE, key, with};

/// Maximum number of guests of one entry, and of one fleet.
pub const MAX_GUESTS: usize = 10_000;

/// The keys of a fleet file.
pub static FLEET_KEYS: KeyTable =
    KeyTable::new(&joined::<{ FLEET_ONLY.len() + KEPT.len() + SWITCH_HOST.len() }>(&[FLEET_ONLY, KEPT, SWITCH_HOST]));

/// The keys of the file in which an applied fleet keeps its switches.
pub static KEPT_KEYS: KeyTable = KeyTable::new(KEPT);

const KEPT: &[Key] = &joined::<{ SWITCHES.len() + SWITCH_KEYS.len() }>(&[SWITCHES, SWITCH_KEYS]);

const SWITCHES: &[Key] = &[key(
    "switches",
    Entries,
    Bhyve,
    "Switches of the fleet, besides those of the host file: `vmctl apply` makes and changes them, and with `--prune` removes them. An entry has the keys of the host file's `switches`, and `host`.",
)];

/// The keys in addition to those of a switch in the host file.
const SWITCH_HOST: &[Key] = &[
    key("switches.host", TABLE, Now, "Which hosts it is for; every host without it."),
    key("switches.host.names", Texts { one: false }, Now, "Names of hosts, or globs like `node-*`: one of them is the host's."),
    key("switches.host.labels", Texts { one: false }, Now, "Labels: the host has all of them."),
];

const FLEET_ONLY: &[Key] = &[
    key(
        "name",
        Name,
        Now,
        "Name of the fleet. Required. A guest remembers the fleet that it belongs to, so that `apply --prune` touches no other's.",
    ),
    key("description", Text, Now, "For people."),
    key(
        "defaults",
        Map,
        Now,
        "Keys of a guest file that apply to every guest of the fleet; applied over those of the host file.",
    ),
    key("templates", Entries, Now, "Templates of this fleet. It may contain every other key of a guest file."),
    key("templates.id", Name, Now, "Its name, for `template` and `extends`. Required."),
    key("templates.parameters", Entries, Now, "What a guest gives it with `with`; in expressions a variable of that name."),
    key("templates.parameters.id", Name, Now, "Its name. Required."),
    key("templates.parameters.default", Text, Now, "A text, a number, true or false. Without it, the parameter must be given."),
    key("templates.parameters.description", Text, Now, "For people."),
    key("templates.with", Map, Now, "Parameters of the templates that this one starts from."),
    key("guests", Entries, Now, "Guests. It may contain every other key of a guest file."),
    key("guests.name", Text, Now, "Its name. Required; with `count` and `for_each` an expression, like `web-{{ index }}`."),
    key("guests.with", Map, Now, "Parameters of its templates."),
    key(
        "guests.count",
        Integer { min: 0, max: MAX_GUESTS as i64 },
        Now,
        "Number of guests made from this entry; `index` counts from 1, or from the entry's own `index`.",
    ),
    key(
        "guests.for_each",
        Texts { one: false },
        Now,
        "One guest for each item: `{{ each }}` is the item, `{{ each.KEY }}` a key of it where it is a table.",
    ),
    key("guests.host", TABLE, Now, "Which hosts it is for; every host without it."),
    key("guests.host.names", Texts { one: false }, Now, "Names of hosts, or globs like `node-*`: one of them is the host's."),
    key("guests.host.labels", Texts { one: false }, Now, "Labels: the host has all of them."),
    key(
        "images",
        Entries,
        Now,
        "Images under names of the fleet's own, so that a version is written in one place: `{{ image.ID }}`.",
    ),
    key("images.id", Name, Now, "Its name. Required."),
    key(
        "images.image",
        Text,
        Now,
        "What `disks.image` takes: a name of the catalogue with its version, a URL, or a path. Required.",
    ),
    key(
        "images.checksum",
        Text,
        Now,
        "Checksum of its file, like `sha256:HEX` or `sha512:HEX`: the `checksum` of disks whose `source` is `{{ image.ID }}`.",
    ),
    key(
        "secrets",
        Entries,
        Now,
        "Values that must not be written in a file of the fleet. `{{ secret.ID }}` is the path of a file that holds it, never the secret itself.",
    ),
    key("secrets.id", Name, Now, "Its name. Required."),
    key("secrets.file", Path, Now, "The file that holds it."),
    key("secrets.env", Text, Now, "Or the environment variable of `vmctl apply` that holds it."),
    key("secrets.command", Texts { one: false }, Now, "Or the command that prints it; a final line end is dropped."),
    with("secrets.timeout", Duration, "\"30s\"", Now, "How long the command may take."),
];
