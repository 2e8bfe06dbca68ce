//! The other machines' disks stay in use while one machine moves: a thread per host that writes and verifies.
//!
//! Each thread works on a disk file of its own through its own host's mount, with O_DIRECT, and reads back every block it
//! wrote before it writes the next. Invariant: the first wrong byte or failed call ends the thread and is reported by
//! [`Traffic::stop`].

use anyhow::{Context, Result, ensure};
use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Memory that O_DIRECT accepts, without unsafe: a vector one page too long.
#[derive(Debug)]
pub struct Aligned {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zero bytes at an address that is a multiple of 4096.
    pub fn new(len: usize) -> Self {
        let room = vec![0; len + 4096];
        let start = room.as_ptr().align_offset(4096);
        Self { room, start, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.start + self.len]
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + self.len]
    }
}

/// Fills `out` with bytes that depend on every argument.
pub fn pattern(out: &mut [u8], disk: u64, place: u64, round: u64) {
    let mut x = disk.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place.rotate_left(20) ^ round.rotate_left(40) ^ 0x1234_5678_9abc_def1;
    for chunk in out.chunks_mut(8) {
        // xorshift: fast, and different everywhere
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
}

/// The running threads.
#[derive(Debug)]
pub struct Traffic {
    over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    longest_us: Arc<AtomicU64>,
    threads: Vec<(String, JoinHandle<Result<()>>)>,
}

/// What the threads did.
#[derive(Debug)]
pub struct Summary {
    /// Blocks written and verified.
    pub blocks: u64,
    /// The longest time one write and its check took.
    pub longest: Duration,
}

/// Bytes of one write.
pub const UNIT: usize = 64 << 10;
const PLACES: u64 = 64;

impl Traffic {
    /// Starts one thread for each (host's name, disk file).
    pub fn start(disks: Vec<(String, PathBuf)>) -> Self {
        let (over, done, longest_us) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let start = |(number, (host, path)): (usize, (String, PathBuf))| {
            let (over, done, longest) = (Arc::clone(&over), Arc::clone(&done), Arc::clone(&longest_us));
            let thread = std::thread::spawn(move || exercise(number as u64, &path, &over, &done, &longest));
            (host, thread)
        };
        let threads = disks.into_iter().enumerate().map(start).collect();
        Self { over, done, longest_us, threads }
    }

    /// Blocks written and verified so far.
    pub fn blocks(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the threads; the first error any of them met.
    pub fn stop(mut self) -> Result<Summary> {
        self.over.store(true, Ordering::Relaxed);
        for (host, thread) in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow::anyhow!("the thread of {host} panicked"))?.with_context(|| format!("I/O through {host}"))?;
        }
        Ok(Summary { blocks: self.blocks(), longest: Duration::from_micros(self.longest_us.load(Ordering::Relaxed)) })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn exercise(disk: u64, path: &std::path::Path, over: &AtomicBool, done: &AtomicU64, longest_us: &AtomicU64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let (mut wrote, mut read) = (Aligned::new(UNIT), Aligned::new(UNIT));
    for round in 0.. {
        for place in 0..PLACES {
            if over.load(Ordering::Relaxed) {
                return Ok(());
            }
            let begin = Instant::now();
            // far apart, so that the disk stays thin
            let offset = place * (16 << 20);
            pattern(wrote.bytes_mut(), disk, place, round);
            file.write_all_at(wrote.bytes(), offset).with_context(|| format!("cannot write {}", path.display()))?;
            file.read_exact_at(read.bytes_mut(), offset).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(wrote.bytes() == read.bytes(), "{}: wrong bytes at {offset}", path.display());
            longest_us.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
            // leave the processors to the machines
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_patterns_differ() {
        let mut a = Aligned::new(8192);
        assert_eq!(a.bytes().as_ptr() as usize % 4096, 0);
        pattern(a.bytes_mut(), 1, 2, 3);
        for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4)] {
            let mut b = Aligned::new(8192);
            pattern(b.bytes_mut(), other.0, other.1, other.2);
            assert_ne!(a.bytes(), b.bytes(), "{other:?}");
        }
    }

    #[test]
    fn wrong_bytes_are_reported() {
        let t = Traffic::start(vec![("nowhere".into(), "/nonexistent/disk".into())]);
        let e = t.stop().expect_err("no such file");
        assert!(format!("{e:#}").contains("nowhere"));
    }
}
