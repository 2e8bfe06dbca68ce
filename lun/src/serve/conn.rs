//! One connection of `luna serve`: requests in order of arrival, many per system call in both directions.
//!
//! The receive buffer takes whatever the client has sent; replies gather until no whole request is left in the buffer, and
//! leave with one send. So a client with 32 requests in flight costs two socket calls per batch, not two per request.
//!
//! Invariants: a request that asks for something outside the export, or too long, gets an error and the connection goes on
//! (its payload is skipped, not stored); only a wrong magic number ends it, because then nothing that follows has a meaning.
//! Between two requests the fence's cut is looked at: after it, none is started. A client that does not take its replies
//! for [`STUCK`] is cut.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;

use super::{Shared, greet};
use crate::file::{is_unsupported, punch, write_once, zero_range};
use crate::nbd::wire::{MAX_REQUEST, REPLY_BYTES, REQUEST_BYTES, Reply, Request, cmd, error_of};
use crate::stream::{Luck, Stream, is_again};
use crate::{AlignedBuf, Durability};

/// Received at once at most, unless one request is longer.
const RECEIVE: usize = 256 << 10;
/// Replies that leave before the buffer of requests is empty.
const REPLIES: usize = 256 << 10;
/// How long a client may refuse to take its replies.
const STUCK: Duration = Duration::from_secs(60);
/// How long to look for the next request before sleeping, when that has paid lately: longer than a client's
/// round trip at depth 1.
const SPIN: Duration = Duration::from_micros(80);

/// Runs a connection from greeting to end.
pub(super) fn serve(shared: &Shared, stream: Stream) {
    let Ok(stream) = stream.tuned().map(Arc::new) else { return };
    let Ok(ticket) = shared.registry.enter(None, &stream) else { return };
    match greet::greet(shared, &stream, &ticket) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            tracing::debug!(%error, "handshake failed");
            return;
        }
    }
    if stream.set_timeout(Some(STUCK)).is_err() {
        return;
    }
    let mut connection = Connection {
        shared,
        stream: &stream,
        input: AlignedBuf::new(RECEIVE),
        start: 0,
        end: 0,
        output: AlignedBuf::new(REPLIES),
        filled: 0,
        skip: None,
        luck: Luck::new(64),
    };
    while !ticket.cut.load(Ordering::SeqCst) {
        match connection.turn(&ticket.cut) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                tracing::debug!(%error, "connection ended");
                break;
            }
        }
    }
    stream.shutdown();
}

struct Connection<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    input: AlignedBuf,
    start: usize,
    end: usize,
    output: AlignedBuf,
    filled: usize,
    /// Payload bytes to throw away, and the reply to give then.
    skip: Option<(u64, Reply)>,
    luck: Luck,
}

