//! Lock exclusion: what the lock caches of all hosts believe to hold gets along pairwise, at every moment.
//!
//! A host counts from its grant to its release. When it dies it goes on counting: in every mode until its EVICT record is on
//! the LUN, in writing modes until its RECOVERED record is (its right to read ends with the eviction). What a host
//! that was fenced while it was stopped still believes when it wakes up does not count: it can write no more, `data` sees to that.

use super::{Who, membership::Membership};
use luna_dlm::{Mode, Name};
use std::collections::BTreeMap;

/// Who holds what.
#[derive(Default)]
pub(crate) struct Locks {
    held: BTreeMap<Name, BTreeMap<Who, Mode>>,
    pub(crate) grants: u64,
}

impl Locks {
    /// The lock cache of `who` has `mode` from now on.
    pub(crate) fn granted(&mut self, name: Name, who: Who, mode: Mode, members: &Membership) -> Result<(), String> {
        self.grants += 1;
        if members.is_fenced(who) || (!mode.writes() && !members.is_member(who)) {
            return Ok(());
        }
        let all = self.held.entry(name).or_default();
        if let Some((other, theirs)) = all.iter().find(|(w, m)| **w != who && !m.compatible(mode)) {
            return Err(format!("locks: {who:?} was granted {mode} of {name} while {other:?} has {theirs}"));
        }
        all.insert(who, mode);
        Ok(())
    }

    /// What a host has, as far as was seen.
    pub(crate) fn of(&self, who: Who) -> impl Iterator<Item = (Name, Mode)> {
        self.held.iter().filter_map(move |(name, all)| Some((*name, *all.get(&who)?)))
    }

    /// Whether anybody else than these has something of the name.
    pub(crate) fn others_have(&self, name: &Name, but: &[Who]) -> bool {
        self.held.get(name).is_some_and(|all| all.keys().any(|w| !but.contains(w)))
    }

    /// It came down.
    pub(crate) fn released(&mut self, name: Name, who: Who, mode: Mode, members: &Membership) {
        let all = self.held.entry(name).or_default();
        let counts = if mode.writes() { !members.is_fenced(who) } else { members.is_member(who) };
        if mode == Mode::Nl || !counts {
            all.remove(&who);
        } else {
            all.insert(who, mode);
        }
    }

    /// EVICT is on the LUN.
    pub(crate) fn evicted(&mut self, who: Who) {
        self.held.values_mut().for_each(|all| all.retain(|w, m| *w != who || m.writes()));
    }

    /// RECOVERED or LEAVE is on the LUN.
    pub(crate) fn over(&mut self, who: Who) {
        self.held.values_mut().for_each(|all| all.retain(|w, _| *w != who));
    }
}
