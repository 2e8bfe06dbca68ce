//! The allocator against a plain set of blocks, with checkpoints, remounts and crashes in between; and its corner cases.

use super::*;
use crate::error::Fetch;
use crate::names;
use crate::testkit::{Kit, VOLUME, audit, kit, kit_of, mount};
use luna_format::ag::SEGMENT_BLOCKS;
use luna_format::{BLOCK_U64, Block, Expect, HEADER_BYTES};
use luna_lun::{Disk, Durability};
use std::collections::BTreeMap;

fn xattr(block: BlockNo) -> Fetch {
    Fetch { block, kind: Kind::Xattr, owner: 5, lock: names::inode(5) }
}

/// Makes a metadata block that says `text`.
fn make(kit: &Kit, near: BlockNo, text: u8) -> Result<BlockNo, FsError> {
    kit.vol.run(|tx| {
        let (block, floor) = meta_block(tx, near)?;
        tx.create(xattr(block), floor)?.0[100] = text;
        Ok(block)
    })
}

fn drop_meta(kit: &Kit, block: BlockNo) -> Result<(), FsError> {
    kit.vol.run(|tx| {
        tx.read(xattr(block))?;
        free_meta(tx, block)
    })
}

fn version_at_home(kit: &Kit, block: BlockNo) -> u64 {
    let mut b = Block::zeroed();
    kit.disk.read_at(&mut b.0, block * BLOCK_U64).unwrap();
    luna_format::open(&b, &Expect { kind: Kind::Xattr, volume: VOLUME, block, owner: Some(5) }).unwrap().version
}

/// What is allocated, as the test knows it.
#[derive(Clone, Default)]
struct Model {
    /// First block and length of data runs.
    data: BTreeMap<u64, u64>,
    /// Metadata blocks and their text.
    meta: BTreeMap<u64, u8>,
}

impl Model {
    fn check(&self, kit: &Kit, seed: u64) {
        let used = audit(&*kit.disk);
        let data: BTreeSet<u64> = self.data.iter().flat_map(|(s, n)| *s..s + n).collect();
        let sb = kit.sb();
        let mut meta: BTreeSet<u64> = self.meta.keys().copied().collect();
        meta.insert(sb.root_ino);
        meta.extend(sb.orphan_ino..sb.orphan_ino + u64::from(sb.slots));
        assert_eq!(used.data, data, "seed {seed}");
        assert_eq!(used.meta, meta, "seed {seed}");
        for (block, text) in &self.meta {
            let found = kit.vol.run(|tx| Ok(tx.read(xattr(*block))?.0[100])).expect("metadata reads");
            assert_eq!(found, *text, "seed {seed}");
        }
    }

    fn take(&mut self, start: u64, len: u64, seed: u64) {
        let before = self.data.range(..start + len).next_back().map_or(0, |(s, n)| s + n);
        assert!(before <= start, "seed {seed}: blocks {start}+{len} given out twice");
        self.data.insert(start, len);
    }
}

fn one_op(kit: &Kit, m: &mut Model, rng: &mut fastrand::Rng, seed: u64) {
    let pick = |rng: &mut fastrand::Rng, n: usize| rng.usize(0..n.max(1));
    match rng.u8(0..10) {
        0..=3 => {
            let want = if rng.u8(0..8) == 0 { rng.u64(1..40_000) } else { rng.u64(1..300) };
            let goal = m.data.iter().nth(pick(rng, m.data.len())).map(|(s, n)| s + n).filter(|_| rng.bool());
            let min = rng.u64(1..=want.min(4));
            match kit.vol.run(|tx| data(tx, goal, want, min)) {
                Ok((start, len)) => {
                    assert!((min..=want).contains(&len), "seed {seed}");
                    m.take(start, len, seed);
                }
                Err(FsError::NoSpace) => {}
                Err(e) => panic!("seed {seed}: {e}"),
            }
        }
        4..=6 => {
            let Some((start, len)) = m.data.iter().nth(pick(rng, m.data.len())).map(|(s, n)| (*s, *n)) else { return };
            let (from, n) = (rng.u64(0..len), rng.u64(1..=len));
            let n = n.min(len - from);
            kit.vol.run(|tx| free_data(tx, start + from, n)).expect("free");
            m.data.remove(&start);
            if from > 0 {
                m.data.insert(start, from);
            }
            if from + n < len {
                m.data.insert(start + from + n, len - from - n);
            }
        }
        7 | 8 => {
            let (near, text) = (kit.sb().root_ino + rng.u64(0..100_000), rng.u8(..));
            match make(kit, near, text) {
                Ok(block) => assert!(m.meta.insert(block, text).is_none(), "seed {seed}: metadata given out twice"),
                Err(FsError::NoSpace) => {}
                Err(e) => panic!("seed {seed}: {e}"),
            }
        }
        _ => {
            let Some(block) = m.meta.keys().nth(pick(rng, m.meta.len())).copied() else { return };
            drop_meta(kit, block).expect("free");
            m.meta.remove(&block);
        }
    }
}

