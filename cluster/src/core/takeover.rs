//! What this host wants to have decided, and what it does about the dead. The order EVICT, fence, FENCED, replay, RECOVERED is
//! in the records (see `membership.rs`: a decision out of order does not fit); here is who acts, and when.
//!
//! The raft leader of the view distributes the dead among the members; without a leader (two members, one dead; or all others
//! dead) the lowest member that is not suspected acts, the next ones a little later. If two act, Disk Paxos settles it, and the
//! FENCED record names the one recoverer. Not here: how a fence or a replay is done (the shell does both).

use super::{Core, Phase};
use crate::council::{Council, Takeover};
use crate::types::*;
use luna_format::cluster::*;
use luna_format::{Epoch, Incarnation, Slot};

/// How far the fence of one dead incarnation is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fencing {
    /// The shell was asked.
    Asked,
    /// It failed; ask again then.
    Failed(Ms),
    /// It is done, by this method.
    Done(FenceMethod),
}

impl Core {
    /// The next decision this host wants, if any; always one that fits the current state.
    pub(super) fn wanted(&mut self) -> Option<Decision> {
        let d = self.wanted_for_itself().or_else(|| self.wanted_for_the_dead()).or_else(|| self.wanted_for_others())?;
        self.m.fits(&self.cfg.area, &d).then_some(d)
    }

    fn wanted_for_itself(&self) -> Option<Decision> {
        match (self.phase, self.me) {
            (Phase::Claimed(s, _), _) if self.m.slot(s).state == SLOT_FREE => {
                let mut d = Decision::new(DECIDE_JOIN, s, self.m.slot(s).incarnation + 1, s);
                (d.host_id, d.nonce, d.name) = (self.cfg.host_id, self.nonce, text(&self.cfg.name));
                Some(d)
            }
            (Phase::Member, Some((s, i))) if self.journal_clean && !self.m.recovers(s) => Some(Decision::new(DECIDE_LEAVE, s, i, s)),
            _ => None,
        }
    }

    fn wanted_for_the_dead(&self) -> Option<Decision> {
        let by = self.register()?;
        let area = &self.cfg.area;
        // it may have to wait until somebody who died meanwhile is fenced
        let recovered = |(s, i): &(Slot, Incarnation)| Decision::new(DECIDE_RECOVERED, *s, *i, by);
        if let Some(d) = self.replayed.iter().map(recovered).find(|d| self.m.fits(area, d)) {
            return Some(d);
        }
        if self.acts() {
            for (s, i) in self.m.in_state(area, SLOT_MEMBER).filter(|x| Some(*x) != self.me) {
                let claimed = self.claimed_over(s).then_some("its slot was claimed after it fell silent");
                if let Some(why) = claimed.or_else(|| self.watch.suspicion(s, &self.cfg.timing)) {
                    return Some(Decision { text: text(why), ..Decision::new(DECIDE_EVICT, s, i, by) });
                }
            }
        }
        for (s, i) in self.m.in_state(area, SLOT_EVICTED) {
            if let Some(Fencing::Done(method)) = self.fencing.get(&(s, i))
                && self.fence_holds(s, i, *method)
            {
                let proof = text(&format!("{method:?}"));
                return Some(Decision { method: *method as u16, text: proof, ..Decision::new(DECIDE_FENCED, s, i, by) });
            }
        }
        if self.m.all_fenced(area) {
            let orphan = |(s, i): &(Slot, Incarnation)| self.abandoned(*s) && self.my_turn(*s, *i) && !self.is_recoverer(*s);
            if let Some((s, i)) = self.m.in_state(area, SLOT_FENCED).find(orphan) {
                return Some(Decision::new(DECIDE_TAKEOVER, s, i, by));
            }
        }
        None
    }

    /// Lets in who asked, into the slot it used last, or the lowest free one that nobody claims.
    fn wanted_for_others(&mut self) -> Option<Decision> {
        let t = self.cfg.timing;
        let (now, keep) = (self.now, 2 * t.beat_ms.max(500));
        self.requests.retain(|_, r| r.at_ms + keep > now);
        if self.phase != Phase::Member || !self.acts() {
            return None;
        }
        let by = self.register()?;
        for (nonce, r) in &self.requests {
            let known = |s: Slot, i: Incarnation| self.names.get(&s).is_some_and(|n| n.0 == i && n.1 == r.name);
            let twice = |s: Slot, i| known(s, i) || self.watch.beat_of(s, i).is_some_and(|b| beat_name(b) == r.name);
            if self.m.in_state(&self.cfg.area, SLOT_MEMBER).any(|(s, i)| twice(s, i)) {
                continue;
            }
            let free: Vec<Slot> = self.m.in_state(&self.cfg.area, SLOT_FREE).map(|x| x.0).filter(|s| self.unclaimed(*s, *nonce)).collect();
            let last = free.iter().find(|s| self.m.slot(**s).host_id == r.host_id && self.m.slot(**s).incarnation > 0);
            let Some(s) = last.or(free.first()) else { continue };
            let mut d = Decision::new(DECIDE_JOIN, *s, self.m.slot(*s).incarnation + 1, by);
            (d.host_id, d.nonce, d.name) = (r.host_id, *nonce, text(&r.name));
            return Some(d);
        }
        None
    }

