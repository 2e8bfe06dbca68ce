//! For tests of the links: hosts with real sockets on the loopback address, and a wire in between that can look, lie and cut.
//!
//! Whatever waits here has a generous bound and says what it waited for. Not here: clusters, the LUN.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use luna_cluster::LinkNow;
use luna_format::{Incarnation, Slot, VolumeId};
use luna_node::noise::{Keys, LinkKey};
use luna_node::peers::{Events, Peers};
use luna_node::refusal::Reason;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The volume of the tests.
pub const VOLUME: VolumeId = [7; 16];
/// The secret on its LUN.
pub const SECRET: [u8; 32] = [0x5e; 32];

/// Waits for something; panics with `what` after half a minute.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Who sends back, and what it owes.
type Echo = (Arc<Peers>, Vec<(Slot, Vec<u8>)>);

/// What a host heard.
#[derive(Default)]
pub struct Sink {
    got: Mutex<Vec<(Slot, Incarnation, Vec<u8>)>>,
    bell: Condvar,
    /// Messages of hosts without a slot.
    pub outsiders: Mutex<Vec<Vec<u8>>>,
    /// How often a link came up.
    pub ups: AtomicU64,
    /// How often somebody unknown spoke.
    pub strangers: AtomicU64,
    echo: Mutex<Option<Echo>>,
}

impl Sink {
    /// From now on everything is sent back.
    pub fn echo(&self, peers: Option<Arc<Peers>>) {
        *self.echo.lock().unwrap() = peers.map(|p| (p, Vec::new()));
    }

    /// How many messages came.
    pub fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    /// Waits for `n` messages, and gives them.
    pub fn wait(&self, n: usize) -> Vec<(Slot, Incarnation, Vec<u8>)> {
        let mut got = self.got.lock().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while got.len() < n {
            assert!(Instant::now() < end, "{} of {n} messages came", got.len());
            got = self.bell.wait_timeout(got, Duration::from_secs(1)).unwrap().0;
        }
        got.drain(..).collect()
    }
}

impl Events for Sink {
    fn deliver(&self, from: Slot, incarnation: Incarnation, payload: Vec<u8>) {
        if let Some((_, todo)) = &mut *self.echo.lock().unwrap() {
            todo.push((from, payload.clone()));
        }
        self.got.lock().unwrap().push((from, incarnation, payload));
        self.bell.notify_all();
    }
    fn link(&self, _: Slot, _: Incarnation, now: LinkNow) {
        self.ups.fetch_add(u64::from(now == LinkNow::Up), Ordering::SeqCst);
    }
    fn stranger(&self, _: Slot) {
        self.strangers.fetch_add(1, Ordering::SeqCst);
    }
    fn outsider(&self, payload: Vec<u8>) {
        self.outsiders.lock().unwrap().push(payload);
    }
    fn kick(&self) {
        let mine = match &mut *self.echo.lock().unwrap() {
            Some((peers, todo)) => (Arc::clone(peers), std::mem::take(todo)),
            None => return,
        };
        mine.1.into_iter().for_each(|(to, m)| mine.0.send(to, m));
    }
}

/// A host's links.
pub struct Host {
    /// The links.
    pub peers: Arc<Peers>,
    /// What came.
    pub sink: Arc<Sink>,
    /// Where it listens.
    pub addr: String,
    /// What its beat would say.
    pub key: LinkKey,
    /// Its place.
    pub place: (Slot, Incarnation),
    over: Arc<AtomicBool>,
}

impl Host {
    /// A member of [`VOLUME`].
    pub fn new(slot: Slot, incarnation: Incarnation) -> Self {
        Self::with(Some((slot, incarnation)), VOLUME, &SECRET)
    }

