//! Targets over the whole image: fsck, mount and walk, replay; and mounts of images that are damaged in one area only.
//!
//! Each takes a script (`damage`). Invariant of all: an error code or a finding, in bounded time, memory and traffic; the guarding disk and
//! the machine panic on anything else. A repair ends clean or says why not.

use crate::damage::damage;
use crate::disk::GuardDisk;
use crate::host::Host;
use crate::scene::{Area, Scene};
use crate::walk::{Walk, walk};
use luna_format::Slot;
use luna_fs::check::{self, CheckOptions, Finding, Summary};
use luna_fs::mkfs;
use luna_fs::repair::{self, Event, Level, RepairOptions};
use luna_journal::{Fenced, ReplayProof};
use luna_lun::Disk;
use std::sync::Arc;

/// What the checker says of a disk; `None` when it gave up with an error.
pub fn findings(disk: &dyn Disk) -> Option<(Summary, Vec<Finding>)> {
    let mut all = Vec::new();
    let options = CheckOptions { max_per_code: 20, ..CheckOptions::default() };
    let summary = check::run(disk, &options, &mut |f| all.push(f)).ok()?;
    Some((summary, all))
}

/// fsck, as the long and as the short look.
pub fn fsck(script: &[u8]) {
    let scene = Scene::get();
    let disk = scene.disk(damage(scene, Area::All, script)).only(&[]);
    if let Some((summary, all)) = findings(&disk) {
        // every finding can be said
        let said: usize = all.iter().map(|f| f.to_string().len()).sum();
        assert_eq!(said == 0, all.is_empty(), "{summary:?}");
    }
    let _ = check::quick(&disk);
}

/// A repair of everything, and the look after it: it finds nothing, unless the repair said so.
pub fn repair(script: &[u8]) {
    let scene = Scene::get();
    let disk = scene.disk(damage(scene, Area::All, script));
    let options = RepairOptions { level: Level::All, now_ns: 1, progress: None };
    let mut said = 0;
    let Ok(out) = repair::run(&disk, &options, &mut |e| match e {
        Event::Found(f) => said += f.to_string().len(),
        Event::Did(d) => said += d.to_string().len(),
    }) else {
        return;
    };
    assert!(out.refused.is_some() || out.after.is_clean(), "neither clean nor refused: {:?}", out.after);
    if out.refused.is_none() {
        let (after, all) = findings(&disk).expect("a volume that was just repaired can be checked");
        assert!(after.is_clean(), "{:?}", all.first().map(ToString::to_string));
        let host = Host::mount(&Arc::new(disk), 0);
        assert!(host.is_ok(), "a repaired volume cannot be mounted");
        drop(host.map(Host::unmount));
    }
    assert!(said > 0 || out.before.is_clean());
}

fn mounted(area: Area, script: &[u8]) {
    let scene = Scene::get();
    let disk = Arc::new(scene.disk(damage(scene, area, script)));
    if let Ok(host) = Host::mount(&disk, 0) {
        walk(&host, Walk { change: true });
        let _ = host.unmount();
    }
}

/// Everything: replay of three dirty journals, a mount, a walk, changes, an unmount.
pub fn mount(script: &[u8]) {
    mounted(Area::All, script);
}

/// The superblock copies.
pub fn superblock(script: &[u8]) {
    let scene = Scene::get();
    let disk = scene.disk(damage(scene, Area::Super, script)).only(&[]);
    if let Ok((_, sb)) = mkfs::read_superblock(&disk) {
        assert!(sb.total_blocks <= crate::scene::BLOCKS);
        assert!((0..sb.slots as Slot).all(|s| sb.ag_of(sb.orphan_dir(s)).is_some()) && sb.ag_of(sb.root_ino).is_some());
    }
    let _ = mkfs::found(&disk);
    let _ = check::quick(&disk);
    mounted(Area::Super, script);
}

/// Headers and bitmaps of groups.
pub fn groups(script: &[u8]) {
    mounted(Area::Groups, script);
}

/// Inodes.
pub fn inodes(script: &[u8]) {
    mounted(Area::Inodes, script);
}

/// Extent trees.
pub fn extents(script: &[u8]) {
    mounted(Area::Extents, script);
}

/// Directory blocks.
pub fn dirs(script: &[u8]) {
    mounted(Area::Dirs, script);
}

/// Attribute blocks.
pub fn xattrs(script: &[u8]) {
    mounted(Area::Xattrs, script);
}

/// Plan, settle and apply over mutated journals: only group blocks and the journal's own header are written, and twice is once.
pub fn replay(script: &[u8]) {
    let scene = Scene::get();
    let sb = scene.sb;
    let change = damage(scene, Area::Journal, script);
    for slot in 0..sb.slots as Slot {
        let (start, _) = sb.journal_region(slot);
        let homes = [sb.ag_start..sb.total_blocks - 1, start..start + 1];
        let disk = scene.disk(change.clone()).only(&homes);
        for proof in [ReplayProof::Fenced(Fenced::attest(slot, 1, 5)), ReplayProof::FirstMount] {
            once(&disk, slot, proof);
        }
        let first = disk.changes();
        once(&disk, slot, ReplayProof::FirstMount);
        assert_eq!(first.len(), disk.changes().len(), "replaying again wrote other blocks");
    }
}

fn once(disk: &GuardDisk, slot: Slot, proof: ReplayProof) {
    let scene = Scene::get();
    let region = scene.sb.journal_region(slot);
    let _ = luna_journal::inspect(disk, crate::scene::VOLUME, region, slot);
    let Ok(mut plan) = luna_journal::plan(disk, crate::scene::VOLUME, region, scene.sb.homes(), slot, proof) else { return };
    let mut looks = 0;
    let _ = plan.settle(disk, &mut || {
        looks += 1;
        looks < 3
    });
    let refused = plan.apply(disk, &|b| b % 7 == 3).is_err();
    if refused && plan.gap().is_some() {
        plan.accept_gap();
        let _ = plan.apply(disk, &|_| false);
    }
}
