//! One mounted volume on one host: the driver that runs operation bodies, and everything they stand on.
//!
//! [`Volume::run`] is the only door to the metadata. It takes the rights an operation names, in lock order, runs its body
//! under the metadata mutex, and on a stop fetches what was missing and runs it again. When the body succeeds, its overlay
//! becomes one journal transaction in the same critical section.
//!
//! Invariants: while waiting for a lock, only locks that sort before it are held (no deadlock between hosts); nothing waits
//! or does I/O under the metadata mutex; a transaction is in the journal's batch before anyone else can see its effect.
//! Not here: write-back (`checkpoint`), what the bodies do (`op`), FUSE.

use crate::error::{Fetch, FsError, Step, Stop};
use crate::freeze::Freeze;
use crate::machine::Machine;
use crate::meta::{Busy, Meta};
use crate::tx::{Effect, Rights, Tx};
use luna_dlm::{Hold, LockCache, Mode, Name};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, Expect, Kind, Slot, Stamp, VolumeId};
use luna_journal::{Image, Journal, Sequence};
use luna_lun::{DataQueue, Disk};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use zerocopy::IntoBytes;

/// How often a body may run again before the operation is given up as a bug of ours.
const MAX_RUNS: u32 = 1_000_000;
/// Bitmap blocks of a group read at once (a group of 1 GiB has 9).
const BITMAPS_AHEAD: u64 = 32;

/// What the rest of the host wants to hear about committed transactions. Called under the metadata mutex: must be quick and
/// must not call back.
pub trait Listener: Send + Sync {
    /// Much metadata is in memory: the background thread should not wait for its next round. Called under the metadata mutex.
    fn crowded(&self) {}

    /// A transaction with these effects was committed.
    fn committed(&self, effects: &[Effect]);

    /// Whether a file is open on this host. Asked by the reaper before it frees an inode.
    fn is_open(&self, _ino: luna_format::Ino) -> bool {
        false
    }
}

/// What a volume is opened with.
pub struct Parts {
    /// The shape.
    pub sb: Superblock,
    /// The identity.
    pub id: VolumeId,
    /// This host's slot.
    pub slot: Slot,
    /// The epoch it joined in.
    pub epoch: u64,
    /// The LUN, synchronous.
    pub disk: Arc<dyn Disk>,
    /// The LUN, many in flight.
    pub queue: Arc<dyn DataQueue>,
    /// This slot's journal, opened.
    pub journal: Journal,
    /// The lock cache.
    pub locks: Arc<LockCache>,
    /// Discard freed blocks on the LUN.
    pub discard: bool,
}

/// Told why this host withdrew.
pub type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// A mounted volume.
pub struct Volume {
    /// The shape.
    pub sb: Superblock,
    /// The identity.
    pub id: VolumeId,
    /// This host's slot.
    pub slot: Slot,
    /// The epoch stamped on blocks.
    pub epoch: AtomicU64,
    /// The LUN, synchronous.
    pub disk: Arc<dyn Disk>,
    /// The LUN, many in flight.
    pub queue: Arc<dyn DataQueue>,
    /// This slot's journal.
    pub journal: Journal,
    /// The lock cache.
    pub locks: Arc<LockCache>,
    /// Discard freed blocks on the LUN.
    pub discard: bool,
    pub(crate) meta: Mutex<Meta>,
    pub(crate) writeback: Mutex<()>,
    pub(crate) zeroing: Mutex<()>,
    pub(crate) freeze: Freeze,
    listener: OnceLock<Arc<dyn Listener>>,
    withdrawn: OnceLock<String>,
    on_withdraw: OnceLock<Tell>,
    last_ns: AtomicU64,
    /// Stands for the system's clock and threads, where they are not used.
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// Runs of bodies, and how many of them were repeats.
    pub runs: AtomicU64,
    /// Repeats.
    pub restarts: AtomicU64,
}

/// Whether the caller may wait for other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait as long as it takes (worker threads).
    Yes,
    /// Come back at once when a lock is not cached here, or when it takes more than reading a block (FUSE threads).
    No,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ran<T> {
    /// Done; the journal batch its changes are in (or the batch of the day if it changed nothing).
    Done(T, Sequence),
    /// It would have to wait for another host, or long for the disk: run again with [`Wait::Yes`] on a thread that may.
    WouldWait,
}

