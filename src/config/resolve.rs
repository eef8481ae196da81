//! From a guest file to one tree: its templates and included files laid under it, `--set` over it, expressions
//! replaced. Every value remembers the file and line that set it.
//!
//! **Bounds.** Templates nest at most 16 deep and at most 200 files are read, so that templates which name each other
//! many times end in an error.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Diagnostics, Place, Source, nearest};
use super::expression::{Scalar, Scope};
use super::keys::GUEST_KEYS;
use super::layer::{self, Layer, Node, Table, Value};
use crate::choices::{Choices, EngineKind};

const MAX_DEPTH: usize = 16;
const MAX_LAYERS: usize = 200;

/// The templates that come with the program.
pub const BUILT_IN_TEMPLATES: &[(&str, &str)] = &[
    ("alpine", include_str!("../../templates/alpine.toml")),
    ("debian", include_str!("../../templates/debian.toml")),
    ("debian-uefi", include_str!("../../templates/debian-uefi.toml")),
    ("freebsd", include_str!("../../templates/freebsd.toml")),
    ("freebsd-jail", include_str!("../../templates/freebsd-jail.toml")),
    ("freebsd-uefi", include_str!("../../templates/freebsd-uefi.toml")),
    ("freebsd-zvol", include_str!("../../templates/freebsd-zvol.toml")),
    ("linux-grub", include_str!("../../templates/linux-grub.toml")),
    ("linux-kernel", include_str!("../../templates/linux-kernel.toml")),
    ("linux-uefi", include_str!("../../templates/linux-uefi.toml")),
    ("multiboot", include_str!("../../templates/multiboot.toml")),
    ("netbsd", include_str!("../../templates/netbsd.toml")),
    ("openbsd", include_str!("../../templates/openbsd.toml")),
    ("rocky", include_str!("../../templates/rocky.toml")),
    ("small", include_str!("../../templates/small.toml")),
    ("ubuntu", include_str!("../../templates/ubuntu.toml")),
    ("windows", include_str!("../../templates/windows.toml")),
    ("windows-11", include_str!("../../templates/windows-11.toml")),
];

/// Where templates are looked for: among those of a fleet file, in these directories in order, then the built-in ones.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// Those that a fleet file brings, by name.
    pub own: BTreeMap<String, Layer>,
    /// Directories of `NAME.toml`.
    pub dirs: Vec<PathBuf>,
}

