//! Every damage in the table is made, found, repaired and gone; nothing else changes; a repair may be cut off anywhere.

use super::*;
use crate::check::{Repair as How, Severity};
use crate::op::{Cred, create, link, mkdir, rmdir, symlink, unlink};
use crate::testkit::kit_of;
use crate::wreck::{self, Wreck, Wrecker};
use crate::{extent, inode, xattr};
use luna_format::dir::entries;
use luna_format::inode::{BODY_AT, Extent, Layout};
use luna_format::tree::{ENTRIES_AT, NodeHeader};
use luna_format::{BLOCK_U64, HEADER_BYTES};
use luna_lun::Durability;
use luna_lun::memory::MemoryDisk;
use luna_lun::recording::{Event as Write, RecordingDisk};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A clean volume with everything on it, and data in every written block.
fn volume() -> Arc<MemoryDisk> {
    let kit = kit_of(256 << 20, 2);
    let (v, root, cred) = (&kit.vol, kit.sb().root_ino, Cred { umask: 0o022, ..Cred::default() });
    let file = |dir: Ino, name: &str| v.run(|tx| create(tx, dir, name.as_bytes(), 0o644, 0, &cred)).unwrap().ino;
    let dir = |dir: Ino, name: &str| v.run(|tx| mkdir(tx, dir, name.as_bytes(), 0o755, &cred)).unwrap().ino;
    let fill = |ino: Ino, at: u64, len: u64| {
        let mut pos = at;
        while pos < at + len {
            pos = v.run(|tx| extent::allocate(tx, ino, pos, at + len - pos, len)).unwrap();
        }
        v.run(|tx| extent::convert(tx, ino, at, len)).unwrap();
        v.run(|tx| inode::update(tx, ino, |i| i.size = i.size.max((at + len) * BLOCK_U64))).unwrap();
    };
    let deep = ["vms", "alice", "disks"].iter().fold(root, |d, name| dir(d, name));
    for n in 0..12 {
        let f = file(if n % 2 == 0 { deep } else { root }, &format!("disk {n}"));
        (0..=n % 4).for_each(|k| fill(f, k * 50, 3 + n));
    }
    for d in [root, deep] {
        dir(d, "empty");
        dir(d, "empty too");
        let f = file(d, "attributes");
        v.run(|tx| xattr::set(tx, f, b"user.one", b"value", 0)).unwrap();
        v.run(|tx| xattr::set(tx, f, b"user.two", b"other", 0)).unwrap();
        v.run(|tx| symlink(tx, d, b"link", b"vms/alice", &cred)).unwrap();
        let sparse = file(d, "sparse");
        (0..600).for_each(|n| fill(sparse, n * 3, 1));
        v.run(|tx| extent::allocate(tx, sparse, 10_000, 50, 50)).unwrap();
        let twice = file(d, "twice");
        fill(twice, 0, 2);
        v.run(|tx| link(tx, twice, root, format!("second {d}").as_bytes())).unwrap();
    }
    for d in ["big", "bigger"] {
        let d = dir(root, d);
        (0..300).for_each(|n| {
            file(d, &format!("an entry with a long name, number {n}"));
        });
    }
    for n in 0..3 {
        let name = format!("gone {n}");
        fill(file(root, &name), 0, 9);
        v.run(|tx| unlink(tx, root, name.as_bytes())).unwrap();
    }
    dir(root, "gone");
    v.run(|tx| rmdir(tx, root, b"gone")).unwrap();
    v.checkpoint().unwrap();
    v.journal.close().unwrap();
    let w = Wrecker::new(kit.disk.clone(), 0).unwrap();
    for (n, (ino, i, _)) in all(&w).into_iter().enumerate() {
        if n % 5 == 0 && i.layout == Layout::Empty as u8 {
            w.edit(ino, |b| {
                b.0[BODY_AT..BODY_AT + 100].fill(n as u8 | 1);
                inodes::edit(b, |i| (i.layout, i.inline_len, i.size) = (Layout::Inline as u8, 100, 100));
            })
            .unwrap();
        }
        for e in extents(&w, ino, &i) {
            for k in 0..u64::from(e.len) {
                let bytes: Vec<u8> = (ino * 1_000_003 + e.logical + k).to_le_bytes().repeat(512);
                kit.disk.write_at(&bytes, (e.physical + k) * BLOCK_U64, Durability::Plain).unwrap();
            }
        }
    }
    sound("the volume of the tests", &*kit.disk, &[]);
    kit.disk.clone()
}

