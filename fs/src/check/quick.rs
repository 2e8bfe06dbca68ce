//! The short look that a boot takes: was the volume left in order? Reads superblock copies, membership and journal headers.
//!
//! Invariant: `Clean` means that no host is in, every journal is clean and all copies of the superblock agree; it does not
//! mean that every tree was walked. Not here: the walk.

use super::read::Reader;
use super::{Check, CheckOptions, Code, Finding, Out, PASSES, Result, Severity, Summary, names, slots, space, volume};
use luna_lun::Disk;

/// How a volume was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quick {
    /// In order.
    Clean,
    /// Hosts are members of it; checking it now would race with them.
    InUse(u64),
    /// Not in order; the first reason.
    Look(String),
}

/// Takes the short look.
pub fn quick(disk: &dyn Disk) -> Result<Quick> {
    let (id, sb) = crate::mkfs::read_superblock(disk)?;
    if sb.incompat & luna_format::superblock::INCOMPAT_REPAIR != 0 {
        return Ok(Quick::Look("a repair was cut off".into()));
    }
    let (mut members, mut reason) = (0, None);
    let mut hear = |f: Finding| match (f.code, f.severity) {
        (Code::C06, _) => members += 1,
        (Code::J05 | Code::C07, _) | (_, Severity::Minor | Severity::Error) => drop(reason.get_or_insert(f.to_string())),
        _ => {}
    };
    let options = CheckOptions { overlay_journals: false, ..CheckOptions::default() };
    let mut check = Check {
        reader: Reader::new(disk, sb.total_blocks),
        space: space::Space::new(&sb),
        names: names::Names::default(),
        sb,
        id,
        options: &options,
        out: Out::new(&mut hear, options.max_per_code),
        summary: Summary::default(),
        incomplete: false,
        record: None,
    };
    debug_assert_eq!(PASSES[2].name, "journals");
    volume::superblocks(&mut check)?;
    slots::slots(&mut check)?;
    volume::journals(&mut check)?;
    drop(check);
    Ok(match reason {
        _ if members > 0 => Quick::InUse(members),
        Some(why) => Quick::Look(why),
        None => Quick::Clean,
    })
}
