//! Three hosts over one disk in one process: real volumes, lock caches and lock manager cores, channels as the network.
//! They make, move and remove names in the same directories at the same time; in the end every count must agree.

use super::tests::{check, check_space_of};
use super::*;
use crate::freeze::CHANGES;
use crate::mkfs::{self, MkfsOptions};
use crate::orphan;
use crate::volume::{Parts, Volume};
use luna_dlm::{Core, Hooks, Input, LockCache, Member, Name, Output, Requester, ValueBlock, View};
use luna_journal::Journal;
use luna_lun::Disk;
use luna_lun::memory::MemoryDisk;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

struct Wire(Mutex<Sender<Input>>);

impl Requester for Wire {
    fn lock(&self, name: Name, mode: Mode, noqueue: bool) {
        let _ = self.0.lock().send(Input::Lock { name, mode, noqueue });
    }
    fn release(&self, name: Name, from: Mode, to: Mode, value: Option<ValueBlock>) {
        let _ = self.0.lock().send(Input::Release { name, from, to, value });
    }
    fn busy(&self, name: Name, wanted: Mode) {
        let _ = self.0.lock().send(Input::Busy { name, wanted });
    }
    fn failed(&self, reason: &str) {
        panic!("{reason}");
    }
}

struct WriteBack(Arc<Volume>);

impl Hooks for WriteBack {
    fn come_down(&self, name: &Name, from: Mode, to: Mode) -> Result<Option<ValueBlock>, String> {
        if *name == names::freeze() {
            return if to.covers(CHANGES) { Ok(None) } else { self.0.stand_still().map(|()| None).map_err(|e| e.to_string()) };
        }
        if from.writes() {
            self.0.write_back(name).map_err(|e| e.to_string())?;
        }
        if !to.covers(Mode::Cr) {
            self.0.forget(name);
        }
        Ok(None)
    }
    fn granted(&self, name: &Name, _: Mode, to: Mode, _: &ValueBlock) {
        if *name == names::freeze() && to.covers(CHANGES) {
            self.0.move_on();
        }
    }
}

fn route(me: Member, cache: &Arc<LockCache>, input: &Receiver<Input>, wires: &[Sender<Input>]) {
    let (mut core, mut out) = (Core::new(me), Vec::new());
    while let Ok(event) = input.recv() {
        core.step(0, event, &mut out);
        for output in out.drain(..) {
            match output {
                Output::Send { to, msg } => drop(wires[usize::from(to)].send(Input::Message { from: me.slot, msg })),
                Output::Granted { name, mode, value } => cache.granted(&name, mode, value),
                Output::Denied { name, mode } => cache.denied(&name, mode),
                Output::Bast { name, wanted, polite } => cache.bast(&name, wanted, polite),
                Output::PosixDone { .. } => {}
                Output::Evicted => panic!("nobody is evicted here"),
            }
        }
    }
}

fn cluster(n: u16) -> (Arc<MemoryDisk>, Vec<Arc<Volume>>) {
    let disk = Arc::new(MemoryDisk::new(1 << 30));
    let options =
        MkfsOptions { label: "three".into(), slots: u32::from(n), volume: [7; 16], hash_key: [3; 16], link_secret: [4; 32], now_ns: 1 };
    let sb = mkfs::run(&*disk, &options, &mut |_, _| {}).unwrap().sb;
    let (wires, inputs): (Vec<_>, Vec<_>) = (0..n).map(|_| channel()).unzip();
    let members: Vec<Member> = (0..n).map(|slot| Member { slot, incarnation: 1 }).collect();
    let mut hosts = Vec::new();
    for (slot, input) in (0..n).zip(inputs) {
        let locks = LockCache::new(Arc::new(Wire(Mutex::new(wires[usize::from(slot)].clone()))));
        let door: Arc<dyn Disk> = disk.clone();
        let journal = Journal::open(door.clone(), [7; 16], sb.journal_region(slot), slot, 1).unwrap();
        let vol = Volume::new(Parts {
            sb,
            id: [7; 16],
            slot,
            epoch: 1,
            disk: door,
            queue: disk.clone(),
            journal,
            locks: locks.clone(),
            discard: true,
        });
        vol.obey_freezes();
        locks.set_hooks(Arc::new(WriteBack(vol.clone())));
        let (me, wires) = (members[usize::from(slot)], wires.clone());
        std::thread::spawn(move || route(me, &locks, &input, &wires));
        hosts.push(vol);
    }
    for wire in &wires {
        wire.send(Input::View(View { epoch: 1, members: members.clone(), dead: Vec::new() })).unwrap();
    }
    (disk, hosts)
}

