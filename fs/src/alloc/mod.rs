//! The allocator: which blocks of the volume belong to nobody, and who gets them.
//!
//! Each group has one lock (EX) over its header and bitmaps. An operation takes from groups whose lock it already has, then
//! from this host's home group, then from the next ones; hints (free counts, lost groups, searches in vain) steer it past groups
//! that are full for what it wishes and are never believed: whatever is taken is taken from the bitmap under the lock.
//!
//! Invariants: data lies only in Data segments, metadata only in Meta segments, and a segment that became Meta stays it
//! (R7); before, it was filled with zeroes, so no byte of a guest is ever believed to be metadata. A freed block is not
//! handed out before its freeing transaction is durable (R9). `NoSpace` is said only after every group was seen under its
//! lock and nothing is about to become free. Not here: what the blocks are used for.

mod group;
mod hints;
mod search;
#[cfg(test)]
mod tests;

pub(crate) use hints::not_busy;
pub use hints::{Hints, Totals, refresh_hints, statfs};

use crate::error::{FsError, Step, Stop};
use crate::meta::Meta;
use crate::tx::Tx;
use group::{Group, corrupt, is_cached};
use hints::Wish;
use luna_format::ag::{self, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{BlockNo, Kind};
use std::collections::BTreeSet;

/// A run this long is good enough for any file; shorter ones are taken only when no group offers one.
const GOOD_RUN: u64 = 2048;
/// A run at the goal is taken when it is at least this long (or all that was wanted).
const GOOD_AT_GOAL: u64 = 64;
/// Groups an operation locks in the hope of a good run.
const MAX_HOPES: usize = 8;

/// One metadata block, preferably near `near`, and the version it must start above. To be made with [`Tx::create`].
pub fn meta_block(tx: &mut Tx<'_>, near: BlockNo) -> Step<(BlockNo, u64)> {
    let sb = tx.sb;
    let home = tx.meta.home_group;
    let close = sb.ag_of(near);
    // the neighbour's group only when it costs no other host anything
    let first = close.filter(|ag| *ag == home || is_cached(tx.meta, sb, *ag));
    let take = |tx: &mut Tx<'_>, ag: u64| {
        let mut g = Group::load(tx, ag)?;
        if g.h.free == 0 {
            return Ok(None);
        }
        g.init_bitmaps(tx)?;
        let from = if close == Some(ag) { near - g.start } else { cursor(tx, ag).1 };
        let Some(rel) = search::meta_in(tx, &mut g, from)? else {
            in_vain(tx, &g, None);
            return Ok(None);
        };
        g.take_meta(tx, rel)?;
        tx.meta.cursor.entry(ag).or_default().1 = rel;
        Ok(Some((g.start + rel, g.h.version_floor)))
    };
    let mut seen = BTreeSet::new();
    match near_groups(tx, first, Wish::Meta, &mut seen, take)? {
        Some(found) => Ok(found),
        None => match every_group(tx, Wish::Meta, &mut seen, take)? {
            Some(found) => Ok(found),
            None => Err(full(tx)),
        },
    }
}

/// Frees a metadata block that this transaction has read or changed: its next life starts above its last version. What was
/// staged for it is dropped; an image staged afterwards (a cleared inode) still goes out, with the version counted here.
pub fn free_meta(tx: &mut Tx<'_>, block: BlockNo) -> Step<()> {
    let Some(ag) = tx.sb.ag_of(block) else { return Err(corrupt(block, "address of a freed metadata block", block)) };
    let mut g = Group::load(tx, ag)?;
    let version = tx.version_of(block);
    if version == 0 {
        return Err(FsError::Invalid("a metadata block was freed unread").into());
    }
    g.give_meta(tx, block - g.start, version)?;
    tx.note_freed(block, 1, false);
    tx.unstage(block);
    Ok(())
}

