//! The walk: from the root and the orphan directories, directory by directory, to every inode that has a name.
//!
//! A queue, not a recursion: a directory is entered once, when its inode is first seen; a second name for it is a finding,
//! and so no loop can hold the walk. Inodes are read in batches of what a directory names.
//!
//! Invariant: when the walk ends, every inode that a name leads to was judged once and its blocks are claimed. Not here: the
//! trees (see `tree`), the fields (see `inodes`), inodes without a name (see `lost`).

use super::read::Fetched;
use super::tree::{Bounds, Tally, Tree, items};
use super::{Check, Code, Place, Result};
use crate::op::is_dir;
use crate::orphan::list_name;
use luna_format::ag::SegmentType;
use luna_format::dir::{Dirent, entries, hash, record_bytes};
use luna_format::inode::{BODY_AT, FLAG_ORPHAN, Inode, Layout};
use luna_format::superblock::Superblock;
use luna_format::tree::{ENTRIES_AT, Entry};
use luna_format::{Block, BlockNo, Ino, Kind, Slot};
use std::collections::{BTreeMap, VecDeque};

/// Inodes read at once.
const BATCH: usize = 1024;
/// Directories whose inodes are read ahead.
const AHEAD: usize = 64;
/// Steps to the root that a path shows at the most.
const PATH_STEPS: usize = 256;

/// How an inode was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The root of the volume.
    Root,
    /// The orphan directory of a slot.
    List(Slot),
    /// By a name in a directory.
    Named,
    /// By an entry of the orphan directory of a slot.
    Listed(Slot),
}

/// A reference to an inode, to be followed.
struct Ref {
    ino: Ino,
    dir: Ino,
    role: Role,
    /// Generation and type in the entry.
    says: Option<(u64, u8)>,
    name: Vec<u8>,
}

/// What the walk remembers.
#[derive(Default)]
pub(super) struct Names {
    /// Of each directory: parent and name; of the inode being looked at, too.
    dirs: BTreeMap<Ino, (Ino, Box<[u8]>)>,
    now: Option<(Ino, Ino, Box<[u8]>)>,
    /// Directories to be read.
    queue: VecDeque<(Ino, Role)>,
    /// Files with more (or fewer) links than one: links the inode counts, names found.
    links: BTreeMap<Ino, (u32, u32)>,
}

impl Names {
    /// The path of a directory, or of the inode being looked at.
    pub(super) fn path(&self, sb: &Superblock, ino: Ino) -> Option<String> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        if let Some((_, dir, name)) = self.now.as_ref().filter(|n| n.0 == ino) {
            parts.push(name);
            at = *dir;
        }
        while at != sb.root_ino && parts.len() < PATH_STEPS {
            let (parent, name) = self.dirs.get(&at)?;
            parts.push(name);
            if *parent == at {
                break;
            }
            at = *parent;
        }
        let orphans = (sb.orphan_ino..sb.orphan_ino + u64::from(sb.slots)).contains(&at);
        let text: Vec<String> = parts.iter().rev().map(|p| p.escape_ascii().to_string()).collect();
        Some(format!("{}{}", if orphans { "" } else { "/" }, text.join("/")))
    }
}

/// What the walk through one directory has counted.
#[derive(Default)]
struct Counts {
    entries: u64,
    bytes: u64,
    subdirs: u64,
    last: Option<(u64, Vec<u8>)>,
    refs: Vec<Ref>,
}

/// Walks everything that has a name, or is listed as an orphan.
pub(super) fn walk(c: &mut Check<'_>) -> Result<()> {
    let root = c.sb.root_ino;
    c.visit(vec![Ref { ino: root, dir: root, role: Role::Root, says: None, name: Vec::new() }])?;
    let list = |s: Slot| {
        let ino = c.sb.orphan_dir(s);
        let name = format!("(orphans of slot {s})").into_bytes();
        Ref { ino, dir: ino, role: Role::List(s), says: None, name }
    };
    let lists: Vec<Ref> = (0..c.sb.slots as Slot).map(list).collect();
    c.drain()?;
    c.visit(lists)?;
    c.drain()
}

