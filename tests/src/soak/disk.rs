//! A virtual machine's disk: 4 KiB writes at random with O_DIRECT, flushes, discards, snapshots by copy, and moves to other hosts.
//!
//! Each block carries a stamp that is never used twice, and is verified whole. For each block the job knows the stamp it must have now, and
//! which others it may have after a crash: those written since the last flush that returned.
//!
//! Invariant: `may` is emptied by a flush that returned, and by nothing else. Not here: which host it is on.

use super::worker::{Done, Job, Tally, bad};
use crate::io::{Aligned, fill};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const BLOCK: usize = 4096;
const BLOCKS: usize = 4096;
/// Blocks read at once when everything is verified.
const STRIDE: usize = 256;
/// Snapshots kept.
const SNAPSHOTS: usize = 2;

/// What one block must or may hold. Stamp 0 is a block of zeroes.
#[derive(Clone, Debug, Default)]
struct Block {
    now: u64,
    flushed: u64,
    may: Vec<u64>,
}

/// See the module's text.
pub(super) struct Disk {
    id: u64,
    rng: fastrand::Rng,
    dir: PathBuf,
    file: Option<File>,
    blocks: Vec<Block>,
    stamp: u64,
    snapshots: Vec<(String, Vec<u64>)>,
    tally: Tally,
}

fn direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(path)
}

