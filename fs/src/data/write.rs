//! Writes. Overwrites of mapped blocks go straight to the LUN's queue; the rest allocates first, writes the data, and then, in
//! a second transaction, makes it reachable.
//!
//! Invariants: an extent becomes written only after the LUN answered its data (R9); a write that touches part of a block, or
//! changes the size, is alone in the file's gate; a synchronous write is answered when its bytes and the way to them are durable;
//! O_APPEND writes at the size found under EX, whatever the kernel thinks; a write-back of mapped pages never makes a file longer.

use super::blocks_of;
use super::gate::Pass;
use super::learn::Seen;
use super::map::Cover;
use super::right::{Pages, Right};
use crate::error::FsError;
use crate::extent::{Run, RunKind};
use crate::names;
use crate::open::{Node, OpenFile};
use crate::system::Fs;
use crate::volume::Wait;
use luna_dlm::Mode;
use luna_format::BLOCK_U64;
use luna_lun::{AlignedBuf, Durability};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the transport says about a write beyond where and what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteHow {
    /// A write-back of the page cache (mapped pages), not a write(2).
    pub page: bool,
    /// The writer may not keep set-id bits.
    pub kill: bool,
}

/// A write as the slow path wants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) offset: u64,
    pub(super) append: bool,
    pub(super) sync: bool,
    pages: Pages,
    pub(super) how: WriteHow,
}

/// How a slow write ended.
pub(super) enum Slow {
    /// So many bytes.
    Done(u32),
    /// It is not a plain overwrite.
    NeedsEx,
    /// It would have to wait, and must not.
    WouldWait,
}

/// Takes the number of bytes written, or why none were.
pub(crate) trait WriteReply: FnOnce(Result<u32, FsError>) + Send + 'static {}
impl<F: FnOnce(Result<u32, FsError>) + Send + 'static> WriteReply for F {}

/// A copied payload, page-aligned.
struct Payload {
    buf: AlignedBuf,
    len: usize,
}

impl Payload {
    fn copy(data: &[u8]) -> Self {
        let mut buf = AlignedBuf::new(data.len());
        buf.bytes_mut()[..data.len()].copy_from_slice(data);
        Self { buf, len: data.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.buf.bytes()[..self.len]
    }
}

impl Fs {
    /// Writes `data` at `offset`. Never waits for another host on this thread.
    pub(crate) fn write(self: &Arc<Self>, file: &OpenFile, offset: u64, data: &[u8], how: WriteHow, reply: impl WriteReply) {
        if data.is_empty() {
            return reply(Ok(0));
        }
        let cached = file.how.cached || how.page;
        let pages = match (how.page, cached) {
            (true, _) => Pages::Back,
            (false, true) => Pages::Fill(offset, data.len() as u64),
            (false, false) => Pages::None,
        };
        let ask = Ask { offset, append: file.how.append && !how.page, sync: file.how.sync, pages, how };
        let aligned = (offset | data.len() as u64).is_multiple_of(BLOCK_U64);
        let node = &*file.node;
        let reply = if aligned && !ask.append && (!ask.sync || self.is_settled(node)) {
            match self.overwrite(node, ask, data, reply) {
                None => return,
                Some(reply) => reply,
            }
        } else {
            reply
        };
        if self.may_block()
            && let Some(right) = node.try_right(Mode::Ex, pages)
        {
            match self.write_slow(node, &right, ask, data, Wait::No) {
                Ok(Slow::Done(n)) => return reply(Ok(n)),
                Err(e) => return reply(Err(e)),
                Ok(Slow::NeedsEx | Slow::WouldWait) => {}
            }
        }
        let mode = if file.how.direct && aligned && !ask.append { Mode::Cw } else { Mode::Ex };
        self.write_elsewhere(Arc::clone(node), mode, ask, Payload::copy(data), reply);
    }

    /// Whether the way to the file's bytes is durable. A forced write of blocks whose mapping is not would be lost with it.
    fn is_settled(&self, node: &Node) -> bool {
        self.volume.last_change(&names::inode(node.ino)).is_none_or(|seq| seq <= self.volume.journal.durable())
    }