/// Links of files with several names.
pub(super) fn links(c: &mut Check<'_>) -> Result<()> {
    for (ino, (counted, found)) in std::mem::take(&mut c.names.links) {
        // names that were not seen may lie in what could not be read
        if found > counted || (found < counted && !c.incomplete) {
            c.found(Code::L02, Place::ino(ino), format!("expected {found} as there are names, found {counted}"));
        }
    }
    Ok(())
}

impl Check<'_> {
    /// Reads directories until none is left.
    fn drain(&mut self) -> Result<()> {
        while !self.names.queue.is_empty() {
            let n = self.names.queue.len().min(AHEAD);
            let batch: Vec<(Ino, Role)> = self.names.queue.drain(..n).collect();
            let wanted: Vec<BlockNo> = batch.iter().map(|(ino, _)| *ino).collect();
            for ((ino, role), fetched) in batch.into_iter().zip(self.reader.many(&wanted)?) {
                self.progress("files and directories", self.space.claimed, self.space.expected.max(1));
                // it was judged when it was found; only a host that is still writing can have changed it
                if let Ok(b) = fetched
                    && let Ok(i) = luna_format::inode::check(&b)
                {
                    self.directory(ino, role, &i, &b)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at what references lead to; answers how many of them are directories.
    fn visit(&mut self, refs: Vec<Ref>) -> Result<u64> {
        let mut subdirs = 0;
        for batch in refs.chunks(BATCH) {
            let wanted: Vec<BlockNo> = batch.iter().map(|r| r.ino).collect();
            let mut xattrs = Vec::new();
            for (r, fetched) in batch.iter().zip(self.reader.many(&wanted)?) {
                self.names.now = Some((r.ino, r.dir, r.name.clone().into_boxed_slice()));
                let found = self.one(r, &fetched)?;
                let dir = found.map_or(r.says.is_some_and(|s| u32::from(s.1) << 12 == crate::op::S_IFDIR), |i| is_dir(i.mode));
                subdirs += u64::from(dir);
                xattrs.extend(found.filter(|i| i.xattr_block != 0).map(|i| (r.ino, i.xattr_block)));
                self.names.now = None;
            }
            xattrs.retain(|x: &(Ino, BlockNo)| x.1 != 0);
            self.xattrs(&xattrs)?;
        }
        Ok(subdirs)
    }

    /// One reference: the inode it leads to, with `xattr_block` cleared if it was seen before.
    fn one(&mut self, r: &Ref, fetched: &Fetched) -> Result<Option<Inode>> {
        let own = self.sb.ag_of(r.ino).map(|n| self.sb.ag_region(n).0);
        if own.is_none() || own == Some(r.ino) {
            let place = self.place(r.dir);
            self.found(Code::D07, place, format!("expected '{}' to lead to an inode, found {}", r.name.escape_ascii(), r.ino));
            return Ok(None);
        }
        let place = self.place(r.ino);
        let Some((b, _)) = self.open(fetched, Kind::Inode, r.ino, r.ino, place.clone()) else { return Ok(None) };
        if b.view::<Inode>(luna_format::HEADER_BYTES).is_some_and(|i| i.mode == 0) {
            self.found(Code::I06, place, "expected an inode in use, found a freed one");
            return Ok(None);
        }
        let Some(i) = self.fields(r.ino, b) else { return Ok(None) };
        self.judge_reference(r, &i);
        if self.space.seen_inode(&self.sb, r.ino) {
            self.seen_again(r, &i);
            return Ok(Some(Inode { xattr_block: 0, ..i }));
        }
        self.first_sight(r, &i, b)?;
        Ok(Some(i))
    }

    /// What the entry says about the inode, and how the inode may be found.
    fn judge_reference(&mut self, r: &Ref, i: &Inode) {
        let place = self.place(r.ino);
        if let Some((generation, kind)) = r.says {
            if generation != i.generation {
                self.found(Code::D08, place.clone(), format!("expected generation {}, found {generation} in the name", i.generation));
            }
            if u32::from(kind) != i.mode >> 12 {
                self.found(Code::D09, place.clone(), format!("expected type {:#o}, found {kind:#o} in the name", i.mode >> 12));
            }
        }
        let orphan = i.flags & FLAG_ORPHAN != 0;
        match r.role {
            Role::Listed(slot) => self.judge_orphan(r, i, slot),
            _ if orphan || i.nlink == 0 => {
                let text =
                    format!("expected links and no orphan mark, found {} links{}", i.nlink, if orphan { " and the mark" } else { "" });
                self.found(Code::P01, place.clone(), text);
            }
            _ => {}
        }
        if is_dir(i.mode) && !matches!(r.role, Role::Listed(_)) && i.parent != r.dir {
            self.found(Code::D10, place, format!("expected parent {}, found {}", r.dir, i.parent));
        }
    }

    fn judge_orphan(&mut self, r: &Ref, i: &Inode, slot: Slot) {
        let place = self.place(r.ino);
        if i.flags & FLAG_ORPHAN == 0 {
            self.found(Code::P02, place.clone(), format!("expected flag {FLAG_ORPHAN}, found flags {:#x}", i.flags));
        } else if i.orphan_slot != u32::from(slot) {
            self.found(Code::P03, place.clone(), format!("expected slot {slot}, found {} in the inode", i.orphan_slot));
        }
        if i.nlink != 0 {
            self.found(Code::P04, place.clone(), format!("expected 0 links, found {}", i.nlink));
        }
        if r.name != list_name(r.ino) {
            let (expected, found) = (list_name(r.ino).escape_ascii().to_string(), r.name.escape_ascii().to_string());
            self.found(Code::P06, place.clone(), format!("expected '{expected}', found '{found}'"));
        }
        if is_dir(i.mode) && i.entries != 0 {
            self.found(Code::P07, place, format!("expected 0 entries, found {}", i.entries));
        }
    }

    fn seen_again(&mut self, r: &Ref, i: &Inode) {
        let place = self.place(r.ino);
        if matches!(r.role, Role::Listed(_)) {
            self.found(Code::P05, place, format!("expected one entry for inode {}, found another", r.ino));
        } else if is_dir(i.mode) {
            self.found(Code::D12, place, format!("expected one name for directory {}, found another", r.ino));
        } else {
            self.names.links.entry(r.ino).or_insert((i.nlink, 1)).1 += 1;
        }
    }

    /// An inode nobody has looked at yet.
    fn first_sight(&mut self, r: &Ref, i: &Inode, b: &Block) -> Result<()> {
        self.summary.inodes += 1;
        self.summary.orphans += u64::from(matches!(r.role, Role::Listed(_)));
        self.claim(r.ino, 1, SegmentType::Meta, &|c| c.place(r.ino));
        self.judge_fields(r.ino, i, b);
        if is_dir(i.mode) {
            self.names.dirs.insert(r.ino, (r.dir, r.name.clone().into_boxed_slice()));
            self.names.queue.push_back((r.ino, r.role));
            return Ok(());
        }
        if r.role == Role::Named && i.nlink > 1 {
            self.names.links.insert(r.ino, (i.nlink, 1));
        }
        if r.role == Role::Root {
            let place = self.place(r.ino);
            self.found(Code::I02, place, format!("expected a directory as root, found mode {:#o}", i.mode));
        }
        let tally = self.extents(r.ino, i, b)?;
        self.judge_blocks(r.ino, i, tally);
        Ok(())
    }

    /// Reads a directory's entries and follows them.
    fn directory(&mut self, dir: Ino, role: Role, i: &Inode, b: &Block) -> Result<()> {
        self.summary.directories += 1;
        let mut counts = Counts::default();
        let tally = if i.layout == Layout::DirTree as u8 {
            let root: Vec<Entry> = items::<Entry>(&b.0[BODY_AT..], i.count as usize).to_vec();
            let level = u16::from(i.depth).saturating_sub(1);
            self.walk_tree(Tree::names(dir), &root, level, Bounds::ALL, &mut |c, leaf, h, bounds| {
                let block = leaf.header().block;
                let used = &leaf.0[ENTRIES_AT..ENTRIES_AT + h.used as usize];
                let sound = c.records(dir, role, block, used, u64::from(h.count), bounds, &mut counts);
                if counts.refs.len() >= BATCH {
                    let refs = std::mem::take(&mut counts.refs);
                    counts.subdirs += c.visit(refs)?;
                }
                Ok(Tally { broken: !sound, ..Tally::default() })
            })?
        } else {
            let used = &b.0[BODY_AT..BODY_AT + i.inline_len as usize];
            let sound = self.records(dir, role, dir, used, u64::from(i.count), Bounds::ALL, &mut counts);
            Tally { broken: !sound, ..Tally::default() }
        };
        let refs = std::mem::take(&mut counts.refs);
        counts.subdirs += self.visit(refs)?;
        self.judge_directory(dir, role, i, &counts, tally);
        Ok(())
    }

    fn judge_directory(&mut self, dir: Ino, role: Role, i: &Inode, counts: &Counts, tally: Tally) {
        self.judge_blocks(dir, i, tally);
        if tally.broken {
            return;
        }
        let place = self.place(dir);
        if i.entries != counts.entries {
            self.found(Code::D11, place.clone(), format!("expected {}, found {}", counts.entries, i.entries));
        }
        if i.size != counts.bytes {
            self.found(Code::I04, place.clone(), format!("expected {} as the records take, found {}", counts.bytes, i.size));
        }
        let expected = match role {
            Role::Root | Role::Named => 2 + counts.subdirs,
            Role::List(_) => 2,
            Role::Listed(_) => return,
        };
        if u64::from(i.nlink) != expected {
            self.found(Code::L01, place, format!("expected {expected}, found {}", i.nlink));
        }
    }

    /// The records of one leaf or body; false when they cannot be read to the end.
    #[allow(clippy::too_many_arguments, reason = "a leaf is described by all of them; a struct would be used once")]
    fn records(&mut self, dir: Ino, role: Role, block: BlockNo, used: &[u8], count: u64, bounds: Bounds, out: &mut Counts) -> bool {
        let before = out.entries;
        let mut sound = true;
        for e in entries(block, used) {
            match e {
                Ok(e) => self.record(dir, role, block, &e, bounds, out),
                Err(e) => {
                    let place = self.place(dir).at_block(block);
                    self.found(Code::D01, place, super::finding::of_check_error(&e).1);
                    self.incomplete = true;
                    sound = false;
                }
            }
        }
        if sound && out.entries - before != count {
            let place = self.place(dir).at_block(block);
            self.found(Code::D11, place, format!("expected {} in this node, found {count}", out.entries - before));
        }
        sound
    }

    fn record(&mut self, dir: Ino, role: Role, block: BlockNo, e: &Dirent<'_>, bounds: Bounds, out: &mut Counts) {
        let name = e.name.escape_ascii();
        let expected = hash(&self.sb.hash_key, e.name);
        if e.head.hash != expected {
            let place = self.place(dir).at_block(block);
            self.found(Code::D02, place, format!("expected {expected:#x} for '{name}', found {:#x}", e.head.hash));
        } else {
            if out.last.as_ref().is_some_and(|l| (l.0, l.1.as_slice()) >= (e.head.hash, e.name)) {
                let place = self.place(dir).at_block(block);
                self.found(Code::D03, place, format!("expected '{name}' behind the record before it, found it in front or again"));
            }
            if e.head.hash < bounds.low || bounds.high.is_some_and(|h| e.head.hash >= h) {
                let place = self.place(dir).at_block(block);
                let text = format!("expected '{name}' within {:#x} to {:x?}, found {:#x}", bounds.low, bounds.high, e.head.hash);
                self.found(Code::D04, place, text);
            }
            out.last = Some((e.head.hash, e.name.to_vec()));
        }
        out.entries += 1;
        out.bytes += record_bytes(e.name.len()) as u64;
        let role = if let Role::List(slot) = role { Role::Listed(slot) } else { Role::Named };
        let says = Some((e.head.generation, e.head.kind));
        out.refs.push(Ref { ino: e.head.ino, dir, role, says, name: e.name.to_vec() });
    }
}
