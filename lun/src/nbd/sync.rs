//! The synchronous door to an NBD target: a few connections, each with one request in flight, reply read on the same thread.
//!
//! For metadata and journals, where a thread has one thing to do and waits for it: no hand-over to another thread, so no
//! wake-up besides the server's. Connections are made on demand, up to [`POOL`]; more callers than that wait for a turn.
//!
//! Invariant: a connection goes back to the pool only after its reply was read completely. A broken one is replaced within
//! the target's limits and the request sent again; a write only if the resend hook agrees. Where the target does not promise
//! coherence between connections there is only one.

use std::io::{self, IoSlice, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::reconnect::Target;
use super::wire::{self, REPLY_BYTES, Reply, Request, can_len, cmd};
use crate::stream::{Luck, Stream};
use crate::{BLOCK_BYTES, Disk, Durability, Geometry, LunError, Result, check_range};

/// Connections at most.
const POOL: usize = 4;
/// How long to look for a reply before sleeping, when that has paid lately: a target with a memory cache answers within it, a disk
/// that really flushes does not.
const SPIN: Duration = Duration::from_micros(40);
/// Waits without looking after looking failed.
const PAUSE: i32 = 32;
/// A write that may not be sent twice is not sent at all when it is older than this: half of the pause P that the lease allows.
const LATE: Duration = Duration::from_secs(1);
/// Zeroes sent per request where the target can not make them.
const ZERO_PIECE: usize = 1 << 20;

/// One idle or borrowed connection.
struct Conn {
    stream: Stream,
    handle: u64,
    luck: Luck,
}

impl Conn {
    fn new(stream: Stream) -> Self {
        Self { stream, handle: 0, luck: Luck::new(PAUSE) }
    }
}

struct Pool {
    idle: Vec<Conn>,
    made: usize,
    /// Grows when a connection broke: older idle ones are then as stale as it was.
    breaks: u64,
}

/// The synchronous side of an open NBD LUN.
pub(crate) struct NbdDisk {
    target: Arc<Target>,
    pool: Mutex<Pool>,
    turn: Condvar,
    limit: usize,
}

/// What to send.
struct Call<'a> {
    op: &'static str,
    command: u16,
    flags: u16,
    offset: u64,
    len: u32,
    payload: &'a [&'a [u8]],
}

impl NbdDisk {
    /// A door to `target`, which starts with the connection `first`.
    pub(crate) fn new(target: Arc<Target>, first: Stream) -> Result<Self> {
        first.set_timeout(Some(target.options.request_timeout)).map_err(|e| LunError::io("connect", 0, e))?;
        let limit = if target.geometry.multi_conn { POOL } else { 1 };
        let pool = Pool { idle: vec![Conn::new(first)], made: 1, breaks: 0 };
        Ok(Self { target, pool: Mutex::new(pool), turn: Condvar::new(), limit })
    }

    /// Borrows a connection; `None`: the caller has the right to make one.
    fn borrow(&self) -> (Option<Conn>, u64) {
        let mut pool = self.pool.lock();
        loop {
            if let Some(conn) = pool.idle.pop() {
                return (Some(conn), pool.breaks);
            }
            if pool.made < self.limit {
                pool.made += 1;
                return (None, pool.breaks);
            }
            self.turn.wait(&mut pool);
        }
    }

    fn give_back(&self, conn: Option<Conn>) {
        let mut pool = self.pool.lock();
        match conn {
            Some(conn) => pool.idle.push(conn),
            None => pool.made -= 1,
        }
        self.turn.notify_one();
    }

    /// A borrowed connection broke: the idle ones of the same time go with it.
    fn broke(&self, seen: u64) {
        let mut pool = self.pool.lock();
        if pool.breaks == seen {
            pool.breaks += 1;
            pool.made -= pool.idle.len();
            pool.idle.clear();
        }
    }

