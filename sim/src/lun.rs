//! One LUN: blocks that are read and written late, fail now and then, and outlive whoever wrote them.
//!
//! A write lands when its time comes, whether its writer still lives or not; an answer reaches only the life that asked. A
//! failed write may have landed. Not here: flushes (a forced write and a plain one are the same: nothing is lost).

use crate::world::{Event, Fallible, Happening, World};
use luna_cluster::Input;
use luna_format::Block;
use luna_format::cluster::{DECIDE_EVICT, DECIDE_LEAVE, DECIDE_RECOVERED, read_record};
use luna_node::router::{DiskJob, In};
use std::collections::BTreeMap;

/// The blocks, and whether the LUN is well.
pub(crate) struct Lun {
    blocks: BTreeMap<u64, Block>,
    /// No slow answers and no errors.
    pub(crate) calm: bool,
}

impl Default for Lun {
    fn default() -> Self {
        Self { blocks: BTreeMap::new(), calm: true }
    }
}

impl World {
    /// How long the LUN takes; never longer than a request may live.
    pub(crate) fn latency(&mut self) -> u64 {
        let slow = if self.lun.calm { 0 } else { 10 };
        if self.rng.u8(0..100) < slow { self.rng.u64(1..self.timing.request_ms - 20) } else { self.rng.u64(1..4) }
    }

    pub(crate) fn lun_job(&mut self, host: usize, life: u64, job: DiskJob) -> Fallible {
        let fails = !self.lun.calm && self.rng.u8(0..100) < 3;
        let input = match job {
            DiskJob::Read(token, start, count) => {
                let block = |b| self.lun.blocks.get(&b).cloned().unwrap_or_else(Block::zeroed);
                let result = if fails { Err("EIO".to_owned()) } else { Ok((start..start + count).map(block).collect()) };
                Input::ReadDone { token, result }
            }
            DiskJob::Write(token, block, bytes, _) => {
                // a failed write may have landed or not
                if !fails || self.rng.bool() {
                    self.landed(block, &bytes)?;
                }
                let result = if fails { Err("EIO".to_owned()) } else { Ok(()) };
                Input::WriteDone { token, result }
            }
        };
        let event = Event::Input(Box::new(In::Cluster(input)));
        self.at(1, Happening::For { host, life, event });
        Ok(())
    }

    fn landed(&mut self, block: u64, bytes: &Block) -> Fallible {
        let a = self.area;
        if block >= a.log_start {
            let read = read_record(bytes, a.volume, a.log_start, a.log_blocks, block - a.log_start);
            let r = read.map_err(|e| format!("membership: a record that cannot be read was written: {e}"))?;
            let r = r.ok_or("membership: an empty record was written")?;
            if let Some((kind, who)) = self.check.members.landed(&r, bytes)? {
                self.say(format!("record {}: {kind} {who:?}", r.index));
                match kind {
                    DECIDE_EVICT => self.check.locks.evicted(who),
                    DECIDE_RECOVERED | DECIDE_LEAVE => self.check.locks.over(who),
                    _ => {}
                }
            }
        }
        self.lun.blocks.insert(block, bytes.clone());
        Ok(())
    }
}
