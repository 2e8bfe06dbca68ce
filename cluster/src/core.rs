//! The core: one host's membership as a function of time and inputs. `step` takes one input and pushes outputs.
//!
//! This file holds the state, the clock-driven loop and the bookkeeping of I/O; `core/discover.rs` gets this host in,
//! `core/log.rs` learns records and has them chosen, `core/takeover.rs` deals with the dead.
//!
//! Invariants (I1..I8 of `docs/recovery.md`): the own Paxos register is written only while the own lease holds; a host acts in an
//! epoch only as its member; nothing is proposed that does not fit the state it was computed from. What is wanted is derived
//! from the state each time (level-triggered), so a lost message or a failed read costs time only.

mod discover;
mod log;
mod look;
mod takeover;

use crate::council::{Council, Takeover};
use crate::membership::Membership;
use crate::paxos::Proposer;
use crate::types::*;
use crate::watch::Watch;
use luna_format::cluster::*;
use luna_format::{BlockNo, Epoch, Incarnation, Slot};
use std::collections::{BTreeMap, BTreeSet};
use takeover::Fencing;
use zerocopy::FromZeros;

/// Raft messages of a view to come that are held.
const EARLY_MESSAGES: usize = 64;

/// Where this host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not started.
    Idle,
    /// Reads, asks to be let in, or waits until it may claim a slot.
    Looking,
    /// Wrote a claim into a slot's beat and lets it rest.
    Claiming(Claim),
    /// Owns the slot's registers by claim; not a member. The slot's incarnation when it was claimed.
    Claimed(Slot, Incarnation),
    /// A member.
    Member,
    /// The LEAVE record is chosen; the beat is being set free.
    Leaving,
    /// Left, evicted or refused.
    Ended,
}

/// A claim that rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    slot: Slot,
    /// When the reads on which it rests were issued.
    read_ms: Ms,
    /// Newest record then.
    epoch: Epoch,
    /// When the claim was on the LUN.
    written_ms: Option<Ms>,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Beats {
        issued: Ms,
    },
    Log {
        issued: Ms,
        from: u64,
    },
    LogScan {
        issued: Ms,
    },
    /// `member`: as a member, not as a claim or request.
    Beat {
        sent: Ms,
        member: bool,
    },
    PxOwn,
    PxWrite,
    PxAll,
    LogWrite,
    FreeBeat,
}

/// A host that asked to be let in.
#[derive(Clone, Debug)]
struct Request {
    host_id: [u8; 16],
    name: String,
    at_ms: Ms,
}

/// The membership core of one host.
pub struct Core {
    cfg: Config,
    rng: u64,
    now: Ms,
    phase: Phase,
    next_token: Token,
    ops: BTreeMap<Token, Op>,
    m: Membership,
    log_known: bool,
    watch: Watch,
    beats_known: bool,
    me: Option<(Slot, Incarnation)>,
    announced: bool,
    nonce: u64,
    counter: u64,
    /// When the beat was sent from which the lease runs.
    beat_ok: Option<Ms>,
    /// A newer beat that was answered (sent, answered), waiting for a log read issued after its answer.
    beat_landed: Option<(Ms, Ms)>,
    log_ok: Option<Ms>,
    beats_ok: Option<Ms>,
    next_beat: Ms,
    next_beats_read: Ms,
    next_log_read: Ms,
    next_raft_tick: Ms,
    started_ms: Ms,
    /// Joining: when the members were asked first and last.
    asked_first: Option<Ms>,
    asked_last: Ms,
    request_slot: Option<Slot>,
    proposer: Option<Proposer>,
    proposing: bool,
    retry_at: Ms,
    attempts: u64,
    /// The record being written to the log.
    writing: Option<Membership>,
    /// Records up to here were written forced by this host.
    forced: Epoch,
    council: Option<Council>,
    /// Raft messages of a view that this host does not know yet.
    early: Vec<(Epoch, (Slot, Incarnation), Vec<u8>)>,
    leaderless_since: Ms,
    takeovers: BTreeMap<(Slot, Incarnation), Slot>,
    proposed: BTreeSet<(Slot, Incarnation)>,
    requests: BTreeMap<u64, Request>,
    names: BTreeMap<Slot, (Incarnation, String)>,
    fencing: BTreeMap<(Slot, Incarnation), Fencing>,
    /// When EVICT of a dead host was known to be on the LUN.
    evict_seen: BTreeMap<(Slot, Incarnation), Ms>,
    replaying: BTreeMap<(Slot, Incarnation), Option<Ms>>,
    replayed: BTreeSet<(Slot, Incarnation)>,
    /// Every request of this host reaches the target under its slot and incarnation.
    named_at_target: bool,
    leave_requested: bool,
    journal_clean: bool,
    active: bool,
}

