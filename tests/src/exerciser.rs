//! One file, random operations of every kind, and a model of its bytes: what `fsx` does, on one or several mounts of the file.
//!
//! Each operation goes to a side (a mount) drawn by the seed, so that with two sides every pair of operations meets across hosts. After
//! each one that returns bytes, they are compared with the model; the size is compared after every operation, on another side than the one that
//! acted when there is one. A failure says the seed, the operation's number and the last operations.
//!
//! Invariant: the model changes only after the operation has succeeded. Not here: crashes (a fault is an error here), several
//! writers of one range.

use crate::{
    Result,
    io::{Aligned, fill},
};
use anyhow::{Context, bail, ensure};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use vmap::{Extent, Flush, Map, MapMut};

/// Unit of direct I/O and of mappings.
const PAGE: usize = 4096;
/// How many operations a failure shows.
const SHOWN: usize = 12;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the operations come from.
    pub seed: u64,
    /// How many.
    pub ops: u64,
    /// First byte of the range worked on; a multiple of 4096.
    pub base: usize,
    /// Length of the range; a multiple of 4096.
    pub span: usize,
    /// The file has its length already and keeps it: others work on other ranges of it.
    pub fixed: bool,
}

impl Plan {
    /// A whole file of at most 256 KiB.
    pub fn whole(seed: u64, ops: u64) -> Self {
        Self { seed, ops, base: 0, span: 256 << 10, fixed: false }
    }
}

/// One mount's view of the file.
struct Side {
    path: PathBuf,
    buffered: File,
    direct: File,
    append: File,
    /// A mapping that is kept while other things happen, and its length.
    kept: Option<Map>,
}

impl Side {
    fn open(path: &Path) -> Result<Self> {
        let open = |flags, append| {
            let mut o = OpenOptions::new();
            o.read(true).write(true).append(append).custom_flags(flags);
            o.open(path).with_context(|| format!("cannot open {}", path.display()))
        };
        Ok(Self {
            path: path.to_owned(),
            buffered: open(0, false)?,
            direct: open(libc::O_DIRECT, false)?,
            append: open(0, true)?,
            kept: None,
        })
    }
}

/// What may be done, and how often beside the others.
const KINDS: &[(Kind, u32, bool)] = &[
    (Kind::Read, 10, true),
    (Kind::Write, 10, true),
    (Kind::ReadDirect, 6, true),
    (Kind::WriteDirect, 6, true),
    (Kind::Append, 3, false),
    (Kind::Truncate, 5, false),
    (Kind::MapRead, 5, true),
    (Kind::MapWrite, 6, true),
    (Kind::Keep, 3, true),
    (Kind::LookAtKept, 5, true),
    (Kind::Punch, 4, true),
    (Kind::Zero, 4, true),
    (Kind::Allocate, 3, false),
    (Kind::Copy, 4, true),
    (Kind::Holes, 3, true),
    (Kind::Sync, 2, true),
    (Kind::Reopen, 2, true),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    ReadDirect,
    WriteDirect,
    Append,
    Truncate,
    MapRead,
    MapWrite,
    Keep,
    LookAtKept,
    Punch,
    Zero,
    Allocate,
    Copy,
    Holes,
    Sync,
    Reopen,
}

/// The file as it should be, and those who look at it.
struct Exerciser {
    plan: Plan,
    rng: fastrand::Rng,
    sides: Vec<Side>,
    /// `span` bytes; zero beyond `len`.
    model: Vec<u8>,
    /// Bytes of the range that the file has.
    len: usize,
    last: VecDeque<String>,
}

/// Does what `plan` says to the file that `paths` name, one path a mount.
pub fn exercise(plan: &Plan, paths: &[PathBuf]) -> Result {
    if !plan.fixed {
        File::create(&paths[0])?;
    }
    let sides = paths.iter().map(|p| Side::open(p)).collect::<Result<_>>()?;
    let len = if plan.fixed { plan.span } else { 0 };
    let rng = fastrand::Rng::with_seed(plan.seed);
    let mut e = Exerciser { plan: plan.clone(), rng, sides, model: vec![0; plan.span], len, last: VecDeque::new() };
    for op in 0..plan.ops {
        e.step().with_context(|| format!("seed {}, operation {op}; the last ones:\n  {}", plan.seed, e.last_ones()))?;
    }
    e.all().with_context(|| format!("seed {}, at the end; the last ones:\n  {}", plan.seed, e.last_ones()))
}

impl Exerciser {
    fn last_ones(&self) -> String {
        self.last.iter().cloned().collect::<Vec<_>>().join("\n  ")
    }

    fn say(&mut self, text: String) {
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(text);
    }

    fn draw(&mut self) -> Kind {
        let fixed = self.plan.fixed;
        let all = KINDS.iter().filter(|k| k.2 || !fixed);
        let mut n = self.rng.u32(..all.clone().map(|k| k.1).sum::<u32>());
        for (kind, weight, _) in all {
            if n < *weight {
                return *kind;
            }
            n -= weight;
        }
        Kind::Read
    }

