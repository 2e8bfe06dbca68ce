//! Directories: names to inodes. Small ones live in their inode's body, larger ones in a B+tree on the name's hash.
//!
//! Invariants: records are sorted by (hash, name); equal hashes share one leaf, so that a hash serves as readdir position;
//! a directory without entries owns no blocks; everything lies under the directory's own lock. `entries`, `size` (bytes of
//! all records) and the times of the directory's inode follow each change. Not here: `.` and `..`, links, permissions.

pub(crate) mod records;
mod tree;

pub use records::Target;

use crate::error::{FsError, Step};
use crate::inode;
use crate::op::stamp;
use crate::tx::{Effect, Tx};
use luna_format::Ino;
use luna_format::dir::{Dirent, entries, hash, name_ok, record_bytes};
use luna_format::inode::{BODY_BYTES, Inode, Layout};
use records::Place;

/// One entry as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Hash of the name: its place in the order of the directory.
    pub hash: u64,
    /// Where it leads.
    pub target: Target,
    /// The name.
    pub name: Vec<u8>,
}

impl Listed {
    fn from(e: &Dirent<'_>) -> Self {
        let target = Target { ino: e.head.ino, generation: e.head.generation, kind: e.head.kind };
        Self { hash: e.head.hash, target, name: e.name.to_vec() }
    }
}

/// The inode of a directory that is in use; ENOTDIR for anything else.
pub fn directory(tx: &mut Tx<'_>, dir: Ino) -> Step<Inode> {
    let i = inode::get(tx, dir)?;
    match Layout::from_u8(i.layout) {
        Some(Layout::DirInline | Layout::DirTree) => Ok(i),
        _ => Err(FsError::NotDir.into()),
    }
}

/// Whether a user may give this name to something.
pub fn valid(name: &[u8]) -> Step<()> {
    if name.len() > luna_format::dir::NAME_MAX {
        return Err(FsError::NameTooLong.into());
    }
    if !name_ok(name) {
        return Err(FsError::Invalid("file name").into());
    }
    Ok(())
}

/// Looks a name up.
pub fn find(tx: &mut Tx<'_>, dir: Ino, name: &[u8]) -> Step<Option<Target>> {
    let hash = hash(&tx.sb.hash_key, name);
    find_hashed(tx, dir, hash, name)
}

fn find_hashed(tx: &mut Tx<'_>, dir: Ino, hash: u64, name: &[u8]) -> Step<Option<Target>> {
    let i = directory(tx, dir)?;
    let place = if is_tree(&i) {
        let path = tree::descend(tx, dir, &i, hash)?;
        records::find(path.leaf, tree::leaf(tx, dir, path.leaf)?, hash, name)?
    } else {
        records::find(dir, &inode::body(tx, dir)?[..i.inline_len as usize], hash, name)?
    };
    Ok(match place {
        Place::At(_, t) => Some(t),
        Place::Before(_) => None,
    })
}

/// Adds a name; EEXIST when it is there.
pub fn insert(tx: &mut Tx<'_>, dir: Ino, name: &[u8], t: &Target) -> Step<()> {
    valid(name)?;
    let hash = hash(&tx.sb.hash_key, name);
    insert_hashed(tx, dir, hash, name, t)
}

fn insert_hashed(tx: &mut Tx<'_>, dir: Ino, hash: u64, name: &[u8], t: &Target) -> Step<()> {
    let i = directory(tx, dir)?;
    let record = records::record(hash, name, t);
    if is_tree(&i) {
        tree::insert(tx, dir, hash, name, &record)?;
    } else {
        let used = i.inline_len as usize;
        let body = inode::body_mut(tx, dir)?;
        let Place::Before(at) = records::find(dir, &body[..used], hash, name)? else { return Err(FsError::Exists.into()) };
        if used + record.len() <= BODY_BYTES {
            let used = records::put(&mut body[..], used, at, &record);
            inode::update(tx, dir, |i| (i.inline_len, i.count) = (used as u32, i.count + 1))?;
        } else {
            tree::plant(tx, dir)?;
            tree::insert(tx, dir, hash, name, &record)?;
        }
    }
    touch(tx, dir, |i| {
        i.entries += 1;
        i.size += record.len() as u64;
    })
}

