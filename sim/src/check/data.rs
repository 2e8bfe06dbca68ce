//! What was written stays written: each lock name has a block that holds a counter; whoever has it exclusively (PW, EX) reads
//! it and writes it plus one; such a write may land late, also after the death of its writer.
//!
//! Violations: a write lands after FENCED of its writer; a write lands on something else than what its writer had read (a
//! lost update: two holders crossed); a reader under PR sees the block change while it is a member. A host that is evicted
//! and does not know it yet may see old data for as long as its lease lasts: that is counted, not refused (the protocol lets
//! readers' locks go with EVICT, not with FENCED).

use super::{Who, membership::Membership};
use luna_dlm::Name;
use std::collections::BTreeMap;

/// The counters on the LUN.
#[derive(Default)]
pub(crate) struct Data {
    blocks: BTreeMap<Name, u64>,
    pub(crate) writes: u64,
    pub(crate) stale_reads: u64,
}

impl Data {
    /// Reads.
    pub(crate) fn read(&self, name: &Name) -> u64 {
        self.blocks.get(name).copied().unwrap_or(0)
    }

    /// `base + 1`, submitted by `who` some time ago, reaches the medium now.
    pub(crate) fn land(&mut self, who: Who, name: Name, base: u64, members: &Membership) -> Result<(), String> {
        if members.is_fenced(who) {
            return Err(format!("data: a write of {who:?} to {name} landed after FENCED (I2)"));
        }
        let now = self.read(&name);
        if now != base {
            return Err(format!("data: {who:?} wrote {name} over {now} though it had read {base}: an update was lost"));
        }
        self.writes += 1;
        self.blocks.insert(name, base + 1);
        Ok(())
    }

    /// A reader that saw `base` under PR ends its hold.
    pub(crate) fn read_ended(&mut self, who: Who, name: Name, base: u64, members: &Membership) -> Result<(), String> {
        let now = self.read(&name);
        if now == base {
            return Ok(());
        }
        if members.is_member(who) {
            return Err(format!("data: {name} went from {base} to {now} while {who:?} held it to read"));
        }
        self.stale_reads += 1;
        Ok(())
    }
}
