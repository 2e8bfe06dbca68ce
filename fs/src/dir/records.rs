//! Packed directory records in a byte area (an inode's body or a leaf), pure: find, put in, take out, cut in two.
//!
//! Invariant: the first `used` bytes are whole records in (hash, name) order, the rest is zero. Not here: blocks, trees.

use luna_format::CheckError;
use luna_format::dir::{DirentHead, entries, push, record_bytes};
use std::mem::offset_of;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Inode number.
    pub ino: u64,
    /// Its generation.
    pub generation: u64,
    /// Its type, `mode >> 12`.
    pub kind: u8,
}

/// Where a name is, or where it would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The record at this byte.
    At(usize, Target),
    /// Not there; belongs before this byte.
    Before(usize),
}

/// Looks `name` up in the used bytes.
pub(crate) fn find(block: u64, used: &[u8], hash: u64, name: &[u8]) -> Result<Place, CheckError> {
    for e in entries(block, used) {
        let e = e?;
        match (e.head.hash, e.name).cmp(&(hash, name)) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => {
                let target = Target { ino: e.head.ino, generation: e.head.generation, kind: e.head.kind };
                return Ok(Place::At(e.at, target));
            }
            std::cmp::Ordering::Greater => return Ok(Place::Before(e.at)),
        }
    }
    Ok(Place::Before(used.len()))
}

/// The bytes of one record.
pub(crate) fn record(hash: u64, name: &[u8], t: &Target) -> Vec<u8> {
    let mut out = Vec::with_capacity(record_bytes(name.len()));
    push(&mut out, hash, t.ino, t.generation, t.kind, name);
    out
}

/// Puts a record before byte `at`; the caller has checked that it fits.
pub(crate) fn put(area: &mut [u8], used: usize, at: usize, record: &[u8]) -> usize {
    area.copy_within(at..used, at + record.len());
    area[at..at + record.len()].copy_from_slice(record);
    used + record.len()
}

/// Takes the record at byte `at` out; the new number of used bytes.
pub(crate) fn take(area: &mut [u8], used: usize, at: usize) -> usize {
    let len_at = at + offset_of!(DirentHead, len);
    let len = u16::from_le_bytes([area[len_at], area[len_at + 1]]) as usize;
    area.copy_within(at + len..used, at);
    area[used - len..used].fill(0);
    used - len
}

/// Lets the name of the record at byte `at` lead to `t`.
pub(crate) fn point(area: &mut [u8], at: usize, t: &Target) {
    area[at + offset_of!(DirentHead, ino)..][..8].copy_from_slice(&t.ino.to_le_bytes());
    area[at + offset_of!(DirentHead, generation)..][..8].copy_from_slice(&t.generation.to_le_bytes());
    area[at + offset_of!(DirentHead, kind)] = t.kind;
}

/// Where to cut the used bytes in two: the record boundary nearest to the middle that does not part equal hashes. Returns
/// the byte, and the hash of the first record behind it. `None` when all hashes are equal.
pub(crate) fn cut(block: u64, used: &[u8]) -> Result<Option<(usize, u64)>, CheckError> {
    let (mut best, mut last): (Option<(usize, u64)>, _) = (None, None);
    let middle = used.len() / 2;
    for e in entries(block, used) {
        let e = e?;
        if last.is_some_and(|h| h != e.head.hash) && best.is_none_or(|(at, _)| e.at.abs_diff(middle) < at.abs_diff(middle)) {
            best = Some((e.at, e.head.hash));
        }
        last = Some(e.head.hash);
    }
    Ok(best)
}

/// Hash of the first record.
pub(crate) fn first_hash(used: &[u8]) -> u64 {
    used.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(n: u64) -> Target {
        Target { ino: n, generation: 1, kind: 8 }
    }

    #[test]
    fn records_stay_sorted_and_zero_behind() {
        let (mut area, mut used) = (vec![0u8; 1024], 0);
        let all = [(50, "m"), (20, "longer name"), (20, "a"), (90, "z"), (20, "b")];
        for (hash, name) in all {
            let Ok(Place::Before(at)) = find(0, &area[..used], hash, name.as_bytes()) else { panic!("{name} is not there") };
            used = put(&mut area, used, at, &record(hash, name.as_bytes(), &target(hash)));
        }
        let order: Vec<_> = entries(0, &area[..used]).map(|e| e.map(|e| e.name.to_vec())).collect::<Result<_, _>>().unwrap();
        assert_eq!(order, [b"a".to_vec(), b"b".into(), b"longer name".into(), b"m".into(), b"z".into()]);
        let Ok(Some((at, hash))) = cut(0, &area[..used]) else { panic!("can be cut") };
        assert_eq!((find(0, &area[..used], 50, b"m"), hash), (Ok(Place::At(at, target(50))), 50), "never inside the three 20s");
        for (hash, name) in all {
            let Ok(Place::At(at, _)) = find(0, &area[..used], hash, name.as_bytes()) else { panic!("{name} is there") };
            used = take(&mut area, used, at);
        }
        assert_eq!(used, 0);
        assert!(area.iter().all(|b| *b == 0));
    }

    #[test]
    fn one_hash_cannot_be_cut() {
        let (mut area, mut used) = (vec![0u8; 1024], 0);
        for name in ["a", "b", "c"] {
            used = put(&mut area, used, used, &record(7, name.as_bytes(), &target(7)));
        }
        assert_eq!(cut(0, &area[..used]), Ok(None));
    }
}
