//! What happens when the members change: masters are built again from what the living hold, and what the dead may hold is
//! remembered until they are recovered.
//!
//! 1. Every host forgets what it mastered, keeping aside what it knew of *other* hosts (`old`).
//! 2. It sends to each new master: its own holds; from `old`, the holds of dead hosts and value blocks; then a marker to all.
//! 3. It asks again for everything it waits for.
//! 4. A master with everybody's marker is **open**: it works out what each dead host may hold of each name, grants, and says
//!    `Ready`. With everybody's `Ready`, `old` keeps only the dead and `recent` only this view.
//!
//! **What may a dead host d hold of name n?** The writing modes that were reported of it, or every writing mode if it is
//! *unknown*; in both cases only those that get along with what the living hold of n, because they held it together. A dead CR
//! or PR is dropped. Facts are never too small: a master writes a grant down before it sends it. d is unknown for n if
//! - (A) the master of n in d's last view is not alive (same incarnation), or
//! - (B) in some view since the last that was complete everywhere, n was mastered by somebody who is gone now. Survivors note
//!   these *holes* at every change and tell them in their markers, so a newcomer knows them too. When nobody who sends a marker
//!   has been in a complete view, d may hold anything.
//!
//! Why it is enough: let E be the last view in which n's master g was open while d lived or was dead; g then knew what d holds. If
//! g lives it kept that in `old`, for it drops it only after a later view was complete everywhere. If g is gone, E is in the
//! survivors' `recent`, so (B) names it.
//!
//! Being too careful is allowed here; the price is a wait until RECOVERED, never a wrong grant.

use std::collections::{BTreeMap, BTreeSet};

use super::holes::Holes;
use super::master::Resource;
use super::{Core, Mutant, Output};
use crate::mode::ModeSet;
use crate::msg::{Body, History, Hole, Record};
use crate::name::{Name, ValueBlock, merge};
use crate::view::{DeadHost, Member, View, master_of};

/// Records in one message.
const BATCH: usize = 128;
/// Views without a complete one in between, after which a host says it knows nothing.
const RECENT_LIMIT: usize = 64;

/// What a host knew as the master of a name.
#[derive(Debug, Default)]
struct Old {
    holds: BTreeMap<Member, ModeSet>,
    posix: BTreeSet<Member>,
    value: ValueBlock,
}

/// The state of the rebuild.
#[derive(Debug, Default)]
pub(super) struct Rebuild {
    markers: BTreeMap<u16, History>,
    ready: BTreeSet<u16>,
    old: BTreeMap<Name, Old>,
    recent: Option<Vec<Vec<Member>>>,
    holes: Holes,
}

impl Rebuild {
    fn history(&self) -> History {
        History { recent: self.recent.clone(), holes: self.holes.to_vec() }
    }

    /// Notes what was lost with everybody who was in a recent view and is not in `view`: for a host that dies now, also those who
    /// vanished before it, since the last view that was complete everywhere. (Seed 3359 found that.)
    fn note_lost(&mut self, view: &View) {
        let recent = self.recent.iter().flatten().flatten().copied();
        let lost: BTreeSet<Member> = recent.filter(|m| !view.members.contains(m)).collect();
        if let Some(views) = self.recent.as_ref().filter(|_| !lost.is_empty()) {
            let views = views.iter().cloned().collect();
            self.holes.add(view.dead.iter().map(DeadHost::member).collect(), Hole::Mastered { views, lost });
        }
        if let Some(recent) = &mut self.recent {
            recent.push(view.members.clone());
            if recent.len() > RECENT_LIMIT {
                self.recent = None;
            }
        }
    }

    /// Keeps only what is about hosts that are alive, or dead and not recovered.
    fn keep(&mut self, view: &View, living_too: bool) {
        let dead = |m: &Member| view.dead.iter().any(|d| d.member() == *m);
        let keep = |m: &Member| dead(m) || (living_too && view.members.contains(m));
        self.holes.keep(dead);
        self.old.retain(|_, old| {
            old.holds.retain(|member, _| keep(member));
            old.posix.retain(keep);
            living_too || !old.holds.is_empty() || !old.posix.is_empty()
        });
    }
}

