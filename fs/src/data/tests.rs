//! Files against plain byte arrays: any order of reads, writes, truncations, holes; caches dropped, remounted, crashed.

use super::{FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, WriteHow};
use crate::error::FsError;
use crate::op::{self, Cred};
use crate::open::{How, OpenFile};
use crate::system::Fs;
use crate::testkit::VOLUME;
use crate::volume::{Parts, Volume, Wait};
use crate::{alloc, mkfs};
use luna_dlm::{LockCache, PosixClient};
use luna_journal::{Journal, ReplayProof};
use luna_lun::memory::MemoryDisk;
use luna_lun::recording::{Event, RecordingDisk};
use luna_lun::{Disk, Durability, InlineQueue};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

const ROOM: u64 = 3 << 20;

fn mounted(disk: &Arc<dyn Disk>, incarnation: u64) -> Arc<Fs> {
    let (id, sb) = mkfs::read_superblock(&**disk).expect("superblock");
    let journal = Journal::open(Arc::clone(disk), id, sb.journal_region(0), 0, incarnation).expect("journal");
    let queue = Arc::new(InlineQueue::new(Arc::clone(disk)));
    let locks = LockCache::local();
    let parts =
        Parts { sb, id, slot: 0, epoch: incarnation, disk: Arc::clone(disk), queue, journal, locks: Arc::clone(&locks), discard: false };
    let volume = Volume::new(parts);
    alloc::refresh_hints(&volume);
    let fs = Fs::new(volume, PosixClient::local(), Arc::new(|_| ()));
    locks.set_hooks(fs.hooks());
    fs
}

fn fresh() -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::new(256 << 20));
    let options = mkfs::MkfsOptions {
        label: "test".into(),
        slots: 2,
        volume: VOLUME,
        hash_key: [3; 16],
        link_secret: [4; 32],
        now_ns: 1_700_000_000 << 30,
    };
    mkfs::run(&*disk, &options, &mut |_, _| {}).expect("mkfs");
    disk
}

fn make(fs: &Fs, name: &str) -> u64 {
    let root = fs.volume.sb.root_ino;
    fs.run(|tx| op::create(tx, root, name.as_bytes(), 0o644, 0, &Cred::default())).expect("create").ino
}

fn open(fs: &Arc<Fs>, ino: u64, flags: i32) -> Arc<OpenFile> {
    fs.open(ino, How::from_flags(flags), Wait::Yes).expect("open").expect("waited")
}

fn write(fs: &Arc<Fs>, f: &OpenFile, at: u64, data: &[u8]) -> Result<u32, FsError> {
    let (tx, rx) = mpsc::channel();
    fs.write(f, at, data, WriteHow::default(), move |r: Result<u32, FsError>| drop(tx.send(r)));
    rx.recv().expect("answered")
}

/// A file and what it must contain.
struct Pair {
    ino: u64,
    bytes: Vec<u8>,
}

