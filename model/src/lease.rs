//! The lease fence (rung 3) in whole ticks: a host that may write, another that watches its beats and waits, two clocks that drift.
//!
//! Mirrors `cluster/src/core.rs` (the lease runs from the *sending* of the newest beat after whose answer a log read was issued that
//! still lists the host), `cluster/src/core/takeover.rs` (the silence must be seen by a read of the beats issued after EVICT) and
//! `Timing::wait_ms`. Everything takes as long as it likes within its bound: a request lands within D of its hand-over or never, a
//! thread rests up to P between its look at the lease and the hand-over, EVICT comes at any time. A host's clock may fall one tick behind
//! after every 1/ρ of its own ticks, the watcher's may gain one. No absolute time is kept, only ages, and ages that make no
//! difference any more are cut off; so the space is finite without a horizon.
//!
//! Reads are instants. The program counts from the answer of the read that saw a change to the issue of the read that saw none, which is
//! less than what is counted here. It is a plain [`Model`]: ticks are steps of the whole world, not of an actor.
//!
//! Invariant: I2, no write of the old host lands after the watcher counts it as fenced. Not here: what the fence is for
//! (`takeover.rs`), several writes at once (one stands for each), bounds that do not hold: a mutant shows what happens then.

use stateright::{Model, Property};

use crate::run::{Mutable, Row};

/// No write of the old host lands once it counts as fenced.
pub const I2: &str = "I2 no write lands after FENCED";

/// Which rule is left out, or which assumption does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None: the protocol.
    None,
    /// The watcher waits one tick less than W.
    WaitTooShort,
    /// W is computed as if clocks did not drift.
    DriftIgnored,
    /// A thread rests one tick longer than P between look and hand-over.
    PauseTooLong,
    /// A request lands one tick later than D.
    RequestTooOld,
    /// The lease runs from the answer of the beat.
    LeaseFromAnswer,
    /// The answer of the beat renews the lease; the log is not read.
    NoLogRead,
    /// The silence may have been seen before EVICT.
    LookBeforeEvict,
}

/// The bounds, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// L - M: how long a host acts after a beat.
    pub act: u8,
    /// P: longest rest between look and hand-over.
    pub pause: u8,
    /// D: longest life of a request.
    pub request: u8,
    /// 1/ρ: ticks of a clock between two errors of one tick; 0 for clocks without drift.
    pub drift: u8,
    /// Which rule is left out.
    pub mutant: Mutant,
}

/// W in the unit of its arguments: `((L - M)(1 + rho) + P + D) / (1 - rho)` with `rho` in thousandths, rounded up.
pub fn wait(act: u64, pause: u64, request: u64, rho_permille: u64) -> u64 {
    (act * (1000 + rho_permille) + (pause + request) * 1000).div_ceil(1000 - rho_permille)
}

/// A data write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Write {
    None,
    /// The lease was looked at so long ago.
    Checked(u8),
    /// Handed over so long ago.
    Sent(u8),
}

/// A beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Beat {
    None,
    /// Under way: age, and the same by the host's clock.
    Sent(u8, u8),
    /// On the LUN, answered; the log is not read yet. Age since sending by the host's clock.
    Landed(u8),
}

/// A clock that errs by one tick now and then: ticks until it may err again.
type Error = u8;

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Since the sending of the beat from which the lease runs, by the host's clock.
    lease_age: u8,
    beat: Beat,
    write: Write,
    slow: Error,
    /// A beat landed that the watcher has not seen.
    is_news: bool,
    /// Since the last change was seen, by the watcher's clock.
    silence: u8,
    fast: Error,
    /// The longest silence that counts for the fence.
    seen: u8,
    evicted: bool,
    fenced: bool,
    /// The host knows that it was evicted.
    withdrawn: bool,
    /// A beat was confirmed after the first.
    renewed: bool,
    broken: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A tick; whether the host's clock stands still, and whether the watcher's moves by two.
    Tick {
        /// The host's clock stands still.
        slow: bool,
        /// The watcher's clock moves by two.
        fast: bool,
    },
    /// The host sends a beat.
    SendBeat,
    /// The beat lands and is answered.
    BeatLands,
    /// The host reads the log.
    ReadLog,
    /// The host looks at its lease: it may write.
    Check,
    /// The write is handed over.
    HandOver,
    /// The write lands.
    WriteLands,
    /// The watcher reads the beats.
    Look,
    /// EVICT is chosen.
    Evict,
    /// The watcher counts the host as fenced.
    Fence,
}

