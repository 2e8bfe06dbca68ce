//! One operation's view of the metadata: reads through the cache, writes into an overlay that becomes one atomic journal
//! transaction, or vanishes.
//!
//! An operation body is a plain function `fn(&mut Tx) -> Step<T>`. It runs under the metadata mutex, never does I/O and
//! never waits: what it misses it returns as a [`Stop`], the overlay is dropped, and the driver runs it again. So a body
//! sees one consistent state and has no effect until it returns `Ok`.
//!
//! Invariants: a block is read only under CR (or more) and changed only under EX of its lock (R2); its version grows with
//! each transaction (R2, R5); a metadata block that is created starts above its group's version floor.

use crate::error::{Fetch, FsError, Step, Stop};
use crate::meta::Meta;
use crate::names;
use luna_dlm::{Mode, Name};
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, Ino, Kind};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A changed block of the overlay.
#[derive(Debug)]
pub struct Staged {
    /// New content (header not sealed yet).
    pub block: Box<Block>,
    /// Its kind.
    pub kind: Kind,
    /// Owner for the header.
    pub owner: u64,
    /// Lock it belongs to.
    pub lock: Name,
    /// Version before this transaction.
    pub base: u64,
}

/// What a committed transaction means for the rest of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The mapping of these logical blocks of a file changed.
    Map {
        /// The file.
        ino: Ino,
        /// First logical block.
        start: u64,
        /// First logical block after.
        end: u64,
    },
    /// Attributes or size of this inode changed.
    Inode(Ino),
    /// Of what the data path knows about this inode, only the size changed.
    Size {
        /// The file.
        ino: Ino,
        /// Its new size.
        size: u64,
    },
    /// The inode lost its last name: the reaper may free it when nobody has it open.
    Orphan(Ino),
    /// The inode is gone.
    Gone(Ino),
}

/// The rights an operation runs under, by name.
pub type Rights = BTreeMap<Name, Mode>;

/// One run of an operation body.
pub struct Tx<'a> {
    /// The volume's shape.
    pub sb: &'a Superblock,
    /// The volume's identity.
    pub volume: luna_format::VolumeId,
    /// Nanoseconds since 1970, the same for the whole operation.
    pub now_ns: i64,
    /// This host's slot.
    pub slot: luna_format::Slot,
    /// The cache (bodies use the methods below; the allocator also the hints).
    pub meta: &'a mut Meta,
    rights: &'a Rights,
    pub(crate) staged: BTreeMap<BlockNo, Staged>,
    pub(crate) freed: Vec<(BlockNo, u64, bool)>,
    pub(crate) spent: Vec<BlockNo>,
    pub(crate) effects: Vec<Effect>,
}

impl<'a> Tx<'a> {
    /// A fresh overlay over `meta`.
    pub fn new(
        sb: &'a Superblock,
        volume: luna_format::VolumeId,
        slot: luna_format::Slot,
        now_ns: i64,
        meta: &'a mut Meta,
        rights: &'a Rights,
    ) -> Self {
        Self { sb, volume, now_ns, slot, meta, rights, staged: BTreeMap::new(), freed: Vec::new(), spent: Vec::new(), effects: Vec::new() }
    }

    /// Demands a right; stops the body when it is not there.
    pub fn need(&self, name: Name, mode: Mode) -> Step<()> {
        match self.rights.get(&name) {
            Some(held) if held.covers(mode) => Ok(()),
            _ => Err(Stop::Lock(name, mode)),
        }
    }

    /// Whether the right is there, without stopping.
    pub fn has(&self, name: &Name, mode: Mode) -> bool {
        self.rights.get(name).is_some_and(|held| held.covers(mode))
    }

    /// The allocation groups that this operation has alone, in order.
    pub fn own_groups(&self) -> Vec<u64> {
        let all = self.rights.range(names::group(0)..=names::group(u64::MAX));
        all.filter(|(_, m)| m.covers(Mode::Ex)).filter_map(|(n, _)| names::split(n).map(|(_, ag)| ag)).collect()
    }