    fn step(&mut self) -> Result {
        let (kind, side) = (self.draw(), self.rng.usize(..self.sides.len()));
        // short ones more often: they make more edges
        let most = if self.rng.u32(..4) == 0 { self.plan.span } else { 20_000 };
        let at = self.rng.usize(..self.plan.span);
        let n = 1 + self.rng.usize(..most.min(self.plan.span - at));
        self.say(format!("{kind:?} on side {side} at {at} for {n}; the file has {}", self.len));
        self.act(kind, side, at, n)?;
        if !self.plan.fixed {
            let other = (side + 1) % self.sides.len();
            let size = self.sides[other].buffered.metadata()?.len();
            ensure!(size == self.len as u64, "side {other} sees a size of {size}, it should be {}", self.len);
        }
        Ok(())
    }

    fn act(&mut self, kind: Kind, side: usize, at: usize, n: usize) -> Result {
        let aligned = |v: usize| v / PAGE * PAGE;
        let (page, pages) = (aligned(at), n.div_ceil(PAGE) * PAGE);
        let pages = pages.min(self.plan.span - page);
        match kind {
            Kind::Read => self.read(side, false, at, n),
            Kind::ReadDirect => self.read(side, true, page, pages),
            Kind::Write => self.write(side, false, at, n),
            Kind::WriteDirect => self.write(side, true, page, pages),
            Kind::Append => self.append(side, n),
            Kind::Truncate => self.truncate(side, at),
            Kind::MapRead => self.map_read(side, at, n),
            Kind::MapWrite => self.map_write(side, at, n),
            Kind::Keep => self.keep(side),
            Kind::LookAtKept => self.look_at_kept(side),
            Kind::Punch => self.blank(side, at, n, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            Kind::Zero if self.plan.fixed || self.rng.bool() => {
                self.blank(side, at, n, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)
            }
            Kind::Zero => self.blank(side, at, n, FallocateFlags::ZERO_RANGE),
            Kind::Allocate => self.allocate(side, at, n),
            Kind::Copy => self.copy(side, at, n),
            Kind::Holes => self.holes(side),
            Kind::Sync if self.rng.bool() => Ok(self.sides[side].buffered.sync_data()?),
            Kind::Sync => Ok(self.sides[side].direct.sync_all()?),
            Kind::Reopen => {
                self.sides[side] = Side::open(&self.sides[side].path.clone())?;
                Ok(())
            }
        }
    }

    fn compare(&self, got: &[u8], at: usize, what: &str) -> Result {
        let want = &self.model[at..at + got.len()];
        let Some(first) = got.iter().zip(want).position(|(g, w)| g != w) else { return Ok(()) };
        let wrong = got.iter().zip(want).filter(|(g, w)| g != w).count();
        bail!("{what}: byte {} is {:#x} and should be {:#x}; {wrong} of {} are wrong", at + first, got[first], want[first], got.len())
    }

    fn read(&mut self, side: usize, direct: bool, at: usize, n: usize) -> Result {
        let file = if direct { &self.sides[side].direct } else { &self.sides[side].buffered };
        let mut room = Aligned::new(n);
        let mut done = 0;
        while done < n {
            let got = file.read_at(&mut room.bytes_mut()[done..], (self.plan.base + at + done) as u64)?;
            done += got;
            // a direct read ends in the middle of a block at the end of the file only
            if got == 0 || (direct && !done.is_multiple_of(PAGE)) {
                break;
            }
        }
        let there = if self.plan.fixed { n } else { self.len.saturating_sub(at).min(n) };
        ensure!(done == there, "read of {n} at {at} gave {done} bytes; {there} are there");
        self.compare(&room.bytes()[..done], at, if direct { "direct read" } else { "read" })
    }

    /// New bytes for `at..at + n` of the range.
    fn fresh(&mut self, n: usize) -> Aligned {
        let mut room = Aligned::new(n);
        fill(room.bytes_mut(), self.rng.u64(..));
        room
    }

    fn wrote(&mut self, at: usize, bytes: &[u8]) {
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
        self.len = self.len.max(at + bytes.len());
    }

    fn write(&mut self, side: usize, direct: bool, at: usize, n: usize) -> Result {
        let fresh = self.fresh(n);
        let file = if direct { &self.sides[side].direct } else { &self.sides[side].buffered };
        file.write_all_at(fresh.bytes(), (self.plan.base + at) as u64)?;
        self.wrote(at, fresh.bytes());
        Ok(())
    }

    fn append(&mut self, side: usize, n: usize) -> Result {
        let n = n.min(self.plan.span - self.len);
        if n == 0 {
            return Ok(());
        }
        let fresh = self.fresh(n);
        std::io::Write::write_all(&mut &self.sides[side].append, fresh.bytes())?;
        self.wrote(self.len, fresh.bytes());
        Ok(())
    }

    fn truncate(&mut self, side: usize, to: usize) -> Result {
        if to < self.len {
            // a mapping beyond the end is a signal, not an error
            self.sides.iter_mut().for_each(|s| s.kept = None);
        }
        self.sides[side].buffered.set_len(to as u64)?;
        self.model[to.min(self.len)..].fill(0);
        self.len = to;
        Ok(())
    }

    /// What of `at..at + n` the file has.
    fn there(&self, at: usize, n: usize) -> Option<(usize, usize)> {
        let end = (at + n).min(self.len);
        (at < end).then(|| (at, end - at))
    }

    fn map_read(&mut self, side: usize, at: usize, n: usize) -> Result {
        let Some((at, n)) = self.there(at, n) else { return Ok(()) };
        let file = &self.sides[side].buffered;
        let map: Map = Map::with_options().offset(self.plan.base + at).len(Extent::Exact(n)).map(file)?;
        self.compare(&map, at, "mapped read")
    }

    fn map_write(&mut self, side: usize, at: usize, n: usize) -> Result {
        let Some((at, n)) = self.there(at, n) else { return Ok(()) };
        let (fresh, synced) = (self.fresh(n), self.rng.bool());
        let file = &self.sides[side].buffered;
        let mut map: MapMut = MapMut::with_options().offset(self.plan.base + at).len(Extent::Exact(n)).map(file)?;
        map.copy_from_slice(fresh.bytes());
        if synced {
            map.flush(file, Flush::Sync)?;
        }
        drop(map);
        self.wrote(at, fresh.bytes());
        Ok(())
    }

    fn keep(&mut self, side: usize) -> Result {
        let n = self.len.min(64 << 10);
        if n > 0 {
            let file = &self.sides[side].buffered;
            let map: Map = Map::with_options().offset(self.plan.base).len(Extent::Exact(n)).map(file)?;
            self.compare(&map, 0, "a new mapping")?;
            self.sides[side].kept = Some(map);
        }
        Ok(())
    }

    fn look_at_kept(&mut self, side: usize) -> Result {
        self.sides[side].kept.as_ref().map_or(Ok(()), |map| self.compare(map, 0, "a mapping of before"))
    }

    fn blank(&mut self, side: usize, at: usize, n: usize, flags: FallocateFlags) -> Result {
        fallocate(&self.sides[side].buffered, flags, (self.plan.base + at) as u64, n as u64)?;
        if !flags.contains(FallocateFlags::KEEP_SIZE) {
            self.len = self.len.max(at + n);
        }
        self.model[at..at + n].fill(0);
        Ok(())
    }

    fn allocate(&mut self, side: usize, at: usize, n: usize) -> Result {
        let keep = self.rng.bool();
        let flags = if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        fallocate(&self.sides[side].buffered, flags, at as u64, n as u64)?;
        if !keep {
            self.len = self.len.max(at + n);
        }
        Ok(())
    }

    fn copy(&mut self, side: usize, at: usize, n: usize) -> Result {
        let Some((from, n)) = self.there(at, n) else { return Ok(()) };
        let to = self.rng.usize(..self.plan.span);
        let n = n.min(self.plan.span - to).min(from.abs_diff(to));
        let (mut here, mut there) = ((self.plan.base + from) as u64, (self.plan.base + to) as u64);
        let mut left = n;
        while left > 0 {
            let file = &self.sides[side].buffered;
            let done = copy_file_range(file, Some(&mut here), file, Some(&mut there), left)?;
            ensure!(done > 0, "copying {n} from {from} to {to} ended {left} before the end");
            left -= done;
        }
        if n > 0 {
            self.model.copy_within(from..from + n, to);
            self.len = self.len.max(to + n);
        }
        Ok(())
    }

    /// Holes read as zeroes; data and holes alternate up to the end.
    fn holes(&mut self, side: usize) -> Result {
        let file = &self.sides[side].buffered;
        let mut at = 0;
        while at < self.len {
            let data = match seek(file, SeekFrom::Data((self.plan.base + at) as u64)) {
                Ok(p) => (p as usize - self.plan.base).min(self.len),
                Err(rustix::io::Errno::NXIO) => self.len,
                Err(e) => return Err(e.into()),
            };
            ensure!(self.model[at..data].iter().all(|b| *b == 0), "a hole is told at {at}..{data}, where bytes were written");
            if data == self.len {
                break;
            }
            let hole = (seek(file, SeekFrom::Hole((self.plan.base + data) as u64))? as usize - self.plan.base).min(self.len);
            ensure!(hole > data, "data at {data} is told to be a hole at {hole}");
            at = hole;
        }
        Ok(())
    }

    /// Everything, on every side, both ways.
    fn all(&mut self) -> Result {
        for side in 0..self.sides.len() {
            self.say(format!("everything on side {side}"));
            self.read(side, false, 0, self.plan.span)?;
            self.read(side, true, 0, self.plan.span)?;
            self.look_at_kept(side)?;
        }
        Ok(())
    }
}