    /// Any host; without a place it is an outsider.
    pub fn with(place: Option<(Slot, Incarnation)>, volume: VolumeId, secret: &[u8; 32]) -> Self {
        let keys = Keys::new(volume, secret).unwrap();
        let (key, sink) = (*keys.public(), Arc::new(Sink::default()));
        let peers = Peers::new(keys, Arc::clone(&sink) as _);
        if let Some((s, i)) = place {
            peers.set_me(s, i);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        peers.listen(listener).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (p, o) = (Arc::clone(&peers), Arc::clone(&over));
        std::thread::spawn(move || {
            while !o.load(Ordering::SeqCst) {
                p.tick();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { peers, sink, addr, key, place: place.unwrap_or((Slot::MAX, 0)), over }
    }

    /// It reads the beat of `other`.
    pub fn learns(&self, other: &Self) {
        self.learns_at(other, &other.addr);
    }

    /// It reads the beat of `other` with another address; an empty one: only who calls is let in.
    pub fn learns_at(&self, other: &Self, addr: &str) {
        let addrs = if addr.is_empty() { vec![] } else { vec![addr.to_owned()] };
        self.peers.learn(other.place.0, other.place.1, &addrs, &other.key);
    }

    /// Waits for the link to `other`.
    pub fn is_up_to(&self, other: &Self) {
        until("a link", || self.peers.is_up(other.place.0));
    }

    /// Refusals for this reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.peers.counters.refused.of(reason)
    }

    /// Waits for a refusal.
    pub fn refuses(&self, reason: Reason) {
        until(&format!("a refusal for {reason:?}"), || self.refused(reason) > 0);
    }

    /// Waits for `n` refusals (they are counted after the hang-up), and not more.
    pub fn counts(&self, reason: Reason, n: u64) {
        until(&format!("{n} refusals for {reason:?}"), || self.refused(reason) >= n);
        assert_eq!(self.refused(reason), n, "{:?}", self.peers.counters.refused.by_name());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.sink.echo(None);
        self.peers.stop();
    }
}

/// Two hosts that know each other; the second dials the first through the wire, if there is one.
pub fn pair(wire: Option<&Wire>) -> (Host, Host) {
    let (a, b) = (Host::new(0, 1), Host::new(1, 1));
    join(&a, &b, wire);
    (a, b)
}

/// As [`pair`], of hosts that exist.
pub fn join(a: &Host, b: &Host, wire: Option<&Wire>) {
    match wire {
        Some(w) => {
            w.to(&a.addr);
            a.learns_at(b, "");
            b.learns_at(a, &w.addr);
        }
        None => {
            a.learns(b);
            b.learns(a);
        }
    }
    a.is_up_to(b);
    b.is_up_to(a);
}

/// What a wire does to the bytes of one direction: called with the number of the connection, the position of the piece and
/// the piece; false cuts the connection.
pub type Tamper = dyn Fn(u64, u64, &mut Vec<u8>) -> bool + Send + Sync;

/// A wire with somebody on it.
pub struct Wire {
    /// Where to dial instead.
    pub addr: String,
    target: Arc<Mutex<String>>,
    /// All bytes of each connection, from the dialing side and to it.
    pub seen: Arc<Mutex<Vec<[Vec<u8>; 2]>>>,
}

impl Wire {
    /// A wire that does `tamper` to what the dialing side sends.
    pub fn new(tamper: impl Fn(u64, u64, &mut Vec<u8>) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (target, seen) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(Vec::<[Vec<u8>; 2]>::new())));
        let (t, s, tamper) = (Arc::clone(&target), Arc::clone(&seen), Arc::new(tamper) as Arc<Tamper>);
        std::thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let to = t.lock().unwrap().clone();
                let Ok(there) = TcpStream::connect(to) else { continue };
                let n = s.lock().unwrap().len();
                s.lock().unwrap().push([Vec::new(), Vec::new()]);
                let (c2, t2) = (caller.try_clone().unwrap(), there.try_clone().unwrap());
                let (sa, sb, tamper) = (Arc::clone(&s), Arc::clone(&s), Arc::clone(&tamper));
                std::thread::spawn(move || {
                    carry(&caller, &there, |b, at| (sa.lock().unwrap()[n][0].extend(&*b), tamper(n as u64, at, b)).1)
                });
                std::thread::spawn(move || carry(&t2, &c2, |b, _| (sb.lock().unwrap()[n][1].extend(&*b), true).1));
            }
        });
        Self { addr, target, seen }
    }

    /// Where it leads.
    pub fn to(&self, addr: &str) {
        *self.target.lock().unwrap() = addr.to_owned();
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, mut each: impl FnMut(&mut Vec<u8>, u64) -> bool) {
    let (mut buf, mut at) = (vec![0; 16 << 10], 0);
    while let Ok(n @ 1..) = from.read(&mut buf) {
        let mut piece = buf[..n].to_vec();
        let on = each(&mut piece, at);
        at += n as u64;
        if to.write_all(&piece).is_err() || !on {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
