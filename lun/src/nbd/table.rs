//! The requests in flight on one connection, each with what is needed to send it again.
//!
//! Handles on the wire are a slot number and a generation, so that a reply to a request that is not there is noticed instead
//! of completing another one. Payload copies come from a small store of used buffers, because fresh large ones cost page
//! faults. Invariant: what is inserted comes out exactly once. No sockets, no locks.

use std::sync::Arc;

use super::wire::{Request, cmd};
use crate::{LunError, ReadDone, WriteDone};

/// Used buffers kept, and the largest kept.
const KEEP: usize = 40;
const KEEP_BYTES: usize = 2 << 20;
/// All kept buffers together.
const KEEP_TOTAL: usize = 16 << 20;

/// A request that waits for its reply.
pub(crate) enum Pending {
    Read { offset: u64, len: u32, done: ReadDone },
    Write { offset: u64, payload: Arc<Vec<u8>>, fua: bool, done: WriteDone },
    Flush { mark: u64, done: WriteDone },
}

impl Pending {
    /// What it is called in messages.
    pub(crate) fn op(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush { .. } => "flush",
        }
    }

    /// Where it is, 0 for a flush.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::Read { offset, .. } | Self::Write { offset, .. } => *offset,
            Self::Flush { .. } => 0,
        }
    }

    /// Answers it with an error.
    pub(crate) fn fail(self, error: LunError) {
        match self {
            Self::Read { done, .. } => done(Err(error)),
            Self::Write { done, .. } | Self::Flush { done, .. } => done(Err(error)),
        }
    }

    fn request(&self, handle: u64) -> Inserted {
        let (command, flags, offset, len, payload) = match self {
            Self::Read { offset, len, .. } => (cmd::READ, 0, *offset, *len, None),
            Self::Write { offset, payload, fua, .. } => {
                let flags = if *fua { cmd::FLAG_FUA } else { 0 };
                (cmd::WRITE, flags, *offset, payload.len() as u32, Some(Arc::clone(payload)))
            }
            Self::Flush { .. } => (cmd::FLUSH, 0, 0, 0, None),
        };
        Inserted { request: Request { flags, command, handle, offset, len }, payload }
    }
}

/// What goes to the wire for a request.
pub(crate) struct Inserted {
    pub(crate) request: Request,
    pub(crate) payload: Option<Arc<Vec<u8>>>,
}

struct Slot {
    generation: u32,
    /// Submission order, for sending again in the same order.
    order: u64,
    pending: Option<Pending>,
}

/// The table.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    orders: u64,
    used: Vec<Vec<u8>>,
    used_bytes: usize,
}

impl Table {
    /// Takes a request in; gives what to send.
    pub(crate) fn insert(&mut self, pending: Pending) -> Inserted {
        self.orders += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, order: 0, pending: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.order = self.orders;
        let inserted = pending.request(handle(slot.generation, index));
        slot.pending = Some(pending);
        inserted
    }

    fn slot(&mut self, handle: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut((handle & 0xffff_ffff) as usize)?;
        (slot.generation == (handle >> 32) as u32 && slot.pending.is_some()).then_some(slot)
    }

    /// How many bytes follow the reply header for this handle; `None` if no such request is in flight.
    pub(crate) fn reply_bytes(&mut self, handle: u64, error: u32) -> Option<usize> {
        match self.slot(handle)?.pending.as_ref()? {
            Pending::Read { len, .. } if error == 0 => Some(*len as usize),
            _ => Some(0),
        }
    }

    /// Takes a request out.
    pub(crate) fn remove(&mut self, handle: u64) -> Option<Pending> {
        let pending = self.slot(handle)?.pending.take();
        self.free.push((handle & 0xffff_ffff) as u32);
        pending
    }

    /// Everything in flight, in submission order, to be sent again under new handles: a late reply of the old connection
    /// can not be mistaken.
    pub(crate) fn again(&mut self) -> Vec<Inserted> {
        let mut live: Vec<(u64, usize)> =
            self.slots.iter().enumerate().filter(|(_, slot)| slot.pending.is_some()).map(|(index, slot)| (slot.order, index)).collect();
        live.sort_unstable();
        let mut out = Vec::with_capacity(live.len());
        for (_, index) in live {
            let slot = &mut self.slots[index];
            slot.generation = slot.generation.wrapping_add(1);
            if let Some(pending) = &slot.pending {
                out.push(pending.request(handle(slot.generation, index as u32)));
            }
        }
        out
    }

