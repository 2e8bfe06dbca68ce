//! The journal of one slot: a header block, then a ring of records. A record is one or more parts; a part is a descriptor
//! block and the whole-block images it lists. A record is valid only if every part is there and every checksum holds:
//! there is no separate commit block, the descriptor's checksums are the commit (rule R3).
//!
//! Ring addressing: positions count blocks since the journal was made and only grow; position p lives at block
//! `start + 1 + p mod (len - 1)`. A part never wraps in the middle of a block, but may wrap between blocks.

use crate::{BLOCK_BYTES, HEADER_BYTES};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the entries of a descriptor start.
pub const ENTRIES_AT: usize = 128;
/// Images one descriptor can list.
pub const MAX_IMAGES: usize = (BLOCK_BYTES - ENTRIES_AT) / size_of::<ImageEntry>();

/// Journal state: nothing to replay, the slot was left in order.
pub const STATE_CLEAN: u32 = 1;
/// Journal state: in use, or its host died.
pub const STATE_DIRTY: u32 = 2;

/// Body of the header block, at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct JournalHeader {
    /// 64: incarnation of the slot that owns the journal.
    pub incarnation: u64,
    /// 72: position of the oldest record that replay must look at.
    pub tail: u64,
    /// 80: sequence of that record.
    pub tail_sequence: u64,
    /// 88: [`STATE_CLEAN`] or [`STATE_DIRTY`].
    pub state: u32,
    /// 92: zero.
    pub zero: u32,
    /// 96: zero.
    pub reserved: [u64; 4],
}
const _: () = assert!(size_of::<JournalHeader>() == 64);

/// Fixed part of a descriptor, at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// 64: incarnation of the writer.
    pub incarnation: u64,
    /// 72: sequence of the record; grows by one a record.
    pub sequence: u64,
    /// 80: position of this descriptor.
    pub position: u64,
    /// 88: this part, from 0.
    pub part: u32,
    /// 92: parts of the record.
    pub parts: u32,
    /// 96: images in this part.
    pub count: u32,
    /// 100: CRC-32C over the image checksums of all parts up to and including this one (chain, starts at 0).
    pub chain: u32,
    /// 104: zero.
    pub reserved: [u64; 3],
}
const _: () = assert!(size_of::<Descriptor>() == ENTRIES_AT - HEADER_BYTES);

/// One image of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ImageEntry {
    /// 0: home address.
    pub block: u64,
    /// 8: CRC-32C of the whole image.
    pub crc: u32,
    /// 12: zero.
    pub zero: u32,
}
const _: () = assert!(MAX_IMAGES == 248);
