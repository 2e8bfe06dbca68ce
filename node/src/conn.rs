//! One TCP connection to a peer: a reader thread that hands every frame on, and a sender that never blocks its caller.
//!
//! A send goes straight to the socket when the socket takes it (no hop); what it does not take waits for the connection's
//! own writer thread. A connection that lets more than a bound wait, or stays silent longer than the kernel's user timeout,
//! is closed. Not here: what frames mean, retries (see `link`).

use crate::wire::{self, Frame};
use parking_lot::{Condvar, Mutex};
use rustix::net::{SendFlags, sockopt};
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Unsent bytes at which a connection is given up.
const MAX_BACKLOG: usize = 64 << 20;
/// How long unacknowledged bytes may stay unanswered before the kernel drops the connection (part of the bound D).
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// A connection. Closing it (or the peer doing so) ends both threads.
pub struct Conn {
    stream: TcpStream,
    backlog: Mutex<Vec<u8>>,
    more: Condvar,
    closed: AtomicBool,
}

impl Conn {
    /// Takes a connected socket; sets no-delay, keepalive and the user timeout.
    pub fn new(stream: TcpStream) -> io::Result<Arc<Self>> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(USER_TIMEOUT))?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(2))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(1))?;
        sockopt::set_tcp_keepcnt(&stream, 3)?;
        sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT.as_millis() as u32)?;
        Ok(Arc::new(Self { stream, backlog: Mutex::new(Vec::new()), more: Condvar::new(), closed: AtomicBool::new(false) }))
    }

    /// Starts the writer thread.
    pub fn start_writer(self: &Arc<Self>) -> io::Result<()> {
        let me = Arc::clone(self);
        std::thread::Builder::new().name("luna-link-tx".into()).spawn(move || me.write_loop())?;
        Ok(())
    }

    /// Reads frames until the connection ends; `take` gets each.
    pub fn read_loop(self: &Arc<Self>, mut take: impl FnMut(Frame)) -> io::Result<()> {
        let mut r = BufReader::with_capacity(64 << 10, self.stream.try_clone()?);
        while !self.is_closed() {
            take(wire::read_frame(&mut r)?);
        }
        Ok(())
    }

    /// The socket, for the handshake.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Queues a frame; sent at once when the socket takes it.
    pub fn send(&self, f: &Frame) {
        self.send_bytes(&wire::encode_frame(f));
    }

    fn send_bytes(&self, bytes: &[u8]) {
        if self.is_closed() {
            return;
        }
        let mut backlog = self.backlog.lock();
        let mut done = 0;
        if backlog.is_empty() {
            match rustix::net::send(&self.stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => done = n,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return self.close(),
            }
        }
        if done < bytes.len() {
            backlog.extend_from_slice(&bytes[done..]);
            if backlog.len() > MAX_BACKLOG {
                return self.close();
            }
            self.more.notify_one();
        }
    }

    fn write_loop(&self) {
        loop {
            // the bytes stay in the backlog while they are written, so that nobody overtakes them
            let chunk = {
                let mut b = self.backlog.lock();
                while b.is_empty() && !self.is_closed() {
                    self.more.wait(&mut b);
                }
                if self.is_closed() {
                    return;
                }
                b[..b.len().min(1 << 20)].to_vec()
            };
            if (&self.stream).write_all(&chunk).is_err() {
                return self.close();
            }
            self.backlog.lock().drain(..chunk.len());
        }
    }

    /// Ends the connection.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            let _ = self.stream.shutdown(Shutdown::Both);
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
