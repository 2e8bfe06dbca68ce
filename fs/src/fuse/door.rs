//! Requests in, operations run, replies out.
//!
//! A request is first tried on the thread that read it, without waiting; what would wait moves to the pool with what it has
//! learnt. Every handler ends by driving the LUN's queue, because the thread that took a request is the one that receives.
//!
//! Invariant: each request gets one reply. Not here: anything that decides.

use super::convert::{self, attr, errno, inside, outside, when};
use super::locks::{self, Owners, Waiting, Wanted};
use super::remember::Remember;
use crate::data::WriteHow;
use crate::error::{FsError, Step, Stop};
use crate::op::{self, Attr, Cred, SetAttr};
use crate::open::{How, OpenFile};
use crate::system::Fs;
use crate::tx::Tx;
use crate::volume::{Needs, Ran, Wait};
use crate::xattr;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use luna_dlm::Mode;
use luna_format::Ino;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// The kernel remembers nothing on its own.
const NOW: Duration = Duration::ZERO;
/// Directory entries read at once.
const DIR_PAGE: usize = 256;

/// Serves one mount.
pub(super) struct Door {
    fs: Arc<Fs>,
    waiting: Arc<Waiting>,
    owners: Owners,
    remember: Arc<Remember>,
    root: Ino,
}

/// Whether nobody but this host can change the inode's attributes now.
fn steady(tx: &Tx<'_>, ino: Ino) -> bool {
    tx.has(&crate::names::inode(ino), Mode::Pr)
}

fn cred(req: &Request, umask: u32) -> Cred {
    Cred { uid: req.uid(), gid: req.gid(), groups: None, umask }
}

impl Door {
    pub(super) fn new(fs: &Arc<Fs>, remember: &Arc<Remember>) -> Self {
        let (remember, root) = (Arc::clone(remember), fs.volume.sb.root_ino);
        Self { fs: Arc::clone(fs), waiting: Arc::default(), owners: Owners::default(), remember, root }
    }

    /// Runs an operation here if it need not wait, else in the pool; then `done`.
    fn op<T: Send + 'static>(
        &self,
        mut body: impl FnMut(&mut Tx<'_>) -> Step<T> + Send + 'static,
        done: impl FnOnce(&Arc<Fs>, Result<T, FsError>) + Send + 'static,
    ) {
        let mut needs = Needs::new();
        match self.fs.volume.run_with(&mut needs, Wait::No, &mut body) {
            Ok(Ran::Done(v, _)) => done(&self.fs, Ok(v)),
            Err(e) => done(&self.fs, Err(e)),
            Ok(Ran::WouldWait) => {
                let fs = Arc::clone(&self.fs);
                self.fs.pool.spawn(move || {
                    let got = match fs.volume.run_with(&mut needs, Wait::Yes, body) {
                        Ok(Ran::Done(v, _)) => Ok(v),
                        Ok(Ran::WouldWait) => Err(FsError::WouldBlock),
                        Err(e) => Err(e),
                    };
                    done(&fs, got);
                });
            }
        }
        self.fs.drive();
    }

