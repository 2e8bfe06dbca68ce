//! Bytes become damage: a script of small steps, each of which changes one block of the image the way a bug, a bad disk or an enemy would.
//!
//! A step is [`STEP`] bytes: what to do, to which block of the area, where in it, with which value. Most steps seal the block again, so
//! that what they wrote gets behind the checksum; the values are the ones that hurt: 0, 1, the greatest, one more and one less, another
//! block's address, its own, its owner's (a loop), the borders of the volume. After steps inside a journal the descriptors' checksums are
//! made to fit again. Every script means something, and the same script always the same: a fuzzer may do to it what it likes.
//!
//! Invariant: at most [`STEPS`] steps; the image itself is not changed. Not here: what is done with the result.

use crate::disk::Blocks;
use crate::scene::{Area, Scene};
use luna_format::journal::{Descriptor, ENTRIES_AT, ImageEntry, MAX_IMAGES};
use luna_format::{BLOCK_BYTES, Block, BlockNo, HEADER_BYTES, Kind};
use zerocopy::IntoBytes;

/// Bytes of a step.
pub const STEP: usize = 16;
/// Steps that are looked at.
pub const STEPS: usize = 16;

/// One step, taken apart.
#[derive(Clone, Copy)]
struct Step {
    what: u8,
    value: u8,
    block: u16,
    place: u16,
    how: u8,
    number: u64,
}

impl Step {
    fn of(bytes: &[u8]) -> Self {
        let b = |n: usize| bytes.get(n).copied().unwrap_or(0);
        let number = u64::from_le_bytes(std::array::from_fn(|n| b(8 + n)));
        Self {
            what: b(0),
            value: b(1),
            block: u16::from_le_bytes([b(2), b(3)]),
            place: u16::from_le_bytes([b(4), b(5)]),
            how: b(6),
            number,
        }
    }

    /// Bytes of the field: 1, 2, 4 or 8.
    fn width(self) -> usize {
        1 << (self.how & 3)
    }

    /// Where in the block: often among the fields that every kind has first, else anywhere behind checksum and magic.
    fn offset(self) -> usize {
        let (place, width) = (usize::from(self.place), self.width());
        let at = match self.how >> 2 & 3 {
            0 | 1 => HEADER_BYTES + place % 192,
            2 => HEADER_BYTES + place % (BLOCK_BYTES - HEADER_BYTES),
            _ => 8 + place % (BLOCK_BYTES - 8),
        };
        // fields lie at multiples of their size
        let at = if self.how & 0x10 == 0 { at / width * width } else { at };
        at.min(BLOCK_BYTES - width)
    }
}

/// What the script makes of the image: the blocks that differ.
pub fn damage(scene: &Scene, area: Area, script: &[u8]) -> Blocks {
    let mut work = Work { scene, change: Blocks::new(), journals: 0 };
    for bytes in script.chunks(STEP).take(STEPS) {
        work.step(area, Step::of(bytes));
    }
    for slot in 0..scene.descriptors.len() {
        if work.journals & 1 << slot != 0 {
            work.mend_journal(slot);
        }
    }
    work.change
}

struct Work<'a> {
    scene: &'a Scene,
    change: Blocks,
    /// Journals whose checksums are to be made to fit.
    journals: u64,
}

