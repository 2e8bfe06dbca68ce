//! A small deterministic stand-in for the lock cache: one name as one host sees it.
//!
//! It decides as `luna_dlm::LockCache` does (same states, same order of questions), but has no threads: write-back takes
//! simulated time, and the caller performs each [`Step`]. What it does not imitate: hooks, value blocks, shrinking.

use luna_dlm::{Mode, ModeSet};
use std::collections::{BTreeMap, VecDeque};

/// Somebody on this host who wants a hold.
pub(crate) struct Want {
    pub(crate) id: u64,
    pub(crate) mode: Mode,
    pub(crate) noqueue: bool,
}

/// What has to be done next for a name.
pub(crate) enum Step {
    Done,
    Settle { to: Mode },
    ComeDown { from: Mode, to: Mode },
    Request { mode: Mode, noqueue: bool },
    Busy { wanted: Mode },
}

/// One name.
#[derive(Default)]
pub(crate) struct Entry {
    pub(crate) granted: Mode,
    open: Mode,
    requested: Option<(Mode, bool)>,
    wanted: ModeSet,
    polite: Option<Mode>,
    pub(crate) coming_down: bool,
    late: Option<Mode>,
    fresh: bool,
    waiters: VecDeque<Want>,
    /// Live holds.
    pub(crate) live: BTreeMap<u64, Mode>,
    /// A program of this host changes the data (programs of one host keep each other out themselves).
    pub(crate) writing: bool,
    /// Writes submitted by this host.
    pub(crate) writes: u64,
}

impl Entry {
    /// The manager granted; anything asked of us before is void.
    pub(crate) fn grant(&mut self, mode: Mode) {
        self.requested = None;
        self.wanted = ModeSet::EMPTY;
        self.late = Some(mode);
    }

    /// The manager refused; which want that ends.
    pub(crate) fn deny(&mut self, mode: Mode) -> Option<u64> {
        self.requested.take_if(|(asked, noqueue)| *asked == mode && *noqueue)?;
        self.waiters.pop_front().map(|w| w.id)
    }

    /// Another host wants `mode`.
    pub(crate) fn bast(&mut self, mode: Mode, polite: bool) {
        if polite {
            self.polite = Some(self.polite.map_or(mode, |other| other.join(mode)));
        } else {
            self.wanted = self.wanted.union(ModeSet::only(mode));
        }
    }

    /// A new want: true when the hold begins at once.
    pub(crate) fn want(&mut self, w: Want) -> bool {
        if self.open.covers(w.mode) {
            self.live.insert(w.id, w.mode);
            return true;
        }
        self.waiters.push_back(w);
        false
    }

    /// The write-back is done. True when the manager is to be told (a grant that came meanwhile replaces what was given up).
    pub(crate) fn came_down(&mut self, to: Mode) -> bool {
        self.coming_down = false;
        self.granted = to;
        self.late.is_none()
    }

    fn live_above(&self, mode: Mode) -> bool {
        self.live.values().any(|m| !mode.covers(*m))
    }

    /// The next step; holds that begin and wants that are refused on the way are pushed.
    pub(crate) fn plan(&mut self, begun: &mut Vec<(u64, Mode)>, refused: &mut Vec<u64>) -> Step {
        if self.coming_down {
            return Step::Done;
        }
        if let Some(to) = self.late.take() {
            (self.granted, self.fresh) = (to, true);
            return Step::Settle { to };
        }
        self.serve(begun);
        if let Some(wanted) = self.polite.take() {
            let to = self.granted.below(ModeSet::only(wanted));
            if to != self.granted {
                self.open = to;
                if self.live_above(to) {
                    return Step::Busy { wanted };
                }
                self.wanted = self.wanted.union(ModeSet::only(wanted));
            }
        }
        let to = self.granted.below(self.wanted);
        if to != self.granted {
            self.open = to;
            if self.live_above(to) {
                return Step::Done;
            }
            self.coming_down = true;
            return Step::ComeDown { from: self.granted, to };
        }
        self.wanted = ModeSet::EMPTY;
        self.ask(begun, refused)
    }

    fn serve(&mut self, begun: &mut Vec<(u64, Mode)>) {
        if !self.fresh && !self.wanted.is_empty() {
            return;
        }
        self.fresh = false;
        while self.waiters.front().is_some_and(|w| self.granted.covers(w.mode))
            && let Some(w) = self.waiters.pop_front()
        {
            self.live.insert(w.id, w.mode);
            begun.push((w.id, w.mode));
        }
    }

    fn ask(&mut self, begun: &mut Vec<(u64, Mode)>, refused: &mut Vec<u64>) -> Step {
        loop {
            let Some((mode, noqueue)) = self.waiters.front().map(|w| (w.mode, w.noqueue)) else {
                self.open = self.granted;
                return Step::Done;
            };
            if self.granted.covers(mode) {
                self.serve(begun);
                continue;
            }
            self.open = Mode::Nl;
            if self.requested.is_some() {
                return Step::Done;
            }
            if !self.live.is_empty() {
                if noqueue {
                    refused.extend(self.waiters.pop_front().map(|w| w.id));
                    continue;
                }
                return Step::Done;
            }
            let mode = self.granted.join(mode);
            self.requested = Some((mode, noqueue));
            return Step::Request { mode, noqueue };
        }
    }
}
