//! What hosts do to the LUN, written down as it happens, and one host's way to it.
//!
//! Every write is seen by all hosts at once; what a loss of power leaves of it is decided later, from the tape (`states`). A write of
//! several blocks is one event. A discard makes the bytes garbage, because that is what the promise says.
//! A host can be told to die in its n-th change of the LUN: that request lands, is lost or is torn, and the host's code ends
//! there and then by unwinding ([`Dead`]).
//!
//! Invariant: the tape has every change in the order in which it was answered, and says which are durable by themselves.
//! Not here: several requests of one host under way at once.

use super::image::{Cell, Image, SIZE, cells, outside};
use crate::Broken;
use fastrand::Rng;
use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo, VolumeId, peek};
use luna_lun::{Disk, Durability, Geometry, LunError, Result};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One change of the LUN.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Blocks that changed; forced ones are durable when answered.
    Put(Vec<(BlockNo, Cell)>, bool),
    /// Everything answered before is durable.
    Flush,
}

/// A tape for people: a line an event; metadata with its kind and version.
pub(super) fn describe(tape: &[Event], volume: &VolumeId) -> String {
    let cell = |(b, c): &(BlockNo, Cell)| match peek(&c.bytes, volume, *b) {
        Ok(h) => format!("{b}:kind {} version {}", h.kind, h.version),
        Err(_) => format!("{b}"),
    };
    let line = |(n, e): (usize, &Event)| match e {
        Event::Flush => format!("{n:>4} flush\n"),
        Event::Put(cells, forced) => {
            let first: Vec<String> = cells.iter().take(8).map(cell).collect();
            format!("{n:>4} {} {} blocks: {}\n", if *forced { "forced" } else { "write" }, cells.len(), first.join(", "))
        }
    };
    tape.iter().enumerate().map(line).collect()
}

/// The LUN, all hosts' view.
pub(super) struct Lun {
    pub(super) now: Image,
    pub(super) tape: Vec<Event>,
}

/// What all doors share.
pub(super) type Shared = Arc<Mutex<Lun>>;

/// What becomes of the request in which a host dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Landed,
    /// The sectors before this one land.
    Head(usize),
    /// The sectors from this one on land.
    Tail(usize),
    /// Each sector by chance.
    Any(u64),
}

impl Fate {
    fn lands(self, sector: usize, rng: &mut Rng) -> bool {
        match self {
            Self::Lost => false,
            Self::Landed => true,
            Self::Head(n) => sector < n,
            Self::Tail(n) => sector >= n,
            Self::Any(_) => rng.bool(),
        }
    }
}

/// With what a host's stack unwinds.
pub(super) struct Dead;

/// One host's way to the LUN.
pub(super) struct Door {
    lun: Shared,
    /// The journal of this host: where its records go.
    ring: Range<BlockNo>,
    volume: VolumeId,
    dead: AtomicBool,
    /// How many events there were before the one in which it died.
    pub(super) died: Mutex<Option<usize>>,
    /// The host dies in the change after so many, like this.
    pub(super) end: Mutex<Option<(usize, Fate)>>,
    /// Changes so far, with the sectors of each.
    pub(super) changes: Mutex<Vec<usize>>,
    broken: Option<Broken>,
}

impl Door {
    pub(super) fn new(lun: Shared, ring: Range<BlockNo>, volume: VolumeId, broken: Option<Broken>) -> Arc<Self> {
        let (end, changes) = (Mutex::new(None), Mutex::default());
        Arc::new(Self { lun, ring, volume, dead: AtomicBool::new(false), died: Mutex::default(), end, changes, broken })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() { Err(LunError::Gone("this host is dead".into())) } else { Ok(()) }
    }

    fn put(&self, mut new: Vec<(BlockNo, Cell)>, forced: bool) -> Result<()> {
        self.alive()?;
        let forced = forced && self.broken != Some(Broken::AnswersBeforeDurable);
        let many = {
            let mut changes = self.changes.lock();
            changes.push(new.len() * 8);
            changes.len()
        };
        let end = self.end.lock().filter(|(n, _)| many == n + 1);
        let mut lun = self.lun.lock();
        if let Some((_, fate)) = end {
            let mut rng = Rng::with_seed(if let Fate::Any(seed) = fate { seed } else { 0 });
            for (n, (b, c)) in new.iter_mut().enumerate() {
                let lands: Vec<bool> = (0..8).map(|s| fate.lands(n * 8 + s, &mut rng)).collect();
                *c = Cell::mixed(*b, &lun.now.cell(*b), c, |s| lands[s]);
            }
        }
        new.iter().for_each(|(b, c)| lun.now.put(*b, c.clone()));
        lun.tape.push(Event::Put(new, forced && end.is_none()));
        let events = lun.tape.len() - 1;
        drop(lun);
        if end.is_some() {
            *self.died.lock() = Some(events);
            self.dead.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new(Dead));
        }
        Ok(())
    }

    /// A rule taken away: the blocks of a record go home before the record is written.
    fn home_first(&self, buf: &[u8], offset: u64) -> Result<()> {
        for part in buf.chunks_exact(BLOCK_BYTES).filter(|_| self.ring.contains(&(offset / BLOCK_U64))) {
            let mut b = Block::zeroed();
            b.0.copy_from_slice(part);
            let home = b.header().block;
            if !self.ring.contains(&home) && peek(&b, &self.volume, home).is_ok() {
                self.put(vec![(home, Cell::new(home, Arc::new(b)))], false)?;
            }
        }
        Ok(())
    }

    /// A rule taken away: nothing but metadata waits for a flush.
    fn only_data_waits(&self) -> bool {
        let lun = self.lun.lock();
        let since = lun.tape.iter().rev().take_while(|e| !matches!(e, Event::Flush));
        let mut blocks = since.filter_map(|e| if let Event::Put(c, false) = e { Some(c) } else { None }).flatten();
        blocks.all(|(b, c)| peek(&c.bytes, &self.volume, *b).is_err())
    }

    fn range(&self, offset: u64, len: u64, cell: impl Fn(BlockNo) -> Cell) -> Result<()> {
        let blocks = offset.div_ceil(BLOCK_U64)..(offset + len) / BLOCK_U64;
        self.put(blocks.map(|b| (b, cell(b))).collect(), false)
    }
}

impl Disk for Door {
    fn geometry(&self) -> Geometry {
        Geometry::able(SIZE)
    }

    fn describe(&self) -> String {
        "recorded LUN".into()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.alive()?;
        outside(offset, buf.len() as u64).map_or(Ok(()), Err)?;
        self.lun.lock().now.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        outside(offset, buf.len() as u64).map_or(Ok(()), Err)?;
        if self.broken == Some(Broken::WritesHomeBeforeTheRecord) {
            self.home_first(buf, offset)?;
        }
        self.put(cells(buf, offset).collect(), durability == Durability::Forced)
    }

    fn flush(&self) -> Result<()> {
        self.alive()?;
        let skips = match self.broken {
            Some(Broken::AnswersBeforeDurable) => true,
            Some(Broken::RecordsBeforeTheirData) => self.only_data_waits(),
            _ => false,
        };
        if !skips {
            self.lun.lock().tape.push(Event::Flush);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.range(offset, len, Cell::trimmed)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let zero = Arc::new(Block::zeroed());
        self.range(offset, len, |b| Cell::new(b, Arc::clone(&zero)))
    }
}
