//! All links of one host: who the peers are, which connection each has, what is owed to them.
//!
//! Any host may dial any other; a second connection to the same peer replaces the first for sending and both are read, which
//! is harmless because the links number what they carry. A peer without a connection for [`MAIL_AFTER`] is written to, and
//! read from, through the mailbox on the LUN (see `mail`). Delivery is in order per peer: messages are handed on under the
//! table's mutex, so [`Events`] must only enqueue. Not here: what messages mean, who is a member.

use crate::conn::Conn;
use crate::link::{Arrival, Link};
use crate::wire::{self, Frame, Hello, WIRE_VERSION};
use luna_format::{Incarnation, Slot, VolumeId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A peer without TCP for this long gets its messages through the LUN.
pub const MAIL_AFTER: Duration = Duration::from_millis(300);
const HANDSHAKE: Duration = Duration::from_secs(3);
const DIAL: Duration = Duration::from_secs(2);
const REDIAL: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(1);
/// A message that was not acknowledged for this long on a live connection is sent again.
const RESEND: Duration = Duration::from_secs(2);
/// Slot of a host that has none.
const OUTSIDER: Slot = Slot::MAX;
/// Connections being shaken hands with at once.
const MAX_HANDSHAKES: u64 = 256;

/// What a link brings. Implementations only enqueue.
pub trait Events: Send + Sync {
    /// A message, in order.
    fn deliver(&self, from: Slot, incarnation: Incarnation, payload: Vec<u8>);
    /// A connection came up, or the last one to this peer went down.
    fn link(&self, slot: Slot, incarnation: Incarnation, up: bool);
    /// Somebody we do not know as a member spoke to us: there may be news on the LUN.
    fn stranger(&self, slot: Slot);
    /// A message of a host that has no slot yet.
    fn outsider(&self, payload: Vec<u8>);
    /// Called after a batch of the above, without any lock held.
    fn kick(&self);
}

/// Mail for the LUN: what a peer without a connection has not acknowledged.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// To whom.
    pub slot: Slot,
    /// In which incarnation.
    pub incarnation: Incarnation,
    /// Last message received from it.
    pub ack: u64,
    /// Numbered messages, oldest first.
    pub messages: Vec<(u64, Arc<[u8]>)>,
}

struct Peer {
    incarnation: Incarnation,
    addrs: Vec<String>,
    link: Link,
    conns: Vec<Arc<Conn>>,
    down_since: Instant,
    heard: Instant,
    sent: Instant,
    progress: (Option<u64>, Instant),
    dial_at: Instant,
    dialing: bool,
}

/// One link as status shows it.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct LinkLine {
    /// The peer's slot.
    pub slot: Slot,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// TCP connections to it.
    pub connections: usize,
    /// Messages sent.
    pub sent: u64,
    /// Of them, not acknowledged.
    pub unacked: usize,
    /// Messages received.
    pub received: u64,
    /// Messages that arrived twice.
    pub duplicates: u64,
    /// Messages that arrived too early.
    pub gaps: u64,
}

/// Counters of the links.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages sent.
    pub sent: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// Connections refused at the handshake.
    pub refused: AtomicU64,
    /// Messages that went through the LUN.
    pub mailed: AtomicU64,
}

/// The table.
pub struct Peers {
    volume: VolumeId,
    me: Mutex<(Slot, Incarnation)>,
    table: Mutex<BTreeMap<Slot, Peer>>,
    events: Arc<dyn Events>,
    stopping: AtomicBool,
    handshakes: AtomicU64,
    /// What was carried.
    pub counters: Counters,
}

impl Peers {
    /// An empty table for a host that is not a member yet.
    pub fn new(volume: VolumeId, events: Arc<dyn Events>) -> Arc<Self> {
        Arc::new(Self {
            volume,
            me: Mutex::new((OUTSIDER, 0)),
            table: Mutex::default(),
            events,
            stopping: AtomicBool::new(false),
            handshakes: AtomicU64::new(0),
            counters: Counters::default(),
        })
    }

    /// This host's place, once it has one. What it said before as an outsider is forgotten, numbers start anew. In this order:
    /// a peer that gets in as soon as the place is known must not be forgotten again, its messages would be lost.
    pub fn set_me(&self, slot: Slot, incarnation: Incarnation) {
        let mut me = self.me.lock();
        self.retain(&|_, _| false);
        tracing::debug!(slot, incarnation, "this host has its place");
        *me = (slot, incarnation);
    }

