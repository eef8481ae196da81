//! The user that a guest's engine goes on as when root starts it: one that no other guest has.

use std::path::Path;

use nix::unistd::geteuid;

use crate::config::UidRange;

use super::identity::short_word;
use super::state::{GuestState, settled_user};
use super::store::GuestDir;

/// Settles the user of a guest: the one it has, if `range` still has it and no neighbour does; else one that follows from
/// its UUID, or the next that is free in its datastore.
pub fn settle(state: &mut GuestState, guest: &GuestDir, range: UidRange) {
    if !geteuid().is_root() {
        // The engine is its user's, and stays so.
        return;
    }
    let taken = neighbours(guest.path());
    state.engine_uid = choose(state.engine_uid, &state.uuid, range, &taken);
}

fn choose(settled: Option<u32>, uuid: &str, range: UidRange, taken: &[u32]) -> Option<u32> {
    let word = short_word(&["engine user", uuid]);
    // A range that is smaller than the guests are many: one that is shared is better than root.
    let free = |uid: &u32| !taken.contains(uid);
    settled.filter(|uid| range.contains(*uid) && free(uid)).or_else(|| {
        let mut candidates = range.from(word);
        candidates.find(free).or_else(|| range.from(word).next())
    })
}

/// The users of the other guests of the datastore.
fn neighbours(guest: &Path) -> Vec<u32> {
    let Some(entries) = guest.parent().and_then(|guests| guests.read_dir().ok()) else { return Vec::new() };
    let others = entries.flatten().map(|entry| entry.path()).filter(|path| path != guest);
    others.filter_map(|path| settled_user(&path.join(super::state::STATE_FILE))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_keeps_its_user_and_no_two_guests_have_the_same() {
        let range: UidRange = "70000-70002".parse().expect("a range");
        let mut taken = Vec::new();
        for uuid in ["a", "b", "c"] {
            let uid = choose(None, uuid, range, &taken).expect("a user");
            assert!(range.contains(uid) && !taken.contains(&uid), "{uid} of {taken:?}");
            assert_eq!(choose(Some(uid), "another", range, &taken), Some(uid));
            taken.push(uid);
        }
        // More guests than users.
        assert!(choose(None, "d", range, &taken).is_some_and(|uid| range.contains(uid)));
        // What another has by now, or the host file no longer gives, is given up.
        assert_ne!(choose(Some(70000), "a", range, &[70000]), Some(70000));
        assert!(choose(Some(1000), "a", range, &[]).is_some_and(|uid| range.contains(uid)));
        // A smaller guest directory tells the same each time.
        assert_eq!(choose(None, "a", UidRange::default(), &[]), choose(None, "a", UidRange::default(), &[]));
    }

    #[test]
    fn the_users_of_neighbours_are_read_from_their_states() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, uid) in [("a", Some(70000)), ("b", None), ("c", Some(70001))] {
            let guest = dir.path().join(name);
            std::fs::create_dir(&guest).expect("made");
            GuestState { engine_uid: uid, ..GuestState::new(name) }.save(&guest.join("state.json")).expect("saves");
        }
        assert_eq!(neighbours(&dir.path().join("a")), [70001]);
    }
}