impl Lease {
    /// The protocol, at a size that a test can afford; clocks drift by a quarter.
    pub fn small() -> Self {
        Self { act: 4, pause: 1, request: 2, drift: 4, mutant: Mutant::None }
    }

    /// How long the watcher waits.
    pub fn wait(&self) -> u8 {
        let drifts = self.drift > 0 && self.mutant != Mutant::DriftIgnored;
        let rho = if drifts { 1000 / u64::from(self.drift) } else { 0 };
        let w = wait(self.act.into(), self.pause.into(), self.request.into(), rho);
        u8::try_from(w).unwrap_or(u8::MAX) - u8::from(self.mutant == Mutant::WaitTooShort)
    }

    fn pause_really(&self) -> u8 {
        self.pause + u8::from(self.mutant == Mutant::PauseTooLong)
    }

    fn request_really(&self) -> u8 {
        self.request + u8::from(self.mutant == Mutant::RequestTooOld)
    }

    /// A tick passes. `None` where a thread must first do what it cannot put off.
    fn tick(&self, s: &State, slow: bool, fast: bool) -> Option<State> {
        let mut n = s.clone();
        let own = u8::from(!slow);
        n.lease_age = (s.lease_age + own).min(self.act);
        n.slow = if slow { self.drift } else { s.slow.saturating_sub(1) };
        n.silence = (s.silence + 1 + u8::from(fast)).min(self.wait());
        // in the time of `drift` own ticks, one of which is the error
        n.fast = if fast { self.drift.saturating_sub(2) } else { s.fast.saturating_sub(1) };
        n.beat = match s.beat {
            Beat::None => Beat::None,
            // lost: it never lands, and the host stops waiting for it
            Beat::Sent(age, _) if age >= self.request_really() => Beat::None,
            Beat::Sent(age, since) => Beat::Sent(age + 1, (since + own).min(self.act)),
            Beat::Landed(since) => Beat::Landed((since + own).min(self.act)),
        };
        n.write = match s.write {
            Write::None => Write::None,
            Write::Checked(age) if age >= self.pause_really() => return None,
            Write::Checked(age) => Write::Checked(age + 1),
            Write::Sent(age) if age >= self.request_really() => Write::None,
            Write::Sent(age) => Write::Sent(age + 1),
        };
        Some(n)
    }

    fn renew(&self, s: &mut State, since: u8) {
        let since = if self.mutant == Mutant::LeaseFromAnswer { 0 } else { since };
        (s.beat, s.renewed) = (Beat::None, true);
        s.lease_age = since;
    }

    fn look(&self, s: &mut State) {
        if s.is_news {
            (s.is_news, s.silence) = (false, 0);
        }
        let counts = s.evicted || self.mutant == Mutant::LookBeforeEvict;
        s.seen = if counts { s.silence } else { 0 };
    }
}

impl Model for Lease {
    type State = State;
    type Action = Action;

