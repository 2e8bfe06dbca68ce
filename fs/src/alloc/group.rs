//! One allocation group inside a transaction: its header, its bitmaps, and the only two changes they know, take and give.
//!
//! Invariants: `free` counts the clear bits, `free_meta` those inside metadata segments; both are exact in every
//! transaction. A bit is set only when it was clear and cleared only when it was set; anything else is damage on the LUN and
//! is reported, not repaired. Segment types change only as Free -> Data, Free -> Meta, Data -> Free (the last when the
//! segment becomes empty). Not here: which blocks to take (`search`), which group (`super`).

use crate::error::{Fetch, FsError, Step, Stop};
use crate::meta::Meta;
use crate::names;
use crate::tx::Tx;
use luna_dlm::Mode;
use luna_format::ag::{self, AG_BITMAP_UNINIT, AgHeader, BITS_PER_BITMAP, SEGMENT_BLOCKS, SEGMENTS_AT, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, CheckError, HEADER_BYTES, Kind};

/// 64-bit words of a bitmap block.
pub(super) const WORDS: usize = (BITS_PER_BITMAP / 64) as usize;
/// The words of a bitmap block.
pub(super) type Words = [u64; WORDS];

/// A group whose lock this operation has; a copy of its header as of now. Addresses inside are relative to its start.
pub(super) struct Group {
    /// Index.
    pub(super) ag: u64,
    /// First block.
    pub(super) start: BlockNo,
    /// The header's fields.
    pub(super) h: AgHeader,
}

/// How the header of a group is read.
pub(super) fn header_fetch(sb: &Superblock, ag: u64) -> Fetch {
    Fetch { block: sb.ag_region(ag).0, kind: Kind::AgHeader, owner: ag, lock: names::group(ag) }
}

/// The error for a block of a group that contradicts itself.
pub(super) fn corrupt(block: BlockNo, what: &'static str, found: u64) -> Stop {
    FsError::Corrupt(CheckError::Field { block, what, found }).into()
}

/// The header of group `ag` in `b`, bounds checked.
pub(super) fn check_header(sb: &Superblock, ag: u64, b: &Block) -> Result<AgHeader, CheckError> {
    let (start, blocks) = sb.ag_region(ag);
    let bad = |what, found| Err(CheckError::Field { block: start, what, found });
    let Some(h) = b.view::<AgHeader>(HEADER_BYTES).copied() else { return bad("group header", 0) };
    let bitmaps = ag::bitmaps_for(blocks);
    if h.index != ag || h.blocks != blocks || u64::from(h.bitmaps) != bitmaps || 1 + bitmaps > blocks {
        return bad("shape of a group", h.blocks);
    }
    if h.free > blocks - 1 - bitmaps || h.free_meta > h.free {
        return bad("free blocks of a group", h.free);
    }
    if h.version_floor > luna_format::COUNT_MAX {
        return bad("version floor of a group", h.version_floor);
    }
    Ok(h)
}

/// Whether the header of a group is in the cache: then this host has its lock, and what it says is exact.
pub(super) fn is_cached(meta: &mut Meta, sb: &Superblock, ag: u64) -> bool {
    meta.get(sb.ag_region(ag).0).is_some_and(|c| c.kind == Kind::AgHeader && check_header(sb, ag, &c.image).is_ok())
}

/// The first range of freed, not yet reusable blocks that overlaps `[from, to)`: of earlier transactions and of this one.
pub(super) fn next_busy(tx: &Tx<'_>, from: BlockNo, to: BlockNo) -> Option<(BlockNo, BlockNo)> {
    let before = tx.meta.busy.range(..=from).next_back().map(|(s, b)| (*s, s + b.len)).filter(|(_, end)| *end > from);
    let committed = before.or_else(|| tx.meta.busy.range(from..to).next().map(|(s, b)| (*s, s + b.len)));
    let own = tx.freed.iter().map(|(s, len, _)| (*s, s + len)).filter(|(s, end)| *s < to && *end > from).min();
    committed.into_iter().chain(own).min()
}

