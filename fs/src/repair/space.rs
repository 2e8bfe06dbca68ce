//! Which blocks are in use, as the walk of a repair finds it, and where new blocks come from.
//!
//! The groups' own account is only a hint here: it says where lost inodes may lie and which blocks a repair takes last. When the walk
//! is over, headers and bitmaps are made from what was reached, so nothing of them needs to be readable.
//!
//! Invariants: a block is claimed by one owner, metadata before data; a new block is none that was reached, nor one that an object
//! under repair still uses (`limbo`), so that until its inode is switched the old content is whole. Not here: what the owners are.

use super::door::{Door, Judged};
use super::{Did, RepairError};
use crate::check::{ASKED_MOST, Code, Place, bits};
use luna_format::ag::{self, AG_BITMAP_UNINIT, AgHeader, BITS_PER_BITMAP, SEGMENT_BLOCKS, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, BlockNo, HEADER_BYTES, Kind};

type Bits = Option<Box<[u64]>>;

/// One group.
struct Group {
    start: BlockNo,
    blocks: u64,
    own: u64,
    /// The header as it is on the LUN, when it can be read.
    header: Option<Box<Block>>,
    /// The bitmap as it is on the LUN, when it can be read; the own blocks alone when it was never written.
    used: Bits,
    /// In use: metadata and data.
    reached: Bits,
    meta: Bits,
    /// An inode was seen there.
    inodes: Bits,
}

fn of(bits: &mut Bits, blocks: u64) -> &mut [u64] {
    bits.get_or_insert_with(|| bits::words(blocks))
}

fn any(b: &Bits, from: u64, to: u64) -> bool {
    b.as_deref().is_some_and(|w| bits::find(w, from, to, true).is_some())
}

impl Group {
    fn segment(&self, s: u64) -> (u64, u64) {
        (s * SEGMENT_BLOCKS, ((s + 1) * SEGMENT_BLOCKS).min(self.blocks))
    }

    fn segments(&self) -> u64 {
        self.blocks.div_ceil(SEGMENT_BLOCKS)
    }

    /// The type that segment `s` has, or must get, for what lies in it.
    fn kind(&self, s: u64) -> SegmentType {
        let (from, to) = self.segment(s);
        if any(&self.meta, from, to) {
            SegmentType::Meta
        } else if any(&self.reached, from, to) {
            SegmentType::Data
        } else if self.header.as_ref().is_some_and(|h| ag::segment(&h.0, s) == SegmentType::Meta) {
            SegmentType::Meta
        } else {
            SegmentType::Free
        }
    }

    /// Whether nobody needs block `rel`; strictly: whether the old bitmap says so too.
    fn is_free(&self, rel: u64, strict: bool) -> bool {
        !any(&self.reached, rel, rel + 1) && (!strict || !any(&self.used, rel, rel + 1))
    }
}

/// All groups.
pub(super) struct Space {
    sb: Superblock,
    groups: Vec<Group>,
    /// Blocks that files asked for, each as often as it was.
    asked: u64,
    /// Blocks of objects that were rebuilt elsewhere: free at the end.
    limbo: Vec<BlockNo>,
    /// Where the search for a free block of a kind goes on: group and segment.
    next: [(usize, u64); 2],
    /// Nothing was found strictly: blocks are taken that only the old bitmaps call used.
    loose: bool,
}

impl Space {
    /// Reads what the groups say.
    pub(super) fn read(door: &mut Door<'_>, sb: &Superblock) -> Result<Self, RepairError> {
        let mut groups = Vec::new();
        for n in 0..sb.ag_count {
            groups.push(read_group(door, sb, n)?);
        }
        Ok(Self { sb: *sb, groups, asked: 0, limbo: Vec::new(), next: [(0, 0); 2], loose: false })
    }

    fn at(&mut self, block: BlockNo) -> Option<(&mut Group, u64)> {
        let n = self.sb.ag_of(block)?;
        let g = self.groups.get_mut(n as usize)?;
        let rel = block - g.start;
        Some((g, rel))
    }

    /// Whether a metadata block can be at `block`: inside a group, and none of the group's own.
    pub(super) fn can_be_meta(&self, block: BlockNo) -> bool {
        self.sb.ag_of(block).and_then(|n| self.groups.get(n as usize)).is_some_and(|g| block - g.start >= g.own)
    }

