//! What a loss of power may leave of a tape: every prefix, and of what was not flushed any part.
//!
//! | after a prefix, of | may be left |
//! |---|---|
//! | what was flushed, or written forced | all of it |
//! | a block written and answered since | its old content or any of those since; one block may be torn at 512 bytes |
//! | the change that was under way | any of its sectors |
//!
//! Small windows are tried out exhaustively: all choices of contents, every single torn block at every sector, with the others old
//! and with the others new. Large ones: nothing, everything, each block alone lost, each alone kept, and choices by chance.
//! Choices are made where something becomes durable and at the end: what an earlier prefix could leave of the same window is among them.
//!
//! Invariant: the same tape, effort and seed give the same states in the same order. Not here: what is done with them.

use super::image::{Cell, Image};
use super::tape::Event;
use fastrand::Rng;
use luna_format::BlockNo;
use std::collections::BTreeMap;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Windows with at most so many choices are tried out exhaustively.
    pub choices: usize,
    /// Blocks of larger windows that are lost or kept alone.
    pub alone: usize,
    /// Choices by chance.
    pub chance: usize,
    /// Places at which a change is torn; 7 in a block is all.
    pub cuts: usize,
    /// Of so many deaths of a host, power is lost after one too.
    pub deaths: u64,
}

impl Effort {
    /// For `make test`.
    pub const SHORT: Self = Self { choices: 8, alone: 2, chance: 2, cuts: 1, deaths: 8 };
    /// For a run by command.
    pub const FULL: Self = Self { choices: 256, alone: 24, chance: 16, cuts: 7, deaths: 4 };
    /// For one workload: a kept case.
    pub const CASE: Self = Self { deaths: 1, ..Self::FULL };
    /// For what is looked at beside a state.
    pub(super) const ASIDE: Self = Self { choices: 8, alone: 2, chance: 2, cuts: 1, deaths: 1 };
}

/// How a state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Everything answered is there.
    Prefix,
    /// Some of what was not flushed is.
    Subset,
    /// A block of what was not flushed is torn.
    Torn,
    /// The change under way is there in part.
    Inflight,
}

type Pending = BTreeMap<BlockNo, Vec<Cell>>;

/// Takes a state: the content, the number of events before it, how it came about.
pub(super) type See<'a> = &'a mut dyn FnMut(Image, usize, Cut) -> Result<(), String>;

struct Window<'a> {
    durable: &'a Image,
    pending: &'a Pending,
    effort: Effort,
    at: usize,
}

