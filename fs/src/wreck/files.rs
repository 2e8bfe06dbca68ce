//! Damage to inodes, their attributes and their extents.

use super::{Done, Named, WreckError, Wrecker};
use crate::op::{S_IFLNK, S_IFMT, S_IFREG};
use luna_format::BlockNo;
use luna_format::inode::{BODY_AT, Extent, Layout};
use luna_format::tree::{ENTRIES_AT, Entry, LEAF_EXTENTS, NodeHeader};
use luna_format::xattr::{RECORDS_AT, USED_AT, XattrHead, entries};
use luna_format::{Block, HEADER_BYTES};

/// A file with a few extents.
fn file(w: &mut Wrecker) -> Option<Named> {
    w.pick(|n| n.file(Layout::Extents))
}

/// A leaf of a file with many extents: not the last one, with its neighbours' extents on both sides.
fn leaf(w: &mut Wrecker) -> Result<Option<(Named, BlockNo)>, WreckError> {
    let Some(n) = w.pick(|n| n.file(Layout::ExtentTree) && n.inode.count > 1) else { return Ok(None) };
    Ok(w.leaves(&w.read(n.ino)?, n.inode)?.first().map(|b| (n, *b)))
}

fn extent(b: &mut Block, at: usize, n: usize, change: impl FnOnce(&mut Extent)) {
    if let Some(e) = b.view_mut::<Extent>(at + n * size_of::<Extent>()) {
        change(e);
    }
}

/// Two extents for one part of a file.
pub(crate) fn overlap(w: &mut Wrecker) -> Done {
    let Some((n, block)) = leaf(w)? else { return Ok(None) };
    w.edit(block, |b| {
        let first = b.view::<Extent>(ENTRIES_AT).map_or(0, |e| e.logical);
        extent(b, ENTRIES_AT, 1, |e| e.logical = first);
    })?;
    Ok(Some(format!("the second extent in block {block} of inode {}", n.ino)))
}

/// An extent beyond the volume.
pub(crate) fn outside(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit(n.ino, |b| extent(b, BODY_AT, 0, |e| e.physical = 1 << 50))?;
    Ok(Some(format!("the address of the first extent of inode {}", n.ino)))
}

/// An extent of no blocks.
pub(crate) fn no_length(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit(n.ino, |b| extent(b, BODY_AT, 0, |e| e.len = 0))?;
    Ok(Some(format!("the length of the first extent of inode {}", n.ino)))
}

/// An extent with a flag that nobody knows.
pub(crate) fn extent_flags(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit(n.ino, |b| extent(b, BODY_AT, 0, |e| e.flags |= 8))?;
    Ok(Some(format!("the flags of the first extent of inode {}", n.ino)))
}

/// An extent in another leaf than its own.
pub(crate) fn bounds(w: &mut Wrecker) -> Done {
    let Some((n, block)) = leaf(w)? else { return Ok(None) };
    w.edit(block, |b| {
        let last = b.view::<NodeHeader>(HEADER_BYTES).map_or(1, |h| (h.count as usize).min(LEAF_EXTENTS)).saturating_sub(1);
        extent(b, ENTRIES_AT, last, |e| e.logical = 1 << 30);
    })?;
    Ok(Some(format!("the place in the file of the last extent in block {block} of inode {}", n.ino)))
}

/// A leaf that says it is none.
pub(crate) fn level(w: &mut Wrecker) -> Done {
    let Some((n, block)) = leaf(w)? else { return Ok(None) };
    w.edit(block, |b| {
        if let Some(h) = b.view_mut::<NodeHeader>(HEADER_BYTES) {
            h.level = 3;
        }
    })?;
    Ok(Some(format!("the level of block {block} of inode {}", n.ino)))
}

/// Keys that do not ascend.
pub(crate) fn keys(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.file(Layout::ExtentTree) && n.inode.count > 2) else { return Ok(None) };
    w.edit(n.ino, |b| {
        if let Some(e) = b.view_mut::<Entry>(BODY_AT + 2 * size_of::<Entry>()) {
            e.key = 1;
        }
    })?;
    Ok(Some(format!("the third key of inode {}", n.ino)))
}

/// Two files with one block.
pub(crate) fn shared(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    let Some(other) = w.pick(|x| x.file(Layout::Extents) && x.ino != n.ino) else { return Ok(None) };
    let of = w.read(other.ino)?.view::<Extent>(BODY_AT).copied();
    let Some(theirs) = of else { return Ok(None) };
    w.edit(n.ino, |b| extent(b, BODY_AT, 0, |e| e.physical = theirs.physical + u64::from(theirs.len) - u64::from(e.len.min(theirs.len))))?;
    Ok(Some(format!("inode {} leads to blocks of inode {}", n.ino, other.ino)))
}

/// A layout that nobody knows.
pub(crate) fn layout(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.layout = 77)?;
    Ok(Some(format!("the layout of inode {}", n.ino)))
}

/// A type that nobody knows.
pub(crate) fn mode(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.mode |= S_IFMT)?;
    Ok(Some(format!("the type of inode {}", n.ino)))
}

/// Flags that nobody knows.
pub(crate) fn flags(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.flags |= 0x80)?;
    Ok(Some(format!("the flags of inode {}", n.ino)))
}

/// A symbolic link longer than its target.
pub(crate) fn size(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.inode.mode & S_IFMT == S_IFLNK) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.size += 1)?;
    Ok(Some(format!("the size of symbolic link {}", n.ino)))
}

/// A file that counts one block too many.
pub(crate) fn blocks(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.inode.mode & S_IFMT == S_IFREG) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.blocks += 1)?;
    Ok(Some(format!("the number of blocks of inode {}", n.ino)))
}

/// A file that was freed and still has a name.
pub(crate) fn freed(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.mode = 0)?;
    Ok(Some(format!("inode {} is freed", n.ino)))
}

/// A file that counts one link too many.
pub(crate) fn links(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.inode.mode & S_IFMT == S_IFREG) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.nlink += 1)?;
    Ok(Some(format!("the links of inode {}", n.ino)))
}

/// A file with a name and no links.
pub(crate) fn no_links(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.nlink = 0)?;
    Ok(Some(format!("inode {} has no links", n.ino)))
}

/// An impossible length of the attributes.
pub(crate) fn attributes(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.inode.xattr_block != 0) else { return Ok(None) };
    w.edit(n.inode.xattr_block, |b| b.0[USED_AT] ^= 3)?;
    Ok(Some(format!("the bytes in use of the attributes of inode {}", n.ino)))
}

/// One attribute twice.
pub(crate) fn attribute_twice(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.inode.xattr_block != 0) else { return Ok(None) };
    let block = n.inode.xattr_block;
    w.edit(block, |b| {
        let used = b.view::<u64>(USED_AT).copied().unwrap_or(0) as usize;
        let first = b.view::<XattrHead>(RECORDS_AT).map_or(0, |h| h.len as usize);
        debug_assert!(entries(block, &b.0[RECORDS_AT..RECORDS_AT + used]).is_ok());
        b.0.copy_within(RECORDS_AT..RECORDS_AT + first, RECORDS_AT + used);
        b.0[USED_AT..RECORDS_AT].copy_from_slice(&((used + first) as u64).to_le_bytes());
    })?;
    Ok(Some(format!("the first attribute of inode {} stands there twice", n.ino)))
}
