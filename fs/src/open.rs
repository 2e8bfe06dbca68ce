//! Open files and the per-inode state that lives as long as somebody uses the inode on this host.
//!
//! A [`Node`] is what the data path needs without asking anyone: the lock handle, size and block map, the I/O gate, the
//! modification time not yet written. It is valid only under the inode's lock: it is emptied when the right goes, and
//! corrected by committed transactions. An [`OpenFile`] is what a FUSE handle stands for.
//!
//! Invariants: while a file is open here, this host holds PR on its open name, so no reaper anywhere frees it. `cached` and
//! `writers` change under the revoke mutex only, never while pages are being revoked; so pages can be dirty only under EX.
//! Not here: I/O (`data`), giving rights back (`revoke`).

use crate::data::gate::IoGate;
use crate::data::map::ExtentCache;
use crate::data::right::Revoke;
use luna_dlm::{Handle, Hold, LockCache, Mode, Threads};
use luna_format::Ino;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

/// What the inode says that a transfer must know; valid while `loaded`.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// The fields below are what the inode says.
    pub(crate) loaded: bool,
    /// Bytes.
    pub(crate) size: u64,
    /// It has no blocks: the bytes are in the inode, or there are none.
    pub(crate) small: bool,
    /// A write by an unprivileged user has bits or capabilities to clear.
    pub(crate) kill: bool,
    /// Blocks; holds for what it covers even when not `loaded`.
    pub(crate) map: ExtentCache,
}

/// How often and how the inode is open.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    /// Handles.
    pub(crate) total: u32,
    /// PR on the open name while there are any.
    pub(crate) hold: Option<Hold>,
    /// It lost its last name.
    pub(crate) orphan: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Node {
    /// The inode.
    pub ino: Ino,
    /// The inode's lock, looked up.
    pub(crate) handle: Handle,
    /// Transfers against changes of shape.
    pub(crate) gate: Arc<IoGate>,
    pub(crate) view: RwLock<View>,
    /// Newest data write whose time is not in the inode yet; 0 = none.
    pub(crate) pending_mtime: AtomicI64,
    /// Blocks were allocated beyond the end.
    pub(crate) ahead: AtomicBool,
    pub(crate) opens: Mutex<Opens>,
    /// Handles through the kernel's page cache.
    pub(crate) cached: AtomicU32,
    /// Those of them that may write (and map writable).
    pub(crate) writers: AtomicU32,
    /// Somebody took byte-range or whole-file locks through this host.
    pub(crate) locked: AtomicBool,
    pub(crate) revoke: Revoke,
}

impl Node {
    /// Forgets everything that was true only under the lock.
    pub(crate) fn clear(&self) {
        let mut v = self.view.write();
        v.loaded = false;
        v.map.clear();
    }

    /// Notes the time of a data write; written to the inode later.
    pub(crate) fn touch(&self, now_ns: i64) {
        self.pending_mtime.fetch_max(now_ns, Ordering::AcqRel);
    }

    /// Whether the kernel may have pages of it.
    pub(crate) fn is_cached(&self) -> bool {
        self.cached.load(Ordering::Acquire) > 0
    }

    /// Whether somebody may dirty pages of it.
    pub(crate) fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }
}

/// All nodes of the mount.
#[derive(Default)]
pub(crate) struct Nodes {
    /// Stands for the system's threads, where they are not used.
    threads: Option<Arc<dyn Threads>>,
    table: RwLock<HashMap<Ino, (Arc<Node>, u32)>>,
}

/// A use of a node; the node leaves the table with its last one.
#[derive(Debug)]
pub(crate) struct NodeRef {
    node: Arc<Node>,
    nodes: Arc<Nodes>,
}

