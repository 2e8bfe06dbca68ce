//! The requester's side: what this host was granted and what it asks for.
//!
//! Invariant: `granted` is never less than what the cache believes to hold: a grant is written here before the cache hears of
//! it, a release is written here after the cache gave up. Who else holds what is the master's business.

use std::collections::BTreeMap;

use super::{Core, Mutant, Output};
use crate::mode::Mode;
use crate::msg::{Body, Record};
use crate::name::{Name, ValueBlock, merge};
use crate::posix::{Op, PosixResult, Server, Space};

/// What this host has and wants of one name.
#[derive(Clone, Copy, Debug, Default)]
struct Mine {
    granted: Mode,
    value: ValueBlock,
    /// What was asked for, and whether it must not queue.
    request: Option<(Mode, bool)>,
}

/// A byte-range operation without an answer.
#[derive(Clone, Copy, Debug)]
struct OpenOp {
    name: Name,
    op: Op,
    cancelled: bool,
}

/// The requester's state.
#[derive(Debug, Default)]
pub(super) struct Local {
    holds: BTreeMap<Name, Mine>,
    posix_open: BTreeMap<u64, OpenOp>,
    /// What this host's programs hold; the same arithmetic as a master's.
    posix_mine: Server,
}

impl Local {
    pub(super) fn granted(&self, name: &Name) -> Mode {
        self.holds.get(name).map_or(Mode::Nl, |mine| mine.granted)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.holds.keys()
    }

    pub(super) fn dump(&self, name: &Name) -> (Mode, Option<Mode>) {
        self.holds.get(name).map_or((Mode::Nl, None), |mine| (mine.granted, mine.request.map(|(mode, _)| mode)))
    }

    /// Everything this host holds, for new masters.
    pub(super) fn records(&self) -> Vec<(Name, Record)> {
        let held = self.holds.iter().filter(|(_, mine)| mine.granted != Mode::Nl);
        let held = held.map(|(name, mine)| (*name, Record::Held { name: *name, mode: mine.granted, value: mine.value }));
        let ranges = self.posix_mine.iter().flat_map(|(name, table)| {
            table.held().iter().map(|lock| (*name, Record::PosixHeld { name: *name, lock: *lock })).collect::<Vec<_>>()
        });
        held.chain(ranges).collect()
    }

    /// Everything this host waits for, to be asked again.
    pub(super) fn requests(&self) -> Vec<(Name, Body)> {
        let asked = |(name, mine): (&Name, &Mine)| {
            let (mode, noqueue) = mine.request?;
            Some((*name, Body::Lock { name: *name, mode: mode.join(mine.granted), noqueue }))
        };
        let mut all: Vec<_> = self.holds.iter().filter_map(asked).collect();
        for (token, open) in &self.posix_open {
            all.push((open.name, Body::Posix { token: *token, name: open.name, op: open.op }));
            if open.cancelled {
                all.push((open.name, Body::PosixCancel { token: *token, name: open.name }));
            }
        }
        all
    }
}

impl Core {
    pub(super) fn local_lock(&mut self, name: Name, mode: Mode, noqueue: bool, out: &mut Vec<Output>) {
        self.counters.requests += 1;
        let mine = self.local.holds.entry(name).or_default();
        if mine.granted.covers(mode) && mine.request.is_none() {
            let (mode, value) = (mine.granted, mine.value);
            self.counters.grants += 1;
            out.push(Output::Granted { name, mode, value });
            return self.tidy(&name);
        }
        // A second request takes the place of the first: the cache has at most one, so this is for other callers.
        let asked = mine.request.map_or(mode, |(before, _)| before.join(mode));
        mine.request = Some((asked, noqueue));
        let mode = asked.join(mine.granted);
        self.ask_master(name, Body::Lock { name, mode, noqueue }, out);
    }

    pub(super) fn local_release(&mut self, name: Name, from: Mode, to: Mode, value: Option<ValueBlock>, out: &mut Vec<Output>) {
        self.counters.releases += 1;
        let blind = self.mutant(Mutant::BelievesCrossedReleases);
        if let Some(mine) = self.local.holds.get_mut(&name) {
            if let Some(value) = &value {
                merge(&mut mine.value, value);
            }
            if (mine.granted == from || blind) && from.covers(to) {
                mine.granted = to;
            } else {
                self.counters.crossed += 1;
            }
        }
        self.tidy(&name);
        // The master compares `from` too, so a crossed release leaves only its value there.
        self.ask_master(name, Body::Release { name, from, to, value }, out);
    }

    pub(super) fn local_grant(&mut self, name: Name, mode: Mode, value: ValueBlock, out: &mut Vec<Output>) {
        self.counters.grants += 1;
        let mine = self.local.holds.entry(name).or_default();
        mine.granted = mode;
        mine.request = None;
        merge(&mut mine.value, &value);
        out.push(Output::Granted { name, mode, value: mine.value });
    }

    pub(super) fn local_deny(&mut self, name: Name, out: &mut Vec<Output>) {
        let Some((mode, _)) = self.local.holds.get_mut(&name).and_then(|mine| mine.request.take()) else { return };
        self.counters.denials += 1;
        out.push(Output::Denied { name, mode });
        self.tidy(&name);
    }

    pub(super) fn local_bast(&mut self, name: Name, wanted: Mode, polite: bool, out: &mut Vec<Output>) {
        self.counters.basts += 1;
        if !self.local.granted(&name).compatible(wanted) {
            out.push(Output::Bast { name, wanted, polite });
        }
    }

    /// Forgets a name of which nothing is left.
    fn tidy(&mut self, name: &Name) {
        if self.local.holds.get(name).is_some_and(|mine| mine.granted == Mode::Nl && mine.request.is_none()) {
            self.local.holds.remove(name);
        }
    }

    pub(super) fn local_posix(&mut self, token: u64, name: Name, op: Op, out: &mut Vec<Output>) {
        self.counters.posix += 1;
        // Given up when asked, not when answered: the answer may be lost with a view in which somebody else got the range.
        match op {
            Op::Unset { space, owner, start, end } => self.local.posix_mine.forget(name, space, owner, start, end),
            // Waiting for an flock lets go of the old one.
            Op::Set { lock, wait: true } if lock.space == Space::Flock => {
                self.local.posix_mine.forget(name, lock.space, lock.owner, lock.start, lock.end);
            }
            Op::Set { .. } | Op::Get(_) => {}
        }
        self.local.posix_open.insert(token, OpenOp { name, op, cancelled: false });
        self.ask_master(name, Body::Posix { token, name, op }, out);
    }

    pub(super) fn local_posix_cancel(&mut self, token: u64, out: &mut Vec<Output>) {
        if let Some(open) = self.local.posix_open.get_mut(&token) {
            open.cancelled = true;
            let name = open.name;
            self.ask_master(name, Body::PosixCancel { token, name }, out);
        }
    }

    pub(super) fn local_posix_done(&mut self, token: u64, result: PosixResult, out: &mut Vec<Output>) {
        let Some(OpenOp { name, op, .. }) = self.local.posix_open.remove(&token) else { return };
        if let (Op::Set { lock, .. }, Ok(_)) = (op, result) {
            self.local.posix_mine.adopt(name, lock);
        }
        out.push(Output::PosixDone { token, result });
    }
}
