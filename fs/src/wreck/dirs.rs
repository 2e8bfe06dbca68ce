//! Damage to names: records, directory trees, lists of orphans.

use super::{Done, Named, Wrecker};
use crate::op::{S_IFDIR, S_IFMT, S_IFREG};
use crate::orphan::list_name;
use luna_format::dir::{entries, hash as hash_of, push};
use luna_format::inode::{BODY_AT, FLAG_ORPHAN, Inode, Layout};
use luna_format::tree::{ENTRIES_AT, Entry, NodeHeader};
use luna_format::{BlockNo, HEADER_BYTES, Ino};

/// A file with one name.
fn file(w: &mut Wrecker) -> Option<Named> {
    w.pick(|n| n.inode.mode & S_IFMT == S_IFREG && n.inode.nlink == 1)
}

/// A file in a small directory.
fn in_body(w: &mut Wrecker) -> Option<Named> {
    let small: Vec<Ino> = w.names.iter().filter(|n| n.is(S_IFDIR, Layout::DirInline)).map(|n| n.ino).chain([w.sb.root_ino]).collect();
    w.pick(|n| n.inode.mode & S_IFMT == S_IFREG && n.inode.nlink == 1 && small.contains(&n.dir))
}

/// A directory of this layout below the root.
fn directory(w: &mut Wrecker, layout: Layout) -> Option<Named> {
    w.pick(|n| n.is(S_IFDIR, layout))
}

/// A leaf of a large directory.
fn leaf(w: &mut Wrecker) -> Result<Option<(Named, BlockNo)>, super::WreckError> {
    let Some(d) = directory(w, Layout::DirTree) else { return Ok(None) };
    let all = w.leaves(&w.read(d.ino)?, d.inode)?;
    let n = w.below(all.len() as u64) as usize;
    Ok(all.get(n).map(|b| (d, *b)))
}

/// A record without a sound length.
pub(crate) fn record(w: &mut Wrecker) -> Done {
    let Some(n) = in_body(w) else { return Ok(None) };
    w.edit_record(&n, |h| h.len = 7)?;
    Ok(Some(format!("the length of the record of inode {} in directory {}", n.ino, n.dir)))
}

/// A record under the hash of no name.
pub(crate) fn hash(w: &mut Wrecker) -> Done {
    let Some(n) = in_body(w) else { return Ok(None) };
    w.edit_record(&n, |h| h.hash ^= 1)?;
    Ok(Some(format!("the hash of the name of inode {} in directory {}", n.ino, n.dir)))
}

/// The first record of a leaf behind the last.
pub(crate) fn order(w: &mut Wrecker) -> Done {
    let Some((d, block)) = leaf(w)? else { return Ok(None) };
    w.edit(block, |b| {
        let used = b.view::<NodeHeader>(HEADER_BYTES).map_or(0, |h| h.used as usize);
        let first = entries(block, &b.0[ENTRIES_AT..ENTRIES_AT + used]).flatten().next().map_or(0, |e| e.head.len as usize);
        b.0[ENTRIES_AT..ENTRIES_AT + used].rotate_left(first);
    })?;
    Ok(Some(format!("the order of the records in block {block} of directory {}", d.ino)))
}

/// A key above what is below it.
pub(crate) fn bounds(w: &mut Wrecker) -> Done {
    let Some(d) = w.pick(|n| n.is(S_IFDIR, Layout::DirTree) && n.inode.count > 1) else { return Ok(None) };
    let (block, key) = leaf_key(w, d, 1)?;
    // one more than the first hash of the leaf: that record is out of bounds, all others are not
    w.edit(d.ino, |b| {
        if let Some(e) = b.view_mut::<Entry>(BODY_AT + size_of::<Entry>()) {
            e.key = key + 1;
        }
    })?;
    Ok(Some(format!("the key that leads to block {block} of directory {}", d.ino)))
}

/// The `n`-th leaf of a directory with one level, and its first hash.
fn leaf_key(w: &Wrecker, d: Named, n: usize) -> Result<(BlockNo, u64), super::WreckError> {
    let block = w.leaves(&w.read(d.ino)?, d.inode)?.get(n).copied().unwrap_or(0);
    let b = w.read(block)?;
    let first = entries(block, &b.0[ENTRIES_AT..]).flatten().next().map_or(0, |e| e.head.hash);
    Ok((block, first))
}

