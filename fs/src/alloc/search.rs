//! Where in a group: the longest free run for data, one free block for metadata, a free segment to make metadata of.
//!
//! Invariants: nothing found here is in use, inside a segment of the other type, or freed so recently that its freeing
//! transaction may not be durable (R9). Words are scanned, not bits. Metadata grows from the last segment down, data from
//! the first up, so that long runs stay long. Not here: taking what was found.

use super::group::{Group, Words, corrupt, next_busy};
use crate::error::{Step, Stop};
use crate::tx::Tx;
use luna_format::Block;
use luna_format::ag::{self, BITS_PER_BITMAP, SEGMENT_BLOCKS, SegmentType};

/// A group keeps one free segment from data while it has fewer free metadata blocks than this, so that a full volume can
/// still split the nodes it needs to split in order to become emptier.
const META_RESERVE: u64 = 64;

/// The longest run so far of a scan that goes upward.
struct Finder {
    want: u64,
    run: Option<(u64, u64)>,
    best: (u64, u64),
}

impl Finder {
    /// Adds free blocks; true when the search is over.
    fn extend(&mut self, tx: &Tx<'_>, start: u64, at: u64, n: u64) -> bool {
        let over = match self.run {
            Some((_, end)) if end == at => false,
            _ => self.close(tx, start),
        };
        let from = self.run.map_or(at, |(s, _)| s);
        self.run = Some((from, at + n));
        over || (at + n - from >= self.want && self.offer(tx, start))
    }

    /// The run ends here.
    fn close(&mut self, tx: &Tx<'_>, start: u64) -> bool {
        let over = self.offer(tx, start);
        self.run = None;
        over
    }

    /// Looks at what of the current run is usable; the run then begins behind the last busy range in it.
    fn offer(&mut self, tx: &Tx<'_>, start: u64) -> bool {
        let Some((mut at, end)) = self.run else { return false };
        while at < end {
            let Some((from, to)) = next_busy(tx, start + at, start + end) else { break };
            if self.candidate(at, from.saturating_sub(start).max(at)) {
                return true;
            }
            at = (to - start).min(end);
        }
        self.run = (at < end).then_some((at, end));
        self.candidate(at, end)
    }

    fn candidate(&mut self, from: u64, to: u64) -> bool {
        let len = to.saturating_sub(from).min(self.want);
        if len > self.best.1 {
            self.best = (from, len);
        }
        self.best.1 >= self.want
    }
}

/// What the data search must know of a group besides its bitmaps.
pub(super) struct DataView {
    types: Box<Block>,
    kept: Option<u64>,
}

impl DataView {
    pub(super) fn new(tx: &mut Tx<'_>, g: &Group) -> Step<Self> {
        let types = g.types(tx)?;
        let kept = (g.h.free_meta < META_RESERVE)
            .then(|| (0..g.segments()).rev().find(|n| ag::segment(&types.0, *n) == SegmentType::Free))
            .flatten();
        Ok(Self { types, kept })
    }

    fn usable(&self, segment: u64) -> bool {
        self.kept != Some(segment) && ag::segment(&self.types.0, segment) != SegmentType::Meta
    }
}

/// Bitmap words read one block at a time.
#[derive(Default)]
struct Bits {
    block: Option<(u64, Box<Words>)>,
}

impl Bits {
    /// The word that holds bit `rel`.
    fn word(&mut self, tx: &mut Tx<'_>, g: &Group, rel: u64) -> Step<u64> {
        let n = rel / BITS_PER_BITMAP;
        if self.block.as_ref().is_none_or(|(have, _)| *have != n) {
            self.block = Some((n, g.words(tx, n)?));
        }
        let word = ((rel % BITS_PER_BITMAP) / 64) as usize;
        Ok(self.block.as_ref().map_or(u64::MAX, |(_, words)| words[word]))
    }
}

/// How many blocks from `rel` on, at most `want`, are free for data.
pub(super) fn run_at(tx: &mut Tx<'_>, g: &Group, view: &DataView, rel: u64, want: u64) -> Step<u64> {
    let end = rel.saturating_add(want).min(g.h.blocks);
    let (mut at, mut bits) = (rel, Bits::default());
    while at < end && view.usable(at / SEGMENT_BLOCKS) {
        let off = at % 64;
        let rest = bits.word(tx, g, at)? >> off;
        let n = if rest == 0 { 64 - off } else { u64::from(rest.trailing_zeros()) };
        at += n;
        if n < 64 - off {
            break;
        }
    }
    let at = at.min(end);
    Ok(next_busy(tx, g.start + rel, g.start + at).map_or(at, |(busy, _)| busy.saturating_sub(g.start).max(rel)) - rel)
}