    /// The host's beat has just been sent, landed and seen, all in one instant; every later course begins like that.
    fn init_states(&self) -> Vec<State> {
        vec![State {
            lease_age: 0,
            beat: Beat::None,
            write: Write::None,
            slow: 0,
            is_news: false,
            silence: 0,
            fast: 0,
            seen: 0,
            evicted: false,
            fenced: false,
            withdrawn: false,
            renewed: false,
            broken: false,
        }]
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        let drifts = self.drift > 0;
        for slow in [false, true] {
            for fast in [false, true] {
                if (!slow || drifts && s.slow == 0) && (!fast || drifts && s.fast == 0) {
                    out.push(Action::Tick { slow, fast });
                }
            }
        }
        let mut may = |ok: bool, a: Action| {
            if ok {
                out.push(a)
            }
        };
        may(s.beat == Beat::None && !s.withdrawn, Action::SendBeat);
        may(matches!(s.beat, Beat::Sent(..)), Action::BeatLands);
        may(matches!(s.beat, Beat::Landed(_)) && !s.withdrawn, Action::ReadLog);
        may(s.write == Write::None && s.lease_age < self.act && !s.withdrawn, Action::Check);
        may(matches!(s.write, Write::Checked(_)), Action::HandOver);
        may(matches!(s.write, Write::Sent(_)), Action::WriteLands);
        may(!s.fenced, Action::Look);
        may(!s.evicted, Action::Evict);
        may(s.evicted && !s.fenced && s.seen >= self.wait(), Action::Fence);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        match action {
            Action::Tick { slow, fast } => return self.tick(last, slow, fast),
            Action::SendBeat => s.beat = Beat::Sent(0, 0),
            Action::BeatLands => {
                let Beat::Sent(_, since) = s.beat else { return None };
                (s.is_news, s.beat) = (true, Beat::Landed(since));
                if self.mutant == Mutant::NoLogRead {
                    self.renew(&mut s, since);
                }
            }
            Action::ReadLog => {
                let Beat::Landed(since) = s.beat else { return None };
                if s.evicted {
                    (s.withdrawn, s.beat, s.lease_age) = (true, Beat::None, self.act);
                } else {
                    self.renew(&mut s, since);
                }
            }
            Action::Check => s.write = Write::Checked(0),
            Action::HandOver => s.write = Write::Sent(0),
            Action::WriteLands => (s.write, s.broken) = (Write::None, s.broken || s.fenced),
            Action::Look => self.look(&mut s),
            Action::Evict => s.evicted = true,
            Action::Fence => s.fenced = true,
        }
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(I2, |_: &Self, s: &State| !s.broken),
            Property::sometimes("the host counts as fenced", |_: &Self, s: &State| s.fenced),
            Property::sometimes("a beat renews the lease", |_: &Self, s: &State| s.renewed && s.lease_age == 0),
            Property::sometimes("a host that was silent comes back in time", |m: &Self, s: &State| {
                s.evicted && !s.fenced && s.silence == 0 && s.lease_age == m.act
            }),
            Property::sometimes("a write is under way when the lease is over", |m: &Self, s: &State| {
                matches!(s.write, Write::Sent(_)) && s.lease_age == m.act
            }),
            Property::sometimes("a fenced host has learnt of its EVICT", |_: &Self, s: &State| s.fenced && s.withdrawn),
        ]
    }
}

impl Mutable for Lease {
    fn mutants() -> &'static [Row<Self>] {
        use Mutant::*;
        const BASE: Lease = Lease { act: 4, pause: 1, request: 2, drift: 0, mutant: None };
        &[
            Row { name: "wait-too-short", what: "W one tick too short", breaks: &[I2], model: || Lease { mutant: WaitTooShort, ..BASE } },
            Row {
                name: "drift-ignored",
                what: "W as if clocks did not drift",
                breaks: &[I2],
                model: || Lease { drift: 4, mutant: DriftIgnored, ..BASE },
            },
            Row { name: "pause-too-long", what: "a pause longer than P", breaks: &[I2], model: || Lease { mutant: PauseTooLong, ..BASE } },
            Row {
                name: "request-too-old",
                what: "a request lives longer than D",
                breaks: &[I2],
                model: || Lease { mutant: RequestTooOld, ..BASE },
            },
            Row {
                name: "lease-from-answer",
                what: "the lease runs from the answer of the beat",
                breaks: &[I2],
                model: || Lease { mutant: LeaseFromAnswer, ..BASE },
            },
            Row {
                name: "no-log-read",
                what: "a beat renews the lease without a look at the log",
                breaks: &[I2],
                model: || Lease { mutant: NoLogRead, ..BASE },
            },
            Row {
                name: "look-before-evict",
                what: "a silence seen before EVICT counts",
                breaks: &[I2],
                model: || Lease { mutant: LookBeforeEvict, ..BASE },
            },
        ]
    }
}