    /// Sends a request and reads its reply, over as many connections as it takes.
    fn call(&self, call: &Call<'_>, mut into: Option<&mut [u8]>) -> Result<()> {
        self.target.check()?;
        let begun = Instant::now();
        let (mut conn, mut seen) = self.borrow();
        let mut sent_before = false;
        let mut broke_at = None;
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        let result = loop {
            let mut live = match conn.take() {
                Some(live) => live,
                None => match self.make(sent_before.then_some((&mut broke_at, &last))) {
                    Ok(live) => live,
                    Err(error) => break Err(error),
                },
            };
            if sent_before && matches!(call.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES) && !self.target.may_resend() {
                conn = Some(live);
                break Err(self.target.not_resent());
            }
            if let Err(error) = self.may_go(call, begun) {
                conn = Some(live);
                break Err(error);
            }
            match exchange(&mut live, call, into.as_deref_mut()) {
                Ok(0) => {
                    conn = Some(live);
                    break Ok(());
                }
                Ok(error) => {
                    conn = Some(live);
                    break Err(LunError::io(call.op, call.offset, io::Error::from_raw_os_error(wire::errno_of(error))));
                }
                Err(error) => {
                    tracing::warn!(lun = %self.target.what, %error, "connection to the LUN broke");
                    last = error;
                    sent_before = true;
                    self.target.note_broken();
                    self.broke(seen);
                    seen = self.pool.lock().breaks;
                }
            }
        };
        self.give_back(conn);
        result
    }

    /// The last look before a request is handed over: it may have waited for a turn or a connection since the first.
    fn may_go(&self, call: &Call<'_>, begun: Instant) -> Result<()> {
        if let Some(gate) = &self.target.options.gate {
            return gate.pass();
        }
        let late = call.command == cmd::WRITE && begun.elapsed() > LATE;
        if late && self.target.options.resend_ok.as_ref().is_some_and(|hook| !hook()) {
            let text = format!("it waited {} ms for a connection and is too old to be sent", begun.elapsed().as_millis());
            return Err(LunError::io(call.op, call.offset, io::Error::new(io::ErrorKind::TimedOut, text)));
        }
        Ok(())
    }

    /// A new connection; `broke` is what is known of the one it replaces, if a request was under way on it.
    fn make(&self, broke: Option<(&mut Option<Instant>, &io::Error)>) -> Result<Conn> {
        let stream = match broke {
            Some((broke_at, error)) => self.target.again(broke_at, error)?,
            // A first failure to connect (the server restarts just now) is no more final than a break.
            None => match self.target.connect() {
                Err(LunError::Io { .. }) => self.target.reconnect(self.target.deadline())?,
                other => other?,
            },
        };
        stream.set_timeout(Some(self.target.options.request_timeout)).map_err(|e| LunError::io("connect", 0, e))?;
        Ok(Conn::new(stream))
    }

    fn check(&self, offset: u64, len: u64, writes: bool) -> Result<()> {
        if writes && self.target.geometry.read_only {
            return Err(LunError::Refused(format!("{}: the LUN is open read-only", self.target.what)));
        }
        check_range(|| self.describe(), self.target.geometry.size_bytes, offset, len)
    }

    /// Sends a payload-less request for a range in pieces.
    fn range(&self, op: &'static str, command: u16, offset: u64, len: u64) -> Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let len = can_len(end - at);
            self.call(&Call { op, command, flags: 0, offset: at, len, payload: &[] }, None)?;
            self.target.note_answered();
            at += u64::from(len);
        }
        Ok(())
    }
}

/// One request, one reply. `Err`: the connection is of no use any more. `Ok`: the server's error number.
fn exchange(conn: &mut Conn, call: &Call<'_>, into: Option<&mut [u8]>) -> io::Result<u32> {
    conn.handle += 1;
    let request = Request { flags: call.flags, command: call.command, handle: conn.handle, offset: call.offset, len: call.len };
    let head = request.encode();
    let mut parts = Vec::with_capacity(1 + call.payload.len());
    parts.push(IoSlice::new(&head));
    parts.extend(call.payload.iter().map(|part| IoSlice::new(part)));
    send_all(&conn.stream, &mut parts)?;

    let mut head = [0; REPLY_BYTES];
    // One receive for header and data: only one request is in flight, so nothing else can follow.
    let mut got = match &into {
        Some(buf) if buf.len() <= 64 << 10 => return small_read(conn, into),
        _ => some(conn.stream.recv_soon(&mut head, SPIN, &mut conn.luck))?,
    };
    let mut stream = &conn.stream;
    while got < REPLY_BYTES {
        got += some(stream.read(&mut head[got..]))?;
    }
    let error = check_reply(&head, conn.handle)?;
    if let (0, Some(buf)) = (error, into) {
        let mut got = 0;
        while got < buf.len() {
            got += some(stream.read(&mut buf[got..]))?;
        }
    }
    Ok(error)
}

