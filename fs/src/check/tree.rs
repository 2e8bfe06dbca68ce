//! The two trees of an inode (extents, names): one walk for both, top down, child blocks in batches; and the extents.
//!
//! Invariant: recursion is as deep as the tree may be ([`MAX_DEPTH`]) and no deeper; a block that somebody else owns is not
//! entered; every key, child address and extent was compared with the bounds that its ancestors set. Not here: records of
//! directories, fields of inodes.

use super::read::Fetched;
use super::{Check, Code, Place, Result};
use luna_format::ag::SegmentType;
use luna_format::inode::{BODY_AT, EXTENT_UNWRITTEN, Extent, Inode, Layout, MAX_SIZE};
use luna_format::tree::{self, ENTRIES_AT, Entry, MAX_DEPTH, NodeHeader};
use luna_format::{BLOCK_U64, Block, BlockNo, CheckError, Ino, Kind};
use zerocopy::FromBytes;

/// Children read at once.
const BATCH: usize = 256;
/// The longest extent that is ever written.
const MAX_LEN: u64 = (1 << 31) - 1;

/// What a subtree came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Tree nodes.
    pub(super) nodes: u64,
    /// Data blocks.
    pub(super) data: u64,
    /// Something could not be followed: the sums are too small.
    pub(super) broken: bool,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.data += other.data;
        self.broken |= other.broken;
    }
}

/// Keys that a subtree may hold: from `low` to just before `high`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) low: u64,
    pub(super) high: Option<u64>,
}

impl Bounds {
    /// Everything.
    pub(super) const ALL: Self = Self { low: 0, high: None };

    fn has(&self, key: u64) -> bool {
        key >= self.low && self.high.is_none_or(|h| key < h)
    }
}

/// A tree: whose it is and how its findings are called.
#[derive(Clone, Copy)]
pub(super) struct Tree {
    pub(super) ino: Ino,
    node: Kind,
    leaf: Kind,
    shape: Code,
    order: Code,
}

impl Tree {
    /// The extents of `ino`.
    pub(super) fn extents(ino: Ino) -> Self {
        Self { ino, node: Kind::ExtentNode, leaf: Kind::ExtentNode, shape: Code::E06, order: Code::E07 }
    }

    /// The names of `ino`.
    pub(super) fn names(ino: Ino) -> Self {
        Self { ino, node: Kind::DirNode, leaf: Kind::DirLeaf, shape: Code::D05, order: Code::D06 }
    }
}

