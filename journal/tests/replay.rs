//! Replay: cuts at every place, torn records, wrap-around, several parts, idempotence, versions, damage, proofs.
#![allow(clippy::unwrap_used)] // a test may

mod common;

use common::*;
use luna_format::{BLOCK_U64, Kind, Stamp, seal};
use luna_journal::{Fenced, Journal, JournalError, ReplayProof, inspect, plan};
use luna_lun::memory::MemoryDisk;
use luna_lun::recording::{Event, RecordingDisk};
use luna_lun::{Disk, Durability};
use std::collections::BTreeMap;
use std::sync::Arc;

const REGION: (u64, u64) = (16, 33);

fn proof(incarnation: u64) -> ReplayProof {
    ReplayProof::Fenced(Fenced::attest(3, incarnation, 9))
}

fn none(_: u64) -> bool {
    false
}

/// A run of several records (small ring, so it wraps and moves its tail), with what was durable after each event.
struct Run {
    base: MemoryDisk,
    events: Vec<Event>,
    /// (events done, expected version of each block).
    promised: Vec<(usize, BTreeMap<u64, u64>)>,
}

fn run(region: (u64, u64), steps: &[usize]) -> Run {
    let base = Arc::new(MemoryDisk::new(DISK_BYTES));
    Journal::format(&*base, VOLUME, region, 3).unwrap();
    let start = base.snapshot();
    let disk = Arc::new(RecordingDisk::new(base));
    let dynamic: Arc<dyn Disk> = disk.clone();
    let j = Journal::open(dynamic.clone(), VOLUME, region, 3, 1).unwrap();
    let mut now = BTreeMap::new();
    let mut promised = vec![(disk.events(), now.clone())];
    let mut at_home: u64 = 0;
    for (step, images) in steps.iter().enumerate() {
        let v = step as u64 + 1;
        let blocks: Vec<u64> = (0..*images as u64).map(|i| HOME + (i * 7 + v) % 400).collect();
        while j.free_images() < blocks.len() as u64 {
            // checkpoint: everything durable goes home, is flushed, is retired
            for (b, v) in &now {
                write(&*dynamic, &block(*b, *v), *b);
            }
            dynamic.flush().unwrap();
            at_home += 1;
            j.retire(j.durable());
        }
        let s = j.append(blocks.iter().map(|b| image(*b, v)).collect()).unwrap();
        j.flush_to(s).unwrap();
        for b in blocks {
            now.insert(b, v);
        }
        promised.push((disk.events(), now.clone()));
    }
    assert!(at_home > 0 || steps.len() < 3, "the run must wrap");
    Run { base: start, events: disk.take(), promised }
}

/// Replays and compares every promised block; a record may be there although it was not promised yet.
fn check(disk: &MemoryDisk, region: (u64, u64), must: &BTreeMap<u64, u64>, may: &BTreeMap<u64, u64>, what: &str) {
    let before = inspect(disk, VOLUME, region, 3).unwrap();
    let mut p = plan(disk, VOLUME, region, HOMES, 3, proof(1)).unwrap();
    p.settle(disk, &mut || false).unwrap();
    assert_eq!(p.gap(), None, "{what}: a cut is not damage");
    p.apply(disk, &none).unwrap();
    for (b, v) in must {
        let found = version(disk, *b);
        assert!(found >= *v && found <= may[b], "{what}: block {b} has version {found}, promised {v}, written {}", may[b]);
        assert_eq!(read(disk, *b).0, block(*b, found).0);
    }
    // all or nothing: the blocks of the record in flight moved together
    let newer: Vec<bool> = may.iter().filter(|(b, v)| must.get(b) != Some(v)).map(|(b, v)| version(disk, *b) == *v).collect();
    assert!(newer.iter().all(|n| *n) || newer.iter().all(|n| !*n), "{what}: half a transaction");
    let after = inspect(disk, VOLUME, region, 3).unwrap();
    assert!(after.clean && after.tail >= before.tail && after.tail_sequence >= before.tail_sequence);
    // twice equals once
    let once = disk.snapshot();
    plan(disk, VOLUME, region, HOMES, 3, proof(1)).unwrap().apply(disk, &none).unwrap();
    for b in may.keys() {
        assert_eq!(read(disk, *b).0, read(&once, *b).0);
    }
}