/// Bits `[from, to)` of one word, which starts at bit `base`.
fn mask(base: u64, from: u64, to: u64) -> u64 {
    let low = from.saturating_sub(base).min(64) as u32;
    let high = to.saturating_sub(base).min(64) as u32;
    let below = |n: u32| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    below(high) & !below(low)
}

/// Sets or clears bits `[from, to)`; `false` (and no change) when one of them already was.
fn change_bits(words: &mut Words, from: u64, to: u64, set: bool) -> bool {
    let span = (from / 64) as usize..to.div_ceil(64) as usize;
    let fits = span.clone().all(|w| {
        let m = mask(w as u64 * 64, from, to);
        words[w] & m == if set { 0 } else { m }
    });
    if fits {
        for w in span {
            let m = mask(w as u64 * 64, from, to);
            words[w] = if set { words[w] | m } else { words[w] & !m };
        }
    }
    fits
}

impl Group {
    /// The group, under its lock.
    pub(super) fn load(tx: &mut Tx<'_>, ag: u64) -> Step<Self> {
        tx.need(names::group(ag), Mode::Ex)?;
        let sb = tx.sb;
        let f = header_fetch(sb, ag);
        let h = check_header(sb, ag, tx.read(f)?)?;
        Ok(Self { ag, start: f.block, h })
    }

    /// Segments of the group; the last may be short.
    pub(super) fn segments(&self) -> u64 {
        self.h.blocks.div_ceil(SEGMENT_BLOCKS)
    }

    /// First block and first block after of segment `n`.
    pub(super) fn segment_range(&self, n: u64) -> (u64, u64) {
        (n * SEGMENT_BLOCKS, ((n + 1) * SEGMENT_BLOCKS).min(self.h.blocks))
    }

    /// A copy of the header block, for its segment types.
    pub(super) fn types(&self, tx: &mut Tx<'_>) -> Step<Box<Block>> {
        Ok(Box::new(tx.read(header_fetch(tx.sb, self.ag))?.clone()))
    }

    fn bitmap_fetch(&self, n: u64) -> Fetch {
        Fetch { block: self.start + 1 + n, kind: Kind::AgBitmap, owner: self.ag, lock: names::group(self.ag) }
    }

    /// A copy of bitmap block `n`.
    pub(super) fn words(&self, tx: &mut Tx<'_>, n: u64) -> Step<Box<Words>> {
        let f = self.bitmap_fetch(n);
        let words = tx.read(f)?.view::<Words>(HEADER_BYTES).ok_or_else(|| corrupt(f.block, "bitmap", n))?;
        Ok(Box::new(*words))
    }

    /// Makes the bitmaps of a group that never had any.
    pub(super) fn init_bitmaps(&mut self, tx: &mut Tx<'_>) -> Step<()> {
        if self.h.flags & AG_BITMAP_UNINIT == 0 {
            return Ok(());
        }
        let own = 1 + u64::from(self.h.bitmaps);
        let mut used = vec![(0, own), (self.h.blocks, u64::from(self.h.bitmaps) * BITS_PER_BITMAP)];
        if self.ag == 0 {
            let orphans = tx.sb.orphan_ino - self.start;
            used.push((tx.sb.root_ino - self.start, tx.sb.root_ino - self.start + 1));
            used.push((orphans, orphans + u64::from(tx.sb.slots)));
        }
        for n in 0..u64::from(self.h.bitmaps) {
            let first = n * BITS_PER_BITMAP;
            let f = self.bitmap_fetch(n);
            let block = tx.create(f, self.h.version_floor)?;
            let words = block.view_mut::<Words>(HEADER_BYTES).ok_or_else(|| corrupt(f.block, "bitmap", n))?;
            for (from, to) in &used {
                let (from, to) = (from.max(&first) - first, (*to).min(first + BITS_PER_BITMAP).saturating_sub(first));
                if from < to {
                    change_bits(words, from, to, true);
                }
            }
        }
        self.h.flags &= !AG_BITMAP_UNINIT;
        self.save(tx)
    }

