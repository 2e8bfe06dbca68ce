//! A process on a host: the router with its time, and what is done with its outputs; the mirror of `node`'s shell.
//!
//! Inputs are queued and worked off in turn, outputs performed in order, exactly as `luna_node::host::Host` does it. A new
//! process has a new life, a new router and new links; its incarnation comes from the membership core.

use crate::Broken;
use crate::fsw::side::Side;
use crate::net::Peer;
use crate::scale::meter::REPLAY_MS;
use crate::user::Entry;
use crate::world::{Event, Fallible, Happening, Sent, World};
use luna_cluster::{Config, Core, FenceMethod, Gate, Input};
use luna_dlm as dlm;
use luna_node::router::{DiskJob, In, Notice, Out, Router};
use luna_node::wire::{self, Packet};
use std::collections::{BTreeMap, VecDeque};

/// A machine.
pub(crate) struct Host {
    name: String,
    pub(crate) life: u64,
    pub(crate) process: Option<Process>,
    pub(crate) stopped_until: u64,
    /// No path to the LUN until then.
    pub(crate) away_until: u64,
    pub(crate) backlog: VecDeque<Event>,
}

/// What runs on it.
pub(crate) struct Process {
    pub(crate) router: Router,
    inbox: VecDeque<In>,
    stepping: bool,
    pub(crate) place: Option<(u16, u64)>,
    pub(crate) peers: BTreeMap<u16, Peer>,
    pub(crate) serving: bool,
    pub(crate) withdrawn: bool,
    /// Its requests go under its name.
    named: bool,
    pub(crate) leaving: bool,
    evicted: bool,
    drained: bool,
    pub(crate) locks: BTreeMap<dlm::Name, Entry>,
    pub(crate) in_flight: usize,
    /// The file system side, in a world of files.
    pub(crate) side: Option<Side>,
}

impl Host {
    pub(crate) fn new(i: usize) -> Self {
        Self { name: format!("host-{i}"), life: 0, process: None, stopped_until: 0, away_until: 0, backlog: VecDeque::new() }
    }

    pub(crate) fn place(&self) -> Option<(u16, u64)> {
        self.process.as_ref()?.place
    }
}

/// How often the shell ticks.
const TICK: u64 = 20;

impl World {
    pub(crate) fn start(&mut self, i: usize) -> Fallible {
        if self.hosts[i].process.is_some() {
            return Ok(());
        }
        let cfg = Config {
            area: self.area,
            timing: self.timing,
            name: self.hosts[i].name.clone(),
            host_id: [i as u8 + 1; 16],
            nonce: self.rng.u64(1..),
            addresses: vec![i.to_string()],
            link_key: [0; 32],
        };
        let router = Router::new(Core::new(cfg, self.rng.u64(..)));
        self.hosts[i].life += 1;
        let side = self.fs_side(i);
        let h = &mut self.hosts[i];
        h.stopped_until = 0;
        h.process = Some(Process {
            router,
            inbox: VecDeque::new(),
            stepping: false,
            place: None,
            peers: BTreeMap::new(),
            serving: false,
            withdrawn: false,
            named: false,
            leaving: false,
            evicted: false,
            drained: false,
            locks: BTreeMap::new(),
            in_flight: 0,
            side,
        });
        self.say(format!("host {i} starts"));
        let phase = self.rng.u64(0..TICK);
        self.later(phase, i, Event::Tick);
        self.input(i, In::Cluster(Input::Start))
    }

    /// The process is gone at once; what it handed to the LUN still lands. Its machine resets its connections.
    pub(crate) fn kill(&mut self, i: usize) {
        let h = &mut self.hosts[i];
        let Some(p) = h.process.take() else { return };
        let life = h.life;
        h.life += 1;
        h.backlog.clear();
        if let (Some(who), Some(f)) = (p.place, &mut self.fs) {
            f.oracle.gone(who);
        }
        if let Some(side) = p.side {
            self.fs_killed(i, life, side);
        }
        self.say(format!("host {i} ends"));
        self.check.progress.gone(i);
        self.reset_all_of(i);
        // where growth is measured the dead stay dead until they are told to come back
        if self.scale.is_none() && (!self.ending || self.last == Some(i)) {
            let late = self.rng.u64(50..1500);
            self.at(self.paced(late), Happening::Start { host: i });
        }
    }

    /// Seldom where hours are to pass: what is due is done at the next event anyway.
    fn tick_ms(&self) -> u64 {
        if self.setup.calm { 5 * TICK } else { TICK }
    }

    pub(crate) fn tick(&mut self, i: usize) -> Fallible {
        self.later(self.tick_ms(), i, Event::Tick);
        self.input(i, In::Cluster(Input::Tick))?;
        self.input(i, In::Dlm(dlm::Input::Tick))?;
        self.upkeep(i);
        self.fs_pump(i, true)?;
        self.drained(i)
    }

