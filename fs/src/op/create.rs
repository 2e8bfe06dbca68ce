//! New files, device nodes, pipes, sockets and directories.
//!
//! The inode's number is the block the allocator picks, which is the same at each run as long as nobody else takes it; its
//! right is asked for after the pick. The generation is the block's first version, which no earlier file of it had.

use super::attr::{Attr, Cred};
use super::{LINK_MAX, S_IFMT, S_IFREG, S_ISGID, is_dir, parent_for_change};
use crate::dir::Target;
use crate::error::{FsError, Step};
use crate::tx::{Effect, Tx};
use crate::{alloc, dir, inode, names};
use luna_dlm::Mode;
use luna_format::inode::{Inode, Layout};
use luna_format::{HEADER_BYTES, Ino};

/// Makes a regular file (also when `mode` has no type), pipe, socket or device node; EEXIST when the name is taken.
pub fn create(tx: &mut Tx<'_>, parent: Ino, name: &[u8], mode: u32, rdev: u32, cred: &Cred) -> Step<Attr> {
    let kind = if mode & S_IFMT == 0 { S_IFREG } else { mode & S_IFMT };
    let rdev = match kind {
        S_IFREG | 0o010_000 | 0o140_000 => 0,
        0o020_000 | 0o060_000 => rdev,
        _ => return Err(FsError::Invalid("file type").into()),
    };
    let mode = kind | (mode & 0o7777 & !cred.umask);
    make(tx, parent, name, mode, cred, |i| i.rdev = rdev)
}

/// Makes a directory.
pub fn mkdir(tx: &mut Tx<'_>, parent: Ino, name: &[u8], mode: u32, cred: &Cred) -> Step<Attr> {
    let attr = make(tx, parent, name, super::S_IFDIR | (mode & 0o7777 & !cred.umask), cred, |i| {
        (i.nlink, i.parent, i.layout) = (2, parent, Layout::DirInline as u8);
    })?;
    inode::update(tx, parent, |p| p.nlink += 1)?;
    Ok(attr)
}

/// A new inode under a new name; `init` sets what is special to its type.
pub(super) fn make(tx: &mut Tx<'_>, parent: Ino, name: &[u8], mode: u32, cred: &Cred, init: impl FnOnce(&mut Inode)) -> Step<Attr> {
    dir::valid(name)?;
    let p = parent_for_change(tx, parent)?;
    if dir::find(tx, parent, name)?.is_some() {
        return Err(FsError::Exists.into());
    }
    if is_dir(mode) && p.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    let near = if is_dir(mode) { spread(tx, parent) } else { parent };
    let (ino, floor) = alloc::meta_block(tx, near)?;
    tx.need(names::inode(ino), Mode::Ex)?;
    let now = tx.now_ns;
    let mut i = Inode::empty();
    (i.mode, i.nlink, i.uid, i.gid) = (mode, 1, cred.uid, cred.gid);
    (i.atime_ns, i.mtime_ns, i.ctime_ns, i.btime_ns) = (now, now, now, now);
    i.generation = floor + 1;
    i.layout = Layout::Empty as u8;
    if p.mode & S_ISGID != 0 {
        i.gid = p.gid;
        i.mode |= if is_dir(mode) { S_ISGID } else { 0 };
    }
    init(&mut i);
    let block = tx.create(inode::fetch_of(ino), floor)?;
    *block.view_mut::<Inode>(HEADER_BYTES).ok_or(FsError::Invalid("inode block"))? = i;
    dir::insert(tx, parent, name, &Target { ino, generation: i.generation, kind: (mode >> 12) as u8 })?;
    tx.effect(Effect::Inode(ino));
    Ok(Attr::of(ino, &i))
}

/// Where a new directory goes: with its parent, unless that group is filling up; then to the next one that is not.
fn spread(tx: &Tx<'_>, parent: Ino) -> Ino {
    let Some(home) = tx.sb.ag_of(parent) else { return parent };
    let roomy = |ag: u64| tx.meta.hints.free(ag).is_none_or(|free| free > tx.sb.ag_region(ag).1 / 8);
    if roomy(home) {
        return parent;
    }
    let next = (1..tx.sb.ag_count.min(64)).map(|n| (home + n) % tx.sb.ag_count).find(|ag| roomy(*ag));
    next.map_or(parent, |ag| tx.sb.ag_region(ag).0)
}
