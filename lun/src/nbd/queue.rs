//! The data path to an NBD target: many requests in flight, no thread of its own.
//!
//! Whoever has work does the work (leader and follower): a submitter appends its request to a connection's send queue; the
//! first thread that calls `drive` sends everything queued with one system call, and becomes the receiver if nobody is. The
//! receiver takes as many replies per system call as there are and runs their completions with a slice of the receive
//! buffer. At depth 1 that is all one thread and no hop; at depth 32 one send and one receive serve many requests.
//!
//! **Locks**, always in this order, none held while a completion runs except `receive`:
//! `receive` (who receives) → `sending` (who is in the send call) → `queued` (requests waiting to be sent) → `table`
//! (requests in flight). Submitters only take the last two, for moments. `sending` is only ever tried, so nobody waits for
//! another thread's system call; the holder looks again after letting go.
//!
//! **Invariants.** A request is in `table` from submission to completion, with what is needed to send it again. If
//! `inflight > 0`, some thread receives or is on its way into `drive`. The receiver never sleeps on queued requests longer
//! than [`NAP`]. Sends never block, so a server that waits for us to receive can not lock us up.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::reconnect::Target;
use super::table::{Pending, Table};
use super::wire::{self, REPLY_BYTES, Reply, Request, cmd};
use crate::stream::{Luck, Stream, is_again, readable};
use crate::{AlignedBuf, DataQueue, Durability, LunError, ReadDone, Result, WriteDone, check_range};

/// Connections at most.
const MAX_CONNECTIONS: usize = 8;
/// Requests that are sent even if more are announced.
const BATCH: usize = 24;
/// Parts of one send call; the system's limit is 1024.
const PARTS: usize = 512;
/// The receive buffer; grows to the longest reply seen.
const RECEIVE_BYTES: usize = 2 << 20;
/// At most this much is received at once, so that the buffer stays in the processor's cache.
const RECEIVE_PIECE: usize = 256 << 10;
/// How long a receiver sleeps before it looks for queued requests that nobody sent.
const NAP: Duration = Duration::from_millis(5);
/// How long a receiver looks again and again before it sleeps, when that has paid lately. Between two looks it offers the core
/// to others (`sched_yield`): a spin that does not keeps a guest, or a server on this machine, from running, and then nothing comes.
const SPIN: Duration = Duration::from_micros(40);
/// Only with this few requests in flight; above, replies come in batches anyway and the server needs the processor.
const SPIN_DEPTH: usize = 2;

/// One request on its way to the socket.
struct Item {
    header: [u8; wire::REQUEST_BYTES],
    payload: Option<Arc<Vec<u8>>>,
}

/// The send side of a connection, owned by whoever is in the send call.
struct Sending {
    stream: Arc<Stream>,
    batch: Vec<Item>,
    /// Bytes of the first items that have gone already.
    done: usize,
    first: usize,
}

/// The receive side of a connection, owned by the receiver.
struct Receiving {
    stream: Arc<Stream>,
    buffer: AlignedBuf,
    start: usize,
    end: usize,
    /// Bytes from `start` that the reply at `start` needs, if it is known.
    need: usize,
    silent_since: Option<Instant>,
    /// When the connection broke, until the next one has answered something.
    broke_at: Option<Instant>,
    luck: Luck,
}

struct Connection {
    receive: Mutex<Receiving>,
    sending: Mutex<Sending>,
    queued: Mutex<Vec<Item>>,
    table: Mutex<Table>,
    inflight: AtomicUsize,
    /// Requests not yet completely handed to the socket.
    unsent: AtomicUsize,
    broken: AtomicBool,
}

/// How a look at the socket ended.
enum Look {
    /// Replies were completed or bytes arrived.
    Progress,
    /// Nothing there.
    Nothing,
}

/// What became of an attempt to send.
#[derive(PartialEq, Eq)]
enum Sent {
    /// Nothing is left, or somebody else is sending.
    Done,
    /// The socket is full.
    Full,
}

pub(crate) struct Inner {
    target: Arc<Target>,
    connections: Vec<Connection>,
}

