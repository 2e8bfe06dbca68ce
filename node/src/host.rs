//! One host: routes the outputs of the membership core and the lock manager to disk, peers, lock cache and file system, and
//! feeds what comes back to them.
//!
//! Inputs are queued; whoever finds the router free drains the queue on its own thread (so a lock that is mastered here costs
//! no thread hop), and the router's own thread picks up what was queued by somebody who must not drain. Outputs are performed
//! under the router's mutex, in order; performing one never waits for a disk, a peer or another thread.
//! Not here: decisions (they belong to the cores), the file system.

use crate::peers::{Events, Peers};
use crate::wire::{self, Packet};
use crossbeam_channel::Sender;
use luna_cluster as cluster;
use luna_dlm as dlm;
use luna_dlm::{LockCache, PosixClient};
use luna_format::{Block, BlockNo, Incarnation, Slot};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Milliseconds of CLOCK_BOOTTIME: monotonic, and goes on while the machine sleeps.
pub fn now_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    (t.tv_sec as u64) * 1000 + (t.tv_nsec as u64) / 1_000_000
}

/// Something for the cores.
#[derive(Debug)]
pub enum In {
    /// For the membership core.
    Cluster(cluster::Input),
    /// For the lock manager.
    Dlm(dlm::Input),
    /// Bytes from a peer.
    Deliver(Slot, Incarnation, Vec<u8>),
}

/// A request of the membership core to the LUN.
#[derive(Debug)]
pub enum DiskJob {
    /// Read blocks.
    Read(u64, BlockNo, u64),
    /// Write a block; durable when forced.
    Write(u64, BlockNo, Box<Block>, bool),
}

/// What the mount's own thread must hear.
#[derive(Clone, Debug)]
pub enum Notice {
    /// This host is a member.
    Joined(Slot, Incarnation),
    /// It cannot come in.
    Refused(String),
    /// It was shut out.
    Evicted(String),
    /// It left in order.
    Left,
    /// Make it impossible for this incarnation to write.
    Fence(Slot, Incarnation),
    /// Replay this journal; the last number is the epoch of the FENCED record.
    Replay(Slot, Incarnation, u64),
    /// This incarnation is recovered.
    Recovered(Slot, Incarnation),
    /// The epoch to stamp on blocks.
    Epoch(u64),
}

/// The cores.
struct Cores {
    cluster: cluster::Core,
    dlm: Option<dlm::Core>,
    view: Option<cluster::View>,
    dlm_epoch: u64,
    clean_outs: (Vec<cluster::Output>, Vec<dlm::Output>),
}

/// The router.
pub struct Host {
    cores: Mutex<Cores>,
    inbox: Mutex<VecDeque<In>>,
    bell: Condvar,
    bell_mutex: Mutex<bool>,
    stopping: AtomicBool,
    peers: OnceLock<Arc<Peers>>,
    locks: OnceLock<Arc<LockCache>>,
    posix: OnceLock<Arc<PosixClient>>,
    disk: Sender<DiskJob>,
    notices: Sender<Notice>,
    /// Whether the gate is shut (lease lost or shut out).
    pub paused: AtomicBool,
    /// Packets from peers that could not be read.
    pub garbage: AtomicU64,
}

impl Host {
    /// A router around a membership core. `disk` and `notices` are served by other threads.
    pub fn new(core: cluster::Core, disk: Sender<DiskJob>, notices: Sender<Notice>) -> Arc<Self> {
        let cores = Cores { cluster: core, dlm: None, view: None, dlm_epoch: 0, clean_outs: (Vec::new(), Vec::new()) };
        Arc::new(Self {
            cores: Mutex::new(cores),
            inbox: Mutex::default(),
            bell: Condvar::new(),
            bell_mutex: Mutex::new(false),
            stopping: AtomicBool::new(false),
            peers: OnceLock::new(),
            locks: OnceLock::new(),
            posix: OnceLock::new(),
            disk,
            notices,
            paused: AtomicBool::new(false),
            garbage: AtomicU64::new(0),
        })
    }

