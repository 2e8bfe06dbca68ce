//! The master's side: for each name it masters, who holds it, who waits, and what dead hosts may hold.
//!
//! Invariant: the holders of a name get along pairwise, and with everything an unrecovered dead host may hold. Nothing is granted
//! or refused before the rebuild of the epoch is complete (`open`). The rules are in the table of the parent module.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Core, Mutant, Output};
use crate::mode::{Mode, ModeSet};
use crate::msg::Body;
use crate::name::{Name, ValueBlock, merge};
use crate::posix::{Key, Op, PosixError, PosixResult, Server};
use crate::view::Member;

/// Hosts and modes.
type Slots = Vec<(u16, Mode)>;

/// One waiting request.
#[derive(Clone, Debug)]
struct Request {
    slot: u16,
    mode: Mode,
    noqueue: bool,
    /// Holders that were asked down for this request and have not changed since.
    asked: BTreeSet<u16>,
    /// Already counted as waiting for a recovery.
    counted: bool,
}

/// One name.
#[derive(Clone, Debug, Default)]
pub(super) struct Resource {
    pub(super) granted: BTreeMap<u16, Mode>,
    queue: VecDeque<Request>,
    pub(super) value: ValueBlock,
    /// What each unrecovered dead host may hold; before the master is open, what was reported.
    pub(super) dead: BTreeMap<Member, ModeSet>,
}

/// What to do about the first request that can go on or must be answered.
enum Verdict {
    Grant(usize, Mode),
    Deny(usize),
    Wait(Option<usize>),
}

impl Resource {
    fn is_nothing(&self) -> bool {
        self.granted.is_empty() && self.queue.is_empty() && self.dead.is_empty()
    }

    fn held_by(&self, slot: u16) -> Mode {
        self.granted.get(&slot).copied().unwrap_or_default()
    }

    /// What the request will be granted: never less than its host has.
    fn target(&self, request: &Request) -> Mode {
        request.mode.join(self.held_by(request.slot))
    }

    fn frozen_for(&self, mode: Mode) -> bool {
        self.dead.values().any(|modes| !modes.all_compatible(mode))
    }

    /// Holders that do not get along with `mode` for `slot`.
    fn blockers(&self, slot: u16, mode: Mode) -> impl Iterator<Item = u16> {
        self.granted.iter().filter(move |(other, held)| **other != slot && !held.compatible(mode)).map(|(other, _)| *other)
    }

    /// Looks through the queue in order: the first request to grant or refuse, or the first that must wait for holders.
    fn verdict(&self) -> Verdict {
        for (i, request) in self.queue.iter().enumerate() {
            let mode = self.target(request);
            if self.frozen_for(mode) {
                if request.noqueue {
                    return Verdict::Deny(i);
                }
                continue;
            }
            if self.blockers(request.slot, mode).next().is_none() {
                return Verdict::Grant(i, mode);
            }
            // Behind a request that waits, one that must not queue is refused; others queue.
            let refuse = (i + 1..self.queue.len()).find(|j| self.queue[*j].noqueue);
            return refuse.map_or(Verdict::Wait(Some(i)), Verdict::Deny);
        }
        Verdict::Wait(None)
    }

    /// The holder's mode changed: whatever it was asked before is answered.
    fn changed(&mut self, slot: u16) {
        for request in &mut self.queue {
            request.asked.remove(&slot);
        }
    }

    fn broken(&self) -> Option<String> {
        let live: Vec<_> = self.granted.iter().collect();
        for (i, (a, held)) in live.iter().enumerate() {
            if let Some((b, other)) = live[i + 1..].iter().find(|(_, other)| !held.compatible(**other)) {
                return Some(format!("slot {a} holds {held} and slot {b} holds {other}"));
            }
        }
        None
    }

    /// As `broken`, with the dead. Only meaningful once the master is open.
    fn broken_with_dead(&self) -> Option<String> {
        let against = |(slot, mode): (&u16, &Mode)| {
            let (member, _) = self.dead.iter().find(|(_, modes)| !modes.all_compatible(*mode))?;
            Some(format!("slot {slot} holds {mode} against dead slot {} incarnation {}", member.slot, member.incarnation))
        };
        self.broken().or_else(|| self.granted.iter().find_map(against))
    }
}