fn random_run(seed: u64, bytes: u64, ops: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut kit, mut m) = (kit_of(bytes, 2), Model::default());
    refresh_hints(&kit.vol);
    let mut safe = m.clone();
    for _ in 0..ops {
        one_op(&kit, &mut m, &mut rng, seed);
        match rng.u8(0..200) {
            0 => kit.vol.checkpoint().expect("checkpoint"),
            1 => {
                kit.vol.sync_all().expect("sync");
                safe = m.clone();
            }
            2 => {
                kit = kit.remount();
                m.check(&kit, seed);
                safe = m.clone();
            }
            3 => {
                // whatever was synced is there; what came after is not, unless a checkpoint took it along
                kit.vol.sync_all().expect("sync");
                safe = m.clone();
                kit = kit.crash();
                m.check(&kit, seed);
            }
            _ => {}
        }
    }
    kit = kit.remount();
    m.check(&kit, seed);
    drop(safe);
}

#[test]
fn random_operations_keep_bits_counters_and_owners_straight() {
    for seed in 0..6 {
        random_run(seed, 128 << 20, 1500);
    }
    random_run(100, 1 << 30, 2000);
}

#[test]
fn threads_of_one_host_share_a_nearly_full_volume() {
    let kit = kit_of(72 << 20, 1);
    let models: Vec<Model> = std::thread::scope(|s| {
        let kit = &kit;
        let work = move |seed: u64| {
            let (mut rng, mut m) = (fastrand::Rng::with_seed(seed), Model::default());
            for n in 0..1500 {
                one_op(kit, &mut m, &mut rng, seed);
                if n % 100 == seed {
                    kit.vol.checkpoint().expect("checkpoint");
                }
            }
            m
        };
        let all: Vec<_> = (0..4).map(|seed| s.spawn(move || work(seed))).collect();
        all.into_iter().map(|t| t.join().expect("thread")).collect()
    });
    let mut sum = Model::default();
    for m in models {
        m.data.iter().for_each(|(start, len)| sum.take(*start, *len, 0));
        m.meta.iter().for_each(|(block, text)| assert!(sum.meta.insert(*block, *text).is_none(), "metadata given out twice"));
    }
    kit.vol.checkpoint().expect("checkpoint");
    sum.check(&kit, 0);
}

#[test]
fn a_full_volume_says_so_and_gives_everything_back() {
    let kit = kit_of(64 << 20, 1);
    let before = kit.vol.run(totals).unwrap();
    let mut runs = Vec::new();
    let end = loop {
        match kit.vol.run(|tx| data(tx, None, 1000, 1)) {
            Ok(run) => runs.push(run),
            Err(e) => break e,
        }
    };
    assert!(matches!(end, FsError::NoSpace), "{end}");
    // metadata still has its reserve
    let meta: Vec<_> = (0..100).map(|i| make(&kit, kit.sb().root_ino, i).unwrap()).collect();
    for (start, len) in &runs {
        kit.vol.run(|tx| free_data(tx, *start, *len)).unwrap();
    }
    for block in meta {
        drop_meta(&kit, block).unwrap();
    }
    assert_eq!(kit.vol.run(totals).unwrap().0, before.0);
    // all of it is busy; the next allocation has to make it durable first
    let (_, len) = kit.vol.run(|tx| data(tx, None, 1000, 1000)).unwrap();
    assert_eq!(len, 1000);
    let kit = kit.remount();
    assert_eq!(audit(&*kit.disk).data.len(), 1000);
}

/// Free blocks of all groups, under their locks.
fn totals(tx: &mut Tx<'_>) -> Step<(u64, u64)> {
    let mut sum = (0, 0);
    for ag in 0..tx.sb.ag_count {
        let g = Group::load(tx, ag)?;
        sum = (sum.0 + g.h.free, sum.1 + g.h.free_meta);
    }
    Ok(sum)
}