impl Templates {
    /// The text of a template. `Err` when there is a file and it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<(Source, Option<PathBuf>)>, std::io::Error> {
        for dir in &self.dirs {
            let path = dir.join(format!("{name}.toml"));
            match layer::file_text(&path) {
                Ok(text) => {
                    let label = shown(&path);
                    return Ok(Some((Source { label, text, directory: Some(dir.clone()) }, Some(path))));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let built_in = BUILT_IN_TEMPLATES.iter().find(|(known, _)| *known == name);
        Ok(built_in.map(|(_, text)| {
            let label = format!("template {name} (built in)");
            (Source { label, text: (*text).into(), directory: None }, None)
        }))
    }

    /// The names of all templates, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .dirs
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
            .chain(BUILT_IN_TEMPLATES.iter().map(|(name, _)| (*name).to_owned()))
            .chain(self.own.keys().cloned())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What a guest file and all that it names say together.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every key that is set, without `template`, `extends`, `include`, `unset` and `vars`.
    pub table: Table,
    /// Name of the guest.
    pub name: String,
    /// The start of the guest file, for what has no better place.
    pub start: Place,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    /// What runs the guest.
    pub engine: EngineKind,
    /// What went wrong on the way; the tree is then good for finding more that is wrong, and for nothing else.
    pub problems: Vec<Diagnostic>,
}

/// What is resolved.
pub struct Request<'a> {
    /// The guest file's text.
    pub source: Source,
    /// Its path.
    pub file: Option<&'a Path>,
    /// The guest's name, when it has one already.
    pub name: Option<&'a str>,
    /// `KEY=VALUE`, the last one wins.
    pub sets: &'a [String],
    /// Laid under everything.
    pub defaults: Option<&'a Layer>,
    /// Where templates are.
    pub templates: Templates,
    /// What runs a guest whose file and templates do not say.
    pub default_engine: EngineKind,
}

/// Resolves a guest file. An error when it is no TOML; everything else that is wrong is in the result.
pub fn resolve(request: Request<'_>) -> Result<Resolved, Diagnostics> {
    let mut reader = Reader::new(request.templates);
    reader.files.extend(request.file.map(Path::to_path_buf));
    let label = request.source.label.clone();
    let layer = Layer::parse(request.source, &GUEST_KEYS).map_err(Diagnostics)?;
    let start = Place { source: layer.source.clone(), span: 0..0 };
    let mut table = request.defaults.map(|layer| layer.table.clone()).unwrap_or_default();
    let own = reader.expand(layer, &mut vec![(label, request.file.map(Path::to_path_buf))]);
    layer::merge(&mut table, own, "", &GUEST_KEYS, &mut reader.problems);
    for set in request.sets {
        match Layer::from_set(set, &GUEST_KEYS) {
            Ok(layer) => {
                let from_files = ["template", "extends", "include", "unset"];
                if let Some((name, _)) = layer.table.0.iter().find(|(name, _)| from_files.contains(&name.text.as_str())) {
                    let message = format!("`{}` cannot be given with `--set`", name.text);
                    reader.problems.push(Diagnostic::at(&name.place, message).hint("write it in the guest file"));
                    continue;
                }
                layer::merge(&mut table, layer.table, "", &GUEST_KEYS, &mut reader.problems);
            }
            Err(problems) => reader.problems.extend(problems),
        }
    }
    let name = evaluate(&mut table, request.name, &[], &start, &mut reader.problems);
    let engine = engine_of(&table, request.default_engine);
    Ok(Resolved { table, name, start, files: reader.files, engine, problems: reader.problems })
}

/// The engine that a guest file asks for.
pub(super) fn engine_of(table: &Table, default: EngineKind) -> EngineKind {
    match table.get("engine").map(|node| &node.value) {
        Some(Value::Text(text)) => EngineKind::of_word(text).unwrap_or(default),
        _ => default,
    }
}

/// Replaces the expressions and returns the guest's name. Takes `vars` out. `more` are variables of ours.
pub(super) fn evaluate(
    table: &mut Table,
    given: Option<&str>,
    more: &[(String, Scalar)],
    start: &Place,
    problems: &mut Vec<Diagnostic>,
) -> String {
    let variables = match table.take("vars").map(|(_, node)| node) {
        Some(Node { value: Value::Table(variables), .. }) => Some(variables),
        Some(node) => {
            problems.push(Diagnostic::at(&node.place, format!("`vars` is {}, not a table", node.value.kind())));
            None
        }
        None => None,
    };
    let mut scope = Scope::new(variables.as_ref());
    more.iter().for_each(|(name, value)| scope.give(name, value.clone()));
    let mut early = |key: &str, scope: &mut Scope<'_>| {
        let (_, node) = table.0.iter_mut().find(|(name, _)| name.text == key)?;
        scope.evaluate(node, problems);
        Some(node.value.clone())
    };
    let index = match early("index", &mut scope) {
        Some(Value::Integer(index)) => index,
        _ => 0,
    };
    scope.give("index", Scalar::Integer(index));
    let written = early("name", &mut scope);
    let name = match (given, written) {
        (Some(given), _) => given.to_owned(),
        (None, Some(Value::Text(name))) => name,
        (None, _) => Path::new(&start.source.label).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned(),
    };
    scope.give("name", Scalar::Text(name.clone()));
    for (key, node) in &mut table.0 {
        if key.text != "index" && key.text != "name" {
            scope.evaluate(node, problems);
        }
    }
    name
}

/// A path as the user would name it from here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display().to_string()
}

/// What is laid below: a text, or a part of a fleet file that is parsed already.
enum Below {
    Text(Source),
    Layer(Layer),
}

/// How a file was reached: its label and its path, the guest file first.
pub(super) type Chain = Vec<(String, Option<PathBuf>)>;

/// Reads layers below layers. One reader serves many guests and reads each template once.
pub(super) struct Reader {
    templates: Templates,
    /// Templates with all that is below them.
    expanded: HashMap<String, Table>,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    layers: usize,
    /// What is wrong with what was read.
    pub problems: Vec<Diagnostic>,
}

impl Reader {
    pub fn new(templates: Templates) -> Self {
        Self { templates, expanded: HashMap::new(), files: Vec::new(), layers: 0, problems: Vec::new() }
    }

