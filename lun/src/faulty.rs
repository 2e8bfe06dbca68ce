//! A disk that fails when told to, for tests of what happens above.
//!
//! Before each call a rule sees the operation and answers pass, fail, or (for writes) tear: write only the first bytes and
//! then fail. Nothing is random here; a test that wants chance puts it into its rule. It does not delay and does not lie:
//! what it answered `Ok` was done.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Disk, Durability, Geometry, LunError, Result};

/// An operation about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// A write.
    Write {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Plain or forced.
        durability: Durability,
    },
    /// A flush.
    Flush,
    /// A discard or write-zeroes.
    Clear {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Pass,
    /// It fails with EIO and nothing is done.
    Fail,
    /// A write does only its first bytes, then fails; anything else fails.
    Tear(u64),
}

/// Decides the fate of each operation; the number counts operations from 0.
pub type Rule = Box<dyn Fn(u64, Operation) -> Verdict + Send + Sync>;

/// The failing wrapper.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    rule: Rule,
    count: AtomicU64,
}

impl FaultyDisk {
    /// Wraps `inner`; `rule` sees every operation.
    pub fn new(inner: Arc<dyn Disk>, rule: Rule) -> Self {
        Self { inner, rule, count: AtomicU64::new(0) }
    }

    /// Fails everything after the first `n` writes, discards and flushes, as a disk that went away does.
    pub fn fail_after_writes(inner: Arc<dyn Disk>, n: u64) -> Self {
        let writes = AtomicU64::new(0);
        Self::new(
            inner,
            Box::new(move |_, operation| {
                let reading = matches!(operation, Operation::Read { .. });
                let seen = if reading { writes.load(Ordering::SeqCst) } else { writes.fetch_add(1, Ordering::SeqCst) };
                if seen > n || (!reading && seen == n) { Verdict::Fail } else { Verdict::Pass }
            }),
        )
    }

    /// How many operations it has seen.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn judge(&self, operation: Operation) -> Verdict {
        (self.rule)(self.count.fetch_add(1, Ordering::SeqCst), operation)
    }

    fn pass(&self, op: &'static str, offset: u64, operation: Operation) -> Result<()> {
        match self.judge(operation) {
            Verdict::Pass => Ok(()),
            Verdict::Fail | Verdict::Tear(_) => Err(injected(op, offset)),
        }
    }
}

fn injected(op: &'static str, offset: u64) -> LunError {
    LunError::io(op, offset, io::Error::from_raw_os_error(libc::EIO))
}

impl Disk for FaultyDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.pass("read", offset, Operation::Read { offset, len: buf.len() as u64 })?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        match self.judge(Operation::Write { offset, len: buf.len() as u64, durability }) {
            Verdict::Pass => self.inner.write_at(buf, offset, durability),
            Verdict::Fail => Err(injected("write", offset)),
            Verdict::Tear(bytes) => {
                let bytes = bytes.min(buf.len() as u64) as usize;
                self.inner.write_at(&buf[..bytes], offset, durability)?;
                Err(injected("write", offset))
            }
        }
    }

    fn flush(&self) -> Result<()> {
        self.pass("flush", 0, Operation::Flush)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pass("discard", offset, Operation::Clear { offset, len })?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.pass("write zeroes", offset, Operation::Clear { offset, len })?;
        self.inner.write_zeroes(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDisk;

    #[test]
    fn it_dies_after_n_writes_and_tears() {
        let disk = FaultyDisk::fail_after_writes(Arc::new(MemoryDisk::new(1 << 20)), 2);
        disk.write_at(&[1; 4096], 0, Durability::Plain).unwrap();
        disk.flush().unwrap();
        disk.read_at(&mut [0; 4096], 0).unwrap();
        assert!(disk.write_at(&[1; 4096], 0, Durability::Plain).is_err());
        assert!(disk.read_at(&mut [0; 4096], 0).is_err(), "a disk that went away does not come back");

        let memory = Arc::new(MemoryDisk::new(1 << 20));
        let torn = FaultyDisk::new(memory.clone(), Box::new(|n, _| if n == 0 { Verdict::Tear(512) } else { Verdict::Pass }));
        assert_eq!(torn.write_at(&[9; 4096], 0, Durability::Forced).unwrap_err().errno(), libc::EIO);
        let mut back = [0; 4096];
        torn.read_at(&mut back, 0).unwrap();
        assert!(back[..512].iter().all(|b| *b == 9) && back[512..].iter().all(|b| *b == 0));
    }
}