#[test]
fn freed_blocks_wait_for_their_transaction() {
    let kit = kit();
    let (start, len) = kit.vol.run(|tx| data(tx, None, 100, 100)).unwrap();
    kit.vol.run(|tx| free_data(tx, start, len)).unwrap();
    let (again, _) = kit.vol.run(|tx| data(tx, Some(start), 100, 100)).unwrap();
    assert!(again >= start + len || again + 100 <= start, "not before the batch is durable");
    kit.vol.sync_all().unwrap();
    kit.vol.reclaim(None).unwrap();
    assert_eq!(kit.vol.run(|tx| data(tx, Some(start), 100, 100)).unwrap().0, start);
}

#[test]
fn blocks_freed_by_the_same_transaction_are_not_reused_in_it() {
    let kit = kit();
    let (start, len) = kit.vol.run(|tx| data(tx, None, 64, 64)).unwrap();
    let again = kit
        .vol
        .run(|tx| {
            free_data(tx, start, len)?;
            data(tx, Some(start), 64, 64)
        })
        .unwrap();
    assert_ne!(again.0, start);
}

#[test]
fn a_double_free_is_reported_and_changes_nothing() {
    let kit = kit();
    let (start, len) = kit.vol.run(|tx| data(tx, None, 64, 64)).unwrap();
    kit.vol.run(|tx| free_data(tx, start, 10)).unwrap();
    for (s, n) in [(start, 1), (start + 5, 10), (kit.sb().root_ino, 1), (1, 1), (u64::MAX - 1, 5), (start + len, 1), (start, u64::MAX)] {
        let e = kit.vol.run(|tx| free_data(tx, s, n)).unwrap_err();
        assert!(matches!(e, FsError::Corrupt(_)), "{s}+{n}: {e}");
    }
    assert!(matches!(kit.vol.run(|tx| free_meta(tx, start + 20)).unwrap_err(), FsError::Invalid(_)));
    let kit = kit.remount();
    assert_eq!(audit(&*kit.disk).data.len(), 54);
}

#[test]
fn versions_of_a_reused_metadata_address_only_grow() {
    let kit = kit();
    let mut last = 0;
    let block = make(&kit, 0, 1).unwrap();
    for round in 0..5 {
        for _ in 0..3 {
            kit.vol.run(|tx| tx.change(xattr(block)).map(|b| b.0[101] += 1)).unwrap();
        }
        kit.vol.checkpoint().unwrap();
        let now = version_at_home(&kit, block);
        assert!(now > last, "{now} after {last}");
        last = now;
        drop_meta(&kit, block).unwrap();
        kit.vol.checkpoint().unwrap();
        assert_eq!(make(&kit, block, round).unwrap(), block, "the first free block");
    }
}

#[test]
fn a_guests_forged_block_does_not_survive_as_metadata() {
    let kit = kit_of(64 << 20, 1);
    // a guest fills a whole group's data with a forged metadata block of enormous version, then gives the space back
    let mut runs = Vec::new();
    while let Ok(run) = kit.vol.run(|tx| data(tx, None, 1 << 20, 1)) {
        runs.push(run);
    }
    for (start, len) in &runs {
        for block in *start..start + len {
            let mut b = Block::zeroed();
            b.0[100] = 66;
            let stamp = luna_format::Stamp { kind: Kind::Xattr, volume: VOLUME, block, owner: 5, version: 1 << 40, writer: 0, epoch: 0 };
            luna_format::seal(&mut b, &stamp);
            kit.disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain).unwrap();
        }
    }
    for (start, len) in &runs {
        kit.vol.run(|tx| free_data(tx, *start, *len)).unwrap();
    }
    kit.vol.checkpoint().unwrap();
    // forget the discards: they promise nothing
    for (start, len) in &runs {
        for block in *start..start + len {
            let mut b = Block::zeroed();
            b.0[100] = 66;
            let stamp = luna_format::Stamp { kind: Kind::Xattr, volume: VOLUME, block, owner: 5, version: 1 << 40, writer: 0, epoch: 0 };
            luna_format::seal(&mut b, &stamp);
            kit.disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain).unwrap();
        }
    }
    let blocks: Vec<_> = (0..2000).map(|_| make(&kit, kit.sb().root_ino, 7).unwrap()).collect();
    assert!(blocks.iter().any(|b| runs.iter().any(|(s, n)| (*s..s + n).contains(b))), "a data segment became metadata");
    kit.vol.sync_all().unwrap();
    let kit = kit.crash();
    for b in blocks {
        assert_eq!(kit.vol.run(|tx| Ok(tx.read(xattr(b))?.0[100])).unwrap(), 7, "block {b}");
    }
}