impl Core {
    /// A core that has done nothing yet; `seed` drives its jitter.
    pub fn new(cfg: Config, seed: u64) -> Self {
        let nonce = cfg.nonce;
        Self {
            cfg,
            rng: seed | 1,
            now: 0,
            phase: Phase::Idle,
            next_token: 1,
            ops: BTreeMap::new(),
            m: Membership::genesis(),
            log_known: false,
            watch: Watch::default(),
            beats_known: false,
            me: None,
            announced: false,
            nonce,
            counter: 0,
            beat_ok: None,
            beat_landed: None,
            log_ok: None,
            beats_ok: None,
            next_beat: 0,
            next_beats_read: 0,
            next_log_read: 0,
            next_raft_tick: 0,
            started_ms: 0,
            asked_first: None,
            asked_last: 0,
            request_slot: None,
            proposer: None,
            proposing: false,
            retry_at: 0,
            attempts: 0,
            writing: None,
            forced: 0,
            council: None,
            early: Vec::new(),
            leaderless_since: 0,
            takeovers: BTreeMap::new(),
            proposed: BTreeSet::new(),
            requests: BTreeMap::new(),
            names: BTreeMap::new(),
            fencing: BTreeMap::new(),
            evict_seen: BTreeMap::new(),
            replaying: BTreeMap::new(),
            replayed: BTreeSet::new(),
            named_at_target: false,
            leave_requested: false,
            journal_clean: false,
            active: false,
        }
    }

