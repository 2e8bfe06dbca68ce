//! Changes of a file's shape: truncate, preallocate, punch, zero; and making it durable.
//!
//! Invariants: whoever changes the shape holds EX and is alone in the file's gate. Shrinking sets the size first, so that a
//! crash in the middle leaves blocks behind the end and never a half-cut file; growing first sees to it that what comes into
//! sight reads as zeroes.

use super::right::Right;
use super::time::{PUNCH_STEP, kill_privileges};
use crate::error::FsError;
use crate::extent::{self, RunKind};
use crate::inode;
use crate::names;
use crate::open::Node;
use crate::system::Fs;
use crate::tx::Effect;
use crate::volume::{Needs, Ran, Wait};
use luna_dlm::Mode;
use luna_format::BLOCK_U64;
use luna_format::inode::{Layout, MAX_SIZE};
use luna_lun::AlignedBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The size stays.
pub const FALLOC_KEEP_SIZE: i32 = 1;
/// Make a hole.
pub const FALLOC_PUNCH_HOLE: i32 = 2;
/// Make it read as zeroes, allocated.
pub const FALLOC_ZERO_RANGE: i32 = 16;

impl Fs {
    /// Runs `f` with EX and alone. `None`: it would wait, and must not.
    pub(super) fn with_ex<T>(
        &self,
        node: &Arc<Node>,
        wait: Wait,
        f: impl FnOnce(&Right) -> Result<Option<T>, FsError>,
    ) -> Result<Option<T>, FsError> {
        self.volume.check_active()?;
        let hold = match node.handle.try_hold(Mode::Ex) {
            Some(h) => h,
            None if wait == Wait::No => return Ok(None),
            None => self.volume.locks.hold(node.handle.name(), Mode::Ex).map_err(|e| FsError::Withdrawn(e.to_string()))?,
        };
        let right = Right::Held(hold);
        let Some(_alone) = (if wait == Wait::Yes { Some(node.gate.alone()) } else { node.gate.try_alone() }) else { return Ok(None) };
        f(&right)
    }

    /// Sets the size. `kill`: the caller may not keep set-id bits. `None`: it would wait, and must not.
    pub(crate) fn truncate(&self, node: &Arc<Node>, size: u64, kill: bool, wait: Wait) -> Result<Option<()>, FsError> {
        if size > MAX_SIZE {
            return Err(FsError::TooBig);
        }
        self.with_ex(node, wait, |right| {
            let old = self.look(node, right, 0, 1)?;
            if size > old.size && !old.small && !self.clean_gap(node, right, old.size, size.div_ceil(BLOCK_U64), wait)? {
                return Ok(None);
            }
            if !self.set_size(node, right, size, kill, wait)? {
                return Ok(None);
            }
            if size <= old.size && !old.small {
                if !self.trim_tail(node, right, wait)? {
                    return Ok(None);
                }
                node.ahead.store(false, Ordering::Release);
            }
            Ok(Some(()))
        })
    }

    fn set_size(&self, node: &Node, right: &Right, size: u64, kill: bool, wait: Wait) -> Result<bool, FsError> {
        let ino = node.ino;
        let ran = self.volume.run_given(&right.rights(node), &mut Needs::new(), wait, |tx| {
            let i = inode::get(tx, ino)?;
            if i.layout == Layout::Inline as u8 && size < u64::from(i.inline_len) {
                inode::body_mut(tx, ino)?[size as usize..].fill(0);
                inode::update(tx, ino, |i| i.inline_len = size as u32)?;
            }
            if kill {
                kill_privileges(tx, ino)?;
            }
            let now = tx.now_ns;
            inode::update(tx, ino, |i| (i.size, i.mtime_ns, i.ctime_ns) = (size, now, now))?;
            tx.effect(Effect::Inode(ino));
            Ok(())
        })?;
        Ok(matches!(ran, Ran::Done(..)))
    }

