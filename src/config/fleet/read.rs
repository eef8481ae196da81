//! Reads a fleet file and makes its guests of it.

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
use crate::config::diagnostic::{Diagnostic, Diagnostics, Place, Source};
use crate::config::expression::{Scalar, names_in};
use crate::config::host::{self, HostConfig};
use crate::config::key::Kind;
use crate::config::keys::GUEST_KEYS;
use crate::config::layer::{self, Layer, Name, Node, Table, Value, read};
use crate::config::render::render_set;
use crate::config::resolve::{self, Reader, Resolved, Templates};
use crate::config::view::View;
use crate::config::walk;

/// All guest files of a fleet together are no larger.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// A fleet in which everything is wrong says no more than this.
const MAX_PROBLEMS: usize = 200;
const MAX_PROBLEMS_AN_ENTRY: usize = 20;

/// Which fleet file, and what goes with it.
#[derive(Debug, Clone, Copy)]
pub struct FleetRequest<'a> {
    /// The fleet file.
    pub file: &'a Path,
    /// Its text when that is not what the file holds.
    pub text: Option<&'a str>,
    /// The host file.
    pub host: &'a HostConfig,
    /// Directory of the datastore whose templates are used.
    pub datastore: &'a Path,
    /// Guests that are there and for which it was settled what runs them when their files do not say.
    pub engines: &'a BTreeMap<String, EngineKind>,
}

/// Reads and checks a fleet file, and makes its guests of it.
pub fn load_fleet(request: &FleetRequest<'_>) -> Result<Fleet, Diagnostics> {
    let text = match request.text {
        Some(text) => text.to_owned(),
        None => read(request.file)?,
    };
    let file = std::path::absolute(request.file).unwrap_or_else(|_| request.file.to_path_buf());
    let source = Source { label: request.file.display().to_string(), text, directory: file.parent().map(Path::to_path_buf) };
    let mut layer = Layer::parse(source, &FLEET_KEYS).map_err(Diagnostics)?;
    let source = layer.source.clone();
    let start = Place { source: source.clone(), span: 0..0 };
    let mut problems = Vec::new();
    let mut take = |key: &str| layer.table.take(key).map(|(_, node)| node);
    let (templates, guests, defaults) = (take("templates"), take("guests"), take("defaults"));
    walk::walk(&mut layer.table, "", &FLEET_KEYS, None, &mut problems);
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
        Some(Node { value: Value::Table(_), .. }) => {
            defaults.as_ref().and_then(|node| host::defaults(node, &source, &mut problems))
        }
        Some(node) => {
            problems.push(Diagnostic::at(&node.place, format!("`defaults` is {}, not a table", node.value.kind())));
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
    /// What it stands for.
    image: String,
    /// What its file must be, as it was written.
    checksum: Option<Node>,
}

/// The images of `[[images]]`. The table has been walked.
fn images(table: &Table, start: &Place, problems: &mut Vec<Diagnostic>) -> Vec<Image> {
    let mut found: Vec<Image> = Vec::new();
    for entry in View::part(table, start, &FLEET_KEYS, "").entries("images") {
        check::checksum(&entry, problems);
        let checksum = entry.node("checksum").cloned();
        match (entry.text("id"), entry.text("image").filter(|image| !image.is_empty())) {
            (Some(id), _) if found.iter().any(|other| other.id == id) => {
                problems.push(Diagnostic::at(entry.place_of("id"), format!("two images are called `{id}`")));
            }
            (Some(id), Some(image)) => {
                // A template that uses it may stand elsewhere.
                let node = entry.node("image").expect("it has a text");
                let is_path = check::is_image_path(&image);
                let image = if is_path { entry.absolute(&image, node).to_string_lossy().into_owned() } else { image };
                found.push(Image { id, image, checksum });
            }
            (id, _) => {
                let missing = if id.is_none() { "id" } else { "image" };
                problems.push(Diagnostic::at(entry.place, format!("an entry of `images` has no `{missing}`")));
            }
        }
    }
    found
}

/// Holds the disks that are made from an image of the fleet to its checksum; one with a checksum of its own keeps that.
fn pin(table: &mut Table, images: &[Image]) {
    let Some((_, Node { value: Value::Array(disks), .. })) = table.0.iter_mut().find(|(name, _)| name.text == "disks") else {
        return;
    };
    for disk in disks {
        let Value::Table(disk) = &mut disk.value else { continue };
        let Some(Node { value: Value::Text(source), place, .. }) = disk.get("source") else { continue };
        let names = names_in(source);
        let image = images.iter().find(|image| names.iter().any(|name| name.strip_prefix("image.") == Some(image.id.as_str())));
        if let (Some(checksum), None) = (image.and_then(|image| image.checksum.clone()), disk.get("checksum")) {
            let name = Name { text: "checksum".into(), place: place.clone() };
            disk.0.push((name, checksum));
        }
    }
}

/// The problems by their place, those of the fleet file first; what several guests of an entry have in common once.
fn in_order(problems: Vec<Diagnostic>, fleet: &Arc<Source>) -> Vec<Diagnostic> {
    let mut kept: Vec<Diagnostic> = Vec::new();
    let mut seen: BTreeSet<(String, usize, usize)> = BTreeSet::new();
    for problem in problems {
        let key = problem.place.as_ref().map(|place| (place.source.label.clone(), place.span.start, place.span.end));
        if key.is_none_or(|key| key.1 == key.2 || seen.insert(key)) && !kept.contains(&problem) {
            kept.push(problem);
        }
    }
    kept.sort_by_key(|problem| {
        problem.place.as_ref().map(|place| (!Arc::ptr_eq(&place.source, fleet), place.source.label.clone(), place.span.start))
    });
    let more = kept.len().saturating_sub(MAX_PROBLEMS);
    kept.truncate(MAX_PROBLEMS);
    if more > 0 {
        kept.push(Diagnostic::plain(format!("and {more} more")));
    }
    kept
}

/// Makes guests of entries.
struct Reading<'a> {
    request: &'a FleetRequest<'a>,
    name: &'a str,
    start: &'a Place,
    base: Table,
    reader: Reader,
    templates: &'a [Template],
    secrets: &'a [SecretConfig],
    images: &'a [Image],
    used_secrets: BTreeSet<String>,
    /// Where each name was given, to a guest of this host or of those that a selector means.
    names: HashMap<(String, Option<Selector>), Place>,
    text_bytes: usize,
    problems: Vec<Diagnostic>,
}

