//! The blocks of a file: which of its extents can be believed, whose the blocks are, and a new tree when something is wrong.
//!
//! Runs when all metadata is claimed, so that a file never takes metadata for data. Two files that claim one block: the first in the
//! order of the walk keeps it, each later one gets a copy of its own; a file whose inode or tree did not pass its checksum comes last
//! and gets a hole instead, because what it claims is the less likely to be its own. Invariant: when a file was looked at, the
//! blocks it keeps are claimed by it alone. Not here: fields (`inodes`), names.

use super::door::Judged;
use super::inodes::{edit, view};
use super::records::{entries_of, set_node};
use super::space::Claim;
use super::{Body, Did, Repair, RepairError};
use crate::check::{ASKED_MOST, Code};
use luna_format::inode::{BODY_AT, EXTENT_UNWRITTEN, Extent, INLINE_EXTENTS, Layout, MAX_SIZE, ROOT_ENTRIES};
use luna_format::tree::{ENTRIES_AT, Entry, LEAF_EXTENTS, MAX_DEPTH, check};
use luna_format::{BLOCK_U64, Block, BlockNo, Ino, Kind};
use luna_lun::{AlignedBuf, Durability};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// The longest extent that is ever written.
const MAX_LEN: u64 = (1 << 31) - 1;
/// Blocks copied at once.
const COPY: u64 = 256;

/// A part of a file as it will be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Where it lies.
    pub(super) extent: Extent,
    /// Its blocks belong to somebody else: they are copied.
    pub(super) copy: bool,
}

/// What a file claims.
#[derive(Default)]
struct Claims {
    list: Vec<Extent>,
    nodes: Vec<BlockNo>,
    broken: bool,
    suspect: bool,
    /// Logical block behind the last extent.
    end: u64,
}

/// Keys between which a subtree may lie.
#[derive(Clone, Copy)]
struct Bounds(u64, Option<u64>);

