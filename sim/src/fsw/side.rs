//! The file system side of a process: its stacks, its lock cache, its volume.
//!
//! [`World::fs_pump`] is called after everything that happened on a host: it hands on what was said, puts new jobs on stacks, and lets
//! one stack after the other go on, until all wait or one is at the LUN. Order is what was queued first, except that the seed
//! sometimes takes the last one first.
//! Invariant: production code of a host runs only inside of that, or inside a router step of the same host. Not here: what the
//! jobs are (`guest`, `end`), what was said means (`fsw`).

use super::door::Door;
use super::machine::{Machine, Pause, Said, Task};
use super::{Heard, VOLUME, mutant};
use crate::Broken;
use crate::world::{Event, Fallible, Happening, World};
use luna_cluster::{FenceMethod, Input};
use luna_dlm::{Job, LockCache, PosixClient};
use luna_fs::{Fs, FsError, Parts, Volume};
use luna_journal::{Fenced, Journal, ReplayProof};
use luna_lun::{Disk, InlineQueue};
use luna_node::router::In;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two rounds of the background thread.
const ROUND: u64 = 200;

/// Turns without any time passing from which on something is wrong.
const CIRCLES: u32 = 100_000;

/// See the module's text.
pub(crate) struct Side {
    pub(crate) machine: Arc<Machine>,
    pub(crate) door: Arc<Door>,
    pub(crate) locks: Option<Arc<LockCache>>,
    pub(crate) fs: Option<Arc<Fs>>,
    tasks: BTreeMap<u64, Task>,
    next: u64,
    ready: VecDeque<u64>,
    waiting: VecDeque<u64>,
    at_lun: Option<u64>,
    at_gate: bool,
    /// The first of `ready` has been at the LUN and holds what it holds: it goes on before any other.
    urgent: bool,
    pumping: bool,
    poked: bool,
    rounds: Arc<Mutex<luna_fs::syncer::Rounds>>,
    /// Inodes that guests of this host have seen.
    pub(crate) known: BTreeSet<u64>,
    /// Stacks of guests; others are the host's own.
    pub(crate) guests: BTreeSet<u64>,
}

impl Side {
    fn begin(&mut self, job: Job) -> u64 {
        self.next += 1;
        self.tasks.insert(self.next, Task::new(job));
        self.ready.push_back(self.next);
        self.machine.stacks.store(self.tasks.len() as u64, Ordering::Relaxed);
        self.next
    }

    /// Puts a guest on a stack.
    pub(crate) fn begin_guest(&mut self, job: Job) {
        let id = self.begin(job);
        self.guests.insert(id);
    }
}

impl World {
    /// The side of a new process.
    pub(crate) fn fs_side(&mut self, i: usize) -> Option<Side> {
        let f = self.fs.as_ref()?;
        let (seed, lucky) = (self.rng.u64(..), self.rng.u8(0..100));
        let machine = Arc::new(Machine { clock: Arc::clone(&f.clock), ..Machine::default() });
        let slow = (self.rng.u8(5..40), self.timing.request_ms / 3);
        let mut door = Door::new(Arc::clone(&f.medium), super::SIZE, Arc::clone(&f.clock), (i, self.hosts[i].life), seed, slow);
        door.broken = self.setup.broken;
        // some processes are born to die in the middle of a request
        if self.faulty && lucky < 80 {
            let many = [20, 150, 1000][self.rng.usize(0..3)];
            door.die_in.store(self.rng.u64(0..many), Ordering::Relaxed);
        }
        Some(Side {
            machine,
            door: Arc::new(door),
            locks: None,
            fs: None,
            tasks: BTreeMap::new(),
            next: 0,
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            at_lun: None,
            at_gate: false,
            urgent: false,
            pumping: false,
            poked: false,
            rounds: Arc::default(),
            known: BTreeSet::from([f.sb.root_ino]),
            guests: BTreeSet::new(),
        })
    }

    pub(crate) fn side(&mut self, i: usize) -> Option<&mut Side> {
        self.hosts[i].process.as_mut()?.side.as_mut()
    }

    /// Puts a job of host `i` on a stack.
    pub(crate) fn fs_begin(&mut self, i: usize, job: Job) -> Fallible {
        if let Some(s) = self.side(i) {
            s.begin(job);
        }
        self.fs_pump(i, false)
    }

