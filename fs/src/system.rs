//! One mounted file system on one host, wired: the volume, open files, workers, and what is told to whom.
//!
//! Invariant: the data path needs nothing of this but its `Arc`s; everything that waits goes to the pool. Not here: the
//! operations (`op`), the transfers (`data`), FUSE (`fuse`).

use crate::error::{FsError, Step};
use crate::names;
use crate::op::{self, Attr};
use crate::open::{Files, How, NodeRef, Nodes, OpenFile};
use crate::pool::Pool;
use crate::tx::{Effect, Tx};
use crate::volume::{Listener, Needs, Ran, Volume, Wait};
use luna_dlm::{Mode, PosixClient};
use luna_format::Ino;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Told the inodes that may be reaped now: no name, not open here any more. Quick; called under the metadata mutex.
pub type WakeReaper = Arc<dyn Fn(Ino) + Send + Sync>;

/// What the mounted file system counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads and writes that went to the LUN at once.
    pub fast: AtomicU64,
    /// Transfers that needed metadata, several pieces, or waited inside the host.
    pub slow: AtomicU64,
    /// Transfers that waited for a lock.
    pub parked: AtomicU64,
    /// Times the kernel's pages of an inode were emptied before a lock was given back.
    pub revokes: AtomicU64,
    /// Passes that took.
    pub passes: AtomicU64,
}

/// A transport's part: how the kernel is told to forget pages of an inode (offset, length; length 0 = to the end).
pub(crate) type Invalidate = Box<dyn Fn(Ino, u64, u64) -> std::io::Result<()> + Send + Sync>;

/// See the module's text.
pub struct Fs {
    /// The volume.
    pub volume: Arc<Volume>,
    /// Byte-range and whole-file locks.
    pub posix: Arc<PosixClient>,
    /// Counters.
    pub counters: Arc<Counters>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) files: Files,
    pub(crate) pool: Arc<Pool>,
    /// Asynchronous transfers that are not answered yet.
    pub(crate) in_flight: AtomicU32,
    pub(crate) stopping: AtomicBool,
    pub(crate) nudger: Arc<crate::revoke::Nudger>,
    pub(crate) invalidate: OnceLock<Invalidate>,
    /// Readable when another request waits at the door.
    pub(crate) door: OnceLock<OwnedFd>,
    wake_reaper: WakeReaper,
    syncer: parking_lot::Mutex<Option<crate::syncer::Syncer>>,
}

/// What the volume tells about committed transactions. Holds no volume, so that nothing keeps itself alive.
struct Ears {
    nodes: Arc<Nodes>,
    wake_reaper: WakeReaper,
    alarm: Arc<crate::syncer::Alarm>,
}

impl Listener for Ears {
    fn crowded(&self) {
        self.alarm.hurry();
    }

    fn committed(&self, effects: &[Effect]) {
        for e in effects {
            match *e {
                Effect::Map { ino, start, end } => {
                    if let Some(n) = self.nodes.find(ino) {
                        let mut v = n.view.write();
                        v.map.forget(start, end);
                        // it has blocks now, or a size to look at again
                        v.loaded &= !v.small;
                    }
                }
                Effect::Inode(ino) => {
                    if let Some(n) = self.nodes.find(ino) {
                        n.view.write().loaded = false;
                    }
                }
                Effect::Size { ino, size } => {
                    if let Some(n) = self.nodes.find(ino) {
                        n.view.write().size = size;
                    }
                }
                Effect::Orphan(ino) => {
                    let open = self.nodes.find(ino).is_some_and(|n| {
                        let mut o = n.opens.lock();
                        o.orphan = true;
                        o.total > 0
                    });
                    if !open {
                        (self.wake_reaper)(ino);
                    }
                }
                Effect::Gone(ino) => {
                    if let Some(n) = self.nodes.find(ino) {
                        n.clear();
                    }
                }
            }
        }
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.nodes.find(ino).is_some_and(|n| n.opens.lock().total > 0)
    }
}

