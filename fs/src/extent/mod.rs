//! Which blocks of the volume hold which blocks of a file.
//!
//! A file's extents lie sorted in its inode (up to 160) or in a tree below it. Operations here change one leaf at a time
//! and keep each transaction small: `punch` and `allocate` say how far they got and are called again.
//!
//! Invariants: extents of a file do not overlap; `inode.blocks` counts data blocks and tree nodes exactly; each change of
//! the mapping emits [`Effect::Map`]. Neighbours merge inside a leaf, not across two. Not here: inline files, sizes, the
//! bytes themselves. Whoever punches must first see to it that no write to those blocks is in flight.

#[cfg(test)]
mod crash_tests;
mod edit;
#[cfg(test)]
mod tests;
mod tree;

use crate::alloc;
use crate::error::{FsError, Step, Stop};
use crate::tx::{Effect, Tx};
use luna_format::inode::{BODY_AT, EXTENT_UNWRITTEN, Extent, INLINE_EXTENTS, Inode, Layout, ROOT_ENTRIES};
use luna_format::superblock::Superblock;
use luna_format::tree::{ENTRIES_AT, Entry, LEAF_EXTENTS, NODE_ENTRIES, NodeHeader};
use luna_format::{Block, BlockNo, CheckError, HEADER_BYTES, Ino, Kind};

/// Changed blocks after which a transaction is large enough.
const ENOUGH_CHANGED: usize = 48;
/// Holes filled by one call of [`allocate`].
const ENOUGH_HOLES: usize = 64;
/// How far from its neighbour (in blocks) a block may be placed so that the gap between them stays open for the hole's rest.
const KEEP_DISTANCE: u64 = 1 << 14;

/// What lies behind a run of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Nothing; reads as zeroes.
    Hole,
    /// Data, from this block of the volume on.
    Written(BlockNo),
    /// Allocated from this block on, never written; reads as zeroes.
    Unwritten(BlockNo),
}

/// A run of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First logical block.
    pub logical: u64,
    /// Blocks.
    pub len: u64,
    /// What is there.
    pub kind: RunKind,
}

/// Checks an extent node or the extents in an inode as it comes from the LUN.
pub(crate) fn check_block(b: &Block, kind: Kind, sb: &Superblock) -> Result<(), CheckError> {
    let block = b.header().block;
    let bad = |(what, found)| Err(CheckError::Field { block, what, found });
    let (list_of_extents, at, count) = match kind {
        Kind::Inode => {
            let Some(i) = b.view::<Inode>(HEADER_BYTES) else { return bad(("inode", 0)) };
            match Layout::from_u8(i.layout) {
                Some(Layout::Extents) => (true, BODY_AT, usize::from(i.count).min(INLINE_EXTENTS + 1)),
                Some(Layout::ExtentTree) => (false, BODY_AT, usize::from(i.count).min(ROOT_ENTRIES + 1)),
                _ => return Ok(()),
            }
        }
        Kind::ExtentNode => {
            let Some(h) = b.view::<NodeHeader>(HEADER_BYTES) else { return bad(("tree node", 0)) };
            let most = if h.level == 0 { LEAF_EXTENTS } else { NODE_ENTRIES };
            (h.level == 0, ENTRIES_AT, usize::from(h.count).min(most + 1))
        }
        _ => return Ok(()),
    };
    if count == 0 {
        return bad(("entries of a tree node", 0));
    }
    let wrong = if list_of_extents {
        tree::items::<Extent>(&b.0[at..], count).map_or(Some(("number of extents", count as u64)), |l| edit::check(l, sb))
    } else {
        tree::items::<Entry>(&b.0[at..], count).map_or(Some(("number of entries", count as u64)), |l| check_entries(l, sb))
    };
    wrong.map_or(Ok(()), bad)
}

fn check_entries(list: &[Entry], sb: &Superblock) -> Option<(&'static str, u64)> {
    if let Some(e) = list.iter().find(|e| sb.ag_of(e.child).is_none()) {
        return Some(("address of a tree node", e.child));
    }
    let keys = list.get(1..).unwrap_or_default();
    keys.windows(2).find(|w| w[0].key >= w[1].key).map(|w| ("order of keys", w[1].key))
}

fn kind_of(e: &Extent) -> RunKind {
    if e.unwritten() { RunKind::Unwritten(e.physical) } else { RunKind::Written(e.physical) }
}

