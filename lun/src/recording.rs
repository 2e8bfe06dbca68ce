//! A disk that writes down what was done to it, for crash tests.
//!
//! It passes every call to the disk below and keeps a log of writes, discards and flushes in the order in which they were
//! answered. A test replays any prefix (or any subset of the writes since the last flush) onto a snapshot and so sees every
//! disk that a power cut could leave. Reads are not logged. The log grows without limit; it is for tests.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Disk, Durability, Geometry, Result};

/// One thing that was done to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes written; forced ones are durable by themselves.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// Whether it was forced.
        durability: Durability,
    },
    /// A range made to read as zeroes.
    Zeroes {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// A range discarded.
    Discard {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Everything before is durable.
    Flush,
}

/// The logging wrapper.
pub struct RecordingDisk {
    inner: Arc<dyn Disk>,
    log: Mutex<Vec<Event>>,
}

impl RecordingDisk {
    /// Wraps `inner` with an empty log.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, log: Mutex::new(Vec::new()) }
    }

    /// The log so far.
    pub fn log(&self) -> Vec<Event> {
        self.log.lock().clone()
    }

    /// The log so far, leaving an empty one.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.log.lock())
    }

    /// How many events the log holds.
    pub fn events(&self) -> usize {
        self.log.lock().len()
    }

    /// Does the logged `events` to `disk`.
    pub fn replay(events: &[Event], disk: &dyn Disk) -> Result<()> {
        for event in events {
            match event {
                Event::Write { offset, data, durability } => disk.write_at(data, *offset, *durability)?,
                Event::Zeroes { offset, len } => disk.write_zeroes(*offset, *len)?,
                Event::Discard { offset, len } => disk.discard(*offset, *len)?,
                Event::Flush => disk.flush()?,
            }
        }
        Ok(())
    }
}

impl Disk for RecordingDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        // The log is held over the call: two writes to one place stand in the log as they happened.
        let mut log = self.log.lock();
        self.inner.write_at(buf, offset, durability)?;
        log.push(Event::Write { offset, data: buf.to_vec(), durability });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut log = self.log.lock();
        self.inner.flush()?;
        log.push(Event::Flush);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut log = self.log.lock();
        self.inner.discard(offset, len)?;
        log.push(Event::Discard { offset, len });
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let mut log = self.log.lock();
        self.inner.write_zeroes(offset, len)?;
        log.push(Event::Zeroes { offset, len });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDisk;

    #[test]
    fn a_replayed_log_gives_the_same_disk() {
        let disk = RecordingDisk::new(Arc::new(MemoryDisk::new(1 << 20)));
        disk.write_at(&[1; 8192], 4096, Durability::Plain).unwrap();
        disk.write_zeroes(8192, 4096).unwrap();
        disk.flush().unwrap();
        disk.write_at(&[2; 4096], 0, Durability::Forced).unwrap();
        let copy = MemoryDisk::new(1 << 20);
        RecordingDisk::replay(&disk.log(), &copy).unwrap();
        let (mut a, mut b) = (vec![0; 1 << 20], vec![1; 1 << 20]);
        disk.read_at(&mut a, 0).unwrap();
        copy.read_at(&mut b, 0).unwrap();
        assert_eq!(a, b);
        assert_eq!(disk.events(), 4);
        assert_eq!(disk.take()[2], Event::Flush);
        assert_eq!(disk.events(), 0);
    }
}
