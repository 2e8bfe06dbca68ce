//! The shared disk: moves bytes, and says what it can do.
//!
//! A LUN is a row of 4 KiB blocks that several hosts reach at the same time. This crate opens one (a file, a block device, an
//! NBD export), and offers two doors to it:
//!
//! * [`Disk`]: synchronous, positional, `&self`. For metadata, journals, tools: one call, one answer, on the caller's thread.
//! * [`DataQueue`]: submission and completion. For the data path: many requests in flight, no thread of its own; whoever
//!   calls [`DataQueue::drive`] sends and receives for everybody.
//!
//! It also contains the other end of the wire: [`serve`], a small NBD target over a file that can cut one host off for good.
//!
//! **Invariants.** A request is answered exactly once. An answer `Ok` to a flush or a forced write means the bytes survive a
//! power cut, as far as the target says the truth; after a reconnect to a target that cannot prove it is still the same
//! machine, a flush fails rather than promise what may be lost. No write is sent again over a new connection without asking
//! [`OpenOptions::resend_ok`]. Nothing waits for ever.
//!
//! **What it does not do.** It knows no volumes, slots or locks, and caches nothing: a read goes to the target each time.
//! It does not decide who may write; it can only cut off whom it is told to.
#![deny(unsafe_op_in_unsafe_fn)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

mod aligned;
pub mod faulty;
pub mod file;
mod gate;
mod linger;
pub mod memory;
mod nbd;
pub mod recording;
pub mod serve;
mod spec;
mod stream;

pub use aligned::AlignedBuf;
pub use gate::{Gate, boottime_ms};
pub use linger::linger;
pub use spec::LunSpec;

/// The block size of everything above this crate; offsets and lengths of [`Disk`] calls are multiples of it.
pub const BLOCK_BYTES: u64 = 4096;

/// What can go wrong with a LUN.
#[derive(Debug, thiserror::Error)]
pub enum LunError {
    /// A request failed at the LUN or on the way to it.
    #[error("{op} at byte {offset} failed: {source}")]
    Io {
        /// What was attempted: `read`, `write`, `flush`, `discard`, `write zeroes`, `open`, ...
        op: &'static str,
        /// The byte offset on the LUN (0 where there is none).
        offset: u64,
        /// What the system or the target said.
        source: io::Error,
    },
    /// The LUN works, but must not be used like this: read-only, not coherent, too small, fenced.
    #[error("{0}")]
    Refused(String),
    /// The LUN was there and is not any more; what was in flight is uncertain.
    #[error("{0}")]
    Gone(String),
    /// The caller asked for something that makes no sense: a bad LUN string, a request out of bounds.
    #[error("{0}")]
    Usage(String),
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, LunError>;

impl LunError {
    /// An [`LunError::Io`] from its parts.
    pub fn io(op: &'static str, offset: u64, source: impl Into<io::Error>) -> Self {
        Self::Io { op, offset, source: source.into() }
    }

    /// The errno a system call would answer with for this error.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Refused(_) => libc::EPERM,
            Self::Gone(_) => libc::EIO,
            Self::Usage(_) => libc::EINVAL,
        }
    }

    /// A second copy of the same error, for the several requests that one broken connection fails.
    pub fn duplicate(&self) -> Self {
        match self {
            Self::Io { op, offset, source } => {
                let source = match source.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(source.kind(), source.to_string()),
                };
                Self::Io { op, offset: *offset, source }
            }
            Self::Refused(text) => Self::Refused(text.clone()),
            Self::Gone(text) => Self::Gone(text.clone()),
            Self::Usage(text) => Self::Usage(text.clone()),
        }
    }
}

/// What a LUN is and what it can do. Asked for, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Usable size in bytes (a multiple of 4096; a ragged end is not used).
    pub size_bytes: u64,
    /// The smallest unit the LUN wants for offsets and lengths.
    pub block_bytes: u32,
    /// The largest single request; longer ones are split here, callers need not care.
    pub max_io_bytes: u32,
    /// A single write can be forced to stable storage.
    pub can_fua: bool,
    /// Flush is understood; without it the target promises that answered means durable.
    pub can_flush: bool,
    /// Discard gives space back.
    pub can_trim: bool,
    /// Write-zeroes works without sending zeroes.
    pub can_write_zeroes: bool,
    /// Several connections see each other's writes, and a flush on one covers all (local files: always).
    pub multi_conn: bool,
    /// Writes will be refused.
    pub read_only: bool,
}

