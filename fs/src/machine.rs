//! The machine below a volume, where it is not the real one: the simulator's clock, sleep and threads.
//!
//! Invariant: a volume without a [`Machine`] uses the system's clock and threads, and nothing here runs. A volume with one starts
//! no thread, reads no clock and waits only through it, so that one thread can run many hosts.
//! Not here: the simulator itself.

use crate::volume::Volume;
use luna_dlm::Threads;
use std::time::Duration;

/// Stands for the clock and the threads of a machine.
pub trait Machine: Threads {
    /// Nanoseconds since 1970.
    fn now_ns(&self) -> u64;

    /// Keeps the caller for a while.
    fn sleep(&self, long: Duration);
}

/// The system's clock.
pub(crate) fn wall_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl Volume {
    /// Keeps the calling thread for a while.
    pub(crate) fn sleep(&self, long: Duration) {
        match &self.machine {
            Some(m) => m.sleep(long),
            None => std::thread::sleep(long),
        }
    }

    /// Takes rule R9 away, for whoever shows that its tests would notice: what was freed may be handed out at once.
    #[doc(hidden)]
    pub fn forget_freed(&self) {
        self.meta.lock().busy.clear();
    }

    /// What stands for the system's threads, if something does.
    pub(crate) fn threads(&self) -> Option<&dyn Threads> {
        self.machine.as_deref().map(|m| m as &dyn Threads)
    }
}
