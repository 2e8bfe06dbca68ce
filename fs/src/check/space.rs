//! Who owns which block: the groups' own account (headers, bitmaps, counters), and the checker's, made by walking.
//!
//! Invariant: a block that is claimed was inside a group and lies in a segment of its type, or a finding says otherwise; it
//! is claimed once, or a finding says otherwise. Counters of a group are judged last: a counter that agrees with what was
//! reached is right, and the bitmap is wrong. Not here: what the owners are.

use super::read::Fetched;
use super::{Check, Code, Place, Result, bits};
use luna_format::ag::{self, AG_BITMAP_UNINIT, AgHeader, BITS_PER_BITMAP, SEGMENT_BLOCKS, SEGMENTS_AT, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_BYTES, Block, BlockNo, HEADER_BYTES, Kind};

/// Group headers, or bitmap blocks, read at once.
const BATCH: usize = 512;
/// Blocks of unknown kind looked at to say what they are.
const LOOK: usize = 256;

/// So many times the volume's blocks are looked at for owners. Each has one; on a volume where files share everything the time would grow
/// with its size times the number of extents.
pub(crate) const ASKED_MOST: u64 = 4;

/// One group.
pub(super) struct Group {
    /// First block.
    pub(super) start: BlockNo,
    /// Blocks.
    pub(super) blocks: u64,
    /// Blocks of the header and the bitmaps.
    own: u64,
    /// What the header counts.
    counted: Option<(u64, u64)>,
    /// Two bits a segment, as in the header; none = unknown.
    types: Vec<u8>,
    /// The bitmap; none = never written (only the own blocks are in use) or, with `known` false, unreadable.
    pub(super) used: Option<Box<[u64]>>,
    /// The bitmap is known.
    pub(super) known: bool,
    reached: Option<Box<[u64]>>,
    inodes: Option<Box<[u64]>>,
}

impl Group {
    fn new(sb: &Superblock, n: u64) -> Self {
        let (start, blocks) = sb.ag_region(n);
        let own = 1 + ag::bitmaps_for(blocks);
        Self { start, blocks, own, counted: None, types: Vec::new(), used: None, known: false, reached: None, inodes: None }
    }

    fn segments(&self) -> u64 {
        self.blocks.div_ceil(SEGMENT_BLOCKS)
    }

    /// The type of the segment that `rel` lies in; `None` when the header was unreadable.
    pub(super) fn segment_of(&self, rel: u64) -> Option<SegmentType> {
        let n = rel / SEGMENT_BLOCKS;
        let b = self.types.get((n / 4) as usize)?;
        Some(match b >> ((n % 4) * 2) & 3 {
            0 => SegmentType::Free,
            1 => SegmentType::Data,
            _ => SegmentType::Meta,
        })
    }

    fn reached_mut(&mut self) -> &mut [u64] {
        let blocks = self.blocks;
        self.reached.get_or_insert_with(|| bits::words(blocks))
    }

    /// The first run from `rel` on that is in use but was not reached.
    pub(super) fn unreached(&self, rel: u64) -> Option<(u64, u64)> {
        let used = self.used.as_deref()?;
        match self.reached.as_deref() {
            Some(reached) => bits::only_in(used, reached, rel.max(self.own), self.blocks),
            None => {
                let from = bits::find(used, rel.max(self.own), self.blocks, true)?;
                Some((from, bits::find(used, from, self.blocks, false).unwrap_or(self.blocks)))
            }
        }
    }
}

/// All groups.
pub(super) struct Space {
    /// By number.
    pub(super) groups: Vec<Group>,
    /// Blocks claimed so far.
    pub(super) claimed: u64,
    /// Blocks that files asked for, each as often as it was.
    asked: u64,
    /// Blocks that the bitmaps say are in use, for progress.
    pub(super) expected: u64,
}

impl Space {
    /// Nothing known yet.
    pub(super) fn new(sb: &Superblock) -> Self {
        Self { groups: (0..sb.ag_count).map(|n| Group::new(sb, n)).collect(), claimed: 0, asked: 0, expected: 0 }
    }

    /// Whether an inode was seen at `block`; from now on it is.
    pub(super) fn seen_inode(&mut self, sb: &Superblock, block: BlockNo) -> bool {
        let Some(g) = sb.ag_of(block).and_then(|n| self.groups.get_mut(n as usize)) else { return true };
        let rel = block - g.start;
        let blocks = g.blocks;
        bits::set(g.inodes.get_or_insert_with(|| bits::words(blocks)), rel, rel + 1).0 != 0
    }
}

