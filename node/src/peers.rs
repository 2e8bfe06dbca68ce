//! All links of one host: who the peers are, which connection each has, what is owed to them.
//!
//! Any host may dial any other; a second connection to the same peer replaces the first for sending and both are read, which
//! is harmless because the links number what they carry. A peer without a connection for [`MAIL_AFTER`] is written to, and
//! read from, through the mailbox on the LUN (see `mail`). Delivery is in order per peer: messages are handed on under the
//! table's mutex, so [`Events`] must only enqueue.
//!
//! Invariant: what is delivered as from a slot and incarnation came over a connection whose key is the one in that
//! incarnation's beat (`noise` proves the key, [`Peers::learn`] names it), or out of that slot's mailbox. A caller whose beat
//! was not read yet waits for it. Not here: what messages mean, who is a member.

use crate::conn::Conn;
use crate::door::{self, HANDSHAKE, Timed};
use crate::link::{Arrival, Link};
use crate::noise::{self, Keys, LinkKey, Opener, Shaken};
use crate::refusal::{Reason, Refusals, Refused};
use crate::wire::{self, Frame, FrameRef, Hello, MAX_PAYLOAD, WIRE_VERSION};
use luna_cluster::LinkNow;
use luna_format::{Incarnation, Slot};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A peer without TCP for this long gets its messages through the LUN.
pub const MAIL_AFTER: Duration = Duration::from_millis(300);
const REDIAL: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(1);
/// A message that was not acknowledged for this long on a live connection is sent again.
const RESEND: Duration = Duration::from_secs(2);
/// Slot of a host that has none.
const OUTSIDER: Slot = Slot::MAX;
/// How long a host that has no slot yet may stay silent.
const OUTSIDER_SILENCE: Duration = Duration::from_secs(12);

/// What a link brings. Implementations only enqueue.
pub trait Events: Send + Sync {
    /// A message, in order.
    fn deliver(&self, from: Slot, incarnation: Incarnation, payload: Vec<u8>);
    /// A connection came up, or the last one to this peer went down.
    fn link(&self, slot: Slot, incarnation: Incarnation, now: LinkNow);
    /// Somebody called whose beat is not known, and waits: there may be news on the LUN.
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
    /// From its beat; nothing is believed before it is known.
    key: Option<LinkKey>,
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
    /// Connections refused at the handshake or cut for what they brought.
    pub refused: Refusals,
    /// Messages that went through the LUN.
    pub mailed: AtomicU64,
}

type Place = (Slot, Incarnation);
type Table = BTreeMap<Slot, Peer>;

/// The table.
pub struct Peers {
    keys: Keys,
    me: Mutex<Place>,
    table: Mutex<Table>,
    /// A key became known, or nothing will any more.
    learnt: Condvar,
    events: Arc<dyn Events>,
    stopping: AtomicBool,
    pub(crate) seats: door::Seats,
    /// What was carried.
    pub counters: Counters,
}

