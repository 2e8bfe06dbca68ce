//! Three hosts in one process: real caches and clients with real threads, real cores, channels as the network, an array as the
//! disk. Nothing is lost, nobody starves, byte ranges exclude each other across hosts, and life goes on when a host dies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use luna_dlm::posix::Op;
use luna_dlm::{
    Core, DeadHost, Hooks, Input, LockCache, LockError, Member, Mode, Name, Output, PosixClient, PosixRequester, Requester, ValueBlock,
    View,
};

fn name(i: u8) -> Name {
    let mut name = Name::default();
    name.0[5] = i;
    name
}

struct Wire(Mutex<Sender<Input>>);

impl Wire {
    fn put(&self, input: Input) {
        let _ = self.0.lock().expect("no thread panics with it").send(input);
    }
}

impl Requester for Wire {
    fn lock(&self, name: Name, mode: Mode, noqueue: bool) {
        self.put(Input::Lock { name, mode, noqueue });
    }
    fn release(&self, name: Name, from: Mode, to: Mode, value: Option<ValueBlock>) {
        self.put(Input::Release { name, from, to, value });
    }
    fn busy(&self, name: Name, wanted: Mode) {
        self.put(Input::Busy { name, wanted });
    }
    fn failed(&self, reason: &str) {
        panic!("{reason}");
    }
}

impl PosixRequester for Wire {
    fn posix(&self, token: u64, name: Name, op: Op) {
        self.put(Input::Posix { token, name, op });
    }
    fn cancel(&self, token: u64) {
        self.put(Input::PosixCancel { token });
    }
}

/// A host's cached copy of the shared counters; dirty until written back.
#[derive(Default)]
struct Pages {
    disk: Arc<[AtomicU64; 4]>,
    cached: Mutex<BTreeMap<Name, u64>>,
}

impl Pages {
    fn place(&self, name: &Name) -> &AtomicU64 {
        &self.disk[usize::from(name.0[5])]
    }
    fn read(&self, name: &Name) -> u64 {
        *self.cached.lock().expect("unpoisoned").entry(*name).or_insert_with(|| self.place(name).load(SeqCst))
    }
    fn add_one(&self, name: &Name) {
        let mut cached = self.cached.lock().expect("unpoisoned");
        *cached.entry(*name).or_insert_with(|| self.place(name).load(SeqCst)) += 1;
    }
}

impl Hooks for Pages {
    fn come_down(&self, name: &Name, from: Mode, to: Mode) -> Result<Option<ValueBlock>, String> {
        let mut cached = self.cached.lock().expect("unpoisoned");
        let value = cached.get(name).copied();
        if let Some(value) = value.filter(|_| from.covers(Mode::Pw)) {
            thread::yield_now();
            self.place(name).store(value, SeqCst);
        }
        if !to.covers(Mode::Pr) {
            cached.remove(name);
        }
        Ok(value.map(|value| [value, 0, 0, 0]))
    }
    fn granted(&self, name: &Name, from: Mode, _: Mode, value: &ValueBlock) {
        if !from.covers(Mode::Pr) {
            let mut cached = self.cached.lock().expect("unpoisoned");
            assert!(cached.remove(name).is_none(), "nothing is cached without a right");
            assert!(value[0] <= self.place(name).load(SeqCst), "the block never runs ahead of the disk");
        }
    }
}

struct Host {
    cache: Arc<LockCache>,
    posix: Arc<PosixClient>,
    pages: Arc<Pages>,
    input: Sender<Input>,
}

fn drive(me: Member, cache: &Arc<LockCache>, posix: &Arc<PosixClient>, input: &Receiver<Input>, wires: &[Sender<Input>]) {
    let mut core = Core::new(me);
    let mut out = Vec::new();
    while let Ok(event) = input.recv() {
        core.step(0, event, &mut out);
        core.check().expect("a sound core");
        for output in out.drain(..) {
            match output {
                Output::Send { to, msg } => drop(wires[usize::from(to)].send(Input::Message { from: me.slot, msg })),
                Output::Granted { name, mode, value } => cache.granted(&name, mode, value),
                Output::Denied { name, mode } => cache.denied(&name, mode),
                Output::Bast { name, wanted, polite } => cache.bast(&name, wanted, polite),
                Output::PosixDone { token, result } => posix.done(token, result),
                Output::Evicted => {
                    cache.withdraw();
                    posix.withdraw();
                    return;
                }
            }
        }
    }
}

fn members(n: u16) -> Vec<Member> {
    (0..n).map(|slot| Member { slot, incarnation: 1 }).collect()
}

fn cluster(n: u16) -> Vec<Host> {
    let (wires, inputs): (Vec<_>, Vec<_>) = (0..n).map(|_| channel()).unzip();
    let disk: Arc<[AtomicU64; 4]> = Arc::default();
    let mut hosts = Vec::new();
    for (slot, input) in inputs.into_iter().enumerate() {
        let mine = wires[slot].clone();
        let wire = Arc::new(Wire(Mutex::new(mine.clone())));
        let me = members(n)[slot];
        let (cache, posix) = (LockCache::new(Arc::clone(&wire) as _), PosixClient::new(me.slot, wire));
        let pages = Arc::new(Pages { disk: Arc::clone(&disk), cached: Mutex::default() });
        cache.set_hooks(Arc::clone(&pages) as _);
        let (c, p, w) = (Arc::clone(&cache), Arc::clone(&posix), wires.clone());
        thread::spawn(move || drive(me, &c, &p, &input, &w));
        hosts.push(Host { cache, posix, pages, input: mine });
    }
    announce(&hosts, &View { epoch: 1, members: members(n), dead: Vec::new() });
    hosts
}

