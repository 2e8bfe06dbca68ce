//! The gate of one file's data I/O on this host: many transfers at once, or one change of the file's shape alone.
//!
//! The lock manager keeps other hosts away; this keeps threads of one host in order. A transfer enters shared and carries its
//! pass to the completion, on whatever thread that runs; truncating, punching, extending and read-modify-write enter alone.
//! Entering shared never waits: who finds the gate closed goes the slow way. **Rights come first**: nobody waits for a lock
//! while inside, so whoever is inside alone only waits for the disk.

use luna_dlm::Threads;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Somebody wants to be or is inside alone.
const ALONE: u32 = 1 << 31;

/// See the module's text.
#[derive(Default)]
pub(crate) struct IoGate {
    /// Passes given out, and [`ALONE`].
    state: AtomicU32,
    turn: Mutex<()>,
    signal: Mutex<()>,
    empty: Condvar,
    /// Keeps whoever waits, instead of the mutexes.
    threads: Option<Arc<dyn Threads>>,
}

impl std::fmt::Debug for IoGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoGate").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A pass for one transfer among many.
#[derive(Debug)]
pub(crate) struct Pass(Arc<IoGate>);

/// Alone inside; for as long as it lives on the thread that entered.
pub(crate) struct Alone<'a> {
    gate: &'a IoGate,
    _turn: MutexGuard<'a, ()>,
}

impl IoGate {
    /// A gate whose waits go through `threads`, where given.
    pub(crate) fn on(threads: Option<Arc<dyn Threads>>) -> Self {
        Self { threads, ..Self::default() }
    }

    /// A pass, unless somebody is or wants to be alone.
    pub(crate) fn try_shared(self: &Arc<Self>) -> Option<Pass> {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        let pass = Pass(Arc::clone(self));
        if before & ALONE == 0 { Some(pass) } else { None }
    }

    /// A pass, after waiting for whoever is alone.
    pub(crate) fn shared(self: &Arc<Self>) -> Pass {
        loop {
            if let Some(p) = self.try_shared() {
                return p;
            }
            match &self.threads {
                Some(t) => t.wait(&|| self.state.load(Ordering::Acquire) & ALONE == 0),
                None => drop(self.turn.lock()),
            }
        }
    }

    /// Alone, if nobody is inside right now.
    pub(crate) fn try_alone(&self) -> Option<Alone<'_>> {
        let turn = self.turn.try_lock()?;
        self.state.compare_exchange(0, ALONE, Ordering::AcqRel, Ordering::Acquire).ok()?;
        Some(Alone { gate: self, _turn: turn })
    }

    /// Waits for everybody inside and keeps everybody out.
    pub(crate) fn alone(&self) -> Alone<'_> {
        if let Some(t) = &self.threads {
            loop {
                if let Some(alone) = self.try_alone() {
                    return alone;
                }
                t.wait(&|| self.state.load(Ordering::Acquire) == 0);
            }
        }
        let turn = self.turn.lock();
        self.state.fetch_or(ALONE, Ordering::AcqRel);
        let mut signal = self.signal.lock();
        while self.state.load(Ordering::Acquire) != ALONE {
            self.empty.wait(&mut signal);
        }
        drop(signal);
        Alone { gate: self, _turn: turn }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::AcqRel) == ALONE + 1 {
            let _order = self.0.signal.lock();
            self.0.empty.notify_all();
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.gate.state.fetch_and(!ALONE, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn alone_waits_for_all_and_keeps_all_out() {
        let gate = Arc::new(IoGate::default());
        let pass = gate.try_shared().expect("open");
        let inside = Arc::new(AtomicBool::new(false));
        let (g, i) = (Arc::clone(&gate), Arc::clone(&inside));
        let t = std::thread::spawn(move || {
            let _alone = g.alone();
            i.store(true, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(30));
            i.store(false, Ordering::SeqCst);
        });
        while gate.state.load(Ordering::SeqCst) & ALONE == 0 {
            std::thread::yield_now();
        }
        assert!(gate.try_shared().is_none());
        assert!(!inside.load(Ordering::SeqCst));
        drop(pass);
        let _pass = gate.shared();
        assert!(!inside.load(Ordering::SeqCst));
        t.join().expect("joins");
    }

    #[test]
    fn no_wakeup_is_lost_under_load() {
        let gate = Arc::new(IoGate::default());
        let sum = Arc::new(Mutex::new(0u64));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (gate, sum) = (Arc::clone(&gate), Arc::clone(&sum));
                std::thread::spawn(move || {
                    for k in 0..2000 {
                        if (k + n) % 3 == 0 {
                            let _alone = gate.alone();
                            *sum.try_lock().expect("nobody else is inside") += 1;
                        } else {
                            let _pass = gate.shared();
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("joins"));
        assert_eq!(gate.state.load(Ordering::SeqCst), 0);
    }
}
