//! Every byte that outlives a process, declared once.
//!
//! A Luna volume is an array of 4 KiB blocks. Each metadata block opens with one 64-byte [`Header`] that names what the
//! block is, where it lives, who owns it and how old it is; [`seal`] writes that header and the checksum, [`open`] checks
//! them and says what was expected and what was found. The bodies are `zerocopy` structs: little-endian, no padding, every
//! offset noted and proven by a const assertion. `docs/format.md` is the same in prose.
//!
//! Invariant: a block that passed [`open`] is of the expected kind, volume, address and owner, and is whole.
//! Not here: I/O, policy, clocks. No serializer ever touches the disk.
#![forbid(unsafe_code)]

pub mod ag;
pub mod block;
pub mod cluster;
pub mod dir;
pub mod geometry;
pub mod inode;
pub mod journal;
pub mod superblock;
pub mod tree;
pub mod xattr;

pub use block::{Block, CheckError, Expect, HEADER_BYTES, Header, Kind, MAGIC, Stamp, open, peek, seal};

/// Bytes of a block: the unit of addresses, of checksums and of journal images.
pub const BLOCK_BYTES: usize = 4096;
/// The same as `u64`, for address arithmetic.
pub const BLOCK_U64: u64 = 4096;
/// log2 of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u32 = 12;
/// The most hosts that can mount one volume at once.
pub const MAX_SLOTS: u16 = 64;

/// No counter that grows by one at a time (versions, incarnations, sequences, epochs, ballots, links) gets here in the life of the
/// hardware: at a billion a second it takes 146 years. What is greater is damage, and is refused before anybody adds to it.
pub const COUNT_MAX: u64 = 1 << 62;

/// Volume identity, drawn at mkfs; part of every block header.
pub type VolumeId = [u8; 16];
/// A volume-wide block address (4 KiB units).
pub type BlockNo = u64;
/// An inode number: the address of the inode's own block.
pub type Ino = u64;
/// A host's place on the LUN, below [`MAX_SLOTS`].
pub type Slot = u16;
/// How often a slot was taken; grows by one at each admission.
pub type Incarnation = u64;
/// The index of the last membership record.
pub type Epoch = u64;
