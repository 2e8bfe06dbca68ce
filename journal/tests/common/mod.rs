//! Shared set-up of the journal tests: a small volume in memory with one journal, and images with a version.

#![allow(dead_code)] // each test binary uses its own part

use luna_format::{BLOCK_U64, Block, BlockNo, Kind, Stamp, seal};
use luna_journal::{Image, Journal};
use luna_lun::{Disk, Durability};
use std::sync::Arc;

/// The volume of all tests.
pub(crate) const VOLUME: [u8; 16] = [7; 16];
/// Bytes of the test disk.
pub(crate) const DISK_BYTES: u64 = 8 << 20;
/// First block of the home area.
pub(crate) const HOME: BlockNo = 1024;

/// All of it.
pub(crate) const HOMES: std::ops::Range<BlockNo> = HOME..DISK_BYTES / BLOCK_U64;

/// A sealed block with `version` and a fill that depends on both.
pub(crate) fn block(at: BlockNo, version: u64) -> Block {
    let mut b = Block::zeroed();
    b.0[64..].fill((at as u8) ^ (version as u8).wrapping_mul(31));
    b.0[64..72].copy_from_slice(&version.to_le_bytes());
    seal(&mut b, &Stamp { kind: Kind::Inode, volume: VOLUME, block: at, owner: at, version, writer: 0, epoch: 1 });
    b
}

/// The same as an image.
pub(crate) fn image(at: BlockNo, version: u64) -> Image {
    Image { block: at, bytes: Arc::new(block(at, version)) }
}

/// Reads one block.
pub(crate) fn read(disk: &dyn Disk, at: BlockNo) -> Block {
    let mut b = Block::zeroed();
    disk.read_at(&mut b.0, at * BLOCK_U64).unwrap();
    b
}

/// Writes one block home.
pub(crate) fn write(disk: &dyn Disk, b: &Block, at: BlockNo) {
    disk.write_at(&b.0, at * BLOCK_U64, Durability::Plain).unwrap();
}

/// The version at home, 0 when the block is not whole.
pub(crate) fn version(disk: &dyn Disk, at: BlockNo) -> u64 {
    luna_format::peek(&read(disk, at), &VOLUME, at).map_or(0, |h| h.version)
}

/// Formats and opens the journal of slot 3.
pub(crate) fn fresh(disk: &Arc<dyn Disk>, region: (BlockNo, u64)) -> Journal {
    Journal::format(&**disk, VOLUME, region, 3).unwrap();
    Journal::open(disk.clone(), VOLUME, region, 3, 1).unwrap()
}