/// The data path of an open NBD LUN.
pub(crate) struct NbdQueue {
    inner: Arc<Inner>,
}

impl NbdQueue {
    /// Connects the data path.
    pub(crate) fn new(target: Arc<Target>) -> Result<Self> {
        let wanted = match target.options.connections {
            0 => 1,
            n => n.min(MAX_CONNECTIONS),
        };
        let count = if target.geometry.multi_conn { wanted } else { 1 };
        let connections = (0..count).map(|_| Connection::new(target.connect()?)).collect::<Result<Vec<_>>>()?;
        Ok(Self { inner: Arc::new(Inner { target, connections }) })
    }
}

impl Connection {
    /// These requests will not be answered.
    fn fail(&self, failed: Vec<Pending>, why: &LunError) {
        for pending in failed {
            self.inflight.fetch_sub(1, Ordering::SeqCst);
            pending.fail(why.duplicate());
        }
    }

    fn new(stream: Stream) -> Result<Self> {
        let stream = Arc::new(prepared(stream)?);
        let receiving = Receiving {
            stream: Arc::clone(&stream),
            buffer: AlignedBuf::new(RECEIVE_BYTES),
            start: 0,
            end: 0,
            need: REPLY_BYTES,
            silent_since: None,
            broke_at: None,
            luck: Luck::new(32),
        };
        Ok(Self {
            receive: Mutex::new(receiving),
            sending: Mutex::new(Sending { stream, batch: Vec::new(), done: 0, first: 0 }),
            queued: Mutex::new(Vec::new()),
            table: Mutex::new(Table::default()),
            inflight: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        })
    }

    /// Puts a request into the table and the send queue.
    fn submit(&self, pending: Pending) {
        let mut queued = self.queued.lock();
        let item = self.table.lock().insert(pending);
        self.inflight.fetch_add(1, Ordering::SeqCst);
        self.unsent.fetch_add(1, Ordering::SeqCst);
        queued.push(item.into());
    }

    /// Sends what is queued, unless somebody else is at it or this host may send nothing now. Never blocks.
    fn pump(&self, target: &Target) -> Sent {
        while self.unsent.load(Ordering::SeqCst) > 0 {
            let Some(mut sending) = self.sending.try_lock() else { return Sent::Done };
            let sent = self.pump_locked(&mut sending, target);
            drop(sending);
            // Whoever queued while we held the lock and found it taken relies on this second look.
            fence(Ordering::SeqCst);
            if sent == Sent::Full || self.broken.load(Ordering::SeqCst) {
                return sent;
            }
        }
        Sent::Done
    }

    fn pump_locked(&self, sending: &mut Sending, target: &Target) -> Sent {
        loop {
            // The last look before the hand-over. What was let in and is not sent yet waits here; `idle` comes back to it.
            if !target.may_send() {
                return Sent::Full;
            }
            if sending.first == sending.batch.len() {
                sending.batch.clear();
                sending.first = 0;
                std::mem::swap(&mut sending.batch, &mut *self.queued.lock());
                if sending.batch.is_empty() {
                    return Sent::Done;
                }
            }
            match sending.send_some() {
                Ok(finished) => {
                    self.unsent.fetch_sub(finished, Ordering::SeqCst);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Full,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The receiver finds out why and makes a new connection.
                    self.broken.store(true, Ordering::SeqCst);
                    return Sent::Done;
                }
            }
        }
    }
}

/// Sets up a fresh stream for the data path: a blocking receive is a nap.
fn prepared(stream: Stream) -> Result<Stream> {
    stream.set_timeout(Some(NAP)).map_err(|e| LunError::io("connect", 0, e))?;
    Ok(stream)
}

impl Sending {
    /// Nothing of the batch will leave over this stream.
    fn forget(&mut self) {
        self.batch.clear();
        (self.first, self.done) = (0, 0);
    }

