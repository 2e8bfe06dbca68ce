//! The slow half of writing: allocate, write the data, make it reachable; small files inside the inode; partial blocks.
//!
//! Invariant: the caller holds EX; whoever changes the size or touches part of a block is alone in the gate. Bytes beyond the
//! size count as zeroes here, whatever a block on the LUN holds.

use super::blocks_of;
use super::learn::Seen;
use super::right::Right;
use super::time::{PUNCH_STEP, kill_privileges};
use super::write::{Ask, Slow, all_mapped};
use crate::error::{FsError, Step};
use crate::extent::{self, Run, RunKind};
use crate::open::Node;
use crate::system::Fs;
use crate::tx::{Effect, Tx};
use crate::volume::{Needs, Ran, Wait};
use crate::{alloc, inode};
use luna_format::BLOCK_U64;
use luna_format::inode::{BODY_BYTES, Extent, Layout, MAX_SIZE};
use luna_lun::{AlignedBuf, Durability};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Holes in large files are filled in pieces of this many blocks (1 MiB).
const CHUNK: u64 = 256;
/// Files from this size on count as large.
const LARGE: u64 = 64 << 20;
/// Files up to this size get exactly the blocks they need.
const EXACT: u64 = 64 << 10;
/// The most blocks kept ready behind the end of a growing file (8 MiB).
const AHEAD: u64 = 2048;

impl Fs {
    /// Whole blocks inside the size, some of them not written yet.
    #[allow(clippy::too_many_arguments, reason = "the parts of one write, each used once")]
    pub(super) fn fill(
        &self,
        node: &Arc<Node>,
        right: &Right,
        ask: Ask,
        size: u64,
        (first, last): (u64, u64),
        data: &[u8],
        wait: Wait,
    ) -> Result<Slow, FsError> {
        let Some(runs) = self.make_room(node, right, size, (first, last), wait)? else { return Ok(Slow::WouldWait) };
        self.put(&runs, data, Durability::Plain)?;
        let reached = self.reach(node, right, &runs, None, ask, wait)?;
        Ok(if reached { Slow::Done(data.len() as u32) } else { Slow::WouldWait })
    }

    /// Maps all of `first..last`; gives the runs. `None`: it would wait, and must not.
    pub(super) fn make_room(
        &self,
        node: &Arc<Node>,
        right: &Right,
        size: u64,
        (first, last): (u64, u64),
        wait: Wait,
    ) -> Result<Option<Vec<Run>>, FsError> {
        let seen = self.look(node, right, first, last)?;
        if all_mapped(&seen) {
            return Ok(Some(seen.runs()));
        }
        let end_block = size.div_ceil(BLOCK_U64);
        let (from, to) = if last > end_block {
            let more = if first <= end_block && size > EXACT { (size / 4 / BLOCK_U64).min(AHEAD) } else { 0 };
            node.ahead.fetch_or(more > 0, Ordering::AcqRel);
            (first, last + more)
        } else if size >= LARGE {
            ((first / CHUNK) * CHUNK, last.next_multiple_of(CHUNK).min(end_block))
        } else {
            (first, last)
        };
        let (ino, want) = (node.ino, to.max(end_block));
        let get = |from: u64, to: u64| {
            self.step_through(node, right, wait, from, |tx, at| {
                let next = extent::allocate(tx, ino, at, to - at, want)?;
                Ok((next < to).then_some(next))
            })
        };
        let got = match get(from, to) {
            Err(FsError::NoSpace) if (from, to) != (first, last) => get(first, last)?,
            other => other?,
        };
        if !got {
            return Ok(None);
        }
        let seen = self.look(node, right, first, last)?;
        if all_mapped(&seen) { Ok(Some(seen.runs())) } else { Err(FsError::Damaged { ino, what: "allocated blocks are not mapped" }) }
    }

