//! Reads: one run straight from the LUN's queue, several gathered, holes as zeroes, small files from the inode.
//!
//! Invariant: the reply is called exactly once, and the right and the pass are dropped after it. Nothing beyond the size is
//! ever answered.

use super::blocks_of;
use super::learn::Seen;
use super::map::Cover;
use super::right::{Pages, Right};
use crate::data::gate::{IoGate, Pass};
use crate::error::FsError;
use crate::extent::{Run, RunKind};
use crate::open::{Node, OpenFile};
use crate::system::Fs;
use luna_format::BLOCK_U64;
use luna_lun::AlignedBuf;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Zeroes to answer holes with.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Takes the bytes of a read, or why there are none.
pub(crate) trait ReadReply: FnOnce(Result<&[u8], FsError>) + Send + 'static {}
impl<F: FnOnce(Result<&[u8], FsError>) + Send + 'static> ReadReply for F {}

/// A read that is allowed to go on.
struct Allowed {
    node: Arc<Node>,
    right: Right,
    _pass: Pass,
    offset: u64,
}

impl Fs {
    /// Reads up to `len` bytes at `offset` (fewer only at the end of the file). Never waits for another host on this thread.
    pub(crate) fn read(self: &Arc<Self>, file: &OpenFile, offset: u64, len: u32, reply: impl ReadReply) {
        let mode = file.read_mode();
        let node = Arc::clone(&file.node);
        let pages = if file.how.cached { Pages::Fill(offset, u64::from(len)) } else { Pages::None };
        if let Some(right) = node.try_right(mode, pages) {
            if let Some(pass) = node.gate.try_shared() {
                return self.read_allowed(Allowed { node, right, _pass: pass, offset }, len, reply);
            }
            let fs = Arc::clone(self);
            return self.pool.spawn(move || {
                let pass = node.gate.shared();
                fs.read_allowed(Allowed { node, right, _pass: pass, offset }, len, reply);
                fs.drive();
            });
        }
        self.counters.parked.fetch_add(1, Ordering::Relaxed);
        let fs = Arc::clone(self);
        let gate: Arc<IoGate> = Arc::clone(&node.gate);
        let target = Arc::clone(&node);
        let job = move |right: Result<Right, FsError>| match right {
            Ok(right) => {
                let pass = gate.shared();
                fs.read_allowed(Allowed { node: target, right, _pass: pass, offset }, len, reply);
                fs.drive();
            }
            Err(e) => reply(Err(e)),
        };
        node.park(&self.volume.locks, &self.pool, mode, pages, Box::new(job));
    }

    fn read_allowed(self: &Arc<Self>, a: Allowed, len: u32, reply: impl ReadReply) {
        if let Err(e) = self.volume.check_active() {
            return reply(Err(e));
        }
        let Some(end) = a.offset.checked_add(u64::from(len)).filter(|_| len > 0) else { return reply(Ok(&[])) };
        let (first, last) = blocks_of(a.offset, end - a.offset);
        let seen = match Self::known(&a.node, first, last) {
            Some(seen) => seen,
            None => match self.look(&a.node, &a.right, first, last) {
                Ok(seen) => seen,
                Err(e) => return reply(Err(e)),
            },
        };
        let len = seen.size.saturating_sub(a.offset).min(u64::from(len)) as usize;
        if len == 0 {
            return reply(Ok(&[]));
        }
        if let Some(bytes) = &seen.inline {
            return reply(Ok(&inline_part(bytes, a.offset, len)));
        }
        match seen.cover {
            Cover::One(r) => self.read_run(a, r, len, reply),
            _ => self.read_runs(a, &seen, len, reply),
        }
    }

    fn read_run(self: &Arc<Self>, a: Allowed, r: Run, len: usize, reply: impl ReadReply) {
        let RunKind::Written(at) = r.kind else {
            return if len <= ZEROES.len() { reply(Ok(&ZEROES[..len])) } else { reply(Ok(&vec![0; len])) };
        };
        let skip = (a.offset - r.logical * BLOCK_U64) as usize;
        let blocks = (skip + len).div_ceil(BLOCK_U64 as usize) as u32;
        self.counters.fast.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let fs = Arc::clone(self);
        let done = move |got: luna_lun::Result<&[u8]>| {
            fs.in_flight.fetch_sub(1, Ordering::AcqRel);
            match got {
                Ok(bytes) => reply(Ok(&bytes[skip..skip + len])),
                Err(e) => reply(Err(e.into())),
            }
            drop(a);
        };
        self.volume.queue.read(at * BLOCK_U64, blocks * BLOCK_U64 as u32, Box::new(done));
    }

    /// Several runs: all asked for at once, put together, answered by the last to arrive.
    fn read_runs(self: &Arc<Self>, a: Allowed, seen: &Seen, len: usize, reply: impl ReadReply) {
        self.counters.slow.fetch_add(1, Ordering::Relaxed);
        let (first, last) = blocks_of(a.offset, len as u64);
        let parts: Vec<Run> = seen.runs().iter().filter_map(|r| super::map::clip(r, first, last)).collect();
        let written: Vec<(Run, u64)> =
            parts.iter().filter_map(|r| if let RunKind::Written(p) = r.kind { Some((*r, p)) } else { None }).collect();
        let skip = (a.offset - first * BLOCK_U64) as usize;
        let gather = Arc::new(Gather {
            buf: Mutex::new((AlignedBuf::new(((last - first) * BLOCK_U64) as usize), None)),
            left: AtomicU32::new(written.len() as u32 + 1),
            finish: Mutex::new(Some((a, reply))),
            range: skip..skip + len,
        });
        self.in_flight.fetch_add(written.len() as u32, Ordering::AcqRel);
        for (r, p) in written {
            let (gather, fs) = (Arc::clone(&gather), Arc::clone(self));
            let at = ((r.logical - first) * BLOCK_U64) as usize;
            let done = move |got: luna_lun::Result<&[u8]>| {
                fs.in_flight.fetch_sub(1, Ordering::AcqRel);
                gather.arrived(at, got);
            };
            self.volume.queue.read(p * BLOCK_U64, (r.len * BLOCK_U64) as u32, Box::new(done));
        }
        gather.one_less();
    }
}

/// A read in several pieces.
struct Gather<R> {
    buf: Mutex<(AlignedBuf, Option<FsError>)>,
    left: AtomicU32,
    finish: Mutex<Option<(Allowed, R)>>,
    range: std::ops::Range<usize>,
}

impl<R: ReadReply> Gather<R> {
    fn arrived(&self, at: usize, got: luna_lun::Result<&[u8]>) {
        let mut b = self.buf.lock();
        match got {
            Ok(bytes) => b.0.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes),
            Err(e) => b.1 = Some(e.into()),
        }
        drop(b);
        self.one_less();
    }

    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let Some((allowed, reply)) = self.finish.lock().take() else { return };
        let mut b = self.buf.lock();
        match b.1.take() {
            Some(e) => reply(Err(e)),
            None => reply(Ok(&b.0.bytes()[self.range.clone()])),
        }
        drop(allowed);
    }
}

/// `len` bytes at `offset` of a small file; zeroes where the inode has none.
fn inline_part(bytes: &[u8], offset: u64, len: usize) -> Vec<u8> {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let to = from.saturating_add(len).min(bytes.len());
    let mut out = bytes[from..to].to_vec();
    out.resize(len, 0);
    out
}
