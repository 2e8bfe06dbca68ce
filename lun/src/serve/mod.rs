//! `luna serve`: a small NBD target over one file or block device.
//!
//! Threads and blocking sockets: one thread accepts, one runs each connection, all do page-cache I/O on the same
//! descriptor. So several connections are coherent by nature, a flush on any covers all, and requests of one connection
//! run in order of arrival, many per system call.
//!
//! What other targets do not have: it can cut one client off **for good by name** (see [`fence`](client_fence)). A client
//! names itself in the handshake; after `fence NAME INCARNATION` nothing that this incarnation (or an older one) sent is
//! applied any more, its connections are closed, and it is refused when it comes back, also after a restart of the server.
//!
//! **Invariants.** A flush is answered after `fdatasync`, a forced write after the kernel has it on the medium. Lengths are
//! checked before memory is taken. The answer `ok fenced` is given only after every running request of the victim ended.
//! One server per file (a lock on it says so). A name is a convenience for a closed network: there is no TLS yet, whoever
//! reaches the port can read, write and fence.

use std::fs::{File, OpenOptions as FsOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;

use crate::stream::Stream;
use crate::{LunError, LunSpec, Result};

mod conn;
mod control;
mod fence;
mod greet;
mod volatile;

pub use control::{client_fence, control_command};
use fence::Registry;
use volatile::Volatile;

/// How often a waiting thread looks whether the server stops.
const TURN: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// TCP; port 0 takes any.
    Tcp(SocketAddr),
    /// A Unix socket; a stale one is replaced.
    Unix(PathBuf),
}

/// What to serve and how.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The file or block device.
    pub file: PathBuf,
    /// The export's name; clients may also ask for the empty name.
    pub export: String,
    /// Where to listen.
    pub listen: Listen,
    /// Creates the file, sparse, with this size if it does not exist.
    pub create_bytes: Option<u64>,
    /// Refuse writes.
    pub read_only: bool,
    /// A Unix socket (mode 0600) for `ping`, `clients` and `fence NAME INCARNATION`.
    pub control: Option<PathBuf>,
    /// Where fences are kept; `FILE.fence` if not given.
    pub fence_file: Option<PathBuf>,
    /// Connections at the same time at most.
    pub max_connections: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// For tests: keep plain writes of at most so many MiB in memory until a flush, so that `power-cut SEED` can lose them.
    pub power_cut_cache: Option<u64>,
}

impl ServeOptions {
    /// The defaults for `file`, listening at `listen`.
    pub fn new(file: impl Into<PathBuf>, listen: Listen) -> Self {
        Self {
            file: file.into(),
            export: String::new(),
            listen,
            create_bytes: None,
            read_only: false,
            control: None,
            fence_file: None,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            power_cut_cache: None,
        }
    }
}

/// What all connections share.
struct Shared {
    file: File,
    size_bytes: u64,
    read_only: bool,
    export: String,
    /// The same for as long as this machine's page cache holds what was written to this file.
    instance: String,
    registry: Registry,
    volatile: Option<Volatile>,
    stop: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    open: AtomicUsize,
    handshake_timeout: Duration,
}

impl Shared {
    /// See the field: what was lost with the volatile cache makes it another one.
    fn instance(&self) -> String {
        match self.volatile.as_ref().map_or(0, Volatile::cuts) {
            0 => self.instance.clone(),
            cuts => format!("{} cuts={cuts}", self.instance),
        }
    }

