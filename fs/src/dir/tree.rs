//! The B+tree of a large directory: root entries in the inode's body, below it nodes and leaves of one block each.
//!
//! Invariants: keys of a node ascend; an entry's key is not above any hash below it and not below any hash to its left (of
//! the leftmost entry only the order counts); no node or leaf is empty. A tree whose last entry goes becomes an empty body.
//! Interior nodes are not merged before they are empty. Not here: records (see `records`), what names mean.

use super::records::{self, Place, Target};
use super::{damaged, directory, is_tree};
use crate::error::{Fetch, FsError, Step};
use crate::tx::Tx;
use crate::{alloc, inode, names};
use luna_format::inode::{BODY_BYTES, Inode, Layout, ROOT_ENTRIES};
use luna_format::tree::{ENTRIES_AT, Entry, MAX_DEPTH, NODE_ENTRIES, NodeHeader, check};
use luna_format::{BLOCK_BYTES, Block, BlockNo, HEADER_BYTES, Ino, Kind};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes for records in a leaf.
const LEAF_BYTES: usize = BLOCK_BYTES - ENTRIES_AT;
/// A leaf with fewer used bytes looks for a neighbour to join.
const SPARSE: usize = LEAF_BYTES / 4;
/// Joined leaves have at most so many used bytes.
const JOINED: usize = LEAF_BYTES * 3 / 4;

/// One node on the way down.
pub(super) struct Node {
    /// Its block; `None` is the root in the inode's body.
    at: Option<BlockNo>,
    /// Levels below it.
    level: u16,
    /// The entry that was followed.
    idx: usize,
}

/// The way to a leaf.
pub(super) struct Path {
    nodes: Vec<Node>,
    /// The leaf.
    pub(super) leaf: BlockNo,
    /// Hashes from here on are in a later leaf.
    pub(super) upper: Option<u64>,
}

fn fetch(dir: Ino, block: BlockNo, level: u16) -> Fetch {
    let kind = if level == 0 { Kind::DirLeaf } else { Kind::DirNode };
    Fetch { block, kind, owner: dir, lock: names::inode(dir) }
}

fn entries_of(bytes: &[u8], count: usize) -> &[Entry] {
    // callers have checked the count; the bytes are 8-aligned inside a block
    bytes.get(..count * size_of::<Entry>()).and_then(|b| <[Entry]>::ref_from_bytes(b).ok()).unwrap_or(&[])
}

fn view<'t>(tx: &'t mut Tx<'_>, dir: Ino, at: Option<BlockNo>, level: u16) -> Step<&'t [Entry]> {
    let entries = match at {
        None => {
            let count = inode::get(tx, dir)?.count as usize;
            entries_of(inode::body(tx, dir)?, count)
        }
        Some(block) => {
            let b = tx.read(fetch(dir, block, level))?;
            let count = check(b, level)?.count as usize;
            entries_of(&b.0[ENTRIES_AT..], count)
        }
    };
    if entries.is_empty() { Err(damaged(dir, "empty directory node").into()) } else { Ok(entries) }
}

fn store(tx: &mut Tx<'_>, dir: Ino, at: Option<BlockNo>, level: u16, entries: &[Entry]) -> Step<()> {
    let bytes = entries.as_bytes();
    let area = match at {
        None => {
            inode::update(tx, dir, |i| i.count = entries.len() as u16)?;
            &mut inode::body_mut(tx, dir)?[..]
        }
        Some(block) => {
            let b = tx.change(fetch(dir, block, level))?;
            set_header(b, level, entries.len(), 0);
            &mut b.0[ENTRIES_AT..]
        }
    };
    area[..bytes.len()].copy_from_slice(bytes);
    area[bytes.len()..].fill(0);
    Ok(())
}

fn set_header(b: &mut Block, level: u16, count: usize, used: usize) {
    let h = NodeHeader { level, count: count as u16, used: used as u32, reserved: 0 };
    b.0[HEADER_BYTES..ENTRIES_AT].copy_from_slice(h.as_bytes());
}

/// The used bytes of a leaf.
pub(super) fn leaf<'t>(tx: &'t mut Tx<'_>, dir: Ino, block: BlockNo) -> Step<&'t [u8]> {
    let b = tx.read(fetch(dir, block, 0))?;
    let used = check(b, 0)?.used as usize;
    Ok(&b.0[ENTRIES_AT..ENTRIES_AT + used])
}

