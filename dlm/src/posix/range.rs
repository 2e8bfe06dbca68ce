//! The tables of byte-range locks a master keeps, and the arithmetic of ranges. Pure.
//!
//! Invariant: the ranges of one owner in one table neither overlap nor touch with the same type and process, so a table is as
//! small as it can be; held ranges of different owners never conflict. The table knows nothing of hosts' lives: whoever owns it
//! says when a host's locks go.

use std::collections::BTreeMap;

use super::{Op, Owner, PosixError, PosixLock, PosixResult, Space};
use crate::name::Name;

/// Which request is answered: the host's slot and its token.
pub type Key = (u16, u64);

/// Ranges and waiters of one file; more are refused with `NoLocks`.
const LIMIT: usize = 65_536;

/// The locks of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    held: Vec<PosixLock>,
    waiting: Vec<(Key, PosixLock)>,
}

impl Table {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn held(&self) -> &[PosixLock] {
        &self.held
    }

    fn in_the_way(&self, lock: &PosixLock) -> Option<&PosixLock> {
        self.held.iter().filter(|held| held.conflicts(lock)).min_by_key(|held| held.start)
    }

    /// Cuts `start..=end` out of what the owner has.
    pub(crate) fn unset(&mut self, space: Space, owner: Owner, start: u64, end: u64) {
        let mut kept = Vec::with_capacity(self.held.len() + 1);
        for lock in self.held.drain(..) {
            if lock.space != space || lock.owner != owner || !lock.overlaps(start, end) {
                kept.push(lock);
                continue;
            }
            if lock.start < start {
                kept.push(PosixLock { end: start - 1, ..lock });
            }
            if lock.end > end {
                kept.push(PosixLock { start: end + 1, ..lock });
            }
        }
        self.held = kept;
    }

    /// Puts the range in, replacing what the owner has there and joining what touches.
    pub(crate) fn set(&mut self, mut lock: PosixLock) {
        self.unset(lock.space, lock.owner, lock.start, lock.end);
        self.held.retain(|other| {
            let same = other.space == lock.space && other.owner == lock.owner && other.write == lock.write && other.pid == lock.pid;
            let touches = other.end.checked_add(1) == Some(lock.start) || lock.end.checked_add(1) == Some(other.start);
            if same && touches {
                lock.start = lock.start.min(other.start);
                lock.end = lock.end.max(other.end);
            }
            !(same && touches)
        });
        self.held.push(lock);
    }

    /// Would `owner` waiting for `lock` close a circle? `flock` is never checked, as on Linux.
    fn deadlocks(&self, lock: &PosixLock) -> bool {
        if lock.space == Space::Flock {
            return false;
        }
        let mut seen = Vec::new();
        let mut open = vec![*lock];
        while let Some(wanted) = open.pop() {
            for holder in self.held.iter().filter(|held| held.conflicts(&wanted)).map(|held| held.owner) {
                if holder == lock.owner {
                    return true;
                }
                if !seen.contains(&holder) {
                    seen.push(holder);
                    open.extend(self.waiting.iter().filter(|(_, w)| w.space == Space::Range && w.owner == holder).map(|(_, w)| *w));
                }
            }
        }
        false
    }

    /// Grants whatever waits and can be had now.
    fn wake(&mut self, answers: &mut Vec<(Key, PosixResult)>) {
        let mut still = Vec::new();
        for (key, lock) in std::mem::take(&mut self.waiting) {
            if self.in_the_way(&lock).is_some() {
                still.push((key, lock));
            } else {
                self.set(lock);
                answers.push((key, Ok(None)));
            }
        }
        self.waiting = still;
    }

