//! The evaluator and the menu on a terminal of the test: keys are typed at given times, and time advances only while
//! the code waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Default)]
struct Typist {
    /// Keys, with the time at which they are typed.
    keys: VecDeque<(Duration, Vec<u8>)>,
    now: Duration,
    output: String,
    stop_at: Option<Duration>,
}

#[derive(Clone, Default)]
struct TestPort(Arc<Mutex<Typist>>);

impl TestPort {
    fn typing(keys: &[(u64, &str)]) -> TestPort {
        let keys = keys.iter().map(|(second, keys)| (Duration::from_secs(*second), keys.as_bytes().to_vec())).collect();
        TestPort(Arc::new(Mutex::new(Typist { keys, ..Typist::default() })))
    }
    fn output(&self) -> String {
        self.0.lock().unwrap().output.clone()
    }
}

impl Port for TestPort {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().output.push_str(&String::from_utf8_lossy(bytes));
    }
    fn read(&mut self, wait: Duration) -> Vec<u8> {
        let mut typist = self.0.lock().unwrap();
        let end = typist.now + wait;
        match typist.keys.front() {
            Some((at, _)) if *at <= end => {
                typist.now = typist.now.max(*at);
                typist.keys.pop_front().expect("just seen").1
            }
            _ => {
                typist.now = end;
                Vec::new()
            }
        }
    }
    fn stopped(&self) -> Option<MachineExit> {
        let typist = self.0.lock().unwrap();
        typist.stop_at.filter(|at| typist.now >= *at).map(|_| MachineExit::PowerOff)
    }
    fn now(&self) -> Duration {
        // Every read of the clock takes a moment, so that a loop that only reads the clock advances.
        let mut typist = self.0.lock().unwrap();
        typist.now += Duration::from_micros(10);
        typist.now
    }
}

/// Returns the output of a script, and how it ended, on a guest without disks.
fn run_with(script: &str, port: &TestPort, limits: Limits) -> Result<(), Halt> {
    let devices = Devices::new(Vec::new());
    let options = Options { memory_bytes: 1 << 20, ..Options::default() };
    let mut terminal = Terminal::new(Box::new(port.clone()));
    let mut shell = Shell::new(&devices, &mut terminal, &options, limits);
    shell.run_text(script).map(drop)
}

fn says(script: &str) -> String {
    let port = TestPort::default();
    run_with(script, &port, Limits::default()).expect("it ends by itself");
    port.output().replace("\r\n", "\n")
}

#[test]
fn variables_are_put_in_and_split_as_grub_does() {
    assert_eq!(says("set a='x  y'\necho $a \"$a\" '$a' ${a}z"), "x y x  y $a x yz\n");
    assert_eq!(says("a=1\nset b=\necho \"[$b]\" $b $a$a \\$a"), "[] 11 $a\n");
    assert_eq!(says("function f { echo $# $1 \"$@\" $*; shift; echo $1; }\nf 'a b' c"), "2 a b a b c a b c\nc\n");
    assert_eq!(says("echo -n one; echo -e 'two\\nthree'"), "onetwo\nthree\n");
}

#[test]
fn conditions_loops_and_functions_run() {
    assert_eq!(says("if [ x = y ]; then echo a; elif test -n b -a ! -z c; then echo d; else echo e; fi"), "d\n");
    assert_eq!(
        says("for x in 1 2 3 4; do if [ $x -eq 2 ]; then continue; fi; if [ $x -gt 3 ]; then break; fi; echo $x; done"),
        "1\n3\n"
    );
    assert_eq!(says("n=xxx\nuntil [ \"$n\" = xxx ]; do true; done\nwhile [ -z \"$m\" ]; do m=1; echo once; done"), "once\n");
    assert_eq!(says("function f { return; echo no; }\nf\nif ! false; then echo \"$? yes\"; fi"), "0 yes\n");
    assert_eq!(says("if [ 2.06 -pgt 1 -o ( a = b ) ]; then echo newer; fi"), "newer\n");
}

#[test]
fn what_is_unknown_is_shown_and_the_rest_goes_on() {
    let said = says("frobnicate x\nfi\ninsmod part_gpt\nlinux /vmlinuz\nsearch --fs-uuid --set=root 1234\necho end");
    assert_eq!(
        said,
        "error: can't find command `frobnicate'.\nerror: syntax error: line 2: `fi` is where a command should be.\n\
         error: no device is set: `root` is empty.\nerror: no such device: 1234.\nend\n"
    );
}

#[test]
fn the_features_of_grub_are_there_and_those_of_graphics_are_not() {
    let script =
        "if [ x$feature_menuentry_id = xy ]; then echo $grub_platform $grub_cpu; fi\nif loadfont unicode; then echo font; fi";
    assert_eq!(says(script), "pc i386\n");
}

