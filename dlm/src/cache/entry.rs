//! One name as this host sees it: what is granted, who uses it, who waits.
//!
//! Invariant: the gate says which modes may be taken without the mutex; it is changed only under the mutex, and whoever
//! narrows it looks at the counts *after* that, while whoever takes a hold raises its count *before* looking at the gate. So
//! one of the two always sees the other. This file decides; it calls neither hooks nor wakers.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;

use super::{CacheDump, Hold, LockCache, LockError};
use crate::mode::{Mode, ModeSet};
use crate::name::{Name, ValueBlock, merge};

/// Bit of the gate: whoever lowers a count must look whether somebody waits for that.
const WATCH: u8 = 0x80;

/// What a waiter is told with.
pub(super) type Waker = Box<dyn FnOnce(Result<Hold, LockError>) + Send>;

/// Somebody on this host who wants a hold.
pub(super) struct Waiter {
    pub(super) mode: Mode,
    pub(super) noqueue: bool,
    pub(super) waker: Waker,
}

/// Whether a hook is running for the entry; while it is, nothing else is decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Busy {
    /// No hook runs.
    #[default]
    No,
    /// `Hooks::granted` runs.
    Settling,
    /// `Hooks::come_down` is queued or runs.
    ComingDown,
}

/// The part of an entry under its mutex.
#[derive(Default)]
pub(super) struct Slow {
    /// What the manager has granted to this host.
    pub(super) granted: Mode,
    /// The one request that is on its way, and whether it must not queue.
    pub(super) requested: Option<(Mode, bool)>,
    /// Modes other hosts want and that we must make room for.
    pub(super) wanted: ModeSet,
    /// A host that does not want to wait asks whether we would come down.
    pub(super) polite: Option<Mode>,
    /// Come down to NL because nobody has used it for a while.
    pub(super) shrink: bool,
    pub(super) busy: Busy,
    /// A grant that arrived while a hook was running.
    pub(super) late_grant: Option<(Mode, ValueBlock)>,
    /// A grant was settled and its waiters have not had their turn yet.
    pub(super) fresh: bool,
    pub(super) waiters: VecDeque<Waiter>,
    /// The block as last granted, and what was contributed here since.
    pub(super) value: ValueBlock,
    pub(super) contributed: Option<ValueBlock>,
}

/// One name in the table.
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) cache: Weak<LockCache>,
    gate: AtomicU8,
    /// Live holds by mode.
    counts: [AtomicU32; 6],
    /// Used since the last `shrink`; and how many of them it has sat through unused.
    pub(super) used: AtomicBool,
    age: AtomicU32,
    pub(super) slow: Mutex<Slow>,
}

impl Entry {
    pub(super) fn new(name: Name, cache: Weak<LockCache>) -> Self {
        Self {
            name,
            cache,
            gate: AtomicU8::new(Mode::Nl as u8),
            counts: Default::default(),
            used: AtomicBool::new(true),
            age: AtomicU32::new(0),
            slow: Mutex::new(Slow::default()),
        }
    }

    /// The hot path: raises the count, then looks at the gate. False leaves nothing behind, but says through `.1` that a watcher
    /// must be told.
    pub(super) fn try_enter(&self, mode: Mode) -> (bool, bool) {
        self.counts[mode as usize].fetch_add(1, SeqCst);
        let gate = self.gate.load(SeqCst);
        if Mode::from_index(gate & !WATCH).is_some_and(|open| open.covers(mode)) {
            return (true, false);
        }
        (false, self.leave(mode))
    }

    /// Enters without asking the gate; the caller holds the mutex and has looked at `granted`.
    pub(super) fn enter_granted(&self, mode: Mode) {
        self.counts[mode as usize].fetch_add(1, SeqCst);
    }

    /// Lowers the count; true when a watcher must be told.
    pub(super) fn leave(&self, mode: Mode) -> bool {
        let before = self.counts[mode as usize].fetch_sub(1, SeqCst);
        assert!(before > 0, "lock {}: a {mode} hold was released that was never taken; please report", self.name);
        self.gate.load(SeqCst) & WATCH != 0
    }

    /// Which modes may be taken without the mutex.
    pub(super) fn open_mode(&self) -> Mode {
        Mode::from_index(self.gate.load(SeqCst) & !WATCH).unwrap_or_default()
    }

    /// Opens or narrows the gate. Caller holds the mutex.
    pub(super) fn set_gate(&self, open: Mode, watch: bool) {
        self.gate.store(open as u8 | if watch { WATCH } else { 0 }, SeqCst);
    }

    /// Live holds that do not fit under `mode`.
    pub(super) fn live_above(&self, mode: Mode) -> u32 {
        Mode::ALL.into_iter().filter(|m| !mode.covers(*m)).map(|m| self.counts[m as usize].load(SeqCst)).sum()
    }

    /// Called by `shrink`: how many calls in a row found it unused.
    pub(super) fn grow_older(&self) -> u32 {
        let age = if self.used.swap(false, Relaxed) { 0 } else { self.age.load(Relaxed).saturating_add(1) };
        self.age.store(age, Relaxed);
        age
    }

    pub(super) fn dump(&self) -> CacheDump {
        let slow = self.slow.lock();
        CacheDump {
            name: self.name,
            granted: slow.granted,
            live: self.live(),
            waiters: slow.waiters.len(),
            requested: slow.requested.map(|(mode, _)| mode),
            asked_down: !slow.wanted.is_empty(),
        }
    }

    /// All live holds of any mode but NL.
    pub(super) fn live(&self) -> u32 {
        self.live_above(Mode::Nl)
    }
}