    /// Each link in numbers, for status.
    pub fn links(&self) -> Vec<LinkLine> {
        let line = |(slot, p): (&Slot, &Peer)| LinkLine {
            slot: *slot,
            incarnation: p.incarnation,
            connections: p.conns.len(),
            sent: p.link.sent(),
            unacked: p.link.unacked().count(),
            received: p.link.received(),
            duplicates: p.link.duplicates,
            gaps: p.link.gaps,
        };
        self.table.lock().iter().map(line).collect()
    }

    /// This incarnation of a peer is over.
    pub fn forget(&self, slot: Slot, incarnation: Incarnation) {
        self.retain(&|s, i| s != slot || i > incarnation);
    }

    /// Accepts peers on `listener` until [`Self::stop`].
    pub fn listen(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let me = Arc::downgrade(self);
        std::thread::Builder::new().name("luna-accept".into()).spawn(move || accept_loop(&me, &listener))?;
        Ok(())
    }

    /// A peer exists, in this incarnation, at these addresses. An older incarnation's link is dropped.
    pub fn learn(self: &Arc<Self>, slot: Slot, incarnation: Incarnation, addrs: &[String]) {
        if self.me.lock().0 == slot {
            return;
        }
        let mut table = self.table.lock();
        let peer = upsert(&mut table, slot, incarnation);
        if peer.incarnation == incarnation && !addrs.is_empty() {
            peer.addrs = addrs.to_vec();
        }
    }

    /// Peers not in `keep` are dropped.
    fn retain(&self, keep: &dyn Fn(Slot, Incarnation) -> bool) {
        let mut table = self.table.lock();
        table.retain(|slot, p| {
            let stays = keep(*slot, p.incarnation);
            if !stays {
                p.conns.iter().for_each(|c| c.close());
            }
            stays
        });
    }

    /// Sends a message, now or when there is a way.
    pub fn send(&self, to: Slot, payload: Vec<u8>) {
        let mut table = self.table.lock();
        let Some(p) = table.get_mut(&to) else {
            tracing::warn!(slot = to, "a message to a host that is not known was dropped");
            return;
        };
        let n = p.link.send(payload);
        tracing::trace!(slot = to, seq = n.seq, conns = p.conns.len(), "send");
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        if let Some(c) = p.conns.last() {
            p.sent = Instant::now();
            let ack = p.link.ack();
            c.send(&Frame::Data { seq: n.seq, ack, payload: n.payload.to_vec() });
        }
    }

    /// Whether there is a connection to `slot`.
    pub fn is_up(&self, slot: Slot) -> bool {
        self.table.lock().get(&slot).is_some_and(|p| !p.conns.is_empty())
    }

    /// The peers that need the mailbox: slots without a connection for a while.
    pub fn silent(&self) -> Vec<Slot> {
        let table = self.table.lock();
        table.iter().filter(|(_, p)| p.conns.is_empty() && p.down_since.elapsed() > MAIL_AFTER).map(|(s, _)| *s).collect()
    }

    /// What to write into this host's mailbox.
    pub fn outgoing(&self) -> Vec<Outgoing> {
        let mut table = self.table.lock();
        let silent = table.iter_mut().filter(|(_, p)| p.conns.is_empty() && p.down_since.elapsed() > MAIL_AFTER);
        silent
            .map(|(slot, p)| Outgoing {
                slot: *slot,
                incarnation: p.incarnation,
                ack: p.link.ack(),
                messages: p.link.unacked().map(|n| (n.seq, Arc::clone(&n.payload))).collect(),
            })
            .collect()
    }

    /// Mail of a peer was read from the LUN.
    pub fn incoming(&self, from: Slot, incarnation: Incarnation, ack: u64, messages: Vec<(u64, Vec<u8>)>) {
        let mut table = self.table.lock();
        let Some(p) = table.get_mut(&from).filter(|p| p.incarnation == incarnation) else { return };
        p.link.acked(ack);
        for (seq, payload) in messages {
            if p.link.arrived(seq) == Arrival::Deliver {
                self.counters.mailed.fetch_add(1, Ordering::Relaxed);
                self.events.deliver(from, incarnation, payload);
            }
        }
        drop(table);
        self.events.kick();
    }

