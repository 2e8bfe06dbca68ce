//! Getting in. Two ways:
//!
//! * **Asked in**: members are alive. The host asks them by message (and, unanswered, by a beat in a free slot); one of them has
//!   JOIN chosen; the host reads it in the log. It writes no register before that.
//! * **By claim**: the log names no member, or all its members were silent for W. The host claims a slot: it writes its beat
//!   into it, lets that rest for `claim_ms`, reads everything again; if the claim still stands *and no record was added*, the slot's
//!   register is its own, and it proposes its own JOIN. If every slot is taken by the dead, it fences and recovers them first.
//!
//! Why a claim is safe: A's claim stands at its second read, which is at least `claim_ms` after its write. B wrote into the same
//! slot only if its first read was before A's write, and gives up unless its write was answered within `claim_ms` of that read: so
//! B's write is either seen by A, or B gave up without touching a register. And members, who exist only after a record
//! that A would have seen, never give a slot away on which a living claim rests. Not here: what happens after.

use super::{Claim, Core, Op, Phase};
use crate::core::takeover::Fencing;
use crate::types::*;
use luna_format::cluster::*;
use luna_format::{Incarnation, Slot};

/// How often the members are asked again.
const ASK_MS: Ms = 250;

impl Core {
    /// One turn of looking around.
    pub(super) fn discover(&mut self, out: &mut Vec<Output>) {
        if let Phase::Claiming(c) = self.phase {
            return self.settle_claim(c, out);
        }
        if !self.log_known || !self.beats_known {
            return;
        }
        if self.request_slot.is_some_and(|s| self.m.slot(s).state != SLOT_FREE) {
            self.request_slot = None;
        }
        let members: Vec<_> = self.m.in_state(&self.cfg.area, SLOT_MEMBER).collect();
        let same = self.same_name();
        if let Some((slot, true)) = same {
            let name = &self.cfg.name;
            let reason = format!("host name {name} is already mounted from slot {slot}; unmount it there, or mount with another name");
            return self.refuse(reason, out);
        }
        let w = self.cfg.timing.wait_ms();
        let alive = members.iter().any(|(s, _)| self.watch.owner_silent_ms(*s) < w);
        if !alive {
            return self.claim(out);
        }
        if same.is_some() {
            // it may be our own corpse: wait until somebody evicts it, or it moves
            return;
        }
        if self.full(out) {
            return;
        }
        self.ask(out);
    }

    /// A member or a claim with our name: its slot, and whether it is certainly alive.
    fn same_name(&self) -> Option<(Slot, bool)> {
        let name = &self.cfg.name;
        for (s, i) in self.m.in_state(&self.cfg.area, SLOT_MEMBER) {
            let joined = self.names.get(&s).is_some_and(|n| n.0 == i && n.1 == *name);
            if joined || self.watch.beat_of(s, i).is_some_and(|b| beat_name(b) == *name) {
                let moved = self.watch.get(s).is_some_and(|x| x.moved && self.watch.beat_of(s, i).is_some());
                return Some((s, moved));
            }
        }
        None
    }

    /// Refuses when every slot is taken by the living; waits when a dead one will become free.
    fn full(&mut self, out: &mut Vec<Output>) -> bool {
        let area = self.cfg.area;
        if self.m.in_state(&area, SLOT_FREE).next().is_some() {
            return false;
        }
        let moving = |(s, _): (Slot, u64)| self.watch.get(s).is_some_and(|x| x.moved);
        if self.m.dead().is_empty() && self.m.in_state(&area, SLOT_MEMBER).all(moving) {
            let n = area.slots;
            self.refuse(format!("all {n} slots of the volume are in use by mounted hosts; unmount one of them first"), out);
        }
        true
    }

    fn refuse(&mut self, reason: String, out: &mut Vec<Output>) {
        self.phase = Phase::Ended;
        out.push(Output::Refused { reason });
    }

    /// Asks the members to be let in.
    fn ask(&mut self, out: &mut Vec<Output>) {
        let first = *self.asked_first.get_or_insert(self.now);
        let t = self.cfg.timing;
        if self.now >= first + t.wait_ms() / 2 {
            // an answer to this attempt may come too late to be known as ours: begin a new one
            self.nonce = self.nonce.wrapping_add(1);
            (self.asked_first, self.request_slot) = (None, None);
            return;
        }
        if self.now >= self.asked_last + ASK_MS || self.asked_last == 0 {
            self.asked_last = self.now.max(1);
            let msg = Msg::JoinRequest { host_id: self.cfg.host_id, name: self.cfg.name.clone(), nonce: self.nonce };
            let members = self.m.in_state(&self.cfg.area, SLOT_MEMBER);
            out.extend(members.map(|(to, _)| Output::Send { to, msg: msg.clone() }));
        }
        if self.now >= first + t.beat_ms {
            let ours = |s: &Slot| self.watch.beat(*s).is_some_and(|b| b.nonce == self.nonce);
            let still = self.request_slot.is_some_and(|s| ours(&s) && self.m.slot(s).state == SLOT_FREE);
            if !still
                && !self.busy(|o| matches!(o, Op::Beat { .. }))
                && self.beats_ok.is_some_and(|b| b >= self.next_beat.saturating_sub(t.beat_ms))
            {
                self.request_slot = self.m.in_state(&self.cfg.area, SLOT_FREE).map(|x| x.0).find(|s| self.unclaimed(*s, self.nonce));
            }
        }
    }

