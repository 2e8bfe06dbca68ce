//! The one door through which a repair reads and writes metadata.
//!
//! Reading tells three kinds of blocks apart: sound ones, **suspect** ones (only the checksum is wrong: kind, volume, address and
//! owner are what they must be, so most of the bytes are what was written), and the rest. Every block that a repair writes gets
//! a version greater than that of any block it has seen, so that no older image of it, wherever one is left, ever wins.
//!
//! Invariant: nothing is written outside of the volume, and no metadata without a seal. A block that the LUN does not give back is an
//! error and ends the repair: on a failing disk nothing is repaired. Not here: what blocks mean.

use super::RepairError;
use crate::check::Code;
use crate::check::finding::of_check_error;
use crate::check::read::Reader;
use luna_format::{BLOCK_U64, Block, BlockNo, CheckError, Expect, Kind, Stamp, VolumeId, open};
use luna_lun::{Disk, Durability};

/// Versions above this are no counters but damage; they raise nothing.
const PLAUSIBLE: u64 = 1 << 60;

/// What a block turned out to be.
pub(super) enum Judged {
    /// Everything holds.
    Sound,
    /// Everything but the checksum holds.
    Suspect(Code, String),
    /// Not the block that was looked for.
    Bad(Code, String),
}

/// See the module's text.
pub(super) struct Door<'a> {
    disk: &'a dyn Disk,
    reader: Reader<'a>,
    id: VolumeId,
    total: u64,
    /// The greatest version seen.
    top: u64,
    /// Blocks written.
    pub(super) written: u64,
}

impl<'a> Door<'a> {
    /// A door to the first `total` blocks of `disk`, where volume `id` lives.
    pub(super) fn new(disk: &'a dyn Disk, id: VolumeId, total: u64) -> Self {
        Self { disk, reader: Reader::new(disk, total), id, total, top: 0, written: 0 }
    }

    /// The disk itself, for what has doors of its own (journals, data).
    pub(super) fn disk(&self) -> &'a dyn Disk {
        self.disk
    }

    /// Many blocks.
    pub(super) fn many(&self, wanted: &[BlockNo]) -> Result<Vec<Block>, RepairError> {
        let bad = |block: &BlockNo, why| RepairError::Unreadable { block: *block, why };
        self.reader.many(wanted)?.into_iter().zip(wanted).map(|(f, block)| f.map_err(|why| bad(block, why))).collect()
    }

    /// One block.
    pub(super) fn one(&self, block: BlockNo) -> Result<Block, RepairError> {
        Ok(self.many(&[block])?.pop().unwrap_or_else(Block::zeroed))
    }

    /// Whether `b` is the `kind` of `owner` that must be at `block`.
    pub(super) fn judge(&mut self, b: &Block, kind: Kind, block: BlockNo, owner: u64) -> Judged {
        let expect = Expect { kind, volume: self.id, block, owner: Some(owner) };
        match open(b, &expect) {
            Ok(h) => {
                self.seen(h.version);
                Judged::Sound
            }
            Err(e) => {
                let (code, text) = of_check_error(&e);
                let h = b.header();
                let mine = h.kind == kind as u16 && h.volume == self.id && h.block == block && h.owner == owner && h.layout == 1;
                if matches!(e, CheckError::Checksum { .. }) && mine { Judged::Suspect(code, text) } else { Judged::Bad(code, text) }
            }
        }
    }

    /// A version that somewhere was given out.
    pub(super) fn seen(&mut self, version: u64) {
        if version < PLAUSIBLE {
            self.top = self.top.max(version);
        }
    }

    /// The version of what is written now.
    pub(super) fn version(&self) -> u64 {
        self.top + 1
    }

    /// Seals a block and writes it.
    pub(super) fn put(&mut self, block: BlockNo, kind: Kind, owner: u64, mut b: Block) -> Result<(), RepairError> {
        let version = self.version();
        luna_format::seal(&mut b, &Stamp { kind, volume: self.id, block, owner, version, writer: 0, epoch: 0 });
        self.put_sealed(block, &b)
    }

    /// Writes a block that was sealed by the rules of its own kind, or zeroes.
    pub(super) fn put_sealed(&mut self, block: BlockNo, b: &Block) -> Result<(), RepairError> {
        assert!(block < self.total, "a repair never writes outside of the volume");
        self.disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain)?;
        self.written += 1;
        Ok(())
    }

    /// What was written before is on the LUN before what is written next.
    pub(super) fn flush(&self) -> Result<(), RepairError> {
        Ok(self.disk.flush()?)
    }
}