    /// Names the links; once.
    pub fn set_peers(&self, p: Arc<Peers>) {
        let _ = self.peers.set(p);
    }

    /// Names the lock cache and the byte-range lock client; once, before the first lock.
    pub fn set_locks(&self, locks: Arc<LockCache>, posix: Arc<PosixClient>) {
        let _ = self.locks.set(locks);
        let _ = self.posix.set(posix);
    }

    /// Queues an input without draining: for callers that hold locks of their own.
    pub fn queue(&self, i: In) {
        self.inbox.lock().push_back(i);
    }

    /// Queues an input and works the queue off if nobody else is at it.
    pub fn post(&self, i: In) {
        self.queue(i);
        self.drain();
    }

    /// Wakes the router's own thread.
    pub fn ring(&self) {
        *self.bell_mutex.lock() = true;
        self.bell.notify_one();
    }

    /// Works the queue off, unless somebody is at it already (who then sees what was added).
    pub fn drain(&self) {
        while !self.inbox.lock().is_empty() {
            let Some(mut cores) = self.cores.try_lock() else { return };
            loop {
                let next = self.inbox.lock().pop_front();
                let Some(i) = next else { break };
                self.apply(&mut cores, i);
            }
        }
    }

    /// The router's own thread: ticks, and whatever was only queued. Ends after [`Self::stop`].
    pub fn run(&self, tick: Duration) {
        let mut next = std::time::Instant::now();
        while !self.stopping.load(Ordering::Acquire) {
            if std::time::Instant::now() >= next {
                next = std::time::Instant::now() + tick;
                self.queue(In::Cluster(cluster::Input::Tick));
                self.queue(In::Dlm(dlm::Input::Tick));
                if let Some(p) = self.peers.get() {
                    p.tick();
                }
            }
            self.drain();
            let mut rung = self.bell_mutex.lock();
            if !*rung {
                self.bell.wait_until(&mut rung, next);
            }
            *rung = false;
        }
    }

