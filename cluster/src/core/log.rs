//! Records: learning them from the log, and having them chosen.
//!
//! Invariants: record k+1 is proposed only after record k is on the LUN *forced by this host* (so a register never moves on from an
//! instance whose outcome a power cut could take back); a record is learnt only if it continues the hash chain, or, when
//! this host was too far behind, if it is the newest of a whole scan. Not here: what is wanted (see `takeover.rs`).

use super::{Core, Op, Phase};
use crate::membership::{Membership, describe};
use crate::paxos::{Proposer, Step};
use crate::types::*;
use luna_format::cluster::*;
use luna_format::{Block, Slot};

/// Log blocks read in one poll.
const POLL_BLOCKS: u64 = 4;

impl Core {
    /// Reads the whole log: at the start, and when too far behind.
    pub(super) fn scan_log(&mut self, out: &mut Vec<Output>) {
        let (start, count) = (self.cfg.area.log_start, self.cfg.area.log_blocks);
        self.log_timer();
        self.read(Op::LogScan { issued: self.now }, start, count, out);
    }

    /// Reads the blocks behind the newest record known.
    pub(super) fn read_log(&mut self, out: &mut Vec<Output>) {
        if !self.log_known {
            return self.scan_log(out);
        }
        let a = self.cfg.area;
        let at = (self.m.epoch() + 1) % a.log_blocks;
        self.log_timer();
        let op = Op::Log { issued: self.now, from: at };
        self.read(op, a.log_start + at, POLL_BLOCKS.min(a.log_blocks - at), out);
    }

    fn log_timer(&mut self) {
        let t = &self.cfg.timing;
        // somebody who waits for a record looks often, everybody else with each beat (and when nudged)
        let waits = self.phase != Phase::Member || self.leave_requested;
        self.next_log_read = self.now + if waits { t.poll_ms } else { t.beat_ms };
    }

    pub(super) fn log_read(&mut self, blocks: &[Block], issued: Ms, from: u64, out: &mut Vec<Output>) {
        let a = self.cfg.area;
        let mut more = false;
        for (i, b) in blocks.iter().enumerate() {
            // one that does not check is being written, or torn: whoever chooses it again writes it again
            let Ok(Some(r)) = read_record(b, a.volume, a.log_start, a.log_blocks, from + i as u64) else { break };
            if r.index <= self.m.epoch() {
                // learnt meanwhile, or an old round of the ring
                if self.m.epoch() - r.index < POLL_BLOCKS {
                    continue;
                }
                break;
            }
            if r.index != self.m.epoch() + 1 || r.prev != self.m.chain {
                return self.scan_log(out);
            }
            self.learn(Membership::of(r, b), out);
            more = i as u64 + 1 == POLL_BLOCKS;
            if self.phase == Phase::Ended {
                return;
            }
        }
        if more {
            self.read_log(out);
        } else {
            self.renew_lease(issued, out);
        }
    }

    pub(super) fn log_scanned(&mut self, blocks: &[Block], issued: Ms, out: &mut Vec<Output>) {
        let a = self.cfg.area;
        let found = (0..a.log_blocks).zip(blocks).filter_map(|(at, b)| {
            let r = read_record(b, a.volume, a.log_start, a.log_blocks, at).ok().flatten()?;
            Some((r, b))
        });
        let newest = found.max_by_key(|(r, _)| r.index);
        self.log_known = true;
        if let Some((r, b)) = newest
            && r.index > self.m.epoch()
        {
            self.learn(Membership::of(r, b), out);
        }
        if self.phase != Phase::Ended {
            self.renew_lease(issued, out);
        }
    }