/// What one thread does; errors that others may cause are fine, others are not.
fn work(v: &Volume, seed: u64, dirs: &[Ino], steps: u32) -> BTreeMap<Ino, u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut errors = BTreeMap::new();
    let cred = Cred::default();
    for step in 0..steps {
        let (d, e) = (dirs[rng.usize(..dirs.len())], dirs[rng.usize(..dirs.len())]);
        let (n, m) = (format!("n{}", rng.u32(..40)).into_bytes(), format!("n{}", rng.u32(..40)).into_bytes());
        let result = match rng.u32(..20) {
            0..7 => v.run(|tx| create(tx, d, &n, 0o644, 0, &cred).map(|_| ())),
            7..9 => v.run(|tx| mkdir(tx, d, &n, 0o755, &cred).map(|_| ())),
            9..12 => v.run(|tx| unlink(tx, d, &n)),
            12 => v.run(|tx| rmdir(tx, d, &n)),
            13..17 => v.run(|tx| rename(tx, d, &n, e, &m, rng.u32(..3))),
            17 => v.run(|tx| {
                let a = lookup(tx, d, &n)?;
                link(tx, a.ino, e, &m).map(|_| ())
            }),
            18 => v.run(|tx| readdir(tx, d, 0, 1000).map(|_| ())),
            _ => orphan::sweep(v, v.slot).map(|_| ()),
        };
        if let Err(x) = result {
            let usual = [libc::EEXIST, libc::ENOENT, libc::EISDIR, libc::ENOTDIR, libc::ENOTEMPTY, libc::EINVAL, libc::EPERM];
            assert!(usual.contains(&x.errno()), "seed {seed} step {step}: {x}");
            *errors.entry(x.errno() as u64).or_default() += 1;
        }
    }
    errors
}

#[test]
fn three_hosts_share_a_namespace() {
    let (disk, hosts) = cluster(3);
    let top = hosts[0].sb.root_ino;
    let mut dirs = vec![top];
    for n in 0..4 {
        let parent = dirs[n];
        let name = format!("d{n}").into_bytes();
        dirs.push(hosts[n % 3].run(|tx| mkdir(tx, parent, &name, 0o755, &Cred::default())).unwrap().ino);
    }
    std::thread::scope(|s| {
        for (h, v) in hosts.iter().enumerate() {
            for t in 0..2 {
                let dirs = &dirs;
                s.spawn(move || work(v, (h * 2 + t) as u64 + 1, dirs, 600));
            }
        }
    });
    for v in &hosts {
        check(v);
    }
    for v in &hosts {
        assert_eq!(orphan::sweep(v, v.slot).unwrap().in_use, 0);
    }
    for v in &hosts {
        v.checkpoint().unwrap();
    }
    check_space_of(&hosts[1], &disk);
    for v in &hosts {
        println!(
            "slot {}: {} runs, {} restarts",
            v.slot,
            v.runs.load(std::sync::atomic::Ordering::Relaxed),
            v.restarts.load(std::sync::atomic::Ordering::Relaxed)
        );
    }
}

/// What the checker says of the disk as it is now.
fn findings(disk: &MemoryDisk) -> Vec<String> {
    let mut found = Vec::new();
    let options = crate::check::CheckOptions::default();
    crate::check::run(disk, &options, &mut |f| {
        if f.severity != crate::check::Severity::Note {
            found.push(f.to_string());
        }
    })
    .unwrap();
    found
}

