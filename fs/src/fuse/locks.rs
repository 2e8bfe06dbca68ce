//! Byte-range and whole-file locks of programs, forwarded to the cluster.
//!
//! A request that waits keeps no thread: its reply is parked with the lock client. `fuser` does not pass FUSE's interrupts on,
//! so one watcher thread looks five times a second whether a waiting program has a signal to handle, or is gone, and cancels
//! for it. FUSE as `fuser` shows it does not say whether a whole-file lock came from flock(2): like NFS, both kinds are served
//! from one space of ranges.
//!
//! The kernel does not say what a handle's end lets go: FLUSH names the closing process, never the open file that owns the
//! locks of F_OFD_SETLK, and RELEASE names nobody unless flock(2) was used. So [`Owners`] keeps, for each handle, who locked
//! through it. FLUSH forgets the process it names, so what is left at RELEASE are open files, each the handle's own.
//!
//! Invariants: every request is answered exactly once; a cancelled one with EINTR. After RELEASE no owner known only through
//! that handle has a lock. Not here: who holds what.

use crate::names;
use crate::open::Node;
use crate::system::Fs;
use fuser::{Errno, ReplyEmpty, ReplyLock};
use luna_dlm::posix::{Op, PosixError, PosixLock, PosixResult, Space, Token};
use luna_format::Ino;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks at waiting programs.
const LOOK: Duration = Duration::from_millis(200);

/// A lock as FUSE tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) ino: Ino,
    pub(super) owner: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) typ: i32,
    pub(super) pid: u32,
    /// The thread that asked.
    pub(super) tid: u32,
}

impl Wanted {
    fn lock(&self, fs: &Fs) -> PosixLock {
        // FUSE writes "to the end" as the greatest offset
        let end = if self.end >= i64::MAX as u64 { u64::MAX } else { self.end };
        let owner = fs.posix.owner(self.owner);
        PosixLock { space: Space::Range, owner, start: self.start, end, write: self.typ == libc::F_WRLCK, pid: self.pid }
    }
}

/// Who locked through which handle: inode, handle, owner.
#[derive(Default)]
pub(super) struct Owners {
    all: Mutex<BTreeSet<(Ino, u64, u64)>>,
}

impl Owners {
    /// `owner` locks, or tries to, through the handle.
    pub(super) fn note(&self, ino: Ino, fh: u64, owner: u64) {
        self.all.lock().insert((ino, fh, owner));
    }

    /// The process `owner` closed a descriptor of the handle: its locks on the inode go now, not at the handle's end. RELEASE
    /// may come much later, when the process has the file open and locked again.
    pub(super) fn forget(&self, ino: Ino, fh: u64, owner: u64) {
        self.all.lock().remove(&(ino, fh, owner));
    }

    /// The handle ends: the owners that end with it. An owner is the address of a kernel object; when the kernel has given it
    /// to a newer open file that locked already, what is left belongs to that one and goes with it.
    pub(super) fn end(&self, ino: Ino, fh: u64) -> Vec<u64> {
        let mut all = self.all.lock();
        let gone: Vec<u64> = all.range((ino, fh, 0)..=(ino, fh, u64::MAX)).map(|(_, _, owner)| *owner).collect();
        if gone.is_empty() {
            return gone;
        }
        for owner in &gone {
            all.remove(&(ino, fh, *owner));
        }
        let elsewhere: BTreeSet<u64> = all.range((ino, 0, 0)..=(ino, u64::MAX, u64::MAX)).map(|(_, _, owner)| *owner).collect();
        gone.into_iter().filter(|owner| !elsewhere.contains(owner)).collect()
    }
}

/// Programs that wait for a lock.
#[derive(Default)]
pub(super) struct Waiting {
    list: Mutex<BTreeMap<u64, (Token, u32)>>,
    next: std::sync::atomic::AtomicU64,
    running: std::sync::atomic::AtomicBool,
}

fn errno(e: PosixError) -> Errno {
    match e {
        PosixError::WouldBlock => Errno::EAGAIN,
        PosixError::Interrupted => Errno::EINTR,
        PosixError::Deadlock => Errno::from_i32(libc::EDEADLK),
        PosixError::NoLocks => Errno::from_i32(libc::ENOLCK),
        PosixError::Invalid => Errno::EINVAL,
        PosixError::Withdrawn => Errno::EIO,
    }
}

