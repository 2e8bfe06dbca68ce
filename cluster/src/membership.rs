//! The state machine of membership: a record is the state of all slots after a decision. Pure: everybody computes the same.
//!
//! Invariant: JOIN only into a free slot and with the next incarnation; EVICT and LEAVE only of a member; FENCED only of the
//! evicted, and its proposer becomes the recoverer; RECOVERED only of the fenced, by its recoverer, and only when no host is
//! evicted and unfenced (all FENCED before any replay). Another recoverer (TAKEOVER) only when the old one is no member: two
//! hosts never replay one journal at the same time. A decision that does not fit changes nothing but the index. Not here: who
//! proposes, when, or why.

use crate::types::{Area, Dead};
use luna_format::cluster::*;
use luna_format::{Block, Epoch, Incarnation, Slot};

/// The newest record and its place in the chain.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) record: Record,
    /// Chain value of `record`'s block: the next record's `prev`.
    pub(crate) chain: [u8; 16],
}

impl Membership {
    /// Before any record.
    pub(crate) fn genesis() -> Self {
        Self { record: Record::genesis(), chain: [0; 16] }
    }

    /// From a record block that was read.
    pub(crate) fn of(record: Record, block: &Block) -> Self {
        Self { record, chain: chain(block) }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.record.index
    }

    pub(crate) fn slot(&self, s: Slot) -> &SlotState {
        &self.record.slots[usize::from(s)]
    }

    /// Slots of the volume in `state`.
    pub(crate) fn in_state(&self, area: &Area, state: u32) -> impl Iterator<Item = (Slot, Incarnation)> {
        let slots = self.record.slots.iter().take(usize::from(area.slots)).enumerate();
        let found: Vec<_> = slots.filter(|(_, s)| s.state == state).map(|(i, s)| (i as Slot, s.incarnation)).collect();
        found.into_iter()
    }

    pub(crate) fn is_member(&self, s: Slot, i: Incarnation) -> bool {
        self.record.slots.get(usize::from(s)).is_some_and(|x| x.state == SLOT_MEMBER && x.incarnation == i)
    }

    /// Bitmap of members.
    pub(crate) fn bits(&self) -> u64 {
        self.record.slots.iter().enumerate().filter(|(_, s)| s.state == SLOT_MEMBER).fold(0, |b, (i, _)| b | 1 << i)
    }

    pub(crate) fn dead(&self) -> Vec<Dead> {
        let dead = |(i, s): (usize, &SlotState)| {
            matches!(s.state, SLOT_EVICTED | SLOT_FENCED).then_some(Dead {
                slot: i as Slot,
                incarnation: s.incarnation,
                died_epoch: s.died_epoch,
                last_members: s.last_members,
                fenced: s.state == SLOT_FENCED,
            })
        };
        self.record.slots.iter().enumerate().filter_map(dead).collect()
    }

    /// Whether no host is evicted and unfenced: only then may journals be replayed.
    pub(crate) fn all_fenced(&self, area: &Area) -> bool {
        self.in_state(area, SLOT_EVICTED).next().is_none()
    }

    /// Whether `s` still has a journal to replay.
    pub(crate) fn recovers(&self, s: Slot) -> bool {
        self.record.slots.iter().any(|x| x.state == SLOT_FENCED && x.recoverer == u32::from(s) + 1)
    }

    /// Whether the recoverer of the fenced slot `s` is no member.
    pub(crate) fn orphaned(&self, s: Slot) -> bool {
        let r = self.slot(s).recoverer.checked_sub(1).and_then(|r| self.record.slots.get(r as usize));
        r.is_none_or(|r| r.state != SLOT_MEMBER)
    }

    /// Whether `d` fits this state.
    pub(crate) fn fits(&self, area: &Area, d: &Decision) -> bool {
        if d.slot >= area.slots {
            return false;
        }
        let s = self.slot(d.slot);
        let same = s.incarnation == d.incarnation;
        match d.kind {
            DECIDE_JOIN => s.state == SLOT_FREE && d.incarnation == s.incarnation + 1,
            DECIDE_EVICT => s.state == SLOT_MEMBER && same,
            DECIDE_LEAVE => s.state == SLOT_MEMBER && same && !self.recovers(d.slot),
            DECIDE_FENCED => s.state == SLOT_EVICTED && same,
            DECIDE_RECOVERED => s.state == SLOT_FENCED && same && self.all_fenced(area) && s.recoverer == u32::from(d.by) + 1,
            DECIDE_TAKEOVER => s.state == SLOT_FENCED && same && self.all_fenced(area) && self.orphaned(d.slot),
            _ => true,
        }
    }

    /// The record after `d`, and its block.
    pub(crate) fn after(&self, area: &Area, d: &Decision) -> (Self, Block) {
        let mut r = self.record;
        let members = self.bits();
        (r.index, r.prev, r.decision) = (r.index + 1, self.chain, *d);
        if self.fits(area, d) {
            let s = &mut r.slots[usize::from(d.slot)];
            match d.kind {
                DECIDE_JOIN => {
                    let (incarnation, host_id, nonce) = (d.incarnation, d.host_id, d.nonce);
                    *s = SlotState { incarnation, host_id, nonce, state: SLOT_MEMBER, died_epoch: 0, last_members: 0, recoverer: 0 };
                }
                DECIDE_EVICT => (s.state, s.died_epoch, s.last_members) = (SLOT_EVICTED, r.index, members),
                DECIDE_FENCED | DECIDE_TAKEOVER => (s.state, s.recoverer) = (SLOT_FENCED, u32::from(d.by) + 1),
                DECIDE_RECOVERED | DECIDE_LEAVE => {
                    (s.state, s.died_epoch, s.last_members, s.recoverer) = (SLOT_FREE, 0, 0, 0);
                }
                _ => {}
            }
            if matches!(d.kind, DECIDE_JOIN | DECIDE_EVICT | DECIDE_LEAVE) {
                r.view_epoch = r.index;
            }
        }
        let b = seal_record(&r, area.volume, area.log(r.index));
        (Self::of(r, &b), b)
    }
}

/// One line about a decision.
pub(crate) fn describe(d: &Decision) -> String {
    let (s, i) = (d.slot, d.incarnation);
    match d.kind {
        DECIDE_JOIN => format!("JOIN slot {s} incarnation {i} host {}", untext(&d.name)),
        DECIDE_EVICT => format!("EVICT slot {s} incarnation {i} by slot {}: {}", d.by, untext(&d.text)),
        DECIDE_FENCED => format!("FENCED slot {s} incarnation {i} by slot {}: {}", d.by, untext(&d.text)),
        DECIDE_RECOVERED => format!("RECOVERED slot {s} incarnation {i} by slot {}", d.by),
        DECIDE_TAKEOVER => format!("TAKEOVER of slot {s} incarnation {i} by slot {}", d.by),
        DECIDE_LEAVE => format!("LEAVE slot {s} incarnation {i}"),
        DECIDE_SETTING => format!("SETTING {} = {}", untext(&d.name), d.nonce),
        n => format!("decision of kind {n}"),
    }
}
