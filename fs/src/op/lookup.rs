//! A name in a directory to the attributes of what it leads to.

use super::attr::{Attr, getattr};
use crate::error::{FsError, Step, Stop};
use crate::tx::Tx;
use crate::{dir, inode};
use luna_format::Ino;
use luna_format::dir::NAME_MAX;

/// Looks a name up; `.` and `..` too.
pub fn lookup(tx: &mut Tx<'_>, parent: Ino, name: &[u8]) -> Step<Attr> {
    match name {
        b"." => {
            dir::directory(tx, parent)?;
            getattr(tx, parent)
        }
        b".." => {
            let above = dir::directory(tx, parent)?.parent;
            getattr(tx, above)
        }
        _ if name.len() > NAME_MAX => Err(FsError::NameTooLong.into()),
        _ => {
            let Some(t) = dir::find(tx, parent, name)? else { return Err(FsError::NotFound.into()) };
            let i = led_to(tx, t.ino)?;
            if i.generation != t.generation {
                return Err(FsError::Damaged { ino: t.ino, what: "a name leads to an earlier file of this number" }.into());
            }
            Ok(Attr::of(t.ino, &i))
        }
    }
}

/// The inode a stored name leads to: it must be there.
pub(super) fn led_to(tx: &mut Tx<'_>, ino: Ino) -> Step<luna_format::inode::Inode> {
    match inode::get(tx, ino) {
        Err(Stop::Error(FsError::Stale)) => Err(FsError::Damaged { ino, what: "a name leads to a freed inode" }.into()),
        other => other,
    }
}