impl Pair {
    fn put(&mut self, at: usize, data: &[u8]) {
        if self.bytes.len() < at + data.len() {
            self.bytes.resize(at + data.len(), 0);
        }
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn check(&self, fs: &Arc<Fs>, f: &OpenFile, at: u64, len: u32) {
        let got = fs.read_wait(f, at, len).expect("read");
        let from = (at as usize).min(self.bytes.len());
        let to = (at as usize + len as usize).min(self.bytes.len());
        assert!(got == self.bytes[from..to], "read of {len} at {at}: first difference {:?}", first_difference(&got, &self.bytes[from..to]));
    }

    fn check_all(&self, fs: &Arc<Fs>) {
        let f = open(fs, self.ino, libc::O_RDONLY);
        let mut at = 0;
        while at <= self.bytes.len() as u64 {
            self.check(fs, &f, at, 1 << 20);
            at += 1 << 20;
        }
        assert_eq!(fs.run(|tx| op::getattr(tx, self.ino)).expect("stat").size, self.bytes.len() as u64);
        fs.close(f);
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> (usize, usize, Option<usize>) {
    (a.len(), b.len(), a.iter().zip(b).position(|(x, y)| x != y))
}

/// One random change or look; `fill` is the byte that this step writes.
fn step(fs: &Arc<Fs>, p: &mut Pair, rng: &mut fastrand::Rng, fill: u8) {
    let flags = [libc::O_RDWR, libc::O_RDWR | libc::O_DIRECT, libc::O_WRONLY, libc::O_RDWR | libc::O_APPEND][rng.usize(..4)];
    let f = open(fs, p.ino, flags);
    let small = rng.u8(..4) == 0;
    let limit = if small { 6000 } else { ROOM };
    let mut at = rng.u64(..limit);
    let most = if rng.bool() { 9000 } else { 300_000 };
    let mut len = rng.u64(1..=most);
    if rng.bool() {
        (at, len) = (at & !4095, len.next_multiple_of(4096));
    }
    match rng.u8(..22) {
        20.. => {
            // cut inside a block, then write behind the cut
            let cut = rng.usize(..=p.bytes.len());
            fs.truncate(&f.node, cut as u64, false, Wait::Yes).expect("truncate");
            p.bytes.truncate(cut);
            let at = cut + rng.usize(..6000);
            let n = rng.usize(1..5000);
            let g = open(fs, p.ino, libc::O_RDWR);
            assert_eq!(write(fs, &g, at as u64, &vec![fill; n]).expect("write") as usize, n);
            p.put(at, &vec![fill; n]);
            fs.close(g);
        }
        0..8 => {
            let data: Vec<u8> = (0..len).map(|i| if i % 7 == 3 { 0 } else { fill }).collect();
            assert_eq!(write(fs, &f, at, &data).expect("write") as usize, data.len());
            let at = if flags & libc::O_APPEND != 0 { p.bytes.len() } else { at as usize };
            p.put(at, &data);
        }
        8..12 => p.check(fs, &f, at, len as u32),
        12 => {
            fs.truncate(&f.node, at, false, Wait::Yes).expect("truncate");
            p.bytes.resize(at as usize, 0);
        }
        13 => {
            fs.fallocate(&f.node, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, at, len, Wait::Yes).expect("punch");
            let end = p.bytes.len().min((at + len) as usize);
            p.bytes[end.min(at as usize)..end].fill(0);
        }
        14 => {
            fs.fallocate(&f.node, FALLOC_ZERO_RANGE, at, len, Wait::Yes).expect("zero range");
            p.put(at as usize, &vec![0; len as usize]);
        }
        15 => {
            let keep = if rng.bool() { FALLOC_KEEP_SIZE } else { 0 };
            fs.fallocate(&f.node, keep, at, len, Wait::Yes).expect("fallocate");
            if keep == 0 && p.bytes.len() < (at + len) as usize {
                p.bytes.resize((at + len) as usize, 0);
            }
        }
        16 => seek(fs, p, &f, at),
        17 => fs.sync_node(&f.node, rng.bool()).expect("fsync"),
        18 => {
            fs.volume.checkpoint().expect("checkpoint");
            fs.volume.meta.lock().shrink(0);
        }
        _ => f.node.clear(),
    }
    fs.close(f);
}

/// Data must not be called a hole.
fn seek(fs: &Arc<Fs>, p: &Pair, f: &OpenFile, at: u64) {
    let size = p.bytes.len() as u64;
    match fs.seek_wait(&f.node, at, false, Wait::Yes) {
        Ok(Some(hole)) => {
            assert!(hole >= at && hole <= size);
            if hole < size && hole % 4096 == 0 {
                let end = (hole as usize + 4096).min(p.bytes.len());
                assert!(p.bytes[hole as usize..end].iter().all(|b| *b == 0), "a hole with bytes at {hole}");
            }
        }
        Err(FsError::NoSuchOffset) => assert!(at >= size),
        other => panic!("{other:?}"),
    }
    match fs.seek_wait(&f.node, at, true, Wait::Yes) {
        Ok(Some(data)) => assert!(p.bytes[at as usize..data as usize].iter().all(|b| *b == 0), "data skipped before {data}"),
        Err(FsError::NoSuchOffset) => assert!(p.bytes.iter().skip(at as usize).all(|b| *b == 0)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_agree_with_byte_arrays() {
    for seed in 0..6 {
        let disk: Arc<dyn Disk> = fresh();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut fs = mounted(&disk, 1);
        let mut pairs: Vec<Pair> = (0..3).map(|n| Pair { ino: make(&fs, &format!("f{n}")), bytes: Vec::new() }).collect();
        for round in 0..3u64 {
            for n in 0..400 {
                let which = rng.usize(..pairs.len());
                step(&fs, &mut pairs[which], &mut rng, (n % 250) as u8 + 1);
            }
            let (from, to) = (rng.usize(..3), rng.usize(..3));
            if from != to {
                copy(&fs, &mut pairs, from, to, &mut rng);
            }
            fs.shutdown().expect("shutdown");
            fs.volume.journal.close().expect("clean");
            fs = mounted(&disk, 2 + round);
            pairs.iter().for_each(|p| p.check_all(&fs));
        }
        empty(&fs, &pairs);
    }
}

fn copy(fs: &Arc<Fs>, pairs: &mut [Pair], from: usize, to: usize, rng: &mut fastrand::Rng) {
    let (a, b) = (open(fs, pairs[from].ino, libc::O_RDONLY), open(fs, pairs[to].ino, libc::O_RDWR));
    let (at, target, len) = (rng.u64(..ROOM / 2), rng.u64(..ROOM / 2), rng.u64(1..ROOM));
    let n = fs.copy_range((&a, at), (&b, target), len).expect("copy") as usize;
    let left = (pairs[from].bytes.len() as u64).saturating_sub(at).min(len) as usize;
    assert_eq!(n, left);
    let data = pairs[from].bytes[(at as usize).min(pairs[from].bytes.len())..][..n].to_vec();
    pairs[to].put(target as usize, &data);
    fs.close(a);
    fs.close(b);
}

/// Files cut to nothing leave nothing behind.
fn empty(fs: &Arc<Fs>, pairs: &[Pair]) {
    for p in pairs {
        let f = open(fs, p.ino, libc::O_RDWR);
        fs.truncate(&f.node, 0, false, Wait::Yes).expect("truncate");
        assert_eq!(fs.run(|tx| op::getattr(tx, p.ino)).expect("stat").blocks512, 0);
        fs.close(f);
    }
}

/// Allocating is a change of the file, also when neither size nor bytes change: ctime and mtime say so, as on a local file system.
#[test]
fn allocating_is_told_by_the_times() {
    let disk: Arc<dyn Disk> = fresh();
    let fs = mounted(&disk, 1);
    let f = open(&fs, make(&fs, "f"), libc::O_RDWR);
    write(&fs, &f, 0, &[1; 20_000]).expect("write");
    // keep size or not; inside the file, over its end
    for (mode, at, len) in
        [(FALLOC_KEEP_SIZE, 0, 4096), (FALLOC_KEEP_SIZE, 16_384, 40_960), (0, 0, 8192), (0, 0, 100_000), (FALLOC_ZERO_RANGE, 0, 4096)]
    {
        let times = || fs.run(|tx| op::getattr(tx, f.node.ino)).map(|a| (a.mtime_ns, a.ctime_ns)).expect("stat");
        let before = times();
        std::thread::sleep(std::time::Duration::from_millis(2));
        fs.fallocate(&f.node, mode, at, len, Wait::Yes).expect("fallocate");
        let after = times();
        assert!(after.0 > before.0 && after.1 > before.1, "{mode} at {at} for {len}: {before:?} {after:?}");
    }
    fs.close(f);
}

/// Threads of one host on one file: whole blocks of one byte each, so that a torn or lost write shows.
#[test]
fn threads_share_a_file() {
    let disk: Arc<dyn Disk> = fresh();
    let fs = mounted(&disk, 1);
    let ino = make(&fs, "shared");
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let fs = &fs;
            s.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(t);
                let mut mine = [0u8; 64];
                for n in 0..400 {
                    let f = open(fs, ino, if rng.bool() { libc::O_RDWR | libc::O_DIRECT } else { libc::O_RDWR });
                    let slot = rng.u64(..64);
                    let block = slot * 4 + t;
                    match rng.u8(..8) {
                        0 => {
                            fs.fallocate(&f.node, 3, block * 4096, 4096, Wait::Yes).expect("punch");
                            mine[slot as usize] = 0;
                        }
                        1 => {
                            // a part of the block; the rest must stay
                            let b = mine[slot as usize];
                            assert_eq!(write(fs, &f, block * 4096 + 100, &[b; 50]).expect("write"), 50);
                        }
                        2..5 => {
                            let b = (n % 255) as u8 + 1;
                            assert_eq!(write(fs, &f, block * 4096, &[b; 4096]).expect("write"), 4096);
                            mine[slot as usize] = b;
                        }
                        _ => {
                            let got = fs.read_wait(&f, block * 4096, 4096).expect("read");
                            let values: BTreeSet<u8> = got.iter().copied().collect();
                            assert!(got.is_empty() && mine[slot as usize] == 0 || values == BTreeSet::from([mine[slot as usize]]));
                        }
                    }
                    fs.close(f);
                }
            });
        }
    });
}

/// What is left of a disk when the power goes: everything up to the last flush, what was forced, and some of the rest.
fn power_cut(base: &MemoryDisk, log: &[Event], rng: &mut fastrand::Rng) -> Arc<MemoryDisk> {
    let disk = base.snapshot();
    let last = log.iter().rposition(|e| *e == Event::Flush).unwrap_or(0);
    RecordingDisk::replay(&log[..last], &disk).expect("replay");
    let lucky = rng.u8(..3);
    for e in &log[last..] {
        let forced = matches!(e, Event::Write { durability: Durability::Forced, .. });
        if forced || lucky == 1 || (lucky == 2 && rng.bool()) {
            RecordingDisk::replay(std::slice::from_ref(e), &disk).expect("replay");
        }
    }
    Arc::new(disk)
}

fn replayed(disk: Arc<MemoryDisk>) -> (Arc<dyn Disk>, Arc<Fs>) {
    let (_, sb) = mkfs::read_superblock(&*disk).expect("superblock");
    let plan = luna_journal::plan(&*disk, VOLUME, sb.journal_region(0), sb.homes(), 0, ReplayProof::FirstMount).expect("plan");
    plan.apply(&*disk, &|_| false).expect("apply");
    let now = luna_journal::inspect(&*disk, VOLUME, sb.journal_region(0), 0).expect("header");
    let disk: Arc<dyn Disk> = disk;
    let fs = mounted(&disk, now.incarnation);
    (disk, fs)
}

/// After a crash: what was synced is there; what was not is old, new, or zero, and never somebody else's old data.
#[test]
fn a_crash_keeps_what_was_synced_and_leaks_nothing() {
    const FOREIGN: u8 = 0xEE;
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let base = fresh();
        let recording = Arc::new(RecordingDisk::new(Arc::new(base.snapshot())));
        let disk: Arc<dyn Disk> = recording.clone();
        let fs = mounted(&disk, 1);
        // stale bytes wherever the file will get its blocks
        let old = open(&fs, make(&fs, "old"), libc::O_RDWR);
        for n in 0..12 {
            assert_eq!(write(&fs, &old, n << 20, &vec![FOREIGN; 1 << 20]).expect("write"), 1 << 20);
        }
        fs.sync_node(&old.node, false).expect("sync");
        fs.truncate(&old.node, 0, false, Wait::Yes).expect("truncate");
        fs.volume.sync_all().expect("sync");
        fs.volume.reclaim(None).expect("reclaim");
        let mut p = Pair { ino: make(&fs, "f"), bytes: Vec::new() };
        let f = open(&fs, p.ino, libc::O_RDWR);
        for n in 0..rng.usize(1..30) {
            step(&fs, &mut p, &mut rng, (n % 100) as u8 + 1);
        }
        fs.sync_node(&f.node, false).expect("fsync");
        let synced = p.bytes.clone();
        let mark = recording.events();
        let later = rng.usize(1..12);
        for n in 0..later {
            step(&fs, &mut p, &mut rng, 101 + n as u8);
        }
        let log = recording.log();
        fs.stopping.store(true, Ordering::Release);
        let (_, then) = replayed(power_cut(&base, &log[..mark], &mut rng));
        Pair { ino: p.ino, bytes: synced.clone() }.check_all(&then);
        for _ in 0..6 {
            let cut = rng.usize(mark..=log.len());
            let (_, then) = replayed(power_cut(&base, &log[..cut], &mut rng));
            no_strangers(&then, p.ino, &synced, seed);
        }
    }
}

/// Each byte is what was synced, or what was written later, or zero.
fn no_strangers(fs: &Arc<Fs>, ino: u64, synced: &[u8], seed: u64) {
    let f = open(fs, ino, libc::O_RDONLY);
    let size = fs.run(|tx| op::getattr(tx, ino)).expect("stat").size;
    let mut at = 0;
    while at < size {
        for (i, b) in fs.read_wait(&f, at, 1 << 20).expect("read").iter().enumerate() {
            let at = at as usize + i;
            let before = synced.get(at).copied().unwrap_or(0);
            assert!(*b == before || *b == 0 || (101..=120).contains(b), "seed {seed}: byte {b:#x} at {at}");
        }
        at += 1 << 20;
    }
    fs.close(f);
}
