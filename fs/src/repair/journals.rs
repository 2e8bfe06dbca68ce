//! Journals: what they hold is put in place before anything else is looked at; one that cannot be read is made anew, empty.
//!
//! Invariant: runs when no host is up and none can come up, which is the proof that replay asks for. A journal that is left behind
//! admits the incarnation that its slot will have next. Not here: the rules of replay (`luna-journal`).

use super::{Did, RepairError, door::Door};
use crate::check::finding::of_check_error;
use crate::check::{Code, Place};
use luna_format::superblock::Superblock;
use luna_format::{Slot, VolumeId};
use luna_journal::{Journal, JournalError, ReplayProof};

/// See the module's text.
pub(super) fn journals(door: &mut Door<'_>, id: VolumeId, sb: &Superblock, did: &mut dyn FnMut(Did)) -> Result<(), RepairError> {
    let newest = super::slots::newest(door, id, sb)?;
    for slot in 0..sb.slots as Slot {
        let (region, place) = (sb.journal_region(slot), Place::slot(slot));
        let next = newest.map_or(1, |r| r.slots[usize::from(slot)].incarnation + 1);
        let anew = |door: &mut Door<'_>, did: &mut dyn FnMut(Did), code, text: &str, lost: Option<&str>| {
            let d = Did::new(code, place.clone().at_block(region.0), text);
            did(Did { lost: lost.map(str::to_owned), ..d });
            let version = door.version();
            door.written += 1;
            Journal::reset(door.disk(), id, region, slot, next, version)
        };
        let all = Some("what its host had acknowledged and not brought home");
        let mut plan = match luna_journal::plan(door.disk(), id, region, sb.homes(), slot, ReplayProof::FirstMount) {
            Ok(plan) => plan,
            Err(JournalError::Lun { source, .. }) => return Err(source.into()),
            Err(JournalError::BadImage { block, .. }) => {
                anew(door, did, Code::J02, &format!("made anew: an image is no block {block}"), all)?;
                continue;
            }
            Err(JournalError::Check(e)) => {
                let (code, text) = of_check_error(&e);
                anew(door, did, code, &format!("made anew ({text})"), all)?;
                continue;
            }
            Err(e) => {
                anew(door, did, Code::J03, &format!("made anew ({e})"), all)?;
                continue;
            }
        };
        if plan.is_clean() {
            if newest.is_some() && plan.incarnation() > next {
                anew(door, did, Code::J06, &format!("admits incarnation {next}, not only {}", plan.incarnation()), None)?;
            }
            continue;
        }
        if let Some(g) = plan.gap() {
            let lost = format!("records {} to {} at least: what their host had acknowledged", g.missing, g.later);
            did(Did::lost(Code::J01, place.clone(), "replayed up to the damage", lost));
            plan.accept_gap();
        }
        if let Some((block, _)) = plan.images().find(|(b, _)| sb.ag_of(*b).is_none()) {
            did(Did::lost(Code::J02, place.clone().at_block(block), "an image for a block outside of the groups is dropped", "that image"));
        }
        let free = newest.is_some_and(|r| r.slots[usize::from(slot)].state == luna_format::cluster::SLOT_FREE);
        let report = plan.apply(door.disk(), &|block| sb.ag_of(block).is_none())?;
        let code = if free { Code::J04 } else { Code::J05 };
        let text = format!("replayed: {} records, {} of {} blocks written", report.records, report.written, report.images);
        did(Did::new(code, place.clone(), text));
        door.written += 1;
        let admits = luna_journal::inspect(door.disk(), id, region, slot)?.incarnation;
        if newest.is_some() && admits > next {
            anew(door, did, Code::J06, &format!("admits incarnation {next}, not only {admits}"), None)?;
        }
    }
    door.flush()
}