fn maps(r: &Run, done: usize) -> (&BTreeMap<u64, u64>, &BTreeMap<u64, u64>) {
    let i = r.promised.iter().rposition(|(e, _)| *e <= done).unwrap_or(0);
    (&r.promised[i].1, &r.promised[(i + 1).min(r.promised.len() - 1)].1)
}

#[test]
fn cut_at_every_block_of_every_write() {
    let r = run(REGION, &[3, 9, 5, 14, 7, 1, 12, 20, 6]);
    let opened = r.promised[0].0;
    for done in opened..=r.events.len() {
        let disk = r.base.snapshot();
        RecordingDisk::replay(&r.events[..done], &disk).unwrap();
        let (must, may) = maps(&r, done);
        check(&disk.snapshot(), REGION, must, may, &format!("after event {done}"));
        let Some(Event::Write { offset, data, .. }) = r.events.get(done) else { continue };
        // the next write torn: a prefix of 512-byte sectors, and one sector alone missing
        let sectors = data.len() / 512;
        for cut in 1..sectors {
            let torn = disk.snapshot();
            patch(&torn, *offset, data, |s| s < cut);
            check(&torn, REGION, must, may, &format!("event {done}, {cut} sectors"));
            if cut % 5 == 0 {
                let holed = disk.snapshot();
                patch(&holed, *offset, data, |s| s != cut);
                check(&holed, REGION, must, may, &format!("event {done}, without sector {cut}"));
            }
        }
    }
}

/// Writes the chosen sectors of `data`.
fn patch(disk: &MemoryDisk, offset: u64, data: &[u8], take: impl Fn(usize) -> bool) {
    let mut old = vec![0; data.len()];
    disk.read_at(&mut old, offset).unwrap();
    for (s, sector) in data.chunks(512).enumerate() {
        if take(s) {
            old[s * 512..s * 512 + sector.len()].copy_from_slice(sector);
        }
    }
    disk.write_at(&old, offset, Durability::Plain).unwrap();
}

#[test]
fn a_record_of_several_parts_and_requests_is_atomic() {
    let region = (16, 700);
    let r = run(region, &[300, 260, 300, 399]);
    let last = r.events.len();
    let Event::Write { offset, data, .. } = &r.events[last - 1] else { panic!("the last event is a write") };
    let disk = r.base.snapshot();
    RecordingDisk::replay(&r.events[..last - 1], &disk).unwrap();
    let (must, may) = maps(&r, last - 1);
    for block in (0..data.len() / 4096).step_by(13) {
        let holed = disk.snapshot();
        patch(&holed, *offset, data, |s| s / 8 != block);
        check(&holed, region, must, may, &format!("without block {block}"));
    }
    let whole = r.base.snapshot();
    RecordingDisk::replay(&r.events, &whole).unwrap();
    let (must, may) = maps(&r, last);
    check(&whole, region, must, may, "whole");
}

#[test]
fn a_newer_home_is_left_alone_and_a_torn_one_is_rebuilt() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    let j = fresh(&disk, REGION);
    let s = j.append((0..5).map(|i| image(HOME + i, 5)).collect()).unwrap();
    j.flush_to(s).unwrap();
    write(&*disk, &block(HOME, 4), HOME);
    write(&*disk, &block(HOME + 1, 5), HOME + 1);
    write(&*disk, &block(HOME + 2, 6), HOME + 2);
    let mut torn = block(HOME + 3, 6);
    torn.0[2048..].fill(0xee);
    write(&*disk, &torn, HOME + 3);
    let mut p = plan(&*disk, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
    assert!(matches!(p.apply(&*disk, &|b| b == HOME + 4), Err(JournalError::Unsettled { block, .. }) if block == HOME + 3));
    let mut looks = 3;
    let mut again = || {
        looks -= 1;
        looks > 0
    };
    assert_eq!(p.settle(&*disk, &mut again).unwrap(), 1, "torn for good, and the one that was never written is not torn");
    assert_eq!(looks, 0, "it is looked at again as long as the caller says");
    let report = p.apply(&*disk, &|b| b == HOME + 4).unwrap();
    // the attempt before wrote nothing of this run
    assert_eq!((report.records, report.images, report.written, report.current), (1, 5, 2, 2));
    assert_eq!((report.torn, report.skipped), (1, 1));
    let versions: Vec<u64> = (0..5).map(|i| version(&*disk, HOME + i)).collect();
    assert_eq!(versions, [5, 5, 6, 5, 0]);
}

