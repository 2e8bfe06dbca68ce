//! copy_file_range(2) inside the daemon: the bytes never pass through the caller.
//!
//! Invariant: no two inode rights are held at once, so the order of names is never broken; the answer may be short. Holes are
//! copied as holes where the target has nothing.

use super::right::Right;
use super::write::{Slow, WriteHow};
use crate::error::FsError;
use crate::extent::RunKind;
use crate::open::OpenFile;
use crate::system::Fs;
use crate::volume::Wait;
use luna_dlm::Mode;
use luna_format::BLOCK_U64;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// Bytes copied in one step.
const STEP: u64 = 1 << 20;
/// Bytes copied by one call at the most, so that a signal gets through to the caller now and then.
const MOST: u64 = 64 << 20;

impl Fs {
    /// Copies up to `len` bytes; waits for locks. Says how many bytes were copied.
    pub(crate) fn copy_range(
        self: &Arc<Self>,
        (from, mut at): (&OpenFile, u64),
        (to, mut target): (&OpenFile, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        let mut left = len.min(MOST);
        let mut copied = 0;
        while left > 0 {
            match self.copy_step((from, at), (to, target), left.min(STEP)) {
                Ok(0) => break,
                Ok(n) => {
                    (at, target, left, copied) = (at + n, target + n, left - n, copied + n);
                }
                Err(_) if copied > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(copied)
    }

    fn copy_step(self: &Arc<Self>, (from, at): (&OpenFile, u64), (to, target): (&OpenFile, u64), len: u64) -> Result<u64, FsError> {
        let hold = |f: &OpenFile, mode| {
            let got = self.volume.locks.hold(f.node.handle.name(), mode);
            got.map(Right::Held).map_err(|e| FsError::Withdrawn(e.to_string()))
        };
        let source = {
            let right = hold(from, from.read_mode())?;
            let _pass = from.node.gate.shared();
            let seen = self.look(&from.node, &right, at / BLOCK_U64, (at + len).div_ceil(BLOCK_U64))?;
            let left = seen.size.saturating_sub(at).min(len);
            if left == 0 {
                return Ok(0);
            }
            let empty = !seen.small && !seen.runs().is_empty() && seen.runs().iter().all(|r| !matches!(r.kind, RunKind::Written(_)));
            (left, empty)
        };
        let (n, empty) = source;
        if empty {
            let right = hold(to, Mode::Ex)?;
            let size = self.look(&to.node, &right, 0, 1)?.size;
            drop(right);
            if target >= size {
                self.truncate(&to.node, target + n, false, Wait::Yes)?;
                return Ok(n);
            }
        }
        let bytes = self.read_wait(from, at, n as u32)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let right = hold(to, Mode::Ex)?;
        match self.write_slow_at(&to.node, &right, target, &bytes, WriteHow::default())? {
            Slow::Done(n) => Ok(u64::from(n)),
            Slow::NeedsEx | Slow::WouldWait => Err(FsError::WouldBlock),
        }
    }

    /// A read that waits for its answer. Not for FUSE threads.
    pub(crate) fn read_wait(self: &Arc<Self>, file: &OpenFile, offset: u64, len: u32) -> Result<Vec<u8>, FsError> {
        let slot = Arc::new((Mutex::new(None), Condvar::new()));
        let theirs = Arc::clone(&slot);
        self.read(file, offset, len, move |got: Result<&[u8], FsError>| {
            *theirs.0.lock() = Some(got.map(<[u8]>::to_vec));
            theirs.1.notify_one();
        });
        self.drive();
        let mut answer = slot.0.lock();
        loop {
            if let Some(got) = answer.take() {
                return got;
            }
            slot.1.wait(&mut answer);
        }
    }
}