impl Geometry {
    /// That of a disk of `size_bytes` that can do everything: in memory, or simulated.
    pub const fn able(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            block_bytes: 512,
            max_io_bytes: 32 << 20,
            can_fua: true,
            can_flush: true,
            can_trim: true,
            can_write_zeroes: true,
            multi_conn: true,
            read_only: false,
        }
    }
}

/// How far a write must have got before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Visible to every reader; durable after the next flush.
    Plain,
    /// Durable when answered.
    Forced,
}

/// The synchronous door: positional, `&self`, on the caller's thread. Offsets and lengths are multiples of 4096.
pub trait Disk: Send + Sync {
    /// What the LUN is and can do.
    fn geometry(&self) -> Geometry;

    /// The LUN string for messages.
    fn describe(&self) -> String;

    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()>;

    /// Writes `bufs` one after the other, contiguous on disk from `offset`.
    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64, durability: Durability) -> Result<()> {
        let mut joined = Vec::with_capacity(bufs.iter().map(|part| part.len()).sum());
        for part in bufs {
            joined.extend_from_slice(part);
        }
        self.write_at(&joined, offset, durability)
    }

    /// Why this LUN can never be used again through this door, if that is known: every request fails from then on.
    fn gone(&self) -> Option<LunError> {
        None
    }

    /// Whether it is certain that nothing handed over here lands later. For a host that was shut out and says so.
    fn is_drained(&self) -> bool {
        false
    }

    /// Makes everything durable that was answered before this call.
    fn flush(&self) -> Result<()>;

    /// Says that a range is not needed any more; any length; what it reads as afterwards is undefined.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes a range read as zeroes; any length; falls back to writing zeroes.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;
}

/// Runs when a read is answered, with the bytes where they arrived (no copy). They are valid only during the call.
pub type ReadDone = Box<dyn FnOnce(Result<&[u8]>) + Send>;

/// Runs when a write or a flush is answered.
pub type WriteDone = Box<dyn FnOnce(Result<()>) + Send>;

/// The data path: many requests in flight, no threads of its own.
///
/// A completion runs on whichever thread receives, possibly the submitter's own and possibly before the submitting call
/// returns (local disks answer inline, so a chain of completions that submit again is a recursion there). It may submit
/// again; it must not call [`DataQueue::drive`].
pub trait DataQueue: Send + Sync {
    /// Asks for `len` bytes at `offset`.
    fn read(&self, offset: u64, len: u32, done: ReadDone);

    /// Writes `data` at `offset`; the bytes are sent or copied before the call returns.
    fn write(&self, offset: u64, data: &[u8], durability: Durability, done: WriteDone);

    /// Makes everything durable that was answered before this call.
    fn flush(&self, done: WriteDone);

    /// Called by the thread that just submitted: sends what is still buffered, unless `more()` says that another request is
    /// about to be submitted (whoever submits it calls `drive` too). Then, if requests are in flight on a connection where
    /// nobody receives, becomes the receiver and runs completions until nothing is in flight, and returns.
    fn drive(&self, more: &dyn Fn() -> bool);

    /// [`DataQueue::drive`] for a thread that is awaited elsewhere too, for example at `/dev/fuse`: returns as soon as `wake` is
    /// readable, perhaps with requests unsent and in flight. Whoever then takes what made `wake` readable, and be it no
    /// disk request at all, must call this again; that is what keeps the queue moving.
    fn drive_until(&self, wake: BorrowedFd<'_>) {
        self.drive(&|| stream::readable(wake));
    }

    /// Sends whatever is buffered now; does not receive.
    fn kick(&self);

    /// Whether it is certain that nothing handed over here lands later. For a host that was shut out and says so.
    fn is_drained(&self) -> bool {
        false
    }
}

/// An open LUN: both doors to the same bytes.
#[derive(Clone)]
pub struct Lun {
    /// The synchronous door.
    pub disk: Arc<dyn Disk>,
    /// The data path.
    pub queue: Arc<dyn DataQueue>,
}

impl Lun {
    /// A LUN whose data path answers inline through `disk`, for local and test disks.
    pub fn inline(disk: Arc<dyn Disk>) -> Self {
        Self { queue: Arc::new(InlineQueue::new(Arc::clone(&disk))), disk }
    }
}