    /// Claims a metadata block; `false` when it has an owner.
    pub(super) fn claim_meta(&mut self, block: BlockNo) -> bool {
        let Some((g, rel)) = self.at(block) else { return false };
        let blocks = g.blocks;
        bits::set(of(&mut g.meta, blocks), rel, rel + 1);
        bits::set(of(&mut g.reached, blocks), rel, rel + 1).0 == 0
    }

    /// Marks an inode as seen; `false` when it was seen before.
    pub(super) fn see_inode(&mut self, block: BlockNo) -> bool {
        let Some((g, rel)) = self.at(block) else { return false };
        let blocks = g.blocks;
        bits::set(of(&mut g.inodes, blocks), rel, rel + 1).0 == 0
    }

    /// Whether an inode was seen.
    pub(super) fn saw_inode(&mut self, block: BlockNo) -> bool {
        self.at(block).is_some_and(|(g, rel)| any(&g.inodes, rel, rel + 1))
    }

    /// Claims a run of data: the parts of it that are alike, first block, length and what it is. `None` when files have asked for so
    /// many more blocks than there are that nothing is looked at any more.
    pub(super) fn claim_run(&mut self, block: BlockNo, len: u64) -> Option<Vec<(BlockNo, u64, Claim)>> {
        self.asked = self.asked.saturating_add(len);
        if self.asked > self.sb.total_blocks.saturating_mul(ASKED_MOST) {
            return None;
        }
        let (mut runs, mut done): (Vec<(BlockNo, u64, Claim)>, u64) = (Vec::new(), 0);
        while done < len {
            let (n, claim) = self.claim_data(block + done, len - done);
            match runs.last_mut() {
                Some(last) if last.2 == claim => last.1 += n,
                _ => runs.push((block + done, n, claim)),
            }
            done += n;
        }
        Some(runs)
    }

