//! Who is in: membership decided on the LUN, coordinated by raft. The specification is `docs/recovery.md`.
//!
//! [`Core`] is one host's side of it: a pure function of time and inputs ([`Core::step`]); it reads no clock, opens no socket,
//! draws no random number (jitter comes from a seed) and orders everything by BTreeMap, so a run repeats exactly.
//!
//! # The loop the shell runs (one thread owns the core)
//!
//! ```text
//! let mut core = Core::new(config, seed);            // Area::of(volume, &superblock); Timing the same on all hosts
//! core.step(boottime_ms(), Input::Start, &mut out);
//! loop {
//!     for o in out.drain(..) { perform(o) }           // in order; see the table
//!     publish(core.gate());                           // one atomic: until_ms, or 0 for Paused/Evicted
//!     let event = wait_until(core.next_wake_ms());    // an answer, a message, a link, or nothing: Tick
//!     core.step(boottime_ms(), event, &mut out);
//! }
//! ```
//!
//! | output | what the shell does |
//! |---|---|
//! | `Read`, `Write` | on an I/O thread (never on this one), answered by `ReadDone`/`WriteDone` with the token. A write is never retried; different writes may be reordered, the core waits where order matters |
//! | `Send` | by TCP, or by mail on the LUN while TCP is down; may be lost. A host that is not a member yet opens a guest connection (with the link secret): its only message is `JoinRequest`, delivered with `from: None` |
//! | `Joined` | open the journal (replayed by now), start the file system; the gate is open |
//! | `View` | connect to new members, hand members and dead to the lock manager; the same epoch may come again with more addresses |
//! | `Fence` | strongest rung there is; answer `FenceDone`; `Ok(Lease)` at once where there is none: the core itself waits W |
//! | `Replay` | `luna_journal::plan`/`apply` with `Fenced::attest(slot, incarnation, fenced_epoch)` on a thread, answer `ReplayDone`. May come before `Joined` |
//! | `Recovered` | thaw |
//! | `Paused`, `Resumed` | gate closed and open; every submitter compares `until_ms` with the clock itself, just before submission |
//! | `Evicted` | gate closed for good: reset links, drop locks and caches, EIO; when nothing is in flight any more: `Drained` |
//! | `Left`, `Refused` | the end |
//! | `Log` | a line at info |
//!
//! Also: `PeerLink` when a TCP link comes up or is reset (not while it is merely slow), `Nudge` is delivered as a message, `Stranger`
//! when a caller's key can not be compared because its beat was not read yet.
//! Leaving: `LeaveRequested`, then flush everything and close the journal, then `JournalClean`, then wait for `Left`.
//! Two mounts on one machine need different names and different host ids.
//!
//! Invariant: I1..I8 of `docs/recovery.md`. Not here: I/O, time, locks, fencing itself, replay itself; raft types never leave.
#![forbid(unsafe_code)]

mod core;
mod council;
mod membership;
mod paxos;
mod types;
mod watch;

pub use crate::core::Core;
pub use types::{Area, Config, Dead, FenceMethod, Gate, Input, LinkNow, Member, Ms, Msg, Output, Timing, Token, View};