/// F_GETLK.
pub(super) fn get(fs: &Fs, w: &Wanted, reply: ReplyLock) {
    let done = move |got: PosixResult| match got {
        Ok(Some(l)) => {
            let end = if l.end == u64::MAX { i64::MAX as u64 } else { l.end };
            reply.locked(l.start, end, if l.write { libc::F_WRLCK } else { libc::F_RDLCK }, l.pid);
        }
        Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
        Err(e) => reply.error(errno(e)),
    };
    fs.posix.start(&names::posix(w.ino), Op::Get(w.lock(fs)), Box::new(done));
}

/// F_SETLK, F_SETLKW, flock.
pub(super) fn set(fs: &Fs, waiting: &Arc<Waiting>, node: &Node, w: &Wanted, sleep: bool, reply: ReplyEmpty) {
    let name = names::posix(w.ino);
    let lock = w.lock(fs);
    let answer = |reply: ReplyEmpty, got: PosixResult| match got {
        Ok(_) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    };
    if w.typ == libc::F_UNLCK {
        let op = Op::Unset { space: lock.space, owner: lock.owner, start: lock.start, end: lock.end };
        fs.posix.start(&name, op, Box::new(move |got| answer(reply, got)));
        return;
    }
    node.locked.store(true, Ordering::Release);
    if !sleep {
        fs.posix.start(&name, Op::Set { lock, wait: false }, Box::new(move |got| answer(reply, got)));
        return;
    }
    let key = waiting.next.fetch_add(1, Ordering::Relaxed);
    let theirs = Arc::clone(waiting);
    let answered = Arc::new(Mutex::new(false));
    let flag = Arc::clone(&answered);
    let done = move |got: PosixResult| {
        *flag.lock() = true;
        theirs.list.lock().remove(&key);
        answer(reply, got);
    };
    let token = fs.posix.start(&name, Op::Set { lock, wait: true }, Box::new(done));
    let answered = answered.lock();
    if !*answered {
        waiting.list.lock().insert(key, (token, w.tid));
        watch(fs, waiting);
    }
}

/// Everything the owner has on the file is let go, at close.
pub(super) fn release(fs: &Fs, node: &Node, owner: u64, then: impl FnOnce() + Send + 'static) {
    if !node.locked.load(Ordering::Acquire) {
        return then();
    }
    let op = Op::release_owner(Space::Range, fs.posix.owner(owner));
    fs.posix.start(&names::posix(node.ino), op, Box::new(move |_| then()));
}

/// Starts the watcher, unless it runs.
fn watch(fs: &Fs, waiting: &Arc<Waiting>) {
    if waiting.running.swap(true, Ordering::AcqRel) {
        return;
    }
    let (theirs, posix) = (Arc::clone(waiting), Arc::clone(&fs.posix));
    let watcher = move || {
        loop {
            std::thread::sleep(LOOK);
            let now: Vec<(Token, u32)> = theirs.list.lock().values().copied().collect();
            for (token, tid) in &now {
                if has_signal(*tid) {
                    posix.cancel(*token);
                }
            }
            if now.is_empty() {
                theirs.running.store(false, Ordering::Release);
                // somebody may have come between the look and the store
                if theirs.list.lock().is_empty() || theirs.running.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        }
    };
    if std::thread::Builder::new().name("luna-locks".to_owned()).spawn(watcher).is_err() {
        waiting.running.store(false, Ordering::Release);
        tracing::warn!("no thread to watch waiting lock requests; they can not be interrupted");
    }
}

/// Whether a thread has a signal that it would act on, or is gone. A thread of another pid namespace (0) is not looked at.
fn has_signal(tid: u32) -> bool {
    if tid == 0 {
        return false;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    let mask = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let get = |key| mask(key).unwrap_or(0);
    (get("SigPnd:") | get("ShdPnd:")) & !get("SigBlk:") & !get("SigIgn:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_ends_the_owners_known_only_through_it() {
        let owners = Owners::default();
        let (f, g): (Ino, Ino) = (7, 8);
        owners.note(f, 1, 100);
        owners.note(f, 1, 101);
        owners.note(f, 2, 102);
        owners.note(g, 3, 100);
        owners.forget(f, 1, 101);
        assert_eq!(owners.end(f, 1), [100], "a flushed owner is not let go again, one of another inode does not matter");
        assert!(owners.end(f, 1).is_empty());
        // the address of an open file that is gone is given to the next one, which locks before the old handle ends
        owners.note(f, 4, 102);
        assert!(owners.end(f, 2).is_empty());
        assert_eq!(owners.end(f, 4), [102]);
        assert_eq!(owners.end(g, 3), [100]);
    }

    #[test]
    fn a_calm_process_has_no_signal_and_a_dead_one_is_gone() {
        assert!(!has_signal(std::process::id()));
        assert!(!has_signal(0));
        assert!(has_signal(u32::MAX - 1));
    }
}
