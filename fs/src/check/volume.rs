//! Superblock copies and journals.
//!
//! Invariant: after [`journals`] every read of the check sees what replay would put in place. Not here: membership.

use super::finding::of_check_error;
use super::{Check, Code, Place, Result, finding};
use luna_format::cluster::SLOT_FREE;
use luna_format::{BlockNo, Slot, peek, superblock};
use luna_journal::{JournalError, Plan, ReplayProof};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// Images compared with their home blocks at once.
const BATCH: usize = 512;

/// All copies are whole and say the same.
pub(super) fn superblocks(c: &mut Check<'_>) -> Result<()> {
    let places = c.sb.copies();
    let mut versions = Vec::new();
    for (block, fetched) in places.into_iter().zip(c.reader.many(&places)?) {
        match fetched {
            Err(why) => c.found(Code::S01, Place::block(block), format!("expected a superblock, found: {why}")),
            Ok(b) => match superblock::read(&b, block) {
                Err(e) => c.found(Code::S01, Place::block(block), of_check_error(&e).1),
                Ok((id, version, sb)) => versions.push((block, id, version, sb)),
            },
        }
    }
    let newest = versions.iter().map(|v| v.2).max().unwrap_or(0);
    for (block, id, version, sb) in versions {
        if id != c.id || version != newest || sb.as_bytes() != c.sb.as_bytes() {
            c.found(Code::S02, Place::block(block), format!("expected version {newest} as in the newest copy, found version {version}"));
        }
    }
    Ok(())
}

/// Each journal has a sound header; what a dirty one would put in place is laid over the LUN.
pub(super) fn journals(c: &mut Check<'_>) -> Result<()> {
    for slot in 0..c.sb.slots as Slot {
        c.progress("journals", u64::from(slot), u64::from(c.sb.slots));
        match luna_journal::plan(c.reader.disk(), c.id, c.sb.journal_region(slot), c.sb.homes(), slot, ReplayProof::FirstMount) {
            Ok(plan) => journal(c, slot, &plan)?,
            Err(e) => bad_journal(c, slot, e)?,
        }
    }
    Ok(())
}

fn bad_journal(c: &mut Check<'_>, slot: Slot, e: JournalError) -> Result<()> {
    let place = Place::slot(slot);
    match e {
        JournalError::Lun { source: source @ luna_lun::LunError::Io { .. }, .. } => {
            c.found(Code::B09, place, format!("expected a readable journal, found: {source}"));
        }
        JournalError::Lun { source, .. } => return Err(source.into()),
        JournalError::Check(e) => {
            let (code, text) = finding::of_check_error(&e);
            c.found(code, place.at_block(c.sb.journal_region(slot).0), text);
        }
        JournalError::BadImage { block, .. } => {
            c.found(Code::J02, place, format!("expected a sealed block for block {block}, found something else"));
        }
        JournalError::BadHeader { what, found, .. } => c.found(Code::J03, place, format!("expected {what} in bounds, found {found}")),
        other => c.found(Code::J03, place, other.to_string()),
    }
    // what this journal holds is not seen
    c.incomplete = true;
    Ok(())
}

fn journal(c: &mut Check<'_>, slot: Slot, plan: &Plan) -> Result<()> {
    if plan.is_clean() {
        let next = c.record.as_ref().map(|r| r.slots[usize::from(slot)].incarnation + 1);
        if let Some(next) = next.filter(|n| plan.incarnation() > *n) {
            let text = format!("expected a journal for incarnation {next}, found one that admits {} and later ones", plan.incarnation());
            c.found(Code::J06, Place::slot(slot), text);
        }
        return Ok(());
    }
    if c.record.as_ref().is_some_and(|r| r.slots[usize::from(slot)].state == SLOT_FREE) {
        let text = format!("expected a clean journal, found incarnation {} with {} records", plan.incarnation(), plan.records());
        c.found(Code::J04, Place::slot(slot), text);
    }
    if let Some(g) = plan.gap() {
        let text =
            format!("expected record {} at position {}, found it damaged although record {} is whole", g.missing, g.position, g.later);
        c.found(Code::J01, Place::slot(slot), text);
    }
    let all: Vec<BlockNo> = plan.images().map(|(b, _)| b).collect();
    for b in &all {
        if c.sb.ag_of(*b).is_none() {
            c.found(Code::J02, Place::slot(slot).at_block(*b), "expected the address of a block in a group, found another");
        }
    }
    let newer = if c.options.overlay_journals { lay_over(c, plan, &all)? } else { 0 };
    let text = format!("{} records for {} blocks, {newer} of them newer than on the LUN", plan.records(), all.len());
    c.found(Code::J05, Place::slot(slot), text);
    Ok(())
}

/// Keeps the images that replay would write (rule R5); how many.
fn lay_over(c: &mut Check<'_>, plan: &Plan, all: &[BlockNo]) -> Result<u64> {
    let images: BTreeMap<BlockNo, _> = plan.images().filter(|(b, _)| c.sb.ag_of(*b).is_some()).collect();
    let mut newer = 0;
    for batch in all.chunks(BATCH) {
        for (block, home) in batch.iter().zip(c.reader.many(batch)?) {
            let Some(image) = images.get(block) else { continue };
            let current = home.ok().and_then(|h| peek(&h, &c.id, *block).ok()).is_some_and(|h| h.version >= image.header().version);
            if !current {
                c.reader.lay_over(*block, (*image).clone());
                newer += 1;
            }
        }
    }
    Ok(newer)
}