    /// A layer on its templates and included files.
    pub fn expand(&mut self, mut layer: Layer, chain: &mut Chain) -> Table {
        let mut base = Table::default();
        let mut names = self.texts(&mut layer.table, "template");
        names.extend(self.texts(&mut layer.table, "extends"));
        for (name, place) in names {
            if let Some(below) = self.named(&name, &place, chain) {
                layer::merge(&mut base, below, "", &GUEST_KEYS, &mut self.problems);
            }
        }
        for (path, place) in self.texts(&mut layer.table, "include") {
            let directory = layer.source.directory.clone().unwrap_or_default();
            let full = super::paths::in_home(&path).unwrap_or_else(|| directory.join(&path));
            match layer::file_text(&full) {
                Ok(text) => {
                    let source = Source { label: shown(&full), text, directory: full.parent().map(Path::to_path_buf) };
                    if let Some(below) = self.below(Below::Text(source), format!("`{path}`"), Some(full), &place, chain) {
                        layer::merge(&mut base, below, "", &GUEST_KEYS, &mut self.problems);
                    }
                }
                Err(error) => self.problems.push(Diagnostic::at(&place, format!("cannot read `{}`: {error}", shown(&full)))),
            }
        }
        for (path, place) in self.texts(&mut layer.table, "unset") {
            if !layer::unset(&mut base, &path) {
                let known = layer::paths(&base, "");
                let hint = nearest(&path, known.iter().map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
                let message = format!("no template or included file sets `{path}`, there is nothing to unset");
                self.problems.push(Diagnostic::at(&place, message).maybe_hint(hint));
            }
        }
        layer::merge(&mut base, layer.table, "", &GUEST_KEYS, &mut self.problems);
        base
    }

    /// A template with all that is below it.
    pub fn named(&mut self, name: &str, place: &Place, chain: &mut Chain) -> Option<Table> {
        if let Some(known) = self.expanded.get(name) {
            return Some(known.clone());
        }
        let (below, path) = match self.templates.own.get(name) {
            Some(own) => (Below::Layer(own.clone()), None),
            None => self.template(name, place).map(|(source, path)| (Below::Text(source), path))?,
        };
        let table = self.below(below, format!("template `{name}`"), path, place, chain)?;
        self.expanded.insert(name.to_owned(), table.clone());
        Some(table)
    }

    fn template(&mut self, name: &str, place: &Place) -> Option<(Source, Option<PathBuf>)> {
        if name.contains(['/', '\0']) || name.ends_with(".toml") || name.is_empty() {
            let message = format!("`{name}` is not the name of a template");
            let hint = format!("a file is named by its path with `include = [\"{name}\"]`");
            self.problems.push(Diagnostic::at(place, message).hint(hint));
            return None;
        }
        match self.templates.read(name) {
            Ok(Some(found)) => Some(found),
            Ok(None) => {
                let known = self.templates.names();
                let near = nearest(name, known.iter().map(String::as_str));
                let hint = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "templates are looked for in the datastore's `templates` directory, then in the host file's `template_dirs`".into(),
                };
                let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let diagnostic = Diagnostic::at(place, format!("there is no template `{name}`"));
                self.problems.push(diagnostic.note(format!("known: {list}")).hint(hint));
                None
            }
            Err(error) => {
                self.problems.push(Diagnostic::at(place, format!("cannot read template `{name}`: {error}")));
                None
            }
        }
    }

    /// One layer below, with all that is below it.
    fn below(&mut self, below: Below, label: String, path: Option<PathBuf>, place: &Place, chain: &mut Chain) -> Option<Table> {
        self.layers += 1;
        let again = chain.iter().position(|(other, file)| *other == label || (path.is_some() && *file == path));
        if again.is_some() || chain.len() >= MAX_DEPTH || self.layers > MAX_LAYERS {
            let names: Vec<&str> = chain.iter().map(|(label, _)| label.as_str()).chain([label.as_str()]).collect();
            let message = match again {
                Some(_) => format!("{label} is built on itself"),
                None if self.layers > MAX_LAYERS => "more than 200 templates and included files".into(),
                None => "templates and included files nest more than 16 deep".into(),
            };
            // One of these says it all.
            if self.layers <= MAX_LAYERS + 1 {
                self.problems.push(Diagnostic::at(place, message).note(names.join(" -> ")));
            }
            return None;
        }
        self.files.extend(path.clone());
        let layer = match below {
            Below::Layer(layer) => layer,
            Below::Text(source) => match Layer::parse(source, &GUEST_KEYS) {
                Ok(layer) => layer,
                Err(problems) => {
                    self.problems.extend(problems);
                    return None;
                }
            },
        };
        chain.push((label, path));
        let table = self.expand(layer, chain);
        chain.pop();
        Some(table)
    }

    /// Takes a key out whose value is a text or an array of texts. They are needed before there are variables.
    fn texts(&mut self, table: &mut Table, key: &str) -> Vec<(String, Place)> {
        let Some((_, node)) = table.take(key) else { return Vec::new() };
        let items = match node.value {
            Value::Array(items) => items,
            Value::Text(_) if key == "template" => vec![node],
            other => {
                let wanted = if key == "template" { "a text" } else { "an array of texts" };
                self.problems.push(Diagnostic::at(&node.place, format!("`{key}` is {}, not {wanted}", other.kind())));
                return Vec::new();
            }
        };
        let mut texts = Vec::new();
        for item in items {
            match item.value {
                Value::Text(text) if text.contains("{{") => {
                    let message = format!("`{key}` takes no expressions: it is read before the variables are");
                    self.problems.push(Diagnostic::at(&item.place, message));
                }
                Value::Text(text) => texts.push((text, item.place)),
                other => {
                    let message = format!("an item of `{key}` is {}, not a text", other.kind());
                    self.problems.push(Diagnostic::at(&item.place, message));
                }
            }
        }
        texts
    }
}
