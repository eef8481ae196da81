//! The configurations of syslinux, isolinux, extlinux and pxelinux (Syslinux 6.03, `doc/syslinux.txt` and
//! `doc/menu.txt`; `com32/menu/readconfig.c`), as entries of the same menu: `LABEL` with `KERNEL` or `LINUX`, `INITRD`,
//! `APPEND`, `CONFIG`, `LOCALBOOT`; `MENU BEGIN`, `HIDE`, `DISABLE`, `SEPARATOR`, `HIDDEN`; `INCLUDE`; and what starts
//! without a user: `DEFAULT`, `UI`, `PROMPT`, `TIMEOUT`, `TOTALTIMEOUT`, `ONTIMEOUT`, `MENU DEFAULT`.
//!
//! Syslinux boots `DEFAULT` at once unless `PROMPT 1` or a menu (`UI`, or a COM32 module as `DEFAULT`) asks; `TIMEOUT`
//! is the time of the prompt or the menu.
//!
//! **Not modelled**: COM32 modules other than menus and `mboot.c32` (a label with one makes no entry), boot sectors,
//! help texts, colours, `MENU GOTO` and `MENU START`, `F1` to `F12`. `LOCALBOOT` continues with the next disk's
//! configuration.
//!
//! **Hostile guest**: files, lines and entries are counted; the nesting of includes and of menus is bounded.

use super::evaluate::{Done, Ended, Shell, error};
use super::files::MAX_CONFIG;
use super::menu;
use super::parse::{parse, quote};
use crate::machine::loader::volume::NodeKind;

const MAX_FILES: usize = 64;
const MAX_LINES: usize = 20_000;
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 500;

/// The target that a label starts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Starts {
    /// `KERNEL`: the end of the name decides about its kind; the rest of the line are arguments.
    Kernel(String),
    /// `LINUX`.
    Linux(String),
    /// Another configuration.
    Config(String),
    /// The next disk.
    Local,
    /// A module, a boot sector, or the way out of a menu.
    Other,
}

/// A label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Label {
    name: String,
    title: Option<String>,
    starts: Option<Starts>,
    append: Option<String>,
    initrd: Option<String>,
    is_default: bool,
    hidden: bool,
    disabled: bool,
}

/// An item of a menu.
#[derive(Debug)]
enum Item {
    Label(Label),
    Menu(Menu),
}

/// A menu and its title.
#[derive(Debug, Default)]
struct Menu {
    title: String,
    items: Vec<Item>,
}

/// Contents of a configuration.
#[derive(Debug, Default)]
struct Config {
    /// Device of paths without a device.
    device: String,
    /// Directory of paths without a slash.
    directory: String,
    /// Menus that are open, outermost first.
    menus: Vec<Menu>,
    label: Option<Label>,
    ui: bool,
    prompt: bool,
    default: Option<String>,
    on_timeout: Option<String>,
    /// Tenths of a second; 0 is forever.
    timeout: u64,
    total_timeout: u64,
    menu_hidden: bool,
    append: Option<String>,
    entries: usize,
    files: usize,
    lines: usize,
    in_text: bool,
}

/// Runs `syslinux_source FILE`: adds the entries of a configuration to this menu.
pub fn source(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let Some(file) = arguments.iter().find(|word| !word.starts_with('-')) else { return error("filename expected") };
    match add(shell, file) {
        Ok(()) => Ok(Done::Status(true)),
        Err(text) => error(text),
    }
}

/// Runs `syslinux_configfile FILE`: shows the menu of another configuration.
pub fn configfile(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let Some(file) = arguments.iter().find(|word| !word.starts_with('-')) else { return error("filename expected") };
    menu::configure_with(shell, |shell| {
        if let Err(text) = add(shell, file) {
            shell.complain(&text)?;
        }
        Ok(super::evaluate::Flow::Next)
    })
}

