//! A further name for a file.

use super::attr::Attr;
use super::{LINK_MAX, is_dir, parent_for_change, stamp};
use crate::dir::{self, Target};
use crate::error::{FsError, Step};
use crate::tx::{Effect, Tx};
use crate::{inode, names};
use luna_dlm::Mode;
use luna_format::Ino;

/// Gives `ino` the name `name` in `parent`.
pub fn link(tx: &mut Tx<'_>, ino: Ino, parent: Ino, name: &[u8]) -> Step<Attr> {
    dir::valid(name)?;
    tx.need(names::inode(ino), Mode::Ex)?;
    let i = inode::get(tx, ino)?;
    if is_dir(i.mode) {
        return Err(FsError::Permission.into());
    }
    parent_for_change(tx, parent)?;
    if i.nlink == 0 {
        // its last name is gone; only the open file keeps it
        return Err(FsError::NotFound.into());
    }
    if i.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    dir::insert(tx, parent, name, &Target { ino, generation: i.generation, kind: (i.mode >> 12) as u8 })?;
    let now = tx.now_ns;
    let i = inode::update(tx, ino, |i| {
        i.nlink += 1;
        stamp(i, now);
        *i
    })?;
    tx.effect(Effect::Inode(ino));
    Ok(Attr::of(ino, &i))
}
