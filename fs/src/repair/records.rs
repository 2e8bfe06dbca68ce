//! What names a directory has, as far as anything of it can be read; and a new tree for them.
//!
//! A record is small and vouches for itself: its hash is that of its name under the volume's key. So records are kept from a leaf whose
//! checksum does not hold, and found again behind a record that is nonsense. Where they stand does not matter: a directory with
//! anything wrong in it is written anew, sorted, into new blocks.
//!
//! Invariant: no key, level or count is believed; a node is entered once, and only as deep as trees are. Not here: what names lead to.

use super::door::Judged;
use super::inodes::view;
use super::{Did, Repair, RepairError};
use crate::check::Code;
use luna_format::dir::{Dirent, HEAD_BYTES, entries, hash, push, record_bytes};
use luna_format::inode::{BODY_AT, BODY_BYTES, Layout, ROOT_ENTRIES};
use luna_format::tree::{ENTRIES_AT, Entry, MAX_DEPTH, NODE_ENTRIES, NodeHeader, check};
use luna_format::{BLOCK_BYTES, Block, BlockNo, HEADER_BYTES, Ino, Kind};
use zerocopy::IntoBytes;

/// Bytes for records in a leaf.
const LEAF_BYTES: usize = BLOCK_BYTES - ENTRIES_AT;
/// A new leaf is filled so far, so that the next name needs no split.
const LEAF_FILL: usize = LEAF_BYTES * 3 / 4;
/// A new node is filled so far.
const NODE_FILL: usize = NODE_ENTRIES * 3 / 4;

/// A name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rec {
    /// Its hash.
    pub(super) hash: u64,
    /// The name.
    pub(super) name: Vec<u8>,
    /// Where it leads.
    pub(super) ino: Ino,
    /// Generation of the inode.
    pub(super) generation: u64,
    /// Type, `mode >> 12`.
    pub(super) kind: u8,
}

/// What a directory holds.
#[derive(Default)]
pub(super) struct Content {
    /// Names in the order they stand.
    pub(super) records: Vec<Rec>,
    /// Tree nodes.
    pub(super) nodes: Vec<BlockNo>,
    /// It must be written anew.
    pub(super) broken: bool,
    /// Hash of the last record.
    last: Option<(u64, Vec<u8>)>,
}

/// Keys between which a subtree may lie.
#[derive(Clone, Copy)]
struct Bounds(u64, Option<u64>);