impl Connection<'_> {
    /// Does all whole requests in the buffer, sends the replies, receives more; false at the end.
    fn turn(&mut self, cut: &std::sync::atomic::AtomicBool) -> io::Result<bool> {
        let mut need = REQUEST_BYTES;
        loop {
            if let Some((left, reply)) = self.skip {
                let count = left.min((self.end - self.start) as u64);
                self.start += count as usize;
                if count < left {
                    self.skip = Some((left - count, reply));
                    break;
                }
                self.skip = None;
                self.reply(reply)?;
            }
            let have = self.end - self.start;
            if have < REQUEST_BYTES {
                break;
            }
            let mut head = [0; REQUEST_BYTES];
            head.copy_from_slice(&self.input.bytes()[self.start..self.start + REQUEST_BYTES]);
            let Some(request) = Request::decode(&head) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a request is garbled"));
            };
            let payload = if request.command == cmd::WRITE { request.len } else { 0 };
            if payload > MAX_REQUEST {
                self.start += REQUEST_BYTES;
                self.skip = Some((u64::from(payload), Reply { error: 22, handle: request.handle }));
                continue;
            }
            need = REQUEST_BYTES + payload as usize;
            if have < need {
                break;
            }
            if request.command == cmd::DISC {
                self.send_replies()?;
                return Ok(false);
            }
            if cut.load(Ordering::SeqCst) {
                return Ok(false);
            }
            let from = self.start + REQUEST_BYTES;
            self.start += need;
            need = REQUEST_BYTES;
            self.perform(&request, from..from + payload as usize)?;
        }
        self.send_replies()?;
        self.receive(need)
    }

    /// Takes what the client has sent; waits for at least one byte.
    fn receive(&mut self, need: usize) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.start + need.max(RECEIVE / 2) > self.input.len() {
            self.input.bytes_mut().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.input.grow(need);
        let missing = need.saturating_sub(self.end - self.start);
        let want = if missing >= RECEIVE / 4 { missing } else { RECEIVE };
        let room = self.end..(self.end + want).min(self.input.len());
        let idle = self.start == self.end;
        // A partial request is completed by bytes on their way: wait for them. Otherwise look first, then wait.
        loop {
            let into = &mut self.input.bytes_mut()[room.clone()];
            let got = if idle { self.stream.recv_soon(into, SPIN, &mut self.luck) } else { self.stream.recv(into, true) };
            match got {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.end += count;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_again(&error) && idle => return Ok(true),
                Err(error) if is_again(&error) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped in the middle of a request"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn reply(&mut self, reply: Reply) -> io::Result<()> {
        if self.filled + REPLY_BYTES > self.output.len() {
            self.send_replies()?;
        }
        self.output.bytes_mut()[self.filled..self.filled + REPLY_BYTES].copy_from_slice(&reply.encode());
        self.filled += REPLY_BYTES;
        Ok(())
    }

    fn send_replies(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.filled {
            match self.stream.send(&[IoSlice::new(&self.output.bytes()[sent..self.filled])], true) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.filled = 0;
        Ok(())
    }

    fn perform(&mut self, request: &Request, payload: std::ops::Range<usize>) -> io::Result<()> {
        if let Err(errno) = self.admit(request) {
            return self.reply(Reply { error: error_of(errno), handle: request.handle });
        }
        if request.command == cmd::READ {
            return self.read(request);
        }
        let forced = request.flags & cmd::FLAG_FUA != 0;
        let result = match request.command {
            cmd::WRITE => self.write(&self.input.bytes()[payload], request.offset, forced),
            cmd::FLUSH => sync(self.shared),
            // a trim promises nothing; with a volatile cache it does nothing
            cmd::TRIM if self.shared.volatile.is_some() => {
                if forced {
                    sync(self.shared)
                } else {
                    Ok(())
                }
            }
            cmd::TRIM => ignore_unsupported(punch(&self.shared.file, request.offset, request.len.into()))
                .and_then(|()| if forced { sync(self.shared) } else { Ok(()) }),
            _ => self.zero(request).and_then(|()| if forced { sync(self.shared) } else { Ok(()) }),
        };
        let error = match result {
            Ok(()) => 0,
            Err(error) => {
                tracing::warn!(%error, command = request.command, offset = request.offset, "a request failed");
                error_of(error.raw_os_error().unwrap_or(libc::EIO))
            }
        };
        self.reply(Reply { error, handle: request.handle })
    }

    /// Everything that is wrong with a request before anything is done.
    fn admit(&self, request: &Request) -> Result<(), i32> {
        let inside = request.offset.checked_add(request.len.into()).is_some_and(|end| end <= self.shared.size_bytes);
        let writes = match request.command {
            cmd::READ => false,
            cmd::FLUSH => return Ok(()),
            cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES => true,
            _ => return Err(libc::EINVAL),
        };
        let allowed = match request.command {
            cmd::WRITE_ZEROES => cmd::FLAG_FUA | cmd::FLAG_NO_HOLE,
            _ => cmd::FLAG_FUA,
        };
        if writes && self.shared.read_only {
            return Err(libc::EPERM);
        }
        if request.flags & !allowed != 0 || (request.command == cmd::READ && request.len > MAX_REQUEST) {
            return Err(libc::EINVAL);
        }
        match (inside, writes) {
            (true, _) => Ok(()),
            (false, true) => Err(libc::ENOSPC),
            (false, false) => Err(libc::EINVAL),
        }
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        let len = request.len as usize;
        if self.filled + REPLY_BYTES + len > self.output.len() {
            self.send_replies()?;
            self.output.grow(REPLY_BYTES + len);
        }
        let data = self.filled + REPLY_BYTES;
        let (mut got, mut error) = (0, 0);
        if let Some(volatile) = &self.shared.volatile {
            match volatile.read(&self.shared.file, &mut self.output.bytes_mut()[data..data + len], request.offset) {
                Ok(()) => got = len,
                Err(why) => error = error_of(why.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
        while got < len && error == 0 {
            let room = &mut self.output.bytes_mut()[data + got..data + len];
            match rustix::io::pread(&self.shared.file, room, request.offset + got as u64) {
                Ok(0) => {
                    // The file was cut behind our back; the export keeps its size and reads as nothing is there.
                    error = 5;
                    break;
                }
                Ok(count) => got += count,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::warn!(%errno, offset = request.offset, "a read failed");
                    error = error_of(errno.raw_os_error());
                    break;
                }
            }
        }
        let reply = Reply { error, handle: request.handle };
        self.output.bytes_mut()[self.filled..data].copy_from_slice(&reply.encode());
        self.filled = if error == 0 { data + len } else { data };
        Ok(())
    }

    fn write(&self, mut data: &[u8], mut offset: u64, forced: bool) -> io::Result<()> {
        if let Some(volatile) = &self.shared.volatile {
            return volatile.write(&self.shared.file, data, offset, forced, self.shared.size_bytes);
        }
        let durability = if forced { Durability::Forced } else { Durability::Plain };
        while !data.is_empty() {
            let count = write_once(&self.shared.file, &[IoSlice::new(data)], offset, durability)?;
            data = &data[count..];
            offset += count as u64;
        }
        Ok(())
    }

    /// Punches a hole, or keeps the space if the client wants that; writes zeroes where the medium can do neither.
    fn zero(&self, request: &Request) -> io::Result<()> {
        let (offset, len) = (request.offset, u64::from(request.len));
        let file = &self.shared.file;
        let result = if self.shared.volatile.is_some() {
            Err(Errno::OPNOTSUPP)
        } else if request.flags & cmd::FLAG_NO_HOLE != 0 {
            zero_range(file, offset, len)
        } else {
            punch(file, offset, len).or_else(|error| if is_unsupported(error) { zero_range(file, offset, len) } else { Err(error) })
        };
        match result {
            Err(error) if is_unsupported(error) => {
                let zeroes = vec![0; (1 << 20).min(len as usize)];
                let mut done = 0;
                while done < len {
                    let count = (len - done).min(zeroes.len() as u64);
                    self.write(&zeroes[..count as usize], offset + done, false)?;
                    done += count;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

fn sync(shared: &Shared) -> io::Result<()> {
    if let Some(volatile) = &shared.volatile {
        return volatile.flush(&shared.file, shared.size_bytes);
    }
    loop {
        match rustix::fs::fdatasync(&shared.file) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// A trim is a hint: a medium that can not is no error.
fn ignore_unsupported(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_unsupported(error) => Ok(()),
        other => Ok(other?),
    }
}
