//! What the host believes about the groups: from each header that comes into its cache, from headers read from the LUN without
//! locks, and from searches in vain; and the totals for statfs, which are the sum of it.
//!
//! Invariants: a hint never decides that there is no space; it only orders the search. What a search in vain taught is believed
//! until blocks of the group become usable on this host ([`not_busy`]), or its header is seen with another version that is not this
//! host's doing: when the lock was away, or in the next round of [`refresh_hints`]. Not here: exact counts (the group's header
//! under its lock).

use super::group::{check_header, is_cached};
use crate::meta::Meta;
use crate::volume::Volume;
use luna_format::ag::{self, AgHeader, MAX_SEGMENTS, SEGMENT_BLOCKS, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, BlockNo, Expect, HEADER_BYTES, Kind};

/// Headers read at a time.
const BATCH: u64 = 64;

/// What is wished of a group.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    /// A metadata block.
    Meta,
    /// A run of so many data blocks.
    Data(u64),
}

/// What is believed of one group.
#[derive(Clone, Copy, Debug)]
struct Hint {
    /// The version of the header it is from; 0 = never seen.
    version: u64,
    /// Free blocks.
    free: u32,
    /// Of them, inside metadata segments.
    free_meta: u32,
    /// A metadata block is free, or a segment that can become metadata.
    meta_room: bool,
    /// A search for a metadata block was in vain all the same: what is free waits for the journal.
    meta_in_vain: bool,
    /// A search found no longer data run.
    longest_run: u32,
    /// Another host took the lock away: to be left to it while there are others.
    lost: bool,
}

impl Hint {
    const NONE: Self =
        Self { version: 0, free: 0, free_meta: 0, meta_room: false, meta_in_vain: false, longest_run: u32::MAX, lost: false };

    /// Takes what a header says, and forgets searches before somebody else's change.
    fn saw(&mut self, header: &Block, own_change: bool) {
        let Some(h) = header.view::<AgHeader>(HEADER_BYTES) else { return };
        let version = header.header().version;
        if !own_change && version != self.version {
            self.searches_void();
        }
        (self.version, self.free, self.free_meta) = (version, small(h.free), small(h.free_meta));
        let segments = h.blocks.div_ceil(SEGMENT_BLOCKS).min(MAX_SEGMENTS);
        self.meta_room = h.free_meta > 0 || (h.free > 0 && (0..segments).any(|n| ag::segment(&header.0, n) == SegmentType::Free));
    }

    fn searches_void(&mut self) {
        (self.longest_run, self.meta_in_vain) = (u32::MAX, false);
    }

    /// Whether the header allows it.
    fn allows(&self, wish: Wish) -> bool {
        match wish {
            Wish::Meta => self.meta_room,
            Wish::Data(n) => u64::from(self.free.saturating_sub(self.free_meta)) >= n,
        }
    }

    /// Whether no search said otherwise.
    fn promises(&self, wish: Wish) -> bool {
        match wish {
            Wish::Meta => !self.meta_in_vain,
            Wish::Data(n) => u64::from(self.longest_run) >= n,
        }
    }
}

/// Blocks of one group; they are at most 2^22.
fn small(blocks: u64) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// What is believed of all groups. Dense, because a search on a full volume looks at all of it.
#[derive(Debug, Default)]
pub struct Hints(Vec<Hint>);

impl Hints {
    /// Nothing is known of so many groups.
    pub fn of(groups: u64) -> Self {
        Self(vec![Hint::NONE; usize::try_from(groups).unwrap_or(0)])
    }

    fn at(&mut self, ag: u64) -> Option<&mut Hint> {
        self.0.get_mut(usize::try_from(ag).ok()?)
    }

    fn get(&self, ag: u64) -> Hint {
        usize::try_from(ag).ok().and_then(|n| self.0.get(n)).copied().unwrap_or(Hint::NONE)
    }

    /// A group's header came into the cache, changed by this host or read; or it was read without the lock.
    pub(crate) fn saw(&mut self, header: &Block, own_change: bool) {
        if let Some(hint) = self.at(header.header().owner) {
            hint.saw(header, own_change);
        }
    }

