//! Evaluation of scripts: variables and their contexts, words, control flow, the limits.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::files::Saved;
use super::menu::Entry;
use super::parse::{Block, Parser, Part, Script, Statement, Word, parse};
use super::{Devices, Halt, Limits, Loaded, Options, Terminal};
use crate::machine::loader::volume::{NodeKind, VolumeError};

/// Maximum nesting of scripts: functions, files, bodies of conditions.
const MAX_DEPTH: usize = 48;
const MAX_VARIABLES: usize = 4096;
const MAX_VALUE: usize = 64 * 1024;
const MAX_WORDS: usize = 4096;
const MAX_WORD_BYTES: usize = 256 * 1024;
const MAX_FUNCTIONS: usize = 1024;
const MAX_ROUNDS: u32 = 100_000;
/// Maximum number of troubles that are kept until they are shown.
const MAX_TROUBLES: usize = 8;

/// Where execution continues after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// At the next statement.
    Next,
    /// After this many loops.
    Break(u32),
    /// At the next round of the loop that is this many levels up.
    Continue(u32),
    /// After the function or file.
    Return,
    /// In the loaded kernel.
    Boot,
    /// After the menu.
    Exit,
}

/// Result of a command.
pub enum Done {
    /// True or false.
    Status(bool),
    /// A message for the console, and false.
    Error(String),
    /// A change of control flow.
    Flow(Flow),
}

/// Result of a command, or the end of the loader.
pub type Ended = Result<Done, Halt>;

/// Creates the result of a command that failed.
pub fn error(text: impl Into<String>) -> Ended {
    Ok(Done::Error(text.into()))
}

#[derive(Clone, Default)]
struct Variable {
    value: String,
    exported: bool,
}

/// The variables and the menu of one configuration or submenu.
#[derive(Default)]
struct Context {
    variables: HashMap<String, Variable>,
    menu: Vec<Entry>,
}

struct Budget {
    limits: Limits,
    commands: u32,
    asleep: Duration,
    output: usize,
    start: Duration,
}

/// The state of a running configuration.
pub struct Shell<'a> {
    /// The guest's disks.
    pub devices: &'a Devices,
    /// The console.
    pub terminal: &'a mut Terminal,
    /// Options from the guest file.
    pub options: &'a Options,
    contexts: Vec<Context>,
    functions: HashMap<String, Script>,
    arguments: Vec<Vec<String>>,
    status: bool,
    /// Number of errors shown since the last check.
    pub errors: u32,
    /// The kernel that `linux` and `initrd` have loaded.
    pub loaded: Option<Loaded>,
    /// Environment blocks that were saved, by file. They are written when a kernel is entered.
    pub saved: BTreeMap<String, Saved>,
    /// Errors of disks and file systems during look-ups of files. A file that could not be read must not count as
    /// missing.
    troubles: RefCell<Vec<String>>,
    budget: Budget,
    depth: usize,
}

