//! Damage to whole blocks: what rot, torn, lost and misdirected writes leave.

use super::{Done, Named, Wrecker};
use luna_format::inode::{BODY_AT, Layout};
use luna_format::superblock::Superblock;
use luna_format::{Block, Kind, Stamp, seal};

fn victim(w: &mut Wrecker) -> Option<Named> {
    w.pick(|n| n.file(Layout::Extents))
}

/// One bit of an inode, in the unused part of its body.
pub(crate) fn torn(w: &mut Wrecker) -> Done {
    let Some(n) = victim(w) else { return Ok(None) };
    let mut b = w.read(n.ino)?;
    let free = BODY_AT + 2000;
    let at = free + w.below((b.0.len() - free) as u64) as usize;
    b.0[at] ^= 1 << w.below(8);
    w.write(n.ino, &b)?;
    Ok(Some(format!("a bit of byte {at} of inode {}", n.ino)))
}

/// An inode of zeroes.
pub(crate) fn wiped(w: &mut Wrecker) -> Done {
    let Some(n) = victim(w) else { return Ok(None) };
    w.write(n.ino, &Block::zeroed())?;
    Ok(Some(format!("inode {} is zeroes", n.ino)))
}

/// A whole block of another kind where an inode was.
pub(crate) fn other_kind(w: &mut Wrecker) -> Done {
    let Some(n) = victim(w) else { return Ok(None) };
    let b = w.read(n.ino)?;
    let version = b.header().version + 1;
    w.put(n.ino, Kind::Xattr, n.ino, version, b)?;
    Ok(Some(format!("inode {} is a block of attributes", n.ino)))
}

/// An inode of another volume.
pub(crate) fn other_volume(w: &mut Wrecker) -> Done {
    let Some(n) = victim(w) else { return Ok(None) };
    let mut b = w.read(n.ino)?;
    let (version, mut volume) = (b.header().version, w.id);
    volume[0] ^= 0xff;
    seal(&mut b, &Stamp { kind: Kind::Inode, volume, block: n.ino, owner: n.ino, version, writer: 0, epoch: 0 });
    w.write(n.ino, &b)?;
    Ok(Some(format!("inode {} belongs to another volume", n.ino)))
}

/// An inode over another one.
pub(crate) fn misdirected(w: &mut Wrecker) -> Done {
    let Some(n) = victim(w) else { return Ok(None) };
    let Some(other) = w.pick(|x| x.ino != n.ino) else { return Ok(None) };
    let b = w.read(other.ino)?;
    w.write(n.ino, &b)?;
    Ok(Some(format!("inode {} was written over inode {}", other.ino, n.ino)))
}

/// Attributes of another inode.
pub(crate) fn other_owner(w: &mut Wrecker) -> Done {
    let Some(n) = w.pick(|n| n.inode.xattr_block != 0) else { return Ok(None) };
    let at = n.inode.xattr_block;
    let b = w.read(at)?;
    let version = b.header().version + 1;
    w.put(at, Kind::Xattr, w.sb.root_ino, version, b)?;
    Ok(Some(format!("the attributes of inode {} (block {at}) belong to inode {}", n.ino, w.sb.root_ino)))
}

/// An inode of a layout that is not known yet.
pub(crate) fn future(w: &mut Wrecker) -> Done {
    let Some(n) = victim(w) else { return Ok(None) };
    let mut b = w.read(n.ino)?;
    b.0[10] = 2;
    luna_format::block::reseal(&mut b);
    w.write(n.ino, &b)?;
    Ok(Some(format!("inode {} has layout version 2", n.ino)))
}

/// One copy of the superblock.
pub(crate) fn copy_gone(w: &mut Wrecker) -> Done {
    let block = w.sb.copies()[w.below(3) as usize];
    w.write(block, &Block::zeroed())?;
    Ok(Some(format!("the superblock copy at block {block} is zeroes")))
}

/// A copy of the superblock as it never was.
pub(crate) fn copy_old(w: &mut Wrecker) -> Done {
    let block = w.sb.copies()[1];
    let sb = Superblock { label: [b'x'; 64], ..w.sb };
    w.write(block, &sb.seal(w.id, block, 0))?;
    Ok(Some(format!("the superblock copy at block {block} is an old one")))
}
