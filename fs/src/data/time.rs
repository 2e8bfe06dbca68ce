//! Modification times of data writes, written to the inode late; and what else a file is due when it comes to rest.
//!
//! Invariant: a pending time counts only while it is newer than the inode's change time, so that a time set on purpose
//! afterwards stays. What is lost with a host is at most the time of overwrites it had not synced with fsync(2).

use super::right::Right;
use crate::error::{FsError, Step};
use crate::extent;
use crate::inode;
use crate::names;
use crate::open::Node;
use crate::system::Fs;
use crate::tx::{Effect, Rights, Tx};
use crate::volume::{Needs, Ran, Wait};
use luna_dlm::Mode;
use luna_format::inode::{Inode, Layout};
use luna_format::{BLOCK_U64, Ino};
use std::sync::atomic::Ordering;

/// Extents freed by one transaction.
pub(super) const PUNCH_STEP: usize = 512;

/// Whether the file has capabilities that a write takes away.
pub(crate) fn has_capability(tx: &mut Tx<'_>, ino: Ino, i: &Inode) -> Step<bool> {
    if i.xattr_block == 0 {
        return Ok(false);
    }
    match crate::xattr::get(tx, ino, b"security.capability") {
        Ok(_) => Ok(true),
        Err(crate::Stop::Error(FsError::NoAttribute)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Clears set-id bits and capabilities, as a write by an unprivileged user must.
pub(super) fn kill_privileges(tx: &mut Tx<'_>, ino: Ino) -> Step<()> {
    let i = inode::get(tx, ino)?;
    if has_capability(tx, ino, &i)? {
        crate::xattr::remove(tx, ino, b"security.capability")?;
    }
    inode::update(tx, ino, |i| i.mode &= if i.mode & 0o010 != 0 { !0o6000 } else { !0o4000 })
}

/// Puts a pending time into the inode. Needs EX.
fn settle_time(tx: &mut Tx<'_>, ino: Ino, pending: i64) -> Step<()> {
    let i = inode::get(tx, ino)?;
    if i.nlink > 0 && pending > i.ctime_ns {
        inode::update(tx, ino, |i| (i.mtime_ns, i.ctime_ns) = (pending, pending))?;
        tx.effect(Effect::Inode(ino));
    }
    Ok(())
}

impl Fs {
    /// Writes the node's pending time, if there is one. With [`Wait::No`] only if the right is here; says whether it is done.
    pub(crate) fn write_mtime(&self, node: &Node, wait: Wait) -> Result<bool, FsError> {
        let pending = node.pending_mtime.load(Ordering::Acquire);
        if pending == 0 {
            return Ok(true);
        }
        let mut needs = Needs::from([(names::inode(node.ino), Mode::Ex)]);
        match self.volume.run_with(&mut needs, wait, |tx| settle_time(tx, node.ino, pending)) {
            Ok(Ran::WouldWait) => return Ok(false),
            Ok(Ran::Done(..)) | Err(FsError::Stale) => {}
            Err(e) => return Err(e),
        }
        let _ = node.pending_mtime.compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Acquire);
        Ok(true)
    }

    /// The same while the right is being given back.
    pub(crate) fn write_mtime_under(&self, node: &Node, rights: &Rights) -> Result<(), FsError> {
        let pending = node.pending_mtime.load(Ordering::Acquire);
        if pending != 0 {
            match self.volume.run_under(rights, |tx| settle_time(tx, node.ino, pending)) {
                Ok(()) | Err(FsError::Stale) => {}
                Err(e) => return Err(e),
            }
            let _ = node.pending_mtime.compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Acquire);
        }
        Ok(())
    }

    /// A file that nobody has open here any more: its time is written, blocks kept ready behind its end are given back.
    pub(crate) fn tidy(&self, node: &std::sync::Arc<Node>) {
        if let Err(e) = self.write_mtime(node, Wait::Yes) {
            tracing::debug!(ino = node.ino, error = %e, "modification time not written at close");
        }
        if node.ahead.load(Ordering::Acquire)
            && let Some(hold) = node.handle.try_hold(Mode::Ex)
        {
            let _alone = node.gate.alone();
            node.ahead.store(false, Ordering::Release);
            if let Err(e) = self.trim_tail(node, &Right::Held(hold), Wait::Yes) {
                tracing::debug!(ino = node.ino, error = %e, "blocks behind the end of a file stay allocated");
            }
        }
    }

    /// Frees blocks behind the end. The caller is alone in the gate, with EX. `false`: it would wait, and must not.
    pub(super) fn trim_tail(&self, node: &Node, right: &Right, wait: Wait) -> Result<bool, FsError> {
        let ino = node.ino;
        self.step_through(node, right, wait, 0, |tx, from| {
            let i = inode::get(tx, ino)?;
            if !matches!(Layout::from_u8(i.layout), Some(Layout::Extents | Layout::ExtentTree)) {
                return Ok(None);
            }
            let end = extent::end_of_allocation(tx, ino)?;
            let start = i.size.div_ceil(BLOCK_U64).max(from);
            if start >= end { Ok(None) } else { extent::punch(tx, ino, start, end, PUNCH_STEP) }
        })
    }

    /// Runs `body` from `start` on, one transaction after the other, until it says `None`. `false`: it would wait, and must not.
    pub(super) fn step_through(
        &self,
        node: &Node,
        right: &Right,
        wait: Wait,
        start: u64,
        mut body: impl FnMut(&mut Tx<'_>, u64) -> Step<Option<u64>>,
    ) -> Result<bool, FsError> {
        let (rights, mut needs, mut at) = (right.rights(node), Needs::new(), start);
        loop {
            match self.volume.run_given(&rights, &mut needs, wait, |tx| body(tx, at))? {
                Ran::WouldWait => return Ok(false),
                Ran::Done(None, _) => return Ok(true),
                Ran::Done(Some(next), _) => at = next,
            }
        }
    }
}