impl<'a> Shell<'a> {
    /// Creates a shell with the variables that GRUB has from the start.
    pub fn new(devices: &'a Devices, terminal: &'a mut Terminal, options: &'a Options, limits: Limits) -> Shell<'a> {
        let start = terminal.now();
        let budget = Budget { limits, commands: 0, asleep: Duration::ZERO, output: 0, start };
        let mut shell = Shell {
            devices,
            terminal,
            options,
            contexts: vec![Context::default()],
            functions: HashMap::new(),
            arguments: vec![Vec::new()],
            status: true,
            errors: 0,
            loaded: None,
            saved: BTreeMap::new(),
            troubles: RefCell::default(),
            budget,
            depth: 0,
        };
        // The machine is a PC, for which GRUB reports i386 whatever the processor is.
        const FEATURES: [&str; 7] = [
            "feature_chainloader_bpb",
            "feature_ntldr",
            "feature_platform_search_hint",
            "feature_default_font_path",
            "feature_all_video_module",
            "feature_menuentry_id",
            "feature_timeout_style",
        ];
        let features = FEATURES.map(|name| (name, "y"));
        for (name, value) in features.into_iter().chain([("grub_cpu", "i386"), ("grub_platform", "pc"), ("lang", "")]) {
            shell.set(name, value);
            shell.export(name);
        }
        for name in ["root", "prefix"] {
            shell.export(name);
        }
        shell
    }

    // Variables.

    fn context(&self) -> &Context {
        self.contexts.last().expect("the outermost context stays")
    }
    fn context_mut(&mut self) -> &mut Context {
        self.contexts.last_mut().expect("the outermost context stays")
    }

    /// Returns a variable's value, or an empty one if it is not set.
    pub fn get(&self, name: &str) -> &str {
        self.value_of(name).unwrap_or_default()
    }

    /// Returns a variable's value, if it is set.
    pub fn value_of(&self, name: &str) -> Option<&str> {
        self.context().variables.get(name).map(|variable| variable.value.as_str())
    }

    /// Returns all variables, by name.
    pub fn variables(&self) -> BTreeMap<&str, &str> {
        self.context().variables.iter().map(|(name, variable)| (name.as_str(), variable.value.as_str())).collect()
    }

    /// Sets a variable. One too many is dropped, and a value that is too long is cut.
    pub fn set(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(MAX_VALUE);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = value[..end].to_string();
        // GRUB keeps `root` without parentheses.
        let value = match name {
            "root" => value.strip_prefix('(').and_then(|v| v.strip_suffix(')')).map_or(value.clone(), str::to_string),
            _ => value,
        };
        let variables = &mut self.context_mut().variables;
        if variables.len() < MAX_VARIABLES || variables.contains_key(name) {
            variables.entry(name.chars().take(256).collect()).or_default().value = value;
        }
    }

    /// Removes a variable.
    pub fn unset(&mut self, name: &str) {
        self.context_mut().variables.remove(name);
    }

    /// Exports a variable to submenus and other configurations.
    pub fn export(&mut self, name: &str) {
        let variables = &mut self.context_mut().variables;
        if variables.len() < MAX_VARIABLES || variables.contains_key(name) {
            variables.entry(name.chars().take(256).collect()).or_default().exported = true;
        }
    }

    /// Opens a context with the exported variables and an empty menu.
    pub fn enter(&mut self) {
        let exported = self.context().variables.iter().filter(|(_, variable)| variable.exported);
        let variables = exported.map(|(name, variable)| (name.clone(), variable.clone())).collect();
        self.contexts.push(Context { variables, menu: Vec::new() });
    }

    /// Returns to the context before.
    pub fn leave(&mut self) {
        if self.contexts.len() > 1 {
            self.contexts.pop();
        }
    }

    /// Returns the menu of this context.
    pub fn menu(&mut self) -> &mut Vec<Entry> {
        &mut self.context_mut().menu
    }

    /// Returns the arguments of the function or entry that runs.
    pub fn arguments(&mut self) -> &mut Vec<String> {
        self.arguments.last_mut().expect("the outermost arguments stay")
    }

    // Limits.

    /// Restarts the counters of the limits, since the user pressed a key.
    pub fn refresh(&mut self) {
        let start = self.terminal.now();
        self.budget = Budget { commands: 0, asleep: Duration::ZERO, output: 0, start, ..self.budget };
    }

    fn spend(&mut self) -> Result<(), Halt> {
        self.terminal.check()?;
        let budget = &mut self.budget;
        budget.commands += 1;
        let busy = self.terminal.now().saturating_sub(budget.start).saturating_sub(budget.asleep);
        if budget.commands > budget.limits.commands {
            return Err(Halt::GaveUp(format!("the boot configuration ran {} commands without an end", budget.limits.commands)));
        }
        if busy > budget.limits.busy {
            return Err(Halt::GaveUp(format!("the boot configuration ran for {} s without an end", busy.as_secs())));
        }
        Ok(())
    }

    /// Prints the output of a script.
    pub fn say(&mut self, text: &str) -> Result<(), Halt> {
        self.budget.output += text.len();
        if self.budget.output > self.budget.limits.output {
            return Err(Halt::GaveUp(format!("the boot configuration printed {} bytes without an end", self.budget.output)));
        }
        self.terminal.print(text);
        Ok(())
    }

    /// Shows an error as GRUB does.
    pub fn complain(&mut self, text: &str) -> Result<(), Halt> {
        self.errors += 1;
        self.say(&format!("error: {text}.\n"))
    }

    /// Waits. Returns `true` if a key ended the wait.
    pub fn sleep(&mut self, time: Duration) -> Result<bool, Halt> {
        let left = self.budget.limits.asleep.saturating_sub(self.budget.asleep);
        if left.is_zero() {
            return Err(Halt::GaveUp("the boot configuration slept without an end".into()));
        }
        let start = self.terminal.now();
        let key = self.terminal.key(Some(time.min(left)))?;
        self.budget.asleep += self.terminal.now().saturating_sub(start);
        Ok(key.is_some())
    }

    /// Returns the kind of the node at a path, or `None` if there is none. An error of a disk or file system is shown
    /// before the next command runs.
    pub fn kind_of(&self, name: &str) -> Option<NodeKind> {
        let (volume, path) = self.locate(name).ok()?;
        self.answered(name, volume.kind_of(&path))
    }

    /// Returns the answer of a file system to a look-up, and keeps its error.
    pub fn answered<T>(&self, name: &str, answer: Result<T, VolumeError>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(problem) => {
                let mut troubles = self.troubles.borrow_mut();
                if !problem.is_absence() && troubles.len() < MAX_TROUBLES {
                    troubles.push(format!("`{name}': {problem}"));
                }
                None
            }
        }
    }

