//! The extent tree of a file: find a leaf, replace a leaf. The root is in the inode's body; a file with few extents has no
//! tree, its one "leaf" is the body itself.
//!
//! Invariants: the leaf for a block lies between two separators, `low` and `next`, and holds no extent that crosses them;
//! the key of a node's first entry is never looked at (it counts as minus infinity); a node of a tree is never empty; each
//! node is counted in `inode.blocks`. Every node was checked when it came into the cache ([`super::check_block`]); what
//! cannot be checked there (levels, separators) is checked on the way down. Not here: what the extents mean.

use crate::alloc;
use crate::error::{Fetch, FsError, Step, Stop};
use crate::inode;
use crate::names;
use crate::tx::Tx;
use luna_format::inode::{Extent, INLINE_EXTENTS, Inode, Layout, ROOT_ENTRIES};
use luna_format::tree::{self, ENTRIES_AT, Entry, LEAF_EXTENTS, MAX_DEPTH, NODE_ENTRIES, NodeHeader};
use luna_format::{Block, BlockNo, HEADER_BYTES, Ino, Kind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A tree with one leaf of at most this many extents moves back into the inode.
const COLLAPSE: usize = INLINE_EXTENTS / 2;

/// A leaf taken out for changing; give it back with [`store`].
pub(super) struct Leaf {
    /// Its extents.
    pub(super) extents: Vec<Extent>,
    /// Where the next leaf begins.
    pub(super) next: Option<u64>,
    /// Nodes from the root (the inode itself) to the leaf's parent, with the entry taken in each. Empty = inline.
    path: Vec<(BlockNo, usize)>,
    /// The leaf's own block; the inode when inline.
    block: BlockNo,
}

/// Where a leaf is, found on the way down.
struct Place {
    path: Vec<(BlockNo, usize)>,
    block: BlockNo,
    low: u64,
    next: Option<u64>,
}

fn damaged(ino: Ino, what: &'static str) -> Stop {
    FsError::Damaged { ino, what }.into()
}

fn node_fetch(ino: Ino, block: BlockNo) -> Fetch {
    Fetch { block, kind: Kind::ExtentNode, owner: ino, lock: names::inode(ino) }
}

/// The first `n` items at the front of `bytes`; `None` when they do not fit.
pub(super) fn items<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8], n: usize) -> Option<&[T]> {
    <[T]>::ref_from_bytes(bytes.get(..n.checked_mul(size_of::<T>())?)?).ok()
}

fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], items: &[T]) -> Option<()> {
    let src = items.as_bytes();
    bytes.get_mut(..src.len())?.copy_from_slice(src);
    bytes.get_mut(src.len()..)?.fill(0);
    Some(())
}

/// The layout of a file that has extents, or may have.
fn layout(ino: Ino, i: &Inode) -> Step<Layout> {
    match Layout::from_u8(i.layout) {
        Some(l @ (Layout::Empty | Layout::Extents | Layout::ExtentTree)) => Ok(l),
        Some(Layout::Inline) => Err(FsError::Invalid("the file's bytes are in its inode").into()),
        _ => Err(damaged(ino, "extents asked of something that has none")),
    }
}

fn node_items<T: FromBytes + Immutable + KnownLayout>(ino: Ino, b: &Block, level: u16) -> Step<&[T]> {
    let h = tree::check(b, level)?;
    items(&b.0[ENTRIES_AT..], h.count as usize).ok_or_else(|| damaged(ino, "count of a tree node"))
}

/// Goes down to the leaf that is responsible for `logical`.
fn place(tx: &mut Tx<'_>, ino: Ino, i: &Inode, logical: u64) -> Step<Place> {
    let mut p = Place { path: Vec::new(), block: ino, low: 0, next: None };
    if layout(ino, i)? != Layout::ExtentTree {
        return Ok(p);
    }
    for level in (0..i.depth).rev() {
        let entries: &[Entry] = if p.path.is_empty() {
            items(inode::body(tx, ino)?, i.count as usize).ok_or_else(|| damaged(ino, "count of the tree's root"))?
        } else {
            node_items(ino, tx.read(node_fetch(ino, p.block))?, u16::from(level) + 1)?
        };
        let Some(rest) = entries.get(1..) else { return Err(damaged(ino, "an empty tree node")) };
        let at = rest.partition_point(|e| e.key <= logical);
        if at > 0 {
            p.low = p.low.max(entries[at].key);
        }
        if let Some(e) = rest.get(at) {
            p.next = Some(p.next.map_or(e.key, |n| n.min(e.key)));
        }
        let child = entries[at].child;
        p.path.push((p.block, at));
        p.block = child;
    }
    Ok(p)
}

