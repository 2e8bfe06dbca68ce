//! What this host has seen of the others' beats, and what follows from it: alive, suspect, silent long enough.
//!
//! Invariant: silence is counted only up to the last *successful* read of the beats, so a host that cannot read suspects nobody;
//! and from the moment a change was seen, which is never before it was written. Not here: decisions.

use crate::types::{Area, LinkNow, Ms, Timing};
use luna_format::cluster::{BEAT_JOINING, BEAT_LEAVING, BEAT_MEMBER, Beat, read_beat};
use luna_format::{Block, Incarnation, Slot};
use std::collections::BTreeMap;

/// One slot's beat as last seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) beat: Option<Beat>,
    /// When the last change was seen.
    pub(crate) changed_ms: Ms,
    /// The same of a beat that was no claim: the sign of life of the slot's owner.
    pub(crate) owner_ms: Ms,
    /// It changed while we looked (not only: was there when we came).
    pub(crate) moved: bool,
}

/// Reads of the beats this far apart are one uninterrupted look.
fn one_look_ms(period_ms: Ms) -> Ms {
    4 * period_ms
}

/// All beats.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    seen: BTreeMap<Slot, Seen>,
    /// When the last successful read was issued.
    read_ms: Ms,
    /// When the link to a slot was reset.
    reset: BTreeMap<Slot, Ms>,
    up: u64,
    /// Incarnations whose beats said that the target knows them by name; the newest of each slot. A claim over the beat does not unsay it.
    named: BTreeMap<Slot, Incarnation>,
}

impl Watch {
    /// Takes in beats read; `issued` is when the read was submitted, `now` when it was answered. Answers the slots whose
    /// identity (name, addresses, incarnation) changed.
    pub(crate) fn update(&mut self, area: &Area, blocks: &[Block], issued: Ms, now: Ms, period_ms: Ms) -> Vec<Slot> {
        let mut changed = Vec::new();
        // what passed while nobody could look is nobody's silence: when the LUN comes back after a while, all would evict all
        let blind = if self.read_ms == 0 { 0 } else { issued.saturating_sub(self.read_ms).saturating_sub(one_look_ms(period_ms)) };
        for x in self.seen.values_mut().filter(|_| blind > 0) {
            x.changed_ms = (x.changed_ms + blind).min(now);
            x.owner_ms = (x.owner_ms + blind).min(now);
        }
        self.read_ms = self.read_ms.max(issued);
        for (s, b) in (0..area.slots).zip(blocks) {
            // one that does not check is as good as unchanged: its owner will write it again
            let Ok(beat) = read_beat(b, area.volume, area.beat(s), s) else { continue };
            if let Some(b) = beat.filter(|b| b.target_fence == 1) {
                self.named.insert(s, b.incarnation);
            }
            match self.seen.get_mut(&s) {
                None => {
                    if beat.is_some() {
                        changed.push(s);
                    }
                    self.seen.insert(s, Seen { beat, changed_ms: now, owner_ms: now, moved: false });
                }
                Some(old) if old.beat != beat => {
                    let id = |b: &Option<Beat>| b.map(|b| (b.incarnation, b.name, b.addresses, b.state));
                    if id(&old.beat) != id(&beat) {
                        changed.push(s);
                    }
                    let claim = beat.is_some_and(|b| b.state == BEAT_JOINING);
                    let owner_ms = if claim { old.owner_ms } else { now };
                    *old = Seen { beat, changed_ms: now, owner_ms, moved: true };
                }
                Some(_) => {}
            }
        }
        changed
    }

    pub(crate) fn get(&self, s: Slot) -> Option<&Seen> {
        self.seen.get(&s)
    }

    pub(crate) fn beat(&self, s: Slot) -> Option<&Beat> {
        self.seen.get(&s).and_then(|x| x.beat.as_ref())
    }

    /// The beat of this incarnation of the slot.
    pub(crate) fn beat_of(&self, s: Slot, i: Incarnation) -> Option<&Beat> {
        self.beat(s).filter(|b| b.incarnation == i)
    }

