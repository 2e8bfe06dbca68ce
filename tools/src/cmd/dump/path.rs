//! Follows a path from the root of a volume through its home blocks, without a mount.
//!
//! Invariant: every block was checked before a byte of it was used, and no tree is deeper than trees may be. Symbolic links
//! are not followed, `..` is not understood. Not here: journals; what is only in one is not found.

use crate::cmd::read_block;
use anyhow::{Context, Result, bail, ensure};
use luna_format::{
    Block, Expect, HEADER_BYTES, Kind, VolumeId,
    dir::{entries, hash},
    inode::{BODY_AT, Inode, Layout},
    open,
    superblock::Superblock,
    tree::{self, ENTRIES_AT, Entry},
};
use luna_lun::Disk;

/// The inode that `path` leads to.
pub fn resolve(disk: &dyn Disk, volume: VolumeId, sb: &Superblock, path: &[u8]) -> Result<u64> {
    let mut at = sb.root_ino;
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".") {
        let text = || name.escape_ascii().to_string();
        at = step(disk, volume, sb, at, name).with_context(text)?;
    }
    Ok(at)
}

/// The block at `n`, checked.
fn sound(disk: &dyn Disk, volume: VolumeId, sb: &Superblock, kind: Kind, n: u64, owner: u64) -> Result<Block> {
    ensure!(n < sb.total_blocks, "block {n} lies outside of the volume");
    let block = read_block(disk, n)?;
    open(&block, &Expect { kind, volume, block: n, owner: Some(owner) })?;
    Ok(block)
}

/// One name in one directory.
fn step(disk: &dyn Disk, volume: VolumeId, sb: &Superblock, dir: u64, name: &[u8]) -> Result<u64> {
    let block = sound(disk, volume, sb, Kind::Inode, dir, dir)?;
    let i: Inode = luna_format::inode::check(&block)?;
    let hash = hash(&sb.hash_key, name);
    let (leaf, at, used) = match Layout::from_u8(i.layout) {
        Some(Layout::DirInline) => (block, BODY_AT, i.inline_len as usize),
        Some(Layout::DirTree) => {
            let (mut node, mut from, mut count) = (block, BODY_AT, usize::from(i.count));
            for level in (0..u16::from(i.depth)).rev() {
                let child = child(&node, from, count, hash).context("an empty directory node")?;
                let kind = if level == 0 { Kind::DirLeaf } else { Kind::DirNode };
                node = sound(disk, volume, sb, kind, child, dir)?;
                (from, count) = (ENTRIES_AT, usize::from(tree::check(&node, level)?.count));
            }
            let used = node.view::<tree::NodeHeader>(HEADER_BYTES).map_or(0, |h| h.used as usize);
            (node, ENTRIES_AT, used)
        }
        _ => bail!("inode {dir} is no directory"),
    };
    let bytes = leaf.0.get(at..at + used).context("a leaf that is too long")?;
    for e in entries(dir, bytes) {
        let e = e?;
        if e.head.hash == hash && e.name == name {
            return Ok(e.head.ino);
        }
    }
    bail!("not in the directory (inode {dir})")
}

/// The child that is responsible for `hash`; the first entry's key counts as minus infinity.
fn child(node: &Block, from: usize, count: usize, hash: u64) -> Option<u64> {
    let entry = |n: usize| node.view::<Entry>(from + n * size_of::<Entry>());
    let behind = (1..count).take_while(|n| entry(*n).is_some_and(|e| e.key <= hash)).count();
    (count > 0).then(|| entry(behind).map(|e| e.child)).flatten()
}
