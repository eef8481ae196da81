//! Reading a fleet file and making its guests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::agreement;
use super::contents::{Fleet, FleetGuest};
use super::entries::{self, Entry, Item, Selector, Template};
use super::keys::FLEET_KEYS;
use super::secrets::{self, SecretConfig};
use super::switches;
use crate::choices::EngineKind;
use crate::config::check;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Location, Source};
use crate::config::expression::{Scalar, names_in};
use crate::config::host::{self, HostConfig};
use crate::config::key::Kind;
use crate::config::keys::GUEST_KEYS;
use crate::config::layer::{self, Layer, Name, Spanned, Table, Value, read};
use crate::config::render::render_set;
use crate::config::resolve::{self, Reader, Resolved, Templates};
use crate::config::table_reader::TableReader;
use crate::config::validate;

/// Maximum size of all guest files of a fleet together.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// Maximum number of problems that are reported for a fleet.
const MAX_PROBLEMS: usize = 200;
const MAX_PROBLEMS_AN_ENTRY: usize = 20;

/// Parameters for reading a fleet file.
#[derive(Debug, Clone, Copy)]
pub struct FleetRequest<'a> {
    /// The fleet file.
    pub file: &'a Path,
    /// Its text, if it differs from the file's contents.
    pub text: Option<&'a str>,
    /// The host file.
    pub host: &'a HostConfig,
    /// Directory of the datastore with the templates.
    pub datastore: &'a Path,
    /// Fixed default engines of existing guests.
    pub engines: &'a BTreeMap<String, EngineKind>,
}

/// Reads and checks a fleet file, and makes its guests.
pub fn load_fleet(request: &FleetRequest<'_>) -> Result<Fleet, Diagnostics> {
    let text = match request.text {
        Some(text) => text.to_owned(),
        None => read(request.file)?,
    };
    let file = std::path::absolute(request.file).unwrap_or_else(|_| request.file.to_path_buf());
    let source = Source { label: request.file.display().to_string(), text, directory: file.parent().map(Path::to_path_buf) };
    let mut layer = Layer::parse(source, &FLEET_KEYS).map_err(Diagnostics)?;
    let source = layer.source.clone();
    let start = Location { source: source.clone(), span: 0..0 };
    let mut problems = Vec::new();
    let mut take = |key: &str| layer.table.take(key).map(|(_, node)| node);
    let (templates, guests, defaults) = (take("templates"), take("guests"), take("defaults"));
    validate::check_table(&mut layer.table, "", &FLEET_KEYS, None, &mut problems);
    let walked = problems.is_empty();
    let name = match layer.table.get("name").map(|node| &node.value) {
        Some(Value::Text(name)) => name.clone(),
        Some(_) => String::new(),
        None => {
            problems.push(Diagnostic::at(&start, "the fleet has no `name`").hint("add `name = \"NAME\"` at the top"));
            String::new()
        }
    };
    let secrets = secrets::secrets(&layer.table, &start, &name, request.datastore, &mut problems);
    let images = images(&layer.table, &start, &mut problems);
    let switches = if walked { switches::declared(&layer.table, &name, request.host, &mut problems) } else { Vec::new() };
    let defaults = match &defaults {
        Some(Spanned { value: Value::Table(_), .. }) => {
            defaults.as_ref().and_then(|node| host::defaults(node, &source, &mut problems))
        }
        Some(node) => {
            problems.push(Diagnostic::at(&node.location, format!("`defaults` is {}, not a table", node.value.kind())));
            None
        }
        None => None,
    };
    let templates = entries::templates(templates, &source, &mut problems);
    let entries = entries::guests(guests, &source, &mut problems);
    let mut base = request.host.defaults.as_ref().map(|layer| layer.table.clone()).unwrap_or_default();
    if let Some(defaults) = defaults {
        layer::merge(&mut base, defaults.table, "", &GUEST_KEYS, &mut problems);
    }
    let own = templates.iter().map(|template| (template.id.clone(), template.layer.clone())).collect();
    let search = request.host.template_search(request.datastore);
    let mut reading = Reading {
        request,
        name: &name,
        start: &start,
        base,
        reader: Reader::new(Templates { own, dirs: search }),
        templates: &templates,
        secrets: &secrets,
        images: &images,
        used_secrets: BTreeSet::new(),
        names: HashMap::new(),
        text_bytes: 0,
        problems,
    };
    let guests = reading.guests(&entries);
    let (mut problems, used) = (reading.problems, reading.used_secrets);
    if problems.is_empty() {
        agreement::check(&guests, request.datastore, &mut problems);
    }
    if problems.is_empty() {
        let secrets = secrets.into_iter().filter(|secret| used.contains(&secret.id)).collect();
        return Ok(Fleet { name, file, guests, secrets, switches });
    }
    Err(Diagnostics(in_order(problems, &source)))
}

