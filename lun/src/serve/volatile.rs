//! A volatile cache before the file of `luna serve`, to lose power with: for tests of what a flush promises.
//!
//! Plain writes stay here, seen by every connection, until a flush on any of them; a forced write goes to the file by itself. At
//! [`Volatile::lose_power`] each block that was not flushed keeps one of the contents it had since the last flush, by a seed: the old one,
//! any of those since, or one torn at 512 bytes. Whoever is connected is cut off before, and the instance word changes, so that
//! clients know that what was answered may be gone.
//!
//! Invariant: what a flush was answered for, and what was written forced, is in the file; of anything else each sector has a content
//! that it had at some time since. When there is more than was allowed, everything goes to the file: a cache may always do that.
//! Not here: speed. One mutex is held over every request.

use crate::BLOCK_BYTES;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = 512;

type Content = Box<[u8]>;

/// See the module's text.
pub(super) struct Volatile {
    /// Contents since the last flush, oldest first, by block.
    state: Mutex<State>,
    /// Contents kept at the most.
    limit: usize,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<u64, Vec<Content>>,
    contents: usize,
    cuts: u64,
}

/// The parts of a range by block: block, from, to, and where in the range that is.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let place = offset + at as u64;
        let from = (place % BLOCK_BYTES) as usize;
        let to = (from + (len - at)).min(BLOCK);
        let part = (at < len).then_some((place / BLOCK_BYTES, from, to, at));
        at += to - from;
        part
    })
}

