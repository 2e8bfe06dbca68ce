//! A volume in memory for the tests of this crate: made, mounted, crashed, replayed, mounted again.
//!
//! Invariant: [`Kit::crash`] takes nothing from memory but the disk. Not here: several hosts (that is `sim`).

use crate::mkfs::{self, MkfsOptions};
use crate::volume::{Parts, Volume};
use luna_dlm::LockCache;
use luna_format::ag::{self, AgHeader, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, Expect, HEADER_BYTES, Kind, Slot, VolumeId};
use luna_journal::{Journal, ReplayProof};
use luna_lun::Disk;
use luna_lun::memory::MemoryDisk;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Identity of the volumes made here.
pub(crate) const VOLUME: VolumeId = [7; 16];

/// A disk and the volume mounted from it.
pub(crate) struct Kit {
    /// The LUN.
    pub(crate) disk: Arc<MemoryDisk>,
    /// The mounted volume.
    pub(crate) vol: Arc<Volume>,
    /// Incarnation of the mount.
    pub(crate) incarnation: u64,
}

/// A fresh volume of 1 GiB for 4 hosts, mounted in slot 0.
pub(crate) fn kit() -> Kit {
    kit_of(1 << 30, 4)
}

/// A fresh volume of `bytes` for `slots` hosts, mounted in slot 0.
pub(crate) fn kit_of(bytes: u64, slots: u32) -> Kit {
    let disk = Arc::new(MemoryDisk::new(bytes));
    let options =
        MkfsOptions { label: "test".into(), slots, volume: VOLUME, hash_key: [3; 16], link_secret: [4; 32], now_ns: 1_700_000_000 << 30 };
    mkfs::run(&*disk, &options, &mut |_, _| {}).expect("mkfs");
    mount(disk, 0, 1)
}

/// Mounts a clean volume.
pub(crate) fn mount(disk: Arc<MemoryDisk>, slot: Slot, incarnation: u64) -> Kit {
    let door: Arc<dyn Disk> = disk.clone();
    mount_through(door, disk, slot, incarnation)
}

/// Mounts a clean volume whose metadata goes through `door` to `disk`.
pub(crate) fn mount_through(door: Arc<dyn Disk>, disk: Arc<MemoryDisk>, slot: Slot, incarnation: u64) -> Kit {
    let (id, sb) = mkfs::read_superblock(&*disk).expect("superblock");
    let journal = Journal::open(door.clone(), id, sb.journal_region(slot), slot, incarnation).expect("journal");
    let locks = LockCache::local();
    let vol = Volume::new(Parts { sb, id, slot, epoch: incarnation, disk: door, queue: disk.clone(), journal, locks, discard: true });
    Kit { disk, vol, incarnation }
}

/// Replays the journal of the slot and mounts what a dead host left.
pub(crate) fn recover(disk: Arc<MemoryDisk>, slot: Slot) -> Kit {
    let (_, sb) = mkfs::read_superblock(&*disk).expect("superblock");
    let plan = luna_journal::plan(&*disk, VOLUME, sb.journal_region(slot), sb.homes(), slot, ReplayProof::FirstMount).expect("plan");
    plan.apply(&*disk, &|_| false).expect("apply");
    let now = luna_journal::inspect(&*disk, VOLUME, sb.journal_region(slot), slot).expect("header");
    mount(disk, slot, now.incarnation)
}

impl Kit {
    /// The shape.
    pub(crate) fn sb(&self) -> &Superblock {
        &self.vol.sb
    }

    /// Checkpoints, closes the journal, mounts again: nothing but the disk is kept.
    pub(crate) fn remount(self) -> Self {
        self.vol.checkpoint().expect("checkpoint");
        self.vol.journal.close().expect("close");
        mount(self.disk, self.vol.slot, self.incarnation + 1)
    }

    /// Pulls the plug (what is only in memory is lost), replays the journal, mounts again.
    pub(crate) fn crash(self) -> Self {
        recover(Arc::new(self.disk.snapshot()), self.vol.slot)
    }
}

/// What the bitmaps on the LUN say is in use, bookkeeping of the groups left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// In Data segments.
    pub(crate) data: BTreeSet<BlockNo>,
    /// In Meta segments.
    pub(crate) meta: BTreeSet<BlockNo>,
}

/// Reads all groups from the disk, past the cache, and checks each against itself: counters against bits, types against
/// bits. Everything must be at home.
pub(crate) fn audit(disk: &dyn Disk) -> Used {
    let (id, sb) = mkfs::read_superblock(disk).expect("superblock");
    let mut used = Used::default();
    for n in 0..sb.ag_count {
        let (start, blocks) = sb.ag_region(n);
        let read = |block: BlockNo, kind| {
            let mut b = Block::zeroed();
            disk.read_at(&mut b.0, block * luna_format::BLOCK_U64).expect("read");
            luna_format::open(&b, &Expect { kind, volume: id, block, owner: Some(n) }).expect("group block");
            b
        };
        let header = read(start, Kind::AgHeader);
        let h = *header.view::<AgHeader>(HEADER_BYTES).expect("fits");
        let own = 1 + ag::bitmaps_for(blocks);
        if h.flags & ag::AG_BITMAP_UNINIT != 0 {
            assert_eq!(h.free, blocks - own, "group {n} never used");
            continue;
        }
        let maps: Vec<Block> = (1..own).map(|m| read(start + m, Kind::AgBitmap)).collect();
        let bit = |rel: u64| {
            let (map, at) = (rel / ag::BITS_PER_BITMAP, rel % ag::BITS_PER_BITMAP);
            maps[map as usize].0[HEADER_BYTES + at as usize / 8] & (1 << (at % 8)) != 0
        };
        let (mut free, mut free_meta) = (0, 0);
        for rel in 0..blocks {
            let t = ag::segment(&header.0, rel / ag::SEGMENT_BLOCKS);
            match (bit(rel), t) {
                (true, _) if rel < own => {}
                (true, SegmentType::Data) => drop(used.data.insert(start + rel)),
                (true, SegmentType::Meta) => drop(used.meta.insert(start + rel)),
                (true, SegmentType::Free) => panic!("group {n}: block {rel} in use in a free segment"),
                (false, _) => {
                    assert!(rel >= own, "group {n}: its own block {rel} is free");
                    free += 1;
                    free_meta += u64::from(t == SegmentType::Meta);
                }
            }
        }
        assert_eq!((h.free, h.free_meta), (free, free_meta), "counters of group {n}");
        for s in 0..blocks.div_ceil(ag::SEGMENT_BLOCKS) {
            let range = s * ag::SEGMENT_BLOCKS..((s + 1) * ag::SEGMENT_BLOCKS).min(blocks);
            let data = ag::segment(&header.0, s) == SegmentType::Data;
            assert!(!data || range.clone().any(bit), "group {n}: data segment {s} is empty");
        }
    }
    used
}
