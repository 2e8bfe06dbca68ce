//! One-disk Disk Paxos: chooses one value for one instance through one register per slot on the LUN.
//!
//! A [`Proposer`] is a step machine over its own register and the registers read back. Phase 1: write (k, b, bal, val), read all;
//! phase 2: write (k, b, b, value), read all; nobody ahead: chosen. Reads are issued only after the write was answered.
//!
//! Invariants: the own register is only written by its owner, one write at a time; a restarted owner first reads it
//! ([`Proposer::new`] demands what was read); a ballot is unique to its slot and never used twice. Not here: I/O, time,
//! backing off (the caller waits), what a value means, whether the instance is the right one.

use luna_format::cluster::{Decision, Paxos};
use luna_format::{Epoch, MAX_SLOTS, Slot};
use zerocopy::FromZeros;

/// What the proposer needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write this to the own register, forced, then call [`Proposer::written`].
    Write(Paxos),
    /// Read all registers, then call [`Proposer::read`].
    ReadAll,
    /// This value is chosen.
    Chosen(Decision),
    /// Somebody has a larger ballot: wait a random time, then [`Proposer::begin`] again.
    Backoff,
    /// Somebody is at a later instance: this one is chosen already, read the log.
    Behind,
    /// A register cannot be read: nothing can be chosen until it can.
    Unreadable(Slot),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    One,
    Two,
}

/// The proposer of one slot.
#[derive(Clone, Debug)]
pub(crate) struct Proposer {
    slot: Slot,
    /// What the own register holds (after the write under way).
    own: Paxos,
    /// Largest ballot seen anywhere in this instance.
    seen: u64,
    phase: Phase,
    mine: Decision,
}

impl Proposer {
    /// The proposer of `slot`, whose register was read as `own` (`None`: never used).
    pub(crate) fn new(slot: Slot, own: Option<Paxos>) -> Self {
        Self { slot, own: own.unwrap_or_else(Paxos::new_zeroed), seen: 0, phase: Phase::Idle, mine: Decision::new_zeroed() }
    }

    /// The instance it works on, or worked on last.
    pub(crate) fn instance(&self) -> Epoch {
        self.own.instance
    }

    /// Begins to have `value` chosen for `instance`. `Behind` when the own register is past it already.
    pub(crate) fn begin(&mut self, instance: Epoch, value: Decision) -> Step {
        if instance < self.own.instance {
            return Step::Behind;
        }
        if instance > self.own.instance {
            self.own = Paxos { instance, ..Paxos::new_zeroed() };
            self.seen = 0;
        }
        self.mine = value;
        self.phase = Phase::One;
        self.own.mbal = self.ballot_above(self.seen.max(self.own.mbal));
        Step::Write(self.own)
    }

    /// The smallest ballot of this slot above `n`.
    fn ballot_above(&self, n: u64) -> u64 {
        let slots = u64::from(MAX_SLOTS);
        (n / slots + 1) * slots + u64::from(self.slot)
    }

    /// The write was answered.
    pub(crate) fn written(&mut self) -> Step {
        assert!(self.phase != Phase::Idle, "a write was answered that was not asked for");
        Step::ReadAll
    }

    /// All registers, read after the own write was answered; `Err` for one that does not check.
    pub(crate) fn read(&mut self, all: &[Result<Option<Paxos>, ()>]) -> Step {
        assert!(self.phase != Phase::Idle, "a read was answered that was not asked for");
        let mut best = (self.own.bal, self.own.value);
        let (mut ahead, mut later) = (false, false);
        for (slot, px) in all.iter().enumerate() {
            if slot == usize::from(self.slot) {
                if *px != Ok(Some(self.own)) {
                    // somebody wrote our register, or the write did not land: what we promised does not stand
                    self.phase = Phase::Idle;
                    return Step::Unreadable(self.slot);
                }
                continue;
            }
            match px {
                Err(()) => {
                    self.phase = Phase::Idle;
                    return Step::Unreadable(slot as Slot);
                }
                Ok(Some(px)) if px.instance > self.own.instance => later = true,
                Ok(Some(px)) if px.instance == self.own.instance => {
                    self.seen = self.seen.max(px.mbal);
                    ahead |= px.mbal > self.own.mbal;
                    if px.bal > best.0 {
                        best = (px.bal, px.value);
                    }
                }
                Ok(_) => {}
            }
        }
        if later || ahead {
            self.phase = Phase::Idle;
            return if later { Step::Behind } else { Step::Backoff };
        }
        match self.phase {
            Phase::One => {
                self.own.value = if best.0 > 0 { best.1 } else { self.mine };
                self.own.bal = self.own.mbal;
                self.phase = Phase::Two;
                Step::Write(self.own)
            }
            Phase::Two | Phase::Idle => {
                self.phase = Phase::Idle;
                Step::Chosen(self.own.value)
            }
        }
    }

    /// Gives up; the register stays as it is.
    pub(crate) fn abandon(&mut self) {
        self.phase = Phase::Idle;
    }
}

#[cfg(test)]
mod tests;
