//! One or two hosts with the production lock manager, lock cache, volume, data path and journal over a taped LUN, in one thread.
//!
//! Operations come one after the other. Whoever has to wait lets everything else run meanwhile, on the same stack: messages between the
//! lock managers in order, and jobs (write-backs for the other host, closes) when no message is left. The reaper runs between operations.
//! When a host dies, the survivor takes over as soon as it waits, or as soon as the dead one's stack has unwound: view, replay
//! by the production code, recovered.
//!
//! Invariant: the same calls give the same tape. Not here: membership and fences (the order is what they would decide), time.

use super::image::Image;
use super::tape::{Dead, Door, Lun, Shared};
use crate::Broken;
use luna_dlm::{Core, DeadHost, Input, Job, LockCache, Member, Mode, Name, Output, PosixClient, Requester, Threads, ValueBlock, View};
use luna_format::superblock::Superblock;
use luna_format::{Ino, Slot, VolumeId};
use luna_fs::{Fs, Parts, Volume};
use luna_journal::{Fenced, Journal, ReplayProof};
use luna_lun::{Disk, InlineQueue};
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The volume's identity.
pub(super) const VOLUME: VolumeId = [3; 16];
/// Turns of a wait after which nothing will come of it.
const CIRCLES: u32 = 100_000;
/// When the clock begins.
const EPOCH_NS: u64 = 1_780_000_000_000_000_000;

/// A host.
pub(super) struct Host {
    pub(super) slot: Slot,
    incarnation: u64,
    pub(super) door: Arc<Door>,
    core: Mutex<Core>,
    locks: Arc<LockCache>,
    fs: RwLock<Option<Arc<Fs>>>,
}

impl Host {
    /// Its file system.
    pub(super) fn fs(&self) -> Result<Arc<Fs>, String> {
        self.fs.read().clone().ok_or_else(|| format!("host {} is not mounted", self.slot))
    }

    fn member(&self) -> Member {
        Member { slot: self.slot, incarnation: self.incarnation }
    }
}

/// See the module's text.
pub(super) struct Hosts {
    pub(super) sb: Superblock,
    pub(super) lun: Shared,
    hosts: RwLock<Vec<Arc<Host>>>,
    /// For the lock managers, in order.
    mail: Mutex<VecDeque<(usize, Input)>>,
    jobs: Mutex<VecDeque<(usize, Job)>>,
    reap: Mutex<Vec<(usize, Ino)>>,
    clock: AtomicU64,
    /// Who died and was recovered.
    recovered: Mutex<Vec<usize>>,
    failed: Mutex<Option<String>>,
    broken: Option<Broken>,
}

/// A host's threads, clock and way to its lock manager.
struct Machine {
    me: usize,
    all: Weak<Hosts>,
}

impl Machine {
    fn post(&self, input: Input) {
        if let Some(all) = self.all.upgrade().filter(|all| !all.is_dead(self.me)) {
            all.mail.lock().push_back((self.me, input));
        }
    }
}

impl Threads for Machine {
    fn spawn(&self, job: Job) {
        if let Some(all) = self.all.upgrade() {
            all.jobs.lock().push_back((self.me, job));
        }
    }

    fn wait(&self, ready: &dyn Fn() -> bool) {
        let Some(all) = self.all.upgrade() else { return };
        for turn in 0.. {
            if all.is_dead(self.me) {
                resume_unwind(Box::new(Dead));
            }
            if ready() {
                return;
            }
            assert!(turn < CIRCLES && all.turn(Some(self.me)), "host {} waits for ever", self.me);
        }
    }
}

impl luna_fs::Machine for Machine {
    fn now_ns(&self) -> u64 {
        EPOCH_NS + self.all.upgrade().map_or(0, |all| all.clock.fetch_add(1_000_000, Ordering::Relaxed))
    }

    fn sleep(&self, _: Duration) {
        if let Some(all) = self.all.upgrade() {
            all.turn(Some(self.me));
        }
    }
}

impl Requester for Machine {
    fn lock(&self, name: Name, mode: Mode, noqueue: bool) {
        self.post(Input::Lock { name, mode, noqueue });
    }

    fn release(&self, name: Name, from: Mode, to: Mode, value: Option<ValueBlock>) {
        self.post(Input::Release { name, from, to, value });
    }

    fn busy(&self, name: Name, wanted: Mode) {
        self.post(Input::Busy { name, wanted });
    }

    fn failed(&self, reason: &str) {
        if let Some(all) = self.all.upgrade().filter(|all| !all.is_dead(self.me)) {
            all.fail(format!("the lock cache of host {} withdrew: {reason}", self.me));
        }
    }
}

