//! The seams at which rules are taken away, to show that the oracle would notice; and what is listened to there otherwise.
//!
//! Without a rule taken away [`hooks`] only tells the lock checker what the production cache believes, and [`replay_disk`] is the
//! host's own door. Not here: the rules that are taken away elsewhere (the door, the fence, the router's words).

use super::VOLUME;
use super::machine::{Machine, Said};
use crate::Broken;
use luna_dlm::{Hooks, Mode, Name, ValueBlock};
use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, BlockNo, peek};
use luna_fs::Fs;
use luna_lun::{Disk, Durability, Geometry, Result};
use std::sync::{Arc, Weak};

struct Told {
    inner: Arc<dyn Hooks>,
    fs: Weak<Fs>,
    machine: Arc<Machine>,
    broken: Option<Broken>,
}

/// The volume's hooks, listened to.
pub(super) fn hooks(inner: Arc<dyn Hooks>, fs: &Arc<Fs>, machine: &Arc<Machine>, broken: Option<Broken>) -> Arc<dyn Hooks> {
    Arc::new(Told { inner, fs: Arc::downgrade(fs), machine: Arc::clone(machine), broken })
}

impl Hooks for Told {
    fn come_down(&self, name: &Name, from: Mode, to: Mode) -> std::result::Result<Option<ValueBlock>, String> {
        match (self.broken, self.fs.upgrade()) {
            (Some(Broken::GivesLocksBackDirty), Some(fs)) => {
                // only forgets
                if !to.covers(Mode::Cr) {
                    fs.volume.forget(name);
                }
                Ok(None)
            }
            (Some(Broken::RemembersWithoutALock), Some(fs)) => {
                // only writes back
                fs.volume.write_back(name).map_err(|e| e.to_string())?;
                Ok(None)
            }
            _ => self.inner.come_down(name, from, to),
        }
    }

    fn granted(&self, name: &Name, from: Mode, to: Mode, value: &ValueBlock) {
        self.machine.say(Said::Granted(*name, to));
        self.inner.granted(name, from, to, value);
    }
}

/// The LUN as a replay sees it.
pub(crate) fn replay_disk(door: Arc<dyn Disk>, header: BlockNo, broken: Option<Broken>) -> Arc<dyn Disk> {
    match broken {
        Some(b @ (Broken::ReplaysWithoutVersions | Broken::LeavesTornBlocks | Broken::LeavesTheJournalDirty)) => {
            Arc::new(Bent { door, header, broken: b })
        }
        _ => door,
    }
}

struct Bent {
    door: Arc<dyn Disk>,
    header: BlockNo,
    broken: Broken,
}

impl Bent {
    /// The header, not a home block.
    fn is_header(&self, offset: u64) -> bool {
        offset / BLOCK_U64 == self.header
    }
}

impl Disk for Bent {
    fn geometry(&self) -> Geometry {
        self.door.geometry()
    }

    fn describe(&self) -> String {
        self.door.describe()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.door.read_at(buf, offset)?;
        // every home block looks as if nothing were there yet
        if self.broken == Broken::ReplaysWithoutVersions && buf.len() == BLOCK_BYTES && !self.is_header(offset) {
            buf.fill(0);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        if self.broken == Broken::LeavesTheJournalDirty && self.is_header(offset) {
            return Ok(());
        }
        if self.broken == Broken::LeavesTornBlocks && buf.len() == BLOCK_BYTES && !self.is_header(offset) {
            let mut there = Block::zeroed();
            self.door.read_at(&mut there.0, offset)?;
            if there.0.iter().any(|b| *b != 0) && peek(&there, &VOLUME, offset / BLOCK_U64).is_err() {
                return Ok(());
            }
        }
        self.door.write_at(buf, offset, durability)
    }

    fn flush(&self) -> Result<()> {
        self.door.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.door.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.door.write_zeroes(offset, len)
    }
}
