//! The superblock: who the volume is and where everything else lives. Three copies (first block, the block after the
//! journals, last block), any one of which is enough.
//!
//! Invariant: [`Superblock::check`] holds for every superblock that leaves [`read`]: all regions lie inside the volume,
//! in order, without overlap. Not here: choosing the sizes (that is [`crate::geometry`]).

use crate::{BLOCK_BYTES, Block, BlockNo, CheckError, Expect, Kind, MAX_SLOTS, Slot, Stamp, VolumeId, open, seal};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The format version this program writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Entries of the device table: LUNs a volume may span one day.
pub const MAX_DEVICES: usize = 32;
/// Incompatible feature: a repair is under way, or was cut off. No host may mount; `luna fsck -y` goes on with it.
pub const INCOMPAT_REPAIR: u64 = 1 << 2;
/// Where a repair beats while it has the volume to itself (`cluster::RepairBeat`); zeroes otherwise.
pub const REPAIR_BEAT_BLOCK: BlockNo = 1;
/// Where the last repair that got the volume to itself has written its first beat.
pub const REPAIR_HOLDER_BLOCK: BlockNo = 2;
/// Incompatible features this program knows (bit 0 is set aside for shared extents, bit 1 for several LUNs).
pub const KNOWN_INCOMPAT: u64 = INCOMPAT_REPAIR;
/// Read-only compatible features this program knows.
pub const KNOWN_RO_COMPAT: u64 = 0;
/// Checksum type: CRC-32C (Castagnoli polynomial 0x1EDC6F41).
pub const CHECKSUM_CRC32C: u32 = 1;

/// Records of the membership log that must fit: the newest, the one before it, and one that is being written.
pub const LOG_BLOCKS_MIN: u64 = 8;

/// One LUN of the volume: which blocks of the volume-wide address space it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Device {
    /// 0: identity of the LUN (today the volume's own).
    pub id: [u8; 16],
    /// 16: first volume-wide block it carries.
    pub start: u64,
    /// 24: how many blocks.
    pub len_blocks: u64,
}

/// Body of the superblock, at byte 64 of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Superblock {
    /// 64: format version, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// 68: [`CHECKSUM_CRC32C`].
    pub checksum_type: u32,
    /// 72: features an old program may ignore.
    pub compat: u64,
    /// 80: features an old program may only read past.
    pub ro_compat: u64,
    /// 88: features an old program must refuse.
    pub incompat: u64,
    /// 96: bytes of a block, 4096.
    pub block_bytes: u32,
    /// 100: slots, 1..=64.
    pub slots: u32,
    /// 104: blocks of the whole volume.
    pub total_blocks: u64,
    /// 112: first beat block; one a slot.
    pub beat_start: u64,
    /// 120: first Paxos block; one a slot.
    pub px_start: u64,
    /// 128: first block of the membership log.
    pub log_start: u64,
    /// 136: blocks of the membership log.
    pub log_blocks: u64,
    /// 144: first mailbox block.
    pub mail_start: u64,
    /// 152: mailbox blocks a slot.
    pub mail_blocks: u64,
    /// 160: first journal block.
    pub journal_start: u64,
    /// 168: journal blocks a slot.
    pub journal_blocks: u64,
    /// 176: address of the second superblock copy (directly after the journals).
    pub copy_block: u64,
    /// 184: first block of allocation group 0.
    pub ag_start: u64,
    /// 192: blocks of a group (the last one may be shorter).
    pub ag_blocks: u64,
    /// 200: number of groups.
    pub ag_count: u64,
    /// 208: blocks of a segment, 256.
    pub segment_blocks: u64,
    /// 216: the root directory.
    pub root_ino: u64,
    /// 224: orphan directory of slot 0; slot s has the s-th block after it.
    pub orphan_ino: u64,
    /// 232: key of the directory hash.
    pub hash_key: [u8; 16],
    /// 248: when it was made, nanoseconds since 1970.
    pub made_ns: i64,
    /// 256: secret of the cluster's links.
    pub link_secret: [u8; 32],
    /// 288: checkpoint of the membership log: records up to here are folded into `log_state`.
    pub log_checkpoint: u64,
    /// 296: devices in use.
    pub device_count: u32,
    /// 300: zero.
    pub zero: u32,
    /// 304: label, UTF-8, zero-filled.
    pub label: [u8; 64],
    /// 368: device table.
    pub devices: [Device; MAX_DEVICES],
    /// 1392: zero.
    pub reserved: [u8; 2704],
}
const _: () = assert!(size_of::<Superblock>() == BLOCK_BYTES - 64);
const _: () = assert!(std::mem::offset_of!(Superblock, label) == 304 - 64);
const _: () = assert!(std::mem::offset_of!(Superblock, reserved) == 1392 - 64);