/// Reads headers and bitmaps; everything that can be judged without knowing the owners.
pub(super) fn groups(c: &mut Check<'_>) -> Result<()> {
    let count = c.space.groups.len();
    for from in (0..count).step_by(BATCH) {
        c.progress("groups", from as u64, count as u64);
        let numbers = from..count.min(from + BATCH);
        let wanted: Vec<BlockNo> = numbers.clone().map(|n| c.space.groups[n].start).collect();
        let headers = c.reader.many(&wanted)?;
        let mut maps = Vec::new();
        for (n, fetched) in numbers.zip(headers) {
            let mut g = std::mem::replace(&mut c.space.groups[n], Group::new(&c.sb, n as u64));
            if header(c, n as u64, &mut g, &fetched) {
                maps.extend((1..g.own).map(|m| (n, m)));
            }
            let own = g.own;
            bits::set(g.reached_mut(), 0, own);
            c.summary.blocks += g.blocks;
            c.space.groups[n] = g;
        }
        for batch in maps.chunks(BATCH) {
            bitmaps(c, batch)?;
        }
    }
    for n in 0..count {
        judge_bits(c, n);
    }
    Ok(())
}

/// The header of a group; whether its bitmap blocks are to be read.
fn header(c: &mut Check<'_>, n: u64, g: &mut Group, fetched: &Fetched) -> bool {
    let Some((b, _)) = c.open(fetched, Kind::AgHeader, g.start, n, Place::group(n)) else { return false };
    let Some(h) = b.view::<AgHeader>(HEADER_BYTES).copied() else { return false };
    let bitmaps = g.own - 1;
    if h.index != n || h.blocks != g.blocks || u64::from(h.bitmaps) != bitmaps || h.flags & !AG_BITMAP_UNINIT != 0 {
        let text = format!(
            "expected group {n} of {} blocks with {bitmaps} bitmaps, found group {} of {} blocks with {} bitmaps, flags {:#x}",
            g.blocks, h.index, h.blocks, h.bitmaps, h.flags
        );
        c.found(Code::G01, Place::group(n), text);
        if h.flags & !AG_BITMAP_UNINIT != 0 {
            c.incomplete = true;
            return false;
        }
    }
    g.counted = Some((h.free, h.free_meta));
    g.types = b.0[SEGMENTS_AT..SEGMENTS_AT + g.segments().div_ceil(4) as usize].to_vec();
    segment_types(c, n, g);
    if h.flags & AG_BITMAP_UNINIT == 0 {
        g.used = Some(bits::words(bitmaps * BITS_PER_BITMAP));
        g.known = true;
        return true;
    }
    let mut used = bits::words(bitmaps * BITS_PER_BITMAP);
    bits::set(&mut used, 0, g.own);
    bits::set(&mut used, g.blocks, bitmaps * BITS_PER_BITMAP);
    if n == 0 {
        let orphans = c.sb.orphan_ino - g.start;
        bits::set(&mut used, c.sb.root_ino - g.start, c.sb.root_ino - g.start + 1);
        bits::set(&mut used, orphans, orphans + u64::from(c.sb.slots));
    }
    (g.used, g.known) = (Some(used), true);
    false
}

fn segment_types(c: &mut Check<'_>, n: u64, g: &Group) {
    for s in 0..g.segments() {
        if g.types[(s / 4) as usize] >> ((s % 4) * 2) & 3 == 3 {
            c.found(Code::G09, Place::group(n), format!("expected type 0, 1 or 2 of segment {s}, found 3"));
        }
    }
    if g.segment_of(0) != Some(SegmentType::Meta) {
        c.found(Code::G04, Place::group(n), format!("expected segment 0 to be Meta, found {:?}", g.segment_of(0)));
    }
}

fn bitmaps(c: &mut Check<'_>, batch: &[(usize, u64)]) -> Result<()> {
    let wanted: Vec<BlockNo> = batch.iter().map(|(n, m)| c.space.groups[*n].start + m).collect();
    for ((n, m), fetched) in batch.iter().zip(c.reader.many(&wanted)?) {
        let block = c.space.groups[*n].start + m;
        let opened = c.open(&fetched, Kind::AgBitmap, block, *n as u64, Place::group(*n as u64));
        let g = &mut c.space.groups[*n];
        let Some((b, _)) = opened else {
            g.known = false;
            continue;
        };
        let words = b.0[HEADER_BYTES..].chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or([0; 8])));
        let at = ((m - 1) * BITS_PER_BITMAP / 64) as usize;
        if let Some(used) = g.used.as_deref_mut() {
            used[at..].iter_mut().zip(words).for_each(|(to, from)| *to = from);
        }
    }
    Ok(())
}