    /// Loses power, as far as clients can tell: all are cut off, and of what was not flushed anything may be left.
    fn power_cut(&self, seed: u64) -> Result<String> {
        let Some(volatile) = &self.volatile else {
            return Err(LunError::Usage("there is nothing to lose: the server was not started with --power-cut-cache".into()));
        };
        let (all, lost) = self.registry.without_clients(|| volatile.lose_power(&self.file, seed, self.size_bytes))?;
        Ok(format!("ok power cut: {all} blocks were not flushed, {lost} of them lost something"))
    }
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    spec: LunSpec,
    addr: Option<SocketAddr>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    sockets: Vec<PathBuf>,
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Starts to serve; returns when clients can connect.
pub fn start(options: ServeOptions) -> Result<Server> {
    let file = open_file(&options)?;
    let size = file_size(&file).map_err(|error| refused(&options.file, &format!("can not be examined: {error}")))?;
    if size < crate::BLOCK_BYTES {
        return Err(refused(&options.file, "is empty; give the size to make it"));
    }
    let fence_file = options.fence_file.clone().unwrap_or_else(|| {
        let mut name = options.file.clone().into_os_string();
        name.push(".fence");
        PathBuf::from(name)
    });
    let registry = Registry::load(&fence_file)?;
    let instance = instance_token(&file).map_err(|error| refused(&options.file, &format!("can not be examined: {error}")))?;
    let (door, addr) = bind(&options.listen)?;
    let spec = match (&options.listen, addr) {
        (Listen::Unix(path), _) => LunSpec::NbdUnix { socket: path.clone(), export: options.export.clone() },
        (Listen::Tcp(wanted), addr) => {
            let addr = addr.unwrap_or(*wanted);
            LunSpec::Nbd { host: addr.ip().to_string(), port: addr.port(), export: options.export.clone() }
        }
    };
    let mut sockets = Vec::new();
    if let Listen::Unix(path) = &options.listen {
        sockets.push(path.clone());
    }
    let control = match &options.control {
        Some(path) => {
            let listener = bind_unix(path)?;
            sockets.push(path.clone());
            Some(listener)
        }
        None => None,
    };
    let shared = Arc::new(Shared {
        file,
        size_bytes: size,
        read_only: options.read_only,
        export: options.export,
        instance,
        registry,
        volatile: options.power_cut_cache.map(Volatile::new),
        stop: AtomicBool::new(false),
        threads: Mutex::new(Vec::new()),
        open: AtomicUsize::new(0),
        handshake_timeout: options.handshake_timeout,
    });
    let max = options.max_connections;
    let inner = Arc::clone(&shared);
    let accepting = std::thread::Builder::new()
        .name("luna-serve".into())
        .spawn(move || accept_loop(&inner, &door, control.as_ref(), max))
        .map_err(|error| LunError::io("start a thread", 0, error))?;
    Ok(Server { shared, spec, addr, accepting: Mutex::new(Some(accepting)), sockets })
}

impl Server {
    /// The TCP address, if it listens on one.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// How clients name this LUN.
    pub fn spec(&self) -> LunSpec {
        self.spec.clone()
    }

    /// Bytes served.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Cuts off incarnation `incarnation` and older of `name` for good; returns when nothing of it runs any more.
    pub fn fence(&self, name: &str, incarnation: u64) -> Result<String> {
        self.shared.registry.fence(name, incarnation)
    }

    /// Loses power, see [`ServeOptions::power_cut_cache`].
    pub fn power_cut(&self, seed: u64) -> Result<String> {
        self.shared.power_cut(seed)
    }

    /// Closes everything: no new connections, open ones are cut, running requests end.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.registry.cut_all();
    }

