//! What is known of the LUN's volatile cache: which answered data writes a flush has covered.
//!
//! Records and fsync both need it: a record may be written only after the data it makes reachable is durable (R9), an fsync is
//! answered only after the file's data is. One flush serves all who wait for it, whichever of the two asked.
//!
//! Invariant: `flushed` never says more than what was answered before a flush that succeeded was *sent*.

use luna_lun::Disk;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Answered data writes, counted, and how many of them the last flush covered.
#[derive(Debug, Default)]
pub(crate) struct DataFlushes {
    answered: AtomicU64,
    flushed: Mutex<u64>,
}

impl DataFlushes {
    /// A plain data write was answered.
    pub(crate) fn note(&self) {
        self.answered.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns when everything noted before the call is durable; says whether this caller sent a flush.
    pub(crate) fn flush(&self, disk: &dyn Disk) -> luna_lun::Result<bool> {
        let noted = self.answered.load(Ordering::Acquire);
        let mut flushed = self.flushed.lock();
        if *flushed >= noted {
            return Ok(false);
        }
        let covers = self.answered.load(Ordering::Acquire);
        disk.flush()?;
        *flushed = covers;
        Ok(true)
    }
}