/// The state of a master.
#[derive(Debug, Default)]
pub(super) struct Master {
    /// Every member's marker of this epoch arrived.
    pub(super) open: bool,
    /// Every member is open, so everybody's requests have arrived and a name that nobody holds or wants may be forgotten.
    pub(super) settled: bool,
    pub(super) resources: BTreeMap<Name, Resource>,
    pub(super) posix: Server,
    /// Byte-range operations that wait for the rebuild or a recovery.
    pub(super) posix_waiting: VecDeque<(Key, Name, Op)>,
    /// Files of which dead hosts held byte ranges.
    pub(super) posix_dead: BTreeMap<Name, BTreeSet<Member>>,
}

impl Master {
    /// Every member is open.
    pub(super) fn settle(&mut self) {
        self.settled = true;
        self.resources.retain(|_, resource| !resource.is_nothing());
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.resources.keys()
    }

    pub(super) fn broken(&self, name: &Name) -> Option<String> {
        let resource = self.resources.get(name)?;
        if self.open { resource.broken_with_dead() } else { resource.broken() }
    }

    pub(super) fn dump(&self, name: &Name) -> (Slots, Slots, Vec<Member>) {
        self.resources.get(name).map_or_else(Default::default, |resource| {
            let holders = resource.granted.iter().map(|(slot, mode)| (*slot, *mode)).collect();
            let waiters = resource.queue.iter().map(|request| (request.slot, request.mode)).collect();
            (holders, waiters, resource.dead.keys().copied().collect())
        })
    }
}

impl Core {
    /// The name's resource; a new one knows what dead hosts may hold of it.
    fn resource(&mut self, name: Name) -> &mut Resource {
        if self.master.open && !self.master.resources.contains_key(&name) {
            let dead = self.may_hold(&name, &Resource::default());
            self.master.resources.insert(name, Resource { dead, ..Resource::default() });
        }
        self.touched.insert(name);
        self.master.resources.entry(name).or_default()
    }

    pub(super) fn master_lock(&mut self, from: u16, name: Name, mode: Mode, noqueue: bool, out: &mut Vec<Output>) {
        if self.master(&name) != Some(self.me) {
            self.counters.refused += 1;
            return;
        }
        let resource = self.resource(name);
        if let Some(request) = resource.queue.iter_mut().find(|request| request.slot == from) {
            (request.mode, request.noqueue) = (mode, noqueue);
            request.asked.clear();
        } else {
            resource.queue.push_back(Request { slot: from, mode, noqueue, asked: BTreeSet::new(), counted: false });
        }
        self.process(name, out);
    }

    pub(super) fn master_release(&mut self, from: u16, name: Name, change: (Mode, Mode), value: Option<ValueBlock>, out: &mut Vec<Output>) {
        self.touched.insert(name);
        let blind = self.mutant(Mutant::BelievesCrossedReleases);
        let Some(resource) = self.master.resources.get_mut(&name) else { return };
        if let Some(value) = &value {
            merge(&mut resource.value, value);
        }
        let (was, to) = change;
        if (resource.held_by(from) != was && !blind) || !was.covers(to) {
            self.counters.crossed += 1;
            return;
        }
        if to == Mode::Nl {
            resource.granted.remove(&from);
        } else {
            resource.granted.insert(from, to);
        }
        resource.changed(from);
        self.process(name, out);
    }

    pub(super) fn master_busy(&mut self, from: u16, name: Name, wanted: Mode, out: &mut Vec<Output>) {
        let Some(resource) = self.master.resources.get_mut(&name) else { return };
        let asked = |r: &Request| r.noqueue && r.asked.contains(&from) && r.mode.join(resource.held_by(r.slot)) == wanted;
        if let Some(i) = resource.queue.iter().position(asked)
            && let Some(request) = resource.queue.remove(i)
        {
            self.send(request.slot, Body::Deny { name }, out);
            self.process(name, out);
        }
    }