/// Three hosts change names as fast as they can; whenever one freezes the volume, what lies on the disk is one state of it for as
/// long as it is frozen. (Read without that, block after block, it is none: `live` is printed.)
#[test]
fn a_frozen_volume_is_consistent_and_stands_still() {
    let (disk, hosts) = cluster(3);
    let top = hosts[0].sb.root_ino;
    let dirs = [top, hosts[1].run(|tx| mkdir(tx, top, b"d", 0o755, &Cred::default())).unwrap().ino];
    let done = std::sync::atomic::AtomicUsize::new(0);
    let over = || done.load(std::sync::atomic::Ordering::Relaxed) == 6;
    let (mut freezes, mut changed, mut live) = (0, 0, 0);
    std::thread::scope(|s| {
        for (h, v) in hosts.iter().enumerate() {
            for t in 0..2 {
                let (dirs, done) = (&dirs, &done);
                s.spawn(move || {
                    work(v, (h * 2 + t) as u64 + 1, dirs, 500);
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                });
            }
        }
        let mut before = None;
        while !over() {
            live += usize::from(!findings(&disk).is_empty());
            let frozen = hosts[freezes % 3].freeze().unwrap();
            assert_eq!(hosts[freezes % 3].freeze().err().map(|e| e.errno()), Some(libc::EINVAL), "once at a time");
            let journals = || hosts.iter().map(|v| journal_of(v, &disk)).collect::<Vec<_>>();
            let now = journals();
            assert_eq!(findings(&disk), Vec::<String>::new(), "freeze {freezes}");
            assert_eq!(now, journals(), "nothing is committed while it is frozen");
            drop(frozen);
            changed += usize::from(before.replace(now.clone()) != Some(now));
            freezes += 1;
        }
    });
    println!("{freezes} freezes, {changed} with changes before them; {live} looks at a live disk found something");
    assert!(changed > 2, "the hosts got on between {freezes} freezes: {changed}");
    assert_eq!(findings(&disk), Vec::<String>::new());
}

/// The newest record of a host's journal.
fn journal_of(v: &Volume, disk: &MemoryDisk) -> u64 {
    let proof = luna_journal::ReplayProof::FirstMount;
    let plan = luna_journal::plan(disk, [7; 16], v.sb.journal_region(v.slot), v.sb.homes(), v.slot, proof).unwrap();
    luna_journal::inspect(disk, [7; 16], v.sb.journal_region(v.slot), v.slot).unwrap().tail_sequence + plan.records()
}

/// A host that is in the middle of something when another one freezes finishes first; what comes later waits for the thaw.
#[test]
fn a_change_waits_for_the_thaw_and_a_look_does_not() {
    let (_disk, hosts) = cluster(2);
    let top = hosts[0].sb.root_ino;
    let make = |v: &Volume, n: u8| v.run(|tx| create(tx, top, &[b'f', n + 1], 0o600, 0, &Cred::default()).map(|_| ()));
    make(&hosts[0], 0).unwrap();
    make(&hosts[1], 1).unwrap();
    for freezer in [0, 1] {
        let frozen = hosts[freezer].freeze().unwrap();
        std::thread::scope(|s| {
            let (sender, made) = channel();
            for (n, v) in hosts.iter().enumerate() {
                let sender = sender.clone();
                s.spawn(move || sender.send(make(v, (10 + 2 * freezer + n) as u8)).unwrap());
                assert_eq!(v.run(|tx| lookup(tx, top, &[b'f', 1])).unwrap().nlink, 1, "reading goes on");
            }
            assert!(made.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "nothing is made");
            drop(frozen);
            for _ in &hosts {
                made.recv().unwrap().unwrap();
            }
        });
    }
    assert_eq!(check(&hosts[0]).len(), 6, "all six were made");
}

#[test]
fn a_file_open_elsewhere_is_freed_after_its_close() {
    let (_disk, hosts) = cluster(2);
    let top = hosts[0].sb.root_ino;
    let f = hosts[0].run(|tx| create(tx, top, b"f", 0o600, 0, &Cred::default())).unwrap().ino;
    let open = hosts[1].locks.hold(&names::open(f), Mode::Pr).unwrap();
    hosts[0].run(|tx| unlink(tx, top, b"f")).unwrap();
    assert_eq!(orphan::reap(&hosts[0], f).unwrap(), orphan::Reaped::InUse);
    assert_eq!(hosts[1].run(|tx| getattr(tx, f)).unwrap().nlink, 0, "still there for who has it open");
    drop(open);
    assert_eq!(orphan::reap(&hosts[1], f).unwrap(), orphan::Reaped::Freed, "by the last closer's host");
    assert_eq!(hosts[0].run(|tx| getattr(tx, f)).unwrap_err().errno(), libc::ESTALE);
    assert_eq!(orphan::sweep(&hosts[0], 0).unwrap(), orphan::Sweep::default());
}

