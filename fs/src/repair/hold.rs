//! Which of several repairs has the volume: the one whose beat stands in the one block that all of them use.
//!
//! Whoever wants the volume looks whether somebody beats there, writes its own beat over whatever it finds, and has the volume if
//! its beat is still there [`Times::wait`] later. Whoever has it looks again and again, and may write for [`Times::hold`] from the moment at
//! which such a look *began*. A write over somebody else's beat shows to that one before the writer may write: it looks in time, or may write
//! no more. Beats are written over what a look found to be the own beat; one that took longer than that since that look may have
//! gone over somebody else's, so it is waited for like a first one. Then that other one may have had the volume and written, and what this
//! one has decided may be wrong: who gets the volume says so in a second block, and who was late goes on only if it is named there still.
//!
//! This is Fischer's mutual exclusion by time (Lamport, "A fast mutual exclusion algorithm", 1987, section 1) with a holder that gives up.
//! Two blocks are needed, and no record, register or slot of the cluster, which may be what is damaged.
//!
//! Invariant: no two repairs may write at one time. A request that a repair had handed over while it might, and that lands later than `wait`
//! minus `hold` afterwards, is not covered (P and D of `docs/recovery.md`). Not here: hosts ([`super::exclusive`]), closing the door
//! in time (the caller, with a gate).

use luna_format::cluster::{self, RepairBeat};
use luna_format::superblock::{REPAIR_BEAT_BLOCK, REPAIR_HOLDER_BLOCK};
use luna_format::{BLOCK_U64, Block, BlockNo, VolumeId};
use luna_lun::{Disk, Durability, LunError};

#[cfg(test)]
mod tests;

/// The times of a hold, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two beats.
    pub beat: u64,
    /// For so long from the beginning of a look that found its own beat a repair may write.
    pub hold: u64,
    /// So long after a beat that may have gone over another one a repair looks whether its own is still there. Longer than `hold`.
    pub wait: u64,
    /// A beat that stood still for so long is of a repair that was cut off. Being wrong about it costs that repair its work, not the volume.
    pub dead: u64,
}

impl Times {
    /// Those of the product: whoever repairs waits two seconds first.
    pub const USUAL: Self = Self { beat: 250, hold: 1_000, wait: 2_000, dead: 4_000 };
}

/// What tells the time and waits.
pub trait Clock: Sync {
    /// Milliseconds since some moment; goes on while the machine sleeps.
    fn now_ms(&self) -> u64;
    /// Waits.
    fn sleep_ms(&self, ms: u64);
}

/// Why a repair has not got the volume, or has it no longer.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Somebody else has it.
    #[error("it is being repaired right now by {0}")]
    Busy(String),
    /// The LUN failed; the next beat may work.
    #[error(transparent)]
    Lun(#[from] LunError),
}

/// A volume held for repair.
pub struct Hold<'a> {
    disk: &'a dyn Disk,
    clock: &'a dyn Clock,
    times: Times,
    id: VolumeId,
    beat: RepairBeat,
    /// A write of a beat may have gone, or may still go, over somebody else's.
    is_late: bool,
}

fn read(disk: &dyn Disk, at: BlockNo) -> Result<Block, LunError> {
    let mut b = Block::zeroed();
    disk.read_at(&mut b.0, at * BLOCK_U64)?;
    Ok(b)
}

fn write(disk: &dyn Disk, at: BlockNo, b: &Block) -> Result<(), LunError> {
    disk.write_at(&b.0, at * BLOCK_U64, Durability::Forced)
}

/// Whose beat it is, for people.
fn whose(b: &Block, id: VolumeId, at: BlockNo) -> String {
    let beat = cluster::read_repair_beat(b, id, at).ok().flatten();
    beat.map_or_else(|| "another host".into(), |b| cluster::untext(&b.name))
}