/// One run of data blocks, `min..=want` long, at `goal` if possible, else where a long run is.
pub fn data(tx: &mut Tx<'_>, goal: Option<BlockNo>, want: u64, min: u64) -> Step<(BlockNo, u64)> {
    data_with_room(tx, goal, want, min, want)
}

/// The same, placed where `room` blocks are free, if there is such a place: for a file that is going to grow.
pub fn data_with_room(tx: &mut Tx<'_>, goal: Option<BlockNo>, want: u64, min: u64, room: u64) -> Step<(BlockNo, u64)> {
    if want == 0 || min > want {
        return Err(FsError::Invalid("allocation of no blocks").into());
    }
    let min = min.max(1);
    let own = tx.own_groups();
    let first = goal.and_then(|b| tx.sb.ag_of(b)).filter(|ag| own.contains(ag) || !tx.meta.hints.is_lost(*ag));
    let good = want.min(GOOD_RUN).max(min);
    let asked = Asked { goal, want, room: room.max(want), least: good };
    let mut seen = BTreeSet::new();
    if let Some(found) = near_groups(tx, first, Wish::Data(good), &mut seen, |tx, ag| take_data(tx, ag, asked))? {
        return Ok(found);
    }
    if own.len() < MAX_HOPES
        && let Some(found) = all_groups(tx, Wish::Data(good), &mut seen, |tx, ag| take_data(tx, ag, asked))?
    {
        return Ok(found);
    }
    let asked = Asked { least: min, ..asked };
    let mut seen = BTreeSet::new();
    match near_groups(tx, first, Wish::Data(min), &mut seen, |tx, ag| take_data(tx, ag, asked))? {
        Some(found) => Ok(found),
        None => match every_group(tx, Wish::Data(min), &mut seen, |tx, ag| take_data(tx, ag, asked))? {
            Some(found) => Ok(found),
            None => Err(full(tx)),
        },
    }
}

/// What a search for data is told.
#[derive(Clone, Copy)]
struct Asked {
    goal: Option<BlockNo>,
    want: u64,
    room: u64,
    least: u64,
}

/// Takes data from one group; `None` when it has no run of `least` blocks.
fn take_data(tx: &mut Tx<'_>, ag: u64, a: Asked) -> Step<Option<(BlockNo, u64)>> {
    let mut g = Group::load(tx, ag)?;
    if g.h.free - g.h.free_meta < a.least {
        return Ok(None);
    }
    g.init_bitmaps(tx)?;
    let view = search::DataView::new(tx, &g)?;
    let goal = a.goal.filter(|b| tx.sb.ag_of(*b) == Some(ag)).map(|b| b - g.start);
    let mut found = (0, 0);
    if let Some(rel) = goal {
        found = (rel, search::run_at(tx, &g, &view, rel, a.want)?);
    }
    if found.1 < a.want.min(GOOD_AT_GOAL.max(a.least)) {
        let from = goal.unwrap_or_else(|| cursor(tx, ag).0);
        let (rel, len) = search::find_data(tx, &g, &view, from, a.room)?;
        if len < a.least {
            in_vain(tx, &g, Some(len));
        }
        if len.min(a.want) > found.1 {
            found = (rel, len.min(a.want));
        }
    }
    if found.1 < a.least {
        return Ok(None);
    }
    g.take_data(tx, found.0, found.1)?;
    tx.meta.cursor.entry(ag).or_default().0 = found.0 + found.1;
    Ok(Some((g.start + found.0, found.1)))
}

/// Frees data blocks; the run may cross segments and groups.
pub fn free_data(tx: &mut Tx<'_>, start: BlockNo, len: u64) -> Step<()> {
    let end = start.checked_add(len).ok_or_else(|| corrupt(start, "length of a freed run", len))?;
    let mut at = start;
    while at < end {
        let Some(ag) = tx.sb.ag_of(at) else { return Err(corrupt(at, "address of a freed block", at)) };
        let (first, blocks) = tx.sb.ag_region(ag);
        let stop = end.min(first + blocks);
        let mut g = Group::load(tx, ag)?;
        g.give_data(tx, at - first, stop - at)?;
        at = stop;
    }
    tx.note_freed(start, len, true);
    Ok(())
}

