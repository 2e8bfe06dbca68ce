//! The volumes that workloads begin with: made once by the production code, free space full of somebody else's bytes.
//!
//! Two of them: one with room, and one where next to nothing is free, so that what is freed is what is taken next.
//! Invariant: clean journals, everything home, the same each time. Not here: workloads.

use super::hosts::{Hosts, VOLUME};
use super::image::{Image, ImageDisk, SIZE};
use super::model::Model;
use super::work::{self, BASE};
use luna_format::ag::{self, AG_BITMAP_UNINIT, AgHeader, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, BlockNo, HEADER_BYTES};
use luna_fs::mkfs::{self, MkfsOptions};
use luna_lun::Disk;
use std::ops::Range;

/// Slots of the volume: as many as make the journals short.
const SLOTS: u32 = 8;
/// Data blocks that a full volume has left.
const LEFT: u64 = 12;

/// A volume and what is on it.
pub(super) struct Base {
    pub(super) image: Image,
    pub(super) sb: Superblock,
    pub(super) model: Model,
}

impl Base {
    /// Makes one.
    pub(super) fn new(full: bool) -> Result<Self, String> {
        assert_eq!(SIZE, luna_format::geometry::MIN_BYTES);
        let disk = ImageDisk::new(Image::empty());
        let options = MkfsOptions {
            label: "crash".into(),
            slots: SLOTS,
            volume: VOLUME,
            hash_key: [3; 16],
            link_secret: [4; 32],
            now_ns: 1_780_000_000 << 30,
        };
        let sb = mkfs::run(&*disk as &dyn Disk, &options, &mut |_, _| {}).map_err(|e| e.to_string())?.sb;
        let image = disk.0.lock().clone().settle(Vec::new());
        let hosts = Hosts::mount(image, sb, 1, None)?;
        let mut model = Model::new();
        for (n, o) in BASE.iter().enumerate() {
            let tag = n as u32 + 1;
            match hosts.on(0, |fs| work::perform(fs, *o, tag))? {
                Some(Ok(())) => {}
                other => return Err(format!("base: {o:?}: {other:?}")),
            }
            model.perform(*o, tag, 1 + n).ok_or_else(|| format!("base: {o:?} is refused by the model"))?;
        }
        if full {
            work::fill(&hosts, LEFT)?;
        }
        hosts.unmount(0)?;
        let image = hosts.image();
        let stale = free(&image, &sb);
        Ok(Self { image: image.settle(stale), sb, model })
    }
}

/// Blocks that belong to nobody and may become data: free ones of data segments, and all of free segments.
fn free(image: &Image, sb: &Superblock) -> Vec<Range<BlockNo>> {
    let mut runs: Vec<Range<BlockNo>> = Vec::new();
    let block = |b: BlockNo| {
        let mut out = Block::zeroed();
        image.read(&mut out.0, b * BLOCK_U64);
        out
    };
    for n in 0..sb.ag_count {
        let (start, blocks) = sb.ag_region(n);
        let header = block(start);
        let unused = header.view::<AgHeader>(HEADER_BYTES).is_none_or(|h| h.flags & AG_BITMAP_UNINIT != 0);
        let own = 1 + ag::bitmaps_for(blocks);
        let maps: Vec<Block> = (1..own).map(|m| block(start + m)).collect();
        let used = |rel: u64| {
            let (map, at) = (rel / ag::BITS_PER_BITMAP, rel % ag::BITS_PER_BITMAP);
            maps[map as usize].0[HEADER_BYTES + at as usize / 8] & (1 << (at % 8)) != 0
        };
        for rel in own..blocks {
            let free = match ag::segment(&header.0, rel / ag::SEGMENT_BLOCKS) {
                SegmentType::Free => true,
                SegmentType::Data => unused || !used(rel),
                _ => false,
            };
            match runs.last_mut().filter(|r| free && r.end == start + rel) {
                Some(r) => r.end += 1,
                None if free => runs.push(start + rel..start + rel + 1),
                None => {}
            }
        }
    }
    runs
}
