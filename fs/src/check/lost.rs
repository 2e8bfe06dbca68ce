//! Inodes in use that no name leads to, and no list of orphans: found by looking at the metadata blocks nobody reached.
//!
//! Their blocks are claimed, so that a lost file is one finding and not a thousand. Invariant: runs only when all metadata
//! was readable, because otherwise the name may merely be out of sight. Not here: blocks that are no inode (see `space`).

use super::tree::{Bounds, Tally, Tree, items};
use super::{Check, Code, Place, Result};
use crate::op::is_dir;
use luna_format::ag::SegmentType;
use luna_format::inode::{BODY_AT, Inode, Layout};
use luna_format::tree::Entry;
use luna_format::{Block, BlockNo, Expect, HEADER_BYTES, Ino, Kind, open};

/// Blocks looked at at once.
const BATCH: u64 = 512;

/// See the module's text.
pub(super) fn inodes(c: &mut Check<'_>) -> Result<()> {
    for n in 0..c.space.groups.len() {
        let mut at = 0;
        while let Some((from, to)) = c.space.groups[n].unreached(at).filter(|_| !c.incomplete && c.space.groups[n].known) {
            let to = to.min(from + BATCH);
            at = to;
            let g = &c.space.groups[n];
            let meta = |rel: &u64| g.segment_of(*rel) == Some(SegmentType::Meta);
            let wanted: Vec<BlockNo> = (from..to).filter(meta).map(|rel| g.start + rel).collect();
            for (block, fetched) in wanted.iter().zip(c.reader.many(&wanted)?) {
                if let Ok(b) = fetched {
                    lost(c, *block, &b)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether a block is an inode in use.
fn in_use(c: &Check<'_>, block: BlockNo, b: &Block) -> Option<Inode> {
    open(b, &Expect { kind: Kind::Inode, volume: c.id, block, owner: Some(block) }).ok()?;
    b.view::<Inode>(HEADER_BYTES).filter(|i| i.mode != 0)?;
    luna_format::inode::check(b).ok()
}

fn lost(c: &mut Check<'_>, ino: Ino, b: &Block) -> Result<()> {
    let Some(i) = in_use(c, ino, b) else { return Ok(()) };
    if c.space.seen_inode(&c.sb, ino) {
        return Ok(());
    }
    let text = format!("expected a name, found none; mode {:#o}, {} links, {} bytes, owner {}", i.mode, i.nlink, i.size, i.uid);
    c.found(Code::U07, Place::ino(ino), text);
    c.claim(ino, 1, SegmentType::Meta, &|_| Place::ino(ino));
    c.judge_fields(ino, &i, b);
    let tally = if is_dir(i.mode) { directory(c, ino, &i, b)? } else { c.extents(ino, &i, b)? };
    c.judge_blocks(ino, &i, tally);
    c.xattrs(&[(ino, i.xattr_block)])
}

/// The blocks of a lost directory; what it names is lost too, and found by itself.
fn directory(c: &mut Check<'_>, ino: Ino, i: &Inode, b: &Block) -> Result<Tally> {
    if i.layout != Layout::DirTree as u8 {
        return Ok(Tally::default());
    }
    let root: Vec<Entry> = items::<Entry>(&b.0[BODY_AT..], i.count as usize).to_vec();
    let level = u16::from(i.depth).saturating_sub(1);
    c.walk_tree(Tree::names(ino), &root, level, Bounds::ALL, &mut |_, _, _, _| Ok(Tally::default()))
}