/// Found by the simulator (seed 1649 of its day): a host that had looked at a freed inode remembered its cleared image; when that block
/// had become the attributes of another file, and that file was freed here, the version floor came from what was remembered.
#[test]
fn a_block_of_attributes_is_freed_with_its_own_version() {
    let (disk, hosts) = cluster(2);
    let (a, b, cred) = (&hosts[0], &hosts[1], Cred::default());
    let top = a.sb.root_ino;
    let f = a.run(|tx| create(tx, top, b"f", 0o600, 0, &cred)).unwrap().ino;
    let g = a.run(|tx| create(tx, top, b"g", 0o600, 0, &cred)).unwrap().ino;
    // the block has many versions as an inode
    for n in 0..10 {
        let set = SetAttr { mode: Some(0o600 + n), ..SetAttr::default() };
        a.run(|tx| setattr(tx, f, &set, &cred)).unwrap();
    }
    a.run(|tx| unlink(tx, top, b"f")).unwrap();
    assert_eq!(orphan::reap(a, f).unwrap(), orphan::Reaped::Freed);
    assert_eq!(b.run(|tx| getattr(tx, f)).unwrap_err().errno(), libc::ESTALE, "remembered by the other host");
    a.checkpoint().unwrap();
    a.run(|tx| crate::xattr::set(tx, g, b"user.x", b"1", 0)).unwrap();
    let block = |v: &Volume, ino| v.run(|tx| Ok(crate::inode::get(tx, ino)?.xattr_block)).unwrap();
    assert_eq!(block(a, g), f, "the block found another use");
    for n in 0..5_u8 {
        a.run(|tx| crate::xattr::set(tx, g, b"user.x", &[n], 0)).unwrap();
    }
    b.run(|tx| unlink(tx, top, b"g")).unwrap();
    assert_eq!(orphan::reap(b, g).unwrap(), orphan::Reaped::Freed);
    b.checkpoint().unwrap();
    let mut last = luna_format::Block::zeroed();
    disk.read_at(&mut last.0, f * luna_format::BLOCK_U64).unwrap();
    let last = last.header().version;
    let again = (0..20_u8).map(|n| b.run(|tx| create(tx, top, &[b'n', n + 1], 0o600, 0, &cred)).unwrap());
    let same = again.into_iter().find(|x| x.ino == f).expect("the block is used once more");
    assert!(same.generation > last, "above every version it had: {} after {last}", same.generation);
}

/// Found by the simulator (seed 349 of its day): whoever still had the number of a removed directory got EIO and a word of damage.
#[test]
fn a_number_whose_block_serves_another_purpose_is_stale() {
    let (_disk, hosts) = cluster(2);
    let (a, cred) = (&hosts[0], Cred::default());
    let top = a.sb.root_ino;
    let d = a.run(|tx| mkdir(tx, top, b"d", 0o700, &cred)).unwrap().ino;
    let g = a.run(|tx| create(tx, top, b"g", 0o600, 0, &cred)).unwrap().ino;
    a.run(|tx| rmdir(tx, top, b"d")).unwrap();
    assert_eq!(orphan::reap(a, d).unwrap(), orphan::Reaped::Freed);
    a.checkpoint().unwrap();
    a.run(|tx| crate::xattr::set(tx, g, b"user.x", b"1", 0)).unwrap();
    assert_eq!(a.run(|tx| Ok(crate::inode::get(tx, g)?.xattr_block)).unwrap(), d, "the block found another use");
    for v in &hosts {
        assert_eq!(v.run(|tx| create(tx, d, b"x", 0o600, 0, &cred).map(|_| ())).unwrap_err().errno(), libc::ESTALE);
    }
}
