//! The mark "a repair is under way" in the superblock copies, and the copies themselves.
//!
//! While the mark is set no host mounts, and none replays a journal (`luna-node` reads it again after its own beat has landed, so that
//! either it sees the mark or the repair sees the beat). It is an incompatible feature, so a program that does not know it refuses the
//! volume as well. A repair that is cut off leaves it set; the next one goes on.
//!
//! Invariant: copies are written one after the other, each flushed, with a greater version: whichever copy a crash leaves newest says
//! which of the two it was. Not here: whether a host is up (`tools`).

use super::{Did, RepairError};
use crate::check::{Code, FsckError, Place};
use crate::mkfs::{SuperError, read_superblock};
use luna_format::cluster::{self, DECIDE_NOTHING, Decision, Record, SLOT_EVICTED, SLOT_FENCED, SLOT_FREE, SLOT_MEMBER, SlotState};
use luna_format::superblock::{self, INCOMPAT_REPAIR, Superblock};
use luna_format::{BLOCK_U64, Block};
use luna_lun::{Disk, Durability};
use zerocopy::IntoBytes;

/// Whether a repair is under way, or was cut off.
pub fn is_marked(disk: &dyn Disk) -> Result<bool, SuperError> {
    Ok(read_superblock(disk)?.1.incompat & INCOMPAT_REPAIR != 0)
}

/// Sets or takes away the mark; on the LUN when this returns. All copies are written, so a damaged one is whole afterwards; `did` hears
/// of it.
pub fn mark(disk: &dyn Disk, under_way: bool, did: &mut dyn FnMut(Did)) -> Result<(), RepairError> {
    let (_, mut sb) = read_superblock(disk).map_err(FsckError::from)?;
    copies(disk, did)?;
    sb.incompat = if under_way { sb.incompat | INCOMPAT_REPAIR } else { sb.incompat & !INCOMPAT_REPAIR };
    write(disk, &sb)
}

/// The greatest version of a copy, and the places that have not this content in it.
fn look(disk: &dyn Disk, sb: &Superblock) -> Result<(u64, Vec<(u64, bool)>), RepairError> {
    let (id, _) = read_superblock(disk).map_err(FsckError::from)?;
    let mut all = Vec::new();
    for block in sb.copies() {
        let mut b = Block::zeroed();
        disk.read_at(&mut b.0, block * BLOCK_U64)?;
        all.push((block, superblock::read(&b, block).ok().filter(|c| c.0 == id)));
    }
    let newest = all.iter().filter_map(|(_, c)| c.as_ref().map(|c| c.1)).max().unwrap_or(0);
    let odd = |(block, c): (u64, Option<(luna_format::VolumeId, u64, Superblock)>)| match c {
        None => Some((block, true)),
        Some((_, version, c)) => (version != newest || c.as_bytes() != sb.as_bytes()).then_some((block, false)),
    };
    Ok((newest, all.into_iter().filter_map(odd).collect()))
}

fn write(disk: &dyn Disk, sb: &Superblock) -> Result<(), RepairError> {
    let (id, _) = read_superblock(disk).map_err(FsckError::from)?;
    let version = look(disk, sb)?.0.saturating_add(1);
    for block in sb.copies() {
        disk.write_at(&sb.seal(id, block, version).0, block * BLOCK_U64, Durability::Forced)?;
        disk.flush()?;
    }
    Ok(())
}

/// Writes a record in which every member is shut out and fenced. Whoever sleeps in one of those slots finds, before it may act again, that
/// it is no member. Only for who has seen that all of them were silent for long enough, behind the mark. What is left of them is as
/// any host would leave it that died while it recovered them: the next mount, or the repair, goes on from there.
pub fn shut_out(disk: &dyn Disk) -> Result<(), RepairError> {
    let taken = |s: &SlotState| matches!(s.state, SLOT_MEMBER | SLOT_EVICTED);
    add_record(disk, "repair: members that were silent are fenced", &taken, &|s, slot, index, members| {
        if s.state == SLOT_MEMBER {
            (s.died_epoch, s.last_members) = (index, members);
        }
        (s.state, s.recoverer) = (SLOT_FENCED, 1 + slot);
    })
}

/// Writes a record in which every fenced slot is free. Only when their journals are at home.
pub fn free_slots(disk: &dyn Disk) -> Result<(), RepairError> {
    add_record(disk, "repair: journals are at home", &|s| s.state == SLOT_FENCED, &|s, _, _, _| {
        (s.state, s.recoverer, s.died_epoch, s.last_members) = (SLOT_FREE, 0, 0, 0);
    })
}

/// What becomes of a slot: its state, its number, the index of the record, the members before it as bits.
type Change<'c> = &'c dyn Fn(&mut SlotState, u32, u64, u64);

/// Adds a record behind the newest in which the slots that `which` names are changed; none if there are no such slots.
fn add_record(disk: &dyn Disk, text: &str, which: &dyn Fn(&SlotState) -> bool, change: Change<'_>) -> Result<(), RepairError> {
    let (id, sb) = read_superblock(disk).map_err(FsckError::from)?;
    let door = super::Door::new(disk, id, sb.total_blocks);
    let Some(old) = super::slots::newest(&door, id, &sb)?.filter(|r| r.slots.iter().any(which)) else { return Ok(()) };
    let place = |index: u64| sb.log_start + index % sb.log_blocks;
    let prev = cluster::chain(&door.one(place(old.index))?);
    let (index, mut decision) = (old.index + 1, Decision::new(DECIDE_NOTHING, 0, 0, 0));
    decision.text = cluster::text(text);
    let mut r = Record { index, prev, view_epoch: index, decision, slots: old.slots };
    let members = (0..).zip(&old.slots).filter(|(_, s)| s.state == SLOT_MEMBER).map(|(n, _)| 1u64 << n).sum();
    for (slot, s) in (0..).zip(&mut r.slots).filter(|(_, s)| which(s)) {
        change(s, slot, index, members);
    }
    disk.write_at(&cluster::seal_record(&r, id, place(index)).0, place(index) * BLOCK_U64, Durability::Forced)?;
    Ok(disk.flush()?)
}

/// Makes the copies whole and alike.
pub(super) fn copies(disk: &dyn Disk, did: &mut dyn FnMut(Did)) -> Result<(), RepairError> {
    let (_, sb) = read_superblock(disk).map_err(FsckError::from)?;
    let (_, odd) = look(disk, &sb)?;
    for (block, damaged) in &odd {
        let code = if *damaged { Code::S01 } else { Code::S02 };
        did(Did::new(code, Place::block(*block), "written anew from the newest good copy"));
    }
    if odd.is_empty() { Ok(()) } else { write(disk, &sb) }
}