#[test]
fn large_requests_get_long_runs_and_few_restarts() {
    let kit = kit_of(40 << 30, 4);
    let begin = std::time::Instant::now();
    let (mut left, mut goal, mut calls) = ((30u64 << 30) / 4096, None, 0);
    while left > 0 {
        let (start, len) = kit.vol.run(|tx| data(tx, goal, left, 1)).unwrap();
        (left, goal, calls) = (left - len, Some(start + len), calls + 1);
    }
    assert!(calls <= 33, "{calls} runs");
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    kit.remount();
}

#[test]
fn two_hosts_start_in_different_groups() {
    let kit = kit_of(8 << 30, 4);
    let first = kit.vol.run(|tx| data(tx, None, 10, 10)).unwrap().0;
    kit.vol.checkpoint().unwrap();
    let other = mount(kit.disk.clone(), 2, 1);
    let second = other.vol.run(|tx| data(tx, None, 10, 10)).unwrap().0;
    assert_ne!(kit.sb().ag_of(first), kit.sb().ag_of(second));
}

#[test]
fn a_lost_group_is_left_to_its_new_owner() {
    let kit = kit_of(8 << 30, 4);
    let first = kit.vol.run(|tx| data(tx, None, 10, 10)).unwrap().0;
    let home = kit.sb().ag_of(first).unwrap();
    kit.vol.write_back(&names::group(home)).unwrap();
    kit.vol.forget(&names::group(home));
    let second = kit.vol.run(|tx| data(tx, Some(first + 10), 10, 10)).unwrap().0;
    assert_ne!(kit.sb().ag_of(second), Some(home));
    refresh_hints(&kit.vol);
    let third = kit.vol.run(|tx| data(tx, Some(first + 10), 10, 10)).unwrap().0;
    assert_eq!(third, first + 10, "after a while it is tried again");
}

#[test]
fn statfs_adds_up() {
    let kit = kit();
    refresh_hints(&kit.vol);
    let before = statfs(&kit.vol);
    assert!(before.free > 200_000 && before.free <= before.blocks, "{before:?}");
    kit.vol.run(|tx| data(tx, None, 1000, 1000)).unwrap();
    make(&kit, 0, 1).unwrap();
    let after = statfs(&kit.vol);
    assert_eq!((after.blocks, after.free), (before.blocks, before.free - 1001));
    let kit = kit.remount();
    refresh_hints(&kit.vol);
    assert_eq!(statfs(&kit.vol), after);
}

#[test]
fn damaged_groups_are_errors_not_panics() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut kit = kit_of(64 << 20, 1);
        let (start, len) = kit.vol.run(|tx| data(tx, None, 700, 700)).unwrap();
        let block = make(&kit, 0, 1).unwrap();
        kit = kit.remount();
        let (group, _) = kit.sb().ag_region(kit.sb().ag_of(start).unwrap());
        // a well-sealed block with wrong content
        let victim = group + rng.u64(0..2);
        let kind = if victim == group { Kind::AgHeader } else { Kind::AgBitmap };
        let mut b = Block::zeroed();
        kit.disk.read_at(&mut b.0, victim * BLOCK_U64).unwrap();
        let owner = b.header().owner;
        for _ in 0..rng.usize(1..20) {
            let at = if victim == group { rng.usize(HEADER_BYTES..400) } else { rng.usize(HEADER_BYTES..4096) };
            b.0[at] = rng.u8(..);
        }
        let stamp = luna_format::Stamp { kind, volume: VOLUME, block: victim, owner, version: 9, writer: 0, epoch: 0 };
        luna_format::seal(&mut b, &stamp);
        kit.disk.write_at(&b.0, victim * BLOCK_U64, Durability::Plain).unwrap();
        let _ = kit.vol.run(|tx| free_data(tx, start, len));
        let _ = kit.vol.run(|tx| data(tx, Some(start + len), 5000, 1));
        let _ = drop_meta(&kit, block);
        let _ = make(&kit, block, 3);
    }
}

