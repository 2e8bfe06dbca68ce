//! The network: connections between processes, what travels on them, and mail through the LUN where there is none.
//!
//! The rules of `node::peers` (dial, hello, attach, acknowledge, send again, close when silent, mail after a while) are repeated
//! here around the real [`Link`], because `peers` owns sockets and threads. A connection delivers in order with a delay;
//! while its pair is cut, what is sent on it is lost; it may be reset, with everything in flight; now and then a frame comes
//! twice. Several connections may exist between two hosts at once (both dialed). Everybody is who it says it is: keys, and the wait
//! of a caller whose beat was not read yet, are left out.

use crate::Broken;
use crate::host::Process;
use crate::world::{Event, Fallible, World};
use luna_cluster::{Input, LinkNow};
use luna_node::link::{Arrival, Link};
use luna_node::router::In;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const MAIL_AFTER: u64 = 300;
const REDIAL: u64 = 500;
const KEEPALIVE: u64 = 1000;
const RESEND: u64 = 2000;
/// Slot of a host that has none.
const OUTSIDER: u16 = u16::MAX;

/// What a connection carries.
#[derive(Clone)]
pub(crate) enum Packet {
    Data { seq: u64, ack: u64, payload: Arc<[u8]> },
    Ack(u64),
}

/// What a host finds in another's mailbox.
pub(crate) struct Mail {
    from: (u16, u64),
    ack: u64,
    messages: Vec<(u64, Arc<[u8]>)>,
}

/// One peer as one process sees it.
#[derive(Default)]
pub(crate) struct Peer {
    incarnation: u64,
    target: Option<usize>,
    link: Link,
    conns: Vec<u64>,
    down_since: u64,
    heard: u64,
    sent: u64,
    progress: (Option<u64>, u64),
    dial_at: u64,
    dialing: bool,
}

struct Conn {
    ends: [(usize, u64); 2],
    /// Slot and incarnation of both ends, as they said at the beginning.
    names: [(u16, u64); 2],
    busy_until: [u64; 2],
}

/// All connections, and which pairs are cut.
#[derive(Default)]
pub(crate) struct Net {
    conns: BTreeMap<u64, Conn>,
    next: u64,
    cut: BTreeSet<(usize, usize)>,
}

