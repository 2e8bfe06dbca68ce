//! Learns from the metadata what a transfer must know: size, layout, blocks.
//!
//! Invariant: what is learnt goes into the node in the metadata mutex, so that no transaction comes between looking and noting.

use super::map::{Cover, clip};
use super::right::Right;
use crate::error::FsError;
use crate::extent::{self, Run, RunKind};
use crate::inode;
use crate::op;
use crate::open::Node;
use crate::system::Fs;
use crate::volume::{Needs, Ran, Wait};
use luna_format::inode::Layout;

/// Runs read at once.
const RUNS: usize = 256;
/// Mapping is read from a multiple of this many blocks on (256 MiB).
const STRIDE: u64 = 1 << 16;
/// So far ahead (4 GiB).
const AHEAD: u64 = 1 << 20;

/// What a transfer over some blocks must know.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Its bytes, when they are in the inode (may be fewer than `size`: the rest is zero).
    pub(crate) inline: Option<Vec<u8>>,
    /// It has no blocks: the bytes are in the inode, or there are none.
    pub(crate) small: bool,
    /// An unprivileged write has something to clear.
    pub(crate) kill: bool,
    /// The runs of the blocks asked for.
    pub(crate) cover: Cover,
}

impl Seen {
    /// The runs in order.
    pub(crate) fn runs(&self) -> Vec<Run> {
        match &self.cover {
            Cover::One(r) => vec![*r],
            Cover::Many(rs) => rs.clone(),
            Cover::Unknown => Vec::new(),
        }
    }
}

impl Fs {
    /// What is known about blocks `start..end` of the node (not empty), without asking anybody.
    pub(crate) fn known(node: &Node, start: u64, end: u64) -> Option<Seen> {
        let v = node.view.read();
        if !v.loaded || v.small {
            return None;
        }
        match v.map.cover(start, end) {
            Cover::Unknown => None,
            cover => Some(Seen { size: v.size, inline: None, small: v.small, kill: v.kill, cover }),
        }
    }

    /// The same, from the metadata where it is not known. Waits for the disk at most.
    pub(crate) fn look(&self, node: &Node, right: &Right, start: u64, end: u64) -> Result<Seen, FsError> {
        if let Some(seen) = Self::known(node, start, end) {
            return Ok(seen);
        }
        let near = start & !(STRIDE - 1);
        let seen = self.learn(node, right, near, AHEAD.max(end - near), start, end)?;
        if seen.cover == Cover::Unknown { self.learn(node, right, start, end - start, start, end) } else { Ok(seen) }
    }

    fn learn(&self, node: &Node, right: &Right, from: u64, len: u64, start: u64, end: u64) -> Result<Seen, FsError> {
        let ran = self.volume.run_given(&right.rights(node), &mut Needs::new(), Wait::No, |tx| {
            let i = inode::get(tx, node.ino)?;
            if i.mode & op::S_IFMT != op::S_IFREG {
                return Err(FsError::Invalid("not a regular file").into());
            }
            let kill = i.mode & 0o6000 != 0 || crate::data::time::has_capability(tx, node.ino, &i)?;
            let inline = match Layout::from_u8(i.layout) {
                Some(Layout::Inline) => Some(inode::body(tx, node.ino)?[..i.inline_len as usize].to_vec()),
                _ => None,
            };
            let blocks = matches!(Layout::from_u8(i.layout), Some(Layout::Extents | Layout::ExtentTree));
            let hole = Run { logical: from, len, kind: RunKind::Hole };
            let runs = if blocks { extent::map(tx, node.ino, from, len, RUNS)? } else { vec![hole] };
            let mut v = node.view.write();
            (v.loaded, v.size, v.small, v.kill) = (true, i.size, !blocks, kill);
            if blocks {
                runs.iter().for_each(|r| v.map.learn(r));
            }
            let cover = if blocks { v.map.cover(start, end) } else { clip(&hole, start, end).map_or(Cover::Unknown, Cover::One) };
            Ok(Seen { size: i.size, inline, small: !blocks, kill, cover })
        })?;
        match ran {
            Ran::Done(seen, _) => Ok(seen),
            Ran::WouldWait => Err(FsError::Invalid("reading a file's map asked for a lock")),
        }
    }
}