/// What lies behind `[start, start + len)`: runs without a gap from `start` on, holes included, until all is covered or there
/// are `max_runs`.
pub fn map(tx: &mut Tx<'_>, ino: Ino, start: u64, len: u64, max_runs: usize) -> Step<Vec<Run>> {
    let end = start.saturating_add(len);
    let (mut pos, mut runs) = (start, Vec::new());
    // one more than asked for, because the last one may go on in the next leaf
    while pos < end && runs.len() <= max_runs {
        pos = tree::look(tx, ino, pos, |list, _, next| {
            let stop = end.min(next.unwrap_or(u64::MAX));
            let mut at = pos;
            for e in &list[list.partition_point(|e| e.end() <= pos)..] {
                if e.logical >= stop || runs.len() > max_runs {
                    break;
                }
                if e.logical > at {
                    push(&mut runs, Run { logical: at, len: e.logical - at, kind: RunKind::Hole });
                }
                let e = edit::part(e, pos, stop);
                push(&mut runs, Run { logical: e.logical, len: u64::from(e.len), kind: kind_of(&e) });
                at = e.end();
            }
            if at < stop && runs.len() <= max_runs {
                push(&mut runs, Run { logical: at, len: stop - at, kind: RunKind::Hole });
                at = stop;
            }
            at
        })?;
    }
    runs.truncate(max_runs);
    Ok(runs)
}

/// Adds a run, or makes the last one longer.
fn push(runs: &mut Vec<Run>, r: Run) {
    if let Some(last) = runs.last_mut() {
        let goes_on = match (last.kind, r.kind) {
            (RunKind::Hole, RunKind::Hole) => true,
            (RunKind::Written(a), RunKind::Written(b)) | (RunKind::Unwritten(a), RunKind::Unwritten(b)) => a + last.len == b,
            _ => false,
        };
        if goes_on {
            last.len += r.len;
            return;
        }
    }
    runs.push(r);
}

/// Puts an extent into a hole and counts its blocks.
pub fn insert(tx: &mut Tx<'_>, ino: Ino, e: Extent) -> Step<()> {
    if e.len == 0 || u64::from(e.len) > edit::MAX_LEN || e.logical.checked_add(u64::from(e.len)).is_none() {
        return Err(FsError::Invalid("length of an extent").into());
    }
    let mut pos = e.logical;
    while pos < e.end() {
        let mut leaf = tree::load(tx, ino, pos)?;
        // no extent crosses into the next leaf
        let stop = e.end().min(leaf.next.unwrap_or(u64::MAX));
        if !edit::insert(&mut leaf.extents, edit::part(&e, pos, stop)) {
            return Err(FsError::Damaged { ino, what: "blocks mapped where something is mapped" }.into());
        }
        tree::store(tx, ino, leaf)?;
        pos = stop;
    }
    tree::count_blocks(tx, ino, i64::from(e.len))?;
    tx.effect(Effect::Map { ino, start: e.logical, end: e.end() });
    Ok(())
}

/// Makes what is unwritten in `[start, start + len)` written.
pub fn convert(tx: &mut Tx<'_>, ino: Ino, start: u64, len: u64) -> Step<()> {
    let end = start.saturating_add(len);
    let mut pos = start;
    while pos < end {
        let mut leaf = tree::load(tx, ino, pos)?;
        let stop = end.min(leaf.next.unwrap_or(u64::MAX));
        let changed = edit::convert(&mut leaf.extents, pos, stop);
        if !changed.is_empty() {
            tree::store(tx, ino, leaf)?;
        }
        for (start, end) in changed {
            tx.effect(Effect::Map { ino, start, end });
        }
        pos = stop;
    }
    Ok(())
}

/// Unmaps `[start, end)` and frees its blocks, at most about `budget` extents of them. `None`: done; `Some(next)`: call again
/// with `next` as start, in a new transaction.
pub fn punch(tx: &mut Tx<'_>, ino: Ino, start: u64, end: u64, budget: usize) -> Step<Option<u64>> {
    let (mut pos, mut left) = (start, budget.max(1));
    while pos < end {
        let mut leaf = tree::load(tx, ino, pos)?;
        let stop = end.min(leaf.next.unwrap_or(u64::MAX));
        let (taken, upto) = cut_some(&mut leaf, pos, stop, left, tx)?;
        if !taken.is_empty() {
            tree::store(tx, ino, leaf)?;
            let blocks: i64 = taken.iter().map(|e| i64::from(e.len)).sum();
            tree::count_blocks(tx, ino, -blocks)?;
            tx.effect(Effect::Map { ino, start: pos, end: upto });
        }
        left = left.saturating_sub(taken.len().max(1));
        pos = upto;
        if pos < end && (left == 0 || tx.changed() >= ENOUGH_CHANGED) {
            return Ok(Some(pos));
        }
    }
    Ok(None)
}

/// Takes extents out of a leaf and frees their blocks, until the transaction is large enough.
fn cut_some(leaf: &mut tree::Leaf, from: u64, to: u64, most: usize, tx: &mut Tx<'_>) -> Step<(Vec<Extent>, u64)> {
    let (mut taken, mut pos) = (Vec::new(), from);
    while pos < to && taken.len() < most {
        let (piece, stop) = edit::cut(&mut leaf.extents, pos, to, 1);
        for e in &piece {
            alloc::free_data(tx, e.physical, u64::from(e.len))?;
        }
        pos = stop;
        taken.extend(piece);
        if tx.changed() >= ENOUGH_CHANGED {
            break;
        }
    }
    Ok((taken, pos))
}

