//! Freezing: the metadata of the whole volume stands still, on all hosts, while somebody looks at it past their caches.
//!
//! Every host that changes metadata has the right [`names::freeze`] in CW. It is cached like any right and costs the path of an
//! operation one look at a flag. [`Volume::freeze`] takes it in EX: each host gives its CW back only when no change is under way and
//! all that were made are in its journal on the LUN. So under EX the home blocks with all dirty journals laid over them are
//! one state of the volume, and they stay that state: write-back moves blocks from a journal home and changes nothing. Data goes
//! on: overwrites change no metadata. What waits is whatever changes names, sizes or allocation.
//!
//! On the host that freezes, EX covers CW, so the right alone would not stop its own operations; a second flag does. An operation
//! that may not change anything gives back what it took, waits for the right (and does not keep it in use: the flag is what is looked
//! at), and runs again; so readers of other hosts do not wait behind it. Only a thread that came with a right of its own (it makes a
//! file longer, and has its inode) keeps that. No cycle: whoever waits for the right to change something has nothing that a freeze
//! waits for, and a thaw waits for nobody. The one change that goes on is the modification time of an inode whose right is being given
//! back: one field of one block.
//!
//! Invariant: between the return of `freeze` and the drop of what it gave, no host commits a transaction but those. Not here: how
//! long one may freeze (the caller's business), and a freezer that dies (its EX is frozen until it is recovered, as any right).

use crate::error::{FsError, Step, Stop};
use crate::names;
use crate::volume::Volume;
use luna_dlm::{Hold, Mode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The mode in which a host has the right to change metadata. One of the modes that a dead host may have changed something under: a freeze
/// waits until it is recovered, for its journal may still grow (a request on its way) and goes home. (PR, as it was, is dropped when
/// its holder dies.)
pub(crate) const CHANGES: Mode = Mode::Cw;

/// How long an operation waits before it looks again whether its own host still freezes the volume.
const PAUSE: Duration = Duration::from_millis(2);

/// Whether this host may change metadata. Both flags are set before, and looked at under, the metadata mutex.
#[derive(Default)]
pub(crate) struct Freeze {
    /// The right is not here.
    asking: AtomicBool,
    /// This host has frozen the volume.
    freezing: AtomicBool,
}

impl Freeze {
    /// Whether an operation may change something now.
    pub(crate) fn allows(&self) -> Step<()> {
        let stands_still = self.freezing.load(Ordering::Acquire) || self.asking.load(Ordering::Acquire);
        if stands_still { Err(Stop::Frozen) } else { Ok(()) }
    }
}

/// The volume stands still as long as this lives.
pub struct Frozen<'a> {
    volume: &'a Volume,
    hold: Option<Hold>,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.volume.freeze.freezing.store(false, Ordering::Release);
        self.hold = None;
    }
}

impl Volume {
    /// Makes the metadata of the volume stand still on all hosts; waits for what is under way.
    ///
    /// # Errors
    /// `Invalid` when this host has frozen it already; those of the journal.
    pub fn freeze(&self) -> Result<Frozen<'_>, FsError> {
        if self.freeze.freezing.swap(true, Ordering::AcqRel) {
            return Err(FsError::Invalid("the volume is frozen already"));
        }
        let mut frozen = Frozen { volume: self, hold: None };
        self.check_active()?;
        frozen.hold = Some(self.locks.hold(&names::freeze(), Mode::Ex).map_err(|e| FsError::Withdrawn(e.to_string()))?);
        self.drain()?;
        Ok(frozen)
    }

    /// Asks for the right to change metadata and waits for nothing: who may not wait tries again later.
    pub(crate) fn ask_to_thaw(&self) {
        if !self.freeze.freezing.load(Ordering::Acquire) {
            self.locks.want(&names::freeze(), CHANGES, Box::new(drop));
        }
    }

    /// Waits until this host may change metadata, or nearly so (who wants to looks again); at once if it may.
    pub(crate) fn until_thawed(&self) -> Result<(), FsError> {
        if self.freeze.allows().is_ok() {
            return Ok(());
        }
        if self.freeze.freezing.load(Ordering::Acquire) {
            self.sleep(PAUSE);
            return Ok(());
        }
        self.locks.hold(&names::freeze(), CHANGES).map(drop).map_err(|e| FsError::Withdrawn(e.to_string()))
    }

    /// The right is not here: from now on this host changes metadata only when it was granted.
    pub(crate) fn obey_freezes(&self) {
        self.freeze.asking.store(true, Ordering::Release);
    }

    /// The right was granted.
    pub(crate) fn move_on(&self) {
        self.freeze.asking.store(false, Ordering::Release);
    }

    /// The right is going: when this returns nothing is changed any more, and what was is in the journal.
    pub(crate) fn stand_still(&self) -> Result<(), FsError> {
        self.obey_freezes();
        self.drain()
    }

    fn drain(&self) -> Result<(), FsError> {
        // whoever looked at the flags before they were set has committed when the mutex is free
        drop(self.meta.lock());
        self.sync_all()
    }
}