impl Repair<'_> {
    /// Looks at the extents of every file that has some; the suspect ones last.
    pub(super) fn files(&mut self) -> Result<(), RepairError> {
        let all = std::mem::take(&mut self.files);
        let total = all.len() as u64 * 2;
        // trees first: their nodes are metadata, and no file may take them for its data
        let mut trees = BTreeMap::new();
        for (n, (ino, _)) in all.iter().enumerate() {
            self.progress("files", n as u64, total);
            let b = self.inode_now(*ino)?;
            if view(&b).layout == Layout::ExtentTree as u8 {
                let c = self.claims(*ino, &b)?;
                trees.insert(*ino, c);
            }
        }
        let mut later = Vec::new();
        for (n, (ino, suspect)) in all.into_iter().enumerate() {
            self.progress("files", total / 2 + n as u64, total);
            let b = self.inode_now(ino)?;
            let c = match trees.remove(&ino) {
                Some(c) => c,
                None => self.claims(ino, &b)?,
            };
            if suspect || c.suspect { later.push((ino, b, c)) } else { self.file(ino, b, c, false)? }
        }
        for (ino, b, c) in later {
            self.file(ino, b, c, true)?;
        }
        Ok(())
    }

    fn claims(&mut self, ino: Ino, b: &Block) -> Result<Claims, RepairError> {
        let (i, mut c) = (view(b), Claims::default());
        if i.layout == Layout::Extents as u8 {
            if i.count == 0 {
                self.odd(&mut c, Code::E06, ino, ino, "an empty list of extents is none");
            }
            self.extents_in(ino, b, BODY_AT, i.count as usize, Bounds(0, None), &mut c);
        } else if i.layout == Layout::ExtentTree as u8 {
            let root = entries_of(b, BODY_AT, i.count as usize);
            self.extents_below(ino, &root, u16::from(i.depth), Bounds(0, None), &mut c)?;
        }
        Ok(c)
    }

    fn odd(&mut self, c: &mut Claims, code: Code, ino: Ino, block: BlockNo, text: &str) {
        c.broken = true;
        self.did(Did::new(code, self.place(ino).at_block(block), text));
    }

    fn extents_below(&mut self, ino: Ino, all: &[Entry], level: u16, bounds: Bounds, c: &mut Claims) -> Result<(), RepairError> {
        if level == 0 || level > u16::from(MAX_DEPTH) {
            return Ok(());
        }
        for (n, e) in all.iter().enumerate() {
            let inside = e.key >= bounds.0 && bounds.1.is_none_or(|h| e.key < h);
            if n > 0 && !(inside && (n == 1 || all[n - 1].key < e.key)) {
                self.odd(c, Code::E07, ino, ino, "the tree is written anew with ascending keys");
            }
            let lost = "the part of the file below this node (it reads as zeroes)";
            if !self.space.can_be_meta(e.child) {
                c.broken = true;
                self.did(Did::lost(Code::E06, self.place(ino), "a child outside of the groups is dropped", lost));
                continue;
            }
            let b = self.door.one(e.child)?;
            match self.door.judge(&b, Kind::ExtentNode, e.child, ino) {
                Judged::Sound => {}
                Judged::Suspect(code, text) => {
                    (c.broken, c.suspect) = (true, true);
                    let place = self.place(ino).at_block(e.child);
                    self.did(Did::lost(
                        code,
                        place,
                        format!("kept as far as it makes sense ({text})"),
                        "trust: compare the file's content",
                    ));
                }
                Judged::Bad(code, text) => {
                    c.broken = true;
                    self.did(Did::lost(code, self.place(ino).at_block(e.child), text, lost));
                    continue;
                }
            }
            if !self.space.claim_meta(e.child) {
                self.odd(c, Code::U01, ino, e.child, "a node that is there already is dropped");
                continue;
            }
            c.nodes.push(e.child);
            let low = if n == 0 { bounds.0 } else { e.key };
            self.extent_node(ino, &b, level - 1, Bounds(low, all.get(n + 1).map(|x| x.key).or(bounds.1)), c)?;
        }
        Ok(())
    }

    fn extent_node(&mut self, ino: Ino, b: &Block, level: u16, bounds: Bounds, c: &mut Claims) -> Result<(), RepairError> {
        let block = b.header().block;
        let cap = if level == 0 { LEAF_EXTENTS } else { luna_format::tree::NODE_ENTRIES };
        let count = match check(b, level) {
            Ok(h) => h.count as usize,
            Err(_) => {
                self.odd(c, Code::E06, ino, block, "what makes sense of a malformed node is kept");
                let raw = b.view::<luna_format::tree::NodeHeader>(luna_format::HEADER_BYTES).map_or(0, |h| h.count as usize);
                if raw > cap { cap } else { raw }
            }
        };
        if count == 0 {
            self.odd(c, Code::E06, ino, block, "an empty node is dropped");
        }
        if level > 0 {
            return self.extents_below(ino, &entries_of(b, ENTRIES_AT, count), level, bounds, c);
        }
        self.extents_in(ino, b, ENTRIES_AT, count, bounds, c);
        Ok(())
    }

    fn extents_in(&mut self, ino: Ino, b: &Block, at: usize, count: usize, bounds: Bounds, c: &mut Claims) {
        let block = b.header().block;
        for n in 0..count {
            let Some(mut e) = b.view::<Extent>(at + n * size_of::<Extent>()).copied() else { break };
            let len = u64::from(e.len);
            let lost = |r: &mut Self, c: &mut Claims, code, text: String| {
                c.broken = true;
                r.did(Did::lost(code, r.place(ino).at_block(block), text, "that part of the file (it reads as zeroes)"));
            };
            if len == 0 || len > MAX_LEN || e.logical > MAX_SIZE / BLOCK_U64 {
                lost(self, c, Code::E03, format!("extent {n} of {len} blocks at {} is dropped", e.logical));
                continue;
            }
            let last = e.physical.checked_add(len - 1);
            if self.sb.ag_of(e.physical).is_none() || last.is_none_or(|l| self.sb.ag_of(l).is_none()) {
                lost(self, c, Code::E02, format!("extent {n} of {len} blocks at {} leads outside of the groups", e.logical));
                continue;
            }
            if e.flags & !EXTENT_UNWRITTEN != 0 {
                self.odd(c, Code::E04, ino, block, &format!("extent {n} has no unknown flags any more"));
                e.flags &= EXTENT_UNWRITTEN;
            }
            if e.logical < bounds.0 || bounds.1.is_some_and(|h| e.end() > h) {
                self.odd(c, Code::E05, ino, block, &format!("extent {n} stands in its leaf"));
            }
            if e.logical < c.end {
                self.odd(c, Code::E01, ino, block, &format!("extent {n} stands in order and overlaps none"));
            }
            c.end = c.end.max(e.end());
            c.list.push(e);
        }
    }

    /// Claims the blocks of a file, and plans what is to be written.
    fn file(&mut self, ino: Ino, b: Block, mut c: Claims, suspect: bool) -> Result<(), RepairError> {
        // of two extents for one part of the file the first in the tree counts
        let list = if c.broken { in_order(&c.list) } else { std::mem::take(&mut c.list) };
        let mut parts = Vec::with_capacity(list.len());
        for e in list {
            self.extent(ino, e, suspect, &mut c.broken, &mut parts);
        }
        let data: u64 = parts.iter().map(|p| u64::from(p.extent.len)).sum();
        let mut block = b;
        let mut changed = c.broken;
        if self.resize.remove(&ino) {
            let end = parts.last().map_or(0, |p| p.extent.end() * BLOCK_U64);
            edit(&mut block, |i| i.size = end);
            changed = true;
        }
        let i = view(&block);
        let counted = data + c.nodes.len() as u64 + u64::from(i.xattr_block != 0);
        if !c.broken && i.blocks != counted {
            edit(&mut block, |i| i.blocks = counted);
            self.did(Did::new(Code::I05, self.place(ino), format!("{counted} blocks, not {}", i.blocks)));
            changed = true;
        }
        if c.broken {
            c.nodes.iter().for_each(|n| self.space.leave(*n));
            self.plan(ino, block, Body::Parts(parts));
        } else if changed {
            self.plan(ino, block, Body::AsIs);
        }
        Ok(())
    }

    /// Whose the blocks of one extent are.
    fn extent(&mut self, ino: Ino, e: Extent, suspect: bool, broken: &mut bool, parts: &mut Vec<Part>) {
        let hole = "that part of the file (it reads as zeroes)";
        let Some(runs) = self.space.claim_run(e.physical, u64::from(e.len)) else {
            *broken = true;
            let text = format!("{} blocks are dropped: files have {ASKED_MOST} times as many blocks as there are", e.len);
            self.did(Did::lost(Code::U01, self.place(ino).at_block(e.physical), text, hole));
            return;
        };
        for (at, n, claim) in runs {
            let part = Extent { logical: e.logical + (at - e.physical), physical: at, len: n as u32, flags: e.flags };
            let place = self.place(ino).at_block(at);
            let copy = match claim {
                Claim::Mine => false,
                Claim::Mixed => {
                    self.did(Did::new(Code::U06, place, format!("{n} blocks of data among metadata are moved")));
                    true
                }
                Claim::Taken if suspect => {
                    *broken = true;
                    self.did(Did::lost(Code::U01, place, format!("{n} blocks stay with their other owner"), hole));
                    continue;
                }
                Claim::Taken => {
                    self.did(Did::lost(
                        Code::U01,
                        place,
                        format!("{n} blocks are copied; the first owner keeps its own"),
                        "nobody can tell whose content it is",
                    ));
                    true
                }
                Claim::Meta | Claim::Outside => {
                    *broken = true;
                    self.did(Did::lost(Code::U01, place, format!("{n} blocks are metadata"), hole));
                    continue;
                }
            };
            *broken |= copy;
            match parts.last_mut() {
                Some(p) if !copy && !p.copy && joins(&p.extent, &part) => p.extent.len += part.len,
                _ => parts.push(Part { extent: part, copy }),
            }
        }
    }

    /// Writes `parts` as the extents of `ino` into its inode; copies data and puts nodes into new blocks, at once.
    pub(super) fn write_parts(&mut self, ino: Ino, inode: &mut Block, parts: &[Part]) -> Result<(), RepairError> {
        let mut list = Vec::with_capacity(parts.len());
        for p in parts {
            if p.copy { self.copy(ino, p.extent, &mut list)? } else { list.push(p.extent) }
        }
        let mut nodes = 0;
        inode.0[BODY_AT..].fill(0);
        let (layout, depth, count) = if list.len() <= INLINE_EXTENTS {
            let bytes = list.as_bytes();
            inode.0[BODY_AT..BODY_AT + bytes.len()].copy_from_slice(bytes);
            (if list.is_empty() { Layout::Empty } else { Layout::Extents }, 0, list.len())
        } else {
            let (mut level, mut depth) = (Vec::new(), 1u8);
            for chunk in list.chunks(LEAF_EXTENTS * 3 / 4) {
                let mut b = Block::zeroed();
                set_node(&mut b, 0, chunk.len(), 0);
                b.0[ENTRIES_AT..ENTRIES_AT + chunk.as_bytes().len()].copy_from_slice(chunk.as_bytes());
                level.push(Entry { key: chunk[0].logical, child: self.new_node(ino, Kind::ExtentNode, b)? });
            }
            nodes += level.len();
            while level.len() > ROOT_ENTRIES {
                level = self.above(ino, Kind::ExtentNode, &level, u16::from(depth))?;
                nodes += level.len();
                depth += 1;
            }
            let bytes = level.as_bytes();
            inode.0[BODY_AT..BODY_AT + bytes.len()].copy_from_slice(bytes);
            (Layout::ExtentTree, depth, level.len())
        };
        let data: u64 = list.iter().map(|e| u64::from(e.len)).sum();
        edit(inode, |i| {
            (i.layout, i.depth, i.count, i.inline_len) = (layout as u8, depth, count as u16, 0);
            i.blocks = data + nodes as u64 + u64::from(i.xattr_block != 0);
        });
        Ok(())
    }

    /// Copies the blocks of an extent to new ones; what does not fit any more becomes a hole. Blocks that read as zeroes need no copy.
    fn copy(&mut self, ino: Ino, e: Extent, list: &mut Vec<Extent>) -> Result<(), RepairError> {
        if e.unwritten() {
            return Ok(());
        }
        let (mut done, len) = (0, u64::from(e.len));
        let mut room = AlignedBuf::new((COPY * BLOCK_U64) as usize);
        while done < len {
            let Some((to, n)) = self.space.new_data(&self.door, (len - done).min(COPY))? else {
                self.did(Did::lost(Code::U01, self.place(ino), "no room for a copy", "that part of the file (it reads as zeroes)"));
                return Ok(());
            };
            let bytes = &mut room.bytes_mut()[..(n * BLOCK_U64) as usize];
            self.door.disk().read_at(bytes, (e.physical + done) * BLOCK_U64)?;
            self.door.disk().write_at(bytes, to * BLOCK_U64, Durability::Plain)?;
            let new = Extent { logical: e.logical + done, physical: to, len: n as u32, flags: 0 };
            match list.last_mut() {
                Some(last) if joins(last, &new) => last.len += new.len,
                _ => list.push(new),
            }
            done += n;
        }
        Ok(())
    }
}

