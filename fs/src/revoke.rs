//! Giving rights back: what this host must write, and what it and its kernel must forget, before another host may go on.
//!
//! For an inode, in this order: the kernel's attributes, its pages (see `data::right` for transfers that come in meanwhile), the pending
//! modification time, the metadata under the lock, a flush of what was written, then what is known in memory. For an allocation
//! group: its metadata and whatever waits to be reused. For the right to change metadata at all: nothing is changed any more, and
//! what was is in the journal. Other names guard nothing that is cached.
//!
//! Invariant: when `come_down` returns `Ok`, everything changed under the old right is on the LUN, and nothing that the new
//! right does not allow is remembered here or in the kernel. Runs on the lock cache's workers, never on a FUSE thread.

use crate::error::FsError;
use crate::freeze::CHANGES;
use crate::names::{self, Class};
use crate::open::Node;
use crate::pool::Pool;
use crate::system::Fs;
use crate::tx::Rights;
use luna_dlm::{Hooks, Mode, Name, ValueBlock};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// After how long an emptying is thought to wait for a transfer, at first and later.
const FIRST_NUDGE: Duration = Duration::from_millis(2);
const LAST_NUDGE: Duration = Duration::from_millis(16);
/// How long the thread that looks after that stays.
const LINGER: Duration = Duration::from_secs(10);
/// More ranges than this are emptied as the whole file.
const MANY_RANGES: usize = 512;

/// An offset that means "the attributes, no pages".
const ATTRIBUTES: u64 = u64::MAX;

struct FsHooks(Weak<Fs>);

/// What [`Fs::hooks`] gives.
pub(crate) fn hooks(fs: &Arc<Fs>) -> Arc<dyn Hooks> {
    fs.volume.obey_freezes();
    Arc::new(FsHooks(Arc::downgrade(fs)))
}

impl Hooks for FsHooks {
    fn come_down(&self, name: &Name, from: Mode, to: Mode) -> Result<Option<ValueBlock>, String> {
        let Some(fs) = self.0.upgrade() else { return Ok(None) };
        fs.come_down(name, from, to).map_err(|e| e.to_string())
    }

    fn granted(&self, name: &Name, from: Mode, to: Mode, _value: &ValueBlock) {
        let Some(fs) = self.0.upgrade() else { return };
        match names::split(name) {
            Some((Class::Freeze, _)) if to.covers(CHANGES) => fs.volume.move_on(),
            Some((Class::Inode, ino)) if from == Mode::Nl => {
                if let Some(node) = fs.nodes.find(ino) {
                    node.clear();
                }
            }
            _ => {}
        }
    }
}

impl Fs {
    fn come_down(self: &Arc<Self>, name: &Name, from: Mode, to: Mode) -> Result<Option<ValueBlock>, FsError> {
        match names::split(name) {
            Some((Class::Inode, ino)) => self.come_down_inode(name, ino, from, to),
            Some((Class::Group, _)) => {
                self.volume.write_back(name)?;
                if !to.covers(Mode::Cr) {
                    self.volume.forget(name);
                }
                Ok(None)
            }
            Some((Class::Freeze, _)) if !to.covers(CHANGES) => self.volume.stand_still().map(|()| None),
            _ => Ok(None),
        }
    }

    fn come_down_inode(self: &Arc<Self>, name: &Name, ino: u64, from: Mode, to: Mode) -> Result<Option<ValueBlock>, FsError> {
        let node = self.nodes.find(ino);
        let mut value = None;
        if from.covers(Mode::Pr)
            && !to.covers(Mode::Pr)
            && let Some(invalidate) = self.invalidate.get()
            && let Err(e) = invalidate(ino, ATTRIBUTES, 0)
        {
            tracing::trace!(ino, error = %e, "the kernel has nothing to forget of an inode");
        }
        if let Some(node) = &node {
            self.empty_pages(node, from, to);
            if from == Mode::Ex {
                self.write_mtime_under(node, &Rights::from([(*name, from)]))?;
            }
            let pending = u64::try_from(node.pending_mtime.load(Ordering::Acquire)).unwrap_or(0);
            value = (pending != 0).then_some([pending, 0, 0, 0]);
        }
        if from == Mode::Ex {
            self.volume.write_back(name)?;
        }
        // whoever reads what was written here may sync it, and has no reason to think that it is not durable
        if from.writes() && !to.writes() {
            self.volume.flush_data()?;
        }
        if !to.covers(Mode::Cr) {
            self.volume.forget(name);
            if let Some(node) = &node {
                node.clear();
            }
        }
        Ok(value)
    }