    /// Ends every connection and the listener.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.retain(&|_, _| false);
    }

    /// Periodic work: dials, acknowledges, keeps alive, sends again.
    pub fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        let mut dial = Vec::new();
        for (slot, p) in self.table.lock().iter_mut() {
            match p.conns.last().cloned() {
                Some(c) => upkeep(p, &c, now),
                None if !p.dialing && p.dial_at <= now && !p.addrs.is_empty() => {
                    p.dialing = true;
                    dial.push((*slot, p.incarnation, p.addrs.clone()));
                }
                None => {}
            }
        }
        for (slot, incarnation, addrs) in dial {
            let me = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("luna-dial".into()).spawn(move || me.dial(slot, incarnation, &addrs));
            if spawned.is_err() {
                self.dialed(slot);
            }
        }
    }

    fn dialed(&self, slot: Slot) {
        if let Some(p) = self.table.lock().get_mut(&slot) {
            p.dialing = false;
            p.dial_at = Instant::now() + REDIAL;
        }
    }

    fn dial(self: &Arc<Self>, slot: Slot, incarnation: Incarnation, addrs: &[String]) {
        let connected = addrs.iter().find_map(|a| connect(a).ok());
        if let Some(stream) = connected
            && let Err(e) = self.shake(stream, Some((slot, incarnation)))
        {
            tracing::debug!(slot, error = %e, "dialing a peer");
        }
        self.dialed(slot);
    }

    fn hello(&self, to_slot: Slot, received: u64) -> Frame {
        let (slot, incarnation) = *self.me.lock();
        Frame::Hello(Hello { version: WIRE_VERSION, volume: self.volume, slot, incarnation, to_slot, received })
    }

    /// Both sides say hello; then the connection belongs to the peer and a thread reads it.
    fn shake(self: &Arc<Self>, stream: TcpStream, expect: Option<(Slot, Incarnation)>) -> io::Result<()> {
        stream.set_read_timeout(Some(HANDSHAKE))?;
        let conn = Conn::new(stream)?;
        if let Some((slot, incarnation)) = expect {
            conn.send(&self.hello(slot, self.received_of(slot, incarnation)));
        }
        let theirs = match wire::read_frame(&mut conn.stream())? {
            Frame::Hello(h) => h,
            _ => return Err(self.refuse("the first frame is no hello")),
        };
        let me = self.me.lock().0;
        if theirs.version != WIRE_VERSION || theirs.volume != self.volume || theirs.to_slot != me {
            return Err(self.refuse("another wire version, volume or slot"));
        }
        if expect.is_some_and(|e| e != (theirs.slot, theirs.incarnation)) {
            return Err(self.refuse("another host answered"));
        }
        if expect.is_none() {
            conn.send(&self.hello(theirs.slot, self.received_of(theirs.slot, theirs.incarnation)));
        }
        conn.stream().set_read_timeout(None)?;
        conn.start_writer()?;
        let me = Arc::clone(self);
        if theirs.slot == OUTSIDER {
            std::thread::Builder::new().name("luna-outsider".into()).spawn(move || me.hear(&conn))?;
            return Ok(());
        }
        self.attach(&theirs, &conn);
        std::thread::Builder::new().name("luna-link-rx".into()).spawn(move || me.serve(&theirs, &conn))?;
        Ok(())
    }

    fn refuse(&self, why: &str) -> io::Error {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
    }

    /// What is known of an older incarnation says nothing about this one: its first messages would count as received and be
    /// lost (found by the simulator, seed 9063 with 8 hosts).
    fn received_of(&self, slot: Slot, incarnation: Incarnation) -> u64 {
        self.table.lock().get(&slot).filter(|p| p.incarnation == incarnation).map_or(0, |p| p.link.received())
    }

    fn attach(self: &Arc<Self>, theirs: &Hello, conn: &Arc<Conn>) {
        tracing::debug!(slot = theirs.slot, received = theirs.received, "link up");
        let mut table = self.table.lock();
        let known = table.contains_key(&theirs.slot);
        let p = upsert(&mut table, theirs.slot, theirs.incarnation);
        if p.incarnation != theirs.incarnation {
            return conn.close();
        }
        p.link.acked(theirs.received);
        let ack = p.link.ack();
        for n in p.link.unacked() {
            conn.send(&Frame::Data { seq: n.seq, ack, payload: n.payload.to_vec() });
        }
        p.heard = Instant::now();
        p.sent = p.heard;
        p.conns.push(Arc::clone(conn));
        if p.conns.len() == 1 {
            self.events.link(theirs.slot, theirs.incarnation, true);
        }
        if !known {
            self.events.stranger(theirs.slot);
        }
        drop(table);
        self.events.kick();
    }

    /// Reads a host that is not a member yet.
    fn hear(self: &Arc<Self>, conn: &Arc<Conn>) {
        let _ = conn.stream().set_read_timeout(Some(HANDSHAKE * 4));
        let _ = conn.read_loop(|f| {
            if let Frame::Data { payload, .. } = f {
                self.events.outsider(payload);
                self.events.kick();
            }
        });
        conn.close();
    }

    fn serve(self: &Arc<Self>, theirs: &Hello, conn: &Arc<Conn>) {
        let ended = conn.read_loop(|f| self.frame(theirs, conn, f));
        conn.close();
        tracing::debug!(slot = theirs.slot, ended = ?ended.err(), "a peer's connection ended");
        let mut table = self.table.lock();
        if let Some(p) = table.get_mut(&theirs.slot).filter(|p| p.incarnation == theirs.incarnation) {
            p.conns.retain(|c| !Arc::ptr_eq(c, conn));
            if p.conns.is_empty() {
                p.down_since = Instant::now();
                p.dial_at = p.down_since;
                self.events.link(theirs.slot, theirs.incarnation, false);
            }
        }
        drop(table);
        self.events.kick();
    }

    fn frame(&self, theirs: &Hello, conn: &Arc<Conn>, f: Frame) {
        let mut table = self.table.lock();
        let Some(p) = table.get_mut(&theirs.slot).filter(|p| p.incarnation == theirs.incarnation) else { return conn.close() };
        p.heard = Instant::now();
        match f {
            Frame::Hello(_) => conn.close(),
            Frame::Ack(ack) => p.link.acked(ack),
            Frame::Data { seq, ack, payload } => {
                p.link.acked(ack);
                let arrival = p.link.arrived(seq);
                tracing::trace!(slot = theirs.slot, seq, ?arrival, "arrived");
                if arrival == Arrival::Deliver {
                    self.counters.received.fetch_add(1, Ordering::Relaxed);
                    self.events.deliver(theirs.slot, theirs.incarnation, payload);
                }
                if p.link.ack_due() >= 64 {
                    let ack = p.link.ack();
                    conn.send(&Frame::Ack(ack));
                }
            }
        }
        drop(table);
        self.events.kick();
    }
}