    fn op(&mut self, key: Key, op: Op, answers: &mut Vec<(Key, PosixResult)>) {
        match op {
            Op::Get(lock) => answers.push((key, Ok(self.in_the_way(&lock).copied()))),
            Op::Unset { space, owner, start, end } => {
                self.unset(space, owner, start, end);
                answers.push((key, Ok(None)));
                self.wake(answers);
            }
            Op::Set { lock, .. } if lock.start > lock.end => answers.push((key, Err(PosixError::Invalid))),
            Op::Set { .. } if self.held.len() + self.waiting.len() >= LIMIT => answers.push((key, Err(PosixError::NoLocks))),
            Op::Set { lock, .. } if self.in_the_way(&lock).is_none() => {
                self.set(lock);
                answers.push((key, Ok(None)));
                self.wake(answers);
            }
            Op::Set { wait: false, .. } => answers.push((key, Err(PosixError::WouldBlock))),
            Op::Set { lock, .. } if self.deadlocks(&lock) => answers.push((key, Err(PosixError::Deadlock))),
            Op::Set { lock, .. } => {
                self.waiting.push((key, lock));
                if lock.space == Space::Flock {
                    // As on Linux, changing an flock lets go first; otherwise two who share could wait for each other for ever.
                    self.unset(lock.space, lock.owner, lock.start, lock.end);
                    self.wake(answers);
                }
            }
        }
    }
}

/// The tables of all names one host masters.
#[derive(Clone, Debug, Default)]
pub struct Server {
    tables: BTreeMap<Name, Table>,
}

impl Server {
    /// Does the operation; pushes the answer, unless it has to wait, and the answers of others that can go on because of it.
    pub fn op(&mut self, key: Key, name: Name, op: Op, answers: &mut Vec<(Key, PosixResult)>) {
        let table = self.tables.entry(name).or_default();
        table.op(key, op, answers);
        if table.is_empty() {
            self.tables.remove(&name);
        }
    }

    /// Ends the waiting of one request; nothing happens if it is not waiting any more.
    pub fn cancel(&mut self, key: Key, name: &Name, answers: &mut Vec<(Key, PosixResult)>) {
        if let Some(table) = self.tables.get_mut(name) {
            let before = table.waiting.len();
            table.waiting.retain(|(other, _)| *other != key);
            if table.waiting.len() < before {
                answers.push((key, Err(PosixError::Interrupted)));
            }
            if table.is_empty() {
                self.tables.remove(name);
            }
        }
    }

    /// Takes over a lock that was granted by an earlier master.
    pub(crate) fn adopt(&mut self, name: Name, lock: PosixLock) {
        self.tables.entry(name).or_default().set(lock);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &Table)> {
        self.tables.iter()
    }

    /// Drops what the owner has of the range.
    pub(crate) fn forget(&mut self, name: Name, space: Space, owner: Owner, start: u64, end: u64) {
        if let Some(table) = self.tables.get_mut(&name) {
            table.unset(space, owner, start, end);
            if table.is_empty() {
                self.tables.remove(&name);
            }
        }
    }