    /// Looks at a run of data from `block` on, `len` at most: how long the first part of it is that is all alike, and what it is.
    fn claim_data(&mut self, block: BlockNo, len: u64) -> (u64, Claim) {
        let Some((g, rel)) = self.at(block) else { return (1, Claim::Outside) };
        let to = (rel + len).min(g.blocks).min((rel / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS);
        let (from, end) = g.segment(rel / SEGMENT_BLOCKS);
        let (blocks, mixed) = (g.blocks, any(&g.meta, from, end));
        let first = |b: &Bits, value: bool| match b.as_deref() {
            Some(w) => bits::find(w, rel, to, value),
            None => (!value).then_some(rel),
        };
        if any(&g.reached, rel, rel + 1) {
            let meta = any(&g.meta, rel, rel + 1);
            let mut stop = first(&g.reached, false).unwrap_or(to);
            stop = if meta { first(&g.meta, false) } else { first(&g.meta, true) }.unwrap_or(to).min(stop);
            return (stop - rel, if meta { Claim::Meta } else { Claim::Taken });
        }
        let stop = first(&g.reached, true).unwrap_or(to);
        bits::set(of(&mut g.reached, blocks), rel, stop);
        if mixed {
            // until it is copied nobody takes it
            self.limbo.extend(block..block + (stop - rel));
            return (stop - rel, Claim::Mixed);
        }
        (stop - rel, Claim::Mine)
    }

    /// A block whose object moves elsewhere.
    pub(super) fn leave(&mut self, block: BlockNo) {
        self.limbo.push(block);
    }

    /// Runs of blocks where an inode may lie that nobody reached.
    pub(super) fn unreached(&self, n: usize, at: u64) -> Option<(BlockNo, u64)> {
        let g = self.groups.get(n)?;
        let none = bits::words(g.blocks);
        let reached = g.reached.as_deref().unwrap_or(&none);
        let mut all = bits::words(g.blocks);
        let used = match g.used.as_deref() {
            Some(used) => used,
            None => {
                bits::set(&mut all, 0, g.blocks);
                &all
            }
        };
        let mut at = at.max(g.own);
        while let Some((from, to)) = bits::only_in(used, reached, at, g.blocks) {
            let s = from / SEGMENT_BLOCKS;
            let to = to.min((s + 1) * SEGMENT_BLOCKS);
            let meta = g.header.as_ref().is_none_or(|h| ag::segment(&h.0, s) == SegmentType::Meta || any(&g.meta, s * 256, to));
            if meta {
                return Some((g.start + from, to - from));
            }
            at = to;
        }
        None
    }

    /// How many groups there are.
    pub(super) fn count(&self) -> usize {
        self.groups.len()
    }

    /// First block of group `n`.
    pub(super) fn start(&self, n: usize) -> BlockNo {
        self.groups.get(n).map_or(0, |g| g.start)
    }

    /// A new metadata block.
    pub(super) fn new_meta(&mut self, door: &Door<'_>) -> Result<BlockNo, RepairError> {
        let (block, _) = self.new_run(door, SegmentType::Meta, 1)?.ok_or(RepairError::NoSpace)?;
        self.claim_meta(block);
        Ok(block)
    }

    /// Up to `len` new data blocks in a row; `None` when the volume is full.
    pub(super) fn new_data(&mut self, door: &Door<'_>, len: u64) -> Result<Option<(BlockNo, u64)>, RepairError> {
        let Some((block, len)) = self.new_run(door, SegmentType::Data, len)? else { return Ok(None) };
        if let Some((g, rel)) = self.at(block) {
            let blocks = g.blocks;
            bits::set(of(&mut g.reached, blocks), rel, rel + len);
        }
        Ok(Some((block, len)))
    }

    fn new_run(&mut self, door: &Door<'_>, kind: SegmentType, len: u64) -> Result<Option<(BlockNo, u64)>, RepairError> {
        let which = usize::from(kind == SegmentType::Meta);
        loop {
            let strict = !self.loose;
            let (mut n, mut s) = self.next[which];
            while let Some(g) = self.groups.get(n) {
                while s < g.segments() {
                    let (from, to) = g.segment(s);
                    let now = g.kind(s);
                    if (now == kind || now == SegmentType::Free)
                        && let Some(rel) = (from.max(g.own)..to).find(|r| g.is_free(*r, strict))
                    {
                        let run = (rel..to).take_while(|r| *r < rel + len && g.is_free(*r, strict)).count() as u64;
                        self.next[which] = (n, s);
                        let block = g.start + rel;
                        if now == SegmentType::Free && kind == SegmentType::Meta {
                            // rule R7: a segment is all zero before it becomes metadata
                            door.disk().write_zeroes((g.start + from) * BLOCK_U64, (to - from) * BLOCK_U64)?;
                        }
                        return Ok(Some((block, run)));
                    }
                    s += 1;
                }
                (n, s) = (n + 1, 0);
            }
            if self.loose {
                self.next[which] = (self.groups.len(), 0);
                return Ok(None);
            }
            (self.loose, self.next) = (true, [(0, 0); 2]);
        }
    }

    /// Makes headers and bitmaps say what was reached; writes those that say something else. Answers what was wrong.
    pub(super) fn write(&mut self, door: &mut Door<'_>) -> Result<Vec<Did>, RepairError> {
        for block in std::mem::take(&mut self.limbo) {
            if let Some((g, rel)) = self.at(block) {
                let blocks = g.blocks;
                bits::clear(of(&mut g.reached, blocks), rel, rel + 1);
                bits::clear(of(&mut g.meta, blocks), rel, rel + 1);
            }
        }
        let mut done = Vec::new();
        for n in 0..self.groups.len() {
            write_group(door, &self.groups[n], n as u64, &mut done)?;
        }
        Ok(done)
    }
}

/// What a run of blocks is to somebody who takes it for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is now.
    Mine,
    /// It is other data.
    Taken,
    /// It is metadata.
    Meta,
    /// It is free, but among metadata.
    Mixed,
    /// It is outside of the groups.
    Outside,
}

