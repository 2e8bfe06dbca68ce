//! Replay of a dead host's journal: [`plan`] reads and classifies and writes nothing, [`Plan::apply`] puts images in place.
//!
//! The log is followed from the tail in the header: a record counts only when incarnation, sequence, position, part numbers, the
//! checksum of each image and the chain checksum all hold; the first that does not is the end. If a *later* record of the same
//! incarnation is whole, the end is damage, not a torn tail, and `apply` refuses until told otherwise ([`Plan::accept_gap`]).
//!
//! Invariant: a home block is written iff it is torn for good (it does not even name itself, and nobody is writing it) or its
//! version is smaller than the image's; so replay is the maximum over versions: idempotent, restartable. Nothing is written before a
//! flush has made durable what was read.
//!
//! **Torn for good** needs care: the log keeps images of blocks whose lock was given back long ago, and a block that a live host is
//! writing at this moment reads as torn where the LUN is atomic only by sectors. Writing an old image over it would lose what that
//! host acknowledged. So [`Plan::settle`] looks at torn blocks again until they are whole or longer than a request lives, and
//! `apply` writes no other torn block. Journals are replayed one at a time (the membership core sees to that), because of two dead
//! hosts' images of one torn block the newer must win. `docs/recovery.md` has the proof, `docs/model.md` the counterexamples.
//!
//! Not here: who may be replayed (a [`ReplayProof`] is given), whose locks are held (the caller's skip list, rule R6).

use crate::layout::{Region, chain_on, crc};
use crate::writer::write_header;
use crate::{JournalError, ReplayProof, Result};
use luna_format::journal::{Descriptor, ENTRIES_AT, ImageEntry, JournalHeader, MAX_IMAGES, STATE_CLEAN, STATE_DIRTY};
use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo, Expect, HEADER_BYTES, Incarnation, Kind, Slot, VolumeId, open, peek};
use luna_lun::{Disk, Durability};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use zerocopy::{FromZeros, IntoBytes};

/// Blocks read ahead while following the log.
const WINDOW_BLOCKS: u64 = 256;
/// Home blocks in one request.
const SPAN_BLOCKS: u64 = 64;
/// Blocks that are read although nobody asked for them, rather than make two requests.
const GAP_BLOCKS: u64 = 8;

/// Where the log is damaged although later records are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First unreadable record.
    pub missing: u64,
    /// Its position.
    pub position: u64,
    /// A later record that is whole.
    pub later: u64,
}

/// Images of a whole record, and the position behind it.
type Whole = (Vec<(BlockNo, Block)>, u64);

/// What replay would do.
pub struct Plan {
    region: Region,
    header: JournalHeader,
    version: u64,
    next_incarnation: Incarnation,
    /// Where images may go.
    homes: Range<BlockNo>,
    /// Newest image of each block.
    images: BTreeMap<BlockNo, Block>,
    records: u64,
    end: u64,
    gap: Option<Gap>,
    gap_accepted: bool,
    /// Home blocks that are torn and that nobody is writing.
    torn: BTreeSet<BlockNo>,
    /// Nobody else uses the volume: whatever is torn is torn for good.
    alone: bool,
}

/// What replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whole records found.
    pub records: u64,
    /// Blocks with an image.
    pub images: u64,
    /// Home blocks written.
    pub written: u64,
    /// Home blocks that were as new or newer.
    pub current: u64,
    /// Of those written, how many were torn.
    pub torn: u64,
    /// Blocks on the skip list.
    pub skipped: u64,
}

/// The header of a journal, for `status`, `dump` and `fsck`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderInfo {
    /// Nothing to replay.
    pub clean: bool,
    /// Its user, or (clean) the lowest incarnation that may open it.
    pub incarnation: Incarnation,
    /// Position of the oldest record.
    pub tail: u64,
    /// Sequence of that record.
    pub tail_sequence: u64,
}

/// Reads the header of a journal.
pub fn inspect(disk: &dyn Disk, volume: VolumeId, region: (BlockNo, u64), slot: Slot) -> Result<HeaderInfo> {
    let region = Region { volume, slot, start: region.0, len: region.1 };
    let (_, h) = read_header(disk, &region)?;
    Ok(HeaderInfo { clean: h.state == STATE_CLEAN, incarnation: h.incarnation, tail: h.tail, tail_sequence: h.tail_sequence })
}

