//! Recovers a crash state by the production code, looks at everything, checks the volume, and asks the model.
//!
//! States with the same bytes are recovered once; states that a replay makes the same (but for what lies in the rings of clean journals,
//! which nobody reads) are looked at once, also when another workload with the same beginning left them. What was promised is asked for
//! each state anew.
//!
//! Invariant: no state is passed over because another one looked like it; only equal bytes are. Not here: where states come from.

use super::base::Base;
use super::hosts::{Hosts, VOLUME, replay};
use super::image::{Image, ImageDisk};
use super::look::{Seen, look};
use super::model::{Known, Story};
use super::states::{self, Cut, Effort};
use super::tape::{Door, Lun};
use crate::Broken;
use crate::fsw::end::{fsck, is_harmless_at_rest};
use crate::fsw::mutant;
use fastrand::Rng;
use luna_format::ag::{self, SEGMENT_BLOCKS, SegmentType};
use luna_format::superblock::Superblock;
use luna_format::{BlockNo, Slot};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Workloads.
    pub workloads: u64,
    /// Those left out because there was no space for them.
    pub no_space: u64,
    /// Changes of the LUN and flushes in their tapes.
    pub events: u64,
    /// Hosts that died while another lived on.
    pub deaths: u64,
    /// Crash states by kind: prefix, subset, torn, in flight.
    pub states: [u64; 4],
    /// Of these, with bytes that were new.
    pub distinct: u64,
    /// Of these, different after replay.
    pub recovered: u64,
    /// Replays that were cut themselves, and done again.
    pub replays_cut: u64,
}

impl Counts {
    /// Adds.
    pub fn add(&mut self, b: &Self) {
        self.workloads += b.workloads;
        self.no_space += b.no_space;
        self.events += b.events;
        self.deaths += b.deaths;
        self.states.iter_mut().zip(b.states).for_each(|(a, b)| *a += b);
        self.distinct += b.distinct;
        self.recovered += b.recovered;
        self.replays_cut += b.replays_cut;
    }
}

type Outcome = Rc<Result<Seen, String>>;

/// Outcomes that are remembered from one workload to the next: some hundred megabytes at most.
const REMEMBERED: usize = 4096;