/// The record area of a leaf, to be changed without changing its length, and how much is used.
pub(super) fn leaf_mut<'t>(tx: &'t mut Tx<'_>, dir: Ino, block: BlockNo) -> Step<(&'t mut [u8], usize)> {
    let b = tx.change(fetch(dir, block, 0))?;
    let used = check(b, 0)?.used as usize;
    Ok((&mut b.0[ENTRIES_AT..], used))
}

fn set_leaf(tx: &mut Tx<'_>, dir: Ino, block: BlockNo, used: &[u8]) -> Step<()> {
    let mut count = 0;
    for e in luna_format::dir::entries(block, used) {
        e?;
        count += 1;
    }
    let b = tx.change(fetch(dir, block, 0))?;
    set_header(b, 0, count, used.len());
    b.0[ENTRIES_AT..ENTRIES_AT + used.len()].copy_from_slice(used);
    b.0[ENTRIES_AT + used.len()..].fill(0);
    Ok(())
}

fn new_block(tx: &mut Tx<'_>, dir: Ino, level: u16) -> Step<BlockNo> {
    let (block, floor) = alloc::meta_block(tx, dir)?;
    set_header(tx.create(fetch(dir, block, level), floor)?, level, 0, 0);
    inode::update(tx, dir, |i| i.blocks += 1)?;
    Ok(block)
}

fn drop_block(tx: &mut Tx<'_>, dir: Ino, block: BlockNo) -> Step<()> {
    alloc::free_meta(tx, block)?;
    inode::update(tx, dir, |i| i.blocks = i.blocks.saturating_sub(1))
}

/// The way to the leaf that holds `hash`, or would.
pub(super) fn descend(tx: &mut Tx<'_>, dir: Ino, i: &Inode, hash: u64) -> Step<Path> {
    let (mut nodes, mut upper, mut at) = (Vec::new(), None, None);
    let mut level = u16::from(i.depth);
    loop {
        let entries = view(tx, dir, at, level)?;
        let idx = entries.partition_point(|e| e.key <= hash).saturating_sub(1);
        let child = entries[idx].child;
        upper = entries.get(idx + 1).map(|e| e.key).or(upper);
        nodes.push(Node { at, level, idx });
        level = level.saturating_sub(1);
        if level == 0 {
            return Ok(Path { nodes, leaf: child, upper });
        }
        at = Some(child);
    }
}

/// Moves the records of a full body into the first leaf of a new tree.
pub(super) fn plant(tx: &mut Tx<'_>, dir: Ino) -> Step<()> {
    let i = directory(tx, dir)?;
    let bytes = inode::body(tx, dir)?[..i.inline_len as usize].to_vec();
    let block = new_block(tx, dir, 0)?;
    set_leaf(tx, dir, block, &bytes)?;
    inode::update(tx, dir, |i| (i.layout, i.depth, i.inline_len) = (Layout::DirTree as u8, 1, 0))?;
    store(tx, dir, None, 1, &[Entry { key: 0, child: block }])
}

/// Makes the body hold these records and nothing else.
pub(super) fn make_inline(tx: &mut Tx<'_>, dir: Ino, used: &[u8], count: u16) -> Step<()> {
    inode::update(tx, dir, |i| {
        (i.layout, i.depth, i.count, i.inline_len) = (Layout::DirInline as u8, 0, count, used.len() as u32);
    })?;
    let body = inode::body_mut(tx, dir)?;
    body[..used.len()].copy_from_slice(used);
    body[used.len()..].fill(0);
    Ok(())
}

/// Adds a record; splits leaves until it fits.
pub(super) fn insert(tx: &mut Tx<'_>, dir: Ino, hash: u64, name: &[u8], record: &[u8]) -> Step<()> {
    loop {
        let i = directory(tx, dir)?;
        let path = descend(tx, dir, &i, hash)?;
        let (area, used) = leaf_mut(tx, dir, path.leaf)?;
        let Place::Before(at) = records::find(path.leaf, &area[..used], hash, name)? else { return Err(FsError::Exists.into()) };
        if used + record.len() <= area.len() {
            let used = records::put(area, used, at, record);
            return count_leaf(tx, dir, path.leaf, used, 1);
        }
        split_leaf(tx, dir, &path)?;
    }
}

