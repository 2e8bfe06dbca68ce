//! Which blocks of a file lie where, as far as it is known: disjoint runs in memory, holes included.
//!
//! Invariant: a run in here is what the extent tree says, or it was forgotten in the same critical section that changed the
//! tree. What is not covered is unknown, not a hole. Bounded: past [`MAX_RUNS`] everything is forgotten and learnt again.

use crate::extent::{Run, RunKind};
use std::collections::BTreeMap;

/// Runs of one file kept in memory at the most.
const MAX_RUNS: usize = 8192;

/// What is known about a range.
#[derive(Debug, PartialEq)]
pub(crate) enum Cover {
    /// One run covers all of it.
    One(Run),
    /// Several runs, in order, clipped to the range, without a gap.
    Many(Vec<Run>),
    /// Something in it is not known.
    Unknown,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct ExtentCache {
    runs: BTreeMap<u64, (u64, RunKind)>,
}

/// The run as it looks `by` blocks further on.
pub(crate) fn advance(kind: RunKind, by: u64) -> RunKind {
    match kind {
        RunKind::Hole => RunKind::Hole,
        RunKind::Written(p) => RunKind::Written(p + by),
        RunKind::Unwritten(p) => RunKind::Unwritten(p + by),
    }
}

/// The part of a run inside `start..end`, if there is one.
pub(crate) fn clip(r: &Run, start: u64, end: u64) -> Option<Run> {
    let (from, to) = (r.logical.max(start), (r.logical + r.len).min(end));
    (from < to).then(|| Run { logical: from, len: to - from, kind: advance(r.kind, from - r.logical) })
}

impl ExtentCache {
    /// The run that contains `block`, whole.
    pub(crate) fn at(&self, block: u64) -> Option<Run> {
        let (logical, (len, kind)) = self.runs.range(..=block).next_back()?;
        (block < logical + len).then_some(Run { logical: *logical, len: *len, kind: *kind })
    }

    /// What is known about `start..end` (not empty).
    pub(crate) fn cover(&self, start: u64, end: u64) -> Cover {
        let Some(first) = self.at(start) else { return Cover::Unknown };
        if first.logical + first.len >= end {
            return clip(&first, start, end).map_or(Cover::Unknown, Cover::One);
        }
        let (mut out, mut at) = (Vec::new(), start);
        while at < end {
            let Some(run) = self.at(at).and_then(|r| clip(&r, at, end)) else { return Cover::Unknown };
            at = run.logical + run.len;
            out.push(run);
        }
        Cover::Many(out)
    }

    /// Learns a run, which replaces what was known there.
    pub(crate) fn learn(&mut self, run: &Run) {
        if run.len == 0 {
            return;
        }
        if self.runs.len() >= MAX_RUNS {
            self.runs.clear();
        }
        self.forget(run.logical, run.logical.saturating_add(run.len));
        self.runs.insert(run.logical, (run.len, run.kind));
    }

    /// Nothing is known about `start..end` any more.
    pub(crate) fn forget(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(r) = self.at(start)
            && r.logical < start
        {
            self.runs.insert(r.logical, (start - r.logical, r.kind));
            if r.logical + r.len > end {
                self.runs.insert(end, (r.logical + r.len - end, advance(r.kind, end - r.logical)));
                return;
            }
        }
        let inside: Vec<u64> = self.runs.range(start..end).map(|(l, _)| *l).collect();
        for l in inside {
            if let Some((len, kind)) = self.runs.remove(&l)
                && l + len > end
            {
                self.runs.insert(end, (l + len - end, advance(kind, end - l)));
            }
        }
    }

    /// Nothing is known at all.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a table of single blocks.
    #[test]
    fn it_agrees_with_a_plain_table() {
        const N: usize = 64;
        let mut rng = fastrand::Rng::with_seed(7);
        let mut cache = ExtentCache::default();
        let mut table: Vec<Option<RunKind>> = vec![None; N];
        for _ in 0..20_000 {
            let start = rng.usize(..N - 1);
            let len = rng.usize(1..=N - start);
            let kind = [RunKind::Hole, RunKind::Written(rng.u64(..1000)), RunKind::Unwritten(rng.u64(..1000))][rng.usize(..3)];
            if rng.u8(..4) == 0 {
                cache.forget(start as u64, (start + len) as u64);
                table[start..start + len].fill(None);
            } else {
                cache.learn(&Run { logical: start as u64, len: len as u64, kind });
                (0..len).for_each(|i| table[start + i] = Some(advance(kind, i as u64)));
            }
            let (from, to) = (rng.usize(..N - 1), N);
            let to = rng.usize(from + 1..=to);
            let runs = match cache.cover(from as u64, to as u64) {
                Cover::Unknown => {
                    assert!(table[from..to].contains(&None));
                    continue;
                }
                Cover::One(r) => vec![r],
                Cover::Many(rs) => rs,
            };
            let mut at = from as u64;
            for r in runs {
                assert_eq!(r.logical, at);
                (0..r.len).for_each(|i| assert_eq!(table[(at + i) as usize], Some(advance(r.kind, i))));
                at += r.len;
            }
            assert_eq!(at, to as u64);
        }
    }
}
