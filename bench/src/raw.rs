//! The bare LUN: our own client's data path, with nothing above it.
//!
//! One thread keeps `depth` requests in flight: each completion submits the next one, so sends and receives batch just as
//! they do under a mount. Invariant: nothing is in flight any more when [`load`] returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use luna_lun::{DataQueue, Durability, LunSpec, OpenOptions};
use parking_lot::Mutex;

use crate::fio::{Job, SPAN_BYTES};

struct Load {
    queue: Arc<dyn DataQueue>,
    job: Job,
    span: u64,
    data: Vec<u8>,
    deadline: Instant,
    random: Mutex<u64>,
    answered: AtomicU64,
    failed: AtomicBool,
}

impl Load {
    fn next_offset(&self) -> u64 {
        let mut state = self.random.lock();
        let slots = self.span / u64::from(self.job.block_bytes);
        if self.job.sequential() {
            *state += 1;
        } else {
            // xorshift64: enough to defeat read-ahead.
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
        }
        *state % slots * u64::from(self.job.block_bytes)
    }
}

fn submit(load: &Arc<Load>) {
    let next = Arc::clone(load);
    let after = move |ok: bool| {
        next.answered.fetch_add(1, Ordering::Relaxed);
        if !ok {
            next.failed.store(true, Ordering::Relaxed);
        } else if Instant::now() < next.deadline {
            submit(&next);
        }
    };
    let offset = load.next_offset();
    if load.job.write {
        load.queue.write(offset, &load.data, Durability::Plain, Box::new(move |result| after(result.is_ok())));
    } else {
        load.queue.read(offset, load.job.block_bytes, Box::new(move |result| after(result.is_ok())));
    }
}

/// Loads the LUN for `time`; gives operations per second.
pub fn load(spec: &LunSpec, job: Job, time: Duration, connections: usize) -> anyhow::Result<f64> {
    let lun = luna_lun::open(spec, &OpenOptions { connections, ..OpenOptions::default() })?;
    let span = lun.disk.geometry().size_bytes.min(SPAN_BYTES);
    if span < u64::from(job.block_bytes) {
        bail!("{spec} is smaller than one request");
    }
    let begin = Instant::now();
    let load = Arc::new(Load {
        queue: Arc::clone(&lun.queue),
        job,
        span,
        data: vec![0xa5; job.block_bytes as usize],
        deadline: begin + time,
        random: Mutex::new(0x1234_5678_9abc_def1),
        answered: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    });
    for _ in 0..job.depth {
        submit(&load);
    }
    lun.queue.drive(&|| false);
    if load.failed.load(Ordering::Relaxed) {
        bail!("a request to {spec} failed");
    }
    Ok(load.answered.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_submits_the_next_until_the_time_is_over() {
        let queue = luna_lun::Lun::inline(Arc::new(luna_lun::memory::MemoryDisk::new(1 << 20))).queue;
        let job: Job = "seqread".parse().expect("listed");
        let load = Load {
            queue,
            job,
            span: 1 << 20,
            data: Vec::new(),
            deadline: Instant::now(),
            random: Mutex::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        let load = Arc::new(load);
        submit(&load);
        assert_eq!(load.answered.load(Ordering::Relaxed), 1);
        assert_eq!(load.next_offset(), 0, "one slot only");
    }
}