    /// Goes to a newer state; everything that changed is said.
    pub(super) fn learn(&mut self, new: Membership, out: &mut Vec<Output>) {
        let old = std::mem::replace(&mut self.m, new);
        let d = self.m.record.decision;
        out.push(Output::Log(format!("record {}: {}", self.m.epoch(), describe(&d))));
        if d.kind == DECIDE_JOIN {
            self.names.insert(d.slot, (d.incarnation, untext(&d.name)));
            self.requests.remove(&d.nonce);
        }
        for s in 0..self.cfg.area.slots {
            if old.slot(s).incarnation != self.m.slot(s).incarnation {
                // a new host: its silence starts now
                self.watch.renew(s, self.now);
                self.next_beats_read = self.now;
            }
        }
        match self.phase {
            Phase::Member => self.still_member(out),
            Phase::Looking | Phase::Claiming(_) | Phase::Claimed(..) => self.maybe_member(),
            Phase::Idle | Phase::Leaving | Phase::Ended => {}
        }
        if self.phase == Phase::Ended || self.phase == Phase::Leaving {
            return;
        }
        let dead = self.m.dead();
        for gone in old.dead() {
            if self.announced && !dead.iter().any(|d| (d.slot, d.incarnation) == (gone.slot, gone.incarnation)) {
                out.push(Output::Recovered { slot: gone.slot, incarnation: gone.incarnation });
            }
        }
        self.forget_recovered(&dead);
        for d in dead.iter().filter(|d| !d.fenced) {
            self.evict_seen.entry((d.slot, d.incarnation)).or_insert(self.now);
            self.next_beats_read = self.now;
        }
        if self.phase == Phase::Member {
            self.new_council();
            if self.announced && d.kind != DECIDE_SETTING && d.kind != DECIDE_NOTHING {
                out.push(Output::View(self.view()));
            }
        }
    }

    /// Whether the new state still has this host.
    fn still_member(&mut self, out: &mut Vec<Output>) {
        let Some((slot, incarnation)) = self.me else { return };
        if self.m.is_member(slot, incarnation) {
            return;
        }
        let s = *self.m.slot(slot);
        if self.journal_clean && s.state == SLOT_FREE {
            self.phase = Phase::Leaving;
            self.stop_proposing(self.now);
            if s.incarnation == incarnation {
                self.write_beat(slot, BEAT_FREE, false, Op::FreeBeat, out);
                return;
            }
            self.phase = Phase::Ended;
            return out.push(Output::Left);
        }
        self.phase = Phase::Ended;
        self.active = false;
        let reason = format!("this host (slot {slot}, incarnation {incarnation}) was evicted: {}", describe(&self.m.record.decision));
        out.push(Output::Evicted { reason });
    }

    /// Whether the new state has let this host in.
    fn maybe_member(&mut self) {
        let mine = |s: &Slot| {
            let x = self.m.slot(*s);
            x.state == SLOT_MEMBER && x.host_id == self.cfg.host_id && x.nonce == self.nonce
        };
        let Some(slot) = (0..self.cfg.area.slots).find(mine) else { return };
        if !matches!(self.phase, Phase::Claimed(s, _) if s == slot) {
            // another slot's register than the one claimed, or none was: read it first
            self.proposer = None;
        }
        self.stop_proposing(self.now);
        self.me = Some((slot, self.m.slot(slot).incarnation));
        (self.phase, self.request_slot) = (Phase::Member, None);
        (self.next_beat, self.beat_ok, self.beat_landed) = (self.now, None, None);
    }

    /// Has what is wanted chosen, one step at a time.
    pub(super) fn propose(&mut self, out: &mut Vec<Output>) {
        let Some(slot) = self.register() else { return };
        let idle = !self.proposing && !self.busy(|o| matches!(o, Op::PxOwn | Op::PxWrite | Op::PxAll | Op::LogWrite));
        if !idle || self.now < self.retry_at || !self.holds_register() {
            return;
        }
        if let Some(m) = self.writing.clone() {
            // a chosen record whose write failed
            return self.write_record(m, out);
        }
        let Some(wanted) = self.wanted() else { return };
        let Some(p) = &mut self.proposer else {
            return self.read(Op::PxOwn, self.cfg.area.px(slot), 1, out);
        };
        if self.forced < self.m.epoch() {
            return self.write_record(self.m.clone(), out);
        }
        self.proposing = true;
        let step = p.begin(self.m.epoch() + 1, wanted);
        self.paxos(step, out);
    }

