//! Holes: what was known of the dead and died with its master, kept so that it does not grow with the number of deaths.
//!
//! One change of members makes one hole for all the dead together: *what any of `lost` mastered in any of `views`*. While deaths
//! follow each other, each change's hole contains the one before it, which is then dropped; so 32 deaths leave one hole of
//! 32 views, not 32 times 32 times 32 (that was 19 MB of markers for each survivor of 16 deaths among 32 hosts).
//!
//! Invariant: dropping a hole never makes anything known: what contains it stays for as long as any dead host it was about. Not
//! here: when there is a hole, and what follows from it (`rebuild`).

use std::collections::BTreeSet;

use crate::msg::Hole;
use crate::name::Name;
use crate::view::{Member, master_of};

/// Holes, each with the dead it is about.
#[derive(Debug, Default)]
pub(super) struct Holes(Vec<(BTreeSet<Member>, Hole)>);

impl Holes {
    /// Adds one, unless it is contained in another; drops what it contains.
    pub(super) fn add(&mut self, dead: BTreeSet<Member>, hole: Hole) {
        if dead.is_empty() || self.0.iter().any(|(of, known)| of.is_superset(&dead) && contains(known, &hole)) {
            return;
        }
        self.0.retain(|(of, known)| !(dead.is_superset(of) && contains(&hole, known)));
        self.0.push((dead, hole));
    }

    /// Keeps only what is about these dead.
    pub(super) fn keep(&mut self, dead: impl Fn(&Member) -> bool) {
        self.0.iter_mut().for_each(|(of, _)| of.retain(&dead));
        self.0.retain(|(of, _)| !of.is_empty());
    }

    /// The dead of whom it is not known what they hold of the name.
    pub(super) fn unknown(&self, name: &Name) -> BTreeSet<Member> {
        let hit = |hole: &Hole| match hole {
            Hole::Everything => true,
            Hole::Mastered { views, lost } => views.iter().any(|view| master_of(name, view).is_some_and(|m| lost.contains(&m))),
        };
        self.0.iter().filter(|(_, hole)| hit(hole)).flat_map(|(of, _)| of.iter().copied()).collect()
    }

    /// For a marker.
    pub(super) fn to_vec(&self) -> Vec<(BTreeSet<Member>, Hole)> {
        self.0.clone()
    }
}

/// Whether every name that is in `b` is in `a`.
fn contains(a: &Hole, b: &Hole) -> bool {
    match (a, b) {
        (Hole::Everything, _) => true,
        (Hole::Mastered { .. }, Hole::Everything) => false,
        (Hole::Mastered { views: va, lost: la }, Hole::Mastered { views: vb, lost: lb }) => va.is_superset(vb) && la.is_superset(lb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(slots: std::ops::Range<u16>) -> Vec<Member> {
        slots.map(|slot| Member { slot, incarnation: 1 }).collect()
    }

    fn mastered(views: &[Vec<Member>], lost: std::ops::Range<u16>) -> Hole {
        Hole::Mastered { views: views.iter().cloned().collect(), lost: members(lost).into_iter().collect() }
    }

    #[test]
    fn thirty_two_deaths_in_a_row_leave_one_hole_and_it_knows_what_all_of_them_did() {
        let (mut merged, mut views) = (Holes::default(), vec![members(0..64)]);
        let mut each = Vec::new();
        for dead in 1..=32 {
            let hole = (members(0..dead).into_iter().collect::<BTreeSet<_>>(), mastered(&views, 0..dead));
            merged.add(hole.0.clone(), hole.1.clone());
            each.push(hole);
            views.push(members(dead..64));
        }
        assert_eq!(merged.0.len(), 1);
        let apart = Holes(each);
        for n in 0..200_u8 {
            let name = Name([n; 16]);
            assert_eq!(merged.unknown(&name), apart.unknown(&name));
        }
    }

    #[test]
    fn holes_that_do_not_contain_each_other_stay_until_their_dead_are_recovered() {
        let mut holes = Holes::default();
        holes.add(members(0..2).into_iter().collect(), mastered(&[members(0..8)], 0..2));
        holes.add(members(1..3).into_iter().collect(), mastered(&[members(0..4)], 0..3));
        assert_eq!(holes.0.len(), 2);
        holes.keep(|m| m.slot == 2);
        assert_eq!(holes.to_vec(), [(members(2..3).into_iter().collect(), mastered(&[members(0..4)], 0..3))]);
        holes.add(members(2..3).into_iter().collect(), Hole::Everything);
        assert_eq!(holes.to_vec(), [(members(2..3).into_iter().collect(), Hole::Everything)]);
    }
}
