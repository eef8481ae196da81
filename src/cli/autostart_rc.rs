//! `vmctl autostart` on FreeBSD: rc(8) starts guests, and rc.conf(5) lists guests in addition to those whose files say
//! so.

use std::path::Path;

use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::host::rc;
use crate::host::sysrc::RcConf;

fn rc_conf() -> RcConf {
    RcConf::of(Path::new("/"))
}

/// Returns the guests of `vmctl_list`. There are none without rc.conf.
pub fn listed() -> Vec<String> {
    match crate::host::program::is_freebsd() {
        true => rc::list(&rc_conf()).unwrap_or_default(),
        false => Vec::new(),
    }
}

/// Stores the locations of guests for rc(8), whose environment has none of the caller's variables.
fn remember_place(app: &App, rc_conf: &RcConf) -> Result<(), Failure> {
    for option in super::down::options(app)?.chunks_exact(2) {
        let name = format!("vmctl_{}", option[0].trim_start_matches('-'));
        if rc_conf.get(&name)?.as_ref() != Some(&option[1]) {
            rc_conf.set(&name, &option[1])?;
            app.ui.done(format!("rc(8) uses the {} `{}`", &option[0][2..], option[1]));
        }
    }
    Ok(())
}

/// Adds guests to `vmctl_list`; without a name, makes rc(8) start guests at all.
pub fn enable(app: &App, context: &CommandContext, names: &[String]) -> Outcome {
    let root = Path::new("/");
    let rc_conf = rc_conf();
    remember_place(app, &rc_conf)?;
    if let Some((words, hint)) = rc::beside_vm_bhyve(&rc_conf) {
        app.ui.warn(format!("{words}; {hint}"));
    }
    if names.is_empty() {
        if !rc::is_installed(root) {
            rc::install(root)?;
            app.ui.done(format!("`{}` is installed", rc::script_path(root).display()));
        }
        rc_conf.set("vmctl_enable", "YES")?;
        app.ui.done("guests start with this host: those with `autostart`, and those of `vmctl_list`");
        return Ok(ExitStatus::Done);
    }
    let (guests, status) = known(app, context, names)?;
    for guest in rc::enable(&rc_conf, &guests)? {
        app.ui.done(format!("{guest} starts with this host"));
    }
    if let Some(missing) = rc::missing(&rc_conf, root)? {
        app.ui.warn(missing);
    }
    Ok(status)
}

/// Removes guests from `vmctl_list`; without a name, makes rc(8) leave all alone.
pub fn disable(app: &App, context: &CommandContext, names: &[String]) -> Outcome {
    let rc_conf = rc_conf();
    if names.is_empty() {
        rc_conf.set("vmctl_enable", "NO")?;
        app.ui.done("guests do not start with this host any more; running guests continue");
        return Ok(ExitStatus::Done);
    }
    // A guest that is gone may still be in the list.
    let gone = rc::disable(&rc_conf, names)?;
    app.ui.each(names, String::clone, |name| {
        if gone.contains(name) {
            app.ui.done(format!("{name} does not start with this host any more"));
        }
        let guest = context.store.guest(name)?;
        let config = crate::guest::definition::Definition::load(&guest, context.surroundings())?.config;
        match config.autostart.enabled {
            true => Err(Failure::user(format!("`{name}` starts with this host since its file says so"))
                .hint(format!("set `autostart = false`: `vmctl edit {name}`"))),
            false => Ok(ExitStatus::Done),
        }
    })
}

/// Returns the names that are guests, and reports the others.
fn known(app: &App, context: &CommandContext, names: &[String]) -> Result<(Vec<String>, ExitStatus), Failure> {
    let mut guests = Vec::new();
    let chosen = Guests { names: names.to_vec(), ..Guests::default() }.choose(context)?;
    let status = app.each_in_turn(chosen, |guest| {
        guests.push(guest.name().to_owned());
        Ok(ExitStatus::Done)
    })?;
    Ok((guests, status))
}
