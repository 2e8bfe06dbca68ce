//! Who is in: members, the dead that are not yet recovered, and who masters which name.
//!
//! Invariant: every host computes the same master from the same members, without talking. Nothing here decides membership;
//! the cluster core does, and tells.

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// One life of one host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The slot on the LUN.
    pub slot: u16,
    /// Grows by one at each admission of the slot.
    pub incarnation: u64,
}

/// A host that was evicted and is not recovered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadHost {
    /// The slot on the LUN.
    pub slot: u16,
    /// Which life of the slot died.
    pub incarnation: u64,
    /// The members of the last epoch in which it was alive, itself included.
    pub last_view: Vec<Member>,
}

impl DeadHost {
    /// Slot and incarnation as one.
    #[must_use]
    pub const fn member(&self) -> Member {
        Member { slot: self.slot, incarnation: self.incarnation }
    }
}

/// The members of one epoch. Give the lock manager a new view only when the members change: every view rebuilds all masters.
/// A recovery alone is an [`Input::Recovered`](crate::Input::Recovered).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct View {
    /// The number of the view; only ever grows.
    pub epoch: u64,
    /// Who is in.
    pub members: Vec<Member>,
    /// Who was evicted and is not yet RECOVERED.
    pub dead: Vec<DeadHost>,
}

/// Steele, Lea and Flood's 64-bit finalizer.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The master of `name` among `members`: rendezvous hashing, so that a change of members moves only the names it must.
#[must_use]
pub fn master_of(name: &Name, members: &[Member]) -> Option<Member> {
    let (low, high) = name.words();
    let key = mix(low ^ mix(high));
    members.iter().copied().max_by_key(|m| (mix(key ^ mix(u64::from(m.slot))), m.slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(slots: &[u16]) -> Vec<Member> {
        slots.iter().map(|slot| Member { slot: *slot, incarnation: 1 }).collect()
    }

    fn name(i: u32) -> Name {
        let mut name = Name::default();
        name.0[4..8].copy_from_slice(&i.to_le_bytes());
        name
    }

    #[test]
    fn names_spread_evenly_and_move_only_when_they_must() {
        let (three, two) = (members(&[0, 1, 2]), members(&[2, 0]));
        let mut counts = [0_u32; 3];
        for i in 0..3000 {
            let master = master_of(&name(i), &three).expect("members are not empty");
            counts[usize::from(master.slot)] += 1;
            if master.slot != 1 {
                assert_eq!(master_of(&name(i), &two), Some(master), "a name of a survivor stays");
            }
        }
        assert!(counts.iter().all(|c| (800..1200).contains(c)), "{counts:?}");
        assert_eq!(master_of(&name(1), &[]), None);
    }
}