/// Inodes with a name, each once, and the path of each name.
fn all(w: &Wrecker) -> Vec<(Ino, luna_format::inode::Inode, String)> {
    let sb = w.superblock();
    let (mut out, mut queue, mut seen) = (Vec::new(), vec![(sb.root_ino, String::new())], BTreeSet::new());
    while let Some((dir, path)) = queue.pop() {
        // a wrecked volume may have loops
        if !seen.insert(dir) {
            continue;
        }
        for (block, at, used) in w.areas(dir).unwrap() {
            let b = w.read(block).unwrap();
            for e in entries(block, &b.0[at..at + used]).flatten() {
                let path = format!("{path}/{}", e.name.escape_ascii());
                let inode = w.inode(e.head.ino).unwrap();
                if crate::op::is_dir(inode.mode) {
                    queue.push((e.head.ino, path.clone()));
                }
                out.push((e.head.ino, inode, path));
            }
        }
    }
    out
}

fn extents(w: &Wrecker, ino: Ino, i: &luna_format::inode::Inode) -> Vec<Extent> {
    let b = w.read(ino).unwrap();
    let list = |b: &Block, at: usize, n: usize| -> Vec<Extent> { (0..n).filter_map(|k| b.view::<Extent>(at + k * 24).copied()).collect() };
    match Layout::from_u8(i.layout) {
        Some(Layout::Extents) => list(&b, BODY_AT, i.count as usize),
        Some(Layout::ExtentTree) => {
            let leaf = |l: BlockNo| {
                let b = w.read(l).unwrap();
                let n = b.view::<NodeHeader>(HEADER_BYTES).unwrap().count as usize;
                list(&b, ENTRIES_AT, n)
            };
            w.leaves(&b, *i).unwrap().into_iter().flat_map(leaf).collect()
        }
        _ => Vec::new(),
    }
}

/// What somebody sees of the volume: by path and by inode, a hash of all that an inode is (times, content, attributes).
#[derive(PartialEq, Eq, Debug)]
struct Picture {
    paths: BTreeMap<String, u64>,
    inodes: BTreeMap<Ino, u64>,
}

fn picture(disk: &Arc<MemoryDisk>) -> Picture {
    let w = Wrecker::new(disk.clone(), 0).unwrap();
    let mut p = Picture { paths: BTreeMap::new(), inodes: BTreeMap::new() };
    for (ino, i, path) in all(&w) {
        let mut h = DefaultHasher::new();
        (i.mode, i.uid, i.gid, i.generation, i.mtime_ns, i.rdev).hash(&mut h);
        if !crate::op::is_dir(i.mode) {
            (i.size, i.nlink).hash(&mut h);
            if i.layout == Layout::Inline as u8 {
                w.read(ino).unwrap().0[BODY_AT..BODY_AT + i.inline_len as usize].hash(&mut h);
            }
            for e in extents(&w, ino, &i).iter().filter(|e| !e.unwritten()) {
                for k in 0..u64::from(e.len) {
                    (e.logical + k, w.read(e.physical + k).unwrap().0).hash(&mut h);
                }
            }
        }
        if i.xattr_block != 0 {
            w.read(i.xattr_block).unwrap().0[HEADER_BYTES..].hash(&mut h);
        }
        p.paths.insert(path, h.finish());
        p.inodes.insert(ino, h.finish());
    }
    p
}

/// How many of `before` are not the same in `after`: names, and inodes under whatever name.
fn changed(before: &Picture, after: &Picture) -> (usize, usize) {
    let paths = before.paths.iter().filter(|(p, h)| after.paths.get(*p) != Some(h)).count();
    (paths, before.inodes.iter().filter(|(i, h)| after.inodes.get(i) != Some(h)).count())
}