    /// A search in the group was in vain; the longest data run there was, if it was for data.
    pub(super) fn in_vain(&mut self, ag: u64, longest_run: Option<u64>) {
        match (self.at(ag), longest_run) {
            (Some(hint), Some(run)) => hint.longest_run = small(run),
            (Some(hint), None) => hint.meta_in_vain = true,
            (None, _) => {}
        }
    }

    /// Another host took the group's lock.
    pub(crate) fn lost(&mut self, ag: u64) {
        if let Some(hint) = self.at(ag) {
            hint.lost = true;
        }
    }

    pub(super) fn is_lost(&self, ag: u64) -> bool {
        self.get(ag).lost
    }

    /// Whether it is worth to look there.
    pub(super) fn may_have(&self, ag: u64, wish: Wish) -> bool {
        let hint = self.get(ag);
        hint.version == 0 || (hint.allows(wish) && hint.promises(wish))
    }

    /// Free blocks of a group, if it was ever seen.
    pub(crate) fn free(&self, ag: u64) -> Option<u64> {
        let hint = self.get(ag);
        (hint.version != 0).then_some(u64::from(hint.free))
    }
}

/// Whether the group has nothing of the kind for sure: this host has its lock and header, and that does not allow it.
pub(super) fn rules_out(meta: &mut Meta, sb: &Superblock, ag: u64, wish: Wish) -> bool {
    is_cached(meta, sb, ag) && !meta.hints.get(ag).allows(wish)
}

/// The run of freed blocks at `start` (or a segment that was filled with zeroes) may be used from now on. It lies in one group.
pub(crate) fn not_busy(meta: &mut Meta, sb: &Superblock, start: BlockNo) {
    meta.busy.remove(&start);
    if let Some(hint) = sb.ag_of(start).and_then(|ag| meta.hints.at(ag)) {
        hint.searches_void();
    }
}

/// Blocks of the volume, as far as this host knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks in allocation groups, bookkeeping left out.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Of them, inside metadata segments.
    pub free_meta: u64,
}

/// Totals for statfs: this host's own groups exactly, the others as they were when last looked at.
pub fn statfs(vol: &Volume) -> Totals {
    let sb = &vol.sb;
    let (last_start, last_len) = sb.ag_region(sb.ag_count - 1);
    let groups = last_start + last_len - sb.ag_start;
    let own: u64 =
        [(sb.ag_count - 1, sb.ag_blocks), (1, last_len)].iter().map(|(n, len)| n * (1 + luna_format::ag::bitmaps_for(*len))).sum();
    let meta = vol.meta.lock();
    let (free, free_meta) = meta.hints.0.iter().fold((0, 0), |(f, m), h| (f + u64::from(h.free), m + u64::from(h.free_meta)));
    Totals { blocks: groups.saturating_sub(own), free, free_meta }
}

/// Reads all group headers into the hints, many at a time, without locks. At mount, and now and then.
pub fn refresh_hints(vol: &Volume) {
    let sb = &vol.sb;
    let mut at = 0;
    while at < sb.ag_count {
        let end = (at + BATCH).min(sb.ag_count);
        let found = read_headers(vol, at, end);
        let mut meta = vol.meta.lock();
        for (ag, block) in found {
            let expect = Expect { kind: Kind::AgHeader, volume: vol.id, block: sb.ag_region(ag).0, owner: Some(ag) };
            // a block being written by its owner may be read torn: then the old hint stays
            if !is_cached(&mut meta, sb, ag) && luna_format::open(&block, &expect).is_ok() && check_header(sb, ag, &block).is_ok() {
                meta.hints.saw(&block, false);
            }
        }
        at = end;
    }
    vol.meta.lock().hints.0.iter_mut().for_each(|h| h.lost = false);
}

/// One synchronous read each: nobody waits for this, and the data path's queue is left alone.
fn read_headers(vol: &Volume, from: u64, to: u64) -> Vec<(u64, Block)> {
    let read = |ag| {
        let mut b = Block::zeroed();
        vol.disk.read_at(&mut b.0, vol.sb.ag_region(ag).0 * BLOCK_U64).ok().map(|()| (ag, b))
    };
    (from..to).filter_map(read).collect()
}