/// Header and a short payload in one receive.
fn small_read(conn: &mut Conn, into: Option<&mut [u8]>) -> io::Result<u32> {
    let Some(buf) = into else { return Ok(0) };
    let mut both = [0; REPLY_BYTES + (64 << 10)];
    let (mut got, mut want) = (0, REPLY_BYTES + buf.len());
    let mut error = 0;
    while got < want {
        let before = got;
        got += some(conn.stream.recv_soon(&mut both[got..want], SPIN, &mut conn.luck))?;
        if before < REPLY_BYTES && got >= REPLY_BYTES {
            error = check_reply(&both, conn.handle)?;
            if error != 0 {
                want = REPLY_BYTES;
            }
        }
    }
    if error == 0 {
        buf.copy_from_slice(&both[REPLY_BYTES..want]);
    }
    Ok(error)
}

fn check_reply(head: &[u8], handle: u64) -> io::Result<u32> {
    match Reply::decode(head) {
        Some(reply) if reply.handle == handle => Ok(reply.error),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the server's reply is garbled")),
    }
}

/// A receive that got nothing is an end or a time-out; both break the connection.
fn some(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(io::ErrorKind::TimedOut, "the server is silent")),
        other => other,
    }
}

fn send_all(stream: &Stream, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !parts.is_empty() {
        // The system takes at most 1024 parts at a time.
        let window = parts.len().min(512);
        match stream.send(&parts[..window], true) {
            Ok(count) => IoSlice::advance_slices(&mut parts, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server takes no more data"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Disk for NbdDisk {
    fn gone(&self) -> Option<LunError> {
        self.target.check().err()
    }

    fn is_drained(&self) -> bool {
        let pool = self.pool.lock();
        pool.idle.len() == pool.made && !self.target.in_doubt()
    }

    fn geometry(&self) -> Geometry {
        self.target.geometry
    }

    fn describe(&self) -> String {
        self.target.what.clone()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64, false)?;
        let mut at = offset;
        for part in buf.chunks_mut(self.target.geometry.max_io_bytes as usize) {
            let call = Call { op: "read", command: cmd::READ, flags: 0, offset: at, len: part.len() as u32, payload: &[] };
            at += part.len() as u64;
            self.call(&call, Some(part))?;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        self.write_vectored_at(&[buf], offset, durability)
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64, durability: Durability) -> Result<()> {
        let total: usize = bufs.iter().map(|part| part.len()).sum();
        self.check(offset, total as u64, true)?;
        let geometry = &self.target.geometry;
        let forced = durability == Durability::Forced;
        let fua = forced && geometry.can_fua;
        let flags = if fua { cmd::FLAG_FUA } else { 0 };
        let send = |parts: &[&[u8]], at: u64| {
            let len = parts.iter().map(|part| part.len() as u32).sum();
            self.call(&Call { op: "write", command: cmd::WRITE, flags, offset: at, len, payload: parts }, None)?;
            if !fua {
                self.target.note_answered();
            }
            Ok(())
        };
        let max = geometry.max_io_bytes as usize;
        if total == 0 {
            return Ok(());
        } else if total <= max {
            send(bufs, offset)?;
        } else {
            let (mut at, mut parts, mut filled) = (offset, Vec::new(), 0);
            for buf in bufs {
                let mut rest = *buf;
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(max - filled));
                    parts.push(now);
                    filled += now.len();
                    rest = later;
                    if filled == max {
                        send(&parts, at)?;
                        at += filled as u64;
                        parts.clear();
                        filled = 0;
                    }
                }
            }
            if filled > 0 {
                send(&parts, at)?;
            }
        }
        if forced && !fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        if !self.target.geometry.can_flush {
            return Ok(());
        }
        let mark = self.target.flush_mark();
        self.call(&Call { op: "flush", command: cmd::FLUSH, flags: 0, offset: 0, len: 0, payload: &[] }, None)?;
        self.target.note_flushed(mark)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len, true)?;
        if !self.target.geometry.can_trim {
            return Ok(());
        }
        self.range("discard", cmd::TRIM, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len, true)?;
        if self.target.geometry.can_write_zeroes {
            return self.range("write zeroes", cmd::WRITE_ZEROES, offset, len);
        }
        let zeroes = vec![0; ZERO_PIECE.min(len as usize)];
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(ZERO_PIECE as u64);
            self.write_at(&zeroes[..count as usize], at, Durability::Plain)?;
            at += count;
        }
        Ok(())
    }
}

const _: () = assert!((wire::MAX_REQUEST as u64).is_multiple_of(BLOCK_BYTES));