impl Core {
    /// A new view: everything is rebuilt.
    pub(super) fn enter(&mut self, mut view: View, out: &mut Vec<Output>) {
        if self.view.as_ref().is_some_and(|current| current.epoch >= view.epoch) {
            self.counters.stale += 1;
            return;
        }
        if !view.members.contains(&self.me) {
            self.evicted = true;
            self.master = super::Master::default();
            self.local = super::Local::default();
            self.rebuild = Rebuild::default();
            self.early.clear();
            out.push(Output::Evicted);
            return;
        }
        self.counters.views += 1;
        self.view_since_ms = self.now_ms;
        view.dead.retain(|dead| !self.recovered.contains(&dead.member()));
        self.inbox.clear();
        if let Some(before) = self.view.take() {
            self.set_aside(&before);
            if self.mutant(Mutant::ForgetsWhatItKnew) {
                self.rebuild.old.clear();
            }
            if !self.mutant(Mutant::NotesNoHoles) {
                self.rebuild.note_lost(&view);
            }
        }
        self.rebuild.keep(&view, true);
        self.rebuild.markers.clear();
        self.rebuild.ready.clear();
        self.master = super::Master::default();
        self.view = Some(view);
        self.tell_masters(out);
        self.take_early(out);
    }

    /// Moves what this host knew as a master to `old`.
    fn set_aside(&mut self, before: &View) {
        let member = |slot: u16| before.members.iter().copied().find(|m| m.slot == slot && *m != self.me);
        for (name, resource) in &self.master.resources {
            let old = self.rebuild.old.entry(*name).or_default();
            merge(&mut old.value, &resource.value);
            let living = resource.granted.iter().filter_map(|(slot, mode)| Some((member(*slot)?, ModeSet::only(*mode))));
            for (who, modes) in living.chain(resource.dead.iter().map(|(who, modes)| (*who, *modes))) {
                let known = old.holds.entry(who).or_default();
                *known = known.union(modes);
            }
        }
        for (name, table) in self.master.posix.iter() {
            let owners = table.held().iter().filter_map(|lock| member(lock.owner.slot));
            self.rebuild.old.entry(*name).or_default().posix.extend(owners);
        }
        for (name, members) in &self.master.posix_dead {
            self.rebuild.old.entry(*name).or_default().posix.extend(members);
        }
    }

    /// Sends records, the marker, and the requests, in this order.
    fn tell_masters(&mut self, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        let mut records = self.local.records();
        for (name, old) in &self.rebuild.old {
            for dead in view.dead.iter().map(DeadHost::member) {
                if let Some(modes) = old.holds.get(&dead).map(|modes| modes.intersect(ModeSet::WRITING)).filter(|modes| !modes.is_empty()) {
                    records.push((*name, Record::Dead { name: *name, member: dead, modes }));
                }
                if old.posix.contains(&dead) {
                    records.push((*name, Record::PosixDead { name: *name, member: dead }));
                }
            }
            if old.value != [0; 4] {
                records.push((*name, Record::Value { name: *name, value: old.value }));
            }
        }
        let mut by_master: BTreeMap<u16, Vec<Record>> = BTreeMap::new();
        for (name, record) in records {
            if let Some(master) = master_of(&name, &view.members) {
                by_master.entry(master.slot).or_default().push(record);
            }
        }
        let members: Vec<u16> = view.members.iter().map(|m| m.slot).collect();
        for (slot, records) in by_master {
            for batch in records.chunks(BATCH) {
                self.send(slot, Body::Records(batch.to_vec()), out);
            }
        }
        for slot in members {
            self.send(slot, Body::Marker(self.rebuild.history()), out);
        }
        for (name, body) in self.local.requests() {
            self.ask_master(name, body, out);
        }
    }

    /// Handles what arrived before the view did.
    fn take_early(&mut self, out: &mut Vec<Output>) {
        // Own messages first: nothing of others can be meant to come before them.
        self.drain_inbox(out);
        let early = std::mem::take(&mut self.early);
        for (from, msgs) in early {
            for msg in msgs {
                self.receive(from, msg, out);
                self.drain_inbox(out);
            }
        }
    }

    pub(super) fn take_records(&mut self, from: u16, records: Vec<Record>) {
        if self.master.open {
            // The marker comes after the records, so this is not a member's doing.
            self.counters.refused += 1;
            return;
        }
        for record in records {
            // a member tells each master what is its own; anything else would be kept for ever
            if self.master(record.name()) != Some(self.me) || !record.is_from(from) {
                self.counters.refused += 1;
                continue;
            }
            match record {
                Record::Held { name, mode, value } => {
                    let resource = self.master.resources.entry(name).or_default();
                    resource.granted.insert(from, mode);
                    merge(&mut resource.value, &value);
                    self.touched.insert(name);
                }
                Record::Dead { name, member, modes } => {
                    let known = self.master.resources.entry(name).or_default().dead.entry(member).or_default();
                    *known = known.union(modes);
                }
                Record::Value { name, value } => merge(&mut self.master.resources.entry(name).or_default().value, &value),
                Record::PosixHeld { name, lock } => self.master.posix.adopt(name, lock),
                Record::PosixDead { name, member } => {
                    self.master.posix_dead.entry(name).or_default().insert(member);
                }
            }
        }
    }

