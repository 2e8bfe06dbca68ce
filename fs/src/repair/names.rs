//! The walk: from the root and the lists of orphans to every inode with a name, keeping the names that lead somewhere.
//!
//! A directory is entered once, in the order of a queue. A name is kept when it leads to an inode in use of the generation it says; a
//! directory keeps the first of its names; a file all of them. Invariant: every inode that a kept name leads to is claimed once, its
//! fields agree, and its attributes are its own. Not here: where names stand (`records`), inodes without names (`lost`).

use super::door::Judged;
use super::inodes::{Fixed, edit, view};
use super::records::{Content, Rec};
use super::{Body, Did, Repair, RepairError};
use crate::check::Code;
use crate::op::{S_IFDIR, S_IFMT, S_IFREG, is_dir};
use crate::orphan::list_name;
use luna_format::inode::{FLAG_ORPHAN, Inode, Layout};
use luna_format::{Block, Ino, Kind, Slot};

/// Names whose inodes are read at once.
const BATCH: usize = 512;
/// The name of the directory for what has lost its own.
pub(super) const LOST: &[u8] = b"lost+found";

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The root, or any directory below it.
    Tree,
    /// The orphan directory of a slot.
    List(Slot),
    /// Itself an orphan.
    Orphan,
}

/// A directory to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dir {
    pub(super) ino: Ino,
    pub(super) role: Role,
    /// Its inode did not pass its checksum.
    pub(super) suspect: bool,
}