impl Fs {
    /// Wires a file system over `volume`. Then: `volume.locks.set_hooks(fs.hooks())`, mount. Over a driven volume no thread is
    /// started: whoever drives it calls [`Fs::round`] now and then.
    pub fn new(volume: Arc<Volume>, posix: Arc<PosixClient>, wake_reaper: WakeReaper) -> Arc<Self> {
        let threads = volume.machine.clone().map(|m| m as Arc<dyn luna_dlm::Threads>);
        let driven = threads.is_some();
        let nodes = Arc::new(Nodes::on(threads.clone()));
        let alarm = Arc::<crate::syncer::Alarm>::default();
        volume.listen(Arc::new(Ears { nodes: Arc::clone(&nodes), wake_reaper: Arc::clone(&wake_reaper), alarm: Arc::clone(&alarm) }));
        let fs = Arc::new(Self {
            volume,
            posix,
            counters: Arc::default(),
            nodes,
            files: Files::default(),
            pool: Arc::new(Pool::on(threads)),
            in_flight: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            nudger: Arc::default(),
            invalidate: OnceLock::new(),
            door: OnceLock::new(),
            wake_reaper,
            syncer: parking_lot::Mutex::new(None),
        });
        if !driven {
            *fs.syncer.lock() = crate::syncer::start(&fs, alarm);
        }
        fs
    }

    /// What the lock cache is to call when rights come and go.
    pub fn hooks(self: &Arc<Self>) -> Arc<dyn luna_dlm::Hooks> {
        crate::revoke::hooks(self)
    }

    /// Sends what is submitted and receives what is answered; at the end of every request.
    pub(crate) fn drive(&self) {
        match self.door.get() {
            Some(fd) => {
                self.volume.queue.drive_until(fd.as_fd());
                luna_lun::linger(fd.as_fd());
            }
            None => self.volume.queue.drive(&|| false),
        }
    }

    /// Goes on with what nobody waits for. A FUSE thread leaves requests under way when the next one is there; the few that fuser answers
    /// itself (INTERRUPT, and what it does not know) do not bring the thread back to them.
    pub(crate) fn drive_forgotten(&self) {
        if let Some(fd) = self.door.get() {
            self.volume.queue.drive_until(fd.as_fd());
        }
    }

