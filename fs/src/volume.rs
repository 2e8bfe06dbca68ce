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
use crate::meta::{Busy, Meta};
use crate::tx::{Effect, Rights, Tx};
use luna_dlm::{Hold, LockCache, Mode, Name};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, Expect, Kind, Slot, Stamp, VolumeId};
use luna_journal::{Image, Journal, Sequence};
use luna_lun::{DataQueue, Disk};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How often a body may run again before the operation is given up as a bug of ours.
const MAX_RUNS: u32 = 1_000_000;

/// What the rest of the host wants to hear about committed transactions. Called under the metadata mutex: must be quick and
/// must not call back.
pub trait Listener: Send + Sync {
    /// A transaction with these effects was committed.
    fn committed(&self, effects: &[Effect]);
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
    pub(crate) data_dirty: AtomicBool,
    listener: OnceLock<Arc<dyn Listener>>,
    withdrawn: OnceLock<String>,
    last_ns: AtomicU64,
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
    /// Come back at once when a lock is not cached here (FUSE threads).
    No,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ran<T> {
    /// Done; the journal batch its changes are in (or the batch of the day if it changed nothing).
    Done(T, Sequence),
    /// It would have to wait for another host: run again with [`Wait::Yes`] on a thread that may.
    WouldWait,
}

/// What an operation is known to need; grows with its stops and survives from one run to the next.
pub type Needs = BTreeMap<Name, Mode>;

type Held = BTreeMap<Name, (Mode, Hold)>;

impl Volume {
    /// Assembles a volume.
    pub fn new(p: Parts) -> Arc<Self> {
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
            meta: Mutex::new(Meta::default()),
            writeback: Mutex::new(()),
            data_dirty: AtomicBool::new(false),
            listener: OnceLock::new(),
            withdrawn: OnceLock::new(),
            last_ns: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
        })
    }

    /// Names the listener; once.
    pub fn listen(&self, l: Arc<dyn Listener>) {
        let _ = self.listener.set(l);
    }

    /// Nanoseconds since 1970; never the same twice and never falling on one host, so that a changed mtime always differs.
    pub fn now_ns(&self) -> i64 {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let prev = self.last_ns.fetch_max(wall, Ordering::Relaxed);
        if prev < wall { wall as i64 } else { self.last_ns.fetch_add(1, Ordering::Relaxed) as i64 + 1 }
    }

    /// This host stops using the volume. The first reason stays.
    pub fn withdraw(&self, reason: &str) {
        if self.withdrawn.set(reason.to_owned()).is_ok() {
            tracing::error!(reason, "withdrawn from the volume");
            self.locks.withdraw();
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
    pub fn run_with<T>(&self, needs: &mut Needs, wait: Wait, mut body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<Ran<T>, FsError> {
        let mut held = Held::new();
        for attempt in 0..MAX_RUNS {
            self.check_active()?;
            self.runs.fetch_add(1, Ordering::Relaxed);
            self.restarts.fetch_add(u64::from(attempt > 0), Ordering::Relaxed);
            if !self.take(needs, &mut held, wait)? {
                return Ok(Ran::WouldWait);
            }
            let rights: Rights = held.iter().map(|(n, (m, _))| (*n, *m)).collect();
            let stop = match self.attempt(&rights, &mut body) {
                Ok((v, seq)) => return Ok(Ran::Done(v, seq)),
                Err(stop) => stop,
            };
            match stop {
                Stop::Error(e) => return Err(e),
                Stop::Block(f) => self.fetch(&f)?,
                Stop::Lock(name, mode) => learn(needs, &mut held, name, mode),
                Stop::Journal => {
                    drop(std::mem::take(&mut held));
                    self.checkpoint()?;
                }
            }
        }
        Err(FsError::Invalid("operation restarted without end"))
    }

    /// Runs a body under rights the caller already has (the lock cache's hook, recovery): no lock is taken.
    pub fn run_under<T>(&self, rights: &Rights, mut body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<T, FsError> {
        for _ in 0..MAX_RUNS {
            match self.attempt(rights, &mut body) {
                Ok((v, _)) => return Ok(v),
                Err(Stop::Error(e)) => return Err(e),
                Err(Stop::Block(f)) => self.fetch(&f)?,
                Err(Stop::Lock(..)) => return Err(FsError::WouldBlock),
                Err(Stop::Journal) => self.checkpoint()?,
            }
        }
        Err(FsError::Invalid("operation restarted without end"))
    }

    /// Takes all of `needs`, in order. `false` when that would wait and must not.
    fn take(&self, needs: &Needs, held: &mut Held, wait: Wait) -> Result<bool, FsError> {
        for (name, mode) in needs {
            if held.get(name).is_some_and(|(m, _)| m.covers(*mode)) {
                continue;
            }
            // whoever waits holds nothing that sorts after what it waits for
            held.retain(|n, _| n < name);
            let hold = match self.locks.try_hold(name, *mode) {
                Some(h) => h,
                None if wait == Wait::No => return Ok(false),
                None => self.locks.hold(name, *mode).map_err(|e| FsError::Withdrawn(e.to_string()))?,
            };
            held.insert(*name, (*mode, hold));
        }
        Ok(true)
    }

    /// One run of the body and, when it succeeds, its commit, under the metadata mutex.
    fn attempt<T>(&self, rights: &Rights, body: &mut impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<(T, Sequence), Stop> {
        let mut meta = self.meta.lock();
        let mut tx = Tx::new(&self.sb, self.id, self.slot, self.now_ns(), &mut meta, rights);
        let value = body(&mut tx)?;
        let Tx { staged, freed, effects, .. } = tx;
        let sequence = self.commit(&mut meta, staged, &freed)?;
        if !effects.is_empty()
            && let Some(l) = self.listener.get()
        {
            l.committed(&effects);
        }
        Ok((value, sequence))
    }

    fn commit(
        &self,
        meta: &mut Meta,
        staged: BTreeMap<u64, crate::tx::Staged>,
        freed: &[(u64, u64, bool)],
    ) -> Result<Sequence, Stop> {
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
        for (block, image, kind, lock) in sealed {
            meta.update(block, image, kind, lock, sequence);
        }
        for (start, len, trim) in freed {
            meta.busy.insert(*start, Busy { len: *len, sequence, trim: *trim && self.discard });
        }
        Ok(sequence)
    }

    /// Reads a block into the cache. The caller holds its lock.
    fn fetch(&self, f: &Fetch) -> Result<(), FsError> {
        if f.block >= self.sb.total_blocks {
            return Err(luna_format::CheckError::Field { block: f.block, what: "address of a metadata block", found: f.block }.into());
        }
        self.meta.lock().fetch_begin();
        let read = self.read_block(f);
        let done = read.as_ref().ok().map(|image| (Arc::clone(image), f.kind, f.lock));
        self.meta.lock().fetch_end(f.block, done);
        read.map(|_| ())
    }

    fn read_block(&self, f: &Fetch) -> Result<Arc<Block>, FsError> {
        let mut b = Block::zeroed();
        self.disk.read_at(&mut b.0, f.block * BLOCK_U64)?;
        luna_format::open(&b, &Expect { kind: f.kind, volume: self.id, block: f.block, owner: Some(f.owner) })?;
        if f.kind == Kind::Inode {
            luna_format::inode::check(&b)?;
        }
        Ok(Arc::new(b))
    }

    /// Data reached the LUN's cache that the next commit may depend on.
    pub fn note_data_write(&self) {
        self.data_dirty.store(true, Ordering::Release);
        self.journal.note_data_write();
    }

    /// Everything up to batch `seq`, and all data answered before, is durable when this returns.
    pub fn sync_to(&self, seq: Sequence) -> Result<(), FsError> {
        self.check_active()?;
        if self.journal.durable() < seq {
            self.journal.flush_to(seq).map_err(|e| self.journal_failed(&e))?;
        }
        if self.data_dirty.swap(false, Ordering::AcqRel)
            && let Err(e) = self.disk.flush()
        {
            self.withdraw(&format!("flush failed: {e}"));
            return Err(e.into());
        }
        self.check_active()
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

/// Notes a need a body stopped for; what is held in a weaker mode or sorts later is given back first.
fn learn(needs: &mut Needs, held: &mut Held, name: Name, mode: Mode) {
    let joined = match needs.get(&name) {
        Some(old) if old.covers(mode) => *old,
        Some(old) if mode.covers(*old) => mode,
        Some(_) => Mode::Ex,
        None => mode,
    };
    needs.insert(name, joined);
    held.retain(|n, _| *n < name);
}