    /// The fast path: gives the reply back when it is not for it.
    fn overwrite<R: WriteReply>(self: &Arc<Self>, node: &Arc<Node>, ask: Ask, data: &[u8], reply: R) -> Option<R> {
        let mode = if ask.pages == Pages::None { Mode::Cw } else { Mode::Ex };
        let Some(right) = node.try_right(mode, ask.pages) else { return Some(reply) };
        let Some(pass) = node.gate.try_shared() else { return Some(reply) };
        let end = ask.offset + data.len() as u64;
        let Some(seen) = Self::known(node, ask.offset / BLOCK_U64, end / BLOCK_U64) else { return Some(reply) };
        if end > seen.size || (ask.how.kill && seen.kill) || self.volume.check_active().is_err() {
            return Some(reply);
        }
        let durability = if ask.sync { Durability::Forced } else { Durability::Plain };
        let keep = (right, pass);
        match seen.cover {
            Cover::One(Run { kind: RunKind::Written(at), .. }) => self.submit(node, at, data, durability, keep, reply),
            Cover::Many(runs) if runs.iter().all(|r| matches!(r.kind, RunKind::Written(_))) => {
                self.scatter(node, &runs, data, durability, keep, reply);
            }
            _ => return Some(reply),
        }
        None
    }

    fn submit(self: &Arc<Self>, node: &Node, at: u64, data: &[u8], durability: Durability, keep: (Right, Pass), reply: impl WriteReply) {
        let len = data.len() as u32;
        node.touch(self.volume.now_ns());
        self.counters.fast.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let fs = Arc::clone(self);
        let done = move |got: luna_lun::Result<()>| {
            fs.in_flight.fetch_sub(1, Ordering::AcqRel);
            fs.volume.note_data_write();
            reply(got.map(|()| len).map_err(FsError::from));
            drop(keep);
        };
        self.volume.queue.write(at * BLOCK_U64, data, durability, Box::new(done));
    }

    /// The same in several pieces; answered by the last.
    fn scatter<R: WriteReply>(
        self: &Arc<Self>,
        node: &Node,
        runs: &[Run],
        data: &[u8],
        durability: Durability,
        keep: (Right, Pass),
        reply: R,
    ) {
        let len = data.len() as u32;
        let finish = Arc::new((AtomicU32::new(runs.len() as u32), Mutex::new(Some((reply, keep, None::<FsError>)))));
        node.touch(self.volume.now_ns());
        self.in_flight.fetch_add(runs.len() as u32, Ordering::AcqRel);
        let mut rest = data;
        for r in runs {
            let RunKind::Written(at) = r.kind else { continue };
            let (piece, later) = rest.split_at((r.len * BLOCK_U64) as usize);
            rest = later;
            let (fs, finish) = (Arc::clone(self), Arc::clone(&finish));
            let done = move |got: luna_lun::Result<()>| {
                fs.in_flight.fetch_sub(1, Ordering::AcqRel);
                fs.volume.note_data_write();
                if let (Err(e), Some(f)) = (got, finish.1.lock().as_mut()) {
                    f.2 = Some(e.into());
                }
                if finish.0.fetch_sub(1, Ordering::AcqRel) == 1 {
                    let last = finish.1.lock().take();
                    if let Some((reply, keep, failed)) = last {
                        reply(failed.map_or(Ok(len), Err));
                        drop(keep);
                    }
                }
            };
            self.volume.queue.write(at * BLOCK_U64, piece, durability, Box::new(done));
        }
    }

