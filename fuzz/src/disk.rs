//! The guarding disk: a mutated image, copy on write, that fails the run when anybody misbehaves towards it.
//!
//! Invariant: a request that does not lie inside the LUN, or is not whole blocks, is a panic here, not an error that the product may
//! shrug off; so is more reading or writing than any honest use of an image this small needs (an endless loop becomes a panic
//! with a stack), and a write outside of where the run said it would write. The image below is shared and never changes.
//! Not here: what the bytes are.

use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo};
use luna_lun::{Disk, Durability, Geometry, InlineQueue, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks by address; what is not there is zero.
pub type Blocks = BTreeMap<BlockNo, Block>;

/// An image and what was done to it; see the module's text.
pub struct GuardDisk {
    base: Arc<Blocks>,
    over: Mutex<BTreeMap<BlockNo, Option<Box<Block>>>>,
    blocks: u64,
    read: AtomicU64,
    written: AtomicU64,
    may_read: u64,
    may_write: u64,
    writable: Option<Vec<Range<BlockNo>>>,
}

impl GuardDisk {
    /// A LUN of `blocks` over `base`; `change` lies on top from the beginning.
    pub fn new(base: Arc<Blocks>, blocks: u64, change: Blocks) -> Self {
        let over = change.into_iter().map(|(at, b)| (at, Some(Box::new(b)))).collect();
        Self {
            base,
            over: Mutex::new(over),
            blocks,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            may_read: 64 * blocks,
            may_write: 64 * blocks,
            writable: None,
        }
    }

    /// Only these blocks may be written.
    pub fn only(mut self, ranges: &[Range<BlockNo>]) -> Self {
        self.writable = Some(ranges.to_vec());
        self
    }

    /// Blocks read and written so far.
    pub fn traffic(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// What lies on top of the image now, zeroes included: for comparing two runs.
    pub fn changes(&self) -> BTreeMap<BlockNo, Option<Box<Block>>> {
        self.over.lock().clone()
    }

    /// A queue that answers inline.
    pub fn queue(self: &Arc<Self>) -> Arc<InlineQueue> {
        Arc::new(InlineQueue::new(Arc::clone(self) as Arc<dyn Disk>))
    }

    fn span(&self, what: &str, offset: u64, len: u64) -> Range<BlockNo> {
        let whole = offset.is_multiple_of(BLOCK_U64) && len.is_multiple_of(BLOCK_U64);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.blocks * BLOCK_U64);
        assert!(whole && inside, "{what} of {len} bytes at {offset}: outside of a volume of {} blocks", self.blocks);
        offset / BLOCK_U64..(offset + len) / BLOCK_U64
    }

    fn count(counter: &AtomicU64, most: u64, span: &Range<BlockNo>, what: &str) {
        let n = span.end - span.start;
        let sum = counter.fetch_add(n.max(1), Ordering::Relaxed) + n;
        assert!(sum <= most, "more than {most} blocks {what}: this does not end");
    }

    fn writing(&self, offset: u64, len: u64) -> Range<BlockNo> {
        let span = self.span("a write", offset, len);
        Self::count(&self.written, self.may_write, &span, "written");
        if let Some(ranges) = &self.writable {
            let at = |b: BlockNo| ranges.iter().any(|r| r.contains(&b));
            assert!(span.clone().all(at), "a write to blocks {span:?}, which are nobody's business here");
        }
        span
    }
}

impl Disk for GuardDisk {
    fn geometry(&self) -> Geometry {
        Geometry::able(self.blocks * BLOCK_U64)
    }

    fn describe(&self) -> String {
        "mutated image".into()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let span = self.span("a read", offset, buf.len() as u64);
        Self::count(&self.read, self.may_read, &span, "read");
        let over = self.over.lock();
        for (to, at) in buf.chunks_exact_mut(BLOCK_BYTES).zip(span) {
            match over.get(&at).map_or_else(|| self.base.get(&at), |b| b.as_deref()) {
                Some(b) => to.copy_from_slice(&b.0),
                None => to.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _durability: Durability) -> Result<()> {
        let span = self.writing(offset, buf.len() as u64);
        let mut over = self.over.lock();
        for (from, at) in buf.chunks_exact(BLOCK_BYTES).zip(span) {
            over.insert(at, Block::from_slice(from).map(Box::new));
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let span = self.writing(offset, len);
        let mut over = self.over.lock();
        for at in span {
            over.insert(at, None);
        }
        Ok(())
    }
}