    /// Writes the header's fields.
    fn save(&self, tx: &mut Tx<'_>) -> Step<()> {
        assert!(self.h.free_meta <= self.h.free && self.h.free <= self.h.blocks, "counters of group {} went wrong", self.ag);
        let block = tx.change(header_fetch(tx.sb, self.ag))?;
        let h = block.view_mut::<AgHeader>(HEADER_BYTES).ok_or_else(|| corrupt(self.start, "group header", 0))?;
        *h = self.h;
        Ok(())
    }

    /// The type of segment `n`.
    pub(super) fn segment(&self, tx: &mut Tx<'_>, n: u64) -> Step<SegmentType> {
        Ok(ag::segment(&tx.read(header_fetch(tx.sb, self.ag))?.0, n))
    }

    /// Writes the segment types back after they were changed in a copy.
    fn save_types(&self, tx: &mut Tx<'_>, types: &Block) -> Step<()> {
        tx.change(header_fetch(tx.sb, self.ag))?.0[SEGMENTS_AT..].copy_from_slice(&types.0[SEGMENTS_AT..]);
        Ok(())
    }

    fn mark(&mut self, tx: &mut Tx<'_>, rel: u64, len: u64, set: bool) -> Step<()> {
        self.init_bitmaps(tx)?;
        let mut at = rel;
        while at < rel + len {
            let n = at / BITS_PER_BITMAP;
            let end = (rel + len).min((n + 1) * BITS_PER_BITMAP);
            let f = self.bitmap_fetch(n);
            let words = tx.change(f)?.view_mut::<Words>(HEADER_BYTES).ok_or_else(|| corrupt(f.block, "bitmap", n))?;
            let first = n * BITS_PER_BITMAP;
            if !change_bits(words, at - first, end - first, set) {
                let what = if set { "allocation of blocks already in use, first" } else { "double free of blocks, first" };
                return Err(corrupt(f.block, what, self.start + at));
            }
            at = end;
        }
        Ok(())
    }

    /// Takes `[rel, rel + len)` for data; its segments are Free or Data.
    pub(super) fn take_data(&mut self, tx: &mut Tx<'_>, rel: u64, len: u64) -> Step<()> {
        self.mark(tx, rel, len, true)?;
        let mut types = self.types(tx)?;
        for n in rel / SEGMENT_BLOCKS..=(rel + len - 1) / SEGMENT_BLOCKS {
            match ag::segment(&types.0, n) {
                SegmentType::Data => {}
                SegmentType::Free => {
                    ag::set_segment(&mut types.0, n, SegmentType::Data);
                    tx.spend_segment(self.start + n * SEGMENT_BLOCKS);
                }
                SegmentType::Meta => return Err(corrupt(self.start, "metadata segment taken for data", n)),
            }
        }
        self.save_types(tx, &types)?;
        let free = self.h.free.checked_sub(len).filter(|f| *f >= self.h.free_meta);
        self.h.free = free.ok_or_else(|| corrupt(self.start, "free blocks of a group", self.h.free))?;
        self.save(tx)
    }

    /// Gives `[rel, rel + len)` of Data segments back; a segment left empty becomes Free.
    pub(super) fn give_data(&mut self, tx: &mut Tx<'_>, rel: u64, len: u64) -> Step<()> {
        let (first, last) = (rel / SEGMENT_BLOCKS, (rel + len - 1) / SEGMENT_BLOCKS);
        let mut types = self.types(tx)?;
        if let Some(n) = (first..=last).find(|n| ag::segment(&types.0, *n) != SegmentType::Data) {
            return Err(corrupt(self.start, "data freed in a segment that holds none", n));
        }
        self.mark(tx, rel, len, false)?;
        for n in first..=last {
            // whatever lies between the first and the last was freed whole
            if (n != first && n != last) || self.is_empty(tx, n)? {
                ag::set_segment(&mut types.0, n, SegmentType::Free);
            }
        }
        self.save_types(tx, &types)?;
        self.h.free += len;
        self.check_free()?;
        self.save(tx)
    }