    /// One send call; says how many requests left completely.
    fn send_some(&mut self) -> io::Result<usize> {
        let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(PARTS.min(2 * (self.batch.len() - self.first)));
        let mut skip = self.done;
        for item in &self.batch[self.first..] {
            if parts.len() + 2 > PARTS {
                break;
            }
            for bytes in [&item.header[..], item.payload.as_deref().map_or(&[], Vec::as_slice)] {
                let gone = skip.min(bytes.len());
                skip -= gone;
                if gone < bytes.len() {
                    parts.push(IoSlice::new(&bytes[gone..]));
                }
            }
        }
        let count = self.stream.send(&parts, false)?;
        let mut finished = 0;
        let mut left = self.done + count;
        while let Some(item) = self.batch.get_mut(self.first) {
            let size = item.header.len() + item.payload.as_ref().map_or(0, |payload| payload.len());
            if left < size {
                break;
            }
            left -= size;
            item.payload = None;
            self.first += 1;
            finished += 1;
        }
        self.done = left;
        Ok(finished)
    }
}

impl From<super::table::Inserted> for Item {
    fn from(inserted: super::table::Inserted) -> Self {
        Self { header: inserted.request.encode(), payload: inserted.payload }
    }
}

impl Inner {
    /// The connection this thread submits to: always the same, so that its requests travel together.
    fn connection(&self) -> &Connection {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        match self.connections.as_slice() {
            [only] => only,
            many => &many[MINE.with(|mine| *mine) % many.len()],
        }
    }

    fn admit(&self, offset: u64, len: u64, writes: bool) -> Result<()> {
        self.target.check()?;
        if writes && self.target.geometry.read_only {
            return Err(LunError::Refused(format!("{}: the LUN is open read-only", self.target.what)));
        }
        check_range(|| self.target.what.clone(), self.target.geometry.size_bytes, offset, len)
    }

