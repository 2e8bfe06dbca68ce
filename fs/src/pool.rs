//! Threads for work that may wait: lock misses, slow writes, flushes. Started on demand, gone again when idle.
//!
//! Invariant: a job is never queued behind jobs that wait while the limit allows another thread. The data path's overwrites
//! and cached reads never come here. Jobs may wait for other hosts; what those hosts wait for is never a job in this queue
//! (coming down runs on the lock cache's own workers).

use luna_dlm::Threads;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Threads at the most.
const MAX_THREADS: usize = 256;
/// How long an idle thread stays.
const LINGER: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    busy: usize,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    quiet: Condvar,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Runs the jobs instead of threads of this pool.
    instead: Option<Arc<dyn Threads>>,
}

impl Pool {
    /// A pool whose jobs run elsewhere, where that is given.
    pub(crate) fn on(instead: Option<Arc<dyn Threads>>) -> Self {
        Self { shared: Arc::default(), instead }
    }

    /// Runs `job` on some thread, soon.
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(threads) = &self.instead {
            return threads.spawn(Box::new(job));
        }
        let mut s = self.shared.state.lock();
        s.jobs.push_back(Box::new(job));
        if s.idle >= s.jobs.len() {
            self.shared.work.notify_one();
        } else if s.threads < MAX_THREADS {
            s.threads += 1;
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new().name("luna-work".to_owned()).spawn(move || shared.serve());
            if started.is_err() {
                s.threads -= 1;
                tracing::warn!(threads = s.threads, "no thread to be had; jobs wait for the ones there are");
            }
        }
        if s.threads == 0 {
            // not one thread: better late than never
            let jobs = std::mem::take(&mut s.jobs);
            drop(s);
            jobs.into_iter().for_each(|job| job());
        }
    }

    /// Returns when no job is queued or running, or after `limit`. Says whether it is quiet.
    pub(crate) fn drain(&self, limit: Duration) -> bool {
        let mut s = self.shared.state.lock();
        let until = std::time::Instant::now() + limit;
        while !(s.jobs.is_empty() && s.busy == 0) {
            if self.shared.quiet.wait_until(&mut s, until).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn serve(&self) {
        let mut s = self.state.lock();
        loop {
            if let Some(job) = s.jobs.pop_front() {
                s.busy += 1;
                drop(s);
                job();
                s = self.state.lock();
                s.busy -= 1;
                if s.busy == 0 && s.jobs.is_empty() {
                    self.quiet.notify_all();
                }
                continue;
            }
            s.idle += 1;
            let late = !s.stop && self.work.wait_for(&mut s, LINGER).timed_out();
            s.idle -= 1;
            if s.jobs.is_empty() && (late || s.stop) {
                s.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn waiting_jobs_do_not_hold_up_others() {
        let pool = Pool::default();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let done = Arc::new(AtomicU32::new(0));
        for _ in 0..20 {
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            pool.spawn(move || {
                let mut open = gate.0.lock();
                while !*open {
                    gate.1.wait(&mut open);
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        let (g, d) = (Arc::clone(&gate), Arc::clone(&done));
        pool.spawn(move || {
            assert_eq!(d.load(Ordering::SeqCst), 0);
            *g.0.lock() = true;
            g.1.notify_all();
        });
        assert!(pool.drain(Duration::from_secs(10)));
        assert_eq!(done.load(Ordering::SeqCst), 20);
    }
}
