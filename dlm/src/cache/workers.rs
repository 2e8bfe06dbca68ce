//! The threads that run come-down jobs: a few, started when needed, up to a bound, because a job may wait for the disk.
//!
//! Invariant: a job never runs on the thread that queued it. Jobs start in the order they were queued; nothing is promised about
//! their end. The pool knows nothing of locks.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::threads::Job;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
}

/// A bounded pool of threads, grown on demand.
pub(super) struct Workers {
    shared: Arc<Shared>,
    bound: usize,
}

impl Workers {
    /// A pool of at most `bound` threads; none is started yet.
    pub(super) fn new(bound: usize) -> Self {
        Self { shared: Arc::default(), bound }
    }

    /// Queues a job; starts a thread if none is idle and the bound allows. A thread that the system refuses is not missed as long
    /// as one other runs; with none at all the job waits for the next push.
    pub(super) fn push(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(job);
        if queue.idle < queue.jobs.len() && queue.threads < self.bound {
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new().name("luna-dlm-down".into()).spawn(move || run(&shared));
            if started.is_ok() {
                queue.threads += 1;
            }
        }
        drop(queue);
        self.shared.ready.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.ready.notify_all();
    }
}

fn run(shared: &Shared) {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = shared.queue.lock();
        } else if queue.closed {
            queue.threads -= 1;
            return;
        } else {
            queue.idle += 1;
            shared.ready.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}
