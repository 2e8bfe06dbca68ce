//! Files without a name: listed in their host's orphan directory until nobody has them open, then freed.
//!
//! [`enlist`] runs inside the transaction that takes the last name. [`Reaper`] is a thread that frees: it asks for the open
//! right of the inode, alone and without waiting; whoever has the file open, on whatever host, holds that right too, and
//! wakes its own reaper at the last close. What was missed is found by a sweep of the own directory.
//!
//! Invariants: an inode with [`FLAG_ORPHAN`] is listed in the orphan directory of its `orphan_slot` and nowhere else; it is
//! freed in bounded transactions, the last of which takes it off the list, leaves a cleared image (a late reader sees
//! ESTALE, not damage) and frees its block. Not here: deciding when a dead host's slot is swept (the caller of [`sweep`]).

use crate::error::{FsError, Step, Stop};
use crate::tx::{Effect, Tx};
use crate::volume::{Needs, Ran, Volume, Wait};
use crate::{alloc, dir, extent, inode, names, xattr};
use luna_dlm::{LockError, Mode};
use luna_format::inode::{FLAG_ORPHAN, FLAG_REAPING, Inode, Layout};
use luna_format::{HEADER_BYTES, Ino, Slot};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a reaper looks through its own orphan directory.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Entries of an orphan directory read at once.
const PAGE: usize = 256;
/// Tries to get all rights at once before an orphan is left to the next sweep.
const ATTEMPTS: u64 = 20;
/// Extents or leaves freed in one transaction.
const STEP: usize = 64;

/// The name under which an orphan is listed: 16 hex digits.
pub fn list_name(ino: Ino) -> [u8; 16] {
    let mut name = [0; 16];
    for (i, b) in name.iter_mut().enumerate() {
        *b = b"0123456789abcdef"[(ino >> (60 - 4 * i)) as usize & 15];
    }
    name
}

/// Lists an inode that has just lost its last name. The caller holds its EX.
pub fn enlist(tx: &mut Tx<'_>, ino: Ino) -> Step<()> {
    let i = inode::get(tx, ino)?;
    let slot = tx.slot;
    let target = dir::Target { ino, generation: i.generation, kind: (i.mode >> 12) as u8 };
    dir::insert(tx, tx.sb.orphan_dir(slot), &list_name(ino), &target)?;
    inode::update(tx, ino, |i| (i.flags, i.orphan_slot) = (i.flags | FLAG_ORPHAN, u32::from(slot)))?;
    tx.effect(Effect::Orphan(ino));
    Ok(())
}

/// What became of an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// It is freed.
    Freed,
    /// Somebody has it open; they will wake their reaper.
    InUse,
    /// Not an orphan (any more).
    Nothing,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Orphans freed.
    pub freed: u64,
    /// Orphans left, because somebody has them open.
    pub in_use: u64,
    /// Orphans left, because something about them is damaged; the log says what.
    pub failed: u64,
}

/// Frees one orphan, if nobody has it open. May wait for other hosts to write back.
///
/// From the mark on nobody opens it: until then a name that was looked up before the unlink may still be opened, as on a local
/// file system.
pub fn reap(vol: &Volume, ino: Ino) -> Result<Reaped, FsError> {
    let marked = alone(vol, ino, |tx| {
        let Some(i) = orphan(tx, ino)? else { return Ok(false) };
        if i.flags & FLAG_REAPING == 0 {
            inode::update(tx, ino, |i| i.flags |= FLAG_REAPING)?;
        }
        Ok(true)
    })?;
    match marked {
        None => return Ok(Reaped::InUse),
        Some(false) => return Ok(Reaped::Nothing),
        Some(true) => {}
    }
    let mut from = Some(0);
    while let Some(start) = from {
        let step = alone(vol, ino, |tx| {
            let Some(i) = orphan(tx, ino)? else { return Ok(None) };
            shorten(tx, ino, &i, start)
        })?;
        let Some(next) = step else { return Ok(Reaped::InUse) };
        from = next;
    }
    let freed = alone(vol, ino, |tx| {
        let Some(i) = orphan(tx, ino)? else { return Ok(Reaped::Nothing) };
        free(tx, ino, &i)?;
        Ok(Reaped::Freed)
    })?;
    Ok(freed.unwrap_or(Reaped::InUse))
}

