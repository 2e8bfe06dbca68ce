//! The pure router of one host: which output of the membership core and of the lock manager goes where.
//!
//! [`Router::step`] takes one input and pushes what the shell has to do, in order. It reads no clock and knows no socket,
//! thread or file, so the simulator runs this very code. Rules that live here and nowhere else:
//! - the lock manager exists from the moment this host is a member, and talks to the others from then on, **before** there is
//!   a lock cache to serve (a manager that is not heard stalls the rebuild of every other host);
//! - what is for the lock cache is dropped until there is one ([`In::Serving`]): nobody has asked for anything yet. Only that
//!   this host was shut out is kept and told to the cache when it comes;
//! - the lock manager gets a view only when the members changed, and none from before this host's own JOIN (it would take
//!   that for its eviction); the links follow every view;
//! - this host's place is named to the links before the first view, so that what peers send at once is not forgotten.
//!
//! Not here: decisions (they belong to the cores), and performing anything (that is `host`, or the simulator).

use crate::wire::{self, Packet};
use luna_cluster as cluster;
use luna_dlm as dlm;
use luna_format::{Block, BlockNo, Incarnation, Slot};
use std::collections::BTreeMap;

/// Something for the cores.
#[derive(Clone, Debug)]
pub enum In {
    /// For the membership core.
    Cluster(cluster::Input),
    /// For the lock manager.
    Dlm(dlm::Input),
    /// Bytes from a peer.
    Deliver(Slot, Incarnation, Vec<u8>),
    /// Bytes from a host that has no slot yet.
    Outsider(Vec<u8>),
    /// From now on there are a lock cache and a byte-range lock client.
    Serving,
}

/// A request of the membership core to the LUN.
#[derive(Clone, Debug)]
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
    Fence(Slot, Incarnation, bool),
    /// Replay this journal; the last number is the epoch of the FENCED record.
    Replay(Slot, Incarnation, u64),
    /// This incarnation is recovered.
    Recovered(Slot, Incarnation),
    /// The epoch to stamp on blocks.
    Epoch(u64),
}

/// What the shell has to do, in this order; nothing of it waits.
#[derive(Clone, Debug)]
pub enum Out {
    /// Queue a request to the LUN; its answer comes back as an input of the membership core.
    Disk(DiskJob),
    /// Hand to the links.
    Send {
        /// To which slot.
        to: Slot,
        /// What.
        packet: Packet,
    },
    /// The links: this is our place; what was said as an outsider is forgotten.
    SetMe(Slot, Incarnation),
    /// The links: this peer is there, at these addresses, with this key (see `Peers::learn`).
    Learn(Slot, Incarnation, Vec<String>, [u8; 32]),
    /// The links: this incarnation of a peer is over.
    Forget(Slot, Incarnation),
    /// The lock cache: granted.
    LocksGranted(dlm::Name, dlm::Mode, dlm::ValueBlock),
    /// The lock cache: refused.
    LocksDenied(dlm::Name, dlm::Mode),
    /// The lock cache: somebody wants this; politely or not.
    LocksBast(dlm::Name, dlm::Mode, bool),
    /// The byte-range lock client: answered.
    PosixDone(u64, dlm::posix::PosixResult),
    /// The lock cache and the byte-range lock client: every right is void, for good.
    LocksWithdrawn,
    /// The gate: shut (lease lost or shut out) or open.
    Gate {
        /// May this host write?
        open: bool,
    },
    /// For the mount's own thread.
    Notice(Notice),
    /// A peer sent something that is no packet.
    Garbage,
}

/// Both cores of one host and what lies between them.
pub struct Router {
    cluster: cluster::Core,
    dlm: Option<dlm::Core>,
    view: Option<cluster::View>,
    dlm_epoch: u64,
    serving: bool,
    withdrawn: bool,
    spare: (Vec<cluster::Output>, Vec<dlm::Output>),
}

impl Router {
    /// A router around a membership core; the lock manager is made when this host is a member.
    pub fn new(cluster: cluster::Core) -> Self {
        Self { cluster, dlm: None, view: None, dlm_epoch: 0, serving: false, withdrawn: false, spare: (Vec::new(), Vec::new()) }
    }

    /// The membership core.
    pub fn cluster(&self) -> &cluster::Core {
        &self.cluster
    }

    /// The lock manager, once this host is a member.
    pub fn dlm(&self) -> Option<&dlm::Core> {
        self.dlm.as_ref()
    }

    /// The newest view.
    pub fn view(&self) -> Option<&cluster::View> {
        self.view.as_ref()
    }

    /// Takes one input at `now_ms` and pushes what is to be done, in order.
    pub fn step(&mut self, now_ms: u64, i: In, out: &mut Vec<Out>) {
        match i {
            In::Cluster(i) => self.step_cluster(now_ms, i, out),
            In::Dlm(i) => self.step_dlm(now_ms, i, out),
            In::Deliver(from, incarnation, bytes) => match wire::decode_packet(&bytes) {
                Some(Packet::Cluster(msg)) => {
                    self.step_cluster(now_ms, cluster::Input::Message { from: Some((from, incarnation)), msg }, out);
                }
                Some(Packet::Dlm(msg)) => {
                    tracing::trace!(from, ?msg, "from a lock manager");
                    self.step_dlm(now_ms, dlm::Input::Message { from, msg }, out);
                }
                None => out.push(Out::Garbage),
            },
            In::Outsider(bytes) => match wire::decode_packet(&bytes) {
                Some(Packet::Cluster(msg)) => self.step_cluster(now_ms, cluster::Input::Message { from: None, msg }, out),
                _ => out.push(Out::Garbage),
            },
            In::Serving => {
                self.serving = true;
                if self.withdrawn {
                    out.push(Out::LocksWithdrawn);
                }
            }
        }
    }

