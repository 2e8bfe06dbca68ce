//! The host's door to the network: accepts callers, knocks at others, and bounds how many handshakes are under way.
//!
//! Invariant: a caller has one thread and at most [`HANDSHAKE`] to say who it is, callers from one address have no more than
//! their share of the threads, and every socket has its options before a byte is exchanged. Not here: what is said (`noise`), who
//! is let in (`peers`).

use crate::conn;
use crate::peers::Peers;
use crate::refusal::{Reason, Refused};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a handshake may take, from the first byte to the last.
pub const HANDSHAKE: Duration = Duration::from_secs(3);
/// How long one address may take to answer a knock.
const DIAL: Duration = Duration::from_secs(2);
/// Addresses of a host that are tried.
const ADDRESSES: usize = 4;
/// Handshakes under way at once, and those from one address.
const MAX_HANDSHAKES: u32 = 256;
const MAX_PER_ADDRESS: u32 = 64;
/// Pause after an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(50);

/// A socket on which everything ends at one moment, however slowly bytes come.
pub struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    /// Reads and writes on `stream` until `until`.
    pub fn new(stream: &'a TcpStream, until: Instant) -> Self {
        Self { stream, until }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.left()?;
        // a handshake fits the socket's buffer; the write timeout of `tune` holds
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Handshakes under way by address.
#[derive(Default)]
pub(crate) struct Seats(Mutex<BTreeMap<IpAddr, u32>>);

/// One handshake's place; given back when dropped.
struct Seat(Arc<Peers>, IpAddr);

impl Seat {
    fn take(peers: &Arc<Peers>, who: IpAddr) -> Option<Self> {
        let mut seats = peers.seats.0.lock();
        let (all, mine) = (seats.values().sum::<u32>(), seats.get(&who).copied().unwrap_or(0));
        if all >= MAX_HANDSHAKES || mine >= MAX_PER_ADDRESS {
            return None;
        }
        seats.insert(who, mine + 1);
        Some(Self(Arc::clone(peers), who))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.0.seats.0.lock();
        match seats.get_mut(&self.1) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(seats.remove(&self.1)),
        }
    }
}

/// Connects to the first of the addresses that answers.
pub(crate) fn knock(addrs: &[String]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for addr in addrs {
        match addr.to_socket_addrs() {
            Ok(found) => {
                for a in found.take(ADDRESSES) {
                    match TcpStream::connect_timeout(&a, DIAL).and_then(|s| conn::tune(&s).map(|()| s)) {
                        Ok(s) => return Ok(s),
                        Err(e) => last = e,
                    }
                }
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Accepts callers until the table stops or is gone.
pub(crate) fn accept_loop(me: &Weak<Peers>, listener: &TcpListener) {
    let _ = listener.set_nonblocking(true);
    loop {
        let Some(peers) = me.upgrade().filter(|p| !p.is_stopping()) else { return };
        match listener.accept() {
            Ok((stream, who)) => receive(&peers, stream, who),
            Err(e) => {
                drop(peers);
                if e.kind() == io::ErrorKind::WouldBlock {
                    wait_readable(listener);
                } else {
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
}

/// Gives a caller a thread for its handshake.
fn receive(peers: &Arc<Peers>, stream: TcpStream, who: SocketAddr) {
    let Some(seat) = Seat::take(peers, who.ip()) else {
        let busy = Refused::new(Reason::Busy, "too many handshakes under way");
        return peers.counters.refused.note(&busy, &who);
    };
    let tuned = stream.set_nonblocking(false).and_then(|()| conn::tune(&stream));
    let spawned = tuned.and_then(|()| {
        std::thread::Builder::new().name("luna-hello".into()).spawn(move || {
            let Seat(peers, _) = &seat;
            if let Err(r) = peers.greet(stream) {
                peers.counters.refused.note(&r, &who);
            }
        })
    });
    if let Err(e) = spawned {
        tracing::debug!(error = %e, %who, "a caller could not be received");
    }
}

/// Sleeps until somebody knocks, at most 200 ms.
fn wait_readable(listener: &TcpListener) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 200_000_000 }));
}