/// A free data run of `want` blocks, searched from `from` on and around, or else the longest there is: (first block, length);
/// length 0 = none.
pub(super) fn find_data(tx: &mut Tx<'_>, g: &Group, view: &DataView, from: u64, want: u64) -> Step<(u64, u64)> {
    let mut f = Finder { want: want.max(1), run: None, best: (0, 0) };
    let from = if from < g.h.blocks { from } else { 0 };
    if !scan(tx, g, view, &mut f, (from, g.h.blocks))? {
        scan(tx, g, view, &mut f, (0, from))?;
    }
    Ok(f.best)
}

/// Feeds the free blocks of `[from, to)` to the finder; true when it has enough.
fn scan(tx: &mut Tx<'_>, g: &Group, view: &DataView, f: &mut Finder, (from, to): (u64, u64)) -> Step<bool> {
    let (mut at, mut bits) = (from, Bits::default());
    while at < to {
        let segment = at / SEGMENT_BLOCKS;
        let end = ((segment + 1) * SEGMENT_BLOCKS).min(to);
        if !view.usable(segment) {
            if f.close(tx, g.start) {
                return Ok(true);
            }
            at = end;
            continue;
        }
        while at < end {
            let word = bits.word(tx, g, at)?;
            let stop = ((at / 64 + 1) * 64).min(end);
            if feed(tx, g.start, f, word, (at, stop)) {
                return Ok(true);
            }
            at = stop;
        }
    }
    Ok(f.close(tx, g.start))
}

/// Feeds the free bits of one word, as far as they lie in `[at, stop)`.
fn feed(tx: &Tx<'_>, start: u64, f: &mut Finder, word: u64, (mut at, stop): (u64, u64)) -> bool {
    while at < stop {
        let rest = word >> (at % 64);
        let free = if rest == 0 { stop - at } else { u64::from(rest.trailing_zeros()).min(stop - at) };
        if free > 0 {
            if f.extend(tx, start, at, free) {
                return true;
            }
            at += free;
        } else {
            if f.close(tx, start) {
                return true;
            }
            at += u64::from(rest.trailing_ones()).min(stop - at);
        }
    }
    false
}

/// A free block in a metadata segment, searched from `from` on and around.
pub(super) fn find_meta(tx: &mut Tx<'_>, g: &Group, from: u64) -> Step<Option<u64>> {
    if g.h.free_meta == 0 {
        return Ok(None);
    }
    let types = g.types(tx)?;
    let (segments, mut bits) = (g.segments(), Bits::default());
    let first = if from < g.h.blocks { from / SEGMENT_BLOCKS } else { 0 };
    // the first segment comes twice: from `from` on, and at the end its beginning
    for step in 0..=segments {
        let n = (first + step) % segments;
        if ag::segment(&types.0, n) != SegmentType::Meta {
            continue;
        }
        let (mut at, end) = g.segment_range(n);
        if step == 0 {
            at = at.max(from / 64 * 64);
        }
        while at < end {
            let mut free = !bits.word(tx, g, at)?;
            while free != 0 {
                let rel = at + u64::from(free.trailing_zeros());
                if rel < end && next_busy(tx, g.start + rel, g.start + rel + 1).is_none() {
                    return Ok(Some(rel));
                }
                free &= free - 1;
            }
            at += 64;
        }
    }
    Ok(None)
}

/// The last free segment with nothing busy in it.
pub(super) fn find_free_segment(tx: &mut Tx<'_>, g: &Group) -> Step<Option<u64>> {
    let types = g.types(tx)?;
    for n in (0..g.segments()).rev() {
        let (from, to) = g.segment_range(n);
        if ag::segment(&types.0, n) != SegmentType::Free || next_busy(tx, g.start + from, g.start + to).is_some() {
            continue;
        }
        if !g.is_empty(tx, n)? {
            return Err(corrupt(g.start, "free segment with blocks in use", n));
        }
        return Ok(Some(n));
    }
    Ok(None)
}

/// Finds or makes a free metadata block in the group.
pub(super) fn meta_in(tx: &mut Tx<'_>, g: &mut Group, from: u64) -> Step<Option<u64>> {
    if let Some(rel) = find_meta(tx, g, from)? {
        return Ok(Some(rel));
    }
    let Some(n) = find_free_segment(tx, g)? else { return Ok(None) };
    let (from, to) = g.segment_range(n);
    if !tx.meta.zeroed.contains_key(&(g.start + from)) {
        return Err(Stop::Zero { start: g.start + from, len: to - from });
    }
    g.make_meta(tx, n)?;
    Ok(Some(from))
}
