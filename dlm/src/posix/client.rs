//! The file system's thread-safe door to byte-range locks: start an operation, be told its answer, cancel it.
//!
//! Invariant: every operation is answered exactly once, also when it is cancelled or the host is withdrawn. The client asks
//! nothing when an owner that never locked lets go, so closing a file costs no message. It keeps no table of ranges; the core
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::{Op, Owner, PosixError, PosixLock, PosixResult, Server, Space};
use crate::name::Name;

/// Names one operation of one client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(
    /// Never used twice in one incarnation.
    pub u64,
);

/// The way to the core: becomes `Input::Posix` and `Input::PosixCancel`. Only enqueue; do not answer on the same call.
pub trait PosixRequester: Send + Sync {
    /// Do `op`; the answer comes back through [`PosixClient::done`].
    fn posix(&self, token: u64, name: Name, op: Op);
    /// Stop waiting; the operation is still answered.
    fn cancel(&self, token: u64);
}

type Done = Box<dyn FnOnce(PosixResult) + Send>;

#[derive(Default)]
struct State {
    next: u64,
    open: BTreeMap<u64, (Name, Done)>,
    /// Owners that may hold something.
    owners: BTreeSet<(Name, Space, u64)>,
    /// Only for a client without a cluster.
    server: Server,
    withdrawn: bool,
}

/// See the module's text.
pub struct PosixClient {
    slot: u16,
    requester: Option<Arc<dyn PosixRequester>>,
    state: Mutex<State>,
}

impl PosixClient {
    /// A client of the host in `slot`.
    #[must_use]
    pub fn new(slot: u16, requester: Arc<dyn PosixRequester>) -> Arc<Self> {
        Arc::new(Self { slot, requester: Some(requester), state: Mutex::default() })
    }

    /// A client without a cluster.
    #[must_use]
    pub fn local() -> Arc<Self> {
        Arc::new(Self { slot: 0, requester: None, state: Mutex::default() })
    }

    /// The owner `id` on this host.
    #[must_use]
    pub const fn owner(&self, id: u64) -> Owner {
        Owner { slot: self.slot, id }
    }

    /// Starts an operation; `done` is called once, maybe before this returns. The token is for [`Self::cancel`].
    pub fn start(&self, name: &Name, op: Op, done: Box<dyn FnOnce(PosixResult) + Send>) -> Token {
        let mut state = self.state.lock();
        state.next += 1;
        let token = state.next;
        if state.withdrawn {
            drop(state);
            done(Err(PosixError::Withdrawn));
            return Token(token);
        }
        let whole = |start, end| start == 0 && end == u64::MAX;
        match op {
            Op::Set { lock, .. } => {
                state.owners.insert((*name, lock.space, lock.owner.id));
            }
            Op::Unset { space, owner, start, end } if whole(start, end) && !state.owners.remove(&(*name, space, owner.id)) => {
                drop(state);
                done(Ok(None));
                return Token(token);
            }
            Op::Unset { .. } | Op::Get(_) => {}
        }
        state.open.insert(token, (*name, done));
        if let Some(requester) = &self.requester {
            requester.posix(token, *name, op);
        } else {
            let mut answers = Vec::new();
            state.server.op((0, token), *name, op, &mut answers);
            Self::deliver(state, answers);
        }
        Token(token)
    }

    /// Stops waiting. The operation is answered `Interrupted`, or with success if that was on its way.
    pub fn cancel(&self, token: Token) {
        let mut state = self.state.lock();
        let Some(name) = state.open.get(&token.0).map(|(name, _)| *name) else { return };
        if let Some(requester) = &self.requester {
            requester.cancel(token.0);
        } else {
            let mut answers = Vec::new();
            state.server.cancel((0, token.0), &name, &mut answers);
            Self::deliver(state, answers);
        }
    }

    /// The core's answer (`Output::PosixDone`).
    pub fn done(&self, token: u64, result: PosixResult) {
        Self::deliver(self.state.lock(), vec![((self.slot, token), result)]);
    }

    /// The host was withdrawn: every open operation and every later one is refused.
    pub fn withdraw(&self) {
        let mut state = self.state.lock();
        state.withdrawn = true;
        let answers = state.open.keys().map(|token| ((self.slot, *token), Err(PosixError::Withdrawn))).collect();
        Self::deliver(state, answers);
    }

    fn deliver(mut state: parking_lot::MutexGuard<'_, State>, answers: Vec<(super::Key, PosixResult)>) {
        let take = |(key, result): (super::Key, PosixResult)| state.open.remove(&key.1).map(|(_, done)| (done, result));
        let calls: Vec<_> = answers.into_iter().filter_map(take).collect();
        drop(state);
        for (done, result) in calls {
            done(result);
        }
    }

