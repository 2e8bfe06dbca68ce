//! Inodes: one 4 KiB block each; the inode number is the block's address. 192 bytes of fields, then a 3,840-byte body that
//! holds, by `layout`, file bytes, a symlink's target, extents, the root of an extent tree, directory entries, or the root
//! of a directory tree.
//!
//! Invariant: `count` and `inline_len` fit the body for the layout; checked by [`check`]. Not here: what operations do.

use crate::{BLOCK_BYTES, Block, COUNT_MAX, CheckError, HEADER_BYTES};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Where the body starts in the block.
pub const BODY_AT: usize = 256;
/// Bytes of the body.
pub const BODY_BYTES: usize = BLOCK_BYTES - BODY_AT;
/// Extents that fit the body.
pub const INLINE_EXTENTS: usize = BODY_BYTES / size_of::<Extent>();
/// Root entries ([`crate::tree::Entry`]) that fit the body.
pub const ROOT_ENTRIES: usize = BODY_BYTES / 16;
/// The greatest file size: 2^63 - 4096 would overflow nothing; 64 TiB and far more are allowed.
pub const MAX_SIZE: u64 = 1 << 60;

/// Inode flag: no name leads here any more; listed in the orphan directory of `orphan_slot`.
pub const FLAG_ORPHAN: u32 = 1;
/// Inode flag, beside [`FLAG_ORPHAN`]: the reaper has begun to free it, so it can not be opened any more.
pub const FLAG_REAPING: u32 = 2;

/// How the body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Layout {
    /// The body is unused (an empty file, a device node, a socket).
    Empty = 0,
    /// `inline_len` bytes of file data or symlink target.
    Inline = 1,
    /// `count` extents.
    Extents = 2,
    /// `count` root entries of an extent tree of `depth` levels below the inode.
    ExtentTree = 3,
    /// `inline_len` bytes of directory entries, `count` of them.
    DirInline = 4,
    /// `count` root entries of a directory tree of `depth` levels below the inode.
    DirTree = 5,
}

impl Layout {
    /// The layout with this number.
    pub fn from_u8(n: u8) -> Option<Self> {
        [Self::Empty, Self::Inline, Self::Extents, Self::ExtentTree, Self::DirInline, Self::DirTree].into_iter().find(|l| *l as u8 == n)
    }
}

/// Inode fields, at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Inode {
    /// 64: type and permission bits as in stat(2).
    pub mode: u32,
    /// 68: links.
    pub nlink: u32,
    /// 72: owner.
    pub uid: u32,
    /// 76: group.
    pub gid: u32,
    /// 80: bytes.
    pub size: u64,
    /// 88: blocks allocated for data, tree nodes and xattrs (the inode's own not counted).
    pub blocks: u64,
    /// 96: access time, nanoseconds since 1970.
    pub atime_ns: i64,
    /// 104: modification time.
    pub mtime_ns: i64,
    /// 112: change time.
    pub ctime_ns: i64,
    /// 120: birth time.
    pub btime_ns: i64,
    /// 128: generation: differs for each file that ever had this number.
    pub generation: u64,
    /// 136: [`FLAG_ORPHAN`], [`FLAG_REAPING`].
    pub flags: u32,
    /// 140: device number of a device node.
    pub rdev: u32,
    /// 144: a [`Layout`].
    pub layout: u8,
    /// 145: levels of the tree below the inode (1 = the root entries point to leaves).
    pub depth: u8,
    /// 146: entries in the body.
    pub count: u16,
    /// 148: bytes used of the body, for `Inline` and `DirInline`.
    pub inline_len: u32,
    /// 152: block of the extended attributes, 0 = none.
    pub xattr_block: u64,
    /// 160: of a directory: its parent.
    pub parent: u64,
    /// 168: slot whose orphan directory lists it, when [`FLAG_ORPHAN`] is set.
    pub orphan_slot: u32,
    /// 172: zero.
    pub zero: u32,
    /// 176: of a directory: its entries.
    pub entries: u64,
    /// 184: zero; room for shared extents, quotas, snapshots.
    pub reserved: [u64; 9],
}
const _: () = assert!(size_of::<Inode>() == BODY_AT - HEADER_BYTES);
const _: () = assert!(INLINE_EXTENTS == 160);

