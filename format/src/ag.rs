//! Allocation groups: a header block, bitmap blocks, then the blocks they count. Segments of 256 blocks (1 MiB) have a
//! type, so that a block that ever held metadata never holds guest data while a journal may still replay it (rule R7).
//!
//! Group layout: block 0 the header, blocks 1..=n the bitmaps, the rest of segment 0 metadata. One bit a block, 1 = in use;
//! the header's and bitmaps' own bits are set. `AG_BITMAP_UNINIT`: the bitmap blocks were never written; read them as
//! "only the group's own blocks (and, in group 0, the root and orphan directories) in use".

use crate::{BLOCK_BYTES, HEADER_BYTES};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of one bitmap block.
pub const BITS_PER_BITMAP: u64 = ((BLOCK_BYTES - HEADER_BYTES) * 8) as u64;
/// Blocks of a segment.
pub const SEGMENT_BLOCKS: u64 = 256;
/// Where the segment types start in the header block.
pub const SEGMENTS_AT: usize = 128;
/// Segments a header can type (2 bits each).
pub const MAX_SEGMENTS: u64 = ((BLOCK_BYTES - SEGMENTS_AT) * 4) as u64;
/// The longest group.
pub const MAX_BLOCKS: u64 = MAX_SEGMENTS * SEGMENT_BLOCKS;
/// Header flag: bitmap blocks were never written.
pub const AG_BITMAP_UNINIT: u32 = 1;

/// Body of a group header, at byte 64; segment types follow at [`SEGMENTS_AT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AgHeader {
    /// 64: index of the group.
    pub index: u64,
    /// 72: blocks of the group, its own included.
    pub blocks: u64,
    /// 80: free blocks.
    pub free: u64,
    /// 88: the greatest version of any metadata block ever freed here; a new one starts above it.
    pub version_floor: u64,
    /// 96: bitmap blocks.
    pub bitmaps: u32,
    /// 100: [`AG_BITMAP_UNINIT`].
    pub flags: u32,
    /// 104: free blocks inside metadata segments.
    pub free_meta: u64,
    /// 112: zero.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<AgHeader>() == SEGMENTS_AT - HEADER_BYTES);

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentType {
    /// Nothing.
    Free = 0,
    /// File data.
    Data = 1,
    /// Metadata blocks; for ever, in this version (see docs/adr).
    Meta = 2,
}

/// Reads the type of segment `n` from a header block's bytes. Numbers out of range read as `Meta` (never handed out as data).
pub fn segment(bytes: &[u8; BLOCK_BYTES], n: u64) -> SegmentType {
    let at = SEGMENTS_AT + (n / 4) as usize;
    match bytes.get(at).map_or(2, |b| (b >> ((n % 4) * 2)) & 3) {
        0 => SegmentType::Free,
        1 => SegmentType::Data,
        _ => SegmentType::Meta,
    }
}

/// Sets the type of segment `n`.
pub fn set_segment(bytes: &mut [u8; BLOCK_BYTES], n: u64, t: SegmentType) {
    let at = SEGMENTS_AT + (n / 4) as usize;
    if let Some(b) = bytes.get_mut(at) {
        let shift = (n % 4) * 2;
        *b = (*b & !(3 << shift)) | ((t as u8) << shift);
    }
}

/// Bitmap blocks that a group of `blocks` needs.
pub fn bitmaps_for(blocks: u64) -> u64 {
    blocks.div_ceil(BITS_PER_BITMAP)
}
