//! The block, its header, and the two doors every metadata block passes: [`seal`] and [`open`].
//!
//! Invariant: `open` never trusts a byte before the checksum holds, and never accepts a block of another volume, another
//! address, another kind or (where the caller knows it) another owner. Not here: what the bodies mean.

use crate::{BLOCK_BYTES, BlockNo, COUNT_MAX, Epoch, Slot, VolumeId};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// `LUNA`, little-endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LUNA");
/// Bytes of [`Header`] at the front of each metadata block.
pub const HEADER_BYTES: usize = 64;

/// One 4 KiB block in memory. Aligned to a cache line, not to its size: an `Arc` of a block that is aligned to 4 KiB takes 8 KiB,
/// and the metadata cache is made of such. Local disks under direct I/O copy a block through an aligned buffer instead.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    /// Whether every byte is zero; one comparison of memory, for this is asked of thousands of blocks in a row.
    pub fn is_zero(&self) -> bool {
        static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        self.0 == ZEROES
    }

    /// A block of zeroes.
    pub fn zeroed() -> Self {
        Self([0; BLOCK_BYTES])
    }

    /// A block copied from a slice of exactly [`BLOCK_BYTES`]; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// A vector of `n` zeroed blocks (contiguous).
    pub fn zeroed_vec(n: usize) -> Vec<Self> {
        Self::new_vec_zeroed(n).unwrap_or_default()
    }

    /// The header, unchecked: use [`open`] unless the bytes are your own.
    pub fn header(&self) -> Header {
        Header::read_from_prefix(&self.0).map_or_else(|_| Header::new_zeroed(), |(h, _)| h)
    }

    /// The body struct `T` at byte `at`, as a view; `None` when it does not fit.
    pub fn view<T: FromBytes + KnownLayout + Immutable>(&self, at: usize) -> Option<&T> {
        let end = at.checked_add(size_of::<T>())?;
        T::ref_from_bytes(self.0.get(at..end)?).ok()
    }

    /// The body struct `T` at byte `at`, for changing in place; `None` when it does not fit.
    pub fn view_mut<T: FromBytes + IntoBytes + KnownLayout>(&mut self, at: usize) -> Option<&mut T> {
        let end = at.checked_add(size_of::<T>())?;
        T::mut_from_bytes(self.0.get_mut(at..end)?).ok()
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({:?})", self.header())
    }
}

/// What a metadata block is. The numbers are permanent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Superblock copy.
    Superblock = 1,
    /// A slot's heartbeat.
    Beat = 2,
    /// A slot's Disk Paxos register.
    Paxos = 3,
    /// A chosen membership record.
    Record = 4,
    /// A slot's outgoing mail.
    Mail = 5,
    /// Journal header, first block of a journal.
    JournalHeader = 6,
    /// Journal descriptor: opens a record in the log.
    JournalDescriptor = 7,
    /// Allocation group header.
    AgHeader = 8,
    /// Allocation group bitmap.
    AgBitmap = 9,
    /// Inode.
    Inode = 10,
    /// Interior node or leaf of an extent tree.
    ExtentNode = 11,
    /// Interior node of a directory tree.
    DirNode = 12,
    /// Leaf of a directory tree.
    DirLeaf = 13,
    /// Extended attributes of one inode.
    Xattr = 14,
    /// The heartbeat of a repair.
    RepairBeat = 15,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u16(n: u16) -> Option<Self> {
        use Kind::*;
        [
            Superblock,
            Beat,
            Paxos,
            Record,
            Mail,
            JournalHeader,
            JournalDescriptor,
            AgHeader,
            AgBitmap,
            Inode,
            ExtentNode,
            DirNode,
            DirLeaf,
            Xattr,
            RepairBeat,
        ]
        .into_iter()
        .find(|k| *k as u16 == n)
    }
}

