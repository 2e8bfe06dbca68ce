//! The lock manager of one host as a function of its state, the time and one input.
//!
//! Each name has one **master** among the members (rendezvous hashing). The master keeps who holds what and who waits; the host
//! that asks keeps what it was granted. A host has at most one mode and one request per name.
//!
//! | rule | |
//! |---|---|
//! | order | one queue per name, first come first served, conversions included; a request never overtakes one that must wait, except one that waits only for a dead host's recovery |
//! | coming down | a BAST goes to every holder in the way of the first request that cannot be granted, once per request and grant, **also to a holder that waits for a conversion itself** |
//! | going up | the cache drains its own holds before it asks, so a converter asked to come down always can; its request stays queued |
//! | why no deadlock | whoever blocks the first request is asked down, and coming down waits for nothing but local holds |
//! | why no starvation | the first in the queue stays first until granted |
//! | not queueing | the BAST is polite; a holder in use answers `Busy` and the request is refused |
//! | crossing | a release names the mode it comes from; if the master knows better, a grant is under way and the release is void |
//! | new view | masters forget, holders report, requesters ask again; see `rebuild` |
//! | frozen | a request that does not get along with what an unrecovered dead host may hold waits for its recovery |
//!
//! Invariants, asserted after every step: granted modes of a name get along pairwise, and none was granted against what a dead
//! host may hold. The core reads no clock, draws no random number, and walks maps in order.

mod counters;
mod holes;
mod local;
mod master;
mod rebuild;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use self::counters::Counters;
use self::local::Local;
use self::master::Master;
use self::rebuild::Rebuild;
use crate::mode::Mode;
use crate::msg::{Body, Msg};
use crate::name::{Name, ValueBlock};
use crate::posix::{Op, PosixResult};
use crate::view::{Member, View, master_of};

/// Messages of newer epochs held per sender.
const EARLY_LIMIT: usize = 65_536;

/// What happens to a core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The cache wants `mode`, or more of what it has: a conversion is a `Lock` of a name that is held.
    Lock {
        /// What.
        name: Name,
        /// How.
        mode: Mode,
        /// Rather be refused than wait.
        noqueue: bool,
    },
    /// The cache came down.
    Release {
        /// What.
        name: Name,
        /// What it held.
        from: Mode,
        /// What it holds.
        to: Mode,
        /// Its contribution.
        value: Option<ValueBlock>,
    },
    /// The cache's answer to a polite BAST when the name is in use.
    Busy {
        /// What.
        name: Name,
        /// The wanted mode.
        wanted: Mode,
    },
    /// A message arrived.
    Message {
        /// The authenticated sender.
        from: u16,
        /// The message.
        msg: Msg,
    },
    /// The members changed.
    View(View),
    /// This dead host's journal was replayed.
    Recovered(Member),
    /// A program's byte-range lock operation.
    Posix {
        /// Chosen by the client, never used twice.
        token: u64,
        /// The file.
        name: Name,
        /// The operation.
        op: Op,
    },
    /// The program was interrupted.
    PosixCancel {
        /// The operation.
        token: u64,
    },
    /// Time goes by.
    Tick,
}

/// What a core wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send this to that host.
    Send {
        /// Its slot.
        to: u16,
        /// The message.
        msg: Msg,
    },
    /// Tell the cache.
    Granted {
        /// What.
        name: Name,
        /// How.
        mode: Mode,
        /// The value block.
        value: ValueBlock,
    },
    /// Tell the cache.
    Denied {
        /// What.
        name: Name,
        /// The mode it asked for.
        mode: Mode,
    },
    /// Tell the cache.
    Bast {
        /// What.
        name: Name,
        /// How somebody wants it.
        wanted: Mode,
        /// Only if it is not in use.
        polite: bool,
    },
    /// Tell the client.
    PosixDone {
        /// The operation.
        token: u64,
        /// How it went.
        result: PosixResult,
    },
    /// This host is no member any more: withdraw the cache and the client. The core ignores everything from now on.
    Evicted,
}

