//! The metadata cache of one host: whole verified blocks, each cached under the lock that makes it valid.
//!
//! Invariants: a block is here only while this host holds its lock in PR or more (or the caller is the only host); every
//! block passed `format::open`; a dirty block's newest image is in the journal's running or durable batch `last`, its
//! oldest image that is not at home in batch `first`. Not here: I/O (see `volume`), meaning (see `tx` and the operations).

use luna_dlm::Name;
use luna_format::{Block, BlockNo, Kind};
use luna_journal::Sequence;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// A block in the cache.
#[derive(Clone, Debug)]
pub struct Cached {
    /// The newest image.
    pub image: Arc<Block>,
    /// Its kind.
    pub kind: Kind,
    /// The lock it is valid under.
    pub lock: Name,
    /// Journal batches of its oldest unhomed and its newest image; `None` = the home block is this image.
    pub dirty: Option<(Sequence, Sequence)>,
    /// When it was last asked for (cache ticks).
    used: u64,
}

/// Blocks freed in a batch that must not be handed out before that batch is durable (rule R9).
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// Blocks of the run.
    pub len: u64,
    /// The freeing batch.
    pub sequence: Sequence,
    /// To be discarded on the LUN before reuse.
    pub trim: bool,
}

/// The cache. Always behind one mutex; nothing waits while holding it.
#[derive(Default)]
pub struct Meta {
    blocks: HashMap<BlockNo, Cached>,
    by_lock: HashMap<Name, BTreeSet<BlockNo>>,
    dirty: BTreeSet<BlockNo>,
    /// Freed, not yet reusable, by first block.
    pub busy: BTreeMap<BlockNo, Busy>,
    /// Free blocks (all, metadata segments) a group had when last seen; a hint, not a right.
    pub free_hint: BTreeMap<u64, (u64, u64)>,
    /// The group this host allocates from.
    pub home_group: u64,
    fetching: usize,
    evicted: HashSet<BlockNo>,
    tick: u64,
}

impl Meta {
    /// The cached block, if it is there.
    pub fn get(&mut self, block: BlockNo) -> Option<&Cached> {
        self.tick += 1;
        let tick = self.tick;
        let c = self.blocks.get_mut(&block)?;
        c.used = tick;
        Some(c)
    }

    /// Blocks in the cache, and how many of them are dirty.
    pub fn counts(&self) -> (usize, usize) {
        (self.blocks.len(), self.dirty.len())
    }

    /// Says that a block is about to be read from the LUN outside of the mutex.
    pub fn fetch_begin(&mut self) {
        self.fetching += 1;
    }

    /// Takes a block read from the LUN, unless a newer one came or went meanwhile (then the caller just runs again).
    pub fn fetch_end(&mut self, block: BlockNo, read: Option<(Arc<Block>, Kind, Name)>) {
        self.fetching -= 1;
        if let Some((image, kind, lock)) = read
            && !self.blocks.contains_key(&block)
            && !self.evicted.contains(&block)
        {
            self.put(block, Cached { image, kind, lock, dirty: None, used: self.tick });
        }
        if self.fetching == 0 {
            self.evicted.clear();
        }
    }

    fn put(&mut self, block: BlockNo, c: Cached) {
        self.by_lock.entry(c.lock).or_default().insert(block);
        if c.dirty.is_some() {
            self.dirty.insert(block);
        }
        if let Some(old) = self.blocks.insert(block, c.clone())
            && old.lock != c.lock
        {
            self.unlink(&old.lock, block);
        }
    }

    fn unlink(&mut self, lock: &Name, block: BlockNo) {
        if let Some(set) = self.by_lock.get_mut(lock) {
            set.remove(&block);
            if set.is_empty() {
                self.by_lock.remove(lock);
            }
        }
    }

    /// Takes the image a transaction made, journaled in batch `sequence`.
    pub fn update(&mut self, block: BlockNo, image: Arc<Block>, kind: Kind, lock: Name, sequence: Sequence) {
        self.tick += 1;
        let first = self.blocks.get(&block).and_then(|c| c.dirty).map_or(sequence, |(first, _)| first);
        self.put(block, Cached { image, kind, lock, dirty: Some((first, sequence)), used: self.tick });
    }

    /// The dirty blocks (of one lock, or all), in address order.
    pub fn dirty_blocks(&self, lock: Option<&Name>) -> Vec<(BlockNo, Arc<Block>, Sequence)> {
        let pick = |b: &BlockNo| {
            let c = self.blocks.get(b)?;
            c.dirty.map(|(_, last)| (*b, c.image.clone(), last))
        };
        match lock {
            Some(l) => self.by_lock.get(l).into_iter().flatten().filter_map(pick).collect(),
            None => self.dirty.iter().filter_map(pick).collect(),
        }
    }

    /// The newest batch that changed a block of `lock`, if one is not at home yet.
    pub fn last_change(&self, lock: &Name) -> Option<Sequence> {
        self.by_lock.get(lock)?.iter().filter_map(|b| self.blocks.get(b)?.dirty.map(|(_, last)| last)).max()
    }

    /// This image is at home now; a newer one stays dirty.
    pub fn homed(&mut self, block: BlockNo, image: &Arc<Block>) {
        if let Some(c) = self.blocks.get_mut(&block)
            && let Some((_, last)) = c.dirty
        {
            if Arc::ptr_eq(&c.image, image) {
                c.dirty = None;
                self.dirty.remove(&block);
            } else {
                c.dirty = Some((last, last));
            }
        }
    }

    /// The oldest batch that still has an image that is not at home.
    pub fn oldest_dirty(&self) -> Option<Sequence> {
        self.dirty.iter().filter_map(|b| self.blocks.get(b)?.dirty.map(|(first, _)| first)).min()
    }

    /// Forgets every block of `lock`. They must be clean, unless the host withdraws.
    pub fn forget(&mut self, lock: &Name) {
        for b in self.by_lock.remove(lock).into_iter().flatten() {
            self.drop_block(b);
        }
    }

    fn drop_block(&mut self, b: BlockNo) {
        self.blocks.remove(&b);
        self.dirty.remove(&b);
        if self.fetching > 0 {
            self.evicted.insert(b);
        }
    }

    /// Drops the least recently used clean blocks until at most `limit` are cached.
    pub fn shrink(&mut self, limit: usize) {
        if self.blocks.len() <= limit {
            return;
        }
        let mut clean: Vec<(u64, BlockNo, Name)> =
            self.blocks.iter().filter(|(_, c)| c.dirty.is_none()).map(|(b, c)| (c.used, *b, c.lock)).collect();
        clean.sort_unstable_by_key(|(used, b, _)| (*used, *b));
        let drop = (self.blocks.len() - limit / 2).min(clean.len());
        for (_, b, lock) in clean.into_iter().take(drop) {
            self.unlink(&lock, b);
            self.drop_block(b);
        }
    }
}