    /// Ends [`Self::run`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.ring();
    }

    /// Looks at the cores, for status.
    pub fn look<T>(&self, f: impl FnOnce(&cluster::Core, Option<&dlm::Core>, Option<&cluster::View>) -> T) -> T {
        let value = {
            let c = self.cores.lock();
            f(&c.cluster, c.dlm.as_ref(), c.view.as_ref())
        };
        self.drain();
        value
    }

    fn apply(&self, c: &mut Cores, i: In) {
        match i {
            In::Cluster(i) => self.step_cluster(c, i),
            In::Dlm(i) => self.step_dlm(c, i),
            In::Deliver(from, incarnation, bytes) => match wire::decode_packet(&bytes) {
                Some(Packet::Cluster(msg)) => {
                    self.step_cluster(c, cluster::Input::Message { from: Some((from, incarnation)), msg });
                }
                Some(Packet::Dlm(msg)) => {
                    tracing::trace!(from, ?msg, "from a lock manager");
                    self.step_dlm(c, dlm::Input::Message { from, msg });
                }
                None => {
                    self.garbage.fetch_add(1, Ordering::Relaxed);
                }
            },
        }
    }

    fn step_cluster(&self, c: &mut Cores, i: cluster::Input) {
        let mut out = std::mem::take(&mut c.clean_outs.0);
        c.cluster.step(now_ms(), i, &mut out);
        for o in out.drain(..) {
            self.do_cluster(c, o);
        }
        c.clean_outs.0 = out;
    }

    fn step_dlm(&self, c: &mut Cores, i: dlm::Input) {
        let mut out = std::mem::take(&mut c.clean_outs.1);
        if let Some(core) = &mut c.dlm {
            core.step(now_ms(), i, &mut out);
        }
        for o in out.drain(..) {
            self.do_dlm(o);
        }
        c.clean_outs.1 = out;
    }

    fn do_cluster(&self, c: &mut Cores, o: cluster::Output) {
        use cluster::Output as O;
        match o {
            O::Read { token, start, count } => drop(self.disk.send(DiskJob::Read(token, start, count))),
            O::Write { token, block, bytes, forced } => drop(self.disk.send(DiskJob::Write(token, block, bytes, forced))),
            O::Send { to, msg } => {
                if c.dlm.is_none() {
                    self.look_up(&c.cluster.view(), to);
                }
                self.send(to, &Packet::Cluster(msg));
            }
            O::View(v) => self.view(c, v),
            O::Fence { slot, incarnation } => self.notice(Notice::Fence(slot, incarnation)),
            O::Replay { slot, incarnation, fenced_epoch } => self.notice(Notice::Replay(slot, incarnation, fenced_epoch)),
            O::Recovered { slot, incarnation } => {
                self.step_dlm(c, dlm::Input::Recovered(dlm::Member { slot, incarnation }));
                self.notice(Notice::Recovered(slot, incarnation));
            }
            O::Joined { slot, incarnation, .. } => self.joined(c, slot, incarnation),
            O::Paused => {
                tracing::warn!("the lease ran out: this host waits for the LUN");
                self.paused.store(true, Ordering::Release);
            }
            O::Resumed => {
                tracing::info!("the lease is good again: going on");
                self.paused.store(false, Ordering::Release);
            }
            O::Evicted { reason } => {
                self.paused.store(true, Ordering::Release);
                self.notice(Notice::Evicted(reason));
            }
            O::Left => self.notice(Notice::Left),
            O::Refused { reason } => self.notice(Notice::Refused(reason)),
            O::Log(line) => tracing::info!(target: "luna::cluster", "{line}"),
        }
    }

    fn do_dlm(&self, o: dlm::Output) {
        use dlm::Output as O;
        // the manager talks to the others as soon as this host is a member, before there is a cache to serve
        if let O::Send { to, msg } = o {
            tracing::trace!(to, ?msg, "to a lock manager");
            return self.send(to, &Packet::Dlm(msg));
        }
        let (Some(locks), Some(posix)) = (self.locks.get(), self.posix.get()) else { return };
        match o {
            O::Send { .. } => {}
            O::Granted { name, mode, value } => locks.granted(&name, mode, value),
            O::Denied { name, mode } => locks.denied(&name, mode),
            O::Bast { name, wanted, polite } => locks.bast(&name, wanted, polite),
            O::PosixDone { token, result } => posix.done(token, result),
            O::Evicted => {
                locks.withdraw();
                posix.withdraw();
            }
        }
    }

    fn joined(&self, c: &mut Cores, slot: Slot, incarnation: Incarnation) {
        if let Some(p) = self.peers.get() {
            p.set_me(slot, incarnation);
        }
        c.dlm = Some(dlm::Core::new(dlm::Member { slot, incarnation }));
        self.notice(Notice::Joined(slot, incarnation));
        if let Some(v) = c.view.clone() {
            self.view(c, v);
        }
    }

    /// A view: the links follow it at once, the lock manager only when the members changed.
    fn view(&self, c: &mut Cores, v: cluster::View) {
        if let Some(p) = self.peers.get() {
            for m in &v.members {
                p.learn(m.slot, m.incarnation, &m.addresses);
            }
            for old in c.view.iter().flat_map(|v| &v.members) {
                if !v.members.iter().any(|m| (m.slot, m.incarnation) == (old.slot, old.incarnation)) {
                    p.forget(old.slot, old.incarnation);
                }
            }
        }
        self.notice(Notice::Epoch(v.epoch));
        // views from before this host's own JOIN are none of its lock manager's business (it would take them for its eviction)
        let mine = c.dlm_epoch > 0 || v.members.iter().any(|m| Some((m.slot, m.incarnation)) == c.cluster.me());
        let news = c.dlm.is_some() && mine && c.dlm_epoch != v.view_epoch;
        let told = news.then(|| dlm_view(&v));
        c.view = Some(v);
        if let Some(d) = told {
            c.dlm_epoch = d.epoch;
            tracing::debug!(view = ?d, "lock manager view");
            self.step_dlm(c, dlm::Input::View(d));
        }
    }

    /// A host that is not a member gets no views: it finds whom it asks to be let in through that member's beat.
    fn look_up(&self, v: &cluster::View, slot: Slot) {
        if let (Some(p), Some(m)) = (self.peers.get(), v.members.iter().find(|m| m.slot == slot)) {
            p.learn(m.slot, m.incarnation, &m.addresses);
        }
    }

    fn send(&self, to: Slot, p: &Packet) {
        if let Some(peers) = self.peers.get() {
            peers.send(to, wire::encode_packet(p));
        }
    }

    fn notice(&self, n: Notice) {
        let _ = self.notices.send(n);
    }
}