/// A leaf that says it is none.
pub(crate) fn level(w: &mut Wrecker) -> Done {
    let Some((d, block)) = leaf(w)? else { return Ok(None) };
    w.edit(block, |b| {
        if let Some(h) = b.view_mut::<NodeHeader>(HEADER_BYTES) {
            h.level = 1;
        }
    })?;
    Ok(Some(format!("the level of block {block} of directory {}", d.ino)))
}

/// Keys that do not ascend.
pub(crate) fn keys(w: &mut Wrecker) -> Done {
    let Some(d) = w.pick(|n| n.is(S_IFDIR, Layout::DirTree) && n.inode.count > 2) else { return Ok(None) };
    w.edit(d.ino, |b| {
        if let Some(e) = b.view_mut::<Entry>(BODY_AT + 2 * size_of::<Entry>()) {
            e.key = 1;
        }
    })?;
    Ok(Some(format!("the third key of directory {}", d.ino)))
}

/// A name that leads out of the groups.
pub(crate) fn nowhere(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_record(&n, |h| h.ino = 3)?;
    Ok(Some(format!("the name of inode {} in directory {} leads to block 3", n.ino, n.dir)))
}

/// A name of another life of its inode.
pub(crate) fn generation(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_record(&n, |h| h.generation += 1)?;
    Ok(Some(format!("the generation in the name of inode {}", n.ino)))
}

/// A name with another type.
pub(crate) fn kind(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    w.edit_record(&n, |h| h.kind = 0o12)?;
    Ok(Some(format!("the type in the name of inode {}", n.ino)))
}

/// A directory that names another parent.
pub(crate) fn parent(w: &mut Wrecker) -> Done {
    let Some(d) = w.pick(|n| n.inode.mode & S_IFMT == S_IFDIR) else { return Ok(None) };
    w.edit_inode(d.ino, |i| i.parent = d.ino)?;
    Ok(Some(format!("the parent of directory {}", d.ino)))
}

/// A directory that counts one entry too many.
pub(crate) fn count(w: &mut Wrecker) -> Done {
    let Some(d) = w.pick(|n| n.inode.mode & S_IFMT == S_IFDIR) else { return Ok(None) };
    w.edit_inode(d.ino, |i| i.entries += 1)?;
    Ok(Some(format!("the number of entries of directory {}", d.ino)))
}

/// A directory that counts one link too many.
pub(crate) fn links(w: &mut Wrecker) -> Done {
    let Some(d) = w.pick(|n| n.inode.mode & S_IFMT == S_IFDIR) else { return Ok(None) };
    w.edit_inode(d.ino, |i| i.nlink += 1)?;
    Ok(Some(format!("the links of directory {}", d.ino)))
}

/// A second name for a directory.
pub(crate) fn second_name(w: &mut Wrecker) -> Done {
    let Some(d) = directory(w, Layout::DirInline) else { return Ok(None) };
    let Some(n) = w.pick(|n| n.inode.mode & S_IFMT == S_IFDIR && n.ino != d.ino && n.inode.entries == 0) else { return Ok(None) };
    w.edit_record(&n, |h| (h.ino, h.generation) = (d.ino, d.inode.generation))?;
    Ok(Some(format!("the name of directory {} leads to directory {}", n.ino, d.ino)))
}

/// Takes the record of `n` out of a body, counts and all.
fn remove(w: &Wrecker, n: &Named) -> Result<(), super::WreckError> {
    w.edit(n.dir, |b| {
        let used = b.view::<Inode>(HEADER_BYTES).map_or(0, |i| i.inline_len as usize);
        let all: Vec<_> = entries(n.dir, &b.0[BODY_AT..BODY_AT + used]).flatten().map(|e| (e.at, e.head)).collect();
        let Some((at, head)) = all.into_iter().find(|(_, h)| h.ino == n.ino) else { return };
        let len = head.len as usize;
        b.0.copy_within(BODY_AT + at + len..BODY_AT + used, BODY_AT + at);
        b.0[BODY_AT + used - len..BODY_AT + used].fill(0);
        if let Some(i) = b.view_mut::<Inode>(HEADER_BYTES) {
            (i.inline_len, i.size) = (i.inline_len - len as u32, i.size - len as u64);
            (i.count, i.entries) = (i.count - 1, i.entries - 1);
        }
    })
}