/// The counterexample of the model: the log keeps an image of a block that a live host holds now and is writing at this moment.
#[test]
fn a_block_that_is_being_written_by_a_live_host_is_not_overwritten() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    let j = fresh(&disk, REGION);
    let s = j.append(vec![image(HOME, 1)]).unwrap();
    j.flush_to(s).unwrap();
    let whole = block(HOME, 2);
    let mut half = whole.clone();
    half.0[512..].copy_from_slice(&block(HOME, 1).0[512..]);
    half.0[2048..].fill(0xee);
    write(&*disk, &half, HOME);
    let mut p = plan(&*disk, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
    let mut again = || {
        write(&*disk, &whole, HOME);
        true
    };
    assert_eq!(p.settle(&*disk, &mut again).unwrap(), 0);
    assert_eq!(p.apply(&*disk, &none).unwrap().current, 1);
    assert_eq!(version(&*disk, HOME), 2);
}

/// A recoverer that slept: another one finished, the slot has a new owner, whose log is dirty. Its header stays as it is.
#[test]
fn a_sleeping_recoverer_does_not_touch_the_next_owners_log() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    let j = fresh(&disk, REGION);
    let s = j.append(vec![image(HOME, 1)]).unwrap();
    j.flush_to(s).unwrap();
    drop(j);
    let sleeper = plan(&*disk, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
    plan(&*disk, VOLUME, REGION, HOMES, 3, proof(1)).unwrap().apply(&*disk, &none).unwrap();
    let j = Journal::open(disk.clone(), VOLUME, REGION, 3, 2).unwrap();
    let s = j.append(vec![image(HOME + 1, 1)]).unwrap();
    j.flush_to(s).unwrap();
    assert!(matches!(sleeper.apply(&*disk, &none), Err(JournalError::Overtaken { incarnation: 2, .. })));
    let p = plan(&*disk, VOLUME, REGION, HOMES, 3, proof(2)).unwrap();
    assert!(!p.is_clean() && p.records() == 1, "what the new owner promised is still there");
}

/// Adjacent blocks go home in large requests: each of them is still judged for itself, whatever lies beside it.
#[test]
fn each_block_of_a_long_run_is_judged_for_itself() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    let region = (16, 400);
    let j = fresh(&disk, region);
    let last =
        (0..300).step_by(100).map(|from| j.append((from..from + 100).map(|i| image(HOME + i + i / 150, 5)).collect()).unwrap()).last();
    j.flush_to(last.unwrap()).unwrap();
    let all = || (0..300).map(|i| HOME + i + i / 150);
    let foreign = [HOME - 1, HOME + 150, HOME + 301];
    for b in foreign {
        write(&*disk, &block(b, 1), b);
    }
    for b in all() {
        match b % 5 {
            0 => {}
            1 => write(&*disk, &block(b, 4), b),
            2 => write(&*disk, &block(b, 6), b),
            3 => {
                let mut torn = block(b, 4);
                torn.0[100..].fill(0xee);
                torn.0[..8].fill(0xee);
                write(&*disk, &torn, b);
            }
            _ => write(&*disk, &block(b, 5), b),
        }
    }
    let mut p = plan(&*disk, VOLUME, region, HOMES, 3, proof(1)).unwrap();
    assert_eq!(p.settle(&*disk, &mut || false).unwrap(), 60);
    let skip = |b: u64| b.is_multiple_of(7);
    let report = p.apply(&*disk, &skip).unwrap();
    let count = |keep: &dyn Fn(u64) -> bool| all().filter(|b| keep(*b)).count() as u64;
    let written = count(&|b| !skip(b) && [0, 1, 3].contains(&(b % 5)));
    assert_eq!((report.images, report.written, report.skipped), (300, written, count(&skip)));
    for b in all() {
        let before = [0, 4, 6, 0, 5][(b % 5) as usize];
        let torn = b % 5 == 3;
        match skip(b) {
            true if torn => assert!(luna_format::peek(&read(&*disk, b), &VOLUME, b).is_err()),
            true => assert_eq!(version(&*disk, b), before, "{b}"),
            false => assert_eq!(version(&*disk, b), before.max(5), "{b}"),
        }
    }
    assert!(foreign.iter().all(|b| version(&*disk, *b) == 1), "nothing beside the images is touched");
}

