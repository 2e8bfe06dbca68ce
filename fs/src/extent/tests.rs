//! Files against a plain map of their blocks, with checkpoints, remounts and crashes; large and damaged trees.

use super::*;
use crate::inode::{self, fetch_of};
use crate::names;
use crate::testkit::{Kit, VOLUME, audit, kit, kit_of};
use luna_format::{BLOCK_U64, Block};
use luna_lun::{Disk, Durability};
use std::collections::{BTreeMap, BTreeSet};

/// A regular file without a name.
pub(super) fn make_file(kit: &Kit) -> Ino {
    kit.vol
        .run(|tx| {
            let (ino, floor) = alloc::meta_block(tx, tx.sb.root_ino)?;
            let b = tx.create(fetch_of(ino), floor)?;
            let Some(i) = b.view_mut::<Inode>(HEADER_BYTES) else { return Err(FsError::Invalid("inode").into()) };
            (i.mode, i.nlink) = (0o100_644, 1);
            Ok(ino)
        })
        .expect("a file")
}

/// All nodes of the tree, and its extents in order, read without the code under test.
fn walk(tx: &mut Tx<'_>, ino: Ino) -> Step<(BTreeSet<BlockNo>, Vec<Extent>)> {
    let i = inode::get(tx, ino)?;
    let (mut nodes, mut extents) = (BTreeSet::new(), Vec::new());
    let body = inode::body(tx, ino)?.to_vec();
    let mut todo: Vec<(u8, BlockNo)> = Vec::new();
    match Layout::from_u8(i.layout).expect("layout") {
        Layout::Empty => assert_eq!((i.count, i.depth), (0, 0)),
        Layout::Extents => extents = tree::items::<Extent>(&body, i.count.into()).expect("extents").to_vec(),
        Layout::ExtentTree => {
            let list = tree::items::<Entry>(&body, i.count.into()).expect("root");
            todo.extend(list.iter().rev().map(|e| (i.depth - 1, e.child)));
        }
        other => panic!("{other:?}"),
    }
    while let Some((level, block)) = todo.pop() {
        assert!(nodes.insert(block), "node {block} twice");
        let f = crate::error::Fetch { block, kind: Kind::ExtentNode, owner: ino, lock: names::inode(ino) };
        let b = tx.read(f)?.clone();
        let h = luna_format::tree::check(&b, level.into())?;
        assert!(h.count > 0, "an empty node");
        if level == 0 {
            extents.extend(tree::items::<Extent>(&b.0[ENTRIES_AT..], h.count.into()).expect("leaf"));
        } else {
            let list = tree::items::<Entry>(&b.0[ENTRIES_AT..], h.count.into()).expect("node");
            todo.extend(list.iter().rev().map(|e| (level - 1, e.child)));
        }
    }
    assert!(extents.windows(2).all(|w| w[0].end() <= w[1].logical), "extents in order");
    let data: u64 = extents.iter().map(|e| u64::from(e.len)).sum();
    assert_eq!(i.blocks, data + nodes.len() as u64, "blocks counted");
    Ok((nodes, extents))
}

/// Logical block -> (block, written).
pub(super) type Blocks = BTreeMap<u64, (BlockNo, bool)>;

pub(super) fn blocks_of(runs: &[Run]) -> Blocks {
    let mut out = Blocks::new();
    for r in runs {
        let (first, written) = match r.kind {
            RunKind::Hole => continue,
            RunKind::Written(p) => (p, true),
            RunKind::Unwritten(p) => (p, false),
        };
        out.extend((0..r.len).map(|i| (r.logical + i, (first + i, written))));
    }
    out
}

pub(super) fn mapped(kit: &Kit, ino: Ino, start: u64, len: u64) -> Vec<Run> {
    let runs = kit.vol.run(|tx| map(tx, ino, start, len, usize::MAX - 1)).expect("map");
    let mut at = start;
    for r in &runs {
        assert_eq!(r.logical, at, "no gap");
        at += r.len;
    }
    assert_eq!(at, start + len, "all covered");
    runs
}

pub(super) const SPAN: u64 = 1 << 20;

pub(super) fn check_all(kit: &Kit, files: &BTreeMap<Ino, Blocks>, seed: u64) {
    let used = audit(&*kit.disk);
    let (mut data, mut meta) = (BTreeSet::new(), BTreeSet::new());
    let sb = kit.sb();
    meta.insert(sb.root_ino);
    meta.extend(sb.orphan_ino..sb.orphan_ino + u64::from(sb.slots));
    for (ino, blocks) in files {
        assert_eq!(&blocks_of(&mapped(kit, *ino, 0, SPAN)), blocks, "seed {seed} file {ino}");
        for (p, _) in blocks.values() {
            assert!(data.insert(*p), "seed {seed}: block {p} owned twice");
        }
        let (nodes, _) = kit.vol.run(|tx| walk(tx, *ino)).expect("walk");
        meta.insert(*ino);
        for n in nodes {
            assert!(meta.insert(n), "seed {seed}: node {n} owned twice");
        }
        let end = blocks.keys().next_back().map_or(0, |l| l + 1);
        assert_eq!(kit.vol.run(|tx| end_of_allocation(tx, *ino)).expect("end"), end);
    }
    assert_eq!(used.data, data, "seed {seed}");
    assert_eq!(used.meta, meta, "seed {seed}");
}

