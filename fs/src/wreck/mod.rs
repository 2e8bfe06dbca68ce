//! Wreckers: each makes exactly one damage on a healthy volume, past every lock and cache. For tests of `fsck`, and for people who want to
//! see what a code means (`luna wreck LUN CODE`).
//!
//! The table of codes names the wrecker of each, and which other codes may show beside it. Invariant: blocks are sealed again, unless
//! the seal is what is to be broken, so that nothing but the damage is found; a choice is made from the seed alone. Not here: the
//! question whether a host is up.

pub(crate) mod blocks;
pub(crate) mod cluster;
pub(crate) mod dirs;
pub(crate) mod files;
pub(crate) mod groups;

use crate::check::Code;
use crate::mkfs::SuperError;
use crate::op::{S_IFDIR, S_IFMT, S_IFREG};
use luna_format::dir::{DirentHead, entries};
use luna_format::inode::{BODY_AT, Inode, Layout};
use luna_format::superblock::Superblock;
use luna_format::tree::{ENTRIES_AT, Entry, NodeHeader};
use luna_format::{BLOCK_U64, Block, BlockNo, HEADER_BYTES, Ino, Kind, Slot, Stamp, VolumeId, seal};
use luna_lun::{Disk, Durability, LunError};
use std::collections::VecDeque;
use std::sync::Arc;

/// Names that are looked at when a victim is searched.
const LOOK: usize = 20_000;

/// How a damage is made: what was broken, or `None` when the volume has nothing to break.
pub type Maker = fn(&mut Wrecker) -> Result<Option<String>, WreckError>;

