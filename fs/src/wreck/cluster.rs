//! Damage to what hosts keep to agree with each other, and to journals.

use super::{Done, WreckError, Wrecker};
use luna_format::cluster::{self, Paxos, Record, SLOT_FENCED, SLOT_FREE, SLOT_MEMBER};
use luna_format::journal::{JournalHeader, STATE_DIRTY};
use luna_format::{Block, HEADER_BYTES, Kind, Slot, Stamp, seal};
use luna_journal::{Image, Journal, inspect};
use std::sync::Arc;

/// A block that is nothing.
const NOISE: Block = Block([9; 4096]);

/// The newest record, or the state before any.
fn newest(w: &Wrecker) -> Result<(Record, [u8; 16]), WreckError> {
    let mut best = (Record::genesis(), [0; 16]);
    for n in 0..w.sb.log_blocks {
        let b = w.read(w.sb.log_start + n)?;
        if let Ok(Some(r)) = cluster::read_record(&b, w.id, w.sb.log_start, w.sb.log_blocks, n)
            && r.index > best.0.index
        {
            best = (r, cluster::chain(&b));
        }
    }
    Ok(best)
}

/// Adds a record in which every slot is free, and as old as its journal, but for what `change` does to it.
fn add_record(w: &Wrecker, change: impl FnOnce(&mut Record)) -> Result<Record, WreckError> {
    let (old, prev) = newest(w)?;
    let mut r = Record { index: old.index + 1, view_epoch: old.index + 1, prev, decision: Record::genesis().decision, ..old };
    for slot in 0..w.sb.slots as Slot {
        let s = &mut r.slots[usize::from(slot)];
        let journal = inspect(&*w.disk, w.id, w.sb.journal_region(slot), slot)?;
        s.state = SLOT_FREE;
        s.incarnation = s.incarnation.max(journal.incarnation - u64::from(journal.clean));
    }
    change(&mut r);
    let at = w.sb.log_start + r.index % w.sb.log_blocks;
    w.write(at, &cluster::seal_record(&r, w.id, at))?;
    Ok(r)
}

/// A beat that is none.
pub(crate) fn beat(w: &mut Wrecker) -> Done {
    let slot = w.below(u64::from(w.sb.slots));
    w.write(w.sb.beat_start + slot, &NOISE)?;
    Ok(Some(format!("the beat of slot {slot}")))
}

/// A register that is none.
pub(crate) fn register(w: &mut Wrecker) -> Done {
    let slot = w.below(u64::from(w.sb.slots));
    w.write(w.sb.px_start + slot, &NOISE)?;
    Ok(Some(format!("the register of slot {slot}")))
}

/// A register that has seen records that are not in the log.
pub(crate) fn ahead(w: &mut Wrecker) -> Done {
    let (slot, (r, _)) = (w.below(u64::from(w.sb.slots)) as Slot, newest(w)?);
    let at = w.sb.px_start + u64::from(slot);
    let old = cluster::read_paxos(&w.read(at)?, w.id, at, slot).ok().flatten();
    let value = Record::genesis().decision;
    let old = old.unwrap_or(Paxos { instance: 0, mbal: 0, bal: 0, value });
    let px = Paxos { instance: r.index + 5, ..old };
    w.write(at, &cluster::seal_paxos(&px, w.id, at, slot))?;
    Ok(Some(format!("the register of slot {slot} is at record {}", px.instance)))
}

/// A place in the log that is no record.
pub(crate) fn record(w: &mut Wrecker) -> Done {
    let (r, _) = newest(w)?;
    let at = w.sb.log_start + (r.index + 5) % w.sb.log_blocks;
    w.write(at, &NOISE)?;
    Ok(Some(format!("block {at} of the membership log")))
}

/// A record that continues another history.
pub(crate) fn chain(w: &mut Wrecker) -> Done {
    let r = add_record(w, |r| r.prev = [7; 16])?;
    Ok(Some(format!("record {} does not continue the one before it", r.index)))
}

/// A torn block of mail.
pub(crate) fn mail(w: &mut Wrecker) -> Done {
    let at = w.sb.mail_start + w.below(w.sb.mail_blocks);
    w.write(at, &NOISE)?;
    Ok(Some(format!("block {at} of a mailbox")))
}

/// A member that nobody is.
pub(crate) fn member(w: &mut Wrecker) -> Done {
    let r = add_record(w, |r| (r.slots[0].state, r.slots[0].incarnation) = (SLOT_MEMBER, r.slots[0].incarnation + 1))?;
    Ok(Some(format!("record {} names a member in slot 0", r.index)))
}

