//! Who is on a volume, as the LUN itself tells: the newest membership record and the slots' beats. Reads only.
//!
//! Used where no host can be asked: `luna mkfs` and `luna fsck` must not touch a volume in use, `luna status LUN` and
//! `luna dump` show it. Invariant: "live" is only said of a slot whose beat changed while it was watched; silence for a
//! while proves nothing, which is why the tools say "no host seems to".

use anyhow::Result;
use luna_format::{
    VolumeId,
    cluster::{self, BEAT_FREE, BEAT_JOINING, BEAT_LEAVING, BEAT_MEMBER, BEAT_WITHDRAWN, Beat, Record},
    superblock::Superblock,
};
use luna_lun::Disk;
use std::time::Duration;

/// The beats that were ever written, by slot. A torn or foreign one is left out; fsck reports it.
pub fn beats(disk: &dyn Disk, volume: VolumeId, sb: &Superblock) -> Result<Vec<(u16, Beat)>> {
    let mut found = Vec::new();
    for slot in 0..sb.slots as u16 {
        let at = sb.beat_start + u64::from(slot);
        let block = crate::cmd::read_block(disk, at)?;
        if let Ok(Some(beat)) = cluster::read_beat(&block, volume, at, slot) {
            found.push((slot, beat));
        }
    }
    Ok(found)
}

/// The newest membership record; `None` on a volume that nobody has mounted yet.
pub fn newest_record(disk: &dyn Disk, volume: VolumeId, sb: &Superblock) -> Result<Option<Record>> {
    let mut newest: Option<Record> = None;
    let mut room = luna_lun::AlignedBuf::new(64 << 10);
    let per_read = (64 << 10) / luna_format::BLOCK_U64;
    let mut at = 0;
    while at < sb.log_blocks {
        let n = per_read.min(sb.log_blocks - at);
        let bytes = &mut room.bytes_mut()[..(n * luna_format::BLOCK_U64) as usize];
        disk.read_at(bytes, (sb.log_start + at) * luna_format::BLOCK_U64)?;
        for (i, chunk) in bytes.chunks(luna_format::BLOCK_BYTES).enumerate() {
            let mut block = luna_format::Block::zeroed();
            block.0.copy_from_slice(chunk);
            if let Ok(Some(r)) = cluster::read_record(&block, volume, sb.log_start, sb.log_blocks, at + i as u64)
                && newest.is_none_or(|old| r.index > old.index)
            {
                newest = Some(r);
            }
        }
        at += n;
    }
    Ok(newest)
}

/// Names of the hosts whose beat changes while it is watched for a few of its own periods.
pub fn live(disk: &dyn Disk, volume: VolumeId, sb: &Superblock) -> Result<Vec<String>> {
    let before = beats(disk, volume, sb)?;
    let active = |b: &Beat| matches!(b.state, BEAT_JOINING | BEAT_MEMBER | BEAT_LEAVING);
    let Some(period) = before.iter().filter(|(_, b)| active(b)).map(|(_, b)| u64::from(b.beat_ms)).max() else { return Ok(Vec::new()) };
    std::thread::sleep(Duration::from_millis((period * 5 / 2).clamp(500, 20_000)));
    let after = beats(disk, volume, sb)?;
    let moved = |(slot, b): &(u16, Beat)| before.iter().any(|(s, old)| s == slot && old.counter != b.counter);
    Ok(after.iter().filter(|x| active(&x.1) && moved(x)).map(|(_, b)| cluster::untext(&b.name)).collect())
}

/// Who uses the volume right now, as the end of a sentence about it: hosts that have it mounted, or a repair.
pub fn in_use(disk: &dyn Disk, volume: VolumeId, sb: &Superblock) -> Result<Option<String>> {
    let live = live(disk, volume, sb)?;
    if !live.is_empty() {
        return Ok(Some(format!("mounted right now by {}", live.join(", "))));
    }
    Ok(crate::exclusive::repairer(disk, volume)?.map(|who| format!("being repaired right now by {who}")))
}

/// A beat's state in a word.
pub fn beat_state(state: u32) -> &'static str {
    match state {
        BEAT_FREE => "free",
        BEAT_JOINING => "joining",
        BEAT_MEMBER => "member",
        BEAT_LEAVING => "leaving",
        BEAT_WITHDRAWN => "withdrawn",
        _ => "unknown",
    }
}

/// A slot's state in a word.
pub fn slot_state(state: u32) -> &'static str {
    match state {
        cluster::SLOT_FREE => "free",
        cluster::SLOT_MEMBER => "member",
        cluster::SLOT_EVICTED => "evicted",
        cluster::SLOT_FENCED => "fenced",
        _ => "unknown",
    }
}