#[test]
fn an_interrupted_apply_is_simply_repeated() {
    let base = Arc::new(MemoryDisk::new(DISK_BYTES));
    let dynamic: Arc<dyn Disk> = base.clone();
    let j = fresh(&dynamic, REGION);
    let s = j.append((0..6).map(|i| image(HOME + 2 * i, 2)).collect()).unwrap();
    j.flush_to(s).unwrap();
    // not adjacent, so that each is a request of its own
    for n in 0..8 {
        let copy = Arc::new(base.snapshot());
        let failing = luna_lun::faulty::FaultyDisk::fail_after_writes(copy.clone(), n);
        let p = plan(&failing, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
        assert!(p.apply(&failing, &none).is_err(), "{n}");
        let p = plan(&*copy, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
        assert!(!p.is_clean());
        p.apply(&*copy, &none).unwrap();
        assert!((0..6).all(|i| version(&*copy, HOME + 2 * i) == 2));
    }
}

#[test]
fn the_next_incarnation_never_sees_the_old_records() {
    let base = Arc::new(MemoryDisk::new(DISK_BYTES));
    let dynamic: Arc<dyn Disk> = base.clone();
    let j = fresh(&dynamic, REGION);
    for v in 1..=4 {
        let s = j.append(vec![image(HOME + v, 1)]).unwrap();
        j.flush_to(s).unwrap();
    }
    drop(j);
    plan(&*base, VOLUME, REGION, HOMES, 3, proof(1)).unwrap().apply(&*base, &none).unwrap();
    let h = inspect(&*base, VOLUME, REGION, 3).unwrap();
    assert_eq!((h.clean, h.incarnation, h.tail, h.tail_sequence), (true, 2, 8, 6));
    let j = Journal::open(dynamic.clone(), VOLUME, REGION, 3, 2).unwrap();
    assert_eq!(plan(&*base, VOLUME, REGION, HOMES, 3, proof(2)).unwrap().records(), 0);
    let s = j.append(vec![image(HOME, 9)]).unwrap();
    j.flush_to(s).unwrap();
    let p = plan(&*base, VOLUME, REGION, HOMES, 3, proof(2)).unwrap();
    assert_eq!((p.records(), p.images().count()), (1, 1));
}

#[test]
fn damage_before_a_whole_record_is_not_taken_for_the_end() {
    let base = Arc::new(MemoryDisk::new(DISK_BYTES));
    let dynamic: Arc<dyn Disk> = base.clone();
    let j = fresh(&dynamic, REGION);
    for v in 1..=4 {
        let s = j.append(vec![image(HOME + v, 1)]).unwrap();
        j.flush_to(s).unwrap();
    }
    // record 2 lies at positions 2 and 3; its image rots
    base.write_at(&[0x55; 4096], (REGION.0 + 1 + 3) * BLOCK_U64, Durability::Plain).unwrap();
    let mut p = plan(&*base, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
    assert_eq!(p.gap().map(|g| (g.missing, g.position, g.later)), Some((2, 2, 3)));
    assert!(matches!(p.apply(&*base, &none), Err(JournalError::Damaged { missing: 2, later: 3, .. })));
    assert!(!inspect(&*base, VOLUME, REGION, 3).unwrap().clean);
    p.accept_gap();
    p.apply(&*base, &none).unwrap();
    assert_eq!((version(&*base, HOME + 1), version(&*base, HOME + 3)), (1, 0));
}

#[test]
fn a_proof_must_cover_the_journal() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    Journal::format(&*disk, VOLUME, REGION, 3).unwrap();
    let _j = Journal::open(disk.clone(), VOLUME, REGION, 3, 5).unwrap();
    let p = |proof| plan(&*disk, VOLUME, REGION, HOMES, 3, proof).map(drop);
    assert!(matches!(p(proof(4)), Err(JournalError::Unproven { found: 5, .. })));
    assert!(matches!(p(ReplayProof::Fenced(Fenced::attest(2, 9, 9))), Err(JournalError::Unproven { .. })));
    assert!(p(proof(5)).is_ok() && p(proof(6)).is_ok() && p(ReplayProof::FirstMount).is_ok());
}

#[test]
fn a_fence_of_a_host_that_never_opened_its_journal_still_closes_it() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    Journal::format(&*disk, VOLUME, REGION, 3).unwrap();
    plan(&*disk, VOLUME, REGION, HOMES, 3, proof(4)).unwrap().apply(&*disk, &none).unwrap();
    assert!(matches!(Journal::open(disk.clone(), VOLUME, REGION, 3, 4), Err(JournalError::NotOwner { found: 5, .. })));
    Journal::open(disk, VOLUME, REGION, 3, 5).unwrap();
}

/// Replay wrote wherever a whole image said it lived: over superblocks, beats and other journals; and an address beyond 2^52 came
/// round to the front of the LUN.
#[test]
fn images_that_live_elsewhere_are_damage() {
    for home in [0, 1, HOME - 1, HOMES.end, HOMES.end + 1, 1 << 52, (1 << 52) + HOME, u64::MAX] {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
        let j = fresh(&disk, REGION);
        let s = j.append(vec![image(HOME, 5), image(home, 5)]).unwrap();
        j.flush_to(s).unwrap();
        let refused = plan(&*disk, VOLUME, REGION, HOMES, 3, proof(1)).map(drop);
        assert!(matches!(refused, Err(JournalError::BadImage { slot: 3, block }) if block == home), "{home}: {refused:?}");
        assert_eq!(version(&*disk, HOME), 0);
    }
}

/// One more than such an incarnation is none.
#[test]
fn an_incarnation_that_cannot_be_counted_to_is_refused() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_BYTES));
    drop(fresh(&disk, REGION));
    let mut b = read(&*disk, REGION.0);
    b.0[64..72].copy_from_slice(&u64::MAX.to_le_bytes());
    let stamp = Stamp { kind: Kind::JournalHeader, volume: VOLUME, block: REGION.0, owner: 3, version: 7, writer: 3, epoch: 0 };
    seal(&mut b, &stamp);
    write(&*disk, &b, REGION.0);
    for proof in [ReplayProof::FirstMount, proof(1)] {
        let refused = plan(&*disk, VOLUME, REGION, HOMES, 3, proof).map(drop);
        assert!(matches!(refused, Err(JournalError::BadHeader { what: "incarnation", .. })), "{refused:?}");
    }
}

/// A host may die before its record is answered. Whoever finds the record must not bring a part of it home that outlives it.
#[test]
fn what_was_read_is_durable_before_anything_goes_home() {
    let memory = Arc::new(MemoryDisk::new(DISK_BYTES));
    let dynamic: Arc<dyn Disk> = memory.clone();
    let j = fresh(&dynamic, REGION);
    let s = j.append((0..3).map(|b| image(HOME + b, 1)).collect()).unwrap();
    j.flush_to(s).unwrap();
    let disk = RecordingDisk::new(memory);
    let p = plan(&disk, VOLUME, REGION, HOMES, 3, proof(1)).unwrap();
    p.apply(&disk, &none).unwrap();
    let log = disk.take();
    assert_eq!(log[0], Event::Flush);
    assert!(matches!(log[1], Event::Write { .. }) && log.len() == 4, "{} events", log.len());
}
