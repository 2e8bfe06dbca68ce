//! Permissions, owner and times. Sizes are the data path's business.

use super::attr::{Attr, Cred};
use super::{S_IFMT, S_ISGID, S_ISUID, S_IXGRP, is_dir, stamp};
use crate::error::Step;
use crate::tx::{Effect, Tx};
use crate::{inode, names};
use luna_dlm::Mode;
use luna_format::Ino;

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// To this host's clock.
    Now,
    /// To these nanoseconds since 1970.
    Set(i64),
}

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits; type bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<When>,
    /// Modification time.
    pub mtime: Option<When>,
    /// Change time; now, when not given. Never falls.
    pub ctime: Option<When>,
}

/// Changes attributes. A change of owner or group takes setuid, and setgid where the group may execute, from a file
/// (chown(2)), unless the caller sets the mode at the same time.
pub fn setattr(tx: &mut Tx<'_>, ino: Ino, set: &SetAttr, cred: &Cred) -> Step<Attr> {
    tx.need(names::inode(ino), Mode::Ex)?;
    if *set == SetAttr::default() {
        return super::getattr(tx, ino);
    }
    let now = tx.now_ns;
    let at = |w: When| match w {
        When::Now => now,
        When::Set(ns) => ns,
    };
    let i = inode::update(tx, ino, |i| {
        i.uid = set.uid.unwrap_or(i.uid);
        i.gid = set.gid.unwrap_or(i.gid);
        match set.mode {
            Some(mode) => {
                i.mode = (i.mode & S_IFMT) | (mode & 0o7777);
                if !is_dir(i.mode) && cred.is_outside(i.gid) {
                    i.mode &= !S_ISGID;
                }
            }
            None if (set.uid.is_some() || set.gid.is_some()) && !is_dir(i.mode) => {
                i.mode &= if i.mode & S_IXGRP != 0 { !(S_ISUID | S_ISGID) } else { !S_ISUID };
            }
            None => {}
        }
        i.atime_ns = set.atime.map_or(i.atime_ns, at);
        i.mtime_ns = set.mtime.map_or(i.mtime_ns, at);
        let changed = stamp(i, now);
        if let Some(When::Set(ns)) = set.ctime {
            i.ctime_ns = changed.max(ns);
        }
        *i
    })?;
    tx.effect(Effect::Inode(ino));
    Ok(Attr::of(ino, &i))
}
