//! The writer of one journal: a running batch in memory, one record a batch, group commit by whoever comes first.
//!
//! Invariant: positions `disk_tail .. head` of the ring hold what replay would need; a record is placed only where the tail *on
//! the LUN* allows it (the leader moves that tail first when it must). `durable` only grows, in order of sequence.
//! Locking: one mutex, never held across I/O; the leader is marked by `busy`. Not here: checkpointing, replay.

use crate::data::DataFlushes;
use crate::layout::{Encoded, Image, Region, blocks_for, encode};
use crate::{JournalError, Result};
use luna_format::journal::{JournalHeader, STATE_CLEAN, STATE_DIRTY};
use luna_format::{BLOCK_U64, Block, BlockNo, Incarnation, Slot, VolumeId};
use luna_lun::{Disk, Durability};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::FromZeros;

/// Number of a batch: what `append` answers and `flush_to` waits for. Grows by one a batch, across incarnations too.
pub type Sequence = u64;

/// Most blocks of one write request: enough for one wait a record in practice, little enough to join in memory.
const MAX_IO_BLOCKS: u64 = 1024;

/// Space for a number of images, held until it is used or dropped.
#[derive(Debug)]
pub struct Credit {
    images: u64,
    pool: Arc<AtomicU64>,
}

impl Credit {
    /// Images it covers.
    pub fn images(&self) -> u64 {
        self.images
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.pool.fetch_sub(self.images, Ordering::AcqRel);
    }
}

/// Counters since the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions appended.
    pub transactions: u64,
    /// Records written (batches).
    pub records: u64,
    /// Images written.
    pub images: u64,
    /// Images that a later one of the same batch replaced.
    pub absorbed: u64,
    /// Flushes of data before a record (rule R9).
    pub data_flushes: u64,
    /// Headers written.
    pub headers: u64,
    /// Ring blocks in use.
    pub used_blocks: u64,
    /// Ring blocks in all.
    pub ring_blocks: u64,
}

/// A record in the ring that may still be needed by replay.
struct Live {
    sequence: Sequence,
    end: u64,
}

struct State {
    batch: BTreeMap<BlockNo, Arc<Block>>,
    running: Sequence,
    durable: Sequence,
    retired: Sequence,
    head: u64,
    /// Oldest position that memory still holds unretired.
    tail: u64,
    /// The tail in the header on the LUN.
    disk_tail: u64,
    live: VecDeque<Live>,
    header_version: u64,
    busy: bool,
    closed: bool,
    poison: Option<String>,
    stats: Stats,
}

/// The journal of this host's slot, open for writing. All calls take `&self`.
pub struct Journal {
    disk: Arc<dyn Disk>,
    region: Region,
    incarnation: Incarnation,
    data: DataFlushes,
    reserved: Arc<AtomicU64>,
    state: Mutex<State>,
    done: Condvar,
}

impl Journal {
    /// Writes a clean header: the journal of a new volume. Any incarnation from 1 on may open it.
    pub fn format(disk: &dyn Disk, volume: VolumeId, region: (BlockNo, u64), slot: Slot) -> Result<()> {
        let region = Region { volume, slot, start: region.0, len: region.1 };
        let mut h = JournalHeader::new_zeroed();
        (h.incarnation, h.tail_sequence, h.state) = (1, 1, STATE_CLEAN);
        write_header(disk, &region, &h, 1)
    }

    /// Makes a journal anew whose header cannot be believed: nothing of the old ring can be taken for a record afterwards, and incarnations
    /// from `incarnation` on may open it. `version` is that of the header. For an offline repair only: what the ring held is lost.
    pub fn reset(
        disk: &dyn Disk,
        volume: VolumeId,
        region: (BlockNo, u64),
        slot: Slot,
        incarnation: Incarnation,
        version: u64,
    ) -> Result<()> {
        let region = Region { volume, slot, start: region.0, len: region.1 };
        let lun = |source| JournalError::Lun { slot, what: "emptying the ring", source };
        disk.write_zeroes((region.start + 1) * BLOCK_U64, region.ring() * BLOCK_U64).map_err(lun)?;
        disk.flush().map_err(lun)?;
        let mut h = JournalHeader::new_zeroed();
        (h.incarnation, h.tail_sequence, h.state) = (incarnation, 1, STATE_CLEAN);
        write_header(disk, &region, &h, version)
    }