    /// Lets everything on host `i` go on that can. `poke`: those who wait look again.
    pub(crate) fn fs_pump(&mut self, i: usize, poke: bool) -> Fallible {
        let Some(s) = self.side(i) else { return Ok(()) };
        s.poked |= poke;
        if poke
            && std::mem::take(&mut s.at_gate)
            && let Some(id) = s.at_lun.take()
        {
            s.ready.push_front(id);
            s.urgent = true;
        }
        if std::mem::replace(&mut s.pumping, true) {
            return Ok(());
        }
        for turn in 0.. {
            if turn > CIRCLES {
                return Err(format!("files: host {i} runs in circles"));
            }
            self.fs_hand_on(i)?;
            let last = self.rng.u8(0..8) == 0;
            let Some(s) = self.side(i) else { return Ok(()) };
            if s.at_lun.is_some() {
                break;
            }
            if s.ready.is_empty() && std::mem::take(&mut s.poked) {
                s.ready.append(&mut s.waiting);
            }
            let next = if last && !s.urgent { s.ready.pop_back() } else { s.ready.pop_front() };
            s.urgent = false;
            let Some(id) = next else { break };
            self.fs_resume(i, id)?;
        }
        if let Some(s) = self.side(i) {
            s.pumping = false;
        }
        Ok(())
    }

    /// Jobs onto stacks, words to whom they are for.
    fn fs_hand_on(&mut self, i: usize) -> Fallible {
        loop {
            let Some(s) = self.side(i) else { return Ok(()) };
            let jobs = std::mem::take(&mut *s.machine.jobs.lock());
            for j in jobs {
                s.begin(j);
            }
            let said = std::mem::take(&mut *s.machine.said.lock());
            if said.is_empty() {
                break;
            }
            for word in said {
                self.fs_said(i, word)?;
            }
        }
        self.medium_is_right()
    }

    /// The properties that the LUN itself looks at.
    pub(crate) fn medium_is_right(&self) -> Fallible {
        let wrong = self.fs.as_ref().and_then(|f| f.medium.lock().wrong.take());
        wrong.map_or(Ok(()), Err)
    }

    fn fs_said(&mut self, i: usize, word: Said) -> Fallible {
        match word {
            Said::Lock(input) => self.input(i, In::Dlm(input)),
            Said::Granted(name, mode) => {
                if let Some(s) = self.side(i) {
                    s.poked = true;
                }
                match self.hosts[i].place() {
                    Some(who) => self.check.locks.granted(name, who, mode, &self.check.members),
                    None => Ok(()),
                }
            }
            Said::Released(name, mode) => {
                if let Some(who) = self.hosts[i].place() {
                    self.check.locks.released(name, who, mode, &self.check.members);
                }
                Ok(())
            }
            Said::Failed(why) => {
                let who = self.hosts[i].place().unwrap_or_default();
                self.fs_failed(i, who, &why)
            }
            Said::Fs(h) => self.fs_heard(i, h),
        }
    }

    fn fs_resume(&mut self, i: usize, id: u64) -> Fallible {
        let broken = self.setup.broken;
        let Some(s) = self.side(i) else { return Ok(()) };
        let Some(mut task) = s.tasks.remove(&id) else { return Ok(()) };
        let why = task.go_on();
        if broken == Some(Broken::ReusesFreedBlocksAtOnce)
            && let Some(fs) = &s.fs
        {
            fs.volume.forget_freed();
        }
        if matches!(why, Pause::Over) {
            task.done();
            s.machine.stacks.store(s.tasks.len() as u64, Ordering::Relaxed);
            s.guests.remove(&id);
            s.poked = true;
            return Ok(());
        }
        s.tasks.insert(id, task);
        match why {
            Pause::Over => {}
            Pause::Wait => s.waiting.push_back(id),
            Pause::Gate => (s.at_lun, s.at_gate) = (Some(id), true),
            Pause::Sleep(ms) => self.later(ms.max(1), i, Event::FsResume { id }),
            Pause::Lun(ms, flight) => {
                s.at_lun = Some(id);
                if let Some(flight) = flight {
                    self.at(ms, Happening::FsLand { flight });
                }
                self.later(ms, i, Event::FsResume { id });
            }
            Pause::Die => {
                // what it had said before it died was heard
                self.fs_hand_on(i)?;
                self.say(format!("host {i} dies in the middle of a request"));
                if let Some(f) = &mut self.fs {
                    f.stats.crash_points += 1;
                }
                self.kill(i);
            }
        }
        Ok(())
    }

