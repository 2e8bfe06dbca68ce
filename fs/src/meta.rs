//! The metadata cache of one host: whole verified blocks, each cached under the lock that makes it valid.
//!
//! Invariants: a block is here only while this host holds its lock in PR or more (or the caller is the only host); every
//! block passed `format::open`; a dirty block's newest image is in the journal's running or durable batch `last`, its
//! oldest image that is not at home in batch `first`. Not here: I/O (see `volume`), meaning (see `tx` and the operations).

use crate::alloc::Hints;
use crate::names::{self, Class};
use luna_dlm::Name;
use luna_format::{Block, BlockNo, Kind};
use luna_journal::Sequence;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// What is believed of the groups.
    pub hints: Hints,
    /// The group this host allocates from first.
    pub home_group: u64,
    /// Free segments (by first block, with their group) that this host filled with zeroes on the LUN and that nobody used since.
    pub zeroed: BTreeMap<BlockNo, u64>,
    /// Where in a group the last search (data, metadata) ended. A hint.
    pub cursor: BTreeMap<u64, (u64, u64)>,
    /// Freed while dirty: the last image, and the batches of its oldest and newest unhomed one. It goes home like any other: the log
    /// must hold no image that is newer than home once the group's lock is another host's (the lemma of `docs/recovery.md`).
    ghosts: BTreeMap<BlockNo, (Arc<Block>, Sequence, Sequence)>,
    /// When each read of a block that is under way began.
    fetching: BTreeSet<u64>,
    /// When blocks went while something was being read.
    evicted: HashMap<BlockNo, u64>,
    /// Counts both.
    moment: u64,
    tick: u64,
}

/// A read of a block that is under way.
#[must_use]
pub struct Fetching(u64);