/// The lock manager's form of a view. Who else was in a dead host's last view matters by slot only (the mastering hash).
fn dlm_view(v: &cluster::View) -> dlm::View {
    let incarnations: BTreeMap<Slot, Incarnation> = v.members.iter().map(|m| (m.slot, m.incarnation)).collect();
    let dead = v.dead.iter().map(|d| {
        let slots = (0..luna_format::MAX_SLOTS).filter(|s| d.last_members >> s & 1 == 1 || *s == d.slot);
        let last_view = slots.map(|slot| {
            let incarnation = if slot == d.slot { d.incarnation } else { incarnations.get(&slot).copied().unwrap_or(0) };
            dlm::Member { slot, incarnation }
        });
        dlm::DeadHost { slot: d.slot, incarnation: d.incarnation, last_view: last_view.collect() }
    });
    dlm::View {
        epoch: v.view_epoch,
        members: v.members.iter().map(|m| dlm::Member { slot: m.slot, incarnation: m.incarnation }).collect(),
        dead: dead.collect(),
    }
}

impl Events for Host {
    fn deliver(&self, from: Slot, incarnation: Incarnation, payload: Vec<u8>) {
        self.queue(In::Deliver(from, incarnation, payload));
    }

    fn link(&self, slot: Slot, _: Incarnation, up: bool) {
        self.queue(In::Cluster(cluster::Input::PeerLink { slot, up }));
    }

    fn stranger(&self, _: Slot) {
        self.queue(In::Cluster(cluster::Input::Nudge));
    }

    fn outsider(&self, payload: Vec<u8>) {
        if let Some(Packet::Cluster(msg)) = wire::decode_packet(&payload) {
            self.queue(In::Cluster(cluster::Input::Message { from: None, msg }));
        }
    }

    fn kick(&self) {
        self.drain();
    }
}

impl dlm::Requester for Host {
    fn lock(&self, name: dlm::Name, mode: dlm::Mode, noqueue: bool) {
        self.queue(In::Dlm(dlm::Input::Lock { name, mode, noqueue }));
    }

    fn release(&self, name: dlm::Name, from: dlm::Mode, to: dlm::Mode, value: Option<dlm::ValueBlock>) {
        self.queue(In::Dlm(dlm::Input::Release { name, from, to, value }));
    }

    fn busy(&self, name: dlm::Name, wanted: dlm::Mode) {
        self.queue(In::Dlm(dlm::Input::Busy { name, wanted }));
    }

    fn kick(&self) {
        self.drain();
    }

    fn failed(&self, reason: &str) {
        self.notice(Notice::Evicted(reason.to_owned()));
    }
}

impl dlm::PosixRequester for Host {
    fn posix(&self, token: u64, name: dlm::Name, op: dlm::posix::Op) {
        self.queue(In::Dlm(dlm::Input::Posix { token, name, op }));
        self.ring();
    }

    fn cancel(&self, token: u64) {
        self.queue(In::Dlm(dlm::Input::PosixCancel { token }));
        self.ring();
    }
}
