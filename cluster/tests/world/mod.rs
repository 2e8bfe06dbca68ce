//! The world in one thread: N cores, one disk with delayed writes, a lossy network, crashes, stops and restarts, from one seed.
//!
//! Checked all the time: one record per instance (I1) in one hash chain; nothing of (s,i) lands after FENCED(s,i) (I2; every
//! active host hands data writes over that land up to P + D later, also after its death); EVICT < FENCED < replay <
//! RECOVERED, all FENCED before any replay (I3); no two processes are the same incarnation (I4); a view handed to a host
//! has that host in it (I8). The caller checks that everybody gets in after the faults end (I7).

#![allow(dead_code)] // each test binary uses its own part

use luna_cluster::*;
use luna_format::cluster::*;
use luna_format::{Block, Slot};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const VOLUME: [u8; 16] = [3; 16];

pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug)]
enum Event {
    Wake { host: usize, life: u64, nonce: u64 },
    Give { host: usize, life: u64, input: Box<Input> },
    Land { host: usize, life: u64, token: Token, block: u64, bytes: Box<Block> },
    Look { host: usize, life: u64, token: Token, start: u64, count: u64 },
    Data { who: (Slot, u64) },
    Restart { host: usize },
}

/// One host: a process, or none.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) core: Option<Core>,
    life: u64,
    wake: u64,
    stopped_until: Ms,
    pub(crate) joined: Option<(Slot, u64)>,
    pub(crate) evicted: u64,
    pub(crate) refused: Vec<String>,
    pub(crate) left: u64,
    pub(crate) view: Option<View>,
    pub(crate) started: Ms,
    pub(crate) joined_at: Ms,
    leaving: bool,
}

/// What may go wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) lose_percent: u64,
    pub(crate) slow_percent: u64,
    pub(crate) fail_percent: u64,
    pub(crate) restart: bool,
}

pub(crate) const CALM: Faults = Faults { lose_percent: 0, slow_percent: 0, fail_percent: 0, restart: false };

pub(crate) struct World {
    pub(crate) now: Ms,
    pub(crate) rng: Rng,
    pub(crate) hosts: Vec<Host>,
    pub(crate) faults: Faults,
    pub(crate) area: Area,
    pub(crate) timing: Timing,
    pub(crate) trace: Vec<String>,
    pub(crate) cut: BTreeSet<(usize, usize)>,
    disk: BTreeMap<u64, Block>,
    events: BTreeMap<(Ms, u64), Event>,
    order: u64,
    records: BTreeMap<u64, Block>,
    joined: BTreeSet<(Slot, u64)>,
    fenced: BTreeSet<(Slot, u64)>,
    replayed: BTreeSet<(Slot, u64)>,
    replaying: BTreeMap<(Slot, u64), usize>,
    pub(crate) fence: FenceMethod,
    /// How late a data write may land after it was checked: P + D.
    pub(crate) data_late_ms: Ms,
    /// Reads of all hosts.
    pub(crate) reads: u64,
}

pub(crate) fn quick() -> Timing {
    Timing {
        beat_ms: 200,
        lease_ms: 1200,
        margin_ms: 400,
        request_ms: 500,
        pause_ms: 200,
        drift_permille: 10,
        claim_ms: 100,
        poll_ms: 20,
        raft_tick_ms: 20,
    }
}

impl World {
    pub(crate) fn new(seed: u64, hosts: usize, slots: Slot, timing: Timing) -> Self {
        let n = u64::from(slots);
        let area = Area { volume: VOLUME, slots, beat_start: 8, px_start: 8 + n, log_start: 8 + 2 * n, log_blocks: 64 };
        let host = |i: usize| Host {
            name: format!("host-{i}"),
            core: None,
            life: 0,
            wake: 0,
            stopped_until: 0,
            joined: None,
            evicted: 0,
            refused: Vec::new(),
            left: 0,
            view: None,
            started: 0,
            joined_at: 0,
            leaving: false,
        };
        Self {
            now: 1000,
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            hosts: (0..hosts).map(host).collect(),
            faults: CALM,
            area,
            timing,
            trace: Vec::new(),
            cut: BTreeSet::new(),
            disk: BTreeMap::new(),
            events: BTreeMap::new(),
            order: 0,
            records: BTreeMap::new(),
            joined: BTreeSet::new(),
            fenced: BTreeSet::new(),
            replayed: BTreeSet::new(),
            replaying: BTreeMap::new(),
            fence: FenceMethod::Lease,
            data_late_ms: timing.pause_ms + timing.request_ms,
            reads: 0,
        }
    }