/// What the bits of a group say without knowing the owners.
fn judge_bits(c: &mut Check<'_>, n: usize) {
    let g = &c.space.groups[n];
    let (Some(used), true) = (g.used.as_deref(), g.known) else { return };
    let (blocks, own, place) = (g.blocks, g.own, Place::group(n as u64));
    let mut out: Vec<(Code, String)> = Vec::new();
    if let Some(rel) = bits::find(used, 0, own, false) {
        out.push((Code::G05, format!("expected the first {own} bits set, found bit {rel} clear")));
    }
    if let Some(rel) = bits::find(used, blocks, (own - 1) * BITS_PER_BITMAP, false) {
        out.push((Code::G06, format!("expected all bits from {blocks} on set, found bit {rel} clear")));
    }
    for s in 0..g.segments() {
        let (from, to) = (s * SEGMENT_BLOCKS, ((s + 1) * SEGMENT_BLOCKS).min(blocks));
        let set = bits::count(used, from, to);
        match g.segment_of(from) {
            Some(SegmentType::Free) if set > 0 => {
                out.push((Code::G07, format!("expected no block of free segment {s} in use, found {set}")));
            }
            Some(SegmentType::Data) if set == 0 => {
                out.push((Code::G08, format!("expected data segment {s} to be free or in use, found it empty")));
            }
            _ => {}
        }
    }
    c.space.expected += bits::count(used, 0, blocks);
    for (code, text) in out {
        c.found(code, place.clone(), text);
    }
}

impl Check<'_> {
    /// Claims `[start, start + len)` for `place`; `false` when one of them already has an owner. The range must lie inside
    /// the groups. Data and metadata must lie in segments of their type, and be marked in use.
    pub(super) fn claim(&mut self, start: BlockNo, len: u64, kind: SegmentType, place: &dyn Fn(&Self) -> Place) -> bool {
        if kind == SegmentType::Data {
            self.space.asked = self.space.asked.saturating_add(len);
        }
        if kind == SegmentType::Data && self.space.asked > self.sb.total_blocks.saturating_mul(ASKED_MOST) {
            let text = format!("{len} blocks from {start} are not looked at: files have {ASKED_MOST} times as many blocks as there are");
            self.found(Code::U01, place(self).at_block(start), text);
            return false;
        }
        let (mut at, mut alone) = (start, true);
        while at < start + len {
            let Some(n) = self.sb.ag_of(at) else { return false };
            let g = &self.space.groups[n as usize];
            let end = (start + len).min(g.start + g.blocks);
            alone &= self.claim_in(n as usize, at, end, kind, place);
            at = end;
        }
        alone
    }

    fn claim_in(&mut self, n: usize, from: BlockNo, to: BlockNo, kind: SegmentType, place: &dyn Fn(&Self) -> Place) -> bool {
        let g = &mut self.space.groups[n];
        let (start, rel_from, rel_to) = (g.start, from - g.start, to - g.start);
        let (twice, first) = bits::set(g.reached_mut(), rel_from, rel_to);
        let g = &self.space.groups[n];
        let free = g.used.as_deref().filter(|_| g.known && twice == 0);
        let clear = free.map_or(0, |used| rel_to - rel_from - bits::count(used, rel_from, rel_to));
        let segments = rel_from / SEGMENT_BLOCKS..=(rel_to - 1) / SEGMENT_BLOCKS;
        let wrong = segments.clone().find_map(|s| g.segment_of(s * SEGMENT_BLOCKS).filter(|t| *t != kind).map(|t| (s, t)));
        self.space.claimed += to - from - twice;
        let len = to - from;
        if let Some(rel) = first {
            let text =
                format!("expected {len} blocks from {from} to have no other owner, found {twice} that have, the first {}", start + rel);
            let place = place(self).at_block(start + rel);
            self.found(Code::U01, place, text);
        }
        if clear > 0 {
            let text = format!("expected {len} blocks from {from} marked in use in group {n}, found {clear} marked free");
            let place = place(self).at_block(from);
            self.found(Code::U02, place, text);
        }
        if let Some((s, t)) = wrong {
            let code = if kind == SegmentType::Meta { Code::U05 } else { Code::U06 };
            let text = format!("expected segment {s} of group {n} to be {kind:?}, found {t:?}");
            let place = place(self).at_block(from);
            self.found(code, place, text);
        }
        twice == 0
    }
}