impl Repair<'_> {
    /// The names of the directory in `b`. Its nodes are claimed.
    pub(super) fn content(&mut self, dir: Ino, b: &Block, suspect: bool) -> Result<Content, RepairError> {
        let (i, mut c) = (view(b), Content { broken: suspect, ..Content::default() });
        if i.layout == Layout::DirTree as u8 {
            let root = entries_of(b, BODY_AT, i.count as usize);
            self.names_below(dir, &root, u16::from(i.depth), Bounds(0, None), &mut c)?;
        } else {
            let used = i.inline_len as usize;
            self.names_in(dir, dir, &b.0[BODY_AT..BODY_AT + used.min(BODY_BYTES)], u64::from(i.count), Bounds(0, None), &mut c);
        }
        Ok(c)
    }

    fn wrong(&mut self, c: &mut Content, code: Code, dir: Ino, block: BlockNo, text: &str) {
        c.broken = true;
        self.did(Did::new(code, self.place(dir).at_block(block), text));
    }

    fn names_below(&mut self, dir: Ino, all: &[Entry], level: u16, bounds: Bounds, c: &mut Content) -> Result<(), RepairError> {
        if level == 0 || level > u16::from(MAX_DEPTH) {
            return Ok(());
        }
        let below = level - 1;
        let kind = if below == 0 { Kind::DirLeaf } else { Kind::DirNode };
        for (n, e) in all.iter().enumerate() {
            let inside = e.key >= bounds.0 && bounds.1.is_none_or(|h| e.key < h);
            if n > 0 && !(inside && (n == 1 || all[n - 1].key < e.key)) {
                self.wrong(c, Code::D06, dir, dir, "the tree is written anew with ascending keys");
            }
            if !self.space.can_be_meta(e.child) {
                self.wrong(c, Code::D05, dir, dir, "a child outside of the groups is dropped");
                continue;
            }
            let b = self.door.one(e.child)?;
            match self.door.judge(&b, kind, e.child, dir) {
                Judged::Sound => {}
                Judged::Suspect(code, text) => {
                    self.wrong(c, code, dir, e.child, &format!("names that their hash proves are kept from this node ({text})"));
                }
                Judged::Bad(code, text) => {
                    c.broken = true;
                    let place = self.place(dir).at_block(e.child);
                    self.did(Did::lost(code, place, text, "the names in this node; what they led to is in lost+found"));
                    continue;
                }
            }
            if !self.space.claim_meta(e.child) {
                self.wrong(c, Code::U01, dir, e.child, "a node that is there already is dropped");
                continue;
            }
            c.nodes.push(e.child);
            let low = if n == 0 { bounds.0 } else { e.key };
            let bounds = Bounds(low, all.get(n + 1).map(|x| x.key).or(bounds.1));
            self.node(dir, &b, below, bounds, c)?;
        }
        Ok(())
    }

    fn node(&mut self, dir: Ino, b: &Block, level: u16, bounds: Bounds, c: &mut Content) -> Result<(), RepairError> {
        let block = b.header().block;
        let h = match check(b, level) {
            Ok(h) => h,
            Err(_) => {
                self.wrong(c, Code::D05, dir, block, "what can be read of a malformed node is kept");
                let raw = b.view::<NodeHeader>(HEADER_BYTES).copied();
                let count = raw.map_or(0, |r| (r.count as usize).min(NODE_ENTRIES));
                NodeHeader { level, count: count as u16, used: LEAF_BYTES as u32, reserved: 0 }
            }
        };
        if h.count == 0 {
            self.wrong(c, Code::D05, dir, block, "an empty node is dropped");
        }
        if level > 0 {
            let all = entries_of(b, ENTRIES_AT, h.count as usize);
            return self.names_below(dir, &all, level, bounds, c);
        }
        let used = &b.0[ENTRIES_AT..ENTRIES_AT + (h.used as usize).min(LEAF_BYTES)];
        self.names_in(dir, block, used, u64::from(h.count), bounds, c);
        Ok(())
    }

    /// The records of one leaf or body.
    fn names_in(&mut self, dir: Ino, block: BlockNo, bytes: &[u8], count: u64, bounds: Bounds, c: &mut Content) {
        let (mut at, mut found, mut skipped) = (0, 0, false);
        let key = self.sb.hash_key;
        while at + HEAD_BYTES <= bytes.len() {
            // behind nonsense, only what its hash proves is a record
            let one = entries(block, &bytes[at..]).next().and_then(Result::ok).filter(|e| !skipped || hash(&key, e.name) == e.head.hash);
            let Some(e) = one else {
                at += 8;
                if !skipped {
                    skipped = true;
                    self.wrong(c, Code::D01, dir, block, "records that their hash proves are kept behind a malformed one");
                }
                continue;
            };
            skipped = false;
            at += e.head.len as usize;
            found += 1;
            self.keep(dir, block, &e, bounds, c);
        }
        if at != bytes.len() && !skipped && !bytes.is_empty() {
            self.wrong(c, Code::D01, dir, block, "what is left at the end of the records is dropped");
        }
        if found != count && !c.broken {
            self.wrong(c, Code::D11, dir, block, &format!("{found} records, not {count}"));
        }
    }

    fn keep(&mut self, dir: Ino, block: BlockNo, e: &Dirent<'_>, bounds: Bounds, c: &mut Content) {
        let right = hash(&self.sb.hash_key, e.name);
        let name = e.name.escape_ascii();
        if e.head.hash != right {
            self.wrong(c, Code::D02, dir, block, &format!("'{name}' stands under its hash"));
        } else {
            if c.last.as_ref().is_some_and(|l| (l.0, l.1.as_slice()) >= (right, e.name)) {
                self.wrong(c, Code::D03, dir, block, &format!("'{name}' stands in order, once"));
            }
            if right < bounds.0 || bounds.1.is_some_and(|h| right >= h) {
                self.wrong(c, Code::D04, dir, block, &format!("'{name}' stands in its leaf"));
            }
            c.last = Some((right, e.name.to_vec()));
        }
        let (ino, generation, kind) = (e.head.ino, e.head.generation, e.head.kind);
        c.records.push(Rec { hash: right, name: e.name.to_vec(), ino, generation, kind });
    }

    /// Writes these names as the content of directory `dir` into `inode`; nodes go to new blocks, at once.
    pub(super) fn write_names(&mut self, dir: Ino, inode: &mut Block, records: &[Rec]) -> Result<(), RepairError> {
        let bytes: usize = records.iter().map(|r| record_bytes(r.name.len())).sum();
        let mut nodes = 0;
        inode.0[BODY_AT..].fill(0);
        let (layout, depth, count, inline_len) = if bytes <= BODY_BYTES {
            inode.0[BODY_AT..BODY_AT + bytes].copy_from_slice(&packed(records));
            (Layout::DirInline, 0, records.len(), bytes)
        } else {
            let mut level = self.leaves(dir, records)?;
            nodes += level.len();
            let mut depth = 1u8;
            while level.len() > ROOT_ENTRIES {
                level = self.above(dir, Kind::DirNode, &level, u16::from(depth))?;
                nodes += level.len();
                depth += 1;
            }
            let root = level.as_bytes();
            inode.0[BODY_AT..BODY_AT + root.len()].copy_from_slice(root);
            (Layout::DirTree, depth, level.len(), 0)
        };
        super::inodes::edit(inode, |i| {
            (i.layout, i.depth, i.count, i.inline_len) = (layout as u8, depth, count as u16, inline_len as u32);
            (i.size, i.entries) = (bytes as u64, records.len() as u64);
            i.blocks = nodes as u64 + u64::from(i.xattr_block != 0);
        });
        Ok(())
    }

    fn leaves(&mut self, dir: Ino, records: &[Rec]) -> Result<Vec<Entry>, RepairError> {
        let (mut out, mut from) = (Vec::new(), 0);
        while from < records.len() {
            let (mut to, mut bytes) = (from, 0);
            while let Some(r) = records.get(to) {
                let len = record_bytes(r.name.len());
                let same = to > from && records[to - 1].hash == r.hash;
                if bytes + len > if same { LEAF_BYTES } else { LEAF_FILL } {
                    break;
                }
                bytes += len;
                to += 1;
            }
            let mut b = Block::zeroed();
            set_node(&mut b, 0, to - from, bytes);
            b.0[ENTRIES_AT..ENTRIES_AT + bytes].copy_from_slice(&packed(&records[from..to]));
            let block = self.new_node(dir, Kind::DirLeaf, b)?;
            out.push(Entry { key: if from == 0 { 0 } else { records[from].hash }, child: block });
            from = to.max(from + 1);
        }
        Ok(out)
    }

    /// Nodes of `level` over `below`.
    pub(super) fn above(&mut self, ino: Ino, kind: Kind, below: &[Entry], level: u16) -> Result<Vec<Entry>, RepairError> {
        let mut out = Vec::new();
        for chunk in below.chunks(NODE_FILL) {
            let mut b = Block::zeroed();
            set_node(&mut b, level, chunk.len(), 0);
            let bytes = chunk.as_bytes();
            b.0[ENTRIES_AT..ENTRIES_AT + bytes.len()].copy_from_slice(bytes);
            let child = self.new_node(ino, kind, b)?;
            out.push(Entry { key: chunk[0].key, child });
        }
        Ok(out)
    }

    /// Writes a node to a new block.
    pub(super) fn new_node(&mut self, ino: Ino, kind: Kind, b: Block) -> Result<BlockNo, RepairError> {
        let block = self.space.new_meta(&self.door)?;
        self.door.put(block, kind, ino, b)?;
        Ok(block)
    }
}

/// The header of a node.
pub(super) fn set_node(b: &mut Block, level: u16, count: usize, used: usize) {
    let h = NodeHeader { level, count: count as u16, used: used as u32, reserved: 0 };
    b.0[HEADER_BYTES..ENTRIES_AT].copy_from_slice(h.as_bytes());
}

/// The first `count` entries at byte `at`.
pub(super) fn entries_of(b: &Block, at: usize, count: usize) -> Vec<Entry> {
    (0..count).filter_map(|n| b.view::<Entry>(at + n * size_of::<Entry>()).copied()).collect()
}

fn packed(records: &[Rec]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|r| push(&mut out, r.hash, r.ino, r.generation, r.kind, &r.name));
    out
}