/// One name as `luna status` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dump {
    /// What.
    pub name: Name,
    /// Who masters it.
    pub master: Option<Member>,
    /// What this host holds and asks for.
    pub mine: (Mode, Option<Mode>),
    /// If this host masters it: who holds it.
    pub holders: Vec<(u16, Mode)>,
    /// If this host masters it: who waits.
    pub waiters: Vec<(u16, Mode)>,
    /// If this host masters it: the dead whose recovery it waits for.
    pub frozen: Vec<Member>,
}

/// The lock manager of one host.
#[derive(Debug)]
pub struct Core {
    me: Member,
    view: Option<View>,
    evicted: bool,
    now_ms: u64,
    view_since_ms: u64,
    local: Local,
    master: Master,
    rebuild: Rebuild,
    recovered: BTreeSet<Member>,
    /// Messages to this host itself.
    inbox: VecDeque<Body>,
    early: BTreeMap<u16, VecDeque<Msg>>,
    touched: BTreeSet<Name>,
    counters: Counters,
    #[cfg(test)]
    mutant: Option<Mutant>,
}

/// A rule taken away, so that the tests can show that they would notice. Outside tests no rule can be taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    GrantsBeforeAllMarkers,
    ForgetsTheDead,
    ForgetsWhatItKnew,
    TrustsDeadMasters,
    NotesNoHoles,
    BelievesCrossedReleases,
}