impl std::ops::Deref for NodeRef {
    type Target = Arc<Node>;
    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for NodeRef {
    fn drop(&mut self) {
        let mut t = self.nodes.table.write();
        if let Some((_, uses)) = t.get_mut(&self.node.ino) {
            *uses -= 1;
            if *uses == 0 {
                t.remove(&self.node.ino);
            }
        }
    }
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

impl Nodes {
    /// An empty table; waits inside its nodes go through `threads`, where given.
    pub(crate) fn on(threads: Option<Arc<dyn Threads>>) -> Self {
        Self { threads, ..Self::default() }
    }

    /// The node, made if it was not there.
    pub(crate) fn take(self: &Arc<Self>, ino: Ino, locks: &Arc<LockCache>) -> NodeRef {
        let mut t = self.table.write();
        let (node, uses) = t.entry(ino).or_insert_with(|| (Arc::new(Node::new(ino, locks, self.threads.clone())), 0));
        *uses += 1;
        NodeRef { node: Arc::clone(node), nodes: Arc::clone(self) }
    }

    /// The node, if somebody uses it.
    pub(crate) fn find(&self, ino: Ino) -> Option<Arc<Node>> {
        self.table.read().get(&ino).map(|(n, _)| Arc::clone(n))
    }

    /// All nodes in use, in order.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        let mut all: Vec<Arc<Node>> = self.table.read().values().map(|(n, _)| Arc::clone(n)).collect();
        all.sort_unstable_by_key(|n| n.ino);
        all
    }
}

impl Node {
    fn new(ino: Ino, locks: &Arc<LockCache>, threads: Option<Arc<dyn Threads>>) -> Self {
        Self {
            ino,
            handle: locks.handle(&crate::names::inode(ino)),
            gate: Arc::new(IoGate::on(threads)),
            view: RwLock::default(),
            pending_mtime: AtomicI64::new(0),
            ahead: AtomicBool::new(false),
            opens: Mutex::default(),
            cached: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            locked: AtomicBool::new(false),
            revoke: Revoke::default(),
        }
    }
}

/// What a handle may do and how its data travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
    /// Through the kernel's page cache.
    pub cached: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Every write is durable when answered.
    pub sync: bool,
    /// Opened with O_DIRECT.
    pub direct: bool,
}

impl How {
    /// From open(2) flags. What can not be mapped writable and gains nothing from the page cache goes past it: O_DIRECT and
    /// write-only handles. So only reads and dirty mapped pages ever wait with a page locked.
    pub fn from_flags(flags: i32) -> Self {
        let access = flags & libc::O_ACCMODE;
        let (read, write) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        let direct = flags & libc::O_DIRECT != 0;
        Self {
            read,
            write,
            cached: read && !direct,
            append: flags & libc::O_APPEND != 0,
            sync: flags & (libc::O_DSYNC | libc::O_SYNC) != 0,
            direct,
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct OpenFile {
    pub(crate) node: NodeRef,
    /// How it was opened.
    pub how: How,
}

impl OpenFile {
    /// The inode.
    pub fn ino(&self) -> Ino {
        self.node.ino
    }

    /// The right a read through this handle asks for.
    pub(crate) fn read_mode(&self) -> Mode {
        match (self.how.cached, self.how.write) {
            (true, _) if self.node.has_writers() => Mode::Ex,
            (true, _) => Mode::Pr,
            (false, true) => Mode::Cw,
            (false, false) => Mode::Cr,
        }
    }
}

/// Handles, and the places among them that are free.
type Slots = (Vec<Option<Arc<OpenFile>>>, Vec<usize>);

/// Open handles by number.
#[derive(Debug, Default)]
pub(crate) struct Files {
    slots: RwLock<Slots>,
}

impl Files {
    /// Keeps the file; gives its number (never 0).
    pub(crate) fn insert(&self, f: Arc<OpenFile>) -> u64 {
        let mut guard = self.slots.write();
        let (slots, free) = &mut *guard;
        let at = free.pop().unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[at] = Some(f);
        at as u64 + 1
    }

    /// The file of a number.
    pub(crate) fn get(&self, fh: u64) -> Option<Arc<OpenFile>> {
        let at = usize::try_from(fh.checked_sub(1)?).ok()?;
        self.slots.read().0.get(at)?.clone()
    }

    /// Takes the file out.
    pub(crate) fn remove(&self, fh: u64) -> Option<Arc<OpenFile>> {
        let at = usize::try_from(fh.checked_sub(1)?).ok()?;
        let mut guard = self.slots.write();
        let f = guard.0.get_mut(at)?.take()?;
        guard.1.push(at);
        Some(f)
    }

    /// Takes all files out.
    pub(crate) fn remove_all(&self) -> Vec<Arc<OpenFile>> {
        let mut guard = self.slots.write();
        guard.1.clear();
        std::mem::take(&mut guard.0).into_iter().flatten().collect()
    }
}