    fn check_free(&self) -> Step<()> {
        let most = self.h.blocks - 1 - u64::from(self.h.bitmaps);
        if self.h.free > most { Err(corrupt(self.start, "free blocks of a group", self.h.free)) } else { Ok(()) }
    }

    /// Whether every bit of segment `n` is clear.
    pub(super) fn is_empty(&self, tx: &mut Tx<'_>, n: u64) -> Step<bool> {
        let (from, to) = self.segment_range(n);
        let f = self.bitmap_fetch(from / BITS_PER_BITMAP);
        let first = from / BITS_PER_BITMAP * BITS_PER_BITMAP;
        let words = tx.read(f)?.view::<Words>(HEADER_BYTES).ok_or_else(|| corrupt(f.block, "bitmap", n))?;
        let (from, to) = (from - first, to - first);
        Ok((from / 64..to.div_ceil(64)).all(|w| words[w as usize] & mask(w * 64, from, to) == 0))
    }

    /// Takes one block of a Meta segment.
    pub(super) fn take_meta(&mut self, tx: &mut Tx<'_>, rel: u64) -> Step<()> {
        self.mark(tx, rel, 1, true)?;
        let (free, meta) = (self.h.free.checked_sub(1), self.h.free_meta.checked_sub(1));
        self.h.free = free.ok_or_else(|| corrupt(self.start, "free blocks of a group", 0))?;
        self.h.free_meta = meta.ok_or_else(|| corrupt(self.start, "free metadata blocks of a group", 0))?;
        self.save(tx)
    }

    /// Gives one block of a Meta segment back, last of version `version`.
    pub(super) fn give_meta(&mut self, tx: &mut Tx<'_>, rel: u64, version: u64) -> Step<()> {
        if self.segment(tx, rel / SEGMENT_BLOCKS)? != SegmentType::Meta || rel <= u64::from(self.h.bitmaps) {
            return Err(corrupt(self.start, "metadata freed in a segment that holds none", rel));
        }
        self.mark(tx, rel, 1, false)?;
        self.h.free += 1;
        self.h.free_meta += 1;
        self.h.version_floor = self.h.version_floor.max(version);
        self.check_free()?;
        self.save(tx)
    }

    /// Makes the free, empty, zeroed segment `n` a metadata segment.
    pub(super) fn make_meta(&mut self, tx: &mut Tx<'_>, n: u64) -> Step<()> {
        let (from, to) = self.segment_range(n);
        let mut types = self.types(tx)?;
        ag::set_segment(&mut types.0, n, SegmentType::Meta);
        self.save_types(tx, &types)?;
        tx.spend_segment(self.start + from);
        self.h.free_meta += to - from;
        if self.h.free_meta > self.h.free {
            return Err(corrupt(self.start, "free metadata blocks of a group", self.h.free_meta));
        }
        self.save(tx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_what_they_say() {
        for (from, to) in [(0, 1), (0, 64), (3, 64), (63, 65), (64, 128), (5, 200), (70, 71)] {
            for base in [0, 64, 128, 192] {
                let expected = (0..64).filter(|b| (from..to).contains(&(base + b))).fold(0u64, |m, b| m | 1 << b);
                assert_eq!(mask(base, from, to), expected, "{base} {from}..{to}");
            }
        }
    }

    #[test]
    fn bits_change_all_or_none() {
        let mut w: Words = [0; WORDS];
        assert!(change_bits(&mut w, 10, 300, true));
        let before = w;
        assert!(!change_bits(&mut w, 299, 301, true));
        assert!(!change_bits(&mut w, 299, 301, false));
        assert_eq!(w, before);
        assert!(change_bits(&mut w, 10, 300, false));
        assert_eq!(w, [0; WORDS]);
    }
}