    /// How long nothing changed in the slot, as far as was looked.
    pub(crate) fn silent_ms(&self, s: Slot) -> Ms {
        self.seen.get(&s).map_or(0, |x| self.read_ms.saturating_sub(x.changed_ms))
    }

    /// When the last successful read of the beats was issued.
    pub(crate) fn read_ms(&self) -> Ms {
        self.read_ms
    }

    /// How long the slot's owner gave no sign of life, as far as was looked; claims of others on the slot are none.
    pub(crate) fn owner_silent_ms(&self, s: Slot) -> Ms {
        self.seen.get(&s).map_or(0, |x| self.read_ms.saturating_sub(x.owner_ms))
    }

    /// A slot changed hands: its silence starts now.
    pub(crate) fn renew(&mut self, s: Slot, now: Ms) {
        self.reset.remove(&s);
        if let Some(x) = self.seen.get_mut(&s) {
            (x.changed_ms, x.owner_ms, x.moved) = (now, now, false);
        }
    }

    /// A link that this host gave up itself is down, and no ground for suspicion: only a reset is.
    pub(crate) fn link(&mut self, s: Slot, is: LinkNow, now: Ms) {
        match is {
            LinkNow::Up => {
                self.reset.remove(&s);
                self.up |= 1 << s;
            }
            LinkNow::Reset => {
                self.reset.entry(s).or_insert(now);
                self.up &= !(1 << s);
            }
            LinkNow::GivenUp => self.up &= !(1 << s),
        }
    }

    /// Whether this incarnation's beats came under its own name.
    pub(crate) fn named_at_target(&self, s: Slot, i: Incarnation) -> bool {
        self.named.get(&s) == Some(&i)
    }

    /// Links that are up.
    pub(crate) fn connectivity(&self) -> u64 {
        self.up
    }

    /// Why a member should be evicted, if it should.
    pub(crate) fn suspicion(&self, s: Slot, t: &Timing) -> Option<&'static str> {
        let silent = self.owner_silent_ms(s);
        if silent >= t.lease_ms {
            return Some("no beat for longer than the lease");
        }
        // beats are seen at most two periods apart (one to write, one to read)
        if self.reset.contains_key(&s) && silent >= 2 * t.beat_ms + t.beat_ms / 2 {
            return Some("link reset and beats missing");
        }
        None
    }

    /// Whether the link to any of these was reset: then it pays to look more often.
    pub(crate) fn doubts(&self, of: impl Fn(Slot) -> bool) -> bool {
        self.reset.keys().any(|s| of(*s))
    }

    /// Whether the process that draws this nonce has beaten as a member: it will never use a claim again.
    pub(crate) fn arrived(&self, nonce: u64) -> bool {
        let member = |b: &Beat| b.nonce == nonce && matches!(b.state, BEAT_MEMBER | BEAT_LEAVING);
        self.seen.values().any(|x| x.beat.as_ref().is_some_and(member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_slot_has_its_bit() {
        let mut w = Watch::default();
        (0..luna_format::MAX_SLOTS).for_each(|s| w.link(s, LinkNow::Up, 1));
        assert_eq!(w.connectivity(), u64::MAX);
        w.link(luna_format::MAX_SLOTS - 1, LinkNow::Reset, 2);
        assert_eq!(w.connectivity(), u64::MAX >> 1);
    }

    /// A process that is stopped answers nothing, and its peers give their links up; it has the whole lease to come back.
    #[test]
    fn a_link_given_up_is_no_ground_for_suspicion() {
        let t = Timing::default();
        for (is, after) in [(LinkNow::GivenUp, t.lease_ms), (LinkNow::Reset, 2 * t.beat_ms + t.beat_ms / 2)] {
            let mut w = Watch::default();
            w.seen.insert(3, Seen { beat: None, changed_ms: 0, owner_ms: 0, moved: false });
            w.link(3, LinkNow::Up, 0);
            w.link(3, is, 1);
            assert_eq!(w.connectivity(), 0);
            w.read_ms = after - 1;
            assert_eq!(w.suspicion(3, &t), None, "{is:?}");
            w.read_ms = after;
            assert!(w.suspicion(3, &t).is_some(), "{is:?}");
        }
    }
}