impl Disk {
    /// Disk number `id`; its work follows from `seed`.
    pub(super) fn new(id: u64, seed: u64) -> Self {
        Self {
            id,
            rng: fastrand::Rng::with_seed(seed),
            dir: PathBuf::new(),
            file: None,
            blocks: vec![Block::default(); BLOCKS],
            stamp: 0,
            snapshots: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn name(&self) -> String {
        format!("disk-{}.img", self.id)
    }

    fn open_file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What block `n` holds when it was written with `stamp`.
    fn content(&self, n: usize, stamp: u64, out: &mut [u8]) {
        if stamp == 0 {
            return out.fill(0);
        }
        fill(out, stamp ^ ((n as u64) << 32) ^ (self.id << 56));
        out[..8].copy_from_slice(&stamp.to_le_bytes());
        out[8..16].copy_from_slice(&(n as u64 | (self.id << 32)).to_le_bytes());
    }

    /// The stamp that `got` was written with as block `n`, if it is whole.
    fn stamp_of(&self, n: usize, got: &[u8]) -> Option<u64> {
        let stamp = u64::from_le_bytes(got[..8].try_into().unwrap_or_default());
        let mut want = vec![0; BLOCK];
        self.content(n, stamp, &mut want);
        (want == got).then_some(stamp)
    }

    /// The stamps of all blocks of `file`.
    fn read_all(&mut self, file: &File, what: &str) -> Done<Vec<u64>> {
        let mut stamps = Vec::with_capacity(BLOCKS);
        let mut room = Aligned::new(STRIDE * BLOCK);
        for first in (0..BLOCKS).step_by(STRIDE) {
            file.read_exact_at(room.bytes_mut(), (first * BLOCK) as u64)?;
            for (n, got) in room.bytes().chunks(BLOCK).enumerate() {
                match self.stamp_of(first + n, got) {
                    Some(stamp) => stamps.push(stamp),
                    None => {
                        let (number, word) = (first + n, u64::from_le_bytes(got[..8].try_into().unwrap_or_default()));
                        return bad(format!("{what}: block {number} is torn or foreign; it begins with {word:#x}"));
                    }
                }
            }
        }
        self.tally.verified += (BLOCKS * BLOCK) as u64;
        Ok(stamps)
    }

    /// All blocks are what they must be, or, after a crash, what they may be.
    fn verify(&mut self, file: &File, crashed: bool) -> Done {
        let what = self.name();
        let stamps = self.read_all(file, &what)?;
        for (n, (b, got)) in self.blocks.iter_mut().zip(stamps).enumerate() {
            if b.now == got {
                continue;
            }
            if !crashed || (b.flushed != got && !b.may.contains(&got)) {
                let after = if crashed { "after a crash" } else { "without a crash" };
                return bad(format!(
                    "{what}: block {n} has stamp {got} {after}; last {}, flushed {}, possible {:?}",
                    b.now, b.flushed, b.may
                ));
            }
            b.now = got;
        }
        Ok(())
    }

    fn write(&mut self, n: usize) -> Done {
        self.stamp += 1;
        let stamp = self.stamp;
        let mut room = Aligned::new(BLOCK);
        self.content(n, stamp, room.bytes_mut());
        // from here on it may be there, whatever the answer is
        self.blocks[n].may.push(stamp);
        self.open_file()?.write_all_at(room.bytes(), (n * BLOCK) as u64)?;
        self.blocks[n].now = stamp;
        self.tally.ops += 1;
        Ok(())
    }

    fn read(&mut self, n: usize) -> Done {
        let mut room = Aligned::new(BLOCK);
        self.open_file()?.read_exact_at(room.bytes_mut(), (n * BLOCK) as u64)?;
        let (got, want) = (self.stamp_of(n, room.bytes()), self.blocks[n].now);
        if got != Some(want) {
            return bad(format!("{}: block {n} reads as {got:?}, written as {want}", self.name()));
        }
        self.tally.verified += BLOCK as u64;
        self.tally.ops += 1;
        Ok(())
    }

    fn discard(&mut self, first: usize, count: usize) -> Done {
        let range = first..(first + count).min(BLOCKS);
        self.blocks[range.clone()].iter_mut().for_each(|b| b.may.push(0));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(self.open_file()?, flags, (range.start * BLOCK) as u64, (range.len() * BLOCK) as u64)?;
        self.blocks[range].iter_mut().for_each(|b| b.now = 0);
        self.tally.ops += 1;
        Ok(())
    }

    /// Copies the disk, by the kernel's call or as `cp --sparse` does, syncs the copy and its name, and verifies it.
    fn snapshot(&mut self) -> Done {
        self.sync()?;
        if self.snapshots.len() >= SNAPSHOTS {
            fs::remove_file(self.path(&self.snapshots[0].0))?;
            self.snapshots.remove(0);
        }
        self.stamp += 1;
        let name = format!("disk-{}.snap-{}", self.id, self.stamp);
        let to = direct(&self.path(&name))?;
        to.set_len((BLOCKS * BLOCK) as u64)?;
        if self.rng.bool() {
            copy_by_the_kernel(self.open_file()?, &to)?
        } else {
            copy_sparse(self.open_file()?, &to)?
        }
        to.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        self.snapshots.push((name, self.blocks.iter().map(|b| b.now).collect()));
        self.tally.snapshots += 1;
        self.verify_snapshot(self.snapshots.len() - 1)
    }

    fn verify_snapshot(&mut self, n: usize) -> Done {
        let Some((name, want)) = self.snapshots.get(n).cloned() else { return Ok(()) };
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(self.path(&name))?;
        let got = self.read_all(&file, &name)?;
        match got.iter().zip(&want).position(|(g, w)| g != w) {
            Some(at) => bad(format!("{name}: block {at} has stamp {}, it was copied with {}", got[at], want[at])),
            None => Ok(()),
        }
    }

    /// Copies that were never finished, or whose removal did not get through.
    fn remove_leftovers(&self) -> io::Result<()> {
        let prefix = format!("disk-{}.snap-", self.id);
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && !self.snapshots.iter().any(|s| s.0 == name) {
                fs::remove_file(self.path(&name))?;
            }
        }
        Ok(())
    }
}

fn copy_by_the_kernel(from: &File, to: &File) -> io::Result<()> {
    let (mut here, mut there) = (0, 0);
    let len = (BLOCKS * BLOCK) as u64;
    while here < len {
        let left = (len - here) as usize;
        if copy_file_range(from, Some(&mut here), to, Some(&mut there), left)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let len = (BLOCKS * BLOCK) as u64;
    let mut at = 0;
    loop {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) if data < len => data,
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let hole = seek(from, SeekFrom::Hole(data))?.min(len);
        at = data;
        while at < hole {
            let mut room = Aligned::new(((hole - at) as usize).min(STRIDE * BLOCK));
            from.read_exact_at(room.bytes_mut(), at)?;
            to.write_all_at(room.bytes(), at)?;
            at += room.bytes().len() as u64;
        }
    }
}

impl Job for Disk {
    fn arrive(&mut self, dir: &Path, crashed: bool) -> Done {
        self.dir = dir.to_owned();
        let file = direct(&self.path(&self.name()))?;
        if self.stamp == 0 {
            file.set_len((BLOCKS * BLOCK) as u64)?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        self.verify(&file, crashed)?;
        for n in 0..self.snapshots.len() {
            self.verify_snapshot(n)?;
        }
        self.file = Some(file);
        if crashed {
            self.remove_leftovers()?;
            self.sync()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Done {
        match self.rng.u32(..2000) {
            0 => return self.snapshot(),
            1..8 => {
                let n = self.rng.usize(..self.snapshots.len().max(1));
                return self.verify_snapshot(n);
            }
            8..40 => {
                let (first, count) = (self.rng.usize(..BLOCKS), self.rng.usize(1..64));
                return self.discard(first, count);
            }
            _ => {}
        }
        for _ in 0..self.rng.u32(1..8) {
            let n = self.rng.usize(..BLOCKS);
            self.write(n)?;
        }
        for _ in 0..self.rng.u32(..8) {
            let n = self.rng.usize(..BLOCKS);
            self.read(n)?;
        }
        if self.rng.u32(..3) == 0 { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Done {
        self.open_file()?.sync_data()?;
        for b in &mut self.blocks {
            b.flushed = b.now;
            b.may.clear();
        }
        self.tally.ops += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.file = None;
    }

    fn tally(&self) -> Tally {
        self.tally
    }
}
