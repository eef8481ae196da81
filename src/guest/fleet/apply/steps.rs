//! One guest of a plan: making, changing or removing it, and undoing that.

use std::fs;
use std::path::PathBuf;

use crate::config::{Fleet, FleetGuest, GuestConfig};
use crate::guest::control::Request;
use crate::guest::create::{self, Origin};
use crate::guest::definition::{Definition, Surroundings};
use crate::guest::disk_record::DiskRecord;
use crate::guest::error::{GuestError, Result};
use crate::guest::fleet::membership::Membership;
use crate::guest::fleet::plan::{BEFORE, Class, GuestAction, GuestPlan, left_over};
use crate::guest::images::Images;
use crate::guest::launcher;
use crate::guest::lock::{GuestLock, Role};
use crate::guest::pending;
use crate::guest::provision::{disk_path, is_own, refuse_found_volumes};
use crate::guest::stopping::end_guest;
use crate::guest::store::{GuestDir, Store};
use crate::host::files::{mode_of, sync_directory, write_atomically};

use super::Manner;
use super::journal::{Journal, Line};

/// One guest of a plan.
pub struct Step<'a> {
    pub fleet: &'a Fleet,
    pub planned: &'a GuestPlan,
    pub store: &'a Store,
    pub surroundings: Surroundings<'a>,
    pub manner: Manner<'a>,
    pub journal: &'a Journal,
}