    /// Takes one input at `now_ms` (never going back) and pushes what is to be done, in order.
    pub fn step(&mut self, now_ms: Ms, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now_ms);
        self.check_gate(out);
        if self.phase == Phase::Ended {
            self.after_the_end(input, out);
            return;
        }
        self.take(input, out);
        self.drive(out);
        self.check_gate(out);
    }

    /// When the shell should tick next at the latest.
    pub fn next_wake_ms(&self) -> Ms {
        match self.phase {
            Phase::Member if !self.proposing && self.retry_at <= self.now && !self.leave_requested => {
                let next = self.next_beat.min(self.next_beats_read).min(self.next_log_read);
                next.min(self.next_raft_tick).clamp(self.now + 1, self.now + self.cfg.timing.beat_ms)
            }
            Phase::Ended => self.now + 1000,
            _ => self.now + self.cfg.timing.poll_ms.min(10),
        }
    }

    /// Whether this host may act now.
    pub fn gate(&self) -> Gate {
        if self.phase != Phase::Member || !self.announced {
            return Gate::Evicted;
        }
        match self.active_until() {
            Some(until_ms) if until_ms > self.now => Gate::Active { until_ms },
            _ => Gate::Paused,
        }
    }

    /// Until when this host may act by its claim on a slot (its register, replay); `None` without a claim, and as a member.
    pub fn claim_until(&self) -> Option<Ms> {
        match self.phase {
            Phase::Claimed(..) => Some(self.beat_ok? + self.cfg.timing.act_ms()),
            _ => None,
        }
    }

    /// Slot and incarnation, once a member.
    pub fn me(&self) -> Option<(Slot, Incarnation)> {
        self.me
    }

    /// Newest record known.
    pub fn epoch(&self) -> Epoch {
        self.m.epoch()
    }

    /// The host name of an incarnation, as its JOIN record says; empty if it is not known.
    pub fn name_of(&self, slot: Slot, incarnation: Incarnation) -> String {
        self.names.get(&slot).filter(|n| n.0 == incarnation).map_or_else(String::new, |n| n.1.clone())
    }

    /// Whether every request of this core to the LUN was answered. After its end it makes no more but its final beat.
    pub fn is_quiet(&self) -> bool {
        self.ops.is_empty()
    }

    /// Whether this host coordinates, for `status`.
    pub fn is_coordinator(&self) -> bool {
        self.council.as_ref().is_some_and(Council::is_leader)
    }

    /// The current view.
    pub fn view(&self) -> View {
        let member = |(slot, incarnation)| {
            let beat = self.watch.beat_of(slot, incarnation);
            let named = self.names.get(&slot).filter(|n| n.0 == incarnation).map(|n| n.1.clone());
            Member {
                slot,
                incarnation,
                name: beat.map(beat_name).or(named).unwrap_or_default(),
                addresses: beat.map(beat_addresses).unwrap_or_default(),
                link_key: beat.map_or([0; 32], |b| b.link_key),
            }
        };
        View {
            epoch: self.m.epoch(),
            view_epoch: self.m.record.view_epoch,
            members: self.m.in_state(&self.cfg.area, SLOT_MEMBER).map(member).collect(),
            dead: self.m.dead(),
        }
    }

    /// The lease runs from the submission of the newest beat *after whose answer* a log read was issued that still lists this
    /// host. (Evictors do the mirror image: EVICT first, then a read of the beats. So either they see the beat, or this host
    /// sees EVICT; a host that wakes up can not slip through between the two.)
    fn active_until(&self) -> Option<Ms> {
        Some(self.beat_ok? + self.cfg.timing.act_ms())
    }

    /// A log read issued at `issued` came back and this host is still in: the lease runs from the beat before it.
    fn renew_lease(&mut self, issued: Ms, out: &mut Vec<Output>) {
        self.log_ok = Some(self.log_ok.unwrap_or(0).max(issued));
        if let (Some((sent, answered)), Phase::Member) = (self.beat_landed, self.phase)
            && issued >= answered
        {
            (self.beat_ok, self.beat_landed) = (Some(sent), None);
            if !self.announced {
                self.announce(out);
            }
        }
    }

    /// Publishes a change of the gate.
    fn check_gate(&mut self, out: &mut Vec<Output>) {
        if self.phase != Phase::Member || !self.announced {
            return;
        }
        let active = matches!(self.gate(), Gate::Active { .. });
        if active != self.active {
            self.active = active;
            out.push(if active { Output::Resumed } else { Output::Paused });
        }
    }

    /// Only the final beat of an evicted host is still of interest, and what it had asked of the LUN before.
    fn after_the_end(&mut self, input: Input, out: &mut Vec<Output>) {
        if let Input::ReadDone { token, .. } | Input::WriteDone { token, .. } = input {
            self.ops.remove(&token);
        } else if let (Input::Drained, Some((slot, incarnation))) = (input, self.me)
            && self.is_quiet()
            && self.m.slot(slot).incarnation == incarnation
            && self.m.slot(slot).state == SLOT_EVICTED
        {
            self.write_beat(slot, BEAT_WITHDRAWN, false, Op::FreeBeat, out);
        }
    }

    /// Takes one input in.
    fn take(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Start if self.phase == Phase::Idle => {
                (self.phase, self.started_ms) = (Phase::Looking, self.now);
                self.scan_log(out);
                self.read_beats(out);
            }
            Input::Start | Input::Tick | Input::Drained => {}
            Input::ReadDone { token, result } => self.read_done(token, result, out),
            Input::WriteDone { token, result } => self.write_done(token, result, out),
            Input::Message { from, msg } => self.message(from, msg, out),
            Input::PeerLink { slot, now } if slot < self.cfg.area.slots => {
                self.watch.link(slot, now, self.now);
                if now == LinkNow::Reset {
                    self.next_beats_read = self.next_beats_read.min(self.now + self.cfg.timing.beat_ms / 4);
                }
            }
            Input::PeerLink { .. } => {}
            Input::Nudge => self.next_log_read = self.now,
            Input::ShutOut { reason } => self.end(reason, out),
            Input::Stranger => (self.next_log_read, self.next_beats_read) = (self.now, self.now),
            Input::FenceDone { slot, incarnation, result } => self.fence_done(slot, incarnation, result, out),
            Input::ReplayDone { slot, incarnation, result } => self.replay_done(slot, incarnation, result, out),
            Input::NamedAtTarget => {
                // the next beat says so; it travels under the name itself
                (self.named_at_target, self.next_beat) = (true, self.now);
            }
            Input::LeaveRequested => {
                self.leave_requested = true;
                if matches!(self.phase, Phase::Looking | Phase::Claiming(_) | Phase::Claimed(..)) {
                    self.phase = Phase::Ended;
                    out.push(Output::Left);
                }
            }
            Input::JournalClean => self.journal_clean = self.leave_requested,
        }
    }

    fn message(&mut self, from: Option<(Slot, Incarnation)>, msg: Msg, out: &mut Vec<Output>) {
        match msg {
            Msg::Nudge { index } if index > self.m.epoch() => {
                self.next_log_read = self.now;
                self.poll(out);
            }
            Msg::Nudge { .. } => {}
            Msg::JoinRequest { host_id, name, nonce } => {
                if self.requests.len() < 64 && name.len() <= TEXT_BYTES {
                    self.requests.insert(nonce, Request { host_id, name, at_ms: self.now });
                }
            }
            Msg::Raft { view, bytes } => {
                let Some(from) = from.filter(|(s, _)| *s < self.cfg.area.slots) else { return };
                if view > self.m.record.view_epoch && self.early.len() < EARLY_MESSAGES {
                    // newer: held until the record arrives
                    self.early.push((view, from, bytes));
                    self.next_log_read = self.now;
                } else {
                    self.hear(view, from, &bytes);
                }
            }
        }
    }

    /// Hands a raft message to the group of its view, if both are current.
    fn hear(&mut self, view: Epoch, from: (Slot, Incarnation), bytes: &[u8]) {
        let member = self.m.is_member(from.0, from.1);
        if let (true, Some(c)) = (member, &mut self.council)
            && c.view() == view
        {
            c.receive(from.0, bytes);
        }
    }

    /// Everything that follows from the state and the time.
    fn drive(&mut self, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Idle | Phase::Ended => return,
            Phase::Looking | Phase::Claiming(_) => self.discover(out),
            Phase::Claimed(slot, incarnation) => {
                self.keep_claim(slot, incarnation);
                self.takeover(out);
            }
            Phase::Member => {
                self.counsel(out);
                self.takeover(out);
            }
            Phase::Leaving => {}
        }
        self.beat(out);
        self.poll(out);
        self.propose(out);
        if self.phase == Phase::Member {
            self.counsel(out);
        }
    }

    /// Runs the raft group.
    fn counsel(&mut self, out: &mut Vec<Output>) {
        let Some(c) = &mut self.council else { return };
        // after a long pause one tick is enough: raft must not believe that all that time was silence of the others
        if self.now >= self.next_raft_tick {
            c.tick();
            self.next_raft_tick = self.now + self.cfg.timing.raft_tick_ms;
        }
        let (send, agreed) = c.drain();
        if c.leader().is_some() {
            self.leaderless_since = self.now;
        }
        out.extend(send.into_iter().map(|(to, msg)| Output::Send { to, msg }));
        for Takeover { slot, incarnation, by } in agreed {
            self.takeovers.insert((slot, incarnation), by);
        }
    }

    /// Writes the own beat when it is time.
    fn beat(&mut self, out: &mut Vec<Output>) {
        let (slot, state) = match self.phase {
            Phase::Claimed(slot, _) => (slot, BEAT_JOINING),
            // the first beat as a member says that no claim of this process is in use any more (see `unclaimed`)
            Phase::Member if !self.announced && self.busy(|o| *o == Op::PxWrite) => return,
            Phase::Member => match self.me {
                Some((slot, _)) => (slot, if self.leave_requested { BEAT_LEAVING } else { BEAT_MEMBER }),
                None => return,
            },
            Phase::Looking => match self.request_slot {
                Some(slot) => (slot, BEAT_JOINING),
                None => return,
            },
            _ => return,
        };
        if self.now >= self.next_beat && !self.busy(|o| matches!(o, Op::Beat { .. })) {
            self.next_beat = self.now + self.cfg.timing.beat_ms;
            let op = Op::Beat { sent: self.now, member: self.phase == Phase::Member };
            self.write_beat(slot, state, false, op, out);
        }
    }

    /// Writes the own beat now.
    fn write_beat(&mut self, slot: Slot, state: u32, forced: bool, op: Op, out: &mut Vec<Output>) {
        self.counter += 1;
        let t = &self.cfg.timing;
        let beat = Beat {
            host_id: self.cfg.host_id,
            name: text(&self.cfg.name),
            incarnation: if state == BEAT_JOINING { 0 } else { self.me.map_or(0, |m| m.1) },
            counter: self.counter,
            epoch_seen: self.m.epoch(),
            nonce: self.nonce,
            connectivity: self.watch.connectivity(),
            state,
            beat_ms: t.beat_ms as u32,
            lease_ms: t.lease_ms as u32,
            margin_ms: t.margin_ms as u32,
            link_key: self.cfg.link_key,
            addresses: address_fields(&self.cfg.addresses),
            target_fence: u32::from(self.named_at_target && state != BEAT_JOINING),
            unused: 0,
        };
        let beat = if state == BEAT_FREE { Beat { counter: self.counter, ..Beat::new_zeroed() } } else { beat };
        let block = self.cfg.area.beat(slot);
        let bytes = Box::new(seal_beat(&beat, self.cfg.area.volume, block, slot));
        let token = self.token(op);
        out.push(Output::Write { token, block, bytes, forced });
    }

    /// Reads beats and log when it is time.
    fn poll(&mut self, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Idle | Phase::Ended) {
            return;
        }
        if self.now >= self.next_beats_read && !self.busy(|o| matches!(o, Op::Beats { .. })) {
            self.read_beats(out);
        }
        if self.now >= self.next_log_read && !self.busy(|o| matches!(o, Op::Log { .. } | Op::LogScan { .. })) {
            self.read_log(out);
        }
    }

    fn read_beats(&mut self, out: &mut Vec<Output>) {
        let t = &self.cfg.timing;
        // a link to one who is no member any more stays reset, perhaps for ever: that is no doubt
        let doubts = self.watch.doubts(|s| self.m.slot(s).state == SLOT_MEMBER);
        let every = match self.phase {
            Phase::Member if doubts => t.beat_ms / 4,
            Phase::Member if self.minds() => t.beat_ms,
            Phase::Member => 2 * t.beat_ms,
            _ => (5 * t.poll_ms).min(t.beat_ms / 2),
        };
        self.next_beats_read = self.now + every.max(1);
        let (start, count) = (self.cfg.area.beat_start, u64::from(self.cfg.area.slots));
        self.read(Op::Beats { issued: self.now }, start, count, out);
    }

    /// Whether this host has more reason than others to know all beats: it acts for all, somebody is dead, or a member's beat
    /// was never read. All hosts reading all beats is what grows with the square of their number, so the others look half as often;
    /// who looks rarely counts silence later, never earlier.
    fn minds(&self) -> bool {
        let unread = |(s, i): (Slot, Incarnation)| self.watch.beat_of(s, i).is_none();
        self.acts() || !self.m.dead().is_empty() || self.m.in_state(&self.cfg.area, SLOT_MEMBER).any(unread)
    }

    fn read(&mut self, op: Op, start: BlockNo, count: u64, out: &mut Vec<Output>) {
        let token = self.token(op);
        out.push(Output::Read { token, start, count });
    }

    fn token(&mut self, op: Op) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        self.ops.insert(token, op);
        token
    }

    fn busy(&self, which: impl Fn(&Op) -> bool) -> bool {
        self.ops.values().any(which)
    }

    fn read_done(&mut self, token: Token, result: Result<Vec<luna_format::Block>, String>, out: &mut Vec<Output>) {
        let Some(op) = self.ops.remove(&token) else { return };
        let blocks = match result {
            Ok(b) => b,
            Err(e) => return self.read_failed(op, e, out),
        };
        match op {
            Op::Beats { issued } => self.beats_read(&blocks, issued, out),
            Op::Log { issued, from } => self.log_read(&blocks, issued, from, out),
            Op::LogScan { issued } => self.log_scanned(&blocks, issued, out),
            Op::PxOwn => self.px_own_read(&blocks, out),
            Op::PxAll => self.px_all_read(&blocks, out),
            Op::Beat { .. } | Op::PxWrite | Op::LogWrite | Op::FreeBeat => {}
        }
    }

    fn read_failed(&mut self, op: Op, error: String, out: &mut Vec<Output>) {
        out.push(Output::Log(format!("reading the cluster area failed, trying again: {error}")));
        let later = self.now + self.cfg.timing.beat_ms / 4;
        match op {
            Op::Beats { .. } => self.next_beats_read = later,
            Op::Log { .. } | Op::LogScan { .. } => self.next_log_read = later,
            _ => self.stop_proposing(later),
        }
    }

    fn beats_read(&mut self, blocks: &[luna_format::Block], issued: Ms, out: &mut Vec<Output>) {
        let changed = self.watch.update(&self.cfg.area, blocks, issued, self.now, self.cfg.timing.beat_ms);
        (self.beats_known, self.beats_ok) = (true, Some(issued));
        let members = changed.iter().any(|s| {
            let i = self.m.slot(*s).incarnation;
            self.m.is_member(*s, i) && self.watch.beat_of(*s, i).is_some()
        });
        if members && self.announced && self.phase == Phase::Member {
            out.push(Output::View(self.view()));
        }
        if self.phase == Phase::Member {
            self.requests_by_beat();
        }
    }

    /// A host whose messages do not come through asks by its beat.
    fn requests_by_beat(&mut self) {
        for slot in 0..self.cfg.area.slots {
            let Some(seen) = self.watch.get(slot) else { continue };
            let (Some(b), true) = (&seen.beat, seen.moved) else { continue };
            if b.state == BEAT_JOINING && self.watch.silent_ms(slot) < 2 * self.cfg.timing.beat_ms {
                let request = Request { host_id: b.host_id, name: beat_name(b), at_ms: self.now };
                self.requests.insert(b.nonce, request);
            }
        }
    }

    fn write_done(&mut self, token: Token, result: Result<(), String>, out: &mut Vec<Output>) {
        let Some(op) = self.ops.remove(&token) else { return };
        match (op, result) {
            (Op::Beat { sent, member }, Ok(())) => self.beat_done(sent, member),
            (Op::Beat { .. }, Err(e)) => {
                out.push(Output::Log(format!("writing the beat failed, trying again: {e}")));
                self.next_beat = self.now + self.cfg.timing.beat_ms / 4;
                if let Phase::Claiming(_) = self.phase {
                    self.phase = Phase::Looking;
                }
            }
            (Op::PxWrite, Ok(())) => self.px_written(out),
            (Op::PxWrite, Err(e)) => self.register_lost(&e, out),
            (Op::LogWrite, Ok(())) => self.log_written(out),
            (Op::LogWrite, Err(e)) => {
                out.push(Output::Log(format!("writing a record failed, trying again: {e}")));
                self.retry_at = self.now + self.cfg.timing.beat_ms / 4;
            }
            (Op::FreeBeat, _) if self.phase == Phase::Leaving => {
                self.phase = Phase::Ended;
                out.push(Output::Left);
            }
            _ => {}
        }
    }

    /// A write of the own register failed and may still land, so this incarnation must never write it again. A host that can propose
    /// nothing would stay in the way of everybody as a member: it stops here, and the others evict it.
    fn register_lost(&mut self, error: &str, out: &mut Vec<Output>) {
        let reason =
            format!("writing this host's Paxos register failed ({error}), and the write may still land; check the LUN and mount again");
        self.end(reason, out);
    }

    /// This host is out, for good.
    fn end(&mut self, reason: String, out: &mut Vec<Output>) {
        let member = matches!(self.phase, Phase::Member | Phase::Leaving);
        self.proposer = None;
        self.stop_proposing(self.now);
        self.phase = Phase::Ended;
        self.active = false;
        out.push(if member { Output::Evicted { reason } } else { Output::Refused { reason } });
    }

    fn beat_done(&mut self, sent: Ms, member: bool) {
        match self.phase {
            Phase::Claiming(c) => self.claim_written(c, sent),
            Phase::Claimed(..) => self.beat_ok = Some(sent),
            // a claim's beat that was still under way
            Phase::Member if !member => self.next_beat = self.now,
            Phase::Member => {
                // an unconfirmed older one stays: a stream of beats must not starve its confirmation
                self.beat_landed = self.beat_landed.or(Some((sent, self.now)));
                self.next_log_read = self.now;
            }
            _ => {}
        }
    }

    /// The first beat as a member is on the LUN and the log still lists this host: it may act.
    fn announce(&mut self, out: &mut Vec<Output>) {
        let Some((slot, incarnation)) = self.me else { return };
        (self.announced, self.active) = (true, true);
        out.push(Output::Joined { slot, incarnation, needs_replay_of: self.m.dead() });
        out.push(Output::View(self.view()));
    }

    /// A number below `n` from the seed.
    fn random(&mut self, n: u64) -> u64 {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.rng >> 33) % n.max(1)
    }

    /// Whoever proposes nothing may try again at `at`.
    fn stop_proposing(&mut self, at: Ms) {
        self.proposing = false;
        self.retry_at = self.retry_at.max(at);
        if let Some(p) = &mut self.proposer {
            p.abandon();
        }
    }

    /// Whether the own registers may be written: as a member under the lease, or under a claim that beats.
    fn holds_register(&self) -> bool {
        match self.phase {
            Phase::Member => self.announced && matches!(self.gate(), Gate::Active { .. }),
            Phase::Claimed(..) => self.beat_ok.is_some_and(|b| b + self.cfg.timing.act_ms() > self.now),
            _ => false,
        }
    }

    /// The slot whose register is this host's.
    fn register(&self) -> Option<Slot> {
        match self.phase {
            Phase::Member => self.me.map(|m| m.0),
            Phase::Claimed(s, _) => Some(s),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("now", &self.now)
            .field("phase", &self.phase)
            .field("me", &self.me)
            .field("epoch", &self.m.epoch())
            .field("gate", &self.gate())
            .field("proposing", &self.proposing)
            .field("retry_at", &self.retry_at)
            .field("writing", &self.writing.as_ref().map(Membership::epoch))
            .field("ops", &self.ops)
            .field("fencing", &self.fencing)
            .field("takeovers", &self.takeovers)
            .field("replaying", &self.replaying)
            .field("replayed", &self.replayed)
            .field("dead", &self.m.dead())
            .finish_non_exhaustive()
    }
}