fn upsert(table: &mut BTreeMap<Slot, Peer>, slot: Slot, incarnation: Incarnation) -> &mut Peer {
    if table.get(&slot).is_some_and(|p| p.incarnation < incarnation)
        && let Some(old) = table.remove(&slot)
    {
        old.conns.iter().for_each(|c| c.close());
    }
    table.entry(slot).or_insert_with(|| {
        let now = Instant::now();
        Peer {
            incarnation,
            addrs: Vec::new(),
            link: Link::default(),
            conns: Vec::new(),
            down_since: now,
            heard: now,
            sent: now,
            progress: (None, now),
            dial_at: now,
            dialing: false,
        }
    })
}

/// Acknowledges, keeps alive and sends again on a live connection.
fn upkeep(p: &mut Peer, c: &Arc<Conn>, now: Instant) {
    if p.link.ack_due() > 0 || now.duration_since(p.sent) > KEEPALIVE {
        let ack = p.link.ack();
        c.send(&Frame::Ack(ack));
        p.sent = now;
    }
    let oldest = p.link.oldest_unacked();
    if oldest != p.progress.0 {
        p.progress = (oldest, now);
    } else if oldest.is_some() && now.duration_since(p.progress.1) > RESEND {
        p.progress.1 = now;
        let ack = p.link.ack();
        for n in p.link.unacked() {
            c.send(&Frame::Data { seq: n.seq, ack, payload: n.payload.to_vec() });
        }
    }
    if now.duration_since(p.heard) > KEEPALIVE * 4 {
        c.close();
    }
}

fn connect(addr: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for a in addr.to_socket_addrs()?.take(4) {
        match TcpStream::connect_timeout(&a as &SocketAddr, DIAL) {
            Ok(s) => return Ok(s),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn accept_loop(me: &Weak<Peers>, listener: &TcpListener) {
    let _ = listener.set_nonblocking(true);
    loop {
        let Some(peers) = me.upgrade().filter(|p| !p.stopping.load(Ordering::Acquire)) else { return };
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = stream.set_nonblocking(false);
                if peers.handshakes.fetch_add(1, Ordering::AcqRel) >= MAX_HANDSHAKES {
                    peers.handshakes.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let theirs = Arc::clone(&peers);
                let spawned = std::thread::Builder::new().name("luna-hello".into()).spawn(move || {
                    if let Err(e) = theirs.shake(stream, None) {
                        tracing::debug!(error = %e, "a connection was refused");
                    }
                    theirs.handshakes.fetch_sub(1, Ordering::AcqRel);
                });
                if spawned.is_err() {
                    peers.handshakes.fetch_sub(1, Ordering::AcqRel);
                }
            }
            Err(_) => {
                drop(peers);
                wait_readable(listener);
            }
        }
    }
}

/// Sleeps until somebody knocks, at most 200 ms.
fn wait_readable(listener: &TcpListener) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 200_000_000 }));
}