/// Takes all of a group but `metas` metadata blocks.
fn fill(kit: &Kit, ag: u64, metas: u64) {
    let more = |tx: &mut Tx<'_>| {
        let mut g = Group::load(tx, ag)?;
        g.init_bitmaps(tx)?;
        let view = search::DataView::new(tx, &g)?;
        let (rel, len) = search::find_data(tx, &g, &view, 0, u64::MAX)?;
        if len > 0 {
            g.take_data(tx, rel, len)?;
        } else if g.h.free > metas
            && let Some(rel) = search::meta_in(tx, &mut g, 0)?
        {
            g.take_meta(tx, rel)?;
        }
        Ok(g.h.free > metas)
    };
    while kit.vol.run(more).unwrap() {}
}

/// Frees every other block of a full group, `n` blocks in all: much space, no run.
fn thin_out(kit: &Kit, ag: u64, n: u64) {
    let start = kit.sb().ag_region(ag).0 + SEGMENT_BLOCKS;
    kit.vol.run(|tx| (0..n).try_for_each(|i| free_data(tx, start + 2 * i, 1))).unwrap();
    kit.vol.checkpoint().unwrap();
}

/// Frees `n` data segments of a full group from segment `first` on. (While it has few free metadata blocks, one is kept for those.)
fn free_segments(kit: &Kit, ag: u64, first: u64, n: u64) {
    let start = kit.sb().ag_region(ag).0 + first * SEGMENT_BLOCKS;
    kit.vol.run(|tx| free_data(tx, start, n * SEGMENT_BLOCKS)).unwrap();
    kit.vol.checkpoint().unwrap();
}

/// Lets another host work on a group that this one knows.
fn elsewhere(kit: &Kit, slot: u16, ag: u64, work: impl FnOnce(&Kit)) {
    kit.vol.write_back(&names::group(ag)).unwrap();
    kit.vol.forget(&names::group(ag));
    let other = mount(kit.disk.clone(), slot, 1);
    work(&other);
    other.vol.checkpoint().unwrap();
}

/// The group that `f` took from, and how often it ran again.
fn restarts(kit: &Kit, f: impl FnOnce() -> BlockNo) -> (u64, u64) {
    let count = || kit.vol.restarts.load(std::sync::atomic::Ordering::Relaxed);
    let before = count();
    let block = f();
    (kit.sb().ag_of(block).unwrap(), count() - before)
}

/// Each look at a group whose lock the operation does not have makes it run again.
#[test]
fn groups_that_are_full_for_the_wish_are_passed_by() {
    let kit = kit_of(16 << 30, 4);
    let last = kit.sb().ag_count - 1;
    assert!(last >= 14);
    for ag in 0..last {
        fill(&kit, ag, 0);
        thin_out(&kit, ag, 2500);
    }
    let root = kit.sb().root_ino;
    let meta = |kit: &Kit| restarts(kit, || make(kit, root, 1).unwrap());
    let run = |kit: &Kit| restarts(kit, || kit.vol.run(|tx| data(tx, None, 2048, 1)).unwrap().0);
    let (group, n) = meta(&kit);
    assert!(group == last && n <= 5, "{group} {n}: group, inode, header, bitmaps, zeroes");
    let (group, n) = meta(&kit);
    assert!(group == last && n <= 2, "{group} {n}: group, inode");
    // runs are known when they were looked for, some groups at a time
    while run(&kit).0 != last {}
    let (group, n) = run(&kit);
    assert!(group == last && n <= 1, "{group} {n}: group");

    // a host that comes new knows from the headers where there is room for metadata
    let kit = kit.remount();
    refresh_hints(&kit.vol);
    let (group, n) = meta(&kit);
    assert!(group == last && n <= 5, "{group} {n}");
    // and one that looked for runs does not look again where nothing changed, not even after it lost the lock
    while run(&kit).0 != last {}
    kit.vol.checkpoint().unwrap();
    (0..=last).for_each(|ag| kit.vol.forget(&names::group(ag)));
    refresh_hints(&kit.vol);
    let (group, n) = run(&kit);
    assert!(group == last && n <= 3, "{group} {n}: group, header, bitmaps");
}