/// Reads every dirty journal and puts it in order, as the recoverer of these hosts; in the order given.
pub(super) fn replay(disk: &dyn Disk, sb: &Superblock, slots: impl Iterator<Item = Slot>) -> Result<u64, String> {
    let mut records = 0;
    for slot in slots {
        let region = sb.journal_region(slot);
        let head = luna_journal::inspect(disk, VOLUME, region, slot).map_err(|e| format!("replay: {e}"))?;
        if head.clean {
            continue;
        }
        let proof = ReplayProof::Fenced(Fenced::attest(slot, head.incarnation, 1));
        let mut plan = luna_journal::plan(disk, VOLUME, region, sb.homes(), slot, proof).map_err(|e| format!("replay: {e}"))?;
        // nothing is under way any more: one look is enough
        plan.settle(disk, &mut || false).map_err(|e| format!("replay: {e}"))?;
        records += plan.apply(disk, &|_| false).map_err(|e| format!("replay: {e}"))?.records;
    }
    Ok(records)
}

impl Hosts {
    /// `many` hosts mount what `image` holds. Their journals must be clean.
    pub(super) fn mount(image: Image, sb: Superblock, many: usize, broken: Option<Broken>) -> Result<Arc<Self>, String> {
        let all = Arc::new(Self {
            sb,
            lun: Arc::new(Mutex::new(Lun { now: image, tape: Vec::new() })),
            hosts: RwLock::default(),
            mail: Mutex::default(),
            jobs: Mutex::default(),
            reap: Mutex::default(),
            clock: AtomicU64::new(0),
            recovered: Mutex::default(),
            failed: Mutex::default(),
            broken,
        });
        (0..many).try_for_each(|i| all.add(i))?;
        let view = View { epoch: 1, members: all.hosts.read().iter().map(|h| h.member()).collect(), dead: Vec::new() };
        (0..many).for_each(|i| all.mail.lock().push_back((i, Input::View(view.clone()))));
        all.rest()?;
        Ok(all)
    }

    fn add(self: &Arc<Self>, me: usize) -> Result<(), String> {
        let (slot, sb) = (me as Slot, self.sb);
        let (start, len) = sb.journal_region(slot);
        let door = Door::new(Arc::clone(&self.lun), start + 1..start + len, VOLUME, self.broken);
        let disk: Arc<dyn Disk> = Arc::clone(&door) as _;
        let head = luna_journal::inspect(&*disk, VOLUME, (start, len), slot).map_err(|e| format!("mount: {e}"))?;
        let incarnation = head.incarnation;
        let journal = Journal::open(Arc::clone(&disk), VOLUME, (start, len), slot, incarnation).map_err(|e| format!("mount: {e}"))?;
        let machine = Arc::new(Machine { me, all: Arc::downgrade(self) });
        let locks = LockCache::driven(Arc::clone(&machine) as _, Arc::clone(&machine) as _);
        let queue = Arc::new(InlineQueue::new(Arc::clone(&disk)));
        let parts = Parts { sb, id: VOLUME, slot, epoch: 1, disk, queue, journal, locks: Arc::clone(&locks), discard: true };
        let volume = Volume::driven(parts, machine);
        let reaper = Arc::downgrade(self);
        let wake = move |ino| {
            if let Some(all) = reaper.upgrade() {
                all.reap.lock().push((me, ino));
            }
        };
        let fs = Fs::new(volume, PosixClient::local(), Arc::new(wake));
        locks.set_hooks(fs.hooks());
        let core = Mutex::new(Core::new(Member { slot, incarnation }));
        self.hosts.write().push(Arc::new(Host { slot, incarnation, door, core, locks, fs: RwLock::new(Some(fs)) }));
        Ok(())
    }

    pub(super) fn host(&self, i: usize) -> Arc<Host> {
        Arc::clone(&self.hosts.read()[i])
    }

    pub(super) fn is_dead(&self, i: usize) -> bool {
        self.hosts.read().get(i).is_some_and(|h| h.door.is_dead())
    }

    fn fail(&self, what: String) {
        self.failed.lock().get_or_insert(what);
    }

    /// Something else happens. False: there is nothing.
    fn turn(self: &Arc<Self>, for_whom: Option<usize>) -> bool {
        if let Some(dead) = self.to_recover(for_whom) {
            self.take_over(dead);
            return true;
        }
        let next = self.mail.lock().pop_front();
        if let Some((i, input)) = next {
            self.step(i, input);
            return true;
        }
        let next = self.jobs.lock().pop_front();
        let Some((i, job)) = next else { return false };
        if !self.is_dead(i) {
            self.guard(i, job);
        }
        true
    }

