//! The right a transfer runs under, and how a transfer waits for one without keeping a thread.
//!
//! Usually a right is a [`Hold`]. While this host is giving a lock back and empties the kernel's page cache, the kernel holds
//! page locks for reads and write-backs it already sent; these must be answered before the emptying can end. They run *late*:
//! under the right that is being given back, counted, waited for. A transfer that waits for a grant is *parked*; when the
//! emptying begins, parked page-cache transfers become late ones, for the same reason. Those that come while it runs are
//! parked too, and let through only when it seems to wait for them; what they bring into the cache is emptied once more, and
//! only that, so that the crowd behind them cannot keep it up for ever. Write-backs are let through at once: they are what
//! the emptying itself causes.
//!
//! Invariant: a late transfer exists only between [`Revoke::begin`] and the end of [`Revoke::end_pass`], inside which the host
//! has not told the lock manager that it came down.

use crate::error::FsError;
use crate::open::Node;
use crate::pool::Pool;
use crate::tx::Rights;
use luna_dlm::{Hold, LockCache, Mode};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A right in use by a transfer.
#[derive(Debug)]
pub(crate) enum Right {
    /// Held.
    Held(Hold),
    /// About to go; the giving back waits for this.
    Late(Late),
}

impl Right {
    /// What it allows.
    pub(crate) fn mode(&self) -> Mode {
        match self {
            Self::Held(h) => h.mode(),
            Self::Late(l) => l.mode,
        }
    }

    /// As operation bodies want it.
    pub(crate) fn rights(&self, node: &Node) -> Rights {
        Rights::from([(*node.handle.name(), self.mode())])
    }
}

/// A transfer under a right that is being given back.
#[derive(Debug)]
pub(crate) struct Late {
    node: Arc<Node>,
    mode: Mode,
}

impl Drop for Late {
    fn drop(&mut self) {
        let mut s = self.node.revoke.state.lock();
        s.running -= 1;
        if s.running == 0 {
            self.node.revoke.changed.notify_all();
        }
    }
}

type Job = Box<dyn FnOnce(Result<Right, FsError>) + Send>;

/// What a transfer has to do with the kernel's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Nothing: no page is locked for it.
    None,
    /// It brings these bytes (offset, length) into the cache, and their pages may be locked.
    Fill(u64, u64),
    /// It takes dirty pages out of the cache.
    Back,
}

/// A transfer that waits for a grant, or for the emptying that makes it late, whichever comes first.
struct Parked {
    mode: Mode,
    pages: Pages,
    job: Mutex<Option<Job>>,
}

#[derive(Default)]
struct State {
    /// The right being given back while pages are emptied.
    from: Option<Mode>,
    running: u32,
    /// What late transfers brought into the cache since the last pass began.
    filled: Vec<(u64, u64)>,
    parked: Vec<Arc<Parked>>,
}

/// The giving back of one inode's pages.
#[derive(Default)]
pub(crate) struct Revoke {
    active: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Revoke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revoke").field("active", &self.active).finish_non_exhaustive()
    }
}

impl State {
    fn late(&mut self, node: &Arc<Node>, from: Mode, pages: Pages) -> Right {
        self.running += 1;
        if let Pages::Fill(offset, len) = pages {
            self.filled.push((offset, len));
        }
        Right::Late(Late { node: Arc::clone(node), mode: from })
    }
}

impl Revoke {
    /// Runs `f` when no emptying is under way, and keeps one from beginning meanwhile. `None` when it would have to wait and
    /// `wait` is false.
    pub(crate) fn while_calm<T>(&self, wait: bool, f: impl FnOnce() -> T) -> Option<T> {
        let mut s = self.state.lock();
        while s.from.is_some() {
            if !wait {
                return None;
            }
            self.changed.wait(&mut s);
        }
        Some(f())
    }

    /// Begins an emptying if `needed` (asked under the mutex) says so. Parked transfers become late.
    pub(crate) fn begin(&self, node: &Arc<Node>, from: Mode, needed: impl FnOnce() -> bool) -> bool {
        let mut s = self.state.lock();
        if !needed() {
            return false;
        }
        s.from = Some(from);
        s.filled.clear();
        self.active.store(true, Ordering::Release);
        drop(s);
        self.let_through(node, |job| job());
        true
    }

    /// Ends the emptying if nothing came into the cache since the last pass began; else what there is to empty in the next.
    pub(crate) fn end_pass(&self) -> Vec<(u64, u64)> {
        let mut s = self.state.lock();
        while s.running > 0 {
            self.changed.wait(&mut s);
        }
        if s.filled.is_empty() {
            s.from = None;
            self.active.store(false, Ordering::Release);
            self.changed.notify_all();
        }
        std::mem::take(&mut s.filled)
    }

    /// Has `run` run what is parked and covered by the right that goes.
    pub(crate) fn let_through(&self, node: &Arc<Node>, run: impl Fn(Box<dyn FnOnce() + Send>)) {
        let mut s = self.state.lock();
        let Some(from) = s.from else { return };
        let parked = std::mem::take(&mut s.parked);
        let mut jobs = Vec::new();
        for p in parked {
            if !from.covers(p.mode) {
                s.parked.push(p);
                continue;
            }
            let job = p.job.lock().take();
            if let Some(job) = job {
                jobs.push((job, s.late(node, from, p.pages)));
            }
        }
        drop(s);
        for (job, right) in jobs {
            run(Box::new(move || job(Ok(right))));
        }
    }
}

impl Node {
    /// A right for a transfer, without waiting.
    pub(crate) fn try_right(self: &Arc<Self>, mode: Mode, pages: Pages) -> Option<Right> {
        if let Some(h) = self.handle.try_hold(mode) {
            return Some(Right::Held(h));
        }
        if pages != Pages::Back || !self.revoke.active.load(Ordering::Acquire) {
            return None;
        }
        let mut s = self.revoke.state.lock();
        let from = s.from.filter(|f| f.covers(mode))?;
        Some(s.late(self, from, pages))
    }

    /// Runs `job` with the right as soon as there is one, on a pool thread or on the thread that empties the page cache.
    pub(crate) fn park(self: &Arc<Self>, locks: &Arc<LockCache>, pool: &Arc<Pool>, mode: Mode, pages: Pages, job: Job) {
        let parked = Arc::new(Parked { mode, pages, job: Mutex::new(Some(job)) });
        if pages != Pages::None {
            let mut s = self.revoke.state.lock();
            if pages == Pages::Back
                && let Some(from) = s.from.filter(|f| f.covers(mode))
            {
                let late = s.late(self, from, pages);
                drop(s);
                let job = parked.job.lock().take();
                if let Some(job) = job {
                    pool.spawn(move || job(Ok(late)));
                }
                return;
            }
            s.parked.retain(|p| p.job.lock().is_some());
            s.parked.push(Arc::clone(&parked));
        }
        let pool = Arc::clone(pool);
        let waker = move |got: Result<Hold, luna_dlm::LockError>| {
            let job = parked.job.lock().take();
            if let Some(job) = job {
                pool.spawn(move || job(got.map(Right::Held).map_err(|e| FsError::Withdrawn(e.to_string()))));
            }
        };
        locks.want(self.handle.name(), mode, Box::new(waker));
    }
}
