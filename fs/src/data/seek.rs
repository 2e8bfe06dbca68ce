//! lseek(2) for data and holes: what was allocated and never written is a hole.
//!
//! Not here: SEEK_SET, SEEK_CUR and SEEK_END, which the kernel does alone.

use super::right::Right;
use crate::error::FsError;
use crate::extent::RunKind;
use crate::open::Node;
use crate::system::Fs;
use crate::volume::Wait;
use luna_dlm::Mode;
use luna_format::BLOCK_U64;
use std::sync::Arc;

impl Fs {
    /// As `seek`, taking the right first. `None`: it would wait, and must not.
    pub(crate) fn seek_wait(&self, node: &Arc<Node>, offset: u64, data: bool, wait: Wait) -> Result<Option<u64>, FsError> {
        let hold = match node.handle.try_hold(Mode::Cr) {
            Some(h) => h,
            None if wait == Wait::No => return Ok(None),
            None => self.volume.locks.hold(node.handle.name(), Mode::Pr).map_err(|e| FsError::Withdrawn(e.to_string()))?,
        };
        self.seek(node, &Right::Held(hold), offset, data).map(Some)
    }

    /// The next data (`data`) or hole at or behind `offset`. The right is CR or more.
    fn seek(&self, node: &Arc<Node>, right: &Right, offset: u64, data: bool) -> Result<u64, FsError> {
        let _pass = node.gate.shared();
        let first = self.look(node, right, offset / BLOCK_U64, offset / BLOCK_U64 + 1)?;
        let size = first.size;
        if offset >= size {
            return Err(FsError::NoSuchOffset);
        }
        if first.small {
            let have = first.inline.map_or(0, |b| b.len() as u64);
            return match (data, offset < have) {
                (true, true) | (false, false) => Ok(offset),
                (true, false) => Err(FsError::NoSuchOffset),
                (false, true) => Ok(have.min(size)),
            };
        }
        let end = size.div_ceil(BLOCK_U64);
        let mut at = offset / BLOCK_U64;
        while at < end {
            let to = end.min(at + (1 << 18));
            let mut seen = self.look(node, right, at, to)?;
            if seen.runs().is_empty() {
                seen = self.look(node, right, at, at + 1)?;
            }
            for r in seen.runs() {
                if matches!(r.kind, RunKind::Written(_)) == data {
                    return Ok(offset.max(r.logical * BLOCK_U64).min(size));
                }
                at = r.logical + r.len;
            }
        }
        if data { Err(FsError::NoSuchOffset) } else { Ok(size) }
    }
}
