//! The one background thread of a mount: what was not asked for is written too, sooner or later.
//!
//! Every second the running journal batch is made durable and freed blocks become reusable; when much is dirty, or for some
//! time, it goes home; pending modification times are written twice a minute; the metadata cache is kept in bounds. It never
//! waits for another host. Errors withdraw the volume where they happen; here they only end the round.

use crate::meta::Meta;
use crate::system::Fs;
use crate::volume::Wait;
use luna_dlm::Mode;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// When what was last done, since some beginning.
#[derive(Debug, Default)]
pub struct Rounds {
    home: Duration,
    times: Duration,
}

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Dirty metadata goes home at the latest after.
const HOME: Duration = Duration::from_secs(5);
/// Pending modification times are written at the latest after.
const TIMES: Duration = Duration::from_secs(30);
/// Dirty blocks from which on they go home at once.
const MANY_DIRTY: usize = 4096;
/// Metadata blocks kept in memory (24 MiB).
const CACHE_BLOCKS: usize = 6144;
/// Dirty or cached blocks from which on a round begins at once: a second of creating files would otherwise add tens of MiB.
const CROWDED: (usize, usize) = (MANY_DIRTY, CACHE_BLOCKS + CACHE_BLOCKS / 4);
/// Names kept in the lock cache.
const LOCK_NAMES: usize = 12_288;

/// Whether the background thread has something to do before its time.
pub(crate) fn is_crowded(meta: &Meta) -> bool {
    let (cached, dirty) = meta.counts();
    dirty > CROWDED.0 || cached > CROWDED.1
}

/// What the thread is woken with.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    called: Mutex<Called>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Called {
    stop: bool,
    hurry: bool,
}

impl Alarm {
    /// Begins a round now.
    pub(crate) fn hurry(&self) {
        let mut c = self.called.lock();
        if !c.hurry {
            c.hurry = true;
            self.changed.notify_all();
        }
    }

    /// Waits for the next round; false at the end.
    fn wait(&self) -> bool {
        let mut c = self.called.lock();
        if !c.stop && !c.hurry {
            self.changed.wait_for(&mut c, ROUND);
        }
        c.hurry = false;
        !c.stop
    }
}

/// The running thread.
pub(crate) struct Syncer {
    alarm: Arc<Alarm>,
    thread: JoinHandle<()>,
}

/// Starts it.
pub(crate) fn start(fs: &Arc<Fs>, alarm: Arc<Alarm>) -> Option<Syncer> {
    let (theirs, fs) = (Arc::clone(&alarm), Arc::downgrade(fs));
    let thread = std::thread::Builder::new().name("luna-sync".to_owned()).spawn(move || rounds(&fs, &theirs));
    match thread {
        Ok(thread) => Some(Syncer { alarm, thread }),
        Err(e) => {
            tracing::error!(error = %e, "no background thread: only fsync and full journals write anything home");
            None
        }
    }
}

impl Syncer {
    /// Ends it.
    pub(crate) fn stop(self) {
        self.alarm.called.lock().stop = true;
        self.alarm.changed.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the background thread had died");
        }
    }
}

fn rounds(fs: &Weak<Fs>, alarm: &Alarm) {
    let (begun, mut rounds, mut out) = (Instant::now(), Rounds::default(), false);
    while alarm.wait() {
        let Some(fs) = fs.upgrade() else { return };
        if !out && fs.volume.check_active().is_err() {
            out = true;
            let theirs = Arc::clone(&fs);
            fs.pool.spawn(move || theirs.drop_pages());
        }
        fs.drive_forgotten();
        if let Err(e) = fs.round(&mut rounds, begun.elapsed()) {
            tracing::debug!(error = %e, "background round ended early");
        }
    }
}

impl Fs {
    /// What the background thread does every second; `now` is the time since the mount. Waits for no other host.
    pub fn round(&self, r: &mut Rounds, now: Duration) -> Result<(), crate::FsError> {
        let v = &self.volume;
        v.check_active()?;
        if now.saturating_sub(r.times) >= TIMES {
            r.times = now;
            for n in self.nodes.all() {
                if n.handle.mode() == Mode::Ex {
                    self.write_mtime(&n, Wait::No)?;
                } else {
                    self.tell_mtime(&n);
                }
            }
        }
        let running = v.journal.running();
        v.journal.flush_to(running).map_err(|e| v.journal_failed(&e))?;
        let (_, dirty) = v.meta.lock().counts();
        let used = v.journal.stats().used_blocks * 2 > v.sb.journal_blocks;
        if dirty > MANY_DIRTY || used || (dirty > 0 && now.saturating_sub(r.home) >= HOME) {
            r.home = now;
            v.checkpoint()?;
        } else {
            if dirty == 0 {
                r.home = now;
            }
            // two at once could discard what the other has given out again
            let _one = v.writeback.lock();
            v.reclaim(None)?;
        }
        v.meta.lock().shrink(CACHE_BLOCKS);
        v.locks.shrink(LOCK_NAMES);
        Ok(())
    }
}
