//! What lock managers say to each other.
//!
//! Invariant: every message carries the epoch it belongs to; one of an older epoch is dropped and counted, one of a newer epoch
//! is held until the view arrives. The transport delivers the messages of a pair of hosts in order, once, within an epoch; it
//! also authenticates the sender. How a message becomes bytes is the wire module's business.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

use crate::mode::{Mode, ModeSet};
use crate::name::{Name, ValueBlock};
use crate::posix::{Op, PosixLock, PosixResult};
use crate::view::Member;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Msg {
    /// The view it was sent in.
    pub epoch: u64,
    /// What it says.
    pub body: Body,
}

/// What a message says. To the master: `Lock`, `Release`, `Busy`, `Posix`, `PosixCancel`. From it: `Grant`, `Deny`, `Bast`,
/// `PosixDone`. At a view change, to everybody: `Records`, `Marker`, `Ready`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Body {
    /// Give me this mode (a conversion, if I hold another).
    Lock {
        /// What.
        name: Name,
        /// How.
        mode: Mode,
        /// Rather refuse than let me wait.
        noqueue: bool,
    },
    /// I came down.
    Release {
        /// What.
        name: Name,
        /// What I held; a release that crossed a grant says something else than the master knows, and is ignored.
        from: Mode,
        /// What I hold now.
        to: Mode,
        /// My contribution.
        value: Option<ValueBlock>,
    },
    /// I will not come down for a request that must not queue.
    Busy {
        /// What.
        name: Name,
        /// The mode that was wanted.
        wanted: Mode,
    },
    /// It is yours.
    Grant {
        /// What.
        name: Name,
        /// How; maybe more than was asked.
        mode: Mode,
        /// The value block.
        value: ValueBlock,
    },
    /// Refused, because it must not queue.
    Deny {
        /// What.
        name: Name,
    },
    /// Somebody wants `wanted`; come down to something that gets along with it.
    Bast {
        /// What.
        name: Name,
        /// How somebody wants it.
        wanted: Mode,
        /// Only if nobody uses it; otherwise say `Busy`.
        polite: bool,
    },
    /// A byte-range lock operation.
    Posix {
        /// Comes back in the answer.
        token: u64,
        /// The file.
        name: Name,
        /// The operation.
        op: Op,
    },
    /// Stop waiting for it.
    PosixCancel {
        /// The operation.
        token: u64,
        /// The file.
        name: Name,
    },
    /// The answer.
    PosixDone {
        /// The operation.
        token: u64,
        /// How it went.
        result: PosixResult,
    },
    /// What a new master has to know.
    Records(
        /// A bounded number of them.
        Vec<Record>,
    ),
    /// I have sent all my records of this epoch.
    Marker(
        /// What I know of knowledge that was lost.
        History,
    ),
    /// I have everybody's marker of this epoch, so nobody needs to keep what I was told.
    Ready,
}

/// One fact for the new master of a name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// I hold this.
    Held {
        /// What.
        name: Name,
        /// How.
        mode: Mode,
        /// My copy of the value block, with what I contributed.
        value: ValueBlock,
    },
    /// A dead host may have held one of these modes.
    Dead {
        /// What.
        name: Name,
        /// Who.
        member: Member,
        /// How.
        modes: ModeSet,
    },
    /// I mastered this name and its block was at least this.
    Value {
        /// What.
        name: Name,
        /// The block.
        value: ValueBlock,
    },
    /// I was granted this byte range.
    PosixHeld {
        /// The file.
        name: Name,
        /// The range.
        lock: PosixLock,
    },
    /// A dead host held byte ranges of this file.
    PosixDead {
        /// The file.
        name: Name,
        /// Who.
        member: Member,
    },
}

impl Record {
    /// What it is about.
    pub(crate) fn name(&self) -> &Name {
        match self {
            Self::Held { name, .. }
            | Self::Dead { name, .. }
            | Self::Value { name, .. }
            | Self::PosixHeld { name, .. }
            | Self::PosixDead { name, .. } => name,
        }
    }

    /// Whether `slot` may say so: of byte ranges only its own programs', and only such as a program can have.
    pub(crate) fn is_from(&self, slot: u16) -> bool {
        match self {
            Self::PosixHeld { lock, .. } => lock.owner.slot == slot && lock.start <= lock.end,
            _ => true,
        }
    }
}

/// Knowledge of a dead host's locks that died with somebody else.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Hole {
    /// Nobody who is left was there: it may hold anything.
    Everything,
    /// Of the names that any of `lost` mastered in any of `views`.
    Mastered {
        /// The members of some epochs, each.
        views: BTreeSet<Vec<Member>>,
        /// Those who are gone.
        lost: BTreeSet<Member>,
    },
}

/// What a host knows of the past; see the `rebuild` module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// The members of every view since (and including) the last that was complete everywhere; none if this host has not been in
    /// one yet.
    pub recent: Option<Vec<Vec<Member>>>,
    /// The holes, each with the dead it is about.
    pub holes: Vec<(BTreeSet<Member>, Hole)>,
}