impl Work<'_> {
    fn get(&self, at: BlockNo) -> Block {
        self.change.get(&at).or_else(|| self.scene.base.get(&at)).cloned().unwrap_or_else(Block::zeroed)
    }

    fn step(&mut self, area: Area, s: Step) {
        let blocks = self.scene.blocks(area);
        let at = blocks[usize::from(s.block) % blocks.len()];
        let other = blocks[s.number as usize % blocks.len()];
        let mut b = self.get(at);
        let sealed = match s.what % 16 {
            // nine of sixteen: a field, under a good checksum
            0..=8 => {
                self.set(&mut b, s);
                true
            }
            // rot
            9 => {
                self.set(&mut b, s);
                false
            }
            // the other block's bytes under this one's name, and as they are
            10 => {
                let from = self.get(other);
                b.0[HEADER_BYTES..].copy_from_slice(&from.0[HEADER_BYTES..]);
                true
            }
            11 => {
                b = self.get(other);
                false
            }
            // what was here long ago
            12 => {
                b = self.scene.old.get(&at).cloned().unwrap_or_else(Block::zeroed);
                false
            }
            // a piece of the block, moved within it
            13 => {
                let len = (1 + s.number as usize % 512).min(BLOCK_BYTES - s.offset());
                let to = HEADER_BYTES + (s.number >> 16) as usize % (BLOCK_BYTES - HEADER_BYTES - len + 1);
                b.0.copy_within(s.offset()..s.offset() + len, to);
                true
            }
            // filled with one byte from here on
            14 => {
                b.0[s.offset()..].fill(s.value);
                true
            }
            _ => {
                self.change.insert(other, b.clone());
                b = self.get(other);
                false
            }
        };
        let slot = (at.wrapping_sub(self.scene.sb.journal_start)) / self.scene.sb.journal_blocks;
        if sealed {
            reseal(&mut b);
            self.journals |= if slot < 64 { 1 << slot } else { 0 };
        }
        self.change.insert(at, b);
    }

    fn set(&self, b: &mut Block, s: Step) {
        let (at, width) = (s.offset(), s.width());
        let mut now = [0; 8];
        now[..width].copy_from_slice(&b.0[at..at + width]);
        let value = self.value(s, b, u64::from_le_bytes(now));
        b.0[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }

    fn value(&self, s: Step, b: &Block, now: u64) -> u64 {
        let (sb, n) = (&self.scene.sb, s.number);
        let all = self.scene.blocks(Area::All);
        let inodes = self.scene.blocks(Area::Inodes);
        match s.value % 16 {
            0 | 1 => n,
            2 => n & 0xff,
            3 => u64::MAX - (n & 7),
            4 => i64::MAX as u64,
            5 => now.wrapping_add(1),
            6 => now.wrapping_sub(1),
            7 => all[n as usize % all.len()],
            8 => b.header().block,
            9 => b.header().owner,
            10 => {
                let (end, wrap) = (sb.total_blocks, 1 << 52);
                let borders =
                    [end - 1, end, end + 1, sb.ag_start, sb.ag_start - 1, sb.copy_block, 1 << 51, wrap, wrap + 9, 0, 1, sb.journal_start];
                borders[n as usize % borders.len()]
            }
            11 => now ^ 1 << (n % 64),
            12 => now.wrapping_mul(2),
            13 => 1 << (n % 64),
            14 => 0,
            _ => inodes[n as usize % inodes.len()],
        }
    }

    /// The checksums of images and the chain, as a writer of this journal would have made them.
    fn mend_journal(&mut self, slot: usize) {
        let sb = &self.scene.sb;
        let ring = sb.journal_blocks - 1;
        let first = sb.journal_region(slot as u16).0 + 1;
        let mut chain = 0;
        for (at, _) in &self.scene.descriptors[slot] {
            let mut b = self.get(*at);
            let Some(mut d) = b.view::<Descriptor>(HEADER_BYTES).copied() else { continue };
            if b.header().kind != Kind::JournalDescriptor as u16 {
                continue;
            }
            chain = if d.part == 0 { 0 } else { chain };
            for n in 0..(d.count as usize).min(MAX_IMAGES) {
                let image = self.get(first + (at - first + 1 + n as u64) % ring);
                let crc = crc32c::crc32c(&image.0);
                chain = crc32c::crc32c_append(chain, &crc.to_le_bytes());
                if let Some(e) = b.view_mut::<ImageEntry>(ENTRIES_AT + n * size_of::<ImageEntry>()) {
                    e.crc = crc;
                }
            }
            d.chain = chain;
            b.0[HEADER_BYTES..ENTRIES_AT].copy_from_slice(d.as_bytes());
            reseal(&mut b);
            self.change.insert(*at, b);
        }
    }
}

/// Makes the checksum fit, whatever the header says now.
pub fn reseal(b: &mut Block) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[0; 4]), &b.0[4..]);
    b.0[..4].copy_from_slice(&crc.to_le_bytes());
}