    fn step_cluster(&mut self, now_ms: u64, i: cluster::Input, out: &mut Vec<Out>) {
        let mut spare = std::mem::take(&mut self.spare.0);
        self.cluster.step(now_ms, i, &mut spare);
        for o in spare.drain(..) {
            self.route_cluster(now_ms, o, out);
        }
        self.spare.0 = spare;
    }

    fn step_dlm(&mut self, now_ms: u64, i: dlm::Input, out: &mut Vec<Out>) {
        let Some(core) = &mut self.dlm else { return };
        let mut spare = std::mem::take(&mut self.spare.1);
        core.step(now_ms, i, &mut spare);
        for o in spare.drain(..) {
            self.route_dlm(o, out);
        }
        self.spare.1 = spare;
    }

    fn route_cluster(&mut self, now_ms: u64, o: cluster::Output, out: &mut Vec<Out>) {
        use cluster::Output as O;
        match o {
            O::Read { token, start, count } => out.push(Out::Disk(DiskJob::Read(token, start, count))),
            O::Write { token, block, bytes, forced } => out.push(Out::Disk(DiskJob::Write(token, block, bytes, forced))),
            O::Send { to, msg } => {
                if self.dlm.is_none() {
                    self.look_up(to, out);
                }
                out.push(Out::Send { to, packet: Packet::Cluster(msg) });
            }
            O::View(v) => self.enter(now_ms, v, out),
            O::Fence { slot, incarnation, at_target } => out.push(Out::Notice(Notice::Fence(slot, incarnation, at_target))),
            O::Replay { slot, incarnation, fenced_epoch } => out.push(Out::Notice(Notice::Replay(slot, incarnation, fenced_epoch))),
            O::Recovered { slot, incarnation } => {
                self.step_dlm(now_ms, dlm::Input::Recovered(dlm::Member { slot, incarnation }), out);
                out.push(Out::Notice(Notice::Recovered(slot, incarnation)));
            }
            O::Joined { slot, incarnation, .. } => self.joined(now_ms, slot, incarnation, out),
            O::Paused => {
                tracing::warn!("the lease ran out: this host waits for the LUN");
                out.push(Out::Gate { open: false });
            }
            O::Resumed => {
                tracing::info!("the lease is good again: going on");
                out.push(Out::Gate { open: true });
            }
            O::Evicted { reason } => {
                out.push(Out::Gate { open: false });
                out.push(Out::Notice(Notice::Evicted(reason)));
            }
            O::Left => out.push(Out::Notice(Notice::Left)),
            O::Refused { reason } => out.push(Out::Notice(Notice::Refused(reason))),
            O::Log(line) => tracing::info!(target: "luna::cluster", "{line}"),
        }
    }

    fn route_dlm(&mut self, o: dlm::Output, out: &mut Vec<Out>) {
        use dlm::Output as O;
        let told = match o {
            // the manager talks to the others as soon as this host is a member, before there is a cache to serve
            O::Send { to, msg } => {
                tracing::trace!(to, ?msg, "to a lock manager");
                return out.push(Out::Send { to, packet: Packet::Dlm(msg) });
            }
            O::Evicted => {
                self.withdrawn = true;
                Out::LocksWithdrawn
            }
            O::Granted { name, mode, value } => Out::LocksGranted(name, mode, value),
            O::Denied { name, mode } => Out::LocksDenied(name, mode),
            O::Bast { name, wanted, polite } => Out::LocksBast(name, wanted, polite),
            O::PosixDone { token, result } => Out::PosixDone(token, result),
        };
        if self.serving {
            out.push(told);
        }
    }

    fn joined(&mut self, now_ms: u64, slot: Slot, incarnation: Incarnation, out: &mut Vec<Out>) {
        out.push(Out::SetMe(slot, incarnation));
        self.dlm = Some(dlm::Core::new(dlm::Member { slot, incarnation }));
        out.push(Out::Notice(Notice::Joined(slot, incarnation)));
        if let Some(v) = self.view.clone() {
            self.enter(now_ms, v, out);
        }
    }

    /// A view: the links follow it at once, the lock manager only when the members changed.
    fn enter(&mut self, now_ms: u64, v: cluster::View, out: &mut Vec<Out>) {
        out.extend(v.members.iter().map(|m| Out::Learn(m.slot, m.incarnation, m.addresses.clone(), m.link_key)));
        for old in self.view.iter().flat_map(|v| &v.members) {
            if !v.members.iter().any(|m| (m.slot, m.incarnation) == (old.slot, old.incarnation)) {
                out.push(Out::Forget(old.slot, old.incarnation));
            }
        }
        out.push(Out::Notice(Notice::Epoch(v.epoch)));
        // views from before this host's own JOIN are none of its lock manager's business (it would take them for its eviction)
        let mine = self.dlm_epoch > 0 || v.members.iter().any(|m| Some((m.slot, m.incarnation)) == self.cluster.me());
        let news = self.dlm.is_some() && mine && self.dlm_epoch != v.view_epoch;
        let told = news.then(|| dlm_view(&v));
        self.view = Some(v);
        if let Some(d) = told {
            self.dlm_epoch = d.epoch;
            tracing::debug!(view = ?d, "lock manager view");
            self.step_dlm(now_ms, dlm::Input::View(d), out);
        }
    }

    /// A host that is not a member gets no views: it finds whom it asks to be let in through that member's beat.
    fn look_up(&self, slot: Slot, out: &mut Vec<Out>) {
        let v = self.cluster.view();
        out.extend(v.members.iter().filter(|m| m.slot == slot).map(|m| Out::Learn(m.slot, m.incarnation, m.addresses.clone(), m.link_key)));
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