    pub(super) fn take_marker(&mut self, from: u16, history: History, out: &mut Vec<Output>) {
        self.rebuild.markers.insert(from, history);
        if !self.master.open && self.markers_complete() {
            self.open(out);
        }
    }

    fn markers_complete(&self) -> bool {
        if self.mutant(Mutant::GrantsBeforeAllMarkers) {
            return true;
        }
        self.view.as_ref().is_some_and(|view| view.members.iter().all(|m| self.rebuild.markers.contains_key(&m.slot)))
    }

    /// Everybody has told everything: work out what the dead may hold, and begin to grant.
    fn open(&mut self, out: &mut Vec<Output>) {
        let Some(view) = self.view.clone() else { return };
        self.learn_history(&view);
        self.master.open = true;
        let names: Vec<Name> = self.master.resources.keys().copied().collect();
        for name in &names {
            if let Some(resource) = self.master.resources.get(name) {
                let dead = self.may_hold(name, resource);
                if let Some(resource) = self.master.resources.get_mut(name) {
                    resource.dead = dead;
                }
            }
        }
        for member in &view.members {
            self.send(member.slot, Body::Ready, out);
        }
        for name in names {
            self.process(name, out);
        }
        self.retry_posix(out);
    }

    fn learn_history(&mut self, view: &View) {
        let knowing: Vec<&History> = self.rebuild.markers.values().filter(|history| history.recent.is_some()).collect();
        let mut recent: BTreeSet<Vec<Member>> = BTreeSet::from([view.members.clone()]);
        let dead: BTreeSet<Member> = view.dead.iter().map(DeadHost::member).collect();
        let mut holes = Holes::default();
        if knowing.is_empty() {
            holes.add(dead.clone(), Hole::Everything);
        }
        for (of, hole) in knowing.iter().flat_map(|history| &history.holes) {
            holes.add(of & &dead, hole.clone());
        }
        recent.extend(knowing.iter().flat_map(|history| history.recent.iter().flatten().cloned()));
        self.rebuild.recent = Some(recent.into_iter().collect());
        self.rebuild.holes = holes;
    }

    pub(super) fn take_ready(&mut self, from: u16) {
        self.rebuild.ready.insert(from);
        let Some(view) = &self.view else { return };
        if view.members.iter().all(|m| self.rebuild.ready.contains(&m.slot)) {
            self.rebuild.recent = Some(vec![view.members.clone()]);
            self.rebuild.keep(view, false);
            self.master.settle();
        }
    }

    /// The dead of whom it is unknown what they hold of `name`.
    pub(super) fn unknown(&self, name: &Name) -> BTreeSet<Member> {
        let Some(view) = &self.view else { return BTreeSet::new() };
        let mut unknown = self.rebuild.holes.unknown(name);
        for dead in &view.dead {
            let alive = master_of(name, &dead.last_view).is_some_and(|master| view.members.contains(&master));
            if !alive && self.mutant(Mutant::TrustsDeadMasters) {
                unknown.remove(&dead.member());
            } else if !alive {
                unknown.insert(dead.member());
            }
        }
        unknown
    }

    /// What each dead host may hold of the name, given what was reported and what the living hold.
    pub(super) fn may_hold(&self, name: &Name, resource: &Resource) -> BTreeMap<Member, ModeSet> {
        let Some(view) = self.view.as_ref().filter(|_| !self.mutant(Mutant::ForgetsTheDead)) else { return BTreeMap::new() };
        if view.dead.is_empty() {
            return BTreeMap::new();
        }
        let unknown = self.unknown(name);
        let together = resource.granted.values().fold(ModeSet::WRITING, |modes, held| modes.intersect(ModeSet::compatible_with(*held)));
        let of = |dead: &DeadHost| {
            let reported = resource.dead.get(&dead.member()).copied().unwrap_or_default();
            let modes = if unknown.contains(&dead.member()) { ModeSet::WRITING } else { reported };
            (dead.member(), modes.intersect(together))
        };
        view.dead.iter().map(of).filter(|(_, modes)| !modes.is_empty()).collect()
    }

    /// A dead host is recovered: nothing it held matters any more.
    pub(super) fn thaw(&mut self, member: Member, out: &mut Vec<Output>) {
        self.recovered.insert(member);
        let Some(view) = &mut self.view else { return };
        view.dead.retain(|dead| dead.member() != member);
        let view = view.clone();
        self.rebuild.keep(&view, true);
        let mut names = Vec::new();
        for (name, resource) in &mut self.master.resources {
            if resource.dead.remove(&member).is_some() {
                names.push(*name);
            }
        }
        self.master.posix_dead.retain(|_, dead| {
            dead.remove(&member);
            !dead.is_empty()
        });
        if self.master.open {
            names.into_iter().for_each(|name| self.process(name, out));
            self.retry_posix(out);
        }
    }
}
