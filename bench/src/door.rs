//! A bare FUSE door: one file, mapped 1:1 on a LUN (or answered from memory), and no file system.
//!
//! It is the ceiling for our mount, so it is built as well as we know: the thread that reads a request from `/dev/fuse`
//! submits it, and if no other request waits there, sends the batch, receives what is there and answers FUSE straight from
//! the receive buffer; it waits for the LUN and for `/dev/fuse` at the same time. At depth 1 there is no hop, at depth 32 a
//! send and a receive serve many requests. More than one active thread is slower: they take requests from each other and
//! the batches fall apart.
//!
//! **Invariant.** Every handler ends in `Door::drive`: who took what others saw waiting keeps the queue moving. A guard thread
//! does so in the rare case that a request vanished between the look and the read.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, TimeOrNow,
    WriteFlags,
};
use luna_lun::{DataQueue, Durability, Lun, LunError, LunSpec, OpenOptions};

/// The name of the file behind the door.
pub const FILE: &str = "disk";
/// The largest request; also the kernel's limit without tuning.
const MAX_IO_BYTES: u32 = 1 << 20;
/// Requests that the kernel has outside at most; the library's 16 would cap the depth of direct I/O.
const BACKGROUND: u16 = 256;
/// How often the guard looks.
const GUARD: Duration = Duration::from_millis(20);
const TTL: Duration = Duration::from_secs(3600);
const ROOT: u64 = 1;
const DISK: u64 = 2;

/// What answers.
pub enum Back {
    /// A LUN.
    Lun(Lun),
    /// Nothing: reads give the same bytes, writes go nowhere.
    Memory(Vec<u8>),
}

impl Back {
    /// Opens a LUN.
    pub fn lun(spec: &LunSpec, connections: usize) -> anyhow::Result<Self> {
        Ok(Self::Lun(luna_lun::open(spec, &OpenOptions { connections, ..OpenOptions::default() })?))
    }

    /// A door that answers from memory.
    pub fn memory() -> Self {
        Self::Memory(vec![7; MAX_IO_BYTES as usize])
    }
}

struct Door {
    back: Back,
    size: u64,
    fuse: Arc<OnceLock<OwnedFd>>,
    /// Counts what the FUSE threads do, for the guard.
    turns: Arc<AtomicU64>,
}

fn drive(queue: &dyn DataQueue, fuse: &OwnedFd) {
    queue.drive_until(fuse.as_fd());
}

fn errno(error: &LunError) -> Errno {
    Errno::from_i32(error.errno())
}

impl Door {
    fn drive(&self) {
        let Some(fuse) = self.fuse.get() else { return };
        if let Back::Lun(lun) = &self.back {
            self.turns.fetch_add(1, Ordering::Relaxed);
            drive(&*lun.queue, fuse);
        }
        luna_lun::linger(fuse.as_fd());
    }

    fn attr(&self, ino: u64) -> FileAttr {
        let (kind, perm, size) = if ino == ROOT { (FileType::Directory, 0o755, 0) } else { (FileType::RegularFile, 0o600, self.size) };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Door {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each of these gives the next best value back if the kernel knows a lower limit.
        let _ = config.set_max_write(MAX_IO_BYTES).or_else(|most| config.set_max_write(most));
        let _ = config.set_max_readahead(MAX_IO_BYTES).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND / 4 * 3);
        for flag in [InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_BIG_WRITES, InitFlags::FUSE_MAX_PAGES] {
            // An old kernel without one of them is slower, not wrong.
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent.0 == ROOT && name == FILE {
            reply.entry(&TTL, &self.attr(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
        self.drive();
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino.0));
        self.drive();
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&TTL, &self.attr(ino.0));
        self.drive();
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(1), flags);
        self.drive();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.drive();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match &self.back {
            Back::Memory(_) => reply.ok(),
            Back::Lun(lun) => lun.queue.flush(Box::new(move |result| match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            })),
        }
        self.drive();
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(self.size.saturating_sub(offset).min(u64::from(MAX_IO_BYTES)) as u32);
        match &self.back {
            Back::Memory(bytes) => reply.data(&bytes[..size as usize]),
            Back::Lun(lun) => {
                let done = move |result: luna_lun::Result<&[u8]>| match result {
                    Ok(bytes) => reply.data(bytes),
                    Err(error) => reply.error(errno(&error)),
                };
                lun.queue.read(offset, size, Box::new(done));
            }
        }
        self.drive();
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let count = data.len() as u32;
        match &self.back {
            Back::Memory(_) => reply.written(count),
            Back::Lun(lun) => {
                let done = move |result: luna_lun::Result<()>| match result {
                    Ok(()) => reply.written(count),
                    Err(error) => reply.error(errno(&error)),
                };
                lun.queue.write(offset, data, Durability::Plain, Box::new(done));
            }
        }
        self.drive();
    }
}

/// Mounts the door on `dir` and serves it until it is unmounted.
pub fn serve(dir: &Path, back: Back, threads: usize) -> anyhow::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("luna-bench-door".into())];
    config.n_threads = Some(threads.max(1));
    let fuse = Arc::new(OnceLock::new());
    let turns = Arc::new(AtomicU64::new(0));
    let (size, queue) = match &back {
        Back::Lun(lun) => (lun.disk.geometry().size_bytes, Some(Arc::clone(&lun.queue))),
        Back::Memory(_) => (8 << 30, None),
    };
    let door = Door { back, size, fuse: Arc::clone(&fuse), turns: Arc::clone(&turns) };
    let session = Session::new(door, dir, &config).with_context(|| format!("{} can not be mounted", dir.display()))?;
    // Clones of the descriptor see the same queue of requests.
    let descriptor = Arc::new(session.as_fd().try_clone_to_owned()?);
    let _ = fuse.set(descriptor.try_clone()?);
    if let Some(queue) = queue {
        std::thread::Builder::new().name("guard".into()).spawn(move || {
            // Only when no FUSE thread turned for a whole tick: a guard that becomes the receiver under load stays it, and
            // then every request hops between two threads.
            let mut seen = u64::MAX;
            loop {
                std::thread::sleep(GUARD);
                let now = turns.load(Ordering::Relaxed);
                if now == seen {
                    drive(&*queue, &descriptor);
                }
                seen = now;
            }
        })?;
    }
    session.run()?;
    Ok(())
}