impl Repair<'_> {
    /// Walks everything that has a name or is listed as an orphan.
    pub(super) fn walk(&mut self) -> Result<(), RepairError> {
        let (root, sb) = (self.sb.root_ino, self.sb);
        self.fixed_directory(root, 0o755, Role::Tree)?;
        self.drain()?;
        for slot in 0..sb.slots as Slot {
            self.fixed_directory(sb.orphan_dir(slot), 0o700, Role::List(slot))?;
        }
        self.drain()
    }

    /// Reads directories until none is left.
    pub(super) fn drain(&mut self) -> Result<(), RepairError> {
        let mut n = 0;
        while let Some(d) = self.queue.pop_front() {
            n += 1;
            self.progress("directories", n, n + self.queue.len() as u64);
            self.directory(d)?;
        }
        Ok(())
    }

    /// A directory whose place the superblock says; it is made anew when nothing of it is left.
    fn fixed_directory(&mut self, ino: Ino, bits: u32, role: Role) -> Result<(), RepairError> {
        let mut b = self.door.one(ino)?;
        let (mut suspect, mut changed) = (false, false);
        match self.door.judge(&b, Kind::Inode, ino, ino) {
            Judged::Bad(code, text) => {
                let what = if role == Role::Tree {
                    "the names in the root; what they led to is in lost+found"
                } else {
                    "a list of deleted files; they are freed"
                };
                self.did(Did::lost(code, self.place(ino), format!("made anew, empty ({text})"), what));
                b = Block::zeroed();
                changed = true;
            }
            Judged::Suspect(code, text) => {
                (suspect, changed) = (true, true);
                self.did(Did::new(code, self.place(ino), format!("kept as far as it can be read ({text})")));
            }
            Judged::Sound => {}
        }
        if !is_dir(view(&b).mode) {
            let found = view(&b).mode;
            edit(&mut b, |i| i.mode = S_IFDIR | bits);
            if Layout::from_u8(view(&b).layout).is_none_or(|l| !matches!(l, Layout::DirInline | Layout::DirTree)) {
                edit(&mut b, |i| (i.layout, i.inline_len, i.count, i.generation) = (Layout::DirInline as u8, 0, 0, i.generation.max(1)));
            }
            if !changed {
                self.did(Did::new(Code::I02, self.place(ino), format!("is a directory, not of mode {found:#o}")));
            }
            changed = true;
        }
        let Some(fixed) = self.fields(ino, &b, Some((S_IFDIR >> 12) as u8))? else { return Ok(()) };
        self.adopt(ino, fixed, changed, Dir { ino, role, suspect }, ino)
    }

    /// Takes an inode into the tree: claims it and what hangs on it, and puts it on the queue of its kind.
    pub(super) fn adopt(&mut self, ino: Ino, fixed: Fixed, changed: bool, d: Dir, parent: Ino) -> Result<(), RepairError> {
        let Fixed { mut block, changed: fields, resize } = fixed;
        let mut changed = changed | fields;
        self.space.see_inode(ino);
        self.space.claim_meta(ino);
        changed |= self.attributes(ino, &mut block)?;
        let i = view(&block);
        if d.role != Role::Orphan && (i.flags & FLAG_ORPHAN != 0 || i.nlink == 0) {
            self.did(Did::new(Code::P01, self.place(ino), "a name leads to it: it is no orphan"));
            edit(&mut block, |i| (i.flags, i.orphan_slot, i.nlink) = (0, 0, i.nlink.max(1)));
            changed = true;
        }
        if is_dir(i.mode) {
            if d.role != Role::Orphan && i.parent != parent {
                self.did(Did::new(Code::D10, self.place(ino), format!("parent is {parent}, not {}", i.parent)));
                edit(&mut block, |i| i.parent = parent);
                changed = true;
            }
            self.queue.push_back(d);
        } else if i.mode & S_IFMT == S_IFREG && matches!(Layout::from_u8(i.layout), Some(Layout::Extents | Layout::ExtentTree)) {
            self.files.push((ino, d.suspect));
            if resize {
                self.resize.insert(ino);
            }
        } else {
            let blocks = u64::from(i.xattr_block != 0);
            if i.blocks != blocks {
                self.did(Did::new(Code::I05, self.place(ino), format!("{blocks} blocks, not {}", i.blocks)));
                edit(&mut block, |i| i.blocks = blocks);
                changed = true;
            }
        }
        if changed {
            self.plan(ino, block, Body::AsIs);
        }
        Ok(())
    }

    /// One directory: its names, and its fields against them.
    fn directory(&mut self, d: Dir) -> Result<(), RepairError> {
        let mut b = self.inode_now(d.ino)?;
        let mut c = self.content(d.ino, &b, d.suspect)?;
        let mut all = std::mem::take(&mut c.records);
        if c.broken {
            all.sort_by(|x, y| (x.hash, &x.name).cmp(&(y.hash, &y.name)));
            all.dedup_by(|x, y| (x.hash, &x.name) == (y.hash, &y.name));
        }
        let (mut kept, mut subdirs) = (Vec::with_capacity(all.len()), 0);
        for batch in all.chunks(BATCH) {
            let can: Vec<Ino> = batch.iter().map(|r| r.ino).filter(|i| self.space.can_be_meta(*i)).collect();
            let mut blocks = self.door.many(&can)?.into_iter();
            for r in batch {
                let block = if self.space.can_be_meta(r.ino) { blocks.next() } else { None };
                let mut r = r.clone();
                self.now = Some((r.ino, d.ino, r.name.clone().into()));
                let was = r.clone();
                let keep = match (block, d.role) {
                    (None, _) => self.drop_name(Code::D07, d.ino, &r, "leads to no inode"),
                    (Some(b), Role::List(slot)) => self.listed(slot, &mut r, &b)?,
                    (Some(b), _) => self.named(d.ino, &mut r, &b)?,
                };
                self.now = None;
                c.broken |= !keep || r != was;
                if keep {
                    subdirs += u64::from(u32::from(r.kind) << 12 == S_IFDIR);
                    kept.push(r);
                }
            }
        }
        if d.ino == self.sb.root_ino {
            self.lost_dir = kept.iter().find(|r| r.name == LOST && u32::from(r.kind) << 12 == S_IFDIR).map(|r| r.ino);
        }
        let changed = self.judge_directory(d, &mut b, &c, &kept, subdirs);
        if c.broken {
            c.nodes.iter().for_each(|n| self.space.leave(*n));
            kept.sort();
            self.plan(d.ino, b, Body::Names(kept));
        } else if changed {
            self.plan(d.ino, b, Body::AsIs);
        }
        Ok(())
    }

    /// The counts in a directory's inode.
    fn judge_directory(&mut self, d: Dir, b: &mut Block, c: &Content, kept: &[Rec], subdirs: u64) -> bool {
        let i = view(b);
        let bytes: u64 = kept.iter().map(|r| luna_format::dir::record_bytes(r.name.len()) as u64).sum();
        let blocks = c.nodes.len() as u64 + u64::from(i.xattr_block != 0);
        let nlink = match d.role {
            Role::Tree => 2 + subdirs,
            Role::List(_) => 2,
            Role::Orphan => 0,
        };
        let want = Inode { entries: kept.len() as u64, size: bytes, blocks, nlink: nlink as u32, ..i };
        for (code, differs, text) in [
            (Code::D11, want.entries != i.entries, format!("{} entries, not {}", want.entries, i.entries)),
            (Code::I04, want.size != i.size, format!("size is {}, not {}", want.size, i.size)),
            (Code::I05, want.blocks != i.blocks && !c.broken, format!("{} blocks, not {}", want.blocks, i.blocks)),
            (Code::L01, want.nlink != i.nlink, format!("{} links, not {}", want.nlink, i.nlink)),
        ] {
            if differs {
                self.did(Did::new(code, self.place(d.ino), text));
            }
        }
        edit(b, |to| *to = want);
        want != i
    }

    /// Says that a name goes.
    fn drop_name(&mut self, code: Code, dir: Ino, r: &Rec, why: &str) -> bool {
        let name = r.name.escape_ascii().to_string();
        self.did(Did::lost(code, self.place(dir), why, format!("the name '{name}'")));
        false
    }

    /// Whether the block that a name leads to is an inode in use; and if it passed its checksum.
    fn in_use(&mut self, dir: Ino, r: &Rec, b: &Block) -> Option<bool> {
        let suspect = match self.door.judge(b, Kind::Inode, r.ino, r.ino) {
            Judged::Sound => false,
            Judged::Suspect(..) => true,
            Judged::Bad(code, text) => {
                let name = r.name.escape_ascii().to_string();
                self.did(Did::lost(code, self.place(r.ino), text, format!("'{name}' and what it held")));
                return None;
            }
        };
        if view(b).mode == 0 && !suspect {
            self.drop_name(Code::I06, dir, r, "leads to a freed inode");
            return None;
        }
        Some(suspect)
    }

    /// The fields of an inode that `r` is the first name of. A suspect one is what its name says, where they differ.
    fn first_sight(&mut self, dir: Ino, r: &mut Rec, b: &Block, suspect: bool) -> Result<Option<Fixed>, RepairError> {
        let mut b = b.clone();
        if suspect {
            let kind = u32::from(r.kind) << 12;
            edit(&mut b, |i| {
                i.generation = r.generation;
                if super::inodes::known(kind) {
                    i.mode = kind | (i.mode & 0o7777);
                }
            });
            let text = "kept as far as it makes sense, although its checksum is wrong";
            self.did(Did::lost(Code::B01, self.place(r.ino), text, "trust: compare its content"));
        } else if view(&b).generation != r.generation {
            self.drop_name(Code::D08, dir, r, "leads to another generation of its inode");
            return Ok(None);
        }
        let Some(mut fixed) = self.fields(r.ino, &b, Some(r.kind))? else {
            let name = r.name.escape_ascii().to_string();
            self.did(Did::lost(Code::I01, self.place(r.ino), "nothing of it can be kept", format!("'{name}'")));
            return Ok(None);
        };
        fixed.changed |= suspect;
        let kind = (view(&fixed.block).mode >> 12) as u8;
        if kind != r.kind {
            self.did(Did::new(Code::D09, self.place(r.ino), format!("type in the name is {kind:#o}, not {:#o}", r.kind)));
            r.kind = kind;
        }
        Ok(Some(fixed))
    }

    /// A name in a directory: whether it is kept.
    fn named(&mut self, dir: Ino, r: &mut Rec, b: &Block) -> Result<bool, RepairError> {
        if (0..self.sb.slots as Slot).any(|s| self.sb.orphan_dir(s) == r.ino) {
            return Ok(self.drop_name(Code::D12, dir, r, "leads to a list of orphans, which has no name"));
        }
        let Some(suspect) = self.in_use(dir, r, b) else { return Ok(false) };
        if self.space.saw_inode(r.ino) {
            return Ok(self.named_again(dir, r));
        }
        let Some(fixed) = self.first_sight(dir, r, b, suspect)? else { return Ok(false) };
        let i = view(&fixed.block);
        if is_dir(i.mode) {
            self.paths.insert(r.ino, (dir, r.name.clone().into()));
        } else if i.nlink != 1 && i.nlink != 0 {
            self.links.insert(r.ino, (i.nlink, 1));
        }
        self.adopt(r.ino, fixed, false, Dir { ino: r.ino, role: Role::Tree, suspect }, dir)?;
        Ok(true)
    }

    fn named_again(&mut self, dir: Ino, r: &mut Rec) -> bool {
        let Ok(b) = self.inode_now(r.ino) else { return false };
        let i = view(&b);
        if i.generation != r.generation {
            return self.drop_name(Code::D08, dir, r, "leads to another generation of its inode");
        }
        if is_dir(i.mode) {
            return self.drop_name(Code::D12, dir, r, "a directory has one name");
        }
        r.kind = (i.mode >> 12) as u8;
        self.links.entry(r.ino).or_insert((i.nlink, 1)).1 += 1;
        true
    }

    /// An entry of a list of orphans: whether it is kept.
    fn listed(&mut self, slot: Slot, r: &mut Rec, b: &Block) -> Result<bool, RepairError> {
        let list = self.sb.orphan_dir(slot);
        let Some(suspect) = self.in_use(list, r, b) else { return Ok(false) };
        if self.space.saw_inode(r.ino) {
            return Ok(self.drop_name(Code::P05, list, r, "has a name, or is listed already"));
        }
        let raw = view(b);
        if raw.flags & FLAG_ORPHAN == 0 && raw.nlink > 0 {
            return Ok(self.drop_name(Code::P02, list, r, "not marked as an orphan: it goes to lost+found"));
        }
        if holds_names(&raw) {
            return Ok(self.drop_name(Code::P07, list, r, "a directory that is not empty goes to lost+found"));
        }
        let Some(mut fixed) = self.first_sight(list, r, b, suspect)? else { return Ok(false) };
        let mut say = |code, text: String| {
            fixed.changed = true;
            self.did(Did::new(code, self.place(r.ino), text));
        };
        if raw.flags & FLAG_ORPHAN == 0 {
            say(Code::P02, "marked as an orphan".into());
        } else if raw.orphan_slot != u32::from(slot) {
            say(Code::P03, format!("listed in slot {slot}, not {}", raw.orphan_slot));
        }
        if raw.nlink != 0 {
            say(Code::P04, format!("0 links, not {}", raw.nlink));
        }
        edit(&mut fixed.block, |i| (i.flags, i.orphan_slot, i.nlink) = (i.flags | FLAG_ORPHAN, u32::from(slot), 0));
        let right = list_name(r.ino).to_vec();
        if r.name != right {
            self.did(Did::new(Code::P06, self.place(r.ino), "listed under its number"));
            r.hash = luna_format::dir::hash(&self.sb.hash_key, &right);
            r.name = right;
        }
        self.adopt(r.ino, fixed, false, Dir { ino: r.ino, role: Role::Orphan, suspect }, list)?;
        Ok(true)
    }

    /// Links of files that have more, or fewer, than one.
    pub(super) fn link_counts(&mut self) -> Result<(), RepairError> {
        for (ino, (counted, found)) in std::mem::take(&mut self.links) {
            if counted != found {
                let mut b = self.inode_now(ino)?;
                self.did(Did::new(Code::L02, self.place(ino), format!("{found} links, not {counted}")));
                edit(&mut b, |i| i.nlink = found);
                self.plan(ino, b, Body::AsIs);
            }
        }
        Ok(())
    }
}

/// Whether an inode is a directory in which names are left.
pub(super) fn holds_names(i: &Inode) -> bool {
    is_dir(i.mode) && (i.layout == Layout::DirTree as u8 || i.inline_len > 0)
}
