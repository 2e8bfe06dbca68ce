//! The lock cache of one host: what the data path calls. A granted right stays with the host until another host wants it, so
//! taking it again sends nothing and waits for nothing.
//!
//! **A right belongs to the host, not to a thread.** Two threads of one host may both have an EX [`Hold`] of one name; what they
//! do to shared memory is for their own mutex to order. A hold only promises that no *other host* holds an incompatible mode.
//!
//! Invariants:
//! - while a `Hold` of mode m lives, the host's granted mode covers m (until the host is withdrawn);
//! - `come_down` runs only when no live hold is above the new mode, on a worker thread, and the manager hears of it only afterwards;
//! - a waiter for whom a grant arrived gets its hold before the host comes down again, so every trip of a lock makes progress;
//! - to go up, the live holds drain first and newcomers queue behind, so a host that is asked to come down while its own request
//!   is queued always can. **A thread that has a PR hold and waits for EX on the same name waits for itself: drop first.**
//!
//! | event | granted covers it | what happens |
//! |---|---|---|
//! | `try_hold` | yes, gate open | hold, two atomics |
//! | `try_hold` | otherwise | nothing, `None` |
//! | `want` | yes, nobody asked us down | waker called at once |
//! | `want` | yes, but another host wants it | queue; come down; ask again |
//! | `want` | no | queue; drain local holds; request the join of what we have and what is wanted |
//! | last hold in the way drops | | come-down job is queued, or the request is sent |
//! | `granted` | | hook, then waiters at the front, then anything asked meanwhile |
//! | `bast` | | gate narrows; when drained: hook, release, ask again for waiters |
//! | polite `bast` | | idle: like `bast`; in use: answered `busy` |
//! | hook fails, `withdraw` | | every right is void, waiters get an error, for good |
//!
//! It does not know what a name means, does no I/O itself, and never calls a hook or waker with a lock of its own taken.

mod entry;
mod threads;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::{MutexGuard, RwLock};

use self::entry::{Busy, Entry, Slow, Step, Waiter, Wake, Waker};
pub use self::threads::{Answer, Job, Threads};
use self::workers::Workers;
use crate::mode::{Mode, ModeSet};
use crate::name::{Name, ValueBlock, merge};

const SHARDS: usize = 64;
/// Come-down jobs that may run at the same time.
const WORKERS: usize = 16;

/// Why a hold was not given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else uses it and the caller did not want to wait.
    #[error("the lock is in use elsewhere")]
    WouldBlock,
    /// This host no longer belongs to the cluster, or failed to write back; it holds no lock any more.
    #[error("this host was withdrawn and holds no locks; unmount and mount again")]
    Withdrawn,
}

/// The way to the lock manager. Called with an entry's mutex held: only enqueue, never call back into the cache.
pub trait Requester: Send + Sync {
    /// Ask for `mode`, which covers what is held.
    fn lock(&self, name: Name, mode: Mode, noqueue: bool);
    /// This host came down. `from` is what it believed to hold; the manager ignores a release that crossed a grant.
    fn release(&self, name: Name, from: Mode, to: Mode, value: Option<ValueBlock>);
    /// The answer to a polite BAST when the name is in use here.
    fn busy(&self, name: Name, wanted: Mode);
    /// A come-down hook failed and the cache withdrew itself: this host must stop using the volume.
    fn failed(&self, reason: &str);
    /// Work off what was enqueued, here and now if possible: called without any lock after the calls above, so that a name
    /// mastered on this host is granted without a thread hop. May call back into the cache.
    fn kick(&self) {}
}

/// What the owner of cached data does when rights come and go.
pub trait Hooks: Send + Sync {
    /// This host is about to go from `from` to `to`: no hold above `to` is alive, new ones wait. Write back what is dirty, forget
    /// what `to` does not allow. May do I/O; runs on a worker thread. Returns a value block to contribute.
    ///
    /// # Errors
    /// A text; the host is withdrawn and the right is never handed on.
    fn come_down(&self, name: &Name, from: Mode, to: Mode) -> Result<Option<ValueBlock>, String>;
    /// The manager granted `to`: forget what was cached without a right. Cheap; called before any hold is handed out.
    fn granted(&self, name: &Name, from: Mode, to: Mode, value: &ValueBlock);
}