    /// Runs what may end with its host's death.
    fn guard<T>(&self, i: usize, work: impl FnOnce() -> T) -> Option<T> {
        let got = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(got) => Some(got),
            Err(payload) if payload.is::<Dead>() && self.is_dead(i) => None,
            Err(payload) => resume_unwind(payload),
        };
        if self.broken == Some(Broken::ReusesFreedBlocksAtOnce)
            && let Ok(fs) = self.host(i).fs()
        {
            fs.volume.forget_freed();
        }
        got
    }

    fn step(&self, i: usize, input: Input) {
        let h = self.host(i);
        if h.door.is_dead() {
            return;
        }
        let mut out = Vec::new();
        h.core.lock().step(self.clock.load(Ordering::Relaxed) / 1_000_000, input, &mut out);
        for o in out {
            match o {
                Output::Send { to, msg } => self.mail.lock().push_back((usize::from(to), Input::Message { from: h.slot, msg })),
                Output::Granted { name, mode, value } => h.locks.granted(&name, mode, value),
                Output::Denied { name, mode } => h.locks.denied(&name, mode),
                Output::Bast { name, wanted, polite } => h.locks.bast(&name, wanted, polite),
                Output::PosixDone { .. } => {}
                Output::Evicted => self.fail(format!("host {i} was evicted")),
            }
        }
    }

    fn to_recover(&self, for_whom: Option<usize>) -> Option<usize> {
        let recovered = self.recovered.lock();
        let dead = self.hosts.read().iter().position(|h| h.door.is_dead())?;
        let survivor = for_whom.is_none_or(|me| me != dead);
        (survivor && self.hosts.read().len() > 1 && !recovered.contains(&dead)).then_some(dead)
    }

    /// What the membership would have the survivor do.
    fn take_over(self: &Arc<Self>, dead: usize) {
        self.recovered.lock().push(dead);
        let (gone, survivor) = (self.host(dead), 1 - dead);
        let last_view: Vec<Member> = self.hosts.read().iter().map(|h| h.member()).collect();
        // what it had sent arrives or not; here it does not
        self.mail.lock().retain(|(_, input)| !matches!(input, Input::Message { from, .. } if *from == gone.slot));
        let lost = DeadHost { slot: gone.slot, incarnation: gone.incarnation, last_view };
        let view = View { epoch: 2, members: vec![self.host(survivor).member()], dead: vec![lost] };
        self.step(survivor, Input::View(view));
        let disk = Arc::clone(&self.host(survivor).door);
        match self.guard(survivor, || replay(&*disk, &self.sb, std::iter::once(gone.slot))) {
            Some(Ok(_)) => self.mail.lock().push_back((survivor, Input::Recovered(gone.member()))),
            Some(Err(e)) => self.fail(e),
            None => {}
        }
    }

    /// Lets everything come to rest.
    pub(super) fn rest(self: &Arc<Self>) -> Result<(), String> {
        for turn in 0.. {
            let reap = self.reap.lock().pop();
            match reap {
                Some((i, ino)) if !self.is_dead(i) => {
                    let fs = self.host(i).fs()?;
                    self.guard(i, || drop(luna_fs::orphan::reap(&fs.volume, ino)));
                }
                Some(_) => {}
                None if self.turn(None) => {}
                None => break,
            }
            if turn > CIRCLES {
                return Err("the hosts run in circles".into());
            }
        }
        self.failed.lock().clone().map_or(Ok(()), Err)
    }

    /// Runs a piece of work on a host. `None`: it died in it.
    pub(super) fn on<T>(self: &Arc<Self>, i: usize, work: impl FnOnce(&Arc<Fs>) -> T) -> Result<Option<T>, String> {
        let fs = self.host(i).fs()?;
        let got = self.guard(i, || work(&fs));
        drop(fs);
        self.rest()?;
        Ok(got)
    }

    /// Orphans of these slots are freed by host `i`.
    pub(super) fn sweep(self: &Arc<Self>, i: usize, slots: impl Iterator<Item = Slot>) -> Result<(), String> {
        for slot in slots {
            if let Some(Err(e)) = self.on(i, |fs| luna_fs::orphan::sweep(&fs.volume, slot))? {
                return Err(format!("sweep of slot {slot}: {e}"));
            }
        }
        Ok(())
    }

    /// Host `i` unmounts in order.
    pub(super) fn unmount(self: &Arc<Self>, i: usize) -> Result<(), String> {
        let ended = self.on(i, |fs| {
            fs.shutdown().and_then(|()| fs.volume.checkpoint()).map_err(|e| e.to_string())?;
            fs.volume.journal.close().map_err(|e| e.to_string())
        })?;
        match ended {
            Some(Err(e)) => Err(format!("unmount: {e}")),
            _ => Ok(()),
        }
    }

    /// The content of the LUN.
    pub(super) fn image(&self) -> Image {
        self.lun.lock().now.clone()
    }
}
