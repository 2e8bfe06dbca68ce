//! The rules of a takeover, left out one at a time, and which invariant falls then.
//!
//! Invariant: every row is run by a test and must break all that it names. The rows that begin with `skip` are not only mutants: they are what
//! rule R6 said, and what the program did, before these models were written (`docs/model.md`). Not here: what a mutant changes.

use super::{Fence, I2, I3, I4, I5, I6, Mutant, Skip, Takeover};
use crate::run::{Mutable, Row};

const SMALL: Takeover = Takeover {
    hosts: 2,
    changes: 2,
    blocks: 1,
    joins: 0,
    fence: Fence::Exact,
    torn: false,
    torn_reads: false,
    skip: Skip::NotHeld,
    serial: false,
    mutant: Mutant::None,
};

impl Mutable for Takeover {
    fn mutants() -> &'static [Row<Self>] {
        ROWS
    }
}

const ROWS: &[Row<Takeover>] = &[
    Row { name: "no-fence", what: "no fence", breaks: &[I2, I5, I6], model: || Takeover { mutant: Mutant::NoFence, ..SMALL } },
    Row {
        name: "no-abort",
        what: "PREEMPT without ABORT: queued writes still run",
        breaks: &[I2, I5, I6],
        model: || Takeover { mutant: Mutant::NoAbort, ..SMALL },
    },
    Row {
        name: "no-version-check",
        what: "replay does not compare versions",
        breaks: &[I5, I6],
        model: || Takeover { mutant: Mutant::NoVersionCheck, ..SMALL },
    },
    Row {
        name: "grant-before-fence",
        what: "the lock of the dead is granted at EVICT",
        breaks: &[I3, I4, I5],
        model: || Takeover { mutant: Mutant::GrantBeforeFence, ..SMALL },
    },
    Row {
        name: "grant-before-replay",
        what: "the lock of the dead is granted at FENCED",
        breaks: &[I3, I5],
        model: || Takeover { mutant: Mutant::GrantBeforeReplay, ..SMALL },
    },
    Row {
        name: "release-early",
        what: "a lock is released before the blocks are in place",
        breaks: &[I5, I6],
        model: || Takeover { mutant: Mutant::ReleaseEarly, ..SMALL },
    },
    Row {
        name: "ack-early",
        what: "a change is acknowledged before its record is durable",
        breaks: &[I5],
        model: || Takeover { mutant: Mutant::AckEarly, ..SMALL },
    },
    Row {
        name: "retire-early",
        what: "records leave the journal before the blocks are in place",
        breaks: &[I5],
        model: || Takeover { mutant: Mutant::RetireEarly, ..SMALL },
    },
    Row {
        name: "torn-is-left",
        what: "a torn home block is not rebuilt",
        breaks: &[I5],
        model: || Takeover { mutant: Mutant::TornIsLeft, torn: true, ..SMALL },
    },
    Row {
        name: "gate-skipped",
        what: "lease fence: an evicted host that wakes up writes without a look at its lease",
        breaks: &[I2, I5],
        model: || Takeover { mutant: Mutant::GateSkipped, fence: Fence::Lease, ..SMALL },
    },
    Row {
        name: "before-all-fenced",
        what: "a replay is taken over although its recoverer is not fenced",
        breaks: &[I5, I6],
        model: || Takeover { mutant: Mutant::ReplayBeforeAllFenced, hosts: 3, ..SMALL },
    },
    Row {
        name: "replay-ungated",
        what: "lease fence: a recoverer that wakes up goes on with a replay that another has finished",
        breaks: &[I2, I5],
        model: || Takeover { mutant: Mutant::ReplayUngated, hosts: 3, fence: Fence::Lease, ..SMALL },
    },
    Row {
        name: "skip-nothing",
        what: "R6 left out: replay looks at blocks that the dead host did not hold",
        breaks: &[I5, I6],
        model: || Takeover { torn_reads: true, skip: Skip::Nothing, hosts: 3, ..SMALL },
    },
    Row {
        name: "skip-nothing-parallel",
        what: "R6 left out, reads are whole, two journals are replayed at once",
        breaks: &[I5, I6],
        model: || Takeover { torn: true, skip: Skip::Nothing, hosts: 3, ..SMALL },
    },
    Row {
        name: "skip-live",
        what: "R6 asks only whether a live host holds the block now",
        breaks: &[I5, I6],
        model: || Takeover { torn_reads: true, skip: Skip::HeldByLive, hosts: 3, ..SMALL },
    },
    Row {
        name: "skip-live-parallel",
        what: "the same, reads are whole, two journals are replayed at once",
        breaks: &[I5, I6],
        model: || Takeover { torn: true, skip: Skip::HeldByLive, hosts: 3, ..SMALL },
    },
];