    /// A segment that was free got a type: whatever was known about its bytes ends when this commits.
    pub(crate) fn spend_segment(&mut self, start: BlockNo) {
        self.spent.push(start);
    }

    /// Reads a metadata block. CR is enough, since nobody changes one without EX; who has nothing asks for PR.
    pub fn read(&mut self, f: Fetch) -> Step<&Block> {
        if !self.has(&f.lock, Mode::Cr) {
            return Err(Stop::Lock(f.lock, Mode::Pr));
        }
        if self.staged.contains_key(&f.block) {
            let s = &self.staged[&f.block];
            return if s.kind == f.kind && s.owner == f.owner { Ok(&s.block) } else { Err(wrong(&f, s.kind)) };
        }
        match self.meta.get(f.block) {
            None => Err(Stop::Block(f)),
            // an image left over from an earlier use of the address, under another lock: read the block again
            Some(c) if c.lock != f.lock && c.dirty.is_none() => Err(Stop::Block(f)),
            Some(c) if c.kind != f.kind || c.image.header().owner != f.owner => Err(wrong(&f, c.kind)),
            Some(c) => Ok(&c.image),
        }
    }

    /// A metadata block to be changed in place.
    pub fn change(&mut self, f: Fetch) -> Step<&mut Block> {
        self.need(f.lock, Mode::Ex)?;
        self.read(f)?;
        let slot = match self.staged.entry(f.block) {
            Entry::Occupied(o) => o.into_mut(),
            Entry::Vacant(v) => {
                let Some(c) = self.meta.get(f.block) else { return Err(Stop::Block(f)) };
                let base = c.image.header().version;
                v.insert(Staged { block: Box::new(Block::clone(&c.image)), kind: f.kind, owner: f.owner, lock: f.lock, base })
            }
        };
        Ok(&mut slot.block)
    }

    /// A new metadata block of zeroes at an address just allocated; `floor` is its group's version floor.
    pub fn create(&mut self, f: Fetch, floor: u64) -> Step<&mut Block> {
        self.need(f.lock, Mode::Ex)?;
        let before = self.staged.get(&f.block).map_or(0, |s| s.base);
        let fresh = Staged { block: Box::new(Block::zeroed()), kind: f.kind, owner: f.owner, lock: f.lock, base: before.max(floor) };
        self.staged.insert(f.block, fresh);
        Ok(&mut self.staged.get_mut(&f.block).ok_or(FsError::Invalid("overlay"))?.block)
    }

    /// The block is no longer metadata of anybody in this transaction (its address was freed).
    pub fn unstage(&mut self, block: BlockNo) {
        self.staged.remove(&block);
    }

    /// The version a block would get if it changed now (for the group's floor when it is freed).
    pub fn version_of(&mut self, block: BlockNo) -> u64 {
        self.staged.get(&block).map(|s| s.base + 1).or_else(|| self.meta.get(block).map(|c| c.image.header().version)).unwrap_or(0)
    }

    /// Blocks whose bits this transaction cleared: kept from reuse until it is durable.
    pub fn note_freed(&mut self, start: BlockNo, len: u64, trim: bool) {
        self.freed.push((start, len, trim));
    }

    /// Something the rest of the host must learn when this commits.
    pub fn effect(&mut self, e: Effect) {
        self.effects.push(e);
    }

    /// Blocks changed so far.
    pub fn changed(&self) -> usize {
        self.staged.len()
    }
}

fn wrong(f: &Fetch, found: Kind) -> Stop {
    // as when it is read from the LUN: the inode was freed, and its block serves another purpose now
    if f.kind == Kind::Inode && found != Kind::Inode {
        return FsError::Stale.into();
    }
    luna_format::CheckError::Kind { block: f.block, expected: f.kind, found: found as u16 }.into()
}