/// What an operation is known to need; grows with its stops and survives from one run to the next.
pub type Needs = BTreeMap<Name, Mode>;

type Held = BTreeMap<Name, (Mode, Hold)>;

impl Volume {
    /// Assembles a volume.
    pub fn new(p: Parts) -> Arc<Self> {
        Self::on(p, None)
    }

    /// The same on a machine that is not the real one.
    pub fn driven(p: Parts, machine: Arc<dyn Machine>) -> Arc<Self> {
        Self::on(p, Some(machine))
    }

    fn on(p: Parts, machine: Option<Arc<dyn Machine>>) -> Arc<Self> {
        Arc::new(Self {
            sb: p.sb,
            id: p.id,
            slot: p.slot,
            epoch: AtomicU64::new(p.epoch),
            disk: p.disk,
            queue: p.queue,
            journal: p.journal,
            locks: p.locks,
            discard: p.discard,
            meta: Mutex::new(Meta::at_home(u64::from(p.slot) * p.sb.ag_count / u64::from(p.sb.slots.max(1)), p.sb.ag_count)),
            writeback: Mutex::new(()),
            zeroing: Mutex::new(()),
            freeze: Freeze::default(),
            listener: OnceLock::new(),
            withdrawn: OnceLock::new(),
            on_withdraw: OnceLock::new(),
            last_ns: AtomicU64::new(0),
            machine,
            runs: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
        })
    }

    /// Names the listener; once.
    pub fn listen(&self, l: Arc<dyn Listener>) {
        let _ = self.listener.set(l);
    }

    /// Whether a file is open on this host, as far as the listener knows.
    pub fn is_open(&self, ino: luna_format::Ino) -> bool {
        self.listener.get().is_some_and(|l| l.is_open(ino))
    }

    /// Nanoseconds since 1970; never the same twice and never falling on one host, so that a changed mtime always differs.
    pub fn now_ns(&self) -> i64 {
        let wall = self.machine.as_ref().map_or_else(crate::machine::wall_ns, |m| m.now_ns());
        let prev = self.last_ns.fetch_max(wall, Ordering::Relaxed);
        if prev < wall { wall as i64 } else { self.last_ns.fetch_add(1, Ordering::Relaxed) as i64 + 1 }
    }

    /// Names who is told that this host withdrew by itself; once. Called from anywhere: must only queue.
    pub fn on_withdraw(&self, tell: Tell) {
        let _ = self.on_withdraw.set(tell);
    }

    /// This host stops using the volume. The first reason stays.
    pub fn withdraw(&self, reason: &str) {
        if self.withdrawn.set(reason.to_owned()).is_ok() {
            tracing::error!(reason, "withdrawn from the volume");
            self.locks.withdraw();
            if let Some(tell) = self.on_withdraw.get() {
                tell(reason);
            }
        }
    }

    /// Fails when this host has withdrawn.
    pub fn check_active(&self) -> Result<(), FsError> {
        self.withdrawn.get().map_or(Ok(()), |r| Err(FsError::Withdrawn(r.clone())))
    }