    pub(crate) fn fs_go_on(&mut self, i: usize, id: u64) -> Fallible {
        if let Some(s) = self.side(i) {
            if s.at_lun.take_if(|at| *at == id).is_some() {
                s.ready.push_front(id);
                s.urgent = true;
            } else {
                s.ready.push_back(id);
            }
        }
        self.fs_pump(i, false)
    }

    /// A write lands.
    pub(crate) fn fs_land(&mut self, flight: u64) -> Fallible {
        if let Some(f) = &self.fs {
            f.medium.lock().land(flight);
        }
        self.medium_is_right()
    }

    /// The process is gone: what it had handed over lands, lands torn, lands late, or does not.
    pub(crate) fn fs_killed(&mut self, i: usize, life: u64, mut side: Side) {
        // the stacks unwind; nothing of that reaches anybody
        side.tasks.clear();
        let Some(f) = &mut self.fs else { return };
        f.stats.requests += side.door.count.load(Ordering::Relaxed);
        let mut late = Vec::new();
        let mut m = f.medium.lock();
        for id in m.flights_of((i, life)) {
            match self.rng.u8(0..6) {
                0 => m.lose(id),
                1..4 => m.land_torn(id, &mut self.rng),
                _ => {
                    m.late += 1;
                    late.push(id);
                }
            }
        }
        drop(m);
        for flight in late {
            let ms = self.rng.u64(0..self.timing.request_ms / 2);
            self.at(ms, Happening::FsLand { flight });
        }
    }

    /// What the router's step decided about the lease.
    pub(crate) fn fs_lease(&mut self, i: usize) {
        let Some(p) = &mut self.hosts[i].process else { return };
        let Some(s) = &p.side else { return };
        let until = match p.router.cluster().gate() {
            luna_cluster::Gate::Active { until_ms } => until_ms,
            _ => 0,
        };
        s.door.until.store(until, Ordering::Relaxed);
    }

    /// FENCED is known to whoever is told to replay; a rule taken away lets everybody thaw here.
    pub(crate) fn fs_fenced(&mut self, slot: u16, incarnation: u64) -> Fallible {
        if self.setup.broken == Some(Broken::ThawsBeforeRecovery) {
            for j in 0..self.hosts.len() {
                self.input(j, In::Dlm(luna_dlm::Input::Recovered(luna_dlm::Member { slot, incarnation })))?;
            }
        }
        Ok(())
    }

    /// Orphans of a recovered host are freed by whoever hears of it first.
    pub(crate) fn fs_sweep(&mut self, i: usize, slot: u16) -> Fallible {
        let Some(s) = self.side(i) else { return Ok(()) };
        let Some(fs) = s.fs.clone().filter(|_| !s.machine.leaving.load(Ordering::Relaxed)) else { return Ok(()) };
        self.fs_begin(i, Box::new(move || drop(luna_fs::orphan::sweep(&fs.volume, slot))))
    }