    /// Looks at the socket once and completes every whole reply.
    fn look(&self, conn: &Connection, side: &mut Receiving, wait: bool) -> io::Result<Look> {
        if conn.broken.load(Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "sending failed"));
        }
        let room = side.make_room();
        let Receiving { stream, buffer, .. } = side;
        let count = match stream.recv(&mut buffer.bytes_mut()[room.clone()], wait) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            Ok(count) => count,
            Err(error) if is_again(&error) => return Ok(Look::Nothing),
            Err(error) => return Err(error),
        };
        side.end = room.start + count;
        side.silent_since = None;
        while side.end - side.start >= side.need {
            if !self.complete_one(conn, side)? {
                break;
            }
        }
        Ok(Look::Progress)
    }

    /// Completes the reply at the start of the buffer; false if it is not whole yet.
    fn complete_one(&self, conn: &Connection, side: &mut Receiving) -> io::Result<bool> {
        let have = side.end - side.start;
        if have < REPLY_BYTES {
            side.need = REPLY_BYTES;
            return Ok(false);
        }
        let head = &side.buffer.bytes()[side.start..side.start + REPLY_BYTES];
        let reply = Reply::decode(head).ok_or_else(garbled)?;
        let taken = {
            let mut table = conn.table.lock();
            let data = table.reply_bytes(reply.handle, reply.error).ok_or_else(garbled)?;
            side.need = REPLY_BYTES + data;
            if have < side.need {
                return Ok(false);
            }
            table.remove(reply.handle).ok_or_else(garbled)?
        };
        side.broke_at = None;
        conn.inflight.fetch_sub(1, Ordering::SeqCst);
        let data = side.start + REPLY_BYTES..side.start + side.need;
        side.start = data.end;
        side.need = REPLY_BYTES;
        let bytes = &side.buffer.bytes()[data];
        self.finish(taken, reply.error, bytes, conn);
        Ok(true)
    }

    /// Runs a completion.
    fn finish(&self, pending: Pending, error: u32, bytes: &[u8], conn: &Connection) {
        if error != 0 {
            let source = io::Error::from_raw_os_error(wire::errno_of(error));
            let error = LunError::io(pending.op(), pending.offset(), source);
            pending.fail(error);
            return;
        }
        match pending {
            Pending::Read { done, .. } => done(Ok(bytes)),
            Pending::Write { done, payload, fua, .. } => {
                if !fua {
                    self.target.note_answered();
                }
                conn.table.lock().recycle(payload);
                done(Ok(()));
            }
            Pending::Flush { done, mark } => done(self.target.note_flushed(mark)),
        }
    }

    /// The connection broke: makes a new one and sends again what was in flight, or fails it.
    fn recover(&self, conn: &Connection, side: &mut Receiving, error: &io::Error) {
        tracing::warn!(lun = %self.target.what, %error, inflight = conn.inflight.load(Ordering::SeqCst), "connection to the LUN broke");
        self.target.note_broken();
        let mut sending = conn.sending.lock();
        sending.stream.shutdown();
        let fresh = self.target.again(&mut side.broke_at, error).and_then(prepared);
        let may_write = fresh.is_ok() && self.target.may_resend();
        let (failed, why) = {
            let mut queued = conn.queued.lock();
            let mut table = conn.table.lock();
            queued.clear();
            sending.forget();
            let answer = match fresh {
                Ok(stream) => {
                    let stream = Arc::new(stream);
                    sending.stream = Arc::clone(&stream);
                    side.stream = stream;
                    let failed = if may_write { Vec::new() } else { table.take_writes() };
                    queued.extend(table.again().into_iter().map(Item::from));
                    conn.broken.store(false, Ordering::SeqCst);
                    (failed, self.target.not_resent())
                }
                Err(error) => (table.take_all(), error),
            };
            conn.unsent.store(queued.len(), Ordering::SeqCst);
            answer
        };
        drop(sending);
        side.rewind();
        conn.fail(failed, &why);
    }

    /// Looks at every held connection once; says whether anything happened.
    fn round(&self, held: &mut Held<'_>, wait: bool) -> bool {
        let mut progress = false;
        for (conn, slot) in self.connections.iter().zip(held.iter_mut()) {
            let Some(side) = slot else { continue };
            match self.look(conn, side, wait) {
                Ok(Look::Progress) => progress = true,
                Ok(Look::Nothing) => {}
                Err(error) => {
                    self.recover(conn, side, &error);
                    progress = true;
                }
            }
            if conn.inflight.load(Ordering::SeqCst) == 0 {
                *slot = None;
                fence(Ordering::SeqCst);
            }
        }
        progress
    }

    /// Nothing is there: sends what others left, looks a little longer if that pays, then sleeps a nap.
    fn idle(&self, held: &mut Held<'_>, wake: Option<BorrowedFd<'_>>) {
        for conn in &self.connections {
            conn.pump(&self.target);
        }
        let depth: usize = self.connections.iter().map(|conn| conn.inflight.load(Ordering::Relaxed)).sum();
        if depth <= SPIN_DEPTH && self.spin(held) {
            return;
        }
        if let ([conn], Some(Some(_)), None) = (self.connections.as_slice(), held.first(), wake)
            && conn.unsent.load(Ordering::SeqCst) == 0
        {
            if !self.round(held, true) {
                self.silence(held);
            }
            return;
        }
        let streams: Vec<(Arc<Stream>, bool)> = (self.connections.iter().zip(held.iter()))
            .filter_map(|(conn, slot)| {
                slot.as_ref().map(|side| (Arc::clone(&side.stream), conn.unsent.load(Ordering::SeqCst) > 0 && self.target.may_send()))
            })
            .collect();
        let watch: Vec<(&Stream, bool, bool)> = streams.iter().map(|(stream, output)| (&**stream, true, *output)).collect();
        let ready = match wake {
            Some(wake) => Stream::wait_with(&watch, wake, NAP),
            None => Stream::wait(&watch, NAP),
        };
        if !matches!(ready, Ok(true)) {
            self.silence(held);
        }
    }

    /// Looks again and again for a moment; true if something came.
    fn spin(&self, held: &mut Held<'_>) -> bool {
        // One connection that may is enough.
        if !held.iter_mut().flatten().any(|side| side.luck.spins()) {
            return false;
        }
        let until = Instant::now() + SPIN;
        loop {
            if self.round(held, false) {
                held.iter_mut().flatten().for_each(|side| side.luck.paid());
                return true;
            }
            std::thread::yield_now();
            if Instant::now() >= until {
                held.iter_mut().flatten().for_each(|side| side.luck.failed());
                return false;
            }
        }
    }

    /// This host is shut out: what was let in and is not sent never will be. It fails, and what else is under way with it.
    fn abandon(&self, conn: &Connection, side: &mut Receiving, why: &LunError) {
        self.target.note_broken();
        let mut sending = conn.sending.lock();
        sending.stream.shutdown();
        let failed = {
            let mut queued = conn.queued.lock();
            queued.clear();
            sending.forget();
            conn.unsent.store(0, Ordering::SeqCst);
            conn.table.lock().take_all()
        };
        drop(sending);
        side.rewind();
        conn.fail(failed, why);
    }

    /// A nap passed without a byte: a server that is silent for too long counts as gone.
    fn silence(&self, held: &mut Held<'_>) {
        if let Some(why) = self.target.shut() {
            for (conn, slot) in self.connections.iter().zip(held.iter_mut()) {
                if let Some(side) = slot
                    && conn.unsent.load(Ordering::SeqCst) > 0
                {
                    self.abandon(conn, side, &why);
                    *slot = None;
                }
            }
        }
        if !self.target.may_send() {
            // nobody asked it anything
            return;
        }
        for (conn, slot) in self.connections.iter().zip(held.iter_mut()) {
            let Some(side) = slot else { continue };
            let since = *side.silent_since.get_or_insert_with(Instant::now);
            if since.elapsed() > self.target.options.request_timeout {
                self.recover(conn, side, &io::Error::new(io::ErrorKind::TimedOut, "the server is silent"));
            }
        }
    }

    /// Takes the receiver's role wherever something is in flight and nobody has it; says whether it has any.
    fn take<'a>(&'a self, held: &mut Held<'a>) -> bool {
        fence(Ordering::SeqCst);
        let mut any = false;
        for (conn, slot) in self.connections.iter().zip(held.iter_mut()) {
            if slot.is_none() && conn.inflight.load(Ordering::SeqCst) > 0 {
                *slot = conn.receive.try_lock();
            }
            any |= slot.is_some();
        }
        any
    }
}

