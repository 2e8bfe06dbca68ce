//! Having a volume alone, without being a member of it: what `luna fsck -p` and `-y` do before they write.
//!
//! 0. Be the only repair (`luna_fs::repair::hold`): a thread beats until the end, and all writes pass a gate that is open while that holds.
//! 1. Look: a beat that moves is a host that is up; nothing is done then.
//! 2. If the newest record names a host that was not shut out, wait until all were silent for W (`docs/recovery.md`): from then on a
//!    host writes nothing before it has beaten and read the log again.
//! 3. Set the mark "a repair is under way" in the superblock copies: who comes from now on finds it after its first beat, and goes.
//! 4. Write a record in which every member is fenced: who sleeps in a slot finds, before it may write, that it is no member. If the repair
//!    refuses, the next mount recovers them as ever; if it succeeds, their journals are at home and their slots become free.
//! 5. Look at the beats again. If any is another than at 1, somebody came in between: wait until all are silent for W.
//!
//! Invariant: each side writes first and looks then, so at least one sees the other. Not here: the mark itself (`luna_fs::repair`).

use crate::slots;
use anyhow::{Context, Result, bail};
use luna_format::VolumeId;
use luna_format::cluster::{Beat, SLOT_EVICTED, SLOT_MEMBER, untext};
use luna_fs::repair::hold::{self, Clock, Hold, HoldError, Times};
use luna_fs::repair::{Did, exclusive};
use luna_lun::{Disk, Gate, Lun, boottime_ms};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at the beats.
const LOOK: Duration = Duration::from_millis(200);
/// Waits for W that are begun anew before giving up, because somebody beats all the time.
const PATIENCE: u32 = 20;

/// For so long the LUN may fail until a repair is given up.
const PATIENCE_WITH_LUN: Duration = Duration::from_secs(30);

/// The time of this machine.
struct Time;

impl Clock for Time {
    fn now_ms(&self) -> u64 {
        boottime_ms()
    }

    fn sleep_ms(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
}

/// Who repairs the volume right now.
pub fn repairer(disk: &dyn Disk, volume: VolumeId) -> Result<Option<String>> {
    Ok(hold::busy(disk, &Time, Times::USUAL, volume)?)
}

/// Whether that is why there was no repair: somebody else was at it.
pub fn is_busy(e: &anyhow::Error) -> bool {
    matches!(e.downcast_ref::<HoldError>(), Some(HoldError::Busy(_)))
}

/// Runs `work` as the only repair of the volume: with a LUN whose requests wait while that is not sure, and fail for good once it is over.
///
/// # Errors
/// Those of `work`, and [`HoldError::Busy`], before anything is done, when somebody else repairs the volume.
pub fn alone<T>(lun: &Lun, name: &str, work: impl FnOnce(&dyn Disk) -> Result<T>) -> Result<T> {
    let (id, _) = luna_fs::mkfs::read_superblock(&*lun.disk)?;
    let nonce = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
    let (hold, until) = Hold::take(&*lun.disk, &Time, Times::USUAL, id, (&luna_node::options::host_name(), nonce.to_le_bytes()))
        .with_context(|| format!("cannot repair {name}"))?;
    let gate = Gate::new();
    gate.open_until(until);
    let guarded = gate.guard(Lun::inline(Arc::clone(&lun.disk)));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let keeper = s.spawn(|| keep(hold, &gate, &is_done));
        let done = Done(&is_done, keeper.thread().clone());
        let result = work(&*guarded.disk);
        drop(done);
        if let Ok(Some(hold)) = keeper.join()
            && let Err(e) = hold.give_back()
        {
            tracing::debug!(%e, "the next repair will wait for a while");
        }
        result
    })
}

/// Ends the beats when it goes, whatever the reason.
struct Done<'a>(&'a AtomicBool, std::thread::Thread);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

/// Beats until the repair is done, and opens the gate for as long as each beat says. `None`: the volume is somebody else's.
fn keep<'a>(mut hold: Hold<'a>, gate: &Gate, is_done: &AtomicBool) -> Option<Hold<'a>> {
    let mut worked = Instant::now();
    loop {
        std::thread::park_timeout(Duration::from_millis(Times::USUAL.beat));
        if is_done.load(Ordering::Acquire) {
            return Some(hold);
        }
        match hold.beat() {
            Ok(until) => {
                gate.open_until(until);
                worked = Instant::now();
            }
            Err(HoldError::Busy(who)) => {
                gate.shut(&format!("this repair stood still for too long, and {who} has begun another one"));
                return None;
            }
            Err(HoldError::Lun(e)) if worked.elapsed() > PATIENCE_WITH_LUN => {
                gate.shut(&e.to_string());
                return None;
            }
            Err(HoldError::Lun(_)) => {}
        }
    }
}

type Beats = Vec<(u16, Beat)>;

fn beats(disk: &dyn Disk) -> Result<Beats> {
    let (id, sb) = luna_fs::mkfs::read_superblock(disk)?;
    slots::beats(disk, id, &sb)
}

/// The volume is nobody else's when this returns; whether the mark was there before. `lun` is for people.
pub fn take(disk: &dyn Disk, lun: &str, say: &dyn Fn(&str), did: &mut dyn FnMut(Did)) -> Result<bool> {
    let (id, sb) = luna_fs::mkfs::read_superblock(disk)?;
    let marked = exclusive::is_marked(disk)?;
    let first = beats(disk)?;
    let live = slots::live(disk, id, &sb)?;
    if !live.is_empty() {
        bail!("{lun} is mounted right now by {}; unmount it there first, or look with -n", live.join(", "));
    }
    let record = slots::newest_record(disk, id, &sb)?;
    let waiting: Vec<String> = record
        .iter()
        .flat_map(|r| r.slots.iter().enumerate())
        .filter_map(|(slot, s)| {
            let name = || first.iter().find(|b| usize::from(b.0) == slot).map_or_else(|| format!("slot {slot}"), |b| untext(&b.1.name));
            matches!(s.state, SLOT_MEMBER | SLOT_EVICTED).then(name)
        })
        .collect();
    if !waiting.is_empty() {
        let (who, ms) = (waiting.join(", "), luna_node::options::silence_ms());
        say(&format!(
            "not unmounted: {who}; waiting {}.{} s, because a host that was silent for so long writes no more",
            ms / 1000,
            ms % 1000 / 100
        ));
        if !silent(disk, &first)? {
            bail!("{lun}: a host of {who} is alive; unmount it there first, or look with -n");
        }
    }
    exclusive::mark(disk, true, did)?;
    exclusive::shut_out(disk)?;
    let (mut seen, mut rounds) = (first, 0);
    loop {
        let now = beats(disk)?;
        if now == seen {
            break;
        }
        rounds += 1;
        if rounds > PATIENCE {
            if !marked {
                give_back(disk, did)?;
            }
            bail!("{lun}: hosts keep coming; stop them and try again");
        }
        say("a host came meanwhile; waiting until it is gone");
        seen = now;
        if silent(disk, &seen)? {
            exclusive::shut_out(disk)?;
        }
    }
    Ok(marked)
}

/// Watches for W whether the beats stay what they are.
fn silent(disk: &dyn Disk, as_seen: &Beats) -> Result<bool> {
    let began = Instant::now();
    let wait = Duration::from_millis(luna_node::options::silence_ms());
    while began.elapsed() < wait {
        std::thread::sleep(LOOK);
        if beats(disk)? != *as_seen {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Hosts may mount again.
pub fn give_back(disk: &dyn Disk, did: &mut dyn FnMut(Did)) -> Result<()> {
    Ok(exclusive::mark(disk, false, did)?)
}
