//! Where things lie in a journal, and the bytes of a record: pure arithmetic over `luna_format::journal`.
//!
//! Invariant: [`encode`] and [`Cursor`] of replay agree on positions because both go through [`Region::block_at`]. Not here: I/O.

use crate::{JournalError, Result};
use luna_format::journal::{Descriptor, ENTRIES_AT, ImageEntry, JournalHeader, MAX_IMAGES, STATE_CLEAN, STATE_DIRTY};
use luna_format::{Block, BlockNo, Expect, HEADER_BYTES, Incarnation, Kind, Slot, Stamp, VolumeId, open, seal};
use std::sync::Arc;
use zerocopy::{FromZeros, IntoBytes};

/// A sealed block image (its header carries address and version) on its way to its home.
#[derive(Clone, Debug)]
pub struct Image {
    /// Home address.
    pub block: BlockNo,
    /// The whole block, sealed.
    pub bytes: Arc<Block>,
}

/// One slot's journal on one volume: everything that addresses a block of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The volume.
    pub volume: VolumeId,
    /// The slot that owns the journal.
    pub slot: Slot,
    /// Its header block.
    pub start: BlockNo,
    /// Blocks, header included.
    pub len: u64,
}

/// Blocks that a record of `images` images takes in the ring.
pub const fn blocks_for(images: u64) -> u64 {
    images + images.div_ceil(MAX_IMAGES as u64)
}

impl Region {
    /// Blocks of the ring.
    pub fn ring(&self) -> u64 {
        self.len - 1
    }

    /// The block in which position `p` lives.
    pub fn block_at(&self, p: u64) -> BlockNo {
        self.start + 1 + p % self.ring()
    }

    /// Ring blocks from position `p` on that are contiguous on the LUN.
    pub fn run_at(&self, p: u64) -> u64 {
        self.ring() - p % self.ring()
    }

    /// Images that fit into `blocks` ring blocks.
    pub fn images_in(&self, blocks: u64) -> u64 {
        let full = MAX_IMAGES as u64 + 1;
        (blocks / full) * MAX_IMAGES as u64 + (blocks % full).saturating_sub(1)
    }

    /// The header block, sealed.
    pub(crate) fn header_block(&self, h: &JournalHeader, version: u64) -> Block {
        let mut b = Block::zeroed();
        b.0[HEADER_BYTES..HEADER_BYTES + size_of::<JournalHeader>()].copy_from_slice(h.as_bytes());
        let (block, owner) = (self.start, u64::from(self.slot));
        seal(&mut b, &Stamp { kind: Kind::JournalHeader, volume: self.volume, block, owner, version, writer: self.slot, epoch: 0 });
        b
    }

    /// Opens a header block and checks its fields; the header's version comes with it.
    pub(crate) fn open_header(&self, b: &Block) -> Result<(u64, JournalHeader)> {
        let expect = Expect { kind: Kind::JournalHeader, volume: self.volume, block: self.start, owner: Some(u64::from(self.slot)) };
        let header = open(b, &expect)?;
        let body = *b.view::<JournalHeader>(HEADER_BYTES).expect("the header body fits into a block");
        let bad = |what, found| Err(JournalError::BadHeader { slot: self.slot, what, found });
        if body.state != STATE_CLEAN && body.state != STATE_DIRTY {
            return bad("state", u64::from(body.state));
        }
        if body.incarnation > luna_format::COUNT_MAX {
            return bad("incarnation", body.incarnation);
        }
        if body.tail > u64::MAX / 2 {
            return bad("tail", body.tail);
        }
        if body.tail_sequence == 0 || body.tail_sequence > u64::MAX / 2 {
            return bad("tail sequence", body.tail_sequence);
        }
        Ok((header.version, body))
    }
}

/// Descriptor blocks of a record, in order, with the images of each part.
pub(crate) struct Encoded<'a> {
    /// One descriptor and its images per part.
    pub(crate) parts: Vec<(Block, &'a [Image])>,
}

/// Makes the descriptors of the record `sequence` at `position`.
pub(crate) fn encode<'a>(r: &Region, incarnation: Incarnation, sequence: u64, position: u64, images: &'a [Image]) -> Encoded<'a> {
    let parts = images.len().div_ceil(MAX_IMAGES);
    let (mut chain, mut at) = (0, position);
    let mut out = Vec::with_capacity(parts);
    for (part, chunk) in images.chunks(MAX_IMAGES).enumerate() {
        let mut b = Block::zeroed();
        let mut to = ENTRIES_AT;
        for i in chunk {
            let crc = crc(&i.bytes);
            chain = chain_on(chain, crc);
            b.0[to..to + size_of::<ImageEntry>()].copy_from_slice(ImageEntry { block: i.block, crc, zero: 0 }.as_bytes());
            to += size_of::<ImageEntry>();
        }
        let mut d = Descriptor::new_zeroed();
        (d.incarnation, d.sequence, d.position, d.chain) = (incarnation, sequence, at, chain);
        (d.part, d.parts, d.count) = (part as u32, parts as u32, chunk.len() as u32);
        b.0[HEADER_BYTES..ENTRIES_AT].copy_from_slice(d.as_bytes());
        let (block, owner) = (r.block_at(at), u64::from(r.slot));
        let stamp = Stamp { kind: Kind::JournalDescriptor, volume: r.volume, block, owner, version: sequence, writer: r.slot, epoch: 0 };
        seal(&mut b, &stamp);
        at += 1 + chunk.len() as u64;
        out.push((b, chunk));
    }
    Encoded { parts: out }
}

/// CRC-32C of a whole image.
pub(crate) fn crc(b: &Block) -> u32 {
    crc32c::crc32c(&b.0)
}

/// The record's chain checksum after one more image.
pub(crate) fn chain_on(chain: u32, image_crc: u32) -> u32 {
    crc32c::crc32c_append(chain, &image_crc.to_le_bytes())
}