    /// fallocate(2). `None`: it would wait, and must not.
    pub(crate) fn fallocate(&self, node: &Arc<Node>, mode: i32, offset: u64, len: u64, wait: Wait) -> Result<Option<()>, FsError> {
        let end = offset.checked_add(len).filter(|e| *e <= MAX_SIZE).ok_or(FsError::TooBig)?;
        if len == 0 {
            return Err(FsError::Invalid("length of fallocate"));
        }
        let keep = mode & FALLOC_KEEP_SIZE != 0;
        match mode & !FALLOC_KEEP_SIZE {
            0 => self.with_ex(node, wait, |right| self.preallocate(node, right, offset, end, keep, wait)),
            FALLOC_PUNCH_HOLE if keep => self.with_ex(node, wait, |right| {
                let size = self.look(node, right, 0, 1)?.size;
                self.wipe(node, right, offset, end.min(size.next_multiple_of(BLOCK_U64).max(offset)), false, wait)
            }),
            FALLOC_ZERO_RANGE => self.with_ex(node, wait, |right| {
                if self.wipe(node, right, offset, end, true, wait)?.is_none() {
                    return Ok(None);
                }
                self.grow(node, right, end, keep, wait)
            }),
            _ => Err(FsError::NotSupported("this kind of fallocate")),
        }
    }

    fn preallocate(&self, node: &Arc<Node>, right: &Right, offset: u64, end: u64, keep: bool, wait: Wait) -> Result<Option<()>, FsError> {
        if self.look(node, right, 0, 1)?.small && !self.unfold(node, right, wait)? {
            return Ok(None);
        }
        let (ino, from, to) = (node.ino, offset / BLOCK_U64, end.div_ceil(BLOCK_U64));
        let got = self.step_through(node, right, wait, from, |tx, at| {
            let next = extent::allocate(tx, ino, at, to - at, to)?;
            Ok((next < to).then_some(next))
        });
        match got {
            Ok(true) if keep || end <= self.look(node, right, 0, 1)?.size => self.touch(node, right, wait),
            Ok(true) => self.grow(node, right, end, keep, wait),
            Ok(false) => Ok(None),
            Err(e) => {
                // what was taken behind the end before the space ran out goes back
                if matches!(e, FsError::NoSpace) && !keep {
                    let _ = self.trim_tail(node, right, Wait::Yes);
                }
                Err(e)
            }
        }
    }

    /// Makes the file reach to `end`, unless the size is to be kept.
    fn grow(&self, node: &Arc<Node>, right: &Right, end: u64, keep: bool, wait: Wait) -> Result<Option<()>, FsError> {
        let seen = self.look(node, right, 0, 1)?;
        if keep || end <= seen.size {
            return Ok(Some(()));
        }
        let clean = seen.small || self.clean_gap(node, right, seen.size, end.div_ceil(BLOCK_U64), wait)?;
        Ok((clean && self.set_size(node, right, end, false, wait)?).then_some(()))
    }

    /// Makes bytes read as zeroes: holes, or (with `keep_space`) allocated blocks; parts of blocks are overwritten.
    fn wipe(&self, node: &Arc<Node>, right: &Right, offset: u64, end: u64, keep_space: bool, wait: Wait) -> Result<Option<()>, FsError> {
        let seen = self.look(node, right, 0, 1)?;
        if seen.small {
            return self.wipe_inline(node, right, offset, end, wait);
        }
        let (from, to) = (offset.div_ceil(BLOCK_U64), end / BLOCK_U64);
        if from > to {
            self.wipe_part(node, right, offset, end)?;
        } else {
            self.wipe_part(node, right, offset, from * BLOCK_U64)?;
            self.wipe_part(node, right, to * BLOCK_U64, end)?;
        }
        let ino = node.ino;
        let punched = from >= to || self.step_through(node, right, wait, from, |tx, at| extent::punch(tx, ino, at, to, PUNCH_STEP))?;
        if !punched {
            return Ok(None);
        }
        if keep_space {
            let (from, to) = super::blocks_of(offset, end - offset);
            let got = self.step_through(node, right, wait, from, |tx, at| {
                let next = extent::allocate(tx, ino, at, to - at, to)?;
                Ok((next < to).then_some(next))
            })?;
            if !got {
                return Ok(None);
            }
        }
        self.touch(node, right, wait)
    }

