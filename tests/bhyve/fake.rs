//! A made-up FreeBSD: what bhyve, its loaders and the tools of the host do, as far as a manager of guests sees it.
//!
//! The words and exit codes are those of the programs' sources: `sbin/ifconfig/ifclone.c`, `sbin/kldload/kldload.c`,
//! `sbin/sysctl/sysctl.c`, `usr.sbin/bhyvectl/bhyvectl.c`, `usr.sbin/jls/jls.c`, `usr.sbin/jexec/jexec.c`,
//! `usr.bin/rctl/rctl.c`, `stand/userboot/userboot.h`, `cmd/zfs/zfs_main.c`, and what a FreeBSD 13.2 was seen to do.
//!
//! A guest's part stands in the file `parts/NAME`, one sentence a boot between `/`, the last one repeated: `say:TEXT`
//! (to the console), `words:TEXT` (to standard error), `sleep:MS`, `exit:N`, `signal:N`, `deaf` (no power button), `early`
//! (it has not turned ACPI on yet), `stuck` (nothing but SIGKILL), `echo`. A loader's part, `loaders/NAME`, knows `say`, `words`, `exit`, `wait`.
//! `_` is a space. Without an end a guest runs until it is told.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[path = "fake_zfs.rs"]
mod zfs;

/// Set for a process in a jail: its name.
const JAIL: &str = "FAKE_JAIL";
/// Set for a process that plays a program.
const PROGRAM: &str = "FAKE_PROGRAM";
/// The words of a failure that comes only after a while.
pub const HANGS: &str = "hangs";
/// The words of a call that fails because of its number.
pub const MADE_TO_FAIL: &str = "made to fail";
/// What changes the shape of what ifconfig(8), and every program with libxo(3), prints.
pub const FORMATS: [&str; 2] = ["IFCONFIG_FORMAT", "LIBXO_OPTIONS"];
/// Every program that there is.
pub const PROGRAMS: &[&str] = &[
    "uname",
    "kldstat",
    "kldload",
    "sysctl",
    "ifconfig",
    "bhyve",
    "bhyvectl",
    "bhyveload",
    "grub-bhyve",
    "zfs",
    "sysrc",
    "jail",
    "jls",
    "jexec",
    "rctl",
    "swtpm",
    "ps",
    "nice",
    "pciconf",
    "acpidump",
    "iscsictl",
    "ngctl",
    "netstat",
    "service",
];

/// Not a test of its own: the scripts of the made-up host start this binary again with this test's name.
#[test]
fn program_of_the_other_tests() {
    if std::env::var_os(PROGRAM).is_some() {
        std::process::exit(Fake::new().play());
    }
}

/// Writes the script of a program into the host's directory of programs.
pub fn install(root: &Path, program: &str) {
    use std::os::unix::fs::PermissionsExt;
    let this = std::env::current_exe().expect("this test");
    // Standard output is the test runner's; what the program prints goes to descriptor 9, which is the caller's.
    let script = format!(
        "#!/bin/sh\nFAKE_PROGRAM={program} FAKE_ROOT='{}' FAKE_ARGUMENTS=\"$(for a in \"$@\"; do printf '%s\\037' \"$a\"; done)\"\n\
         export FAKE_PROGRAM FAKE_ROOT FAKE_ARGUMENTS\n\
         exec '{}' --exact fake::program_of_the_other_tests --nocapture 9>&1 >/dev/null\n",
        root.display(),
        this.display()
    );
    let path = root.join("bin").join(program);
    fs::write(&path, script).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
}

struct Fake {
    root: PathBuf,
    program: String,
    arguments: Vec<String>,
}

/// SIGTERM has come.
static TERM: AtomicBool = AtomicBool::new(false);

extern "C" fn note_term(_: i32) {
    TERM.store(true, Ordering::SeqCst);
}

impl Fake {
    fn new() -> Fake {
        let text = std::env::var("FAKE_ARGUMENTS").unwrap_or_default();
        Fake {
            root: std::env::var_os("FAKE_ROOT").expect("set").into(),
            program: std::env::var(PROGRAM).expect("set"),
            arguments: text.split_terminator('\u{1f}').map(str::to_owned).collect(),
        }
    }