impl Inode {
    /// An inode of zeroes.
    pub fn empty() -> Self {
        Self::new_zeroed()
    }
}

/// Blocks were allocated but never written: they read as zeroes.
pub const EXTENT_UNWRITTEN: u32 = 1;
/// Blocks are shared with other files (reserved; not written by this version).
pub const EXTENT_SHARED: u32 = 2;

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extent {
    /// 0: first block within the file.
    pub logical: u64,
    /// 8: first block on the volume.
    pub physical: u64,
    /// 16: blocks, at least 1.
    pub len: u32,
    /// 20: [`EXTENT_UNWRITTEN`], [`EXTENT_SHARED`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Extent>() == 24);

impl Extent {
    /// First logical block after the run.
    pub fn end(&self) -> u64 {
        self.logical.saturating_add(u64::from(self.len))
    }

    /// Whether it reads as zeroes.
    pub fn unwritten(&self) -> bool {
        self.flags & EXTENT_UNWRITTEN != 0
    }
}

/// The inode fields of a block that passed [`crate::open`], with the bounds of the body checked.
pub fn check(b: &Block) -> Result<Inode, CheckError> {
    let block = b.header().block;
    let ino = b.view::<Inode>(HEADER_BYTES).copied().unwrap_or_else(Inode::new_zeroed);
    let bad = |what, found| Err(CheckError::Field { block, what, found });
    let Some(layout) = Layout::from_u8(ino.layout) else { return bad("inode layout", u64::from(ino.layout)) };
    let count = ino.count as usize;
    let fits = match layout {
        Layout::Empty => true,
        Layout::Inline => ino.inline_len as usize <= BODY_BYTES,
        // a record has 40 bytes at least
        Layout::DirInline => ino.inline_len as usize <= BODY_BYTES && count <= BODY_BYTES / 40,
        Layout::Extents => count <= INLINE_EXTENTS,
        Layout::ExtentTree | Layout::DirTree => (1..=ROOT_ENTRIES).contains(&count) && (1..=crate::tree::MAX_DEPTH).contains(&ino.depth),
    };
    if !fits {
        return bad("inode body count", u64::from(ino.count).max(u64::from(ino.inline_len)));
    }
    if ino.size > MAX_SIZE {
        return bad("inode size", ino.size);
    }
    if let Some((what, n)) = [("inode blocks", ino.blocks), ("inode entries", ino.entries)].into_iter().find(|(_, n)| *n > COUNT_MAX) {
        return bad(what, n);
    }
    let dir = ino.mode & 0o170_000 == 0o040_000;
    if dir != matches!(layout, Layout::DirInline | Layout::DirTree) {
        return bad("inode layout for its mode", u64::from(ino.layout));
    }
    Ok(ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// One more name, or one more block, in such a directory was a panic, or none at all.
    #[test]
    fn counters_that_nobody_counted_to_are_refused() {
        let with = |change: fn(&mut Inode)| {
            let mut i = Inode { mode: 0o040_755, layout: Layout::DirInline as u8, ..Inode::empty() };
            change(&mut i);
            let mut b = Block::zeroed();
            b.0[HEADER_BYTES..BODY_AT].copy_from_slice(i.as_bytes());
            check(&b).is_ok()
        };
        assert!(with(|i| (i.count, i.entries, i.blocks) = (96, COUNT_MAX, COUNT_MAX)));
        assert!(!with(|i| i.count = 97));
        assert!(!with(|i| i.entries = u64::MAX));
        assert!(!with(|i| i.blocks = u64::MAX));
    }
}