#[test]
fn space_that_this_host_frees_is_found_again() {
    let kit = kit_of(8 << 30, 4);
    let (last, root) = (kit.sb().ag_count - 1, kit.sb().root_ino);
    for ag in 0..last {
        fill(&kit, ag, 0);
        thin_out(&kit, ag, 2500);
    }
    let group = |block: BlockNo| kit.sb().ag_of(block).unwrap();
    let run = || kit.vol.run(|tx| data(tx, None, 2048, 1)).unwrap();
    assert_eq!(group(make(&kit, root, 1).unwrap()), last);
    while group(run().0) != last {}
    free_segments(&kit, 3, 300, 9);
    let (found, len) = run();
    assert_eq!((group(found), len), (3, 2048));
    assert_eq!(group(make(&kit, root, 1).unwrap()), 3);

    // what is being filled with zeroes is in use only for that time
    fill(&kit, 3, 0);
    free_segments(&kit, 3, 500, 1);
    let start = kit.sb().ag_region(3).0 + 500 * SEGMENT_BLOCKS;
    let busy = crate::meta::Busy { len: SEGMENT_BLOCKS, sequence: u64::MAX, trim: false };
    kit.vol.meta.lock().busy.insert(start, busy);
    assert_eq!(group(make(&kit, root, 1).unwrap()), last);
    not_busy(&mut kit.vol.meta.lock(), kit.sb(), start);
    assert_eq!(group(make(&kit, root, 1).unwrap()), 3);
}

#[test]
fn no_space_is_said_only_when_every_group_is_full() {
    let kit = kit_of(8 << 30, 4);
    let (count, root) = (kit.sb().ag_count, kit.sb().root_ino);
    (0..count).for_each(|ag| fill(&kit, ag, 0));
    kit.vol.checkpoint().unwrap();
    let no_space = || {
        let run = kit.vol.run(|tx| data(tx, None, 10, 1));
        matches!(make(&kit, root, 1), Err(FsError::NoSpace)) && matches!(run, Err(FsError::NoSpace))
    };
    assert!(no_space());
    // no hint says that another host freed something
    elsewhere(&kit, 1, 5, |other| free_segments(other, 5, 500, 1));
    assert_eq!(kit.sb().ag_of(make(&kit, root, 1).unwrap()), Some(5));
    fill(&kit, 5, 0);
    kit.vol.checkpoint().unwrap();
    assert!(no_space());
    elsewhere(&kit, 2, 4, |other| free_segments(other, 4, 500, 2));
    assert_eq!(kit.sb().ag_of(kit.vol.run(|tx| data(tx, None, 10, 1)).unwrap().0), Some(4));
}

#[test]
fn space_that_another_host_freed_is_found_again() {
    let kit = kit_of(8 << 30, 4);
    (0..kit.sb().ag_count).for_each(|ag| fill(&kit, ag, 0));
    thin_out(&kit, 1, 2500);
    thin_out(&kit, 2, 2500);
    let run = || kit.vol.run(|tx| data(tx, None, 2048, 1)).map(|(start, len)| (kit.sb().ag_of(start).unwrap(), len)).unwrap();
    assert_eq!(run(), (1, 1));
    // the header is read again when the lock comes back
    elsewhere(&kit, 1, 2, |other| free_segments(other, 2, 300, 20));
    assert_eq!(run(), (1, 1), "not known yet");
    kit.vol.run(|tx| Group::load(tx, 2).map(drop)).unwrap();
    assert_eq!(run(), (2, 2048));
    // or without it, now and then
    assert_eq!(run(), (2, 2048));
    fill(&kit, 2, 0);
    assert_eq!(run(), (1, 1));
    elsewhere(&kit, 2, 2, |other| free_segments(other, 2, 500, 20));
    refresh_hints(&kit.vol);
    assert_eq!(run(), (2, 2048));
}

#[test]
fn a_search_that_came_to_nothing_leaves_no_hint() {
    let kit = kit_of(8 << 30, 4);
    fill(&kit, 0, 2);
    thin_out(&kit, 0, 10);
    let root = kit.sb().root_ino;
    let cut_off = kit.vol.run(|tx| {
        let groups = (0..3).map(|_| Ok(tx.sb.ag_of(meta_block(tx, root)?.0))).collect::<Step<Vec<_>>>()?;
        assert_eq!(groups, [Some(0), Some(0), Some(1)]);
        Err::<(), _>(FsError::WouldBlock.into())
    });
    assert!(matches!(cut_off, Err(FsError::WouldBlock)));
    for group in [0, 0, 1] {
        assert_eq!(kit.sb().ag_of(make(&kit, root, 1).unwrap()), Some(group));
    }
}