/// The receiver's role, per connection.
type Held<'a> = [Option<MutexGuard<'a, Receiving>>; MAX_CONNECTIONS];

impl Receiving {
    /// Whatever was received of a reply belongs to a connection that is gone.
    fn rewind(&mut self) {
        (self.start, self.end, self.need, self.silent_since) = (0, 0, REPLY_BYTES, None);
    }

    /// Where the next bytes go; moves a partial reply to the front if it would not fit.
    fn make_room(&mut self) -> std::ops::Range<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start > 0 && self.start + self.need.max(RECEIVE_PIECE) > self.buffer.len() {
            self.buffer.bytes_mut().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer.grow(self.need);
        // The rest of a long reply is received exactly: the next one then starts at the front again and nothing is moved.
        let missing = self.need.saturating_sub(self.end - self.start);
        let want = if missing >= RECEIVE_PIECE / 4 { missing } else { RECEIVE_PIECE };
        self.end..(self.end + want).min(self.buffer.len())
    }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the server's reply is garbled")
}

impl DataQueue for NbdQueue {
    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        let inner = &self.inner;
        if let Err(error) = inner.admit(offset, u64::from(len), false) {
            return done(Err(error));
        }
        if len > inner.target.geometry.max_io_bytes {
            return super::split::read(self, offset, len, inner.target.geometry.max_io_bytes, done);
        }
        inner.connection().submit(Pending::Read { offset, len, done });
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability, done: WriteDone) {
        let inner = &self.inner;
        if let Err(error) = inner.admit(offset, data.len() as u64, true) {
            return done(Err(error));
        }
        let forced = durability == Durability::Forced;
        let fua = forced && inner.target.geometry.can_fua;
        let done: WriteDone = if forced && !fua {
            // The target knows no forced writes: a flush follows, and its answer is the answer.
            let queue = Self { inner: Arc::clone(inner) };
            Box::new(move |result| match result {
                Ok(()) => DataQueue::flush(&queue, done),
                Err(error) => done(Err(error)),
            })
        } else {
            done
        };
        if data.len() > inner.target.geometry.max_io_bytes as usize {
            let durability = if fua { Durability::Forced } else { Durability::Plain };
            return super::split::write(self, offset, data, inner.target.geometry.max_io_bytes as usize, durability, done);
        }
        let conn = inner.connection();
        let mut payload = conn.table.lock().buffer(data.len());
        payload.extend_from_slice(data);
        let payload = Arc::new(payload);
        conn.submit(Pending::Write { offset, payload, fua, done });
    }

    fn flush(&self, done: WriteDone) {
        let inner = &self.inner;
        if let Err(error) = inner.target.check() {
            return done(Err(error));
        }
        if !inner.target.geometry.can_flush {
            return done(Ok(()));
        }
        let mark = inner.target.flush_mark();
        inner.connection().submit(Pending::Flush { mark, done });
    }

    fn drive(&self, more: &dyn Fn() -> bool) {
        let inner = &self.inner;
        let mut full = None;
        for conn in &inner.connections {
            let unsent = conn.unsent.load(Ordering::SeqCst);
            if unsent > 0 && (unsent >= BATCH || !more()) && conn.pump(&inner.target) == Sent::Full {
                full = Some(conn);
            }
        }
        let mut held: Held<'_> = std::array::from_fn(|_| None);
        while inner.take(&mut held) {
            full = None;
            if !inner.round(&mut held, false) && held.iter().any(Option::is_some) {
                inner.idle(&mut held, None);
            }
        }
        // Somebody else receives and the socket was full: the receiver may sleep and not know, so this thread goes on sending.
        if let Some(conn) = full {
            while conn.unsent.load(Ordering::SeqCst) > 0 && !conn.broken.load(Ordering::SeqCst) {
                let Some(stream) = conn.sending.try_lock().map(|sending| Arc::clone(&sending.stream)) else { break };
                if inner.target.may_send() {
                    let _ = Stream::wait(&[(&stream, false, true)], NAP);
                } else {
                    std::thread::sleep(NAP);
                }
                conn.pump(&inner.target);
            }
        }
    }

    fn drive_until(&self, wake: BorrowedFd<'_>) {
        let inner = &self.inner;
        let unsent: usize = inner.connections.iter().map(|conn| conn.unsent.load(Ordering::SeqCst)).sum();
        if unsent < BATCH && readable(wake) {
            return;
        }
        self.kick();
        loop {
            let mut held: Held<'_> = std::array::from_fn(|_| None);
            if !inner.take(&mut held) {
                return;
            }
            if !inner.round(&mut held, false) && held.iter().any(Option::is_some) {
                inner.idle(&mut held, Some(wake));
            }
            // The role goes back before the look: who found it taken and went to wait at `wake` relies on this second look.
            drop(held);
            fence(Ordering::SeqCst);
            // nothing is left to wait for: the look would cost a system call for every request at depth one
            let idle = inner.connections.iter().all(|conn| conn.inflight.load(Ordering::SeqCst) == 0);
            if idle || readable(wake) {
                return;
            }
        }
    }

    fn is_drained(&self) -> bool {
        let quiet = self.inner.connections.iter().all(|conn| conn.inflight.load(Ordering::SeqCst) == 0);
        quiet && !self.inner.target.in_doubt()
    }

    fn kick(&self) {
        for conn in &self.inner.connections {
            conn.pump(&self.inner.target);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A polite end: the server frees the connection at once instead of waiting for its time-outs.
        let goodbye = Request { flags: 0, command: cmd::DISC, handle: 0, offset: 0, len: 0 }.encode();
        for conn in &self.connections {
            let sending = conn.sending.lock();
            let _ = sending.stream.send(&[IoSlice::new(&goodbye)], false);
        }
    }
}