fn announce(hosts: &[Host], view: &View) {
    for host in hosts {
        let _ = host.input.send(Input::View(view.clone()));
    }
}

/// What `host` reads of a counter; a right that had to travel here brought the value along. Who wrote last still has its EX, and
/// contributes its value when it comes down, not before.
fn last_word(host: &Host, name: &Name) -> u64 {
    let wrote_last = host.cache.mode(name).covers(Mode::Pw);
    let hold = host.cache.hold(name, Mode::Pr).expect("granted");
    let value = host.pages.read(hold.name());
    assert!(wrote_last || host.cache.value(name)[0] == value, "the value block followed");
    value
}

#[test]
fn no_increment_is_lost_and_everybody_gets_on() {
    const ROUNDS: u64 = 400;
    let hosts = cluster(3);
    let local: Vec<_> = (0..3).map(|_| Mutex::new(())).collect();
    thread::scope(|scope| {
        for (host, local) in hosts.iter().zip(&local) {
            for t in 0..3_u64 {
                scope.spawn(move || {
                    let mut seen = [0; 2];
                    for round in 0..ROUNDS {
                        let which = ((round + t) % 2) as u8;
                        let name = name(which);
                        if (round + t) % 5 == 0 {
                            let hold = host.cache.hold(&name, Mode::Pr).expect("granted");
                            let now = host.pages.read(&name);
                            assert!(now >= seen[usize::from(which)], "time runs backwards");
                            seen[usize::from(which)] = now;
                            drop(hold);
                        }
                        let hold = host.cache.hold(&name, Mode::Ex).expect("granted");
                        // The right is the host's; its threads keep order among themselves.
                        let guard = local.lock().expect("unpoisoned");
                        host.pages.add_one(&name);
                        drop((guard, hold));
                    }
                });
            }
        }
    });
    let total: u64 = (0..2)
        .map(|i| {
            let of_hosts: Vec<u64> = hosts.iter().map(|host| last_word(host, &name(i))).collect();
            assert_eq!(of_hosts, [of_hosts[0]; 3], "every host reads the same");
            of_hosts[0]
        })
        .sum();
    assert_eq!(total, 3 * 3 * ROUNDS);
    let counters = hosts[1].cache.counters();
    assert!(counters.come_downs > 10, "the lock really travelled: {counters:?}");
}

#[test]
fn asking_whether_anybody_uses_it_is_answered_exactly() {
    let hosts = cluster(3);
    let hold = hosts[1].cache.hold(&name(3), Mode::Cr).expect("granted");
    assert_eq!(hosts[0].cache.try_want(&name(3), Mode::Ex).map(|_| ()), Err(LockError::WouldBlock));
    drop(hold);
    assert_eq!(hosts[1].cache.mode(&name(3)), Mode::Cr, "host 1 still has the right cached");
    assert!(hosts[0].cache.try_want(&name(3), Mode::Ex).is_ok(), "but nobody uses it");
    assert_eq!(hosts[1].cache.mode(&name(3)), Mode::Nl);
}

#[test]
fn byte_ranges_exclude_each_other_across_hosts() {
    let hosts = cluster(3);
    let inside = AtomicU64::new(0);
    thread::scope(|scope| {
        for host in &hosts {
            for owner in 0..2 {
                let inside = &inside;
                scope.spawn(move || {
                    for _ in 0..100 {
                        host.posix.setlk(&name(2), owner, 10, 20, true, true, 1).expect("granted");
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "alone");
                        inside.fetch_sub(1, SeqCst);
                        host.posix.unlock(&name(2), owner, 0, u64::MAX).expect("unlocked");
                    }
                });
            }
        }
    });
}

#[test]
fn a_death_freezes_what_was_written_until_it_is_recovered() {
    let hosts = cluster(3);
    for i in 0..3 {
        drop(hosts[usize::from(i)].cache.hold(&name(i), Mode::Pr).expect("granted"));
    }
    drop(hosts[2].cache.hold(&name(3), Mode::Ex).expect("granted"));
    let dead = DeadHost { slot: 2, incarnation: 1, last_view: members(3) };
    announce(&hosts, &View { epoch: 2, members: members(2), dead: vec![dead] });
    while !hosts[2].cache.is_withdrawn() {
        thread::yield_now();
    }
    assert_eq!(hosts[2].cache.hold(&name(3), Mode::Pr).map(|_| ()), Err(LockError::Withdrawn));
    let frozen = thread::spawn({
        let cache = Arc::clone(&hosts[0].cache);
        move || cache.hold(&name(3), Mode::Pr).map(|hold| hold.mode())
    });
    thread::sleep(std::time::Duration::from_millis(100));
    assert!(!frozen.is_finished(), "the dead host wrote under it");
    assert_eq!(hosts[1].cache.try_want(&name(3), Mode::Cr).map(|_| ()), Err(LockError::WouldBlock));
    for host in &hosts[..2] {
        host.input.send(Input::Recovered(Member { slot: 2, incarnation: 1 })).expect("alive");
    }
    assert_eq!(frozen.join().expect("no panic"), Ok(Mode::Pr));
}