/// A hole and what lies before it.
struct Gap {
    start: u64,
    end: u64,
    before: Option<Extent>,
    after: Option<Extent>,
}

/// The first hole in `[from, to)`, as far as one leaf tells; `Err` inside = how far there is none.
fn find_gap(tx: &mut Tx<'_>, ino: Ino, from: u64, to: u64) -> Step<Result<Gap, u64>> {
    tree::look(tx, ino, from, |list, _, next| {
        let stop = to.min(next.unwrap_or(u64::MAX));
        let mut at = list.partition_point(|e| e.end() <= from);
        let mut pos = from;
        while let Some(e) = list.get(at).filter(|e| e.logical <= pos) {
            pos = e.end();
            at += 1;
        }
        if pos >= stop {
            return Err(pos.min(stop));
        }
        let after = list.get(at).copied();
        let end = after.map_or(stop, |e| e.logical.min(stop));
        Ok(Gap { start: pos, end, before: at.checked_sub(1).and_then(|i| list.get(i)).copied(), after })
    })
}

/// The last extent before `logical`, also when it is in another leaf.
fn extent_before(tx: &mut Tx<'_>, ino: Ino, logical: u64) -> Step<Option<Extent>> {
    let mut from = logical;
    for _ in 0..2 {
        let (found, low) = tree::look(tx, ino, from, |list, low, _| {
            let n = list.partition_point(|e| e.logical < logical);
            (n.checked_sub(1).and_then(|i| list.get(i)).copied(), low)
        })?;
        if found.is_some() || low == 0 {
            return Ok(found);
        }
        from = low - 1;
    }
    Ok(None)
}

/// Where the blocks of a hole would best lie: behind the extent before it, or before the one after it.
fn goal_for(sb: &Superblock, gap: &Gap) -> Option<BlockNo> {
    if let Some(e) = gap.before {
        let distance = gap.start - e.end();
        let behind = e.physical + u64::from(e.len);
        let apart = behind.saturating_add(distance);
        let keep = distance <= KEEP_DISTANCE && sb.ag_of(apart).is_some() && sb.ag_of(apart) == sb.ag_of(e.physical);
        return Some(if keep { apart } else { behind }).filter(|b| sb.ag_of(*b).is_some());
    }
    let e = gap.after?;
    let distance = e.logical - gap.start;
    e.physical.checked_sub(distance).filter(|b| distance <= KEEP_DISTANCE && sb.ag_of(*b).is_some() && sb.ag_of(*b) == sb.ag_of(e.physical))
}

/// Fills the holes in `[start, start + len)` with unwritten runs, behind the extent before them where possible. `want_total`:
/// blocks the file will probably need in all (for placing its first run). Answers how far everything is allocated now:
/// `start + len` when done, else call again from there, in a new transaction.
pub fn allocate(tx: &mut Tx<'_>, ino: Ino, start: u64, len: u64, want_total: u64) -> Step<u64> {
    let Some(end) = start.checked_add(len) else { return Err(FsError::TooBig.into()) };
    let (mut pos, mut filled) = (start, 0);
    while pos < end {
        let mut gap = match find_gap(tx, ino, pos, end)? {
            Ok(gap) => gap,
            Err(upto) => {
                pos = upto;
                continue;
            }
        };
        if filled >= ENOUGH_HOLES || (filled > 0 && tx.changed() >= ENOUGH_CHANGED) {
            return Ok(gap.start);
        }
        if gap.before.is_none() {
            gap.before = extent_before(tx, ino, gap.start)?;
        }
        let want = (gap.end - gap.start).min(edit::MAX_LEN);
        let goal = goal_for(tx.sb, &gap);
        let room = if goal.is_none() { want_total.max(want) } else { want };
        let (physical, n) = match alloc::data_with_room(tx, goal, want, 1, room) {
            // keep what there is; the next call meets the same obstacle with nothing to lose
            Err(Stop::Error(FsError::NoSpace) | Stop::Journal) if filled > 0 => return Ok(gap.start),
            other => other?,
        };
        insert(tx, ino, Extent { logical: gap.start, physical, len: n as u32, flags: EXTENT_UNWRITTEN })?;
        filled += 1;
        pos = gap.start + n;
    }
    Ok(end)
}

/// First logical block behind the last extent; 0 when there is none.
pub fn end_of_allocation(tx: &mut Tx<'_>, ino: Ino) -> Step<u64> {
    tree::look(tx, ino, u64::MAX, |list, _, _| list.last().map_or(0, Extent::end))
}