    /// Shows the errors of look-ups.
    pub fn tell_troubles(&mut self) -> Result<(), Halt> {
        let troubles = std::mem::take(self.troubles.get_mut());
        troubles.iter().try_for_each(|text| self.complain(text))
    }

    // Scripts.

    /// Runs a text statement by statement. Text that is not a statement is shown and skipped.
    pub fn run_text(&mut self, text: &str) -> Result<Flow, Halt> {
        for statement in Parser::new(text) {
            self.spend()?;
            let flow = match statement {
                Ok(statement) => self.nested(|shell| shell.statement(&statement))?,
                Err(error) => {
                    self.complain(&format!("syntax error: {error}"))?;
                    Flow::Next
                }
            };
            match flow {
                Flow::Next | Flow::Break(_) | Flow::Continue(_) => {}
                Flow::Return => return Ok(Flow::Next),
                Flow::Boot | Flow::Exit => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    /// Runs one level deeper.
    pub fn nested(&mut self, run: impl FnOnce(&mut Self) -> Result<Flow, Halt>) -> Result<Flow, Halt> {
        if self.depth >= MAX_DEPTH {
            self.status = false;
            self.complain("scripts are nested too deeply")?;
            return Ok(Flow::Return);
        }
        self.depth += 1;
        let flow = run(self);
        self.depth -= 1;
        flow
    }

    /// Runs a parsed script.
    pub fn script(&mut self, script: &Script) -> Result<Flow, Halt> {
        self.nested(|shell| {
            for statement in script.iter() {
                let flow = shell.statement(statement)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    /// Runs a function's or an entry's body with its arguments.
    pub fn call(&mut self, script: &Script, arguments: Vec<String>) -> Result<Flow, Halt> {
        self.arguments.push(arguments);
        let flow = self.script(script);
        self.arguments.pop();
        match flow? {
            flow @ (Flow::Boot | Flow::Exit) => Ok(flow),
            _ => Ok(Flow::Next),
        }
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, Halt> {
        match statement {
            Statement::Command { words, block } => self.command(words, block.as_ref()),
            Statement::Function { name, body } => {
                if self.functions.len() < MAX_FUNCTIONS {
                    self.functions.insert(name.clone(), body.clone());
                }
                self.status = true;
                Ok(Flow::Next)
            }
            Statement::If { branches, otherwise } => {
                for (condition, body) in branches {
                    let flow = self.script(condition)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                    if self.status {
                        return self.script(body);
                    }
                }
                self.status = true;
                otherwise.as_ref().map_or(Ok(Flow::Next), |body| self.script(body))
            }
            Statement::Loop { until, condition, body } => {
                for _ in 0..MAX_ROUNDS {
                    self.spend()?;
                    let flow = self.script(condition)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                    if self.status == *until {
                        break;
                    }
                    if let Some(flow) = self.round(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Statement::For { name, words, body } => {
                for value in self.expand(words)? {
                    self.spend()?;
                    self.set(name, &value);
                    if let Some(flow) = self.round(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
        }
    }

    /// Runs one round of a loop. Returns how the loop ends, if it ends.
    fn round(&mut self, body: &Script) -> Result<Option<Flow>, Halt> {
        Ok(match self.script(body)? {
            Flow::Next | Flow::Continue(0..=1) => None,
            Flow::Break(0..=1) => Some(Flow::Next),
            Flow::Break(levels) => Some(Flow::Break(levels - 1)),
            Flow::Continue(levels) => Some(Flow::Continue(levels - 1)),
            other => Some(other),
        })
    }

    fn command(&mut self, words: &[Word], block: Option<&Block>) -> Result<Flow, Halt> {
        self.spend()?;
        let words = self.expand(words)?;
        let Some((mut name, mut arguments)) = words.split_first() else {
            self.status = true;
            return Ok(Flow::Next);
        };
        let mut inverted = false;
        while name == "!"
            && let Some((next, rest)) = arguments.split_first()
        {
            (name, arguments, inverted) = (next, rest, !inverted);
        }
        let done = match self.functions.get(name).cloned() {
            Some(body) => {
                let mut own = vec![name.clone()];
                own.extend_from_slice(arguments);
                Done::Flow(self.call(&body, own)?)
            }
            None => match name.split_once('=') {
                Some((variable, value)) if super::commands::is_name(variable) => {
                    self.set(variable, value);
                    Done::Status(true)
                }
                _ => super::commands::run(self, name, arguments, block)?,
            },
        };
        self.tell_troubles()?;
        match done {
            Done::Status(status) => self.status = status != inverted,
            Done::Error(text) => {
                self.complain(&text)?;
                self.status = inverted;
            }
            Done::Flow(Flow::Next) => self.status = self.status != inverted,
            Done::Flow(flow) => return Ok(flow),
        }
        Ok(Flow::Next)
    }

    /// Expands variables and splits unquoted words.
    pub fn expand(&self, words: &[Word]) -> Result<Vec<String>, Halt> {
        let mut fields: Vec<String> = Vec::new();
        let mut bytes = 0;
        for word in words {
            let mut current: Option<String> = None;
            for part in &word.0 {
                match part {
                    Part::Text { text, .. } => current.get_or_insert_default().push_str(text),
                    Part::Variable { name, quoted } => self.put_in(name, *quoted, &mut current, &mut fields),
                }
                bytes += current.as_ref().map_or(0, String::len);
                if bytes > MAX_WORD_BYTES || fields.len() > MAX_WORDS {
                    return Err(Halt::GaveUp("a command of the boot configuration is far too long".into()));
                }
            }
            fields.extend(current);
        }
        Ok(fields)
    }

    fn put_in(&self, name: &str, quoted: bool, current: &mut Option<String>, fields: &mut Vec<String>) {
        let own = self.arguments.last().expect("the outermost arguments stay");
        if name == "@" && quoted {
            // Each argument is a word by itself; the first and the last are joined to the text around them.
            for (i, argument) in own.iter().skip(1).enumerate() {
                if i > 0 {
                    fields.extend(current.take());
                }
                current.get_or_insert_default().push_str(argument);
            }
            return;
        }
        let value = match name {
            "?" => if self.status { "0" } else { "1" }.to_string(),
            "#" => own.len().saturating_sub(1).to_string(),
            "*" | "@" => own.get(1..).unwrap_or_default().join(" "),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() => {
                digits.parse::<usize>().ok().and_then(|index| own.get(index)).cloned().unwrap_or_default()
            }
            name => self.get(name).to_string(),
        };
        if quoted {
            current.get_or_insert_default().push_str(&value);
            return;
        }
        if value.starts_with(|c: char| c.is_ascii_whitespace()) {
            fields.extend(current.take());
        }
        for (i, piece) in value.split_ascii_whitespace().enumerate() {
            if i > 0 {
                fields.extend(current.take());
            }
            current.get_or_insert_default().push_str(piece);
        }
        if value.ends_with(|c: char| c.is_ascii_whitespace()) {
            fields.extend(current.take());
        }
    }

    /// Runs the lines of the guest file instead of a configuration, then boots the kernel that they loaded.
    pub fn run_commands(&mut self, lines: &[String]) -> Result<Loaded, Halt> {
        let first = super::find::start(self.devices, self.options).unwrap_or_default();
        self.set("root", &first);
        self.set("prefix", &format!("({first})/boot/grub"));
        let text = lines.join("\n");
        if let Err(error) = parse(&text) {
            return Err(Halt::GaveUp(format!("`grub.commands`: {error}")));
        }
        let flow = self.run_text(&text)?;
        match self.loaded.take() {
            Some(loaded) if flow != Flow::Exit => {
                super::files::write_saved(self)?;
                Ok(loaded)
            }
            _ => Err(Halt::GaveUp("`grub.commands` loaded no kernel; their output is on the console".into())),
        }
    }
}
