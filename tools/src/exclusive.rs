//! Having a volume alone, without being a member of it: what `luna fsck -p` and `-y` do before they write.
//!
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
use anyhow::{Result, bail};
use luna_format::cluster::{Beat, SLOT_EVICTED, SLOT_MEMBER, untext};
use luna_fs::repair::{Did, exclusive};
use luna_lun::Disk;
use std::time::{Duration, Instant};

/// Between two looks at the beats.
const LOOK: Duration = Duration::from_millis(200);
/// Waits for W that are begun anew before giving up, because somebody beats all the time.
const PATIENCE: u32 = 20;

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