/// An image of `[[images]]`.
struct Image {
    id: String,
    /// The image that it names.
    image: String,
    /// Its expected checksum, as it was written.
    checksum: Option<Spanned>,
}

/// Returns the images of `[[images]]`. The keys of the table have been checked.
fn images(table: &Table, start: &Location, problems: &mut Vec<Diagnostic>) -> Vec<Image> {
    let mut found: Vec<Image> = Vec::new();
    for entry in TableReader::part(table, start, &FLEET_KEYS, "").entries("images") {
        check::checksum(&entry, problems);
        let checksum = entry.node("checksum").cloned();
        match (entry.text("id"), entry.text("image").filter(|image| !image.is_empty())) {
            (Some(id), _) if found.iter().any(|other| other.id == id) => {
                problems.push(Diagnostic::at(entry.location_of("id"), format!("two images are called `{id}`")));
            }
            (Some(id), Some(image)) => {
                // A template that uses it may be in another directory.
                let node = entry.node("image").expect("it has a text");
                let is_path = check::is_image_path(&image);
                let image = if is_path { entry.absolute(&image, node).to_string_lossy().into_owned() } else { image };
                found.push(Image { id, image, checksum });
            }
            (id, _) => {
                let missing = if id.is_none() { "id" } else { "image" };
                problems.push(Diagnostic::at(entry.location, format!("an entry of `images` has no `{missing}`")));
            }
        }
    }
    found
}

/// Adds the checksum of an image of the fleet to the disks that are made from it, except those with a checksum of their
/// own.
fn pin(table: &mut Table, images: &[Image]) {
    let Some((_, Spanned { value: Value::Array(disks), .. })) = table.0.iter_mut().find(|(name, _)| name.text == "disks") else {
        return;
    };
    for disk in disks {
        let Value::Table(disk) = &mut disk.value else { continue };
        let Some(Spanned { value: Value::Text(source), location, .. }) = disk.get("source") else { continue };
        let names = names_in(source);
        let image = images.iter().find(|image| names.iter().any(|name| name.strip_prefix("image.") == Some(image.id.as_str())));
        if let (Some(checksum), None) = (image.and_then(|image| image.checksum.clone()), disk.get("checksum")) {
            let name = Name { text: "checksum".into(), location: location.clone() };
            disk.0.push((name, checksum));
        }
    }
}

/// Returns the problems by their position, those of the fleet file first. A problem that several guests of an entry
/// share is included once.
fn in_order(problems: Vec<Diagnostic>, fleet: &Arc<Source>) -> Vec<Diagnostic> {
    let mut kept: Vec<Diagnostic> = Vec::new();
    let mut seen: BTreeSet<(String, usize, usize)> = BTreeSet::new();
    for problem in problems {
        let key =
            problem.location.as_ref().map(|location| (location.source.label.clone(), location.span.start, location.span.end));
        if key.is_none_or(|key| key.1 == key.2 || seen.insert(key)) && !kept.contains(&problem) {
            kept.push(problem);
        }
    }
    kept.sort_by_key(|problem| {
        problem
            .location
            .as_ref()
            .map(|location| (!Arc::ptr_eq(&location.source, fleet), location.source.label.clone(), location.span.start))
    });
    let more = kept.len().saturating_sub(MAX_PROBLEMS);
    kept.truncate(MAX_PROBLEMS);
    if more > 0 {
        kept.push(Diagnostic::plain(format!("and {more} more")));
    }
    kept
}

