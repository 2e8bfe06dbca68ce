//! The machine below a volume under test: one thread, a clock that only the volume's own sleeping moves, jobs run where somebody waits.
//!
//! Invariant: whoever waits for something that no job brings fails the run, as does sleeping without end: a hang is a panic here.
//! Not here: several hosts (that is the simulator).

use luna_dlm::{Job, Threads};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When its clock begins: some day in 2026.
const EPOCH_NS: u64 = 1_780_000_000_000_000_000;
/// Nobody sleeps longer than this in all: ten minutes.
const SLEEP_MAX_NS: u64 = 600_000_000_000;
/// No more jobs than this run in one wait.
const JOBS_MAX: u32 = 100_000;

/// See the module's text.
#[derive(Default)]
pub struct Machine {
    jobs: Mutex<VecDeque<Job>>,
    slept_ns: AtomicU64,
    ticks: AtomicU64,
}

impl Machine {
    /// Runs what is queued.
    pub fn work(&self) {
        for _ in 0..JOBS_MAX {
            let job = self.jobs.lock().pop_front();
            let Some(job) = job else { return };
            job();
        }
        panic!("jobs beget jobs without end");
    }
}

impl Threads for Machine {
    fn spawn(&self, job: Job) {
        self.jobs.lock().push_back(job);
    }

    fn wait(&self, ready: &dyn Fn() -> bool) {
        for _ in 0..JOBS_MAX {
            if ready() {
                return;
            }
            let job = self.jobs.lock().pop_front();
            match job {
                Some(job) => job(),
                None => panic!("somebody waits for an answer that nobody is going to give"),
            }
        }
        panic!("jobs beget jobs without end");
    }
}

impl luna_fs::Machine for Machine {
    fn now_ns(&self) -> u64 {
        EPOCH_NS + self.slept_ns.load(Ordering::Relaxed) + self.ticks.fetch_add(1000, Ordering::Relaxed)
    }

    fn sleep(&self, long: Duration) {
        let before = self.slept_ns.fetch_add(long.as_nanos() as u64 + 1000, Ordering::Relaxed);
        assert!(before < SLEEP_MAX_NS, "asleep for ten minutes: this does not end");
    }
}