/// A host that is shut out.
pub(crate) fn fenced(w: &mut Wrecker) -> Done {
    let r = add_record(w, |r| {
        let s = &mut r.slots[0];
        (s.state, s.recoverer, s.incarnation) = (SLOT_FENCED, 1, s.incarnation + 1);
    })?;
    Ok(Some(format!("record {} names a fenced host in slot 0", r.index)))
}

/// A slot that the volume does not have.
pub(crate) fn no_such_slot(w: &mut Wrecker) -> Done {
    let slot = w.sb.slots as usize;
    if slot >= usize::from(luna_format::MAX_SLOTS) {
        return Ok(None);
    }
    let r = add_record(w, |r| r.slots[slot].state = SLOT_MEMBER)?;
    Ok(Some(format!("record {} names a member in slot {slot}", r.index)))
}

/// Writes `n` records into the journal of slot 0 and leaves it dirty. They change nothing but the version of the root's inode.
fn fill_journal(w: &Wrecker, n: u64, make: impl Fn(u64) -> Result<Image, WreckError>) -> Result<(), WreckError> {
    let region = w.sb.journal_region(0);
    let at = inspect(&*w.disk, w.id, region, 0)?;
    let journal = Journal::open(Arc::clone(&w.disk), w.id, region, 0, at.incarnation)?;
    for i in 0..n {
        let sequence = journal.append(vec![make(i)?])?;
        journal.flush_to(sequence)?;
    }
    Ok(())
}

fn root_again(w: &Wrecker, more: u64) -> Result<Image, WreckError> {
    let root = w.sb.root_ino;
    let mut b = w.read(root)?;
    let version = b.header().version + 1 + more;
    seal(&mut b, &Stamp { kind: Kind::Inode, volume: w.id, block: root, owner: root, version, writer: 0, epoch: 0 });
    Ok(Image { block: root, bytes: Arc::new(b) })
}

/// A damaged record with whole ones behind it.
pub(crate) fn journal_gap(w: &mut Wrecker) -> Done {
    let (start, len) = w.sb.journal_region(0);
    let tail = inspect(&*w.disk, w.id, (start, len), 0)?.tail;
    fill_journal(w, 3, |i| root_again(w, i))?;
    let second = start + 1 + (tail + 2) % (len - 1);
    w.write(second, &NOISE)?;
    Ok(Some(format!("block {second} in the middle of the journal of slot 0")))
}

/// A record for a block that no journal may touch.
pub(crate) fn journal_image(w: &mut Wrecker) -> Done {
    let block = w.sb.mail_start;
    let mut b = Block::zeroed();
    seal(&mut b, &Stamp { kind: Kind::Mail, volume: w.id, block, owner: 0, version: 1 << 20, writer: 0, epoch: 0 });
    let bytes = Arc::new(b);
    fill_journal(w, 1, |_| Ok(Image { block, bytes: Arc::clone(&bytes) }))?;
    Ok(Some("the journal of slot 0 has an image of a block of mail".into()))
}

/// Records of a member that died.
pub(crate) fn journal_dirty(w: &mut Wrecker) -> Done {
    member(w)?;
    fill_journal(w, 2, |i| root_again(w, i))?;
    Ok(Some("the journal of slot 0 is dirty".into()))
}

fn edit_header(w: &Wrecker, change: impl FnOnce(&mut JournalHeader)) -> Result<(), WreckError> {
    w.edit(w.sb.journal_region(0).0, |b| {
        if let Some(h) = b.view_mut::<JournalHeader>(HEADER_BYTES) {
            change(h);
        }
    })
}

/// A journal in no state.
pub(crate) fn journal_header(w: &mut Wrecker) -> Done {
    edit_header(w, |h| h.state = 9)?;
    Ok(Some("the state of the journal of slot 0".into()))
}

/// A dirty journal of a free slot.
pub(crate) fn journal_of_nobody(w: &mut Wrecker) -> Done {
    let incarnation = add_record(w, |r| r.slots[0].incarnation = r.slots[0].incarnation.max(1))?.slots[0].incarnation;
    edit_header(w, |h| (h.state, h.incarnation) = (STATE_DIRTY, incarnation))?;
    Ok(Some("the journal of slot 0, which is free, is dirty".into()))
}

/// A journal that waits for an incarnation that does not come.
pub(crate) fn journal_ahead(w: &mut Wrecker) -> Done {
    add_record(w, |_| ())?;
    edit_header(w, |h| h.incarnation += 10)?;
    Ok(Some("the journal of slot 0 admits incarnations from the tenth next on only".into()))
}