fn choose(rng: &mut Rng, many: usize, of: usize) -> Vec<usize> {
    if of <= many {
        return (0..of).collect();
    }
    let mut all: Vec<usize> = (0..many).map(|_| rng.usize(0..of)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Window<'_> {
    /// The content when of each block the version that `pick` says is left; 0 is the old one.
    fn image(&self, pick: impl Fn(usize, usize) -> usize) -> Image {
        let mut image = self.durable.clone();
        for (n, (b, versions)) in self.pending.iter().enumerate() {
            if let Some(v) = pick(n, versions.len()).checked_sub(1) {
                image.put(*b, versions[v].clone());
            }
        }
        image
    }

    fn subsets(&self, rng: &mut Rng, see: See<'_>) -> Result<(), String> {
        let sizes: Vec<usize> = self.pending.values().map(|v| v.len() + 1).collect();
        let choices = sizes.iter().try_fold(1_usize, |a, s| a.checked_mul(*s).filter(|p| *p <= self.effort.choices));
        if let Some(choices) = choices {
            for mut c in 0..choices {
                let picks: Vec<usize> = sizes
                    .iter()
                    .map(|s| {
                        let p = c % s;
                        c /= s;
                        p
                    })
                    .collect();
                see(self.image(|n, _| picks[n]), self.at, Cut::Subset)?;
            }
            return Ok(());
        }
        see(self.image(|_, _| 0), self.at, Cut::Subset)?;
        for one in choose(rng, self.effort.alone, sizes.len()) {
            see(self.image(|n, last| if n == one { last } else { 0 }), self.at, Cut::Subset)?;
            see(self.image(|n, last| if n == one { 0 } else { last }), self.at, Cut::Subset)?;
        }
        for _ in 0..self.effort.chance {
            let picks: Vec<usize> = sizes.iter().map(|s| rng.usize(0..*s)).collect();
            see(self.image(|n, _| picks[n]), self.at, Cut::Subset)?;
        }
        Ok(())
    }

    fn torn(&self, rng: &mut Rng, see: See<'_>) -> Result<(), String> {
        let blocks: Vec<(&BlockNo, &Vec<Cell>)> = self.pending.iter().collect();
        for one in choose(rng, self.effort.alone, blocks.len()) {
            let (b, versions) = blocks[one];
            let newest = &versions[versions.len() - 1];
            let older = versions.len().checked_sub(2).map_or_else(|| self.durable.cell(*b), |n| versions[n].clone());
            for cut in choose(rng, self.effort.cuts, 7) {
                for head in [true, false] {
                    let mixed = Cell::mixed(*b, &older, newest, |s| (s <= cut) == head);
                    for others in [true, false] {
                        let mut image = self.image(|_, last| if others { last } else { 0 });
                        image.put(*b, mixed.clone());
                        see(image, self.at, Cut::Torn)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn inflight(&self, cells: &[(BlockNo, Cell)], rng: &mut Rng, see: See<'_>) -> Result<(), String> {
        let sectors = cells.len() * 8;
        let mut cuts: Vec<(usize, bool)> =
            choose(rng, self.effort.cuts, cells.len().saturating_sub(1)).iter().map(|b| (b * 8 + 8, true)).collect();
        let places = if sectors <= self.effort.cuts * 4 { sectors } else { self.effort.cuts * 2 };
        for n in choose(rng, places, sectors.saturating_sub(1)) {
            cuts.push((n + 1, true));
            cuts.push((n + 1, false));
        }
        let mut part = |lands: &dyn Fn(usize) -> bool, others: bool, rng: &mut Rng| {
            let chance = rng.u8(0..8) == 0;
            let picks: Vec<usize> = self.pending.values().map(|v| rng.usize(0..=v.len())).collect();
            let mut image = self.image(|n, last| {
                if chance {
                    picks[n]
                } else if others {
                    last
                } else {
                    0
                }
            });
            for (n, (b, c)) in cells.iter().enumerate() {
                let mixed = Cell::mixed(*b, &image.cell(*b), c, |s| lands(n * 8 + s));
                image.put(*b, mixed);
            }
            see(image, self.at, Cut::Inflight)
        };
        for (cut, head) in cuts {
            part(&|s| (s < cut) == head, true, rng)?;
            if !self.pending.is_empty() {
                part(&|s| (s < cut) == head, false, rng)?;
            }
        }
        for _ in 0..self.effort.chance.div_ceil(4) {
            let any: Vec<bool> = (0..sectors).map(|_| rng.bool()).collect();
            part(&|s| any[s], rng.bool(), rng)?;
        }
        Ok(())
    }
}

/// Shows every state that a loss of power may leave after at least `from` events.
pub(super) fn each(start: &Image, tape: &[Event], from: usize, effort: Effort, rng: &mut Rng, see: See<'_>) -> Result<(), String> {
    let (mut durable, mut pending) = (start.clone(), Pending::new());
    for at in 0..=tape.len() {
        let next = tape.get(at);
        if at >= from {
            let w = Window { durable: &durable, pending: &pending, effort, at };
            see(w.image(|_, last| last), at, Cut::Prefix)?;
            if !pending.is_empty() && !matches!(next, Some(Event::Put(_, false))) {
                w.subsets(rng, see)?;
                w.torn(rng, see)?;
            }
            if let Some(Event::Put(cells, _)) = next {
                w.inflight(cells, rng, see)?;
            }
        }
        match next {
            Some(Event::Put(cells, true)) => cells.iter().for_each(|(b, c)| {
                pending.remove(b);
                durable.put(*b, c.clone());
            }),
            Some(Event::Put(cells, false)) => cells.iter().for_each(|(b, c)| pending.entry(*b).or_default().push(c.clone())),
            Some(Event::Flush) => {
                for (b, mut versions) in std::mem::take(&mut pending) {
                    if let Some(c) = versions.pop() {
                        durable.put(b, c);
                    }
                }
            }
            None => {}
        }
    }
    Ok(())
}