impl Peers {
    /// An empty table for a host that is not a member yet.
    pub fn new(keys: Keys, events: Arc<dyn Events>) -> Arc<Self> {
        Arc::new(Self {
            keys,
            me: Mutex::new((OUTSIDER, 0)),
            table: Mutex::default(),
            learnt: Condvar::new(),
            events,
            stopping: AtomicBool::new(false),
            seats: door::Seats::default(),
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
        std::thread::Builder::new().name("luna-accept".into()).spawn(move || door::accept_loop(&me, &listener))?;
        Ok(())
    }

    /// A peer exists, in this incarnation, at these addresses, with this key; no addresses and a key of zeroes say that its beat
    /// was not read yet. An older incarnation's link is dropped.
    pub fn learn(&self, slot: Slot, incarnation: Incarnation, addrs: &[String], key: &LinkKey) {
        if self.me.lock().0 == slot {
            return;
        }
        let mut table = self.table.lock();
        let peer = upsert(&mut table, slot, incarnation);
        if peer.incarnation != incarnation {
            return;
        }
        if !addrs.is_empty() {
            peer.addrs = addrs.to_vec();
        }
        if *key != [0; 32] && peer.key != Some(*key) {
            // the LUN is right: whoever came in under another key is not this host
            peer.conns.iter().for_each(|c| c.close());
            peer.key = Some(*key);
            self.learnt.notify_all();
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
        if payload.len() > MAX_PAYLOAD {
            // no peer would ever take it, and every connection would end over it
            tracing::error!(slot = to, bytes = payload.len(), "a message that is too long was dropped");
            return;
        }
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
            c.send(&FrameRef::Data { seq: n.seq, ack, payload: &n.payload });
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
        self.learnt.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Periodic work: dials, acknowledges, keeps alive, sends again.
    pub fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        let mut dial = Vec::new();
        for (slot, p) in self.table.lock().iter_mut() {
            match p.conns.last().cloned() {
                Some(c) => upkeep(p, &c, now),
                None if !p.dialing && p.dial_at <= now && !p.addrs.is_empty() => {
                    if let Some(key) = p.key {
                        p.dialing = true;
                        dial.push((*slot, p.incarnation, key, p.addrs.clone()));
                    }
                }
                None => {}
            }
        }
        for (slot, incarnation, key, addrs) in dial {
            let me = Arc::clone(self);
            let work = move || me.dial(slot, incarnation, &key, &addrs);
            let spawned = std::thread::Builder::new().name("luna-dial".into()).spawn(work);
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

    fn dial(self: &Arc<Self>, slot: Slot, incarnation: Incarnation, key: &LinkKey, addrs: &[String]) {
        match door::knock(addrs) {
            Ok(stream) => {
                if let Err(r) = self.call(stream, slot, incarnation, key) {
                    self.counters.refused.note(&r, &format_args!("slot {slot} at {}", addrs.join(" ")));
                }
            }
            Err(e) => tracing::debug!(slot, error = %e, "dialing a peer"),
        }
        self.dialed(slot);
    }

    fn hello(&self, to_slot: Slot, received: u64) -> Hello {
        let (slot, incarnation) = *self.me.lock();
        Hello { version: WIRE_VERSION, volume: self.keys.volume(), slot, incarnation, to_slot, received }
    }

    /// Shakes hands with a peer that was dialed.
    fn call(self: &Arc<Self>, stream: TcpStream, slot: Slot, incarnation: Incarnation, key: &LinkKey) -> Result<(), Refused> {
        let mine = self.hello(slot, self.received_of(slot, incarnation));
        let until = Instant::now() + HANDSHAKE;
        let mut timed = Timed::new(&stream, until);
        let meant = |theirs: &Hello, k: &LinkKey| {
            let found = (theirs.slot, theirs.incarnation);
            if found != (slot, incarnation) || theirs.to_slot != mine.slot {
                // a host that restarted at the same address, most likely
                return Err(Refused::new(Reason::Place, format!("{found:?} answered, {:?} was meant", (slot, incarnation))));
            }
            let wrong = || Refused::new(Reason::Key, format!("who answers says it is {found:?}, but its key is not in that beat"));
            if k == key { Ok(()) } else { Err(wrong()) }
        };
        let mut shaken = noise::dial(&self.keys, &mut timed, &mine, meant)?;
        // the peer's first frame says that it lets this host in (its beat was read there), and what it has by now
        match wire::read_frame(&mut shaken.open.over(timed))? {
            Frame::Ack(received) => shaken.theirs.received = received,
            _ => return Err(Refused::new(Reason::Malformed, "the first frame is no acknowledgement")),
        }
        self.establish(stream, shaken, (mine.slot, mine.incarnation), Instant::now())
    }

    /// Shakes hands with a caller.
    pub(crate) fn greet(self: &Arc<Self>, stream: TcpStream) -> Result<(), Refused> {
        let until = Instant::now() + HANDSHAKE;
        let mut timed = Timed::new(&stream, until);
        let heard = noise::hear(&self.keys, &mut timed)?;
        let (slot, incarnation, wanted) = (heard.claim.slot, heard.claim.incarnation, heard.claim.to_slot);
        let me = *self.me.lock();
        if wanted != me.0 || slot == me.0 || me.0 == OUTSIDER {
            return Err(Refused::new(Reason::Place, format!("slot {slot} wants slot {wanted}; this host has {}", me.0)));
        }
        let shaken = heard.answer(&mut timed, &self.hello(slot, self.received_of(slot, incarnation)))?;
        if slot == OUTSIDER {
            return self.hear(stream, shaken);
        }
        self.establish(stream, shaken, me, until)
    }

    /// A connection whose handshake is done, in which this host said that it is `me`: it belongs to the peer, and a thread reads it.
    fn establish(self: &Arc<Self>, stream: TcpStream, shaken: Shaken, me: Place, until: Instant) -> Result<(), Refused> {
        let Shaken { theirs, key, seal, mut open } = shaken;
        stream.set_read_timeout(None)?;
        let conn = Conn::new(stream, seal);
        conn.start_writer()?;
        self.attach(me, &theirs, &key, &conn, until).inspect_err(|_| conn.close())?;
        let (me, reader) = (Arc::clone(self), Arc::clone(&conn));
        let (slot, incarnation) = (theirs.slot, theirs.incarnation);
        let read = move || me.serve(&theirs, &reader, &mut open);
        if let Err(e) = std::thread::Builder::new().name("luna-link-rx".into()).spawn(read) {
            self.detach(slot, incarnation, &conn);
            return Err(e.into());
        }
        Ok(())
    }

    /// What is known of an older incarnation says nothing about this one: its first messages would count as received and be
    /// lost (found by the simulator, seed 9063 with 8 hosts).
    fn received_of(&self, slot: Slot, incarnation: Incarnation) -> u64 {
        self.table.lock().get(&slot).filter(|p| p.incarnation == incarnation).map_or(0, |p| p.link.received())
    }

    /// Waits until `until` for the table to say whether this key is the peer's.
    fn admit(&self, table: &mut MutexGuard<'_, Table>, theirs: &Hello, key: &LinkKey, until: Instant) -> Result<(), Refused> {
        let mut asked = false;
        loop {
            match verdict(table.get(&theirs.slot), theirs, key) {
                Some(v) => return v,
                None if self.is_stopping() => return Err(Refused::new(Reason::Closed, "this host is leaving")),
                None if Instant::now() >= until => {
                    let text = format!("no beat of slot {} incarnation {} was seen", theirs.slot, theirs.incarnation);
                    return Err(Refused::new(Reason::Unknown, text));
                }
                None if asked => drop(self.learnt.wait_until(table, until)),
                None => {
                    asked = true;
                    self.events.stranger(theirs.slot);
                    MutexGuard::unlocked(table, || self.events.kick());
                }
            }
        }
    }

    fn attach(&self, said: Place, theirs: &Hello, key: &LinkKey, conn: &Arc<Conn>, until: Instant) -> Result<(), Refused> {
        let me = self.me.lock();
        if *me != said {
            // the peer would take what comes over this connection for an outsider's
            return Err(Refused::new(Reason::Place, "this host got its place in the middle of the handshake"));
        }
        let mut table = self.table.lock();
        drop(me);
        self.admit(&mut table, theirs, key, until)?;
        let Some(p) = table.get_mut(&theirs.slot) else { return Ok(()) };
        tracing::debug!(slot = theirs.slot, received = theirs.received, "link up");
        p.link.acked(theirs.received);
        let ack = p.link.ack();
        conn.send(&FrameRef::Ack(ack));
        for n in p.link.unacked() {
            conn.send(&FrameRef::Data { seq: n.seq, ack, payload: &n.payload });
        }
        p.heard = Instant::now();
        p.sent = p.heard;
        p.conns.push(Arc::clone(conn));
        if p.conns.len() == 1 {
            self.events.link(theirs.slot, theirs.incarnation, LinkNow::Up);
        }
        drop(table);
        self.events.kick();
        Ok(())
    }

    /// Reads a host that is not a member yet, on the thread of its handshake (of which there are not many). Who it is nobody
    /// knows; all it can say is that it wants to come in, and a member it becomes through the LUN.
    fn hear(&self, stream: TcpStream, shaken: Shaken) -> Result<(), Refused> {
        let Shaken { seal, mut open, .. } = shaken;
        stream.set_read_timeout(Some(OUTSIDER_SILENCE))?;
        let conn = Conn::new(stream, seal);
        conn.send(&FrameRef::Ack(0));
        let ended = conn.read_loop(&mut open, |f| {
            if self.is_stopping() {
                conn.close();
            } else if let Frame::Data { payload, .. } = f {
                self.events.outsider(payload);
                self.events.kick();
            }
        });
        conn.close();
        ended.or_else(told)
    }

    fn serve(&self, theirs: &Hello, conn: &Arc<Conn>, open: &mut Opener) {
        let ended = conn.read_loop(open, |f| self.frame(theirs, conn, f));
        if ended.as_ref().is_err_and(|e| !ended_by_peer(e)) {
            conn.give_up();
        }
        tracing::debug!(slot = theirs.slot, ended = ?ended.as_ref().err(), "a peer's connection ended");
        if let Err(r) = ended.or_else(told) {
            self.counters.refused.note(&r, &format_args!("slot {} incarnation {}", theirs.slot, theirs.incarnation));
        }
        self.detach(theirs.slot, theirs.incarnation, conn);
    }

    /// A connection of a peer is over.
    fn detach(&self, slot: Slot, incarnation: Incarnation, conn: &Arc<Conn>) {
        conn.close();
        let mut table = self.table.lock();
        if let Some(p) = table.get_mut(&slot).filter(|p| p.incarnation == incarnation) {
            p.conns.retain(|c| !Arc::ptr_eq(c, conn));
            if p.conns.is_empty() {
                p.down_since = Instant::now();
                p.dial_at = p.down_since;
                self.events.link(slot, incarnation, if conn.was_reset() { LinkNow::Reset } else { LinkNow::GivenUp });
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
                    conn.send(&FrameRef::Ack(ack));
                }
            }
        }
        drop(table);
        self.events.kick();
    }
}

/// Whether the table knows who says `theirs` with this key: yes, no, or not yet.
fn verdict(p: Option<&Peer>, theirs: &Hello, key: &LinkKey) -> Option<Result<(), Refused>> {
    let p = p?;
    let who = format_args!("slot {} incarnation {}", theirs.slot, theirs.incarnation);
    if p.incarnation > theirs.incarnation {
        return Some(Err(Refused::new(Reason::Stale, format!("{who} is over, {} is there", p.incarnation))));
    }
    let known = p.key.filter(|_| p.incarnation == theirs.incarnation)?;
    let wrong = || Refused::new(Reason::Key, format!("somebody with another key says it is {who}"));
    Some(if known == *key { Ok(()) } else { Err(wrong()) })
}

/// How a connection ended, if it was for what came over it.
fn told(e: io::Error) -> Result<(), Refused> {
    let r = Refused::from(e);
    if matches!(r.reason, Reason::Closed | Reason::Timeout) { Ok(()) } else { Err(r) }
}

fn upsert(table: &mut Table, slot: Slot, incarnation: Incarnation) -> &mut Peer {
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
            key: None,
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

/// Whether the other end ended a connection, by its kernel at least; a time that ran out or bytes that make no sense are this end's decision.
fn ended_by_peer(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// Acknowledges, keeps alive and sends again on a live connection.
fn upkeep(p: &mut Peer, c: &Arc<Conn>, now: Instant) {
    if p.link.ack_due() > 0 || now.duration_since(p.sent) > KEEPALIVE {
        let ack = p.link.ack();
        c.send(&FrameRef::Ack(ack));
        p.sent = now;
    }
    let oldest = p.link.oldest_unacked();
    if oldest != p.progress.0 {
        p.progress = (oldest, now);
    } else if oldest.is_some() && now.duration_since(p.progress.1) > RESEND {
        p.progress.1 = now;
        let ack = p.link.ack();
        for n in p.link.unacked() {
            c.send(&FrameRef::Data { seq: n.seq, ack, payload: &n.payload });
        }
    }
    if now.duration_since(p.heard) > KEEPALIVE * 4 {
        // stopped perhaps, and not dead: that is for its beats to say
        c.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind::{ConnectionReset, InvalidData, TimedOut, UnexpectedEof};

    /// Who hangs up has died; who says nothing may be stopped. (The whole way: `tests/tests/faults.rs`, a stop shorter than the lease.)
    #[test]
    fn silence_is_not_a_reset() {
        assert_eq!([ConnectionReset, UnexpectedEof].map(|k| ended_by_peer(&k.into())), [true; 2]);
        assert_eq!([TimedOut, InvalidData].map(|k| ended_by_peer(&k.into())), [false; 2]);
    }
}
