//! Fence, replay, one lock over one or two blocks: what a host that dies leaves behind, and what the next holder reads.
//!
//! Mirrors `cluster/src/core/takeover.rs` and `cluster/src/membership.rs` (EVICT, FENCED, replay, RECOVERED; all FENCED before any
//! replay; TAKEOVER of an orphaned replay), `journal/src/replay.rs` (the newest image, written iff the home block is torn or older, then
//! the header), `fs/src/checkpoint.rs` (record durable, blocks in place, then the lock goes). The contents of a block are its history: who
//! wrote it, in order; so its version is the length, and "holds everything acknowledged" is "begins with it".
//!
//! It is a plain [`Model`], not a set of actors: hosts speak through the disk and the lock table; the records of membership are
//! chosen one at a time (`paxos.rs` shows that), so a record is one step that everybody may learn later. A host that died is one
//! that is never scheduled again, with its writes still under way; so death needs no action of its own. Suspicion is free: any member may be
//! evicted at any time as long as another is there, and goes on as long as it does not know.
//!
//! Invariants checked: I2 to I7 as named by the constants below. Not here: time (under [`Fence::Lease`] the end of a lease is an event, see
//! `lease.rs`), the volatile cache of a LUN and its power cuts, the lock manager's messages,
//! a cold start (no lock table survives).

mod check;
mod mutants;
mod state;
mod steps;

pub use state::{Content, State};

use stateright::{Model, Property};

/// No write of an incarnation is applied after its FENCED.
pub const I2: &str = "I2 no write is applied after FENCED";
/// Nothing that a dead host held in a writing mode is granted before its RECOVERED.
pub const I3: &str = "I3 no lock of the dead is granted before RECOVERED";
/// No two un-fenced incarnations hold conflicting locks.
pub const I4: &str = "I4 no two un-fenced hosts hold the lock";
/// The next holder reads whatever was acknowledged.
pub const I5: &str = "I5 the next holder reads what was acknowledged";
/// Versions on disk never fall.
pub const I6: &str = "I6 versions never fall";
/// A live host always gets on with the recovery of the dead.
pub const I7: &str = "I7 a live host always gets on";

/// Which rule is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None: the protocol.
    None,
    /// FENCED is chosen, and nobody fenced.
    NoFence,
    /// The fence refuses new writes and lets queued ones run (PREEMPT without ABORT).
    NoAbort,
    /// Replay writes without comparing versions.
    NoVersionCheck,
    /// The lock of the dead is granted at EVICT.
    GrantBeforeFence,
    /// The lock of the dead is granted at FENCED.
    GrantBeforeReplay,
    /// A lock is released before the blocks are in place.
    ReleaseEarly,
    /// A change is acknowledged before its record is durable.
    AckEarly,
    /// Records leave the journal before the blocks are in place.
    RetireEarly,
    /// A torn home block is left as it is.
    TornIsLeft,
    /// A host does not look at its lease before it writes.
    GateSkipped,
    /// An orphaned replay is taken over before its recoverer is fenced, and replays begin while somebody is evicted and unfenced.
    ReplayBeforeAllFenced,
    /// A recoverer does not look at its lease before each write of a replay.
    ReplayUngated,
}

/// How the old incarnation is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// The target drains and refuses (rungs 0 to 2).
    Exact,
    /// Nothing but time (rung 3): its lease is over, and what it had handed over has landed or never will.
    Lease,
}

/// Which blocks a replay leaves alone (rule R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// Every block whose lock the dead host did not hold when it was evicted.
    NotHeld,
    /// A block whose lock a live host holds at the moment of the look: R6 as it is written.
    HeldByLive,
    /// None.
    Nothing,
}

/// The sizes of a model, what the world may do, and the mutant.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    /// Hosts.
    pub hosts: u8,
    /// Changes of the blocks in all.
    pub changes: u8,
    /// Blocks under the one lock, one or two; each change writes all of them.
    pub blocks: u8,
    /// How often a recovered slot goes to a new incarnation, in all.
    pub joins: u8,
    /// How the dead are stopped.
    pub fence: Fence,
    /// Whether a write of a dying host may land torn.
    pub torn: bool,
    /// Whether whoever reads a block while a write to it is under way may find it torn.
    pub torn_reads: bool,
    /// Which blocks a replay leaves alone.
    pub skip: Skip,
    /// Whether journals are replayed one after the other only.
    pub serial: bool,
    /// Which rule is left out.
    pub mutant: Mutant,
}

