//! Membership order, from the records as they land on the LUN.
//!
//! One record per index in one hash chain (I1); for each (slot, incarnation) JOIN < EVICT < FENCED < RECOVERED, or JOIN <
//! LEAVE; a replay is ordered only after FENCED and RECOVERED comes only after a replay that ended well (I3); no two processes
//! are the same incarnation (I4); a host is handed only views that have it in them, with growing epochs (I8); nobody is told
//! that a host is recovered before that record exists.

use super::Who;
use luna_format::Block;
use luna_format::cluster::*;
use std::collections::{BTreeMap, BTreeSet};

/// What the log says.
#[derive(Default)]
pub(crate) struct Membership {
    records: BTreeMap<u64, ([u8; 16], Block)>,
    state: BTreeMap<Who, u16>,
    joined: BTreeSet<Who>,
    replayed: BTreeSet<Who>,
    seen: BTreeMap<Who, u64>,
    newest: Option<Record>,
    /// Members evicted so far.
    pub(crate) evictions: u64,
}

impl Membership {
    /// A record landed; its decision when it is a new one.
    pub(crate) fn landed(&mut self, r: &Record, b: &Block) -> Result<Option<(u16, Who)>, String> {
        if let Some((_, old)) = self.records.get(&r.index) {
            return if old.0 == b.0 { Ok(None) } else { Err(format!("membership: two records have index {} (I1)", r.index)) };
        }
        let before = self.records.get(&(r.index - 1)).map_or([0; 16], |(c, _)| *c);
        if before != r.prev {
            return Err(format!("membership: the hash chain is broken at record {}", r.index));
        }
        self.records.insert(r.index, (chain(b), b.clone()));
        self.newest = Some(*r);
        let (kind, who) = (r.decision.kind, (r.decision.slot, r.decision.incarnation));
        let was = self.state.get(&who).copied();
        let fits = match kind {
            DECIDE_JOIN => was.is_none(),
            DECIDE_EVICT | DECIDE_LEAVE => was == Some(DECIDE_JOIN),
            DECIDE_FENCED => was == Some(DECIDE_EVICT),
            DECIDE_RECOVERED => was == Some(DECIDE_FENCED) && self.replayed.contains(&who),
            _ => return Ok(None),
        };
        if !fits {
            return Err(format!("membership: record {} decides {kind} for {who:?} whose last decision was {was:?}", r.index));
        }
        self.state.insert(who, kind);
        self.evictions += u64::from(kind == DECIDE_EVICT);
        Ok(Some((kind, who)))
    }

    /// A process says that it is this incarnation.
    pub(crate) fn joined(&mut self, who: Who) -> Result<(), String> {
        let member = self.state.contains_key(&who);
        if !self.joined.insert(who) || !member {
            return Err(format!("membership: a second process, or one without a JOIN record, is {who:?} (I4)"));
        }
        Ok(())
    }

    /// A host was handed a view.
    pub(crate) fn view(&mut self, who: Who, epoch: u64, has_it: bool) -> Result<(), String> {
        let seen = self.seen.entry(who).or_default();
        if !has_it || epoch < *seen {
            return Err(format!("membership: {who:?} was handed view {epoch} after {seen}, itself in it: {has_it} (I8)"));
        }
        *seen = epoch;
        Ok(())
    }

    /// Somebody is told to replay.
    pub(crate) fn replay(&self, who: Who) -> Result<(), String> {
        if self.is_fenced(who) { Ok(()) } else { Err(format!("membership: the journal of {who:?} is to be replayed before FENCED (I3)")) }
    }

    /// A replay ended well.
    pub(crate) fn replayed(&mut self, who: Who) {
        self.replayed.insert(who);
    }

    /// A host is told that `who` is recovered.
    pub(crate) fn thawed(&self, who: Who) -> Result<(), String> {
        let now = self.state.get(&who);
        if now == Some(&DECIDE_RECOVERED) { Ok(()) } else { Err(format!("membership: {who:?} thaws in state {now:?}")) }
    }

    /// FENCED (or more) is decided.
    pub(crate) fn is_fenced(&self, who: Who) -> bool {
        matches!(self.state.get(&who), Some(&(DECIDE_FENCED | DECIDE_RECOVERED)))
    }

    /// In, as the LUN says.
    pub(crate) fn is_member(&self, who: Who) -> bool {
        self.state.get(&who) == Some(&DECIDE_JOIN)
    }

    /// Index of the newest record, its members, and how many are dead and not recovered.
    pub(crate) fn newest(&self) -> (u64, usize, usize) {
        let Some(r) = &self.newest else { return (0, 0, 0) };
        let count = |states: &[u32]| r.slots.iter().filter(|s| states.contains(&s.state)).count();
        (r.index, count(&[SLOT_MEMBER]), count(&[SLOT_EVICTED, SLOT_FENCED]))
    }
}