#[test]
fn variables_are_counted_up_and_down() {
    assert_eq!(says("n=2\ndecrement n\necho $n\ndecrement n\ndecrement n\necho $n\nx=0x1f\nincrement x\necho $x"), "1\n-1\n32\n");
    let said =
        says("increment none\nn=seven\nincrement n\nincrement\nincrement a b\nn=9223372036854775807\nincrement n\necho $n");
    assert_eq!(
        said,
        "error: no such variable `none'.\nerror: `seven' is not a number.\nerror: no variable specified.\n\
         error: too many arguments.\n9223372036854775807\n"
    );
}

fn gave_up(script: &str, limits: Limits) -> String {
    match run_with(script, &TestPort::default(), limits) {
        Err(Halt::GaveUp(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_script_without_an_end_is_given_up() {
    let limits = Limits::default();
    assert!(gave_up("while true; do true; done", limits).contains("commands without an end"));
    assert!(gave_up("while true; do sleep 10; done", limits).contains("slept without an end"));
    assert!(gave_up("while true; do echo 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'; done", limits).contains("printed"));
    let hasty = Limits { busy: Duration::from_millis(5), ..limits };
    assert!(gave_up("while true; do true; done", hasty).contains("ran for"));
    // A recursive function reaches the maximum depth, and a growing variable its maximum length.
    assert!(says("function f { f; }\nf\necho out").ends_with("error: scripts are nested too deeply.\nout\n"));
    says("a=0123456789\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12; do set a=\"$a$a\"; done");
    assert!(
        gave_up(
            "a=0123456789\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do set a=\"$a$a\"; done\necho $a$a$a$a$a$a$a$a$a$a",
            limits
        )
        .contains("too long")
    );
}

#[test]
fn a_stop_ends_a_sleep_and_a_menu() {
    let port = TestPort::default();
    port.0.lock().unwrap().stop_at = Some(Duration::from_secs(3));
    assert_eq!(run_with("sleep 100", &port, Limits::default()), Err(Halt::Stopped(MachineExit::PowerOff)));
    assert_eq!(run_with("reboot", &TestPort::default(), Limits::default()), Err(Halt::Stopped(MachineExit::Reboot)));
}

#[test]
fn keys_of_terminals_are_understood() {
    let port = TestPort::typing(&[(0, "\x1b[A\x1bOB\x1b[3~\x1b[21~\x01a\u{e4}\x7f\r"), (1, "\x1b")]);
    let mut terminal = Terminal::new(Box::new(port));
    let mut keys = Vec::new();
    while let Ok(Some(key)) = terminal.key(Some(Duration::from_secs(5))) {
        keys.push(key);
    }
    use terminal::Key::*;
    assert_eq!(keys, [Up, Down, Delete, Control('x'), Home, Char('a'), Char('\u{e4}'), Backspace, Enter, Escape]);
}

/// Runs a configuration and its menu as `configfile` would. Returns the selected entry, by the words that it printed.
fn menu_of(script: &str, options: &Options, keys: &[(u64, &str)]) -> (Result<(), Halt>, String) {
    let port = TestPort::typing(keys);
    let devices = Devices::new(Vec::new());
    let mut terminal = Terminal::new(Box::new(port.clone()));
    let mut shell = Shell::new(&devices, &mut terminal, options, Limits::default());
    // Entries of this test halt or reboot the machine, which cannot be mistaken for a menu that was left.
    let ended = shell.run_text(script).and_then(|_| menu::show(&mut shell)).map(drop);
    (ended, port.output())
}

const MENU: &str = "set timeout=5\nset default=one\n\
    menuentry First --id one { halt }\nmenuentry Second --hotkey=z { reboot }\n\
    submenu More { menuentry Inner { reboot }; menuentry 'Last > one' --id last { halt } }\n\
    menuentry Broken { linux /none }";

fn stopped(exit: MachineExit) -> Result<(), Halt> {
    Err(Halt::Stopped(exit))
}

#[test]
fn the_default_boots_when_the_time_is_over_and_keys_choose() {
    let options = Options::default();
    let (ended, said) = menu_of(MENU, &options, &[]);
    assert_eq!(ended, stopped(MachineExit::PowerOff));
    assert!(said.contains("Booting `First`") && said.contains("boots in 5 s") && said.contains("boots in 1 s"), "{said}");
    assert_eq!(menu_of(MENU, &options, &[(2, "\x1b[B\r")]).0, stopped(MachineExit::Reboot));
    assert_eq!(menu_of(MENU, &options, &[(2, "2\r")]).0, stopped(MachineExit::Reboot));
    assert_eq!(menu_of(MENU, &options, &[(2, "z")]).0, stopped(MachineExit::Reboot));
    assert_eq!(menu_of(MENU, &options, &[(2, "3\r"), (20, "\x1b[B\r")]).0, stopped(MachineExit::PowerOff));
    assert_eq!(menu_of(MENU, &options, &[(2, "3\r"), (20, "\x1b"), (30, "2\r")]).0, stopped(MachineExit::Reboot));
}

#[test]
fn the_default_may_be_saved_nested_numbered_or_given_by_the_guest_file() {
    let with = |lines: &str| menu_of(&format!("{MENU}\n{lines}"), &Options::default(), &[]).0;
    assert_eq!(with("set default=1"), stopped(MachineExit::Reboot));
    assert_eq!(with("set default='More>0'"), stopped(MachineExit::Reboot));
    assert_eq!(with("set default='More>Last > one'"), stopped(MachineExit::PowerOff));
    assert_eq!(with("set default='2>last'"), stopped(MachineExit::PowerOff));
    assert_eq!(with("set saved_entry=Second\nset default=saved"), stopped(MachineExit::Reboot));
    assert_eq!(with("set default=none-of-them"), stopped(MachineExit::PowerOff));
    assert_eq!(with("set default=Broken\nset fallback=1"), stopped(MachineExit::Reboot));
    let named = |entry: &str| menu_of(MENU, &Options { entry: Some(entry.into()), ..Options::default() }, &[]).0;
    assert_eq!(named("Second"), stopped(MachineExit::Reboot));
    assert_eq!(named("More>Inner"), stopped(MachineExit::Reboot));
    let Err(Halt::GaveUp(text)) = named("Third") else { panic!() };
    assert_eq!(text, "`grub.entry` is `Third`, which the menu does not have; it has `First`, `Second`, `More`, `Broken`");
}

#[test]
fn an_entry_that_does_not_boot_unattended_ends_the_start_and_attended_comes_back() {
    let broken = format!("{MENU}\nset default=Broken");
    let (ended, said) = menu_of(&broken, &Options::default(), &[]);
    assert_eq!(ended, Err(Halt::GaveUp("the entry `Broken` loaded no kernel; its output is on the console".into())));
    assert!(said.contains("error: no device is set"), "{said}");
    assert_eq!(menu_of(&broken, &Options::default(), &[(7, " "), (9, "2\r")]).0, stopped(MachineExit::Reboot));
}

#[test]
fn a_time_of_the_guest_file_wins_and_no_time_waits() {
    let options = Options { timeout: Some(Duration::ZERO), ..Options::default() };
    let (ended, said) = menu_of(MENU, &options, &[]);
    assert_eq!(ended, stopped(MachineExit::PowerOff));
    assert!(!said.contains("boot menu"), "no menu is shown: {said}");
    let waits = format!("{MENU}\nset timeout=-1");
    assert_eq!(menu_of(&waits, &Options::default(), &[(5000, "2\r")]).0, stopped(MachineExit::Reboot));
    let hidden = format!("{MENU}\nset timeout_style=hidden");
    assert_eq!(menu_of(&hidden, &Options::default(), &[(3, "x"), (100, "2\r")]).0, stopped(MachineExit::Reboot));
}

#[test]
fn an_entry_can_be_edited_and_commands_typed() {
    let (ended, said) = menu_of(MENU, &Options::default(), &[(1, "2e"), (2, "\x0breboot\x18")]);
    assert_eq!(ended, stopped(MachineExit::Reboot), "{said}");
    let (ended, said) = menu_of(MENU, &Options::default(), &[(1, "c"), (2, "echo $default is it\r"), (3, "ls\r"), (4, "halt\r")]);
    assert_eq!(ended, stopped(MachineExit::PowerOff));
    assert!(said.contains("one is it\r\n"), "{said}");
    assert_eq!(menu_of(MENU, &Options::default(), &[(1, "c"), (2, "\x1b"), (3, "2\r")]).0, stopped(MachineExit::Reboot));
}

#[test]
fn submenus_see_what_is_exported_and_keep_the_rest_to_themselves() {
    let script = "set a=1\nset b=2\nexport b\nsubmenu S { echo \"[$a$b]\"; set c=3; menuentry M { echo \"[$c]\"; halt; }; }\nset default='0>0'\nset timeout=0";
    let (ended, said) = menu_of(script, &Options::default(), &[]);
    assert_eq!(ended, stopped(MachineExit::PowerOff));
    assert!(said.contains("[2]\r\n") && said.contains("[3]\r\n"), "{said}");
}

#[test]
fn a_guest_without_a_configuration_is_told_what_it_has() {
    let none = Loader::new(Vec::new(), Options::default()).err().unwrap().to_string();
    assert!(none.ends_with("it has no disk"), "{none}");
    let mut luks = vec![0u8; 1 << 20];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    luks[7] = 2;
    let disks = || {
        let disk = |id: &str, bytes: Vec<u8>| BootDisk { id: id.into(), is_cd: false, reader: Arc::new(bytes) };
        vec![disk("root", luks.clone()), disk("data", vec![0; 1 << 20])]
    };
    let said = Loader::new(disks(), Options::default()).err().unwrap().to_string();
    assert!(said.contains("disk `root` (hd0): LUKS2 encryption; disk `data` (hd1): unknown contents"), "{said}");
    let options = Options { partition: Some("gpt3".into()), ..Options::default() };
    let said = Loader::new(disks(), options).err().unwrap().to_string();
    assert!(said.starts_with("`grub.partition` is `gpt3`, which this guest does not have; found: disk"), "{said}");
}