/// Conversion of entries to guests.
struct Reading<'a> {
    request: &'a FleetRequest<'a>,
    name: &'a str,
    start: &'a Location,
    base: Table,
    reader: Reader,
    templates: &'a [Template],
    secrets: &'a [SecretConfig],
    images: &'a [Image],
    used_secrets: BTreeSet<String>,
    /// Position of each name, for a guest of this host or of those that a selector selects.
    names: HashMap<(String, Option<Selector>), Location>,
    text_bytes: usize,
    problems: Vec<Diagnostic>,
}

impl Reading<'_> {
    fn guests(&mut self, entries: &[Entry]) -> Vec<FleetGuest> {
        let label = self.start.source.label.clone();
        for template in self.templates {
            let mut chain = vec![(label.clone(), Some(self.request.file.to_path_buf()))];
            if let Some(below) = self.reader.named(&template.id, &template.location, &mut chain) {
                entries::unused_parameters(template, &below, &mut self.problems);
            }
        }
        let mut guests = Vec::new();
        for entry in entries {
            self.entry(entry, &label, &mut guests);
        }
        self.problems.append(&mut self.reader.problems);
        guests
    }

    fn entry(&mut self, entry: &Entry, label: &str, guests: &mut Vec<FleetGuest>) {
        let chain = entries::chain(&entry.layer, self.templates);
        let at = entry.layer.table.get("template").or_else(|| entry.layer.table.get("extends"));
        let at = at.map_or(&entry.location, |node| &node.location);
        let before = self.problems.len();
        let arguments = entries::arguments(&chain, &entry.with, at, &mut self.problems);
        let mut files = vec![(label.to_owned(), Some(self.request.file.to_path_buf()))];
        let own = self.reader.expand(entry.layer.clone(), &mut files);
        let mut table = self.base.clone();
        layer::merge(&mut table, own, "", &GUEST_KEYS, &mut self.problems);
        give(&mut table, arguments, &entry.location);
        pin(&mut table, self.images);
        self.note_secrets(&table);
        // With missing parameters, the expressions would only report the consequences.
        if self.problems.len() > before {
            return;
        }
        let host = self.request.host;
        let here = entry.host.as_ref().is_none_or(|selector| selector.means(&host.name, &host.labels));
        for item in &entry.items {
            // The guests of an entry are alike, and so are their problems.
            if self.problems.len() > before + MAX_PROBLEMS_AN_ENTRY {
                return;
            }
            let Some(guest) = self.guest(entry, item, table.clone(), here) else { continue };
            // A name may be used again for other hosts.
            let elsewhere = if here { None } else { entry.host.clone() };
            match self.names.entry((guest.config.name.clone(), elsewhere)) {
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(guest.location.clone());
                    guests.push(guest);
                }
                std::collections::hash_map::Entry::Occupied(taken) => {
                    let name = &guest.config.name;
                    let problem = entries::twice(&entry.name_place, &format!("two guests are called `{name}`"), taken.get());
                    let hint = "write it with `{{ index }}` or `{{ each }}`, like `web-{{ index }}`";
                    self.problems.push(if entry.many { problem.hint(hint) } else { problem });
                }
            }
        }
    }

    fn guest(&mut self, entry: &Entry, item: &Item, mut table: Table, here: bool) -> Option<FleetGuest> {
        if let Some(index) = item.index {
            table.take("index");
            let name = Name { text: "index".into(), location: entry.location.clone() };
            table.0.push((name, Spanned { value: Value::Integer(index), location: entry.location.clone(), replaces: false }));
        }
        let mut given = item.variables.clone();
        given.push(("fleet.name".into(), Scalar::Text(self.name.to_owned())));
        given.push(("host.name".into(), Scalar::Text(self.request.host.name.clone())));
        given.extend(self.images.iter().map(|it| (format!("image.{}", it.id), Scalar::Text(it.image.clone()))));
        for secret in self.secrets {
            given.push((format!("secret.{}", secret.id), Scalar::Text(secret.path.to_string_lossy().into_owned())));
        }
        let mut problems = Vec::new();
        let name = resolve::evaluate(&mut table, None, &given, self.start, &mut problems);
        let default = self.request.engines.get(&name).copied().unwrap_or(self.request.host.default_engine);
        let engine = resolve::engine_of(&table, default);
        let start = entry.name_place.clone();
        let mut resolved = Resolved { table, name: name.clone(), start, files: Vec::new(), engine, problems };
        let checked = check::check(&mut resolved, entries::directory(&self.start.source));
        let defaults = self.request.host.defaults.as_ref().map(|layer| &layer.source);
        match checked {
            Ok(config) => {
                let text =
                    format!("# Written by `vmctl apply` from the fleet `{}`.\n{}", self.name, render_set(&resolved, defaults));
                self.text_bytes += text.len();
                if self.text_bytes > MAX_TEXT_BYTES {
                    self.problems.push(Diagnostic::at(&entry.location, "the guest files of the fleet are more than 64 MiB"));
                    return None;
                }
                Some(FleetGuest { config, resolved, text, location: entry.name_place.clone(), here })
            }
            Err(problems) => {
                let of = |problem: Diagnostic| if entry.many { problem.note(format!("of guest `{name}`")) } else { problem };
                self.problems.extend(problems.0.into_iter().map(of));
                None
            }
        }
    }

    /// Notes the secrets that a guest names, and refuses those in a key that is not a path.
    fn note_secrets(&mut self, table: &Table) {
        let whole = Spanned { value: Value::Table(table.clone()), location: self.start.clone(), replaces: false };
        for text in entries::texts(&whole) {
            for name in names_in(text) {
                self.used_secrets.extend(name.strip_prefix("secret.").map(str::to_owned));
            }
        }
        refuse_secrets(table, "", &mut self.problems);
    }
}

