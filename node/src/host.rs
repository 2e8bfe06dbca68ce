//! One host's shell: gives the pure router time and inputs, and performs its outputs on disk, peers, lock cache and mount.
//!
//! Inputs are queued; whoever finds the router free drains the queue on its own thread (so a lock that is mastered here costs
//! no thread hop), and the router's own thread picks up what was queued by somebody who must not drain. Outputs are performed
//! under the router's mutex, in order; performing one never waits for a disk, a peer or another thread.
//! Not here: what goes where (`router`), decisions (they belong to the cores), the file system.

use crate::peers::{Events, Peers};
pub use crate::router::{DiskJob, In, Notice};
use crate::router::{Out, Router};
use crate::wire;
use crossbeam_channel::Sender;
use luna_cluster::{self as cluster, LinkNow};
use luna_dlm as dlm;
use luna_dlm::{LockCache, PosixClient};
use luna_format::{Incarnation, Slot};
use luna_lun::Gate;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use luna_lun::boottime_ms as now_ms;

/// The router and its outputs, under one mutex.
struct Cores {
    router: Router,
    spare: Vec<Out>,
}

/// One host's shell.
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
    /// Whether this host may use the LUN; told after each step of the cores.
    gate: Arc<Gate>,
    claim: Arc<Gate>,
    /// Packets from peers that could not be read.
    pub garbage: AtomicU64,
}

impl Host {
    /// A router around a membership core. `disk` and `notices` are served by other threads.
    pub fn new(core: cluster::Core, disk: Sender<DiskJob>, notices: Sender<Notice>) -> Arc<Self> {
        let cores = Cores { router: Router::new(core), spare: Vec::new() };
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
            gate: Gate::new(),
            claim: Gate::new(),
            garbage: AtomicU64::new(0),
        })
    }

    /// What the LUN's doors ask before each request.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Open while this host is no member yet and its claim on a slot holds.
    pub fn claim(&self) -> &Arc<Gate> {
        &self.claim
    }

    /// Names the links; once.
    pub fn set_peers(&self, p: Arc<Peers>) {
        let _ = self.peers.set(p);
    }

    /// Names the lock cache and the byte-range lock client; once, before the first lock.
    pub fn set_locks(&self, locks: Arc<LockCache>, posix: Arc<PosixClient>) {
        let _ = self.locks.set(locks);
        let _ = self.posix.set(posix);
        self.post(In::Serving);
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
            f(c.router.cluster(), c.router.dlm(), c.router.view())
        };
        self.drain();
        value
    }

    fn apply(&self, c: &mut Cores, i: In) {
        c.router.step(now_ms(), i, &mut c.spare);
        // before anything is performed: nobody acts on an output of a host that may not act any more
        self.gate.open_until(match c.router.cluster().gate() {
            cluster::Gate::Active { until_ms } => until_ms,
            cluster::Gate::Paused | cluster::Gate::Evicted => 0,
        });
        self.claim.open_until(c.router.cluster().claim_until().unwrap_or(0));
        for o in c.spare.drain(..) {
            self.perform(o);
        }
    }

    fn perform(&self, o: Out) {
        match o {
            Out::Disk(job) => drop(self.disk.send(job)),
            Out::Notice(n) => self.notice(n),
            Out::Gate { open } => tracing::warn!(open, "the lease of this host: its I/O goes on while open, waits otherwise"),
            Out::Garbage => drop(self.garbage.fetch_add(1, Ordering::Relaxed)),
            Out::Send { .. } | Out::SetMe(..) | Out::Learn(..) | Out::Forget(..) => self.tell_peers(o),
            Out::LocksGranted(..) | Out::LocksDenied(..) | Out::LocksBast(..) | Out::PosixDone(..) | Out::LocksWithdrawn => {
                self.tell_locks(o);
            }
        }
    }

    fn tell_peers(&self, o: Out) {
        let Some(peers) = self.peers.get() else { return };
        match o {
            Out::Send { to, packet } => peers.send(to, wire::encode_packet(&packet)),
            Out::SetMe(slot, incarnation) => peers.set_me(slot, incarnation),
            Out::Learn(slot, incarnation, addresses, key) => peers.learn(slot, incarnation, &addresses, &key),
            Out::Forget(slot, incarnation) => peers.forget(slot, incarnation),
            _ => {}
        }
    }

    fn tell_locks(&self, o: Out) {
        let (Some(locks), Some(posix)) = (self.locks.get(), self.posix.get()) else { return };
        match o {
            Out::LocksGranted(name, mode, value) => locks.granted(&name, mode, value),
            Out::LocksDenied(name, mode) => locks.denied(&name, mode),
            Out::LocksBast(name, wanted, polite) => locks.bast(&name, wanted, polite),
            Out::PosixDone(token, result) => posix.done(token, result),
            Out::LocksWithdrawn => {
                locks.withdraw();
                posix.withdraw();
            }
            _ => {}
        }
    }

    fn notice(&self, n: Notice) {
        match &n {
            Notice::Evicted(why) => {
                self.gate.shut(why);
                self.claim.shut(why);
            }
            Notice::Left => self.gate.shut("this host has left the volume"),
            _ => {}
        }
        let _ = self.notices.send(n);
    }
}

impl Events for Host {
    fn deliver(&self, from: Slot, incarnation: Incarnation, payload: Vec<u8>) {
        self.queue(In::Deliver(from, incarnation, payload));
    }

    fn link(&self, slot: Slot, _: Incarnation, now: LinkNow) {
        self.queue(In::Cluster(cluster::Input::PeerLink { slot, now }));
    }

    fn stranger(&self, _: Slot) {
        self.queue(In::Cluster(cluster::Input::Stranger));
    }

    fn outsider(&self, payload: Vec<u8>) {
        self.queue(In::Outsider(payload));
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
        self.queue(In::Cluster(cluster::Input::ShutOut { reason: reason.to_owned() }));
        self.ring();
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