fn count_leaf(tx: &mut Tx<'_>, dir: Ino, block: BlockNo, used: usize, change: i32) -> Step<()> {
    let b = tx.change(fetch(dir, block, 0))?;
    let count = i32::from(check(b, 0)?.count) + change;
    set_header(b, 0, count.max(0) as usize, used);
    Ok(())
}

fn split_leaf(tx: &mut Tx<'_>, dir: Ino, path: &Path) -> Step<()> {
    let bytes = leaf(tx, dir, path.leaf)?.to_vec();
    // one hash fills a leaf: not without knowing the volume's key
    let Some((at, key)) = records::cut(path.leaf, &bytes)? else { return Err(FsError::NoSpace.into()) };
    let right = new_block(tx, dir, 0)?;
    set_leaf(tx, dir, right, &bytes[at..])?;
    set_leaf(tx, dir, path.leaf, &bytes[..at])?;
    add_child(tx, dir, &path.nodes, records::first_hash(&bytes), Entry { key, child: right })
}

/// Adds `new` behind the child that `nodes` leads to, whose smallest key is `left`.
fn add_child(tx: &mut Tx<'_>, dir: Ino, nodes: &[Node], left: u64, new: Entry) -> Step<()> {
    let Some((node, above)) = nodes.split_last() else { return Err(damaged(dir, "directory tree").into()) };
    let mut entries = view(tx, dir, node.at, node.level)?.to_vec();
    entries[node.idx].key = entries[node.idx].key.min(left);
    entries.insert(node.idx + 1, new);
    let room = if node.at.is_some() { NODE_ENTRIES } else { ROOT_ENTRIES };
    if entries.len() <= room {
        return store(tx, dir, node.at, node.level, &entries);
    }
    let right = entries.split_off(entries.len() / 2);
    let right_block = new_block(tx, dir, node.level)?;
    store(tx, dir, Some(right_block), node.level, &right)?;
    let right = Entry { key: right[0].key, child: right_block };
    if node.at.is_some() {
        store(tx, dir, node.at, node.level, &entries)?;
        return add_child(tx, dir, above, entries[0].key, right);
    }
    if node.level >= u16::from(MAX_DEPTH) {
        return Err(FsError::NoSpace.into());
    }
    let left_block = new_block(tx, dir, node.level)?;
    store(tx, dir, Some(left_block), node.level, &entries)?;
    inode::update(tx, dir, |i| i.depth += 1)?;
    store(tx, dir, None, node.level + 1, &[Entry { key: 0, child: left_block }, right])
}

/// Takes a record out; empty and sparse leaves go, a small tree becomes a body.
pub(super) fn remove(tx: &mut Tx<'_>, dir: Ino, hash: u64, name: &[u8]) -> Step<Target> {
    let i = directory(tx, dir)?;
    let path = descend(tx, dir, &i, hash)?;
    let (area, used) = leaf_mut(tx, dir, path.leaf)?;
    let Place::At(at, target) = records::find(path.leaf, &area[..used], hash, name)? else { return Err(FsError::NotFound.into()) };
    let used = records::take(area, used, at);
    count_leaf(tx, dir, path.leaf, used, -1)?;
    if used == 0 {
        drop_leaf(tx, dir, &path)?;
    } else if used < SPARSE {
        join(tx, dir, &path)?;
    }
    collapse(tx, dir)?;
    Ok(target)
}

/// Frees the last leaf, records and all.
pub(super) fn drop_last(tx: &mut Tx<'_>, dir: Ino) -> Step<()> {
    let i = directory(tx, dir)?;
    let path = descend(tx, dir, &i, u64::MAX)?;
    drop_leaf(tx, dir, &path)
}

fn drop_leaf(tx: &mut Tx<'_>, dir: Ino, path: &Path) -> Step<()> {
    drop_block(tx, dir, path.leaf)?;
    let idx = path.nodes.last().map_or(0, |n| n.idx);
    remove_child(tx, dir, &path.nodes, idx)
}