    /// Opens a clean journal as `incarnation` and marks it dirty, forced. Continues behind every position and sequence used
    /// before. A dirty journal is refused: replay comes first.
    pub fn open(disk: Arc<dyn Disk>, volume: VolumeId, region: (BlockNo, u64), slot: Slot, incarnation: Incarnation) -> Result<Self> {
        let region = Region { volume, slot, start: region.0, len: region.1 };
        let mut b = Block::zeroed();
        let at = region.start * BLOCK_U64;
        disk.read_at(&mut b.0, at).map_err(|source| JournalError::Lun { slot, what: "reading the header", source })?;
        let (version, h) = region.open_header(&b)?;
        if h.state != STATE_CLEAN {
            return Err(JournalError::Dirty { slot, incarnation: h.incarnation });
        }
        if incarnation < h.incarnation {
            return Err(JournalError::NotOwner { slot, found: h.incarnation, ours: incarnation });
        }
        let new = JournalHeader { incarnation, state: STATE_DIRTY, ..h };
        write_header(&*disk, &region, &new, version + 1)?;
        let state = State {
            batch: BTreeMap::new(),
            running: h.tail_sequence,
            durable: h.tail_sequence - 1,
            retired: h.tail_sequence - 1,
            head: h.tail,
            tail: h.tail,
            disk_tail: h.tail,
            live: VecDeque::new(),
            header_version: version + 1,
            busy: false,
            closed: false,
            poison: None,
            stats: Stats { headers: 1, ring_blocks: region.ring(), ..Stats::default() },
        };
        Ok(Self {
            disk,
            region,
            incarnation,
            data: DataFlushes::default(),
            reserved: Arc::new(AtomicU64::new(0)),
            state: Mutex::new(state),
            done: Condvar::new(),
        })
    }

    /// The slot.
    pub fn slot(&self) -> Slot {
        self.region.slot
    }

    /// The incarnation it was opened with.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Images that an empty journal takes in one transaction.
    pub fn max_transaction(&self) -> u64 {
        self.region.images_in(self.region.ring())
    }

    /// Images that can still be appended before something is retired (reservations are taken off).
    pub fn free_images(&self) -> u64 {
        self.free(&self.state.lock())
    }

    /// Takes space for `images` images, to be used by [`Journal::append_reserved`]. A refusal means: checkpoint, retire, again.
    pub fn reserve(&self, images: u64) -> Result<Credit> {
        let s = self.state.lock();
        self.admit(&s, images)?;
        self.reserved.fetch_add(images, Ordering::AcqRel);
        Ok(Credit { images, pool: self.reserved.clone() })
    }

    /// Adds one transaction to the running batch, in memory only, and answers the sequence with which it will be durable. A
    /// later image of the same block in the batch replaces the earlier one.
    pub fn append(&self, images: Vec<Image>) -> Result<Sequence> {
        self.check_images(&images)?;
        let mut s = self.state.lock();
        let fresh = images.iter().filter(|i| !s.batch.contains_key(&i.block)).count() as u64;
        self.admit(&s, fresh)?;
        Ok(Self::add(&mut s, images))
    }

    /// The same with space taken before; `Err(TooLarge)` when there are more images than the credit covers.
    pub fn append_reserved(&self, credit: Credit, images: Vec<Image>) -> Result<Sequence> {
        self.check_images(&images)?;
        if images.len() as u64 > credit.images {
            return Err(JournalError::TooLarge { slot: self.region.slot, wanted: images.len() as u64, limit: credit.images });
        }
        let mut s = self.state.lock();
        self.alive(&s)?;
        let sequence = Self::add(&mut s, images);
        // under the lock: nobody sees the space neither reserved nor used
        drop(credit);
        Ok(sequence)
    }

    /// Notes that a data write was answered on which a coming record may depend: the next flush flushes the LUN first (R9).
    pub fn note_data_write(&self) {
        self.data.note();
    }

    /// Returns when all data noted before is durable. One flush serves all who wait for it, records included.
    ///
    /// # Errors
    /// The LUN's. What was answered may then be lost: the caller withdraws.
    pub fn flush_data(&self) -> luna_lun::Result<()> {
        self.data.flush(&*self.disk).map(drop)
    }

