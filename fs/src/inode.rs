//! The inode block as operations see it: its fields, its body, its fetch.
//!
//! Invariant: what is read here was checked when it came into the cache (`format::inode::check`), and what is changed is
//! changed under the inode's EX. Not here: making and freeing inodes, what the layouts mean.

use crate::error::{Fetch, FsError, Step, Stop};
use crate::names;
use crate::tx::Tx;
use luna_format::inode::{BODY_AT, BODY_BYTES, Inode};
use luna_format::{Block, HEADER_BYTES, Ino, Kind};

/// How inode `ino` is read.
pub fn fetch_of(ino: Ino) -> Fetch {
    Fetch { block: ino, kind: Kind::Inode, owner: ino, lock: names::inode(ino) }
}

/// The fields of a live inode. Needs PR.
pub fn get(tx: &mut Tx<'_>, ino: Ino) -> Step<Inode> {
    let found = *fields(ino, tx.read(fetch_of(ino))?)?;
    if found.mode == 0 { Err(FsError::Stale.into()) } else { Ok(found) }
}

/// Changes the fields of a live inode. Needs EX.
pub fn update<R>(tx: &mut Tx<'_>, ino: Ino, f: impl FnOnce(&mut Inode) -> R) -> Step<R> {
    tx.need(names::inode(ino), luna_dlm::Mode::Ex)?;
    get(tx, ino)?;
    let block = tx.change(fetch_of(ino))?;
    let Some(fields) = block.view_mut::<Inode>(HEADER_BYTES) else { return Err(damaged(ino)) };
    Ok(f(fields))
}

/// The body of a live inode. Needs PR.
pub fn body<'a>(tx: &'a mut Tx<'_>, ino: Ino) -> Step<&'a [u8; BODY_BYTES]> {
    get(tx, ino)?;
    tx.read(fetch_of(ino))?.view::<[u8; BODY_BYTES]>(BODY_AT).ok_or_else(|| damaged(ino))
}

/// The body of a live inode, to be changed. Needs EX.
pub fn body_mut<'a>(tx: &'a mut Tx<'_>, ino: Ino) -> Step<&'a mut [u8; BODY_BYTES]> {
    tx.need(names::inode(ino), luna_dlm::Mode::Ex)?;
    get(tx, ino)?;
    tx.change(fetch_of(ino))?.view_mut::<[u8; BODY_BYTES]>(BODY_AT).ok_or_else(|| damaged(ino))
}

fn fields(ino: Ino, block: &Block) -> Step<&Inode> {
    block.view::<Inode>(HEADER_BYTES).ok_or_else(|| damaged(ino))
}

fn damaged(ino: Ino) -> Stop {
    FsError::Damaged { ino, what: "the inode block is too short" }.into()
}
