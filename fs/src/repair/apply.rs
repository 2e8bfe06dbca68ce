//! Writes what was planned, in an order in which a repair may be killed after any write.
//!
//! 1. New blocks: copies of data, tree nodes, a new `lost+found`. Nobody leads to them yet. Flush.
//! 2. Directories that got names (`lost+found`, the root). Flush: from here on what was lost has a name.
//! 3. All other inodes and attribute blocks, each switched by one write. Flush.
//! 4. Bitmaps, then headers of groups. Blocks that are not needed any more were marked in use until now. Flush.
//!
//! Killed before 3 is over, an object is as it was or as it will be; the next repair looks at everything again and plans the rest.
//! Invariant: nothing that an unfinished object still uses is overwritten in 1 to 3.

use super::inodes::edit;
use super::{Body, Did, Plan, Repair, RepairError};
use luna_format::{Block, Ino, Kind};
use std::collections::BTreeMap;

impl Repair<'_> {
    /// See the module's text.
    pub(super) fn apply(&mut self) -> Result<(), RepairError> {
        let plans = std::mem::take(&mut self.plans);
        let total = plans.len() as u64;
        let mut ready = BTreeMap::<Ino, Block>::new();
        for (n, (ino, plan)) in plans.into_iter().enumerate() {
            self.progress("writing", n as u64, total);
            let block = self.build(ino, plan)?;
            if self.fresh.contains(&ino) {
                self.door.put(ino, Kind::Inode, ino, block)?;
            } else {
                ready.insert(ino, block);
            }
        }
        self.door.flush()?;
        for ino in std::mem::take(&mut self.early) {
            if let Some(block) = ready.remove(&ino) {
                self.door.put(ino, Kind::Inode, ino, block)?;
            }
        }
        self.door.flush()?;
        for (block, kind, owner, b) in std::mem::take(&mut self.rewrites) {
            self.door.put(block, kind, owner, b)?;
        }
        for (ino, block) in ready {
            self.door.put(ino, Kind::Inode, ino, block)?;
        }
        self.door.flush()?;
        let said = self.space.write(&mut self.door)?;
        said.into_iter().for_each(|d: Did| self.did(d));
        self.door.flush()
    }

    /// The inode block as it will be, with what it leads to written to new blocks.
    fn build(&mut self, ino: Ino, plan: Plan) -> Result<Block, RepairError> {
        let Plan { mut block, body } = plan;
        match body {
            Body::AsIs => {}
            Body::Names(records) => self.write_names(ino, &mut block, &records)?,
            Body::Parts(parts) => self.write_parts(ino, &mut block, &parts)?,
        }
        edit(&mut block, |i| i.zero = 0);
        Ok(block)
    }
}
