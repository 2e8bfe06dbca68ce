//! A disk in memory: sparse, for tests and the simulator.
//!
//! It behaves like the best of targets: every capability, every answer at once. A block never written reads as zeroes and
//! takes no memory. Nothing is ever lost, so a flush only counts; use [`crate::recording`] to see what a flush would save.
//! It does not survive the process.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use crate::{DataQueue, Disk, Durability, Geometry, ReadDone, Result, WriteDone, check_range};

const CHUNK: u64 = 64 << 10;

/// A sparse disk in memory; also its own inline [`DataQueue`].
pub struct MemoryDisk {
    size_bytes: u64,
    chunks: RwLock<BTreeMap<u64, Box<[u8]>>>,
}

impl MemoryDisk {
    /// An empty disk of `size_bytes`, reading as zeroes.
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, chunks: RwLock::new(BTreeMap::new()) }
    }

    /// Bytes of memory its content takes.
    pub fn used_bytes(&self) -> u64 {
        self.chunks.read().len() as u64 * CHUNK
    }

    /// A second disk with the same content, as after pulling the plug now.
    pub fn snapshot(&self) -> Self {
        Self { size_bytes: self.size_bytes, chunks: RwLock::new(self.chunks.read().clone()) }
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_range(|| self.describe(), self.size_bytes, offset, len)
    }

    fn clear(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let mut chunks = self.chunks.write();
        let end = offset + len;
        let touched: Vec<u64> = chunks.range(offset / CHUNK..end.div_ceil(CHUNK)).map(|(index, _)| *index).collect();
        for index in touched {
            let start = index * CHUNK;
            if start >= offset && start + CHUNK <= end {
                chunks.remove(&index);
            } else if let Some(chunk) = chunks.get_mut(&index) {
                let from = offset.max(start) - start;
                let to = end.min(start + CHUNK) - start;
                chunk[from as usize..to as usize].fill(0);
            }
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> Geometry {
        Geometry::able(self.size_bytes)
    }

    fn describe(&self) -> String {
        format!("memory disk of {} bytes", self.size_bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        let chunks = self.chunks.read();
        let mut done = 0usize;
        while done < buf.len() {
            let at = offset + done as u64;
            let inside = (at % CHUNK) as usize;
            let count = (CHUNK as usize - inside).min(buf.len() - done);
            match chunks.get(&(at / CHUNK)) {
                Some(chunk) => buf[done..done + count].copy_from_slice(&chunk[inside..inside + count]),
                None => buf[done..done + count].fill(0),
            }
            done += count;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _durability: Durability) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        let mut chunks = self.chunks.write();
        let mut done = 0usize;
        while done < buf.len() {
            let at = offset + done as u64;
            let inside = (at % CHUNK) as usize;
            let count = (CHUNK as usize - inside).min(buf.len() - done);
            let chunk = chunks.entry(at / CHUNK).or_insert_with(|| vec![0; CHUNK as usize].into_boxed_slice());
            chunk[inside..inside + count].copy_from_slice(&buf[done..done + count]);
            done += count;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.clear(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.clear(offset, len)
    }
}

impl DataQueue for MemoryDisk {
    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        let mut buf = vec![0; len as usize];
        match self.read_at(&mut buf, offset) {
            Ok(()) => done(Ok(&buf)),
            Err(error) => done(Err(error)),
        }
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability, done: WriteDone) {
        done(self.write_at(data, offset, durability));
    }

    fn flush(&self, done: WriteDone) {
        done(Disk::flush(self));
    }

    fn drive(&self, _more: &dyn Fn() -> bool) {}

    fn kick(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_bytes_round_trip_and_zeroes_free_memory() {
        let disk = MemoryDisk::new(1 << 30);
        let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8 + 1).collect();
        disk.write_at(&data, 61_440, Durability::Plain).unwrap();
        let mut back = vec![0; data.len() + 8192];
        disk.read_at(&mut back, 61_440 - 4096).unwrap();
        assert!(back[..4096].iter().all(|b| *b == 0));
        assert_eq!(&back[4096..4096 + data.len()], &data[..]);
        let before = disk.used_bytes();
        disk.write_zeroes(65_536, 131_072).unwrap();
        assert_eq!(before - disk.used_bytes(), 131_072);
        disk.read_at(&mut back, 61_440).unwrap();
        assert_eq!(&back[..4096], &data[..4096]);
        assert!(back[4096..4096 + 131_072].iter().all(|b| *b == 0));
        assert_eq!(back[4096 + 131_072], data[4096 + 131_072]);
    }

    #[test]
    fn outside_is_refused() {
        let disk = MemoryDisk::new(8192);
        assert!(disk.write_at(&[0; 4096], 8192, Durability::Plain).is_err());
        assert!(disk.read_at(&mut [0; 4096], u64::MAX - 10).is_err());
        assert!(disk.discard(4096, 8192).is_err());
    }
}