/// Adds the entries of the configuration `file` to the menu, with its default and time.
pub fn add(shell: &mut Shell<'_>, file: &str) -> Result<(), String> {
    let (device, path) = shell.split_name(file)?;
    let mut config = Config {
        device: format!("({})", device.name),
        directory: path.rsplit_once('/').map_or("", |(directory, _)| directory).to_string(),
        menus: vec![Menu::default()],
        ..Config::default()
    };
    read(shell, &mut config, &path, 0)?;
    config.finish_label();
    while config.menus.len() > 1 {
        config.end_menu();
    }
    let menu = config.menus.pop().expect("the outermost menu stays");
    let mut output = Output { shell, config: &config, labels: Vec::new() };
    let chosen = output.choose(&menu);
    let mut script = String::new();
    output.menu(&menu, &[], chosen.as_ref().map(|chosen| chosen.name.as_str()), &mut script);
    let place = chosen.as_ref().and_then(|chosen| output.place_of(chosen, &mut script));
    let parsed = parse(&script).map_err(|problem| problem.to_string())?;
    shell.script(&parsed).map_err(|_| "it ran too long".to_string())?;
    if let Some(place) = &place {
        shell.set("default", place);
    }
    match config.waits(place.is_some()) {
        Some(tenths) => shell.set("timeout", &tenths.div_ceil(10).to_string()),
        None => shell.unset("timeout"),
    }
    if config.menu_hidden {
        shell.set("timeout_style", "hidden");
    }
    match chosen {
        Some(chosen) if place.is_none() => {
            Err(format!("`{}` is neither a label nor a kernel: it is not the default", chosen.text))
        }
        _ => Ok(()),
    }
}

/// The target that boots by itself: a label or a kernel, and more arguments for it.
#[derive(Debug)]
struct Chosen {
    name: String,
    arguments: Vec<String>,
    /// Text in the configuration.
    text: String,
}

fn read(shell: &Shell<'_>, config: &mut Config, path: &str, depth: usize) -> Result<(), String> {
    config.files += 1;
    if depth > MAX_DEPTH || config.files > MAX_FILES {
        return Err("too many files are included".into());
    }
    let bytes = shell.read_file(&format!("{}{path}", config.device), MAX_CONFIG)?;
    for line in String::from_utf8_lossy(&bytes).lines() {
        config.lines += 1;
        if config.lines > MAX_LINES {
            return Err("the configuration has too many lines".into());
        }
        if let Some(included) = config.line(line.trim()) {
            let name = config.existing(shell, &included);
            // A missing part is normal: Debian's menus name the graphical parts on every medium.
            if shell.kind_of(&name).is_some() {
                let path = name[config.device.len()..].to_string();
                read(shell, config, &path, depth + 1)?;
            }
        }
    }
    Ok(())
}

/// Returns the first word in lower case, and the rest.
fn split(line: &str) -> (String, &str) {
    let (word, rest) = line.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((line, ""));
    (word.to_ascii_lowercase(), rest.trim())
}

fn first_word(text: &str) -> &str {
    text.split_ascii_whitespace().next().unwrap_or_default()
}

/// Returns a command line's words, up to a remark. Syslinux has no remarks after a word and passes them on.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_ascii_whitespace().take_while(|word| !word.starts_with('#'))
}

impl Config {
    /// Parses one line. Returns a file to include, if the line asks for one.
    fn line(&mut self, line: &str) -> Option<String> {
        let (word, rest) = split(line);
        if self.in_text {
            self.in_text = word != "endtext";
            return None;
        }
        match word.as_str() {
            "include" => return Some(first_word(rest).to_string()),
            "text" => self.in_text = true,
            "default" if is_menu(first_word(rest)) => self.ui = true,
            "default" if !rest.is_empty() => self.default = Some(rest.to_string()),
            "ontimeout" if !rest.is_empty() => self.on_timeout = Some(rest.to_string()),
            "ui" if !rest.is_empty() => self.ui = true,
            "prompt" => self.prompt = first_word(rest).parse::<u64>().is_ok_and(|flag| flag != 0),
            "timeout" => self.timeout = first_word(rest).parse().unwrap_or(0),
            "totaltimeout" => self.total_timeout = first_word(rest).parse().unwrap_or(0),
            "label" => {
                self.finish_label();
                self.label = Some(Label { name: first_word(rest).to_string(), ..Label::default() });
            }
            "menu" => return self.menu(rest),
            "append" => match &mut self.label {
                Some(label) => label.append = Some(rest.to_string()),
                None => self.append = Some(rest.to_string()),
            },
            _ => {
                if let Some(label) = &mut self.label {
                    label.line(&word, rest);
                }
            }
        }
        None
    }

