//! The LUN as bytes: what every host sees, what a power cut of the target may take back, and what is still on its way.
//!
//! | state of a write | who sees it | what can still happen |
//! |---|---|---|
//! | flying | nobody | it lands, lands torn, lands late, or is lost with its host; a fence drains it |
//! | landed, plain | everybody | a power cut of the target keeps it, loses it, or tears it, whatever it did to others |
//! | landed, forced, or flushed | everybody | nothing |
//!
//! Tearing is at 512 bytes. Three properties are looked at in here, where nothing can be argued about: no write of a fenced
//! incarnation lands (I2), the version of a metadata block never falls, and no version has two contents (I6).
//! Not here: when things happen.

use crate::check::Who;
use fastrand::Rng;
use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo, Incarnation, Slot, VolumeId, peek};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What all doors share.
pub(crate) type Shared = Arc<Mutex<Medium>>;

const SECTOR: usize = 512;
type Content = Option<Arc<Block>>;

/// A write that was handed over and has not landed.
pub(crate) struct Flight {
    /// Who sent it; hosts without a slot have no name.
    pub(crate) who: Option<Who>,
    /// Host and life, for kills.
    pub(crate) from: (usize, u64),
    at: u64,
    bytes: Vec<u8>,
    forced: bool,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Medium {
    blocks: BTreeMap<BlockNo, Arc<Block>>,
    /// Contents that a power cut may bring back, oldest first; the first is durable.
    risk: BTreeMap<BlockNo, Vec<Content>>,
    /// Lowest incarnation that the target still serves.
    lowest: BTreeMap<Slot, Incarnation>,
    /// Newest incarnation whose FENCED record is on the LUN.
    fenced: BTreeMap<Slot, Incarnation>,
    flights: BTreeMap<u64, Flight>,
    next_flight: u64,
    /// Where metadata begins, and whose it is; versions are looked at from here on.
    watch: Option<(BlockNo, VolumeId)>,
    /// The Paxos registers.
    registers: std::ops::Range<BlockNo>,
    /// The first property that did not hold.
    pub(crate) wrong: Option<String>,
    /// Blocks written.
    pub(crate) written: u64,
    /// Flushes.
    pub(crate) flushes: u64,
    /// Flights that landed after their host had died.
    pub(crate) late: u64,
}

impl Medium {
    /// A medium with this content, all of it durable.
    pub(crate) fn of(blocks: BTreeMap<BlockNo, Arc<Block>>, watch: (BlockNo, VolumeId), registers: std::ops::Range<BlockNo>) -> Self {
        Self { blocks, watch: Some(watch), registers, ..Self::default() }
    }

    /// The content.
    pub(crate) fn into_blocks(self) -> BTreeMap<BlockNo, Arc<Block>> {
        self.blocks
    }

    /// A copy of it.
    pub(crate) fn content(&self) -> BTreeMap<BlockNo, Arc<Block>> {
        self.blocks.clone()
    }

    pub(crate) fn block(&self, b: BlockNo) -> Block {
        self.blocks.get(&b).map_or_else(Block::zeroed, |x| Block::clone(x))
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) {
        for (n, part) in buf.chunks_mut(BLOCK_BYTES).enumerate() {
            match self.blocks.get(&(offset / BLOCK_U64 + n as u64)) {
                Some(b) => part.copy_from_slice(&b.0[..part.len()]),
                None => part.fill(0),
            }
        }
    }

    /// The target refuses this host (exact fence).
    pub(crate) fn refuses(&self, who: Option<Who>) -> bool {
        who.is_some_and(|(s, i)| self.lowest.get(&s).is_some_and(|l| i < *l))
    }

    /// A write lands now. False: refused.
    pub(crate) fn write(&mut self, who: Option<Who>, offset: u64, bytes: &[u8], forced: bool) -> bool {
        if self.refuses(who) {
            return false;
        }
        self.judge_writer(who, offset);
        for (n, part) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let mut b = Block::zeroed();
            b.0[..part.len()].copy_from_slice(part);
            self.put(offset / BLOCK_U64 + n as u64, Some(Arc::new(b)), forced);
        }
        true
    }

    /// A range reads as zeroes from now on.
    pub(crate) fn clear(&mut self, who: Option<Who>, offset: u64, len: u64) -> bool {
        if self.refuses(who) {
            return false;
        }
        self.judge_writer(who, offset);
        let (from, to) = (offset.div_ceil(BLOCK_U64), (offset + len) / BLOCK_U64);
        let there: Vec<BlockNo> = self.blocks.range(from..to).map(|(b, _)| *b).collect();
        there.into_iter().for_each(|b| self.put(b, None, false));
        true
    }

    /// Everything that landed is durable.
    pub(crate) fn flush(&mut self) {
        self.flushes += 1;
        self.risk.clear();
    }

    fn judge_writer(&mut self, who: Option<Who>, offset: u64) {
        let (block, (from, _)) = (offset / BLOCK_U64, self.watch.unwrap_or_default());
        // a beat is how a paused host comes back, with or without a lease
        if block < from && !self.registers.contains(&block) {
            return;
        }
        if let Some((s, i)) = who
            && self.fenced.get(&s).is_some_and(|f| i <= *f)
        {
            self.blame(format!("a write of {:?} to block {block} landed after FENCED (I2)", (s, i)));
        }
    }

