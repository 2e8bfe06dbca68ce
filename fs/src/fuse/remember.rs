//! What the kernel may remember of attributes, and for how long.
//!
//! Under PR or EX of an inode no other host changes it, so the kernel may answer `stat` and permission checks by itself; before the
//! right goes below PR it is told to forget (`revoke`). A reply that was on its way meanwhile is dropped by the kernel: the
//! notification raises the inode's attribute version above the one the request began with.
//!
//! Two gaps of the kernel are closed here. A reply that *makes* an inode could be overtaken by a notification, which then finds nothing
//! to forget. And the kernel applies a reply in steps, "valid" before the values: with a promise in it, another program that
//! looks in between would be shown what another host had changed long before. So a reply promises something only if the
//! same inode was answered for [`SETTLED`] before under the same right: by then the kernel has the inode and what other hosts changed.
//!
//! Invariant: nothing is promised without PR, nor in the first answers after the right came back. Names are not remembered (ADR 5).

use luna_format::Ino;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long attributes are valid that nobody else can change; bounds what a gap that nobody knows could cost.
const STEADY: Duration = Duration::from_secs(1);
/// How long ago the kernel must have been answered first: far more than a program needs to take an answer.
const SETTLED: Duration = Duration::from_millis(50);

/// Inodes answered for under a right that is still here, and when first.
#[derive(Debug, Default)]
pub(super) struct Remember(Mutex<HashMap<Ino, Instant>>);

impl Remember {
    /// For how long attributes of `ino` are valid in an answer that is made now; `steady`: the operation has the inode in PR or more.
    /// Called while it has it, or a right that went meanwhile would count as here.
    pub(super) fn promise(&self, ino: Ino, steady: bool) -> Duration {
        if !steady {
            return Duration::ZERO;
        }
        let first = *self.0.lock().entry(ino).or_insert_with(Instant::now);
        if first.elapsed() >= SETTLED { STEADY } else { Duration::ZERO }
    }

    /// The right goes, or the kernel let the inode go.
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }
}