fn leaf_extents<'a>(tx: &'a mut Tx<'_>, ino: Ino, i: &Inode, p: &Place) -> Step<&'a [Extent]> {
    let list: &[Extent] = if !p.path.is_empty() {
        node_items(ino, tx.read(node_fetch(ino, p.block))?, 0)?
    } else if i.layout == Layout::Extents as u8 {
        items(inode::body(tx, ino)?, i.count as usize).ok_or_else(|| damaged(ino, "count of extents"))?
    } else {
        &[]
    };
    let inside = list.first().is_none_or(|e| e.logical >= p.low) && list.last().is_none_or(|e| p.next.is_none_or(|n| e.end() <= n));
    if inside { Ok(list) } else { Err(damaged(ino, "an extent outside of its leaf's bounds")) }
}

/// Looks into the leaf that is responsible for `logical`: `f(extents, low, next)`.
pub(super) fn look<R>(tx: &mut Tx<'_>, ino: Ino, logical: u64, f: impl FnOnce(&[Extent], u64, Option<u64>) -> R) -> Step<R> {
    let i = inode::get(tx, ino)?;
    let p = place(tx, ino, &i, logical)?;
    let list = leaf_extents(tx, ino, &i, &p)?;
    Ok(f(list, p.low, p.next))
}

/// Takes out the leaf that is responsible for `logical`. Needs EX.
pub(super) fn load(tx: &mut Tx<'_>, ino: Ino, logical: u64) -> Step<Leaf> {
    tx.need(names::inode(ino), luna_dlm::Mode::Ex)?;
    let i = inode::get(tx, ino)?;
    let p = place(tx, ino, &i, logical)?;
    let extents = leaf_extents(tx, ino, &i, &p)?.to_vec();
    Ok(Leaf { extents, next: p.next, path: p.path, block: p.block })
}

/// Puts a changed leaf back; the tree grows or shrinks with it.
pub(super) fn store(tx: &mut Tx<'_>, ino: Ino, leaf: Leaf) -> Step<()> {
    let list = &leaf.extents;
    if leaf.path.is_empty() {
        return if list.len() <= INLINE_EXTENTS { put_inline(tx, ino, list) } else { plant(tx, ino, list) };
    }
    if list.is_empty() {
        free_node(tx, ino, leaf.block)?;
        return remove_entry(tx, ino, &leaf.path);
    }
    if list.len() <= LEAF_EXTENTS {
        if leaf.path.len() == 1 && list.len() <= COLLAPSE && inode::get(tx, ino)?.count == 1 {
            free_node(tx, ino, leaf.block)?;
            return put_inline(tx, ino, list);
        }
        return put_node(tx, ino, leaf.block, 0, list);
    }
    // a file that grows at its end leaves full leaves behind
    let at = if leaf.next.is_none() { LEAF_EXTENTS - 8 } else { list.len() / 2 };
    let (left, right) = list.split_at(at);
    put_node(tx, ino, leaf.block, 0, left)?;
    let child = new_node(tx, ino, leaf.block, 0, right)?;
    insert_entry(tx, ino, &leaf.path, Entry { key: right[0].logical, child })
}

/// Adds to (or takes from) the blocks the inode counts.
pub(super) fn count_blocks(tx: &mut Tx<'_>, ino: Ino, delta: i64) -> Step<()> {
    let ok = inode::update(tx, ino, |i| i.blocks.checked_add_signed(delta).map(|n| i.blocks = n).is_some())?;
    if ok { Ok(()) } else { Err(damaged(ino, "number of blocks smaller than what is freed")) }
}

fn put_inline(tx: &mut Tx<'_>, ino: Ino, list: &[Extent]) -> Step<()> {
    put(inode::body_mut(tx, ino)?, list).ok_or_else(|| damaged(ino, "too many extents for an inode"))?;
    let layout = if list.is_empty() { Layout::Empty } else { Layout::Extents };
    inode::update(tx, ino, |i| (i.layout, i.depth, i.count) = (layout as u8, 0, list.len() as u16))
}

/// Writes the root entries of the tree.
fn put_root(tx: &mut Tx<'_>, ino: Ino, depth: u8, entries: &[Entry]) -> Step<()> {
    put(inode::body_mut(tx, ino)?, entries).ok_or_else(|| damaged(ino, "too many entries for a root"))?;
    let layout = if entries.is_empty() { Layout::Empty } else { Layout::ExtentTree };
    let depth = if entries.is_empty() { 0 } else { depth };
    inode::update(tx, ino, |i| (i.layout, i.depth, i.count) = (layout as u8, depth, entries.len() as u16))
}

/// The first leaf of a file whose extents do not fit its inode any more.
fn plant(tx: &mut Tx<'_>, ino: Ino, list: &[Extent]) -> Step<()> {
    let child = new_node(tx, ino, ino, 0, list)?;
    put_root(tx, ino, 1, &[Entry { key: list[0].logical, child }])
}

fn fill<T: IntoBytes + Immutable>(b: &mut Block, level: u16, list: &[T]) -> Option<()> {
    put(&mut b.0[ENTRIES_AT..], list)?;
    *b.view_mut::<NodeHeader>(HEADER_BYTES)? = NodeHeader { level, count: list.len() as u16, used: 0, reserved: 0 };
    Some(())
}