    fn menu(&mut self, rest: &str) -> Option<String> {
        let (word, rest) = split(rest);
        match (word.as_str(), &mut self.label) {
            ("include", _) => return Some(first_word(rest).to_string()),
            ("begin", _) if self.menus.len() < MAX_DEPTH => {
                self.finish_label();
                self.menus.push(Menu { title: rest.to_string(), items: Vec::new() });
            }
            ("end", _) => {
                self.finish_label();
                self.end_menu();
            }
            // This is an empty line of the menu. It ends the label before it.
            ("separator", _) => self.finish_label(),
            ("hidden", _) => self.menu_hidden = true,
            ("label", Some(label)) => label.title = Some(rest.replace('^', "")),
            ("label" | "title", _) if self.menus.len() > 1 => {
                self.menus.last_mut().expect("just counted").title = rest.replace('^', "");
            }
            ("default", Some(label)) => label.is_default = true,
            ("hide", Some(label)) => label.hidden = true,
            ("disable", Some(label)) => label.disabled = true,
            ("exit" | "quit" | "goto", Some(label)) => label.starts = Some(Starts::Other),
            _ => {}
        }
        None
    }

    fn end_menu(&mut self) {
        if self.menus.len() > 1
            && let Some(menu) = self.menus.pop()
            && !menu.items.is_empty()
        {
            self.menus.last_mut().expect("the outermost menu stays").items.push(Item::Menu(menu));
        }
    }

    fn finish_label(&mut self) {
        let Some(label) = self.label.take() else { return };
        if self.entries < MAX_ENTRIES && !label.name.is_empty() {
            self.entries += 1;
            self.menus.last_mut().expect("the outermost menu stays").items.push(Item::Label(label));
        }
    }

    /// Returns the tenths of a second until the default boots; `None` waits for a user.
    fn waits(&self, has_default: bool) -> Option<u64> {
        if !self.ui && !self.prompt && has_default {
            return Some(0);
        }
        [self.timeout, self.total_timeout].into_iter().find(|&tenths| tenths > 0)
    }

    /// Returns an absolute path: below the configuration's directory unless it begins with a slash.
    fn absolute(&self, directory: &str, path: &str) -> String {
        let path = path.replace('\\', "/");
        let device = &self.device;
        if path.starts_with('/') { format!("{device}{path}") } else { format!("{device}{directory}/{path}") }
    }

    /// Returns the path of an existing file: relative to the configuration or, as on network media, to the root.
    fn existing(&self, shell: &Shell<'_>, path: &str) -> String {
        let near = self.absolute(&self.directory, path);
        let far = self.absolute("", path);
        if far != near && shell.kind_of(&near).is_none() && shell.kind_of(&far).is_some() { far } else { near }
    }
}

impl Label {
    fn line(&mut self, word: &str, rest: &str) {
        let rest = rest.to_string();
        match word {
            "kernel" => self.starts = Some(Starts::Kernel(rest)),
            "linux" => self.starts = Some(Starts::Linux(rest)),
            "config" => self.starts = Some(Starts::Config(rest)),
            // -1 gives up instead (doc/syslinux.txt, LOCALBOOT).
            "localboot" => self.starts = Some(if rest == "-1" { Starts::Other } else { Starts::Local }),
            "com32" => self.starts = Some(Starts::Kernel(rest)),
            "boot" | "bss" | "pxe" | "fdimage" | "comboot" => self.starts = Some(Starts::Other),
            "initrd" => self.initrd = Some(rest),
            _ => {}
        }
    }

    /// Returns the target. A label without a kernel starts the kernel of its own name (doc/syslinux.txt, LABEL).
    fn starts(&self) -> Starts {
        self.starts.clone().unwrap_or_else(|| Starts::Kernel(self.name.clone()))
    }
}

/// Conversion of a configuration into a script of GRUB.
struct Output<'s, 'd> {
    shell: &'s Shell<'d>,
    config: &'s Config,
    /// Labels that have entries, and their positions in the menu as `default` names them.
    labels: Vec<(Label, String)>,
}