impl Superblock {
    /// A superblock of zeroes, for mkfs to fill.
    pub fn empty() -> Self {
        Self::new_zeroed()
    }

    /// The addresses of the three copies.
    pub fn copies(&self) -> [BlockNo; 3] {
        [0, self.copy_block, self.total_blocks - 1]
    }

    /// The label as text.
    pub fn label_text(&self) -> String {
        let end = self.label.iter().position(|b| *b == 0).unwrap_or(self.label.len());
        String::from_utf8_lossy(&self.label[..end]).into_owned()
    }

    /// The volume id is in the header; the seal of a copy at `block`.
    pub fn seal(&self, volume: VolumeId, block: BlockNo, version: u64) -> Block {
        let mut b = Block::zeroed();
        b.0[64..].copy_from_slice(self.as_bytes());
        seal(&mut b, &Stamp { kind: Kind::Superblock, volume, block, owner: 0, version, writer: 0, epoch: 0 });
        b
    }

    /// First block and length of slot `s`'s journal.
    pub fn journal_region(&self, s: Slot) -> (BlockNo, u64) {
        (self.journal_start + u64::from(s) * self.journal_blocks, self.journal_blocks)
    }

    /// Where blocks live that a journal may have images of: the groups.
    pub fn homes(&self) -> std::ops::Range<BlockNo> {
        self.ag_start..self.total_blocks - 1
    }

    /// Orphan directory of slot `s`.
    pub fn orphan_dir(&self, s: Slot) -> u64 {
        self.orphan_ino + u64::from(s)
    }

    /// The group that holds `block`, or `None` outside of the groups.
    pub fn ag_of(&self, block: BlockNo) -> Option<u64> {
        let rel = block.checked_sub(self.ag_start)?;
        let ag = rel / self.ag_blocks;
        (ag < self.ag_count && block < self.total_blocks - 1).then_some(ag)
    }

    /// First block and length of group `ag`.
    pub fn ag_region(&self, ag: u64) -> (BlockNo, u64) {
        let start = self.ag_start + ag * self.ag_blocks;
        (start, self.ag_blocks.min(self.total_blocks - 1 - start))
    }

    /// Every address in it. Once each is below the volume's end, which is below 2^51, sums with the bounded lengths cannot overflow.
    fn starts(&self) -> [BlockNo; 9] {
        [
            self.beat_start,
            self.px_start,
            self.log_start,
            self.mail_start,
            self.journal_start,
            self.copy_block,
            self.ag_start,
            self.root_ino,
            self.orphan_ino,
        ]
    }

