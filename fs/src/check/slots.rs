//! What the hosts keep on the LUN to agree with each other: beats, Paxos registers, membership records, mail.
//!
//! Invariant: a place that may be half written after a crash without harm (the record after the newest, mail) is no error.
//! Not here: whether a member is alive; a host that is named here is only pointed out.

use super::finding::of_check_error;
use super::{Check, Code, Place, Result};
use luna_format::cluster::{self, Beat, Record, SLOT_EVICTED, SLOT_FENCED, SLOT_MEMBER, untext};
use luna_format::{Block, BlockNo, CheckError, Slot};
use std::collections::BTreeMap;

/// Blocks read at once.
const BATCH: u64 = 1024;

/// See the module's text.
pub(super) fn slots(c: &mut Check<'_>) -> Result<()> {
    let names = beats(c)?;
    let instances = registers(c)?;
    records(c)?;
    ahead(c, &instances);
    mail(c)?;
    members(c, &names);
    Ok(())
}

/// Reads `[start, start + len)` and hands each block on.
fn each(c: &mut Check<'_>, start: BlockNo, len: u64, mut see: impl FnMut(&mut Check<'_>, u64, &Block)) -> Result<()> {
    for from in (0..len).step_by(BATCH as usize) {
        let wanted: Vec<BlockNo> = (from..len.min(from + BATCH)).map(|n| start + n).collect();
        for (block, fetched) in wanted.iter().zip(c.reader.many(&wanted)?) {
            match fetched {
                Ok(b) => see(c, block - start, &b),
                Err(why) => c.found(Code::B09, Place::block(*block), format!("expected a readable block, found: {why}")),
            }
        }
    }
    Ok(())
}

fn beats(c: &mut Check<'_>) -> Result<BTreeMap<Slot, String>> {
    let (start, mut names) = (c.sb.beat_start, BTreeMap::new());
    each(c, start, u64::from(c.sb.slots), |c, n, b| match cluster::read_beat(b, c.id, start + n, n as Slot) {
        Ok(beat) => drop(beat.map(|beat: Beat| names.insert(n as Slot, untext(&beat.name)))),
        Err(e) => bad(c, Code::C01, n, start + n, &e),
    })?;
    Ok(names)
}

fn bad(c: &mut Check<'_>, code: Code, slot: u64, block: BlockNo, e: &CheckError) {
    let (cause, text) = of_check_error(e);
    c.found(code, Place::slot(slot as Slot).at_block(block), format!("{text} ({cause})"));
}

/// The registers; which record each is at.
fn registers(c: &mut Check<'_>) -> Result<Vec<(Slot, u64)>> {
    let (start, mut instances) = (c.sb.px_start, Vec::new());
    each(c, start, u64::from(c.sb.slots), |c, n, b| match cluster::read_paxos(b, c.id, start + n, n as Slot) {
        Ok(px) => instances.extend(px.map(|p| (n as Slot, p.instance))),
        Err(e) => bad(c, Code::C02, n, start + n, &e),
    })?;
    Ok(instances)
}

/// No register is further than the record behind the newest. They were read first, so a host at work cannot make it look so.
fn ahead(c: &mut Check<'_>, instances: &[(Slot, u64)]) {
    let next = c.record.as_ref().map_or(1, |r| r.index + 1);
    for (slot, instance) in instances.iter().filter(|(_, i)| *i > next) {
        let place = Place::slot(*slot).at_block(c.sb.px_start + u64::from(*slot));
        c.found(Code::C09, place, format!("expected a register at record {next} at the most, found {instance}"));
    }
}

/// A record as far as the chain needs it.
struct Link {
    prev: [u8; 16],
    own: [u8; 16],
}

fn records(c: &mut Check<'_>) -> Result<()> {
    let (start, len) = (c.sb.log_start, c.sb.log_blocks);
    let (mut links, mut damaged) = (BTreeMap::<u64, Link>::new(), Vec::new());
    let mut newest: Option<Box<Record>> = None;
    each(c, start, len, |c, n, b| match cluster::read_record(b, c.id, start, len, n) {
        Ok(None) => {}
        Ok(Some(r)) => {
            links.insert(r.index, Link { prev: r.prev, own: cluster::chain(b) });
            if newest.as_ref().is_none_or(|old| r.index > old.index) {
                newest = Some(Box::new(r));
            }
        }
        Err(e) => damaged.push((n, e)),
    })?;
    let next = newest.as_ref().map_or(1, |r| r.index + 1);
    // the next record may have been on its way when its writer died; it is written again
    for (n, e) in damaged.iter().filter(|(n, _)| *n != next % len) {
        let (cause, text) = of_check_error(e);
        c.found(Code::C03, Place::block(start + n), format!("{text} ({cause})"));
    }
    for (index, link) in &links {
        let before = if *index == 1 { Some([0; 16]) } else { links.get(&(index - 1)).map(|l| l.own) };
        if before.is_some_and(|own| own != link.prev) {
            let text = format!("expected record {index} to name the record before it, found another");
            c.found(Code::C04, Place::block(start + index % len), text);
        }
    }
    c.record = newest;
    Ok(())
}

fn mail(c: &mut Check<'_>) -> Result<()> {
    let (start, each_slot) = (c.sb.mail_start, c.sb.mail_blocks);
    each(c, start, u64::from(c.sb.slots) * each_slot, |c, n, b| {
        if let Err(e) = cluster::read_mail(b, c.id, start + n, (n / each_slot) as Slot) {
            bad(c, Code::C05, n / each_slot, start + n, &e);
        }
    })
}

fn members(c: &mut Check<'_>, names: &BTreeMap<Slot, String>) {
    let Some(r) = c.record.clone() else { return };
    for (slot, s) in r.slots.iter().enumerate() {
        let slot = slot as Slot;
        if u32::from(slot) >= c.sb.slots {
            if s.state != cluster::SLOT_FREE {
                c.found(Code::C08, Place::slot(slot), format!("expected slots below {}, found state {}", c.sb.slots, s.state));
            }
            continue;
        }
        let name = names.get(&slot).cloned().unwrap_or_default();
        match s.state {
            SLOT_MEMBER => {
                let text = format!("host '{name}' (incarnation {}), which may be running", s.incarnation);
                c.found(Code::C06, Place::slot(slot), text);
            }
            SLOT_EVICTED | SLOT_FENCED => {
                let text = format!("host '{name}' (incarnation {}): the next mount finishes its takeover", s.incarnation);
                c.found(Code::C07, Place::slot(slot), text);
            }
            _ => {}
        }
    }
}
