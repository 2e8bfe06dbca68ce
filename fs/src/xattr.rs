//! Extended attributes: one block per inode, all of its names and values, stored as they came.
//!
//! Names: `user.`, `trusted.`, `security.`; who may touch which is the kernel's business. An inode without attributes has no
//! block. The block lies under the inode's lock. Not here: POSIX ACLs, which are refused: one that was stored and not enforced
//! would keep nobody out (T7).

use crate::error::{Fetch, FsError, Step};
use crate::op::stamp;
use crate::tx::{Effect, Tx};
use crate::{alloc, inode, names};
use luna_dlm::Mode;
use luna_format::inode::Inode;
use luna_format::xattr::{RECORDS_AT, RECORDS_BYTES, USED_AT, entries, push, record_bytes};
use luna_format::{Ino, Kind};

/// The longest name.
pub const NAME_MAX: usize = 255;
/// Fail with EEXIST when the attribute is there.
pub const CREATE: u32 = 1;
/// Fail with ENODATA when it is not.
pub const REPLACE: u32 = 2;

fn fetch(ino: Ino, block: u64) -> Fetch {
    Fetch { block, kind: Kind::Xattr, owner: ino, lock: names::inode(ino) }
}

fn valid(name: &[u8]) -> Step<()> {
    if name.is_empty() || name.contains(&0) {
        return Err(FsError::Invalid("attribute name").into());
    }
    if name.len() > NAME_MAX {
        return Err(FsError::Range.into());
    }
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if spaces.iter().any(|s| name.starts_with(s) && name.len() > s.len()) {
        return Ok(());
    }
    Err(FsError::NotSupported("attribute name space").into())
}

/// The records of an inode's block; empty when it has none.
fn records<'t>(tx: &'t mut Tx<'_>, ino: Ino, i: &Inode) -> Step<&'t [u8]> {
    if i.xattr_block == 0 {
        return Ok(&[]);
    }
    let b = tx.read(fetch(ino, i.xattr_block))?;
    let used = b.view::<u64>(USED_AT).copied().unwrap_or(0);
    if used == 0 || used > RECORDS_BYTES as u64 {
        return Err(FsError::Damaged { ino, what: "extended attributes: bytes in use" }.into());
    }
    Ok(&b.0[RECORDS_AT..RECORDS_AT + used as usize])
}

/// The value of an attribute.
pub fn get(tx: &mut Tx<'_>, ino: Ino, name: &[u8]) -> Step<Vec<u8>> {
    valid(name)?;
    let i = inode::get(tx, ino)?;
    let bytes = records(tx, ino, &i)?;
    let found = entries(i.xattr_block, bytes)?.into_iter().find(|(n, _)| *n == name);
    found.map(|(_, v)| v.to_vec()).ok_or_else(|| FsError::NoAttribute.into())
}

/// All names, each followed by a NUL.
pub fn list(tx: &mut Tx<'_>, ino: Ino) -> Step<Vec<u8>> {
    let i = inode::get(tx, ino)?;
    let bytes = records(tx, ino, &i)?;
    let mut out = Vec::new();
    for (name, _) in entries(i.xattr_block, bytes)? {
        out.extend_from_slice(name);
        out.push(0);
    }
    Ok(out)
}

/// Sets an attribute. ENOSPC when the inode's attributes would not fit their block.
pub fn set(tx: &mut Tx<'_>, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Step<()> {
    valid(name)?;
    if flags & !(CREATE | REPLACE) != 0 {
        return Err(FsError::Invalid("setxattr flags").into());
    }
    tx.need(names::inode(ino), Mode::Ex)?;
    let i = inode::get(tx, ino)?;
    let (mut out, there) = without(tx, ino, &i, name)?;
    if there && flags & CREATE != 0 {
        return Err(FsError::Exists.into());
    }
    if !there && flags & REPLACE != 0 {
        return Err(FsError::NoAttribute.into());
    }
    if out.len() + record_bytes(name.len(), value.len()) > RECORDS_BYTES {
        return Err(FsError::NoSpace.into());
    }
    push(&mut out, name, value);
    store(tx, ino, &i, &out)
}

/// Removes an attribute; the block goes with the last one.
pub fn remove(tx: &mut Tx<'_>, ino: Ino, name: &[u8]) -> Step<()> {
    valid(name)?;
    tx.need(names::inode(ino), Mode::Ex)?;
    let i = inode::get(tx, ino)?;
    let (out, there) = without(tx, ino, &i, name)?;
    if !there {
        return Err(FsError::NoAttribute.into());
    }
    store(tx, ino, &i, &out)
}

fn without(tx: &mut Tx<'_>, ino: Ino, i: &Inode, name: &[u8]) -> Step<(Vec<u8>, bool)> {
    let bytes = records(tx, ino, i)?;
    let (mut out, mut there) = (Vec::with_capacity(RECORDS_BYTES), false);
    for (n, v) in entries(i.xattr_block, bytes)? {
        if n == name {
            there = true;
        } else {
            push(&mut out, n, v);
        }
    }
    Ok((out, there))
}

fn store(tx: &mut Tx<'_>, ino: Ino, i: &Inode, records: &[u8]) -> Step<()> {
    let now = tx.now_ns;
    tx.effect(Effect::Inode(ino));
    if records.is_empty() {
        free(tx, ino, i)?;
        return inode::update(tx, ino, |i| stamp(i, now)).map(|_| ());
    }
    let (block, b) = if i.xattr_block == 0 {
        let (block, floor) = alloc::meta_block(tx, ino)?;
        (block, tx.create(fetch(ino, block), floor)?)
    } else {
        (i.xattr_block, tx.change(fetch(ino, i.xattr_block))?)
    };
    b.0[USED_AT..RECORDS_AT].copy_from_slice(&(records.len() as u64).to_le_bytes());
    b.0[RECORDS_AT..RECORDS_AT + records.len()].copy_from_slice(records);
    b.0[RECORDS_AT + records.len()..].fill(0);
    let fresh = i.xattr_block == 0;
    inode::update(tx, ino, |i| {
        i.xattr_block = block;
        i.blocks += u64::from(fresh);
        stamp(i, now);
    })
}

/// Frees the attributes' block of an inode, if it has one.
pub(crate) fn free(tx: &mut Tx<'_>, ino: Ino, i: &Inode) -> Step<()> {
    if i.xattr_block == 0 {
        return Ok(());
    }
    // read first: what the cache has of the address may be left over from another life of it, with an older version
    tx.read(fetch(ino, i.xattr_block))?;
    alloc::free_meta(tx, i.xattr_block)?;
    inode::update(tx, ino, |i| (i.xattr_block, i.blocks) = (0, i.blocks.saturating_sub(1)))
}