    /// Whether every region lies inside the volume, in order, and every count is sane.
    pub fn check(&self, block: BlockNo) -> Result<(), CheckError> {
        let bad = |what, found| Err(CheckError::Field { block, what, found });
        if self.format_version > FORMAT_VERSION {
            let (found, known) = (u64::from(self.format_version), u64::from(FORMAT_VERSION));
            return Err(CheckError::Future { block, what: "format", found, known });
        }
        if self.incompat & !KNOWN_INCOMPAT != 0 {
            return Err(CheckError::Future { block, what: "incompatible features", found: self.incompat, known: KNOWN_INCOMPAT });
        }
        if self.format_version == 0 || self.checksum_type != CHECKSUM_CRC32C || self.block_bytes as usize != BLOCK_BYTES {
            return bad("version, checksum type or block size", u64::from(self.format_version));
        }
        let slots = u64::from(self.slots);
        if slots == 0 || slots > u64::from(MAX_SLOTS) {
            return bad("number of slots", slots);
        }
        if self.total_blocks > 1 << 51
            || self.journal_blocks < 16
            || self.journal_blocks > 1 << 24
            || !(1..=1 << 16).contains(&self.mail_blocks)
            || !(LOG_BLOCKS_MIN..=1 << 20).contains(&self.log_blocks)
        {
            return bad("a region's size", self.total_blocks);
        }
        if let Some(start) = self.starts().into_iter().find(|s| *s >= self.total_blocks) {
            return bad("start of a region", start);
        }
        let order = [
            (REPAIR_HOLDER_BLOCK + 1, self.beat_start),
            (self.beat_start + slots, self.px_start),
            (self.px_start + slots, self.log_start),
            (self.log_start + self.log_blocks, self.mail_start),
            (self.mail_start + slots * self.mail_blocks, self.journal_start),
            (self.journal_start + slots * self.journal_blocks, self.copy_block),
            (self.copy_block + 1, self.ag_start),
            (self.ag_start + 1, self.total_blocks),
        ];
        for (end, start) in order {
            if start < end || start > self.total_blocks {
                return bad("start of a region", start);
            }
        }
        let usable = self.total_blocks - 1 - self.ag_start;
        if self.segment_blocks != 256
            || self.ag_blocks == 0
            || !self.ag_blocks.is_multiple_of(256)
            || self.ag_blocks > crate::ag::MAX_BLOCKS
            || self.ag_count == 0
            || (self.ag_count - 1).checked_mul(self.ag_blocks).is_none_or(|n| n >= usable)
        {
            return bad("groups", self.ag_count);
        }
        let first_ag_end = self.ag_start + self.ag_blocks.min(usable);
        if self.root_ino <= self.ag_start
            || self.orphan_ino <= self.ag_start
            || self.orphan_ino + slots > first_ag_end
            || self.root_ino >= first_ag_end
        {
            return bad("root or orphan directory", self.root_ino);
        }
        if self.device_count as usize > MAX_DEVICES || self.device_count == 0 {
            return bad("number of devices", u64::from(self.device_count));
        }
        Ok(())
    }
}

/// Opens a superblock copy that was read from `block`; the volume id comes back with it.
pub fn read(b: &Block, block: BlockNo) -> Result<(VolumeId, u64, Superblock), CheckError> {
    let volume = b.header().volume;
    let h = open(b, &Expect { kind: Kind::Superblock, volume, block, owner: Some(0) })?;
    let (sb, _) = Superblock::read_from_prefix(&b.0[64..]).map_err(|_| CheckError::Magic { block, found: 0 })?;
    sb.check(block)?;
    Ok((volume, h.version, sb))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums overflowed before anything was compared (a panic, or a start that came out small again), and a log or a mailbox of no blocks
    /// was divided by.
    #[test]
    fn no_field_at_its_edge_is_believed() {
        let good = crate::geometry::plan(1 << 30, 4).expect("large enough");
        assert!(good.check(0).is_ok());
        let fields: [fn(&mut Superblock) -> &mut u64; 15] = [
            |s| &mut s.total_blocks,
            |s| &mut s.beat_start,
            |s| &mut s.px_start,
            |s| &mut s.log_start,
            |s| &mut s.log_blocks,
            |s| &mut s.mail_start,
            |s| &mut s.mail_blocks,
            |s| &mut s.journal_start,
            |s| &mut s.journal_blocks,
            |s| &mut s.copy_block,
            |s| &mut s.ag_start,
            |s| &mut s.ag_blocks,
            |s| &mut s.ag_count,
            |s| &mut s.root_ino,
            |s| &mut s.orphan_ino,
        ];
        for (n, field) in fields.iter().enumerate() {
            for edge in [0, u64::MAX, u64::MAX - 1, u64::MAX - 3, u64::MAX / 2, 1 << 63, 1 << 51, good.total_blocks] {
                let mut sb = good;
                *field(&mut sb) = edge;
                assert!(sb.check(0).is_err() || n == 0 && (edge == good.total_blocks || edge == 1 << 51), "field {n} at {edge:#x}");
            }
        }
    }
}