impl Core {
    #[cfg(test)]
    fn mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "the test build looks at it")]
    const fn mutant(&self, _: Mutant) -> bool {
        false
    }

    /// A core that waits for its first view.
    #[must_use]
    pub fn new(me: Member) -> Self {
        Self {
            me,
            view: None,
            evicted: false,
            now_ms: 0,
            view_since_ms: 0,
            local: Local::default(),
            master: Master::default(),
            rebuild: Rebuild::default(),
            recovered: BTreeSet::new(),
            inbox: VecDeque::new(),
            early: BTreeMap::new(),
            touched: BTreeSet::new(),
            counters: Counters::default(),
            #[cfg(test)]
            mutant: None,
        }
    }

    /// One input; appends what has to be done, in order.
    ///
    /// # Panics
    /// When an invariant is broken: going on could hand one lock to two hosts.
    pub fn step(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        self.now_ms = now_ms;
        if self.evicted {
            return;
        }
        match input {
            Input::Lock { name, mode, noqueue } => self.local_lock(name, mode, noqueue, out),
            Input::Release { name, from, to, value } => self.local_release(name, from, to, value, out),
            Input::Busy { name, wanted } => self.ask_master(name, Body::Busy { name, wanted }, out),
            Input::Message { from, msg } => self.receive(from, msg, out),
            Input::View(view) => self.enter(view, out),
            Input::Recovered(member) => self.thaw(member, out),
            Input::Posix { token, name, op } => self.local_posix(token, name, op, out),
            Input::PosixCancel { token } => self.local_posix_cancel(token, out),
            Input::Tick => {}
        }
        self.drain_inbox(out);
        self.assert_touched();
    }

    fn drain_inbox(&mut self, out: &mut Vec<Output>) {
        while let Some(body) = self.inbox.pop_front() {
            self.handle(self.me.slot, body, out);
        }
    }

    fn receive(&mut self, from: u16, msg: Msg, out: &mut Vec<Output>) {
        self.counters.received += 1;
        let epoch = self.view.as_ref().map_or(0, |view| view.epoch);
        if msg.epoch < epoch {
            self.counters.stale += 1;
        } else if msg.epoch > epoch || self.view.is_none() {
            let held = self.early.entry(from).or_default();
            // Past the limit everything of this sender is lost, its marker too: the rebuild then stalls, it does not go wrong.
            if held.len() < EARLY_LIMIT {
                held.push_back(msg);
                self.counters.early += 1;
            } else {
                self.counters.refused += 1;
            }
        } else if from == self.me.slot || !self.is_member(from) {
            self.counters.refused += 1;
        } else {
            self.handle(from, msg.body, out);
        }
    }

    fn handle(&mut self, from: u16, body: Body, out: &mut Vec<Output>) {
        match body {
            Body::Lock { name, mode, noqueue } => self.master_lock(from, name, mode, noqueue, out),
            Body::Release { name, from: was, to, value } => self.master_release(from, name, (was, to), value, out),
            Body::Busy { name, wanted } => self.master_busy(from, name, wanted, out),
            Body::Grant { name, mode, value } => self.local_grant(name, mode, value, out),
            Body::Deny { name } => self.local_deny(name, out),
            Body::Bast { name, wanted, polite } => self.local_bast(name, wanted, polite, out),
            Body::Posix { token, name, op } => self.master_posix((from, token), name, op, out),
            Body::PosixCancel { token, name } => self.master_posix_cancel((from, token), name, out),
            Body::PosixDone { token, result } => self.local_posix_done(token, result, out),
            Body::Records(records) => self.take_records(from, records),
            Body::Marker(history) => self.take_marker(from, history, out),
            Body::Ready => self.take_ready(from),
        }
    }

    fn is_member(&self, slot: u16) -> bool {
        self.view.as_ref().is_some_and(|view| view.members.iter().any(|m| m.slot == slot))
    }

    fn master(&self, name: &Name) -> Option<Member> {
        master_of(name, &self.view.as_ref()?.members)
    }

    /// Sends to the master; before the first view nothing is sent, because entering a view sends everything anyway.
    fn ask_master(&mut self, name: Name, body: Body, out: &mut Vec<Output>) {
        if let Some(master) = self.master(&name) {
            self.send(master.slot, body, out);
        }
    }

    fn send(&mut self, to: u16, body: Body, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        if to == self.me.slot {
            self.inbox.push_back(body);
        } else {
            self.counters.sent += 1;
            out.push(Output::Send { to, msg: Msg { epoch: view.epoch, body } });
        }
    }

    fn assert_touched(&mut self) {
        for name in std::mem::take(&mut self.touched) {
            if let Some(broken) = self.master.broken(&name) {
                panic!("the lock manager broke its promise for {name}: {broken}; this host stops rather than hand a lock to two");
            }
        }
    }

    /// Checks every invariant of this core.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if let Some((name, broken)) = self.master.names().find_map(|name| Some((name, self.master.broken(name)?))) {
            return Err(format!("{name}: {broken}"));
        }
        if let Some((name, a, b)) = self.master.posix.broken() {
            return Err(format!("{name}: byte ranges conflict: {a:?} {b:?}"));
        }
        if let Some(name) = self.master.names().find(|name| self.master(name) != Some(self.me)) {
            return Err(format!("{name}: kept here but mastered elsewhere"));
        }
        Ok(())
    }

    /// The epoch, whether masters grant, and for how long it has been so.
    #[must_use]
    pub fn status(&self) -> (u64, bool, u64) {
        let epoch = self.view.as_ref().map_or(0, |view| view.epoch);
        (epoch, self.master.open, self.now_ms.saturating_sub(self.view_since_ms))
    }

    /// What this host holds of `name`, as far as the manager knows.
    #[must_use]
    pub fn granted(&self, name: &Name) -> Mode {
        self.local.granted(name)
    }

    /// The counters.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Every name this host masters, holds or wants.
    #[must_use]
    pub fn dump(&self) -> Vec<Dump> {
        let names: BTreeSet<Name> = self.master.names().chain(self.local.names()).copied().collect();
        let line = |name: Name| {
            let (holders, waiters, frozen) = self.master.dump(&name);
            Dump { name, master: self.master(&name), mine: self.local.dump(&name), holders, waiters, frozen }
        };
        names.into_iter().map(line).collect()
    }
}