impl Meta {
    /// An empty cache of a host that allocates from `home_group`, of so many, first.
    pub fn at_home(home_group: u64, groups: u64) -> Self {
        Self { home_group, hints: Hints::of(groups), ..Self::default() }
    }

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
        (self.blocks.len(), self.dirty.len() + self.ghosts.len())
    }

    /// Says that a block is about to be read from the LUN outside of the mutex.
    pub fn fetch_begin(&mut self) -> Fetching {
        self.moment += 1;
        self.fetching.insert(self.moment);
        Fetching(self.moment)
    }

    /// Takes a block read from the LUN, unless a newer one came or went meanwhile (then the caller just runs again).
    pub fn fetch_end(&mut self, fetch: Fetching, block: BlockNo, read: Option<(Arc<Block>, Kind, Name)>) {
        let Fetching(began) = fetch;
        self.fetching.remove(&began);
        if let Some((image, kind, lock)) = read
            && self.blocks.get(&block).is_none_or(|c| c.lock != lock && c.dirty.is_none())
            && self.evicted.get(&block).is_none_or(|went| *went < began)
        {
            self.put(block, Cached { image, kind, lock, dirty: None, used: self.tick });
        }
        // what went before the oldest read that is under way concerns none; with many threads there is always one under way
        match self.fetching.first() {
            None => self.evicted.clear(),
            Some(&oldest) if oldest > began => self.evicted.retain(|_, went| *went >= oldest),
            Some(_) => {}
        }
    }

    fn put(&mut self, block: BlockNo, c: Cached) {
        self.by_lock.entry(c.lock).or_default().insert(block);
        if c.kind == Kind::AgHeader {
            self.hints.saw(&c.image, c.dirty.is_some());
        }
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
        let ghost = self.ghosts.remove(&block).map(|(_, first, _)| first);
        let first = self.blocks.get(&block).and_then(|c| c.dirty).map(|(first, _)| first).or(ghost).unwrap_or(sequence);
        self.put(block, Cached { image, kind, lock, dirty: Some((first, sequence)), used: self.tick });
    }

    /// The dirty blocks (of one lock, or all and the freed ones), in address order.
    pub fn dirty_blocks(&self, lock: Option<&Name>) -> Vec<(BlockNo, Arc<Block>, Sequence)> {
        let pick = |b: &BlockNo| {
            let c = self.blocks.get(b)?;
            c.dirty.map(|(_, last)| (*b, c.image.clone(), last))
        };
        match lock {
            Some(l) => self.by_lock.get(l).into_iter().flatten().filter_map(pick).collect(),
            None => {
                let mut all: Vec<_> = self.dirty.iter().filter_map(pick).collect();
                all.extend(self.ghosts.iter().map(|(b, (image, _, last))| (*b, image.clone(), *last)));
                all.sort_unstable_by_key(|d| d.0);
                all
            }
        }
    }

    /// The newest batch that changed a block of `lock`, if one is not at home yet.
    pub fn last_change(&self, lock: &Name) -> Option<Sequence> {
        self.by_lock.get(lock)?.iter().filter_map(|b| self.blocks.get(b)?.dirty.map(|(_, last)| last)).max()
    }

    /// This image is at home now; a newer one stays dirty.
    pub fn homed(&mut self, block: BlockNo, image: &Arc<Block>) {
        if self.ghosts.get(&block).is_some_and(|g| Arc::ptr_eq(&g.0, image)) {
            self.ghosts.remove(&block);
        }
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

    /// Forgets a metadata block that was freed. What is newer than home still goes home.
    pub fn purge(&mut self, block: BlockNo) {
        let Some(c) = self.blocks.get(&block).cloned() else { return };
        if let Some((first, last)) = c.dirty {
            self.ghosts.insert(block, (c.image.clone(), first, last));
        }
        self.unlink(&c.lock, block);
        self.drop_block(block);
    }

    /// The oldest batch that still has an image that is not at home.
    pub fn oldest_dirty(&self) -> Option<Sequence> {
        let ghost = self.ghosts.values().map(|g| g.1).min();
        let block = self.oldest_block();
        ghost.into_iter().chain(block).min()
    }

    fn oldest_block(&self) -> Option<Sequence> {
        self.dirty.iter().filter_map(|b| self.blocks.get(b)?.dirty.map(|(first, _)| first)).min()
    }

    /// Forgets every block of `lock`. They must be clean, unless the host withdraws.
    pub fn forget(&mut self, lock: &Name) {
        if let Some((Class::Group, ag)) = names::split(lock) {
            self.zeroed.retain(|_, g| *g != ag);
            self.hints.lost(ag);
        }
        for b in self.by_lock.remove(lock).into_iter().flatten() {
            self.drop_block(b);
        }
    }

    fn drop_block(&mut self, b: BlockNo) {
        self.blocks.remove(&b);
        self.dirty.remove(&b);
        if !self.fetching.is_empty() {
            self.moment += 1;
            self.evicted.insert(b, self.moment);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// With many threads some read is always under way. What went while an older one was, can be read again all the same. (Found by
    /// stress-ng: ten threads read the same blocks again and again, for ever.)
    #[test]
    fn a_block_that_went_can_be_read_again_while_others_are_being_read() {
        let (mut meta, lock) = (Meta::at_home(0, 0), names::group(2));
        let read = || Some((Arc::new(Block::zeroed()), Kind::AgBitmap, lock));
        let mut other = meta.fetch_begin();
        let first = meta.fetch_begin();
        meta.fetch_end(first, 7, read());
        assert!(meta.get(7).is_some());
        let stale = meta.fetch_begin();
        meta.forget(&lock);
        for n in 0..100 {
            let next = meta.fetch_begin();
            meta.fetch_end(other, 1000 + n, None);
            other = next;
            assert!(meta.evicted.len() <= 1, "it does not grow");
        }
        meta.fetch_end(stale, 7, read());
        assert!(meta.get(7).is_none(), "read before it went: it may be old");
        let again = meta.fetch_begin();
        meta.fetch_end(again, 7, read());
        assert!(meta.get(7).is_some(), "read after it went");
        meta.fetch_end(other, 9, None);
        assert!(meta.evicted.is_empty() && meta.fetching.is_empty());
    }
}