    /// Takes all writes out.
    pub(crate) fn take_writes(&mut self) -> Vec<Pending> {
        self.take_if(|pending| matches!(pending, Pending::Write { .. }))
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Vec<Pending> {
        self.take_if(|_| true)
    }

    fn take_if(&mut self, wanted: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let mut out = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.pending.as_ref().is_some_and(&wanted) {
                out.extend(slot.pending.take().map(|pending| (slot.order, pending)));
                self.free.push(index as u32);
            }
        }
        out.sort_by_key(|(order, _)| *order);
        out.into_iter().map(|(_, pending)| pending).collect()
    }

    /// An empty buffer for a payload of `len` bytes.
    pub(crate) fn buffer(&mut self, len: usize) -> Vec<u8> {
        let fits = self.used.iter().rposition(|buffer| buffer.capacity() >= len && buffer.capacity() / 4 <= len.max(4096));
        match fits {
            Some(index) => {
                let buffer = self.used.swap_remove(index);
                self.used_bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(len.next_multiple_of(4096)),
        }
    }

    /// Takes a payload back after its write was answered.
    pub(crate) fn recycle(&mut self, payload: Arc<Vec<u8>>) {
        let Some(mut buffer) = Arc::into_inner(payload) else { return };
        let size = buffer.capacity();
        if self.used.len() < KEEP && size <= KEEP_BYTES && self.used_bytes + size <= KEEP_TOTAL {
            buffer.clear();
            self.used_bytes += size;
            self.used.push(buffer);
        }
    }
}

fn handle(generation: u32, index: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn read(offset: u64) -> Pending {
        Pending::Read { offset, len: 4096, done: Box::new(|_| {}) }
    }

    fn write(offset: u64, failed: &Arc<AtomicU32>) -> Pending {
        let failed = Arc::clone(failed);
        let done: WriteDone = Box::new(move |result| {
            assert!(result.is_err());
            failed.fetch_add(1, Ordering::SeqCst);
        });
        Pending::Write { offset, payload: Arc::new(vec![1; 4096]), fua: true, done }
    }

    #[test]
    fn a_stale_or_unknown_handle_completes_nothing() {
        let mut table = Table::default();
        let first = table.insert(read(0)).request.handle;
        assert_eq!(table.reply_bytes(first, 0), Some(4096));
        assert_eq!(table.reply_bytes(first, 5), Some(0));
        assert!(table.remove(first).is_some());
        assert!(table.remove(first).is_none());
        let second = table.insert(read(4096)).request.handle;
        assert_ne!(first, second);
        assert_eq!(table.reply_bytes(first, 0), None);
        assert_eq!(table.reply_bytes(u64::MAX, 0), None);
    }

    #[test]
    fn everything_is_sent_again_in_order_or_failed_once() {
        let failed = Arc::new(AtomicU32::new(0));
        let mut table = Table::default();
        let gone = table.insert(read(0)).request.handle;
        let old: Vec<u64> = (1..5).map(|i| table.insert(write(i * 4096, &failed)).request.handle).collect();
        table.remove(gone);
        table.insert(read(9 * 4096));
        let again = table.again();
        let offsets: Vec<u64> = again.iter().map(|item| item.request.offset / 4096).collect();
        assert_eq!(offsets, [1, 2, 3, 4, 9]);
        assert_eq!(again[0].request.flags, cmd::FLAG_FUA);
        assert!(old.iter().all(|handle| table.reply_bytes(*handle, 0).is_none()), "old handles are void");
        for pending in table.take_writes() {
            pending.fail(LunError::Gone("x".into()));
        }
        assert_eq!(failed.load(Ordering::SeqCst), 4);
        assert_eq!(table.take_all().len(), 1);
        assert!(table.again().is_empty());
    }

    #[test]
    fn buffers_come_back() {
        let mut table = Table::default();
        let mut buffer = table.buffer(1 << 20);
        buffer.resize(1 << 20, 1);
        let at = buffer.as_ptr();
        table.recycle(Arc::new(buffer));
        let (small, large) = (table.buffer(4096), table.buffer(1 << 20));
        assert_ne!(small.as_ptr(), at, "a large buffer is not wasted on a small write");
        assert_eq!(large.as_ptr(), at);
    }
}