/// Lets a name that is there lead elsewhere; never needs space.
pub fn replace(tx: &mut Tx<'_>, dir: Ino, name: &[u8], t: &Target) -> Step<()> {
    let i = directory(tx, dir)?;
    let hash = hash(&tx.sb.hash_key, name);
    if is_tree(&i) {
        let path = tree::descend(tx, dir, &i, hash)?;
        let (area, used) = tree::leaf_mut(tx, dir, path.leaf)?;
        let Place::At(at, _) = records::find(path.leaf, &area[..used], hash, name)? else { return Err(FsError::NotFound.into()) };
        records::point(area, at, t);
    } else {
        let body = inode::body_mut(tx, dir)?;
        let found = records::find(dir, &body[..i.inline_len as usize], hash, name)?;
        let Place::At(at, _) = found else { return Err(FsError::NotFound.into()) };
        records::point(&mut body[..], at, t);
    }
    touch(tx, dir, |_| ())
}

/// Takes a name out; ENOENT when it is not there.
pub fn remove(tx: &mut Tx<'_>, dir: Ino, name: &[u8]) -> Step<Target> {
    let hash = hash(&tx.sb.hash_key, name);
    remove_hashed(tx, dir, hash, name)
}

fn remove_hashed(tx: &mut Tx<'_>, dir: Ino, hash: u64, name: &[u8]) -> Step<Target> {
    let i = directory(tx, dir)?;
    let target = if is_tree(&i) {
        tree::remove(tx, dir, hash, name)?
    } else {
        let used = i.inline_len as usize;
        let body = inode::body_mut(tx, dir)?;
        let Place::At(at, t) = records::find(dir, &body[..used], hash, name)? else { return Err(FsError::NotFound.into()) };
        let used = records::take(&mut body[..], used, at);
        inode::update(tx, dir, |i| (i.inline_len, i.count) = (used as u32, i.count.saturating_sub(1)))?;
        t
    };
    touch(tx, dir, |i| {
        i.entries = i.entries.saturating_sub(1);
        i.size = i.size.saturating_sub(record_bytes(name.len()) as u64);
    })?;
    Ok(target)
}

/// Entries in hash order with a hash above `after`: at least `max` of them if there are that many, and never a part of the
/// entries of one hash.
pub fn list(tx: &mut Tx<'_>, dir: Ino, after: u64, max: usize) -> Step<Vec<Listed>> {
    let i = directory(tx, dir)?;
    let mut out = Vec::new();
    if !is_tree(&i) {
        let body = inode::body(tx, dir)?;
        collect(dir, &body[..i.inline_len as usize], after, max, &mut out)?;
        return Ok(out);
    }
    let mut from = after;
    loop {
        let path = tree::descend(tx, dir, &i, from)?;
        collect(path.leaf, tree::leaf(tx, dir, path.leaf)?, after, max, &mut out)?;
        match path.upper {
            Some(upper) if upper > from && out.len() < max => from = upper,
            Some(upper) if upper <= from => return Err(damaged(dir, "directory tree out of order").into()),
            _ => return Ok(out),
        }
    }
}

fn collect(block: u64, used: &[u8], after: u64, max: usize, out: &mut Vec<Listed>) -> Step<()> {
    for e in entries(block, used) {
        let e = e?;
        if out.len() >= max && out.last().is_some_and(|l| l.hash != e.head.hash) {
            return Ok(());
        }
        if e.head.hash > after {
            out.push(Listed::from(&e));
        }
    }
    Ok(())
}

/// Forgets all entries of a directory that no name leads to, at most `leaves` leaves of them; true when nothing is left.
pub fn clear(tx: &mut Tx<'_>, dir: Ino, leaves: usize) -> Step<bool> {
    for _ in 0..leaves {
        if !is_tree(&directory(tx, dir)?) {
            break;
        }
        tree::drop_last(tx, dir)?;
    }
    if is_tree(&directory(tx, dir)?) {
        return Ok(false);
    }
    tree::make_inline(tx, dir, &[], 0)?;
    inode::update(tx, dir, |i| (i.entries, i.size) = (0, 0))?;
    Ok(true)
}

fn touch(tx: &mut Tx<'_>, dir: Ino, change: impl FnOnce(&mut Inode)) -> Step<()> {
    let now = tx.now_ns;
    inode::update(tx, dir, |i| {
        change(i);
        i.mtime_ns = stamp(i, now);
    })?;
    tx.effect(Effect::Inode(dir));
    Ok(())
}

fn is_tree(i: &Inode) -> bool {
    i.layout == Layout::DirTree as u8
}

fn damaged(ino: Ino, what: &'static str) -> FsError {
    FsError::Damaged { ino, what }
}

#[cfg(test)]
mod tests;
