//! The one background thread of a mount: what was not asked for is written too, sooner or later.
//!
//! Every second the running journal batch is made durable and freed blocks become reusable; when much is dirty, or for some
//! time, it goes home; pending modification times are written twice a minute; the metadata cache is kept in bounds. It never
//! waits for another host. Errors withdraw the volume where they happen; here they only end the round.

use crate::system::Fs;
use crate::volume::Wait;
use luna_dlm::Mode;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Dirty metadata goes home at the latest after.
const HOME: Duration = Duration::from_secs(5);
/// Pending modification times are written at the latest after.
const TIMES: Duration = Duration::from_secs(30);
/// Dirty blocks from which on they go home at once.
const MANY_DIRTY: usize = 4096;
/// Metadata blocks kept in memory (48 MiB).
const CACHE_BLOCKS: usize = 12288;
/// Names kept in the lock cache.
const LOCK_NAMES: usize = 100_000;

/// The running thread.
pub(crate) struct Syncer {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

/// Starts it.
pub(crate) fn start(fs: &Arc<Fs>) -> Option<Syncer> {
    let stop = Arc::new((Mutex::new(false), Condvar::new()));
    let (theirs, fs) = (Arc::clone(&stop), Arc::downgrade(fs));
    let thread = std::thread::Builder::new().name("luna-sync".to_owned()).spawn(move || rounds(&fs, &theirs));
    match thread {
        Ok(thread) => Some(Syncer { stop, thread }),
        Err(e) => {
            tracing::error!(error = %e, "no background thread: only fsync and full journals write anything home");
            None
        }
    }
}

impl Syncer {
    /// Ends it.
    pub(crate) fn stop(self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the background thread had died");
        }
    }
}

fn rounds(fs: &Weak<Fs>, stop: &(Mutex<bool>, Condvar)) {
    let (mut home, mut times, mut out) = (Instant::now(), Instant::now(), false);
    loop {
        let mut s = stop.0.lock();
        if !*s {
            stop.1.wait_for(&mut s, ROUND);
        }
        if *s {
            return;
        }
        drop(s);
        let Some(fs) = fs.upgrade() else { return };
        if !out && fs.volume.check_active().is_err() {
            out = true;
            let theirs = Arc::clone(&fs);
            fs.pool.spawn(move || theirs.drop_pages());
        }
        if let Err(e) = fs.round(&mut home, &mut times) {
            tracing::debug!(error = %e, "background round ended early");
        }
    }
}

impl Fs {
    fn round(&self, home: &mut Instant, times: &mut Instant) -> Result<(), crate::FsError> {
        let v = &self.volume;
        v.check_active()?;
        if times.elapsed() >= TIMES {
            *times = Instant::now();
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
        if dirty > MANY_DIRTY || used || (dirty > 0 && home.elapsed() >= HOME) {
            *home = Instant::now();
            v.checkpoint()?;
        } else {
            if dirty == 0 {
                *home = Instant::now();
            }
            v.reclaim(None)?;
        }
        v.meta.lock().shrink(CACHE_BLOCKS);
        v.locks.shrink(LOCK_NAMES);
        Ok(())
    }
}