/// What is done with a leaf: its block, its checked header, its bounds.
pub(super) type OnLeaf<'f> = &'f mut dyn FnMut(&mut Check<'_>, &Block, NodeHeader, Bounds) -> Result<Tally>;

/// The first `n` items of `bytes`.
pub(super) fn items<T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout>(bytes: &[u8], n: usize) -> &[T] {
    n.checked_mul(size_of::<T>()).and_then(|len| bytes.get(..len)).and_then(|b| <[T]>::ref_from_bytes(b).ok()).unwrap_or(&[])
}

impl Check<'_> {
    /// Walks the tree below root entries (or any node's) that lead to nodes of `level`.
    pub(super) fn walk_tree(&mut self, t: Tree, entries: &[Entry], level: u16, bounds: Bounds, on_leaf: OnLeaf<'_>) -> Result<Tally> {
        let mut tally = Tally::default();
        if level >= u16::from(MAX_DEPTH) {
            return Ok(Tally { broken: true, ..tally });
        }
        let mut todo: Vec<(BlockNo, Bounds)> = Vec::with_capacity(entries.len());
        for (i, e) in entries.iter().enumerate() {
            let next = entries.get(i + 1).map(|n| n.key);
            // the key of the first entry counts as minus infinity
            let low = if i == 0 { bounds.low } else { e.key };
            let sorted = i == 0 || (bounds.has(e.key) && (i == 1 || entries[i - 1].key < e.key));
            if !sorted {
                let text =
                    format!("expected key {i} of a node above level {level} between its neighbours' and its bounds, found {:#x}", e.key);
                let place = self.place(t.ino);
                self.found(t.order, place, text);
            }
            if self.sb.ag_of(e.child).is_none() {
                let place = self.place(t.ino);
                self.found(t.shape, place, format!("expected the address of a node of level {level}, found {}", e.child));
                self.incomplete = true;
                tally.broken = true;
                continue;
            }
            tally.nodes += 1;
            if self.claim(e.child, 1, SegmentType::Meta, &|c| c.place(t.ino)) {
                todo.push((e.child, Bounds { low, high: next.or(bounds.high) }));
            } else {
                tally.broken = true;
            }
        }
        for batch in todo.chunks(BATCH) {
            let wanted: Vec<BlockNo> = batch.iter().map(|(b, _)| *b).collect();
            for ((block, bounds), fetched) in batch.iter().zip(self.reader.many(&wanted)?) {
                let below = self.node(t, *block, level, *bounds, &fetched, on_leaf)?;
                tally.add(below);
            }
        }
        Ok(tally)
    }

    fn node(&mut self, t: Tree, block: BlockNo, level: u16, bounds: Bounds, fetched: &Fetched, on_leaf: OnLeaf<'_>) -> Result<Tally> {
        const BROKEN: Tally = Tally { nodes: 0, data: 0, broken: true };
        let kind = if level == 0 { t.leaf } else { t.node };
        let place = self.place(t.ino);
        let Some((b, _)) = self.open(fetched, kind, block, t.ino, place.clone()) else { return Ok(BROKEN) };
        let h = match tree::check(b, level) {
            Ok(h) if h.count > 0 => h,
            Ok(_) => {
                self.found(t.shape, place.at_block(block), "expected at least one entry in a node, found none");
                return Ok(Tally::default());
            }
            Err(e) => {
                let text = match e {
                    CheckError::Field { what: "tree level", found, .. } => format!("expected level {level}, found {found}"),
                    other => super::finding::of_check_error(&other).1,
                };
                self.found(t.shape, place.at_block(block), text);
                self.incomplete = true;
                return Ok(BROKEN);
            }
        };
        if level == 0 {
            return on_leaf(self, b, h, bounds);
        }
        let entries: Vec<Entry> = items::<Entry>(&b.0[ENTRIES_AT..], h.count as usize).to_vec();
        self.walk_tree(t, &entries, level - 1, bounds, on_leaf)
    }

    /// All extents of a file, inline or in a tree; what they claim.
    pub(super) fn extents(&mut self, ino: Ino, i: &Inode, b: &Block) -> Result<Tally> {
        match Layout::from_u8(i.layout) {
            Some(Layout::Extents) => {
                let list: Vec<Extent> = items::<Extent>(&b.0[BODY_AT..], i.count as usize).to_vec();
                if list.is_empty() {
                    let place = self.place(ino);
                    self.found(Code::E06, place, "expected at least one extent in the inode, found none");
                }
                Ok(self.extent_list(ino, None, &list, Bounds::ALL))
            }
            Some(Layout::ExtentTree) => {
                let entries: Vec<Entry> = items::<Entry>(&b.0[BODY_AT..], i.count as usize).to_vec();
                let level = u16::from(i.depth).saturating_sub(1);
                self.walk_tree(Tree::extents(ino), &entries, level, Bounds::ALL, &mut |c, leaf, h, bounds| {
                    let list: Vec<Extent> = items::<Extent>(&leaf.0[ENTRIES_AT..], h.count as usize).to_vec();
                    Ok(c.extent_list(ino, Some(leaf.header().block), &list, bounds))
                })
            }
            _ => Ok(Tally::default()),
        }
    }

    /// One sorted list of extents.
    fn extent_list(&mut self, ino: Ino, leaf: Option<BlockNo>, list: &[Extent], bounds: Bounds) -> Tally {
        let (mut tally, mut end) = (Tally::default(), 0);
        for (n, e) in list.iter().enumerate() {
            let len = u64::from(e.len);
            let say = |c: &mut Self, code, text: String| {
                let place = c.place(ino).at_block(leaf.unwrap_or(ino));
                c.found(code, place, text);
            };
            if len == 0 || len > MAX_LEN || e.logical > MAX_SIZE / BLOCK_U64 {
                say(
                    self,
                    Code::E03,
                    format!("expected 1 to {MAX_LEN} blocks below the greatest size, found extent {n} of {len} at {}", e.logical),
                );
                tally.broken = true;
                continue;
            }
            if e.logical < end {
                say(self, Code::E01, format!("expected extent {n} at logical block {end} or later, found {}", e.logical));
            }
            if !bounds.has(e.logical) || bounds.high.is_some_and(|h| e.end() > h) {
                let text = format!("expected extent {n} within {} to {:?}, found {} to {}", bounds.low, bounds.high, e.logical, e.end());
                say(self, Code::E05, text);
            }
            if e.flags & !EXTENT_UNWRITTEN != 0 {
                say(self, Code::E04, format!("expected no flags but {EXTENT_UNWRITTEN}, found {:#x} in extent {n}", e.flags));
            }
            end = end.max(e.end());
            tally.data += len;
            let last = e.physical.checked_add(len - 1);
            if self.sb.ag_of(e.physical).is_none() || last.is_none_or(|l| self.sb.ag_of(l).is_none()) {
                say(self, Code::E02, format!("expected blocks of the groups, found extent {n} at {} of {len} blocks", e.physical));
                self.incomplete = true;
                continue;
            }
            self.claim(e.physical, len, SegmentType::Data, &|c| c.place(ino));
        }
        tally
    }

    /// An inode with its path, as far as it is known.
    pub(super) fn place(&self, ino: Ino) -> Place {
        Place { ino: Some(ino), path: self.names.path(&self.sb, ino), ..Place::default() }
    }
}