    /// Returns when every transaction appended with a sequence up to `seq` is durable. The first caller writes for all.
    pub fn flush_to(&self, seq: Sequence) -> Result<()> {
        let mut s = self.state.lock();
        loop {
            let newest = if s.batch.is_empty() { s.running - 1 } else { s.running };
            // one that was closed has nothing left to make durable: who still asks (a right that is given back) is answered
            if s.poison.is_none() && s.durable >= seq.min(newest) {
                return Ok(());
            }
            self.alive(&s)?;
            if s.busy {
                self.done.wait(&mut s);
                continue;
            }
            s = self.lead(s)?;
        }
    }

    /// Newest durable sequence.
    pub fn durable(&self) -> Sequence {
        self.state.lock().durable
    }

    /// Sequence of the running batch: what an append now would get.
    pub fn running(&self) -> Sequence {
        self.state.lock().running
    }

    /// Newest retired sequence.
    pub fn retired(&self) -> Sequence {
        self.state.lock().retired
    }

    /// Says that every image of the records up to `seq` is at home and flushed, so that their space may be used again. Costs no
    /// I/O: the header follows when space is needed, on [`Journal::persist_tail`] or on close.
    pub fn retire(&self, seq: Sequence) {
        let mut s = self.state.lock();
        let seq = seq.min(s.durable);
        if seq <= s.retired {
            return;
        }
        s.retired = seq;
        while s.live.front().is_some_and(|l| l.sequence <= seq) {
            if let Some(l) = s.live.pop_front() {
                s.tail = l.end;
            }
        }
    }

    /// Writes the tail to the header now, forced: afterwards replay looks at no retired record any more (rule R7).
    pub fn persist_tail(&self) -> Result<()> {
        let s = self.idle()?;
        if s.disk_tail == s.tail {
            return Ok(());
        }
        self.write_tail(s, STATE_DIRTY).map(drop)
    }

    /// Leaves the journal clean, forced. Everything must be durable and retired before; afterwards every call is refused.
    pub fn close(&self) -> Result<()> {
        let mut s = self.idle()?;
        if !s.batch.is_empty() || s.retired < s.durable {
            let (durable, retired) = (s.durable, s.retired);
            return Err(JournalError::NotRetired { slot: self.region.slot, durable, retired });
        }
        s.closed = true;
        self.write_tail(s, STATE_CLEAN).map(drop)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let s = self.state.lock();
        Stats { used_blocks: s.head - s.tail, ..s.stats }
    }

    /// Refuses work on a poisoned or closed journal.
    fn alive(&self, s: &State) -> Result<()> {
        let slot = self.region.slot;
        match &s.poison {
            Some(cause) => Err(JournalError::Withdrawn { slot, cause: cause.clone() }),
            None if s.closed => Err(JournalError::Withdrawn { slot, cause: "the journal was closed".to_owned() }),
            None => Ok(()),
        }
    }

