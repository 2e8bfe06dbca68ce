//! Damage to allocation groups: headers, segment types, bitmaps.

use super::{Done, WreckError, Wrecker};
use luna_format::ag::{self, AgHeader, BITS_PER_BITMAP, SEGMENT_BLOCKS, SEGMENTS_AT, SegmentType};
use luna_format::inode::{BODY_AT, Extent, Layout};
use luna_format::{BlockNo, HEADER_BYTES};

fn edit_header(w: &Wrecker, group: u64, change: impl FnOnce(&mut AgHeader)) -> Result<(), WreckError> {
    w.edit(w.sb.ag_region(group).0, |b| {
        if let Some(h) = b.view_mut::<AgHeader>(HEADER_BYTES) {
            change(h);
        }
    })
}

/// The bitmap block, byte and bit of a block.
fn bit(w: &Wrecker, block: BlockNo) -> Option<(BlockNo, usize, u8)> {
    let (start, _) = w.sb.ag_region(w.sb.ag_of(block)?);
    let rel = block - start;
    let at = rel % BITS_PER_BITMAP;
    Some((start + 1 + rel / BITS_PER_BITMAP, HEADER_BYTES + (at / 8) as usize, 1 << (at % 8)))
}

/// The first block of some file.
fn data(w: &mut Wrecker) -> Result<Option<BlockNo>, WreckError> {
    let Some(n) = w.pick(|n| n.file(Layout::Extents)) else { return Ok(None) };
    Ok(w.read(n.ino)?.view::<Extent>(BODY_AT).map(|e| e.physical))
}

/// A free block behind `block` in a segment of the same type.
fn free_behind(w: &Wrecker, block: BlockNo) -> Result<Option<BlockNo>, WreckError> {
    let Some(group) = w.sb.ag_of(block) else { return Ok(None) };
    let (start, len) = w.sb.ag_region(group);
    let header = w.read(start)?;
    let kind = |b: BlockNo| ag::segment(&header.0, (b - start) / SEGMENT_BLOCKS);
    for b in (block..start + len).filter(|b| kind(*b) == kind(block)) {
        if let Some((map, at, mask)) = bit(w, b)
            && w.read(map)?.0[at] & mask == 0
        {
            return Ok(Some(b));
        }
    }
    Ok(None)
}

fn set_bit(w: &Wrecker, block: BlockNo, set: bool) -> Result<(), WreckError> {
    match bit(w, block) {
        Some((map, at, mask)) => w.edit(map, |b| if set { b.0[at] |= mask } else { b.0[at] &= !mask }),
        None => Ok(()),
    }
}

/// The length of a group.
pub(crate) fn shape(w: &mut Wrecker) -> Done {
    let group = w.below(w.sb.ag_count);
    edit_header(w, group, |h| h.blocks += 1)?;
    Ok(Some(format!("the length of group {group}")))
}

/// The count of free blocks.
pub(crate) fn free(w: &mut Wrecker) -> Done {
    edit_header(w, 0, |h| h.free += 1)?;
    Ok(Some("the free blocks of group 0".into()))
}

/// The count of free metadata blocks.
pub(crate) fn free_meta(w: &mut Wrecker) -> Done {
    edit_header(w, 0, |h| h.free_meta += 1)?;
    Ok(Some("the free metadata blocks of group 0".into()))
}

/// Segment 0 as data.
pub(crate) fn first_segment(w: &mut Wrecker) -> Done {
    w.edit(w.sb.ag_start, |b| ag::set_segment(&mut b.0, 0, SegmentType::Data))?;
    Ok(Some("segment 0 of group 0 is data".into()))
}

/// The bit of a group's header.
pub(crate) fn own(w: &mut Wrecker) -> Done {
    set_bit(w, w.sb.ag_start, false)?;
    Ok(Some("the header of group 0 is marked free".into()))
}

/// Bits behind the end of a group.
pub(crate) fn tail(w: &mut Wrecker) -> Done {
    let (start, len) = w.sb.ag_region(0);
    let maps = ag::bitmaps_for(len);
    if len % BITS_PER_BITMAP == 0 {
        return Ok(None);
    }
    w.edit(start + maps, |b| b.0[4095] = 0)?;
    Ok(Some("the last bits behind the end of group 0 are clear".into()))
}

fn set_type(w: &Wrecker, block: BlockNo, kind: SegmentType) -> Result<(), WreckError> {
    let Some(group) = w.sb.ag_of(block) else { return Ok(()) };
    let (start, _) = w.sb.ag_region(group);
    w.edit(start, |b| ag::set_segment(&mut b.0, (block - start) / SEGMENT_BLOCKS, kind))
}

/// A segment with data as free.
pub(crate) fn in_use_but_free(w: &mut Wrecker) -> Done {
    let Some(block) = data(w)? else { return Ok(None) };
    set_type(w, block, SegmentType::Free)?;
    Ok(Some(format!("the segment of block {block}, which is in use, is free")))
}

/// A segment with data as metadata.
pub(crate) fn data_as_meta(w: &mut Wrecker) -> Done {
    let Some(block) = data(w)? else { return Ok(None) };
    set_type(w, block, SegmentType::Meta)?;
    Ok(Some(format!("the segment of block {block}, which holds data, is metadata")))
}

/// An empty segment as data.
pub(crate) fn empty(w: &mut Wrecker) -> Done {
    let (start, len) = w.sb.ag_region(0);
    let header = w.read(start)?;
    let Some(n) = (0..len / SEGMENT_BLOCKS).find(|n| ag::segment(&header.0, *n) == SegmentType::Free) else { return Ok(None) };
    w.edit(start, |b| ag::set_segment(&mut b.0, n, SegmentType::Data))?;
    Ok(Some(format!("segment {n} of group 0, which is empty, is data")))
}

/// A segment of no known type.
pub(crate) fn unknown(w: &mut Wrecker) -> Done {
    let group = w.sb.ag_count - 1;
    let (start, len) = w.sb.ag_region(group);
    let header = w.read(start)?;
    let n = len.div_ceil(SEGMENT_BLOCKS) - 1;
    if ag::segment(&header.0, n) != SegmentType::Free {
        return Ok(None);
    }
    w.edit(start, |b| b.0[SEGMENTS_AT + (n / 4) as usize] |= 3 << ((n % 4) * 2))?;
    // it counts as metadata; the counter goes with it, so that the type alone is wrong
    edit_header(w, group, |h| h.free_meta += len - n * SEGMENT_BLOCKS)?;
    Ok(Some(format!("the type of segment {n} of group {group}")))
}

/// A block of a file as free.
pub(crate) fn used_marked_free(w: &mut Wrecker) -> Done {
    let Some(block) = data(w)? else { return Ok(None) };
    set_bit(w, block, false)?;
    Ok(Some(format!("block {block} of a file is marked free")))
}

/// A free data block as in use.
pub(crate) fn data_leak(w: &mut Wrecker) -> Done {
    let Some(block) = data(w)? else { return Ok(None) };
    let Some(free) = free_behind(w, block)? else { return Ok(None) };
    set_bit(w, free, true)?;
    Ok(Some(format!("data block {free} is marked in use")))
}

/// A free metadata block as in use.
pub(crate) fn meta_leak(w: &mut Wrecker) -> Done {
    let Some(free) = free_behind(w, w.sb.root_ino)? else { return Ok(None) };
    set_bit(w, free, true)?;
    Ok(Some(format!("metadata block {free} is marked in use")))
}