fn look(disk: &dyn Disk) -> (Summary, BTreeSet<Code>) {
    let mut codes = BTreeSet::new();
    let s = check::run(disk, &CheckOptions::default(), &mut |f| {
        codes.insert(f.code);
    })
    .expect("checks");
    (s, codes)
}

fn mend(disk: &dyn Disk, level: Level) -> (Outcome, Vec<Did>) {
    let mut done = Vec::new();
    let out = run(disk, &RepairOptions { level, now_ns: 1, progress: None }, &mut |e| {
        if let Event::Did(d) = e {
            done.push(d);
        }
    });
    (out.expect("repairs"), done)
}

fn sound(what: &str, disk: &dyn Disk, done: &[Did]) {
    let mut left = Vec::new();
    let s = check::run(disk, &CheckOptions::default(), &mut |f| left.push(f.to_string())).expect("checks");
    let did: Vec<String> = done.iter().take(20).map(ToString::to_string).collect();
    assert!(s.is_clean(), "{what}: left {left:#?}\nafter {did:#?}");
}

/// Everything that can be made and repaired.
fn makeable() -> Vec<(Code, &'static [Code])> {
    let made = |c: &Code| match c.wreck() {
        Wreck::Made(_, with) => Some((*c, with)),
        Wreck::Cannot(_) => None,
    };
    Code::ALL.iter().filter_map(made).collect()
}