/// How a code is made on a healthy volume.
#[derive(Clone, Copy)]
pub enum Wreck {
    /// By this; the codes beside it may show as well.
    Made(Maker, &'static [Code]),
    /// It cannot be made there, for this reason.
    Cannot(&'static str),
}

/// Why nothing was wrecked, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum WreckError {
    /// No volume.
    #[error(transparent)]
    Super(#[from] SuperError),
    /// The LUN failed.
    #[error(transparent)]
    Lun(#[from] LunError),
    /// A journal could not be written.
    #[error(transparent)]
    Journal(#[from] luna_journal::JournalError),
    /// There is no such damage.
    #[error("{0} cannot be made: {1}")]
    Cannot(Code, &'static str),
    /// The volume has not what it takes.
    #[error("the volume has nothing of the kind that {0} breaks; put files, directories, links and attributes on it")]
    Nothing(Code),
}

/// Breaks `code` on the volume of `disk`; says what it broke.
pub fn run(disk: Arc<dyn Disk>, code: Code, seed: u64) -> Result<String, WreckError> {
    match code.wreck() {
        Wreck::Cannot(why) => Err(WreckError::Cannot(code, why)),
        Wreck::Made(make, _) => {
            let mut w = Wrecker::new(disk, seed)?;
            let text = make(&mut w)?.ok_or(WreckError::Nothing(code))?;
            w.disk.flush()?;
            Ok(text)
        }
    }
}

/// A name on the volume, and the inode behind it.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// The directory it is in.
    pub(crate) dir: Ino,
    /// Where it leads.
    pub(crate) ino: Ino,
    /// The fields there.
    pub(crate) inode: Inode,
}

impl Named {
    fn is(&self, kind: u32, layout: Layout) -> bool {
        self.inode.mode & S_IFMT == kind && self.inode.layout == layout as u8
    }

    fn file(&self, layout: Layout) -> bool {
        self.is(S_IFREG, layout) && self.inode.nlink == 1
    }
}

type Done = Result<Option<String>, WreckError>;

/// A volume and a source of choices.
pub struct Wrecker {
    disk: Arc<dyn Disk>,
    id: VolumeId,
    sb: Superblock,
    state: u64,
    names: Vec<Named>,
    orphans: Vec<Named>,
}

impl Wrecker {
    /// Looks at the volume. Journals must be clean: what they hold would undo the damage.
    pub fn new(disk: Arc<dyn Disk>, seed: u64) -> Result<Self, WreckError> {
        let (id, sb) = crate::mkfs::read_superblock(&*disk)?;
        let mut w = Self { disk, id, sb, state: seed, names: Vec::new(), orphans: Vec::new() };
        let mut queue = VecDeque::from([sb.root_ino]);
        while let Some(dir) = queue.pop_front().filter(|_| w.names.len() < LOOK) {
            let below = w.list(dir)?;
            queue.extend(below.iter().filter(|n| n.inode.mode & S_IFMT == S_IFDIR).map(|n| n.ino));
            w.names.extend(below);
        }
        for slot in 0..sb.slots as Slot {
            let below = w.list(sb.orphan_dir(slot))?;
            w.orphans.extend(below);
        }
        Ok(w)
    }

    /// The next number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // splitmix64: choices from a seed, the same in every build
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n.max(1)
    }

    /// A name that is wanted.
    fn pick(&mut self, wanted: impl Fn(&Named) -> bool) -> Option<Named> {
        let all: Vec<Named> = self.names.iter().copied().filter(wanted).collect();
        let n = self.below(all.len() as u64) as usize;
        all.get(n).copied()
    }

    pub(crate) fn read(&self, block: BlockNo) -> Result<Block, WreckError> {
        let mut b = Block::zeroed();
        self.disk.read_at(&mut b.0, block * BLOCK_U64)?;
        Ok(b)
    }

    fn write(&self, block: BlockNo, b: &Block) -> Result<(), WreckError> {
        Ok(self.disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain)?)
    }

    /// Seals `b` as `kind` of `owner` and writes it.
    fn put(&self, block: BlockNo, kind: Kind, owner: u64, version: u64, mut b: Block) -> Result<(), WreckError> {
        seal(&mut b, &Stamp { kind, volume: self.id, block, owner, version, writer: 0, epoch: 0 });
        self.write(block, &b)
    }

    /// Changes a block and seals it again.
    pub(crate) fn edit(&self, block: BlockNo, change: impl FnOnce(&mut Block)) -> Result<(), WreckError> {
        let mut b = self.read(block)?;
        let h = b.header();
        change(&mut b);
        self.put(block, Kind::from_u16(h.kind).unwrap_or(Kind::Inode), h.owner, h.version, b)
    }

    fn edit_inode(&self, ino: Ino, change: impl FnOnce(&mut Inode)) -> Result<(), WreckError> {
        self.edit(ino, |b| {
            if let Some(i) = b.view_mut::<Inode>(HEADER_BYTES) {
                change(i);
            }
        })
    }

    /// The names in a directory.
    pub(crate) fn list(&self, dir: Ino) -> Result<Vec<Named>, WreckError> {
        let mut out = Vec::new();
        for (block, at, used) in self.areas(dir)? {
            let b = self.read(block)?;
            for e in entries(block, &b.0[at..at + used]).flatten() {
                let inode = self.inode(e.head.ino)?;
                out.push(Named { dir, ino: e.head.ino, inode });
            }
        }
        Ok(out)
    }

    pub(crate) fn inode(&self, ino: Ino) -> Result<Inode, WreckError> {
        Ok(self.read(ino)?.view::<Inode>(HEADER_BYTES).copied().unwrap_or_else(Inode::empty))
    }

    /// The shape of the volume.
    #[cfg(test)]
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Where records of a directory are: block, first byte, bytes.
    pub(crate) fn areas(&self, dir: Ino) -> Result<Vec<(BlockNo, usize, usize)>, WreckError> {
        let b = self.read(dir)?;
        let i = b.view::<Inode>(HEADER_BYTES).copied().unwrap_or_else(Inode::empty);
        if i.layout != Layout::DirTree as u8 {
            return Ok(vec![(dir, BODY_AT, i.inline_len as usize)]);
        }
        let mut out = Vec::new();
        for leaf in self.leaves(&b, i)? {
            let h = self.read(leaf)?.view::<NodeHeader>(HEADER_BYTES).copied();
            out.push((leaf, ENTRIES_AT, h.map_or(0, |h| h.used as usize)));
        }
        Ok(out)
    }

    /// The leaves of an inode's tree.
    pub(crate) fn leaves(&self, b: &Block, i: Inode) -> Result<Vec<BlockNo>, WreckError> {
        let children = |b: &Block, at: usize, n: usize| -> Vec<BlockNo> {
            (0..n).filter_map(|k| b.view::<Entry>(at + k * size_of::<Entry>()).map(|e| e.child)).collect()
        };
        let mut level = children(b, BODY_AT, i.count as usize);
        for _ in 1..i.depth {
            let mut next = Vec::new();
            for block in level {
                let b = self.read(block)?;
                let n = b.view::<NodeHeader>(HEADER_BYTES).map_or(0, |h| h.count as usize);
                next.extend(children(&b, ENTRIES_AT, n));
            }
            level = next;
        }
        Ok(level)
    }

    /// Changes the record that leads from `n.dir` to `n.ino`.
    fn edit_record(&self, n: &Named, change: impl FnOnce(&mut DirentHead)) -> Result<(), WreckError> {
        for (block, at, used) in self.areas(n.dir)? {
            let b = self.read(block)?;
            let found = entries(block, &b.0[at..at + used]).flatten().find(|e| e.head.ino == n.ino).map(|e| e.at);
            if let Some(record) = found {
                return self.edit(block, |b| {
                    if let Some(head) = b.view_mut::<DirentHead>(at + record) {
                        change(head);
                    }
                });
            }
        }
        Ok(())
    }
}
