//! One TCP connection to a peer, after its handshake: a reader that hands every frame on, and a sender that never blocks its
//! caller.
//!
//! A send goes straight to the socket when the socket takes it (no hop); what it does not take waits for the connection's own
//! writer thread. A connection that lets more than a bound wait, or stays silent longer than the kernel's user timeout, is
//! closed. Invariant: bytes are sealed (see `noise`) and ordered under one mutex, so nonces reach the peer in order whoever
//! writes. Not here: the handshake, what frames mean, retries (see `link`).

use crate::noise::{Opener, Sealer};
use crate::wire::{self, Frame, FrameRef};
use parking_lot::{Condvar, Mutex};
use rustix::net::{SendFlags, sockopt};
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Unsent bytes at which a connection is given up.
const MAX_BACKLOG: usize = 64 << 20;
/// Buffers of one that are larger are given back when they are empty.
const KEPT: usize = 1 << 20;
/// How long unacknowledged bytes may stay unanswered before the kernel drops the connection (part of the bound D).
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// Sets no-delay, keepalive and the user timeout: on every socket, before anything is said on it.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(USER_TIMEOUT))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT.as_millis() as u32)?;
    Ok(())
}

/// What is on its way out.
struct Outbox {
    seal: Sealer,
    /// A frame before it is sealed; kept for its memory.
    plain: Vec<u8>,
    /// Sealed bytes that no one has sent.
    backlog: Vec<u8>,
    /// Bytes that the writer thread is sending; while there are any, nobody else sends.
    writing: usize,
}

/// A connection. Closing it (or the peer doing so) ends both threads.
pub struct Conn {
    stream: TcpStream,
    out: Mutex<Outbox>,
    more: Condvar,
    closed: AtomicBool,
    /// This end closed it, and the other end is not known to have.
    given_up: AtomicBool,
}

impl Conn {
    /// Takes a tuned socket after its handshake.
    pub fn new(stream: TcpStream, seal: Sealer) -> Arc<Self> {
        let out = Outbox { seal, plain: Vec::new(), backlog: Vec::new(), writing: 0 };
        Arc::new(Self {
            stream,
            out: Mutex::new(out),
            more: Condvar::new(),
            closed: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        })
    }

    /// Starts the writer thread.
    pub fn start_writer(self: &Arc<Self>) -> io::Result<()> {
        let me = Arc::clone(self);
        std::thread::Builder::new().name("luna-link-tx".into()).spawn(move || me.write_loop())?;
        Ok(())
    }

    /// Reads frames until the connection ends; `take` gets each.
    pub fn read_loop(&self, open: &mut Opener, mut take: impl FnMut(Frame)) -> io::Result<()> {
        let mut r = open.over(&self.stream);
        while !self.is_closed() {
            take(wire::read_frame(&mut r)?);
        }
        Ok(())
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Queues a frame; sent at once when the socket takes it.
    pub fn send(&self, f: &FrameRef<'_>) {
        if !self.is_closed() && !self.push(f) {
            self.close();
        }
    }

    /// False when the connection is of no use any more.
    fn push(&self, f: &FrameRef<'_>) -> bool {
        let mut out = self.out.lock();
        let Outbox { seal, plain, backlog, writing } = &mut *out;
        plain.clear();
        wire::frame_into(f, plain);
        let alone = backlog.is_empty() && *writing == 0;
        if !seal.seal(plain, backlog) {
            return false;
        }
        if plain.capacity() > KEPT {
            *plain = Vec::new();
        }
        if alone {
            match rustix::net::send(&self.stream, backlog, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) if n == backlog.len() => backlog.clear(),
                Ok(n) => drop(backlog.drain(..n)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if backlog.len() + *writing > MAX_BACKLOG {
            self.given_up.store(true, Ordering::Release);
            return false;
        }
        if !backlog.is_empty() {
            self.more.notify_one();
        } else if backlog.capacity() > KEPT {
            *backlog = Vec::new();
        }
        true
    }

    fn write_loop(&self) {
        let mut chunk = Vec::new();
        loop {
            {
                let mut out = self.out.lock();
                out.writing = 0;
                while out.backlog.is_empty() && !self.is_closed() {
                    self.more.wait(&mut out);
                }
                if self.is_closed() {
                    return;
                }
                chunk.clear();
                std::mem::swap(&mut chunk, &mut out.backlog);
                out.writing = chunk.len();
            }
            if let Err(e) = (&self.stream).write_all(&chunk) {
                let late = matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                return if late { self.give_up() } else { self.close() };
            }
            if chunk.capacity() > KEPT {
                chunk = Vec::new();
            }
        }
    }

    /// Ends the connection, because the other end was silent for too long or makes no sense.
    pub fn give_up(&self) {
        if !self.is_closed() {
            self.given_up.store(true, Ordering::Release);
        }
        self.close();
    }

    /// Whether it ended by the other end's doing.
    pub fn was_reset(&self) -> bool {
        !self.given_up.load(Ordering::Acquire)
    }

    /// Ends the connection.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            let _ = self.stream.shutdown(Shutdown::Both);
            // the writer is before its look at `closed`, or waits
            drop(self.out.lock());
            self.more.notify_all();
        }
    }

    /// Whether it ended.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.close();
    }
}
