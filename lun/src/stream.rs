//! A connected byte stream, TCP or Unix, with the socket options this crate wants on every one of them.
//!
//! Invariant: a stream from here never waits for ever on a peer that vanished: TCP has keepalive and a user timeout.
//! Blocking by default; calls on the data path pass `DONTWAIT` themselves. It knows nothing of NBD.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use crate::LunSpec;

/// Unacknowledged bytes older than this break a TCP connection. Part of the lease arithmetic (`D`).
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// Socket buffers of Unix sockets: the default of 208 KiB makes 1 MiB transfers stop several times.
const UNIX_BUFFER: usize = 4 << 20;

/// A connected stream.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects to the server that `spec` names.
    pub(crate) fn connect(spec: &LunSpec, timeout: Duration) -> io::Result<Self> {
        match spec {
            LunSpec::Nbd { host, port, .. } => {
                let deadline = Instant::now() + timeout;
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for addr in (host.as_str(), *port).to_socket_addrs()? {
                    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
                    match TcpStream::connect_timeout(&addr, left) {
                        Ok(stream) => return Self::Tcp(stream).tuned(),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            LunSpec::NbdUnix { socket, .. } => Self::Unix(UnixStream::connect(socket)?).tuned(),
            LunSpec::Path(_) | LunSpec::Iscsi { .. } => Err(io::Error::new(io::ErrorKind::Unsupported, "not an NBD address")),
        }
    }

    /// Sets the options; for accepted streams too.
    pub(crate) fn tuned(self) -> io::Result<Self> {
        match &self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(stream, true)?;
                sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
                sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
                sockopt::set_tcp_keepcnt(stream, 3)?;
                sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT.as_millis() as u32)?;
            }
            Self::Unix(stream) => {
                // Above the system's limit only with the right to; the limit itself is fine, too.
                if sockopt::set_socket_send_buffer_size_force(stream, UNIX_BUFFER).is_err() {
                    sockopt::set_socket_send_buffer_size(stream, UNIX_BUFFER)?;
                }
            }
        }
        Ok(self)
    }

    /// How long a blocking receive or send waits at most.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
            Self::Unix(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
        }
    }

    /// Ends both directions; wakes whoever waits on the stream. Errors mean that it had ended already.
    pub(crate) fn shutdown(&self) {
        let _ = match self {
            Self::Tcp(s) => s.shutdown(Shutdown::Both),
            Self::Unix(s) => s.shutdown(Shutdown::Both),
        };
    }

    /// Receives what is there, at most `buf`; waits (up to the set timeout) only if `wait`. `Ok(0)` is the end.
    pub(crate) fn recv(&self, buf: &mut [u8], wait: bool) -> io::Result<usize> {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        let (count, _) = rustix::net::recv(self, buf, flags)?;
        Ok(count)
    }

    /// Receives at least a byte: looks for up to `spin` while that has paid lately (`luck`), then waits up to the set timeout. Each look offers
    /// the core to others (`sched_yield`), so that it is never the spin that keeps the answer from coming.
    pub(crate) fn recv_soon(&self, buf: &mut [u8], spin: Duration, luck: &mut Luck) -> io::Result<usize> {
        if luck.spins() {
            let until = Instant::now() + spin;
            loop {
                match self.recv(buf, false) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => {
                        luck.paid();
                        return other;
                    }
                }
                std::thread::yield_now();
                if Instant::now() >= until {
                    luck.failed();
                    break;
                }
            }
        }
        self.recv(buf, true)
    }

    /// Sends as much of `parts` as fits; waits for room only if `wait`. Never raises SIGPIPE.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
        Ok(rustix::net::sendmsg(self, parts, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Like [`Stream::wait`], and also until `wake` is readable; says whether one of the streams is ready.
    pub(crate) fn wait_with(streams: &[(&Self, bool, bool)], wake: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
        Self::wait_on(streams, Some(wake), timeout)
    }

    /// Waits until there is something to receive, or (if asked) room to send, or the time is over; says whether something is.
    pub(crate) fn wait(streams: &[(&Self, bool, bool)], timeout: Duration) -> io::Result<bool> {
        Self::wait_on(streams, None, timeout)
    }

    fn wait_on(streams: &[(&Self, bool, bool)], wake: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<bool> {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(streams.len() + 1);
        for (stream, input, output) in streams {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, *input);
            flags.set(PollFlags::OUT, *output);
            fds.push(PollFd::new(*stream, flags));
        }
        fds.extend(wake.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let timeout = Timespec::try_from(timeout).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether looking again and again before sleeping has paid lately: a success earns one try, a failure costs four, and after too many
/// failures a number of waits pass without a try.
#[derive(Debug)]
pub(crate) struct Luck {
    tries: i32,
    pause: i32,
}

impl Luck {
    /// With `pause` waits after the last try failed.
    pub(crate) const fn new(pause: i32) -> Self {
        Self { tries: 4, pause }
    }

    /// Whether to try; call it once a wait.
    pub(crate) fn spins(&mut self) -> bool {
        let spins = self.tries > 0;
        if !spins {
            self.tries += 1;
        }
        spins
    }

    /// Something came while looking.
    pub(crate) fn paid(&mut self) {
        self.tries = (self.tries + 1).min(16);
    }

    /// Nothing came while looking.
    pub(crate) fn failed(&mut self) {
        self.tries = if self.tries > 4 { self.tries - 4 } else { -self.pause };
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.recv(buf, true)
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(buf)], true)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(bufs, true)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether something can be read from `fd` now.
pub(crate) fn readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)), Ok(count) if count > 0)
}

/// Whether an error only says "not now".
pub(crate) fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::TimedOut)
}