pub(super) fn punch_all(kit: &Kit, ino: Ino, start: u64, end: u64, budget: usize) {
    let mut from = start;
    while let Some(next) = kit.vol.run(|tx| punch(tx, ino, from, end, budget)).expect("punch") {
        assert!(next > from);
        from = next;
    }
}

pub(super) fn allocate_all(kit: &Kit, ino: Ino, start: u64, len: u64) -> Result<(), FsError> {
    let mut from = start;
    while from < start + len {
        from = kit.vol.run(|tx| allocate(tx, ino, from, start + len - from, len))?;
    }
    Ok(())
}

pub(super) fn one_op(kit: &Kit, files: &mut BTreeMap<Ino, Blocks>, rng: &mut fastrand::Rng, seed: u64) {
    let n = rng.usize(0..files.len());
    let Some((&ino, blocks)) = files.iter_mut().nth(n) else { return };
    let wide = rng.u8(0..20) == 0;
    let start = if rng.bool() { rng.u64(0..2000) } else { rng.u64(0..SPAN - 5000) };
    let len = if wide { rng.u64(1..4000) } else { rng.u64(1..12) };
    let end = start + len;
    match rng.u8(0..10) {
        0..=2 => {
            if (start..end).any(|l| blocks.contains_key(&l)) {
                return;
            }
            let flags = if rng.bool() { EXTENT_UNWRITTEN } else { 0 };
            let placed = kit.vol.run(|tx| {
                let (physical, n) = alloc::data(tx, None, len, 1)?;
                insert(tx, ino, Extent { logical: start, physical, len: n as u32, flags })?;
                Ok((physical, n))
            });
            match placed {
                Ok((p, n)) => blocks.extend((0..n).map(|i| (start + i, (p + i, flags == 0)))),
                Err(FsError::NoSpace) => {}
                Err(e) => panic!("seed {seed}: {e}"),
            }
        }
        3..=5 => {
            let done = allocate_all(kit, ino, start, len);
            assert!(matches!(done, Ok(()) | Err(FsError::NoSpace)), "seed {seed}: {done:?}");
            let now = blocks_of(&mapped(kit, ino, start, len));
            for (l, (p, written)) in &now {
                match blocks.get(l) {
                    Some(old) => assert_eq!(old, &(*p, *written), "seed {seed}: {l} moved"),
                    None => assert!(!written, "seed {seed}"),
                }
            }
            assert!(done.is_err() || now.len() as u64 == len, "seed {seed}: all filled");
            blocks.extend(now);
        }
        6 | 7 => {
            kit.vol.run(|tx| convert(tx, ino, start, len)).expect("convert");
            blocks.range_mut(start..end).for_each(|(_, v)| v.1 = true);
        }
        _ => {
            let end = if rng.u16(0..300) == 0 { SPAN } else { end };
            punch_all(kit, ino, start, end, rng.usize(1..20));
            blocks.retain(|l, _| !(start..end).contains(l));
        }
    }
}

fn random_run(seed: u64, bytes: u64, ops: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut kit = kit_of(bytes, 2);
    let mut files: BTreeMap<Ino, Blocks> = (0..3).map(|_| (make_file(&kit), Blocks::new())).collect();
    for _ in 0..ops {
        one_op(&kit, &mut files, &mut rng, seed);
        match rng.u16(0..1200) {
            0..=3 => kit.vol.checkpoint().expect("checkpoint"),
            4 => {
                kit = kit.remount();
                check_all(&kit, &files, seed);
            }
            5 => {
                kit.vol.sync_all().expect("sync");
                kit = kit.crash();
                check_all(&kit, &files, seed);
            }
            6 => {
                // changes nobody asked to keep: gone or there, but never half
                kit = kit.crash();
                for (ino, blocks) in &mut files {
                    *blocks = blocks_of(&mapped(&kit, *ino, 0, SPAN));
                }
                check_all(&kit, &files, seed);
            }
            _ => {}
        }
    }
    kit = kit.remount();
    check_all(&kit, &files, seed);
    for (ino, blocks) in &mut files {
        punch_all(&kit, *ino, 0, u64::MAX, 50);
        blocks.clear();
        let i = kit.vol.run(|tx| inode::get(tx, *ino)).expect("inode");
        assert_eq!((i.layout, i.blocks, i.count, i.depth), (Layout::Empty as u8, 0, 0, 0), "seed {seed}");
    }
    kit = kit.remount();
    check_all(&kit, &files, seed);
}