    fn at(&mut self, delay: Ms, e: Event) {
        self.order += 1;
        self.events.insert((self.now + delay, self.order), e);
    }

    pub(crate) fn start(&mut self, i: usize) {
        let nonce = self.rng.below(1 << 40) << 16;
        let cfg = Config {
            area: self.area,
            timing: self.timing,
            name: self.hosts[i].name.clone(),
            host_id: [i as u8 + 1; 16],
            nonce,
            addresses: vec![format!("10.0.0.{i}:7000")],
            link_key: [i as u8; 32],
        };
        let seed = self.rng.below(1 << 40);
        let h = &mut self.hosts[i];
        assert!(h.core.is_none());
        h.life += 1;
        (h.core, h.joined, h.view, h.leaving) = (Some(Core::new(cfg, seed)), None, None, false);
        (h.started, h.stopped_until) = (self.now, 0);
        self.trace.push(format!("{} start host {i}", self.now));
        self.give(i, Input::Start);
    }

    /// The process dies at once; what it handed over still lands.
    pub(crate) fn crash(&mut self, i: usize) {
        let h = &mut self.hosts[i];
        if h.core.take().is_none() {
            return;
        }
        h.life += 1;
        self.trace.push(format!("{} crash host {i}", self.now));
        if let Some((slot, _)) = self.hosts[i].joined {
            for j in 0..self.hosts.len() {
                if j != i {
                    let life = self.hosts[j].life;
                    let input = Box::new(Input::PeerLink { slot, now: LinkNow::Reset });
                    self.at(5, Event::Give { host: j, life, input });
                }
            }
        }
    }

    /// The process is stopped and goes on later, as if nothing had happened.
    pub(crate) fn stop(&mut self, i: usize, for_ms: Ms) {
        self.hosts[i].stopped_until = self.now + for_ms;
    }

    pub(crate) fn leave(&mut self, i: usize) {
        if self.hosts[i].core.is_some() {
            self.hosts[i].leaving = true;
            self.give(i, Input::LeaveRequested);
            let life = self.hosts[i].life;
            self.at(20, Event::Give { host: i, life, input: Box::new(Input::JournalClean) });
        }
    }

    fn give(&mut self, i: usize, input: Input) {
        let mut out = Vec::new();
        let Some(core) = &mut self.hosts[i].core else { return };
        core.step(self.now, input, &mut out);
        let wake = core.next_wake_ms().saturating_sub(self.now).max(1);
        let gate = core.gate();
        if let (Gate::Active { until_ms }, Some(who)) = (gate, self.hosts[i].joined)
            && until_ms > self.now
            && self.rng.chance(30)
        {
            let late = self.rng.below(self.data_late_ms);
            self.at(late, Event::Data { who });
        }
        self.hosts[i].wake += 1;
        let (life, nonce) = (self.hosts[i].life, self.hosts[i].wake);
        self.at(wake, Event::Wake { host: i, life, nonce });
        for o in out {
            self.output(i, o);
        }
    }

    fn latency(&mut self) -> Ms {
        if self.rng.chance(self.faults.slow_percent) { self.rng.below(self.timing.request_ms - 50) } else { 1 + self.rng.below(3) }
    }