    /// Whether no other host's living claim is on the slot. A claim that was left behind, because its host was let in
    /// elsewhere, must not keep the slot shut for W: with as many hosts as slots the last ones would wait for that. When a process beats
    /// as a member, none of its writes to a claimed register is under way, and it writes no more of them.
    pub(super) fn unclaimed(&self, s: Slot, nonce: u64) -> bool {
        let left_behind = self.watch.beat(s).is_some_and(|b| self.watch.arrived(b.nonce));
        left_behind || !self.claim_lives(s, nonce)
    }

    /// Whether another host's claim rests on the slot and is not older than W.
    fn claim_lives(&self, s: Slot, nonce: u64) -> bool {
        let claim = self.watch.beat(s).filter(|b| b.state == BEAT_JOINING && b.nonce != nonce);
        claim.is_some() && self.watch.silent_ms(s) < self.cfg.timing.wait_ms()
    }

    /// Whether this host is the one to act for all: the leader; or, without a leader that lives, by rank.
    pub(super) fn acts(&self) -> bool {
        let Some((me, _)) = self.me.filter(|_| self.phase == Phase::Member) else {
            // by claim: only while the slot itself is to be recovered, and then no member is alive
            return matches!(self.phase, Phase::Claimed(s, _) if self.m.slot(s).state != SLOT_FREE);
        };
        let t = &self.cfg.timing;
        let leader = self.council.as_ref().and_then(Council::leader);
        match leader {
            Some(l) if l == me => return true,
            Some(l) if self.watch.suspicion(l, t).is_none() => return false,
            _ => {}
        }
        let alive = |s: &Slot| *s == me || self.watch.suspicion(*s, t).is_none();
        let sound: Vec<Slot> = self.m.in_state(&self.cfg.area, SLOT_MEMBER).map(|x| x.0).filter(alive).collect();
        let rank = sound.iter().position(|s| *s == me).unwrap_or(sound.len()) as u64;
        let alone = sound.len() == 1;
        // nobody leads: the first acts soon, so that a mount does not wait for an election; the others only if it does not
        alone || leader.is_some() && rank == 0 || self.now >= self.leaderless_since + 2 * t.raft_tick_ms + rank * t.beat_ms / 2
    }

    /// Whether this host deals with this dead one.
    fn my_turn(&self, s: Slot, i: Incarnation) -> bool {
        match self.takeovers.get(&(s, i)) {
            Some(by) if self.phase == Phase::Member => {
                let sound = self.watch.suspicion(*by, &self.cfg.timing).is_none();
                Some(*by) == self.me.map(|m| m.0) || !sound && self.acts()
            }
            // the leader waits for the group's word, unless there is no group
            Some(_) => false,
            None => self.acts() && !self.council.as_ref().is_some_and(Council::is_leader),
        }
    }

    fn is_recoverer(&self, s: Slot) -> bool {
        self.register().is_some_and(|me| self.m.slot(s).recoverer == u32::from(me) + 1)
    }

    /// Whether our own claim lies on the slot: then its owner was silent for W and fenced before, and the beats are ours.
    fn claimed_over(&self, slot: Slot) -> bool {
        matches!(self.phase, Phase::Claimed(s, _) if s == slot)
    }

    /// Whether the fenced slot's recoverer is no member and no living claimant. (Also none that was let in elsewhere: the replay
    /// that it began by its claim may still be going on.)
    fn abandoned(&self, s: Slot) -> bool {
        let by = self.m.slot(s).recoverer.checked_sub(1).map(|r| r as Slot);
        self.m.orphaned(s) && by.is_none_or(|by| by >= self.cfg.area.slots || !self.claim_lives(by, self.nonce))
    }

    /// Time is part of a fence that consists of nothing else; the other methods are exact. The silence must have been seen by
    /// a read of the beats issued after EVICT was on the LUN: a host that came back to life is either seen, or sees EVICT.
    fn fence_holds(&self, s: Slot, i: Incarnation, method: FenceMethod) -> bool {
        let looked = self.evict_seen.get(&(s, i)).is_some_and(|t| self.watch.read_ms() >= *t);
        let silent = looked && self.watch.owner_silent_ms(s) >= self.cfg.timing.wait_ms();
        method != FenceMethod::Lease || self.claimed_over(s) || silent
    }

