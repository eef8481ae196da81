//! Resolution of a guest file to one tree: merges its templates and included files below it and `--set` over it, and
//! replaces expressions. Every value keeps the file and line that set it.
//!
//! **Bounds.** Templates nest at most 16 deep and at most 200 files are read, so that templates which include each
//! other many times give an error.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Diagnostics, Location, Source, nearest};
use super::expression::{Scalar, Scope};
use super::keys::GUEST_KEYS;
use super::layer::{self, Layer, Spanned, Table, Value};
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

/// The search path of templates: those of a fleet file, these directories in order, then the built-in ones.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// Templates of a fleet file, by name.
    pub own: BTreeMap<String, Layer>,
    /// Directories of `NAME.toml`.
    pub dirs: Vec<PathBuf>,
}

impl Templates {
    /// Returns the text of a template. Returns `Err` if there is a file that cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<(Source, Option<PathBuf>)>, std::io::Error> {
        for dir in &self.dirs {
            let path = dir.join(format!("{name}.toml"));
            match layer::file_text(&path) {
                Ok(text) => {
                    let label = display_path(&path);
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

    /// Returns the names of all templates, sorted.
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

    /// Returns the same, those whose guests only bhyve runs apart.
    pub fn names_by_engine(&self) -> (Vec<String>, Vec<String>) {
        self.names().into_iter().partition(|name| !self.is_for_bhyve(name))
    }

    fn is_for_bhyve(&self, name: &str) -> bool {
        let source = Source { label: String::new(), text: String::new(), directory: None };
        let nowhere = Location { source: source.into(), span: 0..0 };
        let table = Reader { silent: true, ..Reader::new(self.clone()) }.named(name, &nowhere, &mut Vec::new());
        table.is_some_and(|table| engine_of(&table, EngineKind::Embedded) == EngineKind::Bhyve)
    }
}

/// A resolved guest file: the keys of the file and all files that it names.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every key that is set, without `template`, `extends`, `include`, `unset` and `vars`.
    pub table: Table,
    /// Name of the guest.
    pub name: String,
    /// The start of the guest file, for problems without a better position.
    pub start: Location,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    /// The engine.
    pub engine: EngineKind,
    /// Problems so far. With any, the tree is only good for finding more problems.
    pub problems: Vec<Diagnostic>,
}

/// Parameters of a resolution.
pub struct Request<'a> {
    /// The guest file's text.
    pub source: Source,
    /// Its path.
    pub file: Option<&'a Path>,
    /// The guest's name, if it already has one.
    pub name: Option<&'a str>,
    /// `KEY=VALUE` arguments. The last one wins.
    pub sets: &'a [String],
    /// Defaults, below everything else.
    pub defaults: Option<&'a Layer>,
    /// Search path of templates.
    pub templates: Templates,
    /// Default engine, for a guest whose file and templates name none.
    pub default_engine: EngineKind,
}

/// Resolves a guest file. It is an error if it is not TOML. All other problems are in the result.
pub fn resolve(request: Request<'_>) -> Result<Resolved, Diagnostics> {
    let mut reader = Reader::new(request.templates);
    reader.files.extend(request.file.map(Path::to_path_buf));
    let label = request.source.label.clone();
    let layer = Layer::parse(request.source, &GUEST_KEYS).map_err(Diagnostics)?;
    let start = Location { source: layer.source.clone(), span: 0..0 };
    let mut table = request.defaults.map(|layer| layer.table.clone()).unwrap_or_default();
    let own = reader.expand(layer, &mut vec![(label, request.file.map(Path::to_path_buf))]);
    layer::merge(&mut table, own, "", &GUEST_KEYS, &mut reader.problems);
    for set in request.sets {
        match Layer::from_set(set, &GUEST_KEYS) {
            Ok(layer) => {
                let from_files = ["template", "extends", "include", "unset"];
                if let Some((name, _)) = layer.table.0.iter().find(|(name, _)| from_files.contains(&name.text.as_str())) {
                    let message = format!("`{}` cannot be given with `--set`", name.text);
                    reader.problems.push(Diagnostic::at(&name.location, message).hint("write it in the guest file"));
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

/// Returns the engine that a guest file asks for.
pub(super) fn engine_of(table: &Table, default: EngineKind) -> EngineKind {
    match table.get("engine").map(|node| &node.value) {
        Some(Value::Text(text)) => EngineKind::of_word(text).unwrap_or(default),
        _ => default,
    }
}

/// Replaces the expressions and returns the guest's name. Removes `vars`. `more` are variables of vmctl.
pub(super) fn evaluate(
    table: &mut Table,
    given: Option<&str>,
    more: &[(String, Scalar)],
    start: &Location,
    problems: &mut Vec<Diagnostic>,
) -> String {
    let variables = match table.take("vars").map(|(_, node)| node) {
        Some(Spanned { value: Value::Table(variables), .. }) => Some(variables),
        Some(node) => {
            problems.push(Diagnostic::at(&node.location, format!("`vars` is {}, not a table", node.value.kind())));
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

/// Returns a path as the user would name it from the current directory.
fn display_path(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display().to_string()
}

/// A lower layer: a text, or a part of a fleet file that is already parsed.
enum Below {
    Text(Source),
    Layer(Layer),
}

/// The chain of files that led to a file: label and path of each, the guest file first.
pub(super) type Chain = Vec<(String, Option<PathBuf>)>;

/// Reads layers and those below them. One reader serves many guests and reads each template once.
pub(super) struct Reader {
    templates: Templates,
    /// Templates with everything below them.
    expanded: HashMap<String, Table>,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    layers: usize,
    /// It is asked about templates by a message about another.
    silent: bool,
    /// Problems of the files read.
    pub problems: Vec<Diagnostic>,
}

impl Reader {
    pub fn new(templates: Templates) -> Self {
        Self { templates, expanded: HashMap::new(), files: Vec::new(), layers: 0, silent: false, problems: Vec::new() }
    }

    /// Merges a layer with its templates and included files.
    pub fn expand(&mut self, mut layer: Layer, chain: &mut Chain) -> Table {
        let mut base = Table::default();
        let mut names = self.texts(&mut layer.table, "template");
        names.extend(self.texts(&mut layer.table, "extends"));
        for (name, location) in names {
            if let Some(below) = self.named(&name, &location, chain) {
                layer::merge(&mut base, below, "", &GUEST_KEYS, &mut self.problems);
            }
        }
        for (path, location) in self.texts(&mut layer.table, "include") {
            let directory = layer.source.directory.clone().unwrap_or_default();
            let full = super::paths::in_home(&path).unwrap_or_else(|| directory.join(&path));
            match layer::file_text(&full) {
                Ok(text) => {
                    let source = Source { label: display_path(&full), text, directory: full.parent().map(Path::to_path_buf) };
                    if let Some(below) = self.below(Below::Text(source), format!("`{path}`"), Some(full), &location, chain) {
                        layer::merge(&mut base, below, "", &GUEST_KEYS, &mut self.problems);
                    }
                }
                Err(error) => {
                    self.problems.push(Diagnostic::at(&location, format!("cannot read `{}`: {error}", display_path(&full))))
                }
            }
        }
        for (path, location) in self.texts(&mut layer.table, "unset") {
            if !layer::unset(&mut base, &path) {
                let known = layer::paths(&base, "");
                let hint = nearest(&path, known.iter().map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
                let message = format!("no template or included file sets `{path}`, there is nothing to unset");
                self.problems.push(Diagnostic::at(&location, message).maybe_hint(hint));
            }
        }
        layer::merge(&mut base, layer.table, "", &GUEST_KEYS, &mut self.problems);
        base
    }

    /// Returns a template with everything below it.
    pub fn named(&mut self, name: &str, location: &Location, chain: &mut Chain) -> Option<Table> {
        if let Some(known) = self.expanded.get(name) {
            return Some(known.clone());
        }
        let (below, path) = match self.templates.own.get(name) {
            Some(own) => (Below::Layer(own.clone()), None),
            None => self.template(name, location).map(|(source, path)| (Below::Text(source), path))?,
        };
        let table = self.below(below, format!("template `{name}`"), path, location, chain)?;
        self.expanded.insert(name.to_owned(), table.clone());
        Some(table)
    }

    fn template(&mut self, name: &str, location: &Location) -> Option<(Source, Option<PathBuf>)> {
        if name.contains(['/', '\0']) || name.ends_with(".toml") || name.is_empty() {
            let message = format!("`{name}` is not the name of a template");
            let hint = format!("a file is named by its path with `include = [\"{name}\"]`");
            self.problems.push(Diagnostic::at(location, message).hint(hint));
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
                // Who asks for the names must not be asked for them again.
                let (any, for_bhyve) = if self.silent { Default::default() } else { self.templates.names_by_engine() };
                let quoted = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let list = format!("{}; for bhyve alone: {}", quoted(&any), quoted(&for_bhyve));
                let diagnostic = Diagnostic::at(location, format!("there is no template `{name}`"));
                self.problems.push(diagnostic.note(format!("known: {list}")).hint(hint));
                None
            }
            Err(error) => {
                self.problems.push(Diagnostic::at(location, format!("cannot read template `{name}`: {error}")));
                None
            }
        }
    }

    /// Reads one lower layer, with everything below it.
    fn below(
        &mut self,
        below: Below,
        label: String,
        path: Option<PathBuf>,
        location: &Location,
        chain: &mut Chain,
    ) -> Option<Table> {
        self.layers += 1;
        let again = chain.iter().position(|(other, file)| *other == label || (path.is_some() && *file == path));
        if again.is_some() || chain.len() >= MAX_DEPTH || self.layers > MAX_LAYERS {
            let names: Vec<&str> = chain.iter().map(|(label, _)| label.as_str()).chain([label.as_str()]).collect();
            let message = match again {
                Some(_) => format!("{label} extends itself"),
                None if self.layers > MAX_LAYERS => "more than 200 templates and included files".into(),
                None => "templates and included files nest more than 16 deep".into(),
            };
            // One of these problems is enough.
            if self.layers <= MAX_LAYERS + 1 {
                self.problems.push(Diagnostic::at(location, message).note(names.join(" -> ")));
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

    /// Removes a key whose value is a text or an array of texts, and returns it. It is needed before there are
    /// variables.
    fn texts(&mut self, table: &mut Table, key: &str) -> Vec<(String, Location)> {
        let Some((_, node)) = table.take(key) else { return Vec::new() };
        let items = match node.value {
            Value::Array(items) => items,
            Value::Text(_) if key == "template" => vec![node],
            other => {
                let wanted = if key == "template" { "a text" } else { "an array of texts" };
                self.problems.push(Diagnostic::at(&node.location, format!("`{key}` is {}, not {wanted}", other.kind())));
                return Vec::new();
            }
        };
        let mut texts = Vec::new();
        for item in items {
            match item.value {
                Value::Text(text) if text.contains("{{") => {
                    let message = format!("`{key}` takes no expressions: it is read before the variables are");
                    self.problems.push(Diagnostic::at(&item.location, message));
                }
                Value::Text(text) => texts.push((text, item.location)),
                other => {
                    let message = format!("an item of `{key}` is {}, not a text", other.kind());
                    self.problems.push(Diagnostic::at(&item.location, message));
                }
            }
        }
        texts
    }
}