#[test]
fn files_do_what_a_map_of_blocks_does() {
    for seed in 0..4 {
        random_run(seed, 1 << 30, 4000);
    }
}

#[test]
fn files_on_a_nearly_full_volume_do_what_a_map_of_blocks_does() {
    for seed in 10..13 {
        random_run(seed, 72 << 20, 3000);
    }
}

#[test]
fn a_crash_gives_the_state_of_the_last_sync() {
    let kit = kit();
    let ino = make_file(&kit);
    for n in 0..500 {
        allocate_all(&kit, ino, n * 10, 3).unwrap();
    }
    kit.vol.sync_all().unwrap();
    let before = mapped(&kit, ino, 0, 6000);
    punch_all(&kit, ino, 0, 2500, 7);
    kit.vol.run(|tx| convert(tx, ino, 2500, 1000)).unwrap();
    let kit = kit.crash();
    assert_eq!(mapped(&kit, ino, 0, 6000), before);
}

#[test]
fn sequential_growth_is_one_extent() {
    let kit = kit();
    let ino = make_file(&kit);
    for n in 0..100 {
        allocate_all(&kit, ino, n * 64, 64).unwrap();
        kit.vol.run(|tx| convert(tx, ino, n * 64, 64)).unwrap();
    }
    let runs = mapped(&kit, ino, 0, 6400);
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(kit.vol.run(|tx| inode::get(tx, ino)).unwrap().count, 1);
}

#[test]
fn runs_are_limited_and_complete() {
    let kit = kit();
    let ino = make_file(&kit);
    for n in 0..1000 {
        allocate_all(&kit, ino, n * 4, 2).unwrap();
        if n % 3 == 0 {
            kit.vol.run(|tx| convert(tx, ino, n * 4, 1)).unwrap();
        }
    }
    let all = mapped(&kit, ino, 1, 5000);
    for max in [1, 2, 3, 10, 100] {
        let (mut at, mut got) = (1, Vec::new());
        while at < 5001 {
            let runs = kit.vol.run(|tx| map(tx, ino, at, 5001 - at, max)).unwrap();
            assert!(!runs.is_empty() && runs.len() <= max && runs[0].logical == at);
            at = runs.last().map_or(at, |r| r.logical + r.len);
            got.extend(runs);
        }
        assert_eq!(got, all, "{max}");
    }
    assert!(kit.vol.run(|tx| map(tx, ino, 5, 0, 10)).unwrap().is_empty());
    assert_eq!(mapped(&kit, ino, u64::MAX - 5, 5), vec![Run { logical: u64::MAX - 5, len: 5, kind: RunKind::Hole }]);
}

#[test]
fn mapping_twice_is_refused() {
    let kit = kit();
    let ino = make_file(&kit);
    allocate_all(&kit, ino, 10, 10).unwrap();
    for (logical, len) in [(10, 1), (5, 6), (19, 5), (0, 100), (12, 3)] {
        let e = Extent { logical, physical: kit.sb().ag_start + 5000, len, flags: 0 };
        assert!(matches!(kit.vol.run(|tx| insert(tx, ino, e)).unwrap_err(), FsError::Damaged { .. }));
    }
    for (logical, len) in [(0, 0), (u64::MAX - 1, 5), (0, u32::MAX)] {
        let e = Extent { logical, physical: kit.sb().ag_start + 5000, len, flags: 0 };
        assert!(matches!(kit.vol.run(|tx| insert(tx, ino, e)).unwrap_err(), FsError::Invalid(_)));
    }
}

/// `n` extents of one block each that never merge, put in by the order of `order`, then all taken out.
fn many(kit: &Kit, n: u64, order: impl Fn(u64) -> u64) -> u8 {
    let ino = make_file(kit);
    let mut space = Vec::new();
    let mut left = n;
    while left > 0 {
        let (start, len) = kit.vol.run(|tx| alloc::data(tx, None, left, 1)).unwrap();
        space.extend(start..start + len);
        left -= len;
    }
    for k in 0..n {
        let at = order(k);
        let e = Extent { logical: at * 2, physical: space[at as usize], len: 1, flags: 0 };
        kit.vol.run(|tx| insert(tx, ino, e)).unwrap();
    }
    let depth = kit.vol.run(|tx| inode::get(tx, ino)).unwrap().depth;
    let (_, extents) = kit.vol.run(|tx| walk(tx, ino)).unwrap();
    assert_eq!(extents.len() as u64, n);
    let begin = std::time::Instant::now();
    for k in (0..n).step_by(97) {
        let runs = kit.vol.run(|tx| map(tx, ino, k * 2, 1, 1)).unwrap();
        assert_eq!(runs[0].kind, RunKind::Written(space[k as usize]));
    }
    assert!(begin.elapsed().as_secs() < 20);
    punch_all(kit, ino, 0, u64::MAX, 512);
    assert_eq!(kit.vol.run(|tx| inode::get(tx, ino)).unwrap().blocks, 0);
    depth
}

