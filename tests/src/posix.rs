//! Byte-range locks through fcntl(2), owned by the open file (as QEMU uses them) or by the process (as databases do).
//!
//! All calls are non-blocking unless they say so; `false` means that somebody else has a conflicting lock.

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};
use std::{fs::File, io};

/// What kind of lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Several may have it.
    Shared,
    /// One only.
    Exclusive,
    /// Let go.
    Unlock,
}

/// `start` and `len` of a range; `len` 0 is to the end of the file, however long it grows.
pub type Range = (i64, i64);

fn spec(mode: Mode, (start, len): Range) -> libc::flock {
    let kind = match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
        Mode::Unlock => libc::F_UNLCK,
    };
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

/// A lock that belongs to the open file.
pub fn file_lock(file: &File, mode: Mode, range: Range) -> io::Result<bool> {
    answer(fcntl(file, FcntlArg::F_OFD_SETLK(&spec(mode, range))))
}

/// Who would be in the way of a lock, as `kind start len`; `free` if nobody. By the open file (`of_file`) or by the process.
pub fn in_the_way(file: &File, of_file: bool, mode: Mode, range: Range) -> io::Result<String> {
    let mut asked = spec(mode, range);
    fcntl(file, if of_file { FcntlArg::F_OFD_GETLK(&mut asked) } else { FcntlArg::F_GETLK(&mut asked) })?;
    Ok(match i32::from(asked.l_type) {
        libc::F_UNLCK => "free".into(),
        kind => format!("{} {} {}", if kind == libc::F_RDLCK { "shared" } else { "exclusive" }, asked.l_start, asked.l_len),
    })
}

/// Waits for a lock that belongs to this process.
pub fn process_lock_wait(file: &File, mode: Mode, range: Range) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETLKW(&spec(mode, range)))?;
    Ok(())
}

/// A lock that belongs to this process.
pub fn process_lock(file: &File, mode: Mode, range: Range) -> io::Result<bool> {
    answer(fcntl(file, FcntlArg::F_SETLK(&spec(mode, range))))
}

/// Waits for a lock that belongs to the open file.
pub fn file_lock_wait(file: &File, mode: Mode, range: Range) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLKW(&spec(mode, range)))?;
    Ok(())
}

/// A whole-file lock of flock(2).
pub fn flock(file: &File, operation: rustix::fs::FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn answer(result: nix::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