/// Runs a body while no host has `ino` open; `None` when one has. The open right sorts after all others that a body takes,
/// so nothing is waited for while it is held: what is missing is fetched without it, and everything tried again.
/// Nobody can open the inode between two runs, because what is marked [`FLAG_REAPING`] is not opened.
fn alone<T>(vol: &Volume, ino: Ino, mut body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<Option<T>, FsError> {
    let mut needs = Needs::new();
    for attempt in 0..ATTEMPTS {
        let hold = match vol.locks.try_want(&names::open(ino), Mode::Ex) {
            Ok(hold) => hold,
            Err(LockError::WouldBlock) => return Ok(None),
            Err(e @ LockError::Withdrawn) => return Err(FsError::Withdrawn(e.to_string())),
        };
        // this host's own open files do not show as long as the right is cached here in EX
        let ran = vol.run_with(&mut needs, Wait::No, |tx| if vol.is_open(ino) { Ok(None) } else { body(tx).map(Some) })?;
        if let Ran::Done(value, _) = ran {
            return Ok(value);
        }
        drop(hold);
        vol.run_with(&mut needs, Wait::Yes, |_| Ok(()))?;
        vol.until_thawed()?;
        vol.sleep(Duration::from_millis(attempt));
    }
    // others want the same rights all the time: the next sweep tries again
    Ok(None)
}

/// The fields of an inode that waits to be freed; `None` for any other.
fn orphan(tx: &mut Tx<'_>, ino: Ino) -> Step<Option<Inode>> {
    tx.need(names::inode(ino), Mode::Ex)?;
    match inode::get(tx, ino) {
        Ok(i) if i.nlink == 0 && i.flags & FLAG_ORPHAN != 0 => Ok(Some(i)),
        Ok(_) | Err(Stop::Error(FsError::Stale)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Frees a part of what the inode has; where to go on, `None` when only the inode is left.
fn shorten(tx: &mut Tx<'_>, ino: Ino, i: &Inode, start: u64) -> Step<Option<u64>> {
    match Layout::from_u8(i.layout) {
        Some(Layout::Extents | Layout::ExtentTree) => extent::punch(tx, ino, start, u64::MAX, STEP),
        Some(Layout::DirTree) => Ok((!dir::clear(tx, ino, STEP)?).then_some(0)),
        _ => Ok(None),
    }
}

/// The last transaction: off the list, cleared, its block free.
fn free(tx: &mut Tx<'_>, ino: Ino, i: &Inode) -> Step<()> {
    let list = tx.sb.orphan_dir(i.orphan_slot as Slot);
    if i.orphan_slot >= tx.sb.slots {
        return Err(FsError::Damaged { ino, what: "slot of an orphan" }.into());
    }
    match dir::remove(tx, list, &list_name(ino)) {
        Ok(_) => {}
        Err(Stop::Error(FsError::NotFound)) => tracing::warn!(ino, slot = i.orphan_slot, "an orphan was not listed; freed all the same"),
        Err(e) => return Err(e),
    }
    xattr::free(tx, ino, i)?;
    // staged before it is freed, so that the group's version floor rises to the version of the cleared image
    tx.change(inode::fetch_of(ino))?;
    alloc::free_meta(tx, ino)?;
    let block = tx.change(inode::fetch_of(ino))?;
    block.0[HEADER_BYTES..].fill(0);
    let cleared = Inode { generation: i.generation, ..Inode::empty() };
    *block.view_mut::<Inode>(HEADER_BYTES).ok_or(FsError::Damaged { ino, what: "inode block" })? = cleared;
    tx.effect(Effect::Gone(ino));
    Ok(())
}

/// Frees all orphans of `slot` that nobody has open: at mount, and for a dead host after its journal was replayed.
pub fn sweep(vol: &Volume, slot: Slot) -> Result<Sweep, FsError> {
    let (mut after, mut done) = (0, Sweep::default());
    loop {
        let page = vol.run(|tx| dir::list(tx, tx.sb.orphan_dir(slot), after, PAGE))?;
        for e in &page {
            match reap(vol, e.target.ino) {
                Ok(Reaped::Freed) => done.freed += 1,
                Ok(Reaped::InUse) => done.in_use += 1,
                Ok(Reaped::Nothing) => unlist(vol, slot, e)?,
                Err(e @ FsError::Withdrawn(_)) => return Err(e),
                Err(error) => {
                    // one damaged orphan must not keep the others
                    tracing::warn!(ino = e.target.ino, slot, %error, "an orphan could not be freed");
                    done.failed += 1;
                }
            }
        }
        match page.last() {
            Some(last) => after = last.hash,
            None => return Ok(done),
        }
    }
}

/// A list entry that leads to no orphan is taken away, if it is still so.
fn unlist(vol: &Volume, slot: Slot, e: &dir::Listed) -> Result<(), FsError> {
    let ino = e.target.ino;
    let removed = vol.run(|tx| {
        let list = tx.sb.orphan_dir(slot);
        if orphan(tx, ino)?.is_some() || dir::find(tx, list, &e.name)? != Some(e.target) {
            return Ok(false);
        }
        dir::remove(tx, list, &e.name)?;
        Ok(true)
    });
    if removed? {
        tracing::warn!(ino, slot, "an entry of the orphan directory led to no orphan; removed");
    }
    Ok(())
}

/// How long an unlinked file stays openable for those who looked its name up just before.
const GRACE: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Queue {
    /// In the order they came, so in the order they are due.
    inos: VecDeque<(Instant, Ino)>,
    waiting: BTreeSet<Ino>,
    slots: BTreeSet<Slot>,
    stop: bool,
}

/// The thread that frees orphans.
pub struct Reaper {
    queue: Mutex<Queue>,
    bell: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Job {
    One(Ino),
    All(Slot),
}

impl Reaper {
    /// Starts a reaper; it sweeps the volume's own slot at once.
    pub fn start(vol: Arc<Volume>) -> std::io::Result<Arc<Self>> {
        let queue = Queue { slots: BTreeSet::from([vol.slot]), ..Queue::default() };
        let reaper = Arc::new(Self { queue: Mutex::new(queue), bell: Condvar::new(), thread: Mutex::new(None) });
        let own = Arc::clone(&reaper);
        let thread = std::thread::Builder::new().name("luna-reaper".into()).spawn(move || own.work(&vol))?;
        *reaper.thread.lock() = Some(thread);
        Ok(reaper)
    }

    /// This inode may be an orphan that nobody here has open any more. Quick; may be called under the metadata mutex.
    pub fn wake(&self, ino: Ino) {
        let mut q = self.queue.lock();
        if q.waiting.insert(ino) {
            q.inos.push_back((Instant::now() + GRACE, ino));
            // with others before it, the thread wakes for those anyway
            if q.inos.len() == 1 {
                self.bell.notify_one();
            }
        }
    }

    /// Sweep this slot's orphans soon.
    pub fn sweep(&self, slot: Slot) {
        self.queue.lock().slots.insert(slot);
        self.bell.notify_one();
    }

    /// Ends the thread after what it is doing; orphans that are left stay listed.
    pub fn stop(&self) {
        self.queue.lock().stop = true;
        self.bell.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    fn next(&self, due: Instant) -> Option<Option<Job>> {
        let mut q = self.queue.lock();
        loop {
            if q.stop {
                return None;
            }
            let soonest = q.inos.front().copied();
            if let Some((_, ino)) = soonest.filter(|(at, _)| *at <= Instant::now()) {
                q.inos.pop_front();
                q.waiting.remove(&ino);
                return Some(Some(Job::One(ino)));
            }
            if let Some(slot) = q.slots.pop_first() {
                return Some(Some(Job::All(slot)));
            }
            let until = soonest.map_or(due, |(at, _)| at.min(due));
            if self.bell.wait_until(&mut q, until).timed_out() && until == due {
                return Some(None);
            }
        }
    }

    fn work(&self, vol: &Volume) {
        let mut due = Instant::now() + SWEEP_EVERY;
        while let Some(job) = self.next(due) {
            let result = match job {
                Some(Job::One(ino)) => reap(vol, ino).map(|_| ()),
                Some(Job::All(slot)) => sweep(vol, slot).map(|_| ()),
                None => {
                    due = Instant::now() + SWEEP_EVERY;
                    sweep(vol, vol.slot).map(|_| ())
                }
            };
            match result {
                Ok(()) => {}
                Err(FsError::Withdrawn(_)) => return,
                Err(e) => tracing::warn!(error = %e, "an orphan could not be freed; tried again at the next sweep"),
            }
        }
    }
}