fn put_node<T: IntoBytes + Immutable>(tx: &mut Tx<'_>, ino: Ino, block: BlockNo, level: u16, list: &[T]) -> Step<()> {
    fill(tx.change(node_fetch(ino, block))?, level, list).ok_or_else(|| damaged(ino, "too many entries for a node"))
}

fn new_node<T: IntoBytes + Immutable>(tx: &mut Tx<'_>, ino: Ino, near: BlockNo, level: u16, list: &[T]) -> Step<BlockNo> {
    let (block, floor) = alloc::meta_block(tx, near)?;
    fill(tx.create(node_fetch(ino, block), floor)?, level, list).ok_or_else(|| damaged(ino, "too many entries for a node"))?;
    count_blocks(tx, ino, 1)?;
    Ok(block)
}

fn free_node(tx: &mut Tx<'_>, ino: Ino, block: BlockNo) -> Step<()> {
    alloc::free_meta(tx, block)?;
    count_blocks(tx, ino, -1)
}

/// The entries of the last node of `path`, with its level.
fn entries_of(tx: &mut Tx<'_>, ino: Ino, path: &[(BlockNo, usize)]) -> Step<(Vec<Entry>, u16)> {
    let i = inode::get(tx, ino)?;
    let level = (usize::from(i.depth) + 1).checked_sub(path.len()).ok_or_else(|| damaged(ino, "depth of the tree"))? as u16;
    let list = match path {
        [] => return Err(damaged(ino, "depth of the tree")),
        [_] => items(inode::body(tx, ino)?, i.count as usize).ok_or_else(|| damaged(ino, "count of the tree's root"))?,
        [.., (block, _)] => node_items(ino, tx.read(node_fetch(ino, *block))?, level)?,
    };
    Ok((list.to_vec(), level))
}

/// Adds `new` behind the entry that `path` took; full nodes split, a full root goes down one level.
fn insert_entry(tx: &mut Tx<'_>, ino: Ino, path: &[(BlockNo, usize)], new: Entry) -> Step<()> {
    let (mut list, level) = entries_of(tx, ino, path)?;
    let Some(((block, at), above)) = path.split_last() else { return Err(damaged(ino, "depth of the tree")) };
    list.insert((at + 1).min(list.len()), new);
    if above.is_empty() {
        if list.len() <= ROOT_ENTRIES {
            return put_root(tx, ino, level as u8, &list);
        }
        if level as u8 >= MAX_DEPTH {
            return Err(FsError::TooBig.into());
        }
        let (left, right) = list.split_at(list.len() / 2);
        let first = Entry { key: left[0].key, child: new_node(tx, ino, ino, level, left)? };
        let second = Entry { key: right[0].key, child: new_node(tx, ino, ino, level, right)? };
        return put_root(tx, ino, level as u8 + 1, &[first, second]);
    }
    if list.len() <= NODE_ENTRIES {
        return put_node(tx, ino, *block, level, &list);
    }
    let cut = if at + 2 >= list.len() { NODE_ENTRIES - 8 } else { list.len() / 2 };
    let (left, right) = list.split_at(cut);
    put_node(tx, ino, *block, level, left)?;
    let child = new_node(tx, ino, *block, level, right)?;
    insert_entry(tx, ino, above, Entry { key: right[0].key, child })
}

/// Takes out the entry that `path` took, because its child is gone; empty nodes go too, a lonely child of the root comes up.
fn remove_entry(tx: &mut Tx<'_>, ino: Ino, path: &[(BlockNo, usize)]) -> Step<()> {
    let (mut list, level) = entries_of(tx, ino, path)?;
    let Some(((block, at), above)) = path.split_last() else { return Err(damaged(ino, "depth of the tree")) };
    if *at >= list.len() {
        return Err(damaged(ino, "place in a tree node"));
    }
    list.remove(*at);
    if above.is_empty() {
        let (list, level) = lower(tx, ino, list, level)?;
        return put_root(tx, ino, level as u8, &list);
    }
    if !list.is_empty() {
        return put_node(tx, ino, *block, level, &list);
    }
    free_node(tx, ino, *block)?;
    remove_entry(tx, ino, above)
}

/// While the root has a single interior child whose entries fit the root, they move up.
fn lower(tx: &mut Tx<'_>, ino: Ino, mut list: Vec<Entry>, mut level: u16) -> Step<(Vec<Entry>, u16)> {
    while let ([only], true) = (&list[..], level > 1) {
        let child = only.child;
        let entries: Vec<Entry> = node_items(ino, tx.read(node_fetch(ino, child))?, level - 1)?.to_vec();
        if entries.len() > ROOT_ENTRIES {
            break;
        }
        free_node(tx, ino, child)?;
        (list, level) = (entries, level - 1);
    }
    Ok((list, level))
}