    /// Grants, refuses and asks down until the queue can do no more.
    pub(super) fn process(&mut self, name: Name, out: &mut Vec<Output>) {
        if !self.master.open {
            return;
        }
        self.touched.insert(name);
        while let Some(resource) = self.master.resources.get_mut(&name) {
            match resource.verdict() {
                Verdict::Grant(i, mode) => {
                    let Some(request) = resource.queue.remove(i) else { return };
                    resource.granted.insert(request.slot, mode);
                    resource.changed(request.slot);
                    let value = resource.value;
                    self.send(request.slot, Body::Grant { name, mode, value }, out);
                }
                Verdict::Deny(i) => {
                    let Some(request) = resource.queue.remove(i) else { return };
                    self.send(request.slot, Body::Deny { name }, out);
                }
                Verdict::Wait(first) => return self.ask_down(name, first, out),
            }
        }
    }

    /// Nothing can be granted: asks down whoever is in the way of the first request, and forgets a name nobody wants.
    fn ask_down(&mut self, name: Name, first: Option<usize>, out: &mut Vec<Output>) {
        let Some(resource) = self.master.resources.get_mut(&name) else { return };
        if resource.is_nothing() {
            if self.master.settled {
                self.master.resources.remove(&name);
            }
            return;
        }
        let waits = first.unwrap_or(resource.queue.len());
        for request in resource.queue.iter_mut().take(waits).filter(|request| !request.counted) {
            request.counted = true;
            self.counters.frozen_waits += 1;
        }
        let Some(first) = first else { return };
        let (slot, polite) = (resource.queue[first].slot, resource.queue[first].noqueue);
        let wanted = resource.target(&resource.queue[first]);
        let blockers: Vec<u16> = resource.blockers(slot, wanted).collect();
        let asked = &mut resource.queue[first].asked;
        let fresh: Vec<u16> = blockers.into_iter().filter(|slot| asked.insert(*slot)).collect();
        for slot in fresh {
            self.send(slot, Body::Bast { name, wanted, polite }, out);
        }
    }

    fn posix_frozen(&self, name: &Name) -> bool {
        if self.mutant(Mutant::ForgetsTheDead) {
            return false;
        }
        let Some(view) = &self.view else { return true };
        if view.dead.is_empty() {
            return false;
        }
        let (known, unknown) = (self.master.posix_dead.get(name), self.unknown(name));
        view.dead.iter().any(|dead| known.is_some_and(|known| known.contains(&dead.member())) || unknown.contains(&dead.member()))
    }

    pub(super) fn master_posix(&mut self, key: Key, name: Name, op: Op, out: &mut Vec<Output>) {
        let owner = match op {
            Op::Set { lock, .. } | Op::Get(lock) => lock.owner,
            Op::Unset { owner, .. } => owner,
        };
        if owner.slot != key.0 || self.master(&name) != Some(self.me) {
            self.counters.refused += 1;
            return self.answer(vec![(key, Err(PosixError::Invalid))], out);
        }
        let may_go = self.master.open && (matches!(op, Op::Unset { .. }) || !self.posix_frozen(&name));
        if !may_go {
            self.counters.frozen_waits += u64::from(self.master.open);
            self.master.posix_waiting.push_back((key, name, op));
            return;
        }
        let mut answers = Vec::new();
        self.master.posix.op(key, name, op, &mut answers);
        self.answer(answers, out);
    }

    pub(super) fn master_posix_cancel(&mut self, key: Key, name: Name, out: &mut Vec<Output>) {
        let mut answers = Vec::new();
        let before = self.master.posix_waiting.len();
        self.master.posix_waiting.retain(|(other, _, _)| *other != key);
        if self.master.posix_waiting.len() < before {
            answers.push((key, Err(PosixError::Interrupted)));
        }
        self.master.posix.cancel(key, &name, &mut answers);
        self.answer(answers, out);
    }

    /// Tries again what waited for the rebuild or a recovery, in order.
    pub(super) fn retry_posix(&mut self, out: &mut Vec<Output>) {
        for (key, name, op) in std::mem::take(&mut self.master.posix_waiting) {
            self.master_posix(key, name, op, out);
        }
    }

    fn answer(&mut self, answers: Vec<(Key, PosixResult)>, out: &mut Vec<Output>) {
        for ((slot, token), result) in answers {
            self.send(slot, Body::PosixDone { token, result }, out);
        }
    }
}