impl Reading<'_> {
    fn guests(&mut self, entries: &[Entry]) -> Vec<FleetGuest> {
        let label = self.start.source.label.clone();
        for template in self.templates {
            let mut chain = vec![(label.clone(), Some(self.request.file.to_path_buf()))];
            if let Some(below) = self.reader.named(&template.id, &template.place, &mut chain) {
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
        let at = at.map_or(&entry.place, |node| &node.place);
        let before = self.problems.len();
        let arguments = entries::arguments(&chain, &entry.with, at, &mut self.problems);
        let mut files = vec![(label.to_owned(), Some(self.request.file.to_path_buf()))];
        let own = self.reader.expand(entry.layer.clone(), &mut files);
        let mut table = self.base.clone();
        layer::merge(&mut table, own, "", &GUEST_KEYS, &mut self.problems);
        give(&mut table, arguments, &entry.place);
        pin(&mut table, self.images);
        self.note_secrets(&table);
        // With parameters missing, the expressions would only report the consequences.
        if self.problems.len() > before {
            return;
        }
        let host = self.request.host;
        let here = entry.host.as_ref().is_none_or(|selector| selector.means(&host.name, &host.labels));
        for item in &entry.items {
            // The guests of an entry are alike, and so is what is wrong with them.
            if self.problems.len() > before + MAX_PROBLEMS_AN_ENTRY {
                return;
            }
            let Some(guest) = self.guest(entry, item, table.clone(), here) else { continue };
            // A name may be there again for other hosts.
            let elsewhere = if here { None } else { entry.host.clone() };
            match self.names.entry((guest.config.name.clone(), elsewhere)) {
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(guest.place.clone());
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
            let name = Name { text: "index".into(), place: entry.place.clone() };
            table.0.push((name, Node { value: Value::Integer(index), place: entry.place.clone(), replaces: false }));
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
                    self.problems.push(Diagnostic::at(&entry.place, "the guest files of the fleet are more than 64 MiB"));
                    return None;
                }
                Some(FleetGuest { config, resolved, text, place: entry.name_place.clone(), here })
            }
            Err(problems) => {
                let of = |problem: Diagnostic| if entry.many { problem.note(format!("of guest `{name}`")) } else { problem };
                self.problems.extend(problems.0.into_iter().map(of));
                None
            }
        }
    }

    /// Remembers the secrets that a guest names, and refuses those that stand where no path can.
    fn note_secrets(&mut self, table: &Table) {
        let whole = Node { value: Value::Table(table.clone()), place: self.start.clone(), replaces: false };
        for text in entries::texts(&whole) {
            for name in names_in(text) {
                self.used_secrets.extend(name.strip_prefix("secret.").map(str::to_owned));
            }
        }
        refuse_secrets(table, "", &mut self.problems);
    }
}

/// A secret is a path: it goes where a path can stand, into variables, and into the words of a command.
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
                problems.push(Diagnostic::at(&node.place, message).hint("secrets go where a path can stand, and into commands"));
            }
            _ => {}
        }
    }
}

/// Sets parameters as variables, over those of `[vars]`.
fn give(table: &mut Table, arguments: Vec<(Name, Node)>, place: &Place) {
    if arguments.is_empty() {
        return;
    }
    if table.get("vars").is_none() {
        let name = Name { text: "vars".into(), place: place.clone() };
        table.0.push((name, Node { value: Value::Table(Table::default()), place: place.clone(), replaces: false }));
    }
    let vars = table.0.iter_mut().find(|(name, _)| name.text == "vars").expect("just made sure");
    // Of another type it is reported where the variables are read.
    if let Value::Table(vars) = &mut vars.1.value {
        for (name, node) in arguments {
            vars.take(&name.text);
            vars.0.push((name, node));
        }
    }
}
