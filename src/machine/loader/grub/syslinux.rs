//! The configurations of syslinux, isolinux, extlinux and pxelinux (Syslinux wiki, "Config" and "Menu"), as entries of
//! the same menu: `LABEL` with `KERNEL` or `LINUX`, `INITRD`, `APPEND`; `MENU BEGIN`, `INCLUDE`, `DEFAULT`, `TIMEOUT`.
//!
//! **Not modelled**: COM32 modules (a `KERNEL` that is one makes no entry), `LOCALBOOT`, help texts, colours.
//!
//! **Hostile guest**: files, lines and entries are counted, includes within includes and menus within menus bounded.

use super::evaluate::{Done, Ended, Shell, error};
use super::files::MAX_CONFIG;
use super::parse::{parse, quote};

const MAX_FILES: usize = 64;
const MAX_LINES: usize = 20_000;
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 500;

/// A label, or a menu within the menu.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<String>,
    append: Option<String>,
    initrd: Option<String>,
    config: Option<String>,
    is_default: bool,
    hidden: bool,
}

/// What a configuration says.
#[derive(Debug, Default)]
struct Config {
    /// Menus that are open, outermost first, each with its title and the script of its entries so far.
    menus: Vec<(String, String)>,
    label: Option<Label>,
    default: Option<String>,
    timeout: Option<u64>,
    append: Option<String>,
    entries: usize,
    files: usize,
    lines: usize,
    in_text: bool,
    /// `default`s that name a label get the place of that label in the menu.
    labels: Vec<(String, String)>,
}

/// `syslinux_configfile FILE`: adds the entries of a configuration.
pub fn command(shell: &mut Shell<'_>, arguments: &[String]) -> Ended {
    let Some(file) = arguments.iter().find(|word| !word.starts_with('-')) else { return error("filename expected") };
    match add(shell, file) {
        Ok(()) => Ok(Done::Status(true)),
        Err(text) => error(text),
    }
}

/// Adds the entries of the configuration `file` to the menu, with its default and time.
pub fn add(shell: &mut Shell<'_>, file: &str) -> Result<(), String> {
    let mut config = Config { menus: vec![(String::new(), String::new())], ..Config::default() };
    let (device, path) = shell.place(file)?;
    let device = format!("({})", device.name);
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory).to_string();
    read(shell, &mut config, &device, &directory, &path, 0)?;
    config.finish_label(&device, &directory);
    while config.menus.len() > 1 {
        config.end_menu();
    }
    let (_, script) = config.menus.pop().expect("the outermost menu stays");
    let script = parse(&script).map_err(|problem| problem.to_string())?;
    shell.script(&script).map_err(|_| "it ran too long".to_string())?;
    if let Some(default) = &config.default {
        let place = config.labels.iter().find(|(name, _)| name.eq_ignore_ascii_case(default)).map(|(_, place)| place.clone());
        if let Some(place) = place {
            shell.set("default", &place);
        }
    }
    // Tenths of a second, and 0 is for ever.
    match config.timeout {
        Some(0) | None => shell.unset("timeout"),
        Some(tenths) => shell.set("timeout", &tenths.div_ceil(10).to_string()),
    }
    Ok(())
}

/// A path as the configuration means it: below its directory unless it begins with a slash.
fn absolute(device: &str, directory: &str, path: &str) -> String {
    let path = path.replace('\\', "/");
    if path.starts_with('/') { format!("{device}{path}") } else { format!("{device}{directory}/{path}") }
}

/// Where the file is: relative to the configuration or, as the network's media have it, to the root.
fn existing(shell: &Shell<'_>, device: &str, directory: &str, path: &str) -> String {
    let near = absolute(device, directory, path);
    let far = absolute(device, "", path);
    let is_there = |name: &str| shell.locate(name).is_ok_and(|(volume, path)| volume.kind_of(&path).is_ok());
    if !is_there(&near) && is_there(&far) { far } else { near }
}

fn read(shell: &Shell<'_>, config: &mut Config, device: &str, directory: &str, path: &str, depth: usize) -> Result<(), String> {
    config.files += 1;
    if depth > MAX_DEPTH || config.files > MAX_FILES {
        return Err("too many files are included".into());
    }
    let bytes = shell.read_file(&format!("{device}{path}"), MAX_CONFIG)?;
    for line in String::from_utf8_lossy(&bytes).lines() {
        config.lines += 1;
        if config.lines > MAX_LINES {
            return Err("the configuration has too many lines".into());
        }
        if let Some(included) = config.line(shell, device, directory, line.trim()) {
            let name = existing(shell, device, directory, &included);
            let path = name[device.len()..].to_string();
            // A part that a medium lacks is normal: Debian's menus name the graphical ones on every medium.
            if shell.locate(&name).is_ok_and(|(volume, path)| volume.kind_of(&path).is_ok()) {
                read(shell, config, device, directory, &path, depth + 1)?;
            }
        }
    }
    Ok(())
}

/// The first word in lower case, and the rest.
fn split(line: &str) -> (String, &str) {
    let (word, rest) = line.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((line, ""));
    (word.to_ascii_lowercase(), rest.trim())
}

