//! Byte-range locks of processes, through fcntl(2).
//!
//! POSIX locks belong to a process, so a test that wants two owners starts this test binary's own helper: `flock(1)` for
//! whole files, and open-file-description locks, which QEMU uses and which belong to an open file, for ranges.

use std::{fs::File, io, os::fd::AsFd};

/// Takes or drops a whole-file lock without waiting; `false` when somebody else has it.
pub fn flock(file: &File, operation: rustix::fs::FlockOperation) -> io::Result<bool> {
    answer(rustix::fs::flock(file, operation))
}

/// Takes or drops a POSIX lock on the whole file without waiting; `false` when somebody else has it.
pub fn posix_lock(file: &impl AsFd, operation: rustix::fs::FlockOperation) -> io::Result<bool> {
    answer(rustix::fs::fcntl_lock(file, operation))
}

fn answer(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::ACCESS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
