//! The distributed lock manager: grants locks on opaque names in six modes, tells holders when others want them, survives
//! the death of any host.
//!
//! Three parts, one door each:
//! - [`Core`]: the pure protocol, one per host. `step(now, input, &mut outputs)`; no clock, socket, thread or random order.
//! - [`LockCache`]: what the data path of one host calls. A right that was granted stays on the host; taking it again costs
//!   two atomics and no message. The only part of the crate that has threads.
//! - [`PosixClient`] over [`posix`]: `fcntl`, open-file-description and `flock` locks across hosts, served by the same core.
//!
//! Invariant: two hosts never hold incompatible modes of one name at the same time, and a dead host counts as a holder
//! until it is recovered. The crate does not know what a name means, never touches a disk, and does not decide who is a
//! member: views and recoveries are told to it.

mod cache;
mod core;
mod mode;
mod msg;
mod name;
pub mod posix;
mod view;

pub use self::core::{Core, Counters, Dump, Input, Output};
pub use cache::{Answer, CacheCounters, CacheDump, Handle, Hold, Hooks, Job, LockCache, LockError, NoHooks, Requester, Threads};
pub use mode::{Mode, ModeSet};
pub use msg::{Body, History, Hole, Msg, Record};
pub use name::{Name, ValueBlock, merge};
pub use posix::{PosixClient, PosixRequester};
pub use view::{DeadHost, Member, View, master_of};