    fn has_more(&self) -> bool {
        self.door.get().is_some_and(|fd| {
            let mut fds = [PollFd::new(fd, PollFlags::IN)];
            matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1)) && fds[0].revents().contains(PollFlags::IN)
        })
    }

    /// Whether this (FUSE) thread may do something that takes as long as the disk: nobody else waits for it.
    pub(crate) fn may_block(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && !self.has_more()
    }

    /// Runs an operation that may wait.
    pub fn run<T>(&self, body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> Result<T, FsError> {
        self.volume.run(body)
    }

    /// Attributes with the times of data writes that are not in the inode yet, here or elsewhere.
    pub(crate) fn freshen(&self, mut a: Attr) -> Attr {
        if a.mode & op::S_IFMT == op::S_IFREG {
            let pending = self.nodes.find(a.ino).map_or(0, |n| n.pending_mtime.load(Ordering::Acquire));
            let told = i64::try_from(self.volume.locks.value(&names::inode(a.ino))[0]).unwrap_or(0);
            let newest = pending.max(told);
            // an older one was overtaken by a change of the inode, which may have set the time on purpose
            if newest > a.ctime_ns {
                (a.mtime_ns, a.ctime_ns) = (newest, newest);
            }
        }
        a
    }

    /// Opens a file for I/O. `None`: it would wait, and must not.
    pub(crate) fn open(self: &Arc<Self>, ino: Ino, how: How, wait: Wait) -> Result<Option<Arc<OpenFile>>, FsError> {
        let node = self.nodes.take(ino, &self.volume.locks);
        if !self.enter(&node, wait)? {
            return Ok(None);
        }
        let entered = node.revoke.while_calm(wait == Wait::Yes, || {
            node.cached.fetch_add(u32::from(how.cached), Ordering::AcqRel);
            node.writers.fetch_add(u32::from(how.cached && how.write), Ordering::AcqRel);
        });
        if entered.is_none() {
            self.leave(node);
            return Ok(None);
        }
        Ok(Some(Arc::new(OpenFile { node, how })))
    }

    /// Counts one more handle; the first one takes the open right, in lock order together with a look at the inode.
    fn enter(&self, node: &NodeRef, wait: Wait) -> Result<bool, FsError> {
        let open = self.volume.locks.handle(&names::open(node.ino));
        for attempt in 0..1000 {
            {
                let mut o = node.opens.lock();
                if o.hold.is_some() {
                    o.total += 1;
                    return Ok(true);
                }
            }
            let mut needs = Needs::from([(names::inode(node.ino), Mode::Pr), (names::open(node.ino), Mode::Pr)]);
            let body = |tx: &mut Tx<'_>| {
                let i = crate::inode::get(tx, node.ino)?;
                if i.mode & op::S_IFMT == op::S_IFDIR {
                    return Err(FsError::IsDir.into());
                }
                if i.flags & luna_format::inode::FLAG_REAPING != 0 {
                    return Err(FsError::Stale.into());
                }
                let hold = open.try_hold(Mode::Pr);
                // counted under the metadata mutex, so that this host's reaper sees it (`Listener::is_open`)
                let mut o = node.opens.lock();
                o.total += u32::from(hold.is_some());
                o.orphan |= i.nlink == 0;
                drop(o);
                Ok(hold)
            };
            match self.volume.run_with(&mut needs, wait, body)? {
                Ran::WouldWait => return Ok(false),
                Ran::Done(Some(hold), _) => {
                    let mut o = node.opens.lock();
                    o.hold.get_or_insert(hold);
                    return Ok(true);
                }
                Ran::Done(None, _) if wait == Wait::No => return Ok(false),
                // a reaper wants it: let it look, then look ourselves
                Ran::Done(None, _) => self.volume.sleep(Duration::from_millis(attempt.min(20))),
            }
        }
        Err(FsError::Stale)
    }

    /// Closes a handle.
    pub(crate) fn close(self: &Arc<Self>, file: Arc<OpenFile>) {
        let Ok(file) = Arc::try_unwrap(file).map_err(|shared| {
            // a transfer still names it; the last one out closes
            tracing::debug!(ino = shared.ino(), "handle closed with a transfer under way");
            let fs = Arc::clone(self);
            self.pool.spawn(move || {
                fs.volume.sleep(Duration::from_millis(1));
                fs.close(shared);
            });
        }) else {
            return;
        };
        let OpenFile { node, how } = file;
        node.cached.fetch_sub(u32::from(how.cached), Ordering::AcqRel);
        node.writers.fetch_sub(u32::from(how.cached && how.write), Ordering::AcqRel);
        self.leave(node);
    }

    fn leave(self: &Arc<Self>, node: NodeRef) {
        let last = {
            let mut o = node.opens.lock();
            o.total -= 1;
            o.total == 0
        };
        if !last {
            return;
        }
        let tidy = node.pending_mtime.load(Ordering::Acquire) != 0 || node.ahead.load(Ordering::Acquire);
        if tidy && !node.opens.lock().orphan {
            let fs = Arc::clone(self);
            self.pool.spawn(move || {
                fs.tidy(&node);
                fs.leave_quietly(&node);
            });
        } else {
            self.leave_quietly(&node);
        }
    }

    /// Gives the open right back unless somebody opened it again.
    fn leave_quietly(&self, node: &NodeRef) {
        let mut o = node.opens.lock();
        if o.total > 0 {
            return;
        }
        let hold = o.hold.take();
        let orphan = o.orphan;
        drop(o);
        drop(hold);
        if orphan {
            (self.wake_reaper)(node.ino);
        }
    }

    /// This host was shut out: the kernel forgets every page it has, so that nobody reads what is not true any more. The volume
    /// must be withdrawn before.
    pub fn drop_pages(&self) {
        if let Some(invalidate) = self.invalidate.get() {
            for n in self.nodes.all().iter().filter(|n| n.is_cached()) {
                if let Err(e) = invalidate(n.ino, 0, 0) {
                    tracing::debug!(ino = n.ino, error = %e, "the kernel was not told to forget pages");
                }
            }
        }
    }

    /// Ends the mount: no transfer is under way any more; writes everything home. The lock cache may be withdrawn afterwards.
    pub fn shutdown(self: &Arc<Self>) -> Result<(), FsError> {
        self.stopping.store(true, Ordering::Release);
        if let Some(s) = self.syncer.lock().take() {
            s.stop();
        }
        for f in self.files.remove_all() {
            self.close(f);
        }
        if !self.pool.drain(Duration::from_secs(30)) {
            tracing::warn!("work is still waiting at unmount; it is left behind");
        }
        for n in self.nodes.all() {
            self.write_mtime(&n, Wait::Yes)?;
        }
        self.volume.sync_all()?;
        self.volume.checkpoint()
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("slot", &self.volume.slot).field("counters", &self.counters).finish_non_exhaustive()
    }
}