    /// Empties the kernel's pages of the inode if the new right does not cover them.
    ///
    /// Pages are there under PR, or, while somebody may dirty them, under EX only: then a mere PR has none.
    fn empty_pages(&self, node: &Arc<Node>, from: Mode, to: Mode) {
        let Some(invalidate) = self.invalidate.get() else { return };
        let needed = || {
            let lost = if node.has_writers() { from == Mode::Ex && to != Mode::Ex } else { from.covers(Mode::Pr) && !to.covers(Mode::Pr) };
            node.is_cached() && lost
        };
        if !node.revoke.begin(node, from, needed) {
            return;
        }
        self.counters.revokes.fetch_add(1, Ordering::Relaxed);
        self.nudger.watch(node, &self.pool);
        let mut ranges = vec![(0, 0)];
        loop {
            self.counters.passes.fetch_add(1, Ordering::Relaxed);
            for (offset, len) in ranges {
                if let Err(e) = invalidate(node.ino, offset, len) {
                    // not mounted any more: there are no pages
                    tracing::debug!(ino = node.ino, error = %e, "the kernel was not told to forget pages");
                }
            }
            ranges = node.revoke.end_pass();
            if ranges.is_empty() {
                break;
            }
            if ranges.len() > MANY_RANGES {
                ranges = vec![(0, 0)];
            }
        }
        self.nudger.leave(node);
    }
}

/// Lets late transfers through when an emptying has not ended after a moment, because it may be waiting for them.
#[derive(Default)]
pub(crate) struct Nudger {
    state: Mutex<(Vec<Watched>, bool)>,
    changed: Condvar,
}

struct Watched {
    node: Arc<Node>,
    at: Instant,
    pause: Duration,
}

impl Nudger {
    fn watch(self: &Arc<Self>, node: &Arc<Node>, pool: &Arc<Pool>) {
        let mut s = self.state.lock();
        let pool = Arc::clone(pool);
        s.0.push(Watched { node: Arc::clone(node), at: Instant::now() + FIRST_NUDGE, pause: FIRST_NUDGE });
        if !s.1 {
            let me = Arc::clone(self);
            s.1 = std::thread::Builder::new().name("luna-nudge".to_owned()).spawn(move || me.run(&pool)).is_ok();
            if !s.1 {
                tracing::error!("no thread to let late transfers through; a lock may not be given back");
            }
        }
        self.changed.notify_all();
    }

    fn leave(&self, node: &Arc<Node>) {
        self.state.lock().0.retain(|w| !Arc::ptr_eq(&w.node, node));
    }

    /// Serves until nothing has been watched for a while.
    fn run(&self, pool: &Pool) {
        let mut s = self.state.lock();
        loop {
            let Some(next) = s.0.iter().map(|w| w.at).min() else {
                if self.changed.wait_for(&mut s, LINGER).timed_out() && s.0.is_empty() {
                    s.1 = false;
                    return;
                }
                continue;
            };
            if !self.changed.wait_until(&mut s, next).timed_out() {
                continue;
            }
            let now = Instant::now();
            let mut due = Vec::new();
            for w in s.0.iter_mut().filter(|w| w.at <= now) {
                w.pause = (w.pause * 2).min(LAST_NUDGE);
                w.at = now + w.pause;
                due.push(Arc::clone(&w.node));
            }
            drop(s);
            for node in due {
                node.revoke.let_through(&node, |job| pool.spawn(job));
            }
            s = self.state.lock();
        }
    }
}
