//! File I/O the ways programs do it: aligned and direct, buffered, verified patterns.

use crate::Result;
use anyhow::{Context, ensure};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// Memory that O_DIRECT accepts.
#[derive(Debug)]
pub struct Aligned {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zero bytes at a multiple of 4096.
    pub fn new(len: usize) -> Self {
        let room = vec![0; len + 4096];
        let start = room.as_ptr().align_offset(4096);
        Self { room, start, len }
    }

    /// `len` bytes that depend on `seed`.
    pub fn pattern(len: usize, seed: u64) -> Self {
        let mut a = Self::new(len);
        fill(a.bytes_mut(), seed);
        a
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

/// Fills `out` with bytes that depend on `seed`.
pub fn fill(out: &mut [u8], seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    out.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.u64(..).to_le_bytes()[..c.len()]));
}

/// Opens for O_DIRECT reading and writing, creating the file.
pub fn direct(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(path);
    file.with_context(|| format!("cannot open {} with O_DIRECT", path.display()))
}

/// Opens for buffered reading and writing, creating the file.
pub fn buffered(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// `file` must have the pattern of `seed` at `offset`.
pub fn expect(file: &File, offset: u64, len: usize, seed: u64, what: &str) -> Result {
    let mut got = Aligned::new(len);
    file.read_exact_at(got.bytes_mut(), offset).with_context(|| format!("{what}: cannot read at {offset}"))?;
    let want = Aligned::pattern(len, seed);
    if let Some(at) = got.bytes().iter().zip(want.bytes()).position(|(a, b)| a != b) {
        let zero = got.bytes().iter().all(|b| *b == 0);
        ensure!(false, "{what}: first wrong byte at {}{}", offset + at as u64, if zero { " (all zero)" } else { "" });
    }
    Ok(())
}

/// `file` must read as zeroes there.
pub fn expect_zero(file: &File, offset: u64, len: usize) -> Result {
    let mut got = Aligned::new(len);
    file.read_exact_at(got.bytes_mut(), offset)?;
    ensure!(got.bytes().iter().all(|b| *b == 0), "bytes that are not zero between {offset} and {}", offset + len as u64);
    Ok(())
}
