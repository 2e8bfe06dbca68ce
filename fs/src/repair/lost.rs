//! Inodes in use that no name leads to: they get one in `lost+found`.
//!
//! A lost directory keeps what is in it, so first come the directories whose parent is not lost, then what is left of the directories
//! (a parent that does not name its child, a loop), then files. Deleted files that no list has any more stay deleted.
//!
//! Invariant: what is named here is adopted like everything with a name. The new names are on the LUN before anything that held the old
//! ones is changed (see `apply`). Not here: blocks that are no inode.

use super::door::Judged;
use super::inodes::{edit, place_of, view};
use super::names::{Dir, LOST, Role, holds_names};
use super::records::Rec;
use super::{Body, Did, Repair, RepairError};
use crate::check::Code;
use crate::op::{S_IFDIR, is_dir};
use luna_format::dir::hash;
use luna_format::inode::{FLAG_ORPHAN, Inode, Layout};
use luna_format::{Block, BlockNo, Ino, Kind};
use std::collections::BTreeSet;

/// Stands for `lost+found` as long as there is none. No inode is there.
const NOT_YET: Ino = 0;
/// Blocks looked at at once.
const BATCH: u64 = 512;

/// A lost directory, and its parent.
type LostDir = (Ino, Ino);

impl Repair<'_> {
    /// See the module's text.
    pub(super) fn lost(&mut self) -> Result<(), RepairError> {
        self.paths.insert(NOT_YET, (self.sb.root_ino, LOST.into()));
        let (dirs, files) = self.without_name()?;
        let numbers: BTreeSet<Ino> = dirs.iter().map(|d| d.0).collect();
        let (below, top): (Vec<_>, Vec<_>) = dirs.into_iter().partition(|(ino, parent)| parent != ino && numbers.contains(parent));
        for (ino, _) in top.into_iter().chain(below) {
            self.name_again(ino)?;
            self.drain()?;
        }
        for ino in files {
            self.name_again(ino)?;
        }
        Ok(())
    }

    /// Puts what was found into `lost+found`. Only when every block in use is known, because the directory may have to be made.
    pub(super) fn name_lost(&mut self) -> Result<(), RepairError> {
        let found = std::mem::take(&mut self.found);
        if found.is_empty() {
            return Ok(());
        }
        let dir = self.lost_found()?;
        for r in found.iter().filter(|r| u32::from(r.kind) << 12 == S_IFDIR) {
            let mut b = self.inode_now(r.ino)?;
            edit(&mut b, |i| i.parent = dir);
            self.plan(r.ino, b, Body::AsIs);
        }
        self.add_names(dir, found)
    }

    /// Directories with their parents, and files, that are in use and were not reached.
    fn without_name(&mut self) -> Result<(Vec<LostDir>, Vec<Ino>), RepairError> {
        let (mut dirs, mut files) = (Vec::new(), Vec::new());
        for n in 0..self.space.count() {
            self.progress("lost inodes", n as u64, self.space.count() as u64);
            let (mut at, start) = (0, self.space.start(n));
            while let Some((from, len)) = self.space.unreached(n, at) {
                let len = len.min(BATCH);
                at = from - start + len;
                let wanted: Vec<BlockNo> = (from..from + len).collect();
                for (block, b) in wanted.iter().zip(self.door.many(&wanted)?) {
                    match self.is_lost(*block, &b) {
                        Some(i) if is_dir(i.mode) => dirs.push((*block, i.parent)),
                        Some(_) => files.push(*block),
                        None => {}
                    }
                }
            }
        }
        Ok((dirs, files))
    }

    fn is_lost(&mut self, block: BlockNo, b: &Block) -> Option<Inode> {
        match self.door.judge(b, Kind::Inode, block, block) {
            Judged::Sound => {}
            Judged::Suspect(..) if luna_format::inode::check(b).is_ok() => {}
            _ => return None,
        }
        let i = view(b);
        if i.mode == 0 || self.space.saw_inode(block) {
            return None;
        }
        if i.flags & FLAG_ORPHAN != 0 && i.nlink == 0 && !holds_names(&i) {
            self.did(Did::new(Code::U07, place_of(block), "deleted, and on no list: freed"));
            return None;
        }
        Some(i)
    }

    fn name_again(&mut self, ino: Ino) -> Result<(), RepairError> {
        if self.space.saw_inode(ino) {
            return Ok(());
        }
        let b = self.door.one(ino)?;
        let suspect = !matches!(self.door.judge(&b, Kind::Inode, ino, ino), Judged::Sound);
        let Some(mut fixed) = self.fields(ino, &b, None)? else { return Ok(()) };
        // its own number is known later (see `name_lost`)
        let dir = self.lost_dir.unwrap_or(NOT_YET);
        let i = view(&fixed.block);
        let name = format!("#{ino}").into_bytes();
        self.did(Did::new(Code::U07, place_of(ino), format!("named lost+found/#{ino}; mode {:#o}, {} bytes", i.mode, i.size)));
        edit(&mut fixed.block, |i| (i.flags, i.orphan_slot, i.nlink) = (0, 0, if is_dir(i.mode) { i.nlink.max(2) } else { 1 }));
        fixed.changed |= suspect || view(&fixed.block) != i;
        let (hash, kind) = (hash(&self.sb.hash_key, &name), (i.mode >> 12) as u8);
        if is_dir(i.mode) {
            edit(&mut fixed.block, |i| i.parent = dir);
            fixed.changed = true;
            self.paths.insert(ino, (dir, name.clone().into()));
        }
        self.found.push(Rec { hash, name, ino, generation: i.generation, kind });
        self.adopt(ino, fixed, false, Dir { ino, role: Role::Tree, suspect }, dir)
    }

    /// The directory for what has no name; made when there is none.
    fn lost_found(&mut self) -> Result<Ino, RepairError> {
        if let Some(dir) = self.lost_dir {
            return Ok(dir);
        }
        let root = self.sb.root_ino;
        let taken: BTreeSet<Vec<u8>> = self.names_now(root)?.0.into_iter().map(|r| r.name).collect();
        let name = (0..).map(|n| if n == 0 { LOST.to_vec() } else { format!("lost+found.{n}").into_bytes() });
        let name = name.into_iter().find(|n| !taken.contains(n)).unwrap_or_default();
        let ino = self.space.new_meta(&self.door)?;
        self.space.see_inode(ino);
        let generation = self.door.version();
        let mut b = Block::zeroed();
        let now = self.now_ns;
        edit(&mut b, |i| {
            (i.mode, i.nlink, i.generation, i.parent, i.layout) = (S_IFDIR | 0o700, 2, generation, root, Layout::DirInline as u8);
            (i.atime_ns, i.mtime_ns, i.ctime_ns, i.btime_ns) = (now, now, now, now);
        });
        self.plan(ino, b, Body::Names(Vec::new()));
        self.fresh.insert(ino);
        let hash = hash(&self.sb.hash_key, &name);
        self.add_names(root, vec![Rec { hash, name, ino, generation, kind: (S_IFDIR >> 12) as u8 }])?;
        self.lost_dir = Some(ino);
        Ok(ino)
    }

    /// The names a directory will have, and the nodes that hold them now.
    fn names_now(&mut self, dir: Ino) -> Result<(Vec<Rec>, Vec<BlockNo>), RepairError> {
        if let Some(Body::Names(records)) = self.plans.get(&dir).map(|p| &p.body) {
            return Ok((records.clone(), Vec::new()));
        }
        let b = self.inode_now(dir)?;
        self.looking = true;
        let c = self.content(dir, &b, false);
        self.looking = false;
        let c = c?;
        Ok((c.records, c.nodes))
    }

    /// Adds names to a directory. A name that is there already is told apart by a number.
    fn add_names(&mut self, dir: Ino, new: Vec<Rec>) -> Result<(), RepairError> {
        let (mut records, nodes) = self.names_now(dir)?;
        nodes.iter().for_each(|n| self.space.leave(*n));
        let mut taken: BTreeSet<Vec<u8>> = records.iter().map(|r| r.name.clone()).collect();
        let mut subdirs = 0;
        for mut r in new {
            let first = r.name.clone();
            let mut n = 0;
            while !taken.insert(r.name.clone()) {
                n += 1;
                r.name = [&first[..], format!(".{n}").as_bytes()].concat();
            }
            r.hash = hash(&self.sb.hash_key, &r.name);
            subdirs += u32::from(u32::from(r.kind) << 12 == S_IFDIR);
            records.push(r);
        }
        records.sort();
        let mut b = self.inode_now(dir)?;
        edit(&mut b, |i| i.nlink = i.nlink.saturating_add(subdirs));
        self.plan(dir, b, Body::Names(records));
        self.early.insert(dir);
        Ok(())
    }
}