/// Who repairs the volume right now: whose beat changes while it is watched. At once when there is none; some seconds when there is one.
///
/// # Errors
/// The LUN's.
pub fn busy(disk: &dyn Disk, clock: &dyn Clock, times: Times, id: VolumeId) -> Result<Option<String>, LunError> {
    let (first, begun) = (read(disk, REPAIR_BEAT_BLOCK)?, clock.now_ms());
    while !first.is_zero() && clock.now_ms() < begun + times.dead {
        clock.sleep_ms(times.beat);
        let now = read(disk, REPAIR_BEAT_BLOCK)?;
        if now.0 != first.0 {
            return Ok((!now.is_zero()).then(|| whose(&now, id, REPAIR_BEAT_BLOCK)));
        }
    }
    Ok(None)
}

impl<'a> Hold<'a> {
    /// Takes the volume for a host of this name; the nonce is drawn by chance. Also until when it may write, by the clock.
    ///
    /// # Errors
    /// [`HoldError::Busy`] when somebody else has it or was as quick; then nothing of this one is left.
    pub fn take(
        disk: &'a dyn Disk,
        clock: &'a dyn Clock,
        times: Times,
        id: VolumeId,
        (name, nonce): (&str, [u8; 16]),
    ) -> Result<(Self, u64), HoldError> {
        if let Some(who) = busy(disk, clock, times, id)? {
            return Err(HoldError::Busy(who));
        }
        let beat = RepairBeat { nonce, counter: 1, name: cluster::text(name) };
        let mut hold = Self { disk, clock, times, id, beat, is_late: true };
        hold.put(REPAIR_BEAT_BLOCK)?;
        let until = hold.settle()?;
        hold.put(REPAIR_HOLDER_BLOCK)?;
        Ok((hold, until))
    }

    fn put(&self, at: BlockNo) -> Result<(), LunError> {
        write(self.disk, at, &cluster::seal_repair_beat(&self.beat, self.id, at))
    }

    /// Whether this one is in that block.
    fn look(&self, at: BlockNo) -> Result<(), HoldError> {
        let b = read(self.disk, at)?;
        let mine = cluster::read_repair_beat(&b, self.id, at).ok().flatten().is_some_and(|x| x.nonce == self.beat.nonce);
        if mine { Ok(()) } else { Err(HoldError::Busy(whose(&b, self.id, at))) }
    }

    /// After a write that may have gone over somebody else's beat: until that one has surely seen it.
    fn settle(&mut self) -> Result<u64, HoldError> {
        let landed = self.clock.now_ms();
        loop {
            self.clock.sleep_ms(self.times.beat);
            let at = self.clock.now_ms();
            self.look(REPAIR_BEAT_BLOCK)?;
            if at >= landed + self.times.wait {
                self.is_late = false;
                return Ok(at + self.times.hold);
            }
        }
    }

    /// Beats once; until when the repair may write, by the clock. To be called every [`Times::beat`], before that time is over if nobody is to
    /// wait.
    ///
    /// # Errors
    /// [`HoldError::Busy`]: somebody else has the volume; not one more write. After [`HoldError::Lun`] another beat may be tried.
    pub fn beat(&mut self) -> Result<u64, HoldError> {
        let at = self.clock.now_ms();
        self.look(REPAIR_BEAT_BLOCK)?;
        let was_late = std::mem::replace(&mut self.is_late, true);
        self.beat.counter += 1;
        self.put(REPAIR_BEAT_BLOCK)?;
        if was_late || self.clock.now_ms() >= at + self.times.hold {
            let until = self.settle()?;
            self.look(REPAIR_HOLDER_BLOCK)?;
            return Ok(until);
        }
        self.is_late = false;
        Ok(at + self.times.hold)
    }

    /// Lets the next one in at once. Without it, the next one waits until this one's beat has stood still for long enough.
    ///
    /// # Errors
    /// As [`Self::beat`].
    pub fn give_back(self) -> Result<(), HoldError> {
        self.look(REPAIR_BEAT_BLOCK)?;
        Ok(write(self.disk, REPAIR_BEAT_BLOCK, &Block::zeroed())?)
    }
}