    /// Waits until no leader is writing.
    fn idle(&self) -> Result<MutexGuard<'_, State>> {
        let mut s = self.state.lock();
        while s.busy {
            self.done.wait(&mut s);
        }
        self.alive(&s)?;
        Ok(s)
    }

    /// Images that still fit.
    fn free(&self, s: &State) -> u64 {
        let spoken = s.batch.len() as u64 + self.reserved.load(Ordering::Acquire);
        let room = self.region.ring() - (s.head - s.tail);
        self.region.images_in(room).saturating_sub(spoken)
    }

    /// Whether `images` more fit.
    fn admit(&self, s: &State, images: u64) -> Result<()> {
        self.alive(s)?;
        let (slot, limit, free) = (self.region.slot, self.max_transaction(), self.free(s));
        if images > limit {
            return Err(JournalError::TooLarge { slot, wanted: images, limit });
        }
        if images > free {
            return Err(JournalError::Full { slot, wanted: images, free });
        }
        Ok(())
    }

    /// Every image must say what its home says, or replay would be lied to.
    fn check_images(&self, images: &[Image]) -> Result<()> {
        let inside = self.region.start..self.region.start + self.region.len;
        for i in images {
            let h = i.bytes.header();
            if h.magic != luna_format::MAGIC || h.block != i.block || h.volume != self.region.volume || inside.contains(&i.block) {
                return Err(JournalError::BadImage { slot: self.region.slot, block: i.block });
            }
        }
        Ok(())
    }

    /// Puts the images into the batch.
    fn add(s: &mut State, images: Vec<Image>) -> Sequence {
        s.stats.transactions += 1;
        for i in images {
            if s.batch.insert(i.block, i.bytes).is_some() {
                s.stats.absorbed += 1;
            }
        }
        s.running
    }

    /// Writes the running batch as one record: the leader's part of a group commit.
    fn lead<'a>(&'a self, mut s: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>> {
        let images: Vec<Image> = std::mem::take(&mut s.batch).into_iter().map(|(block, bytes)| Image { block, bytes }).collect();
        let (sequence, position) = (s.running, s.head);
        let end = position + blocks_for(images.len() as u64);
        assert!(end - s.tail <= self.region.ring(), "append admitted more than the ring holds");
        s.running += 1;
        s.head = end;
        s.live.push_back(Live { sequence, end });
        s.busy = true;
        if end - s.disk_tail > self.region.ring() {
            s.busy = false;
            s = self.write_tail(s, STATE_DIRTY)?;
            s.busy = true;
        }
        drop(s);
        let flushed = self.data.flush(&*self.disk);
        let sent = matches!(flushed, Ok(true));
        let written = flushed.and_then(|_| self.write_record(sequence, position, &images));
        let mut s = self.state.lock();
        s.busy = false;
        self.settle(&mut s, written, "writing a record")?;
        s.durable = sequence;
        s.stats.records += 1;
        s.stats.images += images.len() as u64;
        s.stats.data_flushes += u64::from(sent);
        Ok(s)
    }

    /// Writes the blocks of a record, all forced, in as few requests as limits and the wrap allow. The order does not matter:
    /// the record is valid only when all of it is there.
    fn write_record(&self, sequence: Sequence, position: u64, images: &[Image]) -> luna_lun::Result<()> {
        let Encoded { parts } = encode(&self.region, self.incarnation, sequence, position, images);
        let mut bufs: Vec<&[u8]> = Vec::with_capacity(images.len() + parts.len());
        for (descriptor, images) in &parts {
            bufs.push(&descriptor.0);
            bufs.extend(images.iter().map(|i| &i.bytes.0[..]));
        }
        let (mut at, mut rest) = (position, &bufs[..]);
        while !rest.is_empty() {
            let most = MAX_IO_BLOCKS.min(self.region.run_at(at)) as usize;
            let (now, later) = rest.split_at(most.min(rest.len()));
            self.disk.write_vectored_at(now, self.region.block_at(at) * BLOCK_U64, Durability::Forced)?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes the header with the tail of memory and `state`; nobody else writes meanwhile.
    fn write_tail<'a>(&'a self, mut s: MutexGuard<'a, State>, state: u32) -> Result<MutexGuard<'a, State>> {
        s.busy = true;
        s.header_version += 1;
        let (version, tail) = (s.header_version, s.tail);
        let mut h = JournalHeader::new_zeroed();
        (h.tail, h.tail_sequence, h.state) = (tail, s.retired + 1, state);
        // a clean log belongs to nobody: it names the lowest incarnation that may come next
        h.incarnation = if state == STATE_CLEAN { self.incarnation + 1 } else { self.incarnation };
        drop(s);
        let b = self.region.header_block(&h, version);
        let written = self.disk.write_at(&b.0, self.region.start * BLOCK_U64, Durability::Forced);
        let mut s = self.state.lock();
        s.busy = false;
        self.settle(&mut s, written, "writing the header")?;
        s.disk_tail = tail;
        s.stats.headers += 1;
        Ok(s)
    }

    /// Wakes the waiters; a failure poisons the journal for good.
    fn settle(&self, s: &mut State, result: luna_lun::Result<()>, what: &'static str) -> Result<()> {
        self.done.notify_all();
        result.map_err(|source| {
            let slot = self.region.slot;
            tracing::error!(slot, what, error = %source, "journal withdrawn");
            s.poison.get_or_insert_with(|| format!("{what}: {source}"));
            JournalError::Lun { slot, what, source }
        })
    }
}

/// Writes a header block, forced.
pub(crate) fn write_header(disk: &dyn Disk, region: &Region, h: &JournalHeader, version: u64) -> Result<()> {
    let b = region.header_block(h, version);
    disk.write_at(&b.0, region.start * BLOCK_U64, Durability::Forced).map_err(|source| JournalError::Lun {
        slot: region.slot,
        what: "writing the header",
        source,
    })
}
