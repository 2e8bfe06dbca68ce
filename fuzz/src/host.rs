//! One host over a guarding disk: what a mount does (superblock, replay of every journal, journal opened, orphans swept), in one thread
//! and without a kernel.
//!
//! Invariant: it is the production volume, lock cache, journal and data path; only the lock manager is left out (everything asked for is
//! granted) and the clock is [`Machine`]'s. Errors come back as text. Not here: what is done with the mount (`walk`).

use crate::disk::GuardDisk;
use crate::machine::Machine;
use luna_dlm::{LockCache, Mode, Name, PosixClient, Requester, Threads, ValueBlock};
use luna_format::Slot;
use luna_fs::{Fs, Parts, Volume, mkfs};
use luna_journal::{Journal, ReplayProof};
use luna_lun::Disk;
use std::sync::{Arc, OnceLock, Weak};

/// Grants whatever is asked for, a moment later.
struct Grants {
    machine: Arc<Machine>,
    cache: OnceLock<Weak<LockCache>>,
}

impl Requester for Grants {
    fn lock(&self, name: Name, mode: Mode, _noqueue: bool) {
        let cache = self.cache.get().cloned().unwrap_or_default();
        self.machine.spawn(Box::new(move || {
            if let Some(cache) = cache.upgrade() {
                cache.granted(&name, mode, ValueBlock::default());
            }
        }));
    }

    fn release(&self, _name: Name, _from: Mode, _to: Mode, _value: Option<ValueBlock>) {}

    fn busy(&self, _name: Name, _wanted: Mode) {}

    fn failed(&self, reason: &str) {
        panic!("the lock cache gave up: {reason}");
    }
}

/// A mounted volume.
pub struct Host {
    /// The LUN.
    pub disk: Arc<GuardDisk>,
    /// Its machine.
    pub machine: Arc<Machine>,
    /// The file system.
    pub fs: Arc<Fs>,
}

impl Host {
    /// Replays all journals and mounts in `slot`.
    pub fn mount(disk: &Arc<GuardDisk>, slot: Slot) -> Result<Self, String> {
        let (id, sb) = mkfs::read_superblock(&**disk).map_err(|e| e.to_string())?;
        for s in 0..sb.slots as Slot {
            let plan = luna_journal::plan(&**disk, id, sb.journal_region(s), sb.homes(), s, ReplayProof::FirstMount);
            let mut plan = plan.map_err(|e| e.to_string())?;
            if !plan.is_clean() {
                plan.settle(&**disk, &mut || false).map_err(|e| e.to_string())?;
                plan.apply(&**disk, &|_| false).map_err(|e| e.to_string())?;
            }
        }
        Self::mount_only(disk, slot)
    }

    /// Mounts in `slot`, whose journal must be clean; the others are left as they are.
    pub fn mount_only(disk: &Arc<GuardDisk>, slot: Slot) -> Result<Self, String> {
        let (id, sb) = mkfs::read_superblock(&**disk).map_err(|e| e.to_string())?;
        let slot = slot.min(sb.slots.saturating_sub(1) as Slot);
        let door = Arc::clone(disk) as Arc<dyn Disk>;
        let found = luna_journal::inspect(&*door, id, sb.journal_region(slot), slot).map_err(|e| e.to_string())?;
        let journal = Journal::open(Arc::clone(&door), id, sb.journal_region(slot), slot, found.incarnation).map_err(|e| e.to_string())?;
        let machine = Arc::new(Machine::default());
        let grants = Arc::new(Grants { machine: Arc::clone(&machine), cache: OnceLock::new() });
        let locks = LockCache::driven(Arc::clone(&grants) as _, Arc::clone(&machine) as _);
        let _ = grants.cache.set(Arc::downgrade(&locks));
        let queue = disk.queue();
        let parts = Parts { sb, id, slot, epoch: 1, disk: door, queue, journal, locks: Arc::clone(&locks), discard: true };
        let volume = Volume::driven(parts, Arc::clone(&machine) as _);
        let fs = Fs::new(volume, PosixClient::local(), Arc::new(|_| ()));
        locks.set_hooks(fs.hooks());
        Ok(Self { disk: Arc::clone(disk), machine, fs })
    }

    /// Brings everything home and leaves a clean journal.
    pub fn unmount(self) -> Result<(), String> {
        self.machine.work();
        self.fs.shutdown().map_err(|e| e.to_string())?;
        self.machine.work();
        self.fs.volume.journal.close().map_err(|e| e.to_string())
    }
}