/// Reads the journal of `slot` and says what replay would do. Writes nothing. Images of blocks outside of `homes` are damage, however
/// good their checksums are: replay must not write, nor look, where no journaled block can live.
pub fn plan(
    disk: &dyn Disk,
    volume: VolumeId,
    region: (BlockNo, u64),
    homes: Range<BlockNo>,
    slot: Slot,
    proof: ReplayProof,
) -> Result<Plan> {
    let region = Region { volume, slot, start: region.0, len: region.1 };
    let (version, header) = read_header(disk, &region)?;
    let dirty = header.state == STATE_DIRTY;
    if dirty && !proof.covers(slot, header.incarnation) {
        return Err(JournalError::Unproven { slot, found: header.incarnation, proof: proof.describe() });
    }
    // a clean header already names the next incarnation
    let last = if dirty { header.incarnation } else { header.incarnation.saturating_sub(1) };
    let next_incarnation = proof.next_incarnation(last);
    let mut plan = Plan {
        region,
        header,
        version,
        next_incarnation,
        homes,
        images: BTreeMap::new(),
        records: 0,
        end: header.tail,
        gap: None,
        gap_accepted: false,
        torn: BTreeSet::new(),
        alone: proof == ReplayProof::FirstMount,
    };
    if dirty {
        let mut log = Log { disk, region, start: 0, window: Vec::new() };
        plan.follow(&mut log)?;
        plan.gap = plan.look_behind(&mut log)?;
    }
    Ok(plan)
}

impl Plan {
    /// Whether the journal was left in order (nothing to write home).
    pub fn is_clean(&self) -> bool {
        self.header.state == STATE_CLEAN
    }

    /// The incarnation that used the journal (of a clean one: the lowest that may come).
    pub fn incarnation(&self) -> Incarnation {
        self.header.incarnation
    }

    /// Whole records found.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The newest image of each block: what the home blocks must at least be.
    pub fn images(&self) -> impl Iterator<Item = (BlockNo, &Block)> {
        self.images.iter().map(|(b, i)| (*b, i))
    }

    /// Damage before the end, if there is any.
    pub fn gap(&self) -> Option<Gap> {
        self.gap
    }

    /// An operator's word that the records behind the damage may be lost.
    pub fn accept_gap(&mut self) {
        self.gap_accepted = true;
    }

    /// Finds the home blocks that are torn for good: looks at the torn ones again for as long as `again` says so, which must be
    /// longer than a request to the LUN lives (it may sleep). Answers how many there are. Before [`Self::apply`] unless nobody else
    /// uses the volume.
    pub fn settle(&mut self, disk: &dyn Disk, again: &mut dyn FnMut() -> bool) -> Result<u64> {
        let mut torn: Vec<BlockNo> = self.images.keys().copied().collect();
        loop {
            let mut still = Vec::new();
            for span in spans(&torn, GAP_BLOCKS) {
                let versions = self.home_versions(disk, span)?;
                still.extend(span.iter().zip(versions).filter(|(_, version)| version.is_none()).map(|(block, _)| *block));
            }
            torn = still;
            if torn.is_empty() || !again() {
                break;
            }
        }
        self.torn = torn.into_iter().collect();
        Ok(self.torn.len() as u64)
    }

    /// The versions of what is at home in the blocks of a span, each 0 when nothing was ever written there (metadata segments are
    /// zeroed before use, and a lock is given back only after its blocks are home, so nobody but the owner of this log could be
    /// writing it); `None` when it is torn.
    fn home_versions(&self, disk: &dyn Disk, span: &[BlockNo]) -> Result<Vec<Option<u64>>> {
        let (Some(&first), Some(&last)) = (span.first(), span.last()) else { return Ok(Vec::new()) };
        let mut home = Block::zeroed_vec((last - first + 1) as usize);
        disk.read_at(home.as_mut_slice().as_mut_bytes(), first * BLOCK_U64).map_err(self.lun("reading home blocks"))?;
        let version = |block: &BlockNo| {
            let home = home.get((block - first) as usize)?;
            let empty = || home.is_zero().then_some(0);
            peek(home, &self.region.volume, *block).ok().map(|h| h.version).or_else(empty)
        };
        Ok(span.iter().map(version).collect())
    }

    fn lun(&self, what: &'static str) -> impl Fn(luna_lun::LunError) -> JournalError + use<> {
        let slot = self.region.slot;
        move |source| JournalError::Lun { slot, what, source }
    }

