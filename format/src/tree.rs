//! Nodes of the two B+trees (extents of a file, names of a directory). The root lives in the inode's body; below it are
//! nodes of one block each. Interior nodes hold [`Entry`] pairs sorted by key; `key` is the smallest key below the child
//! (the leftmost entry's key counts as minus infinity).
//!
//! A node's header `owner` is the inode. Not here: splitting and merging (that is `fs`).

use crate::{BLOCK_BYTES, Block, CheckError, HEADER_BYTES, inode::Extent};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the entries of a node start.
pub const ENTRIES_AT: usize = HEADER_BYTES + 16;
/// Entries of an interior node.
pub const NODE_ENTRIES: usize = (BLOCK_BYTES - ENTRIES_AT) / size_of::<Entry>();
/// Extents of a leaf.
pub const LEAF_EXTENTS: usize = (BLOCK_BYTES - ENTRIES_AT) / size_of::<Extent>();
/// Levels below the inode that any tree may have; 251^5 leaves are beyond every volume.
pub const MAX_DEPTH: u8 = 6;

/// Fields of a tree node at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeHeader {
    /// 64: 0 = leaf, else levels below it.
    pub level: u16,
    /// 66: entries in use.
    pub count: u16,
    /// 68: bytes in use behind [`ENTRIES_AT`] (directory leaves; 0 elsewhere).
    pub used: u32,
    /// 72: zero.
    pub reserved: u64,
}
const _: () = assert!(size_of::<NodeHeader>() == 16);

/// One child of an interior node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    /// 0: smallest key below the child.
    pub key: u64,
    /// 8: the child's block.
    pub child: u64,
}
const _: () = assert!(NODE_ENTRIES == 251 && LEAF_EXTENTS == 167);

/// The node header of a block that passed [`crate::open`], bounds checked for its kind; `level` is what the caller expects.
pub fn check(b: &Block, level: u16) -> Result<NodeHeader, CheckError> {
    let h = b.header();
    let n = b.view::<NodeHeader>(HEADER_BYTES).copied().unwrap_or(NodeHeader { level: 0, count: 0, used: 0, reserved: 0 });
    let bad = |what, found| Err(CheckError::Field { block: h.block, what, found });
    if n.level != level {
        return bad("tree level", u64::from(n.level));
    }
    let cap = match (n.level, h.kind == crate::Kind::ExtentNode as u16) {
        (0, true) => LEAF_EXTENTS,
        (0, false) => BLOCK_BYTES / 24,
        _ => NODE_ENTRIES,
    };
    if n.count as usize > cap {
        return bad("tree node count", u64::from(n.count));
    }
    if n.used as usize > BLOCK_BYTES - ENTRIES_AT {
        return bad("tree leaf bytes", u64::from(n.used));
    }
    Ok(n)
}