impl Config {
    /// Takes one line; a file to include, if it asks for one.
    fn line(&mut self, shell: &Shell<'_>, device: &str, directory: &str, line: &str) -> Option<String> {
        let (word, rest) = split(line);
        if self.in_text {
            self.in_text = word != "endtext";
            return None;
        }
        match word.as_str() {
            "include" => return Some(rest.split_ascii_whitespace().next().unwrap_or(rest).to_string()),
            "text" => self.in_text = true,
            "default" | "ontimeout" if !rest.is_empty() => self.default = Some(rest.to_string()),
            "timeout" => self.timeout = rest.parse().ok(),
            "label" => {
                self.finish_label(device, directory);
                self.label = Some(Label { name: rest.to_string(), ..Label::default() });
            }
            "menu" => return self.menu(device, directory, rest),
            "append" => match &mut self.label {
                Some(label) => label.append = Some(rest.to_string()),
                None => self.append = Some(rest.to_string()),
            },
            _ => {
                let Some(label) = &mut self.label else { return None };
                match word.as_str() {
                    "kernel" | "linux" => label.kernel = Some(existing(shell, device, directory, rest)),
                    "initrd" => label.initrd = Some(rest.to_string()),
                    "config" => label.config = Some(existing(shell, device, directory, rest)),
                    _ => {}
                }
            }
        }
        if let Some(label) = &mut self.label
            && let Some(append) = label.append.clone()
        {
            // What `append` says of initial RAM disks goes where `initrd` would put it.
            let (own, rest): (Vec<&str>, Vec<&str>) = append.split_ascii_whitespace().partition(|w| w.starts_with("initrd="));
            if let Some(files) = own.last() {
                label.initrd = Some(files["initrd=".len()..].to_string());
                label.append = Some(rest.join(" "));
            }
            if let Some(files) = &label.initrd {
                let files: Vec<String> = files
                    .split(',')
                    .map(|f| if f.starts_with('(') { f.into() } else { existing(shell, device, directory, f) })
                    .collect();
                label.initrd = Some(files.join(","));
            }
        }
        None
    }

    fn menu(&mut self, device: &str, directory: &str, rest: &str) -> Option<String> {
        let (word, rest) = split(rest);
        match word.as_str() {
            "include" => return Some(rest.split_ascii_whitespace().next().unwrap_or(rest).to_string()),
            "begin" if self.menus.len() < MAX_DEPTH => {
                self.finish_label(device, directory);
                self.menus.push((rest.to_string(), String::new()));
            }
            "end" => {
                self.finish_label(device, directory);
                self.end_menu();
            }
            "label" | "title" => {
                let text = rest.replace('^', "");
                match &mut self.label {
                    Some(label) if word == "label" => label.title = Some(text),
                    _ if self.menus.len() > 1 => self.menus.last_mut().expect("just counted").0 = text,
                    _ => {}
                }
            }
            "default" => {
                if let Some(label) = &mut self.label {
                    label.is_default = true;
                }
            }
            "hide" | "separator" | "exit" => {
                if let Some(label) = &mut self.label {
                    label.hidden = true;
                }
            }
            _ => {}
        }
        None
    }

    fn end_menu(&mut self) {
        if self.menus.len() > 1
            && let Some((title, body)) = self.menus.pop()
            && !body.is_empty()
        {
            let outer = &mut self.menus.last_mut().expect("the outermost menu stays").1;
            outer.push_str(&format!("submenu {} {{\n{body}}}\n", quote(&title)));
        }
    }

    fn finish_label(&mut self, device: &str, directory: &str) {
        let Some(label) = self.label.take() else { return };
        let body = match (&label.kernel, &label.config) {
            (Some(kernel), _) if !is_module(kernel) => {
                let append = label.append.as_ref().or(self.append.as_ref()).map(String::as_str).unwrap_or("");
                let words: Vec<String> = append.split_ascii_whitespace().filter(|w| *w != "-").map(quote).collect();
                let mut body = format!("linux {} {}\n", quote(kernel), words.join(" "));
                if let Some(files) = &label.initrd {
                    let files: Vec<String> = files
                        .split(',')
                        .map(|f| if f.starts_with('(') { f.to_string() } else { absolute(device, directory, f) })
                        .map(|f| quote(&f))
                        .collect();
                    body.push_str(&format!("initrd {}\n", files.join(" ")));
                }
                body
            }
            (None, Some(config)) => format!("syslinux_configfile {}\n", quote(config)),
            _ => return,
        };
        if label.hidden && !label.is_default || self.entries >= MAX_ENTRIES || label.config.is_some() {
            return;
        }
        self.entries += 1;
        let title = label.title.clone().unwrap_or_else(|| label.name.clone());
        let outer: Vec<String> = self.menus[1..].iter().map(|(title, _)| title.clone()).collect();
        let place: Vec<String> = outer.into_iter().chain([label.name.clone()]).collect();
        let place = place.join(">");
        if label.is_default {
            self.default = Some(label.name.clone());
        }
        self.labels.push((label.name.clone(), place));
        let menu = &mut self.menus.last_mut().expect("the outermost menu stays").1;
        menu.push_str(&format!("menuentry {} --id {} {{\n{body}}}\n", quote(&title), quote(&label.name)));
    }
}

/// Modules of syslinux itself, which no kernel is.
fn is_module(kernel: &str) -> bool {
    let name = kernel.to_ascii_lowercase();
    [".c32", ".com", ".cbt", ".bss", ".bin", ".0", ".img"].iter().any(|end| name.ends_with(end))
}