    fn blame(&mut self, what: String) {
        self.wrong.get_or_insert(format!("LUN: {what}"));
    }

    fn put(&mut self, b: BlockNo, new: Content, forced: bool) {
        let old = self.blocks.get(&b).cloned();
        self.judge_version(b, old.as_deref(), new.as_deref());
        self.written += 1;
        if forced {
            self.risk.remove(&b);
        } else {
            self.risk.entry(b).or_default().push(old);
        }
        match new {
            Some(n) => drop(self.blocks.insert(b, n)),
            None => drop(self.blocks.remove(&b)),
        }
    }

    fn judge_version(&mut self, b: BlockNo, old: Option<&Block>, new: Option<&Block>) {
        let (Some((from, volume)), Some(old), Some(new)) = (self.watch, old, new) else { return };
        if b < from || old.0 == new.0 {
            return;
        }
        let (Ok(o), Ok(n)) = (peek(old, &volume, b), peek(new, &volume, b)) else { return };
        if n.version <= o.version {
            self.blame(format!(
                "block {b} (kind {} then {}) goes from version {} of slot {} to version {} of slot {} (I6)",
                o.kind, n.kind, o.version, o.writer, n.version, n.writer
            ));
        }
    }

    /// Hands a write over; it lands when told to.
    pub(crate) fn fly(&mut self, who: Option<Who>, from: (usize, u64), at: u64, bytes: Vec<u8>, forced: bool) -> u64 {
        self.next_flight += 1;
        self.flights.insert(self.next_flight, Flight { who, from, at, bytes, forced });
        self.next_flight
    }

    /// It lands, if it is still on its way. False: it was refused.
    pub(crate) fn land(&mut self, id: u64) -> bool {
        let Some(f) = self.flights.remove(&id) else { return true };
        self.write(f.who, f.at, &f.bytes, f.forced)
    }

    /// It lands in part: each sector does or does not.
    pub(crate) fn land_torn(&mut self, id: u64, rng: &mut Rng) {
        let Some(mut f) = self.flights.remove(&id) else { return };
        // mostly a beginning, as a cut connection leaves it; now and then any sectors
        let keep = rng.usize(0..=f.bytes.len() / SECTOR);
        let any = rng.u8(0..4) == 0;
        let mut old = vec![0; f.bytes.len()];
        self.read(&mut old, f.at);
        for n in 0..f.bytes.len() / SECTOR {
            if if any { rng.bool() } else { n >= keep } {
                let s = n * SECTOR..(n + 1) * SECTOR;
                f.bytes[s.clone()].copy_from_slice(&old[s]);
            }
        }
        self.write(f.who, f.at, &f.bytes, f.forced);
    }

    /// It never lands.
    pub(crate) fn lose(&mut self, id: u64) {
        self.flights.remove(&id);
    }

    /// What a life of a host has on its way.
    pub(crate) fn flights_of(&self, from: (usize, u64)) -> Vec<u64> {
        self.flights.iter().filter(|(_, f)| f.from == from).map(|(id, _)| *id).collect()
    }

    /// The target's fence: what runs is waited for or dropped, everything later is refused.
    pub(crate) fn fence(&mut self, who: Who, rng: &mut Rng) {
        let mine = |f: &Flight| f.who.is_some_and(|(s, i)| s == who.0 && i <= who.1);
        let ids: Vec<u64> = self.flights.iter().filter(|(_, f)| mine(f)).map(|(id, _)| *id).collect();
        for id in ids {
            if rng.bool() {
                self.land(id);
            } else {
                self.lose(id);
            }
        }
        let lowest = self.lowest.entry(who.0).or_default();
        *lowest = (*lowest).max(who.1 + 1);
    }

    /// FENCED is on the LUN: from here on no write of it may land.
    pub(crate) fn is_fenced(&mut self, who: Who) {
        let newest = self.fenced.entry(who.0).or_default();
        *newest = (*newest).max(who.1);
    }

    /// The target loses power: of what was not flushed, anything may be left, torn at sectors. Nothing is on its way any more.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) -> usize {
        self.flights.clear();
        let risk = std::mem::take(&mut self.risk);
        let lost = risk.len();
        for (b, mut versions) in risk {
            versions.push(self.blocks.get(&b).cloned());
            let pick = rng.usize(0..versions.len());
            let mut left = versions[pick].clone();
            if pick + 1 < versions.len() && rng.u8(0..4) == 0 {
                let (old, new) = (block_of(&left), block_of(&versions[pick + 1]));
                let mut torn = Block::clone(&old);
                let from = rng.usize(0..BLOCK_BYTES / SECTOR) * SECTOR;
                let ends = rng.bool();
                let range = if ends { from..BLOCK_BYTES } else { 0..from };
                torn.0[range.clone()].copy_from_slice(&new.0[range]);
                left = Some(Arc::new(torn));
            }
            match left {
                Some(l) => drop(self.blocks.insert(b, l)),
                None => drop(self.blocks.remove(&b)),
            }
        }
        lost
    }
}

fn block_of(c: &Content) -> Arc<Block> {
    c.clone().unwrap_or_else(|| Arc::new(Block::zeroed()))
}
