//! Extents as a sorted list in memory: merge, cut, convert. Pure; every change of a leaf goes through here.
//!
//! Invariant: a list that was sorted, free of overlaps and in bounds stays so. Not here: trees, blocks, locks.

use luna_format::inode::{EXTENT_UNWRITTEN, Extent};
use luna_format::superblock::Superblock;

/// The longest extent; a merge never makes a longer one.
pub(super) const MAX_LEN: u64 = (1 << 31) - 1;

/// The part of `e` in `[from, to)`, which overlaps it.
pub(super) fn part(e: &Extent, from: u64, to: u64) -> Extent {
    let (from, to) = (from.max(e.logical), to.min(e.end()));
    Extent { logical: from, physical: e.physical + (from - e.logical), len: (to - from) as u32, flags: e.flags }
}

fn joins(a: &Extent, b: &Extent) -> bool {
    a.end() == b.logical
        && a.physical + u64::from(a.len) == b.physical
        && a.flags == b.flags
        && u64::from(a.len) + u64::from(b.len) <= MAX_LEN
}

/// Merges neighbours wherever that is possible.
pub(super) fn merge(list: &mut Vec<Extent>) {
    list.dedup_by(|b, a| {
        let join = joins(a, b);
        if join {
            a.len += b.len;
        }
        join
    });
}

/// Puts `e` into a hole; `false` (and no change) when something is there.
pub(super) fn insert(list: &mut Vec<Extent>, e: Extent) -> bool {
    let at = list.partition_point(|x| x.logical < e.logical);
    let free = at.checked_sub(1).is_none_or(|i| list[i].end() <= e.logical) && list.get(at).is_none_or(|x| e.end() <= x.logical);
    if free {
        list.insert(at, e);
        merge(list);
    }
    free
}

/// Takes out at most `most` pieces of what lies in `[from, to)`, lowest first. The answer is the pieces and the end of the
/// part that is now a hole.
pub(super) fn cut(list: &mut Vec<Extent>, from: u64, to: u64, most: usize) -> (Vec<Extent>, u64) {
    let first = list.partition_point(|x| x.end() <= from);
    let last = list.partition_point(|x| x.logical < to).min(first.saturating_add(most)).max(first);
    if first == last {
        return (Vec::new(), to);
    }
    let taken: Vec<Extent> = list[first..last].iter().map(|e| part(e, from, to)).collect();
    let before = Some(list[first]).filter(|e| e.logical < from).map(|e| part(&e, e.logical, from));
    let after = Some(list[last - 1]).filter(|e| e.end() > to).map(|e| part(&e, to, e.end()));
    let stop = if list.get(last).is_some_and(|next| next.logical < to) { list[last - 1].end().min(to) } else { to };
    list.splice(first..last, before.into_iter().chain(after));
    (taken, stop)
}

/// Makes what is unwritten in `[from, to)` written; says what became so.
pub(super) fn convert(list: &mut Vec<Extent>, from: u64, to: u64) -> Vec<(u64, u64)> {
    let first = list.partition_point(|x| x.end() <= from);
    let last = list.partition_point(|x| x.logical < to).max(first);
    let mut changed = Vec::new();
    let mut new = Vec::with_capacity(last - first + 2);
    for e in &list[first..last] {
        if !e.unwritten() {
            new.push(*e);
            continue;
        }
        let inner = part(e, from, to);
        if e.logical < inner.logical {
            new.push(part(e, e.logical, inner.logical));
        }
        new.push(Extent { flags: e.flags & !EXTENT_UNWRITTEN, ..inner });
        if inner.end() < e.end() {
            new.push(part(e, inner.end(), e.end()));
        }
        changed.push((inner.logical, inner.end()));
    }
    if !changed.is_empty() {
        list.splice(first..last, new);
        merge(list);
    }
    changed
}

/// What is wrong with a list read from the LUN: order, overlap, lengths, addresses outside of the groups.
pub(super) fn check(list: &[Extent], sb: &Superblock) -> Option<(&'static str, u64)> {
    let mut from = 0;
    for e in list {
        if e.len == 0 || u64::from(e.len) > MAX_LEN {
            return Some(("length of an extent", u64::from(e.len)));
        }
        if e.logical < from || e.logical.checked_add(u64::from(e.len)).is_none() {
            return Some(("order of extents", e.logical));
        }
        let last = e.physical.checked_add(u64::from(e.len) - 1);
        if sb.ag_of(e.physical).is_none() || last.and_then(|l| sb.ag_of(l)).is_none() {
            return Some(("address of an extent", e.physical));
        }
        from = e.end();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<u64, (u64, bool)>;

    fn model(list: &[Extent]) -> Model {
        let blocks = |e: &Extent| {
            let e = *e;
            (0..u64::from(e.len)).map(move |i| (e.logical + i, (e.physical + i, e.unwritten())))
        };
        list.iter().flat_map(blocks).collect()
    }

    #[test]
    fn edits_do_what_a_map_of_blocks_does() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut list, mut expected, mut next) = (Vec::new(), Model::new(), 1000u64);
            for _ in 0..200 {
                let (from, len) = (rng.u64(0..64), rng.u64(1..16));
                match rng.u8(0..3) {
                    0 => {
                        let flags = if rng.bool() { EXTENT_UNWRITTEN } else { 0 };
                        let physical = if rng.bool() { next } else { 5000 + from };
                        let e = Extent { logical: from, physical, len: len as u32, flags };
                        let free = (from..from + len).all(|l| !expected.contains_key(&l));
                        assert_eq!(insert(&mut list, e), free, "seed {seed}");
                        if free {
                            next += len;
                            expected.extend(model(&[e]));
                        }
                    }
                    1 => {
                        let most = rng.usize(1..4);
                        let (taken, stop) = cut(&mut list, from, from + len, most);
                        assert!(taken.len() <= most && stop > from, "seed {seed}");
                        for (l, p) in model(&taken) {
                            assert_eq!(expected.remove(&l), Some(p), "seed {seed}");
                        }
                        assert!((from..stop).all(|l| !expected.contains_key(&l)), "seed {seed}");
                    }
                    _ => {
                        let changed = convert(&mut list, from, from + len);
                        let mut n = 0;
                        for (_, v) in expected.range_mut(from..from + len) {
                            n += u64::from(v.1);
                            v.1 = false;
                        }
                        assert_eq!(changed.iter().map(|(a, b)| b - a).sum::<u64>(), n, "seed {seed}");
                    }
                }
                assert_eq!(model(&list), expected, "seed {seed}");
                assert!(list.windows(2).all(|w| w[0].end() <= w[1].logical), "seed {seed}");
            }
        }
    }

    #[test]
    fn lengths_stay_below_the_limit() {
        let half = Extent { logical: 0, physical: 10, len: 1 << 30, flags: 0 };
        let mut list = vec![half];
        assert!(insert(&mut list, Extent { logical: 1 << 30, physical: 10 + (1 << 30), ..half }));
        assert_eq!(list.len(), 2);
    }
}