/// First 64 bytes of each metadata block (little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// 0: CRC-32C (Castagnoli) of the 4,096 bytes with this field zero.
    pub crc: u32,
    /// 4: [`MAGIC`].
    pub magic: u32,
    /// 8: a [`Kind`].
    pub kind: u16,
    /// 10: version of this kind's layout; 1 today.
    pub layout: u16,
    /// 12: slot of the host that wrote the block.
    pub writer: u16,
    /// 14: zero.
    pub flags: u16,
    /// 16: the volume this block belongs to.
    pub volume: VolumeId,
    /// 32: the block's own address.
    pub block: u64,
    /// 40: inode number, group index or slot that the block belongs to.
    pub owner: u64,
    /// 48: grows with every change of the block (journal rules R2, R5).
    pub version: u64,
    /// 56: epoch in which it was written.
    pub epoch: u64,
}
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<Block>() == BLOCK_BYTES);

/// What [`seal`] puts into the header besides the checksum.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// What the block is.
    pub kind: Kind,
    /// The volume.
    pub volume: VolumeId,
    /// Where the block will be written.
    pub block: BlockNo,
    /// Its owner (inode, group or slot).
    pub owner: u64,
    /// Its version.
    pub version: u64,
    /// The writer's slot.
    pub writer: Slot,
    /// The writer's epoch.
    pub epoch: Epoch,
}

/// What [`open`] demands.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The kind.
    pub kind: Kind,
    /// The volume.
    pub volume: VolumeId,
    /// The address the block was read from.
    pub block: BlockNo,
    /// The owner, where the caller knows it.
    pub owner: Option<u64>,
}

/// Why a block was not accepted. `code` in the text leads to `docs/checks.md`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The checksum does not match the bytes.
    #[error("block {block}: checksum is {found:#010x}, computed {computed:#010x} [B01]")]
    Checksum {
        /// Address.
        block: BlockNo,
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Not a Luna block at all.
    #[error("block {block}: not a Luna metadata block (magic {found:#010x}) [B02]")]
    Magic {
        /// Address.
        block: BlockNo,
        /// In the header.
        found: u32,
    },
    /// Another kind of block.
    #[error("block {block}: expected kind {expected:?}, found kind number {found} [B03]")]
    Kind {
        /// Address.
        block: BlockNo,
        /// Demanded.
        expected: Kind,
        /// In the header.
        found: u16,
    },
    /// A block of another volume.
    #[error("block {block}: belongs to another volume [B04]")]
    Volume {
        /// Address.
        block: BlockNo,
    },
    /// A misdirected block.
    #[error("block {block}: says it is block {found} [B05]")]
    Address {
        /// Where it was read.
        block: BlockNo,
        /// Where it says it lives.
        found: BlockNo,
    },
    /// A block of another owner.
    #[error("block {block}: expected owner {expected}, found {found} [B06]")]
    Owner {
        /// Address.
        block: BlockNo,
        /// Demanded.
        expected: u64,
        /// In the header.
        found: u64,
    },
    /// A layout version of the future.
    #[error("block {block}: {what} has version {found}, this program knows up to {known}: use a newer luna [B07]")]
    Future {
        /// Address.
        block: BlockNo,
        /// Which thing.
        what: &'static str,
        /// In the block.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// A field inside the body is out of bounds.
    #[error("block {block}: {what} is {found}, out of bounds [B08]")]
    Field {
        /// Address.
        block: BlockNo,
        /// Which field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
}

/// CRC-32C of a block with its crc field taken as zero.
fn checksum(b: &Block) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[0; 4]), &b.0[4..])
}

/// Fills the header from `s` and computes the checksum. Call it last, after the body is complete.
pub fn seal(b: &mut Block, s: &Stamp) {
    let mut h = Header {
        crc: 0,
        magic: MAGIC,
        kind: s.kind as u16,
        layout: 1,
        writer: s.writer,
        flags: 0,
        volume: s.volume,
        block: s.block,
        owner: s.owner,
        version: s.version,
        epoch: s.epoch,
    };
    b.0[..HEADER_BYTES].copy_from_slice(h.as_bytes());
    h.crc = checksum(b);
    b.0[..HEADER_BYTES].copy_from_slice(h.as_bytes());
}

