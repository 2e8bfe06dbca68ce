//! Byte-range locks of programs across hosts: `fcntl` (owner = process), open-file-description (owner = handle) and `flock`.
//!
//! The master of the file's name keeps the table ([`Server`]); every host remembers what it was granted and sends it again to
//! the new master when the members change. A dead host's locks stay in force until it is recovered: a process there may still
//! be writing. [`PosixClient`] is the thread-safe door for the file system.
//!
//! Invariant: two owners never hold overlapping ranges of one space of one name unless both only read. Waiting requests are
//! tried in the order they came, but a newcomer that conflicts with nobody who *holds* is granted, as on one Linux host.
//! `fcntl` and open-file-description locks conflict with each other; `flock` lives in a space of its own.
//! Not done: deadlock detection across several files. Not exact: when the answer to a change of one's own exclusive range to a shared
//! one is lost with a view change *and* the repeated change is then refused for another part of the range, the program keeps
//! believing in an exclusive range that others already read.

mod client;
mod range;

use serde::{Deserialize, Serialize};

pub use self::client::{PosixClient, PosixRequester, Token};
pub use self::range::{Key, Server};

/// Which locks see each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Space {
    /// `fcntl` and open-file-description locks.
    Range,
    /// `flock`: whole files.
    Flock,
}

/// Who holds a lock: a lock owner (process or handle, as FUSE numbers them) on one host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The host.
    pub slot: u16,
    /// The owner there.
    pub id: u64,
}

/// One held or wanted range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PosixLock {
    /// The space.
    pub space: Space,
    /// Whose it is.
    pub owner: Owner,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX` is "to the end, however it grows".
    pub end: u64,
    /// Exclusive rather than shared.
    pub write: bool,
    /// The process, as its own host numbers it; only told to `getlk`.
    pub pid: u32,
}

impl PosixLock {
    /// The whole file, as `flock` locks it.
    #[must_use]
    pub const fn flock(owner: Owner, write: bool, pid: u32) -> Self {
        Self { space: Space::Flock, owner, start: 0, end: u64::MAX, write, pid }
    }

    const fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.space == other.space && self.owner != other.owner && (self.write || other.write) && self.overlaps(other.start, other.end)
    }
}

/// What a program asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// Take the range, changing what the owner has there.
    Set {
        /// The range.
        lock: PosixLock,
        /// Wait for it (`F_SETLKW`), rather than `WouldBlock`.
        wait: bool,
    },
    /// Let go of a range.
    Unset {
        /// The space.
        space: Space,
        /// Whose.
        owner: Owner,
        /// First byte.
        start: u64,
        /// Last byte, inclusive.
        end: u64,
    },
    /// Who is in the way of this range?
    Get(PosixLock),
}

impl Op {
    /// Lets go of everything the owner has in the space.
    #[must_use]
    pub const fn release_owner(space: Space, owner: Owner) -> Self {
        Self::Unset { space, owner, start: 0, end: u64::MAX }
    }
}

/// Why it did not work; each maps to one errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum PosixError {
    /// EAGAIN.
    #[error("the range is locked by another owner")]
    WouldBlock,
    /// EINTR.
    #[error("waiting for the lock was interrupted")]
    Interrupted,
    /// EDEADLK.
    #[error("waiting would close a circle of waiting owners")]
    Deadlock,
    /// ENOLCK.
    #[error("too many locks on one file")]
    NoLocks,
    /// EINVAL.
    #[error("the range ends before it starts")]
    Invalid,
    /// EIO.
    #[error("this host was withdrawn and holds no locks; unmount and mount again")]
    Withdrawn,
}

/// The answer: for `Get` the first lock in the way, otherwise nothing.
pub type PosixResult = Result<Option<PosixLock>, PosixError>;
