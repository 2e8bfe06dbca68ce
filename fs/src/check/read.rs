//! Reads metadata blocks in large, parallel requests, with the images of dirty journals laid over the LUN.
//!
//! Invariant: nothing is written; an answer is what the block will hold after replay. A block that cannot be read is an
//! answer too, a LUN that is gone is an error. Not here: what blocks mean.

use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo};
use luna_lun::{AlignedBuf, Disk, LunError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks of one request at the most (1 MiB).
const RUN: u64 = 256;
/// Unwanted blocks read along rather than making two requests.
const GAP: u64 = 8;
/// Requests in flight.
const THREADS: usize = 16;

/// A block as read, or why it could not be.
pub(crate) type Fetched = Result<Block, String>;

/// See the module's text.
pub(crate) struct Reader<'a> {
    disk: &'a dyn Disk,
    total: u64,
    /// Images that are newer than their home block.
    overlay: BTreeMap<BlockNo, Block>,
}

/// A request: places in the sorted list of wanted blocks, from..to.
type Span = std::ops::Range<usize>;

impl<'a> Reader<'a> {
    /// A reader of the first `total` blocks of `disk`.
    pub(crate) fn new(disk: &'a dyn Disk, total: u64) -> Self {
        Self { disk, total, overlay: BTreeMap::new() }
    }

    /// Lets `image` stand for its home block from now on.
    pub(crate) fn lay_over(&mut self, block: BlockNo, image: Block) {
        self.overlay.insert(block, image);
    }

    /// The disk below.
    pub(crate) fn disk(&self) -> &'a dyn Disk {
        self.disk
    }

    /// Many blocks, answered in the order asked for.
    pub(crate) fn many(&self, wanted: &[BlockNo]) -> Result<Vec<Fetched>, LunError> {
        let mut sorted: Vec<BlockNo> = wanted.iter().copied().filter(|b| *b < self.total && !self.overlay.contains_key(b)).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let read = self.read_sorted(&sorted)?;
        let answer = |b: &BlockNo| match self.overlay.get(b) {
            Some(image) => Ok(image.clone()),
            None => read.get(b).cloned().unwrap_or_else(|| Err("lies outside of the volume".into())),
        };
        Ok(wanted.iter().map(answer).collect())
    }

    fn read_sorted(&self, sorted: &[BlockNo]) -> Result<BTreeMap<BlockNo, Fetched>, LunError> {
        let spans = spans(sorted);
        let next = AtomicUsize::new(0);
        let done = Mutex::new((BTreeMap::new(), None));
        let work = || {
            let mut room = AlignedBuf::empty();
            while let Some(span) = spans.get(next.fetch_add(1, Ordering::Relaxed)) {
                let got = self.read_span(&sorted[span.clone()], &mut room);
                let mut done = done.lock();
                match got {
                    Ok(blocks) => done.0.extend(blocks),
                    Err(e) => return done.1 = Some(e),
                }
            }
        };
        if spans.len() <= 1 {
            work();
        } else {
            std::thread::scope(|s| (0..THREADS.min(spans.len())).for_each(|_| drop(s.spawn(work))));
        }
        match done.into_inner() {
            (_, Some(e)) => Err(e),
            (blocks, None) => Ok(blocks),
        }
    }

    /// One request; if it fails, block by block.
    fn read_span(&self, blocks: &[BlockNo], room: &mut AlignedBuf) -> Result<Vec<(BlockNo, Fetched)>, LunError> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Ok(Vec::new()) };
        let len = (last - first + 1) as usize * BLOCK_BYTES;
        room.grow(len);
        let bytes = &mut room.bytes_mut()[..len];
        match self.disk.read_at(bytes, first * BLOCK_U64) {
            Ok(()) => {}
            Err(e @ LunError::Io { .. }) => return self.read_singly(blocks, e),
            Err(e) => return Err(e),
        }
        let cut = |b: &BlockNo| {
            let at = (b - first) as usize * BLOCK_BYTES;
            (*b, Block::from_slice(&bytes[at..at + BLOCK_BYTES]).ok_or_else(|| "short read".to_owned()))
        };
        Ok(blocks.iter().map(cut).collect())
    }

    fn read_singly(&self, blocks: &[BlockNo], first: LunError) -> Result<Vec<(BlockNo, Fetched)>, LunError> {
        if let [only] = blocks {
            return Ok(vec![(*only, Err(first.to_string()))]);
        }
        let mut out = Vec::with_capacity(blocks.len());
        for b in blocks {
            let mut block = Block::zeroed();
            match self.disk.read_at(&mut block.0, b * BLOCK_U64) {
                Ok(()) => out.push((*b, Ok(block))),
                Err(e @ LunError::Io { .. }) => out.push((*b, Err(e.to_string()))),
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }
}

/// Cuts sorted addresses into requests.
fn spans(sorted: &[BlockNo]) -> Vec<Span> {
    let (mut out, mut from) = (Vec::new(), 0);
    for i in 1..=sorted.len() {
        let ends = match sorted.get(i) {
            Some(b) => b - sorted[i - 1] > GAP || b - sorted[from] >= RUN,
            None => true,
        };
        if ends {
            out.push(from..i);
            from = i;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use luna_lun::Durability;
    use luna_lun::faulty;
    use luna_lun::memory::MemoryDisk;

    #[test]
    fn spans_join_neighbours_and_stay_short() {
        assert_eq!(spans(&[]), []);
        assert_eq!(spans(&[5]), vec![Span { start: 0, end: 1 }]);
        assert_eq!(spans(&[1, 2, 9, 100]), [0..3, 3..4]);
        let long: Vec<u64> = (0..600).collect();
        assert_eq!(spans(&long), [0..256, 256..512, 512..600]);
    }

    #[test]
    fn answers_come_in_order_with_images_on_top() {
        let disk = MemoryDisk::new(4 << 20);
        for n in 0..1024u64 {
            disk.write_at(&[n as u8; 4096], n * 4096, Durability::Plain).unwrap();
        }
        let mut reader = Reader::new(&disk, 1024);
        reader.lay_over(7, Block([99; 4096]));
        let wanted = [900, 7, 3, 900, 500, 5000];
        let got: Vec<Option<u8>> = reader.many(&wanted).unwrap().into_iter().map(|f| f.ok().map(|b| b.0[0])).collect();
        assert_eq!(got, [Some(900u64 as u8), Some(99), Some(3), Some(900u64 as u8), Some(500u64 as u8), None]);
    }

    #[test]
    fn one_bad_block_does_not_take_its_neighbours_along() {
        let disk = std::sync::Arc::new(MemoryDisk::new(4 << 20));
        let bad = 50 * 4096;
        let rule = move |_, op| match op {
            faulty::Operation::Read { offset, len } if (offset..offset + len).contains(&bad) => faulty::Verdict::Fail,
            _ => faulty::Verdict::Pass,
        };
        let disk = faulty::FaultyDisk::new(disk, Box::new(rule));
        let got = Reader::new(&disk, 1024).many(&[49, 50, 51]).unwrap();
        assert_eq!(got.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    }
}
