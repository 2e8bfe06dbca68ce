//! The power goes at any write, with any subset of what was not flushed, and torn in the middle: after replay the volume is
//! sound and in a state between the last sync and the last operation.

use super::tests::{Blocks, SPAN, blocks_of, check_all, make_file, mapped, one_op};
use super::*;
use crate::testkit::{kit_of, mount_through, recover};
use luna_lun::Disk;
use luna_lun::Durability;
use luna_lun::memory::MemoryDisk;
use luna_lun::recording::{Event, RecordingDisk};
use std::collections::BTreeMap;
use std::sync::Arc;

type Files = BTreeMap<Ino, Blocks>;

/// What was known at some moment: events so far, the newest state that was synced, the newest state.
struct Mark {
    events: usize,
    synced: usize,
    newest: usize,
}

/// The disk after the power went at event `at`.
fn after_power_cut(base: &MemoryDisk, log: &[Event], at: usize, rng: &mut fastrand::Rng) -> Arc<MemoryDisk> {
    let disk = Arc::new(base.snapshot());
    let flushed = log[..at].iter().rposition(|e| *e == Event::Flush).unwrap_or(0);
    RecordingDisk::replay(&log[..flushed], &*disk).expect("replay");
    for (n, event) in log[flushed..=at.min(log.len() - 1)].iter().enumerate() {
        let answered = flushed + n < at;
        let forced = matches!(event, Event::Write { durability: Durability::Forced, .. });
        if answered && (forced || rng.u8(0..3) > 0) {
            RecordingDisk::replay(std::slice::from_ref(event), &*disk).expect("replay");
        } else if let Event::Write { offset, data, .. } = event
            && rng.bool()
        {
            tear(&disk, *offset, data, rng);
        }
    }
    disk
}

/// Writes some sectors of a write, not others.
fn tear(disk: &MemoryDisk, offset: u64, data: &[u8], rng: &mut fastrand::Rng) {
    let mut now = vec![0; data.len()];
    disk.read_at(&mut now, offset).expect("read");
    let keep = rng.u8(1..8);
    for (old, new) in now.chunks_mut(512).zip(data.chunks(512)) {
        if rng.u8(0..8) < keep {
            old.copy_from_slice(new);
        }
    }
    disk.write_at(&now, offset, Durability::Plain).expect("write");
}

fn run(seed: u64, ops: usize, cuts: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut kit = kit_of(96 << 20, 2);
    let mut files: Files = (0..3).map(|_| (make_file(&kit), Blocks::new())).collect();
    kit = kit.remount();
    let base = kit.disk.snapshot();
    // the volume mounted above is only a reader of the same bytes; this one records
    let disk = Arc::new(base.snapshot());
    let recorder = Arc::new(RecordingDisk::new(disk.clone()));
    let door: Arc<dyn Disk> = recorder.clone();
    let (slot, incarnation) = (1, 1);
    drop(kit);
    let kit = mount_through(door, disk, slot, incarnation);
    let mut states = vec![files.clone()];
    let mut marks = vec![Mark { events: recorder.events(), synced: 0, newest: 0 }];
    let mut synced = 0;
    for _ in 0..ops {
        one_op(&kit, &mut files, &mut rng, seed);
        states.push(files.clone());
        let newest = states.len() - 1;
        marks.push(Mark { events: recorder.events(), synced, newest });
        match rng.u8(0..40) {
            0 => kit.vol.checkpoint().expect("checkpoint"),
            1..=4 => {
                kit.vol.sync_all().expect("sync");
                synced = newest;
            }
            _ => continue,
        }
        marks.push(Mark { events: recorder.events(), synced, newest });
    }
    let log = recorder.take();
    let first = marks[0].events;
    for _ in 0..cuts {
        let at = rng.usize(first..log.len());
        let low = marks.iter().rev().find(|m| m.events <= at).map_or(0, |m| m.synced);
        let high = marks.iter().find(|m| m.events > at).map_or(states.len() - 1, |m| m.newest);
        let kit = recover(after_power_cut(&base, &log, at, &mut rng), slot);
        let found: Files = files.keys().map(|ino| (*ino, blocks_of(&mapped(&kit, *ino, 0, SPAN)))).collect();
        // several transactions make one operation, so a state may lie between two; then only soundness is checked
        if let Some(state) = states[low..=high].iter().find(|s| **s == found) {
            check_all(&kit, state, seed);
        } else {
            check_all(&kit, &found, seed);
            assert!(
                states[low..=high].windows(2).any(|w| between(&w[0], &found, &w[1])),
                "seed {seed} cut {at}: no state between {low} and {high}"
            );
        }
    }
}

/// Whether `x` is `a` with a part of what makes it `b`.
fn between(a: &Files, x: &Files, b: &Files) -> bool {
    x.iter().all(|(ino, blocks)| {
        let (a, b) = (&a[ino], &b[ino]);
        let known = blocks.iter().all(|(l, v)| a.get(l) == Some(v) || b.get(l) == Some(v));
        known && a.iter().all(|(l, v)| b.get(l) != Some(v) || blocks.contains_key(l))
    })
}

#[test]
fn the_power_may_go_at_any_write() {
    for seed in 0..8 {
        run(seed, 400, 25);
    }
}
