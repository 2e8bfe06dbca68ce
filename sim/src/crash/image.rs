//! Bytes of a LUN that many crash states share: one base, and over it what differs.
//!
//! A block that nobody ever wrote in a free segment reads as a pattern that names its address: what was left there by somebody else. So
//! a file that shows bytes it never got gives itself away. Each block that differs carries a hash of its content, and an image the
//! exclusive or of them; two images with the same hash are the same image.
//!
//! Invariant: a block that reads as in the base is not in the overlay, so the hash does not depend on the way an image came about.
//! Not here: what a power cut leaves (`states`), who writes (`tape`).

use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo};
use luna_lun::{Disk, Durability, Geometry, LunError, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of the LUN; the smallest that holds a volume.
pub(super) const SIZE: u64 = 64 << 20;
/// What a sector is.
pub(super) const SECTOR: usize = 512;

/// The first word of stale bytes.
const STALE: u64 = u64::from_le_bytes(*b"!STALE!\n");
/// The first word of what a discarded block reads as.
const TRIMMED: u64 = u64::from_le_bytes(*b"!TRIM!!\n");

/// The content of one block, and its hash at its address.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) bytes: Arc<Block>,
    hash: u64,
}

impl Cell {
    pub(super) fn new(block: BlockNo, bytes: Arc<Block>) -> Self {
        let mut hash = 0x9e37_79b9_7f4a_7c15 ^ block.wrapping_mul(0xff51_afd7_ed55_8ccd);
        for w in bytes.0.chunks_exact(8) {
            let w = w.try_into().map_or(0, u64::from_le_bytes);
            hash = (hash ^ w).wrapping_mul(0x2127_599b_f432_5c37).rotate_left(29);
        }
        Self { bytes, hash: hash ^ (hash >> 32) }
    }

    /// What a discard makes of a block: nothing that anybody could rely on.
    pub(super) fn trimmed(block: BlockNo) -> Self {
        Self::new(block, Arc::new(pattern(TRIMMED, block)))
    }

    /// A block that is partly this and partly that: the sectors that `new` says.
    pub(super) fn mixed(block: BlockNo, old: &Self, with: &Self, new: impl Fn(usize) -> bool) -> Self {
        let mut bytes = Block::clone(&old.bytes);
        for n in (0..BLOCK_BYTES / SECTOR).filter(|n| new(*n)) {
            let s = n * SECTOR..(n + 1) * SECTOR;
            bytes.0[s.clone()].copy_from_slice(&with.bytes.0[s]);
        }
        Self::new(block, Arc::new(bytes))
    }
}

fn pattern(word: u64, block: BlockNo) -> Block {
    let mut b = Block::zeroed();
    for (n, w) in b.0.chunks_exact_mut(8).enumerate() {
        w.copy_from_slice(&(if n % 2 == 0 { word } else { block }).to_le_bytes());
    }
    b
}

/// Whether these bytes were never written by a program.
pub(super) fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let has = |word: u64| bytes.chunks_exact(8).any(|w| w == word.to_le_bytes());
    if has(STALE) {
        Some("stale bytes of free space")
    } else if has(TRIMMED) {
        Some("bytes of a discarded block")
    } else {
        None
    }
}

/// What all images of a run have in common.
pub(super) struct Base {
    blocks: BTreeMap<BlockNo, Cell>,
    /// Runs of blocks that read as the pattern.
    stale: Vec<Range<BlockNo>>,
}

impl Base {
    fn cell(&self, block: BlockNo) -> Cell {
        match self.blocks.get(&block) {
            Some(c) => c.clone(),
            None if self.is_stale(block) => Cell::new(block, Arc::new(pattern(STALE, block))),
            None => Cell::new(block, Arc::new(Block::zeroed())),
        }
    }

    fn is_stale(&self, block: BlockNo) -> bool {
        self.stale.iter().any(|r| r.contains(&block))
    }

    fn read(&self, block: BlockNo, out: &mut [u8]) {
        match self.blocks.get(&block) {
            Some(c) => out.copy_from_slice(&c.bytes.0),
            None if self.is_stale(block) => out.copy_from_slice(&pattern(STALE, block).0),
            None => out.fill(0),
        }
    }
}