impl Net {
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    /// One pair, or all.
    pub(crate) fn heal(&mut self, pair: Option<(usize, usize)>) {
        match pair {
            Some((a, b)) => drop(self.cut.remove(&(a.min(b), a.max(b)))),
            None => self.cut.clear(),
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Any connection between two hosts.
    pub(crate) fn between(&self, a: usize, b: usize) -> Vec<u64> {
        let is = |c: &Conn| [c.ends[0].0, c.ends[1].0] == [a, b] || [c.ends[0].0, c.ends[1].0] == [b, a];
        self.conns.iter().filter(|(_, c)| is(c)).map(|(id, _)| *id).collect()
    }
}

fn upsert(p: &mut Process, slot: u16, incarnation: u64, now: u64) -> Vec<u64> {
    let older = p.peers.get(&slot).is_some_and(|old| old.incarnation < incarnation);
    let closed = older.then(|| p.peers.remove(&slot)).flatten().map_or(Vec::new(), |old| old.conns);
    p.peers.entry(slot).or_insert_with(|| Peer {
        incarnation,
        down_since: now,
        heard: now,
        sent: now,
        progress: (None, now),
        dial_at: now,
        ..Peer::default()
    });
    closed
}

impl World {
    pub(crate) fn learn(&mut self, i: usize, slot: u16, incarnation: u64, addresses: &[String]) {
        let now = self.now;
        let Some(p) = self.hosts[i].process.as_mut().filter(|p| p.place.is_none_or(|me| me.0 != slot)) else { return };
        let closed = upsert(p, slot, incarnation, now);
        if let (Some(peer), Some(a)) = (p.peers.get_mut(&slot), addresses.first())
            && peer.incarnation == incarnation
        {
            peer.target = a.parse().ok();
        }
        closed.into_iter().for_each(|c| self.reset(c));
    }

    pub(crate) fn forget(&mut self, i: usize, slot: u16, incarnation: u64) {
        let Some(p) = &mut self.hosts[i].process else { return };
        if p.peers.get(&slot).is_some_and(|peer| peer.incarnation <= incarnation)
            && let Some(old) = p.peers.remove(&slot)
        {
            old.conns.into_iter().for_each(|c| self.reset(c));
        }
    }

    pub(crate) fn forget_all(&mut self, i: usize) {
        if let Some(p) = &mut self.hosts[i].process {
            p.peers.clear();
        }
        self.reset_all_of(i);
    }

    pub(crate) fn reset_all_of(&mut self, i: usize) {
        let mine: Vec<u64> = self.net.conns.iter().filter(|(_, c)| c.ends.iter().any(|e| e.0 == i)).map(|(id, _)| *id).collect();
        mine.into_iter().for_each(|c| self.reset(c));
    }

    /// A connection is lost with everything on it; both ends hear of it a little later.
    pub(crate) fn reset(&mut self, conn: u64) {
        let Some(c) = self.net.conns.remove(&conn) else { return };
        for (host, life) in c.ends {
            let late = self.rng.u64(0..5);
            if self.hosts[host].life == life {
                self.later(late, host, Event::Closed { conn });
            }
        }
    }

    pub(crate) fn closed(&mut self, i: usize, conn: u64) -> Fallible {
        let now = self.now;
        let Some(p) = &mut self.hosts[i].process else { return Ok(()) };
        let Some((slot, peer)) = p.peers.iter_mut().find(|(_, peer)| peer.conns.contains(&conn)) else { return Ok(()) };
        peer.conns.retain(|c| *c != conn);
        if peer.conns.is_empty() {
            (peer.down_since, peer.dial_at) = (now, now);
            let slot = *slot;
            // whoever gave it up: here any end counts as a reset, which the program allows less often
            return self.input(i, In::Cluster(Input::PeerLink { slot, now: LinkNow::Reset }));
        }
        Ok(())
    }

    pub(crate) fn send(&mut self, i: usize, to: u16, payload: Vec<u8>) {
        self.report.messages += 1;
        let now = self.now;
        let Some(peer) = self.hosts[i].process.as_mut().and_then(|p| p.peers.get_mut(&to)) else { return };
        let n = peer.link.send(payload);
        if let Some(conn) = peer.conns.last().copied() {
            peer.sent = now;
            let ack = peer.link.ack();
            self.transmit(i, conn, Packet::Data { seq: n.seq, ack, payload: n.payload });
        }
    }

    fn transmit(&mut self, i: usize, conn: u64, packet: Packet) {
        let (twice, lost) = (self.faulty && self.rng.u16(..) < 600, self.faulty && self.rng.u16(..) < 40);
        let delay = if self.faulty && self.rng.u8(..) < 4 { self.rng.u64(1..100) } else { self.hop() };
        self.measure_frame();
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        let dir = usize::from(c.ends[0].0 != i);
        let to = c.ends[1 - dir];
        let at = (self.now + delay).max(c.busy_until[dir]);
        c.busy_until[dir] = at;
        if self.net.is_cut(i, to.0) || self.hosts[to.0].life != to.1 {
            return;
        }
        if lost {
            return self.reset(conn);
        }
        if twice {
            self.later(at - self.now, to.0, Event::Frame { conn, packet: packet.clone() });
        }
        self.later(at - self.now, to.0, Event::Frame { conn, packet });
    }

    /// A dialing attempt ends: hello from both sides, and the connection is there, or not.
    pub(crate) fn dialed(&mut self, i: usize, slot: u16, incarnation: u64, target: Option<usize>) -> Fallible {
        let now = self.now;
        let mine = self.hosts[i].place().unwrap_or((OUTSIDER, 0));
        if let Some(peer) = self.hosts[i].process.as_mut().and_then(|p| p.peers.get_mut(&slot)) {
            (peer.dialing, peer.dial_at) = (false, now + REDIAL);
        }
        let Some(j) = target.filter(|j| *j != i) else { return Ok(()) };
        let reachable = !self.net.is_cut(i, j) && self.hosts[j].stopped_until <= now && self.hosts[j].place() == Some((slot, incarnation));
        let known = self.hosts[i].process.as_ref().is_some_and(|p| p.peers.get(&slot).is_some_and(|q| q.incarnation == incarnation));
        if !reachable || !known {
            return Ok(());
        }
        self.net.next += 1;
        let conn = self.net.next;
        let ends = [(i, self.hosts[i].life), (j, self.hosts[j].life)];
        self.net.conns.insert(conn, Conn { ends, names: [mine, (slot, incarnation)], busy_until: [0; 2] });
        // what was received of an older incarnation of the same slot says nothing about this one (seed 9063 with 8 hosts)
        let any = self.setup.broken == Some(Broken::AcksForAnOlderIncarnation);
        let received = |w: &Self, host: usize, who: (u16, u64)| {
            let peer = w.hosts[host].process.as_ref().and_then(|p| p.peers.get(&who.0));
            peer.filter(|peer| any || peer.incarnation == who.1).map_or(0, |peer| peer.link.received())
        };
        let (theirs, ours) = (received(self, j, mine), received(self, i, (slot, incarnation)));
        if mine.0 != OUTSIDER {
            self.attach(j, mine, ours, conn)?;
        }
        self.attach(i, (slot, incarnation), theirs, conn)
    }

    fn attach(&mut self, i: usize, peer_is: (u16, u64), received: u64, conn: u64) -> Fallible {
        let now = self.now;
        let Some(p) = &mut self.hosts[i].process else { return Ok(()) };
        let stranger = !p.peers.contains_key(&peer_is.0);
        let closed = upsert(p, peer_is.0, peer_is.1, now);
        let Some(peer) = p.peers.get_mut(&peer_is.0).filter(|peer| peer.incarnation == peer_is.1) else {
            self.reset(conn);
            return Ok(());
        };
        peer.link.acked(received);
        let ack = peer.link.ack();
        let again: Vec<_> = peer.link.unacked().map(|n| Packet::Data { seq: n.seq, ack, payload: Arc::clone(&n.payload) }).collect();
        (peer.heard, peer.sent) = (now, now);
        peer.conns.push(conn);
        let first = peer.conns.len() == 1;
        closed.into_iter().for_each(|c| self.reset(c));
        again.into_iter().for_each(|n| self.transmit(i, conn, n));
        if first {
            self.input(i, In::Cluster(Input::PeerLink { slot: peer_is.0, now: LinkNow::Up }))?;
        }
        if stranger { self.input(i, In::Cluster(Input::Nudge)) } else { Ok(()) }
    }

    pub(crate) fn frame(&mut self, i: usize, conn: u64, packet: Packet) -> Fallible {
        let Some(c) = self.net.conns.get(&conn) else { return Ok(()) };
        let from = c.names[usize::from(c.ends[0].0 == i)];
        let now = self.now;
        let Some(p) = &mut self.hosts[i].process else { return Ok(()) };
        if from.0 == OUTSIDER {
            let Packet::Data { payload, .. } = packet else { return Ok(()) };
            return self.input(i, In::Outsider(payload.to_vec()));
        }
        let Some(peer) = p.peers.get_mut(&from.0).filter(|peer| peer.incarnation == from.1) else {
            self.reset(conn);
            return Ok(());
        };
        peer.heard = now;
        match packet {
            Packet::Ack(ack) => peer.link.acked(ack),
            Packet::Data { seq, ack, payload } => {
                peer.link.acked(ack);
                let arrival = peer.link.arrived(seq);
                let due = (peer.link.ack_due() >= 64).then(|| peer.link.ack());
                if let Some(ack) = due {
                    self.transmit(i, conn, Packet::Ack(ack));
                }
                if arrival == Arrival::Deliver {
                    return self.deliver(i, from, &payload);
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, i: usize, from: (u16, u64), payload: &Arc<[u8]>) -> Fallible {
        if self.setup.broken == Some(Broken::DeliversTwice) && self.rng.u8(0..100) < 3 {
            let late = self.rng.u64(1..100);
            self.later(late, i, Event::Input(Box::new(In::Deliver(from.0, from.1, payload.to_vec()))));
        }
        self.input(i, In::Deliver(from.0, from.1, payload.to_vec()))
    }

    /// Periodic work: dials, acknowledges, keeps alive, sends again, gives up silent connections.
    pub(crate) fn upkeep(&mut self, i: usize) {
        let now = self.now;
        let Some(p) = &mut self.hosts[i].process else { return };
        let (mut dial, mut frames, mut close) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, peer) in &mut p.peers {
            let Some(conn) = peer.conns.last().copied() else {
                if !peer.dialing && peer.dial_at <= now && peer.target.is_some() {
                    peer.dialing = true;
                    dial.push((*slot, peer.incarnation, peer.target));
                }
                continue;
            };
            if peer.link.ack_due() > 0 || now - peer.sent > KEEPALIVE {
                frames.push((conn, Packet::Ack(peer.link.ack())));
                peer.sent = now;
            }
            let oldest = peer.link.oldest_unacked();
            if oldest != peer.progress.0 {
                peer.progress = (oldest, now);
            } else if oldest.is_some() && now - peer.progress.1 > RESEND {
                peer.progress.1 = now;
                let ack = peer.link.ack();
                frames.extend(peer.link.unacked().map(|n| (conn, Packet::Data { seq: n.seq, ack, payload: Arc::clone(&n.payload) })));
            }
            if now - peer.heard > KEEPALIVE * 4 {
                close.push(conn);
            }
        }
        for (slot, incarnation, target) in dial {
            let late = self.rng.u64(1..10);
            self.later(late, i, Event::Dial { slot, incarnation, target });
        }
        frames.into_iter().for_each(|(conn, packet)| self.transmit(i, conn, packet));
        close.into_iter().for_each(|c| self.reset(c));
    }

    /// Writes this host's mail: what peers without a connection have not acknowledged. They read it a little later.
    pub(crate) fn mail_round(&mut self, i: usize) {
        self.later(self.paced(50), i, Event::MailRound);
        let (now, open) = (self.now, self.gate_open(i));
        let Some(p) = self.hosts[i].process.as_mut().filter(|_| open) else { return };
        let Some(from) = p.place else { return };
        let silent = p.peers.iter_mut().filter(|(_, peer)| peer.conns.is_empty() && now - peer.down_since > MAIL_AFTER);
        let mail = |(slot, peer): (&u16, &mut Peer)| {
            let messages = peer.link.unacked().take(100).map(|n| (n.seq, Arc::clone(&n.payload))).collect();
            ((*slot, peer.incarnation), Mail { from, ack: peer.link.ack(), messages })
        };
        let all: Vec<_> = silent.map(mail).collect();
        for (to, mail) in all {
            if let Some(j) = self.hosts.iter().position(|h| h.place() == Some(to)) {
                let late = self.latency() + self.rng.u64(1..50);
                self.later(late, j, Event::Mail(mail));
            }
        }
    }

    /// The lock manager's epoch, whether it is open, and the links of a host, for whoever reads a violation.
    pub(crate) fn describe_links(&self, i: usize) -> String {
        let Some(p) = &self.hosts[i].process else { return String::new() };
        let line = |(slot, q): (&u16, &Peer)| {
            let (sent, got, open) = (q.link.sent(), q.link.received(), q.link.oldest_unacked());
            format!(
                "to {slot}.{}: sent {sent} unacked from {open:?} received {got} conns {:?} gaps {}",
                q.incarnation, q.conns, q.link.gaps
            )
        };
        let links: Vec<String> = p.peers.iter().map(line).collect();
        format!("host {i} is {:?}: locks {:?}; {}", p.place, p.router.dlm().map(luna_dlm::Core::status), links.join("; "))
    }

    pub(crate) fn mail(&mut self, i: usize, m: Mail) -> Fallible {
        let now = self.now;
        let peer = self.hosts[i].process.as_mut().and_then(|p| p.peers.get_mut(&m.from.0));
        let silent = |q: &&mut Peer| q.incarnation == m.from.1 && q.conns.is_empty() && now - q.down_since > MAIL_AFTER;
        let Some(peer) = peer.filter(silent) else { return Ok(()) };
        peer.link.acked(m.ack);
        let fresh: Vec<_> = m.messages.into_iter().filter(|(seq, _)| peer.link.arrived(*seq) == Arrival::Deliver).collect();
        for (_, payload) in fresh {
            self.deliver(i, m.from, &payload)?;
        }
        Ok(())
    }
}
