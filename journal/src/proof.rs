//! Rights as values: replaying a journal demands a proof that nobody can still write as its owner (protocol: FENCED before
//! replay). Invariant: a [`Fenced`] exists only for an incarnation whose FENCED record was chosen. Not here: fencing.

use luna_format::{Epoch, Incarnation, Slot};

/// Proof that no write of this incarnation of the slot will be applied from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced {
    slot: Slot,
    incarnation: Incarnation,
    epoch: Epoch,
}

impl Fenced {
    /// Attests that `FENCED(slot, incarnation)` was chosen as record `epoch`. Only the code that carries out a fence, and the
    /// shell that hands on the cluster core's order to replay, may call this; everybody else is given the value.
    pub fn attest(slot: Slot, incarnation: Incarnation, epoch: Epoch) -> Self {
        Self { slot, incarnation, epoch }
    }

    /// The fenced slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The fenced incarnation; older ones of the slot are covered as well.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The epoch of the FENCED record.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// Why a journal may be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayProof {
    /// The owner was fenced.
    Fenced(Fenced),
    /// The caller holds the volume alone: no membership record names a live host (first mount, offline repair).
    FirstMount,
}

impl ReplayProof {
    /// Whether it covers a journal of `slot` whose header names `incarnation`.
    pub(crate) fn covers(&self, slot: Slot, incarnation: Incarnation) -> bool {
        match self {
            Self::Fenced(f) => f.slot == slot && incarnation <= f.incarnation,
            Self::FirstMount => true,
        }
    }

    /// The lowest incarnation that may open the log after the replay.
    pub(crate) fn next_incarnation(&self, header: Incarnation) -> Incarnation {
        match self {
            Self::Fenced(f) => header.max(f.incarnation) + 1,
            Self::FirstMount => header + 1,
        }
    }

    /// For error lines.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Fenced(f) => format!("slot {} up to incarnation {}", f.slot, f.incarnation),
            Self::FirstMount => "the first mount".to_owned(),
        }
    }
}