/// Computes the checksum again over a header that was changed by hand. For what damages blocks on purpose; everybody else calls [`seal`].
pub fn reseal(b: &mut Block) {
    let crc = checksum(b);
    b.0[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Identifies a block alone: whole, of this volume, at this address; any kind and owner. For fsck and replay.
pub fn peek(b: &Block, volume: &VolumeId, block: BlockNo) -> Result<Header, CheckError> {
    let h = b.header();
    if h.magic != MAGIC {
        return Err(CheckError::Magic { block, found: h.magic });
    }
    let computed = checksum(b);
    if h.crc != computed {
        return Err(CheckError::Checksum { block, found: h.crc, computed });
    }
    if h.volume != *volume {
        return Err(CheckError::Volume { block });
    }
    if h.block != block {
        return Err(CheckError::Address { block, found: h.block });
    }
    if h.version > COUNT_MAX {
        return Err(CheckError::Field { block, what: "version", found: h.version });
    }
    Ok(h)
}

/// Checks a block against what the caller expects; the header comes back when all of it holds.
pub fn open(b: &Block, e: &Expect) -> Result<Header, CheckError> {
    let h = peek(b, &e.volume, e.block)?;
    if h.kind != e.kind as u16 {
        return Err(CheckError::Kind { block: e.block, expected: e.kind, found: h.kind });
    }
    if h.layout != 1 {
        return Err(CheckError::Future { block: e.block, what: "block layout", found: u64::from(h.layout), known: 1 });
    }
    match e.owner {
        Some(expected) if expected != h.owner => Err(CheckError::Owner { block: e.block, expected, found: h.owner }),
        _ => Ok(h),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> (Block, Expect) {
        let mut b = Block::zeroed();
        b.0[100] = 7;
        let volume = [9; 16];
        seal(&mut b, &Stamp { kind: Kind::Inode, volume, block: 77, owner: 77, version: 3, writer: 2, epoch: 5 });
        (b, Expect { kind: Kind::Inode, volume, block: 77, owner: Some(77) })
    }

    #[test]
    fn a_sealed_block_opens() {
        let (b, e) = sealed();
        let h = open(&b, &e).expect("opens");
        assert_eq!((h.version, h.writer, h.epoch, h.block), (3, 2, 5, 77));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (b, e) = sealed();
        for bit in (0..BLOCK_BYTES * 8).step_by(37) {
            let mut c = b.clone();
            c.0[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&c, &e).is_err(), "bit {bit}");
        }
    }

    /// One more than such a version was a smaller one: replay then took every older image for newer.
    #[test]
    fn a_version_that_cannot_be_counted_to_is_refused() {
        let (b, e) = sealed();
        for (version, good) in [(COUNT_MAX, true), (COUNT_MAX + 1, false), (u64::MAX, false)] {
            let mut c = b.clone();
            seal(&mut c, &Stamp { kind: Kind::Inode, volume: e.volume, block: 77, owner: 77, version, writer: 2, epoch: 5 });
            assert_eq!(open(&c, &e).is_ok(), good, "{version}");
        }
    }

    #[test]
    fn foreign_misplaced_and_misowned_blocks_are_named() {
        let (b, e) = sealed();
        assert!(matches!(open(&b, &Expect { volume: [1; 16], ..e }), Err(CheckError::Volume { .. })));
        assert!(matches!(open(&b, &Expect { block: 78, ..e }), Err(CheckError::Address { found: 77, .. })));
        assert!(matches!(open(&b, &Expect { kind: Kind::Beat, ..e }), Err(CheckError::Kind { .. })));
        assert!(matches!(open(&b, &Expect { owner: Some(1), ..e }), Err(CheckError::Owner { found: 77, .. })));
        assert!(matches!(open(&Block::zeroed(), &e), Err(CheckError::Magic { found: 0, .. })));
    }
}