    /// Orders fences and replays.
    pub(super) fn takeover(&mut self, out: &mut Vec<Output>) {
        if self.phase == Phase::Member && !self.announced {
            return;
        }
        self.distribute();
        let area = self.cfg.area;
        for (slot, incarnation) in self.m.in_state(&area, SLOT_EVICTED) {
            let key = (slot, incarnation);
            let withdrawn = self.watch.beat_of(slot, incarnation).is_some_and(|b| b.state == BEAT_WITHDRAWN);
            let ask = match self.fencing.get(&key) {
                // its own word is exact and sooner than the end of its lease
                Some(Fencing::Done(method)) if *method != FenceMethod::Lease || !withdrawn => continue,
                _ if withdrawn && self.my_turn(slot, incarnation) => {
                    self.fencing.insert(key, Fencing::Done(FenceMethod::Acknowledged));
                    continue;
                }
                Some(Fencing::Failed(at)) => self.now >= *at,
                Some(Fencing::Asked | Fencing::Done(_)) => false,
                None => true,
            };
            if ask && self.my_turn(slot, incarnation) {
                self.fencing.insert(key, Fencing::Asked);
                out.push(Output::Fence { slot, incarnation, at_target: self.watch.named_at_target(slot, incarnation) });
            }
        }
        if !self.m.all_fenced(&area) {
            return;
        }
        // one at a time: of two dead hosts' images of one torn block the newer must win, and a torn block has no version to compare
        // The one that died first, so that a later death never begins beside a replay that runs.
        if let Some((slot, incarnation)) = self.m.in_state(&area, SLOT_FENCED).min_by_key(|(s, _)| self.m.slot(*s).died_epoch) {
            let key = (slot, incarnation);
            let ready = match self.replaying.get(&key) {
                None => true,
                Some(Some(at)) => self.now >= *at,
                Some(None) => false,
            };
            if ready && self.is_recoverer(slot) && !self.replayed.contains(&key) {
                self.replaying.insert(key, None);
                let fenced_epoch = self.fenced_epoch(slot);
                out.push(Output::Replay { slot, incarnation, fenced_epoch });
            }
        }
    }

    /// An epoch at which FENCED of the slot was chosen for certain: it is in the current state.
    fn fenced_epoch(&self, s: Slot) -> Epoch {
        debug_assert_eq!(self.m.slot(s).state, SLOT_FENCED);
        self.m.epoch()
    }

    /// The leader hands the dead out, once a view.
    fn distribute(&mut self) {
        let Some(c) = self.council.as_mut().filter(|c| c.is_leader()) else { return };
        let members: Vec<Slot> = self.m.in_state(&self.cfg.area, SLOT_MEMBER).map(|x| x.0).collect();
        let sound: Vec<Slot> = members.into_iter().filter(|s| self.watch.suspicion(*s, &self.cfg.timing).is_none()).collect();
        for (n, d) in self.m.dead().into_iter().enumerate() {
            let key = (d.slot, d.incarnation);
            if self.takeovers.contains_key(&key) || self.proposed.contains(&key) || sound.is_empty() {
                continue;
            }
            let t = Takeover { slot: d.slot, incarnation: d.incarnation, by: sound[n % sound.len()] };
            if c.propose(&t) {
                self.proposed.insert(key);
            }
        }
    }

    /// A new view has a new group; who takes over whom is distributed again.
    pub(super) fn new_council(&mut self) {
        let view = self.m.record.view_epoch;
        if self.council.as_ref().is_some_and(|c| c.view() == view) {
            return;
        }
        let Some((me, _)) = self.me else { return };
        let members: Vec<Slot> = self.m.in_state(&self.cfg.area, SLOT_MEMBER).map(|x| x.0).collect();
        self.council = Council::new(view, me, &members);
        (self.leaderless_since, self.next_raft_tick) = (self.now, self.now + self.cfg.timing.raft_tick_ms);
        self.takeovers.clear();
        self.proposed.clear();
        for (v, from, bytes) in std::mem::take(&mut self.early) {
            match v.cmp(&view) {
                std::cmp::Ordering::Equal => self.hear(v, from, &bytes),
                std::cmp::Ordering::Greater => self.early.push((v, from, bytes)),
                std::cmp::Ordering::Less => {}
            }
        }
    }

    pub(super) fn fence_done(&mut self, s: Slot, i: Incarnation, result: Result<FenceMethod, String>, out: &mut Vec<Output>) {
        let state = match result {
            Ok(method) => Fencing::Done(method),
            Err(e) => {
                out.push(Output::Log(format!("fencing slot {s} incarnation {i} failed, trying again: {e}")));
                Fencing::Failed(self.now + 5 * self.cfg.timing.beat_ms)
            }
        };
        self.fencing.insert((s, i), state);
    }

    pub(super) fn replay_done(&mut self, s: Slot, i: Incarnation, result: Result<(), String>, out: &mut Vec<Output>) {
        match result {
            Ok(()) if self.replaying.contains_key(&(s, i)) => {
                self.replayed.insert((s, i));
            }
            Ok(()) => {}
            Err(e) => {
                out.push(Output::Log(format!("replay of slot {s} incarnation {i} failed, trying again: {e}")));
                self.replaying.insert((s, i), Some(self.now + self.cfg.timing.beat_ms));
            }
        }
    }

    /// Drops what was noted about hosts that are not dead any more.
    pub(super) fn forget_recovered(&mut self, dead: &[Dead]) {
        let known = |k: &(Slot, Incarnation)| dead.iter().any(|d| (d.slot, d.incarnation) == *k);
        self.fencing.retain(|k, _| known(k) || self.m.is_member(k.0, k.1));
        self.evict_seen.retain(|k, _| known(k));
        self.replaying.retain(|k, _| known(k));
        self.replayed.retain(known);
        self.takeovers.retain(|k, _| known(k));
    }
}
