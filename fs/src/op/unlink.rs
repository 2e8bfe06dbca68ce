//! Names go: of files, and of empty directories. What loses its last name becomes an orphan in the same transaction.

use super::lookup::led_to;
use super::{S_IFDIR, is_dir, parent_for_change, stamp};
use crate::error::{FsError, Step};
use crate::tx::{Effect, Tx};
use crate::{dir, inode, names, orphan};
use luna_dlm::Mode;
use luna_format::Ino;

const KIND_DIR: u8 = (S_IFDIR >> 12) as u8;

/// Removes the name of a file.
pub fn unlink(tx: &mut Tx<'_>, parent: Ino, name: &[u8]) -> Step<()> {
    dir::valid(name)?;
    parent_for_change(tx, parent)?;
    let Some(t) = dir::find(tx, parent, name)? else { return Err(FsError::NotFound.into()) };
    if t.kind == KIND_DIR {
        return Err(FsError::IsDir.into());
    }
    drop_file(tx, t.ino)?;
    dir::remove(tx, parent, name)?;
    Ok(())
}

/// Removes an empty directory.
pub fn rmdir(tx: &mut Tx<'_>, parent: Ino, name: &[u8]) -> Step<()> {
    if name == b"." {
        return Err(FsError::Invalid("rmdir of .").into());
    }
    if name == b".." {
        return Err(FsError::NotEmpty.into());
    }
    dir::valid(name)?;
    parent_for_change(tx, parent)?;
    let Some(t) = dir::find(tx, parent, name)? else { return Err(FsError::NotFound.into()) };
    if t.kind != KIND_DIR {
        return Err(FsError::NotDir.into());
    }
    drop_dir(tx, t.ino)?;
    dir::remove(tx, parent, name)?;
    inode::update(tx, parent, |p| p.nlink = p.nlink.saturating_sub(1))
}

/// One name of a file less.
pub(super) fn drop_file(tx: &mut Tx<'_>, ino: Ino) -> Step<()> {
    tx.need(names::inode(ino), Mode::Ex)?;
    let i = led_to(tx, ino)?;
    if is_dir(i.mode) || i.nlink == 0 {
        return Err(FsError::Damaged { ino, what: "a name counts a link that the inode does not have" }.into());
    }
    let now = tx.now_ns;
    inode::update(tx, ino, |i| {
        i.nlink -= 1;
        stamp(i, now);
    })?;
    tx.effect(Effect::Inode(ino));
    if i.nlink == 1 { orphan::enlist(tx, ino) } else { Ok(()) }
}

/// The only name of an empty directory goes; the caller counts the parent's links.
pub(super) fn drop_dir(tx: &mut Tx<'_>, ino: Ino) -> Step<()> {
    tx.need(names::inode(ino), Mode::Ex)?;
    led_to(tx, ino)?;
    if dir::directory(tx, ino)?.entries != 0 {
        return Err(FsError::NotEmpty.into());
    }
    let now = tx.now_ns;
    inode::update(tx, ino, |i| {
        i.nlink = 0;
        stamp(i, now);
    })?;
    tx.effect(Effect::Inode(ino));
    orphan::enlist(tx, ino)
}