    /// Starts an operation and waits for its answer. Not for FUSE threads.
    ///
    /// # Errors
    /// Whatever the operation answers.
    pub fn run(&self, name: &Name, op: Op) -> PosixResult {
        let slot = Arc::new((Mutex::new(None), Condvar::new()));
        let theirs = Arc::clone(&slot);
        let done = move |result| {
            *theirs.0.lock() = Some(result);
            theirs.1.notify_one();
        };
        self.start(name, op, Box::new(done));
        let mut answer = slot.0.lock();
        loop {
            if let Some(result) = answer.take() {
                return result;
            }
            slot.1.wait(&mut answer);
        }
    }

    /// `F_SETLK` (`wait` false) or `F_SETLKW`; `end` is inclusive.
    ///
    /// # Errors
    /// `WouldBlock`, `Deadlock`, `NoLocks`, `Invalid`, `Withdrawn`.
    #[allow(clippy::too_many_arguments, reason = "the arguments of fcntl, in their order")]
    pub fn setlk(&self, name: &Name, owner: u64, start: u64, end: u64, write: bool, wait: bool, pid: u32) -> Result<(), PosixError> {
        let lock = PosixLock { space: Space::Range, owner: self.owner(owner), start, end, write, pid };
        self.run(name, Op::Set { lock, wait }).map(|_| ())
    }

    /// `F_SETLK` with `F_UNLCK`.
    ///
    /// # Errors
    /// `Withdrawn`.
    pub fn unlock(&self, name: &Name, owner: u64, start: u64, end: u64) -> Result<(), PosixError> {
        self.run(name, Op::Unset { space: Space::Range, owner: self.owner(owner), start, end }).map(|_| ())
    }

    /// `F_GETLK`: the first lock in the way.
    ///
    /// # Errors
    /// `Withdrawn`.
    pub fn getlk(&self, name: &Name, owner: u64, start: u64, end: u64, write: bool) -> PosixResult {
        self.run(name, Op::Get(PosixLock { space: Space::Range, owner: self.owner(owner), start, end, write, pid: 0 }))
    }

    /// `flock`: shared or exclusive.
    ///
    /// # Errors
    /// `WouldBlock`, `Withdrawn`.
    pub fn flock(&self, name: &Name, owner: u64, write: bool, wait: bool, pid: u32) -> Result<(), PosixError> {
        self.run(name, Op::Set { lock: PosixLock::flock(self.owner(owner), write, pid), wait }).map(|_| ())
    }

    /// Everything the owner has in the space is let go; free of messages if it never locked anything.
    ///
    /// # Errors
    /// `Withdrawn`.
    pub fn release_owner(&self, name: &Name, space: Space, owner: u64) -> Result<(), PosixError> {
        self.run(name, Op::release_owner(space, self.owner(owner))).map(|_| ())
    }
}

impl std::fmt::Debug for PosixClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PosixClient").field("slot", &self.slot).field("open", &self.state.lock().open.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_client_waits_wakes_and_cancels() {
        let (client, name) = (PosixClient::local(), Name::default());
        client.setlk(&name, 1, 0, 9, true, false, 11).expect("free");
        assert_eq!(client.setlk(&name, 2, 5, 5, false, false, 12), Err(PosixError::WouldBlock));
        assert_eq!(client.getlk(&name, 2, 0, 99, false).expect("answers").map(|l| (l.start, l.end, l.pid)), Some((0, 9, 11)));
        let answers: Arc<Mutex<Vec<PosixResult>>> = Arc::default();
        let push = |a: &Arc<Mutex<Vec<PosixResult>>>| {
            let a = Arc::clone(a);
            Box::new(move |r| a.lock().push(r))
        };
        let wanted = |id| PosixLock { space: Space::Range, owner: client.owner(id), start: 3, end: 4, write: true, pid: 1 };
        let token = client.start(&name, Op::Set { lock: wanted(2), wait: true }, push(&answers));
        client.start(&name, Op::Set { lock: wanted(3), wait: true }, push(&answers));
        client.cancel(token);
        assert_eq!(*answers.lock(), [Err(PosixError::Interrupted)]);
        client.release_owner(&name, Space::Range, 1).expect("released");
        assert_eq!(*answers.lock(), [Err(PosixError::Interrupted), Ok(None)]);
        client.withdraw();
        assert_eq!(client.flock(&name, 1, true, true, 1), Err(PosixError::Withdrawn));
    }
}