    /// Waits until the server has stopped (after [`Server::stop`], called from anywhere).
    pub fn join(&self) {
        if let Some(thread) = self.accepting.lock().take() {
            let _ = thread.join();
            // an orderly end loses nothing
            if let Some(Err(error)) = self.shared.volatile.as_ref().map(|v| v.flush(&self.shared.file, self.shared.size_bytes)) {
                tracing::error!(%error, "the volatile cache could not be written");
            }
            for path in &self.sockets {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

fn refused(path: &Path, why: &str) -> LunError {
    LunError::Refused(format!("{}: {why}", path.display()))
}

fn open_file(options: &ServeOptions) -> Result<File> {
    let path = &options.file;
    if let (Some(size), false) = (options.create_bytes, path.exists()) {
        let made = FsOptions::new().write(true).create_new(true).open(path).and_then(|file| {
            file.set_len(size)?;
            file.sync_all()
        });
        made.map_err(|error| refused(path, &format!("can not be made with {size} bytes: {error}")))?;
    }
    let file = FsOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(path)
        .map_err(|error| refused(path, &format!("can not be opened: {error}")))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| refused(path, "is being served already (it is locked by another process)"))?;
    Ok(file)
}

fn file_size(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.file_type().is_block_device() {
        return Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?);
    }
    Ok(meta.len())
}

/// What was answered is in this machine's page cache and dies with the machine, not with this process. So the token names
/// the boot and the file: as long as both are the same, nothing that was answered is lost.
fn instance_token(file: &File) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let meta = file.metadata()?;
    // a file that was removed and made again often gets the same inode number: its birth tells them apart
    let born = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Ok(format!("luna-serve boot={} dev={} ino={} rdev={} born={born}", boot.trim(), meta.dev(), meta.ino(), meta.rdev()))
}

fn bind(listen: &Listen) -> Result<(Door, Option<SocketAddr>)> {
    match listen {
        Listen::Tcp(addr) => {
            let made = TcpListener::bind(addr).and_then(|listener| {
                listener.set_nonblocking(true)?;
                let addr = listener.local_addr()?;
                Ok((Door::Tcp(listener), Some(addr)))
            });
            made.map_err(|error| LunError::Refused(format!("can not listen on {addr}: {error}")))
        }
        Listen::Unix(path) => Ok((Door::Unix(bind_unix(path)?), None)),
    }
}

/// Binds a Unix socket that only this user may use; takes the place of a stale one, never of a live one.
fn bind_unix(path: &Path) -> Result<UnixListener> {
    let failed = |error: io::Error| LunError::Refused(format!("can not listen on {}: {error}", path.display()));
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            return Err(LunError::Refused(format!("can not listen on {}: a server is running there", path.display())));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    // Bound under another name first: the socket must not be reachable before its mode is set.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    let made = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| std::fs::rename(&hidden, path));
    if let Err(error) = made {
        let _ = std::fs::remove_file(&hidden);
        return Err(failed(error));
    }
    Ok(listener)
}

fn accept_loop(shared: &Arc<Shared>, door: &Door, control: Option<&UnixListener>, max: usize) {
    while !shared.stop.load(Ordering::SeqCst) {
        let main = match door {
            Door::Tcp(listener) => listener.as_fd(),
            Door::Unix(listener) => listener.as_fd(),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(main, PollFlags::IN)];
        fds.extend(control.map(|listener| PollFd::new(listener, PollFlags::IN)));
        let timeout = Timespec { tv_sec: 0, tv_nsec: TURN.as_nanos() as _ };
        if !matches!(poll(&mut fds, Some(&timeout)), Ok(1..)) {
            continue;
        }
        let arrived = match door {
            Door::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Door::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        };
        match arrived {
            Ok(stream) if shared.open.load(Ordering::SeqCst) < max => run(shared, move |shared| conn::serve(shared, stream)),
            Ok(_) => tracing::warn!(max, "too many connections, one was turned away"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                std::thread::sleep(TURN);
            }
        }
        if let Some((stream, _)) = control.and_then(|listener| listener.accept().ok()) {
            run(shared, move |shared| control::serve(shared, &stream));
        }
    }
    shared.registry.cut_all();
    loop {
        let threads = std::mem::take(&mut *shared.threads.lock());
        if threads.is_empty() {
            return;
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Runs one connection on a thread of its own.
fn run(shared: &Arc<Shared>, work: impl FnOnce(&Shared) + Send + 'static) {
    let inner = Arc::clone(shared);
    shared.open.fetch_add(1, Ordering::SeqCst);
    let spawned = std::thread::Builder::new().name("luna-serve-conn".into()).spawn(move || {
        work(&inner);
        inner.open.fetch_sub(1, Ordering::SeqCst);
    });
    let mut threads = shared.threads.lock();
    threads.retain(|thread| !thread.is_finished());
    match spawned {
        Ok(thread) => threads.push(thread),
        Err(error) => {
            shared.open.fetch_sub(1, Ordering::SeqCst);
            tracing::warn!(%error, "no thread for a connection");
        }
    }
}