#[test]
fn trees_of_two_levels_grow_and_shrink() {
    let kit = kit();
    assert_eq!(many(&kit, 60_000, |k| k), 2, "ascending");
    assert_eq!(many(&kit, 15_000, |k| 14_999 - k), 1, "descending");
    assert_eq!(many(&kit, 44_000, |k| k * 27_773 % 44_000), 2, "in disorder");
    let kit = kit.remount();
    assert!(audit(&*kit.disk).data.is_empty());
}

#[test]
#[ignore = "a minute; run by hand"]
fn a_million_extents() {
    let kit = kit_of(16 << 30, 2);
    let begin = std::time::Instant::now();
    assert_eq!(many(&kit, 1_000_000, |k| k * 387_419 % 1_000_000), 2);
    println!("a million extents in and out in {:?}", begin.elapsed());
}

#[test]
fn a_64_tib_file_is_allocated_and_freed() {
    let kit = kit_of(65 << 40, 2);
    let ino = make_file(&kit);
    let begin = std::time::Instant::now();
    let blocks = (100u64 << 30) / BLOCK_U64;
    allocate_all(&kit, ino, 0, blocks).unwrap();
    println!("100 GiB allocated in {:?}", begin.elapsed());
    assert!(begin.elapsed().as_secs() < 5);
    let far = (64u64 << 40) / BLOCK_U64 - 1;
    allocate_all(&kit, ino, far, 1).unwrap();
    assert_eq!(kit.vol.run(|tx| end_of_allocation(tx, ino)).unwrap(), far + 1);
    let runs = mapped(&kit, ino, 0, far + 1);
    assert!(runs.len() < 60, "{}", runs.len());
    punch_all(&kit, ino, 0, u64::MAX, 64);
    assert_eq!(kit.vol.run(|tx| inode::get(tx, ino)).unwrap().blocks, 0);
}

/// Reseals a block after `f` changed it on the disk.
fn forge(kit: &Kit, block: BlockNo, kind: Kind, owner: u64, f: impl FnOnce(&mut Block)) {
    let mut b = Block::zeroed();
    kit.disk.read_at(&mut b.0, block * BLOCK_U64).unwrap();
    f(&mut b);
    let stamp = luna_format::Stamp { kind, volume: VOLUME, block, owner, version: 1000, writer: 0, epoch: 0 };
    luna_format::seal(&mut b, &stamp);
    kit.disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain).unwrap();
}

#[test]
fn damaged_trees_are_errors_not_panics_or_loops() {
    for seed in 0..150 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut kit = kit_of(64 << 20, 1);
        let ino = make_file(&kit);
        let n = if rng.bool() { 100 } else { 900 };
        for n in 0..n {
            allocate_all(&kit, ino, n * 4, 2).unwrap();
        }
        let (nodes, _) = kit.vol.run(|tx| walk(tx, ino)).unwrap();
        kit = kit.remount();
        let nodes: Vec<_> = nodes.into_iter().collect();
        let (block, kind) =
            if nodes.is_empty() || rng.bool() { (ino, Kind::Inode) } else { (nodes[rng.usize(..nodes.len())], Kind::ExtentNode) };
        forge(&kit, block, kind, ino, |b| {
            for _ in 0..rng.usize(1..8) {
                let fields = rng.usize(if kind == Kind::Inode { 144..148 } else { 64..72 });
                let at = if rng.bool() { fields } else { rng.usize(if kind == Kind::Inode { 256..4096 } else { 72..4096 }) };
                b.0[at] = rng.u8(..);
            }
        });
        let _ = kit.vol.run(|tx| map(tx, ino, 0, 5000, 10_000));
        let _ = kit.vol.run(|tx| end_of_allocation(tx, ino));
        let _ = kit.vol.run(|tx| convert(tx, ino, 100, 3000));
        let _ = kit.vol.run(|tx| allocate(tx, ino, 0, 3000, 3000));
        let _ = kit.vol.run(|tx| punch(tx, ino, 50, 3000, 1000));
    }
}

#[test]
fn a_freed_inode_is_stale() {
    let kit = kit();
    let ino = make_file(&kit);
    kit.vol.run(|tx| inode::update(tx, ino, |i| i.mode = 0)).unwrap();
    assert!(matches!(kit.vol.run(|tx| inode::get(tx, ino)).unwrap_err(), FsError::Stale));
}