/// See the module's text.
pub(super) struct Judge<'a> {
    base: &'a Base,
    broken: Option<Broken>,
    pub(super) counts: Counts,
    /// By hash of the state: the hash after replay.
    states: BTreeMap<u64, Result<u64, String>>,
    outcomes: BTreeMap<u64, Outcome>,
    judged: BTreeSet<(u64, usize)>,
    /// By hash of the metadata: what the check found.
    checked: BTreeMap<u64, Result<(), String>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(base: &'a Base, broken: Option<Broken>) -> Self {
        let (states, outcomes, judged, checked) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { base, broken, counts: Counts::default(), states, outcomes, judged, checked }
    }

    /// What is known changed: every state is to be judged anew. The outcomes stay.
    pub(super) fn next_story(&mut self) {
        self.judged.clear();
    }

    /// Another workload begins. What equal bytes come to stays; the counts of the last one are handed out.
    pub(super) fn next_workload(&mut self) -> Counts {
        self.next_story();
        if self.outcomes.len() > REMEMBERED {
            self.forget();
        }
        std::mem::take(&mut self.counts)
    }

    /// Remembers nothing.
    pub(super) fn forget(&mut self) {
        self.states.clear();
        self.outcomes.clear();
        self.checked.clear();
        self.next_story();
    }

    /// A state after which `known` (number `mark`) holds.
    pub(super) fn state(&mut self, image: Image, cut: Cut, story: &Story, known: &Known, mark: usize) -> Result<(), String> {
        self.counts.states[cut as usize] += 1;
        let hash = image.hash();
        if !self.states.contains_key(&hash) {
            self.counts.distinct += 1;
            let after = self.recover(image, hash);
            self.states.insert(hash, after);
        }
        let after = match &self.states[&hash] {
            Ok(after) => *after,
            Err(e) => return Err(e.clone()),
        };
        if !self.judged.insert((after, mark)) {
            return Ok(());
        }
        let outcome = Rc::clone(&self.outcomes[&after]);
        outcome.as_ref().as_ref().map_err(Clone::clone).and_then(|seen| story.judge(seen, known))
    }

    fn is_ring(&self, b: BlockNo) -> bool {
        let sb = &self.base.sb;
        let all = sb.journal_start..sb.journal_start + u64::from(sb.slots) * sb.journal_blocks;
        all.contains(&b) && !(b - sb.journal_start).is_multiple_of(sb.journal_blocks)
    }

    /// Slots in the order in which they are replayed: any is right.
    fn order(&self, hash: u64) -> Vec<Slot> {
        let mut all: Vec<Slot> = (0..self.base.sb.slots as Slot).collect();
        if hash & 1 == 1 {
            all.reverse();
        }
        all
    }

    fn replayed(&self, image: Image, hash: u64) -> Result<Image, String> {
        let disk = ImageDisk::new(image);
        for slot in self.order(hash) {
            let door = mutant::replay_disk(Arc::clone(&disk) as _, self.base.sb.journal_region(slot).0, self.broken);
            replay(&*door, &self.base.sb, std::iter::once(slot))?;
        }
        let image = disk.0.lock().clone();
        Ok(image)
    }

    fn recover(&mut self, image: Image, hash: u64) -> Result<u64, String> {
        let cut = hash.is_multiple_of(97).then(|| image.clone());
        let after = self.replayed(image, hash)?;
        let key = after.hash_without(|b| self.is_ring(b));
        if let Some(image) = cut {
            self.cut_replay(image, hash, key)?;
        }
        if !self.outcomes.contains_key(&key) {
            self.counts.recovered += 1;
            let outcome = self.look(after);
            self.outcomes.insert(key, Rc::new(outcome));
        }
        Ok(key)
    }

    /// Power is lost in the middle of a replay, anywhere: the next one comes to the same end.
    fn cut_replay(&mut self, image: Image, hash: u64, key: u64) -> Result<(), String> {
        if self.broken.is_some() {
            return Ok(());
        }
        let lun = Arc::new(Mutex::new(Lun { now: image.clone(), tape: Vec::new() }));
        let door = Door::new(Arc::clone(&lun), 0..0, VOLUME, None);
        replay(&*door, &self.base.sb, self.order(hash).into_iter())?;
        let (tape, mut rng) = (lun.lock().tape.clone(), Rng::with_seed(hash));
        let mut seen = BTreeSet::new();
        states::each(&image, &tape, 0, Effort::ASIDE, &mut rng, &mut |state, _, _| {
            if seen.insert(state.hash()) {
                self.counts.replays_cut += 1;
                let again = self.replayed(state, hash)?;
                if again.hash_without(|b| self.is_ring(b)) != key {
                    return Err("a replay that was cut and done again came to another end".into());
                }
            }
            Ok(())
        })
    }

    /// Mounts it, frees orphans, looks at everything, unmounts, checks.
    fn look(&mut self, image: Image) -> Result<Seen, String> {
        let hosts = Hosts::mount(image, self.base.sb, 1, None)?;
        hosts.sweep(0, 0..self.base.sb.slots as Slot)?;
        let seen = match hosts.on(0, look)? {
            Some(Ok(seen)) => seen,
            Some(Err(e)) => return Err(format!("reading after recovery: {e}")),
            None => return Err("the recoverer died".into()),
        };
        hosts.unmount(0)?;
        self.fsck(hosts.image())?;
        Ok(seen)
    }

    /// The production check, which looks at metadata only: once for all images that differ in other bytes.
    fn fsck(&mut self, image: Image) -> Result<(), String> {
        let other = other_segments(&image, &self.base.sb);
        let key = image.hash_without(|b| self.is_ring(b) || other.iter().any(|r| r.contains(&b)));
        match self.checked.get(&key) {
            Some(found) => found.clone(),
            None => {
                let found = fsck(&*ImageDisk::new(image), &is_harmless_at_rest);
                self.checked.insert(key, found.clone());
                found
            }
        }
    }

    /// A survivor has taken over: it shows what it sees, leaves, and the check finds nothing.
    pub(super) fn survivor(&mut self, hosts: &Arc<Hosts>, me: usize, story: &Story, known: &Known) -> Result<(), String> {
        hosts.rest()?;
        hosts.sweep(me, 0..self.base.sb.slots as Slot)?;
        let seen = match hosts.on(me, look)? {
            Some(Ok(seen)) => seen,
            Some(Err(e)) => return Err(format!("reading after the takeover: {e}")),
            None => return Err("the survivor died".into()),
        };
        story.judge(&seen, known)?;
        hosts.unmount(me)?;
        self.fsck(hosts.image())
    }
}

/// The segments that have no metadata, as the group headers say.
fn other_segments(image: &Image, sb: &Superblock) -> Vec<Range<BlockNo>> {
    let mut all = Vec::new();
    for n in 0..sb.ag_count {
        let (start, blocks) = sb.ag_region(n);
        let header = image.cell(start).bytes;
        for s in 0..blocks / SEGMENT_BLOCKS {
            if ag::segment(&header.0, s) != SegmentType::Meta {
                all.push(start + s * SEGMENT_BLOCKS..start + (s + 1) * SEGMENT_BLOCKS);
            }
        }
    }
    all
}