    /// Puts the images in place, flushes, marks the journal clean for the next incarnation. `skip` names blocks whose lock a
    /// live host holds (R6). May be repeated, also after it was interrupted.
    pub fn apply(&self, disk: &dyn Disk, skip: &dyn Fn(BlockNo) -> bool) -> Result<Report> {
        if let (Some(g), false) = (self.gap, self.gap_accepted) {
            return Err(JournalError::Damaged { slot: self.region.slot, missing: g.missing, position: g.position, later: g.later });
        }
        let mut report = Report { records: self.records, images: self.images.len() as u64, ..Report::default() };
        if !self.images.is_empty() {
            // the newest record may never have been answered, and lie in the target's cache alone: it must not get lost when a part of
            // it is at home
            disk.flush().map_err(self.lun("flushing the log"))?;
        }
        let blocks: Vec<BlockNo> = self.images.keys().copied().filter(|b| !skip(*b)).collect();
        report.skipped = report.images - blocks.len() as u64;
        for span in spans(&blocks, GAP_BLOCKS) {
            let versions = self.home_versions(disk, span)?;
            let mut due = Vec::new();
            for (&block, version) in span.iter().zip(versions) {
                if self.is_due(block, version, &mut report)? {
                    due.push(block);
                }
            }
            for run in spans(&due, 0) {
                self.write_home(disk, run)?;
            }
            report.written += due.len() as u64;
        }
        disk.flush().map_err(self.lun("flushing home blocks"))?;
        self.mark_clean(disk)?;
        Ok(report)
    }

    /// Whether the image is to be written over what is at home.
    fn is_due(&self, block: BlockNo, home: Option<u64>, report: &mut Report) -> Result<bool> {
        let image = self.images.get(&block).map_or(0, |image| image.header().version);
        match home {
            Some(version) if version >= image => {
                report.current += 1;
                return Ok(false);
            }
            Some(_) => {}
            None if self.alone || self.torn.contains(&block) => report.torn += 1,
            None => return Err(JournalError::Unsettled { slot: self.region.slot, block }),
        }
        Ok(true)
    }

    /// Writes the images of adjacent blocks.
    fn write_home(&self, disk: &dyn Disk, run: &[BlockNo]) -> Result<()> {
        let Some(&first) = run.first() else { return Ok(()) };
        let bytes: Vec<u8> = run.iter().filter_map(|b| self.images.get(b)).flat_map(|image| image.0).collect();
        disk.write_at(&bytes, first * BLOCK_U64, Durability::Plain).map_err(self.lun("writing home blocks"))
    }

    /// R8: only after the flush, the new header.
    fn mark_clean(&self, disk: &dyn Disk) -> Result<()> {
        if self.is_clean() && self.header.incarnation >= self.next_incarnation {
            return Ok(());
        }
        let mut h = JournalHeader::new_zeroed();
        (h.incarnation, h.state, h.tail) = (self.next_incarnation, STATE_CLEAN, self.end);
        // one more than the record that may be lying there torn
        h.tail_sequence = self.header.tail_sequence + self.records + u64::from(!self.is_clean());
        // a recoverer that slept while another one finished must not touch the log of who uses it now
        let (version, now) = read_header(disk, &self.region)?;
        if version != self.version {
            if now.state == STATE_CLEAN && now.incarnation == self.next_incarnation {
                return Ok(());
            }
            return Err(JournalError::Overtaken { slot: self.region.slot, incarnation: now.incarnation });
        }
        write_header(disk, &self.region, &h, self.version + 1)
    }

    /// Follows whole records from the tail.
    fn follow(&mut self, log: &mut Log<'_>) -> Result<()> {
        let ring = self.region.ring();
        while let Some((images, end)) = self.record(log, self.header.tail_sequence + self.records, self.end)? {
            if end - self.header.tail > ring {
                break;
            }
            for (block, image) in images {
                self.images.insert(block, image);
            }
            self.records += 1;
            self.end = end;
        }
        Ok(())
    }

    /// Reads the record `sequence` at `position`; `None` when it is not whole.
    fn record(&self, log: &mut Log<'_>, sequence: u64, position: u64) -> Result<Option<Whole>> {
        let (mut at, mut part, mut chain) = (position, 0u32, 0u32);
        let mut images = Vec::new();
        loop {
            let Some((d, entries)) = self.descriptor(log, at)? else { return Ok(None) };
            let parts = d.parts;
            if d.sequence != sequence || d.part != part || parts == 0 || u64::from(parts) > self.region.ring() {
                return Ok(None);
            }
            for (i, e) in entries.iter().enumerate() {
                let image = log.block(at + 1 + i as u64)?;
                let found = crc(image);
                if found != e.crc {
                    return Ok(None);
                }
                chain = chain_on(chain, found);
                images.push((e.block, image.clone()));
            }
            if d.chain != chain {
                return Ok(None);
            }
            at += 1 + entries.len() as u64;
            part += 1;
            if part == parts {
                break;
            }
            if at - position > self.region.ring() {
                return Ok(None);
            }
        }
        for (block, image) in &images {
            // the checksums hold, so this is what was written; it must still be a block that names its home
            if !self.homes.contains(block) || peek(image, &self.region.volume, *block).is_err() {
                return Err(JournalError::BadImage { slot: self.region.slot, block: *block });
            }
        }
        Ok(Some((images, at)))
    }