    /// As `netstat -I NAME -b -n` prints one interface: the link, then an address on it.
    fn netstat(&self, words: &[&str]) -> i32 {
        let name = words[1];
        self.print(&format!(
            "Name    Mtu Network       Address              Ipkts Ierrs Idrop     Ibytes    Opkts Oerrs     Obytes  Coll\n\
             {name}   1500 <Link#7>      58:9c:fc:10:ff:8e       12     0     0       3456       78     0       9012     0\n\
             {name}      - 192.0.2.0/24  192.0.2.1                1     -     -          1        1     -          1     -\n"
        ));
        0
    }

    fn print(&self, text: &str) {
        let mut out = File::options().write(true).open("/dev/fd/9").expect("the caller's output");
        // A caller that reads nothing is none of ours.
        let _ = out.write_all(text.as_bytes());
    }

    fn fail(&self, code: i32, words: &str) -> i32 {
        eprintln!("{}: {words}", self.program);
        code
    }

    fn state(&self, name: &str) -> PathBuf {
        self.root.join("state").join(name)
    }

    fn device(&self, path: &str) -> PathBuf {
        match path.starts_with(&*self.root.to_string_lossy()) {
            true => PathBuf::from(path),
            false => self.root.join(path.trim_start_matches('/')),
        }
    }

    fn play(&self) -> i32 {
        let call = std::iter::once(&self.program).chain(&self.arguments).cloned().collect::<Vec<_>>().join(" ");
        let number = self.note(&call);
        if let Some((code, words)) = self.wanted_failure(&call) {
            if words == HANGS {
                std::thread::sleep(Duration::from_secs(3));
            }
            return self.fail(code, &words);
        }
        let numbered = fs::read_to_string(self.state("fail-call")).unwrap_or_default();
        let Some((_, when)) = numbered.split_once(' ').filter(|(wanted, _)| *wanted == number.to_string()) else {
            return self.do_it();
        };
        fs::write(self.state("failed-call"), &call).expect("writes");
        if when == "after" {
            self.do_it();
        }
        self.fail(1, MADE_TO_FAIL)
    }

    /// Notes a call, and says which one it is, counted from 1.
    fn note(&self, call: &str) -> usize {
        let mut log = File::options().create(true).read(true).append(true).open(self.state("calls")).expect("opens");
        log.lock().expect("locks");
        log.write_all(format!("{call}\n").as_bytes()).expect("writes");
        fs::read_to_string(self.state("calls")).expect("reads").lines().count()
    }

    fn do_it(&self) -> i32 {
        let words: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        if ["ifconfig", "netstat", "iscsictl"].contains(&self.program.as_str())
            && let Some(name) = FORMATS.iter().find(|name| std::env::var_os(name).is_some())
        {
            return self.fail(1, &format!("{name} is set, and this would be printed in another shape"));
        }
        match self.program.as_str() {
            "uname" => self.uname(&words),
            "kldstat" => i32::from(!self.state("modules").join(words[words.len() - 1]).exists()),
            "kldload" => self.kldload(words[words.len() - 1]),
            "sysctl" => self.sysctl(&words),
            "ifconfig" => self.ifconfig(&words),
            "bhyvectl" => self.bhyvectl(&words),
            "bhyveload" | "grub-bhyve" => self.loader(&words),
            "bhyve" => self.bhyve(&words),
            "zfs" => self.zfs(&words),
            "jls" => self.jls(&words),
            "jexec" => self.jexec(&words),
            "nice" => self.become_program("", &words[2..]),
            "rctl" => self.rctl(),
            "iscsictl" => self.iscsictl(&words),
            "ngctl" => self.ngctl(&words),
            "netstat" => self.netstat(&words),
            "sysrc" => self.sysrc(&words),
            "acpidump" | "pciconf" => {
                self.print(&fs::read_to_string(self.state(&self.program)).unwrap_or_default());
                0
            }
            "swtpm" => self.swtpm(&words),
            "ps" => self.ps(words[words.len() - 1]),
            _ => 0,
        }
    }

