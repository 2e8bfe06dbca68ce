//! Requests longer than the target takes at a time, cut into pieces and answered as one.
//!
//! Rare (targets take 32 MiB), so plainly made: pieces are gathered under a lock and the last one answers. The first error
//! is the answer. Nothing is retried here.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{DataQueue, Durability, LunError, ReadDone, WriteDone};

struct Reading {
    bytes: Vec<u8>,
    left: usize,
    error: Option<LunError>,
    done: Option<ReadDone>,
}

/// Reads in pieces of at most `max`.
pub(crate) fn read(queue: &dyn DataQueue, offset: u64, len: u32, max: u32, done: ReadDone) {
    let pieces = len.div_ceil(max) as usize;
    let state = Arc::new(Mutex::new(Reading { bytes: vec![0; len as usize], left: pieces, error: None, done: Some(done) }));
    for piece in 0..pieces as u32 {
        let start = piece * max;
        let state = Arc::clone(&state);
        let count = max.min(len - start);
        let finish: ReadDone = Box::new(move |result| {
            let mut now = state.lock();
            match result {
                Ok(data) => now.bytes[start as usize..][..data.len()].copy_from_slice(data),
                Err(error) => now.error = now.error.take().or(Some(error)),
            }
            now.left -= 1;
            if now.left > 0 {
                return;
            }
            let (bytes, error, done) = (std::mem::take(&mut now.bytes), now.error.take(), now.done.take());
            drop(now);
            if let Some(done) = done {
                match error {
                    Some(error) => done(Err(error)),
                    None => done(Ok(&bytes)),
                }
            }
        });
        queue.read(offset + u64::from(start), count, finish);
    }
}

struct Writing {
    left: usize,
    error: Option<LunError>,
    done: Option<WriteDone>,
}

/// Writes in pieces of at most `max`.
pub(crate) fn write(queue: &dyn DataQueue, offset: u64, data: &[u8], max: usize, durability: Durability, done: WriteDone) {
    let state = Arc::new(Mutex::new(Writing { left: data.len().div_ceil(max), error: None, done: Some(done) }));
    for (index, part) in data.chunks(max).enumerate() {
        let state = Arc::clone(&state);
        let finish: WriteDone = Box::new(move |result| {
            let mut now = state.lock();
            if let Err(error) = result {
                now.error = now.error.take().or(Some(error));
            }
            now.left -= 1;
            if now.left > 0 {
                return;
            }
            let (error, done) = (now.error.take(), now.done.take());
            drop(now);
            if let Some(done) = done {
                done(error.map_or(Ok(()), Err));
            }
        });
        queue.write(offset + (index * max) as u64, part, durability, finish);
    }
}
