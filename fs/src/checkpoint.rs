//! Write-back: dirty metadata goes home after its journal batch is durable, freed blocks become reusable after theirs.
//!
//! One at a time per host (the `writeback` mutex), so that an older image can never land on a newer one (I6). Called by the
//! syncer, when the journal is full, and before a lock is given up (R4). Not here: deciding when.

use crate::error::FsError;
use crate::names::{self, Class};
use crate::volume::Volume;
use luna_dlm::Name;
use luna_format::{BLOCK_U64, Block, BlockNo};
use luna_journal::Sequence;
use luna_lun::Durability;
use std::sync::Arc;

/// Neighbouring blocks written by one request at the most.
const RUN: usize = 256;

type Dirty = Vec<(BlockNo, Arc<Block>, Sequence)>;

impl Volume {
    /// Brings everything home and frees the journal.
    pub fn checkpoint(&self) -> Result<(), FsError> {
        let _one = self.writeback.lock();
        let dirty = self.meta.lock().dirty_blocks(None);
        self.home(&dirty)?;
        self.reclaim(None)?;
        self.retire();
        Ok(())
    }

    /// Brings home what is cached under `name` (and, for a group, what lies inside it): rule R4. Nothing else changes it
    /// meanwhile, because the lock is being given up.
    pub fn write_back(&self, name: &Name) -> Result<(), FsError> {
        let _one = self.writeback.lock();
        let group = match names::split(name) {
            Some((Class::Group, ag)) => Some(self.sb.ag_region(ag)),
            _ => None,
        };
        let dirty = {
            let meta = self.meta.lock();
            match group {
                None => meta.dirty_blocks(Some(name)),
                Some((start, len)) => {
                    let mut all = meta.dirty_blocks(None);
                    all.retain(|(b, ..)| (start..start + len).contains(b));
                    all
                }
            }
        };
        self.home(&dirty)?;
        if let Some((start, len)) = group {
            let freed = self.meta.lock().busy.range(start..start + len).map(|(_, b)| b.sequence).max();
            if let Some(seq) = freed {
                self.journal.flush_to(seq).map_err(|e| self.journal_failed(&e))?;
            }
            self.reclaim(Some((start, start + len)))?;
        }
        self.retire();
        Ok(())
    }

    /// Journal first, then the home blocks, then a flush.
    fn home(&self, dirty: &Dirty) -> Result<(), FsError> {
        self.check_active()?;
        let Some(last) = dirty.iter().map(|(.., seq)| *seq).max() else { return Ok(()) };
        self.journal.flush_to(last).map_err(|e| self.journal_failed(&e))?;
        let written = self.write_runs(dirty).and_then(|()| Ok(self.disk.flush()?));
        if let Err(e) = written {
            self.withdraw(&format!("write-back failed: {e}"));
            return Err(e);
        }
        let mut meta = self.meta.lock();
        for (block, image, _) in dirty {
            meta.homed(*block, image);
        }
        Ok(())
    }

    fn write_runs(&self, dirty: &Dirty) -> Result<(), FsError> {
        let mut at = 0;
        while at < dirty.len() {
            let mut end = at + 1;
            while end < dirty.len() && end - at < RUN && dirty[end].0 == dirty[end - 1].0 + 1 {
                end += 1;
            }
            let bufs: Vec<&[u8]> = dirty[at..end].iter().map(|(_, image, _)| &image.0[..]).collect();
            self.disk.write_vectored_at(&bufs, dirty[at].0 * BLOCK_U64, Durability::Plain)?;
            at = end;
        }
        Ok(())
    }

    /// Records whose every image is at home leave the journal. Called under the write-back mutex after a flush.
    fn retire(&self) {
        let durable = self.journal.durable();
        let oldest = self.meta.lock().oldest_dirty();
        let upto = oldest.map_or(durable, |o| durable.min(o.saturating_sub(1)));
        self.journal.retire(upto);
    }

    /// Freed blocks whose batch is durable are discarded on the LUN, where asked for, and may be handed out again.
    pub fn reclaim(&self, range: Option<(BlockNo, BlockNo)>) -> Result<(), FsError> {
        let durable = self.journal.durable();
        let (from, to) = range.unwrap_or((0, BlockNo::MAX));
        let ready: Vec<(BlockNo, u64, bool)> = {
            let meta = self.meta.lock();
            meta.busy.range(from..to).filter(|(_, b)| b.sequence <= durable).map(|(s, b)| (*s, b.len, b.trim)).collect()
        };
        for (start, len, trim) in &ready {
            if *trim && let Err(e) = self.disk.discard(start * BLOCK_U64, len * BLOCK_U64) {
                tracing::warn!(block = start, len, error = %e, "discard failed; the blocks are free all the same");
            }
        }
        let mut meta = self.meta.lock();
        for (start, ..) in ready {
            crate::alloc::not_busy(&mut meta, &self.sb, start);
        }
        Ok(())
    }
}
