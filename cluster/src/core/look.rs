//! What `luna status` shows of the membership core. Looks, changes nothing.

use super::Core;
use crate::types::Ms;
use luna_format::Slot;

impl Core {
    /// How long ago the slot's owner gave its last sign of life, as far as was looked; `None` before anything was read.
    pub fn beat_age_ms(&self, slot: Slot, now_ms: Ms) -> Option<Ms> {
        self.watch.get(slot).map(|seen| now_ms.saturating_sub(seen.owner_ms))
    }

    /// The slot that coordinates this epoch, where raft has elected one.
    pub fn coordinator(&self) -> Option<Slot> {
        self.council.as_ref().and_then(|c| c.leader())
    }
}