/// Refuses a secret where no path is allowed. A secret is a path, so it may be in paths, in variables, and in the words
/// of a command.
fn refuse_secrets(table: &Table, parent: &str, problems: &mut Vec<Diagnostic>) {
    for (name, node) in &table.0 {
        let path = if parent.is_empty() { name.text.clone() } else { format!("{parent}.{}", name.text) };
        let Some(key) = GUEST_KEYS.find(&path) else { continue };
        match &node.value {
            Value::Table(inner) if key.kind != Kind::Map => refuse_secrets(inner, &path, problems),
            Value::Array(items) if key.kind == Kind::Entries => {
                for item in items {
                    if let Value::Table(inner) = &item.value {
                        refuse_secrets(inner, &path, problems);
                    }
                }
            }
            Value::Text(text) if key.kind != Kind::Path && names_in(text).iter().any(|name| name.starts_with("secret.")) => {
                let message = format!("`{path}` takes no secret: a secret is handed over as the path of a file");
                problems.push(
                    Diagnostic::at(&node.location, message).hint("secrets can be used where a path is expected, and in commands"),
                );
            }
            _ => {}
        }
    }
}

/// Sets parameters as variables, over those of `[vars]`.
fn give(table: &mut Table, arguments: Vec<(Name, Spanned)>, location: &Location) {
    if arguments.is_empty() {
        return;
    }
    if table.get("vars").is_none() {
        let name = Name { text: "vars".into(), location: location.clone() };
        table.0.push((name, Spanned { value: Value::Table(Table::default()), location: location.clone(), replaces: false }));
    }
    let vars = table.0.iter_mut().find(|(name, _)| name.text == "vars").expect("just made sure");
    // A value of another type is reported where the variables are read.
    if let Value::Table(vars) = &mut vars.1.value {
        for (name, node) in arguments {
            vars.take(&name.text);
            vars.0.push((name, node));
        }
    }
}