/// One content of the LUN.
#[derive(Clone)]
pub(super) struct Image {
    base: Arc<Base>,
    over: BTreeMap<BlockNo, Cell>,
    hash: u64,
}

impl Image {
    /// A LUN of zeroes.
    pub(super) fn empty() -> Self {
        Self { base: Arc::new(Base { blocks: BTreeMap::new(), stale: Vec::new() }), over: BTreeMap::new(), hash: 0 }
    }

    /// The same bytes as a new base, with other people's bytes in these free blocks.
    pub(super) fn settle(self, stale: Vec<Range<BlockNo>>) -> Self {
        let mut blocks = self.base.blocks.clone();
        blocks.extend(self.over);
        let stale = if stale.is_empty() { self.base.stale.clone() } else { stale };
        Self { base: Arc::new(Base { blocks, stale }), over: BTreeMap::new(), hash: 0 }
    }

    /// Which image this is.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The same without the blocks that `but` names.
    pub(super) fn hash_without(&self, but: impl Fn(BlockNo) -> bool) -> u64 {
        self.over.iter().filter(|(b, _)| !but(**b)).fold(0, |h, (_, c)| h ^ c.hash)
    }

    pub(super) fn cell(&self, block: BlockNo) -> Cell {
        self.over.get(&block).cloned().unwrap_or_else(|| self.base.cell(block))
    }

    pub(super) fn put(&mut self, block: BlockNo, c: Cell) {
        if let Some(old) = self.over.remove(&block) {
            self.hash ^= old.hash;
        }
        let same = match self.base.blocks.get(&block) {
            Some(b) => b.hash == c.hash,
            None => self.base.cell(block).hash == c.hash,
        };
        if !same {
            self.hash ^= c.hash;
            self.over.insert(block, c);
        }
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        let first = offset / BLOCK_U64;
        for (n, part) in buf.chunks_mut(BLOCK_BYTES).enumerate() {
            let block = first + n as u64;
            match self.over.get(&block) {
                Some(c) => part.copy_from_slice(&c.bytes.0[..part.len()]),
                None => self.base.read(block, part),
            }
        }
    }
}

/// An image as a disk: every write is there at once, and flushes mean nothing.
pub(super) struct ImageDisk(pub(super) Mutex<Image>);

impl ImageDisk {
    pub(super) fn new(image: Image) -> Arc<Self> {
        Arc::new(Self(Mutex::new(image)))
    }
}

/// The blocks of a write.
pub(super) fn cells(buf: &[u8], offset: u64) -> impl Iterator<Item = (BlockNo, Cell)> + '_ {
    buf.chunks_exact(BLOCK_BYTES).enumerate().map(move |(n, part)| {
        let block = offset / BLOCK_U64 + n as u64;
        let mut b = Block::zeroed();
        b.0.copy_from_slice(part);
        (block, Cell::new(block, Arc::new(b)))
    })
}

/// A request that lies outside.
pub(super) fn outside(offset: u64, len: u64) -> Option<LunError> {
    (offset + len > SIZE || !(offset | len).is_multiple_of(BLOCK_U64))
        .then(|| LunError::Usage(format!("{len} bytes at {offset} lie outside")))
}

impl Disk for ImageDisk {
    fn geometry(&self) -> Geometry {
        Geometry::able(SIZE)
    }

    fn describe(&self) -> String {
        "crash image".into()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        outside(offset, buf.len() as u64).map_or(Ok(()), Err)?;
        self.0.lock().read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _: Durability) -> Result<()> {
        outside(offset, buf.len() as u64).map_or(Ok(()), Err)?;
        let mut image = self.0.lock();
        cells(buf, offset).for_each(|(b, c)| image.put(b, c));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut image = self.0.lock();
        (offset.div_ceil(BLOCK_U64)..(offset + len) / BLOCK_U64).for_each(|b| image.put(b, Cell::trimmed(b)));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let (mut image, zero) = (self.0.lock(), Arc::new(Block::zeroed()));
        (offset.div_ceil(BLOCK_U64)..(offset + len) / BLOCK_U64).for_each(|b| image.put(b, Cell::new(b, Arc::clone(&zero))));
        Ok(())
    }
}