fn read_group(door: &mut Door<'_>, sb: &Superblock, n: u64) -> Result<Group, RepairError> {
    let (start, blocks) = sb.ag_region(n);
    let own = 1 + ag::bitmaps_for(blocks);
    let mut g = Group { start, blocks, own, header: None, used: None, reached: None, meta: None, inodes: None };
    bits::set(of(&mut g.meta, blocks), 0, own);
    bits::set(of(&mut g.reached, blocks), 0, own);
    let b = door.one(start)?;
    let sound = matches!(door.judge(&b, Kind::AgHeader, start, n), Judged::Sound);
    let h = b.view::<AgHeader>(HEADER_BYTES).copied().filter(|h| sound && h.flags & !AG_BITMAP_UNINIT == 0);
    if let Some(h) = h {
        door.seen(h.version_floor);
        g.header = Some(Box::new(b));
    }
    if h.is_some_and(|h| h.flags & AG_BITMAP_UNINIT != 0) {
        bits::set(of(&mut g.used, blocks), 0, own);
        return Ok(g);
    }
    let maps: Vec<BlockNo> = (1..own).map(|m| start + m).collect();
    let mut used = bits::words((own - 1) * BITS_PER_BITMAP);
    for (m, b) in door.many(&maps)?.iter().enumerate() {
        if !matches!(door.judge(b, Kind::AgBitmap, start + 1 + m as u64, n), Judged::Sound) {
            return Ok(g);
        }
        let at = m * (BITS_PER_BITMAP / 64) as usize;
        let words = b.0[HEADER_BYTES..].chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or([0; 8])));
        used[at..].iter_mut().zip(words).for_each(|(to, from)| *to = from);
    }
    g.used = Some(used);
    Ok(g)
}

/// What the header of a group must be.
fn header_of(g: &Group, n: u64, door: &Door<'_>) -> Block {
    let old = g.header.as_ref().and_then(|b| b.view::<AgHeader>(HEADER_BYTES).copied());
    let mut b = Block::zeroed();
    let mut free_meta = 0;
    let count = |from, to| g.reached.as_deref().map_or(0, |w| bits::count(w, from, to));
    for s in 0..g.segments() {
        let (from, to) = g.segment(s);
        let kind = g.kind(s);
        ag::set_segment(&mut b.0, s, kind);
        if kind == SegmentType::Meta {
            free_meta += to - from - count(from, to);
        }
    }
    let untouched = old.is_some_and(|h| h.flags & AG_BITMAP_UNINIT != 0) && count(0, g.blocks) == g.own && n != 0;
    let h = AgHeader {
        index: n,
        blocks: g.blocks,
        free: g.blocks - count(0, g.blocks),
        version_floor: old.map_or(0, |h| h.version_floor),
        bitmaps: (g.own - 1) as u32,
        flags: if untouched { AG_BITMAP_UNINIT } else { 0 },
        free_meta,
        reserved: [0; 2],
    };
    if let Some(to) = b.view_mut::<AgHeader>(HEADER_BYTES) {
        *to = h;
    }
    if g.header.as_ref().is_none_or(|old| old.0[HEADER_BYTES..] != b.0[HEADER_BYTES..])
        && let Some(to) = b.view_mut::<AgHeader>(HEADER_BYTES)
    {
        // whatever is given out here from now on is newer than anything that ever was
        to.version_floor = to.version_floor.max(door.version());
    }
    b
}

fn write_group(door: &mut Door<'_>, g: &Group, n: u64, done: &mut Vec<Did>) -> Result<(), RepairError> {
    let header = header_of(g, n, door);
    let initialised = header.view::<AgHeader>(HEADER_BYTES).is_some_and(|h| h.flags & AG_BITMAP_UNINIT == 0);
    let was_uninit =
        g.header.as_ref().and_then(|b| b.view::<AgHeader>(HEADER_BYTES).copied()).is_some_and(|h| h.flags & AG_BITMAP_UNINIT != 0);
    say_bits(g, n, was_uninit, done);
    say_header(g, n, &header, done);
    if initialised {
        for m in 1..g.own {
            let mut b = Block::zeroed();
            let mut changed = was_uninit || g.used.is_none();
            for (i, w) in b.0[HEADER_BYTES..].chunks_exact_mut(8).enumerate() {
                let at = (m - 1) * BITS_PER_BITMAP + i as u64 * 64;
                let word = word(g, at);
                let old = g.used.as_deref().and_then(|u| u.get((at / 64) as usize));
                changed |= old != Some(&word);
                w.copy_from_slice(&word.to_le_bytes());
            }
            if changed {
                door.put(g.start + m, Kind::AgBitmap, n, b)?;
            }
        }
    }
    if g.header.as_ref().is_none_or(|old| old.0[HEADER_BYTES..] != header.0[HEADER_BYTES..]) {
        door.flush()?;
        door.put(g.start, Kind::AgHeader, n, header)?;
    }
    Ok(())
}