/// Whether a segment may be filled with zeroes: it is Free in the cached header and nothing in it is busy.
pub(crate) fn may_zero(meta: &mut Meta, sb: &Superblock, start: BlockNo, len: u64) -> bool {
    let Some(region) = sb.ag_of(start).map(|ag| sb.ag_region(ag).0) else { return false };
    let n = (start - region) / ag::SEGMENT_BLOCKS;
    let free = meta.get(region).is_some_and(|c| c.kind == Kind::AgHeader && ag::segment(&c.image.0, n) == SegmentType::Free);
    let busy = meta.busy.range(..start + len).next_back().is_some_and(|(s, b)| s + b.len > start);
    free && !busy && !meta.zeroed.contains_key(&start)
}

fn cursor(tx: &Tx<'_>, ag: u64) -> (u64, u64) {
    tx.meta.cursor.get(&ag).copied().unwrap_or_default()
}

/// Notes that a search in the group was in vain, unless it saw changes of this transaction, which may come to nothing.
fn in_vain(tx: &mut Tx<'_>, g: &Group, longest_run: Option<u64>) {
    if !tx.staged.contains_key(&g.start) {
        tx.meta.hints.in_vain(g.ag, longest_run);
    }
}

/// Nothing was found anywhere: blocks that wait for the journal come back after a checkpoint, otherwise the volume is full.
fn full(tx: &Tx<'_>) -> Stop {
    if tx.meta.busy.is_empty() { FsError::NoSpace.into() } else { Stop::Journal }
}

/// Tries `first`, then the groups this operation has, then the home group, as far as they may have what is asked for.
fn near_groups<T>(
    tx: &mut Tx<'_>,
    first: Option<u64>,
    wish: Wish,
    seen: &mut BTreeSet<u64>,
    mut take: impl FnMut(&mut Tx<'_>, u64) -> Step<Option<T>>,
) -> Step<Option<T>> {
    let home = tx.meta.home_group;
    let home = (home < tx.sb.ag_count && !tx.meta.hints.is_lost(home)).then_some(home);
    for ag in first.into_iter().chain(tx.own_groups()).chain(home) {
        if tx.meta.hints.may_have(ag, wish)
            && seen.insert(ag)
            && let Some(found) = take(tx, ag)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Tries the groups that may have what is asked for, from the home group on; those that other hosts use come last.
fn all_groups<T>(
    tx: &mut Tx<'_>,
    wish: Wish,
    seen: &mut BTreeSet<u64>,
    mut take: impl FnMut(&mut Tx<'_>, u64) -> Step<Option<T>>,
) -> Step<Option<T>> {
    let count = tx.sb.ag_count;
    let home = tx.meta.home_group.min(count);
    for lost in [false, true] {
        for ag in (home..count).chain(0..home) {
            if tx.meta.hints.may_have(ag, wish)
                && tx.meta.hints.is_lost(ag) == lost
                && seen.insert(ag)
                && let Some(found) = take(tx, ag)?
            {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// The same, and then those whose hint says no, unless this host has their lock and knows it.
fn every_group<T>(
    tx: &mut Tx<'_>,
    wish: Wish,
    seen: &mut BTreeSet<u64>,
    mut take: impl FnMut(&mut Tx<'_>, u64) -> Step<Option<T>>,
) -> Step<Option<T>> {
    if let Some(found) = all_groups(tx, wish, seen, &mut take)? {
        return Ok(Some(found));
    }
    let sb = tx.sb;
    for ag in 0..sb.ag_count {
        if !hints::rules_out(tx.meta, sb, ag, wish)
            && seen.insert(ag)
            && let Some(found) = take(tx, ag)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
