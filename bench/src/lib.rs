//! Numbers, always as ratios: our mount against the bare LUN it stands on, the bare FUSE door, and ext4 on the same medium.
//!
//! Absolute figures from a shared machine say little, so one run measures everything side by side, in short interleaved
//! rounds, and prints medians and ratios: (1) the bare LUN through our own client ([`raw`]), (2) a bare FUSE door over the
//! same kind of LUN ([`door`]): one file mapped 1:1, no file system, (3) our mount ([`product`]), (4) the limit computed from
//! (1) and from a door that answers from memory. Then metadata beside ext4 on a loop device ([`meta`]), and the rest that has
//! a bar: memory, mount time, large and sparse files.
//!
//! **Invariants.** Every figure of one table comes from one run. A subject that can not be measured is shown as missing, never
//! left out in silence or guessed. Whatever is started is ended and unmounted, also after an error ([`world`]).
//!
//! **What it does not do.** It is no test: a bar that is missed is printed, and the exit status stays 0 unless a subject broke.

pub mod check;
pub mod door;
pub mod fio;
pub mod meta;
pub mod product;
pub mod raw;
pub mod report;
pub mod run;
pub mod takeover;
pub mod world;