    /// A failure that a test asked for, once: the files of `fail` hold a piece of the call, a code and words.
    fn wanted_failure(&self, call: &str) -> Option<(i32, String)> {
        for entry in fs::read_dir(self.state("fail")).ok()?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let mut lines = text.lines();
            let (piece, code, words) = (lines.next()?, lines.next()?, lines.next().unwrap_or_default());
            // Whoever removes the file has the failure.
            if call.contains(piece) && fs::remove_file(entry.path()).is_ok() {
                return Some((code.parse().expect("a number"), words.to_owned()));
            }
        }
        None
    }

    fn uname(&self, words: &[&str]) -> i32 {
        self.print(match words.first() {
            Some(&"-r") => "13.2-RELEASE\n",
            Some(&"-U" | &"-K") => "1302001\n",
            Some(&"-m" | &"-p") => "amd64\n",
            _ => "FreeBSD\n",
        });
        0
    }

    fn kldload(&self, module: &str) -> i32 {
        if self.state("built-in").join(module).exists() {
            return self.fail(1, &format!("can't load {module}: module already loaded or in kernel"));
        }
        fs::write(self.state("modules").join(module), "").expect("writes");
        0
    }

    fn sysctl(&self, words: &[&str]) -> i32 {
        let last = words[words.len() - 1];
        let (name, value) = last.split_once('=').map_or((last, None), |(name, value)| (name, Some(value)));
        let file = self.state("sysctl").join(name);
        // vmm(4)'s own come with it.
        if name.starts_with("hw.vmm.") && !self.state("modules/vmm").exists() {
            return self.fail(1, &format!("unknown oid '{name}'"));
        }
        if name == "hw.vmm.create" {
            // What may not be read is passed over in silence, see `host::vmm`.
            self.print(if self.state("no-vmm-in-this-jail").exists() { "" } else { "beavis\n" });
            return 0;
        }
        let Ok(old) = fs::read_to_string(&file) else { return self.fail(1, &format!("unknown oid '{name}'")) };
        match value {
            Some(value) => {
                fs::write(&file, value).expect("writes");
                self.print(&format!("{name}: {old} -> {value}\n"));
            }
            None if words.contains(&"-n") => self.print(&format!("{old}\n")),
            None => self.print(&format!("{name}: {old}\n")),
        }
        0
    }

    /// What a jail of the test's says of itself.
    fn of_jail(&self, jail: &str, parameter: &str) -> Option<String> {
        let text = fs::read_to_string(self.state("jails").join(jail)).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix(parameter)?.strip_prefix('=')?.to_owned()))
    }

    /// Where the interfaces of this process's network stack are: the host's, or those of a jail with `vnet`.
    fn interfaces(&self) -> PathBuf {
        match std::env::var(JAIL).ok().filter(|jail| self.of_jail(jail, "vnet").as_deref() == Some("new")) {
            Some(jail) => self.state(&format!("interfaces-{jail}")),
            None => self.state("interfaces"),
        }
    }

    fn ifconfig(&self, words: &[&str]) -> i32 {
        let interfaces = self.interfaces();
        let show = |name: &str| {
            fs::read_to_string(interfaces.join(name))
                .ok()
                .map(|text| format!("{name}: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> metric 0 mtu 1500\n{text}"))
        };
        match words {
            ["-a"] => {
                let mut names: Vec<_> =
                    fs::read_dir(&interfaces).expect("lists").flatten().map(|entry| entry.file_name()).collect();
                names.sort();
                names.iter().filter_map(|name| show(&name.to_string_lossy())).for_each(|text| self.print(&text));
                0
            }
            [kind @ ("tap" | "vmnet"), "create", rest @ ..] => {
                // Units are the kernel's, whatever the stack.
                for number in if interfaces.ends_with("interfaces") { 0 } else { 100 }.. {
                    let Ok(mut file) = File::create_new(interfaces.join(format!("{kind}{number}"))) else { continue };
                    for pair in rest.chunks(2) {
                        writeln!(file, "\t{}: {}", pair[0], pair[1]).expect("writes");
                    }
                    self.print(&format!("{kind}{number}\n"));
                    break;
                }
                0
            }
            [name, ..] if !interfaces.join(name).exists() => self.fail(1, &format!("interface {name} does not exist")),
            [name] => {
                self.print(&show(name).expect("exists"));
                0
            }
            [name, "destroy"] => {
                fs::remove_file(interfaces.join(name)).expect("exists");
                0
            }
            [_, "addm" | "span" | "private", member] if !interfaces.join(member).exists() => {
                self.fail(1, &format!("BRDGADD {member}: No such file or directory"))
            }
            [bridge, what @ ("addm" | "span" | "private"), member] => {
                let mut file = File::options().append(true).open(interfaces.join(bridge)).expect("opens");
                writeln!(file, "\t{what}: {member}").expect("writes");
                0
            }
            _ => 0,
        }
    }

    fn bhyvectl(&self, words: &[&str]) -> i32 {
        let Some(name) = words.iter().find_map(|word| word.strip_prefix("--vm=")) else {
            let suspend = if self.state("snapshot").exists() { "       [--suspend=<file>]\n" } else { "" };
            eprintln!("Usage: bhyvectl --vm=<vmname>\n       [--create]\n       [--destroy]\n{suspend}");
            return 1;
        };
        let (directory, orders) = (self.root.join("dev/vmm"), self.state("orders"));
        let has = |word: &str| words.contains(&word);
        if has("--create") {
            fs::create_dir_all(&directory).expect("makes");
            if !self.is_going(name) && File::create_new(directory.join(name)).is_ok() {
                return 0;
            }
            self.print("errno = 17\n");
            return 255;
        }
        if !directory.join(name).exists() {
            // 13.2's words; later ones are `VM:NAME is not created.`
            match self.state("release-15").exists() {
                true => eprintln!("VM:{name} is not created."),
                false => eprintln!("vm_open: {name} could not be opened: No such file or directory"),
            }
            return 1;
        }
        if has("--destroy") {
            if self.state("vanishes").exists() {
                // Somebody else's call was faster.
                fs::remove_file(directory.join(name)).expect("exists");
                eprintln!("vm_open: {name} could not be opened: No such file or directory");
                return 1;
            }
            if self.state("goes-late").exists() {
                fs::write(self.state("going").join(name), "").expect("writes");
            }
            fs::remove_file(directory.join(name)).expect("exists");
        }
        if has("--get-stats") {
            let cpu = words.iter().find_map(|word| word.strip_prefix("--cpu=")).unwrap_or("0");
            self.print(&format!("vcpu{cpu} stats:\nvm exits due to hlt                     \t1{cpu}\n"));
            if cpu == "0" {
                self.print("Resident memory                         \t268435456\n");
            }
        }
        let order = ["--force-poweroff", "--force-reset", "--inject-nmi"].into_iter().find(|order| has(order));
        if let Some(order) = order {
            fs::write(orders.join(name), order).expect("writes");
        }
        if let Some(file) = words.iter().find_map(|word| word.strip_prefix("--suspend=")) {
            for suffix in ["", ".kern", ".meta"] {
                fs::write(format!("{file}{suffix}"), "saved").expect("writes");
            }
            fs::write(orders.join(name), "--suspend").expect("writes");
        }
        0
    }

    /// Whether the kernel still frees the memory of a machine of this name, whose device is gone.
    fn is_going(&self, name: &str) -> bool {
        let age = fs::metadata(self.state("going").join(name)).and_then(|metadata| metadata.modified());
        age.is_ok_and(|at| at.elapsed().unwrap_or_default() < Duration::from_secs(1))
    }

    /// The sentence of a guest's part for this boot.
    fn part(&self, kind: &str, name: &str) -> Vec<String> {
        let part = self.part_of_this_boot(kind, name);
        fs::write(self.state(kind).join(format!("{name}.count")), (self.boot(kind, name) + 1).to_string()).expect("writes");
        part
    }

    fn boot(&self, kind: &str, name: &str) -> usize {
        let counter = self.state(kind).join(format!("{name}.count"));
        fs::read_to_string(&counter).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn part_of_this_boot(&self, kind: &str, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.state(kind).join(name)).unwrap_or_default();
        let boot = self.boot(kind, name);
        let sentences: Vec<&str> = text.split('/').collect();
        sentences[boot.min(sentences.len() - 1)].split_whitespace().map(|word| word.replace('_', " ")).collect()
    }

    fn open_console(&self, path: &str) -> Option<File> {
        if std::env::var_os(JAIL).is_some() && !self.jails_line(path).exists() {
            // The host looked it up first: devfs(5) hides it from jails.
            return None;
        }
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY);
        options.read(true).write(true).open(self.device(path)).ok()
    }

    fn loader(&self, words: &[&str]) -> i32 {
        let name = words[words.len() - 1];
        let console = words.windows(2).find(|pair| pair[0] == "-c").map(|pair| pair[1]);
        let mut console = match console.map(|path| (path, self.open_console(path))) {
            Some((path, None)) => return self.fail(64, &format!("Could not open '{path}'")),
            other => other.and_then(|(_, file)| file),
        };
        if self.is_going(name) {
            return self.fail(1, "vm_open: No such file or directory");
        }
        fs::create_dir_all(self.root.join("dev/vmm")).expect("makes");
        fs::write(self.root.join("dev/vmm").join(name), "loaded").expect("writes");
        for word in self.part("loaders", name) {
            match word.split_once(':').unwrap_or((&word, "")) {
                ("say", text) => console.as_mut().expect("a console").write_all(text.as_bytes()).expect("writes"),
                ("words", text) => eprintln!("{text}"),
                ("exit", code) => return code.parse().expect("a number"),
                ("wait", _) => loop {
                    std::thread::sleep(Duration::from_millis(50));
                },
                _ => {}
            }
        }
        0
    }

    /// What the program of this host's release says of itself.
    fn of_itself(&self, words: &[&str]) -> Option<i32> {
        let new = self.state("release-15").exists();
        match words {
            ["-s", "help"] if new => self.print(include_str!("../../src/host/bhyve_probes/14-devices.txt")),
            ["-s", "help"] => self.print(include_str!("../../src/host/bhyve_probes/13.2-devices.txt")),
            ["-l", "help"] => self.print(if new {
                "bootrom\ncom1\ncom2\ncom3\ncom4\ntpm\npc-testdev\n"
            } else {
                "bootrom\ncom1\ncom2\ncom3\ncom4\npc-testdev\n"
            }),
            ["-h"] if new => eprint!("{}", include_str!("../../src/host/bhyve_probes/15-usage.txt")),
            ["-h"] => eprint!("{}", include_str!("../../src/host/bhyve_probes/13.2-usage.txt")),
            _ => return None,
        }
        Some(0)
    }

    fn bhyve(&self, words: &[&str]) -> i32 {
        if let Some(code) = self.of_itself(words) {
            return code;
        }
        // SAFETY: the handler stores one atomic flag.
        #[allow(unsafe_code)]
        unsafe {
            let handler = nix::sys::signal::SigHandler::Handler(note_term);
            nix::sys::signal::signal(nix::sys::signal::Signal::SIGTERM, handler).expect("sets");
        }
        let name = words[words.len() - 1];
        if self.part_of_this_boot("parts", name).iter().any(|word| word == "early") {
            // Before the guest has turned ACPI on, SIGTERM does what it does to any program (`usr.sbin/bhyve/pm.c`).
            // SAFETY: the default action is no function of ours.
            #[allow(unsafe_code)]
            unsafe {
                nix::sys::signal::signal(nix::sys::signal::Signal::SIGTERM, nix::sys::signal::SigHandler::SigDfl).expect("sets");
            }
        }
        let vm = self.root.join("dev/vmm").join(name);
        let values = |flag: &'static str| words.windows(2).filter(move |pair| pair[0] == flag).map(|pair| pair[1]);
        let firmware = values("-l").any(|value| value.starts_with("bootrom,"));
        if self.is_going(name) {
            return self.fail(4, "vm_open: No such file or directory");
        } else if firmware && !vm.exists() {
            fs::create_dir_all(self.root.join("dev/vmm")).expect("makes");
            fs::write(&vm, "").expect("writes");
        } else if !firmware && !vm.exists() {
            fs::create_dir_all(self.root.join("dev/vmm")).expect("makes");
            fs::write(&vm, "").expect("writes");
            return self.fail(4, "virtual machine cannot be booted");
        }
        for tap in values("-s").flat_map(|value| value.split(',')).filter(|word| word.starts_with("tap")) {
            let socket_brings_up = !self.state("release-15").exists();
            let own_stack = |jail: String| self.of_jail(&jail, "vnet").as_deref() == Some("new");
            if socket_brings_up && std::env::var(JAIL).is_ok_and(|jail| !own_stack(jail)) {
                return self.fail(1, "Could not set interface flags");
            }
            let Ok(mut file) = File::options().append(true).open(self.interfaces().join(tap)) else {
                return self.fail(1, &format!("open of tap device /dev/{tap} failed"));
            };
            writeln!(file, "\tOpened by PID {}", std::process::id()).expect("writes");
        }
        let mut hooks = Vec::new();
        for (path, hook) in values("-s").filter_map(netgraph_end) {
            if self.state("connects-late").exists() {
                std::thread::sleep(Duration::from_secs(1));
            }
            let file = File::create(self.state("hooks").join(format!("{path}{hook}"))).expect("creates");
            if file.try_lock().is_err() {
                return self.fail(1, "can't connect to node");
            }
            hooks.push(file);
        }
        let console = values("-l").find_map(|value| value.strip_prefix("com1,"));
        let mut console = match console.map(|path| (path, self.open_console(path))) {
            Some((path, None)) => return self.fail(4, &format!("Unable to initialize backend '{path}' for LPC device com1")),
            other => other.and_then(|(_, file)| file),
        };
        let order = self.state("orders").join(name);
        let _ = fs::remove_file(&order);
        let part = self.part("parts", name);
        for word in &part {
            match word.split_once(':').unwrap_or((word, "")) {
                ("say", text) => console.as_mut().expect("a console").write_all(text.as_bytes()).expect("writes"),
                ("words", text) => eprintln!("{text}"),
                ("sleep", time) => std::thread::sleep(Duration::from_millis(time.parse().expect("a number"))),
                ("exit", code) => return code.parse().expect("a number"),
                ("signal", number) => {
                    let signal = nix::sys::signal::Signal::try_from(number.parse::<i32>().expect("a number")).expect("a signal");
                    nix::sys::signal::raise(signal).expect("raised");
                }
                _ => {}
            }
        }
        let has = |word: &str| part.iter().any(|other| other == word);
        loop {
            if TERM.swap(false, Ordering::SeqCst) && !has("deaf") && !has("stuck") {
                if let Some(console) = &mut console {
                    let _ = console.write_all(b"shutting down\r\n");
                }
                return 1;
            }
            let told = fs::read_to_string(&order).unwrap_or_default();
            if !told.is_empty() && !has("stuck") {
                let _ = fs::remove_file(&order);
                match told.as_str() {
                    "--force-poweroff" => return 1,
                    "--force-reset" => return 0,
                    "--suspend" => return 5,
                    _ => drop(console.as_mut().map(|console| console.write_all(b"nmi\r\n"))),
                }
            }
            let mut buffer = [0; 256];
            if let Some(console) = console.as_mut().filter(|_| has("echo"))
                && let Ok(count) = console.read(&mut buffer)
            {
                let _ = console.write_all(&[b"<", &buffer[..count], b">"].concat());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn jls(&self, words: &[&str]) -> i32 {
        let name = words.windows(2).find(|pair| pair[0] == "-j").map_or("", |pair| pair[1]);
        if !self.state("jails").join(name).exists() {
            return self.fail(1, &format!("jail \"{name}\" not found"));
        }
        let wanted = words[words.len() - 1];
        if wanted == "allow.vmm" && !self.state("modules/vmm").exists() {
            return self.fail(1, "unknown parameter: allow.vmm");
        }
        let unset = if wanted == "vnet" { "inherit" } else { "-" };
        self.print(&format!("{}\n", self.of_jail(name, wanted).as_deref().unwrap_or(unset)));
        0
    }

    fn jexec(&self, words: &[&str]) -> i32 {
        match words {
            [jail, ..] if !self.state("jails").join(jail).exists() => self.fail(1, &format!("jail \"{jail}\" not found")),
            [jail, "test", "-e", line] if line.starts_with("/dev/nmdm") => {
                // A pair belongs to whoever looks it up first (`sys/dev/nmdm/nmdm.c`), if its rules let a jail see it.
                let hidden =
                    self.of_jail(jail, "hides").as_deref() == Some("nmdm") || self.device(line).symlink_metadata().is_ok();
                if !hidden {
                    fs::write(self.jails_line(line), jail).expect("writes");
                }
                i32::from(hidden)
            }
            _ => self.become_program(words[0], &words[1..]),
        }
    }

    /// Where it stands that the pair of a line is a jail's.
    fn jails_line(&self, line: &str) -> PathBuf {
        self.state("jail-lines").join(line.trim_start_matches("/dev/"))
    }

    fn become_program(&self, jail: &str, words: &[&str]) -> i32 {
        use std::os::unix::process::CommandExt;
        let out = File::options().write(true).open("/dev/fd/9").expect("the caller's output");
        let mut command = std::process::Command::new(words[0]);
        if !jail.is_empty() {
            command.env(JAIL, jail);
        }
        let error = command.args(&words[1..]).stdout(out).exec();
        self.fail(1, &format!("execvp(): {}: {error}", words[0]))
    }

    fn rctl(&self) -> i32 {
        match self.state("no-racct").exists() {
            true => self.fail(1, "RACCT/RCTL present, but disabled; enable using kern.racct.enable=1 tunable"),
            false => 0,
        }
    }

    fn iscsictl(&self, words: &[&str]) -> i32 {
        let session = self.state("session");
        match words {
            ["-A", ..] => {
                fs::write(self.root.join("dev/da7"), "a unit").expect("writes");
                fs::write(session, words[words.len() - 1]).expect("writes");
            }
            ["-R", ..] => fs::remove_file(session).expect("there is one"),
            _ => {
                let name = fs::read_to_string(session).unwrap_or_default();
                let devices = r#""devices":{"lun":[{"lun":2,"device":"da7"}]}"#;
                let one = format!(r#"{{"name":"{name}","portal":"10.0.0.9","state":"Connected",{devices}}}"#);
                let sessions = if name.is_empty() { String::new() } else { format!(r#""session":[{one}]"#) };
                self.print(&format!(r#"{{"iscsictl":{{{sessions}}}}}"#));
            }
        }
        0
    }

    /// A file for each variable of rc.conf; an unknown one is a failure without words with `-i`.
    fn sysrc(&self, words: &[&str]) -> i32 {
        let last = words[words.len() - 1];
        match last.split_once('=') {
            Some(_) if self.state("rc-read-only").exists() => {
                // It tells, and ends as if all were well (`usr.sbin/sysrc/sysrc`).
                eprintln!("/usr/sbin/sysrc: cannot create /etc/rc.conf: Read-only file system");
                0
            }
            Some((name, value)) => {
                let file = self.state(&format!("rc-{name}"));
                let old = fs::read_to_string(&file).unwrap_or_default();
                fs::write(file, value).expect("writes");
                self.print(&format!("{name}: {old} -> {value}\n"));
                0
            }
            None => match fs::read_to_string(self.state(&format!("rc-{last}"))) {
                Ok(value) => {
                    self.print(&format!("{value}\n"));
                    0
                }
                Err(_) => 1,
            },
        }
    }

    /// The hooks of a node: those that the test wrote, and those that guests are connected to.
    fn ngctl(&self, words: &[&str]) -> i32 {
        self.print(&fs::read_to_string(self.state("ngctl")).unwrap_or_default());
        let path = words[words.len() - 1];
        for entry in fs::read_dir(self.state("hooks")).expect("lists").flatten() {
            let held = File::open(entry.path()).is_ok_and(|file| file.try_lock_shared().is_err());
            if let Some(hook) = entry.file_name().to_string_lossy().strip_prefix(path).filter(|_| held) {
                self.print(&format!("  {hook}  <unnamed>  socket  0000000b  vmlink\n"));
            }
        }
        0
    }

    fn swtpm(&self, words: &[&str]) -> i32 {
        let value = |key: &str| words.iter().find_map(|word| word.split_once(key).map(|(_, value)| value)).expect("given");
        let _listener = std::os::unix::net::UnixListener::bind(value("type=unixio,path=")).expect("binds");
        fs::write(value("file="), std::process::id().to_string()).expect("writes");
        fs::write(self.state("tpms").join(std::process::id().to_string()), "").expect("writes");
        loop {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ps(&self, pid: &str) -> i32 {
        match self.state("tpms").join(pid).exists() {
            true => {
                self.print("swtpm\n");
                0
            }
            false => 1,
        }
    }
}

/// The node and the hook of a device with a netgraph backend.
fn netgraph_end(device: &str) -> Option<(&str, &str)> {
    let part = |key: &str| device.split(',').find_map(|part| part.strip_prefix(key));
    Some((part("path=")?, part("peerhook=")?))
}
