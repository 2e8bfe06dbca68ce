//! What this crate needs of threads: somewhere to run a job, and a way to wait for an answer. A mount uses the system's threads;
//! the simulator runs the same code in one thread by giving [`Threads`] of its own.
//!
//! Invariant: with `None` everything is as if this file were not there: workers, a mutex and a condition variable. Not here: what
//! the jobs do.

use parking_lot::{Condvar, Mutex};

/// One piece of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Stands for the system's threads.
pub trait Threads: Send + Sync {
    /// Runs `job` later, not inside this call.
    fn spawn(&self, job: Job);

    /// Keeps the caller until `ready` says yes. Called without any lock taken.
    fn wait(&self, ready: &dyn Fn() -> bool);
}

/// One answer that one thread waits for.
pub struct Answer<T> {
    value: Mutex<Option<T>>,
    given: Condvar,
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self { value: Mutex::new(None), given: Condvar::new() }
    }
}

impl<T> Answer<T> {
    /// Gives the answer; once.
    pub fn give(&self, value: T) {
        *self.value.lock() = Some(value);
        self.given.notify_one();
    }

    /// Waits for the answer and takes it.
    pub fn take(&self, threads: Option<&dyn Threads>) -> T {
        if let Some(threads) = threads {
            threads.wait(&|| self.value.lock().is_some());
        }
        let mut value = self.value.lock();
        loop {
            if let Some(value) = value.take() {
                return value;
            }
            self.given.wait(&mut value);
        }
    }
}
