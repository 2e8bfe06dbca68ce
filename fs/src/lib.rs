//! The volume: names and byte ranges become locked, journaled blocks.
//!
//! Bottom up: [`meta`] caches metadata blocks under their locks; [`tx`] is one operation's overlay over it; [`volume`] runs
//! operation bodies and commits them; [`checkpoint`] brings them home. On that stand the allocator, inodes, extents,
//! directories and one file per operation in [`op`], then the data path and the FUSE adapter.
//!
//! Invariant of the crate: a guest's 4 KiB overwrite of an allocated block sends no message, writes no journal and takes no
//! lock that another overwrite waits for. Not here: membership, sockets between hosts, argument parsing.
#![forbid(unsafe_code)]

pub mod alloc;
pub mod check;
pub mod checkpoint;
pub mod data;
pub mod dir;
mod direct;
pub mod error;
pub mod extent;
pub mod freeze;
pub mod fuse;
pub mod inode;
pub mod machine;
pub mod meta;
pub mod mkfs;
pub mod names;
pub mod op;
pub mod open;
pub mod orphan;
mod pool;
pub mod repair;
mod revoke;
mod stats;
pub mod syncer;
pub mod system;
#[cfg(test)]
mod testkit;
pub mod tx;
pub mod volume;
pub mod wreck;
pub mod xattr;

pub use error::{FsError, Step, Stop};
pub use machine::Machine;
pub use system::Fs;
pub use volume::{Parts, Volume};