fn joins(a: &Extent, b: &Extent) -> bool {
    let next = a.physical + u64::from(a.len) == b.physical && a.end() == b.logical;
    next && a.flags == b.flags && u64::from(a.len) + u64::from(b.len) <= MAX_LEN
}

/// Extents in the order of the file, without overlaps: of two for one block, the earlier in `list` counts.
fn in_order(list: &[Extent]) -> Vec<Extent> {
    let mut taken = BTreeMap::<u64, Extent>::new();
    for e in list {
        let (mut at, end) = (e.logical, e.end());
        while at < end {
            if let Some((_, before)) = taken.range(..=at).next_back()
                && before.end() > at
            {
                at = before.end();
                continue;
            }
            let stop = taken.range(at..end).next().map_or(end, |(k, _)| *k);
            let part = Extent { logical: at, physical: e.physical + (at - e.logical), len: (stop - at) as u32, flags: e.flags };
            taken.insert(at, part);
            at = stop;
        }
    }
    taken.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_go_to_the_first() {
        let e = |logical, physical, len| Extent { logical, physical, len, flags: 0 };
        assert_eq!(in_order(&[e(10, 100, 5), e(0, 50, 20)]), [e(0, 50, 10), e(10, 100, 5), e(15, 65, 5)]);
        assert_eq!(in_order(&[e(0, 1, 9), e(2, 50, 3)]), [e(0, 1, 9)]);
    }
}