    /// Writes the record of `m` to its place, forced; all write the same bytes.
    fn write_record(&mut self, m: Membership, out: &mut Vec<Output>) {
        let block = self.cfg.area.log(m.epoch());
        let bytes = Box::new(seal_record(&m.record, self.cfg.area.volume, block));
        self.writing = Some(m);
        let token = self.token(Op::LogWrite);
        out.push(Output::Write { token, block, bytes, forced: true });
    }

    pub(super) fn log_written(&mut self, out: &mut Vec<Output>) {
        let Some(m) = self.writing.take() else { return };
        self.forced = self.forced.max(m.epoch());
        // I1, in release too: to go on after this would be to run two clusters on one volume
        assert!(m.epoch() != self.m.epoch() || m.chain == self.m.chain, "two different records {} were chosen", m.epoch());
        if m.epoch() == self.m.epoch() + 1 {
            self.learn(m, out);
        }
        let index = self.m.epoch();
        let members: Vec<Slot> = self.m.in_state(&self.cfg.area, SLOT_MEMBER).map(|x| x.0).collect();
        let others = members.into_iter().filter(|s| Some(*s) != self.me.map(|m| m.0));
        out.extend(others.map(|to| Output::Send { to, msg: Msg::Nudge { index } }));
    }

    pub(super) fn px_own_read(&mut self, blocks: &[Block], out: &mut Vec<Output>) {
        let a = self.cfg.area;
        let (Some(slot), Some(b)) = (self.register(), blocks.first()) else { return };
        match read_paxos(b, a.volume, a.px(slot), slot) {
            Ok(own) => self.proposer = Some(Proposer::new(slot, own)),
            Err(e) => {
                out.push(Output::Log(format!("the own Paxos register cannot be read: {e}")));
                self.stop_proposing(self.now + self.cfg.timing.beat_ms / 2);
            }
        }
    }

    pub(super) fn px_written(&mut self, out: &mut Vec<Output>) {
        if let (Some(p), true) = (&mut self.proposer, self.proposing) {
            let step = p.written();
            self.paxos(step, out);
        }
    }

    pub(super) fn px_all_read(&mut self, blocks: &[Block], out: &mut Vec<Output>) {
        let a = self.cfg.area;
        let parse = |(s, b): (Slot, &Block)| read_paxos(b, a.volume, a.px(s), s).map_err(drop);
        let all: Vec<_> = (0..a.slots).zip(blocks).map(parse).collect();
        if let (Some(p), true) = (&mut self.proposer, self.proposing) {
            let step = p.read(&all);
            self.paxos(step, out);
        }
    }

    /// Carries out what the proposer asks for.
    fn paxos(&mut self, step: Step, out: &mut Vec<Output>) {
        let Some(slot) = self.register() else { return self.stop_proposing(self.now) };
        let a = self.cfg.area;
        match step {
            // the lease is checked just before each write of the register
            Step::Write(_) if !self.holds_register() => self.stop_proposing(self.now),
            Step::Write(px) => {
                let block = a.px(slot);
                let bytes = Box::new(seal_paxos(&px, a.volume, block, slot));
                let token = self.token(Op::PxWrite);
                out.push(Output::Write { token, block, bytes, forced: true });
            }
            Step::ReadAll => self.read(Op::PxAll, a.px_start, u64::from(a.slots), out),
            Step::Chosen(v) => {
                (self.proposing, self.attempts) = (false, 0);
                let instance = self.proposer.as_ref().map_or(0, Proposer::instance);
                if instance == self.m.epoch() + 1 {
                    let (m, _) = self.m.after(&a, &v);
                    self.write_record(m, out);
                }
            }
            Step::Backoff => {
                self.attempts += 1;
                let spread = 10 * self.attempts.min(16);
                let wait = 2 + self.random(spread);
                self.stop_proposing(self.now + wait);
                self.next_log_read = self.now;
            }
            Step::Behind => {
                self.stop_proposing(self.now + self.cfg.timing.poll_ms.min(20));
                self.next_log_read = self.now;
            }
            Step::Unreadable(s) => {
                out.push(Output::Log(format!("the Paxos register of slot {s} cannot be read; nothing can be decided until it can")));
                self.proposer = None;
                self.stop_proposing(self.now + self.cfg.timing.beat_ms / 4);
            }
        }
    }
}