/// The bitmaps against what was reached, and the counters against both.
pub(super) fn compare(c: &mut Check<'_>) -> Result<()> {
    let (mut unjudged, count) = (0, c.space.groups.len());
    for n in 0..count {
        c.progress("free space", n as u64, count as u64);
        counters(c, n);
        let mut at = 0;
        while let Some((from, to)) = c.space.groups[n].unreached(at).filter(|_| c.space.groups[n].known) {
            at = to;
            if c.incomplete {
                unjudged += to - from;
            } else {
                leaked(c, n, from, to)?;
            }
        }
    }
    if unjudged > 0 {
        let text = format!("{unjudged} blocks in use were not reached; they may belong to what could not be read");
        c.found(Code::U08, Place::default(), text);
    }
    c.summary.reached = c.space.claimed;
    Ok(())
}

fn counters(c: &mut Check<'_>, n: usize) {
    let g = &c.space.groups[n];
    let (Some(counted), Some(used), true) = (g.counted, g.used.as_deref(), g.known) else { return };
    let free = |words: &[u64]| {
        let all = g.blocks - bits::count(words, 0, g.blocks);
        let segment = |s: u64| (s * SEGMENT_BLOCKS, ((s + 1) * SEGMENT_BLOCKS).min(g.blocks));
        let metas = (0..g.segments()).map(segment).filter(|(from, _)| g.segment_of(*from) == Some(SegmentType::Meta));
        (all, metas.map(|(from, to)| to - from - bits::count(words, from, to)).sum::<u64>())
    };
    let by_bits = free(used);
    let by_walk = g.reached.as_deref().filter(|_| !c.incomplete).map(free);
    let right = |pick: fn((u64, u64)) -> u64| pick(counted) == pick(by_bits) || by_walk.is_some_and(|w| pick(w) == pick(counted));
    let (all_right, meta_right) = (right(|f| f.0), right(|f| f.1));
    if !all_right {
        c.found(Code::G02, Place::group(n as u64), format!("expected {} free blocks, found {}", by_bits.0, counted.0));
    }
    if !meta_right {
        c.found(Code::G03, Place::group(n as u64), format!("expected {} free metadata blocks, found {}", by_bits.1, counted.1));
    }
}

/// A run of blocks in use that nobody owns; cut where the segment type changes.
fn leaked(c: &mut Check<'_>, n: usize, from: u64, to: u64) -> Result<()> {
    let mut at = from;
    while at < to {
        let g = &c.space.groups[n];
        let kind = g.segment_of(at);
        let mut end = at;
        while end < to && g.segment_of(end) == kind {
            end = ((end / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS).min(to);
        }
        let (first, last) = (g.start + at, g.start + end);
        match kind {
            Some(SegmentType::Data) => {
                let place = Place { group: Some(n as u64), block: Some(first), ..Place::default() };
                c.found(Code::U03, place, format!("expected an owner of blocks {first} to {}, found none", last - 1));
            }
            Some(SegmentType::Meta) => leaked_meta(c, n, first, last)?,
            // blocks in use in a free segment have their own finding
            _ => {}
        }
        at = end;
    }
    Ok(())
}

fn leaked_meta(c: &mut Check<'_>, n: usize, first: BlockNo, last: BlockNo) -> Result<()> {
    let all: Vec<BlockNo> = (first..last).collect();
    for batch in all.chunks(LOOK) {
        for (block, fetched) in batch.iter().zip(c.reader.many(batch)?) {
            let place = Place { group: Some(n as u64), block: Some(*block), ..Place::default() };
            c.found(Code::U04, place, format!("expected an owner, found none; it holds {}", content(c, *block, &fetched)));
        }
    }
    Ok(())
}

/// What an unowned block seems to hold.
fn content(c: &Check<'_>, block: BlockNo, fetched: &Fetched) -> String {
    let Ok(b): &std::result::Result<Block, _> = fetched else { return "something unreadable".into() };
    match luna_format::peek(b, &c.id, block) {
        Ok(h) => {
            let kind = Kind::from_u16(h.kind).map_or_else(|| format!("kind {}", h.kind), |k| format!("{k:?}"));
            format!("a block of kind {kind} owned by {}", h.owner)
        }
        Err(_) if b.0 == [0; BLOCK_BYTES] => "zeroes".into(),
        Err(_) => "no metadata block".into(),
    }
}
