//! The end of a run: faults are over, everything must get on, then everybody goes, and one host comes and looks at everything.
//!
//! 1. All hosts are well and mounted within a bound; every guest's work ends within a bound; new work on every host does too.
//! 2. Each host unmounts or is killed. One starts alone, recovers the others by the real protocol, mounts, and reads every name and
//!    byte: the oracle judges. It unmounts.
//! 3. The production fsck finds nothing on what is left.
//!
//! Not here: the run before (`world`, `faults`).

use super::guest::{Call, Work};
use super::medium::{Medium, Shared};
use super::oracle::names::Op;
use crate::world::{Event, Fallible, World};
use luna_format::{Block, BlockNo};
use luna_fs::check::{self, CheckOptions, Code};
use luna_lun::{Disk, Durability, Geometry, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A medium without a host in between.
pub(crate) struct Plain<M>(pub(crate) M, pub(crate) u64);

/// Owned or shared.
pub(crate) trait Holds: Send + Sync {
    fn with<T>(&self, f: impl FnOnce(&mut Medium) -> T) -> T;
}

impl Holds for Mutex<Medium> {
    fn with<T>(&self, f: impl FnOnce(&mut Medium) -> T) -> T {
        f(&mut self.lock())
    }
}

impl Holds for Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Medium) -> T) -> T {
        f(&mut self.lock())
    }
}

impl super::Files {
    /// The metadata stood still since `before` was on the LUN: the check finds nothing, whenever it looks at each block. As it does, it
    /// looks at the journals first.
    pub(crate) fn stood_still(&self, before: BTreeMap<BlockNo, Arc<Block>>) -> Fallible {
        let mut seen = self.medium.lock().content();
        let is_old = |block: &BlockNo| *block < self.sb.ag_start || block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0;
        seen.retain(|block, _| !is_old(block));
        seen.extend(before.into_iter().filter(|(block, _)| is_old(block)));
        let medium = Medium::of(seen, (self.sb.ag_start, super::VOLUME), 0..0);
        let note = |code: Code| code.severity() == check::Severity::Note;
        fsck(&Plain(Mutex::new(medium), super::SIZE), &note).map_err(|what| format!("frozen: {what}"))
    }
}

/// What the check may find on a volume that nobody uses: mail that was torn, a host that is fenced.
pub(crate) fn is_harmless_at_rest(code: Code) -> bool {
    [Code::C05, Code::C07].contains(&code)
}

/// The production check finds nothing but what is harmless.
pub(crate) fn fsck(disk: &dyn Disk, harmless: &dyn Fn(Code) -> bool) -> Fallible {
    let mut findings = Vec::new();
    let summary = check::run(disk, &CheckOptions::default(), &mut |x| findings.push(x)).map_err(|e| format!("fsck: {e}"))?;
    findings.retain(|x| !harmless(x.code));
    match findings.first() {
        None if summary.is_clean() => Ok(()),
        None => Err("fsck: the volume is not clean".into()),
        Some(first) => Err(format!("fsck: {} findings, the first: {first}", findings.len())),
    }
}

impl<M: Holds> Disk for Plain<M> {
    fn geometry(&self) -> Geometry {
        Geometry::able(self.1)
    }

    fn describe(&self) -> String {
        "simulated LUN".into()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.with(|m| m.read(buf, offset));
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, d: Durability) -> Result<()> {
        self.0.with(|m| m.write(None, offset, buf, d == Durability::Forced));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.0.with(Medium::flush);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.0.with(|m| m.clear(None, offset, len));
        Ok(())
    }
}

impl World {
    /// The second half of a run over files.
    pub(crate) fn fs_end(&mut self, bound: u64) -> Fallible {
        self.must(bound, "the volumes are not mounted", |w| (0..w.hosts.len()).all(|i| w.fs_is_mounted(i)))?;
        if let Some(f) = &mut self.fs {
            f.guests = false;
        }
        self.must(bound, "the guests' work does not end", Self::fs_is_quiet)?;
        self.fs_last_work()?;
        self.must(bound, "the guests' last work does not end", Self::fs_is_quiet)?;
        self.ending = true;
        for i in 0..self.hosts.len() {
            if self.rng.bool() { self.leave(i)? } else { self.kill(i) }
        }
        self.must(bound, "the hosts do not leave", |w| w.hosts.iter().all(|h| h.process.is_none()))?;
        self.last = Some(0);
        self.start(0)?;
        self.must(bound, "the last host cannot mount", |w| w.fs_is_mounted(0))?;
        self.fs_walk()?;
        self.must(bound, "the last look does not end", |w| w.fs.as_ref().is_some_and(|f| f.walked) && w.fs_is_quiet())?;
        self.last = None;
        self.leave(0)?;
        self.must(bound, "the last host does not leave", |w| w.hosts[0].process.is_none())?;
        self.fs_check()
    }

    fn fs_is_mounted(&self, i: usize) -> bool {
        self.hosts[i].process.as_ref().and_then(|p| p.side.as_ref()).is_some_and(|s| s.fs.is_some())
    }

    fn fs_is_quiet(&self) -> bool {
        self.hosts.iter().filter_map(|h| h.process.as_ref()?.side.as_ref()).all(|s| s.guests.is_empty())
    }

    /// Every host does something that every other host is in the way of.
    fn fs_last_work(&mut self) -> Fallible {
        let Some(root) = self.fs.as_ref().map(|f| f.sb.root_ino) else { return Ok(()) };
        for i in 0..self.hosts.len() {
            let Some(place) = self.fs_place(i) else { continue };
            let job = move || {
                let name = format!("last{i}");
                if let Some(super::oracle::names::Got::Ino(ino, _)) = place.name(Op::Create(root, name.clone())) {
                    place.session(ino, libc::O_RDWR, &[Call::Write(0, 16), Call::Fsync, Call::Read(0, 16)]);
                    place.name(Op::Rename(root, name, root, "last".into(), 0));
                }
                place.run(Work::Sync);
            };
            if let Some(s) = self.side(i) {
                s.begin_guest(Box::new(job));
            }
            self.fs_pump(i, false)?;
        }
        Ok(())
    }

    fn fs_walk(&mut self) -> Fallible {
        let Some(root) = self.fs.as_ref().map(|f| f.sb.root_ino) else { return Ok(()) };
        let Some(place) = self.fs_place(0) else { return Ok(()) };
        let job = move || {
            place.walk(root);
            place.machine.hear(super::Heard::Walked);
        };
        if let Some(s) = self.side(0) {
            s.begin_guest(Box::new(job));
        }
        self.fs_pump(0, false)
    }

    /// The production check of the volume.
    fn fs_check(&mut self) -> Fallible {
        let Some(f) = &mut self.fs else { return Ok(()) };
        f.stats.cells = f.oracle.data.read;
        f.stats.lost = f.oracle.lost;
        f.stats.late_writes = f.medium.lock().late;
        fsck(&Plain(Arc::clone(&f.medium), super::SIZE), &is_harmless_at_rest)
    }

    /// What is for the file system side of a process.
    pub(crate) fn fs_event(&mut self, i: usize, e: Event) -> Fallible {
        match e {
            Event::FsResume { id } => self.fs_go_on(i, id),
            Event::FsGuest => self.fs_guest(i),
            Event::FsRound => self.fs_round(i),
            _ => Ok(()),
        }
    }
}