    /// Runs `work` here without waiting, if it may take as long as the disk and does not have to wait; else in the pool.
    fn work<T: Send + 'static>(
        &self,
        inline: bool,
        work: impl Fn(&Arc<Fs>, Wait) -> Result<Option<T>, FsError> + Send + 'static,
        done: impl FnOnce(&Arc<Fs>, Result<T, FsError>) + Send + 'static,
    ) {
        let here = if inline { work(&self.fs, Wait::No).transpose() } else { None };
        match here {
            Some(got) => done(&self.fs, got),
            None => {
                let fs = Arc::clone(&self.fs);
                self.fs.pool.spawn(move || {
                    let got = work(&fs, Wait::Yes).and_then(|v| v.ok_or(FsError::WouldBlock));
                    done(&fs, got);
                });
            }
        }
        self.fs.drive();
    }

    /// Answers at once. The thread that came with this request may have left others under way for it, so it must go back to them:
    /// a write was forgotten for ever when the next request was an opendir that fuser answered by itself.
    fn at_once(&self, answer: impl FnOnce()) {
        answer();
        self.fs.drive();
    }

    fn entry(&self, mut body: impl FnMut(&mut Tx<'_>) -> Step<Attr> + Send + 'static, reply: ReplyEntry) {
        let (root, remember) = (self.root, Arc::clone(&self.remember));
        self.op(
            move |tx| body(tx).map(|a| (a, remember.promise(a.ino, steady(tx, a.ino)))),
            move |fs, got| match got {
                Ok((a, valid)) => {
                    reply.entry_with_ttls(&valid, &NOW, &attr(&fs.freshen(a), root), convert::generation(&a));
                }
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn empty(&self, body: impl FnMut(&mut Tx<'_>) -> Step<()> + Send + 'static, reply: ReplyEmpty) {
        self.op(body, move |_, got| match got {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn file(&self, fh: FileHandle) -> Option<Arc<OpenFile>> {
        self.fs.files.get(fh.0)
    }

    fn wanted(&self, req: &Request, ino: INodeNo, owner: LockOwner, range: (u64, u64), typ: i32, pid: u32) -> Wanted {
        let ino = inside(ino, self.root);
        Wanted { ino, owner: owner.0, start: range.0, end: range.1, typ, pid, tid: req.pid() }
    }

    fn xattr(&self, size: u32, body: impl FnMut(&mut Tx<'_>) -> Step<Vec<u8>> + Send + 'static, reply: ReplyXattr) {
        self.op(body, move |_, got| match got {
            Ok(v) if size == 0 => reply.size(v.len() as u32),
            Ok(v) if v.len() <= size as usize => reply.data(&v),
            Ok(_) => reply.error(Errno::from_i32(libc::ERANGE)),
            Err(e) => reply.error(errno(&e)),
        });
    }
}

/// How the kernel is to treat a handle.
fn fopen_flags(how: &How) -> FopenFlags {
    if how.cached { FopenFlags::empty() } else { FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES }
}

/// Size and attributes of a file, one after the other.
fn change(fs: &Arc<Fs>, ino: Ino, size: Option<u64>, set: &SetAttr, cred: &Cred, wait: Wait) -> Result<Option<Attr>, FsError> {
    if let Some(size) = size {
        let node = fs.nodes.take(ino, &fs.volume.locks);
        if fs.truncate(&node, size, cred.uid != 0, wait)?.is_none() {
            return Ok(None);
        }
    }
    let ran = if *set == SetAttr::default() {
        fs.volume.run_with(&mut Needs::new(), wait, |tx| op::getattr(tx, ino))?
    } else {
        fs.volume.run_with(&mut Needs::new(), wait, |tx| op::setattr(tx, ino, set, cred))?
    };
    Ok(match ran {
        Ran::Done(a, _) => Some(a),
        Ran::WouldWait => None,
    })
}

/// Opens in the pool, where it may wait.
fn open_later(fs: &Arc<Fs>, a: Attr, how: How, done: impl FnOnce(&Arc<Fs>, Result<(Attr, Arc<OpenFile>), FsError>) + Send + 'static) {
    let theirs = Arc::clone(fs);
    fs.pool.spawn(move || {
        let opened = theirs.open(a.ino, how, Wait::Yes).and_then(|o| o.ok_or(FsError::WouldBlock));
        done(&theirs, opened.map(|f| (a, f)));
    });
}

/// A file that open(2) meant to create was there already. The kernel thinks it is new and does not look at its permissions, so
/// they are looked at here; of the caller's groups only the first is known.
fn found(a: Attr, flags: i32, cred: &Cred) -> Step<Attr> {
    if a.mode & op::S_IFMT != op::S_IFREG {
        return Err(if op::is_dir(a.mode) { FsError::IsDir } else { FsError::Exists }.into());
    }
    let access = flags & libc::O_ACCMODE;
    let writes = access != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
    let wanted = u32::from(access != libc::O_WRONLY) * 4 + u32::from(writes) * 2;
    let shift = if cred.uid == a.uid { 6 } else { 3 * u32::from(cred.gid == a.gid) };
    let allowed = cred.uid == 0 || a.mode >> shift & wanted == wanted;
    if allowed { Ok(a) } else { Err(FsError::Access.into()) }
}

impl Filesystem for Door {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DONT_MASK,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::info!(?missing, "the kernel lacks a FUSE feature");
            }
        }
        let _ = config.set_max_write(1 << 20);
        if let Err(most) = config.set_max_readahead(1 << 20) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(256);
        let _ = config.set_congestion_threshold(192);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (inside(parent, self.root), name.as_bytes().to_vec());
        self.entry(move |tx| op::lookup(tx, parent, &name), reply);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (ino, root) = (inside(ino, self.root), self.root);
        // shared writers on several hosts must not take each other's lock for a look at the attributes
        let held = self.fs.nodes.find(ino).map(|n| n.handle.mode()).filter(|m| m.covers(Mode::Cr) && !m.covers(Mode::Pr));
        let mut first = Needs::new();
        if held.is_some() {
            first.insert(crate::names::inode(ino), Mode::Cr);
        }
        let remember = Arc::clone(&self.remember);
        let body = move |tx: &mut Tx<'_>| op::getattr(tx, ino).map(|a| (a, remember.promise(ino, steady(tx, ino))));
        let answer = move |fs: &Arc<Fs>, reply: ReplyAttr, (a, valid): (Attr, Duration)| reply.attr(&valid, &attr(&fs.freshen(a), root));
        if let Ok(Ran::Done(got, _)) = self.fs.volume.run_with(&mut first, Wait::No, &body) {
            answer(&self.fs, reply, got);
            return self.fs.drive();
        }
        self.op(body, move |fs, got| match got {
            Ok(got) => answer(fs, reply, got),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.remember.forget(inside(ino, self.root));
        // no reply, but whoever takes a request keeps the queue moving
        self.fs.drive();
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (ino, root, cred) = (inside(ino, self.root), self.root, cred(req, 0));
        let ctime = ctime.map(|t| op::When::Set(convert::nanos(t)));
        let set = SetAttr { mode, uid, gid, atime: atime.map(when), mtime: mtime.map(when), ctime };
        let inline = size.is_none() || self.fs.may_block();
        self.work(
            inline,
            move |fs, wait| change(fs, ino, size, &set, &cred, wait),
            move |fs, got| match got {
                Ok(a) => reply.attr(&NOW, &attr(&fs.freshen(a), root)),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = inside(ino, self.root);
        self.op(
            move |tx| op::readlink(tx, ino),
            move |_, got| match got {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let (parent, name, cred) = (inside(parent, self.root), name.as_bytes().to_vec(), cred(req, umask));
        self.entry(move |tx| op::create(tx, parent, &name, mode, rdev, &cred), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (parent, name, cred) = (inside(parent, self.root), name.as_bytes().to_vec(), cred(req, umask));
        self.entry(move |tx| op::mkdir(tx, parent, &name, mode, &cred), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (inside(parent, self.root), name.as_bytes().to_vec());
        self.empty(move |tx| op::unlink(tx, parent, &name), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (inside(parent, self.root), name.as_bytes().to_vec());
        self.empty(move |tx| op::rmdir(tx, parent, &name), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (parent, name, cred) = (inside(parent, self.root), link_name.as_bytes().to_vec(), cred(req, 0));
        let target = target.as_os_str().as_bytes().to_vec();
        self.entry(move |tx| op::symlink(tx, parent, &name, &target, &cred), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (parent, name) = (inside(parent, self.root), name.as_bytes().to_vec());
        let (newparent, newname, flags) = (inside(newparent, self.root), newname.as_bytes().to_vec(), flags.bits());
        self.empty(move |tx| op::rename(tx, parent, &name, newparent, &newname, flags), reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (ino, parent, name) = (inside(ino, self.root), inside(newparent, self.root), newname.as_bytes().to_vec());
        self.entry(move |tx| op::link(tx, ino, parent, &name), reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (ino, how) = (inside(ino, self.root), How::from_flags(flags.0));
        self.work(
            true,
            move |fs, wait| fs.open(ino, how, wait),
            move |fs, got| match got {
                Ok(file) => reply.opened(FileHandle(fs.files.insert(file)), fopen_flags(&how)),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let (parent, name, cred) = (inside(parent, self.root), name.as_bytes().to_vec(), cred(req, umask));
        let (root, how) = (self.root, How::from_flags(flags));
        let done = move |fs: &Arc<Fs>, got: Result<(Attr, Arc<OpenFile>), FsError>| match got {
            Ok((a, file)) => {
                let fh = FileHandle(fs.files.insert(file));
                reply.created(&NOW, &attr(&a, root), convert::generation(&a), fh, fopen_flags(&how));
            }
            Err(e) => reply.error(errno(&e)),
        };
        // another host may have made it since the kernel looked
        let body = move |tx: &mut Tx<'_>| {
            if flags & libc::O_EXCL == 0 {
                match op::lookup(tx, parent, &name) {
                    Ok(a) => return found(a, flags, &cred).map(|a| (a, false)),
                    Err(Stop::Error(FsError::NotFound)) => {}
                    Err(e) => return Err(e),
                }
            }
            op::create(tx, parent, &name, mode, 0, &cred).map(|a| (a, true))
        };
        self.op(body, move |fs, got| match got {
            Err(e) => done(fs, Err(e)),
            Ok((a, true)) => match fs.open(a.ino, how, Wait::No).transpose() {
                Some(opened) => done(fs, opened.map(|f| (a, f))),
                None => open_later(fs, a, how, done),
            },
            Ok((a, false)) if flags & libc::O_TRUNC == 0 => open_later(fs, a, how, done),
            Ok((a, false)) => {
                let theirs = Arc::clone(fs);
                fs.pool.spawn(move || match change(&theirs, a.ino, Some(0), &SetAttr::default(), &Cred::default(), Wait::Yes) {
                    Ok(now) => open_later(&theirs, now.unwrap_or(a), how, done),
                    Err(e) => done(&theirs, Err(e)),
                });
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(fh) else { return self.at_once(|| reply.error(Errno::EBADF)) };
        self.fs.read(&file, offset, size, move |got: Result<&[u8], FsError>| match got {
            Ok(bytes) => reply.data(bytes),
            Err(e) => reply.error(errno(&e)),
        });
        self.fs.drive();
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let page = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let file = self.file(fh).filter(|f| f.ino() == inside(ino, self.root));
        let Some(file) = file else { return self.at_once(|| reply.error(Errno::EBADF)) };
        let how = WriteHow { page, kill: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) };
        self.fs.write(&file, offset, data, how, move |got: Result<u32, FsError>| match got {
            Ok(n) => reply.written(n),
            Err(e) => reply.error(errno(&e)),
        });
        self.fs.drive();
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        match self.file(fh) {
            Some(file) => {
                self.owners.forget(file.ino(), fh.0, lock_owner.0);
                locks::release(&self.fs, &file.node, lock_owner.0, move || reply.ok());
            }
            None => reply.error(Errno::EBADF),
        }
        self.fs.drive();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // what flock(2) locked is among the handle's owners
        if let Some(file) = self.file(fh) {
            for owner in self.owners.end(file.ino(), fh.0) {
                locks::release(&self.fs, &file.node, owner, || ());
            }
        }
        if let Some(file) = self.fs.files.remove(fh.0) {
            self.fs.close(file);
        }
        reply.ok();
        self.fs.drive();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let Some(file) = self.file(fh) else { return self.at_once(|| reply.error(Errno::EBADF)) };
        self.work(
            self.fs.may_block(),
            move |fs, _| fs.sync_node(&file.node, datasync).map(Some),
            move |_, got| match got {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.at_once(|| reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.at_once(|| reply.ok());
    }

    // What is not here is refused all the same by this file, not by fuser: whoever takes a request keeps the queue moving.

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.at_once(|| reply.error(Errno::ENOSYS));
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        self.at_once(|| reply.error(Errno::ENOSYS));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.at_once(|| reply.error(Errno::ENOSYS));
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.at_once(|| reply.error(Errno::ENOSYS));
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: u64, reply: ReplyDirectoryPlus) {
        self.at_once(|| reply.error(Errno::ENOSYS));
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (ino, root) = (inside(ino, self.root), self.root);
        self.op(
            move |tx| op::readdir(tx, ino, offset, DIR_PAGE),
            move |_, got| match got {
                Err(e) => reply.error(errno(&e)),
                Ok(entries) => {
                    let mut at = offset;
                    for (n, e) in entries.iter().enumerate() {
                        // a page must not end between entries of one position: going on from the last whole one repeats, never skips
                        let last = entries.get(n + 1).is_none_or(|next| next.cookie != e.cookie);
                        let cookie = if last { e.cookie } else { at };
                        let kind = convert::kind(u32::from(e.kind) << 12);
                        if reply.add(INodeNo(outside(e.ino, root)), cookie, kind, OsStr::from_bytes(&e.name)) {
                            break;
                        }
                        if last {
                            at = e.cookie;
                        }
                    }
                    reply.ok();
                }
            },
        );
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let ino = inside(ino, self.root);
        self.work(
            self.fs.may_block(),
            move |fs, _| fs.sync_dir(ino).map(Some),
            move |_, got| match got {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let t = crate::alloc::statfs(&self.fs.volume);
        let data = t.free.saturating_sub(t.free_meta);
        reply.statfs(t.blocks, t.free, data, t.blocks, t.free, 4096, 255, 4096);
        self.fs.drive();
    }

    fn setxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        let (ino, name, value) = (inside(ino, self.root), name.as_bytes().to_vec(), value.to_vec());
        self.empty(move |tx| xattr::set(tx, ino, &name, &value, flags as u32), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (ino, name) = (inside(ino, self.root), name.as_bytes().to_vec());
        self.xattr(size, move |tx| xattr::get(tx, ino, &name), reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = inside(ino, self.root);
        self.xattr(size, move |tx| xattr::list(tx, ino), reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (ino, name) = (inside(ino, self.root), name.as_bytes().to_vec());
        self.empty(move |tx| xattr::remove(tx, ino, &name), reply);
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        locks::get(&self.fs, &self.wanted(req, ino, lock_owner, (start, end), typ, pid), reply);
        self.fs.drive();
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(file) = self.file(fh) else { return self.at_once(|| reply.error(Errno::EBADF)) };
        let wanted = self.wanted(req, ino, lock_owner, (start, end), typ, pid);
        if typ != libc::F_UNLCK {
            self.owners.note(file.ino(), fh.0, lock_owner.0);
        }
        locks::set(&self.fs, &self.waiting, &file.node, &wanted, sleep, reply);
        self.fs.drive();
    }

    fn fallocate(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let Some(file) = self.file(fh) else { return self.at_once(|| reply.error(Errno::EBADF)) };
        self.work(
            false,
            move |fs, wait| fs.fallocate(&file.node, mode, offset, length, wait),
            move |_, got| match got {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(file) = self.file(fh) else { return self.at_once(|| reply.error(Errno::EBADF)) };
        let (Ok(offset), libc::SEEK_DATA | libc::SEEK_HOLE) = (u64::try_from(offset), whence) else {
            return self.at_once(|| reply.error(if offset < 0 { Errno::ENXIO } else { Errno::EINVAL }));
        };
        self.work(
            self.fs.may_block(),
            move |fs, wait| fs.seek_wait(&file.node, offset, whence == libc::SEEK_DATA, wait),
            move |_, got| match got {
                Ok(at) => reply.offset(at as i64),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (Some(from), Some(to)) = (self.file(fh_in), self.file(fh_out)) else { return self.at_once(|| reply.error(Errno::EBADF)) };
        self.work(
            false,
            move |fs, _| fs.copy_range((&from, offset_in), (&to, offset_out), len).map(Some),
            move |_, got| match got {
                Ok(n) => reply.written(n as u32),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }

    fn destroy(&mut self) {
        self.fs.stopping.store(true, Ordering::Release);
    }
}