impl Output<'_, '_> {
    /// Returns the target that boots when the user does not choose.
    fn choose(&self, menu: &Menu) -> Option<Chosen> {
        let marked = || first_label(menu, &|label| label.is_default && !label.disabled).map(|label| label.name.clone());
        let default = self.config.default.clone();
        let text = match self.config.ui {
            true => self.config.on_timeout.clone().or_else(marked).or(default),
            false if self.config.prompt => self.config.on_timeout.clone().or(default).or_else(marked),
            false => default.or_else(marked),
        }?;
        let mut words = words(&text).map(str::to_string);
        let name = words.next()?;
        // A name with other letter case selects the label too.
        let same = |exact: bool| {
            first_label(menu, &|label| if exact { label.name == name } else { label.name.eq_ignore_ascii_case(&name) })
        };
        let name = same(true).or_else(|| same(false)).map_or(name.clone(), |label| label.name.clone());
        Some(Chosen { name, arguments: words.collect(), text: text.trim().to_string() })
    }

    /// Writes the entries of a menu. A hidden label gets one only if it boots by itself.
    fn menu(&mut self, menu: &Menu, outer: &[String], chosen: Option<&str>, script: &mut String) {
        for item in &menu.items {
            match item {
                Item::Label(label) if label.disabled || label.hidden && chosen != Some(label.name.as_str()) => {}
                Item::Label(label) => {
                    let Some(body) = self.body(label, &[]) else { continue };
                    let place: Vec<String> = outer.iter().chain([&label.name]).map(|part| part.replace('>', ">>")).collect();
                    self.labels.push((label.clone(), place.join(">")));
                    let title = label.title.as_ref().unwrap_or(&label.name);
                    script.push_str(&format!("menuentry {} --id {} {{\n{body}}}\n", quote(title), quote(&label.name)));
                }
                Item::Menu(inner) => {
                    let outer: Vec<String> = outer.iter().chain([&inner.title]).cloned().collect();
                    let mut body = String::new();
                    self.menu(inner, &outer, chosen, &mut body);
                    if !body.is_empty() {
                        script.push_str(&format!("submenu {} {{\n{body}}}\n", quote(&inner.title)));
                    }
                }
            }
        }
    }

    /// Returns the position in the menu of the target that boots by itself. Adds an entry for a kernel that no label
    /// names, and for a label with more arguments.
    fn place_of(&mut self, chosen: &Chosen, script: &mut String) -> Option<String> {
        let found = self.labels.iter().find(|(label, _)| label.name == chosen.name).cloned();
        let label = match found {
            Some((_, place)) if chosen.arguments.is_empty() => return Some(place),
            Some((label, _)) => label,
            None => {
                let name = self.config.existing(self.shell, &chosen.name);
                if self.shell.kind_of(&name) != Some(NodeKind::File) {
                    return None;
                }
                Label { name: chosen.name.clone(), ..Label::default() }
            }
        };
        let body = self.body(&label, &chosen.arguments)?;
        let title = std::iter::once(&chosen.name).chain(&chosen.arguments).cloned().collect::<Vec<_>>().join(" ");
        let id = "syslinux-default";
        script.push_str(&format!("menuentry {} --id {id} {{\n{body}}}\n", quote(&title)));
        Some(id.to_string())
    }

    /// Returns the script of an entry, or `None` if this loader cannot run it.
    fn body(&self, label: &Label, more: &[String]) -> Option<String> {
        let (kernel, is_linux) = match label.starts() {
            Starts::Kernel(kernel) => (kernel, false),
            Starts::Linux(kernel) => (kernel, true),
            Starts::Config(file) => {
                let file = self.config.existing(self.shell, first_word(&file));
                return Some(format!("syslinux_configfile {}\n", quote(&file)));
            }
            Starts::Local => return Some("exit\n".into()),
            Starts::Other => return None,
        };
        let append = label.append.as_ref().or(self.config.append.as_ref()).map(|text| text.trim()).unwrap_or_default();
        let append = if append == "-" { "" } else { append };
        let (file, own) = kernel.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((&kernel, ""));
        let words: Vec<&str> =
            own.split_ascii_whitespace().chain(append.split_ascii_whitespace()).chain(more.iter().map(String::as_str)).collect();
        if file.is_empty() {
            return None;
        }
        match file.to_ascii_lowercase() {
            name if !is_linux && name.rsplit('/').next() == Some("mboot.c32") => self.multiboot(&words),
            name if !is_linux && is_module(&name) => None,
            _ => Some(self.linux(file, &words, label.initrd.as_deref())),
        }
    }