/// Takes entry `idx` out of the last of `nodes`, and the node too when it was the only one.
fn remove_child(tx: &mut Tx<'_>, dir: Ino, nodes: &[Node], idx: usize) -> Step<()> {
    let Some((node, above)) = nodes.split_last() else { return Err(damaged(dir, "directory tree").into()) };
    let mut entries = view(tx, dir, node.at, node.level)?.to_vec();
    let gone = entries.remove(idx);
    if idx == 0
        && let Some(first) = entries.first_mut()
    {
        first.key = gone.key;
    }
    if !entries.is_empty() {
        return store(tx, dir, node.at, node.level, &entries);
    }
    let Some(block) = node.at else { return make_inline(tx, dir, &[], 0) };
    drop_block(tx, dir, block)?;
    let idx = above.last().map_or(0, |n| n.idx);
    remove_child(tx, dir, above, idx)
}

/// Joins a sparse leaf with a neighbour under the same node, if both fit into one with room to spare.
fn join(tx: &mut Tx<'_>, dir: Ino, path: &Path) -> Step<()> {
    let Some(node) = path.nodes.last() else { return Ok(()) };
    let entries = view(tx, dir, node.at, node.level)?;
    let pairs = [(node.idx, node.idx + 1), (node.idx.wrapping_sub(1), node.idx)];
    let pairs = pairs.map(|(l, r)| Some((entries.get(l)?.child, entries.get(r)?.child, r)));
    for (left, right, right_idx) in pairs.into_iter().flatten() {
        let mut bytes = leaf(tx, dir, left)?.to_vec();
        bytes.extend_from_slice(leaf(tx, dir, right)?);
        if bytes.len() <= JOINED {
            set_leaf(tx, dir, left, &bytes)?;
            drop_block(tx, dir, right)?;
            return remove_child(tx, dir, &path.nodes, right_idx);
        }
    }
    Ok(())
}

/// While the root has one child only: takes its content into the body, if it fits (a leaf's, if it fits twice).
fn collapse(tx: &mut Tx<'_>, dir: Ino) -> Step<()> {
    loop {
        let i = directory(tx, dir)?;
        if !is_tree(&i) || i.count != 1 {
            return Ok(());
        }
        let child = view(tx, dir, None, u16::from(i.depth))?[0].child;
        if i.depth == 1 {
            let bytes = leaf(tx, dir, child)?.to_vec();
            if bytes.len() > BODY_BYTES / 2 {
                return Ok(());
            }
            let count = luna_format::dir::entries(child, &bytes).count();
            drop_block(tx, dir, child)?;
            return make_inline(tx, dir, &bytes, count as u16);
        }
        let level = u16::from(i.depth) - 1;
        let entries = view(tx, dir, Some(child), level)?.to_vec();
        if entries.len() > ROOT_ENTRIES {
            return Ok(());
        }
        drop_block(tx, dir, child)?;
        inode::update(tx, dir, |i| i.depth -= 1)?;
        store(tx, dir, None, level, &entries)?;
    }
}

/// Visits every block of the tree with its level and asserts its order. For tests.
#[cfg(test)]
pub(super) fn walk(tx: &mut Tx<'_>, dir: Ino, seen: &mut dyn FnMut(BlockNo, u16)) -> Step<()> {
    fn node(
        tx: &mut Tx<'_>,
        dir: Ino,
        at: Option<BlockNo>,
        level: u16,
        low: u64,
        high: u64,
        seen: &mut dyn FnMut(BlockNo, u16),
    ) -> Step<()> {
        let entries = view(tx, dir, at, level)?.to_vec();
        assert!(entries.windows(2).all(|w| w[0].key < w[1].key), "keys ascend");
        for (n, e) in entries.iter().enumerate() {
            let from = if n == 0 { low } else { e.key };
            let to = entries.get(n + 1).map_or(high, |next| next.key);
            assert!(from >= low && to <= high && from < to);
            seen(e.child, level - 1);
            if level > 1 {
                node(tx, dir, Some(e.child), level - 1, from, to, seen)?;
                continue;
            }
            let count = check(tx.read(fetch(dir, e.child, 0))?, 0)?.count;
            let bytes = leaf(tx, dir, e.child)?;
            let mut n = 0;
            for record in luna_format::dir::entries(e.child, bytes) {
                let hash = record?.head.hash;
                assert!((from..to).contains(&hash), "{hash} outside {from}..{to}");
                n += 1;
            }
            assert!(n > 0 && n == count);
        }
        Ok(())
    }
    let i = directory(tx, dir)?;
    node(tx, dir, None, u16::from(i.depth), 0, u64::MAX, seen)
}