    /// Queues an input and works the queue off, unless that is going on already.
    pub(crate) fn input(&mut self, i: usize, input: In) -> Fallible {
        if let In::Cluster(Input::ReplayDone { slot, incarnation, result: Ok(()) }) = &input {
            self.check.members.replayed((*slot, *incarnation));
        }
        let Some(p) = &mut self.hosts[i].process else { return Ok(()) };
        p.inbox.push_back(input);
        if p.stepping {
            return Ok(());
        }
        p.stepping = true;
        let mut out = Vec::new();
        while let Some(p) = &mut self.hosts[i].process {
            let Some(next) = p.inbox.pop_front() else {
                p.stepping = false;
                break;
            };
            p.router.step(self.now, next, &mut out);
            self.fs_lease(i);
            for o in out.drain(..) {
                self.perform(i, o)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, i: usize, o: Out) -> Fallible {
        self.measure(&o);
        match o {
            Out::Disk(job) => {
                match &job {
                    DiskJob::Read(token, start, count) => self.note(i, 1, &[*token as u8, *start as u8, *count as u8]),
                    DiskJob::Write(_, block, bytes, _) => self.note(i, 2, &[&block.to_le_bytes()[..], &bytes.0[..64]].concat()),
                }
                let (late, life) = (self.latency(), self.hosts[i].life);
                let named = self.hosts[i].process.as_ref().filter(|p| p.named).and_then(|p| p.place);
                let sent = Sent { who: named, power: self.fs.as_ref().map_or(0, |f| f.power) };
                self.at(late, Happening::Lun { host: i, life, job, sent });
            }
            Out::Send { to, packet } => {
                let early = self.hosts[i].process.as_ref().is_some_and(|p| !p.serving);
                if early && matches!(packet, Packet::Dlm(_)) && self.setup.broken == Some(Broken::DropsEarlyLockMessages) {
                    return Ok(());
                }
                let bytes = wire::encode_packet(&packet);
                self.note(i, 3, &bytes);
                self.send(i, to, bytes);
            }
            Out::SetMe(slot, incarnation) => {
                self.forget_all(i);
                if let Some(p) = &mut self.hosts[i].process {
                    p.place = Some((slot, incarnation));
                    if let Some(s) = &p.side {
                        *s.door.who.lock() = Some((slot, incarnation));
                    }
                }
            }
            Out::Learn(slot, incarnation, addresses, _) => self.learn(i, slot, incarnation, &addresses),
            Out::Forget(slot, incarnation) => self.forget(i, slot, incarnation),
            Out::LocksGranted(name, mode, value) if self.fs.is_some() => return self.fs_locks(i, |l| l.granted(&name, mode, value)),
            Out::LocksDenied(name, mode) if self.fs.is_some() => return self.fs_locks(i, |l| l.denied(&name, mode)),
            Out::LocksBast(name, mode, polite) if self.fs.is_some() => {
                let deaf = self.setup.broken == Some(Broken::IgnoresBasts) && !polite;
                return if deaf { Ok(()) } else { self.fs_locks(i, |l| l.bast(&name, mode, polite)) };
            }
            Out::LocksGranted(name, mode, _) => return self.locks_granted(i, name, mode),
            Out::LocksDenied(name, mode) => return self.locks_denied(i, name, mode),
            Out::LocksBast(name, mode, polite) => return self.locks_bast(i, name, mode, polite),
            Out::LocksWithdrawn => {
                self.fs_withdraw(i, "the lock manager was shut out");
                self.withdraw(i);
            }
            Out::PosixDone(..) => {}
            Out::Gate { open } => self.note(i, 4, &[u8::from(open)]),
            Out::Garbage => return Err(format!("wire: host {i} got something that is no packet")),
            Out::Notice(n) => return self.notice(i, n),
        }
        Ok(())
    }

    fn notice(&mut self, i: usize, n: Notice) -> Fallible {
        match n {
            Notice::Joined(slot, incarnation) => {
                self.say(format!("host {i} is slot {slot} incarnation {incarnation}"));
                self.check.members.joined((slot, incarnation))?;
                let late = if self.scale.is_some() { 20 } else { self.rng.u64(5..300) };
                self.later(late, i, Event::Serve);
                if self.fs.is_some()
                    && let Some(p) = &mut self.hosts[i].process
                {
                    p.named = true;
                    // what went without a name has landed by then
                    self.later(self.timing.request_ms, i, Event::Input(Box::new(In::Cluster(Input::NamedAtTarget))));
                }
            }
            Notice::Refused(why) => {
                self.say(format!("host {i} is refused: {why}"));
                self.later(1, i, Event::Exit);
            }
            Notice::Evicted(why) => {
                self.say(format!("host {i} is shut out: {why}"));
                self.fs_withdraw(i, &why);
                self.withdraw(i);
                self.forget_all(i);
                if let Some(p) = &mut self.hosts[i].process {
                    p.evicted = true;
                }
                self.later(2 * self.timing.request_ms, i, Event::Exit);
                return self.drained(i);
            }
            Notice::Left => self.later(1, i, Event::Exit),
            Notice::Fence(slot, incarnation, at_target) if self.fs.is_some() => self.fs_fence(i, (slot, incarnation), at_target),
            Notice::Fence(slot, incarnation, _) => {
                let (late, method) = self.scale.as_ref().map_or((1, FenceMethod::Lease), |s| s.fence());
                let done = Input::FenceDone { slot, incarnation, result: Ok(method) };
                self.later(late, i, Event::Input(Box::new(In::Cluster(done))));
            }
            Notice::Replay(slot, incarnation, epoch) if self.fs.is_some() => {
                self.fs_fenced(slot, incarnation)?;
                self.fs_replay(i, (slot, incarnation), epoch)?;
            }
            Notice::Replay(slot, incarnation, _) => self.replay(i, (slot, incarnation))?,
            Notice::Recovered(slot, incarnation) => {
                self.check.members.thawed((slot, incarnation))?;
                self.fs_sweep(i, slot)?;
            }
            Notice::Epoch(epoch) => {
                if let Some(fs) = self.side(i).and_then(|s| s.fs.as_ref()) {
                    fs.volume.epoch.store(epoch, std::sync::atomic::Ordering::Relaxed);
                }
                let Some(p) = &self.hosts[i].process else { return Ok(()) };
                let (Some(me), Some(v)) = (p.place, p.router.view()) else { return Ok(()) };
                let has_it = v.members.iter().any(|m| (m.slot, m.incarnation) == me);
                self.check.members.view(me, epoch, has_it)?;
            }
        }
        Ok(())
    }

    fn replay(&mut self, i: usize, who: (u16, u64)) -> Fallible {
        self.check.members.replay(who)?;
        let fails = self.faulty && self.rng.u8(0..100) < 5;
        let usual = if self.scale.is_some() { REPLAY_MS } else { self.rng.u64(5..200) };
        let late = usual + if fails { 1000 } else { 0 };
        let result = if fails { Err("unreadable".to_owned()) } else { Ok(()) };
        let done = Input::ReplayDone { slot: who.0, incarnation: who.1, result };
        self.later(late, i, Event::Input(Box::new(In::Cluster(done))));
        Ok(())
    }

    /// A host that was shut out says so when none of its writes is under way.
    fn drained(&mut self, i: usize) -> Fallible {
        let Some(p) = &self.hosts[i].process else { return Ok(()) };
        let flying = p.side.is_some() && self.fs.as_ref().is_some_and(|f| !f.medium.lock().flights_of((i, self.hosts[i].life)).is_empty());
        let Some(p) = &mut self.hosts[i].process else { return Ok(()) };
        if p.evicted && !p.drained && p.in_flight == 0 && !flying && p.router.cluster().is_quiet() {
            p.drained = true;
            return self.input(i, In::Cluster(Input::Drained));
        }
        Ok(())
    }

    /// May this host write now? Asked just before each submission.
    pub(crate) fn may_write(&self, i: usize) -> bool {
        let Some(p) = &self.hosts[i].process else { return false };
        !p.withdrawn && (self.gate_open(i) || self.setup.broken == Some(Broken::WritesThroughAShutGate))
    }

    /// The lease is good now.
    pub(crate) fn gate_open(&self, i: usize) -> bool {
        let Some(p) = &self.hosts[i].process else { return false };
        matches!(p.router.cluster().gate(), Gate::Active { until_ms } if until_ms > self.now)
    }

    /// Everybody is in, serves, and is of one epoch; nobody dead is left.
    pub(crate) fn healthy(&self) -> bool {
        self.ailing().is_empty()
    }

    /// What is wrong, in a few words.
    pub(crate) fn ailing(&self) -> String {
        let (epoch, members, dead) = self.check.members.newest();
        if dead > 0 || members != self.hosts.len() {
            return format!("{members} members of {}, {dead} dead", self.hosts.len());
        }
        let sick = (0..self.hosts.len()).find(|i| {
            let Some(p) = &self.hosts[*i].process else { return true };
            let c = p.router.cluster();
            c.epoch() != epoch || !p.serving || p.leaving || !matches!(c.gate(), Gate::Active { .. })
        });
        sick.map_or(String::new(), |i| format!("host {i} is not well"))
    }
}