    /// Runs an operation that may wait; gives its value.
    pub fn run<T>(&self, body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<T, FsError> {
        self.run_seq(body).map(|(v, _)| v)
    }

    /// Runs an operation that may wait; gives its value and the journal batch it is in.
    pub fn run_seq<T>(&self, body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<(T, Sequence), FsError> {
        match self.run_with(&mut Needs::new(), Wait::Yes, body)? {
            Ran::Done(v, s) => Ok((v, s)),
            Ran::WouldWait => Err(FsError::WouldBlock),
        }
    }

    /// Runs an operation. `needs` may be filled beforehand with what it is known to need (saves runs) and keeps what was
    /// learnt, so that a body that would wait on a FUSE thread goes on elsewhere with that knowledge.
    pub fn run_with<T>(&self, needs: &mut Needs, wait: Wait, body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<Ran<T>, FsError> {
        self.run_given(&Rights::new(), needs, wait, body)
    }

    /// As [`Volume::run_with`], for a caller that already holds the rights `given` (and keeps them): they are not taken again,
    /// because taking what one holds waits for oneself once another host wants it.
    pub fn run_given<T>(
        &self,
        given: &Rights,
        needs: &mut Needs,
        wait: Wait,
        mut body: impl FnMut(&mut Tx<'_>) -> Step<T>,
    ) -> Result<Ran<T>, FsError> {
        let mut held = Held::new();
        for attempt in 0..MAX_RUNS {
            self.check_active()?;
            self.runs.fetch_add(1, Ordering::Relaxed);
            self.restarts.fetch_add(u64::from(attempt > 0), Ordering::Relaxed);
            if !self.take(needs, &mut held, wait)? {
                return Ok(Ran::WouldWait);
            }
            let mut rights: Rights = held.iter().map(|(n, (m, _))| (*n, *m)).collect();
            rights.extend(given.iter().map(|(n, m)| (*n, *m)));
            let stop = match self.attempt(&rights, || self.freeze.allows(), &mut body) {
                Ok((v, seq)) => return Ok(Ran::Done(v, seq)),
                Err(stop) => stop,
            };
            match stop {
                Stop::Error(e) => return Err(e),
                Stop::Block(f) => self.fetch(&f)?,
                // too long for a thread that others wait for
                Stop::Zero { .. } | Stop::Journal if wait == Wait::No => return Ok(Ran::WouldWait),
                Stop::Frozen if wait == Wait::No => {
                    // one mastered on this host is here now
                    self.ask_to_thaw();
                    if self.freeze.allows().is_err() {
                        return Ok(Ran::WouldWait);
                    }
                }
                Stop::Zero { start, len } => self.zero_segment(start, len)?,
                Stop::Lock(name, _) if given.contains_key(&name) => return Err(FsError::Invalid("the right given is too weak")),
                Stop::Lock(name, mode) => learn(needs, name, mode),
                Stop::Journal => {
                    drop(std::mem::take(&mut held));
                    self.checkpoint()?;
                }
                Stop::Frozen => {
                    drop(std::mem::take(&mut held));
                    self.until_thawed()?;
                }
            }
        }
        Err(FsError::Invalid("operation restarted without end"))
    }

    /// Runs a body under rights the caller already has (the lock cache's hook, recovery): no lock is taken. A freeze does not stop
    /// it, because it may wait for this right.
    pub fn run_under<T>(&self, rights: &Rights, mut body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<T, FsError> {
        for _ in 0..MAX_RUNS {
            match self.attempt(rights, || Ok(()), &mut body) {
                Ok((v, _)) => return Ok(v),
                Err(Stop::Error(e)) => return Err(e),
                Err(Stop::Block(f)) => self.fetch(&f)?,
                Err(Stop::Zero { start, len }) => self.zero_segment(start, len)?,
                Err(Stop::Lock(..) | Stop::Frozen) => return Err(FsError::WouldBlock),
                Err(Stop::Journal) => self.checkpoint()?,
            }
        }
        Err(FsError::Invalid("operation restarted without end"))
    }

    /// A hold without waiting. On a thread that must not wait, a right that is not cached is asked for all the same: one mastered
    /// on this host is here before the call returns, any other is under way while the operation goes to a thread that may wait.
    fn grab(&self, name: &Name, mode: Mode, wait: Wait) -> Option<Hold> {
        let cached = self.locks.try_hold(name, mode);
        if cached.is_some() || wait == Wait::Yes {
            return cached;
        }
        let answer = Arc::new(Mutex::new((true, None)));
        let theirs = Arc::clone(&answer);
        let waker = move |hold: Result<Hold, luna_dlm::LockError>| {
            let mut a = theirs.lock();
            if a.0 {
                a.1 = hold.ok();
            }
        };
        self.locks.want(name, mode, Box::new(waker));
        let mut a = answer.lock();
        a.0 = false;
        a.1.take()
    }

    /// Takes all of `needs`, in order. `false` when that would wait and must not.
    fn take(&self, needs: &Needs, held: &mut Held, wait: Wait) -> Result<bool, FsError> {
        for (name, mode) in needs {
            if held.get(name).is_some_and(|(m, _)| m.covers(*mode)) {
                continue;
            }
            // a weaker right of ours would be in our own way
            held.remove(name);
            let hold = match self.grab(name, *mode, wait) {
                Some(h) => h,
                None if wait == Wait::No => return Ok(false),
                None => {
                    // whoever waits holds nothing that sorts after what it waits for
                    held.retain(|n, _| n < name);
                    self.locks.hold(name, *mode).map_err(|e| FsError::Withdrawn(e.to_string()))?
                }
            };
            held.insert(*name, (*mode, hold));
        }
        Ok(true)
    }

    /// One run of the body and, when it succeeds, its commit, under the metadata mutex. `allowed` is asked before anything is changed.
    fn attempt<T>(
        &self,
        rights: &Rights,
        allowed: impl FnOnce() -> Step<()>,
        body: &mut impl FnMut(&mut Tx<'_>) -> Step<T>,
    ) -> Result<(T, Sequence), Stop> {
        let mut meta = self.meta.lock();
        let mut tx = Tx::new(&self.sb, self.id, self.slot, self.now_ns(), &mut meta, rights);
        let value = body(&mut tx)?;
        let Tx { staged, freed, spent, effects, .. } = tx;
        if !staged.is_empty() {
            allowed()?;
        }
        let sequence = self.commit(&mut meta, staged, &freed)?;
        for segment in &spent {
            meta.zeroed.remove(segment);
        }
        if let Some(l) = self.listener.get() {
            if !effects.is_empty() {
                l.committed(&effects);
            }
            if crate::syncer::is_crowded(&meta) {
                l.crowded();
            }
        }
        Ok((value, sequence))
    }

    fn commit(&self, meta: &mut Meta, staged: BTreeMap<u64, crate::tx::Staged>, freed: &[(u64, u64, bool)]) -> Result<Sequence, Stop> {
        if staged.is_empty() {
            return Ok(self.journal.running());
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        let mut sealed = Vec::with_capacity(staged.len());
        for (block, mut s) in staged {
            let stamp = Stamp { kind: s.kind, volume: self.id, block, owner: s.owner, version: s.base + 1, writer: self.slot, epoch };
            luna_format::seal(&mut s.block, &stamp);
            sealed.push((block, Arc::from(s.block), s.kind, s.lock));
        }
        let images = sealed.iter().map(|(block, image, ..)| Image { block: *block, bytes: Arc::clone(image) }).collect();
        let sequence = match self.journal.append(images) {
            Ok(s) => s,
            Err(luna_journal::JournalError::Full { .. }) => return Err(Stop::Journal),
            Err(e) => {
                self.withdraw(&e.to_string());
                return Err(FsError::Withdrawn(e.to_string()).into());
            }
        };
        let kept: std::collections::BTreeSet<u64> = sealed.iter().map(|s| s.0).collect();
        for (block, image, kind, lock) in sealed {
            meta.update(block, image, kind, lock, sequence);
        }
        for (start, len, trim) in freed {
            // freed metadata is nobody's: its old image is not found again (a cleared inode's new one is)
            if !*trim {
                (*start..start + len).filter(|b| !kept.contains(b)).for_each(|b| meta.purge(b));
            }
            meta.busy.insert(*start, Busy { len: *len, sequence, trim: *trim && self.discard });
        }
        Ok(sequence)
    }

    /// Reads a block into the cache. The caller holds its lock.
    fn fetch(&self, f: &Fetch) -> Result<(), FsError> {
        if f.block >= self.sb.total_blocks {
            return Err(luna_format::CheckError::Field { block: f.block, what: "address of a metadata block", found: f.block }.into());
        }
        if f.kind == Kind::AgBitmap {
            return self.fetch_bitmaps(f);
        }
        let fetch = self.meta.lock().fetch_begin();
        let read = self.read_block(f);
        let done = read.as_ref().ok().map(|image| (Arc::clone(image), f.kind, f.lock));
        self.meta.lock().fetch_end(fetch, f.block, done);
        read.map(|_| ())
    }

    /// Reads a bitmap and those behind it in one request: whoever looks for space looks at all of them.
    fn fetch_bitmaps(&self, f: &Fetch) -> Result<(), FsError> {
        let (start, blocks) = self.sb.ag_region(f.owner.min(self.sb.ag_count - 1));
        let end = start + 1 + luna_format::ag::bitmaps_for(blocks);
        let mut read = Block::zeroed_vec(end.saturating_sub(f.block).clamp(1, BITMAPS_AHEAD) as usize);
        let fetches: Vec<_> = read.iter().map(|_| self.meta.lock().fetch_begin()).collect();
        let done = self.disk.read_at(read.as_mut_bytes(), f.block * BLOCK_U64);
        let mut first = Ok(());
        let mut meta = self.meta.lock();
        for ((n, b), fetch) in read.into_iter().enumerate().zip(fetches) {
            let one = Fetch { block: f.block + n as u64, ..*f };
            let checked = if done.is_ok() { self.check_read(&one, &b) } else { Ok(()) };
            let good = done.is_ok() && checked.is_ok();
            meta.fetch_end(fetch, one.block, good.then(|| (Arc::new(b), f.kind, f.lock)));
            if n == 0 {
                first = checked;
            }
        }
        done?;
        first
    }

    fn read_block(&self, f: &Fetch) -> Result<Arc<Block>, FsError> {
        let mut b = Block::zeroed();
        self.disk.read_at(&mut b.0, f.block * BLOCK_U64)?;
        self.check_read(f, &b)?;
        Ok(Arc::new(b))
    }

    /// Whether what was read is what was asked for, and sound.
    fn check_read(&self, f: &Fetch, b: &Block) -> Result<(), FsError> {
        match luna_format::open(b, &Expect { kind: f.kind, volume: self.id, block: f.block, owner: Some(f.owner) }) {
            Ok(_) => {}
            // the inode was freed and its block serves another purpose now; whoever asks had the number from long ago
            Err(luna_format::CheckError::Kind { .. }) if f.kind == Kind::Inode => return Err(FsError::Stale),
            Err(e) => return Err(e.into()),
        }
        if f.kind == Kind::Inode {
            luna_format::inode::check(b)?;
        }
        Ok(crate::extent::check_block(b, f.kind, &self.sb)?)
    }

    /// Fills a free segment with zeroes on the LUN, durably, so that no byte a guest ever wrote there can pass for a metadata
    /// block (rule R7). The caller holds the group's lock; meanwhile the segment counts as busy, so nobody here uses it.
    fn zero_segment(&self, start: u64, len: u64) -> Result<(), FsError> {
        let _one = self.zeroing.lock();
        {
            let mut meta = self.meta.lock();
            if !crate::alloc::may_zero(&mut meta, &self.sb, start, len) {
                return Ok(());
            }
            meta.busy.insert(start, Busy { len, sequence: Sequence::MAX, trim: false });
        }
        let done = self.disk.write_zeroes(start * BLOCK_U64, len * BLOCK_U64).and_then(|()| self.disk.flush());
        let mut meta = self.meta.lock();
        crate::alloc::not_busy(&mut meta, &self.sb, start);
        if let Some(ag) = self.sb.ag_of(start).filter(|_| done.is_ok()) {
            meta.zeroed.insert(start, ag);
        }
        Ok(done?)
    }

    /// Data reached the LUN's cache that the next commit may depend on.
    pub fn note_data_write(&self) {
        self.journal.note_data_write();
    }

    /// Everything up to batch `seq`, and all data answered before, is durable when this returns.
    pub fn sync_to(&self, seq: Sequence) -> Result<(), FsError> {
        self.check_active()?;
        if self.journal.durable() < seq {
            self.journal.flush_to(seq).map_err(|e| self.journal_failed(&e))?;
        }
        self.flush_data()?;
        self.check_active()
    }

    /// All data answered before is durable when this returns. One flush serves all who wait for it.
    pub fn flush_data(&self) -> Result<(), FsError> {
        self.journal.flush_data().map_err(|e| {
            self.withdraw(&format!("flush failed: {e}"));
            e.into()
        })
    }

    /// What is cached under `name` is not valid any more: the right is going, or has gone.
    pub fn forget(&self, name: &Name) {
        self.meta.lock().forget(name);
    }

    /// The newest journal batch that changed something under `name` and is not at home yet.
    pub fn last_change(&self, name: &Name) -> Option<Sequence> {
        self.meta.lock().last_change(name)
    }

    /// Everything is durable when this returns.
    pub fn sync_all(&self) -> Result<(), FsError> {
        self.sync_to(self.journal.running())
    }

    pub(crate) fn journal_failed(&self, e: &luna_journal::JournalError) -> FsError {
        self.withdraw(&e.to_string());
        FsError::Withdrawn(e.to_string())
    }
}

/// Notes a need a body stopped for.
fn learn(needs: &mut Needs, name: Name, mode: Mode) {
    let joined = needs.get(&name).map_or(mode, |old| old.join(mode));
    needs.insert(name, joined);
}
