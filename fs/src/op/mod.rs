//! Operation bodies, one file each: plain functions over a [`Tx`] that may be run any number of times and
//! have no effect until they return `Ok`.
//!
//! Invariant: a body names the rights it needs before it looks, exclusive ones first, so that it restarts early. Not here:
//! permission bits (the kernel checks them, `default_permissions`), sizes and data (the data path), xattrs.

pub mod attr;
mod create;
mod link;
mod lookup;
mod readdir;
mod rename;
mod setattr;
mod symlink;
mod unlink;

pub use attr::{Attr, Cred, getattr};
pub use create::{create, mkdir};
pub use link::link;
pub use lookup::lookup;
pub use readdir::{COOKIE_DOT, COOKIE_DOT_DOT, DirEntry, readdir};
pub use rename::{RENAME_EXCHANGE, RENAME_NOREPLACE, rename};
pub use setattr::{SetAttr, When, setattr};
pub use symlink::{TARGET_MAX, readlink, symlink};
pub use unlink::{rmdir, unlink};

use crate::error::{FsError, Step};
use crate::tx::Tx;
use crate::{dir, names};
use luna_dlm::Mode;
use luna_format::Ino;
use luna_format::inode::Inode;

/// Links one file may have.
pub const LINK_MAX: u32 = 1 << 20;

/// File type bits of a mode.
pub const S_IFMT: u32 = 0o170_000;
/// Directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o0010;

/// Whether the mode is a directory's.
pub fn is_dir(mode: u32) -> bool {
    mode & S_IFMT == S_IFDIR
}

/// Stamps a change: the change time always grows, even where the clocks of two hosts disagree. Returns the time.
pub fn stamp(i: &mut Inode, now_ns: i64) -> i64 {
    i.ctime_ns = now_ns.max(i.ctime_ns.saturating_add(1));
    i.ctime_ns
}

/// A directory in which names are about to change: EX, and still part of the tree.
fn parent_for_change(tx: &mut Tx<'_>, parent: Ino) -> Step<Inode> {
    tx.need(names::inode(parent), Mode::Ex)?;
    let p = dir::directory(tx, parent)?;
    if p.nlink == 0 { Err(FsError::NotFound.into()) } else { Ok(p) }
}

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod tests;