/// What has to happen next for an entry; found under the mutex, done without it.
pub(super) enum Step {
    /// Nothing more; wake these.
    Done,
    /// Call `Hooks::granted`, then `settled`.
    Settle { from: Mode, to: Mode, value: ValueBlock },
    /// Queue `Hooks::come_down`, then `came_down`.
    ComeDown { from: Mode, to: Mode },
    /// Ask the manager. (Sent under the mutex, so that requests and releases of one name stay in order.)
    Request { mode: Mode, noqueue: bool },
    /// Tell the manager that we will not come down for a request that must not queue.
    Busy { wanted: Mode },
}

/// A hold or a refusal for one waiter, to be delivered without the mutex.
pub(super) type Wake = (Waker, Mode, Result<(), LockError>);

impl Slow {
    /// Nothing granted, asked, waiting or running: the entry may be forgotten.
    pub(super) fn is_nothing(&self, entry: &Entry) -> bool {
        self.granted == Mode::Nl
            && self.requested.is_none()
            && self.waiters.is_empty()
            && self.busy == Busy::No
            && self.late_grant.is_none()
            && self.contributed.is_none()
            && entry.live() == 0
    }

    /// Adds to the block that goes out with the next release.
    pub(super) fn contribute(&mut self, value: &ValueBlock) {
        merge(&mut self.value, value);
        merge(self.contributed.get_or_insert_default(), value);
    }

    /// The manager granted `mode`. Anything asked of us before is void: the manager asks again.
    pub(super) fn grant(&mut self, mode: Mode, value: ValueBlock) {
        self.requested = None;
        self.wanted = ModeSet::EMPTY;
        self.late_grant = Some((mode, value));
    }

    /// Decides the next step. Called with the mutex held after every event, until it says `Done`.
    pub(super) fn plan(&mut self, entry: &Entry, withdrawn: bool, wakes: &mut Vec<Wake>) -> Step {
        if withdrawn {
            self.granted = Mode::Nl;
            entry.set_gate(Mode::Nl, false);
            wakes.extend(self.waiters.drain(..).map(|w| (w.waker, w.mode, Err(LockError::Withdrawn))));
            return Step::Done;
        }
        if self.busy != Busy::No {
            return Step::Done;
        }
        if let Some((to, value)) = self.late_grant.take() {
            self.busy = Busy::Settling;
            return Step::Settle { from: self.granted, to, value };
        }
        self.serve(entry, wakes);
        if let Some(step) = self.answer_polite(entry) {
            return step;
        }
        if let Some(step) = self.make_room(entry) {
            return step;
        }
        self.ask(entry, wakes)
    }

    /// Gives waiters at the front what is already granted: always right after a grant, otherwise unless somebody else is waiting
    /// for us to come down.
    fn serve(&mut self, entry: &Entry, wakes: &mut Vec<Wake>) {
        if !self.fresh && !self.wanted.is_empty() {
            return;
        }
        self.fresh = false;
        while self.waiters.front().is_some_and(|w| self.granted.covers(w.mode))
            && let Some(waiter) = self.waiters.pop_front()
        {
            entry.enter_granted(waiter.mode);
            wakes.push((waiter.waker, waiter.mode, Ok(())));
        }
    }

    /// A host that must not queue asks: come down when idle, say "busy" otherwise.
    fn answer_polite(&mut self, entry: &Entry) -> Option<Step> {
        let wanted = self.polite.take()?;
        let to = self.granted.below(ModeSet::only(wanted));
        if to == self.granted {
            return None;
        }
        entry.set_gate(to, true);
        if entry.live_above(to) > 0 {
            return Some(Step::Busy { wanted });
        }
        self.wanted = self.wanted.union(ModeSet::only(wanted));
        None
    }

    /// Comes down for other hosts, or because the name is idle, once no live hold is in the way.
    fn make_room(&mut self, entry: &Entry) -> Option<Step> {
        if self.shrink && (!self.waiters.is_empty() || self.requested.is_some() || entry.live() > 0) {
            self.shrink = false;
        }
        let to = if self.shrink { Mode::Nl } else { self.granted.below(self.wanted) };
        if to == self.granted {
            self.wanted = ModeSet::EMPTY;
            self.shrink = false;
            return None;
        }
        entry.set_gate(to, true);
        if entry.live_above(to) > 0 {
            if self.shrink {
                self.shrink = false;
                return self.make_room(entry);
            }
            return Some(Step::Done);
        }
        self.busy = Busy::ComingDown;
        Some(Step::ComeDown { from: self.granted, to })
    }

    /// Opens the gate when nobody waits, otherwise drains the local holds and asks the manager for what the first waiter needs.
    fn ask(&mut self, entry: &Entry, wakes: &mut Vec<Wake>) -> Step {
        loop {
            let Some(first) = self.waiters.front() else {
                entry.set_gate(self.granted, false);
                return Step::Done;
            };
            if self.granted.covers(first.mode) {
                self.serve(entry, wakes);
                continue;
            }
            entry.set_gate(Mode::Nl, true);
            if self.requested.is_some() {
                return Step::Done;
            }
            if entry.live() > 0 {
                if first.noqueue {
                    wakes.extend(self.waiters.pop_front().map(|w| (w.waker, w.mode, Err(LockError::WouldBlock))));
                    continue;
                }
                return Step::Done;
            }
            let (mode, noqueue) = (self.granted.join(first.mode), first.noqueue);
            self.requested = Some((mode, noqueue));
            return Step::Request { mode, noqueue };
        }
    }
}