/// Hooks that do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn come_down(&self, _: &Name, _: Mode, _: Mode) -> Result<Option<ValueBlock>, String> {
        Ok(None)
    }
    fn granted(&self, _: &Name, _: Mode, _: Mode, _: &ValueBlock) {}
}

/// A right in use: while it lives, this host does not come down below its mode. Dropping it is two atomics, or at most the
/// queueing of a job; it never does I/O.
pub struct Hold {
    entry: Arc<Entry>,
    mode: Mode,
}

impl Hold {
    /// The mode that was asked for.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// What is held.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.entry.name
    }

    /// False once the host was withdrawn: the hold is then worth nothing.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.entry.cache.upgrade().is_some_and(|cache| !cache.is_withdrawn())
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({} {})", self.entry.name, self.mode)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.entry.leave(self.mode)
            && let Some(cache) = self.entry.cache.upgrade()
        {
            cache.drive(&self.entry);
        }
    }
}

/// A name already looked up, kept by an open file so that the hot path skips the table.
#[derive(Clone)]
pub struct Handle {
    entry: Arc<Entry>,
}

impl Handle {
    /// See [`LockCache::try_hold`].
    #[must_use]
    pub fn try_hold(&self, mode: Mode) -> Option<Hold> {
        try_hold_entry(&self.entry, mode)
    }

    /// See [`LockCache::want`].
    pub fn want(&self, mode: Mode, waker: Box<dyn FnOnce(Result<Hold, LockError>) + Send>) {
        match self.entry.cache.upgrade() {
            Some(cache) => cache.want_entry(&self.entry, mode, false, waker),
            None => waker(Err(LockError::Withdrawn)),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.entry.name
    }

    /// The mode that may be taken right now without waiting.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.entry.open_mode()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({})", self.entry.name)
    }
}

fn try_hold_entry(entry: &Arc<Entry>, mode: Mode) -> Option<Hold> {
    let (entered, tell) = entry.try_enter(mode);
    if entered {
        entry.used.store(true, Relaxed);
        return Some(Hold { entry: Arc::clone(entry), mode });
    }
    if tell && let Some(cache) = entry.cache.upgrade() {
        cache.drive(entry);
    }
    None
}

/// What the cache did so far. Holds taken from the cache are not counted: that would cost as much as taking them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheCounters {
    /// Requests sent to the manager.
    pub requests: u64,
    /// Grants that arrived.
    pub grants: u64,
    /// Requests refused because they must not queue.
    pub denials: u64,
    /// Times another host wanted something that is held here.
    pub basts: u64,
    /// Times the answer was that it is in use.
    pub busy: u64,
    /// Times this host came down.
    pub come_downs: u64,
    /// Calls that could not be answered at once.
    pub waits: u64,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    grants: AtomicU64,
    denials: AtomicU64,
    basts: AtomicU64,
    busy: AtomicU64,
    come_downs: AtomicU64,
    waits: AtomicU64,
}

/// One name as `luna status` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheDump {
    /// What is locked.
    pub name: Name,
    /// The mode this host was granted.
    pub granted: Mode,
    /// Live holds.
    pub live: u32,
    /// Local callers that wait.
    pub waiters: usize,
    /// The mode asked from the manager and not yet granted.
    pub requested: Option<Mode>,
    /// Another host waits for this one to come down.
    pub asked_down: bool,
}

type Shard = RwLock<BTreeMap<Name, Arc<Entry>>>;

/// The lock cache of one host; see the module's text.
pub struct LockCache {
    shards: Vec<Shard>,
    requester: Option<Arc<dyn Requester>>,
    hooks: RwLock<Arc<dyn Hooks>>,
    withdrawn: AtomicBool,
    workers: Workers,
    threads: Option<Arc<dyn Threads>>,
    counts: Counts,
}