    /// Faults that only a world of files has: no path to the LUN, death in a request to come, a power cut of the target.
    pub(crate) fn fs_fault(&mut self, i: usize) -> Fallible {
        match self.rng.u8(0..12) {
            0..4 => {
                let ms = if self.rng.bool() { self.rng.u64(50..500) } else { self.rng.u64(500..3000) };
                // sometimes only the beats do not get through, and the links are lost with them
                let beats_only = self.rng.bool();
                self.say(format!("host {i} has no path to the LUN for {ms} ms (beats only: {beats_only})"));
                let until = self.now + ms;
                self.hosts[i].away_until = until;
                if beats_only && self.rng.bool() {
                    self.reset_all_of(i);
                }
                if let Some(s) = self.side(i).filter(|_| !beats_only) {
                    s.door.away.store(until, Ordering::Relaxed);
                }
            }
            4 | 5 => {
                self.say("the target loses power".to_owned());
                let Some(f) = &mut self.fs else { return Ok(()) };
                f.power += 1;
                f.stats.power_cuts += 1;
                f.oracle.data.power_cut();
                let lost = f.medium.lock().power_cut(&mut self.rng);
                self.say(format!("{lost} blocks were not flushed"));
                (0..self.hosts.len()).for_each(|j| self.kill(j));
            }
            _ => {
                let soon = self.rng.u64(0..60);
                if let Some(s) = self.side(i) {
                    s.door.die_in.store(soon, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// No more of that.
    pub(crate) fn fs_calm(&mut self, i: usize) {
        if let Some(s) = self.side(i) {
            s.door.die_in.store(u64::MAX, Ordering::Relaxed);
            s.door.away.store(0, Ordering::Relaxed);
        }
    }

    /// An error that a guest or the lock cache met. It needs a reason.
    pub(crate) fn fs_failed(&mut self, i: usize, who: crate::check::Who, why: &str) -> Fallible {
        let member = self.check.members.is_member(who);
        let withdrawn = self.hosts[i].process.as_ref().is_none_or(|p| p.withdrawn);
        let Some(s) = self.side(i) else { return Ok(()) };
        let shut = s.door.shut.load(Ordering::Relaxed);
        let refused = self.fs.as_ref().is_some_and(|f| f.medium.lock().refuses(Some(who)));
        if shut || refused || !member || withdrawn {
            return Ok(());
        }
        Err(format!("files: host {i} {who:?} failed without a reason: {why}"))
    }

    /// This host is a member and serves: the volume is mounted, on a stack.
    pub(crate) fn fs_serve(&mut self, i: usize) -> Fallible {
        let Some((slot, incarnation)) = self.hosts[i].place() else { return Ok(()) };
        let epoch = self.hosts[i].process.as_ref().map_or(0, |p| p.router.cluster().epoch());
        let Some(sb) = self.fs.as_ref().map(|f| f.sb) else { return Ok(()) };
        let broken = self.setup.broken;
        let Some(s) = self.side(i) else { return Ok(()) };
        let machine = Arc::clone(&s.machine);
        let locks = LockCache::driven(Arc::clone(&machine) as _, Arc::clone(&machine) as _);
        s.locks = Some(Arc::clone(&locks));
        // from now on what is for the lock cache reaches it
        self.input(i, In::Serving)?;
        let Some(s) = self.side(i) else { return Ok(()) };
        let disk: Arc<dyn Disk> = Arc::clone(&s.door) as _;
        let mount = move || {
            let opened = Journal::open(Arc::clone(&disk), VOLUME, sb.journal_region(slot), slot, incarnation);
            let journal = match opened {
                Ok(j) => j,
                Err(e) => return machine.hear(Heard::Failed(format!("mount: {e}"))),
            };
            let queue = Arc::new(InlineQueue::new(Arc::clone(&disk)));
            let parts = Parts { sb, id: VOLUME, slot, epoch, disk, queue, journal, locks: Arc::clone(&locks), discard: true };
            let volume = Volume::driven(parts, Arc::clone(&machine) as _);
            let (reaper, vol) = (Arc::downgrade(&machine), Arc::downgrade(&volume));
            let wake = move |ino| {
                let (Some(m), Some(vol)) = (reaper.upgrade(), vol.upgrade()) else { return };
                if !m.leaving.load(Ordering::Relaxed) {
                    m.jobs.lock().push(Box::new(move || reap(&vol, ino)));
                }
            };
            let fs = Fs::new(Arc::clone(&volume), PosixClient::local(), Arc::new(wake));
            locks.set_hooks(mutant::hooks(fs.hooks(), &fs, &machine, broken));
            luna_fs::alloc::refresh_hints(&volume);
            *machine.mounted.lock() = Arc::downgrade(&fs);
            machine.hear(Heard::Mounted(fs));
            let _ = luna_fs::orphan::sweep(&volume, slot);
        };
        self.fs_begin(i, Box::new(mount))
    }

    pub(crate) fn fs_mounted(&mut self, i: usize, fs: Arc<Fs>) -> Fallible {
        if let Some(s) = self.side(i) {
            s.fs = Some(fs);
        }
        self.later(ROUND, i, Event::FsRound);
        self.later(1, i, Event::FsGuest);
        let Some(f) = &mut self.fs else { return Ok(()) };
        let root = f.sb.root_ino;
        if f.full == (true, false) {
            f.full.1 = true;
            let Some(place) = self.fs_place(i) else { return Ok(()) };
            if let Some(s) = self.side(i) {
                s.begin_guest(Box::new(move || place.fill(root)));
            }
        }
        Ok(())
    }

    /// What the background thread does now and then.
    pub(crate) fn fs_round(&mut self, i: usize) -> Fallible {
        self.later(ROUND, i, Event::FsRound);
        let ms = self.now;
        let Some(s) = self.side(i) else { return Ok(()) };
        let (Some(fs), rounds, machine) = (s.fs.clone(), Arc::clone(&s.rounds), Arc::clone(&s.machine)) else { return Ok(()) };
        if machine.leaving.load(Ordering::Relaxed) {
            return Ok(());
        }
        let job = move || {
            // one at a time
            let Some(mut r) = rounds.try_lock() else { return };
            // five times as often as on a real mount
            if let Err(e) = fs.round(&mut r, Duration::from_millis(ms * 5)) {
                machine.hear(Heard::Failed(format!("background round: {e}")));
            }
        };
        self.fs_begin(i, Box::new(job))
    }

    /// A survivor recovers: plan, apply, new header.
    pub(crate) fn fs_replay(&mut self, i: usize, (slot, incarnation): (u16, u64), epoch: u64) -> Fallible {
        self.check.members.replay((slot, incarnation))?;
        let request_ms = self.timing.request_ms;
        let Some(sb) = self.fs.as_ref().map(|f| f.sb) else { return Ok(()) };
        let broken = self.setup.broken;
        let Some(s) = self.side(i) else { return Ok(()) };
        let (machine, door) = (Arc::clone(&s.machine), Arc::clone(&s.door));
        let job = move || {
            let disk = mutant::replay_disk(door, sb.journal_region(slot).0, broken);
            let result = replay(&*disk, &sb, (slot, incarnation), epoch, request_ms, &machine);
            if let Err(e) = &result {
                machine.hear(Heard::Failed(format!("replay of slot {slot}: {e}")));
                luna_fs::Machine::sleep(&*machine, Duration::from_millis(200));
            }
            machine.hear(Heard::Input(Box::new(In::Cluster(Input::ReplayDone { slot, incarnation, result }))));
        };
        self.fs_begin(i, Box::new(job))
    }

    /// Makes a dead incarnation harmless, as far as this world's target can.
    pub(crate) fn fs_fence(&mut self, i: usize, (slot, incarnation): (u16, u64), at_target: bool) {
        let broken = self.setup.broken;
        let late = self.rng.u64(1..50);
        let Some(f) = &mut self.fs else { return };
        let method = if f.exact && at_target { FenceMethod::Target } else { FenceMethod::Lease };
        if method == FenceMethod::Target && broken != Some(Broken::FenceDoesNothing) {
            f.medium.lock().fence((slot, incarnation), &mut self.rng);
        }
        let method = if broken == Some(Broken::DoesNotWaitForTheLease) { FenceMethod::Target } else { method };
        let done = Input::FenceDone { slot, incarnation, result: Ok(method) };
        self.later(late, i, Event::Input(Box::new(In::Cluster(done))));
    }

    /// This host is out: nothing more goes to the LUN, everything waiting ends.
    pub(crate) fn fs_withdraw(&mut self, i: usize, why: &str) {
        let Some(s) = self.side(i) else { return };
        s.door.shut.store(true, Ordering::Relaxed);
        s.poked = true;
        match (&s.fs, &s.locks) {
            (Some(fs), _) => fs.volume.withdraw(why),
            (None, Some(locks)) => locks.withdraw(),
            _ => {}
        }
    }

    /// Unmounts in order: everything home, the journal clean, then the record.
    pub(crate) fn fs_leave(&mut self, i: usize) -> Fallible {
        let Some(s) = self.side(i) else { return Ok(()) };
        let machine = Arc::clone(&s.machine);
        machine.leaving.store(true, Ordering::Relaxed);
        let job = move || {
            // programs end before an unmount, and so do the reaper and the background thread
            luna_dlm::Threads::wait(&*machine, &|| machine.stacks.load(Ordering::Relaxed) <= 1);
            let fs = machine.mounted.lock().upgrade();
            let clean = fs.is_none_or(|fs| {
                let ended = fs.shutdown().and_then(|()| fs.volume.checkpoint());
                let closed = ended.and_then(|()| fs.volume.journal.close().map_err(|e| FsError::Withdrawn(e.to_string())));
                closed.map_err(|e| machine.hear(Heard::Failed(format!("unmount: {e}")))).is_ok()
            });
            if clean {
                machine.hear(Heard::Input(Box::new(In::Cluster(Input::JournalClean))));
            }
        };
        self.fs_begin(i, Box::new(job))
    }

    /// The lock cache of host `i`, for what the router has to tell it; then whoever waits looks again.
    pub(crate) fn fs_locks(&mut self, i: usize, tell: impl FnOnce(&Arc<LockCache>)) -> Fallible {
        let Some(locks) = self.side(i).and_then(|s| s.locks.clone()) else { return Ok(()) };
        tell(&locks);
        self.fs_pump(i, true)
    }

    /// What host `i` is doing, for whoever reads a violation.
    pub(crate) fn fs_describe(&self, i: usize) -> String {
        let Some(s) = self.hosts[i].process.as_ref().and_then(|p| p.side.as_ref()) else { return String::new() };
        let stuck = |d: &luna_dlm::CacheDump| {
            let held = d.granted != luna_dlm::Mode::Nl && d.asked_down;
            (d.waiters > 0 || d.requested.is_some() || held).then(|| {
                let what = luna_fs::names::split(&d.name);
                format!(
                    "{what:?} has {} live {} waiters {} requested {:?} asked down {}",
                    d.granted, d.live, d.waiters, d.requested, d.asked_down
                )
            })
        };
        let locks: Vec<String> = s.locks.iter().flat_map(|l| l.dump()).filter_map(|d| stuck(&d)).collect();
        format!(
            "host {i}: stacks {:?} waiting {:?} ready {:?} at the LUN {:?} gate {} guests {:?}; {}",
            s.tasks.keys(),
            s.waiting,
            s.ready,
            s.at_lun,
            s.at_gate,
            s.guests,
            locks.join("; ")
        )
    }

    /// What a guest of host `i` has seen.
    pub(crate) fn fs_learn(&mut self, i: usize, op: &super::Op, got: &super::Got) {
        use super::oracle::names::{Got, Op};
        let Some(s) = self.side(i) else { return };
        match (op, got) {
            (_, Got::Ino(ino, _)) => drop(s.known.insert(*ino)),
            (Op::List(_), Got::List(all)) => s.known.extend(all.values()),
            (Op::Stat(ino), Got::Errno(_)) => drop(s.known.remove(ino)),
            _ => {}
        }
    }
}

/// Frees an orphan a little later, if nobody has it open.
fn reap(vol: &Volume, ino: u64) {
    // an error leaves it to the next sweep
    let _ = luna_fs::orphan::reap(vol, ino);
}

fn replay(
    disk: &dyn Disk,
    sb: &luna_format::superblock::Superblock,
    (slot, incarnation): (u16, u64),
    epoch: u64,
    request_ms: u64,
    machine: &Machine,
) -> Result<(), String> {
    let region = sb.journal_region(slot);
    let proof = ReplayProof::Fenced(Fenced::attest(slot, incarnation, epoch));
    let head = luna_journal::inspect(disk, VOLUME, region, slot).map_err(|e| e.to_string())?;
    let mut plan = luna_journal::plan(disk, VOLUME, region, sb.homes(), slot, proof).map_err(|e| e.to_string())?;
    if !plan.is_clean() && plan.incarnation() == incarnation {
        machine.hear(Heard::Found((slot, incarnation), head.tail_sequence + plan.records() - 1));
    }
    let now = || machine.clock.load(std::sync::atomic::Ordering::Relaxed);
    let until = now() + request_ms;
    let mut again = || {
        luna_fs::Machine::sleep(machine, Duration::from_millis(20));
        now() < until
    };
    plan.settle(disk, &mut again).map_err(|e| e.to_string())?;
    plan.apply(disk, &|_| false).map(drop).map_err(|e| e.to_string())
}