/// A file whose name is gone.
pub(crate) fn unnamed(w: &mut Wrecker) -> Done {
    let Some(n) = in_body(w) else { return Ok(None) };
    remove(w, &n)?;
    Ok(Some(format!("the name of inode {} in directory {} is gone", n.ino, n.dir)))
}

fn orphan(w: &mut Wrecker, kind: u32) -> Option<Named> {
    let all: Vec<Named> = w.orphans.iter().copied().filter(|n| n.inode.mode & S_IFMT == kind).collect();
    let n = w.below(all.len() as u64) as usize;
    all.get(n).copied()
}

/// An orphan without its mark.
pub(crate) fn orphan_unmarked(w: &mut Wrecker) -> Done {
    let Some(n) = orphan(w, S_IFREG) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.flags &= !FLAG_ORPHAN)?;
    Ok(Some(format!("the mark of orphan {}", n.ino)))
}

/// An orphan of another slot.
pub(crate) fn orphan_slot(w: &mut Wrecker) -> Done {
    let Some(n) = orphan(w, S_IFREG) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.orphan_slot += 1)?;
    Ok(Some(format!("the slot of orphan {}", n.ino)))
}

/// An orphan with a link.
pub(crate) fn orphan_links(w: &mut Wrecker) -> Done {
    let Some(n) = orphan(w, S_IFREG) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.nlink = 1)?;
    Ok(Some(format!("the links of orphan {}", n.ino)))
}

/// An orphaned directory that counts an entry.
pub(crate) fn orphan_full(w: &mut Wrecker) -> Done {
    let Some(n) = orphan(w, S_IFDIR) else { return Ok(None) };
    w.edit_inode(n.ino, |i| i.entries = 1)?;
    Ok(Some(format!("the entries of orphaned directory {}", n.ino)))
}

/// Puts a record into the list of slot 0.
fn enlist(w: &Wrecker, name: &[u8], n: &Named) -> Result<(), super::WreckError> {
    let (list, mut new) = (w.sb.orphan_dir(0), Vec::new());
    let h = hash_of(&w.sb.hash_key, name);
    push(&mut new, h, n.ino, n.inode.generation, (n.inode.mode >> 12) as u8, name);
    w.edit(list, |b| {
        let used = b.view::<Inode>(HEADER_BYTES).map_or(0, |i| i.inline_len as usize);
        let mut all = b.0[BODY_AT..BODY_AT + used].to_vec();
        let at = entries(list, &all).flatten().find(|e| e.head.hash > h).map_or(used, |e| e.at);
        all.splice(at..at, new.iter().copied());
        b.0[BODY_AT..BODY_AT + all.len()].copy_from_slice(&all);
        if let Some(i) = b.view_mut::<Inode>(HEADER_BYTES) {
            (i.inline_len, i.size) = (all.len() as u32, all.len() as u64);
            (i.count, i.entries) = (i.count + 1, i.entries + 1);
        }
    })
}

/// A file with a name on the list of orphans.
pub(crate) fn orphan_named(w: &mut Wrecker) -> Done {
    let Some(n) = file(w) else { return Ok(None) };
    enlist(w, &list_name(n.ino), &n)?;
    w.edit_inode(n.ino, |i| (i.flags, i.nlink, i.orphan_slot) = (FLAG_ORPHAN, 0, 0))?;
    Ok(Some(format!("inode {}, which has a name, is listed as an orphan", n.ino)))
}

/// An orphan under another name than its number.
pub(crate) fn orphan_name(w: &mut Wrecker) -> Done {
    let list = w.sb.orphan_dir(0);
    let Some(n) = orphan(w, S_IFREG).filter(|n| n.dir == list) else { return Ok(None) };
    remove(w, &n)?;
    enlist(w, &list_name(n.ino + 1_000_003), &n)?;
    Ok(Some(format!("the name of orphan {} in its list", n.ino)))
}