    /// Takes a copied write to where it may wait.
    fn write_elsewhere(self: &Arc<Self>, node: Arc<Node>, mode: Mode, ask: Ask, payload: Payload, reply: impl WriteReply) {
        let fs = Arc::clone(self);
        let on = Arc::clone(&node);
        let job = move |right: Result<Right, FsError>| {
            let right = match right {
                Ok(r) => r,
                Err(e) => return reply(Err(e)),
            };
            match fs.write_slow(&on, &right, ask, payload.bytes(), Wait::Yes) {
                Ok(Slow::Done(n)) => reply(Ok(n)),
                Err(e) => reply(Err(e)),
                Ok(Slow::NeedsEx | Slow::WouldWait) => {
                    drop(right);
                    fs.write_elsewhere(on, Mode::Ex, ask, payload, reply);
                }
            }
        };
        if let Some(right) = node.try_right(mode, ask.pages) {
            self.pool.spawn(move || job(Ok(right)));
        } else {
            self.counters.parked.fetch_add(1, Ordering::Relaxed);
            node.park(&self.volume.locks, &self.pool, mode, ask.pages, Box::new(job));
        }
    }

    /// A write that may take as long as the disk (with [`Wait::Yes`]: as long as other hosts). Safe to repeat after `WouldWait`.
    fn write_slow(&self, node: &Arc<Node>, right: &Right, ask: Ask, data: &[u8], wait: Wait) -> Result<Slow, FsError> {
        self.volume.check_active()?;
        self.counters.slow.fetch_add(1, Ordering::Relaxed);
        let aligned = (ask.offset | data.len() as u64).is_multiple_of(BLOCK_U64);
        if aligned && !ask.append {
            let Some(_pass) = shared(node, wait) else { return Ok(Slow::WouldWait) };
            let (first, last) = blocks_of(ask.offset, data.len() as u64);
            let seen = self.look(node, right, first, last)?;
            if last * BLOCK_U64 <= seen.size && !seen.small && !(ask.how.kill && seen.kill) {
                if seen.runs().iter().all(|r| matches!(r.kind, RunKind::Written(_))) && seen.cover != Cover::Unknown {
                    node.touch(self.volume.now_ns());
                    self.put(&seen.runs(), data, if ask.sync { Durability::Forced } else { Durability::Plain })?;
                    if ask.sync && !self.is_settled(node) {
                        self.volume.sync_to(self.volume.last_change(&names::inode(node.ino)).unwrap_or(0))?;
                    }
                    return Ok(Slow::Done(data.len() as u32));
                }
                if right.mode() == Mode::Ex {
                    return self.fill(node, right, ask, seen.size, (first, last), data, wait);
                }
            }
        }
        if right.mode() != Mode::Ex {
            return Ok(Slow::NeedsEx);
        }
        let Some(_alone) = (if wait == Wait::Yes { Some(node.gate.alone()) } else { node.gate.try_alone() }) else {
            return Ok(Slow::WouldWait);
        };
        self.write_alone(node, right, ask, data, wait)
    }

    /// A plain write under EX, by the daemon itself. May wait.
    pub(super) fn write_slow_at(&self, node: &Arc<Node>, right: &Right, offset: u64, data: &[u8], how: WriteHow) -> Result<Slow, FsError> {
        let ask = Ask { offset, append: false, sync: false, pages: Pages::None, how };
        self.write_slow(node, right, ask, data, Wait::Yes)
    }

    /// Writes whole blocks to written or unwritten runs on the LUN and waits for the answer.
    pub(super) fn put(&self, runs: &[Run], data: &[u8], durability: Durability) -> Result<(), FsError> {
        let mut rest = data;
        for r in runs {
            let (RunKind::Written(at) | RunKind::Unwritten(at)) = r.kind else {
                return Err(FsError::Invalid("data for a hole"));
            };
            let (piece, later) = rest.split_at((r.len * BLOCK_U64) as usize);
            rest = later;
            self.volume.disk.write_at(piece, at * BLOCK_U64, durability)?;
        }
        self.volume.note_data_write();
        Ok(())
    }
}

/// A pass, waiting for it only if that is allowed.
fn shared(node: &Arc<Node>, wait: Wait) -> Option<Pass> {
    match wait {
        Wait::Yes => Some(node.gate.shared()),
        Wait::No => node.gate.try_shared(),
    }
}

/// Whether all runs are on the LUN.
pub(super) fn all_mapped(seen: &Seen) -> bool {
    seen.cover != Cover::Unknown && seen.runs().iter().all(|r| r.kind != RunKind::Hole)
}
