//! Ends a demo that hangs. A call into a mount that is never answered cannot be interrupted, not even by SIGKILL; it ends
//! only when the daemon behind the mount does. So a thread watches the steps, and after too long, or some seconds after
//! Ctrl-C, it kills the daemons: the step then fails with an error and the demo cleans up as after any other failure.

use super::stop;
use crate::control;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long one step may take.
const STEP: Duration = Duration::from_secs(180);
/// How long a step may go on after Ctrl-C.
const INTERRUPTED: Duration = Duration::from_secs(5);

/// The watching thread; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    begin: Instant,
    step_ms: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Watch {
    /// Watches over the mounts on `dirs`.
    pub fn start(dirs: Vec<PathBuf>) -> Self {
        let watch = Self { begin: Instant::now(), step_ms: Arc::default(), over: Arc::default() };
        let (begin, step_ms, over) = (watch.begin, Arc::clone(&watch.step_ms), Arc::clone(&watch.over));
        std::thread::spawn(move || {
            let mut asked: Option<Instant> = None;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                if stop::check().is_err() {
                    asked.get_or_insert_with(Instant::now);
                }
                let stuck = begin.elapsed().saturating_sub(Duration::from_millis(step_ms.load(Ordering::Relaxed))) > STEP;
                if stuck || asked.is_some_and(|a| a.elapsed() > INTERRUPTED) {
                    eprintln!("luna: this step does not end; the hosts' daemons are killed");
                    dirs.iter().filter_map(|d| control::daemon(d)).for_each(|d| d.kill());
                    return;
                }
            }
        });
        watch
    }

    /// A new step begins.
    pub fn step(&self) {
        self.step_ms.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