impl Step<'_> {
    /// Performs the step. Returns whether the guest was restarted.
    pub fn run(&self) -> Result<bool> {
        let name = &self.planned.name;
        match self.planned.action {
            GuestAction::Create => self.create(self.wanted()?)?,
            GuestAction::Change => self.change(self.wanted()?)?,
            GuestAction::Destroy => self.destroy()?,
            GuestAction::None | GuestAction::Leave => return Ok(false),
        }
        let restarted = self.planned.action == GuestAction::Change && self.planned.restart && self.manner.reboot;
        if restarted {
            self.journal.write(&Line::Restart { guest: name.clone() })?;
            launcher::ask_once(&self.store.directory_of(name), Request::Restart { timeout_ms: None })?;
        }
        super::done(self.journal, name)?;
        Ok(restarted)
    }

    fn wanted(&self) -> Result<&FleetGuest> {
        let name = &self.planned.name;
        self.fleet
            .guest(name)
            .ok_or_else(|| GuestError::host(format!("the plan has a guest `{name}` that the fleet does not have")))
    }

    fn create(&self, wanted: &FleetGuest) -> Result<()> {
        let name = self.planned.name.clone();
        self.journal.write(&Line::Create { guest: name.clone() })?;
        let origin = Origin::Fleet { text: wanted.text.clone(), fleet: self.fleet.name.clone(), file: self.fleet.file.clone() };
        match create::create(self.store, &name, &origin, &[], self.surroundings, self.manner.progress) {
            Ok(_) => Ok(()),
            Err(error) => {
                // `create` leaves nothing behind when it fails.
                self.journal.write(&Line::Undone { guest: name })?;
                Err(error)
            }
        }
    }

    fn change(&self, wanted: &FleetGuest) -> Result<()> {
        let guest = self.store.guest(&self.planned.name)?;
        let _turn = pending::turn(&guest, self.surroundings)?;
        // A running guest belongs to its supervisor, but its file does not, and its disks are checked before each boot.
        let _lock = match GuestLock::holder(&guest.lock_file()) {
            Some(holder) if holder.role == Role::Supervisor => None,
            _ => Some(guest.lock(Role::Command)?),
        };
        let stopped = _lock.is_some();
        let file = guest.file();
        let before = fs::read_to_string(&file).ok();
        let recreate = match self.manner.prune {
            true => self.too_large(wanted, &guest),
            false => Vec::new(),
        };
        if !recreate.is_empty() && !stopped {
            return Err(GuestError::user(format!("`{}` runs, and its disk `{}` is to be made anew", guest.name(), recreate[0]))
                .hint(format!("stop it first: `vmctl stop {}`", guest.name())));
        }
        let line = Line::Change { guest: guest.name().to_owned(), before: before.clone(), recreate: recreate.clone() };
        self.journal.write(&line)?;
        let written =
            self.write(wanted, &guest, &recreate, stopped).and_then(|()| self.put_away(wanted, &guest, before.as_deref()));
        if let Err(error) = written {
            undo(&guest, before.as_deref(), &recreate)?;
            self.journal.write(&Line::Undone { guest: guest.name().to_owned() })?;
            return Err(error);
        }
        if self.manner.prune {
            for path in left_over(&guest, &wanted.config)? {
                fs::remove_file(&path).map_err(|error| GuestError::io("remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// Refuses disks that are larger than they should be, since a disk is never made smaller.
    fn too_large(&self, wanted: &FleetGuest, guest: &GuestDir) -> Vec<String> {
        let planned = |id: &str| {
            let key = format!("disks.{id}");
            let mut changes = self.planned.changes.iter().filter(|change| change.key == key);
            changes.any(|change| change.class == Class::Destroy)
        };
        let there = |config: &GuestConfig, id: &str| {
            let disk = config.disks.iter().find(|disk| disk.id == id)?;
            disk_path(guest, disk).ok().filter(|path| path.exists() && disk.path.is_none())
        };
        let ids = wanted.config.disks.iter().map(|disk| disk.id.clone());
        ids.filter(|id| planned(id) && there(&wanted.config, id).is_some()).collect()
    }

    /// Writes the guest file, the disks, the state and the record, in this order.
    fn write(&self, wanted: &FleetGuest, guest: &GuestDir, recreate: &[String], stopped: bool) -> Result<()> {
        if let Ok(before) = Definition::load(guest, self.surroundings) {
            let mut new = wanted.config.clone();
            new.disks.retain(|disk| !before.config.disks.iter().any(|other| other.id == disk.id));
            refuse_found_volumes(guest, &new)?;
        }
        for id in recreate {
            let (disk, kept) = disk_names(guest, id);
            fs::rename(&disk, &kept).map_err(|error| GuestError::io("set aside", &disk, error))?;
        }
        let _ = sync_directory(&guest.disks_dir());
        let file = guest.file();
        let mode = mode_of(&self.fleet.file);
        write_atomically(&file, wanted.text.as_bytes(), mode).map_err(|error| GuestError::io("write", &file, error))?;
        let images = Images { host: self.surroundings.host, progress: self.manner.progress };
        let made = images.make_all_disks(guest, &wanted.config)?;
        self.record(wanted, guest, stopped).map_err(|error| made.undo(error))
    }

    /// Forgets the disks that the guest had and has no more: if they are wanted again, their present contents must not
    /// be used.
    fn put_away(&self, wanted: &FleetGuest, guest: &GuestDir, before: Option<&str>) -> Result<()> {
        let Some(before) =
            before.and_then(|text| Definition::load_text(guest, &guest.file(), Some(text), self.surroundings).ok())
        else {
            return Ok(());
        };
        let kept = |id: &str| wanted.config.disks.iter().any(|disk| disk.id == id && is_own(disk));
        for disk in before.config.disks.iter().filter(|disk| is_own(disk) && !kept(&disk.id)) {
            DiskRecord::forget(guest, &before.config, &disk.id)?;
        }
        Ok(())
    }

    fn record(&self, wanted: &FleetGuest, guest: &GuestDir, stopped: bool) -> Result<()> {
        let mut state = guest.state()?;
        let old = Membership::load(guest)?;
        if stopped {
            // If the state was edited, the old one is restored, so that the guest keeps its identity.
            if let Some(old) = old {
                state.uuid = old.uuid;
                state.macs.extend(old.macs);
            }
            state.assign(&wanted.config)?;
            state.summary = Some(Definition::load(guest, self.surroundings)?.summary(self.surroundings.host_file));
            state.save(&guest.state_file())?;
        }
        let mut record = Membership::now(&self.fleet.name, self.fleet.file.clone(), &wanted.text, &state);
        record.pending_boot = (!stopped && self.planned.restart).then_some(state.boots);
        record.save(guest)
    }

    fn destroy(&self) -> Result<()> {
        let name = self.planned.name.clone();
        let guest = self.store.guest(&name)?;
        // Checked again, since the plan may be old: the user may have taken a while to answer.
        match Membership::load(&guest)? {
            Some(record) if record.fleet == self.fleet.name => {}
            _ => return Err(GuestError::user(format!("`{name}` does not belong to the fleet `{}` any more", self.fleet.name))),
        }
        self.journal.write(&Line::Destroy { guest: name.clone() })?;
        let removed = match GuestLock::holder(&guest.lock_file()) {
            Some(holder) if holder.role == Role::Supervisor => {
                end_guest(&guest, &Request::Stop { timeout_ms: None }, None).map(drop)
            }
            _ => Ok(()),
        };
        let removed = removed.and_then(|()| create::destroy(self.store, &guest, self.surroundings));
        if removed.is_err() {
            self.journal.write(&Line::Undone { guest: name })?;
        }
        removed
    }
}

/// Returns a disk, and its temporary name while a new one replaces it.
fn disk_names(guest: &GuestDir, id: &str) -> (PathBuf, PathBuf) {
    let directory = guest.disks_dir();
    (directory.join(format!("{id}.raw")), directory.join(format!("{BEFORE}{id}.raw")))
}

/// Restores a guest to its state before a change that failed.
fn undo(guest: &GuestDir, before: Option<&str>, recreate: &[String]) -> Result<()> {
    for id in recreate {
        let (disk, kept) = disk_names(guest, id);
        if kept.exists() {
            // The guest's lock is held, so the new disk is empty.
            fs::rename(&kept, &disk).map_err(|error| GuestError::io("put back", &disk, error))?;
        }
    }
    if let Some(before) = before {
        let file = guest.file();
        write_atomically(&file, before.as_bytes(), mode_of(&file)).map_err(|error| GuestError::io("put back", &file, error))?;
    }
    Ok(())
}

/// Settles a step that a killed apply was working on. Guest files need nothing, since they are planned again. A disk
/// that was set aside is restored unless a new one has replaced it, which may have been used since.
pub fn recover(store: &Store, line: &Line) -> Result<()> {
    let Line::Change { guest, recreate, .. } = line else { return Ok(()) };
    let guest = store.directory_of(guest);
    for id in recreate {
        let (disk, kept) = disk_names(&guest, id);
        if kept.exists() && !disk.exists() {
            fs::rename(&kept, &disk).map_err(|error| GuestError::io("put back", &disk, error))?;
        }
    }
    Ok(())
}