/// Asked before a write is sent again over a new connection; `false` fails the write with [`LunError::Gone`].
pub type ResendHook = Arc<dyn Fn() -> bool + Send + Sync>;

/// How to open a LUN.
#[derive(Clone)]
pub struct OpenOptions {
    /// Refuse all writes here; the target may be read-only.
    pub read_only: bool,
    /// Use O_DIRECT on files and devices where possible (needed when several hosts share a device).
    pub direct: bool,
    /// The identity told to `luna serve`: `NAME` or `NAME#INCARNATION`; other targets are not told.
    pub client_name: Option<String>,
    /// Refuse a target that does not promise coherence between connections, or is read-only: a shared mount needs this.
    pub need_multi_conn: bool,
    /// Connections of the data path; 0 chooses (see `nbd`). One only where the target does not promise coherence.
    pub connections: usize,
    /// How long to try to come back after a connection broke, before everything in flight fails.
    pub reconnect: Duration,
    /// How long one connection attempt or handshake may take.
    pub connect_timeout: Duration,
    /// How long the target may be silent while requests are in flight, before the connection counts as broken.
    pub request_timeout: Duration,
    /// Membership re-check before a write is sent again; `None` always allows.
    pub resend_ok: Option<ResendHook>,
    /// Asked before anything is handed over, and after what is to be durable; `None` is always open.
    pub gate: Option<Arc<Gate>>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            direct: true,
            client_name: None,
            need_multi_conn: false,
            connections: 0,
            reconnect: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            resend_ok: None,
            gate: None,
        }
    }
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenOptions")
            .field("read_only", &self.read_only)
            .field("direct", &self.direct)
            .field("client_name", &self.client_name)
            .field("need_multi_conn", &self.need_multi_conn)
            .field("connections", &self.connections)
            .field("reconnect", &self.reconnect)
            .finish_non_exhaustive()
    }
}

/// Opens a LUN.
pub fn open(spec: &LunSpec, options: &OpenOptions) -> Result<Lun> {
    let lun = match spec {
        LunSpec::Path(path) => Lun::inline(Arc::new(file::FileDisk::open(path, options)?)),
        LunSpec::Nbd { .. } | LunSpec::NbdUnix { .. } => nbd::open(spec, options)?,
        LunSpec::Iscsi { .. } => {
            return Err(LunError::Refused(format!(
                "{spec}: iSCSI is not in this build yet; log in with iscsiadm and give the block device (/dev/disk/by-id/...) instead"
            )));
        }
    };
    Ok(match &options.gate {
        Some(gate) => gate.guard(lun),
        None => lun,
    })
}

/// Refuses a request that does not lie inside the LUN; shared by every disk here.
pub(crate) fn check_range(describe: impl FnOnce() -> String, size_bytes: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(LunError::Usage(format!("{}: {len} bytes at byte {offset} lie outside the LUN of {size_bytes} bytes", describe()))),
    }
}

/// A data path over any [`Disk`] that answers each request inline, on the thread that submits it.
///
/// For local files this is the fastest form measured here: the hop to a ring or a pool costs more than the call.
pub struct InlineQueue {
    disk: Arc<dyn Disk>,
}

impl InlineQueue {
    /// A queue that answers through `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }
}

thread_local! {
    static INLINE_BUFFER: std::cell::RefCell<AlignedBuf> = const { std::cell::RefCell::new(AlignedBuf::empty()) };
}

impl DataQueue for InlineQueue {
    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        // The buffer is taken out for the call, so that a completion that reads again finds none and makes its own.
        let mut buffer = INLINE_BUFFER.take();
        buffer.grow(len as usize);
        let target = &mut buffer.bytes_mut()[..len as usize];
        match self.disk.read_at(target, offset) {
            Ok(()) => done(Ok(target)),
            Err(error) => done(Err(error)),
        }
        INLINE_BUFFER.replace(buffer);
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability, done: WriteDone) {
        done(self.disk.write_at(data, offset, durability));
    }

    fn flush(&self, done: WriteDone) {
        done(self.disk.flush());
    }

    fn drive(&self, _more: &dyn Fn() -> bool) {}

    fn kick(&self) {}
}
