//! What the hosts keep to agree with each other. Runs when no host is up and none can come up.
//!
//! The newest record alone tells everything, so a damaged place of the log, or one that does not fit to its successor, is emptied: the
//! log has a hole there. A damaged register is emptied too: it may have held a decision, but nobody acts on a decision before
//! its record is on the LUN, and whoever could have has been silent for longer than it may act. Not here: who is a member.

use super::{Did, RepairError, door::Door};
use crate::check::finding::of_check_error;
use crate::check::{Code, Place};
use luna_format::cluster::{self, Record, SLOT_FREE};
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, Slot, VolumeId};
use std::collections::BTreeMap;

/// The newest record.
pub(super) fn newest(door: &Door<'_>, id: VolumeId, sb: &Superblock) -> Result<Option<Record>, RepairError> {
    let all: Vec<BlockNo> = (0..sb.log_blocks).map(|n| sb.log_start + n).collect();
    let read = |(n, b): (usize, Block)| cluster::read_record(&b, id, sb.log_start, sb.log_blocks, n as u64).ok().flatten();
    Ok(door.many(&all)?.into_iter().enumerate().filter_map(read).max_by_key(|r| r.index))
}

/// See the module's text.
pub(super) fn slots(door: &mut Door<'_>, id: VolumeId, sb: &Superblock, did: &mut dyn FnMut(Did)) -> Result<(), RepairError> {
    records(door, id, sb, did)?;
    let newest = newest(door, id, sb)?.map_or(0, |r| r.index);
    for slot in 0..sb.slots as Slot {
        let place = |block| Place::slot(slot).at_block(block);
        let (beat, px) = (sb.beat_start + u64::from(slot), sb.px_start + u64::from(slot));
        if let Err(e) = cluster::read_beat(&door.one(beat)?, id, beat, slot) {
            did(Did::new(Code::C01, place(beat), format!("emptied ({})", of_check_error(&e).1)));
            door.put_sealed(beat, &Block::zeroed())?;
        }
        let (code, text) = match cluster::read_paxos(&door.one(px)?, id, px, slot) {
            Err(e) => (Code::C02, of_check_error(&e).1),
            Ok(Some(p)) if p.instance > newest + 1 => (Code::C09, format!("it is at record {}, the log at {newest}", p.instance)),
            Ok(_) => continue,
        };
        did(Did::lost(code, place(px), format!("emptied ({text})"), "a decision that nobody has acted on"));
        door.put_sealed(px, &Block::zeroed())?;
    }
    door.flush()
}

fn records(door: &mut Door<'_>, id: VolumeId, sb: &Superblock, did: &mut dyn FnMut(Did)) -> Result<(), RepairError> {
    let (start, len) = (sb.log_start, sb.log_blocks);
    let all: Vec<BlockNo> = (0..len).map(|n| start + n).collect();
    let (mut good, mut bad) = (BTreeMap::<u64, (Record, [u8; 16])>::new(), Vec::new());
    for (n, b) in (0..len).zip(door.many(&all)?) {
        match cluster::read_record(&b, id, start, len, n) {
            Ok(Some(r)) => drop(good.insert(r.index, (r, cluster::chain(&b)))),
            Ok(None) => {}
            Err(e) => bad.push((n, e)),
        }
    }
    let newest = good.last_key_value().map(|(_, (r, _))| *r);
    let next = newest.map_or(1, |r| r.index + 1);
    for (n, e) in bad.iter().filter(|(n, _)| *n != next % len) {
        let text = format!("emptied ({})", of_check_error(e).1);
        did(Did::lost(Code::C03, Place::block(start + n), text, "a part of the history of members"));
        door.put_sealed(start + n, &Block::zeroed())?;
    }
    for (index, (r, _)) in &good {
        let before = if *index == 1 { Some([0; 16]) } else { good.get(&(index - 1)).map(|x| x.1) };
        if before.is_none_or(|own| own == r.prev) {
            continue;
        }
        let at = if *index == 1 { index % len } else { (index - 1) % len };
        did(Did::lost(
            Code::C04,
            Place::block(start + at),
            format!("emptied: record {index} does not continue it"),
            "a part of the history of members",
        ));
        if *index > 1 {
            door.put_sealed(start + at, &Block::zeroed())?;
        } else {
            let first = Record { prev: [0; 16], ..*r };
            door.put_sealed(start + at, &cluster::seal_record(&first, id, start + at))?;
        }
    }
    if let Some(r) = newest
        && r.slots.iter().skip(sb.slots as usize).any(|s| s.state != SLOT_FREE)
    {
        let mut r = r;
        r.slots.iter_mut().skip(sb.slots as usize).for_each(|s| *s = luna_format::cluster::Record::genesis().slots[0]);
        if r.index == 1 {
            r.prev = [0; 16];
        }
        let at = start + r.index % len;
        did(Did::new(Code::C08, Place::block(at), format!("record {} names no slot beyond {} any more", r.index, sb.slots)));
        door.put_sealed(at, &cluster::seal_record(&r, id, at))?;
    }
    Ok(())
}