    /// The descriptor at position `at`, if one of this incarnation lies there.
    fn descriptor(&self, log: &mut Log<'_>, at: u64) -> Result<Option<(Descriptor, Vec<ImageEntry>)>> {
        let r = self.region;
        let b = log.block(at)?;
        let owner = Some(u64::from(r.slot));
        let expect = Expect { kind: Kind::JournalDescriptor, volume: r.volume, block: r.block_at(at), owner };
        if open(b, &expect).is_err() {
            return Ok(None);
        }
        let Some(d) = b.view::<Descriptor>(HEADER_BYTES).copied() else { return Ok(None) };
        let count = d.count as usize;
        if d.incarnation != self.header.incarnation || d.position != at || count == 0 || count > MAX_IMAGES {
            return Ok(None);
        }
        let entry = |i: usize| b.view::<ImageEntry>(ENTRIES_AT + i * size_of::<ImageEntry>()).copied();
        Ok((0..count).map(entry).collect::<Option<Vec<_>>>().map(|entries| (d, entries)))
    }

    /// Looks through the rest of the ring for a whole record behind the end: the sign of damage.
    fn look_behind(&self, log: &mut Log<'_>) -> Result<Option<Gap>> {
        let missing = self.header.tail_sequence + self.records;
        for at in self.end..self.header.tail + self.region.ring() {
            if let Some((d, _)) = self.descriptor(log, at)?
                && d.part == 0
                && d.sequence > missing
                && self.record(log, d.sequence, at)?.is_some()
            {
                return Ok(Some(Gap { missing, position: self.end, later: d.sequence }));
            }
        }
        Ok(None)
    }
}

/// Ascending blocks, cut into spans of at most [`SPAN_BLOCKS`] with gaps of at most `gap` blocks: a takeover of a full log has
/// thousands of blocks, and each request is a round trip.
fn spans(blocks: &[BlockNo], gap: u64) -> impl Iterator<Item = &[BlockNo]> {
    let mut rest = blocks;
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        let near = |pair: &[BlockNo]| pair[1] - pair[0] <= gap + 1 && pair[1] - first < SPAN_BLOCKS;
        let (span, behind) = rest.split_at(1 + rest.windows(2).take_while(|pair| near(pair)).count());
        rest = behind;
        Some(span)
    })
}

/// Reads ring blocks by position through a window, so that following the log costs few large reads.
struct Log<'a> {
    disk: &'a dyn Disk,
    region: Region,
    start: u64,
    window: Vec<Block>,
}

impl Log<'_> {
    /// The block at `position`.
    fn block(&mut self, position: u64) -> Result<&Block> {
        if position < self.start || position >= self.start + self.window.len() as u64 {
            let len = WINDOW_BLOCKS.min(self.region.run_at(position));
            self.window.clear();
            let mut window = Block::zeroed_vec(len as usize);
            let at = self.region.block_at(position) * BLOCK_U64;
            let slot = self.region.slot;
            self.disk.read_at(window.as_mut_slice().as_mut_bytes(), at).map_err(|source| JournalError::Lun {
                slot,
                what: "reading the log",
                source,
            })?;
            (self.start, self.window) = (position, window);
        }
        let i = usize::try_from(position - self.start).unwrap_or(usize::MAX);
        self.window.get(i).ok_or(JournalError::BadHeader { slot: self.region.slot, what: "ring position", found: position })
    }
}

/// Reads and opens the header.
fn read_header(disk: &dyn Disk, region: &Region) -> Result<(u64, JournalHeader)> {
    let mut b = Block::zeroed();
    debug_assert_eq!(b.0.len(), BLOCK_BYTES);
    disk.read_at(&mut b.0, region.start * BLOCK_U64).map_err(|source| JournalError::Lun {
        slot: region.slot,
        what: "reading the header",
        source,
    })?;
    region.open_header(&b)
}