    /// Nobody is alive: claims a slot.
    fn claim(&mut self, out: &mut Vec<Output>) {
        self.request_slot = None;
        let (Some(beats), Some(log)) = (self.beats_ok, self.log_ok) else { return };
        let read_ms = beats.min(log);
        if self.now >= read_ms + self.cfg.timing.claim_ms / 2 {
            // too old to build on: look again first
            return;
        }
        let Some(slot) = self.slot_to_claim() else { return };
        let s = *self.m.slot(slot);
        if matches!(s.state, SLOT_MEMBER | SLOT_EVICTED) {
            // its old owner must not be able to write its register any more
            match self.fencing.get(&(slot, s.incarnation)) {
                Some(Fencing::Done(_)) => {}
                Some(Fencing::Asked) => return,
                Some(Fencing::Failed(at)) if self.now < *at => return,
                _ => {
                    self.fencing.insert((slot, s.incarnation), Fencing::Asked);
                    let at_target = self.watch.named_at_target(slot, s.incarnation);
                    return out.push(Output::Fence { slot, incarnation: s.incarnation, at_target });
                }
            }
        }
        self.phase = Phase::Claiming(Claim { slot, read_ms, epoch: self.m.epoch(), written_ms: None });
        self.write_beat(slot, BEAT_JOINING, true, Op::Beat { sent: self.now, member: false }, out);
    }

    /// The slot this host used last if it is free, the lowest free one, its own dead one, the lowest dead one.
    fn slot_to_claim(&self) -> Option<Slot> {
        let area = &self.cfg.area;
        let open = |s: &Slot| self.unclaimed(*s, self.nonce);
        let free: Vec<Slot> = self.m.in_state(area, SLOT_FREE).map(|x| x.0).collect();
        let own = |s: &&Slot| self.m.slot(**s).host_id == self.cfg.host_id && self.m.slot(**s).incarnation > 0;
        if !free.is_empty() {
            let free: Vec<Slot> = free.into_iter().filter(open).collect();
            return free.iter().find(own).or(free.first()).copied();
        }
        let w = self.cfg.timing.wait_ms();
        let dead: Vec<Slot> = (0..area.slots).filter(|s| self.watch.owner_silent_ms(*s) >= w).filter(open).collect();
        dead.iter().find(own).or(dead.first()).copied()
    }

    /// The claim that was sent at `sent` is on the LUN: it rests from now, unless writing it took too long.
    pub(super) fn claim_written(&mut self, c: Claim, sent: Ms) {
        if self.now >= c.read_ms + self.cfg.timing.claim_ms {
            self.phase = Phase::Looking;
            return;
        }
        self.phase = Phase::Claiming(Claim { written_ms: Some(self.now), ..c });
        self.beat_ok = Some(sent);
    }

    /// Looks whether the claim stands after its rest.
    fn settle_claim(&mut self, c: Claim, out: &mut Vec<Output>) {
        let Some(written) = c.written_ms else { return };
        let rested = written + self.cfg.timing.claim_ms;
        if self.m.epoch() != c.epoch {
            self.phase = Phase::Looking;
            return;
        }
        if self.now < rested {
            self.next_beats_read = self.next_beats_read.min(rested);
            self.next_log_read = self.next_log_read.min(rested);
            return;
        }
        let fresh = |t: Option<Ms>| t.is_some_and(|t| t >= rested);
        if !fresh(self.beats_ok) || !fresh(self.log_ok) {
            return;
        }
        let stands = self.watch.beat(c.slot).is_some_and(|b| b.nonce == self.nonce && b.state == BEAT_JOINING);
        self.phase = if stands { Phase::Claimed(c.slot, self.m.slot(c.slot).incarnation) } else { Phase::Looking };
        if stands {
            (self.proposer, self.next_beat) = (None, self.now);
            out.push(Output::Log(format!("claimed slot {}", c.slot)));
        }
    }

    /// Gives the claim up when it does not stand any more.
    pub(super) fn keep_claim(&mut self, slot: Slot, incarnation: Incarnation) {
        let lost = self.watch.beat(slot).is_some_and(|b| b.nonce != self.nonce);
        let taken = self.m.slot(slot).incarnation > incarnation;
        let w = self.cfg.timing.wait_ms();
        let twin = self.same_name().is_some_and(|(s, _)| s != slot && self.watch.owner_silent_ms(s) < w);
        let expired = self.beat_ok.is_none_or(|b| b + self.cfg.timing.act_ms() <= self.now);
        if lost || taken || twin || expired {
            self.phase = Phase::Looking;
            self.proposer = None;
            self.stop_proposing(self.now);
        }
    }
}