    /// The file changed now, its size did not.
    fn touch(&self, node: &Node, right: &Right, wait: Wait) -> Result<Option<()>, FsError> {
        let ran = self.volume.run_given(&right.rights(node), &mut Needs::new(), wait, |tx| {
            let now = tx.now_ns;
            inode::update(tx, node.ino, |i| (i.mtime_ns, i.ctime_ns) = (now, now))
        })?;
        Ok(matches!(ran, Ran::Done(..)).then_some(()))
    }

    /// Zeroes bytes inside one block.
    fn wipe_part(&self, node: &Arc<Node>, right: &Right, from: u64, to: u64) -> Result<(), FsError> {
        if from >= to {
            return Ok(());
        }
        let b = from / BLOCK_U64;
        let seen = self.look(node, right, b, b + 1)?;
        if !seen.is_written(b) {
            return Ok(());
        }
        let runs = seen.runs();
        let [extent::Run { kind: RunKind::Written(at), .. }] = runs[..] else { return Ok(()) };
        let mut buf = AlignedBuf::new(BLOCK_U64 as usize);
        self.volume.disk.read_at(buf.bytes_mut(), at * BLOCK_U64)?;
        buf.bytes_mut()[(from - b * BLOCK_U64) as usize..(to - b * BLOCK_U64) as usize].fill(0);
        self.put(&runs, buf.bytes(), luna_lun::Durability::Plain)
    }

    fn wipe_inline(&self, node: &Node, right: &Right, offset: u64, end: u64, wait: Wait) -> Result<Option<()>, FsError> {
        let ino = node.ino;
        let ran = self.volume.run_given(&right.rights(node), &mut Needs::new(), wait, |tx| {
            let i = inode::get(tx, ino)?;
            let have = if i.layout == Layout::Inline as u8 { u64::from(i.inline_len) } else { 0 };
            let (from, to) = (offset.min(have) as usize, end.min(have) as usize);
            if from < to {
                inode::body_mut(tx, ino)?[from..to].fill(0);
            }
            let now = tx.now_ns;
            inode::update(tx, ino, |i| (i.mtime_ns, i.ctime_ns) = (now, now))
        })?;
        Ok(matches!(ran, Ran::Done(..)).then_some(()))
    }

    /// fsync(2), fdatasync(2): the data, and the metadata to find it, are durable when this returns.
    pub(crate) fn sync_node(&self, node: &Node, data_only: bool) -> Result<(), FsError> {
        if !data_only && node.pending_mtime.load(Ordering::Acquire) != 0 {
            if node.handle.mode() == Mode::Ex {
                self.write_mtime(node, Wait::No)?;
            } else {
                self.tell_mtime(node);
            }
        }
        // under a weaker right other hosts may have written since the last flush, and nothing of that was noted here
        if !node.handle.mode().covers(Mode::Pr) {
            self.volume.note_data_write();
        }
        let seq = self.volume.last_change(&names::inode(node.ino)).unwrap_or(0);
        self.volume.sync_to(seq)
    }

    /// fsync(2) of a directory: the names in it are durable when this returns.
    pub fn sync_dir(&self, ino: luna_format::Ino) -> Result<(), FsError> {
        let seq = self.volume.last_change(&names::inode(ino)).unwrap_or(0);
        self.volume.sync_to(seq)
    }

    /// Lets the pending time travel with the lock, for hosts that share the file for writing.
    pub(crate) fn tell_mtime(&self, node: &Node) {
        let pending = u64::try_from(node.pending_mtime.load(Ordering::Acquire)).unwrap_or(0);
        if pending != 0 {
            self.volume.locks.contribute(&names::inode(node.ino), &[pending, 0, 0, 0]);
        }
    }
}