    fn output(&mut self, i: usize, o: Output) {
        let life = self.hosts[i].life;
        match o {
            Output::Read { token, start, count } => {
                self.reads += 1;
                let late = self.latency();
                self.at(late, Event::Look { host: i, life, token, start, count });
            }
            Output::Write { token, block, bytes, .. } => {
                let late = self.latency();
                self.at(late, Event::Land { host: i, life, token, block, bytes });
            }
            Output::Send { to, msg } => self.send(i, to, msg),
            Output::View(v) => {
                let me = self.hosts[i].core.as_ref().and_then(Core::me);
                let is = |m: &Member| Some((m.slot, m.incarnation)) == me;
                assert!(v.members.iter().any(is), "I8: host {i} was handed a view without itself: {v:?}");
                let old = self.hosts[i].view.as_ref().map_or(0, |v| v.epoch);
                assert!(v.epoch >= old, "epochs grow");
                self.hosts[i].view = Some(v);
            }
            Output::Fence { slot, incarnation, .. } => {
                let fail = self.rng.chance(self.faults.fail_percent);
                let result = if fail { Err("agent does not answer".to_owned()) } else { Ok(self.fence) };
                let input = Box::new(Input::FenceDone { slot, incarnation, result });
                self.at(10, Event::Give { host: i, life, input });
            }
            Output::Replay { slot, incarnation, .. } => {
                assert!(self.fenced.contains(&(slot, incarnation)), "I3: replay of slot {slot} before FENCED");
                // as far as this host can know: somebody may be evicted while it replays
                let log = self.record(self.hosts[i].core.as_ref().map_or(0, Core::epoch));
                assert!(log.slots.iter().all(|s| s.state != SLOT_EVICTED), "all FENCED before any replay");
                self.trace.push(format!("{} host {i} replays slot {slot} incarnation {incarnation}", self.now));
                self.replaying.insert((slot, incarnation), i);
                let fail = self.rng.chance(self.faults.fail_percent);
                let result = if fail { Err("unreadable".to_owned()) } else { Ok(()) };
                let late = 5 + self.rng.below(100);
                let input = Box::new(Input::ReplayDone { slot, incarnation, result });
                self.at(late, Event::Give { host: i, life, input });
            }
            Output::Joined { slot, incarnation, .. } => {
                assert!(self.joined.insert((slot, incarnation)), "I4: two processes are slot {slot} incarnation {incarnation}");
                self.trace.push(format!("{} host {i} joined slot {slot} incarnation {incarnation}", self.now));
                (self.hosts[i].joined, self.hosts[i].joined_at) = (Some((slot, incarnation)), self.now);
            }
            Output::Evicted { .. } => {
                self.hosts[i].evicted += 1;
                self.trace.push(format!("{} host {i} evicted", self.now));
                self.end(i);
            }
            Output::Left => {
                self.hosts[i].left += 1;
                self.trace.push(format!("{} host {i} left", self.now));
                self.end(i);
            }
            Output::Refused { reason } => {
                self.trace.push(format!("{} host {i} refused: {reason}", self.now));
                self.hosts[i].refused.push(reason);
                self.end(i);
            }
            Output::Log(l) => self.trace.push(format!("{} host {i}: {l}", self.now)),
            Output::Recovered { slot, incarnation } => assert!(self.replayed.contains(&(slot, incarnation)), "thaw before replay"),
            Output::Paused | Output::Resumed => {}
        }
    }

    /// The process ends in order.
    fn end(&mut self, i: usize) {
        self.hosts[i].core = None;
        self.hosts[i].life += 1;
        self.hosts[i].joined = None;
        if self.faults.restart {
            let late = 50 + self.rng.below(500);
            self.at(late, Event::Restart { host: i });
        }
    }

    fn send(&mut self, i: usize, to: Slot, msg: Msg) {
        if self.rng.chance(self.faults.lose_percent) {
            return;
        }
        let is = |h: &Host| h.core.as_ref().and_then(Core::me).map(|m| m.0) == Some(to);
        let Some(j) = self.hosts.iter().position(is) else { return };
        if self.cut.contains(&(i.min(j), i.max(j))) {
            return;
        }
        let from = self.hosts[i].core.as_ref().and_then(Core::me);
        let life = self.hosts[j].life;
        let late = 1 + self.rng.below(3);
        if let Some((slot, _)) = from {
            self.at(late, Event::Give { host: j, life, input: Box::new(Input::PeerLink { slot, now: LinkNow::Up }) });
        }
        self.at(late, Event::Give { host: j, life, input: Box::new(Input::Message { from, msg }) });
    }

    /// Runs until `until`.
    pub(crate) fn run(&mut self, until: Ms) {
        while let Some(((t, n), _)) = self.events.first_key_value() {
            let key = (*t, *n);
            if key.0 > until {
                break;
            }
            self.now = key.0;
            if let Some(e) = self.events.remove(&key) {
                self.event(e);
            }
        }
        self.now = until;
    }