    /// The first pair of held locks that conflict, if the table is broken.
    pub(crate) fn broken(&self) -> Option<(Name, PosixLock, PosixLock)> {
        self.tables.iter().find_map(|(name, table)| {
            let pair = |a: &PosixLock| table.held.iter().find(|b| a.conflicts(b)).map(|b| (*name, *a, *b));
            table.held.iter().find_map(pair)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 24;

    /// One cell per byte and owner: nothing, shared, exclusive.
    type Naive = BTreeMap<(Owner, u64), bool>;

    fn naive_conflict(naive: &Naive, lock: &PosixLock) -> bool {
        naive.iter().any(|((owner, at), write)| *owner != lock.owner && (lock.start..=lock.end).contains(at) && (*write || lock.write))
    }

    fn cells(table: &Table) -> Naive {
        let mut naive = Naive::new();
        for lock in &table.held {
            for at in lock.start..=lock.end.min(BYTES) {
                assert!(naive.insert((lock.owner, at), lock.write).is_none(), "an owner's ranges overlap");
            }
        }
        naive
    }

    #[test]
    fn thousands_of_random_operations_match_a_table_with_one_cell_per_byte() {
        for seed in 0..400 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut server, mut naive, name) = (Server::default(), Naive::new(), Name::default());
            for token in 0..60 {
                let owner = Owner { slot: rng.u16(0..2), id: rng.u64(0..2) };
                let start = rng.u64(0..BYTES);
                let end = rng.u64(start..BYTES);
                let lock = PosixLock { space: Space::Range, owner, start, end, write: rng.bool(), pid: 7 };
                let mut answers = Vec::new();
                let op = match rng.u8(0..4) {
                    0 => Op::Unset { space: Space::Range, owner, start, end },
                    1 => Op::Get(lock),
                    _ => Op::Set { lock, wait: false },
                };
                server.op((0, token), name, op, &mut answers);
                let answer = answers[0].1;
                match op {
                    Op::Unset { .. } => naive.retain(|(o, at), _| *o != owner || !(start..=end).contains(at)),
                    Op::Get(_) => assert_eq!(answer.expect("get answers").is_some(), naive_conflict(&naive, &lock)),
                    Op::Set { .. } if naive_conflict(&naive, &lock) => assert_eq!(answer, Err(PosixError::WouldBlock)),
                    Op::Set { .. } => {
                        assert_eq!(answer, Ok(None));
                        naive.extend((start..=end).map(|at| ((owner, at), lock.write)));
                    }
                }
                let table = server.tables.get(&name).cloned().unwrap_or_default();
                assert_eq!(cells(&table), naive, "seed {seed}");
                assert!(server.broken().is_none());
                for a in &table.held {
                    let joined = |b: &PosixLock| b.owner == a.owner && b.write == a.write && a.end + 1 == b.start;
                    assert!(!table.held.iter().any(joined), "touching ranges are joined");
                }
            }
        }
    }

    fn lock(id: u64, start: u64, end: u64, write: bool) -> PosixLock {
        PosixLock { space: Space::Range, owner: Owner { slot: 0, id }, start, end, write, pid: 1 }
    }

    #[test]
    fn waiting_is_answered_cancelled_and_refused_in_a_circle() {
        let (mut s, name, mut out) = (Server::default(), Name::default(), Vec::new());
        s.op((0, 1), name, Op::Set { lock: lock(1, 0, 9, true), wait: true }, &mut out);
        s.op((0, 2), name, Op::Set { lock: lock(2, 10, u64::MAX, true), wait: true }, &mut out);
        assert_eq!(std::mem::take(&mut out), [((0, 1), Ok(None)), ((0, 2), Ok(None))]);
        s.op((0, 3), name, Op::Set { lock: lock(1, 10, 19, false), wait: true }, &mut out);
        assert!(out.is_empty(), "it waits");
        s.op((0, 4), name, Op::Set { lock: lock(2, 5, 5, false), wait: true }, &mut out);
        assert_eq!(std::mem::take(&mut out), [((0, 4), Err(PosixError::Deadlock))]);
        s.op((0, 5), name, Op::Set { lock: lock(3, 0, 0, false), wait: true }, &mut out);
        s.cancel((0, 5), &name, &mut out);
        assert_eq!(std::mem::take(&mut out), [((0, 5), Err(PosixError::Interrupted))]);
        s.op((0, 6), name, Op::Unset { space: Space::Range, owner: Owner { slot: 0, id: 2 }, start: 0, end: 19 }, &mut out);
        assert_eq!(std::mem::take(&mut out), [((0, 6), Ok(None)), ((0, 3), Ok(None))]);
        s.op((0, 7), name, Op::Set { lock: lock(1, 9, 3, true), wait: true }, &mut out);
        assert_eq!(out, [((0, 7), Err(PosixError::Invalid))]);
    }

    #[test]
    fn two_who_share_an_flock_and_both_want_it_alone_get_it_in_turn() {
        let (mut s, name, mut out) = (Server::default(), Name::default(), Vec::new());
        let whole = |id, write| PosixLock::flock(Owner { slot: 0, id }, write, 1);
        for id in 0..2 {
            s.op((0, id), name, Op::Set { lock: whole(id, false), wait: true }, &mut out);
        }
        out.clear();
        s.op((0, 2), name, Op::Set { lock: whole(0, true), wait: true }, &mut out);
        assert!(out.is_empty());
        s.op((0, 3), name, Op::Set { lock: whole(1, true), wait: true }, &mut out);
        assert_eq!(out.first(), Some(&((0, 3), Ok(None))), "0 let go of its share, so 1 is alone");
        out.clear();
        s.op((0, 4), name, Op::release_owner(Space::Flock, Owner { slot: 0, id: 1 }), &mut out);
        assert_eq!(out, [((0, 4), Ok(None)), ((0, 2), Ok(None))]);
    }
}