    fn linux(&self, file: &str, words: &[&str], initrd: Option<&str>) -> String {
        // Initial RAM disks in the command line are loaded as by `initrd`. The last word counts.
        let (named, rest): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| word.starts_with("initrd="));
        let files = initrd.or(named.last().map(|word| &word["initrd=".len()..])).unwrap_or_default();
        let quoted: Vec<String> = rest.iter().map(|word| quote(word)).collect();
        let mut body = format!("linux {} {}\n", quote(&self.config.existing(self.shell, file)), quoted.join(" "));
        let files: Vec<String> = files
            .split(',')
            .map(str::trim)
            .filter(|file| !file.is_empty())
            .map(|file| quote(&self.config.existing(self.shell, file)))
            .collect();
        if !files.is_empty() {
            body.push_str(&format!("initrd {}\n", files.join(" ")));
        }
        body
    }

    /// Converts `mboot.c32 KERNEL ARGUMENTS --- MODULE ARGUMENTS ...` (doc/mboot.txt).
    fn multiboot(&self, words: &[&str]) -> Option<String> {
        let mut body = String::new();
        for (number, part) in words.split(|word| *word == "---").enumerate() {
            let (file, arguments) = part.split_first()?;
            let command = if number == 0 { "multiboot" } else { "module" };
            let arguments: Vec<String> = arguments.iter().map(|word| quote(word)).collect();
            let file = quote(&self.config.existing(self.shell, file));
            body.push_str(&format!("{command} {file} {}\n", arguments.join(" ")));
        }
        Some(body)
    }
}

/// Returns the first label of a menu and its submenus for which `holds` is true.
fn first_label<'a>(menu: &'a Menu, holds: &dyn Fn(&Label) -> bool) -> Option<&'a Label> {
    menu.items.iter().find_map(|item| match item {
        Item::Label(label) => holds(label).then_some(label),
        Item::Menu(inner) => first_label(inner, holds),
    })
}

/// Returns whether a module shows a menu.
fn is_menu(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".c32")
}

/// Returns whether the end of the name says that it is not a kernel (doc/syslinux.txt, KERNEL).
fn is_module(kernel: &str) -> bool {
    [".c32", ".com", ".cbt", ".bss", ".bs", ".bin", ".0", ".img"].iter().any(|end| kernel.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let mut config = Config { menus: vec![Menu::default()], ..Config::default() };
        for line in text.lines() {
            config.line(line.trim());
        }
        config.finish_label();
        config
    }

    #[test]
    fn the_time_is_that_of_the_prompt_or_the_menu_and_without_both_there_is_none_to_wait() {
        let waits = |text: &str| config(text).waits(true);
        assert_eq!(waits("DEFAULT linux\n"), Some(0));
        assert_eq!(waits("DEFAULT linux\nTIMEOUT 50\nPROMPT 0\n"), Some(0));
        assert_eq!(waits("DEFAULT linux\nTIMEOUT 50\nPROMPT 1\n"), Some(50));
        assert_eq!(waits("DEFAULT linux\nPROMPT 1\n"), None);
        assert_eq!(waits("DEFAULT linux\nPROMPT 1\nTOTALTIMEOUT 300\n"), Some(300));
        assert_eq!(waits("UI menu.c32\nTIMEOUT 10\n"), Some(10));
        assert_eq!(waits("DEFAULT vesamenu.c32\nTIMEOUT 0\n"), None);
        assert_eq!(config("LABEL a\n").waits(false), None);
    }

    #[test]
    fn a_separator_ends_the_label_before_it_and_a_label_without_a_kernel_is_one() {
        let config = config("LABEL one two\nMENU SEPARATOR\nKERNEL none\nLABEL b\n KERNEL x\n MENU HIDE\n");
        let [Item::Label(one), Item::Label(b)] = config.menus[0].items.as_slice() else { panic!("{config:?}") };
        assert_eq!((one.name.as_str(), one.starts(), one.hidden), ("one", Starts::Kernel("one".into()), false));
        assert_eq!((b.starts(), b.hidden), (Starts::Kernel("x".into()), true));
    }
}