/// 64 bits of the new bitmap; bits behind the end of the group are set.
fn word(g: &Group, at: u64) -> u64 {
    let reached = g.reached.as_deref().and_then(|w| w.get((at / 64) as usize)).copied().unwrap_or(0);
    match g.blocks.checked_sub(at) {
        None | Some(0) => u64::MAX,
        Some(n) if n >= 64 => reached,
        Some(n) => reached | (u64::MAX << n),
    }
}

/// What the bits of a group said wrongly.
fn say_bits(g: &Group, n: u64, was_uninit: bool, done: &mut Vec<Did>) {
    let place = Place::group(n);
    let Some(used) = g.used.as_deref() else {
        return done.push(Did::new(Code::B01, place, "bitmap made anew from what is in use"));
    };
    let none = bits::words(g.blocks);
    let reached = g.reached.as_deref().unwrap_or(&none);
    if bits::find(used, 0, g.own, false).is_some() {
        done.push(Did::new(Code::G05, place.clone(), "the group's own blocks are marked in use"));
    }
    if !was_uninit && bits::find(used, g.blocks, (g.own - 1) * BITS_PER_BITMAP, false).is_some() {
        done.push(Did::new(Code::G06, place.clone(), "the bits behind the end are set"));
    }
    let runs = |a: &[u64], b: &[u64]| {
        let (mut at, mut all) = (g.own, Vec::new());
        while let Some((from, to)) = bits::only_in(a, b, at, g.blocks) {
            all.push((from, to));
            at = to;
        }
        all
    };
    let missing: u64 = runs(reached, used).iter().map(|(a, b)| b - a).sum();
    if missing > 0 && !was_uninit {
        done.push(Did::new(Code::U02, place.clone(), format!("{missing} blocks that have an owner are marked in use")));
    }
    let mut leaks = [0u64; 3];
    for (from, to) in runs(used, reached) {
        for rel in from..to {
            let old = g.header.as_ref().map(|h| ag::segment(&h.0, rel / SEGMENT_BLOCKS));
            leaks[old.map_or(1, |t| t as usize)] += 1;
        }
    }
    for (n, code, what) in [(leaks[0], Code::G07, "blocks"), (leaks[1], Code::U03, "data blocks"), (leaks[2], Code::U04, "metadata blocks")]
    {
        if n > 0 {
            done.push(Did::new(code, place.clone(), format!("{n} {what} without an owner are free")));
        }
    }
}

/// What the header of a group said wrongly.
fn say_header(g: &Group, n: u64, new: &Block, done: &mut Vec<Did>) {
    let place = Place::group(n);
    let view = |b: &Block| b.view::<AgHeader>(HEADER_BYTES).copied();
    let (Some(old), Some(now)) = (g.header.as_deref(), view(new)) else {
        return done.push(Did::new(Code::B01, place, "group header made anew from what is in use"));
    };
    let Some(h) = view(old) else { return };
    if (h.index, h.blocks, h.bitmaps) != (now.index, now.blocks, now.bitmaps) {
        done.push(Did::new(Code::G01, place.clone(), "shape set to what the superblock says"));
    }
    if ag::segment(&old.0, 0) != SegmentType::Meta {
        done.push(Did::new(Code::G04, place.clone(), "segment 0 is metadata"));
    }
    for s in 0..g.segments() {
        let (from, to) = g.segment(s);
        let raw = old.0[ag::SEGMENTS_AT + (s / 4) as usize] >> ((s % 4) * 2) & 3;
        let (was, is) = (ag::segment(&old.0, s), ag::segment(&new.0, s));
        let code = match (was, is) {
            _ if raw == 3 => Code::G09,
            _ if was == is || s == 0 => continue,
            (SegmentType::Free, _) if any(&g.used, from, to) => Code::G07,
            (SegmentType::Free, _) => continue,
            (SegmentType::Data, SegmentType::Free) => Code::G08,
            (_, SegmentType::Data) => Code::U06,
            _ => Code::U05,
        };
        done.push(Did::new(code, place.clone(), format!("segment {s} is {is:?}, not {was:?}")));
    }
    if h.free != now.free {
        done.push(Did::new(Code::G02, place.clone(), format!("{} free blocks, not {}", now.free, h.free)));
    }
    if h.free_meta != now.free_meta {
        done.push(Did::new(Code::G03, place, format!("{} free metadata blocks, not {}", now.free_meta, h.free_meta)));
    }
}