/// Fills `buf` from the file; what is behind its end is zeroes.
fn read_file(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let mut got = 0;
    while got < buf.len() {
        match file.read_at(&mut buf[got..], offset + got as u64) {
            Ok(0) => {
                buf[got..].fill(0);
                break;
            }
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl State {
    /// Everything goes to the file.
    fn drain(&mut self, file: &File, end: u64) -> io::Result<()> {
        while let Some((block, versions)) = self.blocks.pop_first() {
            if let Some(newest) = versions.last() {
                write_block(file, block, newest, end)?;
            }
        }
        self.contents = 0;
        Ok(())
    }
}

/// The export may end inside a block.
fn write_block(file: &File, block: u64, content: &[u8], end: u64) -> io::Result<()> {
    let at = block * BLOCK_BYTES;
    let len = end.saturating_sub(at).min(BLOCK_BYTES) as usize;
    file.write_all_at(&content[..len], at)
}

impl Volatile {
    /// A cache of so many MiB.
    pub(super) fn new(mib: u64) -> Self {
        let limit = usize::try_from(mib << 20 >> BLOCK_BYTES.trailing_zeros()).unwrap_or(usize::MAX).max(1);
        Self { state: Mutex::default(), limit }
    }

    /// How often power was lost.
    pub(super) fn cuts(&self) -> u64 {
        self.state.lock().cuts
    }

    /// What clients see.
    pub(super) fn read(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        read_file(file, buf, offset)?;
        for (block, from, to, at) in parts(offset, buf.len()) {
            if let Some(newest) = state.blocks.get(&block).and_then(|v| v.last()) {
                buf[at..at + to - from].copy_from_slice(&newest[from..to]);
            }
        }
        Ok(())
    }

    /// A write; a forced one is in the file when this returns.
    pub(super) fn write(&self, file: &File, data: &[u8], offset: u64, forced: bool, end: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if forced {
            file.write_all_at(data, offset)?;
        }
        for (block, from, to, at) in parts(offset, data.len()) {
            let part = &data[at..at + to - from];
            if forced {
                // no older content may bring back what this replaced
                state.blocks.get_mut(&block).into_iter().flatten().for_each(|v| v[from..to].copy_from_slice(part));
                continue;
            }
            let mut new = match state.blocks.get(&block).and_then(|v| v.last()) {
                Some(newest) => newest.clone(),
                None => {
                    let mut old = vec![0; BLOCK].into_boxed_slice();
                    read_file(file, &mut old, block * BLOCK_BYTES)?;
                    old
                }
            };
            new[from..to].copy_from_slice(part);
            state.blocks.entry(block).or_default().push(new);
            state.contents += 1;
        }
        if state.contents > self.limit {
            state.drain(file, end)?;
        }
        Ok(())
    }

    /// Everything answered before is in the file when this returns.
    pub(super) fn flush(&self, file: &File, end: u64) -> io::Result<()> {
        self.state.lock().drain(file, end)
    }

    /// Power is lost; nobody may be connected. Answers blocks that were not flushed, and how many of them lost something.
    pub(super) fn lose_power(&self, file: &File, seed: u64, end: u64) -> io::Result<(usize, usize)> {
        let mut state = self.state.lock();
        let (mut random, mut lost) = (Random(seed), 0);
        let blocks = std::mem::take(&mut state.blocks);
        let all = blocks.len();
        for (block, mut versions) in blocks {
            let mut old = vec![0; BLOCK].into_boxed_slice();
            read_file(file, &mut old, block * BLOCK_BYTES)?;
            versions.insert(0, old);
            let pick = random.below(versions.len());
            let mut left = versions[pick].clone();
            if let Some(next) = versions.get(pick + 1).filter(|_| random.below(3) == 0) {
                let (cut, head) = (random.below(BLOCK / SECTOR) * SECTOR, random.below(2) == 0);
                let range = if head { 0..cut } else { cut..BLOCK };
                left[range.clone()].copy_from_slice(&next[range]);
            }
            lost += usize::from(versions.last().is_some_and(|newest| *newest != left));
            write_block(file, block, &left, end)?;
        }
        state.contents = 0;
        state.cuts += 1;
        Ok((all, lost))
    }
}

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 1 << 20;

    fn file(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("luna-volatile-{}-{name}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(END).unwrap();
        file
    }

    fn get(v: &Volatile, file: &File, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![9; len];
        v.read(file, &mut buf, at).unwrap();
        buf
    }

    #[test]
    fn what_was_flushed_or_forced_stays_and_the_rest_is_old_or_new_by_sectors() {
        let (mut kept, mut gone, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let (v, file) = (Volatile::new(1), file("cut"));
            v.write(&file, &[1; 8192], 4096, false, END).unwrap();
            v.flush(&file, END).unwrap();
            v.write(&file, &[2; 4096], 8192, false, END).unwrap();
            v.write(&file, &[3; 512], 4096, true, END).unwrap();
            v.write(&file, &[4; 4096], 16384, false, END).unwrap();
            v.write(&file, &[5; 512], 16896, true, END).unwrap();
            assert_eq!(get(&v, &file, 8192, 4096), [2; 4096], "clients see what is only in the cache");
            assert_eq!(v.lose_power(&file, seed, END).unwrap().0, 2);
            assert_eq!(get(&v, &file, 4096, 512), [3; 512]);
            assert_eq!(get(&v, &file, 4608, 3584), [1; 3584]);
            assert_eq!(get(&v, &file, 16896, 512), [5; 512], "an older content does not bring back what was forced over it");
            let block = get(&v, &file, 8192, 4096);
            assert!(block.chunks(512).all(|s| s == [1; 512] || s == [2; 512]), "a sector is old or new");
            match block.iter().filter(|b| **b == 2).count() {
                0 => gone += 1,
                4096 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && gone > 20 && torn > 10, "{kept} kept, {gone} gone, {torn} torn");
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let (v, file) = (Volatile::new(1), file("limit"));
        for n in 0..300 {
            v.write(&file, &[(n as u8).wrapping_add(1); 4096], (n % 4) * 4096, false, END).unwrap();
        }
        assert!(v.state.lock().contents <= 256);
        v.flush(&file, END).unwrap();
        assert_eq!(v.lose_power(&file, 1, END).unwrap(), (0, 0));
        assert_eq!(get(&v, &file, 0, 4096), [41; 4096]);
        assert_eq!(v.cuts(), 1);
    }
}