impl LockCache {
    fn build(requester: Option<Arc<dyn Requester>>, threads: Option<Arc<dyn Threads>>) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            requester,
            hooks: RwLock::new(Arc::new(NoHooks)),
            withdrawn: AtomicBool::new(false),
            workers: Workers::new(WORKERS),
            threads,
            counts: Counts::default(),
        })
    }

    /// A cache that asks `requester` for what it does not have.
    #[must_use]
    pub fn new(requester: Arc<dyn Requester>) -> Arc<Self> {
        Self::build(Some(requester), None)
    }

    /// The same without threads of its own: `threads` runs the come-down jobs and keeps whoever has to wait.
    #[must_use]
    pub fn driven(requester: Arc<dyn Requester>, threads: Arc<dyn Threads>) -> Arc<Self> {
        Self::build(Some(requester), Some(threads))
    }

    /// A cache without a cluster: every request is granted at once, exactly as asked. For mkfs, fsck and tests.
    #[must_use]
    pub fn local() -> Arc<Self> {
        Self::build(None, None)
    }

    /// Sets who is told when rights come and go. Set it before the first hold.
    pub fn set_hooks(&self, hooks: Arc<dyn Hooks>) {
        *self.hooks.write() = hooks;
    }

    /// The name's entry, kept by the caller: `handle.try_hold` skips the table.
    #[must_use]
    pub fn handle(self: &Arc<Self>, name: &Name) -> Handle {
        Handle { entry: self.entry(name) }
    }

    /// A hold if the right is here and nobody waits for it; never waits, sends nothing.
    #[must_use]
    pub fn try_hold(self: &Arc<Self>, name: &Name, mode: Mode) -> Option<Hold> {
        let shard = self.shard(name).read();
        let entry = Arc::clone(shard.get(name)?);
        drop(shard);
        try_hold_entry(&entry, mode)
    }

    /// Calls `waker` with the hold as soon as there is one: maybe at once on this thread, later on the thread that brought the
    /// grant or dropped the last hold in the way. A waker only hands on.
    pub fn want(self: &Arc<Self>, name: &Name, mode: Mode, waker: Box<dyn FnOnce(Result<Hold, LockError>) + Send>) {
        self.want_entry(&self.entry(name), mode, false, waker);
    }

    /// Waits for the hold. Not for FUSE threads.
    ///
    /// # Errors
    /// `Withdrawn`.
    pub fn hold(self: &Arc<Self>, name: &Name, mode: Mode) -> Result<Hold, LockError> {
        self.wait_for(name, mode, false)
    }

    /// The hold, or `WouldBlock` when a hold on this or another host is in the way. Waits for the answer, not for the lock: a right
    /// that another host merely has cached is taken from it.
    ///
    /// # Errors
    /// `WouldBlock`, `Withdrawn`.
    pub fn try_want(self: &Arc<Self>, name: &Name, mode: Mode) -> Result<Hold, LockError> {
        self.wait_for(name, mode, true)
    }

    /// As [`Self::try_want`], with a waker.
    pub fn want_now(self: &Arc<Self>, name: &Name, mode: Mode, waker: Box<dyn FnOnce(Result<Hold, LockError>) + Send>) {
        self.want_entry(&self.entry(name), mode, true, waker);
    }

    /// The manager granted `mode`.
    pub fn granted(self: &Arc<Self>, name: &Name, mode: Mode, value: ValueBlock) {
        self.counts.grants.fetch_add(1, Relaxed);
        self.change(name, |slow| slow.grant(mode, value));
    }

    /// The manager refused a request that must not queue.
    pub fn denied(self: &Arc<Self>, name: &Name, mode: Mode) {
        self.counts.denials.fetch_add(1, Relaxed);
        let mut waker = None;
        self.change(name, |slow| {
            if slow.requested.is_some_and(|(asked, noqueue)| asked == mode && noqueue) {
                slow.requested = None;
                // The request was the first waiter's; it stays first until answered.
                waker = slow.waiters.pop_front().map(|w| w.waker);
            }
        });
        if let Some(waker) = waker {
            waker(Err(LockError::WouldBlock));
        }
    }

    /// Another host wants `wanted`. A `polite` one only wants to know whether it can have it now.
    pub fn bast(self: &Arc<Self>, name: &Name, wanted: Mode, polite: bool) {
        self.counts.basts.fetch_add(1, Relaxed);
        self.change(name, |slow| {
            if polite {
                slow.polite = Some(slow.polite.map_or(wanted, |other| other.join(wanted)));
            } else {
                slow.wanted = slow.wanted.union(ModeSet::only(wanted));
            }
        });
    }

    /// This host lost its membership: every right is void, every waiter gets an error, for good.
    pub fn withdraw(self: &Arc<Self>) {
        self.withdrawn.store(true, SeqCst);
        for shard in &self.shards {
            let entries: Vec<_> = shard.read().values().map(Arc::clone).collect();
            entries.iter().for_each(|entry| self.drive(entry));
        }
    }

    /// Was the host withdrawn?
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(SeqCst)
    }

    /// The value block: as last granted, with what was contributed here.
    #[must_use]
    pub fn value(&self, name: &Name) -> ValueBlock {
        self.existing(name).map_or([0; 4], |entry| entry.slow.lock().value)
    }

    /// Adds to the value block; sent along when this host next comes down.
    pub fn contribute(self: &Arc<Self>, name: &Name, value: &ValueBlock) {
        self.entry(name).slow.lock().contribute(value);
    }

    /// The mode this host was granted, in use or not.
    #[must_use]
    pub fn mode(&self, name: &Name) -> Mode {
        self.existing(name).map_or(Mode::Nl, |entry| entry.slow.lock().granted)
    }

    /// Gives back every right that nobody uses.
    pub fn drop_unused(self: &Arc<Self>) {
        self.shrink(0);
    }

    /// Brings the table down towards `limit` names: forgets names without a right, gives back rights that were not used since the
    /// last call, longest first. Write-backs run on the workers; the names go at a later call.
    pub fn shrink(self: &Arc<Self>, limit: usize) {
        let mut idle = Vec::new();
        let mut total = 0;
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.retain(|_, entry| {
                // Only the table knows the entry and nobody can ask the table meanwhile.
                Arc::strong_count(entry) > 1 || !entry.slow.lock().is_nothing(entry)
            });
            total += shard.len();
            idle.extend(shard.values().filter(|entry| entry.live() == 0).map(Arc::clone));
        }
        idle.sort_by_cached_key(|entry| std::cmp::Reverse(entry.grow_older()));
        for entry in idle.into_iter().take(total.saturating_sub(limit)) {
            entry.slow.lock().shrink = true;
            self.drive(&entry);
        }
    }

    /// Names in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// No name in the table?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every name in the table, in order.
    #[must_use]
    pub fn dump(&self) -> Vec<CacheDump> {
        let mut all: Vec<_> = self.shards.iter().flat_map(|s| s.read().values().map(|e| e.dump()).collect::<Vec<_>>()).collect();
        all.sort_by_key(|line| line.name);
        all
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> CacheCounters {
        let c = &self.counts;
        CacheCounters {
            requests: c.requests.load(Relaxed),
            grants: c.grants.load(Relaxed),
            denials: c.denials.load(Relaxed),
            basts: c.basts.load(Relaxed),
            busy: c.busy.load(Relaxed),
            come_downs: c.come_downs.load(Relaxed),
            waits: c.waits.load(Relaxed),
        }
    }

    fn shard(&self, name: &Name) -> &Shard {
        let (low, high) = name.words();
        let mixed = (low ^ high.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(mixed >> 58) as usize % SHARDS]
    }

    fn existing(&self, name: &Name) -> Option<Arc<Entry>> {
        self.shard(name).read().get(name).map(Arc::clone)
    }

    fn entry(self: &Arc<Self>, name: &Name) -> Arc<Entry> {
        if let Some(entry) = self.existing(name) {
            return entry;
        }
        let mut shard = self.shard(name).write();
        Arc::clone(shard.entry(*name).or_insert_with(|| Arc::new(Entry::new(*name, Arc::downgrade(self)))))
    }

    fn change(self: &Arc<Self>, name: &Name, change: impl FnOnce(&mut Slow)) {
        let entry = self.entry(name);
        change(&mut entry.slow.lock());
        self.drive(&entry);
    }

    fn want_entry(self: &Arc<Self>, entry: &Arc<Entry>, mode: Mode, noqueue: bool, waker: Waker) {
        if self.is_withdrawn() {
            return waker(Err(LockError::Withdrawn));
        }
        if let Some(hold) = try_hold_entry(entry, mode) {
            return waker(Ok(hold));
        }
        self.counts.waits.fetch_add(1, Relaxed);
        entry.slow.lock().waiters.push_back(Waiter { mode, noqueue, waker });
        self.drive(entry);
    }

    fn wait_for(self: &Arc<Self>, name: &Name, mode: Mode, noqueue: bool) -> Result<Hold, LockError> {
        let entry = self.entry(name);
        if let Some(hold) = try_hold_entry(&entry, mode) {
            return if self.is_withdrawn() { Err(LockError::Withdrawn) } else { Ok(hold) };
        }
        let answer = Arc::new(Answer::default());
        let theirs = Arc::clone(&answer);
        self.want_entry(&entry, mode, noqueue, Box::new(move |result| theirs.give(result)));
        answer.take(self.threads.as_deref())
    }

    /// Does what the entry's state asks for until there is nothing left to do.
    fn drive(self: &Arc<Self>, entry: &Arc<Entry>) {
        let mut wakes = Vec::new();
        loop {
            let mut slow = entry.slow.lock();
            match slow.plan(entry, self.is_withdrawn(), &mut wakes) {
                Step::Done => break,
                Step::Settle { from, to, value } => self.settle(entry, slow, from, to, &value),
                Step::ComeDown { from, to } => {
                    drop(slow);
                    let (cache, entry) = (Arc::clone(self), Arc::clone(entry));
                    let job: Job = Box::new(move || cache.come_down(&entry, from, to));
                    match &self.threads {
                        Some(threads) => threads.spawn(job),
                        None => self.workers.push(job),
                    }
                }
                Step::Request { mode, noqueue } => self.request(entry, &mut slow, mode, noqueue),
                Step::Busy { wanted } => {
                    self.counts.busy.fetch_add(1, Relaxed);
                    if let Some(requester) = &self.requester {
                        requester.busy(entry.name, wanted);
                    }
                }
            }
        }
        deliver(entry, wakes);
        if let Some(requester) = &self.requester {
            requester.kick();
        }
    }

    fn settle(&self, entry: &Entry, slow: MutexGuard<'_, Slow>, from: Mode, to: Mode, value: &ValueBlock) {
        drop(slow);
        let hooks = Arc::clone(&self.hooks.read());
        hooks.granted(&entry.name, from, to, value);
        let mut slow = entry.slow.lock();
        slow.granted = to;
        merge(&mut slow.value, value);
        slow.fresh = true;
        slow.busy = Busy::No;
    }

    fn request(&self, entry: &Entry, slow: &mut Slow, mode: Mode, noqueue: bool) {
        self.counts.requests.fetch_add(1, Relaxed);
        match &self.requester {
            Some(requester) => requester.lock(entry.name, mode, noqueue),
            None => slow.grant(mode, slow.value),
        }
    }

    /// One come-down job, on a worker.
    fn come_down(self: &Arc<Self>, entry: &Arc<Entry>, from: Mode, to: Mode) {
        let hooks = Arc::clone(&self.hooks.read());
        let result = if self.is_withdrawn() { Ok(None) } else { hooks.come_down(&entry.name, from, to) };
        let mut slow = entry.slow.lock();
        slow.busy = Busy::No;
        match result {
            Ok(_) if self.is_withdrawn() => {}
            Ok(value) => {
                if let Some(value) = value {
                    slow.contribute(&value);
                }
                slow.granted = to;
                self.counts.come_downs.fetch_add(1, Relaxed);
                // A grant that arrived meanwhile replaces what was given up: the manager would ignore this release.
                if slow.late_grant.is_none()
                    && let Some(requester) = &self.requester
                {
                    requester.release(entry.name, from, to, slow.contributed.take());
                }
            }
            Err(reason) => {
                drop(slow);
                self.withdraw();
                if let Some(requester) = &self.requester {
                    requester.failed(&format!("lock {}: could not write back from {from} to {to}: {reason}", entry.name));
                }
                return;
            }
        }
        drop(slow);
        self.drive(entry);
    }
}

impl std::fmt::Debug for LockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LockCache").field("names", &self.len()).field("withdrawn", &self.is_withdrawn()).finish_non_exhaustive()
    }
}

fn deliver(entry: &Arc<Entry>, wakes: Vec<Wake>) {
    for (waker, mode, result) in wakes {
        waker(result.map(|()| Hold { entry: Arc::clone(entry), mode }));
    }
}

#[cfg(test)]
mod tests;
