//! Programs that write while something dies, and what they were promised.
//!
//! Invariant: a step counts only after the fsync that promises it returned; so everything up to [`Promised::count`] must be found later,
//! by any host. Not here: faults.

use crate::{Result, io::Aligned};
use anyhow::{Context, ensure};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes of a file.
const LEN: usize = 12_288;
/// Every so many steps a file is removed again, this many steps later.
const REMOVED: (u64, u64) = (5, 3);

/// What one program was promised.
#[derive(Debug, Default)]
pub struct Promised(AtomicU64);

impl Promised {
    /// Nothing.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Steps whose fsync returned.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Makes, fills, allocates, renames and removes files in `dir`, one step after the other, each synced, until an error or `stop`.
    pub fn work(&self, dir: &Path, who: &str, stop: &AtomicBool) {
        for n in 0.. {
            if stop.load(Ordering::SeqCst) || step(dir, who, n).is_err() {
                return;
            }
            self.0.store(n + 1, Ordering::SeqCst);
        }
    }

    /// Everything promised is there, in `dir` as some host sees it; a step that was not promised may be there or not, but whole.
    pub fn check(&self, dir: &Path, who: &str) -> Result {
        let count = self.count();
        for n in 0..=count {
            let (work, done) = (dir.join(format!("{who}-{n}.tmp")), dir.join(format!("{who}-{n}")));
            let removed = n % REMOVED.0 == 0;
            // the removal belongs to a later step; it may have been done without having been promised
            let may_be_gone = removed && n + REMOVED.1 <= count;
            let must_be_gone = removed && n + REMOVED.1 < count;
            match (done.exists(), work.exists()) {
                (true, true) => anyhow::bail!("{who}-{n} has both names"),
                (true, false) if must_be_gone => anyhow::bail!("{who}-{n} was removed and is there"),
                (true, false) => is_whole(&done, n)?,
                (false, true) => ensure!(n == count, "{who}-{n} was renamed and has its old name"),
                (false, false) => ensure!(may_be_gone || n == count, "{who}-{n} was promised and is not there; {count} were"),
            }
        }
        Ok(())
    }
}

fn step(dir: &Path, who: &str, n: u64) -> io::Result<()> {
    let path = |n: u64| -> PathBuf { dir.join(format!("{who}-{n}")) };
    let work = dir.join(format!("{who}-{n}.tmp"));
    let f = File::create(&work)?;
    if n % 4 == 1 {
        rustix::fs::fallocate(&f, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 1 << 20)?;
    }
    f.write_all_at(Aligned::pattern(LEN, n).bytes(), 0)?;
    f.sync_all()?;
    fs::rename(&work, path(n))?;
    if let Some(old) = n.checked_sub(REMOVED.1).filter(|old| old % REMOVED.0 == 0) {
        fs::remove_file(path(old))?;
    }
    File::open(dir)?.sync_all()
}

fn is_whole(path: &Path, n: u64) -> Result {
    let got = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(got == Aligned::pattern(LEN, n).bytes(), "{} is not what was written: {} bytes", path.display(), got.len());
    Ok(())
}

/// The longest pause between two writes to a file of its own, in milliseconds, until told to stop.
pub fn longest_pause(file: &File, stop: &AtomicBool) -> Result<u128> {
    let block = Aligned::pattern(4096, 1);
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        file.write_all_at(block.bytes(), 0)?;
        longest = longest.max(begun.elapsed());
    }
    Ok(longest.as_millis())
}