    /// Makes runs whose data is on the LUN reachable; sets the size if it grew. `false`: it would wait; the write may be repeated.
    pub(super) fn reach(
        &self,
        node: &Node,
        right: &Right,
        runs: &[Run],
        grown: Option<u64>,
        ask: Ask,
        wait: Wait,
    ) -> Result<bool, FsError> {
        let ino = node.ino;
        let kill = ask.how.kill && node.view.read().kill;
        let body = |tx: &mut Tx<'_>| -> Step<()> {
            for r in runs.iter().filter(|r| matches!(r.kind, RunKind::Unwritten(_))) {
                extent::convert(tx, ino, r.logical, r.len)?;
            }
            settle(tx, ino, grown, kill)
        };
        let Ran::Done((), seq) = self.volume.run_given(&right.rights(node), &mut Needs::new(), wait, body)? else { return Ok(false) };
        {
            let mut v = node.view.write();
            for r in runs {
                if let RunKind::Written(p) | RunKind::Unwritten(p) = r.kind {
                    v.map.learn(&Run { kind: RunKind::Written(p), ..*r });
                }
            }
        }
        if ask.sync {
            self.volume.sync_to(seq)?;
        }
        Ok(true)
    }

    /// A write of any shape. The caller is alone in the gate.
    pub(super) fn write_alone(&self, node: &Arc<Node>, right: &Right, ask: Ask, data: &[u8], wait: Wait) -> Result<Slow, FsError> {
        let probe = self.look(node, right, ask.offset / BLOCK_U64, ask.offset / BLOCK_U64 + 1)?;
        let size = probe.size;
        let pos = if ask.append { size } else { ask.offset };
        let limit = if ask.how.page { size } else { MAX_SIZE };
        if pos >= limit {
            // mapped pages beyond the end are nobody's
            return if ask.how.page { Ok(Slow::Done(data.len() as u32)) } else { Err(FsError::TooBig) };
        }
        let all = data.len() as u32;
        let data = &data[..data.len().min((limit - pos) as usize)];
        let answer = if ask.how.page { all } else { data.len() as u32 };
        let end = pos + data.len() as u64;
        if probe.small && end.max(size) <= BODY_BYTES as u64 {
            return self
                .write_inline(node, right, ask, pos, data, wait)
                .map(|done| if done { Slow::Done(answer) } else { Slow::WouldWait });
        }
        if probe.small && !self.unfold(node, right, wait)? {
            return Ok(Slow::WouldWait);
        }
        let (first, last) = blocks_of(pos, data.len() as u64);
        if end > size && !self.clean_gap(node, right, size, first, wait)? {
            return Ok(Slow::WouldWait);
        }
        let Some(runs) = self.make_room(node, right, size, (first, last), wait)? else { return Ok(Slow::WouldWait) };
        if (pos | end).is_multiple_of(BLOCK_U64) {
            self.put(&runs, data, Durability::Plain)?;
        } else {
            let whole = self.complete(&runs, size, pos, data)?;
            self.put(&runs, &whole.bytes()[..((last - first) * BLOCK_U64) as usize], Durability::Plain)?;
        }
        let reached = self.reach(node, right, &runs, (end > size).then_some(end), ask, wait)?;
        Ok(if reached { Slow::Done(answer) } else { Slow::WouldWait })
    }

    /// The whole blocks around `data` at `pos`: what the file has there, with `data` laid over it.
    fn complete(&self, runs: &[Run], size: u64, pos: u64, data: &[u8]) -> Result<AlignedBuf, FsError> {
        let end = pos + data.len() as u64;
        let (first, last) = blocks_of(pos, data.len() as u64);
        let mut buf = AlignedBuf::new(((last - first) * BLOCK_U64) as usize);
        let head = (!pos.is_multiple_of(BLOCK_U64)).then_some(first);
        let tail = (!end.is_multiple_of(BLOCK_U64) && end < size).then_some(last - 1);
        let mut edges: Vec<u64> = head.into_iter().chain(tail).collect();
        edges.dedup();
        for b in edges {
            let Some(r) = runs.iter().find(|r| (r.logical..r.logical + r.len).contains(&b)) else { continue };
            let RunKind::Written(at) = r.kind else { continue };
            let to = ((b - first) * BLOCK_U64) as usize;
            let block = &mut buf.bytes_mut()[to..to + BLOCK_U64 as usize];
            self.volume.disk.read_at(block, (at + b - r.logical) * BLOCK_U64)?;
            let valid = size.saturating_sub(b * BLOCK_U64).min(BLOCK_U64) as usize;
            block[valid..].fill(0);
        }
        let at = (pos - first * BLOCK_U64) as usize;
        buf.bytes_mut()[at..at + data.len()].copy_from_slice(data);
        Ok(buf)
    }

    /// The file grows past block `upto`: what lies between its end and there must read as zeroes. `false`: it would wait.
    pub(super) fn clean_gap(&self, node: &Arc<Node>, right: &Right, size: u64, upto: u64, wait: Wait) -> Result<bool, FsError> {
        let end_block = size.div_ceil(BLOCK_U64);
        if upto < end_block {
            return Ok(true);
        }
        if !size.is_multiple_of(BLOCK_U64) {
            let b = size / BLOCK_U64;
            let seen = self.look(node, right, b, b + 1)?;
            if let [Run { kind: RunKind::Written(at), .. }] = seen.runs()[..] {
                let mut buf = AlignedBuf::new(BLOCK_U64 as usize);
                self.volume.disk.read_at(buf.bytes_mut(), at * BLOCK_U64)?;
                let keep = (size % BLOCK_U64) as usize;
                if buf.bytes()[keep..].iter().any(|x| *x != 0) {
                    buf.bytes_mut()[keep..].fill(0);
                    self.put(&seen.runs(), buf.bytes(), Durability::Plain)?;
                }
            }
        }
        let ino = node.ino;
        if upto == end_block {
            return Ok(true);
        }
        // a crash between a truncation and its last step can leave written blocks behind the end
        self.step_through(node, right, wait, end_block, |tx, from| {
            let runs = extent::map(tx, ino, from, upto - from, 64)?;
            if let Some(r) = runs.iter().find(|r| matches!(r.kind, RunKind::Written(_))) {
                return Ok(Some(extent::punch(tx, ino, r.logical, r.logical + r.len, PUNCH_STEP)?.unwrap_or(r.logical + r.len)));
            }
            Ok(runs.last().map(|r| r.logical + r.len).filter(|at| *at < upto))
        })
    }

    /// A write into a file whose bytes are in its inode, and stay there.
    fn write_inline(&self, node: &Node, right: &Right, ask: Ask, pos: u64, data: &[u8], wait: Wait) -> Result<bool, FsError> {
        let ino = node.ino;
        let (from, to) = (pos as usize, pos as usize + data.len());
        let ran = self.volume.run_given(&right.rights(node), &mut Needs::new(), wait, |tx| {
            let i = inode::get(tx, ino)?;
            let have = if i.layout == Layout::Inline as u8 { i.inline_len as usize } else { 0 };
            let body = inode::body_mut(tx, ino)?;
            if from > have {
                body[have..from].fill(0);
            }
            body[from..to].copy_from_slice(data);
            inode::update(tx, ino, |i| (i.layout, i.inline_len) = (Layout::Inline as u8, have.max(to) as u32))?;
            settle(tx, ino, Some((to as u64).max(i.size)), ask.how.kill)
        })?;
        match ran {
            Ran::WouldWait => Ok(false),
            Ran::Done((), seq) => {
                if ask.sync {
                    self.volume.sync_to(seq)?;
                }
                Ok(true)
            }
        }
    }

    /// Moves the bytes of a small file out into a block. If the host dies between the two transactions and a journal flush came
    /// between them, one block is lost until the next check. `false`: it would wait, and must not.
    pub(super) fn unfold(&self, node: &Arc<Node>, right: &Right, wait: Wait) -> Result<bool, FsError> {
        let seen = self.look(node, right, 0, 1)?;
        let Some(bytes) = seen.inline else { return Ok(true) };
        if bytes.is_empty() {
            return self.fold_away(node, right, None, wait);
        }
        if wait == Wait::No {
            return Ok(false);
        }
        let rights = right.rights(node);
        let block = match self.volume.run_given(&rights, &mut Needs::new(), wait, |tx| alloc::data(tx, None, 1, 1))? {
            Ran::WouldWait => return Ok(false),
            Ran::Done((block, _), _) => block,
        };
        let mut buf = AlignedBuf::new(BLOCK_U64 as usize);
        buf.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        let moved = self.volume.disk.write_at(buf.bytes(), block * BLOCK_U64, Durability::Plain).map_err(FsError::from).and_then(|()| {
            self.volume.note_data_write();
            self.fold_away(node, right, Some(block), Wait::Yes)
        });
        if moved.is_err() {
            // nothing points there yet
            let _ = self.volume.run_given(&rights, &mut Needs::new(), Wait::Yes, |tx| alloc::free_data(tx, block, 1));
        }
        moved
    }

    /// The inode stops holding bytes; block 0 is `block`, where given.
    fn fold_away(&self, node: &Node, right: &Right, block: Option<u64>, wait: Wait) -> Result<bool, FsError> {
        let ino = node.ino;
        let ran = self.volume.run_given(&right.rights(node), &mut Needs::new(), wait, |tx| {
            if inode::get(tx, ino)?.layout != Layout::Inline as u8 {
                return Ok(());
            }
            inode::body_mut(tx, ino)?.fill(0);
            inode::update(tx, ino, |i| (i.layout, i.inline_len, i.count) = (Layout::Empty as u8, 0, 0))?;
            if let Some(physical) = block {
                extent::insert(tx, ino, Extent { logical: 0, physical, len: 1, flags: 0 })?;
            }
            tx.effect(Effect::Inode(ino));
            Ok(())
        })?;
        Ok(matches!(ran, Ran::Done(..)))
    }
}

impl Seen {
    /// Whether block `b` has data on the LUN.
    pub(super) fn is_written(&self, b: u64) -> bool {
        self.runs().iter().any(|r| (r.logical..r.logical + r.len).contains(&b) && matches!(r.kind, RunKind::Written(_)))
    }
}

/// What every write changes in the inode: times, the size if it grew, bits a stranger's write takes away.
fn settle(tx: &mut Tx<'_>, ino: luna_format::Ino, grown: Option<u64>, kill: bool) -> Step<()> {
    if kill {
        kill_privileges(tx, ino)?;
    }
    let now = tx.now_ns;
    let small = |i: &luna_format::inode::Inode| matches!(Layout::from_u8(i.layout), Some(Layout::Empty | Layout::Inline));
    let (size, was_small) = inode::update(tx, ino, |i| {
        i.size = i.size.max(grown.unwrap_or(0));
        (i.mtime_ns, i.ctime_ns) = (now, now);
        (i.size, small(i))
    })?;
    tx.effect(if kill || was_small { Effect::Inode(ino) } else { Effect::Size { ino, size } });
    Ok(())
}