    /// Runs until `done` or the time is over; whether it became true.
    pub(crate) fn run_until(&mut self, limit: Ms, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run(self.now + 5);
        }
        done(self)
    }

    /// A stopped process gets its event when it goes on.
    fn asleep(&mut self, host: usize, e: &Event) -> bool {
        let until = self.hosts[host].stopped_until;
        if until > self.now {
            let late = until - self.now;
            self.at(late, e.clone());
            return true;
        }
        false
    }

    fn event(&mut self, e: Event) {
        match e.clone() {
            Event::Wake { host, life, nonce } => {
                if self.hosts[host].life == life && self.hosts[host].wake == nonce && !self.asleep(host, &e) {
                    self.give(host, Input::Tick);
                }
            }
            Event::Give { host, life, input } => {
                if let Input::ReplayDone { slot, incarnation, result: Ok(()) } = *input
                    && self.hosts[host].life == life
                {
                    self.replayed.insert((slot, incarnation));
                }
                if self.hosts[host].life == life && !self.asleep(host, &e) {
                    self.give(host, *input);
                }
            }
            Event::Land { host, life, token, block, bytes } => {
                let fails = self.rng.chance(self.faults.fail_percent) && block < self.area.px_start;
                if !fails {
                    self.landed(block, &bytes);
                }
                let result = if fails { Err("EIO".to_owned()) } else { Ok(()) };
                let input = Box::new(Input::WriteDone { token, result });
                self.at(1, Event::Give { host, life, input });
            }
            Event::Look { host, life, token, start, count } => {
                let block = |b| self.disk.get(&b).cloned().unwrap_or_else(Block::zeroed);
                let blocks: Vec<Block> = (start..start + count).map(block).collect();
                let result = if self.rng.chance(self.faults.fail_percent) { Err("EIO".to_owned()) } else { Ok(blocks) };
                self.at(1, Event::Give { host, life, input: Box::new(Input::ReadDone { token, result }) });
            }
            Event::Data { who } => {
                assert!(
                    !self.fenced.contains(&who),
                    "I2: a write of slot {} incarnation {} landed after FENCED\n{}",
                    who.0,
                    who.1,
                    self.tail()
                );
            }
            Event::Restart { host } => {
                if self.hosts[host].core.is_none() && self.faults.restart {
                    self.start(host);
                }
            }
        }
    }

    fn landed(&mut self, block: u64, bytes: &Block) {
        let a = self.area;
        if block >= a.log_start {
            let r = read_record(bytes, VOLUME, a.log_start, a.log_blocks, block - a.log_start).unwrap().unwrap();
            if let Some(old) = self.records.get(&r.index) {
                assert!(old.0 == bytes.0, "I1: two records {}\n{}", r.index, self.tail());
            } else {
                let prev = self.records.get(&(r.index - 1)).map_or([0; 16], chain);
                assert_eq!(prev, r.prev, "the hash chain is broken at {}", r.index);
                self.records.insert(r.index, bytes.clone());
                self.decided(&r);
            }
        }
        self.disk.insert(block, bytes.clone());
    }

    fn decided(&mut self, r: &Record) {
        let (d, key) = (r.decision, (r.decision.slot, r.decision.incarnation));
        match d.kind {
            DECIDE_FENCED => {
                self.fenced.insert(key);
            }
            DECIDE_RECOVERED => assert!(self.replayed.contains(&key), "I3: RECOVERED before replay of {key:?}\n{}", self.tail()),
            _ => {}
        }
    }

    pub(crate) fn newest(&self) -> Record {
        self.record(self.records.last_key_value().map_or(0, |(k, _)| *k))
    }

    fn record(&self, k: u64) -> Record {
        let Some(b) = self.records.get(&k) else { return Record::genesis() };
        read_record(b, VOLUME, self.area.log_start, self.area.log_blocks, k % self.area.log_blocks).unwrap().unwrap()
    }

    pub(crate) fn decisions(&self) -> Vec<(u16, Slot, u64)> {
        let a = self.area;
        let read = |(k, b): (&u64, &Block)| read_record(b, VOLUME, a.log_start, a.log_blocks, k % a.log_blocks).unwrap().unwrap();
        self.records.iter().map(read).map(|r| (r.decision.kind, r.decision.slot, r.decision.incarnation)).collect()
    }

    pub(crate) fn cores(&self) -> Vec<&Core> {
        self.hosts.iter().filter_map(|h| h.core.as_ref()).collect()
    }

    pub(crate) fn tail(&self) -> String {
        self.trace[self.trace.len().saturating_sub(60)..].join("\n")
    }

    /// Everybody who runs is in, active, of one epoch; nobody dead is left.
    pub(crate) fn healthy(&self) -> bool {
        let newest = self.newest();
        let live: Vec<&Core> = self.hosts.iter().filter_map(|h| h.core.as_ref()).collect();
        let sound = |c: &&Core| c.epoch() == newest.index && matches!(c.gate(), Gate::Active { .. });
        let members = newest.slots.iter().filter(|s| s.state == SLOT_MEMBER).count();
        let dead = newest.slots.iter().any(|s| matches!(s.state, SLOT_EVICTED | SLOT_FENCED));
        !dead && members == live.len() && live.iter().all(sound)
    }
}
