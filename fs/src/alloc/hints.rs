//! What the host believes about groups it does not hold: read from the LUN without locks, so only ever a hint; and the
//! totals for statfs, which are the sum of it.
//!
//! Invariant: a hint never decides that there is no space; it only orders the search. Not here: exact counts (the group's
//! header under its lock).

use super::group::{cached_free, check_header};
use crate::volume::Volume;
use luna_format::{BLOCK_U64, Block, Expect, Kind};

/// Headers read at a time.
const BATCH: u64 = 64;

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
    let (free, free_meta) = meta.free_hint.values().fold((0, 0), |(f, m), (free, of_meta)| (f + free, m + of_meta));
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
            if cached_free(&mut meta, sb, ag).is_none()
                && luna_format::open(&block, &expect).is_ok()
                && let Ok(h) = check_header(sb, ag, &block)
            {
                meta.free_hint.insert(ag, (h.free, h.free_meta));
                meta.run_hint.remove(&ag);
            }
        }
        at = end;
    }
    vol.meta.lock().lost.clear();
}

/// One synchronous read each: nobody waits for this, and the data path's queue is left alone.
fn read_headers(vol: &Volume, from: u64, to: u64) -> Vec<(u64, Block)> {
    let read = |ag| {
        let mut b = Block::zeroed();
        vol.disk.read_at(&mut b.0, vol.sb.ag_region(ag).0 * BLOCK_U64).ok().map(|()| (ag, b))
    };
    (from..to).filter_map(read).collect()
}