#[test]
fn what_is_wrecked_is_found_and_repaired_and_nothing_else_changes() {
    let whole = volume();
    let before = picture(&whole);
    let mut wrong = Vec::new();
    for (code, with) in makeable() {
        for seed in 0..if std::env::var("LUNA_DEEP").is_ok() { 8 } else { 1 } {
            let disk = Arc::new(whole.snapshot());
            let what = match wreck::run(disk.clone(), code, seed) {
                Ok(text) => format!("{code} (seed {seed}): {text}"),
                Err(e) => {
                    wrong.push(format!("{code}: {e}"));
                    continue;
                }
            };
            let (s, found) = look(&*disk);
            let notes = |c: &&Code| c.severity() > Severity::Note || **c == code;
            let allowed: BTreeSet<Code> = with.iter().copied().chain([code]).collect();
            let loud: BTreeSet<Code> = found.iter().filter(notes).copied().collect();
            if !found.contains(&code)
                || !loud.is_subset(&allowed)
                || s.is_clean()
                    != (code.severity() == Severity::Note && with.iter().all(|c| !found.contains(c) || c.severity() == Severity::Note))
            {
                wrong.push(format!("{what}: found {found:?}"));
                continue;
            }
            let (out, done) = mend(&*disk, Level::All);
            if let How::Nothing(_) = code.repair() {
                if code.severity() == Severity::Error && (out.refused.is_none() || !done.is_empty()) {
                    wrong.push(format!("{what}: not refused: {done:?}"));
                }
                continue;
            }
            if out.refused.is_some() || !look(&*disk).0.is_clean() {
                let lines: Vec<String> = done.iter().take(20).map(ToString::to_string).collect();
                let (mut left, options) = (Vec::new(), CheckOptions::default());
                check::run(&*disk, &options, &mut |f| left.push(f.to_string())).unwrap();
                left.truncate(10);
                wrong.push(format!("{what}: {:?}, left {left:#?} after {lines:#?}", out.refused));
                continue;
            }
            if !done.iter().any(|d| allowed.contains(&d.code)) {
                wrong.push(format!("{what}: nothing said for it: {done:?}"));
            }
            let (paths, inodes) = changed(&before, &picture(&disk));
            // of two names for a directory nobody can tell which is its own, so all below may have moved
            if (paths > 1 && code != Code::D12) || inodes > 1 {
                let lines: Vec<String> = done.iter().take(20).map(ToString::to_string).collect();
                wrong.push(format!("{what}: {paths} names and {inodes} inodes changed; {lines:#?}"));
            }
            let (again, done) = mend(&*disk, Level::All);
            if again.written != 0 || !done.is_empty() {
                wrong.push(format!("{what}: repaired again: {done:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_safe_level_does_what_loses_nothing_and_refuses_the_rest() {
    let whole = volume();
    let before = picture(&whole);
    for (code, with) in makeable() {
        let disk = Arc::new(whole.snapshot());
        let text = wreck::run(disk.clone(), code, 3).unwrap();
        let (s, found) = look(&*disk);
        let safe = found.iter().all(|c| c.severity() == Severity::Note || c.repair().is_safe());
        let (out, done) = mend(&*disk, Level::Safe);
        let what = format!("{code} with {with:?}: {text}");
        if s.is_clean() && !found.contains(&Code::J05) {
            assert_eq!(out.repairs, 0, "{what}");
        } else if safe {
            sound(&what, &*disk, &done);
            assert_eq!(out.refused, None, "{what}");
            assert!(done.iter().all(|d| d.lost.is_none()), "{what}: {done:?}");
            assert_eq!(changed(&before, &picture(&disk)).1, 0, "{what}");
        } else {
            assert!(out.refused.is_some() && done.is_empty(), "{what}: {done:?}");
        }
    }
}

/// Cut off after every write, and repaired again: clean, and nothing lost that the whole repair keeps.
#[test]
fn a_repair_may_be_cut_off_after_any_write() {
    let whole = volume();
    let deep = std::env::var("LUNA_DEEP").is_ok();
    for (code, _) in makeable().into_iter().filter(|(c, _)| !matches!(c.repair(), How::Nothing(_))) {
        let broken = Arc::new(whole.snapshot());
        wreck::run(broken.clone(), code, 1).unwrap();
        let end = Arc::new(broken.snapshot());
        let recording = RecordingDisk::new(end.clone());
        mend(&recording, Level::All);
        let want = picture(&end);
        let log = recording.take();
        let writes: Vec<usize> = (0..log.len()).filter(|n| !matches!(log[*n], Write::Flush)).collect();
        // of a long repair some points only, unless asked for all
        let step = if deep { 1 } else { writes.len().div_ceil(4).max(1) };
        for n in writes.iter().step_by(step) {
            let disk = Arc::new(broken.snapshot());
            RecordingDisk::replay(&log[..*n], &*disk).unwrap();
            let (_, done) = mend(&*disk, Level::All);
            sound(&format!("{code} cut off after {n}"), &*disk, &done);
            let got = picture(&disk);
            let (paths, inodes) = changed(&want, &got);
            assert_eq!((paths, inodes), (0, 0), "{code} cut off after {n} of {}: {done:#?}", log.len());
        }
    }
}

/// A few bytes, blocks, or old copies of blocks, anywhere among the metadata.
fn maul(disk: &Arc<MemoryDisk>, old: &MemoryDisk, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let w = Wrecker::new(disk.clone(), seed).unwrap();
    let sb = *w.superblock();
    let mut meta: Vec<BlockNo> = (0..200).map(|n| sb.ag_start + n).collect();
    for (ino, i, _) in all(&w).into_iter().filter(|_| rng.u8(..) < 20) {
        meta.push(ino);
        if i.layout == Layout::ExtentTree as u8 || i.layout == Layout::DirTree as u8 {
            meta.extend(w.leaves(&w.read(ino).unwrap(), i).unwrap());
        }
    }
    meta.extend(sb.beat_start..sb.mail_start);
    meta.extend([0, sb.copy_block, sb.total_blocks - 1, sb.journal_region(0).0, sb.journal_region(1).0]);
    meta.extend((0..6).map(|n| sb.journal_region(0).0 + n));
    for _ in 0..rng.usize(1..8) {
        let (block, other) = (meta[rng.usize(0..meta.len())], meta[rng.usize(0..meta.len())]);
        let mut b = w.read(block).unwrap();
        match rng.u8(0..7) {
            0 => b.0[rng.usize(0..4096)] ^= 1 << rng.u8(0..8),
            1 => b = Block::zeroed(),
            2 => b = w.read(other).unwrap(),
            3 => old.read_at(&mut b.0, block * BLOCK_U64).unwrap(),
            4 => b.0[rng.usize(0..8) * 512..].fill(rng.u8(..)),
            _ => {
                // a program that lies: sealed again
                for _ in 0..rng.usize(1..10) {
                    let at = if rng.bool() { rng.usize(HEADER_BYTES..BODY_AT + 64) } else { rng.usize(HEADER_BYTES..4096) };
                    b.0[at] = rng.u8(..);
                }
                luna_format::block::reseal(&mut b);
            }
        }
        disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain).unwrap();
    }
}

/// Whatever it is, a repair ends, and with a clean volume; or it says why not.
#[test]
fn any_damage_ends_clean_or_refused() {
    let whole = volume();
    // what was there before: records and journals have gone on since
    let old = whole.snapshot();
    wreck::run(whole.clone(), Code::J05, 0).map(drop).unwrap();
    mend(&*whole, Level::All);
    let seeds: u64 = std::env::var("LUNA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let first: u64 = std::env::var("LUNA_FIRST").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let codes = makeable();
    for seed in first..first + seeds {
        let disk = Arc::new(whole.snapshot());
        let mut rng = fastrand::Rng::with_seed(seed);
        if rng.bool() {
            for _ in 0..rng.usize(1..5) {
                let _ = wreck::run(disk.clone(), codes[rng.usize(0..codes.len())].0, rng.u64(..));
            }
        }
        if rng.u8(..) < 200 && crate::mkfs::read_superblock(&*disk).is_ok() {
            maul(&disk, &old, seed);
        }
        let mut done = Vec::new();
        let result = run(&*disk, &RepairOptions { level: Level::All, now_ns: 1, progress: None }, &mut |e| {
            if let Event::Did(d) = e {
                done.push(d);
            }
        });
        match result {
            Ok(out) if out.refused.as_ref().is_some_and(|r| r.starts_with("B07")) => {}
            Ok(out) => {
                assert_eq!(out.refused, None, "seed {seed}: {:#?}", done.iter().map(ToString::to_string).collect::<Vec<_>>());
                sound(&format!("seed {seed}"), &*disk, &done);
            }
            Err(RepairError::Check(FsckError::Super(_))) => {}
            Err(e) => panic!("seed {seed}: {e}"),
        }
    }
}

/// Time and lines grew with the volume's size times the number of extents: each one of some hundred blocks more said so for itself.
#[test]
fn files_that_have_far_more_blocks_than_there_are_end_soon() {
    let kit = kit_of(1 << 30, 1);
    let (root, cred) = (kit.sb().root_ino, Cred { umask: 0o022, ..Cred::default() });
    let file = kit.vol.run(|tx| create(tx, root, b"greedy", 0o644, 0, &cred)).unwrap().ino;
    kit.vol.checkpoint().unwrap();
    kit.vol.journal.close().unwrap();
    let w = Wrecker::new(kit.disk.clone(), 0).unwrap();
    let (first, len, many) = (kit.sb().ag_start, kit.sb().total_blocks - kit.sb().ag_start - 1, 150);
    w.edit(file, |b| {
        for n in 0..many {
            let e = Extent { logical: n * len, physical: first, len: len as u32, flags: 0 };
            b.0[BODY_AT + n as usize * 24..][..24].copy_from_slice(zerocopy::IntoBytes::as_bytes(&e));
        }
        inodes::edit(b, |i| {
            (i.layout, i.count, i.size, i.blocks) = (Layout::Extents as u8, many as u16, many * len * BLOCK_U64, many * len);
        });
    })
    .unwrap();
    let (mut left, options) = (Vec::new(), CheckOptions::default());
    check::run(&*kit.disk, &options, &mut |f| left.push(f.to_string())).unwrap();
    let passed_over = left.iter().filter(|f| f.contains("4 times as many blocks as there are")).count();
    assert_eq!(passed_over, many as usize - 4, "{:#?}", left.iter().take(20).collect::<Vec<_>>());
    let (out, done) = mend(&*kit.disk, Level::All);
    assert!(out.refused.is_none() && done.len() < 400, "{:?}, {} lines", out.refused, done.len());
    sound("a greedy file", &*kit.disk, &done);
}