/// Which replay a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// The one that the records name, of this slot's journal.
    Of(u8),
    /// One that was taken over, and whose old recoverer goes on.
    Lost(u8),
}

/// One step of `host`, or of the takeover of `of` by its recoverer `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are said above")]
pub enum Action {
    /// The lock table grants the lock, and the new holder reads the blocks.
    Grant { host: u8 },
    /// A holder changes all blocks and sends the record.
    Change { host: u8 },
    /// The record is durable.
    RecordLands { host: u8 },
    /// The host learns that, and acknowledges the change.
    RecordAnswered { host: u8 },
    /// A holder sends a block home.
    SendHome { host: u8, block: u8 },
    /// The block is at home, and the host knows.
    HomeLands { host: u8, block: u8 },
    /// It lands torn: its host dies, or loses its connection and withdraws.
    HomeTears { host: u8, block: u8 },
    /// Records whose blocks are in place leave the journal.
    Retire { host: u8 },
    /// The lock is given back.
    Release { host: u8 },
    /// No beat was confirmed for L - M.
    LeaseEnds { host: u8 },
    /// One was.
    LeaseIsBack { host: u8 },
    /// EVICT is chosen.
    Evict { host: u8 },
    /// The fence succeeds and FENCED is chosen.
    Fence { of: u8, by: u8 },
    /// A mutant frees the lock of the dead.
    GrantedTooEarly { of: u8 },
    /// The recoverer reads the journal.
    Plan { of: u8 },
    /// It reads a home block and sends the image if that must go home; behind the last block, the clean header.
    Look { replay: Which, torn: bool },
    /// The image is at home.
    ReplayLands { replay: Which },
    /// It lands torn: the recoverer dies.
    ReplayTears { replay: Which },
    /// The journal is clean.
    HeaderLands { replay: Which },
    /// TAKEOVER is chosen: another recoverer begins anew.
    Takeover { of: u8, by: u8 },
    /// RECOVERED is chosen, and the lock thaws.
    Recovered { of: u8 },
    /// JOIN is chosen: the next incarnation in a recovered slot.
    Join { host: u8 },
}

impl Takeover {
    /// The protocol, at a size that a test can afford.
    pub fn small() -> Self {
        Self {
            hosts: 3,
            changes: 2,
            blocks: 1,
            joins: 0,
            fence: Fence::Exact,
            torn: true,
            torn_reads: true,
            skip: Skip::NotHeld,
            serial: false,
            mutant: Mutant::None,
        }
    }
}

impl Model for Takeover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, out: &mut Vec<Action>) {
        for h in 0..self.hosts {
            self.steps_of_host(state, h, out);
            self.steps_of_recovery(state, h, out);
        }
        (0..state.lost.len() as u8).for_each(|n| self.steps_of_replay(state, Which::Lost(n), out));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.take(&mut next, action);
        Some(next)
    }

    /// Where versions fall, changes could go on for ever. The protocol never comes here.
    fn within_boundary(&self, state: &State) -> bool {
        state.longest_journal() <= usize::from(self.changes)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(I2, |_: &Self, s: &State| !s.broken.late_write),
            Property::always(I3, |_: &Self, s: &State| !s.broken.granted_early),
            Property::always(I4, |_: &Self, s: &State| s.holders() <= 1),
            Property::always(I5, |_: &Self, s: &State| !s.broken.lost),
            Property::always(I6, |_: &Self, s: &State| !s.broken.fell),
            Property::always(I7, Self::gets_on),
            Property::sometimes("the next holder reads what a replay brought home", |_: &Self, s: &State| s.is_passed_on()),
            Property::sometimes("an older image is left out by replay", |_: &Self, s: &State| s.job_says(|j| j.left_out)),
            Property::sometimes("a second recoverer finishes", |m: &Self, s: &State| m.hosts < 3 || s.job_says(|j| j.again && j.is_done())),
            Property::sometimes("two hosts are recovered", |m: &Self, s: &State| m.hosts < 3 || s.recovered() == 2),
        ];
        if self.joins > 0 {
            all.push(Property::sometimes("a new incarnation holds the lock", |_: &Self, s: &State| s.is_new_holder()));
        }
        if self.torn {
            all.push(Property::sometimes("a torn block is rebuilt", |_: &Self, s: &State| s.job_says(|j| j.rebuilt && j.is_done())));
        }
        all
    }
}
